/* step_ranks.c: a step as several ranks compute it: what each receives, its sums before they are added up. See
 * step_ranks.h, etref/parallel.h.
 *
 * A step is the same, however many ranks share it: nothing here changes a golden's other tensors.
 *
 *     ep   rank s sends rows x; rank q sends f(x) back, and s weighs and adds in the order of experts, so y has the bits
 *          of one rank. Kernels that send one copy a token and rank send back sums over q's experts: ep.partial.
 *          Backward the same: rows dO = w dy there, rows dH W_up, or their sums ep.dx_partial, back. Gradients of experts
 *          stay where the experts are; those of router and shared expert are sums over ranks.
 *     dp   each rank routes its own micro-batches; its kth moves its own average, of which the mean is taken. A gradient
 *          is the sum over ranks, as in.dy is the gradient of the step's one loss: a kernel that takes means over ranks
 *          begins with dy times their number.
 *
 * Left out: averages that differ between ranks before the step (in.ema is one), so the first step after a warm-up whose
 * averages were kept apart; tensor parallelism; time.
 */
#include "ref/step/step_ranks.h"
#include "ref/base/memory.h"
#include "ref/base/product.h"
#include "ref/base/sum.h"
#include "ref/step/decide.h"
#include "ref/step/case_kinds.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

et_status et_ranks_plan(et_step *s, et_error *error)
{
    const et_case *c = &s->c;
    size_t S = s->assignment.slots, R = c->ranks;
    if (!is_ep(c)) return ET_OK;
    size_t fixed = R * c->experts + c->tokens * R + 2 * R * R;
    et_status status = et_step_count_bytes(s, fixed + 8 * S, sizeof(int32_t), error);
    if (status == ET_OK) status = et_parallel_plan_build(&s->plan, &s->assignment, R, error);
    if (status != ET_OK) return status;
    if (!is_tc(c)) { /* whose tokens' experts are not of one number */
        free(s->plan.recv_topk);
        s->plan.recv_topk = NULL;
    }
    size_t listed = is_tc(c) ? s->plan.copies * s->plan.widest : 0;
    return et_step_count_bytes(s, R * s->plan.padded + listed, sizeof(int32_t), error);
}

bool et_ranks_keep_apart(const et_case *c)
{
    return is_dp(c) && c->sync_after_warmup && (c->rule == ET_EC || c->step < c->warmup_steps);
}

/* ---- rounding what a rank sends ---- */

/* The numbers before they are rounded, in *before; NULL where nothing is. */
static et_status remember(const et_rounding *r, size_t count, const et_real *values,
                          et_real **before, et_error *error)
{
    void *room;
    *before = NULL;
    if (!et_rounds(r)) return ET_OK;
    et_status status = et_allocate(&room, count, sizeof(et_real), "ranks' sums", error);
    if (status == ET_OK) *before = memcpy(room, values, count * sizeof(et_real));
    return status;
}

/* to += after - before, row by row; rows: NULL, or where each goes. */
static void carry_over(size_t m, size_t columns, const et_real *after, const et_real *before,
                       const int32_t *rows, et_real *to)
{
    for (size_t i = 0; i < m; i++)
        for (size_t k = 0; k < columns; k++)
            to[(rows ? (size_t)rows[i] : i) * columns + k] +=
                after[i * columns + k] - before[i * columns + k];
}

/* ---- ep: rows received, and one sum a copy ---- */

static void receive_rows(et_step *s)
{
    const et_assignment *a = &s->assignment;
    size_t d = s->c.d_model;
    for (size_t slot = 0; slot < a->slots; slot++)
        memcpy(s->rank.x_recv + slot * d, s->in.x + (size_t)a->slot_token[slot] * d,
               d * sizeof(et_real));
    et_round(s->rounding, ET_OPERANDS, "x sent", a->slots * d, s->rank.x_recv);
    memcpy(s->rank.dout_recv, s->bwd.slot_out, a->slots * d * sizeof(et_real));
    et_pass(s->rounding, "dO sent", a->slots * d, s->rank.dout_recv);
}

