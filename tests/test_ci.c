/* test_ci.c: what programs read: JSON by its schemas, XML by the rules of CI systems, many pairs at once, pipes.
 *
 * Every form of JSON that etref verify and etref check print is held against data/schema; every XML against
 * data/schema/junit.xsd, by xmllint. The ready files of tools/examples/ci are run: the commands that stand in them.
 */
#include "etref/etref.h"
#include "tests/json_schema.h"
#include "tests/run_tool.h"

static char golden[4400], kernel[4400], other[4400];

static const char *data(void)
{
    const char *name = getenv("ETREF_DATA");
    return name != NULL ? name : "data";
}

static void make_files(void)
{
    make_folder();
    snprintf(golden, sizeof golden, "%s", in_folder("smoke-et.safetensors"));
    snprintf(kernel, sizeof kernel, "%s", in_folder("smoke-et.bf16.safetensors"));
    snprintf(other, sizeof other, "%s", in_folder("smoke-et.f16.safetensors"));
    ck_assert_msg(RUN("generate", "--case", "smoke-et", "-o", folder) == 0, "%s", errors);
    ck_assert_msg(RUN("generate", "--case", "smoke-et", "--lean", "--emulate", "bf16", "-o", folder) == 0, "%s",
                  errors);
    ck_assert_msg(RUN("generate", "--case", "smoke-et", "--lean", "--emulate", "f16", "-o", folder) == 0, "%s", errors);
}

/* ---- JSON ---- */

static json_t *valid_output(const char *schema)
{
    json_t *value = parse_output();
    ck_assert_str_eq(json_string_value(json_object_get(value, "schema")), schema);
    ck_assert_msg(fits_own_schema(data(), value), "%s: %.600s", schema_complaint, output);
    return value;
}

static void expect_valid(const char *schema)
{
    json_decref(valid_output(schema));
}

#ifndef ETREF_F32

START_TEST(verdicts_have_the_form_that_is_promised)
{
    ck_assert_int_eq(RUN("verify", golden, kernel, "--format", "json"), 0);
    expect_valid("etref-verdict-1");
    ck_assert_int_eq(RUN("verify", golden, kernel, "--format", "json", "--profile", "f32", "--name", "mine"), 1);
    json_t *report = valid_output("etref-verdict-1");
    ck_assert_str_eq(json_string_value(json_object_get(report, "name")), "mine");
    json_decref(report);
    ck_assert_int_eq(RUN("verify", golden, golden, "--format", "json"), 3);
    expect_valid("etref-verdict-1");
}
END_TEST

/* Each member, taken away or of another type, is missed. */
START_TEST(the_schema_sees_what_is_missing)
{
    const char *key;
    json_t *member;
    ck_assert_int_eq(RUN("verify", golden, kernel, "--format=json"), 0);
    json_t *report = valid_output("etref-verdict-1");
    json_object_foreach(report, key, member)
    {
        if (strcmp(key, "schema") == 0) continue;
        json_t *copy = json_copy(report);
        json_object_del(copy, key);
        ck_assert_msg(!fits_own_schema(data(), copy), "%s is not missed", key);
        json_object_set_new(copy, key, json_real(-0.5));
        ck_assert_msg(!fits_own_schema(data(), copy), "%s may be a number", key);
        json_decref(copy);
    }
    json_t *tensor = json_array_get(json_object_get(report, "tensors"), 0);
    json_object_set_new(tensor, "elements", json_integer(-1));
    ck_assert(!fits_own_schema(data(), report));
    json_decref(report);
}
END_TEST

