// SPDX-License-Identifier: Apache-2.0
// Self-attention where query i meets keys i + step, the same steps for every query (Toeplitz masks):
// row by row in float32, L x steps scores, one (sequence, head) per task.
//
// Steps ascend, so those that lead to a row of the sequence are a range of slots. Rows i + step are
// summed for queries and their gradients; rows i - step for gradients of keys and values, so no two
// sums share a row. Dropout draws as in attention.h.
//
// Kept for the backward pass, as in attention.h: e with its sign bit, [heads][rows][slots], of which
// only the slots in range are written; and 1 / sum(e), [rows, heads].
#pragma once
#include "attention.h"

enum { PART = 4 * REG };  // elements of a row that are summed in registers

typedef struct {
    long L, D, slots;     // length, head size, steps padded to vectors
    const int32_t *step;  // [slots], ascending, beyond every sequence in the padding
    long first, end;      // the slots in range
} Steps;

// The slots that lead from row i to rows of the sequence, or, where `back`, from them to it.
INLINE void slots_of(Steps *s, long i, int back) {
    const long low = back ? i - s->L + 1 : -i, high = low + s->L;
    // From row to row the range moves by few slots.
    if (i == 0) s->first = s->end = back ? 0 : s->slots;
    if (back) {
        while (s->first < s->slots && s->step[s->first] < low) s->first++;
        while (s->end < s->slots && s->step[s->end] < high) s->end++;
    } else {
        while (s->first > 0 && s->step[s->first - 1] >= low) s->first--;
        while (s->end > 0 && s->step[s->end - 1] >= high) s->end--;
    }
}

// sum[r] = the products of a [n vectors] with row r of four of x, by lanes.
INLINE void dot4(int n, const vf *a, const float *x, const int32_t *row, long D, vf sum[4]) {
    for (int r = 0; r < 4; r++) sum[r] = (vf){};
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++)
#pragma GCC unroll 4
        for (int c = 0; c < n; c++) sum[r] += a[c] * *(const vf *)(x + row[r] * D + c * REG);
}

