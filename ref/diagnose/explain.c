/* explain.c: what would explain a mismatch.
 *
 * A hypothesis explains the candidate if under it everything passes: each tensor that failed agrees with
 * the mutant, and none that passed disagrees. Every row of the catalogue is tried, in each of its
 * forms, everywhere or only where the candidate fails, and dropped as soon as it cannot be:
 *
 *     by reach     a tensor that failed and that the hypothesis cannot change rules it out
 *     few tokens   the mutant of a handful of tokens, some failing and some not; it is computed phase by
 *                  phase, and compared after each
 *     some tokens  the same with all tokens of one expert, for the weight gradients
 *     all tokens   what is left, by the full judgement; only so many in a large problem
 *
 * A mismatch of routing or state is explained apart from one of the arithmetic, which has been judged
 * given the candidate's own routing; a hypothesis that accounts for both stands alone. Factors and
 * roundings come after formulas, if nothing else explains the arithmetic: they fit too much. Then rows of another call,
 * whose values are the candidate's own, so that only what they look like and what follows from them speaks for it. Last,
 * where nothing accounts for both passes, what accounts for the forward pass, as formulas and factors; that it does no
 * more is said.
 *
 * Experts on several ranks have mistakes of their own (faults_ranks.c), steps that are judged as a whole
 * (explain_model.c): one that explains everything stands alone. Then it is asked whether the candidate passes under another
 * built-in profile (ref/verdict/choose_profile.c): it may be an
 * honest kernel of another precision. A mistake of the catalogue may explain it better, so that goes on.
 *
 * A scope taken from the failures, "for the experts that fail", fits more than it explains, so it is tried only where
 * nothing holds everywhere. What is reported: all that fit, those that deviate at a later stage of the step, and so in
 * less of it, first; factors and roundings by how tightly they fit (hypothesis_fit.c). Where nothing fits the residual says what is
 * wrong (unexplained.c).
 *
 * A caller may limit the CPU time. Other profiles are tried first and may use all of it. Formulas go on to six tenths of
 * the whole: to half of that the looks that choose survivors, then their judging. Factors go on to seven tenths, roundings
 * to eight, rows of another call to nine; the forward pass alone has the rest. What was left out is counted and said.
 *
 * Left out: two faults at once, but for one in each part, or one of them in the forward pass.
 */
#include "ref/step/case_kinds.h"
#include "ref/diagnose/diagnosis.h"
#include "ref/diagnose/explain.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct attempt {
    et_fault fault;
    double deviation;      /* ET_BY_FACTOR: standard deviation of the factor */
    bool covers[ET_PARTS]; /* is_promising: the parts that it would explain */
    size_t order;          /* in which it was tried */
    bool confirmed;        /* by the full judgement */
    double fit; /* of one that passed the full judgement; factors alone are compared by it */
} attempt;

/* ---- one hypothesis, in one form and one scope ---- */

/* Can the hypothesis change what is computed at a stage? */
static bool reaches_stage(const et_case *c, const attempt *t, bool forward_only, et_stage stage)
{
    return stage < ET_STAGES &&
           et_hypothesis_reach(c, t->fault.what, t->fault.variant, forward_only) >> stage & 1;
}

/* Can the hypothesis change this tensor at all? */
static bool reaches(const et_diagnosis *q, const attempt *t, const et_observed *x)
{
    bool layout = et_hypothesis_starts(t->fault.what, t->fault.variant) == ET_AT_LAYOUT;
    if (layout) return x->stage == ET_AT_LAYOUT || et_rows_are(x->shape, "S");
    if (q->j->mask == NULL && x->part == ET_PART_ARITHMETIC && x->stage > ET_AT_GATES &&
        reaches_stage(&q->right->c, t, false, ET_AT_MASK))
        return true;
    return reaches_stage(&q->right->c, t, t->fault.forward_only, x->stage);
}

