/* product_noise.h: the variance of a matrix product's error. Internal.
 *
 *     C_ij = sum_k X_ik Y_kj,   K terms, each operand with an error of its own
 *
 *     V[C] = V[X] (Y o Y) + (X o X) V[Y] + V[X] V[Y] + acc        o: element by element
 *     acc  = a ((K/3 + 1/2) C^2 + (K/6) Q) + a Q
 *     Q    = (X o X)(Y o Y)                            a = 0.18 u^2, u = 2^-p of the accumulator
 *
 * acc, the error of summing K terms in order: taken in any order, the m-th partial sum has mean
 * (m/K) C and variance (m/K)(1 - m/K) Q. Rounding it costs 0.18 u^2 times its square on the average;
 * (m/K)^2 adds up to K/3 + 1/2, (m/K)(1 - m/K) to K/6. Blocked and tree sums stay below. The last term
 * is the rounding of the products, absent where two operands' bits fit the accumulator. Then a product
 * may end above the partial sum's last bit, too, and is added without any error: of 16-bit products and a
 * sum of 24 bits most do. acc is what is left of it in a sample of the sums, followed bit by bit (short
 * sums: in each of them). A truncating accumulator errs to one side: then the means add up, too, 0.72 u
 * each: (0.72 u K)^2 (C^2/4 + Q/6) comes on top of four times the rest. m equal terms are
 * rounded alike between two powers of two, whatever stands between them, and count m times; besides, partial
 * sums are those of K/m terms m times as large, which makes Q in them m Q.
 *
 * Squares by BLAS are taken in float: a variance needs no sixteen digits, and a product takes half the
 * time. Float's range is met by powers of two; an element that comes out as 0, where squares are so
 * small, is summed once more in double, so that nothing becomes exact by underflow.
 *
 * Exact. If row i of X and column j of Y carry no error, all products are multiples of a quantum q,
 * the lowest set bits' product, and if sum_k |X_ik Y_kj| <= 2^p q, no partial sum in whatever order is
 * ever rounded: V[C_ij] = 0. By Cauchy and Schwarz sum |t| <= sqrt(K Q), which costs nothing; where
 * that is too coarse the sum itself is taken.
 */
#ifndef ET_PRODUCT_NOISE_H
#define ET_PRODUCT_NOISE_H

#include "etref/matmul.h"
#include "etref/profile.h"

/* An operand: a whole matrix, without gaps between its rows. `variance` and `coherent` lie in memory as
 * the values do, and may be NULL: no error, and values squared. `coherent` stands for the squares that
 * multiply the OTHER operand's variance: where several terms share that other operand's error, their
 * sum squared in one place, 0 in the others. `alike`, of X only: how many terms of a sum are like each, on the
 * average (0: 1). */
typedef struct et_noisy {
    et_matrix at;
    const et_real *variance, *coherent;
    double alike;
} et_noisy;

/* The place of a product that goes on into a sum. */
#define ET_NOWHERE ((et_place)ET_ALL_PLACES)

/* Coefficients of C^2 and Q in acc. */
typedef struct et_sum_noise {
    double square, squares;
} et_sum_noise;
et_sum_noise et_sum_noise_of(const et_profile *p, size_t K);

/* Scratch that is kept from one product to the next, as large as the largest so far: taking it anew
 * each time would cost more than the smaller products themselves. Begin with zeros. */
typedef struct et_product_room {
    void *at[4];
    size_t bytes[4];
} et_product_room;
void et_product_room_free(et_product_room *room);

/* V [M,N] (+)= variance of C = X Y, rounded at `place` (ET_NOWHERE: not rounded). C [M,N], contiguous, the product's values; NULL
 * where they are not kept: then C^2 is taken as Q, as it is on the average. ET_ENOMEM. */
et_status et_product_noise(et_engine engine, const et_profile *p, et_product_room *room, size_t M,
                           size_t N, size_t K, et_noisy X, et_noisy Y, const et_real *C,
                           et_place place, bool accumulate, et_real *V, et_error *error);

/* Is a sum of these terms exact in the accumulator, in whatever order? */
bool et_sum_is_exact(const et_profile *p, size_t count, const double *terms);

/* The exponent of a number's lowest set bit; a large number for 0. */
int et_lowest_bit(double value);

#endif
