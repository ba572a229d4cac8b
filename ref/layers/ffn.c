/* ffn.c: the feed-forward layer, dense or as one expert. See etref/ffn.h.
 *
 *     H = x W_up'     (V = x W_gate')     A = a(H), or silu(V) H     f(x) = A W_down'
 *
 * with the biases that there are: H, V and f(x) are products + b. Left out: any fusion of the steps; each product and each
 * element-by-element step stands alone, as a reader would write them down.
 */
#include "etref/ffn.h"
#include "ref/base/float_environment.h"
#include "ref/base/memory.h"
#include "ref/base/threads.h"
#include "ref/base/product.h"
#include "ref/base/sum.h"
#include "ref/layers/activation.h"
#include "ref/layers/layer_arguments.h"

#include <stdlib.h>

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

/* X [m,columns] += b in every row: in the accumulator, or after X has been stored, as kernels do that do not fuse; b as it
 * came, or rounded as the weights are. */
static void add_bias(const et_rounding *r, const char *site, size_t m, size_t columns,
                     const et_real *b, et_real *X)
{
    et_grid room, of_weights;
    const et_grid *sum = et_grid_in(&room, r, ET_ACCUMULATOR, site), *input = NULL;
    if (b == NULL) return;
    if (et_goes_other_way(r, "rounded", site)) {
        of_weights = et_grid_of_input(r, ET_OPERANDS, site);
        input = &of_weights;
    }
    if (et_goes_other_way(r, "stored", site)) et_round(r, ET_INTERMEDIATES, site, m * columns, X);
    ET_BY_THREADS(et_worth_threads(m * columns),
                  for (size_t i = 0; i < m * columns; i++) X[i] =
                      (et_real)et_plus(sum, X[i], et_rounded(input, b[i % columns])));
}

/* H, V and A from x, which is the operand of that name: the order of a sum goes by it. */
static et_status hidden_forward(const et_ffn *f, const et_ffn_rows *rows, const char *x,
                                et_error *error)
{
    const et_rounding *r = f->rounding;
    size_t m = rows->m, d = f->d, h = f->h;
    /* H = x W_up' */
    et_status status = et_product(r, f->engine, m, h, d, input(x, et_rows(rows->x, d)),
                                  weight("W_up", et_transposed(f->up, d)), false, rows->H, h, error);
    if (status != ET_OK) return status;
    add_bias(r, "b_up", m, h, f->b_up, rows->H);
    et_round(r, ET_INTERMEDIATES, "H", m * h, rows->H);
    /* V = x W_gate' */
    if (f->activation == ET_SWIGLU) {
        status = et_product(r, f->engine, m, h, d, input(x, et_rows(rows->x, d)),
                            weight("W_gate", et_transposed(f->gating, d)), false, rows->V, h, error);
        if (status != ET_OK) return status;
        add_bias(r, "b_gate", m, h, f->b_gate, rows->V);
        et_round(r, ET_INTERMEDIATES, "V", m * h, rows->V);
    }
    /* A = relu(H)^2, or as the activation says */
    et_activate(f, m * h, rows->H, rows->V, rows->A);
    et_round(r, ET_INTERMEDIATES, "A", m * h, rows->A);
    return ET_OK;
}

et_status et_ffn_forward(const et_ffn *f, const et_ffn_rows *rows, et_error *error)
{
    ET_ARITHMETIC;
    et_status status = et_ffn_check_forward(f, rows, error);
    if (status == ET_OK) status = hidden_forward(f, rows, "x", error);
    if (status != ET_OK) return status;
    const et_rounding *r = f->rounding;
    size_t m = rows->m, d = f->d, h = f->h;
    et_real *A = rows->A, *out = rows->out;
    /* f = A W_down' */
    status = et_product(r, f->engine, m, d, h, stored("A", et_rows(A, h)),
                        weight("W_down", et_transposed(f->down, h)), false, out, d, error);
    if (status != ET_OK) return status;
    add_bias(r, "b_down", m, d, f->b_down, out);
    et_round(r, ET_INTERMEDIATES, "f", m * d, out);
    return status;
}

