// y = x W^T + bias with whole numbers of 8 bits: weights are read as they lie, the next ones fetched
// meanwhile, as in few_tokens.c, and are a quarter of the bytes. Sums are whole numbers of 32 bits:
// exact, and so the same whatever stands beside a token. For processors with AVX512-VNNI: without it,
// as measured with AVX2, more than one token takes longer than with floats.
//
// Each token is divided by its largest number, rounded to -127 .. 127 and moved up by 128, because
// the instructions multiply unsigned by signed numbers; `offsets`, 128 times the sum of an output's
// weights, is what that adds to a sum.
#include "parallel.h"
#include "vectors.h"

#if defined(__AVX512F__)
#include <cpuid.h>
#include <float.h>
#include <stdint.h>

#define WITH_VNNI __attribute__((target("avx512vnni")))

#define STEPS 127
#define OUTPUTS 4
#define OUTPUTS_PER_STEP 8
// Weights that all tokens are multiplied by before the next ones: they stay in the first cache.
#define BYTES_PER_BLOCK 24576
#define MAX_TOKENS 6
// Weights and rounded tokens have rows of a multiple of this, and weights a multiple of 8 rows.
#define BYTES_PER_STEP 64

struct product {
    const float *x;
    const int8_t *weight;
    const float *scales;
    const int32_t *offsets;
    const float *bias;
    float *y;
    uint8_t *rounded;
    float *x_scales;
    long num_tokens, num_inputs, num_outputs, row_bytes;
};

// A token's scale; no number if any of its inputs is none, or is infinite.
static float scale_of(const float *x, long count, float *inverse) {
    vec largest = zeros(), spoilt = zeros();
    for (long k = 0; k < count; k += LANES) {
        vec inputs = load_up_to(x + k, count - k);
        largest = maximum(maximum(inputs, -inputs), largest);
        spoilt += inputs * 0;
    }
    float most = max_of(largest);
    if (most < FLT_MIN) most = FLT_MIN;
    *inverse = 1 / most;
    return most / STEPS + sum(spoilt);
}

static void round_token(const struct product *p, long token) {
    const float *x = p->x + token * p->num_inputs;
    uint8_t *to = p->rounded + token * p->row_bytes;
    float inverse;
    p->x_scales[token] = scale_of(x, p->num_inputs, &inverse);
    // So large a number has no room for fractions: adding it rounds, and its last byte is the result.
    vec up = broadcast(12582912 + 128);
    for (long k = 0; k < p->num_inputs; k += LANES) {
        vec sums = load_up_to(x + k, p->num_inputs - k) * broadcast(inverse) * STEPS + up;
        // Rows end at a multiple of a vector.
        _mm_storeu_si128((__m128i *)(to + k), _mm512_cvtepi32_epi8((__m512i)sums));
    }
}

static void round_tokens(long first, long last, const void *work) {
    for (long token = first; token < last; token++) round_token(work, token);
}

typedef float four __attribute__((vector_size(16)));
typedef float unaligned_four __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t four_ints __attribute__((vector_size(16)));
typedef int32_t unaligned_four_ints __attribute__((vector_size(16), aligned(4), may_alias));

INLINE four_ints int_sums(__m512i a, __m512i b, __m512i c, __m512i d) {
    __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    __m128i quarter = _mm256_extracti128_si256(half, 1);
    return (four_ints)_mm_add_epi32(_mm256_castsi256_si128(half), quarter);
}

// What four outputs of a token are worth as floats; those behind the last output are dropped.
INLINE void store_outputs(const struct product *p, long token, long output, four_ints sums) {
    const float *scales = p->scales + output, *bias = p->bias + output;
    four factors = *(const unaligned_four *)scales * p->x_scales[token];
    sums -= *(const unaligned_four_ints *)(p->offsets + output);
    four values = __builtin_convertvector(sums, four) * factors;
    float *y = p->y + token * p->num_outputs + output;
    if (output + OUTPUTS <= p->num_outputs) {
        *(unaligned_four *)y = p->bias ? values + *(const unaligned_four *)bias : values;
        return;
    }
    for (long i = 0; output + i < p->num_outputs; i++) y[i] = p->bias ? values[i] + bias[i] : values[i];
}

