// Adam. Every value of every table moves at every step, as torch's does, but a row that no gradient touches need not do
// so at once: of large tables it waits until it is read, and then takes the steps it missed one after another in
// registers, and its average with it. That is the same to the bit, and p, m and v go through memory once instead of
// once a step, which for tables beyond the cache is what Adam costs. Once a step would move values by less than they
// can tell apart, as it is after some 130 steps without a gradient, only the moments are multiplied: that, too, is the
// same to the bit. Lazy: it makes up for all missed steps at once, in closed form.
#pragma once

#include <algorithm>
#include <vector>

#include "simd.h"

namespace sasrec {

// While it lives, numbers below 1.2e-38 are 0 on this thread. Moments without gradients go through all of them, at a
// hundred cycles for each multiplication, and what they are there moves no value.
class TinyIsZero {
 public:
#if defined(__x86_64__)
  TinyIsZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }  // results, and operands
  ~TinyIsZero() { _mm_setcsr(before_); }
#elif defined(__aarch64__)
  TinyIsZero() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" ::"r"(before_ | std::uint64_t{1} << 24));
  }
  ~TinyIsZero() { asm volatile("msr fpcr, %0" ::"r"(before_)); }
#endif
  TinyIsZero(const TinyIsZero&) = delete;
  TinyIsZero& operator=(const TinyIsZero&) = delete;

 private:
#if defined(__x86_64__)
  unsigned before_;
#elif defined(__aarch64__)
  std::uint64_t before_;
#endif
};

struct Adam {
  float learning_rate, beta1, beta2;
  float weight_decay = 0;  // of the blocks' matrices, decoupled. Source: Loshchilov & Hutter 2019, algorithm 2
  float eps = 1e-8f;
};

// What a value's two moments are multiplied with.
struct Decay {
  float mean = 1, square = 1;
};

// Step t (from 1). Source: Kingma & Ba 2015, algorithm 1, in the order of torch.optim.Adam.
struct AdamStep {
  float step_size, beta1, beta2, inverse_correction2, eps;

  AdamStep(const Adam& adam, std::int64_t t) : beta1(adam.beta1), beta2(adam.beta2), eps(adam.eps) {
    const double correction1 = 1 - std::pow(static_cast<double>(adam.beta1), static_cast<double>(t));
    const double correction2 = 1 - std::pow(static_cast<double>(adam.beta2), static_cast<double>(t));
    step_size = static_cast<float>(adam.learning_rate / correction1);
    inverse_correction2 = static_cast<float>(1 / std::sqrt(correction2));
  }

  // Moves one vector of values, given its gradient; its moments are multiplied with `decay` before.
  [[gnu::always_inline]] void apply(float* p, float* m, float* v, Floats gradient, Decay decay = {}) const {
    store(p, load(p) - apply_to_moments(m, v, gradient, decay));
  }
  // The moments alone; returns how far the values are to move.
  [[gnu::always_inline]] Floats apply_to_moments(float* m, float* v, Floats gradient, Decay decay = {}) const {
    const Floats mean = load(m) * decay.mean * beta1 + gradient * (1 - beta1);
    const Floats square = load(v) * decay.square * beta2 + gradient * gradient * (1 - beta2);
    store(m, mean);
    store(v, square);
    return move(mean, square);
  }

  // What `apply` does for a gradient of zero, in registers.
  [[gnu::always_inline]] void apply_zero(Floats& value, Floats& mean, Floats& square) const {
    shrink(mean, square);
    value -= move(mean, square);
  }
  // What a gradient of zero does to the moments.
  [[gnu::always_inline]] void shrink(Floats& mean, Floats& square) const {
    mean *= beta1;
    square *= beta2;
  }

  // By how much a step moves values, given what the moments are after it.
  [[gnu::always_inline]] Floats move(Floats mean, Floats square) const {
    const Floats denominator = quick_square_root(square) * inverse_correction2 + eps;
    return step_size * mean * quick_reciprocal(denominator);
  }

  // Whether a value without gradients moves by this step no further than by the one before: as the root of `square`
  // shrinks by no more than sqrt(beta2), and eps not at all, it is so in both limits and therefore between them.
  bool is_calmer_than(const AdamStep& before) const {
    if (step_size == 0) return true;
    const double mean = static_cast<double>(step_size) / before.step_size * beta1;
    const double root = std::sqrt(static_cast<double>(beta2)) * inverse_correction2 / before.inverse_correction2;
    return mean <= 1 && mean <= root;  // false for what is not a number
  }
};

