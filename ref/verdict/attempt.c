/* attempt.c: one hypothesis, in one form and one scope, against the candidate. See inquiry.h. */
#include "ref/verdict/inquiry.h"

#include <math.h>
#include <string.h>

/* ---- one trial ---- */

static void open_mutant(et_mutant *m, et_subject *on, const et_inquiry *q, const et_attempt *t)
{
    et_mutant_open(m, on, t->what, t->variant, t->scope->at, q->j->mask == NULL);
    m->forward_only = t->forward_only;
    m->factor = t->factor;
}

/* Can the hypothesis change what is computed at a stage? */
static bool reaches_stage(const et_attempt *t, bool forward_only, et_stage stage)
{
    return stage < ET_STAGES && et_hypothesis_reach(t->what, t->variant, forward_only) >> stage & 1;
}

/* Can the hypothesis change this exhibit at all? */
static bool reaches(const et_inquiry *q, const et_attempt *t, const et_exhibit *x)
{
    bool layout = et_hypothesis_starts(t->what, t->variant) == ET_AT_LAYOUT;
    if (layout) return x->stage == ET_AT_LAYOUT || et_rows_are(x->shape, "S");
    if (q->j->mask == NULL && x->part == ET_PART_ARITHMETIC && x->stage > ET_AT_GATES &&
        reaches_stage(t, false, ET_AT_MASK))
        return true;
    return reaches_stage(t, t->forward_only, x->stage);
}

bool et_attempt_is_refuted(const et_inquiry *q, const et_attempt *t)
{
    et_stage start = et_hypothesis_starts(t->what, t->variant);
    bool everywhere = !t->scope->at.experts && !t->scope->at.tokens, passed = false;
    if (t->what->nature != ET_BY_FACTOR || !everywhere) return false;
    for (size_t i = 0; i < q->count; i++) {
        const et_exhibit *x = &q->exhibits[i];
        if (x->stage != start) continue;
        if (x->failed) return false;
        passed |= x->passed;
    }
    return passed;
}

bool et_attempt_is_promising(const et_inquiry *q, et_attempt *t)
{
    bool missed[ET_PARTS] = {false}, routes = reaches_stage(t, false, ET_AT_MASK);
    bool layout = et_hypothesis_starts(t->what, t->variant) == ET_AT_LAYOUT;
    t->covers[0] = t->covers[1] = false;
    for (size_t i = 0; i < q->count; i++) {
        const et_exhibit *x = &q->exhibits[i];
        if (!x->failed || x->stage == ET_STAGES) continue;
        if (reaches(q, t, x))
            t->covers[x->part] = true;
        else
            missed[x->part] = true;
    }
    if (q->routing_failed && (routes || layout)) t->covers[ET_PART_ROUTING] = true;
    if (q->routing_failed && !routes && !(layout && q->j->mask == NULL))
        missed[ET_PART_ROUTING] = true;
    for (int p = 0; p < ET_PARTS; p++)
        if (t->covers[p] && missed[p]) return false;
    return t->covers[0] || t->covers[1];
}

/* Has everything that failed been looked at? Asked when all tokens were. */
static bool is_complete(const et_inquiry *q, const et_attempt *t, const bool *seen)
{
    for (size_t i = 0; i < q->count; i++) {
        const et_exhibit *x = &q->exhibits[i];
        bool implied = x->stage == ET_AT_MASK && q->j->mask != NULL;
        if (x->failed && x->stage != ET_STAGES && t->covers[x->part] && !seen[i] && !implied)
            return false;
    }
    return true;
}

et_status et_attempt_look(et_subject *on, const et_inquiry *q, et_attempt *t, bool judge,
                          bool *agrees, et_error *error)
{
    et_mutant m;
    bool seen[ET_MAX_STEP_TENSORS] = {false};
    et_status status = ET_OK;
    *agrees = true;
    open_mutant(&m, on, q, t);
    for (int phase = 0; status == ET_OK && *agrees && phase < ET_PHASES; phase++) {
        if (phase == ET_COMBINE_BACKWARD && !q->shows_backward) phase = ET_LAYOUT;
        status = et_mutant_phase(&m, (et_phase)phase, error);
        if (status == ET_OK) *agrees = et_mutant_agrees(q, &m, !judge || q->small, seen);
    }
    if (status == ET_OK && *agrees && on->pick.whole) *agrees = is_complete(q, t, seen);
    if (status == ET_OK && *agrees && judge) status = et_mutant_passes(q, &m, agrees, error);
    if (status == ET_OK && *agrees && judge && t->what->nature == ET_BY_FACTOR)
        t->fit = et_mutant_fit(q, &m);
    et_mutant_close(&m);
    return status;
}

/* ---- a factor ---- */

/* The mutant with factor 1 + step changes everything in proportion, or nearly so: how much of that
 * change does the candidate show? Asked of the first phase at which it fails. */
static et_status fit_once(et_subject *on, const et_inquiry *q, const et_attempt *t, double step,
                          et_fit *fit, et_error *error)
{
    et_mutant m;
    et_status status = ET_OK;
    et_attempt trial = *t;
    trial.factor = 1 + step;
    open_mutant(&m, on, q, &trial);
    bool enough = false;
    unsigned before = 0;
    for (int phase = 0; status == ET_OK && !enough && phase < ET_LAYOUT; phase++) {
        status = et_mutant_phase(&m, (et_phase)phase, error);
        if (status == ET_OK && m.done != before) *fit = et_fit_factor(q, &m, &enough);
        before = m.done;
    }
    et_mutant_close(&m);
    return status;
}

/* Does a sum over all tokens fail, of which a pick shows nothing? */
static bool fails_as_a_whole(const et_inquiry *q)
{
    static const char *const names[] = {"bwd.shared_up", "bwd.shared_down", "bwd.w_router"};
    for (size_t i = 0; i < q->count; i++)
        for (size_t k = 0; k < sizeof names / sizeof *names; k++)
            if (q->exhibits[i].failed && strcmp(q->exhibits[i].got->name, names[k]) == 0)
                return true;
    return false;
}

/* Fitted a second time near the first answer. */
et_status et_attempt_fit(et_subject *on, const et_inquiry *q, et_attempt *t, bool *found,
                         et_error *error)
{
    const double certain = 6;
    double step = 0x1p-10;
    et_status status = ET_OK;
    *found = true;
    for (int round = 0; status == ET_OK && *found && round < 2; round++) {
        et_fit fit = {0};
        status = fit_once(on, q, t, step, &fit, error);
        if (fit.sums.uu == 0 && !on->pick.whole && fails_as_a_whole(q)) return status;
        double part = et_slope_of(&fit.sums);
        *found = fabs(part) * sqrt(fit.sums.uu) > certain;
        t->factor = 1 + step * part;
        t->deviation = *found ? fabs(step) / sqrt(fit.sums.uu) : 0;
        *found = *found && t->factor > 0.4 && t->factor < 2.5;
        step = t->factor - 1;
    }
    return status;
}
