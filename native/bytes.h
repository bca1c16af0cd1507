// Copies of the item table in bytes, with a bound on what the rounding changes in any score.
//
// ByteTable is for one row of features: what counts is how little memory it reads. BytePanels is for many rows: what
// counts is how many products the CPU does at once. Both only say what cannot be among the best; nothing is ranked by
// them. What they are made of must be finite, and so small that no score overflows.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <vector>

#include "memory.h"
#include "panels.h"
#include "simd.h"

namespace sasrec {

inline constexpr int kPanelVectors = kPanelItems / kLanes;
inline constexpr int kQuerySteps = 2047;  // ByteTable rounds features to this many steps each way
inline constexpr int kByteSteps = 127;
inline constexpr int kByteOffset = 128;  // BytePanels' features are steps plus this: one factor must be unsigned

// Relative error that a sum of `dim` products in floats may have, with room for the arithmetic of the bounds.
constexpr double sum_margin(int dim) { return (dim + 16) * static_cast<double>(FLT_EPSILON); }

inline float largest_magnitude(const float* values, std::ptrdiff_t n) {
  float largest = 0;
  for (std::ptrdiff_t i = 0; i < n; ++i) largest = std::max(largest, std::fabs(values[i]));
  return largest;
}

// The table in signed bytes, a scale for each item, and a bound on what that changes.
//
// With v an item, v' its bytes times scale, q the features and q' their steps times step:
//   |q.v - q'.v'| <= |q| |v - v'| + |q - q'| |v'|,  |q - q'| <= sqrt(dim) / 2 * step,  step <= |q| / kQuerySteps
// so |q| times `error` bounds it: error = |v - v'| + sqrt(dim) / (2 kQuerySteps) |v'| + a margin for sums in floats.
// Bytes lie in groups of kLanes items, pairs of dimensions interleaved: (groups, dim / 2, kLanes, 2).
class ByteTable {
 public:
  ByteTable() = default;
  ByteTable(const float* table, int n_items, int dim)
      : pairs_((dim + 1) / 2), n_groups_((n_items + kLanes - 1) / kLanes) {
    bytes_.resize(static_cast<std::size_t>(n_groups_) * pairs_ * 2 * kLanes);
    scale_.resize(static_cast<std::size_t>(n_groups_) * kLanes);
    error_.resize(static_cast<std::size_t>(n_groups_) * kLanes);
    for (int i = 0; i < n_items; ++i) pack_item(i, table + static_cast<std::ptrdiff_t>(i + 1) * dim, dim);
  }

  int n_groups() const { return n_groups_; }

  // Features in steps, pairs of 16-bit steps in words of 32 bits.
  struct Query {
    float step, norm;
    std::vector<std::int32_t> steps;
  };

  Query round(const float* features, int dim) const {
    double norm = 0;
    for (int k = 0; k < dim; ++k) norm += static_cast<double>(features[k]) * features[k];
    const float step = largest_magnitude(features, dim) / kQuerySteps;
    Query query{step, static_cast<float>(std::sqrt(norm)), std::vector<std::int32_t>(pairs_)};
    for (int k = 0; k < dim; k += 2) {
      const auto round = [&](int j) {
        return j < dim && step > 0 ? static_cast<std::int32_t>(std::nearbyint(features[j] / step)) : 0;
      };
      query.steps[k / 2] =
          (round(k) & 0xffff) | static_cast<std::int32_t>(static_cast<std::uint32_t>(round(k + 1)) << 16);
    }
    return query;
  }

  // Calls visit(group, low, high) with bounds of the scores of kLanes items, for the groups in a range.
  template <typename Visit>
  [[gnu::always_inline]] void scan(const Query& query, int first, int last, Visit&& visit) const {
    for (int group = first; group < last; ++group) {
      const Ints product = multiply(group, query.steps.data());
      const std::size_t i = static_cast<std::size_t>(group) * kLanes;
      const Floats middle = __builtin_convertvector(product, Floats) * (load(&scale_[i]) * query.step);
      const Floats error = load(&error_[i]) * query.norm;
      visit(group, middle - error, middle + error);
    }
  }

