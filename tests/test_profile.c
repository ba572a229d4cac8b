/* test_profile.c: precision profiles: the built-in table, and JSON that users write.
 *
 * Bad profiles are a table: what is written and the whole message it must get. The numbers of the
 * built-in ones are written here once more, in the words of their formats. What a place's rounding
 * errors are is tested with the sites, in another file.
 */
#include "etref/profile.h"
#include "tests/check_main.h"
#include "tests/run_case.h"

#include <errno.h>
#include <jansson.h>

#define COUNT(array)      (sizeof(array) / sizeof(array)[0])
#define PROFILE(more)     "{'name':'mine'," PLACES more "}"
#define PLACES            "'operands':8,'intermediates':9,'gates':24,'logits':25,'accumulator':26,'outputs':7"
#define WITHOUT_OUTPUTS   "'operands':8,'intermediates':9,'gates':24,'logits':25,'accumulator':26"
#define OF(name, numbers) "{'name':'" name "'," numbers "}"
#define WIDE              "'operands':24,'intermediates':24,'gates':24,'logits':24,'accumulator':24,'outputs':24"
#define IN_MINE           "test: profile 'mine': "
#define NAMES             "1 to 31 letters, digits, '-', '_', '.', the first a letter or digit"
#define BITS              "integer from 2 to 53"

static et_status parse(et_profile *p, const char *json, et_error *error)
{
    char text[2048];
    ck_assert_uint_lt(strlen(json), sizeof text);
    strcpy(text, json);
    double_the_quotes(text);
    return et_profile_parse(p, text, strlen(text), "test", error);
}

static et_profile parse_good(const char *json)
{
    et_profile p;
    et_error error = {""};
    ck_assert_msg(parse(&p, json, &error) == ET_OK, "%s: %s", json, error.text);
    ck_assert_str_eq(error.text, "");
    return p;
}

/* ---- the table ---- */

START_TEST(the_built_in_profiles)
{
    enum { F64 = 53, F32 = 24, TF32 = 11, F16 = 11, BF16 = 8 };
    const et_profile known[] = {
        {.name = "f64", .bits = {F64, F64, F64, F64, F64, F64}, .exponent_bits = 8},
        {.name = "f32", .bits = {F32, F32, F32, F32, F32, F32}, .exponent_bits = 8},
        {.name = "tf32", .bits = {TF32, F32, F32, F32, F32, F32}, .exponent_bits = 8},
        {.name = "tf32-rz",
         .bits = {TF32, F32, F32, F32, F32, F32},
         .exponent_bits = 8,
         .truncate_operands = true},
        {.name = "bf16", .bits = {BF16, BF16, F32, F32, F32, BF16}, .exponent_bits = 8},
        {.name = "bf16-low", .bits = {BF16, BF16, BF16, BF16, F32, BF16}, .exponent_bits = 8},
        {.name = "f16", .bits = {F16, F16, F32, F32, F32, F16}, .exponent_bits = 5}};
    for (size_t i = 0; i < COUNT(known); i++) {
        const et_profile *p = et_profile_at(i);
        ck_assert_ptr_nonnull(p);
        ck_assert_msg(et_profile_equals(p, &known[i]), "%s is not %s", p->name, known[i].name);
        ck_assert_ptr_eq(et_profile_find(known[i].name), p);
        ck_assert_int_eq(et_profile_check(p, NULL), ET_OK);
    }
    size_t all = COUNT(known);
    for (; et_profile_at(all); all++) { /* then libraries': legal, each under a name of its own */
        ck_assert_int_eq(et_profile_check(et_profile_at(all), NULL), ET_OK);
        ck_assert_ptr_eq(et_profile_find(et_profile_at(all)->name), et_profile_at(all));
    }
    ck_assert_uint_gt(all, COUNT(known));
    ck_assert_ptr_null(et_profile_at(all + 1));
    ck_assert_ptr_null(et_profile_find("f8"));
    ck_assert_ptr_null(et_profile_find(""));
}
END_TEST

START_TEST(the_places_are_named_in_their_order)
{
    const char *names[] = {"operands",        "intermediates",   "gates",
                           "logits",          "accumulator",     "outputs",
                           "activations",     "router_operands", "router_accumulator",
                           "gate_arithmetic", "shares",          "dw_sums"};
    ck_assert_uint_eq(COUNT(names), ET_ALL_PLACES);
    for (int i = 0; i < ET_ALL_PLACES; i++) ck_assert_str_eq(et_place_name((et_place)i), names[i]);
}
END_TEST

