// The kernels of one variant against plain loops. Exit status 77: this CPU does not run the variant.

#include "../adam.h"
#include "../block.h"
#include "check.h"

#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sasrec::test {

void test_training();  // training.cpp
void test_edges();     // edges.cpp

namespace {

bool cpu_runs_this() {
#if defined(__AMX_BF16__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) return false;
#endif
#if defined(SASREC_BF16)
  if (!__builtin_cpu_supports("avx512bf16")) return false;
#endif
#if defined(__AVX512F__)
  return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
#elif defined(__AVX2__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return true;
#endif
}

void test_functions() {
  Comparison power("exp2", 4e-7), logistic("sigmoid", 3e-7), softplus("softplus", 3e-7);
  for (float x = -125; x <= 125; x += 0.37f) {
    power.add(exp2(splat(x))[kLanes - 1] / std::exp2(static_cast<double>(x)), 1);
    const SigmoidAndSoftplus s = sigmoid_and_softplus(splat(x));
    logistic.add(s.sigmoid[0], 1 / (1 + std::exp(-static_cast<double>(x))));
    logistic.add(sigmoid(splat(x))[0], s.sigmoid[0]);
    softplus.add((s.softplus[0] + 1) / (std::log1p(std::exp(static_cast<double>(x))) + 1), 1);
  }
  expect(exp2(splat(-1000))[0] == 0 && exp2(splat(-INFINITY))[0] == 0, "exp2 of very negative numbers is zero");
  expect(std::isnan(exp2(splat(NAN))[0]), "exp2 keeps NaN");
  const Floats counting = __builtin_convertvector(iota(), Floats);
  expect(sum(counting) == kLanes * (kLanes - 1) / 2.0f, "sum adds all lanes");
  expect(largest(-counting) == 0 && largest(counting) == kLanes - 1, "largest looks at all lanes");
}

void test_random_words() {
  const RandomKey key = random_key(1, 2, 3);
  expect(key.first == 0xfde362b3u && key.second == 0xd0734750u, "random_key is the same in every build");
  std::uint32_t all = 0;
  for (std::uint32_t n = 0; n < 1000; ++n) {
    const std::uint32_t word = random_word(key, n);
    all = all * 31 + word;
    const Words lanes = random_words(key, n);
    expect(lanes[0] == word, "a lane draws the word of its counter");
    expect(lanes[kLanes - 1] == random_word(key, n + kLanes - 1), "the last lane draws the word of its counter");
  }
  expect(all == 0xeb5d8213u, "random words are the same in every build");
}

void test_dropout_factors() {
  const Dropout dropout(0.25f);
  const RandomKey key = random_key(4, 5, 6);
  for (int column = 0; column < 96; column += kLanes) {
    const Floats factor = dropout_factor(dropout, key, 7, column);
    for (int i = 0; i < kLanes; ++i) {
      const int c = column + i;
      const std::uint32_t word = random_word(key, 7u + c / 32 * 16 + c % 16);
      const std::uint32_t half = c % 32 < 16 ? word & 0xffff : word >> 16;
      expect(factor[i] == (half < 16384 ? 0.0f : 4.0f / 3), "columns 16 apart share a random word");
    }
  }
}

// C = init + A B for a packed B, and for the transpose of a matrix packed as B.
void test_multiply(int rows, int cols, int depth, int init_kind) {
  Random random(rows * 1000 + cols + depth);
  const int room = round_up(rows, 16);
  const Array<Operand> a = random_operands(static_cast<std::size_t>(room) * depth, random);
  const Array<Operand> b = random_operands(static_cast<std::size_t>(depth) * cols, random);
  const Array<Operand> b_transposed = random_operands(static_cast<std::size_t>(cols) * depth, random);
  const Array<float> start = random_floats(static_cast<std::size_t>(room) * cols, random);
  for (const bool transposed : {false, true}) {
    Array<Operand> scratch(static_cast<std::size_t>(depth) * panel_stride(cols));
    Array<float> c(static_cast<std::size_t>(room) * cols);
    std::copy_n(start.data(), c.size(), c.data());
    const Panel panel = transposed ? pack_transposed(depth, cols, b_transposed.data(), depth, scratch.data())
                                   : pack_rows(depth, cols, b.data(), cols, scratch.data());
    const Init init = init_kind == 0 ? Init{} : init_kind == 1 ? Init{start.data(), 0} : Init{c.data(), cols};
    multiply(rows, {cols}, depth, a.data(), depth, panel, c.data(), cols, init);
    Comparison same("multiply " + std::to_string(rows) + "x" + std::to_string(cols) + "x" + std::to_string(depth),
                    kProductTolerance);
    for (int r = 0; r < rows; ++r)
      for (int n = 0; n < cols; ++n) {
        double total = init_kind == 0 ? 0 : init_kind == 1 ? start[n] : start[r * cols + n];
        for (int k = 0; k < depth; ++k)
          total += value(a[r * depth + k]) * value(transposed ? b_transposed[n * depth + k] : b[k * cols + n]);
        same.add(c[r * cols + n], total);
      }
  }
}

void test_products() {
  for (const int rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 23, 64})
    for (const int width : {kWidth, 2 * kWidth, 3 * kWidth, 4 * kWidth, 5 * kWidth, 7 * kWidth, 128})
      for (const int init : {0, 1, 2}) test_multiply(rows, width, rows % 2 ? 2 * kWidth : width, init);
}

