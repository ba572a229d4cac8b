/* moe.c: the Mixture-of-Experts layer, forward and backward. See etref/moe.h.
 *
 *     forward    score -> (a routing rule, elsewhere) -> weigh (weigh.c) -> experts -> combine
 *     backward   combine -> experts -> score (with weigh's own backward in it)
 *
 * N tokens, n experts; in the backward pass g->gates is dL/dp and g->logits dL/dr. The bool of
 * et_product says whether the product is added to its target (+=) or replaces it.
 *
 * The rows of an expert's tokens are gathered into one dense matrix, so that an expert is the same
 * feed-forward layer as the dense one (ffn.c); where weights stand on the inputs, these are the rows
 * w x. y and dx are sums over experts: one expert after the other adds to its tokens' rows, each row
 * by one thread: the bits do not depend on threads. The shared expert comes first in y, last in dx; a
 * replica (rounding.h) draws another order.
 *
 * Source: paper (arXiv:2603.11535), Eqs. 1 and 2 and ablation E.4; norm = sum is the usual choice
 * of token-choice models. Left out: dropping of tokens (a rule's business) and any fused kernel.
 */
#include "etref/moe.h"
#include "ref/base/float_environment.h"
#include "ref/base/grid.h"
#include "ref/base/memory.h"
#include "ref/base/threads.h"
#include "ref/base/product.h"
#include "ref/base/sum.h"
#include "ref/layers/layer_arguments.h"
#include "ref/layers/weigh_hidden.h"
#include "ref/layers/rounded_inputs.h"
#include "ref/layers/weigh.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

/* ---- score: r = x W_r', p = gate(r) ---- */

/* Tokens that a gate takes at once: all of them, unless a softmax over tokens takes fewer. */
static size_t tokens_at_once(const et_moe *moe)
{
    return moe->gate == ET_GATE_SOFTMAX_TOKENS ? moe->gate_tokens : moe->N;
}

static et_status score(const et_moe *moe, const et_real *x, et_moe_values *v, et_error *error)
{
    size_t N = moe->N, n = moe->n, d = moe->d, at_once = tokens_at_once(moe);
    et_operand tokens = {et_rows(x, d), ET_ROUTER_OPERANDS, "x", ET_UNSTORED},
               router = {et_transposed(moe->router, d), ET_ROUTER_OPERANDS, "W_r", ET_UNSTORED};
    et_status status =
        et_product(moe->rounding, moe->engine, N, n, d, tokens, router, false, v->logits, n, error);
    if (status != ET_OK) return status;
    et_round(moe->rounding, ET_LOGITS, "r", N * n, v->logits);
    for (size_t t = 0; t < N; t += at_once)
        et_gate_forward(moe->rounding, moe->gate, at_once, n, v->logits + t * n, v->gates + t * n,
                        v->anchor ? v->anchor + t : NULL);
    et_round(moe->rounding, et_stored_as(moe, ET_GATES), "p", N * n, v->gates);
    if (v->anchor) et_round(moe->rounding, et_stored_as(moe, ET_GATES), "p", N, v->anchor);
    return ET_OK;
}

/* ---- experts: f_i(x_t) for every slot, f_shared(x_t) for every token ---- */

/* From `offset` on of an array that only swiglu has, or only a layer with biases. */
#define at(array, offset) ((array) ? (array) + (offset) : NULL)

static et_ffn expert(const et_moe *moe, size_t i)
{
    size_t size = moe->h * moe->d;
    return (et_ffn){.engine = moe->engine,
                    .d = moe->d,
                    .h = moe->h,
                    .up = moe->up + i * size,
                    .down = moe->down + i * size,
                    .rounding = moe->rounding,
                    .activation = moe->activation,
                    .gating = at(moe->gating, i * size),
                    .b_up = at(moe->b_up, i * moe->h),
                    .b_gate = at(moe->b_gate, i * moe->h),
                    .b_down = at(moe->b_down, i * moe->d)};
}

static et_ffn shared_expert(const et_moe *moe)
{
    return (et_ffn){.engine = moe->engine,
                    .d = moe->d,
                    .h = moe->hs,
                    .up = moe->shared_up,
                    .down = moe->shared_down,
                    .rounding = moe->rounding,
                    .activation = moe->activation,
                    .gating = moe->shared_gating,
                    .b_up = moe->shared_b_up,
                    .b_gate = moe->shared_b_gate,
                    .b_down = moe->shared_b_down};
}

