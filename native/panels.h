// Rows of a table as panels of kPanelItems items, (kPanelItems / kScoredItems, dim, kScoredItems) each, and scores with
// them.
#pragma once

#include <cstddef>

#include "simd.h"

namespace sasrec {

inline constexpr int kPanelItems = 64;                       // a bit of a word for each
inline constexpr int kRankRows = kLanes == 4 ? 4 : 6;        // accumulators: 24 of 32, 12 of 16, 8 of 16 registers
inline constexpr int kScoredVectors = kLanes == 16 ? 4 : 2;  // of a panel, scored together
inline constexpr int kScoredItems = kScoredVectors * kLanes;

// Scores (Rows, kPanelItems) of rows of features with the items of a panel. A function of its own keeps all sums in
// registers; what is done with the scores finds them in L1.
template <int Rows>
[[gnu::noinline]] void score_panel(const float* features, int dim, const float* panel, float* scores) {
  for (int first = 0; first < kPanelItems;
       first += kScoredItems, panel += static_cast<std::ptrdiff_t>(dim) * kScoredItems) {
    Floats sums[Rows][kScoredVectors];
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int n = 0; n < kScoredVectors; ++n) sums[r][n] = Floats{};
    for (int k = 0; k < dim; ++k) {
      Floats items[kScoredVectors];
#pragma GCC unroll 4
      for (int n = 0; n < kScoredVectors; ++n) items[n] = load(panel + k * kScoredItems + kLanes * n);
#pragma GCC unroll 6
      for (int r = 0; r < Rows; ++r) {
        const Floats feature = splat(features[static_cast<std::ptrdiff_t>(r) * dim + k]);
#pragma GCC unroll 4
        for (int n = 0; n < kScoredVectors; ++n) sums[r][n] = multiply_add(feature, items[n], sums[r][n]);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int n = 0; n < kScoredVectors; ++n) store(scores + r * kPanelItems + first + kLanes * n, sums[r][n]);
  }
}

// Writes the rows item_of(0 .. count) of a table (.., dim) as a panel; what is beyond them is zero.
template <typename ItemOf>
void pack_panel(const float* table, int dim, int count, ItemOf&& item_of, float* panel) {
  for (int c = 0; c < kPanelItems; ++c) {
    const float* item = c < count ? table + static_cast<std::ptrdiff_t>(item_of(c)) * dim : nullptr;
    float* column = panel + static_cast<std::ptrdiff_t>(c / kScoredItems) * dim * kScoredItems + c % kScoredItems;
    for (int k = 0; k < dim; ++k) column[k * kScoredItems] = item ? item[k] : 0.0f;
  }
}

// Calls f<Count>(first) for the tiles, of as many rows as a kernel takes together, that cover 0 .. rows.
template <typename F>
void for_row_tiles(int rows, F&& f) {
  int row = 0;
  for (; rows - row >= kRankRows; row += kRankRows) f.template operator()<kRankRows>(row);
  for (; rows - row >= 2; row += 2) f.template operator()<2>(row);
  if (row < rows) f.template operator()<1>(row);
}

}  // namespace sasrec