#if defined(__AVX512F__)
#define FOURS vf
// x and y's sums of neighbours at `distance`, side by side: a stage of 16 sums of 16 lanes each.
#define PAIRED(distance, x, y)                           \
    ((vf)SHUFFLE(vu, (vu)(x), (vu)(y), LOW##distance) + \
     (vf)SHUFFLE(vu, (vu)(x), (vu)(y), HIGH##distance))

INLINE void put4(vf sums[4], long r, const vf sum[4]) {  // four lanes for each
    sums[r] = PAIRED(2, PAIRED(1, sum[0], sum[1]), PAIRED(1, sum[2], sum[3]));
}
INLINE void add16(float *out, const vf sums[4]) {
    *(vf *)out += PAIRED(8, PAIRED(4, sums[0], sums[1]), PAIRED(4, sums[2], sums[3]));
}
#else
typedef float f4 __attribute__((vector_size(16), may_alias));
#define FOURS f4

INLINE void put4(f4 sums[4], long r, const vf sum[4]) {
    v4 part[4];
    for (int i = 0; i < 4; i++) {
        f4 x = *(const f4 *)&sum[i];
        for (int k = 1; k < REG / 4; k++) x += ((const f4 *)&sum[i])[k];
        part[i] = (v4)x;
    }
    transpose4(part);
    sums[r] = ((f4)part[0] + (f4)part[2]) + ((f4)part[1] + (f4)part[3]);
}
INLINE void add16(float *out, const f4 sums[4]) {
    for (int i = 0; i < 4; i++) ((f4 *)out)[i] += sums[i];
}
#endif

// out [16] += dot products of a [n vectors] with 16 rows of x; `used`: the first and last that are
// asked for.
INLINE void dot16(int n, const float *a_, const float *x, const int32_t *row, long D, long used,
                  long last, float *out) {
    vf a[4] = {}, sum[4];
    FOURS sums[4] = {};
#pragma GCC unroll 4
    for (int c = 0; c < n; c++) a[c] = *(const vf *)(a_ + c * REG);
    for (long r = used / 4; r <= last / 4; r++) {
        dot4(n, a, x, row + 4 * r, D, sum);
        put4(sums, r, sum);
    }
    add16(out, sums);
}

// out [n vectors] = the sum of `count` rows of x, each times its weight.
INLINE void weigh(int n, const float *weight, const float *x, const int32_t *row, long count, long D,
                  float *out) {
    vf sum[2][4] = {};  // two sums at once, since each addition waits for the one before
    long r = 0;
    for (; r + 2 <= count; r += 2)
#pragma GCC unroll 2
        for (int s = 0; s < 2; s++)
#pragma GCC unroll 4
            for (int c = 0; c < n; c++)
                sum[s][c] += weight[r + s] * *(const vf *)(x + row[r + s] * D + c * REG);
    if (r < count)
#pragma GCC unroll 4
        for (int c = 0; c < n; c++) sum[0][c] += weight[r] * *(const vf *)(x + row[r] * D + c * REG);
#pragma GCC unroll 4
    for (int c = 0; c < n; c++) *(vf *)(out + c * REG) = sum[0][c] + sum[1][c];
}

// f(n, ...) with the number of vectors of the part at column c as a constant.
#define BY_PART(D, c, f, ...)               \
    switch (lmin(PART, (D) - (c)) / REG) {    \
        case 1: f(1, __VA_ARGS__); break;    \
        case 2: f(2, __VA_ARGS__); break;    \
        case 3: f(3, __VA_ARGS__); break;    \
        default: f(4, __VA_ARGS__); break;   \
    }

INLINE vi slot_rows(const Steps *s, long i, long g) {
    vi step;
    memcpy(&step, s->step + g, sizeof step);
    return step + (int32_t)i;
}

INLINE vi within(const Steps *s, vi row) {
    return ~negative(row) & less_int(row, splat_int((int32_t)s->L));
}

// scores [slots in whole vectors] of a [D] with the rows of x in range; `row` gets these rows.
INLINE void scores_of(const Steps *s, long i, const float *a, const float *x, int32_t *row,
                      float *scores) {
    for (long g = s->first & -W; g < s->end; g += W) {
        for (long k = g; k < g + W; k += REG) {
            vi j = slot_rows(s, i, k);
            j &= within(s, j);  // those out of range read the first row
            memcpy(row + k, &j, sizeof j);
        }
        const long used = g < s->first ? s->first - g : 0, last = lmin(W, s->end - g) - 1;
        memset(scores + g, 0, 4 * W);
        for (long c = 0; c < s->D; c += PART)
            BY_PART(s->D, c, dot16, a + c, x + c, row + g, s->D, used, last, scores + g)
    }
}

INLINE void weighted_rows(const Steps *s, const float *weight, const float *x, const int32_t *row,
                          float *out) {
    for (long c = 0; c < s->D; c += PART)
        BY_PART(s->D, c, weigh, weight + s->first, x + c, row + s->first, s->end - s->first, s->D,
                 out + c)
}

// float32 [rows][D] of rows that lie `ld` apart.
INLINE void widen_rows(const void *x, long ld_, long rows, long D, float *out, int half) {
    for (long r = 0; r < rows; r++) {
        if (r % W == 0) ahead(at(x, (r + W) * ld_, half), ld_, lmin(W, rows - r - W), D, half);
        for (long d = 0; d < D; d += REG) *(vf *)(out + r * D + d) = ld(x, r * ld_ + d, half);
    }
}

// Whether dropout keeps each of the keys: bits of keep_mask, in any order of keys.
INLINE vi keep_keys(key_t_ key, vi keys, uint32_t threshold) {
    const vu x = hash16(key, ((vu)keys >> 5 << 4) + ((vu)keys & 15));
    const vi odd = less_int(splat_int(0), (vi)((vu)keys & 16));
    const vu random = ((x >> 16) & (vu)odd) | (x & 0xffff & ~(vu)odd);
    return ~less_int((vi)random, splat_int((int32_t)threshold));
}

typedef struct {
    long ld, H, heads, head, row;  // as Item's
    uint32_t threshold;
    float scale, keep_scale;
    uint64_t seed;
} Call;

INLINE void offset_forward(const Call *w, Steps *s, const void *q, const void *k, const void *v,
                           void *out, void *saved, float *inverse, int half) {
    const long L = s->L, D = s->D;
    float *K = (float *)scratch(4 * (2 * L * D + 2 * D + 2 * s->slots)), *V = K + L * D;
    float *a = V + L * D, *o = a + D, *e_ = o + D;
    int32_t *row = (int32_t *)(e_ + s->slots);
    widen_rows(k, w->ld, L, D, K, half);
    widen_rows(v, w->ld, L, D, V, half);
    for (long i = 0; i < L; i++) {
        if (i % W == 0) ahead(at(q, (i + W) * w->ld, half), w->ld, lmin(W, L - i - W), D, half);
        slots_of(s, i, 0);
        for (long d = 0; d < D; d += REG) *(vf *)(a + d) = ld(q, i * w->ld + d, half);
        scores_of(s, i, a, K, row, e_);
        vf top = splat(-INFINITY), sum = {};
        for (long g = s->first & -REG; g < s->end; g += REG) {
            vf *x = (vf *)(e_ + g);
            *x = select_of(within(s, slot_rows(s, i, g)), *x, splat(-INFINITY));
            top = vmax(*x, top);
        }
        const float largest = max_of(top);
        const key_t_ key = row_key(w->seed, (w->row + i) * w->heads + w->head);
        for (long g = s->first & -REG; g < s->end; g += REG) {
            const vi j = slot_rows(s, i, g);
            vf e = vexp((*(vf *)(e_ + g) - largest) * w->scale);
            e = (vf)((vi)e & within(s, j));
            sum += e;
            const vi keep = w->threshold ? keep_keys(key, j, w->threshold) : ~(vi){};
            *(vf *)(e_ + g) = (vf)((vi)e & keep);
            if (saved)
                st(saved, i * s->slots + g, half, (vf)((vi)e | (~keep & (int32_t)0x80000000)));
        }
        const float total = sum_of(sum), f = total != 0 ? 1.0f / total : 0.0f;
        inverse[i * w->heads] = f;
        weighted_rows(s, e_, V, row, o);
        for (long d = 0; d < D; d += REG)
            st(out, i * w->H + d, half, *(vf *)(o + d) * (f * w->keep_scale));
    }
}

// out rows j = the sum over the steps of weights [j - step][slot] times rows j - step of x.
INLINE void gather_back(const Call *w, Steps *s, const float *weights, const float *x, int32_t *row,
                        float *weight, float *o, void *out, int half) {
    for (long j = 0; j < s->L; j++) {
        slots_of(s, j, 1);
        for (long g = s->first; g < s->end; g++) {
            row[g] = (int32_t)j - s->step[g];
            weight[g] = weights[row[g] * s->slots + g];
        }
        weighted_rows(s, weight, x, row, o);
        for (long d = 0; d < s->D; d += REG) st(out, j * w->ld + d, half, *(vf *)(o + d));
    }
}

INLINE void offset_backward(const Call *w, Steps *s, const void *q, const void *k, const void *v,
                            const void *out, const void *dout, const void *saved,
                            const float *inverse, void *dq, void *dk, void *dv, int half) {
    const long L = s->L, D = s->D, N = s->slots;
    float *X = (float *)scratch(4 * (L * D + 2 * L * N + 2 * D + 2 * N)), *dS = X + L * D;
    float *P = dS + L * N, *a = P + L * N, *o = a + D, *weight = o + D;
    int32_t *row = (int32_t *)(weight + N);
    // One matrix at a time, so that it stays in cache.
    widen_rows(v, w->ld, L, D, X, half);
    for (long i = 0; i < L; i++) {
        ahead(at(dout, (i + W) * w->H, half), w->H, i + W < L, D, half);
        ahead(at(out, (i + W) * w->H, half), w->H, i + W < L, D, half);
        slots_of(s, i, 0);
        vf sum = {};
        for (long d = 0; d < D; d += REG) {
            const vf g = ld(dout, i * w->H + d, half);
            sum += g * ld(out, i * w->H + d, half);
            *(vf *)(a + d) = g;
        }
        const float delta = sum_of(sum), f = inverse[i * w->heads];
        scores_of(s, i, a, X, row, weight);
        for (long g = s->first & -REG; g < s->end; g += REG) {
            const vi in = within(s, slot_rows(s, i, g));
            const vf e = (vf)((vi)ld(saved, i * N + g, half) & in);
            const vi alive = ~negative((vi)e);
            const vf d = (vf)((vi)(*(vf *)(weight + g) * w->keep_scale) & alive);
            const vf ds = (vf)((vi)e & 0x7fffffff) * (f * w->scale) * (d - delta);
            *(vf *)(dS + i * N + g) = (vf)((vi)ds & in);
            *(vf *)(P + i * N + g) = (vf)((vi)e & alive) * (f * w->keep_scale);
        }
    }
    widen_rows(k, w->ld, L, D, X, half);
    for (long i = 0; i < L; i++) {
        slots_of(s, i, 0);
        for (long g = s->first; g < s->end; g++) row[g] = (int32_t)i + s->step[g];
        weighted_rows(s, dS + i * N, X, row, o);
        for (long d = 0; d < D; d += REG) st(dq, i * w->ld + d, half, *(vf *)(o + d));
    }
    widen_rows(q, w->ld, L, D, X, half);
    gather_back(w, s, dS, X, row, weight, o, dk, half);
    widen_rows(dout, w->H, L, D, X, half);
    gather_back(w, s, P, X, row, weight, o, dv, half);
}

#define OFFSET_PARAMS                                                                          \
    const void *qkv, const int32_t *starts, const int64_t *order, long sequences, long heads,  \
        long D, const int64_t *which, const int32_t *steps, long slots, void *out, void *saved, \
        float *inverse, long rows, const void *dout, void *dqkv, uint32_t threshold,           \
        float keep_scale, uint64_t seed, int half
#define OFFSET_VALUES                                                                         \
    qkv, starts, order, sequences, heads, D, which, steps, slots, out, saved, inverse, rows, dout, \
        dqkv, threshold, keep_scale, seed

// As attention_: head n has the steps [slots] of number which[n].
INLINE void offset_attention_(long t, OFFSET_PARAMS) {
    const long n = t % heads, b = order[t / heads], first = starts[b], H = heads * D;
    Steps s = {starts[b + 1] - first, D, slots, steps + which[n] * slots, 0, 0};
    const Call w = {3 * H, H, heads, n, first, threshold, 1.0f / sqrtf(D), keep_scale, seed};
    const long from = first * 3 * H + n * D, to = first * H + n * D;
    void *mine = saved ? (void *)at(saved, (n * rows + first) * slots, half) : NULL;
    const void *q = at(qkv, from, half), *k = at(qkv, from + H, half),
               *v = at(qkv, from + 2 * H, half), *o = at(out, to, half);
    float *inv = inverse + first * heads + n;
    if (!dout)
        offset_forward(&w, &s, q, k, v, (void *)o, mine, inv, half);
    else
        offset_backward(&w, &s, q, k, v, o, at(dout, to, half), mine, inv,
                        (void *)at(dqkv, from, half), (void *)at(dqkv, from + H, half),
                        (void *)at(dqkv, from + 2 * H, half), half);
}
EXPORT void offset_attention(OFFSET_PARAMS) {
#pragma omp parallel for schedule(dynamic, 1)
    for (long t = 0; t < sequences * heads; t++) {
        if (half) offset_attention_(t, OFFSET_VALUES, 1);
        else offset_attention_(t, OFFSET_VALUES, 0);
    }
}
