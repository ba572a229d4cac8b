/* test_tool.c: the command-line tool, run as a child process as a user would run it.
 *
 * What is tested is the contract with scripts: exit statuses, one line for a failure, JSON that
 * parses. Here are its words, its lists, OpenBLAS's kernels, and what it verifies and shows, of
 * damaged files, too; what it generates is in test_tool_generate.c. Bundles are made from small
 * cases, so that the test does not depend on the built-in suites.
 */
#include "etref/bundle.h"
#include "tests/tool_cases.h"

static const char *const case_names[] = {"tc", "ec", "et", "ffn"};

static void make_bundles(void)
{
    make_cases();
    int status = RUN("generate", "--case", in_folder("cases.json"), "--out", folder);
    ck_assert_msg(status == 0, "%s", errors);
}

/* ---- usage ---- */

START_TEST(every_command_has_help)
{
    static const char *const commands[] = {"generate", "verify", "show", "list",   "bench",
                                           "train",    "sample", "eval", "compare"};
    ck_assert_int_eq(RUN("help", "help"), 0);
    ck_assert_int_eq(RUN("--help"), 0);
    for (size_t i = 0; i < COUNT(commands); i++) {
        ck_assert_ptr_nonnull(strstr(output, commands[i]));
    }
    for (size_t i = 0; i < COUNT(commands); i++) {
        static char first[MAX_OUTPUT];
        ck_assert_int_eq(RUN("help", commands[i]), 0);
        ck_assert_ptr_nonnull(strstr(output, "usage: etref "));
        ck_assert_ptr_nonnull(strstr(output, "example"));
        strcpy(first, output);
        ck_assert_int_eq(RUN(commands[i], "--help"), 0);
        ck_assert_str_eq(output, first);
    }
}
END_TEST

START_TEST(the_version_names_precision_and_library)
{
    ck_assert_int_eq(RUN("--version"), 0);
    ck_assert_ptr_nonnull(strstr(output, "etref 0."));
    ck_assert_ptr_nonnull(strstr(output, ET_REAL_NAME));
    ck_assert_ptr_nonnull(strstr(output, "OpenBLAS"));
}
END_TEST

START_TEST(wrong_usage_is_named_and_corrected)
{
    expect_failure(RUN("verfy"), 2, "'verify'");
    expect_failure(RUN("help", "shw"), 2, "'show'");
    expect_failure(RUN("--versoin"), 2, "'--version'");
    expect_failure(RUN("generate", "--engin", "plain"), 2, "'--engine'");
    expect_failure(RUN("generate", "--engine", "fast"), 2, "plain|blas");
    expect_failure(RUN("generate", "--threads", "0"), 2, "--threads 0");
    expect_failure(RUN("generate", "--threads", "99999999999999999999"), 2, "--threads");
    expect_failure(RUN("generate", "--out"), 2, "--out needs a value");
    expect_failure(RUN("generate", "--lean=yes"), 2, "--lean takes no value");
    expect_failure(RUN("generate", "--layout", "block:0", "--suite", "smoke"), 2, "block:M");
    expect_failure(RUN("generate", "--layout", "block:65537", "--suite", "smoke"), 2, "65536");
    expect_failure(RUN("generate"), 2, "no case given");
    expect_failure(RUN("generate", "tc"), 2, "--case tc");
    expect_failure(RUN("generate", "--suite", "nosuch"), 2, "nosuch");
    expect_failure(RUN("generate", "--case", "nosuch"), 2, "nosuch");
    expect_failure(RUN("verify"), 2, "no file given");
    expect_failure(RUN("verify", "a", "b", "c"), 2, "3 files given");
    expect_failure(RUN("verify", "a", "--quiet", "--format=json"), 2, "leave out --quiet");
    expect_failure(RUN("verify", "a", "b", "--profil", "bf16"), 2, "'--profile'");
    expect_failure(RUN("verify", "a", "b", "--ties", "lower"), 2, "rule|any");
    expect_failure(RUN("verify", "a", "b", "--format", "xml"), 2, "text|json|junit");
    expect_failure(RUN("bench", "--table", "verify", "--engine", "plain"), 2, "--table verify");
    expect_failure(RUN("bench", "--table", "layer", "--model"), 2, "--model or --table");
    expect_failure(RUN("bench", "--layers", "2"), 2, "add --model");
    expect_failure(RUN("bench", "--model", "--d-model", "9"), 2, "head_dim");
    expect_failure(RUN("list", "profiles", "bf17"), 2, "bf16");
    expect_failure(RUN("list", "fields", "profiles"), 2, "one list");
    expect_failure(RUN("show"), 2, "no file given");
    expect_failure(RUN("list", "tensor"), 2, "'tensors'");
    ck_assert_int_eq(run_as(&(setting){0}, (const char *const[]){NULL}), 2);
}
END_TEST

