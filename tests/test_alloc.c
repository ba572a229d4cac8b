/* test_alloc.c: what happens when memory runs out.
 *
 * Allocations are made to fail in turn, until the work gets through. Each time there must be ET_ENOMEM
 * and a message, and nothing left: no descriptor, no temporary file, no half-written one (and, under a
 * sanitizer or valgrind, no memory). All that come after it fail, too; then it alone fails, which is
 * what code overlooks that goes on.
 *
 * A verdict asks for memory ten thousand times, for most of it by the same calls again and again
 * (replicas, mutants). So in what is long each chain of calls that leads to an allocation fails the first time; or,
 * where it alone fails, the second time if there is one, when there is something to give back.
 *
 * Needs the linker option -Wl,--wrap=calloc: the project's calls of calloc come here first.
 */
#include "etref/etref.h"
#include "tools/leakage-study/audit.h"
#include "tests/check_main.h"
#include "tests/scratch.h"

#include <errno.h>
#include <execinfo.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* ---- chains of calls ---- */

enum { CHAINS = 4096, DEPTH = 64 };

/* Of the allocations that fail only the first; or all from there on. */
static bool once;

typedef struct chain {
    uint64_t calls;
    int met;         /* how often */
    size_t list, at; /* where it has been noted: in which list, at which place */
} chain;

/* Those that have led to an allocation so far. */
static chain chains[CHAINS];
static size_t chain_count;

static void forget_chains(void)
{
    chain_count = 0;
}

static uint64_t own_calls(void)
{
    void *frames[DEPTH];
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (int i = backtrace(frames, DEPTH); i > 0; i--)
        hash = (hash ^ (uintptr_t)frames[i - 1]) * UINT64_C(0x100000001b3);
    return hash;
}

static chain *own_chain(void)
{
    uint64_t calls = own_calls();
    size_t i = 0;
    while (i < chain_count && chains[i].calls != calls) i++;
    ck_assert_uint_lt(i, CHAINS);
    if (i == chain_count) chains[chain_count++] = (chain){.calls = calls};
    return &chains[i];
}

/* ---- allocations that fail ---- */

/* So many calls succeed; -1: all. */
static int own_until_failure = -1;  /* of the project's calloc */
static int json_until_failure = -1; /* of Jansson's malloc */
static bool failed;                 /* one has failed */

/* What a work asked for: so many allocations of one kind, and which of them are to fail. */
static struct {
    const int *kind; /* whose counter; NULL: none is looked at */
    int calls, chosen[CHAINS];
    size_t count, list; /* list: the how many-th this is */
} noted;

static void note_allocation(void)
{
    chain *c = own_chain();
    bool anew = c->met == 0 || (once && c->met == 1 && c->list != noted.list);
    if (anew) {
        c->list = noted.list;
        c->at = noted.count++;
    }
    if (anew || (once && c->met == 1)) noted.chosen[c->at] = noted.calls;
    c->met++;
    noted.calls++;
}

static bool fails(int *until_failure)
{
    if (until_failure == noted.kind) note_allocation();
    if (*until_failure > 0)
        (*until_failure)--;
    else if (*until_failure == 0) {
        if (once) *until_failure = -1;
        errno = ENOMEM;
        return failed = true;
    }
    return false;
}

/* The linker's names for the true calloc, and for what is called in its place. */
void *true_calloc(size_t count, size_t size) __asm__("__real_calloc");
void *failing_calloc(size_t count, size_t size) __asm__("__wrap_calloc");

void *failing_calloc(size_t count, size_t size)
{
    return fails(&own_until_failure) ? NULL : true_calloc(count, size);
}

static void *json_malloc(size_t size)
{
    return fails(&json_until_failure) ? NULL : malloc(size);
}

/* The k-th allocation is to fail. */
static void begin(int *until_failure, int k)
{
    *until_failure = k;
    failed = false;
}

/* It failed, and the work says so; or there are not so many, and it succeeded. */
static void end(int *until_failure, int k, et_status status, const et_error *error)
{
    *until_failure = -1;
    ck_assert_msg(status == (failed ? ET_ENOMEM : ET_OK), "allocation %d: '%s', %s", k,
                  et_status_name(status), error->text);
    ck_assert((status == ET_OK) == (error->text[0] == '\0'));
}

/* From here on allocations of this kind are noted; then no more. */
static void begin_notes(const int *until_failure)
{
    noted.kind = until_failure;
    noted.calls = 0;
    noted.count = 0;
    noted.list++;
}

