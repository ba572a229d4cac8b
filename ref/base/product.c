/* product.c: a matrix product whose operands are rounded as a kernel's are. See product.h. */
#include "ref/base/product.h"
#include "ref/base/memory.h"

#include <stdlib.h>
#include <string.h>

/* A copy of the operand, whose op(X) is [rows, columns], rounded; it lies in memory as X does, without gaps. */
static et_status round_operand(const et_rounding *r, et_operand *X, size_t rows, size_t columns,
                               et_real **copy, et_error *error)
{
    size_t lines = X->at.transposed ? columns : rows, width = X->at.transposed ? rows : columns;
    void *room;
    et_status status = et_allocate(&room, lines * width, sizeof(et_real), "operands", error);
    if (status != ET_OK) return status;
    *copy = room;
    for (size_t i = 0; i < lines; i++)
        memcpy(*copy + i * width, X->at.at + i * X->at.stride, width * sizeof(et_real));
    et_round(r, ET_OPERANDS, X->site, lines * width, *copy);
    X->at.at = *copy;
    X->at.stride = width;
    return ET_OK;
}

et_status et_product(const et_rounding *rounding, et_engine engine, size_t M, size_t N, size_t K,
                     et_operand A, et_operand B, bool accumulate, et_real *C, size_t c_stride,
                     et_error *error)
{
    et_real *a = NULL, *b = NULL;
    et_status status = ET_OK;
    if (et_rounds(rounding)) {
        status = round_operand(rounding, &A, M, K, &a, error);
        if (status == ET_OK) status = round_operand(rounding, &B, K, N, &b, error);
    }
    if (status == ET_OK) et_matmul(engine, M, N, K, A.at, B.at, accumulate, C, c_stride);
    free(a);
    free(b);
    return status;
}