// A value of the average of weights, of which `rest` is the share that the weight replaces.
[[gnu::always_inline]] inline Floats averaged(Floats average, Floats weight, float rest) {
  return average + (weight - average) * rest;
}

// The last steps, for rows that have yet to take them, and the updates of the average after each of them.
class PastSteps {
 public:
  // Steps up to `step` were taken by all: the next one recorded is step + 1. The average of all stands at `step` or,
  // until it is updated, at the step before.
  void start_after(std::int64_t step) {
    base_ = step;
    steps_.clear();
    rests_.assign(1, 0.0f);
    calm_from_ = 0;
  }
  void record(const AdamStep& step) {
    if (!steps_.empty() && !step.is_calmer_than(steps_.back())) calm_from_ = steps_.size();
    steps_.push_back(step);
    rests_.push_back(0.0f);
  }
  // The average was updated after the last step.
  void record_average(float rest) { rests_.back() = rest; }
  bool empty() const { return steps_.empty(); }
  bool full() const { return steps_.size() >= kMost; }
  // Whether the average was updated after the last step.
  bool is_averaged() const { return rests_.back() != 0; }

  // A row that was last moved at step `from` takes the steps after it, with gradients of zero; so does its average,
  // null where there is none, which at first may stand a step behind.
  void take(std::int64_t from, bool is_behind, int width, float* p, float* m, float* v, float* average) const {
    const std::size_t k = from - base_;
    const float first = is_behind ? rests_[k] : 0;
    int c = 0;
    if (!average) {
      for (; c + 4 * kLanes <= width; c += 4 * kLanes) take<4>(k, p + c, m + c, v + c);
      for (; c < width; c += kLanes) take<1>(k, p + c, m + c, v + c);
    } else {
      for (; c + 4 * kLanes <= width; c += 4 * kLanes) take<4>(k, first, p + c, m + c, v + c, average + c);
      for (; c < width; c += kLanes) take<1>(k, first, p + c, m + c, v + c, average + c);
    }
  }

 private:
  static constexpr std::size_t kMost = 256;     // 5 KiB of constants
  static constexpr std::size_t kLookEvery = 8;  // steps between looks whether values still move
  static constexpr float kApart = 1 << 26;      // a value's last place is at least its 2^-24th: this is a quarter of it
  static constexpr std::uint32_t kAllLanes = static_cast<std::uint32_t>((std::uint64_t{1} << kLanes) - 1);

  // Whether step k and all after it leave these values as they are. Step k would move each by no more than a quarter of
  // what makes another float of it, and no later one moves it further; the rest of the quarter is for roundings.
  template <int N>
  [[gnu::always_inline]] bool are_still(std::size_t k, const Floats (&value)[N], const Floats (&mean)[N],
                                        const Floats (&square)[N]) const {
    if (k < calm_from_) return false;
    std::uint32_t still = kAllLanes;
    for (int i = 0; i < N; ++i) {
      Floats m = mean[i], v = square[i];
      steps_[k].shrink(m, v);
      still &= lanes_reaching(absolute(value[i]), absolute(steps_[k].move(m, v)) * kApart);
    }
    return still == kAllLanes;
  }

  template <int N>
  [[gnu::always_inline]] void take(std::size_t k, float* p, float* m, float* v) const {
    Floats value[N], mean[N], square[N];
    for (int i = 0; i < N; ++i)
      value[i] = load(p + i * kLanes), mean[i] = load(m + i * kLanes), square[i] = load(v + i * kLanes);
    for (std::size_t look = k; k < steps_.size(); ++k) {
      if (k == look) {
        if (are_still(k, value, mean, square)) break;
        look += kLookEvery;
      }
      for (int i = 0; i < N; ++i) steps_[k].apply_zero(value[i], mean[i], square[i]);
    }
    for (; k < steps_.size(); ++k)
      for (int i = 0; i < N; ++i) steps_[k].shrink(mean[i], square[i]);
    for (int i = 0; i < N; ++i)
      store(p + i * kLanes, value[i]), store(m + i * kLanes, mean[i]), store(v + i * kLanes, square[i]);
  }

