/* audit.c: does a past decision hang on the future? See audit.h.
 *
 * A rule is causal if the decisions of the first t tokens of a batch are a function of their scores
 * (and of what was known before the batch). So: keep t tokens, put others in place of the rest, with
 * as many tokens and the same k, route again, and look at the first t. What changes was told by the
 * future; what does not change under one future may still change under another.
 *
 *
 * Which futures are enough
 *
 * Take one expert. Let t tokens be kept, F = U - t replaced. Whatever the future, the kept tokens
 * that the rule takes are the best c' of the kept ones, by score and then by index, for some c':
 *
 *     EC             the top k of all, so the top k - f of the kept ones, if f of the top k are new
 *     ET             all that pass the threshold: c' = q, the number of kept tokens that pass
 *     ET, capacity   the top min(max(m, lo), up) of all, m of which pass
 *
 * Kept tokens come before new ones, so ties between them go to the kept ones and change nothing in
 * the order among these. A decision is therefore open if and only if its token's rank among the kept
 * ones lies between the least c' and the largest c'. Both are met by the two extreme futures, the one
 * with all new scores below every kept one and every threshold, and the one with all above:
 *
 * EC. f is between 0 and min(F, k): c' is at most min(k, t), which "all below" gives, and at least
 * max(k - F, 0), which "all above" gives.
 *
 * ET with capacity. A future with m < lo is filled: all passing tokens are among the taken ones, so
 * q <= c' <= lo, and c' >= lo - F. One with m > up is cut: only passing tokens are taken, so
 * c' <= min(q, up), and c' >= up - F. Any other gives c' = q.
 *     below: m = q, c' = q moved into [lo, up]. It is the largest: filled or left alone needs
 *            q <= up and gives at most max(q, lo); cut gives at most min(q, up).
 *     above: m = q + F. If that is above up, c' = max(up - F, 0); a future that is filled or left
 *            alone gives at least q > up - F. If it is below lo, every future is filled, and this
 *            one has c' = max(lo - F, 0). Otherwise c' = q, and no future can be cut.
 * (A c' above t means t.)
 *
 * So a decision can be changed by some future if and only if one of these two changes it. This is
 * the adversary of the paper's Algorithm 2 seen from one batch: there, too, each score is put where
 * both outcomes are still possible, and it is the later scores, all above or all below, that choose.
 *
 * TC's decisions hang on the token's own scores: no future changes any.
 *
 * Source: paper, Appendix A; the two futures are our own. Left out: gate values. softmax_tokens
 * normalises over the batch, so its weights see the future even where its decisions do not.
 */
#include "tools/leakage-study/audit.h"
#include "ref/base/float_environment.h"
#include "ref/base/memory.h"

#include <stdlib.h>
#include <string.h>

/* ---- one batch ---- */

/* What routing a batch leaves behind; only the mask is wanted. */
typedef struct room {
    et_real *scores; /* [U,n] */
    uint8_t *mask;   /* [U,n] */
    et_real *margin; /* [U,n] */
    et_real *cutoff; /* [n] */
    int32_t *passed; /* [n] */
} room;

static void room_free(room *w)
{
    free(w->scores);
    free(w->mask);
    free(w->margin);
    free(w->cutoff);
    free(w->passed);
}

static et_status room_take(room *w, const et_audit_rule *rule, et_error *error)
{
    size_t n = rule->experts, count;
    *w = (room){0};
    if (!et_size_mul(rule->batch, n, &count))
        return et_fail(error, ET_ENOMEM, "audit: %zu tokens by %zu experts overflow", rule->batch,
                       n);
    et_status status;
    if ((status = et_allocate((void **)&w->scores, count, sizeof(et_real), "audit", error)) ||
        (status = et_allocate((void **)&w->mask, count, 1, "audit", error)) ||
        (status = et_allocate((void **)&w->margin, count, sizeof(et_real), "audit", error)) ||
        (status = et_allocate((void **)&w->cutoff, n, sizeof(et_real), "audit", error)) ||
        (status = et_allocate((void **)&w->passed, n, sizeof(int32_t), "audit", error)))
        room_free(w);
    return status;
}

static et_status route(const et_audit_rule *rule, const et_real *r, uint8_t *mask, room *w,
                       et_error *error)
{
    size_t U = rule->batch, n = rule->experts;
    et_capacity bounds = et_capacity_bounds(rule->select, rule->capacity, U);
    switch (rule->rule) {
    case ET_TC:
        return et_token_choice(U, n, rule->select, r, rule->bias, mask, w->margin, NULL, error);
    case ET_EC:
        return et_expert_choice(U, n, U, rule->select, r, mask, w->margin, w->cutoff, NULL, 0,
                                error);
    case ET_ET:
        return et_expert_threshold(U, n, r, rule->threshold, rule->inclusive,
                                   rule->has_capacity ? &bounds : NULL, mask, w->margin, w->passed,
                                   error);
    }
    return et_fail(error, ET_EINVAL, "audit: rule %d is none of the three", (int)rule->rule);
}

