/* test_sample.c: `etref sample`, `etref eval` and `etref compare` as a user runs them. That the cache changes no bit
 * is test_gpt.c's to show; here: what is drawn is a function of the options, what is printed are
 * whole characters, and what is measured is what the run itself has logged.
 */
#include "etref/safetensors.h"
#include "tests/run_tool.h"

#include <math.h>

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

/* ---- eval ---- */

static double number(const json_t *object, const char *key)
{
    const json_t *v = json_object_get(object, key);
    ck_assert_msg(json_is_number(v), "no %s", key);
    return json_number_value(v);
}

/* The last evaluation in the run's log. */
static double logged(void)
{
    static char line[1 << 14];
    double loss = -1;
    FILE *file = fopen(in_folder("run/log.jsonl"), "r");
    ck_assert_ptr_nonnull(file);
    while (fgets(line, sizeof line, file) != NULL) {
        json_t *object = json_loads(line, 0, NULL);
        if (json_object_get(object, "held_out_loss")) loss = number(object, "held_out_loss");
        json_decref(object);
    }
    fclose(file);
    return loss;
}

#define EVAL(...)                                                                                  \
    RUN("eval", in_folder("run/final.safetensors"), "--text", in_folder("text"), __VA_ARGS__)

static void check_evaluation(const char *rule)
{
    json_t *v, *row;
    size_t i;
    double sum = 0, tokens = 0;
    train_on("abcdefghij", rule);
    ck_assert_int_eq(EVAL("--format", "json"), 0);
    v = parse_output();
    ck_assert(number(v, "loss") == logged());
    ck_assert(fabs(number(v, "bits_per_byte") * log(2) - number(v, "loss")) < 1e-12);
    json_array_foreach(json_object_get(v, "positions"), i, row)
    {
        double count = number(row, "to") - number(row, "from") + 1;
        sum += count * number(row, "loss");
        tokens += count;
        ck_assert((json_object_get(row, "fanout") != NULL) == (strcmp(rule, "dense") != 0));
    }
    ck_assert(tokens == 12 && fabs(sum / tokens - number(v, "loss")) < 1e-6);
    ck_assert_uint_eq(json_array_size(json_object_get(v, "layers")), strcmp(rule, "dense") != 0);
    /* Only expert choice is routed otherwise in training. */
    ck_assert((fabs(number(v, "gap")) > 0) == (strcmp(rule, "ec") == 0));
    json_decref(v);
    ck_assert_int_eq(EVAL("--batches", "1"), 0);
    ck_assert_ptr_nonnull(strstr(output, "bits per byte, on 48 tokens"));
    ck_assert_ptr_nonnull(strstr(output, "8 to 11"));
}

START_TEST(evaluations_are_those_of_the_log)
{
    check_evaluation("dense");
    check_evaluation("ec");
    check_evaluation("et");
    expect_failure(RUN("eval", in_folder("run/final.safetensors")), 2, "--text");
    expect_failure(RUN("eval", in_folder("run/final.safetensors"), "--text", folder), 2, "regular");
    expect_failure(RUN("eval", "/nosuch", "--text", in_folder("text")), 2, "/nosuch");
}
END_TEST

/* What is written of every token adds up to what is printed; a token passes where its logit does. */
static void check_tensor(const et_tensor_file *f, const char *name, size_t count, double *values)
{
    et_error error;
    const et_tensor_info *t = et_tensor_file_find(f, name);
    ck_assert_ptr_nonnull(t);
    ck_assert_uint_eq(t->count, count);
    ck_assert_int_eq(et_tensor_file_read(f, t, 0, count, values, &error), ET_OK);
}

