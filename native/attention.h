// Causal self-attention of the sequences of a chunk, forward and backward, with dropout on the weights.
//
// A segment is one sequence, or several short ones side by side that share a tile: row r attends to columns
// first[r] .. r of its segment. Rows are worked on a strip at a time: scores of a strip (kStrip x columns, floats) sit
// in L1, keys and values of the segment in L2; what lies right of the diagonal is not computed. Softmax and everything
// between the products is float. Two rows at a time: they share random words, and bf16 panels come in pairs of rows.
//
// The forward pass keeps the exponentials of short segments, so that the backward pass finds them in L2: without their
// scores, exponentials and random numbers it takes half the time. Of long segments it keeps each row's inverse sum
// only, and the exponentials are made again, kPanel query rows at a time: memory grows with the length and not with its
// square.
#pragma once

#include "gemm.h"

namespace sasrec {

inline constexpr int kPanel = round_up(224, kStrip);  // query rows whose weights the backward pass holds at once
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
  Columns head_columns;
  int max_seq_len;
  float scale;  // of the scores: 1 / sqrt(head_dim)

  int width() const { return n_heads * head_width; }
};

// One thread's working memory.
struct AttentionScratch {
  Operand* keys_transposed;    // Panel (head_width, length)
  Operand* values_transposed;  // the same
  Operand* rows;               // Panels of keys or values (length, head_width)
  float* scores;               // (kStrip, length)
  float* weight_gradients;     // (kStrip, length)
  Operand* weights;            // (kStrip, length): exponentials that dropout keeps
  Operand* exponentials;       // Panel (kPanel, length): those of a segment that has not kept them
  Operand* score_gradients;    // Panel (kPanel, length)
  Operand* gradient_rows;      // (kStrip, length): score gradients again, in rows; float Panels are rows already
  float* key_gradients;        // (length, head_width), or its transpose; see add_column_gradients
  float* value_gradients;      // the same
  float* strip;                // (kStrip, head_width)
  Operand* transposed;         // (head_width, kPanel)
};

// The streams of dropout on attention weights: word index / 2 * max_seq_len + column (from the sequence's first).
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
  float* inverse;            // (heads, capacity): 1 / sum of the row's exponentials
  int capacity;
};

// From one row of a segment's scores to the next: filled up, and not a multiple of a page.
constexpr int score_stride(int length) { return round_up(length, kColumns) + kStrip; }

// Operands that a segment's exponentials take, for each head.
constexpr std::ptrdiff_t kept_size(int length) {
  return static_cast<std::ptrdiff_t>(round_up(length, std::max(2, kDepth))) * score_stride(length);
}

[[gnu::always_inline]] inline Floats keep(Ints mask, Floats v) { return as_floats(as_ints(v) & mask); }

// Dropout on the weights of one row. Rows 2 m and 2 m + 1 of a sequence are told by the two halves of the same words,
// which are made once where both are worked on together.
struct RowDropout {
  RandomKey key;
  int first_word;  // of the segment's column 0, which may lie before the sequence
  bool high;       // which half is this row's

  RowDropout(const AttentionDropout& random, const TokenPlace& place, int head, int max_seq_len)
      : key(random_key(random.step, random.sequence_keys[place.sequence], random.site + head)),
        first_word(place.index / 2 * max_seq_len - place.first), high(place.index % 2 != 0) {}

  [[gnu::always_inline]] Words words(int c) const {
    return random_words(key, static_cast<std::uint32_t>(first_word + c));
  }
};

// Two rows of a strip, one below the other; the second may be missing, and then sees nothing.
struct RowPair {
  TokenPlace places[2];
  int last[2];     // visible columns of each: places[i].first .. last[i]
  int begin, end;  // vectors with a visible column of either lie in begin .. end
  int all, none;   // all columns from `all` up to, not including, `none` are visible to both
  bool same_words;

  RowPair(const TokenPlace* segment, int row, bool both) {
    places[0] = segment[row], places[1] = both ? segment[row + 1] : TokenPlace{places[0].sequence, 0, row + 2};
    last[0] = row, last[1] = both ? row + 1 : row;
    begin = round_down(std::min(places[0].first, places[1].first), kLanes), end = round_up(last[1] + 1, kLanes);
    all = std::max(places[0].first, places[1].first), none = row + 1;
    same_words = places[0].sequence == places[1].sequence && places[0].index % 2 == 0;
  }

