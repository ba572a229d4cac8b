/* verify.c: the verdict on a kernel's output. See etref/verify.h.
 *
 *     candidate checked -> its routing read -> reference, with that routing -> variances
 *     -> decisions judged -> (routing not shown: what can be known of it) -> each tensor judged
 *     -> the verdict: one mismatch is a MISMATCH; else
 *        INCONCLUSIVE if something required is missing, if nothing was judged, or if a tensor could not
 *        be: it hangs on decisions that are not shown, is the golden itself, is out of range, or,
 *        required or one of the layer's results (y and the gradients), is below its own noise;
 *     -> else PASS
 *
 * The reference's own errors are those of binary64. Where the profile's accumulator is binary64, too,
 * they are as large as the candidate's: variances count twice.
 *
 * Left out: reading files (the tool's business).
 */
#include "ref/base/arithmetic.h"
#include "ref/base/memory.h"
#include "ref/base/parallel.h"
#include "ref/oracle/decide.h"
#include "ref/verdict/judge.h"

#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- everything that one verdict owns until it is given ---- */

typedef struct trial {
    et_judgement j;
    et_verdict *verdict;
    const et_bars *bars; /* the golden's, if the caller has them */
    et_step golden;      /* the caller's, and its state in evaluation, too */
    int32_t updates;
    et_step reference, variance; /* zeros where the golden serves, or before they are there */
    et_assignment assignment;    /* the candidate's own */
    uint8_t *shown;              /* the verdict's routing.mask */
    uint8_t *inferred, *open;    /* [N,n] masks */
    et_doubt *doubts;            /* [tensor_count] */
    bool absurd; /* an illegal routing of so many slots that nothing else is judged */
} trial;

static void end_trial(trial *t)
{
    et_step_free(&t->variance);
    et_step_free(&t->reference);
    et_assignment_free(&t->assignment);
    et_free_twins(&t->j.twins);
    free(t->j.unseen.tokens);
    free(t->j.unseen.experts);
    free(t->inferred);
    free(t->open);
    free(t->doubts);
}

static void tell(const trial *t, const char *phase, double done)
{
    const et_verify_options *o = t->j.options;
    if (o->progress) o->progress(o->user, phase, done);
}

/* ---- options ---- */

static et_status check_options(const et_verify_options *o, et_error *error)
{
    if (sizeof(et_real) != sizeof(double))
        return et_fail(error, ET_EINVAL,
                       "a library built with PRECISION=f32 cannot judge: its own errors are a "
                       "kernel's; use the usual build");
    if (o == NULL) return et_fail(error, ET_EINVAL, "no options to judge by");
    if (!(o->explain_seconds >= 0 && o->explain_seconds < INFINITY))
        return et_fail(error, ET_EINVAL, "explain_seconds = %g; 0 for no limit, or above",
                       o->explain_seconds);
    for (int i = 0; o->profile && i < ET_PLACES; i++)
        if (o->profile->bits[i] < 2 || o->profile->bits[i] > 53)
            return et_fail(error, ET_EINVAL, "profile '%s': place %d has %d bits; 2 to 53",
                           o->profile->name, i, o->profile->bits[i]);
    const double least = 1e-200; /* of which a test's share is still a number */
    if (!(o->alpha == 0 || (o->alpha >= least && o->alpha < 1)))
        return et_fail(error, ET_EINVAL, "alpha = %g; 0 for the default of 1e-9, or from %g to 1",
                       o->alpha, least);
    for (size_t i = 0; i < o->require_count; i++)
        if (o->require == NULL || o->require[i] == NULL)
            return et_fail(error, ET_EINVAL, "required name %zu is missing", i);
    return ET_OK;
}

/* ---- how many tests share alpha ---- */

static double count_tests(const et_judgement *j)
{
    double tests = 1 + et_routing_tests(j->golden);
    for (size_t i = 0; i < j->count; i++) /* copies of in.* are compared, not tested */
        if (et_tensor_is_real(&j->candidate[i]) && strncmp(j->candidate[i].name, "in.", 3) != 0)
            tests += (double)et_tensor_count(&j->candidate[i]) +
                     et_group_tests(&j->candidate[i], j->golden->c.experts);
    return tests;
}

