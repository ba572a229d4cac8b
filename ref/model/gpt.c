/* gpt.c: the model's forward and backward pass over one micro-batch, and its step. See etref/gpt.h.
 *
 *     forward    x = norm(wte[token]);  layers;  loss = cross-entropy of norm(x) head'
 *     backward   the same from the end
 *     step       M times forward and backward; clipping; optimisers; states
 *
 * The gradient of the mean over M micro-batches of N tokens is the sum of each micro-batch's,
 * scaled by 1/(M N) where it begins.
 */
#include "etref/gpt.h"
#include "etref/cross_entropy.h"
#include "etref/embedding.h"
#include "etref/random.h"
#include "ref/base/float_environment.h"
#include "ref/base/sum.h"
#include "ref/model/model.h"

#include <math.h>
#include <omp.h> /* the clock */
#include <string.h>

/* ---- beginning ---- */

et_gpt_progress *et_gpt_progress_of(et_gpt *g)
{
    return &g->progress;
}

void et_gpt_set_rounding(et_gpt *g, const et_rounding *rounding)
{
    g->rounding = rounding;
}

void et_gpt_time(et_gpt *g, double *seconds)
{
    g->seconds = seconds;
}

et_status et_gpt_timed(et_gpt *g, et_gpt_phase phase, et_status status)
{
    if (g->seconds == NULL) return status;
    double now = omp_get_wtime();
    if (phase < ET_GPT_PHASES) g->seconds[phase] += now - g->clock;
    g->clock = now;
    return status;
}

static double deviation(const et_gpt *g, const et_gpt_entry *e)
{
    const et_gpt_tensor *t = e->tensor;
    double rows = (double)t->shape[t->rank - 2], columns = (double)t->shape[t->rank - 1];
    switch (e->start) {
    case ET_UNIT: return 1;
    case ET_BY_WIDTH: return 1 / sqrt((double)g->config.d_model);
    case ET_BY_SHAPE: return fmin(1, sqrt(rows / columns)) / sqrt(columns);
    default: return 0;
    }
}

void et_gpt_initialise(et_gpt *g, uint64_t seed)
{
    ET_ARITHMETIC;
    for (size_t i = 0; i < g->tensor_count; i++) {
        et_gpt_tensor *t = g->tensors[i].tensor;
        et_stream stream = et_stream_open(seed, t->name);
        bool drawn = g->tensors[i].start != ET_ZERO;
        double s = drawn ? deviation(g, &g->tensors[i]) : 0;
        for (size_t j = 0; j < t->count; j++)
            t->value[j] = drawn ? (et_real)(s * et_normal(stream, j)) : 0;
        for (size_t j = 0; t->first && j < t->count; j++) t->first[j] = t->gradient[j] = 0;
        for (size_t j = 0; t->second && j < t->count; j++) t->second[j] = 0;
    }
    g->progress = (et_gpt_progress){0};
}

/* ---- forward and backward ---- */

static et_embedding embedding_of(const et_gpt *g)
{
    return (et_embedding){g->rows, g->config.d_model, g->config.vocab, g->wte.value, g->rounding};
}

static et_cross_entropy cross_entropy_of(const et_gpt *g)
{
    const et_gpt_config *c = &g->config;
    return (et_cross_entropy){c->engine,  g->N,          c->d_model, c->vocab,
                              c->softcap, g->head.value, g->rounding};
}

/* A pass over the whole micro-batch, which a sequence of et_gpt_extend does not outlive. */
static void take_all_rows(et_gpt *g)
{
    g->from = g->cached = 0;
    g->rows = g->N;
}

/* Inputs are the first T of each row of T+1 tokens, targets the last T. */
static void take_tokens(et_gpt *g, const int32_t *tokens)
{
    size_t T = g->config.sequence;
    for (size_t b = 0; b < g->config.batch; b++) {
        memcpy(g->inputs + b * T, tokens + b * (T + 1), T * sizeof *tokens);
        memcpy(g->targets + b * T, tokens + b * (T + 1) + 1, T * sizeof *tokens);
    }
}

