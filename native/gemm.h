// Small matrix products: a few hundred rows, widths of a model, operands that stay in the core's own cache.
//
//   multiply             C = init + A B     A (rows, depth) row-major, B a Panel
//   multiply_transposed  C += A^T B         A (depth, rows) row-major: weight gradients, and dK, dV of attention
//
// A Panel is the right operand in the order the kernel streams it. Floats: plain row-major (depth, cols). bf16: pairs
// of rows interleaved, (depth / 2, cols, 2), which is what both AMX tiles and vdpbf16ps take; depth is padded with
// zeros to kDepth, and gone through in steps of kDepthStep. Products accumulate in float registers or tiles over the
// whole depth; C is written once.
//
// Where B is narrow enough it stays in L1 (64 x 64 floats are 16 KiB) while A streams by, a row block at a time.
#pragma once

#include <algorithm>

#include "simd.h"

#if defined(SASREC_SIMULATED_TILES)
#include "tests/simulated_tiles.h"
#endif

namespace sasrec {

#if defined(__AMX_BF16__) || defined(SASREC_SIMULATED_TILES)
#define SASREC_TILES
#endif

// What a depth has to be a multiple of in a product: a tile's row, or a pair.
#if defined(SASREC_TILES)
inline constexpr int kDepthStep = kDepth;
#elif defined(SASREC_BF16)
inline constexpr int kDepthStep = 2;
#else
inline constexpr int kDepthStep = 1;
#endif

// Columns from one row (or pair of rows) of a Panel that is made to be read over and over to the next. Rows of floats
// 512 bytes or a multiple of that apart would get in each other's way: they share an eighth of L1, or less.
constexpr int panel_stride(int cols) { return kDepth == 1 && cols % 128 == 0 ? cols + 16 : cols; }

struct Panel {
  const Operand* data;
  int stride;  // columns from one row (or pair of rows) to the next

  Panel columns(int first) const {
#if defined(SASREC_BF16)
    return {data + 2 * first, stride};
#else
    return {data + first, stride};
#endif
  }
  Panel rows(int first) const { return {data + static_cast<std::ptrdiff_t>(first) * stride, stride}; }  // first: even
};

// Columns of a product: `count`, a multiple of kLanes. Where half_every is not 0, nobody wants the last half vector of
// each so many columns: it is zero in B and in init, or whatever comes of it is not read.
struct Columns {
  int count;
  int half_every = 0;

  // Enough for columns 0 .. n.
  static Columns up_to(int n) { return groups(1, n, round_up(n, kLanes)); }

  // Groups of `size` values, `stride` from one to the next.
  static Columns groups(int n_groups, int size, int stride) {
    return {n_groups * stride, stride - size >= kLanes / 2 ? stride : 0};
  }