/* ---- the reference and its variances ---- */

/* Evaluation leaves the state as it is, and a step does not repeat it. A candidate may show it, unchanged. */
static void show_state(et_step *s, int32_t *updates)
{
    if (!s->c.eval) return;
    s->state_ema = s->in.ema;
    s->state_bias = s->in.bias;
    *updates = (int32_t)s->c.ema_updates;
    s->state_updates = s->in.ema ? updates : NULL;
}

/* The golden, as a step that may take what is left of max_bytes. */
static et_step allowed(const trial *t, const et_step *s)
{
    et_step view = *s;
    view.max_bytes = t->j.options->max_bytes;
    view.bytes = t->reference.bytes;
    view.engine = ET_BLAS;
    return view;
}

static double largest_of(const et_tensor_out *t)
{
    const double *values = t->values;
    size_t count = et_tensor_count(t);
    double most = 0;
#pragma omp parallel for reduction(max : most) if (et_worth_threads(count))
    for (size_t i = 0; i < count; i++)
        if (fabs(values[i]) > most) most = fabs(values[i]);
    return most;
}

/* Which of the reference's tensors leave the range of the profile, as they are stored or as operands of the next
 * product. route.margin is infinite by design, and dy is used as it is stored. */
static et_overflows find_overflows(const et_step *s, const et_profile *p)
{
    et_overflows found = {0};
    et_tensor_out own[ET_MAX_STEP_TENSORS];
    const et_tensor_doc *doc;
    size_t have = et_step_tensors(s, false, own);
    for (size_t i = 0; (doc = et_tensor_doc_at(i)) != NULL; i++) {
        const et_tensor_out *t = et_tensor_named(own, have, doc->name);
        double largest = et_place_largest(p, et_tensor_place(doc->name));
        if (t && t->source == ET_FROM_F64 && largest < DBL_MAX / 2 &&
            strcmp(doc->name, "route.margin") != 0 && strcmp(doc->name, "in.dy") != 0)
            found.at[i] = largest_of(t) > largest;
    }
    const double operand = et_place_largest(p, ET_OPERANDS);
    const et_tensor_out *dr = et_tensor_named(own, have, "bwd.logits");
    found.dr = dr && operand < DBL_MAX / 2 && largest_of(dr) > operand;
    return found;
}

et_status et_bars_find(et_bars *bars, const et_step *golden, const et_profile *p, et_error *error)
{
    bars->overflows = find_overflows(golden, p);
    return et_noise_systematic(&bars->systematic, golden, p, error);
}

static et_status make_variance(trial *t, et_error *error)
{
    const et_profile *p = t->j.options->profile;
    const et_step *have = t->bars && t->j.reference == t->j.golden ? t->bars->variance : NULL;
    if (have && (have->state_ema || have->state_bias || !t->golden.c.eval)) {
        t->j.variance = have;
        t->j.systematic = t->bars->systematic;
        t->j.overflows = t->bars->overflows;
        return ET_OK;
    }
    t->j.overflows = find_overflows(t->j.reference, p);
    et_status status = et_noise_systematic(&t->j.systematic, t->j.reference, p, error);
    if (status != ET_OK) return status;
    tell(t, "error bars", 0.3);
    et_step_free(&t->variance);
    et_step view = allowed(t, t->j.reference);
    t->j.variance = &t->variance;
    return et_step_noise(&t->variance, &view, p, error);
}

/* The layer once more, with an assignment that is not the rule's. */
static et_status make_reference(trial *t, const uint8_t *mask, et_error *error)
{
    tell(t, "reference with the candidate's routing", 0.05);
    et_step *s = &t->reference;
    et_step_free(s);
    *s = et_step_like(t->j.golden);
    s->max_bytes = t->j.options->max_bytes;
    s->bytes = 0;
    s->block = t->j.golden->block;
    s->given_mask = mask;
    t->j.reference = s;
    et_status status = et_step_run(s, ET_BLAS, NULL, NULL, error);
    show_state(s, &t->updates);
    return status;
}

