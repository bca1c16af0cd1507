// LayerNorm over rows, forward and backward. A row is a few vectors: it is read once and stays in registers, and a few
// rows are worked on together.
//
// Columns from `dim` to the padded width are zero in and zero out: `mask` is one on real columns and zero beyond.
#pragma once

#include <algorithm>

#include "simd.h"

namespace sasrec {

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

// Rows whose statistics are worked out before what is done with them, so that the way from a row's values to its mean,
// its variance and the root of that is gone for many rows at a time and not for one after another.
inline constexpr int kNormRows = 16;

template <int N>
struct Terms {
  Floats values[N];
};

// to[k][r] = sum of value(r, i).values[k] over the lanes and over i < n, for the first `rows` of kNormRows rows; zero
// for the others.
template <int Fixed, int N, typename F>
[[gnu::always_inline]] inline void sum_of_rows(int rows, int n, float (&to)[N][kNormRows], F&& value) {
  // Four rows' sums are taken together; fewer rows' as if there were four, so that a row's bits do not depend on how
  // many come with it.
  const auto together = [&]<int R>(int first) {
    Floats totals[N][4]{};
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int i = 0; i < (Fixed ? Fixed : n); ++i) {
        const Terms<N> terms = value(first + r, i);
#pragma GCC unroll 2
        for (int k = 0; k < N; ++k) totals[k][r] += terms.values[k];
      }
#pragma GCC unroll 2
    for (int k = 0; k < N; ++k) {
      float row_sums[4];
      sums(totals[k], row_sums);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) to[k][first + r] = row_sums[r];
    }
  };
  int r = 0;
  for (; r + 4 <= rows; r += 4) together.template operator()<4>(r);
  for (; r < rows; ++r) together.template operator()<1>(r);
  for (; r < kNormRows; ++r)
    for (int k = 0; k < N; ++k) to[k][r] = 0;
}

// The constants of a row: in registers where they fit, else where they are.
template <int Fixed>
class ConstantRow {
 public:
  explicit ConstantRow(const float* row) : row_(row) {
#pragma GCC unroll 4
    for (int i = 0; i < kKept; ++i) kept_[i] = load(row + kLanes * i);
  }
  [[gnu::always_inline]] Floats operator[](int i) const { return kKept ? kept_[i] : load(row_ + kLanes * i); }

 private:
  static constexpr int kKept = kLanes == 16 && Fixed <= 4 ? Fixed : 0;
  const float* row_;
  Floats kept_[kKept ? kKept : 1];
};

// norm_forward for rows of Fixed vectors, or of any number of them if that is 0. Arguments are copies: what is behind a
// reference would be read again after every store.
template <int Fixed>
inline void norm_forward_of(RowShape shape, const float* x, const float* add, NormWeights weights, float eps,
                            NormState state, NormOutputs to) {
  const int n = Fixed ? Fixed : shape.width / kLanes;
  const float per_column = 1.0f / static_cast<float>(shape.dim);
  const ConstantRow<Fixed> mask(shape.mask), scale(weights.scale), shift(weights.shift);
  for (int first = 0; first < shape.rows; first += kNormRows) {
    const int rows = std::min(kNormRows, shape.rows - first);
    const std::ptrdiff_t begin = static_cast<std::ptrdiff_t>(first) * shape.width;
    const auto input = [=](int r, int i) {
      const std::ptrdiff_t at = begin + r * shape.width + kLanes * i;
      return add ? load(x + at) + load(add + at) : load(x + at);
    };
    alignas(64) float means[1][kNormRows], inverses[1][kNormRows];
    float *mean = means[0], *inverse = inverses[0];
    sum_of_rows<Fixed>(rows, n, means, [&](int r, int i) { return Terms<1>{input(r, i)}; });
    for (int r = 0; r < kNormRows; r += kLanes) store(mean + r, load(mean + r) * per_column);
    sum_of_rows<Fixed>(rows, n, inverses, [&](int r, int i) {
      const Floats v = (input(r, i) - splat(mean[r])) * mask[i];
      return Terms<1>{v * v};
    });
    for (int r = 0; r < kNormRows; r += kLanes)
      store(inverse + r, 1.0f / square_root(load(inverse + r) * per_column + eps));
    std::memcpy(state.inverse + first, inverse, sizeof(float) * rows);
    for (int r = 0; r < rows; ++r) {
      const std::ptrdiff_t row = begin + r * shape.width;
      const Floats row_mean = splat(mean[r]), row_inverse = splat(inverse[r]);
      float* normalised = state.normalised + row;
      Floats known[Fixed ? Fixed : 1];
#pragma GCC unroll 8
      for (int i = 0; i < n; ++i) {
        const Floats v = (input(r, i) - row_mean) * mask[i] * row_inverse;
        store(normalised + kLanes * i, v);
        if constexpr (Fixed != 0) known[i] = v * scale[i] + shift[i];
      }
      const auto output = [&](int i) { return Fixed ? known[i] : load(normalised + kLanes * i) * scale[i] + shift[i]; };
      if (to.out) {
#pragma GCC unroll 8
        for (int i = 0; i < n; ++i) store(to.out + row + kLanes * i, output(i));
      }
      if (to.operand) write_operands<Fixed>(to.operand + row, n, output);
      if (to.sum)
        for (int i = 0; i < n; ++i) store(to.sum + row + kLanes * i, input(r, i));
      if (to.sum_operand) write_operands<Fixed>(to.sum_operand + row, n, [&](int i) { return input(r, i); });
    }
  }
}

