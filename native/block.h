// The four blocks on the tokens of a chunk, forward and backward. How a block is wired is model.py's; here is what it
// costs: every matrix is multiplied once with all tokens of the chunk, and all that the backward pass reads again was
// written by the same core a moment ago.
//
// Shapes: N tokens, W width, A attention width, F feed-forward width, all padded. Float residuals, Operand products.
#pragma once

#include "attention.h"
#include "memory.h"
#include "model.h"
#include "norm.h"

namespace sasrec {

// Sites of dropout: numbers that key the random streams. A block has kSitesPerBlock of them.
inline constexpr std::uint64_t kEmbeddingSite = 0;
inline constexpr std::uint64_t kSitesPerBlock = 1024;
inline constexpr std::uint64_t kBranchSite = 0, kHiddenSite = 1, kOutputSite = 2, kAttentionSite = 16;  // + head

constexpr std::uint64_t site_of(int block, std::uint64_t site) { return (block + 1) * kSitesPerBlock + site; }

// Sequences whose tokens lie one after another, worked on from the embedding to the loss and back by one thread.
struct Chunk {
  std::vector<Segment> sequences;            // each sequence
  std::vector<std::int64_t> rows;            // of the batch, of each sequence
  std::vector<Segment> segments;             // what attention works on: short sequences share one
  std::vector<std::uint64_t> sequence_keys;  // of the random streams
  std::vector<TokenPlace> places;            // of each token
  std::vector<int> items, positions;         // of each token
  std::vector<std::ptrdiff_t> tokens;        // of the batch; empty when encoding

  int size() const { return static_cast<int>(items.size()); }

  void clear() {  // keeps its memory
    sequences.clear(), rows.clear(), segments.clear(), sequence_keys.clear();
    places.clear(), items.clear(), positions.clear(), tokens.clear();
  }
};

// What the backward pass of one block reads.
struct BlockState {
  NormState attention_norm, ffn_norm;
  Operand *query_input, *context;                     // (N, W): what queries, and keys and values, are made of
  Operand *query, *key_value;                         // (N, A), (N, 2 A)
  Operand* mixed;                                     // (N, A)
  float *largest, *inverse;                           // (heads, N)
  Operand *ffn_input, *hidden;                        // (N, W), (N, F)
  Operand *stream, *middle;                           // (N, W): LiGR's residual stream, which its gates read
  float *attended, *attention_gate, *fed, *ffn_gate;  // (N, W): LiGR's branches and gates
  float *gate, *up;                                   // (N, F): LiGR's SwiGLU before the product
};

// One thread's activations and scratch, for chunks of up to `capacity` tokens and sequences of up to max_seq_len.
class Workspace {
 public:
  Workspace(const ModelShape& shape, int capacity) : capacity(round_up(capacity, 32) + 32) {
    const std::size_t n = this->capacity, w = shape.width(), a = shape.attention_width(), f = shape.ffn_width();
    const std::size_t widest = std::max({w, 2 * a, f});
    const bool gated = shape.block == BlockKind::kLiGR;
    x = floats(n * w), y = floats(n * w), dx = floats(n * w), dy = floats(n * w), t = floats(n * widest);
    d_hidden = floats(gated ? n * f : 0);
    features = floats(n * w);
    final_norm = {floats(n * w), floats(n)};
    for (int i = 0; i < shape.n_blocks; ++i) {
      BlockState s{};
      s.attention_norm = {floats(n * w), floats(n)};
      s.ffn_norm = {floats(n * w), floats(n)};
      s.context = operands(n * w);
      s.query_input = shape.block == BlockKind::kSASRec ? operands(n * w) : s.context;
      s.query = operands(n * a), s.key_value = operands(n * 2 * a), s.mixed = operands(n * a);
      s.largest = floats(n * shape.n_heads), s.inverse = floats(n * shape.n_heads);
      s.ffn_input = operands(n * w), s.hidden = operands(n * f);
      if (gated) {
        s.stream = operands(n * w), s.middle = operands(n * w);
        s.attended = floats(n * w), s.attention_gate = floats(n * w), s.fed = floats(n * w), s.ffn_gate = floats(n * w);
        s.gate = floats(n * f), s.up = floats(n * f);
      }
      blocks.push_back(s);
    }
    gradient = operands(n * widest), d_query = operands(n * a), d_key_value = operands(n * 2 * a);
    second_gradient = operands(gated ? n * f : 0);
    outer = operands((n + 32) * (widest + 16));
    const std::size_t length = round_up(shape.max_seq_len, 32) + kStrip + 32, head = shape.head_width();
    attention.keys_transposed = operands(head * length), attention.values_transposed = operands(head * length);
    attention.rows = operands(head * length), attention.query_rows = operands(head * (kPanel + 32));
    attention.scores = floats(kStrip * length), attention.weight_gradients = floats(kStrip * length);
    attention.weights = operands((kPanel + kStrip) * length);
    attention.score_gradients = operands((kPanel + kStrip) * length);
    attention.key_gradients = floats(head * length), attention.value_gradients = floats(head * length);
    attention.strip = floats(kStrip * head), attention.transposed = operands(16 * (kPanel + 32));
  }