static bool same_mask(const trial *t, const uint8_t *mask)
{
    const et_step *golden = t->j.golden;
    size_t places = golden->c.tokens * golden->c.experts, i = 0;
    while (i < places && (mask[i] != 0) == (golden->route.mask[i] != 0)) i++;
    return i == places;
}

/* Under norm: sum, weights are p / T. Where all gates of a token are near the smallest number of the profile,
 * or errors of its logits may bring them there, T may come out as 0, 1 / T as infinite. */
static void find_vanishing_sums(et_judgement *j)
{
    const et_step *s = j->reference;
    const et_assignment *a = &s->assignment;
    double smallest = fmax(et_place_smallest(j->options->profile, ET_ACCUMULATOR), 1e-150);
    size_t n = s->c.experts;
    if (s->c.layer != ET_MOE || s->c.norm != ET_NORM_SUM) return;
    for (size_t t = 0; t < s->c.tokens; t++) {
        double largest = 0, V = 0;
        for (int32_t k = a->token_offsets[t]; k < a->token_offsets[t + 1]; k++) {
            size_t expert = (size_t)a->slot_expert[a->token_slots[k]];
            largest = fmax(largest, (double)s->fwd.gates[t * n + expert]);
        }
        for (size_t i = 0; i < n; i++) V = fmax(V, (double)j->variance->fwd.logits[t * n + i]);
        if (a->fanout[t] > 0 && largest < smallest * exp(16 * sqrt(V))) j->sums_vanish = true;
    }
}

/* ---- the routing ---- */

/* Slots enough to fear for the memory of a reference that would be of no use. */
static bool is_far(const trial *t)
{
    const et_assignment *golden = &t->j.golden->assignment;
    return t->assignment.slots > 2 * (golden->slots + golden->tokens);
}

static et_status read_routing(trial *t, et_error *error)
{
    const et_step *golden = t->j.golden;
    et_routing_verdict *routing = &t->verdict->routing;
    et_status status = et_routing_read(&t->j, &t->shown, routing, error);
    routing->mask = t->shown;
    if (status != ET_OK || t->shown == NULL) return status;
    t->j.mask = t->shown;
    status =
        et_assignment_build(&t->assignment, golden->c.tokens, golden->c.experts, t->shown, error);
    return status == ET_OK ? et_admit_slots(&t->j, &t->assignment, error) : status;
}

/* A routing that is not shown, and decisions that are open: the reference gets what can be inferred. */
static et_status infer_routing(trial *t, et_error *error)
{
    const et_step *golden = t->j.golden;
    void *room = NULL;
    et_status status =
        et_allocate(&room, golden->c.tokens * golden->c.experts, 1, "routing", error);
    if (status != ET_OK) return status;
    t->inferred = room;
    tell(t, "open decisions", 0.5);
    status = et_unseen_infer(&t->j, t->open, t->inferred, error);
    if (status != ET_OK || same_mask(t, t->inferred)) return status;
    status = make_reference(t, t->inferred, error);
    return status == ET_OK ? make_variance(t, error) : status;
}

static et_status judge_routing(trial *t, et_error *error)
{
    const et_step *golden = t->j.golden;
    et_routing_verdict *routing = &t->verdict->routing;
    bool other = t->shown && !same_mask(t, t->shown), far = other && is_far(t);
    void *room = NULL;
    et_status status =
        et_allocate(&room, golden->c.tokens * golden->c.experts, 1, "routing", error);
    if (status != ET_OK) return status;
    t->open = room;
    if (other && !far) status = make_reference(t, t->shown, error);
    if (status == ET_OK) status = make_variance(t, error);
    if (status == ET_OK) status = et_routing_judge(&t->j, routing, t->open, error);
    t->j.open = routing->open;
    t->absurd = far && routing->outcome == ET_MISMATCH;
    if (status == ET_OK && far && !t->absurd) {
        status = make_reference(t, t->shown, error);
        if (status == ET_OK) status = make_variance(t, error);
    }
    if (status == ET_OK && t->j.mask == NULL && routing->open > 0) status = infer_routing(t, error);
    return status;
}

