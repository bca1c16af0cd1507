// Causal self-attention of the sequences of a chunk, forward and backward, with dropout on the weights.
//
// A segment is one sequence, or several short ones side by side that share a tile: row r attends to columns
// first[r] .. r of its segment. Rows are worked on a strip at a time: scores of a strip (kStrip x columns, floats) sit
// in L1, keys and values of the segment in L2; what lies right of the diagonal is not computed. Softmax and everything
// between the products is float.
//
// Nothing of size length x length outlives a strip in the forward pass: it keeps each row's maximum and inverse sum,
// from which the backward pass makes the weights again. That pass goes through kPanel query rows at a time, so that its
// memory grows with the length and not with its square.
#pragma once

#include "gemm.h"

namespace sasrec {

inline constexpr int kPanel = round_up(192, kStrip);  // query rows whose weights the backward pass holds at once
inline constexpr int kColumns = kDepth > kLanes ? kDepth : kLanes;  // rows of scores are filled up to a multiple

struct Segment {
  int start;   // token of the chunk
  int length;  // tokens
};

// Where a token stands. Indexed by token of the chunk.
struct TokenPlace {
  int sequence;  // of the chunk
  int index;     // in its sequence, from 0
  int first;     // column of its segment where its sequence begins
};

struct AttentionShape {
  int n_heads;
  int head_width;  // padded
  int head_depth;  // what of it a product over the width has to read
  int max_seq_len;
  float scale;  // of the scores: 1 / sqrt(head_dim)

