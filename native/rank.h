// Order without a score matrix: how many items score above a target or as high, and the best k items.
//
// The item table is packed once into panels of kPanelItems items, (kPanelItems / kScoredItems, dim, kScoredItems) each.
// A few rows of features are multiplied with a panel and the scores are compared in L1, so that none is ever written to
// memory. Rows go in blocks that stay in L2 while panels stream by.
//
// All scores are floats in every build, each summed in the order of the dimensions by the same kernel wherever the item
// lies and however many rows go along. So the same item ties with itself, and a batch gives what single rows give.
//
// The best k of a large table are looked for in a copy of it in bytes first (bytes.h): a few rows wait for memory, of
// which that is a quarter; for many rows the CPU may have products of bytes, four times as many as of floats. The error
// is bounded for every item, and whatever the bound does not rule out is scored again from floats. The result is that
// of the full product.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>
#include <string>
#include <vector>

#include "bytes.h"
#include "items.h"
#include "memory.h"
#include "panels.h"
#include "simd.h"
#include "threads.h"

namespace sasrec {

inline constexpr int kRankBlock = 96;    // rows that stay in L2 while panels stream by
inline constexpr int kFewRows = 6;       // up to this many wait for memory, not for arithmetic
inline constexpr int kItemsAhead = 8;    // rows of scattered items are asked for this many items before they are read
inline constexpr int kManyItems = 4096;  // from here on the copy in bytes pays
inline constexpr int kThreadItems = 1 << 18;  // fewer are not worth waking a thread for

// One bit for each score of a panel that is above the bar (or reaches it).
[[gnu::always_inline]] inline std::uint64_t bits_above(const float* scores, float bar) {
  std::uint64_t bits = 0;
  for (int n = 0; n < kPanelVectors; ++n)
    bits |= static_cast<std::uint64_t>(lanes_above(load(scores + kLanes * n), splat(bar))) << (kLanes * n);
  return bits;
}
[[gnu::always_inline]] inline std::uint64_t bits_reaching(const float* scores, float bar) {
  std::uint64_t bits = 0;
  for (int n = 0; n < kPanelVectors; ++n)
    bits |= static_cast<std::uint64_t>(lanes_reaching(load(scores + kLanes * n), splat(bar))) << (kLanes * n);
  return bits;
}

constexpr std::uint64_t first_bits(int n) { return n >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1; }

// Zero as long as all that went in was finite.
class FiniteCheck {
 public:
  void add(Floats v) { sum_ = multiply_add(v, Floats{}, sum_); }
  void add_panel(const float* scores) {
    Floats totals[4]{};
    for (int n = 0; n < kPanelVectors; ++n)
      totals[n % 4] = multiply_add(load(scores + kLanes * n), Floats{}, totals[n % 4]);
    sum_ += (totals[0] + totals[1]) + (totals[2] + totals[3]);
  }
  bool passed() const { return sum(sum_) == 0.0f; }

 private:
  Floats sum_{};
};

// Eight truth values as one word: a bit for each that is true.
inline std::uint64_t eight_of(const bool* values) {
  std::uint64_t eight;
  std::memcpy(&eight, values, sizeof eight);
  return eight;
}

// Whether more than `most` of so many values are true; it looks no further than that takes.
inline bool are_more_true(const bool* values, std::int64_t n, std::int64_t most) {
  std::int64_t count = 0, i = 0;
  for (; i + 64 <= n && count <= most; i += 64)
    for (int eight = 0; eight < 64; eight += 8) count += std::popcount(eight_of(values + i + eight));
  if (count > most) return true;
  for (; i < n; ++i) count += values[i];
  return count > most;
}

// Whether any of a panel's values is true.
inline bool is_any_true(const bool* values) {
  std::uint64_t any = 0;
  for (int i = 0; i < kPanelItems; i += 8) any |= eight_of(values + i);
  return any;
}

// A bit for each of kLanes values that is true: the product brings those of eight bytes together in the highest.
[[gnu::always_inline]] inline std::uint32_t true_lanes(const bool* values) {
  std::uint32_t bits = 0;
  for (int first = 0; first < kLanes; first += 8) {
    std::uint64_t bytes = 0;
    std::memcpy(&bytes, values + first, std::min(kLanes, 8));
    bits |= static_cast<std::uint32_t>(bytes * 0x0102040810204080 >> 56) << first;
  }
  return bits;
}

struct Scored {
  float score;
  std::int32_t item;
};
inline bool better(Scored a, Scored b) { return a.score > b.score || (a.score == b.score && a.item < b.item); }

// The k best of what was offered: a heap with the worst of them in front.
class TopList {
 public:
  explicit TopList(int k) : k_(k) { heap_.reserve(std::min(k, 1024)); }

