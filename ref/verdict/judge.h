/* judge.h: what the parts of the verdict tell each other. Internal.
 *
 *     verify.c            the order of the six parts, and the verdict's line
 *     admission.c         is the candidate what it says it is: names, types, shapes, inputs
 *     judge_routing.c     its assignment: read, and judged decision by decision
 *     candidate_slots.c   its slots in the reference's order
 *     unseen_decisions.c  what hangs on open decisions that it does not show
 *     kept_references.c   references and error bars (ref/bars), each made once
 *     judge_elements.c    one tensor, element by element
 *     group_limits.c      slope and spread of a tensor and of its groups
 *     choose_profile.c    which profile judges, where none is named; would another one do?
 *     conclusive.c        can any kernel's results be judged?
 *
 * What would explain a mismatch is asked in ref/diagnose.
 */
#ifndef ET_JUDGE_H
#define ET_JUDGE_H

#include "etref/bundle.h"
#include "etref/verify.h"
#include "ref/bars/bars.h"
#include "ref/bars/stages_alone.h"
#include "ref/step/tensors.h"

/* Called with every group that is tested, of tensor `tensor`: how the campaign gathers what honest kernels need. */
typedef void et_group_visit(void *user, const char *tensor, const et_group *group);

/* Open decisions that a candidate does not show, and what hangs on them. */
typedef struct et_unseen {
    size_t open;      /* how many there are; 0: everything can be judged */
    uint8_t *tokens;  /* [N] 1: nobody can tell which way this token's went */
    uint8_t *experts; /* [n] 1: one of them is this expert's, or changes a weight of its slots */
} et_unseen;

struct et_shelf;

typedef struct et_judgement {
    const et_step *golden;    /* its inputs, and the routing that the rule gives */
    const et_step *reference; /* what is right given the candidate's own routing; may be `golden` */
    const et_bars *bars;      /* of `reference` */
    const et_given *given;    /* what the candidate shows; NULL: no stage is judged by itself */
    const et_step *made;      /* what each stage makes of that */
    /* Explanations: the candidate has, in these tensors [ET_TENSORS], the errors of their stages alone; and what it
     * shows in truth. NULL: it is what it shows. */
    const bool *alone;
    const et_tensor_out *shown;
    struct et_shelf *shelf;
    const et_tensor_out *candidate;
    size_t count;
    const uint8_t *mask; /* [N,n] the candidate's assignment, or NULL if it shows none */
    et_unseen unseen;
    size_t open;      /* open decisions in all, shown or not */
    bool counts_open; /* one of them may change how many passed a threshold */
    const et_verify_options *options;
    et_group_visit *visit; /* or NULL */
    void *user;
} et_judgement;

/* Fills in verdict->passes_under, explanations, residual and search. Reads verdict->tensors and verdict->routing.
 * ET_ENOMEM. */
typedef et_status et_explainer(et_verdict *verdict, const et_judgement *j, et_error *error);

/* ---- verify.c ---- */

/* What a caller of et_verify does not have: zeros, or */
typedef struct et_aside {
    struct et_shelf *shelf; /* of this golden: keeps error bars from one verdict to the next */
    et_group_visit *visit;  /* sees every group */
    void *user;             /* visit's first argument */
    et_explainer *explain;  /* is asked after a mismatch, where options->explain says so */
} et_aside;

/* et_verify with these. */
et_status et_verify_with(et_verdict *verdict, const et_step *golden, const et_tensor_out *candidate,
                         size_t count, const et_verify_options *options, const et_aside *aside,
                         et_error *error);

/* All that the candidate shows as starts of stages, right or wrong. */
et_given et_given_by_candidate(const et_judgement *j);

/* ---- kept_references.c ---- */