static et_status check(const et_audit_rule *rule, size_t N, et_error *error)
{
    if (rule->batch < 1 || N % rule->batch != 0)
        return et_fail(error, ET_EINVAL, "audit: batches of %zu tokens do not divide %zu",
                       rule->batch, N);
    if (rule->rule == ET_ET && rule->threshold == NULL && rule->experts > 0)
        return et_fail(error, ET_EINVAL, "audit: threshold is NULL; one for each of %zu experts",
                       rule->experts);
    if (rule->rule == ET_ET && rule->has_capacity && !(rule->capacity >= 0))
        return et_fail(error, ET_EINVAL, "audit: capacity = %g; 0 or more", rule->capacity);
    return ET_OK;
}

et_status et_audit_route(const et_audit_rule *rule, size_t N, const et_real *r, uint8_t *mask,
                         et_error *error)
{
    ET_ARITHMETIC;
    room w;
    size_t size = rule->batch * rule->experts;
    et_status status = check(rule, N, error);
    if (status == ET_OK) status = room_take(&w, rule, error);
    if (status != ET_OK) return status;
    for (size_t b = 0; b < N / rule->batch && status == ET_OK; b++)
        status = route(rule, r + b * size, mask + b * size, &w, error);
    room_free(&w);
    return status;
}

/* ---- many batches, many futures ---- */

/* A future: a batch's later scores, or one number for all of them. */
typedef struct future {
    const et_real *scores; /* [N,n] or NULL */
    et_real every;
} future;

/* Routes a batch with its tokens from `cut` on replaced; marks in changed [U,n] where the kept
 * tokens' decisions differ. */
static et_status try_future(const et_audit_rule *rule, et_audit_routed batch, future f, size_t cut,
                            uint8_t *changed, room *w, et_error *error)
{
    size_t size = rule->batch * rule->experts, kept = cut * rule->experts;
    memcpy(w->scores, batch.r, kept * sizeof *batch.r);
    for (size_t j = kept; j < size; j++) w->scores[j] = f.scores ? f.scores[j] : f.every;
    et_status status = route(rule, w->scores, w->mask, w, error);
    for (size_t j = 0; j < kept && status == ET_OK; j++)
        changed[j] |= (w->mask[j] != 0) != (batch.mask[j] != 0);
    return status;
}

static void add_up(const et_audit_rule *rule, const uint8_t *mask, size_t cut,
                   const uint8_t *changed, et_audit_count *count)
{
    size_t n = rule->experts;
    for (size_t s = 0; s < cut; s++) {
        count->compared[s] += n;
        for (size_t j = s * n; j < (s + 1) * n; j++) {
            count->taken[s] += mask[j] != 0;
            count->changed[s] += changed[j];
        }
    }
}

/* Every batch is routed before anything is counted, so that a failure leaves the counts alone. */
static et_status audit(const et_audit_rule *rule, const et_audit_routed *all, const future *futures,
                       size_t number, size_t cut, et_audit_count *count, et_error *error)
{
    room w;
    void *marks = NULL;
    size_t U = rule->batch, size = U * rule->experts;
    et_status status = check(rule, all->N, error);
    if (status != ET_OK) return status;
    if (cut > U)
        return et_fail(error, ET_EINVAL, "audit: %zu tokens kept of batches of %zu; at most all",
                       cut, U);
    if ((status = room_take(&w, rule, error)) != ET_OK) return status;
    status = et_allocate(&marks, all->N, rule->experts, "audit", error);
    uint8_t *changed = marks;
    for (size_t b = 0; b < all->N / U; b++)
        for (size_t i = 0; i < number && status == ET_OK; i++) {
            future f = futures[i];
            if (f.scores) f.scores += b * size;
            const et_audit_routed batch = {U, all->r + b * size, all->mask + b * size};
            status = try_future(rule, batch, f, cut, changed + b * size, &w, error);
        }
    for (size_t b = 0; b < all->N / U && status == ET_OK; b++)
        add_up(rule, all->mask + b * size, cut, changed + b * size, count);
    free(marks);
    room_free(&w);
    return status;
}

et_status et_audit_replace(const et_audit_rule *rule, const et_audit_routed *tokens,
                           const et_real *scores, size_t cut, et_audit_count *count,
                           et_error *error)
{
    ET_ARITHMETIC;
    const future f = {.scores = scores};
    return audit(rule, tokens, &f, 1, cut, count, error);
}

et_status et_audit_adversary(const et_audit_rule *rule, const et_audit_routed *tokens, size_t cut,
                             et_audit_count *count, et_error *error)
{
    ET_ARITHMETIC;
    const future extremes[] = {{NULL, -ET_REAL_MAX}, {NULL, ET_REAL_MAX}};
    return audit(rule, tokens, extremes, 2, cut, count, error);
}
