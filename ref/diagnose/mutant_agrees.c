/* mutant_agrees.c: a mutant against the candidate.
 *
 * The variances of the verdict belong to the reference. What a mutant changes errs, too, and by about as
 * much in proportion as everything else in the tensor does. So with D = wrong - right, and the noise-to-
 * signal ratio rho = sum V / sum right^2, of the row or of the tensor, whichever is larger,
 *
 *     V'_c = V_c + rho (wrong_c^2 + 4 (D_c^2 + mean of D^2 over the row + over the tensor))
 *
 * where |D_c| > sqrt(V_c), and never less than what rounding the new value does (the old one may have been
 * exact), nor than what rounding the factors of a sum does whose terms cancel (as large as the row is on the
 * average), nor than what the fast engine itself errs. wrong^2 and D^2 stand for rounding that grows with the
 * value; the means for what numbers share, however small they are themselves, such as a small sum
 * of large terms; 4 covers that rho is an average. A tensor that was exact tells nothing of its noise:
 * there rho is that of a few roundings to the coarsest place, also for numbers that are as before by
 * chance. So a kernel with this one fault and honest
 * errors passes under its own hypothesis; and as bars widen only where the change matters, and in
 * proportion to it, hardly any other does.
 *
 * On a pick the test is one of elements, with the verdict's limit, and of each tensor's slope and
 * spread, with limits that only weed out: an element of which the mutant explains all but a tenth of
 * the error does not count against it, nor do a few of which it explains something; in a small
 * problem, where the full judgement costs nothing, a few more. What survives on all tokens is judged by
 * et_judge_tensor.
 */
#include "ref/base/memory.h"
#include "ref/base/threads.h"
#include "ref/base/place_rounding.h"
#include "ref/step/decide.h"
#include "ref/step/tensors.h"
#include "ref/diagnose/diagnosis.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* ---- variances ---- */

/* A mutant's variances are estimates: a group may lie four times T_g off, if that is a tenth at most of what the verdict has
 * found there. */
static double loosened(const et_diagnosis *q, const et_observed *x, double part)
{
    const et_bars *b = q->j->bars;
    const double rough = 4, T = et_group_limit(b, &b->tensor[et_tensor_find(x->got->name)]);
    return fmax(part * T, fmin(rough * T, x->verdict->worst_group.deviations / 10));
}

static double whole_limit(const et_diagnosis *q, const et_observed *x)
{
    return loosened(q, x, q->j->bars->limits.whole);
}

double et_noise_to_signal(size_t count, const et_real *values, const et_real *V)
{
    double signal = 0, noise = 0, clear = 0, of_clear = 0;
    for (size_t c = 0; V && c < count; c++) {
        double square = (double)values[c] * (double)values[c];
        if (!isfinite(V[c])) continue;
        signal += square;
        noise += (double)V[c];
        if (square == 0 || (double)V[c] > square) continue;
        clear += square;
        of_clear += (double)V[c];
    }
    /* one number that is all noise (where a softmax is saturated) says nothing of the others */
    if (noise > signal && clear > 0) return of_clear / clear;
    return signal > 0 ? noise / signal : 0;
}

/* Mean of (a - b)^2, where these are numbers. */
static double mean_change(size_t count, const et_real *a, const et_real *b)
{
    double sum = 0;
    for (size_t c = 0; c < count; c++) {
        double D = (double)a[c] - (double)b[c];
        if (isfinite(D)) sum += D * D;
    }
    return sum / (double)count;
}

/* What the bars of a tensor's mutant rest on: how sums and values of its place are rounded, rho and mean D^2
 * of the tensor. */
typedef struct mutant_bars {
    rounding sum, place;
    double rho, change, unit; /* unit: 2^-p of the accumulator */
    double terms; /* of a sum whose factors are rounded, relative to its terms' squares */
    bool exact;   /* the reference is */
    double
        near; /* behind a relu, whose 0 may come from a number close to it: variance of such, in mean D^2 */
} mutant_bars;

/* Is a tensor made by a product of matrices, or out of one element by element? */
static bool is_product(et_stage stage)
{
    const unsigned products = 1U << ET_AT_PRE | 1U << ET_AT_ACT | 1U << ET_AT_OUT | 1U << ET_AT_Y |
                              1U << ET_AT_DDOWN | 1U << ET_AT_DACT | 1U << ET_AT_DPRE |
                              1U << ET_AT_DUP | 1U << ET_AT_DROUTER | 1U << ET_AT_DX |
                              1U << ET_AT_GATE_PRE | 1U << ET_AT_DGATE_PRE | 1U << ET_AT_DGATING |
                              1U << ET_AT_DB_UP | 1U << ET_AT_DB_GATE | 1U << ET_AT_DB_DOWN;
    return products >> stage & 1;
}

