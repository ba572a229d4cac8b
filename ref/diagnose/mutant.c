/* mutant.c: the reference run with a hypothesis's hooks in it, phase by phase. See mutant.h.
 *
 * A phase that the hypothesis reaches writes arrays of the mutant's own; the others stay those of the
 * reference, or of its sub-step.
 *
 * Left out: metric.*, which restate other tensors; route.topk_*, which the mask and the scores imply.
 */
#include "ref/diagnose/mutant.h"
#include "ref/step/decide.h"
#include "ref/step/case_kinds.h"
#include "ref/verdict/judge.h"

#include <stdlib.h>
#include <string.h>

#define BIT(stage) (1U << (stage))

static const et_case *case_of(const et_mutant *m)
{
    return &m->on->right->c;
}

static bool has_experts(const et_mutant *m)
{
    return case_of(m)->layer == ET_MOE;
}

/* ---- mutants ---- */

void et_mutant_open(et_mutant *m, et_subject *on, const et_fault *fault, bool carried)
{
    *m = (et_mutant){.on = on,
                     .fault = *fault,
                     .moe = on->moe,
                     .all = *on->right,
                     .a = on->pick.of,
                     .pick = &on->pick};
    m->hand = (et_rounding){.mutate = et_mutant_hand, .user = m};
    m->rerouted =
        carried &&
        et_hypothesis_reach(case_of(m), fault->what, fault->variant, false) >> ET_AT_MASK & 1;
    m->all.owned_count = 0; /* nothing of the reference's is this one's to free */
    m->s = on->sub;
    m->s.assignment = on->pick.a;
    m->s.route.mask = on->pick.mask;
}

void et_mutant_close(et_mutant *m)
{
    for (size_t i = 0; i < m->own_count; i++) free(m->owned[i]);
    m->kept.assignment = (et_assignment){0};
    et_step_free(&m->kept);
    et_step_free(&m->routed);
    et_step_free(&m->losses);
    et_step_free(&m->right_losses);
    et_step_free(&m->own_room);
    et_assignment_free(&m->own);
    et_pick_close(&m->own_pick);
    *m = (et_mutant){0};
}

/* ---- selection ---- */

/* A step of its own, with the reference's inputs. */
static et_step step_like(const et_mutant *m)
{
    et_step s = et_step_like(m->on->right);
    s.max_bytes = 0;
    return s;
}

/* The cutoff that each pool of the case has in pools of another size. */
static void show_pools(et_mutant *m)
{
    const et_step *right = m->on->right;
    const et_real *wrong = m->routed.route.pool_cutoff;
    size_t n = m->moe.n, P = right->c.pool_tokens, pool = m->routed.c.pool_tokens;
    if (right->route.pool_cutoff == NULL || wrong == NULL || P == pool) return;
    size_t pools = right->c.micro_batches * pools_of_batch(&right->c);
    size_t micro = et_case_micro_tokens(&m->routed.c), each = pools_of_batch(&m->routed.c);
    et_real *to = et_mutant_reals(m, pools * n);
    for (size_t i = 0; to && i < pools; i++) {
        size_t first = pool_of(&right->c, i).first;
        memcpy(to + i * n, wrong + (first / micro * each + first % micro / pool) * n,
               n * sizeof *to);
    }
    if (to) m->all.route.pool_cutoff = to;
}

/* Who goes where by now; from here on everything has to follow. */
static void reroute(et_mutant *m)
{
    bool shared = m->on->right->c.shared;
    uint8_t *tokens = et_mutant_own(m, m->moe.N, 1);
    if (tokens == NULL) return;
    for (size_t t = 0; t < m->on->pick.count; t++) tokens[m->on->pick.tokens[t]] = 1;
    m->status = et_assignment_build(&m->own, m->moe.N, m->moe.n, m->all.route.mask, m->error);
    if (m->status == ET_OK)
        m->status = et_pick_open(&m->own_pick, &m->own, shared, tokens, m->error);
    if (m->status != ET_OK) return;
    m->a = &m->own;
    m->pick = &m->own_pick;
    m->s.assignment = m->own_pick.a;
    m->s.route.mask = m->own_pick.mask;
    m->reach |= BIT(ET_AT_LAYOUT) - BIT(ET_AT_WEIGHTS);
}

