/* replicas.c: honest kernels held against bars from replicas, beside the limits in force. See campaign.h, ref/bars.
 *
 * On the layers of `random`, three kernels under every profile. For each kind of group: the largest share of an
 * allowance that one uses, by replicas (ref/bars/hold.h) and by the verdict in force.
 */
#include "ref/bars/hold.h"
#include "ref/oracle/tensors.h"
#include "tests/campaign/campaign.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { HELD_KINDS = 8 };
static const char *const kinds[HELD_KINDS] = {"element", "tensor", "expert", "row",
                                              "column",  "block",  "tile",   "part"};

/* Of one profile, by kind. */
typedef struct shares {
    double groups[HELD_KINDS], most[HELD_KINDS], in_force;
} shares;

static size_t kind_row(const char *name)
{
    size_t i = 0;
    while (i + 1 < HELD_KINDS && strcmp(kinds[i], name) != 0) i++;
    return i;
}

static void take(shares *s, size_t kind, double share)
{
    s->groups[kind]++;
    s->most[kind] = fmax(s->most[kind], share);
}

static void note_held(void *user, const et_held *g)
{
    double slope = g->slope_allowed > 0 ? fabs(g->slope) / g->slope_allowed : 0;
    double spread = g->spread_allowed > 0 ? g->spread / g->spread_allowed : 0;
    take(user, kind_row(g->kind), fmax(slope, spread));
}

static void note_in_force(void *user, const char *tensor, const et_group *g)
{
    shares *s = user;
    double slope = g->slope_limit > 0 ? fabs(g->slope) / g->slope_limit : 0;
    (void)tensor;
    s->in_force = fmax(s->in_force, fmax(slope, g->spread / g->spread_limit));
}

static et_status hold_all(const cp_subject *s, const et_replica_bars *bars,
                          const cd_candidate *candidate, shares *all, et_error *error)
{
    et_tensor_out want[ET_MAX_STEP_TENSORS], V[ET_MAX_STEP_TENSORS];
    size_t have = et_step_tensors(&s->golden, false, want);
    size_t barred = et_step_tensors(&bars->variance, false, V);
    et_status status = ET_OK;
    for (size_t i = 0; i < candidate->count && status == ET_OK; i++) {
        const et_tensor_out *got = &candidate->tensors[i];
        const et_tensor_out *right = et_tensor_named(want, have, got->name);
        const et_tensor_out *variance = et_tensor_named(V, barred, got->name);
        size_t row = et_tensor_row(got->name);
        double element;
        if (!right || !variance || !et_tensor_is_real(got) || bars->tensor[row].groups == 0)
            continue;
        et_errors e = {.got = got->values,
                       .floats = got->source == ET_FROM_F32,
                       .want = right->values,
                       .variance = variance->values};
        status = et_hold(bars, row, &e, &element, note_held, all, error);
        take(all, 0, element / et_usual_limits.element);
    }
    return status;
}

/* A kernel that chose as the golden did; others are judged against a reference of their own. */
static bool same_routing(const cp_subject *s, const cd_candidate *candidate)
{
    const et_tensor_out *mask = cd_tensor(candidate, "route.mask");
    size_t places = s->golden.c.tokens * s->golden.c.experts;
    return mask && memcmp(mask->values, s->golden.route.mask, places) == 0;
}

static bool try_kernel(const cp_subject *s, const et_replica_bars *bars, const cd_kernel *kernel,
                       shares *all, et_error *error)
{
    cd_candidate candidate;
    et_verdict verdict;
    const et_verify_options o = {.profile = s->profile};
    et_status status = cd_run(&candidate, &s->golden, s->profile, kernel, NULL, 0, 0, error);
    if (status == ET_EINVAL) return true; /* it cannot run this */
    if (status != ET_OK) return false;
    if (same_routing(s, &candidate)) {
        status = hold_all(s, bars, &candidate, all, error);
        if (status == ET_OK)
            status = et_verify_with(&verdict, &s->golden, &s->served, candidate.tensors,
                                    candidate.count, &o, note_in_force, all, error);
        if (status == ET_OK) et_verdict_free(&verdict);
    }
    cd_free(&candidate);
    return status == ET_OK;
}

static bool try_profile(const cp_unit *unit, cp_subject *s, size_t p, FILE *lines, et_error *error)
{
    et_replica_bars bars;
    shares all = {.in_force = 0};
    size_t kernels = 0;
    while (cd_kernel_at(kernels)) kernels++;
    if (cp_subject_profile(s, et_profile_at(p), error) != ET_OK ||
        et_bars_make(&bars, &s->golden, s->profile, 0, NULL, NULL, error) != ET_OK)
        return false;
    bool well = true;
    for (size_t k = 0; well && k < 3;
         k++) /* there are some. NOLINTNEXTLINE(clang-analyzer-core.DivideZero) */
        well = try_kernel(s, &bars, cd_kernel_at((unit->index + 5 * p + 7 * k) % kernels), &all,
                          error);
    et_bars_free(&bars);
    for (size_t k = 0; k < HELD_KINDS; k++)
        fprintf(lines, "held\t%s\t%s\t%.0f\t%.4g\t%.4g\n", s->profile->name, kinds[k],
                all.groups[k], all.most[k], all.in_force);
    return well;
}

static bool work(const cp_unit *unit, FILE *lines, et_error *error)
{
    cp_subject s;
    if (cp_subject_open(&s, &unit->c, error) != ET_OK) return false;
    bool well = true;
    for (size_t p = 0; well && p < CP_PROFILES; p++)
        well = s.golden.c.layer != ET_MOE || try_profile(unit, &s, p, lines, error);
    cp_subject_close(&s);
    return well;
}

static bool plan(cp_list *list, const cp_options *o, et_error *error)
{
    size_t numbers = 100 * (o->seeds ? o->seeds : cp_replicas.seeds);
    for (size_t i = 0; i < numbers; i++) {
        et_case c;
        char name[32];
        snprintf(name, sizeof name, "random-%zu", i);
        if (cp_random_case(&c, name) && !cp_list_add_case(list, &cp_replicas, &c, i, error))
            return false;
    }
    return true;
}

/* What was measured; nothing is bound by it yet. */
static bool report(const cp_report *r)
{
    FILE *file = cp_csv(r, "replicas.csv",
                        "the largest share of an allowance that honest kernels use, case by case",
                        "profile,case,kind,groups,by_replicas,in_force");
    double groups[CP_PROFILES] = {0}, past[CP_PROFILES] = {0};
    for (cp_reader reader = cp_read(r); cp_next(&reader, "held");) {
        size_t p = cp_profile_row(reader.fields[1]);
        if (file)
            fprintf(file, "%s,%s,%s,%s,%s,%s\n", reader.fields[1], reader.unit->c.name,
                    reader.fields[2], reader.fields[3], reader.fields[4], reader.fields[5]);
        groups[p] += cp_number(&reader, 3);
        past[p] += cp_number(&reader, 4) > 1;
    }
    fprintf(r->to, "\nprofile        groups   kinds of a case past an allowance\n");
    for (size_t p = 0; p < CP_PROFILES; p++)
        fprintf(r->to, "%-9s %11.0f   %.0f\n", et_profile_at(p)->name, groups[p], past[p]);
    return file && fclose(file) == 0;
}

const cp_part cp_replicas = {
    "replicas", "bars from replicas beside the limits in force", 1, plan, work, report};
