/* test_tool_generate.c: what the command-line tool writes, run as a user would run it.
 *
 * A file holds what was asked for, or one line says why there is none; it is whole or absent,
 * whatever goes wrong. Most are made from small cases, so that the test does not depend on the
 * built-in suites; that these can be generated and verified is tested once.
 */
#include "etref/bundle.h"
#include "tests/inconclusive.h"
#include "tests/tool_cases.h"

#include <time.h>

/* A few MB in memory, about 100 in the file: enough for a signal to arrive in the middle. */
static const char *const big_case = "{\"name\": \"big\", \"layer\": \"dense\", \"tokens\": 1024, "
                                    "\"d_model\": 2048, \"d_expert\": 1,"
                                    " \"input\": {\"source\": \"normal\"}}";

static void make_all_cases(void)
{
    make_cases();
    write_text("big.json", big_case);
}

/* ---- cases, fields, inputs ---- */

/* The list remarks on what cannot be decided, and on nothing else. */
START_TEST(inconclusive_cases_are_marked)
{
    size_t count = 0, i;
    json_t *row;
    ck_assert_int_eq(RUN("list", "cases", "--format", "json"), 0);
    json_t *rows = parse_output();
    json_array_foreach(rows, i, row)
    {
        const char *name = json_string_value(json_object_get(row, "case"));
        bool marked = json_string_value(json_object_get(row, "remark"))[0] != '\0';
        ck_assert_msg(marked == is_inconclusive(name), "%s", name);
        count += marked;
    }
    json_decref(rows);
    ck_assert_uint_eq(count, INCONCLUSIVE);
}
END_TEST

/* (The float build does not judge.) */
#ifndef ETREF_F32
START_TEST(inconclusive_cases_are_left_out)
{
    const char *words[MAX_WORDS + 1] = {"generate", "--lean", "--conclusive", "bf16",
                                        "--out",    folder,   "--case",       "top-1-tc"};
    size_t count = 8, skipped = 0;
    for (int i = 0; i < INCONCLUSIVE; i++) {
        words[count++] = "--case";
        words[count++] = inconclusive[i];
    }
    ck_assert_msg(run_as(&(setting){0}, words) == 0, "%s", errors);
    for (const char *at = output; (at = strstr(at, "  skipped: ")) != NULL; at++) skipped++;
    ck_assert_uint_eq(skipped, INCONCLUSIVE);
    ck_assert_msg(strstr(errors, "note: 6 cases left out, inconclusive under bf16: all-on-one-tc, all-on-one-aux, "), "%s",
                  errors);
    for (int i = 0; i < INCONCLUSIVE; i++) {
        char name[128];
        snprintf(name, sizeof name, "%s.safetensors", inconclusive[i]);
        ck_assert_msg(!exists(name), "%s is there", inconclusive[i]);
    }
    ck_assert(exists("top-1-tc.safetensors"));
    expect_failure(RUN("generate", "--suite", "core", "--conclusive", "bf17"), 2, "bf17");
}
END_TEST
#endif

START_TEST(fields_can_be_set)
{
    const char *file = in_folder("cases.json");
    expect_failure(RUN("generate", "--case", file, "--set", "name=x", "--out", folder), 2, "'x'");
    expect_failure(RUN("generate", "--case", file, "--set", "tokens", "--out", folder), 2, "--set");
    expect_failure(RUN("generate", "--case", file, "--set", "nosuch=1", "--out", folder), 2,
                   "nosuch");
    write_text("one.json", "{\"name\": \"a\", \"layer\": \"dense\", \"tokens\": 3, \"d_model\": 2,"
                           " \"d_expert\": 2, \"input\": {\"source\": \"normal\"}}");
    ck_assert_int_eq(RUN("generate", "--case", in_folder("one.json"), "--set", "name=b", "--set",
                         "tokens=5", "--set", "input.seed=7", "--out", folder),
                     0);
    ck_assert_int_eq(RUN("show", in_folder("b.safetensors"), "--format", "json"), 0);
    json_t *report = parse_output(), *c = json_object_get(report, "case");
    ck_assert_int_eq(json_integer_value(json_object_get(c, "tokens")), 5);
    ck_assert_int_eq(json_integer_value(json_object_get(json_object_get(c, "input"), "seed")), 7);
    json_decref(report);
}
END_TEST

