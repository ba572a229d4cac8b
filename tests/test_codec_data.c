/* test_codec_data.c: the codec's golden values in data/leakage, every one computed again, by Algorithm 2 on
 * strings of binary digits. The library must agree with the file, too, bit for bit.
 */
#include "etref/leakage.h"
#include "tests/check_main.h"
#include "tests/expect.h"
#include "tests/leakage_files.h"

#include <stdbool.h>

enum { PLACES = 1100, MOST_TOKENS = 1100 };

/* A number from 0 to 1: one digit before the point, PLACES after it. */
typedef struct fraction {
    char digit[PLACES + 1];
} fraction;

static int compare(const fraction *a, const fraction *b)
{
    return memcmp(a->digit, b->digit, sizeof a->digit);
}

/* (a + b) / 2: the sum, written one place further to the right. */
static fraction halfway(const fraction *a, const fraction *b)
{
    fraction out;
    int carry = a->digit[PLACES] + b->digit[PLACES];
    if (carry % 2 != 0) ck_abort_msg("more than %d places", PLACES);
    for (size_t i = PLACES; i-- > 0;) {
        carry = carry / 2 + a->digit[i] + b->digit[i];
        out.digit[i + 1] = (char)(carry % 2);
    }
    out.digit[0] = (char)(carry / 2);
    return out;
}

/* p places from the first 1 on, none beyond place e. */
typedef struct float_type {
    et_dtype dtype;
    size_t p, e;
} float_type;

static const char *const type_names[] = {"f64", "f32", "f16", "bf16"};
static const float_type types[] = {
    {ET_F64, 53, 1074}, {ET_F32, 24, 149}, {ET_F16, 11, 24}, {ET_BF16, 8, 133}};

/* To the nearest, of two nearest to the one with an even last digit. NULL: exact. */
static void round_to(fraction *x, const float_type *type)
{
    size_t first = 0;
    if (type == NULL) return;
    while (first < PLACES && x->digit[first] == 0) first++;
    size_t last = first + type->p - 1 < type->e ? first + type->p - 1 : type->e;
    bool up =
        x->digit[last + 1] && (x->digit[last] || memchr(x->digit + last + 2, 1, PLACES - last - 1));
    memset(x->digit + last + 1, 0, PLACES - last);
    for (size_t i = last; up; i--) {
        up = x->digit[i] == 1;
        x->digit[i] = !up;
    }
}

static double value_of(const fraction *x)
{
    double sum = 0;
    for (size_t i = 0; i <= PLACES; i++)
        if (x->digit[i]) sum += ldexp(1, -(int)i);
    return sum;
}

typedef struct bracket {
    fraction l, u;
} bracket;

static const bracket whole_unit = {.u = {{1}}};

static fraction midpoint(const bracket *b, const float_type *type)
{
    fraction score = halfway(&b->l, &b->u);
    round_to(&score, type);
    return score;
}

static bool inside(const bracket *b, const fraction *score)
{
    return compare(score, &b->l) > 0 && compare(score, &b->u) < 0;
}

static fraction scores[MOST_TOKENS];

/* Fills scores; returns the cutoff. */
static fraction encode(const char *selection, const float_type *type, size_t *carried)
{
    bracket b = whole_unit;
    *carried = 0;
    for (size_t t = 0; selection[t]; t++) {
        scores[t] = midpoint(&b, type);
        *carried += inside(&b, &scores[t]);
        *(selection[t] == '1' ? &b.u : &b.l) = scores[t];
    }
    return b.l;
}

static size_t wrongly_decoded(const char *selection, const float_type *type, const fraction *cutoff)
{
    size_t wrong = 0;
    bracket b = whole_unit;
    for (size_t t = 0; selection[t]; t++) {
        fraction score = midpoint(&b, type);
        bool taken = compare(&score, cutoff) > 0;
        wrong += taken != (selection[t] == '1');
        *(taken ? &b.u : &b.l) = score;
    }
    return wrong;
}

/* Decisions that the top k of the scores gets wrong, ties to the lower index. */
static size_t wrongly_chosen(const char *selection, size_t k)
{
    size_t N = strlen(selection), wrong = 0;
    for (size_t t = 0; t < N; t++) {
        size_t better = 0;
        for (size_t s = 0; s < N; s++) {
            int order = compare(&scores[s], &scores[t]);
            better += order > 0 || (order == 0 && s < t);
        }
        wrong += (better < k) != (selection[t] == '1');
    }
    return wrong;
}