  int capacity;
  float *x, *y, *dx, *dy;  // (N, W): residual streams and their gradients
  float* t;                // (N, widest)
  float* d_hidden;         // (N, F): LiGR only
  float* features;         // (N, W): after the final norm
  NormState final_norm;
  std::vector<BlockState> blocks;
  Operand *gradient, *second_gradient, *d_query, *d_key_value;
  Operand* outer;  // panels of weight gradients
  AttentionScratch attention{};

 private:
  float* floats(std::size_t n) { return static_cast<float*>(take(n * sizeof(float))); }
  Operand* operands(std::size_t n) { return static_cast<Operand*>(take(n * sizeof(Operand))); }
  void* take(std::size_t bytes) {
    arrays_.emplace_back(bytes + 64);
    return arrays_.back().data();
  }
  std::vector<Array<char>> arrays_;
};

// Applies f(offset, dropout factor) to every vector of the rows of a chunk at a site; the factor is 1 without dropout.
template <typename F>
[[gnu::always_inline]] inline void for_dropped(const Chunk& chunk, const Dropout& dropout, std::uint64_t step,
                                               std::uint64_t site, int width, F&& f) {
  if (!dropout) {
    const std::ptrdiff_t size = static_cast<std::ptrdiff_t>(chunk.size()) * width;
    for (std::ptrdiff_t i = 0; i < size; i += kLanes) f(i, splat(1.0f));
    return;
  }
  const int words = dropout_words(width);
  for (std::size_t s = 0; s < chunk.sequences.size(); ++s) {
    const RandomKey key = random_key(step, chunk.sequence_keys[s], site);
    const Segment sequence = chunk.sequences[s];
    for (int j = 0; j < sequence.length; ++j) {
      const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(sequence.start + j) * width;
      const std::uint32_t first_word = static_cast<std::uint32_t>(j) * words;
      const Ints lanes = iota();
      int c = 0;
      for (; c + 32 <= width; c += 32) {  // a word decides for two values 16 columns apart
        for (int i = 0; i < 16; i += kLanes) {
          const Words random = random_words(key, reinterpret_cast<Words>(lanes) + (first_word + c / 2 + i));
          f(row + c + i, dropout.factor_low(random));
          f(row + c + 16 + i, dropout.factor_high(random));
        }
      }
      for (; c < width; c += kLanes) f(row + c, dropout_factor(dropout, key, first_word, c));
    }
  }
}

// One chunk's way through the network. Gradients of weights are added to `gradients`, laid out as `weights`.
class Network {
 public:
  Network(const ModelShape& shape, const Layout& layout, const float* mask, const float* weights, const Operand* panels,
          Workspace& workspace)
      : shape_(shape), layout_(layout), mask_(mask), weights_(weights), panels_(panels), w_(workspace),
        attention_shape_{shape.n_heads, shape.head_width(), kDepth > 1 ? shape.head_width() : shape.head_dim(),
                         shape.max_seq_len, 1.0f / std::sqrt(static_cast<float>(shape.head_dim()))} {}

  // Embeddings (items' table of rows of width W) to features, keeping what the backward pass needs.
  void forward(const Chunk& chunk, const float* table, Dropout dropout, std::uint64_t step) {
    chunk_ = &chunk, dropout_ = dropout, step_ = step, n_ = chunk.size();
    embed(table);
    for (int i = 0; i < shape_.n_blocks; ++i) block_forward(i);
    finish(w_.x, n_);
  }

