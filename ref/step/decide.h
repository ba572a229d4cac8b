/* decide.h: parts of a step, for those who want its decisions or its room alone. Internal. */
#ifndef ET_DECIDE_H
#define ET_DECIDE_H

#include "etref/step.h"

/* A step of the same case that looks at the inputs of `s` and owns none of them. Freed like any
 * other; `s` must live longer. */
et_step et_step_like(const et_step *s);

/* A step like `s`, which has been run: the same mask and assignment, and zeroed room for every real
 * array that s has. On failure the caller still frees it. */
et_status et_step_take_like(et_step *to, const et_step *s, et_error *error);

/* What the rule compares, [N,n]: fwd.logits, or fwd.gates where token choice selects by those. */
const et_real *et_step_scores(const et_step *s);

/* The case's assignment is given from now on: *mask [N,n], zeroed and the step's own, is to be filled. ET_ENOMEM. */
et_status et_step_take_given(et_step *s, uint8_t **mask, et_error *error);

/* F [n] of the balancing losses in one micro-batch: from its own loads, or from in.load. */
void et_step_fractions(const et_step *s, size_t batch, et_real *F);

/* Counts what is about to be taken; ET_ENOMEM if that is more than the step may take. */
et_status et_step_count_bytes(et_step *s, size_t count, size_t size, et_error *error);

/* Whether et_step_run has filled the step. */
bool et_step_has_run(const et_step *s);

/* The phases of et_step_run that only look at scores, each once, on a step of one's own.
 * Routes by et_step_scores: route.* and the assignment. */
et_status et_step_route(et_step *s, et_error *error);
/* From fwd.logits, fwd.gates and route.mask: loss_aux, loss_z, and what they add to bwd.gates and bwd.logits. */
et_status et_step_losses(et_step *s, et_error *error);
/* From the assignment's loads and route.cutoff: state_*; nothing in evaluation. */
et_status et_step_update_state(et_step *s, et_error *error);

/* Evaluation leaves the state as it is, and a step does not repeat it. A candidate may show it, unchanged. *updates: where
 * state.updates then stands. */
void et_show_state(et_step *s, int32_t *updates);

/* Scores and routes by the plain engine: fwd.logits, fwd.gates, route.* and the assignment. */
et_status et_step_decide(et_step *s, et_error *error);

#endif
