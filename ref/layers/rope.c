/* rope.c: rotary position embedding, forward and backward. See etref/rope.h.
 *
 *     a = u1 cos + u2 sin          b = u2 cos - u1 sin
 *
 * Backward. The map is a rotation by -theta, its matrix orthogonal, so the gradient goes back
 * through the transposed matrix, the rotation by theta:
 *
 *     du1 = da cos - db sin        du2 = da sin + db cos
 *
 * Sine and cosine are written here, since libm's last bits differ between machines. Left out:
 * scaled or interpolated positions.
 */
#include "etref/rope.h"
#include "etref/elementary.h"
#include "ref/base/float_environment.h"
#include "ref/base/grid.h"
#include "ref/base/lanes.h"
#include "ref/base/threads.h"
#include "ref/base/sum.h"
#include "ref/base/twofold.h"
#include "ref/layers/layer_arrays.h"

#include <math.h>

/* ---- sine and cosine ----
 *
 * Method (Cody and Waite): x = k pi/2 + r with |r| <= pi/4, then Taylor's series of r, and k mod 4
 * says which of the two, with which sign. pi/2 comes in three parts. The first two have 33 bits
 * each, so that their products with |k| < 2^20 are exact; the third is the rest, good to 2^-120. r
 * is kept as high + low, with an absolute error below |k| 2^-120 + 2^-106 |r|.
 *
 * Error. x - k P1 is exact (Sterbenz; for k = 0 there is nothing to subtract), the two sums after
 * it are twofold. The series in r = high: terms after r^19/19! and r^18/18! are below 2^-63 of the
 * first for |r| <= pi/4. low enters through the derivative: sin(r + low) = sin r + low cos r, short
 * of low^2. The last operation is an addition of a number below a third of the larger one: half an
 * ulp and less than half of one more from the small term, whose own relative error is a few u. */
#define HALF_PI_1 0x1.921fb544p+0
#define HALF_PI_2 0x1.0b4611a6p-34
#define HALF_PI_3 0x1.3198a2e037073p-69

/* r^3 (-1/3! + r^2/5! - ...) */
static double sine_tail(double r)
{
    double z = r * r, sum = -1.0 / 121645100408832000.0; /* 19! */
    sum = 1.0 / 355687428096000.0 + z * sum;
    sum = -1.0 / 1307674368000.0 + z * sum;
    sum = 1.0 / 6227020800.0 + z * sum;
    sum = -1.0 / 39916800 + z * sum;
    sum = 1.0 / 362880 + z * sum;
    sum = -1.0 / 5040 + z * sum;
    sum = 1.0 / 120 + z * sum;
    sum = -1.0 / 6 + z * sum;
    return r * z * sum;
}

/* r^4 (1/4! - r^2/6! + ...) */
static double cosine_tail(double r)
{
    double z = r * r, sum = -1.0 / 6402373705728000.0; /* 18! */
    sum = 1.0 / 20922789888000.0 + z * sum;
    sum = -1.0 / 87178291200.0 + z * sum;
    sum = 1.0 / 479001600 + z * sum;
    sum = -1.0 / 3628800 + z * sum;
    sum = 1.0 / 40320 + z * sum;
    sum = -1.0 / 720 + z * sum;
    sum = 1.0 / 24 + z * sum;
    return z * z * sum;
}

void et_sin_cos(double x, double *sine, double *cosine)
{
    double s = NAN, c = NAN;
    if (fabs(x) <= 0x1p20) {
        double k = floor(x * 0x1.45f306dc9c883p-1 + 0.5); /* 2/pi */
        et_twofold r = twofold_sum(x - k * HALF_PI_1, -k * HALF_PI_2);
        r = twofold_subtract(r, twofold_product(k, HALF_PI_3));
        double half = 0.5 * r.high * r.high, one = 1 - half;
        double sin_r = r.high + (sine_tail(r.high) + r.low * one);
        /* 1 - r^2/2 and what its rounding lost: (1 - one) - half is exact */
        double cos_r = one + (((1 - one) - half) + (cosine_tail(r.high) - r.high * r.low));
        long turns = (long)k & 3;
        s = turns & 1 ? cos_r : sin_r;
        c = turns & 1 ? sin_r : cos_r;
        if (turns == 2 || turns == 3) s = -s;
        if (turns == 1 || turns == 2) c = -c;
    }
    if (sine) *sine = s;
    if (cosine) *cosine = c;
}

static double as_stored(const et_rounding *rounding, const char *site, double value)
{
    et_real v = (et_real)value;
    if (!et_rounds(rounding)) return value;
    et_round(rounding, ET_ACCUMULATOR, site, 1, &v);
    return (double)v;
}

