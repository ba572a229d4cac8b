/* faults_routing.c: who goes where, thresholds, cutoffs, moving average and bias, wrongly. See faults.h.
 *
 * Most of these are the rule with other settings: the hook alters the case, or the scores, by which a step
 * of its own routes. What no setting says is put right, or wrong, in the mask afterwards.
 */
#include "etref/dtype.h"
#include "ref/diagnose/faults.h"
#include "ref/step/decide.h"
#include "ref/step/case_kinds.h"

#include <string.h>

/* ---- where it can show ---- */

ET_SHOWS(et_decides, et_is_moe(s) && !s->c.given);
ET_SHOWS(et_is_clamped, et_by_threshold(s) && s->c.has_capacity && !s->c.eval);
static ET_SHOWS(has_capacity, et_is_clamped(s) || et_drops(s));
static ET_SHOWS(could_be_clamped, et_by_threshold(s) && s->c.has_capacity && s->c.eval);

/* k says something: K of TC, or the load by which EC chooses and the moving average is fed. */
static ET_SHOWS(uses_k, et_decides(s) && (s->c.rule == ET_TC || !s->c.eval));
static ET_SHOWS(has_pools, uses_k(s) && s->c.rule != ET_TC && s->c.pool_tokens < s->c.tokens);
static ET_SHOWS(has_micro_batches,
                et_is_moe(s) && s->c.rule != ET_TC && s->c.micro_batches > 1 &&
                    !has_padding(&s->c)); /* which would stand between real tokens */
static ET_SHOWS(has_phases, et_by_choice(s) ? s->in.ema != NULL : et_by_threshold(s));
static ET_SHOWS(has_remainder, uses_k(s) && s->c.rule != ET_TC &&
                                   s->c.pool_tokens * s->c.granularity % s->c.experts != 0);
static ET_SHOWS(moves_bias, s->state_bias != NULL && !s->c.eval);
static ET_SHOWS(moves_bias_in_micro_batches,
                moves_bias(s) && s->in.load == NULL && s->c.micro_batches > 1);
static ET_SHOWS(evaluates_bias, et_has_bias(s) && s->c.eval);
static ET_SHOWS(moves_ema, s->state_ema != NULL && !s->c.eval);
static ET_SHOWS(moves_ema_by_threshold, moves_ema(s) && et_by_threshold(s));
static ET_SHOWS(moves_ema_in_micro_batches, moves_ema(s) && s->c.micro_batches > 1);
static ET_SHOWS(evaluates_ema, s->in.ema != NULL && s->c.eval);
static ET_SHOWS(corrects_ema, et_by_threshold(s) && s->c.ema_bias_correction);
static ET_SHOWS(has_given_load, s->in.load != NULL && (s->loss_aux || moves_bias(s)));

/* ---- the order of scores ---- */

static void reverse(et_real *values, size_t count)
{
    for (size_t i = 0, j = count; i + 1 < j; i++) {
        et_real kept = values[i];
        values[i] = values[--j];
        values[j] = kept;
    }
}

static void negate(et_real *values, size_t count)
{
    for (size_t i = 0; i < count; i++) values[i] = -values[i];
}

typedef void (*turning)(et_real *values, size_t count);

/* Each micro-batch's real tokens by themselves, of values [N,n]. */
static void turn_batches(const et_mutant *m, turning how, et_real *values)
{
    const et_case *c = &m->on->right->c;
    for (size_t b = 0; b < c->micro_batches; b++)
        how(values + batch_of(c, b).first * m->moe.n, batch_of(c, b).count * m->moe.n);
}

/* Copies of what a step routes by, turned around. */
static void turn(et_mutant *m, et_step *s, turning how)
{
    size_t n = m->moe.n;
    et_real **of_experts[] = {&s->in.ema, &s->in.bias};
    et_real *scores = et_mutant_copy(m, s->fwd.logits, m->moe.N * n);
    if (scores == NULL) return;
    turn_batches(m, how, scores);
    s->fwd.logits = scores;
    for (size_t i = 0; i < sizeof of_experts / sizeof *of_experts; i++) {
        et_real *copy = *of_experts[i] ? et_mutant_copy(m, *of_experts[i], n) : NULL;
        if (copy == NULL) continue;
        how(copy, n);
        *of_experts[i] = copy;
    }
}

