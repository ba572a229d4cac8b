/* elements.c: one tensor against its reference, element by element. Part 3 of the verdict.
 *
 * With the reference u, the candidate g and the variance V of its error e = g - u, an element passes if
 *
 *     g is finite   and   e^2 <= t^2 V,        V = 0: only if e = 0 (-0 equals +0)
 *
 * The condition is written positively: what is not a number never passes. Variances are squares, and
 * below 1e-132, with what comes before them, they are not to be had in binary64: an error of that size
 * counts as none.
 *
 * One pass over the tensor gathers everything that parts 3 to 5 ask for: it runs at the speed of
 * memory, in rows shared among threads; partial sums belong to fixed chunks of rows and are added in
 * their order, so that no figure depends on the number of threads.
 */
#include "ref/base/bits.h"
#include "ref/base/memory.h"
#include "ref/base/parallel.h"
#include "ref/base/rounding.h"
#include "ref/verdict/calibration.h"
#include "ref/verdict/judge.h"

#include <fnmatch.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- where a tensor is rounded ---- */

/* The first pattern that fits decides. early: it comes before anything that is rounded to
 * intermediates, so nothing is coarser there than the accumulator, the logits or the gates. */
static const struct {
    const char *pattern;
    et_place place;
    bool early;
} places[] = {
    {"fwd.logits", ET_LOGITS, true},
    {"bwd.logits", ET_LOGITS, false},
    {"fwd.gates", ET_GATES, true},
    {"route.slot_weight", ET_GATES, true},
    {"fwd.shared_weight", ET_GATES, true},
    {"bwd.slot_weight", ET_GATES, false},
    {"bwd.shared_weight", ET_GATES, false},
    {"fwd.y", ET_OUTPUTS, false},
    {"bwd.x", ET_OUTPUTS, false},
    {"bwd.w_*", ET_OUTPUTS, false},
    {"bwd.shared_up", ET_OUTPUTS, false},
    {"bwd.shared_down", ET_OUTPUTS, false},
    {"fwd.*", ET_INTERMEDIATES, false},
    {"bwd.*", ET_INTERMEDIATES, false},
    {"in.*", ET_OPERANDS, true},
    {"*", ET_ACCUMULATOR, true},
};

static size_t place_row(const char *name)
{
    size_t i = 0;
    while (fnmatch(places[i].pattern, name, 0) != 0) i++;
    return i;
}

et_place et_tensor_place(const char *name)
{
    return places[place_row(name)].place;
}

bool et_tail_is_coarse(const et_profile *p, const char *name)
{
    et_place finest = places[place_row(name)].early ? ET_LOGITS : ET_INTERMEDIATES;
    return p->bits[ET_ACCUMULATOR] <= p->bits[finest];
}

/* ---- the sweep ---- */

/* Elements first .. first+count of the candidate as doubles: in place, or converted into `room`. */
static const double *doubles(const et_sheet *f, size_t first, size_t count, double *room)
{
    if (f->got->source == ET_FROM_F64) return (const double *)f->got->values + first;
    const float *piece = (const float *)f->got->values + first;
    for (size_t c = 0; c < count; c++) room[c] = (double)piece[c];
    return room;
}

/* What is found in some rows. Counts are doubles: that is what a vector register adds. */
typedef struct tally {
    et_sums sums;
    double judged, failed, exact;           /* exact: V = 0 */
    double same;                            /* V > 0 and yet no error at all */
    double variance, variance2, reference2; /* sums of V, V^2, u^2 */
} tally;

/* The largest values found, and where the largest e^2 / V stands. */
typedef struct extremes {
    double error, ulps, worst;
    size_t at;
} extremes;

/* What the sweep compares with. */
typedef struct limits {
    double scale, extra;  /* of the variances */
    double passes;        /* t^2 */
    double none;          /* e^2 / V of what is no error at all */
    double smallest, bit; /* of the output type: smallest normal, 2^(p-1) ulps in a power of two */
    double negligible;    /* the square of a smaller error is no number */
    double tiny;          /* so is a smaller variance */
    double huge;          /* huge * huge * negligible is infinite */
} limits;

/* The compiler must not know them: it would turn a division by "V, or else this constant" into a branch,
 * and the loop were none of vectors. */
static const volatile double negligible = 0x1p-440, tiny = 0x1p-900, huge = 0x1p1000;

