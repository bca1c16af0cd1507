// Order without a score matrix: how many items score above a target or as high, and the best k items.
//
// The item table is packed once into panels of kPanelItems items, (dim, kPanelItems) each. A few rows of features are
// multiplied with a panel in registers and the scores are compared there, so that none is ever written. Rows go in
// blocks that stay in L2 while panels stream by.
//
// All scores are floats in every build, each summed in the order of the dimensions by the same kernel wherever the item
// lies and however many rows go along. So the same item ties with itself, and a batch gives what single rows give.
//
// A few rows against a large table wait for memory. They read a copy of it in bytes first: its error is bounded for
// every item, and whatever the bound does not rule out is scored again from floats. The result is that of the full
// product.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cfloat>
#include <limits>
#include <mutex>
#include <string>
#include <vector>

#include "items.h"
#include "memory.h"
#include "simd.h"
#include "threads.h"

namespace sasrec {

inline constexpr int kPanelVectors = kLanes == 16 ? 4 : 2;
inline constexpr int kPanelItems = kPanelVectors * kLanes;  // at most 64: a bit of a word for each
inline constexpr int kRankRows = kLanes == 4 ? 4 : 6;       // accumulators: 24 of 32, 12 of 16, 8 of 16 registers
inline constexpr int kRankBlock = 96;                       // rows that stay in L2 while panels stream by
inline constexpr int kFewRows = 6;                          // up to this many wait for memory, not for arithmetic
inline constexpr int kManyItems = 4096;                     // from here on the copy in bytes pays
inline constexpr int kThreadItems = 1 << 18;                // fewer are not worth waking a thread for
inline constexpr int kQuerySteps = 2047;                    // features are rounded to this many steps each way
inline constexpr int kByteSteps = 127;

// Scores (Rows, kPanelItems) of rows of features with the items of a panel. A function of its own keeps all sums in
// registers; what is done with the scores finds them in L1.
template <int Rows>
[[gnu::noinline]] void score_panel(const float* features, int dim, const float* panel, float* scores) {
  Floats sums[Rows][kPanelVectors] = {};
  for (int k = 0; k < dim; ++k) {
    Floats items[kPanelVectors];
#pragma GCC unroll 4
    for (int n = 0; n < kPanelVectors; ++n) items[n] = load(panel + k * kPanelItems + kLanes * n);
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) {
      const Floats feature = splat(features[static_cast<std::ptrdiff_t>(r) * dim + k]);
#pragma GCC unroll 4
      for (int n = 0; n < kPanelVectors; ++n) sums[r][n] = multiply_add(feature, items[n], sums[r][n]);
    }
  }
  for (int r = 0; r < Rows; ++r)
    for (int n = 0; n < kPanelVectors; ++n) store(scores + r * kPanelItems + kLanes * n, sums[r][n]);
}

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
    for (int n = 0; n < kPanelVectors; ++n) add(load(scores + kLanes * n));
  }
  bool passed() const { return sum(sum_) == 0.0f; }

 private:
  Floats sum_{};
};

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

  // Whether the entry got in.
  bool offer(Scored entry) {
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
  const std::vector<Scored>& unordered() const { return heap_; }

 private:
  int k_;
  float bar_ = -std::numeric_limits<float>::infinity();
  std::vector<Scored> heap_;
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
};

// The table in signed bytes, a scale for each item, and a bound on what that changes.
//
// With v an item, v' its bytes times scale, q the features and q' their steps times step:
//   |q.v - q'.v'| <= |q| |v - v'| + |q - q'| |v'|,  |q - q'| <= sqrt(dim) / 2 * step,  step <= |q| / kQuerySteps
// so |q| times `error` bounds it: error = |v - v'| + sqrt(dim) / (2 kQuerySteps) |v'| + a margin for sums in floats.
// Bytes lie in groups of kLanes items, pairs of dimensions interleaved: (groups, dim / 2, kLanes, 2).
class ByteTable {
 public:
  void pack(const float* table, int n_items, int dim) {
    pairs_ = (dim + 1) / 2;
    n_groups_ = (n_items + kLanes - 1) / kLanes;
    bytes_.resize(static_cast<std::size_t>(n_groups_) * pairs_ * 2 * kLanes);
    scale_.resize(static_cast<std::size_t>(n_groups_) * kLanes);
    error_.resize(static_cast<std::size_t>(n_groups_) * kLanes);
    for (int i = 0; i < n_items; ++i) pack_item(i, table + static_cast<std::ptrdiff_t>(i + 1) * dim, dim);
  }

  int n_groups() const { return n_groups_; }
  float largest_norm() const { return largest_norm_; }