START_TEST(nothing_is_computed_when_one_case_is_refused)
{
    const char *file = in_folder("cases.json");
    expect_failure(RUN("generate", "--case", file, "--case", file, "--out", folder), 2, "twice");
    write_text("bad.json", "{\"name\": \"bad\", \"tokens\": 0}");
    expect_failure(
        RUN("generate", "--case", file, "--case", in_folder("bad.json"), "--out", folder), 2,
        "tokens");
    ck_assert(!exists("tc.safetensors"));
}
END_TEST

START_TEST(layouts_are_added_on_request)
{
    const char *file = in_folder("cases.json");
    ck_assert_int_eq(RUN("generate", "--case", file, "--layout", "block:8", "--out", folder), 0);
    ck_assert_int_eq(RUN("show", in_folder("tc.safetensors"), "layout.padded_slot"), 0);
    ck_assert_int_eq(RUN("verify", in_folder("tc.safetensors"), "--quiet"), 0);
    ck_assert_int_eq(RUN("generate", "--case", file, "--layout", "block:65536", "--out", folder),
                     0);
    ck_assert_int_eq(RUN("verify", in_folder("tc.safetensors"), "--quiet"), 0);
}
END_TEST

/* Finite inputs of which the layer makes infinities: they may come in any file. */
START_TEST(a_golden_without_numbers_is_not_written)
{
    et_step s;
    et_case c;
    const char *json = "{\"name\": \"far\", \"rule\": \"tc\", \"tokens\": 4, \"d_model\": 2, "
                       "\"d_expert\": 3, \"experts\": 2}";
    ck_assert_int_eq(et_case_parse(&c, json, strlen(json), "far", NULL), ET_OK);
    ck_assert_int_eq(et_step_create(&s, &c, 0, NULL), ET_OK);
    for (size_t i = 0; i < 8; i++) s.in.x[i] = (et_real)0x1p600;
    for (size_t i = 0; i < 12; i++) s.in.up[i] = s.in.down[i] = 1;
    ck_assert_int_eq(et_bundle_write(in_folder("inputs.safetensors"), &s, false, NULL), ET_OK);
    et_step_free(&s);
    expect_failure(RUN("generate", "--inputs", in_folder("inputs.safetensors"), "--out", folder), 2,
                   "fwd.slot_act[0] is infinite");
    ck_assert(!exists("far.safetensors"));
    expect_failure(RUN("verify", in_folder("inputs.safetensors")), 2, "scale in.* down");
}
END_TEST

/* `generate --routing given`: from one golden another. Without a bundle there is nothing to be given. */
START_TEST(a_routing_is_given)
{
    char golden[4200], given[4200];
    snprintf(golden, sizeof golden, "%s", in_folder("smoke-tc.safetensors"));
    snprintf(given, sizeof given, "%s/given", folder);
    expect_failure(RUN("generate", "--case", "smoke-tc", "--routing", "given", "--out", folder), 2,
                   "name it with --inputs");
    expect_failure(RUN("generate", "--case", "smoke-tc", "--set", "routing=given", "--out", folder), 2,
                   "case 'smoke-tc' has routing = \"given\"");
    ck_assert(!exists("smoke-tc.safetensors"));
    ck_assert_int_eq(RUN("generate", "--case", "smoke-tc", "--out", folder), 0);
    ck_assert_int_eq(RUN("generate", "--routing", "given", "--inputs", golden, "--out", given), 0);
    snprintf(given, sizeof given, "%s", in_folder("given/smoke-tc.safetensors"));
    ck_assert_int_eq(RUN("verify", given), 0);
    ck_assert(unlink(given) == 0 && unlink(golden) == 0 && rmdir(in_folder("given")) == 0);
}
END_TEST

