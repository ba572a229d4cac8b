/* step.c: one step of one layer, from inputs to gradients, state and metrics. See etref/step.h.
 *
 *     score      r = x W_r', p = gate(r)                      the whole step at once
 *     route      rule(r, state) -> z                          each micro-batch by itself
 *     forward    slots -> f_i -> y
 *     losses     aux, z: values, and gradients by p and r     training only
 *     backward   from dy and the losses to every parameter
 *     state      ema, bias after the step                     training only
 *     metrics    what is measured of the routing
 *
 * This is the only place that knows which rule a case asks for. A step of M micro-batches is
 * computed as one layer of N tokens, since tokens meet in the routing, in softmax_tokens and in the
 * losses only, and those are done per micro-batch.
 *
 * Several ranks change nothing of it: their micro-batches are the step's, and what each of them has
 * is put together at the end (step_ranks.c).
 */
#include "etref/step.h"
#include "ref/base/float_environment.h"
#include "ref/base/memory.h"
#include "ref/base/sum.h"
#include "ref/step/decide.h"
#include "ref/step/case_fields.h"
#include "ref/step/case_kinds.h"
#include "ref/step/step_metrics.h"
#include "ref/step/step_model.h"
#include "ref/step/step_ranks.h"
#include "ref/step/tensors.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- memory: every array is registered, counted and freed in one place ---- */

et_status et_step_count_bytes(et_step *s, size_t count, size_t size, et_error *error)
{
    size_t bytes;
    if (!et_size_mul(count, size, &bytes) || bytes > SIZE_MAX - s->bytes ||
        (s->max_bytes > 0 && s->bytes + bytes > s->max_bytes))
        return et_fail(error, ET_ENOMEM,
                       "case '%s' needs more than the %zu MB this run may take; use fewer tokens, "
                       "experts or columns%s",
                       s->c.name, s->max_bytes / 1000000,
                       s->block > 0 ? ", or a smaller block layout" : "");
    s->bytes += bytes;
    return ET_OK;
}

static void own(et_step *s, void *room, size_t bytes)
{
    s->owned[s->owned_count] = room;
    s->owned_bytes[s->owned_count++] = bytes;
}

/* An array of just this size that another step has left, zeroed; or NULL. */
static void *take_spare(et_step *spare, size_t bytes)
{
    for (size_t i = 0; spare && i < spare->owned_count; i++) {
        if (spare->owned_bytes[i] != bytes) continue;
        void *room = spare->owned[i];
        size_t last = --spare->owned_count;
        spare->owned[i] = spare->owned[last];
        spare->owned_bytes[i] = spare->owned_bytes[last];
        return memset(room, 0, bytes);
    }
    return NULL;
}

static et_status take(et_step *s, void *pointer, size_t count, size_t size, et_error *error)
{
    et_status status = et_step_count_bytes(s, count, size, error);
    if (status != ET_OK) return status;
    void *room = take_spare(s->spare, count * size);
    if (room == NULL) status = et_allocate(&room, count, size, s->c.name, error);
    if (status != ET_OK) return status;
    memcpy(pointer, &room, sizeof room);
    own(s, room, count * size);
    return ET_OK;
}

/* What is in no bundle. */
static et_status take_reals(et_step *s, et_real **out, size_t count, et_error *error)
{
    return take(s, out, count, sizeof(et_real), error);
}

static et_status take_tensor(et_step *s, et_tensor_id id, et_error *error)
{
    et_tensor_out t = et_tensor_view(s, id);
    size_t count = 1;
    bool fits = true;
    for (size_t i = 0; i < t.rank; i++) fits = fits && et_size_mul(count, t.shape[i], &count);
    if (!fits) count = SIZE_MAX; /* more than can be counted: refused */
    return take(s, (char *)s + et_tensors[id].offset, count, et_source_size(t.source), error);
}

