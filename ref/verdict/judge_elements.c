/* judge_elements.c: one tensor against its reference, element by element. Parts 3 and 5 of the verdict.
 *
 * With the reference u, the candidate g and the variance V of its error e = g - u, an element passes if
 *
 *     g is finite   and   e^2 <= T_e^2 V,        V = 0: only if e = 0 (-0 equals +0)
 *
 * The condition is written positively: what is not a number never passes. Variances are squares, and
 * below 1e-132, with what comes before them, they are not to be had in binary64: an error of that size
 * counts as none. Where V is infinite a replica has left the range of the profile, or |u| + T_e sqrt(V) does: nothing can
 * be said there.
 *
 * One pass over the tensor gathers everything that parts 3 and 6 ask for, in rows shared among threads; partial sums
 * belong to fixed chunks of rows and are added in their order, so that no figure depends on the number of threads.
 */
#include "ref/base/bits.h"
#include "ref/base/memory.h"
#include "ref/base/threads.h"
#include "ref/base/place_rounding.h"
#include "ref/verdict/judge.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

et_place et_tensor_place(const char *name)
{
    return et_tensors[et_tensor_find(name)].place;
}

/* ---- the sweep ---- */

/* A real tensor as rows and columns; for [n,h,d] the rows of all experts one after the other. */
typedef struct sheet {
    et_errors e;
    size_t rows, columns;
} sheet;

/* What is found in some rows. Counts are doubles: that is what a vector register adds. */
typedef struct counts {
    double judged, failed, exact;           /* exact: V = 0 */
    double beyond, none;                    /* the range: not judged; NaN among these */
    double noisy, same;                     /* V > 0; and yet no error at all */
    double variance, variance2, reference2; /* sums of V, V^2, u^2 */
} counts;

/* The largest values found, and where the largest e^2 / V stands. */
typedef struct extremes {
    double error, ulps, worst;
    size_t at, beyond; /* and the first that is beyond the range; SIZE_MAX: none */
} extremes;

/* What the sweep compares with. */
typedef struct limits {
    double passes;        /* T_e^2 */
    double none;          /* e^2 / V of what is no error at all */
    double smallest, bit; /* of the output type: smallest normal, 2^(p-1) ulps in a power of two */
    double largest;       /* and the largest */
} limits;

/* The square of a smaller error is no number; nor is a smaller variance one. */
static const double negligible = 0x1p-440, tiny = 0x1p-900;

/* A millionth of a deviation is what binary64 leaves: of the golden, made by whichever engine. Nor may the
 * value be another one: far below the accumulator's range, kernels say 0. */
static const double no_error = 0x1p-40;

enum { CHUNKS = 32 };

/* 1 / the power of two at or below |value|. */
static inline double inverse_power(double value, double smallest)
{
    double power = from_bits(to_bits(value) & UINT64_C(0x7ff0000000000000));
    power = power > smallest ? power : smallest;
    power = power < 0x1p1000 ? power : 0x1p1000;
    return from_bits(UINT64_C(0x7fe0000000000000) - to_bits(power));
}

/* e^2 / V; infinite where no error may be and one is, or where it is no number. */
static inline double deviation2(double e, double V)
{
    if (fabs(e) < negligible) return 0;
    if (!(V > tiny) || !(fabs(e) < INFINITY)) return INFINITY;
    return e * e / V;
}

static void count_element(double got, double want, double V, const limits *l, size_t at, counts *t,
                          extremes *most)
{
    double e = got == want ? 0 : got - want, size = fabs(e), d2 = deviation2(e, V);
    t->judged++;
    t->failed += d2 <= l->passes ? 0 : 1;
    t->exact += V > tiny ? 0 : 1;
    t->noisy += V > tiny ? 1 : 0;
    t->same += V > tiny && d2 <= l->none && size <= 0x1p-10 * fabs(want) ? 1 : 0;
    t->variance += V;
    t->variance2 += V * V;
    t->reference2 += isfinite(want) ? want * want : 0;
    if (size >= negligible && size < INFINITY) {
        most->error = larger(size, most->error);
        most->ulps = larger(
            size * l->bit * inverse_power(larger(fabs(got), fabs(want)), l->smallest), most->ulps);
    }
    if (d2 <= most->worst && most->at != SIZE_MAX) return;
    most->worst = d2;
    most->at = at;
}

