/* ep.c: see ep.h. */
#include "ep.h"

#include <mpi.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void ep_end(const char *why)
{
    fprintf(stderr, "ep: %s\n", why);
    MPI_Abort(MPI_COMM_WORLD, 2);
    exit(2);
}

void *ep_room(size_t count, size_t size)
{
    void *room = calloc(count > 0 ? count : 1, size);
    if (!room) ep_end("no memory");
    return room;
}

static et_real *reals(size_t count)
{
    return ep_room(count, sizeof(et_real));
}

static void must(et_status status, const et_error *error)
{
    if (status != ET_OK) ep_end(error->text);
}

/* ---- score and route ---- */

static void score(ep_layer *l)
{
    const et_step *s = l->s;
    size_t n = s->c.experts, d = s->c.d_model, Nl = l->tokens;
    et_matmul(ET_PLAIN, Nl, n, d, et_rows(s->in.x + l->first_token * d, d),
              et_transposed(s->in.router, d), false, l->v.logits, n);
    et_gate_forward(NULL, s->c.gate, Nl, n, l->v.logits, l->v.gates, l->v.anchor);
    MPI_Allgather(l->v.logits, (int)(Nl * n), MPI_DOUBLE, l->all_logits, (int)(Nl * n), MPI_DOUBLE,
                  MPI_COMM_WORLD);
}

static void by_choice(ep_layer *l, et_real *margin, et_error *error)
{
    const et_case *c = &l->s->c;
    size_t n = c->experts, pools = c->tokens / c->pool_tokens;
    et_real *cutoffs = reals(pools * n);
    int32_t *topk = ep_room(pools * n * c->target_load, sizeof *topk);
    must(et_expert_choice(c->tokens, n, c->pool_tokens, c->target_load, l->all_logits, l->mask,
                          margin, cutoffs, topk, 0, error),
         error);
    for (size_t i = 0; i < n; i++) {
        for (size_t p = 0; p < pools; p++) l->cutoff[i] += cutoffs[p * n + i];
        l->cutoff[i] /= (et_real)pools;
    }
    free(topk);
    free(cutoffs);
}

static void by_threshold(ep_layer *l, et_real *margin, et_error *error)
{
    const et_case *c = &l->s->c;
    size_t N = c->tokens, n = c->experts;
    et_real *threshold = reals(n);
    int32_t *passed = ep_room(n, sizeof *passed);
    et_capacity bounds = et_capacity_bounds(c->target_load, c->capacity_factor, N);
    et_ema_threshold(NULL, n, l->s->in.ema, c->ema_decay, c->ema_bias_correction, c->ema_updates,
                     threshold);
    must(et_expert_threshold(N, n, l->all_logits, threshold, c->inclusive,
                             c->has_capacity && !c->eval ? &bounds : NULL, l->mask, margin, passed,
                             error),
         error);
    if (l->cutoff)
        must(et_kth_largest(N, n, c->target_load, l->all_logits, l->cutoff, error), error);
    free(passed);
    free(threshold);
}

static void route(ep_layer *l)
{
    const et_case *c = &l->s->c;
    size_t N = c->tokens, n = c->experts;
    et_error error;
    et_real *margin = reals(N * n);
    if (c->rule == ET_TC) {
        int32_t *topk = ep_room(N * c->top_k, sizeof *topk);
        must(et_token_choice(N, n, c->top_k, l->all_logits, l->s->in.bias, l->mask, margin, topk,
                             &error),
             &error);
        free(topk);
    } else if (et_case_routes_by_choice(c)) {
        by_choice(l, margin, &error);
    } else {
        by_threshold(l, margin, &error);
    }
    free(margin);
    must(et_assignment_build(&l->a, l->tokens, n, l->mask + l->first_token * n, &error), &error);
}

/* ---- rows there and back ---- */

/* The slots of this process's tokens that go to local expert j of process q. */
static size_t first_slot(const ep_layer *l, size_t q, size_t j)
{
    return (size_t)l->a.expert_offsets[q * l->experts + j];
}

