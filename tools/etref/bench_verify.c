/* bench_verify.c: what a verdict costs, beside the layer itself. See cmd_bench.c.
 *
 * In every round, one after the other:
 *
 *     layer      forward and backward on the blas engine, with the zeroing of the gradients
 *     reference  the same with routing and metrics, as verify computes it, in memory of its own
 *     judged     et_verify of all tensors of a full candidate, in which nothing is wrong
 *     explained  the same of one in which two rows of y are exchanged: no hypothesis explains that, so
 *                that all of them are tried
 *
 * All in memory that the process has had before, the warm-up round's: what fresh pages cost is the
 * machine's affair, and no part of either.
 *
 * The profile is f32, and the candidate holds the reference's own values, rounded to it: where else a kernel
 * would have rounded does not change the time.
 */
#include "tools/etref/bench.h"
#include "etref/etref.h"
#include "tools/etref/commands.h"
#include "tools/etref/memory_limit.h"
#include "tools/etref/named_cases.h"
#include "tools/etref/terminal.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct trial {
    et_step step;
    et_verify_options options;
    et_tensor_out tensors[ET_MAX_STEP_TENSORS];
    size_t count;
    float *values[ET_MAX_STEP_TENSORS]; /* of real tensors, else NULL */
    double layer, reference, judged, explained;
} trial;

static size_t elements_of(const et_tensor_out *t)
{
    size_t count = 1;
    for (size_t i = 0; i < t->rank; i++) count *= t->shape[i];
    return count;
}

/* Every output, reals in f32. */
static void make_candidate(trial *t)
{
    et_tensor_out all[ET_MAX_STEP_TENSORS];
    size_t have = et_step_tensors(&t->step, false, all);
    for (size_t i = 0; i < have; i++) {
        et_tensor_out *out = &t->tensors[t->count];
        if (strncmp(all[i].name, "in.", 3) == 0) continue;
        *out = all[i];
        if (all[i].source == ET_FROM_F64) {
            const double *from = all[i].values;
            size_t count = elements_of(out);
            float *to = t->values[t->count] = allocate(count, sizeof *to);
            for (size_t k = 0; k < count; k++) to[k] = (float)from[k];
            out->values = to;
            out->source = ET_FROM_F32;
            out->dtype = ET_F32;
        }
        t->count++;
    }
}

/* The first row of y and the middle one, there and back. */
static void exchange_rows(trial *t)
{
    size_t d = t->step.c.d_model, middle = t->step.c.tokens / 2 * d;
    for (size_t i = 0; i < t->count; i++)
        for (size_t c = 0; strcmp(t->tensors[i].name, "fwd.y") == 0 && c < d; c++) {
            float other = t->values[i][c];
            t->values[i][c] = t->values[i][middle + c];
            t->values[i][middle + c] = other;
        }
}

/* The layer alone, in arrays that have been written before. */
static et_status time_layer(trial *t, double *seconds, et_error *error)
{
    et_step *s = &t->step;
    et_moe moe = et_step_layer(s);
    et_moe_grads *g = &s->bwd;
    const struct {
        et_real *at;
        size_t count;
    } gradients[] = {{g->x, moe.N * moe.d},          {g->logits, moe.N * moe.n},
                     {g->gates, moe.N * moe.n},      {g->router, moe.n * moe.d},
                     {g->up, moe.n * moe.h * moe.d}, {g->down, moe.n * moe.h * moe.d},
                     {g->shared_up, moe.hs * moe.d}, {g->shared_down, moe.hs * moe.d}};
    double start = omp_get_wtime();
    for (size_t i = 0; i < sizeof gradients / sizeof *gradients; i++)
        memset(gradients[i].at, 0, gradients[i].count * sizeof(et_real));
    et_status status = et_moe_score(&moe, s->in.x, &s->fwd, error);
    if (status == ET_OK)
        status = et_moe_forward(&moe, s->in.x, &s->assignment, &s->fwd, error);
    if (status == ET_OK)
        status = et_moe_backward(&moe, s->in.x, s->in.dy, &s->assignment, &s->fwd, g, error);
    *seconds = omp_get_wtime() - start;
    return status;
}

/* The reference as `etref verify` computes it, in arrays of its own. */
static et_status time_reference(trial *t, double *seconds, et_error *error)
{
    et_step step;
    et_status status = et_step_create(&step, &t->step.c, memory_limit(), error);
    if (status != ET_OK) return status;
    status = et_step_draw_inputs(&step, error);
    double start = omp_get_wtime();
    if (status == ET_OK) status = et_step_run(&step, ET_BLAS, NULL, NULL, error);
    *seconds = omp_get_wtime() - start;
    et_step_free(&step);
    return status;
}