/* ---- parsing ---- */

START_TEST(every_field_arrives)
{
    const et_profile plain = {.name = "mine", .bits = {8, 9, 24, 25, 26, 7}, .exponent_bits = 8};
    const et_profile full = {.name = "mine",
                             .bits = {8, 9, 24, 25, 26, 7},
                             .exponent_bits = 5,
                             .ftz = true,
                             .truncate_operands = true,
                             .truncate_accumulator = true};
    et_profile p = parse_good(PROFILE(""));
    ck_assert(et_profile_equals(&p, &plain));
    p = parse_good(PROFILE(",'exponent_bits':8,'ftz':false,'operand_rounding':'nearest',"
                           "'accumulator_rounding':'nearest'"));
    ck_assert(et_profile_equals(&p, &plain));
    p = parse_good(PROFILE(",'exponent_bits':5,'ftz':true,'operand_rounding':'truncate',"
                           "'accumulator_rounding':'truncate'"));
    ck_assert(et_profile_equals(&p, &full));
    p = parse_good(PROFILE(",'operand_rounding':'truncate'"));
    ck_assert(p.truncate_operands && !p.truncate_accumulator);
    p = parse_good(PROFILE(",'accumulator_rounding':'truncate'"));
    ck_assert(!p.truncate_operands && p.truncate_accumulator);
}
END_TEST

START_TEST(parts_count_as_the_whole_unless_they_are_named)
{
    static const et_place wholes[] = {ET_OPERANDS,    ET_OPERANDS,    ET_ACCUMULATOR,
                                      ET_ACCUMULATOR, ET_ACCUMULATOR, ET_ACCUMULATOR};
    et_profile p = parse_good(PROFILE(""));
    for (int i = ET_PLACES; i < ET_ALL_PLACES; i++) {
        ck_assert_int_eq(p.bits[i], 0);
        ck_assert_int_eq(et_place_meant(&p, (et_place)i), wholes[i - ET_PLACES]);
        ck_assert_int_eq(et_place_bits(&p, (et_place)i), p.bits[wholes[i - ET_PLACES]]);
        ck_assert(et_place_largest(&p, (et_place)i) == et_place_largest(&p, wholes[i - ET_PLACES]));
    }
    p = parse_good(PROFILE(",'activations':12,'router_operands':13,'router_accumulator':14,"
                           "'gate_arithmetic':15,'shares':16,'dw_sums':17,'accumulator_chunk':32,"
                           "'flush_operands':true,'flush_products':true,'stochastic':true"));
    for (int i = ET_PLACES; i < ET_ALL_PLACES; i++) {
        ck_assert_int_eq(p.bits[i], 12 + i - ET_PLACES);
        ck_assert_int_eq(et_place_bits(&p, (et_place)i), p.bits[i]);
        ck_assert_int_eq(et_place_meant(&p, (et_place)i), i);
    }
    ck_assert(p.accumulator_chunk == 32 && p.flush_operands && p.flush_products && p.stochastic);
}
END_TEST

/* FP8 experts have a router of the type in which x is stored, unless the profile says otherwise. */
START_TEST(quantised_experts_leave_the_router_alone)
{
    et_profile p = *et_profile_find("bf16");
    p.bits[ET_OPERANDS] = 4;
    ck_assert_int_eq(et_place_bits(&p, ET_ACTIVATIONS), 4);
    ck_assert_int_eq(et_place_bits(&p, ET_ROUTER_OPERANDS), 8);
    p.bits[ET_OPERANDS] = 8;
    p.bits[ET_INTERMEDIATES] = 24;
    ck_assert_int_eq(et_place_bits(&p, ET_ROUTER_OPERANDS), 8);
    p.bits[ET_OPERANDS] = p.bits[ET_ROUTER_OPERANDS] = 4;
    ck_assert_int_eq(et_place_bits(&p, ET_ROUTER_OPERANDS), 4);
}
END_TEST

START_TEST(the_limits_are_legal)
{
    const char *good[] = {
        "{'outputs':2,'operands':53,'intermediates':2,'gates':53,'logits':2,'accumulator':53,"
        "'name':'z'}",
        OF("a23456789_123456789.123456789-1", PLACES),
        OF("9", PLACES),
        OF("f32", WIDE), /* a built-in one, said again */
        OF("f32", WIDE ",'exponent_bits':8,'ftz':false"),
        PROFILE(",'exponent_bits':5"),
    };
    for (size_t i = 0; i < COUNT(good); i++) parse_good(good[i]);
}
END_TEST

