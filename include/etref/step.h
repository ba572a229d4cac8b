/* step.h: one step of one layer, from inputs to gradients: every tensor that a bundle can hold.
 *
 *     case -> inputs -> logits -> assignment -> slots -> y -> losses -> gradients -> state, metrics
 *
 * An et_step owns all its arrays. Its tensors are listed once, in the table of
 * ref/step/tensors.def, with name, type, shape and place; writing, reading, comparing and showing
 * all walk that table.
 */
#ifndef ETREF_STEP_H
#define ETREF_STEP_H

#include "etref/assignment.h"
#include "etref/case.h"
#include "etref/moe.h"
#include "etref/parallel.h"
#include "etref/profile.h"
#include "etref/status.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

enum { ET_MAX_STEP_ARRAYS = 160 };

typedef struct et_step_inputs {
    et_real *x, *dy;                  /* [N,d] */
    et_real *router, *up, *down;      /* [n,d], [n,h,d], [n,d,h]; dense: NULL, [h,d], [d,h] */
    et_real *shared_up, *shared_down; /* [hs,d], [d,hs] or NULL */
    et_real *gating, *shared_gating;  /* as up and shared_up: W_gate of swiglu; else NULL */
    /* biases [n,h], [n,h] of swiglu, [n,d]; dense: without n; of the shared expert [hs], [hs], [d]; NULL without */
    et_real *b_up, *b_gate, *b_down, *shared_b_up, *shared_b_gate, *shared_b_down;
    et_real *ema, *bias, *load;       /* [n] or NULL where the case has none */
    int32_t *mask;                    /* [N] 0 of a padding token, else 1; NULL where the case has none */
} et_step_inputs;

/* Routing facts beside the assignment; NULL where they do not apply. */
typedef struct et_step_routing {
    uint8_t *mask;        /* [N,n] */
    et_real *margin;      /* [N,n] */
    et_real *threshold;   /* [n] used by this step */
    et_real *cutoff;      /* [n] mean over pools and micro-batches of the k-th largest score */
    et_real *pool_cutoff; /* [N/P,n] */
    int32_t *topk_expert; /* [N,K] */
    int32_t *topk_token;  /* [N/P,n,k] */
    uint8_t *chosen;      /* [N,n] tc with a capacity: the choices, dropped ones among them */
    int32_t *passed;      /* [M,n] tokens above the threshold before capacity, per micro-batch */
} et_step_routing;

/* What is measured of a routing, under the names of the bundle's metric.*. Definitions: beside the
 * fields here, and in routing.h (et_capacity_use, et_mean_std). */
typedef struct et_step_metrics {
    et_real *usage;            /* [n] load / N */
    et_real *fanout_histogram; /* [n+1] tokens with 0, 1, .. n experts */
    et_real *cutoff_gap;       /* [n] batch cutoff - the moving average's threshold, also where the
                                * step routes by choice; NULL for tc and in evaluation */
    et_real *cutoff_gap_abs;   /* [n] its absolute value, or NULL */
    et_real *raw_usage;        /* [n] passed / N, before capacity, or NULL */
    et_real *saturation, *starvation, *overflow_rate,
        *underflow_rate;                                    /* [1] or NULL: capacity on */
    et_real *logit_mean, *logit_std, *gate_mean, *gate_std; /* [1]; gates on slots */
} et_step_metrics;

/* What each of several ranks has (parallel.h). NULL where the case has none. S slots in the order of route.slot_*, in
 * which they are received; P copies in that of plan.recv_token. */
typedef struct et_step_ranks {
    /* ep */
    et_real *x_recv, *dout_recv;               /* [S,d] x and dO = w dy of each row received */
    et_real *partial, *dx_partial;             /* [P,d] sums over a rank's experts of w f(x), of dH W_up + dV W_gate */
    et_real *router, *shared_up, *shared_down; /* [R,n,d], [R,hs,d], [R,d,hs] of a rank's tokens: their sum is bwd.* */
    et_real *shared_gating;                    /* [R,hs,d] of swiglu */
    /* dp */
    et_real *kth, *ema;  /* [R,n] mean k-th largest score over the rank's micro-batches; average moved by it */
    et_real *load;       /* [R,n] slots of the rank's tokens */
    et_real *grad_norm;  /* [R] norm of all weights' gradients by the rank's tokens alone: their sum is bwd.* */
} et_step_ranks;

