/* routing.h: the three rules that turn logits into an assignment, and the state they keep.
 *
 * Every rule works on one batch (one micro-batch of a step) of N tokens and n experts: scores
 * r [N,n] go in; mask z [N,n] (0 or 1) and margin [N,n] come out. Scores compare as real numbers
 * (-0 equals +0) and must be finite. Ties: higher score first, then the LOWER index. k is the load
 * that an expert is meant to have in a pool of P tokens: floor(P G / n).
 *
 * margin is the distance to the decision, for judging whose decisions rounding may have turned.
 *   top-k      chosen: score - best refused, +inf if none was
 *              refused: score - worst chosen, -inf if none was
 *   threshold  score - threshold; an expert whose count the capacity changed: as top-k
 * Its sign tells the side only where it is not 0: an exact tie has margin 0 on both sides.
 *
 * rounding, of losses, state and measures: NULL, or a kernel's; then they are computed in the
 * accumulator's arithmetic, and what comes out is rounded by the caller, as it is stored.
 */
#ifndef ETREF_ROUTING_H
#define ETREF_ROUTING_H

#include "etref/assignment.h"
#include "etref/gate.h"
#include "etref/real.h"
#include "etref/status.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

typedef enum et_rule { ET_TC, ET_EC, ET_ET } et_rule;

/* ---- Token choice: each token takes its top K experts by r_ti + b_i. ---- */

/* bias [n] or NULL; topk [N,K] out, the experts by descending score, or NULL. 1 <= K <= n. */
et_status et_token_choice(size_t N, size_t n, size_t K, const et_real *r, const et_real *bias,
                          uint8_t *mask, et_real *margin, int32_t *topk, et_error *error);

/* Group-limited: the experts stand in `count` equal groups, one after the other; a token keeps the `kept` groups with the
 * highest score (of equal ones the lower) and takes its top K experts of theirs. A group's score is its best member's
 * r + b (DeepSeek-V2), or the sum of its two best (DeepSeek-V3). */
typedef enum et_group_score { ET_GROUP_MAX, ET_GROUP_TOP2 } et_group_score;
typedef struct et_groups {
    size_t count, kept;
    et_group_score score;
} et_groups;

/* The score of one group of `size` experts, whose r + b these are; 2 of them at least for ET_GROUP_TOP2. */
et_real et_group_score_of(et_group_score how, size_t size, const et_real *scores);

/* As et_token_choice. Of an expert outside the kept groups the margin is its group's: score - the worst kept group's. count
 * divides n, 1 <= kept <= count, K <= kept n / count. */
et_status et_token_choice_in_groups(size_t N, size_t n, size_t K, const et_groups *groups,
                                    const et_real *r, const et_real *bias, uint8_t *mask,
                                    et_real *margin, int32_t *topk, et_error *error);

/* A capacity: ceil((N K / n) C) slots of an expert in a batch, in binary64 and in this order (Megatron-LM), at most N;
 * 0 if C is not above 0. */
size_t et_token_capacity(size_t N, size_t n, size_t K, double C);

/* Which of an expert's choices it keeps: the first to come, where all first choices come before all second ones and so on,
 * each in the order of tokens (GShard, Tutel, DeepSpeed); or those with the highest gate value (Megatron-LM's `probs`), of
 * equal ones the lower token. */
typedef enum et_drop { ET_DROP_BY_ARRIVAL, ET_DROP_BY_SCORE } et_drop;

/* Takes from the mask what a choice, topk [N,K], has over `capacity`. What is dropped is no slot, and nothing takes its
 * place. margin: of one dropped by score p - the lowest kept p; by arrival, where no score decides, it stays the choice's.
 * p [N,n] gates. */
et_status et_drop_overflow(size_t N, size_t n, size_t K, size_t capacity, et_drop how,
                           const int32_t *topk, const et_real *p, uint8_t *mask, et_real *margin,
                           et_error *error);

/* ---- Expert choice: in each pool of P tokens each expert takes its top k tokens. ---- */

/* pool_cutoff [N/P,n] out: the k-th largest score. topk [N/P,n,k] out, the tokens by descending
 * score, counted from `first_token` (the batch's place in the step), or NULL.
 * P divides N, 1 <= k <= P. Not causal: whether t is taken depends on later tokens of its pool. */
et_status et_expert_choice(size_t N, size_t n, size_t P, size_t k, const et_real *r, uint8_t *mask,
                           et_real *margin, et_real *pool_cutoff, int32_t *topk, size_t first_token,
                           et_error *error);

/* ---- Expert threshold: z_ti = [r_ti > c_i] (paper, Eq. 6), or >= as released. ---- */

/* Lower and upper bound of an expert's load in a batch of N: floor(k(1-C)) and floor(k(1+C)), both
 * computed in binary64 as the released code does (k = 10, C = 0.9 gives 0), the upper at most N. Any C
 * is legal: below 0 a bound is 0, and if C is NaN both are. */
typedef struct et_capacity {
    size_t lower, upper;
} et_capacity;
et_capacity et_capacity_bounds(size_t k, double C, size_t N);

