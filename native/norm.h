// LayerNorm over rows, forward and backward. A row is a few vectors: it is read once and stays in registers, and a few
// rows are worked on together.
//
// Columns from `dim` to the padded width are zero in and zero out: `mask` is one on real columns and zero beyond.
#pragma once

#include "simd.h"

namespace sasrec {

// Calls f.operator()<N>() with the number of vectors in a row as a constant where it is a common one, else with 0.
template <typename F>
[[gnu::always_inline]] inline void with_vectors(int width, F&& f) {
  switch (width / kLanes) {
    case 2: return f.template operator()<2>();
    case 3: return f.template operator()<3>();
    case 4: return f.template operator()<4>();
    case 7: return f.template operator()<7>();
    case 8: return f.template operator()<8>();
    default: return f.template operator()<0>();
  }
}

struct NormWeights {
  const float* scale;
  const float* shift;
};

// What the backward pass needs: the normalised rows before scale and shift, and 1 / sqrt(variance + eps) of each.
struct NormState {
  float* normalised;  // (rows, width)
  float* inverse;     // (rows,)
};

struct RowShape {
  int rows;
  int width;          // padded
  int dim;            // real columns
  const float* mask;  // (width,)
};

// Where a norm's rows go, as far as they are wanted; each may be null.
struct NormOutputs {
  float* sum = nullptr;            // x + add
  Operand* sum_operand = nullptr;  // the same, to multiply
  float* out = nullptr;            // LN(x + add)
  Operand* operand = nullptr;      // the same, to multiply
};

// Rows that are worked on together, so that their sums across vectors are: as many as leave registers to work with.
constexpr int rows_together(int vectors) { return kLanes == 16 && vectors > 0 && vectors <= 4 ? 4 : 1; }

// LN(x + add); add may be null. Rows of unusual width are read three times instead of staying in registers.
inline void norm_forward(const RowShape& shape, const float* x, const float* add, NormWeights weights, float eps,
                         NormState state, const NormOutputs& to) {
  with_vectors(shape.width, [&]<int Fixed>() {
    const int n = Fixed ? Fixed : shape.width / kLanes;
    const float per_column = 1.0f / static_cast<float>(shape.dim);
    const auto rows = [&]<int R>(int first) {
      const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(first) * shape.width;
      const auto place = [&](int r, int i) { return at + static_cast<std::ptrdiff_t>(r) * shape.width + kLanes * i; };
      const auto input = [&](int r, int i) {
        const Floats v = load(x + place(r, i));
        return add ? v + load(add + place(r, i)) : v;
      };
      Floats values[R][Fixed ? Fixed : 1], totals[R]{};
      float mean[R], variance[R];
      for (int r = 0; r < R; ++r)
        for (int i = 0; i < n; ++i) {
          const Floats v = input(r, i);
          if (to.sum) store(to.sum + place(r, i), v);
          if (to.sum_operand) store_operand(to.sum_operand + place(r, i), v);
          if constexpr (Fixed != 0) values[r][i] = v;
          totals[r] += v;
        }
      sums(totals, mean);
      const auto centred = [&](int r, int i) {
        const Floats v = Fixed ? values[r][i] : input(r, i);
        return (v - splat(mean[r])) * load(shape.mask + kLanes * i);
      };
      for (int r = 0; r < R; ++r) {
        mean[r] *= per_column;
        totals[r] = Floats{};
        for (int i = 0; i < n; ++i) {
          const Floats v = centred(r, i);
          if constexpr (Fixed != 0) values[r][i] = v;
          totals[r] += v * v;
        }
      }
      sums(totals, variance);
      for (int r = 0; r < R; ++r) state.inverse[first + r] = 1.0f / std::sqrt(variance[r] * per_column + eps);
      for (int r = 0; r < R; ++r)
        for (int i = 0; i < n; ++i) {
          const Floats v = (Fixed ? values[r][i] : centred(r, i)) * splat(state.inverse[first + r]);
          store(state.normalised + place(r, i), v);
          const Floats y = v * load(weights.scale + kLanes * i) + load(weights.shift + kLanes * i);
          if (to.out) store(to.out + place(r, i), y);
          if (to.operand) store_operand(to.operand + place(r, i), y);
        }
    };
    constexpr int kTogether = rows_together(Fixed);
    int r = 0;
    for (; r + kTogether <= shape.rows; r += kTogether) rows.template operator()<kTogether>(r);
    for (; r < shape.rows; ++r) rows.template operator()<1>(r);
  });
}

// dx (+)= gradient of LN's input for the gradient dy of its output; scale's and shift's gradients are added to.
// dx may be dy. Source: with t = dy * scale, dx = (t - mean(t) - normalised * mean(t * normalised)) * inverse.
inline void norm_backward(const RowShape& shape, const float* dy, const float* scale, NormState state,
                          float* scale_gradient, float* shift_gradient, float* dx, bool accumulate) {
  with_vectors(shape.width, [&]<int Fixed>() {
    const int n = Fixed ? Fixed : shape.width / kLanes;
    const float per_column = 1.0f / static_cast<float>(shape.dim);
    Floats scale_sums[Fixed ? Fixed : 1]{}, shift_sums[Fixed ? Fixed : 1]{};
    const auto rows = [&]<int R>(int first) {
      const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(first) * shape.width;
      const auto place = [&](int r, int i) { return at + static_cast<std::ptrdiff_t>(r) * shape.width + kLanes * i; };
      Floats totals[R]{}, products[R]{};
      for (int r = 0; r < R; ++r)
        for (int i = 0; i < n; ++i) {
          const Floats g = load(dy + place(r, i)), v = load(state.normalised + place(r, i));
          if constexpr (Fixed != 0) {
            scale_sums[i] += g * v;
            shift_sums[i] += g;
          } else {
            store(scale_gradient + kLanes * i, load(scale_gradient + kLanes * i) + g * v);
            store(shift_gradient + kLanes * i, load(shift_gradient + kLanes * i) + g);
          }
          const Floats t = g * load(scale + kLanes * i);
          totals[r] += t;
          products[r] += t * v;
        }
      float mean[R], slope[R];
      sums(totals, mean);
      sums(products, slope);
      for (int r = 0; r < R; ++r) {
        const Floats inverse = splat(state.inverse[first + r]);
        const Floats m = splat(mean[r] * per_column), s = splat(slope[r] * per_column);
        for (int i = 0; i < n; ++i) {
          const Floats t = load(dy + place(r, i)) * load(scale + kLanes * i);
          const Floats v = load(state.normalised + place(r, i));
          Floats g = (t - m - v * s) * inverse * load(shape.mask + kLanes * i);
          if (accumulate) g += load(dx + place(r, i));
          store(dx + place(r, i), g);
        }
      }
    };
    constexpr int kTogether = rows_together(Fixed);
    int r = 0;
    for (; r + kTogether <= shape.rows; r += kTogether) rows.template operator()<kTogether>(r);
    for (; r < shape.rows; ++r) rows.template operator()<1>(r);
    if constexpr (Fixed != 0) {
      for (int i = 0; i < n; ++i) {
        store(scale_gradient + kLanes * i, load(scale_gradient + kLanes * i) + scale_sums[i]);
        store(shift_gradient + kLanes * i, load(shift_gradient + kLanes * i) + shift_sums[i]);
      }
    }
  });
}

}  // namespace sasrec