static void zero_counts(et_gpt *g)
{
    const et_case *c = &g->config.ffn;
    g->routed_tokens = 0;
    for (size_t i = 0; i < g->config.layers; i++) {
        et_gpt_layer *l = &g->layers[i];
        for (size_t j = 0; l->moe && j < c->experts; j++) {
            l->load[j] = 0;
            if (l->cutoff) l->passed[j] = l->cutoff[j] = 0;
        }
        if (l->moe && l->threshold)
            et_ema_threshold(g->rounding, c->experts, l->ema.value, c->ema_decay,
                             c->ema_bias_correction, g->progress.ema_updates, l->threshold);
    }
}

et_status et_gpt_not_finite(const et_gpt *g, const char *what, et_error *error)
{
    char name[64] = "none";
    et_gpt_unusual(g, name, sizeof name);
    return et_fail(error, ET_EINVAL,
                   "step %zu: %s is not finite; of the model's arrays the first "
                   "that is not: %s",
                   g->progress.steps, what, name);
}

/* From inputs to the head's input, of the rows of this pass. */
static et_status forward_rows(et_gpt *g, et_error *error)
{
    const et_embedding embedding = embedding_of(g);
    size_t at = g->from * g->config.d_model, count = g->rows * g->config.d_model;
    et_status status;
    if ((status = et_embedding_forward(&embedding, g->inputs + g->from, g->x + at, error)) ||
        (status = et_gpt_norm(g, g->x, g->norm0, g->scale0, error)))
        return status;
    memcpy(g->x + at, g->norm0 + at, count * sizeof *g->x);
    for (size_t i = 0; i < g->config.layers; i++)
        if ((status = et_gpt_layer_forward(g, &g->layers[i], error))) return status;
    g->routed_tokens += g->rows;
    status = et_gpt_norm(g, g->x, g->normed, g->scale, error);
    return et_gpt_timed(g, ET_GPT_ROWS, status);
}

static et_status forward(et_gpt *g, const int32_t *tokens, double *loss, et_real *logits,
                         et_error *error)
{
    const et_cross_entropy head = cross_entropy_of(g);
    et_status status;
    take_all_rows(g);
    take_tokens(g, tokens);
    if ((status = forward_rows(g, error))) return status;
    status = et_cross_entropy_forward(&head, g->normed, g->targets, g->loss, g->lse, logits,
                                      g->room, error);
    if (et_gpt_timed(g, ET_GPT_HEAD, status) != ET_OK) return status;
    *loss =
        (double)et_sum(g->rounding, et_sum_place(g->rounding), "loss", 0, g->N, 1, g->loss, NULL) /
        (double)g->N;
    return isfinite(*loss) ? ET_OK : et_gpt_not_finite(g, "the loss", error);
}

et_status et_gpt_forward(et_gpt *g, bool eval, const int32_t *tokens, double *loss, et_real *logits,
                         et_error *error)
{
    ET_ARITHMETIC;
    g->eval = eval;
    et_gpt_timed(g, ET_GPT_PHASES, ET_OK);
    zero_counts(g);
    return forward(g, tokens, loss, logits, error);
}

const et_real *et_gpt_token_losses(const et_gpt *g)
{
    return g->loss;
}

/* ---- going on with a sequence ---- */

void et_gpt_restart(et_gpt *g)
{
    g->cached = 0;
}

et_status et_gpt_extend(et_gpt *g, size_t count, const int32_t *tokens, et_real *logits,
                        et_error *error)
{
    ET_ARITHMETIC;
    size_t T = g->config.sequence, d = g->config.d_model;
    if (g->config.batch != 1 || count < 1 || count > T - g->cached)
        return et_fail(error, ET_EINVAL,
                       "et_gpt_extend: %zu tokens after %zu in batches of %zu; at least 1, at most "
                       "%zu in all, and a batch of 1",
                       count, g->cached, g->config.batch, T);
    g->eval = true;
    g->from = g->cached;
    g->rows = count;
    et_gpt_timed(g, ET_GPT_PHASES, ET_OK);
    zero_counts(g);
    memcpy(g->inputs + g->from, tokens, count * sizeof *tokens);
    et_cross_entropy head = cross_entropy_of(g);
    head.N = count;
    et_status status = forward_rows(g, error);
    if (status == ET_OK)
        status = et_cross_entropy_forward(&head, g->normed + g->from * d, NULL, NULL, NULL, logits,
                                          g->room, error);
    if (status == ET_OK) g->cached += count;
    return et_gpt_timed(g, ET_GPT_HEAD, status);
}

