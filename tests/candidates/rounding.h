/* rounding.h: rounding to a format of few bits, by the bit pattern. Internal to the candidates.
 *
 * A format of p bits: N 2^(e-p+1) with |N| < 2^p and e >= emin; below 2^emin evenly spaced. On the
 * bit pattern of a wider format the last 53-p (24-p) bits are dropped; to round to the nearest even, half
 * of the last kept place is added first, less one if that place is even. A carry runs into the
 * exponent, where it belongs. Own derivation; shares nothing with the library's rounding.
 */
#ifndef CD_ROUNDING_H
#define CD_ROUNDING_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

typedef struct cd_format {
    int bits;                 /* p; 53: no rounding */
    int emin;                 /* exponent of the smallest normal number */
    double smallest, largest; /* 2^emin; (2 - 2^(1-p)) 2^(1-emin) */
    bool truncate;            /* towards zero instead of to the nearest */
    bool ftz;                 /* below `smallest`: 0 */
} cd_format;

/* With binary32's exponents: bf16, and tf32. */
static const cd_format cd_eight_bits = {
    .bits = 8, .emin = -126, .smallest = 0x1p-126, .largest = 0x1.fep127};
static const cd_format cd_eleven_bits = {
    .bits = 11, .emin = -126, .smallest = 0x1p-126, .largest = 0x1.ffcp127};

/* In units of the fixed spacing below `smallest`, then back. */
static inline double cd_round_small(const cd_format *f, double v)
{
    double steps = ldexp(v, f->bits - 1 - f->emin);
    return ldexp(f->truncate ? trunc(steps) : nearbyint(steps), f->emin - f->bits + 1);
}

static inline double cd_round_normal(const cd_format *f, double v)
{
    int drop = 53 - f->bits;
    uint64_t u, tail = (UINT64_C(1) << drop) - 1;
    memcpy(&u, &v, sizeof u);
    if (!f->truncate && drop > 0) u += (tail >> 1) + (u >> drop & 1);
    u &= ~tail;
    memcpy(&v, &u, sizeof v);
    return v;
}

/* Not a finite number: as it is. Beyond the largest: infinity, or the largest if truncating. */
static inline double cd_round(const cd_format *f, double v)
{
    if (f->bits == 53 && !f->ftz) return v;
    if (f->bits == 24 && f->emin == -126 && !f->truncate && !f->ftz) return (double)(float)v;
    double size = fabs(v);
    if (!(size <= 0x1.fffffffffffffp1023)) return v;
    double r = size < f->smallest ? cd_round_small(f, v) : cd_round_normal(f, v);
    if (fabs(r) > f->largest) return copysign(f->truncate ? f->largest : (double)INFINITY, v);
    if (f->ftz && fabs(r) < f->smallest) return copysign(0, v);
    return r;
}

/* A float to at most 24 bits with binary32's exponents, to the nearest: subnormals and overflow come
 * out right by themselves. Not for NaN. Free of branches, so that a loop can do many at once. */
static inline float cd_round_short(int bits, float v)
{
    int drop = 24 - bits;
    uint32_t u, tail = (UINT32_C(1) << drop) - 1;
    memcpy(&u, &v, sizeof u);
    u += (tail >> 1) + (u >> drop & 1 & (drop > 0));
    u &= ~tail;
    memcpy(&v, &u, sizeof v);
    return v;
}

/* A float to at most 22 bits with a shorter range of exponents, to the nearest. A small number is brought
 * to the fixed spacing by adding 3/2 of the power of two at which a float's own spacing is that. */
static inline float cd_round_narrow(const cd_format *f, float v)
{
    float magic = 1.5F * (float)f->smallest * (float)(1 << (24 - f->bits));
    float small = (v + magic) - magic, normal = cd_round_short(f->bits, v);
    float r = fabsf(v) < (float)f->smallest ? small : normal;
    r = fabsf(r) > (float)f->largest ? copysignf(INFINITY, v) : r;
    return v == v ? r : v;
}

#endif
