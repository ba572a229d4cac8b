/* rounding_hypotheses.c: hypotheses about rounding. They change no value of the reference, only what may be made of
 * it, so they are tried on the verdict's own figures, and all but the first only where errors are small.
 *
 *     a format       every failing tensor holds numbers of a coarser format alone, each of which is what
 *                    rounding to it makes of a value that passes
 *     a profile      everything passes under the variances of another profile, most rows of every failing
 *                    tensor err, and one at least does not stay far below the variances: a looser bar
 *                    always fits, so a spread is asked for
 *     flushing       a profile, too, but few elements err: 0 stands where numbers below the smallest normal
 *                    one should, and none of these is left
 *     truncation     errors towards zero: a slope of about -0.36 2^(1-p) for every truncation on the way, up to
 *                    a dozen of them, and beside it no more scatter than that
 *
 * Sums in 8 bits are a special case. Their errors depend on the order of summation (blocked sums err far
 * less than the model's sequential one) and lose small addends, which makes a slope, and are not normal.
 * So only elements, all but one in a thousand, and the spread are asked for there, and a size of the
 * errors that 8 bits would make. That much fits many a small mistake in one tensor; so the errors must be scattered over
 * rows and columns, and a product that fails alone must consist of numbers of 8 bits.
 *
 * Where decisions are illegal a profile must make them legal, too.
 */
#include "ref/base/memory.h"
#include "ref/base/place_rounding.h"
#include "ref/diagnose/diagnosis.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- sums over parts of a tensor ---- */

/* Of the errors e = got - right and of u = right: of all elements, and, in variances, of those that have one. */
typedef struct sums {
    double ee, eu, uu, squares, n;
} sums;

/* Every step-th element from `first` to before `end`. V: variances, or NULL. */
static sums sums_of(const et_observed *x, const et_real *V, size_t first, size_t end, size_t step)
{
    const et_real *right = x->right;
    sums s = {0};
    for (size_t i = first; i < end; i += step) {
        double u = (double)right[i], e = et_tensor_element(x->got, i) - u;
        s.ee += e * e;
        s.eu += e * u;
        s.uu += u * u;
        if (!V || !(V[i] > 0 && isfinite(V[i]))) continue;
        s.squares += e * e / (double)V[i];
        s.n++;
    }
    return s;
}

static sums sums_of_all(const et_observed *x, const et_real *V)
{
    return sums_of(x, V, 0, et_tensor_count(x->got), 1);
}

/* Mean square in variances; NAN where there are none. */
static double mean_square(sums s)
{
    return s.n > 0 ? s.squares / s.n : NAN;
}

/* Elements that stand together: a row, or as many short ones as make 16. */
static size_t stretch_of(const et_observed *x)
{
    size_t columns = x->columns;
    return columns >= 16 || columns == 0 ? columns : (16 + columns - 1) / columns * columns;
}

/* Of the parts of `each` elements that are not empty, those of which the test is true. */
static double share(const et_observed *x, const et_real *V, size_t each,
                    bool (*test)(sums s, double level), double level)
{
    size_t count = et_tensor_count(x->got), parts = 0, hits = 0;
    for (size_t from = 0; each > 0 && from < count; from += each) {
        sums s = sums_of(x, V, from, from + each < count ? from + each : count, 1);
        bool filled = V ? s.n > 0 : s.uu > 0;
        parts += filled;
        hits += filled && test(s, level);
    }
    return parts > 0 ? (double)hits / (double)parts : 1;
}

static bool is_smaller(sums s, double level)
{
    return s.eu < level;
}

static bool errs_by(sums s, double level)
{
    return s.ee >= level * s.uu;
}

static bool is_beyond(sums s, double level)
{
    return mean_square(s) > level;
}

/* e = slope * u + rest: the errors of a tensor as parts of the reference's root mean square, all and the rest. */
typedef struct errors {
    double slope, all, rest;
} errors;

static errors errors_of(const et_observed *x)
{
    sums s = sums_of_all(x, NULL);
    if (!(s.uu > 0) || !(s.ee < INFINITY)) return (errors){0, INFINITY, INFINITY};
    double slope = s.eu / s.uu, all = s.ee / s.uu;
    return (errors){slope, sqrt(all), sqrt(fmax(0, all - slope * slope))};
}

/* ---- the failures' sizes ---- */

