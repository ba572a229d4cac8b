/* plain_product.h: C (+)= op(A) op(B) by plain loops, each sum in the order of k. Internal.
 *
 *     for i, j:   c = C_ij or 0;   for k = 0, 1, ... K-1:   c = c + a_ik * b_kj;   C_ij = c
 *
 * in the arithmetic of float, of double, or of a format of fewer bits, which rounds each product and
 * each partial sum. No bit depends on threads or on how the loops are cut.
 */
#ifndef ET_PLAIN_PRODUCT_H
#define ET_PLAIN_PRODUCT_H

#include "ref/base/grid.h"

#include <stdbool.h>
#include <stddef.h>

/* A row-major matrix X, `stride` numbers from one row to the next; op(X) is X or its transpose. */
typedef struct et_floats {
    const float *at;
    size_t stride;
    bool transposed;
} et_floats;

typedef struct et_doubles {
    const double *at;
    size_t stride;
    bool transposed;
} et_doubles;

/* op(A) [M,K], op(B) [K,N] in; C [M,N] added to if `accumulate`, else out. M, N, K > 0. */
void et_blocked_float(size_t M, size_t N, size_t K, et_floats A, et_floats B, bool accumulate,
                      float *C, size_t stride);
void et_blocked_double(size_t M, size_t N, size_t K, et_doubles A, et_doubles B, bool accumulate,
                       double *C, size_t stride);
/* c = c + a_ik * b_kj without a rounding of the product, as processors with fused multiply-add have it. */
void et_blocked_fused_float(size_t M, size_t N, size_t K, et_floats A, et_floats B, bool accumulate,
                            float *C, size_t stride);
void et_blocked_fused_double(size_t M, size_t N, size_t K, et_doubles A, et_doubles B,
                             bool accumulate, double *C, size_t stride);
/* Each product is rounded to the first grid, each partial sum to the second, by et_grid_sum. */
void et_blocked_rounded(const et_grid grids[2], size_t M, size_t N, size_t K, et_doubles A,
                        et_doubles B, bool accumulate, double *C, size_t stride);

#endif