START_TEST(lists_parse_as_json)
{
    static const char *const topics[] = {"suites", "cases",    "fields",    "tensors",
                                         "layers", "profiles", "hypotheses"};
    for (size_t i = 0; i < COUNT(topics); i++) {
        ck_assert_int_eq(RUN("list", topics[i]), 0);
        ck_assert_int_eq(RUN("list", topics[i], "--format", "json"), 0);
        json_t *rows = parse_output();
        ck_assert_uint_gt(json_array_size(rows), 0);
        json_decref(rows);
    }
    ck_assert_int_eq(RUN("list"), 0);
}
END_TEST

/* A small model timed: its phases are parts of the step, its memory is linear in tokens. */
START_TEST(a_model_is_timed_by_phase)
{
    ck_assert_int_eq(RUN("bench", "--model", "--layers", "2", "--d-model", "16", "--tokens", "64",
                         "--rounds", "1", "--threads", "1", "--format", "json"),
                     0);
    json_t *said = parse_output(), *phase;
    const json_t *memory = json_object_get(said, "memory");
    double seconds = 0, gflop = 0, block[3];
    const char *name;
    json_object_foreach(json_object_get(said, "phases"), name, phase)
    {
        seconds += json_real_value(json_object_get(phase, "seconds"));
        gflop += json_real_value(json_object_get(phase, "gflop"));
    }
    double whole = json_real_value(json_object_get(said, "seconds"));
    ck_assert_msg(seconds <= whole && seconds > whole / 2, "%g of %g s", seconds, whole);
    ck_assert_double_eq_tol(gflop, json_real_value(json_object_get(said, "gflop")), 1e-12);
    ck_assert_int_eq(json_integer_value(json_object_get(said, "tokens")), 64);
    ck_assert_uint_eq(json_array_size(memory), 3);
    for (size_t i = 0; i < 3; i++)
        block[i] = (double)json_integer_value(
            json_object_get(json_array_get(memory, i), "block_bytes"));
    ck_assert_double_eq_tol((block[2] - block[1]) / (block[1] - block[0]), 2, 0.1);
    json_decref(said);
}
END_TEST

START_TEST(a_full_disk_is_no_success)
{
    const setting full = {.output = "/dev/full"};
    if (access("/dev/full", W_OK) != 0) return;
    const char *const words[][3] = {
        {"--help", NULL, NULL}, {"list", "fields", NULL}, {"list", "--format=json", NULL}};
    for (size_t i = 0; i < COUNT(words); i++)
        expect_failure(run_as(&full, words[i]), 2, "standard output");
}
END_TEST

/* ---- OpenBLAS's kernels ---- */

static void set_old_kernels(const char *when)
{
    set_preload("old_kernels");
    setenv("OLD_KERNELS", when, 1);
    setenv("ASAN_OPTIONS", "verify_asan_link_order=0", 1); /* its library need not be the first */
}

static void forget_old_kernels(void)
{
    unsetenv("LD_PRELOAD");
    unsetenv("OLD_KERNELS");
    unsetenv("ASAN_OPTIONS");
    unsetenv("OPENBLAS_CORETYPE");
}