static mutant_bars mutant_bars_of(const et_diagnosis *q, const et_observed *x)
{
    const et_profile *p = q->j->options->profile;
    mutant_bars b = {.sum = et_rounding_at(p, ET_ACCUMULATOR),
              .place = et_rounding_at(p, et_tensor_place(x->got->name)),
              .rho = x->noise,
              .unit = ldexp(1, -p->bits[ET_ACCUMULATOR])};
    int bits = b.place.bits;
    if (p->bits[ET_INTERMEDIATES] < bits) bits = p->bits[ET_INTERMEDIATES];
    if (p->bits[ET_OPERANDS] < bits) bits = p->bits[ET_OPERANDS];
    b.terms = is_product(x->stage) ? 2 * 0.18 * ldexp(1, -2 * bits) : 0;
    b.exact = x->noise == 0;
    if (x->stage == ET_AT_ACT) b.near = 16 * b.rho * b.rho; /* its square */
    if (x->stage == ET_AT_DPRE) b.near = b.rho / 4;         /* dA times it */
    if (b.exact) b.rho = fmax(b.rho, ldexp(1, 2 - 2 * bits));
    return b;
}

/* Of a value that comes from a few sums and is rounded to its place. */
static double new_variance(const mutant_bars *b, double value)
{
    double sum = 4 * rounding_site(&b->sum, value, 0);
    return sum + rounding_site(&b->place, value, sum);
}

/* One row. */
static void mutant_variances(const mutant_bars *b, size_t columns, const et_real *right,
                             const et_real *wrong, const et_real *V, et_real *to)
{
    double rho = et_noise_to_signal(columns, right, V), size = 0;
    double own = mean_change(columns, wrong, right), change = b->change + own;
    for (size_t c = 0; c < columns; c++)
        size += (double)wrong[c] * (double)wrong[c] / (double)columns;
    /* the engine's errors; where the row deviates, those of a sum of its size that cancels to nothing */
    double least = size * (own > 0 ? b->unit * b->unit : 0x1p-96);
    rho = fmax(rho, b->rho);
    for (size_t c = 0; c < columns; c++) {
        double w = (double)wrong[c], D = w - (double)right[c];
        double more = rho * (w * w + 4 * (D * D + change));
        bool same = D * D <= (double)V[c] || fabs(D) <= 0x1p-40 * fabs((double)right[c]);
        same = same && !(b->exact && own > 0); /* equal by chance, and exact no more */
        bool near = b->near > 0 && own > 0 && w == 0 && right[c] == 0;
        if (near) more = b->near * change;
        if (!same) more = fmax(more, fmax(new_variance(b, w), b->terms * size));
        to[c] = (et_real)fmax((double)V[c] + (same && !near ? 0 : more), least);
    }
}

/* ---- rows ---- */

static bool is_real(const et_observed *x)
{
    return et_tensor_is_real(x->got);
}

/* Where a row's numbers stand. */
typedef struct view {
    const et_observed *x;
    const et_real *right, *wrong, *V;
    size_t columns;
    mutant_bars b;
    double T;
    et_real *room; /* [columns] */
} view;

/* Row `row` of the candidate and of the reference is row `own` of the mutant. */
typedef void visitor(const view *w, size_t row, size_t own, et_fit *fit);

static void add_element(double e, double u, double V, et_fit *fit)
{
    if (!(V > 0 && V < INFINITY) || !(fabs(e) < INFINITY)) return;
    fit->sums.n++;
    fit->sums.eu += e * u / V;
    fit->sums.uu += u * u / V;
    fit->sums.ee += e * e / V;
    fit->sums.most_uu = fmax(fit->sums.most_uu, u * u / V);
}

/* Sums of D^2, row by row. */
static void measure_row(const view *w, size_t row, size_t own, et_fit *fit)
{
    size_t n = w->columns;
    fit->sums.uu += mean_change(n, w->wrong + own * n, w->right + row * n);
    fit->sums.n++;
}