/* With L a scalar and dO = dL/df given, the chain rule runs the three lines above from the last:
 *
 *   f_tc = sum_j A_tj W_down_cj     so   dL/dA_tj = sum_c dO_tc W_down_cj         dA = dO W_down
 *                                   and  dL/dW_down_cj = sum_t dO_tc A_tj         dW_down += dO' A
 *   A_tj = relu(H_tj)^2             so   dL/dH_tj = dA_tj * 2 relu(H_tj), because d(v^2)/dv = 2v
 *                                        where v > 0 and the function is constant elsewhere; the
 *                                        two agree (0) at v = 0, so there is nothing to choose
 *                                        (the other activations: activation.c)
 *   H_tj = sum_c x_tc W_up_jc       so   dL/dW_up_jc = sum_t dH_tj x_tc           dW_up += dH' x
 *                                   and  dL/dx_tc = sum_j dH_tj W_up_jc           dx = dH W_up
 *
 * A bias is added to every row: dL/db_j = sum_t dL/dP_tj, with P = H, V or f    db += 1' dP
 */

/* dW += dP' x for dP = dH or dV */
static et_status projection_backward(const et_ffn *f, const et_ffn_rows *rows, const char *site,
                                     const et_real *dP, et_real *dW, et_error *error)
{
    if (dW == NULL) return ET_OK;
    return et_product(f->rounding, f->engine, f->h, f->d, rows->m,
                      stored(site, et_transposed(dP, f->h)), input("x", et_rows(rows->x, f->d)),
                      true, dW, f->d, error);
}

/* dx (+)= dP W for dP = dH or dV */
static et_status input_backward(const et_ffn *f, const et_ffn_rows *rows, et_operand dP,
                                et_operand W, bool accumulate, et_real *dx, et_error *error)
{
    return et_product(f->rounding, f->engine, rows->m, f->d, f->h, dP, W, accumulate, dx, f->d,
                      error);
}

/* dx (+)= dH W_up + dV W_gate. A kernel adds two products, or takes one of [dH, dV] and both matrices. */
static et_status gated_input_backward(const et_ffn *f, const et_ffn_rows *rows, et_error *error)
{
    const et_rounding *r = f->rounding;
    size_t count = rows->m * f->d;
    const et_operand dV = stored("dV", et_rows(rows->dV, f->h)),
                     W = weight("W_gate", et_rows(f->gating, f->d));
    void *room;
    if (!et_rounds(r) || et_goes_other_way(r, "dx", "one product"))
        return input_backward(f, rows, dV, W, true, rows->dx, error);
    et_status status = et_allocate(&room, count, sizeof(et_real), "a share of dx", error);
    if (status != ET_OK) return status;
    et_round(r, ET_SHARES, "share", count, rows->dx);
    status = input_backward(f, rows, dV, W, false, room, error);
    et_add_rows(r, ET_SHARES, rows->m, f->d, NULL, room, NULL, rows->dx);
    free(room);
    return status;
}

static et_status rows_backward(const et_ffn *f, const et_ffn_rows *rows, et_real *dup,
                               et_real *ddown, et_real *dgating, et_error *error)
{
    const et_rounding *r = f->rounding;
    size_t m = rows->m, d = f->d, h = f->h;
    const et_real *H = rows->H, *A = rows->A, *dO = rows->dO;
    et_real *dA = rows->dA, *dH = rows->dH;
    /* dA = dO W_down */
    et_status status = et_product(r, f->engine, m, h, d, stored("dO", et_rows(dO, d)),
                        weight("W_down", et_rows(f->down, h)), false, dA, h, error);
    if (status != ET_OK) return status;
    et_round(r, ET_INTERMEDIATES, "dA", m * h, dA);
    /* dW_down += dO' A */
    if (ddown)
        status = et_product(r, f->engine, d, h, m, stored("dO", et_transposed(dO, d)),
                            stored("A", et_rows(A, h)), true, ddown, h, error);
    if (status != ET_OK) return status;
    /* dH = dA * 2 relu(H), and dV */
    et_activate_backward(f, m * h, H, rows->V, dA, dH, rows->dV);
    et_round(r, ET_INTERMEDIATES, "dH", m * h, dH);
    if (f->activation == ET_SWIGLU) et_round(r, ET_INTERMEDIATES, "dV", m * h, rows->dV);
    /* dW_up += dH' x */
    status = projection_backward(f, rows, "dH", dH, dup, error);
    if (status == ET_OK && f->activation == ET_SWIGLU)
        status = projection_backward(f, rows, "dV", rows->dV, dgating, error);
    if (status != ET_OK) return status;
    /* dx (+)= dH W_up */
    status = input_backward(f, rows, stored("dH", et_rows(dH, h)),
                            weight("W_up", et_rows(f->up, d)), rows->accumulate_dx, rows->dx, error);
    return status == ET_OK && f->activation == ET_SWIGLU ? gated_input_backward(f, rows, error)
                                                         : status;
}