  // What a score must reach (if its item is the lower one) or pass to get in.
  float bar() const { return bar_; }

  // Whether the entry got in. What is not a number has no place in an order.
  bool offer(Scored entry) {
    if (std::isnan(entry.score)) return false;
    if (static_cast<int>(heap_.size()) == k_) {
      if (!better(entry, heap_.front())) return false;
      std::pop_heap(heap_.begin(), heap_.end(), better);
      heap_.back() = entry;
    } else {
      heap_.push_back(entry);
    }
    std::push_heap(heap_.begin(), heap_.end(), better);
    if (static_cast<int>(heap_.size()) == k_) bar_ = heap_.front().score;
    return true;
  }

  // Best first.
  std::vector<Scored>& sorted() {
    std::sort(heap_.begin(), heap_.end(), better);
    return heap_;
  }

 private:
  int k_;
  float bar_ = -std::numeric_limits<float>::infinity();
  std::vector<Scored> heap_;
};

// Items known by bounds of their scores that may be among the k best. Bounds are sorted out a heap of entries at a
// time: cheaper than to keep them in order, and the bar is nearly as high.
class Shortlist {
 public:
  struct Entry {
    float low, high;
    std::int32_t item;
  };

  explicit Shortlist(int k) : k_(k), room_(std::max(64, 4 * k)) { entries_.reserve(room_); }

  // What an upper bound must reach: at least k items are known to score so much.
  float bar() const { return bar_; }
  const std::vector<Entry>& entries() const { return entries_; }

  void add(Entry entry) {
    entries_.push_back(entry);
    if (entries_.size() >= room_) sort_out();
  }

  // Raises the bar to the k-th best lower bound and drops what does not reach it.
  void sort_out() {
    if (entries_.size() < k_) return;
    const auto lower = [](const Entry& a, const Entry& b) { return a.low > b.low; };
    std::nth_element(entries_.begin(), entries_.begin() + (k_ - 1), entries_.end(), lower);
    bar_ = entries_[k_ - 1].low;
    std::erase_if(entries_, [&](const Entry& entry) { return entry.high < bar_; });
    room_ = std::max(room_, 2 * entries_.size());
  }

 private:
  std::size_t k_, room_;
  float bar_ = -std::numeric_limits<float>::infinity();
  std::vector<Entry> entries_;
};

// Distinct items in ascending order, some of which may have been passed by a scan that goes up through the items.
class ItemSet {
 public:
  ItemSet() = default;
  ItemSet(const std::int32_t* items, std::int64_t n, int n_items) : items_(items, items + n) {
    std::sort(items_.begin(), items_.end());
    items_.erase(std::unique(items_.begin(), items_.end()), items_.end());
    if (!items_.empty() && (items_.front() < 1 || items_.back() > n_items))
      throw std::invalid_argument("a hidden item is not in 1.." + std::to_string(n_items));
  }

  const std::vector<std::int32_t>& items() const { return items_; }
  bool holds(std::int32_t item) const { return std::binary_search(items_.begin(), items_.end(), item); }

  // Bits of the items first .. first + kPanelItems that the set holds; `first` must not fall from call to call.
  std::uint64_t bits_from(std::int32_t first) {
    while (next_ < items_.size() && items_[next_] < first) ++next_;
    std::uint64_t bits = 0;
    while (next_ < items_.size() && items_[next_] < first + kPanelItems)
      bits |= std::uint64_t{1} << (items_[next_++] - first);
    return bits;
  }

 private:
  std::vector<std::int32_t> items_;
  std::size_t next_ = 0;
};

// Rows of hidden items; without values nothing is hidden.
struct HiddenView {
  const std::int32_t* values = nullptr;
  const std::int64_t* offsets = nullptr;

