/* bars.c: replicas run, and what is learnt from them. See bars.h.
 *
 * How far a group's slope scatters is seen in 32 replicas, to an eighth of itself. Groups of one kind are
 * much alike: their slopes' variance is about c / sum(u^2/V), with one c (1 if all errors were
 * independent). So a group has its own variance and, as if seen in PRIOR runs more, its kind's; and
 * likewise with c / n for the spread. The whole tensor has no others of its kind, and its own alone.
 */
#include "ref/bars/bars.h"
#include "ref/bars/variance.h"
#include "ref/base/arithmetic.h"
#include "ref/base/lanes.h"
#include "ref/base/memory.h"
#include "ref/base/parallel.h"
#include "ref/oracle/decide.h"
#include "ref/oracle/tensors.h"

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

/* The real tensors that both have and a kernel computes. */
static size_t pair_up(const et_step *reference, const et_step *like, pair list[ET_MAX_STEP_TENSORS])
{
    size_t count = 0;
    for (et_tensor_id id = ET_NO_TENSOR + 1; id < ET_TENSORS; id++) {
        et_tensor_out mine = et_tensor_view(reference, id), theirs = et_tensor_view(like, id);
        if (mine.values && theirs.values && et_tensor_is_real(&mine) && !et_is_input(id))
            list[count++] = (pair){mine, theirs.values, id, et_tensor_count(&mine)};
    }
    return count;
}

/* Adds e^2 / FIRST, 0 where both are infinite alike. A zero moves now and then, if at all: the largest. */
ET_LANES static void add_piece(size_t count, const et_real *got, const et_real *want, et_real *to)
{
    for (size_t j = 0; j < count; j++) {
        double e = got[j] == want[j] ? 0 : (double)got[j] - (double)want[j];
        et_real square = (et_real)(e == e ? e * e : (double)INFINITY);
        et_real mean = to[j] + square / ET_FIRST_REPLICAS, most = square > to[j] ? square : to[j];
        to[j] = want[j] != 0 ? mean : most;
    }
}

enum { PIECE = 4096 }; /* elements for a thread */

static void add_squares(et_step *squares, const et_step *reference, const et_step *replica)
{
    pair list[ET_MAX_STEP_TENSORS], sums[ET_MAX_STEP_TENSORS];
    size_t count = pair_up(reference, replica, list);
    size_t have = pair_up(reference, squares, sums);
    for (size_t i = 0, k = 0; i < count && k < have; i++) {
        while (k < have && sums[k].row < list[i].row) k++;
        if (k == have || sums[k].row != list[i].row) continue;
        const et_real *got = list[i].got, *want = list[i].want.values;
        et_real *to = (et_real *)(uintptr_t)sums[k].got;
#pragma omp parallel for if (et_worth_threads(list[i].count))
        for (size_t j = 0; j < list[i].count; j += PIECE)
            add_piece(list[i].count - j < PIECE ? list[i].count - j : PIECE, got + j, want + j,
                      to + j);
    }
}

/* ---- V ---- */

/* What the making of bars is told from outside, and how far it is. */
typedef struct work {
    const et_step *reference;
    et_rounding rounding;
    size_t max_bytes, done, runs;
    et_bars_progress *progress;
    void *user;
} work;

/* The next run, with a seed of its own. */
static et_status next_run(work *w, et_step *replica, et_error *error)
{
    if (w->progress && !w->progress(w->user, (double)w->done / (double)w->runs))
        return et_fail(error, ET_ENOMEM, "error bars: stopped");
    w->rounding.seed = ++w->done;
    et_status status = et_replica_run(replica, w->reference, &w->rounding, w->max_bytes, error);
    if (status != ET_OK) et_step_free(replica);
    return status;
}

/* Kernels leave out roundings, and so does every second replica; two roundings may cancel. */
static et_rounding_mode mode_of(int run)
{
    return run % 2 == 0 ? ET_ROUND_RANDOM : ET_ROUND_SOME;
}