/* May a kernel's number there be none, for want of room? A margin is infinite by design. */
static bool is_within(double u, double V, const limits *l)
{
    return V < INFINITY && (fabs(u) + sqrt(l->passes * V) <= l->largest || (isinf(u) && V == 0));
}

static double candidate_at(const et_errors *e, size_t i)
{
    return e->floats ? (double)((const float *)e->got)[i] : (double)((const et_real *)e->got)[i];
}

static void add_counts(counts *to, const counts *more)
{
    to->judged += more->judged;
    to->failed += more->failed;
    to->exact += more->exact;
    to->beyond += more->beyond;
    to->none += more->none;
    to->noisy += more->noisy;
    to->same += more->same;
    to->variance += more->variance;
    to->variance2 += more->variance2;
    to->reference2 += more->reference2;
}

static void add_extremes(extremes *to, const extremes *more)
{
    to->error = larger(more->error, to->error);
    to->ulps = larger(more->ulps, to->ulps);
    if (to->beyond == SIZE_MAX) to->beyond = more->beyond;
    if (more->at == SIZE_MAX || (more->worst <= to->worst && to->at != SIZE_MAX)) return;
    to->worst = more->worst;
    to->at = more->at;
}

/* Chunks of rows are shared among threads; their number decides the order of the sums, and the number
 * of threads does not. */
typedef struct sweep {
    const sheet *f;
    limits limits;
    counts chunk[CHUNKS], all;
    extremes part[CHUNKS], most;
} sweep;

static bool is_skipped(const et_errors *e, size_t r)
{
    return e->skip && e->skip[r / e->rows_per_skip];
}

static void sweep_chunk(sweep *s, size_t chunk)
{
    const sheet *f = s->f;
    counts t = {.judged = 0};
    extremes most = {.at = SIZE_MAX, .beyond = SIZE_MAX};
    for (size_t r = chunk * f->rows / CHUNKS; r < (chunk + 1) * f->rows / CHUNKS; r++)
        for (size_t i = r * f->columns; i < (r + 1) * f->columns && !is_skipped(&f->e, r); i++) {
            double V = (double)f->e.variance[i], u = (double)f->e.want[i];
            double got = candidate_at(&f->e, i);
            if (is_within(u, V, &s->limits)) {
                count_element(got, u, V, &s->limits, i, &t, &most);
                continue;
            }
            if (t.beyond++ == 0) most.beyond = i;
            t.none += isnan(got) ? 1 : 0;
        }
    s->chunk[chunk] = t;
    s->part[chunk] = most;
}

static void sweep_all(sweep *s)
{
#pragma omp parallel for schedule(dynamic) if (et_worth_threads(s->f->rows * s->f->columns))
    for (size_t chunk = 0; chunk < CHUNKS; chunk++) sweep_chunk(s, chunk);
    s->most.at = s->most.beyond = SIZE_MAX;
    for (size_t chunk = 0; chunk < CHUNKS; chunk++) {
        add_counts(&s->all, &s->chunk[chunk]);
        add_extremes(&s->most, &s->part[chunk]);
    }
}

/* ---- layout of a tensor ---- */

static sheet lay_out(const et_tensor_out *got, const et_tensor_out *want, const et_real *V)
{
    sheet f = {.e = {.got = got->values,
                     .floats = got->source == ET_FROM_F32,
                     .want = want->values,
                     .variance = V}};
    f.columns = want->rank > 1 ? want->shape[want->rank - 1] : 1;
    f.rows = f.columns > 0 ? et_tensor_count(want) / f.columns : 0;
    return f;
}

/* What hangs on open decisions that the candidate does not show is left out. */
static void leave_out_unseen(const et_judgement *j, et_hangs hangs, sheet *f)
{
    if (j->unseen.open == 0) return;
    f->e.rows_per_skip = 1;
    if (hangs == ET_HANGS_BY_TOKEN) f->e.skip = j->unseen.tokens;
    if (hangs != ET_HANGS_BY_EXPERT) return;
    f->e.skip = j->unseen.experts;
    f->e.rows_per_skip = f->rows / j->golden->c.experts;
}

