/* moe.c: the Mixture-of-Experts layer, forward and backward. See etref/moe.h.
 *
 *     forward    score -> (a routing rule, elsewhere) -> weigh -> experts -> combine
 *     backward   combine -> experts -> score (with weigh's own backward in it)
 *
 * N tokens, n experts; in the backward pass g->gates is dL/dp and g->logits dL/dr. The bool of
 * et_matmul says whether the product is added to its target (+=) or replaces it.
 *
 * The rows of an expert's tokens are gathered into one dense matrix, so that an expert is the same
 * feed-forward layer as the dense one (ffn.c). Everything that is summed over a token's slots is
 * summed in the order of token_slots, by one thread per token: the bits do not depend on threads.
 *
 * Source: paper (arXiv:2603.11535), Eqs. 1 and 2 and ablation E.4; norm = sum is the usual choice
 * of token-choice models. Left out: dropping of tokens (a rule's business) and any fused kernel.
 */
#include "etref/moe.h"
#include "ref/base/arithmetic.h"
#include "ref/base/memory.h"
#include "ref/base/parallel.h"
#include "ref/base/product.h"
#include "ref/layers/check.h"

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
    et_operand tokens = {et_rows(x, d), "x"}, router = {et_transposed(moe->router, d), "W_r"};
    et_status status =
        et_product(moe->rounding, moe->engine, N, n, d, tokens, router, false, v->logits, n, error);
    if (status != ET_OK) return status;
    et_round(moe->rounding, ET_LOGITS, "r", N * n, v->logits);
    for (size_t t = 0; t < N; t += at_once)
        et_gate_forward(moe->gate, at_once, n, v->logits + t * n, v->gates + t * n,
                        v->anchor ? v->anchor + t : NULL);
    et_round(moe->rounding, ET_GATES, "p", N * n, v->gates);
    if (v->anchor) et_round(moe->rounding, ET_GATES, "p", N, v->anchor);
    return ET_OK;
}

/* ---- weigh: from gate values to the weights w and s with which outputs enter y ---- */

/* n_t, the fanout with the shared expert counted. */
static et_real fanout(const et_moe *moe, const et_assignment *a, size_t t)
{
    return (et_real)(a->fanout[t] + (moe->hs > 0 ? 1 : 0));
}

/* What token t's gate values are divided by: 1, n_t or sum_j z_tj p_tj. 0 only where every weight
 * of the token is 0 anyway: no expert at all, or only gate values of 0. */
static et_real divisor(const et_moe *moe, const et_assignment *a, const et_moe_values *v, size_t t)
{
    if (moe->norm == ET_NORM_NONE) return 1;
    if (moe->norm == ET_NORM_FANOUT) return fanout(moe, a, t);
    et_real sum = 0;
    for (int32_t j = a->token_offsets[t]; j < a->token_offsets[t + 1]; j++)
        sum += v->gates[t * moe->n + (size_t)a->slot_expert[a->token_slots[j]]];
    return sum;
}

/* What s_t is divided by: n_t under fanout, at least 1 since the shared expert counts; else 1. */
static et_real shared_divisor(const et_moe *moe, const et_assignment *a, size_t t)
{
    return moe->norm == ET_NORM_FANOUT ? fanout(moe, a, t) : 1;
}

static void weigh(const et_moe *moe, const et_assignment *a, et_moe_values *v)
{
#pragma omp parallel for if (et_worth_threads(moe->N * moe->n))
    for (size_t t = 0; t < moe->N; t++) {
        et_real divide_by = divisor(moe, a, v, t);
        for (int32_t j = a->token_offsets[t]; j < a->token_offsets[t + 1]; j++) {
            int32_t slot = a->token_slots[j];
            et_real p = v->gates[t * moe->n + (size_t)a->slot_expert[slot]];
            v->slot_weight[slot] = divide_by != 0 ? p / divide_by : 0;
        }
        if (moe->hs > 0) {
            et_real s = moe->anchor_weighs_shared ? v->anchor[t] : moe->shared_constant;
            v->shared_weight[t] = s / shared_divisor(moe, a, t);
        }
    }
    et_round(moe->rounding, ET_GATES, "w", a->slots, v->slot_weight);
    if (moe->hs > 0) et_round(moe->rounding, ET_GATES, "w", moe->N, v->shared_weight);
}

