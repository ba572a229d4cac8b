/* place_rounding.h: what rounding at one place of a profile does, for inner loops. Internal.
 *
 * A format of p bits has the spacing ulp = 2^(e-p+1) for |v| in [2^e, 2^(e+1)), and that of its
 * smallest normal numbers below them. Rounding to nearest errs uniformly on +-ulp/2 (variance
 * ulp^2/12; a known value half way between two, by ulp/2), truncation on [0, ulp) (second moment ulp^2/3).
 */
#ifndef ET_PLACE_ROUNDING_H
#define ET_PLACE_ROUNDING_H

#include "etref/profile.h"
#include "etref/real.h"
#include "ref/base/bits.h"

#include <math.h>

/* Places and what they are called: six wholes, then their six parts. */
#define ET_WHOLE_PLACES(PLACE)                                                                     \
    PLACE(ET_OPERANDS, "operands")                                                                 \
    PLACE(ET_INTERMEDIATES, "intermediates")                                                       \
    PLACE(ET_GATES, "gates")                                                                       \
    PLACE(ET_LOGITS, "logits")                                                                     \
    PLACE(ET_ACCUMULATOR, "accumulator")                                                           \
    PLACE(ET_OUTPUTS, "outputs")
#define ET_PART_PLACES(PLACE)                                                                      \
    PLACE(ET_ACTIVATIONS, "activations")                                                           \
    PLACE(ET_ROUTER_OPERANDS, "router_operands")                                                   \
    PLACE(ET_ROUTER_ACCUMULATOR, "router_accumulator")                                             \
    PLACE(ET_GATE_ARITHMETIC, "gate_arithmetic")                                                   \
    PLACE(ET_SHARES, "shares")                                                                     \
    PLACE(ET_DW_SUMS, "dw_sums")

typedef struct rounding {
    int bits;
    uint64_t least;  /* biased binary64 exponent of the format's smallest normal number */
    uint64_t tail;   /* significand bits of a binary64 number that the format has no room for */
    double variance; /* of the error of a value in [1,2): ulp^2/12 or, truncated, ulp^2/3 */
    double smallest, largest;
    bool ftz, truncates;
} rounding;

rounding et_rounding_at(const et_profile *p, et_place place);

/* 2^(e-p+1) of a value; exponents below binary64's are of no interest to anybody here. */
static inline double rounding_ulp(const rounding *r, double value)
{
    uint64_t exponent = to_bits(value) >> 52 & 0x7ff, down = (uint64_t)r->bits - 1;
    if (exponent < r->least) exponent = r->least;
    return from_bits((exponent > down ? exponent - down : 1) << 52);
}

/* Is the value one of the format's? At more than 24 bits the question cannot be asked of a binary64
 * number, which has been rounded itself: there only those count that are short (24 bits), as small
 * whole numbers are; a rounded one is by an accident of 2^-29. */
static inline bool rounding_holds(const rounding *r, double value)
{
    double size = fabs(value);
    if (size == 0) return true;
    if (!(size <= r->largest)) return false;
    if (size >= r->smallest) return (to_bits(value) & r->tail) == 0;
    double steps = size / rounding_ulp(r, value);
    return !r->ftz && steps == floor(steps);
}

/* What becomes of the value; out of range it stays as it is. */
static inline double rounding_result(const rounding *r, double value)
{
    if (rounding_holds(r, value) || !(fabs(value) <= r->largest)) return value;
    if (r->ftz && fabs(value) < r->smallest) return 0;
    double ulp = rounding_ulp(r, value), steps = value / ulp;
    return ulp * (r->truncates ? trunc(steps) : nearbyint(steps));
}

/* By how much the value changes. */
static inline double rounding_moves(const rounding *r, double value)
{
    return rounding_result(r, value) - value;
}

/* Does flushing make 0 of the value, or of what its error, of variance `incoming`, may make of it? */
static inline bool rounding_flushes(const rounding *r, double value, double incoming)
{
    double above = fabs(value) - r->smallest;
    return r->ftz && (above < 0 || above * above < 81 * incoming);
}

/* Exactly half way between two numbers of the format: rounded to nearest it errs by ulp/2, whichever way it goes.
 * Values of few bits often are. */
static inline bool rounding_is_tie(const rounding *r, double value)
{
    double steps = fabs(value) / rounding_ulp(r, value);
    return !r->truncates && steps - floor(steps) == 0.5;
}

/* Variance of the error of rounding a value whose last bits may be anything, and which is not flushed. */
static inline double rounding_usual(const rounding *r, double value)
{
    /* the power of two at or below |value|, by cutting its significand off */
    double power = from_bits(to_bits(value) & (uint64_t)0x7ff << 52);
    power = power < r->smallest ? r->smallest : power;
    return r->variance * (power * power);
}

/* Variance of the error of rounding `value`, which brings an error of variance `incoming`. */
static inline double rounding_site(const rounding *r, double value, double incoming)
{
    if (incoming == 0 && rounding_holds(r, value)) return 0;
    if (rounding_flushes(r, value, incoming)) return value * value;
    double tie = incoming == 0 && rounding_is_tie(r, value) ? 3 : 1;
    return tie * rounding_usual(r, value);
}

/* fmax is a call of the library: too slow for every element. */
static inline double larger(double a, double b)
{
    return a > b ? a : b;
}

#endif