/* Does what the hypothesis changes first pass, everywhere? For hypotheses that change all of it. */
static bool is_refuted(const et_diagnosis *q, const attempt *t)
{
    et_stage start = et_hypothesis_starts(t->fault.what, t->fault.variant);
    bool passed = false;
    if (t->fault.what->nature != ET_BY_FACTOR || t->fault.scope.where != ET_EVERYWHERE)
        return false;
    for (size_t i = 0; i < q->count; i++) {
        const et_observed *x = &q->observed[i];
        if (x->stage != start) continue;
        if (x->failed) return false;
        passed |= x->passed;
    }
    return passed;
}

/* Is every failure of a part within reach, for each part of which one is; and one of them still to be explained? */
static bool is_promising(const et_diagnosis *q, attempt *t)
{
    bool missed[ET_PARTS] = {false}, any = false,
         routes = reaches_stage(&q->right->c, t, false, ET_AT_MASK);
    bool layout = et_hypothesis_starts(t->fault.what, t->fault.variant) == ET_AT_LAYOUT;
    t->covers[0] = t->covers[1] = false;
    for (size_t i = 0; i < q->count; i++) {
        const et_observed *x = &q->observed[i];
        if (!et_takes_part_in_search(q, x)) continue;
        if (reaches(q, t, x))
            t->covers[x->part] = true;
        else
            missed[x->part] = true;
    }
    if (q->routing_failed && (routes || layout)) t->covers[ET_PART_ROUTING] = true;
    if (q->routing_failed && !routes && !(layout && q->j->mask == NULL))
        missed[ET_PART_ROUTING] = true;
    for (int p = 0; p < ET_PARTS; p++) {
        if (t->covers[p] && missed[p]) return false;
        any |= t->covers[p] && !q->explained[p];
    }
    return any;
}

/* Has everything that failed been looked at? Asked when all tokens were. */
static bool is_complete(const et_diagnosis *q, const attempt *t, const bool *seen)
{
    for (size_t i = 0; i < q->count; i++) {
        const et_observed *x = &q->observed[i];
        bool implied = x->stage == ET_AT_MASK && q->j->mask != NULL;
        if (et_takes_part_in_search(q, x) && t->covers[x->part] && !seen[i] && !implied)
            return false;
    }
    return true;
}

/* Computes the mutant phase by phase until the candidate contradicts it. `judge`: by the full judgement
 * at the end, in a large problem only then. */
static et_status look(et_subject *on, const et_diagnosis *q, attempt *t, bool judge, bool *agrees,
                      et_error *error)
{
    et_mutant m;
    bool seen[ET_MAX_STEP_TENSORS] = {false};
    et_status status = ET_OK;
    *agrees = true;
    et_mutant_open(&m, on, &t->fault, q->j->mask == NULL);
    for (int phase = 0; status == ET_OK && *agrees && phase < ET_PHASES; phase++) {
        if (phase == ET_COMBINE_BACKWARD && (!q->shows_backward || q->forward_alone))
            phase = ET_LAYOUT;
        status = et_mutant_phase(&m, (et_phase)phase, error);
        if (status == ET_OK) *agrees = et_mutant_agrees(q, &m, !judge || q->small, seen);
    }
    if (status == ET_OK && *agrees && on->pick.whole) *agrees = is_complete(q, t, seen);
    if (status == ET_OK && *agrees && judge) status = et_mutant_passes(q, &m, agrees, error);
    if (status == ET_OK && *agrees && judge && t->fault.what->nature == ET_BY_FACTOR)
        t->fit = et_mutant_fit(q, &m);
    et_mutant_close(&m);
    if (status != ET_EINVAL) return status;
    *agrees = false; /* a layer that cannot be is no explanation */
    return ET_OK;
}

/* ---- its factor ---- */

/* The mutant with factor 1 + step changes everything in proportion, or nearly so: how much of that
 * change does the candidate show? Asked of the first phase at which it fails. */
