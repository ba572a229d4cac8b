/* reproduce.c: one verdict of the campaign once more, in full. See campaign.h. */
#include "tests/campaign/campaign.h"

#include <stdlib.h>
#include <string.h>

bool cp_own_case(et_case *c, const char *name)
{
    et_error error;
    for (size_t i = 0; cp_calibration_case(c, i, &error); i++)
        if (strcmp(c->name, name) == 0) return true;
    for (size_t i = 0; cp_larger_case(c, i, &error); i++)
        if (strcmp(c->name, name) == 0) return true;
    for (size_t i = 0; cp_habit_case(c, i, &error); i++)
        if (strcmp(c->name, name) == 0) return true;
    return cp_random_case(c, name);
}

/* A case of the suites, or one of the campaign's own. */
static bool find_case(et_case *c, const char *data, const char *name, et_error *error)
{
    static const char *const suites[] = {"core.json", "paper.json", "smoke.json", "real.json"};
    for (size_t i = 0; i < sizeof suites / sizeof *suites; i++) {
        size_t count, at = 0;
        et_case *suite = cp_suite(data, suites[i], &count, error);
        if (!suite) return false;
        while (at < count && strcmp(suite[at].name, name) != 0) at++;
        if (at < count) *c = suite[at];
        free(suite);
        if (at < count) return true;
    }
    return cp_own_case(c, name) ||
           (et_fail(error, ET_EINVAL,
                    "no case '%s'; core, paper, real, calibration, broken, random-N, habit-NAME-N", name),
            false);
}

static void print_group(const char *what, const et_group *g)
{
    printf("    %s %s %zu (%s): %zu elements, slope %.3g +- %.2g of %.3g, spread %.4g of %.4g%s\n",
           what, g->kind ? g->kind : "-", g->index, g->part ? g->part : "-", g->elements, g->slope,
           g->slope_sigma, g->slope_limit, g->spread, g->spread_limit, g->pass ? "" : "  FAILS");
}

static void print_verdict(const et_verdict *v)
{
    const et_routing_verdict *r = &v->routing;
    printf("%s\nrouting: %s, %zu decisions, %zu open, %zu differ, %zu illegal %s\n", v->line,
           et_outcome_name(r->outcome), r->decisions, r->open, r->differing, r->illegal, r->reason);
    for (size_t i = 0; i < v->tensor_count; i++) {
        const et_tensor_verdict *t = &v->tensors[i];
        printf("%-20s %-12s %9zu elements, worst %.3g of %.3g sigma, sample %.3g  %s\n", t->name,
               et_outcome_name(t->outcome), t->judged, t->largest_sigmas, t->limit_sigmas,
               t->effective_sample, t->reason);
        if (t->whole.elements > 0) print_group("whole", &t->whole);
        if (t->whole.elements > 0) print_group("worst", &t->worst_group);
    }
    for (size_t i = 0; i < v->explanation_count; i++)
        printf("explained by %s (%s): %s\n", v->explanations[i].name, v->explanations[i].scope,
               v->explanations[i].sentence);
    if (v->residual[0]) printf("%s\n", v->residual);
}

static bool run(const et_case *c, const et_profile *p, const cd_kernel *kernel,
                const cd_fault *fault, double amount, size_t seed, et_error *error)
{
    cp_subject s;
    cd_candidate candidate;
    et_verdict v;
    if (cp_subject_open(&s, c, error) != ET_OK) return false;
    bool well = cp_subject_profile(&s, p, error) == ET_OK;
    if (well &&
        (well = cd_run(&candidate, &s.golden, p, kernel, fault, amount, seed, error) == ET_OK)) {
        if (fault && !candidate.planted) printf("the fault changes nothing here\n");
        well = cp_judge(&v, &s, candidate.tensors, candidate.count, true, NULL, error) == ET_OK;
        if (well) print_verdict(&v);
        if (well) et_verdict_free(&v);
        cd_free(&candidate);
    }
    cp_subject_close(&s);
    return well;
}

bool cp_reproduce(const char *data, const char *what, et_error *error)
{
    char name[64], profile[32], kernel[32], fault[64] = "";
    size_t seed;
    double amount = 0;
    et_case c;
    if (sscanf(what, "%63s %zu %31s %31s %63s %lf", name, &seed, profile, kernel, fault, &amount) <
        4) {
        et_fail(error, ET_EINVAL, "--judge 'CASE SEED PROFILE KERNEL [FAULT [AMOUNT]]'");
        return false;
    }
    if (!find_case(&c, data, name, error)) return false;
    const et_profile *p = et_profile_find(profile);
    const cd_kernel *k = cd_kernel_find(kernel);
    const cd_fault *f = fault[0] ? cd_fault_find(fault) : NULL;
    if (!p || !k || (fault[0] && !f)) {
        et_fail(error, ET_EINVAL, "no such %s", !p ? "profile" : !k ? "kernel" : "fault");
        return false;
    }
    c = cp_reseeded(&c, f ? 0 : seed);
    return run(&c, p, k, f, amount, f ? 1 : seed, error);
}
