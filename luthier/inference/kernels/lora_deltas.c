// y += B A x, the low-rank deltas of many adapters, each for its own tokens.
//
// One token reads all of its adapter's A and B once, so what counts is how quickly they come from
// memory. Rows are read by fours from four places of an adapter's factors, which the processor
// fetches ahead as four streams; where a stream ends, the next adapter's are asked for here:
//
//     A of rank 16   rows 0 4 8 12,  1 5 9 13,  2 6 10 14,  3 7 11 15
//
// The low products A x of all tokens come first, in the order that rows are read in, then what B
// makes of them. Each number is summed in the same order, whatever stands beside it and however
// many threads there are. Factors of 16 bits become floats in registers, so that just their bytes
// are half.
#include <stdint.h>

#include "parallel.h"
#include "vectors.h"

#define STREAMS 4
#if NUM_REGISTERS == 32
#define MAX_TOKENS 6
#else
#define MAX_TOKENS 3
#endif

// What factors are held in.
enum kind { FLOATS, BFLOATS, HALVES };

static long size_of(enum kind kind) { return kind == FLOATS ? 4 : 2; }

typedef uint16_t half_bits __attribute__((vector_size(2 * LANES)));
typedef uint16_t unaligned_bits __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef uint32_t float_bits __attribute__((vector_size(4 * LANES)));

INLINE vec from_bfloats(half_bits bits) {
    return (vec)(__builtin_convertvector(bits, float_bits) << 16);
}

#if defined(__AVX512F__)
INLINE vec from_halves(half_bits bits) { return _mm512_cvtph_ps((__m256i)bits); }
#elif defined(__AVX2__)
INLINE vec from_halves(half_bits bits) { return _mm256_cvtph_ps((__m128i)bits); }
#else
INLINE vec from_halves(half_bits bits) { return vcvt_f32_f16((float16x4_t)bits); }
#endif

// Factors `at` and those after it of a row.
INLINE vec load_factors(enum kind kind, const void *row, long at) {
    if (kind == FLOATS) return load((const float *)row + at);
    half_bits bits = *(const unaligned_bits *)((const uint16_t *)row + at);
    return kind == BFLOATS ? from_bfloats(bits) : from_halves(bits);
}

INLINE float load_factor(enum kind kind, const void *row, long at) {
    if (kind == FLOATS) return ((const float *)row)[at];
    half_bits bits = {((const uint16_t *)row)[at]};
    return (kind == BFLOATS ? from_bfloats(bits) : from_halves(bits))[0];
}

// Neighbouring tokens of one adapter. `scale` is the row of B that scales the layer's own output,
// as DoRA asks of floats, or -1; `low` is where A x lies, [count, rank].
struct span {
    int64_t token, count, row, rank, scale, low;
};

struct deltas {
    const float *x, *bias;
    const char *a, *b;
    float *y, *low;
    const struct span *spans;
    long num_spans, num_inputs, num_outputs, x_stride, y_stride;
    enum kind kind;
};

// Four rows out of an adapter's that are read together; the stride counts bytes.
struct rows {
    const char *first;
    long stride;
};

INLINE void prefetch_rows(const struct rows *rows, long byte, int num_rows) {
    for (int i = 0; i < num_rows; i++) prefetch(rows->first + i * rows->stride + byte);
}

// A x for some rows of A and some tokens.
INLINE void low_products(const struct deltas *d, enum kind kind, const float *x, int tokens,
                         struct rows a, int num_rows, float *low, long rank, struct rows next) {
    vec sums[STREAMS][MAX_TOKENS];
    for (int i = 0; i < STREAMS; i++)
        for (int j = 0; j < tokens; j++) sums[i][j] = zeros();
    long k = 0;
    for (; k + LANES <= d->num_inputs; k += LANES) {
        vec inputs[MAX_TOKENS];
        for (int j = 0; j < tokens; j++) inputs[j] = load(x + j * d->x_stride + k);
        prefetch_rows(&next, k * size_of(kind), num_rows);
        for (int i = 0; i < num_rows; i++) {
            vec factors = load_factors(kind, a.first + i * a.stride, k);
            for (int j = 0; j < tokens; j++) sums[i][j] += factors * inputs[j];
        }
    }
    for (int j = 0; j < tokens; j++) {
        float totals[STREAMS];
        store_sums(totals, sums[0][j], sums[1][j], sums[2][j], sums[3][j]);
        for (int i = 0; i < num_rows; i++) {
            for (long rest = k; rest < d->num_inputs; rest++)
                totals[i] = __builtin_fmaf(load_factor(kind, a.first + i * a.stride, rest),
                                           x[j * d->x_stride + rest], totals[i]);
            low[j * rank + i] = totals[i];
        }
    }
}