static limits limits_of(const et_sheet *f)
{
    return (limits){
        .scale = f->scale, .extra = f->extra, .negligible = negligible, .tiny = tiny, .huge = huge};
}

/* A millionth of a deviation is what binary64 leaves: of the golden, made by whichever engine. Nor may the
 * value be another one: far below the accumulator's range, kernels say 0. */
static const double no_error = 0x1p-40;

enum { CHUNKS = 32, TILE = 256 };

/* A piece of one row on its way. */
typedef struct piece {
    double e[TILE], V[TILE];          /* the error, 0 if it is not finite; the variance */
    double finite[TILE], noisy[TILE]; /* 1 where e is; 1 where V > 0; else 0 */
    double weight[TILE];              /* 1/V; 0 where V = 0 or e is not finite */
    double deviation2[TILE]; /* e^2 / V; infinite where V = 0 and e is not, or e is infinite */
    double size[TILE], ulps[TILE]; /* |e|, and the same in ulps */
} piece;

/* 1 / the power of two at or below |value|. */
static inline double inverse_power(double value, double smallest)
{
    double power = from_bits(to_bits(value) & UINT64_C(0x7ff0000000000000));
    power = power > smallest ? power : smallest;
    power = power < 0x1p1000 ? power : 0x1p1000;
    return from_bits(UINT64_C(0x7fe0000000000000) - to_bits(power));
}

/* Arithmetic, then conditions, then arithmetic: an operation that might trap, behind a condition, would
 * be a branch, and the loop were none of vectors. */
static void weigh_piece(size_t columns, const double *got, const double *want,
                        const double *variance, const limits *l, piece *p)
{
    double scale = l->scale, extra = l->extra, least = l->tiny;
    for (size_t c = 0; c < columns; c++) {
        p->e[c] = got[c] - want[c];
        p->V[c] = scale * variance[c] + extra;
    }
    for (size_t c = 0; c < columns; c++) {
        p->finite[c] = p->e[c] - p->e[c] == 0 ? 1.0 : 0.0;
        p->noisy[c] = p->V[c] > least ? 1.0 : 0.0;
    }
    for (size_t c = 0; c < columns; c++) p->e[c] = p->finite[c] > 0 ? p->e[c] : 0.0;
    for (size_t c = 0; c < columns; c++)
        p->weight[c] = p->finite[c] * p->noisy[c] / larger(p->V[c], least);
}

void et_sheet_weigh(const et_sheet *f, size_t first, size_t count, double *e, double *weight)
{
    limits l = limits_of(f);
    double room[TILE];
    piece p;
    for (size_t c = 0; c < count; c += TILE) {
        size_t width = count - c < TILE ? count - c : TILE, at = first + c;
        weigh_piece(width, doubles(f, at, width, room), f->want + at, f->variance + at, &l, &p);
        memcpy(e + c, p.e, width * sizeof *e);
        memcpy(weight + c, p.weight, width * sizeof *weight);
    }
}

static void measure_piece(size_t columns, const double *want, const limits *l, piece *p)
{
    double smallest = l->smallest, bit = l->bit, small = l->negligible, large = l->huge;
    for (size_t c = 0; c < columns; c++) {
        double e = p->e[c], size = larger(fabs(e), small) - small, no_V = 1 - p->noisy[c];
        double u = fabs(want[c]), g = fabs(want[c] + e), never = 1 - p->finite[c] + no_V * size;
        p->size[c] = size;
        p->ulps[c] = size * bit * inverse_power(larger(u, g), smallest);
        p->deviation2[c] = e * e * p->weight[c] + never * large * large;
    }
}

/* figures: the sums of each column; n, eu, uu and q, `stride` apart. */
static void add_to_columns(size_t columns, const double *want, const piece *p, double *figures,
                           size_t stride)
{
    double *n = figures, *eu = n + stride, *uu = eu + stride, *q = uu + stride;
#pragma omp simd
    for (size_t c = 0; c < columns; c++) {
        double u = want[c], e = p->e[c], weight = p->weight[c];
        n[c] += weight > 0 ? 1.0 : 0.0;
        eu[c] += e * u * weight;
        uu[c] += u * u * weight;
        q[c] += e * e * weight;
    }
}

