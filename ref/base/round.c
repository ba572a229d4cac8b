/* round.c: rounding an array as a kernel would, or by chance. See etref/rounding.h.
 *
 * Source of the idea: stochastic arithmetic (Vignes, CESTAC, 1993), Monte Carlo arithmetic (Parker 1997);
 * new is that the chance hangs on the number, and in part on its cell [lo, lo + ulp), instead of on the operation.
 */
#include "etref/rounding.h"
#include "ref/base/float_environment.h"
#include "ref/base/grid.h"
#include "ref/base/lanes.h"
#include "ref/base/threads.h"

uint64_t et_rounding_key(uint64_t seed, const char *site)
{
    uint64_t key = et_mix(seed + UINT64_C(0x9e3779b97f4a7c15));
    for (const char *c = site; *c; c++) key = et_mix(key ^ (unsigned char)*c);
    return key;
}

uint64_t et_chances_key(const et_rounding *r, const char *site)
{
    return et_rounding_key(r->seed + (r->draw << 32), site);
}

/* The bits that are 0 in a product of two numbers of p bits: what two stored numbers make when multiplied is known to
 * every kernel, which rounds it to nearest. */
static uint64_t known_tail(int p)
{
    return 2 * p < 53 ? (UINT64_C(1) << (53 - 2 * p)) - 1 : UINT64_MAX;
}

/* Kernels leave out single roundings, or all of one kind: most seeds throw a coin for each site, others for each place. */
static bool is_left_out(const et_rounding *r, et_place place, const char *site)
{
    bool by_place = (r->seed >> 1) % 4 == 0;
    uint64_t key = et_rounding_key(r->seed, et_place_name(place));
    return r->mode == ET_ROUND_SOME && (by_place ? key : et_rounding_key(key, site)) >> 32 & 1;
}

/* In which place's format numbers stand at a site of a replica; false: as they are. Who leaves a rounding out
 * keeps the number in a register, as wide as sums are; or, where that is no wider, does not have it at all (fused
 * multiply-add). Gates are but a few numbers, and some kernels compute them in many bits: that is one of two ways. */
static bool has_format(const et_rounding *r, et_place place, const char *site, et_place *format)
{
    bool sum = place == ET_ACCUMULATOR || place == ET_ROUTER_ACCUMULATOR;
    *format = place;
    if (place == ET_GATE_ARITHMETIC && et_goes_other_way(r, "wide", "gates")) return false;
    if (sum || !is_left_out(r, place, site)) return true;
    *format = ET_ACCUMULATOR;
    return et_place_bits(r->profile, place) < et_place_bits(r->profile, ET_ACCUMULATOR);
}

/* Operands of FP8 and fewer bits are scaled before they are cast: of the numbers around 1 a kernel's grid holds 1 only by
 * accident. By what they are scaled only the kernel knows (its block's largest number, as a rule), and so each replica
 * draws it: 1, 17/16, ... 31/16, so few bits that products stay exact. To nearest: 1. */
static double scale_of(const et_rounding *r, int bits, uint64_t key)
{
    bool scaled = bits < ET_LEAST_STORED && r->mode != ET_ROUND_NEAREST;
    return scaled ? 1 + (double)(et_mix(key) >> 60) / 16 : 1;
}

et_grid et_grid_of(const et_rounding *r, et_place place, const char *site)
{
    const et_profile *p = r->profile;
    bool operand = place == ET_OPERANDS || place == ET_ACTIVATIONS || place == ET_ROUTER_OPERANDS;
    bool sum = place == ET_ACCUMULATOR || place == ET_ROUTER_ACCUMULATOR;
    uint64_t key = et_chances_key(r, site);
    et_place format;
    if (!has_format(r, place, site, &format))
        return (et_grid){.nearest = true, .largest = (double)INFINITY, .scale = 1};
    int bits = et_place_bits(p, format);
    double smallest = et_place_smallest(p, format);
    bool nearest = r->mode == ET_ROUND_NEAREST && !p->stochastic;
    return (et_grid){.drop = 53 - bits,
                     .smallest = smallest,
                     .largest = et_place_largest(p, format),
                     .unit = ldexp(smallest, 1 - bits),
                     .scale = operand ? scale_of(r, bits, key) : 1,
                     .nearest = nearest,
                     .truncates =
                         (operand && p->truncate_operands) || (sum && p->truncate_accumulator),
                     .flushes = p->ftz || (operand && p->flush_operands),
                     .of_cell = p->stochastic ? 0 : 2,
                     .of_value = p->stochastic ? 16 : 6,
                     .known = nearest         ? 0
                              : p->stochastic ? UINT64_MAX
                                              : known_tail(bits),
                     .key = key};
}

