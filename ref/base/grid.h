/* grid.h: the numbers of one place of one kernel, and how it rounds to them. Internal.
 *
 * A binary64 number is 1 sign bit, 11 of exponent, 52 of fraction. In a format of p bits the
 * fraction's last 53-p bits, the tail, are cut off: what is left is lo, and f = tail / 2^(53-p). Adding
 * one to the kept bits gives lo + ulp, a carry running into the exponent, where it belongs. So rounding
 * is arithmetic on the bit pattern of |v|, except below the format's smallest normal number, where
 * the spacing is fixed and v is counted in units of it.
 */
#ifndef ET_GRID_H
#define ET_GRID_H

#include "etref/rounding.h"
#include "ref/base/bits.h"

#include <math.h>
#include <stdbool.h>

/* bf16's: no format in which layers are stored has fewer bits. */
enum { ET_LEAST_STORED = 8 };

/* One place of one replica. */
typedef struct et_grid {
    int drop;                         /* bits of the tail: 53 - p */
    double smallest, largest;         /* of the format: normal, finite */
    double unit;                      /* spacing below `smallest` */
    double scale;                     /* what is rounded is v / scale */
    bool nearest, truncates, flushes; /* nearest: nothing is left to chance */
    int of_cell,
        of_value; /* how far chance reaches, from end to end, in sixteenths of an ulp: one number for all
                            * between two neighbours, and one for each */
    uint64_t
        known;    /* where these bits are 0 chance has no say: the nearest, ties to the even one */
    uint64_t key; /* of seed and site */
} et_grid;

/* rounding is not NULL. */
et_grid et_grid_of(const et_rounding *rounding, et_place place, const char *site);

/* The same for inputs: every kernel knows them and rounds them alike, so nothing is left to chance (but stochastic
 * rounding's own). */
et_grid et_grid_of_input(const et_rounding *rounding, et_place place, const char *site);

/* An array of inputs, in place. rounding is not NULL. */
void et_round_input(const et_rounding *rounding, et_place place, const char *site, size_t count,
                    et_real *values);

/* The same in *room; NULL where nothing is rounded: in a golden, in a mutant. */
static inline const et_grid *et_grid_in(et_grid *room, const et_rounding *r, et_place place,
                                        const char *site)
{
    if (!et_rounds(r)) return NULL;
    *room = et_grid_of(r, place, site);
    return room;
}

/* One site's number for a seed. */
uint64_t et_rounding_key(uint64_t seed, const char *site);

/* The chances of one site of one replica. */
uint64_t et_chances_key(const et_rounding *r, const char *site);

/* A 64-bit mixer in which every bit of the input moves every bit of the output with chance 1/2: two
 * rounds of multiply and shift (the scheme and its constants: Stafford's variant 13 of MurmurHash3's
 * finaliser, as SplitMix64 uses it; Steele, Lea, Flood, OOPSLA 2014). */
static inline uint64_t et_mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* A number from -1/2 to 1/2 of a spacing of 2^drop, by chance. */
static inline int64_t et_chance(const et_grid *g, uint64_t number, int drop)
{
    return (int64_t)(et_mix(number ^ g->key) >> (64 - drop)) - (INT64_C(1) << drop) / 2;
}

/* -1 to 1, by chance: one number for each v of a replica; to nearest none. */
static inline double et_chance_of(const et_grid *g, double v)
{
    return g->nearest ? 0 : ldexp((double)et_chance(g, to_bits(v), 53), -52);
}

/* Where the number `bits` goes that lies the part `tail` of 2^drop above `lo`: by so many spacings from there. Counted in
 * sixteenths of one; no branch hangs on the number, which could not be foreseen. `chance` false: all is known. To
 * nearest is half a spacing further, cut off; the last sixteenth of it belongs to ties that go to the even neighbour. */
static inline int64_t et_steps(const et_grid *g, bool chance, uint64_t bits, uint64_t lo,
                               uint64_t odd, uint64_t tail, int drop)
{
    int64_t half = g->truncates ? 0 : (INT64_C(8) << drop) - 1;
    int64_t moved = (int64_t)odd;
    if (chance) {
        int64_t by_chance =
            g->of_cell * et_chance(g, lo, drop) + g->of_value * et_chance(g, ~bits, drop);
        moved = (bits & g->known) == 0 ? moved : by_chance;
    }
    return (16 * (int64_t)tail + moved + half) >> (drop + 4); /* arithmetic: towards -infinity */
}

/* The same for a whole pattern of a size, between the smallest normal and the largest number: its pattern. */
static inline uint64_t et_grid_move(const et_grid *g, bool chance, uint64_t bits)
{
    uint64_t one = UINT64_C(1) << g->drop, tail = bits & (one - 1), lo = bits - tail;
    int64_t steps = et_steps(g, chance, bits, lo, (lo >> g->drop) & 1, tail, g->drop);
    return tail == 0 ? bits : lo + ((uint64_t)steps << g->drop);
}

/* et_grid_round of what is 0, or not between the format's smallest normal and its largest number, or becomes that, or has
 * 53 bits. */
double et_grid_unusual_round(const et_grid *grid, double v);

/* v as et_round has it. */
static inline double et_grid_round(const et_grid *g, double v)
{
    double size = fabs(v);
    if (g->drop == 0 || !(size >= g->smallest && size <= g->largest))
        return size == 0 ? v : et_grid_unusual_round(g, v);
    double rounded = from_bits(et_grid_move(g, true, to_bits(size)));
    if (!(rounded >= g->smallest && rounded <= g->largest)) return et_grid_unusual_round(g, v);
    return copysign(rounded, v);
}

/* et_grid_round of `count` numbers; to may be v. */
void et_grid_round_all(const et_grid *grid, size_t count, const double *v, double *to);

/* et_grid_sum of a size below the smallest normal number, or beyond the largest. */
double et_grid_unusual(const et_grid *grid, double size);

/* The format's number next to v, ties to the even one (a place that truncates: towards 0), whatever
 * the mode: real arithmetic, for sums. */
static inline double et_grid_sum(const et_grid *g, double v)
{
    uint64_t one = UINT64_C(1) << g->drop, half = g->truncates ? 0 : one >> 1;
    double size = fabs(v);
    uint64_t bits = to_bits(size), odd = (bits >> g->drop) & 1;
    double rounded = from_bits((bits + half - (half > 0 ? 1 - odd : 0)) & ~(one - 1));
    if ((size >= g->smallest || size == 0) && rounded <= g->largest) return copysign(rounded, v);
    return copysign(et_grid_unusual(g, size), v);
}

#endif