static void compare_row(const view *w, size_t row, size_t own, et_fit *fit)
{
    size_t from = row * w->columns;
    const et_real *wrong = w->wrong + own * w->columns;
    mutant_variances(&w->b, w->columns, w->right + from, wrong, w->V + from, w->room);
    for (size_t c = 0; c < w->columns; c++) {
        double got = et_tensor_element(w->x->got, from + c), u = (double)wrong[c];
        double e = got - u, before = got - (double)w->right[from + c];
        if (isnan(got) && isnan(u)) continue; /* as it must be */
        double V = (double)w->room[c], T = w->T, bar = T * T * V;
        if (e * e <= bar)
            add_element(e, u, V, fit);
        else if (!(fabs(e) < INFINITY))
            fit->failed = INFINITY;
        else if (100 * e * e > before * before)
            *(e * e <= before * before ? &fit->doubtful : &fit->failed) += 1;
    }
}

/* The error against the reference, regressed on what the mutant changes, under the mutant's bars. */
static void regress_row(const view *w, size_t row, size_t own, et_fit *fit)
{
    size_t from = row * w->columns;
    const et_real *wrong = w->wrong + own * w->columns;
    mutant_variances(&w->b, w->columns, w->right + from, wrong, w->V + from, w->room);
    for (size_t c = 0; c < w->columns; c++) {
        double r = (double)w->right[from + c], e = et_tensor_element(w->x->got, from + c) - r;
        add_element(e, (double)wrong[c] - r, (double)w->room[c], fit);
    }
}

/* Calls `visit` for the rows that the mutant has computed. */
static void each_row(const et_mutant *m, const view *w, visitor *visit, et_fit *fit)
{
    const et_pick *p = m->pick;
    const char *shape = w->x->shape;
    size_t n = m->moe.n, rows = w->x->rows;
    if (et_rows_are(shape, "N")) {
        for (size_t t = 0; t < p->count; t++) visit(w, p->tokens[t], t, fit);
    } else if (et_rows_are(shape, "S")) {
        for (size_t j = 0; j < p->a.slots; j++) visit(w, p->slots[j], j, fit);
    } else if (m->all.c.layer == ET_MOE && w->x->got->rank == 3) { /* [n,.,.] */
        size_t each = rows / n;
        for (size_t r = 0; r < rows; r++)
            if (p->complete[r / each]) visit(w, r, r, fit);
    } else if (w->x->stage < ET_AT_DWEIGHT || w->x->stage > ET_AT_DX || p->whole) {
        for (size_t r = 0; r < rows; r++) visit(w, r, r, fit);
    }
}

/* The mutant's values of a tensor; NULL where they are the reference's, or of other slots. */
static const void *touched(const et_mutant *m, const et_observed *x)
{
    if (et_rows_are(x->shape, "S") && x->got->shape[0] != m->a->slots) return NULL;
    return et_mutant_values(m, x->got->name);
}

/* ---- the mask ---- */

static double largest_variance(const et_judgement *j, size_t places)
{
    double most = 0;
    for (size_t i = 0; i < places; i++) most = fmax(most, et_score_variance(j, i));
    return most;
}

/* Might the mutant's own decision have fallen otherwise? By its margin; but a tie between ranked scores is
 * settled: there the mutant says who is taken. Scores that were rounded, which moves them by whole
 * steps, are sure to one step only. */
static bool is_open(const et_diagnosis *q, const et_mutant *m, double T, double most, size_t i)
{
    if (m->all.route.margin == NULL) return false; /* a given assignment */
    double score = (double)m->routed.fwd.logits[i];
    double variance = et_score_variance(q->j, i) + most;
    double moved = fabs(score - (double)et_step_scores(&m->all)[i]);
    double reach = T * sqrt(variance) + (moved > 0 ? 0x1p-7 * fabs(score) : 0);
    double margin = fabs((double)m->all.route.margin[i]);
    if (margin == 0 && moved == 0 && (m->ranked || variance == 0)) return false;
    return margin <= reach;
}

/* The candidate's assignment may differ from the mutant's where the latter's own decision is open. If the
 * assignment is what was wrong, the mutant must account for what was illegal of it: for half at least,
 * as decisions that are open fall anew. */
static bool mask_agrees(const et_diagnosis *q, const et_mutant *m)
{
    const et_judgement *j = q->j;
    const uint8_t *got = j->mask, *wrong = m->all.route.mask, *right = j->golden->route.mask;
    size_t places = m->moe.N * m->moe.n, differ = 0, before = 0;
    size_t illegal = q->verdict->routing.illegal;
    double T = j->bars->limits.element, most = largest_variance(j, places);
    for (size_t i = 0; i < places; i++) {
        before += (got[i] != 0) != (right[i] != 0);
        if ((got[i] != 0) == (wrong[i] != 0)) continue;
        if (!is_open(q, m, T, most, i)) return false;
        differ++;
    }
    if (illegal > before) illegal = before;
    return !q->routing_failed || 2 * differ <= before + (before - illegal);
}

