/* test_leakage_data.c: the golden leakage values in data/leakage, every one computed again.
 *
 * The values come from data/leakage/regenerate.py, which shares no code with the library: integers,
 * 60-digit decimals, fractions, and the recursion over all score sequences. A logarithm may differ
 * by one unit in the last place: the file holds the nearest number, the library errs by less than
 * 0.52 of such a unit. Everything else must be equal. $ETREF_DATA names the data folder.
 */
#include "etref/leakage.h"
#include "tests/check_main.h"

#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

enum { MOST = 256 };

/* ---- reading ---- */

static json_t *open_file(const char *name)
{
    char path[4096];
    json_error_t problem;
    const char *data = getenv("ETREF_DATA");
    snprintf(path, sizeof path, "%s/leakage/%s.json", data != NULL ? data : "data", name);
    json_t *file = json_load_file(path, JSON_REJECT_DUPLICATES, &problem);
    ck_assert_msg(file != NULL, "%s, line %d: %s", path, problem.line, problem.text);
    return file;
}

static const json_t *field(const json_t *value, const char *name)
{
    const json_t *found = json_object_get(value, name);
    ck_assert_msg(found != NULL, "a value lacks '%s'", name);
    return found;
}

static size_t whole(const json_t *value, const char *name)
{
    const json_t *number = field(value, name);
    ck_assert_msg(json_is_integer(number) && json_integer_value(number) >= 0, "'%s' is no count",
                  name);
    return (size_t)json_integer_value(number);
}

static const char *word(const json_t *value, const char *name)
{
    const char *text = json_string_value(field(value, name));
    ck_assert_msg(text != NULL, "'%s' is no text", name);
    return text;
}

static et_dtype type_of(const json_t *value)
{
    static const char *const names[] = {"f64", "f32", "f16", "bf16"};
    static const et_dtype types[] = {ET_F64, ET_F32, ET_F16, ET_BF16};
    for (size_t i = 0; i < COUNT(names); i++)
        if (strcmp(word(value, "precision"), names[i]) == 0) return types[i];
    ck_abort_msg("no precision '%s'", word(value, "precision"));
    return ET_F64;
}

/* Calls `check` on every value of every group. Each group says what it is and where it is from;
 * returns how many values there were. */
typedef void check_value(const json_t *value);

static size_t for_each(const char *name, check_value *check)
{
    json_t *file = open_file(name), *group, *value;
    char format[64];
    size_t i, j, count = 0;
    snprintf(format, sizeof format, "etref-leakage-%s", name);
    ck_assert_str_eq(word(file, "format"), format);
    ck_assert_uint_eq(whole(file, "version"), 1);
    json_array_foreach(json_object_get(file, "groups"), i, group)
    {
        ck_assert_uint_gt(strlen(word(group, "what")), 5);
        ck_assert_uint_gt(strlen(word(group, "provenance")), 10);
        ck_assert_uint_gt(json_array_size(field(group, "values")), 0);
        json_array_foreach(json_object_get(group, "values"), j, value)
        {
            check(value);
            count++;
        }
    }
    json_decref(file);
    return count;
}

static void done(et_status status, const et_error *error)
{
    ck_assert_msg(status == ET_OK, "%s", error->text);
}

/* ---- bounds ---- */

static void same_bits(const char *what, double got, const json_t *value, const char *name)
{
    double want = json_number_value(field(value, name));
    bool near =
        got == want || got == nextafter(want, INFINITY) || got == nextafter(want, -INFINITY);
    ck_assert_msg(near, "%s, %s: got %.17g, want %.17g", what, name, got, want);
}

static void check_setup(const json_t *v)
{
    const et_leakage_setup setup = {whole(v, "tokens"), whole(v, "experts"),
                                    whole(v, "granularity"), whole(v, "layers"),
                                    whole(v, "score_bits")};
    et_leakage_bounds b;
    et_error error;
    done(et_leakage_bound(&setup, &b, &error), &error);
    ck_assert_uint_eq(b.select, whole(v, "select"));
    same_bits("bounds", b.set, v, "set");
    same_bits("bounds", b.cutoff, v, "cutoff");
    same_bits("bounds", b.tied_cutoff, v, "tied_cutoff");
    same_bits("bounds", b.set_per_token, v, "set_per_token");
    same_bits("bounds", b.entropy, v, "entropy");
    same_bits("bounds", b.log_expansion, v, "log_expansion");
    same_bits("bounds", b.cutoff_per_token, v, "cutoff_per_token");
    same_bits("bounds", b.tied_cutoff_per_token, v, "tied_cutoff_per_token");
    if (json_is_null(field(v, "log_refused")))
        ck_assert(b.log_refused == -INFINITY);
    else
        same_bits("bounds", b.log_refused, v, "log_refused");
}

static void check_bound(const json_t *v)
{
    double bits = NAN;
    et_error error;
    if (json_object_get(v, "experts")) {
        check_setup(v);
        return;
    }
    if (json_object_get(v, "score_bits"))
        done(et_log2_tied_cutoff(whole(v, "score_bits"), whole(v, "select"), &bits, &error),
             &error);
    else
        done(et_log2_choose(whole(v, "tokens"), whole(v, "select"), &bits, &error), &error);
    same_bits("logarithm", bits, v, "bits");
}

START_TEST(bounds)
{
    ck_assert_uint_eq(for_each("bounds", check_bound), 91);
}
END_TEST

/* ---- labels ---- */