static et_status fit_once(et_subject *on, const et_diagnosis *q, const attempt *t, double step,
                          et_fit *fit, et_error *error)
{
    et_mutant m;
    et_status status = ET_OK;
    et_fault fault = t->fault;
    fault.factor = 1 + step;
    et_mutant_open(&m, on, &fault, q->j->mask == NULL);
    bool enough = false;
    unsigned before = 0;
    for (int phase = 0; status == ET_OK && !enough && phase < ET_LAYOUT; phase++) {
        status = et_mutant_phase(&m, (et_phase)phase, error);
        if (status == ET_OK && m.done != before) *fit = et_fit_factor(q, &m, &enough);
        before = m.done;
    }
    et_mutant_close(&m);
    return status == ET_EINVAL ? ET_OK : status; /* nothing fits */
}

/* Does a sum over all tokens fail, or one expert by expert that is no matrix each, of which a pick shows nothing? */
static bool fails_as_a_whole(const et_diagnosis *q)
{
    for (size_t i = 0; q->right->c.layer == ET_MOE && i < q->count; i++) {
        const et_observed *x = &q->observed[i];
        if (!x->failed || x->stage >= ET_STAGES) continue;
        et_rows_are_of of = et_rows_at(x->stage);
        if ((of == ET_OF_EXPERTS || of == ET_OF_ALL) && x->got->rank < 3) return true;
    }
    return false;
}

/* Is it one number alone that fails first of what is within reach? Some factor always fits it. */
static bool is_of_one_number(const et_diagnosis *q, const attempt *t)
{
    size_t numbers = 0;
    et_stage first = ET_STAGES;
    for (size_t i = 0; i < q->count; i++) {
        const et_observed *x = &q->observed[i];
        if (!x->failed || !x->variance || !reaches(q, t, x) || x->stage > first) continue;
        if (x->stage < first) numbers = 0;
        first = x->stage;
        for (size_t e = 0; e < x->rows * x->columns; e++) numbers += et_element_fails(x, e);
    }
    return numbers == 1;
}

/* Is a value, known so well, a multiple of `unit`, and would few others be? */
static bool is_multiple(double value, double deviation, double unit)
{
    double off = fabs(value - unit * nearbyint(value / unit)), reach = 6 * deviation;
    return off <= reach && 20 * reach <= unit;
}

/* The factor that somebody may have written, if one is as near as that: a power of 2, a whole number, one of so many
 * parts, so many thousandths; 0 if none is. */
static double round_factor(double factor, double deviation)
{
    double parts = 1 / factor, power = log2(fabs(factor));
    if (is_multiple(power, deviation * fabs(parts) / log(2), 1))
        return copysign(exp2(nearbyint(power)), factor);
    if (is_multiple(factor, deviation, 1)) return nearbyint(factor);
    if (is_multiple(parts, deviation * parts * parts, 1)) return 1 / nearbyint(parts);
    return is_multiple(factor, deviation, 1e-3) ? 1e-3 * nearbyint(factor / 1e-3) : 0;
}

/* Fits the factor on what is looked at, a second time near the first answer. *found: there is one for certain, which
 * is not 0. Exact numbers (a dO of weight 1) ask for an exact factor, so a round one is taken where it is as near. */
static et_status fit_factor(et_subject *on, const et_diagnosis *q, attempt *t, bool *found,
                            et_error *error)
{
    const double certain = 6;
    double step = 0x1p-10;
    et_status status = ET_OK;
    *found = true;
    for (int again = 0; status == ET_OK && *found && again < 2; again++) {
        et_fit fit = {0};
        status = fit_once(on, q, t, step, &fit, error);
        if (fit.sums.uu == 0 && !on->pick.whole && fails_as_a_whole(q)) return status;
        double part = et_slope_of(&fit.sums);
        *found = fabs(part) * sqrt(fit.sums.uu) > certain;
        t->fault.factor = 1 + step * part;
        t->deviation = *found ? fabs(step) / sqrt(fit.sums.uu) : 0;
        *found = *found && fabs(t->fault.factor) > certain * t->deviation;
        step = t->fault.factor - 1;
    }
    double round = *found ? round_factor(t->fault.factor, t->deviation) : 0;
    if (round != 0) t->fault.factor = round;
    *found = *found && (round != 0 || !is_of_one_number(q, t));
    return status;
}

