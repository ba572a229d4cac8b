/* rmsnorm.c: root-mean-square normalisation, forward and backward. See etref/rmsnorm.h.
 *
 *     s = 1 / sqrt(mean(v^2) + eps)          y_i = v_i s
 *
 * Backward. s depends on every component: ds/dv_j = -s^3 v_j / w, w the width. So
 *
 *     dL/dv_j = sum_i dy_i (s [i = j] + v_i ds/dv_j) = s dy_j - (s^3 / w) v_j sum_i dy_i v_i
 *
 * and with v = y / s
 *
 *     dv_j = s (dy_j - y_j D),     D = (1/w) sum_i dy_i y_i,
 *
 * for any eps: y is what the forward pass gave, and need not have mean square 1. The input itself
 * is not needed. Each sum runs in index order; a replica draws another (sum.h).
 *
 * Left out: gains and biases (the model has none) and the mean, which LayerNorm subtracts.
 */
#include "etref/rmsnorm.h"
#include "ref/base/float_environment.h"
#include "ref/base/grid.h"
#include "ref/base/threads.h"
#include "ref/base/sum.h"
#include "ref/layers/layer_arrays.h"

#include <math.h> /* sqrt: correctly rounded on every IEEE-754 machine */

enum { TOKENS = 8 }; /* whose sums are taken side by side */

static size_t token_blocks(const et_rmsnorm *f)
{
    return (f->tokens + TOKENS - 1) / TOKENS;
}

/* Of the block that begins at token t. */
static size_t tokens_of(const et_rmsnorm *f, size_t t)
{
    return f->tokens - t < TOKENS ? f->tokens - t : TOKENS;
}

/* From the first number of the first token to the last one's, as one row. */
static size_t extent(const et_rmsnorm *f)
{
    return f->tokens == 0 ? 0 : (f->tokens - 1) * f->stride + f->heads * f->width;
}

static et_status check(const et_rmsnorm *f, const et_real *in, const et_real *out,
                       const et_real *scale, et_error *error)
{
    if (f->stride < f->heads * f->width)
        return et_fail(error, ET_EINVAL, "et_rmsnorm: stride = %zu; %zu heads of %zu need more",
                       f->stride, f->heads, f->width);
    if (!(f->eps > 0)) return et_fail(error, ET_EINVAL, "et_rmsnorm: eps = %g; above 0", f->eps);
    const et_array arrays[] = {{"rows", in, f->tokens, f->stride},
                               {"rows", out, f->tokens, f->stride},
                               {"scale", scale, f->tokens, f->heads}};
    return ET_CHECK_ARRAYS("et_rmsnorm", f->rounding, arrays, error);
}

/* What a kernel stores: each token's vectors, and nothing between them. */
static void store(const et_rmsnorm *f, const char *site, et_real *rows)
{
    if (f->rounding == NULL) return;
    for (size_t t = 0; t < f->tokens; t++)
        et_round(f->rounding, ET_INTERMEDIATES, site, f->heads * f->width, rows + t * f->stride);
}

/* s = 1 / sqrt(mean(v^2) + eps), in a kernel's arithmetic: q. */
static et_real scale_of(const et_rmsnorm *f, const et_grid *q, et_real squares)
{
    double mean = et_over(q, (double)squares, (double)f->width);
    return (et_real)et_over(q, 1, et_rounded(q, sqrt(et_plus(q, mean, f->eps))));
}

