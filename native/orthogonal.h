// Steps of a table that are equally long in all directions. Of Adam's step u (rows, dim) is taken
//
//   u (u^T u / m + kFloor)^(-1/2),   m = trace(u^T u) / dim
//
// which is u's orthogonal factor, as long as u. Source: Jordan et al. 2024 (Muon), which takes that factor of the
// momentum, and by an iteration; here it is of Adam's step, and by eigenvectors. engine/orthogonal.py has it on torch.
//
// The table is gone through twice: for the moments and the sums of u^T u, and to move. Rows are summed in slices that
// do not depend on the number of threads, so neither do any bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

#include "memory.h"
#include "simd.h"

namespace sasrec {

inline constexpr int kSlices = 16;                      // of a table, summed each by one thread
inline constexpr int kStepRows = 32;                    // that go through the kernels at once
inline constexpr int kTileRows = kLanes == 16 ? 8 : 4;  // of sums in registers; widths are a multiple of it
inline constexpr double kFloor = 1e-5;  // directions that steps hardly have grow at most 300-fold; rounding stays below
inline constexpr int kMostSweeps = 60;  // of rotations; some ten do
inline constexpr double kOrthogonal = 1e-18;  // squared cosine of rows that need no rotation
inline constexpr int kDoublesAtOnce = 8;

// The inverse square root of a symmetric matrix (n, n), whose eigenvalues are taken to be kFloor at least; rows are
// `stride` apart, a multiple of kDoublesAtOnce, with zeros after n. Pairs of rows are rotated until all are orthogonal:
// then each is an eigenvector times its eigenvalue. What is not a number stays so. Source: Hestenes 1958 (one-sided
// Jacobi).
class InverseRoot {
 public:
  InverseRoot(int n, std::vector<double> matrix, std::size_t stride)
      : n_(n), stride_(stride), rows_(std::move(matrix)), squares_(n), divisors_(n) {
    for (int sweep = 0; sweep < kMostSweeps && rotate_all(); ++sweep) {
    }
    for (int i = 0; i < n_; ++i) {
      const double square = dot(row(i), row(i));
      divisors_[i] = square * std::sqrt(std::max(std::sqrt(square), kFloor));  // lambda^(5/2)
    }
  }

  // Adds `factor` times row i of the root to `sums` (stride,).
  void add_row(int i, double factor, double* sums) const {
    for (int k = 0; k < n_; ++k) {
      if (divisors_[k] == 0) continue;  // rounded away, with all that is in its direction
      const double* vector = row(k);    // lambda times its direction
      const double share = factor * vector[i] / divisors_[k];
      for (std::size_t c = 0; c < stride_; ++c) sums[c] += share * vector[c];
    }
  }

 private:
  double* row(int i) { return &rows_[i * stride_]; }
  const double* row(int i) const { return &rows_[i * stride_]; }

  double dot(const double* a, const double* b) const {
    double sums[kDoublesAtOnce] = {};
    for (std::size_t c = 0; c < stride_; c += kDoublesAtOnce)
      for (int k = 0; k < kDoublesAtOnce; ++k) sums[k] += a[c + k] * b[c + k];
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
  }

  // Whether any pair of rows had to be rotated.
  bool rotate_all() {
    bool any = false;
    for (int i = 0; i < n_; ++i) squares_[i] = dot(row(i), row(i));
    for (int p = 0; p < n_; ++p)
      for (int q = p + 1; q < n_; ++q) {
        const double product = dot(row(p), row(q));
        if (!(product * product > kOrthogonal * squares_[p] * squares_[q])) continue;
        any = true;
        const double half = (squares_[q] - squares_[p]) / (2 * product);
        const double tangent = (half < 0 ? -1 : 1) / (std::abs(half) + std::sqrt(1 + half * half));
        const double cosine = 1 / std::sqrt(1 + tangent * tangent);
        rotate(row(p), row(q), cosine, cosine * tangent);
        squares_[p] -= tangent * product, squares_[q] += tangent * product;
      }
    return any;
  }

  void rotate(double* a, double* b, double cosine, double sine) const {
    for (std::size_t c = 0; c < stride_; ++c) {
      const double first = a[c], second = b[c];
      a[c] = cosine * first - sine * second;
      b[c] = sine * first + cosine * second;
    }
  }