// Of the columns that nobody wants, zeros of B and of where C starts from, zeros come out.
void test_products_of_narrow_groups() {
  for (const int n_groups : {1, 2, 3})
    for (const int size : {1, kLanes / 2, kLanes / 2 + 1, kWidth, kWidth + 2, 3 * kWidth + 1})
      for (const bool adds : {false, true}) {
        const int stride = round_up(size, kWidth), cols = n_groups * stride, depth = 2 * kWidth, rows = 9;
        Random random(cols + size);
        const auto wanted = [&](int c) { return c % stride < size; };
        const Array<Operand> a = random_operands(static_cast<std::size_t>(16) * depth, random);
        Array<Operand> b = random_operands(static_cast<std::size_t>(depth) * cols, random);
        Array<float> c = random_floats(static_cast<std::size_t>(16) * cols, random);
        for (std::size_t i = 0; i < b.size(); ++i)
          if (!wanted(i % cols)) b[i] = Operand{};
        for (std::size_t i = 0; i < c.size(); ++i)
          if (adds && !wanted(i % cols)) c[i] = 0;
        const std::vector<float> start(c.data(), c.data() + c.size());
        Array<Operand> scratch(static_cast<std::size_t>(depth) * cols);
        multiply(rows, Columns::groups(n_groups, size, stride), depth, a.data(), depth,
                 pack_rows(depth, cols, b.data(), cols, scratch.data()), c.data(), cols,
                 adds ? Init{c.data(), cols} : Init{});
        Comparison same("product with " + std::to_string(n_groups) + " groups of " + std::to_string(size),
                        kProductTolerance);
        for (int i = 0; i < rows * cols; ++i) {
          double total = adds ? start[i] : 0;
          for (int k = 0; k < depth; ++k) total += value(a[i / cols * depth + k]) * value(b[k * cols + i % cols]);
          same.add(c[i], total);
          if (!wanted(i % cols)) expect(c[i] == 0, "columns that nobody wants are zero");
        }
      }
}

void test_transpose_of_any_number_of_columns() {
  for (const int cols : {1, 3, 15, 16, 17, 40, 128}) {
    Random random(cols);
    const int depth = 2 * kWidth, stride = round_up(cols, kDepth > 1 ? 16 : kLanes);
    const Array<Operand> a = random_operands(depth, random);
    const Array<Operand> b = random_operands(static_cast<std::size_t>(round_up(cols, 16)) * depth, random);
    Array<Operand> scratch(static_cast<std::size_t>(depth) * panel_stride(round_up(cols, 16)));
    Array<float> c(static_cast<std::size_t>(16) * stride);
    const Array<Operand> rows = [&] {
      Array<Operand> room(static_cast<std::size_t>(16) * depth);
      std::copy_n(a.data(), depth, room.data());
      return room;
    }();
    const Panel panel = pack_transposed(depth, cols, b.data(), depth, scratch.data());
    multiply(1, Columns::up_to(cols), depth, rows.data(), depth, panel, c.data(), stride);
    Comparison same("product with a transpose of " + std::to_string(cols) + " rows", kProductTolerance);
    for (int n = 0; n < cols; ++n) {
      double total = 0;
      for (int k = 0; k < depth; ++k) total += value(a[k]) * value(b[n * depth + k]);
      same.add(c[n], total);
    }
  }
}

