// Losses on the features of a chunk: scores, loss, the gradient of features, and for every score the coefficient with
// which the feature enters the gradient of the item's row. The rows themselves are added up later, item by item.
//
// Here are the losses of targets and negatives that are each position's own; candidates.h has those whose positions all
// look at the same items.
#pragma once

#include <algorithm>

#include "items.h"
#include "memory.h"
#include "simd.h"

namespace sasrec {

enum class LossKind { kBce, kSampledSoftmax, kCrossEntropy };

struct Loss {
  LossKind kind;
  float positive_weight;     // of the target's term of bce: beta for gbce, else 1
  const float* corrections;  // (n_items + 1,) added to the scores of sampled softmax's negatives; null for others
  float scale;               // of all gradients: 1 / the sum of the batch's weights
};

// What the positions of a batch are to tell apart.
struct Wanted {
  const std::int32_t* targets;  // (T,)
  // (T, n_negatives), or (n_negatives,) shared by all. Of cross-entropy: the items that compete; none = all.
  const std::int32_t* negatives;
  int n_negatives;
  bool shared;
  // (rows) items that each row had before its inputs; null = what a row had competes with its targets too. Only items
  // that all positions share can be left out: a position's own negatives are chosen outside.
  const RaggedView* earlier;
  // (T,) the input where it counts among what its row had, else 0; null = all inputs do. Read beside `earlier` only.
  const std::int32_t* seen = nullptr;
  const float* weights = nullptr;  // (T,) how much each position counts in the loss, from 0; null = all 1

  float weight(std::ptrdiff_t token) const { return weights ? weights[token] : 1.0f; }
};

// Where coefficients of item rows go.
struct Coefficients {
  float* targets;    // (T,)
  float* negatives;  // (T, n_negatives)
};

inline constexpr float kHidden = -1e30f;  // score of a negative that is the target: no loss, no gradient

// One thread's scratch.
struct HeadScratch {
  Array<float> positive, negative;                  // scores of a chunk, then their gradients
  Array<float> positive_weights, negative_weights;  // of its positions, and of each of their negatives
};

[[gnu::always_inline]] inline float dot(const float* a, const float* b, int width) {
  Floats total{};
  for (int c = 0; c < width; c += kLanes) total += load(a + c) * load(b + c);
  return sum(total);
}

// The dot products of pairs of rows, four at a time: their sums across vectors together take half of the time.
class Dots {
 public:
  explicit Dots(int width) : width_(width) {}
  ~Dots() {
    for (int i = 0; i < waiting_; ++i) *to_[i] = dot(left_[i], right_[i], width_);
  }

  // *to = left right, at the latest when this ends.
  [[gnu::always_inline]] void add(const float* left, const float* right, float* to) {
    left_[waiting_] = left, right_[waiting_] = right, to_[waiting_] = to;
    if (++waiting_ < 4) return;
    Floats totals[4]{};
    float dots[4];
    for (int c = 0; c < width_; c += kLanes)
      for (int i = 0; i < 4; ++i) totals[i] += load(left_[i] + c) * load(right_[i] + c);
    sums(totals, dots);
    for (int i = 0; i < 4; ++i) *to_[i] = dots[i];
    waiting_ = 0;
  }

 private:
  int width_, waiting_ = 0;
  const float *left_[4], *right_[4];
  float* to_[4];
};

// Turns scores into gradients of positive_weight * softplus(-s) (targets) or softplus(s) (negatives); returns the loss.
// Each score counts `weights` times; null = once.
inline double logistic(float* scores, int n, bool target, float weight, float scale, const float* weights) {
  double loss = 0;
  const float sign = target ? -1.0f : 1.0f;
  for (int i = 0; i < n; i += kLanes) {  // scores have room for whole vectors; what lies beyond n counts nothing
    const SigmoidAndSoftplus s = sigmoid_and_softplus(load(scores + i) * sign);
    const Floats own = weights ? load(weights + i) : Floats{} + 1.0f;
    store(scores + i, s.sigmoid * (sign * weight * scale) * own);
    float parts[kLanes];
    store(parts, s.softplus * weight * own);
    for (int k = 0; k < std::min(kLanes, n - i); ++k) loss += parts[k];
  }
  return loss;
}

// Turns the score of a target and those of its m negatives into gradients of -log softmax; returns the loss.
// The negatives' scores have room for a vector beyond m, which is overwritten with the next position's afterwards.
inline double softmax(float& positive, float* negatives, int m, float scale) {
  float largest_score = positive;
  for (int k = 0; k < m; ++k) largest_score = std::max(largest_score, negatives[k]);
  const auto exponential = [&](int k) {
    const Floats e = exp2((load(negatives + k) - largest_score) * kLog2E);
    return iota() < m - k ? e : Floats{};
  };
  Floats totals{};
  for (int k = 0; k < m; k += kLanes) totals += exponential(k);
  const float own = std::exp(positive - largest_score), others = sum(totals), total = own + others;
  const double loss = std::log(total) + largest_score - positive;
  for (int k = 0; k < m; k += kLanes) {
    float parts[kLanes];
    store(parts, exponential(k) * (scale / total));
    std::copy_n(parts, std::min(kLanes, m - k), negatives + k);
  }
  positive = -others / total * scale;  // own / total - 1 would cancel
  return loss;
}

// The weights of n positions with m negatives each, as `logistic` takes them.
struct ScoreWeights {
  const float *positive = nullptr, *negative = nullptr;