/* `generate --inputs` of values that the bundle's own case cannot store. */
START_TEST(inputs_finer_than_their_case_make_no_golden)
{
    static const char json[] = "{\"name\": \"fine\", \"layer\": \"dense\", \"tokens\": 1, "
                               "\"d_model\": 1, \"d_expert\": 1, \"precision\": \"bf16\"}";
    const float third = 1.0f / 3;
    const char *metadata[] = {"format", "etref-bundle", "version", "1", "case", json, NULL};
    const et_tensor_out tensors[] = {{"in.x", ET_F32, 2, {1, 1}, &third, ET_FROM_F32},
                                     {"in.dy", ET_F32, 2, {1, 1}, &third, ET_FROM_F32},
                                     {"in.w_up", ET_F32, 2, {1, 1}, &third, ET_FROM_F32},
                                     {"in.w_down", ET_F32, 2, {1, 1}, &third, ET_FROM_F32}};
    const char *name = in_folder("brought.safetensors");
    ck_assert_int_eq(et_tensor_file_write(name, tensors, COUNT(tensors), metadata, NULL), ET_OK);
    expect_failure(RUN("generate", "--inputs", name, "--out", folder), 2, "set precision to f32");
    ck_assert(!exists("fine.safetensors"));
}
END_TEST

/* The first case of the smoke suite, by its name and out of the program. */
START_TEST(an_emulated_kernel_is_a_candidate_and_no_golden)
{
    const char *golden = in_folder("smoke-et.safetensors");
    const char *kernel = in_folder("smoke-et.bf16.safetensors");
    ck_assert_int_eq(RUN("generate", "--case", "smoke-et", "--out", folder), 0);
    ck_assert_int_eq(RUN("generate", "--case", "smoke-et", "--emulate", "bf16", "--out", folder),
                     0);
    ck_assert_int_eq(RUN("verify", golden, kernel), 0);
    ck_assert_msg(strstr(last_line(output), "[profile bf16: ") != NULL, "%s", last_line(output));
    ck_assert_int_eq(RUN("verify", golden), 0);
    expect_failure(RUN("verify", kernel), 2, "judge it with 'etref verify GOLDEN ");
    expect_failure(RUN("verify", kernel, golden), 2, "judge it with 'etref verify GOLDEN ");
    expect_failure(RUN("generate", "--case", "smoke-et", "--emulate", "bf16", "--profile", "bf16"),
                   2, "belong to its golden");
    expect_failure(RUN("generate", "--case", "smoke-et", "--emulate", "bf17"), 2, "bf17");
}
END_TEST

START_TEST(a_built_in_case_verifies)
{
    ck_assert_int_eq(RUN("list", "cases", "--format=json"), 0);
    json_t *rows = parse_output();
    const char *name = json_string_value(json_object_get(json_array_get(rows, 0), "case"));
    char file[128];
    snprintf(file, sizeof file, "%s.safetensors", name);
    ck_assert_msg(RUN("generate", "--case", name, "--out", folder) == 0, "%s", errors);
    ck_assert_int_eq(RUN("verify", in_folder(file)), 0);
    json_decref(rows);
}
END_TEST

/* ---- noise ---- */

START_TEST(noise_is_generated_verified_and_shown)
{
    char name[4400];
    snprintf(name, sizeof name, "%s", in_folder("tc.safetensors"));
    for (int i = 0; i < 2; i++) {
        const char *const words[] = {
            "generate", "--case", in_folder("cases.json"), "--profile", "bf16",
            "--out",    folder,   i ? "--lean" : NULL,     NULL};
        ck_assert_int_eq(run_as(&(setting){0}, words), 0);
        ck_assert_msg(RUN("verify", name) == 0, "%s", last_line(output));
        ck_assert_ptr_nonnull(strstr(output, "noise.fwd.y"));
        ck_assert_int_eq(strstr(output, "noise.fwd.slot_act") != NULL, i == 0);
        ck_assert_int_eq(RUN("show", name), 0);
        ck_assert_ptr_nonnull(strstr(output, "noise.* of the profile bf16: operands 8,"));
        ck_assert_int_eq(RUN("show", name, "noise.bwd.x"), 0);
        ck_assert_ptr_nonnull(strstr(output, "expected deviation of dL/dx"));
        ck_assert_int_eq(RUN("show", name, "--format=json"), 0);
        json_t *report = parse_output();
        json_t *profile = json_object_get(report, "profile");
        ck_assert_str_eq(json_string_value(json_object_get(profile, "name")), "bf16");
        json_decref(report);
    }
    ck_assert_int_eq(RUN("list", "tensors"), 0);
    ck_assert_ptr_nonnull(strstr(output, "noise.NAME"));
}
END_TEST