// Adds rows of B, each times its product, to columns `first` to `last` of some tokens.
INLINE void add_rows(const struct deltas *d, enum kind kind, float *y, int tokens, struct rows b,
                     int num_rows, const float *low, long rank, struct rows next, long first,
                     long last) {
    vec factors[MAX_TOKENS][STREAMS];
    for (int j = 0; j < tokens; j++)
        for (int i = 0; i < num_rows; i++) factors[j][i] = broadcast(low[j * rank + i]);
    long k = first;
    for (; k + LANES <= last; k += LANES) {
        vec rows[STREAMS];
        prefetch_rows(&next, k * size_of(kind), num_rows);
        for (int i = 0; i < num_rows; i++) rows[i] = load_factors(kind, b.first + i * b.stride, k);
        for (int j = 0; j < tokens; j++) {
            float *to = y + j * d->y_stride + k;
            vec total = load(to);
            for (int i = 0; i < num_rows; i++) total += factors[j][i] * rows[i];
            store(to, total);
        }
    }
    for (; k < last; k++)
        for (int j = 0; j < tokens; j++)
            for (int i = 0; i < num_rows; i++) {
                float factor = load_factor(kind, b.first + i * b.stride, k);
                float *to = y + j * d->y_stride + k;
                *to = __builtin_fmaf(low[j * rank + i], factor, *to);
            }
}

// The compiler unrolls what is done for each number of tokens.
#define CASE(number, call) \
    case number: { \
        enum { tokens = number }; \
        call; \
        break; \
    }
#if MAX_TOKENS == 6
#define FOR_TOKENS(number, call) \
    switch (number) { \
        CASE(1, call) CASE(2, call) CASE(3, call) CASE(4, call) CASE(5, call) CASE(6, call) \
    }
#else
#define FOR_TOKENS(number, call) \
    switch (number) { CASE(1, call) CASE(2, call) CASE(3, call) }
#endif

static long tiles_of(const struct span *span) { return (span->count + MAX_TOKENS - 1) / MAX_TOKENS; }

// Groups of rows: by fours, and the last ones one by one.
static long groups_of(const struct span *span) {
    return span->rank / STREAMS + span->rank % STREAMS;
}

static int is_single(const struct span *span, long group) { return group >= span->rank / STREAMS; }

// Of a group's first product among its token's.
static long place_of(const struct span *span, long group) {
    long by_fours = span->rank / STREAMS;
    return is_single(span, group) ? group + (STREAMS - 1) * by_fours : STREAMS * group;
}

// The tokens of a tile; all tiles of a span have about as many.
struct tile {
    long start;
    int count;
};

static struct tile tile_of(const struct span *span, long index) {
    long tiles = tiles_of(span), start = span->count * index / tiles;
    struct tile tile = {start, (int)(span->count * (index + 1) / tiles - start)};
    return tile;
}

// `width` is that of a row in bytes.
static struct rows rows_of(const struct span *span, long group, const char *table, long width) {
    long by_fours = span->rank / STREAMS;
    long row = is_single(span, group) ? group + (STREAMS - 1) * by_fours : group;
    struct rows rows = {table + (span->row + row) * width, by_fours * width};
    return rows;
}

// The group that is read after this one, in whichever span; itself at the very end.
static struct rows rows_after(const struct deltas *d, const struct span *span, long group,
                              const char *table, long width) {
    if (group + 1 < groups_of(span)) return rows_of(span, group + 1, table, width);
    const struct span *end = d->spans + d->num_spans;
    for (const struct span *later = span + 1; later < end; later++)
        if (later->rank) return rows_of(later, 0, table, width);
    return rows_of(span, group, table, width);
}

// Calls what is compiled for each kind of factors.
#define FOR_KINDS(of_kind, call) \
    switch (of_kind) { \
        case FLOATS: { \
            const enum kind kind = FLOATS; \
            call break; \
        } \
        case BFLOATS: { \
            const enum kind kind = BFLOATS; \
            call break; \
        } \
        case HALVES: { \
            const enum kind kind = HALVES; \
            call break; \
        } \
    }

