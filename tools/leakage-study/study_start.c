/* study_start.c: the first steps of a moving average that begins at 0.
 *
 * After u updates the plain average holds (1 - beta^u) of the cutoff: too little, so nearly every
 * token passes (or, below 0, nearly none) until 1/(1 - beta) steps are over. Dividing by 1 - beta^u
 * mends that from the first update on. Routing by expert choice meanwhile, the warm-up, hides it: the
 * average is as late as before, but nobody is routed by it until it has caught up.
 */
#include "etref/routing.h"
#include "tools/leakage-study/study.h"
#include "tools/etref/options.h"
#include "tools/etref/terminal.h"

#include <math.h>
#include <stdlib.h>

static double mean_of(const et_real *values, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)values[i];
    return sum / (double)n;
}

/* ET's mean load over k with these thresholds. */
static double load_over(const et_real *r, size_t N, size_t n, const et_real *c)
{
    size_t passed = 0;
    for (size_t j = 0; j < N * n; j++) passed += r[j] > c[j % n];
    return (double)passed / (double)(N / n * n);
}

static et_status run_step(start_row *row, const et_real *r, size_t N, size_t n, et_real *ema,
                          et_real *work, et_error *error)
{
    et_real *kth = work, *corrected = work + n;
    et_status status = et_kth_largest(N, n, N / n, r, kth, error);
    et_ema_threshold(NULL, n, ema, STUDY_DECAY, true, row->step, corrected);
    row->cutoff = mean_of(kth, n);
    row->plain = mean_of(ema, n);
    row->corrected = mean_of(corrected, n);
    row->load_plain = load_over(r, N, n, ema);
    row->load_corrected = load_over(r, N, n, corrected);
    bool warming = row->step < WARM_UP; /* EC's load is k */
    row->load_warm = warming ? 1 : row->load_plain;
    row->load_warm_corrected = warming ? 1 : row->load_corrected;
    et_ema_update(NULL, n, STUDY_DECAY, kth, ema);
    return status;
}

/* The step after the last one that is a tenth off. */
static size_t settled(const start_row *rows, int way)
{
    size_t step = 0;
    for (size_t i = 0; i < START_STEPS; i++) {
        const double loads[START_WAYS] = {rows[i].load_plain, rows[i].load_corrected,
                                          rows[i].load_warm, rows[i].load_warm_corrected};
        if (!(fabs(loads[way] - 1) <= 0.1)) step = rows[i].step + 1;
    }
    return step;
}

et_status study_start(start_study *a, score_stream *s, const study_options *o, et_error *error)
{
    size_t n = o->experts, N = o->tokens < 4096 ? o->tokens : 4096;
    start_row *rows = a->row + a->rows;
    et_real *r = allocate(N * n, sizeof *r), *ema = allocate(n, sizeof *ema),
            *work = allocate(2 * n, sizeof *work);
    et_status status = ET_OK;
    stream_begin(s, "start", N);
    for (size_t step = 0; step < START_STEPS && status == ET_OK; step++) {
        progress_show((void *)"start", stream_names[s->kind], (double)step / START_STEPS);
        stream_next(s, N, r);
        rows[step] = (start_row){.stream = s->kind, .step = step};
        status = run_step(&rows[step], r, N, n, ema, work, error);
    }
    progress_clear();
    a->rows += START_STEPS;
    for (int way = 0; way < START_WAYS; way++) a->settled[s->kind][way] = settled(rows, way);
    free(r);
    free(ema);
    free(work);
    return status;
}
