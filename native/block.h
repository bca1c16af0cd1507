// The four blocks on the tokens of a chunk, forward and backward. How a block is wired is model/sasrec.py's; here is
// what it costs: every matrix is multiplied once with all tokens of the chunk, and all that the backward pass reads
// again was written by the same core a moment ago.
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
inline constexpr std::uint64_t kItemSite = 1;  // of items' own embeddings (features.h); the sequence is 0
inline constexpr std::uint64_t kSitesPerBlock = 1024;
inline constexpr std::uint64_t kBranchSite = 0, kHiddenSite = 1, kOutputSite = 2, kAttentionSite = 16;  // + head

constexpr std::uint64_t site_of(int block, std::uint64_t site) { return (block + 1) * kSitesPerBlock + site; }

// Bytes of attention's exponentials that a chunk keeps, of all blocks: what fits L2 beside its activations.
inline constexpr std::size_t kKeptBytes = 1 << 19;

// Rows that a product computes before what follows is done to them, while they are in L1.
inline constexpr int kRows = kDepth > 1 ? 32 : 48;

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
  float* inverse;                                     // (heads, N)
  Operand* exponentials;                              // of the segments that keep them, for each head
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
    kept_per_block = kKeptBytes / sizeof(Operand) / std::max(1, shape.n_blocks);
    features = floats(n * w);
    final_norm = {floats(n * w), floats(n)};
    for (int i = 0; i < shape.n_blocks; ++i) {
      BlockState s{};
      s.attention_norm = {floats(n * w), floats(n)};
      s.ffn_norm = {floats(n * w), floats(n)};
      s.context = operands(n * w);
      s.query_input = shape.block == BlockKind::kSASRec ? operands(n * w) : s.context;
      s.query = operands(n * a), s.key_value = operands(n * 2 * a), s.mixed = operands(n * a);
      s.inverse = floats(n * shape.n_heads), s.exponentials = operands(kept_per_block);
      s.ffn_input = operands(n * w), s.hidden = operands(n * f);
      if (gated) {
        s.stream = operands(n * w), s.middle = operands(n * w);
        s.attended = floats(n * w), s.attention_gate = floats(n * w), s.fed = floats(n * w), s.ffn_gate = floats(n * w);
        s.gate = floats(n * f), s.up = floats(n * f);
      }
      blocks.push_back(s);
    }
    gradient = operands(n * widest), d_query = operands(n * a), d_key_value = operands(n * 2 * a);
    second_gradient = operands(n * std::max(f, a)), strip = floats(kRows * widest);
    outer = operands((n + 32) * (widest + 32));
    const std::size_t length = round_up(shape.max_seq_len, 32) + kStrip + 32, head = shape.head_width();
    attention.keys_transposed = operands(head * length), attention.values_transposed = operands(head * length);
    attention.rows = operands(head * length);
    attention.scores = floats(kStrip * length), attention.weight_gradients = floats(kStrip * length);
    attention.weights = operands(kStrip * length);
    attention.exponentials = operands((kPanel + kStrip) * length);
    attention.score_gradients = operands((kPanel + kStrip) * length);
    attention.gradient_rows = operands(kDepth > 1 ? kStrip * length : 0);
    attention.key_gradients = floats(head * length), attention.value_gradients = floats(head * length);
    attention.strip = floats(kStrip * head), attention.transposed = operands(head * (kPanel + 32));
  }

  int capacity;
  std::size_t kept_per_block;
  float *x, *y, *dx, *dy;  // (N, W): residual streams and their gradients
  float* t;                // (N, widest)
  float* d_hidden;         // (N, F): LiGR only
  float* features;         // (N, W): after the final norm
  NormState final_norm;
  std::vector<BlockState> blocks;
  float* strip;  // (kRows, widest): what a product gives, on its way to where it goes
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

// Rows first .. first + count of a chunk.
struct Strip {
  int first, count;
};

