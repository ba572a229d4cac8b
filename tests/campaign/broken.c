/* broken.c: kernels with one planted fault. Each must be rejected, and explained by its own name, unless
 * the fault is smaller than the profile's rounding. See campaign.h.
 *
 * Every fault is planted into several cases of the core suite, spread over it, in which it changes
 * something, into larger layers and into those of a trained model (real.json), under every profile. How large a fault is: with the difference D
 * between the broken kernel's numbers and those of the same kernel without the fault, and the variances V,
 *
 *     farthest   the largest |D| / sigma of an element: above twice the limit, no verdict can miss it
 *     strength   sqrt(sum D^2/V) of the tensor that has the most: what the best test there is could see
 *
 * Both are infinite where the two differ in shape, in an integer, or by something that is no number.
 */
#include "ref/step/case_kinds.h"
#include "ref/verdict/judge.h"
#include "tests/campaign/campaign.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CORE_CASES = 4 };

/* Large enough for several tiles of 16 rows an expert, with loads that are no whole numbers; small enough to be
 * judged in a moment. */
static const char *const larger[] = {
    "{'name':'larger-et','rule':'et','tokens':320,'d_model':64,'d_expert':64,'experts':8,"
    "'capacity_factor':0.5,'ema_decay':0.9,'ema_bias_correction':true,'ema_updates':10,"
    "'micro_batches':2,'z_loss_coef':0.01,'precision':'bf16','input':{'source':'normal','seed':1}}",
    "{'name':'larger-tc','rule':'tc','tokens':320,'d_model':64,'d_expert':96,'experts':8,'top_k':2,"
    "'gate':'softmax','norm':'sum','balance':'aux','balance_coef':0.5,'precision':'bf16',"
    "'input':{'source':'normal','seed':2}}",
    "{'name':'larger-ec','rule':'ec','tokens':320,'d_model':64,'d_expert':96,'experts':7,"
    "'pool_tokens':160,'gate':'softmax_anchor','norm':'fanout','precision':'bf16',"
    "'input':{'source':'normal','seed':3}}",
    "{'name':'larger-bias','rule':'tc','tokens':320,'d_model':16,'d_expert':16,'experts':3,"
    "'balance':'proportional','global_load':true,'precision':'bf16','input':{'source':'normal','"
    "seed':5}}",
    "{'name':'larger-eval','rule':'tc','mode':'eval','tokens':160,'d_model':32,'d_expert':32,"
    "'experts':6,'balance':'lossfree','precision':'bf16','input':{'source':'normal','seed':6}}",
    "{'name':'larger-dense','layer':'dense','tokens':160,'d_model':64,'d_expert':64,"
    "'precision':'bf16','input':{'source':'normal','seed':4}}",
};
enum { LARGER = sizeof larger / sizeof *larger };

bool cp_larger_case(et_case *c, size_t index, et_error *error)
{
    return index < LARGER && cp_case(c, larger[index], error) == ET_OK;
}

/* Kernels in which faults are planted, in turn. */
static const char *const hosts[] = {"sequential", "blocked", "split-4", "fused-combine"};
enum { HOSTS = sizeof hosts / sizeof *hosts };

/* ---- how large a fault is ---- */

typedef struct size_of_fault {
    double farthest, strength;
} size_of_fault;

static void take_larger(size_of_fault *a, size_of_fault b)
{
    a->farthest = fmax(a->farthest, b.farthest);
    a->strength = fmax(a->strength, b.strength);
}

static const size_of_fault endless = {INFINITY, INFINITY};

/* Of one tensor, of the shape of the right one. variance: NULL for integers. */
static size_of_fault measure(const et_tensor_out *broken, const et_tensor_out *healthy,
                             const et_tensor_out *right, const et_real *variance)
{
    double farthest2 = 0, sum = 0;
    bool comparable = et_same_shape(broken, healthy) && et_same_shape(broken, right);
    if (!comparable) return endless;
    for (size_t i = 0; i < et_tensor_count(broken); i++) {
        double a = et_tensor_element(broken, i), b = et_tensor_element(healthy, i), D = a - b;
        if (a == b || (isnan(a) && isnan(b)) || D * D == 0) continue;
        double V = variance ? (double)variance[i] : 0, share = D * D / V;
        if (!(share < INFINITY)) return endless;
        sum += share;
        farthest2 = fmax(farthest2, share);
    }
    return (size_of_fault){sqrt(farthest2), sqrt(sum)};
}

