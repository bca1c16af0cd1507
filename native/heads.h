// Losses on the features of a chunk: scores, loss, the gradient of features, and for every score the coefficient with
// which the feature enters the gradient of the item's row. The rows themselves are added up later, item by item.
#pragma once

#include <vector>

#include "memory.h"
#include "simd.h"

namespace sasrec {

// Binary cross-entropy with n_negatives negatives; the positive's term is weighted (1 = bce; beta = gbce).
struct SampledLoss {
  int n_negatives;
  float positive_weight;
  float scale;  // of all gradients: 1 / positions of the batch
};

// One thread's scratch.
struct HeadScratch {
  Array<float> positive, negative;  // scores of a chunk, then their gradients
};

[[gnu::always_inline]] inline float dot(const float* a, const float* b, int width) {
  Floats total{};
  for (int c = 0; c < width; c += kLanes) total += load(a + c) * load(b + c);
  return sum(total);
}

// Turns scores into gradients of positive_weight * softplus(-s) (targets) or softplus(s) (negatives); returns the loss.
inline double logistic(float* scores, int n, bool target, float weight, float scale) {
  double loss = 0;
  const float sign = target ? -1.0f : 1.0f;
  for (int i = 0; i < n; i += kLanes) {  // scores have room for whole vectors; what lies beyond n counts nothing
    const SigmoidAndSoftplus s = sigmoid_and_softplus(load(scores + i) * sign);
    store(scores + i, s.sigmoid * (sign * weight * scale));
    float parts[kLanes];
    store(parts, s.softplus * weight);
    for (int k = 0; k < std::min(kLanes, n - i); ++k) loss += parts[k];
  }
  return loss;
}

// Features (n, width), each with a target and n_negatives negatives, scored with rows of the table.
// d_features (n, width) is written; coefficient i of a target goes to target_gradients[tokens[i]], that of negative k to
// negative_gradients[tokens[i] * n_negatives + k]. Rows of the table are read twice, the second time from L1 or L2.
inline double sampled_head(const SampledLoss& loss, int n, int width, const float* features, const float* table,
                           const std::ptrdiff_t* tokens, const std::int32_t* targets, const std::int32_t* negatives,
                           float* d_features, float* target_gradients, float* negative_gradients, HeadScratch& scratch) {
  const int m = loss.n_negatives;
  scratch.positive.reserve(n + kLanes);
  scratch.negative.reserve(static_cast<std::size_t>(n) * m + kLanes);
  float *positive = scratch.positive.data(), *negative = scratch.negative.data();
  const auto row = [&](std::int32_t item) { return table + static_cast<std::ptrdiff_t>(item) * width; };
  for (int i = 0; i < n; ++i) {
    const float* feature = features + static_cast<std::ptrdiff_t>(i) * width;
    positive[i] = dot(feature, row(targets[tokens[i]]), width);
    for (int k = 0; k < m; ++k) negative[i * m + k] = dot(feature, row(negatives[tokens[i] * m + k]), width);
  }
  const double total = logistic(positive, n, true, loss.positive_weight, loss.scale) +
                       logistic(negative, n * m, false, 1.0f, loss.scale);
  for (int i = 0; i < n; ++i) {
    float* d_feature = d_features + static_cast<std::ptrdiff_t>(i) * width;
    const float* target = row(targets[tokens[i]]);
    for (int c = 0; c < width; c += kLanes) store(d_feature + c, positive[i] * load(target + c));
    target_gradients[tokens[i]] = positive[i];
    for (int k = 0; k < m; ++k) {
      const float g = negative[i * m + k];
      const float* item = row(negatives[tokens[i] * m + k]);
      for (int c = 0; c < width; c += kLanes) store(d_feature + c, load(d_feature + c) + g * load(item + c));
      negative_gradients[tokens[i] * m + k] = g;
    }
  }
  return total;
}

}  // namespace sasrec
