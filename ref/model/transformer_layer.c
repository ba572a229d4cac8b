/* transformer_layer.c: one layer of the model, forward and backward.
 *
 *     forward    norm1 = norm(x)      qkv = norm1 w_qkv'     RoPE, QK-norm     attended = attention
 *                x += attended w_o'
 *                norm2 = norm(x)      x += ffn(norm2)
 *
 *     backward   dx is dL/dx after the layer. A sublayer x + f(norm(x)) gives back
 *                dx + norm_backward(f_backward(dx)): the stream goes by, and what went through f is
 * added.
 *
 * A forward pass computes the rows g->from to g->from + g->rows - 1: all of them, or in a pass that
 * goes on with a sequence the new ones, which see what the rows before have left in qkv.
 *
 * The feed-forward layers are the library's own (ffn.c, moe.c), the routing and the balancing
 * losses those of a step (ref/step/step.c): an MoE layer here is an et_step of one micro-batch,
 * whose inputs and values are the model's arrays.
 */
#include "etref/attention.h"
#include "etref/ffn.h"
#include "etref/rmsnorm.h"
#include "etref/rope.h"
#include "ref/base/product.h"
#include "ref/base/sum.h"
#include "ref/model/model.h"
#include "ref/step/decide.h"

#include <math.h>
#include <string.h>

/* ---- linear maps of the stream ---- */

static et_operand stored(const char *site, et_matrix X)
{
    return (et_operand){X, ET_ACTIVATIONS, site, ET_INTERMEDIATES};
}

static et_operand weight(const et_gpt_tensor *w, bool transposed)
{
    et_matrix at = {w->value, w->shape[1], transposed};
    return (et_operand){at, ET_OPERANDS, "W", ET_UNSTORED};
}

/* Where the rows of this pass begin in an array of so many columns. */
static et_real *rows_of(const et_gpt *g, et_real *array, size_t columns)
{
    return array + g->from * columns;
}

/* y [rows,out] = x w', w [out,in] */
static et_status linear(const et_gpt *g, const char *site, const et_gpt_tensor *w, et_real *x,
                        et_real *y, et_error *error)
{
    size_t out = w->shape[0], in = w->shape[1];
    const et_operand X = stored(site, et_rows(rows_of(g, x, in), in));
    y = rows_of(g, y, out);
    et_status status = et_product(g->rounding, g->config.engine, g->rows, out, in, X,
                                  weight(w, true), false, y, out, error);
    et_round(g->rounding, ET_INTERMEDIATES, site, g->rows * out, y);
    return status;
}

/* dw += dy' x        dx = dy w */
static et_status linear_backward(const et_gpt *g, const char *site, et_gpt_tensor *w,
                                 const et_real *x, const et_real *dy, et_real *dx, et_error *error)
{
    size_t out = w->shape[0], in = w->shape[1];
    et_status status = et_product(g->rounding, g->config.engine, out, in, g->N,
                                  stored(site, et_transposed(dy, out)),
                                  stored(site, et_rows(x, in)), true, w->gradient, in, error);
    et_round(g->rounding, ET_OUTPUTS, "dW", w->count, w->gradient);
    if (status == ET_OK)
        status = et_product(g->rounding, g->config.engine, g->N, in, out,
                            stored(site, et_rows(dy, out)), weight(w, false), false, dx, in, error);
    et_round(g->rounding, ET_INTERMEDIATES, site, g->N * in, dx);
    return status;
}

/* x += y */
static void add_to_stream(et_gpt *g)
{
    size_t d = g->config.d_model;
    et_add_rows(g->rounding, ET_SHARES, g->rows, d, NULL, rows_of(g, g->y, d), NULL,
                rows_of(g, g->x, d));
}

static et_rmsnorm norm_of(const et_gpt *g)
{
    size_t d = g->config.d_model;
    return (et_rmsnorm){g->rows, 1, d, d, g->config.rms_eps, g->rounding};
}