static et_status gather_squares(work *w, et_step *variance, et_error *error)
{
    et_status status = ET_OK;
    for (int run = 0; run < ET_FIRST_REPLICAS && status == ET_OK; run++) {
        et_step replica = {0};
        w->rounding.mode = mode_of(run);
        status = next_run(w, &replica, error);
        if (status == ET_OK) add_squares(variance, w->reference, &replica);
        et_step_free(&replica);
    }
    return status;
}

/* The assignment, for a tensor of tokens and experts; or NULL. */
static const uint8_t *slots_of(const et_step *s, et_tensor_id row)
{
    bool pairs = strcmp(et_tensors[row].doc.shape, "[N,n]") == 0;
    return pairs && s->c.layer == ET_MOE ? s->route.mask : NULL;
}

static et_status find_variance(work *w, et_step *variance, et_error *error)
{
    pair list[ET_MAX_STEP_TENSORS];
    et_status status = et_step_take_like(variance, w->reference, error);
    if (status == ET_OK) status = gather_squares(w, variance, error);
    size_t count = status == ET_OK ? pair_up(w->reference, variance, list) : 0;
    for (size_t i = 0; i < count && status == ET_OK; i++) {
        et_cut grid;
        et_real *V = (et_real *)(uintptr_t)list[i].got;
        status = et_cut_make(&grid, w->reference, &list[i].want, error);
        if (status == ET_OK)
            status =
                et_smooth_variance(&grid, list[i].want.values, slots_of(w->reference, list[i].row),
                                   V, ET_FIRST_REPLICAS, error);
        et_cut_free(&grid);
    }
    if (status != ET_OK) et_step_free(variance);
    return status;
}

/* ---- groups ---- */

/* Of one group's S or Q over the runs. */
typedef struct moments {
    double sum, squares, count;
} moments;

typedef struct tally {
    moments slope, spread;
} tally;

static void note(moments *m, double value)
{
    if (!isfinite(value)) return;
    m->sum += value;
    m->squares += value * value;
    m->count++;
}

static double mean_of(const moments *m)
{
    return m->count > 0 ? m->sum / m->count : 0;
}

static double variance_of(const moments *m)
{
    double mean = mean_of(m);
    return m->count > 1 ? fmax(0, m->squares - m->count * mean * mean) / (m->count - 1) : 0;
}

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
    size_t count = pair_up(b->reference, &b->variance, list);
    et_status status = ET_OK;
    for (size_t i = 0; i < count && status == ET_OK; i++) status = prepare(b, &list[i], error);
    return status;
}

/* Room for all tensors' groups, one after the other. */
typedef struct ledger {
    pair list[ET_MAX_STEP_TENSORS]; /* reference and variance */
    size_t count, groups;
    et_group_sums *sums; /* of the tensor with the most groups */
    tally *tallies;
} ledger;

static et_status open_ledger(ledger *l, et_bars *b, et_error *error)
{
    void *room;
    size_t most = 0;
    *l = (ledger){.count = 0};
    l->count = pair_up(b->reference, &b->variance, l->list);
    et_status status = et_bars_lay_out(b, error);
    for (size_t i = 0; i < l->count && status == ET_OK; i++) {
        size_t groups = b->tensor[l->list[i].row].groups;
        l->groups += groups;
        if (groups > most) most = groups;
    }
    if (status == ET_OK) status = et_allocate(&room, most, sizeof(et_group_sums), "groups", error);
    if (status != ET_OK) return status;
    l->sums = room;
    status = et_allocate(&room, l->groups, sizeof(tally), "groups", error);
    if (status == ET_OK) l->tallies = room;
    return status;
}

static void close_ledger(ledger *l)
{
    free(l->sums);
    free(l->tallies);
}

/* What is done with a group's sums of one run. */
typedef void use_of_sums(et_group_bar *bar, tally *all, const et_group_sums *s);

/* Roundings left out: slopes are others, and spreads less, as a rule. */
static void note_some(et_group_bar *bar, tally *all, const et_group_sums *s)
{
    if (s->uu > 0) note(&all->slope, et_slope_of(s));
    if (s->n > 0) bar->spread_systematic = fmax(bar->spread_systematic, et_spread_of(s));
    bar->n = fmax(bar->n, s->n);
    bar->uu = fmax(bar->uu, s->uu);
}

