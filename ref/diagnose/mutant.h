/* mutant.h: the reference with one thing done wrong. Internal.
 *
 * A hypothesis is a small mistake: a hook at one stage of the step, a few lines long. A mutant is the
 * reference run with it: the functions of step.c, moe.c and ffn.c, whose every array passes by the hook
 * on its way (et_rounding.mutate). What follows from a wrong value is computed from it.
 *
 *     stage                                           computed by
 *     plan -> mask -> cutoff,  state                  et_step_route, et_step_update_state
 *     gates -> weights                                et_gate_forward, et_moe_weigh
 *     H, V -> A -> O                                  et_moe_experts
 *     y                                               et_moe_combine
 *     losses                                          et_step_losses
 *     dw, dO                                          et_moe_combine_backward; weights on inputs: dw in the next
 *     dW_down, dA -> dH, dV -> dW_up, dW_gate, db, shares of dx    et_moe_experts_backward
 *     dp -> dr -> dW_r, dx                            et_moe_score_backward
 *     layout                                          the order in which slots are shown
 *
 * Each line is a phase; one that no hook has reached is the reference's own. Whatever looks at scores
 * alone, the first two lines and the losses, is cheap, and computed for all tokens. The rest is computed
 * on a *sub-step*: a step of picked tokens, with their rows of x and dy, their slots, and the weight
 * gradients of those experts all of whose tokens were picked. So many hypotheses can be tried in
 * little time.
 *
 * Letters as in moe.h. The shared expert counts as expert n; its slot is its token. A dense layer is one
 * expert without gates that all tokens go to.
 */
#ifndef ET_MUTANT_H
#define ET_MUTANT_H

#include "etref/dtype.h"
#include "etref/verify.h"
#include "ref/step/tensors.h"

/* The phases of a mutant, in order. */
typedef enum et_phase {
    ET_SELECTION,
    ET_SCORES,
    ET_EXPERTS,
    ET_COMBINE,
    ET_LOSSES,
    ET_COMBINE_BACKWARD,
    ET_EXPERTS_BACKWARD,
    ET_SCORE_BACKWARD,
    ET_LAYOUT,
    ET_PHASES
} et_phase;

/* The stage at which a tensor of the table is computed; ET_STAGES for those beside hypotheses' stages. */
et_stage et_stage_of(const char *tensor);
unsigned et_stages_of(const et_case *c, et_phase phase); /* a bit each */
et_phase et_phase_of(et_stage stage);                    /* ET_PHASES for those beside */

/* What an array has a row for: a token; a slot, and the shared expert's array a token; all weights of an expert are
 * one row, and so are all that there are of dW_r. */
typedef enum et_rows_are_of {
    ET_NO_ROWS,
    ET_OF_TOKENS,
    ET_OF_SLOTS,
    ET_OF_EXPERTS,
    ET_OF_ALL
} et_rows_are_of;

et_rows_are_of et_rows_at(et_stage stage);
size_t et_columns_at(const et_moe *moe, et_stage stage, bool shared);
/* The name of the tensor that a stage computes, or of the shared expert's; "": there is none. */
const char *et_tensor_at(et_stage stage, bool shared);
/* Where a step has the address of a stage's array, or of the shared expert's; NULL: it has none. */
et_real **et_array_at(et_step *s, et_stage stage, bool shared);
/* Arrays of all stages of a phase are those of `room`. */
void et_take_arrays(et_step *to, et_step *room, et_phase phase);

typedef struct et_mutant et_mutant;

/* Rows that belong together: where their numbers stand. Of an array that has a row a token (y, dp, dr,
 * dx) one token's, and `values` alone; of the weights, which are all there, one slot's, and w. Else of one
 * expert, one after the other; what has not been computed yet is NULL. */