  ItemSet of(std::int64_t row, int n_items) const {
    if (!values) return {};
    return {values + offsets[row], offsets[row + 1] - offsets[row], n_items};
  }
  std::vector<ItemSet> of_rows(std::int64_t begin, std::int64_t end, int n_items) const {
    std::vector<ItemSet> sets;
    for (std::int64_t row = begin; row < end; ++row) sets.push_back(of(row, n_items));
    return sets;
  }
};

// The item table, ready for ranking. Whoever makes one keeps the table alive and as it is.
//
// Methods that score return whether all scores were finite; if not, what they wrote means nothing.
class ItemIndex {
 public:
  // table (n_items + 1, dim) row-major; row 0 is padding and is never scored.
  ItemIndex(const float* table, int n_items, int dim, int n_threads)
      : table_(table), n_items_(n_items), dim_(dim), n_panels_((n_items + kPanelItems - 1) / kPanelItems),
        pool_(n_threads) {}

  int n_items() const { return n_items_; }
  int dim() const { return dim_; }

  // Of each row: how many items that are not hidden score above the target, and how many others as high. k > 0 also
  // wants the best k items of each row, (n, k), 0 where there are no more; from these a hidden target is left out.
  bool rank(const float* features, std::int64_t n, const std::int32_t* targets, HiddenView hidden, int k,
            std::int64_t* n_above, std::int64_t* n_tied, std::int32_t* lists) {
    std::lock_guard lock(mutex_);
    check_items(targets, n, n_items_);
    pack_panels();
    return for_row_blocks(n, [&](std::int64_t begin, std::int64_t end) {
      return rank_block(features, begin, end, targets, hidden, k, n_above, n_tied, lists);
    });
  }

  // Of each row: how many of its candidates (n, count) score above the first, the target, and how many as high. The
  // same item drawn again is a tie.
  bool rank_among(const float* features, std::int64_t n, const std::int32_t* candidates, int count,
                  std::int64_t* n_above, std::int64_t* n_tied) {
    std::lock_guard lock(mutex_);
    check_items(candidates, n * count, n_items_);
    return for_row_blocks(n, [&](std::int64_t begin, std::int64_t end) {
      FiniteCheck finite;
      for (std::int64_t row = begin; row < end; ++row)
        rank_row_among(features + row * dim_, candidates + row * count, count, n_above[row], n_tied[row], finite);
      return finite.passed();
    });
  }

  // The best k items of each row that are allowed and not hidden: indices and scores (n, k), best first, of equal
  // scores the lower index first; 0 and -infinity fill up. allowed (n_items + 1) says which items; null = all.
  bool top_k(const float* features, std::int64_t n, int k, HiddenView hidden, const bool* allowed,
             std::int32_t* indices, float* scores) {
    std::lock_guard lock(mutex_);
    const auto write = [&](std::int64_t row, TopList& list) {
      std::int64_t place = row * k;
      for (const Scored& entry : list.sorted()) indices[place] = entry.item, scores[place++] = entry.score;
      for (; place < (row + 1) * k; ++place)
        indices[place] = 0, scores[place] = -std::numeric_limits<float>::infinity();
    };
    const bool by_bytes = (n <= kFewRows || has_byte_products()) && n_items_ >= kManyItems && k <= n_items_ / 64 &&
                          bytes_are_safe(features, n);
    // An item that is packed anew takes as long as 8 of the panels, and as 32 of the copy in bytes.
    const int as_long = by_bytes && n <= kFewRows ? 32 : 8;
    if (allowed && !are_more_true(allowed + 1, n_items_, n_items_ / as_long))
      return top_of_allowed(features, n, k, hidden, allowed, write);
    if (by_bytes) {
      if (n <= kFewRows) return top_of_few(features, n, k, hidden, allowed, write);
#if defined(__AVX512F__)
      if (byte_panels_.empty()) byte_panels_ = BytePanels(table_, n_items_, dim_);
      return for_row_blocks(n, [&](std::int64_t begin, std::int64_t end) {
        return top_block_by_bytes(features, begin, end, k, hidden, allowed, write);
      });
#endif
    }
    pack_panels();
    return for_row_blocks(n, [&](std::int64_t begin, std::int64_t end) {
      return top_block(features, begin, end, k, hidden, allowed, write);
    });
  }

 private:
  // What a row's target is compared with, and what has been counted.
  struct Rank {
    float own;
    int target_panel;
    std::uint64_t target_bit;
    std::int64_t above = 0, reaching = 0;

    void count(int panel, const float* scores, std::uint64_t open) {
      if (panel == target_panel) open &= ~target_bit;
      above += std::popcount(bits_above(scores, own) & open);
      reaching += std::popcount(bits_reaching(scores, own) & open);
    }
  };