/* What this processor can run, and OpenBLAS has on it. */
static const char *best_kernels(void)
{
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) return "SkylakeX";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "Haswell";
#endif
    return NULL;
}

static void expect_kernels(const char *kernels, bool noted)
{
    char line[64];
    snprintf(line, sizeof line, "\nkernels %s\n", kernels);
    ck_assert_int_eq(RUN("--version"), 0);
    ck_assert_msg(strstr(output, line) != NULL, "not%s in: %s", line, output);
    bool said = strstr(errors, "etref: note: OpenBLAS multiplies with kernels for ") != NULL;
    ck_assert_msg(said == noted, "kernels %s: '%s'", kernels, errors);
    if (noted) ck_assert_ptr_nonnull(strstr(errors, "set OPENBLAS_CORETYPE="));
}

START_TEST(old_kernels_are_replaced_by_better_ones)
{
    const char *best = best_kernels();
    forget_old_kernels();
    set_old_kernels("unless-set");
    expect_kernels(best != NULL ? best : "Prescott", false);
    expect_failure(RUN("verfy"), 2, "'verify'"); /* words and status go through */
    ck_assert_int_eq(RUN("list", "layers"), 0);
    set_old_kernels("always"); /* it does not help: once is enough */
    expect_kernels("Prescott", best != NULL);
    forget_old_kernels();
}
END_TEST

START_TEST(the_users_kernels_are_kept_and_spoken_of)
{
    const char *best = best_kernels();
    forget_old_kernels();
    setenv("OPENBLAS_CORETYPE", "Prescott", 1);
    expect_kernels("Prescott", best != NULL);
    if (best != NULL) {
        setenv("OPENBLAS_CORETYPE", best, 1);
        expect_kernels(best, false);
    }
    forget_old_kernels();
}
END_TEST

/* ---- threads that wait ---- */

/* libgomp prints its settings when it is loaded: before the tool sets one, and again when it starts anew. */
static void expect_waiting(const char *variable, const char *value, const char *shown)
{
    unsetenv("GOMP_SPINCOUNT");
    unsetenv("OMP_WAIT_POLICY");
    setenv("OMP_DISPLAY_ENV", "verbose", 1);
    if (variable != NULL) setenv(variable, value, 1);
    ck_assert_int_eq(RUN("list", "layers"), 0);
    const char *last = NULL;
    for (const char *at = errors; (at = strstr(at, "GOMP_SPINCOUNT = ")) != NULL; at++) last = at;
    if (last != NULL) ck_assert_msg(strstr(last, shown) != NULL, "not %s: %s", shown, last);
    if (variable != NULL) unsetenv(variable);
    unsetenv("OMP_DISPLAY_ENV");
}

START_TEST(threads_wait_a_short_time_unless_told)
{
    expect_waiting(NULL, NULL, "= '10000'");
    expect_waiting("GOMP_SPINCOUNT", "77", "= '77'");
    expect_waiting("OMP_WAIT_POLICY", "passive", "= '0'");
}
END_TEST

/* ---- verify, show ---- */

START_TEST(what_is_generated_verifies)
{
    for (size_t i = 0; i < COUNT(case_names); i++) {
        char name[32], verdict[4500];
        snprintf(name, sizeof name, "%s.safetensors", case_names[i]);
        ck_assert_msg(RUN("verify", in_folder(name)) == 0, "%s", errors);
        snprintf(verdict, sizeof verdict, "PASS %s: ", in_folder(name));
        const char *line = last_line(output);
        ck_assert_msg(strncmp(line, verdict, strlen(verdict)) == 0, "%s", line);
        /* Another order of summation stays within 1e-13 in double; in float nothing could. */
        if (strcmp(ET_REAL_NAME, "f64") == 0)
            ck_assert_int_eq(RUN("verify", "--quiet", "--engine=blas", in_folder(name)), 0);
        ck_assert_int_eq(RUN("verify", in_folder(name), "--format", "json"), 0);
        json_t *report = parse_output();
        ck_assert_str_eq(json_string_value(json_object_get(report, "verdict")), "pass");
        json_decref(report);
    }
}
END_TEST

