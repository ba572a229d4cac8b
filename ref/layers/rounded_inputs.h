/* rounded_inputs.h: x and dy as a kernel has them. Internal.
 *
 * A golden takes both as they came. Of kernels some read them as they are stored, others round them first; half of the
 * replicas do. Then *x or *dy becomes a copy, in *room, which the caller frees; else *room stays. ET_ENOMEM.
 */
#ifndef ET_ROUNDED_INPUTS_H
#define ET_ROUNDED_INPUTS_H

#include "etref/moe.h"

/* x where it is weighed: as it came, or rounded before, as the operand that it is elsewhere. */
et_status et_take_tokens(const et_moe *moe, const et_real **x, et_real **room, et_error *error);

/* dy: as it came; or stored, as autograd's is where y is; or, where A is weighed, as an operand of dA = w (dy W_down). */
et_status et_take_upstream(const et_moe *moe, const et_real **dy, et_real **room, et_error *error);

#endif