/* The tensors of these rows of the table that the case has. */
static et_status take_tensors(et_step *s, et_tensor_id first, et_tensor_id last, et_error *error)
{
    et_status status = ET_OK;
    for (et_tensor_id id = first; status == ET_OK && id <= last; id++)
        if (et_tensors[id].has && et_tensors[id].has(&s->c)) status = take_tensor(s, id, error);
    return status;
}

/* All that a layer of the model computes. */
static et_status take_all(et_step *s, et_error *error)
{
    return take_tensors(s, ET_LAST_INPUT + 1, ET_TENSORS - 1, error);
}

void et_step_free(et_step *s)
{
    for (size_t i = 0; i < s->owned_count; i++)
        if (s->spare && s->spare->owned_count < ET_MAX_STEP_ARRAYS)
            own(s->spare, s->owned[i], s->owned_bytes[i]);
        else
            free(s->owned[i]);
    et_assignment_free(&s->assignment);
    et_block_layout_free(&s->layout);
    et_parallel_plan_free(&s->plan);
    *s = (et_step){0};
}

et_status et_step_create(et_step *s, const et_case *c, size_t max_bytes, et_error *error)
{
    et_case settled;
    *s = (et_step){0};
    et_status status = et_case_settle(&settled, c, error);
    if (status != ET_OK) return status;
    *s = (et_step){.c = settled, .max_bytes = max_bytes};
    status = take_tensors(s, ET_FIRST_INPUT, ET_LAST_INPUT, error);
    if (status != ET_OK) et_step_free(s);
    return status;
}

/* ---- forward and backward: their arrays ---- */

static et_status take_values(et_step *s, et_error *error)
{
    return take_tensors(s, ET_ROUTE_SLOT_WEIGHT, ET_FWD_Y, error);
}

static et_status take_grads(et_step *s, et_error *error)
{
    et_status status = take_tensors(s, ET_BWD_SLOT_WEIGHT, ET_BWD_SHARED_B_DOWN, error);
    if (status == ET_OK && is_moe(&s->c))
        status = take_reals(s, &s->bwd.gates, s->c.tokens * s->c.experts, error);
    return status;
}

/* ---- the dense layer ---- */

static et_status run_dense(et_step *s, et_error *error)
{
    size_t N = s->c.tokens, d = s->c.d_model, h = s->c.d_expert;
    et_moe_values *v = &s->fwd;
    et_moe_grads *g = &s->bwd;
    et_status status;
    if ((status = take_values(s, error)) || (status = take_grads(s, error))) return status;
    const et_rounding *r = s->rounding;
    const et_ffn f = {.engine = s->engine,
                      .d = d,
                      .h = h,
                      .up = s->in.up,
                      .down = s->in.down,
                      .rounding = r,
                      .activation = s->c.activation,
                      .gating = s->in.gating,
                      .b_up = s->in.b_up,
                      .b_gate = s->in.b_gate,
                      .b_down = s->in.b_down};
    const et_ffn_rows rows = {.m = N,
                              .x = s->in.x,
                              .H = v->slot_pre,
                              .A = v->slot_act,
                              .out = v->slot_out,
                              .dO = g->slot_out,
                              .dA = g->slot_act,
                              .dH = g->slot_pre,
                              .dx = g->x,
                              .accumulate_dx = true,
                              .V = v->slot_gate_pre,
                              .dV = g->slot_gate_pre};
    status = et_ffn_forward(&f, &rows, error);
    if (status != ET_OK) return status;
    memcpy(v->y, v->slot_out, N * d * sizeof(et_real));
    et_round(r, ET_OUTPUTS, "y", N * d, v->y);
    memcpy(g->slot_out, s->in.dy, N * d * sizeof(et_real));
    et_round(r, ET_INTERMEDIATES, "dO", N * d, g->slot_out);
    status = et_ffn_backward(&f, &rows, g->up, g->down, g->gating, error);
    if (status == ET_OK)
        status = et_ffn_bias_backward(&f, &rows, g->b_up, g->b_gate, g->b_down, error);
    et_round(r, ET_OUTPUTS, "dW_up", h * d, g->up);
    et_round(r, ET_OUTPUTS, "dW_down", h * d, g->down);
    if (g->gating) et_round(r, ET_OUTPUTS, "dW_gate", h * d, g->gating);
    if (g->b_up) et_round(r, ET_OUTPUTS, "db_up", h, g->b_up);
    if (g->b_gate) et_round(r, ET_OUTPUTS, "db_gate", h, g->b_gate);
    if (g->b_down) et_round(r, ET_OUTPUTS, "db_down", d, g->b_down);
    et_round(r, ET_OUTPUTS, "dx", N * d, g->x);
    return status;
}

