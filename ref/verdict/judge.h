/* judge.h: what the parts of the verdict tell each other. Internal.
 *
 *     verify.c      the order of the five parts, and the verdict's line
 *     admission.c   is the candidate what it says it is: names, types, shapes, inputs
 *     routing.c     its assignment: read, and judged decision by decision
 *     unseen.c      what hangs on open decisions that it does not show
 *     elements.c    one tensor, element by element
 *     groups.c      slope and spread of a tensor and of its groups
 *     aligned.c     rows and columns of weight gradients that err as wholes
 *     calibration.c the limits: quantiles, and what was measured on honest kernels
 *     choice.c      which profile judges, where none is named; would another one do?
 *     conclusive.c  can any kernel's results be judged?
 *     explain.c     the catalogue tried on a mismatch; mutant.c and catalogue.c serve it
 */
#ifndef ET_JUDGE_H
#define ET_JUDGE_H

#include "etref/bundle.h"
#include "etref/verify.h"
#include "ref/layers/twins.h"
#include "ref/oracle/noise.h"
#include "ref/oracle/tensors.h"

/* Called with every group that is tested, of tensor `tensor`: how the campaign gathers what c has to
 * cover. */
typedef void et_group_visit(void *user, const char *tensor, const et_group *group);

/* Open decisions that a candidate does not show, and what hangs on them. */
typedef struct et_unseen {
    size_t open;      /* how many there are; 0: everything can be judged */
    uint8_t *tokens;  /* [N] 1: nobody can tell which way this token's went */
    uint8_t *experts; /* [n] 1: one of them is this expert's, or changes a weight of its slots */
} et_unseen;

/* Which of a reference's tensors have values beyond the profile's range: by row of the table; and dr as an
 * operand of dx and dW_r. */
typedef struct et_overflows {
    bool at[ET_MAX_STEP_TENSORS], dr;
} et_overflows;

/* What a golden and a profile make of a verdict, for callers who judge many candidates by them. */
typedef struct et_bars {
    const et_step *variance; /* et_step_noise's */
    et_systematic systematic;
    et_overflows overflows;
} et_bars;

typedef struct et_judgement {
    const et_step *golden;    /* its inputs, and the routing that the rule gives */
    const et_step *reference; /* what is right given the candidate's own routing; may be `golden` */
    const et_step *variance; /* of the candidate's errors against `reference`, by the same tables */
    et_systematic systematic; /* errors that do not average out */
    et_token_twins twins;     /* tokens that err alike; zeros: none do */
    double directions;        /* of x: where parameters are rounded, tokens err in so many ways */
    double inputs, upstreams; /* rows of x, of dy, that are no multiples of each other */
    double hidden, shared_hidden; /* units of an expert that err independently */
    double scale; /* of all variances: 2 where the reference's own errors are as large */
    const et_tensor_out *candidate;
    size_t count;
    const uint8_t *mask; /* [N,n] the candidate's assignment, or NULL if it shows none */
    et_unseen unseen;
    size_t open;      /* open decisions in all, shown or not */
    bool counts_open; /* one of them may change how many passed a threshold */
    et_overflows overflows;
    bool sums_vanish; /* norm: sum, and a token's gates may add up to 0 in it */
    const et_verify_options *options;
    double alpha, tests;   /* alpha is divided by this number: all tests of the whole verdict */
    et_group_visit *visit; /* or NULL */
    void *user;
} et_judgement;

/* ---- verify.c ---- */

/* et_verify, and `visit` sees every group. */
et_status et_verify_visiting(et_verdict *verdict, const et_step *golden,
                             const et_tensor_out *candidate, size_t count,
                             const et_verify_options *options, et_group_visit *visit, void *user,
                             et_error *error);

/* bars.systematic and bars.overflows. */
et_status et_bars_find(et_bars *bars, const et_step *golden, const et_profile *p, et_error *error);