/* Where each process's part of a buffer begins, in numbers of `d` a row; returns the rows of all. */
static size_t begins(const ep_layer *l, const int *rows, int d, int *counts, int *at)
{
    size_t all = 0;
    for (size_t q = 0; q < l->ranks; q++) {
        counts[q] = rows[q] * d;
        at[q] = (int)all * d;
        all += (size_t)rows[q];
    }
    return all;
}

/* All-to-all j: rows of slots [S,d] to their experts, or from the experts back to their slots. */
static void exchange(ep_layer *l, size_t j, bool back, et_real *slots, et_real *received)
{
    size_t d = l->moe.d, R = l->ranks;
    const int *sends = l->sends + j * R, *receives = l->receives + j * R;
    int *counts = ep_room(4 * R, sizeof *counts);
    int *from = counts + R, *there = counts + 2 * R, *from_there = counts + 3 * R;
    size_t rows = begins(l, sends, (int)d, counts, from);
    begins(l, receives, (int)d, there, from_there);
    et_real *packed = reals(rows * d);
    if (back)
        MPI_Alltoallv(received, there, from_there, MPI_DOUBLE, packed, counts, from, MPI_DOUBLE,
                      MPI_COMM_WORLD);
    for (size_t q = 0; q < R; q++) {
        et_real *at = slots + first_slot(l, q, j) * d, *in = packed + from[q];
        memcpy(back ? at : in, back ? in : at, (size_t)counts[q] * sizeof(et_real));
    }
    if (!back)
        MPI_Alltoallv(packed, counts, from, MPI_DOUBLE, received, there, from_there, MPI_DOUBLE,
                      MPI_COMM_WORLD);
    free(packed);
    free(counts);
}

/* How many rows go where. A process takes part in every exchange, whether it has rows or not. */
static void count_rows(ep_layer *l)
{
    size_t R = l->ranks;
    for (size_t j = 0; j < l->experts; j++) {
        for (size_t q = 0; q < R; q++) l->sends[j * R + q] = l->a.load[q * l->experts + j];
        MPI_Alltoall(l->sends + j * R, 1, MPI_INT, l->receives + j * R, 1, MPI_INT, MPI_COMM_WORLD);
        for (size_t q = 0; q < R; q++) l->received += (size_t)l->receives[j * R + q];
    }
}

static size_t rows_of(const ep_layer *l, size_t j)
{
    size_t rows = 0;
    for (size_t q = 0; q < l->ranks; q++) rows += (size_t)l->receives[j * l->ranks + q];
    return rows;
}

static et_ffn expert_of(const ep_layer *l, size_t j)
{
    size_t i = l->local_numbers ? j : l->first_expert + j, size = l->moe.h * l->moe.d;
    return (et_ffn){.engine = ET_PLAIN,
                    .d = l->moe.d,
                    .h = l->moe.h,
                    .up = l->s->in.up + i * size,
                    .down = l->s->in.down + i * size};
}

static et_ffn shared_of(const ep_layer *l)
{
    return (et_ffn){.engine = ET_PLAIN,
                    .d = l->moe.d,
                    .h = l->moe.hs,
                    .up = l->s->in.shared_up,
                    .down = l->s->in.shared_down};
}

/* This process's tokens x through the shared expert, and back: dx has the slots' shares already. */
static et_ffn_rows shared_rows(const ep_layer *l, const et_real *x)
{
    return (et_ffn_rows){.m = l->tokens,
                         .x = x,
                         .H = l->v.shared_pre,
                         .A = l->v.shared_act,
                         .out = l->v.shared_out,
                         .dO = l->g.shared_out,
                         .dA = l->g.shared_act,
                         .dH = l->g.shared_pre,
                         .dx = l->g.x,
                         .accumulate_dx = true};
}

/* ---- forward ---- */

static void take_slots(ep_layer *l)
{
    size_t S = l->a.slots, d = l->moe.d, h = l->moe.h;
    l->v.slot_weight = reals(S);
    l->v.slot_out = reals(S * d);
    l->v.slot_pre = reals(S * h); /* stay empty: they are where the experts are */
    l->v.slot_act = reals(S * h);
    l->g.slot_weight = reals(S);
    l->g.slot_out = reals(S * d);
    l->g.slot_act = reals(S * h);
    l->g.slot_pre = reals(S * h);
    l->x_recv = reals(l->received * d);
    l->dout_recv = reals(l->received * d);
    l->H = reals(l->received * h);
    l->A = reals(l->received * h);
}

