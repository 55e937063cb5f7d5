// e^x, lane by lane.
#ifndef LUTHIER_EXPONENTIAL_H
#define LUTHIER_EXPONENTIAL_H

#include "vectors.h"

// For x <= 88: within 2 units of the last place of e^x, 0 where that is below 2^-125, and what is
// no number stays none.
//
// x = n ln 2 + r, |r| <= ln(2) / 2; e^r by the polynomial of Cephes' expf, 2^n by adding n to the
// exponent. Adding 1.5 * 2^23 rounds to a whole number and leaves it in the lowest bits.
INLINE vec exponential(vec x) {
    typedef unsigned bits __attribute__((vector_size(4 * LANES)));
    const float rounding = 12582912.0f;
    vec shifted = x * 1.44269504088896341f + rounding;
    vec n = shifted - rounding;
    vec r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    bits result = (bits)p + ((bits)shifted << 23);
    return (vec)((result & (bits) ~(x < -86.5f)) | (bits)(x != x));
}

#endif
