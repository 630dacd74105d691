// SPDX-License-Identifier: Apache-2.0
// Self-attention within each sequence of a packed batch, one (sequence, head) per task.
// qkv [T, 3H] holds q, k, v side by side; D = H / heads is a multiple of 16.
//
// Queries are handled in tiles. A tile meets all keys, or those of its runs where a layout of kept
// blocks is given; within them a mask can leave out single keys.
//
// Kept for the backward pass: the unnormalised probabilities e = exp(scale * (s - max)) in the
// compute type, with the sign bit set where dropout removed the element: of each tile [rows, width],
// where width is the keys of its runs, L rounded up to 16 without a layout; and 1 / sum(e) per row,
// [T, heads], 0 for a row without keys.
#pragma once
#include "vec.h"

enum { QUERIES = 48 };  // rows of a tile without a layout: scores, keys and values stay in L2

typedef struct {
    int32_t first, end;  // keys, multiples of 16
} Run;

typedef struct {
    long L, Lp, Lc, D, Dc;  // length, padded to vectors, in cells; head size, in cells
    long ld, H;             // elements per row of qkv and of out
    uint32_t threshold;
    float scale, keep_scale;
    uint64_t seed;
    long row, heads, head;  // of the first query: dropout's row is (row + i) * heads + head
    long queries;           // rows of a tile
    Run all;                // every key: the only run without a layout
    const Run *runs;        // tile t has runs[tiles[t]] to runs[tiles[t + 1]]
    const int64_t *tiles;   // NULL without a layout
    const uint16_t *bits;   // [query][words]: bit k of word j / 16 is key j + k; NULL: all ones
    long words;
} Item;

// A tile's runs, those that begin within the sequence, and the number of their keys.
typedef struct {
    const Run *runs;
    long count, width;
} Tile;

INLINE long run_end(const Item *w, Run run) { return lmin(run.end, w->Lp); }

INLINE Tile tile_of(const Item *w, long i0) {
    Tile t = {&w->all, 1, w->Lp};
    if (w->tiles) {
        const int64_t *tile = w->tiles + i0 / w->queries;
        t = (Tile){w->runs + tile[0], 0, 0};
        for (; t.count < tile[1] - tile[0] && t.runs[t.count].first < w->Lp; t.count++)
            t.width += run_end(w, t.runs[t.count]) - t.runs[t.count].first;
    }
    return t;
}

// The runs of a tile in turn: keys j to end, of which the first is column c of the tile.
#define EACH_RUN(w, t)                                                                       \
    for (long n_ = 0, c = 0, j = 0, end = 0;                                                 \
         n_ < (t).count &&                                                                   \
         (j = (t).runs[n_].first, end = run_end(w, (t).runs[n_]), 1);                        \
         c += end - (t).runs[n_].first, n_++)

// Which of the keys from j on, a vector of them, a query may attend to; `bits` is its row of bits.
INLINE vi allowed(const uint16_t *bits, long j, long L) {
    const uint32_t m = bits ? bits[j / W] >> j % W : 0xffff;
    const vu lane = ((vu){} + 1) << COUNTED;
    return less_int(splat_int(0), (vi)(lane & (m & ((1u << lmax(0, lmin(L - j, REG))) - 1))));
}

INLINE const void *at(const void *x, long i, int half) { return (const char *)x + i * bytes(half); }

// Asks for `rows` rows of memory ahead of their use: they lie a whole row of the batch apart, which
// no processor foresees.
INLINE void ahead(const void *x, long ld, long rows, long cols, int half) {
    for (long r = 0; r < rows; r++)
        for (long i = 0; i < cols; i += 64 / (long)bytes(half))
            __builtin_prefetch((const char *)x + (r * ld + i) * bytes(half));
}

