// Losses in which all positions are scored with the same items: cross-entropy over the whole catalogue, and losses with
// shared negatives. Scores exist a strip at a time: kScored items x the tokens of a chunk, in L1. A target does not
// count among the candidates: it stands beside them, whether it is one of them or not.
//
// Softmax goes over the items twice. The first time it keeps the largest score and the sum of exponentials of each
// token; the second time it computes the scores again (in float, where those of a chunk take no more than 16 MiB, they
// are kept: to write and read them costs half of what their products do), turns them into gradients G, and adds G^T E
// to the gradient of the features F and, a block of kBlock items at a time, G F to that of the items' rows E. Scores
// and G lie as (items, tokens): tokens fill the lanes, and nothing is summed across a vector. In bf16 it is E^T G, the
// transpose, that is added up: G is written as a Panel, too, and nothing of its size has to be transposed. Each thread
// adds up the gradients of all candidates over its own chunks; for a catalogue that leaves the L2 they pass through it
// once a chunk, against three or four products of every item with every token.
#pragma once

#include <vector>

#include "block.h"
#include "gemm.h"
#include "heads.h"
#include "threads.h"

namespace sasrec {

inline constexpr int kBlock = kDepth > 1 ? 128 : 64;
inline constexpr int kScored = kDepth > 1 ? kDepth : kBlock;
inline constexpr std::size_t kKeptScores = kDepth > 1 ? 0 : 1 << 22;  // of a chunk: 16 MiB

// Rows of a table in the order of the candidates, as operands of products.
class Candidates {
 public:
  // All items 1..n_items where `chosen` is empty, else the chosen ones, in ascending order, repeats allowed.
  void prepare(const float* table, int n_items, int width, std::vector<std::int32_t> chosen, ThreadPool& pool) {
    width_ = width;
    is_chosen_ = !chosen.empty();
    if (is_chosen_) {
      items_ = std::move(chosen);
      std::sort(items_.begin(), items_.end());
    } else if (size() != n_items || items_.front() != 1 || items_.back() != n_items) {
      items_.resize(n_items);
      for (int i = 0; i < n_items; ++i) items_[i] = i + 1;
    }
    rows_ = is_chosen_ ? nullptr : as_operands(table + width);
    if (!rows_) copy(table, pool);
  }

  int size() const { return static_cast<int>(items_.size()); }
  int padded_size() const { return round_up(size(), kBlock); }
  const std::int32_t* items() const { return items_.data(); }
  const Operand* rows(int first) const { return rows_ + static_cast<std::ptrdiff_t>(first) * width_; }

  // The kBlock candidates from `first` on, for E^T G or G^T E: in bf16 (width, kBlock), else as they are.
  const Operand* transposed(int first) const {
    return kDepth > 1 ? transposed_.data() + static_cast<std::ptrdiff_t>(first) * width_ : rows(first);
  }

  // Calls f(i) for those of the candidates that are the item.
  template <typename F>
  void for_hits(std::int32_t item, F&& f) const {
    if (!is_chosen_) return f(item - 1);
    for (auto it = std::lower_bound(items_.begin(), items_.end(), item); it != items_.end() && *it == item; ++it)
      f(static_cast<int>(it - items_.begin()));
  }

 private:
  void copy(const float* table, ThreadPool& pool) {
    const std::size_t values = static_cast<std::size_t>(padded_size()) * width_;
    copies_.reserve(values);
    if (kDepth > 1) transposed_.reserve(values);
    pool.run_ranges(padded_size() / kBlock, [&](std::size_t begin, std::size_t end) {
      for (std::size_t block = begin; block < end; ++block) copy_block(table, static_cast<int>(block) * kBlock);
    });
    rows_ = copies_.data();
  }

  void copy_block(const float* table, int first) {
    Operand* target = copies_.data() + static_cast<std::ptrdiff_t>(first) * width_;
    for (int r = 0; r < kBlock; ++r)
      for (int c = 0; c < width_; c += kLanes)
        store_operand(
            target + r * width_ + c,
            first + r < size() ? load(table + static_cast<std::ptrdiff_t>(items_[first + r]) * width_ + c) : Floats{});
#if defined(SASREC_BF16)
    for (int c = 0; c < width_; c += 32)
      transpose_columns(kBlock, target + c, width_,
                        transposed_.data() + static_cast<std::ptrdiff_t>(first) * width_ + c * kBlock, kBlock);
#endif
  }