/* ---- the MoE layer: score ---- */

et_moe et_step_layer(const et_step *s)
{
    const et_case *c = &s->c;
    /* EC and ET: the anchor stands for the shared expert. One of G+1 experts that a token gets, it weighs
     * 1/(G+1) where its weight is constant (released: 1/G, with a G that counts it). */
    bool stands = c->rule != ET_TC && c->shared;
    bool out = c->gate == ET_GATE_SOFTMAX_ANCHOR_OUT && stands;
    return (et_moe){.engine = s->engine,
                    .N = c->tokens,
                    .d = c->d_model,
                    .h = c->d_expert,
                    .n = c->experts,
                    .hs = has_shared(c) ? c->shared_d_expert : 0,
                    .gate = c->gate,
                    .norm = c->norm,
                    .gate_tokens = et_case_micro_tokens(c),
                    .anchor_weighs_shared = c->gate == ET_GATE_SOFTMAX_ANCHOR && stands,
                    .shared_constant = out ? 1 / (et_real)(c->granularity + 1) : 1,
                    .router = s->in.router,
                    .up = s->in.up,
                    .down = s->in.down,
                    .shared_up = s->in.shared_up,
                    .shared_down = s->in.shared_down,
                    .rounding = s->rounding,
                    .activation = c->activation,
                    .routed_scale = (et_real)c->routed_scale,
                    .mask = s->in.mask,
                    .weighs_input = c->weighs_input,
                    .gating = s->in.gating,
                    .shared_gating = s->in.shared_gating,
                    .b_up = s->in.b_up,
                    .b_gate = s->in.b_gate,
                    .b_down = s->in.b_down,
                    .shared_b_up = s->in.shared_b_up,
                    .shared_b_gate = s->in.shared_b_gate,
                    .shared_b_down = s->in.shared_b_down};
}

static et_status take_scores(et_step *s, et_error *error)
{
    et_status status = take_tensors(s, ET_FWD_LOGITS, ET_FWD_GATES, error);
    if (status == ET_OK && et_gate_has_anchor(s->c.gate))
        status = take_reals(s, &s->fwd.anchor, s->c.tokens, error);
    return status;
}

static et_status score(et_step *s, const et_moe *moe, et_error *error)
{
    et_moe_values *v = &s->fwd;
    et_status status = take_scores(s, error);
    if (status != ET_OK) return status;
    /* Decisions hang on the logits' last bits, so they are the plain engine's whichever computes
     * the rest: a hundredth of the work, and every engine routes alike. */
    et_moe exact = *moe;
    exact.engine = ET_PLAIN;
    if ((status = et_moe_score(&exact, s->in.x, v, error))) return status;
    bool may_overflow = s->rounding != NULL; /* as a kernel may */
    for (size_t i = 0; i < (may_overflow ? 0 : moe->N * moe->n); i++)
        if (!isfinite(v->logits[i]))
            return et_fail(error, ET_EINVAL,
                           "case '%s': the logit of token %zu for expert %zu is not finite; scale "
                           "in.x or in.w_router down",
                           s->c.name, i / moe->n, i % moe->n);
    return ET_OK;
}

