/* group_limits.c: what hides inside the error bars of single elements. Part 4 of the verdict, and of 5.
 *
 * Of each group of elements (ref/bars/group_sums.h) its slope S and its spread Q are held against what replicas have there
 * (ref/bars/bars.h):
 *
 *     S beyond 0 and the mean <= (T_g sd(S) + 2 systematic(S)) r + E max(|u|/sqrt V) / sum(u^2/V)
 *     Q^2                     <= (mean + T_g sd(Q) r + 2 systematic(Q))^2 + E^2/n
 *
 * A kernel that rounds at fewer places than a replica has a slope between none and the mean. E is the farthest error of
 * an element of this tensor in the replicas, or of this group in the candidate: where errors are rare, so that most replicas
 * have none in a group, a kernel may have one, as far as an element may be. Of many elements it is a small part. r is 1 where the replicas had the same elements under the
 * same V. Where rows are left out, or a mutant has wider bars, a slope's deviation goes with 1/sqrt(sum(u^2/V)), a
 * spread's with 1/sqrt(n): r = sqrt(sum(u^2/V) of the replicas / that of the candidate); sd(Q) likewise, by n.
 *
 * Elements with V = 0 have been judged exactly and take no part. Left to the elements' own test are groups of fewer than
 * LEAST elements, and those that are less than two deviations of their own noise: what all replicas flush to 0 has
 * V = u^2 and no scatter, and a kernel that keeps it in more bits may err by as much the other way.
 */
#include "ref/base/memory.h"
#include "ref/verdict/judge.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LEAST = 8 };

typedef struct tensor_groups {
    const et_judgement *j;
    const et_tensor_bars *bars;
    const et_tensor_out *got;
    et_tensor_verdict *out;
} tensor_groups;

/* How many deviations `found` is, where `free` of it are none. */
static double deviations_of(double found, double free, double sd)
{
    if (found <= free) return 0;
    return sd > 0 ? (found - free) / sd : isnan(found) || found > free ? (double)INFINITY : 0;
}

et_group et_measure_group(const et_bars *b, const et_tensor_bars *t, size_t number,
                          const et_group_sums *s)
{
    const et_group_bar *bar = &t->bars[number];
    bool whole = number == t->grid.first[ET_KIND_TENSOR];
    double T = et_group_limit(b, t) * (whole ? b->limits.whole : 1),
           own = fmin(sqrt(s->most_ee), b->limits.element);
    double E = fmax(t->farthest, own);
    et_group g = {.elements = (size_t)s->n, .slope = et_slope_of(s), .spread = et_spread_of(s)};
    g.allowed = T;
    g.pass = true;
    if (s->n < LEAST || s->uu < 4 * s->n) return g;
    double one_error = E * E / s->n, sd = bar->spread_sd * sqrt(bar->n / s->n);
    double free = bar->spread + 2 * bar->spread_systematic;
    g.spread_limit = sqrt((free + T * sd) * (free + T * sd) + one_error);
    g.deviations = deviations_of(sqrt(fmax(0, g.spread * g.spread - one_error)), free, sd);
    if (bar->slope_sd > 0) {
        double r = sqrt(bar->uu / s->uu), outside = fabs(et_beyond(g.slope, bar->slope));
        free = 2 * bar->slope_systematic * r + E * sqrt(s->most_uu) / s->uu;
        g.slope_sigma = bar->slope_sd * r;
        /* measured from 0, as it is shown */
        g.slope_limit = T * g.slope_sigma + free + fabs(g.slope) - outside;
        g.deviations = fmax(g.deviations, deviations_of(outside, free, g.slope_sigma));
    }
    g.pass = g.deviations <= T;
    return g;
}

