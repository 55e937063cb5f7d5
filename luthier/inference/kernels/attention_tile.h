// A few queries and the keys and values of one row that they look at: scores, softmax, mixture.
//
// Softmax goes along by blocks of keys (Milakov and Gimelshein 2018,
// https://arxiv.org/abs/1805.02867). A query's numbers are summed in the same order whatever other
// queries are in the tile: lanes and blocks are counted from the row's first slot.
#ifndef LUTHIER_ATTENTION_TILE_H
#define LUTHIER_ATTENTION_TILE_H

#include <math.h>

#include "exponential.h"
#include "vectors.h"

#define MAX_HEAD_DIM 512
#define BLOCK_KEYS 512
#define KEYS 4
#define CHUNK 4
#if NUM_REGISTERS == 32
#define MAX_QUERIES 6
#else
#define MAX_QUERIES 3
#endif

// Memory that is looked at next, to be fetched meanwhile.
struct ahead {
    const char *from, *end;
};

// Slots count from the row's first.
struct tile {
    long head_dim;
    const float *keys, *values;  // [slots, head_dim]
    float softcap;               // 0: none
    int num_queries;
    long first[MAX_QUERIES], last[MAX_QUERIES];  // slots that each sees
    const float *bias[MAX_QUERIES];              // of slot 0; NULL: none
    float max[MAX_QUERIES], factor[MAX_QUERIES];
    vec sums[MAX_QUERIES];
    float *out[MAX_QUERIES];  // [head_dim]
    float queries[MAX_QUERIES][MAX_HEAD_DIM] __attribute__((aligned(64)));  // zeros at the end
    float scores[MAX_QUERIES][BLOCK_KEYS + LANES] __attribute__((aligned(64)));
};

INLINE long smaller(long a, long b) { return a < b ? a : b; }
INLINE long larger(long a, long b) { return a > b ? a : b; }

INLINE struct ahead slots_ahead(const float *all, long first, long last, long head_dim) {
    return (struct ahead){(const char *)(all + first * head_dim),
                          (const char *)(all + last * head_dim)};
}

INLINE void fetch(struct ahead *ahead, long floats) {
    const char *stop = ahead->from + floats * (long)sizeof(float);
    if (stop > ahead->end) stop = ahead->end;
    for (; ahead->from < stop; ahead->from += BYTES_PER_LINE) prefetch(ahead->from);
}

// Scores of four keys, some of which may be the same.
INLINE void four_scores(struct tile *t, int queries, const float *const keys[KEYS], long at) {
    vec sums[MAX_QUERIES][KEYS];
    for (int q = 0; q < queries; q++)
        for (int k = 0; k < KEYS; k++) sums[q][k] = zeros();
    long whole = t->head_dim / LANES * LANES, rest = t->head_dim - whole;
    for (long d = 0; d < whole; d += LANES) {
        vec parts[KEYS];
        for (int k = 0; k < KEYS; k++) parts[k] = load(keys[k] + d);
        for (int q = 0; q < queries; q++) {
            vec query = load(t->queries[q] + d);
            for (int k = 0; k < KEYS; k++) sums[q][k] += query * parts[k];
        }
    }
    for (int k = 0; rest && k < KEYS; k++) {
        vec part = load_first(keys[k] + whole, rest);
        for (int q = 0; q < queries; q++) sums[q][k] += load(t->queries[q] + whole) * part;
    }
    for (int q = 0; q < queries; q++)
        store_sums(t->scores[q] + at, sums[q][0], sums[q][1], sums[q][2], sums[q][3]);
}

// Scores of the slots `first` to `last`, into places counted from `origin`.
INLINE void multiply_keys(struct tile *t, int queries, long origin, long first, long last,
                          struct ahead ahead) {
    for (long slot = first; slot < last; slot += KEYS) {
        const float *keys[KEYS];
        for (int k = 0; k < KEYS; k++)
            keys[k] = t->keys + smaller(slot + k, last - 1) * t->head_dim;
        fetch(&ahead, KEYS * t->head_dim);
        four_scores(t, queries, keys, slot - origin);
    }
}

// Adds the slots' values, times their weights, to outputs `d` to `d + vectors * LANES`, the last
// of these vectors only up to `rest`.
INLINE void multiply_chunk(struct tile *t, int queries, int vectors, long d, long rest,
                           long origin, long first, long last, int is_first, struct ahead ahead) {
    vec sums[MAX_QUERIES][CHUNK];
    for (int q = 0; q < queries; q++)
        for (int v = 0; v < vectors; v++)
            sums[q][v] = is_first ? zeros()
                                  : load_up_to(t->out[q] + d + v * LANES, rest) * t->factor[q];
    for (long slot = first; slot < last; slot++) {
        const float *value = t->values + slot * t->head_dim + d;
        fetch(&ahead, t->head_dim);
        vec parts[CHUNK];
        for (int v = 0; v < vectors; v++) parts[v] = load_up_to(value + v * LANES, rest);
        for (int q = 0; q < queries; q++) {
            vec weight = broadcast(t->scores[q][slot - origin]);
            for (int v = 0; v < vectors; v++) sums[q][v] += weight * parts[v];
        }
    }
    for (int q = 0; q < queries; q++)
        for (int v = 0; v < vectors; v++)
            store_up_to(t->out[q] + d + v * LANES, sums[q][v], rest);
}