/* Rounding errs by a few parts in a hundred, where sums cancel by more; a wrong formula by as much as
 * there is. */
static bool could_be_rounding(const et_diagnosis *q)
{
    for (size_t i = 0; i < q->wrong_count; i++)
        if (!(errors_of(q->wrong[i]).all < 0.3)) return false;
    return true;
}

/* The fit of one guess for all that fails: its format, or the verdict's own variances about each tensor's slope. */
static double fit_of_guess(const et_diagnosis *q, bool slopes, int bits)
{
    et_likelihood l = {0};
    for (size_t i = 0; i < q->wrong_count; i++) {
        double slope = slopes ? errors_of(q->wrong[i]).slope : 0;
        et_fit_add(&l, q->wrong[i], &(et_guess){.slope = slope, .bits = bits});
    }
    return et_fit_of(&l);
}

static double own_fit(const et_diagnosis *q)
{
    return fit_of_guess(q, false, 0);
}

static et_likelihood likelihood_under(const et_diagnosis *q, const et_bars *bars)
{
    et_likelihood l = {0};
    for (size_t i = 0; i < q->wrong_count; i++) {
        const et_real *V = et_variance_named(bars, q->wrong[i]->got->name);
        if (V) et_fit_add(&l, q->wrong[i], &(et_guess){.variance = V});
    }
    return l;
}

static void note(et_diagnosis *q, const et_hypothesis *what, const bool covers[ET_PARTS],
                 double fit)
{
    et_diagnosis_note(q, what, covers, "everywhere", "", fit);
    for (int p = 0; p < ET_PARTS; p++) q->explained[p] |= covers[p];
}

/* ---- a coarser format ---- */

/* Is each value what the format makes of one that passes? Rounding is monotonous, overflow and underflow
 * included: it lies between what becomes of the two ends of the bar. */
static bool is_rounded_to(const et_observed *x, et_dtype format)
{
    const et_real *right = x->right;
    for (size_t i = 0; i < et_tensor_count(x->got); i++) {
        double reach = x->limit * sqrt((double)x->variance[i]);
        double got = et_tensor_element(x->got, i), value = (double)right[i];
        if (!(et_round_to_dtype(value - reach, format) <= got &&
              got <= et_round_to_dtype(value + reach, format)))
            return false;
    }
    return true;
}

/* Are all reals of a part that fail numbers of that format, and is there one? */
static bool is_of_format(const et_diagnosis *q, et_part part, et_dtype format)
{
    const et_profile *p = q->j->options->profile;
    bool any = false;
    for (size_t i = 0; i < q->count; i++) {
        const et_observed *x = &q->observed[i];
        if (!x->failed || x->part != part || x->stage == ET_STAGES) continue;
        any = true;
        if (!x->variance ||
            p->bits[et_tensor_place(x->got->name)] <= et_dtype_significand(format) ||
            !et_holds_alone(x->got, format) || !is_rounded_to(x, format))
            return false;
    }
    return any;
}

/* A state that is merely shown in a short format is told from one that is kept in it, if at all, by what follows from
 * it: so that is asked even where the other explains it. */
static void try_format(et_diagnosis *q, const et_hypothesis *what)
{
    bool covers[ET_PARTS];
    for (int p = 0; p < ET_PARTS; p++)
        covers[p] = (p == ET_PART_ROUTING ? !q->routing_failed : !q->explained[p]) &&
                    is_of_format(q, (et_part)p, what->format);
    if (covers[0] || covers[1])
        note(q, what, covers, fit_of_guess(q, false, et_dtype_significand(what->format)));
}

/* ---- truncation ---- */

/* Does most of the tensor err towards zero? Chance would have one half. */
static bool is_smaller_everywhere(const et_observed *x)
{
    return 3 * share(x, NULL, stretch_of(x), is_smaller, 0) >= 2;
}

/* The least bits to which anything on the way to a tensor is truncated; a sum that is kept for long, such as a loss,
 * has its own. */
static int coarsest(const et_profile *p, et_place place)
{
    int bits = p->bits[ET_OPERANDS];
    if (place == ET_ACCUMULATOR) return p->bits[place];
    if (p->bits[ET_INTERMEDIATES] < bits) bits = p->bits[ET_INTERMEDIATES];
    if (p->bits[ET_OUTPUTS] < bits) bits = p->bits[ET_OUTPUTS];
    return bits;
}