/* Of each slot, the copy in which its token came to its expert's rank. */
static et_status copies_of_slots(const et_step *s, int32_t **copies, et_error *error)
{
    const et_parallel_plan *p = &s->plan;
    const et_assignment *a = &s->assignment;
    size_t local = p->experts / p->ranks, copy = 0;
    void *room;
    et_status status = et_allocate(&room, a->slots, sizeof(int32_t), "copies of slots", error);
    if (status != ET_OK) return status;
    *copies = room;
    for (size_t q = 0; q < p->ranks; q++)
        for (size_t t = 0; t < p->tokens; t++) {
            if (!p->token_in_rank[t * p->ranks + q]) continue;
            for (int32_t i = a->token_offsets[t]; i < a->token_offsets[t + 1]; i++) {
                int32_t slot = a->token_slots[i];
                if ((size_t)a->slot_expert[slot] / local == q) (*copies)[slot] = (int32_t)copy;
            }
            copy++;
        }
    return ET_OK;
}

/* sums [P,d] += rows [S,d], w NULL: weights of 1; what rounding them changes comes to `total` [N,d], too. */
static et_status add_up(et_step *s, const char *site, const int32_t *copies, const et_real *w,
                        const et_real *rows, et_real *sums, et_real *total, et_error *error)
{
    const et_rounding *r = s->rounding;
    const et_assignment *a = &s->assignment;
    size_t n = a->experts, d = s->c.d_model, P = s->plan.copies;
    const et_order order = et_order_of(r, site, n);
    et_real *before;
    for (size_t k = 0; k < n; k++) {
        size_t i = et_order_at(&order, k), first = (size_t)a->expert_offsets[i];
        et_add_rows(r, ET_SHARES, (size_t)a->load[i], d, w ? w + first : NULL, rows + first * d,
                    copies + first, sums);
    }
    et_status status = remember(r, P * d, sums, &before, error);
    if (status != ET_OK) return status;
    et_round(r, ET_OUTPUTS, site, P * d, sums);
    if (before == NULL) return ET_OK;
    carry_over(P, d, sums, before, s->plan.recv_token, total);
    et_round(r, ET_OUTPUTS, site, s->c.tokens * d, total);
    free(before);
    return ET_OK;
}

/* Expert i's slots: dH W of one of its matrices, or added to what is there. */
static et_status expert_dx(const et_step *s, size_t i, et_operand dH, et_operand W, bool add,
                           et_real *shares, et_error *error)
{
    const et_assignment *a = &s->assignment;
    size_t d = s->c.d_model, h = s->c.d_expert, first = (size_t)a->expert_offsets[i];
    dH.at.at += first * h;
    W.at.at += i * h * d;
    return et_product(s->rounding, s->engine, (size_t)a->load[i], d, h, dH, W, add,
                      shares + first * d, d, error);
}

/* dH W_up, and dV W_gate, of every slot, [S,d]. */
static et_status slot_dx(const et_step *s, et_real *shares, et_error *error)
{
    size_t d = s->c.d_model, h = s->c.d_expert;
    et_operand dH = {et_rows(s->bwd.slot_pre, h), ET_ACTIVATIONS, "dH", ET_INTERMEDIATES},
               dV = {et_rows(s->bwd.slot_gate_pre, h), ET_ACTIVATIONS, "dV", ET_INTERMEDIATES},
               up = {et_rows(s->in.up, d), ET_OPERANDS, "W_up", ET_UNSTORED},
               gate = {et_rows(s->in.gating, d), ET_OPERANDS, "W_gate", ET_UNSTORED};
    et_status status = ET_OK;
    for (size_t i = 0; i < s->c.experts && status == ET_OK; i++) {
        status = expert_dx(s, i, dH, up, false, shares, error);
        if (status == ET_OK && is_gated(&s->c))
            status = expert_dx(s, i, dV, gate, true, shares, error);
    }
    return status;
}

static et_status sum_copies(et_step *s, et_error *error)
{
    int32_t *copies;
    void *shares = NULL;
    et_status status = copies_of_slots(s, &copies, error);
    if (status != ET_OK) return status;
    status = add_up(s, "partial", copies, s->fwd.slot_weight, s->fwd.slot_out, s->rank.partial,
                    s->fwd.y, error);
    if (status == ET_OK)
        status = et_allocate(&shares, s->assignment.slots * s->c.d_model, sizeof(et_real),
                             "slots' shares of dx", error);
    if (status == ET_OK) status = slot_dx(s, shares, error);
    if (status == ET_OK)
        status = add_up(s, "dx partial", copies, NULL, shares, s->rank.dx_partial, s->bwd.x, error);
    free(shares);
    free(copies);
    return status;
}