 private:
  void pack_item(int i, const float* item, int dim) {
    const float scale = largest_magnitude(item, dim) / kByteSteps;
    std::int8_t* bytes = &bytes_[static_cast<std::size_t>(i / kLanes) * pairs_ * 2 * kLanes];
    double norm = 0, kept = 0, lost = 0;  // squares of |v|, |v'|, |v - v'|
    for (int k = 0; k < dim; ++k) {
      const float steps = scale > 0 ? std::clamp(std::nearbyint(item[k] / scale), -127.0f, 127.0f) : 0.0f;
      bytes[k / 2 * 2 * kLanes + i % kLanes * 2 + k % 2] = static_cast<std::int8_t>(steps);
      const double value = item[k], rounded = static_cast<double>(scale) * steps;
      norm += value * value, kept += rounded * rounded, lost += (value - rounded) * (value - rounded);
    }
    const double error =
        std::sqrt(lost) + std::sqrt(dim) / (2 * kQuerySteps) * std::sqrt(kept) + sum_margin(dim) * std::sqrt(norm);
    scale_[i] = scale;
    error_[i] = static_cast<float>(error * 1.0001);  // for the roundings of the bound itself
  }

  // Sums of products of bytes and steps: 127 * 2047 * dim stays below 2^31 up to 8,192 dimensions.
  [[gnu::always_inline]] Ints multiply(int group, const std::int32_t* steps) const {
    const std::int8_t* bytes = &bytes_[static_cast<std::size_t>(group) * pairs_ * 2 * kLanes];
#if defined(__AVX512F__)
    __m512i even = _mm512_setzero_si512(), odd = even;
    const auto product = [&](int p) {
      const __m512i items = _mm512_cvtepi8_epi16(_mm256_load_si256(reinterpret_cast<const __m256i*>(bytes + 32 * p)));
      return _mm512_madd_epi16(items, _mm512_set1_epi32(steps[p]));
    };
    int p = 0;
    for (; p + 1 < pairs_; p += 2) {
      even = _mm512_add_epi32(even, product(p));
      odd = _mm512_add_epi32(odd, product(p + 1));
    }
    if (p < pairs_) even = _mm512_add_epi32(even, product(p));
    return reinterpret_cast<Ints>(_mm512_add_epi32(even, odd));
#elif defined(__AVX2__)
    __m256i total = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int p = 0; p < pairs_; ++p) {
      const __m256i items = _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes + 16 * p)));
      total = _mm256_add_epi32(total, _mm256_madd_epi16(items, _mm256_set1_epi32(steps[p])));
    }
    return reinterpret_cast<Ints>(total);
#else
    Ints total{};
    for (int p = 0; p < pairs_; ++p) {
      const auto low = static_cast<std::int16_t>(steps[p]), high = static_cast<std::int16_t>(steps[p] >> 16);
      for (int i = 0; i < kLanes; ++i)
        total[i] += low * bytes[(p * kLanes + i) * 2] + high * bytes[(p * kLanes + i) * 2 + 1];
    }
    return total;
#endif
  }

  int pairs_ = 0, n_groups_ = 0;
  Array<std::int8_t> bytes_;
  Array<float> scale_, error_;
};

#if defined(__AVX512F__)

// Whether the CPU multiplies bytes by four (VNNI), which not all with AVX-512 do.
inline bool has_byte_products() {
  static const bool has = __builtin_cpu_supports("avx512vnni");
  return has;
}

// Adds the four products of unsigned with signed bytes in each word to the sums. GCC 12 makes copies of all sums around
// its own intrinsic.
[[gnu::always_inline]] inline __m512i add_byte_products(__m512i sums, __m512i bytes, __m512i signed_bytes) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(bytes), "v"(signed_bytes));
  return sums;
}

// Products (Rows, kPanelItems) of rows of unsigned bytes with the items of a panel, from `start` of each item on. Of
// each row: whether one reaches its bar; then that row's products are written.
template <int Rows>
[[gnu::noinline]] void multiply_bytes(const std::uint32_t* rows, int quads, const std::int8_t* panel,
                                      const std::int32_t* start, const std::int32_t* bars, bool* reached,
                                      std::int32_t* products) {
  __m512i sums[Rows][kPanelVectors];
#pragma GCC unroll 6
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int n = 0; n < kPanelVectors; ++n) sums[r][n] = _mm512_loadu_si512(start + kLanes * n);
  for (int q = 0; q < quads; ++q) {
    __m512i items[kPanelVectors];
#pragma GCC unroll 4
    for (int n = 0; n < kPanelVectors; ++n) items[n] = _mm512_loadu_si512(panel + 4 * (q * kPanelItems + kLanes * n));
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) {
      const __m512i row = _mm512_set1_epi32(static_cast<int>(rows[static_cast<std::ptrdiff_t>(r) * quads + q]));
#pragma GCC unroll 4
      for (int n = 0; n < kPanelVectors; ++n) sums[r][n] = add_byte_products(sums[r][n], row, items[n]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < Rows; ++r) {
    const __m512i largest =
        _mm512_max_epi32(_mm512_max_epi32(sums[r][0], sums[r][1]), _mm512_max_epi32(sums[r][2], sums[r][3]));
    reached[r] = _mm512_cmpge_epi32_mask(largest, _mm512_set1_epi32(bars[r])) != 0;
    if (!reached[r]) continue;
#pragma GCC unroll 4
    for (int n = 0; n < kPanelVectors; ++n) _mm512_storeu_si512(products + r * kPanelItems + kLanes * n, sums[r][n]);
  }
}

