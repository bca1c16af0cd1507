// Rows that are sums of coefficients times other rows: gradients of tables and of features.
#pragma once

#include "simd.h"

namespace sasrec {

struct Entry {
  const float* row;
  float coefficient;
};

// row = start(column) + the sum of the entries, in their order; a row stays in registers where its width is a common
// one.
template <typename Start>
[[gnu::always_inline]] inline void sum_entries(const Entry* begin, const Entry* end, int width, float* row,
                                               Start&& start) {
  with_vectors(width, [&]<int Fixed>() {
    if constexpr (Fixed != 0) {
      Floats total[Fixed];
      for (int c = 0; c < Fixed; ++c) total[c] = start(kLanes * c);
      for (const Entry* entry = begin; entry != end; ++entry)
        for (int c = 0; c < Fixed; ++c) total[c] += load(entry->row + kLanes * c) * entry->coefficient;
      for (int c = 0; c < Fixed; ++c) store(row + kLanes * c, total[c]);
    } else {
      for (int c = 0; c < width; c += kLanes) {
        Floats total = start(c);
        for (const Entry* entry = begin; entry != end; ++entry) total += load(entry->row + c) * entry->coefficient;
        store(row + c, total);
      }
    }
  });
}

}  // namespace sasrec