/* ---- the MoE layer: route ---- */

static et_status take_routing(et_step *s, et_error *error)
{
    const et_case *c = &s->c;
    et_status status = take_tensors(s, ET_ROUTE_THRESHOLD, ET_ROUTE_TOPK_TOKEN, error);
    if (status == ET_OK && drops(c))
        status = take(s, &s->route.chosen, c->tokens * c->experts, sizeof(uint8_t), error);
    if (status == ET_OK && et_case_routes_by_threshold(c))
        status = take(s, &s->route.passed, c->micro_batches * c->experts, sizeof(int32_t), error);
    return status;
}

/* Micro-batch `batch` by expert choice; kth gets its batch cutoff, the mean over its pools. */
static et_status route_by_choice(et_step *s, size_t batch, et_real *kth, et_error *error)
{
    const et_case *c = &s->c;
    size_t n = c->experts, pools = pools_of_batch(c);
    size_t N = batch_of(c, batch).count, first = batch_of(c, batch).first;
    et_real *cutoffs = s->route.pool_cutoff + batch * pools * n;
    et_status status =
        et_expert_choice(N, n, c->pool_tokens, c->target_load, s->fwd.logits + first * n,
                         s->route.mask + first * n, s->route.margin + first * n, cutoffs,
                         s->route.topk_token + batch * pools * n * c->target_load, first, error);
    et_pass(s->rounding, "pool cutoff", pools * n, cutoffs);
    for (size_t i = 0; status == ET_OK && i < n; i++) {
        kth[i] = et_sum(s->rounding, et_sum_place(s->rounding), "cutoff", 0, pools, n, cutoffs + i,
                        NULL) /
                 (et_real)pools;
    }
    return status;
}

/* Micro-batch `batch` by threshold; in training kth gets its k-th largest scores. */
static et_status route_by_threshold(et_step *s, size_t batch, et_real *kth, et_error *error)
{
    const et_case *c = &s->c;
    size_t n = c->experts, N = batch_of(c, batch).count, first = batch_of(c, batch).first;
    const et_real *r = s->fwd.logits + first * n;
    et_capacity bounds = et_capacity_bounds(c->target_load, c->capacity_factor, N);
    bool clamped = c->has_capacity && !c->eval;
    et_status status = et_expert_threshold(
        N, n, r, s->route.threshold, c->inclusive, clamped ? &bounds : NULL,
        s->route.mask + first * n, s->route.margin + first * n, s->route.passed + batch * n, error);
    if (status == ET_OK && !c->eval) status = et_kth_largest(N, n, c->target_load, r, kth, error);
    return status;
}

/* Padding tokens, the last of a micro-batch, choose nothing, and nothing could make them. */
static void route_padding(et_step *s, size_t batch)
{
    size_t n = s->c.experts, K = s->c.top_k, to = (batch + 1) * et_case_micro_tokens(&s->c);
    size_t from = to - s->c.padding;
    for (size_t i = from * n; i < to * n; i++) s->route.margin[i] = -(et_real)INFINITY;
    for (size_t j = from * K; s->route.topk_expert && j < to * K; j++) s->route.topk_expert[j] = -1;
}

const et_real *et_step_scores(const et_step *s)
{
    return is_tc(&s->c) && s->c.select_gates ? s->fwd.gates : s->fwd.logits;
}

static et_status route_by_token(et_step *s, size_t batch, et_error *error)
{
    const et_case *c = &s->c;
    size_t n = c->experts, K = c->top_k;
    size_t N = batch_of(c, batch).count, first = batch_of(c, batch).first;
    const et_groups limited = {c->groups, c->groups_kept, c->group_score}, all = {.count = 1, .kept = 1};
    uint8_t *mask = s->route.mask + first * n;
    et_real *margin = s->route.margin + first * n;
    int32_t *topk = s->route.topk_expert + first * K;
    et_status status = et_token_choice_in_groups(N, n, K, has_groups(c) ? &limited : &all,
                                                 et_step_scores(s) + first * n, s->in.bias, mask,
                                                 margin, topk, error);
    if (status != ET_OK || !drops(c)) return status;
    return et_drop_overflow(N, n, K, et_case_token_capacity(c), c->drop, topk,
                            s->fwd.gates + first * n, mask, margin, error);
}

