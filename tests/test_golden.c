/* test_golden.c: goldens and verdicts behind a handle (etref/golden.h).
 *
 * A kernel of bf16 is emulated: the layer run with roundings. What et_judge says of it must be what
 * `etref verify` prints, whoever asks, how often, and from how many threads. Its Python side is tested
 * by tools/check-python.
 */
#include "etref/etref.h"
#include "ref/step/tensors.h"
#include "tests/run_case.h"
#include "tests/run_tool.h"

/* AddressSanitizer keeps what is freed, and looks for leaks itself. gcc and clang name it differently. */
#ifdef __SANITIZE_ADDRESS__
#define KEEPS_FREED
#elif defined __has_feature
#if __has_feature(address_sanitizer)
#define KEEPS_FREED
#endif
#endif

#include <pthread.h>

#ifndef ETREF_F32

enum { MOST = ET_MAX_STEP_TENSORS };

static et_golden *golden;
static et_step kernel; /* which owns what the arrays point at */
static et_array arrays[MOST];
static size_t count;
static et_error error;

/* The kernel's outputs, of the types that it has in memory. */
static void list_arrays(const et_step *s)
{
    static const et_dtype types[] = {ET_F64, ET_F32, ET_I32, ET_U8}; /* by et_source */
    et_tensor_out all[MOST];
    size_t have = et_step_tensors(s, false, all);
    count = 0;
    for (size_t i = 0; i < have; i++) {
        if (strncmp(all[i].name, "in.", 3) == 0) continue;
        et_array *a = &arrays[count++];
        *a = (et_array){all[i].name, types[all[i].source], all[i].rank, {0}, all[i].values};
        memcpy(a->shape, all[i].shape, sizeof a->shape);
    }
}

static et_array *array_named(const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(arrays[i].name, name) == 0) return &arrays[i];
    return NULL;
}

static void emulate(const char *name)
{
    static et_rounding rounding = {.mode = ET_ROUND_NEAREST};
    et_case c;
    ck_assert_int_eq(et_case_find(&c, name, &error), ET_OK);
    rounding.profile = et_profile_find("bf16");
    draw_case(&kernel, &c);
    kernel.rounding = &rounding;
    ck_assert_int_eq(et_step_run(&kernel, ET_PLAIN, NULL, NULL, &error), ET_OK);
    list_arrays(&kernel);
}

static void begin_with_et(void)
{
    make_folder();
    emulate("smoke-et");
    ck_assert_msg(et_golden_of_case(&golden, "smoke-et", 0, &error) == ET_OK, "%s", error.text);
}

static void end(void)
{
    et_golden_close(golden);
    et_step_free(&kernel);
    remove_all();
}

/* ---- verdicts ---- */

static json_t *judge(const char *options)
{
    char *text = NULL;
    json_error_t trouble;
    ck_assert_msg(et_judge(golden, arrays, count, options, &text, NULL, &error) == ET_OK, "%s",
                  error.text);
    json_t *report = json_loads(text, 0, &trouble);
    ck_assert_msg(report != NULL, "%s", trouble.text);
    et_release(text);
    return report;
}

static const char *word(const json_t *report, const char *name)
{
    return json_string_value(json_object_get(report, name));
}

static void expect_verdict(const char *options, const char *verdict)
{
    json_t *report = judge(options);
    ck_assert_msg(strcmp(word(report, "verdict"), verdict) == 0, "%s", word(report, "message"));
    json_decref(report);
}

/* dx doubled: the kernel's own array, until it is given back. */
static double *break_dx(void)
{
    et_array *dx = array_named("bwd.x");
    size_t elements = dx->shape[0] * dx->shape[1];
    double *broken = malloc(elements * sizeof *broken);
    ck_assert_ptr_nonnull(broken);
    for (size_t i = 0; i < elements; i++) broken[i] = 2 * ((const double *)dx->values)[i];
    dx->values = broken;
    return broken;
}

START_TEST(an_honest_kernel_passes_and_a_broken_one_does_not)
{
    expect_verdict("{\"profile\": \"bf16\", \"require\": [\"fwd.y\", \"bwd.*\"]}", "pass");
    expect_verdict(NULL, "pass");
    double *broken = break_dx();
    expect_verdict("{\"profile\": \"bf16\", \"explain\": false}", "mismatch");
    free(broken);
}
END_TEST

/* Widened types: what a kernel stores as BF16 is judged as the same numbers are in F64. */
START_TEST(bf16_in_memory_is_read_where_it_lies)
{
    et_array *y = array_named("fwd.y");
    size_t elements = y->shape[0] * y->shape[1];
    unsigned char *bytes = malloc(2 * elements);
    ck_assert_ptr_nonnull(bytes);
    for (size_t i = 0; i < elements; i++)
        et_dtype_encode(((const double *)y->values)[i], ET_BF16, bytes + 2 * i);
    json_t *wide = judge("{\"profile\": \"bf16\"}");
    y->values = bytes;
    y->dtype = ET_BF16;
    json_t *narrow = judge("{\"profile\": \"bf16\"}");
    ck_assert_str_eq(word(wide, "message"), word(narrow, "message"));
    json_decref(wide);
    json_decref(narrow);
    free(bytes);
}
END_TEST

