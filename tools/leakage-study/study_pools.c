/* study_pools.c: EC's cutoff, ET's load, and how far the two agree, by size of the batch.
 *
 * The cutoff of a batch of N independent scores is a sample quantile: with p = k/N and f the density
 * at the true quantile, its standard deviation is sqrt(p(1-p)/N) / f, so it falls like N^(-1/2); and
 * the number of scores above the true quantile is binomial, pN of them, give or take
 * sqrt(pN(1-p)). Tokens that resemble each other scatter more, at the same rate; a mean that drifts
 * sets a floor that no batch gets below.
 */
#include "tools/leakage-study/study.h"
#include "etref/routing.h"
#include "tools/etref/options.h"
#include "tools/etref/terminal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WARM = 100, AGREEING = 8 };

/* ---- sums over batches ---- */

/* Mean and variance as values come (Welford). */
typedef struct moments {
    double mean, squares;
    size_t count;
} moments;

static void add_value(moments *m, double value)
{
    double off = value - m->mean;
    m->count++;
    m->mean += off / (double)m->count;
    m->squares += off * (value - m->mean);
}

static double variance(const moments *m)
{
    return m->count > 1 ? m->squares / (double)(m->count - 1) : 0;
}

typedef struct expert_sums {
    moments cutoff, gap, load;
} expert_sums;

/* All that one size needs. */
typedef struct bench {
    size_t N, n, k;
    et_real *r, *margin, *cutoff, *threshold, *ema; /* [N,n], [N,n], [n], [n], [n] */
    uint8_t *choice, *passes;                       /* [N,n]: EC's and ET's assignments */
    int32_t *passed;                                /* [n] */
    expert_sums *sums;                              /* [n] */
} bench;

static void bench_take(bench *b, size_t N, size_t n)
{
    *b = (bench){.N = N, .n = n, .k = N / n};
    b->r = allocate(N * n, sizeof *b->r);
    b->margin = allocate(N * n, sizeof *b->margin);
    b->cutoff = allocate(n, sizeof *b->cutoff);
    b->threshold = allocate(n, sizeof *b->threshold);
    b->ema = allocate(n, sizeof *b->ema);
    b->choice = allocate(N * n, 1);
    b->passes = allocate(N * n, 1);
    b->passed = allocate(n, sizeof *b->passed);
    b->sums = allocate(n, sizeof *b->sums);
}

