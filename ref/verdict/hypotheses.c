/* hypotheses.c: what can go wrong in an MoE kernel. One table, at the end; a few lines of code for each
 * row, before it, in the order of the step.
 *
 * Each was seen in real kernels: in the tests and bug reports of MegaBlocks, ScatterMoE, vLLM, SGLang,
 * TransformerEngine, Megatron-LM, DeepEP, torchtitan, Tutel, PyTorch's grouped products, llama.cpp.
 * A hook is called when its stage has been computed as it should be (see deviant.h), and spoils it. What
 * follows from the spoiled values is computed from them: a wrong H makes a wrong y, and a wrong dW_up. That
 * the backward pass may have gone by right values all the same is tried for every forward hypothesis,
 * and needs no row here.
 *
 * A hypothesis has variants where the same mistake comes in several forms: v->variant is an index into
 * the row's list.
 */
#include "etref/dtype.h"
#include "etref/elementary.h"
#include "ref/base/memory.h"
#include "ref/verdict/deviant.h"
#include "ref/verdict/judge.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- where a hypothesis can show at all ---- */

static bool is_moe(const et_step *s)
{
    return s->c.layer == ET_MOE;
}

/* Of some expert: one whose weights can be read as if transposed. */
static bool is_square(const et_step *s)
{
    return s->c.d_expert == s->c.d_model || (is_moe(s) && s->c.shared_d_expert == s->c.d_model);
}

static bool has_shared(const et_step *s)
{
    return is_moe(s) && s->c.shared;
}

static bool has_many_experts(const et_step *s)
{
    return is_moe(s) && s->c.experts > 1;
}

static bool by_choice(const et_step *s)
{
    return is_moe(s) && et_case_routes_by_choice(&s->c);
}

static bool by_threshold(const et_step *s)
{
    return is_moe(s) && et_case_routes_by_threshold(&s->c);
}

static bool is_clamped(const et_step *s)
{
    return by_threshold(s) && s->c.has_capacity && !s->c.eval;
}

static bool could_be_clamped(const et_step *s)
{
    return by_threshold(s) && s->c.has_capacity && s->c.eval;
}

/* k says something: K of TC, or the load by which EC chooses and the moving average is fed. */
static bool uses_k(const et_step *s)
{
    return is_moe(s) && (s->c.rule == ET_TC || !s->c.eval);
}

static bool has_pools(const et_step *s)
{
    return uses_k(s) && s->c.rule != ET_TC && s->c.pool_tokens < s->c.tokens;
}

static bool is_cut_up(const et_step *s)
{
    return is_moe(s) && s->c.pool_tokens < s->c.tokens;
}

static bool has_pools_in_batch(const et_step *s)
{
    return by_choice(s) && s->c.pool_tokens < et_case_micro_tokens(&s->c);
}

static bool has_micro_batches(const et_step *s)
{
    return is_moe(s) && s->c.rule != ET_TC && s->c.micro_batches > 1;
}

static bool has_phases(const et_step *s)
{
    return by_choice(s) ? s->in.ema != NULL : by_threshold(s);
}

static bool has_bias(const et_step *s)
{
    return s->in.bias != NULL;
}

static bool moves_bias(const et_step *s)
{
    return s->state_bias != NULL && !s->c.eval;
}

static bool moves_bias_in_micro_batches(const et_step *s)
{
    return moves_bias(s) && s->in.load == NULL && s->c.micro_batches > 1;
}

static bool evaluates_bias(const et_step *s)
{
    return has_bias(s) && s->c.eval;
}

static bool moves_ema(const et_step *s)
{
    return s->state_ema != NULL && !s->c.eval;
}

static bool moves_ema_by_threshold(const et_step *s)
{
    return moves_ema(s) && by_threshold(s);
}

static bool moves_ema_in_micro_batches(const et_step *s)
{
    return moves_ema(s) && s->c.micro_batches > 1;
}

static bool evaluates_ema(const et_step *s)
{
    return s->in.ema != NULL && s->c.eval;
}

static bool corrects_ema(const et_step *s)
{
    return by_threshold(s) && s->c.ema_bias_correction;
}

static bool has_given_load(const et_step *s)
{
    return s->in.load != NULL && (s->loss_aux || moves_bias(s));
}

static bool has_softmax(const et_step *s)
{
    return is_moe(s) && s->c.gate != ET_GATE_SIGMOID && s->c.gate != ET_GATE_RELU;
}

static bool has_plain_softmax(const et_step *s)
{
    return is_moe(s) && (s->c.gate == ET_GATE_SOFTMAX || s->c.gate == ET_GATE_SOFTMAX_TOKENS);
}

static bool has_anchor(const et_step *s)
{
    return is_moe(s) && et_gate_has_anchor(s->c.gate);
}

static bool has_anchor_gradient(const et_step *s)
{
    return has_anchor(s) && et_step_layer(s).anchor_weighs_shared;
}

static bool has_norm(const et_step *s)
{
    return is_moe(s) && s->c.norm != ET_NORM_NONE;
}

static bool has_no_norm(const et_step *s)
{
    return is_moe(s) && s->c.norm == ET_NORM_NONE;
}

static bool sums_gates(const et_step *s)
{
    return is_moe(s) && s->c.norm == ET_NORM_SUM;
}

static bool divides_by_fanout(const et_step *s)
{
    return is_moe(s) && s->c.norm == ET_NORM_FANOUT;
}

static bool counts_shared(const et_step *s)
{
    return divides_by_fanout(s) && s->c.shared;
}

static bool has_aux(const et_step *s)
{
    return s->loss_aux != NULL;
}

static bool has_z_loss(const et_step *s)
{
    return s->loss_z != NULL;
}

static bool has_loss(const et_step *s)
{
    return has_aux(s) || has_z_loss(s);
}

static bool has_loss_in_micro_batches(const et_step *s)
{
    return has_loss(s) && s->c.micro_batches > 1;
}

static bool has_empty_expert(const et_step *s)
{
    bool empty = false;
    for (size_t i = 0; is_moe(s) && i < s->c.experts; i++) empty |= s->assignment.load[i] == 0;
    return empty;
}

/* ---- selection: what it goes by ---- */

static void last_wins(et_deviant *v)
{
    v->plan.last_wins = true;
}

static void lowest_first(et_deviant *v)
{
    v->plan.lowest_first = true;
}

static void other_side(et_deviant *v)
{
    v->plan.inclusive = !v->plan.inclusive;
}

static void set_k(et_deviant *v, size_t k)
{
    et_plan *p = &v->plan;
    size_t most = p->how == ET_TC ? v->moe.n : p->how == ET_EC ? p->pool : p->batch;
    if (k < 1) k = 1;
    if (k > most) k = most;
    if (p->how == ET_TC) {
        p->K = k;
        return;
    }
    p->k = k;
    p->bounds = et_capacity_bounds(k, v->s.c.capacity_factor, p->batch);
}

static size_t target(const et_deviant *v)
{
    return v->plan.how == ET_TC ? v->plan.K : v->plan.k;
}

static void one_more(et_deviant *v)
{
    set_k(v, target(v) + 1);
}

static void one_fewer(et_deviant *v)
{
    set_k(v, target(v) - 1);
}

static bool has_remainder(const et_step *s)
{
    return uses_k(s) && s->c.rule != ET_TC &&
           s->c.pool_tokens * s->c.granularity % s->c.experts != 0;
}

static void ceiling(et_deviant *v)
{
    const et_case *c = &v->s.c;
    set_k(v, (c->pool_tokens * c->granularity + c->experts - 1) / c->experts);
}

static void k_from_batch(et_deviant *v)
{
    const et_case *c = &v->s.c;
    size_t exact = c->tokens * c->granularity / c->experts;
    set_k(v, v->variant == 0 ? exact : c->target_load * (c->tokens / c->pool_tokens));
}

/* One pool for all tokens that are routed together; it takes as many as its parts did, as many as
 * one of them, or what its own size says. */
static void one_pool(et_deviant *v)
{
    et_plan *p = &v->plan;
    const et_case *c = &v->s.c;
    size_t parts = p->batch / p->pool, k = p->k;
    p->pool = p->batch;
    set_k(v, v->variant == 0   ? k * parts
             : v->variant == 1 ? k
                               : p->batch * c->granularity / c->experts);
}

static void one_batch(et_deviant *v)
{
    et_plan *p = &v->plan;
    size_t k = p->k, parts = v->moe.N / p->batch;
    if (p->pool == p->batch) p->pool = v->moe.N;
    p->batch = v->moe.N;
    set_k(v, v->variant == 0 && p->pool == p->batch ? k * parts : k);
}

static void never_clamped(et_deviant *v)
{
    v->plan.clamped = false;
}

static void always_clamped(et_deviant *v)
{
    v->plan.clamped = true;
}

static void other_upper(et_deviant *v)
{
    if (v->variant == 0) v->plan.bounds.upper++;
    if (v->variant == 1 && v->plan.bounds.upper > v->plan.bounds.lower) v->plan.bounds.upper--;
}

static void other_lower(et_deviant *v)
{
    if (v->variant == 0 && v->plan.bounds.lower < v->plan.bounds.upper) v->plan.bounds.lower++;
    if (v->variant == 1 && v->plan.bounds.lower > 0) v->plan.bounds.lower--;
}

static void no_padding(et_deviant *v)
{
    v->plan.bounds.lower = 0;
}

static void per_token(et_deviant *v)
{
    size_t G = v->s.c.granularity, n = v->moe.n;
    v->plan.how = ET_TC;
    v->plan.K = G < n ? G : n;
}

static void without_bias(et_deviant *v)
{
    v->plan.bias = NULL;
}

static et_dtype score_type(size_t variant)
{
    return variant == 0 ? ET_BF16 : ET_F16;
}

static bool scores_are_low(const et_profile *p, size_t variant)
{
    return p->bits[ET_LOGITS] <= et_dtype_significand(score_type(variant));
}

static void low_scores(et_deviant *v)
{
    et_dtype type = score_type(v->variant);
    for (size_t i = 0; i < v->moe.N * v->moe.n; i++)
        v->plan.scores[i] = (et_real)et_round_to_dtype((double)v->plan.scores[i], type);
}

/* Rounded as gates are: where they saturate they tie. Variants from 3 on: and the bias is left out. */
static void gates_as_scores(et_deviant *v)
{
    static const et_dtype types[] = {ET_F32, ET_F64, ET_BF16};
    for (size_t i = 0; i < v->moe.N * v->moe.n; i++)
        v->plan.scores[i] =
            (et_real)et_round_to_dtype((double)v->s.fwd.gates[i], types[v->variant % 3]);
    if (v->variant >= 3) v->plan.bias = NULL;
}

static void set_thresholds(et_deviant *v, const et_real *ema, bool corrected, size_t updates)
{
    et_ema_threshold(v->moe.n, ema, v->s.c.ema_decay, corrected, updates, v->plan.thresholds);
}

static void other_phase(et_deviant *v)
{
    const et_case *c = &v->s.c;
    bool choice = v->plan.how == ET_EC;
    v->plan.how = choice ? ET_ET : ET_EC;
    v->plan.clamped = choice && c->has_capacity && !c->eval;
    if (choice) set_thresholds(v, v->s.in.ema, c->ema_bias_correction, c->ema_updates);
}

/* The average of this step is the reference's state after it. Form 0: corrected by the count after the update; 1: by
 * the one before it; 2: the corrected threshold itself is moved on, beta c + (1 - beta) cutoff. */
static void ema_before_use(et_deviant *v)
{
    const et_case *c = &v->s.c;
    const et_step *right = v->on->right;
    size_t u = c->ema_updates;
    set_thresholds(v, right->state_ema, c->ema_bias_correction, v->variant == 0 ? u + 1 : u);
    if (v->variant < 2) return;
    set_thresholds(v, right->in.ema, c->ema_bias_correction, u);
    et_ema_update(v->moe.n, c->ema_decay, right->route.cutoff, v->plan.thresholds);
}

static void other_correction(et_deviant *v)
{
    const et_case *c = &v->s.c;
    set_thresholds(v, v->s.in.ema, !c->ema_bias_correction, c->ema_updates);
}