/* ---- reasons ---- */

/* One tensor under examination. */
typedef struct exam {
    const et_judgement *j;
    const et_step *reference;
    const et_tensor_out *got;
    et_tensor_id id;
    et_tensor_verdict *out;
    et_doubt *doubt;
} exam;

#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
static void
find(exam *x, et_outcome outcome, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    x->out->outcome = outcome;
    vsnprintf(x->out->reason, sizeof x->out->reason, format, arguments);
    va_end(arguments);
}

/* Of element `at`: "token 3, column 7", "slot 5 (token 9, expert 2), column 7", "expert 1, row 3, column 7" */
static void print_place(const exam *x, size_t at, char *text, size_t room)
{
    const et_tensor_out *t = x->got;
    const char *shape = et_tensors[x->id].doc.shape;
    const et_assignment *a = &x->reference->assignment;
    size_t columns = t->rank > 1 ? t->shape[t->rank - 1] : 1, row = at / columns;
    bool moe = x->j->golden->c.layer == ET_MOE, slots = et_rows_are(shape, "S");
    bool experts = moe && et_rows_are(shape, "n");
    int used;
    if (moe && slots && row < a->slots)
        used = snprintf(text, room, "slot %zu (token %d, expert %d)", row, (int)a->slot_token[row],
                        (int)a->slot_expert[row]);
    else if (experts && t->rank == 3)
        used = snprintf(text, room, "expert %zu, row %zu", row / t->shape[1], row % t->shape[1]);
    else if (experts)
        used = snprintf(text, room, "expert %zu", row);
    else if (et_rows_are(shape, "ranks") && t->rank == 3)
        used = snprintf(text, room, "rank %zu, row %zu", row / t->shape[1], row % t->shape[1]);
    else if (et_rows_are(shape, "ranks") || et_rows_are(shape, "copies"))
        used = snprintf(text, room, "%s %zu", et_rows_are(shape, "ranks") ? "rank" : "copy", row);
    else if (slots || et_rows_are(shape, "N"))
        used = snprintf(text, room, "token %zu", row);
    else
        used = snprintf(text, room, "row %zu", row);
    if (t->rank > 1)
        snprintf(text + used, room - (size_t)used, ", %s %zu",
                 strcmp(shape, "[N,n]") == 0 ? "expert" : "column", at % columns);
}

static bool equals(const et_tensor_out *a, const et_tensor_out *b)
{
    size_t count = et_tensor_count(a), i = 0;
    if (count != et_tensor_count(b) || count == 0) return false;
    while (i < count && et_tensor_element(a, i) == et_tensor_element(b, i)) i++;
    return i == count;
}

/* The input of which the tensor is a copy, or NULL. */
static const char *copy_of(const exam *x)
{
    for (et_tensor_id id = ET_FIRST_INPUT; id <= ET_LAST_INPUT; id++) {
        et_tensor_out own = et_tensor_view(x->j->golden, id);
        if (own.values && equals(x->got, &own)) return own.name;
    }
    return NULL;
}

/* A likely cause, or "": stored in fewer bits than the profile promises. */
static void note_on_type(const exam *x, char *text, size_t room)
{
    const et_profile *p = x->j->options->profile;
    int expected = p->bits[et_tensors[x->id].place];
    text[0] = '\0';
    if (et_dtype_significand(x->got->dtype) < expected)
        snprintf(text, room, "; it is stored as %s, profile %s expects %d bits",
                 et_dtype_name(x->got->dtype), p->name, expected);
}

/* printf would tell the sign of a NaN. */
static const char *infinite_name(double value)
{
    if (isnan(value)) return "NaN";
    return value > 0 ? "inf" : "-inf";
}