  // Features of the last token of each sequence, (sequences, W): the last block computes only these.
  void forward_last(const Chunk& chunk, const float* table) {
    chunk_ = &chunk, dropout_ = Dropout(0), step_ = 0, n_ = chunk.size();
    embed(table);
    for (int i = 0; i + 1 < shape_.n_blocks; ++i) block_forward(i);
    if (shape_.n_blocks) {
      last_block_forward(shape_.n_blocks - 1);
    } else {
      gather_last(w_.x, w_.y);
      std::swap(w_.x, w_.y);
    }
    finish(w_.x, static_cast<int>(chunk.sequences.size()));
  }

  // From the gradient of the features in workspace.dy to that of the embedding's rows, before scaling, in workspace.dx.
  void backward(float* gradients) {
    gradients_ = gradients;
    if (shape_.block == BlockKind::kLiGR) {
      std::swap(w_.dx, w_.dy);
    } else {
      norm_backward(row_shape(n_), w_.dy, weights_ + layout_.final_norm.scale, w_.final_norm,
                    gradients + layout_.final_norm.scale, gradients + layout_.final_norm.shift, w_.dx, false);
    }
    for (int i = shape_.n_blocks - 1; i >= 0; --i) block_backward(i);
    for_dropped(*chunk_, dropout_, step_, kEmbeddingSite, width(),
                [&](std::ptrdiff_t i, Floats factor) { store(w_.dx + i, load(w_.dx + i) * factor); });
    for (int r = 0; r < n_; ++r) {
      float* position = gradients + layout_.position + static_cast<std::ptrdiff_t>(chunk_->positions[r]) * width();
      const float* row = w_.dx + static_cast<std::ptrdiff_t>(r) * width();
      for (int c = 0; c < width(); c += kLanes) store(position + c, load(position + c) + load(row + c));
    }
  }

 private:
  int width() const { return shape_.width(); }
  RowShape row_shape(int rows) const { return {rows, width(), shape_.dim, mask_}; }
  NormWeights norm_weights(Norm norm) const { return {weights_ + norm.scale, weights_ + norm.shift}; }
  AttentionRows attention_rows(const BlockState& s) const {
    return {s.query, s.key_value, s.mixed, s.largest, s.inverse, w_.capacity};
  }
  AttentionDropout attention_dropout(int block) const {
    return {dropout_, step_, chunk_->sequence_keys.data(), site_of(block, kAttentionSite)};
  }

  void embed(const float* table) {
    const Floats scale = splat(std::sqrt(static_cast<float>(shape_.dim)));
    for (int r = 0; r < n_; ++r) {
      const float* item = table + static_cast<std::ptrdiff_t>(chunk_->items[r]) * width();
      const float* position = weights_ + layout_.position + static_cast<std::ptrdiff_t>(chunk_->positions[r]) * width();
      float* row = w_.x + static_cast<std::ptrdiff_t>(r) * width();
      for (int c = 0; c < width(); c += kLanes) store(row + c, load(item + c) * scale + load(position + c));
    }
    if (dropout_)
      for_dropped(*chunk_, dropout_, step_, kEmbeddingSite, width(),
                  [&](std::ptrdiff_t i, Floats factor) { store(w_.x + i, load(w_.x + i) * factor); });
  }

  void finish(const float* x, int rows) {
    if (shape_.block == BlockKind::kLiGR) {
      std::memcpy(w_.features, x, sizeof(float) * static_cast<std::size_t>(rows) * width());
    } else {
      norm_forward(row_shape(rows), x, nullptr, norm_weights(layout_.final_norm), shape_.eps, w_.final_norm, nullptr,
                   w_.features, nullptr);
    }
  }

  // out (rows, linear.out) = x W + bias
  void apply(const Linear& linear, int rows, const Operand* x, float* out) const {
    multiply(rows, linear.out, linear.in_used, x, linear.in, {panels_ + linear.panels, linear.out}, out, linear.out,
             {weights_ + linear.bias, 0});
  }