/* And back again: what came of it. */
static void turn_back(et_mutant *m, turning how)
{
    et_step_routing *r = &m->routed.route;
    const et_case *c = &m->routed.c;
    size_t n = m->moe.n, cutoffs = r->pool_cutoff ? pools_of_batch(c) * n : 0;
    if (r->threshold) how(r->threshold, n);
    if (r->cutoff) how(r->cutoff, n);
    for (size_t b = 0; r->pool_cutoff && b < c->micro_batches; b++)
        how(r->pool_cutoff + b * cutoffs, cutoffs);
    m->routed.fwd.logits = (et_real *)et_step_scores(m->on->right);
}

/* Read from the end, ties go to the higher index. */
static ET_SETTING(last_wins, turn(m, s, reverse));

static void last_has_won(et_mutant *m)
{
    const et_case *c = &m->on->right->c;
    for (size_t b = 0; b < c->micro_batches; b++) {
        uint8_t *mask = m->all.route.mask + batch_of(c, b).first * m->moe.n;
        for (size_t i = 0, j = batch_of(c, b).count * m->moe.n; i + 1 < j; i++) {
            uint8_t kept = mask[i];
            mask[i] = mask[--j];
            mask[j] = kept;
        }
    }
    turn_batches(m, reverse, m->all.route.margin);
    turn_back(m, reverse);
}

/* Negated, the lowest scores come first. */
static ET_SETTING(lowest_first, turn(m, s, negate));

static void lowest_came_first(et_mutant *m)
{
    const et_step *right = m->on->right;
    turn_back(m, negate);
    if (!et_by_choice(right)) m->all.route.cutoff = right->route.cutoff;
}

static ET_SETTING(other_side, s->c.inclusive = !s->c.inclusive);
static ET_SETTING(without_bias, s->in.bias = NULL);

static et_dtype score_type(size_t variant)
{
    return variant == 0 ? ET_BF16 : ET_F16;
}

static bool scores_are_low(const et_profile *p, size_t variant)
{
    return p->bits[ET_LOGITS] <= et_dtype_significand(score_type(variant));
}

static void score_by(et_mutant *m, et_step *s, const et_real *values, et_dtype type)
{
    size_t count = m->moe.N * m->moe.n;
    et_real *scores = et_mutant_reals(m, count);
    for (size_t i = 0; scores && i < count; i++)
        scores[i] = (et_real)et_round_to_dtype((double)values[i], type);
    if (scores) s->fwd.logits = scores;
}

static void low_scores(et_mutant *m, et_step *s)
{
    score_by(m, s, s->fwd.logits, score_type(m->fault.variant));
}

/* Gate values for logits, rounded as such are: where they saturate they tie. Or logits for gate values. Variants from 3
 * on: and the bias is left out. */
static void other_scores(et_mutant *m, et_step *s)
{
    static const et_dtype types[] = {ET_F32, ET_F64, ET_BF16};
    const et_moe_values *own = &m->on->right->fwd;
    score_by(m, s, m->on->right->c.select_gates ? own->logits : own->gates,
             types[m->fault.variant % 3]);
    if (m->fault.variant >= 3) s->in.bias = NULL;
}

/* ---- k, pools and micro-batches ---- */

static size_t target(const et_step *s)
{
    return s->c.rule == ET_TC ? s->c.top_k : s->c.target_load;
}

static void set_k(et_step *s, size_t k)
{
    et_case *c = &s->c;
    size_t kept = has_groups(c) ? c->groups_kept : c->groups;
    size_t most = c->rule == ET_TC              ? c->experts / c->groups * kept
                  : et_case_routes_by_choice(c) ? c->pool_tokens
                                                : et_case_real_tokens(c);
    if (k < 1) k = 1;
    *(c->rule == ET_TC ? &c->top_k : &c->target_load) = k < most ? k : most;
}

static ET_SETTING(one_more, set_k(s, target(s) + 1));
static ET_SETTING(one_fewer, set_k(s, target(s) - 1));

static ET_SETTING(ceiling, set_k(s, (s->c.pool_tokens * s->c.granularity + s->c.experts - 1) /
                                        s->c.experts));