static size_of_fault measure_all(const cp_subject *s, const cd_candidate *broken,
                                 const cd_candidate *healthy)
{
    et_tensor_out own[ET_MAX_STEP_TENSORS];
    size_t have = et_step_tensors(&s->golden, false, own);
    const et_bars *bars = cp_subject_bars(s);
    size_of_fault size = {0, 0};
    if (!bars) return endless;
    for (size_t i = 0; i < broken->count; i++) {
        const et_tensor_out *t = &broken->tensors[i], *was = cd_tensor(healthy, t->name);
        const et_tensor_out *right = et_tensor_named(own, have, t->name);
        const et_real *V = et_tensor_is_real(t) ? et_variance_named(bars, t->name) : NULL;
        take_larger(&size, was && right ? measure(t, was, right, V) : endless);
    }
    return size;
}

/* ---- one run ---- */

/* "own", "wrong", "both", "none"; "-" where there was nothing to explain. */
static const char *explained(const et_verdict *v, const cd_fault *fault)
{
    bool own = false, other = false;
    if (v->outcome != ET_MISMATCH) return "-";
    for (size_t i = 0; i < v->explanation_count; i++) {
        bool same =
            fault->explained_by && strcmp(v->explanations[i].name, fault->explained_by) == 0;
        own = own || same;
        other = other || !same;
    }
    return own ? (other ? "both" : "own") : other ? "wrong" : "none";
}

/* Decisions that the broken kernel takes otherwise than the healthy one, or than the reference, or takes in
 * another order. The fault of one that ends up where the reference is may have undone a legal flip. */
static size_t moved_decisions(const cd_candidate *broken, const cd_candidate *healthy,
                              const et_verdict *v)
{
    static const char *const names[] = {"route.mask", "route.topk_expert", "route.topk_token"};
    size_t moved = 0;
    for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
        const et_tensor_out *a = cd_tensor(broken, names[n]), *b = cd_tensor(healthy, names[n]);
        if (!a || !b || !et_same_shape(a, b)) continue;
        for (size_t i = 0; i < et_tensor_count(a); i++)
            moved += et_tensor_element(a, i) != et_tensor_element(b, i);
    }
    return moved > v->routing.differing ? moved : v->routing.differing;
}

static void print_run(const cp_subject *s, const cd_candidate *broken, const cd_candidate *healthy,
                      const et_verdict *v, FILE *lines)
{
    char reason[sizeof v->line], names[512] = "";
    cp_peers peers = cp_ask_peers(s, broken->tensors, broken->count);
    size_of_fault size = measure_all(s, broken, healthy);
    size_t used = 0;
    for (size_t i = 0; i < v->explanation_count && used + 64 < sizeof names; i++)
        used += (size_t)snprintf(names + used, sizeof names - used, "%s%s", used ? " " : "",
                                 v->explanations[i].name);
    snprintf(reason, sizeof reason, "%s", v->line);
    for (char *at = reason; *at; at++)
        if (*at == '\t' || *at == '\n') *at = ' ';
    fprintf(lines, "run\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%.3g\t%.3g\t%.3g\t%zu\t%s\n",
            broken->fault->name, s->golden.c.name, s->profile->name, broken->kernel->name,
            et_outcome_name(v->outcome), explained(v, broken->fault), names, peers.torch,
            peers.ggml, broken->largest_change, size.farthest, size.strength,
            moved_decisions(broken, healthy, v), reason);
}

