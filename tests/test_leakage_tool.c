/* test_leakage_tool.c: `etref leakage`, run as a child process as a user would run it: bounds, numbers of
 * labels, the codec. (Audits: test_audit_tool.c; the study: test_study_tool.c.)
 *
 * The mathematics is tested in test_leakage.c, test_labels.c and test_codec.c; here it is what arrives
 * at a user: values in text, JSON and CSV, exit statuses, one line for a failure. What has a closed form
 * (the labels of the specification's table) is written down here again and compared.
 */
#include "tests/leakage_output.h"

#include <time.h>

/* ---- bound ---- */

START_TEST(the_papers_example_is_the_default)
{
    ck_assert_int_eq(LEAKAGE("bound"), 0);
    has("50.53");
    json_t *b = leakage_json(LEAKAGE("bound", "--format", "json"), 0);
    ck_assert_int_eq(whole(b, "tokens"), 1 << 19);
    ck_assert_int_eq(whole(b, "experts"), 16);
    ck_assert_int_eq(whole(b, "granularity"), 2);
    ck_assert_int_eq(whole(b, "layers"), 9);
    ck_assert_int_eq(whole(b, "select"), 1 << 16);
    close_to("G log2(E-1)", number(b, "log_refused"), 18 * log2(7));
    close_to("G log2 E", number(b, "log_expansion"), 54);
    close_to("entropy", number(b, "entropy"), 9 * 16 * (3.0 / 8 + 7.0 / 8 * log2(8.0 / 7)));
    close_to("b bits", number(b, "cutoff_per_token"), 9.0 * 16 * 16 / (1 << 19));
    ck_assert(fabs(number(b, "log_refused") - 50.5) < 0.05);
    ck_assert(number(b, "set_per_token") < number(b, "entropy"));
    ck_assert(number(b, "set_per_token") > number(b, "log_expansion"));
    json_decref(b);
}
END_TEST

START_TEST(a_small_bound_by_hand)
{
    /* N = 8, n = 4, G = 1: k = 2, C(8,2) = 28; three layers; (2^3 - 1) 2 + 1 = 15. */
    json_t *b = leakage_json(LEAKAGE("bound", "--tokens=8", "--experts=4", "--granularity=1",
                                     "--layers=3", "--bits=3", "--format=json"),
                             0);
    ck_assert_int_eq(whole(b, "select"), 2);
    close_to("set", number(b, "set"), log2(28));
    close_to("set per token", number(b, "set_per_token"), 1.5 * log2(28));
    close_to("ties", number(b, "tied_cutoff"), log2(15));
    close_to("ties per token", number(b, "tied_cutoff_per_token"), 1.5 * log2(15));
    json_decref(b);
}
END_TEST

START_TEST(a_sweep_in_three_forms)
{
    static csv c;
    ck_assert_int_eq(LEAKAGE("bound", "--sweep", "--tokens", "2^30"), 0);
    char *text = strdup(output);
    csv_split(&c, text);
    ck_assert_str_eq(c.line[0],
                     "tokens,experts,granularity,layers,score_bits,select,set,cutoff,tied_cutoff,"
                     "set_per_token,entropy,log_expansion,log_refused,cutoff_per_token,"
                     "tied_cutoff_per_token");
    ck_assert_uint_eq(c.lines, 1 + 28); /* 2^3, where k = 1, to 2^30 */
    json_t *rows =
        leakage_json(LEAKAGE("bound", "--sweep", "--tokens=1073741824", "--format=json"), 0);
    ck_assert_uint_eq(json_array_size(rows), 28);
    for (size_t i = 0; i < 28; i++) {
        const json_t *row = json_array_get(rows, i);
        ck_assert_int_eq(whole(row, "tokens"), INT64_C(8) << i);
        ck_assert(value(&c, i + 1, 0) == (double)whole(row, "tokens"));
        ck_assert(value(&c, i + 1, 9) == number(row, "set_per_token"));
        ck_assert(value(&c, i + 1, 14) == number(row, "tied_cutoff_per_token"));
        if (i == 0) continue;
        ck_assert(value(&c, i + 1, 9) > value(&c, i, 9));   /* to its limit */
        ck_assert(value(&c, i + 1, 14) < value(&c, i, 14)); /* to 0 */
    }
    json_decref(rows);
    free(text);
    ck_assert_int_eq(LEAKAGE("bound", "--sweep", "--format=text"), 0);
    has("with ties/token");
    has("524288");
}
END_TEST

