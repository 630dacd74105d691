// SPDX-License-Identifier: Apache-2.0
// Operations on rows: embedding, LayerNorm, dropout, GELU, cross-entropy, column sums.
// Matrices are row-major [rows, cols] in bf16 (half = 1) or float32, parameters float32.
// Every result is independent of the number of threads.
#pragma once
#include "vec.h"

// Fixed shares of work, so that sums do not depend on the number of threads.
enum { BLOCKS = 32, COLUMNS = 8 * W };

// A kernel over `count` rows (or columns, `step` at a time), one instance per value of `half`. The
// choice is inside the loop since OpenMP outlines loops before constants are propagated.
#define KERNEL(name, params, count, step, ...)                 \
    EXPORT void name params {                                  \
        _Pragma("omp parallel for schedule(static)")           \
        for (long t = 0; t < (count); t += (step)) {           \
            if (half) name##_(t, __VA_ARGS__, 1);              \
            else name##_(t, __VA_ARGS__, 0);                   \
        }                                                      \
    }

// z [cols] -> normalised into z; returns 1 / sqrt(variance + eps).
INLINE float normalise(float *z, long cols, float eps) {
    const long whole = cols / REG * REG, rest = cols - whole;
    vf s = {}, q = {};
    for (long i = 0; i < whole; i += REG) s += ld(z, i, 0);
    if (rest) s += ld_part(z, whole, rest, 0);
    const float mean = sum_of(s) / cols;
    for (long i = 0; i < whole; i += REG) {
        vf d = ld(z, i, 0) - mean;
        q += d * d;
    }
    for (long i = whole; i < cols; i++) q[0] += (z[i] - mean) * (z[i] - mean);
    const float rstd = 1.0f / sqrtf(sum_of(q) / cols + eps);
    for (long i = 0; i < cols; i += REG) st(z, i, 0, (ld(z, i, 0) - mean) * rstd);
    return rstd;
}

INLINE vf drop(vf x, vu hash, int odd, uint32_t threshold, float scale) {
    return (vf)((vi)(x * scale) & keep16(hash, odd, threshold));
}

// Loop over a row in vectors: i = first column, n = columns left, h = dropout's hash, of whose two
// vectors the second is `odd`.
#define FOR_ROW(cols, key, threshold)                                                        \
    for (long i32 = 0; i32 < (cols); i32 += 2 * W)                                           \
        for (long even = i32, odd = 0; even < lmin(cols, i32 + W); even += REG, odd = 0)     \
            for (vu h = (threshold) ? hash32(key, even) : (vu){}, *once = &h; once; once = 0) \
                for (long i = even, n = (cols)-i; n > 0 && odd < 2; i += W, n -= W, odd++)

// out = dropout(norm(word[ids] + position[positions] + type[types])); no norm without gamma.
INLINE void embed_forward_(long t, const int64_t *ids, const int64_t *positions, const int64_t *types,
                           const float *word, const float *position, const float *type,
                           const float *gamma, const float *beta, float eps, void *out, void *xhat,
                           float *rstd, long rows, long cols, uint32_t threshold, float scale,
                           uint64_t seed, int half) {
    float z[cols + W];
    const float *a = word + ids[t] * cols, *b = position + positions[t] * cols,
                *c = type + types[t] * cols;
    for (long i = 0; i < cols; i++) z[i] = a[i] + b[i] + c[i];
    if (gamma) rstd[t] = normalise(z, cols, eps);
    key_t_ key = row_key(seed, t);
    FOR_ROW(cols, key, threshold) {
        vf x = ldn(z, i, n, 0);
        if (gamma) {
            stn(xhat, t * cols + i, n, half, x);
            x = x * ldn(gamma, i, n, 0) + ldn(beta, i, n, 0);
        }
        if (threshold) x = drop(x, h, odd, threshold, scale);
        stn(out, t * cols + i, n, half, x);
    }
}
KERNEL(embed_forward,
     (const int64_t *ids, const int64_t *positions, const int64_t *types, const float *word,
      const float *position, const float *type, const float *gamma, const float *beta, float eps,
      void *out, void *xhat, float *rstd, long rows, long cols, uint32_t threshold, float scale,
      uint64_t seed, int half), rows, 1,
     ids, positions, types, word, position, type, gamma, beta, eps, out, xhat, rstd, rows, cols,
     threshold, scale, seed)

// out[ids[t]] += x[t], in the order of t. Threads share the columns, not the rows.
INLINE void scatter_add_(long c, const void *x, const int64_t *ids, float *out, long rows, long cols,
                         int half) {
    for (long t = 0; t < rows; t++) {
        float *to = out + ids[t] * cols;
        for (long i = c; i < lmin(cols, c + COLUMNS); i += REG) {
            vf sum = ldn(to, i, cols - i, 0) + ldn(x, t * cols + i, cols - i, half);
            stn(to, i, cols - i, 0, sum);
        }
    }
}
KERNEL(scatter_add, (const void *x, const int64_t *ids, float *out, long rows, long cols, int half), cols, COLUMNS, x,
     ids, out, rows, cols)