// Applies both(row, c, factor of the vector at column c, factor of that at c + 16) to the rows of a strip at a site of
// dropout, as one random word decides for both; one(row, c, factor) where a row ends in half of that. Without dropout
// factors are 1.
template <typename Both, typename One>
[[gnu::always_inline]] inline void for_dropped_pairs(const Chunk& chunk, Strip strip, const Dropout& dropout,
                                                     std::uint64_t step, std::uint64_t site, int width, Both&& both,
                                                     One&& one) {
  const int end = strip.first + strip.count;
  if (!dropout) {
    for (int r = strip.first; r < end; ++r) {
      int c = 0;
      for (; c + 32 <= width; c += 32)
        for (int i = 0; i < 16; i += kLanes) both(r, c + i, splat(1.0f), splat(1.0f));
      for (; c < width; c += kLanes) one(r, c, splat(1.0f));
    }
    return;
  }
  const int words = dropout_words(width);
  int sequence = -1;
  RandomKey key{};
  for (int r = strip.first; r < end; ++r) {
    const TokenPlace& place = chunk.places[r];
    if (place.sequence != sequence) {
      sequence = place.sequence;
      key = random_key(step, chunk.sequence_keys[sequence], site);
    }
    const std::uint32_t first_word = static_cast<std::uint32_t>(place.index) * words;
    int c = 0;
    for (; c + 32 <= width; c += 32)
      for (int i = 0; i < 16; i += kLanes) {
        const Words random = random_words(key, first_word + c / 2 + i);
        both(r, c + i, dropout.factor_low(random), dropout.factor_high(random));
      }
    for (; c < width; c += kLanes) one(r, c, dropout_factor(dropout, key, first_word, c));
  }
}

// Applies f(row, column, dropout factor) to every vector of the rows of a strip at a site.
template <typename F>
[[gnu::always_inline]] inline void for_dropped(const Chunk& chunk, Strip strip, const Dropout& dropout,
                                               std::uint64_t step, std::uint64_t site, int width, F&& f) {
  for_dropped_pairs(
      chunk, strip, dropout, step, site, width,
      [&](int r, int c, Floats a, Floats b) {
        f(r, c, a);
        f(r, c + 16, b);
      },
      f);
}

// One chunk's way through the network. Gradients of weights are added to `gradients`, laid out as `weights`.
class Network {
 public:
  Network(const ModelShape& shape, const Layout& layout, const float* mask, const float* weights, const Operand* panels,
          Workspace& workspace)
      : shape_(shape), layout_(layout), mask_(mask), weights_(weights), panels_(panels), w_(workspace),
        attention_shape_{shape.n_heads,
                         shape.head_width(),
                         round_up(shape.head_dim(), kDepthStep),
                         Columns::groups(1, shape.head_dim(), shape.head_width()),
                         shape.max_seq_len,
                         1.0f / std::sqrt(static_cast<float>(shape.head_dim()))} {}

  // Embeddings (items' table of rows of width W) to features, keeping what the backward pass needs. Features of all
  // tokens of the batch lie one after another.
  void forward(const Chunk& chunk, const float* table, Dropout dropout, std::uint64_t step, float* features) {
    chunk_ = &chunk, dropout_ = dropout, step_ = step, n_ = chunk.size();
    embed(table);
    for (int i = 0; i < shape_.n_blocks; ++i) block_forward(i);
    for (const Segment s : chunk.sequences)
      finish({s.start, s.length}, w_.x, features + row(chunk.tokens[s.start] - s.start));
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
    finish({0, static_cast<int>(chunk.sequences.size())}, w_.x, w_.features);
  }

  // From the gradient of the features in workspace.dy to that of the embedding's rows, before scaling, which of all
  // tokens of the batch lie one after another.
  void backward(float* gradients, float* embedding_gradients) {
    gradients_ = gradients;
    if (shape_.block == BlockKind::kLiGR) {
      std::swap(w_.dx, w_.dy);
    } else {
      norm_strip_backward(all(), layout_.final_norm, w_.final_norm, w_.dy, w_.dx, false);
    }
    for (int i = shape_.n_blocks - 1; i >= 0; --i) block_backward(i);
    float* positions = gradients + layout_.position;
    sasrec::for_dropped(*chunk_, all(), dropout_, step_, kEmbeddingSite, width(), [&](int r, int c, Floats factor) {
      const Floats d = load(w_.dx + row(r) + c) * factor;
      float* position = positions + row(chunk_->positions[r]) + c;
      store(embedding_gradients + row(chunk_->tokens[r]) + c, d);
      store(position, load(position) + d);
    });
  }

