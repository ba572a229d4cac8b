/* test_vectors.c: loops that the compiler makes vectors of have the bits of one element at a time.
 *
 * exponential.h and the activation of ffn.c are written without branches for the compiler's sake. What
 * they say of zeros, infinities and NaN must hold in every lane, also where such a value stands beside
 * others, and in the elements that are left over when the vectors are full.
 */
#include "etref/elementary.h"
#include "etref/ffn.h"
#include "etref/random.h"
#include "ref/base/exponential.h"
#include "tests/check_main.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

enum { MOST = 67 }; /* several vectors of any width, a block of et_exponentials, and a rest */

static const double strange[] = {0.0,      -0.0,    INFINITY, -INFINITY, NAN,    DBL_MAX,
                                 -DBL_MAX, 711,     709.9,    -745.1,    -746.5, -709,
                                 1e-320,   -1e-320, 0x1p-60,  710.0,     -746.0};

/* Bit by bit; all NaN are one. */
static bool alike(double a, double b)
{
    return (isnan(a) && isnan(b)) || to_bits(a) == to_bits(b);
}

static void same_exponentials(size_t count, const double *x)
{
    et_real from[MOST], y[MOST];
    for (size_t i = 0; i < count; i++) from[i] = (et_real)x[i];
    et_exponentials(NULL, count, 0, from, y);
    for (size_t i = 0; i < count; i++) {
        et_real alone = (et_real)et_exp((double)from[i]);
        ck_assert_msg(alike((double)y[i], (double)alone),
                      "exp(%a), element %zu of %zu: %a, alone %a", (double)from[i], i, count,
                      (double)y[i], (double)alone);
    }
}

START_TEST(exp_in_a_loop_is_et_exp)
{
    et_stream stream = et_stream_open(4, "exp");
    double x[MOST];
    for (size_t round = 0; round < 3000; round++) {
        double range = round % 3 == 0 ? 1500 : round % 3 == 1 ? 80 : 2;
        for (size_t i = 0; i < MOST; i++)
            x[i] = (et_uniform(stream, round * MOST + i, 0) - 0.5) * range;
        /* a seam of the reduction: x / ln 2 halfway between two integers, or next to it */
        double seam = (floor(et_uniform(stream, round, 1) * 2100) - 1074.5) / 0x1.71547652b82fep+0;
        x[round % MOST] = seam;
        x[(round + 1) % MOST] = nextafter(seam, 0);
        x[(round + 5) % MOST] = strange[round % COUNT(strange)];
        same_exponentials(round % (MOST + 1), x);
    }
}
END_TEST

/* d = h = 1, weights 1: H = x, A = relu(H)^2, dA = dO, dH = dA 2 relu(H). */
static void same_activation(size_t count, const et_real *H, const et_real *dO)
{
    const et_real one = 1;
    const et_ffn f = {.engine = ET_PLAIN, .d = 1, .h = 1, .up = &one, .down = &one};
    et_real pre[MOST], act[MOST], out[MOST], dA[MOST], dH[MOST], dx[MOST], dup = 0, ddown = 0;
    const et_ffn_rows rows = {count, H, pre, act, out, dO, dA, dH, dx, false, NULL, NULL};
    ck_assert_int_eq(et_ffn_forward(&f, &rows, NULL), ET_OK);
    ck_assert_int_eq(et_ffn_backward(&f, &rows, &dup, &ddown, NULL, NULL), ET_OK);
    for (size_t i = 0; i < count; i++) {
        et_real relu = H[i] > 0 ? H[i] : 0;
        ck_assert_msg(alike((double)act[i], (double)(relu * relu)),
                      "relu(%g)^2, element %zu of %zu: %g", (double)H[i], i, count, (double)act[i]);
        ck_assert_msg(alike((double)dH[i], (double)(dA[i] * (2 * relu))),
                      "%g * 2 relu(%g), element %zu of %zu: %g", (double)dA[i], (double)H[i], i,
                      count, (double)dH[i]);
    }
}

START_TEST(the_activation_masks_every_value)
{
    et_stream stream = et_stream_open(5, "activation");
    et_real H[MOST], dO[MOST];
    for (size_t round = 0; round < 600; round++) {
        for (size_t i = 0; i < MOST; i++) {
            H[i] = (et_real)et_normal(stream, round * MOST + i);
            dO[i] = (et_real)et_normal(stream, (round + 600) * MOST + i);
        }
        double special = strange[round % COUNT(strange)];
        H[round % MOST] = (et_real)(isfinite(special) ? special / 4 * FLT_MIN : special);
        same_activation(round % (MOST + 1), H, dO);
    }
}
END_TEST

/* What the tests above take from the definition, said once in numbers. */
START_TEST(relu_of_zeros_and_nan_is_zero)
{
    const et_real H[] = {(et_real)-0.0, 0, (et_real)NAN, -3, 3, (et_real)INFINITY};
    const et_real dO[] = {1, 1, 1, -1, -1, 1}, A[] = {0, 0, 0, 0, 9, (et_real)INFINITY};
    const double dH[] = {0.0, 0.0, 0.0, -0.0, -6, INFINITY};
    const et_real one = 1;
    const et_ffn f = {.engine = ET_PLAIN, .d = 1, .h = 1, .up = &one, .down = &one};
    et_real pre[6], act[6], out[6], dA[6], got[6], dx[6], dup = 0, ddown = 0;
    const et_ffn_rows rows = {6, H, pre, act, out, dO, dA, got, dx, false, NULL, NULL};
    ck_assert_int_eq(et_ffn_forward(&f, &rows, NULL), ET_OK);
    memcpy(pre, H, sizeof H); /* -0 and NaN, as they are */
    ck_assert_int_eq(et_ffn_backward(&f, &rows, &dup, &ddown, NULL, NULL), ET_OK);
    for (size_t i = 0; i < 6; i++) {
        ck_assert_msg(alike((double)act[i], (double)A[i]), "A[%zu] = %g", i, (double)act[i]);
        ck_assert_msg(alike((double)got[i], dH[i]), "dH[%zu] = %g", i, (double)got[i]);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("vectors");
    TCase *lanes = add_case(suite, "lanes");
    tcase_add_test(lanes, exp_in_a_loop_is_et_exp);
    tcase_add_test(lanes, the_activation_masks_every_value);
    tcase_add_test(lanes, relu_of_zeros_and_nan_is_zero);
    return run_suite(suite);
}
