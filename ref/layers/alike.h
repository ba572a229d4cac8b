/* alike.h: rounding that does the same to many values at once. Internal; see alike.c. */
#ifndef ET_ALIKE_H
#define ET_ALIKE_H

#include "etref/moe.h"
#include "ref/base/rounding.h"

/* V [rows,columns] becomes the square of shift where a whole column's squares are more than chance; the
 * larger of both stays. */
void et_alike_columns(size_t rows, size_t columns, const et_real *shift, et_real *V);

/* The same for gates, or weights, that are rounded as such. ET_ENOMEM. */
et_status et_alike_gates(const et_profile *p, size_t rows, size_t columns, const et_real *gates,
                         et_real *V, et_error *error);

/* danchor [N] out: dL/da_t0, where the anchor weighs the shared expert. */
void et_anchor_gradient(const et_moe *moe, const et_assignment *a, const et_moe_grads *g,
                        et_real *danchor);

/* shift [N,n] out: what becomes of dr if gates, and then dr itself by `last`, are rounded, and nothing
 * else. v and g are et_moe_forward's and et_moe_backward's. ET_ENOMEM. */
et_status et_alike_dr(const et_moe *moe, const et_profile *p, const rounding *last,
                      const et_assignment *a, const et_moe_values *v, const et_moe_grads *g,
                      et_real *shift, et_error *error);

/* What shift [N,n] makes of dW_r = dr' x and of dx = dr W_r: added to the variances V_router [n,d] and V_x
 * [N,d] where it is more than chance makes of it. ET_ENOMEM. */
et_status et_alike_products(const et_moe *moe, const et_real *x, const et_real *shift,
                            et_real *V_router, et_real *V_x, et_error *error);

#endif
