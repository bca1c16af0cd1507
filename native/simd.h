// Vectors of floats as wide as this build's CPU has them, the functions the model needs, and random numbers by counter.
//
// Everything is written once on GCC / Clang vector extensions, which compile to AVX-512, AVX2, SSE2 or NEON; the few
// operations where compilers do badly have intrinsics. One build holds one variant: nothing here is chosen at run time.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sasrec {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
#elif defined(__AVX2__)
inline constexpr int kLanes = 8;
#else
inline constexpr int kLanes = 4;
#endif

using Floats [[gnu::vector_size(4 * kLanes)]] = float;
using Ints [[gnu::vector_size(4 * kLanes)]] = std::int32_t;
using Words [[gnu::vector_size(4 * kLanes)]] = std::uint32_t;

constexpr int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }
constexpr int round_down(int n, int multiple) { return n / multiple * multiple; }

// Vectors of floats as they lie in memory. Not memcpy: what is written so may change floats, but no pointers and sizes,
// which need not be read again.
using FloatsAt [[gnu::vector_size(4 * kLanes), gnu::aligned(4)]] = float;
[[gnu::always_inline]] inline Floats load(const float* p) { return *reinterpret_cast<const FloatsAt*>(p); }
[[gnu::always_inline]] inline void store(float* p, Floats v) { *reinterpret_cast<FloatsAt*>(p) = v; }
[[gnu::always_inline]] inline Floats splat(float x) { return x - Floats{}; }
[[gnu::always_inline]] inline Words splat_words(std::uint32_t x) { return x - Words{}; }
[[gnu::always_inline]] inline Ints as_ints(Floats v) { return reinterpret_cast<Ints>(v); }
[[gnu::always_inline]] inline Floats as_floats(Ints v) { return reinterpret_cast<Floats>(v); }

// Half a vector: CPUs that take a vector of 512 bits in two turns take half of one in one.
#if defined(__AVX512F__)
inline constexpr bool kHalves = true;
#else
inline constexpr bool kHalves = false;
#endif
using HalfFloats [[gnu::vector_size(2 * kLanes)]] = float;

[[gnu::always_inline]] inline HalfFloats load_half(const float* p) {
  HalfFloats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
[[gnu::always_inline]] inline HalfFloats first_half(Floats v) {
#if defined(__AVX512F__)  // GCC takes memcpy's way, here and below, over the stack
  return _mm512_castps512_ps256(v);
#else
  HalfFloats half;
  std::memcpy(&half, &v, sizeof half);
  return half;
#endif
}
[[gnu::always_inline]] inline Floats with_zeros(HalfFloats half) {
#if defined(__AVX512F__)
  return _mm512_zextps256_ps512(half);
#else
  Floats v{};
  std::memcpy(&v, &half, sizeof half);
  return v;
#endif
}

// 0, 1, 2, ... in the lanes.
[[gnu::always_inline]] inline Ints iota() {
  Ints v;
  for (int i = 0; i < kLanes; ++i) v[i] = i;
  return v;
}

[[gnu::always_inline]] inline Floats maximum(Floats a, Floats b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}
[[gnu::always_inline]] inline Floats absolute(Floats v) { return as_floats(as_ints(v) & 0x7fffffff); }

[[gnu::always_inline]] inline Floats square_root(Floats v) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(v);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(v);
#else
  for (int i = 0; i < kLanes; ++i) v[i] = std::sqrt(v[i]);
  return v;
#endif
}