static void end_notes(void)
{
    noted.kind = NULL;
    ck_assert_int_gt(noted.calls, 10); /* the counter did count */
}

/* Makes the k-th allocation fail, for every k until the work succeeds. */
static void assert_survives_failures(int *until_failure, bool writing)
{
    const float floats[] = {1, 2, 3};
    const uint8_t bytes[] = {1, 2, 3};
    const et_tensor_out tensors[] = {{"a", ET_F32, 2, {3, 1}, floats, ET_FROM_F32},
                                     {"b", ET_U8, 1, {3}, bytes, ET_FROM_U8}};
    const char *const metadata[] = {"k", "v", "case", "{\"a\": 1}", NULL};
    ck_assert_int_eq(et_tensor_file_write(path, tensors, 2, metadata, NULL), ET_OK);
    int descriptors = open_descriptors();
    et_status status = ET_ENOMEM;
    int k = 0;
    for (; status != ET_OK; k++) {
        ck_assert_int_lt(k, 1000);
        et_tensor_file file;
        et_error error;
        begin(until_failure, k);
        status = writing ? et_tensor_file_write(path, tensors, 2, metadata, &error)
                         : et_tensor_file_open(&file, path, &error);
        end(until_failure, k, status, &error);
        if (status != ET_OK) ck_assert_ptr_nonnull(strstr(error.text, "no memory"));
        if (!writing && status == ET_OK) et_tensor_file_close(&file);
        ck_assert_int_eq(open_descriptors(), descriptors);
        ck_assert_int_eq(entries_in_folder(), 1);
        et_tensor_file still;
        ck_assert_int_eq(et_tensor_file_open(&still, path, NULL), ET_OK);
        et_tensor_file_close(&still);
    }
    ck_assert_int_gt(k, 3); /* the counter did count */
}

START_TEST(every_allocation_may_fail)
{
    assert_survives_failures(&own_until_failure, false);
    assert_survives_failures(&own_until_failure, true);
}
END_TEST

START_TEST(every_allocation_of_jansson_may_fail)
{
    json_malloc_t usual_malloc;
    json_free_t usual_free;
    json_get_alloc_funcs(&usual_malloc, &usual_free);
    json_set_alloc_funcs(json_malloc, free);
    assert_survives_failures(&json_until_failure, false);
    assert_survives_failures(&json_until_failure, true);
    json_set_alloc_funcs(usual_malloc, usual_free);
}
END_TEST

/* ---- the whole way of a case: parse, draw, compute, write, open again, compare, read as what a
 * kernel made ---- */

enum { TOKENS = 8, WIDTH = 3, MOST_EXPERTS = 3 }; /* of these: */

static const char *const ways[] = {
    ("{\"name\": \"a\", \"rule\": \"tc\", \"tokens\": 8, \"d_model\": 3, \"d_expert\": 4, "
     "\"experts\": 3, "
     "\"top_k\": 2, \"gate\": \"softmax\", \"balance\": \"aux\", \"z_loss_coef\": 0.1, "
     "\"input\": {\"source\": \"normal\", \"decisive\": true}}"),
    ("{\"name\": \"a\", \"rule\": \"tc\", \"tokens\": 8, \"d_model\": 3, \"d_expert\": 4, "
     "\"experts\": 3, "
     "\"balance\": \"lossfree\", \"input\": {\"source\": \"skewed\"}}"),
    ("{\"name\": \"a\", \"rule\": \"ec\", \"tokens\": 8, \"d_model\": 3, \"d_expert\": 4, "
     "\"experts\": 2, "
     "\"gate\": \"softmax_anchor\", \"pool_tokens\": 4, \"input\": {\"source\": \"text\"}}"),
    ("{\"name\": \"a\", \"rule\": \"et\", \"tokens\": 8, \"d_model\": 3, \"d_expert\": 4, "
     "\"experts\": 2, "
     "\"ema_updates\": 3, \"capacity_factor\": 0.0, \"micro_batches\": 2, "
     "\"input\": {\"source\": \"ties\"}}"),
    ("{\"name\": \"a\", \"rule\": \"et\", \"tokens\": 4, \"d_model\": 3, \"d_expert\": 4, "
     "\"experts\": 2, \"ema_updates\": 3, \"parallel\": \"ep\", \"ranks\": 2, "
     "\"input\": {\"source\": \"normal\"}}"),
    ("{\"name\": \"a\", \"rule\": \"ec\", \"tokens\": 8, \"d_model\": 3, \"d_expert\": 4, "
     "\"experts\": 2, \"shared\": false, \"parallel\": \"dp\", \"ranks\": 2, "
     "\"input\": {\"source\": \"normal\"}}"),
    ("{\"name\": \"a\", \"layer\": \"dense\", \"tokens\": 4, \"d_model\": 3, \"d_expert\": 4, "
     "\"input\": {\"source\": \"normal\"}}"),
};