/* ---- rows that are the candidate's own ---- */

/* And is there anything else that speaks for it: how rows of many numbers look, or what follows from them? */
static bool is_of_memory(const et_diagnosis *q, const attempt *t)
{
    et_stage start = et_hypothesis_starts(t->fault.what, t->fault.variant);
    bool speaks = false;
    for (size_t i = 0; i < q->count; i++) {
        const et_observed *x = &q->observed[i];
        if (!x->failed) continue;
        if (x->stage == start && !et_could_be_memory(q, x)) return false;
        speaks |= x->stage == start ? x->columns >= ET_TELLING_COLUMNS : reaches(q, t, x);
    }
    return speaks && start == q->first_rows;
}

/* ---- all attempts ---- */

enum { SURVIVORS = 64 };

typedef struct search {
    et_diagnosis *q;
    et_looks looks;
    size_t count, tried;
    attempt survivors[SURVIVORS];
} search;

/* Does a hook see tokens, or choose among one token's slots? */
static bool is_of_tokens(const et_hook *h)
{
    return et_rows_at(h->at) == ET_OF_TOKENS || h->at == ET_AT_MIX ||
           (h->at == ET_AT_SLOT_DX && h->who);
}

/* Can a hook be confined to some experts, to some tokens, or to some rows? */
static bool is_confinable(const et_hook *h, et_where to)
{
    if (h->whole || h->settings || h->at == ET_AT_DROUTER) return false;
    if (to == ET_IN_ROWS) return et_rows_at(h->at) != ET_OF_EXPERTS;
    return to == ET_IN_EXPERTS ? !(h->row && is_of_tokens(h)) : !h->rows;
}

static bool can_be_confined(const et_hypothesis *what, size_t variant, et_where to)
{
    for (size_t i = 0; i < ET_MAX_HOOKS; i++) {
        const et_hook *h = &what->hooks[i];
        bool applies = h->variants == 0 || (h->variants >> variant & 1);
        if (applies && !is_confinable(h, to)) return false;
    }
    return true;
}

/* At the stages that a form reaches: does the routed experts' tensor fail and the shared expert's twin
 * pass, or the other way round? Then the scope is one of them. */
static bool is_one_sided(const et_diagnosis *q, const et_hypothesis *what, size_t variant,
                         bool shared_fails)
{
    for (size_t i = 0; i < q->count; i++) {
        const et_observed *x = &q->observed[i];
        if (!x->failed || et_is_shared(x) != shared_fails || x->stage == ET_STAGES) continue;
        if (x->stage == ET_AT_DWEIGHT && q->right->c.weighs_input) continue; /* <dX, x> and <dy, f(x)> are no twins */
        if (!(et_hypothesis_reach(&q->right->c, what, variant, false) >> x->stage & 1)) continue;
        for (size_t k = 0; k < q->count; k++) {
            const et_observed *twin = &q->observed[k];
            if (twin->passed && twin->stage == x->stage && et_is_shared(twin) != shared_fails)
                return true;
        }
    }
    return false;
}

/* Has a form of a hypothesis this scope? */
static bool is_fit(const et_diagnosis *q, const et_hypothesis *what, size_t variant, et_where where)
{
    bool everywhere = where == ET_EVERYWHERE,
         experts = can_be_confined(what, variant, ET_IN_EXPERTS);
    if (what->everywhere && (et_tier_of(where) > 0)) return false;
    if (what->only && (int)where != what->only) return false;
    if (where == ET_IN_TOKENS || where == ET_IN_ROWS) return can_be_confined(what, variant, where);
    if (!experts) return everywhere;
    if ((everywhere || where == ET_IN_SHARED) && is_one_sided(q, what, variant, false))
        return false;
    return !((everywhere || where == ET_IN_ROUTED) && is_one_sided(q, what, variant, true));
}

