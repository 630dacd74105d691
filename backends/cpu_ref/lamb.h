// SPDX-License-Identifier: Apache-2.0
// LAMB over one parameter group: the formula of common/optim/lamb.py, a matrix at a time so that
// the second pass over a matrix finds it in cache.
#pragma once
#include "vec.h"

enum { CHUNK = 1 << 14 };  // elements per partial norm: fixed, so threads do not change the sums

typedef struct { float new1, beta2, new2, m_scale, v_scale, eps, decay; } Lamb;

// sqrt by Newton's method on the hardware's estimate: several times as fast, error below 2^-22.
INLINE vf vsqrt(vf x) {
#if defined(__AVX512F__)
    x += 1e-37f;  // the estimate of 1 / sqrt(0) is infinite
    vf y = (vf)_mm512_rsqrt14_ps((__m512)x);
    y *= 1.5f - 0.5f * x * y * y;
    return x * y;
#elif defined(__AVX__)
    return (vf)_mm256_sqrt_ps((__m256)x);
#else
    for (int i = 0; i < REG; i++) x[i] = sqrtf(x[i]);
    return x;
#endif
}

INLINE vf lamb_direction(vf m, vf v, vf p, const Lamb *c) {
    return m * c->m_scale / (vsqrt(v * c->v_scale) + c->eps) + c->decay * p;
}

// sizes[i] elements in matrix i; partial [2, chunks of the largest matrix] float64; clip multiplies
// the gradients.
EXPORT void lamb(long count, const int64_t *sizes, float *const *params, const float *const *grads,
                 float *const *means, float *const *squares, double *partial, float lr,
                 double beta1, double beta2, float eps, float decay, long step,
                 float clip) {
    const Lamb c = {(float)(1 - beta1), (float)beta2, (float)(1 - beta2),
                    (float)(1 / (1 - pow(beta1, step))), (float)(1 / (1 - pow(beta2, step))),
                    eps, decay};
#pragma omp parallel
    for (long i = 0; i < count; i++) {
        float *p = params[i], *m = means[i], *v = squares[i];
        const float *g = grads[i];
        const long size = sizes[i], chunks = (size + CHUNK - 1) / CHUNK;
#pragma omp for schedule(static)
        for (long k = 0; k < chunks; k++) {
            vf pp = {}, uu = {};
            double ps = 0, us = 0;
            for (long e = k * CHUNK; e < lmin(size, (k + 1) * CHUNK); e += REG) {
                long n = size - e;
                vf gv = clip * ldn(g, e, n, 0), pv = ldn(p, e, n, 0), mv = ldn(m, e, n, 0);
                mv += c.new1 * (gv - mv);
                vf vv = c.beta2 * ldn(v, e, n, 0) + c.new2 * gv * gv;
                stn(m, e, n, 0, mv);
                stn(v, e, n, 0, vv);
                if (decay == 0) {
                    stn(p, e, n, 0, pv - lr * lamb_direction(mv, vv, pv, &c));
                    continue;
                }
                vf u = lamb_direction(mv, vv, pv, &c);
                pp += pv * pv;
                uu += u * u;
                if ((e & 1023) == 1024 - REG || n <= REG) {  // short float32 sums, long float64 ones
                    ps += sum_of(pp), us += sum_of(uu);
                    pp = uu = (vf){};
                }
            }
            partial[2 * k] = ps + sum_of(pp);
            partial[2 * k + 1] = us + sum_of(uu);
        }
        if (decay == 0) continue;
        double p2 = 0, u2 = 0;  // every thread adds the same numbers in the same order
        for (long k = 0; k < chunks; k++) p2 += partial[2 * k], u2 += partial[2 * k + 1];
        const float rate = lr * (p2 > 0 && u2 > 0 ? (float)sqrt(p2 / u2) : 1.0f);
#pragma omp for schedule(static)
        for (long k = 0; k < chunks; k++)
            for (long e = k * CHUNK; e < lmin(size, (k + 1) * CHUNK); e += REG) {
                long n = size - e;
                vf pv = ldn(p, e, n, 0);
                stn(p, e, n, 0, pv - rate * lamb_direction(ldn(m, e, n, 0), ldn(v, e, n, 0), pv, &c));
            }
    }
}