/* A token's choices: what it has slots of, and, of those that the rule chose, the best that it has not, up to K. So they
 * are also known where the assignment is somebody else's. */
static void find_chosen(et_step *s)
{
    size_t n = s->c.experts, K = s->c.top_k;
    for (size_t t = 0; s->route.chosen && t < s->c.tokens; t++) {
        uint8_t *chosen = s->route.chosen + t * n;
        size_t count = 0;
        for (size_t i = 0; i < n; i++) count += chosen[i] = s->route.mask[t * n + i] != 0;
        for (size_t j = 0; j < K && count < K; j++) {
            int32_t i = s->route.topk_expert[t * K + j];
            if (i < 0 || chosen[i]) continue; /* padding chooses nothing */
            chosen[i] = 1;
            count++;
        }
    }
}

/* Every micro-batch is routed with the state from before the step. route.cutoff gathers the mean of
 * kth over them: what the moving average will see, once, at the step's end. */
static et_status route(et_step *s, et_error *error)
{
    const et_case *c = &s->c;
    size_t n = c->experts, M = c->micro_batches;
    void *room = NULL;
    et_status status = take_routing(s, error);
    if (status == ET_OK) status = et_allocate(&room, n, sizeof(et_real), "cutoffs", error);
    et_real *kth = room;
    if (status == ET_OK && s->route.threshold) {
        et_ema_threshold(s->rounding, n, s->in.ema, c->ema_decay, c->ema_bias_correction,
                         c->ema_updates, s->route.threshold);
        et_round(s->rounding, ET_ACCUMULATOR, "c", n, s->route.threshold);
    }
    for (size_t batch = 0; status == ET_OK && !c->given && batch < M; batch++) {
        route_padding(s, batch);
        if (c->rule == ET_TC)
            status = route_by_token(s, batch, error);
        else if (et_case_routes_by_choice(c))
            status = route_by_choice(s, batch, kth, error);
        else
            status = route_by_threshold(s, batch, kth, error);
        for (size_t i = 0; status == ET_OK && s->route.cutoff && i < n; i++) {
            s->route.cutoff[i] += kth[i];
            if (s->rank.kth) s->rank.kth[batch * c->ranks / M * n + i] += kth[i];
        }
    }
    for (size_t i = 0; status == ET_OK && s->rank.kth && i < c->ranks * n; i++)
        s->rank.kth[i] /= (et_real)(M / c->ranks);
    if (status == ET_OK && s->rank.kth)
        et_round(s->rounding, ET_ACCUMULATOR, "cutoff", c->ranks * n, s->rank.kth);
    for (size_t i = 0; status == ET_OK && s->route.cutoff && i < n; i++)
        s->route.cutoff[i] /= (et_real)M;
    if (status == ET_OK && s->route.cutoff)
        et_round(s->rounding, ET_ACCUMULATOR, "cutoff", n, s->route.cutoff);
    free(room);
    if (status == ET_OK && s->route.margin)
        et_round(s->rounding, ET_ACCUMULATOR, "margin", c->tokens * n, s->route.margin);
    if (status == ET_OK && s->given_mask)
        memcpy(s->route.mask, s->given_mask, c->tokens * n * sizeof *s->route.mask);
    if (status == ET_OK) find_chosen(s);
    if (status == ET_OK)
        status = et_assignment_build(&s->assignment, c->tokens, n, s->route.mask, error);
    return status;
}

/* ---- the MoE layer: losses ---- */

