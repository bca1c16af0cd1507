// Arrays on cache-line boundaries, filled with zeros.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace sasrec {

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

  // Everything is lost and zero afterwards.
  void resize(std::size_t size) {
    std::free(data_);
    data_ = nullptr;
    const std::size_t bytes = (size * sizeof(T) + 63) / 64 * 64;
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes ? bytes : 64));
    if (!data_) throw std::bad_alloc();
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