typedef struct et_row {
    et_stage stage;
    et_real *values;     /* the array of the stage itself; of a weight gradient, the expert's */
    size_t size;         /* numbers in it */
    size_t expert;       /* n: the shared one, whose slots are its tokens */
    size_t first, count; /* from this slot of the sub-step on */
    size_t slot, token;  /* of the first row, in the whole step */
    size_t place, load;  /* it is row `place` of the expert's `load` */
    size_t t;            /* its token in the sub-step */
    size_t width;        /* h or hs */
    const et_real *up, *down, *gating; /* the expert's weights */
    const et_real *b_up, *b_gate, *b_down; /* and biases; NULL: it has none */
    et_real *w, *dw;          /* [count] */
    et_real *H, *A, *dA, *dH; /* [count,width] */
    et_real *V, *dV;          /* the same, of swiglu alone */
    et_real *dO;              /* [count,d] */
} et_row;

/* Where a hypothesis puts its hand: one of the four functions. `settings` is called before the stage is
 * computed, with the step that will compute it, at PLAN, STATE and LOSSES; at GATES and WEIGHTS it
 * alters the layer, m->moe. The others are called afterwards: for all of it; for each picked row; for
 * all picked rows of an expert (of dW_r: for all that there are). Only the array of the stage itself may be written. */
typedef struct et_hook {
    et_stage at;
    unsigned variants;                                /* bit i: applies in variant i; 0: in all */
    bool (*who)(const et_mutant *m, const et_row *r); /* which rows `row` is for; NULL: all */
    void (*settings)(et_mutant *m, et_step *s);
    void (*whole)(et_mutant *m);
    void (*row)(et_mutant *m, const et_row *r);
    void (*rows)(et_mutant *m, const et_row *r);
} et_hook;

enum { ET_MAX_HOOKS = 32, ET_MAX_VARIANTS = 32 };

typedef enum et_nature {
    ET_BY_VALUE,      /* the hooks below */
    ET_BY_FACTOR,     /* the same, with a factor that is first fitted to the candidate */
    ET_BY_CANDIDATE,  /* rows take the candidate's own values, and what follows from them must follow */
    ET_BY_PROFILE,    /* the reference's values, another profile's errors */
    ET_BY_TRUNCATION, /* errors towards zero */
    ET_BY_FORMAT,     /* values of a coarser format */
    ET_BY_LAYER       /* a layer of the model, or several ranks: the whole step anew (explain_model.c) */
} et_nature;

/* ET_BY_LAYER: fills `wrong`, whose arrays are there and zeroed (of experts: a step that has not been run), as a kernel with
 * the mistake would. It may lay in other
 * inputs and settings; inputs that it allocates are gone when it returns. ET_ENOMEM. */
typedef et_status et_layer_mistake(et_step *wrong, const et_step *right, size_t variant,
                                   et_error *error);

typedef struct et_hypothesis {
    et_hypothesis_doc doc;
    et_nature nature;
    bool everywhere;                       /* or nowhere: confined to some experts or rows it would be another mistake */
    int only;                              /* an et_where: the only scope that it has; 0: any */
    bool (*applies)(const et_step *right); /* NULL: always */
    bool (*allowed)(const et_profile *p,
                    size_t variant); /* the profile does it itself; NULL: never */
    const char
        *variants[ET_MAX_VARIANTS]; /* what tells them apart, for the scope; none: one form */
    et_hook hooks[ET_MAX_HOOKS];    /* up to the first without a function */
    et_place
        place; /* ET_BY_PROFILE: of fewer `bits`; where these are 0, subnormals are flushed, or `stochastic` */
    int bits;
    bool stochastic; /* ET_BY_PROFILE: roundings go up or down by chance */
    et_dtype format; /* ET_BY_FORMAT */
    et_layer_mistake *layer;
} et_hypothesis;

/* ---- catalogue.c: the hypotheses ---- */

/* NULL past the end. */
const et_hypothesis *et_hypothesis_row(size_t index);
/* What tells a variant apart; NULL: there is no such variant. */
const char *et_hypothesis_form(const et_hypothesis *what, size_t variant);
/* The variant's hooks at a stage, one after the other, the first after NULL; NULL when there are no more. */
const et_hook *et_hypothesis_hook(const et_hypothesis *what, size_t variant, et_stage stage,
                                  const et_hook *after);
/* Bit of each stage that the hypothesis, in this variant, can change. forward_only: the backward pass goes
 * by the reference's values. */