START_TEST(what_is_generated_can_be_shown)
{
    for (size_t i = 0; i < COUNT(case_names); i++) {
        char name[32];
        snprintf(name, sizeof name, "%s.safetensors", case_names[i]);
        ck_assert_msg(RUN("show", in_folder(name)) == 0, "%s", errors);
        bool moe = strcmp(case_names[i], "ffn") != 0;
        ck_assert_int_eq(strstr(output, "who goes where") != NULL, moe);
        ck_assert_int_eq(RUN("show", "--all", in_folder(name)), 0);
        ck_assert_ptr_nonnull(strstr(output, "fwd.y"));
        ck_assert_int_eq(RUN("show", in_folder(name), "--format=json"), 0);
        json_t *report = parse_output();
        ck_assert_str_eq(
            json_string_value(json_object_get(json_object_get(report, "case"), "name")),
            case_names[i]);
        json_decref(report);
        ck_assert_int_eq(RUN("show", "--all", in_folder(name), "--format=json"), 0);
        json_decref(parse_output());
    }
}
END_TEST

/* A capacity that clamps nobody is said where it is asked for, and where it is looked for. */
START_TEST(an_idle_capacity_is_said)
{
    static const struct {
        const char *set, *noted, *shown; /* NULL: nothing is said */
    } known[] = {
        {"capacity_factor=0.5", "46 to 78 tokens pass a threshold, and 32 to 96 may",
         "capacity 0.5: 32 to 96 tokens; it clamps no expert"},
        {"capacity_factor=0.1", NULL,
         "capacity 0.1: 57 to 70 tokens; 25 % of the experts are cut, 12.5 % padded"},
        {"mode=eval", "evaluation has no capacity", NULL},
        {"warmup_steps=1", "a step of the warm-up routes by choice", NULL},
        {"capacity_factor=null", NULL, NULL},
    };
    write_text("mine.json",
               "{\"name\": \"mine\", \"rule\": \"et\", \"tokens\": 512, \"d_model\": 64,"
               " \"d_expert\": 2, \"experts\": 8, \"ema_updates\": 5000,"
               " \"capacity_factor\": 0.5, \"precision\": \"bf16\","
               " \"input\": {\"source\": \"normal\", \"seed\": 7}}");
    for (size_t v = 0; v < COUNT(known); v++) {
        ck_assert_int_eq(RUN("generate", "--case", in_folder("mine.json"), "--set", known[v].set,
                             "--out", folder),
                         0);
        ck_assert_msg(known[v].noted ? strstr(errors, known[v].noted) != NULL : errors[0] == '\0',
                      "%s: %s", known[v].set, errors);
        ck_assert_int_eq(RUN("show", in_folder("mine.safetensors")), 0);
        const char *line = strstr(output, "\n  capacity 0");
        ck_assert_msg(known[v].shown ? line && strstr(line, known[v].shown) : line == NULL,
                      "%s: %s", known[v].set, line ? line : "no line");
    }
    ck_assert_int_eq(RUN("generate", "--lean", "--case", in_folder("mine.json"), "--out", folder),
                     0);
    ck_assert_int_eq(RUN("show", in_folder("mine.safetensors")), 0);
    ck_assert_ptr_nonnull(strstr(output, "\n  capacity 0.5: 32 to 96 tokens\n")); /* no metrics */
}
END_TEST

