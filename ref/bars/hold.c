/* hold.c: a tensor held against its bars. See hold.h, and bars.h for the limits.
 *
 *     S, beyond 0 and the mean <= T_g sd(S) + 2 |S_nearest - mean| + E max(|u|/sqrt V) / sum(u^2/V)
 *     Q^2                      <= (mean + T_g sd(Q) + 2 |Q_nearest - mean|)^2 + E^2/n
 *
 * A kernel that rounds at fewer places than a replica has a slope between none and the mean. E is the
 * farthest error of an element of this tensor in the replicas: where errors are rare, so that most replicas
 * have none in a group, a kernel may have one. Of many elements it is a small part.
 */
#include "ref/bars/hold.h"
#include "ref/base/memory.h"

#include <math.h>
#include <stdlib.h>

enum { LEAST = 8 }; /* smaller groups are left to the elements' own test */

/* How far S is from what lies between no slope and the replicas' mean. */
static double beyond(double S, double mean)
{
    double low = fmin(0, mean), high = fmax(0, mean);
    return S < low ? S - low : S > high ? S - high : S - S;
}

static et_held measure(const et_tensor_bars *t, const et_group_bar *bar, const et_group_sums *s,
                       const char *kind)
{
    double T = et_usual_limits.group, E = t->farthest;
    double spread = bar->spread + T * bar->spread_sd + 2 * bar->spread_systematic;
    et_held g = {.kind = kind, .elements = (size_t)s->n, .spread = et_spread_of(s)};
    g.spread_allowed = sqrt(spread * spread + E * E / s->n);
    if (!(bar->slope_sd > 0 && s->uu > 0)) return g;
    g.slope = beyond(et_slope_of(s), bar->slope);
    g.slope_allowed = T * bar->slope_sd + 2 * bar->slope_systematic + E * sqrt(s->most_uu) / s->uu;
    return g;
}

/* The largest |e| / sqrt(V); where V = 0 only e = 0 is none. */
static double find_farthest(const et_errors *e, size_t count)
{
    double most = 0;
    for (size_t i = 0; i < count; i++) {
        double got =
            e->floats ? (double)((const float *)e->got)[i] : (double)((const et_real *)e->got)[i];
        double want = (double)e->want[i], V = (double)e->variance[i];
        double error = got == want ? 0 : got - want;
        if (error != 0) most = fmax(most, V > 0 ? fabs(error) / sqrt(V) : (double)INFINITY);
    }
    return most;
}

et_status et_hold(const et_replica_bars *b, size_t row, const et_errors *e, double *farthest,
                  et_held_visit *visit, void *user, et_error *error)
{
    const et_tensor_bars *t = &b->tensor[row];
    void *room;
    *farthest = find_farthest(e, t->grid.rows * t->grid.columns);
    et_status status = et_allocate(&room, t->groups, sizeof(et_group_sums), "groups", error);
    if (status != ET_OK) return status;
    const et_group_sums *sums = room;
    status = et_sum_tensor(t, e, room, error);
    for (size_t g = 0, kind = 0; g < t->groups && status == ET_OK; g++) {
        while (kind < ET_KINDS && g >= t->grid.first[kind + 1]) kind++;
        if (sums[g].n < LEAST) continue;
        et_held one = measure(t, &t->bars[g], &sums[g],
                              kind < ET_KINDS ? et_kind_name((et_group_kind)kind) : "part");
        visit(user, &one);
    }
    free(room);
    return status;
}