static void route(et_mutant *m)
{
    const et_step_routing *right = &m->on->right->route;
    et_step *r = &m->routed;
    *r = step_like(m);
    /* What choices compare is the plan's logits, whichever of the two it is: there mutants change it. */
    r->fwd.logits = (et_real *)et_step_scores(m->on->right);
    r->c.select_gates = false;
    r->fwd.gates = m->on->right->fwd.gates;
    et_mutant_settings(m, ET_AT_PLAN, r);
    m->ranked = !et_case_routes_by_threshold(&r->c) || (r->c.has_capacity && !r->c.eval);
    if (m->status == ET_OK) m->status = et_step_route(r, m->error);
    if (m->status != ET_OK) return;
    et_step_routing *all = &m->all.route;
    all->mask = r->route.mask;
    all->margin = r->route.margin;
    all->chosen = r->route.chosen;
    if (r->route.threshold) all->threshold = r->route.threshold;
    if (r->route.cutoff && right->cutoff) all->cutoff = r->route.cutoff;
    if (r->route.pool_cutoff && right->pool_cutoff) all->pool_cutoff = r->route.pool_cutoff;
    et_mutant_call(m, ET_AT_MASK);
    show_pools(m);
    if (m->rerouted && m->status == ET_OK) reroute(m);
}

static void change_cutoffs(et_mutant *m)
{
    if (m->all.route.cutoff == NULL) return;
    m->all.route.cutoff = et_mutant_copy(m, m->all.route.cutoff, m->moe.n);
    if (m->status == ET_OK) et_mutant_call(m, ET_AT_CUTOFF);
}

static void update_state(et_mutant *m)
{
    et_step *k = &m->kept;
    size_t n = m->moe.n;
    *k = step_like(m);
    k->route = m->all.route;
    k->rank.kth = m->all.rank.kth;
    k->assignment = *m->a;
    k->assignment.load = et_mutant_integers(m, n);
    if (m->status != ET_OK) return;
    memcpy(k->assignment.load, m->a->load, n * sizeof *m->a->load);
    et_mutant_settings(m, ET_AT_STATE, k);
    if (m->status == ET_OK) m->status = et_step_update_state(k, m->error);
    if (k->state_ema) m->all.state_ema = k->state_ema;
    if (k->state_updates) m->all.state_updates = k->state_updates;
    if (k->state_bias) m->all.state_bias = k->state_bias;
    if (m->status == ET_OK) et_mutant_call(m, ET_AT_STATE);
}

static void selection(et_mutant *m)
{
    if (m->reach & (BIT(ET_AT_PLAN) | BIT(ET_AT_MASK))) route(m);
    if (m->status == ET_OK && et_mutant_hooked(m, ET_AT_CUTOFF)) change_cutoffs(m);
    if (m->status == ET_OK && (m->reach & BIT(ET_AT_STATE))) update_state(m);
}

et_real et_mutant_score(const et_mutant *m, size_t place)
{
    const et_real *b = m->on->right->in.bias;
    return et_step_scores(m->on->right)[place] + (b ? b[place % m->moe.n] : 0);
}

/* ---- gates and weights ---- */

void et_gates_again(et_mutant *m, const et_real *scores)
{
    const et_moe *moe = &m->moe;
    et_moe_values *f = &m->all.fwd;
    size_t step = moe->gate == ET_GATE_SOFTMAX_TOKENS ? moe->gate_tokens : moe->N;
    for (size_t t = 0; t < moe->N; t += step)
        et_gate_forward(NULL, moe->gate, step, moe->n, scores + t * moe->n, f->gates + t * moe->n,
                        f->anchor ? f->anchor + t : NULL);
}

/* An anchor even where the right gate has none: the hook may ask for another gate. */
static void gates(et_mutant *m)
{
    size_t N = m->moe.N;
    et_moe_values *f = &m->all.fwd;
    f->gates = et_mutant_reals(m, N * m->moe.n);
    f->anchor = f->anchor ? et_mutant_copy(m, f->anchor, N) : et_mutant_reals(m, N);
    if (m->status == ET_OK) et_mutant_settings(m, ET_AT_GATES, &m->all);
    if (m->status == ET_OK) et_gates_again(m, f->logits);
    if (m->status == ET_OK) et_mutant_call(m, ET_AT_GATES);
}

/* A hook may have failed while the layer ran. */
static void ran(et_mutant *m, et_status status)
{
    if (m->status == ET_OK) m->status = status;
}