void test_outer_products() {
  for (const auto& [n, cols] : {std::pair{1, 3 * kWidth}, {2, 3 * kWidth}, {31, 128}, {33, 3 * kWidth}, {300, 128}}) {
    Random random(n);
    const int rows = 2 * kWidth;
    const Array<Operand> x = random_operands(static_cast<std::size_t>(n) * rows, random);
    const Array<Operand> dy = random_operands(static_cast<std::size_t>(n) * cols, random);
    Array<Operand> scratch(static_cast<std::size_t>(round_up(n, kDepth)) * (cols + 32));
    Array<float> w = random_floats(static_cast<std::size_t>(rows) * cols, random), bias = random_floats(cols, random);
    std::vector<double> expected(w.data(), w.data() + rows * cols), sums(bias.data(), bias.data() + cols);
    accumulate_outer(n, rows, {cols}, x.data(), rows, dy.data(), cols, w.data(), cols, bias.data(), scratch.data());
    Comparison same("sum of " + std::to_string(n) + " outer products", kProductTolerance);
    Comparison same_sums("sums of the columns of " + std::to_string(n) + " rows", kProductTolerance);
    for (int c = 0; c < cols; ++c) {
      for (int i = 0; i < n; ++i) sums[c] += value(dy[i * cols + c]);
      same_sums.add(bias[c], sums[c]);
    }
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < cols; ++c) {
        for (int i = 0; i < n; ++i) expected[r * cols + c] += value(x[i * rows + r]) * value(dy[i * cols + c]);
        same.add(w[r * cols + c], expected[r * cols + c]);
      }
  }
}

// A norm of `dim` columns in a padded row, forward and backward.
struct NormCase {
  explicit NormCase(int dim) : dim(dim), width(round_up(dim, kWidth)), mask(width), scale(width), shift(width) {
    Random random(dim);
    x = padded_rows(random), add = padded_rows(random), dy = padded_rows(random);
    for (int c = 0; c < dim; ++c) mask[c] = 1, scale[c] = random.uniform(), shift[c] = random.uniform();
  }

  Array<float> padded_rows(Random& random) const {
    Array<float> rows(static_cast<std::size_t>(kRows) * width);
    for (int r = 0; r < kRows; ++r)
      for (int c = 0; c < dim; ++c) rows[r * width + c] = random.uniform();
    return rows;
  }

  static constexpr int kRows = kNormRows + 5;  // all that are worked on together, four and one
  int dim, width;
  Array<float> x, add, dy, mask, scale, shift;
};

void test_norm_of(int dim) {
  NormCase n(dim);
  const std::size_t size = static_cast<std::size_t>(NormCase::kRows) * n.width;
  Array<float> normalised(size), inverse(NormCase::kRows), out(size), sums(size), dx(size);
  Array<float> d_scale(n.width), d_shift(n.width);
  const RowShape shape{NormCase::kRows, n.width, dim, n.mask.data()};
  const NormState state{normalised.data(), inverse.data()};
  const float eps = 1e-3f;
  Array<Operand> operands(size), sum_operands(size);
  norm_forward(shape, n.x.data(), n.add.data(), {n.scale.data(), n.shift.data()}, eps, state,
               {sums.data(), sum_operands.data(), out.data(), operands.data()});
  norm_backward(shape, n.dy.data(), n.scale.data(), state, d_scale.data(), d_shift.data(), dx.data(), false);
  const std::string name = "norm of " + std::to_string(dim) + ": ";
  Comparison forward(name + "out", 1e-5), backward(name + "dx", 2e-5, 0.1), scales(name + "scale's gradient", 1e-5);
  std::vector<double> expected_scale(n.width);
  for (int r = 0; r < NormCase::kRows; ++r) {
    const int at = r * n.width;
    double mean = 0, variance = 0, slope = 0, level = 0;
    for (int c = 0; c < dim; ++c) mean += (static_cast<double>(n.x[at + c]) + n.add[at + c]) / dim;
    const auto centred = [&](int c) { return static_cast<double>(n.x[at + c]) + n.add[at + c] - mean; };
    for (int c = 0; c < dim; ++c) variance += centred(c) * centred(c) / dim;
    const double deviation = std::sqrt(variance + eps);
    for (int c = 0; c < dim; ++c) {
      const double v = centred(c) / deviation, t = static_cast<double>(n.dy[at + c]) * n.scale[c];
      slope += t * v / dim, level += t / dim;
      expected_scale[c] += v * n.dy[at + c];
      forward.add(out[at + c], v * n.scale[c] + n.shift[c]);
    }
    for (int c = 0; c < dim; ++c) {
      const double v = centred(c) / deviation, t = static_cast<double>(n.dy[at + c]) * n.scale[c];
      backward.add(dx[at + c], (t - level - v * slope) / deviation);
    }
    for (int c = dim; c < n.width; ++c)
      expect(out[at + c] == 0 && dx[at + c] == 0 && sums[at + c] == 0, name + "padding stays zero");
  }
  for (int c = 0; c < dim; ++c) scales.add(d_scale[c], expected_scale[c]);
  Comparison copies(name + "operands", kTolerance);
  for (std::size_t i = 0; i < size; ++i) {
    copies.add(value(operands[i]), out[i]);
    copies.add(value(sum_operands[i]), sums[i]);
    copies.add(sums[i], static_cast<double>(n.x[i]) + n.add[i]);
  }
}

