/* test_optimizer.c: AdamW against a table worked by hand, Muon against known singular vectors, and
 * the schedules' corners.
 */
#include "etref/optimizer.h"
#include "etref/random.h"
#include "tests/check_main.h"

#include <math.h>
#include <omp.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static const double tolerance = sizeof(et_real) == sizeof(double) ? 1e-13 : 2e-5;

static void close_to(const char *what, double got, double want)
{
    ck_assert_msg(fabs(got - want) <= tolerance * fmax(1, fabs(want)), "%s = %.17g, want %.17g",
                  what, got, want);
}

/* ---- AdamW ----
 *
 * rate 1/8, betas 1/2 and 3/4, eps 1/2. With g = 1, 3, 0:
 *
 *     t   m                 v                          1 - b1^t  1 - b2^t   m^      v^
 *     1   1/2               1/4                        1/2       1/4        1       1
 *     2   1/4 + 3/2 = 7/4   3/16 + 9/4 = 39/16         3/4       7/16       7/3     39/7
 *     3   7/8               117/64                     7/8       37/64      1       117/37
 *
 *     w - w' = (1/8) m^ / (sqrt(v^) + 1/2)
 */
START_TEST(adamw_is_the_table_worked_by_hand)
{
    static const struct {
        double g, m, v, m_hat, v_hat;
    } table[] = {{1, 1.0 / 2, 1.0 / 4, 1, 1},
                 {3, 7.0 / 4, 39.0 / 16, 7.0 / 3, 39.0 / 7},
                 {0, 7.0 / 8, 117.0 / 64, 1, 117.0 / 37}};
    const et_adamw plain = {.rate = 0.125, .beta1 = 0.5, .beta2 = 0.75, .eps = 0.5};
    et_adamw decaying = plain;
    decaying.decay = 2; /* w loses a quarter first */
    et_real m[2] = {0}, v[2] = {0}, w[2] = {5, 5}, m2[1] = {0}, v2[1] = {0}, w2[1] = {5};
    double want = 5, decayed = 5;
    for (size_t t = 0; t < COUNT(table); t++) {
        const et_real g[] = {(et_real)table[t].g, (et_real)-table[t].g};
        double step = 0.125 * table[t].m_hat / (sqrt(table[t].v_hat) + 0.5);
        want -= step;
        decayed = decayed * 0.75 - step;
        ck_assert(et_adamw_update(&plain, t, 2, g, m, v, w, NULL) == ET_OK);
        ck_assert(et_adamw_update(&decaying, t, 1, g, m2, v2, w2, NULL) == ET_OK);
        close_to("m", (double)m[0], table[t].m);
        close_to("v", (double)v[0], table[t].v);
        close_to("w", (double)w[0], want);
        close_to("w, decaying", (double)w2[0], decayed);
        close_to("w, other way", (double)w[1], 10 - want);
    }
}
END_TEST

START_TEST(adamw_leaves_alone_what_has_no_gradient)
{
    const et_adamw a = {.rate = 0.2, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-10};
    et_real g[1] = {0}, m[1] = {0}, v[1] = {0}, w[1] = {(et_real)0.3};
    for (size_t t = 0; t < 3; t++) ck_assert(et_adamw_update(&a, t, 1, g, m, v, w, NULL) == ET_OK);
    ck_assert(w[0] == (et_real)0.3 && m[0] == 0 && v[0] == 0);
}
END_TEST

/* ---- clipping ---- */

START_TEST(gradients_are_clipped_to_a_norm)
{
    const et_real g[] = {3, 4}, zero[] = {0};
    ck_assert(et_squares(2, g) == 25 && et_squares(1, zero) == 0 && et_squares(0, NULL) == 0);
    ck_assert(et_clip_factor(5, 1) == 1 / (5 + 1e-6));
    ck_assert(et_clip_factor(0.5, 1) == 1 && et_clip_factor(1e9, 0) == 1);
    ck_assert(et_clip_factor(0, 1) == 1 && et_clip_factor(1, 1) < 1);
    ck_assert(isnan(et_clip_factor(NAN, 1)) && et_clip_factor(INFINITY, 1) == 0);
}
END_TEST

/* ---- Muon ---- */

enum { MOST = 48 * 48 };