static et_status compute_and_write(const char *json, et_error *error)
{
    et_case c;
    et_step s = {0}, variance = {0};
    const et_profile *p = et_profile_find("bf16");
    et_status status = et_case_parse(&c, json, strlen(json), "test", error);
    if (status != ET_OK) return status;
    status = et_step_create(&s, &c, 0, error);
    if (status == ET_OK) status = et_step_draw_inputs(&s, error);
    s.block = s.c.layer == ET_MOE ? 4 : 0;
    if (status == ET_OK) status = et_step_run(&s, ET_PLAIN, NULL, NULL, error);
    if (status == ET_OK) status = et_step_noise(&variance, &s, p, NULL, NULL, error);
    if (status == ET_OK)
        status = et_bundle_write_noise(path, &s, false, p, &variance, NULL, NULL, error);
    et_step_free(&variance);
    et_step_free(&s);
    return status;
}

static et_status open_and_compare(et_error *error)
{
    et_tensor_file file;
    et_step s;
    et_comparison *list = NULL;
    et_candidate candidate = {.count = 0};
    size_t count = 0;
    et_status status = et_bundle_open(&file, &s, path, 0, error);
    if (status != ET_OK) return status;
    status = et_step_run(&s, ET_PLAIN, NULL, NULL, error);
    if (status == ET_OK) status = et_bundle_compare(&list, &count, &file, &s, error);
    for (size_t i = 0; i < count; i++) ck_assert_msg(list[i].pass, "%s", list[i].name);
    if (status == ET_OK) status = et_candidate_read(&candidate, &file, &s, NULL, 0, 0, error);
    et_candidate_free(&candidate);
    free(list);
    et_step_free(&s);
    et_tensor_file_close(&file);
    return status;
}

static et_status go_half(const char *json, et_error *error)
{
    return json != NULL ? compute_and_write(json, error) : open_and_compare(error);
}

/* Fails the k-th allocation of one half of the way. */
static void assert_half_survives(const char *json, int *until_failure, int k)
{
    et_error error = {""};
    int descriptors = open_descriptors();
    begin(until_failure, k);
    et_status status = go_half(json, &error);
    end(until_failure, k, status, &error);
    ck_assert_int_eq(open_descriptors(), descriptors);
    ck_assert_int_le(entries_in_folder(), 1); /* the whole bundle, or nothing */
}

static void assert_halves_survive(const char *json, int *until_failure)
{
    begin_notes(until_failure);
    ck_assert_int_eq(go_half(json, NULL), ET_OK);
    end_notes();
    for (size_t i = 0; i < noted.count; i++) {
        assert_half_survives(json, until_failure, noted.chosen[i]);
        ck_assert(failed);
    }
    assert_half_survives(json, until_failure, noted.calls);
    ck_assert(!failed);
}

static void assert_way_survives(const char *json, int *until_failure)
{
    assert_halves_survive(json, until_failure);
    assert_halves_survive(NULL, until_failure);
}

START_TEST(every_allocation_of_a_step_may_fail)
{
    assert_way_survives(ways[_i], &own_until_failure);
}
END_TEST

START_TEST(every_allocation_of_jansson_in_a_step_may_fail)
{
    json_malloc_t usual_malloc;
    json_free_t usual_free;
    json_get_alloc_funcs(&usual_malloc, &usual_free);
    json_set_alloc_funcs(json_malloc, free);
    assert_way_survives(ways[_i], &json_until_failure);
    json_set_alloc_funcs(usual_malloc, usual_free);
}
END_TEST

/* ---- a verdict with an explanation; leakage ---- */

static void run_step(et_step *s, const char *json)
{
    et_case c;
    ck_assert_int_eq(et_case_parse(&c, json, strlen(json), "test", NULL), ET_OK);
    ck_assert_int_eq(et_step_create(s, &c, 0, NULL), ET_OK);
    ck_assert_int_eq(et_step_draw_inputs(s, NULL), ET_OK);
    ck_assert_int_eq(et_step_run(s, ET_PLAIN, NULL, NULL, NULL), ET_OK);
}

typedef struct suspect {
    size_t count;
    et_tensor_out tensors[ET_MAX_STEP_TENSORS];
} suspect;