static void correction_off_by_one(et_deviant *v)
{
    const et_case *c = &v->s.c;
    size_t u = c->ema_updates;
    set_thresholds(v, v->s.in.ema, true, v->variant == 0 ? u + 1 : u > 0 ? u - 1 : 0);
}

/* ---- selection: what comes of it ---- */

static bool passes(const et_deviant *v, size_t place)
{
    et_real r = v->plan.scores[place], c = v->plan.thresholds[place % v->moe.n];
    return v->plan.inclusive ? r >= c : r > c;
}

/* An expert with too many keeps the first ones, one with too few adds the first of the others. */
static void clamp_by_index(et_deviant *v)
{
    const et_plan *p = &v->plan;
    size_t n = v->moe.n;
    for (size_t at = 0; at < v->moe.N / p->batch * n; at++) {
        size_t first = at / n * p->batch * n + at % n, end = first + p->batch * n, taken = 0;
        for (size_t j = first; j < end; j += n) {
            v->s.route.mask[j] = passes(v, j) && taken < p->bounds.upper;
            taken += v->s.route.mask[j];
        }
        for (size_t j = first; j < end && taken < p->bounds.lower; j += n) {
            taken += !v->s.route.mask[j];
            v->s.route.mask[j] = 1;
        }
    }
}

/* ---- cutoffs and state ---- */

static void mean_of_batches(et_deviant *v)
{
    size_t n = v->moe.n, batches = v->moe.N / v->plan.batch;
    for (size_t i = 0; i < n; i++) {
        v->cutoff[i] = 0;
        for (size_t b = 0; b < batches; b++) v->cutoff[i] += v->kth[b * n + i];
        v->cutoff[i] /= (et_real)batches;
    }
}

static void lowest_routed(et_deviant *v)
{
    size_t n = v->moe.n, batch = v->plan.batch;
    for (size_t at = 0; at < v->moe.N / batch * n; at++) {
        bool any = false;
        for (size_t t = at / n * batch; t < (at / n + 1) * batch; t++) {
            et_real r = v->plan.scores[t * n + at % n];
            if (!v->s.route.mask[t * n + at % n] || (any && r >= v->kth[at])) continue;
            v->kth[at] = r;
            any = true;
        }
    }
    mean_of_batches(v);
}

static void one_batch_counts(et_deviant *v)
{
    size_t n = v->moe.n, batches = v->moe.N / v->plan.batch;
    size_t b = v->variant == 0 ? batches - 1 : 0;
    memcpy(v->cutoff, v->kth + b * n, n * sizeof *v->cutoff);
}

/* Of each micro-batch. */
static void one_pool_counts(et_deviant *v)
{
    const et_plan *p = &v->plan;
    size_t n = v->moe.n, parts = p->batch / p->pool, one = v->variant == 0 ? parts - 1 : 0;
    for (size_t b = 0; b < v->moe.N / p->batch; b++)
        memcpy(v->kth + b * n, v->s.route.pool_cutoff + (b * parts + one) * n, n * sizeof *v->kth);
    mean_of_batches(v);
}

static void swap_beta(et_deviant *v)
{
    et_real beta = (et_real)v->s.c.ema_decay;
    for (size_t i = 0; i < v->moe.n; i++)
        v->s.state_ema[i] = (1 - beta) * v->s.in.ema[i] + beta * v->cutoff[i];
}

static void keep_ema(et_deviant *v)
{
    memcpy(v->s.state_ema, v->s.in.ema, v->moe.n * sizeof(et_real));
}

static void set_updates(et_deviant *v, size_t count)
{
    int32_t *updates = et_deviant_integers(v, 1);
    if (updates == NULL) return;
    *updates = (int32_t)count;
    v->s.state_updates = updates;
}

static void move_ema(et_deviant *v)
{
    et_ema_update(v->moe.n, v->s.c.ema_decay, v->cutoff, v->s.state_ema);
    set_updates(v, v->s.c.ema_updates + 1);
}

static void keep_updates(et_deviant *v)
{
    set_updates(v, v->s.c.ema_updates);
}

/* The bias after the step, moved by loads [n] that were counted in batches of `tokens`. */
static void move_bias(et_deviant *v, et_balance balance, size_t tokens, const et_real *load)
{
    memcpy(v->s.state_bias, v->s.in.bias, v->moe.n * sizeof(et_real));
    et_bias_update(balance, tokens, v->moe.n, v->s.c.top_k, load, v->s.c.bias_rate,
                   v->s.state_bias);
}

/* Loads by which the bias should move, and of how many tokens: given ones, or those from token `first`
 * on. */
static et_real *take_loads(et_deviant *v, bool given, size_t first, size_t *tokens)
{
    size_t N = v->moe.N, n = v->moe.n;
    et_real *load = et_deviant_reals(v, n);
    *tokens = given ? et_case_micro_tokens(&v->s.c) : N - first;
    for (size_t i = 0; load && given && i < n; i++) load[i] = v->s.in.load[i];
    for (size_t j = first * n; load && !given && j < N * n; j++) load[j % n] += v->s.route.mask[j];
    return load;
}

static void bias_by_right_loads(et_deviant *v)
{
    size_t tokens;
    const et_real *load = take_loads(v, v->s.in.load != NULL, 0, &tokens);
    if (load) move_bias(v, v->s.c.balance, tokens, load);
}

static void move_bias_backwards(et_deviant *v)
{
    bias_by_right_loads(v);
    for (size_t i = 0; i < v->moe.n; i++)
        v->s.state_bias[i] = 2 * v->s.in.bias[i] - v->s.state_bias[i];
}

static void low_counts(et_deviant *v)
{
    size_t tokens;
    et_real *load = take_loads(v, v->s.in.load != NULL, 0, &tokens);
    for (size_t i = 0; load && i < v->moe.n; i++)
        load[i] = (et_real)et_round_to_dtype((double)load[i], ET_BF16);
    if (load) move_bias(v, v->s.c.balance, tokens, load);
}

static void last_loads(et_deviant *v)
{
    size_t tokens;
    et_real *load = take_loads(v, false, v->moe.N - et_case_micro_tokens(&v->s.c), &tokens);
    if (load) move_bias(v, v->s.c.balance, tokens, load);
}

static void own_loads(et_deviant *v)
{
    size_t tokens;
    et_real *load = v->s.in.bias ? take_loads(v, false, 0, &tokens) : NULL;
    if (load) move_bias(v, v->s.c.balance, tokens, load);
}

static void other_bias_rule(et_deviant *v)
{
    size_t tokens;
    bool by_sign = v->s.c.balance == ET_BALANCE_LOSSFREE;
    et_real *load = take_loads(v, v->s.in.load != NULL, 0, &tokens);
    if (load) move_bias(v, by_sign ? ET_BALANCE_PROPORTIONAL : ET_BALANCE_LOSSFREE, tokens, load);
}

static void keep_bias(et_deviant *v)
{
    memcpy(v->s.state_bias, v->s.in.bias, v->moe.n * sizeof(et_real));
}

/* ---- gates ---- */

/* Scores other than the logits, as gates see them; variant 1: their derivative, too. */
static void gates_of(et_deviant *v, const et_real *scores)
{
    if (scores == NULL) return;
    et_gates_again(v, scores);
    if (v->variant == 1) v->gate_logits = scores;
}

static void biased_gates(et_deviant *v)
{
    size_t N = v->moe.N, n = v->moe.n;
    et_real *scores = et_deviant_reals(v, N * n);
    for (size_t j = 0; scores && j < N * n; j++)
        scores[j] = v->s.fwd.logits[j] + v->s.in.bias[j % n];
    gates_of(v, scores);
}

static void another_gate(et_deviant *v, et_gate gate)
{
    v->moe.gate = gate;
    et_gates_again(v, v->s.fwd.logits);
}

static void no_anchor(et_deviant *v)
{
    et_real s = v->variant == 0 ? 1 : 0;
    another_gate(v, ET_GATE_SOFTMAX);
    for (size_t t = 0; t < v->moe.N; t++) v->s.fwd.anchor[t] = s;
}

static void other_axis(et_deviant *v)
{
    another_gate(v, v->moe.gate == ET_GATE_SOFTMAX ? ET_GATE_SOFTMAX_TOKENS : ET_GATE_SOFTMAX);
}

static void other_gate(et_deviant *v)
{
    static const et_gate gates[] = {ET_GATE_SIGMOID, ET_GATE_SOFTMAX, ET_GATE_RELU,
                                    ET_GATE_SOFTMAX_ANCHOR};
    et_gate gate = gates[v->variant];
    if (v->moe.gate == ET_GATE_SOFTMAX_TOKENS && gate == ET_GATE_SOFTMAX)
        return; /* the wrong axis */
    if (et_gate_has_anchor(v->moe.gate) && gate != ET_GATE_SIGMOID && gate != ET_GATE_RELU) return;
    another_gate(v, gate);
}

/* ---- weights ---- */

static void weight_one(et_deviant *v, const et_row *r)
{
    if (r->expert < v->moe.n) *r->w = 1;
}

static void weight_twice(et_deviant *v, const et_row *r)
{
    if (r->expert < v->moe.n) *r->w *= et_gate_of(v, r->slot);
}

static bool is_padding(const et_deviant *v, size_t t, size_t i)
{
    const et_step *right = v->on->right;
    et_real r = right->fwd.logits[t * v->moe.n + i], c = right->route.threshold[i];
    return right->c.inclusive ? r < c : r <= c;
}

static void padding_weighs_nothing(et_deviant *v, const et_row *r)
{
    if (r->expert < v->moe.n && is_padding(v, r->token, r->expert)) *r->w = 0;
}

static void padding_has_no_gradient(et_deviant *v, size_t t)
{
    size_t n = v->moe.n;
    for (size_t i = 0; i < n; i++)
        if (v->s.route.mask[t * n + i] && is_padding(v, t, i))
            v->s.bwd.gates[t * n + i] = v->loss_gates[t * n + i];
}

static void without_shared(et_deviant *v)
{
    v->without_shared = true;
    et_weigh_again(v);
}

static void no_norm(et_deviant *v)
{
    v->moe.norm = ET_NORM_NONE;
    et_weigh_again(v);
}

static void norm_over_all(et_deviant *v)
{
    v->over_all = true;
    et_weigh_again(v);
}

static void another_norm(et_deviant *v)
{
    v->moe.norm = v->variant == 0 ? ET_NORM_SUM : ET_NORM_FANOUT;
    et_weigh_again(v);
}

/* Weights lie token by token, and are read expert by expert; or the other way round. */
static void weights_in_other_order(et_deviant *v)
{
    size_t S = v->a->slots;
    et_real *right = et_deviant_reals(v, S), *w = v->s.fwd.slot_weight;
    if (right == NULL) return;
    memcpy(right, w, S * sizeof *w);
    for (size_t q = 0; q < S; q++) {
        size_t slot = (size_t)v->a->token_slots[q];
        if (v->variant == 0)
            w[q] = right[slot];
        else
            w[slot] = right[q];
    }
}

static size_t neighbour(const et_deviant *v, size_t i, bool before)
{
    return before ? (i + v->moe.n - 1) % v->moe.n : (i + 1) % v->moe.n;
}

static void gate_of_neighbour(et_deviant *v, const et_row *r)
{
    const et_real *gates = v->s.fwd.gates;
    size_t n = v->moe.n;
    if (r->expert == n) return;
    et_real by = et_divisor(v, gates, r->token);
    et_real p = gates[r->token * n + neighbour(v, r->expert, v->variant == 1)];
    *r->w = by != 0 ? p / by : 0;
}

/* By what a kernel that gates its experts may have gated the shared one. */
static et_real gate_for_shared(const et_deviant *v, size_t t)
{
    const int32_t *slots;
    size_t count = et_slots_of(v, t, &slots);
    et_real sum = 0;
    if (v->variant == 0) return v->s.fwd.gates[t * v->moe.n];
    for (size_t j = 0; j < count; j++) sum += v->s.fwd.slot_weight[slots[j]];
    if (v->variant == 1) return count > 0 ? v->s.fwd.slot_weight[slots[0]] : 1;
    return v->variant == 2 ? sum : 1 - sum;
}

static void gate_shared(et_deviant *v, const et_row *r)
{
    if (r->expert == v->moe.n) *r->w *= gate_for_shared(v, r->token);
}