// LN(x + add); add may be null, and `out` may be x where no sums are wanted. Rows are read three times, from L1.
inline void norm_forward(const RowShape& shape, const float* x, const float* add, NormWeights weights, float eps,
                         NormState state, const NormOutputs& to) {
  with_vectors(shape.width, [&]<int Fixed>() { norm_forward_of<Fixed>(shape, x, add, weights, eps, state, to); });
}

// norm_backward for rows of Fixed vectors, or of any number of them if that is 0.
template <int Fixed>
inline void norm_backward_of(RowShape shape, const float* dy, const float* scale_row, NormState state,
                             float* scale_gradient, float* shift_gradient, float* dx, bool accumulate) {
  const int n = Fixed ? Fixed : shape.width / kLanes;
  const float per_column = 1.0f / static_cast<float>(shape.dim);
  const ConstantRow<Fixed> mask(shape.mask), scale(scale_row);
  Floats scale_sums[Fixed ? Fixed : 1]{}, shift_sums[Fixed ? Fixed : 1]{};
  for (int first = 0; first < shape.rows; first += kNormRows) {
    const int rows = std::min(kNormRows, shape.rows - first);
    const std::ptrdiff_t begin = static_cast<std::ptrdiff_t>(first) * shape.width;
    const auto place = [=](int r, int i) { return begin + r * shape.width + kLanes * i; };
    alignas(64) float means[2][kNormRows];  // of t, and of normalised * t
    sum_of_rows<Fixed>(rows, n, means, [&](int r, int i) {
      const Floats g = load(dy + place(r, i)), v = load(state.normalised + place(r, i));
      if constexpr (Fixed != 0) {
        scale_sums[i] += g * v;
        shift_sums[i] += g;
      } else {
        store(scale_gradient + kLanes * i, load(scale_gradient + kLanes * i) + g * v);
        store(shift_gradient + kLanes * i, load(shift_gradient + kLanes * i) + g);
      }
      const Floats t = g * scale[i];
      return Terms<2>{t, t * v};
    });
    for (int r = 0; r < rows; ++r) {
      const Floats inverse = splat(state.inverse[first + r]);
      const Floats m = splat(means[0][r] * per_column), s = splat(means[1][r] * per_column);
#pragma GCC unroll 8
      for (int i = 0; i < n; ++i) {
        const Floats t = load(dy + place(r, i)) * scale[i], v = load(state.normalised + place(r, i));
        Floats g = (t - m - v * s) * inverse * mask[i];
        if (accumulate) g += load(dx + place(r, i));
        store(dx + place(r, i), g);
      }
    }
  }
  if constexpr (Fixed != 0) {
    for (int i = 0; i < n; ++i) {
      store(scale_gradient + kLanes * i, load(scale_gradient + kLanes * i) + scale_sums[i]);
      store(shift_gradient + kLanes * i, load(shift_gradient + kLanes * i) + shift_sums[i]);
    }
  }
}

// dx (+)= gradient of LN's input for the gradient dy of its output; scale's and shift's gradients are added to.
// dx may be dy. Source: with t = dy * scale, dx = (t - mean(t) - normalised * mean(t * normalised)) * inverse.
inline void norm_backward(const RowShape& shape, const float* dy, const float* scale, NormState state,
                          float* scale_gradient, float* shift_gradient, float* dx, bool accumulate) {
  with_vectors(shape.width, [&]<int Fixed>() {
    norm_backward_of<Fixed>(shape, dy, scale, state, scale_gradient, shift_gradient, dx, accumulate);
  });
}

}  // namespace sasrec
