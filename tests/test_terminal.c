/* test_terminal.c: what people see and type: no line wider than the terminal, completion, short words, suggestions.
 *
 * Three kinds of line are one line however long, since they are read by programs, or copied: the verdict, the command
 * that repeats it, and what stands on standard error.
 */
#include "tests/run_tool.h"

#include <ctype.h>
#include <dirent.h>

static void make_files(void)
{
    make_folder();
    ck_assert_msg(RUN("generate", "--case", "smoke-et", "--case", "eval-et", "-o", folder) == 0, "%s", errors);
    ck_assert_msg(RUN("generate", "--case", "smoke-et", "--emulate", "bf16", "-o", folder) == 0, "%s", errors);
}

/* ---- width ---- */

static bool may_be_long(const char *line)
{
    static const char *const heads[] = {"PASS", "FAIL: ", "INCONCLUSIVE", "CAUSAL", "LEAKS", "again: "};
    for (size_t i = 0; i < COUNT(heads); i++)
        if (strncmp(line, heads[i], strlen(heads[i])) == 0) return true;
    const char *name = strstr(line, folder); /* a file's name, behind a short head at most */
    return name && name - line <= 11;
}

static void expect_width(size_t width, const char *const *words)
{
    for (char *line = output, *end; *line; line = end) {
        end = strchr(line, '\n') ? strchr(line, '\n') + 1 : line + strlen(line);
        size_t length = strcspn(line, "\n");
        if (length <= width || may_be_long(line)) continue;
        ck_abort_msg("%zu columns of %zu: etref %s %s: %.*s", length, width, words[0], words[1] ? words[1] : "",
                     (int)length, line);
    }
}

/* '@' stands for the folder. */
static void run_words(const char *const *words)
{
    static char room[MAX_WORDS][4400];
    const char *filled[MAX_WORDS + 1] = {NULL};
    for (size_t i = 0; words[i]; i++) {
        snprintf(room[i], sizeof room[0], "%s%s", words[i][0] == '@' ? folder : "", words[i] + (words[i][0] == '@'));
        filled[i] = room[i];
    }
    int status = run_as(&(setting){0}, filled);
    ck_assert_msg(status != 2, "etref %s %s: %s", words[0], words[1] ? words[1] : "", errors);
}

static const char *const every_command[][13] = {
    {"help"},
    {"version"},
    {"list"},
    {"list", "suites"},
    {"list", "cases"},
    {"list", "fields"},
    {"list", "tensors"},
    {"list", "layers"},
    {"list", "gates"},
    {"list", "norms"},
    {"list", "sources"},
    {"list", "profiles"},
    {"list", "hypotheses"},
    {"check", "@/smoke-et.safetensors"},
    {"show", "@/smoke-et.safetensors"},
    {"show", "@/eval-et.safetensors", "--all"},
    {"show", "@/smoke-et.safetensors", "in.w_up"},
    {"show", "@/smoke-et.safetensors", "--against", "@/smoke-et.bf16.safetensors"},
    {"generate", "--suite", "smoke", "--out", "@"},
    {"generate", "--case", "all-on-one-tc", "--conclusive", "bf16", "--out", "@"},
    {"leakage", "bound"},
    {"leakage", "exact", "--table"},
    {"leakage", "exact", "--tokens", "4", "--select", "2", "--levels", "3", "--rule", "et-capacity"},
    {"leakage", "exact", "--search"},
    {"leakage", "encode", "0110100"},
    {"leakage", "encode", "--precision", "bf16", "011111111"},
    {"leakage", "decode", "1001011"},
    {"leakage", "reach"},
    {"leakage", "audit", "@/smoke-et.safetensors", "--all-rules"},
    {"leakage", "study", "--out", "@/run", "--tokens", "128", "--batches", "2", "--no-figures"},
    {"bench", "--model", "--layers", "1", "--d-model", "64", "--experts", "4", "--tokens", "256", "--rounds", "1"},
#ifndef ETREF_F32
    {"verify", "@/smoke-et.safetensors", "@/smoke-et.bf16.safetensors"},
    {"verify", "@/smoke-et.safetensors", "@/smoke-et.bf16.safetensors", "--all"},
    {"verify", "@/smoke-et.safetensors", "@/smoke-et.bf16.safetensors", "--profile", "f32"},
#endif
    {"train", "--text", "/usr/share/common-licenses/GPL-3", "--steps", "1", "--layers", "2", "--d-model", "64", "--out",
     "@/run"},
    {"eval", "@/run/final.safetensors", "--text", "/usr/share/common-licenses/GPL-3", "--batches", "1"},
    {"compare", "@/run/final.safetensors", "@/run/final.safetensors", "--text", "/usr/share/common-licenses/GPL-3",
     "--sequences", "2"},
    {"sample", "@/run/final.safetensors", "--length", "9"}};

