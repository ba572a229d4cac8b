/* product.h: a matrix product as a layer asks for it. Internal.
 *
 *     C (+)= op(A) op(B)      in a golden: et_matmul, nothing else
 *                             with a rounding: as a kernel does it, of operands in their places'
 *                             formats, each sum in the accumulator's arithmetic (the router's, where
 *                             its operands are)
 *
 * The sum. Where an operand is as fine as the accumulator, the sum is one chain: each product and each
 * partial sum is rounded to the accumulator's bits, in the order that et_order_of draws. That is the
 * least accurate kernel that is honest. Where products of operands fit the accumulator, sums err far
 * less than operands did, in any order: ET_BLAS then takes OpenBLAS's product in that precision.
 *
 * A profile may cut the sum into chunks, whose sums are added in binary32; and flush what is subnormal.
 */
#ifndef ET_PRODUCT_H
#define ET_PRODUCT_H

#include "etref/matmul.h"
#include "etref/rounding.h"

/* No kernel has stored it: an input. */
enum { ET_UNSTORED = ET_ALL_PLACES };

/* An operand; the place at which a kernel rounds it (ET_OPERANDS, ET_ACTIVATIONS or ET_ROUTER_OPERANDS), and the
 * name of the site; and the place (et_place) as which a kernel has stored it. */
typedef struct et_operand {
    et_matrix at;
    et_place place;
    const char *site;
    int stored;
} et_operand;

/* Kernels split long sums among threads, and half of the replicas do: so many terms of K are added by themselves, then the
 * sums of such parts. 0: all of them one after the other. */
size_t et_terms_of_part(const et_rounding *rounding, const char *site, size_t K);

/* As et_matmul. ET_ENOMEM: no room for rounded operands; never where rounding is NULL. */
et_status et_product(const et_rounding *rounding, et_engine engine, size_t M, size_t N, size_t K,
                     et_operand A, et_operand B, bool accumulate, et_real *C, size_t c_stride,
                     et_error *error);

#endif