 private:
  int width() const { return shape_.width(); }
  RowShape row_shape(int rows) const { return {rows, width(), shape_.dim, mask_}; }
  NormWeights norm_weights(Norm norm) const { return {weights_ + norm.scale, weights_ + norm.shift}; }
  AttentionRows attention_rows(const BlockState& s) const {
    return {s.query, s.key_value, s.mixed, s.inverse, w_.capacity};
  }
  AttentionDropout attention_dropout(int block) const {
    return {dropout_, step_, chunk_->sequence_keys.data(), site_of(block, kAttentionSite)};
  }

  void embed(const float* table) {
    const Floats scale = splat(std::sqrt(static_cast<float>(shape_.dim)));
    const float* positions = weights_ + layout_.position;
    sasrec::for_dropped(*chunk_, all(), dropout_, step_, kEmbeddingSite, width(), [&](int r, int c, Floats factor) {
      const Floats item = load(table + row(chunk_->items[r]) + c),
                   position = load(positions + row(chunk_->positions[r]) + c);
      store(w_.x + row(r) + c, (item * scale + position) * factor);
    });
  }

  std::ptrdiff_t row(std::ptrdiff_t i) const { return i * width(); }

  // The final norm of a strip; `features` begin with the chunk.
  void finish(Strip strip, const float* x, float* features) {
    if (shape_.block == BlockKind::kLiGR) {
      std::memcpy(features + row(strip.first), x + row(strip.first), sizeof(float) * row(strip.count));
    } else {
      norm_strip(strip, layout_.final_norm, w_.final_norm, x, nullptr, {.out = features});
    }
  }

  Strip all() const { return {0, n_}; }

  // Calls f(offset, dropout factor) for every vector of rows that lie in an array of the chunk.
  template <typename F>
  void for_dropped(std::uint64_t site, int row_width, Strip strip, F&& f) const {
    sasrec::for_dropped(*chunk_, strip, dropout_, step_, site, row_width, [&](int r, int c, Floats factor) {
      f(static_cast<std::ptrdiff_t>(r) * row_width + c, factor);
    });
  }

  // Writes value(offset, dropout factor) for every vector of rows that lie in `to`.
  template <typename F>
  void write_dropped(std::uint64_t site, int row_width, Strip strip, Operand* to, F&& value) const {
    const auto place = [row_width](int r, int c) { return static_cast<std::ptrdiff_t>(r) * row_width + c; };
    for_dropped_pairs(
        *chunk_, strip, dropout_, step_, site, row_width,
        [&](int r, int c, Floats a, Floats b) {
          const std::ptrdiff_t i = place(r, c);
          store_operands_16_apart(to + i, value(i, a), value(i + 16, b));
        },
        [&](int r, int c, Floats factor) { store_operand(to + place(r, c), value(place(r, c), factor)); });
  }

  // out (rows, linear.out) = x W + bias
  void apply(const Linear& linear, int rows, const Operand* x, float* out) const {
    multiply(rows, linear.out_columns, linear.in_used, x, linear.in, linear.forward(panels_), out, linear.out,
             {weights_ + linear.bias, 0});
  }

  // The same a strip at a time: finish(strip, out) with out (strip.count, linear.out).
  template <typename F>
  void apply(const Linear& linear, int rows, const Operand* x, F&& finish) const {
    for (int first = 0; first < rows; first += kRows) {
      const Strip strip{first, std::min(kRows, rows - first)};
      apply(linear, strip.count, x + static_cast<std::ptrdiff_t>(first) * linear.in, w_.strip);
      finish(strip, w_.strip);
    }
  }

  // The gradients of W and of the bias.
  void add_weight_gradients(const Linear& linear, const Operand* x, const Operand* dy) {
    accumulate_outer(n_, linear.in_used, linear.out_columns, x, linear.in, dy, linear.out, gradients_ + linear.weight,
                     linear.out, gradients_ + linear.bias, w_.outer);
  }

  // dx (rows, linear.in) = dy W^T, from `init` on unless that is null; dx may be `init`.
  void input_gradient(const Linear& linear, int rows, const Operand* dy, const float* init, float* dx) const {
    multiply(rows, linear.in_columns, linear.out_used, dy, linear.out, linear.backward(panels_), dx, linear.in,
             init ? Init{init, linear.in} : Init{});
  }

