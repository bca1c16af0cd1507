// Expectations, which count and name what fails, and made-up numbers.
#pragma once

#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "../memory.h"
#include "../simd.h"

namespace sasrec::test {

// Relative errors that rounding explains: of products of operands, and of results that went through several of them.
inline constexpr double kProductTolerance = 2e-6;
inline constexpr double kTolerance = kDepth > 1 ? 2e-2 : 1e-5;

inline int n_checks = 0, n_failures = 0;

inline void expect(bool holds, const std::string& what) {
  ++n_checks;
  if (holds) return;
  ++n_failures;
  std::printf("FAILED %s\n", what.c_str());
}

// Compares arrays: the largest difference, in units of the largest expected value, or of `size` where that is larger.
class Comparison {
 public:
  Comparison(std::string what, double tolerance, double size = 0)
      : what_(std::move(what)), tolerance_(tolerance), size_(size) {}
  Comparison(const Comparison&) = delete;
  Comparison& operator=(const Comparison&) = delete;
  ~Comparison() {
    const double error = difference_ / std::max(size_, 1e-30);
    expect(finite_ && (difference_ == 0 || error <= tolerance_), what_ + ": relative error " +
                                                                     (finite_ ? std::to_string(error) : "not finite") +
                                                                     " is over " + std::to_string(tolerance_));
  }

  void add(double got, double expected) {
    difference_ = std::max(difference_, std::abs(got - expected));
    size_ = std::max(size_, std::abs(expected));
    finite_ = finite_ && std::isfinite(got);
  }

 private:
  std::string what_;
  double tolerance_, size_, difference_ = 0;
  bool finite_ = true;
};

class Random {
 public:
  explicit Random(unsigned seed) : bits_(seed) {}

  float uniform() { return static_cast<float>(bits_() / 2147483648.0 - 1.0); }  // in [-1, 1)
  int below(int n) { return static_cast<int>(bits_() % static_cast<unsigned>(n)); }
  std::uint64_t word() { return static_cast<std::uint64_t>(bits_()) << 32 | bits_(); }

 private:
  std::mt19937 bits_;
};

inline double value(float x) { return x; }
#if defined(SASREC_BF16)
inline double value(Operand x) {
  const std::uint32_t bits = static_cast<std::uint32_t>(x.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}
#endif

// One word of a stream by itself, beside simd.h's vectors of them.
inline std::uint32_t random_word(RandomKey key, std::uint32_t counter) {
  return random_words_of_products(key, counter * kCounterFactor);
}

inline Array<float> random_floats(std::size_t size, Random& random) {
  Array<float> result(size + kLanes);
  for (std::size_t i = 0; i < size; ++i) result[i] = random.uniform();
  return result;
}

inline Array<Operand> random_operands(std::size_t size, Random& random) {
  Array<Operand> result(size + kLanes);
  for (std::size_t i = 0; i < size; i += kLanes) {
    float parts[kLanes];
    for (float& part : parts) part = random.uniform();
    store_operand(&result[i], load(parts));
  }
  return result;
}

}  // namespace sasrec::test