static void shared_weighs_nothing(et_deviant *v, const et_row *r)
{
    if (r->expert == v->moe.n) *r->w = 0;
}

static void shared_weighs_twice(et_deviant *v, const et_row *r)
{
    if (r->expert == v->moe.n) *r->w *= 2;
}

/* ---- the experts' weights ---- */

static void use_expert(et_deviant *v, et_weights *w, size_t e)
{
    size_t size = v->moe.h * v->moe.d;
    if (w->expert == v->moe.n) return; /* the shared one has no neighbour */
    w->up = v->moe.up + e * size;
    w->down = v->moe.down + e * size;
}

/* Variants 0 and 1: i+1; 2 and 3: i-1. Odd ones do so in the backward pass, too. */
static void neighbours_weights(et_deviant *v, et_weights *w)
{
    if (!w->backward || v->variant % 2 == 1)
        use_expert(v, w, neighbour(v, w->expert, v->variant > 1));
}

static void neighbours_weights_backward(et_deviant *v, et_weights *w)
{
    if (w->backward) use_expert(v, w, neighbour(v, w->expert, v->variant == 1));
}

static void first_experts_weights(et_deviant *v, et_weights *w)
{
    if (!w->backward || v->variant == 1) use_expert(v, w, 0);
}

/* The shared expert may have another width than the routed ones: only what is square is turned. */
static bool can_be_turned(const et_deviant *v, const et_weights *w)
{
    return (w->expert < v->moe.n ? v->moe.h : v->moe.hs) == v->moe.d;
}

static void turn_up(et_deviant *v, et_weights *w)
{
    w->up_turned = can_be_turned(v, w) && (!w->backward || v->variant == 1);
}

static void turn_down(et_deviant *v, et_weights *w)
{
    w->down_turned = can_be_turned(v, w) && (!w->backward || v->variant == 1);
}

/* One row through other weights: variants 4 to 6 of neighbour-expert, the last rows of an expert
 * that fill no tile of 16, 64 or 128. */
static bool is_in_last_tile(const et_row *r, size_t tile)
{
    return r->place >= r->load - r->load % tile;
}

static size_t tile_of(const et_deviant *v, const et_row *r)
{
    static const size_t tiles[] = {16, 64, 128};
    return v->variant >= 4 && r->expert < v->moe.n ? tiles[v->variant - 4] : 1;
}

static void neighbours_hidden(et_deviant *v, const et_row *r)
{
    size_t d = v->moe.d, h = v->moe.h;
    const et_real *x = v->s.in.x + r->token * d;
    if (!is_in_last_tile(r, tile_of(v, r))) return;
    const et_real *up = v->moe.up + neighbour(v, r->expert, false) * h * d;
    et_matmul(v->moe.engine, 1, h, d, et_rows(x, d), et_transposed(up, d), false, r->H, h);
}

static void neighbours_output(et_deviant *v, const et_row *r)
{
    size_t d = v->moe.d, h = v->moe.h;
    if (!is_in_last_tile(r, tile_of(v, r))) return;
    const et_real *down = v->moe.down + neighbour(v, r->expert, false) * h * d;
    et_matmul(v->moe.engine, 1, d, h, et_rows(r->A, h), et_transposed(down, h), false, r->O, d);
}

/* ---- H, A, O ---- */

static et_real relu(et_real v)
{
    return v > 0 ? v : 0;
}

/* The row whose number is this slot's, as if slots were tokens. */
static size_t slot_as_token(et_deviant *v, const et_row *r)
{
    return r->expert < v->moe.n ? r->slot % v->moe.N : r->token;
}

static void weigh_hidden(et_deviant *v, const et_row *r)
{
    for (size_t j = 0; r->expert < v->moe.n && j < r->width; j++) r->H[j] *= *r->w;
}

static void weigh_hidden_inside(et_deviant *v, const et_row *r)
{
    for (size_t j = 0; r->expert < v->moe.n && j < r->width; j++) r->A[j] *= *r->w * *r->w;
}

static void not_squared(et_deviant *v, const et_row *r)
{
    (void)v;
    for (size_t j = 0; j < r->width; j++) r->A[j] = relu(r->H[j]);
}

static void not_squared_slope(et_deviant *v, const et_row *r)
{
    (void)v;
    for (size_t j = 0; j < r->width; j++) r->dH[j] = r->H[j] > 0 ? r->dA[j] : 0;
}

static void square_alone(et_deviant *v, const et_row *r)
{
    (void)v;
    for (size_t j = 0; j < r->width; j++) r->A[j] = r->H[j] * r->H[j];
}

static void square_slope(et_deviant *v, const et_row *r)
{
    (void)v;
    for (size_t j = 0; j < r->width; j++) r->dH[j] = r->dA[j] * (2 * r->H[j]);
}

static double logistic(double x)
{
    return 1 / (1 + et_exp(-x));
}

/* SiLU: x s(x), s the logistic function, slope s + x s (1-s). GELU by its usual approximation with a tanh is
 * x s(2u), u = sqrt(2/pi) (x + 0.044715 x^3): the same form. */
static double smooth_relu(et_deviant *v, double x, double *slope)
{
    const double root = 0.79788456080286536;
    bool silu = v->variant == 0;
    double inner = silu ? x : 2 * root * (x + 0.044715 * x * x * x);
    double s = logistic(inner), ds = silu ? 1 : 2 * root * (1 + 3 * 0.044715 * x * x);
    *slope = s + x * s * (1 - s) * ds;
    return x * s;
}

static void other_activation(et_deviant *v, const et_row *r)
{
    double slope;
    for (size_t j = 0; j < r->width; j++)
        r->A[j] = (et_real)smooth_relu(v, (double)r->H[j], &slope);
}

static void other_activation_slope(et_deviant *v, const et_row *r)
{
    double slope;
    for (size_t j = 0; j < r->width; j++) {
        smooth_relu(v, (double)r->H[j], &slope);
        r->dH[j] = r->dA[j] * (et_real)slope;
    }
}

static bool is_last_row(const et_row *r)
{
    return r->place + 1 == r->load;
}

static void drop_last_row(et_deviant *v, const et_row *r)
{
    if (is_last_row(r)) memset(r->O, 0, v->moe.d * sizeof *r->O);
}

static size_t dropped_tile(const et_deviant *v)
{
    static const size_t tiles[] = {16, 32, 64, 128, 256};
    return tiles[v->variant % 5];
}

static bool is_in_dropped_tile(const et_deviant *v, const et_row *r)
{
    return is_in_last_tile(r, dropped_tile(v));
}

static void drop_last_tile(et_deviant *v, const et_row *r)
{
    if (is_in_dropped_tile(v, r)) memset(r->O, 0, v->moe.d * sizeof *r->O);
}

/* ---- y ---- */

static void add(size_t d, et_real factor, const et_real *from, et_real *to)
{
    for (size_t c = 0; c < d; c++) to[c] += factor * from[c];
}

static et_real *y_of(et_deviant *v, size_t t)
{
    return v->s.fwd.y + t * v->moe.d;
}

/* y_t += factor w f(x) of a slot; a dense layer's have no weight. */
static void add_slot(et_deviant *v, size_t t, size_t slot, et_real factor)
{
    size_t d = v->moe.d;
    et_real w = v->s.fwd.slot_weight ? v->s.fwd.slot_weight[slot] : 1;
    add(d, factor * w, v->s.fwd.slot_out + slot * d, y_of(v, t));
}

static void add_shared(et_deviant *v, size_t t, et_real factor)
{
    size_t d = v->moe.d;
    if (v->moe.hs > 0)
        add(d, factor * v->s.fwd.shared_weight[t], v->s.fwd.shared_out + t * d, y_of(v, t));
}

/* y_t without its slots. */
static void start_y(et_deviant *v, size_t t)
{
    memset(y_of(v, t), 0, v->moe.d * sizeof(et_real));
    add_shared(v, t, 1);
}

/* Each slot's f(x) with weight 1; or, `twice`, with another factor w. */
static void reweigh_y(et_deviant *v, size_t t, bool twice)
{
    const int32_t *slots;
    size_t d = v->moe.d, count = et_slots_of(v, t, &slots);
    start_y(v, t);
    for (size_t j = 0; j < count; j++) {
        size_t slot = (size_t)slots[j];
        if (twice)
            add_slot(v, t, slot, v->s.fwd.slot_weight[slot]);
        else
            add(d, 1, v->s.fwd.slot_out + slot * d, y_of(v, t));
    }
}

static void y_unweighted(et_deviant *v, size_t t)
{
    reweigh_y(v, t, false);
}

static void y_weighted_twice(et_deviant *v, size_t t)
{
    reweigh_y(v, t, true);
}

/* y_t without the rows that end an expert's load: those that fill no whole tile; or the last, with tile = 0. */
static void y_without_end(et_deviant *v, size_t t, size_t tile)
{
    const int32_t *slots;
    size_t count = et_slots_of(v, t, &slots);
    start_y(v, t);
    for (size_t j = 0; j < count; j++) {
        size_t slot = (size_t)slots[j], e = (size_t)v->a->slot_expert[slot];
        size_t lost = tile ? (size_t)v->a->load[e] % tile : 1;
        if (slot + lost < (size_t)v->a->expert_offsets[e + 1]) add_slot(v, t, slot, 1);
    }
}

static void y_without_last_rows(et_deviant *v, size_t t)
{
    y_without_end(v, t, 0);
}

static void y_without_last_tiles(et_deviant *v, size_t t)
{
    y_without_end(v, t, dropped_tile(v));
}

/* Variant 0: each token's first slot; 1: its last; 2: the first slot of all; 3: the last of all. */
static void add_slot_again(et_deviant *v, size_t t)
{
    const int32_t *slots;
    size_t count = et_slots_of(v, t, &slots), last = v->a->slots;
    if (count == 0) return;
    size_t slot = (size_t)(v->variant % 2 == 0 ? slots[0] : slots[count - 1]);
    if (v->variant < 2 || slot == (v->variant == 2 ? 0 : last - 1)) add_slot(v, t, slot, 1);
}

/* Form 0: only the last slot stays; 1: neither does the shared expert; 2: only the first stays. 3, 4, 5: the same,
 * and no gradient comes back to what was overwritten. */
static void overwrite_slots(et_deviant *v, size_t t)
{
    const int32_t *slots;
    size_t count = et_slots_of(v, t, &slots);
    if (count == 0) return;
    start_y(v, t);
    if (v->variant % 3 == 1) memset(y_of(v, t), 0, v->moe.d * sizeof(et_real));
    add_slot(v, t, (size_t)slots[v->variant % 3 == 2 ? 0 : count - 1], 1);
}

static bool is_overwritten(et_deviant *v, const et_row *r)
{
    const int32_t *slots;
    size_t count = et_slots_of(v, r->token, &slots);
    if (r->expert == v->moe.n) return count > 0 && v->variant % 3 == 1;
    return r->slot != (size_t)slots[v->variant % 3 == 2 ? 0 : count - 1];
}

static void y_without_shared(et_deviant *v, size_t t)
{
    add_shared(v, t, -1);
}

static void y_with_shared_twice(et_deviant *v, size_t t)
{
    add_shared(v, t, 1);
}

static void y_with_shared_gated(et_deviant *v, size_t t)
{
    size_t kept = v->variant;
    v->variant -= 4;
    et_real gate = gate_for_shared(v, t);
    v->variant = kept;
    add_shared(v, t, gate - 1);
}

/* token_slots lists the slots token by token; its inverse says where in that list a slot stands. */
static int32_t *inverse_of_token_slots(et_deviant *v)
{
    int32_t *inverse = et_deviant_integers(v, v->a->slots);
    for (size_t q = 0; inverse && q < v->a->slots; q++) inverse[v->a->token_slots[q]] = (int32_t)q;
    return inverse;
}

/* Variant 0: weights and outputs are both read through the inverse; 1: outputs alone. */
static void gather_y_by_inverse(et_deviant *v)
{
    size_t d = v->moe.d;
    const int32_t *inverse = inverse_of_token_slots(v), *offsets = v->a->token_offsets;
    for (size_t t = 0; inverse && t < v->moe.N; t++) {
        if (!v->pick->token[t]) continue;
        start_y(v, t);
        for (int32_t q = offsets[t]; q < offsets[t + 1]; q++) {
            size_t slot = (size_t)inverse[q];
            size_t weight = v->variant == 0 ? slot : (size_t)v->a->token_slots[q];
            add(d, v->s.fwd.slot_weight[weight], v->s.fwd.slot_out + slot * d, y_of(v, t));
        }
    }
}