static void weigh(et_mutant *m)
{
    et_moe_values *f = &m->all.fwd;
    f->slot_weight = et_mutant_reals(m, m->a->slots);
    if (m->moe.hs > 0) f->shared_weight = et_mutant_reals(m, m->moe.N);
    if (m->status != ET_OK) return;
    et_mutant_settings(m, ET_AT_WEIGHTS, &m->all);
    ran(m, et_moe_weigh(&m->moe, m->a, f, m->error));
    if (m->status == ET_OK) et_mutant_call_weights(m);
}

/* Scores of the picked tokens, from those of all. */
static void gather_scores(et_mutant *m)
{
    const et_moe_values *all = &m->all.fwd;
    et_moe_values *f = &m->s.fwd;
    size_t n = m->moe.n, count = m->pick->count;
    f->logits = m->room->fwd.logits;
    f->anchor = all->anchor ? et_mutant_reals(m, count) : NULL;
    et_pick_gather(m->pick, false, n, all->logits, f->logits);
    et_pick_gather(m->pick, false, n, all->gates, f->gates);
    et_pick_gather(m->pick, true, 1, all->slot_weight, f->slot_weight);
    if (f->shared_weight) et_pick_gather(m->pick, false, 1, all->shared_weight, f->shared_weight);
    if (f->anchor) et_pick_gather(m->pick, false, 1, all->anchor, f->anchor);
}

static void scores(et_mutant *m)
{
    if (m->reach & BIT(ET_AT_GATES)) gates(m);
    if (m->status == ET_OK) weigh(m);
    if (m->status == ET_OK) gather_scores(m);
}

/* ---- the experts' rows, and y ---- */

/* The layer of the sub-step, with the hooks in it. */
static et_moe layer_of(const et_mutant *m)
{
    et_moe moe = m->moe;
    moe.N = m->pick->count;
    moe.gate_tokens = moe.N;
    moe.rounding = &m->hand;
    return moe;
}

static et_ffn dense_layer(const et_mutant *m)
{
    return (et_ffn){.engine = ET_BLAS,
                    .d = m->moe.d,
                    .h = m->moe.h,
                    .up = m->moe.up,
                    .down = m->moe.down,
                    .rounding = &m->hand,
                    .activation = m->moe.activation,
                    .gating = m->moe.gating,
                    .b_up = m->moe.b_up,
                    .b_gate = m->moe.b_gate,
                    .b_down = m->moe.b_down};
}

static void experts(et_mutant *m)
{
    et_moe_values *f = &m->s.fwd;
    et_moe moe = layer_of(m);
    et_ffn dense = dense_layer(m);
    const et_ffn_rows rows = {.m = moe.N,
                              .x = m->on->x,
                              .H = f->slot_pre,
                              .A = f->slot_act,
                              .V = f->slot_gate_pre,
                              .out = f->slot_out};
    ran(m, has_experts(m) ? et_moe_experts(&moe, m->on->x, &m->pick->a, f, m->error)
                          : et_ffn_forward(&dense, &rows, m->error));
    if (m->status == ET_OK) et_mutant_call(m, ET_AT_OUT);
}

/* Do weights stand on the experts' inputs, in the right layer? */
static bool weighs_input(const et_mutant *m)
{
    return m->on->moe.weighs_input;
}

/* The weights as y takes them; 1 in a dense layer, and where they stand on the inputs. */
static void mix(et_mutant *m)
{
    bool ones = !has_experts(m) || m->moe.weighs_input;
    size_t S = m->pick->a.slots, N = m->moe.hs > 0 ? m->pick->count : 0;
    const et_moe_values *f = &m->s.fwd;
    m->mixed[0] = ones ? et_mutant_reals(m, S) : et_mutant_copy(m, f->slot_weight, S);
    m->mixed[1] = N > 0 ? et_mutant_copy(m, f->shared_weight, N) : NULL;
    if (m->status != ET_OK) return;
    for (size_t j = 0; ones && j < S; j++) m->mixed[0][j] = 1;
    et_mutant_call(m, ET_AT_MIX);
}

static void combine(et_mutant *m)
{
    et_moe_values f = m->s.fwd;
    et_moe moe = layer_of(m);
    if (et_mutant_hooked(m, ET_AT_MIX)) mix(m);
    if (m->status != ET_OK) return;
    if (m->mixed[0]) f.slot_weight = m->mixed[0], moe.weighs_input = false;
    if (m->mixed[1]) f.shared_weight = m->mixed[1];
    if (has_experts(m))
        ran(m, et_moe_combine(&moe, &m->pick->a, &f, m->error));
    else
        for (size_t j = 0; j < moe.N * moe.d; j++)
            f.y[j] = f.slot_out[j] * (m->mixed[0] ? m->mixed[0][j / moe.d] : 1);
    if (m->status == ET_OK) et_mutant_call(m, ET_AT_Y);
}

