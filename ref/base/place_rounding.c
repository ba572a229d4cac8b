/* place_rounding.c: places and sites of a precision profile. See etref/profile.h. */
#include "ref/base/place_rounding.h"
#include "ref/base/grid.h"

const char *et_place_name(et_place place)
{
#define NAME(place, word) [place] = word,
    static const char *const names[] = {ET_WHOLE_PLACES(NAME) ET_PART_PLACES(NAME)};
    return names[place];
}

et_place et_place_meant(const et_profile *p, et_place place)
{
    static const et_place wholes[] = {ET_OPERANDS,    ET_OPERANDS,    ET_ACCUMULATOR,
                                      ET_ACCUMULATOR, ET_ACCUMULATOR, ET_ACCUMULATOR};
    int part = (int)place - ET_PLACES;
    if (part < 0 || p->bits[place] != 0) return place;
    /* FP8 and its like are made for the experts' products; the router takes x as it is stored. */
    bool quantised = p->bits[ET_OPERANDS] < ET_LEAST_STORED;
    return place == ET_ROUTER_OPERANDS && quantised ? ET_INTERMEDIATES : wholes[part];
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

double et_place_smallest(const et_profile *p, et_place place)
{
    return ldexp(1, least_exponent(p, place));
}

double et_place_largest(const et_profile *p, et_place place)
{
    return ldexp(2 - ldexp(1, 1 - et_place_bits(p, place)), 1 - least_exponent(p, place));
}

bool et_place_holds(const et_profile *p, et_place place, double value)
{
    rounding r = et_rounding_at(p, place);
    return rounding_holds(&r, value);
}