/* A kernel that keeps no H computes it again for the way back, in an order of its own. Where H is stored in as many bits as
 * it is summed in, that is another H. */
static bool recomputes(const et_ffn *f, const et_ffn_rows *rows)
{
    const et_rounding *r = f->rounding;
    return rows->m > 0 && rows->x && et_goes_other_way(r, "recomputed", "H") &&
           et_place_bits(r->profile, ET_INTERMEDIATES) >= et_place_bits(r->profile, ET_ACCUMULATOR);
}

/* H, V and A take the place of those that are there. The caller frees *room, also on failure. */
static et_status recompute(const et_ffn *f, et_ffn_rows *rows, et_real **room, et_error *error)
{
    size_t count = rows->m * f->h;
    void *taken;
    et_status status = et_allocate(&taken, 3 * count, sizeof(et_real), "recomputed rows", error);
    if (status != ET_OK) return status;
    *room = taken;
    rows->H = *room;
    rows->A = *room + count;
    rows->V = f->activation == ET_SWIGLU ? *room + 2 * count : NULL;
    return hidden_forward(f, rows, "x again", error);
}

et_status et_ffn_backward(const et_ffn *f, const et_ffn_rows *rows, et_real *dup, et_real *ddown,
                          et_real *dgating, et_error *error)
{
    ET_ARITHMETIC;
    et_status status = et_ffn_check_backward(f, rows, dup || dgating, ddown != NULL, error);
    if (status != ET_OK) return status;
    et_real *room = NULL;
    et_ffn_rows again = *rows;
    if (recomputes(f, rows)) status = recompute(f, &again, &room, error);
    if (status == ET_OK) status = rows_backward(f, &again, dup, ddown, dgating, error);
    free(room);
    return status;
}
/* db += 1' dP for dP [m,columns]; either NULL: nothing to do. */
static et_status sum_rows(const et_ffn *f, size_t m, size_t columns, const char *site,
                          const et_real *dP, const et_real *ones, et_real *db, et_error *error)
{
    if (dP == NULL || db == NULL) return ET_OK;
    return et_product(f->rounding, f->engine, columns, 1, m,
                      stored(site, et_transposed(dP, columns)), input("1", et_rows(ones, 1)), true,
                      db, 1, error);
}

et_status et_ffn_bias_backward(const et_ffn *f, const et_ffn_rows *rows, et_real *db_up,
                               et_real *db_gate, et_real *db_down, et_error *error)
{
    ET_ARITHMETIC;
    void *room = NULL;
    size_t m = rows->m;
    et_status status = et_ffn_check(f, m, error);
    if (status != ET_OK || !(f->b_up || f->b_gate || f->b_down)) return status;
    status = et_allocate(&room, m, sizeof(et_real), "ones", error);
    et_real *ones = room;
    for (size_t t = 0; status == ET_OK && t < m; t++) ones[t] = 1;
    if (status == ET_OK && f->b_up)
        status = sum_rows(f, m, f->h, "dH", rows->dH, ones, db_up, error);
    if (status == ET_OK && f->b_gate)
        status = sum_rows(f, m, f->h, "dV", rows->dV, ones, db_gate, error);
    if (status == ET_OK && f->b_down)
        status = sum_rows(f, m, f->d, "dO", rows->dO, ones, db_down, error);
    free(ones);
    return status;
}