/* ---- the tensors ---- */

static size_t candidate_index(const et_judgement *j, const char *name)
{
    size_t i = 0;
    while (i < j->count && strcmp(j->candidate[i].name, name) != 0) i++;
    return i;
}

static et_status examine(trial *t, size_t index, et_error *error)
{
    et_verdict *v = t->verdict;
    const et_tensor_out *got = &t->j.candidate[index];
    et_tensor_verdict *out = &v->tensors[v->tensor_count];
    et_doubt *doubt = &t->doubts[v->tensor_count];
    et_status status = ET_OK;
    v->tensor_count++;
    if (t->absurd) {
        *out = (et_tensor_verdict){.dtype = got->dtype, .elements = et_tensor_count(got)};
        out->outcome = ET_INCONCLUSIVE;
        snprintf(out->reason, sizeof out->reason, "not judged: %zu slots where the rule makes %zu",
                 t->assignment.slots, t->j.golden->assignment.slots);
    } else {
        status = et_examine_tensor(&t->j, index, t->j.reference, out, doubt, error);
    }
    snprintf(out->name, sizeof out->name, "%s", got->name);
    return status;
}

/* In the order of the table, inputs left out. */
static et_status judge_tensors(trial *t, et_error *error)
{
    et_verdict *v = t->verdict;
    const et_tensor_doc *doc;
    et_status status;
    if ((status = et_allocate((void **)&v->tensors, t->j.count, sizeof *v->tensors, "verdicts",
                              error)) ||
        (status =
             et_allocate((void **)&t->doubts, t->j.count, sizeof *t->doubts, "verdicts", error)))
        return status;
    for (size_t i = 0; status == ET_OK && (doc = et_tensor_doc_at(i)) != NULL; i++) {
        size_t index = candidate_index(&t->j, doc->name);
        if (index == t->j.count || strncmp(doc->name, "in.", 3) == 0) continue;
        tell(t, doc->name, 0.6 + 0.3 * (double)v->tensor_count / (double)t->j.count);
        status = examine(t, index, error);
    }
    return status;
}

/* ---- the verdict ---- */

#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
static void
pronounce(et_verdict *v, et_outcome outcome, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    v->outcome = outcome;
    vsnprintf(v->line, sizeof v->line, format, arguments);
    va_end(arguments);
}

/* What the layer is for: y and the gradients of everything that goes into it. */
static bool is_result(const char *name)
{
    return strcmp(name, "fwd.y") == 0 || strcmp(name, "bwd.x") == 0 ||
           strncmp(name, "bwd.w_", 6) == 0 || strcmp(name, "bwd.shared_up") == 0 ||
           strcmp(name, "bwd.shared_down") == 0;
}

/* The first tensor that was found to be `outcome`, NULL if none; how many there are. An inconclusive one
 * counts only if it stands in the way of a pass. */
static const et_tensor_verdict *first_of(const trial *t, et_outcome outcome, size_t *count)
{
    const et_verdict *v = t->verdict;
    const et_tensor_verdict *first = NULL;
    *count = 0;
    for (size_t i = 0; i < v->tensor_count; i++) {
        const et_tensor_verdict *one = &v->tensors[i];
        bool excused = outcome == ET_INCONCLUSIVE && t->doubts[i].harmless &&
                       !is_result(one->name) && !et_is_required(&t->j, one->name);
        if (one->outcome != outcome || excused) continue;
        if (first == NULL) first = one;
        (*count)++;
    }
    return first;
}