/* ---- losses ---- */

/* Of the mutant's gates, or of the right ones; the losses' own gradients, which no step keeps. */
static void take_losses(et_mutant *m, et_step *l, bool right)
{
    size_t count = m->moe.N * m->moe.n;
    et_step_free(l);
    *l = step_like(m);
    l->route.mask = m->rerouted ? m->all.route.mask : m->on->right->route.mask;
    l->route.chosen = m->rerouted ? m->all.route.chosen : m->on->right->route.chosen;
    l->fwd = right ? m->on->right->fwd : m->all.fwd;
    l->fwd.logits = m->on->right->fwd.logits;
    l->bwd.gates = et_mutant_reals(m, count);
    l->bwd.logits = et_mutant_reals(m, count);
    if (m->status == ET_OK) et_mutant_settings(m, ET_AT_LOSSES, l);
    if (m->status == ET_OK) m->status = et_step_losses(l, m->error);
}

static void losses(et_mutant *m)
{
    take_losses(m, &m->losses, false);
    if (m->status != ET_OK) return;
    if (m->losses.loss_aux) m->all.loss_aux = m->losses.loss_aux;
    if (m->losses.loss_z) m->all.loss_z = m->losses.loss_z;
    et_mutant_call(m, ET_AT_LOSSES);
}

/* ---- backward ---- */

/* Between the passes: what the backward pass will go by. */
static void turn_back(et_mutant *m)
{
    m->used = m->s.fwd;
    if (!m->fault.forward_only) return;
    m->used = m->on->sub.fwd;
    m->moe = m->on->moe;
}

static void combine_backward(et_mutant *m)
{
    et_moe_grads *g = &m->s.bwd;
    et_moe moe = layer_of(m);
    if (has_experts(m))
        ran(m, et_moe_combine_backward(&moe, m->on->dy, &m->pick->a, &m->used, g, m->error));
    else
        memcpy(g->slot_out, m->on->dy, moe.N * moe.d * sizeof(et_real));
    if (m->status != ET_OK) return;
    if (has_experts(m) && !weighs_input(m)) et_mutant_call(m, ET_AT_DWEIGHT);
    et_mutant_call(m, ET_AT_DOUT);
}

static void clear(et_real *values, size_t count)
{
    if (values) memset(values, 0, count * sizeof *values);
}

static et_real *from(et_real *values, size_t offset)
{
    return values ? values + offset : NULL;
}

/* What the experts' backward pass adds to. */
static void clear_gradients(et_mutant *m)
{
    const et_moe *moe = &m->moe;
    et_moe_grads *g = &m->s.bwd;
    size_t size = moe->h * moe->d, n = moe->n;
    clear(g->x, m->pick->count * moe->d);
    for (size_t i = 0; i < n; i++) {
        if (!m->pick->complete[i]) continue;
        clear(g->up + i * size, size);
        clear(g->down + i * size, size);
        clear(from(g->gating, i * size), size);
        clear(from(g->b_up, i * moe->h), moe->h);
        clear(from(g->b_gate, i * moe->h), moe->h);
        clear(from(g->b_down, i * moe->d), moe->d);
    }
    if (!m->pick->complete[n]) return;
    clear(g->shared_up, moe->hs * moe->d);
    clear(g->shared_down, moe->hs * moe->d);
    clear(g->shared_gating, moe->hs * moe->d);
    clear(g->shared_b_up, moe->hs);
    clear(g->shared_b_gate, moe->hs);
    clear(g->shared_b_down, moe->d);
}

/* dx += factor * the shares; where weights stand on the inputs, * w. */
static void add_shares(et_mutant *m, et_real factor)
{
    const et_assignment *a = &m->pick->a;
    const et_real *w = weighs_input(m) ? m->used.slot_weight : NULL;
    size_t d = m->moe.d;
    et_real *dx = m->s.bwd.x;
    for (size_t slot = 0; slot < a->slots; slot++)
        et_add_row(d, w ? factor * w[slot] : factor, m->shares[0] + slot * d,
                   dx + (size_t)a->slot_token[slot] * d);
    if (m->moe.hs > 0) et_add_row(m->pick->count * d, factor, m->shares[1], dx);
}