static void note_all(et_group_bar *bar, tally *all, const et_group_sums *s)
{
    double most = bar->spread_systematic;
    note_some(bar, all, s);
    bar->spread_systematic = most;
    if (s->n > 0) note(&all->spread, et_spread_of(s));
}

/* Rounded to nearest: what is no matter of chance. It comes last. */
static void note_nearest(et_group_bar *bar, tally *all, const et_group_sums *s)
{
    double Q = mean_of(&all->spread), some = bar->spread_systematic - Q;
    double slope = fabs(et_slope_of(s) - mean_of(&all->slope)), spread = fabs(et_spread_of(s) - Q);
    bar->slope_systematic = isfinite(slope) ? slope : 0;
    bar->spread_systematic = isfinite(spread) ? spread : 0;
    if (isfinite(some)) bar->spread_systematic = fmax(bar->spread_systematic, some);
}

/* Does something move that no replica has moved? */
ET_LANES static bool moves_late(size_t count, const et_real *got, const et_real *want,
                                const et_real *V)
{
    int late = 0;
    for (size_t i = 0; i < count; i++) late |= (V[i] <= 0) & (got[i] != want[i]);
    return late;
}

/* What moves for the first time now, a zero such as 1 - p/T of a single gate for want of a bit, or a sum that was exact
 * in every order so far. V, of which none of the FIRST replicas knew, is at least a sixteenth of e^2, and so for all of the
 * tensor's zeros that have none; likewise, by e^2/u^2, for all others. -V until all replicas are through, since groups have
 * been summed without them. */
static void note_late(const pair *p, const et_real *got)
{
    const et_real *want = p->want.values;
    et_real *V = (et_real *)(uintptr_t)p->got;
    double zeros = 0, others = 0; /* the largest e^2; e^2/u^2 */
    if (!moves_late(p->count, got, want, V)) return;
    for (size_t i = 0; i < p->count; i++) {
        double u = (double)want[i], e = (double)got[i] - u;
        if (V[i] > 0 || e == 0 || !isfinite(e) || !isfinite(u)) continue;
        if (u == 0)
            zeros = fmax(zeros, e * e);
        else
            others = fmax(others, e / u * (e / u));
    }
    if (zeros == 0 && others == 0) return;
    for (size_t i = 0; i < p->count; i++) {
        double u = (double)want[i], late = u == 0 ? zeros : isfinite(u) ? others * u * u : 0;
        if (V[i] <= 0) V[i] = (et_real)fmin((double)V[i], -late / ET_FIRST_REPLICAS);
    }
}

static void settle_late(const ledger *l)
{
    for (size_t i = 0; i < l->count; i++) {
        et_real *V = (et_real *)(uintptr_t)l->list[i].got;
        for (size_t k = 0; k < l->list[i].count; k++) V[k] = V[k] < 0 ? -V[k] : V[k];
    }
}

static et_status look_at(et_bars *b, ledger *l, const et_step *replica, use_of_sums *use,
                         et_error *error)
{
    pair run[ET_MAX_STEP_TENSORS];
    size_t have = pair_up(b->reference, replica, run);
    et_status status = ET_OK;
    tally *tallies = l->tallies;
    for (size_t i = 0, k = 0; i < l->count && status == ET_OK; i++) {
        const pair *p = &l->list[i];
        et_tensor_bars *t = &b->tensor[p->row];
        while (k < have && run[k].row < p->row) k++;
        if (k < have && run[k].row == p->row) {
            et_errors e = {
                .got = run[k].got, .want = p->want.values, .variance = p->got, .skip = NULL};
            status = et_sum_tensor(t, &e, l->sums, error);
            for (size_t g = 0; g < t->groups && status == ET_OK; g++)
                use(&t->bars[g], &tallies[g], &l->sums[g]);
            note_late(p, run[k].got);
            t->farthest = fmax(t->farthest, sqrt(l->sums[t->grid.first[ET_KIND_TENSOR]].most_ee));
        }
        tallies += t->groups;
    }
    return status;
}