START_TEST(the_golden_itself_is_no_kernel)
{
    et_array t;
    count = 0;
    for (size_t i = 0; et_golden_tensor(golden, i, &t, &error) == ET_OK && t.name; i++)
        if (strncmp(t.name, "fwd.", 4) == 0 || strncmp(t.name, "bwd.", 4) == 0) arrays[count++] = t;
    ck_assert_uint_gt(count, 10);
    expect_verdict("{\"profile\": \"f64\"}", "inconclusive");
    expect_verdict("{\"profile\": \"bf16\"}", "inconclusive");
}
END_TEST

static void drop_names(json_t *report)
{
    static const char *const names[] = {"golden", "candidate", "command"};
    for (size_t i = 0; i < COUNT(names); i++) json_object_del(report, names[i]);
}

START_TEST(the_report_is_that_of_the_tool)
{
    et_tensor_out tensors[MOST];
    double *broken = break_dx();
    for (size_t i = 0; i < count; i++) {
        tensors[i] = et_tensor_view(&kernel, et_tensor_find(arrays[i].name));
        tensors[i].values = arrays[i].values;
    }
    ck_assert_int_eq(et_golden_write(golden, in_folder("golden"), "bf16", &error), ET_OK);
    ck_assert_int_eq(et_tensor_file_write(in_folder("kernel"), tensors, count, NULL, &error),
                     ET_OK);
    int status = RUN("verify", in_folder("golden"), in_folder("kernel"), "--profile", "bf16",
                     "--engine", "plain", "--format", "json");
    ck_assert_msg(status == 1, "%s", errors);
    json_t *theirs = parse_output(), *ours = judge("{\"profile\": \"bf16\"}");
    drop_names(ours);
    drop_names(theirs);
    ck_assert(json_equal(ours, theirs));
    json_decref(ours);
    json_decref(theirs);
    free(broken);
}
END_TEST

/* ---- threads; many verdicts ---- */

enum { THREADS = 4 };

static void *judge_some(void *said)
{
    char *report = NULL;
    for (int i = 0; i < 5; i++) {
        et_release(report);
        report = NULL;
        et_judge(golden, arrays, count, "{\"profile\": \"bf16\"}", &report, NULL, NULL);
    }
    *(char **)said = report;
    return NULL;
}

START_TEST(threads_judge_by_one_golden)
{
    pthread_t threads[THREADS];
    char *said[THREADS] = {NULL};
    for (size_t i = 0; i < THREADS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, judge_some, &said[i]), 0);
    for (size_t i = 0; i < THREADS; i++) ck_assert_int_eq(pthread_join(threads[i], NULL), 0);
    for (size_t i = 0; i < THREADS; i++) {
        ck_assert_ptr_nonnull(said[i]);
        ck_assert_str_eq(said[i], said[0]);
    }
    for (size_t i = 0; i < THREADS; i++) et_release(said[i]);
}
END_TEST

#ifndef KEEPS_FREED

/* Resident memory in KiB. */
static long resident(void)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    ck_assert_ptr_nonnull(file);
    ck_assert_int_eq(fscanf(file, "%*d %ld", &pages), 1);
    fclose(file);
    return pages * sysconf(_SC_PAGESIZE) / 1024;
}

START_TEST(many_verdicts_take_no_more_memory)
{
    long before = 0;
    for (int i = 0; i < 200; i++) {
        expect_verdict("{\"profile\": \"bf16\"}", "pass");
        if (i == 50) before = resident();
    }
    ck_assert_msg(resident() < before + 1024, "%ld KiB, then %ld", before, resident());
}
END_TEST

#endif

/* ---- handles ---- */

START_TEST(bars_that_are_stored_are_used)
{
    json_t *made = judge("{\"profile\": \"bf16\"}");
    ck_assert_int_eq(et_golden_write(golden, in_folder("golden"), "bf16", &error), ET_OK);
    et_golden_close(golden);
    ck_assert_int_eq(et_golden_open(&golden, in_folder("golden"), 0, &error), ET_OK);
    json_t *read = judge("{\"profile\": \"bf16\"}");
    ck_assert_str_eq(word(made, "message"), word(read, "message"));
    ck_assert_ptr_nonnull(strstr(word(read, "golden"), "golden"));
    json_decref(made);
    json_decref(read);
}
END_TEST

static const char *const own_case =
    "{\"name\": \"own\", \"rule\": \"et\", \"tokens\": 64, \"d_model\": 16, \"d_expert\": 32, "
    "\"experts\": 4, \"ema_updates\": 1, \"precision\": \"bf16\"}";

