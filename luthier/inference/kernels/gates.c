// act(gate) * up, number by number, for the activations that are `x` times a sigmoid.
#include "exponential.h"
#include "parallel.h"
#include "vectors.h"

#define LARGEST_EXPONENT 88.0f

struct gates {
    float *gate;
    const float *up;
    long size;
    int is_gelu;
};

// x / (1 + e^-z): z is x for silu, and for the gelu that is made of a tanh, since
// 1 + tanh(u) = 2 / (1 + e^-2u), twice what the tanh is of. Where e^-z is more than a float holds
// the result is 0, and no number for -inf.
INLINE vec activated(vec x, int is_gelu) {
    vec z = x;
    if (is_gelu) z = x * (1.5957691216057308f + 0.07135481627362502f * (x * x));
    vec result = x / (exponential(minimum(-z, broadcast(LARGEST_EXPONENT))) + 1);
    return choose(-z > LARGEST_EXPONENT, x * 0, result);
}

INLINE void multiply(const struct gates *g, long first, long last, int is_gelu) {
    long i = first;
    for (; i + LANES <= last; i += LANES)
        store(g->gate + i, activated(load(g->gate + i), is_gelu) * load(g->up + i));
    if (i < last) {
        vec gate = load_first(g->gate + i, last - i), up = load_first(g->up + i, last - i);
        store_first(g->gate + i, activated(gate, is_gelu) * up, last - i);
    }
}

// Shares are whole vectors, so that the same numbers go together whatever the threads.
static void multiply_share(long first, long last, const void *work) {
    const struct gates *g = work;
    long stop = last * LANES < g->size ? last * LANES : g->size;
    if (g->is_gelu)
        multiply(g, first * LANES, stop, 1);
    else
        multiply(g, first * LANES, stop, 0);
}

// gate, up [size]; the result takes the place of `gate`.
void luthier_gates(float *gate, const float *up, long size, int is_gelu, int threads) {
    struct gates gates = {gate, up, size, is_gelu};
    parallel_for((size + LANES - 1) / LANES, threads, multiply_share, &gates);
}