  // Calls work(begin, end) for blocks of rows, each on whichever thread is free; whether all returned true.
  template <typename Work>
  bool for_row_blocks(std::int64_t n, Work&& work) {
    const std::int64_t share = (n + pool_.size() - 1) / pool_.size();
    const std::int64_t block = std::clamp<std::int64_t>(share, kRankRows, kRankBlock);
    if (n <= block) return work(0, n);
    std::atomic<std::int64_t> next{0};
    std::atomic<bool> finite{true};
    pool_.run([&](int) {
      for (std::int64_t begin; (begin = next.fetch_add(block)) < n;)
        if (!work(begin, std::min(begin + block, n))) finite = false;
    });
    return finite;
  }

  // Rows that lie apart wait for memory one after another, unless it is asked for them earlier.
  void prefetch_item(std::int32_t item) const {
    const float* row = table_ + static_cast<std::ptrdiff_t>(item) * dim_;
    for (int k = 0; k < dim_; k += 16) __builtin_prefetch(row + k);
  }

  void pack_panels() {
    if (panels_.size()) return;
    Array<float> panels(static_cast<std::size_t>(n_panels_) * panel_size());
    pool_.run_ranges(n_panels_, [&](std::size_t begin, std::size_t end) {
      for (std::size_t panel = begin; panel < end; ++panel) {
        const int first = static_cast<int>(panel) * kPanelItems + 1;
        const int count = std::min(kPanelItems, n_items_ + 1 - first);
        pack_panel(table_, dim_, count, [&](int c) { return first + c; }, &panels[panel * panel_size()]);
      }
    });
    panels_ = std::move(panels);
  }

  std::size_t panel_size() const { return static_cast<std::size_t>(kPanelItems) * dim_; }
  const float* panel_at(int panel) const { return &panels_[panel * panel_size()]; }

  // Bits of a panel's columns that hold an item.
  std::uint64_t real_bits(int panel) const { return first_bits(n_items_ - panel * kPanelItems); }

  // Calls visit(row, panel, scores) for all panels and rows, panel by panel.
  template <typename Visit>
  void scan(const float* features, int rows, Visit&& visit) const {
    alignas(64) float scores[kRankRows * kPanelItems];
    for (int panel = 0; panel < n_panels_; ++panel) {
      for_row_tiles(rows, [&]<int Rows>(int row) {
        score_panel<Rows>(features + static_cast<std::ptrdiff_t>(row) * dim_, dim_, panel_at(panel), scores);
        for (int r = 0; r < Rows; ++r) visit(row + r, panel, scores + r * kPanelItems);
      });
    }
  }

  // Offers the items of a panel that are open and score above the bar; the items offered before were lower ones.
  static void offer_panel(int panel, const float* scores, std::uint64_t open, const bool* allowed, TopList& list) {
    for (std::uint64_t bits = bits_above(scores, list.bar()) & open; bits; bits &= bits - 1) {
      const int c = std::countr_zero(bits), item = panel * kPanelItems + c + 1;
      if (!allowed || allowed[item]) list.offer({scores[c], item});
    }
  }

  bool rank_block(const float* features, std::int64_t begin, std::int64_t end, const std::int32_t* targets,
                  HiddenView hidden, int k, std::int64_t* n_above, std::int64_t* n_tied, std::int32_t* lists) const {
    const int rows = static_cast<int>(end - begin);
    std::vector<ItemSet> gone = hidden.of_rows(begin, end, n_items_);
    std::vector<Rank> ranks;
    std::vector<TopList> tops(k ? rows : 0, TopList(k));
    for (std::int64_t row = begin; row < end; ++row)
      ranks.push_back(start_rank(features + row * dim_, targets[row] - 1));
    FiniteCheck finite;
    scan(features + begin * dim_, rows, [&](int row, int panel, const float* scores) {
      const std::uint64_t open = real_bits(panel) & ~gone[row].bits_from(panel * kPanelItems + 1);
      finite.add_panel(scores);
      ranks[row].count(panel, scores, open);
      if (k) offer_panel(panel, scores, open, nullptr, tops[row]);
    });
    for (int row = 0; row < rows; ++row) {
      n_above[begin + row] = ranks[row].above;
      n_tied[begin + row] = ranks[row].reaching - ranks[row].above;
      if (!k) continue;
      std::int32_t* list = std::fill_n(lists + (begin + row) * k, k, 0) - k;
      for (const Scored& entry : tops[row].sorted()) *list++ = entry.item;
    }
    return finite.passed();
  }