// 1 / x and the square root of x >= 0 from the CPU's estimate and one Newton step: relative error below 4e-7, at a
// third of the time of the exact instructions. Not for x whose result overflows; the root of anything below 1e-36 may
// be 0.
[[gnu::always_inline]] inline Floats quick_reciprocal(Floats x) {
#if defined(__AVX512F__)
  const Floats y = _mm512_rcp14_ps(x);
#elif defined(__AVX2__)
  const Floats y = _mm256_rcp_ps(x);
#else
  return 1.0f / x;
#endif
#if defined(__AVX2__)
  return y + y * (1.0f - x * y);
#endif
}
[[gnu::always_inline]] inline Floats quick_square_root(Floats x) {
#if defined(__AVX512F__)
  const Floats y = _mm512_rsqrt14_ps(maximum(x, splat(1e-36f)));
#elif defined(__AVX2__)
  const Floats y = _mm256_rsqrt_ps(maximum(x, splat(1e-36f)));
#else
  return square_root(x);
#endif
#if defined(__AVX2__)
  const Floats root = x * y;
  return root + 0.5f * y * (x - root * root);
#endif
}

[[gnu::always_inline]] inline float sum(Floats v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(v);
#elif defined(__AVX2__)
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
#else
  return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

// Calls f.operator()<N>() with the number of vectors in a row as a constant where it is a common one, else with 0.
template <typename F>
[[gnu::always_inline]] inline void with_vectors(int width, F&& f) {
  switch (width / kLanes) {
    case 2: return f.template operator()<2>();
    case 3: return f.template operator()<3>();
    case 4: return f.template operator()<4>();
    case 7: return f.template operator()<7>();
    case 8: return f.template operator()<8>();
    default: return f.template operator()<0>();
  }
}

// out[i] = sum(v[i]); four sums together take half of the shuffles of four times one.
template <int N>
[[gnu::always_inline]] inline void sums(const Floats (&v)[N], float (&out)[N]) {
#if defined(__AVX512F__)
  if constexpr (N == 4) {
    const __m512 ab = _mm512_unpacklo_ps(v[0], v[1]) + _mm512_unpackhi_ps(v[0], v[1]);
    const __m512 cd = _mm512_unpacklo_ps(v[2], v[3]) + _mm512_unpackhi_ps(v[2], v[3]);
    const __m512d pairs[2] = {_mm512_castps_pd(ab), _mm512_castps_pd(cd)};
    const __m512 all = _mm512_castpd_ps(_mm512_unpacklo_pd(pairs[0], pairs[1])) +
                       _mm512_castpd_ps(_mm512_unpackhi_pd(pairs[0], pairs[1]));  // each 128 bits: a, b, c, d
    const __m256 half = _mm512_castps512_ps256(all) + _mm512_extractf32x8_ps(all, 1);
    _mm_storeu_ps(out, _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1));
    return;
  }
#elif defined(__AVX2__)
  if constexpr (N == 4) {
    const __m256 ab = _mm256_unpacklo_ps(v[0], v[1]) + _mm256_unpackhi_ps(v[0], v[1]);
    const __m256 cd = _mm256_unpacklo_ps(v[2], v[3]) + _mm256_unpackhi_ps(v[2], v[3]);
    const __m256 all = _mm256_shuffle_ps(ab, cd, 0x44) + _mm256_shuffle_ps(ab, cd, 0xee);  // each half: a, b, c, d
    _mm_storeu_ps(out, _mm256_castps256_ps128(all) + _mm256_extractf128_ps(all, 1));
    return;
  }
#endif
  for (int i = 0; i < N; ++i) out[i] = sum(v[i]);
}

[[gnu::always_inline]] inline float largest(Floats v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(v);
#elif defined(__AVX2__)
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
#else
  float m = v[0];
  for (int i = 1; i < kLanes; ++i) m = v[i] > m ? v[i] : m;
  return m;
#endif
}

// a b + c, in one rounding where the CPU has that: written out, it is the same operation wherever it is used.
[[gnu::always_inline]] inline Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

// The first n < kLanes values, zeros in the other lanes; nothing beyond them is read.
[[gnu::always_inline]] inline Floats load_first(const float* p, int n) {
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
#else
  float values[kLanes] = {};
  std::memcpy(values, p, sizeof(float) * n);
  return load(values);
#endif
}

// One bit for each lane whose value is above the other's (or reaches it).
[[gnu::always_inline]] inline std::uint32_t lanes_above(Floats a, Floats b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ));
#else
  const Ints bits = (a > b) & Ints{1, 2, 4, 8};
  return (bits[0] | bits[1]) | (bits[2] | bits[3]);