/* Plants, judges, and says so; *planted: whether anything changed. */
static bool judge_broken(const cp_subject *s, const cd_fault *fault, const cd_kernel *kernel,
                         FILE *lines, bool *planted, et_error *error)
{
    cd_candidate healthy, broken;
    et_verdict v;
    *planted = false;
    et_status status = cd_run(&healthy, &s->golden, s->profile, kernel, NULL, 0, 1, error);
    if (status != ET_OK) return status == ET_EINVAL;
    status = cd_plant(&broken, &healthy, fault, 0, error);
    if (status == ET_OK && broken.planted) {
        *planted = true;
        status = cp_judge(&v, s, broken.tensors, broken.count, true, NULL, error);
        if (status == ET_EINVAL)
            fprintf(lines, "refused\t%s\t%s\t%s\t%s\n", fault->name, s->golden.c.name,
                    s->profile->name, error->text);
        if (status == ET_OK) {
            print_run(s, &broken, &healthy, &v, lines);
            et_verdict_free(&v);
        }
        cd_free(&broken);
    } else if (status == ET_OK) {
        cd_free(&broken);
    }
    cd_free(&healthy);
    return status == ET_OK || status == ET_EINVAL;
}

/* Under every profile; *planted: in how many something changed. */
static bool try_case(const et_case *c, const cd_fault *fault, const cd_kernel *kernel, FILE *lines,
                     size_t *planted, et_error *error)
{
    cp_subject s;
    *planted = 0;
    if (cp_subject_open(&s, c, error) != ET_OK) return false;
    bool well = true, here;
    for (size_t p = 0; fault->applies(&s.golden) && well && p < CP_PROFILES; p++) {
        well = cp_subject_profile(&s, et_profile_at(p), error) == ET_OK &&
               judge_broken(&s, fault, kernel, lines, &here, error);
        *planted += well && here;
    }
    cp_subject_close(&s);
    return well;
}

/* ---- units ---- */

static const char *data = "data"; /* where the suites are; set before the workers are born */

/* Walks the suite from a place of the fault's own, in steps that visit all of it, until it has been planted
 * often enough. */
static bool try_core(const cp_unit *unit, const cd_fault *fault, FILE *lines, et_error *error)
{
    size_t cases, often = 0, planted;
    et_case *suite = cp_suite(data, "core.json", &cases, error);
    bool well = suite != NULL;
    for (size_t i = 0; well && often < unit->seeds && i < cases; i++) {
        size_t at = (unit->index * 7 + i * 53) % cases;
        well =
            try_case(&suite[at], fault, cd_kernel_find(hosts[i % HOSTS]), lines, &planted, error);
        often += planted > 0;
    }
    free(suite);
    return well;
}

static bool try_real(const cp_unit *unit, const cd_fault *fault, FILE *lines, et_error *error)
{
    size_t cases, planted;
    et_case *suite = cp_suite(data, "real.json", &cases, error);
    bool well = suite != NULL;
    for (size_t i = 0; well && i < cases; i++)
        if (is_ffn(&suite[i]))
            well = try_case(&suite[i], fault, cd_kernel_find(hosts[(unit->index + i) % HOSTS]),
                            lines, &planted, error);
    free(suite);
    return well;
}

static bool work(const cp_unit *unit, FILE *lines, et_error *error)
{
    const cd_fault *fault = cd_fault_at(unit->index);
    size_t planted;
    bool well = try_core(unit, fault, lines, error);
    for (size_t i = 0; well && i < LARGER; i++) {
        et_case c;
        const cd_kernel *host = cd_kernel_find(hosts[(unit->index + i) % HOSTS]);
        well = cp_larger_case(&c, i, error) && try_case(&c, fault, host, lines, &planted, error);
    }
    return well && try_real(unit, fault, lines, error);
}

static bool plan(cp_list *list, const cp_options *o, et_error *error)
{
    data = o->data;
    for (size_t i = 0; cd_fault_at(i) != NULL; i++) {
        cp_unit *unit = cp_list_add(list, &cp_broken);
        if (!unit) return et_fail(error, ET_ENOMEM, "no memory") == ET_OK;
        unit->index = i;
        unit->seeds = CORE_CASES;
        unit->cost = 15;
        snprintf(unit->key, sizeof unit->key, "broken %s %zu %s", cd_fault_at(i)->name, unit->seeds,
                 o->explaining);
    }
    return true;
}

const cp_part cp_broken = {"broken",        "kernels with one planted fault", 1, plan, work,
                           cp_report_broken};
