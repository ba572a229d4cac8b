/* test_dtype.c: element types and their conversions.
 *
 * Each conversion is compared with a slower, simpler one: a pattern's value is computed with ldexp
 * from its definition, and rounding is a search among all values of the type. F16 and BF16 are
 * small enough to be tested on every pattern and at every tie.
 */
#include "etref/dtype.h"
#include "etref/random.h"
#include "tests/check_main.h"

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

START_TEST(types_have_the_formats_names_and_sizes)
{
    static const struct {
        et_dtype dtype;
        const char *name;
        size_t size;
        int significand;
    } known[] = {
        {ET_F64, "F64", 8, 53},  {ET_I64, "I64", 8, 0},         {ET_U64, "U64", 8, 0},
        {ET_F32, "F32", 4, 24},  {ET_I32, "I32", 4, 0},         {ET_U32, "U32", 4, 0},
        {ET_F16, "F16", 2, 11},  {ET_BF16, "BF16", 2, 8},       {ET_I16, "I16", 2, 0},
        {ET_U16, "U16", 2, 0},   {ET_I8, "I8", 1, 0},           {ET_U8, "U8", 1, 0},
        {ET_BOOL, "BOOL", 1, 0}, {ET_F8_E4M3, "F8_E4M3", 1, 0}, {ET_F8_E5M2, "F8_E5M2", 1, 0}};
    ck_assert_uint_eq(COUNT(known), ET_DTYPE_COUNT);
    for (size_t i = 0; i < COUNT(known); i++) {
        ck_assert_str_eq(et_dtype_name(known[i].dtype), known[i].name);
        ck_assert_uint_eq(et_dtype_size(known[i].dtype), known[i].size);
        ck_assert_int_eq(et_dtype_significand(known[i].dtype), known[i].significand);
    }
    ck_assert_str_eq(et_dtype_name((et_dtype)99), "?");
    ck_assert_uint_eq(et_dtype_size((et_dtype)99), 0);
    ck_assert_int_eq(et_dtype_significand((et_dtype)99), 0);
    ck_assert(et_dtype_is_integer(ET_U64) && et_dtype_is_integer(ET_BOOL) && !et_dtype_is_integer(ET_BF16));
    ck_assert(!et_dtype_is_integer(ET_F8_E4M3) && !et_dtype_is_integer((et_dtype)99));
}
END_TEST

/* The two 16-bit float types: fraction bits, and the exponent of the smallest normal. */
static const struct {
    et_dtype dtype;
    int fraction_bits, emin;
} HALVES[] = {{ET_F16, 10, -14}, {ET_BF16, 7, -126}};

/* A pattern's value by definition: (-1)^sign 2^(field - bias) 1.fraction, or 2^emin 0.fraction. */
static double naive_value(uint32_t pattern, int fraction_bits, int emin)
{
    int fields = 1 << (15 - fraction_bits);
    int field = (int)(pattern >> fraction_bits) % fields;
    double fraction = ldexp((double)(pattern % (1u << fraction_bits)), -fraction_bits);
    double sign = pattern >= 0x8000 ? -1 : 1;
    if (field == fields - 1) return fraction != 0 ? NAN : sign * INFINITY;
    if (field == 0) return sign * ldexp(fraction, emin);
    return sign * ldexp(1 + fraction, field - 1 + emin);
}

START_TEST(every_16_bit_pattern_is_read_right_and_written_back)
{
    for (size_t h = 0; h < COUNT(HALVES); h++)
        for (uint32_t pattern = 0; pattern < 65536; pattern++) {
            unsigned char bytes[2] = {(unsigned char)pattern, (unsigned char)(pattern >> 8)};
            unsigned char again[2] = {0xaa, 0xaa};
            double got = et_dtype_decode(bytes, HALVES[h].dtype);
            double want = naive_value(pattern, HALVES[h].fraction_bits, HALVES[h].emin);
            if (!(isnan(want) ? isnan(got) : got == want && !signbit(got) == !signbit(want)))
                ck_abort_msg("%s %04x: got %a, want %a", et_dtype_name(HALVES[h].dtype), pattern,
                             got, want);
            et_dtype_encode(got, HALVES[h].dtype, again);
            if (memcmp(bytes, again, 2) != 0)
                ck_abort_msg("%s %04x: written back as %02x%02x", et_dtype_name(HALVES[h].dtype),
                             pattern, again[1], again[0]);
        }
}
END_TEST

/* Rounding by search: the values of a 16-bit type from 0 up, and one more where infinity begins; of
 * the two neighbours of |v| the nearer, of two equally near ones the one of even pattern. */
static double naive_round(double v, const double *values, int infinity)
{
    double magnitude = fabs(v);
    int low = 0, high = infinity;
    if (magnitude >= values[infinity]) return copysign(INFINITY, v);
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (magnitude < values[middle])
            high = middle;
        else
            low = middle;
    }
    double below = magnitude - values[low], above = values[high] - magnitude;
    int nearest = below < above || (below == above && low % 2 == 0) ? low : high;
    return copysign(nearest == infinity ? INFINITY : values[nearest], v);
}