  bool half_ends_at(int n) const { return kHalves && half_every && n % half_every == 0; }
};

// Where C starts from: null = zero; stride 0 = the same row, a bias, for all; C itself = accumulate.
struct Init {
  const float* data = nullptr;
  int stride = 0;
};

// Calls f.operator()<N, Half>(n) for blocks of N vectors of columns from n on, N at most Most, and none of one vector
// where there are more: its sums would be too few to keep multipliers busy.
template <int Most, typename F>
[[gnu::always_inline]] inline void for_column_blocks(Columns cols, F&& f) {
  for (int n = 0; n < cols.count;) {
    const int left = (cols.count - n) / kLanes, vectors = left == Most + 1 ? Most - 1 : std::min(Most, left);
    const auto block = [&]<int N>() {
      if (cols.half_ends_at(n + N * kLanes)) {
        f.template operator()<N, kHalves>(n);
      } else {
        f.template operator()<N, false>(n);
      }
    };
    switch (vectors) {
      case 4: block.template operator()<std::min(4, Most)>(); break;
      case 3: block.template operator()<std::min(3, Most)>(); break;
      case 2: block.template operator()<std::min(2, Most)>(); break;
      default: block.template operator()<1>();
    }
    n += vectors * kLanes;
  }
}

// Calls f.operator()<rows>() for 1 <= rows <= Rows.
template <int Rows, typename F>
[[gnu::always_inline]] inline void with_rows(int rows, F&& f) {
  if constexpr (Rows > 1) {
    if (rows != Rows) return with_rows<Rows - 1>(rows, f);
  }
  f.template operator()<Rows>();
}

// Calls f.operator()<Rows>(m) for blocks of rows m .. m + Rows, Rows at most Most. The last two share what is left.
template <int Most, typename F>
[[gnu::always_inline]] inline void for_tile_rows(int rows, F&& f) {
  for (int m = 0; m < rows;) {
    const int left = rows - m, here = left >= 2 * Most ? Most : left > Most ? (left + 1) / 2 : left;
    with_rows<Most>(here, [&]<int Rows>() { f.template operator()<Rows>(m); });
    m += here;
  }
}

#if defined(__AVX512F__)
// Transposes 16 x 16 words of 32 bits in registers: pairs, quads, then the four 128-bit lanes.
[[gnu::always_inline]] inline void transpose_16x16(const void* source, std::ptrdiff_t source_stride, void* target,
                                                   std::ptrdiff_t target_stride) {
  const auto* in = static_cast<const std::uint32_t*>(source);
  auto* out = static_cast<std::uint32_t*>(target);
  __m512i r[16], t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(in + i * source_stride);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
    t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
    t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm512_storeu_si512(out + i * target_stride, _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88));
    _mm512_storeu_si512(out + (8 + i) * target_stride, _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd));
    _mm512_storeu_si512(out + (4 + i) * target_stride, _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88));
    _mm512_storeu_si512(out + (12 + i) * target_stride, _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd));
  }
}
#endif

// Transposes kLanes x kLanes floats in registers.
[[gnu::always_inline]] inline void transpose_square(const float* source, std::ptrdiff_t source_stride, float* target,
                                                    std::ptrdiff_t target_stride) {
#if defined(__AVX512F__)
  transpose_16x16(source, source_stride, target, target_stride);
#elif defined(__AVX2__)
  __m256 r[8], t[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(source + i * source_stride);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(target + i * target_stride, _mm256_permute2f128_ps(r[i], r[4 + i], 0x20));
    _mm256_storeu_ps(target + (4 + i) * target_stride, _mm256_permute2f128_ps(r[i], r[4 + i], 0x31));
  }
#else
  const auto row = [&](int i) { return load(source + i * source_stride); };
  const Floats a = __builtin_shufflevector(row(0), row(1), 0, 4, 1, 5);
  const Floats b = __builtin_shufflevector(row(0), row(1), 2, 6, 3, 7);
  const Floats c = __builtin_shufflevector(row(2), row(3), 0, 4, 1, 5);
  const Floats d = __builtin_shufflevector(row(2), row(3), 2, 6, 3, 7);
  store(target, __builtin_shufflevector(a, c, 0, 1, 4, 5));
  store(target + target_stride, __builtin_shufflevector(a, c, 2, 3, 6, 7));
  store(target + 2 * target_stride, __builtin_shufflevector(b, d, 0, 1, 4, 5));
  store(target + 3 * target_stride, __builtin_shufflevector(b, d, 2, 3, 6, 7));
#endif
}

#if defined(SASREC_BF16)

inline constexpr int kStrip = 16;  // rows of A that are worked on together: an AMX tile's

#if defined(SASREC_TILES)

// GCC 12 does not tell the optimiser that tile instructions read and write memory; this does.
[[gnu::always_inline]] inline void memory_barrier() { asm volatile("" ::: "memory"); }

