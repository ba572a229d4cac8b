/* cross_entropy.c: output head, softcap and cross-entropy, forward and backward. See
 * etref/cross_entropy.h.
 *
 *     z = x head'       l = cap tanh(z / cap)       loss_t = log sum_v e^l_tv - l_t,target
 *
 * Backward. With p = softmax(l), dlse_t/dl_tv = p_tv; and d tanh(y)/dy = 1 - tanh(y)^2. So
 *
 *     dl_tv = scale (p_tv - [v = target])
 *     dz_tv = dl_tv (1 - tanh(z_tv / cap)^2)
 *     dx = dz head                     dhead += dz' x
 *
 * p - 1 of the target cancels where p is close to 1, as any kernel's does: an error of u against a
 * gradient that is small beside 1. The logits are computed a second time, block by block, instead
 * of being kept: a third more of the head's arithmetic, for V times less memory.
 *
 * Left out: label smoothing, ignored targets.
 */
#include "etref/cross_entropy.h"
#include "etref/elementary.h"
#include "ref/base/float_environment.h"
#include "ref/base/exponential.h"
#include "ref/base/grid.h"
#include "ref/base/lanes.h"
#include "ref/base/threads.h"
#include "ref/base/product.h"
#include "ref/base/sum.h"
#include "ref/layers/layer_arrays.h"

#include <string.h>

enum { TOKENS = 64 }; /* of which the logits are there at a time */

size_t et_cross_entropy_room(const et_cross_entropy *f)
{
    return 2 * (f->N < TOKENS ? f->N : TOKENS) * f->V;
}

/* ---- tanh ----
 *
 * tanh x = -m / (2 + m) for x >= 0, m = e^(-2x) - 1, which lies in (-1, 0]. Where 2x <= ln 2 / 2
 * the exponential's series gives m itself, to 1 ulp: y + y^2 P(y). Beyond, e^y - 1 is exact but for
 * one rounding, and e^y < 0.71, so its error of less than 0.4 u weighs at most 2.5 times as much in
 * m > 0.29. Two more roundings follow, of the sum and of the quotient; m in numerator and
 * denominator partly cancel. */
static inline double hyperbolic_tangent(double x)
{
    double y = -2 * fabs(x);
    double near = y + y * y * exponential_series(y), far = exponential(y) - 1;
    double m = y >= -0.34 ? near : far; /* both are there: a loop of many has no branch */
    return copysign(-m / (2 + m), x);
}

double et_tanh(double x)
{
    return hyperbolic_tangent(x);
}

/* 1 - tanh(x)^2 = 4 e^-2|x| / (1 + e^-2|x|)^2: the product of 1 - tanh and 1 + tanh, free of
 * cancellation. */
static inline double tanh_slope(double x)
{
    double e = exponential(-2 * fabs(x));
    return 4 * e / ((1 + e) * (1 + e));
}

/* ---- one block ---- */

static et_status check(const et_cross_entropy *f, const et_real *x, const int32_t *targets,
                       const et_real *lse, const et_real *room, et_error *error)
{
    const et_array arrays[] = {{"x", x, f->N, f->d},
                               {"head", f->head, f->V, f->d},
                               {"lse", lse, targets ? f->N : 0, 1},
                               {"room", room, et_cross_entropy_room(f), 1}};
    et_status status = et_model_engine_check("et_cross_entropy", f->engine, error);
    if (status == ET_OK && !(f->cap >= 0))
        return et_fail(error, ET_EINVAL, "et_cross_entropy: cap = %g; at least 0", f->cap);
    if (status == ET_OK) status = ET_CHECK_ARRAYS("et_cross_entropy", f->rounding, arrays, error);
    for (size_t t = 0; status == ET_OK && targets && t < f->N; t++)
        if (targets[t] < 0 || (size_t)targets[t] >= f->V)
            return et_fail(error, ET_EINVAL, "et_cross_entropy: target %zu is %d; 0 to %zu", t,
                           (int)targets[t], f->V - 1);
    return status;
}

static size_t block_from(const et_cross_entropy *f, size_t t)
{
    return f->N - t < TOKENS ? f->N - t : TOKENS;
}

/* z [m,V] of the m tokens from x on. */
static et_status scores(const et_cross_entropy *f, size_t m, const et_real *x, et_real *z,
                        et_error *error)
{
    const et_operand rows = {et_rows(x, f->d), ET_ACTIVATIONS, "x", ET_INTERMEDIATES},
                     head = {et_transposed(f->head, f->d), ET_OPERANDS, "head", ET_UNSTORED};
    et_status status =
        et_product(f->rounding, f->engine, m, f->V, f->d, rows, head, false, z, f->V, error);
    et_round(f->rounding, ET_LOGITS, "z", m * f->V, z);
    return status;
}