  int width_ = 0;
  bool is_chosen_ = false;
  std::vector<std::int32_t> items_;
  const Operand* rows_ = nullptr;
  Array<Operand> copies_, transposed_;
};

// A candidate that does not compete at the tokens begin .. end of a chunk: it is their target, or their user had it.
struct HiddenCandidate {
  int candidate, begin, end;
};

// One thread's gradients of candidates, and scratch.
struct CandidateScratch {
  Array<float> gradients;                      // (padded candidates, width)
  Array<Operand> features, transposed, panel;  // (tokens, width), its transpose's panel, its panel
  Array<float> scores;                         // (kScored or all candidates, tokens), and then their gradients
  Array<Operand> weights, weights_panel;       // those as operands, (kBlock, tokens), and as a Panel
  Array<float> d_transposed;                   // (width, tokens): the transpose of the gradient of the features
  Array<float> target, largest, total;         // of each token: score, largest score, sum of exponentials
  Array<float> weight, scale;                  // how much it counts in the loss, 0 beyond the last, and in gradients
  std::vector<HiddenCandidate> hidden;         // by candidate
};

// The losses of one chunk's features.
class CandidateHead {
 public:
  CandidateHead(const Loss& loss, const Candidates& candidates, int width, int dim, CandidateScratch& scratch)
      : loss_(loss), candidates_(candidates), width_(width), depth_(round_up(dim, kDepthStep)),
        columns_(Columns::groups(1, dim, width)), s_(scratch) {}

  // As sampled_head, for the tokens of a chunk; gradients of candidates are added to the scratch's.
  double run(const Chunk& chunk, const Wanted& wanted, const float* features, const float* table, float* d_features,
             float* target_coefficients) {
    const int n = n_ = chunk.size();
    const std::ptrdiff_t* tokens = tokens_ = chunk.tokens.data();
    stride_ = round_up(n, kWidth), targets_ = wanted.targets;
    load_features(features);
    load_weights(wanted);
    find_hidden(chunk, wanted);
    const auto row = [&](int i) { return table + static_cast<std::ptrdiff_t>(targets_[tokens[i]]) * width_; };
    const auto at = [&](std::ptrdiff_t i) { return i * width_; };
    for (int i = 0; i < n; ++i) s_.target[i] = dot(features + at(tokens[i]), row(i), width_);
    if (kDepth > 1) {
      std::fill_n(s_.d_transposed.data(), static_cast<std::size_t>(width_) * stride_, 0.0f);
    } else {
      std::fill_n(d_features, at(n), 0.0f);
    }
    const double total = loss_.kind == LossKind::kBce ? logistic_loss(d_features) : softmax_loss(d_features);
#if defined(SASREC_BF16)
    for (int i = 0; i < n; i += 16)
      for (int c = 0; c < width_; c += 16)
        transpose_16x16(&s_.d_transposed[static_cast<std::size_t>(c) * stride_ + i], stride_, d_features + at(i) + c,
                        width_);
#endif
    for (int i = 0; i < n; ++i) {
      const float g = s_.target[i];
      for (int c = 0; c < width_; c += kLanes)
        store(d_features + at(i) + c, load(d_features + at(i) + c) + g * load(row(i) + c));
      target_coefficients[tokens[i]] = g;
    }
    return total;
  }

 private:
  void load_features(const float* features) {
    const std::size_t values = static_cast<std::size_t>(stride_) * width_;
    const std::size_t block = static_cast<std::size_t>(kBlock) * stride_, scored = kScored * stride_;
    const std::size_t all = static_cast<std::size_t>(candidates_.padded_size()) * stride_;
    keeps_ = all <= kKeptScores;
    s_.features.reserve(values), s_.panel.reserve(values);
    s_.transposed.reserve(static_cast<std::size_t>(panel_stride(stride_)) * width_);
    s_.scores.reserve(keeps_ ? all : scored);
    if (kDepth > 1) s_.weights.reserve(block), s_.weights_panel.reserve(block), s_.d_transposed.reserve(values);
    s_.target.reserve(stride_), s_.largest.reserve(stride_), s_.total.reserve(stride_);
    for (int r = 0; r < stride_; ++r) {
      Operand* row = s_.features.data() + static_cast<std::ptrdiff_t>(r) * width_;
      for (int c = 0; c < width_; c += kLanes)
        store_operand(row + c, r < n_ ? load(features + tokens_[r] * width_ + c) : Floats{});
    }
    transposed_ = pack_transposed(width_, stride_, s_.features.data(), width_, s_.transposed.data());
    panel_ = pack_rows(stride_, width_, s_.features.data(), width_, s_.panel.data());
  }

