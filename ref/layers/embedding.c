/* embedding.c: a row of a table for each token, forward and backward. See etref/embedding.h.
 *
 *     x_tc = wte[token_t, c]
 *
 * Backward. x_tc depends on one number of the table, with derivative 1; so every number's gradient
 * is the sum of dx_tc over the tokens that took it. They are added in the order of t. Left out:
 * positions (rope.c has them) and a table shared with the head.
 */
#include "etref/embedding.h"
#include "ref/base/float_environment.h"
#include "ref/base/sum.h"
#include "ref/layers/layer_arrays.h"

#include <string.h>

static et_status check(const et_embedding *f, const int32_t *tokens, const et_real *table,
                       const et_real *x, et_error *error)
{
    const et_array arrays[] = {
        {"tokens", tokens, f->N, 1}, {"wte", table, f->V, f->d}, {"x", x, f->N, f->d}};
    et_status status = ET_CHECK_ARRAYS("et_embedding", f->rounding, arrays, error);
    for (size_t t = 0; status == ET_OK && t < f->N; t++)
        if (tokens[t] < 0 || (size_t)tokens[t] >= f->V)
            return et_fail(error, ET_EINVAL, "et_embedding: token %zu is %d; 0 to %zu", t,
                           (int)tokens[t], f->V - 1);
    return status;
}

et_status et_embedding_forward(const et_embedding *f, const int32_t *tokens, et_real *x,
                               et_error *error)
{
    ET_ARITHMETIC;
    et_status status = check(f, tokens, f->wte, x, error);
    if (status != ET_OK) return status;
    for (size_t t = 0; t < f->N; t++)
        memcpy(x + t * f->d, f->wte + (size_t)tokens[t] * f->d, f->d * sizeof *x);
    et_round(f->rounding, ET_INTERMEDIATES, "x", f->N * f->d, x);
    return ET_OK;
}

et_status et_embedding_backward(const et_embedding *f, const int32_t *tokens, const et_real *dx,
                                et_real *dwte, et_error *error)
{
    ET_ARITHMETIC;
    et_status status = check(f, tokens, dwte, dx, error);
    if (status != ET_OK) return status;
    for (size_t t = 0; t < f->N; t++)
        et_add_rows(f->rounding, ET_ACCUMULATOR, 1, f->d, NULL, dx + t * f->d, &tokens[t], dwte);
    et_round(f->rounding, ET_OUTPUTS, "dwte", f->V * f->d, dwte);
    return ET_OK;
}
