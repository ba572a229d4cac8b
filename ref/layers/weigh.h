/* weigh.h: from gate values to weights of slots, and back. Internal; equations: etref/moe.h. */
#ifndef ET_WEIGH_H
#define ET_WEIGH_H

#include "etref/moe.h"
#include "ref/base/sum.h"

/* Where a kernel stores what it computes in gate arithmetic: in the fewer bits of both. */
et_place et_stored_as(const et_moe *moe, et_place place);

/* What s_t is divided by: n_t under fanout, at least 1 since the shared expert counts; else 1. */
et_real et_shared_divisor(const et_moe *moe, const et_assignment *a, size_t t);

/* The factor of every w, which some kernels have in as many bits as their sums, and others in more. */
double et_routed_scale(const et_moe *moe);

/* v->slot_weight and v->shared_weight from v->gates. */
void et_weigh(const et_moe *moe, const et_assignment *a, et_moe_values *v);

/* dp on token t's slots, from dw: added to g->gates; or, in some replicas, dr, added to g->logits. Steps are rounded to
 * grid q. */
void et_weigh_token_backward(const et_moe *moe, const et_assignment *a, const et_moe_values *v,
                             size_t t, const et_grid *q, et_moe_grads *g);

#endif