/* The layer with one assignment, and its error bars under one profile. */
typedef struct et_shelved {
    struct et_shelved *next;
    uint8_t *mask;   /* [N,n]; NULL: the rule's own, or a dense layer */
    et_step step;    /* with that assignment; zeros where the golden serves */
    int32_t updates; /* of its state in evaluation */
    et_profile profile;
    et_bars bars;
    size_t users, last_use; /* at present; and when, in takings */
} et_shelved;

/* Bars cost dozens of runs of the layer, so they are kept, as many as fit into 256 MiB: those that were used last. A
 * shelf is one thread's. */
typedef struct et_shelf {
    const et_step *golden; /* {.golden = ...} is an empty shelf; it must live longer */
    const char *stored;    /* NULL, or the golden's bundle, which may have bars */
    size_t takings;
    et_shelved *first;
} et_shelf;

/* Made, if not there. mask: as above, of the golden's N and n. max_bytes: of a run of the layer, or 0. The caller
 * gives *taken back when he is done. ET_EINVAL, ET_ENOMEM. */
et_status et_shelf_take(et_shelf *s, const uint8_t *mask, const et_profile *p, size_t max_bytes,
                        et_bars_progress *progress, void *user, et_shelved **taken,
                        et_error *error);
void et_shelf_give_back(et_shelf *s, et_shelved *taken); /* accepts NULL */
void et_shelf_free(et_shelf *s);

/* The step that these bars are of. */
const et_step *et_shelved_step(const et_shelf *s, const et_shelved *taken);

/* ---- admission.c ---- */

/* Names, types, values, and all of a shape that does not depend on the candidate's routing; in.*
 * must equal the golden's. ET_EINVAL names the tensor. */
et_status et_admit(const et_judgement *j, et_error *error);
/* The rest, once its routing is known: rows of slots, against the candidate's own `assignment`. */
et_status et_admit_slots(const et_judgement *j, const et_assignment *assignment, et_error *error);
/* options->require: ET_EINVAL for a name that the golden does not have; v->missing is what the candidate does
 * not have of them. */
et_status et_find_missing(et_verdict *v, const et_judgement *j, et_error *error);
bool et_is_required(const et_judgement *j, const char *name);

/* ---- judge_routing.c ---- */

/* The candidate's assignment: *mask an allocated [N,n], or NULL if it shows none. Where what it
 * shows contradicts itself or the shapes of the case: NULL, and *out is a mismatch. */
et_status et_routing_read(const et_judgement *j, uint8_t **mask, et_routing_verdict *out,
                          et_error *error);

/* Judges j->mask (NULL: only counts what is open) against the golden's scores and their errors' variances in j->bars.
 * open [N,n] out: 1 where the golden's own decision might fall otherwise. */
et_status et_routing_judge(et_judgement *j, et_routing_verdict *out, uint8_t *open,
                           et_error *error);

/* Variance of one decision's score. */
double et_score_variance(const et_judgement *j, size_t place);

/* route.topk_expert and route.topk_token: do they list the assignment j->mask (the golden's if it is
 * NULL), in an order that is legal within noise? If not: outcome, failed, worst and reason of *out. */
et_status et_judge_order(const et_judgement *j, const et_tensor_out *topk, et_tensor_verdict *out,
                         et_error *error);

/* ---- candidate_slots.c ---- */

/* A candidate's tensors with its slots in another order: a list of its own, and rooms for what changed. */
typedef struct et_ordered {
    et_tensor_out *tensors;
    void *rooms[ET_MAX_STEP_TENSORS];
    size_t count;
} et_ordered;

/* Where route.slot_token (and route.slot_expert) say that the candidate's slots stand in another order than those of its
 * own assignment `a`: j->candidate becomes *own, which the caller frees, also on failure. ET_ENOMEM. */
et_status et_order_slots(et_judgement *j, const et_assignment *a, et_ordered *own, et_error *error);
/* Where several ranks exchange rows and the candidate has those of one expert and one rank in another order than the
 * reference, whose slots it names: likewise. ET_ENOMEM. */
