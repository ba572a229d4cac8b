/* rounding.c: places and sites of a precision profile. See etref/profile.h.
 *
 * A value v = m 2^e with m in [1,2) spread as 1/m has ulp^2/12 = v^2 u^2 / (3 m^2), u = 2^-p, and the
 * mean of 1/m^2 is 3/(8 ln 2): on the average a rounding costs 0.18 u^2 v^2. That figure stands where
 * many values are rounded (the partial sums of product_noise.c); the sites here take each value's own
 * ulp.
 */
#include "ref/base/rounding.h"
#include "ref/base/parallel.h"

et_place et_place_meant(const et_profile *p, et_place place)
{
    static const et_place wholes[] = {ET_OPERANDS,    ET_OPERANDS,    ET_ACCUMULATOR,
                                      ET_ACCUMULATOR, ET_ACCUMULATOR, ET_ACCUMULATOR};
    int part = (int)place - ET_PLACES;
    return part >= 0 && p->bits[place] == 0 ? wholes[part] : place;
}

int et_place_bits(const et_profile *p, et_place place)
{
    return p->bits[et_place_meant(p, place)];
}

static int least_exponent(const et_profile *p, et_place place)
{
    int bits = et_place_bits(p, place);
    if (bits > 24) return -1022;
    return bits <= 11 && p->exponent_bits == 5 ? -14 : -126;
}

rounding et_rounding_at(const et_profile *p, et_place place)
{
    int bits = et_place_bits(p, place), kept = bits > 24 ? 24 : bits;
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

rounding et_rounding_coarser(const et_profile *p, et_place a, et_place b)
{
    return et_rounding_at(p, p->bits[a] < p->bits[b] ? a : b);
}

/* Few values have to be asked one by one: those of a piece in which one is out of the normal range or has a bit set
 * that the format has not. */
static bool changes_piece(const rounding *r, size_t count, const et_real *values)
{
    uint64_t bits = 0;
    double outside = 0, smallest = r->smallest, largest = r->largest;
    for (size_t i = 0; i < count; i++) bits |= to_bits((double)values[i]);
#pragma omp simd reduction(+ : outside)
    for (size_t i = 0; i < count; i++) {
        double size = fabs((double)values[i]);
        outside += ((size >= smallest) & (size <= largest)) ? 0.0 : 1.0;
    }
    bool changes = false;
    for (size_t i = 0; ((bits & r->tail) != 0 || outside > 0) && !changes && i < count; i++)
        changes = !rounding_holds(r, (double)values[i]);
    return changes;
}

bool et_rounding_changes(const rounding *r, size_t count, const et_real *values)
{
    enum { PIECE = 256 };
    bool changes = false;
#pragma omp parallel for reduction(|| : changes) if (et_worth_threads(count))
    for (size_t i = 0; i < (values ? count : 0); i += PIECE)
        changes = changes || changes_piece(r, count - i < PIECE ? count - i : PIECE, values + i);
    return changes;
}

double et_place_smallest(const et_profile *p, et_place place)
{
    return ldexp(1, least_exponent(p, place));
}

double et_place_largest(const et_profile *p, et_place place)
{
    return ldexp(2 - ldexp(1, 1 - et_place_bits(p, place)), 1 - least_exponent(p, place));
}

double et_place_ulp(const et_profile *p, et_place place, double value)
{
    rounding r = et_rounding_at(p, place);
    return rounding_ulp(&r, value);
}

bool et_place_holds(const et_profile *p, et_place place, double value)
{
    rounding r = et_rounding_at(p, place);
    return rounding_holds(&r, value);
}

double et_site_variance(const et_profile *p, et_place place, double value, double incoming)
{
    rounding r = et_rounding_at(p, place);
    return rounding_site(&r, value, incoming);
}
