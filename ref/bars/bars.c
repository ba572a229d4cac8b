/* bars.c: replicas run, and what is learnt from them: each element's V here, groups' S and Q by group_bars.h. See bars.h. */
#include "ref/bars/bars.h"
#include "ref/bars/stages_alone.h"
#include "ref/bars/variance.h"
#include "ref/base/float_environment.h"
#include "ref/base/lanes.h"
#include "ref/base/memory.h"
#include "ref/base/threads.h"
#include "ref/step/decide.h"
#include "ref/step/tensors.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

double et_beyond(double S, double mean)
{
    double low = fmin(0, mean), high = fmax(0, mean);
    return S < low ? S - low : S > high ? S - high : S - S;
}

/* ---- one replica ---- */

et_status et_replica_run(et_step *replica, const et_step *reference, const et_rounding *rounding,
                         size_t max_bytes, et_error *error)
{
    *replica = et_step_like(reference);
    replica->max_bytes = max_bytes;
    replica->bytes = 0;
    replica->rounding = rounding;
    replica->given_mask = reference->route.mask;
    return et_step_run(replica, ET_BLAS, NULL, NULL, error);
}

/* ---- tensors, side by side ---- */

typedef struct pair {
    et_tensor_out want; /* of the reference */
    const et_real *got; /* of the replica, or of anything like it */
    et_tensor_id row;
    size_t count; /* elements */
} pair;

/* The real tensors that both have and a kernel computes; `alone`: which stand alone. */
static size_t pair_up(const et_step *reference, const et_step *like, bool alone,
                      pair list[ET_MAX_STEP_TENSORS])
{
    size_t count = 0;
    for (et_tensor_id id = ET_NO_TENSOR + 1; id < ET_TENSORS; id++) {
        const void *theirs = et_tensor_values(like, id);
        if (!et_tensor_values(reference, id) || !theirs || et_is_input(id)) continue;
        et_tensor_out mine = et_tensor_view(reference, id);
        if (et_tensor_is_real(&mine) && (!alone || et_stands_alone(reference, NULL, id)))
            list[count++] = (pair){mine, theirs, id, et_tensor_count(&mine)};
    }
    return count;
}

/* Adds e^2 / runs, 0 where both are infinite alike. A zero moves now and then, if at all: the largest. */
ET_LANES static void add_piece(double runs, size_t count, const et_real *got, const et_real *want,
                               et_real *to)
{
    for (size_t j = 0; j < count; j++) {
        double e = got[j] == want[j] ? 0 : (double)got[j] - (double)want[j];
        et_real square = (et_real)(e == e ? e * e : (double)INFINITY);
        et_real mean = to[j] + square / (et_real)runs, most = square > to[j] ? square : to[j];
        to[j] = want[j] != 0 ? mean : most;
    }
}

enum { PIECE = 4096 }; /* elements for a thread */

/* want: what the replica's numbers should be, the reference or what stages make of them. */
static void add_squares(et_bars *b, const et_step *want, const et_step *replica)
{
    pair list[ET_MAX_STEP_TENSORS], sums[ET_MAX_STEP_TENSORS];
    size_t count = pair_up(want, replica, b->of_stages, list);
    size_t have = pair_up(b->reference, &b->variance, b->of_stages, sums);
    for (size_t i = 0, k = 0; i < count && k < have; i++) {
        while (k < have && sums[k].row < list[i].row) k++;
        if (k == have || sums[k].row != list[i].row) continue;
        const et_real *got = list[i].got, *right = list[i].want.values;
        et_real *to = (et_real *)(uintptr_t)sums[k].got;
#pragma omp parallel for if (et_worth_threads(list[i].count))
        for (size_t j = 0; j < list[i].count; j += PIECE)
            add_piece(b->runs, list[i].count - j < PIECE ? list[i].count - j : PIECE, got + j,
                      right + j, to + j);
    }
}

/* ---- V ---- */

/* What the making of bars is told from outside, and how far it is. */
typedef struct work {
    et_step reference; /* seen: its replicas leave their arrays to each other */
    et_step spare;
    et_rounding rounding;
    size_t max_bytes, done, runs;
    et_bars_progress *progress;
    void *user;
} work;