// Sums of four vectors together are those of each.
void test_sums_of_four() {
  Random random(5);
  const Array<float> values = random_floats(4 * kLanes, random);
  Floats vectors[4];
  for (int i = 0; i < 4; ++i) vectors[i] = load(&values[i * kLanes]);
  float together[4];
  sums(vectors, together);
  Comparison same("sums of four vectors", 1e-6, 0.1);
  for (int i = 0; i < 4; ++i) same.add(together[i], sum(vectors[i]));
}

// Rows and pairs of rows, written two at a time, are what the products read.
void test_stores_of_two_rows() {
  Random random(6);
  const Array<float> a = random_floats(kLanes, random), b = random_floats(kLanes, random);
  Array<Operand> rows(2 * kLanes), panel(4 * 2 * kLanes), packed(round_up(4, kDepth) * kWidth);
  const OperandPair pair = round_pair(load(a.data()), load(b.data()));
  store_rows(rows.data(), rows.data() + kLanes, pair);
  store_operands(panel.data(), load(a.data()), load(b.data()));
  Array<Operand> apart(16 + kLanes);
  store_operands_16_apart(apart.data(), load(a.data()), load(b.data()));
  for (int i = 0; i < kLanes; ++i) {
    expect(value(rows[i]) == value(panel[i]) && value(rows[kLanes + i]) == value(panel[kLanes + i]),
           "rows and neighbours are rounded alike");
    expect(value(apart[i]) == value(panel[i]) && value(apart[16 + i]) == value(panel[kLanes + i]),
           "neighbours and vectors 16 columns apart are rounded alike");
    Comparison rounded("what is stored", kTolerance);
    rounded.add(value(rows[i]), a[i]), rounded.add(value(rows[kLanes + i]), b[i]);
  }
  Array<Operand> source(4 * kWidth);
  for (int c = 0; c < kWidth; c += kLanes) store_rows(&source[2 * kWidth + c], &source[3 * kWidth + c], pair);
  const Panel expected = pack_rows(4, kWidth, source.data(), kWidth, packed.data());
  Array<Operand> written(round_up(4, kDepth) * kWidth);
  for (int c = 0; c < kWidth; c += kLanes) store_pair(written.data(), kWidth, 2, c, pair);
  for (int i = 0; i < 4 * kWidth; ++i)
    expect(value(expected.data[i]) == value(written[i]), "a pair of rows lies where pack_rows puts it");
}