  // The gradients of W and of the bias; dx (rows, linear.in) (+)= dy W^T unless null.
  void apply_backward(const Linear& linear, const Operand* x, const Operand* dy, float* dx, bool accumulate) {
    accumulate_outer(n_, linear.in_used, linear.out, x, linear.in, dy, linear.out, gradients_ + linear.weight,
                     linear.out, w_.outer);
    float* bias = gradients_ + linear.bias;
    for (int c = 0; c < linear.out; c += kLanes) {
      Floats total{};
      for (int r = 0; r < n_; ++r) total += load_operand(dy + static_cast<std::ptrdiff_t>(r) * linear.out + c);
      store(bias + c, load(bias + c) + total);
    }
    if (!dx) return;
    const Operand* transposed = panels_ + linear.panels + static_cast<std::size_t>(linear.in) * linear.out;
    multiply(n_, linear.in, linear.out_used, dy, linear.out, {transposed, linear.in}, dx, linear.in,
             accumulate ? Init{dx, linear.in} : Init{});
  }

  void to_operands(const float* from, Operand* to, std::ptrdiff_t size) const {
    for (std::ptrdiff_t i = 0; i < size; i += kLanes) store_operand(to + i, load(from + i));
  }

  // Attention of the block: state.query_input and context to w_.t (rows, W), output projection included.
  void attend(int block, BlockState& s) {
    const BlockWeights& b = layout_.blocks[block];
    project(b.query, n_, s.query_input, s.query);
    project(b.key_value, n_, s.context, s.key_value);
    for (const Segment segment : chunk_->segments)
      attention_forward(attention_shape_, segment, chunk_->places.data(), attention_dropout(block), attention_rows(s),
                        w_.attention);
    apply(b.output, n_, s.mixed, w_.t);
  }

  void project(const Linear& linear, int rows, const Operand* x, Operand* out) const {
#if defined(SASREC_BF16)
    apply(linear, rows, x, w_.t);
    to_operands(w_.t, out, static_cast<std::ptrdiff_t>(rows) * linear.out);
#else
    apply(linear, rows, x, out);
#endif
  }

  // Gradient of attend's output in w_.dy: d_query_input (+)= and d_context (+)= (one and the same, or two).
  void attend_backward(int block, BlockState& s, const float* d_attended, float* d_query_input, bool accumulate_query,
                       float* d_context, bool accumulate_context) {
    const BlockWeights& b = layout_.blocks[block];
    to_operands(d_attended, w_.gradient, static_cast<std::ptrdiff_t>(n_) * width());
    apply_backward(b.output, s.mixed, w_.gradient, w_.t, false);
    to_operands(w_.t, w_.gradient, static_cast<std::ptrdiff_t>(n_) * shape_.attention_width());
    for (const Segment segment : chunk_->segments)
      attention_backward(attention_shape_, segment, chunk_->places.data(), attention_dropout(block), attention_rows(s),
                         w_.gradient, w_.d_query, w_.d_key_value, w_.attention);
    apply_backward(b.query, s.query_input, w_.d_query, d_query_input, accumulate_query);
    apply_backward(b.key_value, s.context, w_.d_key_value, d_context, accumulate_context);
  }

  // Feed-forward of s.ffn_input (rows, W) into w_.t, before the last dropout.
  void feed_forward(int block, int rows, BlockState& s) {
    const BlockWeights& b = layout_.blocks[block];
    const int f = shape_.ffn_width();
    apply(b.up, rows, s.ffn_input, w_.t);
    const bool relu = shape_.relu;
    const auto activate = [&](std::ptrdiff_t i, Floats factor) {
      const Floats v = load(w_.t + i);
      store_operand(s.hidden + i, (relu ? maximum(v, Floats{}) : v) * factor);
    };
    if (dropout_) {
      for_dropped(*chunk_, dropout_, step_, site_of(block, kHiddenSite), f, activate);
    } else {
      for (std::ptrdiff_t i = 0; i < static_cast<std::ptrdiff_t>(rows) * f; i += kLanes) activate(i, splat(1.0f));
    }
    apply(b.down, rows, s.hidden, w_.t);
  }