START_TEST(bound_refuses)
{
    expect_failure(LEAKAGE("bound", "--tokens", "0"), 2, "--tokens 0: a whole number from 1");
    expect_failure(LEAKAGE("bound", "--tokens", "2^41"), 2, "--tokens 2^41");
    expect_failure(LEAKAGE("bound", "--tokens", "1e6"), 2, "--tokens 1e6");
    expect_failure(LEAKAGE("bound", "--tokens", "99999999999999999999"), 2, "--tokens 999");
    expect_failure(LEAKAGE("bound", "--bits", "65"), 2, "0 to 64");
    expect_failure(LEAKAGE("bound", "--experts", "4", "--granularity", "5"), 2, "--experts");
    expect_failure(LEAKAGE("bound", "--sweep", "--tokens", "7"), 2, "begins at 8");
    expect_failure(LEAKAGE("bound", "7"), 2, "stands alone");
    expect_failure(LEAKAGE("bound", "--format", "xml"), 2, "text|json|csv");
}
END_TEST

/* ---- exact ---- */

/* Section 8's table: N, k, labels for 2 to 8 levels. */
typedef struct known_row {
    const char *rule;
    int tokens, select, labels[7];
} known_row;

static const known_row KNOWN[] = {
    {"topk", 4, 2, {3, 5, 6, 6, 6, 6, 6}},      {"threshold", 4, 2, {2, 3, 4, 5, 6, 6, 6}},
    {"topk", 5, 2, {3, 5, 7, 8, 9, 10, 10}},    {"threshold", 5, 2, {2, 3, 4, 5, 6, 7, 8}},
    {"topk", 6, 3, {4, 7, 10, 12, 14, 16, 17}}, {"threshold", 6, 3, {2, 3, 4, 5, 6, 7, 8}},
};

START_TEST(the_specifications_table)
{
    static csv c;
    ck_assert_int_eq(LEAKAGE("exact", "--table"), 0);
    has("6, 3  topk         4    7   10   12   14   16   17      20");
    json_t *rows = leakage_json(LEAKAGE("exact", "--table", "--format=json"), 0);
    ck_assert_uint_eq(json_array_size(rows), COUNT(KNOWN));
    ck_assert_int_eq(LEAKAGE("exact", "--table", "--format=csv"), 0);
    char *text = strdup(output);
    csv_split(&c, text);
    ck_assert_uint_eq(c.lines, 1 + 7 * COUNT(KNOWN));
    for (size_t i = 0; i < COUNT(KNOWN); i++) {
        const json_t *row = json_array_get(rows, i), *labels = json_object_get(row, "labels");
        ck_assert_str_eq(word(row, "rule"), KNOWN[i].rule);
        ck_assert_int_eq(whole(row, "tokens"), KNOWN[i].tokens);
        ck_assert_int_eq(whole(row, "select"), KNOWN[i].select);
        for (int M = 2; M <= 8; M++) {
            const char levels[] = {(char)('0' + M), '\0'};
            ck_assert_int_eq(whole(labels, levels), KNOWN[i].labels[M - 2]);
            size_t line = 1 + 7 * i + (size_t)(M - 2);
            ck_assert_str_eq(field(&c, line, 0), KNOWN[i].rule);
            ck_assert(value(&c, line, 3) == M && value(&c, line, 6) == KNOWN[i].labels[M - 2]);
        }
    }
    json_decref(rows);
    free(text);
}
END_TEST

START_TEST(tables_of_other_sizes)
{
    ck_assert_int_eq(LEAKAGE("exact", "--table", "--tokens=50", "--select=48"), 0);
    has("1225"); /* C(50,48), a product of two factors and not of 48 */
    ck_assert_int_eq(LEAKAGE("exact", "--table", "--tokens=2^31", "--select=2^30"), 0);
    has("2^2147483632.2"); /* C(2N,N) = 4^N / sqrt(pi N): 2^31 - (30 + log2 pi) / 2 bits */
    ck_assert_int_eq(LEAKAGE("exact", "--table", "--tokens=4", "--select=2", "--rule=et-capacity"),
                     0);
    has("4, 2  et-capacity    2    4    4");
}
END_TEST