  // The same a strip at a time: finish(strip, dx) with dx (strip.count, linear.in).
  template <typename F>
  void input_gradient(const Linear& linear, const Operand* dy, const float* init, F&& finish) const {
    for (int first = 0; first < n_; first += kRows) {
      const Strip strip{first, std::min(kRows, n_ - first)};
      const std::ptrdiff_t at = first;
      input_gradient(linear, strip.count, dy + at * linear.out, init ? init + at * linear.in : nullptr, w_.strip);
      finish(strip, w_.strip);
    }
  }

  void to_operands(const float* from, Operand* to, std::ptrdiff_t size) const {
    write_operands(to, size / kLanes, [from](std::ptrdiff_t i) { return load(from + kLanes * i); });
  }

  // What of a product goes to operands (rows, row_width), for `finish`.
  auto into_operands(Operand* to, int row_width) const {
    return [this, to, row_width](Strip strip, const float* out) {
      to_operands(out, to + static_cast<std::ptrdiff_t>(strip.first) * row_width,
                  static_cast<std::ptrdiff_t>(strip.count) * row_width);
    };
  }

  // What of a product goes, after dropout, to floats (rows, W), for `finish`.
  auto into_branch(int block, std::uint64_t site, float* to) const {
    return [this, block, site, to](Strip strip, const float* out) {
      const std::ptrdiff_t begin = row(strip.first);
      for_dropped(site_of(block, site), width(), strip,
                  [&](std::ptrdiff_t k, Floats factor) { store(to + k, load(out + k - begin) * factor); });
    };
  }

  // Calls f(segment, where it keeps its exponentials or null) for each segment of the chunk: one keeps them where there
  // is room left. Encoding goes no way back and keeps nothing.
  template <typename F>
  void for_segments(const BlockState& s, F&& f) const {
    const bool training = !chunk_->tokens.empty();
    std::size_t used = 0;
    for (const Segment segment : chunk_->segments) {
      const std::size_t size = shape_.n_heads * kept_size(segment.length);
      const bool keeps = training && used + size <= w_.kept_per_block;
      f(segment, keeps ? s.exponentials + used : nullptr);
      if (keeps) used += size;
    }
  }

  // Attention of the block: state.query_input and context to finish(strip, out) with out (strip.count, W), output
  // projection included.
  template <typename F>
  void attend(int block, BlockState& s, F&& finish) {
    const BlockWeights& b = layout_.blocks[block];
    project(b.query, n_, s.query_input, s.query);
    project(b.key_value, n_, s.context, s.key_value);
    for_segments(s, [&](Segment segment, Operand* kept) {
      attention_forward(attention_shape_, segment, chunk_->places.data(), attention_dropout(block), attention_rows(s),
                        kept, w_.attention);
    });
    apply(b.output, n_, s.mixed, finish);
  }

  void project(const Linear& linear, int rows, const Operand* x, Operand* out) const {
#if defined(SASREC_BF16)
    apply(linear, rows, x, into_operands(out, linear.out));
#else
    apply(linear, rows, x, out);
#endif
  }

  // Gradient (rows, W) of attend's output to w_.d_query and w_.d_key_value.
  void attend_backward(int block, BlockState& s, const float* d_attended) {
    const BlockWeights& b = layout_.blocks[block];
    to_operands(d_attended, w_.gradient, static_cast<std::ptrdiff_t>(n_) * width());
    add_weight_gradients(b.output, s.mixed, w_.gradient);
    const AttentionRows rows = attention_rows(s);
    input_gradient(b.output, w_.gradient, nullptr, [&](Strip strip, const float* d_mixed) {
      scale_output_gradients(attention_shape_, dropout_, rows, strip.first, strip.count, d_mixed, w_.second_gradient);
    });
    for_segments(s, [&](Segment segment, Operand* kept) {
      attention_backward(attention_shape_, segment, chunk_->places.data(), attention_dropout(block), rows, kept,
                         w_.second_gradient, w_.d_query, w_.d_key_value, w_.attention);
    });
    add_weight_gradients(b.query, s.query_input, w_.d_query);
    add_weight_gradients(b.key_value, s.context, w_.d_key_value);
  }