/* The reference with a kernel's roundings; and what its stages make of the numbers that it shows. */
typedef struct replica {
    et_step run, made;
} replica;

static void end_replica(replica *r)
{
    et_step_free(&r->run);
    et_step_free(&r->made);
}

/* Roundings left out are no matter to a stage: what it starts from is given. */
static bool looks_at_stages(const work *w, const et_bars *b)
{
    return b->alone && w->rounding.mode != ET_ROUND_SOME;
}

/* Kernels leave out roundings, and so does every second replica; two roundings may cancel. */
enum { EVERY = 2 };

static et_rounding_mode mode_of(int run)
{
    return run % EVERY == 0 ? ET_ROUND_RANDOM : ET_ROUND_SOME;
}

/* In which half of a pair that differs by chance alone, for independent_errors.h, the run is: 0, 1. */
static uint64_t draw_of(int run)
{
    return run % EVERY == 0 ? (uint64_t)(run / EVERY % 2) : 0;
}

/* The next run, with a seed of its own, or the last one's and other chances. The caller ends it, also on failure. */
static et_status next_run(work *w, const et_bars *b, replica *r, et_error *error)
{
    *r = (replica){0};
    if (w->progress && !w->progress(w->user, (double)w->done / (double)w->runs))
        return et_fail(error, ET_ENOMEM, "error bars: stopped");
    w->done++;
    w->rounding.seed = w->done - (w->rounding.draw > 0 ? EVERY : 0);
    et_status status = et_replica_run(&r->run, &w->reference, &w->rounding, w->max_bytes, error);
    if (status != ET_OK || !looks_at_stages(w, b)) return status;
    const et_given shown = et_given_by(&r->run);
    bool by_chance = w->rounding.mode == ET_ROUND_RANDOM;
    return et_stages_run(&r->made, &w->reference, &shown, &w->rounding, by_chance, w->max_bytes,
                         error);
}

/* What the numbers of a replica are held against, by these bars. */
static const et_step *wanted_of(const et_bars *b, const replica *r)
{
    return b->of_stages ? &r->made : b->reference;
}

/* Bars, and those of stages if these have been run; `of`: the first, then one after the other. NULL: no more. */
static et_bars *next_bars(const work *w, et_bars *of)
{
    return of->alone && looks_at_stages(w, of) ? of->alone : NULL;
}

static et_status gather_squares(work *w, et_bars *b, et_error *error)
{
    et_status status = ET_OK;
    for (int run = 0; run < ET_FIRST_REPLICAS && status == ET_OK; run++) {
        replica r;
        w->rounding.mode = mode_of(run);
        status = next_run(w, b, &r, error);
        for (et_bars *x = b; x && status == ET_OK; x = next_bars(w, x))
            add_squares(x, wanted_of(x, &r), &r.run);
        end_replica(&r);
    }
    return status;
}

/* The assignment, for a tensor of tokens and experts; or NULL. */
static const uint8_t *slots_of(const et_step *s, et_tensor_id row)
{
    bool pairs = strcmp(et_tensors[row].doc.shape, "[N,n]") == 0;
    return pairs && s->c.layer == ET_MOE ? s->route.mask : NULL;
}

static et_status smooth_all(et_bars *b, et_error *error)
{
    pair list[ET_MAX_STEP_TENSORS];
    et_status status = ET_OK;
    size_t count = pair_up(b->reference, &b->variance, b->of_stages, list);
    for (size_t i = 0; i < count && status == ET_OK; i++) {
        et_cut grid;
        et_real *V = (et_real *)(uintptr_t)list[i].got;
        status = et_cut_make(&grid, b->reference, &list[i].want, error);
        if (status == ET_OK)
            status = et_smooth_variance(&grid, list[i].want.values,
                                        slots_of(b->reference, list[i].row), V, b->runs, error);
        et_cut_free(&grid);
    }
    return status;
}

/* By itself a stage says nothing of elements that no replica moved, and of zeros: their errors have a size of their own,
 * which so few replicas do not tell (two terms cancel, in most of them to the bit). The whole judges them. */