et_sums et_sum_weighed(size_t columns, const double *e, const double *weight, double factor,
                       const double *part)
{
    double n = 0, eu = 0, uu = 0, sum_q = 0;
#pragma omp simd reduction(+ : n, eu, uu, sum_q)
    for (size_t c = 0; c < columns; c++) {
        double u = factor * part[c];
        n += weight[c] > 0 ? 1.0 : 0.0;
        eu += e[c] * u * weight[c];
        uu += u * u * weight[c];
        sum_q += e[c] * e[c] * weight[c];
    }
    return (et_sums){n, eu, uu, sum_q, 0, 0};
}

static tally count_piece(size_t columns, const double *want, const piece *p, const limits *l)
{
    double passes = l->passes, none = l->none, least = l->tiny;
    double failed = 0, exact = 0, same = 0, V1 = 0, V2 = 0, u2 = 0;
#pragma omp simd reduction(+ : failed, exact, same, V1, V2, u2)
    for (size_t c = 0; c < columns; c++) {
        double V = p->V[c], noisy = p->weight[c] > 0 ? 1.0 : 0.0;
        failed += p->deviation2[c] <= passes ? 0.0 : 1.0;
        exact += V > least ? 0.0 : 1.0;
        bool none_at_all = p->deviation2[c] <= none && fabs(p->e[c]) <= 0x1p-10 * fabs(want[c]);
        same += none_at_all ? noisy : 0.0;
        V1 += V;
        V2 += V * V;
        u2 += want[c] * want[c];
    }
    return (tally){{0}, (double)columns, failed, exact, same, V1, V2, u2};
}

static void add_sums(et_sums *to, et_sums more)
{
    to->n += more.n;
    to->eu += more.eu;
    to->uu += more.uu;
    to->q += more.q;
}

static void add_tally(tally *to, const tally *more)
{
    add_sums(&to->sums, more->sums);
    to->judged += more->judged;
    to->failed += more->failed;
    to->exact += more->exact;
    to->same += more->same;
    to->variance += more->variance;
    to->variance2 += more->variance2;
    to->reference2 += more->reference2;
}

static void add_extremes(extremes *to, const piece *p, size_t columns, size_t first)
{
    double worst = largest_in(columns, p->deviation2);
    to->error = larger(to->error, largest_in(columns, p->size));
    to->ulps = larger(to->ulps, largest_in(columns, p->ulps));
    if (worst <= to->worst && to->at != SIZE_MAX) return;
    size_t c = 0;
    while (c + 1 < columns && p->deviation2[c] < worst) c++;
    to->worst = worst;
    to->at = first + c;
}

/* Chunks of rows are shared among threads; their number decides the order of the sums, and the number
 * of threads does not. */
typedef struct sweep {
    const et_sheet *f;
    limits limits;
    tally chunk[CHUNKS], all;
    extremes part[CHUNKS], most;
    et_sums *rows, *columns; /* [rows], [columns] */
    double *figures;         /* [CHUNKS, 4, columns] */
} sweep;

static bool is_skipped(const et_sheet *f, size_t r)
{
    return f->skip && f->skip[r / f->rows_per_skip];
}

/* Columns [c, c + width) of row r. */
static void sweep_piece(sweep *s, size_t chunk, size_t r, size_t c, size_t width, piece *p)
{
    const et_sheet *f = s->f;
    double room[TILE], *figures = s->figures + chunk * 4 * f->columns + c;
    size_t at = r * f->columns + c;
    const double *want = f->want + at;
    weigh_piece(width, doubles(f, at, width, room), want, f->variance + at, &s->limits, p);
    measure_piece(width, want, &s->limits, p);
    add_to_columns(width, want, p, figures, f->columns);
    tally more = count_piece(width, want, p, &s->limits);
    more.sums = et_sum_weighed(width, p->e, p->weight, 1, want);
    add_tally(&s->chunk[chunk], &more);
    add_sums(&s->rows[r], more.sums);
    add_extremes(&s->part[chunk], p, width, at);
}

static void sweep_chunk(sweep *s, size_t chunk)
{
    const et_sheet *f = s->f;
    piece p;
    s->part[chunk].at = SIZE_MAX;
    for (size_t r = chunk * f->rows / CHUNKS; r < (chunk + 1) * f->rows / CHUNKS; r++)
        for (size_t c = 0; c < f->columns && !is_skipped(f, r); c += TILE)
            sweep_piece(s, chunk, r, c, f->columns - c < TILE ? f->columns - c : TILE, &p);
}