#endif
}
[[gnu::always_inline]] inline std::uint32_t lanes_reaching(Floats a, Floats b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ);
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ));
#else
  const Ints bits = (a >= b) & Ints{1, 2, 4, 8};
  return (bits[0] | bits[1]) | (bits[2] | bits[3]);
#endif
}

// 2^r for r in [-0.5, 0.5]: the polynomial of degree 5 whose largest relative error, rounding included, is least
// (2e-7).
[[gnu::always_inline]] inline Floats exp2_near_zero(Floats r) {
  Floats y = splat(1.326472709e-3f);
  y = y * r + 9.671512862e-3f;
  y = y * r + 5.550733746e-2f;
  y = y * r + 2.402224208e-1f;
  y = y * r + 6.931469776e-1f;
  return y * r + 1.0f;
}

// 2^x for x <= 126, relative error below 3e-7; 0 from about -126 down (or, on AVX-512, as small as floats can be). NaN
// stays NaN.
[[gnu::always_inline]] inline Floats exp2(Floats x) {
#if defined(__AVX512F__)
  const Floats integer = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return _mm512_scalef_ps(exp2_near_zero(x - integer), integer);
#else
  const Floats magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const Ints too_small = x < -126.0f;
  x = too_small ? splat(-126.0f) : x;
  const Floats shifted = x + magic;
  const Words bits = reinterpret_cast<Words>(exp2_near_zero(x - (shifted - magic))) +
                     (reinterpret_cast<Words>(shifted) << 23);  // times 2^integer
  const Floats scaled = reinterpret_cast<Floats>(bits);
  return too_small ? Floats{} : scaled;
#endif
}

inline constexpr float kLog2E = 1.44269504f;
inline constexpr float kLn2 = 0.693147181f;

// ln(1 + e) for e in [0, 1], absolute error below 1e-7.
[[gnu::always_inline]] inline Floats log1p(Floats e) {
  const Floats s = e / (e + 2.0f);  // atanh series: ln(1 + e) = 2 (s + s^3 / 3 + s^5 / 5 + ...), s <= 1/3
  const Floats q = s * s;
  Floats y = splat(2.0f / 15);
  y = y * q + 2.0f / 13;
  y = y * q + 2.0f / 11;
  y = y * q + 2.0f / 9;
  y = y * q + 2.0f / 7;
  y = y * q + 2.0f / 5;
  y = y * q + 2.0f / 3;
  y = y * q + 2.0f;
  return y * s;
}

struct SigmoidAndSoftplus {
  Floats sigmoid;   // 1 / (1 + e^-x)
  Floats softplus;  // ln(1 + e^x)
};

[[gnu::always_inline]] inline SigmoidAndSoftplus sigmoid_and_softplus(Floats x) {
  const Floats e = exp2(absolute(x) * -kLog2E);  // in (0, 1]: nothing overflows
  const Floats inverse = 1.0f / (1.0f + e);
  const Floats positive = x > 0.0f ? x : x - x;  // x - x keeps NaN and turns an infinity into NaN
  return {x >= 0.0f ? inverse : e * inverse, positive + log1p(e)};
}

[[gnu::always_inline]] inline Floats sigmoid(Floats x) {
  const Floats e = exp2(absolute(x) * -kLog2E);
  const Floats inverse = 1.0f / (1.0f + e);
  return x >= 0.0f ? inverse : e * inverse;
}

// What matrix products read. Accumulators, norms, softmax, residuals and weights' master copies are always float.
#if defined(SASREC_BF16)
struct Bf16 {
  std::uint16_t bits;
};
using Operand = Bf16;
inline constexpr int kDepth = 32;  // contraction lengths are padded to this with zeros