static void leave_to_whole(et_bars *alone)
{
    pair list[ET_MAX_STEP_TENSORS];
    size_t count = pair_up(alone->reference, &alone->variance, true, list);
    for (size_t i = 0; i < count; i++) {
        const et_real *u = list[i].want.values;
        et_real *V = (et_real *)(uintptr_t)list[i].got;
        for (size_t k = 0; k < list[i].count; k++)
            if (u[k] == 0 || V[k] == 0) V[k] = (et_real)INFINITY;
    }
}

/* On failure the caller frees b. */
static et_status find_variance(work *w, et_bars *b, et_error *error)
{
    et_status status = ET_OK;
    for (et_bars *x = b; x && status == ET_OK; x = x->alone)
        status = et_step_take_like(&x->variance, x->reference, error);
    if (status == ET_OK) status = gather_squares(w, b, error);
    for (et_bars *x = b; x && status == ET_OK; x = x->alone) status = smooth_all(x, error);
    if (status == ET_OK && b->alone) leave_to_whole(b->alone);
    return status;
}

/* ---- groups ---- */

/* All groups' sums, from the errors of one run; `sums` [groups]. */
et_status et_sum_tensor(const et_tensor_bars *t, const et_errors *e, et_group_sums *sums,
                        et_error *error)
{
    et_status status = et_sum_groups(&t->grid, e, sums, error);
    et_group_sums *at = sums + t->grid.first[ET_KINDS];
    for (size_t i = 0; i < t->summand_count && status == ET_OK; i++) {
        status = et_sum_summand(&t->summands[i], t->grid.columns, e, at, error);
        at += t->summands[i].sections;
    }
    return status;
}

static et_status prepare(et_bars *b, const pair *tensor, et_error *error)
{
    et_tensor_bars *t = &b->tensor[tensor->row];
    void *room;
    et_status status = et_cut_make(&t->grid, b->reference, &tensor->want, error);
    if (status == ET_OK)
        status = et_summands_of(t->summands, &t->summand_count, b->reference, tensor->row, error);
    if (status != ET_OK) return status;
    t->groups = t->grid.first[ET_KINDS];
    for (size_t i = 0; i < t->summand_count; i++) t->groups += t->summands[i].sections;
    status = et_allocate(&room, t->groups, sizeof *t->bars, "groups", error);
    if (status == ET_OK) t->bars = room;
    return status;
}

et_status et_bars_lay_out(et_bars *b, et_error *error)
{
    pair list[ET_MAX_STEP_TENSORS];
    size_t count = pair_up(b->reference, &b->variance, b->of_stages, list);
    et_status status = ET_OK;
    for (size_t i = 0; i < count && status == ET_OK; i++) status = prepare(b, &list[i], error);
    return status;
}

/* Room for all tensors' groups, one after the other. */
typedef struct ledger {
    pair list[ET_MAX_STEP_TENSORS]; /* reference and variance */
    size_t count, groups;
    et_group_sums *sums; /* of the tensor with the most groups */
    uint16_t *marks;     /* of the tensor with the most elements */
    et_changes changes;
    et_tally *tallies;
} ledger;

static bool all_vary(const pair *p)
{
    bool all = true;
    for (size_t i = 0; i < p->count; i++) all &= (double)p->got[i] > ET_LEAST_VARIANCE;
    return all;
}

static et_status take_room(ledger *l, size_t groups, size_t elements, et_error *error)
{
    void *room;
    et_status status = et_allocate(&room, groups, sizeof *l->sums, "groups", error);
    if (status != ET_OK) return status;
    l->sums = room;
    if ((status = et_allocate(&room, elements, sizeof *l->marks, "marks", error))) return status;
    l->marks = room;
    if ((status = et_allocate(&room, l->groups, sizeof *l->tallies, "groups", error)))
        return status;
    l->tallies = room;
    return ET_OK;
}

static et_status open_ledger(ledger *l, et_bars *b, et_error *error)
{
    size_t groups = 0, elements = 0, most = 0;
    *l = (ledger){.count = 0};
    l->count = pair_up(b->reference, &b->variance, b->of_stages, l->list);
    et_status status = et_bars_lay_out(b, error);
    for (size_t i = 0; i < l->count && status == ET_OK; i++) {
        et_tensor_bars *t = &b->tensor[l->list[i].row];
        t->all_vary = all_vary(&l->list[i]);
        l->groups += t->groups;
        if (t->groups > groups) groups = t->groups;
        elements += l->list[i].count;
        if (l->list[i].count > most) most = l->list[i].count;
    }
    if (status == ET_OK) status = take_room(l, groups, most, error);
    return status == ET_OK ? et_changes_make(&l->changes, elements, most, error) : status;
}