static size_t largest_load(const et_assignment *a)
{
    size_t largest = 0;
    for (size_t i = 0; i < a->experts; i++)
        if ((size_t)a->load[i] > largest) largest = (size_t)a->load[i];
    return largest;
}

/* to [m,d] = the rows of x named by tokens[0..m); times w [m] where weights stand on the inputs, and then stored. */
static void gather(const et_moe *moe, size_t m, const et_real *x, const int32_t *tokens,
                   const et_real *w, et_real *to)
{
    size_t d = moe->d;
    ET_BY_THREADS(et_worth_threads(m * d),
                  for (size_t j = 0; j < m; j++)
                      memcpy(to + j * d, x + (size_t)tokens[j] * d, d * sizeof *to));
    if (!moe->weighs_input) return;
    for (size_t j = 0; j < m; j++)
        for (size_t c = 0; c < d; c++) to[j * d + c] *= w[j];
    et_round(moe->rounding, ET_INTERMEDIATES, "wx", m * d, to);
}

/* Two ways to use the threads: each expert's products shared among all of them, or one expert a
 * thread. The second wastes less where there are many small experts, and badly balances a few large
 * ones; so it is taken if the largest load is at most a quarter of a thread's share of the slots. */
static bool one_expert_a_thread(const et_moe *moe, const et_assignment *a)
{
    size_t threads = (size_t)omp_get_max_threads();
    return threads > 1 && et_worth_threads(a->slots * moe->d) &&
           largest_load(a) <= a->slots / (4 * threads);
}

/* Room for `matrices` gathered [largest load, d] matrices for each thread that works on an expert. */
static et_status take_rows(et_real **rows, const et_moe *moe, const et_assignment *a,
                           size_t matrices, et_error *error)
{
    size_t workers = one_expert_a_thread(moe, a) ? (size_t)omp_get_max_threads() : 1;
    void *room;
    et_status status = et_allocate(&room, workers * matrices * largest_load(a) * moe->d,
                                   sizeof(et_real), "gathered rows", error);
    if (status == ET_OK) *rows = room;
    return status;
}

static et_status no_room(et_error *error)
{
    return et_fail(error, ET_ENOMEM, "no memory for an expert's rounded operands");
}

static et_status expert_forward(const et_moe *moe, const et_ffn *f, const et_ffn_rows *r,
                                const et_real *w)
{
    et_status status = et_ffn_forward(f, r, NULL);
    return status == ET_OK && et_weighs_hidden(moe) ? et_weigh_hidden(f, r, w, NULL) : status;
}

/* What is known of an expert's rows; and of all tokens' on their way through the shared one. */
static et_ffn_rows routed_rows(const et_moe *moe, const et_assignment *a, const et_moe_values *v,
                               size_t i, const et_real *x)
{
    size_t first = (size_t)a->expert_offsets[i];
    return (et_ffn_rows){.m = (size_t)a->load[i],
                         .x = x,
                         .H = v->slot_pre + first * moe->h,
                         .A = v->slot_act + first * moe->h,
                         .V = at(v->slot_gate_pre, first * moe->h),
                         .out = v->slot_out + first * moe->d};
}

static et_ffn_rows shared_rows(const et_moe *moe, const et_moe_values *v, const et_real *x)
{
    return (et_ffn_rows){.m = moe->N,
                         .x = x,
                         .H = v->shared_pre,
                         .A = v->shared_act,
                         .V = v->shared_gate_pre,
                         .out = v->shared_out};
}