static et_status attempt_one(search *s, attempt t, bool *survives, et_error *error)
{
    et_status status = ET_OK;
    bool whole_alone = et_hypothesis_starts(t.fault.what, t.fault.variant) == ET_AT_LAYOUT;
    size_t last = s->looks.count - 1;
    *survives = is_promising(s->q, &t) && !is_refuted(s->q, &t) &&
                et_budget_allows(&s->q->budget, ET_ATTEMPT);
    if (*survives && t.fault.what->nature == ET_BY_CANDIDATE) *survives = is_of_memory(s->q, &t);
    if (*survives && t.fault.what->nature == ET_BY_FACTOR)
        status = fit_factor(&s->looks.on[last], s->q, &t, survives, error);
    for (size_t i = 0; status == ET_OK && *survives && i <= last; i++)
        if (!whole_alone || s->looks.on[i].pick.whole)
            status = look(&s->looks.on[i], s->q, &t, s->q->small, survives, error);
    t.order = s->tried++;
    if (status == ET_OK && *survives && s->count < SURVIVORS) s->survivors[s->count++] = t;
    return status;
}

/* One form of a hypothesis in each scope of a tier, the first in which it survives; with its backward
 * pass by the mutant's values, and by the right ones. */
static et_status attempt_form(search *s, int tier, const et_hypothesis *what, size_t variant,
                              et_error *error)
{
    et_status status = ET_OK;
    et_stage start = et_hypothesis_starts(what, variant);
    bool forward =
        start >= ET_AT_GATES && start < ET_AT_MIX && s->q->shows_backward && !s->q->forward_alone;
    int from = forward && !s->q->backward_failed; /* what passes goes by right values */
    bool survives = false;
    for (int i = 0; status == ET_OK && !survives && i < ET_WHERES; i++) {
        et_where where = (et_where)i;
        et_scope scope;
        if (et_tier_of(where) != tier || !et_scope_in(&scope, s->q, where) ||
            !is_fit(s->q, what, variant, where))
            continue;
        for (int forward_only = from; status == ET_OK && forward_only <= forward; forward_only++) {
            bool one;
            attempt t = {.fault = {what, variant, scope, forward_only, 1}, .fit = INFINITY};
            status = attempt_one(s, t, &one, error);
            survives |= one;
        }
    }
    return status;
}

/* The first phase in which anything fails. */
static et_phase first_failure(const et_diagnosis *q)
{
    et_phase first = q->routing_failed ? 0 : ET_PHASES;
    for (size_t i = 0; i < q->count; i++)
        if (et_takes_part_in_search(q, &q->observed[i]) &&
            et_phase_of(q->observed[i].stage) < first)
            first = et_phase_of(q->observed[i].stage);
    return first;
}

/* Forms that begin in the phase of the first failure, or later, come first: what goes wrong before shows there, as a
 * rule. */
static et_status attempt_all(search *s, et_nature nature, int tier, et_error *error)
{
    const et_hypothesis *what;
    const et_phase first = first_failure(s->q);
    et_status status = ET_OK;
    for (int earlier = 0; earlier < 2; earlier++)
        for (size_t i = 0; status == ET_OK && (what = et_hypothesis_row(i)) != NULL; i++) {
            if (what->nature != nature || (what->applies && !what->applies(s->q->right))) continue;
            for (size_t v = 0; status == ET_OK && et_hypothesis_form(what, v); v++)
                if ((et_phase_of(et_hypothesis_starts(what, v)) < first) == (earlier == 1) &&
                    (!what->allowed || !what->allowed(s->q->j->options->profile, v)))
                    status = attempt_form(s, tier, what, v, error);
        }
    return status;
}