/* ---- whole tensors ---- */

static bool integers_agree(const et_observed *x, const void *wrong)
{
    et_tensor_out t = *x->got;
    t.values = wrong;
    t.source = x->got->source == ET_FROM_U8 ? ET_FROM_U8 : ET_FROM_I32;
    for (size_t i = 0; i < et_tensor_count(x->got); i++)
        if (et_tensor_element(x->got, i) != et_tensor_element(&t, i)) return false;
    return true;
}

static bool fit_agrees(const et_diagnosis *q, const et_observed *x, const et_fit *fit)
{
    const et_tensor_bars *t = &q->j->bars->tensor[et_tensor_find(x->got->name)];
    double n = fit->sums.n, failed = q->small ? 0.02 : 0, doubtful = q->small ? 0.2 : 0.02;
    if (fit->failed > failed * n || fit->doubtful > 1 + doubtful * n) return false;
    et_group g = {.deviations = 0};
    if (t->groups > 0 && x->noise > 0)
        g = et_measure_group(q->j->bars, t, t->grid.first[ET_KIND_TENSOR], &fit->sums);
    return g.deviations <= whole_limit(q, x);
}

static bool view_of(const et_diagnosis *q, size_t index, const void *wrong, view *w)
{
    const et_observed *x = &q->observed[index];
    *w = (view){.x = x, .right = x->right, .wrong = wrong, .V = x->variance};
    if (x->variance == NULL) return false;
    w->columns = x->columns;
    w->b = mutant_bars_of(q, x);
    w->room = q->room;
    w->T = q->j->bars->limits.element;
    return true;
}

static bool observed_agrees(const et_diagnosis *q, const et_mutant *m, size_t index,
                            const void *wrong)
{
    const et_observed *x = &q->observed[index];
    view w;
    et_fit fit = {0}, change = {0};
    if (!is_real(x)) return integers_agree(x, wrong);
    if (!view_of(q, index, wrong, &w)) return true;
    each_row(m, &w, measure_row, &change);
    if (change.sums.n > 0) w.b.change = change.sums.uu / change.sums.n;
    each_row(m, &w, compare_row, &fit);
    return fit_agrees(q, x, &fit);
}

/* What the mask implies is not compared where the candidate's own mask is known: it is its own. */
static bool takes_part(const et_observed *x)
{
    return x->stage != ET_STAGES && x->stage != ET_AT_MASK && (x->failed || x->passed);
}

bool et_mutant_agrees(const et_diagnosis *q, et_mutant *m, bool reals, bool *seen)
{
    if (m->done == m->compared || m->blocked) return true;
    m->compared = m->done;
    for (size_t i = 0; i < q->count; i++) {
        const et_observed *x = &q->observed[i];
        const void *wrong = !seen[i] && takes_part(x) ? touched(m, x) : NULL;
        if (!wrong) continue;
        seen[i] = true;
        if ((reals || !is_real(x)) && !observed_agrees(q, m, i, wrong)) return false;
    }
    if (m->rerouted || q->j->mask == NULL || m->all.route.mask == q->right->route.mask) return true;
    return mask_agrees(q, m);
}

et_fit et_fit_factor(const et_diagnosis *q, const et_mutant *m, bool *failing)
{
    et_fit fit = {0};
    *failing = false;
    for (size_t i = 0; i < q->count; i++) {
        const et_observed *x = &q->observed[i];
        const void *wrong = takes_part(x) && is_real(x) ? touched(m, x) : NULL;
        view w;
        if (!wrong || !view_of(q, i, wrong, &w)) continue;
        each_row(m, &w, regress_row, &fit);
        *failing = *failing || x->failed;
    }
    return fit;
}

/* ---- the full judgement ---- */

/* One factor for all is one for every group: nothing is loosened. */
static bool is_by_factor(const et_mutant *m)
{
    return m->fault.what->nature == ET_BY_FACTOR;
}

/* Variances for a whole tensor, in place of the verdict's. */
static et_status make_variances(const et_diagnosis *q, const et_observed *x, const et_real *wrong,
                                et_real **out, et_error *error)
{
    size_t columns = x->columns, count = x->rows * columns;
    const et_real *right = x->right;
    mutant_bars b = mutant_bars_of(q, x);
    if (count > 0) b.change = mean_change(count, wrong, right);
    void *room;
    et_status status = et_allocate(&room, count, sizeof(et_real), "variances", error);
    if (status != ET_OK) return status;
    *out = room;
    et_real *V = *out;
#pragma omp parallel for if (et_worth_threads(count))
    for (size_t row = 0; row < x->rows; row++) {
        size_t from = row * columns;
        mutant_variances(&b, columns, right + from, wrong + from, x->variance + from, V + from);
    }
    return ET_OK;
}