static void experts_forward(ep_layer *l, et_real *x_slots)
{
    size_t d = l->moe.d, h = l->moe.h, at = 0;
    et_error error;
    et_real *out = reals(l->received * d);
    for (size_t j = 0; j < l->experts; j++) {
        size_t m = rows_of(l, j);
        et_ffn f = expert_of(l, j);
        exchange(l, j, false, x_slots, l->x_recv + at * d);
        const et_ffn_rows rows = {.m = m,
                                  .x = l->x_recv + at * d,
                                  .H = l->H + at * h,
                                  .A = l->A + at * h,
                                  .out = out + at * d};
        must(et_ffn_forward(&f, &rows, &error), &error);
        exchange(l, j, true, l->v.slot_out, out + at * d);
        at += m;
    }
    free(out);
}

void ep_forward(ep_layer *l)
{
    size_t d = l->moe.d;
    const et_real *x = l->s->in.x + l->first_token * d;
    et_error error;
    score(l);
    route(l);
    count_rows(l);
    take_slots(l);
    must(et_moe_weigh(&l->moe, &l->a, &l->v, &error), &error);
    et_real *x_slots = reals(l->a.slots * d);
    for (size_t slot = 0; slot < l->a.slots; slot++)
        memcpy(x_slots + slot * d, x + (size_t)l->a.slot_token[slot] * d, d * sizeof(et_real));
    experts_forward(l, x_slots);
    free(x_slots);
    if (l->moe.hs > 0) {
        et_ffn f = shared_of(l);
        const et_ffn_rows rows = shared_rows(l, x);
        must(et_ffn_forward(&f, &rows, &error), &error);
    }
    must(et_moe_combine(&l->moe, &l->a, &l->v, &error), &error);
}

/* ---- backward ---- */

/* shares [S,d]: dH W_up of this process's slots. */
static void experts_backward(ep_layer *l, et_real *shares)
{
    size_t d = l->moe.d, h = l->moe.h, at = 0;
    et_error error;
    et_real *dA = reals(l->received * h), *dH = reals(l->received * h);
    et_real *dx = reals(l->received * d);
    for (size_t j = 0; j < l->experts; j++) {
        size_t m = rows_of(l, j);
        et_ffn f = expert_of(l, j);
        exchange(l, j, false, l->g.slot_out, l->dout_recv + at * d);
        const et_ffn_rows rows = {.m = m,
                                  .x = l->x_recv + at * d,
                                  .H = l->H + at * h,
                                  .A = l->A + at * h,
                                  .dO = l->dout_recv + at * d,
                                  .dA = dA + at * h,
                                  .dH = dH + at * h,
                                  .dx = dx + at * d};
        must(et_ffn_backward(&f, &rows, l->g.up + j * h * d, l->g.down + j * h * d, NULL, &error),
             &error);
        exchange(l, j, true, shares, dx + at * d);
        at += m;
    }
    free(dA);
    free(dH);
    free(dx);
}

void ep_backward(ep_layer *l)
{
    size_t d = l->moe.d;
    const et_real *x = l->s->in.x + l->first_token * d, *dy = l->s->in.dy + l->first_token * d;
    et_error error;
    must(et_moe_combine_backward(&l->moe, dy, &l->a, &l->v, &l->g, &error), &error);
    et_real *shares = reals(l->a.slots * d);
    experts_backward(l, shares);
    for (size_t slot = 0; slot < l->a.slots; slot++) /* experts ascending */
        for (size_t k = 0; k < d; k++)
            l->g.x[(size_t)l->a.slot_token[slot] * d + k] += shares[slot * d + k];
    free(shares);
    if (l->moe.hs > 0) {
        et_ffn f = shared_of(l);
        const et_ffn_rows rows = shared_rows(l, x);
        must(et_ffn_backward(&f, &rows, l->g.shared_up, l->g.shared_down, NULL, &error), &error);
    }
    must(et_moe_score_backward(&l->moe, x, &l->a, &l->v, &l->g, &error), &error);
}

