// Items drawn at random that a user has not had: data/sampling.py's draws to the bit, in half of its time or less.
//
// NumPy looks at all draws of many steps at once and so reads everything several times. Here a user's items are marked
// in a table of bits (L1 or L2), their draws made and looked up, and the marks taken away again. Draws that were
// rejected are made again in rounds, as NumPy does; by then they are few, and a scan of the user's items finds them.
#pragma once

#include <cstdint>
#include <vector>

#include "items.h"

namespace sasrec {

// NumPy's SFC64 and its numbers below a bound. Sources: numpy/random/src/sfc64/sfc64.h and
// numpy/random/src/distributions/distributions.c (buffered_bounded_lemire_uint32) of NumPy 2.4; Lemire 2019.
class Sfc64 {
 public:
  explicit Sfc64(const std::uint64_t (&seed)[3]) : a_(seed[0]), b_(seed[1]), c_(seed[2]) {
    for (int i = 0; i < 12; ++i) next();
  }

  // Uniform in 0 .. bound - 1.
  std::uint32_t below(std::uint32_t bound) {
    std::uint64_t product = static_cast<std::uint64_t>(next_half()) * bound;
    if (static_cast<std::uint32_t>(product) < bound) {
      const std::uint32_t threshold = -bound % bound;
      while (static_cast<std::uint32_t>(product) < threshold) product = static_cast<std::uint64_t>(next_half()) * bound;
    }
    return static_cast<std::uint32_t>(product >> 32);
  }

 private:
  std::uint64_t next() {
    const std::uint64_t result = a_ + b_ + counter_++;
    a_ = b_ ^ (b_ >> 11);
    b_ = c_ + (c_ << 3);
    c_ = ((c_ << 24) | (c_ >> 40)) + result;
    return result;
  }

  // The low half of a number, then its high half.
  std::uint32_t next_half() {
    has_half_ = !has_half_;
    if (!has_half_) return half_;
    const std::uint64_t both = next();
    half_ = static_cast<std::uint32_t>(both >> 32);
    return static_cast<std::uint32_t>(both);
  }

  std::uint64_t a_, b_, c_, counter_ = 1;
  std::uint32_t half_ = 0;
  bool has_half_ = false;
};

// What rows have had: row r has items[starts[r] .. ends[r]).
struct SeenView {
  const std::int32_t* items;
  const std::int64_t *starts, *ends;
};

class UnseenDrawer {
 public:
  UnseenDrawer(SeenView seen, int n_items) : seen_(seen), n_items_(n_items), marks_(n_items / 64 + 1) {}

  // Draws of one step: `counts[r]` for each row from `first` up to, not including, `last`, written one after another.
  // Returns whether all were found within `rounds` draws each. Throws std::invalid_argument if a row has what is no
  // item.
  bool draw(Sfc64& stream, std::int64_t first, std::int64_t last, const std::int64_t* counts, int rounds,
            std::int32_t* out) {
    pending_.clear();
    std::int32_t* place = out;
    for (std::int64_t row = first; row < last; ++row) {
      check_items(seen_.items + seen_.starts[row], seen_.ends[row] - seen_.starts[row], n_items_);
      for_marks(row, [](std::uint64_t& word, std::uint64_t bit) { word |= bit; });
      for (std::int64_t i = 0; i < counts[row]; ++i, ++place) {
        const std::uint32_t item = stream.below(n_items_) + 1;
        *place = static_cast<std::int32_t>(item);
        if (marks_[item / 64] >> item % 64 & 1) pending_.push_back({row, place});
      }
      for_marks(row, [](std::uint64_t& word, std::uint64_t) { word = 0; });
    }
    for (int round = 1; round < rounds && !pending_.empty(); ++round) {
      std::size_t left = 0;
      for (const Pending p : pending_) {
        *p.place = static_cast<std::int32_t>(stream.below(n_items_) + 1);
        if (has(p.row, *p.place)) pending_[left++] = p;
      }
      pending_.resize(left);
    }
    return pending_.empty();
  }

 private:
  struct Pending {
    std::int64_t row;
    std::int32_t* place;
  };

  template <typename F>
  void for_marks(std::int64_t row, F&& f) {
    for (std::int64_t i = seen_.starts[row]; i < seen_.ends[row]; ++i) {
      const auto item = static_cast<std::uint32_t>(seen_.items[i]);
      f(marks_[item / 64], std::uint64_t{1} << item % 64);
    }
  }

  bool has(std::int64_t row, std::int32_t item) const {
    std::int32_t found = 0;  // as wide as items, and without leaving early: vectors of them are compared at once
    for (std::int64_t i = seen_.starts[row]; i < seen_.ends[row]; ++i) found |= seen_.items[i] == item ? 1 : 0;
    return found != 0;
  }

  SeenView seen_;
  int n_items_;
  std::vector<std::uint64_t> marks_;  // a bit for each item
  std::vector<Pending> pending_;
};

}  // namespace sasrec
