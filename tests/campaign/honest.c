/* honest.c: kernels without a fault. None may be rejected. See campaign.h.
 *
 * honest: every case of the core suite and the feed-forward ones of a trained model (real.json), every kernel, every
 * profile, many seeds. A seed shifts the random numbers of the case, or the place in its text, and leaves its
 * situation as it is: ties stay ties, an empty expert may get tokens.
 * paper: the layers of the paper's d12 model under every kernel, and one of d20.
 */
#include "ref/step/case_kinds.h"
#include "tests/campaign/campaign.h"

#include <stdlib.h>
#include <string.h>

/* ---- one run ---- */

static void note(const cp_subject *s, const cd_kernel *kernel, size_t seed, const et_verdict *v,
                 FILE *lines)
{
    char reason[sizeof v->line];
    if (v->outcome == ET_PASS) return;
    if (v->outcome == ET_MISMATCH)
        snprintf(reason, sizeof reason, "%s", v->line);
    else
        cp_blur(v->line, reason, sizeof reason);
    fprintf(lines, "%s\t%s\t%s\t%zu\t%s\n", v->outcome == ET_MISMATCH ? "rejected" : "doubt",
            s->profile->name, kernel->name, seed, reason);
}

static void count(const cp_subject *s, const cd_candidate *candidate, const et_verdict *v,
                  cp_tally *tally)
{
    cp_peers peers = cp_ask_peers(s, candidate->tensors, candidate->count);
    tally->runs++;
    tally->passed += v->outcome == ET_PASS;
    tally->doubtful += v->outcome == ET_INCONCLUSIVE;
    tally->rejected += v->outcome == ET_MISMATCH;
    tally->torch += peers.torch;
    tally->ggml += peers.ggml;
    if (v->routing.outcome == ET_MISMATCH || v->routing.differing == 0) return;
    tally->flipped++;
    tally->flips += (double)v->routing.differing;
}

bool cp_try_honest(const cp_subject *s, const cd_kernel *kernel, size_t seed, cp_groups *groups,
                   cp_tally *tally, FILE *lines, et_verdict *verdict, et_error *error)
{
    cd_candidate candidate;
    et_verdict own;
    et_status status = cd_run(&candidate, &s->golden, s->profile, kernel, NULL, 0, seed, error);
    if (status == ET_EINVAL) {
        tally->skipped++;
        fprintf(lines, "skipped\t%s\t%s\t%zu\t%s\n", s->profile->name, kernel->name, seed,
                error->text);
        if (verdict) *verdict = (et_verdict){0};
        return true;
    }
    if (status != ET_OK) return false;
    status = cp_judge(&own, s, candidate.tensors, candidate.count, false, groups, error);
    if (status == ET_OK) {
        note(s, kernel, seed, &own, lines);
        count(s, &candidate, &own, tally);
    }
    cd_free(&candidate);
    if (status == ET_OK && verdict)
        *verdict = own;
    else if (status == ET_OK)
        et_verdict_free(&own);
    return status == ET_OK;
}

void cp_tally_print(const cp_tally *t, const char *profile, const char *kernel, FILE *lines)
{
    if (t->runs + t->skipped == 0) return;
    fprintf(lines, "runs\t%s\t%s\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\n", profile,
            kernel, t->runs, t->passed, t->doubtful, t->rejected, t->skipped, t->flips, t->flipped,
            t->torch, t->ggml);
}

cp_tally cp_tally_read(const cp_reader *r)
{
    return (cp_tally){.runs = cp_number(r, 3),
                      .passed = cp_number(r, 4),
                      .doubtful = cp_number(r, 5),
                      .rejected = cp_number(r, 6),
                      .skipped = cp_number(r, 7),
                      .flips = cp_number(r, 8),
                      .flipped = cp_number(r, 9),
                      .torch = cp_number(r, 10),
                      .ggml = cp_number(r, 11)};
}

void cp_tally_add(cp_tally *to, const cp_tally *more)
{
    to->runs += more->runs;
    to->passed += more->passed;
    to->doubtful += more->doubtful;
    to->rejected += more->rejected;
    to->skipped += more->skipped;
    to->flips += more->flips;
    to->flipped += more->flipped;
    to->torch += more->torch;
    to->ggml += more->ggml;
}

/* ---- units ---- */

bool cp_list_add_case(cp_list *list, const cp_part *part, const et_case *c, size_t index,
                      et_error *error)
{
    cp_unit *unit = cp_list_add(list, part);
    if (unit == NULL) {
        et_fail(error, ET_ENOMEM, "no memory for the list of cases");
        return false;
    }
    unit->c = *c;
    unit->index = index;
    unit->cost = 0.2;
    snprintf(unit->key, sizeof unit->key, "%s %s", part->name, c->name);
    return true;
}

bool cp_try_some(const cp_unit *unit, FILE *lines, et_error *error)
{
    cp_subject s;
    size_t kernels = 0;
    while (cd_kernel_at(kernels)) kernels++;
    if (cp_subject_open(&s, &unit->c, error) != ET_OK) return false;
    cp_groups *groups = calloc(1, sizeof *groups);
    bool well = groups != NULL;
    for (size_t p = 0; well && p < CP_PROFILES; p++) {
        memset(groups, 0, sizeof *groups);
        well = cp_subject_profile(&s, et_profile_at(p), error) == ET_OK;
        for (size_t k = 0; well && k < 3; k++) {
            /* there are some. NOLINTNEXTLINE(clang-analyzer-core.DivideZero) */
            const cd_kernel *kernel = cd_kernel_at((unit->index + 5 * p + 7 * k) % kernels);
            cp_tally tally = {0};
            well = cp_try_honest(&s, kernel, 0, groups, &tally, lines, NULL, error);
            cp_tally_print(&tally, s.profile->name, kernel->name, lines);
        }
        cp_groups_print(groups, s.profile->name, lines);
    }
    free(groups);
    cp_subject_close(&s);
    return well;
}