START_TEST(tokens_add_up_to_the_evaluation)
{
    enum { N = 2 * 48, n = 4 };
    static double token[N], loss[N], mask[N * n], logits[N * n];
    et_tensor_file file;
    et_error error;
    double sum = 0, usage[n] = {0}, least[n], most[n];
    train_on("abcdabcdabcdabcd", "et"); /* 3200 bytes: three batches are held out */
    ck_assert_int_eq(
        EVAL("--batches", "2", "--per-token", in_folder("each.safetensors"), "--format", "json"),
        0);
    json_t *v = parse_output(), *layer = json_array_get(json_object_get(v, "layers"), 0);
    ck_assert_int_eq(et_tensor_file_open(&file, in_folder("each.safetensors"), &error), ET_OK);
    ck_assert_uint_eq(file.tensor_count, 4); /* layer 0 is dense */
    check_tensor(&file, "token", N, token);
    check_tensor(&file, "loss", N, loss);
    check_tensor(&file, "mask.1", N * n, mask);
    check_tensor(&file, "logits.1", N * n, logits);
    et_tensor_file_close(&file);
    for (size_t i = 0; i < n; i++) least[i] = INFINITY, most[i] = -INFINITY;
    for (size_t t = 0; t < N; t++) {
        ck_assert_int_eq((int)token[t], "abcd"[t % 4]);
        sum += loss[t] / N;
        for (size_t i = 0; i < n; i++) {
            bool taken = mask[t * n + i] != 0;
            usage[i] += taken / (double)N;
            if (taken) least[i] = fmin(least[i], logits[t * n + i]);
            if (!taken) most[i] = fmax(most[i], logits[t * n + i]);
        }
    }
    ck_assert_double_eq_tol(sum, number(v, "loss"), 1e-6);
    for (size_t i = 0; i < n; i++) {
        const json_t *want = json_array_get(json_object_get(layer, "usage"), i);
        ck_assert_double_eq_tol(usage[i], json_real_value(want), 1e-12);
        ck_assert_msg(most[i] < least[i], "expert %zu: %g is taken, %g is not", i, least[i],
                      most[i]);
    }
    json_decref(v);
    expect_failure(EVAL("--per-token", "/nosuch/each"), 2, "/nosuch/each");
    ck_assert_int_eq(remove(in_folder("each.safetensors")), 0);
}
END_TEST

/* ---- compare ---- */

static int compare(const char *a, const char *b)
{
    static char first_path[MAX_OUTPUT];
    snprintf(first_path, sizeof first_path, "%s", in_folder(a));
    return RUN("compare", first_path, in_folder(b), "--text", in_folder("text"), "--format",
               "json");
}

/* Of the models' one MoE layer. */
static double compared(const char *a, const char *b, const char *key)
{
    ck_assert_int_eq(compare(a, b), 0);
    json_t *v = parse_output(), *layers = json_object_get(v, "layers");
    ck_assert_uint_eq(json_array_size(layers), 1);
    double value = number(json_array_get(layers, 0), key);
    json_decref(v);
    return value;
}

START_TEST(routings_are_compared)
{
    const char *now = "run/final.safetensors", *then = "then.safetensors";
    train_on("jihgfedcba", "et");
    ck_assert_int_eq(rename(in_folder(now), strcat(strcpy(first, folder), "/then.safetensors")), 0);
    train_on("abcdefghij", "et");
    ck_assert(compared(now, now, "agreement") == 1 && compared(now, now, "divergence") == 0);
    double a = compared(then, now, "choices_a"), b = compared(then, now, "choices_b");
    double both = compared(then, now, "agreement");
    double shared = both * (a + b) / (1 + both); /* choices: a whole number of them */
    ck_assert_msg(0 < shared && shared < a && shared < b, "%g of %g and %g", shared, a, b);
    ck_assert(fabs(shared - round(shared)) < 1e-9);
    ck_assert(compared(now, then, "agreement") == both);
    ck_assert(compared(then, now, "divergence") > 0);
    train_on("abcdefghij", "dense");
    expect_failure(compare(now, now), 2, "dense");
    expect_failure(compare(then, now), 2, "layer 1 has 4 experts");
    expect_failure(RUN("compare", in_folder(now)), 2, "two checkpoints");
    ck_assert_int_eq(remove(in_folder(then)), 0);
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
    tcase_add_test(tests, evaluations_are_those_of_the_log);
    tcase_add_test(tests, tokens_add_up_to_the_evaluation);
    tcase_add_test(tests, routings_are_compared);
    return run_suite(suite);
}
