/* fit.c: how tightly a hypothesis fits, and what is reported of those that do. See inquiry.h.
 *
 * Wide bars fit everything. So explanations are compared by the likelihood of the errors that they leave: with the
 * values u and the variances V that a hypothesis expects, errors e = g - u are normal, and
 *
 *     fit = mean over all elements of the tensors that fail of    -ln(V)/2 - e^2/(2V)
 *
 * Bars r times as wide as the errors need cost about ln(r). A factor of 1.001 under bars of 24 bits beats any rounding
 * of gates to 8 bits that would also cover it, by ln(2^14). The tightest comes first. Far looser ones are dropped where
 * something fits within the verdict's own bars; nothing else is, since the bars of sums in few bits are wider than most
 * kernels need.
 *
 * Left out: elements that must be exact; they have no variance.
 */
#include "ref/verdict/inquiry.h"

#include <math.h>
#include <string.h>

/* ulp^2/12 at `value` of a format of so many bits. */
static double rounding_variance(double value, int bits)
{
    int exponent;
    frexp(value, &exponent);
    double ulp = value == 0 ? 0 : ldexp(1, exponent - bits);
    return ulp * ulp / 12;
}

void et_fit_add(et_likelihood *l, const et_exhibit *x, const et_guess *guess)
{
    const et_real *own = x->variance, *right = x->right;
    const et_real *V = guess->variance ? guess->variance : own;
    const et_real *values = guess->values ? guess->values : right;
    for (size_t i = 0; i < et_tensor_count(x->got); i++) {
        double u = (double)values[i] + guess->slope * (double)right[i];
        double e = et_tensor_element(x->got, i) - u, v = (double)V[i];
        if (guess->bits > 0) v += rounding_variance(u, guess->bits);
        if (!(own[i] > 0) || !(v > 0) || !isfinite(v) || !isfinite(e)) continue;
        l->sum += -0.5 * log(v) - 0.5 * e * e / v;
        l->squares += e * e / v;
        l->n++;
    }
}

double et_fit_of(const et_likelihood *l)
{
    return l->n > 0 ? l->sum / l->n : -INFINITY;
}

/* ---- another profile, and the order ---- */

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
static bool has_wide_bars(const et_finding *f)
{
    return f->what->nature == ET_BY_PROFILE || f->what->nature == ET_BY_TRUNCATION;
}

/* Beside one that fits within the verdict's own bars far looser ones are none. And few bits of sums fit too much
 * (precision.c): where the candidate is evidently of another profile, they must fit better. */
static bool gives_way(const et_finding *f, double best, const et_other_profile *other)
{
    bool sums = f->what->bits > 0 && f->what->place == ET_ACCUMULATOR;
    if (!has_wide_bars(f)) return false;
    return f->fit < best - far_looser || (sums && other->evident && f->fit < other->fit + as_tight);
}

void et_order_by_fit(et_inquiry *q, size_t first, const et_other_profile *other)
{
    double best = -INFINITY;
    size_t kept = first;
    for (size_t i = first; i < q->found; i++)
        if (!has_wide_bars(&q->findings[i])) best = fmax(best, q->findings[i].fit);
    for (size_t i = first; i < q->found; i++) {
        const et_finding f = q->findings[i];
        if (gives_way(&f, best, other)) continue;
        size_t at = kept++;
        for (; at > first && q->findings[at - 1].fit + as_tight < f.fit; at--)
            q->findings[at] = q->findings[at - 1];
        q->findings[at] = f;
    }
    q->found = kept;
}
