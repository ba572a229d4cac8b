/* test_leakage_tool.c: `etref leakage`, run as a child process as a user would run it.
 *
 * The mathematics is tested in test_leakage.c and test_audit.c; here it is what arrives at a user:
 * values in text, JSON and CSV, exit statuses, one line for a failure, files whole or absent. What
 * has a closed form (the labels of the specification's table, the decisions of expert choice that
 * some future changes) is written down here again and compared.
 */
#include "etref/bundle.h"
#include "tests/run_tool.h"

#include <math.h>
#include <time.h>

#define LEAKAGE(...) RUN("leakage", __VA_ARGS__)

/* ---- reading what was printed ---- */

static json_t *leakage_json(int status, int want)
{
    ck_assert_msg(status == want, "status %d, not %d: %s", status, want, errors);
    return parse_output();
}

static json_int_t whole(const json_t *object, const char *name)
{
    const json_t *value = json_object_get(object, name);
    ck_assert_msg(json_is_integer(value), "no whole number '%s'", name);
    return json_integer_value(value);
}

static double number(const json_t *object, const char *name)
{
    const json_t *value = json_object_get(object, name);
    ck_assert_msg(json_is_number(value), "no number '%s'", name);
    return json_number_value(value);
}

static const char *word(const json_t *object, const char *name)
{
    const char *value = json_string_value(json_object_get(object, name));
    ck_assert_msg(value != NULL, "no word '%s'", name);
    return value;
}

/* Fails unless |got - want| <= 1e-13 |want|: the last digits of 17. */
static void close_to(const char *what, double got, double want)
{
    ck_assert_msg(fabs(got - want) <= 1e-13 * fabs(want), "%s: got %.17g, want %.17g", what, got,
                  want);
}

static void has(const char *part)
{
    ck_assert_msg(strstr(output, part) != NULL, "no '%s' in: %s", part, output);
}

/* A CSV file or output: lines, and the fields of one. Lines end where text is cut. */
enum { MOST_LINES = 4096, MOST_FIELDS = 32 };

typedef struct csv {
    char *text, *line[MOST_LINES];
    size_t lines;
} csv;

static void csv_split(csv *c, char *text)
{
    c->text = text;
    c->lines = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        ck_assert_uint_lt(c->lines, MOST_LINES);
        c->line[c->lines++] = line;
    }
}

static char *read_file(const char *name)
{
    char *text = calloc(1, MAX_OUTPUT);
    FILE *file = fopen(in_folder(name), "r");
    ck_assert_msg(file != NULL, "no file %s", name);
    size_t length = fread(text, 1, MAX_OUTPUT - 1, file);
    ck_assert_uint_lt(length, MAX_OUTPUT - 1);
    fclose(file);
    return text;
}

static void csv_read(csv *c, const char *name, const char *head)
{
    csv_split(c, read_file(name));
    ck_assert_uint_gt(c->lines, 1);
    ck_assert_str_eq(c->line[0], head);
}

/* Field i of a line, from 0; an empty one is "". */
static const char *field(const csv *c, size_t line, size_t i)
{
    static char text[64];
    const char *at = c->line[line];
    for (; i > 0; i--) {
        at = strchr(at, ',');
        ck_assert_msg(at != NULL, "too few fields: %s", c->line[line]);
        at++;
    }
    size_t length = strcspn(at, ",");
    ck_assert_uint_lt(length, sizeof text);
    memcpy(text, at, length);
    text[length] = '\0';
    return text;
}

static double value(const csv *c, size_t line, size_t i)
{
    char *end;
    const char *text = field(c, line, i);
    double number_there = strtod(text, &end);
    ck_assert_msg(end != text && *end == '\0', "no number: '%s' in %s", text, c->line[line]);
    return number_there;
}

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
        const char *const words[] = {"leakage",  "encode",   "--all", "--format",
                                     formats[f], name, NULL};
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

/* ---- bundles ---- */

#define SIZES  "\"tokens\": 64, \"d_model\": 6, \"d_expert\": 3, \"experts\": 4"
#define NORMAL "\"input\": {\"source\": \"normal\"}"

/* After 5000 steps the moving average is what it should be: some tokens pass, some do not. */
static const char *const cases =
    "[{\"name\": \"tc\", \"rule\": \"tc\", \"top_k\": 2, " SIZES ", " NORMAL "},"
    " {\"name\": \"biased\", \"rule\": \"tc\", \"micro_batches\": 2, \"balance\": \"lossfree\", "
    "  " SIZES ", " NORMAL "},"
    " {\"name\": \"et\", \"rule\": \"et\", \"ema_updates\": 5000, " SIZES ", " NORMAL "},"
    " {\"name\": \"capacity\", \"rule\": \"et\", \"ema_updates\": 5000, \"capacity_factor\": 0.25,"
    "  " SIZES ", " NORMAL "},"
    " {\"name\": \"ec\", \"rule\": \"ec\", \"pool_tokens\": 32, " SIZES ", " NORMAL "},"
    " {\"name\": \"warm\", \"rule\": \"et\", \"warmup_steps\": 9, " SIZES ", " NORMAL "},"
    " {\"name\": \"eval\", \"rule\": \"ec\", \"mode\": \"eval\", \"ema_updates\": 5000, " SIZES
    ", " NORMAL "},"
    " {\"name\": \"column\", \"rule\": \"et\", \"ema_updates\": 5000, \"gate\": "
    "\"softmax_tokens\", " SIZES ", " NORMAL "},"
    " {\"name\": \"ffn\", \"layer\": \"dense\", \"tokens\": 7, \"d_model\": 6, \"d_expert\": 5, "
    "  " NORMAL "},"
    " {\"name\": \"single\", \"rule\": \"ec\", \"mode\": \"eval\", \"tokens\": 1, \"d_model\": 6, "
    "  \"d_expert\": 5, \"experts\": 4, \"ema_updates\": 9, " NORMAL "}]";

