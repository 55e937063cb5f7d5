// Vectors of floats as wide as the instruction set that is compiled for: GCC's and Clang's vector
// extensions, with intrinsics only where they cannot say what is meant.
#ifndef LUTHIER_VECTORS_H
#define LUTHIER_VECTORS_H

#include <stddef.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#define NUM_REGISTERS 32
#elif defined(__AVX2__)
#include <immintrin.h>
#define LANES 8
#define NUM_REGISTERS 16
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#define LANES 4
#define NUM_REGISTERS 32
#else
#error "no vectors of a known width"
#endif

// Python hands over whole numbers of 64 bits, also in tables.
_Static_assert(sizeof(long) == 8, "a long has 64 bits");

#define INLINE static inline __attribute__((always_inline))
#define BYTES_PER_LINE 64

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float unaligned_vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE vec load(const float *from) { return *(const unaligned_vec *)from; }

INLINE void store(float *to, vec values) { *(unaligned_vec *)to = values; }

INLINE vec zeros(void) { return (vec){0}; }

INLINE vec broadcast(float value) { return value - zeros(); }

// Into the second cache: what comes next must not push out what is being worked on.
INLINE void prefetch(const char *from) { __builtin_prefetch(from, 0, 2); }

// The sums of four vectors, to four floats in a row.
#if defined(__AVX512F__)
INLINE void store_sums(float *to, vec a, vec b, vec c, vec d) {
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    __m512 all = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
    __m128 first = _mm_add_ps(_mm512_extractf32x4_ps(all, 0), _mm512_extractf32x4_ps(all, 1));
    __m128 second = _mm_add_ps(_mm512_extractf32x4_ps(all, 2), _mm512_extractf32x4_ps(all, 3));
    _mm_storeu_ps(to, _mm_add_ps(first, second));
}
#elif defined(__AVX2__)
INLINE void store_sums(float *to, vec a, vec b, vec c, vec d) {
    __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
}
#else
INLINE void store_sums(float *to, vec a, vec b, vec c, vec d) {
    vst1q_f32(to, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
}
#endif

INLINE float sum(vec values) {
    float sums[4];
    store_sums(sums, values, zeros(), zeros(), zeros());
    return sums[0];
}

// The first `count` lanes, 0 < count < LANES, the others 0: nothing behind them is read.
#if defined(__AVX512F__)
INLINE vec load_first(const float *from, long count) {
    return _mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), from);
}

INLINE void store_first(float *to, vec values, long count) {
    _mm512_mask_storeu_ps(to, (__mmask16)((1u << count) - 1), values);
}
#elif defined(__AVX2__)
INLINE __m256i lanes_before(long count) {
    __m256i numbers = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), numbers);
}

INLINE vec load_first(const float *from, long count) {
    return _mm256_maskload_ps(from, lanes_before(count));
}

INLINE void store_first(float *to, vec values, long count) {
    _mm256_maskstore_ps(to, lanes_before(count), values);
}
#else
INLINE vec load_first(const float *from, long count) {
    vec values = zeros();
    for (long i = 0; i < count; i++) values[i] = from[i];
    return values;
}

INLINE void store_first(float *to, vec values, long count) {
    for (long i = 0; i < count; i++) to[i] = values[i];
}
#endif

INLINE vec load_up_to(const float *from, long count) {
    return count >= LANES ? load(from) : load_first(from, count);
}

INLINE void store_up_to(float *to, vec values, long count) {
    if (count >= LANES)
        store(to, values);
    else
        store_first(to, values, count);
}

typedef int int_vec __attribute__((vector_size(4 * LANES)));

INLINE vec choose(int_vec where, vec a, vec b) {
    return (vec)((where & (int_vec)a) | (~where & (int_vec)b));
}

// The first where it is larger, else, also where either is no number, the second.
INLINE vec maximum(vec a, vec b) { return choose(a > b, a, b); }

// The second where it is smaller, else, also where either is no number, the first.
INLINE vec minimum(vec a, vec b) { return choose(b < a, b, a); }

INLINE float max_of(vec values) {
    float most = values[0];
    for (int i = 1; i < LANES; i++) most = values[i] > most ? values[i] : most;
    return most;
}

#endif
