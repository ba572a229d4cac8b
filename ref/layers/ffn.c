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
#include "ref/base/product.h"
#include "ref/layers/check.h"

/* v where v > 0, and +0 elsewhere: also for -0 and for NaN, which is not above 0. Half of the elements are,
 * in no order that a processor could foresee, so nothing must branch here: the loops below become vectors,
 * in which this is a comparison and a mask. */
static et_real relu(et_real v)
{
    return v > 0 ? v : 0;
}

/* Operands without gaps between their rows: weights, x, and what the layer itself has stored. */
static et_operand weight(const char *site, et_matrix X)
{
    return (et_operand){X, ET_OPERANDS, site, ET_UNSTORED};
}

static et_operand input(const char *site, et_matrix X)
{
    return (et_operand){X, ET_ACTIVATIONS, site, ET_UNSTORED};
}

static et_operand stored(const char *site, et_matrix X)
{
    return (et_operand){X, ET_ACTIVATIONS, site, ET_INTERMEDIATES};
}

et_status et_ffn_forward(const et_ffn *f, const et_ffn_rows *rows, et_error *error)
{
    ET_ARITHMETIC;
    et_status status = et_ffn_check(f, rows->m, error);
    if (status != ET_OK) return status;
    const et_rounding *r = f->rounding;
    size_t m = rows->m, d = f->d, h = f->h;
    et_real *H = rows->H, *A = rows->A, *out = rows->out;
    /* H = x W_up' */
    status = et_product(r, f->engine, m, h, d, input("x", et_rows(rows->x, d)),
                        weight("W_up", et_transposed(f->up, d)), false, H, h, error);
    if (status != ET_OK) return status;
    et_round(r, ET_INTERMEDIATES, "H", m * h, H);
    /* A = relu(H)^2 */
    ET_BY_THREADS(et_worth_threads(m * h),
                  for (size_t i = 0; i < m * h; i++) A[i] = relu(H[i]) * relu(H[i]));
    et_round(r, ET_INTERMEDIATES, "A", m * h, A);
    /* f = A W_down' */
    status = et_product(r, f->engine, m, d, h, stored("A", et_rows(A, h)),
                        weight("W_down", et_transposed(f->down, h)), false, out, d, error);
    if (status == ET_OK) et_round(r, ET_INTERMEDIATES, "f", m * d, out);
    return status;
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
et_status et_ffn_backward(const et_ffn *f, const et_ffn_rows *rows, et_real *dup, et_real *ddown,
                          et_error *error)
{
    ET_ARITHMETIC;
    et_status status = et_ffn_check(f, rows->m, error);
    if (status != ET_OK) return status;
    const et_rounding *r = f->rounding;
    size_t m = rows->m, d = f->d, h = f->h;
    const et_real *H = rows->H, *A = rows->A, *dO = rows->dO;
    et_real *dA = rows->dA, *dH = rows->dH;
    /* dA = dO W_down */
    status = et_product(r, f->engine, m, h, d, stored("dO", et_rows(dO, d)),
                        weight("W_down", et_rows(f->down, h)), false, dA, h, error);
    if (status != ET_OK) return status;
    et_round(r, ET_INTERMEDIATES, "dA", m * h, dA);
    /* dW_down += dO' A */
    if (ddown)
        status = et_product(r, f->engine, d, h, m, stored("dO", et_transposed(dO, d)),
                            stored("A", et_rows(A, h)), true, ddown, h, error);
    if (status != ET_OK) return status;
    /* dH = dA * 2 relu(H) */
    ET_BY_THREADS(et_worth_threads(m * h),
                  for (size_t i = 0; i < m * h; i++) dH[i] = dA[i] * (2 * relu(H[i])));
    et_round(r, ET_INTERMEDIATES, "dH", m * h, dH);
    /* dW_up += dH' x */
    if (dup)
        status = et_product(r, f->engine, h, d, m, stored("dH", et_transposed(dH, h)),
                            input("x", et_rows(rows->x, d)), true, dup, d, error);
    if (status != ET_OK) return status;
    /* dx (+)= dH W_up */
    return et_product(r, f->engine, m, d, h, stored("dH", et_rows(dH, h)),
                      weight("W_up", et_rows(f->up, d)), rows->accumulate_dx, rows->dx, d, error);
}