static void low_group(const struct deltas *d, const struct span *span, long index, long group) {
    struct tile tile = tile_of(span, index);
    const float *x = d->x + (span->token + tile.start) * d->x_stride;
    long rank = span->rank, width = d->num_inputs * size_of(d->kind);
    float *low = d->low + span->low + tile.start * rank + place_of(span, group);
    struct rows a = rows_of(span, group, d->a, width);
    struct rows next = rows_after(d, span, group, d->a, width);
    if (is_single(span, group))
        FOR_KINDS(d->kind, FOR_TOKENS(tile.count,
                  low_products(d, kind, x, tokens, a, 1, low, rank, next)))
    else
        FOR_KINDS(d->kind, FOR_TOKENS(tile.count,
                  low_products(d, kind, x, tokens, a, STREAMS, low, rank, next)))
}

static void low_groups(long first, long last, const void *work) {
    const struct deltas *d = work;
    const struct span *span = d->spans;
    long before = 0;
    for (; before < last; span++) {
        long groups = groups_of(span), size = groups * tiles_of(span);
        long start = first > before ? first - before : 0;
        long stop = last < before + size ? last - before : size;
        for (long unit = start; unit < stop; unit++)
            low_group(d, span, unit / groups, unit % groups);
        before += size;
    }
}

static void rescale(const struct deltas *d, const struct span *span, long first, long last) {
    const float *scale = (const float *)d->b + span->scale * d->num_outputs;
    for (long token = span->token; token < span->token + span->count; token++) {
        float *y = d->y + token * d->y_stride;
        for (long k = first; k < last; k++) {
            float bias = d->bias ? d->bias[k] : 0;
            y[k] = (y[k] - bias) * scale[k] + bias;
        }
    }
}

static void add_group(const struct deltas *d, const struct span *span, long index, long group,
                      long first, long last) {
    struct tile tile = tile_of(span, index);
    float *y = d->y + (span->token + tile.start) * d->y_stride;
    long rank = span->rank, width = d->num_outputs * size_of(d->kind);
    const float *low = d->low + span->low + tile.start * rank + place_of(span, group);
    struct rows b = rows_of(span, group, d->b, width);
    struct rows next = rows_after(d, span, group, d->b, width);
    if (is_single(span, group))
        FOR_KINDS(d->kind, FOR_TOKENS(tile.count,
                  add_rows(d, kind, y, tokens, b, 1, low, rank, next, first, last)))
    else
        FOR_KINDS(d->kind, FOR_TOKENS(tile.count,
                  add_rows(d, kind, y, tokens, b, STREAMS, low, rank, next, first, last)))
}

// Parts are vectors of columns, so that each thread writes to its own.
static void add_columns(long first, long last, const void *work) {
    const struct deltas *d = work;
    long start = first * LANES, stop = last * LANES < d->num_outputs ? last * LANES : d->num_outputs;
    for (const struct span *span = d->spans; span < d->spans + d->num_spans; span++) {
        if (span->scale >= 0) rescale(d, span, start, stop);
        for (long index = 0; index < tiles_of(span); index++)
            for (long group = 0; group < groups_of(span); group++)
                add_group(d, span, index, group, start, stop);
    }
}

// x [tokens, inputs] and y [tokens, outputs], whose strides count floats; a [rows, inputs] and
// b [rows, outputs] in one piece, of a `kind`, scaled already; bias [outputs] or NULL, which DoRA
// leaves alone; low: room for the spans' products; spans: of tokens with deltas, none of them twice.
void luthier_lora_deltas(const float *x, float *y, const void *a, const void *b, int kind,
                         const float *bias, float *low, const struct span *spans, long num_spans,
                         long num_inputs, long num_outputs, long x_stride, long y_stride,
                         int threads) {
    struct deltas deltas = {x,         bias,       a,           b,        y,        low,           spans,
                            num_spans, num_inputs, num_outputs, x_stride, y_stride, (enum kind)kind};
    long num_groups = 0;
    for (long i = 0; i < num_spans; i++) num_groups += groups_of(spans + i) * tiles_of(spans + i);
    parallel_for(num_groups, threads, low_groups, &deltas);
    parallel_for((num_outputs + LANES - 1) / LANES, threads, add_columns, &deltas);
}