/* ---- what is reported ---- */

/* A later stage first; then the order of the table. */
static int by_specificity(const void *left, const void *right)
{
    const attempt *a = left, *b = right;
    int start_a = (int)et_hypothesis_starts(a->fault.what, a->fault.variant);
    int start_b = (int)et_hypothesis_starts(b->fault.what, b->fault.variant);
    if (start_a != start_b) return start_b - start_a;
    return (a->order > b->order) - (a->order < b->order);
}

void et_diagnosis_note(et_diagnosis *q, const et_hypothesis *what, const bool covers[ET_PARTS],
                       const char *where, const char *how, double fit)
{
    size_t i = 0;
    while (i < q->found && q->findings[i].what != what) i++;
    et_finding *f = &q->findings[i];
    if (i < q->found) {
        size_t used = strlen(f->scope);
        if (used + strlen(how) + 8 < sizeof f->scope && how[0])
            snprintf(f->scope + used, sizeof f->scope - used, "; or %s", how);
        f->fit = fmax(f->fit, fit);
    } else if (q->found < ET_MAX_EXPLANATIONS) {
        q->found++;
        *f = (et_finding){.what = what, .fit = fit, .forward_alone = q->forward_alone};
        memcpy(f->covers, covers, sizeof f->covers);
        snprintf(f->scope, sizeof f->scope, "%s%s%s", where, how[0] ? ": " : "", how);
    }
}

static void note(search *s, const attempt *t)
{
    char how[96], where[96];
    const char *form = et_hypothesis_form(t->fault.what, t->fault.variant);
    const char *only = t->fault.forward_only ? "the backward pass goes by right values" : "";
    if (t->fault.what->nature == ET_BY_FACTOR)
        snprintf(how, sizeof how, "%s times %.7g +- %.1g", form, t->fault.factor, t->deviation);
    else
        snprintf(how, sizeof how, "%s%s%s", form, form[0] && only[0] ? ", " : "", only);
    et_scope_print(&t->fault.scope, s->q, where, sizeof where);
    et_diagnosis_note(s->q, t->fault.what, t->covers, where, how, t->fit);
}

/* How many full judgements may be made: 2 in a large problem, more in a smaller one. */
static size_t most_judgements(const et_diagnosis *q)
{
    const et_case *c = &q->right->c;
    double slots = c->layer == ET_MOE ? (double)q->right->assignment.slots : 0;
    double work = (slots + (double)c->tokens) * (double)c->d_model * (double)c->d_expert;
    return work > 4e9 ? 2 : work > 1e9 ? 6 : SURVIVORS;
}

/* The survivors on all tokens, by the full judgement, which those of a small problem have passed. */
static et_status confirm(search *s, et_error *error)
{
    const et_judgement *j = s->q->j;
    et_subject on;
    size_t most = most_judgements(s->q);
    qsort(s->survivors, s->count, sizeof *s->survivors, by_specificity);
    for (size_t i = 0; i < s->count; i++) s->survivors[i].confirmed = s->q->small;
    if (s->count == 0 || s->q->small) return ET_OK;
    et_status status = et_subject_open(&on, s->q->right, j->candidate, j->count, NULL, error);
    if (status != ET_OK) return status;
    for (size_t i = 0; status == ET_OK && i < s->count && i < most; i++) {
        attempt *t = &s->survivors[i];
        bool fits = true;
        if (!et_budget_allows(&s->q->budget, ET_JUDGEMENT)) continue;
        if (t->fault.what->nature == ET_BY_FACTOR) status = fit_factor(&on, s->q, t, &fits, error);
        if (status == ET_OK && fits) status = look(&on, s->q, t, true, &t->confirmed, error);
    }
    et_subject_close(&on);
    return status;
}

/* Are these all parts that fail? */
static bool are_all(const et_diagnosis *q, const bool parts[ET_PARTS])
{
    return (!q->failed[0] || parts[0]) && (!q->failed[1] || parts[1]);
}