static void remove_run(void)
{
    char command[4500];
    snprintf(command, sizeof command, "rm -rf '%s/run'", folder);
    ck_assert_int_eq(system(command), 0);
}

START_TEST(no_line_is_wider_than_a_terminal)
{
    unsetenv("COLUMNS");
    for (size_t i = 0; i < COUNT(every_command); i++) {
        run_words(every_command[i]);
        expect_width(80, every_command[i]);
    }
    remove_run();
}
END_TEST

/* The names of all commands, of `etref help`. */
static size_t command_names(char names[][32], size_t room)
{
    size_t count = 0;
    ck_assert_int_eq(RUN("help"), 0);
    for (const char *line = output; (line = strchr(line, '\n')) != NULL;) {
        line++;
        if (strncmp(line, "  ", 2) != 0 || !islower((unsigned char)line[2]) || strncmp(line, "  etref", 7) == 0) continue;
        ck_assert_uint_lt(count, room);
        ck_assert_int_eq(sscanf(line, "%31s", names[count++]), 1);
    }
    ck_assert_uint_gt(count, 9);
    return count;
}

START_TEST(no_help_is_wider_than_a_terminal)
{
    char names[32][32];
    size_t count = command_names(names, 32);
    for (size_t i = 0; i < count; i++) {
        const char *const words[] = {"help", names[i], NULL};
        run_words(words);
        expect_width(80, words);
    }
}
END_TEST

/* A wider terminal shows more on a line, a narrower one less. */
START_TEST(tables_are_as_wide_as_the_terminal)
{
    static const char *const widths[] = {"60", "80", "120", "200"};
    size_t before = SIZE_MAX;
    for (size_t i = 0; i < COUNT(widths); i++) {
        setenv("COLUMNS", widths[i], 1);
        const char *const words[] = {"list", "cases", NULL};
        run_words(words);
        expect_width((size_t)atoi(widths[i]), words);
        size_t lines = 0;
        for (const char *c = output; *c; c++) lines += *c == '\n';
        ck_assert_msg(lines < before, "%zu lines at %s columns, %zu before", lines, widths[i], before);
        before = lines;
    }
    unsetenv("COLUMNS");
}
END_TEST

/* Nothing is coloured but on a terminal. */
START_TEST(a_pipe_gets_no_colours)
{
    for (size_t i = 0; i < COUNT(every_command); i++) {
        run_words(every_command[i]);
        ck_assert_ptr_null(strchr(output, '\x1b'));
        ck_assert_ptr_null(strchr(errors, '\x1b'));
    }
    remove_run();
}
END_TEST

/* What the tool prints on a terminal, which holds some 4000 bytes of it. */
static const char *on_terminal(const char *const *words)
{
    static char shown[8192];
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    ck_assert(master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0);
    int held = open(ptsname(master), O_RDWR | O_NOCTTY); /* so that what is written stays to be read */
    ck_assert_int_ge(held, 0);
    ck_assert_int_eq(run_as(&(setting){.output = ptsname(master)}, words), 0);
    ssize_t length = 0, part;
    ck_assert_int_eq(fcntl(master, F_SETFL, O_NONBLOCK), 0);
    while ((part = read(master, shown + length, sizeof shown - 1 - (size_t)length)) > 0) length += part;
    shown[length] = '\0';
    close(held);
    close(master);
    return shown;
}

START_TEST(a_terminal_gets_colours)
{
    static const char *const line = "\x1b[32mPASS\x1b[0m";
    const char *golden = in_folder("smoke-et.safetensors");
    const char *const check[] = {"check", "--quiet", golden, NULL};
    const char *const checks[] = {"check", "--quiet", golden, golden, NULL};
    setenv("TERM", "xterm", 1);
    unsetenv("NO_COLOR");
    ck_assert_ptr_nonnull(strstr(on_terminal(check), line));
    ck_assert_ptr_nonnull(strstr(on_terminal(checks), line));
#ifndef ETREF_F32
    const char *const verify[] = {"verify", golden, in_folder("smoke-et.bf16.safetensors"), NULL};
    const char *shown = on_terminal(verify);
    ck_assert_ptr_nonnull(strstr(shown, line));
    ck_assert_ptr_nonnull(strstr(shown, "  \x1b[32mpass\x1b[0m\r\n")); /* in the table */
#endif
    setenv("NO_COLOR", "1", 1);
    ck_assert_ptr_null(strchr(on_terminal(check), '\x1b'));
    unsetenv("NO_COLOR");
    setenv("TERM", "dumb", 1);
    ck_assert_ptr_null(strchr(on_terminal(check), '\x1b'));
}
END_TEST