// One bit for each product of a panel that reaches the bar.
[[gnu::always_inline]] inline std::uint64_t bits_reaching(const std::int32_t* products, std::int32_t bar) {
  std::uint64_t bits = 0;
  for (int n = 0; n < kPanelVectors; ++n) {
    const __mmask16 lanes = _mm512_cmpge_epi32_mask(_mm512_loadu_si512(products + kLanes * n), _mm512_set1_epi32(bar));
    bits |= static_cast<std::uint64_t>(lanes) << (kLanes * n);
  }
  return bits;
}

// The table in panels of signed bytes, one scale and one bound for each panel.
//
// With v an item, v' its bytes times scale, q the features and q' their steps times step:
//   |q.v - q'.v'| <= |q| |v - v'| + |q - q'| |v'|
// The lengths of q and q - q' are a row's own; those of v - v' and v' are the largest of the panel.
// Four dimensions of an item lie together: (panels, dim / 4, kPanelItems, 4).
class BytePanels {
 public:
  // Rows of features as unsigned bytes, (rows, quads) words of four, and what each row must reach. There is room for a
  // multiple of kLanes rows.
  struct Rows {
    // Room for `n` rows. A row's bar is as low as a score can be.
    Rows(int n, int quads) : words(static_cast<std::size_t>(n) * quads) {
      for (Array<float>* values : {&step, &inverse_step, &length, &lost, &bar}) values->resize(round_up(n, kLanes));
      std::fill_n(bar.data(), n, -FLT_MAX);
    }

    Array<std::uint32_t> words;
    Array<float> step, inverse_step, length, lost, bar;  // lost = |q - q'|; the inverse of 0 is 0
  };

  BytePanels() = default;
  BytePanels(const float* table, int n_items, int dim)
      : dim_(dim), quads_((dim + 3) / 4), panels_((n_items + kPanelItems - 1) / kPanelItems) {
    bytes_.resize(panels_.size() * panel_bytes());
    start_.resize(panels_.size() * kPanelItems);
    for (std::size_t panel = 0; panel < panels_.size(); ++panel) {
      const int first = static_cast<int>(panel) * kPanelItems;
      pack_panel(panel, table + static_cast<std::ptrdiff_t>(first + 1) * dim, std::min(kPanelItems, n_items - first));
    }
  }

  bool empty() const { return panels_.empty(); }

  Rows round(const float* features, int n) const {
    Rows rows(n, quads_);
    for (int r = 0; r < n; ++r) round_row(features + static_cast<std::ptrdiff_t>(r) * dim_, r, rows);
    return rows;
  }

  // Of each row the least product with an item of the panel whose score may reach the row's bar; (rows) and room for
  // a multiple of kLanes.
  void least_products(const Rows& rows, int panel, std::int32_t* least) const {
    constexpr float kMost = 2e9f;  // what no product reaches
    const Panel& p = panels_[panel];
    for (std::size_t r = 0; r < rows.bar.size(); r += kLanes) {
      const Floats wanted = load(&rows.bar[r]) - load(&rows.length[r]) * p.lost - load(&rows.lost[r]) * p.kept;
      const Floats exact = wanted * (load(&rows.inverse_step[r]) * p.inverse_scale);
      const Floats rounded = exact - absolute(exact) * 1e-6f - 2.0f;
      const Floats bounded = _mm512_min_ps(_mm512_max_ps(rounded, splat(-kMost)), splat(kMost));  // NaN: -kMost
      _mm512_storeu_si512(least + r, _mm512_cvttps_epi32(bounded));
    }
  }