/* So are switches that can do nothing, and only those. */
START_TEST(an_idle_switch_is_said)
{
    static const struct {
        const char *rule, *set, *noted; /* NULL: nothing is said */
    } known[] = {
        {"\"tc\", \"top_k\": 2, \"groups\": 4, \"groups_kept\": 2", "groups_kept=4", "all groups are kept"},
        {"\"tc\", \"top_k\": 2, \"groups\": 4, \"groups_kept\": 2", "groups_kept=3", NULL},
        {"\"tc\", \"top_k\": 2, \"balance\": \"aux\"", "balance_coef=0", "balance_coef 0 balances nothing"},
        {"\"tc\", \"top_k\": 2, \"balance\": \"aux\"", "balance_coef=0.1", NULL},
        {"\"et\", \"parallel\": \"dp\", \"ranks\": 2", "sync_after_warmup=true", "there is no warm-up"},
        {"\"et\", \"parallel\": \"dp\", \"ranks\": 2, \"warmup_steps\": 4", "sync_after_warmup=true", NULL},
    };
    for (size_t v = 0; v < COUNT(known); v++) {
        char text[400];
        snprintf(text, sizeof text,
                 "{\"name\": \"idle\", \"rule\": %s, \"tokens\": 16, \"d_model\": 8, \"d_expert\": 2,"
                 " \"experts\": 8, \"input\": {\"source\": \"normal\"}}",
                 known[v].rule);
        write_text("idle.json", text);
        ck_assert_msg(RUN("generate", "--case", in_folder("idle.json"), "--set", known[v].set, "--out", folder) == 0,
                      "%s", errors);
        ck_assert_msg(known[v].noted ? strstr(errors, known[v].noted) != NULL : errors[0] == '\0', "%s: %s",
                      known[v].set, errors);
    }
}
END_TEST

/* JSON carries every digit: reading it back gives the stored value. */
START_TEST(a_tensor_is_shown_to_the_last_bit)
{
    const char *name = in_folder("tc.safetensors");
    ck_assert_int_eq(RUN("show", name, "fwd.y", "--format", "json"), 0);
    json_t *report = parse_output(), *values = json_object_get(report, "values");
    et_tensor_file file;
    double stored[24 * 6];
    ck_assert_int_eq(et_tensor_file_open(&file, name, NULL), ET_OK);
    const et_tensor_info *y = et_tensor_file_find(&file, "fwd.y");
    ck_assert_int_eq(et_tensor_file_read(&file, y, 0, COUNT(stored), stored, NULL), ET_OK);
    ck_assert_uint_eq(json_array_size(values), COUNT(stored));
    for (size_t i = 0; i < COUNT(stored); i++) {
        double shown = json_number_value(json_array_get(values, i));
        ck_assert_msg(shown == stored[i], "element %zu: %.17g, not %.17g", i, shown, stored[i]);
    }
    et_tensor_file_close(&file);
    json_decref(report);
}
END_TEST

START_TEST(long_tensors_are_cut_unless_all_is_asked_for)
{
    static const char *const forms[] = {"--format=text", "--all"};
    write_text("long.json",
               "{\"name\": \"long\", \"layer\": \"dense\", \"tokens\": 200, \"d_model\": 6,"
               " \"d_expert\": 5, \"input\": {\"source\": \"normal\"}}");
    ck_assert_int_eq(RUN("generate", "--case", in_folder("long.json"), "--out", folder), 0);
    for (size_t i = 0; i < COUNT(forms); i++) {
        ck_assert_int_eq(RUN("show", in_folder("long.safetensors"), "fwd.y", forms[i]), 0);
        ck_assert_int_eq(strstr(output, "first 1000 of 1200") != NULL, i == 0);
        ck_assert_int_eq(strstr(output, "[199,0]") != NULL, i == 1);
    }
    expect_failure(RUN("show", in_folder("long.safetensors"), "fwd.z"), 2, "fwd.y");
    expect_failure(RUN("show", in_folder("long.safetensors"), "y"), 2, "did you mean fwd.y?");
}
END_TEST

START_TEST(routings_are_compared)
{
    const char *tc = in_folder("tc.safetensors"), *ec = in_folder("ec.safetensors");
    ck_assert_int_eq(RUN("show", tc, "--against", tc, "--format=json"), 0);
    json_t *report = parse_output();
    ck_assert(json_number_value(json_object_get(report, "pooled_jaccard")) == 1);
    ck_assert(json_number_value(json_object_get(report, "divergence")) == 0);
    json_decref(report);
    ck_assert_int_eq(RUN("show", tc, "--against", ec), 0);
    ck_assert_ptr_nonnull(strstr(output, "Jensen-Shannon, in bits"));
    expect_failure(RUN("show", tc, "--against", in_folder("ffn.safetensors")), 2, "no route.mask");
}
END_TEST