  // Feed-forward of s.ffn_input (rows, W) to finish(strip, out) with out (strip.count, W), before the last dropout.
  template <typename F>
  void feed_forward(int block, int rows, BlockState& s, F&& finish) {
    const BlockWeights& b = layout_.blocks[block];
    const int f = shape_.ffn_width();
    const bool relu = shape_.relu;
    apply(b.up, rows, s.ffn_input, [&](Strip strip, const float* out) {
      const std::ptrdiff_t begin = static_cast<std::ptrdiff_t>(strip.first) * f;
      write_dropped(site_of(block, kHiddenSite), f, strip, s.hidden, [=](std::ptrdiff_t i, Floats factor) {
        const Floats v = load(out + i - begin);
        return (relu ? maximum(v, Floats{}) : v) * factor;
      });
    });
    apply(b.down, rows, s.hidden, finish);
  }

  // The gradient d_fed of the feed-forward's output after dropout to finish(strip, dx) with dx that of its input, from
  // `init` on. Hidden values that were dropped or cut off by ReLU are zero, which is all that needs to be known of
  // them.
  template <typename F>
  void feed_backward(int block, BlockState& s, const float* d_fed, const float* init, F&& finish) {
    const BlockWeights& b = layout_.blocks[block];
    const int f = shape_.ffn_width();
    write_dropped(site_of(block, kOutputSite), width(), all(), w_.gradient,
                  [d_fed](std::ptrdiff_t i, Floats factor) { return load(d_fed + i) * factor; });
    add_weight_gradients(b.down, s.hidden, w_.gradient);
    const Floats scale = splat(dropout_.scale);
    input_gradient(b.down, w_.gradient, nullptr, [&](Strip strip, const float* dx) {
      const std::ptrdiff_t begin = static_cast<std::ptrdiff_t>(strip.first) * f;
      const Operand* hidden = s.hidden + begin;
      write_operands(w_.second_gradient + begin, strip.count * (f / kLanes), [=](int i) {
        return keep(load_operand(hidden + kLanes * i) != 0.0f, load(dx + kLanes * i) * scale);
      });
    });
    add_weight_gradients(b.up, s.ffn_input, w_.second_gradient);
    input_gradient(b.up, w_.second_gradient, init, finish);
  }

  // Rows of a strip of sum = base + dropout(fed) at the block's output site.
  void add_fed(int block, Strip strip, const float* fed, const float* base, float* sum) const {
    const std::ptrdiff_t begin = row(strip.first);
    for_dropped(site_of(block, kOutputSite), width(), strip, [&](std::ptrdiff_t i, Floats factor) {
      store(sum + i, load(base + i) + load(fed + i - begin) * factor);
    });
  }

  // Rows of a strip of norm_forward: LN(x + add), where `add` begins with the strip and all else with the chunk.
  void norm_strip(Strip strip, Norm norm, NormState state, const float* x, const float* add,
                  const NormOutputs& to) const {
    const std::ptrdiff_t at = row(strip.first);
    const auto place = [at](auto* p) { return p ? p + at : nullptr; };
    norm_forward(row_shape(strip.count), x + at, add, norm_weights(norm), shape_.eps,
                 {state.normalised + at, state.inverse + strip.first},
                 {place(to.sum), place(to.sum_operand), place(to.out), place(to.operand)});
  }

  // Rows of a strip of norm_backward, where dy begins with the strip and dx with the chunk.
  void norm_strip_backward(Strip strip, Norm norm, NormState state, const float* dy, float* dx, bool accumulate) {
    const std::ptrdiff_t at = row(strip.first);
    norm_backward(row_shape(strip.count), dy, weights_ + norm.scale,
                  {state.normalised + at, state.inverse + strip.first}, gradients_ + norm.scale,
                  gradients_ + norm.shift, dx + at, accumulate);
  }

