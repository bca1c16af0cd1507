// Rows of items as they come from outside, and the check that they are items.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace sasrec {

// Rows of int32 item indices, concatenated: row i is values[offsets[i] .. offsets[i + 1]].
struct RaggedView {
  const std::int32_t* values;
  const std::int64_t* offsets;
  std::int64_t rows;

  std::int64_t length(std::int64_t i) const { return offsets[i + 1] - offsets[i]; }
  std::int64_t size() const { return offsets[rows]; }
};

// Throws std::invalid_argument unless all are in 1..n_items.
inline void check_items(const std::int32_t* items, std::int64_t n, int n_items) {
  std::int32_t low = 1, high = 1;
  for (std::int64_t i = 0; i < n; ++i) low = std::min(low, items[i]), high = std::max(high, items[i]);
  if (low < 1 || high > n_items)
    throw std::invalid_argument("item index " + std::to_string(low < 1 ? low : high) + " is not in 1.." +
                                std::to_string(n_items));
}

}  // namespace sasrec
