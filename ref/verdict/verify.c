/* verify.c: the verdict on a kernel's output. See etref/verify.h.
 *
 *     candidate checked -> its routing read -> reference, with that routing, and its error bars
 *     -> decisions judged -> (routing not shown: what can be known of it) -> each tensor judged
 *     -> the verdict: one mismatch is a MISMATCH; else
 *        INCONCLUSIVE if something required is missing, if nothing was judged, or if a tensor could not
 *        be: it hangs on decisions that are not shown, is the golden itself, is out of range, or,
 *        required or one of the layer's results (y and the gradients), is below its own noise;
 *     -> else PASS
 *
 * Left out: reading files (the tool's business).
 */
#include "ref/base/float_environment.h"
#include "ref/base/memory.h"
#include "ref/step/decide.h"
#include "ref/step/case_kinds.h"
#include "ref/verdict/judge.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- everything that one verdict owns until it is given ---- */

typedef struct verification {
    et_judgement j;
    et_verdict *verdict;
    const et_aside *aside;
    et_step golden; /* the caller's, and its state in evaluation, too */
    int32_t updates;
    et_shelf own;             /* where the caller has none */
    et_shelved *taken;        /* the reference and its bars */
    et_assignment assignment; /* the candidate's own */
    et_ordered ordered;       /* its tensors in that order */
    et_ordered sorted;        /* and rows between ranks in theirs */
    et_given given;           /* the same by id, as far as they fit */
    et_step made;             /* what each stage makes of them */
    uint8_t *shown;           /* the verdict's routing.mask */
    uint8_t *inferred, *open; /* [N,n] masks */
    et_doubt *doubts;         /* [tensor_count] */
    bool absurd;              /* an illegal routing of so many slots that nothing else is judged */
} verification;

static void end_verification(verification *t)
{
    et_shelf_give_back(t->j.shelf, t->taken);
    et_shelf_free(&t->own);
    et_ordered_free(&t->ordered);
    et_ordered_free(&t->sorted);
    et_assignment_free(&t->assignment);
    et_step_free(&t->made);
    free(t->j.unseen.tokens);
    free(t->j.unseen.experts);
    free(t->inferred);
    free(t->open);
    free(t->doubts);
}

static void tell(const verification *t, const char *phase, double done)
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
    for (size_t i = 0; i < o->require_count; i++)
        if (o->require == NULL || o->require[i] == NULL)
            return et_fail(error, ET_EINVAL, "required name %zu is missing", i);
    return ET_OK;
}

/* ---- the reference and its error bars ---- */

static bool bars_progress(void *user, double done)
{
    tell(user, "error bars", 0.05 + 0.5 * done);
    return true;
}

/* Of the layer with this assignment; NULL: the rule's own. */
static et_status take_reference(verification *t, const uint8_t *mask, et_error *error)
{
    const et_verify_options *o = t->j.options;
    et_shelf_give_back(t->j.shelf, t->taken);
    t->taken = NULL;
    et_status status = et_shelf_take(t->j.shelf, mask, o->profile, o->max_bytes, bars_progress, t,
                                     &t->taken, error);
    if (status != ET_OK) return status;
    t->j.reference = t->taken->mask ? &t->taken->step : t->j.golden;
    t->j.bars = &t->taken->bars;
    return ET_OK;
}

static bool same_mask(const verification *t, const uint8_t *mask)
{
    const et_step *golden = t->j.golden;
    size_t places = golden->c.tokens * golden->c.experts, i = 0;
    while (i < places && (mask[i] != 0) == (golden->route.mask[i] != 0)) i++;
    return i == places;
}

/* ---- the routing ---- */

/* Slots enough to fear for the memory of a reference that would be of no use. */
static bool is_far(const verification *t)
{
    const et_assignment *golden = &t->j.golden->assignment;
    return t->assignment.slots > 2 * (golden->slots + golden->tokens);
}