/* F of micro-batch `batch`: from its own loads, or from in.load. What is dropped was chosen all the same (Switch). */
void et_step_fractions(const et_step *s, size_t batch, et_real *F)
{
    const et_case *c = &s->c;
    size_t N = et_case_micro_tokens(c), n = c->experts, real = et_case_real_tokens(c);
    if (s->in.load) {
        et_balance_fractions(real, n, c->top_k, s->in.load, F);
        return;
    }
    const uint8_t *counted = s->route.chosen ? s->route.chosen : s->route.mask;
    memset(F, 0, n * sizeof *F);
    for (size_t t = batch * N; t < (batch + 1) * N; t++)
        for (size_t i = 0; i < n; i++) F[i] += counted[t * n + i];
    et_balance_fractions(real, n, c->top_k, F, F);
}

/* Losses are means over the micro-batches; so each one's gradient is scaled by coefficient / M. */
static et_status losses(et_step *s, et_error *error)
{
    const et_case *c = &s->c;
    size_t N = et_case_real_tokens(c), n = c->experts, M = c->micro_batches;
    void *F = NULL;
    et_status status = take_tensors(s, ET_LOSS_AUX, ET_LOSS_Z, error);
    if (status == ET_OK) status = et_allocate(&F, n, sizeof(et_real), "load fractions", error);
    for (size_t batch = 0; status == ET_OK && batch < M; batch++) {
        size_t at = batch * et_case_micro_tokens(c) * n;
        if (s->loss_aux) {
            et_step_fractions(s, batch, F);
            *s->loss_aux += et_aux_loss(s->rounding, c->balance, N, n, F, s->fwd.gates + at,
                                        c->balance_coef / (double)M, s->bwd.gates + at);
        }
        if (s->loss_z)
            *s->loss_z += et_z_loss(s->rounding, N, n, s->fwd.logits + at,
                                    c->z_loss_coef / (double)M, s->bwd.logits + at);
    }
    if (s->loss_aux) *s->loss_aux /= (et_real)M;
    if (s->loss_z) *s->loss_z /= (et_real)M;
    if (s->loss_aux) et_round(s->rounding, ET_ACCUMULATOR, "loss", 1, s->loss_aux);
    if (s->loss_z) et_round(s->rounding, ET_ACCUMULATOR, "loss", 1, s->loss_z);
    free(F);
    return status;
}

/* ---- state after the step ---- */

static et_status update_bias(et_step *s, et_error *error)
{
    const et_case *c = &s->c;
    size_t n = c->experts, bytes = n * sizeof(et_real);
    void *room = NULL;
    et_status status = et_allocate(&room, n, sizeof(et_real), "loads", error);
    if (status != ET_OK) return status;
    et_real *load = room;
    for (size_t i = 0; i < n; i++) load[i] = (et_real)s->assignment.load[i];
    memcpy(s->state_bias, s->in.bias, bytes);
    if (s->in.load) /* of all ranks: a mean load per micro-batch */
        et_bias_update(s->rounding, c->balance, et_case_real_tokens(c), n, c->top_k, s->in.load,
                       c->bias_rate, s->state_bias);
    else
        et_bias_update(s->rounding, c->balance, c->micro_batches * et_case_real_tokens(c), n,
                       c->top_k, load, c->bias_rate, s->state_bias);
    et_round(s->rounding, ET_ACCUMULATOR, "bias", n, s->state_bias);
    free(room);
    return ET_OK;
}

static void update_ema(et_step *s)
{
    const et_case *c = &s->c;
    /* The mean of averages is the average moved by the mean; not yet taken, rank 0's is shown. */
    const et_real *kth = et_ranks_keep_apart(c) ? s->rank.kth : s->route.cutoff;
    memcpy(s->state_ema, s->in.ema, c->experts * sizeof(et_real));
    et_ema_update(s->rounding, c->experts, c->ema_decay, kth, s->state_ema);
    et_round(s->rounding, ET_ACCUMULATOR, "ema", c->experts, s->state_ema);
    *s->state_updates = (int32_t)(c->ema_updates + 1);
}