static const char PROSE[] =
    "A router that looks ahead is like a reader who has seen the last page: what it says of the "
    "first is no guess. Of all that a batch may know, the one thing it must not know is what comes "
    "next; a token is read, is sent to whoever will have it, and is done with. ";

static void make_bundles(void)
{
    make_folder();
    write_text("cases.json", cases);
    write_text("prose.txt", PROSE);
    int status = RUN("generate", "--case", in_folder("cases.json"), "--out", folder);
    ck_assert_msg(status == 0, "%s", errors);
}

static const char *bundle(const char *name)
{
    char file[128];
    snprintf(file, sizeof file, "%s.safetensors", name);
    return in_folder(file);
}

static const json_t *future_of(const json_t *rule, const char *name)
{
    const json_t *futures = json_object_get(rule, "futures");
    for (size_t i = 0; i < json_array_size(futures); i++)
        if (strcmp(word(json_array_get(futures, i), "future"), name) == 0)
            return json_array_get(futures, i);
    ck_abort_msg("no future %s", name);
    return NULL;
}

/* The sum over the rows of positions is the total. */
static void check_positions(const json_t *counts, json_int_t batch)
{
    const json_t *rows = json_object_get(counts, "positions");
    json_int_t compared = 0, changed = 0, next = 0;
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        ck_assert_int_eq(whole(row, "first"), next);
        next = whole(row, "last") + 1;
        compared += whole(row, "compared");
        changed += whole(row, "changed");
    }
    ck_assert_int_eq(next, batch);
    ck_assert_int_eq(compared, whole(counts, "compared"));
    ck_assert_int_eq(changed, whole(counts, "changed"));
}

/* Of t kept tokens of a pool of U, min(k,t) - max(k - (U-t), 0) decisions are open. */
static json_int_t open_decisions(const json_t *rule, json_int_t pools)
{
    const json_t *kept = json_object_get(rule, "kept");
    json_int_t U = whole(rule, "batch"), k = whole(rule, "select"), sum = 0;
    for (size_t i = 0; i < json_array_size(kept); i++) {
        json_int_t t = json_integer_value(json_array_get(kept, i)), F = U - t;
        sum += (k < t ? k : t) - (k > F ? k - F : 0);
    }
    return 4 * pools * sum; /* 4 experts */
}

static json_t *audit_json(const char *name, int status)
{
    json_t *report = leakage_json(LEAKAGE("audit", bundle(name), "--text", in_folder("prose.txt"),
                                          "--all-rules", "--format=json"),
                                  status);
    ck_assert_str_eq(word(report, "verdict"), status == 0 ? "causal" : "leaks");
    return report;
}

START_TEST(causal_bundles_never_change)
{
    static const char *const names[] = {"tc", "biased", "et", "eval", "column"};
    static const char *const futures[] = {"noise", "text", "adversary"};
    for (size_t i = 0; i < COUNT(names); i++) {
        json_t *report = audit_json(names[i], 0);
        const json_t *own = json_array_get(json_object_get(report, "rules"), 0);
        ck_assert(json_is_true(json_object_get(own, "own")));
        ck_assert(json_is_true(json_object_get(own, "causal")));
        for (size_t f = 0; f < COUNT(futures); f++) {
            const json_t *counts = future_of(own, futures[f]);
            ck_assert_int_eq(whole(counts, "changed"), 0);
            ck_assert_int_gt(whole(counts, "taken"), 0);
            ck_assert_int_gt(whole(counts, "compared"), whole(counts, "taken"));
            check_positions(counts, whole(own, "batch"));
        }
        bool column =
            strcmp(names[i], "column") == 0; /* its gates are not causal, and it says so */
        ck_assert_int_eq(json_is_true(json_object_get(report, "gates_causal")), !column);
        json_decref(report);
        ck_assert_int_eq(LEAKAGE("audit", bundle(names[i])), 0);
        ck_assert_int_eq(strstr(output, "softmax_tokens normalises") != NULL, column);
        ck_assert_int_eq(strncmp(last_line(output), "CAUSAL ", 7), 0);
    }
}
END_TEST

START_TEST(leaking_bundles_are_found)
{
    static const char *const names[] = {"ec", "warm", "capacity"};
    for (size_t i = 0; i < COUNT(names); i++) {
        json_t *report = audit_json(names[i], 1);
        const json_t *own = json_array_get(json_object_get(report, "rules"), 0);
        const json_t *any = future_of(own, "adversary");
        ck_assert(json_is_false(json_object_get(own, "causal")));
        ck_assert_int_gt(whole(any, "changed"), 0);
        ck_assert(number(future_of(own, "noise"), "share") <= number(any, "share"));
        ck_assert(number(future_of(own, "text"), "share") <= number(any, "share"));
        check_positions(any, whole(own, "batch"));
        check_positions(future_of(own, "noise"), whole(own, "batch"));
        json_decref(report);
        ck_assert_int_eq(LEAKAGE("audit", bundle(names[i]), "--bands=4", "--threads=2"), 1);
        has("changed, by the token's place in its batch");
        ck_assert_int_eq(strncmp(last_line(output), "LEAKS ", 6), 0);
    }
}
END_TEST

