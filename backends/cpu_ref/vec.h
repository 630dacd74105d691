// SPDX-License-Identifier: Apache-2.0
// Vectors of a register's floats for the kernels: loads and stores of bf16 or float32, exp, dropout's
// hash, and a matrix product on "cells". Plain vector extensions of GCC and clang; x86 instructions
// replace a few primitives where the compiler has them.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__AVX__)
#include <immintrin.h>
#endif

enum { W = 16 };  // columns of a panel, of a row's mask bits and of a hash: on every processor
// A register of the processor, in floats, and how many lie side by side in a tile of a product: a
// tile of six rows fills most of the registers. GCC keeps wider vectors in memory: up to seven times
// slower.
#if defined(__AVX512F__)
enum { REG = 16, ACROSS = 4 };
#elif defined(__AVX__)
enum { REG = 8, ACROSS = 2 };
#elif defined(__SSE__)
enum { REG = 4, ACROSS = 2 };
#else
enum { REG = 4, ACROSS = 4 };
#endif
typedef float vf __attribute__((vector_size(4 * REG), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * REG), may_alias));
typedef uint32_t vu __attribute__((vector_size(4 * REG), may_alias));
typedef uint16_t vh __attribute__((vector_size(2 * REG), may_alias));

// Functions take `half` (1 = bf16, 0 = float32) as a constant, so each is compiled twice.
#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))

INLINE long lmin(long a, long b) { return a < b ? a : b; }
INLINE long lmax(long a, long b) { return a > b ? a : b; }
INLINE long up(long n, long to) { return (n + to - 1) / to * to; }
INLINE vf splat(float x) { return (vf){} + x; }
INLINE vi splat_int(int32_t x) { return (vi){} + x; }

// All ones where a < b or, for the sign, where it is set.
INLINE vi less(vf a, vf b) { return (vi)(a < b); }
INLINE vi less_int(vi a, vi b) { return (vi)(a < b); }
INLINE vi negative(vi x) { return x >> 31; }

INLINE vf widen(vh x) { return (vf)(__builtin_convertvector(x, vu) << 16); }

INLINE vh narrow(vf x) {  // round to nearest even, as every bf16 unit does
#if defined(__AVX512BF16__)
    return (vh)_mm512_cvtneps_pbh((__m512)x);
#else
    vu u = (vu)x;
    vu rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    vu nan = (vu)less_int(splat_int(0x7f800000), (vi)(u & 0x7fffffff));
    return __builtin_convertvector((rounded & ~nan) | (0x7fc0 & nan), vh);
#endif
}

INLINE size_t bytes(int half) { return half ? 2 : 4; }

INLINE vf ld(const void *p, long i, int half) {
    const char *at = (const char *)p + i * bytes(half);
    if (half) {
        vh x;
        memcpy(&x, at, sizeof x);
        return widen(x);
    }
    vf x;
    memcpy(&x, at, sizeof x);
    return x;
}

INLINE void st(void *p, long i, int half, vf x) {
    char *at = (char *)p + i * bytes(half);
    if (half) {
        vh y = narrow(x);
        memcpy(at, &y, sizeof y);
    } else {
        memcpy(at, &x, sizeof x);
    }
}

// The same for the end of a row: only the first n elements when n < REG, the rest is zero.
static __attribute__((noinline)) vf ld_part(const void *p, long i, long n, int half) {
    float x[REG] = {0};
    for (long k = 0; k < n; k++) {
        uint32_t bits;
        if (half) bits = (uint32_t)((const uint16_t *)p)[i + k] << 16;
        else memcpy(&bits, (const float *)p + i + k, 4);
        memcpy(x + k, &bits, 4);
    }
    return ld(x, 0, 0);
}

static __attribute__((noinline)) void st_part(void *p, long i, long n, int half, vf x) {
    char y[4 * REG];
    st(y, 0, half, x);
    memcpy((char *)p + i * bytes(half), y, n * bytes(half));
}

INLINE vf ldn(const void *p, long i, long n, int half) {
    return __builtin_expect(n >= REG, 1) ? ld(p, i, half) : ld_part(p, i, n, half);
}

INLINE void stn(void *p, long i, long n, int half, vf x) {
    if (__builtin_expect(n >= REG, 1)) st(p, i, half, x);
    else st_part(p, i, n, half, x);
}

INLINE float sum_of(vf x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x);
#else
    float y[REG];
    memcpy(y, &x, sizeof y);
    for (int n = REG / 2; n; n /= 2)
        for (int i = 0; i < n; i++) y[i] += y[i + n];
    return y[0];
#endif
}

INLINE float max_of(vf x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)x);
#else
    float y[REG], m;
    memcpy(y, &x, sizeof y);
    m = y[0];
    for (int i = 1; i < REG; i++) m = y[i] > m ? y[i] : m;
    return m;
#endif
}

INLINE vf select_of(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }

INLINE vf vmax(vf a, vf b) {
#if defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return select_of(less(b, a), a, b);
#endif
}