  // The target's own score comes from its whole panel, like all others.
  Rank start_rank(const float* features, int column) const {
    const int panel = column / kPanelItems;
    alignas(64) float scores[kPanelItems];
    score_panel<1>(features, dim_, panel_at(panel), scores);
    return {scores[column % kPanelItems], panel, std::uint64_t{1} << (column % kPanelItems)};
  }

  void rank_row_among(const float* features, const std::int32_t* candidates, int count, std::int64_t& n_above,
                      std::int64_t& n_tied, FiniteCheck& finite) const {
    const std::int32_t target = candidates[0];
    const float own = score_of(features, target);
    finite.add(splat(own));
    std::int64_t above = 0, tied = 0;
    for (int i = 1; i < count; ++i) {
      const float score = score_of(features, candidates[i]);
      finite.add(splat(score));
      const bool itself = candidates[i] == target;
      above += !itself & (score > own);
      tied += itself | (score == own);
    }
    n_above = above, n_tied = tied;
  }

  // A single score; summed in another order than a panel's.
  [[gnu::always_inline]] float score_of(const float* features, std::int32_t item) const {
    const float* row = table_ + static_cast<std::ptrdiff_t>(item) * dim_;
    Floats total{};
    int k = 0;
    for (; k + kLanes <= dim_; k += kLanes) total = multiply_add(load(features + k), load(row + k), total);
    if (k < dim_) total = multiply_add(load_first(features + k, dim_ - k), load_first(row + k, dim_ - k), total);
    return sum(total);
  }

  template <typename Write>
  bool top_block(const float* features, std::int64_t begin, std::int64_t end, int k, HiddenView hidden,
                 const bool* allowed, Write&& write) const {
    const int rows = static_cast<int>(end - begin);
    std::vector<ItemSet> gone = hidden.of_rows(begin, end, n_items_);
    std::vector<TopList> tops(rows, TopList(k));
    FiniteCheck finite;
    scan(features + begin * dim_, rows, [&](int row, int panel, const float* scores) {
      finite.add_panel(scores);
      const std::uint64_t open = real_bits(panel) & ~gone[row].bits_from(panel * kPanelItems + 1);
      offer_panel(panel, scores, open, allowed, tops[row]);
    });
    for (int row = 0; row < rows; ++row) write(begin + row, tops[row]);
    return finite.passed();
  }

  // Scores a few items, packed anew, for each row and offers those that are not gone.
  bool offer_items(const float* features, int rows, const std::vector<std::int32_t>& items, const ItemSet* gone,
                   TopList* lists) const {
    Array<float> panel(panel_size());
    alignas(64) float scores[kPanelItems];
    FiniteCheck finite;
    for (std::size_t start = 0; start < items.size(); start += kPanelItems) {
      const int count = static_cast<int>(std::min<std::size_t>(kPanelItems, items.size() - start));
      const auto item_of = [&](int c) {
        if (start + c + kItemsAhead < items.size()) prefetch_item(items[start + c + kItemsAhead]);
        return items[start + c];
      };
      pack_panel(table_, dim_, count, item_of, panel.data());
      for (int row = 0; row < rows; ++row) {
        score_panel<1>(features + static_cast<std::ptrdiff_t>(row) * dim_, dim_, panel.data(), scores);
        finite.add_panel(scores);
        for (std::uint64_t bits = bits_reaching(scores, lists[row].bar()) & first_bits(count); bits; bits &= bits - 1) {
          const int c = std::countr_zero(bits);
          if (!gone[row].holds(items[start + c])) lists[row].offer({scores[c], items[start + c]});
        }
      }
    }
    return finite.passed();
  }

  template <typename Write>
  bool top_of_allowed(const float* features, std::int64_t n, int k, HiddenView hidden, const bool* allowed,
                      Write&& write) {
    std::vector<std::int32_t> items;
    for (std::int32_t item = 1; item <= n_items_; ++item) {
      while (item + 7 <= n_items_ && !eight_of(allowed + item)) item += 8;
      if (item <= n_items_ && allowed[item]) items.push_back(item);
    }
    return for_row_blocks(n, [&](std::int64_t begin, std::int64_t end) {
      const int rows = static_cast<int>(end - begin);
      const std::vector<ItemSet> gone = hidden.of_rows(begin, end, n_items_);
      std::vector<TopList> tops(rows, TopList(k));
      const bool finite = offer_items(features + begin * dim_, rows, items, gone.data(), tops.data());
      for (int row = 0; row < rows; ++row) write(begin + row, tops[row]);
      return finite;
    });
  }

