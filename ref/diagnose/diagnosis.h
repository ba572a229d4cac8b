/* diagnosis.h: what the parts of an explanation tell each other. Internal.
 *
 *     explain.c              which hypotheses are tried, in what order; what is reported
 *     failing_rows.c         the candidate's tensors; which tokens and experts fail; in which of them a hypothesis may
 *                            hold, and on how many it is tried
 *     mutant_agrees.c        a mutant against the candidate; the variances under which it is compared
 *     hypothesis_fit.c       how tightly a hypothesis fits
 *     search_time.c          how much CPU time all of it may take
 *     rounding_hypotheses.c  hypotheses about rounding, which change no reference value; another profile as one
 *     own_stages.c           such a profile stage by stage, from the candidate's own numbers
 *     stale_rows.c           are they another call's rows?
 *     misread_rows.c         are they by another expert's weights, or another token's?
 *     unexplained.c                            what is wrong, and where, if nothing explains it
 *     mutant.c, mutant_hooks.c, mutant_rows.c  the reference with one thing done wrong, on picked tokens
 *     catalogue.c, faults_*.c                  what can go wrong
 *
 * Another profile under which everything passes is looked for by ref/verdict/choose_profile.c.
 */
#ifndef ET_DIAGNOSIS_H
#define ET_DIAGNOSIS_H

#include "ref/diagnose/mutant.h"
#include "ref/verdict/judge.h"

/* Mismatches of selection, state and layout are explained apart from those of the arithmetic, which has
 * been judged given the candidate's own routing. */
typedef enum et_part { ET_PART_ROUTING, ET_PART_ARITHMETIC, ET_PARTS } et_part;

/* One tensor of the candidate. */
typedef struct et_observed {
    const et_tensor_out *got;
    const et_tensor_verdict *verdict;
    const char *shape;    /* in letters, as in the table of tensors */
    size_t rows, columns; /* as a matrix; [n,h,d]: the rows of all experts one after the other */
    et_stage stage;       /* ET_STAGES: it takes no part (metric.*, logits) */
    et_part part;
    bool failed, passed;     /* or neither: inconclusive */
    const void *right;       /* the reference's values */
    const et_real *variance; /* NULL for integers and masks */
    double noise;            /* sum of the variances over sum of the values' squares */
    double limit;            /* T_e */
} et_observed;

/* CPU seconds that a search may take. Asked before each piece of work: is there enough left for one as long as the
 * longest so far? */
typedef struct et_budget {
    double limit;      /* 0: none */
    double start, now; /* of the process's CPU time; now: when it was last asked */
    double until;      /* the part of the limit that the present phase may use up */
    double longest[4]; /* of each kind, so far or by estimate */
    int doing;         /* which was begun last; -1: nothing */
    size_t left_out;   /* pieces that there was no time for */
} et_budget;

/* One hypothesis on picked tokens; on all of them, by the full judgement; another profile's error bars; the same with
 * sums that are rounded after every addition. */
enum { ET_ATTEMPT, ET_JUDGEMENT, ET_PROFILE_BARS, ET_BARS_OF_SUMS };

/* A hypothesis that explains: where and how it holds, and how tightly it fits; INFINITY: not compared. */
typedef struct et_finding {
    const et_hypothesis *what;
    char scope[sizeof((et_explanation){0}.scope)];
    double fit;
    bool covers[ET_PARTS]; /* the parts that it accounts for */
    bool forward_alone;    /* and of the arithmetic only the forward pass */
} et_finding;