// Eight tiles of 16 rows x 64 bytes. Every thread that multiplies holds one while it works.
class Tiles {
 public:
  Tiles() {
    struct alignas(64) {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t bytes[16] = {};
      std::uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) config.bytes[i] = 64, config.rows[i] = 16;
    asm volatile("" : : "m"(config) : "memory");
    _tile_loadconfig(&config);
    asm volatile("" : : "m"(config) : "memory");
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// C (16, 16 n) in tiles 0..n-1, A in tile 4, B alternating between tiles 5 to 7; each A tile is used n times.
template <int N>
[[gnu::always_inline]] inline void tile(int depth, const Operand* a, int lda, const Operand* b, int ldb, float* c,
                                        int ldc, Init init) {
  memory_barrier();
  if (init.data) {
    _tile_loadd(0, init.data, init.stride * 4);
    if constexpr (N > 1) _tile_loadd(1, init.data + 16, init.stride * 4);
    if constexpr (N > 2) _tile_loadd(2, init.data + 32, init.stride * 4);
    if constexpr (N > 3) _tile_loadd(3, init.data + 48, init.stride * 4);
  } else {
    _tile_zero(0);
    if constexpr (N > 1) _tile_zero(1);
    if constexpr (N > 2) _tile_zero(2);
    if constexpr (N > 3) _tile_zero(3);
  }
  for (int k = 0; k < depth; k += 32) {
    const Operand* row = b + static_cast<std::ptrdiff_t>(k) * ldb;
    _tile_loadd(4, a + k, lda * 2);
    _tile_loadd(5, row, ldb * 4);
    _tile_dpbf16ps(0, 4, 5);
    if constexpr (N > 1) {
      _tile_loadd(6, row + 32, ldb * 4);
      _tile_dpbf16ps(1, 4, 6);
    }
    if constexpr (N > 2) {
      _tile_loadd(7, row + 64, ldb * 4);
      _tile_dpbf16ps(2, 4, 7);
    }
    if constexpr (N > 3) {
      _tile_loadd(5, row + 96, ldb * 4);
      _tile_dpbf16ps(3, 4, 5);
    }
  }
  _tile_stored(0, c, ldc * 4);
  if constexpr (N > 1) _tile_stored(1, c + 16, ldc * 4);
  if constexpr (N > 2) _tile_stored(2, c + 32, ldc * 4);
  if constexpr (N > 3) _tile_stored(3, c + 48, ldc * 4);
  memory_barrier();
}

// All 16 rows of a tile are computed: A and C have room for a multiple of 16 rows. There are no half tiles.
template <int N, bool>
[[gnu::always_inline]] inline void column_block(int rows, int depth, const Operand* a, int lda, Panel b, float* c,
                                                int ldc, Init init) {
  for (int m = 0; m < rows; m += 16) {
    const Init here{init.data ? init.data + static_cast<std::ptrdiff_t>(m) * init.stride : nullptr, init.stride};
    tile<N>(depth, a + static_cast<std::ptrdiff_t>(m) * lda, lda, b.data, b.stride,
            c + static_cast<std::ptrdiff_t>(m) * ldc, ldc, here);
  }
}

#else

struct Tiles {
  Tiles() {}  // vector registers need no setting up
};

// Rows x (16 n) of C in registers; a pair of A's values is broadcast against 16 pairs of B. Half: of the last 16
// columns 8, and zeros.
template <int Rows, int N, bool Half>
[[gnu::always_inline]] inline void tile(int depth, const Operand* a, int lda, const Operand* b, int ldb, float* c,
                                        int ldc, Init init) {
  constexpr int kWhole = N - Half;
  Floats sums[Rows][N];
  HalfFloats half[Rows];
  const auto start = [&](int r, int n) { return init.data + static_cast<std::ptrdiff_t>(r) * init.stride + 16 * n; };
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int n = 0; n < kWhole; ++n) sums[r][n] = init.data ? load(start(r, n)) : Floats{};
    if constexpr (Half) half[r] = init.data ? load_half(start(r, kWhole)) : HalfFloats{};
  }
  for (int k = 0; k < depth; k += 2) {
    const Operand* row = b + static_cast<std::ptrdiff_t>(k) * ldb;
    __m512bh right[N];
    __m256bh right_half;
#pragma GCC unroll 4
    for (int n = 0; n < kWhole; ++n) std::memcpy(&right[n], row + 32 * n, 64);
    if constexpr (Half) std::memcpy(&right_half, row + 32 * kWhole, 32);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      std::int32_t pair;
      std::memcpy(&pair, a + static_cast<std::ptrdiff_t>(r) * lda + k, 4);
      const __m512i left = _mm512_set1_epi32(pair);
#pragma GCC unroll 4
      for (int n = 0; n < kWhole; ++n)
        sums[r][n] = _mm512_dpbf16_ps(sums[r][n], reinterpret_cast<__m512bh>(left), right[n]);
      if constexpr (Half)
        half[r] = _mm256_dpbf16_ps(half[r], reinterpret_cast<__m256bh>(_mm512_castsi512_si256(left)), right_half);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    float* to = c + static_cast<std::ptrdiff_t>(r) * ldc;
#pragma GCC unroll 4
    for (int n = 0; n < kWhole; ++n) store(to + 16 * n, sums[r][n]);
    if constexpr (Half) store(to + 16 * kWhole, with_zeros(half[r]));
  }
}