/* How a kernel softens: its arithmetic, g NULL: ours; z (1/cap) for z/cap; the slope as 1 - tanh^2. */
typedef struct softening {
    et_real cap;
    et_grid room;
    const et_grid *g;
    bool inverts, from_square;
} softening;

static void softening_of(softening *s, const et_cross_entropy *f)
{
    const et_rounding *r = f->rounding;
    s->cap = (et_real)f->cap;
    s->g = et_grid_in(&s->room, r, et_sum_place(r), "tanh");
    s->inverts = et_goes_other_way(r, "z (1/cap)", "tanh");
    s->from_square = et_goes_other_way(r, "1 - tanh^2", "tanh");
}

static double over_cap(const softening *s, et_real z)
{
    if (s->inverts) return et_times(s->g, z, et_over(s->g, 1, s->cap));
    return et_rounded(s->g, (double)(z / s->cap));
}

/* tanh(z / cap); of a kernel's library off by a unit in the last place, where it is not 1 to the last bit. */
static double softened(const softening *s, et_real z)
{
    const et_grid *g = s->g;
    double y = et_tanh(over_cap(s, z));
    if (g == NULL) return y;
    double unit = ldexp(1, g->drop - 53),
           off = 1 - fabs(y) < unit / 2 ? 0 : unit * et_chance_of(g, y);
    return et_rounded(g, y + y * off);
}

/* Its slope, 1 - tanh^2: by the formula above, or as many kernels have it, from what tanh has been rounded to. */
static double softened_slope(const softening *s, et_real z)
{
    if (!s->from_square) return tanh_slope(over_cap(s, z));
    double y = softened(s, z);
    return et_rounded(s->g, 1 - et_rounded(s->g, y * y));
}

/* Rows of ours and of a kernel; to may be z. */
ET_LANES static void soften_exactly(size_t count, et_real cap, const et_real *z, et_real *to)
{
#pragma omp simd
    for (size_t i = 0; i < count; i++)
        to[i] = cap * (et_real)hyperbolic_tangent((double)(z[i] / cap));
}

static void soften_row(const softening *s, size_t count, const et_real *z, et_real *to)
{
    if (s->cap == 0)
        memmove(to, z, count * sizeof *z);
    else if (s->g == NULL)
        soften_exactly(count, s->cap, z, to);
    else
        for (size_t i = 0; i < count; i++) to[i] = s->cap * (et_real)softened(s, z[i]);
}

/* l from z; to may be z. */
static void soften(const et_cross_entropy *f, size_t m, const et_real *z, et_real *to)
{
    softening s;
    size_t V = f->V;
    softening_of(&s, f);
#pragma omp parallel for if (et_worth_threads(m * V))
    for (size_t t = 0; t < m; t++) soften_row(&s, V, z + t * V, to + t * V);
    et_round(f->rounding, ET_LOGITS, "l", m * f->V, to);
}

/* log sum_v e^l_v. The largest is taken out first: the same value, and no overflow. e [V] scratch. */
static et_real log_sum(const et_cross_entropy *f, const et_grid *g, const et_real *l, et_real *e)
{
    et_real largest = et_largest(f->V, l);
    et_exponentials(g, f->V, largest, l, e);
    et_real sum = et_sum(f->rounding, ET_GATE_ARITHMETIC, "softmax", 0, f->V, 1, e, NULL);
    return largest + (et_real)et_rounded(g, et_log((double)sum));
}

et_status et_cross_entropy_forward(const et_cross_entropy *f, const et_real *x,
                                   const int32_t *targets, et_real *loss, et_real *lse,
                                   et_real *logits, et_real *room, et_error *error)
{
    ET_ARITHMETIC;
    const et_array arrays[] = {{"loss", loss, targets ? f->N : 0, 1}};
    et_status status = check(f, x, targets, lse, room, error);
    if (status == ET_OK) status = ET_CHECK_ARRAYS("et_cross_entropy", NULL, arrays, error);
    size_t V = f->V;
    et_grid grid;
    const et_grid *g = et_grid_in(&grid, f->rounding, et_sum_place(f->rounding), "softmax");
    for (size_t from = 0; status == ET_OK && from < f->N; from += TOKENS) {
        size_t m = block_from(f, from);
        et_real *l = room, *e = room + m * V;
        if ((status = scores(f, m, x + from * f->d, l, error))) return status;
        soften(f, m, l, l);
        if (logits) memcpy(logits + from * V, l, m * V * sizeof *l);
#pragma omp parallel for if (et_worth_threads(m * V))
        for (size_t t = 0; t < m; t++) {
            if (!targets) continue;
            lse[from + t] = log_sum(f, g, l + t * V, e + t * V);
            loss[from + t] = lse[from + t] - l[t * V + (size_t)targets[from + t]];
        }
    }
    if (status == ET_OK && targets) {
        et_round(f->rounding, ET_ACCUMULATOR, "lse", f->N, lse);
        et_round(f->rounding, ET_ACCUMULATOR, "loss", f->N, loss);
    }
    return status;
}

