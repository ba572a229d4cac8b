/* twins.h: what errs alike: tokens with the same input, or a parallel one; hidden units with the same
 * weights. Internal.
 *
 * Tokens with the same input make the same rounding errors, which then add up instead of averaging out
 * (ffn.c). Real text has them: a line that is repeated is a row that is repeated.
 */
#ifndef ET_TWINS_H
#define ET_TWINS_H

#include "etref/real.h"
#include "etref/status.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct et_token_twins {
    int32_t *input, *both;   /* [N] the first token with the same x; with the same x and dy */
    int32_t *inputs, *boths; /* [N] how many such tokens there are, this one included */
    size_t groups;           /* different inputs; N if there are no twins */
} et_token_twins;

/* x, dy [N,d]; -0 equals +0. ET_ENOMEM. */
et_status et_find_twins(et_token_twins *twins, size_t N, size_t d, const et_real *x,
                        const et_real *dy, et_error *error);
void et_free_twins(et_token_twins *twins); /* accepts zeros */

/* How many directions x [N,d] has: 1 if all rows are parallel, at most min(N, d). It is sum x^2 over the
 * largest eigenvalue of x'x. A weight's rounding errs by the same vector for all tokens, so that x_t dW
 * errs for N tokens in so many ways only. ET_ENOMEM. */
et_status et_find_directions(double *directions, size_t N, size_t d, const et_real *x,
                             et_error *error);

/* Hidden units with the same row of W_up (an expert widened by repeating them, a constant matrix): they have
 * the same H, the same error in A, and the same addends in sums over units. */
typedef struct et_copies {
    et_real
        *of; /* [h] how many units are like this one, itself included; NULL: there are no copies */
    double mean; /* of these numbers; 1 if there are none. h/mean: as many err independently */
} et_copies;

/* up [h,d]. Rows of zeros, which make no errors, have no copies. ET_ENOMEM. */
et_status et_find_copies(et_copies *copies, size_t h, size_t d, const et_real *up, et_error *error);
void et_free_copies(et_copies *copies); /* accepts zeros */

#endif