  // d_input (+)= for the gradient d_fed of the feed-forward's output after dropout. Hidden values that were dropped or
  // cut off by ReLU are zero, which is all that needs to be known of them.
  void feed_backward(int block, BlockState& s, const float* d_fed, float* d_input, bool accumulate) {
    const BlockWeights& b = layout_.blocks[block];
    const std::ptrdiff_t hidden = static_cast<std::ptrdiff_t>(n_) * shape_.ffn_width();
    for_dropped(*chunk_, dropout_, step_, site_of(block, kOutputSite), width(),
                [&](std::ptrdiff_t i, Floats factor) { store_operand(w_.gradient + i, load(d_fed + i) * factor); });
    apply_backward(b.down, s.hidden, w_.gradient, w_.t, false);
    const Floats scale = splat(dropout_.scale);
    for (std::ptrdiff_t i = 0; i < hidden; i += kLanes) {
      const Ints alive = load_operand(s.hidden + i) != 0.0f;
      store_operand(w_.gradient + i, keep(alive, load(w_.t + i) * scale));
    }
    apply_backward(b.up, s.ffn_input, w_.gradient, d_input, accumulate);
  }

  // sum = base + dropout(w_.t) at the block's output site.
  void add_fed(int block, const float* base, float* sum) const {
    for_dropped(*chunk_, dropout_, step_, site_of(block, kOutputSite), width(),
                [&](std::ptrdiff_t i, Floats factor) { store(sum + i, load(base + i) + load(w_.t + i) * factor); });
  }

  // x in w_.x becomes the block's output in w_.x.
  void block_forward(int i) {
    const BlockWeights& b = layout_.blocks[i];
    BlockState& s = w_.blocks[i];
    const RowShape rows = row_shape(n_);
    const std::ptrdiff_t size = static_cast<std::ptrdiff_t>(n_) * width();
    const NormWeights attention_norm = norm_weights(b.attention_norm), ffn_norm = norm_weights(b.ffn_norm);
    switch (shape_.block) {
      case BlockKind::kSASRec:  // q = LN(x); h = LN(q + attention(q, x, x)); x = h + FFN(h)
        to_operands(w_.x, s.context, size);
        norm_forward(rows, w_.x, nullptr, attention_norm, shape_.eps, s.attention_norm, nullptr, w_.y, s.query_input);
        attend(i, s);
        norm_forward(rows, w_.y, w_.t, ffn_norm, shape_.eps, s.ffn_norm, nullptr, w_.y, s.ffn_input);
        feed_forward(i, n_, s);
        add_fed(i, w_.y, w_.x);
        break;
      case BlockKind::kPostNorm:  // h = LN(x + attention(x, x, x)); x = LN(h + FFN(h))
        to_operands(w_.x, s.context, size);
        attend(i, s);
        norm_forward(rows, w_.x, w_.t, attention_norm, shape_.eps, s.attention_norm, nullptr, w_.y, s.ffn_input);
        feed_forward(i, n_, s);
        add_fed(i, w_.y, w_.y);
        norm_forward(rows, w_.y, nullptr, ffn_norm, shape_.eps, s.ffn_norm, nullptr, w_.x, nullptr);
        break;
      case BlockKind::kPreNorm:  // h = LN(x); x = x + attention(h, h, h); x = x + FFN(LN(x))
        norm_forward(rows, w_.x, nullptr, attention_norm, shape_.eps, s.attention_norm, nullptr, nullptr, s.context);
        attend(i, s);
        norm_forward(rows, w_.x, w_.t, ffn_norm, shape_.eps, s.ffn_norm, w_.y, nullptr, s.ffn_input);
        feed_forward(i, n_, s);
        add_fed(i, w_.y, w_.x);
        break;
      case BlockKind::kLiGR: gated_forward(i, n_, s); break;
    }
  }