START_TEST(all_that_is_missing_is_listed)
{
    write_text("inputs.txt", "");
    et_tensor_out y = {"fwd.y", ET_BF16, 2, {0, 0}, NULL, ET_FROM_F64};
    et_tensor_file file;
    ck_assert_int_eq(et_tensor_file_open(&file, kernel, NULL), ET_OK);
    const et_tensor_info *info = et_tensor_file_find(&file, "fwd.y");
    double *values = malloc(info->count * sizeof *values);
    ck_assert_int_eq(et_tensor_file_read(&file, info, 0, info->count, values, NULL), ET_OK);
    y.shape[0] = info->shape[0], y.shape[1] = info->shape[1], y.values = values;
    ck_assert_int_eq(et_tensor_file_write(in_folder("y.safetensors"), &y, 1, NULL, NULL), ET_OK);
    et_tensor_file_close(&file);
    free(values);
    ck_assert_int_eq(RUN("verify", golden, in_folder("y.safetensors"), "--require", "fwd.y,bwd.*", "--format=json"), 3);
    json_t *report = valid_output("etref-verdict-1");
    size_t count = json_array_size(json_object_get(report, "missing")), i;
    json_t *name;
    ck_assert_uint_ge(count, 6); /* dx, dr, dW_r and the experts' */
    const char *line = json_string_value(json_object_get(report, "message"));
    json_array_foreach(json_object_get(report, "missing"), i, name)
    {
        ck_assert_msg(strstr(line, json_string_value(name)) != NULL, "no %s in %s", json_string_value(name), line);
    }
    json_decref(report);
    expect_failure(RUN("verify", golden, kernel, "--require", "fwd.yy,fwd.y,bwd.xx"), 2, "--require fwd.yy: ");
    ck_assert_ptr_nonnull(strstr(errors, "--require bwd.xx: "));
}
END_TEST

#endif

START_TEST(checks_have_the_form_that_is_promised)
{
    ck_assert_int_eq(RUN("check", golden, "--format", "json"), 0);
    expect_valid("etref-integrity-1");
    FILE *file = fopen(golden, "r+b");
    ck_assert(file != NULL && fseek(file, -40, SEEK_END) == 0);
    fputc(1, file);
    ck_assert_int_eq(fclose(file), 0);
    ck_assert_int_eq(RUN("check", golden, "--format", "json"), 1);
    expect_valid("etref-integrity-1");
    ck_assert_int_eq(RUN("verify", golden, "--format", "json"), 1); /* one file: the same */
    expect_valid("etref-integrity-1");
}
END_TEST

/* Whatever went wrong, whichever command: one object with the words of standard error. */
START_TEST(failures_are_objects_too)
{
    static const char *const words[][6] = {{"verify", "--format", "json"},
                                           {"verify", "no", "such", "--format=json"},
                                           {"verify", "--format=json", "--engin", "plain"},
                                           {"check", "no", "--format", "json"},
                                           {"show", "no", "--format=json"},
                                           {"list", "tensor", "--format=json"},
                                           {"leakage", "bound", "--format=json", "--tokens", "x"},
                                           {"bench", "--format=json", "--rounds", "x"}};
    for (size_t i = 0; i < COUNT(words); i++) {
        expect_failure(run_as(&(setting){0}, words[i]), 2, "");
        json_t *report = valid_output("etref-error-1");
        ck_assert_ptr_nonnull(strstr(errors, json_string_value(json_object_get(report, "message"))));
        json_decref(report);
    }
    expect_failure(RUN("verify", "no", "such"), 2, "no");
    ck_assert_str_eq(output, "");
}
END_TEST

/* ---- XML ---- */

/* The last output, changed by an expression of sed. */
static bool is_valid_xml(const char *change)
{
    char command[14000];
    write_text("report.xml", output);
    snprintf(command, sizeof command,
             "sed '%s' '%s' >'%s.changed' && xmllint --noout --schema '%s/schema/junit.xsd' '%s.changed' 2>'%s'", change,
             in_folder("report.xml"), in_folder("report.xml"), data(), in_folder("report.xml"), in_folder("said"));
    int status = system(command);
    ck_assert_msg(WEXITSTATUS(status) != 127, "no xmllint: tools/install-deps xml");
    return status == 0;
}

static void expect_valid_xml(void)
{
    ck_assert_msg(is_valid_xml(""), "no valid XML: %.900s", output);
}

START_TEST(the_rules_see_what_readers_would_not_take)
{
    static const char *const changes[] = {"s/<testsuites /&skipped=\"0\" /", /* Jenkins has none there */
                                          "s/time=\"[0-9.]*\"/time=\"0.12345\"/",
                                          "s/ time=\"[0-9.]*\"//",
                                          "s/classname=\"[^\"]*\" name=\"[^\"]*\"/classname=\"a\" name=\"b\"/",
                                          "s/ type=\"[a-z ]*\"//",
                                          "s/errors=\"[0-9]*\"/errors=\"x\"/",
                                          "s/<testsuite name=\"[^\"]*\"/<testsuite name=\"a\"/",
                                          "s/ message=\"[^\"]*\"/ message=\"\"/"};
    ck_assert_int_eq(RUN("check", golden, "nosuch", "--format", "junit"), 2);
    expect_valid_xml();
    for (size_t i = 0; i < COUNT(changes); i++) ck_assert_msg(!is_valid_xml(changes[i]), "not seen: %s", changes[i]);
}
END_TEST