/* On one bundle's scores: each rule's verdict, and expert choice's closed form, by falling pool. */
START_TEST(every_rule_by_falling_batch)
{
    json_t *report = audit_json("et", 0);
    const json_t *rules = json_object_get(report, "rules");
    json_int_t pool = 256;
    size_t choices = 0, clamped = 0;
    for (size_t i = 0; i < json_array_size(rules); i++) {
        const json_t *rule = json_array_get(rules, i), *any = future_of(rule, "adversary");
        bool choice = strcmp(word(rule, "rule"), "ec") == 0;
        bool causal =
            strcmp(word(rule, "rule"), "tc") == 0 || strcmp(word(rule, "rule"), "et") == 0;
        ck_assert_int_eq(json_is_true(json_object_get(rule, "causal")), causal);
        ck_assert_int_eq(whole(any, "changed") == 0, causal);
        clamped += !choice && !causal;
        if (!choice) continue;
        choices++;
        pool = whole(rule, "batch");
        ck_assert_int_eq(whole(rule, "select"), pool / 4);
        ck_assert_int_eq(whole(any, "changed"), open_decisions(rule, 64 / pool));
    }
    ck_assert_uint_eq(choices, 3); /* 64, 16, 4 */
    ck_assert_uint_eq(clamped, 3);
    ck_assert_int_eq(pool, 4);
    json_decref(report);
    ck_assert_int_eq(LEAKAGE("audit", bundle("et"), "--all-rules", "--future=adversary"), 0);
    has("et (its own)");
}
END_TEST

START_TEST(one_future_at_a_time)
{
    json_t *report = leakage_json(LEAKAGE("audit", bundle("ec"), "--future=adversary", "--cuts=1",
                                          "--bands=2", "--format=json"),
                                  1);
    const json_t *own = json_array_get(json_object_get(report, "rules"), 0);
    ck_assert_uint_eq(json_array_size(json_object_get(own, "futures")), 1);
    ck_assert_uint_eq(json_array_size(json_object_get(own, "kept")), 1);
    /* two pools of 32, k = 8, cut in the middle: all of the 8 best kept ones are open */
    ck_assert_int_eq(whole(future_of(own, "adversary"), "changed"), 2 * 4 * 8);
    ck_assert_int_eq(whole(future_of(own, "adversary"), "compared"), 2 * 4 * 16);
    json_decref(report);
    ck_assert_int_eq(LEAKAGE("audit", bundle("et"), "--future=noise", "--draws=1"), 0);
    ck_assert_ptr_nonnull(strstr(last_line(output), "under the futures tried"));
}
END_TEST

START_TEST(nothing_to_audit_is_inconclusive)
{
    static const char *const names[] = {"ffn", "single"};
    for (size_t i = 0; i < COUNT(names); i++) {
        ck_assert_int_eq(LEAKAGE("audit", bundle(names[i])), 3);
        ck_assert_int_eq(strncmp(last_line(output), "INCONCLUSIVE ", 13), 0);
        json_t *report = leakage_json(LEAKAGE("audit", bundle(names[i]), "--format=json"), 3);
        ck_assert_str_eq(word(report, "verdict"), "inconclusive");
        json_decref(report);
    }
}
END_TEST

/* ---- two files ---- */

/* Writes in.x of one bundle and a mask [64,4] as somebody's kernel would, in F32 and I32. */
static void write_kernel(const char *name, const uint8_t *mask)
{
    int32_t values[64 * 4];
    et_error error;
    for (size_t j = 0; j < COUNT(values); j++) values[j] = mask[j];
    const et_tensor_out out = {"route.mask", ET_I32, 2, {64, 4}, values, ET_FROM_I32};
    ck_assert_msg(et_tensor_file_write(in_folder(name), &out, 1, NULL, &error) == ET_OK, "%s",
                  error.text);
}

static void read_mask(const char *name, uint8_t mask[64 * 4])
{
    double values[64 * 4];
    et_tensor_file file;
    ck_assert_int_eq(et_tensor_file_open(&file, bundle(name), NULL), ET_OK);
    const et_tensor_info *t = et_tensor_file_find(&file, "route.mask");
    ck_assert_uint_eq(t->count, COUNT(values));
    ck_assert_int_eq(et_tensor_file_read(&file, t, 0, t->count, values, NULL), ET_OK);
    for (size_t j = 0; j < COUNT(values); j++) mask[j] = values[j] != 0;
    et_tensor_file_close(&file);
}

/* NAME-other: the same case, the same first 23 tokens, and 41 others from the prose. */
static void make_twin(const char *name)
{
    char twin[64];
    snprintf(twin, sizeof twin, "%s-other", name);
    int status = LEAKAGE("audit", bundle(name), "--future=text", "--text", in_folder("prose.txt"),
                         "--twin", bundle(twin), "--cut=23");
    ck_assert_msg(status == 0, "%s", errors);
}