// Attention of a segment of sequences side by side: operands, results of the kernels, results of loops.
class AttentionCase {
 public:
  AttentionCase(int n_heads, int head_dim, const std::vector<int>& lengths, float dropout)
      : dropout_(dropout), shape_(model_shape(n_heads, head_dim, lengths)), workspace_(shape_, n_tokens(lengths)),
        n_(n_tokens(lengths)), width_(shape_.attention_width()), room_(workspace_.capacity) {
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      const int first = static_cast<int>(places_.size());
      for (int j = 0; j < lengths[s]; ++j) places_.push_back({static_cast<int>(s), j, first});
      keys_.push_back(100 + s);
    }
    Random random(n_);
    query_ = random_operands(room_ * width_, random), key_value_ = random_operands(room_ * 2 * width_, random);
    d_mixed_ = random_floats(room_ * width_, random), scaled_.resize(room_ * width_);
    mixed_.resize(room_ * width_), d_query_.resize(room_ * width_), d_key_value_.resize(room_ * 2 * width_);
    inverse_.resize(room_ * n_heads), kept_.resize(n_heads * kept_size(n_));
  }

  // With exponentials kept for the way back, or made again.
  void check(bool keeps) {
    const int head = shape_.head_width();
    const AttentionShape shape{shape_.n_heads, head, head, {head}, shape_.max_seq_len, scale()};
    const AttentionDropout random{dropout_, kStep, keys_.data(), kSite};
    const AttentionRows rows{query_.data(), key_value_.data(), mixed_.data(), inverse_.data(), workspace_.capacity};
    Operand* kept = keeps ? kept_.data() : nullptr;
    {
      Tiles tiles;
      attention_forward(shape, {0, n_}, places_.data(), random, rows, kept, workspace_.attention);
      scale_output_gradients(shape, dropout_, rows, 0, n_, d_mixed_.data(), scaled_.data());
      attention_backward(shape, {0, n_}, places_.data(), random, rows, kept, scaled_.data(), d_query_.data(),
                         d_key_value_.data(), workspace_.attention);
    }
    expected_mixed_.assign(n_ * width_, 0.0), expected_d_query_ = expected_mixed_;
    expected_d_key_value_.assign(n_ * 2 * width_, 0.0);
    for (int h = 0; h < shape_.n_heads; ++h)
      for (int r = 0; r < n_; ++r) expect_row(h, r);
    const std::string name = "attention of " + std::to_string(n_) + " tokens in " + std::to_string(keys_.size()) +
                             " sequences, " + std::to_string(shape_.n_heads) + " heads, " +
                             (keeps ? "kept: " : "made again: ");
    compare(name + "mixed", mixed_, expected_mixed_);
    compare(name + "query's gradient", d_query_, expected_d_query_);
    compare(name + "keys' and values' gradient", d_key_value_, expected_d_key_value_);
  }

 private:
  static constexpr std::uint64_t kStep = 11, kSite = 1040;

  static int n_tokens(const std::vector<int>& lengths) {
    int n = 0;
    for (const int length : lengths) n += length;
    return n;
  }
  static ModelShape model_shape(int n_heads, int head_dim, const std::vector<int>& lengths) {
    ModelShape shape;
    shape.dim = n_heads * head_dim, shape.ffn_dim = shape.dim, shape.n_heads = n_heads;
    shape.max_seq_len = n_tokens(lengths) + 1;
    return shape;
  }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape_.head_dim())); }

  // Row r of head h: its result, and what it adds to the gradients.
  void expect_row(int h, int r) {
    const int head = shape_.head_width(), first = places_[r].first, query = r * width_ + h * head;
    const auto key = [&](int c) { return c * 2 * width_ + h * head; };
    const RandomKey stream = random_key(kStep, keys_[places_[r].sequence], kSite + h);
    std::vector<double> weight(r + 1), factor(r + 1, 1.0), d_weight(r + 1);
    double total = 0, mean = 0;
    for (int c = first; c <= r; ++c) {
      double s = 0;
      for (int d = 0; d < head; ++d) s += value(query_[query + d]) * value(key_value_[key(c) + d]);
      total += weight[c] = std::exp(s * scale());
      if (!dropout_) continue;
      const int word = places_[r].index / 2 * shape_.max_seq_len + c - first;
      const std::uint32_t drawn = random_word(stream, static_cast<std::uint32_t>(word));
      const bool kept = (places_[r].index % 2 ? drawn >> 16 : drawn & 0xffff) >= dropout_.threshold;
      factor[c] = kept ? dropout_.scale : 0;
    }
    for (int c = first; c <= r; ++c) {
      weight[c] /= total;
      for (int d = 0; d < head; ++d) {
        const double gradient = d_mixed_[query + d], v = value(key_value_[key(c) + width_ + d]);
        expected_mixed_[query + d] += weight[c] * factor[c] * v;
        expected_d_key_value_[key(c) + width_ + d] += weight[c] * factor[c] * gradient;
        d_weight[c] += factor[c] * gradient * v;
      }
      mean += weight[c] * d_weight[c];
    }
    for (int c = first; c <= r; ++c) {
      const double d_score = weight[c] * (d_weight[c] - mean) * scale();
      for (int d = 0; d < head; ++d) {
        expected_d_query_[query + d] += d_score * value(key_value_[key(c) + d]);
        expected_d_key_value_[key(c) + d] += d_score * value(query_[query + d]);
      }
    }
  }

  static void compare(const std::string& name, const Array<Operand>& got, const std::vector<double>& expected) {
    Comparison same(name, kTolerance, 0.1);
    for (std::size_t i = 0; i < expected.size(); ++i) same.add(value(got[i]), expected[i]);
  }

  Dropout dropout_;
  ModelShape shape_;
  Workspace workspace_;
  int n_, width_;
  std::size_t room_;
  std::vector<TokenPlace> places_;
  std::vector<std::uint64_t> keys_;
  Array<Operand> query_, key_value_, mixed_, d_query_, d_key_value_;
  Array<float> d_mixed_, inverse_;
  Array<Operand> scaled_, kept_;
  std::vector<double> expected_mixed_, expected_d_query_, expected_d_key_value_;
};

