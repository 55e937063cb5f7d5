// Attention of all rows of a step, each to its own keys and values in the arena, after storing the
// new ones there.
//
// The query heads that share a head of keys and values look at it together, so that it is read from
// memory once. A row's numbers do not depend on what else is in the step, nor on how many of its
// tokens are.
#include "attention_tile.h"
#include "parallel.h"

// NOTE: `_Arguments` in runners/row_attention.py lists the same fields. Strides count floats, the
// floats of a head lie side by side.
struct attention {
    const float *query;  // [num_heads, tokens, head_dim]
    long query_head, query_token;
    const float *new_keys, *new_values;  // [num_kv_heads, tokens, head_dim]; NULL: nothing is new
    long new_keys_head, new_keys_token, new_values_head, new_values_token;
    float *keys, *values;  // of the arena, [num_kv_heads, slots, head_dim]
    long kv_head;
    float *out;                    // [tokens, num_heads, head_dim]
    const long *rows;              // [num_rows, 4]: as `struct row`
    const float *cosines, *sines;  // of rotary positions, [tokens, rotary_dim]; NULL: none
    const float *sinks;            // [num_heads], scores that no value belongs to; NULL: none
    const float *bias;  // [num_heads, ..], of the distance from query to key; NULL: none
    long bias_head, bias_origin;
    long num_rows, num_heads, num_kv_heads, head_dim, rotary_dim;
    long window;  // slots that a token sees, its own included; 0: all
    float scale;
    float softcap;  // 0: none
    int is_causal;
    int threads;
};

// Its first token in the step, how many it has there, its first slot, and the slot behind its last.
struct row {
    long first, count, start, end;
};

// Copies one token's head, turned to its position and scaled.
static void place(const struct attention *a, const float *from, long token, float scale,
                  float *to) {
    long turned = a->cosines ? a->rotary_dim : 0, half = turned / 2;
    const float *cosines = turned ? a->cosines + token * turned : NULL;
    const float *sines = turned ? a->sines + token * turned : NULL;
    for (long d = 0; d < half; d += LANES) {
        long rest = half - d;
        vec low = load_up_to(from + d, rest), high = load_up_to(from + half + d, rest);
        vec new_low = low * load_up_to(cosines + d, rest) - high * load_up_to(sines + d, rest);
        vec new_high = high * load_up_to(cosines + half + d, rest) +
                       low * load_up_to(sines + half + d, rest);
        store_up_to(to + d, new_low * scale, rest);
        store_up_to(to + half + d, new_high * scale, rest);
    }
    for (long d = turned; d < a->head_dim; d += LANES) {
        long rest = a->head_dim - d;
        store_up_to(to + d, load_up_to(from + d, rest) * scale, rest);
    }
}

static void store_new(const struct attention *a, const struct row *row, long head) {
    for (long i = 0; i < row->count; i++) {
        long token = row->first + i, slot = row->end - row->count + i;
        long to = head * a->kv_head + slot * a->head_dim;
        const float *key = a->new_keys + head * a->new_keys_head + token * a->new_keys_token;
        const float *value =
            a->new_values + head * a->new_values_head + token * a->new_values_token;
        place(a, key, token, 1, a->keys + to);
        for (long d = 0; d < a->head_dim; d += LANES) {
            long rest = a->head_dim - d;
            store_up_to(a->values + to + d, load_up_to(value + d, rest), rest);
        }
    }
}

static void add_query(struct tile *t, const struct attention *a, const struct row *row, long i,
                      long head) {
    int q = t->num_queries++;
    long token = row->first + i, slots = row->end - row->start;
    long slot = slots - row->count + i;
    t->last[q] = a->is_causal ? slot + 1 : slots;
    t->first[q] = a->window ? larger(0, slot + 1 - a->window) : 0;
    t->bias[q] = a->bias ? a->bias + head * a->bias_head + a->bias_origin - slot : 0;
    t->max[q] = a->sinks ? a->sinks[head] : -INFINITY;
    t->sums[q] = zeros();
    t->sums[q][0] = a->sinks ? 1 : 0;
    t->out[q] = a->out + (token * a->num_heads + head) * a->head_dim;
    long whole = a->head_dim / LANES * LANES;
    if (whole < a->head_dim) store(t->queries[q] + whole, zeros());
    place(a, a->query + head * a->query_head + token * a->query_token, token, a->scale,
          t->queries[q]);
}