static et_status experts(const et_moe *moe, const et_real *x, const et_assignment *a,
                         et_moe_values *v, et_error *error)
{
    size_t d = moe->d, most = largest_load(a);
    et_real *room = NULL, *copy = NULL;
    et_status status = et_take_tokens(moe, &x, &copy, error);
    if (status == ET_OK) status = take_rows(&room, moe, a, 1, error);
    if (status != ET_OK) {
        free(copy);
        return status;
    }
    bool failed = false; /* for want of memory: the rest has been checked */
#pragma omp parallel for schedule(dynamic) reduction(|| : failed) if (one_expert_a_thread(moe, a))
    for (size_t i = 0; i < moe->n; i++) {
        size_t first = (size_t)a->expert_offsets[i];
        et_real *gathered = room + (size_t)omp_get_thread_num() * most * d;
        et_ffn f = expert(moe, i);
        et_ffn_rows r = routed_rows(moe, a, v, i, gathered);
        gather(moe, r.m, x, a->slot_token + first, v->slot_weight + first, gathered);
        failed |= expert_forward(moe, &f, &r, v->slot_weight + first) != ET_OK;
    }
    if (moe->hs > 0) {
        et_ffn f = shared_expert(moe);
        et_ffn_rows r = shared_rows(moe, v, x);
        failed |= expert_forward(moe, &f, &r, v->shared_weight) != ET_OK;
    }
    free(room);
    free(copy);
    return failed ? no_room(error) : ET_OK;
}

/* ---- combine: y_t = s_t f_shared(x_t) + sum_i z_ti w_ti f_i(x_t); or f_i(w x) as it is ---- */

static void combine(const et_moe *moe, const et_assignment *a, et_moe_values *v)
{
    const et_rounding *r = moe->rounding;
    size_t N = moe->N, d = moe->d;
    const et_order order = et_order_of(r, "y", moe->n);
    bool shared = moe->hs > 0, shared_last = order.way == ET_BACKWARDS;
    /* -0 + v is v, also where v is -0: the first share as it is. */
#pragma omp parallel for if (et_worth_threads(N * d))
    for (size_t i = 0; i < N * d; i++) v->y[i] = shared ? -(et_real)0 : 0;
    if (shared && !shared_last)
        et_add_rows(r, ET_SHARES, N, d, v->shared_weight, v->shared_out, NULL, v->y);
    for (size_t k = 0; k < moe->n; k++) {
        size_t i = et_order_at(&order, k), first = (size_t)a->expert_offsets[i];
        et_add_rows(r, ET_SHARES, (size_t)a->load[i], d,
                    moe->weighs_input ? NULL : v->slot_weight + first, v->slot_out + first * d,
                    a->slot_token + first, v->y);
    }
    if (shared && shared_last)
        et_add_rows(r, ET_SHARES, N, d, v->shared_weight, v->shared_out, NULL, v->y);
    et_round(r, ET_OUTPUTS, "y", N * d, v->y);
}

/* ---- backward ----
 *
 * The assignment z is piecewise constant in x and W_r, so nothing flows through it, nor through
 * n_t. What is left of y_tc = s_t f_sh,c(x_t) + sum_i z_ti w_ti f_i,c(x_t) is a sum of products:
 *
 *     dL/df_i,c(x_t) = w_ti dy_tc             dO = w dy, a row for each slot
 *     dL/dw_ti       = sum_c dy_tc f_i,c(x_t) dw = <dy_t, f_i(x_t)>, the UNWEIGHTED output
 *     dL/df_sh,c     = s_t dy_tc              with the final s_t
 *     dL/ds_t        = <dy_t, f_shared(x_t)>
 *
 * Where weights stand on the inputs, X_tc = w_ti x_tc is what the expert sees and f_i(X) is what y takes, so
 *
 *     dL/df_i,c      = dy_tc                  dO = dy
 *     dL/dX_tc       = dX = dH W_up (+ dV W_gate), as ffn.c has it; dW_up += dH' X
 *     dL/dw_ti       = sum_c dX_tc x_tc       dw = <dX_t, x_t>, the UNWEIGHTED input
 *     dL/dx_tc      += w_ti dX_tc
 *
 * From w to p: weigh.c.
 */

/* For m rows f [m,d] that entered y with weights w [m]: dw [m] and dO [m,d] out; w NULL: with weights of 1, and no dw. Row j
 * belongs to token tokens[j], or to token j where tokens is NULL. */