  // Calls visit(group, low, high) with bounds of the scores of kLanes items, for the groups in a range.
  template <typename Visit>
  void scan(const float* features, int dim, int first, int last, Visit&& visit) const {
    std::vector<std::int32_t> steps(pairs_);
    const Query query = round_features(features, dim, steps.data());
    for (int group = first; group < last; ++group) {
      const Ints product = multiply(group, steps.data());
      const std::size_t i = static_cast<std::size_t>(group) * kLanes;
      const Floats middle = __builtin_convertvector(product, Floats) * (load(&scale_[i]) * query.step);
      const Floats error = load(&error_[i]) * query.norm;
      visit(group, middle - error, middle + error);
    }
  }

 private:
  struct Query {
    float step, norm;
  };

  void pack_item(int i, const float* item, int dim) {
    float largest = 0;
    for (int k = 0; k < dim; ++k) largest = std::max(largest, std::fabs(item[k]));
    const float scale = largest / kByteSteps;  // of an item that is not finite nothing is kept: see largest_norm_
    const bool rounds = scale > 0 && scale <= FLT_MAX;
    std::int8_t* bytes = &bytes_[static_cast<std::size_t>(i / kLanes) * pairs_ * 2 * kLanes];
    double norm = 0, kept = 0, lost = 0;  // squares of |v|, |v'|, |v - v'|
    for (int k = 0; k < dim; ++k) {
      const float steps = rounds ? std::clamp(std::nearbyint(item[k] / scale), -127.0f, 127.0f) : 0.0f;
      bytes[k / 2 * 2 * kLanes + i % kLanes * 2 + k % 2] = static_cast<std::int8_t>(steps);
      const double value = item[k], rounded = static_cast<double>(scale) * steps;
      norm += value * value, kept += rounded * rounded, lost += (value - rounded) * (value - rounded);
    }
    const double margin = (dim + 16) * static_cast<double>(FLT_EPSILON);
    const double error =
        std::sqrt(lost) + std::sqrt(dim) / (2 * kQuerySteps) * std::sqrt(kept) + margin * std::sqrt(norm);
    scale_[i] = scale;
    error_[i] = static_cast<float>(error * 1.0001);  // for the roundings of the bound itself
    const auto length = static_cast<float>(std::sqrt(norm));
    largest_norm_ = length <= FLT_MAX ? std::max(largest_norm_, length) : std::numeric_limits<float>::infinity();
  }