static bool is_all_explained(const et_diagnosis *q)
{
    return are_all(q, q->explained);
}

/* Those that account for everything, if there are any; else those of each part. */
static void report(search *s)
{
    bool whole = false, explained[ET_PARTS] = {false};
    for (size_t i = 0; i < s->count; i++)
        whole |= s->survivors[i].confirmed && are_all(s->q, s->survivors[i].covers);
    for (size_t i = 0; i < s->count; i++) {
        const attempt *t = &s->survivors[i];
        if (!t->confirmed || (whole && !are_all(s->q, t->covers))) continue;
        for (int p = 0; p < ET_PARTS; p++) explained[p] |= t->covers[p];
        note(s, t);
    }
    for (int p = 0; p < ET_PARTS; p++) s->q->explained[p] |= explained[p];
}

/* `part` of the limit may have been used up when this ends. */
static et_status attempt_nature(search *s, et_nature nature, double part, et_error *error)
{
    et_status status = ET_OK;
    et_budget *b = &s->q->budget;
    for (int tier = 0; status == ET_OK && tier < ET_TIERS && !is_all_explained(s->q); tier++) {
        s->count = 0;
        et_budget_until(b, part, 0.5);
        status = attempt_all(s, nature, tier, error);
        et_budget_until(b, part, 1);
        if (status == ET_OK) status = confirm(s, error);
        if (status == ET_OK) report(s);
    }
    return status;
}

/* ---- the order of what fits ---- */

/* Differences of fits: as tight; so much less tight that it is no explanation beside the other, its bars being twelve
 * times as wide. */
static const double as_tight = 0.05, far_looser = 2.5;

/* Does it bring bars of its own, as wide as a rounding asks? */
static bool has_wide_bars(const et_finding *f)
{
    return f->what->nature == ET_BY_PROFILE || f->what->nature == ET_BY_TRUNCATION;
}

/* Beside one that fits within the verdict's own bars far looser ones are none. And few bits of sums fit too much
 * (rounding_hypotheses.c): where the candidate is evidently of another profile, or stochastic rounding explains it, they must fit
 * better. */
static bool gives_way(const et_finding *f, double best, double by_chance,
                      const et_other_profile *other)
{
    bool sums = f->what->bits > 0 && f->what->place == ET_ACCUMULATOR;
    if (!has_wide_bars(f)) return false;
    if (sums && f->fit < by_chance + as_tight) return true;
    return f->fit < best - far_looser || (sums && other->evident && f->fit < other->fit + as_tight);
}

/* Findings `first` and on, which are compared by their fits: the tightest first. Far looser ones are dropped where
 * something fits within the verdict's own bars; nothing else is, since the bars of sums in few bits are wider than most
 * kernels need. */
static void order_by_fit(et_diagnosis *q, size_t first, const et_other_profile *other)
{
    double best = -INFINITY, by_chance = -INFINITY;
    size_t kept = first;
    for (size_t i = first; i < q->found; i++) {
        const et_finding *f = &q->findings[i];
        if (!has_wide_bars(f)) best = fmax(best, f->fit);
        if (f->what->stochastic) by_chance = fmax(by_chance, f->fit);
    }
    for (size_t i = first; i < q->found; i++) {
        const et_finding f = q->findings[i];
        if (gives_way(&f, best, by_chance, other)) continue;
        size_t at = kept++;
        for (; at > first && q->findings[at - 1].fit + as_tight < f.fit; at--)
            q->findings[at] = q->findings[at - 1];
        q->findings[at] = f;
    }
    q->found = kept;
}

/* ---- the search ---- */

/* How much of what fails a finding accounts for. */
static const char *part_explained(const et_diagnosis *q, const et_finding *f)
{
    if (are_all(q, f->covers) && !f->forward_alone) return "everything";
    if (f->forward_alone) return "the forward pass";
    return f->covers[ET_PART_ROUTING] ? "routing and state" : "the arithmetic";
}