template <int N, bool Half>
[[gnu::always_inline]] inline void column_block(int rows, int depth, const Operand* a, int lda, Panel b, float* c,
                                                int ldc, Init init) {
  for_tile_rows<6>(rows, [&]<int Rows>(int m) {
    const Init here{init.data ? init.data + static_cast<std::ptrdiff_t>(m) * init.stride : nullptr, init.stride};
    tile<Rows, N, Half>(depth, a + static_cast<std::ptrdiff_t>(m) * lda, lda, b.data, b.stride,
                        c + static_cast<std::ptrdiff_t>(m) * ldc, ldc, here);
  });
}

#endif

// C (rows, cols) = init + A (rows, depth) B; depth a multiple of kDepthStep.
inline void multiply(int rows, Columns cols, int depth, const Operand* a, int lda, Panel b, float* c, int ldc,
                     Init init = {}) {
  for_column_blocks<4>(cols, [&]<int N, bool Half>(int n) {
    const Init here{init.data ? init.data + n : nullptr, init.stride};
    column_block<N, Half>(rows, depth, a, lda, b.columns(n), c + n, ldc, here);
  });
}

// Interleaves two rows of 32 values: 64 values (a0, b0, a1, b1, ...).
[[gnu::always_inline]] inline void interleave(__m512i a, __m512i b, Operand* target) {
  alignas(64) static constexpr std::uint16_t kLow[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                         8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  alignas(64) static constexpr std::uint16_t kHigh[32] = {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21,
                                                          53, 22, 54, 23, 55, 24, 56, 25, 57, 26, 58,
                                                          27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
  _mm512_storeu_si512(target, _mm512_permutex2var_epi16(a, _mm512_load_si512(kLow), b));
  _mm512_storeu_si512(target + 32, _mm512_permutex2var_epi16(a, _mm512_load_si512(kHigh), b));
}

// Vectors of two rows, from column c on, of row-major operands, and (row even) of a Panel.
[[gnu::always_inline]] inline void store_rows(Operand* first, Operand* second, OperandPair p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(first), _mm512_castsi512_si256(p.bits));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(second), _mm512_extracti64x4_epi64(p.bits, 1));
}
[[gnu::always_inline]] inline void store_pair(Operand* panel, int stride, int row, int c, OperandPair p) {
  alignas(64) static constexpr std::uint16_t kPairs[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                           21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                           11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  _mm512_storeu_si512(panel + static_cast<std::ptrdiff_t>(row) * stride + 2 * c,
                      _mm512_permutexvar_epi16(_mm512_load_si512(kPairs), p.bits));
}
[[gnu::always_inline]] inline FloatPair load_pair(const Operand* panel, int stride, int row, int c) {
  const __m512i both = _mm512_loadu_si512(panel + static_cast<std::ptrdiff_t>(row) * stride + 2 * c);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(both, 16)),
          _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000))))};
}
[[gnu::always_inline]] inline void keep_positive_pair(Operand* panel, int stride, int row, int c) {
  Operand* place = panel + static_cast<std::ptrdiff_t>(row) * stride + 2 * c;
  _mm512_storeu_si512(place, positive({_mm512_loadu_si512(place)}).bits);
}

// Panel of row-major (depth, cols); rows from `depth` up to its padding become zero. cols a multiple of 32.
inline Panel pack_rows(int depth, int cols, const Operand* source, int ld, Operand* scratch) {
  const auto row = [&](int i, int c) {
    return i < depth ? _mm512_loadu_si512(source + static_cast<std::ptrdiff_t>(i) * ld + c) : _mm512_setzero_si512();
  };
  for (int i = 0; i < round_up(depth, kDepth); i += 2)
    for (int c = 0; c < cols; c += 32)
      interleave(row(i, c), row(i + 1, c), scratch + static_cast<std::ptrdiff_t>(i) * cols + 2 * c);
  return {scratch, cols};
}