  template <int N>
  [[gnu::always_inline]] void take(std::size_t k, float rest, float* p, float* m, float* v, float* average) const {
    Floats value[N], mean[N], square[N], slow[N];
    for (int i = 0; i < N; ++i) {
      value[i] = load(p + i * kLanes), mean[i] = load(m + i * kLanes), square[i] = load(v + i * kLanes);
      slow[i] = load(average + i * kLanes);
    }
    for (std::size_t look = k;; rest = rests_[++k]) {
      if (rest != 0)
        for (int i = 0; i < N; ++i) slow[i] = averaged(slow[i], value[i], rest);
      if (k == steps_.size()) break;
      if (k == look) {
        if (are_still(k, value, mean, square)) break;
        look += kLookEvery;
      }
      for (int i = 0; i < N; ++i) steps_[k].apply_zero(value[i], mean[i], square[i]);
    }
    while (k < steps_.size()) {
      for (int i = 0; i < N; ++i) steps_[k].shrink(mean[i], square[i]);
      rest = rests_[++k];
      if (rest != 0)
        for (int i = 0; i < N; ++i) slow[i] = averaged(slow[i], value[i], rest);
    }
    for (int i = 0; i < N; ++i) {
      store(p + i * kLanes, value[i]), store(m + i * kLanes, mean[i]), store(v + i * kLanes, square[i]);
      store(average + i * kLanes, slow[i]);
    }
  }

  std::int64_t base_ = 0;
  std::vector<AdamStep> steps_;
  std::size_t calm_from_ = 0;  // from this step on, each moves values without gradients no further than the one before
  std::vector<float> rests_{0.0f};  // of the average, after step base and each step since; 0 = it was not updated
};

// The steps that a row missed, in closed form. With zero gradients the first moment after j of them is beta1^j m and
// the second beta2^j v, so step s = from + j moves p by c(s) r^j m / sqrt(v), where r = beta1 / sqrt(beta2) and c(s) is
// the step size with both corrections. Their sum is one factor, found in a table. What this approximates: epsilon does
// not shrink with v in the missed steps.
class MissedSteps {
 public:
  // Steps up to `step` are not missed by anyone: the next one recorded is step + 1.
  void start_after(std::int64_t step) {
    base_ = step_ = step;
    sizes_.clear();
    complete_.clear();
    decays_.assign(1, Decay{});
    std::fill(recent_, recent_ + kWindow + 1, 0.0);
  }

  // Call once for each step, in order, always with the same betas and epsilon.
  void record(const Adam& adam, std::int64_t step) {
    eps_ = adam.eps;
    const double beta1 = adam.beta1, beta2 = adam.beta2;
    const double rate = beta1 / std::sqrt(beta2), t = static_cast<double>(step), n = static_cast<double>(step - base_);
    sizes_.push_back(adam.learning_rate * std::sqrt(1 - std::pow(beta2, t)) / (1 - std::pow(beta1, t)));
    decays_.push_back({static_cast<float>(std::pow(beta1, n)), static_cast<float>(std::pow(beta2, n))});
    step_ = step;
    const auto size = [&](std::int64_t missed) {  // of the step before the last `missed` ones
      const std::int64_t i = static_cast<std::int64_t>(sizes_.size()) - 1 - missed;
      return i < 0 ? 0.0 : sizes_[i];
    };
    for (int k = 0; k < kWindow; ++k) recent_[k + 1] = rate * (size(k) + recent_[k]);
    if (step_ - base_ >= kWindow) complete_.push_back(recent_[kWindow]);
  }

  std::int64_t base() const { return base_; }

  // Of moments that stand at step `from`, to stand at step `to`.
  Decay decay(std::int64_t from, std::int64_t to) const { return decays_[to - from]; }

  // How far a value moves that stands at step `from`, to stand at the last one recorded: a factor of m / (sqrt(v) +
  // eps), whose moments stand where the value does.
  float factor(std::int64_t from) const {
    const std::int64_t missed = step_ - from;
    return static_cast<float>(missed <= kWindow ? recent_[missed] : complete_[from - base_]);
  }

  // `decay` brings the moments to where the value stands.
  [[gnu::always_inline]] void move(float factor, Decay decay, float* p, const float* m, const float* v) const {
    const Floats mean = load(m) * decay.mean, square = load(v) * decay.square;
    const Floats denominator = quick_square_root(square) + eps_;
    store(p, load(p) - factor * mean * quick_reciprocal(denominator));
  }

 private:
  static constexpr int kWindow = 256;  // r^256 is 2e-11 at the usual betas: older steps would not move a float

  float eps_ = 1e-8f;
  std::int64_t base_ = 0, step_ = 0;
  std::vector<double> sizes_;           // c(s) of the steps after base
  double recent_[kWindow + 1] = {};     // factor of a row that missed the last k steps
  std::vector<double> complete_;        // factor of a row last moved at step base + i, once kWindow steps have passed
  std::vector<Decay> decays_{Decay{}};  // over so many steps
};

}  // namespace sasrec
