/* faults_state.c: thresholds, cutoffs, moving average and bias, wrongly. See faults.h. */
#include "etref/dtype.h"
#include "ref/verdict/faults.h"

#include <string.h>

/* ---- where it can show ---- */

ET_WHERE(has_pools_in_batch, et_by_choice(s) && s->c.pool_tokens < et_case_micro_tokens(&s->c));
ET_WHERE(moves_bias, s->state_bias != NULL && !s->c.eval);
ET_WHERE(moves_bias_in_micro_batches,
         moves_bias(s) && s->in.load == NULL && s->c.micro_batches > 1);
ET_WHERE(evaluates_bias, s->in.bias != NULL && s->c.eval);
ET_WHERE(moves_ema, s->state_ema != NULL && !s->c.eval);
ET_WHERE(moves_ema_by_threshold, moves_ema(s) && et_by_threshold(s));
ET_WHERE(moves_ema_in_micro_batches, moves_ema(s) && s->c.micro_batches > 1);
ET_WHERE(evaluates_ema, s->in.ema != NULL && s->c.eval);
ET_WHERE(corrects_ema, et_by_threshold(s) && s->c.ema_bias_correction);
ET_WHERE(has_given_load, s->in.load != NULL && (s->loss_aux || moves_bias(s)));

/* ---- thresholds ---- */

/* The average of this step is the reference's state after it. Form 0: corrected by the count after the update; 1: by
 * the one before it; 2: the corrected threshold itself is moved on, beta c + (1 - beta) cutoff. */
static void ema_before_use(et_mutant *m, et_step *s)
{
    const et_step *right = m->on->right;
    et_case *c = &s->c;
    if (m->variant < 2) {
        s->in.ema = right->state_ema;
        c->ema_updates += m->variant == 0 ? 1 : 0;
        return;
    }
    et_real *moved = et_mutant_reals(m, m->moe.n);
    if (moved == NULL) return;
    et_ema_threshold(m->moe.n, right->in.ema, c->ema_decay, c->ema_bias_correction, c->ema_updates,
                     moved);
    et_ema_update(m->moe.n, c->ema_decay, right->route.cutoff, moved);
    s->in.ema = moved;
    c->ema_bias_correction = false;
}

ET_SETTING(other_correction, s->c.ema_bias_correction = !s->c.ema_bias_correction);

static void correction_off_by_one(et_mutant *m, et_step *s)
{
    size_t u = s->c.ema_updates;
    s->c.ema_updates = m->variant == 0 ? u + 1 : u > 0 ? u - 1 : 0;
}

/* ---- cutoffs ---- */