static void report_failures(exam *x)
{
    char place[96], note[96];
    const et_tensor_verdict *out = x->out;
    const char *copied = copy_of(x);
    print_place(x, out->worst, place, sizeof place);
    note_on_type(x, note, sizeof note);
    if (copied)
        find(x, ET_MISMATCH, "a copy of %s", copied);
    else if (!isfinite(out->got))
        find(x, ET_MISMATCH, "%zu of %zu elements fail; at %s: got %s, must be %.9g%s", out->failed,
             out->judged, place, infinite_name(out->got), out->want, note);
    else if (out->bar == 0)
        find(x, ET_MISMATCH, "%zu of %zu elements fail; at %s: got %.9g, must be %.9g exactly%s",
             out->failed, out->judged, place, out->got, out->want, note);
    else
        find(x, ET_MISMATCH,
             "%zu of %zu elements fail; at %s: got %.9g, must be %.9g +- %.2g: %.3g deviations%s",
             out->failed, out->judged, place, out->got, out->want, out->bar, out->largest_sigmas,
             note);
}

/* ---- integers and masks ---- */

static const uint8_t *unseen_elements(const exam *x)
{
    const et_unseen *unseen = &x->j->unseen;
    et_hangs hangs = et_tensor_hangs(&x->j->golden->c, x->id);
    if (unseen->open == 0) return NULL;
    return hangs == ET_HANGS_BY_TOKEN    ? unseen->tokens
           : hangs == ET_HANGS_BY_EXPERT ? unseen->experts
                                         : NULL;
}

/* A table of several ranks: which of the things that hold of every plan does not hold of it? */
static bool breaks_plan(const exam *x, char *text, size_t room)
{
    const et_parallel_plan *right = &x->reference->plan;
    size_t at = et_tensors[x->id].offset, first = offsetof(et_step, plan);
    et_parallel_plan shown = {.ranks = right->ranks,
                              .tokens = right->tokens,
                              .experts = right->experts,
                              .slots = right->slots,
                              .copies = right->copies,
                              .padded = right->padded,
                              .widest = right->widest};
    et_error error;
    if (at < first || at >= first + sizeof shown) return false;
    memcpy((char *)&shown + (at - first), &x->got->values, sizeof x->got->values);
    bool broken = et_parallel_plan_check(&shown, &x->reference->assignment, &error) == ET_EINVAL;
    snprintf(text, room, "%.*s", (int)room - 1, broken ? error.text : "");
    return broken;
}

static void judge_integers(exam *x, const et_tensor_out *want)
{
    et_tensor_verdict *out = x->out;
    const uint8_t *skip = unseen_elements(x);
    bool mask = want->source == ET_FROM_U8;
    for (size_t i = 0; i < out->elements; i++) {
        double is = et_tensor_element(x->got, i), must = et_tensor_element(want, i);
        if (skip && skip[i]) continue;
        out->judged++;
        out->exact++;
        if (mask ? (is != 0) == (must != 0) : is == must) continue;
        out->largest_error = fmax(out->largest_error, fabs(is - must));
        if (out->failed++ > 0) continue;
        out->worst = i;
        out->got = is;
        out->want = must;
    }
    if (out->failed == 0) return;
    char place[96], broken[160];
    print_place(x, out->worst, place, sizeof place);
    if (breaks_plan(x, broken, sizeof broken))
        find(x, ET_MISMATCH, "%zu of %zu elements differ; %s", out->failed, out->judged, broken);
    else
        find(x, ET_MISMATCH, "%zu of %zu elements differ, the first at %s: got %.0f, must be %.0f",
             out->failed, out->judged, place, out->got, out->want);
}

/* The order of a top-k list is a matter of scores; a deviant's own list is the other way to pass. */
static et_status judge_choices(exam *x, const et_tensor_out *want, et_error *error)
{
    x->out->judged = x->out->exact = x->out->elements;
    if (equals(x->got, want)) return ET_OK;
    return et_judge_order(x->j, x->got, x->out, error);
}

/* ---- real tensors ---- */

static void fill_in(const sheet *f, const sweep *s, double T, et_tensor_verdict *out)
{
    const counts *all = &s->all;
    out->judged = (size_t)all->judged;
    out->failed = (size_t)all->failed;
    out->exact = (size_t)all->exact;
    out->largest_error = s->most.error;
    out->largest_ulps = s->most.ulps;
    out->largest_sigmas = sqrt(s->most.worst);
    out->limit_sigmas = T;
    out->effective_sample = all->variance2 > 0 ? all->variance * all->variance / all->variance2 : 0;
    if (out->judged == 0) return;
    out->worst = s->most.at;
    out->got = candidate_at(&f->e, out->worst);
    out->want = (double)f->e.want[out->worst];
    out->bar = out->limit_sigmas * sqrt((double)f->e.variance[out->worst]);
}