static void close_ledger(ledger *l)
{
    free(l->sums);
    free(l->marks);
    free(l->tallies);
    et_changes_free(&l->changes);
}

/* Does something err as no replica has? */
ET_LANES static bool errs_late(double runs, size_t count, const et_real *got, const et_real *want,
                               const et_real *V)
{
    int late = 0;
    for (size_t i = 0; i < count; i++) {
        double e = (double)got[i] - (double)want[i];
        late |= e * e > runs * (V[i] > 0 ? (double)V[i] : 0);
    }
    return late;
}

/* What errs farther now than any of the FIRST replicas has shown: a number that has one of two values, of which the other
 * is rare; a zero such as 1 - p/T of a single gate for want of a bit; a sum that was exact in every order so far. Had this
 * run been among the first, V would be e^2/runs more, `runs` counting those that stand behind the shape: so V is at least
 * that. It holds for all of the tensor's zeros; and of others that had no V for all, by e^2/u^2. These have -V until all
 * replicas are through, since groups have been summed without them. */
static void note_late(double runs, const pair *p, const et_real *got, const et_real *want)
{
    et_real *V = (et_real *)(uintptr_t)p->got;
    double zeros = 0, others = 0; /* the largest e^2; e^2/u^2 */
    if (!errs_late(runs, p->count, got, want, V)) return;
    for (size_t i = 0; i < p->count; i++) {
        double u = (double)want[i], e = (double)got[i] - u, known = V[i] > 0 ? (double)V[i] : 0;
        if (!(e * e > runs * known) || !isfinite(e) || !isfinite(u)) continue;
        if (u == 0)
            zeros = fmax(zeros, e * e);
        else if (known > 0)
            V[i] = (et_real)(e * e / runs);
        else
            others = fmax(others, e / u * (e / u));
    }
    if (zeros == 0 && others == 0) return;
    for (size_t i = 0; i < p->count; i++) {
        double u = (double)want[i], late = u == 0 ? zeros : isfinite(u) ? others * u * u : 0;
        if (V[i] <= 0)
            V[i] = (et_real)fmin((double)V[i], -late / runs);
        else if (u == 0)
            V[i] = (et_real)fmax((double)V[i], late / runs);
    }
}

static void settle_late(const ledger *l)
{
    for (size_t i = 0; i < l->count; i++) {
        et_real *V = (et_real *)(uintptr_t)l->list[i].got;
        for (size_t k = 0; k < l->list[i].count; k++) V[k] = V[k] < 0 ? -V[k] : V[k];
    }
}

/* How much of one tensor's errors is one and the same: from what chance has changed since the last runs. */
static et_status look_at_changes(ledger *l, const et_tensor_bars *t, size_t first, size_t count,
                                 const et_errors *run, et_tally *tallies, et_error *error)
{
    et_errors changes;
    if (!et_changes_note(&l->changes, first, count, run, &changes)) return ET_OK;
    et_status status = et_sum_groups(&t->grid, &changes, l->sums, error);
    for (size_t g = 0; g < t->grid.first[ET_KINDS] && status == ET_OK; g++)
        et_coherence_note(&tallies[g].coherence, &l->sums[g]);
    return status;
}

static et_status look_at(et_bars *b, ledger *l, const et_step *want, const et_step *got,
                         et_note *use, et_error *error)
{
    pair run[ET_MAX_STEP_TENSORS];
    size_t have = pair_up(want, got, b->of_stages, run);
    et_status status = ET_OK;
    et_tally *tallies = l->tallies;
    const bool by_chance = use == et_note_all;
    size_t first = 0;
    const double runs = b->runs + ET_PRIOR;
    for (size_t i = 0, k = 0; i < l->count && status == ET_OK; i++) {
        const pair *p = &l->list[i];
        et_tensor_bars *t = &b->tensor[p->row];
        while (k < have && run[k].row < p->row) k++;
        if (k < have && run[k].row == p->row) {
            const et_real *right = run[k].want.values;
            et_errors e = {.got = run[k].got, .want = right, .variance = p->got, .skip = NULL};
            status = et_sum_tensor(t, &e, l->sums, error);
            for (size_t g = 0; g < t->groups && status == ET_OK; g++) use(&tallies[g], &l->sums[g]);
            double most = l->sums[t->grid.first[ET_KIND_TENSOR]].most_ee;
            if (!t->all_vary || most > runs / 2) note_late(runs, p, run[k].got, right);
            t->farthest = fmax(t->farthest, sqrt(most));
            if (by_chance && status == ET_OK)
                status = look_at_changes(l, t, first, p->count, &e, tallies, error);
        }
        tallies += t->groups;
        first += p->count;
    }
    l->changes.runs += by_chance;
    return status;
}

