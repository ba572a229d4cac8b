/* matmul.h: the library's matrix products, with two engines.
 *
 *     C (+)= op(A) op(B)      C [M,N], op(A) [M,K], op(B) [K,N], all row-major
 *     C = op(X) op(X)'        C [s,s], op(X) [s,K]: symmetric, half of it computed
 *
 * ET_PLAIN   loops with one fixed order: element (i,j) starts from C_ij (accumulate) or 0 and adds
 *            a_i0 b_0j, a_i1 b_1j, ... in that order, each product rounded, then each sum: the same
 *            bits on every IEEE-754 machine, compiler, optimisation level and thread count.
 * ET_BLAS    OpenBLAS, for speed. For a given thread count the same bits every time.
 *
 * Error, either engine, each element: |error| <= gamma_(K+1) (|C_ij| + sum_k |a_ik||b_kj|), with
 * gamma_m = m u / (1 - m u) and u the unit roundoff (Higham, Accuracy and Stability of Numerical
 * Algorithms, 3.5), whatever the order of summation; hence twice that between the two.
 */
#ifndef ETREF_MATMUL_H
#define ETREF_MATMUL_H

#include "etref/real.h"
#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

typedef enum et_engine { ET_PLAIN, ET_BLAS } et_engine;

/* A matrix as it lies in memory: `stride` elements from one row to the next. */
typedef struct et_matrix {
    const et_real *at;
    size_t stride;
    bool transposed; /* op(X) = X' */
} et_matrix;

/* Sizes of 0 are legal (K = 0: C is left alone or zeroed). C must not overlap A or B. Sizes above
 * INT32_MAX always take the plain engine, since OpenBLAS counts in 32 bits. ET_PLAIN takes less than
 * 64 KiB of stack. */
void et_matmul(et_engine engine, size_t M, size_t N, size_t K, et_matrix A, et_matrix B,
               bool accumulate, et_real *C, size_t c_stride);

/* C = op(X) op(X)', the Gram matrix of op(X)'s rows. Only what is on and below the diagonal is computed, then
 * mirrored: C is symmetric to the bit, and in the plain engine et_matmul's C to the bit. Sizes, overlap, error
 * and stack as above. */
void et_gram(et_engine engine, size_t s, size_t K, et_matrix X, et_real *C);

/* A sentence for the user of a program, without a full stop or a newline, where OpenBLAS multiplies with kernels of a
 * lower class than this processor can run (0.3.21 on processors newer than itself: a fifth of the speed), with the value
 * of OPENBLAS_CORETYPE that mends it: OpenBLAS reads that when it is loaded, so it must be set before the program starts.
 * NULL: there are none better. The string is constant. */
const char *et_engine_warning(void);

/* Short forms: a dense row-major matrix with `columns` columns, and its transpose. */
et_matrix et_rows(const et_real *at, size_t columns);
et_matrix et_transposed(const et_real *at, size_t columns);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