/* et_verify_visiting with bars, or NULL; `visit` may be NULL, too. */
et_status et_verify_with(et_verdict *verdict, const et_step *golden, const et_bars *bars,
                         const et_tensor_out *candidate, size_t count,
                         const et_verify_options *options, et_group_visit *visit, void *user,
                         et_error *error);

/* ---- admission.c ---- */

/* A tensor of that name, or NULL. */
const et_tensor_out *et_tensor_named(const et_tensor_out *list, size_t count, const char *name);

bool et_tensor_is_real(const et_tensor_out *t);
size_t et_tensor_count(const et_tensor_out *t);
bool et_same_shape(const et_tensor_out *a, const et_tensor_out *b);

/* Names, types, values, and all of a shape that does not depend on the candidate's routing; in.*
 * must equal the golden's. ET_EINVAL names the tensor. */
et_status et_admit(const et_judgement *j, et_error *error);
/* The rest, once its routing is known: rows of slots, against the candidate's own `assignment`. */
et_status et_admit_slots(const et_judgement *j, const et_assignment *assignment, et_error *error);
typedef struct et_missing {
    const char *first;
    size_t count;
} et_missing;
/* options->require: ET_EINVAL for a name that the golden does not have; *missing is what the candidate does
 * not have of them. */
et_status et_find_missing(const et_judgement *j, et_missing *missing, et_error *error);
bool et_is_required(const et_judgement *j, const char *name);

/* ---- routing.c ---- */

/* The candidate's assignment: *mask an allocated [N,n], or NULL if it shows none. Where what it
 * shows contradicts itself or the shapes of the case: NULL, and *out is a mismatch. */
et_status et_routing_read(const et_judgement *j, uint8_t **mask, et_routing_verdict *out,
                          et_error *error);

/* Judges j->mask (NULL: only counts what is open) against the golden's scores and j->variance. open
 * [N,n] out: 1 where the golden's own decision might fall otherwise. */
et_status et_routing_judge(et_judgement *j, et_routing_verdict *out, uint8_t *open,
                           et_error *error);

/* Tests that et_routing_judge makes, for the division of alpha. */
double et_routing_tests(const et_step *golden);

/* route.topk_expert and route.topk_token: do they list the assignment j->mask (the golden's if it is
 * NULL), in an order that is legal within noise? If not: outcome, failed, worst and reason of *out. */
et_status et_judge_order(const et_judgement *j, const et_tensor_out *topk, et_tensor_verdict *out,
                         et_error *error);

/* ---- unseen.c ---- */

/* How far a tensor depends on decisions. */
typedef enum et_hangs {
    ET_HANGS_NOT,
    ET_HANGS_BY_TOKEN,
    ET_HANGS_BY_EXPERT,
    ET_HANGS_ALL
} et_hangs;
et_hangs et_tensor_hangs(const et_case *c, const char *name);

/* For a candidate without routing: tokens with one or two open decisions get those that fit their
 * rows best; `mask` [N,n] comes in as the golden's and goes out with them. Fills in j->unseen, whose
 * arrays the caller frees. */
et_status et_unseen_infer(et_judgement *j, const uint8_t *open, uint8_t *mask, et_error *error);

/* ---- elements.c ---- */

/* The place of the profile at which a kernel rounds this tensor. */
et_place et_tensor_place(const char *name);
/* Has its error an exponential tail? (calibration.c) */
bool et_tail_is_coarse(const et_profile *p, const char *name);

/* Tensor `index` of the candidate against the same tensor of `reference` (j's own or a mutant),
 * under j's variances: everything but `name` of *out. Real tensors: elements and groups; integers and
 * masks: equality. ET_ENOMEM. */
et_status et_judge_tensor(const et_judgement *j, size_t index, const et_step *reference,
                          et_tensor_verdict *out, et_error *error);