/* Elements and sum u^2/V of each group: the reference's own. */
static et_status measure(et_tensor_bars *t, const pair *p, et_group_sums *sums, et_error *error)
{
    const et_real *u = p->want.values;
    const et_errors none = {.got = u, .want = u, .variance = p->got};
    et_status status = et_sum_tensor(t, &none, sums, error);
    for (size_t g = 0; g < t->groups && status == ET_OK; g++) {
        t->bars[g].n = sums[g].n;
        t->bars[g].uu = sums[g].uu;
    }
    return status;
}

static et_status settle(et_bars *b, const ledger *l, const et_profile *p, et_error *error)
{
    et_status status = ET_OK;
    int bits =
        et_place_bits(p, ET_ACCUMULATOR); /* in which a kernel has numbers before it stores them */
    settle_late(l);
    const et_tally *tallies = l->tallies;
    for (size_t i = 0; i < l->count && status == ET_OK; i++) {
        et_tensor_bars *t = &b->tensor[l->list[i].row];
        status = measure(t, &l->list[i], l->sums, error);
        et_draw_marks(l->list[i].count, bits, l->list[i].want.values, l->marks);
        for (int kind = 0; kind < ET_KINDS; kind++) {
            et_settle_kind(t->bars, tallies, t->grid.first[kind], t->grid.first[kind + 1]);
            et_widen_kind(&t->grid, (et_group_kind)kind, t->bars, tallies, l->marks);
        }
        size_t at = t->grid.first[ET_KINDS];
        for (size_t k = 0; k < t->summand_count; k++) {
            size_t end = at + t->summands[k].sections;
            et_settle_kind(t->bars, tallies, at, end);
            for (; at < end; at++) et_widen(&t->bars[at], 1, (double)INFINITY);
        }
        tallies += t->groups;
    }
    return status;
}

/* ---- the whole ---- */

static et_status find_groups(work *w, et_bars *b, et_error *error)
{
    ledger whole = {0}, alone = {0};
    et_status status = open_ledger(&whole, b, error);
    if (status == ET_OK && b->alone) status = open_ledger(&alone, b->alone, error);
    for (int run = 0; run <= ET_SECOND_REPLICAS && status == ET_OK; run++) {
        replica r;
        w->rounding.mode = run == ET_SECOND_REPLICAS ? ET_ROUND_NEAREST : mode_of(run);
        w->rounding.draw = draw_of(run);
        et_note *use = w->rounding.mode == ET_ROUND_RANDOM ? et_note_all
                       : w->rounding.mode == ET_ROUND_SOME ? et_note_some
                                                           : et_note_nearest;
        status = next_run(w, b, &r, error);
        for (et_bars *x = b; x && status == ET_OK; x = next_bars(w, x))
            status = look_at(x, x == b ? &whole : &alone, wanted_of(x, &r), &r.run, use, error);
        end_replica(&r);
    }
    if (status == ET_OK) status = settle(b, &whole, w->rounding.profile, error);
    if (status == ET_OK && b->alone) status = settle(b->alone, &alone, w->rounding.profile, error);
    close_ledger(&whole);
    close_ledger(&alone);
    return status;
}

/* Does any stage start from numbers of others? Of a profile as fine as our own arithmetic there are no stages by
 * themselves: what they should be is computed with errors as large as the kernel's, and what the kernel had before it
 * stored a number has no room in ours. Nor is anything hidden there that the whole would not show. */