/* ---- losses ---- */

static void scale_all(et_deviant *v, et_real *values, et_real factor)
{
    for (size_t i = 0; i < v->moe.N * v->moe.n; i++) values[i] *= factor;
}

static void no_aux_gradient(et_deviant *v)
{
    scale_all(v, v->loss_gates, 0);
}

static void aux_gradient_twice(et_deviant *v)
{
    scale_all(v, v->loss_gates, 2);
}

static void no_z_gradient(et_deviant *v)
{
    scale_all(v, v->loss_logits, 0);
}

static void z_gradient_twice(et_deviant *v)
{
    scale_all(v, v->loss_logits, 2);
}

static void gradients_without_coefficients(et_deviant *v)
{
    const et_case *c = &v->s.c;
    if (v->s.loss_aux && c->balance_coef > 0)
        scale_all(v, v->loss_gates, 1 / (et_real)c->balance_coef);
    if (v->s.loss_z && c->z_loss_coef > 0)
        scale_all(v, v->loss_logits, 1 / (et_real)c->z_loss_coef);
}

static void aux_gradient_of_selected(et_deviant *v)
{
    for (size_t j = 0; j < v->moe.N * v->moe.n; j++)
        if (!v->s.route.mask[j]) v->loss_gates[j] = 0;
}

/* F_i = n/(KN) sum_t z_ti, as if dz/dp were 1: dL/dp_ti gets alpha P_i n/(KN), on the slots (variant
 * 0) or everywhere. */
static void aux_gradient_through_f(et_deviant *v)
{
    const et_case *c = &v->s.c;
    size_t micro = et_case_micro_tokens(c), n = v->moe.n;
    double scale = c->balance_coef / (double)c->micro_batches;
    for (size_t at = 0; at < c->micro_batches * n; at++) {
        size_t first = at / n * micro, i = at % n;
        double P = 0;
        for (size_t t = first; t < first + micro; t++) P += (double)v->s.fwd.gates[t * n + i];
        double each = scale * (P / (double)micro) * (double)n / ((double)c->top_k * (double)micro);
        for (size_t t = first; t < first + micro; t++)
            if (v->variant == 1 || v->s.route.mask[t * n + i])
                v->loss_gates[t * n + i] += (et_real)each;
    }
}

static void other_aux(et_deviant *v)
{
    v->balance = v->balance == ET_BALANCE_AUX ? ET_BALANCE_AUX_ERROR : ET_BALANCE_AUX;
    et_losses_again(v);
}

static void aux_by_own_loads(et_deviant *v)
{
    v->own_load = true;
    et_losses_again(v);
}

static void scale_losses(et_deviant *v, double aux, double z)
{
    if (v->s.loss_aux) *v->s.loss_aux *= (et_real)aux;
    if (v->s.loss_z) *v->s.loss_z *= (et_real)z;
}

static void losses_with_coefficients(et_deviant *v)
{
    scale_losses(v, v->s.c.balance_coef, v->s.c.z_loss_coef);
}

static void losses_summed(et_deviant *v)
{
    scale_losses(v, (double)v->s.c.micro_batches, (double)v->s.c.micro_batches);
}

/* ---- dw, dO, dA, dH ---- */

static void dw_of_weighted(et_deviant *v, const et_row *r)
{
    (void)v;
    *r->dw *= *r->w;
}

/* What autograd makes of a row that y does not have: dw = 0, and then dO = 0. */
static void forget_dO(const et_deviant *v, const et_row *r)
{
    memset(r->dO, 0, v->moe.d * sizeof *r->dO);
}

static bool is_lost_last_row(const et_deviant *v, const et_row *r)
{
    return is_last_row(r) && (r->expert < v->moe.n || v->variant == 3);
}

static void last_row_without_dw(et_deviant *v, const et_row *r)
{
    if (r->dw && is_lost_last_row(v, r)) *r->dw = 0;
}

static void last_row_without_dO(et_deviant *v, const et_row *r)
{
    if (is_lost_last_row(v, r)) forget_dO(v, r);
}

static bool is_in_lost_tile(const et_deviant *v, const et_row *r)
{
    bool in_y = v->variant >= 10; /* of routed experts */
    return is_in_dropped_tile(v, r) && !(in_y && r->expert == v->moe.n);
}

static void last_tile_without_dw(et_deviant *v, const et_row *r)
{
    if (r->dw && is_in_lost_tile(v, r)) *r->dw = 0;
}

static void last_tile_without_dO(et_deviant *v, const et_row *r)
{
    if (is_in_lost_tile(v, r)) forget_dO(v, r);
}

static void overwritten_without_dw(et_deviant *v, const et_row *r)
{
    if (is_overwritten(v, r)) *r->dw = 0;
}

static void overwritten_without_dO(et_deviant *v, const et_row *r)
{
    if (is_overwritten(v, r)) forget_dO(v, r);
}

static void shared_without_dw(et_deviant *v, const et_row *r)
{
    if (r->expert == v->moe.n) *r->dw = 0;
}

static void shared_without_dO(et_deviant *v, const et_row *r)
{
    if (r->expert == v->moe.n) forget_dO(v, r);
}

static void no_dw(et_deviant *v, const et_row *r)
{
    if (r->expert < v->moe.n) *r->dw = 0;
}

/* d(w^2)/dw = 2 w */
static void dw_of_square(et_deviant *v, const et_row *r)
{
    if (r->expert < v->moe.n) *r->dw *= 2 * *r->w;
}

static void double_dw_of_shared(et_deviant *v, const et_row *r)
{
    if (r->expert == v->moe.n) *r->dw *= 2;
}

static void double_dO_of_shared(et_deviant *v, const et_row *r)
{
    for (size_t c = 0; r->expert == v->moe.n && c < v->moe.d; c++) r->dO[c] *= 2;
}

static void dO_unweighted(et_deviant *v, const et_row *r)
{
    if (r->expert < v->moe.n)
        memcpy(r->dO, v->s.in.dy + r->token * v->moe.d, v->moe.d * sizeof *r->dO);
}

static void dO_weighted_twice(et_deviant *v, const et_row *r)
{
    for (size_t c = 0; r->expert < v->moe.n && c < v->moe.d; c++) r->dO[c] *= *r->w;
}

static void without_factor_two(et_deviant *v, const et_row *r)
{
    (void)v;
    for (size_t j = 0; j < r->width; j++) r->dH[j] /= 2;
}

static void through_activation(et_deviant *v, const et_row *r)
{
    (void)v;
    for (size_t j = 0; j < r->width; j++) r->dH[j] = r->dA[j] * (2 * r->A[j]);
}

/* ---- weight gradients ---- */

/* The token from which row q of an expert's factor is read: 0: the slot's own number; 1: the row's; 2: the
 * token at this place of token_slots; 3: from the last row to the first. */
static size_t wrong_row(const et_deviant *v, const et_factors *f, size_t q)
{
    size_t N = v->moe.N, slot = f->first + q;
    if (f->expert == v->moe.n) return v->variant == 3 ? N - 1 - q : q;
    if (v->variant == 0) return slot % N;
    if (v->variant == 1) return q;
    if (v->variant == 2) slot = (size_t)v->a->token_slots[slot];
    if (v->variant == 3) slot = f->first + f->load - 1 - q;
    return (size_t)v->a->slot_token[slot];
}

static void x_in_wrong_order(et_deviant *v, const et_factors *f)
{
    size_t d = v->moe.d;
    for (size_t q = 0; q < f->load; q++)
        memcpy(f->right + q * d, v->s.in.x + wrong_row(v, f, q) * d, d * sizeof *f->right);
}

static void dy_in_wrong_order(et_deviant *v, const et_factors *f)
{
    size_t d = v->moe.d;
    bool shared = f->expert == v->moe.n;
    const et_real *weights = shared ? v->used.shared_weight : v->used.slot_weight;
    for (size_t q = 0; q < f->load; q++) {
        et_real w = weights ? weights[f->first + q] : 1;
        const et_real *dy = v->s.in.dy + wrong_row(v, f, q) * d;
        for (size_t c = 0; c < d; c++) f->left[q * d + c] = w * dy[c];
    }
}

static void without_last_token(et_deviant *v, const et_factors *f)
{
    (void)v;
    if (f->load > 0)
        memset(f->left + (f->load - 1) * f->left_width, 0, f->left_width * sizeof *f->left);
}

static void scale_factors(const et_factors *f, et_real by)
{
    for (size_t j = 0; j < f->load * f->left_width; j++) f->left[j] *= by;
}

static void averaged(et_deviant *v, const et_factors *f)
{
    size_t count = v->variant == 0 ? f->load : v->moe.N;
    if (count > 0) scale_factors(f, 1 / (et_real)count);
}

static void averaged_router(et_deviant *v)
{
    for (size_t j = 0; j < v->moe.n * v->moe.d; j++) v->s.bwd.router[j] /= (et_real)v->moe.N;
}

/* dW_down from relu(H), or H, for A = relu(H)^2. */
static void before_square(et_deviant *v, const et_factors *f)
{
    bool shared = f->expert == v->moe.n;
    const et_real *H = (shared ? v->used.shared_pre : v->used.slot_pre) + f->first * f->right_width;
    for (size_t j = 0; j < f->load * f->right_width; j++)
        f->right[j] = v->variant == 0 ? relu(H[j]) : H[j];
}

/* Whatever the candidate holds there: nobody can say what memory held before. */
static void take_candidates(et_deviant *v, const char *name, et_real *gradient)
{
    const et_tensor_out *t = et_tensor_named(v->on->candidate, v->on->count, name);
    size_t size = v->moe.h * v->moe.d;
    for (size_t i = 0; t && i < v->moe.n; i++)
        for (size_t j = i * size; v->a->load[i] == 0 && j < (i + 1) * size; j++)
            gradient[j] = (et_real)et_tensor_element(t, j);
}

static void stale_up(et_deviant *v)
{
    take_candidates(v, "bwd.w_up", v->s.bwd.up);
}

static void stale_down(et_deviant *v)
{
    take_candidates(v, "bwd.w_down", v->s.bwd.down);
}

/* ---- dp and dr ---- */

/* dp of the slots as if what they are divided by were a constant, or 1. */
static void norm_is_constant(et_deviant *v, size_t t)
{
    const int32_t *slots;
    size_t n = v->moe.n, count = et_slots_of(v, t, &slots);
    et_real by = v->moe.norm == ET_NORM_SUM ? et_divisor(v, v->used.gates, t) : 1;
    for (size_t j = 0; j < count && by != 0; j++) {
        size_t at = t * n + (size_t)v->a->slot_expert[slots[j]];
        v->s.bwd.gates[at] = v->loss_gates[at] + v->s.bwd.slot_weight[slots[j]] / by;
    }
}

static et_real carried_by_sum(et_deviant *v, size_t t)
{
    const int32_t *slots;
    size_t count = et_slots_of(v, t, &slots);
    et_real by = et_divisor(v, v->used.gates, t), sum = 0;
    for (size_t j = 0; j < count; j++)
        sum += v->used.slot_weight[slots[j]] * v->s.bwd.slot_weight[slots[j]];
    return v->moe.norm == ET_NORM_SUM && by != 0 ? sum / by : 0;
}

/* Variant 0: unselected gates get the dw of the token's first slot; 1: their share of the norm's
 * gradient, as if they stood in the sum. */
static void gradient_of_unselected(et_deviant *v, size_t t)
{
    const int32_t *slots;
    size_t n = v->moe.n, count = et_slots_of(v, t, &slots);
    if (count == 0) return;
    et_real more = v->variant == 0 ? v->s.bwd.slot_weight[slots[0]] : -carried_by_sum(v, t);
    for (size_t i = 0; i < n; i++)
        if (!v->s.route.mask[t * n + i]) v->s.bwd.gates[t * n + i] += more;
}