typedef struct et_diagnosis {
    et_verdict *verdict;
    const et_judgement *j;
    const et_step *right;
    size_t count;
    et_observed *observed; /* [count] */
    size_t wrong_count;
    const et_observed *wrong[ET_MAX_STEP_TENSORS]; /* failing tensors of reals, of the arithmetic */
    bool routing_failed;                          /* the assignment itself is a mismatch */
    bool failed[ET_PARTS], shows_backward, backward_failed, forward_failed;
    bool explained[ET_PARTS]; /* so far */
    bool forward_explained;   /* the forward pass, by what leaves the backward pass aside */
    bool forward_alone;       /* the backward pass is left aside at present */
    bool small;          /* a step costs next to nothing */
    uint8_t *bad_token;  /* [N] some element of one of its rows fails */
    uint8_t *bad_expert; /* [n+1] some of its rows, or weights, do, at the first stage that fails */
    uint8_t *bad_row;    /* [S+N+N] rows of slots, of the shared expert, of tokens, at the first stage of rows that
                          * fails */
    size_t bad_rows, rows; /* rows: of that stage's tensors */
    et_stage first_failure; /* of a tensor that belongs to experts; ET_STAGES: none */
    et_stage first_rows;    /* the first stage of which rows fail; ET_STAGES: none */
    size_t bad_tokens, bad_experts;
    et_real *room; /* for the longest row of a tensor */
    size_t found;
    et_finding findings[ET_MAX_EXPLANATIONS];
    et_budget budget;
} et_diagnosis;

/* ---- failing_rows.c ---- */

et_status et_diagnosis_open(et_diagnosis *q, et_verdict *verdict, const et_judgement *j,
                          et_error *error);
void et_diagnosis_close(et_diagnosis *q);

size_t et_experts_of(const et_diagnosis *q); /* n; 1 for a dense layer */
size_t et_slots_in(const et_diagnosis *q);
bool et_is_shared(const et_observed *x);    /* of the shared expert */

/* Whose an element is: N, and n+1: nobody's; n: the shared expert's. */
typedef struct et_owner {
    size_t token, expert;
} et_owner;
et_owner et_owner_of(const et_diagnosis *q, const et_observed *x, size_t row, size_t column);
/* Of a tensor of reals. */
bool et_element_fails(const et_observed *x, size_t i);

size_t et_count_marks(const uint8_t *marks, size_t count);

/* Is a row marked as failing at the first stage at which rows fail? */
bool et_row_fails(const et_diagnosis *q, const et_observed *x, size_t row);

/* Is it a failure to be explained at present? */
bool et_takes_part_in_search(const et_diagnosis *q, const et_observed *x);

enum { ET_TIERS = 4 };

/* Scopes of a higher tier are tried where those of the lower ones explain nothing. */
int et_tier_of(et_where where);
/* false: this candidate's failures have no such scope; that of experts, or tokens, is of those that fail, where they are
 * few. */
bool et_scope_in(et_scope *scope, const et_diagnosis *q, et_where where);
/* "experts 1, 4" */
void et_scope_print(const et_scope *scope, const et_diagnosis *q, char *text, size_t room);

/* The picks on which a hypothesis is tried, the smallest first. */
typedef struct et_looks {
    size_t count;
    et_subject on[2];
} et_looks;

et_status et_looks_open(et_looks *l, const et_diagnosis *q, et_error *error);
void et_looks_close(et_looks *l); /* in any case */

/* ---- mutant_agrees.c ---- */

/* Slope and spread of some elements, and how many fail. */
typedef struct et_fit {
    et_group_sums sums;
    double failed, doubtful; /* elements past their bars; of them, those that have come nearer */
} et_fit;

/* sum V / sum values^2 where V is finite; 0 if all values are 0, or V is NULL. Where that is above 1, of the numbers alone that are above their noise. */
double et_noise_to_signal(size_t count, const et_real *values, const et_real *V);

/* Does the candidate agree with the mutant in what has been computed anew since the last call? Compares
 * every tensor that differs from the reference and that `seen` [count] does not name yet; without
 * `reals` only integers and the assignment. */
bool et_mutant_agrees(const et_diagnosis *q, et_mutant *m, bool reals, bool *seen);

/* For fitting a factor: the error against the reference regressed on what the mutant changes, over the
 * tensors that it changes. *failing: one of them is among those that failed. */
et_fit et_fit_factor(const et_diagnosis *q, const et_mutant *m, bool *failing);

/* The full judgement of the tensors that the mutant touches; it has been computed on all tokens. */
et_status et_mutant_passes(const et_diagnosis *q, const et_mutant *m, bool *passes, et_error *error);