START_TEST(a_golden_and_its_twin)
{
    static const struct {
        const char *name, *other;
        bool leaks;
    } pairs[] = {{"tc", "tc-other", false},
                 {"et", "et-other", false},
                 {"capacity", "capacity-other", true},
                 {"ec", "ec-other", true}};
    for (size_t i = 0; i < COUNT(pairs); i++) {
        const char *verdict = pairs[i].leaks ? "leaks" : "causal";
        make_twin(pairs[i].name);
        ck_assert_int_eq(RUN("verify", "--quiet", bundle(pairs[i].other)), 0);
        json_t *report = leakage_json(
            LEAKAGE("audit", bundle(pairs[i].name), bundle(pairs[i].other), "--format=json"),
            pairs[i].leaks);
        ck_assert_str_eq(word(report, "verdict"), verdict);
        ck_assert_int_eq(whole(report, "tokens"), 64);
        ck_assert_int_eq(whole(report, "shared"), 23);
        ck_assert_int_eq(whole(report, "compared"), 23 * 4);
        ck_assert_int_eq(whole(report, "changed") > 0, pairs[i].leaks);
        check_positions(report, 23);
        json_decref(report);
        ck_assert_int_eq(LEAKAGE("audit", bundle(pairs[i].name), bundle(pairs[i].other)),
                         pairs[i].leaks);
    }
}
END_TEST

/* The twin is a golden already; generate makes the same one of its inputs. */
START_TEST(a_twin_is_generated_again)
{
    uint8_t mask[64 * 4], again[64 * 4];
    ck_assert_int_eq(
        LEAKAGE("audit", bundle("ec"), "--future=noise", "--twin", bundle("other"), "--cut=23"), 0);
    ck_assert_msg(RUN("generate", "--inputs", bundle("other"), "--out", folder) == 0, "%s", errors);
    read_mask("other", mask);
    read_mask("ec-twin-23", again);
    ck_assert_int_eq(memcmp(mask, again, sizeof mask), 0);
    ck_assert_int_eq(LEAKAGE("audit", bundle("other"), bundle("ec-twin-23")), 3); /* no future */
}
END_TEST

START_TEST(a_kernels_files)
{
    uint8_t mask[64 * 4];
    make_twin("tc");
    char *a = strdup(bundle("tc")), *b = strdup(bundle("tc-other"));
    read_mask("tc", mask);
    write_kernel("a", mask);
    mask[23 * 4 + 1] ^= 1; /* the first token that is not shared */
    write_kernel("b", mask);
    ck_assert_int_eq(LEAKAGE("audit", a, b, in_folder("a"), in_folder("b")), 0);
    mask[22 * 4 + 2] ^= 1; /* the last that is */
    write_kernel("b", mask);
    ck_assert_int_eq(LEAKAGE("audit", a, b, in_folder("a"), in_folder("b")), 1);
    has("token 22, expert 2");
    json_t *report =
        leakage_json(LEAKAGE("audit", a, b, in_folder("a"), in_folder("b"), "--format=json"), 1);
    const json_t *place = json_array_get(json_object_get(report, "first"), 0);
    ck_assert_int_eq(whole(report, "changed"), 1);
    ck_assert_int_eq(whole(place, "token"), 22);
    ck_assert_int_eq(whole(place, "expert"), 2);
    json_decref(report);
    /* the same tokens twice, and other decisions: not the future's doing, but no pass either */
    ck_assert_int_eq(LEAKAGE("audit", a, a, in_folder("a"), in_folder("b")), 1);
    has("not repeatable");
    free(a);
    free(b);
}
END_TEST

/* What one batch of EC does not see of the other proves nothing. */
START_TEST(a_cut_between_pools_is_inconclusive)
{
    make_twin("ec");
    char *a = strdup(bundle("ec")), *b = strdup(bundle("ec-other"));
    expect_failure(LEAKAGE("audit", a, "--twin", in_folder("x"), "--cut=32"), 2,
                   "between two batches of 32 tokens");
    ck_assert_int_eq(LEAKAGE("audit", a, "--future=noise", "--twin", b, "--cut=33"), 0);
    json_t *report = leakage_json(LEAKAGE("audit", a, b, "--format=json"), 1);
    ck_assert_int_eq(whole(report, "batch"), 32);
    ck_assert_int_eq(whole(report, "tested"), 4);
    json_decref(report);
    /* the same case, and 32 tokens in common: the first pool, whole */
    static double x[2][64 * 6], mask[64 * 4];
    et_tensor_file file;
    et_error error;
    ck_assert_int_eq(et_tensor_file_open(&file, a, &error), ET_OK);
    const et_tensor_info *t = et_tensor_file_find(&file, "in.x");
    ck_assert_int_eq(et_tensor_file_read(&file, t, 0, t->count, x[0], &error), ET_OK);
    memcpy(x[1], x[0], sizeof x[0]);
    x[1][32 * 6] += 1;
    mask[0] = 1;
    const char *const metadata[] = {"case", et_tensor_file_metadata(&file, "case"), NULL};
    static const char *const names[] = {"one", "other"};
    for (size_t i = 0; i < 2; i++) {
        const et_tensor_out out[] = {{"in.x", ET_F64, 2, {64, 6}, x[i], ET_FROM_F64},
                                     {"route.mask", ET_F64, 2, {64, 4}, mask, ET_FROM_F64}};
        ck_assert_int_eq(et_tensor_file_write(in_folder(names[i]), out, 2, metadata, &error),
                         ET_OK);
    }
    et_tensor_file_close(&file);
    ck_assert_int_eq(LEAKAGE("audit", in_folder("one"), in_folder("other")), 3);
    has("cut inside one");
    free(a);
    free(b);
}
END_TEST