static const struct {
    const char *json, *message;
} bad[] = {
    {"", "test: is empty; the profile belongs here"},
    {" \n", "test: is empty; the profile belongs here"},
    {"[]", "test: []; allowed: an object with fields name, operands, ..."},
    {"'bf16'", "test: \"bf16\"; allowed: an object with fields name, operands, ..."},
    {"{}", "test: name is missing; allowed: " NAMES},
    {"{" PLACES "}", "test: name is missing; allowed: " NAMES},
    {"{'name':7," PLACES "}", "test: name = 7; allowed: " NAMES},
    {OF("", PLACES), "test: name = \"\"; allowed: " NAMES},
    {OF("-a", PLACES), "test: name = \"-a\"; allowed: " NAMES},
    {OF("a b", PLACES), "test: name = \"a b\"; allowed: " NAMES},
    {OF("a/b", PLACES), "test: name = \"a/b\"; allowed: " NAMES},
    {OF("a23456789_123456789_123456789_12", PLACES),
     "test: name = \"a23456789_123456789_123456789_12\"; allowed: " NAMES},
    {OF("mine", WITHOUT_OUTPUTS), IN_MINE "outputs is missing; allowed: " BITS},
    {OF("mine", WITHOUT_OUTPUTS ",'outputs':1"), IN_MINE "outputs = 1; allowed: " BITS},
    {OF("mine", WITHOUT_OUTPUTS ",'outputs':54"), IN_MINE "outputs = 54; allowed: " BITS},
    {OF("mine", WITHOUT_OUTPUTS ",'outputs':-8"), IN_MINE "outputs = -8; allowed: " BITS},
    {OF("mine", WITHOUT_OUTPUTS ",'outputs':4294967304"),
     IN_MINE "outputs = 4294967304; allowed: " BITS},
    {OF("mine", WITHOUT_OUTPUTS ",'outputs':8.0"), IN_MINE "outputs = 8.0; allowed: " BITS},
    {OF("mine", WITHOUT_OUTPUTS ",'outputs':'8'"), IN_MINE "outputs = \"8\"; allowed: " BITS},
    {OF("mine", WITHOUT_OUTPUTS ",'outputs':null"), IN_MINE "outputs = null; allowed: " BITS},
    {PROFILE(",'output':8"), IN_MINE "unknown field output; the nearest is outputs"},
    {PROFILE(",'exponent':8"),
     IN_MINE "unknown field exponent; allowed: name, the six places (operands, intermediates, "
             "gates, logits, accumulator, outputs), their parts (activations, router_operands, "
             "router_accumulator, gate_arithmetic, shares, dw_sums), exponent_bits, ftz, "
             "operand_rounding, accumulator_rounding, accumulator_chunk, flush_operands, "
             "flush_products, stochastic"},
    {PROFILE(",'share':8"), IN_MINE "unknown field share; the nearest is shares"},
    {PROFILE(",'shares':0"), IN_MINE "shares = 0; allowed: " BITS},
    {PROFILE(",'dw_sums':54"), IN_MINE "dw_sums = 54; allowed: " BITS},
    {PROFILE(",'accumulator_chunk':-1"),
     IN_MINE "accumulator_chunk = -1; allowed: integer from 0 to 1048576"},
    {PROFILE(",'accumulator_chunk':1048577"),
     IN_MINE "accumulator_chunk = 1048577; allowed: integer from 0 to 1048576"},
    {PROFILE(",'accumulator_chunk':true"),
     IN_MINE "accumulator_chunk = true; allowed: integer from 0 to 1048576"},
    {PROFILE(",'stochastic':1"), IN_MINE "stochastic = 1; allowed: true or false"},
    {PROFILE(",'ftz':0"), IN_MINE "ftz = 0; allowed: true or false"},
    {PROFILE(",'ftz':'no'"), IN_MINE "ftz = \"no\"; allowed: true or false"},
    {PROFILE(",'exponent_bits':6"), IN_MINE "exponent_bits = 6; allowed: 5 or 8"},
    {PROFILE(",'exponent_bits':true"), IN_MINE "exponent_bits = true; allowed: 5 or 8"},
    {PROFILE(",'operand_rounding':'up'"),
     IN_MINE "operand_rounding = \"up\"; allowed: nearest|truncate"},
    {PROFILE(",'accumulator_rounding':true"),
     IN_MINE "accumulator_rounding = true; allowed: nearest|truncate"},
    {OF("mine", WIDE ",'exponent_bits':5"),
     IN_MINE "exponent_bits = 5 with no place of at most 11 bits; allowed: 8"},
    {OF("bf16", PLACES), "test: profile 'bf16': differs from the built-in profile of this name in "
                         "intermediates; give it a name of its own"},
    {OF("f32", WIDE ",'ftz':true"),
     "test: profile 'f32': differs from the built-in profile of this "
     "name in ftz; give it a name of its own"},
    {OF("f32", WIDE ",'operand_rounding':'truncate'"),
     "test: profile 'f32': differs from the built-in profile of this name in operand_rounding; "
     "give it a name of its own"},
};