START_TEST(reports_are_what_ci_systems_read)
{
    ck_assert_int_eq(RUN("check", golden, "--format", "junit"), 0);
    expect_valid_xml();
    ck_assert_int_eq(RUN("verify", "no", "such<&", "--format", "junit"), 2);
    expect_valid_xml();
    ck_assert_int_eq(RUN("verify", "--format=junit", "--profil=x"), 2);
    expect_valid_xml();
#ifndef ETREF_F32
    static const char *const profiles[] = {"bf16", "f32"};
    for (size_t i = 0; i < 2; i++) {
        ck_assert_int_eq(RUN("verify", golden, kernel, "--format", "junit", "--profile", profiles[i]), (int)i);
        expect_valid_xml();
        ck_assert_ptr_null(strstr(output, "<testsuite name=\"etref.smoke-et.bf16\" time=\"0.000\""));
    }
    ck_assert_int_eq(RUN("verify", golden, golden, "--format", "junit"), 3);
    expect_valid_xml();
    ck_assert_int_eq(RUN("verify", golden, kernel, "--format", "junit", "--name", "mine"), 0);
    ck_assert_ptr_nonnull(strstr(output, "<testsuite name=\"etref.mine.smoke-et.bf16\""));
    expect_failure(RUN("verify", golden, kernel, "--name", ""), 2, "--name is empty");
#endif
}
END_TEST

static int run_shell(const char *words)
{
    char command[20000];
    snprintf(command, sizeof command, "cd '%s' && PATH=\"$(dirname \"$TOOL\"):$PATH\" && export PATH && %s", folder,
             words);
    char *absolute = realpath(tool(), NULL);
    setenv("TOOL", absolute, 1);
    free(absolute);
    int status = system(command);
    ck_assert_msg(WIFEXITED(status), "%s", words);
    return WEXITSTATUS(status);
}

/* ---- many ---- */

#ifndef ETREF_F32

/* The same words as each pair has alone, in the order of the list, and the worst status. */
START_TEST(many_pairs_are_judged_as_each_alone)
{
    char list[30000], line[600], want[700];
    snprintf(list, sizeof list, "# a list\n%s %s\n\n%s\t%s\tmy second\n%s %s\n", golden, kernel, golden, other, golden,
             golden);
    write_text("list", list);
    ck_assert_int_eq(RUN("verify", golden, kernel, "--quiet"), 0);
    snprintf(line, sizeof line, "%.599s", output);
    ck_assert_int_eq(RUN("verify", "--pairs", in_folder("list"), "--jobs", "3", "-q"), 3);
    snprintf(want, sizeof want, "smoke-et.bf16: %s", line);
    ck_assert_msg(strncmp(output, want, strlen(want)) == 0, "%s, not %s", output, want);
    ck_assert_ptr_nonnull(strstr(output, "\nmy second: PASS: "));
    ck_assert_str_eq(last_line(output), "3 judged: 2 pass, 0 mismatch, 1 inconclusive, 0 without a verdict");
    ck_assert_int_eq(RUN("verify", golden, kernel, golden, other, "--profile", "bf16", "--jobs=2", "--no-explain"), 0);
    ck_assert_int_eq(RUN("verify", golden, kernel, golden, "nosuch", "--profile", "f32", "--no-explain"), 1);
    ck_assert_int_eq(RUN("verify", golden, kernel, golden, "nosuch"), 2);
    ck_assert_int_eq(RUN("verify", golden, kernel, golden, "nosuch", "--format", "json", "--jobs", "2"), 2);
    json_t *all = valid_output("etref-verdicts-1"), *each;
    size_t i;
    json_array_foreach(json_object_get(all, "verdicts"), i, each)
    {
        ck_assert_msg(fits_own_schema(data(), each), "%s", schema_complaint);
    }
    ck_assert_uint_eq(i, 2);
    json_decref(all);
    ck_assert_int_eq(RUN("verify", golden, kernel, golden, other, golden, "nosuch", "--format", "junit"), 2);
    expect_valid_xml();
    ck_assert_ptr_nonnull(strstr(output, "<testsuite name=\"etref.smoke-et.f16.smoke-et."));
}
END_TEST