static json_t *exact(const char *rule, const char *N, const char *k, const char *M)
{
    return leakage_json(LEAKAGE("exact", "--rule", rule, "--tokens", N, "--select", k, "--levels",
                                M, "--format", "json"),
                        0);
}

START_TEST(points_where_the_bound_is_not_met)
{
    static const struct {
        const char *N, *k, *M;
        int labels, bound;
    } points[] = {{"24", "12", "64", 706, 757},
                  {"32", "8", "256", 1810, 2041},
                  {"64", "16", "64", 994, 1009},
                  {"256", "16", "256", 4066, 4081}};
    for (size_t i = 0; i < COUNT(points); i++) {
        time_t begun = time(NULL);
        json_t *a = exact("topk", points[i].N, points[i].k, points[i].M);
        ck_assert_int_eq(whole(a, "labels"), points[i].labels);
        ck_assert_int_eq(whole(a, "bound_labels"), points[i].bound);
        close_to("bits", number(a, "bits"), log2(points[i].labels));
        ck_assert(json_is_false(json_object_get(a, "attained")));
        ck_assert(difftime(time(NULL), begun) < 10);
        json_decref(a);
    }
    ck_assert_int_eq(LEAKAGE("exact", "--tokens=64", "--select=16", "--bits=6"), 0);
    has("994 labels");
    has("the bound is not attained");
}
END_TEST

START_TEST(causal_rules_need_one_label)
{
    static const struct {
        const char *rule;
        int labels, bound;
    } rules[] = {
        {"tc", 1, 1}, {"et", 1, 1}, {"threshold", 3, 3}, {"topk", 5, 5}, {"et-capacity", 4, 5}};
    for (size_t i = 0; i < COUNT(rules); i++) {
        json_t *a = exact(rules[i].rule, "4", "2", "3");
        ck_assert_str_eq(word(a, "rule"), rules[i].rule);
        ck_assert_int_eq(whole(a, "labels"), rules[i].labels);
        ck_assert_int_eq(whole(a, "bound_labels"), rules[i].bound);
        ck_assert((rules[i].labels == 1) == (number(a, "bits") == 0));
        json_decref(a);
    }
    ck_assert_int_eq(
        LEAKAGE("exact", "--tokens=4", "--select=2", "--levels=3", "--rule=et-capacity"), 0);
    has("2 bits");
}
END_TEST

/* Two sequences conflict if they agree in all scores up to a decision in which they differ. */
static bool conflict(const json_t *a, const json_t *b)
{
    const json_t *x = json_object_get(a, "scores"), *y = json_object_get(b, "scores"),
                 *z = json_object_get(a, "taken"), *w = json_object_get(b, "taken");
    for (size_t t = 0; t < json_array_size(x); t++) {
        if (!json_equal(json_array_get(x, t), json_array_get(y, t))) return false;
        if (!json_equal(json_array_get(z, t), json_array_get(w, t))) return true;
    }
    return false;
}

START_TEST(the_smallest_counterexample)
{
    ck_assert_int_eq(LEAKAGE("exact", "--search"), 0);
    has("N = 3 tokens, k = 2, scores of b = 1 bit: 3 labels, 1.584962501 bits");
    json_t *found = leakage_json(LEAKAGE("exact", "--search", "--format=json"), 0);
    json_t *rows = json_object_get(found, "sequences");
    ck_assert_int_eq(whole(found, "tokens"), 3);
    ck_assert_int_eq(whole(found, "select"), 2);
    ck_assert_int_eq(whole(found, "score_bits"), 1);
    ck_assert_int_eq(whole(found, "labels"), 3);
    ck_assert_uint_eq(json_array_size(rows), 3);
    for (size_t i = 0; i < 3; i++)
        for (size_t j = 0; j < i; j++)
            ck_assert(conflict(json_array_get(rows, i), json_array_get(rows, j)));
    json_decref(found);
}
END_TEST

