/* calibration.c: are errors as large as predicted? See campaign.h.
 *
 * At a size at which every large tensor has an effective sample (sum V)^2 / sum V^2 of ten thousand and more,
 * in six situations and under three rules, for the profiles that people train with: the root mean
 * square of error/sigma of every tensor, pooled over seeds. The kernel that rounds exactly where the
 * profile says must come out between 0.9 and 1.1; those that round less, not above 1.1.
 */
#include "tests/campaign/campaign.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct situation {
    const char *name, *precision, *input;
} situation;

/* Copies of a token have a dy of their own each. Inputs in f32 are rounded when they enter a product. */
static const situation situations[] = {
    {"normal", "bf16", "'source':'normal','seed':1"},
    {"text", "bf16", "'source':'text','seed':1"},
    {"skewed", "bf16", "'source':'skewed','seed':1,'hot':3"},
    {"ties", "bf16", "'source':'ties','seed':1,'copies':4"},
    {"mean-2", "bf16", "'source':'normal','seed':1,'mean':2"},
    {"normal-f32", "f32", "'source':'normal','seed':1"},
};

static const struct {
    const char *name, *fields;
} rules[] = {
    {"et", "'rule':'et','ema_decay':0.9,'ema_updates':10"},
    {"tc", "'rule':'tc','top_k':2"},
    {"ec", "'rule':'ec'"},
};

enum {
    SITUATIONS = sizeof situations / sizeof *situations,
    RULES = sizeof rules / sizeof *rules,
    OTHERS = 2 /* seeds for the kernels that round less */
};

static const char *const profiles[] = {"bf16", "f16"};

/* Rules change fastest. */
bool cp_calibration_case(et_case *c, size_t index, et_error *error)
{
    char json[1024];
    if (index >= SITUATIONS * RULES) return false;
    const situation *s = &situations[index / RULES];
    snprintf(json, sizeof json,
             "{'name':'1k-%s-%s','tokens':1024,'d_model':192,'d_expert':256,'experts':8,"
             "'precision':'%s',%s,'input':{%s}}",
             s->name, rules[index % RULES].name, s->precision, rules[index % RULES].fields,
             s->input);
    return cp_case(c, json, error) == ET_OK;
}

/* ---- what is summed up ---- */

/* Of one tensor: elements with an error to expect, sum of (error/sigma)^2, effective sample. */
typedef struct pool {
    double runs, elements, squares, sample, most;
} pool;

typedef struct study {
    pool of[CP_KERNELS][ET_MAX_STEP_TENSORS];
    cp_tally tally[CP_KERNELS];
    cp_groups groups;
} study;

static void add(pool *all, const et_verdict *v)
{
    for (size_t i = 0; i < v->tensor_count; i++) {
        const et_tensor_verdict *t = &v->tensors[i];
        pool *p = &all[cp_tensor_row(t->name)];
        if (t->whole.elements == 0) continue;
        p->runs++;
        p->elements += (double)t->whole.elements;
        p->squares += (double)t->whole.elements * t->whole.spread * t->whole.spread;
        p->sample += t->effective_sample;
        p->most = fmax(p->most, t->largest_sigmas);
    }
}

static void print(const study *all, const char *profile, FILE *lines)
{
    for (size_t k = 0; cd_kernel_at(k) != NULL; k++) {
        cp_tally_print(&all->tally[k], profile, cd_kernel_at(k)->name, lines);
        for (size_t i = 0; et_tensor_doc_at(i) != NULL; i++) {
            const pool *p = &all->of[k][i];
            if (p->runs == 0) continue;
            fprintf(lines, "tensor\t%s\t%s\t%s\t%.0f\t%.0f\t%.8g\t%.6g\t%.4g\n", profile,
                    cd_kernel_at(k)->name, et_tensor_doc_at(i)->name, p->runs, p->elements,
                    p->squares, p->sample, p->most);
        }
    }
    cp_groups_print(&all->groups, profile, lines);
}

/* ---- units ---- */

static bool try_kernels(study *all, const cp_subject *s, size_t seed, FILE *lines, et_error *error)
{
    const cd_kernel *kernel;
    for (size_t k = 0; (kernel = cd_kernel_at(k)) != NULL; k++) {
        et_verdict v;
        if (k > 0 && seed >= OTHERS) break;
        if (!cp_try_honest(s, kernel, seed, &all->groups, &all->tally[k], lines, &v, error))
            return false;
        add(all->of[k], &v);
        et_verdict_free(&v);
    }
    return true;
}

static bool work(const cp_unit *unit, FILE *lines, et_error *error)
{
    study *all = calloc(1, sizeof *all);
    bool well = all != NULL;
    for (size_t seed = 0; well && seed < unit->seeds; seed++) {
        cp_subject s;
        et_case c = cp_reseeded(&unit->c, seed);
        well = cp_subject_open(&s, &c, error) == ET_OK;
        if (!well) break;
        well = cp_subject_profile(&s, et_profile_at(unit->index), error) == ET_OK &&
               try_kernels(all, &s, seed, lines, error);
        cp_subject_close(&s);
    }
    if (well) print(all, et_profile_at(unit->index)->name, lines);
    free(all);
    return well;
}

static bool plan(cp_list *list, const cp_options *o, et_error *error)
{
    enum { PROFILES = sizeof profiles / sizeof *profiles };
    for (size_t i = 0; i < SITUATIONS * RULES * PROFILES; i++) {
        cp_unit *unit = cp_list_add(list, &cp_calibration);
        const char *profile = profiles[i % PROFILES];
        if (!unit || !cp_calibration_case(&unit->c, i / PROFILES, error)) return false;
        unit->index = cp_profile_row(profile);
        unit->seeds = o->seeds ? o->seeds : cp_calibration.seeds;
        unit->cost = (double)unit->seeds + 20;
        snprintf(unit->key, sizeof unit->key, "calibration %s %s %zu", unit->c.name, profile,
                 unit->seeds);
    }
    return true;
}

const cp_part cp_calibration = {
    "calibration", "root mean square of error/sigma", 10, plan, work, cp_report_calibration};