// Panel of the transpose of row-major (cols, depth); the source has room for a multiple of 16 rows. depth: of 32.
inline Panel pack_transposed(int depth, int cols, const Operand* source, int ld, Operand* scratch) {
  const int stride = round_up(cols, 16);
  for (int c = 0; c < cols; c += 16)
    for (int k = 0; k < depth; k += 32)
      transpose_16x16(source + static_cast<std::ptrdiff_t>(c) * ld + k, ld / 2,
                      scratch + static_cast<std::ptrdiff_t>(k) * stride + 2 * c, stride);
  return {scratch, stride};
}

// Left operand (32, depth) from columns 0..32 of row-major (depth, ld), zeros up to depth's padding: rows are
// interleaved in pairs, as in a Panel, and the pairs transposed.
[[gnu::always_inline]] inline void transpose_columns(int depth, const Operand* source, int ld, Operand* target,
                                                     int target_ld) {
  const auto row = [&](int i) {
    return i < depth ? _mm512_loadu_si512(source + static_cast<std::ptrdiff_t>(i) * ld) : _mm512_setzero_si512();
  };
  for (int k = 0; k < depth; k += 32) {
    alignas(64) Operand pairs[16][64];  // of each pair of rows: columns 0..16, then 16..32
    for (int r = 0; r < 16; ++r) interleave(row(k + 2 * r), row(k + 2 * r + 1), pairs[r]);
    for (int half = 0; half < 2; ++half)
      transpose_16x16(pairs[0] + 32 * half, 32, target + static_cast<std::ptrdiff_t>(16 * half) * target_ld + k,
                      target_ld / 2);
  }
}

// C (rows, cols) += A^T B, A (depth, rows) row-major, with room for a multiple of 32 columns (in tiles, C of 16 rows).
// `scratch` holds 32 x padded depth.
inline void multiply_transposed(int rows, Columns cols, int depth, const Operand* a, int lda, Panel b, float* c,
                                int ldc, Operand* scratch) {
  const int padded = round_up(depth, kDepth);
  for (int m = 0; m < rows; m += 32) {
    transpose_columns(depth, a + m, lda, scratch, padded);
    float* target = c + static_cast<std::ptrdiff_t>(m) * ldc;
    multiply(std::min(32, rows - m), cols, round_up(depth, kDepthStep), scratch, padded, b, target, ldc, {target, ldc});
  }
}

// pack_rows, and the sums of the columns added to `sums`: a product with ones of each pair of rows.
inline Panel pack_rows_and_sums(int depth, int cols, const Operand* source, int ld, Operand* scratch, float* sums) {
  const auto row = [&](int i, int c) {
    return i < depth ? _mm512_loadu_si512(source + static_cast<std::ptrdiff_t>(i) * ld + c) : _mm512_setzero_si512();
  };
  for (int c = 0; c < cols; c += 32) {
    __m512 low = _mm512_loadu_ps(sums + c), high = _mm512_loadu_ps(sums + c + 16);
    for (int i = 0; i < round_up(depth, kDepth); i += 2) {
      Operand* target = scratch + static_cast<std::ptrdiff_t>(i) * cols + 2 * c;
      interleave(row(i, c), row(i + 1, c), target);
      low = add_pairs(low, _mm512_loadu_si512(target));
      high = add_pairs(high, _mm512_loadu_si512(target + 32));
    }
    _mm512_storeu_ps(sums + c, low);
    _mm512_storeu_ps(sums + c + 16, high);
  }
  return {scratch, cols};
}

#else

struct Tiles {
  Tiles() {}  // vector registers need no setting up
};

// Vectors of columns of a tile, and rows: sums take 24 of 32, 12 of 16, 8 of 16 registers.
inline constexpr int kTileVectors = kLanes == 16 ? 4 : kLanes == 8 ? 3 : 2;
constexpr int tile_rows(int vectors) { return kLanes == 8 ? std::min(8, 12 / vectors) : kLanes == 16 ? 6 : 4; }
inline constexpr int kStrip = kLanes == 16 ? 24 : 16;  // rows of attention that are worked on together