static void try_truncation(et_diagnosis *q, const et_hypothesis *what)
{
    const et_profile *p = q->j->options->profile;
    bool any = false;
    for (size_t i = 0; i < q->wrong_count; i++) {
        double unit = ldexp(1, 1 - coarsest(p, et_tensor_place(q->wrong[i]->got->name)));
        errors e = errors_of(q->wrong[i]);
        bool slopes = e.slope <= -0.2 * unit;
        if (!(e.slope >= -6 * unit && e.slope <= 0.1 * unit && e.rest <= 2 * unit)) return;
        if (slopes && !is_smaller_everywhere(q->wrong[i])) return;
        any |= slopes;
    }
    if (any) note(q, what, (bool[ET_PARTS]){false, true}, fit_of_guess(q, true, 0));
}

/* ---- another profile ---- */

/* Are the errors scattered, and not mostly a slope, all in all? Truncation's slope is three quarters of
 * its errors, a factor's all. */
static bool is_scattered(const et_diagnosis *q)
{
    double slopes = 0;
    for (size_t i = 0; i < q->wrong_count; i++) {
        errors e = errors_of(q->wrong[i]);
        slopes += e.all > 0 ? e.slope * e.slope / (e.all * e.all) : 0;
    }
    return slopes <= 0.5 * (double)q->wrong_count;
}

static bool is_gates(const et_observed *x)
{
    return x->stage == ET_AT_GATES || x->stage == ET_AT_WEIGHTS;
}

/* Gates that happen to be numbers of the format, or nearly: those of a saturated softmax are 1. */
static bool is_spared(const et_profile *p, const et_observed *x, const et_real *V, size_t first,
                      size_t count)
{
    const rounding r = et_rounding_at(p, ET_GATES);
    const et_real *right = x->right;
    double moves = 0, variance = 0;
    for (size_t i = first; i < first + count; i++) {
        double by = rounding_moves(&r, (double)right[i]);
        moves += by * by;
        /* V was computed, or the diagnosis failed. NOLINTNEXTLINE(clang-analyzer-core.NullDereference) */
        variance += (double)V[i];
    }
    return moves < 0.01 * variance;
}

/* Do most rows have errors? Rounding spares none but these; of what gates are behind, a few rows will do. */
static bool is_everywhere(const et_diagnosis *q, const et_observed *x, const et_real *V,
                          const et_profile *p)
{
    size_t columns = x->columns, count = et_tensor_count(x->got), rows = 0, noisy = 0;
    double all = mean_square(sums_of_all(x, V));
    for (size_t from = 0; columns > 0 && from < count; from += columns) {
        double row = mean_square(sums_of(x, V, from, from + columns, 1));
        if (is_gates(x) && is_spared(p, x, V, from, columns)) continue;
        rows += row >= 0;
        noisy += row >= 0.01 * all;
    }
    bool by_gates = !is_gates(x) && p->bits[ET_GATES] < q->j->options->profile->bits[ET_GATES];
    return (by_gates ? 16 : 2) * noisy >= rows;
}

/* Root mean square of the elements' errors in parts of themselves, none more than 1. */
static double relative_error(const et_observed *x)
{
    const et_real *right = x->right;
    double sum = 0, n = 0;
    for (size_t i = 0; i < et_tensor_count(x->got); i++) {
        double u = (double)right[i], e = et_tensor_element(x->got, i) - u;
        if (u == 0) continue;
        sum += fmin(1, e / u * (e / u));
        n++;
    }
    return n > 0 ? sqrt(sum / n) : 0;
}

/* The same before there are variances, of errors in parts of each row's values; a few rows will do. */
static bool errs_in_many_rows(const et_observed *x)
{
    double all = errors_of(x).all;
    return 16 * share(x, NULL, x->columns, errs_by, 0.01 * all * all) >= 1;
}

/* And in the verdict's variances: one that is far off is no rounding, however small it is beside the tensor. */
static bool is_beyond_in_many_rows(const et_observed *x)
{
    double all = mean_square(sums_of_all(x, x->variance));
    return !(all > 0) || 16 * share(x, x->variance, x->columns, is_beyond, 0.01 * all) >= 1;
}

/* A mean square, in variances, that is too large for an honest kernel's errors. */
static const double beyond_bars = 1.3;