/* The same, and what the verdict as a whole has to know. */
typedef struct et_doubt {
    bool errorless; /* no error where there should be some, against the golden itself */
    bool identical; /* and values that the kernel could not have stored */
    bool harmless;  /* inconclusive, but for a reason that no kernel could have removed */
} et_doubt;
et_status et_examine_tensor(const et_judgement *j, size_t index, const et_step *reference,
                            et_tensor_verdict *out, et_doubt *doubt, et_error *error);

/* ---- groups.c ---- */

/* Sums over elements with an error e, a regressor u and a variance V > 0. */
typedef struct et_sums {
    double n, eu, uu, q; /* their number, sum e u / V, sum u^2 / V, sum e^2 / V */
    double common;       /* of eu's variance, what all elements of a row have in common */
    double along;        /* u is a part of u': |sum u' u / V|, since gates err along u'; else 0 */
} et_sums;

/* What a row of a tensor stands for. */
typedef enum et_row_kind {
    ET_ROWS_TOKENS,
    ET_ROWS_SLOTS,
    ET_ROWS_EXPERTS,
    ET_ROWS_OTHER
} et_row_kind;

/* A real tensor laid out as a matrix; for [n,h,d] the rows of all experts one after the other. */
typedef struct et_sheet {
    const et_tensor_out *got;
    const double *want, *variance;
    size_t rows, columns;
    et_row_kind kind;
    const uint8_t
        *skip; /* 1: this row is not judged; row r asks skip[r / rows_per_skip]; or NULL */
    size_t rows_per_skip;
    double scale, extra; /* V = scale * variance + extra */
} et_sheet;

/* Errors e and weights 1/V of `count` elements from `first` on: both 0 where nothing is to be learnt, V
 * being 0 or e not finite. */
void et_sheet_weigh(const et_sheet *f, size_t first, size_t count, double *e, double *weight);
/* Their sums, with the regressor u = factor * part. */
et_sums et_sum_weighed(size_t count, const double *e, const double *weight, double factor,
                       const double *part);

/* Slope and spread of all groups, from the sums of rows [rows] and columns [columns], whose regressor is
 * the reference. Fills in whole, worst_group; a group past its limits makes the outcome ET_MISMATCH
 * and gives the reason. */
et_status et_judge_groups(const et_judgement *j, const et_sheet *f, const et_step *reference,
                          const et_sums *rows, const et_sums *columns, et_tensor_verdict *out,
                          et_error *error);

/* At least as many tests as et_judge_groups makes. */
double et_group_tests(const et_tensor_out *t, size_t experts);

/* ---- aligned.c ---- */

/* By which share the variance of sum(e u / V) over an expert's gradient exceeds sum(u^2/V), since errors move whole
 * rows, or whole columns; below 0 if they oppose each other. */
typedef struct et_aligned {
    double rows, columns;
} et_aligned;

/* Of W_up or W_down, an expert's or the shared one's, under j's variances. rows: sums over all rows of f; list out:
 * one for each expert, for a tensor that has no experts one. ET_ENOMEM. */
et_status et_find_aligned(const et_judgement *j, const et_sheet *f, const et_sums *rows,
                          et_aligned *list, et_error *error);

/* ---- choice.c ---- */

/* Have all the candidate's results and intermediates, but gradients of weights, no more bits than p stores? */
bool et_has_numbers_of(const et_judgement *j, const et_profile *p);

/* verdict->note, after a pass. */
void et_note_exactness(et_verdict *v);

/* After a mismatch: the tightest built-in profile under which the candidate passes, NULL if there is none, among those
 * that round something more coarsely than the one that judged, and ask no tensor for more bits than its numbers have. goes_on is asked before each verdict. */
et_status et_find_passing_profile(const et_profile **found, const et_judgement *j,
                                  bool (*goes_on)(void *user), void *user, et_error *error);

/* ---- explain.c ---- */

/* After a mismatch: fills in verdict->passes_under, explanations, residual and search. Reads verdict->tensors and
 * verdict->routing. ET_ENOMEM. */
et_status et_explain(et_verdict *verdict, const et_judgement *j, et_error *error);

#endif