  // The gradient of the block's output in w_.dx becomes that of its input in w_.dx.
  void block_backward(int i) {
    const BlockWeights& b = layout_.blocks[i];
    BlockState& s = w_.blocks[i];
    const auto through = [&](Norm norm, const NormState& state, const float* dy, float* dx, bool accumulate) {
      norm_backward(row_shape(n_), dy, weights_ + norm.scale, state, gradients_ + norm.scale, gradients_ + norm.shift,
                    dx, accumulate);
    };
    switch (shape_.block) {
      case BlockKind::kSASRec:
        feed_backward(i, s, w_.dx, w_.dx, true);                  // dx: of h
        through(b.ffn_norm, s.ffn_norm, w_.dx, w_.dy, false);     // dy: of q + attention
        attend_backward(i, s, w_.dy, w_.dy, true, w_.dx, false);  // dy: of q; dx: of the context
        through(b.attention_norm, s.attention_norm, w_.dy, w_.dx, true);
        break;
      case BlockKind::kPostNorm:
        through(b.ffn_norm, s.ffn_norm, w_.dx, w_.dy, false);              // dy: of h + FFN
        feed_backward(i, s, w_.dy, w_.dy, true);                           // dy: of h
        through(b.attention_norm, s.attention_norm, w_.dy, w_.dx, false);  // dx: of x + attention
        attend_backward(i, s, w_.dx, w_.dx, true, w_.dx, true);
        break;
      case BlockKind::kPreNorm:
        feed_backward(i, s, w_.dx, w_.dy, false);                 // dy: of LN(x + attention)
        through(b.ffn_norm, s.ffn_norm, w_.dy, w_.dx, true);      // dx: of x + attention
        attend_backward(i, s, w_.dx, w_.dy, false, w_.dy, true);  // dy: of LN(x)
        through(b.attention_norm, s.attention_norm, w_.dy, w_.dx, true);
        break;
      case BlockKind::kLiGR: gated_backward(i, s); break;
    }
  }

  // x = x + gate(x) dropout(attention(LN(x))); x = x + gate(x) dropout(SwiGLU(LN(x))), on the first `rows` rows of
  // w_.x.
  void gated_forward(int i, int rows, BlockState& s) {
    const BlockWeights& b = layout_.blocks[i];
    norm_forward(row_shape(rows), w_.x, nullptr, norm_weights(b.attention_norm), shape_.eps, s.attention_norm, nullptr,
                 nullptr, s.context);
    attend(i, s);
    gated_rest(i, rows, s);
  }

  // From attention's output in w_.t on.
  void gated_rest(int i, int rows, BlockState& s) {
    const BlockWeights& b = layout_.blocks[i];
    const std::ptrdiff_t size = static_cast<std::ptrdiff_t>(rows) * width();
    const std::ptrdiff_t hidden = static_cast<std::ptrdiff_t>(rows) * shape_.ffn_width();
    drop(i, kBranchSite, w_.t, s.attended, size, width());
    to_operands(w_.x, s.stream, size);
    apply_gate(b.attention_gate, rows, s.stream, s.attention_gate);
    for (std::ptrdiff_t k = 0; k < size; k += kLanes)
      store(w_.y + k, load(w_.x + k) + load(s.attention_gate + k) * load(s.attended + k));
    to_operands(w_.y, s.middle, size);
    norm_forward(row_shape(rows), w_.y, nullptr, norm_weights(b.ffn_norm), shape_.eps, s.ffn_norm, nullptr, nullptr,
                 s.ffn_input);
    apply(b.gate, rows, s.ffn_input, s.gate);
    apply(b.up, rows, s.ffn_input, s.up);
    for (std::ptrdiff_t k = 0; k < hidden; k += kLanes) {
      const Floats g = load(s.gate + k);
      store(w_.t + k, g * sigmoid(g) * load(s.up + k));
    }
    drop(i, kHiddenSite, w_.t, w_.t, hidden, shape_.ffn_width());
    to_operands(w_.t, s.hidden, hidden);
    apply(b.down, rows, s.hidden, w_.t);
    drop(i, kOutputSite, w_.t, s.fed, size, width());
    apply_gate(b.ffn_gate, rows, s.middle, s.ffn_gate);
    for (std::ptrdiff_t k = 0; k < size; k += kLanes)
      store(w_.x + k, load(w_.y + k) + load(s.ffn_gate + k) * load(s.fed + k));
  }

  void drop(int block, std::uint64_t site, const float* from, float* to, std::ptrdiff_t size, int row_width) const {
    const auto scale = [&](std::ptrdiff_t i, Floats factor) { store(to + i, load(from + i) * factor); };
    if (dropout_) {
      for_dropped(*chunk_, dropout_, step_, site_of(block, site), row_width, scale);
    } else if (from != to) {
      std::memcpy(to, from, sizeof(float) * size);
    }
  }