static void fill_in(const et_diagnosis *q)
{
    et_verdict *v = q->verdict;
    const et_budget *b = &q->budget;
    for (size_t i = 0; i < q->found; i++) {
        const et_finding *f = &q->findings[i];
        et_explanation *e = &v->explanations[v->explanation_count++];
        *e = (et_explanation){.name = f->what->doc.name, .sentence = f->what->doc.sentence};
        snprintf(e->scope, sizeof e->scope, "%s", f->scope);
        snprintf(e->explains, sizeof e->explains, "%s", part_explained(q, f));
    }
    et_budget_report(b, v);
}

/* Where nothing accounts for both passes: what accounts for the forward pass, whatever the backward pass made of it. */
static et_status explain_forward(search *s, et_error *error)
{
    et_diagnosis *q = s->q;
    size_t before = q->found;
    bool explained = q->explained[ET_PART_ARITHMETIC];
    q->forward_alone = true;
    et_status status = attempt_nature(s, ET_BY_VALUE, 1, error);
    if (status == ET_OK) status = attempt_nature(s, ET_BY_FACTOR, 1, error);
    q->forward_alone = false;
    q->forward_explained = q->found > before;
    q->explained[ET_PART_ARITHMETIC] = explained;
    return status;
}

static et_status run_search(search *s, et_error *error)
{
    et_diagnosis *q = s->q;
    et_other_profile other = {.fit = -INFINITY};
    /* An attempt takes a layer, a profile's bars fifty: these come second, where a mistake explains it not. */
    et_status status = attempt_nature(s, ET_BY_VALUE, 0.6, error);
    size_t before = q->found;
    if (status == ET_OK && !is_all_explained(q)) status = et_find_other_profile(q, &other, error);
    if (status == ET_OK) status = attempt_nature(s, ET_BY_FACTOR, 0.7, error);
    et_budget_until(&q->budget, 0.8, 1);
    if (status == ET_OK) status = et_explain_precision(q, error);
    order_by_fit(q, before, &other);
    if (status == ET_OK && !is_all_explained(q))
        status = attempt_nature(s, ET_BY_CANDIDATE, 0.9, error);
    bool named = is_all_explained(q) || (other.profile && other.explains);
    if (status == ET_OK && !named && q->forward_failed && q->backward_failed)
        status = explain_forward(s, error);
    fill_in(q);
    return status == ET_OK && !named ? et_describe_residual(q, error) : status;
}

static et_status explain_experts(et_verdict *verdict, const et_judgement *j, et_error *error)
{
    et_diagnosis q;
    search s = {.q = &q};
    et_status status = et_diagnosis_open(&q, verdict, j, error);
    if (status != ET_OK) return status;
    if (has_ranks(&j->golden->c) && !q.routing_failed)
        status = et_explain_by_layers(verdict, j, &q.budget, error);
    if (status != ET_OK || verdict->explanation_count > 0) {
        et_budget_report(&q.budget, verdict);
    } else if (!q.failed[0] && !q.failed[1]) {
        status = et_describe_residual(&q, error);
    } else {
        status = et_looks_open(&s.looks, &q, error);
        if (status == ET_OK) status = run_search(&s, error);
        et_looks_close(&s.looks);
    }
    et_diagnosis_close(&q);
    return status;
}

et_status et_explain(et_verdict *verdict, const et_judgement *j, et_error *error)
{
    return (is_ffn(&j->golden->c) ? explain_experts : et_explain_model)(verdict, j, error);
}

et_status et_verify(et_verdict *verdict, const et_step *golden, const et_tensor_out *candidate,
                    size_t count, const et_verify_options *options, et_error *error)
{
    const et_aside aside = {.explain = et_explain};
    return et_verify_with(verdict, golden, candidate, count, options, &aside, error);
}