/* dz of a row from dl and z, in z's place. */
ET_LANES static void unsoften_exactly(size_t count, et_real cap, const et_real *dl, et_real *z)
{
#pragma omp simd
    for (size_t i = 0; i < count; i++)
        z[i] = dl[i] * (et_real)tanh_slope((double)(z[i] / cap));
}

static void unsoften_row(const softening *s, size_t count, const et_real *dl, et_real *z)
{
    if (s->cap == 0)
        memcpy(z, dl, count * sizeof *z);
    else if (s->g == NULL && !s->from_square)
        unsoften_exactly(count, s->cap, dl, z);
    else
        for (size_t i = 0; i < count; i++) z[i] = dl[i] * (et_real)softened_slope(s, z[i]);
}

/* dz from z and l, in z's place; l becomes dl. */
static void logits_backward(const et_cross_entropy *f, size_t m, const int32_t *targets,
                            const et_real *lse, double scale, et_real *l, et_real *z)
{
    size_t V = f->V;
    et_grid room;
    const et_grid *q = et_grid_in(&room, f->rounding, et_sum_place(f->rounding), "softmax");
    softening s;
    softening_of(&s, f);
#pragma omp parallel for if (et_worth_threads(m * V))
    for (size_t t = 0; t < m; t++) {
        et_real *row = l + t * V;
        et_exponentials(q, V, lse[t], row, row);
        row[targets[t]] -= 1;
        for (size_t v = 0; v < V; v++) row[v] *= (et_real)scale;
        for (size_t v = 0; q && v < V; v++) row[v] = (et_real)et_rounded(q, (double)row[v]);
        unsoften_row(&s, V, row, z + t * V);
    }
    et_round(f->rounding, ET_LOGITS, "dz", m * V, z);
}

et_status et_cross_entropy_backward(const et_cross_entropy *f, const et_real *x,
                                    const int32_t *targets, const et_real *lse, double scale,
                                    et_real *dx, et_real *dhead, et_real *room, et_error *error)
{
    ET_ARITHMETIC;
    const et_array arrays[] = {
        {"targets", targets, f->N, 1}, {"dx", dx, f->N, f->d}, {"dhead", dhead, f->V, f->d}};
    et_status status = check(f, x, targets, lse, room, error);
    if (status == ET_OK) status = ET_CHECK_ARRAYS("et_cross_entropy", NULL, arrays, error);
    size_t V = f->V, d = f->d;
    for (size_t from = 0; status == ET_OK && from < f->N; from += TOKENS) {
        size_t m = block_from(f, from);
        et_real *z = room, *l = room + m * V;
        if ((status = scores(f, m, x + from * d, z, error))) return status;
        soften(f, m, z, l);
        logits_backward(f, m, targets + from, lse + from, scale, l, z);
        const et_operand dz = {et_rows(z, V), ET_ACTIVATIONS, "dz", ET_LOGITS},
                         turned = {et_transposed(z, V), ET_ACTIVATIONS, "dz", ET_LOGITS},
                         head = {et_rows(f->head, d), ET_OPERANDS, "head", ET_UNSTORED},
                         rows = {et_rows(x + from * d, d), ET_ACTIVATIONS, "x", ET_INTERMEDIATES};
        /* dx = dz head        dhead += dz' x */
        status =
            et_product(f->rounding, f->engine, m, d, V, dz, head, false, dx + from * d, d, error);
        if (status == ET_OK)
            status =
                et_product(f->rounding, f->engine, V, d, m, turned, rows, true, dhead, d, error);
    }
    if (status != ET_OK) return status;
    et_round(f->rounding, ET_INTERMEDIATES, "dx", f->N * d, dx);
    et_round(f->rounding, ET_OUTPUTS, "dhead", V * d, dhead);
    return ET_OK;
}