  // Calls f(c, mask of row 0, mask of row 1) for each vector of columns that either row sees.
  template <typename F>
  [[gnu::always_inline]] void for_visible(F&& f) const {
    const Ints everything = Ints{} == 0;
    for (int c = begin; c < end; c += kLanes) {
      if (c >= all && c + kLanes <= none) {
        f(c, everything, everything);
      } else {
        const Ints column = iota() + c;
        f(c, (column >= places[0].first) & (column <= last[0]), (column >= places[1].first) & (column <= last[1]));
      }
    }
  }

  // As for_visible, with masks of the columns that dropout keeps.
  template <typename F>
  [[gnu::always_inline]] void for_kept(const AttentionDropout& random, int head, int max_seq_len, F&& f) const {
    const Ints everything = Ints{} == 0;
    if (!random.dropout) return for_visible([&](int c, Ints a, Ints b) { f(c, a, b, everything, everything); });
    const RowDropout one(random, places[0], head, max_seq_len);
    if (same_words) {
      for_visible([&](int c, Ints a, Ints b) {
        const Words words = one.words(c);
        f(c, a, b, random.dropout.kept(words, false), random.dropout.kept(words, true));
      });
    } else {
      const RowDropout two(random, places[1], head, max_seq_len);
      for_visible([&](int c, Ints a, Ints b) {
        f(c, a, b, random.dropout.kept(one.words(c), one.high), random.dropout.kept(two.words(c), two.high));
      });
    }
  }
};

// What the passes over one segment and head read.
struct HeadRows {
  int width, head_width, length;
  int ld;  // columns from one row of scores to the next
  std::ptrdiff_t start;
  const Operand *query, *key, *value;
  float* inverse;

  HeadRows(const AttentionShape& shape, Segment segment, const AttentionRows& rows, int head)
      : width(shape.width()), head_width(shape.head_width), length(segment.length), ld(score_stride(segment.length)),
        start(segment.start), query(rows.query + start * width + head * head_width),
        key(rows.key_value + start * 2 * width + head * head_width), value(key + width),
        inverse(rows.inverse + static_cast<std::ptrdiff_t>(head) * rows.capacity + start) {}

  int key_stride() const { return 2 * width; }
};

// Exponentials of the scores of rows i .. i + n_rows of a segment, at most 1, negative where dropout drops the weight.
// They go to scratch.weights as rows, without the dropped ones (AsRows), or to the rows of a Panel (AsPanel; rows from
// i on), or both; their inverse sums go to head.inverse. What is summed is what is stored.
template <bool AsRows, bool AsPanel>
inline void strip_exponentials(const AttentionShape& shape, const TokenPlace* places, const AttentionDropout& random,
                               int h, const HeadRows& head, int i, int n_rows, Panel keys, Operand* panel,
                               AttentionScratch& scratch) {
  const float to_log2 = shape.scale * kLog2E;
  const int ld = head.ld, seen = std::min(head.length, i + kStrip), columns = round_up(seen, kColumns);
  multiply(n_rows, Columns::up_to(seen), shape.head_depth, head.query + static_cast<std::ptrdiff_t>(i) * head.width,
           head.width, keys, scratch.scores, ld);
  for (int r = 0; r < n_rows; r += 2) {
    const RowPair pair(places, i + r, r + 1 < n_rows);
    const float *score = scratch.scores + static_cast<std::ptrdiff_t>(r) * ld, *score2 = score + ld;
    Operand *weight = scratch.weights + static_cast<std::ptrdiff_t>(r) * ld, *weight2 = weight + ld;
    const auto store_both = [&](int c, OperandPair e) {
      if constexpr (AsRows) store_rows(weight + c, weight2 + c, positive(e));
      if constexpr (AsPanel) store_pair(panel, ld, r, c, e);
    };
    Floats top = splat(-INFINITY), top2 = top;
    pair.for_visible([&](int c, Ints one, Ints two) {
      top = maximum(top, one ? load(score + c) : splat(-INFINITY));
      top2 = maximum(top2, two ? load(score2 + c) : splat(-INFINITY));
    });
    const float largest_score = largest(top) * to_log2, largest_score2 = largest(top2) * to_log2;
    for (int c = 0; c < pair.begin; c += kLanes) store_both(c, OperandPair{});
    PairSums totals;
    pair.for_kept(random, h, shape.max_seq_len, [&](int c, Ints one, Ints two, Ints kept, Ints kept2) {
      const Floats e = keep(one, exp2(load(score + c) * to_log2 - largest_score));
      const Floats e2 = keep(two, exp2(load(score2 + c) * to_log2 - largest_score2));
      const OperandPair both = round_pair(kept ? e : -e, kept2 ? e2 : -e2);
      totals.add(magnitude(both));
      store_both(c, both);
    });
    for (int c = pair.end; c < columns; c += kLanes) store_both(c, OperandPair{});
    const auto [total, total2] = totals.get();
    head.inverse[i + r] = 1.0f / total;
    if (r + 1 < n_rows) head.inverse[i + r + 1] = 1.0f / total2;
  }
}