static bool has_stages(const et_step *reference, const et_profile *p)
{
    et_tensor_id id = ET_NO_TENSOR + 1;
    if (ldexp(1, -p->bits[ET_ACCUMULATOR]) <= ET_UNIT_ROUNDOFF) return false;
    while (id < ET_TENSORS && !et_stands_alone(reference, NULL, id)) id++;
    return id < ET_TENSORS;
}

et_status et_bars_open(et_bars *b, const et_step *reference, const et_profile *p, et_error *error)
{
    void *room;
    *b = (et_bars){.reference = reference, .limits = et_limits_of(p), .runs = ET_FIRST_REPLICAS};
    for (et_tensor_id id = ET_NO_TENSOR + 1; id < ET_TENSORS; id++)
        b->tensor[id].of_sums = et_is_of_sums(p, id);
    if (!has_stages(reference, p)) return ET_OK;
    et_status status = et_allocate(&room, 1, sizeof *b->alone, "bars of stages", error);
    if (status != ET_OK) return status;
    b->alone = room;
    *b->alone = (et_bars){.reference = reference,
                          .limits = b->limits,
                          .runs = ET_FIRST_REPLICAS / 2,
                          .of_stages = true};
    b->alone->limits.group = b->limits.group_of_sums;
    memcpy(b->alone->tensor, b->tensor, sizeof b->tensor);
    return ET_OK;
}

et_status et_bars_make(et_bars *b, const et_step *reference, const et_profile *p, size_t max_bytes,
                       et_bars_progress *progress, void *user, et_error *error)
{
    ET_ARITHMETIC;
    work w = {.reference = *reference,
              .rounding = {.profile = p},
              .max_bytes = max_bytes,
              .runs = ET_FIRST_REPLICAS + ET_SECOND_REPLICAS + 1,
              .progress = progress,
              .user = user};
    w.reference.spare = &w.spare;
    et_status status = et_bars_open(b, reference, p, error);
    if (status == ET_OK) status = find_variance(&w, b, error);
    if (status == ET_OK) status = find_groups(&w, b, error);
    et_step_free(&w.spare);
    if (status != ET_OK) {
        et_bars_free(b);
        return status;
    }
    for (et_bars *x = b; x; x = x->alone) et_bars_round_as_stored(x);
    return ET_OK;
}

void et_bars_mix(et_bars *mixed, const et_bars *b, const bool alone[ET_TENSORS])
{
    *mixed = *b;
    for (et_tensor_id id = ET_NO_TENSOR + 1; b->alone && id < ET_TENSORS; id++) {
        if (!alone[id]) continue;
        const void *V = et_tensor_values(&b->alone->variance, id);
        memcpy((char *)&mixed->variance + et_tensors[id].offset, &V, sizeof V);
        mixed->tensor[id] = b->alone->tensor[id];
    }
}

bool et_bars_tell(void *user, double done)
{
    const et_bars_teller *t = user;
    if (t->progress) t->progress(t->user, "error bars", done);
    return true;
}

et_status et_step_noise(et_step *variance, const et_step *s, const et_profile *p,
                        et_progress *progress, void *user, et_error *error)
{
    ET_ARITHMETIC;
    et_bars_teller t = {progress, user};
    work w = {.reference = *s,
              .rounding = {.profile = p},
              .max_bytes = s->max_bytes,
              .runs = ET_FIRST_REPLICAS,
              .progress = et_bars_tell,
              .user = &t};
    et_bars b = {.reference = s, .runs = ET_FIRST_REPLICAS};
    w.reference.spare = &w.spare;
    et_status status = et_profile_check(p, error);
    if (status == ET_OK) status = find_variance(&w, &b, error);
    et_step_free(&w.spare);
    if (status == ET_OK)
        *variance = b.variance;
    else
        et_bars_free(&b);
    return status;
}

void et_bars_free(et_bars *b)
{
    for (size_t i = 0; i < ET_MAX_STEP_TENSORS; i++) {
        et_cut_free(&b->tensor[i].grid);
        et_summands_free(b->tensor[i].summands, b->tensor[i].summand_count);
        free(b->tensor[i].bars);
    }
    et_step_free(&b->variance);
    if (b->alone) et_bars_free(b->alone);
    free(b->alone);
    *b = (et_bars){0};
}