/* Are errors larger than the verdict's own variances say in most of the tensor? Where they are in a part of it
 * alone, another arithmetic is not what made them. */
static bool is_beyond_bars(const et_observed *x)
{
    return 2 * share(x, x->variance, stretch_of(x), is_beyond, beyond_bars) >= 1;
}

/* The errors are of the size that variances V say. */
static bool is_of_size(const et_diagnosis *q, const et_observed *x, const et_real *V,
                       const et_profile *p)
{
    double least = et_tensor_count(x->got) < 16 ? 0.05 : 0.3;
    return mean_square(sums_of_all(x, V)) >= least * least && is_everywhere(q, x, V, p);
}

/* Sums in few bits err by at most what replicas do: blocked ones by less, and with a slope. */
static bool is_of_sums(const et_diagnosis *q, const et_observed *x, const et_bars *bars,
                       const et_profile *p)
{
    const et_real *V = et_variance_named(bars, x->got->name);
    const et_tensor_bars *t = &bars->tensor[et_tensor_find(x->got->name)];
    double chance = 12 / sqrt(2 * (double)et_tensor_count(x->got));
    double most = t->groups > 0 ? 1.2 * t->bars[0].spread + chance : 0;
    return mean_square(sums_of_all(x, V)) <= most * most && is_everywhere(q, x, V, p);
}

static bool is_subnormal(double value, double smallest)
{
    return value != 0 && fabs(value) < smallest;
}

/* Zeros for subnormal numbers, and none of those is left. */
static bool is_flushed(const et_diagnosis *q, const et_observed *x)
{
    const et_real *right = x->right;
    double smallest = et_place_smallest(q->j->options->profile, et_tensor_place(x->got->name));
    size_t flushed = 0;
    for (size_t i = 0; i < et_tensor_count(x->got); i++) {
        double got = et_tensor_element(x->got, i);
        if (is_subnormal(got, smallest)) return false;
        flushed += got == 0 && is_subnormal((double)right[i], smallest);
    }
    return flushed > 0;
}

static bool fails_at(const et_diagnosis *q, et_stage stage)
{
    for (size_t i = 0; i < q->wrong_count; i++)
        if (q->wrong[i]->stage == stage) return true;
    return false;
}

/* Sums over weights or tokens: what experts are made of; dx where its error does not come from the router. */
static bool is_product(const et_diagnosis *q, const et_observed *x)
{
    const et_stage products[] = {ET_AT_PRE, ET_AT_OUT, ET_AT_Y, ET_AT_DDOWN, ET_AT_DUP};
    for (size_t i = 0; i < sizeof products / sizeof *products; i++)
        if (x->stage == products[i]) return true;
    return x->stage == ET_AT_DX && !fails_at(q, ET_AT_DLOGITS) && !fails_at(q, ET_AT_DROUTER);
}

/* The part of a tensor's errors that is each stretch's own slope. */
static double part_of_slopes(const et_observed *x)
{
    size_t each = stretch_of(x), count = et_tensor_count(x->got);
    double all = 0, slopes = 0;
    for (size_t from = 0; each > 0 && from < count; from += each) {
        sums s = sums_of(x, NULL, from, from + each < count ? from + each : count, 1);
        all += s.uu > 0 ? s.ee / s.uu : 0;
        slopes += s.uu > 0 ? s.eu / s.uu * (s.eu / s.uu) : 0;
    }
    return all > 0 ? slopes / all : 0;
}

/* Are errors larger than the verdict's variances say in a fourth of the columns, and not in one here and there? */
static bool is_beyond_in_columns(const et_observed *x)
{
    size_t columns = x->columns, beyond = 0, filled = 0;
    for (size_t c = 0; c < columns; c++) {
        sums s = sums_of(x, x->variance, c, et_tensor_count(x->got), columns);
        filled += s.n > 0;
        beyond += s.squares > beyond_bars * s.n;
    }
    return 4 * beyond >= filled;
}

/* Is every number one of so many bits? */
static bool has_bits(const et_observed *x, int bits)
{
    for (size_t i = 0; i < et_tensor_count(x->got); i++) {
        int exponent;
        double m = ldexp(frexp(et_tensor_element(x->got, i), &exponent), bits);
        if (m != nearbyint(m)) return false;
    }
    return true;
}