// z = dropout(x) + residual (either may be absent); out = gamma * norm(z) + beta, or z.
INLINE void norm_forward_(long t, const void *x, const void *residual, const float *gamma,
                          const float *beta, float eps, void *out, void *xhat, float *rstd,
                          long rows, long cols, uint32_t threshold, float scale, uint64_t seed,
                          int half) {
    float z[cols + W];
    key_t_ key = row_key(seed, t);
    FOR_ROW(cols, key, threshold) {
        vf v = ldn(x, t * cols + i, n, half);
        if (threshold) v = drop(v, h, odd, threshold, scale);
        if (residual) v += ldn(residual, t * cols + i, n, half);
        if (gamma) stn(z, i, n, 0, v);
        else stn(out, t * cols + i, n, half, v);
    }
    if (!gamma) return;
    rstd[t] = normalise(z, cols, eps);
    for (long i = 0; i < cols; i += REG) {
        vf v = ldn(z, i, cols - i, 0);
        stn(xhat, t * cols + i, cols - i, half, v);
        stn(out, t * cols + i, cols - i, half,
            v * ldn(gamma, i, cols - i, 0) + ldn(beta, i, cols - i, 0));
    }
}
KERNEL(norm_forward,
     (const void *x, const void *residual, const float *gamma, const float *beta, float eps,
      void *out, void *xhat, float *rstd, long rows, long cols, uint32_t threshold, float scale,
      uint64_t seed, int half), rows, 1,
     x, residual, gamma, beta, eps, out, xhat, rstd, rows, cols, threshold, scale, seed)

// Gradients of LayerNorm: dz, and dropped = dropout's gradient of dz (absent without dropout).
// `outer`: the dropout was on LayerNorm's output instead, and dy passes through it first.
// partial [BLOCKS, 2, cols]: shares of the gradients of gamma and beta, to be added up.
INLINE void norm_backward_(long b, const void *dy, const void *xhat, const float *rstd,
                           const float *gamma, void *dz, void *dropped, float *partial, long rows,
                           long cols, int outer, uint32_t threshold, float scale, uint64_t seed,
                           int half) {
    const long block = (rows + BLOCKS - 1) / BLOCKS;
    float *dg = partial + b * 2 * cols, *db = dg + cols, g[cols + W];
    memset(dg, 0, 8 * cols);
    for (long t = b * block; t < lmin(rows, (b + 1) * block); t++) {
        key_t_ key = row_key(seed, t);
        vf sum_g = {}, sum_gx = {};
        FOR_ROW(cols, key, outer ? threshold : 0) {
            vf d = ldn(dy, t * cols + i, n, half), xh = ldn(xhat, t * cols + i, n, half);
            if (outer && threshold) d = drop(d, h, odd, threshold, scale);
            stn(db, i, n, 0, ldn(db, i, n, 0) + d);
            stn(dg, i, n, 0, ldn(dg, i, n, 0) + d * xh);
            d *= ldn(gamma, i, n, 0);
            stn(g, i, n, 0, d);
            sum_g += d;
            sum_gx += d * xh;
        }
        float mean_g = sum_of(sum_g) / cols, mean_gx = sum_of(sum_gx) / cols;
        FOR_ROW(cols, key, outer ? 0 : threshold) {
            vf xh = ldn(xhat, t * cols + i, n, half);
            vf d = (ldn(g, i, n, 0) - mean_g - xh * mean_gx) * rstd[t];
            stn(dz, t * cols + i, n, half, d);
            if (!outer && threshold)
                stn(dropped, t * cols + i, n, half, drop(d, h, odd, threshold, scale));
        }
    }
}
KERNEL(norm_backward,
       (const void *dy, const void *xhat, const float *rstd, const float *gamma, void *dz,
        void *dropped, float *partial, long rows, long cols, int outer, uint32_t threshold,
        float scale, uint64_t seed, int half), BLOCKS, 1,
       dy, xhat, rstd, gamma, dz, dropped, partial, rows, cols, outer, threshold, scale, seed)

// sums [BLOCKS, cols]: x summed over the rows of each block. Whole rows, whose memory is read in order.
INLINE void column_sums_(long b, const void *x, float *sums, long rows, long cols, int half) {
    const long block = (rows + BLOCKS - 1) / BLOCKS;
    float *sum = sums + b * cols;
    memset(sum, 0, 4 * cols);
    for (long t = b * block; t < lmin(rows, (b + 1) * block); t++)
        for (long i = 0; i < cols; i += REG) {
            long n = cols - i;
            stn(sum, i, n, 0, ldn(sum, i, n, 0) + ldn(x, t * cols + i, n, half));
        }
}
KERNEL(column_sums, (const void *x, float *sums, long rows, long cols, int half), BLOCKS, 1, x, sums, rows, cols)