START_TEST(exact_refuses)
{
    expect_failure(LEAKAGE("exact"), 2, "--tokens, --select and --levels");
    expect_failure(LEAKAGE("exact", "--tokens", "4"), 2, "belong together");
    expect_failure(LEAKAGE("exact", "--tokens=4", "--select=5", "--levels=3"), 2, "--select 5");
    expect_failure(LEAKAGE("exact", "--tokens=4", "--select=2", "--levels=0"), 2, "--levels 0");
    expect_failure(LEAKAGE("exact", "--tokens=4", "--select=2", "--levels=4", "--bits=2"), 2,
                   "give one");
    expect_failure(LEAKAGE("exact", "--tokens=4", "--select=2", "--levels=3", "--capacity=1"), 2,
                   "add --rule et-capacity");
    expect_failure(LEAKAGE("exact", "--tokens=4", "--select=2", "--levels=3", "--rule=et-capacity",
                           "--capacity=x"),
                   2, "--capacity x");
    expect_failure(LEAKAGE("exact", "--tokens=4", "--select=2", "--levels=3", "--rule=et-capacity",
                           "--passing=4"),
                   2, "--passing 4");
    expect_failure(
        LEAKAGE("exact", "--tokens=60000", "--select=1000", "--levels=65536", "--rule=et-capacity"),
        2, "choose fewer levels");
    expect_failure(LEAKAGE("exact", "--search", "--table"), 2, "give it alone");
    expect_failure(LEAKAGE("exact", "--search", "--format=csv"), 2, "text or json");
    expect_failure(LEAKAGE("exact", "--table", "--levels=3"), 2, "leave out --levels");
    expect_failure(LEAKAGE("exact", "--rule", "top"), 2, "topk|threshold|tc|et|et-capacity");
}
END_TEST

/* ---- encode, decode, reach ---- */

/* The cutoff goes through a file: a command line would do, but a pipe is a file, too. */
static void round_trip(const char *selection)
{
    ck_assert_int_eq(LEAKAGE("encode", selection, "--quiet"), 0);
    write_text("cutoff", output);
    ck_assert_int_eq(LEAKAGE("decode", in_folder("cutoff")), 0);
    ck_assert_str_eq(last_line(output), selection);
}

START_TEST(selections_survive_the_codec)
{
    static const char *const selections[] = {"0", "1", "01", "10", "0110100", "1111111", "0000000"};
    char longer[301] = "";
    for (size_t i = 0; i < COUNT(selections); i++) round_trip(selections[i]);
    for (size_t t = 0; t < 300; t++) longer[t] = t * t % 7 < 3 ? '1' : '0';
    round_trip(longer);
    write_text("selection", longer);
    ck_assert_int_eq(LEAKAGE("encode", in_folder("selection"), "--quiet"), 0);
    ck_assert_int_eq(LEAKAGE("decode", last_line(output), "--format=json"), 0);
    json_t *back = parse_output();
    ck_assert_str_eq(word(back, "selection"), longer);
    json_decref(back);
}
END_TEST

/* Dyadic numbers of any length, digits not given being 0, are ordered as strings are, but that
 * trailing zeros count for nothing; no score has any. */
/* All scores of a long selection: half a billion digits, which nobody need hold together. */
START_TEST(many_scores_take_little_memory)
{
    enum { DIGITS = 1 << 15 };
    static char digits[DIGITS + 1];
    const char *name = in_folder("long");
    for (size_t i = 0; i < DIGITS; i++) digits[i] = i % 3 == 0 ? '1' : '0';
    write_text("long", digits);
    static const char *const formats[] = {"text", "json"};
    for (size_t f = 0; f < COUNT(formats); f++) {
        const char *const words[] = {"leakage",  "encode", "--all", "--format",
                                     formats[f], name,     NULL};
        FILE *out = tmpfile(), *err = tmpfile();
        struct rusage use;
        int status;
        pid_t child = start(words, &(setting){.output = "/dev/null"}, out, err);
        ck_assert_int_eq(wait4(child, &status, 0, &use), child);
        fclose(out);
        fclose(err);
        ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        ck_assert_msg(use.ru_maxrss < 200000, "%s: %ld KB", formats[f], use.ru_maxrss);
    }
    unlink(name);
}
END_TEST