/* Every tensor whose values carry errors is the golden's own. */
static bool is_all_golden(const trial *t)
{
    size_t identical = 0;
    for (size_t i = 0; i < t->verdict->tensor_count; i++) {
        const et_tensor_verdict *one = &t->verdict->tensors[i];
        identical += t->doubts[i].identical;
        if (one->judged > one->exact && !t->doubts[i].errorless) return false;
    }
    return identical > 0;
}

static void pronounce_mismatch(et_verdict *v, const et_tensor_verdict *failed, size_t count)
{
    if (v->routing.outcome == ET_MISMATCH)
        pronounce(v, ET_MISMATCH, "FAIL: routing: %s%s%s", v->routing.reason,
                  failed ? "; arithmetic: first " : "", failed ? failed->name : "");
    else if (count > 1)
        pronounce(v, ET_MISMATCH, "FAIL: %s and %zu more: %s", failed->name, count - 1,
                  failed->reason);
    else
        pronounce(v, ET_MISMATCH, "FAIL: %s: %s", failed->name, failed->reason);
}

static void pronounce_pass(et_verdict *v)
{
    const et_tensor_verdict *nearest = NULL;
    double elements = 0;
    for (size_t i = 0; i < v->tensor_count; i++) {
        const et_tensor_verdict *one = &v->tensors[i];
        if (one->outcome != ET_PASS) continue;
        elements += (double)one->judged;
        if (one->limit_sigmas > 0 && (!nearest || one->largest_sigmas * nearest->limit_sigmas >
                                                      nearest->largest_sigmas * one->limit_sigmas))
            nearest = one;
    }
    char flips[64] = "";
    if (v->routing.shown)
        snprintf(flips, sizeof flips, "; %zu decisions differ legally", v->routing.differing);
    if (nearest)
        pronounce(v, ET_PASS,
                  "PASS: %.0f elements under profile %s; largest error %.2g deviations of %.2g "
                  "allowed, in %s%s",
                  elements, v->profile.name, nearest->largest_sigmas, nearest->limit_sigmas,
                  nearest->name, flips);
    else
        pronounce(v, ET_PASS, "PASS: %.0f elements under profile %s, all exact", elements,
                  v->profile.name);
}

static bool anything_passed(const et_verdict *v)
{
    for (size_t i = 0; i < v->tensor_count; i++)
        if (v->tensors[i].outcome == ET_PASS && v->tensors[i].judged > 0) return true;
    return false;
}

static void pronounce_missing(et_verdict *v, const et_missing *missing)
{
    if (missing->count > 1)
        pronounce(v, ET_INCONCLUSIVE, "INCONCLUSIVE: %s and %zu more are required and not there",
                  missing->first, missing->count - 1);
    else
        pronounce(v, ET_INCONCLUSIVE, "INCONCLUSIVE: %s is required and not there", missing->first);
}

static void pronounce_all(trial *t, const et_missing *missing)
{
    et_verdict *v = t->verdict;
    size_t failures, doubts;
    const et_tensor_verdict *failed = first_of(t, ET_MISMATCH, &failures);
    const et_tensor_verdict *doubtful = first_of(t, ET_INCONCLUSIVE, &doubts);
    if (failed || v->routing.outcome == ET_MISMATCH)
        pronounce_mismatch(v, failed, failures);
    else if (missing->count > 0)
        pronounce_missing(v, missing);
    else if (v->tensor_count == 0)
        pronounce(v, ET_INCONCLUSIVE, "INCONCLUSIVE: the candidate holds nothing to judge");
    else if (is_all_golden(t))
        pronounce(v, ET_INCONCLUSIVE,
                  "INCONCLUSIVE: the candidate is the golden itself, or as free of errors "
                  "(a kernel of 64 bits? profile f64 judges it)");
    else if (doubtful)
        pronounce(v, ET_INCONCLUSIVE, "INCONCLUSIVE: %s: %s", doubtful->name, doubtful->reason);
    else if (!anything_passed(v))
        pronounce(v, ET_INCONCLUSIVE, "INCONCLUSIVE: %s: %s", v->tensors[0].name,
                  v->tensors[0].reason);
    else
        pronounce_pass(v);
}