static void assert_rounds(double v, et_dtype dtype, const double *values, int infinity)
{
    for (int sign = 0; sign < 2; sign++, v = -v) {
        double got = et_round_to_dtype(v, dtype), want = naive_round(v, values, infinity);
        if (!(got == want && !signbit(got) == !signbit(want)))
            ck_abort_msg("%a to %s: got %a, want %a", v, et_dtype_name(dtype), got, want);
    }
}

START_TEST(rounding_to_16_bits_is_to_nearest_even)
{
    static double values[32768];
    for (size_t h = 0; h < COUNT(HALVES); h++) {
        et_dtype dtype = HALVES[h].dtype;
        int infinity = ((1 << (15 - HALVES[h].fraction_bits)) - 1) << HALVES[h].fraction_bits;
        for (int i = 0; i < infinity; i++)
            values[i] = naive_value((uint32_t)i, HALVES[h].fraction_bits, HALVES[h].emin);
        values[infinity] = ldexp(1, 2 - HALVES[h].emin); /* what would follow the largest */
        /* Every tie, the doubles beside it, and a value short of it that F32 would make a tie. */
        for (int i = 0; i < infinity; i++) {
            double tie = values[i] + (values[i + 1] - values[i]) / 2;
            double gap = values[i + 1] - values[i];
            const double near[] = {tie,
                                   nextafter(tie, 0),
                                   nextafter(tie, INFINITY),
                                   tie - gap * 0x1p-40,
                                   tie + gap * 0x1p-40,
                                   values[i]};
            for (size_t k = 0; k < COUNT(near); k++)
                assert_rounds(near[k], dtype, values, infinity);
        }
        et_stream stream = et_stream_open(1, et_dtype_name(dtype));
        for (uint64_t i = 0; i < 200000; i++) {
            double v = 1 + et_uniform(stream, i, 0);
            int e = (int)(et_uniform(stream, i, 1) * 2098) - 1074;
            assert_rounds(ldexp(v, e), dtype, values, infinity);
            assert_rounds(ldexp(v, (int)(et_uniform(stream, i, 2) * 44) - 27), dtype, values,
                          infinity);
        }
        assert_rounds(INFINITY, dtype, values, infinity);
        assert_rounds(DBL_MAX, dtype, values, infinity);
        assert_rounds(0x1p-1074, dtype, values, infinity);
    }
}
END_TEST

START_TEST(rounding_has_the_values_one_knows_by_heart)
{
    ck_assert(et_round_to_dtype(65504, ET_F16) == 65504);
    ck_assert(et_round_to_dtype(65519.999, ET_F16) == 65504);
    ck_assert(et_round_to_dtype(65520, ET_F16) == INFINITY);
    ck_assert(et_round_to_dtype(0x1p-25, ET_F16) == 0); /* a tie between 0 and 2^-24 */
    ck_assert(et_round_to_dtype(0x1.8p-25, ET_F16) == 0x1p-24);
    ck_assert(signbit(et_round_to_dtype(-0x1p-30, ET_F16)));
    ck_assert(et_round_to_dtype(0.1, ET_BF16) == 0.10009765625);
    ck_assert(et_round_to_dtype(0x1.fep127, ET_BF16) == 0x1.fep127);
    ck_assert(et_round_to_dtype(0x1.ffp127, ET_BF16) == INFINITY);
    /* Through F32, both would first become a tie and then go to the even neighbour below. */
    ck_assert(et_round_to_dtype(1 + 0x1p-11 + 0x1p-40, ET_F16) == 1 + 0x1p-10);
    ck_assert(et_round_to_dtype(1 + 0x1p-8 + 0x1p-40, ET_BF16) == 1 + 0x1p-7);
    for (int d = 0; d < ET_DTYPE_COUNT; d++) {
        double got = et_round_to_dtype(1.5, (et_dtype)d);
        ck_assert(et_dtype_significand((et_dtype)d) > 0 ? got == 1.5 : isnan(got));
        if (et_dtype_significand((et_dtype)d) > 0) {
            ck_assert(isnan(et_round_to_dtype(NAN, (et_dtype)d)));
            ck_assert(et_round_to_dtype(-INFINITY, (et_dtype)d) == -INFINITY);
        }
    }
    ck_assert(et_round_to_dtype(0x1.fffffffffffffp1023, ET_F64) == DBL_MAX);
}
END_TEST