/* A layer of the model around, or an optimiser: arrays beside x, dy, y and dx. NULL where it has none. C = (Hq + 2 Hkv)
 * columns of [q;k;v]; B = N / T sequences. */
typedef struct et_step_model {
    et_real *qkv, *head;                         /* inputs: [N,C], [V,d] */
    int32_t *targets;                            /* input: [N], from 0 to V-1 */
    et_real *weight, *gradient, *first, *second; /* inputs: [N,d] w, g, m, v */
    et_real *scale;                              /* [N,Hq] */
    et_real *lse;                                /* [B,Hq,T] */
    et_real *logits, *loss_lse, *loss, *mean;    /* [N,V], [N], [N], [1] */
    et_real *dqkv, *dhead;
    et_real *new_weight, *new_first, *new_second;
} et_step_model;

typedef struct et_step {
    et_case c;
    et_engine engine;
    et_step_inputs in;
    et_step_routing route;
    et_assignment assignment;
    et_moe_values fwd; /* a dense layer: slot_pre, slot_act, slot_out with S = N, and y */
    et_moe_grads bwd;
    et_real *loss_aux, *loss_z;      /* [1] or NULL */
    et_real *state_ema, *state_bias; /* [n] after the step, or NULL */
    int32_t *state_updates;          /* [1] or NULL */
    et_step_metrics metric;
    et_step_model model;
    et_step_ranks rank;
    size_t block; /* layout.*: tile size, at most ET_MAX_BLOCK; set before et_step_run, 0: none */
    const et_rounding
        *rounding; /* set before et_step_run: the step as a kernel of this profile would
                                  * compute it; NULL: the golden */
    const uint8_t
        *given_mask; /* [N,n] set before et_step_run: this assignment instead of the rule's
                                * own (margins, thresholds and cutoffs stay the rule's), or NULL;
                                * where the case has `routing` given it must be there, and there is no rule */
    et_block_layout layout;
    et_parallel_plan plan; /* ep */
    /* bookkeeping: every array above but those of assignment, layout and plan */
    size_t bytes, max_bytes; /* taken so far, and the limit (0: none) */
    size_t owned_count;
    void *owned[ET_MAX_STEP_ARRAYS];
    size_t owned_bytes[ET_MAX_STEP_ARRAYS];
    struct et_step *
        spare; /* et_step_free leaves arrays there, and later steps take them from there; NULL: none */
} et_step;

/* Called between phases, with the name of the phase that begins and the part of the work done so
 * far, 0 to 1. */
typedef void et_progress(void *user, const char *phase, double done);

/* Allocates the inputs' arrays of a case, zeroed. ET_EINVAL as et_case_check. `max_bytes` (0: no limit) bounds what
 * the whole step may take, inputs, values and gradients together: checked here for all that the
 * case decides, and again in et_step_run once the number of slots is known. */
et_status et_step_create(et_step *s, const et_case *c, size_t max_bytes, et_error *error);

/* Draws in.* as the case's input source says; a checkpoint's are captured (capture.h), not drawn. */
et_status et_step_draw_inputs(et_step *s, et_error *error);

/* Checks in.*: finite, and not contradicting the case: x, dy and the weights are numbers of its
 * precision, and u = 0 has no EMA. Asked of every bundle that is opened or written. */
et_status et_step_check_inputs(const et_step *s, et_error *error);

/* Everything else, once: ET_EINVAL for a step that has been run, and for a case that et_case_check
 * refuses. progress may be NULL. On failure the step may only be freed. */
et_status et_step_run(et_step *s, et_engine engine, et_progress *progress, void *user,
                      et_error *error);

/* The layer of an MoE case: its sizes and switches, and the step's own parameters. */
et_moe et_step_layer(const et_step *s);

void et_step_free(et_step *s); /* accepts zeros */

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
