/* The witness: one layer of the reference, dense or mixture of experts, written a second time.
 *
 * Purpose. A golden value must not count because one program produced it twice. The witness
 * computes the same tensors from the equations alone, in __float128 (113 significand bits), and
 * shares no line with the library. It is meant to be read as the definition of the layer, in the
 * order given in witness_parts.h.
 *
 * Source. "Expert Threshold Routing for Autoregressive Language Modeling with Dynamic Computation
 * Allocation and Load Balancing", arXiv:2603.11535: Eq. 1 (router), Eq. 2 (combination), Eq. 6
 * (threshold test), Algorithm 1 (moving average of the cutoffs), appendix E.4 (fanout).
 *
 * How. Naive sums over all tokens times all experts, each token's expert evaluated by itself: no
 * dispatch, no gather, no sorting. Decisions are counts ("how many beat this one?").
 *
 * Left out on purpose. Checking of the numbers in a case (the caller's sizes must make sense),
 * speed, metric.*, layout.*, noise.*, and the language model around the layer.
 *
 * Needs gcc and libquadmath.
 */
#ifndef WITNESS_H
#define WITNESS_H

#include <stddef.h>

__extension__ typedef __float128 quad;

/* Arrays are row-major; a weight is stored (out, in). NULL where a case has no such array. */
typedef struct witness_case {
    int dense;         /* 1: plain feed-forward layer; only N d h x dy w_up w_down are used */
    const char *rule;  /* tc ec et */
    int eval;          /* evaluation mode: no capacity, no losses, no change of state */
    size_t N, d, h, n; /* tokens of the whole step, width, expert width, routed experts */
    size_t hs;         /* width of the shared expert, 0: there is none */
    size_t top_k;      /* K, tc */
    size_t
        padding; /* last tokens of each micro-batch that are no tokens: no slot, y = 0, in no count and mean */
    size_t groups, groups_kept; /* tc: of as many groups of experts a token's come from so many; 1: all */
    const char *group_score;    /* max top2 */
    int select_gates;           /* tc: choices compare p + b, not r + b */
    size_t k;    /* target load, >= 1: of a pool (ec, and et in warm-up) or of a micro-batch (et) */
    size_t pool; /* P, tokens of a pool (ec, and et in warm-up); divides N/M */
    size_t granularity; /* G of softmax_anchor_out's 1/(G+1); ec and et */
    const char *gate;   /* sigmoid relu softmax softmax_anchor softmax_anchor_out softmax_tokens */
    const char *norm;   /* none fanout sum */
    double routed_scale;    /* factor of every w */
    int weighs_input;       /* 1: a routed expert sees w x, and its output is not weighted */
    const char *activation; /* relu2 swiglu gelu gelu_tanh; of every expert, and of the dense layer */
    int inclusive;      /* threshold test: 1 for >=, 0 for > */
    int has_capacity;   /* 0: off, `capacity` unused */
    double capacity;    /* C */
    const char *drop;   /* arrival score; tc with a capacity */
    double ema_decay;   /* beta */
    int ema_bias_correction;
    size_t ema_updates;                       /* u, updates that `ema` has seen */
    size_t step, warmup_steps, micro_batches; /* M >= 1, divides N */
    const char *balance;                      /* none aux aux_error lossfree proportional */
    double balance_coef, bias_rate;           /* alpha, u of the bias */
    int global_load;                          /* 1: loads for balancing are `load` */
    double z_loss_coef;                       /* zeta, 0: no such loss */
    const double *x, *dy;                     /* [N,d] */
    const double *w_router;                   /* [n,d] */
    const double *w_up, *w_down;              /* [n,h,d], [n,d,h]; dense: [h,d], [d,h] */
    const double *shared_up, *shared_down;    /* [hs,d], [d,hs] */
    const double *w_gate, *shared_gate;       /* [n,h,d], [hs,d]; swiglu alone */
    const double *b_up, *b_gate, *b_down;     /* [n,h], [n,h], [n,d]; NULL: no biases */
    const double *shared_b_up, *shared_b_gate, *shared_b_down; /* [hs], [hs], [d] */
    const double *ema, *bias;                 /* [n] before the step; NULL: zeros */
    const double *load;                       /* [n] mean load per micro-batch over all ranks */
    const unsigned char *mask;                /* NULL, or [N,n]: frozen routing, see below */
    int given; /* 1: `mask` is all that there is: no rule, nothing that describes a decision, no change of state */
} witness_case;

typedef struct witness witness;

/* Computes every tensor of a case. NULL on out of memory, or if rule, gate, norm, activation or
 * balance is not one of the words above. The case is not needed afterwards.
 *
 * Frozen routing: `mask` takes the place of the rule's own assignment, in everything that follows
 * from the assignment (slots, loads, values, gradients, losses, biases). What describes the rule's
 * decision stays the rule's own: margins, top-k lists, thresholds, cutoffs, the moving average. */
witness *witness_compute(const witness_case *c);

/* A tensor under its name in a bundle, integers and booleans as whole numbers; *count (unless
 * count is NULL) receives its number of elements. NULL if the case has no such tensor. A tensor
 * of 0 elements is not NULL. Owned by w. Slots are expert-major, tokens ascending in an expert. */
const quad *witness_tensor(const witness *w, const char *name, size_t *count);

/* The names that a witness can give, ended by NULL. */
const char *const *witness_names(void);

void witness_free(witness *w); /* NULL is allowed */

#endif
