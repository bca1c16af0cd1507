// Rows of items that nothing was learnt of, where answers are computed: what features tell of such an item, and a guess
// at the own embedding that it lacks, made as long as cold_scale says. model/cold_rows.py has the same in numpy.
//
//   guess = sum of w_j (own_j - mean own) / (kGuessPrior + sum of w_j),  w_j = max(0, cos(told, told_j)) ^ 16
//   row = (told + guess) * cold_scale * sqrt(mean length of told_j / length of (told + guess))
//
// over the items j with an own embedding of which features tell something. Sums over them go by item, and those of a
// cold item are its own, so that neither threads nor more cold items change a bit of a row.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "adam.h"
#include "memory.h"
#include "model.h"
#include "panels.h"
#include "row_sums.h"
#include "simd.h"
#include "threads.h"

namespace sasrec {

inline constexpr float kGuessPrior = 0.3f;       // the weight of "as the mean item", which is a guess of 0
inline constexpr std::size_t kLookedAt = 16384;  // items, the most that a guess is made from: every n-th of all
inline constexpr float kTooLittle = 1e-11f;      // a weight that changes no digit of a guess, of so many items
inline constexpr int kColdTile = 24;             // cold rows for which a panel stays in the cache

class ColdRows {
 public:
  explicit ColdRows(const ModelShape& shape) : shape_(shape), width_(shape.width()) {}

  // Moves the rows of cold items in `folded` (n_items + 1, width) = `own` + told. Where cold_scale is 0, all stay.
  void place(const float* own, float* folded, ThreadPool& pool) {
    if (shape_.cold_scale == 0) return;
    sort_items(own, folded, pool);
    if (warm_.empty() || cold_.empty()) return;
    look_at_some(own, folded);
    pool.run_ranges(cold_.size(), [&](std::size_t begin, std::size_t end) {
      const TinyIsZero tiny_is_zero;
      Scratch scratch(width_);
      for (; begin < end; begin += kColdTile)
        place_tile(&cold_[begin], static_cast<int>(std::min<std::size_t>(kColdTile, end - begin)), folded, scratch);
    });
  }

 private:
  struct Scratch {
    explicit Scratch(int width) : told(kColdTile * width), sums(kColdTile * width) {}
    Array<float> told, sums;  // (kColdTile, width)
    float totals[kColdTile];
    alignas(64) float scores[kRankRows * kPanelItems];
    Entry entries[kPanelItems];
  };

  // Which items are cold, which are warm, and how long is what features tell of the warm ones.
  void sort_items(const float* own, const float* folded, ThreadPool& pool) {
    lengths_.resize(shape_.n_items + 1);  // of what features tell; below 0 where there is nothing else
    pool.run_ranges(shape_.n_items, [&](std::size_t begin, std::size_t end) {
      for (std::size_t item = begin + 1; item <= end; ++item) {
        const float *mine = own + item * width_, *row = folded + item * width_;
        const bool is_cold = std::all_of(mine, mine + width_, [](float v) { return v == 0; });
        Floats squares{};
        for (int c = 0; c < width_; c += kLanes) {
          const Floats told = load(row + c) - load(mine + c);
          squares += told * told;
        }
        const float length = std::sqrt(sum(squares));
        lengths_[item] = is_cold ? -length : length;
      }
    });
    warm_.clear(), cold_.clear();
    double total = 0;
    for (int item = 1; item <= shape_.n_items; ++item) {
      if (lengths_[item] > 0) warm_.push_back(item), total += lengths_[item];
      if (lengths_[item] < 0) cold_.push_back(item);
    }
    usual_ = warm_.empty() ? 0 : static_cast<float>(total / static_cast<double>(warm_.size()));
  }

