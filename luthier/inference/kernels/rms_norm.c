// Rows divided by the root of their mean square, times a weight: one look at memory for what takes
// six operations otherwise.
//
// Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467
#include <math.h>

#include "parallel.h"
#include "vectors.h"

#define SUMS 4

struct norm {
    const float *x, *weight;
    float *y;
    long size;
    float epsilon, offset;
};

INLINE float mean_square(const float *x, long size) {
    vec sums[SUMS];
    for (int i = 0; i < SUMS; i++) sums[i] = zeros();
    long d = 0;
    for (; d + SUMS * LANES <= size; d += SUMS * LANES)
        for (int i = 0; i < SUMS; i++) {
            vec part = load(x + d + i * LANES);
            sums[i] += part * part;
        }
    for (; d < size; d += LANES) {
        vec part = load_up_to(x + d, size - d);
        sums[0] += part * part;
    }
    return sum((sums[0] + sums[1]) + (sums[2] + sums[3])) / (float)size;
}

static void norm_rows(long first, long last, const void *work) {
    const struct norm *n = work;
    for (long row = first; row < last; row++) {
        const float *x = n->x + row * n->size;
        float *y = n->y + row * n->size;
        float scale = 1 / sqrtf(mean_square(x, n->size) + n->epsilon);
        long d = 0;
        for (; d + LANES <= n->size; d += LANES)
            store(y + d, load(x + d) * scale * (load(n->weight + d) + n->offset));
        if (d < n->size) {
            vec weight = load_first(n->weight + d, n->size - d) + n->offset;
            store_first(y + d, load_first(x + d, n->size - d) * scale * weight, n->size - d);
        }
    }
}

// x, y [rows, size], weight [size]; each row times `weight + offset`. `y` may be `x`.
void luthier_rms_norm(const float *x, const float *weight, float *y, long rows, long size,
                      float epsilon, float offset, int threads) {
    struct norm norm = {x, weight, y, size, epsilon, offset};
    parallel_for(rows, threads, norm_rows, &norm);
}