START_TEST(wrong_lists_are_refused)
{
    static const char *const lists[][2] = {{"", "names no pair"},
                                           {"one\n", "line 1 names one file"},
                                           {"a b c d\n", "line 1 has more than three words"},
                                           {"a b\nc -\n", "line 2 names standard input"}};
    for (size_t i = 0; i < COUNT(lists); i++) {
        write_text("list", lists[i][0]);
        expect_failure(RUN("verify", "--pairs", in_folder("list")), 2, lists[i][1]);
    }
    expect_failure(RUN("verify", "--pairs", in_folder("list"), golden), 2, "beside --pairs");
    expect_failure(RUN("verify", golden, kernel, golden), 2, "3 files given");
    expect_failure(RUN("verify", golden, kernel, golden, kernel, "--name", "x"), 2, "--name is of one");
}
END_TEST

#endif

START_TEST(many_files_are_checked)
{
    ck_assert_int_eq(run_shell("mkdir -p b && cp smoke-et.safetensors b && etref check --format junit "
                               "smoke-et.safetensors b/smoke-et.safetensors >two.xml; rm -r b"),
                     0);
    ck_assert_int_eq(run_shell("test $(grep -c '<testsuite name=\"etref.*smoke-et' two.xml) = 2 && "
                               "grep -q 'name=\"etref.b/smoke-et.safetensors.' two.xml"),
                     0);
    ck_assert_int_eq(RUN("check", golden, golden, "--jobs", "2", "--quiet"), 0);
    ck_assert_str_eq(last_line(output), "2 judged: 2 pass, 0 mismatch, 0 inconclusive, 0 without a verdict");
    ck_assert_int_eq(RUN("check", golden, kernel, "--format=json"), 2); /* a candidate is no bundle to check */
    expect_valid("etref-verdicts-1");
}
END_TEST

/* ---- words, pipes, folders ---- */

START_TEST(an_empty_word_is_no_golden_alone)
{
    expect_failure(RUN("verify", golden, ""), 2, "word 2 is empty");
    ck_assert_ptr_nonnull(strstr(errors, "etref check GOLDEN"));
    expect_failure(RUN("verify", "", kernel), 2, "word 1 is empty");
    expect_failure(RUN("check", ""), 2, "word 1 is empty");
    expect_failure(RUN("check"), 2, "no file given");
}
END_TEST

START_TEST(files_come_through_a_pipe)
{
    ck_assert_int_eq(run_shell("cat smoke-et.safetensors | etref check - --quiet >said 2>&1"), 0);
    ck_assert_int_eq(run_shell("grep -q '^PASS standard input: ' said"), 0);
    ck_assert_int_eq(run_shell("etref check - </dev/null 2>said"), 2);
    ck_assert_int_eq(run_shell("grep -q '^etref: standard input: 0 bytes' said"), 0);
    ck_assert_int_eq(run_shell("etref verify - - <smoke-et.safetensors 2>said"), 2);
    ck_assert_int_eq(run_shell("grep -q 'can be read once' said"), 0);
#ifndef ETREF_F32
    ck_assert_int_eq(run_shell("cat smoke-et.bf16.safetensors | etref verify smoke-et.safetensors - >said"), 0);
    ck_assert_int_eq(run_shell("grep -q '^candidate  standard input' said"), 0);
    ck_assert_int_eq(run_shell("etref verify - smoke-et.bf16.safetensors -q <smoke-et.safetensors >said"), 0);
#endif
}
END_TEST

START_TEST(folders_are_made)
{
    ck_assert_int_eq(run_shell("etref generate --case smoke-et --lean --out a/b/c >said && etref check -q "
                               "a/b/c/smoke-et.safetensors >said && rm -r a"),
                     0);
    ck_assert_int_eq(run_shell("touch file; etref generate --case smoke-et --out file/b 2>said"), 2);
    ck_assert_int_eq(run_shell("grep -q 'file/b: Not a directory; a folder' said"), 0);
}
END_TEST