/* ---- damaged files ---- */

/* Where element `index` of a tensor lies in the file. */
static long element_place(const char *name, const char *tensor, size_t index)
{
    et_tensor_file file;
    ck_assert_int_eq(et_tensor_file_open(&file, name, NULL), ET_OK);
    const et_tensor_info *t = et_tensor_file_find(&file, tensor);
    ck_assert_ptr_nonnull(t);
    long place = (long)(file.data_start + t->offset + index * et_dtype_size(t->dtype));
    et_tensor_file_close(&file);
    return place;
}

static void change_byte(const char *name, long place, int mask)
{
    FILE *file = fopen(name, "r+b");
    ck_assert_ptr_nonnull(file);
    fseek(file, place, SEEK_SET);
    int byte = fgetc(file);
    fseek(file, place, SEEK_SET);
    fputc(byte ^ mask, file);
    ck_assert_int_eq(fclose(file), 0);
}

START_TEST(one_changed_bit_is_found)
{
    const char *name = in_folder("et.safetensors");
    change_byte(name, element_place(name, "fwd.y", 6 * 3 + 2), 1); /* the last bit of token 3 */
    ck_assert_int_eq(RUN("verify", name), 1);
    ck_assert_str_eq(errors, "");
    const char *line = last_line(output);
    ck_assert_msg(strncmp(line, "FAIL ", 5) == 0, "%s", line);
    ck_assert_msg(strstr(line, "fwd.y: 1 of 144") != NULL, "%s", line);
    ck_assert_msg(strstr(line, "token 3, column 2") != NULL, "%s", line);
    expect_failure(RUN("verify", name, "--format=json"), 1, "fwd.y");
    json_t *report = parse_output();
    ck_assert_str_eq(json_string_value(json_object_get(report, "verdict")), "fail");
    json_decref(report);
}
END_TEST

/* A bundle of inputs alone: no mismatch, but no pass either. */
START_TEST(nothing_to_compare_is_inconclusive)
{
    static const char json[] =
        "{\"name\": \"bare\", \"layer\": \"dense\", \"tokens\": 2, \"d_model\": 3, "
        "\"d_expert\": 4, \"input\": {\"source\": \"normal\"}}";
    et_case c;
    et_step step;
    const char *name = in_folder("bare.safetensors");
    ck_assert_int_eq(et_case_parse(&c, json, strlen(json), "test", NULL), ET_OK);
    ck_assert_int_eq(et_step_create(&step, &c, 0, NULL), ET_OK);
    ck_assert_int_eq(et_step_draw_inputs(&step, NULL), ET_OK);
    ck_assert_int_eq(et_bundle_write(name, &step, false, NULL), ET_OK);
    et_step_free(&step);
    ck_assert_int_eq(RUN("verify", name), 3);
    ck_assert_int_eq(strncmp(last_line(output), "INCONCLUSIVE ", 13), 0);
}
END_TEST

/* `generate --inputs` of values that the bundle's own case cannot store. */

START_TEST(a_changed_slot_is_named_by_token_and_expert)
{
    const char *name = in_folder("tc.safetensors");
    change_byte(name, element_place(name, "fwd.slot_act", 5 * 40 + 1) + 7, 0x40);
    ck_assert_int_eq(RUN("verify", name, "--quiet"), 1);
    const char *line = last_line(output);
    ck_assert_msg(strstr(line, "slot 40 (token ") != NULL, "%s", line);
}
END_TEST

START_TEST(unreadable_files_are_refused)
{
    const char *name = in_folder("et.safetensors");
    struct stat facts;
    ck_assert_int_eq(stat(name, &facts), 0);
    ck_assert_int_eq(truncate(name, facts.st_size - 1), 0);
    expect_failure(RUN("verify", name), 2, "et.safetensors");
    expect_failure(RUN("show", name), 2, "et.safetensors");
    ck_assert_int_eq(truncate(name, 4), 0);
    expect_failure(RUN("verify", name), 2, "et.safetensors");
    expect_failure(RUN("verify", in_folder("nosuch")), 2, "nosuch");
    expect_failure(RUN("verify", folder), 2, "folder");
}
END_TEST