static et_status read_routing(verification *t, et_error *error)
{
    const et_step *golden = t->j.golden;
    et_routing_verdict *routing = &t->verdict->routing;
    et_status status = et_routing_read(&t->j, &t->shown, routing, error);
    routing->mask = t->shown;
    if (status != ET_OK || t->shown == NULL) return status;
    t->j.mask = t->shown;
    status =
        et_assignment_build(&t->assignment, golden->c.tokens, golden->c.experts, t->shown, error);
    if (status == ET_OK) status = et_admit_slots(&t->j, &t->assignment, error);
    return status == ET_OK ? et_order_slots(&t->j, &t->assignment, &t->ordered, error) : status;
}

/* A routing that is not shown, and decisions that are open: the reference gets what can be inferred. */
static et_status infer_routing(verification *t, et_error *error)
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
    return take_reference(t, t->inferred, error);
}

static et_status judge_routing(verification *t, et_error *error)
{
    const et_step *golden = t->j.golden;
    et_routing_verdict *routing = &t->verdict->routing;
    bool other = t->shown && !same_mask(t, t->shown), far = other && is_far(t);
    void *room = NULL;
    et_status status =
        et_allocate(&room, golden->c.tokens * golden->c.experts, 1, "routing", error);
    if (status != ET_OK) return status;
    t->open = room;
    status = take_reference(t, other && !far ? t->shown : NULL, error);
    if (status == ET_OK) status = et_routing_judge(&t->j, routing, t->open, error);
    t->j.open = routing->open;
    t->absurd = far && routing->outcome == ET_MISMATCH;
    if (status == ET_OK && far && !t->absurd) status = take_reference(t, t->shown, error);
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

/* Does any of its tensors come with all that its stage starts from? */
static bool shows_stages(const verification *t)
{
    et_tensor_id id = ET_NO_TENSOR + 1;
    while (id < ET_TENSORS &&
           !(t->given.tensor[id].values && et_stands_alone(t->j.reference, &t->given, id)))
        id++;
    return id < ET_TENSORS;
}

et_given et_given_by_candidate(const et_judgement *j)
{
    et_given given = {0};
    for (size_t i = 0; i < j->count; i++) {
        const et_tensor_out *got = &j->candidate[i];
        et_tensor_id id = et_tensor_find(got->name);
        et_tensor_out want = et_tensor_view(j->reference, id);
        if (et_tensor_is_real(got) && !et_is_input(id) && want.values && et_same_shape(got, &want))
            given.tensor[id] = *got;
    }
    /* a function of one token's logits, in as many bits: as the bars have it that know the gates */
    const et_profile *p = j->options->profile;
    given.gates_follow = et_place_bits(p, ET_GATES) >= et_place_bits(p, ET_LOGITS);
    return given;
}

/* Every stage by itself, from the candidate's own numbers. Where its routing is not known, nor are its stages. */
static et_status run_stages(verification *t, et_error *error)
{
    const et_judgement *j = &t->j;
    t->given = et_given_by_candidate(j);
    if (!j->bars->alone || t->absurd || j->unseen.open > 0 || !shows_stages(t)) return ET_OK;
    tell(t, "stages", 0.55);
    const et_rounding kernel = {.profile = j->options->profile};
    et_status status = et_stages_run(&t->made, j->reference, &t->given, &kernel, false,
                                     j->options->max_bytes, error);
    t->j.made = &t->made;
    t->j.given = &t->given;
    return status;
}

static et_status examine(verification *t, size_t index, et_error *error)
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
    /* what is wrong itself is no start for others: it may not be what the kernel used */
    if (out->outcome == ET_MISMATCH) t->given.tensor[et_tensor_find(got->name)].values = NULL;
    return status;
}