/* ---- experts: f_i(x_t) for every slot, f_shared(x_t) for every token ---- */

static et_ffn expert(const et_moe *moe, size_t i)
{
    size_t size = moe->h * moe->d;
    return (et_ffn){moe->engine,          moe->d,       moe->h, moe->up + i * size,
                    moe->down + i * size, moe->rounding};
}

static et_ffn shared_expert(const et_moe *moe)
{
    return (et_ffn){moe->engine, moe->d, moe->hs, moe->shared_up, moe->shared_down, moe->rounding};
}

static size_t largest_load(const et_assignment *a)
{
    size_t largest = 0;
    for (size_t i = 0; i < a->experts; i++)
        if ((size_t)a->load[i] > largest) largest = (size_t)a->load[i];
    return largest;
}

/* to [m,d] = the rows of x named by tokens[0..m). */
static void gather(size_t m, size_t d, const et_real *x, const int32_t *tokens, et_real *to)
{
#pragma omp parallel for if (et_worth_threads(m * d))
    for (size_t j = 0; j < m; j++) memcpy(to + j * d, x + (size_t)tokens[j] * d, d * sizeof *to);
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

static et_status experts(const et_moe *moe, const et_real *x, const et_assignment *a,
                         et_moe_values *v, et_error *error)
{
    size_t d = moe->d, h = moe->h, most = largest_load(a);
    et_real *room;
    et_status status = take_rows(&room, moe, a, 1, error);
    if (status != ET_OK) return status;
    bool failed = false; /* for want of memory: the rest has been checked */
#pragma omp parallel for schedule(dynamic) reduction(|| : failed) if (one_expert_a_thread(moe, a))
    for (size_t i = 0; i < moe->n; i++) {
        size_t first = (size_t)a->expert_offsets[i], m = (size_t)a->load[i];
        et_real *rows = room + (size_t)omp_get_thread_num() * most * d;
        et_ffn f = expert(moe, i);
        gather(m, d, x, a->slot_token + first, rows);
        failed |= et_ffn_forward(&f, m, rows, v->slot_pre + first * h, v->slot_act + first * h,
                                 v->slot_out + first * d, NULL) != ET_OK;
    }
    if (moe->hs > 0) {
        et_ffn f = shared_expert(moe);
        failed |= et_ffn_forward(&f, moe->N, x, v->shared_pre, v->shared_act, v->shared_out,
                                 NULL) != ET_OK;
    }
    free(room);
    return failed ? no_room(error) : ET_OK;
}

/* ---- combine: y_t = s_t f_shared(x_t) + sum_i z_ti w_ti f_i(x_t) ---- */

/* to = w * row. */
static void scale(size_t d, et_real w, const et_real *row, et_real *to)
{
    for (size_t c = 0; c < d; c++) to[c] = w * row[c];
}

static void combine(const et_moe *moe, const et_assignment *a, et_moe_values *v)
{
    size_t d = moe->d;
#pragma omp parallel for if (et_worth_threads(moe->N * d))
    for (size_t t = 0; t < moe->N; t++) {
        et_real *y = v->y + t * d;
        if (moe->hs > 0)
            scale(d, v->shared_weight[t], v->shared_out + t * d, y);
        else
            memset(y, 0, d * sizeof *y);
        for (int32_t j = a->token_offsets[t]; j < a->token_offsets[t + 1]; j++) {
            size_t slot = (size_t)a->token_slots[j];
            const et_real w = v->slot_weight[slot], *out = v->slot_out + slot * d;
            for (size_t c = 0; c < d; c++) y[c] += w * out[c];
        }
    }
    et_round(moe->rounding, ET_OUTPUTS, "y", moe->N * d, v->y);
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
 * From w to p:
 *     none     w = p                dp = dw
 *     fanout   w = p / n_t          dp = dw / n_t
 *     sum      w = p / T, T = sum_j p_j over the token's slots. dw_j/dp_i = [i = j]/T - p_j/T^2, so
 *              dp_i = dw_i/T - sum_j dw_j p_j/T^2 = (dw_i - sum_j w_j dw_j) / T
 * and off the slots dp = 0.
 */

/* Rows whose sums are taken side by side. Each is one chain of additions, in order, and an addition waits
 * for the one before; other rows' are what the processor can do meanwhile. */
enum { TOGETHER = 4 };

/* For m rows f [m,d] that entered y with weights w [m]: dw [m] and dO [m,d] out. Row j belongs to token
 * tokens[j], or to token j where tokens is NULL. */
static void weighted_rows_backward(size_t m, size_t d, const et_real *dy, const int32_t *tokens,
                                   const et_real *w, const et_real *f, et_real *dw, et_real *dO)
{
#pragma omp parallel for if (et_worth_threads(m * d))
    for (size_t first = 0; first < m; first += TOGETHER) {
        size_t rows = m - first < TOGETHER ? m - first : TOGETHER;
        const et_real *upstream[TOGETHER], *out[TOGETHER];
        et_real sums[TOGETHER] = {0};
        for (size_t j = 0; j < TOGETHER; j++) {
            size_t row = first + (j < rows ? j : 0); /* the last ones may be fewer */
            upstream[j] = dy + (tokens ? (size_t)tokens[row] : row) * d;
            out[j] = f + row * d;
        }
        for (size_t c = 0; c < d; c++)
            for (size_t j = 0; j < TOGETHER; j++) sums[j] += upstream[j][c] * out[j][c];
        for (size_t j = 0; j < rows; j++) {
            dw[first + j] = sums[j];
            scale(d, w[first + j], upstream[j], dO + (first + j) * d);
        }
    }
}

static void combine_backward(const et_moe *moe, const et_real *dy, const et_assignment *a,
                             const et_moe_values *v, et_moe_grads *g)
{
    const et_rounding *r = moe->rounding;
    weighted_rows_backward(a->slots, moe->d, dy, a->slot_token, v->slot_weight, v->slot_out,
                           g->slot_weight, g->slot_out);
    et_round(r, ET_GATES, "dw", a->slots, g->slot_weight);
    et_round(r, ET_INTERMEDIATES, "dO", a->slots * moe->d, g->slot_out);
    if (moe->hs == 0) return;
    weighted_rows_backward(moe->N, moe->d, dy, NULL, v->shared_weight, v->shared_out,
                           g->shared_weight, g->shared_out);
    et_round(r, ET_GATES, "dw", moe->N, g->shared_weight);
    et_round(r, ET_INTERMEDIATES, "dO", moe->N * moe->d, g->shared_out);
}

/* to[token of row j] += rows[j]. An expert meets a token once, so the rows go to different places. */
static void scatter_add(size_t m, size_t d, const et_real *rows, const int32_t *tokens, et_real *to)
{
#pragma omp parallel for if (et_worth_threads(m * d))
    for (size_t j = 0; j < m; j++)
        for (size_t c = 0; c < d; c++) to[(size_t)tokens[j] * d + c] += rows[j * d + c];
}

/* An expert's weight gradient, or NULL. */
static et_real *wanted(const et_moe_grads *g, size_t expert, et_real *gradient)
{
    return g->wanted == NULL || g->wanted[expert] ? gradient : NULL;
}

static et_status experts_backward(const et_moe *moe, const et_real *x, const et_assignment *a,
                                  const et_moe_values *v, et_moe_grads *g, et_error *error)
{
    size_t d = moe->d, h = moe->h, size = h * d, most = largest_load(a);
    et_real *room;
    et_status status = take_rows(&room, moe, a, 2, error);
    if (status != ET_OK) return status;
    bool failed = false;
#pragma omp parallel for ordered schedule(dynamic)                                                 \
    reduction(||                                                                                   \
              : failed) if (one_expert_a_thread(moe, a))
    for (size_t i = 0; i < moe->n; i++) {
        size_t first = (size_t)a->expert_offsets[i], m = (size_t)a->load[i];
        et_real *rows = room + (size_t)omp_get_thread_num() * 2 * most * d,
                *drows = rows + most * d;
        et_ffn f = expert(moe, i);
        gather(m, d, x, a->slot_token + first, rows);
        failed |= et_ffn_backward(&f, m, rows, v->slot_pre + first * h, v->slot_act + first * h,
                                  g->slot_out + first * d, g->slot_act + first * h,
                                  g->slot_pre + first * h, wanted(g, i, g->up + i * size),
                                  wanted(g, i, g->down + i * size), false, drows, NULL) != ET_OK;
        /* Expert after expert, whoever is ready first: a token's rows are added in slot order. */
#pragma omp ordered
        scatter_add(m, d, drows, a->slot_token + first, g->x);
    }
    if (moe->hs > 0) {
        et_ffn f = shared_expert(moe);
        failed |= et_ffn_backward(&f, moe->N, x, v->shared_pre, v->shared_act, g->shared_out,
                                  g->shared_act, g->shared_pre, wanted(g, moe->n, g->shared_up),
                                  wanted(g, moe->n, g->shared_down), true, g->x, NULL) != ET_OK;
    }
    free(room);
    if (failed) return no_room(error);
    /* A kernel adds up in the accumulator, and stores the sums. */
    et_round(moe->rounding, ET_OUTPUTS, "dW_up", moe->n * size, g->up);
    et_round(moe->rounding, ET_OUTPUTS, "dW_down", moe->n * size, g->down);
    et_round(moe->rounding, ET_OUTPUTS, "dW_up", moe->hs * d, g->shared_up);
    et_round(moe->rounding, ET_OUTPUTS, "dW_down", moe->hs * d, g->shared_down);
    return ET_OK;
}

/* dp on token t's slots, from dw. */
static void weigh_backward(const et_moe *moe, const et_assignment *a, const et_moe_values *v,
                           size_t t, et_moe_grads *g)
{
    et_real divide_by = divisor(moe, a, v, t), carried = 0;
    if (divide_by == 0) return; /* this token's weights are 0 by definition: no gradient */
    int32_t first = a->token_offsets[t], end = a->token_offsets[t + 1];
    if (moe->norm == ET_NORM_SUM)
        for (int32_t j = first; j < end; j++)
            carried += v->slot_weight[a->token_slots[j]] * g->slot_weight[a->token_slots[j]];
    for (int32_t j = first; j < end; j++) {
        int32_t slot = a->token_slots[j];
        g->gates[t * moe->n + (size_t)a->slot_expert[slot]] +=
            (g->slot_weight[slot] - carried) / divide_by;
    }
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
#pragma omp parallel for if (et_worth_threads(N * n))
    for (size_t t = 0; t < N; t++) {
        weigh_backward(moe, a, v, t, g);
        if (danchor) danchor[t] = g->shared_weight[t] / shared_divisor(moe, a, t);
    }
    et_pass(rounding, "dp", N * n, g->gates);
    for (size_t t = 0; t < N; t += at_once)
        et_gate_backward(moe->gate, at_once, n, v->logits + t * n, v->gates + t * n,
                         v->anchor ? v->anchor + t : NULL, g->gates + t * n,
                         danchor ? danchor + t : NULL, g->logits + t * n);
    free(room);
    et_round(rounding, ET_LOGITS, "dr", N * n, g->logits);
    et_operand tokens = {et_rows(x, d), "x"}, router = {et_rows(moe->router, d), "W_r"};
    et_operand by_expert = {et_transposed(g->logits, n), "dr"}, dr = {et_rows(g->logits, n), "dr"};
    status =
        et_product(rounding, moe->engine, n, d, N, by_expert, tokens, true, g->router, d, error);
    if (status == ET_OK)
        status = et_product(rounding, moe->engine, N, d, n, dr, router, true, g->x, d, error);
    et_round(rounding, ET_OUTPUTS, "dW_r", n * d, g->router);
    et_round(rounding, ET_OUTPUTS, "dx", N * d, g->x);
    return status;
}

/* ---- the public functions: what a caller brings is checked, then the phases above ---- */

static et_status check_forward(const et_moe *moe, const et_assignment *a, const et_moe_values *v,
                               et_error *error)
{
    et_status status = et_moe_check(moe, error);
    return status == ET_OK ? et_moe_check_values(moe, a, v, error) : status;
}

static et_status check_backward(const et_moe *moe, const et_assignment *a, const et_moe_values *v,
                                const et_moe_grads *g, et_error *error)
{
    et_status status = check_forward(moe, a, v, error);
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
    et_status status = check_forward(moe, a, v, error);
    if (status == ET_OK) weigh(moe, a, v);
    return status;
}

et_status et_moe_experts(const et_moe *moe, const et_real *x, const et_assignment *a,
                         et_moe_values *v, et_error *error)
{
    ET_ARITHMETIC;
    et_status status = check_forward(moe, a, v, error);
    if (status == ET_OK) status = et_moe_check_tokens(moe, "x", x, error);
    return status == ET_OK ? experts(moe, x, a, v, error) : status;
}

et_status et_moe_combine(const et_moe *moe, const et_assignment *a, et_moe_values *v,
                         et_error *error)
{
    ET_ARITHMETIC;
    et_status status = check_forward(moe, a, v, error);
    if (status == ET_OK) combine(moe, a, v);
    return status;
}

et_status et_moe_forward(const et_moe *moe, const et_real *x, const et_assignment *a,
                         et_moe_values *v, et_error *error)
{
    ET_ARITHMETIC;
    et_status status;
    if ((status = check_forward(moe, a, v, error)) ||
        (status = et_moe_check_tokens(moe, "x", x, error)))
        return status;
    weigh(moe, a, v);
    status = experts(moe, x, a, v, error);
    if (status == ET_OK) combine(moe, a, v);
    return status;
}

et_status et_moe_combine_backward(const et_moe *moe, const et_real *dy, const et_assignment *a,
                                  const et_moe_values *v, et_moe_grads *g, et_error *error)
{
    ET_ARITHMETIC;
    et_status status = check_backward(moe, a, v, g, error);
    if (status == ET_OK) status = et_moe_check_tokens(moe, "dy", dy, error);
    if (status == ET_OK) combine_backward(moe, dy, a, v, g);
    return status;
}

et_status et_moe_experts_backward(const et_moe *moe, const et_real *x, const et_assignment *a,
                                  const et_moe_values *v, et_moe_grads *g, et_error *error)
{
    ET_ARITHMETIC;
    et_status status = check_backward(moe, a, v, g, error);
    if (status == ET_OK) status = et_moe_check_tokens(moe, "x", x, error);
    return status == ET_OK ? experts_backward(moe, x, a, v, g, error) : status;
}

et_status et_moe_score_backward(const et_moe *moe, const et_real *x, const et_assignment *a,
                                const et_moe_values *v, et_moe_grads *g, et_error *error)
{
    ET_ARITHMETIC;
    et_status status = check_backward(moe, a, v, g, error);
    if (status == ET_OK) status = et_moe_check_tokens(moe, "x", x, error);
    return status == ET_OK ? score_backward(moe, x, a, v, g, error) : status;
}

et_status et_moe_backward(const et_moe *moe, const et_real *x, const et_real *dy,
                          const et_assignment *a, const et_moe_values *v, et_moe_grads *g,
                          et_error *error)
{
    ET_ARITHMETIC;
    et_status status;
    if ((status = check_backward(moe, a, v, g, error)) ||
        (status = et_moe_check_tokens(moe, "x", x, error)) ||
        (status = et_moe_check_tokens(moe, "dy", dy, error)))
        return status;
    combine_backward(moe, dy, a, v, g);
    status = experts_backward(moe, x, a, v, g, error);
    return status == ET_OK ? score_backward(moe, x, a, v, g, error) : status;
}