/* A reflection I - 2 v v'/(v'v) of a random v: an orthogonal matrix, [n,n]. */
static void reflection(const char *name, size_t n, double *Q)
{
    et_stream stream = et_stream_open(3, name);
    double norm = 0;
    for (size_t i = 0; i < n; i++) norm += pow(et_normal(stream, i), 2);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++)
            Q[i * n + j] = (i == j) - 2 * et_normal(stream, i) * et_normal(stream, j) / norm;
}

/* out [m,n] = A [m,k] B [k,n] */
static void multiply(size_t m, size_t n, size_t k, const double *A, const double *B, double *out)
{
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            double sum = 0;
            for (size_t l = 0; l < k; l++) sum += A[i * k + l] * B[l * n + j];
            out[i * n + j] = sum;
        }
}

static double singular(size_t j)
{
    return 1 + 0.5 * (double)(j % 5);
}

/* g = U diag(s) V' gives an update whose factors are the same U and V and whose singular values are
 * those of the scalar iteration, all of them near 1: U' X V is diagonal. */
static void check_orthogonal(et_engine engine, size_t rows, size_t columns)
{
    static double U[MOST], V[MOST], product[MOST], other[MOST];
    static et_real g[MOST], m[MOST], w[MOST], room[8 * MOST];
    size_t least = rows < columns ? rows : columns;
    double norm = 0, tall = rows > columns ? sqrt((double)rows / (double)columns) : 1;
    ck_assert_uint_le(et_muon_room(rows, columns), COUNT(room));
    reflection("U", rows, U);
    reflection("V", columns, V);
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++)
            product[i * columns + j] = j < least ? U[i * rows + j] * singular(j) : 0;
    multiply(rows, columns, columns, product, V, other); /* V is symmetric */
    for (size_t j = 0; j < least; j++) norm += pow(singular(j), 2);
    for (size_t i = 0; i < rows * columns; i++) {
        g[i] = (et_real)other[i];
        m[i] = w[i] = 0;
    }
    const et_muon f = {.engine = engine, .rate = 0.5, .momentum = 0.75};
    ck_assert(et_muon_update(&f, rows, columns, g, m, w, room, NULL) == ET_OK);
    for (size_t i = 0; i < rows * columns; i++) {
        ck_assert(m[i] == (et_real)0.25 * g[i]);
        other[i] = (double)w[i] / (-0.5 * tall);
    }
    multiply(rows, columns, columns, other, V, product);
    multiply(rows, columns, rows, U, product, other);
    /* u = (1 - mu) (1 + mu) g: the factor goes with the norm, but for the 1e-7. */
    double factor = 0.25 * 1.75;
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++) {
            double s = i == j ? singular(j) * factor / (sqrt(norm) * factor + 1e-7) : 0;
            for (int k = 0; k < 5; k++)
                s = 3.4445 * s - 4.7750 * s * s * s + 2.0315 * s * s * s * s * s;
            ck_assert_msg(fabs(other[i * columns + j] - s) <= 20 * tolerance,
                          "%zu x %zu: U' X V [%zu,%zu] = %.17g, want %.17g", rows, columns, i, j,
                          other[i * columns + j], s);
            if (i == j) ck_assert(s > 0.6 && s < 1.25);
        }
}

START_TEST(muon_orthogonalises)
{
    static const size_t sizes[][2] = {{1, 1},  {1, 5},  {5, 1},   {4, 4},
                                      {7, 12}, {12, 7}, {33, 48}, {48, 33}};
    for (size_t i = 0; i < COUNT(sizes); i++)
        for (int engine = ET_PLAIN; engine <= ET_BLAS; engine++)
            check_orthogonal((et_engine)engine, sizes[i][0], sizes[i][1]);
}
END_TEST

START_TEST(muon_leaves_alone_what_has_no_gradient)
{
    et_real g[6] = {0}, m[6] = {0}, w[6] = {1, 2, 3, 4, 5, 6}, room[64];
    const et_muon f = {.rate = 0.02, .momentum = 0.95};
    ck_assert(et_muon_update(&f, 2, 3, g, m, w, room, NULL) == ET_OK);
    ck_assert(et_muon_update(&f, 0, 3, NULL, NULL, NULL, room, NULL) == ET_OK);
    for (size_t i = 0; i < 6; i++) ck_assert(w[i] == (et_real)(i + 1) && m[i] == 0);
}
END_TEST