/* In the order of the table, inputs left out. */
static et_status judge_tensors(verification *t, et_error *error)
{
    et_verdict *v = t->verdict;
    et_status status;
    if ((status = et_allocate((void **)&v->tensors, t->j.count, sizeof *v->tensors, "verdicts",
                              error)) ||
        (status =
             et_allocate((void **)&t->doubts, t->j.count, sizeof *t->doubts, "verdicts", error)))
        return status;
    for (et_tensor_id id = ET_LAST_INPUT + 1; status == ET_OK && id < ET_TENSORS; id++) {
        const char *name = et_tensors[id].doc.name;
        size_t index = candidate_index(&t->j, name);
        if (index == t->j.count) continue;
        tell(t, name, 0.6 + 0.3 * (double)v->tensor_count / (double)t->j.count);
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
    return et_tensors[et_tensor_find(name)].place == ET_OUTPUTS;
}

/* The first tensor that was found to be `outcome`, NULL if none; how many there are. An inconclusive one
 * counts only if it stands in the way of a pass. */
static const et_tensor_verdict *first_of(const verification *t, et_outcome outcome, size_t *count)
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
static bool is_all_golden(const verification *t)
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

/* All of them, or as many as the line has room for. */
static void pronounce_missing(et_verdict *v)
{
    char names[400] = "";
    size_t used = 0, i = 0, count = v->missing_count;
    for (; i < count && used + strlen(v->missing[i]) + 5 < sizeof names; i++)
        used += (size_t)snprintf(names + used, sizeof names - used, "%s%s",
                                 i == 0 ? "" : i + 1 == count ? " and " : ", ", v->missing[i]);
    if (i < count)
        pronounce(v, ET_INCONCLUSIVE, "INCONCLUSIVE: %s and %zu more are required and not there", names, count - i);
    else
        pronounce(v, ET_INCONCLUSIVE, "INCONCLUSIVE: %s %s required and not there", names, count > 1 ? "are" : "is");
}

/* NaN is worth a word, wherever it stands. */
static void pronounce_doubt(verification *t, const et_tensor_verdict *doubtful)
{
    et_verdict *v = t->verdict;
    size_t i = 0;
    while (i < v->tensor_count && !t->doubts[i].none) i++;
    bool other = i < v->tensor_count && &v->tensors[i] != doubtful;
    pronounce(v, ET_INCONCLUSIVE, "INCONCLUSIVE: %s: %s%s%s", doubtful->name, doubtful->reason,
              other ? "; NaN in " : "", other ? v->tensors[i].name : "");
}

static void pronounce_all(verification *t)
{
    et_verdict *v = t->verdict;
    size_t failures, doubts;
    const et_tensor_verdict *failed = first_of(t, ET_MISMATCH, &failures);
    const et_tensor_verdict *doubtful = first_of(t, ET_INCONCLUSIVE, &doubts);
    if (failed || v->routing.outcome == ET_MISMATCH)
        pronounce_mismatch(v, failed, failures);
    else if (v->missing_count > 0)
        pronounce_missing(v);
    else if (v->tensor_count == 0)
        pronounce(v, ET_INCONCLUSIVE, "INCONCLUSIVE: the candidate holds nothing to judge");
    else if (is_all_golden(t))
        pronounce(v, ET_INCONCLUSIVE,
                  "INCONCLUSIVE: the candidate is the golden itself, or as free of errors "
                  "(a kernel of 64 bits? profile f64 judges it)");
    else if (doubtful)
        pronounce_doubt(t, doubtful);
    else if (!anything_passed(v))
        pronounce(v, ET_INCONCLUSIVE, "INCONCLUSIVE: %s: %s", v->tensors[0].name,
                  v->tensors[0].reason);
    else
        pronounce_pass(v);
}

/* ---- explanations ---- */

/* The candidate as explanations see it. Of a tensor that is wrong by its own stage alone they see that stage's errors
 * alone, on top of the reference, and the bars of the stage: what such a mistake does must not drown in what came before. */
typedef struct view {
    et_tensor_out *tensors;
    void *rooms[ET_MAX_STEP_TENSORS];
    size_t count;
    bool alone[ET_TENSORS];
    et_bars bars;
} view;

static void close_view(view *w)
{
    for (size_t i = 0; i < w->count; i++) free(w->rooms[i]);
    free(w->tensors);
}

/* right + (got - made), where the stage says something. */
static et_status see_alone(view *w, const et_judgement *j, et_tensor_out *t, et_error *error)
{
    void *room;
    et_tensor_id id = et_tensor_find(t->name);
    size_t count = et_tensor_count(t);
    et_status status = et_allocate(&room, count, sizeof(et_real), "a stage's errors", error);
    if (status != ET_OK) return status;
    et_real *to = w->rooms[w->count++] = room;
    const et_real *right = et_tensor_values(j->reference, id);
    const et_real *made = et_tensor_values(j->made, id);
    const et_real *V = et_tensor_values(&j->bars->alone->variance, id);
    for (size_t i = 0; i < count; i++) {
        et_real error_alone = (et_real)et_tensor_element(t, i) - made[i];
        to[i] = right[i] + (isfinite((double)V[i] + (double)error_alone) ? error_alone : 0);
    }
    t->values = to;
    t->source = ET_FROM_F64;
    w->alone[id] = true;
    return ET_OK;
}

static et_status open_view(view *w, et_judgement *j, const verification *t, et_error *error)
{
    void *list;
    const et_verdict *v = t->verdict;
    *w = (view){0};
    *j = t->j;
    et_status status = et_allocate(&list, j->count, sizeof *w->tensors, "candidate", error);
    if (status != ET_OK) return status;
    w->tensors = memcpy(list, j->candidate, j->count * sizeof *w->tensors);
    for (size_t i = 0; i < v->tensor_count && status == ET_OK; i++)
        if (t->doubts[i].alone)
            status = see_alone(w, j, &w->tensors[candidate_index(j, v->tensors[i].name)], error);
    if (w->count == 0) return status;
    et_bars_mix(&w->bars, j->bars, w->alone);
    j->shown = j->candidate;
    j->candidate = w->tensors;
    j->bars = &w->bars;
    j->alone = w->alone;
    return status;
}

static et_status explain(verification *t, et_error *error)
{
    view w;
    et_judgement j;
    tell(t, "explanation", 0.9);
    et_status status = open_view(&w, &j, t, error);
    if (status == ET_OK) status = t->aside->explain(t->verdict, &j, error);
    close_view(&w);
    return status;
}

/* ---- the whole ---- */

static et_status try_candidate(verification *t, et_error *error)
{
    et_judgement *j = &t->j;
    et_status status;
    tell(t, "routing", 0);
    if ((status = et_admit(j, error)) || (status = et_find_missing(t->verdict, j, error)))
        return status;
    bool moe = j->golden->c.layer == ET_MOE;
    if (moe && (status = read_routing(t, error))) return status;
    status = moe ? judge_routing(t, error) : take_reference(t, NULL, error);
    if (status != ET_OK) return status;
    if (!t->absurd && (status = et_order_rows(j, &t->sorted, error))) return status;
    if ((status = run_stages(t, error)) || (status = judge_tensors(t, error))) return status;
    pronounce_all(t);
    et_note_exactness(t->verdict);
    bool asked = j->options->explain && t->aside->explain;
    return asked && t->verdict->outcome == ET_MISMATCH ? explain(t, error) : ET_OK;
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

et_status et_verify_with(et_verdict *verdict, const et_step *golden, const et_tensor_out *candidate,
                         size_t count, const et_verify_options *options, const et_aside *aside,
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
    *verdict = (et_verdict){.profile = *own.profile};
    memcpy(verdict->chosen_from, choice.reason, sizeof choice.reason);
    verification t = {.verdict = verdict, .aside = aside, .golden = *golden};
    et_show_state(&t.golden, &t.updates);
    t.own = (et_shelf){.golden = &t.golden, .stored = own.bars};
    t.j = (et_judgement){.golden = &t.golden,
                         .reference = &t.golden,
                         .shelf = aside->shelf ? aside->shelf : &t.own,
                         .candidate = candidate,
                         .count = count,
                         .options = &own,
                         .visit = aside->visit,
                         .user = aside->user};
    status = try_candidate(&t, error);
    end_verification(&t);
    if (status == ET_OK) complete_line(verdict);
    if (status != ET_OK) et_verdict_free(verdict);
    return status;
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