// cells [rows / 2 or rows][cols]: two bf16 rows side by side, or float32 rows; zeros to `padded`.
INLINE void pair_rows(const void *x, long ld, long rows, long padded, long cols, uint32_t *out,
                      int half) {
    const uint16_t *h = x;
    for (long r = 0; r < padded; r += half ? 2 : 1) {
        if (r % W == 0) ahead(at(x, (r + W) * ld, half), ld, lmin(W, rows - r - W), cols, half);
        for (long i = 0; i < cols; i += REG) {
            vu a = {}, b = {};
            if (half) {
                if (r < rows) a = __builtin_convertvector(*(const vh *)(h + r * ld + i), vu);
                if (r + 1 < rows) b = __builtin_convertvector(*(const vh *)(h + (r + 1) * ld + i), vu);
                a |= b << 16;
            } else if (r < rows) {
                a = *(const vu *)((const float *)x + r * ld + i);
            }
            *(vu *)(out + (half ? r / 2 : r) * cols + i) = a;
        }
    }
}

// Panels of 16 rows [rows / 16][cols][16], of cells x [rows][cols]; zeros beyond `rows`. A product
// reads a panel in sequence, however long the sequence is. cols % 8 == 0.
INLINE void turn(const uint32_t *x, long ld, long rows, long cols, uint32_t *out) {
    for (long r = 0; r < rows; r += W) {
        ahead(x + (r + W) * ld, ld, lmin(W, rows - r - W), cols, 0);
        for (long c = 0; c < cols; c += W) {
            row16 v[W];
            for (long i = 0; i < W; i++) {
                v[i] = (row16){};
                const uint32_t *from = x + (r + i) * ld + c;  // sizes known here need no call
                if (r + i < rows && c + W <= cols) memcpy(&v[i], from, 4 * W);
                else if (r + i < rows) memcpy(&v[i], from, 4 * W / 2);
            }
            transpose16(v);
            for (long i = 0; i < lmin(W, cols - c); i++) *(row16 *)(out + r * cols + (c + i) * W) = v[i];
        }
    }
}

// The unnormalised probability of a score; vexp has no zero, so that of minus infinity is cut off.
// NaN stays NaN: a run that diverges must show it.
INLINE vf weight(vf score, float largest, float scale) {
    return (vf)((vi)vexp((score - largest) * scale) & (vi)(score != splat(-INFINITY)));
}

INLINE void attend(const Item *w, const void *q, const void *k, const void *v, void *out, void *saved,
                   float *inverse, int half) {
    const long L = w->L, Lp = w->Lp, Lc = w->Lc, D = w->D, step = half ? 2 : 1, M = w->queries;
    uint32_t *KT = (uint32_t *)scratch(4 * (w->Dc * Lp + Lc * D + M * (Lp + Lc + D)));
    uint32_t *V = KT + w->Dc * Lp, *own = V + Lc * D;
    float *S = (float *)(own + M * Lc), *O = S + M * Lp;
    const long cells = half ? w->ld / 2 : w->ld;
    turn(k, cells, L, w->Dc, KT);
    pair_rows(v, w->ld, L, Lp, D, V, half);
    for (long i0 = 0; i0 < L; i0 += M) {
        const Tile t = tile_of(w, i0);
        const long rows = lmin(M, L - i0), N = t.width;
        ahead(at(q, (i0 + M) * w->ld, half), w->ld, lmin(M, L - i0 - M), D, half);
        uint32_t *P = saved && !w->threshold ? saved : own;  // without dropout they are the same
        EACH_RUN(w, t)
            GEMM(rows, end - j, w->Dc, at(q, i0 * w->ld, half), cells, KT + j * w->Dc, w->Dc * W, W,
                 S + c, N, 0);
        for (long r = 0; r < rows; r++) {
            float *s = S + r * N;
            const uint16_t *bits = w->bits ? w->bits + (i0 + r) * w->words : NULL;
            if (bits || Lp > L)
                EACH_RUN(w, t)
                    for (long i = 0; i < end - j; i += REG) {
                        vf *x = (vf *)(s + c + i);
                        if (bits || j + i + REG > L)
                            *x = select_of(allowed(bits, j + i, L), *x, splat(-INFINITY));
                    }
            vf top = splat(-INFINITY), sum = {};
            for (long c = 0; c < N; c += REG) top = vmax(top, *(vf *)(s + c));
            const float largest = max_of(top);
            if (!w->threshold) {
#pragma GCC unroll 4
                for (long c = 0; c < N; c += REG) {
                    const vf e = weight(*(vf *)(s + c), largest, w->scale);
                    sum += e;
                    st(P, r * N + c, half, e);
                }
            } else {
                key_t_ key = row_key(w->seed, (w->row + i0 + r) * w->heads + w->head);
                EACH_RUN(w, t)
                    for (long j0 = j & -2 * W; j0 < end; j0 += 2 * W)
                        for (long part = 0; part < W; part += REG) {
                            vu h = hash32(key, j0 + part);
                            for (long odd = j0 < j; odd < 2 && j0 + odd * W < end; odd++) {
                                const long at = c + j0 + odd * W + part - j;
                                const vf e = weight(*(vf *)(s + at), largest, w->scale);
                                sum += e;
                                vi keep = keep16(h, odd, w->threshold);
                                vf dead = (vf)((vi)e | (~keep & (int32_t)0x80000000));
                                st(P, r * N + at, half, (vf)((vi)e & keep));
                                if (saved) st(saved, r * N + at, half, dead);
                            }
                        }
            }
            const float total = sum_of(sum);
            inverse[(i0 + r) * w->heads] = total != 0 ? 1.0f / total : 0.0f;
        }
        if (saved) saved = (char *)saved + rows * N * bytes(half);
        if (!t.count) memset(O, 0, 4 * rows * D);
        ahead(at(out, i0 * w->H, half), w->H, rows, D, half);
        EACH_RUN(w, t)
            GEMM(rows, D, (end - j) / step, P + c / step, N / step, V + j / step * D, W, D, O, D,
                 n_ > 0);
        for (long r = 0; r < rows; r++) {
            float scale = inverse[(i0 + r) * w->heads] * w->keep_scale;
            for (long d = 0; d < D; d += REG)
                st(out, (i0 + r) * w->H + d, half, *(vf *)(O + r * D + d) * scale);
        }
    }
}