// Rows x N vectors of C in registers; one value of A is broadcast against N vectors of a row of B. Half: of the last
// vector its first half, and zeros.
template <int Rows, int N, bool Half>
[[gnu::always_inline]] inline void tile(int depth, const float* a, std::ptrdiff_t row_stride,
                                        std::ptrdiff_t depth_stride, const float* b, int ldb, float* c, int ldc,
                                        Init init) {
  constexpr int kWhole = N - Half;
  Floats sums[Rows][N];
  HalfFloats half[Rows];
  const auto start = [&](int r, int n) {
    return init.data + static_cast<std::ptrdiff_t>(r) * init.stride + kLanes * n;
  };
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int n = 0; n < kWhole; ++n) sums[r][n] = init.data ? load(start(r, n)) : Floats{};
    if constexpr (Half) half[r] = init.data ? load_half(start(r, kWhole)) : HalfFloats{};
  }
  for (int k = 0; k < depth; ++k) {
    const float* row = b + static_cast<std::ptrdiff_t>(k) * ldb;
    Floats right[N];
    HalfFloats right_half;
#pragma GCC unroll 4
    for (int n = 0; n < kWhole; ++n) right[n] = load(row + kLanes * n);
    if constexpr (Half) right_half = load_half(row + kLanes * kWhole);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Floats left = splat(a[r * row_stride + k * depth_stride]);
#pragma GCC unroll 4
      for (int n = 0; n < kWhole; ++n) sums[r][n] += left * right[n];
      if constexpr (Half) half[r] += first_half(left) * right_half;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    float* to = c + static_cast<std::ptrdiff_t>(r) * ldc;
#pragma GCC unroll 4
    for (int n = 0; n < kWhole; ++n) store(to + kLanes * n, sums[r][n]);
    if constexpr (Half) store(to + kLanes * kWhole, with_zeros(half[r]));
  }
}

template <int N, bool Half>
inline void column_block(int rows, int depth, const float* a, std::ptrdiff_t row_stride, std::ptrdiff_t depth_stride,
                         const float* b, int ldb, float* c, int ldc, Init init) {
  for_tile_rows<tile_rows(N)>(rows, [&]<int Rows>(int m) {
    const Init here{init.data ? init.data + static_cast<std::ptrdiff_t>(m) * init.stride : nullptr, init.stride};
    tile<Rows, N, Half>(depth, a + m * row_stride, row_stride, depth_stride, b, ldb,
                        c + static_cast<std::ptrdiff_t>(m) * ldc, ldc, here);
  });
}

inline void multiply_strided(int rows, Columns cols, int depth, const float* a, std::ptrdiff_t row_stride,
                             std::ptrdiff_t depth_stride, Panel b, float* c, int ldc, Init init) {
  for_column_blocks<kTileVectors>(cols, [&]<int N, bool Half>(int n) {
    const Init here{init.data ? init.data + n : nullptr, init.stride};
    column_block<N, Half>(rows, depth, a, row_stride, depth_stride, b.data + n, b.stride, c + n, ldc, here);
  });
}

// C (rows, cols) = init + A (rows, depth) B.
inline void multiply(int rows, Columns cols, int depth, const Operand* a, int lda, Panel b, float* c, int ldc,
                     Init init = {}) {
  multiply_strided(rows, cols, depth, a, lda, 1, b, c, ldc, init);
}

// C (rows, cols) = init + A^T B, A (depth, rows) row-major.
inline void multiply_transposed(int rows, Columns cols, int depth, const Operand* a, int lda, Panel b, float* c,
                                int ldc, Init init) {
  multiply_strided(rows, cols, depth, a, 1, lda, b, c, ldc, init);
}