// mixed = dropout(softmax(scale q k^T)) v for one segment, all heads. The exponentials go to `kept`, kept_size for each
// head, unless that is null.
//
// Weights are the exponentials themselves: their sum, and the scale of dropout, come in after the product.
inline void attention_forward(const AttentionShape& shape, Segment segment, const TokenPlace* places,
                              const AttentionDropout& random, const AttentionRows& rows, Operand* kept,
                              AttentionScratch& scratch) {
  places += segment.start;
  for (int h = 0; h < shape.n_heads; ++h) {
    const HeadRows head(shape, segment, rows, h);
    const int width = head.width, head_width = head.head_width, length = head.length, ld = head.ld;
    const Panel keys = pack_transposed(head_width, length, head.key, head.key_stride(), scratch.keys_transposed);
    const Panel values = pack_rows(length, head_width, head.value, head.key_stride(), scratch.rows);
    for (int i = 0; i < length; i += kStrip) {
      const int n_rows = std::min(kStrip, length - i), seen = std::min(length, i + kStrip);
      if (kept) {
        Operand* panel = kept + h * kept_size(length) + static_cast<std::ptrdiff_t>(i) * ld;
        strip_exponentials<true, true>(shape, places, random, h, head, i, n_rows, keys, panel, scratch);
      } else {
        strip_exponentials<true, false>(shape, places, random, h, head, i, n_rows, keys, nullptr, scratch);
      }
      const int depth = round_up(seen, kDepthStep);
      multiply(n_rows, shape.head_columns, depth, scratch.weights, ld, values, scratch.strip, head_width);
      Operand* mixed = rows.mixed + (head.start + i) * width + h * head_width;
      for (int r = 0; r < n_rows; ++r) {
        const Floats factor = splat(head.inverse[i + r] * random.dropout.scale);
        const float* row = scratch.strip + static_cast<std::ptrdiff_t>(r) * head_width;
        write_operands(mixed + static_cast<std::ptrdiff_t>(r) * width, head_width / kLanes,
                       [=](int v) { return load(row + kLanes * v) * factor; });
      }
    }
  }
}

// Adds the gradients of rows of keys (or values) that a panel of query rows gives: left^T right, where left (n_panel,
// columns) are score gradients (or weights) as a Panel and right (n_panel, head_width) queries (or output gradients),
// columns of (tokens, width).
// Column j is seen by rows from j on, so that sums begin at its strip, in the panel that has it. store_column_gradients
// writes what was added up, times `factor`, to columns of (tokens, 2 width).
#if defined(SASREC_BF16)

// What is added up is the transpose, (head_width, columns): the left operand of a product in bf16 has to be transposed
// here, and queries are narrower than score gradients. Rows beyond head_depth, which would be zero, are not written.
inline void add_column_gradients(const AttentionShape& shape, Panel left, const Operand* right, int panel,
                                 int panel_end, int length, float* gradients, Operand* scratch) {
  const int n_panel = panel_end - panel, depth = round_up(n_panel, kDepth), ld = round_up(length, kColumns) + kLanes;
  for (int m = 0; m < shape.head_width; m += 32)
    transpose_columns(n_panel, right + m, shape.width(), scratch + static_cast<std::ptrdiff_t>(m) * depth, depth);
  for (int j = 0; j < panel_end; j += kColumns) {
    const int from = std::max(0, j - panel);
    float* target = gradients + j;
    multiply(shape.head_depth, {kColumns}, round_up(n_panel, kDepthStep) - from, scratch + from, depth,
             left.rows(from).columns(j), target, ld, j < panel ? Init{target, ld} : Init{});
  }
}