/* ---- completion ---- */

/* What completion offers for the words of a command line, each in a line. */
static void complete(const char *line, size_t words)
{
    char command[9000];
    char *absolute = realpath(tool(), NULL);
    ck_assert_ptr_nonnull(absolute);
    snprintf(command, sizeof command,
             "bash -c 'source tools/etref/completion.bash && COMP_WORDS=(\"%s\" %s) && COMP_CWORD=%zu && _etref && "
             "printf \"%%s\\n\" \"${COMPREPLY[@]}\"'",
             absolute, line, words);
    free(absolute);
    FILE *from = popen(command, "r");
    ck_assert_ptr_nonnull(from);
    output[0] = '\n';
    output[1 + fread(output + 1, 1, sizeof output - 2, from)] = '\0';
    ck_assert_int_eq(pclose(from), 0);
}

static bool offers(const char *word)
{
    char line[200];
    snprintf(line, sizeof line, "\n%s\n", word);
    return strstr(output, line) != NULL;
}

/* The options of a command's tables, as its sources have them. */
static void expect_options(const char *command, const char *pattern)
{
    char shell[600], word[64];
    size_t count = 0;
    snprintf(shell, sizeof shell, "cat %s | grep -o '{\"--[a-z0-9-]*\", OPTION_' | cut -d'\"' -f2 | sort -u", pattern);
    FILE *from = popen(shell, "r");
    ck_assert_ptr_nonnull(from);
    while (fgets(word, sizeof word, from) != NULL) {
        word[strcspn(word, "\n")] = '\0';
        ck_assert_msg(offers(word), "%s %s is not offered: its help does not begin a line with it", command, word);
        count++;
    }
    pclose(from);
    ck_assert_msg(count > 0, "no options in %s", pattern);
}

/* Each option of the tables is offered, and each that is offered is one: its command does not call it unknown. */
START_TEST(completion_knows_each_option)
{
    static const char *const sources[][2] = {{"generate", "tools/etref/cmd_generate.c"},
                                             {"show", "tools/etref/cmd_show.c"},
                                             {"list", "tools/etref/cmd_list.c"},
                                             {"bench", "tools/etref/cmd_bench.c"},
                                             {"train", "tools/etref/cmd_train.c"},
                                             {"eval", "tools/etref/cmd_eval.c"},
                                             {"compare", "tools/etref/cmd_compare.c"},
                                             {"sample", "tools/etref/cmd_sample.c"},
                                             {"leakage", "tools/etref/cmd_leakage.c tools/leakage-study/*.c"},
                                             {"verify", "tools/etref/cmd_verify.c"},
                                             {"check", NULL}};
    for (size_t i = 0; i < COUNT(sources); i++) {
        char line[64], words[40][64];
        size_t count = 0;
        snprintf(line, sizeof line, "%s --", sources[i][0]);
        complete(line, 2);
        if (sources[i][1]) expect_options(sources[i][0], sources[i][1]);
        for (char *rest = NULL, *word = strtok_r(output, "\n", &rest); word && count < COUNT(words); count++) {
            snprintf(words[count], sizeof words[0], "%s", word);
            word = strtok_r(NULL, "\n", &rest);
        }
        for (size_t w = 0; w < count && strcmp(sources[i][0], "leakage") != 0; w++) {
            RUN(sources[i][0], words[w], "x", "--no-such-option");
            ck_assert_msg(strstr(errors, "'--no-such-option'") || strstr(errors, "belongs here"), "%s %s: %s",
                          sources[i][0], words[w], errors);
        }
    }
}
END_TEST