unsigned et_hypothesis_reach(const et_case *c, const et_hypothesis *what, size_t variant,
                             bool forward_only);
/* The first stage at which it puts its hand. */
et_stage et_hypothesis_starts(const et_hypothesis *what, size_t variant);

/* Where a hypothesis holds. Only the routed or only the shared expert, which in many kernels are two pieces of code;
 * some experts, or some tokens, or some rows: those that fail. */
typedef enum et_where {
    ET_EVERYWHERE,
    ET_IN_ROUTED,
    ET_IN_SHARED,
    ET_IN_EXPERTS,
    ET_IN_TOKENS,
    ET_IN_ROWS,
    ET_WHERES
} et_where;

typedef struct et_scope {
    et_where where;
    const uint8_t *marks; /* [n+1], [N]: of experts, of tokens; [S+N+N]: rows of slots, of the shared expert, of tokens */
} et_scope;

/* One mistake: a hypothesis in one form, where it holds, and how. */
typedef struct et_fault {
    const et_hypothesis *what;
    size_t variant;
    et_scope scope;
    bool forward_only; /* the backward pass goes by the reference's values */
    double factor;     /* ET_BY_FACTOR */
} et_fault;

/* ---- mutant_rows.c: sub-steps ---- */

/* Picked tokens, and what that means under an assignment. Numbers of the sub-step, and of the whole. */
typedef struct et_pick {
    bool whole;              /* all of them */
    size_t count, *tokens;   /* [count] ascending */
    size_t *slots;           /* of each slot of `a` */
    uint8_t *complete;       /* [n+1] are all the expert's tokens picked? */
    uint8_t *mask;           /* [count,n] */
    et_assignment a;         /* of the picked tokens alone */
    const et_assignment *of; /* of all */
} et_pick;

/* `tokens` [N]: which are picked; NULL: all. ET_ENOMEM; on failure there is nothing to close. */
et_status et_pick_open(et_pick *p, const et_assignment *of, bool shared, const uint8_t *tokens,
                       et_error *error);
void et_pick_close(et_pick *p); /* accepts zeros */

/* Their rows, of `columns` numbers each; by slot or by token. */
void et_pick_gather(const et_pick *p, bool slots, size_t columns, const et_real *from, et_real *to);

/* What all mutants of one candidate have in common. */
typedef struct et_subject {
    const et_step *right; /* the reference: what a mutant deviates from */
    const et_tensor_out *candidate;
    size_t count;
    et_moe moe;          /* its layer, of all tokens, on the fast engine */
    et_assignment dense; /* of a dense layer: all tokens to one expert */
    et_pick pick;
    et_real *x, *dy; /* [count,d] of the picked tokens */
    void *rows;      /* where these are, if not all are picked */
    et_step sub;     /* the reference's values on them; no gradient of a weight */
    et_step room;    /* for those of one mutant at a time, once there is one */
} et_subject;

/* `right` has been run and lives longer. As et_pick_open. */
et_status et_subject_open(et_subject *on, const et_step *right, const et_tensor_out *candidate,
                          size_t count, const uint8_t *tokens, et_error *error);
void et_subject_close(et_subject *on); /* accepts zeros */

/* Room for every array of a step of the picked tokens, zeroed. The caller frees it, also on failure. */
et_status et_subject_room(const et_subject *on, const et_pick *pick, et_step *room,
                          et_error *error);

/* ---- mutant.c ---- */

enum { ET_MAX_OWN = 64 };