START_TEST(a_bad_profile_is_named_with_what_is_allowed)
{
    et_profile p, before;
    et_error error = {""};
    memset(&p, 0x5a, sizeof p);
    memcpy(&before, &p, sizeof p);
    ck_assert_msg(parse(&p, bad[_i].json, &error) == ET_EINVAL, "accepted: %s", bad[_i].json);
    ck_assert_str_eq(error.text, bad[_i].message);
    ck_assert_msg(memcmp(&p, &before, sizeof p) == 0, "touched by %s", bad[_i].json);
}
END_TEST

START_TEST(strange_texts_are_refused)
{
    enum { MOST = 64 << 10 };
    static char text[MOST + 2];
    et_profile p;
    et_error error = {""};
    const char good[] = "{\"name\": \"a\", \"operands\": 8, \"intermediates\": 8, \"gates\": 8, "
                        "\"logits\": 8, \"accumulator\": 8, \"outputs\": 8}";
    memset(text, ' ', sizeof text);
    memcpy(text, good, sizeof good - 1);
    ck_assert_int_eq(et_profile_parse(&p, text, MOST, "test", &error), ET_OK);
    ck_assert_int_eq(et_profile_parse(&p, text, MOST + 1, "test", &error), ET_EINVAL);
    ck_assert_str_eq(error.text, "test: 65537 bytes; allowed: at most 65536");
    text[sizeof good - 1] = '\0'; /* a NUL after the object, and inside of it */
    ck_assert_int_eq(et_profile_parse(&p, text, sizeof good, "test", &error), ET_EINVAL);
    text[1] = '\0';
    ck_assert_int_eq(et_profile_parse(&p, text, sizeof good - 1, "test", &error), ET_EINVAL);
    ck_assert_int_eq(et_profile_parse(&p, good, sizeof good - 2, "test", &error), ET_EINVAL);
    ck_assert_int_eq(parse(&p, PROFILE(",'ftz':false,'ftz':true"), &error), ET_EINVAL);
    ck_assert_ptr_nonnull(strstr(error.text, "duplicate"));
    ck_assert_int_eq(parse(&p, OF("a\\u0000b", PLACES), &error), ET_EINVAL);
    ck_assert_int_eq(parse(&p, OF("a", PLACES ",'a\\u000ab':1"), &error), ET_EINVAL);
    ck_assert_ptr_null(strchr(error.text, '\n'));
    ck_assert_int_eq(parse(&p, PROFILE(",'ftz':0"), NULL),
                     ET_EINVAL); /* nobody wants the message */
}
END_TEST

/* ---- printing and checking ---- */

START_TEST(what_is_printed_parses_to_the_same)
{
    const et_profile mine = {.name = "mine",
                             .bits = {2, 3, 4, 53, 6, 7},
                             .exponent_bits = 5,
                             .ftz = true,
                             .truncate_operands = true,
                             .truncate_accumulator = true};
    const et_profile full = {.name = "full",
                             .bits = {2, 3, 4, 53, 6, 7, 8, 9, 10, 11, 12, 13},
                             .exponent_bits = 5,
                             .accumulator_chunk = 16,
                             .flush_operands = true,
                             .flush_products = true,
                             .stochastic = true};
    size_t known = 0;
    while (et_profile_at(known)) known++;
    for (size_t i = 0; i < known + 2; i++) {
        const et_profile *p = i < known ? et_profile_at(i) : i == known ? &mine : &full;
        et_profile again;
        char *json;
        ck_assert_int_eq(et_profile_print(&json, p, NULL), ET_OK);
        ck_assert_int_eq(et_profile_parse(&again, json, strlen(json), "test", NULL), ET_OK);
        ck_assert_msg(et_profile_equals(p, &again), "%s", json);
        free(json);
    }
}
END_TEST