/* Values that should have errors and have none. */
static bool has_no_error(const exam *x, const counts *all)
{
    return x->reference == x->j->golden && all->noisy > 0 && all->same == all->noisy;
}

/* Does it hold, more than by accident, values that no accumulator of this profile could? (A sum of a
 * few short products may well be exact.) */
static bool is_golden_itself(const exam *x, const sheet *f)
{
    enum { HANDFUL = 16 };
    const et_profile *p = x->j->options->profile;
    size_t found = 0;
    for (size_t i = 0; i < f->rows * f->columns && found < HANDFUL; i++)
        found += f->e.variance[i] > 0 && !et_place_holds(p, ET_ACCUMULATOR, (double)f->e.want[i]);
    return found == HANDFUL;
}

/* What leaves the range, and what the candidate has there. */
static void report_beyond(exam *x, const counts *all, size_t first)
{
    char place[96], none[64] = "";
    const et_profile *p = x->j->options->profile;
    print_place(x, first, place, sizeof place);
    if (all->none > 0) snprintf(none, sizeof none, "; %.0f are NaN", all->none);
    x->doubt->none = all->none > 0;
    find(x, ET_INCONCLUSIVE,
         "%.0f of %zu elements, the first at %s: they, or what they are computed from, leave the "
         "range of profile %s, whose largest number is %.3g%s",
         all->beyond, x->out->elements, place, p->name,
         et_place_largest(p, et_tensors[x->id].place), none);
}

/* Part 6, and the elements' part of the reason. */
static void conclude_real(exam *x, const sheet *f, const sweep *s)
{
    const et_profile *p = x->j->options->profile;
    const et_tensor_verdict *out = x->out;
    const counts *all = &s->all;
    if (out->failed > 0) report_failures(x);
    if (out->outcome != ET_PASS) return;
    if (all->beyond > 0) report_beyond(x, all, s->most.beyond);
    if (out->outcome != ET_PASS || out->judged == 0) return;
    x->doubt->errorless = has_no_error(x, all);
    if (x->id == ET_ROUTE_MARGIN) return;                /* distances: small ones are no noise */
    bool state = et_tensors[x->id].stage == ET_AT_STATE; /* a few operations, which 64 bits hold */
    x->doubt->identical = x->doubt->errorless && !state && is_golden_itself(x, f);
    bool finer = p->bits[ET_ACCUMULATOR] >= et_dtype_significand(ET_F64);
    /* a reference of zeros is no smaller than it may be: whatever is not 0 within its bar has failed */
    x->doubt->harmless = all->reference2 > 0 && all->reference2 < 100 * all->variance;
    if (x->doubt->harmless)
        find(
            x, ET_INCONCLUSIVE,
            "below its noise: root mean square %.2g, less than 10 deviations of %.2g; so it is for "
            "any kernel of profile %s",
            sqrt(all->reference2 / all->judged), sqrt(all->variance / all->judged), p->name);
    else if (x->doubt->identical && !finer)
        find(x, ET_INCONCLUSIVE,
             "the golden itself, or as free of errors: a kernel would have rounded");
}

static limits limits_of(const exam *x)
{
    const et_profile *p = x->j->options->profile;
    et_place place = et_tensors[x->id].place;
    double T = x->j->bars->limits.element;
    return (limits){.passes = T * T,
                    .none = p->bits[ET_ACCUMULATOR] < et_dtype_significand(ET_F64) ? no_error : 0,
                    .smallest = et_place_smallest(p, place),
                    .largest = et_place_largest(p, place),
                    .bit = ldexp(1, et_place_bits(p, place) - 1)};
}

static et_status judge_sheet(exam *x, const sheet *f, et_error *error)
{
    sweep s = {.f = f, .limits = limits_of(x)};
    sweep_all(&s);
    fill_in(f, &s, x->j->bars->limits.element, x->out);
    et_status status = et_judge_groups(x->j, x->got, &f->e, x->out, error);
    if (status == ET_OK) conclude_real(x, f, &s);
    return status;
}