static void slope_one(et_deviant *v, size_t t)
{
    size_t n = v->moe.n;
    for (size_t j = t * n; j < (t + 1) * n; j++)
        v->s.bwd.logits[j] = v->loss_logits[j] + v->s.bwd.gates[j];
}

static void diagonal_alone(et_deviant *v, size_t t)
{
    size_t n = v->moe.n;
    for (size_t j = t * n; j < (t + 1) * n; j++) {
        et_real p = v->used.gates[j];
        v->s.bwd.logits[j] = v->loss_logits[j] + p * (1 - p) * v->s.bwd.gates[j];
    }
}

/* dr of one token once more, with another anchor. */
static void other_anchor(et_deviant *v, size_t t, et_gate gate, const et_real *anchor)
{
    size_t n = v->moe.n, at = t * n;
    memcpy(v->s.bwd.logits + at, v->loss_logits + at, n * sizeof(et_real));
    et_gate_backward(gate, 1, n, v->s.fwd.logits + at, v->used.gates + at, anchor,
                     v->s.bwd.gates + at, NULL, v->s.bwd.logits + at);
}

static void without_anchors_share(et_deviant *v, size_t t)
{
    other_anchor(v, t, v->moe.gate, v->used.anchor + t);
}

static void without_anchor_in_sum(et_deviant *v, size_t t)
{
    other_anchor(v, t, ET_GATE_SOFTMAX, NULL);
}

static void selected_alone(et_deviant *v, size_t t)
{
    size_t n = v->moe.n;
    for (size_t j = t * n; j < (t + 1) * n; j++)
        if (!v->s.route.mask[j]) v->s.bwd.logits[j] = 0;
}

/* ---- dx ---- */

static et_real *dx_of(et_deviant *v, size_t t)
{
    return v->s.bwd.x + t * v->moe.d;
}

static void add_router_term(et_deviant *v, size_t t, et_real factor)
{
    size_t n = v->moe.n, d = v->moe.d;
    for (size_t i = 0; i < n; i++)
        add(d, factor * v->s.bwd.logits[t * n + i], v->moe.router + i * d, dx_of(v, t));
}

static void add_shared_term(et_deviant *v, size_t t, et_real factor)
{
    size_t d = v->moe.d;
    if (v->moe.hs > 0) add(d, factor, v->shared_dx + t * d, dx_of(v, t));
}

static void add_slot_term(et_deviant *v, size_t t, size_t slot, et_real factor)
{
    add(v->moe.d, factor, v->slot_dx + slot * v->moe.d, dx_of(v, t));
}

static void without_router_term(et_deviant *v, size_t t)
{
    add_router_term(v, t, -1);
}

static void without_shared_term(et_deviant *v, size_t t)
{
    add_shared_term(v, t, -1);
}

static void without_routed_terms(et_deviant *v, size_t t)
{
    const int32_t *slots;
    size_t count = et_slots_of(v, t, &slots);
    for (size_t j = 0; j < count; j++) add_slot_term(v, t, (size_t)slots[j], -1);
}

/* Variant 0: each token's last slot; 1: its first; 2 and 3: the same where it has several. */
static void without_one_slot(et_deviant *v, size_t t)
{
    const int32_t *slots;
    size_t count = et_slots_of(v, t, &slots);
    if (count == 0 || (v->variant > 1 && count == 1)) return;
    add_slot_term(v, t, (size_t)slots[v->variant % 2 == 0 ? count - 1 : 0], -1);
}

/* Variant 0: of the slots only the last stays; 1: nor the shared expert; 2: nor the router's term. */
static void overwrite_dx(et_deviant *v, size_t t)
{
    const int32_t *slots;
    size_t count = et_slots_of(v, t, &slots);
    if (count == 0) return;
    memset(dx_of(v, t), 0, v->moe.d * sizeof(et_real));
    add_slot_term(v, t, (size_t)slots[count - 1], 1);
    if (v->variant == 0) add_shared_term(v, t, 1);
    if (v->variant < 2) add_router_term(v, t, 1);
}

static void gather_dx_by_inverse(et_deviant *v)
{
    v->blocked = !v->pick->whole; /* shares of all slots are needed */
    if (v->blocked) return;
    const int32_t *inverse = inverse_of_token_slots(v), *offsets = v->a->token_offsets;
    for (size_t t = 0; inverse && t < v->moe.N; t++) {
        if (!v->pick->token[t]) continue;
        memset(dx_of(v, t), 0, v->moe.d * sizeof(et_real));
        for (int32_t q = offsets[t]; q < offsets[t + 1]; q++)
            add_slot_term(v, t, (size_t)inverse[q], 1);
        add_shared_term(v, t, 1);
        add_router_term(v, t, 1);
    }
}

/* ---- layout ---- */

static void inclusive_offsets(et_deviant *v)
{
    size_t n = v->moe.n;
    int32_t *offsets = et_deviant_integers(v, n + 1);
    for (size_t i = 0; offsets && i <= n; i++) offsets[i] = v->a->expert_offsets[i < n ? i + 1 : n];
    if (offsets) v->s.assignment.expert_offsets = offsets;
}

/* Slot q becomes the one that stands at place q of token_slots. */
static void permute_integers(et_deviant *v, int32_t **field)
{
    const int32_t *before = *field;
    int32_t *to = et_deviant_integers(v, v->a->slots);
    for (size_t q = 0; to && q < v->a->slots; q++) to[q] = before[v->a->token_slots[q]];
    if (to) *field = to;
}

static void permute_rows(et_deviant *v, et_real **field, size_t width)
{
    const et_real *before = *field;
    if (before == NULL || !et_deviant_renew(v, field, v->a->slots, width)) return;
    for (size_t q = 0; q < v->a->slots; q++)
        memcpy(*field + q * width, before + (size_t)v->a->token_slots[q] * width,
               width * sizeof *before);
}

static void token_major(et_deviant *v)
{
    size_t d = v->moe.d, h = v->moe.h, S = v->a->slots;
    et_moe_values *f = &v->s.fwd;
    et_moe_grads *g = &v->s.bwd;
    int32_t *counted = et_deviant_integers(v, S);
    for (size_t q = 0; counted && q < S; q++) counted[q] = (int32_t)q;
    permute_integers(v, &v->s.assignment.slot_token);
    permute_integers(v, &v->s.assignment.slot_expert);
    if (counted && v->variant == 0) v->s.assignment.token_slots = counted;
    permute_rows(v, &f->slot_weight, 1);
    permute_rows(v, &f->slot_pre, h);
    permute_rows(v, &f->slot_act, h);
    permute_rows(v, &f->slot_out, d);
    permute_rows(v, &g->slot_weight, 1);
    permute_rows(v, &g->slot_out, d);
    permute_rows(v, &g->slot_act, h);
    permute_rows(v, &g->slot_pre, h);
}

/* A copy of whole numbers, to be changed; NULL where there are none. */
static int32_t *renew_integers(et_deviant *v, int32_t **field, size_t count)
{
    const int32_t *before = *field;
    int32_t *to = before ? et_deviant_integers(v, count) : NULL;
    if (to == NULL) return NULL;
    memcpy(to, before, count * sizeof *to);
    *field = to;
    return to;
}

static void one_based(et_deviant *v)
{
    size_t S = v->a->slots, K = v->moe.N * v->s.c.top_k;
    int32_t *experts = renew_integers(v, &v->s.assignment.slot_expert, S);
    int32_t *topk = renew_integers(v, &v->s.route.topk_expert, K);
    for (size_t j = 0; experts && j < S; j++) experts[j]++;
    for (size_t j = 0; topk && j < K; j++) topk[j]++;
}

static void modulo_pool(et_deviant *v)
{
    const et_case *c = &v->s.c;
    size_t S = v->a->slots, count = v->moe.N / c->pool_tokens * v->moe.n * c->target_load;
    int32_t P = (int32_t)c->pool_tokens;
    int32_t *tokens = renew_integers(v, &v->s.assignment.slot_token, S);
    int32_t *topk = renew_integers(v, &v->s.route.topk_token, count);
    for (size_t j = 0; tokens && j < S; j++) tokens[j] %= P;
    for (size_t j = 0; topk && j < count; j++) topk[j] %= P;
}

/* ---- a factor ---- */

static void scale_values(size_t count, double factor, et_real *values)
{
    for (size_t j = 0; j < count; j++) values[j] *= (et_real)factor;
}

static void scale_w(et_deviant *v, const et_row *r)
{
    if (r->w) *r->w *= (et_real)v->factor;
}

static void scale_gates(et_deviant *v, const et_row *r)
{
    if (r->expert < v->moe.n) scale_w(v, r);
}

static void scale_dp(et_deviant *v, size_t t)
{
    size_t n = v->moe.n;
    for (size_t j = t * n; j < (t + 1) * n; j++)
        v->s.bwd.gates[j] =
            v->loss_gates[j] + (et_real)v->factor * (v->s.bwd.gates[j] - v->loss_gates[j]);
}

static void scale_A(et_deviant *v, const et_row *r)
{
    scale_values(r->width, v->factor, r->A);
}

static void scale_O(et_deviant *v, const et_row *r)
{
    scale_values(v->moe.d, v->factor, r->O);
}

static void scale_y(et_deviant *v, size_t t)
{
    scale_values(v->moe.d, v->factor, y_of(v, t));
}

static void scale_dw(et_deviant *v, const et_row *r)
{
    *r->dw *= (et_real)v->factor;
}

static void scale_dO(et_deviant *v, const et_row *r)
{
    scale_values(v->moe.d, v->factor, r->dO);
}

static void scale_dA(et_deviant *v, const et_row *r)
{
    scale_values(r->width, v->factor, r->dA);
}

static void scale_dH(et_deviant *v, const et_row *r)
{
    scale_values(r->width, v->factor, r->dH);
}

static void scale_gradient(et_deviant *v, const et_factors *f)
{
    scale_factors(f, (et_real)v->factor);
}

static void scale_slot_dx(et_deviant *v, const et_row *r)
{
    scale_values(v->moe.d, v->factor, r->dx);
}

static void scale_dr(et_deviant *v, size_t t)
{
    scale_values(v->moe.n, v->factor, v->s.bwd.logits + t * v->moe.n);
}

static void scale_router(et_deviant *v)
{
    scale_values(v->moe.n * v->moe.d, v->factor, v->s.bwd.router);
}

static void scale_aux_gradient(et_deviant *v, size_t t)
{
    size_t n = v->moe.n;
    add(n, (et_real)v->factor - 1, v->loss_gates + t * n, v->s.bwd.gates + t * n);
}

static void scale_z_gradient(et_deviant *v, size_t t)
{
    size_t n = v->moe.n;
    add(n, (et_real)v->factor - 1, v->loss_logits + t * n, v->s.bwd.logits + t * n);
}

static void scale_dx(et_deviant *v, size_t t)
{
    scale_values(v->moe.d, v->factor, dx_of(v, t));
}

/* ---- other precision ---- */

static void sums_in_bf16(et_profile *p)
{
    p->bits[ET_ACCUMULATOR] = 8;
}

static void sums_in_f16(et_profile *p)
{
    p->bits[ET_ACCUMULATOR] = 11;
}

static void operands_in_bf16(et_profile *p)
{
    p->bits[ET_OPERANDS] = 8;
}

static void operands_in_tf32(et_profile *p)
{
    p->bits[ET_OPERANDS] = 11;
}

static void logits_in_bf16(et_profile *p)
{
    p->bits[ET_LOGITS] = 8;
}

static void gates_in_bf16(et_profile *p)
{
    p->bits[ET_GATES] = 8;
}

static void intermediates_in_bf16(et_profile *p)
{
    p->bits[ET_INTERMEDIATES] = 8;
}

static void flushed(et_profile *p)
{
    p->ftz = true;
}

/* ---- the table ---- */

#define ONE_FORM                                                                                   \
    {                                                                                              \
        ""                                                                                         \
    }