START_TEST(a_profile_in_memory_is_checked)
{
    const et_profile good = {.name = "mine", .bits = {8, 8, 24, 24, 24, 8}, .exponent_bits = 8};
    const struct {
        int place, bits, exponent;
        const char *name, *message;
    } rows[] = {
        {ET_GATES, 0, 8, "mine", "profile 'mine': gates = 0; allowed: " BITS},
        {ET_OUTPUTS, 54, 8, "mine", "profile 'mine': outputs = 54; allowed: " BITS},
        {ET_SHARES, 1, 8, "mine", "profile 'mine': shares = 1; allowed: " BITS},
        {ET_OUTPUTS, 8, 11, "mine", "profile 'mine': exponent_bits = 11; allowed: 5 or 8"},
        {ET_OUTPUTS, 8, 8, "", "profile: name = ''; allowed: " NAMES},
        {ET_OUTPUTS, 8, 8, "a b", "profile: name = 'a b'; allowed: " NAMES},
        {ET_OUTPUTS, 9, 8, "bf16",
         "profile 'bf16': differs from the built-in profile of this name in outputs; give it a "
         "name "
         "of its own"},
    };
    ck_assert_int_eq(et_profile_check(&good, NULL), ET_OK);
    for (size_t i = 0; i < COUNT(rows); i++) {
        et_error error = {""};
        et_profile p = good;
        char *json = NULL;
        p.bits[rows[i].place] = rows[i].bits;
        p.exponent_bits = rows[i].exponent;
        strcpy(p.name, rows[i].name);
        ck_assert_int_eq(et_profile_check(&p, &error), ET_EINVAL);
        ck_assert_str_eq(error.text, rows[i].message);
        ck_assert_int_eq(et_profile_print(&json, &p, &error), ET_EINVAL);
        ck_assert_ptr_null(json);
    }
    et_profile endless = good;
    memset(endless.name, 'a', sizeof endless.name);
    ck_assert_int_eq(et_profile_check(&endless, NULL), ET_EINVAL);
    ck_assert_int_eq(et_profile_check(&(et_profile){0}, NULL), ET_EINVAL);
}
END_TEST

/* ---- memory ---- */

static int until_failure; /* so many allocations of Jansson succeed */

static void *failing_malloc(size_t size)
{
    if (until_failure-- > 0) return malloc(size);
    errno = ENOMEM;
    return NULL;
}

START_TEST(every_allocation_of_jansson_may_fail)
{
    json_malloc_t usual_malloc;
    json_free_t usual_free;
    et_status status = ET_ENOMEM;
    int k = 0;
    json_get_alloc_funcs(&usual_malloc, &usual_free);
    for (; status != ET_OK; k++) {
        et_profile p;
        et_error error = {""};
        until_failure = k;
        json_set_alloc_funcs(failing_malloc, free);
        status = parse(&p, PROFILE(",'ftz':true,'operand_rounding':'truncate'"), &error);
        json_set_alloc_funcs(usual_malloc, usual_free);
        ck_assert_msg(status == ET_OK || status == ET_ENOMEM, "allocation %d: %s", k, error.text);
        ck_assert((status == ET_OK) == (error.text[0] == '\0'));
        ck_assert_int_lt(k, 1000);
    }
    ck_assert_int_gt(k, 10);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("profile");
    TCase *table = add_case(suite, "table"), *text = add_case(suite, "text");
    tcase_add_test(table, the_built_in_profiles);
    tcase_add_test(table, the_places_are_named_in_their_order);
    tcase_add_test(table, what_is_printed_parses_to_the_same);
    tcase_add_test(table, a_profile_in_memory_is_checked);
    tcase_add_test(text, every_field_arrives);
    tcase_add_test(text, parts_count_as_the_whole_unless_they_are_named);
    tcase_add_test(text, quantised_experts_leave_the_router_alone);
    tcase_add_test(text, the_limits_are_legal);
    tcase_add_loop_test(text, a_bad_profile_is_named_with_what_is_allowed, 0, (int)COUNT(bad));
    tcase_add_test(text, strange_texts_are_refused);
    tcase_add_test(text, every_allocation_of_jansson_may_fail);
    return run_suite(suite);
}