et_status et_gpt_norm(const et_gpt *g, et_real *x, et_real *y, et_real *scale, et_error *error)
{
    const et_rmsnorm f = norm_of(g);
    return et_rmsnorm_forward(&f, rows_of(g, x, f.width), rows_of(g, y, f.width), scale + g->from,
                              error);
}

et_status et_gpt_norm_backward(const et_gpt *g, const et_real *y, const et_real *scale,
                               const et_real *dy, bool accumulate, et_real *dx, et_error *error)
{
    const et_rmsnorm f = norm_of(g);
    return et_rmsnorm_backward(&f, y, scale, dy, accumulate, dx, error);
}

/* ---- attention ---- */

/* Query and key heads are next to each other in the rows of qkv. The first row's position is
 * `from`. */
static et_rope rope_of(const et_gpt *g)
{
    const et_gpt_config *c = &g->config;
    size_t e = c->head_dim;
    return (et_rope){.tokens = g->rows,
                     .heads = c->heads + c->kv_heads,
                     .width = e,
                     .stride = (c->heads + 2 * c->kv_heads) * e,
                     .sequence = c->sequence - g->from,
                     .cosines = rows_of(g, g->cosines, e / 2),
                     .sines = rows_of(g, g->sines, e / 2),
                     .rounding = g->rounding};
}

static et_rmsnorm qk_norm_of(const et_gpt *g)
{
    const et_rope r = rope_of(g);
    return (et_rmsnorm){r.tokens, r.heads, r.width, r.stride, g->config.rms_eps, g->rounding};
}

static et_attention attention_of(const et_gpt *g)
{
    const et_gpt_config *c = &g->config;
    bool whole = g->rows == g->N; /* else a part of one sequence */
    return (et_attention){.engine = c->engine,
                          .B = whole ? c->batch : 1,
                          .T = whole ? c->sequence : g->from + g->rows,
                          .first = g->from,
                          .heads = c->heads,
                          .kv_heads = c->kv_heads,
                          .width = c->head_dim,
                          .workers = g->workers,
                          .rounding = g->rounding};
}

static et_status attention_forward(et_gpt *g, et_gpt_layer *l, et_error *error)
{
    const et_rope rope = rope_of(g);
    const et_rmsnorm qk = qk_norm_of(g);
    const et_attention attention = attention_of(g);
    et_real *qkv = rows_of(g, l->qkv, qk.stride), *scale = rows_of(g, l->qk_scale, qk.heads);
    et_status status;
    status = et_gpt_norm(g, g->x, l->norm1, l->scale1, error);
    if (et_gpt_timed(g, ET_GPT_ROWS, status) != ET_OK) return status;
    status = linear(g, "qkv", &l->w_qkv, l->norm1, l->qkv, error);
    if (et_gpt_timed(g, ET_GPT_PROJECTIONS, status) != ET_OK) return status;
    status = et_rope_forward(&rope, qkv, error);
    if (status == ET_OK) status = et_rmsnorm_forward(&qk, qkv, qkv, scale, error);
    if (et_gpt_timed(g, ET_GPT_ROWS, status) != ET_OK) return status;
    status = et_attention_forward(&attention, l->qkv, l->attended, l->lse, g->room, error);
    if (et_gpt_timed(g, ET_GPT_ATTENTION, status) != ET_OK) return status;
    status = linear(g, "attended", &l->w_o, l->attended, g->y, error);
    if (et_gpt_timed(g, ET_GPT_PROJECTIONS, status) == ET_OK) add_to_stream(g);
    return status;
}