START_TEST(taken_scores_lie_above_the_cutoff)
{
    const char *selection = "011010011100001";
    json_t *report = leakage_json(LEAKAGE("encode", selection, "--format=json"), 0);
    const json_t *scores = json_object_get(report, "scores");
    const char *cutoff = word(report, "cutoff");
    ck_assert_str_eq(word(report, "selection"), selection);
    ck_assert_int_eq(whole(report, "select"), 7);
    ck_assert_uint_eq(json_array_size(scores), strlen(selection));
    for (size_t t = 0; t < strlen(selection); t++) {
        const char *score = json_string_value(json_array_get(scores, t));
        ck_assert_uint_eq(strlen(score), t + 1);
        size_t shared = strspn(cutoff, "01");
        ck_assert_uint_eq(shared, strlen(selection));
        ck_assert_int_eq(strcmp(score, cutoff) > 0, selection[t] == '1');
    }
    json_decref(report);
    ck_assert_int_eq(LEAKAGE("encode", "0110100"), 0);
    has("cutoff  0.1001011");
    has("    4      1  0.10011\n");
}
END_TEST

START_TEST(each_type_breaks_where_it_must)
{
    static const struct {
        const char *type;
        size_t significand, smallest;
    } types[] = {{"f64", 53, 1074}, {"f32", 24, 149}, {"f16", 11, 24}, {"bf16", 8, 133}};
    json_t *rows = leakage_json(LEAKAGE("reach", "--format=json"), 0);
    ck_assert_uint_eq(json_array_size(rows), COUNT(types));
    for (size_t i = 0; i < COUNT(types); i++) {
        char selection[64] = "0", tokens[8];
        const json_t *row = json_array_get(rows, i);
        size_t p = types[i].significand;
        ck_assert_str_eq(word(row, "precision"), types[i].type);
        ck_assert_int_eq(whole(row, "every"), (json_int_t)p);
        ck_assert_int_eq(whole(row, "some"), (json_int_t)types[i].smallest);
        /* Refused, then taken to the end: p tokens survive, p + 1 do not. */
        memset(selection + 1, '1', p - 1);
        json_t *fine = leakage_json(
            LEAKAGE("encode", selection, "--precision", types[i].type, "--format=json"), 0);
        ck_assert_int_eq(whole(fine, "carried"), (json_int_t)p);
        ck_assert_int_eq(whole(fine, "chosen_differently") + whole(fine, "decoded_differently"), 0);
        json_decref(fine);
        ck_assert_int_eq(LEAKAGE("encode", selection, "--precision", types[i].type, "--quiet"), 0);
        snprintf(tokens, sizeof tokens, "%zu", p);
        ck_assert_int_eq(
            LEAKAGE("decode", last_line(output), "--precision", types[i].type, "--tokens", tokens),
            0);
        ck_assert_str_eq(last_line(output), selection);
        selection[p] = '1';
        json_t *lost = leakage_json(
            LEAKAGE("encode", selection, "--precision", types[i].type, "--format=json"), 1);
        ck_assert_int_eq(whole(lost, "carried"), (json_int_t)p);
        ck_assert_int_gt(whole(lost, "chosen_differently") + whole(lost, "decoded_differently"), 0);
        json_decref(lost);
        ck_assert_int_eq(LEAKAGE("encode", selection, "--precision", types[i].type), 1);
        has("wrong");
        has("neighbours");
    }
    json_decref(rows);
    ck_assert_int_eq(LEAKAGE("reach"), 0);
    has("bf16                 8    2^-133                8             133");
}
END_TEST