/* Where the group stands. */
static et_group name_group(const et_tensor_bars *t, size_t number, bool alone, et_group g)
{
    const et_cut *cut = &t->grid;
    g.alone = alone;
    g.part = "reference";
    for (int kind = 0; kind < ET_KINDS; kind++) {
        if (number >= cut->first[kind + 1]) continue;
        size_t index = number - cut->first[kind];
        et_corner at = et_group_corner(cut, (et_group_kind)kind, index);
        g.kind = et_kind_name((et_group_kind)kind);
        g.index = kind == ET_KIND_EXPERT ? index : kind == ET_KIND_COLUMN ? at.column : at.row;
        g.column = at.column;
        return g;
    }
    size_t section = number - cut->first[ET_KINDS], i = 0;
    while (section >= t->summands[i].sections) section -= t->summands[i++].sections;
    g.part = t->summands[i].name;
    g.kind = t->summands[i].sections > 1 ? "expert" : "part";
    g.index = section;
    return g;
}

void et_group_print(const et_group *g, char *text, size_t room)
{
    if (g->kind == NULL || strcmp(g->kind, "tensor") == 0)
        snprintf(text, room, "the whole tensor");
    else if (strcmp(g->kind, "part") == 0)
        snprintf(text, room, "its %s part", g->part);
    else if (strcmp(g->kind, "block") == 0)
        snprintf(text, room, "rows %zu and following", g->index);
    else if (strcmp(g->kind, "tile") == 0)
        snprintf(text, room, "the tile at row %zu, column %zu", g->index, g->column);
    else
        snprintf(text, room, "%s %zu%s", g->kind, g->index,
                 strcmp(g->part, "reference") == 0 ? "" : "'s part");
}

static void report(const et_group *g, et_tensor_verdict *out)
{
    char what[64];
    et_group_print(g, what, sizeof what);
    out->outcome = ET_MISMATCH;
    if (g->slope_limit > 0 && !(fabs(g->slope) <= g->slope_limit))
        snprintf(out->reason, sizeof out->reason,
                 "%s is scaled by %.6g: slope %.2e +- %.1e, %.1e allowed (%zu elements)", what,
                 1 + g->slope, g->slope, g->slope_sigma, g->slope_limit, g->elements);
    else
        snprintf(out->reason, sizeof out->reason,
                 "errors of %s are too large: root mean square %.3g deviations, %.3g allowed (%zu "
                 "elements)",
                 what, g->spread, g->spread_limit, g->elements);
}

static void judge(tensor_groups *q, size_t number, const et_group_sums *sums)
{
    et_group g = et_measure_group(q->j->bars, q->bars, number, sums);
    bool whole = number == q->bars->grid.first[ET_KIND_TENSOR], tested = g.spread_limit > 0;
    if (!whole &&
        (!tested || (q->j->visit == NULL && g.deviations <= q->out->worst_group.deviations)))
        return;
    g = name_group(q->bars, number, q->j->bars->of_stages, g);
    if (whole) q->out->whole = q->out->worst_group = g;
    if (!tested) return;
    if (q->j->visit) q->j->visit(q->j->user, q->got->name, &g);
    if (!whole && g.deviations <= q->out->worst_group.deviations) return;
    q->out->worst_group = g;
    if (!g.pass) report(&g, q->out);
}

et_status et_judge_groups(const et_judgement *j, const et_tensor_out *got, const et_errors *e,
                          et_tensor_verdict *out, et_error *error)
{
    const et_tensor_bars *t = &j->bars->tensor[et_tensor_find(got->name)];
    tensor_groups q = {.j = j, .bars = t, .got = got, .out = out};
    void *room;
    if (t->groups == 0) return ET_OK; /* nothing of it errs in any replica */
    et_status status = et_allocate(&room, t->groups, sizeof(et_group_sums), "groups", error);
    if (status != ET_OK) return status;
    const et_group_sums *sums = room;
    status = et_sum_tensor(t, e, room, error);
    for (size_t g = 0; g < t->groups && status == ET_OK; g++) judge(&q, g, &sums[g]);
    free(room);
    return status;
}