  void load_weights(const Wanted& wanted) {
    s_.weight.reserve(stride_), s_.scale.reserve(stride_);
    for (int i = 0; i < stride_; ++i) {
      s_.weight[i] = i < n_ ? wanted.weight(tokens_[i]) : 0.0f;
      s_.scale[i] = loss_.scale * s_.weight[i];
    }
  }

  // A target is hidden at its token; what a row had before its inputs at all of its tokens, and an input from its own
  // token on.
  void find_hidden(const Chunk& chunk, const Wanted& wanted) {
    const RaggedView* earlier = wanted.earlier;
    s_.hidden.clear();
    const auto add = [&](std::int32_t item, int from, int to) {
      candidates_.for_hits(item, [&](int c) { s_.hidden.push_back({c, from, to}); });
    };
    for (int i = 0; i < n_; ++i) add(targets_[tokens_[i]], i, i + 1);
    for (std::size_t s = 0; earlier && s < chunk.sequences.size(); ++s) {
      const int begin = chunk.sequences[s].start, end = begin + chunk.sequences[s].length;
      for (std::int64_t i = earlier->offsets[chunk.rows[s]]; i < earlier->offsets[chunk.rows[s] + 1]; ++i)
        add(earlier->values[i], begin, end);
      for (int token = begin; token < end; ++token) {
        const std::int32_t item = wanted.seen ? wanted.seen[tokens_[token]] : chunk.items[token];
        if (item > 0) add(item, token, end);
      }
    }
    std::sort(s_.hidden.begin(), s_.hidden.end(),
              [](const auto& a, const auto& b) { return a.candidate < b.candidate; });
  }

  // Calls f(first, rows) for the candidates first .. end, `size` at a time.
  template <typename F>
  static void for_parts(int first, int end, int size, F&& f) {
    for (; first < end; first += size) f(first, std::min(size, end - first));
  }

  // Where the scores of the candidates from `first` on lie, (rows, tokens).
  float* scores(int first) { return s_.scores.data() + (keeps_ ? static_cast<std::ptrdiff_t>(first) * stride_ : 0); }

  // Scores of up to kScored candidates; in bf16, where products go that deep, hidden ones up to kScored.
  void score(int first, int rows) {
    multiply(rows, {stride_}, depth_, candidates_.rows(first), width_, transposed_, scores(first), stride_);
    if (loss_.corrections) correct(first, rows);
    hide(first, rows);
    if (kDepth > 1) std::fill(scores(first) + rows * stride_, scores(first) + kScored * stride_, kHidden);
  }

  void hide(int first, int rows) {
    auto hidden = std::lower_bound(s_.hidden.begin(), s_.hidden.end(), first,
                                   [](const auto& entry, int candidate) { return entry.candidate < candidate; });
    for (; hidden != s_.hidden.end() && hidden->candidate < first + rows; ++hidden) {
      float* scores = this->scores(first) + static_cast<std::ptrdiff_t>(hidden->candidate - first) * stride_;
      std::fill(scores + hidden->begin, scores + hidden->end, kHidden);
    }
  }

  void correct(int first, int rows) {
    for (int r = 0; r < rows; ++r) {
      const float correction = loss_.corrections[candidates_.items()[first + r]];
      float* scores = this->scores(first) + static_cast<std::ptrdiff_t>(r) * stride_;
      for (int t = 0; t < stride_; t += kLanes) store(scores + t, load(scores + t) + correction);
    }
  }

  // Turns scores of candidates from `first` on, `offset` rows into a block, into gradients, f(score, t) of the tokens
  // from t on.
  template <typename F>
  void to_gradients(int first, int rows, int offset, F&& f) {
    for (int r = 0; r < (kDepth > 1 ? kScored : rows); r += kDepth > 1 ? 2 : 1) {
      float* at = scores(first) + static_cast<std::ptrdiff_t>(r) * stride_;
      for (int t = 0; t < stride_; t += kLanes) {
        if constexpr (kDepth > 1) {
          const Floats a = f(load(at + t), t), b = f(load(at + stride_ + t), t);
          Operand* row = &s_.weights[static_cast<std::size_t>(offset + r) * stride_ + t];
          const OperandPair both = round_pair(a, b);
          store_rows(row, row + stride_, both);
          store_pair(s_.weights_panel.data(), stride_, offset + r, t, both);
        } else {
          store(at + t, f(load(at + t), t));
        }
      }
    }
  }