// What a tile costs: the slots that it looks at. Those of a row without any are made, too.
static long slots_of(const struct row *row) { return larger(1, row->end - row->start); }

static long tiles_of(const struct attention *a, const struct row *row) {
    return (row->count * (a->num_heads / a->num_kv_heads) + MAX_QUERIES - 1) / MAX_QUERIES;
}

// The first keys that a row's tokens look at.
static struct ahead first_keys(const struct attention *a, const struct row *row, long head) {
    long first = row->start;
    if (a->window) first = larger(first, row->end - row->count + 1 - a->window);
    return slots_ahead(a->keys + head * a->kv_head, first, smaller(row->end, first + BLOCK_KEYS),
                       a->head_dim);
}

// The tiles `tile` to `last` of what a row's tokens make of one head of keys.
static void attend_tiles(const struct attention *a, const struct row *row, long head, long tile,
                         long last, struct ahead next) {
    struct tile t;
    t.head_dim = a->head_dim;
    t.keys = a->keys + head * a->kv_head + row->start * a->head_dim;
    t.values = a->values + head * a->kv_head + row->start * a->head_dim;
    t.softcap = a->softcap;
    long group = a->num_heads / a->num_kv_heads, queries = row->count * group;
    long tiles = tiles_of(a, row);
    for (; tile < last; tile++) {
        t.num_queries = 0;
        for (long q = queries * tile / tiles; q < queries * (tile + 1) / tiles; q++)
            add_query(&t, a, row, q / group, head * group + q % group);
        attend(&t, tile + 1 < last ? (struct ahead){0, 0} : next);
    }
}

// One head of keys of each row after the other: `first` to `last` of them.
static void store_heads(long first, long last, const void *work) {
    const struct attention *a = work;
    const struct row *rows = (const struct row *)a->rows;
    for (; first < last; first++)
        store_new(a, rows + first / a->num_kv_heads, first % a->num_kv_heads);
}

// The tiles that begin in the shares `first` to `last` of all slots that all tiles look at.
static void attend_shares(long first, long last, const void *work) {
    const struct attention *a = work;
    const struct row *rows = (const struct row *)a->rows, *end = rows + a->num_rows;
    long total = 0, before = 0;
    for (const struct row *row = rows; row < end; row++)
        total += slots_of(row) * tiles_of(a, row) * a->num_kv_heads;
    long begin = total * first / a->threads, stop = total * last / a->threads;
    for (const struct row *row = rows; row < end; row++) {
        long slots = slots_of(row), tiles = tiles_of(a, row);
        for (long head = 0; head < a->num_kv_heads; head++, before += slots * tiles) {
            long tile = before < begin ? (begin - before + slots - 1) / slots : 0;
            long last_tile = before < stop ? (stop - before + slots - 1) / slots : 0;
            last_tile = smaller(last_tile, tiles);
            if (tile >= last_tile) continue;
            struct ahead next = {0, 0};
            if (head + 1 < a->num_kv_heads)
                next = first_keys(a, row, head + 1);
            else if (row + 1 < end)
                next = first_keys(a, row + 1, 0);
            // One thread stores as it goes, what it is about to read.
            if (a->new_keys && a->threads == 1) store_new(a, row, head);
            attend_tiles(a, row, head, tile, last_tile, next);
        }
    }
}

void luthier_attend_rows(const struct attention *a) {
    if (a->new_keys && a->threads > 1)
        parallel_for(a->num_rows * a->num_kv_heads, a->threads, store_heads, a);
    parallel_for(a->threads, a->threads, attend_shares, a);
}