INLINE void attend_backward(const Item *w, const void *q, const void *k, const void *v,
                            const void *out, const void *dout, const void *saved,
                            const float *inverse, void *dq, void *dk, void *dv, int half) {
    const long L = w->L, Lp = w->Lp, Lc = w->Lc, D = w->D, H = w->H, step = half ? 2 : 1;
    const long M = w->queries, Mc = M / step;
    uint32_t *VT = (uint32_t *)scratch(
        4 * (w->Dc * Lp + Lc * D + M * (Lc + Lp + 2 * D + 1) + 2 * Mc * (Lp + D) + 2 * Lp * D));
    uint32_t *K = VT + w->Dc * Lp, *Q = K + Lc * D, *G = Q + Mc * D, *own = G + Mc * D;
    uint32_t *cells_dS = own + M * Lc, *cells_P = cells_dS + Mc * Lp;
    float *dP = (float *)(cells_P + Mc * Lp), *dQ = dP + M * Lp, *dK = dQ + M * D, *dV = dK + Lp * D,
          *scaled = dV + Lp * D, *delta = scaled + M * D;
    const long cells = half ? w->ld / 2 : w->ld, out_cells = half ? H / 2 : H;
    turn(v, cells, L, w->Dc, VT);
    pair_rows(k, w->ld, L, Lp, D, K, half);
    memset(dK, 0, 8 * Lp * D);

    for (long i0 = 0; i0 < L; i0 += M) {
        const Tile t = tile_of(w, i0);
        const long rows = lmin(M, L - i0), here = up(rows, step) / step, N = t.width;
        // In float32 the gradient of the scores takes dP's place, and without dropout the
        // probabilities are the saved ones.
        uint32_t *dS = half ? own : (uint32_t *)dP, *dSc = half ? cells_dS : dS;
        const uint32_t *Pc = half || w->threshold ? cells_P : saved;
        const long next = lmin(M, L - i0 - M);
        ahead(at(dout, (i0 + M) * H, half), H, next, D, half);
        ahead(at(out, (i0 + M) * H, half), H, next, D, half);
        ahead(at(q, (i0 + M) * w->ld, half), w->ld, next, D, half);
        pair_rows(at(q, i0 * w->ld, half), w->ld, rows, step * here, D, Q, half);
        // G: the output's gradient with each row's 1 / sum and dropout's scale.
        for (long r = 0; r < rows; r++) {
            const float f = inverse[(i0 + r) * w->heads] * w->keep_scale;
            vf sum = {};
            for (long d = 0; d < D; d += REG) {
                const vf x = ld(dout, (i0 + r) * H + d, half);
                sum += x * ld(out, (i0 + r) * H + d, half);
                st(scaled, r * D + d, half, x * f);
            }
            delta[r] = sum_of(sum);
        }
        pair_rows(scaled, D, rows, step * here, D, G, half);
        EACH_RUN(w, t)
            GEMM(rows, end - j, w->Dc, at(dout, i0 * H, half), out_cells, VT + j * w->Dc, w->Dc * W,
                 W, dP + c, N, 0);
        for (long r = 0; r < rows; r += step) {
            float f[2] = {0, 0};
            for (long s = 0; s < step && r + s < rows; s++) f[s] = inverse[(i0 + r + s) * w->heads];
            for (long c = 0; c < N; c += REG) {
                vu p[2] = {}, g[2] = {};
                for (long s = 0; s < step && r + s < rows; s++) {
                    vf e = ld(saved, (r + s) * N + c, half);
                    vi alive = ~negative((vi)e);
                    vf d = (vf)((vi)(*(vf *)(dP + (r + s) * N + c) * w->keep_scale) & alive);
                    vf ds = (vf)((vi)e & 0x7fffffff) * (f[s] * w->scale) * (d - delta[r + s]);
                    p[s] = (vu)e & (vu)alive;
                    if (half) {
                        vh hs = narrow(ds);
                        memcpy((uint16_t *)dS + (r + s) * N + c, &hs, sizeof hs);
                        g[s] = __builtin_convertvector(hs, vu);
                    } else {
                        *(vf *)(dS + (r + s) * N + c) = ds;
                    }
                }
                const long cell = r / step * N + c;
                if (half) {
                    *(vu *)(dSc + cell) = g[0] | g[1] << 16;
                    *(vu *)(cells_P + cell) = p[0] >> 16 | (p[1] & 0xffff0000u);
                } else if (w->threshold) {
                    *(vu *)(cells_P + cell) = p[0];
                }
            }
        }
        saved = (const char *)saved + rows * N * bytes(half);
        if (!t.count) memset(dQ, 0, 4 * rows * D);
        EACH_RUN(w, t) {
            GEMM(rows, D, (end - j) / step, dS + c / step, N / step, K + j / step * D, W, D, dQ, D,
                 n_ > 0);
            GEMM_TURNED(end - j, D, here, dSc + c, N, Q, W, D, dK + j * D, D, 1);
            GEMM_TURNED(end - j, D, here, Pc + c, N, G, W, D, dV + j * D, D, 1);
        }
        for (long r = 0; r < rows; r++)
            for (long d = 0; d < D; d += REG)
                st(dq, (i0 + r) * w->ld + d, half, *(vf *)(dQ + r * D + d));
    }
    for (long j = 0; j < L; j++) {
        ahead(at(dk, (j + W) * w->ld, half), w->ld, j + W < L, D, half);
        ahead(at(dv, (j + W) * w->ld, half), w->ld, j + W < L, D, half);
        for (long d = 0; d < D; d += REG) {
            st(dk, j * w->ld + d, half, *(vf *)(dK + j * D + d));
            st(dv, j * w->ld + d, half, *(vf *)(dV + j * D + d));
        }
    }
}