/* The built-in case's inputs, given to a case that awaits its own. */
START_TEST(inputs_are_given)
{
    et_golden *own;
    et_array t;
    json_t *facts;
    char *json;
    ck_assert_int_eq(et_golden_case(golden, &json, &error), ET_OK);
    facts = json_loads(json, 0, NULL);
    et_release(json);
    json_object_del(facts, "input");
    json = json_dumps(facts, 0);
    ck_assert_int_eq(et_golden_of_case(&own, json, 0, &error), ET_OK);
    free(json);
    json_decref(facts);
    ck_assert_int_eq(et_golden_tensor(own, 0, &t, &error), ET_EINVAL);
    ck_assert_ptr_nonnull(strstr(error.text, "awaits its input 'in.x'"));
    for (size_t i = 0; et_golden_tensor(golden, i, &t, &error) == ET_OK && t.name; i++)
        if (strncmp(t.name, "in.", 3) == 0)
            ck_assert_msg(et_golden_give(own, &t, 1, &error) == ET_OK, "%s", error.text);
    et_golden *drawn = golden;
    golden = own;
    json_t *report = judge("{\"profile\": \"bf16\"}");
    golden = drawn;
    json_t *usual = judge("{\"profile\": \"bf16\"}");
    ck_assert_str_eq(word(report, "message"), word(usual, "message"));
    json_decref(report);
    json_decref(usual);
    et_golden_close(own);
}
END_TEST

static void expect_refusal(et_status status, const char *part)
{
    ck_assert_int_eq(status, ET_EINVAL);
    ck_assert_msg(strstr(error.text, part) != NULL, "no '%s' in: %s", part, error.text);
}

START_TEST(mistakes_are_named)
{
    static const double x[4] = {1, 2, 3, 4};
    const et_array wrong = {"in.x", ET_F64, 1, {4}, x}, typo = {"fwd.yy", ET_F64, 1, {4}, x};
    et_golden *g = NULL;
    char *json = NULL;
    expect_refusal(et_golden_of_case(&g, "nosuch", 0, &error), "no built-in case 'nosuch'");
    expect_refusal(et_golden_of_case(&g, "{\"name\": 1}", 0, &error), "case:");
    ck_assert_ptr_null(g);
    expect_refusal(et_golden_give(golden, &wrong, 1, &error), "has its inputs already");
    expect_refusal(et_judge(golden, &typo, 1, NULL, &json, NULL, &error), "if it is fwd.y, call");
    expect_refusal(et_judge(golden, NULL, 1, NULL, &json, NULL, &error), "arrays is NULL, of 1");
    expect_refusal(et_judge(golden, arrays, count, "{\"profil\": 1}", &json, NULL, &error),
                   "option 'profil'");
    expect_refusal(et_judge(golden, arrays, count, "{\"profile\": \"bf17\"}", &json, NULL, &error),
                   "profile bf17: neither a built-in profile nor a JSON object; bf16 is near");
    expect_refusal(et_judge(golden, arrays, count, "{\"require\": [1]}", &json, NULL, &error),
                   "option 'require'");
    expect_refusal(et_judge(golden, arrays, count, "[]", &json, NULL, &error), "an object");
    expect_refusal(et_judge(golden, arrays, 0, NULL, &json, NULL, &error), "holds nothing");
    ck_assert_ptr_null(json);
    ck_assert_int_eq(et_golden_of_case(&g, own_case, 0, &error), ET_OK);
    expect_refusal(et_golden_give(g, &wrong, 1, &error), "input 'in.x' has shape [4]");
    expect_refusal(et_golden_give(g, &typo, 1, &error), "no such input");
    et_golden_close(g);
    ck_assert_int_eq(et_golden_open(&g, in_folder("none"), 0, &error), ET_EIO);
    ck_assert_int_eq(et_face(), ET_FACE);
    ck_assert_str_eq(et_version(), ETREF_VERSION);
    ck_assert_ptr_nonnull(strstr(et_producer(), et_version()));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("golden");
    TCase *all = add_case(suite, "all");
    tcase_add_checked_fixture(all, begin_with_et, end);
    tcase_add_test(all, an_honest_kernel_passes_and_a_broken_one_does_not);
    tcase_add_test(all, bf16_in_memory_is_read_where_it_lies);
    tcase_add_test(all, the_golden_itself_is_no_kernel);
    tcase_add_test(all, the_report_is_that_of_the_tool);
    tcase_add_test(all, threads_judge_by_one_golden);
#ifndef KEEPS_FREED
    tcase_add_test(all, many_verdicts_take_no_more_memory);
#endif
    tcase_add_test(all, bars_that_are_stored_are_used);
    tcase_add_test(all, inputs_are_given);
    tcase_add_test(all, mistakes_are_named);
    return run_suite(suite);
}

#else

int main(void)
{
    return EXIT_SUCCESS; /* the float build does not judge */
}

#endif
