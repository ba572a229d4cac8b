/* groups.c: what the limits of groups have to cover, measured. See campaign.h, ref/verdict/calibration.c.
 *
 * The limits of a group of n elements are t c sigma + b for its slope and 1.2 + t c / sqrt(2n) for its
 * spread. Of groups of one kind, of one tensor, of one case under one profile, with slopes s_g and squared
 * spreads q_g, honest kernels show
 *
 *     mean slope   m = sum(s/sigma^2) / sum(1/sigma^2): what b has to cover
 *     c of slopes  rms of (s - m) / sigma
 *     c of spreads q has the deviation sqrt(2/n) if errors are independent and normal, sqrt(0.8/n) if
 *                  uniform: rms of (q - Q) sqrt(n/2), Q = sum(n q) / sum(n)
 *     farthest     of all cases the group that is farthest out, over the normal quantile that the farthest
 *                  of so many reaches with even odds: c again, where groups differ among themselves
 */
#include "ref/verdict/calibration.h"
#include "ref/verdict/judge.h"
#include "tests/campaign/campaign.h"

#include <math.h>
#include <string.h>

const char *const cp_kinds[CP_KINDS] = {"tensor", "expert", "row", "column", "tokens", "part"};

size_t cp_kind_row(const char *name)
{
    size_t i = 0;
    while (i + 1 < CP_KINDS && strcmp(cp_kinds[i], name) != 0) i++;
    return i;
}

static void note_use(cp_sums *s, const et_group *g, double b)
{
    s->b = fmax(s->b, b);
    double slope = g->slope_limit > 0 ? fabs(g->slope) / g->slope_limit : 0;
    double spread = (g->spread - 1) / (g->spread_limit - 1);
    if (g->slope_sigma > 0) s->most = fmax(s->most, (fabs(g->slope) - b) / g->slope_sigma);
    s->slope_use = fmax(s->slope_use, slope);
    s->spread_use = fmax(s->spread_use, spread);
}

static void turn_to(cp_groups *all, const char *tensor)
{
    const cp_subject *s = all->of_subject;
    all->last = tensor;
    all->row = cp_tensor_row(tensor);
    double b = et_systematic_slope(s->profile);
    all->b = b + et_noise_slope(&s->served.systematic, tensor, false);
    all->b_whole = b + et_noise_slope(&s->served.systematic, tensor, true);
}

/* A group that hardly stands out of its noise has no slope to speak of. */
static const double below_noise = 0.05;

void cp_groups_visit(void *groups, const char *tensor, const et_group *g)
{
    cp_groups *all = groups;
    if (tensor != all->last) turn_to(all, tensor);
    cp_sums *s = &all->of[all->row][cp_kind_row(g->kind)];
    double n = (double)g->elements, q = g->spread * g->spread;
    bool whole = strcmp(g->kind, "tensor") == 0 || strcmp(g->kind, "part") == 0;
    note_use(s, g, whole ? all->b_whole : all->b);
    if (all->extremes_only || g->slope_sigma > below_noise) return;
    s->n += n;
    s->nq += n * q;
    s->nqq += n * q * q;
    s->count++;
    if (!(g->slope_sigma > 0)) return;
    double w = 1 / (g->slope_sigma * g->slope_sigma);
    s->w += w;
    s->ws += w * g->slope;
    s->wss += w * g->slope * g->slope;
}

void cp_groups_print(const cp_groups *g, const char *profile, FILE *lines)
{
    for (size_t i = 0; et_tensor_doc_at(i) != NULL; i++)
        for (size_t k = 0; k < CP_KINDS; k++) {
            const cp_sums *s = &g->of[i][k];
            if (s->count == 0) continue;
            fprintf(
                lines,
                "group\t%s\t%s\t%s\t%.0f\t%.8g\t%.8g\t%.8g\t%.0f\t%.8g\t%.8g\t%.4g\t%.4g\t%.4g\t"
                "%.4g\n",
                profile, et_tensor_doc_at(i)->name, cp_kinds[k], s->count, s->w, s->ws, s->wss,
                s->n, s->nq, s->nqq, s->most, s->slope_use, s->spread_use, s->b);
        }
}

cp_sums cp_groups_read(const cp_reader *r)
{
    return (cp_sums){.count = cp_number(r, 4),
                     .w = cp_number(r, 5),
                     .ws = cp_number(r, 6),
                     .wss = cp_number(r, 7),
                     .n = cp_number(r, 8),
                     .nq = cp_number(r, 9),
                     .nqq = cp_number(r, 10),
                     .most = cp_number(r, 11),
                     .slope_use = cp_number(r, 12),
                     .spread_use = cp_number(r, 13),
                     .b = cp_number(r, 14)};
}

void cp_sums_add(cp_sums *to, const cp_sums *more)
{
    to->count += more->count;
    to->w += more->w;
    to->ws += more->ws;
    to->wss += more->wss;
    to->n += more->n;
    to->nq += more->nq;
    to->nqq += more->nqq;
    to->b = fmax(to->b, more->b);
    to->most = fmax(to->most, more->most);
    to->slope_use = fmax(to->slope_use, more->slope_use);
    to->spread_use = fmax(to->spread_use, more->spread_use);
}

cp_measured cp_measure(const cp_sums *s)
{
    cp_measured m = {.level = s->n > 0 ? sqrt(s->nq / s->n) : 0};
    if (s->count < 2) return m;
    double left = s->count - 1;
    if (s->n > 0) m.spread = sqrt(fmax(0, s->nqq - s->nq * s->nq / s->n) / (2 * left));
    if (!(s->w > 0)) return m;
    m.mean = s->ws / s->w;
    m.slope = sqrt(fmax(0, s->wss - s->ws * s->ws / s->w) / left);
    m.mean_sigma = m.slope / sqrt(s->w);
    return m;
}