START_TEST(completion_knows_commands_and_names)
{
    static const struct {
        const char *line;
        size_t words;
        const char *offered;
    } rows[] = {{"\"\"", 1, "verify"},
                {"ver", 1, "version"},
                {"help ch", 2, "check"},
                {"verify --profile b", 3, "bf16-low"},
                {"verify --format \"\"", 3, "junit"},
                {"generate --case smoke", 3, "smoke-et"},
                {"generate --suite \"\"", 3, "core"},
                {"list s", 2, "sources"}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        complete(rows[i].line, rows[i].words);
        ck_assert_msg(offers(rows[i].offered), "%s: no %s in %s", rows[i].line, rows[i].offered, output);
    }
    complete("list \"\"", 2);
    static const char *const topics[] = {"suites", "cases",   "fields",   "tensors",   "layers", "gates",
                                         "norms",  "sources", "profiles", "hypotheses"};
    for (size_t i = 0; i < COUNT(topics); i++) ck_assert_msg(offers(topics[i]), "no %s", topics[i]);
}
END_TEST

/* ---- words ---- */

START_TEST(what_people_type_is_understood)
{
    static char first[MAX_OUTPUT];
    ck_assert_int_eq(RUN("version"), 0);
    strcpy(first, output);
    ck_assert_int_eq(RUN("--version"), 0);
    ck_assert_str_eq(output, first);
    ck_assert_int_eq(RUN("check", "-q", in_folder("smoke-et.safetensors")), 0);
    ck_assert_str_eq(strchr(output, '\n'), "\n");
    static const char *const names[][2] = {{"bfloat16", "bf16"},       {"fp32", "f32"},  {"FP16", "f16"},
                                           {"torch.bfloat16", "bf16"}, {"half", "f16"},  {"double", "f64"},
                                           {"torch.float32", "f32"},   {"BF16", "bf16"}, {"TFloat32", "tf32"}};
    for (size_t i = 0; i < COUNT(names); i++) {
        char want[64];
        snprintf(want, sizeof want, "; %s is its name here", names[i][1]);
        expect_failure(RUN("list", "profiles", names[i][0]), 2, want);
        if (strcmp(names[i][1], "tf32") == 0) continue; /* no inputs are stored so */
        char set[64];
        snprintf(set, sizeof set, "precision=%s", names[i][0]);
        expect_failure(RUN("generate", "--case", "smoke-et", "--set", set, "--out", folder), 2, want);
    }
    expect_failure(RUN("list", "gate"), 2, "'gates'");
    expect_failure(RUN("show", "-q"), 2, "'-q'"); /* which has no --quiet */
}
END_TEST

START_TEST(formulas_are_listed)
{
    ck_assert_int_eq(RUN("list", "gates"), 0);
    ck_assert_ptr_nonnull(strstr(output, "1 / (1 + exp(-r_ti))"));
    static const char *const topics[][3] = {
        {"gates", "gate", "gate"}, {"norms", "norm", "norm"}, {"sources", "source", "input.source"}};
    for (size_t i = 0; i < COUNT(topics); i++) { /* each value that the field may have, and no other */
        char joined[400] = "";
        size_t row;
        json_t *each;
        ck_assert_int_eq(RUN("list", topics[i][0], "--format", "json"), 0);
        json_t *rows = parse_output();
        json_array_foreach(rows, row, each)
        {
            ck_assert(json_string_length(json_object_get(each, "formula")) > 9);
            snprintf(joined + strlen(joined), sizeof joined - strlen(joined), "%s%s", row ? "|" : "",
                     json_string_value(json_object_get(each, topics[i][1])));
        }
        json_decref(rows);
        ck_assert_int_eq(RUN("list", "fields", "--format", "json"), 0);
        rows = parse_output();
        json_array_foreach(rows, row, each)
        {
            if (strcmp(json_string_value(json_object_get(each, "field")), topics[i][2]) == 0)
                ck_assert_str_eq(json_string_value(json_object_get(each, "type")), joined);
        }
        json_decref(rows);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("terminal");
    TCase *tests = add_case(suite, "what people see");
    tcase_add_checked_fixture(tests, make_files, remove_all);
    tcase_add_test(tests, no_line_is_wider_than_a_terminal);
    tcase_add_test(tests, no_help_is_wider_than_a_terminal);
    tcase_add_test(tests, tables_are_as_wide_as_the_terminal);
    tcase_add_test(tests, a_pipe_gets_no_colours);
    tcase_add_test(tests, a_terminal_gets_colours);
    tcase_add_test(tests, completion_knows_each_option);
    tcase_add_test(tests, completion_knows_commands_and_names);
    tcase_add_test(tests, what_people_type_is_understood);
    tcase_add_test(tests, formulas_are_listed);
    return run_suite(suite);
}
