/* decide.h: the first part of a step, for those who want its decisions alone. Internal. */
#ifndef ET_DECIDE_H
#define ET_DECIDE_H

#include "etref/step.h"

/* A step of the same case that looks at the inputs of `s` and owns none of them. Freed like any
 * other; `s` must live longer. */
et_step et_step_like(const et_step *s);

/* Scores and routes by the plain engine: fwd.logits, fwd.gates, route.* and the assignment. */
et_status et_step_decide(et_step *s, et_error *error);

#endif
