// y = x W^T + bias for a few tokens: each weight is read from memory once, as it lies, while the
// next ones are on their way. A library's matrix product copies the weight into another order
// first, which for few tokens takes longer than multiplying.
//
// A tile is 4 outputs (8 for a single token) by a few tokens, a register of sums each. A block of outputs is gone through
// for all tokens before the next one, so it stays in the first cache. Each output of each token is
// summed in the same order, whatever stands beside it.
#include "parallel.h"
#include "vectors.h"

#define OUTPUTS 4
#define OUTPUTS_PER_BLOCK 8
// So many inputs of a block and of a tile's tokens fit into the first cache.
#define INPUTS_PER_PART 768
#if NUM_REGISTERS == 32
#define MAX_TOKENS 6
#else
#define MAX_TOKENS 3
#endif

struct product {
    const float *x, *weight, *bias;
    float *y;
    long num_tokens, num_inputs, num_outputs, x_stride, y_stride;
};

// Consecutive inputs.
struct part {
    long first, count;
};

// Stores the sums of a part behind those of the parts before it.
INLINE void add_sums(const struct product *p, struct part part, float *y, long output, vec a, vec b,
                     vec c, vec d) {
    float sums[OUTPUTS];
    store_sums(sums, a, b, c, d);
    if (part.first > 0)
        for (int i = 0; i < OUTPUTS; i++) y[i] += sums[i];
    else if (p->bias)
        for (int i = 0; i < OUTPUTS; i++) y[i] = p->bias[output + i] + sums[i];
    else
        for (int i = 0; i < OUTPUTS; i++) y[i] = sums[i];
}

// One tile; fetches `ahead` lines for each vector of inputs that it multiplies.
INLINE void tile(const struct product *p, struct part part, long token, int tokens, long output,
                 int outputs, const char *next, int ahead) {
    const float *x = p->x + token * p->x_stride + part.first;
    const float *weight = p->weight + output * p->num_inputs + part.first;
    vec sums[OUTPUTS_PER_BLOCK][MAX_TOKENS];
    for (int i = 0; i < outputs; i++)
        for (int j = 0; j < tokens; j++) sums[i][j] = zeros();
    for (long k = 0; k < part.count; k += LANES) {
        vec inputs[MAX_TOKENS];
        for (int j = 0; j < tokens; j++) inputs[j] = load(x + j * p->x_stride + k);
        for (int n = 0; n < ahead; n++, next += BYTES_PER_LINE) prefetch(next);
        for (int i = 0; i < outputs; i++) {
            vec factors = load(weight + i * p->num_inputs + k);
            for (int j = 0; j < tokens; j++) sums[i][j] += factors * inputs[j];
        }
    }
    float *y = p->y + token * p->y_stride + output;
    for (int j = 0; j < tokens; j++)
        for (int i = 0; i < outputs; i += OUTPUTS)
            add_sums(p, part, y + j * p->y_stride + i, output + i, sums[i][j], sums[i + 1][j],
                     sums[i + 2][j], sums[i + 3][j]);
}

// The compiler unrolls a tile for each number of tokens and of lines ahead.
#define TILE(tokens, ahead) \
    case tokens: \
        tile(p, part, token, tokens, output, OUTPUTS, next, ahead); \
        break;
#if MAX_TOKENS == 6
#define TILES(ahead) \
    switch (tokens) { \
        TILE(1, ahead) TILE(2, ahead) TILE(3, ahead) TILE(4, ahead) TILE(5, ahead) TILE(6, ahead) \
    }
#else
#define TILES(ahead) \
    switch (tokens) { TILE(1, ahead) TILE(2, ahead) TILE(3, ahead) }
#endif

static void any_tile(const struct product *p, struct part part, long token, int tokens, long output,
                     const char *next, int ahead) {
    if (ahead == 4)
        TILES(4)
    else if (ahead == 2)
        TILES(2)
    else if (ahead == 1)
        TILES(1)
    else
        TILES(0)
}