static et_status weighted_rows_backward(const et_rounding *r, size_t m, size_t d, const et_real *dy,
                                        const int32_t *tokens, const et_real *w, const et_real *f,
                                        et_real *dw, et_real *dO, et_error *error)
{
    et_status status = w ? et_dots(r, "dw", m, d, dy, tokens, f, dw, error) : ET_OK;
    if (status != ET_OK) return status;
    if (w) et_round(r, ET_GATES, "dw", m, dw);
#pragma omp parallel for if (et_worth_threads(m * d))
    for (size_t j = 0; j < m; j++) {
        const et_real *row = dy + (tokens ? (size_t)tokens[j] : j) * d;
        for (size_t c = 0; c < d; c++) dO[j * d + c] = w ? w[j] * row[c] : row[c];
    }
    et_round(r, ET_INTERMEDIATES, "dO", m * d, dO);
    return ET_OK;
}

static et_status combine_backward(const et_moe *moe, const et_real *dy, const et_assignment *a,
                                  const et_moe_values *v, et_moe_grads *g, et_error *error)
{
    const et_rounding *r = moe->rounding;
    size_t N = moe->N, d = moe->d;
    et_real *room = NULL;
    et_status status = et_take_upstream(moe, &dy, &room, error);
    if (status == ET_OK)
        status = weighted_rows_backward(r, a->slots, d, dy, a->slot_token,
                                        moe->weighs_input ? NULL : v->slot_weight, v->slot_out,
                                        g->slot_weight, g->slot_out, error);
    if (status == ET_OK && moe->hs > 0)
        status = weighted_rows_backward(r, N, d, dy, NULL, v->shared_weight, v->shared_out,
                                        g->shared_weight, g->shared_out, error);
    free(room);
    return status;
}

/* Where a product that is a share of dx goes: a golden's adds to g->x itself; a kernel's makes an array
 * *room, which add_share adds. */
static et_status take_share(const et_moe *moe, const et_moe_grads *g, et_real **share,
                            et_real **room, et_error *error)
{
    void *apart;
    *share = g->x;
    *room = NULL;
    if (!et_rounds(moe->rounding)) return ET_OK;
    et_status status =
        et_allocate(&apart, moe->N * moe->d, sizeof(et_real), "a share of dx", error);
    if (status == ET_OK) *share = *room = apart;
    return status;
}

static void add_share(const et_moe *moe, et_real *room, et_moe_grads *g)
{
    if (room != NULL) et_add_rows(moe->rounding, ET_SHARES, moe->N, moe->d, NULL, room, NULL, g->x);
    free(room);
}

/* ---- dW, micro-batch by micro-batch where a kernel stores it in between ---- */

static bool stores_sums(const et_moe *moe)
{
    const et_profile *p = moe->rounding ? moe->rounding->profile : NULL;
    return p && moe->gate_tokens > 0 && moe->gate_tokens < moe->N &&
           et_place_bits(p, ET_DW_SUMS) < et_place_bits(p, ET_ACCUMULATOR);
}

/* The end of the run of rows from `from` on that are of one micro-batch. */
static size_t end_of_batch(const et_moe *moe, const int32_t *tokens, size_t from, size_t m)
{
    size_t to = from, batch = 0;
    for (; to < m; to++) {
        size_t token = tokens ? (size_t)tokens[to] : to;
        if (to > from && token / moe->gate_tokens != batch) break;
        batch = token / moe->gate_tokens;
    }
    return to;
}

/* One expert's rows, whose they are (NULL: row j is token j), and their weights. */
typedef struct expert_rows {
    et_ffn_rows r;
    const int32_t *tokens;
    const et_real *w; /* [m] */
    et_real *dw;      /* [m] */
} expert_rows;

/* An expert's weight gradients; NULL: not wanted. */
typedef struct gradients {
    et_real *up, *down, *gating, *b_up, *b_gate, *b_down;
} gradients;

static et_ffn_rows part_of(const et_ffn *f, const et_ffn_rows *all, size_t from, size_t to)
{
    size_t d = from * f->d, h = from * f->h;
    et_ffn_rows part = *all;
    part.m = to - from;
    part.x += d, part.dO += d, part.dx += d;
    part.H += h, part.A += h, part.dA += h, part.dH += h;
    part.V = at(part.V, h), part.dV = at(part.dV, h);
    return part;
}