et_status et_order_rows(et_judgement *j, et_ordered *own, et_error *error);
void et_ordered_free(et_ordered *own); /* accepts zeros */

/* ---- unseen_decisions.c ---- */

/* How far a tensor depends on decisions. */
typedef enum et_hangs {
    ET_HANGS_NOT,
    ET_HANGS_BY_TOKEN,
    ET_HANGS_BY_EXPERT,
    ET_HANGS_ALL
} et_hangs;
et_hangs et_tensor_hangs(const et_case *c, et_tensor_id id);

/* For a candidate without routing: tokens with one or two open decisions get those that fit their
 * rows best; `mask` [N,n] comes in as the golden's and goes out with them. Fills in j->unseen, whose
 * arrays the caller frees. */
et_status et_unseen_infer(et_judgement *j, const uint8_t *open, uint8_t *mask, et_error *error);

/* ---- judge_elements.c ---- */

/* The place of the profile at which a kernel rounds this tensor. */
et_place et_tensor_place(const char *name);

/* A tensor of V in a step of variances, or NULL. */
const et_real *et_variance_named(const et_bars *bars, const char *name);

/* Tensor `index` of the candidate against the same tensor of `reference` (j's own or a mutant), everything but `name`
 * of *out. Real tensors: elements and groups, under variances V (NULL: j's bars); integers and masks: equality.
 * ET_ENOMEM. */
et_status et_judge_tensor(const et_judgement *j, size_t index, const et_step *reference,
                          const et_real *V, et_tensor_verdict *out, et_error *error);

/* The same under j's bars, and what the verdict as a whole has to know. */
typedef struct et_doubt {
    bool errorless; /* no error where there should be some, against the golden itself */
    bool identical; /* and values that the kernel could not have stored */
    bool harmless;  /* inconclusive, but for a reason that no kernel could have removed */
    bool alone;     /* a mismatch of its stage by itself, and of nothing else */
    bool none;      /* NaN, where the range of the profile's numbers is left */
} et_doubt;
et_status et_examine_tensor(const et_judgement *j, size_t index, const et_step *reference,
                            et_tensor_verdict *out, et_doubt *doubt, et_error *error);

/* Its stage alone, from given numbers, under bars->alone: j has `given` and `made`, and bars that have `alone`. True where
 * nothing is given of it. ET_ENOMEM. */
et_status et_stage_passes(const et_judgement *j, size_t index, bool *passes, et_error *error);

/* ---- group_limits.c ---- */

/* Slope and spread of all groups of tensor `got`, whose errors are e, under the bars of its row of the table. Fills in
 * whole, worst_group; a group past its limits makes the outcome ET_MISMATCH and gives the reason. ET_ENOMEM. */
et_status et_judge_groups(const et_judgement *j, const et_tensor_out *got, const et_errors *e,
                          et_tensor_verdict *out, et_error *error);

/* Slope, spread and their limits of group `number` with these sums, from what replicas have there. A limit of
 * 0: not tested. */
et_group et_measure_group(const et_bars *b, const et_tensor_bars *t, size_t number,
                          const et_group_sums *s);

/* ---- choose_profile.c ---- */

/* Are all its numbers of that format? */
bool et_holds_alone(const et_tensor_out *t, et_dtype format);

/* Have all the candidate's results and intermediates, but gradients of weights, no more bits than p stores? */
bool et_has_numbers_of(const et_judgement *j, const et_profile *p);

/* verdict->note, after a pass. */
void et_note_exactness(et_verdict *v);

/* After a mismatch: the tightest built-in profile under which the candidate passes, NULL if there is none, among those
 * that round something more coarsely than the one that judged, and ask no tensor for more bits than its numbers have. goes_on is asked before each verdict. */
et_status et_find_passing_profile(const et_profile **found, const et_judgement *j,
                                  bool (*goes_on)(void *user), void *user, et_error *error);

#endif
