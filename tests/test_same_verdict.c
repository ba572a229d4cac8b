/* test_same_verdict.c: what says nothing about a kernel changes nothing of its verdict.
 *
 * Every fourth small case of the suites smoke and core (ETREF_CAMPAIGN=all: every one), an honest and a broken kernel of
 * the precision that leaves most decisions open, and several choices of what they show. The same candidate gets the same
 * verdict
 *
 *     against the same golden with a block layout
 *     in another order of its tensors, copies of in.* among them
 *     with its own layout.* added
 *
 * and a tensor has the same outcome whether others stand beside it or not, if the routing is shown both times.
 * Left out: files, whose reader takes any order (test_candidate.c).
 */
#include "etref/etref.h"
#include "ref/verdict/judge.h"
#include "tests/campaign/campaign.h"
#include "tests/check_main.h"
#include "tests/run_case.h"

#include <string.h>

#ifndef ETREF_F32

enum { BLOCK = 4, ARRAYS = CD_MAX_ARRAYS + ET_MAX_STEP_TENSORS };

/* ---- candidates ---- */

typedef struct shown {
    size_t count;
    et_tensor_out tensors[ARRAYS];
} shown;

/* Which tensors a kernel shows: names that begin so, or all; routing left out or not. */
static const struct {
    const char *prefixes[2];
    bool without_routing;
} choices[] = {{{"fwd.y", NULL}, true},
               {{"fwd.y", "route.mask"}, false},
               {{NULL, NULL}, true},
               {{NULL, NULL}, false}};
enum { CHOICES = sizeof choices / sizeof *choices };

static bool is_chosen(size_t choice, const char *name)
{
    const char *const *prefixes = choices[choice].prefixes;
    if (choices[choice].without_routing && strncmp(name, "route.", 6) == 0) return false;
    if (prefixes[0] == NULL) return true;
    for (size_t i = 0; i < 2; i++)
        if (prefixes[i] && strncmp(name, prefixes[i], strlen(prefixes[i])) == 0) return true;
    return false;
}

static shown choose(const cd_candidate *kernel, size_t choice)
{
    shown s = {0};
    for (size_t i = 0; i < kernel->count; i++)
        if (is_chosen(choice, kernel->tensors[i].name)) s.tensors[s.count++] = kernel->tensors[i];
    return s;
}

static shown reversed(const shown *s)
{
    shown r = {.count = s->count};
    for (size_t i = 0; i < s->count; i++) r.tensors[i] = s->tensors[s->count - 1 - i];
    return r;
}

static shown with_inputs(const shown *s, const et_step *golden)
{
    et_tensor_out all[ET_MAX_STEP_TENSORS];
    size_t have = et_step_tensors(golden, false, all);
    shown w = *s;
    for (size_t i = 0; i < have; i++)
        if (strncmp(all[i].name, "in.", 3) == 0) w.tensors[w.count++] = all[i];
    return w;
}

/* With the layout of its own routing, which it shows. */
static shown with_layout(const shown *s, const et_block_layout *l, size_t experts)
{
    shown w = *s;
    const et_tensor_out layout[] = {
        {"layout.padded_offsets", ET_I32, 1, {experts + 1}, l->padded_offsets, ET_FROM_I32},
        {"layout.padded_slot", ET_I32, 1, {l->blocks * l->block}, l->padded_slot, ET_FROM_I32},
        {"layout.block_expert", ET_I32, 1, {l->blocks}, l->block_expert, ET_FROM_I32}};
    for (size_t i = 0; i < 3; i++) w.tensors[w.count++] = layout[i];
    return w;
}

/* ---- verdicts ---- */

static et_verdict judge(et_shelf *shelf, const shown *s, const et_profile *p)
{
    const et_verify_options options = {.profile = p};
    et_verdict v;
    et_error error;
    const et_aside aside = {.shelf = shelf};
    ck_assert_msg(
        et_verify_with(&v, shelf->golden, s->tensors, s->count, &options, &aside, &error) == ET_OK,
        "%s: %s", shelf->golden->c.name, error.text);
    return v;
}

static const et_tensor_verdict *verdict_on(const et_verdict *v, const char *name)
{
    for (size_t i = 0; i < v->tensor_count; i++)
        if (strcmp(v->tensors[i].name, name) == 0) return &v->tensors[i];
    return NULL;
}

static void assert_same_tensor(const char *which, const et_tensor_verdict *a,
                               const et_tensor_verdict *b)
{
    ck_assert_msg(a && b && a->outcome == b->outcome && a->judged == b->judged &&
                      a->failed == b->failed && a->worst == b->worst,
                  "%s: %s: %s, then %s: '%s', '%s'", which, a ? a->name : "(none)",
                  a ? et_outcome_name(a->outcome) : "", b ? et_outcome_name(b->outcome) : "(none)",
                  a ? a->reason : "", b ? b->reason : "");
}

/* Judged once more: the same in every tensor of the first. */
static void assert_same(const char *which, et_shelf *shelf, const shown *s, const et_profile *p,
                        const et_verdict *first)
{
    char text[160];
    et_verdict again = judge(shelf, s, p);
    snprintf(text, sizeof text, "%s, %s, %s", shelf->golden->c.name, p->name, which);
    for (size_t i = 0; i < first->tensor_count; i++)
        assert_same_tensor(text, &first->tensors[i], verdict_on(&again, first->tensors[i].name));
    ck_assert_msg(again.outcome == first->outcome, "%s: '%s', then '%s'", text, first->line,
                  again.line);
    et_verdict_free(&again);
}