  // Padded columns are zero times a half: the branch they gate is zero there.
  void apply_gate(const Linear& linear, int rows, const Operand* x, float* gate) const {
    apply(linear, rows, x, gate);
    for (std::ptrdiff_t k = 0; k < static_cast<std::ptrdiff_t>(rows) * width(); k += kLanes)
      store(gate + k, sigmoid(load(gate + k)));
  }

  void gated_backward(int i, BlockState& s) {
    const BlockWeights& b = layout_.blocks[i];
    const std::ptrdiff_t size = static_cast<std::ptrdiff_t>(n_) * width();
    const auto through_gate = [&](const Linear& linear, const float* gate, const float* branch, const Operand* input) {
      for (std::ptrdiff_t k = 0; k < size; k += kLanes) {
        const Floats z = load(gate + k);
        store_operand(w_.gradient + k, load(w_.dx + k) * load(branch + k) * z * (1.0f - z));
      }
      apply_backward(linear, input, w_.gradient, w_.y, false);  // what it adds to the stream, once the branch is done
    };
    through_gate(b.ffn_gate, s.ffn_gate, s.fed, s.middle);
    for_dropped(*chunk_, dropout_, step_, site_of(i, kOutputSite), width(), [&](std::ptrdiff_t k, Floats factor) {
      store_operand(w_.gradient + k, load(w_.dx + k) * load(s.ffn_gate + k) * factor);
    });
    apply_backward(b.down, s.hidden, w_.gradient, w_.d_hidden, false);
    for_dropped(*chunk_, dropout_, step_, site_of(i, kHiddenSite), shape_.ffn_width(),
                [&](std::ptrdiff_t k, Floats factor) {
                  const Floats d = load(w_.d_hidden + k) * factor, g = load(s.gate + k), z = sigmoid(g);
                  store_operand(w_.gradient + k, d * g * z);
                  store_operand(w_.second_gradient + k, d * load(s.up + k) * z * (1.0f + g * (1.0f - z)));
                });
    apply_backward(b.up, s.ffn_input, w_.gradient, w_.dy, false);
    apply_backward(b.gate, s.ffn_input, w_.second_gradient, w_.dy, true);
    add(w_.dx, w_.y, size);
    norm_backward(row_shape(n_), w_.dy, weights_ + b.ffn_norm.scale, s.ffn_norm, gradients_ + b.ffn_norm.scale,
                  gradients_ + b.ffn_norm.shift, w_.dx, true);
    through_gate(b.attention_gate, s.attention_gate, s.attended, s.stream);
    for_dropped(*chunk_, dropout_, step_, site_of(i, kBranchSite), width(), [&](std::ptrdiff_t k, Floats factor) {
      store(w_.dy + k, load(w_.dx + k) * load(s.attention_gate + k) * factor);
    });
    attend_backward(i, s, w_.dy, w_.dy, false, w_.dy, true);
    add(w_.dx, w_.y, size);
    norm_backward(row_shape(n_), w_.dy, weights_ + b.attention_norm.scale, s.attention_norm,
                  gradients_ + b.attention_norm.scale, gradients_ + b.attention_norm.shift, w_.dx, true);
  }

  static void add(float* to, const float* what, std::ptrdiff_t size) {
    for (std::ptrdiff_t i = 0; i < size; i += kLanes) store(to + i, load(to + i) + load(what + i));
  }

  void gather_last(const float* from, float* to) const {
    for (std::size_t s = 0; s < chunk_->sequences.size(); ++s) {
      const Segment q = chunk_->sequences[s];
      std::memcpy(to + s * width(), from + static_cast<std::ptrdiff_t>(q.start + q.length - 1) * width(),
                  sizeof(float) * width());
    }
  }