/* Does it fail by more than a slope: by elements, or by its errors' size? */
static bool is_wide(const et_observed *x)
{
    const et_tensor_verdict *v = x->verdict;
    return v->failed > 0 || v->worst_group.spread > v->worst_group.spread_limit ||
           v->whole.spread > v->whole.spread_limit;
}

/* A few elements, such as zeros of relu that a coarser H turns into numbers. */
static bool fails_rarely(const et_observed *x)
{
    return x->verdict->failed > 0 && 1000 * x->verdict->failed <= x->verdict->judged;
}

/* Sums in few bits: half of the tensors that fail, and not rarely, err in most of their parts, and by more than a slope. Products of
 * matrices are among them, whose errors are of a size that so few bits make, and scattered over all columns. (A wrong
 * weight makes slopes, a wrong loss leaves experts alone.) If but one kind of product fails, its own sums have few bits. */
static bool look_like_sums(const et_diagnosis *q, int bits)
{
    size_t failing = 0, beyond = 0, wide = 0, products = 0;
    unsigned kinds = 0;
    bool few_bits = true;
    double slopes = 0;
    for (size_t i = 0; i < q->wrong_count; i++) {
        const et_observed *x = q->wrong[i];
        if (fails_rarely(x)) continue;
        failing++;
        beyond += is_beyond_bars(x);
        wide += is_wide(x);
        if (!is_product(q, x)) continue;
        if (errors_of(x).all < ldexp(0.25, -bits)) return false;
        if (is_beyond_bars(x) && !is_beyond_in_columns(x)) return false;
        products++;
        slopes += part_of_slopes(x);
        kinds |= 1u << (x->stage == ET_AT_DUP ? ET_AT_DDOWN : x->stage);
        few_bits = few_bits && has_bits(x, bits);
    }
    bool alone = (kinds & (kinds - 1)) == 0;
    return 2 * beyond >= failing && 2 * wide >= failing && products > 0 &&
           2 * slopes <= (double)products && (few_bits || !alone);
}

/* Are the candidate's decisions legal within what this profile's errors can turn? */
static et_status allows_routing(const et_diagnosis *q, const et_bars *bars, bool *legal,
                                et_error *error)
{
    et_judgement j = *q->j;
    et_routing_verdict verdict = {0};
    void *open;
    et_status status =
        et_allocate(&open, j.golden->c.tokens * j.golden->c.experts, 1, "open decisions", error);
    if (status != ET_OK) return status;
    j.bars = bars;
    status = et_routing_judge(&j, &verdict, open, error);
    *legal = verdict.outcome != ET_MISMATCH;
    free(open);
    return status;
}

/* A tensor that passes, and that the profile would make err far more than the verdict's does, has less than a hundredth
 * of such errors: it was not rounded so. */
static bool speaks_against(const et_observed *x, const et_real *V)
{
    enum { ENOUGH = 256 };
    size_t count = et_tensor_count(x->got);
    double theirs = 0, own = 0;
    if (!x->passed || x->part != ET_PART_ARITHMETIC || !x->variance || count < ENOUGH) return false;
    for (size_t i = 0; i < count; i++) {
        theirs += (double)V[i];
        own += (double)x->variance[i];
    }
    return own > 0 && theirs > 1e3 * own && mean_square(sums_of_all(x, V)) < 1e-4;
}

static bool is_contradicted(const et_diagnosis *q, const et_bars *bars)
{
    for (size_t i = 0; i < q->count; i++) {
        const et_real *V = et_variance_named(bars, q->observed[i].got->name);
        if (V && speaks_against(&q->observed[i], V)) return true;
    }
    return false;
}

/* The bars of what is right under another profile. */
static et_status take_bars(const et_diagnosis *q, const et_profile *p, et_shelved **taken,
                           et_error *error)
{
    const et_judgement *j = q->j;
    const uint8_t *mask = q->right == j->golden ? NULL : q->right->route.mask;
    return et_shelf_take(j->shelf, mask, p, j->options->max_bytes, NULL, NULL, taken, error);
}

/* Of stages alone, where the candidate has their errors alone. */
static const et_bars *bars_for(const et_diagnosis *q, const et_shelved *taken, et_bars *room)
{
    if (q->j->alone == NULL) return &taken->bars;
    et_bars_mix(room, &taken->bars, q->j->alone);
    return room;
}

/* How tightly profile p fits as a whole; and does it account for the errors, which are of the size that it says, in
 * all that fails, and not absent from what passes? */
