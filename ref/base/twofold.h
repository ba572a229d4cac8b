/* twofold.h: a number as the unevaluated sum of two doubles, some 106 bits. Internal.
 *
 * x = high + low with high = x rounded to double, so high alone is x to 0.5 ulp. Error bounds are
 * relative to the result, in units of u^2 with u = 2^-53:
 *
 *     sum 4      product 8      quotient 16
 *
 * They hold for normal numbers far from overflow and underflow: 2^-400 to 2^400, and 0.
 * Source: Dekker 1971 (product without fused multiply-add, Fast2Sum), Knuth (2Sum); the bounds of
 * Joldes, Muller and Popescu, ACM TOMS 44 (2017): 3u^2 (AccurateDWPlusDW), 7u^2 (DWTimesDW1), 15u^2
 * (DWDivDW1), each plus terms in u^3.
 */
#ifndef ET_TWOFOLD_H
#define ET_TWOFOLD_H

typedef struct et_twofold {
    double high, low;
} et_twofold;

/* a + b exactly, for |a| >= |b| or a = 0. */
static inline et_twofold twofold_fast(double a, double b)
{
    double high = a + b;
    return (et_twofold){high, b - (high - a)};
}

/* a + b exactly. */
static inline et_twofold twofold_sum(double a, double b)
{
    double high = a + b;
    double part = high - a;
    return (et_twofold){high, (a - (high - part)) + (b - part)};
}

/* a b exactly: each factor in halves of 26 bits, whose four products are exact. */
static inline et_twofold twofold_product(double a, double b)
{
    const double splitter = 0x1p27 + 1;
    double turn_a = splitter * a, turn_b = splitter * b;
    double a1 = turn_a - (turn_a - a), a2 = a - a1;
    double b1 = turn_b - (turn_b - b), b2 = b - b1;
    double high = a * b;
    return (et_twofold){high, ((a1 * b1 - high) + a1 * b2 + a2 * b1) + a2 * b2};
}

static inline et_twofold twofold_add(et_twofold a, et_twofold b)
{
    et_twofold high = twofold_sum(a.high, b.high);
    et_twofold low = twofold_sum(a.low, b.low);
    high = twofold_fast(high.high, high.low + low.high);
    return twofold_fast(high.high, high.low + low.low);
}

static inline et_twofold twofold_subtract(et_twofold a, et_twofold b)
{
    return twofold_add(a, (et_twofold){-b.high, -b.low});
}

static inline et_twofold twofold_times(et_twofold a, et_twofold b)
{
    et_twofold p = twofold_product(a.high, b.high);
    return twofold_fast(p.high, p.low + (a.high * b.low + a.low * b.high));
}

static inline et_twofold twofold_scale(et_twofold a, double b)
{
    return twofold_times(a, (et_twofold){b, 0});
}

/* One step of long division: the rest of the first quotient digit gives the second. b not 0. */
static inline et_twofold twofold_divide(et_twofold a, et_twofold b)
{
    double first = a.high / b.high;
    et_twofold rest = twofold_subtract(a, twofold_scale(b, first));
    return twofold_fast(first, rest.high / b.high);
}
#endif
