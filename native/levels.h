// Ranks by scores that all rows share but for a few exceptions: what baselines such as popularity need.
//
// The shared scores are sorted once. A row then costs what its exceptions, its hidden items and its list cost, not what
// the catalogue does.
#pragma once

#include "rank.h"

namespace sasrec {

// Rows of exceptions: item values[i] scores scores[i] in its row; of an item that is named twice the higher score
// counts.
struct ExceptionView {
  const std::int32_t* values;
  const float* scores;
  const std::int64_t* offsets;
};

class LevelIndex {
 public:
  // levels (n_items + 1); row 0 is padding.
  LevelIndex(const float* levels, int n_items)
      : levels_(levels, levels + n_items + 1), finite_(all_finite(levels + 1, n_items)) {
    if (!finite_) return;  // what is not a number cannot be sorted
    for (int item = 1; item <= n_items; ++item) order_.push_back({levels[item], item});
    std::sort(order_.begin(), order_.end(), better);
  }

  int n_items() const { return static_cast<int>(levels_.size()) - 1; }

  // As ItemIndex::rank.
  bool rank(std::int64_t n, ExceptionView exceptions, const std::int32_t* targets, HiddenView hidden, int k,
            std::int64_t* n_above, std::int64_t* n_tied, std::int32_t* lists) const {
    if (!finite_ || !all_finite(exceptions.scores, n ? exceptions.offsets[n] : 0)) return false;
    Row row{levels_, std::vector<bool>(levels_.size()), {}};
    for (std::int64_t i = 0; i < n; ++i) {
      if (targets[i] < 1 || targets[i] > n_items()) throw std::invalid_argument("a target is not an item");
      row.begin(exceptions, i, n_items());
      const ItemSet gone = hidden.of(i, n_items());
      count(row, gone, targets[i], n_above[i], n_tied[i]);
      if (k) list(row, gone, k, lists + i * k);
      row.end(levels_);
    }
    return true;
  }

 private:
  static bool all_finite(const float* values, std::int64_t n) {
    return std::all_of(values, values + n, [](float value) { return std::isfinite(value); });
  }

  // The scores of one row, made by putting its exceptions in and unmade by taking them out.
  struct Row {
    std::vector<float> scores;
    std::vector<bool> is_exception;
    std::vector<std::int32_t> exceptions;

    void begin(ExceptionView view, std::int64_t row, int n_items) {
      for (std::int64_t i = view.offsets[row]; i < view.offsets[row + 1]; ++i) {
        const std::int32_t item = view.values[i];
        if (item < 1 || item > n_items) throw std::invalid_argument("an exception is not an item");
        scores[item] = is_exception[item] ? std::max(scores[item], view.scores[i]) : view.scores[i];
        if (!is_exception[item]) exceptions.push_back(item);
        is_exception[item] = true;
      }
    }
    void end(const std::vector<float>& levels) {
      for (const std::int32_t item : exceptions) scores[item] = levels[item], is_exception[item] = false;
      exceptions.clear();
    }
  };

  void count(const Row& row, const ItemSet& gone, std::int32_t target, std::int64_t& n_above,
             std::int64_t& n_tied) const {
    const float own = row.scores[target];
    const auto first_below = [&](auto&& is_better) {
      return std::partition_point(order_.begin(), order_.end(), is_better) - order_.begin();
    };
    std::int64_t above = first_below([&](const Scored& s) { return s.score > own; });
    std::int64_t reaching = first_below([&](const Scored& s) { return s.score >= own; });
    for (const std::int32_t item : row.exceptions) {
      above += (row.scores[item] > own) - (levels_[item] > own);
      reaching += (row.scores[item] >= own) - (levels_[item] >= own);
    }
    for (const std::int32_t item : gone.items()) {
      if (item == target) continue;
      above -= row.scores[item] > own;
      reaching -= row.scores[item] >= own;
    }
    n_above = above, n_tied = reaching - above - 1;  // less the target itself
  }

  void list(const Row& row, const ItemSet& gone, int k, std::int32_t* out) const {
    TopList best(k);
    for (const std::int32_t item : row.exceptions)
      if (!gone.holds(item)) best.offer({row.scores[item], item});
    for (const Scored& entry : order_) {
      if (entry.score < best.bar()) break;
      if (!row.is_exception[entry.item] && !gone.holds(entry.item) && !best.offer(entry)) break;
    }
    std::fill_n(out, k, 0);
    for (const Scored& entry : best.sorted()) *out++ = entry.item;
  }

  std::vector<float> levels_;
  bool finite_;
  std::vector<Scored> order_;  // empty if a level is not finite
};

}  // namespace sasrec