static et_status attention_backward(et_gpt *g, et_gpt_layer *l, et_error *error)
{
    const et_rope rope = rope_of(g);
    const et_rmsnorm qk = qk_norm_of(g);
    const et_attention attention = attention_of(g);
    et_status status =
        linear_backward(g, "attended", &l->w_o, l->attended, g->dx, g->dattended, error);
    if (et_gpt_timed(g, ET_GPT_PROJECTIONS, status) != ET_OK) return status;
    status =
        et_attention_backward(&attention, l->qkv, l->lse, g->dattended, g->dqkv, g->room, error);
    if (et_gpt_timed(g, ET_GPT_ATTENTION_BACKWARD, status) != ET_OK) return status;
    status = et_rmsnorm_backward(&qk, l->qkv, l->qk_scale, g->dqkv, false, g->dqkv, error);
    if (status == ET_OK) status = et_rope_backward(&rope, g->dqkv, error);
    if (et_gpt_timed(g, ET_GPT_ROWS, status) != ET_OK) return status;
    status = linear_backward(g, "qkv", &l->w_qkv, l->norm1, g->dqkv, g->dnormed, error);
    if (et_gpt_timed(g, ET_GPT_PROJECTIONS, status) != ET_OK) return status;
    status = et_gpt_norm_backward(g, l->norm1, l->scale1, g->dnormed, true, g->dx, error);
    return et_gpt_timed(g, ET_GPT_ROWS, status);
}

/* ---- the dense feed-forward layer ---- */

static et_ffn dense_of(const et_gpt *g, const et_gpt_layer *l)
{
    const et_gpt_config *c = &g->config;
    return (et_ffn){.engine = c->engine,
                    .d = c->d_model,
                    .h = c->d_dense,
                    .up = l->w_up.value,
                    .down = l->w_down.value,
                    .rounding = g->rounding};
}

static et_status dense_forward(et_gpt *g, et_gpt_layer *l, et_error *error)
{
    const et_ffn f = dense_of(g, l);
    et_ffn_rows r = {.m = g->rows,
                     .x = rows_of(g, l->norm2, f.d),
                     .H = rows_of(g, l->pre, f.h),
                     .A = rows_of(g, l->act, f.h),
                     .out = rows_of(g, g->y, f.d)};
    et_status status = et_ffn_forward(&f, &r, error);
    et_round(g->rounding, ET_OUTPUTS, "y", r.m * f.d, r.out);
    return status;
}

static et_status dense_backward(et_gpt *g, et_gpt_layer *l, et_error *error)
{
    const et_ffn f = dense_of(g, l);
    et_ffn_rows r = {.m = g->N,
                     .x = l->norm2,
                     .H = l->pre,
                     .A = l->act,
                     .dO = g->dx,
                     .dA = g->dact,
                     .dH = g->dpre,
                     .dx = g->dnormed};
    et_status status = et_ffn_backward(&f, &r, l->w_up.gradient, l->w_down.gradient, NULL, error);
    et_round(g->rounding, ET_OUTPUTS, "dW_up", l->w_up.count, l->w_up.gradient);
    et_round(g->rounding, ET_OUTPUTS, "dW_down", l->w_down.count, l->w_down.gradient);
    et_round(g->rounding, ET_OUTPUTS, "dx", g->N * f.d, g->dnormed);
    return status;
}

/* ---- the Mixture-of-Experts layer: a step of one micro-batch ---- */

static void begin_pass(const et_gpt *g, et_gpt_layer *l)
{
    et_step *s = &l->pass;
    et_step_free(s);
    *s = (et_step){.c = g->config.ffn,
                   .engine = g->config.engine,
                   .in = {.x = rows_of(g, l->norm2, g->config.d_model),
                          .dy = g->dx,
                          .router = l->w_router.value,
                          .up = l->w_up.value,
                          .down = l->w_down.value,
                          .shared_up = l->shared_up.value,
                          .shared_down = l->shared_down.value,
                          .ema = l->ema.value,
                          .bias = l->bias.value},
                   .fwd = l->values,
                   .bwd = g->grads,
                   .rounding = g->rounding};
    s->fwd.y = rows_of(g, g->y, g->config.d_model);
    s->c.eval = g->eval;
    s->c.tokens = g->rows;
    s->c.step = g->progress.steps;
    s->c.ema_updates = g->progress.ema_updates;
}

