// Adam, dense: every value of every table moves at every step, as torch's does.
//
// p, m and v stream through once, a vector at a time; for tables beyond the cache that traffic is what it costs.
#pragma once

#include "simd.h"

namespace sasrec {

struct Adam {
  float learning_rate, beta1, beta2;
  float eps = 1e-8f;
};

// The constants of step t (from 1). Source: Kingma & Ba 2015, algorithm 1, in the order of torch.optim.Adam.
struct AdamStep {
  Floats step_size, beta1, beta2, rest1, rest2, inverse_correction2, eps;

  AdamStep(const Adam& adam, std::int64_t t) {
    const double correction1 = 1 - std::pow(static_cast<double>(adam.beta1), static_cast<double>(t));
    const double correction2 = 1 - std::pow(static_cast<double>(adam.beta2), static_cast<double>(t));
    step_size = splat(static_cast<float>(adam.learning_rate / correction1));
    inverse_correction2 = splat(static_cast<float>(1 / std::sqrt(correction2)));
    beta1 = splat(adam.beta1), beta2 = splat(adam.beta2);
    rest1 = splat(1 - adam.beta1), rest2 = splat(1 - adam.beta2);
    eps = splat(adam.eps);
  }

  // Moves one vector of values, given its gradient.
  [[gnu::always_inline]] void apply(float* p, float* m, float* v, Floats gradient) const {
    const Floats mean = load(m) * beta1 + gradient * rest1;
    const Floats square = load(v) * beta2 + gradient * gradient * rest2;
    store(m, mean);
    store(v, square);
    const Floats denominator = quick_square_root(square) * inverse_correction2 + eps;
    store(p, load(p) - step_size * mean * quick_reciprocal(denominator));
  }
};

}  // namespace sasrec