et_grid et_grid_of_input(const et_rounding *rounding, et_place place, const char *site)
{
    et_grid g = et_grid_of(rounding, place, site);
    if (!rounding->profile->stochastic) g.known = 0;
    return g;
}

/* What becomes of a number that goes to `rounded`. */
static inline double stored(const et_grid *g, double rounded)
{
    if (g->flushes && rounded < g->smallest) return 0;
    if (rounded > g->largest) return g->truncates ? g->largest : (double)INFINITY;
    return rounded;
}

/* Below the normal numbers: in units of the fixed spacing. 53 bits of a fraction of it are kept: all there are
 * from half of it on, where ties are decided. */
static double round_small(const et_grid *g, double size)
{
    double steps = size / g->unit, lo = floor(steps), part = (steps - lo) * 0x1p53;
    if (part == 0) return stored(g, size);
    int64_t more = et_steps(g, true, to_bits(size), to_bits(lo * g->unit), fmod(lo, 2) != 0,
                            (uint64_t)part, 53);
    return stored(g, fmax(lo + (double)more, 0) * g->unit);
}

/* 53 bits: the tail is lost already; a number of at most 24 bits is taken to be exact. */
static double round_full(const et_grid *g, double size)
{
    uint64_t bits = to_bits(size), way = et_mix(bits ^ g->key) % 4;
    bool exact = (bits & ((UINT64_C(1) << 29) - 1)) == 0;
    if (g->nearest || exact || way > 1) return size;
    return from_bits(way == 0 ? bits + 1 : bits - 1);
}

double et_grid_unusual_round(const et_grid *g, double v)
{
    double size = fabs(v), rounded;
    if (!(size <= 0x1.fffffffffffffp1023) || size == 0) return v;
    if (g->drop == 0)
        rounded = round_full(g, size);
    else if (size < g->smallest)
        rounded = round_small(g, size);
    else
        rounded = stored(g, from_bits(et_grid_move(g, true, to_bits(size))));
    return copysign(rounded, v);
}

/* ---- arrays ---- */

/* Numbers are rounded in pieces, all by the usual rule, which has no branch and goes to vector lanes; a piece in which
 * that was not right is gone over again. */
enum { PIECE = 256 };

static const uint64_t SIGN = UINT64_C(1) << 63;

/* false: there are numbers that the usual rule does not know, or makes. `known`: nothing is left to chance. */
static inline __attribute__((always_inline)) bool
round_piece(const et_grid *grid, bool chance, size_t count, const double *v, double *to)
{
    const et_grid g = *grid;
    const uint64_t least = to_bits(g.smallest), reach = to_bits(g.largest) - least;
    uint64_t unusual = 0;
    for (size_t i = 0; i < count; i++) {
        uint64_t bits = to_bits(v[i]) & ~SIGN, moved = et_grid_move(&g, chance, bits);
        uint64_t outside = bits - least > reach ? 1 : 0, beyond = moved - least > reach ? 1 : 0;
        unusual |= bits == 0 ? 0 : outside | beyond;
        to[i] = from_bits(moved | (to_bits(v[i]) & SIGN));
    }
    return unusual == 0;
}

/* Are all numbers of the format already, and usual? */
ET_LANES static bool holds_piece(const et_grid *grid, size_t count, const double *v)
{
    const uint64_t least = to_bits(grid->smallest), reach = to_bits(grid->largest) - least;
    const uint64_t tail = (UINT64_C(1) << grid->drop) - 1;
    uint64_t other = 0;
    for (size_t i = 0; i < count; i++) {
        uint64_t bits = to_bits(v[i]) & ~SIGN, outside = bits - least > reach ? 1 : 0;
        other |= bits & tail;
        other |= bits == 0 ? 0 : outside;
    }
    return other == 0;
}

ET_LANES static bool round_known(const et_grid *g, size_t count, const double *v, double *to)
{
    return round_piece(g, false, count, v, to);
}

ET_LANES static bool round_by_chance(const et_grid *g, size_t count, const double *v, double *to)
{
    return round_piece(g, true, count, v, to);
}