START_TEST(noise_of_a_bad_profile_is_not_generated)
{
    const char *file = in_folder("cases.json");
    write_text("bad-profile.json", "{\"name\": \"p\", \"operands\": 1}");
    expect_failure(RUN("generate", "--case", file, "--profile", "bf17", "--out", folder), 2,
                   "bf16");
    expect_failure(RUN("generate", "--case", file, "--profile", in_folder("bad-profile.json"),
                       "--out", folder),
                   2, "operands = 1; allowed: integer from 2 to 53");
    expect_failure(
        RUN("generate", "--case", file, "--profile", in_folder("none.json"), "--out", folder), 2,
        "none.json: No such file");
    ck_assert(!exists("tc.safetensors"));
}
END_TEST

/* What `list profiles NAME` prints is a profile, once it has a name of its own. */
START_TEST(a_listed_profile_can_be_edited)
{
    char text[MAX_OUTPUT / 64];
    ck_assert_int_eq(RUN("list", "profiles", "f16", "--format=json"), 0);
    json_t *profile = parse_output();
    json_object_set_new(profile, "name", json_string("mine"));
    json_object_set_new(profile, "gates", json_integer(11));
    char *json = json_dumps(profile, 0);
    snprintf(text, sizeof text, "%s", json);
    free(json);
    json_decref(profile);
    write_text("mine.json", text);
    ck_assert_int_eq(RUN("list", "profiles", in_folder("mine.json")), 0);
    ck_assert_ptr_nonnull(strstr(output, "mine"));
    ck_assert_int_eq(RUN("generate", "--case", in_folder("cases.json"), "--profile",
                         in_folder("mine.json"), "--out", folder),
                     0);
    ck_assert_int_eq(RUN("verify", in_folder("ec.safetensors"), "--quiet"), 0);
    ck_assert_int_eq(RUN("show", in_folder("ec.safetensors")), 0);
    ck_assert_ptr_nonnull(strstr(output, "noise.* of the profile mine: operands 11,"));
}
END_TEST

/* ---- when writing goes wrong ---- */

START_TEST(a_file_that_cannot_be_written_whole_is_not_there)
{
    const setting small = {.file_limit = 2000};
    const char *const words[] = {"generate", "--case", in_folder("cases.json"),
                                 "--out",    folder,   NULL};
    expect_failure(run_as(&small, words), 2, "tc.safetensors");
    ck_assert_int_eq(entries_in_folder(), 2); /* the two files of cases */
    expect_failure(RUN("generate", "--case", words[2], "--out", in_folder("cases.json/x")), 2,
                   "--out");
    expect_failure(RUN("generate", "--case", words[2], "--out", words[2]), 2, "Not a directory");
}
END_TEST

/* Whether the child has a file in the folder open that is no case: the one that it writes, which
 * may have no name yet. */
static bool is_writing(pid_t child)
{
    char place[64], target[4500];
    bool found = false;
    snprintf(place, sizeof place, "/proc/%ld/fd", (long)child);
    DIR *list = opendir(place);
    struct dirent *entry;
    while (list != NULL && !found && (entry = readdir(list)) != NULL) {
        ssize_t length = readlinkat(dirfd(list), entry->d_name, target, sizeof target - 1);
        target[length > 0 ? length : 0] = '\0';
        found = strncmp(target, folder, strlen(folder)) == 0 && target[strlen(folder)] == '/' &&
                strstr(target, ".json") == NULL;
    }
    if (list != NULL) closedir(list);
    return found;
}

