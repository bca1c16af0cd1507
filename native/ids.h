// Ids of logs: how often each occurs, where each stands among all, and the order of events by small numbers.
//
// Sorting does the same (reading/id_counts.py, data/facts.py). A hash table takes a small part of the time, because the
// slots of the next ids are fetched from memory while one is looked at.
#pragma once

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <vector>

#include "memory.h"

namespace sasrec {

// Different ids with a number each: a hash table with linear probing, at most two thirds full.
class IdTable {
 public:
  std::int64_t size() const {
    const std::shared_lock reading(mutex_);
    return n_ids_;
  }
  std::int64_t nbytes() const {
    const std::shared_lock reading(mutex_);
    return static_cast<std::int64_t>(slots_.size() * sizeof(Slot));
  }

  // Adds to the numbers of n ids: counts, all of them positive, or 1 each where that is null.
  void count(const std::int64_t* ids, const std::int64_t* counts, std::int64_t n) {
    const std::unique_lock writing(mutex_);
    in_blocks(ids, n, [&](std::int64_t begin, std::int64_t end, const std::uint64_t* hashes) {
      make_room(end - begin);
      for (std::int64_t i = begin; i < end; ++i) {
        Slot& slot = find(ids[i], hashes[i - begin] >> shift_);
        if (is_free(slot)) slot.id = ids[i], ++n_ids_;
        slot.number += counts == nullptr ? 1 : counts[i];
      }
    });
  }

  // Gives each of n different ids its place among them. Throws std::invalid_argument where two are the same, or where
  // the table has ids.
  void number(const std::int64_t* ids, std::int64_t n) {
    const std::unique_lock writing(mutex_);
    if (n_ids_ != 0) throw std::invalid_argument("the table has ids already");
    make_room(n);
    in_blocks(ids, n, [&](std::int64_t begin, std::int64_t end, const std::uint64_t* hashes) {
      for (std::int64_t i = begin; i < end; ++i) {
        Slot& slot = find(ids[i], hashes[i - begin] >> shift_);
        if (!is_free(slot)) throw std::invalid_argument("ids must be different");
        slot = {ids[i], i + 1}, ++n_ids_;
      }
    });
  }

  // Where n ids stand that were numbered; returns whether all of them are here, and writes -1 for others.
  bool places(const std::int64_t* ids, std::int64_t n, std::int32_t* places) const {
    const std::shared_lock reading(mutex_);
    if (slots_.size() == 0) return std::fill(places, places + n, -1), n == 0;
    bool all = true;
    in_blocks(ids, n, [&](std::int64_t begin, std::int64_t end, const std::uint64_t* hashes) {
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t number = find(ids[i], hashes[i - begin] >> shift_).number;
        places[i] = static_cast<std::int32_t>(number - 1);
        all = all && number != 0;
      }
    });
    return all;
  }

  // All ids in ascending order with their numbers, n of each; the table is empty afterwards. Throws
  // std::invalid_argument where n is not its size.
  void take(std::int64_t* ids, std::int64_t* numbers, std::int64_t n) {
    const std::unique_lock writing(mutex_);
    if (n != n_ids_) throw std::invalid_argument("there must be room for all ids and no more");
    Slot* const end = std::remove_if(slots_.data(), slots_.data() + slots_.size(), is_free);
    std::sort(slots_.data(), end, [](const Slot& a, const Slot& b) { return a.id < b.id; });
    for (const Slot* slot = slots_.data(); slot != end; ++slot) *ids++ = slot->id, *numbers++ = slot->number;
    slots_ = {}, n_ids_ = 0;
  }

 private:
  struct Slot {
    std::int64_t id, number;  // 0 = it is free
  };
  static bool is_free(const Slot& slot) { return slot.number == 0; }
  static constexpr std::int64_t kBlock = 32;  // ids whose slots are fetched before the first of them is looked at

  // Bits that depend on all bits of an id; a slot is the highest of them. Source: MurmurHash3 (Appleby), fmix64.
  static std::uint64_t mixed(std::int64_t id) {
    auto bits = static_cast<std::uint64_t>(id);
    bits ^= bits >> 33, bits *= 0xff51afd7ed558ccdULL;
    bits ^= bits >> 33, bits *= 0xc4ceb9fe1a85ec53ULL;
    return bits ^ (bits >> 33);
  }

  // Calls f for blocks of ids with their hashes, once their slots are on their way.
  template <typename F>
  void in_blocks(const std::int64_t* ids, std::int64_t n, F&& f) const {
    std::uint64_t hashes[kBlock];
    for (std::int64_t begin = 0; begin < n; begin += kBlock) {
      const std::int64_t end = std::min(begin + kBlock, n);
      for (std::int64_t i = begin; i < end; ++i) {
        hashes[i - begin] = mixed(ids[i]);
        if (slots_.size() != 0) __builtin_prefetch(slots_.data() + (hashes[i - begin] >> shift_));
      }
      f(begin, end, hashes);
    }
  }

  // The slot of an id, or the free one where it would be; the search begins at `start`.
  template <typename Self>
  static auto& find_in(Self& slots, std::int64_t id, std::size_t start) {
    const std::size_t last = slots.size() - 1;
    while (!is_free(slots[start]) && slots[start].id != id) start = (start + 1) & last;
    return slots[start];
  }
  Slot& find(std::int64_t id, std::size_t start) { return find_in(slots_, id, start); }
  const Slot& find(std::int64_t id, std::size_t start) const { return find_in(slots_, id, start); }

  // Twice the slots, or as often twice as many, where so many further ids might not find one.
  void make_room(std::int64_t n) {
    const auto needed = 3 * static_cast<std::size_t>(n_ids_ + n);
    if (needed <= 2 * slots_.size()) return;
    int bits = slots_.size() == 0 ? 10 : 64 - shift_ + 1;
    while (needed > std::size_t{2} << bits) ++bits;
    Array<Slot> larger(std::size_t{1} << bits);
    shift_ = 64 - bits;
    for (const Slot* slot = slots_.data(); slot != slots_.data() + slots_.size(); ++slot)
      if (!is_free(*slot)) find_in(larger, slot->id, mixed(slot->id) >> shift_) = *slot;
    slots_ = std::move(larger);
  }

  mutable std::shared_mutex mutex_;
  Array<Slot> slots_;  // 2^(64 - shift_) of them, or none
  int shift_ = 0;
  std::int64_t n_ids_ = 0;
};

// The stable order of n keys in 0 .. n_keys - 1, and how many there are of each.
inline void order_of(const std::int32_t* keys, std::int64_t n, std::int64_t n_keys, std::int64_t* order,
                     std::int64_t* counts) {
  std::fill(counts, counts + n_keys, 0);
  for (std::int64_t i = 0; i < n; ++i) ++counts[keys[i]];
  std::vector<std::int64_t> next(static_cast<std::size_t>(n_keys));
  std::int64_t begin = 0;
  for (std::int64_t key = 0; key < n_keys; ++key) next[key] = begin, begin += counts[key];
  for (std::int64_t i = 0; i < n; ++i) order[next[keys[i]]++] = i;
}

}  // namespace sasrec