static et_status expert_backward(const et_moe *moe, const et_ffn *f, const expert_rows *e,
                                 const gradients *g, et_error *error)
{
    size_t size = f->h * f->d, biases = 2 * f->h + f->d;
    void *room;
    if (!stores_sums(moe)) {
        bool weighs = et_weighs_hidden(moe);
        et_status first =
            et_ffn_backward(f, &e->r, g->up, weighs ? NULL : g->down, g->gating, error);
        if (first == ET_OK && weighs)
            first = et_weigh_hidden_backward(f, &e->r, e->w, e->dw, g->down, error);
        return first == ET_OK
                   ? et_ffn_bias_backward(f, &e->r, g->b_up, g->b_gate, g->b_down, error)
                   : first;
    }
    et_status status =
        et_allocate(&room, 3 * size + biases, sizeof(et_real), "a share of dW", error);
    if (status != ET_OK) return status;
    et_real *up = room, *down = up + size, *gating = down + size, *b_up = gating + size,
            *b_gate = b_up + f->h, *b_down = b_gate + f->h;
    for (size_t from = 0, to; status == ET_OK && from < e->r.m; from = to) {
        to = end_of_batch(moe, e->tokens, from, e->r.m);
        et_ffn_rows part = part_of(f, &e->r, from, to);
        memset(room, 0, (3 * size + biases) * sizeof(et_real));
        status = et_ffn_backward(f, &part, up, down, gating, error);
        if (status == ET_OK) status = et_ffn_bias_backward(f, &part, b_up, b_gate, b_down, error);
        et_add_rows(moe->rounding, ET_DW_SUMS, f->h, f->d, NULL, up, NULL, g->up);
        et_add_rows(moe->rounding, ET_DW_SUMS, f->d, f->h, NULL, down, NULL, g->down);
        if (f->activation == ET_SWIGLU)
            et_add_rows(moe->rounding, ET_DW_SUMS, f->h, f->d, NULL, gating, NULL, g->gating);
        if (g->b_up) et_add_rows(moe->rounding, ET_DW_SUMS, 1, f->h, NULL, b_up, NULL, g->b_up);
        if (g->b_gate)
            et_add_rows(moe->rounding, ET_DW_SUMS, 1, f->h, NULL, b_gate, NULL, g->b_gate);
        if (g->b_down)
            et_add_rows(moe->rounding, ET_DW_SUMS, 1, f->d, NULL, b_down, NULL, g->b_down);
    }
    free(room);
    return status;
}

/* dW_r += dr' x */
static et_status router_backward(const et_moe *moe, const et_real *x, et_moe_grads *g,
                                 et_error *error)
{
    size_t N = moe->N, n = moe->n, d = moe->d;
    bool apart = stores_sums(moe);
    void *room = NULL;
    et_status status = ET_OK;
    if (apart) status = et_allocate(&room, n * d, sizeof(et_real), "a share of dW", error);
    et_real *share = apart ? room : g->router;
    for (size_t from = 0, to; status == ET_OK && from < N; from = to) {
        to = apart ? end_of_batch(moe, NULL, from, N) : N;
        et_matrix rows = et_rows(x + from * d, d), dr = et_transposed(g->logits + from * n, n);
        status = et_product(moe->rounding, moe->engine, n, d, to - from,
                            (et_operand){dr, ET_ROUTER_OPERANDS, "dr", ET_LOGITS},
                            (et_operand){rows, ET_ROUTER_OPERANDS, "x", ET_UNSTORED}, !apart, share,
                            d, error);
        if (apart) et_add_rows(moe->rounding, ET_DW_SUMS, n, d, NULL, share, NULL, g->router);
    }
    free(room);
    return status;
}

/* An expert's weight gradient, or NULL. */
static et_real *wanted(const et_moe_grads *g, size_t expert, et_real *gradient)
{
    return g->wanted == NULL || g->wanted[expert] ? gradient : NULL;
}