static et_status judge_observed(const et_diagnosis *q, const et_mutant *m, const et_observed *x,
                                const et_real *wrong, et_tensor_verdict *out, et_error *error)
{
    et_real *V = NULL;
    et_status status = make_variances(q, x, wrong, &V, error);
    const et_step reference = et_mutant_step(m);
    et_judgement j = *q->j;
    et_bars loose = *q->j->bars;
    if (!is_by_factor(m)) {
        loose.limits.group = loose.limits.group_of_sums = loosened(q, x, 1);
        loose.limits.whole = whole_limit(q, x) / loose.limits.group;
    }
    j.bars = &loose;
    j.visit = NULL;
    if (status == ET_OK)
        status = et_judge_tensor(&j, (size_t)(x->got - j.candidate), &reference, V, out, error);
    free(V);
    return status;
}

/* NaN where the mutant has it, too: it fails by itself, and says nothing of groups. */
static size_t count_nan(const et_observed *x, const et_real *wrong)
{
    size_t count = 0;
    for (size_t i = 0; i < et_tensor_count(x->got); i++)
        count += isnan(wrong[i]) && isnan(et_tensor_element(x->got, i));
    return count;
}

/* The bars of what a mutant changes are estimates, of sums that cancel above all: where nothing else speaks
 * against it, one element in 500 may lie past them, if the reference has ten times as many; one in 5000 of
 * a tensor that passes. Where elements fail, the mutant's are other numbers, of whose errors, group by group, the replicas
 * know nothing: there the tensor as a whole is asked; nothing where the reference is exact and the mutant is not. */
static bool passes_roughly(const et_diagnosis *q, const et_mutant *m, const et_observed *x,
                           const et_real *wrong, const et_tensor_verdict *v)
{
    size_t none = count_nan(x, wrong);
    if (none > 0) return v->failed <= none;
    bool few = x->failed ? 500 * v->failed <= v->judged && 10 * v->failed <= x->verdict->failed
                         : 5000 * v->failed <= v->judged;
    if (v->outcome != ET_MISMATCH) return true;
    if (v->failed > 0 && !few) return false;
    if (x->noise == 0 && v->failed == 0) return true;
    if (x->verdict->failed > 0 && v->failed == 0)
        return !is_by_factor(m) && v->whole.deviations <= whole_limit(q, x);
    return v->whole.pass && v->worst_group.pass;
}

/* Does the mutant take most of the error from the elements that fail? Where it has wide bars of its own it
 * may pass without. What a mistake leaves at 0 throughout is 0, and not a small part of what it should be. */
static bool takes_most(const et_observed *x, const et_real *wrong)
{
    const et_real *right = x->right;
    double before = 0, after = 0;
    bool zero = true;
    if (!x->failed || !is_real(x)) return true;
    for (size_t i = 0; i < et_tensor_count(x->got); i++) {
        double got = et_tensor_element(x->got, i);
        double e = got - (double)right[i], rest = got - (double)wrong[i];
        zero = zero && wrong[i] == 0;
        if (!isfinite(e) || !isfinite(rest) || !et_element_fails(x, i)) continue;
        before += e * e;
        after += rest * rest;
    }
    return (zero ? 0x1p30 : 4) * after <= before;
}

et_status et_mutant_passes(const et_diagnosis *q, const et_mutant *m, bool *passes, et_error *error)
{
    et_status status = ET_OK;
    *passes = true;
    for (size_t i = 0; status == ET_OK && *passes && i < q->count; i++) {
        const et_observed *x = &q->observed[i];
        const void *wrong = takes_part(x) && x->variance ? touched(m, x) : NULL;
        et_tensor_verdict out = {0};
        if (!wrong) continue;
        status = judge_observed(q, m, x, wrong, &out, error);
        *passes = passes_roughly(q, m, x, wrong, &out) && takes_most(x, wrong);
    }
    return status;
}

double et_mutant_fit(const et_diagnosis *q, const et_mutant *m)
{
    et_likelihood l = {0};
    for (size_t i = 0; i < q->wrong_count; i++)
        et_fit_add(&l, q->wrong[i], &(et_guess){.values = touched(m, q->wrong[i])});
    return et_fit_of(&l);
}
