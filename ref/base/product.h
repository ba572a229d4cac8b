/* product.h: a matrix product as a layer asks for it. Internal.
 *
 *     C (+)= op(A) op(B)      in a golden: et_matmul, nothing else
 *                             with a rounding: of operands as a kernel takes them, in the format of
 *                             ET_OPERANDS; an intermediate that is as coarse stays as it is
 */
#ifndef ET_PRODUCT_H
#define ET_PRODUCT_H

#include "etref/matmul.h"
#include "etref/rounding.h"

/* An operand, and the name of the place where a kernel rounds it. */
typedef struct et_operand {
    et_matrix at;
    const char *site;
} et_operand;

/* As et_matmul. ET_ENOMEM: no room for rounded operands; never where rounding is NULL. */
et_status et_product(const et_rounding *rounding, et_engine engine, size_t M, size_t N, size_t K,
                     et_operand A, et_operand B, bool accumulate, et_real *C, size_t c_stride,
                     et_error *error);

#endif