/* V NULL: no replica has the tensor, as the state in evaluation; it must be exact. */
static et_status judge_real(exam *x, const et_tensor_out *want, const et_real *V, et_error *error)
{
    void *zeros = NULL;
    et_status status = ET_OK;
    if (!V) status = et_allocate(&zeros, et_tensor_count(want), sizeof(et_real), "zeros", error);
    if (status != ET_OK) return status;
    sheet f = lay_out(x->got, want, V ? V : zeros);
    leave_out_unseen(x->j, et_tensor_hangs(&x->j->golden->c, x->id), &f);
    status = judge_sheet(x, &f, error);
    free(zeros);
    return status;
}

/* ---- the same stage by itself ---- */

/* The smallest variance of a number that is rounded at all: below the normal numbers the spacing is fixed. */
static double least_variance(const et_profile *p, et_place place)
{
    double smallest = et_place_smallest(p, place);
    double spacing = p->ftz ? smallest : ldexp(smallest, 1 - et_place_bits(p, place));
    return spacing * spacing / 12;
}

/* V of a number like the candidate's, which may be larger than the reference's u, and errs as much more. Infinite for what
 * is left to the whole (bars.c), and for what is no number. */
static et_status take_variance(et_real **V, const exam *x, const et_tensor_out *made,
                               const et_real *alone, et_error *error)
{
    void *room;
    size_t count = et_tensor_count(made);
    const et_real *u = et_tensor_values(x->j->reference, x->id);
    double least = least_variance(x->j->options->profile, et_tensors[x->id].place);
    et_status status = et_allocate(&room, count, sizeof **V, "variance", error);
    if (status != ET_OK) return status;
    *V = room;
    for (size_t i = 0; i < count; i++) {
        double own = et_tensor_element(made, i), size = fabs(own / (double)u[i]);
        double more = size > 1 && size < INFINITY ? size * size : 1;
        bool judged = isfinite(own + et_tensor_element(x->got, i)) && isfinite(alone[i]);
        (*V)[i] = judged ? (et_real)fmax((double)alone[i] * more, least) : (et_real)INFINITY;
    }
    return ET_OK;
}

/* *out, which comes in as the whole has left it. */
static et_status judge_stage(exam *x, et_tensor_verdict *out, et_error *error)
{
    const et_judgement *whole = x->j;
    et_judgement j = *whole;
    j.bars = whole->bars->alone;
    exam alone = {&j, whole->made, x->got, x->id, out, x->doubt};
    et_tensor_out want = et_tensor_view(whole->made, x->id);
    et_real *V;
    et_status status =
        take_variance(&V, &alone, &want, et_variance_named(j.bars, x->got->name), error);
    if (status != ET_OK) return status;
    sheet f = lay_out(x->got, &want, V);
    sweep s = {.f = &f, .limits = limits_of(&alone)};
    sweep_all(&s);
    fill_in(&f, &s, j.bars->limits.element, out);
    status = et_judge_groups(&j, x->got, &f.e, out, error);
    if (out->failed > 0) report_failures(&alone);
    free(V);
    return status;
}

static bool has_stage(const et_judgement *j, et_tensor_id id)
{
    return j->made && et_stands_alone(j->reference, j->given, id);
}

/* From the candidate's own numbers: what is wrong there alone is a mismatch, too. */
static et_status judge_alone(exam *x, et_error *error)
{
    if (!has_stage(x->j, x->id)) return ET_OK;
    et_tensor_verdict out = *x->out;
    et_status status = judge_stage(x, &out, error);
    if (status != ET_OK || out.outcome != ET_MISMATCH) return status;
    *x->out = out;
    x->doubt->alone = true;
    find(x, ET_MISMATCH, "computed from the candidate's own numbers, %s", out.reason);
    return ET_OK;
}

et_status et_stage_passes(const et_judgement *j, size_t index, bool *passes, et_error *error)
{
    et_doubt doubt = {0};
    const et_tensor_out *got = &j->candidate[index];
    et_tensor_verdict out = {.dtype = got->dtype, .elements = et_tensor_count(got)};
    exam x = {j, j->made, got, et_tensor_find(got->name), &out, &doubt};
    *passes = true;
    if (!has_stage(j, x.id)) return ET_OK;
    et_status status = judge_stage(&x, &out, error);
    *passes = out.outcome != ET_MISMATCH;
    return status;
}