/* kth [n]: of one micro-batch, the k-th largest scores; of pools their mean. */
static void cutoffs_of(et_mutant *m, size_t batch, et_real *kth)
{
    const et_step *right = m->on->right;
    const et_case *c = &right->c;
    size_t n = m->moe.n, N = et_case_micro_tokens(c), parts = N / c->pool_tokens;
    if (right->route.pool_cutoff == NULL) {
        m->status =
            et_kth_largest(N, n, c->target_load, right->fwd.logits + batch * N * n, kth, NULL);
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
    size_t n = m->moe.n, N = et_case_micro_tokens(&m->all.c);
    cutoffs_of(m, batch, kth);
    for (size_t i = 0; i < n; i++) {
        bool any = false;
        for (size_t j = batch * N * n + i; j < (batch + 1) * N * n; j += n) {
            et_real r = m->all.fwd.logits[j];
            if (!m->all.route.mask[j] || (any && r >= kth[i])) continue;
            kth[i] = r;
            any = true;
        }
    }
}

static void lowest_routed(et_mutant *m)
{
    mean_cutoffs(m, lowest_of, m->all.route.cutoff);
}

static void one_batch_counts(et_mutant *m)
{
    cutoffs_of(m, m->variant == 0 ? m->all.c.micro_batches - 1 : 0, m->all.route.cutoff);
}

static void one_pool_of(et_mutant *m, size_t batch, et_real *kth)
{
    const et_case *c = &m->all.c;
    size_t n = m->moe.n, parts = et_case_micro_tokens(c) / c->pool_tokens;
    size_t one = m->variant == 0 ? parts - 1 : 0;
    memcpy(kth, m->on->right->route.pool_cutoff + (batch * parts + one) * n, n * sizeof *kth);
}

static void one_pool_counts(et_mutant *m)
{
    mean_cutoffs(m, one_pool_of, m->all.route.cutoff);
}

/* ---- the moving average ---- */

ET_SETTING(swap_beta, s->c.ema_decay = 1 - s->c.ema_decay);
ET_SETTING(keep_ema, s->c.ema_decay = 1);

static void move_ema(et_mutant *m, et_step *s)
{
    s->c.eval = false;
    s->route.cutoff = et_mutant_reals(m, m->moe.n);
    if (s->route.cutoff) mean_cutoffs(m, cutoffs_of, s->route.cutoff);
}

ET_SETTING(keep_updates, s->c.ema_updates--);

/* ---- the bias ---- */

ET_SETTING(move_bias_backwards, s->c.bias_rate = -s->c.bias_rate);
ET_SETTING(keep_bias, s->c.bias_rate = 0);
ET_SETTING(move_bias, s->c.eval = false);

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

ET_SETTING(own_loads, s->in.load = NULL);

static void other_bias_rule(et_mutant *m, et_step *s)
{
    bool by_sign = s->c.balance == ET_BALANCE_LOSSFREE;
    (void)m;
    s->c.balance = by_sign ? ET_BALANCE_PROPORTIONAL : ET_BALANCE_LOSSFREE;
}

/* ---- the table ---- */

/* clang-format off */
static const et_hypothesis table[] = {
    {.doc = {"ema-before-use", "the moving average is updated before its threshold is used", "state"},
     .applies = moves_ema_by_threshold, .variants = {"", "corrected by the old count", "the corrected average is"},
     .hooks = {{.at = ET_AT_PLAN, .settings = ema_before_use}}},
    {.doc = {"ema-uncorrected", "the average's bias correction is missing, or applied where the case has none", "state"},
     .applies = et_by_threshold, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_PLAN, .settings = other_correction}}},
    {.doc = {"ema-correction-off-by-one", "the average's bias correction counts one update too many or too few", "state"},
     .applies = corrects_ema, .variants = {"one too many", "one too few"},
     .hooks = {{.at = ET_AT_PLAN, .settings = correction_off_by_one}}},
    {.doc = {"ema-beta-swapped", "beta and 1 - beta are exchanged in the moving average", "state"},
     .applies = moves_ema, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_STATE, .settings = swap_beta}}},
    {.doc = {"ema-from-routed", "the cutoff is the lowest routed score, not the k-th largest of all", "state"},
     .applies = moves_ema, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_CUTOFF, .whole = lowest_routed}}},
    {.doc = {"ema-last-micro-batch", "the cutoff is one micro-batch's, not the mean over all", "state"},
     .applies = moves_ema_in_micro_batches, .variants = {"the last", "the first"},
     .hooks = {{.at = ET_AT_CUTOFF, .whole = one_batch_counts}}},
    {.doc = {"ema-last-pool", "the cutoff is one pool's, not the mean over all", "state"},
     .applies = has_pools_in_batch, .variants = {"the last", "the first"},
     .hooks = {{.at = ET_AT_CUTOFF, .whole = one_pool_counts}}},
    {.doc = {"ema-in-evaluation", "evaluation updates the moving average", "state"},
     .applies = evaluates_ema, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_STATE, .settings = move_ema}}},
    {.doc = {"ema-not-updated", "the moving average is not updated", "state"},
     .applies = moves_ema, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_STATE, .settings = keep_ema}}},
    {.doc = {"updates-not-counted", "the moving average's updates are not counted", "state"},
     .applies = moves_ema, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_STATE, .settings = keep_updates}}},
    {.doc = {"lossfree-sign", "the bias moves the wrong way", "state"},
     .applies = moves_bias, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_STATE, .settings = move_bias_backwards}}},
    {.doc = {"lossfree-counts-bf16", "loads are rounded to 8 bits before the bias moves", "state"},
     .applies = moves_bias, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_STATE, .settings = low_counts}}},
    {.doc = {"bias-not-updated", "the bias is not updated", "state"},
     .applies = moves_bias, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_STATE, .settings = keep_bias}}},
    {.doc = {"bias-in-evaluation", "evaluation moves the bias", "state"},
     .applies = evaluates_bias, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_STATE, .settings = move_bias}}},
    {.doc = {"bias-last-micro-batch", "the bias moves by the last micro-batch's loads alone", "state"},
     .applies = moves_bias_in_micro_batches, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_STATE, .settings = last_loads}}},
    {.doc = {"bias-rule-exchanged", "the bias moves in proportion where its sign is meant, or back", "state"},
     .applies = moves_bias, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_STATE, .settings = other_bias_rule}}},
    {.doc = {"global-load-ignored", "the step's own loads are used where those of all ranks are given", "state"},
     .applies = has_given_load, .variants = ET_ONE_FORM,
     .hooks = {{.at = ET_AT_STATE, .settings = own_loads}, {.at = ET_AT_LOSSES, .settings = own_loads}}},
};
/* clang-format on */

const et_faults et_state_faults = ET_FAULTS(table);