[[gnu::always_inline]] inline Floats load_operand(const Operand* p) {
  __m256i half;
  std::memcpy(&half, p, sizeof half);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
[[gnu::always_inline]] inline void store_operand(Operand* p, Floats v) {
  using At [[gnu::vector_size(32), gnu::aligned(2)]] = std::uint16_t;
  *reinterpret_cast<At*>(p) = reinterpret_cast<At>(_mm512_cvtneps_pbh(v));
}
// Two vectors one after the other, in two thirds of the time of two calls of store_operand.
[[gnu::always_inline]] inline void store_operands(Operand* p, Floats a, Floats b) {
  using At [[gnu::vector_size(64), gnu::aligned(2)]] = std::uint16_t;
  *reinterpret_cast<At*>(p) = reinterpret_cast<At>(_mm512_cvtne2ps_pbh(b, a));
}
[[gnu::always_inline]] inline void store_operands_16_apart(Operand* p, Floats a, Floats b) { store_operands(p, a, b); }
// A vector of each of two rows, rounded to operands, and what can be done with it.
struct OperandPair {
  __m512i bits;  // of the first row, then of the second
};
struct FloatPair {
  Floats first, second;
};

[[gnu::always_inline]] inline OperandPair round_pair(Floats a, Floats b) {
  return {reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a))};
}
[[gnu::always_inline]] inline OperandPair positive(OperandPair p) {  // zero for what is negative
  return {_mm512_max_epi16(p.bits, _mm512_setzero_si512())};
}
[[gnu::always_inline]] inline OperandPair magnitude(OperandPair p) {
  return {_mm512_and_si512(p.bits, _mm512_set1_epi16(0x7fff))};
}

// Adds pairs of neighbours to the lanes of `total`: a product with ones.
[[gnu::always_inline]] inline Floats add_pairs(Floats total, __m512i pairs) {
  const auto ones = reinterpret_cast<__m512bh>(_mm512_set1_epi16(0x3f80));
  return _mm512_dpbf16_ps(total, reinterpret_cast<__m512bh>(pairs), ones);
}

// The sums of two rows, a pair of vectors at a time.
class PairSums {
 public:
  [[gnu::always_inline]] void add(OperandPair p) { total_ = add_pairs(total_, p.bits); }
  [[gnu::always_inline]] std::pair<float, float> get() const {
    return {_mm512_mask_reduce_add_ps(0x00ff, total_), _mm512_mask_reduce_add_ps(0xff00, total_)};
  }

 private:
  Floats total_{};
};

inline const Operand* as_operands(const float*) { return nullptr; }
#else
using Operand = float;
inline constexpr int kDepth = 1;

[[gnu::always_inline]] inline Floats load_operand(const Operand* p) { return load(p); }
[[gnu::always_inline]] inline void store_operand(Operand* p, Floats v) { store(p, v); }
[[gnu::always_inline]] inline void store_operands(Operand* p, Floats a, Floats b) {
  store(p, a);
  store(p + kLanes, b);
}
[[gnu::always_inline]] inline void store_operands_16_apart(Operand* p, Floats a, Floats b) {
  store(p, a);
  store(p + 16, b);
}
// A vector of each of two rows, and what can be done with it.
struct OperandPair {
  Floats first, second;
};
using FloatPair = OperandPair;

[[gnu::always_inline]] inline OperandPair round_pair(Floats a, Floats b) { return {a, b}; }
[[gnu::always_inline]] inline OperandPair positive(OperandPair p) {  // zero for what is negative
  return {maximum(p.first, Floats{}), maximum(p.second, Floats{})};
}
[[gnu::always_inline]] inline OperandPair magnitude(OperandPair p) { return {absolute(p.first), absolute(p.second)}; }

// The sums of two rows, a pair of vectors at a time.
class PairSums {
 public:
  [[gnu::always_inline]] void add(OperandPair p) { first_ += p.first, second_ += p.second; }
  [[gnu::always_inline]] std::pair<float, float> get() const { return {sum(first_), sum(second_)}; }

 private:
  Floats first_{}, second_{};
};

inline const Operand* as_operands(const float* p) { return p; }  // null where floats must be converted first
#endif