/* ---- gradients by a rank's tokens alone ---- */

/* Its first slot of expert i, or the end. */
static size_t first_slot(const et_step *s, size_t i, size_t rank)
{
    const et_assignment *a = &s->assignment;
    size_t slot = (size_t)a->expert_offsets[i], end = (size_t)a->expert_offsets[i + 1];
    size_t token = rank * (s->c.tokens / s->c.ranks);
    while (slot < end && (size_t)a->slot_token[slot] < token) slot++;
    return slot;
}

/* A gradient of weights: left' right, over rows of tokens or of an expert's slots. */
typedef struct gradient {
    const et_real *left, *right; /* rows of `rows`, of `columns` numbers */
    size_t rows, columns;
    et_real *total;  /* [rows,columns] over all ranks */
    size_t from, to; /* rows that are of the rank's tokens */
} gradient;

static size_t matrices(const et_step *s)
{
    return is_gated(&s->c) ? 3 : 2;
}

/* Of each expert dW_up, dW_down and, of swiglu, dW_gate; then dW_r, and the shared expert's. gathered [S,d]: x of slots. */
static gradient gradient_at(const et_step *s, size_t index, size_t rank, const et_real *gathered)
{
    const et_moe_values *v = &s->fwd;
    const et_moe_grads *g = &s->bwd;
    size_t n = s->c.experts, d = s->c.d_model, h = s->c.d_expert, hs = s->c.shared_d_expert;
    size_t own = s->c.tokens / s->c.ranks, t = rank * own, m = matrices(s);
    if (index < m * n) {
        size_t i = index / m, at = i * h * d;
        size_t from = first_slot(s, i, rank), to = first_slot(s, i, rank + 1);
        et_real *gating = g->gating ? g->gating + at : NULL;
        const gradient all[] = {{g->slot_pre, gathered, h, d, g->up + at, from, to},
                                {g->slot_out, v->slot_act, d, h, g->down + at, from, to},
                                {g->slot_gate_pre, gathered, h, d, gating, from, to}};
        return all[index % m];
    }
    const gradient rest[] = {{g->logits, s->in.x, n, d, g->router, t, t + own},
                             {g->shared_pre, s->in.x, hs, d, g->shared_up, t, t + own},
                             {g->shared_out, v->shared_act, d, hs, g->shared_down, t, t + own},
                             {g->shared_gate_pre, s->in.x, hs, d, g->shared_gating, t, t + own}};
    return rest[index - m * n];
}

static size_t gradients(const et_step *s)
{
    return matrices(s) * s->c.experts + 1 + (s->c.shared ? matrices(s) : 0);
}

/* own [rows,columns]: the rank's part; what rounding it changes comes to the total, too. */
static et_status gradient_of_rank(et_step *s, const gradient *g, et_real *own, et_error *error)
{
    const et_rounding *r = s->rounding;
    size_t size = g->rows * g->columns;
    bool router = g->total == s->bwd.router;
    bool stored = g->right == s->fwd.slot_act || g->right == s->fwd.shared_act;
    et_place place = router ? ET_ROUTER_OPERANDS : ET_ACTIVATIONS;
    et_operand left = {et_transposed(g->left + g->from * g->rows, g->rows), place, "left",
                       router ? ET_LOGITS : ET_INTERMEDIATES};
    et_operand right = {et_rows(g->right + g->from * g->columns, g->columns), place, "right",
                        stored ? ET_INTERMEDIATES : ET_UNSTORED};
    et_real *before;
    et_status status = et_product(r, s->engine, g->rows, g->columns, g->to - g->from, left, right,
                                  false, own, g->columns, error);
    if (status == ET_OK) status = remember(r, size, own, &before, error);
    if (status != ET_OK) return status;
    et_round(r, ET_OUTPUTS, "dW of a rank", size, own);
    if (before) carry_over(g->rows, g->columns, own, before, NULL, g->total);
    free(before);
    return ET_OK;
}

static void round_total(const et_step *s, const gradient *g)
{
    et_round(s->rounding, ET_OUTPUTS, "dW of ranks", g->rows * g->columns, g->total);
}