static et_status shared_backward(const et_moe *moe, const et_real *x, const et_moe_values *v,
                                 et_moe_grads *g, et_error *error)
{
    et_real *share, *room;
    if (moe->hs == 0) return ET_OK;
    et_status status = take_share(moe, g, &share, &room, error);
    if (status != ET_OK) return status;
    et_ffn f = shared_expert(moe);
    expert_rows rows = {.r = shared_rows(moe, v, x), .w = v->shared_weight, .dw = g->shared_weight};
    rows.r.dO = g->shared_out;
    rows.r.dA = g->shared_act;
    rows.r.dH = g->shared_pre;
    rows.r.dV = g->shared_gate_pre;
    rows.r.dx = share;
    rows.r.accumulate_dx = room == NULL;
    const gradients dW = {wanted(g, moe->n, g->shared_up), wanted(g, moe->n, g->shared_down),
                          wanted(g, moe->n, g->shared_gating),
                          wanted(g, moe->n, g->shared_b_up),
                          wanted(g, moe->n, g->shared_b_gate),
                          wanted(g, moe->n, g->shared_b_down)};
    status = expert_backward(moe, &f, &rows, &dW, error);
    add_share(moe, room, g);
    return status;
}

/* Where weights stand on the inputs: from dX to dw = <dX, x>, and to the shares of dx, w dX. */
static et_status input_weights_backward(const et_moe *moe, const et_real *x, const expert_rows *e,
                                        et_error *error)
{
    const et_rounding *r = moe->rounding;
    if (!moe->weighs_input) return ET_OK;
    et_round(r, ET_INTERMEDIATES, "dX", e->r.m * moe->d, e->r.dx);
    et_status status = et_dots(r, "dw", e->r.m, moe->d, x, e->tokens, e->r.dx, e->dw, error);
    if (status == ET_OK) et_round(r, ET_GATES, "dw", e->r.m, e->dw);
    return status;
}

static et_status routed_backward(const et_moe *moe, const et_order *order, const et_real *x,
                                 const et_assignment *a, const et_moe_values *v, et_moe_grads *g,
                                 et_error *error)
{
    size_t d = moe->d, h = moe->h, size = h * d, most = largest_load(a);
    et_real *room;
    et_status status = take_rows(&room, moe, a, 2, error);
    if (status != ET_OK) return status;
    bool failed = false;
#pragma omp parallel for ordered schedule(dynamic)                                                 \
    reduction(||                                                                                   \
              : failed) if (one_expert_a_thread(moe, a))
    for (size_t k = 0; k < moe->n; k++) {
        size_t i = et_order_at(order, k), first = (size_t)a->expert_offsets[i];
        et_real *gathered = room + (size_t)omp_get_thread_num() * 2 * most * d;
        et_ffn f = expert(moe, i);
        expert_rows e = {.r = routed_rows(moe, a, v, i, gathered),
                         .tokens = a->slot_token + first,
                         .w = v->slot_weight + first,
                         .dw = g->slot_weight + first};
        gather(moe, e.r.m, x, e.tokens, e.w, gathered);
        e.r.dO = g->slot_out + first * d;
        e.r.dA = g->slot_act + first * h;
        e.r.dH = g->slot_pre + first * h;
        e.r.dV = at(g->slot_gate_pre, first * h);
        e.r.dx = gathered + most * d;
        const gradients dW = {wanted(g, i, g->up + i * size), wanted(g, i, g->down + i * size),
                              wanted(g, i, at(g->gating, i * size)),
                              wanted(g, i, at(g->b_up, i * h)),
                              wanted(g, i, at(g->b_gate, i * h)),
                              wanted(g, i, at(g->b_down, i * d))};
        failed |= expert_backward(moe, &f, &e, &dW, NULL) != ET_OK;
        failed |= input_weights_backward(moe, x, &e, NULL) != ET_OK;
        /* Expert after expert, whoever is ready first. */
#pragma omp ordered
        et_add_rows(moe->rounding, ET_SHARES, e.r.m, d, moe->weighs_input ? e.w : NULL, e.r.dx,
                    e.tokens, g->x);
    }
    free(room);
    return failed ? no_room(error) : ET_OK;
}

static void round_bias(const et_rounding *r, const char *site, size_t count, et_real *db)
{
    if (db != NULL) et_round(r, ET_OUTPUTS, site, count, db);
}