static et_status time_verdict(trial *t, et_outcome expected, double *seconds, et_error *error)
{
    et_verdict verdict;
    double start = omp_get_wtime();
    et_status status = et_verify(&verdict, &t->step, t->tensors, t->count, &t->options, error);
    *seconds = omp_get_wtime() - start;
    if (status != ET_OK) return status;
    if (verdict.outcome != expected) {
        snprintf(error->text, sizeof error->text, "an unexpected verdict: %s", verdict.line);
        status = ET_EINVAL;
    }
    et_verdict_free(&verdict);
    return status;
}

static et_status time_round(trial *t, et_error *error)
{
    et_status status;
    if ((status = time_layer(t, &t->layer, error)) != ET_OK ||
        (status = time_reference(t, &t->reference, error)) != ET_OK ||
        (status = time_verdict(t, ET_PASS, &t->judged, error)) != ET_OK)
        return status;
    exchange_rows(t);
    status = time_verdict(t, ET_MISMATCH, &t->explained, error);
    exchange_rows(t);
    return status;
}

/* ---- the table ---- */

enum { LAYER, REFERENCE, JUDGED, EXPLAINED, TIMES };

static const struct {
    const char *name, *what;
} rows[TIMES] = {{"layer", "layer, forward and backward"},
                 {"reference", "reference, as verify has it"},
                 {"judged", "judged, nothing wrong"},
                 {"explained", "judged, all hypotheses tried"}};

/* Of one kind: the median in seconds, and of the ratios to the layer and to the reference. */
typedef struct figures {
    double seconds, of_layer, of_reference;
} figures;

static void print_figures(const figures *m, size_t rounds, bool json)
{
    json_t *object = json_object();
    if (!json)
        printf("a full candidate of d12-et under profile f32; %d threads, medians of %zu rounds\n\n"
               "%-30s %9s  %10s  %14s\n",
               omp_get_max_threads(), rounds, "", "seconds", "/ layer", "/ reference");
    for (int i = 0; i < TIMES; i++) {
        if (!json)
            printf("%-30s %9.2f  %10.2f  %14.2f\n", rows[i].what, m[i].seconds, m[i].of_layer,
                   m[i].of_reference);
        json_object_set_new(object, rows[i].name,
                            json_pack("{s:f,s:f,s:f}", "seconds", m[i].seconds, "of_layer",
                                      m[i].of_layer, "of_reference", m[i].of_reference));
    }
    if (json)
        json_print(object);
    else
        json_decref(object);
}

static et_status time_rounds(trial *t, size_t rounds, figures *medians, et_error *error)
{
    double *v = allocate(3 * TIMES * rounds, sizeof *v);
    et_status status = time_round(t, error); /* warms up */
    for (size_t i = 0; status == ET_OK && i < rounds; i++) {
        status = time_round(t, error);
        const double times[TIMES] = {t->layer, t->reference, t->judged, t->explained};
        for (size_t k = 0; k < TIMES; k++) {
            v[3 * k * rounds + i] = times[k];
            v[(3 * k + 1) * rounds + i] = times[k] / t->layer;
            v[(3 * k + 2) * rounds + i] = times[k] / t->reference;
        }
        progress_show("bench", "rounds", (double)(i + 1) / (double)rounds);
    }
    progress_clear();
    for (size_t k = 0; status == ET_OK && k < TIMES; k++)
        medians[k] = (figures){bench_median(v + 3 * k * rounds, rounds),
                               bench_median(v + (3 * k + 1) * rounds, rounds),
                               bench_median(v + (3 * k + 2) * rounds, rounds)};
    free(v);
    return status;
}

/* Nothing that is freed goes back to the system. */
static void keep_memory(void)
{
#ifdef __GLIBC__
    mallopt(M_MMAP_MAX, 0);
    mallopt(M_TRIM_THRESHOLD, -1);
#endif
}

int bench_verify(size_t rounds, bool json)
{
    trial *t = allocate(1, sizeof *t);
    case_list cases = {0};
    word_list none = {0};
    et_error error = {""};
    figures medians[TIMES];
    keep_memory();
    t->options = (et_verify_options){.profile = et_profile_find("f32"), .explain = true};
    et_status status = case_list_add(&cases, "d12-et", &none, &error);
    if (status == ET_OK) status = et_step_create(&t->step, &cases.at[0], memory_limit(), &error);
    if (status == ET_OK) status = et_step_draw_inputs(&t->step, &error);
    if (status == ET_OK) status = et_step_run(&t->step, ET_BLAS, NULL, NULL, &error);
    if (status == ET_OK) make_candidate(t);
    if (status == ET_OK) status = time_rounds(t, rounds, medians, &error);
    if (status == ET_OK) print_figures(medians, rounds, json);
    for (size_t i = 0; i < t->count; i++) free(t->values[i]);
    et_step_free(&t->step);
    case_list_free(&cases);
    free(t);
    return status == ET_OK ? STATUS_PASS : fail_status(status, &error);
}