// As in few_tokens.c: one register of sums for each output and token.
INLINE WITH_VNNI void tile(const struct product *p, long token, int tokens, long output,
                           int outputs, const char *next, int ahead) {
    const uint8_t *x = p->rounded + token * p->row_bytes;
    const int8_t *weight = p->weight + output * p->row_bytes;
    __m512i sums[OUTPUTS_PER_STEP][MAX_TOKENS];
    for (int i = 0; i < outputs; i++)
        for (int j = 0; j < tokens; j++) sums[i][j] = _mm512_setzero_si512();
    for (long k = 0; k < p->row_bytes; k += BYTES_PER_STEP) {
        __m512i inputs[MAX_TOKENS];
        for (int j = 0; j < tokens; j++) inputs[j] = _mm512_loadu_si512(x + j * p->row_bytes + k);
        for (int n = 0; n < ahead; n++, next += BYTES_PER_LINE) prefetch(next);
        for (int i = 0; i < outputs; i++) {
            __m512i factors = _mm512_loadu_si512(weight + i * p->row_bytes + k);
            for (int j = 0; j < tokens; j++)
                sums[i][j] = _mm512_dpbusd_epi32(sums[i][j], inputs[j], factors);
        }
    }
    for (int j = 0; j < tokens; j++)
        for (int i = 0; i < outputs; i += OUTPUTS)
            store_outputs(p, token + j, output + i,
                          int_sums(sums[i][j], sums[i + 1][j], sums[i + 2][j], sums[i + 3][j]));
}

#define TILE(tokens, ahead) \
    case tokens: \
        tile(p, token, tokens, output, OUTPUTS, next, ahead); \
        break;
#define TILES(ahead) \
    switch (tokens) { \
        TILE(1, ahead) TILE(2, ahead) TILE(3, ahead) TILE(4, ahead) TILE(5, ahead) TILE(6, ahead) \
    }

static WITH_VNNI void any_tile(const struct product *p, long token, int tokens, long output,
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

static WITH_VNNI void block(const struct product *p, long first, long last, const char *end) {
    if (p->num_tokens == 1) {
        for (long output = first; output < last; output += OUTPUTS_PER_STEP)
            tile(p, 0, 1, output, OUTPUTS_PER_STEP, NULL, 0);
        return;
    }
    long num_tiles = (p->num_tokens + MAX_TOKENS - 1) / MAX_TOKENS;
    int ahead = OUTPUTS / (num_tiles < 3 ? (int)num_tiles : OUTPUTS);
    const char *next = (const char *)(p->weight + last * p->row_bytes);
    for (long token = 0, done = 0; done < num_tiles; done++) {
        int tokens = (int)((p->num_tokens - token + num_tiles - done - 1) / (num_tiles - done));
        for (long output = first; output < last; output += OUTPUTS) {
            any_tile(p, token, tokens, output, next, next < end ? ahead : 0);
            next += p->row_bytes * ahead;
        }
        token += tokens;
    }
}

static void blocks(long first, long last, const void *work) {
    const struct product *p = work;
    long end = last * OUTPUTS_PER_STEP;
    long size = OUTPUTS_PER_STEP;
    while (2 * size * p->row_bytes <= BYTES_PER_BLOCK) size *= 2;
    for (long output = first * OUTPUTS_PER_STEP; output < end; output += size)
        block(p, output, output + size < end ? output + size : end,
              (const char *)(p->weight + end * p->row_bytes));
}

// x [tokens, inputs]; weight [outputs, inputs] in rows of `row_bytes`, a multiple of 64 and at most
// 65,536, filled up with zeros, as are rows to a multiple of 8; scales and offsets for as many; bias
// [outputs] or NULL; y [tokens, outputs]. `rounded` [tokens, row_bytes], whose bytes behind the inputs
// are of no account, and `x_scales` [tokens] are room to work in.
void luthier_int8_product(const float *x, const int8_t *weight, const float *scales,
                          const int32_t *offsets, const float *bias, float *y, uint8_t *rounded,
                          float *x_scales, long num_tokens, long num_inputs, long num_outputs,
                          long row_bytes, int threads) {
    struct product product = {x,       weight,   scales,     offsets,    bias,        y,
                              rounded, x_scales, num_tokens, num_inputs, num_outputs, row_bytes};
    parallel_for(num_tokens, num_tokens < 16 ? 1 : threads, round_tokens, &product);
    long num_steps = (num_outputs + OUTPUTS_PER_STEP - 1) / OUTPUTS_PER_STEP;
    parallel_for(num_steps, threads, blocks, &product);
}
#endif

// Whether this processor can: asked of itself, because not each compiler's library knows.
void luthier_has_int8_product(int *answer) {
    *answer = 0;
#if defined(__AVX512F__)
    unsigned a, b, c, d;
    *answer = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c >> 11 & 1);
#endif
}