static void k_from_batch(et_mutant *m, et_step *s)
{
    const et_case *c = &s->c;
    size_t exact = c->tokens * c->granularity / c->experts;
    set_k(s, m->fault.variant == 0 ? exact : c->target_load * c->micro_batches * pools_of_batch(c));
}

/* One pool for all tokens that are routed together; it takes as many as its parts did, as many as
 * one of them, or what its own size says. */
static void one_pool(et_mutant *m, et_step *s)
{
    et_case *c = &s->c;
    size_t batch = et_case_real_tokens(c), k = c->target_load, parts = batch / c->pool_tokens;
    c->pool_tokens = batch;
    set_k(s, m->fault.variant == 0   ? k * parts
             : m->fault.variant == 1 ? k
                                     : batch * c->granularity / c->experts);
}

static void one_batch(et_mutant *m, et_step *s)
{
    et_case *c = &s->c;
    size_t k = c->target_load, parts = c->micro_batches;
    bool whole = c->pool_tokens == et_case_micro_tokens(c);
    c->micro_batches = 1;
    if (whole) c->pool_tokens = c->tokens;
    set_k(s, m->fault.variant == 0 && c->pool_tokens == c->tokens ? k * parts : k);
}

static void per_token(et_mutant *m, et_step *s)
{
    et_case *c = &s->c;
    (void)m;
    c->rule = ET_TC;
    c->top_k = c->granularity < c->experts ? c->granularity : c->experts;
}

static void other_phase(et_mutant *m, et_step *s)
{
    bool choice = et_case_routes_by_choice(&s->c);
    (void)m;
    s->c.rule = choice ? ET_ET : ET_EC;
    if (choice)
        s->c.warmup_steps = 0;
    else
        s->c.eval = false;
}

/* ---- capacity ---- */

static ET_SETTING(never_clamped, s->c.has_capacity = false);

/* Once more, with other bounds. */
static void clamp(et_mutant *m, const et_capacity *bounds)
{
    const et_case *c = &m->on->right->c;
    const et_step_routing *r = &m->all.route;
    size_t n = m->moe.n;
    int32_t *passed = et_mutant_integers(m, n);
    for (size_t b = 0; m->status == ET_OK && b < c->micro_batches; b++) {
        et_span tokens = batch_of(c, b);
        size_t at = tokens.first * n;
        m->status =
            et_expert_threshold(tokens.count, n, m->all.fwd.logits + at, r->threshold, c->inclusive,
                                bounds, r->mask + at, r->margin + at, passed, NULL);
    }
}

static et_capacity bounds_of(const et_mutant *m)
{
    const et_case *c = &m->on->right->c;
    return et_capacity_bounds(c->target_load, c->capacity_factor, et_case_real_tokens(c));
}

static void always_clamped(et_mutant *m)
{
    et_capacity bounds = bounds_of(m);
    m->ranked = true;
    clamp(m, &bounds);
}

static void other_upper(et_mutant *m)
{
    et_capacity bounds = bounds_of(m);
    if (m->fault.variant == 0) bounds.upper++;
    if (m->fault.variant == 1 && bounds.upper > bounds.lower) bounds.upper--;
    clamp(m, &bounds);
}

static void other_lower(et_mutant *m)
{
    et_capacity bounds = bounds_of(m);
    if (m->fault.variant == 0 && bounds.lower < bounds.upper) bounds.lower++;
    if (m->fault.variant == 1 && bounds.lower > 0) bounds.lower--;
    clamp(m, &bounds);
}

static void no_padding(et_mutant *m)
{
    et_capacity bounds = {0, bounds_of(m).upper};
    clamp(m, &bounds);
}

/* By the threshold of this routing. */
bool et_passes(const et_mutant *m, size_t place)
{
    et_real r = m->all.fwd.logits[place], c = m->all.route.threshold[place % m->moe.n];
    return m->all.c.inclusive ? r >= c : r > c;
}