void test_attention() {
  for (const float dropout : {0.0f, 0.3f})
    for (const bool keeps : {true, false}) {
      for (const int length : {1, 2, 15, 16, 17, 24, 25, 49, 191, 193, 230, 250})
        AttentionCase(1, kWidth, {length}, dropout).check(keeps);
      for (const int n_heads : {1, 2, 3}) AttentionCase(n_heads, kWidth, {3, 1, 5, 1, 6}, dropout).check(keeps);
      AttentionCase(2, 2 * kWidth, {40}, dropout).check(keeps);
    }
}

void test_attention_of_one_query() {
  const float scale = 0.3f;
  for (const int length : {1, 2, 16, 17, 200})
    for (const int width : {kWidth, 3 * kWidth}) {
      Random random(length);
      const Array<float> query = random_floats(width, random);
      const Array<Operand> rows = random_operands(static_cast<std::size_t>(length) * width, random);
      Array<Operand> out(width);
      Array<float> scores(round_up(length, kLanes));
      attend_rows(query.data(), rows.data(), length, width, scale, out.data(), scores.data());
      std::vector<double> weight(length), mean(width);
      double total = 0;
      for (int r = 0; r < length; ++r) {
        for (int c = 0; c < width; ++c) weight[r] += query[c] * value(rows[r * width + c]) * scale;
        total += weight[r] = std::exp(weight[r]);
      }
      Comparison same("attention of one query to " + std::to_string(length) + " rows", kTolerance, 0.1);
      for (int c = 0; c < width; ++c) {
        for (int r = 0; r < length; ++r) mean[c] += weight[r] / total * value(rows[r * width + c]);
        same.add(value(out[c]), mean[c]);
      }
    }
}

void test_adam() {
  const Adam adam{0.01f, 0.9f, 0.98f};
  Random random(1);
  Array<float> p = random_floats(kLanes, random), m(kLanes), v(kLanes);
  std::vector<double> expected(p.data(), p.data() + kLanes), mean(kLanes), square(kLanes);
  Comparison same("Adam", 1e-6);
  for (int t = 1; t <= 20; ++t) {
    const Array<float> gradient = random_floats(kLanes, random);
    AdamStep(adam, t).apply(p.data(), m.data(), v.data(), load(gradient.data()));
    for (int i = 0; i < kLanes; ++i) {
      const double g = gradient[i];
      mean[i] += (g - mean[i]) * (1 - 0.9), square[i] += (g * g - square[i]) * (1 - 0.98);
      expected[i] -=
          0.01 * (mean[i] / (1 - std::pow(0.9, t))) / (std::sqrt(square[i] / (1 - std::pow(0.98, t))) + 1e-8);
      same.add(p[i], expected[i]);
    }
  }
}