static void show(suspect *k, const et_tensor_out *t, const void *values)
{
    k->tensors[k->count] = *t;
    if (values) k->tensors[k->count].values = values;
    k->count++;
}

/* The golden with y = 0: without its routing, so that open decisions are looked for; or with another routing,
 * `mask`, and without its rows of slots. */
static suspect break_golden(const et_step *golden, const double *zeros, const uint8_t *mask)
{
    et_tensor_out own[ET_MAX_STEP_TENSORS];
    size_t have = et_step_tensors(golden, false, own);
    suspect k = {0};
    for (size_t i = 0; i < have; i++) {
        const char *name = own[i].name;
        bool result = strncmp(name, "fwd.", 4) == 0 || strncmp(name, "bwd.", 4) == 0;
        if (mask && strcmp(name, "route.mask") == 0) show(&k, &own[i], mask);
        if (result && !(mask && strstr(name, "slot")))
            show(&k, &own[i], strcmp(name, "fwd.y") == 0 ? zeros : NULL);
    }
    return k;
}

/* Fails the k-th allocation of a verdict, if there are so many. */
static void assert_verdict_survives(const et_step *golden, const suspect *s, int k)
{
    const et_verify_options options = {.profile = et_profile_find("bf16"), .explain = true};
    et_verdict verdict;
    et_error error = {""};
    begin(&own_until_failure, k);
    et_status status = et_verify(&verdict, golden, s->tensors, s->count, &options, &error);
    end(&own_until_failure, k, status, &error);
    if (status == ET_OK)
        ck_assert_int_eq(verdict.outcome, ET_MISMATCH);
    else
        ck_assert_ptr_null(verdict.tensors);
    et_verdict_free(&verdict);
}

/* Of the chains every fourth; ETREF_CAMPAIGN=all: each. */
static size_t part(void)
{
    return getenv("ETREF_CAMPAIGN") ? 1 : 4;
}

static void assert_verdicts_survive(const et_step *golden, const uint8_t *mask)
{
    static const double zeros[TOKENS * WIDTH];
    suspect s = break_golden(golden, zeros, mask);
    begin_notes(&own_until_failure);
    assert_verdict_survives(golden, &s, -1);
    end_notes();
    for (size_t i = 0; i < noted.count; i += part()) {
        assert_verdict_survives(golden, &s, noted.chosen[i]);
        ck_assert(failed);
    }
    assert_verdict_survives(golden, &s, noted.calls);
    ck_assert(!failed);
}

/* Each layer in one of the two modes, by turns, and a part of the chains; ETREF_CAMPAIGN=all: in both, every one. */
START_TEST(every_allocation_of_a_verdict_may_fail)
{
    et_step golden;
    uint8_t mask[TOKENS * MOST_EXPERTS];
    if (_i % 2 != once && !getenv("ETREF_CAMPAIGN")) return;
    run_step(&golden, ways[_i]);
    assert_verdicts_survive(&golden, NULL);
    if (golden.c.layer == ET_MOE) { /* whose first token takes other experts */
        size_t n = golden.c.experts;
        for (size_t i = 0; i < TOKENS * n; i++) mask[i] = golden.route.mask[i] ^ (i < n);
        assert_verdicts_survive(&golden, mask);
    }
    et_step_free(&golden);
}
END_TEST

/* ---- a golden behind a handle: computed, judged by, written, opened again ---- */

static et_status judge_zeros(et_golden *g, et_error *error)
{
    static const char options[] = "{\"profile\": \"bf16\", \"explain\": false}";
    static const uint16_t zeros[8 * 3];
    et_array y = {"fwd.y", ET_BF16, 2, {0, 3}, zeros}, first;
    char *json = NULL, *text = NULL;
    et_status status = et_golden_tensor(g, 0, &first, error);
    if (status != ET_OK) return status;
    y.shape[0] = first.shape[0];
    status = et_judge(g, &y, 1, options, &json, &text, error);
    ck_assert((status == ET_OK) == (json != NULL && text != NULL));
    if (json) ck_assert_ptr_nonnull(strstr(json, "\"verdict\": \"mismatch\""));
    et_release(json);
    et_release(text);
    return status;
}

static et_status use_handle(const char *json, et_error *error)
{
    et_golden *g, *again;
    et_status status = et_golden_of_case(&g, json, 0, error);
    if (status != ET_OK) return status;
    status = judge_zeros(g, error);
    if (status == ET_OK) status = et_golden_write(g, path, NULL, error);
    et_golden_close(g);
    if (status == ET_OK) status = et_golden_open(&again, path, 0, error);
    if (status == ET_OK) et_golden_close(again);
    return status;
}

