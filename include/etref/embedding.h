/* embedding.h: a row of a table for each token.
 *
 *     x_t = wte[token_t]        dwte[token_t] += dx_t
 *
 * N tokens below V; wte, dwte [V,d]; x, dx [N,d]. */
#ifndef ETREF_EMBEDDING_H
#define ETREF_EMBEDDING_H

#include "etref/real.h"
#include "etref/rounding.h"
#include "etref/status.h"
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

typedef struct et_embedding {
    size_t N, d, V;
    const et_real *wte;
    const et_rounding *rounding; /* NULL: none */
} et_embedding;

/* tokens [N] in, x out. ET_EINVAL, and nothing is touched: a token that is not from 0 to V-1 (the
 * message says which), an array that is NULL and has elements. */
et_status et_embedding_forward(const et_embedding *f, const int32_t *tokens, et_real *x,
                               et_error *error);

/* dwte accumulated, token after token. A row without tokens stays as it is. Errors as above. */
et_status et_embedding_backward(const et_embedding *f, const int32_t *tokens, const et_real *dx,
                                et_real *dwte, et_error *error);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