// Rows that wait, and then take all of their steps at once, end where each step alone brings them: to the bit, whatever
// the learning rate does meanwhile. `begins` is how many steps there were before.
void test_waiting_rows(const std::string& name, std::int64_t begins, float (*learning_rate)(int)) {
  constexpr int kSteps = 250;
  const TinyIsZero tiny_is_zero;
  Random random(31);
  PastSteps past;
  past.start_after(begins);
  std::vector<AdamStep> steps;
  std::vector<float> rests;
  for (int k = 0; k < kSteps; ++k) {
    steps.emplace_back(Adam{learning_rate(k), 0.9f, 0.98f}, begins + k + 1);
    rests.push_back(k % 7 == 3 ? 0.0f : 0.002f);
    past.record(steps.back());
    if (rests.back() != 0) past.record_average(rests.back());
  }
  int n_wrong = 0;
  for (int row = 0; row < 400; ++row) {
    const int width = row % 2 ? kLanes : 5 * kLanes, from = random.below(kSteps);
    Array<float> p(width), m(width), v(width), slow(width), q(width), n(width), w(width), mean(width);
    for (int c = 0; c < width; ++c) {
      const float scale = std::pow(10.0f, 3 * random.uniform() - 3);
      p[c] = random.below(50) ? random.uniform() : 0.0f, slow[c] = p[c] + 0.01f * random.uniform();
      m[c] = random.below(9) ? scale * random.uniform() : 0.0f;
      v[c] = random.below(9) ? m[c] * m[c] * std::abs(random.uniform()) : scale * scale;
      q[c] = p[c], n[c] = m[c], w[c] = v[c], mean[c] = slow[c];
    }
    const bool has_average = row % 3 > 0;
    past.take(begins + from, false, width, p.data(), m.data(), v.data(), has_average ? slow.data() : nullptr);
    for (int k = from; k < kSteps; ++k)
      for (int c = 0; c < width; c += kLanes) {
        steps[k].apply(&q[c], &n[c], &w[c], Floats{});
        if (has_average && rests[k] != 0) store(&mean[c], averaged(load(&mean[c]), load(&q[c]), rests[k]));
      }
    for (int c = 0; c < width; ++c) n_wrong += p[c] != q[c] || m[c] != n[c] || v[c] != w[c] || slow[c] != mean[c];
  }
  expect(n_wrong == 0, name + ": " + std::to_string(n_wrong) + " values of waiting rows differ");
}

void test_waiting_rows() {
  test_waiting_rows("a constant learning rate", 1000, [](int) { return 1e-3f; });
  test_waiting_rows("a high learning rate", 100000, [](int) { return 10.0f; });
  test_waiting_rows("the first steps, while it grows", 0, [](int k) { return 1e-5f * (k + 1); });
  test_waiting_rows("it falls to nothing", 5000, [](int k) { return 1e-3f * (249 - k); });
  test_waiting_rows("it is nothing, and then much", 5000, [](int k) { return k < 200 ? 0.0f : 1.0f; });
  test_waiting_rows("it leaps", 300, [](int k) { return k % 50 == 49 ? 1e3f : 1e-6f; });
}

// Not part of main: what a variant's compiler makes of its locals may be beyond the CPU.
[[gnu::noinline]] int run_tests() {
  test_functions();
  test_random_words();
  test_dropout_factors();
  {
    sasrec::Tiles tiles;
    test_products();
    test_products_of_narrow_groups();
    test_transpose_of_any_number_of_columns();
    test_outer_products();
  }
  test_stores_of_two_rows();
  test_sums_of_four();
  for (const int dim : {1, 7, 50, 64, 96, 128, 150}) test_norm_of(dim);
  test_attention();
  test_attention_of_one_query();
  test_adam();
  test_waiting_rows();
  test_training();
  test_edges();
  std::printf("%d checks, %d failed\n", n_checks, n_failures);
  return n_failures ? 1 : 0;
}

}  // namespace
}  // namespace sasrec::test

int main() {
  using namespace sasrec::test;
  if (!cpu_runs_this()) {
    std::puts("skipped: this CPU does not run this variant");
    return 77;
  }
  return run_tests();
}
