/* ranking.c: another profile as an explanation, and the order of what fits. See inquiry.h.
 *
 * Explanations are compared by their fits (fit.c), the tightest first. Far looser ones are dropped where something fits
 * within the verdict's own bars; nothing else is, since the bars of sums in few bits are wider than most kernels need.
 */
#include "ref/verdict/inquiry.h"

#include <math.h>
#include <string.h>

/* Differences of fits: as tight; so much less tight that it is no explanation beside the other, its bars being twelve
 * times as wide. */
static const double as_tight = 0.05, far_looser = 2.5;

static bool goes_on(void *user)
{
    return et_budget_allows(user, ET_JUDGEMENT);
}

et_status et_find_other_profile(et_inquiry *q, et_other_profile *other, et_error *error)
{
    bool accounts = false;
    *other = (et_other_profile){.fit = -INFINITY};
    if (!et_could_be_rounding(q)) return ET_OK;
    et_budget_until(&q->budget, 1, 1);
    et_status status = et_find_passing_profile(&other->profile, q->j, goes_on, &q->budget, error);
    if (status != ET_OK || !other->profile) return status;
    q->verdict->passes_under = other->profile->name;
    status = et_profile_fit(q, other->profile, &other->fit, &accounts, error);
    other->explains =
        !q->failed[ET_PART_ARITHMETIC] || (accounts && other->fit > et_own_fit(q) + 1);
    other->evident = other->explains && et_has_numbers_of(q->j, other->profile);
    return status;
}

/* Does it bring bars of its own, as wide as a rounding asks? */
static bool has_wide_bars(const et_hypothesis *what)
{
    return what->nature == ET_BY_PROFILE || what->nature == ET_BY_TRUNCATION;
}

/* Beside one that fits within the verdict's own bars far looser ones are none. And few bits of sums fit too much
 * (precision.c): where the candidate is evidently of another profile, they must fit better. */
static bool gives_way(const et_inquiry *q, size_t i, double best, const et_other_profile *other)
{
    const et_hypothesis *what = q->named[i];
    bool sums = strncmp(what->doc.name, "accumulator-", 12) == 0;
    if (!has_wide_bars(what)) return false;
    return q->fits[i] < best - far_looser ||
           (sums && other->evident && q->fits[i] < other->fit + as_tight);
}

void et_order_by_fit(et_inquiry *q, size_t first, const et_other_profile *other)
{
    et_verdict *v = q->verdict;
    double best = -INFINITY;
    size_t kept = first;
    for (size_t i = first; i < v->explanation_count; i++)
        if (!has_wide_bars(q->named[i])) best = fmax(best, q->fits[i]);
    for (size_t i = first; i < v->explanation_count; i++) {
        et_explanation e = v->explanations[i];
        double fit = q->fits[i];
        const et_hypothesis *what = q->named[i];
        if (gives_way(q, i, best, other)) continue;
        size_t at = kept++;
        for (; at > first && q->fits[at - 1] + as_tight < fit; at--) {
            v->explanations[at] = v->explanations[at - 1];
            q->fits[at] = q->fits[at - 1];
            q->named[at] = q->named[at - 1];
        }
        v->explanations[at] = e;
        q->fits[at] = fit;
        q->named[at] = what;
    }
    v->explanation_count = kept;
}