  // Whether bounds by bytes hold for these features: no score can overflow, and nothing is NaN.
  bool bytes_are_safe(const float* features, std::int64_t n) {
    if (dim_ > 8192) return false;
    if (largest_norm_ < 0) largest_norm_ = largest_norm(table_ + dim_, n_items_);
    const double norm = largest_norm(features, n);
    return norm <= FLT_MAX && largest_norm_ <= FLT_MAX && norm * largest_norm_ < FLT_MAX / 4;
  }

  // The length of the longest row; infinite where one holds NaN.
  double largest_norm(const float* rows, std::int64_t n) const {
    double largest = 0;
    for (std::int64_t row = 0; row < n; ++row) {
      double squares = 0;
      for (int k = 0; k < dim_; ++k) {
        const double value = rows[row * dim_ + k];
        squares += value * value;
      }
      if (std::isnan(squares)) return std::numeric_limits<double>::infinity();
      largest = std::max(largest, squares);
    }
    return std::sqrt(largest);
  }

  template <typename Write>
  bool top_of_few(const float* features, std::int64_t n, int k, HiddenView hidden, const bool* allowed, Write&& write) {
    if (!bytes_.n_groups()) bytes_ = ByteTable(table_, n_items_, dim_);
    bool finite = true;
    for (std::int64_t row = 0; row < n; ++row) {
      TopList list(k);
      finite &= top_by_bytes(features + row * dim_, k, hidden.of(row, n_items_), allowed, list);
      write(row, list);
    }
    return finite;
  }

  bool top_by_bytes(const float* features, int k, const ItemSet& gone, const bool* allowed, TopList& list) {
    const int n_threads = std::clamp(n_items_ / kThreadItems, 1, pool_.size());
    std::vector<Shortlist> found(n_threads, Shortlist(k));
    const auto work = [&](int t) {
      if (t >= n_threads) return;
      const auto share = [&](int thread) {
        return static_cast<int>(static_cast<std::int64_t>(bytes_.n_groups()) * thread / n_threads);
      };
      collect(features, share(t), share(t + 1), gone, allowed, found[t]);
    };
    if (n_threads > 1) {
      pool_.run(work);
    } else {
      work(0);
    }
    for (int t = 1; t < n_threads; ++t)
      for (const Shortlist::Entry& entry : found[t].entries()) found[0].add(entry);
    return offer_shortlist(features, found[0], list);
  }

  // A mask is read once, in order, for panels without an allowed item, and then where a score reaches the bar.
  void collect(const float* features, int first, int last, const ItemSet& gone, const bool* allowed,
               Shortlist& found) const {
    const ByteTable::Query query = bytes_.round(features, dim_);
    const auto add = [&](int group, std::uint32_t bits, Floats low, Floats high) __attribute__((always_inline)) {
      float lows[kLanes], highs[kLanes];
      store(lows, low), store(highs, high);
      for (; bits; bits &= bits - 1) {
        const int lane = std::countr_zero(bits), item = group * kLanes + lane + 1;
        if (item <= n_items_ && !gone.holds(item)) found.add({lows[lane], highs[lane], item});
      }
    };
    if (!allowed) {
      bytes_.scan(query, first, last, [&](int group, Floats low, Floats high) __attribute__((always_inline)) {
        if (const std::uint32_t bits = lanes_reaching(high, splat(found.bar()))) add(group, bits, low, high);
      });
      return;
    }
    for (int begin = first, end; begin < last; begin = end) {
      end = std::min(round_down(begin, kPanelVectors) + kPanelVectors, last);
      if (!holds_allowed(begin / kPanelVectors, allowed)) continue;
      bytes_.scan(query, begin, end, [&](int group, Floats low, Floats high) __attribute__((always_inline)) {
        std::uint32_t bits = lanes_reaching(high, splat(found.bar()));
        if (!bits) return;
        bits &= allowed_lanes(group, allowed);
        if (bits) add(group, bits, low, high);
      });
    }
  }

  // Whether an item of a panel is allowed; of the last panel, which may have fewer items, this is not asked.
  bool holds_allowed(int panel, const bool* allowed) const {
    const int first = panel * kPanelItems + 1;
    return first + kPanelItems - 1 > n_items_ || is_any_true(allowed + first);
  }