/* An expert with too many keeps the first ones, one with too few adds the first of the others. */
static void clamp_by_index(et_mutant *m)
{
    et_capacity bounds = bounds_of(m);
    const et_case *c = &m->all.c;
    size_t n = m->moe.n;
    for (size_t at = 0; at < c->micro_batches * n; at++) {
        et_span tokens = batch_of(c, at / n);
        size_t first = tokens.first * n + at % n, end = first + tokens.count * n, taken = 0;
        for (size_t j = first; j < end; j += n) {
            m->all.route.mask[j] = et_passes(m, j) && taken < bounds.upper;
            taken += m->all.route.mask[j];
        }
        for (size_t j = first; j < end && taken < bounds.lower; j += n) {
            taken += !m->all.route.mask[j];
            m->all.route.mask[j] = 1;
        }
    }
}

static ET_CHOICE(pads, et_is_routed(m, r) && !et_passes(m, r->token * m->moe.n + r->expert));

static void padding_has_no_gradient(et_mutant *m, const et_row *r)
{
    size_t n = m->moe.n, at = r->t * n;
    for (size_t i = 0; i < n; i++)
        if (m->s.route.mask[at + i] && !et_passes(m, r->token * n + i))
            r->values[i] = m->loss_gates[at + i];
}

/* ---- thresholds ---- */

/* The average of this step is the reference's state after it. Form 0: corrected by the count after the update; 1: by
 * the one before it; 2: the corrected threshold itself is moved on, beta c + (1 - beta) cutoff. */
static void ema_before_use(et_mutant *m, et_step *s)
{
    const et_step *right = m->on->right;
    et_case *c = &s->c;
    if (m->fault.variant < 2) {
        s->in.ema = right->state_ema;
        c->ema_updates += m->fault.variant == 0 ? 1 : 0;
        return;
    }
    et_real *moved = et_mutant_reals(m, m->moe.n);
    if (moved == NULL) return;
    et_ema_threshold(NULL, m->moe.n, right->in.ema, c->ema_decay, c->ema_bias_correction,
                     c->ema_updates, moved);
    et_ema_update(NULL, m->moe.n, c->ema_decay, right->route.cutoff, moved);
    s->in.ema = moved;
    c->ema_bias_correction = false;
}

static ET_SETTING(other_correction, s->c.ema_bias_correction = !s->c.ema_bias_correction);

static void correction_off_by_one(et_mutant *m, et_step *s)
{
    if (m->fault.variant == 0)
        s->c.ema_updates++;
    else if (s->c.ema_updates > 0)
        s->c.ema_updates--;
}

/* ---- cutoffs ---- */

void et_cutoffs_of(et_mutant *m, size_t batch, et_real *kth)
{
    const et_step *right = m->on->right;
    const et_case *c = &right->c;
    size_t n = m->moe.n, parts = pools_of_batch(c);
    et_span tokens = batch_of(c, batch);
    if (right->route.pool_cutoff == NULL) {
        m->status = et_kth_largest(tokens.count, n, c->target_load,
                                   right->fwd.logits + tokens.first * n, kth, NULL);
        return;
    }
    memset(kth, 0, n * sizeof *kth);
    for (size_t i = 0; i < parts * n; i++)
        kth[i % n] += right->route.pool_cutoff[batch * parts * n + i] / (et_real)parts;
}

/* The mean over micro-batches of what `of` makes of each. */
static void mean_cutoffs(et_mutant *m, void (*of)(et_mutant *, size_t, et_real *), et_real *to)
{
    size_t n = m->moe.n, M = m->all.c.micro_batches;
    et_real *kth = et_mutant_reals(m, n);
    if (kth == NULL) return;
    memset(to, 0, n * sizeof *to);
    for (size_t b = 0; b < M && m->status == ET_OK; b++) {
        of(m, b, kth);
        for (size_t i = 0; i < n; i++) to[i] += kth[i] / (et_real)M;
    }
}

static void lowest_of(et_mutant *m, size_t batch, et_real *kth)
{
    size_t n = m->moe.n, size = et_case_micro_tokens(&m->all.c) * n;
    et_cutoffs_of(m, batch, kth); /* of an expert that nobody goes to */
    for (size_t i = 0; i < n; i++) {
        bool any = false;
        for (size_t j = batch * size + i; j < (batch + 1) * size; j += n) {
            et_real r = m->all.fwd.logits[j];
            if (!m->all.route.mask[j] || (any && r >= kth[i])) continue;
            kth[i] = r;
            any = true;
        }
    }
}