/* A file's names reach the terminal without its control characters. */
START_TEST(a_strange_file_is_shown_and_does_not_move_the_cursor)
{
    double value = 1;
    et_tensor_out tensor = {
        .name = "a\x1b[2J\nb", .dtype = ET_F64, .values = &value, .source = ET_FROM_F64};
    const char *const metadata[] = {NULL};
    if (et_tensor_file_write(path, &tensor, 1, metadata, NULL) != ET_OK) return;
    ck_assert_int_eq(RUN("show", path), 0);
    ck_assert_ptr_null(strchr(output, '\x1b'));
    ck_assert_ptr_nonnull(strstr(output, "a?[2J?b"));
    expect_failure(RUN("verify", path), 2, "file.safetensors");
}
END_TEST

/* Replaces the first `from` in the file by `to`, of the same length. */
static void patch_text(const char *name, const char *from, const char *to)
{
    static char head[MAX_OUTPUT];
    FILE *file = fopen(name, "r+b");
    ck_assert_ptr_nonnull(file);
    size_t length = fread(head, 1, sizeof head, file);
    char *place = memmem(head, length, from, strlen(from));
    ck_assert_msg(place != NULL, "no '%s' in %s", from, name);
    fseek(file, place - head, SEEK_SET);
    fwrite(to, 1, strlen(to), file);
    ck_assert_int_eq(fclose(file), 0);
}

START_TEST(a_bundle_of_another_precision_is_refused)
{
    bool f64 = strcmp(ET_REAL_NAME, "f64") == 0;
    patch_text(in_folder("ec.safetensors"), f64 ? ", f64)" : ", f32)", f64 ? ", f32)" : ", f64)");
    expect_failure(RUN("verify", in_folder("ec.safetensors")), 2, "PRECISION=");
}
END_TEST

/* ---- the suite ---- */

static Suite *tool_suite(void)
{
    Suite *suite = suite_create("tool");
    TCase *usage = add_case(suite, "usage"), *made = add_case(suite, "bundles");
    tcase_add_test(usage, every_command_has_help);
    tcase_add_test(usage, the_version_names_precision_and_library);
    tcase_add_test(usage, wrong_usage_is_named_and_corrected);
    tcase_add_test(usage, lists_parse_as_json);
    tcase_add_test(usage, a_model_is_timed_by_phase);
    tcase_add_test(usage, a_full_disk_is_no_success);
    tcase_add_test(usage, old_kernels_are_replaced_by_better_ones);
    tcase_add_test(usage, the_users_kernels_are_kept_and_spoken_of);
    tcase_add_test(usage, threads_wait_a_short_time_unless_told);
    tcase_add_checked_fixture(made, make_bundles, remove_all);
    tcase_add_test(made, what_is_generated_verifies);
    tcase_add_test(made, what_is_generated_can_be_shown);
    tcase_add_test(made, an_idle_capacity_is_said);
    tcase_add_test(made, an_idle_switch_is_said);
    tcase_add_test(made, a_tensor_is_shown_to_the_last_bit);
    tcase_add_test(made, long_tensors_are_cut_unless_all_is_asked_for);
    tcase_add_test(made, routings_are_compared);
    tcase_add_test(made, one_changed_bit_is_found);
    tcase_add_test(made, nothing_to_compare_is_inconclusive);
    tcase_add_test(made, a_changed_slot_is_named_by_token_and_expert);
    tcase_add_test(made, unreadable_files_are_refused);
    tcase_add_test(made, a_strange_file_is_shown_and_does_not_move_the_cursor);
    tcase_add_test(made, a_bundle_of_another_precision_is_refused);
    return suite;
}

int main(void)
{
    return run_suite(tool_suite());
}