// exp, relative error below 2e-7 for x in [-87, 88]; less than -87 gives about 1e-38.
INLINE vf vexp(vf x) {
    x = select_of(less(x, splat(-87.0f)), splat(-87.0f), x);  // NaN stays NaN
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    // Unsigned: infinity and NaN go through, and their sums wrap.
    vi whole = (vi)((vu)(x * 1.44269504f + magic) - (vu)splat(magic));
    vf n = __builtin_convertvector(whole, vf);
    vf r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return (vf)((vu)p + ((vu)whole << 23));
}

#if defined(__AVX512F__)
#define COUNTED ((vu){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
#elif defined(__AVX__)
#define COUNTED ((vu){0, 1, 2, 3, 4, 5, 6, 7})
#else
#define COUNTED ((vu){0, 1, 2, 3})
#endif

// -- dropout: which elements survive is a function of (seed, row, column) alone ------------------
// Each row gets a 64-bit key (splitmix64); 32 columns share 16 hashes of 32 bits, two columns each.
typedef struct { uint32_t a, b; } key_t_;

INLINE key_t_ row_key(uint64_t seed, uint64_t row) {
    uint64_t z = seed + (row + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return (key_t_){(uint32_t)z, (uint32_t)(z >> 32)};
}

INLINE vu hash16(key_t_ key, vu x) {
    x = x * 0x9e3779b9u + key.a;
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = ((x ^ (x >> 15)) + key.b) * 0x846ca68bu;
    return x ^ (x >> 16);
}

// The hashes of columns first + (0..REG - 1) and of those 16 further; first % 32 < 16.
INLINE vu hash32(key_t_ key, long first) {
    return hash16(key, COUNTED + (uint32_t)(first / 32 * 16 + first % 32));
}

// All ones where the columns of the hash, or those 16 further where `odd`, are kept: 16 random bits
// >= threshold.
INLINE vi keep16(vu hash, int odd, uint32_t threshold) {
    const vu bits = hash >> (odd ? 16 : 0) & 0xffff;
    return ~less_int((vi)bits, splat_int((int32_t)threshold));
}

// -- matrix product on cells -----------------------------------------------------------------
// A cell is 4 bytes along the summed dimension: two bf16 or one float32.
// C[M, N] (+)= sum over K cells of A[m, k] . B[k, n]; N is a multiple of 16.
INLINE vf dot(int half, vf c, uint32_t a, vu b) {
    vu av = (vu){} + a;
    if (!half) return c + (vf)av * (vf)b;
#if defined(__AVX512BF16__)
    return (vf)_mm512_dpbf16_ps((__m512)c, (__m512bh)av, (__m512bh)b);
#else
    return c + (vf)(av << 16) * (vf)(b << 16) + (vf)(av & 0xffff0000u) * (vf)(b & 0xffff0000u);
#endif
}

// A's cell [m, k] is A[m * am + k * ak]; the vectors of 16 of B's row k begin at B + k * bk, bj
// apart. `cols` registers of columns, the first of which is register `at` of B's row.
INLINE void tile(int half, int rows, int cols, long K, const uint32_t *A, long am, long ak,
                 const uint32_t *B, long bj, long bk, long at, float *C, long ldc, int add) {
    vf c[6][4];
    const uint32_t *from[4];
#pragma GCC unroll 4
    for (int j = 0; j < cols; j++) from[j] = B + (at + j) * REG / W * bj + (at + j) * REG % W;
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int j = 0; j < cols; j++) c[r][j] = add ? *(vf *)(C + r * ldc + REG * j) : (vf){};
    for (long k = 0; k < K; k++) {
        vu b[4];
#pragma GCC unroll 4
        for (int j = 0; j < cols; j++) b[j] = *(const vu *)(from[j] + k * bk);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int j = 0; j < cols; j++) c[r][j] = dot(half, c[r][j], A[r * am + k * ak], b[j]);
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int j = 0; j < cols; j++) *(vf *)(C + r * ldc + REG * j) = c[r][j];
}

#define TILE(r, c)                                                                         \
    tile(half, r, c, lmin(DEPTH, K - k), A + m * am + k * ak, am, ak, B + k * bk, bj, bk, n, \
         C + m * ldc + n * REG, ldc, add || k)
#define TILES(c)                                     \
    switch (rows) {                                  \
        case 1: TILE(1, c); break;                   \
        case 2: TILE(2, c); break;                   \
        case 3: TILE(3, c); break;                   \
        case 4: TILE(4, c); break;                   \
        case 5: TILE(5, c); break;                   \
        default: TILE(6, c); break;                  \
    }
enum { DEPTH = 128 };  // rows of B: those of four vectors stay in L2, whatever K is