// u [rows, cols] without its bias -> y = GELU(u + bias); u is overwritten by GELU'(u + bias).
// erf by Abramowitz and Stegun 7.1.26 (absolute error 1.5e-7), sharing exp(-u^2 / 2) with GELU'.
INLINE void gelu_forward_(long t, void *u, const float *bias, void *y, long rows, long cols, int tanh_form,
                          int half) {
    for (long i = 0; i < cols; i += REG) {
        long n = cols - i, at = t * cols + i;
        vf x = ldn(u, at, n, half) + ldn(bias, i, n, 0), out, slope;
        if (tanh_form) {
            // (1 + tanh z) / 2 is the logistic function of 2z, without cancellation.
            const float a = 0.7978845608f, b = 0.044715f;
            vf z2 = 2 * a * (x + b * x * x * x);
            vf e = vexp(select_of(less(splat(80), z2), splat(80), z2)), rest = 1 / (e + 1), s = e * rest;
            out = x * s;
            slope = s + 2 * x * s * rest * a * (1 + 3 * b * x * x);
        } else {
            vf z = (vf)((vi)x & 0x7fffffff) * 0.70710678f, g = vexp(-z * z);
            vf k = 1 / (1 + 0.3275911f * z);
            vf p = k * 1.061405429f - 1.453152027f;
            p = p * k + 1.421413741f;
            p = p * k - 0.284496736f;
            p = p * k + 0.254829592f;
            vf tail = 0.5f * p * k * g;  // Phi(-|x|)
            vf phi = select_of(less(x, splat(0)), tail, 1 - tail);
            out = x * phi;
            slope = phi + x * g * 0.3989422804f;
        }
        stn(y, at, n, half, out);
        stn(u, at, n, half, slope);
    }
}
KERNEL(gelu_forward, (void *u, const float *bias, void *y, long rows, long cols, int tanh_form, int half), rows, 1,
     u, bias, y, rows, cols, tanh_form)

// du = dy * slope; sums [BLOCKS, cols]: its column sums (the bias's gradient), to be added up.
INLINE void gelu_backward_(long b, const void *dy, const void *slope, void *du, float *sums, long rows,
                           long cols, int half) {
    const long block = (rows + BLOCKS - 1) / BLOCKS;
    float *sum = sums + b * cols;
    memset(sum, 0, 4 * cols);
    for (long t = b * block; t < lmin(rows, (b + 1) * block); t++)
        for (long i = 0; i < cols; i += REG) {
            long n = cols - i, at = t * cols + i;
            vf d = ldn(dy, at, n, half) * ldn(slope, at, n, half);
            stn(du, at, n, half, d);
            stn(sum, i, n, 0, ldn(sum, i, n, 0) + d);
        }
}
KERNEL(gelu_backward,
     (const void *dy, const void *slope, void *du, float *sums, long rows, long cols, int half), BLOCKS, 1, dy,
     slope, du, sums, rows, cols)

// x = dropout(x) scaled; the gradient is the same function.
INLINE void dropout_(long t, const void *x, void *out, long rows, long cols, uint32_t threshold,
                     float scale, uint64_t seed, int half) {
    key_t_ key = row_key(seed, t);
    FOR_ROW(cols, key, 1)
        stn(out, t * cols + i, n, half,
            drop(ldn(x, t * cols + i, n, half), h, odd, threshold, scale));
}
KERNEL(dropout,
     (const void *x, void *out, long rows, long cols, uint32_t threshold, float scale,
      uint64_t seed, int half), rows, 1,
     x, out, rows, cols, threshold, scale, seed)

// Softmax cross-entropy per row; logits become softmax - onehot(label) when `gradient`.
// hit: the label is the first of the largest logits, as torch.argmax has it.
INLINE void cross_entropy_(long t, void *logits, const int64_t *labels, float *loss, uint8_t *hit,
                           long rows, long cols, int gradient, int half) {
    char *row = (char *)logits + t * cols * bytes(half);
    float *e = (float *)scratch(4 * (cols + W));
    vf top = splat(-INFINITY), s = {};
    long whole = cols / REG * REG;
    for (long i = 0; i < whole; i += REG) {
        vf x = ld(row, i, half);
        top = vmax(x, top);
    }
    float largest = max_of(top);
    for (long i = whole; i < cols; i++) {
        float x = ldn(row, i, 1, half)[0];
        largest = x > largest ? x : largest;
    }
    for (long i = 0; i < cols; i += REG) {
        vf x = vexp(ldn(row, i, cols - i, half) - largest);
        if (i < whole) s += x;
        else s += ldn(&x, 0, cols - i, 0);
        stn(e, i, cols - i, 0, x);
    }
    float total = sum_of(s), own = ldn(row, labels[t], 1, half)[0];
    loss[t] = logf(total) + largest - own;
    hit[t] = own == largest;
    for (long i = 0; hit[t] && i < labels[t]; i++)
        hit[t] = ldn(row, i, 1, half)[0] != largest;
    if (!gradient) return;
    e[labels[t]] -= total;
    vf inverse = splat(1.0f / total);
    for (long i = 0; i < cols; i += REG)
        stn(row, i, cols - i, half, ldn(e, i, cols - i, 0) * inverse);
}
KERNEL(cross_entropy,
     (void *logits, const int64_t *labels, float *loss, uint8_t *hit, long rows, long cols,
      int gradient, int half), rows, 1,
     logits, labels, loss, hit, rows, cols, gradient)
