/* faults_state.c: what a training loop does to the state that a layer keeps: the moving average, its count, the bias.
 * See faults.h. The rules' own mistakes are in faults_routing.c. */
#include "etref/dtype.h"
#include "ref/diagnose/faults.h"
#include "ref/step/case_kinds.h"

#include <math.h>
#include <string.h>

static ET_SHOWS(moves_ema, s->state_ema != NULL && !s->c.eval && s->c.ema_decay < 1);
static ET_SHOWS(has_parts, moves_ema(s) && (s->c.micro_batches > 1 || et_has_pools_in_batch(s)));
static ET_SHOWS(has_micro_batches, moves_ema(s) && s->c.micro_batches > 1);
static ET_SHOWS(moves_bias, s->state_bias != NULL && !s->c.eval);
static ET_SHOWS(has_state, s->in.ema != NULL || s->in.bias != NULL);

/* ---- how often, and by what, the average moves ---- */

/* Moved by the same cutoff `times` times: ema becomes beta^times ema + (1 - beta^times) cutoff. */
static void decay_again(et_step *s, size_t times, bool counted)
{
    s->c.ema_decay = pow(s->c.ema_decay, (double)times);
    if (counted) s->c.ema_updates += times - 1;
}

static ET_SETTING(move_twice, decay_again(s, 2, m->fault.variant == 0));

/* By each micro-batch's own cutoff k_b: ema becomes beta^M ema + (1 - beta) sum_b beta^(M-1-b) k_b. */
static void move_in_micro_batches(et_mutant *m, et_step *s)
{
    size_t n = m->moe.n, M = s->c.micro_batches;
    double beta = s->c.ema_decay, weight = (1 - beta) / (1 - pow(beta, (double)M));
    et_real *kth = et_mutant_reals(m, n), *sum = et_mutant_reals(m, n);
    if (kth == NULL || sum == NULL) return;
    for (size_t b = 0; b < M && m->status == ET_OK; b++) {
        et_cutoffs_of(m, b, kth);
        et_add_row(n, (et_real)(weight * pow(beta, (double)(M - 1 - b))), kth, sum);
    }
    s->route.cutoff = sum;
    decay_again(s, M, m->fault.variant == 0);
}

/* Variant 0: over the micro-batches; 1: over the pools of one; 2: over both. */
static void sum_of_cutoffs(et_mutant *m, et_step *s)
{
    const et_case *c = &s->c;
    size_t M = c->micro_batches, pools = pools_of_batch(c);
    double times = (double)(m->fault.variant == 0 ? M : m->fault.variant == 1 ? pools : M * pools);
    et_real *sum = et_mutant_copy(m, s->route.cutoff, m->moe.n);
    if (sum) et_scale_values(m->moe.n, times, sum);
    if (sum) s->route.cutoff = sum;
}

static ET_SETTING(step_times, s->c.ema_decay = 1 - (1 - s->c.ema_decay) * m->fault.factor);

/* ---- a state that is not the one from before the step, or kept in a short format ---- */

static void forget(et_mutant *m, et_step *s)
{
    et_real **kept = m->fault.variant == 3 ? &s->in.bias : &s->in.ema;
    et_real *zeros = *kept ? et_mutant_reals(m, m->moe.n) : NULL;
    if (zeros) *kept = zeros;
    if (m->fault.variant == 2) s->c.ema_updates = 0;
}

static void round_kept(et_mutant *m, const et_real *from, et_real **kept)
{
    static const et_dtype types[] = {ET_BF16, ET_F16};
    et_real *to = from ? et_mutant_copy(m, from, m->moe.n) : NULL;
    for (size_t i = 0; to && i < m->moe.n; i++)
        to[i] = (et_real)et_round_to_dtype((double)to[i], types[m->fault.variant % 2]);
    if (to) *kept = to;
}

static void keep_short(et_mutant *m, et_step *s)
{
    round_kept(m, s->in.ema, &s->in.ema);
    round_kept(m, s->in.bias, &s->in.bias);
}

static void store_short(et_mutant *m)
{
    round_kept(m, m->all.state_ema, &m->all.state_ema);
    round_kept(m, m->all.state_bias, &m->all.state_bias);
}

/* ---- loads ---- */

/* The bias moves once more by the same loads: twice, or as often as there are micro-batches. */
static void move_bias_again(et_mutant *m)
{
    const et_step *right = m->on->right;
    size_t times = m->fault.variant == 0 ? 2 : right->c.micro_batches;
    for (size_t i = 0; m->all.state_bias && i < m->moe.n; i++)
        m->all.state_bias[i] += (et_real)(times - 1) * (m->all.state_bias[i] - right->in.bias[i]);
}

static void count_twice(et_mutant *m, et_step *s)
{
    size_t n = m->moe.n;
    if (s->in.load) s->in.load = et_mutant_copy(m, s->in.load, n);
    for (size_t i = 0; m->status == ET_OK && i < n; i++) {
        s->assignment.load[i] *= 2;
        if (s->in.load) s->in.load[i] *= 2;
    }
}

/* ---- the table ---- */

/* clang-format off */
static const et_hypothesis table[] = {
    {.doc = {"ema-moved-twice", "the moving average is updated twice in one step", "state"},
     .applies = moves_ema, .variants = {"", "and counted once"}, .hooks = {{.at = ET_AT_STATE, .settings = move_twice}}},
    {.doc = {"ema-per-micro-batch", "the moving average is updated after each micro-batch, not once a step", "state"},
     .applies = has_micro_batches, .variants = {"", "and counted once"}, .hooks = {{.at = ET_AT_STATE, .settings = move_in_micro_batches}}},
    {.doc = {"ema-cutoffs-summed", "cutoffs are summed, not averaged, before the moving average takes them", "state"},
     .applies = has_parts, .variants = {"over micro-batches", "over pools", "over both"}, .hooks = {{.at = ET_AT_STATE, .settings = sum_of_cutoffs}}},
    {.doc = {"ema-decay", "the moving average has another decay than the case", "state"}, .nature = ET_BY_FACTOR,
     .applies = moves_ema, .variants = {"1 - beta"}, .hooks = {{.at = ET_AT_STATE, .settings = step_times}}},
    {.doc = {"state-not-restored", "the state from before the step is lost: it begins at 0", "state"},
     .applies = has_state, .variants = {"the average, where scores are compared with it", "the average", "the average and its count", "the bias"},
     .hooks = {{.at = ET_AT_PLAN, .settings = forget}, {.at = ET_AT_STATE, .variants = 14, .settings = forget}}},
    {.doc = {"state-in-short-format", "the average, or the bias, is kept in a short format from step to step", "state"},
     .applies = has_state, .variants = {"bf16", "f16"},
     .hooks = {{.at = ET_AT_PLAN, .settings = keep_short}, {.at = ET_AT_STATE, .settings = keep_short}, {.at = ET_AT_STATE, .whole = store_short}}},
    {.doc = {"bias-moved-again", "the bias moves more than once in one step", "state"}, .everywhere = true,
     .applies = moves_bias, .variants = {"twice", "once for each micro-batch"}, .hooks = {{.at = ET_AT_STATE, .whole = move_bias_again}}},
    {.doc = {"loads-counted-twice", "every slot counts twice in the loads by which the bias moves", "state"},
     .applies = moves_bias, .hooks = {{.at = ET_AT_STATE, .settings = count_twice}}},
};
/* clang-format on */

const et_faults et_state_faults = ET_FAULTS(table);