/* ---- the whole ---- */

/* *least = min(*least, rows of W that err independently). */
static et_status count_rows(size_t rows, size_t columns, const et_real *W, double *least,
                            et_error *error)
{
    et_copies copies;
    et_status status = et_find_copies(&copies, rows, columns, W, error);
    et_real *along = NULL;
    if (status == ET_OK) *least = fmin(*least, (double)rows / copies.mean);
    if (status == ET_OK) status = et_find_common(&along, rows, columns, et_rows(W, columns), error);
    if (along) *least = 1;
    free(along);
    et_free_copies(&copies);
    return status;
}

/* j->hidden and j->shared_hidden: of all experts the fewest. Where rows of W_down are alike, dA = dO W_down has
 * one error for all units, as have the columns of f(x); groups count 24 units as one source (groups.c). */
static et_status count_units(et_judgement *j, et_error *error)
{
    const et_step *s = j->golden;
    size_t h = s->c.d_expert, hs = s->c.shared_d_expert, d = s->c.d_model;
    size_t experts = s->c.layer == ET_MOE ? s->c.experts : 1;
    double outputs = (double)d, shared_outputs = (double)d;
    et_status status = ET_OK;
    j->hidden = (double)h;
    j->shared_hidden = (double)hs;
    for (size_t i = 0; status == ET_OK && i < experts; i++) {
        status = count_rows(h, d, s->in.up + i * h * d, &j->hidden, error);
        if (status == ET_OK) status = count_rows(d, h, s->in.down + i * h * d, &outputs, error);
    }
    if (status == ET_OK && s->in.shared_up)
        status = count_rows(hs, d, s->in.shared_up, &j->shared_hidden, error);
    if (status == ET_OK && s->in.shared_down)
        status = count_rows(d, hs, s->in.shared_down, &shared_outputs, error);
    j->hidden = fmin(j->hidden, 24 * outputs);
    j->shared_hidden = fmin(j->shared_hidden, 24 * shared_outputs);
    return status;
}

/* Rows that are no multiples of each other. rows NULL: all of them. */
static et_status count_directions(size_t N, size_t d, const et_real *rows, double *directions,
                                  et_error *error)
{
    void *first;
    size_t different = N;
    et_status status = et_allocate(&first, N, sizeof(int32_t), "parallel rows", error);
    if (status != ET_OK) return status;
    if (rows) status = et_find_equal_rows(N, d, rows, true, first, &different, error);
    *directions = (double)different;
    free(first);
    return status;
}

/* Is every number 0, or as large as the others? Then w dy has one rounding error for all tokens of the same w. */
static bool has_one_size(size_t count, const et_real *values)
{
    double size = 0;
    for (size_t i = 0; values && i < count; i++) {
        double value = fabs((double)values[i]);
        if (value != 0 && size != 0 && value != size) return false;
        if (value != 0) size = value;
    }
    return size != 0;
}

static et_status try_candidate(trial *t, et_error *error)
{
    et_judgement *j = &t->j;
    et_missing missing;
    et_status status;
    tell(t, "routing", 0);
    if ((status = et_admit(j, error)) || (status = et_find_missing(j, &missing, error)))
        return status;
    bool moe = j->golden->c.layer == ET_MOE;
    const et_step *s = j->golden;
    size_t N = s->c.tokens, d = s->c.d_model;
    if ((status = et_find_twins(&j->twins, N, d, s->in.x, s->in.dy, error)) ||
        (status = et_find_directions(&j->directions, N, d, s->in.x, NULL, error)) ||
        (status = count_directions(N, d, s->in.x, &j->inputs, error)) ||
        (status = count_directions(N, d, s->in.dy, &j->upstreams, error)) ||
        (status = count_units(j, error)))
        return status;
    if (has_one_size(N * d, s->in.dy)) j->upstreams = 1;
    if (moe && (status = read_routing(t, error))) return status;
    j->tests = count_tests(j);
    status = moe ? judge_routing(t, error) : make_variance(t, error);
    if (status != ET_OK) return status;
    find_vanishing_sums(j);
    if ((status = judge_tensors(t, error))) return status;
    pronounce_all(t, &missing);
    et_note_exactness(t->verdict);
    if (!j->options->explain || t->verdict->outcome != ET_MISMATCH) return ET_OK;
    tell(t, "explanation", 0.9);
    return et_explain(t->verdict, j, error);
}

