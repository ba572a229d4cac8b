/* faults.h: the parts of the catalogue. Internal.
 *
 * Each part is a table of hypotheses: what is altered, at which stage, in which rows, by which alteration. Each
 * mistake was seen in real kernels: in the tests and bug reports of MegaBlocks, ScatterMoE, vLLM, SGLang,
 * TransformerEngine, Megatron-LM, DeepEP, torchtitan, Tutel, PyTorch's grouped products, llama.cpp. A
 * hypothesis has variants where the same mistake comes in several forms: m->fault.variant is an index into the
 * row's list. That the backward pass may have gone by right values all the same is tried for every forward
 * hypothesis, and needs no row.
 */
#ifndef ET_FAULTS_H
#define ET_FAULTS_H

#include "ref/diagnose/mutant.h"

typedef struct et_faults {
    size_t count;
    const et_hypothesis *table;
} et_faults;

extern const et_faults et_routing_faults, et_choice_faults, et_token_faults, et_state_faults, et_layout_faults, et_forward_faults,
    et_activation_faults, et_input_faults, et_bias_faults, et_padding_faults, et_backward_faults, et_loss_faults,
    et_row_faults, et_precision_faults, et_model_faults, et_rank_faults;

#define ET_FAULTS(table)                                                                           \
    {                                                                                              \
        sizeof(table) / sizeof *(table), table                                                     \
    }

/* In a line: where a hypothesis can show; which rows it is for; what happens to one; a setting; what happens to all of it. `s` is the step, `m`
 * the mutant, `r` the row. */
#define ET_SHOWS(name, condition)                                                                  \
    bool name(const et_step *s)                                                                    \
    {                                                                                              \
        return condition;                                                                          \
    }                                                                                              \
    bool name(const et_step *s)
#define ET_CHOICE(name, condition)                                                                 \
    bool name(const et_mutant *m, const et_row *r)                                                 \
    {                                                                                              \
        (void)m, (void)r;                                                                          \
        return condition;                                                                          \
    }                                                                                              \
    bool name(const et_mutant *m, const et_row *r)
#define ET_ALTERATION(name, statement)                                                             \
    void name(et_mutant *m, const et_row *r)                                                       \
    {                                                                                              \
        (void)m, (void)r;                                                                          \
        statement;                                                                                 \
    }                                                                                              \
    void name(et_mutant *m, const et_row *r)
#define ET_SETTING(name, statement)                                                                \
    void name(et_mutant *m, et_step *s)                                                            \
    {                                                                                              \
        (void)m, (void)s;                                                                          \
        statement;                                                                                 \
    }                                                                                              \
    void name(et_mutant *m, et_step *s)
#define ET_WHOLE(name, statement)                                                                  \
    void name(et_mutant *m)                                                                        \
    {                                                                                              \
        statement;                                                                                 \
    }                                                                                              \
    void name(et_mutant *m)

/* ---- catalogue.c: where many can show at all ---- */

bool et_is_moe(const et_step *s);
bool et_weighs_outputs(const et_step *s); /* y takes w f(x), not f(w x) */
bool et_is_biased(const et_step *s); /* its experts are */
bool et_has_shared(const et_step *s);
bool et_is_relu2(const et_step *s);
bool et_is_gated(const et_step *s); /* by swiglu */
bool et_has_many_experts(const et_step *s);
bool et_by_choice(const et_step *s);
bool et_by_threshold(const et_step *s);
bool et_has_anchor(const et_step *s);
bool et_sums_gates(const et_step *s);
bool et_divides_by_fanout(const et_step *s);
bool et_has_aux(const et_step *s);
bool et_has_bias(const et_step *s);
bool et_has_pools_in_batch(const et_step *s);

/* ---- catalogue.c: rows, and what becomes of them ---- */

bool et_is_routed(const et_mutant *m, const et_row *r); /* of a routed expert */
bool et_is_shared_row(const et_mutant *m, const et_row *r);

void et_zero_row(et_mutant *m, const et_row *r);
void et_double_row(et_mutant *m, const et_row *r);
void et_halve_row(et_mutant *m, const et_row *r);
void et_weigh_row(et_mutant *m, const et_row *r); /* times w */

/* token_slots lists the slots token by token; its inverse says where in that list a slot stands. */
int32_t *et_inverse_of_token_slots(et_mutant *m);

/* ---- faults_routing.c ---- */

/* kth [n]: of one micro-batch, the k-th largest scores; of pools their mean. */
void et_cutoffs_of(et_mutant *m, size_t batch, et_real *kth);
bool et_is_clamped(const et_step *s);
bool et_decides(const et_step *s); /* by a rule: the assignment is not given */

/* Does a score pass the threshold of this routing? place: of [N,n]. */
bool et_passes(const et_mutant *m, size_t place);

/* ---- faults_tokens.c ---- */

bool et_drops(const et_step *s); /* token choice with a capacity */

/* ---- faults_forward.c ---- */

/* The rows once more, with the weights of routed expert e modulo n. */
void et_use_expert(et_mutant *m, const et_row *r, size_t e);

void et_unweigh_dO(et_mutant *m, const et_row *r); /* dO = dy */
/* Of the rows that one slot of a token leaves over where slots overwrite each other, the last or the first; `alone`:
 * it leaves no shared expert either. */
bool et_is_overwritten(const et_mutant *m, const et_row *r, bool first, bool alone);

/* ---- faults_activation.c ---- */

/* relu(x); x^2; x itself, s(x), x s(x), s the logistic function; GELU by its usual approximation with a tanh, and itself;
 * relu(x)^2. */
typedef enum et_curve {
    ET_CURVE_RELU,
    ET_CURVE_SQUARE,
    ET_CURVE_NONE,
    ET_CURVE_LOGISTIC,
    ET_CURVE_SILU,
    ET_CURVE_GELU_TANH,
    ET_CURVE_GELU,
    ET_CURVE_RELU2
} et_curve;
/* dH = dA times its slope at H. */
void et_slope_row(const et_row *r, et_curve of);

/* ---- faults_bias.c ---- */

void et_bias_without_last(et_mutant *m, const et_row *r); /* db without the expert's last row */

/* ---- faults_backward.c ---- */

/* A weight gradient from other factors: left [load,.] for dH, dV or dO, right [load,.] for x or A; NULL: the right ones. */
void et_gradient_from(const et_mutant *m, const et_row *r, const et_real *left, const et_real *right);

/* dp of one token's slots from dw: (a dw - carried) / by, a the routed scale. Carried under norm = sum: sum_j w_j dw_j. */
void et_weigh_backward(et_mutant *m, const et_row *r, et_real carried, et_real by);
et_real et_carried(const et_mutant *m, size_t t);
/* What gates are divided by under norm = sum; 1 under the others. */
et_real et_sum_of_gates(const et_mutant *m, size_t t);
void et_slope_one(et_mutant *m, const et_row *r); /* dr = dp, and the z-loss's share */
/* dr of one token from its dp once more. */
void et_gate_backward_again(et_mutant *m, const et_row *r, et_gate gate, const et_real *anchor,
                            const et_real *danchor);

#endif