START_TEST(rounding_to_f32_is_the_machines)
{
    et_stream stream = et_stream_open(2, "F32");
    for (uint64_t i = 0; i < 300000; i++) {
        double v = 1 + et_uniform(stream, i, 0) + 0x1p-32 * et_uniform(stream, i, 1);
        v = ldexp(v, (int)(et_uniform(stream, i, 2) * 290) - 155);
        uint64_t bits;
        memcpy(&bits, &v, sizeof bits);
        if (i % 3 == 0) bits &= ~((UINT64_C(1) << 28) - 1); /* values and ties of F32 */
        if (i % 2) bits |= UINT64_C(1) << 63;
        memcpy(&v, &bits, sizeof v);
        float want =
            fabs(v) >= 0x1.ffffffp127 ? copysignf(INFINITY, (float)(v > 0 ? 1 : -1)) : (float)v;
        double got = et_round_to_dtype(v, ET_F32);
        if (!(got == (double)want)) ck_abort_msg("%a to F32: got %a, want %a", v, got, want);
        unsigned char bytes[4];
        uint32_t pattern;
        et_dtype_encode(v, ET_F32, bytes);
        memcpy(&pattern, &want, sizeof pattern);
        for (int b = 0; b < 4; b++) ck_assert_uint_eq(bytes[b], pattern >> (8 * b) & 0xff);
    }
}
END_TEST

/* A NaN's sign and upper payload survive; one whose upper payload is zero must not become infinite.
 */
START_TEST(nans_stay_nans)
{
    const uint64_t nans[] = {UINT64_C(0x7ff8000000000000), UINT64_C(0xfff8000000000000),
                             UINT64_C(0x7ff0000000000001), UINT64_C(0xffffffffffffffff)};
    const uint32_t as_f16[] = {0x7e00, 0xfe00, 0x7e00, 0xffff};
    const uint32_t as_bf16[] = {0x7fc0, 0xffc0, 0x7fc0, 0xffff};
    for (size_t i = 0; i < COUNT(nans); i++) {
        double v;
        unsigned char bytes[8];
        memcpy(&v, &nans[i], sizeof v);
        et_dtype_encode(v, ET_F16, bytes);
        ck_assert_uint_eq(bytes[0] | (unsigned)bytes[1] << 8, as_f16[i]);
        et_dtype_encode(v, ET_BF16, bytes);
        ck_assert_uint_eq(bytes[0] | (unsigned)bytes[1] << 8, as_bf16[i]);
        ck_assert(isnan(et_round_to_dtype(v, ET_F32)) && isnan(et_round_to_dtype(v, ET_F64)));
    }
}
END_TEST

START_TEST(integers_of_every_type_are_read)
{
    static const struct {
        et_dtype dtype;
        unsigned char bytes[8];
        double value;
    } known[] = {
        {ET_I64, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, -1},
        {ET_I64, {0, 0, 0, 0, 0, 0, 0, 0x80}, -0x1p63},
        {ET_I64, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, 0x1p63}, /* rounded */
        {ET_I64, {1, 0, 0, 0, 0, 0, 0x20, 0}, 0x1p53},                      /* 2^53 + 1: a tie */
        {ET_U64, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, 0x1p64}, /* rounded */
        {ET_U64, {3, 0, 0, 0, 0, 0, 0x20, 0}, 0x1p53 + 4},                  /* 2^53 + 3: a tie */
        {ET_I32, {0xfe, 0xff, 0xff, 0xff}, -2},
        {ET_I32, {0, 0, 0, 0x80}, -2147483648.0},
        {ET_U32, {0xff, 0xff, 0xff, 0xff}, 4294967295.0},
        {ET_I16, {0x00, 0x80}, -32768},
        {ET_I16, {0x34, 0x12}, 0x1234},
        {ET_U16, {0xff, 0xff}, 65535},
        {ET_I8, {0x80}, -128},
        {ET_I8, {0x7f}, 127},
        {ET_U8, {0xff}, 255},
        {ET_BOOL, {0}, 0},
        {ET_BOOL, {1}, 1},
        {ET_BOOL, {7}, 1},
    };
    for (size_t i = 0; i < COUNT(known); i++) {
        double got = et_dtype_decode(known[i].bytes, known[i].dtype);
        if (!(got == known[i].value))
            ck_abort_msg("row %zu, %s: got %.17g, want %.17g", i, et_dtype_name(known[i].dtype),
                         got, known[i].value);
        if (fabs(known[i].value) < 0x1p53 && known[i].bytes[0] != 7) {
            unsigned char again[8] = {0};
            et_dtype_encode(got, known[i].dtype, again);
            ck_assert_mem_eq(again, known[i].bytes, 8);
        }
    }
    unsigned char truth = 0xaa;
    et_dtype_encode(255, ET_BOOL, &truth); /* other readers want 0 or 1 */
    ck_assert_uint_eq(truth, 1);
    ck_assert(isnan(et_dtype_decode(known[0].bytes, ET_F8_E4M3)));
    ck_assert(isnan(et_dtype_decode(known[0].bytes, ET_F8_E5M2)));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("dtype");
    TCase *types = add_case(suite, "element types");
    tcase_add_test(types, types_have_the_formats_names_and_sizes);
    tcase_add_test(types, every_16_bit_pattern_is_read_right_and_written_back);
    tcase_add_test(types, rounding_to_16_bits_is_to_nearest_even);
    tcase_add_test(types, rounding_has_the_values_one_knows_by_heart);
    tcase_add_test(types, rounding_to_f32_is_the_machines);
    tcase_add_test(types, nans_stay_nans);
    tcase_add_test(types, integers_of_every_type_are_read);
    return run_suite(suite);
}