static et_status fit_profile(const et_diagnosis *q, const et_profile *p, double *fit,
                             bool *accounts, et_error *error)
{
    const double fills =
        0.3; /* below that part of its deviations a profile merely covers the errors */
    et_shelved *taken;
    et_status status = take_bars(q, p, &taken, error);
    if (status != ET_OK) return status;
    et_bars mixed;
    const et_bars *bars = bars_for(q, taken, &mixed);
    et_likelihood l = likelihood_under(q, bars);
    *fit = et_fit_of(&l);
    *accounts = (l.n == 0 || l.squares >= fills * fills * l.n) && !is_contradicted(q, bars);
    et_shelf_give_back(q->j->shelf, taken);
    return ET_OK;
}

static bool goes_on(void *user)
{
    return et_budget_allows(user, ET_PROFILE_BARS);
}

et_status et_find_other_profile(et_diagnosis *q, et_other_profile *other, et_error *error)
{
    bool accounts = false;
    *other = (et_other_profile){.fit = -INFINITY};
    if (!could_be_rounding(q)) return ET_OK;
    et_budget_until(&q->budget, 1, 1);
    et_status status = et_find_passing_profile(&other->profile, q->j, goes_on, &q->budget, error);
    if (status != ET_OK || !other->profile) return status;
    q->verdict->passes_under = other->profile->name;
    status = fit_profile(q, other->profile, &other->fit, &accounts, error);
    other->explains = !q->failed[ET_PART_ARITHMETIC] || (accounts && other->fit > own_fit(q) + 1);
    other->evident = other->explains && et_has_numbers_of(q->j, other->profile);
    return status;
}

/* Every failing tensor passes, and one at least has errors of the size to be expected. Roundings of operands,
 * intermediates and gates are in all that comes behind them; few bits of one sum may be in that alone. */
static et_status fits_profile(const et_diagnosis *q, const et_bars *bars, const et_profile *p,
                              bool *fits, et_error *error)
{
    const et_profile *own = q->j->options->profile;
    bool of_sums = p->bits[ET_ACCUMULATOR] < own->bits[ET_ACCUMULATOR],
         flushes = p->ftz != own->ftz, any = of_sums;
    et_verify_options options = *q->j->options;
    et_judgement j = *q->j;
    et_status status = ET_OK;
    options.profile = p;
    j.options = &options;
    j.bars = bars;
    j.visit = NULL;
    *fits = of_sums || flushes || !is_contradicted(q, bars);
    for (size_t i = 0; *fits && i < q->count; i++) {
        const et_observed *x = &q->observed[i];
        et_tensor_verdict out = {0};
        const et_real *V = et_variance_named(bars, x->got->name);
        if (!V || !x->failed || x->part != ET_PART_ARITHMETIC) continue;
        status = et_judge_tensor(&j, (size_t)(x->got - j.candidate), q->right, V, &out, error);
        if (status != ET_OK) return status;
        *fits = of_sums ? 1000 * out.failed <= out.judged : out.outcome != ET_MISMATCH;
        if (!*fits || x->stage == ET_STAGES) continue; /* logits, metrics: they pass, no more */
        *fits = of_sums ? is_of_sums(q, x, bars, p) : flushes || is_everywhere(q, x, V, p);
        any = any || (flushes ? is_flushed(q, x) : is_of_size(q, x, V, p));
    }
    *fits = *fits && any;
    if (*fits) status = et_stages_pass_under(p, q, bars, fits, error);
    if (status != ET_OK) return status;
    return *fits && q->routing_failed ? allows_routing(q, bars, fits, error) : ET_OK;
}

/* The fewest bits that the profile has where the verdict's has more; 64 if it has none. */
static int coarsened_to(const et_profile *p, const et_profile *own)
{
    int bits = 64;
    for (int i = 0; i < ET_ALL_PLACES; i++) {
        int now = et_place_bits(p, (et_place)i);
        if (now < et_place_bits(own, (et_place)i) && now < bits) bits = now;
    }
    return bits;
}

/* Is the profile's difference one that these failures could come from? Asked before its variances are
 * computed, which takes as long as a verdict: do errors spare but few rows, and are they not far below the roundings'
 * 0.4 2^-bits? */