static void mutate_shares(et_mutant *m)
{
    if (!et_mutant_hooked(m, ET_AT_SLOT_DX) || !et_take_shares(m)) return;
    add_shares(m, -1);
    et_mutant_call(m, ET_AT_SLOT_DX);
    add_shares(m, 1);
}

/* dw = <dX, x> of the dX that hooks have left. */
static void input_weights_backward(et_mutant *m)
{
    const et_assignment *a = &m->pick->a;
    size_t d = m->moe.d;
    mutate_shares(m);
    for (size_t slot = 0; m->status == ET_OK && m->shares[0] && slot < a->slots; slot++) {
        const et_real *x = m->on->x + (size_t)a->slot_token[slot] * d;
        et_real dw = 0;
        for (size_t c = 0; c < d; c++) dw += m->shares[0][slot * d + c] * x[c];
        m->s.bwd.slot_weight[slot] = dw;
    }
    if (m->status == ET_OK) et_mutant_call(m, ET_AT_DWEIGHT);
}

static void experts_backward(et_mutant *m)
{
    et_moe_grads *g = &m->s.bwd;
    const et_moe_values *f = &m->used;
    et_moe moe = layer_of(m);
    et_ffn dense = dense_layer(m);
    bool whole = m->pick->whole;
    g->x = m->room->bwd.x;
    if (weighs_input(m)) g->slot_weight = m->room->bwd.slot_weight; /* which the layer writes here */
    g->wanted = m->pick->complete;
    clear_gradients(m);
    const et_ffn_rows rows = {.m = moe.N,
                              .x = m->on->x,
                              .H = f->slot_pre,
                              .A = f->slot_act,
                              .dO = g->slot_out,
                              .dA = g->slot_act,
                              .dH = g->slot_pre,
                              .dx = g->x,
                              .V = f->slot_gate_pre,
                              .dV = g->slot_gate_pre};
    ran(m, has_experts(m)
               ? et_moe_experts_backward(&moe, m->on->x, &m->pick->a, f, g, m->error)
               : et_ffn_backward(&dense, &rows, whole ? g->up : NULL, whole ? g->down : NULL,
                                 whole ? g->gating : NULL, m->error));
    if (!has_experts(m) && whole)
        ran(m, et_ffn_bias_backward(&dense, &rows, g->b_up, g->b_gate, g->b_down, m->error));
    if (m->status != ET_OK) return;
    et_mutant_call(m, ET_AT_DDOWN);
    et_mutant_call(m, ET_AT_DUP);
    if (moe.activation == ET_SWIGLU) et_mutant_call(m, ET_AT_DGATING);
    for (int stage = ET_AT_DB_UP; stage <= ET_AT_DB_DOWN; stage++)
        if (*et_array_at(&m->s, (et_stage)stage, false)) et_mutant_call(m, (et_stage)stage);
    if (weighs_input(m)) input_weights_backward(m);
}

/* dx without the router's term, where the experts' shares are the reference's. */
static void start_dx(et_mutant *m)
{
    const et_moe_grads *right = &m->on->sub.bwd;
    size_t n = m->moe.n, d = m->moe.d, count = m->pick->count;
    if (m->done & et_stages_of(case_of(m), ET_EXPERTS_BACKWARD)) return;
    memcpy(m->s.bwd.x, right->x, count * d * sizeof(et_real));
    et_real *dr = has_experts(m) ? et_mutant_copy(m, right->logits, count * n) : NULL;
    if (dr == NULL) return;
    et_scale_values(count * n, -1, dr);
    et_matmul(ET_BLAS, count, d, n, et_rows(dr, n), et_rows(m->moe.router, d), true, m->s.bwd.x, d);
}

/* The losses' shares of dp and dr come in. */
static void start_scores(et_mutant *m)
{
    et_moe_grads *g = &m->s.bwd;
    size_t n = m->moe.n, size = m->pick->count * n;
    et_step *l = m->fault.forward_only ? &m->right_losses : &m->losses;
    if (l->bwd.gates == NULL) take_losses(m, l, true);
    m->loss_gates = et_mutant_reals(m, size);
    m->loss_logits = et_mutant_reals(m, size);
    if (m->status != ET_OK) return;
    et_pick_gather(m->pick, false, n, l->bwd.gates, m->loss_gates);
    et_pick_gather(m->pick, false, n, l->bwd.logits, m->loss_logits);
    clear(g->router, n * m->moe.d);
    memcpy(g->gates, m->loss_gates, size * sizeof(et_real));
    memcpy(g->logits, m->loss_logits, size * sizeof(et_real));
}

