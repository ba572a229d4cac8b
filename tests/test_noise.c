/* test_noise.c: the variances that X_noise predicts, against errors that are really made.
 *
 * Places and sites against their definition, product noise against sums in float, exactness against
 * the integer cases, and whole steps against emulated kernels (test_candidates.c has those).
 */
#include "etref/etref.h"
#include "ref/base/product_noise.h"
#include "ref/base/rounding.h"
#include "ref/layers/twins.h"
#include "ref/oracle/noise.h"
#include "tests/check_main.h"
#include "tests/run_case.h"

#include <math.h>

/* ---- places and sites ---- */

static const et_profile *profile(const char *name)
{
    const et_profile *p = et_profile_find(name);
    ck_assert_msg(p != NULL, "no profile %s", name);
    return p;
}

START_TEST(places_hold_what_their_format_holds)
{
    const struct {
        const char *profile;
        et_place place;
        double value;
        bool held;
        double ulp;
    } rows[] = {
        {"bf16", ET_OPERANDS, 1, true, 0x1p-7},
        {"bf16", ET_OPERANDS, 1 + 0x1p-7, true, 0x1p-7},
        {"bf16", ET_OPERANDS, 1 + 0x1p-8, false, 0x1p-7},
        {"bf16", ET_OPERANDS, -255, true, 1},
        {"bf16", ET_OPERANDS, 257, false, 2},
        {"bf16", ET_LOGITS, 257, true, 0x1p-15},
        {"bf16", ET_LOGITS, 1 + 0x1p-23, true, 0x1p-23},
        {"bf16", ET_LOGITS, 1 + 0x1p-24, false, 0x1p-23},
        {"f16", ET_OUTPUTS, 65504, true, 32},
        {"f16", ET_OUTPUTS, 65536, false, 64},
        {"f16", ET_OUTPUTS, 0x1p-24, true, 0x1p-24},
        {"f16", ET_OUTPUTS, 0x1p-25, false, 0x1p-24},
        {"f16", ET_OUTPUTS, 3 * 0x1p-24, true, 0x1p-24},
        {"f16", ET_ACCUMULATOR, 0x1p-25, true, 0x1p-48},
        {"bf16", ET_OUTPUTS, 0x1p-126, true, 0x1p-133},
        {"tf32", ET_OPERANDS, 1 + 0x1p-10, true, 0x1p-10},
        {"tf32", ET_OPERANDS, 1 + 0x1p-11, false, 0x1p-10},
        {"f64", ET_OUTPUTS, 3, true, 0x1p-51},
        {"f64", ET_OUTPUTS, 1.0 / 3, false, 0x1p-54},
        {"bf16", ET_OPERANDS, 0, true, 0x1p-133},
        {"bf16", ET_OPERANDS, INFINITY, false, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const et_profile *p = profile(rows[i].profile);
        ck_assert_msg(et_place_holds(p, rows[i].place, rows[i].value) == rows[i].held,
                      "row %zu: %s holds %a", i, rows[i].profile, rows[i].value);
        if (isinf(rows[i].value)) continue;
        double ulp = et_place_ulp(p, rows[i].place, rows[i].value);
        ck_assert_msg(ulp == rows[i].ulp, "row %zu: ulp of %a is %a", i, rows[i].value, ulp);
    }
    ck_assert_double_eq(et_place_largest(profile("f16"), ET_OUTPUTS), 65504);
    ck_assert_double_eq(et_place_smallest(profile("f16"), ET_OUTPUTS), 0x1p-14);
    ck_assert_double_eq(et_place_largest(profile("f32"), ET_OUTPUTS), 0x1.fffffep127);
}
END_TEST

/* The site's variance against the mean squared error of rounding many numbers near one another. */
START_TEST(a_site_is_as_wide_as_its_rounding)
{
    et_stream stream = et_stream_open(7, "site");
    const et_dtype types[] = {ET_BF16, ET_F16, ET_F32};
    const char *const names[] = {"bf16", "f16", "f32"};
    for (size_t k = 0; k < 3; k++)
        for (double scale = 0x1p-20; scale < 0x1p13; scale *= 37) {
            double made = 0, predicted = 0;
            for (uint64_t i = 0; i < 20000; i++) {
                double v = scale * (1 + et_uniform(stream, i, 0));
                double e = et_round_to_dtype(v, types[k]) - v;
                made += e * e;
                predicted += et_site_variance(profile(names[k]), ET_OUTPUTS, v, 1);
            }
            double ratio = sqrt(made / predicted);
            ck_assert_msg(fabs(ratio - 1) < 0.02, "%s at %g: %g", names[k], scale, ratio);
        }
    ck_assert_double_eq(et_site_variance(profile("bf16"), ET_OUTPUTS, 1.5, 0), 0);
    ck_assert_double_eq(et_site_variance(profile("bf16"), ET_OUTPUTS, 1.5, 1e-9), 0x1p-14 / 12);
    ck_assert_double_eq(et_site_variance(profile("bf16"), ET_OUTPUTS, 1 + 0x1p-8, 0), 0x1p-16);
    ck_assert_double_eq(et_site_variance(profile("bf16"), ET_OUTPUTS, 1 + 0x1p-8, 1e-9),
                        0x1p-14 / 12);
    ck_assert_double_eq(et_site_variance(profile("f16"), ET_OUTPUTS, 0x1p-25, 0), 0x1p-50);
    ck_assert_double_eq(et_site_variance(profile("tf32-rz"), ET_OPERANDS, 1 + 0x1p-11, 0),
                        0x1p-20 / 3);
    ck_assert_double_eq(et_site_variance(profile("tf32-rz"), ET_OPERANDS, 0.1, 0), 0x1p-28 / 3);
    et_profile flush = *profile("f16");
    flush.ftz = true;
    ck_assert_double_eq(et_site_variance(&flush, ET_OUTPUTS, 0x1p-20, 0), 0x1p-40);
}
END_TEST

/* ---- product noise ---- */

enum { ROWS = 40, COLUMNS = 50, DEPTH = 300 };

/* Of sums taken one after another in float, for operands whose mean is `mean`: acc's formula at both of its ends,
 * sums that cancel and sums that grow. The root mean square of error/sigma; of error over that of sigma, where
 * each sum is followed by itself: then most have no error, and a sigma for other orders. */
static double float_sums(double mean, bool short_operands, size_t depth)
{
    static et_real x[ROWS * DEPTH], y[DEPTH * COLUMNS], C[ROWS * COLUMNS], V[ROWS * COLUMNS];
    static float made[ROWS * COLUMNS];
    et_stream stream = et_stream_open(11, "product");
    et_dtype type = short_operands ? ET_BF16 : ET_F32;
    for (size_t i = 0; i < ROWS * depth; i++)
        x[i] = (et_real)et_round_to_dtype(et_normal(stream, i) + mean, type);
    for (size_t i = 0; i < depth * COLUMNS; i++)
        y[i] = (et_real)et_round_to_dtype(et_normal(stream, 100000 + i) + mean, type);
    et_matmul(ET_PLAIN, ROWS, COLUMNS, depth, et_rows(x, depth), et_rows(y, COLUMNS), false, C,
              COLUMNS);
    for (size_t i = 0; i < ROWS; i++)
        for (size_t j = 0; j < COLUMNS; j++) {
            float sum = 0;
            for (size_t k = 0; k < depth; k++) {
                float term = (float)x[i * depth + k] * (float)y[k * COLUMNS + j];
                sum += term;
            }
            made[i * COLUMNS + j] = sum;
        }
    et_product_room room = {0};
    et_noisy X = {et_rows(x, depth), NULL, NULL, 0}, Y = {et_rows(y, COLUMNS), NULL, NULL, 0};
    et_error error;
    const et_profile *p = profile(short_operands ? "bf16" : "f32");
    ck_assert_int_eq(et_product_noise(ET_BLAS, p, &room, ROWS, COLUMNS, depth, X, Y, C, ET_NOWHERE,
                                      false, V, &error),
                     ET_OK);
    et_product_room_free(&room);
    double sum = 0, errors = 0, variances = 0;
    for (size_t i = 0; i < ROWS * COLUMNS; i++) {
        double e = (double)made[i] - (double)C[i];
        ck_assert_msg(V[i] > 0 || e == 0, "%zu is called exact and errs by %g", i, e);
        if (V[i] > 0) sum += e * e / (double)V[i];
        errors += e * e;
        variances += (double)V[i];
    }
    return sqrt(short_operands && depth <= 32 ? errors / variances : sum / (ROWS * COLUMNS));
}

START_TEST(sums_in_float_err_as_predicted)
{
    const double means[] = {0, 0.5, 2};
    const size_t depths[] = {16, 64, 300};
    for (size_t i = 0; i < 3; i++)
        for (size_t j = 0; j < 3; j++)
            for (int operands = 0; operands < 2; operands++) {
                double ratio = float_sums(means[i], operands == 1, depths[j]);
                printf("float sums of %zu terms, mean %g, %s operands: error/sigma %.3f\n",
                       depths[j], means[i], operands ? "short" : "long", ratio);
                ck_assert_msg(ratio > 0.9 && ratio < 1.1, "%g", ratio);
            }
}
END_TEST

/* Whole numbers whose sums fit: exact; one bit more than fits: not. */
START_TEST(sums_that_fit_are_exact)
{
    et_product_room room = {0};
    et_error error;
    et_real x[2] = {4096, 4095}, y[2] = {2048, 2048}, C[1], V[1];
    et_noisy X = {et_rows(x, 2), NULL, NULL, 0}, Y = {et_rows(y, 1), NULL, NULL, 0};
    const struct {
        et_real x0, x1;
        bool exact;
    } rows[] = {{4096, 4095, true}, {4096, 4096, true}, {8191, 1, true}, {8192, 1, false},
                {0.5, 4096, true},  {0.5, 8192, false}, {0, 0, true}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        x[0] = rows[i].x0;
        x[1] = rows[i].x1;
        y[1] = 2047; /* odd: the products' lowest bit is that of x */
        C[0] = x[0] * y[0] + x[1] * y[1];
        ck_assert_int_eq(et_product_noise(ET_BLAS, profile("f32"), &room, 1, 1, 2, X, Y, C,
                                          ET_NOWHERE, false, V, &error),
                         ET_OK);
        ck_assert_msg((V[0] == 0) == rows[i].exact, "row %zu: V = %g", i, (double)V[0]);
    }
    et_product_room_free(&room);
}
END_TEST

static void product_by_blas(et_noisy X, et_noisy Y, et_real *V)
{
    et_product_room room = {0};
    et_error error;
    ck_assert_int_eq(et_product_noise(ET_BLAS, profile("f32"), &room, 2, 1, 2, X, Y, NULL,
                                      ET_NOWHERE, false, V, &error),
                     ET_OK);
    et_product_room_free(&room);
}

/* Tiny numbers must not become exact by underflow in float: neither those of X's errors, nor of Y's. */
START_TEST(nothing_becomes_exact_by_underflow)
{
    const et_real tiny = (et_real)1e-36, x[4] = {1, 1, 0, (et_real)1e-18},
                  y[2] = {1, (et_real)1e-3};
    const et_real Vx[4] = {10000, 1, 0, tiny}, Vy[2] = {10000, (et_real)1e-6};
    et_real V[2];
    product_by_blas((et_noisy){et_rows(x, 2), Vx, NULL, 0},
                    (et_noisy){et_rows(y, 1), NULL, NULL, 0}, V);
    ck_assert_double_eq_tol((double)V[1], 1e-42, 1e-44);
    product_by_blas((et_noisy){et_rows(x, 2), Vx, NULL, 0}, (et_noisy){et_rows(y, 1), Vy, NULL, 0},
                    V);
    ck_assert_double_eq_tol((double)V[1], 3e-42, 3e-44);
}
END_TEST

#ifndef ETREF_F32
/* What is out of float's range, or of binary64's, beside numbers of another size: two rows of two terms; V of their
 * errors alone, or NaN. */
static const struct {
    et_real x[4], Vx[4], y[2];
    double V[2];
} ranges[] = {
    {{1e200, 1, 1, 1}, {0, 0, 1e-4, 1e-4}, {1, 2}, {HUGE_VAL, 5e-4}},
    {{0, 0, 0, 0}, {1e40, 0, 1e-10, 0}, {1, 0}, {1e40, 1e-10}},
    {{0, 0, 0, 0}, {1e40, 0, (et_real)NAN, 0}, {1, 1}, {1e40, NAN}},
    {{0, 0, 0, 0}, {(et_real)NAN, 0, 1e40, 1e-10}, {1, 1}, {NAN, 1e40}},
    {{0, 0, 0, 0}, {1e-320, 0, 0, 0}, {1, 1}, {1e-320, 0}},
    {{0, 0, 0, 0}, {(et_real)HUGE_VAL, 0, 1, 0}, {0, 1}, {NAN, 0}},
    {{0, 0, 0, 0}, {1e120, 0, 1e85, 0}, {1e-151, 0}, {1e-182, 1e-217}},
    {{(et_real)HUGE_VAL, 0, 1, 0}, {0, 0, 0, 0}, {0x1p-40, 1}, {HUGE_VAL, 0}},
};

START_TEST(numbers_of_any_size_have_their_variance)
{
    et_real V[2];
    product_by_blas((et_noisy){et_rows(ranges[_i].x, 2), ranges[_i].Vx, NULL, 0},
                    (et_noisy){et_rows(ranges[_i].y, 1), NULL, NULL, 0}, V);
    for (size_t k = 0; k < 2; k++) {
        double want = ranges[_i].V[k], got = (double)V[k];
        bool right = isnan(want) ? isnan(got) : got == want || fabs(got - want) < 1e-6 * want;
        ck_assert_msg(right, "row %zu: V = %g, not %g", k, got, want);
    }
}
END_TEST
#endif

/* Sums of two products, added to what is there, in rows that are longer than a piece. Sums of 40 floats: 40 ulps, 2.4e-6. */
START_TEST(engines_agree_on_the_variance)
{
    enum { M = 5, N = 300, K = 40 };
    static et_real x[M * K], y[K * N], Vx[M * K], Vy[K * N], V[2][M * N];
    const et_engine engines[] = {ET_PLAIN, ET_BLAS};
    et_stream stream = et_stream_open(7, "engines");
    for (size_t i = 0; i < M * K; i++) x[i] = (et_real)et_normal(stream, i);
    for (size_t i = 0; i < K * N; i++) y[i] = (et_real)et_normal(stream, M * K + i);
    for (size_t i = 0; i < M * K; i++) Vx[i] = x[i] * x[i] * (et_real)1e-5;
    for (size_t i = 0; i < K * N; i++) Vy[i] = y[i] * y[i] * (et_real)1e-6;
    for (size_t e = 0; e < 2; e++) {
        et_product_room room = {0};
        et_error error;
        for (size_t i = 0; i < M * N; i++) V[e][i] = (et_real)1e-4;
        ck_assert_int_eq(et_product_noise(engines[e], profile("f32"), &room, M, N, K,
                                          (et_noisy){et_rows(x, K), Vx, NULL, 0},
                                          (et_noisy){et_rows(y, N), Vy, NULL, 0}, NULL, ET_NOWHERE,
                                          true, V[e], &error),
                         ET_OK);
        et_product_room_free(&room);
    }
    for (size_t i = 0; i < M * N; i++) {
        ck_assert_double_gt((double)V[0][i], 1.5e-4);
        ck_assert_double_eq_tol((double)V[1][i], (double)V[0][i], 1e-5 * (double)V[0][i]);
    }
}
END_TEST

/* ---- whole steps ---- */

typedef void visit_case(const et_case *c, void *user);

static void each_core_case(visit_case *visit, void *user)
{
    size_t length, count;
    et_error error;
    char *text = read_suite("core.json", &length);
    ck_assert_int_eq(et_case_count(&count, text, length, "core", &error), ET_OK);
    for (size_t i = 0; i < count; i++) {
        et_case c;
        ck_assert_int_eq(et_case_parse_nth(&c, i, text, length, "core", &error), ET_OK);
        visit(&c, user);
    }
    free(text);
}

static bool is_real_result(const et_tensor_out *t)
{
    return (t->source == ET_FROM_F64 || t->source == ET_FROM_F32) &&
           strncmp(t->name, "in.", 3) != 0;
}

static size_t count_of(const et_tensor_out *t)
{
    size_t count = 1;
    for (size_t i = 0; i < t->rank; i++) count *= t->shape[i];
    return count;
}

/* Every variance is a number, none negative; those of integer cases are 0, but for the moving average,
 * whose decay is no short number. */
static void check_variances(const et_case *c, void *user)
{
    size_t *exact = user;
    et_step s;
    et_error error;
    run_case(&s, c);
    const et_profile *p;
    for (size_t k = 0; (p = et_profile_at(k)) != NULL; k++) {
        et_step V;
        et_tensor_out tensors[ET_MAX_STEP_TENSORS];
        ck_assert_msg(et_step_noise(&V, &s, p, &error) == ET_OK, "%s", error.text);
        size_t count = et_step_tensors(&V, false, tensors);
        for (size_t i = 0; i < count; i++) {
            if (!is_real_result(&tensors[i])) continue;
            const et_real *v = tensors[i].values;
            bool whole = c->input.source == ET_INPUT_INTEGER &&
                         strcmp(tensors[i].name, "state.ema") != 0 &&
                         strncmp(tensors[i].name, "metric.", 7) != 0 &&
                         strcmp(tensors[i].name, "route.cutoff") != 0;
            size_t elements = count_of(&tensors[i]), j = 0;
            while (j < elements && v[j] >= 0 && isfinite(v[j]) && (!whole || v[j] == 0)) j++;
            if (j < elements) /* an assertion for each element would take minutes */
                ck_abort_msg("%s %s %s[%zu]: %g%s", c->name, p->name, tensors[i].name, j,
                             (double)v[j], whole ? ", must be exact" : "");
            if (whole) *exact += elements;
        }
        et_step_free(&V);
    }
    et_step_free(&s);
}

START_TEST(variances_are_numbers_and_integers_exact)
{
    size_t exact = 0;
    each_core_case(check_variances, &exact);
    ck_assert_uint_gt(exact, 100000);
}
END_TEST

/* ---- twins ---- */

START_TEST(twins_are_found)
{
    const et_real x[] = {1, 2, 3, 4, 1, 2, 1, 2, 0, 0, -(et_real)0, 0};
    const et_real dy[] = {5, 5, 5, 5, 5, 5, 6, 5, 1, 1, 1, 1};
    const int32_t input[] = {0, 1, 0, 0, 4, 4}, both[] = {0, 1, 0, 3, 4, 4};
    const int32_t inputs[] = {3, 1, 3, 3, 2, 2}, boths[] = {2, 1, 2, 1, 2, 2};
    et_token_twins twins;
    et_error error;
    ck_assert_int_eq(et_find_twins(&twins, 6, 2, x, dy, &error), ET_OK);
    ck_assert_mem_eq(twins.input, input, sizeof input);
    ck_assert_mem_eq(twins.both, both, sizeof both);
    ck_assert_mem_eq(twins.inputs, inputs, sizeof inputs);
    ck_assert_mem_eq(twins.boths, boths, sizeof boths);
    ck_assert_uint_eq(twins.groups, 3);
    et_free_twins(&twins);
}
END_TEST

START_TEST(multiples_are_found)
{
    const et_real x[] = {0, 1, 2, 0, 3, 6, 0, -3, -6, 0, 3, 5, 0, 0, 0, 1, 1, 2, 0, 1, 2};
    const int32_t equal[] = {0, 1, 2, 3, 4, 5, 0}, parallel[] = {0, 0, 0, 3, 4, 5, 0};
    int32_t first[7];
    size_t different;
    et_error error;
    ck_assert_int_eq(et_find_equal_rows(7, 3, x, false, first, &different, &error), ET_OK);
    ck_assert_mem_eq(first, equal, sizeof equal);
    ck_assert_uint_eq(different, 6);
    ck_assert_int_eq(et_find_equal_rows(7, 3, x, true, first, &different, &error), ET_OK);
    ck_assert_mem_eq(first, parallel, sizeof parallel);
    ck_assert_uint_eq(different, 4);
}
END_TEST

/* Positive weights have a common direction, those about 0 none; nor are few of them told from chance. */
START_TEST(positive_weights_go_one_way)
{
    enum { H = 40, D = 30 };
    static et_real W[H * D];
    et_stream stream = et_stream_open(4, "common");
    et_real *along;
    et_error error;
    for (size_t i = 0; i < H * D; i++) W[i] = (et_real)et_normal(stream, i);
    ck_assert_int_eq(et_find_common(&along, H, D, et_rows(W, D), &error), ET_OK);
    ck_assert_ptr_null(along);
    for (size_t i = 0; i < H * D; i++) W[i] = (et_real)fabs((double)W[i]);
    ck_assert_int_eq(et_find_common(&along, 15, D, et_rows(W, D), &error), ET_OK);
    ck_assert_ptr_null(along);
    for (size_t i = 0; i < H * D; i++) W[i] = (et_real)(1 + i % D);
    for (size_t c = 0; c < D; c++) W[7 * D + c] *= -2;
    double length = sqrt(D * (D + 1) * (2 * D + 1) / 6.);
    ck_assert_int_eq(et_find_common(&along, H, D, et_rows(W, D), &error), ET_OK);
    ck_assert_double_eq_tol((double)along[0], length, 1e-9);
    ck_assert_double_eq_tol((double)along[7], -2 * length, 1e-9);
    free(along);
    ck_assert_int_eq(et_find_common(&along, D, H, et_transposed(W, D), &error), ET_OK);
    ck_assert_double_eq_tol((double)along[2], 3 * (double)along[0], 1e-9);
    free(along);
}
END_TEST

/* Parallel rows have one direction, those of an identity all; chance is between. */
START_TEST(directions_are_counted)
{
    enum { N = 200, D = 20 };
    static et_real parallel[N * D], square[D * D], chance[N * D];
    et_stream stream = et_stream_open(3, "directions");
    double directions;
    et_error error;
    for (size_t i = 0; i < N * D; i++) {
        parallel[i] = (et_real)((double)(i / D + 1) * (0.5 + (double)(i % D)));
        chance[i] = (et_real)et_normal(stream, i);
    }
    for (size_t i = 0; i < D; i++) square[i * D + i] = 3;
    ck_assert_int_eq(et_find_directions(&directions, N, D, parallel, NULL, &error), ET_OK);
    ck_assert_double_eq_tol(directions, 1, 1e-9);
    ck_assert_int_eq(et_find_directions(&directions, D, D, square, NULL, &error), ET_OK);
    ck_assert_double_eq_tol(directions, D, 1e-9);
    ck_assert_int_eq(et_find_directions(&directions, N, D, chance, NULL, &error), ET_OK);
    ck_assert_msg(directions > 8 && directions < D, "%g", directions);
    ck_assert_int_eq(et_find_directions(&directions, 0, D, chance, NULL, &error), ET_OK);
    ck_assert_double_eq(directions, 1);
}
END_TEST

/* ---- gates ---- */

static double softmax_of_three(const double *r)
{
    return 1 / (1 + exp(r[1] - r[0]) + exp(r[2] - r[0]));
}

/* ---- parameters ---- */

/* Root mean square of the error that rounded operands make of dW_up, in deviations of V. */
static double moved_by(const et_step *s, const et_step *V, const et_profile *p)
{
    const rounding r = et_rounding_at(p, ET_OPERANDS);
    const et_case *c = &s->c;
    size_t d = c->d_model, h = c->d_expert;
    et_step moved;
    et_error error;
    double squares = 0;
    ck_assert_int_eq(et_step_create(&moved, c, 0, &error), ET_OK);
    for (size_t i = 0; i < c->tokens * d; i++) moved.in.x[i] = rounding_result(&r, s->in.x[i]);
    for (size_t i = 0; i < h * d; i++) moved.in.up[i] = rounding_result(&r, s->in.up[i]);
    for (size_t i = 0; i < h * d; i++) moved.in.down[i] = rounding_result(&r, s->in.down[i]);
    memcpy(moved.in.dy, s->in.dy, c->tokens * d * sizeof *s->in.dy);
    ck_assert_int_eq(et_step_run(&moved, ET_PLAIN, NULL, NULL, &error), ET_OK);
    for (size_t i = 0; i < h * d; i++) {
        double e = moved.bwd.up[i] - s->bwd.up[i];
        squares += e * e / V->bwd.up[i] / (double)(h * d);
    }
    et_step_free(&moved);
    return sqrt(squares);
}

/* 0: dy by chance; 1: dy = x, where all tokens' errors add up. */
START_TEST(a_rounded_parameter_errs_for_all_tokens)
{
    const et_profile *p = profile("tf32");
    bool follows = _i == 1;
    et_case c;
    et_step s, chance, V;
    et_error error;
    ck_assert_int_eq(parse_quoted(&c,
                                  "{'name':'all','layer':'dense','tokens':8192,'d_model':8,"
                                  "'d_expert':24,'precision':'f32','input':{'source':'normal'}}",
                                  NULL),
                     ET_OK);
    draw_case(&s, &c);
    for (size_t i = 0; follows && i < c.tokens * c.d_model; i++) s.in.dy[i] = s.in.x[i];
    ck_assert_int_eq(et_step_run(&s, ET_PLAIN, NULL, NULL, &error), ET_OK);
    ck_assert_int_eq(et_noise_by_chance(&chance, &s, p, &error), ET_OK);
    ck_assert_int_eq(et_step_noise(&V, &s, p, &error), ET_OK);
    et_systematic by;
    ck_assert_int_eq(et_noise_systematic(&by, &s, p, &error), ET_OK);
    ck_assert(by.parameters);
    double before = moved_by(&s, &chance, p), after = moved_by(&s, &V, p);
    if (follows) {
        ck_assert_msg(before > 3, "%g deviations", before);
        ck_assert_msg(after < 1.1, "%g deviations", after);
    } else {
        ck_assert_msg(before < 1.1 && after > 0.9 * before, "%g, %g deviations", before, after);
    }
    et_step_free(&V);
    et_step_free(&chance);
    et_step_free(&s);
}
END_TEST

/* Six deviations of a logit move a gate by no more than six of its own, and by no less where it is straight. */
START_TEST(gates_err_as_far_as_their_logits)
{
    static const double at[] = {-300, -40, -8, -1, 0, 2, 15, 200}, by[] = {1e-5, 0.05, 1, 10, 60};
    const et_profile *p = profile("f32");
    for (size_t i = 0; i < sizeof at / sizeof *at; i++)
        for (size_t j = 0; j < sizeof by / sizeof *by; j++) {
            et_real r[] = {(et_real)at[i], 0, -1}, V[] = {(et_real)(by[j] * by[j]), 0, 0};
            et_real gates[3], Vp[3];
            const double up[] = {at[i] + 6 * by[j], 0, -1}, down[] = {at[i] - 6 * by[j], 0, -1};
            et_gate_forward(ET_GATE_SOFTMAX, 1, 3, r, gates, NULL);
            et_gate_noise(ET_GATE_SOFTMAX, p, 1, 3, r, gates, NULL, V, false, Vp, NULL);
            double own = (double)gates[0], bar = 6.0001 * sqrt((double)Vp[0]) + 1e-7 * own;
            ck_assert_msg(fabs(softmax_of_three(up) - own) <= bar, "%g up %g", at[i], by[j]);
            ck_assert_msg(fabs(softmax_of_three(down) - own) <= bar, "%g down %g", at[i], by[j]);
            if (by[j] > 1e-4 || own < 1e-30) continue;
            double straight = own * (1 - own) * by[j];
            ck_assert_double_le((double)Vp[0], 1.01 * straight * straight + 1e-13 * own * own);
        }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("noise");
    TCase *sites = add_case(suite, "sites");
    tcase_add_test(sites, places_hold_what_their_format_holds);
    tcase_add_test(sites, a_site_is_as_wide_as_its_rounding);
    TCase *products = add_case(suite, "products");
    tcase_add_test(products, sums_in_float_err_as_predicted);
    tcase_add_test(products, sums_that_fit_are_exact);
    tcase_add_test(products, nothing_becomes_exact_by_underflow);
    tcase_add_test(products, engines_agree_on_the_variance);
#ifndef ETREF_F32
    tcase_add_loop_test(products, numbers_of_any_size_have_their_variance, 0,
                        sizeof ranges / sizeof *ranges);
#endif
    TCase *steps = add_case(suite, "steps");
    tcase_add_test(steps, variances_are_numbers_and_integers_exact);
    tcase_add_test(steps, twins_are_found);
    tcase_add_test(steps, multiples_are_found);
    tcase_add_test(steps, positive_weights_go_one_way);
    tcase_add_test(steps, directions_are_counted);
    tcase_add_loop_test(steps, a_rounded_parameter_errs_for_all_tokens, 0, 2);
    TCase *gates = add_case(suite, "gates");
    tcase_add_test(gates, gates_err_as_far_as_their_logits);
    return run_suite(suite);
}