/* The selection, its length and its number of ones checked; z [N] out. */
static const char *read_selection(const json_t *v, uint8_t *z)
{
    const char *selection = word(v, "selection");
    size_t N = strlen(selection), k = 0;
    ck_assert_uint_eq(strspn(selection, "01"), N);
    ck_assert_uint_eq(whole(v, "tokens"), N);
    ck_assert_uint_le(N, MOST_TOKENS);
    for (size_t t = 0; t < N; t++) k += z[t] = selection[t] == '1';
    ck_assert_uint_eq(whole(v, "select"), k);
    return selection;
}

/* The first `digits` places, and nothing after them. */
static void has_digits(const fraction *x, const char *text, size_t digits)
{
    fraction want = {{0}};
    ck_assert_uint_eq(strlen(text), digits);
    for (size_t i = 0; i < digits; i++) want.digit[i + 1] = (char)(text[i] - '0');
    ck_assert_msg(compare(x, &want) == 0, "other digits than 0.%s", text);
}

static void check_exact(const json_t *v)
{
    uint8_t z[MOST_TOKENS], back[MOST_TOKENS];
    char cutoff[MOST_TOKENS + 1] = "";
    size_t carried;
    et_error error;
    const char *selection = read_selection(v, z);
    size_t N = strlen(selection);
    fraction last = encode(selection, NULL, &carried);
    ck_assert_uint_eq(carried, N);
    has_digits(&last, word(v, "cutoff"), N);
    ck_assert_uint_eq(json_array_size(field(v, "scores")), N);
    for (size_t t = 0; t < N; t++)
        has_digits(&scores[t], json_string_value(json_array_get(field(v, "scores"), t)), t + 1);
    ck_assert_uint_eq(wrongly_decoded(selection, NULL, &last), 0);
    ck_assert_uint_eq(wrongly_chosen(selection, whole(v, "select")), 0);
    et_codec_cutoff(N, z, cutoff);
    ck_assert_str_eq(cutoff, word(v, "cutoff"));
    done(et_codec_decode(N, cutoff, back, &error), &error);
    ck_assert_mem_eq(back, z, N);
}

static const float_type *type_of(const json_t *v)
{
    return &types[index_of(word(v, "precision"), type_names, COUNT(types))];
}

static void check_rounded(const json_t *v)
{
    uint8_t z[MOST_TOKENS];
    double numbers[MOST_TOKENS], cutoff;
    size_t carried, library_carried;
    et_error error;
    const float_type *type = type_of(v);
    const char *selection = read_selection(v, z);
    size_t N = strlen(selection);
    const json_t *listed = field(v, "scores");
    fraction last = encode(selection, type, &carried);
    done(et_codec_encode_in(type->dtype, N, z, numbers, &cutoff, &library_carried, &error), &error);
    ck_assert_uint_eq(whole(v, "carried"), carried);
    ck_assert_uint_eq(whole(v, "carried"), library_carried);
    ck_assert(real(v, "cutoff") == value_of(&last) && real(v, "cutoff") == cutoff);
    ck_assert_uint_eq(json_array_size(listed), N <= 64 ? N : 0);
    for (size_t t = 0; t < N; t++) ck_assert(numbers[t] == value_of(&scores[t]));
    for (size_t t = 0; t < json_array_size(listed); t++)
        ck_assert_msg(json_number_value(json_array_get(listed, t)) == numbers[t],
                      "%s, %s: score %zu", word(v, "precision"), selection, t);
    ck_assert_uint_eq(whole(v, "decoded_differently"), wrongly_decoded(selection, type, &last));
    ck_assert_uint_eq(whole(v, "chosen_differently"),
                      wrongly_chosen(selection, whole(v, "select")));
}

/* How often the bracket can be halved if all tokens go one way. */
static size_t halvings(const float_type *type, bool taken)
{
    bracket b = whole_unit;
    for (size_t count = 0;; count++) {
        fraction score = midpoint(&b, type);
        if (!inside(&b, &score)) return count;
        *(taken ? &b.u : &b.l) = score;
    }
}

static void check_reach(const json_t *v)
{
    const float_type *type = type_of(v);
    size_t every, some;
    et_error error;
    done(et_codec_reach(type->dtype, &every, &some, &error), &error);
    ck_assert_uint_eq(whole(v, "significand"), type->p);
    ck_assert_uint_eq(whole(v, "every"), every);
    ck_assert_uint_eq(whole(v, "every"), halvings(type, false));
    ck_assert_uint_eq(whole(v, "some"), some);
    ck_assert_uint_eq(whole(v, "some"), halvings(type, true));
}

START_TEST(codec)
{
    const kind kinds[] = {
        {"exact_vector", check_exact}, {"rounded_vector", check_rounded}, {"reach", check_reach}};
    ck_assert_uint_eq(check_file("codec", kinds, COUNT(kinds)), 83);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("codec data");
    tcase_add_test(add_case(suite, "values"), codec);
    return run_suite(suite);
}