static void check_labels(const json_t *v)
{
    static const char *const rules[] = {"topk", "threshold", "tc", "et", "et-capacity"};
    et_leakage_case c = {
        .tokens = whole(v, "tokens"), .select = whole(v, "select"), .levels = whole(v, "levels")};
    uint64_t labels = 0, suffice = 0;
    et_error error;
    size_t rule = 0;
    while (rule < COUNT(rules) && strcmp(rules[rule], word(v, "rule")) != 0) rule++;
    ck_assert_uint_lt(rule, COUNT(rules));
    c.rule = (et_leakage_rule)rule;
    if (c.rule == ET_LEAKAGE_ET_CAPACITY) {
        c.passing = whole(v, "passing");
        c.capacity = json_number_value(field(v, "capacity"));
    }
    done(et_leakage_labels(&c, &labels, &error), &error);
    done(et_leakage_labels_suffice(&c, &suffice, &error), &error);
    ck_assert_msg(labels == whole(v, "labels"),
                  "%s, N = %zu, k = %zu, M = %zu, %zu pass: got %zu labels, want %zu",
                  word(v, "rule"), c.tokens, c.select, (size_t)c.levels, (size_t)c.passing,
                  (size_t)labels, whole(v, "labels"));
    ck_assert_uint_le(labels, suffice);
}

/* The points that the specification names. */
static size_t named_points;

static void find_points(const json_t *v)
{
    static const size_t points[][4] = {
        {24, 12, 64, 706}, {32, 8, 256, 1810}, {64, 16, 64, 994}, {3, 2, 2, 3}};
    if (strcmp(word(v, "rule"), "topk") != 0) return;
    for (size_t i = 0; i < COUNT(points); i++)
        named_points += whole(v, "tokens") == points[i][0] && whole(v, "select") == points[i][1] &&
                        whole(v, "levels") == points[i][2] && whole(v, "labels") == points[i][3];
}

START_TEST(labels)
{
    ck_assert_uint_eq(for_each("labels", check_labels), 108);
    named_points = 0;
    for_each("labels", find_points);
    ck_assert_uint_eq(named_points, 4);
}
END_TEST

/* ---- codec ---- */

static size_t read_selection(const char *text, uint8_t *z)
{
    size_t N = strlen(text);
    ck_assert_uint_le(N, MOST);
    for (size_t t = 0; t < N; t++) z[t] = text[t] == '1';
    return N;
}

static void same_selection(const char *what, size_t N, const uint8_t *z, const char *want)
{
    ck_assert_uint_eq(strlen(want), N);
    for (size_t t = 0; t < N; t++)
        ck_assert_msg(z[t] == (want[t] == '1'), "%s: token %zu: got %d, want %c", what, t, z[t],
                      want[t]);
}

static void check_exact(const json_t *v)
{
    uint8_t z[MOST], back[MOST];
    char cutoff[MOST + 1] = "", score[MOST + 1];
    et_error error;
    size_t N = read_selection(word(v, "selection"), z);
    et_codec_cutoff(N, z, cutoff);
    ck_assert_str_eq(cutoff, word(v, "cutoff"));
    ck_assert_uint_eq(json_array_size(field(v, "scores")), N);
    for (size_t t = 0; t < N; t++) {
        et_codec_score(t, z, score);
        score[t + 1] = '\0';
        ck_assert_str_eq(score, json_string_value(json_array_get(field(v, "scores"), t)));
    }
    done(et_codec_decode(N, cutoff, back, &error), &error);
    same_selection("decoded", N, back, word(v, "selection"));
}

/* Expert choice on the scores; et_real must hold them, so f64 is left out of the float build. */
static void check_chosen(const json_t *v, et_dtype type, size_t N, size_t k, const double *scores)
{
    uint8_t mask[MOST];
    et_real r[MOST], margin[MOST], cutoff;
    et_error error;
    if (type == ET_F64 && sizeof(et_real) < sizeof(double)) return;
    for (size_t t = 0; t < N; t++) r[t] = (et_real)scores[t];
    done(et_expert_choice(N, 1, N, k, r, mask, margin, &cutoff, NULL, 0, &error), &error);
    same_selection("chosen", N, mask, word(v, "chosen"));
}

static void check_rounded(const json_t *v)
{
    uint8_t z[MOST], back[MOST];
    double scores[MOST], cutoff;
    size_t carried, N = read_selection(word(v, "selection"), z), k = 0;
    et_dtype type = type_of(v);
    et_error error;
    for (size_t t = 0; t < N; t++) k += z[t];
    done(et_codec_encode_in(type, N, z, scores, &cutoff, &carried, &error), &error);
    ck_assert_uint_eq(carried, whole(v, "carried"));
    ck_assert(cutoff == json_number_value(field(v, "cutoff")));
    ck_assert_uint_eq(json_array_size(field(v, "scores")), N);
    for (size_t t = 0; t < N; t++)
        ck_assert_msg(scores[t] == json_number_value(json_array_get(field(v, "scores"), t)),
                      "%s: score %zu is %a", word(v, "precision"), t, scores[t]);
    done(et_codec_decode_in(type, N, cutoff, back, &error), &error);
    same_selection("decoded", N, back, word(v, "decoded"));
    check_chosen(v, type, N, k, scores);
}

static void check_codec(const json_t *v)
{
    if (json_object_get(v, "every")) {
        size_t every, some;
        et_error error;
        done(et_codec_reach(type_of(v), &every, &some, &error), &error);
        ck_assert_uint_eq(every, whole(v, "every"));
        ck_assert_uint_eq(some, whole(v, "some"));
    } else if (json_object_get(v, "precision")) {
        check_rounded(v);
    } else {
        check_exact(v);
    }
}

START_TEST(codec)
{
    ck_assert_uint_eq(for_each("codec", check_codec), 67);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("leakage data");
    TCase *tests = add_case(suite, "values");
    tcase_add_test(tests, bounds);
    tcase_add_test(tests, labels);
    tcase_add_test(tests, codec);
    return run_suite(suite);
}
