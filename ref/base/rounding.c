/* rounding.c: places and sites of a precision profile. See etref/profile.h.
 *
 * A value v = m 2^e with m in [1,2) spread as 1/m has ulp^2/12 = v^2 u^2 / (3 m^2), u = 2^-p, and the
 * mean of 1/m^2 is 3/(8 ln 2): on the average a rounding costs 0.18 u^2 v^2. That figure stands where
 * many values are rounded (the partial sums of product_noise.c); the sites here take each value's own
 * ulp.
 */
#include "ref/base/rounding.h"

static int least_exponent(const et_profile *p, et_place place)
{
    if (p->bits[place] > 24) return -1022;
    return p->bits[place] <= 11 && p->exponent_bits == 5 ? -14 : -126;
}

rounding rounding_at(const et_profile *p, et_place place)
{
    int bits = p->bits[place], kept = bits > 24 ? 24 : bits;
    bool truncated = (place == ET_OPERANDS && p->truncate_operands) ||
                     (place == ET_ACCUMULATOR && p->truncate_accumulator);
    return (rounding){.bits = bits,
                      .least = (uint64_t)(least_exponent(p, place) + 1023),
                      .tail = ((uint64_t)1 << (53 - kept)) - 1,
                      .variance = ldexp(truncated ? 1.0 / 3 : 1.0 / 12, 2 - 2 * bits),
                      .smallest = et_place_smallest(p, place),
                      .largest = et_place_largest(p, place),
                      .ftz = p->ftz,
                      .truncates = truncated};
}

rounding rounding_coarser(const et_profile *p, et_place a, et_place b)
{
    return rounding_at(p, p->bits[a] < p->bits[b] ? a : b);
}

double et_place_smallest(const et_profile *p, et_place place)
{
    return ldexp(1, least_exponent(p, place));
}

double et_place_largest(const et_profile *p, et_place place)
{
    return ldexp(2 - ldexp(1, 1 - p->bits[place]), 1 - least_exponent(p, place));
}

double et_place_ulp(const et_profile *p, et_place place, double value)
{
    rounding r = rounding_at(p, place);
    return rounding_ulp(&r, value);
}

bool et_place_holds(const et_profile *p, et_place place, double value)
{
    rounding r = rounding_at(p, place);
    return rounding_holds(&r, value);
}

double et_site_variance(const et_profile *p, et_place place, double value, double incoming)
{
    rounding r = rounding_at(p, place);
    return rounding_site(&r, value, incoming);
}