/* ---- what open decisions leave to say ---- */

/* True if the tensor cannot be judged at all. */
static bool hangs_altogether(exam *x)
{
    const et_judgement *j = x->j;
    if (j->unseen.open > 0 && et_tensor_hangs(&j->golden->c, x->id) == ET_HANGS_ALL)
        find(x, ET_INCONCLUSIVE,
             "hangs on %zu open decisions that the candidate does not show; give route.mask",
             j->unseen.open);
    else if (j->open > 0 && x->id == ET_ROUTE_MARGIN) {
        find(x, ET_INCONCLUSIVE, "%zu decisions are open, and their boundaries with them", j->open);
        x->doubt->harmless = true;
    }
    return x->out->outcome != ET_PASS;
}

static void consider_open(exam *x)
{
    const et_judgement *j = x->j;
    et_tensor_verdict *out = x->out;
    et_hangs hangs = et_tensor_hangs(&j->golden->c, x->id);
    if (out->outcome == ET_MISMATCH && j->counts_open && et_tensors[x->id].sees == ET_SEES_COUNTS) {
        find(x, ET_INCONCLUSIVE, "counts open decisions, which may fall either way");
        x->doubt->harmless = true;
    }
    if (out->outcome != ET_PASS || j->unseen.open == 0) return;
    if (hangs == ET_HANGS_BY_EXPERT ||
        (hangs == ET_HANGS_BY_TOKEN && 2 * out->judged < out->elements))
        find(x, ET_INCONCLUSIVE,
             "%zu of %zu elements hang on open decisions that the candidate does not show; give "
             "route.mask",
             out->elements - out->judged, out->elements);
}

/* ---- any tensor ---- */

static et_status judge_values(exam *x, const et_tensor_out *want, const et_real *V, et_error *error)
{
    et_status status = ET_OK;
    if (et_tensors[x->id].stage == ET_AT_ORDER)
        status = judge_choices(x, want, error);
    else if (et_tensor_is_real(x->got))
        status = judge_real(x, want, V, error);
    else
        judge_integers(x, want);
    if (status == ET_OK) consider_open(x);
    return status;
}

const et_real *et_variance_named(const et_bars *bars, const char *name)
{
    return et_tensor_values(&bars->variance, et_tensor_find(name));
}

static et_status examine(exam *x, const et_real *V, et_error *error)
{
    const et_tensor_out *got = x->got, want = et_tensor_view(x->reference, x->id);
    *x->doubt = (et_doubt){0};
    *x->out = (et_tensor_verdict){.dtype = got->dtype, .elements = et_tensor_count(got)};
    if (hangs_altogether(x)) return ET_OK;
    if (want.values && et_same_shape(got, &want)) return judge_values(x, &want, V, error);
    x->out->judged = x->out->failed = x->out->elements;
    find(x, ET_MISMATCH, "%zu rows where the routing makes %zu", got->rank ? got->shape[0] : 0,
         want.values && want.rank ? want.shape[0] : 0);
    return ET_OK;
}

et_status et_examine_tensor(const et_judgement *j, size_t index, const et_step *reference,
                            et_tensor_verdict *out, et_doubt *doubt, et_error *error)
{
    const et_tensor_out *got = &j->candidate[index];
    exam x = {j, reference, got, et_tensor_find(got->name), out, doubt};
    et_status status = examine(&x, et_variance_named(j->bars, got->name), error);
    return status == ET_OK && out->outcome == ET_PASS ? judge_alone(&x, error) : status;
}

et_status et_judge_tensor(const et_judgement *j, size_t index, const et_step *reference,
                          const et_real *V, et_tensor_verdict *out, et_error *error)
{
    et_doubt doubt;
    const et_tensor_out *got = &j->candidate[index];
    exam x = {j, reference, got, et_tensor_find(got->name), out, &doubt};
    return examine(&x, V ? V : et_variance_named(j->bars, got->name), error);
}