static et_status experts_backward(const et_moe *moe, const et_real *x, const et_assignment *a,
                                  const et_moe_values *v, et_moe_grads *g, et_error *error)
{
    const et_rounding *r = moe->rounding;
    const et_order order = et_order_of(r, "dx", moe->n);
    bool shared_first = order.way == ET_BACKWARDS;
    et_real *copy = NULL;
    et_status status = et_take_tokens(moe, &x, &copy, error);
    if (status == ET_OK && shared_first) status = shared_backward(moe, x, v, g, error);
    if (status == ET_OK) status = routed_backward(moe, &order, x, a, v, g, error);
    if (status == ET_OK && !shared_first) status = shared_backward(moe, x, v, g, error);
    free(copy);
    if (status != ET_OK) return status;
    /* A kernel adds up in the accumulator, and stores the sums. */
    et_round(r, ET_OUTPUTS, "dW_up", moe->n * moe->h * moe->d, g->up);
    et_round(r, ET_OUTPUTS, "dW_down", moe->n * moe->h * moe->d, g->down);
    et_round(r, ET_OUTPUTS, "dW_up", moe->hs * moe->d, g->shared_up);
    et_round(r, ET_OUTPUTS, "dW_down", moe->hs * moe->d, g->shared_down);
    if (moe->activation == ET_SWIGLU) {
        et_round(r, ET_OUTPUTS, "dW_gate", moe->n * moe->h * moe->d, g->gating);
        et_round(r, ET_OUTPUTS, "dW_gate", moe->hs * moe->d, g->shared_gating);
    }
    round_bias(r, "db_up", moe->n * moe->h, g->b_up);
    round_bias(r, "db_gate", moe->n * moe->h, g->b_gate);
    round_bias(r, "db_down", moe->n * moe->d, g->b_down);
    round_bias(r, "db_up", moe->hs, g->shared_b_up);
    round_bias(r, "db_gate", moe->hs, g->shared_b_gate);
    round_bias(r, "db_down", moe->d, g->shared_b_down);
    return ET_OK;
}

/* From dw and the losses' dp and dr to dr, and then r = x W_r' gives
 *     dW_r += dr' x        dx += dr W_r */
static et_status score_backward(const et_moe *moe, const et_real *x, const et_assignment *a,
                                const et_moe_values *v, et_moe_grads *g, et_error *error)
{
    const et_rounding *rounding = moe->rounding;
    size_t N = moe->N, n = moe->n, d = moe->d, at_once = tokens_at_once(moe);
    void *room = NULL;
    et_status status = ET_OK;
    if (moe->anchor_weighs_shared)
        status = et_allocate(&room, N, sizeof(et_real), "anchor gradient", error);
    if (status != ET_OK) return status;
    et_real *danchor = room; /* da_t0 = ds_t (over n_t under fanout), or NULL */
    et_grid grid;
    const et_grid *q = et_grid_in(&grid, rounding, ET_GATE_ARITHMETIC, "gate");
#pragma omp parallel for if (et_worth_threads(N * n))
    for (size_t t = 0; t < N; t++) {
        et_weigh_token_backward(moe, a, v, t, q, g);
        if (danchor)
            danchor[t] = (et_real)et_over(q, g->shared_weight[t], et_shared_divisor(moe, a, t));
    }
    et_pass(rounding, "dp", N * n, g->gates);
    for (size_t t = 0; t < N; t += at_once)
        et_gate_backward(rounding, moe->gate, at_once, n, v->logits + t * n, v->gates + t * n,
                         v->anchor ? v->anchor + t : NULL, g->gates + t * n,
                         danchor ? danchor + t : NULL, g->logits + t * n);
    free(room);
    et_round(rounding, et_stored_as(moe, ET_LOGITS), "dr", N * n, g->logits);
    et_operand router = {et_rows(moe->router, d), ET_ROUTER_OPERANDS, "W_r", ET_UNSTORED},
               dr = {et_rows(g->logits, n), ET_ROUTER_OPERANDS, "dr", ET_LOGITS};
    et_real *share, *apart;
    if ((status = router_backward(moe, x, g, error)) ||
        (status = take_share(moe, g, &share, &apart, error)))
        return status;
    status = et_product(rounding, moe->engine, N, d, n, dr, router, apart == NULL, share, d, error);
    add_share(moe, apart, g);
    et_round(rounding, ET_OUTPUTS, "dW_r", n * d, g->router);
    et_round(rounding, ET_OUTPUTS, "dx", N * d, g->x);
    return status;
}

/* ---- the public functions: what a caller brings is checked, then the phases above ---- */