static ET_WHOLE(lowest_routed, mean_cutoffs(m, lowest_of, m->all.route.cutoff));

static ET_WHOLE(one_batch_counts,
                et_cutoffs_of(m, m->fault.variant == 0 ? m->all.c.micro_batches - 1 : 0,
                              m->all.route.cutoff));

static void one_pool_of(et_mutant *m, size_t batch, et_real *kth)
{
    const et_case *c = &m->all.c;
    size_t n = m->moe.n, parts = pools_of_batch(c);
    size_t one = m->fault.variant == 0 ? parts - 1 : 0;
    memcpy(kth, m->on->right->route.pool_cutoff + (batch * parts + one) * n, n * sizeof *kth);
}

static ET_WHOLE(one_pool_counts, mean_cutoffs(m, one_pool_of, m->all.route.cutoff));

/* ---- the moving average ---- */

static ET_SETTING(swap_beta, s->c.ema_decay = 1 - s->c.ema_decay);
static ET_SETTING(keep_ema, s->c.ema_decay = 1);

static void move_ema(et_mutant *m, et_step *s)
{
    s->c.eval = false;
    s->route.cutoff = et_mutant_reals(m, m->moe.n);
    if (s->route.cutoff) mean_cutoffs(m, et_cutoffs_of, s->route.cutoff);
}

static ET_SETTING(keep_updates, s->c.ema_updates--);

/* ---- the bias ---- */

static ET_SETTING(move_bias_backwards, s->c.bias_rate = -s->c.bias_rate);
static ET_SETTING(keep_bias, s->c.bias_rate = 0);
static ET_SETTING(move_bias, s->c.eval = false);

static void low_counts(et_mutant *m, et_step *s)
{
    size_t n = m->moe.n;
    if (s->in.load) s->in.load = et_mutant_copy(m, s->in.load, n);
    for (size_t i = 0; m->status == ET_OK && i < n; i++) {
        int32_t *load = &s->assignment.load[i];
        *load = (int32_t)et_round_to_dtype(*load, ET_BF16);
        if (s->in.load) s->in.load[i] = (et_real)et_round_to_dtype((double)s->in.load[i], ET_BF16);
    }
}

/* Its loads, counted for those of all micro-batches. */
static void last_loads(et_mutant *m, et_step *s)
{
    size_t N = m->moe.N, n = m->moe.n, first = N - et_case_micro_tokens(&s->c);
    memset(s->assignment.load, 0, n * sizeof *s->assignment.load);
    for (size_t j = first * n; j < N * n; j++)
        if (s->route.mask[j]) s->assignment.load[j % n] += (int32_t)s->c.micro_batches;
}

static ET_SETTING(own_loads, s->in.load = NULL);

static ET_SETTING(other_bias_rule, s->c.balance = s->c.balance == ET_BALANCE_LOSSFREE
                                                      ? ET_BALANCE_PROPORTIONAL
                                                      : ET_BALANCE_LOSSFREE);

/* ---- the table ---- */