/* c of a kind's slopes, and of its spreads: groups first .. end. */
static void settle_kind(et_group_bar *bars, const tally *tallies, size_t first, size_t end)
{
    const double prior = 16;
    double slopes = 0, with_slope = 0, spreads = 0, with_spread = 0;
    for (size_t g = first; g < end; g++) {
        const tally *t = &tallies[g];
        if (t->slope.count > 1) slopes += variance_of(&t->slope) * bars[g].uu, with_slope++;
        if (t->spread.count > 1) spreads += variance_of(&t->spread) * bars[g].n, with_spread++;
    }
    for (size_t g = first; g < end; g++) {
        const tally *t = &tallies[g];
        et_group_bar *bar = &bars[g];
        double S = t->slope.count, Q = t->spread.count;
        bar->slope = mean_of(&t->slope);
        bar->spread = mean_of(&t->spread);
        if (S > 1)
            bar->slope_sd = sqrt(
                (S * variance_of(&t->slope) + prior * slopes / with_slope / bar->uu) / (S + prior));
        if (Q > 1)
            bar->spread_sd =
                sqrt((Q * variance_of(&t->spread) + prior * spreads / with_spread / bar->n) /
                     (Q + prior));
    }
}

static void settle(et_bars *b, const ledger *l)
{
    settle_late(l);
    const tally *tallies = l->tallies;
    for (size_t i = 0; i < l->count; i++) {
        et_tensor_bars *t = &b->tensor[l->list[i].row];
        for (int kind = 0; kind < ET_KINDS; kind++)
            settle_kind(t->bars, tallies, t->grid.first[kind], t->grid.first[kind + 1]);
        size_t at = t->grid.first[ET_KINDS];
        for (size_t k = 0; k < t->summand_count; k++) {
            settle_kind(t->bars, tallies, at, at + t->summands[k].sections);
            at += t->summands[k].sections;
        }
        tallies += t->groups;
    }
}

/* ---- the whole ---- */

static et_status find_groups(work *w, et_bars *b, et_error *error)
{
    ledger l;
    et_step replica = {0};
    et_status status = open_ledger(&l, b, error);
    for (int run = 0; run <= ET_SECOND_REPLICAS && status == ET_OK; run++) {
        w->rounding.mode = run == ET_SECOND_REPLICAS ? ET_ROUND_NEAREST : mode_of(run);
        use_of_sums *use = w->rounding.mode == ET_ROUND_RANDOM ? note_all
                           : w->rounding.mode == ET_ROUND_SOME ? note_some
                                                               : note_nearest;
        status = next_run(w, &replica, error);
        if (status == ET_OK) status = look_at(b, &l, &replica, use, error);
        et_step_free(&replica);
    }
    if (status == ET_OK) settle(b, &l);
    close_ledger(&l);
    return status;
}

et_status et_bars_make(et_bars *b, const et_step *reference, const et_profile *p, size_t max_bytes,
                       et_bars_progress *progress, void *user, et_error *error)
{
    ET_ARITHMETIC;
    work w = {.reference = reference,
              .rounding = {.profile = p},
              .max_bytes = max_bytes,
              .runs = ET_FIRST_REPLICAS + ET_SECOND_REPLICAS + 1,
              .progress = progress,
              .user = user};
    *b = (et_bars){.reference = reference, .limits = et_limits_of(p)};
    et_status status = find_variance(&w, &b->variance, error);
    if (status == ET_OK) status = find_groups(&w, b, error);
    if (status != ET_OK) et_bars_free(b);
    return status;
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
    work w = {.reference = s,
              .rounding = {.profile = p},
              .max_bytes = s->max_bytes,
              .runs = ET_FIRST_REPLICAS,
              .progress = et_bars_tell,
              .user = &t};
    et_status status = et_profile_check(p, error);
    return status == ET_OK ? find_variance(&w, variance, error) : status;
}

void et_bars_free(et_bars *b)
{
    for (size_t i = 0; i < ET_MAX_STEP_TENSORS; i++) {
        et_cut_free(&b->tensor[i].grid);
        et_summands_free(b->tensor[i].summands, b->tensor[i].summand_count);
        free(b->tensor[i].bars);
    }
    et_step_free(&b->variance);
    *b = (et_bars){0};
}