static void assert_handle_survives(const char *json, int *until_failure)
{
    begin_notes(until_failure);
    ck_assert_int_eq(use_handle(json, NULL), ET_OK);
    end_notes();
    for (size_t i = 0; i < noted.count; i += part()) {
        et_error error = {""};
        begin(until_failure, noted.chosen[i]);
        et_status status = use_handle(json, &error);
        end(until_failure, noted.chosen[i], status, &error);
    }
}

START_TEST(allocations_of_a_handle_may_fail)
{
    json_malloc_t usual_malloc;
    json_free_t usual_free;
    assert_handle_survives(ways[_i], &own_until_failure);
    json_get_alloc_funcs(&usual_malloc, &usual_free);
    json_set_alloc_funcs(json_malloc, free);
    assert_handle_survives(ways[_i], &json_until_failure);
    json_set_alloc_funcs(usual_malloc, usual_free);
}
END_TEST

static et_status count_labels(et_error *error)
{
    const et_leakage_case c = {
        .rule = ET_LEAKAGE_ET_CAPACITY, .tokens = 6, .select = 3, .levels = 8, .passing = 4};
    uint64_t labels;
    return et_leakage_labels(&c, &labels, error);
}

static et_status audit(et_error *error)
{
    static const et_real r[8] = {4, 1, 3, 2, 8, 5, 7, 6};
    const et_audit_rule rule = {.rule = ET_EC, .experts = 2, .batch = 4, .select = 2};
    uint8_t mask[8];
    uint64_t compared[4] = {0}, taken[4] = {0}, changed[4] = {0};
    et_audit_count counts = {compared, taken, changed};
    et_status status = et_audit_route(&rule, 4, r, mask, error);
    if (status == ET_OK)
        status = et_audit_adversary(&rule, &(et_audit_routed){4, r, mask}, 2, &counts, error);
    return status;
}

static et_status (*const leakage[])(et_error *) = {count_labels, audit};

START_TEST(every_allocation_of_leakage_may_fail)
{
    et_status status = ET_ENOMEM;
    int k = 0;
    for (; status != ET_OK; k++) {
        et_error error = {""};
        begin(&own_until_failure, k);
        status = leakage[_i](&error);
        end(&own_until_failure, k, status, &error);
    }
    ck_assert_int_gt(k, 1);
}
END_TEST

static void fail_for_good(void)
{
    once = false;
}

static void fail_once(void)
{
    once = true;
}

static void add_cases(Suite *suite, void (*mode)(void))
{
    int count = sizeof ways / sizeof *ways;
    TCase *memory = add_case(suite, "safetensors"), *steps = add_case(suite, "steps");
    TCase *verdicts = add_case(suite, "verdicts"), *leaks = add_case(suite, "leakage");
    tcase_add_unchecked_fixture(steps, forget_chains, NULL);
    tcase_add_unchecked_fixture(verdicts, forget_chains, NULL);
    TCase *handles = add_case(suite, "handles");
    tcase_add_unchecked_fixture(memory, mode, NULL);
    tcase_add_checked_fixture(memory, make_folder, remove_folder);
    tcase_add_test(memory, every_allocation_may_fail);
    tcase_add_test(memory, every_allocation_of_jansson_may_fail);
    tcase_add_unchecked_fixture(steps, mode, NULL);
    tcase_add_checked_fixture(steps, make_folder, remove_folder);
    tcase_add_loop_test(steps, every_allocation_of_a_step_may_fail, 0, count);
    tcase_add_loop_test(steps, every_allocation_of_jansson_in_a_step_may_fail, 0, count);
    tcase_add_unchecked_fixture(verdicts, mode, NULL);
    tcase_add_unchecked_fixture(handles, mode, NULL);
    tcase_add_unchecked_fixture(handles, forget_chains, NULL);
    if (sizeof(et_real) == sizeof(double)) { /* the float build does not judge */
        tcase_add_loop_test(verdicts, every_allocation_of_a_verdict_may_fail, 0, count);
        tcase_add_checked_fixture(handles, make_folder, remove_folder);
        tcase_add_loop_test(handles, allocations_of_a_handle_may_fail, 0, 2);
    }
    tcase_add_unchecked_fixture(leaks, mode, NULL);
    tcase_add_loop_test(leaks, every_allocation_of_leakage_may_fail, 0,
                        sizeof leakage / sizeof *leakage);
}

int main(void)
{
    Suite *suite = suite_create("alloc");
    add_cases(suite, fail_for_good);
    add_cases(suite, fail_once);
    return run_suite(suite);
}
