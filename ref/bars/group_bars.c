/* group_bars.c: what the runs have shown of a group becomes its bar. See group_bars.h.
 *
 * How far a group's slope scatters is seen in 32 replicas, to an eighth of itself. Groups of one kind are
 * much alike: their slopes' variance is about c / sum(u^2/V), with one c (1 if all errors were
 * independent). So a group has its own variance and, as if seen in PRIOR runs more, its kind's; and
 * likewise with c / n for the spread. The whole tensor has no others of its kind, and its own alone.
 *
 * Most of a replica's rounding errors are the same in all replicas, since a number far from half way between two has but one
 * way to go. Another kernel's numbers are others, and all of its errors are drawn anew: so slope and spread scatter at
 * least as those of m independent errors of variance V do. m follows from how the errors hang together (independent_errors.h), and
 * is at most the number of different numbers among the n, as an accumulator has them before they are stored: equal ones err
 * alike. Of a slope that is sqrt(n/m / sum(u^2/V)). Uniform errors have E e^2 = 1/12 and E e^4 = 1/80, so e^2/V has the
 * variance 144/80 - 1 = 0.8, and the spread of m of them scatters by sqrt(0.2/m).
 */
#include "ref/bars/group_bars.h"

#include <math.h>

static void note(et_moments *m, double value)
{
    if (!isfinite(value)) return;
    m->sum += value;
    m->squares += value * value;
    m->count++;
}

static double mean_of(const et_moments *m)
{
    return m->count > 0 ? m->sum / m->count : 0;
}

static double variance_of(const et_moments *m)
{
    double mean = mean_of(m);
    return m->count > 1 ? fmax(0, m->squares - m->count * mean * mean) / (m->count - 1) : 0;
}

/* Roundings left out: slopes are others, and spreads less, as a rule. */
void et_note_some(et_tally *all, const et_group_sums *s)
{
    if (s->uu > 0) note(&all->slope, et_slope_of(s));
    if (s->n > 0) all->some = fmax(all->some, et_spread_of(s));
}

void et_note_all(et_tally *all, const et_group_sums *s)
{
    if (s->uu > 0) note(&all->slope, et_slope_of(s));
    if (s->n > 0) note(&all->spread, et_spread_of(s));
}

/* Rounded to nearest: what is no matter of chance; of a spread, by how much it is more. It comes last. */
void et_note_nearest(et_tally *all, const et_group_sums *s)
{
    double slope = fabs(et_slope_of(s) - mean_of(&all->slope));
    double spread = et_spread_of(s) - mean_of(&all->spread);
    all->nearest_slope = isfinite(slope) ? slope : 0;
    all->nearest_spread = isfinite(spread) ? fmax(0, spread) : 0;
}

/* c of a kind's slopes, and of its spreads: groups first .. end. */
void et_settle_kind(et_group_bar *bars, const et_tally *tallies, size_t first, size_t end)
{
    const double prior = 16;
    double slopes = 0, with_slope = 0, spreads = 0, with_spread = 0;
    for (size_t g = first; g < end; g++) {
        const et_tally *t = &tallies[g];
        if (t->slope.count > 1) slopes += variance_of(&t->slope) * bars[g].uu, with_slope++;
        if (t->spread.count > 1) spreads += variance_of(&t->spread) * bars[g].n, with_spread++;
    }
    for (size_t g = first; g < end; g++) {
        const et_tally *t = &tallies[g];
        et_group_bar *bar = &bars[g];
        double S = t->slope.count, Q = t->spread.count;
        bar->slope = mean_of(&t->slope);
        bar->slope_systematic = t->nearest_slope;
        bar->spread_systematic = t->nearest_spread;
        bar->spread = fmax(mean_of(&t->spread), t->some);
        if (S > 1)
            bar->slope_sd = sqrt(
                (S * variance_of(&t->slope) + prior * slopes / with_slope / bar->uu) / (S + prior));
        if (Q > 1)
            bar->spread_sd =
                sqrt((Q * variance_of(&t->spread) + prior * spreads / with_spread / bar->n) /
                     (Q + prior));
    }
}

/* How many of a group's elements err as one: as its changes say and, as if seen in PRIOR runs more, its kind's. Where chance
 * had no say they say nothing. */
static double alike_in(const et_tally *t, double of_kind)
{
    const double prior = 16, runs = t->coherence.squares > 0 ? t->coherence.count : 0;
    return (runs * et_coherence_of(&t->coherence) + prior * of_kind) / (runs + prior);
}

/* A group scatters at least as its independent errors do: of those there are no more than different numbers. */
void et_widen(et_group_bar *bar, double alike, double different)
{
    if (bar->n == 0 || different == 0) return;
    double independent = fmin(bar->n / fmin(fmax(alike, 1), bar->n), different);
    bar->spread_sd = fmax(bar->spread_sd, sqrt(0.2 / independent));
    if (bar->uu > 0) bar->slope_sd = fmax(bar->slope_sd, sqrt(bar->n / independent / bar->uu));
}

void et_widen_kind(const et_cut *grid, et_group_kind kind, et_group_bar *bars,
                   const et_tally *tallies, const uint16_t *marks)
{
    const size_t first = grid->first[kind], end = grid->first[kind + 1];
    double all = 0, known = 0;
    for (size_t g = first; g < end; g++)
        if (tallies[g].coherence.squares > 0)
            all += et_coherence_of(&tallies[g].coherence), known++;
    for (size_t g = first; g < end; g++)
        et_widen(&bars[g], alike_in(&tallies[g], known > 0 ? all / known : 1),
                 et_count_different(grid, kind, g - first, marks));
}