/* Files in which nothing could ever differ, or that hold no decisions. */
START_TEST(a_kernels_strange_masks)
{
    double values[64 * 4] = {0};
    et_error error;
    const et_tensor_out mask = {"route.mask", ET_F64, 2, {64, 4}, values, ET_FROM_F64};
    const et_tensor_out few = {"route.mask", ET_F64, 2, {64, 3}, values, ET_FROM_F64};
    make_twin("ec");
    char *a = strdup(bundle("ec")), *b = strdup(bundle("ec-other"));
    const char *const names[] = {"k", "l"};
    for (size_t i = 0; i < 2; i++)
        ck_assert_int_eq(et_tensor_file_write(in_folder(names[i]), &mask, 1, NULL, &error), ET_OK);
    ck_assert_int_eq(LEAKAGE("audit", a, b, in_folder("k"), in_folder("l")), 3);
    has("nothing was decided");
    expect_failure(LEAKAGE("audit", a, b, in_folder("k"), in_folder("k")), 2, "are one file");
    ck_assert_int_eq(et_tensor_file_write(in_folder("few"), &few, 1, NULL, &error), ET_OK);
    ck_assert_int_eq(et_tensor_file_write(in_folder("few-2"), &few, 1, NULL, &error), ET_OK);
    expect_failure(LEAKAGE("audit", a, b, in_folder("few"), in_folder("few-2")), 2,
                   "decides on 3 experts");
    values[5] = 0.5;
    ck_assert_int_eq(et_tensor_file_write(in_folder("k"), &mask, 1, NULL, &error), ET_OK);
    expect_failure(LEAKAGE("audit", a, b, in_folder("k"), in_folder("l")), 2,
                   "route.mask is 0.5 at token 1, expert 1");
    free(a);
    free(b);
}
END_TEST

START_TEST(a_masks_column_is_encoded)
{
    uint8_t mask[64 * 4];
    char column[65] = "";
    read_mask("ec", mask);
    for (size_t t = 0; t < 64; t++) column[t] = mask[t * 4 + 3] ? '1' : '0';
    ck_assert_int_eq(LEAKAGE("encode", "--mask", bundle("ec"), "--expert=3", "--quiet"), 0);
    ck_assert_int_eq(LEAKAGE("decode", last_line(output)), 0);
    ck_assert_str_eq(last_line(output), column);
    expect_failure(LEAKAGE("encode", "--mask", bundle("ec"), "--expert=4"), 2, "experts 0 to 3");
    expect_failure(LEAKAGE("encode", "--mask", bundle("ffn"), "--expert=0"), 2, "no route.mask");
}
END_TEST

START_TEST(audit_refuses)
{
    char *ec = strdup(bundle("ec"));
    write_text("empty", "");
    expect_failure(LEAKAGE("audit"), 2, "no bundle given");
    expect_failure(LEAKAGE("audit", "nosuch"), 2, "nosuch: cannot open");
    expect_failure(LEAKAGE("audit", in_folder("prose.txt")), 2, "not a safetensors file");
    expect_failure(LEAKAGE("audit", ec, ec, ec), 2, "one bundle, two");
    expect_failure(LEAKAGE("audit", ec, bundle("single")), 2, "in.x is [64,6] in ");
    expect_failure(LEAKAGE("audit", ec, ec, ec, bundle("single")), 2, "route.mask is [64,4] in ");
    expect_failure(LEAKAGE("audit", ec, ec, bundle("single"), bundle("single")), 2,
                   "has 64 tokens");
    expect_failure(LEAKAGE("audit", bundle("ffn"), bundle("ffn")), 2, "has no route.mask");
    expect_failure(LEAKAGE("audit", ec, bundle("tc")), 2, "different cases");
    expect_failure(LEAKAGE("audit", ec, ec, "--cuts=3"), 2, "--bands and --format");
    expect_failure(LEAKAGE("audit", ec, "--future", "past"), 2, "noise|text|adversary");
    expect_failure(LEAKAGE("audit", ec, "--cuts", "0"), 2, "--cuts 0");
    expect_failure(LEAKAGE("audit", ec, "--cuts", "5000"), 2, "at most 4096");
    expect_failure(LEAKAGE("audit", ec, "--draws", "5000"), 2, "at most 4096");
    expect_failure(LEAKAGE("audit", ec, "--text", "nosuch"), 2, "--text nosuch: No such file");
    expect_failure(LEAKAGE("audit", ec, "--text", folder), 2, "not a regular file");
    expect_failure(LEAKAGE("audit", ec, "--text", in_folder("empty")), 2, "empty");
    expect_failure(LEAKAGE("audit", ec, "--text", in_folder("prose.txt"), "--future=noise"), 2,
                   "--text is about");
    expect_failure(LEAKAGE("audit", ec, "--cut", "3"), 2, "belong together");
    expect_failure(LEAKAGE("audit", ec, "--twin", "x"), 2, "belong together");
    expect_failure(LEAKAGE("audit", ec, "--twin", "x", "--cut=64"), 2, "64 tokens; fewer");
    expect_failure(LEAKAGE("audit", ec, "--twin", "x", "--cut=9", "--future=adversary"), 2,
                   "writes tokens");
    expect_failure(LEAKAGE("audit", ec, "--twin", "x", "--cut=9", "--format=json"), 2,
                   "audits nothing");
    expect_failure(LEAKAGE("audit", ec, "--twin", ec, "--cut=9"), 2, "the bundle itself");
    expect_failure(LEAKAGE("audit", ec, "--twin", in_folder("no/x"), "--cut=9"), 2, "folder");
    expect_failure(LEAKAGE("audit", bundle("ffn"), "--twin", "x", "--cut=3"), 2, "dense");
    ck_assert_int_eq(access("x", F_OK), -1);
    free(ec);
}
END_TEST