static void score_backward(et_mutant *m)
{
    et_moe moe = layer_of(m);
    m->blocked |= has_experts(m) && moe.gate == ET_GATE_SOFTMAX_TOKENS && !m->pick->whole;
    if (m->blocked) return; /* a column's tokens share their gradients */
    moe.gate_tokens = m->moe.gate_tokens;
    start_dx(m);
    if (has_experts(m)) start_scores(m);
    if (has_experts(m) && m->status == ET_OK)
        m->status =
            et_moe_score_backward(&moe, m->on->x, &m->pick->a, &m->used, &m->s.bwd, m->error);
    if (m->status != ET_OK) return;
    if (m->pick->whole && has_experts(m)) et_mutant_call(m, ET_AT_DROUTER);
    if (!weighs_input(m)) mutate_shares(m);
    et_mutant_call(m, ET_AT_DX);
}

static void layout(et_mutant *m)
{
    et_mutant_call(m, ET_AT_LAYOUT);
}

/* ---- all phases ---- */

/* Arrays to write to; whatever an earlier mutant left in them. */
static void take_room(et_mutant *m, et_phase phase)
{
    et_step *room = m->rerouted ? &m->own_room : &m->on->room;
    if (room->owned_count == 0) m->status = et_subject_room(m->on, m->pick, room, m->error);
    m->room = room;
    if (m->status == ET_OK)
        et_take_arrays(&m->s, room, phase);
    else
        et_step_free(room);
}

et_status et_mutant_phase(et_mutant *m, et_phase phase, et_error *error)
{
    static const struct {
        void (*compute)(et_mutant *m);
        bool of_moe, rows; /* of an MoE layer alone; it has rows of picked tokens */
    } phases[ET_PHASES] = {
        {selection, true, false},
        {scores, true, true},
        {experts, false, true},
        {combine, false, true},
        {losses, true, true},
        {combine_backward, false, true},
        {experts_backward, false, true},
        {score_backward, false, true},
        {layout, false, false},
    };
    unsigned stages = et_stages_of(case_of(m), phase), later = 0;
    m->error = error;
    if (phase == ET_SELECTION)
        m->reach = et_hypothesis_reach(case_of(m), m->fault.what, m->fault.variant,
                                       m->fault.forward_only);
    if (phase == ET_COMBINE_BACKWARD) turn_back(m);
    if (phase == ET_COMBINE_BACKWARD) later = stages & et_stages_of(case_of(m), ET_EXPERTS_BACKWARD);
    if (m->blocked || !(m->reach & stages)) return ET_OK;
    if (phases[phase].rows) take_room(m, phase);
    if (m->status == ET_OK && (has_experts(m) || !phases[phase].of_moe)) phases[phase].compute(m);
    if (!m->blocked) m->done |= stages & m->reach & ~later;
    if (m->status != ET_ENOMEM) return m->status;
    return et_fail(error, ET_ENOMEM, "explanation: no memory for a hypothesis");
}

/* ---- what it shows ---- */

static const void *values_in(const et_step *s, const char *tensor)
{
    et_tensor_out list[ET_MAX_STEP_TENSORS];
    const et_tensor_out *t = et_tensor_named(list, et_step_tensors(s, false, list), tensor);
    return t ? t->values : NULL;
}

const void *et_mutant_values(const et_mutant *m, const char *tensor)
{
    et_stage stage = et_stage_of(tensor);
    bool of_all = stage <= ET_AT_STATE || stage == ET_AT_LOSSES, laid = m->done >> ET_AT_LAYOUT & 1;
    if (stage == ET_STAGES || !(m->done >> stage & 1 || laid)) return NULL;
    const void *wrong = values_in(of_all ? &m->all : &m->s, tensor);
    return wrong != values_in(of_all ? m->on->right : &m->on->sub, tensor) ? wrong : NULL;
}

et_step et_mutant_step(const et_mutant *m)
{
    et_step s = m->all;
    s.fwd = m->s.fwd;
    s.bwd = m->s.bwd;
    if (!has_experts(m)) return s;
    s.assignment = *m->a;
    if (!m->rerouted) s.route.mask = m->on->right->route.mask;
    if (!et_gate_has_anchor(s.c.gate)) s.fwd.anchor = NULL; /* the mutant's own room */
    return s;
}
