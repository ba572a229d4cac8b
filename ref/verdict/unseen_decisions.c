/* unseen_decisions.c: a candidate that does not show its routing, and decisions that it may have taken either way.
 *
 * Without an open decision the rule's assignment is the only legal one, and nothing is lost. Else each
 * tensor hangs on the open ones in its own way:
 *
 *     not at all    logits, gates, the shared expert's values, thresholds and cutoffs
 *     by token      y, dx, dr: a row sees the decisions of its own token. Tokens with one or two open
 *                   ones are tried under each legal alternative, all tokens' j-th alternative in one
 *                   run of the layer, and get the one that fits their rows best; others are left out
 *     by expert     the weight gradients of the experts concerned; under a norm those of the token's
 *                   other experts, too, since their weights change; they are left out
 *     altogether    rows of slots, whose number and order nobody knows; dW_r where a gate couples
 *                   experts; everything behind dr where a gate or a loss couples tokens
 *
 * A tensor that hangs by expert or altogether is never a pass: nobody can see what it should be.
 */
#include "ref/base/memory.h"
#include "ref/step/decide.h"
#include "ref/verdict/judge.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- what hangs on a decision ---- */

/* Do the dr of different tokens see each other's decisions? */
static bool couples_tokens(const et_case *c)
{
    bool aux = c->balance == ET_BALANCE_AUX || c->balance == ET_BALANCE_AUX_ERROR;
    return c->gate == ET_GATE_SOFTMAX_TOKENS || (aux && !c->eval && !c->global_load);
}

/* Does dr of one expert see the decisions of a token's others? */
static bool couples_experts(const et_case *c)
{
    return c->norm != ET_NORM_NONE || (c->gate != ET_GATE_SIGMOID && c->gate != ET_GATE_RELU);
}

et_hangs et_tensor_hangs(const et_case *c, et_tensor_id id)
{
    bool divided = c->norm == ET_NORM_FANOUT; /* s, by the fanout */
    switch (et_tensors[id].sees) {
    case ET_SEES_NONE: return ET_HANGS_NOT;
    case ET_SEES_TOKEN: return ET_HANGS_BY_TOKEN;
    case ET_SEES_EXPERT: return ET_HANGS_BY_EXPERT;
    /* loads count decisions, unless those of all ranks are given */
    case ET_SEES_LOADS: return c->global_load ? ET_HANGS_NOT : ET_HANGS_ALL;
    case ET_SEES_LOGITS: return couples_tokens(c) ? ET_HANGS_ALL : ET_HANGS_BY_TOKEN;
    case ET_SEES_ROUTER:
        return couples_tokens(c) || couples_experts(c) ? ET_HANGS_ALL : ET_HANGS_BY_EXPERT;
    case ET_SEES_SHARED: return divided ? ET_HANGS_BY_TOKEN : ET_HANGS_NOT;
    case ET_SEES_ALL_SHARED: return divided ? ET_HANGS_ALL : ET_HANGS_NOT;
    case ET_SEES_ALL:
    case ET_SEES_COUNTS: break;
    }
    return ET_HANGS_ALL;
}

/* ---- alternatives of a token with few open decisions ---- */

enum { FEW = 2, RUNS = 4 }; /* run 0 is the golden's routing; flipping one, the other or both */

typedef struct search {
    et_judgement *j;
    size_t N, n;
    const uint8_t *open; /* [N,n] */
    uint8_t *mask;       /* [N,n] of the run at hand */
    double *fit;         /* [RUNS,N] largest error^2 / V of a token's rows; 0 alternatives: NAN */
} search;

/* The experts of token t's open decisions, if they are few; returns how many there are. */
static size_t open_of_token(const search *s, size_t t, size_t experts[FEW])
{
    size_t count = 0;
    for (size_t i = 0; i < s->n; i++) {
        if (!s->open[t * s->n + i]) continue;
        if (count < FEW) experts[count] = i;
        count++;
    }
    return count;
}

/* Writes alternative `run` of token t into its row; false if it has none of that number. */
static bool write_alternative(const search *s, size_t t, size_t run)
{
    size_t experts[FEW], count = open_of_token(s, t, experts);
    const uint8_t *golden = s->j->golden->route.mask + t * s->n;
    uint8_t *row = s->mask + t * s->n;
    if (count == 0 || count > FEW || run >= (size_t)1 << count) return false;
    int change = 0; /* of the fanout */
    for (size_t b = 0; b < count; b++)
        if (run >> b & 1) change += golden[experts[b]] ? -1 : 1;
    const et_case *c = &s->j->golden->c;
    if (c->rule == ET_TC && !c->has_capacity && change != 0) return false;
    for (size_t b = 0; b < count; b++)
        if (run >> b & 1) row[experts[b]] = !golden[experts[b]];
    return true;
}

/* ---- how well a run fits ---- */