/* True once the child writes into the folder. */
static bool wait_for_partial(pid_t child)
{
    const struct timespec moment = {.tv_nsec = 200000};
    siginfo_t facts = {0};
    while (!is_writing(child)) {
        if (waitid(P_PID, (id_t)child, &facts, WEXITED | WNOHANG | WNOWAIT) != 0) return false;
        if (facts.si_pid == child) return false;
        nanosleep(&moment, NULL);
    }
    return true;
}

/* The child stands still, or has ended. */
static void stop(pid_t child)
{
    siginfo_t facts = {0};
    kill(child, SIGSTOP);
    waitid(P_PID, (id_t)child, &facts, WEXITED | WSTOPPED | WNOWAIT);
}

/* False if the writer was done before the signal came: then it was no test. */
static bool interrupted_by(int number)
{
    FILE *out = tmpfile(), *err = tmpfile();
    const char *const words[] = {"generate", "--case", in_folder("big.json"),
                                 "--out",    folder,   NULL};
    pid_t child = start(words, &(setting){0}, out, err);
    bool partial = wait_for_partial(child);
    stop(child);
    bool whole = exists("big.safetensors");
    kill(child, number);
    kill(child, SIGCONT);
    int status = wait_for(child);
    read_back(out, output);
    read_back(err, errors);
    if (!partial || whole) {
        unlink(in_folder("big.safetensors"));
        return false;
    }
    ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == number, "status %x", (unsigned)status);
    ck_assert_int_eq(entries_in_folder(), 2);
    return true;
}

static void interrupt_with(int number)
{
    int tries = 20;
    while (tries > 0 && !interrupted_by(number)) tries--;
    ck_assert_msg(tries > 0, "the signal always came too late to be a test: %s", errors);
}

START_TEST(an_interrupted_file_is_not_there)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGXCPU, SIGKILL};
    struct rlimit before, none = {0, 0}; /* no memory image of those who are to leave one */
    getrlimit(RLIMIT_CORE, &before);
    none.rlim_max = before.rlim_max;
    setrlimit(RLIMIT_CORE, &none);
    for (size_t i = 0; i < COUNT(signals); i++) interrupt_with(signals[i]);
    setrlimit(RLIMIT_CORE, &before);
}
END_TEST

/* ---- the suite ---- */

static Suite *generate_suite(void)
{
    Suite *suite = suite_create("tool generate");
    TCase *writing = add_case(suite, "writing");
    tcase_add_checked_fixture(writing, make_all_cases, remove_all);
    tcase_add_test(writing, inconclusive_cases_are_marked);
#ifndef ETREF_F32
    tcase_add_test(writing, inconclusive_cases_are_left_out);
#endif
    tcase_add_test(writing, fields_can_be_set);
    tcase_add_test(writing, nothing_is_computed_when_one_case_is_refused);
    tcase_add_test(writing, layouts_are_added_on_request);
    tcase_add_test(writing, a_golden_without_numbers_is_not_written);
    tcase_add_test(writing, inputs_finer_than_their_case_make_no_golden);
    tcase_add_test(writing, noise_is_generated_verified_and_shown);
    tcase_add_test(writing, noise_of_a_bad_profile_is_not_generated);
    tcase_add_test(writing, a_listed_profile_can_be_edited);
    tcase_add_test(writing, an_emulated_kernel_is_a_candidate_and_no_golden);
    tcase_add_test(writing, a_built_in_case_verifies);
    tcase_add_test(writing, a_routing_is_given);
    tcase_add_test(writing, a_file_that_cannot_be_written_whole_is_not_there);
    tcase_add_test(writing, an_interrupted_file_is_not_there);
    return suite;
}

int main(void)
{
    return run_suite(generate_suite());
}