/* ---- a kernel ---- */

typedef struct pair {
    et_step plain, laid;        /* the golden, without a block layout and with one */
    et_shelf of_plain, of_laid; /* error bars of each */
} pair;

static void try_layout(pair *g, const et_profile *p, const shown *s, const et_verdict *first)
{
    const et_case *c = &g->plain.c;
    et_assignment a;
    et_block_layout l;
    if (first->routing.mask == NULL || c->layer == ET_DENSE) return;
    ck_assert_int_eq(et_assignment_build(&a, c->tokens, c->experts, first->routing.mask, NULL),
                     ET_OK);
    ck_assert_int_eq(et_block_layout_build(&l, &a, BLOCK, NULL), ET_OK);
    shown more = with_layout(s, &l, c->experts);
    assert_same("its own layout added", &g->of_laid, &more, p, first);
    et_block_layout_free(&l);
    et_assignment_free(&a);
}

static void try_choice(pair *g, const et_profile *p, const shown *s)
{
    shown copied = with_inputs(s, &g->plain), other = reversed(&copied);
    et_verdict first = judge(&g->of_plain, s, p);
    assert_same("a golden with a block layout", &g->of_laid, s, p, &first);
    assert_same("in.* added, in another order", &g->of_plain, &other, p, &first);
    try_layout(g, p, s, &first);
    et_verdict_free(&first);
}

/* y among all tensors and y alone, each with the routing. */
static void try_leaving_out(pair *g, const et_profile *p, const cd_candidate *kernel)
{
    shown all = choose(kernel, CHOICES - 1), few = choose(kernel, 1);
    et_verdict of_all = judge(&g->of_plain, &all, p), of_few = judge(&g->of_plain, &few, p);
    const et_tensor_verdict *a = verdict_on(&of_all, "fwd.y"), *b = verdict_on(&of_few, "fwd.y");
    ck_assert_msg(a && b && a->outcome == b->outcome && a->judged == b->judged,
                  "%s, %s: y among others: '%s'; alone: '%s'", g->plain.c.name, p->name,
                  a ? a->reason : "", b ? b->reason : "");
    et_verdict_free(&of_all);
    et_verdict_free(&of_few);
}

static void try_kernel(pair *g, const et_profile *p, const cd_kernel *kernel, const cd_fault *fault)
{
    cd_candidate candidate;
    et_error error;
    et_status status = cd_run(&candidate, &g->plain, p, kernel, fault, 0, 1, &error);
    if (status == ET_EINVAL) return; /* the profile's range is too small for the case */
    ck_assert_msg(status == ET_OK, "%s", error.text);
    for (size_t i = 0; i < (fault ? 1 : CHOICES); i++) { /* a broken one shows y alone */
        shown s = choose(&candidate, i);
        if (s.count > 0) try_choice(g, p, &s);
    }
    if (fault == NULL) try_leaving_out(g, p, &candidate);
    cd_free(&candidate);
}

/* ---- all cases ---- */

static const char *const suites[] = {"smoke.json", "core.json"};
enum { SUITES = sizeof suites / sizeof *suites };

static void make_golden(et_step *s, const et_case *c, size_t block)
{
    et_error error;
    draw_case(s, c);
    s->block = c->layer == ET_MOE ? block : 0;
    ck_assert_msg(et_step_run(s, ET_PLAIN, NULL, NULL, &error) == ET_OK, "%s", error.text);
}

static bool is_small(const et_case *c)
{
    double slots = (double)c->tokens * (double)(c->granularity + (c->shared ? 1 : 0) + 1);
    return slots * (double)c->d_model * (double)c->d_expert < 1e5;
}

static bool try_case(const et_case *c, const et_profile *p)
{
    pair g;
    const cd_fault *fault = cd_fault_find("k-plus-one");
    ck_assert_ptr_nonnull(fault);
    if (!is_small(c)) return false;
    make_golden(&g.plain, c, 0);
    make_golden(&g.laid, c, BLOCK);
    g.of_plain = (et_shelf){.golden = &g.plain};
    g.of_laid = (et_shelf){.golden = &g.laid};
    try_kernel(&g, p, cd_kernel_find("blocked"), NULL);
    if (fault->applies == NULL || fault->applies(&g.plain))
        try_kernel(&g, p, cd_kernel_find("blocked"), fault);
    et_shelf_free(&g.of_plain);
    et_shelf_free(&g.of_laid);
    et_step_free(&g.plain);
    et_step_free(&g.laid);
    return true;
}

START_TEST(the_verdict_is_the_same)
{
    size_t count = 0, tried = 0, step = getenv("ETREF_CAMPAIGN") ? 1 : 4;
    et_error error;
    const char *data = getenv("ETREF_DATA");
    const et_profile *p = et_profile_find("bf16-low");
    et_case *cases = cp_suite(data ? data : "data", suites[_i], &count, &error);
    ck_assert_msg(cases != NULL && p != NULL, "%s", error.text);
    for (size_t i = 0; i < count; i += step) tried += try_case(&cases[i], p);
    ck_assert_uint_gt(2 * tried * step, count);
    free(cases);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("the same verdict");
    tcase_add_loop_test(add_case(suite, "metamorphic"), the_verdict_is_the_same, 0, SUITES);
    return run_suite(suite);
}

#else

int main(void)
{
    return EXIT_SUCCESS; /* the float build does not judge */
}

#endif