// Rows places[i] of x, which lie `ld` apart, to rows i of `out`; or back where `back`.
INLINE void move_rows(const int32_t *places, void *x, long ld_, long rows, long D, void *out,
                      int back, int half) {
    for (long i = 0; i < rows; i++) {
        if (i + W < rows) ahead(at(x, places[i + W] * ld_, half), 0, 1, D, half);
        char *far = (char *)at(x, places[i] * ld_, half), *near = (char *)at(out, i * D, half);
        memcpy(back ? far : near, back ? near : far, D * bytes(half));
    }
}

// Either pass on copies of the head's rows in the order of `places`.
INLINE void in_order(Item *w, const int32_t *places, const void *q, const void *k, const void *v,
                     void *out, const void *dout, void *saved, float *inverse, void *dq, int half) {
    const long L = w->L, D = w->D, ld = w->ld, H = w->H, part = up(L * D * (long)bytes(half), 64);
    char *room = copies(8 * part), *own[8];
    for (long i = 0; i < 8; i++) own[i] = room + i * part;
    const void *from[] = {q, k, v, out, dout};
    for (long i = 0; i < (dout ? 5 : 3); i++)
        move_rows(places, (void *)from[i], i < 3 ? ld : H, L, D, own[i], 0, half);
    w->ld = w->H = D;
    if (!dout) {
        attend(w, own[0], own[1], own[2], own[3], saved, inverse, half);
        move_rows(places, out, H, L, D, own[3], 1, half);
        return;
    }
    attend_backward(w, own[0], own[1], own[2], own[3], own[4], saved, inverse, own[5], own[6],
                    own[7], half);
    for (long i = 0; i < 3; i++)
        move_rows(places, (void *)at(dq, i * H, half), ld, L, D, own[5 + i], 1, half);
}