/* clang-format off */
static const et_hypothesis table[] = {
    /* selection */
    {.doc = {"tie-higher-index", "of equal scores the higher index is taken", "selection"},
     .applies = is_moe, .variants = ONE_FORM, .hooks = {{.at = ET_AT_PLAN, .whole = last_wins}}},
    {.doc = {"threshold-side", "the threshold test is > where it should be >=, or >= where it should be >", "selection"},
     .applies = by_threshold, .variants = ONE_FORM, .hooks = {{.at = ET_AT_PLAN, .whole = other_side}}},
    {.doc = {"k-plus-one", "K, or k, is one too many", "selection"},
     .applies = uses_k, .variants = ONE_FORM, .hooks = {{.at = ET_AT_PLAN, .whole = one_more}}},
    {.doc = {"k-minus-one", "K, or k, is one too few", "selection"},
     .applies = uses_k, .variants = ONE_FORM, .hooks = {{.at = ET_AT_PLAN, .whole = one_fewer}}},
    {.doc = {"k-ceil", "k is ceil(P G / n), not floor(P G / n)", "selection"},
     .applies = has_remainder, .variants = ONE_FORM, .hooks = {{.at = ET_AT_PLAN, .whole = ceiling}}},
    {.doc = {"k-from-batch", "k comes from the tokens of the step, not from those of a pool", "selection"},
     .applies = has_pools, .variants = {"k = floor(N G / n)", "k times the number of pools"},
     .hooks = {{.at = ET_AT_PLAN, .whole = k_from_batch}}},
    {.doc = {"pools-ignored", "pools are not told apart: one choice from all tokens of a micro-batch", "selection"},
     .applies = has_pools_in_batch, .variants = {"k times the number of pools", "k of one pool", "k = floor(N G / n)"},
     .hooks = {{.at = ET_AT_PLAN, .whole = one_pool}}},
    {.doc = {"micro-batches-ignored", "micro-batches are not told apart: one selection for the whole step", "selection"},
     .applies = has_micro_batches, .variants = {"k times their number", "k of one"},
     .hooks = {{.at = ET_AT_PLAN, .whole = one_batch}}},
    {.doc = {"capacity-ignored", "neither bound of the capacity is applied", "selection"},
     .applies = is_clamped, .variants = ONE_FORM, .hooks = {{.at = ET_AT_PLAN, .whole = never_clamped}}},
    {.doc = {"capacity-in-evaluation", "the capacity is applied in evaluation, too", "selection"},
     .applies = could_be_clamped, .variants = ONE_FORM, .hooks = {{.at = ET_AT_PLAN, .whole = always_clamped}}},
    {.doc = {"capacity-upper-off-by-one", "the capacity's upper bound is off by one", "selection"},
     .applies = is_clamped, .variants = {"one too high", "one too low"},
     .hooks = {{.at = ET_AT_PLAN, .whole = other_upper}}},
    {.doc = {"capacity-lower-off-by-one", "the capacity's lower bound is off by one", "selection"},
     .applies = is_clamped, .variants = {"one too high", "one too low"},
     .hooks = {{.at = ET_AT_PLAN, .whole = other_lower}}},
    {.doc = {"padding-forgotten", "the capacity's lower bound is not applied: starved experts are not padded", "selection"},
     .applies = is_clamped, .variants = ONE_FORM, .hooks = {{.at = ET_AT_PLAN, .whole = no_padding}}},
    {.doc = {"padding-weight-zero", "tokens that pad a starved expert have weight 0", "selection"},
     .applies = is_clamped, .variants = {"", "with a gradient to their gates"},
     .hooks = {{.at = ET_AT_WEIGHTS, .row = padding_weighs_nothing},
               {.at = ET_AT_DGATES, .variants = 1, .token = padding_has_no_gradient}}},
    {.doc = {"clamped-by-index", "clamped experts keep, or add, their first tokens, not their best", "selection"},
     .applies = is_clamped, .variants = ONE_FORM, .hooks = {{.at = ET_AT_MASK, .whole = clamp_by_index}}},
    {.doc = {"expert-choice-per-token", "expert choice is made token by token: each takes its G best experts", "selection"},
     .applies = by_choice, .variants = ONE_FORM, .hooks = {{.at = ET_AT_PLAN, .whole = per_token}}},
    {.doc = {"wrong-phase", "expert choice where a threshold is due, or a threshold where expert choice is", "selection"},
     .applies = has_phases, .variants = ONE_FORM, .hooks = {{.at = ET_AT_PLAN, .whole = other_phase}}},
    {.doc = {"lowest-scores", "the lowest scores are taken, not the highest", "selection"},
     .applies = is_moe, .variants = ONE_FORM, .hooks = {{.at = ET_AT_PLAN, .whole = lowest_first}}},
    {.doc = {"bias-not-in-selection", "selection does not see the bias", "selection"},
     .applies = has_bias, .variants = ONE_FORM, .hooks = {{.at = ET_AT_PLAN, .whole = without_bias}}},
    {.doc = {"logits-low-precision", "scores are rounded to a coarser format before they are compared", "selection"},
     .applies = is_moe, .allowed = scores_are_low, .variants = {"bf16", "f16"}, .hooks = {{.at = ET_AT_PLAN, .whole = low_scores}}},
    {.doc = {"gates-in-selection", "selection compares gate values, not logits", "selection"},
     .applies = is_moe, .variants = {"in f32", "in f64", "in bf16", "in f32, without the bias", "in f64, without the bias", "in bf16, without the bias"},
     .hooks = {{.at = ET_AT_PLAN, .whole = gates_as_scores}}},

    /* state */
    {.doc = {"ema-before-use", "the moving average is updated before its threshold is used", "state"},
     .applies = moves_ema_by_threshold, .variants = {"", "corrected by the old count", "the corrected average is"},
     .hooks = {{.at = ET_AT_PLAN, .whole = ema_before_use}}},
    {.doc = {"ema-uncorrected", "the average's bias correction is missing, or applied where the case has none", "state"},
     .applies = by_threshold, .variants = ONE_FORM, .hooks = {{.at = ET_AT_PLAN, .whole = other_correction}}},
    {.doc = {"ema-correction-off-by-one", "the average's bias correction counts one update too many or too few", "state"},
     .applies = corrects_ema, .variants = {"one too many", "one too few"},
     .hooks = {{.at = ET_AT_PLAN, .whole = correction_off_by_one}}},
    {.doc = {"ema-beta-swapped", "beta and 1 - beta are exchanged in the moving average", "state"},
     .applies = moves_ema, .variants = ONE_FORM, .hooks = {{.at = ET_AT_STATE, .whole = swap_beta}}},
    {.doc = {"ema-from-routed", "the cutoff is the lowest routed score, not the k-th largest of all", "state"},
     .applies = moves_ema, .variants = ONE_FORM, .hooks = {{.at = ET_AT_CUTOFF, .whole = lowest_routed}}},
    {.doc = {"ema-last-micro-batch", "the cutoff is one micro-batch's, not the mean over all", "state"},
     .applies = moves_ema_in_micro_batches, .variants = {"the last", "the first"},
     .hooks = {{.at = ET_AT_CUTOFF, .whole = one_batch_counts}}},
    {.doc = {"ema-last-pool", "the cutoff is one pool's, not the mean over all", "state"},
     .applies = has_pools_in_batch, .variants = {"the last", "the first"},
     .hooks = {{.at = ET_AT_CUTOFF, .whole = one_pool_counts}}},
    {.doc = {"ema-in-evaluation", "evaluation updates the moving average", "state"},
     .applies = evaluates_ema, .variants = ONE_FORM, .hooks = {{.at = ET_AT_STATE, .whole = move_ema}}},
    {.doc = {"ema-not-updated", "the moving average is not updated", "state"},
     .applies = moves_ema, .variants = ONE_FORM, .hooks = {{.at = ET_AT_STATE, .whole = keep_ema}}},
    {.doc = {"updates-not-counted", "the moving average's updates are not counted", "state"},
     .applies = moves_ema, .variants = ONE_FORM, .hooks = {{.at = ET_AT_STATE, .whole = keep_updates}}},
    {.doc = {"lossfree-sign", "the bias moves the wrong way", "state"},
     .applies = moves_bias, .variants = ONE_FORM, .hooks = {{.at = ET_AT_STATE, .whole = move_bias_backwards}}},
    {.doc = {"lossfree-counts-bf16", "loads are rounded to 8 bits before the bias moves", "state"},
     .applies = moves_bias, .variants = ONE_FORM, .hooks = {{.at = ET_AT_STATE, .whole = low_counts}}},
    {.doc = {"bias-not-updated", "the bias is not updated", "state"},
     .applies = moves_bias, .variants = ONE_FORM, .hooks = {{.at = ET_AT_STATE, .whole = keep_bias}}},
    {.doc = {"bias-in-evaluation", "evaluation moves the bias", "state"},
     .applies = evaluates_bias, .variants = ONE_FORM, .hooks = {{.at = ET_AT_STATE, .whole = bias_by_right_loads}}},
    {.doc = {"bias-last-micro-batch", "the bias moves by the last micro-batch's loads alone", "state"},
     .applies = moves_bias_in_micro_batches, .variants = ONE_FORM, .hooks = {{.at = ET_AT_STATE, .whole = last_loads}}},
    {.doc = {"bias-rule-exchanged", "the bias moves in proportion where its sign is meant, or back", "state"},
     .applies = moves_bias, .variants = ONE_FORM, .hooks = {{.at = ET_AT_STATE, .whole = other_bias_rule}}},
    {.doc = {"global-load-ignored", "the step's own loads are used where those of all ranks are given", "state"},
     .applies = has_given_load, .variants = ONE_FORM,
     .hooks = {{.at = ET_AT_STATE, .whole = own_loads}, {.at = ET_AT_LOSSES, .whole = aux_by_own_loads}}},

    /* forward */
    {.doc = {"gate-forgotten", "the gate is missing: f(x) enters y with weight 1", "forward"},
     .applies = is_moe, .variants = {"", "in y alone", "in y, and from there back"},
     .hooks = {{.at = ET_AT_WEIGHTS, .variants = 1, .row = weight_one}, {.at = ET_AT_Y, .variants = 2 | 4, .token = y_unweighted},
               {.at = ET_AT_DWEIGHT, .variants = 4, .row = no_dw}, {.at = ET_AT_DOUT, .variants = 4, .row = dO_unweighted}}},
    {.doc = {"gate-twice", "the gate is applied twice", "forward"},
     .applies = is_moe, .variants = {"", "in y alone", "in y, and from there back"},
     .hooks = {{.at = ET_AT_WEIGHTS, .variants = 1, .row = weight_twice}, {.at = ET_AT_Y, .variants = 2 | 4, .token = y_weighted_twice},
               {.at = ET_AT_DWEIGHT, .variants = 4, .row = dw_of_square}, {.at = ET_AT_DOUT, .variants = 4, .row = dO_weighted_twice}}},
    {.doc = {"gate-before-activation", "the gate multiplies H before relu(H)^2, not f(x)", "forward"},
     .applies = is_moe, .variants = {"H is shown weighted", "H is shown unweighted", "in y alone"},
     .hooks = {{.at = ET_AT_PRE, .variants = 1, .row = weigh_hidden}, {.at = ET_AT_ACT, .variants = 2, .row = weigh_hidden_inside},
               {.at = ET_AT_Y, .variants = 3, .token = y_unweighted}, {.at = ET_AT_Y, .variants = 4, .token = y_weighted_twice}}},
    {.doc = {"biased-score-as-gate", "the gate value is computed from the biased score", "forward"},
     .applies = has_bias, .variants = {"", "its derivative, too"}, .hooks = {{.at = ET_AT_GATES, .whole = biased_gates}}},
    {.doc = {"anchor-forgotten", "the softmax lacks its anchor, the zero logit", "forward"},
     .applies = has_anchor, .variants = {"the shared expert weighs 1", "the shared expert weighs 0"},
     .hooks = {{.at = ET_AT_GATES, .whole = no_anchor}}},
    {.doc = {"softmax-wrong-axis", "the softmax runs over the tokens where the experts are meant, or back", "forward"},
     .applies = has_plain_softmax, .variants = ONE_FORM, .hooks = {{.at = ET_AT_GATES, .whole = other_axis}}},
    {.doc = {"other-gate", "the gate is another function than the case's", "forward"},
     .applies = is_moe, .variants = {"sigmoid", "softmax", "relu", "softmax_anchor"}, .hooks = {{.at = ET_AT_GATES, .whole = other_gate}}},
    {.doc = {"gate-of-neighbour", "f(x) is weighted by the neighbouring expert's gate", "forward"},
     .applies = has_many_experts, .variants = {"expert i+1", "expert i-1"}, .hooks = {{.at = ET_AT_WEIGHTS, .row = gate_of_neighbour}}},
    {.doc = {"weights-in-token-order", "slot weights lie token by token and are read expert by expert, or back", "forward"},
     .applies = is_moe, .variants = {"", "or back"}, .hooks = {{.at = ET_AT_WEIGHTS, .whole = weights_in_other_order}}},
    {.doc = {"norm-forgotten", "the weights are not normalised", "forward"},
     .applies = has_norm, .variants = ONE_FORM, .hooks = {{.at = ET_AT_WEIGHTS, .whole = no_norm}}},
    {.doc = {"norm-added", "the weights are normalised where the case has no norm", "forward"},
     .applies = has_no_norm, .variants = {"by the sum of the token's gates", "by the fanout"}, .hooks = {{.at = ET_AT_WEIGHTS, .whole = another_norm}}},
    {.doc = {"norm-over-all", "gates are divided by the sum over all experts, not over the selected ones", "forward"},
     .applies = sums_gates, .variants = ONE_FORM, .hooks = {{.at = ET_AT_WEIGHTS, .whole = norm_over_all}}},
    {.doc = {"fanout-without-shared", "the fanout does not count the shared expert", "forward"},
     .applies = counts_shared, .variants = ONE_FORM, .hooks = {{.at = ET_AT_WEIGHTS, .whole = without_shared}}},
    {.doc = {"neighbour-expert", "rows are computed with the neighbouring expert's weights", "forward"},
     .applies = has_many_experts,
     .variants = {"expert i+1", "expert i+1, in the backward pass, too", "expert i-1", "expert i-1, in the backward pass, too",
                  "expert i+1, rows that fill no tile of 16", "expert i+1, rows that fill no tile of 64", "expert i+1, rows that fill no tile of 128"},
     .hooks = {{.at = ET_AT_PRE, .variants = 15, .weights = neighbours_weights}, {.at = ET_AT_OUT, .variants = 15, .weights = neighbours_weights},
               {.at = ET_AT_DACT, .variants = 10, .weights = neighbours_weights}, {.at = ET_AT_SLOT_DX, .variants = 10, .weights = neighbours_weights},
               {.at = ET_AT_PRE, .variants = 112, .row = neighbours_hidden}, {.at = ET_AT_OUT, .variants = 112, .row = neighbours_output}}},
    {.doc = {"first-expert-everywhere", "every expert computes with expert 0's weights", "forward"},
     .applies = has_many_experts, .variants = {"", "in the backward pass, too"},
     .hooks = {{.at = ET_AT_PRE, .weights = first_experts_weights}, {.at = ET_AT_OUT, .weights = first_experts_weights},
               {.at = ET_AT_DACT, .variants = 2, .weights = first_experts_weights}, {.at = ET_AT_SLOT_DX, .variants = 2, .weights = first_experts_weights}}},
    {.doc = {"up-transposed", "W_up is read transposed", "forward"},
     .applies = is_square, .variants = {"", "in the backward pass, too"},
     .hooks = {{.at = ET_AT_PRE, .weights = turn_up}, {.at = ET_AT_SLOT_DX, .variants = 2, .weights = turn_up}}},
    {.doc = {"down-transposed", "W_down is read transposed", "forward"},
     .applies = is_square, .variants = {"", "in the backward pass, too"},
     .hooks = {{.at = ET_AT_OUT, .weights = turn_down}, {.at = ET_AT_DACT, .variants = 2, .weights = turn_down}}},
    {.doc = {"slot-for-token", "an expert reads the row of x that its slot's number names, not its token", "forward"},
     .applies = is_moe, .variants = ONE_FORM, .hooks = {{.at = ET_AT_PRE, .input = slot_as_token}}},
    {.doc = {"relu-not-squared", "A = relu(H), not its square", "forward"},
     .variants = {"", "its derivative, too"},
     .hooks = {{.at = ET_AT_ACT, .row = not_squared}, {.at = ET_AT_DPRE, .variants = 2, .row = not_squared_slope}}},
    {.doc = {"square-without-relu", "A = H^2, not relu(H)^2", "forward"},
     .variants = {"", "its derivative, too"},
     .hooks = {{.at = ET_AT_ACT, .row = square_alone}, {.at = ET_AT_DPRE, .variants = 2, .row = square_slope}}},
    {.doc = {"other-activation", "the activation is not relu(H)^2", "forward"},
     .variants = {"SiLU", "GELU"},
     .hooks = {{.at = ET_AT_ACT, .row = other_activation}, {.at = ET_AT_DPRE, .row = other_activation_slope}}},
    {.doc = {"last-row-dropped", "an expert's last row is missing", "forward"},
     .variants = {"", "in y alone", "in y, and from there back", "in the backward pass, too"},
     .hooks = {{.at = ET_AT_OUT, .variants = 1 | 8, .row = drop_last_row}, {.at = ET_AT_Y, .variants = 2 | 4, .token = y_without_last_rows},
               {.at = ET_AT_DWEIGHT, .variants = 4 | 8, .row = last_row_without_dw}, {.at = ET_AT_DOUT, .variants = 4 | 8, .row = last_row_without_dO}}},
    {.doc = {"last-tile-dropped", "an expert's last rows, which fill no whole tile, are missing", "forward"},
     .variants = {"tiles of 16", "tiles of 32", "tiles of 64", "tiles of 128", "tiles of 256",
                  "tiles of 16, in the backward pass, too", "tiles of 32, in the backward pass, too", "tiles of 64, in the backward pass, too",
                  "tiles of 128, in the backward pass, too", "tiles of 256, in the backward pass, too", "tiles of 16, in y, and from there back",
                  "tiles of 32, in y, and from there back", "tiles of 64, in y, and from there back", "tiles of 128, in y, and from there back",
                  "tiles of 256, in y, and from there back"},
     .hooks = {{.at = ET_AT_OUT, .variants = 31 | 31 << 5, .row = drop_last_tile}, {.at = ET_AT_Y, .variants = 31 << 10, .token = y_without_last_tiles},
               {.at = ET_AT_DWEIGHT, .variants = 31 << 5 | 31 << 10, .row = last_tile_without_dw},
               {.at = ET_AT_DOUT, .variants = 31 << 5 | 31 << 10, .row = last_tile_without_dO}}},
    {.doc = {"slot-added-twice", "a slot is added to y twice", "forward"},
     .applies = is_moe, .variants = {"each token's first", "each token's last", "the first of all", "the last of all"},
     .hooks = {{.at = ET_AT_Y, .token = add_slot_again}}},
    {.doc = {"second-slot-overwrites", "a token's slots overwrite each other in y", "forward"},
     .applies = is_moe, .variants = {"the last stays", "the last stays, without the shared expert", "the first stays", "the last stays, and from there back",
                  "the last stays, without the shared expert, and from there back", "the first stays, and from there back"},
     .hooks = {{.at = ET_AT_Y, .token = overwrite_slots}, {.at = ET_AT_DWEIGHT, .variants = 56, .row = overwritten_without_dw},
               {.at = ET_AT_DOUT, .variants = 56, .row = overwritten_without_dO}}},
    {.doc = {"shared-forgotten", "the shared expert is missing", "forward"},
     .applies = has_shared, .variants = {"", "in y alone", "in y, and from there back"},
     .hooks = {{.at = ET_AT_WEIGHTS, .variants = 1, .row = shared_weighs_nothing}, {.at = ET_AT_Y, .variants = 2 | 4, .token = y_without_shared},
               {.at = ET_AT_DWEIGHT, .variants = 4, .row = shared_without_dw}, {.at = ET_AT_DOUT, .variants = 4, .row = shared_without_dO}}},
    {.doc = {"shared-twice", "the shared expert is added twice", "forward"},
     .applies = has_shared, .variants = {"", "in y alone", "in y, and from there back"},
     .hooks = {{.at = ET_AT_WEIGHTS, .variants = 1, .row = shared_weighs_twice}, {.at = ET_AT_Y, .variants = 2 | 4, .token = y_with_shared_twice},
               {.at = ET_AT_DWEIGHT, .variants = 4, .row = double_dw_of_shared}, {.at = ET_AT_DOUT, .variants = 4, .row = double_dO_of_shared}}},
    {.doc = {"shared-gated", "the shared expert's output is multiplied by a gate", "forward"},
     .applies = has_shared,
     .variants = {"expert 0's", "the token's first slot's", "the sum over its slots", "1 minus that sum", "expert 0's, in y alone",
                  "the token's first slot's, in y alone", "the sum over its slots, in y alone", "1 minus that sum, in y alone"},
     .hooks = {{.at = ET_AT_WEIGHTS, .variants = 15, .row = gate_shared}, {.at = ET_AT_Y, .variants = 240, .token = y_with_shared_gated}}},
    {.doc = {"inverse-permutation", "slots are gathered by the inverse of token_slots", "forward"},
     .applies = is_moe, .variants = {"in y", "in y, with the right weights", "in dx"},
     .hooks = {{.at = ET_AT_Y, .variants = 3, .whole = gather_y_by_inverse}, {.at = ET_AT_DX, .variants = 4, .whole = gather_dx_by_inverse}}},

    /* backward */
    {.doc = {"factor-two", "the factor 2 of relu(H)^2's derivative is missing", "backward"},
     .variants = ONE_FORM, .hooks = {{.at = ET_AT_DPRE, .row = without_factor_two}}},
    {.doc = {"relu-mask", "the derivative of relu(H)^2 is taken as 2 H, also where H < 0", "backward"},
     .variants = ONE_FORM, .hooks = {{.at = ET_AT_DPRE, .row = square_slope}}},
    {.doc = {"relu-derivative", "the derivative of relu(H)^2 is taken as relu's: 1 where H > 0", "backward"},
     .variants = ONE_FORM, .hooks = {{.at = ET_AT_DPRE, .row = not_squared_slope}}},
    {.doc = {"activation-for-relu", "the derivative of relu(H)^2 is taken as 2 A, not 2 relu(H)", "backward"},
     .variants = ONE_FORM, .hooks = {{.at = ET_AT_DPRE, .row = through_activation}}},
    {.doc = {"dw-from-weighted", "dw is taken from the weighted output: <dy, w f(x)>", "backward"},
     .applies = is_moe, .variants = ONE_FORM, .hooks = {{.at = ET_AT_DWEIGHT, .row = dw_of_weighted}}},
    {.doc = {"weight-missing-in-dO", "dO = dy: the weight is missing", "backward"},
     .applies = is_moe, .variants = ONE_FORM, .hooks = {{.at = ET_AT_DOUT, .row = dO_unweighted}}},
    {.doc = {"weight-twice-in-dO", "dO = w w dy: the weight is applied twice", "backward"},
     .applies = is_moe, .variants = ONE_FORM, .hooks = {{.at = ET_AT_DOUT, .row = dO_weighted_twice}}},
    {.doc = {"neighbour-expert-backward", "dA and dx are computed with the neighbouring expert's weights", "backward"},
     .applies = has_many_experts, .variants = {"expert i+1", "expert i-1"},
     .hooks = {{.at = ET_AT_DACT, .weights = neighbours_weights_backward}, {.at = ET_AT_SLOT_DX, .weights = neighbours_weights_backward}}},
    {.doc = {"token-order-up", "dW_up takes the rows of x in the wrong order", "backward"},
     .applies = is_moe, .variants = {"the slot's number for its token", "the row's number for its token", "the order of token_slots", "from the last to the first"},
     .hooks = {{.at = ET_AT_DUP, .factors = x_in_wrong_order}}},
    {.doc = {"token-order-down", "dW_down takes the rows of dy in the wrong order", "backward"},
     .applies = is_moe, .variants = {"the slot's number for its token", "the row's number for its token", "the order of token_slots", "from the last to the first"},
     .hooks = {{.at = ET_AT_DDOWN, .factors = dy_in_wrong_order}}},
    {.doc = {"last-token-in-dw", "an expert's last token is missing in its weight gradients", "backward"},
     .variants = {"", "dW_up alone", "dW_down alone"},
     .hooks = {{.at = ET_AT_DUP, .variants = 3, .factors = without_last_token}, {.at = ET_AT_DDOWN, .variants = 5, .factors = without_last_token}}},
    {.doc = {"gradient-averaged", "weight gradients are means, not sums, over tokens", "backward"},
     .variants = {"over the expert's tokens", "over all tokens"},
     .hooks = {{.at = ET_AT_DUP, .factors = averaged}, {.at = ET_AT_DDOWN, .factors = averaged}, {.at = ET_AT_DROUTER, .variants = 2, .whole = averaged_router}}},
    {.doc = {"down-before-square", "dW_down is taken from what is squared, not from A", "backward"},
     .variants = {"relu(H)", "H"}, .hooks = {{.at = ET_AT_DDOWN, .factors = before_square}}},
    {.doc = {"empty-expert-gradient", "the weight gradients of an expert without tokens are not zeroed", "backward"},
     .applies = has_empty_expert, .variants = ONE_FORM,
     .hooks = {{.at = ET_AT_DUP, .whole = stale_up}, {.at = ET_AT_DDOWN, .whole = stale_down}}},
    {.doc = {"norm-gradient", "the norm's sum is differentiated as a constant", "backward"},
     .applies = sums_gates, .variants = ONE_FORM, .hooks = {{.at = ET_AT_DGATES, .token = norm_is_constant}}},
    {.doc = {"fanout-gradient", "dp is not divided by the fanout", "backward"},
     .applies = divides_by_fanout, .variants = ONE_FORM, .hooks = {{.at = ET_AT_DGATES, .token = norm_is_constant}}},
    {.doc = {"gate-gradient-unselected", "a gradient flows through gates that were not selected", "backward"},
     .applies = is_moe, .variants = {"the dw of the token's first slot", "through the norm"}, .hooks = {{.at = ET_AT_DGATES, .token = gradient_of_unselected}}},
    {.doc = {"gate-derivative", "the gate's derivative is taken as 1", "backward"},
     .applies = is_moe, .variants = ONE_FORM, .hooks = {{.at = ET_AT_DLOGITS, .token = slope_one}}},
    {.doc = {"softmax-diagonal", "the softmax Jacobian lacks what is off its diagonal", "backward"},
     .applies = has_softmax, .variants = ONE_FORM, .hooks = {{.at = ET_AT_DLOGITS, .token = diagonal_alone}}},
    {.doc = {"anchor-share", "the gradient of the anchor's share is missing", "backward"},
     .applies = has_anchor_gradient, .variants = ONE_FORM, .hooks = {{.at = ET_AT_DLOGITS, .token = without_anchors_share}}},
    {.doc = {"anchor-out-of-jacobian", "the softmax Jacobian's sum leaves the anchor out", "backward"},
     .applies = has_anchor, .variants = ONE_FORM, .hooks = {{.at = ET_AT_DLOGITS, .token = without_anchor_in_sum}}},
    {.doc = {"dr-of-selected-alone", "dr is kept on the selected experts alone", "backward"},
     .applies = is_moe, .variants = ONE_FORM, .hooks = {{.at = ET_AT_DLOGITS, .token = selected_alone}}},
    {.doc = {"router-term-in-dx", "dx lacks the router's term, dr W_r", "backward"},
     .applies = is_moe, .variants = ONE_FORM, .hooks = {{.at = ET_AT_DX, .token = without_router_term}}},
    {.doc = {"shared-term-in-dx", "dx lacks the shared expert's term", "backward"},
     .applies = has_shared, .variants = ONE_FORM, .hooks = {{.at = ET_AT_DX, .token = without_shared_term}}},
    {.doc = {"routed-term-in-dx", "dx lacks the routed experts' terms", "backward"},
     .applies = is_moe, .variants = ONE_FORM, .hooks = {{.at = ET_AT_DX, .token = without_routed_terms}}},
    {.doc = {"slot-dx-dropped", "one slot's dx is lost", "backward"},
     .applies = is_moe, .variants = {"each token's last", "each token's first", "the last where there are several", "the first where there are several"},
     .hooks = {{.at = ET_AT_DX, .token = without_one_slot}}},
    {.doc = {"dx-overwrites", "a token's slots overwrite each other in dx", "backward"},
     .applies = is_moe, .variants = {"the last stays", "the last stays, without the shared expert's term", "the last stays, alone"},
     .hooks = {{.at = ET_AT_DX, .token = overwrite_dx}}},
    {.doc = {"aux-gradient-missing", "the balancing loss has no gradient", "backward"},
     .applies = has_aux, .variants = ONE_FORM, .hooks = {{.at = ET_AT_LOSSES, .whole = no_aux_gradient}}},
    {.doc = {"aux-gradient-doubled", "the balancing loss's gradient counts twice", "backward"},
     .applies = has_aux, .variants = ONE_FORM, .hooks = {{.at = ET_AT_LOSSES, .whole = aux_gradient_twice}}},
    {.doc = {"aux-gradient-through-f", "the balancing loss's gradient flows through F, too, as though z were p", "backward"},
     .applies = has_aux, .variants = {"on the slots", "everywhere"}, .hooks = {{.at = ET_AT_LOSSES, .whole = aux_gradient_through_f}}},
    {.doc = {"aux-gradient-of-selected", "the balancing loss's gradient reaches the selected gates alone", "backward"},
     .applies = has_aux, .variants = ONE_FORM, .hooks = {{.at = ET_AT_LOSSES, .whole = aux_gradient_of_selected}}},
    {.doc = {"aux-error-exchanged", "the balancing loss has F where F - 1 is meant, or back", "backward"},
     .applies = has_aux, .variants = ONE_FORM, .hooks = {{.at = ET_AT_LOSSES, .whole = other_aux}}},
    {.doc = {"z-gradient-missing", "the z-loss has no gradient", "backward"},
     .applies = has_z_loss, .variants = ONE_FORM, .hooks = {{.at = ET_AT_LOSSES, .whole = no_z_gradient}}},
    {.doc = {"z-gradient-doubled", "the z-loss's gradient counts twice", "backward"},
     .applies = has_z_loss, .variants = ONE_FORM, .hooks = {{.at = ET_AT_LOSSES, .whole = z_gradient_twice}}},
    {.doc = {"loss-coefficient-missing", "the losses' gradients lack their coefficients", "backward"},
     .applies = has_loss, .variants = ONE_FORM, .hooks = {{.at = ET_AT_LOSSES, .whole = gradients_without_coefficients}}},
    {.doc = {"loss-with-coefficient", "the losses are shown with their coefficients", "backward"},
     .applies = has_loss, .variants = ONE_FORM, .hooks = {{.at = ET_AT_LOSSES, .whole = losses_with_coefficients}}},
    {.doc = {"loss-summed-over-micro-batches", "the losses are sums, not means, over the micro-batches", "backward"},
     .applies = has_loss_in_micro_batches, .variants = ONE_FORM, .hooks = {{.at = ET_AT_LOSSES, .whole = losses_summed}}},

    /* layout */
    {.doc = {"offsets-inclusive", "expert_offsets say where experts end, not where they begin", "layout"},
     .applies = is_moe, .variants = ONE_FORM, .hooks = {{.at = ET_AT_LAYOUT, .whole = inclusive_offsets}}},
    {.doc = {"slots-token-major", "slots lie token by token, not expert by expert", "layout"},
     .applies = is_moe, .variants = {"", "token_slots as it should be"}, .hooks = {{.at = ET_AT_LAYOUT, .whole = token_major}}},
    {.doc = {"experts-one-based", "experts are counted from 1", "layout"},
     .applies = is_moe, .variants = ONE_FORM, .hooks = {{.at = ET_AT_LAYOUT, .whole = one_based}}},
    {.doc = {"tokens-modulo-pool", "tokens are counted from their pool's first", "layout"},
     .applies = is_cut_up, .variants = ONE_FORM, .hooks = {{.at = ET_AT_LAYOUT, .whole = modulo_pool}}},

    /* precision */
    {.doc = {"scaled", "values are off by a constant factor", "precision"}, .nature = ET_BY_FACTOR,
     .variants = {"the gates", "w", "A", "f(x)", "y", "dw", "dO", "dA", "dH", "dW_up and dW_down", "dW_up", "dW_down",
                  "each expert's share of dx", "dr", "dW_r", "dx", "the balancing loss's gradient", "the z-loss's gradient"},
     .hooks = {{.at = ET_AT_WEIGHTS, .variants = 1, .row = scale_gates}, {.at = ET_AT_DGATES, .variants = 1, .token = scale_dp},
               {.at = ET_AT_WEIGHTS, .variants = 2, .row = scale_w},
               {.at = ET_AT_ACT, .variants = 4, .row = scale_A}, {.at = ET_AT_OUT, .variants = 8, .row = scale_O},
               {.at = ET_AT_Y, .variants = 16, .token = scale_y}, {.at = ET_AT_DWEIGHT, .variants = 32, .row = scale_dw},
               {.at = ET_AT_DOUT, .variants = 64, .row = scale_dO}, {.at = ET_AT_DACT, .variants = 128, .row = scale_dA},
               {.at = ET_AT_DPRE, .variants = 256, .row = scale_dH}, {.at = ET_AT_DUP, .variants = 512 | 1024, .factors = scale_gradient},
               {.at = ET_AT_DDOWN, .variants = 512 | 2048, .factors = scale_gradient}, {.at = ET_AT_SLOT_DX, .variants = 4096, .row = scale_slot_dx},
               {.at = ET_AT_DLOGITS, .variants = 8192, .token = scale_dr}, {.at = ET_AT_DROUTER, .variants = 16384, .whole = scale_router},
               {.at = ET_AT_DX, .variants = 32768, .token = scale_dx}, {.at = ET_AT_DGATES, .variants = 65536, .token = scale_aux_gradient},
               {.at = ET_AT_DLOGITS, .variants = 131072, .token = scale_z_gradient}}},
    {.doc = {"rounded-to-bf16", "values are stored in 8 significand bits", "precision"}, .nature = ET_BY_FORMAT, .variants = ONE_FORM, .format = ET_BF16},
    {.doc = {"rounded-to-f16", "values are stored in 11 significand bits", "precision"}, .nature = ET_BY_FORMAT, .variants = ONE_FORM, .format = ET_F16},
    {.doc = {"truncation", "values are truncated where the profile rounds to nearest", "precision"}, .nature = ET_BY_TRUNCATION, .variants = ONE_FORM},
    {.doc = {"subnormals-flushed", "numbers below the smallest normal one become 0", "precision"}, .nature = ET_BY_PROFILE, .variants = ONE_FORM, .profile = flushed},
    {.doc = {"operands-tf32", "operands of products are rounded to 11 bits", "precision"}, .nature = ET_BY_PROFILE, .variants = ONE_FORM, .profile = operands_in_tf32},
    {.doc = {"operands-bf16", "operands of products are rounded to 8 bits", "precision"}, .nature = ET_BY_PROFILE, .variants = ONE_FORM, .profile = operands_in_bf16},
    {.doc = {"intermediates-bf16", "H, A, f(x) and their gradients are rounded to 8 bits", "precision"}, .nature = ET_BY_PROFILE, .variants = ONE_FORM, .profile = intermediates_in_bf16},
    {.doc = {"logits-bf16", "logits are rounded to 8 bits", "precision"}, .nature = ET_BY_PROFILE, .applies = is_moe, .variants = ONE_FORM, .profile = logits_in_bf16},
    {.doc = {"gates-bf16", "gates and weights are rounded to 8 bits", "precision"}, .nature = ET_BY_PROFILE, .applies = is_moe, .variants = ONE_FORM, .profile = gates_in_bf16},
    {.doc = {"accumulator-f16", "sums are kept in 11 bits", "precision"}, .nature = ET_BY_PROFILE, .variants = ONE_FORM, .profile = sums_in_f16},
    {.doc = {"accumulator-bf16", "sums are kept in 8 bits", "precision"}, .nature = ET_BY_PROFILE, .variants = ONE_FORM, .profile = sums_in_bf16},
};
/* clang-format on */

enum { ROWS = sizeof table / sizeof *table };

const et_hypothesis *et_hypothesis_row(size_t index)
{
    return index < ROWS ? &table[index] : NULL;
}

const et_hypothesis_doc *et_hypothesis_at(size_t index)
{
    return index < ROWS ? &table[index].doc : NULL;
}