/* A bundle whose mask is not what its case makes of its scores is not audited as if it were. */
START_TEST(a_mask_that_is_not_the_rules_is_refused)
{
    const char *name = bundle("ec");
    et_tensor_file file;
    uint64_t header; /* its length is the file's first eight bytes; the data follow it */
    ck_assert_int_eq(et_tensor_file_open(&file, name, NULL), ET_OK);
    uint64_t offset = et_tensor_file_find(&file, "route.mask")->offset;
    et_tensor_file_close(&file);
    FILE *bytes = fopen(name, "r+b");
    ck_assert_uint_eq(fread(&header, sizeof header, 1, bytes), 1);
    long at = (long)(8 + header + offset);
    ck_assert_int_eq(fseek(bytes, at, SEEK_SET), 0);
    int byte = fgetc(bytes);
    ck_assert_int_eq(fseek(bytes, at, SEEK_SET), 0);
    fputc(byte == 0 ? 1 : 0, bytes);
    fclose(bytes);
    expect_failure(LEAKAGE("audit", name), 2, "1 decisions; 'etref verify' says where");
}
END_TEST

/* ---- study ---- */

#define STUDY "study", "--out", folder, "--tokens=1024", "--experts=4", "--batches=20"
enum { SIZES_STUDIED = 5 }; /* 64 to 1024 tokens */

static const char *const csv_names[] = {"pools.csv", "agreement.csv", "fits.csv",
                                        "start.csv", "flips.csv",     "flips-by-position.csv",
                                        "bounds.csv"};
static const char POOLS[] =
    "stream,tokens,select,cutoff_mean,cutoff_std,gap_std,load_mean,load_std,load_least,load_most,"
    "outside,disagreement,expected_cutoff_std,expected_load_std";

static void make_study(void)
{
    char prose[4096] = "";
    make_folder();
    for (size_t i = 0; i < 12; i++) strcat(prose, PROSE);
    write_text("prose.txt", prose);
}

/* The rows of a stream; they follow one another. */
static size_t rows_of(const csv *c, const char *stream, size_t *first)
{
    size_t count = 0;
    for (size_t i = 1; i < c->lines; i++) {
        if (strcmp(field(c, i, 0), stream) != 0) continue;
        if (count++ == 0) *first = i;
    }
    return count;
}

static void check_pools(void)
{
    static const char *const streams[] = {"normal", "text", "drifting"};
    static csv c;
    csv_read(&c, "pools.csv", POOLS);
    for (size_t s = 0; s < COUNT(streams); s++) {
        size_t first = 0;
        ck_assert_uint_eq(rows_of(&c, streams[s], &first), SIZES_STUDIED);
        for (size_t i = 0; i < SIZES_STUDIED; i++) {
            size_t line = first + i;
            ck_assert(value(&c, line, 1) == 64 << i && value(&c, line, 2) == 16 << i);
            ck_assert_int_eq(*field(&c, line, 12) != '\0', s == 0); /* theory is of normal scores */
            if (i == 0 || s == 1) continue;
            ck_assert(value(&c, line, 4) < value(&c, line - 1, 4));   /* the cutoff's deviation */
            ck_assert(value(&c, line, 7) < value(&c, line - 1, 7));   /* the load's */
            ck_assert(value(&c, line, 11) < value(&c, line - 1, 11)); /* EC and ET part less */
        }
    }
    for (size_t line = 1; line <= SIZES_STUDIED;
         line++) /* of 80 values: a tenth off, give or take */
        ck_assert(fabs(value(&c, line, 4) / value(&c, line, 12) - 1) < 0.3 &&
                  fabs(value(&c, line, 7) / value(&c, line, 13) - 1) < 0.3);
    free(c.text);
}

static void check_fits(void)
{
    static csv c;
    csv_read(&c, "fits.csv", "stream,quantity,factor,exponent,error");
    ck_assert_uint_eq(c.lines, 1 + 3 * 4);
    ck_assert_str_eq(field(&c, 1, 1), "cutoff_std");
    ck_assert(fabs(value(&c, 1, 3) + 0.5) < 0.08);
    ck_assert(value(&c, 1, 4) > 0 && value(&c, 1, 4) < 0.08);
    free(c.text);
}

static void check_agreement(void)
{
    static csv c;
    csv_read(&c, "agreement.csv", "stream,pool,jaccard");
    ck_assert_uint_eq(c.lines, 1 + 3 * SIZES_STUDIED);
    for (size_t i = 1; i < c.lines; i++) {
        ck_assert(value(&c, i, 2) > 0 && value(&c, i, 2) <= 1);
        if ((i - 1) % SIZES_STUDIED > 0) ck_assert(value(&c, i, 2) > value(&c, i - 1, 2));
    }
    free(c.text);
}