#define ATTENTION_PARAMS                                                                        \
    const void *qkv, const int32_t *starts, const int64_t *order, const int64_t *offsets,       \
        long sequences, long heads, long D, const int64_t *which, const int64_t *tiles,         \
        const Run *runs, const uint16_t *bits, const int32_t *places, long fences,              \
        long longest, long words, long queries, void *out, void *saved, float *inverse, const void *dout, void *dqkv,     \
        uint32_t threshold, float keep_scale, uint64_t seed, int half
#define ATTENTION_VALUES                                                                       \
    qkv, starts, order, offsets, sequences, heads, D, which, tiles, runs, bits, places, fences,  \
        longest, words, queries, out, saved, inverse, dout, dqkv, threshold, keep_scale, seed

// Task t is one head of one sequence. Forward without dout, backward with it. order: sequences,
// longest first (for balance); offsets [sequences, heads]: where each task's probabilities start in
// `saved`. Of the layouts, head n of sequence b has number which[b * heads + n]: tiles
// [layouts][fences], bits and places [layouts][longest][words or 1].
INLINE void attention_(long t, ATTENTION_PARAMS) {
    const long b = order[t / heads], n = t % heads, first = starts[b];
    const long L = starts[b + 1] - first, Lp = up(L, W), H = heads * D, own = which ? which[b * heads + n] : 0;
    Item w = {L, Lp, half ? Lp / 2 : Lp, D, half ? D / 2 : D, 3 * H, H, threshold,
                    1.0f / sqrtf(D), keep_scale, seed, first, heads, n,
                    which ? queries : QUERIES, {0, Lp}, runs,
                    which ? tiles + own * fences : NULL,
                    bits ? bits + own * longest * words : NULL, words};
    const long from = first * 3 * H + n * D, to = first * H + n * D;
    void *mine = saved ? (void *)at(saved, offsets[b * heads + n], half) : NULL;
    const void *q = at(qkv, from, half), *k = at(qkv, from + H, half),
               *v = at(qkv, from + 2 * H, half), *o = at(out, to, half);
    float *inv = inverse + first * heads + n;
    if (places) {
        in_order(&w, places + own * longest, q, k, v, (void *)o, dout ? at(dout, to, half) : NULL, mine,
                 inv, dout ? (void *)at(dqkv, from, half) : NULL, half);
        return;
    }
    if (!dout)
        attend(&w, q, k, v, (void *)o, mine, inv, half);
    else
        attend_backward(&w, q, k, v, o, at(dout, to, half), mine, inv,
                        (void *)at(dqkv, from, half), (void *)at(dqkv, from + H, half),
                        (void *)at(dqkv, from + 2 * H, half), half);
}
EXPORT void attention(ATTENTION_PARAMS) {
#pragma omp parallel for schedule(dynamic, 1)
    for (long t = 0; t < sequences * heads; t++) {
        if (half) attention_(t, ATTENTION_VALUES, 1);
        else attention_(t, ATTENTION_VALUES, 0);
    }
}