/* ---- begin and end ---- */

void ep_open(ep_layer *l, const et_step *s, int rank, int ranks)
{
    const et_case *c = &s->c;
    size_t R = (size_t)ranks, N = c->tokens, n = c->experts, d = c->d_model;
    size_t size = c->d_expert * d, hs = c->shared ? c->shared_d_expert : 0;
    if (c->layer != ET_MOE || c->micro_batches != 1 || c->gate == ET_GATE_SOFTMAX_TOKENS)
        ep_end("MoE layers of one micro-batch whose gate looks at one token");
    if (c->z_loss_coef != 0 || c->balance == ET_BALANCE_AUX || c->balance == ET_BALANCE_AUX_ERROR)
        ep_end("layers without losses");
    if (c->activation != ET_RELU2 || c->routed_scale != 1) ep_end("the paper's experts and weights");
    if (c->given || c->groups > 1 || (c->rule == ET_TC && c->has_capacity)) ep_end("the paper's rules");
    if (N % R != 0 || n % R != 0) ep_end("the processes must divide tokens and experts");
    *l = (ep_layer){.s = s, .ranks = R, .rank = (size_t)rank};
    l->tokens = N / R;
    l->first_token = l->rank * l->tokens;
    l->experts = n / R;
    l->first_expert = l->rank * l->experts;
    l->moe = et_step_layer(s);
    l->moe.engine = ET_PLAIN;
    l->moe.N = l->moe.gate_tokens = l->tokens;
    l->all_logits = reals(N * n);
    l->mask = ep_room(N * n, 1);
    if (c->rule != ET_TC && !c->eval) l->cutoff = reals(n);
    l->v.logits = reals(l->tokens * n);
    l->v.gates = reals(l->tokens * n);
    l->v.anchor = et_gate_has_anchor(c->gate) ? reals(l->tokens) : NULL;
    l->v.shared_pre = reals(l->tokens * hs);
    l->v.shared_act = reals(l->tokens * hs);
    l->v.shared_out = reals(l->tokens * d);
    l->v.shared_weight = reals(l->tokens);
    l->v.y = reals(l->tokens * d);
    l->g.x = reals(l->tokens * d);
    l->g.router = reals(n * d);
    l->g.up = reals(l->experts * size);
    l->g.down = reals(l->experts * size);
    l->g.shared_up = reals(hs * d);
    l->g.shared_down = reals(hs * d);
    l->g.logits = reals(l->tokens * n);
    l->g.gates = reals(l->tokens * n);
    l->g.shared_weight = reals(l->tokens);
    l->g.shared_out = reals(l->tokens * d);
    l->g.shared_act = reals(l->tokens * hs);
    l->g.shared_pre = reals(l->tokens * hs);
    l->sends = ep_room(n, sizeof *l->sends);
    l->receives = ep_room(n, sizeof *l->receives);
}

void ep_close(ep_layer *l)
{
    et_moe_values *v = &l->v;
    et_moe_grads *g = &l->g;
    void *rooms[] = {l->all_logits,
                     l->mask,
                     l->cutoff,
                     v->logits,
                     v->gates,
                     v->anchor,
                     v->slot_weight,
                     v->slot_pre,
                     v->slot_act,
                     v->slot_out,
                     v->shared_pre,
                     v->shared_act,
                     v->shared_out,
                     v->shared_weight,
                     v->y,
                     g->x,
                     g->router,
                     g->up,
                     g->down,
                     g->shared_up,
                     g->shared_down,
                     g->logits,
                     g->gates,
                     g->slot_weight,
                     g->slot_out,
                     g->slot_act,
                     g->slot_pre,
                     g->shared_weight,
                     g->shared_out,
                     g->shared_act,
                     g->shared_pre,
                     l->sends,
                     l->receives,
                     l->x_recv,
                     l->dout_recv,
                     l->H,
                     l->A};
    for (size_t i = 0; i < sizeof rooms / sizeof *rooms; i++) free(rooms[i]);
    et_assignment_free(&l->a);
}