static double fit_of_row(const et_tensor_out *got, const et_tensor_out *want,
                         const et_real *variance, size_t row)
{
    size_t columns = et_tensor_count(want) / want->shape[0];
    double worst = 0;
    for (size_t i = row * columns; i < (row + 1) * columns; i++) {
        double V = (double)variance[i];
        double e = et_tensor_element(got, i) - et_tensor_element(want, i);
        double fit = V > 0 && V < (double)INFINITY ? e * e / V : 0;
        if (!(fit <= worst)) worst = isnan(fit) ? INFINITY : fit;
    }
    return worst;
}

/* Rows of the candidate's token tensors against one run, for tokens with an alternative there, under the variances of
 * the golden's routing: an alternative adds or takes one expert, and the best is sought. Where the golden must be exact,
 * as dr off its slots, an alternative need not be. */
static void fit_run(const search *s, const et_step *reference, double *fit)
{
    et_tensor_out want[ET_MAX_STEP_TENSORS];
    size_t have = et_step_tensors(reference, false, want);
    for (size_t i = 0; i < have; i++) {
        const et_tensor_out *got = et_tensor_named(s->j->candidate, s->j->count, want[i].name);
        const et_real *V = et_variance_named(s->j->bars, want[i].name);
        if (!got || !V || !et_tensor_is_real(got) ||
            et_tensor_hangs(&reference->c, et_tensor_find(got->name)) != ET_HANGS_BY_TOKEN)
            continue;
        for (size_t t = 0; t < s->N; t++) {
            if (isnan(fit[t])) continue;
            double here = fit_of_row(got, &want[i], V, t);
            if (here > fit[t]) fit[t] = here;
        }
    }
}

static et_status try_run(search *s, size_t run, et_error *error)
{
    double *fit = s->fit + run * s->N;
    et_step reference = et_step_like(s->j->golden);
    memcpy(s->mask, s->j->golden->route.mask, s->N * s->n);
    bool any = false;
    for (size_t t = 0; t < s->N; t++) {
        fit[t] = write_alternative(s, t, run) ? 0 : NAN;
        any = any || !isnan(fit[t]);
    }
    if (!any) return ET_OK;
    if (run == 0) { /* already there */
        fit_run(s, s->j->reference, fit);
        return ET_OK;
    }
    reference.given_mask = s->mask;
    reference.max_bytes = s->j->options->max_bytes;
    reference.bytes = 0;
    et_status status = et_step_run(&reference, ET_BLAS, NULL, NULL, error);
    if (status == ET_OK) fit_run(s, &reference, fit);
    et_step_free(&reference);
    return status;
}

/* ---- the outcome ---- */

static void mark_unseen(const search *s, size_t t)
{
    et_unseen *unseen = &s->j->unseen;
    size_t experts[FEW], count = open_of_token(s, t, experts);
    if (count == 0) return;
    bool all = s->j->golden->c.norm != ET_NORM_NONE;
    if (count > FEW) unseen->tokens[t] = 1;
    unseen->open += count;
    for (size_t i = 0; i < s->n; i++) {
        size_t place = t * s->n + i;
        if (s->open[place] || (all && s->j->golden->route.mask[place])) unseen->experts[i] = 1;
    }
}

/* The run whose row fits token t best; the golden's where they fit equally. */
static size_t best_run(const search *s, size_t t)
{
    size_t best = 0;
    for (size_t run = 1; run < RUNS; run++)
        if (s->fit[run * s->N + t] < s->fit[best * s->N + t]) best = run;
    return best;
}

et_status et_unseen_infer(et_judgement *j, const uint8_t *open, uint8_t *mask, et_error *error)
{
    search s = {.j = j, .N = j->golden->c.tokens, .n = j->golden->c.experts, .open = open};
    void *tokens = NULL, *experts = NULL, *fit = NULL;
    et_status status;
    if ((status = et_allocate(&tokens, s.N, 1, "open tokens", error)) == ET_OK)
        j->unseen.tokens = tokens;
    if (status == ET_OK && (status = et_allocate(&experts, s.n, 1, "open experts", error)) == ET_OK)
        j->unseen.experts = experts;
    if (status == ET_OK)
        status = et_allocate(&fit, RUNS * s.N, sizeof(double), "alternatives", error);
    if (status != ET_OK) return status;
    s.mask = mask;
    s.fit = fit;
    for (size_t i = 0; i < RUNS * s.N; i++) s.fit[i] = NAN;
    for (size_t t = 0; t < s.N; t++) mark_unseen(&s, t);
    for (size_t run = 0; status == ET_OK && run < RUNS; run++) status = try_run(&s, run, error);
    memcpy(mask, j->golden->route.mask, s.N * s.n);
    for (size_t t = 0; status == ET_OK && t < s.N; t++) write_alternative(&s, t, best_run(&s, t));
    free(fit);
    return status;
}
