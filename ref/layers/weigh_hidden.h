/* weigh_hidden.h: kernels that weigh A, a replica's other way to w f(x). Internal.
 *
 * Some kernels weigh A, where its format has room for small numbers: w f(x) = (w A) W_down',
 * dW_down = dy' (w A), and dw = <dA, A> of a dA without w. A replica of one has an f(x) that comes
 * of it. As it does not store f(x), only replicas that leave roundings out are of this kind: the
 * others' errors are of one size.
 */
#ifndef ET_WEIGH_HIDDEN_H
#define ET_WEIGH_HIDDEN_H

#include "etref/moe.h"

/* Is this replica of that kind? */
bool et_weighs_hidden(const et_moe *moe);

/* r->out = (w A) W_down' / w, for weights w [m]; where w = 0 it stays as it is. ET_ENOMEM. */
et_status et_weigh_hidden(const et_ffn *f, const et_ffn_rows *r, const et_real *w, et_error *error);

/* dw = <dA, A> / w and dW_down += (dO / w)' (w A), as w is in dO and dA. What has w = 0 stays as
 * it is. ddown NULL: not wanted. ET_ENOMEM. */
et_status et_weigh_hidden_backward(const et_ffn *f, const et_ffn_rows *r, const et_real *w,
                                   et_real *dw, et_real *ddown, et_error *error);

#endif