  // From a block's gradients: those of the features and of the block's candidates.
  void backward(int first, int rows, float* d_features) {
    float* d_rows = s_.gradients.data() + static_cast<std::ptrdiff_t>(first) * width_;
#if defined(SASREC_BF16)
    multiply(rows, columns_, round_up(n_, kDepthStep), s_.weights.data(), stride_, panel_, d_rows, width_,
             {d_rows, width_});
    float* transposed = s_.d_transposed.data();
    multiply(depth_, {stride_}, round_up(rows, kDepthStep), candidates_.transposed(first), kBlock,
             {s_.weights_panel.data(), stride_}, transposed, stride_, {transposed, stride_});
    (void)d_features;  // it is written when all blocks are done
#else
    multiply(rows, columns_, n_, scores(first), stride_, panel_, d_rows, width_, {d_rows, width_});
    multiply_transposed(n_, columns_, rows, scores(first), stride_, {candidates_.transposed(first), width_}, d_features,
                        width_, Init{d_features, width_});
#endif
  }

  // Targets' scores become their gradients.
  double logistic_loss(float* d_features) {
    double total = 0;
    for_parts(0, candidates_.size(), kBlock, [&](int block, int in_block) {
      for_parts(block, block + in_block, kScored, [&](int first, int rows) {
        score(first, rows);
        Floats softplus{};
        to_gradients(first, rows, first - block, [&](Floats score, int t) {
          const SigmoidAndSoftplus s = sigmoid_and_softplus(score);
          softplus += s.softplus * load(&s_.weight[t]);
          return s.sigmoid * load(&s_.scale[t]);
        });
        total += sum(softplus);
      });
      backward(block, in_block, d_features);
    });
    return total + logistic(s_.target.data(), n_, true, loss_.positive_weight, loss_.scale, s_.weight.data());
  }

  double softmax_loss(float* d_features) {
    for (int i = 0; i < stride_; ++i) {
      s_.largest[i] = i < n_ ? s_.target[i] : kHidden;
      s_.total[i] = 0;
    }
    for_parts(0, candidates_.size(), kScored, [&](int first, int rows) {
      score(first, rows);
      for (int t = 0; t < stride_; t += kLanes) add_exponentials(scores(first) + t, rows, t);
    });
    double total = 0;
    std::fill_n(s_.total.data() + n_, stride_ - n_, 0.0f);
    for (int i = 0; i < n_; ++i) {  // s_.total becomes what turns an exponential into a gradient
      const float lead = s_.largest[i] - s_.target[i], others = s_.total[i];
      const float sum = std::exp(-lead) + others;
      s_.total[i] = s_.scale[i] / sum;
      total += s_.weight[i] * (std::log(sum) + lead);  // -log of the target's probability
      s_.target[i] = -others * s_.total[i];            // its probability less one would cancel
    }
    for_parts(0, candidates_.size(), kBlock, [&](int block, int in_block) {
      for_parts(block, block + in_block, kScored, [&](int first, int rows) {
        if (!keeps_) score(first, rows);
        to_gradients(first, rows, first - block, [&](Floats score, int t) {
          return exp2(score * kLog2E - load(&s_.largest[t]) * kLog2E) * load(&s_.total[t]);
        });
      });
      backward(block, in_block, d_features);
    });
    return total;
  }

  // Brings the running largest score and sum of exponentials of kLanes tokens, from t on, up to date with a strip.
  void add_exponentials(const float* scores, int rows, int t) {
    const Floats before = load(&s_.largest[t]);
    Floats largest = before;
    for (int r = 0; r < rows; ++r) largest = maximum(largest, load(scores + static_cast<std::ptrdiff_t>(r) * stride_));
    const Floats shift = largest * kLog2E;
    Floats total{};
    for (int r = 0; r < rows; ++r)
      total += exp2(load(scores + static_cast<std::ptrdiff_t>(r) * stride_) * kLog2E - shift);
    store(&s_.largest[t], largest);
    store(&s_.total[t], load(&s_.total[t]) * exp2(before * kLog2E - shift) + total);
  }

  const Loss& loss_;
  const Candidates& candidates_;
  int width_, depth_;
  Columns columns_;
  CandidateScratch& s_;
  int n_ = 0, stride_ = 0;
  bool keeps_ = false;  // whether the scores of all blocks are kept from the first pass to the second
  const std::ptrdiff_t* tokens_ = nullptr;
  const std::int32_t* targets_ = nullptr;
  Panel transposed_{}, panel_{};
};

}  // namespace sasrec