static struct part first_part(const struct product *p) {
    return (struct part){0, p->num_inputs < INPUTS_PER_PART ? p->num_inputs : INPUTS_PER_PART};
}

static struct part next_part(const struct product *p, struct part part) {
    long first = part.first + part.count, left = p->num_inputs - first;
    return (struct part){first, left < INPUTS_PER_PART ? left : INPUTS_PER_PART};
}

// An output that has no three others beside it.
static void single_output(const struct product *p, long output) {
    const float *weight = p->weight + output * p->num_inputs;
    for (long token = 0; token < p->num_tokens; token++) {
        const float *x = p->x + token * p->x_stride;
        vec total = zeros();
        for (long k = 0; k < p->num_inputs; k += LANES) total += load(weight + k) * load(x + k);
        float bias = p->bias ? p->bias[output] : 0;
        p->y[token * p->y_stride + output] = sum(total) + bias;
    }
}

static void block(const struct product *p, long first, long last, long end) {
    if (p->num_tokens == 1 && last - first == OUTPUTS_PER_BLOCK) {
        // Read so fast that the processor itself sees what comes next.
        for (struct part part = first_part(p); part.count > 0; part = next_part(p, part))
            tile(p, part, 0, 1, first, OUTPUTS_PER_BLOCK, NULL, 0);
        return;
    }
    long num_tiles = (p->num_tokens + MAX_TOKENS - 1) / MAX_TOKENS;
    // Lines for each vector: with them the next block is there when this one is done, or nearly.
    int ahead = OUTPUTS * LANES * 4 / BYTES_PER_LINE / (num_tiles < 3 ? (int)num_tiles : OUTPUTS);
    if (ahead < 1) ahead = 1;
    const char *next = (const char *)(p->weight + last * p->num_inputs);
    long next_last = last + OUTPUTS_PER_BLOCK < end ? last + OUTPUTS_PER_BLOCK : end;
    const char *next_end = (const char *)(p->weight + next_last * p->num_inputs);
    for (struct part part = first_part(p); part.count > 0; part = next_part(p, part)) {
        for (long token = 0, done = 0; done < num_tiles; done++) {
            int tokens = (int)((p->num_tokens - token + num_tiles - done - 1) / (num_tiles - done));
            for (long output = first; output + OUTPUTS <= last; output += OUTPUTS) {
                any_tile(p, part, token, tokens, output, next, next < next_end ? ahead : 0);
                next += part.count / LANES * ahead * BYTES_PER_LINE;
            }
            token += tokens;
        }
    }
    for (long output = last - (last - first) % OUTPUTS; output < last; output++)
        single_output(p, output);
}

static void blocks(long first, long last, const void *work) {
    const struct product *p = work;
    long end = last * OUTPUTS_PER_BLOCK < p->num_outputs ? last * OUTPUTS_PER_BLOCK : p->num_outputs;
    for (long output = first * OUTPUTS_PER_BLOCK; output < end; output += OUTPUTS_PER_BLOCK) {
        long stop = output + OUTPUTS_PER_BLOCK < end ? output + OUTPUTS_PER_BLOCK : end;
        block(p, output, stop, end);
    }
}

// x [tokens, inputs], weight [outputs, inputs] in one piece, bias [outputs] or NULL,
// y [tokens, outputs]; strides count floats. `num_inputs` must be a multiple of 16.
void luthier_few_tokens(const float *x, const float *weight, const float *bias, float *y,
                        long num_tokens, long num_inputs, long num_outputs, long x_stride,
                        long y_stride, int threads) {
    struct product product = {x,          weight,      bias,     y,       num_tokens,
                              num_inputs, num_outputs, x_stride, y_stride};
    long num_blocks = (num_outputs + OUTPUTS_PER_BLOCK - 1) / OUTPUTS_PER_BLOCK;
    parallel_for(num_blocks, threads, blocks, &product);
}
