// LayerNorm over rows, forward and backward. A row is a few vectors: it is read once and stays in registers.
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

// LN(x + add); add may be null.
inline void norm_forward(const RowShape& shape, const float* x, const float* add, NormWeights weights, float eps,
                         NormState state, const NormOutputs& to) {
  with_vectors(shape.width, [&]<int Fixed>() {
    const int n = Fixed ? Fixed : shape.width / kLanes;
    const float per_column = 1.0f / static_cast<float>(shape.dim);
    for (int r = 0; r < shape.rows; ++r) {
      const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(r) * shape.width;
      Floats row[Fixed ? Fixed : 1];
      const auto put = [&](int i, Floats v) {
        if constexpr (Fixed != 0) row[i] = v;
        else store(state.normalised + at + kLanes * i, v);
      };
      const auto get = [&](int i) {
        if constexpr (Fixed != 0) return row[i];
        else return load(state.normalised + at + kLanes * i);
      };
      Floats total{};
      for (int i = 0; i < n; ++i) {
        Floats v = load(x + at + kLanes * i);
        if (add) v += load(add + at + kLanes * i);
        if (to.sum) store(to.sum + at + kLanes * i, v);
        if (to.sum_operand) store_operand(to.sum_operand + at + kLanes * i, v);
        put(i, v);
        total += v;
      }
      const Floats mean = splat(sum(total) * per_column);
      Floats squares{};
      for (int i = 0; i < n; ++i) {
        const Floats v = (get(i) - mean) * load(shape.mask + kLanes * i);
        put(i, v);
        squares += v * v;
      }
      const float inverse = 1.0f / std::sqrt(sum(squares) * per_column + eps);
      state.inverse[r] = inverse;
      for (int i = 0; i < n; ++i) {
        const Floats v = get(i) * splat(inverse);
        store(state.normalised + at + kLanes * i, v);
        const Floats y = v * load(weights.scale + kLanes * i) + load(weights.shift + kLanes * i);
        if (to.out) store(to.out + at + kLanes * i, y);
        if (to.operand) store_operand(to.operand + at + kLanes * i, y);
      }
    }
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
    for (int r = 0; r < shape.rows; ++r) {
      const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(r) * shape.width;
      Floats total{}, product{};
      for (int i = 0; i < n; ++i) {
        const Floats g = load(dy + at + kLanes * i), v = load(state.normalised + at + kLanes * i);
        if constexpr (Fixed != 0) {
          scale_sums[i] += g * v;
          shift_sums[i] += g;
        } else {
          store(scale_gradient + kLanes * i, load(scale_gradient + kLanes * i) + g * v);
          store(shift_gradient + kLanes * i, load(shift_gradient + kLanes * i) + g);
        }
        const Floats t = g * load(scale + kLanes * i);
        total += t;
        product += t * v;
      }
      const Floats mean = splat(sum(total) * per_column), slope = splat(sum(product) * per_column);
      const Floats inverse = splat(state.inverse[r]);
      for (int i = 0; i < n; ++i) {
        const Floats t = load(dy + at + kLanes * i) * load(scale + kLanes * i);
        const Floats v = load(state.normalised + at + kLanes * i);
        Floats g = (t - mean - v * slope) * inverse * load(shape.mask + kLanes * i);
        if (accumulate) g += load(dx + at + kLanes * i);
        store(dx + at + kLanes * i, g);
      }
    }
    if constexpr (Fixed != 0) {
      for (int i = 0; i < n; ++i) {
        store(scale_gradient + kLanes * i, load(scale_gradient + kLanes * i) + scale_sums[i]);
        store(shift_gradient + kLanes * i, load(shift_gradient + kLanes * i) + shift_sums[i]);
      }
    }
  });
}

}  // namespace sasrec