/* ", passes under profile bf16", by whose choice it was judged, and the note: at the end of the line. */
static void complete_line(et_verdict *v)
{
    size_t used = strlen(v->line), room = sizeof v->line;
    if (v->passes_under)
        used += (size_t)snprintf(v->line + used, room - used, "; passes under profile %s",
                                 v->passes_under);
    if (v->chosen_from[0] && used < room)
        used += (size_t)snprintf(v->line + used, room - used, " [profile %s: %s]", v->profile.name,
                                 v->chosen_from);
    if (v->note[0] && used < room) snprintf(v->line + used, room - used, "; NOTE: %s", v->note);
}

et_status et_verify_with(et_verdict *verdict, const et_step *golden, const et_bars *bars,
                         const et_tensor_out *candidate, size_t count,
                         const et_verify_options *options, et_group_visit *visit, void *user,
                         et_error *error)
{
    ET_ARITHMETIC;
    *verdict = (et_verdict){0};
    et_status status = check_options(options, error);
    if (status == ET_OK && !et_step_has_run(golden))
        status = et_fail(error, ET_EINVAL, "golden: not computed yet; et_step_run does that");
    if (status == ET_OK && candidate == NULL && count > 0)
        status = et_fail(error, ET_EINVAL, "candidate: NULL, of %zu tensors", count);
    if (status != ET_OK) return status;
    et_verify_options own = *options;
    et_profile_choice choice = {.profile = options->profile};
    if (!choice.profile) choice = et_profile_for(golden, candidate, count);
    own.profile = choice.profile;
    double alpha = options->alpha > 0 ? options->alpha : 1e-9;
    bool as_large = own.profile->bits[ET_ACCUMULATOR] >= DBL_MANT_DIG;
    *verdict = (et_verdict){.alpha = alpha, .profile = *own.profile};
    memcpy(verdict->chosen_from, choice.reason, sizeof choice.reason);
    trial t = {.verdict = verdict, .bars = bars, .golden = *golden};
    show_state(&t.golden, &t.updates);
    t.j = (et_judgement){.golden = &t.golden,
                         .reference = &t.golden,
                         .variance = &t.variance,
                         .scale = as_large ? 2 : 1,
                         .candidate = candidate,
                         .count = count,
                         .options = &own,
                         .alpha = alpha,
                         .visit = visit,
                         .user = user};
    status = try_candidate(&t, error);
    end_trial(&t);
    if (status == ET_OK) complete_line(verdict);
    if (status != ET_OK) et_verdict_free(verdict);
    return status;
}

et_status et_verify_visiting(et_verdict *verdict, const et_step *golden,
                             const et_tensor_out *candidate, size_t count,
                             const et_verify_options *options, et_group_visit *visit, void *user,
                             et_error *error)
{
    return et_verify_with(verdict, golden, NULL, candidate, count, options, visit, user, error);
}

et_status et_verify(et_verdict *verdict, const et_step *golden, const et_tensor_out *candidate,
                    size_t count, const et_verify_options *options, et_error *error)
{
    return et_verify_with(verdict, golden, NULL, candidate, count, options, NULL, NULL, error);
}

void et_verdict_free(et_verdict *verdict)
{
    free(verdict->tensors);
    free(verdict->routing.mask);
    *verdict = (et_verdict){0};
}

const char *et_outcome_name(et_outcome outcome)
{
    switch (outcome) {
    case ET_PASS: return "pass";
    case ET_MISMATCH: return "mismatch";
    case ET_INCONCLUSIVE: return "inconclusive";
    }
    return "unknown";
}