static void gather_chunk(sweep *s, size_t chunk)
{
    size_t columns = s->f->columns;
    const double *n = s->figures + chunk * 4 * columns, *eu = n + columns, *uu = eu + columns;
    const double *q = uu + columns;
    const extremes *part = &s->part[chunk];
    if (s->chunk[chunk].judged == 0) return;
    add_tally(&s->all, &s->chunk[chunk]);
    for (size_t c = 0; c < columns; c++)
        add_sums(&s->columns[c], (et_sums){n[c], eu[c], uu[c], q[c], 0, 0});
    s->most.error = larger(s->most.error, part->error);
    s->most.ulps = larger(s->most.ulps, part->ulps);
    if (part->worst <= s->most.worst && s->most.at != SIZE_MAX) return;
    s->most.worst = part->worst;
    s->most.at = part->at;
}

static et_status sweep_all(sweep *s, et_error *error)
{
    const et_sheet *f = s->f;
    size_t columns = f->columns;
    et_status status;
    if ((status = et_allocate((void **)&s->rows, f->rows, sizeof *s->rows, "sums", error)) ||
        (status = et_allocate((void **)&s->columns, columns, sizeof *s->columns, "sums", error)) ||
        (status = et_allocate((void **)&s->figures, CHUNKS * columns, 4 * sizeof(double), "sums",
                              error)))
        return status;
#pragma omp parallel for schedule(dynamic) if (et_worth_threads(f->rows * columns))
    for (size_t chunk = 0; chunk < CHUNKS; chunk++) sweep_chunk(s, chunk);
    s->most.at = SIZE_MAX;
    for (size_t chunk = 0; chunk < CHUNKS; chunk++) gather_chunk(s, chunk);
    return ET_OK;
}

static void free_sweep(sweep *s)
{
    free(s->rows);
    free(s->columns);
    free(s->figures);
}

/* ---- layout of a tensor ---- */

static et_sheet lay_out(const et_judgement *j, const et_tensor_out *got, const et_tensor_out *want,
                        const et_tensor_out *variance)
{
    const char *shape = et_tensor_doc_find(got->name)->shape;
    bool moe = j->golden->c.layer == ET_MOE;
    et_sheet f = {.got = got,
                  .want = want->values,
                  /* of a real tensor: never NULL here. NOLINTNEXTLINE(clang-analyzer-core.NullDereference) */
                  .variance = variance->values,
                  .kind = ET_ROWS_OTHER,
                  .scale = j->scale};
    f.columns = want->rank > 1 ? want->shape[want->rank - 1] : 1;
    f.rows = f.columns > 0 ? et_tensor_count(want) / f.columns : 0;
    if (et_rows_are(shape, "N")) f.kind = ET_ROWS_TOKENS;
    if (et_rows_are(shape, "S")) f.kind = moe ? ET_ROWS_SLOTS : ET_ROWS_TOKENS;
    if (moe && strncmp(shape, "[n,", 3) == 0) f.kind = ET_ROWS_EXPERTS;
    return f;
}

static double margin_extra(const et_judgement *j)
{
    const et_step *variance = j->variance;
    size_t n = j->golden->c.experts, decisions = j->golden->c.tokens * n;
    double most = 0;
    for (size_t i = 0; i < decisions; i++) most = fmax(most, (double)variance->route.margin[i]);
    for (size_t i = 0; variance->route.threshold && i < n; i++)
        most = fmax(most, (double)variance->route.threshold[i]);
    return j->scale * most;
}

/* What hangs on open decisions that the candidate does not show is left out. */
static void leave_out_unseen(const et_judgement *j, et_hangs hangs, et_sheet *f)
{
    if (j->unseen.open == 0) return;
    f->rows_per_skip = 1;
    if (hangs == ET_HANGS_BY_TOKEN) f->skip = j->unseen.tokens;
    if (hangs != ET_HANGS_BY_EXPERT) return;
    f->skip = j->unseen.experts;
    f->rows_per_skip = f->rows / j->golden->c.experts;
}

/* ---- reasons ---- */