// C (rows, cols) += A^T B, as much of A and B at a time as stays in L1.
inline void multiply_transposed(int rows, Columns cols, int depth, const Operand* a, int lda, Panel b, float* c,
                                int ldc, Operand*) {
  constexpr int kDepthBlock = 128;
  const int blocks = (depth + kDepthBlock - 1) / kDepthBlock, block = blocks ? (depth + blocks - 1) / blocks : 0;
  for (int k = 0; k < depth; k += block)
    multiply_transposed(rows, cols, std::min(block, depth - k), a + static_cast<std::ptrdiff_t>(k) * lda, lda,
                        b.rows(k), c, ldc, Init{c, ldc});
}

// Vectors of two rows, from column c on, of row-major operands, and (row even) of a Panel.
[[gnu::always_inline]] inline void store_rows(Operand* first, Operand* second, OperandPair p) {
  store(first, p.first);
  store(second, p.second);
}
[[gnu::always_inline]] inline void store_pair(Operand* panel, int stride, int row, int c, OperandPair p) {
  Operand* first = panel + static_cast<std::ptrdiff_t>(row) * stride + c;
  store_rows(first, first + stride, p);
}
[[gnu::always_inline]] inline FloatPair load_pair(const Operand* panel, int stride, int row, int c) {
  const Operand* first = panel + static_cast<std::ptrdiff_t>(row) * stride + c;
  return {load(first), load(first + stride)};
}
[[gnu::always_inline]] inline void keep_positive_pair(Operand* panel, int stride, int row, int c) {
  store_pair(panel, stride, row, c, positive(load_pair(panel, stride, row, c)));
}

// Row-major (depth, cols) is a panel as it is.
inline Panel pack_rows(int, int, const Operand* source, int ld, Operand*) { return {source, ld}; }

// The same, or a copy whose rows lie panel_stride(cols) apart, and the sums of the columns added to `sums`.
inline Panel pack_rows_and_sums(int depth, int cols, const Operand* source, int ld, Operand* scratch, float* sums) {
  constexpr int kTogether = 4;  // chains of additions that do not wait for each other
  if (const int stride = panel_stride(cols); stride != cols) {
    for (int r = 0; r < depth; ++r)
      std::copy_n(source + static_cast<std::ptrdiff_t>(r) * ld, cols,
                  scratch + static_cast<std::ptrdiff_t>(r) * stride);
    source = scratch, ld = stride;
  }
  const auto add = [&]<int N>(int c) {
    Floats total[N]{};
    for (int r = 0; r < depth; ++r)
      for (int i = 0; i < N; ++i) total[i] += load(source + static_cast<std::ptrdiff_t>(r) * ld + c + kLanes * i);
    for (int i = 0; i < N; ++i) store(sums + c + kLanes * i, load(sums + c + kLanes * i) + total[i]);
  };
  int c = 0;
  for (; c + kTogether * kLanes <= cols; c += kTogether * kLanes) add.template operator()<kTogether>(c);
  for (; c < cols; c += kLanes) add.template operator()<1>(c);
  return {source, ld};
}

// Panel of the transpose of row-major (cols, depth); the source has room for a multiple of kLanes rows. depth: of
// kLanes.
inline Panel pack_transposed(int depth, int cols, const Operand* source, int ld, Operand* scratch) {
  const int stride = panel_stride(round_up(cols, kLanes));
  for (int c = 0; c < cols; c += kLanes)
    for (int k = 0; k < depth; k += kLanes)
      transpose_square(source + static_cast<std::ptrdiff_t>(c) * ld + k, ld,
                       scratch + static_cast<std::ptrdiff_t>(k) * stride + c, stride);
  return {scratch, stride};
}

#endif

// W (rows, cols) += X^T dY over n tokens, X (n, rows), dY (n, cols), and bias (cols,) += the sums of dY's columns: the
// gradients of a linear layer. The scratch holds dY's panel (padded n x cols) and a strip of X's transpose (32 x padded
// n).
inline void accumulate_outer(int n, int rows, Columns cols, const Operand* x, int ldx, const Operand* dy, int ldy,
                             float* w, int ldw, float* bias, Operand* scratch) {
  const Panel right = pack_rows_and_sums(n, cols.count, dy, ldy, scratch, bias);
  multiply_transposed(rows, cols, n, x, ldx, right, w, ldw,
                      scratch + static_cast<std::ptrdiff_t>(round_up(n, kDepth)) * cols.count);
}

}  // namespace sasrec