/* To the sums over a step's micro-batches. */
static void count_routing(et_gpt_layer *l)
{
    const et_step *s = &l->pass;
    for (size_t i = 0; i < s->c.experts; i++) {
        l->load[i] += (et_real)s->assignment.load[i];
        if (s->route.passed) l->passed[i] += (et_real)s->route.passed[i];
        if (s->route.cutoff) l->cutoff[i] += s->route.cutoff[i];
    }
}

static et_status moe_forward(et_gpt *g, et_gpt_layer *l, et_error *error)
{
    begin_pass(g, l);
    et_step *s = &l->pass;
    const et_moe moe = et_step_layer(s);
    et_status status = et_moe_score(&moe, s->in.x, &s->fwd, error);
    if (status != ET_OK) return status;
    for (size_t i = 0; i < moe.N * moe.n; i++)
        if (!isfinite(s->fwd.logits[i])) return et_gpt_not_finite(g, "a router's logit", error);
    if ((status = et_step_route(s, error))) return status;
    et_gpt_timed(g, ET_GPT_ROUTING, ET_OK);
    if ((status = et_moe_forward(&moe, s->in.x, &s->assignment, &s->fwd, error))) return status;
    count_routing(l);
    return ET_OK;
}

/* The losses' coefficients stand for a gradient of 1 times their value; here it is `scale` times.
 * */
static et_status moe_backward(et_gpt *g, et_gpt_layer *l, double scale, et_error *error)
{
    et_step *s = &l->pass;
    const et_moe moe = et_step_layer(s);
    s->bwd.router = l->w_router.gradient;
    s->bwd.up = l->w_up.gradient;
    s->bwd.down = l->w_down.gradient;
    s->bwd.shared_up = l->shared_up.gradient;
    s->bwd.shared_down = l->shared_down.gradient;
    memset(s->bwd.x, 0, g->N * moe.d * sizeof(et_real));
    memset(s->bwd.logits, 0, g->N * moe.n * sizeof(et_real));
    memset(s->bwd.gates, 0, g->N * moe.n * sizeof(et_real));
    s->c.balance_coef *= scale;
    s->c.z_loss_coef *= scale;
    et_status status = et_step_losses(s, error);
    if (status != ET_OK) return status;
    return et_moe_backward(&moe, l->norm2, g->dx, &s->assignment, &s->fwd, &s->bwd, error);
}

/* ---- the layer ---- */

et_status et_gpt_layer_forward(et_gpt *g, et_gpt_layer *l, et_error *error)
{
    et_status status;
    if ((status = attention_forward(g, l, error)) ||
        (status = et_gpt_norm(g, g->x, l->norm2, l->scale2, error)))
        return status;
    et_gpt_timed(g, ET_GPT_ROWS, ET_OK);
    status = l->moe ? moe_forward(g, l, error) : dense_forward(g, l, error);
    if (et_gpt_timed(g, ET_GPT_FEED_FORWARD, status) != ET_OK) return status;
    add_to_stream(g);
    return et_gpt_timed(g, ET_GPT_ROWS, ET_OK);
}

et_status et_gpt_layer_backward(et_gpt *g, et_gpt_layer *l, double scale, et_error *error)
{
    et_status status = l->moe ? moe_backward(g, l, scale, error) : dense_backward(g, l, error);
    if (et_gpt_timed(g, ET_GPT_FEED_FORWARD_BACKWARD, status) != ET_OK) return status;
    status = et_gpt_norm_backward(g, l->norm2, l->scale2, g->dnormed, true, g->dx, error);
    if (et_gpt_timed(g, ET_GPT_ROWS, status) != ET_OK) return status;
    return attention_backward(g, l, error);
}