  // x in w_.x becomes the block's output in w_.x.
  void block_forward(int i) {
    const BlockWeights& b = layout_.blocks[i];
    BlockState& s = w_.blocks[i];
    const std::ptrdiff_t size = static_cast<std::ptrdiff_t>(n_) * width();
    switch (shape_.block) {
      case BlockKind::kSASRec:  // q = LN(x); h = LN(q + attention(q, x, x)); x = h + FFN(h)
        norm_strip(all(), b.attention_norm, s.attention_norm, w_.x, nullptr,
                   {.sum_operand = s.context, .out = w_.y, .operand = s.query_input});
        attend(i, s, [&](Strip strip, const float* attended) {
          norm_strip(strip, b.ffn_norm, s.ffn_norm, w_.y, attended, {.out = w_.y, .operand = s.ffn_input});
        });
        feed_forward(i, n_, s, [&](Strip strip, const float* fed) { add_fed(i, strip, fed, w_.y, w_.x); });
        break;
      case BlockKind::kPostNorm:  // h = LN(x + attention(x, x, x)); x = LN(h + FFN(h))
        to_operands(w_.x, s.context, size);
        attend(i, s, [&](Strip strip, const float* attended) {
          norm_strip(strip, b.attention_norm, s.attention_norm, w_.x, attended, {.out = w_.y, .operand = s.ffn_input});
        });
        feed_forward(i, n_, s, [&](Strip strip, const float* fed) {
          add_fed(i, strip, fed, w_.y, w_.y);
          norm_strip(strip, b.ffn_norm, s.ffn_norm, w_.y, nullptr, {.out = w_.x});
        });
        break;
      case BlockKind::kPreNorm:  // h = LN(x); x = x + attention(h, h, h); x = x + FFN(LN(x))
        norm_strip(all(), b.attention_norm, s.attention_norm, w_.x, nullptr, {.operand = s.context});
        attend(i, s, [&](Strip strip, const float* attended) {
          norm_strip(strip, b.ffn_norm, s.ffn_norm, w_.x, attended, {.sum = w_.y, .operand = s.ffn_input});
        });
        feed_forward(i, n_, s, [&](Strip strip, const float* fed) { add_fed(i, strip, fed, w_.y, w_.x); });
        break;
      case BlockKind::kLiGR:
        norm_strip(all(), b.attention_norm, s.attention_norm, w_.x, nullptr, {.operand = s.context});
        attend(i, s, into_branch(i, kBranchSite, s.attended));
        gated_rest(i, n_, s);
        break;
    }
  }

  // The gradient of the block's output in w_.dx becomes that of its input in w_.dx.
  void block_backward(int i) {
    const BlockWeights& b = layout_.blocks[i];
    BlockState& s = w_.blocks[i];
    switch (shape_.block) {
      case BlockKind::kSASRec:
        feed_backward(i, s, w_.dx, w_.dx, [&](Strip strip, const float* dh) {
          norm_strip_backward(strip, b.ffn_norm, s.ffn_norm, dh, w_.dy, false);  // dy: of q + attention
        });
        attend_backward(i, s, w_.dy);
        input_gradient(b.key_value, n_, w_.d_key_value, nullptr, w_.dx);  // dx: of the context
        input_gradient(b.query, w_.d_query, w_.dy, [&](Strip strip, const float* dq) {
          norm_strip_backward(strip, b.attention_norm, s.attention_norm, dq, w_.dx, true);
        });
        break;
      case BlockKind::kPostNorm:
        norm_strip_backward(all(), b.ffn_norm, s.ffn_norm, w_.dx, w_.dy, false);  // dy: of h + FFN
        feed_backward(i, s, w_.dy, w_.dy, [&](Strip strip, const float* dh) {
          norm_strip_backward(strip, b.attention_norm, s.attention_norm, dh, w_.dx, false);  // dx: of x + attention
        });
        attend_backward(i, s, w_.dx);
        input_gradient(b.query, n_, w_.d_query, w_.dx, w_.dx);
        input_gradient(b.key_value, n_, w_.d_key_value, w_.dx, w_.dx);
        break;
      case BlockKind::kPreNorm:
        feed_backward(i, s, w_.dx, nullptr, [&](Strip strip, const float* dh) {
          norm_strip_backward(strip, b.ffn_norm, s.ffn_norm, dh, w_.dx, true);  // dx: of x + attention
        });
        attend_backward(i, s, w_.dx);
        normed_input_backward(b, s);
        break;
      case BlockKind::kLiGR: gated_backward(i, s); break;
    }
  }

  // Adds to w_.dx what comes through queries, keys and values of LN(x).
  void normed_input_backward(const BlockWeights& b, BlockState& s) {
    input_gradient(b.query, n_, w_.d_query, nullptr, w_.dy);
    input_gradient(b.key_value, w_.d_key_value, w_.dy, [&](Strip strip, const float* dh) {
      norm_strip_backward(strip, b.attention_norm, s.attention_norm, dh, w_.dx, true);
    });
  }

