/* round.c: rounding an array as a kernel would, or by chance. See etref/rounding.h.
 *
 * A binary64 number is 1 sign bit, 11 of exponent, 52 of fraction. In a format of p bits the
 * fraction's last 53-p bits, the tail, are cut off: what is left is lo, and f = tail / 2^(53-p). Adding
 * one to the kept bits gives lo + ulp, a carry running into the exponent, where it belongs. So rounding
 * is arithmetic on the bit pattern of |v|, except below the format's smallest normal number, where
 * the spacing is fixed and v is counted in units of it.
 *
 * Source of the idea: stochastic arithmetic (Vignes, CESTAC, 1993), Monte Carlo arithmetic (Parker 1997);
 * new is that the chance hangs on the cell [lo, lo + ulp) instead of on the operation.
 */
#include "etref/rounding.h"
#include "ref/base/arithmetic.h"
#include "ref/base/bits.h"
#include "ref/base/parallel.h"

#include <math.h>
#include <stdbool.h>

/* One place of one replica. */
typedef struct grid {
    int drop;                 /* bits of the tail: 53 - p */
    double smallest, largest; /* of the format: normal, finite */
    double unit;              /* spacing below `smallest` */
    bool nearest, truncates, flushes;
    uint64_t key; /* of seed and site */
} grid;

/* A 64-bit mixer in which every bit of the input moves every bit of the output with chance 1/2: two
 * rounds of multiply and shift (the scheme and its constants: Stafford's variant 13 of MurmurHash3's
 * finaliser, as SplitMix64 uses it; Steele, Lea, Flood, OOPSLA 2014). */
static inline uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static uint64_t key_of(uint64_t seed, const char *site)
{
    uint64_t key = mix(seed + UINT64_C(0x9e3779b97f4a7c15));
    for (const char *c = site; *c; c++) key = mix(key ^ (unsigned char)*c);
    return key;
}

static grid grid_of(const et_rounding *r, et_place place, const char *site)
{
    const et_profile *p = r->profile;
    double smallest = et_place_smallest(p, place);
    return (grid){.drop = 53 - p->bits[place],
                  .smallest = smallest,
                  .largest = et_place_largest(p, place),
                  .unit = ldexp(smallest, 1 - p->bits[place]),
                  .nearest = r->mode == ET_ROUND_NEAREST,
                  .truncates = (place == ET_OPERANDS && p->truncate_operands) ||
                               (place == ET_ACCUMULATOR && p->truncate_accumulator),
                  .flushes = p->ftz,
                  .key = key_of(r->seed, site)};
}

/* Does the part `tail` of 2^drop send the number `lo` up? To nearest: ties to the even one. */
static inline bool goes_up(const grid *g, uint64_t lo, bool odd, uint64_t tail, int drop)
{
    uint64_t half = UINT64_C(1) << (drop - 1);
    if (g->truncates) return false;
    if (g->nearest) return tail + odd > half;
    return mix(lo ^ g->key) >> (64 - drop) < tail;
}

/* From |v| to what becomes of it, given the number of the format it goes to. */
static inline double moved(const grid *g, double size, double rounded)
{
    if (g->flushes && rounded < g->smallest) return 0;
    if (rounded > g->largest) return g->truncates ? g->largest : (double)INFINITY;
    if (g->nearest || g->truncates) return rounded;
    return size + (rounded - size) * 0x1.6a09e667f3bcdp-1; /* 1/sqrt(2) */
}

static inline double round_normal(const grid *g, double size)
{
    uint64_t bits = to_bits(size), one = UINT64_C(1) << g->drop, tail = bits & (one - 1);
    uint64_t lo = bits - tail;
    if (tail == 0) return moved(g, size, size);
    bool up = goes_up(g, lo, lo & one, tail, g->drop);
    return moved(g, size, from_bits(lo + (up ? one : 0)));
}

/* Below the normal numbers: in units of the fixed spacing. 53 bits of a step are kept: all there are
 * from half a step on, where ties are decided. */
static double round_small(const grid *g, double size)
{
    double steps = size / g->unit, lo = floor(steps), part = (steps - lo) * 0x1p53;
    if (part == 0) return moved(g, size, size);
    bool up = goes_up(g, to_bits(lo * g->unit), fmod(lo, 2) != 0, (uint64_t)part, 53);
    return moved(g, size, (lo + (up ? 1 : 0)) * g->unit);
}

/* 53 bits: the tail is lost already; a number of at most 24 bits is taken to be exact. */
static double round_full(const grid *g, double size)
{
    uint64_t bits = to_bits(size), chance = mix(bits ^ g->key) % 24;
    bool exact = (bits & ((UINT64_C(1) << 29) - 1)) == 0;
    if (g->nearest || exact || chance > 1) return size;
    return from_bits(chance == 0 ? bits + 1 : bits - 1);
}

static inline double round_one(const grid *g, double v)
{
    double size = fabs(v), rounded;
    if (!(size <= 0x1.fffffffffffffp1023) || size == 0) return v;
    if (g->drop == 0)
        rounded = round_full(g, size);
    else if (size < g->smallest)
        rounded = round_small(g, size);
    else
        rounded = round_normal(g, size);
    return copysign(rounded, v);
}

void et_round(const et_rounding *rounding, et_place place, const char *site, size_t count,
              et_real *values)
{
    ET_ARITHMETIC;
    et_pass(rounding, site, count, values);
    if (!et_rounds(rounding)) return;
    const grid g = grid_of(rounding, place, site);
#pragma omp parallel for if (et_worth_threads(count))
    for (size_t i = 0; i < count; i++) values[i] = (et_real)round_one(&g, (double)values[i]);
}

void et_pass(const et_rounding *rounding, const char *site, size_t count, et_real *values)
{
    if (rounding && rounding->mutate) rounding->mutate(rounding->user, site, count, values);
}

bool et_rounds(const et_rounding *rounding)
{
    return rounding && rounding->profile;
}

et_status et_rounding_check(const et_rounding *rounding, et_error *error)
{
    if (rounding == NULL) return ET_OK;
    const et_profile *p = rounding->profile;
    if (rounding->mode != ET_ROUND_RANDOM && rounding->mode != ET_ROUND_NEAREST)
        return et_fail(error, ET_EINVAL, "et_rounding: mode is %d; ET_ROUND_RANDOM or _NEAREST",
                       (int)rounding->mode);
    if (p == NULL && rounding->mutate) return ET_OK;
    if (p == NULL)
        return et_fail(error, ET_EINVAL, "et_rounding: profile is NULL; one belongs here");
    for (int place = 0; place < ET_PLACES; place++)
        if (p->bits[place] < 2 || p->bits[place] > 53)
            return et_fail(error, ET_EINVAL, "et_rounding: profile rounds to %d bits; 2 to 53",
                           p->bits[place]);
    if (p->exponent_bits != 5 && p->exponent_bits != 8)
        return et_fail(error, ET_EINVAL, "et_rounding: profile has %d exponent bits; 5 or 8",
                       p->exponent_bits);
    return ET_OK;
}
