/* test_sample.c: `etref sample` as a user runs it. That the cache changes no bit is test_gpt.c's to
 * show; here: what is drawn is a function of the options, and what is printed are whole characters.
 */
#include "tests/run_tool.h"

static const char config[] = "{\"engine\": \"plain\", \"heads\": 2, \"sequence\": 12, \"batch\": 4,"
                             " \"d_model\": 16, \"layers\": 2, \"steps\": 40,"
                             " \"ffn\": {\"experts\": 4, \"ema_decay\": 0.5}}";

/* A model of 40 steps on `text`, over and over, in the folder. */
static void train_on(const char *text, const char *rule)
{
    char command[5000];
    snprintf(command, sizeof command, "rm -rf '%s'", in_folder("run"));
    ck_assert_int_eq(system(command), 0);
    FILE *file = fopen(in_folder("text"), "w");
    ck_assert_ptr_nonnull(file);
    for (int i = 0; i < 200; i++) fputs(text, file);
    ck_assert_int_eq(fclose(file), 0);
    write_text("config.json", config);
    ck_assert_int_eq(RUN("train", "--text", in_folder("text"), "--config", in_folder("config.json"),
                         "--rule", rule, "--out", in_folder("run")),
                     0);
}

static void remove_run(void)
{
    char command[5000];
    snprintf(command, sizeof command, "rm -rf '%s'", in_folder("run"));
    ck_assert_int_eq(system(command), 0);
    remove_all();
}

#define SAMPLE(...) RUN("sample", in_folder("run/final.safetensors"), __VA_ARGS__)

static char first[MAX_OUTPUT];

static void keep(void)
{
    memcpy(first, output, strlen(output) + 1);
}

/* Prompt, bytes, end of line; longer than the model's longest sequence. */
START_TEST(draws_are_a_function_of_the_options)
{
    train_on("abcd", "et");
    ck_assert_int_eq(
        SAMPLE("--prompt", "abcdabcdabcdabcdab", "--length", "50", "--temperature", "0"), 0);
    ck_assert_uint_eq(strlen(output), 18 + 50 + 1);
    ck_assert_ptr_eq(strstr(output, "abcdabcdabcdabcdab"), output);
    ck_assert_msg(strstr(output + 18, "cdabcdabcdab") != NULL, "it has not learnt: %s", output);
    keep();
    ck_assert_int_eq(SAMPLE("--prompt", "abcdabcdabcdabcdab", "--length", "50", "--temperature",
                            "0", "--seed", "7", "--no-color"),
                     0);
    ck_assert_str_eq(output, first); /* the likeliest needs no draw */
    ck_assert_int_eq(SAMPLE("--prompt", "abcdabcdabcdabcdab", "--length", "50", "--top-p", "0"), 0);
    ck_assert_str_eq(output, first); /* nor the smallest set */
    ck_assert_int_eq(SAMPLE("--temperature", "3", "--top-p", "1", "--seed", "7"), 0);
    keep();
    ck_assert_int_eq(SAMPLE("--temperature", "3", "--top-p", "1", "--seed", "7"), 0);
    ck_assert_str_eq(output, first);
    ck_assert_int_eq(SAMPLE("--temperature", "3", "--top-p", "1", "--seed", "8"), 0);
    ck_assert_str_ne(output, first);
}
END_TEST

/* Colours only where they are wanted, and they end; the text between them is the same. */
START_TEST(colours_show_the_fanout)
{
    train_on("abcd", "et");
    ck_assert_int_eq(SAMPLE("--prompt", "abcd", "--length", "30"), 0);
    ck_assert_ptr_null(strchr(output, '\033')); /* a file is no terminal */
    keep();
    ck_assert_int_eq(SAMPLE("--prompt", "abcd", "--length", "30", "--color"), 0);
    ck_assert_ptr_eq(strstr(output, "experts of a token"), output);
    char *text = strchr(output, '\n') + 1, *to = text;
    ck_assert_ptr_nonnull(strstr(text, "\033[38;5;16;48;5;"));
    for (char *c = text; *c; c++) {
        if (*c != '\033') *to++ = *c;
        if (*c == '\033') c = strchr(c, 'm');
    }
    *to = '\0';
    ck_assert_str_eq(text, first);
    train_on("abcd", "dense"); /* has none to show */
    ck_assert_int_eq(SAMPLE("--color", "--length", "5"), 0);
    ck_assert_ptr_null(strchr(output, '\033'));
}
END_TEST

/* Characters of two, three and four bytes; whatever is drawn, what is printed is UTF-8 without
 * control characters. */
START_TEST(characters_are_whole)
{
    train_on("\xc3\xa9\xe2\x82\xac\xf0\x9f\x99\x82\x01", "ec");
    ck_assert_int_eq(SAMPLE("--prompt", "\xe2\x82\xac\xf0\x9f\x99\x82\xff\xc3", "--length", "300",
                            "--temperature", "5", "--top-p", "1", "--color"),
                     0);
    json_t *text = json_string(output);
    ck_assert_msg(text != NULL, "not UTF-8");
    json_decref(text);
    ck_assert_ptr_nonnull(strstr(output, "\xe2\x82\xac"));
    ck_assert_ptr_nonnull(strchr(output, '?'));
    for (const char *c = output; *c; c++)
        ck_assert((unsigned char)*c >= 0x20 || *c == '\n' || *c == '\t' || *c == '\033');
}
END_TEST

START_TEST(bad_options_are_refused)
{
    train_on("abcd", "ec");
    expect_failure(RUN("sample"), 2, "one checkpoint");
    expect_failure(RUN("sample", "/nosuch"), 2, "/nosuch");
    expect_failure(RUN("sample", in_folder("text")), 2, "text");
    expect_failure(SAMPLE("--temperature", "-1"), 2, "--temperature -1");
    expect_failure(SAMPLE("--temperature", "hot"), 2, "hot");
    expect_failure(SAMPLE("--top-p", "2"), 2, "--top-p 2");
    expect_failure(SAMPLE("--seed", "x"), 2, "--seed x");
    expect_failure(SAMPLE("--prompt", ""), 2, "--prompt");
    ck_assert_int_eq(SAMPLE("--length", "1"), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("sample");
    setenv("OMP_NUM_THREADS", "1", 1);
    TCase *tests = add_case(suite, "sample");
    tcase_add_checked_fixture(tests, make_folder, remove_run);
    tcase_add_test(tests, draws_are_a_function_of_the_options);
    tcase_add_test(tests, colours_show_the_fanout);
    tcase_add_test(tests, characters_are_whole);
    tcase_add_test(tests, bad_options_are_refused);
    return run_suite(suite);
}