/* What a unit gathers. */
typedef struct study {
    cp_tally of[CP_PROFILES][CP_KERNELS];
    cp_groups groups[CP_PROFILES];
} study;

/* One case under one profile: `kernels` of them, or NULL for all. */
static bool try_all(study *all, size_t p, cp_subject *s, const char *only, size_t seed, FILE *lines,
                    et_error *error)
{
    const cd_kernel *kernel;
    cp_groups *groups = &all->groups[p];
    if (cp_subject_profile(s, et_profile_at(p), error) != ET_OK) return false;
    for (size_t k = 0; (kernel = cd_kernel_at(k)) != NULL; k++) {
        if (only && strcmp(kernel->name, only) != 0) continue;
        if (!cp_try_honest(s, kernel, seed, groups, &all->of[p][k], lines, NULL, error))
            return false;
    }
    return true;
}

static void print(const study *all, FILE *lines)
{
    for (size_t p = 0; p < CP_PROFILES; p++) {
        for (size_t k = 0; cd_kernel_at(k) != NULL; k++)
            cp_tally_print(&all->of[p][k], et_profile_at(p)->name, cd_kernel_at(k)->name, lines);
        cp_groups_print(&all->groups[p], et_profile_at(p)->name, lines);
    }
}

static bool work_honest(const cp_unit *unit, FILE *lines, et_error *error)
{
    study *all = calloc(1, sizeof *all);
    bool well = all != NULL;
    for (size_t seed = 0; well && seed < unit->seeds; seed++) {
        cp_subject s;
        et_case c = cp_reseeded(&unit->c, seed);
        well = cp_subject_open(&s, &c, error) == ET_OK;
        if (!well) break;
        for (size_t p = 0; well && p < CP_PROFILES; p++)
            well = try_all(all, p, &s, NULL, seed, lines, error);
        cp_subject_close(&s);
    }
    if (well) print(all, lines);
    free(all);
    return well;
}

static bool work_paper(const cp_unit *unit, FILE *lines, et_error *error)
{
    study *all = calloc(1, sizeof *all);
    cp_subject s;
    bool few = strcmp(unit->c.name, "d12-et") != 0;
    bool well = all && cp_subject_open(&s, &unit->c, error) == ET_OK;
    if (well) {
        well = try_all(all, unit->index, &s, few ? "blocked" : NULL, 0, lines, error);
        cp_subject_close(&s);
    }
    if (well) print(all, lines);
    free(all);
    return well;
}

/* Seconds on the machine on which it was measured. */
static double honest_cost(const et_case *c)
{
    return 0.3 + 1.5e-4 * (double)c->tokens * (double)(c->experts + 1);
}

static bool plan_suite(cp_list *list, const cp_options *o, const char *name, et_error *error)
{
    size_t cases;
    et_case *suite = cp_suite(o->data, name, &cases, error);
    bool well = suite != NULL;
    for (size_t i = 0; well && i < cases; i++) {
        if (!is_ffn(&suite[i])) continue;
        cp_unit *unit = cp_list_add(list, &cp_honest);
        if (!(well = unit != NULL)) break;
        unit->c = suite[i];
        unit->seeds = o->seeds ? o->seeds : cp_honest.seeds;
        unit->cost = (double)unit->seeds * honest_cost(&unit->c);
        snprintf(unit->key, sizeof unit->key, "honest %s %zu", unit->c.name, unit->seeds);
    }
    free(suite);
    return well;
}

static bool plan_honest(cp_list *list, const cp_options *o, et_error *error)
{
    return plan_suite(list, o, "core.json", error) && plan_suite(list, o, "real.json", error);
}

/* All kernels at d12-et; one of them at the other layers of d12 and at d20-et. f64 is left out: double is what
 * the reference computes with. */
static bool plan_paper(cp_list *list, const cp_options *o, et_error *error)
{
    size_t cases;
    et_case *suite = cp_suite(o->data, "paper.json", &cases, error);
    bool well = suite != NULL;
    for (size_t i = 0; well && i < cases * CP_PROFILES; i++) {
        const et_case *c = &suite[i / CP_PROFILES];
        const et_profile *p = et_profile_at(i % CP_PROFILES);
        bool large = c->d_model > 1000;
        if (strcmp(p->name, "f64") == 0 || (large && strcmp(c->name, "d20-et") != 0)) continue;
        cp_unit *unit = cp_list_add(list, &cp_paper);
        if (!(well = unit != NULL)) break;
        unit->c = *c;
        unit->index = i % CP_PROFILES;
        unit->cost = large ? 60 : strcmp(c->name, "d12-et") == 0 ? 130 : 20;
        snprintf(unit->key, sizeof unit->key, "paper %s %s", c->name, p->name);
    }
    free(suite);
    return well;
}

const cp_part cp_honest = {
    "honest", "honest kernels on the core suite and a trained model's layers", 20, plan_honest, work_honest, cp_report_honest};
const cp_part cp_paper = {
    "paper", "honest kernels at the paper's sizes", 1, plan_paper, work_paper, cp_report_honest};