  // A bit for each item of a group that is allowed.
  std::uint32_t allowed_lanes(int group, const bool* allowed) const {
    const int first = group * kLanes + 1;
    if (first + kLanes - 1 <= n_items_) return true_lanes(allowed + first);
    std::uint32_t bits = 0;
    for (int item = first; item <= n_items_; ++item) bits |= std::uint32_t{allowed[item]} << (item - first);
    return bits;
  }

#if defined(__AVX512F__)
  template <typename Write>
  bool top_block_by_bytes(const float* features, std::int64_t begin, std::int64_t end, int k, HiddenView hidden,
                          const bool* allowed, Write&& write) const {
    const int n = static_cast<int>(end - begin);
    std::vector<ItemSet> gone = hidden.of_rows(begin, end, n_items_);
    std::vector<Shortlist> found(n, Shortlist(k));
    BytePanels::Rows rows = byte_panels_.round(features + begin * dim_, n);
    alignas(64) std::int32_t least[kRankBlock], products[kRankRows * kPanelItems];
    for (int panel = 0; panel < n_panels_; ++panel) {
      byte_panels_.least_products(rows, panel, least);
      for_row_tiles(n, [&]<int Count>(int first) {
        bool reached[Count];
        byte_panels_.multiply<Count>(rows, first, panel, least + first, reached, products);
        for (int r = 0; r < Count; ++r) {
          if (!reached[r]) continue;
          const int row = first + r;
          std::uint64_t open = real_bits(panel) & ~gone[row].bits_from(panel * kPanelItems + 1);
          open &= bits_reaching(products + r * kPanelItems, least[row]);
          add_products(rows, row, panel, products + r * kPanelItems, open, allowed, found[row]);
          rows.bar[row] = std::max(found[row].bar(), -FLT_MAX);
        }
      });
    }
    bool finite = true;
    for (int row = 0; row < n; ++row) {
      TopList list(k);
      finite &= offer_shortlist(features + (begin + row) * dim_, found[row], list);
      write(begin + row, list);
    }
    return finite;
  }

  void add_products(const BytePanels::Rows& rows, int row, int panel, const std::int32_t* products, std::uint64_t open,
                    const bool* allowed, Shortlist& found) const {
    const double unit = byte_panels_.unit(rows, row, panel), error = byte_panels_.error(rows, row, panel);
    for (; open; open &= open - 1) {
      const int c = std::countr_zero(open), item = panel * kPanelItems + c + 1;
      if (allowed && !allowed[item]) continue;
      const double middle = products[c] * unit;
      found.add({static_cast<float>(middle - error), static_cast<float>(middle + error), item});
    }
  }
#endif

  // Scores what the bounds leave of a shortlist, a vector of items at a time, and offers it.
  bool offer_shortlist(const float* features, Shortlist& found, TopList& list) const {
    found.sort_out();
    FiniteCheck finite;
    std::int32_t items[kLanes];
    int n = 0;
    const auto offer = [&] {
      const Floats scores = score_items(features, items, n);
      finite.add(scores);
      for (int i = 0; i < n; ++i) list.offer({scores[i], items[i]});
      n = 0;
    };
    for (const Shortlist::Entry& entry : found.entries()) {
      items[n++] = entry.item;
      if (n == kLanes) offer();
    }
    if (n) offer();
    return finite.passed();
  }

  // Scores of up to kLanes items, summed as a panel's are; the other lanes are zero.
  Floats score_items(const float* features, const std::int32_t* items, int n) const {
    const float* rows[kLanes];
    for (int i = 0; i < n; ++i) rows[i] = table_ + static_cast<std::ptrdiff_t>(items[i]) * dim_;
    Floats total{};
    for (int k = 0; k < dim_; ++k) {
      alignas(64) float values[kLanes] = {};
      for (int i = 0; i < n; ++i) values[i] = rows[i][k];
      total = multiply_add(splat(features[k]), load(values), total);
    }
    return total;
  }

  const float* table_;
  int n_items_, dim_, n_panels_;
  ThreadPool pool_;
  std::mutex mutex_;  // one call at a time
  Array<float> panels_;
  double largest_norm_ = -1;  // of all items; -1 = not looked at yet
  ByteTable bytes_;
#if defined(__AVX512F__)
  BytePanels byte_panels_;
#endif
};

}  // namespace sasrec