  // LiGR: x = x + gate(x) dropout(attention(LN(x))); x = x + gate(x) dropout(SwiGLU(LN(x))), on the first `rows` rows
  // of w_.x; from attention's output after dropout in s.attended on.
  void gated_rest(int i, int rows, BlockState& s) {
    const BlockWeights& b = layout_.blocks[i];
    const int f = shape_.ffn_width();
    const std::ptrdiff_t size = static_cast<std::ptrdiff_t>(rows) * width();
    to_operands(w_.x, s.stream, size);
    apply(b.attention_gate, rows, s.stream, [&](Strip strip, const float* out) {
      add_gated(strip, out, s.attention_gate, s.attended, w_.x, w_.y);
      norm_strip(strip, b.ffn_norm, s.ffn_norm, w_.y, nullptr, {.operand = s.ffn_input});
    });
    to_operands(w_.y, s.middle, size);
    apply(b.gate, rows, s.ffn_input, s.gate);
    apply(b.up, rows, s.ffn_input, [&](Strip strip, const float* out) {
      const std::ptrdiff_t begin = static_cast<std::ptrdiff_t>(strip.first) * f;
      write_dropped(site_of(i, kHiddenSite), f, strip, s.hidden, [&](std::ptrdiff_t k, Floats factor) {
        const Floats g = load(s.gate + k), up = load(out + k - begin);
        store(s.up + k, up);
        return g * sigmoid(g) * up * factor;
      });
    });
    apply(b.down, rows, s.hidden, into_branch(i, kOutputSite, s.fed));
    apply(b.ffn_gate, rows, s.middle,
          [&](Strip strip, const float* out) { add_gated(strip, out, s.ffn_gate, s.fed, w_.y, w_.x); });
  }

  // Rows of a strip of sum = base + sigmoid(out) branch, keeping the gate. Padded columns are zero times a half: the
  // branch they gate is zero there.
  void add_gated(Strip strip, const float* out, float* gate, const float* branch, const float* base, float* sum) const {
    const std::ptrdiff_t begin = row(strip.first);
    for (std::ptrdiff_t k = begin; k < begin + row(strip.count); k += kLanes) {
      const Floats z = sigmoid(load(out + k - begin));
      store(gate + k, z);
      store(sum + k, load(base + k) + z * load(branch + k));
    }
  }

  void gated_backward(int i, BlockState& s) {
    const BlockWeights& b = layout_.blocks[i];
    const std::ptrdiff_t size = static_cast<std::ptrdiff_t>(n_) * width();
    const auto through_gate = [&](const Linear& linear, const float* gate, const float* branch, const Operand* input) {
      write_operands(w_.gradient, size / kLanes, [&](std::ptrdiff_t i) {
        const std::ptrdiff_t k = kLanes * i;
        const Floats z = load(gate + k);
        return load(w_.dx + k) * load(branch + k) * z * (1.0f - z);
      });
      add_weight_gradients(linear, input, w_.gradient);
      input_gradient(linear, n_, w_.gradient, nullptr, w_.y);  // what it adds to the stream, once the branch is done
    };
    through_gate(b.ffn_gate, s.ffn_gate, s.fed, s.middle);
    write_dropped(site_of(i, kOutputSite), width(), all(), w_.gradient,
                  [&](std::ptrdiff_t k, Floats factor) { return load(w_.dx + k) * load(s.ffn_gate + k) * factor; });
    add_weight_gradients(b.down, s.hidden, w_.gradient);
    input_gradient(b.down, n_, w_.gradient, nullptr, w_.d_hidden);
    for_dropped(site_of(i, kHiddenSite), shape_.ffn_width(), all(), [&](std::ptrdiff_t k, Floats factor) {
      const Floats d = load(w_.d_hidden + k) * factor, g = load(s.gate + k), z = sigmoid(g);
      store_operand(w_.gradient + k, d * g * z);
      store_operand(w_.second_gradient + k, d * load(s.up + k) * z * (1.0f + g * (1.0f - z)));
    });
    add_weight_gradients(b.up, s.ffn_input, w_.gradient);
    input_gradient(b.up, n_, w_.gradient, nullptr, w_.dy);
    add_weight_gradients(b.gate, s.ffn_input, w_.second_gradient);
    add(w_.dx, w_.y, size);
    input_gradient(b.gate, w_.second_gradient, w_.dy, [&](Strip strip, const float* dh) {
      norm_strip_backward(strip, b.ffn_norm, s.ffn_norm, dh, w_.dx, true);
    });
    through_gate(b.attention_gate, s.attention_gate, s.attended, s.stream);
    for_dropped(site_of(i, kBranchSite), width(), all(), [&](std::ptrdiff_t k, Floats factor) {
      store(w_.dy + k, load(w_.dx + k) * load(s.attention_gate + k) * factor);
    });
    attend_backward(i, s, w_.dy);
    add(w_.dx, w_.y, size);
    normed_input_backward(b, s);
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
    const Panel forward = key_value.forward(panels_), transposed = key_value.backward(panels_);
    float *mixed = w_.t, *folded = w_.t + static_cast<std::size_t>(w_.capacity) * a;  // (rows, A), (rows, W)
    for (int h = 0; h < shape_.n_heads; ++h) {
      const int first = h * head;
      multiply(rows, key_value.in_columns, attention_shape_.head_depth, s.query + first, a, transposed.rows(first),
               folded, w);
      for (int r = 0; r < rows; ++r) {
        const Segment sequence = chunk_->sequences[r];
        const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(r) * w;
        attend_rows(folded + row, s.context + static_cast<std::ptrdiff_t>(sequence.start) * w, sequence.length, w,
                    attention_shape_.scale, w_.gradient + row, w_.attention.scores);
      }
      multiply(rows, attention_shape_.head_columns, key_value.in_used, w_.gradient, w, forward.columns(a + first),
               mixed + first, a, {weights_ + key_value.bias + a + first, 0});
    }
    to_operands(mixed, s.mixed, static_cast<std::ptrdiff_t>(rows) * a);
  }