/* clang-format off */
static const et_hypothesis table[] = {
    {.doc = {"tie-higher-index", "of equal scores the higher index is taken", "selection"},
     .applies = et_decides, .hooks = {{.at = ET_AT_PLAN, .settings = last_wins}, {.at = ET_AT_MASK, .whole = last_has_won}}},
    {.doc = {"threshold-side", "the threshold test is > where it should be >=, or >= where it should be >", "selection"},
     .applies = et_by_threshold, .hooks = {{.at = ET_AT_PLAN, .settings = other_side}}},
    {.doc = {"k-plus-one", "K, or k, is one too many", "selection"},
     .applies = uses_k, .hooks = {{.at = ET_AT_PLAN, .settings = one_more}}},
    {.doc = {"k-minus-one", "K, or k, is one too few", "selection"},
     .applies = uses_k, .hooks = {{.at = ET_AT_PLAN, .settings = one_fewer}}},
    {.doc = {"k-ceil", "k is ceil(P G / n), not floor(P G / n)", "selection"},
     .applies = has_remainder, .hooks = {{.at = ET_AT_PLAN, .settings = ceiling}}},
    {.doc = {"k-from-batch", "k comes from the tokens of the step, not from those of a pool", "selection"},
     .applies = has_pools, .variants = {"k = floor(N G / n)", "k times the number of pools"},
     .hooks = {{.at = ET_AT_PLAN, .settings = k_from_batch}}},
    {.doc = {"pools-ignored", "pools are not told apart: one choice from all tokens of a micro-batch", "selection"},
     .applies = et_has_pools_in_batch, .variants = {"k times the number of pools", "k of one pool", "k = floor(N G / n)"},
     .hooks = {{.at = ET_AT_PLAN, .settings = one_pool}}},
    {.doc = {"micro-batches-ignored", "micro-batches are not told apart: one selection for the whole step", "selection"},
     .applies = has_micro_batches, .variants = {"k times their number", "k of one"},
     .hooks = {{.at = ET_AT_PLAN, .settings = one_batch}}},
    {.doc = {"capacity-ignored", "the capacity is not applied", "selection"},
     .applies = has_capacity, .hooks = {{.at = ET_AT_PLAN, .settings = never_clamped}}},
    {.doc = {"capacity-in-evaluation", "the capacity is applied in evaluation, too", "selection"},
     .applies = could_be_clamped, .hooks = {{.at = ET_AT_MASK, .whole = always_clamped}}},
    {.doc = {"capacity-upper-off-by-one", "the capacity's upper bound is off by one", "selection"},
     .applies = et_is_clamped, .variants = {"one too high", "one too low"},
     .hooks = {{.at = ET_AT_MASK, .whole = other_upper}}},
    {.doc = {"capacity-lower-off-by-one", "the capacity's lower bound is off by one", "selection"},
     .applies = et_is_clamped, .variants = {"one too high", "one too low"},
     .hooks = {{.at = ET_AT_MASK, .whole = other_lower}}},
    {.doc = {"padding-forgotten", "the capacity's lower bound is not applied: starved experts are not padded", "selection"},
     .applies = et_is_clamped, .hooks = {{.at = ET_AT_MASK, .whole = no_padding}}},
    {.doc = {"padding-weight-zero", "tokens that pad a starved expert have weight 0", "selection"},
     .applies = et_is_clamped, .variants = {"", "with a gradient to their gates"},
     .hooks = {{.at = ET_AT_WEIGHTS, .who = pads, .row = et_zero_row},
               {.at = ET_AT_DGATES, .variants = 1, .row = padding_has_no_gradient}}},
    {.doc = {"clamped-by-index", "clamped experts keep, or add, their first tokens, not their best", "selection"},
     .applies = et_is_clamped, .hooks = {{.at = ET_AT_MASK, .whole = clamp_by_index}}},
    {.doc = {"expert-choice-per-token", "expert choice is made token by token: each takes its G best experts", "selection"},
     .applies = et_by_choice, .hooks = {{.at = ET_AT_PLAN, .settings = per_token}}},
    {.doc = {"wrong-phase", "expert choice where a threshold is due, or a threshold where expert choice is", "selection"},
     .applies = has_phases, .hooks = {{.at = ET_AT_PLAN, .settings = other_phase}}},
    {.doc = {"lowest-scores", "the lowest scores are taken, not the highest", "selection"},
     .applies = et_decides, .hooks = {{.at = ET_AT_PLAN, .settings = lowest_first}, {.at = ET_AT_MASK, .whole = lowest_came_first}}},
    {.doc = {"bias-not-in-selection", "selection does not see the bias", "selection"},
     .applies = et_has_bias, .hooks = {{.at = ET_AT_PLAN, .settings = without_bias}}},
    {.doc = {"logits-low-precision", "scores are rounded to a coarser format before they are compared", "selection"},
     .applies = et_decides, .allowed = scores_are_low, .variants = {"bf16", "f16"}, .hooks = {{.at = ET_AT_PLAN, .settings = low_scores}}},
    {.doc = {"gates-in-selection", "selection compares gate values, not logits, or logits where gate values are due", "selection"},
     .applies = et_decides, .variants = {"in f32", "in f64", "in bf16", "in f32, without the bias", "in f64, without the bias", "in bf16, without the bias"},
     .hooks = {{.at = ET_AT_PLAN, .settings = other_scores}}},
    {.doc = {"ema-before-use", "the moving average is updated before its threshold is used", "state"},
     .applies = moves_ema_by_threshold, .variants = {"", "corrected by the old count", "the corrected average is"},
     .hooks = {{.at = ET_AT_PLAN, .settings = ema_before_use}}},
    {.doc = {"ema-uncorrected", "the average's bias correction is missing, or applied where the case has none", "state"},
     .applies = et_by_threshold, .hooks = {{.at = ET_AT_PLAN, .settings = other_correction}}},
    {.doc = {"ema-correction-off-by-one", "the average's bias correction counts one update too many or too few", "state"},
     .applies = corrects_ema, .variants = {"one too many", "one too few"},
     .hooks = {{.at = ET_AT_PLAN, .settings = correction_off_by_one}}},
    {.doc = {"ema-beta-swapped", "beta and 1 - beta are exchanged in the moving average", "state"},
     .applies = moves_ema, .hooks = {{.at = ET_AT_STATE, .settings = swap_beta}}},
    {.doc = {"ema-from-routed", "the cutoff is the lowest routed score, not the k-th largest of all", "state"},
     .applies = moves_ema, .hooks = {{.at = ET_AT_CUTOFF, .whole = lowest_routed}}},
    {.doc = {"ema-last-micro-batch", "the cutoff is one micro-batch's, not the mean over all", "state"},
     .applies = moves_ema_in_micro_batches, .variants = {"the last", "the first"},
     .hooks = {{.at = ET_AT_CUTOFF, .whole = one_batch_counts}}},
    {.doc = {"ema-last-pool", "the cutoff is one pool's, not the mean over all", "state"},
     .applies = et_has_pools_in_batch, .variants = {"the last", "the first"},
     .hooks = {{.at = ET_AT_CUTOFF, .whole = one_pool_counts}}},
    {.doc = {"ema-in-evaluation", "evaluation updates the moving average", "state"},
     .applies = evaluates_ema, .hooks = {{.at = ET_AT_STATE, .settings = move_ema}}},
    {.doc = {"ema-not-updated", "the moving average is not updated", "state"},
     .applies = moves_ema, .hooks = {{.at = ET_AT_STATE, .settings = keep_ema}}},
    {.doc = {"updates-not-counted", "the moving average's updates are not counted", "state"},
     .applies = moves_ema, .hooks = {{.at = ET_AT_STATE, .settings = keep_updates}}},
    {.doc = {"lossfree-sign", "the bias moves the wrong way", "state"},
     .applies = moves_bias, .hooks = {{.at = ET_AT_STATE, .settings = move_bias_backwards}}},
    {.doc = {"lossfree-counts-bf16", "loads are rounded to 8 bits before the bias moves", "state"},
     .applies = moves_bias, .hooks = {{.at = ET_AT_STATE, .settings = low_counts}}},
    {.doc = {"bias-not-updated", "the bias is not updated", "state"},
     .applies = moves_bias, .hooks = {{.at = ET_AT_STATE, .settings = keep_bias}}},
    {.doc = {"bias-in-evaluation", "evaluation moves the bias", "state"},
     .applies = evaluates_bias, .hooks = {{.at = ET_AT_STATE, .settings = move_bias}}},
    {.doc = {"bias-last-micro-batch", "the bias moves by the last micro-batch's loads alone", "state"},
     .applies = moves_bias_in_micro_batches, .hooks = {{.at = ET_AT_STATE, .settings = last_loads}}},
    {.doc = {"bias-rule-exchanged", "the bias moves in proportion where its sign is meant, or back", "state"},
     .applies = moves_bias, .hooks = {{.at = ET_AT_STATE, .settings = other_bias_rule}}},
    {.doc = {"global-load-ignored", "the step's own loads are used where those of all ranks are given", "state"},
     .applies = has_given_load,
     .hooks = {{.at = ET_AT_STATE, .settings = own_loads}, {.at = ET_AT_LOSSES, .settings = own_loads}}},
};
/* clang-format on */

const et_faults et_routing_faults = ET_FAULTS(table);