double et_gpt_fanout(const et_gpt *g, size_t row)
{
    double sum = 0, layers = 0;
    for (size_t i = 0; row < g->rows && i < g->config.layers; i++) {
        const et_step *pass = &g->layers[i].pass;
        if (!g->layers[i].moe || pass->assignment.tokens <= row) continue;
        sum += pass->assignment.fanout[row];
        layers++;
    }
    return layers > 0 ? sum / layers : -1;
}

/* ---- backward ---- */

et_status et_gpt_backward_until(et_gpt *g, double scale, size_t until, et_error *error)
{
    const et_cross_entropy head = cross_entropy_of(g);
    et_status status =
        et_cross_entropy_backward(&head, g->normed, g->targets, g->lse, scale / (double)g->N,
                                  g->dnormed, g->head.gradient, g->room, error);
    if (et_gpt_timed(g, ET_GPT_HEAD, status) != ET_OK) return status;
    status = et_gpt_norm_backward(g, g->normed, g->scale, g->dnormed, false, g->dx, error);
    if (et_gpt_timed(g, ET_GPT_ROWS, status) != ET_OK) return status;
    for (size_t i = g->config.layers; i-- > until;)
        if ((status = et_gpt_layer_backward(g, &g->layers[i], scale, error))) return status;
    return ET_OK;
}

static et_status backward(et_gpt *g, double scale, et_error *error)
{
    const et_embedding embedding = embedding_of(g);
    et_status status;
    if ((status = et_gpt_backward_until(g, scale, 0, error)) ||
        (status = et_gpt_norm_backward(g, g->norm0, g->scale0, g->dx, false, g->dx, error)))
        return status;
    status = et_embedding_backward(&embedding, g->inputs, g->dx, g->wte.gradient, error);
    return et_gpt_timed(g, ET_GPT_ROWS, status);
}

et_status et_gpt_backward(et_gpt *g, double scale, et_error *error)
{
    ET_ARITHMETIC;
    if (g->eval || g->rows != g->N)
        return et_fail(error, ET_EINVAL,
                       "et_gpt_backward: the last forward pass was an evaluation; it has no "
                       "gradient here");
    et_gpt_timed(g, ET_GPT_PHASES, ET_OK);
    return backward(g, scale, error);
}

/* ---- the step ---- */

/* The norm of all gradients, which are then multiplied by the clipping's factor. */
static et_status clip(et_gpt *g, double *norm, et_error *error)
{
    double squares = 0;
    for (size_t i = 0; i < g->tensor_count; i++) {
        const et_gpt_tensor *t = g->tensors[i].tensor;
        double own = t->gradient ? et_squares(t->count, t->gradient) : 0;
        if (!isfinite(own))
            return et_fail(error, ET_EINVAL, "step %zu: the gradient of %s is not finite",
                           g->progress.steps, t->name);
        squares += own;
    }
    *norm = sqrt(squares);
    double factor = et_clip_factor(*norm, g->config.clip);
    for (size_t i = 0; factor != 1 && i < g->tensor_count; i++) {
        const et_gpt_tensor *t = g->tensors[i].tensor;
        for (size_t j = 0; t->gradient && j < t->count; j++) t->gradient[j] *= (et_real)factor;
    }
    return ET_OK;
}

static et_status adamw(const et_gpt *g, et_gpt_optimizer which, double factor, et_gpt_tensor *t,
                       et_error *error)
{
    const et_gpt_config *c = &g->config;
    double rate = which == ET_WTE ? c->rate_wte : which == ET_HEAD ? c->rate_head : c->rate_router;
    const et_adamw a = {rate * factor, c->beta1, c->beta2, c->eps, 0, g->rounding};
    return et_adamw_update(&a, g->progress.steps, t->count, t->gradient, t->first, t->second,
                           t->value, error);
}