INLINE void multiply_values(struct tile *t, int queries, long origin, long first, long last,
                            int is_first, struct ahead ahead) {
    const struct ahead nothing = {0, 0};
    long d = 0;
    for (; d + CHUNK * LANES <= t->head_dim; d += CHUNK * LANES, ahead = nothing)
        multiply_chunk(t, queries, CHUNK, d, LANES, origin, first, last, is_first, ahead);
    for (; d + LANES <= t->head_dim; d += LANES, ahead = nothing)
        multiply_chunk(t, queries, 1, d, LANES, origin, first, last, is_first, ahead);
    if (d < t->head_dim)
        multiply_chunk(t, queries, 1, d, t->head_dim - d, origin, first, last, is_first, ahead);
}

// Changes scores as the model does before its softmax: those that query `q` sees.
INLINE void change_scores(struct tile *t, int q, long origin, long begin, long stop) {
    float *scores = t->scores[q];
    if (t->softcap > 0) {
        // tanh x = 1 - 2 / (e^2x + 1), 1 in this precision from x = 40 on.
        for (long i = begin / LANES * LANES; i < stop; i += LANES) {
            vec x = minimum(load(scores + i) * (2 / t->softcap), broadcast(80));
            store(scores + i, t->softcap - 2 * t->softcap / (exponential(x) + 1));
        }
    }
    if (t->bias[q])
        for (long i = begin; i < stop; i++) scores[i] += t->bias[q][origin + i];
}

// Turns query `q`'s scores of a block into weights, 0 for what it does not see.
static void weigh(struct tile *t, int q, long origin, long first, long last) {
    float *scores = t->scores[q];
    long begin = larger(t->first[q], first) - origin, stop = smaller(t->last[q], last) - origin;
    t->factor[q] = 1;
    if (begin >= stop) {
        for (long i = first - origin; i < last - origin; i++) scores[i] = 0;
        return;
    }
    change_scores(t, q, origin, begin, stop);
    long aligned = begin / LANES * LANES;
    for (long i = aligned; i < begin; i++) scores[i] = -INFINITY;
    for (long i = stop; i % LANES; i++) scores[i] = -INFINITY;
    float before = t->max[q];
    vec most = broadcast(before);
    for (long i = aligned; i < stop; i += LANES) most = maximum(load(scores + i), most);
    t->max[q] = max_of(most);
    // Scores of -inf are no weights, also before the first that is a number.
    float max = t->max[q] == -INFINITY ? 0 : t->max[q];
    t->factor[q] = exponential(broadcast(before - max))[0];
    t->sums[q] *= t->factor[q];
    for (long i = aligned; i < stop; i += LANES) {
        vec weights = exponential(load(scores + i) - max);
        t->sums[q] += weights;
        store(scores + i, weights);
    }
    for (long i = first - origin; i < begin; i++) scores[i] = 0;
    for (long i = stop; i < last - origin; i++) scores[i] = 0;
}

// The compiler unrolls what is called for each number of queries.
#define WITH_QUERIES(number, function, ...) \
    case number: \
        function(t, number, __VA_ARGS__); \
        break;
#if MAX_QUERIES == 6
#define FOR_QUERIES(...) \
    switch (t->num_queries) { \
        WITH_QUERIES(1, __VA_ARGS__) WITH_QUERIES(2, __VA_ARGS__) WITH_QUERIES(3, __VA_ARGS__) \
        WITH_QUERIES(4, __VA_ARGS__) WITH_QUERIES(5, __VA_ARGS__) WITH_QUERIES(6, __VA_ARGS__) \
    }
#else
#define FOR_QUERIES(...) \
    switch (t->num_queries) { \
        WITH_QUERIES(1, __VA_ARGS__) WITH_QUERIES(2, __VA_ARGS__) WITH_QUERIES(3, __VA_ARGS__) \
    }
#endif

static void clear_outputs(struct tile *t) {
    for (int q = 0; q < t->num_queries; q++)
        for (long d = 0; d < t->head_dim; d++) t->out[q][d] = 0;
}

// All slots for all queries; 0 where there are none. While keys are multiplied their values are fetched, and while values
// are, the next keys: those of `next` in the end.
static void attend(struct tile *t, struct ahead next) {
    long begin = t->first[0], stop = t->last[0], last;
    for (int q = 1; q < t->num_queries; q++) {
        begin = smaller(begin, t->first[q]);
        stop = larger(stop, t->last[q]);
    }
    if (begin >= stop) {
        clear_outputs(t);
        return;
    }
    for (long first = begin; first < stop; first = last) {
        long origin = first / BLOCK_KEYS * BLOCK_KEYS;
        last = smaller(origin + BLOCK_KEYS, stop);
        struct ahead values = slots_ahead(t->values, first, last, t->head_dim);
        FOR_QUERIES(multiply_keys, origin, first, last, values)
        for (int q = 0; q < t->num_queries; q++) weigh(t, q, origin, first, last);
        struct ahead keys = next;
        if (last < stop)
            keys = slots_ahead(t->keys, last, smaller(last + BLOCK_KEYS, stop), t->head_dim);
        FOR_QUERIES(multiply_values, origin, first, last, first == begin, keys)
    }
    for (int q = 0; q < t->num_queries; q++) {
        float total = sum(t->sums[q]);
        for (long d = 0; d < t->head_dim; d += LANES) {
            vec mixed = load_up_to(t->out[q] + d, t->head_dim - d) / total;
            store_up_to(t->out[q] + d, mixed, t->head_dim - d);
        }
    }
}

#endif