/* Evaluation changes nothing, and a step of it has no state to be filled. */
static et_status update_state(et_step *s, et_error *error)
{
    et_status status = take_tensors(s, ET_STATE_EMA, ET_STATE_BIAS, error);
    if (status == ET_OK && s->state_bias) status = update_bias(s, error);
    if (status == ET_OK && s->state_ema) update_ema(s);
    return status;
}

void et_show_state(et_step *s, int32_t *updates)
{
    if (!s->c.eval) return;
    s->state_ema = s->in.ema;
    s->state_bias = s->in.bias;
    *updates = (int32_t)s->c.ema_updates;
    s->state_updates = s->in.ema ? updates : NULL;
}

/* ---- metrics ---- */

static et_status measure(et_step *s, et_error *error)
{
    et_status status = take_tensors(s, ET_METRIC_USAGE, ET_METRIC_GATE_STD, error);
    return status == ET_OK ? et_metrics_run(s, error) : status;
}

/* ---- the block layout ---- */

/* Its arrays are the layout's own, and counted all the same: an int32_t a padded row. */
static et_status lay_out(et_step *s, et_error *error)
{
    if (s->block == 0) return ET_OK;
    size_t blocks = et_block_count(&s->assignment, s->block);
    et_status status = et_step_count_bytes(s, blocks, s->block * sizeof(int32_t), error);
    return status == ET_OK ? et_block_layout_build(&s->layout, &s->assignment, s->block, error)
                           : status;
}

/* ---- several ranks ---- */

static et_status take_ranks(et_step *s, et_error *error)
{
    et_status status = et_ranks_plan(s, error);
    if (status == ET_OK)
        status = take_tensors(s, ET_EP_X_RECV, ET_EP_SHARED_GATE_RANK, error);
    return status == ET_OK ? take_tensors(s, ET_DP_EMA, ET_DP_GRAD_NORM, error) : status;
}

/* ---- a given assignment ---- */

et_status et_step_take_given(et_step *s, uint8_t **mask, et_error *error)
{
    et_status status = take(s, mask, s->c.tokens * s->c.experts, sizeof(uint8_t), error);
    if (status != ET_OK) return status;
    s->c.given = true;
    s->given_mask = *mask;
    return ET_OK;
}

/* ---- room alone ---- */

et_status et_step_take_like(et_step *to, const et_step *s, et_error *error)
{
    *to = et_step_like(s);
    to->engine = s->engine;
    et_status status;
    if (!is_ffn(&s->c)) return take_all(to, error);
    if (!is_moe(&s->c)) return (status = take_values(to, error)) ? status : take_grads(to, error);
    if ((status = take_scores(to, error)) || (status = take_routing(to, error))) return status;
    memcpy(to->route.mask, s->route.mask, s->c.tokens * s->c.experts * sizeof *to->route.mask);
    if ((status = et_assignment_build(&to->assignment, s->c.tokens, s->c.experts, to->route.mask,
                                      error)) ||
        (status = take_values(to, error)) || (status = take_grads(to, error)) ||
        (status = take_tensors(to, ET_LOSS_AUX, ET_LOSS_Z, error)) ||
        (status = take_tensors(to, ET_METRIC_USAGE, ET_METRIC_GATE_STD, error)) ||
        (status = take_ranks(to, error)))
        return status;
    /* the state also where evaluation only shows it (et_show_state) */
    if (s->state_ema) status = take_tensor(to, ET_STATE_EMA, error);
    if (status == ET_OK && s->state_bias) status = take_tensor(to, ET_STATE_BIAS, error);
    return status;
}

/* ---- decisions alone ---- */

et_status et_step_route(et_step *s, et_error *error)
{
    return route(s, error);
}