  int n_;
  std::size_t stride_;
  std::vector<double> rows_, squares_;  // squares of the rows' lengths, while they are rotated
  std::vector<double> divisors_;        // of the products of a row with itself, which add up to the root
};

// sums (kTileRows, Vectors) = of k: a[k * step + r * stride] times row k of b, whose rows are ldb apart.
template <int Vectors>
[[gnu::always_inline]] inline void sum_products(int n, const float* a, std::ptrdiff_t step, std::ptrdiff_t stride,
                                                const float* b, std::ptrdiff_t ldb,
                                                Floats (&sums)[kTileRows][Vectors]) {
  for (auto& row : sums)
    for (Floats& v : row) v = Floats{};
  for (int k = 0; k < n; ++k, a += step, b += ldb)
    for (int r = 0; r < kTileRows; ++r)
      for (int v = 0; v < Vectors; ++v)
        sums[r][v] = multiply_add(splat(a[r * stride]), load(b + kLanes * v), sums[r][v]);
}

// Calls f.operator()<Vectors>(c) for columns from c on, of one vector or two, that cover begin .. end.
template <typename F>
[[gnu::always_inline]] inline void for_columns(int begin, int end, F&& f) {
  int c = begin;
  for (; c + 2 * kLanes <= end; c += 2 * kLanes) f.template operator()<2>(c);
  if (c < end) f.template operator()<1>(c);
}

// The steps of tables, one after another, after `reserve`: start, add all rows, finish, turn rows. Rows of u come
// kStepRows at once, (kStepRows, width), with zeros for those that there are not.
class OrthogonalSteps {
 public:
  OrthogonalSteps(int dim, int width) : dim_(dim), width_(width) {}

  void reserve() {
    sums_.reserve(static_cast<std::size_t>(kSlices) * width_ * width_);
    transform_.reserve(static_cast<std::size_t>(dim_) * round_up(width_, kPanel));
  }

  void start() { sums_.clear(); }

  // Adds rows of u to the sums of a slice. They are symmetric: what lies before the diagonal is left out.
  void add(int slice, const float* steps) {
    for (int i = 0; i < width_; i += kTileRows)
      for_columns(round_down(i, kLanes), width_, [&]<int Vectors>(int c) {
        Floats sums[kTileRows][Vectors];
        sum_products(kStepRows, steps + i, width_, 1, steps + c, width_, sums);
        for (int r = 0; r < kTileRows; ++r)
          for (int v = 0; v < Vectors; ++v) {
            float* total = sums_of(slice) + static_cast<std::size_t>(i + r) * width_ + c + kLanes * v;
            store(total, load(total) + sums[r][v]);
          }
      });
  }

  // All rows are added. What `turn` moves them by is learning_rate times as long as they are.
  void finish(float learning_rate) {
    const std::size_t stride = round_up(dim_, kDoublesAtOnce);
    std::vector<double> matrix(dim_ * stride);
    for (int slice = 0; slice < kSlices; ++slice)
      for (int i = 0; i < dim_; ++i)
        for (int j = i; j < dim_; ++j)
          matrix[i * stride + j] += sums_of(slice)[static_cast<std::size_t>(i) * width_ + j];
    double trace = 0;
    for (int i = 0; i < dim_; ++i) {
      for (int j = 0; j < i; ++j) matrix[i * stride + j] = matrix[j * stride + i];
      trace += matrix[i * stride + i];
    }
    transform_.clear();
    if (trace == 0) return;
    for (double& value : matrix) value *= dim_ / trace;
    for (int i = 0; i < dim_; ++i) matrix[i * stride + i] += kFloor;
    const InverseRoot root(dim_, std::move(matrix), stride);
    std::vector<double> row(stride);
    for (int i = 0; i < dim_; ++i) {
      std::fill(row.begin(), row.end(), 0.0);
      root.add_row(i, learning_rate, row.data());
      for (int c = 0; c < dim_; ++c) panel_of(c)[i * kPanel + c % kPanel] = static_cast<float>(row[c]);
    }
  }

  // Moves `n_rows` rows of the table, given their rows of u.
  void turn(const float* steps, int n_rows, float* p) const {
    for (int first = 0; first < n_rows; first += kTileRows)
      for_columns(0, width_, [&]<int Vectors>(int c) {
        Floats sums[kTileRows][Vectors];
        sum_products(dim_, steps + first * width_, 1, width_, panel_of(c), kPanel, sums);
        for (int r = 0; r < kTileRows; ++r)  // as often as is known beforehand, so that the sums stay in registers
          for (int v = 0; v < Vectors && first + r < n_rows; ++v) {
            float* values = p + static_cast<std::size_t>(first + r) * width_ + c + kLanes * v;
            store(values, load(values) - sums[r][v]);
          }
      });
  }

 private:
  static constexpr int kPanel = 2 * kLanes;

  float* panel_of(int column) { return &transform_[static_cast<std::size_t>(column / kPanel) * dim_ * kPanel]; }
  const float* panel_of(int column) const {
    return &transform_[static_cast<std::size_t>(column / kPanel) * dim_ * kPanel];
  }
  float* sums_of(int slice) { return &sums_[static_cast<std::size_t>(slice) * width_ * width_]; }

  int dim_, width_;
  Array<float> sums_;       // (kSlices, width, width)
  Array<float> transform_;  // in panels of kPanel columns, each (dim, kPanel): rows of it would share a part of L1
};

}  // namespace sasrec