/* `name`: of the rows that the phase takes, x or dy; NULL: it takes none. */
static et_status check_forward(const et_moe *moe, const et_assignment *a, const et_moe_values *v,
                               const char *name, const et_real *rows, et_error *error)
{
    et_status status = et_moe_check(moe, error);
    if (status == ET_OK) status = et_moe_check_values(moe, a, v, error);
    return status == ET_OK && name ? et_moe_check_tokens(moe, name, rows, error) : status;
}

static et_status check_backward(const et_moe *moe, const et_assignment *a, const et_moe_values *v,
                                const et_moe_grads *g, const char *name, const et_real *rows,
                                et_error *error)
{
    et_status status = check_forward(moe, a, v, name, rows, error);
    return status == ET_OK ? et_moe_check_grads(moe, a, g, error) : status;
}

et_status et_moe_score(const et_moe *moe, const et_real *x, et_moe_values *v, et_error *error)
{
    ET_ARITHMETIC;
    et_status status;
    if ((status = et_moe_check(moe, error)) || (status = et_moe_check_tokens(moe, "x", x, error)) ||
        (status = et_moe_check_scores(moe, v, error)))
        return status;
    return score(moe, x, v, error);
}

et_status et_moe_weigh(const et_moe *moe, const et_assignment *a, et_moe_values *v, et_error *error)
{
    ET_ARITHMETIC;
    et_status status = check_forward(moe, a, v, NULL, NULL, error);
    if (status == ET_OK) et_weigh(moe, a, v);
    return status;
}

et_status et_moe_experts(const et_moe *moe, const et_real *x, const et_assignment *a,
                         et_moe_values *v, et_error *error)
{
    ET_ARITHMETIC;
    et_status status = check_forward(moe, a, v, "x", x, error);
    return status == ET_OK ? experts(moe, x, a, v, error) : status;
}

et_status et_moe_combine(const et_moe *moe, const et_assignment *a, et_moe_values *v,
                         et_error *error)
{
    ET_ARITHMETIC;
    et_status status = check_forward(moe, a, v, NULL, NULL, error);
    if (status == ET_OK) combine(moe, a, v);
    return status;
}

et_status et_moe_forward(const et_moe *moe, const et_real *x, const et_assignment *a,
                         et_moe_values *v, et_error *error)
{
    ET_ARITHMETIC;
    et_status status = check_forward(moe, a, v, "x", x, error);
    if (status != ET_OK) return status;
    et_weigh(moe, a, v);
    status = experts(moe, x, a, v, error);
    if (status == ET_OK) combine(moe, a, v);
    return status;
}

et_status et_moe_combine_backward(const et_moe *moe, const et_real *dy, const et_assignment *a,
                                  const et_moe_values *v, et_moe_grads *g, et_error *error)
{
    ET_ARITHMETIC;
    et_status status = check_backward(moe, a, v, g, "dy", dy, error);
    return status == ET_OK ? combine_backward(moe, dy, a, v, g, error) : status;
}

et_status et_moe_experts_backward(const et_moe *moe, const et_real *x, const et_assignment *a,
                                  const et_moe_values *v, et_moe_grads *g, et_error *error)
{
    ET_ARITHMETIC;
    et_status status = check_backward(moe, a, v, g, "x", x, error);
    return status == ET_OK ? experts_backward(moe, x, a, v, g, error) : status;
}

et_status et_moe_score_backward(const et_moe *moe, const et_real *x, const et_assignment *a,
                                const et_moe_values *v, et_moe_grads *g, et_error *error)
{
    ET_ARITHMETIC;
    et_status status = check_backward(moe, a, v, g, "x", x, error);
    return status == ET_OK ? score_backward(moe, x, a, v, g, error) : status;
}

et_status et_moe_backward(const et_moe *moe, const et_real *x, const et_real *dy,
                          const et_assignment *a, const et_moe_values *v, et_moe_grads *g,
                          et_error *error)
{
    ET_ARITHMETIC;
    et_status status;
    if ((status = check_backward(moe, a, v, g, "x", x, error)) ||
        (status = et_moe_check_tokens(moe, "dy", dy, error)) ||
        (status = combine_backward(moe, dy, a, v, g, error)) ||
        (status = experts_backward(moe, x, a, v, g, error)))
        return status;
    return score_backward(moe, x, a, v, g, error);
}