START_TEST(a_switch_that_does_nothing_is_said)
{
    ck_assert_int_eq(run_shell("etref generate --case eval-et --lean --out . >said 2>&1"), 0);
    ck_assert_int_eq(run_shell("etref check eval-et.safetensors | grep -q 'clamps no expert: evaluation'"), 0);
    ck_assert_int_eq(RUN("check", in_folder("eval-et.safetensors"), "--format=json"), 0);
    json_t *report = valid_output("etref-integrity-1");
    ck_assert(json_is_string(json_object_get(report, "idle")));
    json_decref(report);
#ifndef ETREF_F32
    ck_assert_int_eq(run_shell("etref generate --case eval-et --emulate f32 --out . >said 2>&1; etref verify "
                               "eval-et.safetensors eval-et.f32.safetensors | grep -q '^idle .*clamps no expert'"),
                     0);
#endif
}
END_TEST

/* ---- the ready files ---- */

#ifndef ETREF_F32

/* The commands between the marks, as a runner would give them to a shell; the kernel is the emulated one. */
static void run_example(const char *name)
{
    char command[9000];
    char *absolute = realpath("tools/examples/ci", NULL);
    ck_assert_msg(absolute != NULL, "run from the project's folder");
    snprintf(command, sizeof command,
             "sed -n '/# begin: commands/,/# end: commands/p' '%s/%s' | sed 's/^ *- *//; s/^ *//; /^>-$/d' | "
             "sed 's/--suite core/--case top-1-tc --case all-on-one-tc --case eval-et/' >commands && test -s commands",
             absolute, name);
    free(absolute);
    ck_assert_int_eq(run_shell(command), 0);
    write_text("run-kernel", "#!/bin/sh\nname=$(basename \"$1\" .safetensors)\netref generate --case \"$name\" --lean "
                             "--emulate ${KIND:-bf16} --out tmp >/dev/null 2>&1 && mv tmp/*.safetensors \"$2\"\n");
    ck_assert_int_eq(run_shell("chmod +x run-kernel; rm -rf goldens kernels report.xml; sh -e commands >said 2>&1"), 0);
    ck_assert_int_eq(run_shell("test \"$(grep -c '<testsuite ' report.xml)\" = 2"), 0); /* one is left out */
    ck_assert_int_eq(run_shell("cp report.xml valid.xml"), 0);
    ck_assert_int_ne(run_shell("export KIND=bf16-low; rm -rf kernels report.xml; sh -e commands >said 2>&1"), 0);
    ck_assert_int_eq(run_shell("grep -q '<failure' report.xml && rm -rf goldens kernels tmp"), 0);
}

START_TEST(the_ready_files_run)
{
    run_example("github-actions.yml");
    run_example("gitlab-ci.yml");
}
END_TEST

#endif

int main(void)
{
    Suite *suite = suite_create("ci");
    TCase *tests = add_case(suite, "what programs read");
    tcase_add_checked_fixture(tests, make_files, remove_all);
#ifndef ETREF_F32
    tcase_add_test(tests, verdicts_have_the_form_that_is_promised);
    tcase_add_test(tests, the_schema_sees_what_is_missing);
    tcase_add_test(tests, all_that_is_missing_is_listed);
    tcase_add_test(tests, many_pairs_are_judged_as_each_alone);
    tcase_add_test(tests, wrong_lists_are_refused);
    tcase_add_test(tests, the_ready_files_run);
#endif
    tcase_add_test(tests, checks_have_the_form_that_is_promised);
    tcase_add_test(tests, failures_are_objects_too);
    tcase_add_test(tests, reports_are_what_ci_systems_read);
    tcase_add_test(tests, the_rules_see_what_readers_would_not_take);
    tcase_add_test(tests, many_files_are_checked);
    tcase_add_test(tests, an_empty_word_is_no_golden_alone);
    tcase_add_test(tests, files_come_through_a_pipe);
    tcase_add_test(tests, folders_are_made);
    tcase_add_test(tests, a_switch_that_does_nothing_is_said);
    return run_suite(suite);
}