/* ---- stale_rows.c ---- */

/* Rows of fewer numbers say nothing by themselves. */
enum { ET_TELLING_COLUMNS = 8 };

/* Could the rows of a tensor that fail first be those of another call? */
bool et_could_be_memory(const et_diagnosis *q, const et_observed *x);

/* ---- misread_rows.c ---- */

/* Is a row of H, V, f(x) or dA what its own operand gives by another expert's weights, or another token's x by its own
 * expert's? Of `as` the one is not the row's own. */
bool et_is_misread(const et_diagnosis *q, const et_observed *x, size_t row, et_owner *as);

/* ---- own_stages.c ---- */

/* Does every tensor that fails pass from the candidate's own numbers under profile p and its bars? True where nothing is
 * shown of it. ET_ENOMEM. */
et_status et_stages_pass_under(const et_profile *p, const et_diagnosis *q, const et_bars *bars,
                               bool *pass, et_error *error);

/* ---- explain.c ---- */

/* Notes an explanation: the hypothesis, where it applies, how, and how tightly it fits. To be called in order, the
 * most specific first; another form of one noted before is added to its scope. */
void et_diagnosis_note(et_diagnosis *q, const et_hypothesis *what, const bool covers[ET_PARTS],
                     const char *where, const char *how, double fit);

/* ---- search_time.c ---- */

void et_budget_open(et_budget *b, double limit);
/* The first piece of work of a kind will take about so long. */
void et_budget_expect(et_budget *b, int kind, double seconds);
/* May another piece of work of this kind begin? If not, it is counted as left out. */
bool et_budget_allows(et_budget *b, int kind);
/* What follows may use up `share` of what is left until `part` of the limit is spent. */
void et_budget_until(et_budget *b, double part, double share);
/* Says in the verdict what was left out, if anything was. */
void et_budget_report(const et_budget *b, et_verdict *v);

/* ---- hypothesis_fit.c ---- */

/* What a hypothesis expects of a tensor: values, and the variances of its errors. */
typedef struct et_guess {
    const et_real *values;   /* NULL: the reference's */
    const et_real *variance; /* NULL: the verdict's own */
    double slope;            /* this part of the reference is added */
    int bits;                /* besides it is rounded to so many; 0: it is not */
} et_guess;

typedef struct et_likelihood {
    double sum, squares, n; /* squares: of the errors, in variances */
} et_likelihood;

void et_fit_add(et_likelihood *l, const et_observed *x, const et_guess *guess);
double et_fit_of(const et_likelihood *l);

/* How tightly the mutant fits, which passes the full judgement. */
double et_mutant_fit(const et_diagnosis *q, const et_mutant *m);

/* ---- rounding_hypotheses.c ---- */

/* A profile that explains: the errors are of the size that it says, and far from what the one that judged says.
 * evident: the candidate's numbers are of that profile, too. */
typedef struct et_other_profile {
    const et_profile *profile; /* NULL: none passes */
    double fit;
    bool explains, evident;
} et_other_profile;

/* verdict->passes_under. */
et_status et_find_other_profile(et_diagnosis *q, et_other_profile *other, et_error *error);

/* Tries the hypotheses about rounding on the arithmetic part. */
et_status et_explain_precision(et_diagnosis *q, et_error *error);

/* ---- explain_model.c ---- */

/* After a mismatch of a layer that is no feed-forward layer. */
et_status et_explain_model(et_verdict *verdict, const et_judgement *j, et_error *error);

/* Tries the mistakes that make a step of their own, and notes in the verdict those that explain all of it. */
et_status et_explain_by_layers(et_verdict *v, const et_judgement *j, et_budget *budget,
                               et_error *error);

/* ---- unexplained.c ---- */

/* Is a row of the candidate another one of the reference? */
bool et_holds_another_row(const et_diagnosis *q, const et_observed *x, size_t row);

/* Writes verdict->residual. */
et_status et_describe_residual(et_diagnosis *q, et_error *error);

#endif
