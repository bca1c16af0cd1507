// Ranks by scores that all rows share but for a few exceptions: what baselines such as popularity need.
//
// The shared scores are sorted once. A row then costs what its exceptions, its hidden items and its list cost, not what
// the catalogue does. Rows that follow each other may share a list of exceptions, which is put in once for all of them;
// where they are many, it is sorted too, and a row costs what its hidden items and its list cost.
#pragma once

#include <functional>

#include "rank.h"

namespace sasrec {

inline constexpr std::int64_t kSortedFor = 32;  // rows that share a list: for fewer, sorting costs more than it saves

// Lists of exceptions: item values[i] scores scores[i] in the rows of its list; of an item that is named twice the
// higher score counts.
struct ExceptionView {
  const std::int32_t* values;
  const float* scores;
  const std::int64_t* offsets;
  const std::int64_t* list_of;  // of each row
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

  // As ItemIndex::rank. n_lists: of exceptions.
  bool rank(std::int64_t n, ExceptionView exceptions, std::int64_t n_lists, const std::int32_t* targets,
            HiddenView hidden, int k, std::int64_t* n_above, std::int64_t* n_tied, std::int32_t* lists) const {
    if (!finite_ || !all_finite(exceptions.scores, n_lists ? exceptions.offsets[n_lists] : 0)) return false;
    Row row{levels_, std::vector<bool>(levels_.size()), {}, {}, {}};
    for (std::int64_t first = 0, last; first < n; first = last) {  // rows first to last share a list
      for (last = first + 1; last < n && exceptions.list_of[last] == exceptions.list_of[first];) ++last;
      row.begin(exceptions, exceptions.list_of[first], n_items());
      if (last - first >= kSortedFor) row.sort(levels_);
      for (std::int64_t i = first; i < last; ++i) {
        if (targets[i] < 1 || targets[i] > n_items()) throw std::invalid_argument("a target is not an item");
        const ItemSet gone = hidden.of(i, n_items());
        count(row, gone, targets[i], n_above[i], n_tied[i]);
        if (k) list(row, gone, k, lists + i * k);
      }
      row.end(levels_);
    }
    return true;
  }

 private:
  static bool all_finite(const float* values, std::int64_t n) {
    return std::all_of(values, values + n, [](float value) { return std::isfinite(value); });
  }

  // The scores of a row, made by putting its exceptions in and unmade by taking them out.
  struct Row {
    std::vector<float> scores;
    std::vector<bool> is_exception;
    std::vector<std::int32_t> exceptions;
    std::vector<Scored> by_score;  // the exceptions, the best first; empty where they are not sorted
    std::vector<float> by_level;   // their levels, the highest first

    void begin(ExceptionView view, std::int64_t list, int n_items) {
      for (std::int64_t i = view.offsets[list]; i < view.offsets[list + 1]; ++i) {
        const std::int32_t item = view.values[i];
        if (item < 1 || item > n_items) throw std::invalid_argument("an exception is not an item");
        scores[item] = is_exception[item] ? std::max(scores[item], view.scores[i]) : view.scores[i];
        if (!is_exception[item]) exceptions.push_back(item);
        is_exception[item] = true;
      }
    }
    void sort(const std::vector<float>& levels) {
      for (const std::int32_t item : exceptions)
        by_score.push_back({scores[item], item}), by_level.push_back(levels[item]);
      std::sort(by_score.begin(), by_score.end(), better);
      std::sort(by_level.begin(), by_level.end(), std::greater<>());
    }
    void end(const std::vector<float>& levels) {
      for (const std::int32_t item : exceptions) scores[item] = levels[item], is_exception[item] = false;
      exceptions.clear(), by_score.clear(), by_level.clear();
    }
  };

  // How many entries come before the first that is not so.
  template <class Entry, class IsSo>
  static std::int64_t first_not(const std::vector<Entry>& entries, IsSo is_so) {
    return std::partition_point(entries.begin(), entries.end(), is_so) - entries.begin();
  }

  void count(const Row& row, const ItemSet& gone, std::int32_t target, std::int64_t& n_above,
             std::int64_t& n_tied) const {
    const float own = row.scores[target];
    const auto is_above = [own](const Scored& entry) { return entry.score > own; };
    const auto reaches = [own](const Scored& entry) { return entry.score >= own; };
    std::int64_t above = first_not(order_, is_above), reaching = first_not(order_, reaches);
    if (row.by_score.empty()) {
      for (const std::int32_t item : row.exceptions) {
        above += (row.scores[item] > own) - (levels_[item] > own);
        reaching += (row.scores[item] >= own) - (levels_[item] >= own);
      }
    } else {
      above += first_not(row.by_score, is_above) - first_not(row.by_level, [own](float level) { return level > own; });
      reaching +=
          first_not(row.by_score, reaches) - first_not(row.by_level, [own](float level) { return level >= own; });
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
    if (row.by_score.empty()) {
      for (const std::int32_t item : row.exceptions)
        if (!gone.holds(item)) best.offer({row.scores[item], item});
    } else {
      offer(row.by_score, best, [&](std::int32_t item) { return !gone.holds(item); });
    }
    offer(order_, best, [&](std::int32_t item) { return !row.is_exception[item] && !gone.holds(item); });
    std::fill_n(out, k, 0);
    for (const Scored& entry : best.sorted()) *out++ = entry.item;
  }

  // Offer entries, the best first, until no further one can be among the best.
  template <class Counts>
  static void offer(const std::vector<Scored>& entries, TopList& best, Counts counts) {
    for (const Scored& entry : entries) {
      if (entry.score < best.bar()) break;
      if (counts(entry.item) && !best.offer(entry)) break;
    }
  }

  std::vector<float> levels_;
  bool finite_;
  std::vector<Scored> order_;  // empty if a level is not finite
};

}  // namespace sasrec
