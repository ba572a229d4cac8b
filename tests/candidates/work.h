/* work.h: one run of an emulated kernel, and what its parts do to it. Internal to the candidates.
 *
 * Letters as in etref/moe.h. What the experts compute lies in arrays of the kernel's word (float or
 * double, `is_double`); everything else in doubles that hold numbers of their place's format.
 */
#ifndef CD_WORK_H
#define CD_WORK_H

#include "tests/candidates/candidate.h"
#include "tests/candidates/faults.h"
#include "tests/candidates/rounding.h"

typedef struct cd_work {
    const et_step *golden;
    const et_case *c;
    const et_profile *profile;
    const cd_kernel *kernel;
    cd_fault_id fault;
    double amount; /* of the fault, or 0 */
    uint64_t seed;
    bool is_double;

    cd_format operand, intermediate, gate, logit, accumulator, output;
    cd_format router_operand; /* operands of the router's products */
    cd_format gate_work;      /* in which gates are evaluated */

    et_moe moe; /* sizes and switches; dense: N, d, h alone */
    size_t N, d, h, hs, n, S;

    /* score, route, weigh */
    double *logits, *scores, *gates, *anchor; /* r, r + b, p [N,n], a_t0 [N] */
    uint8_t *mask;                            /* [N,n] */
    et_assignment a;                          /* dense: none */
    size_t k;                                 /* K, or k */
    double *threshold, *cutoff, *pool_cutoff; /* [n], [n], [pools,n] or NULL */
    double *stepwise; /* [n] the average, moved by each micro-batch: a fault; else NULL */
    int32_t *topk_expert, *topk_token;   /* NULL where the lists have another length */
    double *slot_weight, *shared_weight; /* w [S], s [N] */
    size_t some_token, some_expert;      /* which a fault of one token or expert hits */

    /* the experts, in the kernel's word */
    void *x, *dy;                         /* [N,d] operands; dy as stored, or short_upstream */
    void *H, *A, *O;                      /* [S,h], [S,h], [S,d]; O weighted if weight_on_act */
    void *shared_H, *shared_A, *shared_O; /* [N,hs], [N,hs], [N,d] */
    void *y;
    void *dO, *dA, *dH, *shared_dO, *shared_dA, *shared_dH;
    void *dx_slot, *dx_shared, *dx_router; /* [S,d], [N,d], [N,d]: shares of dx */
    void *dx, *drouter, *dup, *ddown, *dshared_up, *dshared_down;

    /* room for one expert at a time: gathered rows, their operands, its weights; packed products */
    void *rows, *act, *drows, *dhidden, *up, *down, *room;

    /* gradients of gates, losses, state */
    double *dw, *ds, *dp, *dr; /* [S], [N], [N,n], [N,n] */
    double *loss_aux, *loss_z; /* [1] or NULL */
    double *ema, *bias;        /* [n] after the step, or NULL */
    int32_t *updates;

    void *owned[CD_MAX_ARRAYS];
    size_t owned_count;
    et_error *error;
} cd_work;

static inline bool cd_bad(const cd_work *w, cd_fault_id fault)
{
    return w->fault == fault;
}

/* The result of one operation, in the accumulator's precision. */
static inline double cd_acc(const cd_work *w, double v)
{
    return cd_round(&w->accumulator, v);
}

static inline size_t cd_smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

static inline size_t cd_ceil(size_t a, size_t b)
{
    return (a + b - 1) / b;
}

/* Zeroed room, freed with the run; NULL, and a message in w->error, if there is none. */
void *cd_take(cd_work *w, size_t count, size_t size);

/* weight_on_act, where the format's exponents allow it: in f16 a small weight would push all of A
 * into the subnormals, an error that no site of the profile has. Not without weights either. */
bool cd_weights_act(const cd_work *w);

/* routing.c: from logits to scores, mask, assignment, thresholds, cutoffs; the state after the step. */
et_status cd_route(cd_work *w);
et_status cd_update_state(cd_work *w);

/* gates.c: p from r; w and s; losses, with their share of dp and dr; dr from dw. */
et_status cd_gates(cd_work *w);
et_status cd_weigh(cd_work *w);
et_status cd_losses(cd_work *w);
et_status cd_gates_backward(cd_work *w);

/* kernel_impl.h, in float and in double. */
et_status cd_load_float(cd_work *w); /* x and dy */
et_status cd_load_double(cd_work *w);
et_status cd_score_float(cd_work *w); /* r */
et_status cd_score_double(cd_work *w);
et_status cd_forward_float(cd_work *w); /* to y */
et_status cd_forward_double(cd_work *w);
et_status cd_backward_float(cd_work *w); /* dw, ds, the experts' dW, their shares of dx */
et_status cd_backward_double(cd_work *w);
et_status cd_router_backward_float(cd_work *w); /* dW_r, dx */
et_status cd_router_backward_double(cd_work *w);

/* spoil.c: faults that befall finished tensors. */
et_status cd_spoil(cd_candidate *candidate, cd_work *w);

#endif