/* Plain, the average is (1 - 0.99^u) of what it should be; divided by that, right at once. */
static void check_start(void)
{
    static csv c;
    csv_read(&c, "start.csv",
             "stream,step,cutoff,plain,corrected,load_plain,load_corrected,load_warm,"
             "load_warm_corrected");
    ck_assert_uint_eq(c.lines, 1 + 3 * 500);
    for (size_t u = 0; u < 500; u++) {
        double weight = 1 - pow(0.99, (double)u), plain = value(&c, u + 1, 3);
        ck_assert(fabs(plain - weight * value(&c, u + 1, 4)) < 1e-6);
        ck_assert(value(&c, u + 1, 1) == (double)u);
        if (u < 400) ck_assert(value(&c, u + 1, 7) == 1 && value(&c, u + 1, 8) == 1);
        if (u >= 400) ck_assert(value(&c, u + 1, 7) == value(&c, u + 1, 5));
        if (u >= 400) ck_assert(value(&c, u + 1, 8) == value(&c, u + 1, 6));
    }
    ck_assert(fabs(value(&c, 2, 4) - 0.6745) < 0.1); /* the upper quarter of N(0,1) */
    ck_assert(value(&c, 11, 5) > 1.5 && fabs(value(&c, 11, 6) - 1) < 0.2); /* loads at step 10 */
    free(c.text);
}

static void check_flips(void)
{
    static csv c;
    csv_read(&c, "flips.csv", "stream,rule,batch,select,noise,adversary");
    size_t causal = 0, choices = 0;
    double last = 0;
    for (size_t i = 1; i < c.lines; i++) {
        char rule[64];
        snprintf(rule, sizeof rule, "%s", field(&c, i, 1));
        bool never = strcmp(rule, "tc") == 0 || strcmp(rule, "et") == 0;
        ck_assert_int_eq(value(&c, i, 5) == 0, never);
        ck_assert(value(&c, i, 4) <= value(&c, i, 5));
        if (!never || strcmp(rule, "et") == 0) ck_assert(value(&c, i, 3) == value(&c, i, 2) / 4);
        causal += never;
        if (strcmp(rule, "ec") != 0) continue;
        /* by falling pool, noise changes ever more */
        ck_assert(value(&c, i, 2) == 1024 || value(&c, i, 4) > last);
        last = value(&c, i, 4);
        choices++;
    }
    ck_assert_uint_eq(causal, 4);      /* two rules, two streams */
    ck_assert_uint_eq(choices, 2 * 5); /* 1024, 256, 64, 16, 4 */
    free(c.text);
    csv_read(&c, "flips-by-position.csv", "stream,rule,batch,select,position,noise,adversary");
    for (size_t i = 1; i < c.lines; i++) ck_assert(value(&c, i, 4) > 0 && value(&c, i, 4) < 1);
    free(c.text);
}

START_TEST(a_study_writes_what_it_measured)
{
    json_t *report = leakage_json(
        LEAKAGE(STUDY, "--text", in_folder("prose.txt"), "--no-figures", "--format=json"), 0);
    ck_assert_uint_eq(json_array_size(json_object_get(report, "files")), COUNT(csv_names));
    ck_assert_uint_eq(json_array_size(json_object_get(report, "figures")), 0);
    ck_assert_uint_eq(json_array_size(json_object_get(report, "fits")), 3 * 4);
    ck_assert_uint_eq(json_array_size(json_object_get(report, "settled")), 3);
    ck_assert_int_eq(entries_in_folder(), 1 + COUNT(csv_names));
    json_decref(report);
    check_pools();
    check_fits();
    check_agreement();
    check_start();
    check_flips();
    static csv c;
    csv_read(&c, "bounds.csv", "tokens,set_per_token,entropy,log_refused,tied_cutoff_per_token");
    ck_assert_uint_eq(c.lines, 1 + 38); /* 2^3 to 2^40 */
    free(c.text);
}
END_TEST

/* 1024 tokens by 4 experts are drawn in parallel; fewer are not worth it. */
START_TEST(a_study_is_the_same_for_any_number_of_threads)
{
    char *once[COUNT(csv_names)];
    static const char *const threads[] = {"--threads=1", "--threads=3"};
    for (size_t run = 0; run < 2; run++) {
        ck_assert_int_eq(LEAKAGE(STUDY, "--seed=7", "--text", in_folder("prose.txt"),
                                 "--no-figures", threads[run]),
                         0);
        has("cutoff_std");
        for (size_t i = 0; i < COUNT(csv_names); i++) {
            char *text = read_file(csv_names[i]);
            if (run == 1) {
                ck_assert_msg(strcmp(text, once[i]) == 0, "%s differs", csv_names[i]);
                free(once[i]);
                free(text);
            } else {
                once[i] = text;
            }
        }
    }
}
END_TEST

/* A gnuplot of our own, the only command there is: what it is given, and what becomes of it. */
static int study_with_gnuplot(const char *script)
{
    char *usual = strdup(getenv("PATH"));
    unlink(in_folder("gnuplot"));
    if (script) {
        write_text("gnuplot", script);
        ck_assert_int_eq(chmod(in_folder("gnuplot"), 0755), 0);
    }
    setenv("PATH", folder, 1);
    int status = LEAKAGE("study", "--out", folder, "--tokens=128", "--experts=2", "--batches=2",
                         "--text", in_folder("prose.txt"), "--format=json");
    setenv("PATH", usual, 1);
    free(usual);
    return status;
}