  // How far a row's scores of a panel's items may be from their products times the unit.
  double error(const Rows& rows, int row, int panel) const {
    return static_cast<double>(rows.length[row]) * panels_[panel].lost +
           static_cast<double>(rows.lost[row]) * panels_[panel].kept;
  }
  double unit(const Rows& rows, int row, int panel) const {
    return static_cast<double>(rows.step[row]) * panels_[panel].scale;
  }

  // multiply_bytes for the rows from `row` on.
  template <int Count>
  void multiply(const Rows& rows, int row, int panel, const std::int32_t* least, bool* reached,
                std::int32_t* products) const {
    multiply_bytes<Count>(&rows.words[static_cast<std::size_t>(row) * quads_], quads_, &bytes_[panel * panel_bytes()],
                          &start_[static_cast<std::size_t>(panel) * kPanelItems], least, reached, products);
  }

 private:
  static constexpr float kLeastStep = 1e-30f;   // below, everything is rounded to 0
  static constexpr double kRoundUp = 1 + 1e-6;  // bounds are floats
  struct Panel {
    float scale = 0, inverse_scale = 0, lost = 0, kept = 0;
  };

  std::size_t panel_bytes() const { return static_cast<std::size_t>(4) * quads_ * kPanelItems; }

  static float step_of(const float* values, std::ptrdiff_t n) {
    const float step = largest_magnitude(values, n) / kByteSteps;
    return step >= kLeastStep ? step : 0.0f;
  }
  static float inverse(float step) { return step > 0 ? 1 / step : 0.0f; }
  static int steps_of(float value, float inverse_step) {
    return std::clamp(static_cast<int>(std::nearbyint(value * inverse_step)), -kByteSteps, kByteSteps);
  }

  void pack_panel(std::size_t panel, const float* items, int count) {
    Panel& made = panels_[panel];
    made.scale = step_of(items, static_cast<std::ptrdiff_t>(count) * dim_);
    made.inverse_scale = inverse(made.scale);
    double most_kept = 0, most_lost = 0;
    for (int c = 0; c < count; ++c) {
      double norm = 0, kept = 0, lost = 0;  // squares of |v|, |v'|, |v - v'|
      for (int k = 0; k < dim_; ++k) {
        const float value = items[static_cast<std::ptrdiff_t>(c) * dim_ + k];
        const int steps = steps_of(value, made.inverse_scale);
        bytes_[panel * panel_bytes() + (k / 4 * kPanelItems + c) * 4 + k % 4] = static_cast<std::int8_t>(steps);
        start_[panel * kPanelItems + c] -= kByteOffset * steps;
        add_squares(value, made.scale, steps, norm, kept, lost);
      }
      most_kept = std::max(most_kept, std::sqrt(kept));
      most_lost = std::max(most_lost, std::sqrt(lost) + sum_margin(dim_) * std::sqrt(norm));
    }
    made.kept = static_cast<float>(most_kept * kRoundUp), made.lost = static_cast<float>(most_lost * kRoundUp);
  }

  void round_row(const float* features, int row, Rows& rows) const {
    const float step = rows.step[row] = step_of(features, dim_);
    const float inverse_step = rows.inverse_step[row] = inverse(step);
    double norm = 0, kept = 0, lost = 0;
    for (int k = 0; k < 4 * quads_; ++k) {
      const float value = k < dim_ ? features[k] : 0.0f;
      const int steps = steps_of(value, inverse_step);
      rows.words[static_cast<std::size_t>(row) * quads_ + k / 4] |= static_cast<std::uint32_t>(steps + kByteOffset)
                                                                    << (8 * (k % 4));
      add_squares(value, step, steps, norm, kept, lost);
    }
    rows.length[row] = static_cast<float>(std::sqrt(norm) * kRoundUp);
    rows.lost[row] = static_cast<float>(std::sqrt(lost) * kRoundUp);
  }

  static void add_squares(double value, double step, int steps, double& norm, double& kept, double& lost) {
    norm += value * value, kept += step * steps * step * steps;
    lost += (value - step * steps) * (value - step * steps);
  }

  int dim_ = 0, quads_ = 0;
  std::vector<Panel> panels_;
  Array<std::int8_t> bytes_;
  Array<std::int32_t> start_;  // what the offset of the features' bytes adds to a product, taken away
};

#else
inline bool has_byte_products() { return false; }
#endif

}  // namespace sasrec