void et_grid_round_all(const et_grid *g, size_t count, const double *v, double *to)
{
    double piece[PIECE];
    bool untouched = g->drop == 0 && g->nearest, scaled = g->scale != 1;
    for (size_t from = 0; from < count; from += PIECE) {
        size_t width = count - from < PIECE ? count - from : PIECE;
        memcpy(piece, v + from, width * sizeof *v);
        for (size_t i = 0; scaled && i < width; i++) piece[i] /= g->scale;
        if (untouched || (g->drop > 0 && holds_piece(g, width, piece))) {
            memmove(to + from, v + from, width * sizeof *v);
            continue;
        }
        bool done = g->drop > 0 && (g->known == 0 ? round_known(g, width, piece, to + from)
                                                  : round_by_chance(g, width, piece, to + from));
        for (size_t i = 0; !done && i < width; i++) to[from + i] = et_grid_round(g, piece[i]);
        for (size_t i = 0; scaled && i < width; i++) to[from + i] *= g->scale;
    }
}

double et_grid_unusual(const et_grid *g, double size)
{
    if (!(size < g->smallest)) /* a NaN stays one */
        return g->truncates && size < (double)INFINITY ? g->largest : size * (double)INFINITY;
    double magic = 0x1.8p52 * g->unit, rounded = (size + magic) - magic; /* to multiples of unit */
    if (g->truncates && rounded > size) rounded -= g->unit;
    return g->flushes && rounded < g->smallest ? 0 : rounded;
}

/* As many as there are from `first` on, at most PIECE. */
static void store_piece(const et_grid *g, size_t first, size_t end, et_real *values)
{
    double piece[PIECE];
    size_t count = end - first < PIECE ? end - first : PIECE;
    if (count == 0) return;
    values += first;
    for (size_t i = 0; i < count; i++) piece[i] = (double)values[i];
    et_grid_round_all(g, count, piece, piece);
    for (size_t i = 0; i < count; i++) values[i] = (et_real)piece[i];
}

static void store_all(const et_grid *g, size_t count, et_real *values)
{
    ET_BY_THREADS(et_worth_threads(count), for (size_t first = 0; first < count; first += PIECE)
                                               store_piece(g, first, count, values));
}

void et_round(const et_rounding *rounding, et_place place, const char *site, size_t count,
              et_real *values)
{
    ET_ARITHMETIC;
    et_pass(rounding, site, count, values);
    if (!et_rounds(rounding)) return;
    const et_grid g = et_grid_of(rounding, place, site);
    store_all(&g, count, values);
}

void et_round_input(const et_rounding *rounding, et_place place, const char *site, size_t count,
                    et_real *values)
{
    ET_ARITHMETIC;
    const et_grid g = et_grid_of_input(rounding, place, site);
    store_all(&g, count, values);
}

void et_pass(const et_rounding *rounding, const char *site, size_t count, et_real *values)
{
    if (rounding && rounding->mutate) rounding->mutate(rounding->user, site, count, values);
}

bool et_rounds(const et_rounding *rounding)
{
    return rounding && rounding->profile;
}

bool et_goes_other_way(const et_rounding *r, const char *choice, const char *site)
{
    if (!et_rounds(r) || r->mode == ET_ROUND_NEAREST) return false;
    return et_rounding_key(et_rounding_key(r->seed, choice), site) & 1;
}

et_status et_rounding_check(const et_rounding *rounding, et_error *error)
{
    if (rounding == NULL) return ET_OK;
    const et_profile *p = rounding->profile;
    if (rounding->mode < ET_ROUND_RANDOM || rounding->mode > ET_ROUND_NEAREST)
        return et_fail(error, ET_EINVAL,
                       "et_rounding: mode is %d; ET_ROUND_RANDOM, _SOME, _NEAREST",
                       (int)rounding->mode);
    if (p == NULL && rounding->mutate) return ET_OK;
    if (p == NULL)
        return et_fail(error, ET_EINVAL, "et_rounding: profile is NULL; one belongs here");
    for (int place = 0; place < ET_ALL_PLACES; place++)
        if (p->bits[place] < (place < ET_PLACES ? 2 : 0) || p->bits[place] == 1 ||
            p->bits[place] > 53)
            return et_fail(error, ET_EINVAL, "et_rounding: profile rounds to %d bits; 2 to 53",
                           p->bits[place]);
    if (p->exponent_bits != 5 && p->exponent_bits != 8)
        return et_fail(error, ET_EINVAL, "et_rounding: profile has %d exponent bits; 5 or 8",
                       p->exponent_bits);
    return ET_OK;
}