/* c [n] thresholds. capacity NULL: off. Otherwise expert i with m_i tokens passing takes its
 * min(max(m_i, lower), upper, N) highest-scoring tokens. passed [n] out: m_i. */
et_status et_expert_threshold(size_t N, size_t n, const et_real *r, const et_real *c,
                              bool inclusive, const et_capacity *capacity, uint8_t *mask,
                              et_real *margin, int32_t *passed, et_error *error);

/* kth [n] out: the k-th largest score of each expert among N tokens, whoever was routed.
 * 1 <= k <= N. */
et_status et_kth_largest(size_t N, size_t n, size_t k, const et_real *r, et_real *kth,
                         et_error *error);

/* ---- State: the moving average from which ET's thresholds come (paper, Algorithm 1). ---- */

/* 1 - beta^u: the sum of the weights with which u updates stand in the average. To a few units in
 * the last place for every beta and u, and the same on every machine. */
double et_ema_weight(double beta, size_t updates);

/* The threshold used by a step that sees `updates` updates behind it: ema, or ema/(1 - beta^u) with
 * bias correction (0 before the first update). c [n] out, may be ema itself. */
void et_ema_threshold(const et_rounding *rounding, size_t n, const et_real *ema, double beta,
                      bool bias_correction, size_t updates, et_real *c);
/* ema_i <- beta ema_i + (1 - beta) kth_i, after the step. ema [n] in and out. */
void et_ema_update(const et_rounding *rounding, size_t n, double beta, const et_real *kth,
                   et_real *ema);

/* ---- Load balancing (TC) and the z-loss ---- */

typedef enum et_balance {
    ET_BALANCE_NONE,
    ET_BALANCE_AUX,         /* L = alpha sum_i F_i P_i; the gradient flows through P only */
    ET_BALANCE_AUX_ERROR,   /* the same with F_i - 1 */
    ET_BALANCE_LOSSFREE,    /* b_i += rate sign(mean load - load_i); sign(0) = 0 */
    ET_BALANCE_PROPORTIONAL /* b_i += rate (1 - F_i) */
} et_balance;

/* F_i = n load_i / (K N): 1 for each under perfect balance. load [n] per batch of N tokens. */
void et_balance_fractions(size_t N, size_t n, size_t K, const et_real *load, et_real *F);

/* One batch of N tokens: returns sum_i F'_i P_i with P_i = mean_t p_ti and F' = F or F - 1. The
 * coefficient is not in the value. If dp is not NULL: dp_ti += scale * F'_i / N. p, dp [N,n]. */
et_real et_aux_loss(const et_rounding *rounding, et_balance balance, size_t N, size_t n,
                    const et_real *F, const et_real *p, double scale, et_real *dp);

/* (1/N) sum_t (log sum_i e^{r_ti})^2, and if dr is not NULL its gradient times `scale`:
 * dr_ti += scale * (2/N) lse_t softmax(r_t)_i. r, dr [N,n]. Overflow-free for any finite r. */
et_real et_z_loss(const et_rounding *rounding, size_t N, size_t n, const et_real *r, double scale,
                  et_real *dr);

/* bias [n] in and out, after a step. load [n] of N tokens: the whole step's own loads with the
 * step's N, or a given mean load per micro-batch with a micro-batch's N. Both methods see ratios
 * only, so it is the same; with whole numbers the comparison of the loss-free method is exact. Only
 * for the last two methods; no-op for the others. */
void et_bias_update(const et_rounding *rounding, et_balance balance, size_t N, size_t n, size_t K,
                    const et_real *load, double rate, et_real *bias);

/* ---- What is measured of a routing ---- */

/* Mean and standard deviation (of the whole population) of `count` values; 0 and 0 for none. */
void et_mean_std(const et_rounding *rounding, size_t count, const et_real *values, et_real *mean,
                 et_real *std);

/* How a capacity acted on M batches of n experts, passed [M,n] tokens above the threshold:
 *   saturation  tokens dropped by the upper bound / tokens that passed the test (0 if none passed)
 *   starvation  places padded up to the lower bound / places of the lower bound (0 if it is 0)
 *   overflow    share of experts above the upper bound;  underflow: below the lower bound */
typedef struct et_capacity_use {
    et_real saturation, starvation, overflow, underflow;
} et_capacity_use;
et_capacity_use et_capacity_measure(size_t M, size_t n, et_capacity bounds, const int32_t *passed);

/* What two routings of the same tokens have in common (paper, F.2), the shared expert left out. */
typedef struct et_overlap {
    /* |A and B| / |A or B| and 2 |A and B| / (|A| + |B|) over all pairs; both empty: 1 */
    double pooled_jaccard, pooled_dice;
    double jaccard, dice; /* means over tokens; both empty 1, one empty 0 */
    double divergence;    /* mean Jensen-Shannon divergence, in bits; both empty 0, one empty 1 */
    double variation;     /* mean total variation; both empty 0, one empty 1 */
} et_overlap;

/* masks [N,n], N >= 1. */
et_overlap et_routing_overlap(size_t N, size_t n, const uint8_t *a, const uint8_t *b);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
