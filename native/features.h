// What items are like, folded into their rows, and the way of gradients back.
//
//   row of an item = its own embedding + mean of its features' embeddings + its vector times the projection
//
// Where answers are computed, rows without own embedding get more (cold_rows.h).
// A step reads folded rows where it would read the item tables, and gives gradients of folded rows. From those come the
// gradients of the tables (the same, or zero where the own embedding is left out), of the features (summed feature by
// feature, in the order of the rows, so that they do not depend on the number of threads), and of the projection (which
// threads share by rows of it). All of this is float32 in every variant: rows that are ranked by are made here, too.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "block.h"
#include "gemm.h"
#include "model.h"
#include "row_sums.h"
#include "threads.h"

namespace sasrec {

inline constexpr int kItemRows = 256;  // whose gradients stay in the cache while those of the projection are summed

// Features as they come from outside; the arrays outlive the engine.
struct ItemFeatures {
  const std::int64_t* offsets = nullptr;  // (n_items + 2,): item i has values[offsets[i] .. offsets[i + 1]]
  const std::int32_t* values = nullptr;   // features, from 0
  const float* vectors = nullptr;         // (n_items + 1, vector_dim)
};

// Which items are left without their own embedding in a step: as inputs, targets and negatives, in both tables. The
// same hash stands in engine/id_dropout.py.
struct IdDropout {
  RandomKey key{};
  std::uint32_t threshold = 0;  // of 65536; 0 = all items keep it

  IdDropout() = default;
  IdDropout(std::uint64_t step, float p)
      : key(random_key(step, 0, kItemSite)), threshold(static_cast<std::uint32_t>(std::lround(p * 65536.0))) {}

  bool keeps(std::int32_t item) const {
    const std::uint32_t counter = static_cast<std::uint32_t>(item);
    return threshold == 0 || (random_words_of_products(key, counter * kCounterFactor) & 0xffff) >= threshold;
  }
};

// Some items, and the gradients of their folded rows.
struct FoldedGradient {
  const std::int32_t* items;
  std::size_t count;
  const float* values;  // (count, width)
};

class Features {
 public:
  Features(const ModelShape& shape, const Layout& layout, const ItemFeatures& given)
      : shape_(shape), width_(shape.width()), table_(layout.features), projection_(layout.projection), given_(given) {}

  explicit operator bool() const { return shape_.n_features > 0 || shape_.vector_dim > 0; }

  // Whether an item has its own embedding in a step; one without any feature has nothing else, and keeps it.
  bool keeps_own(std::int32_t item, const IdDropout& dropout) const { return dropout.keeps(item) || !described(item); }

  // Folds the rows of some items: from the table `own` and the flat weights into `folded`.
  void fold(const std::int32_t* items, std::size_t count, const float* own, const float* weights,
            const IdDropout& dropout, float* folded) const {
    with_vectors(width_, [&]<int Fixed>() {
      for (std::size_t i = 0; i < count; ++i) {
        const std::size_t place = static_cast<std::size_t>(items[i]) * width_;
        add_features<Fixed>(items[i], keeps_own(items[i], dropout) ? own + place : nullptr, weights, folded + place);
      }
    });
    if (shape_.vector_dim > 0) add_vectors(items, static_cast<int>(count), weights + projection_, folded);
  }

  // Gradients of features and projection, into the flat gradients: those of all rows of all tables together.
  void push(const std::vector<FoldedGradient>& parts, float* gradients, ThreadPool& pool) {
    if (shape_.n_features > 0) push_to_features(parts, gradients + table_, pool);
    if (shape_.vector_dim > 0) push_to_projection(parts, gradients + projection_, pool);
  }

 private:
  // A row of gradients beside the vector of its item.
  struct Pair {
    const float *gradient, *vector;
  };

  const float* vector_of(std::int32_t item) const {
    return given_.vectors + static_cast<std::size_t>(item) * shape_.vector_dim;
  }
  std::int64_t n_features_of(std::int32_t item) const {
    return shape_.n_features > 0 ? given_.offsets[item + 1] - given_.offsets[item] : 0;
  }
  bool described(std::int32_t item) const {
    if (n_features_of(item) > 0) return true;
    if (shape_.vector_dim == 0) return false;
    return std::any_of(vector_of(item), vector_of(item) + shape_.vector_dim, [](float v) { return v != 0; });
  }

  // row = own + the mean of the features' embeddings; own may be null.
  template <int Fixed>
  void add_features(std::int32_t item, const float* own, const float* weights, float* row) const {
    const std::int64_t n = n_features_of(item);
    const std::int32_t* values = given_.values + (n ? given_.offsets[item] : 0);
    const float share = n ? 1.0f / static_cast<float>(n) : 0.0f;
    const auto feature = [&](std::int64_t k) {
      return weights + table_ + static_cast<std::size_t>(values[k]) * width_;
    };
    const auto start = [&](int c) { return own ? load(own + c) : Floats{}; };
    if constexpr (Fixed != 0) {
      Floats total[Fixed]{};
      for (std::int64_t k = 0; k < n; ++k)
        for (int c = 0; c < Fixed; ++c) total[c] += load(feature(k) + kLanes * c);
      for (int c = 0; c < Fixed; ++c) store(row + kLanes * c, start(kLanes * c) + total[c] * share);
    } else {
      for (int c = 0; c < width_; c += kLanes) {
        Floats total{};
        for (std::int64_t k = 0; k < n; ++k) total += load(feature(k) + c);
        store(row + c, start(c) + total * share);
      }
    }
  }