et_status et_rmsnorm_forward(const et_rmsnorm *f, const et_real *x, et_real *y, et_real *scale,
                             et_error *error)
{
    ET_ARITHMETIC;
    et_status status = check(f, x, y, scale, error);
    if (status != ET_OK) return status;
    const et_rounding *r = f->rounding;
    size_t w = f->width, heads = f->heads;
    et_grid grid;
    const et_grid *q = et_grid_in(&grid, r, et_sum_place(r), "scale");
#pragma omp parallel for if (et_worth_threads(extent(f)))
    for (size_t block = 0; block < token_blocks(f); block++)
        for (size_t head = 0; head < heads; head++) {
            size_t t = block * TOKENS, m = tokens_of(f, t), at = t * f->stride + head * w;
            et_real squares[TOKENS];
            et_row_sums(r, et_sum_place(r), "squares", m, f->stride, w, 0, x + at, x + at, squares);
            for (size_t j = 0; j < m; j++, at += f->stride) {
                /* y = v s */
                et_real s = scale_of(f, q, squares[j]);
                scale[(t + j) * heads + head] = s;
                for (size_t i = at; i < at + w; i++) y[i] = x[i] * s;
            }
        }
    et_round(r, ET_ACCUMULATOR, "scale", f->tokens * heads, scale);
    store(f, "norm", y);
    return ET_OK;
}

/* How a kernel has s (dy - y D): so; as the chain rule of v s does, s dy - s^2 D v, whose terms may cancel; or by the sum
 * itself, (w dy - y w D) s/w. */
typedef enum form { PLAIN, CHAIN, SUM } form;

static double rounded_share(const et_grid *q, form how, size_t w, double s, double D, double y,
                            double dy)
{
    if (how == SUM)
        return et_times(
            q, et_over(q, s, (double)w),
            et_plus(q, et_times(q, (double)w, dy), -et_times(q, y, et_rounded(q, (double)w * D))));
    if (how == PLAIN) return et_times(q, s, et_plus(q, dy, -et_times(q, y, D)));
    double carried = et_times(q, et_times(q, et_times(q, s, s), D), et_over(q, y, s));
    return et_plus(q, et_times(q, s, dy), -carried);
}

/* dx = s (dy - y D), of one vector of width w. */
static void vector_backward(const et_grid *q, form how, size_t w, et_real s, et_real D,
                            const et_real *y, const et_real *dy, bool accumulate, et_real *dx)
{
    for (size_t i = 0; q == NULL && i < w; i++) {
        et_real share = s * (dy[i] - y[i] * D);
        dx[i] = accumulate ? dx[i] + share : share;
    }
    for (size_t i = 0; q != NULL && i < w; i++) {
        double share = rounded_share(q, how, w, s, D, y[i], dy[i]);
        dx[i] = (et_real)(accumulate ? et_plus(q, dx[i], share) : share);
    }
}

et_status et_rmsnorm_backward(const et_rmsnorm *f, const et_real *y, const et_real *scale,
                              const et_real *dy, bool accumulate, et_real *dx, et_error *error)
{
    ET_ARITHMETIC;
    et_status status = check(f, y, dx, scale, error);
    if (status == ET_OK) status = check(f, dy, dx, scale, error);
    if (status != ET_OK) return status;
    const et_rounding *r = f->rounding;
    size_t w = f->width, heads = f->heads;
    et_grid grid;
    const et_grid *q = et_grid_in(&grid, r, et_sum_place(r), "dscale");
    form how = et_goes_other_way(r, "s dy", "dnorm")  ? CHAIN
               : et_goes_other_way(r, "s/w", "dnorm") ? SUM
                                                      : PLAIN;
#pragma omp parallel for if (et_worth_threads(extent(f)))
    for (size_t block = 0; block < token_blocks(f); block++)
        for (size_t head = 0; head < heads; head++) {
            size_t t = block * TOKENS, m = tokens_of(f, t), at = t * f->stride + head * w;
            et_real sums[TOKENS];
            et_row_sums(r, et_sum_place(r), "D", m, f->stride, w, 0, dy + at, y + at, sums);
            for (size_t j = 0; j < m; j++, at += f->stride) {
                et_real D = (et_real)et_over(q, sums[j], (double)w);
                vector_backward(q, how, w, scale[(t + j) * heads + head], D, y + at, dy + at,
                                accumulate, dx + at);
            }
        }
    store(f, "dnorm", dx);
    return ET_OK;
}