START_TEST(figures_are_gnuplots_matter)
{
    /* there: it runs in the folder, script by script; a type it does not write is not listed */
    json_t *report = leakage_json(
        study_with_gnuplot("#!/bin/sh\ntest -f \"$1\" && echo figure >\"${1%.gp}.svg\"\n"), 0);
    const json_t *figures = json_object_get(report, "figures");
    ck_assert_uint_eq(json_array_size(figures), 5);
    ck_assert_str_eq(json_string_value(json_array_get(figures, 0)), "leakage.svg");
    ck_assert(exists("cutoff.svg") && exists("cutoff.gp") && !exists("cutoff.png"));
    json_decref(report);
    /* it fails: so does the study, and leaves no part of a figure; the numbers are there */
    expect_failure(study_with_gnuplot("#!/bin/sh\necho half >\"${1%.gp}.svg\"\nexit 1\n"), 2,
                   "--no-figures");
    ck_assert(!exists("leakage.svg") && exists("pools.csv"));
    /* absent: a note; and no figure of older numbers stays behind */
    report = leakage_json(study_with_gnuplot(NULL), 0);
    ck_assert_uint_eq(json_array_size(json_object_get(report, "figures")), 0);
    ck_assert_ptr_nonnull(strstr(errors, "gnuplot is not installed"));
    ck_assert(!exists("cutoff.svg") && exists("cutoff.gp"));
    json_decref(report);
}
END_TEST

/* With the gnuplot of this machine, where there is one, the scripts draw without a complaint. */
START_TEST(the_scripts_draw)
{
    json_t *report =
        leakage_json(LEAKAGE("study", "--out", folder, "--tokens=128", "--experts=4", "--batches=3",
                             "--text", in_folder("prose.txt"), "--format=json"),
                     0);
    const json_t *figures = json_object_get(report, "figures");
    if (system("command -v gnuplot >/dev/null 2>&1") == 0) {
        ck_assert_str_eq(errors, "");
        ck_assert_uint_ge(json_array_size(figures), 5);
        for (size_t i = 0; i < json_array_size(figures); i++) {
            struct stat facts;
            const char *name = json_string_value(json_array_get(figures, i));
            ck_assert_msg(stat(in_folder(name), &facts) == 0 && facts.st_size > 5000, "%s", name);
        }
    } else {
        ck_assert_uint_eq(json_array_size(figures), 0);
    }
    json_decref(report);
}
END_TEST

START_TEST(study_refuses)
{
    write_text("short", "too short");
    char *new_folder = strdup(in_folder("new"));
    expect_failure(LEAKAGE("study"), 2, "--out DIR belongs here");
    expect_failure(LEAKAGE("study", "--out", new_folder, "--tokens=1000"), 2, "a power of two");
    expect_failure(LEAKAGE("study", "--out", new_folder, "--tokens=64"), 2, "--tokens 64");
    expect_failure(LEAKAGE("study", "--out", new_folder, "--experts=65"), 2, "2 to 64");
    expect_failure(LEAKAGE("study", "--out", new_folder, "--batches=1"), 2, "--batches 1");
    expect_failure(LEAKAGE("study", "--out", new_folder, "--seed=-1"), 2, "--seed -1");
    expect_failure(LEAKAGE("study", "--out", new_folder, "--format=csv"), 2, "text|json");
    expect_failure(LEAKAGE("study", "--out", new_folder, "--text=nosuch"), 2, "--text nosuch");
    expect_failure(LEAKAGE("study", "--out", new_folder, "--text", folder), 2,
                   "a file of text belongs here");
    expect_failure(LEAKAGE("study", "--out", new_folder, "--text", in_folder("short")), 2,
                   "9 bytes; more than 128");
    ck_assert(!exists("new"));
    expect_failure(LEAKAGE("study", "--out", in_folder("short")), 2, "a folder to write to");
    expect_failure(LEAKAGE("study", "--out", in_folder("no/folder")), 2, "No such file");
    expect_failure(LEAKAGE("study", "more", "--out", new_folder), 2, "stands alone");
    free(new_folder);
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

/* ---- the suite ---- */

int main(void)
{
    Suite *suite = suite_create("leakage tool");
    TCase *plain = add_case(suite, "numbers"), *codec = add_case(suite, "codec");
    TCase *audits = add_case(suite, "audit"), *studies = add_case(suite, "study");
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
    tcase_add_checked_fixture(audits, make_bundles, remove_all);
    tcase_add_test(audits, causal_bundles_never_change);
    tcase_add_test(audits, leaking_bundles_are_found);
    tcase_add_test(audits, every_rule_by_falling_batch);
    tcase_add_test(audits, one_future_at_a_time);
    tcase_add_test(audits, nothing_to_audit_is_inconclusive);
    tcase_add_test(audits, a_golden_and_its_twin);
    tcase_add_test(audits, a_twin_is_generated_again);
    tcase_add_test(audits, a_kernels_files);
    tcase_add_test(audits, a_cut_between_pools_is_inconclusive);
    tcase_add_test(audits, a_kernels_strange_masks);
    tcase_add_test(audits, a_masks_column_is_encoded);
    tcase_add_test(audits, audit_refuses);
    tcase_add_test(audits, a_mask_that_is_not_the_rules_is_refused);
    tcase_add_checked_fixture(studies, make_study, remove_all);
    tcase_add_test(studies, a_study_writes_what_it_measured);
    tcase_add_test(studies, a_study_is_the_same_for_any_number_of_threads);
    tcase_add_test(studies, figures_are_gnuplots_matter);
    tcase_add_test(studies, the_scripts_draw);
    tcase_add_test(studies, study_refuses);
    return run_suite(suite);
}
