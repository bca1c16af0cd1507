// Arrays on cache-line boundaries, filled with zeros; large ones in large pages, where the system has them: rows of a
// table are read at random, and each page of 4 KiB has to be looked up.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sasrec {

inline constexpr std::size_t kLargePage = 2 << 20;

class OutOfMemory : public std::bad_alloc {
 public:
  const char* what() const noexcept override { return "there is not enough memory for an array of the compiled core"; }
};

template <typename T>
class Array {
 public:
  Array() = default;
  explicit Array(std::size_t size) { resize(size); }
  Array(Array&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Array& operator=(Array&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Array() { std::free(data_); }

  // Everything is lost and zero afterwards; empty if there is no memory.
  void resize(std::size_t size) {
    std::free(std::exchange(data_, nullptr));
    size_ = 0;
    if (size > (SIZE_MAX - 2 * kLargePage) / sizeof(T)) throw OutOfMemory();
    const std::size_t boundary = size * sizeof(T) >= 2 * kLargePage ? kLargePage : 64;
    const std::size_t bytes = std::max<std::size_t>((size * sizeof(T) + boundary - 1) / boundary * boundary, 64);
    data_ = static_cast<T*>(std::aligned_alloc(boundary, bytes));
    if (!data_) throw OutOfMemory();
#if defined(__linux__)
    if (boundary == kLargePage) ::madvise(static_cast<void*>(data_), bytes, MADV_HUGEPAGE);  // a wish, not more
#endif
    std::memset(static_cast<void*>(data_), 0, bytes);
    size_ = size;
  }
  void reserve(std::size_t size) {
    if (size > size_) resize(size);
  }
  void clear() { std::memset(static_cast<void*>(data_), 0, size_ * sizeof(T)); }

  T* data() { return data_; }
  const T* data() const { return data_; }
  std::size_t size() const { return size_; }
  T& operator[](std::size_t i) { return data_[i]; }
  const T& operator[](std::size_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace sasrec