et_status et_step_losses(et_step *s, et_error *error)
{
    return losses(s, error);
}

et_status et_step_update_state(et_step *s, et_error *error)
{
    return update_state(s, error);
}

et_step et_step_like(const et_step *s)
{
    return (et_step){.c = s->c,
                     .given_mask = s->c.given ? s->given_mask : NULL,
                     .max_bytes = s->max_bytes,
                     .bytes = s->bytes,
                     .in = s->in,
                     .model = et_model_inputs(&s->model),
                     .spare = s->spare};
}

et_status et_step_decide(et_step *s, et_error *error)
{
    s->engine = ET_PLAIN;
    et_moe moe = et_step_layer(s);
    et_status status = score(s, &moe, error);
    return status == ET_OK ? route(s, error) : status;
}

/* ---- the whole step ---- */

bool et_step_has_run(const et_step *s)
{
    et_tensor_id id = ET_LAST_INPUT + 1;
    while (id < ET_TENSORS && et_tensor_values(s, id) == NULL) id++;
    return id < ET_TENSORS;
}

static bool has_inputs(const et_step *s)
{
    et_tensor_id id = ET_FIRST_INPUT;
    while (id <= ET_LAST_INPUT && (!et_tensors[id].has(&s->c) || et_tensor_values(s, id))) id++;
    return id > ET_LAST_INPUT;
}

/* A step is run once, with inputs in its arrays, by the case for which they were made. */
static et_status check_step(et_step *s, et_engine engine, et_error *error)
{
    if (engine != ET_PLAIN && engine != ET_BLAS)
        return et_fail(error, ET_EINVAL, "step: engine = %d; ET_PLAIN or ET_BLAS", (int)engine);
    if (!has_inputs(s))
        return et_fail(error, ET_EINVAL, "step: no inputs; et_step_create makes room for them");
    if (et_step_has_run(s))
        return et_fail(error, ET_EINVAL,
                       "step: case '%.63s' has been run already; create another step", s->c.name);
    et_status status = et_case_settle(&s->c, &s->c, error);
    if (status == ET_OK && s->c.given && s->given_mask == NULL)
        return et_fail(error, ET_EINVAL,
                       "case '%s' has routing = \"given\", and no assignment; a bundle that has one brings it: "
                       "etref generate --routing given --inputs BUNDLE",
                       s->c.name);
    return status;
}

static void tell(et_progress *progress, void *user, const char *phase, double done)
{
    if (progress) progress(user, phase, done);
}

et_status et_step_run(et_step *s, et_engine engine, et_progress *progress, void *user,
                      et_error *error)
{
    ET_ARITHMETIC;
    et_status status = check_step(s, engine, error);
    if (status != ET_OK) return status;
    s->engine = engine;
    if (!is_ffn(&s->c)) {
        tell(progress, user, "layer", 0);
        return (status = take_all(s, error)) ? status : et_model_step_run(s, error);
    }
    if (!is_moe(&s->c)) {
        tell(progress, user, "feed-forward", 0);
        return run_dense(s, error);
    }
    et_moe moe = et_step_layer(s);
    tell(progress, user, "route", 0);
    if ((status = score(s, &moe, error)) || (status = route(s, error)) ||
        (status = take_values(s, error)) || (status = take_grads(s, error)))
        return status;
    tell(progress, user, "forward", 0.01); /* a third of the products, then two thirds */
    if ((status = et_moe_forward(&moe, s->in.x, &s->assignment, &s->fwd, error))) return status;
    tell(progress, user, "backward", 0.34);
    if ((status = losses(s, error)) ||
        (status =
             et_moe_backward(&moe, s->in.x, s->in.dy, &s->assignment, &s->fwd, &s->bwd, error)) ||
        (status = update_state(s, error)) || (status = measure(s, error)) ||
        (status = take_ranks(s, error)) || (status = et_ranks_run(s, error)))
        return status;
    return lay_out(s, error);
}