static void bench_free(bench *b)
{
    void *const all[] = {b->r,      b->margin, b->cutoff, b->threshold, b->ema,
                         b->choice, b->passes, b->passed, b->sums};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

/* Both routings of the next batch. The threshold comes from the batches before. */
static et_status route_next(bench *b, score_stream *s, size_t updates, et_error *error)
{
    stream_next(s, b->N, b->r);
    et_ema_threshold(NULL, b->n, b->ema, STUDY_DECAY, true, updates, b->threshold);
    et_status status = et_expert_choice(b->N, b->n, b->N, b->k, b->r, b->choice, b->margin,
                                        b->cutoff, NULL, 0, error);
    if (status == ET_OK)
        status = et_expert_threshold(b->N, b->n, b->r, b->threshold, false, NULL, b->passes,
                                     b->margin, b->passed, error);
    et_ema_update(NULL, b->n, STUDY_DECAY, b->cutoff, b->ema);
    return status;
}

/* ---- one size ---- */

static double jaccard_of(const bench *b, const uint8_t *choice)
{
    size_t both = 0, either = 0;
    for (size_t j = 0; j < b->N * b->n; j++) {
        both += choice[j] && b->passes[j];
        either += choice[j] || b->passes[j];
    }
    return either ? (double)both / (double)either : 1;
}

static void note_batch(bench *b, pool_row *row, size_t batches)
{
    double k = (double)b->k;
    for (size_t i = 0; i < b->n; i++) {
        double load = (double)b->passed[i] / k;
        add_value(&b->sums[i].cutoff, (double)b->cutoff[i]);
        add_value(&b->sums[i].gap, (double)b->cutoff[i] - (double)b->threshold[i]);
        add_value(&b->sums[i].load, load);
        if (load < row->load_least) row->load_least = load;
        if (load > row->load_most) row->load_most = load;
        row->outside += (load < 0.5 || load > 1.5) / (double)(batches * b->n);
    }
    row->disagreement += (1 - jaccard_of(b, b->choice)) / (double)batches;
}

/* The upper p-quantile of N(0,1), by bisection. */
static double normal_quantile(double p)
{
    double low = -10, high = 10;
    for (int i = 0; i < 100; i++) {
        double middle = (low + high) / 2;
        *(erfc(middle / sqrt(2)) / 2 > p ? &low : &high) = middle;
    }
    return (low + high) / 2;
}

static void expect(pool_row *row)
{
    double N = (double)row->tokens, p = (double)row->select / N, z = normal_quantile(p);
    double density = exp(-z * z / 2) / sqrt(2 * acos(-1));
    bool normal = row->stream == STREAM_NORMAL;
    row->expected_cutoff = normal ? sqrt(p * (1 - p) / N) / density : NAN;
    row->expected_load = normal ? sqrt((1 - p) / (p * N)) : NAN;
}

static void sum_up(const bench *b, pool_row *row)
{
    double n = (double)b->n;
    for (size_t i = 0; i < b->n; i++) {
        row->cutoff_mean += b->sums[i].cutoff.mean / n;
        row->load_mean += b->sums[i].load.mean / n;
        row->cutoff_std += variance(&b->sums[i].cutoff) / n;
        row->gap_std += variance(&b->sums[i].gap) / n;
        row->load_std += variance(&b->sums[i].load) / n;
    }
    row->cutoff_std = sqrt(row->cutoff_std);
    row->gap_std = sqrt(row->gap_std);
    row->load_std = sqrt(row->load_std);
    expect(row);
}

/* EC at every smaller pool on the batch at hand, beside ET. */
static et_status note_agreement(const bench *b, agreement_row *rows, size_t count, et_error *error)
{
    size_t largest = b->N;
    uint8_t *choice = allocate(b->N * b->n, 1);
    et_real *cutoffs = allocate(b->N / LEAST_TOKENS * b->n, sizeof *cutoffs);
    et_status status = ET_OK;
    for (size_t i = count; i-- > 0 && status == ET_OK; largest /= 2) {
        rows[i].pool = largest;
        status = et_expert_choice(b->N, b->n, largest, largest / b->n, b->r, choice, b->margin,
                                  cutoffs, NULL, 0, error);
        rows[i].jaccard += jaccard_of(b, choice) / AGREEING;
    }
    free(choice);
    free(cutoffs);
    return status;
}

/* Batches of N tokens: WARM for the moving average, then those that are looked at, then, with
 * `agreements`, AGREEING more in which pools of every size are compared. */
static et_status study_size(pool_row *row, score_stream *s, size_t N, const study_options *o,
                            agreement_row *agreements, size_t count, double done, double part,
                            et_error *error)
{
    bench b;
    size_t batches = o->batches, all = WARM + batches + (agreements ? AGREEING : 0);
    et_status status = ET_OK;
    bench_take(&b, N, o->experts);
    *row = (pool_row){.stream = s->kind, .tokens = N, .select = b.k, .load_least = INFINITY};
    stream_begin(s, "pool", N);
    for (size_t step = 0; step < all && status == ET_OK; step++) {
        progress_show((void *)"study", stream_names[s->kind],
                      done + part * (double)step / (double)all);
        status = route_next(&b, s, step, error);
        if (status != ET_OK || step < WARM) continue;
        if (step < WARM + batches)
            note_batch(&b, row, batches);
        else
            status = note_agreement(&b, agreements, count, error);
    }
    sum_up(&b, row);
    bench_free(&b);
    return status;
}

/* ---- fits ---- */

static double quantity_of(const pool_row *row, size_t quantity)
{
    const double values[] = {row->cutoff_std, row->gap_std, row->load_std, row->disagreement};
    return values[quantity];
}

/* log y = log a + e log N. The standard error is that of the regression. A quantity of which fewer
 * than two sizes show any has no exponent. */
static fit_row fit_power(const pool_row *rows, size_t count, size_t quantity)
{
    static const char *const names[] = {"cutoff_std", "gap_std", "load_std", "disagreement"};
    double logs[MAX_SIZES][2], x = 0, y = 0, xx = 0, xy = 0, rest = 0;
    size_t m = 0;
    for (size_t i = 0; i < count; i++) {
        double value = quantity_of(&rows[i], quantity);
        if (!(value > 0)) continue;
        logs[m][0] = log((double)rows[i].tokens);
        logs[m][1] = log(value);
        x += logs[m][0];
        y += logs[m++][1];
    }
    x /= (double)m;
    y /= (double)m;
    for (size_t i = 0; i < m; i++) {
        xx += (logs[i][0] - x) * (logs[i][0] - x);
        xy += (logs[i][0] - x) * (logs[i][1] - y);
    }
    double exponent = m > 1 ? xy / xx : NAN;
    for (size_t i = 0; i < m; i++) rest += pow(logs[i][1] - y - exponent * (logs[i][0] - x), 2);
    return (fit_row){rows->stream, names[quantity], exp(y - exponent * x), exponent,
                     m > 2 ? sqrt(rest / (double)(m - 2) / xx) : NAN};
}

/* ---- one stream ---- */

et_status study_pools(pool_study *p, score_stream *s, const study_options *o, et_error *error)
{
    size_t first = p->rows, sizes = 0, pools = 0;
    double work = 0, done = 0;
    et_status status = ET_OK;
    for (size_t N = LEAST_TOKENS; N <= o->tokens; N *= 2) {
        work += (double)N;
        pools++;
    }
    agreement_row *agreements = p->agreement + p->agreements;
    for (size_t i = 0; i < pools; i++) agreements[i] = (agreement_row){.stream = s->kind};
    for (size_t N = LEAST_TOKENS; N <= o->tokens && status == ET_OK; N *= 2, sizes++) {
        bool last = 2 * N > o->tokens;
        status = study_size(&p->row[p->rows++], s, N, o, last ? agreements : NULL, pools,
                            done / work, (double)N / work, error);
        done += (double)N;
    }
    progress_clear();
    p->agreements += pools;
    for (size_t quantity = 0; quantity < 4 && status == ET_OK && sizes > 1; quantity++)
        p->fit[p->fits++] = fit_power(p->row + first, sizes, quantity);
    return status;
}