inline void store_column_gradients(const AttentionShape& shape, const float* gradients, int length, float factor,
                                   Operand* to) {
  const int to_stride = 2 * shape.width();
  const int ld = round_up(length, kColumns) + kLanes;
  for (int r = 0; r < length; r += 16)
    for (int c = 0; c < shape.head_width; c += 32) {
      alignas(64) Operand pairs[16][32];  // of columns 2 k and 2 k + 1: what transposes as one word
      for (int k = 0; k < 16; ++k) {
        if (c + 2 * k >= shape.head_depth) {
          store_pair(pairs[k], 0, 0, 0, OperandPair{});
          continue;
        }
        const float* row = gradients + static_cast<std::ptrdiff_t>(c + 2 * k) * ld + r;
        store_pair(pairs[k], 0, 0, 0, round_pair(load(row) * factor, load(row + ld) * factor));
      }
      transpose_16x16(pairs, 16, to + static_cast<std::ptrdiff_t>(r) * to_stride + c, to_stride / 2);
    }
}

#else

inline void add_column_gradients(const AttentionShape& shape, Panel left, const Operand* right, int panel,
                                 int panel_end, int, float* gradients, Operand*) {
  const int head_width = shape.head_width, right_stride = shape.width();
  for (int j = 0; j < panel_end; j += kStrip) {
    const int from = std::max(0, j - panel), n_columns = std::min(kStrip, panel_end - j);
    float* target = gradients + static_cast<std::ptrdiff_t>(j) * head_width;
    multiply_transposed(n_columns, shape.head_columns, panel_end - panel - from, left.rows(from).columns(j).data,
                        left.stride, {right + static_cast<std::ptrdiff_t>(from) * right_stride, right_stride}, target,
                        head_width, j < panel ? Init{target, head_width} : Init{});
  }
}

inline void store_column_gradients(const AttentionShape& shape, const float* gradients, int length, float factor,
                                   Operand* to) {
  const int to_stride = 2 * shape.width(), head_width = shape.head_width;
  for (int r = 0; r < length; ++r)
    for (int c = 0; c < head_width; c += kLanes)
      store_operand(to + static_cast<std::ptrdiff_t>(r) * to_stride + c,
                    load(gradients + static_cast<std::ptrdiff_t>(r) * head_width + c) * factor);
}

#endif

// The gradient (n_rows, width) of rows first .. first + n_rows of `mixed` as attention_backward takes it: each row
// times the factor of its weights (dropout's scale over the sum of exponentials), rounded once. Products with it are
// gradients of exponentials, and the exponentials' product with it is the gradient of values.
inline void scale_output_gradients(const AttentionShape& shape, const Dropout& dropout, const AttentionRows& rows,
                                   int first, int n_rows, const float* gradient, Operand* d_mixed) {
  const int width = shape.width(), head_width = shape.head_width;
  d_mixed += static_cast<std::ptrdiff_t>(first) * width;
  for (int r = 0; r < n_rows; ++r, gradient += width, d_mixed += width)
    for (int h = 0; h < shape.n_heads; ++h) {
      const float inverse = rows.inverse[static_cast<std::ptrdiff_t>(h) * rows.capacity + first + r];
      const Floats factor = splat(inverse * dropout.scale);
      const float* row = gradient + h * head_width;
      write_operands(d_mixed + h * head_width, head_width / kLanes,
                     [=](int v) { return load(row + kLanes * v) * factor; });
    }
}