/* One tensor under examination. */
typedef struct exam {
    const et_judgement *j;
    const et_step *reference;
    const et_tensor_out *got;
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

/* "token 3, column 7", "slot 5 (token 9, expert 2), column 7", "expert 1, row 3, column 7" */
static void print_place(const exam *x, char *text, size_t room)
{
    const et_tensor_out *t = x->got;
    const char *shape = et_tensor_doc_find(t->name)->shape;
    const et_assignment *a = &x->reference->assignment;
    size_t columns = t->rank > 1 ? t->shape[t->rank - 1] : 1, row = x->out->worst / columns;
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
    else if (slots || et_rows_are(shape, "N"))
        used = snprintf(text, room, "token %zu", row);
    else
        used = snprintf(text, room, "row %zu", row);
    if (t->rank > 1)
        snprintf(text + used, room - (size_t)used, ", %s %zu",
                 strcmp(shape, "[N,n]") == 0 ? "expert" : "column", x->out->worst % columns);
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
    et_tensor_out own[ET_MAX_STEP_TENSORS];
    size_t have = et_step_tensors(x->j->golden, false, own);
    for (size_t i = 0; i < have; i++)
        if (strncmp(own[i].name, "in.", 3) == 0 && equals(x->got, &own[i]))
            return et_tensor_doc_find(own[i].name)->name;
    return NULL;
}

/* A likely cause, or "": stored in fewer bits than the profile promises. */
static void note_on_type(const exam *x, char *text, size_t room)
{
    const et_profile *p = x->j->options->profile;
    int expected = p->bits[et_tensor_place(x->got->name)];
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
    print_place(x, place, sizeof place);
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
    et_hangs hangs = et_tensor_hangs(&x->j->golden->c, x->got->name);
    if (unseen->open == 0) return NULL;
    return hangs == ET_HANGS_BY_TOKEN    ? unseen->tokens
           : hangs == ET_HANGS_BY_EXPERT ? unseen->experts
                                         : NULL;
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
    char place[96];
    print_place(x, place, sizeof place);
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

static void fill_in(const et_sheet *f, const sweep *s, double t, et_tensor_verdict *out)
{
    const tally *all = &s->all;
    out->judged = (size_t)all->judged;
    out->failed = (size_t)all->failed;
    out->exact = (size_t)all->exact;
    out->largest_error = s->most.error;
    out->largest_ulps = s->most.ulps;
    out->largest_sigmas = sqrt(s->most.worst);
    out->limit_sigmas = t;
    out->effective_sample = all->variance2 > 0 ? all->variance * all->variance / all->variance2 : 0;
    if (out->judged == 0) return;
    out->worst = s->most.at;
    out->got = et_tensor_element(f->got, out->worst);
    out->want = f->want[out->worst];
    out->bar = t * sqrt(f->scale * f->variance[out->worst] + f->extra);
}

/* Values that should have errors and have none. */
static bool has_no_error(const exam *x, const tally *all)
{
    return x->reference == x->j->golden && all->sums.n > 0 && all->same == all->sums.n;
}

/* Does it hold, more than by accident, values that no accumulator of this profile could? (A sum of a
 * few short products may well be exact.) */
static bool is_golden_itself(const exam *x, const et_sheet *f)
{
    enum { HANDFUL = 16 };
    const et_profile *p = x->j->options->profile;
    size_t found = 0;
    for (size_t i = 0; i < f->rows * f->columns && found < HANDFUL; i++)
        found += f->variance[i] > 0 && !et_place_holds(p, ET_ACCUMULATOR, f->want[i]);
    return found == HANDFUL;
}

static size_t position(const char *name)
{
    const et_tensor_doc *doc;
    size_t i = 0;
    while ((doc = et_tensor_doc_at(i)) != NULL && strcmp(doc->name, name) != 0) i++;
    return i;
}

/* Has something on the way to this tensor left the range of the profile? The table of tensors is in
 * the order of the mathematics. State and metrics see nothing of what comes after the logits. */
static const char *overflow_before(const exam *x)
{
    const bool *overflows = x->j->overflows.at;
    const char *name = x->got->name, *weights = "route.slot_weight";
    bool layer = strncmp(name, "fwd.", 4) == 0 || strncmp(name, "bwd.", 4) == 0;
    size_t end = position(layer ? name : "fwd.gates");
    for (size_t i = 0; i < end; i++)
        if (overflows[i]) return et_tensor_doc_at(i)->name;
    bool weighed = strcmp(name, weights) == 0 || (layer && position(name) > position(weights));
    if (weighed && x->j->sums_vanish) return "a sum of gates";
    bool of_dr = strcmp(name, "bwd.x") == 0 || strcmp(name, "bwd.w_router") == 0;
    return of_dr && x->j->overflows.dr ? "bwd.logits as an operand" : NULL;
}

/* Part 5, and the elements' part of the reason. `grouped` as below. */
static void conclude_real(exam *x, const et_sheet *f, const tally *all, bool grouped)
{
    const et_profile *p = x->j->options->profile;
    const et_tensor_verdict *out = x->out;
    const char *overflow = overflow_before(x);
    if (out->failed > 0) report_failures(x);
    if (x->j->overflows.at[position(x->got->name)])
        find(x, ET_INCONCLUSIVE, "outside the range of profile %s, whose largest number is %.3g",
             p->name, et_place_largest(p, et_tensor_place(x->got->name)));
    else if (out->outcome == ET_MISMATCH && overflow)
        find(x, ET_INCONCLUSIVE, "computed from %s, which is outside the range of profile %s",
             overflow, p->name);
    if (out->outcome != ET_PASS || out->judged == 0) return;
    x->doubt->errorless = has_no_error(x, all);
    if (!grouped) return;
    bool state = strncmp(x->got->name, "state.", 6) == 0; /* a few operations, which 64 bits hold */
    x->doubt->identical = x->doubt->errorless && !state && is_golden_itself(x, f);
    bool finer = p->bits[ET_ACCUMULATOR] >= et_dtype_significand(ET_F64);
    /* a reference of zeros is no smaller than it may be: whatever is not 0 within its bar has failed */
    x->doubt->harmless = all->reference2 > 0 && all->reference2 < 100 * all->variance;
    if (x->doubt->harmless)
        find(x, ET_INCONCLUSIVE,
             "below its noise: root mean square %.2g, less than 10 deviations of %.2g; so it is for "
             "any kernel of profile %s",
             sqrt(all->reference2 / all->judged), sqrt(all->variance / all->judged), p->name);
    else if (x->doubt->identical && !finer)
        find(x, ET_INCONCLUSIVE,
             "the golden itself, or as free of errors: a kernel would have rounded");
}

/* grouped: its elements belong together, so groups of them and their size as a whole mean something. */
static et_status judge_sheet(exam *x, const et_sheet *f, bool grouped, et_error *error)
{
    const et_judgement *j = x->j;
    const et_profile *p = j->options->profile;
    et_place place = et_tensor_place(x->got->name);
    double t = et_element_limit(j->alpha, j->tests, et_tail_is_coarse(p, x->got->name));
    sweep s = {.f = f, .limits = limits_of(f)};
    s.limits.passes = t * t;
    s.limits.none = p->bits[ET_ACCUMULATOR] < et_dtype_significand(ET_F64) ? no_error : 0;
    s.limits.smallest = et_place_smallest(p, place);
    s.limits.bit = ldexp(1, p->bits[place] - 1);
    et_status status = sweep_all(&s, error);
    if (status == ET_OK) fill_in(f, &s, t, x->out);
    if (status == ET_OK && grouped)
        status = et_judge_groups(j, f, x->reference, s.rows, s.columns, x->out, error);
    if (status == ET_OK) conclude_real(x, f, &s.all, grouped);
    free_sweep(&s);
    return status;
}

/* The distance of a score to its boundary errs with both, and their difference is rounded: scores may be exact
 * (one product each, where d = 1) and their difference not. The golden's variance is that of one score. A margin is
 * infinite where nothing was refused or taken: such a one is right or wrong, and equal ones are put down as 0. */
static et_status judge_margins(exam *x, et_sheet f, et_error *error)
{
    void *room;
    const rounding difference = et_rounding_at(x->j->options->profile, ET_ACCUMULATOR);
    size_t count = f.rows * f.columns;
    et_status status = et_allocate(&room, 3 * count, sizeof(double), "margins", error);
    if (status != ET_OK) return status;
    double *got = room, *want = got + count, *variance = want + count;
    f.extra = margin_extra(x->j);
    for (size_t i = 0; i < count; i++) {
        double is = et_tensor_element(x->got, i), both = f.variance[i] + f.extra / f.scale;
        bool same = is == f.want[i];
        got[i] = same ? 0 : is;
        want[i] = same ? 0 : f.want[i];
        variance[i] = f.variance[i];
        if (isfinite(f.want[i])) variance[i] += rounding_site(&difference, f.want[i], both);
    }
    et_tensor_out copy = *x->got;
    copy.values = got;
    copy.source = ET_FROM_F64;
    f.got = &copy;
    f.want = want;
    f.variance = variance;
    status = judge_sheet(x, &f, false, error);
    free(room);
    return status;
}

static et_status judge_real(exam *x, const et_tensor_out *want, const et_tensor_out *variance,
                            et_error *error)
{
    et_sheet f = lay_out(x->j, x->got, want, variance);
    leave_out_unseen(x->j, et_tensor_hangs(&x->j->golden->c, x->got->name), &f);
    return strcmp(x->got->name, "route.margin") == 0 ? judge_margins(x, f, error)
                                                     : judge_sheet(x, &f, true, error);
}

/* ---- what open decisions leave to say ---- */

/* How many passed a threshold: any number that open decisions allow. */
static const char *const counts[] = {"metric.raw_usage", "metric.saturation", "metric.starvation",
                                     "metric.overflow_rate", "metric.underflow_rate"};

static bool is_count(const char *name)
{
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        if (strcmp(counts[i], name) == 0) return true;
    return false;
}

/* True if the tensor cannot be judged at all. */
static bool hangs_altogether(exam *x)
{
    const et_judgement *j = x->j;
    if (j->unseen.open > 0 && et_tensor_hangs(&j->golden->c, x->got->name) == ET_HANGS_ALL)
        find(x, ET_INCONCLUSIVE,
             "hangs on %zu open decisions that the candidate does not show; give route.mask",
             j->unseen.open);
    else if (j->open > 0 && strcmp(x->got->name, "route.margin") == 0) {
        find(x, ET_INCONCLUSIVE, "%zu decisions are open, and their boundaries with them", j->open);
        x->doubt->harmless = true;
    }
    return x->out->outcome != ET_PASS;
}

static void consider_open(exam *x)
{
    const et_judgement *j = x->j;
    et_tensor_verdict *out = x->out;
    et_hangs hangs = et_tensor_hangs(&j->golden->c, x->got->name);
    if (out->outcome == ET_MISMATCH && j->counts_open && is_count(x->got->name)) {
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

static et_status judge_values(exam *x, const et_tensor_out *want, const et_tensor_out *variance,
                              et_error *error)
{
    et_status status = ET_OK;
    if (strncmp(x->got->name, "route.topk_", 11) == 0)
        status = judge_choices(x, want, error);
    else if (et_tensor_is_real(x->got))
        status = judge_real(x, want, variance, error);
    else
        judge_integers(x, want);
    if (status == ET_OK) consider_open(x);
    return status;
}

et_status et_examine_tensor(const et_judgement *j, size_t index, const et_step *reference,
                            et_tensor_verdict *out, et_doubt *doubt, et_error *error)
{
    et_tensor_out own[ET_MAX_STEP_TENSORS], noise[ET_MAX_STEP_TENSORS];
    const et_tensor_out *got = &j->candidate[index];
    const et_tensor_out *want =
        et_tensor_named(own, et_step_tensors(reference, false, own), got->name);
    const et_tensor_out *variance =
        et_tensor_named(noise, et_step_tensors(j->variance, false, noise), got->name);
    /* cppcheck-suppress ctuuninitvar ; outputs, which this function fills */
    exam x = {j, reference, got, out, doubt};
    *doubt = (et_doubt){0};
    *out = (et_tensor_verdict){.dtype = got->dtype, .elements = et_tensor_count(got)};
    if (hangs_altogether(&x)) return ET_OK;
    bool barred = variance && et_same_shape(got, variance);
    if (want && et_same_shape(got, want) && (barred || !et_tensor_is_real(got)))
        return judge_values(&x, want, variance, error);
    out->judged = out->failed = out->elements;
    find(&x, ET_MISMATCH, "%zu rows where the routing makes %zu", got->rank ? got->shape[0] : 0,
         want && want->rank ? want->shape[0] : 0);
    return ET_OK;
}

et_status et_judge_tensor(const et_judgement *j, size_t index, const et_step *reference,
                          et_tensor_verdict *out, et_error *error)
{
    et_doubt doubt;
    return et_examine_tensor(j, index, reference, out, &doubt, error);
}