  int width() const { return n_heads * head_width; }
};

// One thread's working memory.
struct AttentionScratch {
  Operand* keys_transposed;    // Panel (head_width, length)
  Operand* values_transposed;  // the same
  Operand* rows;               // Panels of keys or values (length, head_width)
  Operand* query_rows;         // Panel (panel, head_width) of queries, then of output gradients
  float* scores;               // (kStrip, length)
  float* weight_gradients;     // (kStrip, length)
  Operand* weights;            // (kPanel, length): after dropout
  Operand* score_gradients;    // (kPanel, length)
  float* key_gradients;        // (length, head_width)
  float* value_gradients;      // (length, head_width)
  float* strip;                // (kStrip, head_width)
  Operand* transposed;         // a strip of columns of the panel, transposed
};

// The streams of dropout on attention weights: word index * max_seq_len + column (from the sequence's first).
struct AttentionDropout {
  Dropout dropout;
  std::uint64_t step;
  const std::uint64_t* sequence_keys;  // of each sequence of the chunk
  std::uint64_t site;                  // of head 0
};

struct AttentionRows {
  const Operand* query;      // (tokens, width)
  const Operand* key_value;  // (tokens, 2 width): keys of all heads, then values
  Operand* mixed;            // (tokens, width)
  float* largest;            // (heads, capacity): largest score of a row, times the scale and log2 e
  float* inverse;            // (heads, capacity): 1 / sum of the row's exponentials
  int capacity;
};

// Walks the vectors of a row of `columns` (a multiple of kColumns) scores: f(offset, keep factor, visible) where
// visible is an all-ones mask on columns first .. last; vectors without any visible column get zero through `blank`.
template <typename Visit, typename Blank>
[[gnu::always_inline]] inline void for_visible(int first, int last, int columns, Visit&& visit, Blank&& blank) {
  const int begin = round_down(first, kLanes), end = round_up(last + 1, kLanes);
  for (int c = 0; c < begin; c += kLanes) blank(c);
  for (int c = begin; c < end; c += kLanes) {
    const Ints column = iota() + c;
    visit(c, (column >= first) & (column <= last));
  }
  for (int c = end; c < columns; c += kLanes) blank(c);
}

[[gnu::always_inline]] inline Floats keep(Ints mask, Floats v) { return as_floats(as_ints(v) & mask); }

// Dropout factor (0 or scale) of columns c .. c + kLanes of a row: one random word each.
[[gnu::always_inline]] inline Floats attention_factor(const Dropout& dropout, RandomKey key, int first_word, int c) {
  return dropout.factor_high(random_words(key, reinterpret_cast<Words>(iota() + (first_word + c))));
}

// mixed = dropout(softmax(scale q k^T)) v for one segment, all heads.
inline void attention_forward(const AttentionShape& shape, Segment segment, const TokenPlace* places,
                              const AttentionDropout& random, const AttentionRows& rows, AttentionScratch& scratch) {
  const int width = shape.width(), head_width = shape.head_width, length = segment.length;
  const int ld = round_up(length, kColumns) + kStrip;
  const float to_log2 = shape.scale * kLog2E;
  for (int h = 0; h < shape.n_heads; ++h) {
    const auto token = [&](int r) { return static_cast<std::ptrdiff_t>(segment.start + r); };
    const Operand* query = rows.query + token(0) * width + h * head_width;
    const Operand* key = rows.key_value + token(0) * 2 * width + h * head_width;
    const Panel keys = pack_transposed(head_width, length, key, 2 * width, scratch.keys_transposed);
    const Panel values = pack_rows(length, head_width, key + width, 2 * width, scratch.rows);
    for (int i = 0; i < length; i += kStrip) {
      const int n_rows = std::min(kStrip, length - i), seen = std::min(length, i + kStrip);
      multiply(n_rows, round_up(seen, kLanes), shape.head_depth, query + static_cast<std::ptrdiff_t>(i) * width, width,
               keys, scratch.scores, ld);
      const int columns = round_up(seen, kColumns);
      for (int r = 0; r < n_rows; ++r) {
        const TokenPlace& place = places[segment.start + i + r];
        float* score = scratch.scores + static_cast<std::ptrdiff_t>(r) * ld;
        Operand* weight = scratch.weights + static_cast<std::ptrdiff_t>(r) * ld;
        const int last = i + r, begin = round_down(place.first, kLanes);
        Floats top = splat(-INFINITY);
        for (int c = begin; c <= last; c += kLanes) {
          const Ints column = iota() + c;
          const Floats s = load(score + c) * to_log2;
          const Floats masked = (column >= place.first) & (column <= last) ? s : splat(-INFINITY);
          store(score + c, masked);
          top = maximum(top, masked);
        }
        const float largest_score = largest(top);
        Floats total{};
        for (int c = begin; c <= last; c += kLanes) {
          const Floats e = exp2(load(score + c) - largest_score);
          store(score + c, e);
          total += e;
        }
        const float inverse = 1.0f / sum(total);
        rows.largest[static_cast<std::ptrdiff_t>(h) * rows.capacity + token(last)] = largest_score;
        rows.inverse[static_cast<std::ptrdiff_t>(h) * rows.capacity + token(last)] = inverse;
        const RandomKey stream = random_key(random.step, random.sequence_keys[place.sequence], random.site + h);
        const int first_word = place.index * shape.max_seq_len - place.first;
        for (int c = 0; c < begin; c += kLanes) store_operand(weight + c, Floats{});
        int c = begin;
        if (random.dropout) {
          for (; c <= last; c += kLanes)
            store_operand(weight + c,
                          load(score + c) * inverse * attention_factor(random.dropout, stream, first_word, c));
        } else {
          for (; c <= last; c += kLanes) store_operand(weight + c, load(score + c) * inverse);
        }
        for (; c < columns; c += kLanes) store_operand(weight + c, Floats{});
      }
      const int depth = kDepth > 1 ? round_up(seen, kDepth) : seen;
      multiply(n_rows, head_width, depth, scratch.weights, ld, values, scratch.strip, head_width);
      for (int r = 0; r < n_rows; ++r)
        for (int c = 0; c < head_width; c += kLanes)
          store_operand(rows.mixed + token(i + r) * width + h * head_width + c,
                        load(scratch.strip + static_cast<std::ptrdiff_t>(r) * head_width + c));
    }
  }
}

// Gradients of queries (tokens, width) and of keys and values (tokens, 2 width), for d_mixed (tokens, width).
inline void attention_backward(const AttentionShape& shape, Segment segment, const TokenPlace* places,
                               const AttentionDropout& random, const AttentionRows& rows, const Operand* d_mixed,
                               Operand* d_query, Operand* d_key_value, AttentionScratch& scratch) {
  const int width = shape.width(), head_width = shape.head_width, length = segment.length;
  const int ld = round_up(length, kColumns) + kStrip;
  const float to_log2 = shape.scale * kLog2E;
  for (int h = 0; h < shape.n_heads; ++h) {
    const auto token = [&](int r) { return static_cast<std::ptrdiff_t>(segment.start + r); };
    const Operand* query = rows.query + token(0) * width + h * head_width;
    const Operand* key = rows.key_value + token(0) * 2 * width + h * head_width;
    const Operand* mixed = rows.mixed + token(0) * width + h * head_width;
    const Operand* d_out = d_mixed + token(0) * width + h * head_width;
    const Panel keys = pack_transposed(head_width, length, key, 2 * width, scratch.keys_transposed);
    const Panel values = pack_transposed(head_width, length, key + width, 2 * width, scratch.values_transposed);
    const Panel key_rows = pack_rows(length, head_width, key, 2 * width, scratch.rows);
    const std::size_t bytes = sizeof(float) * static_cast<std::size_t>(round_up(length, kColumns)) * head_width;
    std::memset(scratch.key_gradients, 0, bytes);
    std::memset(scratch.value_gradients, 0, bytes);
    for (int panel = 0; panel < length; panel += kPanel) {
      const int panel_end = std::min(length, panel + kPanel);
      for (int i = panel; i < panel_end; i += kStrip) {
        const int n_rows = std::min(kStrip, panel_end - i), seen = std::min(length, i + kStrip);
        const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(i) * width;
        multiply(n_rows, round_up(seen, kLanes), shape.head_depth, query + at, width, keys, scratch.scores, ld);
        multiply(n_rows, round_up(seen, kLanes), shape.head_depth, d_out + at, width, values, scratch.weight_gradients,
                 ld);
        const int columns = round_up(seen, kColumns);
        for (int r = 0; r < n_rows; ++r) {
          const TokenPlace& place = places[segment.start + i + r];
          const int last = i + r;
          const float* score = scratch.scores + static_cast<std::ptrdiff_t>(r) * ld;
          const float* d_weight = scratch.weight_gradients + static_cast<std::ptrdiff_t>(r) * ld;
          Operand* weight = scratch.weights + static_cast<std::ptrdiff_t>(last - panel) * ld;
          Operand* d_score = scratch.score_gradients + static_cast<std::ptrdiff_t>(last - panel) * ld;
          Floats product{};
          for (int c = 0; c < head_width; c += kLanes)
            product += load_operand(mixed + static_cast<std::ptrdiff_t>(last) * width + c) *
                       load_operand(d_out + static_cast<std::ptrdiff_t>(last) * width + c);
          const Floats mean = splat(sum(product));  // sum over columns of weight * its gradient
          const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(h) * rows.capacity + token(last);
          const Floats largest_score = splat(rows.largest[row]), inverse = splat(rows.inverse[row]);
          const RandomKey stream = random_key(random.step, random.sequence_keys[place.sequence], random.site + h);
          const int first_word = place.index * shape.max_seq_len - place.first;
          const auto blank = [&](int c) {
            store_operand(weight + c, Floats{});
            store_operand(d_score + c, Floats{});
          };
          const auto visit = [&](int c, Ints visible) {
            const Floats p = keep(visible, exp2(load(score + c) * to_log2 - largest_score) * inverse);
            const Floats factor =
                random.dropout ? attention_factor(random.dropout, stream, first_word, c) : splat(1.0f);
            const Floats kept = p * factor;
            store_operand(weight + c, kept);
            store_operand(d_score + c, keep(visible, (kept * load(d_weight + c) - p * mean) * shape.scale));
          };
          for_visible(place.first, last, columns, visit, blank);
        }
        const int depth = kDepth > 1 ? round_up(seen, kDepth) : seen;
        multiply(n_rows, head_width, depth, scratch.score_gradients + static_cast<std::ptrdiff_t>(i - panel) * ld, ld,
                 key_rows, scratch.strip, head_width);
        for (int r = 0; r < n_rows; ++r)
          for (int c = 0; c < head_width; c += kLanes)
            store_operand(d_query + token(i + r) * width + h * head_width + c,
                          load(scratch.strip + static_cast<std::ptrdiff_t>(r) * head_width + c));
      }
      // Column j is seen by rows from j on: its gradients add up over the rows of the panel from j's strip on.
      const auto add_columns = [&](const Operand* left, const Operand* right, float* target) {
        const int n_panel = panel_end - panel;
        const Panel packed = pack_rows(n_panel, head_width, right + static_cast<std::ptrdiff_t>(panel) * width, width,
                                       scratch.query_rows);
        for (int j = 0; j < panel_end; j += kStrip) {
          const int start = round_down(std::max(0, round_down(j, kStrip) - panel), kDepth);
          const int n_columns = kDepth > 1 ? kStrip : std::min(kStrip, panel_end - j);
          const Panel below = {packed.data + static_cast<std::ptrdiff_t>(start) * packed.stride, packed.stride};
          multiply_transposed(n_columns, head_width, n_panel - start,
                              left + static_cast<std::ptrdiff_t>(start) * ld + j, ld, below,
                              target + static_cast<std::ptrdiff_t>(j) * head_width, head_width, scratch.transposed);
        }
      };
      add_columns(scratch.score_gradients, query, scratch.key_gradients);
      add_columns(scratch.weights, d_out, scratch.value_gradients);
    }
    for (int r = 0; r < length; ++r)
      for (int c = 0; c < head_width; c += kLanes) {
        const std::ptrdiff_t from = static_cast<std::ptrdiff_t>(r) * head_width + c;
        Operand* to = d_key_value + token(r) * 2 * width + h * head_width + c;
        store_operand(to, load(scratch.key_gradients + from));
        store_operand(to + width, load(scratch.value_gradients + from));
      }
  }
}

// What one query gets from `length` rows that are keys and values at once: out = softmax(scale query rows^T) rows.
// query (width,), rows (length, width); `scores` has room for a multiple of kLanes.
inline void attend_rows(const float* query, const Operand* rows, int length, int width, float scale, Operand* out,
                        float* scores) {
  const float to_log2 = scale * kLog2E;
  const auto row = [&](int r, int c) { return load_operand(rows + static_cast<std::ptrdiff_t>(r) * width + c); };
  float top = -INFINITY;
  for (int r = 0; r < length; ++r) {
    Floats dot{};
    for (int c = 0; c < width; c += kLanes) dot += load(query + c) * row(r, c);
    scores[r] = sum(dot) * to_log2;
    top = std::max(top, scores[r]);
  }
  for (int r = length; r < round_up(length, kLanes); ++r) scores[r] = -INFINITY;
  Floats total{};
  for (int r = 0; r < length; r += kLanes) {
    const Floats weight = exp2(load(scores + r) - top);
    store(scores + r, weight);
    total += weight;
  }
  const float inverse = 1.0f / sum(total);
  for (int c = 0; c < width; c += kLanes) {
    Floats mean{};
    for (int r = 0; r < length; ++r) mean += scores[r] * row(r, c);
    store_operand(out + c, mean * inverse);
  }
}

}  // namespace sasrec
