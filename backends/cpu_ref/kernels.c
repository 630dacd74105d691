// SPDX-License-Identifier: Apache-2.0
// The fused kernels of cpu_ref, compiled at first use; kernels.py calls them.
#include "attention.h"
#include "lamb.h"
#include "offsets.h"
#include "rows.h"

// Which elements dropout keeps, 1 or 0, for rows first..first + rows of any operation: tests only
// see the masks through this.
EXPORT void keep_mask(uint8_t *out, long first, long rows, long cols, uint32_t threshold,
                      uint64_t seed) {
    for (long t = 0; t < rows; t++) {
        key_t_ key = row_key(seed, (uint64_t)first + (uint64_t)t);
        for (long i = 0; i < cols; i++) {
            vi keep = keep16(hash32(key, i / 32 * 32 + i % W / REG * REG), i / W & 1, threshold);
            out[t * cols + i] = keep[i % REG] != 0;
        }
    }
}

// The first of n indices that is not in 0..below, or -1.
EXPORT long first_outside(const int64_t *ids, long n, long below) {
    int bad = 0;
    for (long i = 0; i < n; i++) bad |= (uint64_t)ids[i] >= (uint64_t)below;
    for (long i = 0; bad && i < n; i++)
        if ((uint64_t)ids[i] >= (uint64_t)below) return i;
    return -1;
}

EXPORT int has_bf16_dot(void) {
#if defined(__AVX512BF16__)
    return 1;
#else
    return 0;
#endif
}