/* A momentum's second step: m = mu (1 - mu) g1 + (1 - mu) g2, u = (1 - mu) g2 + mu m. Of a 1 x 1
 * matrix the update is u's sign times the scalar iteration of 1. */
START_TEST(muon_remembers)
{
    et_real m[1] = {0}, w[1] = {0}, room[4];
    const et_real first[] = {8}, second[] = {-1};
    const et_muon f = {.rate = 1, .momentum = 0.75};
    ck_assert(et_muon_update(&f, 1, 1, first, m, w, room, NULL) == ET_OK);
    ck_assert(m[0] == 2);
    et_real after = w[0];
    ck_assert(after < (et_real)-0.6 && after > (et_real)-1.3);
    ck_assert(et_muon_update(&f, 1, 1, second, m, w, room, NULL) == ET_OK);
    ck_assert(m[0] == (et_real)1.25); /* u = -0.25 + 0.9375 is above 0 still */
    ck_assert(w[0] < after);
}
END_TEST

/* ---- schedules ---- */

START_TEST(schedules_have_their_corners)
{
    const et_schedule s = {.steps = 10, .cooldown = 0.2};
    const double want[] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 0.5, 0, 0};
    for (size_t t = 0; t < COUNT(want); t++) ck_assert(et_schedule_factor(&s, t) == want[t]);
    const et_schedule warm = {.steps = 10, .warmup = 4, .cooldown = 0.4, .last = 0.1};
    const double other[] = {0.25, 0.5, 0.75, 1, 1, 1, 1, 0.775, 0.55, 0.325, 0.1, 0.1};
    for (size_t t = 0; t < COUNT(other); t++)
        ck_assert(fabs(et_schedule_factor(&warm, t) - other[t]) < 1e-15);
    const et_schedule flat = {.steps = 3}, none = {.steps = 0};
    ck_assert(et_schedule_factor(&flat, 2) == 1 && et_schedule_factor(&none, 0) == 0);
    ck_assert(et_ramp(0.85, 0.95, 300, 0) == 0.85 && et_ramp(0.85, 0.95, 300, 300) == 0.95);
    ck_assert(fabs(et_ramp(0.85, 0.95, 300, 150) - 0.9) < 1e-15 && et_ramp(0, 1, 0, 0) == 1);
}
END_TEST

START_TEST(contradictions_are_refused)
{
    et_error error = {""};
    et_real one[4] = {0};
    et_adamw a = {.rate = 1, .beta1 = 1, .beta2 = 0.5, .eps = 1};
    ck_assert(et_adamw_update(&a, 0, 1, one, one, one, one, &error) == ET_EINVAL);
    ck_assert(strstr(error.text, "betas 1") != NULL);
    a.beta1 = 0.5;
    a.eps = 0;
    ck_assert(et_adamw_update(&a, 0, 1, one, one, one, one, &error) == ET_EINVAL);
    a.eps = 1;
    ck_assert(et_adamw_update(&a, 0, 1, one, NULL, one, one, &error) == ET_EINVAL);
    ck_assert(strstr(error.text, "m is NULL") != NULL);
    et_muon f = {.rate = 1, .momentum = 1};
    ck_assert(et_muon_update(&f, 1, 1, one, one, one, one, &error) == ET_EINVAL);
    ck_assert(strstr(error.text, "momentum 1") != NULL);
    f.momentum = 0.5;
    ck_assert(et_muon_update(&f, 1, 1, one, one, one, NULL, &error) == ET_EINVAL);
    ck_assert(strstr(error.text, "room is NULL") != NULL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("optimizer");
    omp_set_num_threads(1);
    TCase *adamw = add_case(suite, "adamw");
    tcase_add_test(adamw, adamw_is_the_table_worked_by_hand);
    tcase_add_test(adamw, adamw_leaves_alone_what_has_no_gradient);
    tcase_add_test(add_case(suite, "clipping"), gradients_are_clipped_to_a_norm);
    TCase *muon = add_case(suite, "muon");
    tcase_add_test(muon, muon_orthogonalises);
    tcase_add_test(muon, muon_leaves_alone_what_has_no_gradient);
    tcase_add_test(muon, muon_remembers);
    tcase_add_test(add_case(suite, "schedules"), schedules_have_their_corners);
    tcase_add_test(add_case(suite, "refusals"), contradictions_are_refused);
    return run_suite(suite);
}