  // As block_forward without dropout, for the last token of each sequence only: (sequences, W) in w_.x.
  void last_block_forward(int i) {
    const BlockWeights& b = layout_.blocks[i];
    BlockState& s = w_.blocks[i];
    const int rows = static_cast<int>(chunk_->sequences.size());
    const std::ptrdiff_t size = static_cast<std::ptrdiff_t>(rows) * width();
    const bool norm_first = shape_.block == BlockKind::kPreNorm || shape_.block == BlockKind::kLiGR;
    if (norm_first) {
      norm_strip(all(), b.attention_norm, s.attention_norm, w_.x, nullptr, {.out = w_.y, .operand = s.context});
    } else {
      to_operands(w_.x, s.context, static_cast<std::ptrdiff_t>(n_) * width());
    }
    if (norm_first) {  // queries come from LN(x), the residual stream is x
      gather_last(w_.y, w_.dy);
      to_operands(w_.dy, w_.gradient, size);
    }
    gather_last(w_.x, w_.dx);
    std::swap(w_.x, w_.dx);
    if (shape_.block == BlockKind::kSASRec) {
      norm_strip({0, rows}, b.attention_norm, s.attention_norm, w_.x, nullptr, {.out = w_.y, .operand = w_.gradient});
    } else if (!norm_first) {
      to_operands(w_.x, w_.gradient, size);
    }
    project(b.query, rows, w_.gradient, s.query);
    attend_last(b.key_value, rows, s);
    if (shape_.block == BlockKind::kLiGR) {
      apply(b.output, rows, s.mixed, into_branch(i, kBranchSite, s.attended));
      return gated_rest(i, rows, s);
    }
    const bool own_stream = shape_.block == BlockKind::kSASRec;  // its residual stream starts at q = LN(x)
    const Norm second = shape_.block == BlockKind::kPostNorm ? b.attention_norm : b.ffn_norm;
    apply(b.output, rows, s.mixed, [&](Strip strip, const float* attended) {
      norm_strip(strip, second, s.ffn_norm, own_stream ? w_.y : w_.x, attended,
                 {.sum = norm_first ? w_.y : nullptr, .out = norm_first ? nullptr : w_.y, .operand = s.ffn_input});
    });
    feed_forward(i, rows, s, [&](Strip strip, const float* fed) { add_fed(i, strip, fed, w_.y, w_.x); });
    if (shape_.block == BlockKind::kPostNorm)
      norm_strip({0, rows}, b.ffn_norm, s.ffn_norm, w_.x, nullptr, {.out = w_.x});
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
