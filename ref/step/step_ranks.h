/* step_ranks.h: what each of several ranks has of a step. Internal. */
#ifndef ET_STEP_RANKS_H
#define ET_STEP_RANKS_H

#include "etref/step.h"

/* s->plan from the assignment, under ep; counted with the step's bytes. */
et_status et_ranks_plan(et_step *s, et_error *error);

/* s->rank, whose arrays are there and zeroed, kth filled; the step has been run. With a rounding, what a rank stores is
 * rounded there, and y, dx and the gradients, made of it, come out as much changed. ET_ENOMEM. */
et_status et_ranks_run(et_step *s, et_error *error);

/* Does the average stay each rank's own? state.ema is then rank 0's. */
bool et_ranks_keep_apart(const et_case *c);

#endif