// Gradients of queries (tokens, width) and of keys and values (tokens, 2 width), for d_mixed (tokens, width) from
// scale_output_gradients. `kept` is the forward pass's, and is lost.
inline void attention_backward(const AttentionShape& shape, Segment segment, const TokenPlace* places,
                               const AttentionDropout& random, const AttentionRows& rows, Operand* kept,
                               const Operand* d_mixed, Operand* d_query, Operand* d_key_value,
                               AttentionScratch& scratch) {
  places += segment.start;
  for (int h = 0; h < shape.n_heads; ++h) {
    const HeadRows head(shape, segment, rows, h);
    const int width = head.width, head_width = head.head_width, length = head.length, ld = head.ld;
    Panel keys{};
    if (!kept) keys = pack_transposed(head_width, length, head.key, head.key_stride(), scratch.keys_transposed);
    const Panel values = pack_transposed(head_width, length, head.value, head.key_stride(), scratch.values_transposed);
    const Panel key_rows = pack_rows(length, head_width, head.key, head.key_stride(), scratch.rows);
    for (int panel = 0; panel < length; panel += kPanel) {
      const int panel_end = std::min(length, panel + kPanel), n_panel = panel_end - panel;
      const std::ptrdiff_t at =
          (head.start + panel) * width + h * head_width;  // of the panel's rows, in (tokens, width)
      Operand* exponentials =
          kept ? kept + h * kept_size(length) + static_cast<std::ptrdiff_t>(panel) * ld : scratch.exponentials;
      for (int i = panel; i < panel_end; i += kStrip) {
        const int n_rows = std::min(kStrip, panel_end - i), seen = std::min(length, i + kStrip);
        const int columns = round_up(seen, kColumns), strip = i - panel;
        Operand* strip_panel = exponentials + static_cast<std::ptrdiff_t>(strip) * ld;
        if (!kept)
          strip_exponentials<false, true>(shape, places, random, h, head, i, n_rows, keys, strip_panel, scratch);
        multiply(n_rows, Columns::up_to(seen), shape.head_depth,
                 d_mixed + at + static_cast<std::ptrdiff_t>(strip) * width, width, values, scratch.weight_gradients,
                 ld);
        for (int r = 0; r < n_rows; r += 2) {
          const RowPair pair(places, i + r, r + 1 < n_rows);
          float *d_weight = scratch.weight_gradients + static_cast<std::ptrdiff_t>(r) * ld, *d_weight2 = d_weight + ld;
          Operand* d_row = scratch.gradient_rows + static_cast<std::ptrdiff_t>(r) * ld;
          const auto store_gradients = [&](int c, OperandPair gradients) {
            store_pair(scratch.score_gradients, ld, strip + r, c, gradients);
            if constexpr (kDepth > 1) store_rows(d_row + c, d_row + ld + c, gradients);
          };
          Floats total{}, total2{};  // over columns, of exponentials times their gradients
          for (int c = 0; c < pair.begin; c += kLanes) store_gradients(c, OperandPair{});
          for (int c = pair.begin; c < pair.end; c += kLanes) {
            const auto [e, e2] = load_pair(strip_panel, ld, r, c);
            const Floats t = keep(e > 0.0f, e * load(d_weight + c)), t2 = keep(e2 > 0.0f, e2 * load(d_weight2 + c));
            total += t, total2 += t2;
            store(d_weight + c, t), store(d_weight2 + c, t2);
          }
          const int second = std::min(i + r + 1, length - 1);
          const Floats mean = splat(sum(total) * head.inverse[i + r]);
          const Floats mean2 = splat(sum(total2) * head.inverse[second]);
          for (int c = pair.begin; c < pair.end; c += kLanes) {
            const auto [e, e2] = load_pair(strip_panel, ld, r, c);
            store_gradients(
                c, round_pair(load(d_weight + c) - absolute(e) * mean, load(d_weight2 + c) - absolute(e2) * mean2));
            keep_positive_pair(strip_panel, ld, r, c);
          }
          for (int c = pair.end; c < columns; c += kLanes) store_gradients(c, OperandPair{});
        }
        const int depth = round_up(seen, kDepthStep);
        const Operand* left =
            kDepth > 1 ? scratch.gradient_rows : scratch.score_gradients + static_cast<std::ptrdiff_t>(strip) * ld;
        multiply(n_rows, shape.head_columns, depth, left, ld, key_rows, scratch.strip, head_width);
        for (int r = 0; r < n_rows; ++r) {
          const float* row = scratch.strip + static_cast<std::ptrdiff_t>(r) * head_width;
          write_operands(d_query + at + static_cast<std::ptrdiff_t>(strip + r) * width, head_width / kLanes,
                         [&](int v) { return load(row + kLanes * v) * shape.scale; });
        }
      }
      for (int r = round_up(n_panel, 2); r < round_up(n_panel, kDepth); r += 2)
        for (int c = 0; c < round_up(panel_end, kColumns); c += kLanes) {
          store_pair(exponentials, ld, r, c, OperandPair{});
          store_pair(scratch.score_gradients, ld, r, c, OperandPair{});
        }
      const Panel weights{exponentials, ld}, score_gradients{scratch.score_gradients, ld};
      add_column_gradients(shape, score_gradients, rows.query + at, panel, panel_end, length, scratch.key_gradients,
                           scratch.transposed);
      add_column_gradients(shape, weights, d_mixed + at, panel, panel_end, length, scratch.value_gradients,
                           scratch.transposed);
    }
    Operand* d_key = d_key_value + head.start * 2 * width + h * head_width;
    store_column_gradients(shape, scratch.key_gradients, length, shape.scale, d_key);
    store_column_gradients(shape, scratch.value_gradients, length, 1.0f, d_key + width);
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
