/* twins.h: what errs alike: tokens with the same input, or a parallel one; rows of a weight with the same
 * numbers. Internal.
 *
 * Tokens with the same input make the same rounding errors, which then add up instead of averaging out
 * (ffn_noise.c). Real text has them: a line that is repeated is a row that is repeated.
 */
#ifndef ET_TWINS_H
#define ET_TWINS_H

#include "etref/matmul.h"
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

/* first [N] = the first row of x [N,d] that equals row t, or (parallel) of which it is a multiple; and how many
 * rows differ. Multiples are found exactly among numbers of up to 26 bits; others may be taken for parallel
 * where they are so to 53 bits. ET_ENOMEM. */
et_status et_find_equal_rows(size_t N, size_t d, const et_real *x, bool parallel, int32_t *first,
                             size_t *different, et_error *error);

/* How many directions x [N,d] has: 1 if all rows are parallel, at most min(N, d). It is sum x^2 over the
 * largest eigenvalue of x'x. A weight's rounding errs by the same vector for all tokens, so that x_t dW
 * errs for N tokens in so many ways only. main [d], unless NULL: that eigenvalue's vector, of length 1. ET_ENOMEM. */
et_status et_find_directions(double *directions, size_t N, size_t d, const et_real *x,
                             et_real *main, et_error *error);

/* Rows of a weight that are the same (an expert widened by repeating its units, a constant matrix). Of W_up
 * [h,d]: hidden units with the same H, the same error in A, and the same addends in sums over units. Of W_down
 * [d,h]: outputs with the same f and the same error in it. */
typedef struct et_copies {
    et_real *of; /* [rows] how many rows are like this one, itself included; NULL: no copies */
    double mean; /* of these numbers; 1 if there are none. rows/mean: as many err independently */
} et_copies;

/* W [rows,columns]. Rows of zeros, which make no errors, have no copies. Rows of a weight mostly differ in
 * their first numbers already, so that only these are hashed, where tokens are hashed whole. ET_ENOMEM. */
et_status et_find_copies(et_copies *copies, size_t rows, size_t columns, const et_real *W,
                         et_error *error);
void et_free_copies(et_copies *copies); /* accepts zeros */

/* Weights that are not about 0 (all positive, say) have a common direction, that of their mean: an error of
 * what is multiplied with them moves all units the same way. along [rows] is what of each row lies along it, or
 * NULL if that is less than a tenth of their squares, or there are fewer than 16 rows or columns, where chance
 * makes such a direction. */
et_status et_find_common(et_real **along, size_t rows, size_t columns, et_matrix W,
                         et_error *error);

#endif