et_status et_rope_table(const et_rounding *rounding, size_t positions, size_t width, double base,
                        et_real *cosines, et_real *sines, et_error *error)
{
    ET_ARITHMETIC;
    size_t pairs = width / 2;
    const et_array arrays[] = {{"cosines", cosines, positions, pairs},
                               {"sines", sines, positions, pairs}};
    if (width % 2 != 0 || !(base > 0) || positions > (size_t)1 << 20)
        return et_fail(error, ET_EINVAL,
                       "et_rope_table: width %zu, base %g, %zu positions; an even width, a base "
                       "above 0, at most 2^20 positions",
                       width, base, positions);
    et_status status = ET_CHECK_ARRAYS("et_rope_table", rounding, arrays, error);
    if (status != ET_OK) return status;
    /* Some kernels have each frequency from the last one, by the factor base^(-2/width); some round ln(base). */
    bool repeats = et_goes_other_way(rounding, "f b^(-2/w)", "frequency");
    double factor = as_stored(rounding, "factor", et_exp(-2 / (double)width * et_log(base)));
    double logarithm = et_log(base), last = 1;
    if (et_goes_other_way(rounding, "ln b is rounded", "frequency"))
        logarithm = as_stored(rounding, "ln b", logarithm);
    for (size_t j = 0; j < pairs; j++) {
        /* base^(-2j/width): of the exponent's error ln(base) 2j/width times as much is in the power. */
        double exponent = as_stored(rounding, "exponent", (double)(2 * j) / (double)width);
        double power = exponent * logarithm;
        if (et_goes_other_way(rounding, "e^(-x ln b)", "frequency"))
            power = as_stored(rounding, "power", power);
        if (repeats && j > 0) power = -et_log(last * factor);
        double frequency = as_stored(rounding, "frequency", et_exp(-power));
        last = frequency;
        for (size_t t = 0; t < positions; t++) {
            double sine, cosine, theta = as_stored(rounding, "theta", (double)t * frequency);
            et_sin_cos(theta, &sine, &cosine);
            cosines[t * pairs + j] = (et_real)cosine;
            sines[t * pairs + j] = (et_real)sine;
        }
    }
    et_round(rounding, ET_ACCUMULATOR, "cosine", positions * pairs, cosines);
    et_round(rounding, ET_ACCUMULATOR, "sine", positions * pairs, sines);
    return ET_OK;
}

/* ---- the rotation ---- */

static et_status check(const et_rope *f, const et_real *x, et_error *error)
{
    if (f->width % 2 != 0 || f->sequence == 0 || (f->width > 0 && f->heads > f->stride / f->width))
        return et_fail(error, ET_EINVAL,
                       "et_rope: width %zu, %zu heads, stride %zu, sequence %zu; an even width, a "
                       "stride of at least all heads, a sequence of at least 1",
                       f->width, f->heads, f->stride, f->sequence);
    const et_array arrays[] = {{"x", x, f->tokens, f->stride},
                               {"cosines", f->cosines, f->sequence, f->width / 2},
                               {"sines", f->sines, f->sequence, f->width / 2}};
    return ET_CHECK_ARRAYS("et_rope", f->rounding, arrays, error);
}

/* a c + b s, as a kernel's arithmetic has it. */
static et_real turn(const et_grid *g, et_real a, et_real c, et_real b, et_real s)
{
    double p = et_grid_sum(g, (double)a * (double)c), q = et_grid_sum(g, (double)b * (double)s);
    return (et_real)et_grid_sum(g, p + q);
}

/* The pairs of a head by -theta, or by theta if `back`; u1 and u2 are halves of one row. */
ET_LANES static void turn_exactly(size_t pairs, bool back, const et_real *cosine,
                                  const et_real *sine, et_real *u1, et_real *u2)
{
#pragma omp simd
    for (size_t j = 0; j < pairs; j++) {
        et_real a = u1[j], b = u2[j], s = back ? -sine[j] : sine[j];
        u1[j] = a * cosine[j] + b * s;
        u2[j] = b * cosine[j] + -a * s;
    }
}

static void turn_head(const et_grid *g, size_t pairs, bool back, const et_real *cosine,
                      const et_real *sine, et_real *u1, et_real *u2)
{
    if (g == NULL) {
        turn_exactly(pairs, back, cosine, sine, u1, u2);
        return;
    }
    for (size_t j = 0; j < pairs; j++) {
        et_real a = u1[j], b = u2[j], s = back ? -sine[j] : sine[j];
        u1[j] = turn(g, a, cosine[j], b, s);
        u2[j] = turn(g, b, cosine[j], -a, s);
    }
}

/* Every pair by -theta, or by theta if `back`. */
static void rotate(const et_rope *f, bool back, const char *site, et_real *x)
{
    size_t pairs = f->width / 2;
    et_grid room;
    const et_grid *g = et_grid_in(&room, f->rounding, et_sum_place(f->rounding), site);
#pragma omp parallel for if (et_worth_threads(f->tokens * f->heads * f->width))
    for (size_t t = 0; t < f->tokens; t++) {
        const et_real *cosine = f->cosines + t % f->sequence * pairs;
        const et_real *sine = f->sines + t % f->sequence * pairs;
        for (size_t head = 0; head < f->heads; head++) {
            et_real *u1 = x + t * f->stride + head * f->width;
            turn_head(g, pairs, back, cosine, sine, u1, u1 + pairs);
        }
        if (f->rounding != NULL)
            et_round(f->rounding, ET_INTERMEDIATES, site, f->heads * f->width, x + t * f->stride);
    }
}

et_status et_rope_forward(const et_rope *f, et_real *x, et_error *error)
{
    ET_ARITHMETIC;
    et_status status = check(f, x, error);
    if (status == ET_OK) rotate(f, false, "rope", x);
    return status;
}

et_status et_rope_backward(const et_rope *f, et_real *dx, et_error *error)
{
    ET_ARITHMETIC;
    et_status status = check(f, dx, error);
    if (status == ET_OK) rotate(f, true, "drope", dx);
    return status;
}