  ScoreWeights(const Wanted& wanted, int n, const std::ptrdiff_t* tokens, HeadScratch& scratch) {
    if (!wanted.weights) return;
    const int m = wanted.n_negatives;
    scratch.positive_weights.reserve(n + kLanes);
    scratch.negative_weights.reserve(static_cast<std::size_t>(n) * m + kLanes);
    for (int i = 0; i < n; ++i) {
      scratch.positive_weights[i] = wanted.weights[tokens[i]];
      std::fill_n(&scratch.negative_weights[static_cast<std::size_t>(i) * m], m, wanted.weights[tokens[i]]);
    }
    positive = scratch.positive_weights.data(), negative = scratch.negative_weights.data();
  }
};

// n tokens of the batch, whose features are rows tokens[i] of (T, width), each with a target and n_negatives negatives
// of its own, scored with rows of the table. d_features (n, width) is written; coefficient i of a target goes to
// targets[tokens[i]], that of negative k to negatives[tokens[i] * n_negatives + k]. Rows of the table are read twice,
// the second time from L1 or L2.
inline double sampled_head(const Loss& loss, const Wanted& wanted, int n, int width, const float* features,
                           const float* table, const std::ptrdiff_t* tokens, float* d_features,
                           const Coefficients& coefficients, HeadScratch& scratch) {
  const int m = wanted.n_negatives;
  scratch.positive.reserve(n + kLanes);
  scratch.negative.reserve(static_cast<std::size_t>(n) * m + kLanes);
  float *positive = scratch.positive.data(), *negative = scratch.negative.data();
  const auto row = [&](std::int32_t item) { return table + static_cast<std::ptrdiff_t>(item) * width; };
  {
    Dots dots(width);
    for (int i = 0; i < n; ++i) {
      const float* feature = features + tokens[i] * width;
      dots.add(feature, row(wanted.targets[tokens[i]]), positive + i);
      for (int k = 0; k < m; ++k) dots.add(feature, row(wanted.negatives[tokens[i] * m + k]), negative + i * m + k);
    }
  }
  for (int i = 0; i < n; ++i)
    for (int k = 0; k < m; ++k) {
      const std::int32_t item = wanted.negatives[tokens[i] * m + k];
      if (item == wanted.targets[tokens[i]]) {
        negative[i * m + k] = kHidden;
      } else if (loss.corrections) {
        negative[i * m + k] += loss.corrections[item];
      }
    }
  double total = 0;
  if (loss.kind == LossKind::kBce) {
    const ScoreWeights weights(wanted, n, tokens, scratch);
    total = logistic(positive, n, true, loss.positive_weight, loss.scale, weights.positive) +
            logistic(negative, n * m, false, 1.0f, loss.scale, weights.negative);
  } else {
    for (int i = 0; i < n; ++i) {
      const float weight = wanted.weight(tokens[i]);
      total += weight * softmax(positive[i], negative + i * m, m, loss.scale * weight);
    }
  }
  for (int i = 0; i < n; ++i) {
    coefficients.targets[tokens[i]] = positive[i];
    std::copy_n(negative + i * m, m, coefficients.negatives + tokens[i] * m);
    float* d_feature = d_features + static_cast<std::ptrdiff_t>(i) * width;
    const float* target = row(wanted.targets[tokens[i]]);
    const std::int32_t* items = wanted.negatives + tokens[i] * m;
    for (int c = 0; c < width; c += kLanes) {
      Floats total = positive[i] * load(target + c);
      for (int k = 0; k < m; ++k) total += negative[i * m + k] * load(row(items[k]) + c);
      store(d_feature + c, total);
    }
  }
  return total;
}

}  // namespace sasrec