// Writes value(i) for each i < n (Fixed, unless that is 0), vectors one after another.
template <int Fixed = 0, typename N, typename F>
[[gnu::always_inline]] inline void write_operands(Operand* to, N n, F&& value) {
  const N end = Fixed ? Fixed : n;
  N i = 0;
#pragma GCC unroll 4
  for (; i + 2 <= end; i += 2) store_operands(to + kLanes * i, value(i), value(i + 1));
  if (i < end) store_operand(to + kLanes * i, value(i));
}

// Widths (embedding, head, feed-forward) are padded to this inside the engine, with zeros.
inline constexpr int kWidth = kDepth > kLanes ? kDepth : kLanes;

// Random numbers by counter: word number n of a stream depends on (key, n) alone, so the forward and the backward pass,
// any thread and any vector width draw the same numbers.
struct RandomKey {
  std::uint32_t first, second;
};

// Finaliser of splitmix64: every bit of the input moves every bit of the output.
constexpr std::uint64_t mix(std::uint64_t z) {
  z += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// The stream of one sequence at one site of the network in one step.
constexpr RandomKey random_key(std::uint64_t step, std::uint64_t sequence, std::uint64_t site) {
  const std::uint64_t h = mix(mix(mix(step) ^ sequence) ^ site);
  return {static_cast<std::uint32_t>(h), static_cast<std::uint32_t>(h >> 32)};
}

// A keyed 32-bit hash of counters times kCounterFactor (after lowbias32 by C. Wellons, a key before each
// multiplication).
inline constexpr std::uint32_t kCounterFactor = 0x9e3779b1u;
template <typename T>
[[gnu::always_inline]] constexpr T random_words_of_products(RandomKey key, T product) {
  T x = product ^ key.first;
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x ^= key.second;
  x *= 0x846ca68bu;
  x ^= x >> 16;
  return x;
}

// The words of the counters first, first + 1, ...: a vector is multiplied once less than if each lane were by itself.
[[gnu::always_inline]] inline Words random_words(RandomKey key, std::uint32_t first) {
  const Words products = reinterpret_cast<Words>(iota()) * kCounterFactor;  // a constant
  return random_words_of_products(key, products + first * kCounterFactor);
}

// Dropout with probability p, rounded to 1/65536: a decision is one half of a random word.
struct Dropout {
  std::uint32_t threshold = 0;  // of 65536; 0 = no dropout
  float scale = 1.0f;           // of what is kept

  explicit Dropout(float p) : threshold(static_cast<std::uint32_t>(std::lround(p * 65536.0))) {
    scale = 65536.0f / (65536.0f - static_cast<float>(threshold));
  }
  explicit operator bool() const { return threshold != 0; }

  // All ones where the low (or high) half of the word says keep.
  [[gnu::always_inline]] Ints kept(Words word, bool high) const {
    return reinterpret_cast<Ints>(high ? word >> 16 : word & 0xffffu) >= static_cast<std::int32_t>(threshold);
  }

  // scale where the low (or high) half of the word says keep, else 0.
  [[gnu::always_inline]] Floats factor_low(Words word) const { return kept(word, false) ? splat(scale) : Floats{}; }
  [[gnu::always_inline]] Floats factor_high(Words word) const { return kept(word, true) ? splat(scale) : Floats{}; }
};

// Words that a row of `width` values takes: columns 32 g + i and 32 g + 16 + i share word 16 g + i.
constexpr int dropout_words(int width) { return round_up(width, 32) / 2; }

// Factor of the values column .. column + kLanes of a row whose words start at counter `first_word`.
[[gnu::always_inline]] inline Floats dropout_factor(const Dropout& dropout, RandomKey key, std::uint32_t first_word,
                                                    int column) {
  const std::uint32_t start = first_word + (column / 32) * 16 + column % 16;
  const Words words = random_words(key, start);
  return column % 32 < 16 ? dropout.factor_low(words) : dropout.factor_high(words);
}

}  // namespace sasrec