START_TEST(the_codec_refuses)
{
    write_text("letters", "01a10");
    write_text("empty", "");
    expect_failure(LEAKAGE("encode"), 2, "a selection belongs here");
    expect_failure(LEAKAGE("encode", "01", "10"), 2, "one selection at a time");
    expect_failure(LEAKAGE("encode", "01a"), 2, "'01a' is neither a string of 0 and 1 nor a file");
    expect_failure(LEAKAGE("encode", ""), 2, "'' is neither");
    expect_failure(LEAKAGE("encode", in_folder("letters")), 2, "digit 2 is 'a'");
    expect_failure(LEAKAGE("encode", in_folder("empty")), 2, "no digits");
    expect_failure(LEAKAGE("encode", "--mask", "x"), 2, "belong together");
    expect_failure(LEAKAGE("encode", "01", "--mask", "x", "--expert", "0"), 2, "given twice");
    expect_failure(LEAKAGE("encode", "--mask", "x", "--expert", "0"), 2, "x: cannot open");
    expect_failure(LEAKAGE("encode", "01", "--precision", "f8"), 2, "f64|f32|f16|bf16");
    expect_failure(LEAKAGE("decode"), 2, "one cutoff belongs here");
    expect_failure(LEAKAGE("decode", "0.5", "--precision", "f64"), 2, "belong together");
    expect_failure(LEAKAGE("decode", "half", "--precision=f64", "--tokens=4"), 2, "'half'");
    expect_failure(LEAKAGE("decode", "01", "--precision=f64", "--tokens=0"), 2, "--tokens 0");
    expect_failure(LEAKAGE("reach", "f64"), 2, "stands alone");
    expect_failure(LEAKAGE("encode", "01", "--quiet", "--format=json"), 2, "--format json");
    write_text("two", "01\n10\n");
    expect_failure(LEAKAGE("encode", in_folder("two")), 2, "more than one word");
    FILE *zero = fopen(in_folder("zero"), "wb");
    fwrite("01\0x", 1, 4, zero);
    fclose(zero);
    expect_failure(LEAKAGE("encode", in_folder("zero")), 2, "a zero byte");
    expect_failure(LEAKAGE("decode", "nan", "--precision=f32", "--tokens=4"), 2, "from 0 to 1");
    expect_failure(LEAKAGE("decode", "5", "--precision=f32", "--tokens=4"), 2, "from 0 to 1");
    expect_failure(LEAKAGE("decode", "0.3", "--precision=bf16", "--tokens=4"), 2, "no cutoff");
    expect_failure(LEAKAGE("decode", "--precision=bf16", "--tokens=4", "--", "-0.5"), 2,
                   "no cutoff");
}
END_TEST

/* ---- the command ---- */

START_TEST(the_command_names_its_parts)
{
    static const char *const parts[] = {"bound", "exact", "encode", "decode",
                                        "reach", "audit", "study"};
    expect_failure(RUN("leakage"), 2, "bound, exact, encode");
    expect_failure(LEAKAGE("audti"), 2, "did you mean 'audit'");
    for (size_t i = 0; i < COUNT(parts); i++) {
        ck_assert_int_eq(LEAKAGE(parts[i], "--help"), 0);
        has(parts[i]);
        expect_failure(LEAKAGE(parts[i], "--nosuch"), 2, "unknown option '--nosuch'");
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("leakage tool");
    TCase *plain = add_case(suite, "numbers"), *codec = add_case(suite, "codec");
    tcase_add_test(plain, the_command_names_its_parts);
    tcase_add_test(plain, the_papers_example_is_the_default);
    tcase_add_test(plain, a_small_bound_by_hand);
    tcase_add_test(plain, a_sweep_in_three_forms);
    tcase_add_test(plain, bound_refuses);
    tcase_add_test(plain, the_specifications_table);
    tcase_add_test(plain, tables_of_other_sizes);
    tcase_add_test(plain, points_where_the_bound_is_not_met);
    tcase_add_test(plain, causal_rules_need_one_label);
    tcase_add_test(plain, the_smallest_counterexample);
    tcase_add_test(plain, exact_refuses);
    tcase_add_checked_fixture(codec, make_folder, remove_all);
    tcase_add_test(codec, selections_survive_the_codec);
    tcase_add_test(codec, many_scores_take_little_memory);
    tcase_add_test(codec, taken_scores_lie_above_the_cutoff);
    tcase_add_test(codec, each_type_breaks_where_it_must);
    tcase_add_test(codec, the_codec_refuses);
    return run_suite(suite);
}