  // Directions and own parts of the items that guesses are made from.
  void look_at_some(const float* own, const float* folded) {
    const std::size_t every = (warm_.size() + kLookedAt - 1) / kLookedAt;
    n_looked_at_ = static_cast<int>((warm_.size() + every - 1) / every);
    directions_.reserve(static_cast<std::size_t>(n_panels()) * kPanelItems * width_);
    parts_.reserve(static_cast<std::size_t>(n_looked_at_) * width_);
    std::vector<double> mean(width_);
    for (const std::int32_t item : warm_)
      for (int c = 0; c < width_; ++c) mean[c] += own[static_cast<std::size_t>(item) * width_ + c];
    for (double& value : mean) value /= static_cast<double>(warm_.size());
    Array<float> some(static_cast<std::size_t>(kPanelItems) * width_);
    for (int panel = 0; panel < n_panels(); ++panel) {
      const int first = panel * kPanelItems, count = std::min(kPanelItems, n_looked_at_ - first);
      for (int j = 0; j < count; ++j) {
        const std::size_t item = warm_[(first + j) * every];
        for (int c = 0; c < width_; ++c) {
          const float mine = own[item * width_ + c];
          some[j * width_ + c] = (folded[item * width_ + c] - mine) / lengths_[item];
          parts_[static_cast<std::size_t>(first + j) * width_ + c] = mine - static_cast<float>(mean[c]);
        }
      }
      pack_panel(some.data(), width_, count, [](int j) { return j; }, panel_at(panel));
    }
  }
  int n_panels() const { return (n_looked_at_ + kPanelItems - 1) / kPanelItems; }
  float* panel_at(int panel) { return &directions_[static_cast<std::size_t>(panel) * kPanelItems * width_]; }

  // Rows of n cold items; those looked at pass by once for all of them.
  void place_tile(const std::int32_t* items, int n, float* folded, Scratch& scratch) {
    for (int i = 0; i < n; ++i) {
      const std::size_t item = items[i];
      for (int c = 0; c < width_; ++c) scratch.told[i * width_ + c] = folded[item * width_ + c] / -lengths_[item];
      scratch.totals[i] = 0;
    }
    scratch.sums.clear();
    for (int panel = 0; panel < n_panels(); ++panel)
      for_row_tiles(n, [&]<int Rows>(int first) {
        score_panel<Rows>(&scratch.told[first * width_], width_, panel_at(panel), scratch.scores);
        for (int r = 0; r < Rows; ++r) add_parts(panel, scratch.scores + r * kPanelItems, first + r, scratch);
      });
    for (int i = 0; i < n; ++i) {
      float* row = folded + static_cast<std::size_t>(items[i]) * width_;
      const float share = 1.0f / (kGuessPrior + scratch.totals[i]);
      Floats squares{};
      for (int c = 0; c < width_; c += kLanes) {
        const Floats whole = load(row + c) + load(&scratch.sums[i * width_ + c]) * share;
        store(row + c, whole);
        squares += whole * whole;
      }
      const float length = std::sqrt(sum(squares));
      if (length == 0) continue;
      const float factor = shape_.cold_scale * std::sqrt(usual_ / length);
      for (int c = 0; c < width_; c += kLanes) store(row + c, load(row + c) * factor);
    }
  }

  // Adds the own parts of a panel to the sums of cold row i, weighted by the cosines.
  void add_parts(int panel, const float* cosines, int i, Scratch& scratch) const {
    const int first = panel * kPanelItems, count = std::min(kPanelItems, n_looked_at_ - first);
    Entry* end = scratch.entries;
    for (int j = 0; j < count; ++j) {
      float weight = std::max(0.0f, cosines[j]);
      for (int squared = 0; squared < 4; ++squared) weight *= weight;
      if (weight < kTooLittle) continue;
      *end++ = {&parts_[static_cast<std::size_t>(first + j) * width_], weight};
      scratch.totals[i] += weight;
    }
    float* sums = &scratch.sums[i * width_];
    sum_entries(scratch.entries, end, width_, sums, [&](int c) { return load(sums + c); });
  }

  ModelShape shape_;
  int width_;
  std::vector<float> lengths_;
  std::vector<std::int32_t> warm_, cold_;
  int n_looked_at_ = 0;
  Array<float> directions_, parts_;  // panels; (n_looked_at_, width)
  float usual_ = 0;
};

}  // namespace sasrec
