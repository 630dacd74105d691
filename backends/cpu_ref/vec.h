// SPDX-License-Identifier: Apache-2.0
// Vectors of 16 floats for the kernels: loads and stores of bf16 or float32, exp, dropout's hash,
// and a matrix product on "cells". Plain vector extensions of GCC and clang; AVX512-BF16 replaces
// two primitives where the compiler has it.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

enum { W = 16 };
typedef float vf __attribute__((vector_size(64), may_alias));
typedef int32_t vi __attribute__((vector_size(64), may_alias));
typedef uint32_t vu __attribute__((vector_size(64), may_alias));
typedef uint16_t vh __attribute__((vector_size(32), may_alias));

// Functions take `half` (1 = bf16, 0 = float32) as a constant, so each is compiled twice.
#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))

INLINE long lmin(long a, long b) { return a < b ? a : b; }
INLINE long up(long n, long to) { return (n + to - 1) / to * to; }
INLINE vf splat(float x) { return (vf){} + x; }

INLINE vf widen(vh x) { return (vf)(__builtin_convertvector(x, vu) << 16); }

INLINE vh narrow(vf x) {  // round to nearest even, as every bf16 unit does
#if defined(__AVX512BF16__)
    return (vh)_mm512_cvtneps_pbh((__m512)x);
#else
    vu u = (vu)x;
    vu rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    vu nan = (vu)((u & 0x7fffffff) > 0x7f800000);
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

// The same for the end of a row: only the first n elements when n < 16, the rest is zero.
static __attribute__((noinline)) vf ld_part(const void *p, long i, long n, int half) {
    float x[W] = {0};
    for (long k = 0; k < n; k++) {
        uint32_t bits;
        if (half) bits = (uint32_t)((const uint16_t *)p)[i + k] << 16;
        else memcpy(&bits, (const float *)p + i + k, 4);
        memcpy(x + k, &bits, 4);
    }
    return ld(x, 0, 0);
}

static __attribute__((noinline)) void st_part(void *p, long i, long n, int half, vf x) {
    char y[4 * W];
    st(y, 0, half, x);
    memcpy((char *)p + i * bytes(half), y, n * bytes(half));
}

INLINE vf ldn(const void *p, long i, long n, int half) {
    return __builtin_expect(n >= W, 1) ? ld(p, i, half) : ld_part(p, i, n, half);
}

INLINE void stn(void *p, long i, long n, int half, vf x) {
    if (__builtin_expect(n >= W, 1)) st(p, i, half, x);
    else st_part(p, i, n, half, x);
}

INLINE float sum16(vf x) {  // in one order, whatever the instructions
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x);
#else
    float y[W];
    memcpy(y, &x, 64);
    for (int i = 0; i < 8; i++) y[i] += y[i + 8];
    for (int i = 0; i < 4; i++) y[i] += y[i + 4];
    return (y[0] + y[2]) + (y[1] + y[3]);
#endif
}

INLINE float max16(vf x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)x);
#else
    float y[W], m;
    memcpy(y, &x, 64);
    m = y[0];
    for (int i = 1; i < W; i++) m = y[i] > m ? y[i] : m;
    return m;
#endif
}

INLINE vf select16(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }

INLINE vf vmax(vf a, vf b) {
#if defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return select16(a > b, a, b);
#endif
}

// exp, relative error below 2e-7 for x in [-87, 88]; less than -87 gives about 1e-38.
INLINE vf vexp(vf x) {
    x = select16(x < -87.0f, splat(-87.0f), x);
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

INLINE vu hash32(key_t_ key, long column) {  // column is a multiple of 32
    const vu lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return hash16(key, lane + (uint32_t)(column / 2));
}

// All ones where columns column + 16 * odd + (0..15) are kept: 16 random bits >= threshold.
INLINE vi keep16(vu hash, int odd, uint32_t threshold) {
    vu bits = hash & 0xffff;
    if (odd) bits = hash >> 16;
    return (vi)(bits >= threshold);
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

// A's cell [m, k] is A[m * am + k * ak]; the vectors of B's row k begin at B + k * bk, bj apart.
INLINE void tile(int half, int rows, int cols, long K, const uint32_t *A, long am, long ak,
                 const uint32_t *B, long bj, long bk, float *C, long ldc, int add) {
    vf c[6][4];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int j = 0; j < cols; j++) c[r][j] = add ? *(vf *)(C + r * ldc + W * j) : (vf){};
    for (long k = 0; k < K; k++) {
        vu b[4];
#pragma GCC unroll 4
        for (int j = 0; j < cols; j++) b[j] = *(const vu *)(B + k * bk + j * bj);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int j = 0; j < cols; j++) c[r][j] = dot(half, c[r][j], A[r * am + k * ak], b[j]);
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int j = 0; j < cols; j++) *(vf *)(C + r * ldc + W * j) = c[r][j];
}

#define TILE(r, c)                                                                         \
    tile(half, r, c, lmin(DEPTH, K - k), A + m * am + k * ak, am, ak, B + n / W * bj + k * bk, \
         bj, bk, C + m * ldc + n, ldc, add || k)
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
    const long across = (N / W + 3) / 4, down = (M + 5) / 6, thin = N / W / across,
               low = M / down, wider = N / W % across, higher = M % down;
    for (long k = 0; k < K; k += DEPTH)
        for (long x = 0, n = 0, cols; x < across; n += cols * W, x++) {
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
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vu){__VA_ARGS__})
#endif
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
            vu a = r[i], b = r[i + s];        \
            r[i] = SHUFFLE(a, b, LOW##s);     \
            r[i + s] = SHUFFLE(a, b, HIGH##s); \
        }

INLINE void transpose16(vu r[W]) {
    _Pragma("GCC unroll 16") STAGE(1);
    _Pragma("GCC unroll 16") STAGE(2);
    _Pragma("GCC unroll 16") STAGE(4);
    _Pragma("GCC unroll 16") STAGE(8);
}

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