  // Adds projected vectors to rows, four items at a time: a row of the projection is read once for all of them.
  void add_vectors(const std::int32_t* items, int count, const float* projection, float* folded) const {
    for_tile_rows<4>(count, [&]<int Rows>(int first) {
      const float* vectors[Rows];
      float* rows[Rows];
      for (int r = 0; r < Rows; ++r) {
        vectors[r] = vector_of(items[first + r]);
        rows[r] = folded + static_cast<std::size_t>(items[first + r]) * width_;
      }
      for_column_blocks<4>({width_}, [&]<int N, bool>(int c) {
        Floats sums[Rows][N];
        for (int r = 0; r < Rows; ++r)
          for (int n = 0; n < N; ++n) sums[r][n] = load(rows[r] + c + kLanes * n);
        for (int w = 0; w < shape_.vector_dim; ++w) {
          const float* right = projection + static_cast<std::size_t>(w) * width_ + c;
#pragma GCC unroll 4
          for (int n = 0; n < N; ++n) {
            const Floats values = load(right + kLanes * n);
#pragma GCC unroll 4
            for (int r = 0; r < Rows; ++r) sums[r][n] += values * vectors[r][w];
          }
        }
        for (int r = 0; r < Rows; ++r)
          for (int n = 0; n < N; ++n) store(rows[r] + c + kLanes * n, sums[r][n]);
      });
    });
  }

  // Sorts the rows by feature (counting sort, stable), then each thread sums whole features.
  void push_to_features(const std::vector<FoldedGradient>& parts, float* gradients, ThreadPool& pool) {
    const int n_features = shape_.n_features;
    starts_.assign(n_features + 1, 0);
    const auto for_features = [&](auto&& f) {
      for (const FoldedGradient& part : parts)
        for (std::size_t i = 0; i < part.count; ++i) {
          const std::int32_t item = part.items[i];
          for (std::int64_t k = given_.offsets[item]; k < given_.offsets[item + 1]; ++k)
            f(given_.values[k], item, part.values + i * width_);
        }
    };
    for_features([&](std::int32_t feature, std::int32_t, const float*) { ++starts_[feature + 1]; });
    for (int f = 0; f < n_features; ++f) starts_[f + 1] += starts_[f];
    const std::int64_t total = starts_.back();
    entries_.resize(std::max<std::size_t>(entries_.size(), total));
    cursor_.assign(starts_.begin(), starts_.end());
    for_features([&](std::int32_t feature, std::int32_t item, const float* row) {
      entries_[cursor_[feature]++] = {row, 1.0f / static_cast<float>(n_features_of(item))};
    });
    pool.run([&](int t) {
      const auto boundary = [&](int thread) {  // the first feature that begins at or after the thread's share
        const auto begin = starts_.begin(), end = begin + n_features;
        if (thread == pool.size()) return n_features;
        return static_cast<int>(std::lower_bound(begin, end, total * thread / pool.size()) - begin);
      };
      for (int f = boundary(t); f < boundary(t + 1); ++f)
        sum_entries(entries_.data() + starts_[f], entries_.data() + starts_[f + 1], width_,
                    gradients + static_cast<std::size_t>(f) * width_, [](int) { return Floats{}; });
    });
  }

  // Row w of the projection gets the sum of value w of a vector times the gradient of its item. A thread sums rows of
  // its own, four together, over kItemRows items at a time.
  void push_to_projection(const std::vector<FoldedGradient>& parts, float* gradients, ThreadPool& pool) {
    pairs_.clear();
    for (const FoldedGradient& part : parts)
      for (std::size_t i = 0; i < part.count; ++i)
        pairs_.push_back({part.values + i * width_, vector_of(part.items[i])});
    pool.run_ranges(shape_.vector_dim, [&](std::size_t begin, std::size_t end) {
      std::fill(gradients + begin * width_, gradients + end * width_, 0.0f);
      for (std::size_t first = 0; first < pairs_.size(); first += kItemRows) {
        const std::size_t last = std::min(pairs_.size(), first + kItemRows);
        for_tile_rows<4>(static_cast<int>(end - begin), [&]<int Rows>(int w) {
          add_outer<Rows>(first, last, static_cast<int>(begin) + w, gradients);
        });
      }
    });
  }

  template <int Rows>
  void add_outer(std::size_t first, std::size_t last, int w, float* gradients) const {
    const auto row = [&](int r) { return gradients + static_cast<std::size_t>(w + r) * width_; };
    for_column_blocks<4>({width_}, [&]<int N, bool>(int c) {
      Floats sums[Rows][N];
      for (int r = 0; r < Rows; ++r)
        for (int n = 0; n < N; ++n) sums[r][n] = load(row(r) + c + kLanes * n);
      for (std::size_t i = first; i < last; ++i) {
        const Pair pair = pairs_[i];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
          const Floats values = load(pair.gradient + c + kLanes * n);
#pragma GCC unroll 4
          for (int r = 0; r < Rows; ++r) sums[r][n] += values * pair.vector[w + r];
        }
      }
      for (int r = 0; r < Rows; ++r)
        for (int n = 0; n < N; ++n) store(row(r) + c + kLanes * n, sums[r][n]);
    });
  }

  ModelShape shape_;
  int width_;
  std::size_t table_, projection_;  // in the flat weights
  ItemFeatures given_;
  std::vector<std::int64_t> starts_, cursor_;
  std::vector<Entry> entries_;
  std::vector<Pair> pairs_;
};

}  // namespace sasrec
