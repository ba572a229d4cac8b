/* faults.h: the parts of the catalogue. Internal.
 *
 * Each part is a table of hypotheses with a few lines of code for each row, in a file of its own. Each
 * mistake was seen in real kernels: in the tests and bug reports of MegaBlocks, ScatterMoE, vLLM, SGLang,
 * TransformerEngine, Megatron-LM, DeepEP, torchtitan, Tutel, PyTorch's grouped products, llama.cpp. A
 * hypothesis has variants where the same mistake comes in several forms: m->variant is an index into the
 * row's list. That the backward pass may have gone by right values all the same is tried for every forward
 * hypothesis, and needs no row.
 */
#ifndef ET_FAULTS_H
#define ET_FAULTS_H

#include "ref/verdict/mutant.h"

typedef struct et_faults {
    size_t count;
    const et_hypothesis *table;
} et_faults;

extern const et_faults et_selection_faults, et_state_faults, et_weight_faults, et_expert_faults,
    et_combine_faults, et_backward_faults, et_router_faults, et_loss_faults, et_layout_faults,
    et_precision_faults;

#define ET_ONE_FORM                                                                                \
    {                                                                                              \
        ""                                                                                         \
    }
#define ET_FAULTS(table)                                                                           \
    {                                                                                              \
        sizeof(table) / sizeof *(table), table                                                     \
    }

/* Where a hypothesis can show; a setting; what happens to a row: in a line. `s` is the step, `m` the mutant,
 * `r` the row. */
#define ET_WHERE(name, condition)                                                                  \
    static bool name(const et_step *s)                                                             \
    {                                                                                              \
        return condition;                                                                          \
    }                                                                                              \
    static bool name(const et_step *s)
#define ET_SETTING(name, difference)                                                               \
    static void name(et_mutant *m, et_step *s)                                                     \
    {                                                                                              \
        (void)m, (void)s;                                                                          \
        difference;                                                                                \
    }                                                                                              \
    static void name(et_mutant *m, et_step *s)

#define ET_ROW(name, difference)                                                                   \
    static void name(et_mutant *m, const et_row *r)                                                \
    {                                                                                              \
        (void)m, (void)r;                                                                          \
        difference;                                                                                \
    }                                                                                              \
    static void name(et_mutant *m, const et_row *r)

/* ---- where many can show at all ---- */

bool et_is_moe(const et_step *s);
bool et_has_shared(const et_step *s);
bool et_has_many_experts(const et_step *s);
bool et_by_choice(const et_step *s);
bool et_by_threshold(const et_step *s);
bool et_has_anchor(const et_step *s);
bool et_sums_gates(const et_step *s);
bool et_divides_by_fanout(const et_step *s);
bool et_has_aux(const et_step *s);

/* ---- what several parts use ---- */

/* to += factor * from. */
void et_add_row(size_t d, et_real factor, const et_real *from, et_real *to);
void et_scale_values(size_t count, double factor, et_real *values);

/* dO = dy, and dO = w w dy, of routed experts. */
void et_dO_unweighted(et_mutant *m, const et_row *r);
void et_dO_weighted_twice(et_mutant *m, const et_row *r);

/* y_t without its slots; y_t += weight f(x) of a slot, and factor s f_shared(x). */
et_real *et_y_of(et_mutant *m, size_t t);
void et_start_y(et_mutant *m, size_t t);
void et_add_slot(et_mutant *m, size_t t, size_t slot, et_real weight);
void et_add_shared(et_mutant *m, size_t t, et_real factor);
et_real et_weight_in_y(const et_mutant *m, size_t slot); /* w; 1 in a dense layer */

/* The rows once more, with the weights of routed expert e modulo n. */
void et_use_expert(et_mutant *m, const et_row *r, size_t e);
/* dH by other derivatives of the activation: 2 H; 1 where H > 0. */
void et_square_slope(et_mutant *m, const et_row *r);
void et_not_squared_slope(et_mutant *m, const et_row *r);

/* dp of one token's slots from dw: (dw - carried) / by. Carried under norm = sum: sum_j w_j dw_j. */
void et_weigh_backward(et_mutant *m, const et_row *r, et_real carried, et_real by);
et_real et_carried(const et_mutant *m, size_t t);
/* dr of one token from its dp once more. */
void et_gate_backward_again(et_mutant *m, const et_row *r, et_gate gate, const et_real *anchor,
                            const et_real *danchor);
/* dx_t takes what the inverse of token_slots names for its slots. */
void et_gather_dx_by_inverse(et_mutant *m);
/* token_slots lists the slots token by token; its inverse says where in that list a slot stands. */
int32_t *et_inverse_of_token_slots(et_mutant *m);

#endif
