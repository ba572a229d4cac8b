/* step_metrics.c: what is measured of a step's routing. See step_metrics.h; what each metric means: tensors.def. */
#include "ref/step/step_metrics.h"
#include "ref/base/memory.h"
#include "ref/base/sum.h"
#include "ref/step/tensors.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Of all micro-batches. */
static size_t real_tokens(const et_case *c)
{
    return c->micro_batches * et_case_real_tokens(c);
}

/* A part of all tokens; some kernels take count (1/N). */
static et_real part_of(const et_step *s, et_real count, et_real N)
{
    et_grid room;
    const et_grid *q = et_grid_in(&room, s->rounding, et_sum_place(s->rounding), "metric");
    bool inverts = et_goes_other_way(s->rounding, "sum (1/N)", "mean");
    return inverts ? (et_real)et_times(q, count, et_over(q, 1, N)) : count / N;
}

static void measure_usage(et_step *s)
{
    const et_assignment *a = &s->assignment;
    et_step_metrics *m = &s->metric;
    et_real N = (et_real)real_tokens(&s->c);
    if (m->cutoff_gap) /* first the thresholds, also where no test has used them */
        et_ema_threshold(NULL, a->experts, s->in.ema, s->c.ema_decay, s->c.ema_bias_correction,
                         s->c.ema_updates, m->cutoff_gap);
    for (size_t t = 0; t < a->tokens; t++)
        if (s->in.mask == NULL || s->in.mask[t]) m->fanout_histogram[a->fanout[t]] += 1;
    for (size_t i = 0; i < a->experts; i++) {
        m->usage[i] = part_of(s, (et_real)a->load[i], N);
        if (m->cutoff_gap) {
            m->cutoff_gap[i] = s->route.cutoff[i] - m->cutoff_gap[i];
            m->cutoff_gap_abs[i] = (et_real)fabs(m->cutoff_gap[i]);
        }
        if (m->raw_usage) {
            et_real passed = 0;
            for (size_t b = 0; b < s->c.micro_batches; b++)
                passed += (et_real)s->route.passed[b * a->experts + i];
            m->raw_usage[i] = part_of(s, passed, N);
        }
    }
}

static void measure_capacity(et_step *s)
{
    const et_case *c = &s->c;
    et_capacity bounds =
        et_capacity_bounds(c->target_load, c->capacity_factor, et_case_real_tokens(c));
    et_capacity_use use =
        et_capacity_measure(c->micro_batches, c->experts, bounds, s->route.passed);
    *s->metric.saturation = use.saturation;
    *s->metric.starvation = use.starvation;
    *s->metric.overflow_rate = use.overflow;
    *s->metric.underflow_rate = use.underflow;
}

/* The gate values that were used, slot by slot; weights differ from them under a norm. */
static et_status measure_gates(et_step *s, et_error *error)
{
    const et_assignment *a = &s->assignment;
    void *room = NULL;
    et_status status = et_allocate(&room, a->slots, sizeof(et_real), "gate values", error);
    if (status != ET_OK) return status;
    et_real *used = room;
    for (size_t j = 0; j < a->slots; j++)
        used[j] = s->fwd.gates[(size_t)a->slot_token[j] * a->experts + (size_t)a->slot_expert[j]];
    et_mean_std(s->rounding, a->slots, used, s->metric.gate_mean, s->metric.gate_std);
    free(room);
    return ET_OK;
}

/* Of the real tokens. */
static et_status measure_logits(et_step *s, et_error *error)
{
    size_t n = s->c.experts, count = 0;
    void *room = NULL;
    et_status status = s->in.mask ? et_allocate(&room, real_tokens(&s->c) * n, sizeof(et_real),
                                                "logits of real tokens", error)
                                  : ET_OK;
    et_real *real = room;
    if (status != ET_OK) return status;
    for (size_t t = 0; real && t < s->c.tokens; t++)
        if (s->in.mask[t]) memcpy(real + count++ * n, s->fwd.logits + t * n, n * sizeof *real);
    et_mean_std(s->rounding, real_tokens(&s->c) * n, real ? real : s->fwd.logits,
                s->metric.logit_mean, s->metric.logit_std);
    free(room);
    return ET_OK;
}

/* As a kernel stores them; counts are exact. */
static void round_metrics(et_step *s)
{
    for (et_tensor_id id = ET_METRIC_USAGE; id <= ET_METRIC_GATE_STD; id++) {
        et_tensor_out t = et_tensor_view(s, id);
        if (t.values && id != ET_METRIC_FANOUT_HISTOGRAM)
            et_round(s->rounding, ET_ACCUMULATOR, "metric", t.shape[0],
                     (et_real *)(uintptr_t)t.values); /* the step's own */
    }
}

et_status et_metrics_run(et_step *s, et_error *error)
{
    measure_usage(s);
    if (s->metric.saturation) measure_capacity(s);
    et_status status = measure_logits(s, error);
    if (status == ET_OK) status = measure_gates(s, error);
    if (status == ET_OK) round_metrics(s);
    return status;
}