  // s.mixed (sequences, A) of the last tokens, whose queries are in s.query, without making keys and values of all
  // tokens: q (W c + b) = (W^T q) c + what is the same for all c, and a mean of V c + b is V (a mean of c) + b.
  // w_.t has room for 2 A values a token, and A is no less than W.
  void attend_last(const Linear& key_value, int rows, BlockState& s) {
    const int w = width(), a = shape_.attention_width(), head = shape_.head_width();
    const Operand* forward = panels_ + key_value.panels;
    const Operand* transposed = forward + static_cast<std::size_t>(key_value.in) * key_value.out;
    float *mixed = w_.t, *folded = w_.t + static_cast<std::size_t>(w_.capacity) * a;  // (rows, A), (rows, W)
    for (int h = 0; h < shape_.n_heads; ++h) {
      const int first = h * head;
      multiply(rows, w, attention_shape_.head_depth, s.query + first, a,
               {transposed + static_cast<std::ptrdiff_t>(first) * w, w}, folded, w);
      for (int r = 0; r < rows; ++r) {
        const Segment sequence = chunk_->sequences[r];
        const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(r) * w;
        attend_rows(folded + row, s.context + static_cast<std::ptrdiff_t>(sequence.start) * w, sequence.length, w,
                    attention_shape_.scale, w_.gradient + row, w_.attention.scores);
      }
      multiply(rows, head, key_value.in_used, w_.gradient, w, Panel{forward, key_value.out}.columns(a + first),
               mixed + first, a, {weights_ + key_value.bias + a + first, 0});
    }
    to_operands(mixed, s.mixed, static_cast<std::ptrdiff_t>(rows) * a);
  }

  // As block_forward without dropout, for the last token of each sequence only: (sequences, W) in w_.x.
  void last_block_forward(int i) {
    const BlockWeights& b = layout_.blocks[i];
    BlockState& s = w_.blocks[i];
    const int rows = static_cast<int>(chunk_->sequences.size());
    const std::ptrdiff_t all = static_cast<std::ptrdiff_t>(n_) * width();
    const std::ptrdiff_t size = static_cast<std::ptrdiff_t>(rows) * width();
    const NormWeights attention_norm = norm_weights(b.attention_norm), ffn_norm = norm_weights(b.ffn_norm);
    const bool norm_first = shape_.block == BlockKind::kPreNorm || shape_.block == BlockKind::kLiGR;
    if (norm_first) {
      norm_forward(row_shape(n_), w_.x, nullptr, attention_norm, shape_.eps, s.attention_norm, nullptr, w_.y,
                   s.context);
    } else {
      to_operands(w_.x, s.context, all);
    }
    if (norm_first) {  // queries come from LN(x), the residual stream is x
      gather_last(w_.y, w_.dy);
      to_operands(w_.dy, w_.gradient, size);
    }
    gather_last(w_.x, w_.dx);
    std::swap(w_.x, w_.dx);
    if (shape_.block == BlockKind::kSASRec) {
      norm_forward(row_shape(rows), w_.x, nullptr, attention_norm, shape_.eps, s.attention_norm, nullptr, w_.y,
                   w_.gradient);
    } else if (!norm_first) {
      to_operands(w_.x, w_.gradient, size);
    }
    project(b.query, rows, w_.gradient, s.query);
    attend_last(b.key_value, rows, s);
    apply(b.output, rows, s.mixed, w_.t);
    if (shape_.block == BlockKind::kLiGR) return gated_rest(i, rows, s);
    const bool own_stream = shape_.block == BlockKind::kSASRec;  // its residual stream starts at q = LN(x)
    const NormWeights second = shape_.block == BlockKind::kPostNorm ? attention_norm : ffn_norm;
    norm_forward(row_shape(rows), own_stream ? w_.y : w_.x, w_.t, second, shape_.eps, s.ffn_norm,
                 norm_first ? w_.y : nullptr, norm_first ? nullptr : w_.y, s.ffn_input);
    feed_forward(i, rows, s);
    for (std::ptrdiff_t k = 0; k < size; k += kLanes) store(w_.x + k, load(w_.y + k) + load(w_.t + k));
    if (shape_.block == BlockKind::kPostNorm)
      norm_forward(row_shape(rows), w_.x, nullptr, ffn_norm, shape_.eps, s.ffn_norm, nullptr, w_.x, nullptr);
  }

  const ModelShape& shape_;
  const Layout& layout_;
  const float* mask_;
  const float* weights_;
  const Operand* panels_;
  Workspace& w_;
  AttentionShape attention_shape_;
  const Chunk* chunk_ = nullptr;
  Dropout dropout_{0};
  std::uint64_t step_ = 0;
  int n_ = 0;
  float* gradients_ = nullptr;
};

}  // namespace sasrec