INLINE void gemm_(int half, long M, long N, long K, const uint32_t *A, long am, long ak,
                  const uint32_t *B, long bj, long bk, float *C, long ldc, int add) {
    // Equal parts: tiles of few rows or columns leave units idle. A division takes as long as a part
    // of a small tile, so there are none within. M and N are not 0.
    const long across = (N / REG + ACROSS - 1) / ACROSS, down = (M + 5) / 6,
               thin = N / REG / across, low = M / down, wider = N / REG % across,
               higher = M % down;
    for (long k = 0; k < K; k += DEPTH)
        for (long x = 0, n = 0, cols; x < across; n += cols, x++) {
            cols = thin + (x < wider);
            for (long y = 0, m = 0, rows; y < down; m += rows, y++) {
                rows = low + (y < higher);
                switch (cols) {
                    case 1: TILES(1); break;
                    case 2: TILES(2); break;
                    case 3: TILES(3); break;
                    default: TILES(4); break;
                }
            }
        }
}

#define GEMM_ARGS                                                                               \
    long M, long N, long K, const uint32_t *A, long lda, const uint32_t *B, long bj, long bk,   \
        float *C, long ldc, int add
#define GEMM_FORM(name, half, am, ak)                        \
    static __attribute__((noinline)) void name(GEMM_ARGS) { \
        gemm_(half, M, N, K, A, am, ak, B, bj, bk, C, ldc, add); \
    }
GEMM_FORM(gemm_half, 1, lda, 1)
GEMM_FORM(gemm_float, 0, lda, 1)
GEMM_FORM(gemm_turned_half, 1, 1, lda)
GEMM_FORM(gemm_turned_float, 0, 1, lda)
#define GEMM(...) (half ? gemm_half(__VA_ARGS__) : gemm_float(__VA_ARGS__))
// A is given turned, as [K][lda].
#define GEMM_TURNED(...) (half ? gemm_turned_half(__VA_ARGS__) : gemm_turned_float(__VA_ARGS__))

// -- transposition of 4-byte cells, 16 x 16 ---------------------------------------------------
typedef uint32_t row16 __attribute__((vector_size(64), may_alias));
#if defined(__clang__)
#define SHUFFLE(T, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(T, a, b, ...) __builtin_shuffle(a, b, (T){__VA_ARGS__})
#endif
#if defined(__AVX512F__)
#define LOW1 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30
#define HIGH1 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31
#define LOW2 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define HIGH2 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define LOW4 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27
#define HIGH4 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31
#define LOW8 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define HIGH8 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#define STAGE(s)                              \
    for (int i = 0; i < W; i++)               \
        if (!(i & s)) {                       \
            row16 a = r[i], b = r[i + s];        \
            r[i] = SHUFFLE(row16, a, b, LOW##s);     \
            r[i + s] = SHUFFLE(row16, a, b, HIGH##s); \
        }

INLINE void transpose16(row16 r[W]) {
    _Pragma("GCC unroll 16") STAGE(1);
    _Pragma("GCC unroll 16") STAGE(2);
    _Pragma("GCC unroll 16") STAGE(4);
    _Pragma("GCC unroll 16") STAGE(8);
}
#else
// GCC takes shuffles of wider vectors apart into elements; four lanes every processor has.
typedef uint32_t v4 __attribute__((vector_size(16), may_alias));
#define LANES4(x, i) (((v4 *)&(x))[i])

INLINE void transpose4(v4 r[4]) {
    const v4 a = SHUFFLE(v4, r[0], r[2], 0, 4, 1, 5), b = SHUFFLE(v4, r[0], r[2], 2, 6, 3, 7),
             c = SHUFFLE(v4, r[1], r[3], 0, 4, 1, 5), d = SHUFFLE(v4, r[1], r[3], 2, 6, 3, 7);
    r[0] = SHUFFLE(v4, a, c, 0, 4, 1, 5);
    r[1] = SHUFFLE(v4, a, c, 2, 6, 3, 7);
    r[2] = SHUFFLE(v4, b, d, 0, 4, 1, 5);
    r[3] = SHUFFLE(v4, b, d, 2, 6, 3, 7);
}

INLINE void transpose16(row16 r[W]) {
    row16 out[W];
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            v4 block[4];
            for (int k = 0; k < 4; k++) block[k] = LANES4(r[4 * i + k], j);
            transpose4(block);
            for (int k = 0; k < 4; k++) LANES4(out[4 * j + k], i) = block[k];
        }
    memcpy(r, out, sizeof out);
}
#endif

// Memory of this thread that is kept between calls, in two parts.
typedef struct {
    char *memory;
    size_t have;
} Room;

static inline char *room_of(Room *room, size_t size) {
    if (room->have < size) {
        free(room->memory);
        room->have = (size_t)up((long)size, 4096);
        room->memory = aligned_alloc(4096, room->have);
        if (!room->memory) abort();
    }
    return room->memory;
}

static inline char *scratch(size_t size) {
    static _Thread_local Room room;
    return room_of(&room, size);
}

static inline char *copies(size_t size) {
    static _Thread_local Room room;
    return room_of(&room, size);
}