/* Each matrix, or those of all experts as one. */
static et_status muon(const et_gpt *g, double factor, et_gpt_tensor *t, et_error *error)
{
    const et_gpt_config *c = &g->config;
    size_t rows = t->shape[t->rank - 2], columns = t->shape[t->rank - 1];
    size_t matrices = t->rank == 3 ? t->shape[0] : 1;
    if (c->grouping == ET_MUON_STACKED) {
        rows *= matrices;
        matrices = 1;
    }
    const et_muon f = {.engine = c->engine,
                       .rate = c->rate_muon * factor,
                       .momentum = et_ramp(c->momentum_first, c->momentum_last, c->momentum_ramp,
                                           g->progress.steps),
                       .rounding = g->rounding};
    et_status status = ET_OK;
    for (size_t i = 0; status == ET_OK && i < matrices; i++) {
        size_t at = i * rows * columns;
        status = et_muon_update(&f, rows, columns, t->gradient + at, t->first + at, t->value + at,
                                g->room, error);
    }
    return status;
}

static et_status optimise(et_gpt *g, double factor, et_error *error)
{
    et_status status = ET_OK;
    for (size_t i = 0; status == ET_OK && i < g->tensor_count; i++) {
        et_gpt_tensor *t = g->tensors[i].tensor;
        et_gpt_optimizer which = g->tensors[i].optimizer;
        if (which == ET_MUON)
            status = et_gpt_timed(g, ET_GPT_MUON, muon(g, factor, t, error));
        else if (which != ET_NO_OPTIMIZER)
            status = et_gpt_timed(g, ET_GPT_ADAMW, adamw(g, which, factor, t, error));
    }
    return status;
}

/* EMA by the mean cutoff of the micro-batches, bias by their loads: once, at the step's end. */
static void update_states(et_gpt *g)
{
    const et_case *c = &g->config.ffn;
    et_real M = (et_real)g->config.micro_batches;
    for (size_t i = 0; i < g->config.layers; i++) {
        et_gpt_layer *l = &g->layers[i];
        for (size_t j = 0; l->cutoff && j < c->experts; j++) l->cutoff[j] /= M;
        if (l->cutoff)
            et_ema_update(g->rounding, c->experts, c->ema_decay, l->cutoff, l->ema.value);
        if (l->bias.value)
            et_bias_update(g->rounding, c->balance, g->routed_tokens, c->experts, c->top_k, l->load,
                           c->bias_rate, l->bias.value);
    }
    g->progress.steps++;
    g->progress.ema_updates++;
}

et_status et_gpt_step(et_gpt *g, const int32_t *tokens, et_gpt_report *report, et_error *error)
{
    ET_ARITHMETIC;
    const et_gpt_config *c = &g->config;
    size_t M = c->micro_batches, batch = c->batch * (c->sequence + 1);
    *report = (et_gpt_report){.factor = et_schedule_factor(&c->schedule, g->progress.steps)};
    g->eval = false;
    et_gpt_timed(g, ET_GPT_PHASES, ET_OK);
    zero_counts(g);
    for (size_t i = 0; i < g->tensor_count; i++) {
        const et_gpt_tensor *t = g->tensors[i].tensor;
        if (t->gradient) memset(t->gradient, 0, t->count * sizeof *t->gradient);
    }
    et_gpt_timed(g, ET_GPT_ADAMW, ET_OK);
    et_status status = ET_OK;
    for (size_t m = 0; m < M; m++) {
        double loss;
        if ((status = forward(g, tokens + m * batch, &loss, NULL, error)) ||
            (status = backward(g, 1 / (double)M, error)))
            return status;
        report->loss += loss / (double)M;
    }
    status = clip(g, &report->norm, error);
    if (et_gpt_timed(g, ET_GPT_ADAMW, status) != ET_OK ||
        (status = optimise(g, report->factor, error)))
        return status;
    update_states(g);
    return et_gpt_timed(g, ET_GPT_ADAMW, ET_OK);
}

bool et_gpt_routing_of(const et_gpt *g, size_t layer, et_gpt_routing *routing)
{
    if (layer >= g->config.layers || !g->layers[layer].moe) return false;
    const et_gpt_layer *l = &g->layers[layer];
    *routing = (et_gpt_routing){.experts = g->config.ffn.experts,
                                .tokens = g->routed_tokens,
                                .load = l->load,
                                .passed = l->pass.route.passed ? l->passed : NULL,
                                .cutoff = g->eval ? NULL : l->cutoff,
                                .threshold = l->threshold,
                                .bias = l->bias.value,
                                .mask = l->pass.route.mask,
                                .logits = l->values.logits,
                                .gates = l->values.gates};
    return true;
}
