/* weigh_hidden.c: an expert's weight on A instead of on f(x). See weigh_hidden.h. */
#include "ref/layers/weigh_hidden.h"
#include "ref/base/memory.h"
#include "ref/base/product.h"
#include "ref/base/sum.h"

#include <stdlib.h>

bool et_weighs_hidden(const et_moe *moe)
{
    if (moe->weighs_input || moe->b_down != NULL) return false;
    return et_goes_other_way(moe->rounding, "w A", "f") && moe->rounding->mode == ET_ROUND_SOME &&
           et_place_smallest(moe->rounding->profile, ET_INTERMEDIATES) <= 0x1p-126;
}

/* to = w A [m,h], as it is stored. */
static void weigh_rows(const et_ffn *f, size_t m, const et_real *w, const et_real *A, et_real *to)
{
    for (size_t j = 0; j < m; j++)
        for (size_t c = 0; c < f->h; c++) to[j * f->h + c] = w[j] * A[j * f->h + c];
    et_round(f->rounding, ET_INTERMEDIATES, "wA", m * f->h, to);
}

static et_operand weighted_operand(et_matrix wA)
{
    return (et_operand){wA, ET_ACTIVATIONS, "wA", ET_INTERMEDIATES};
}

et_status et_weigh_hidden(const et_ffn *f, const et_ffn_rows *r, const et_real *w, et_error *error)
{
    size_t m = r->m, h = f->h, d = f->d;
    void *room;
    et_status status = et_allocate(&room, m * (h + d), sizeof(et_real), "weighted A", error);
    if (status != ET_OK) return status;
    et_real *weighted = room, *sums = weighted + m * h;
    weigh_rows(f, m, w, r->A, weighted);
    const et_operand W = {et_transposed(f->down, h), ET_OPERANDS, "W_down", ET_UNSTORED};
    status = et_product(f->rounding, f->engine, m, d, h, weighted_operand(et_rows(weighted, h)), W,
                        false, sums, d, error);
    for (size_t j = 0; j < m && status == ET_OK; j++)
        for (size_t c = 0; c < d && w[j] != 0; c++) r->out[j * d + c] = sums[j * d + c] / w[j];
    free(room);
    return status;
}

et_status et_weigh_hidden_backward(const et_ffn *f, const et_ffn_rows *r, const et_real *w,
                                   et_real *dw, et_real *ddown, et_error *error)
{
    size_t m = r->m, h = f->h, d = f->d;
    void *room;
    et_status status = et_allocate(&room, m * (h + d + 1), sizeof(et_real), "weighted A", error);
    if (status != ET_OK) return status;
    et_real *weighted = room, *dy = weighted + m * h, *dots = dy + m * d;
    status = et_dots(f->rounding, "dw", m, h, r->dA, NULL, r->A, dots, error);
    weigh_rows(f, m, w, r->A, weighted);
    for (size_t j = 0; j < m; j++) {
        if (w[j] != 0) dw[j] = dots[j] / w[j];
        for (size_t c = 0; c < d; c++) dy[j * d + c] = w[j] != 0 ? r->dO[j * d + c] / w[j] : 0;
    }
    et_round(f->rounding, ET_GATES, "dw", m, dw);
    const et_operand left = {et_transposed(dy, d), ET_ACTIVATIONS, "dy", ET_UNSTORED};
    if (ddown && status == ET_OK)
        status = et_product(f->rounding, f->engine, d, h, m, left,
                            weighted_operand(et_rows(weighted, h)), true, ddown, h, error);
    free(room);
    return status;
}