/* ep: router and shared expert. */
static et_status split_gradients(et_step *s, et_error *error)
{
    size_t n = s->c.experts, d = s->c.d_model, hs = s->c.shared_d_expert;
    struct {
        et_real *array;
        size_t size;
    } parts[] = {{s->rank.router, n * d},
                 {s->rank.shared_up, hs * d},
                 {s->rank.shared_down, hs * d},
                 {s->rank.shared_gating, hs * d}};
    size_t experts = matrices(s) * n;
    et_status status = ET_OK;
    for (size_t k = 0; k + experts < gradients(s) && status == ET_OK; k++) {
        gradient g = gradient_at(s, experts + k, 0, NULL);
        for (size_t q = 0; q < s->c.ranks && status == ET_OK; q++) {
            g = gradient_at(s, experts + k, q, NULL);
            status = gradient_of_rank(s, &g, parts[k].array + q * parts[k].size, error);
        }
        round_total(s, &g);
    }
    return status;
}

/* ---- dp ---- */

static void move_averages(et_step *s)
{
    const et_case *c = &s->c;
    size_t n = c->experts;
    for (size_t q = 0; q < c->ranks; q++) {
        memcpy(s->rank.ema + q * n, s->in.ema, n * sizeof(et_real));
        et_ema_update(s->rounding, n, c->ema_decay, s->rank.kth + q * n, s->rank.ema + q * n);
    }
    et_round(s->rounding, ET_ACCUMULATOR, "ema", c->ranks * n, s->rank.ema);
}

static void count_loads(et_step *s)
{
    const et_assignment *a = &s->assignment;
    size_t of_rank = a->tokens / s->c.ranks;
    for (size_t slot = 0; slot < a->slots; slot++)
        s->rank.load[(size_t)a->slot_token[slot] / of_rank * a->experts +
                     (size_t)a->slot_expert[slot]]++;
}

/* x of each slot, and room for the largest gradient behind it. */
static et_status take_room(const et_step *s, et_real **gathered, et_real **own, et_error *error)
{
    size_t S = s->assignment.slots, d = s->c.d_model, widest = s->c.experts;
    void *room;
    if (s->c.d_expert > widest) widest = s->c.d_expert;
    if (s->c.shared_d_expert > widest) widest = s->c.shared_d_expert;
    et_status status = et_allocate(&room, (S + widest) * d, sizeof(et_real), "ranks' norms", error);
    if (status != ET_OK) return status;
    *gathered = room;
    *own = *gathered + S * d;
    for (size_t slot = 0; slot < S; slot++)
        memcpy(*gathered + slot * d, s->in.x + (size_t)s->assignment.slot_token[slot] * d,
               d * sizeof(et_real));
    return ET_OK;
}

static et_status measure_gradients(et_step *s, et_error *error)
{
    et_real *gathered, *own;
    et_status status = take_room(s, &gathered, &own, error);
    if (status != ET_OK) return status;
    et_real *squares = s->rank.grad_norm;
    for (size_t k = 0; k < gradients(s) && status == ET_OK; k++) {
        gradient g;
        for (size_t q = 0; q < s->c.ranks && status == ET_OK; q++) {
            g = gradient_at(s, k, q, gathered);
            status = gradient_of_rank(s, &g, own, error);
            squares[q] = et_sum(s->rounding, et_sum_place(s->rounding), "norm", squares[q],
                                g.rows * g.columns, 1, own, own);
        }
        round_total(s, &g);
    }
    for (size_t q = 0; q < s->c.ranks; q++) squares[q] = (et_real)sqrt((double)squares[q]);
    et_round(s->rounding, ET_ACCUMULATOR, "norm", s->c.ranks, s->rank.grad_norm);
    free(gathered);
    return status;
}

/* ---- all of it ---- */

et_status et_ranks_run(et_step *s, et_error *error)
{
    et_status status = ET_OK;
    if (is_ep(&s->c)) {
        receive_rows(s);
        if ((status = sum_copies(s, error)) == ET_OK) status = split_gradients(s, error);
    }
    if (!is_dp(&s->c)) return status;
    if (s->rank.ema) move_averages(s);
    count_loads(s);
    return measure_gradients(s, error);
}
