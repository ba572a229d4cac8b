/* quad_softmax.h: the softmax's Jacobian in binary128, as a naive sum of differences.
 *
 * A plain-double interface, because only gcc has quadmath.h (see quad_elementary.h).
 */
#ifndef ETREF_WITNESS_QUAD_SOFTMAX_H
#define ETREF_WITNESS_QUAD_SOFTMAX_H

#include <stddef.h>

typedef struct quad_slope {
    double error; /* |got - p_i sum_j p_j (dp_i - dp_j)| */
    double exact; /* the latter */
    double reach; /* p_i sum_j p_j |dp_i - dp_j| */
} quad_slope;

/* `got` beside element i of the gradient, for given shares p [count] and dp [count], rounded or not. */
quad_slope quad_softmax_slope(size_t count, const double *p, const double *dp, size_t i,
                              double got);

#endif