  // Pairs of 16-bit steps in words of 32 bits.
  static Query round_features(const float* features, int dim, std::int32_t* steps) {
    float largest = 0;
    double norm = 0;
    for (int k = 0; k < dim; ++k) {
      largest = std::max(largest, std::fabs(features[k]));
      norm += static_cast<double>(features[k]) * features[k];
    }
    const float step = largest / kQuerySteps;
    for (int k = 0; k < dim; k += 2) {
      const auto round = [&](int j) {
        return j < dim && step > 0 ? static_cast<std::int32_t>(std::nearbyint(features[j] / step)) : 0;
      };
      steps[k / 2] = (round(k) & 0xffff) | static_cast<std::int32_t>(static_cast<std::uint32_t>(round(k + 1)) << 16);
    }
    return {step, static_cast<float>(std::sqrt(norm))};
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
  float largest_norm_ = 0;
  Array<std::int8_t> bytes_;
  Array<float> scale_, error_;
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
    const std::int64_t n_allowed = allowed ? std::count(allowed + 1, allowed + n_items_ + 1, true) : n_items_;
    const auto write = [&](std::int64_t row, TopList& list) {
      std::int64_t place = row * k;
      for (const Scored& entry : list.sorted()) indices[place] = entry.item, scores[place++] = entry.score;
      for (; place < (row + 1) * k; ++place)
        indices[place] = 0, scores[place] = -std::numeric_limits<float>::infinity();
    };
    if (n_allowed <= n_items_ / 8) return top_of_allowed(features, n, k, hidden, allowed, write);
    if (n <= kFewRows && n_items_ >= kManyItems && k <= n_items_ / 64 && bytes_are_safe(features, n)) {
      bool finite = true;
      for (std::int64_t row = 0; row < n; ++row) {
        const ItemSet gone = hidden.of(row, n_items_);
        TopList list(k);
        finite &= top_by_bytes(features + row * dim_, gone, allowed, list);
        write(row, list);
      }
      return finite;
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

  // Writes items item_of(0 .. count) as a panel; what is beyond them is zero.
  template <typename ItemOf>
  void pack_panel(int count, ItemOf&& item_of, float* panel) const {
    for (int c = 0; c < kPanelItems; ++c) {
      const float* item = c < count ? table_ + static_cast<std::ptrdiff_t>(item_of(c)) * dim_ : nullptr;
      for (int k = 0; k < dim_; ++k) panel[k * kPanelItems + c] = item ? item[k] : 0.0f;
    }
  }

  void pack_panels() {
    if (panels_.size()) return;
    Array<float> panels(static_cast<std::size_t>(n_panels_) * panel_size());
    pool_.run_ranges(n_panels_, [&](std::size_t begin, std::size_t end) {
      for (std::size_t panel = begin; panel < end; ++panel) {
        const int first = static_cast<int>(panel) * kPanelItems + 1;
        const int count = std::min(kPanelItems, n_items_ + 1 - first);
        pack_panel(count, [&](int c) { return first + c; }, &panels[panel * panel_size()]);
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
      int row = 0;
      const auto step = [&]<int Rows>() {
        score_panel<Rows>(features + static_cast<std::ptrdiff_t>(row) * dim_, dim_, panel_at(panel), scores);
        for (int r = 0; r < Rows; ++r) visit(row + r, panel, scores + r * kPanelItems);
        row += Rows;
      };
      while (rows - row >= kRankRows) step.template operator()<kRankRows>();
      while (rows - row >= 2) step.template operator()<2>();
      if (row < rows) step.template operator()<1>();
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
    std::vector<ItemSet> gone;
    std::vector<Rank> ranks;
    std::vector<TopList> tops(k ? rows : 0, TopList(k));
    for (std::int64_t row = begin; row < end; ++row) {
      gone.push_back(hidden.of(row, n_items_));
      ranks.push_back(start_rank(features + row * dim_, targets[row] - 1));
    }
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
    std::vector<ItemSet> gone;
    std::vector<TopList> tops(rows, TopList(k));
    for (std::int64_t row = begin; row < end; ++row) gone.push_back(hidden.of(row, n_items_));
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
      pack_panel(count, [&](int c) { return items[start + c]; }, panel.data());
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
    for (std::int32_t item = 1; item <= n_items_; ++item)
      if (allowed[item]) items.push_back(item);
    return for_row_blocks(n, [&](std::int64_t begin, std::int64_t end) {
      const int rows = static_cast<int>(end - begin);
      std::vector<ItemSet> gone;
      std::vector<TopList> tops(rows, TopList(k));
      for (std::int64_t row = begin; row < end; ++row) gone.push_back(hidden.of(row, n_items_));
      const bool finite = offer_items(features + begin * dim_, rows, items, gone.data(), tops.data());
      for (int row = 0; row < rows; ++row) write(begin + row, tops[row]);
      return finite;
    });
  }

  // Whether bounds by bytes hold for these features: no score can overflow, and nothing is NaN.
  bool bytes_are_safe(const float* features, std::int64_t n) {
    if (dim_ > 8192) return false;
    if (!bytes_.n_groups()) bytes_.pack(table_, n_items_, dim_);
    for (std::int64_t row = 0; row < n; ++row) {
      double norm = 0;
      for (int k = 0; k < dim_; ++k) norm += std::pow(static_cast<double>(features[row * dim_ + k]), 2);
      if (!(std::sqrt(norm) * bytes_.largest_norm() < FLT_MAX / 4) || !(norm < FLT_MAX)) return false;
    }
    return true;
  }

  // What one thread found in its share of the bytes: items whose upper bound reaches the k-th best lower bound so far.
  struct Shortlist {
    TopList lower;
    std::vector<Scored> items;  // with upper bounds
  };

  bool top_by_bytes(const float* features, const ItemSet& gone, const bool* allowed, TopList& list) {
    const int n_threads = std::clamp(n_items_ / kThreadItems, 1, pool_.size());
    std::vector<Shortlist> found(n_threads, {list, {}});
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
      for (const Scored& entry : found[t].lower.unordered()) found[0].lower.offer(entry);
    std::vector<std::int32_t> items;
    for (const Shortlist& part : found)
      for (const Scored& entry : part.items)
        if (entry.score >= found[0].lower.bar()) items.push_back(entry.item);
    return offer_items(features, 1, items, &gone, &list);
  }

  void collect(const float* features, int first, int last, const ItemSet& gone, const bool* allowed,
               Shortlist& found) const {
    bytes_.scan(features, dim_, first, last, [&](int group, Floats low, Floats high) __attribute__((always_inline)) {
      std::uint32_t bits = lanes_reaching(high, splat(found.lower.bar()));
      if (!bits) return;
      float lows[kLanes], highs[kLanes];
      store(lows, low), store(highs, high);
      for (; bits; bits &= bits - 1) {
        const int lane = std::countr_zero(bits), item = group * kLanes + lane + 1;
        if (item > n_items_ || (allowed && !allowed[item]) || gone.holds(item)) continue;
        found.items.push_back({highs[lane], item});
        found.lower.offer({lows[lane], item});
      }
    });
  }

  const float* table_;
  int n_items_, dim_, n_panels_;
  ThreadPool pool_;
  std::mutex mutex_;  // one call at a time
  Array<float> panels_;
  ByteTable bytes_;
};

}  // namespace sasrec