static bool could_be(const et_diagnosis *q, const et_profile *p)
{
    const et_profile *own = q->j->options->profile;
    bool gates_pass = false, gates_fail = false, logits_pass = false;
    bool flushes = p->ftz != own->ftz, wide = false, shows = false;
    double least = ldexp(0.03, -coarsened_to(p, own));
    for (size_t i = 0; i < q->count; i++) {
        const et_observed *x = &q->observed[i];
        gates_pass |= is_gates(x) && x->passed;
        gates_fail |= is_gates(x) && x->failed;
        logits_pass |= x->passed && strcmp(x->got->name, "fwd.logits") == 0;
    }
    if (p->bits[ET_GATES] != own->bits[ET_GATES] && gates_pass && !gates_fail) return false;
    if (p->bits[ET_LOGITS] != own->bits[ET_LOGITS] && logits_pass) return false;
    for (size_t i = 0; i < q->wrong_count; i++) {
        const et_observed *x = q->wrong[i];
        bool many = fails_rarely(x) || (errs_in_many_rows(x) && is_beyond_in_many_rows(x));
        if (!flushes && !many) return false;
        shows |= flushes ? is_flushed(q, x) : relative_error(x) >= least;
        wide |= is_wide(x);
    }
    bool of_sums = p->bits[ET_ACCUMULATOR] < own->bits[ET_ACCUMULATOR];
    if (of_sums && !look_like_sums(q, p->bits[ET_ACCUMULATOR])) return false;
    return wide && shows; /* and not only a slope */
}

static et_status try_profile(et_diagnosis *q, const et_hypothesis *what, bool *flushed,
                             et_error *error)
{
    const et_profile *own = q->j->options->profile;
    et_profile p = *own;
    et_shelved *taken;
    bool fits = false, coarser = what->stochastic && !own->stochastic;
    if (what->bits > 0)
        p.bits[what->place] = what->bits;
    else if (what->stochastic)
        p.stochastic = true;
    else
        p.ftz = true;
    for (int i = 0; i < ET_ALL_PLACES; i++) {
        int now = et_place_bits(&p, (et_place)i), before = et_place_bits(own, (et_place)i);
        if (now > before) return ET_OK;
        coarser |= now < before;
    }
    if ((!coarser && p.ftz == own->ftz) || !could_be(q, &p)) return ET_OK;
    bool of_sums = p.bits[ET_ACCUMULATOR] < own->bits[ET_ACCUMULATOR];
    if (!et_budget_allows(&q->budget, of_sums ? ET_BARS_OF_SUMS : ET_PROFILE_BARS)) return ET_OK;
    et_status status = take_bars(q, &p, &taken, error);
    if (status != ET_OK) return status;
    et_bars mixed;
    const et_bars *bars = bars_for(q, taken, &mixed);
    status = fits_profile(q, bars, &p, &fits, error);
    et_likelihood l = likelihood_under(q, bars);
    et_shelf_give_back(q->j->shelf, taken);
    if (status == ET_OK && fits)
        note(q, what, (bool[ET_PARTS]){q->routing_failed, true}, et_fit_of(&l));
    *flushed = status == ET_OK && fits && p.ftz != own->ftz;
    return status;
}

/* ---- all of them ---- */

et_status et_explain_precision(et_diagnosis *q, et_error *error)
{
    const et_hypothesis *what;
    et_status status = ET_OK;
    bool asked = q->failed[ET_PART_ARITHMETIC] && !q->explained[ET_PART_ARITHMETIC];
    bool small = asked && could_be_rounding(q), scattered = is_scattered(q);
    bool flushed = false; /* which looks like nothing else */
    bool before[ET_PARTS] = {q->explained[0], q->explained[1]}, now[ET_PARTS] = {false};
    for (size_t i = 0; status == ET_OK && !flushed && (what = et_hypothesis_row(i)) != NULL; i++) {
        if (what->applies && !what->applies(q->right)) continue;
        if (what->nature == ET_BY_FORMAT) try_format(q, what);
        if (what->nature == ET_BY_TRUNCATION && small) try_truncation(q, what);
        if (what->nature == ET_BY_PROFILE && small && scattered)
            status = try_profile(q, what, &flushed, error);
        for (int p = 0; p < ET_PARTS; p++) {
            now[p] |= q->explained[p];
            q->explained[p] = before[p]; /* every one of them is tried */
        }
    }
    memcpy(q->explained, now, sizeof now);
    return status;
}
