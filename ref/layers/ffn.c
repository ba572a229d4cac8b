/* ffn.c: the feed-forward layer with squared ReLU, dense or as one expert. See etref/ffn.h.
 *
 *     H = x W_up'     A = relu(H)^2     f(x) = A W_down'
 *
 * Left out: biases (the paper has none) and any fusion of the steps; each product and each
 * element-by-element step stands alone, as a reader would write them down.
 */
#include "etref/ffn.h"
#include "ref/base/arithmetic.h"
#include "ref/base/parallel.h"
#include "ref/layers/check.h"
#include "ref/layers/ffn.h"

/* v where v > 0, and +0 elsewhere: also for -0 and for NaN, which is not above 0. Half of the elements are,
 * in no order that a processor could foresee, so nothing must branch here: the loops below become vectors,
 * in which this is a comparison and a mask. */
static et_real relu(et_real v)
{
    return v > 0 ? v : 0;
}

void et_ffn_values(const et_ffn *f, size_t m, const et_real *x, et_real *H, et_real *A,
                   et_real *out)
{
    /* H = x W_up' */
    et_matmul(f->engine, m, f->h, f->d, et_rows(x, f->d), et_transposed(f->up, f->d), false, H,
              f->h);
    /* A = relu(H)^2 */
#pragma omp parallel for if (et_worth_threads(m * f->h))
    for (size_t i = 0; i < m * f->h; i++) A[i] = relu(H[i]) * relu(H[i]);
    /* f = A W_down' */
    et_matmul(f->engine, m, f->d, f->h, et_rows(A, f->h), et_transposed(f->down, f->h), false, out,
              f->d);
}

/* With L a scalar and dO = dL/df given, the chain rule runs the three lines above from the last:
 *
 *   f_tc = sum_j A_tj W_down_cj     so   dL/dA_tj = sum_c dO_tc W_down_cj         dA = dO W_down
 *                                   and  dL/dW_down_cj = sum_t dO_tc A_tj         dW_down += dO' A
 *   A_tj = relu(H_tj)^2             so   dL/dH_tj = dA_tj * 2 relu(H_tj), because d(v^2)/dv = 2v
 *                                        where v > 0 and the function is constant elsewhere; the
 *                                        two agree (0) at v = 0, so there is nothing to choose
 *   H_tj = sum_c x_tc W_up_jc       so   dL/dW_up_jc = sum_t dH_tj x_tc           dW_up += dH' x
 *                                   and  dL/dx_tc = sum_j dH_tj W_up_jc           dx = dH W_up
 */
void et_ffn_gradients(const et_ffn *f, size_t m, const et_real *x, const et_real *H,
                      const et_real *A, const et_real *dO, et_real *dA, et_real *dH, et_real *dup,
                      et_real *ddown, bool accumulate_dx, et_real *dx)
{
    /* dA = dO W_down */
    et_matmul(f->engine, m, f->h, f->d, et_rows(dO, f->d), et_rows(f->down, f->h), false, dA, f->h);
    /* dW_down += dO' A */
    et_matmul(f->engine, f->d, f->h, m, et_transposed(dO, f->d), et_rows(A, f->h), true, ddown,
              f->h);
    /* dH = dA * 2 relu(H) */
#pragma omp parallel for if (et_worth_threads(m * f->h))
    for (size_t i = 0; i < m * f->h; i++) dH[i] = dA[i] * (2 * relu(H[i]));
    /* dW_up += dH' x */
    et_matmul(f->engine, f->h, f->d, m, et_transposed(dH, f->h), et_rows(x, f->d), true, dup, f->d);
    /* dx (+)= dH W_up */
    et_matmul(f->engine, m, f->d, f->h, et_rows(dH, f->h), et_rows(f->up, f->d), accumulate_dx, dx,
              f->d);
}

/* ---- the same for callers who bring a struct of their own ---- */

et_status et_ffn_forward(const et_ffn *f, size_t m, const et_real *x, et_real *H, et_real *A,
                         et_real *out, et_error *error)
{
    ET_ARITHMETIC;
    et_status status = et_ffn_check(f, m, error);
    if (status == ET_OK) et_ffn_values(f, m, x, H, A, out);
    return status;
}

et_status et_ffn_backward(const et_ffn *f, size_t m, const et_real *x, const et_real *H,
                          const et_real *A, const et_real *dO, et_real *dA, et_real *dH,
                          et_real *dup, et_real *ddown, bool accumulate_dx, et_real *dx,
                          et_error *error)
{
    ET_ARITHMETIC;
    et_status status = et_ffn_check(f, m, error);
    if (status == ET_OK)
        et_ffn_gradients(f, m, x, H, A, dO, dA, dH, dup, ddown, accumulate_dx, dx);
    return status;
}