struct et_mutant {
    et_subject *on;
    et_fault fault;
    bool rerouted;          /* the mask's deviation is carried through all that follows */
    et_moe moe;             /* the layer, of all tokens; hooks may change gate and norm */
    et_step all;            /* what is computed for all tokens: scores, routing, losses, state */
    const et_assignment *a; /* of all tokens */
    const et_pick *pick;
    et_step s;          /* the sub-step */
    et_moe_values used; /* by the backward pass: s.fwd, or the reference's */
    /* Slots' and shared expert's; NULL until a hook asks for them. */
    et_real *mixed[2];                 /* [S], [count] the weights as y takes them */
    et_real *shares[2];                /* [S,d], [count,d] of dx; dX where weights stand on the inputs */
    et_real *loss_gates, *loss_logits; /* [count,n]: dp and dr by the losses alone */
    bool ranked;                    /* the mask follows from an order, not from a threshold alone */
    bool blocked;                   /* later stages need tokens that were not picked */
    unsigned reach, done, compared; /* bit of each stage: can differ; is computed; was compared */
    et_status status;
    et_error *error;                        /* of the phase at hand */
    et_step routed, kept, losses, own_room; /* whose arrays the above point to */
    et_step right_losses; /* what the backward pass of a forward mistake goes by */
    et_step *room; /* the subject's; its own where it is rerouted; NULL: not needed yet */
    et_assignment own;
    et_pick own_pick;
    et_rounding hand; /* calls the hooks */
    size_t own_count;
    void *owned[ET_MAX_OWN];
};

/* A mutant about which nothing has been computed yet. `carried`: a hook at the mask changes who goes
 * where (not so for a candidate whose own assignment is known: it is judged by that). It stays where it
 * is opened: hooks point to it. */
void et_mutant_open(et_mutant *m, et_subject *on, const et_fault *fault, bool carried);
void et_mutant_close(et_mutant *m);

/* Computes one phase, if the hypothesis reaches it. To be called for each phase in order. */
et_status et_mutant_phase(et_mutant *m, et_phase phase, et_error *error);

/* A tensor of the table as the mutant has it, if it has been computed anew; NULL if it is the reference's.
 * One that has a row a token, or a slot, has those of the picked ones alone. */
const void *et_mutant_values(const et_mutant *m, const char *tensor);

/* The mutant as a step; all tokens are picked. */
et_step et_mutant_step(const et_mutant *m);

/* ---- mutant_hooks.c: calling hooks ---- */

bool et_mutant_hooked(const et_mutant *m, et_stage stage);
void et_mutant_settings(et_mutant *m, et_stage stage, et_step *s);
/* The other functions of a stage that has been computed; of the weights, whose rows are of all tokens. */
void et_mutant_call(et_mutant *m, et_stage stage);
void et_mutant_call_weights(et_mutant *m);
/* An et_mutate: the layer passes H, A, dA or dH of an expert, or dp or dr of all tokens. */
void et_mutant_hand(void *user, const char *site, size_t count, et_real *values);

/* ---- mutant_hooks.c: what hooks build with ---- */

/* Zeroed, and freed with the mutant; NULL, and m->status set, where there is no memory. Not to be called by
 * hooks at H, A, dA and dH, of which several may run at once. */
void *et_mutant_own(et_mutant *m, size_t count, size_t size);
et_real *et_mutant_reals(et_mutant *m, size_t count);
/* The same, a copy. */
et_real *et_mutant_copy(et_mutant *m, const et_real *from, size_t count);
int32_t *et_mutant_integers(et_mutant *m, size_t count);
/* What the x of row q of an expert's rows is multiplied by: w where weights stand on the inputs, else 1. */
et_real et_factor_of_x(const et_mutant *m, const et_row *r, size_t q);
void et_scale_values(size_t count, double factor, et_real *values);
/* to += factor * from. */
void et_add_row(size_t d, et_real factor, const et_real *from, et_real *to);
/* Token t's slots; returns how many. */
size_t et_slots_of(const et_assignment *a, size_t t, const int32_t **slots);
/* The rows once more: H, O, dA or the shares of dx (dX where weights stand on the inputs), through the weights W, with the
 * biases beside them, read as if transposed where `turned`; H of the rows x [count,d], of the tokens' own where it is NULL. */
void et_through(et_mutant *m, const et_row *r, const et_real *W, bool turned, const et_real *x);
/* The same by the right weights, of the first `terms` terms of each sum alone. */
void et_through_terms(et_mutant *m, const et_row *r, size_t terms);
/* Computes m->shares. */
bool et_take_shares(et_mutant *m);
/* Gate values by m->moe.gate and the scores given [N,n]. */
void et_gates_again(et_mutant *m, const et_real *scores);

/* What choices compare at one place of [N,n], the bias added. */
et_real et_mutant_score(const et_mutant *m, size_t place);

#endif
