/* test_gate.c: gate values against their definitions, slopes and Jacobians against closed forms and
 * central differences. Tolerances are bounds, derived beside the comparison.
 */
#include "etref/gate.h"
#include "etref/random.h"
#include "tests/check_main.h"
#include "tests/expect.h"

#include <float.h>

static const double U = ET_UNIT_ROUNDOFF;
static const double LEAST = sizeof(et_real) == sizeof(double) ? DBL_MIN : (double)FLT_MIN;

static const et_gate gates[] = {ET_GATE_SIGMOID,
                                ET_GATE_RELU,
                                ET_GATE_SOFTMAX,
                                ET_GATE_SOFTMAX_ANCHOR,
                                ET_GATE_SOFTMAX_ANCHOR_OUT,
                                ET_GATE_SOFTMAX_TOKENS};

typedef struct gate_case {
    const char *what;
    et_gate gate;
    et_real r[4], p[4], anchor[2]; /* two tokens, two experts */
} gate_case;

/* clang-format off */
static const gate_case gate_cases[] = {
    {"sigmoid", ET_GATE_SIGMOID, {0, 800, -800, (et_real)-0.0}, {0.5, 1, 0, 0.5}, {0}},
    {"relu", ET_GATE_RELU, {0, 800, -800, 1.5}, {0, 800, 0, 1.5}, {0}},
    {"softmax", ET_GATE_SOFTMAX, {7, 7, 800, -800}, {0.5, 0.5, 1, 0}, {0}},
    {"softmax, one dominates", ET_GATE_SOFTMAX, {-800, 0, 100, 100}, {0, 1, 0.5, 0.5}, {0}},
    {"anchor", ET_GATE_SOFTMAX_ANCHOR, {0, -800, 800, 0}, {0.5, 0, 1, 0}, {0.5, 0}},
    {"anchor dominates", ET_GATE_SOFTMAX_ANCHOR, {-800, -800, 800, 800}, {0, 0, 0.5, 0.5}, {1, 0}},
    {"anchor_out", ET_GATE_SOFTMAX_ANCHOR_OUT, {0, -800, -800, -900}, {0.5, 0, 0, 0}, {0.5, 1}},
    {"tokens", ET_GATE_SOFTMAX_TOKENS, {3, 800, 3, -800}, {0.5, 1, 0.5, 0}, {0}},
};
/* clang-format on */

START_TEST(gates_by_hand)
{
    for (size_t v = 0; v < COUNT(gate_cases); v++) {
        const gate_case *c = &gate_cases[v];
        bool has_anchor = et_gate_has_anchor(c->gate);
        et_real p[4], anchor[2] = {9, 9};
        et_gate_forward(NULL, c->gate, 2, 2, c->r, p, has_anchor ? anchor : NULL);
        same_reals(c->what, 4, p, c->p);
        if (has_anchor) same_reals(c->what, 2, anchor, c->anchor);
    }
    et_gate_forward(NULL, ET_GATE_SOFTMAX, 0, 2, NULL, NULL, NULL); /* nothing is touched */
}
END_TEST

/* |got - want| <= tolerance |want|, or both vanish below the least normal number. */
static void relatively(const char *what, double at, double got, double want, double tolerance)
{
    if (!(fabs(got - want) <= tolerance * fabs(want) + 4 * LEAST))
        ck_abort_msg("%s at %g: got %.17g, want %.17g, tolerance %.3g relative", what, at, got,
                     want, tolerance);
}

/* Five roundings in et_real (exp, 1 + e twice, product, quotient) and as many of ours: 10 u. The
 * slope is p(1-p) = e^-|r| / (1+e^-|r|)^2, to full relative accuracy however small. */
START_TEST(sigmoid_and_its_slope_are_accurate_everywhere)
{
    static const et_real logits[] = {-800, -745, -100, -80, -40, -30, -3, -1,  -0.25,
                                     0,    0.25, 1,    3,   30,  40,  80, 100, 800};
    for (size_t j = 0; j < COUNT(logits); j++) {
        double r = (double)logits[j], e = exp(-fabs(r));
        et_real p, dp = 1, slope = 0;
        et_gate_forward(NULL, ET_GATE_SIGMOID, 1, 1, &logits[j], &p, NULL);
        et_gate_backward(NULL, ET_GATE_SIGMOID, 1, 1, &logits[j], &p, NULL, &dp, NULL, &slope);
        relatively("sigmoid", r, (double)p, r < 0 ? e / (1 + e) : 1 / (1 + e), 10 * U);
        relatively("its slope", r, (double)slope, e / ((1 + e) * (1 + e)), 10 * U);
    }
}
END_TEST

START_TEST(relu_slope_is_zero_at_zero)
{
    const et_real r[] = {-800, -1, (et_real)-0.0, 0, 1e-30f, 800}, dp[] = {2, 3, 4, 5, 6, 7};
    et_real dr[] = {10, 10, 10, 10, 10, 10};
    et_gate_backward(NULL, ET_GATE_RELU, 3, 2, r, r, NULL, dp, NULL, dr);
    same_reals("relu", 6, dr, (const et_real[]){10, 10, 10, 10, 16, 17});
}
END_TEST

/* r = (x, 0): p = (1/(1+e), e/(1+e)) with e = e^-x, and dp = (1, 0) gives dr = +-e/(1+e)^2. Where
 * p_0 rounds to 1 the difference of two sums would be 0; the Jacobian is not. */
START_TEST(a_dominating_softmax_keeps_its_derivative)
{
    static const et_real logits[] = {0, 1, 17, 40, 80};
    for (size_t j = 0; j < COUNT(logits); j++) {
        double e = exp(-(double)logits[j]), want = e / ((1 + e) * (1 + e));
        for (size_t g = 2; g < COUNT(gates); g++) {
            bool anchored = et_gate_has_anchor(gates[g]);
            bool down = gates[g] == ET_GATE_SOFTMAX_TOKENS;
            const et_real r[2] = {logits[j], 0}, dp[2] = {1, 0};
            et_real p[2], anchor, dr[2] = {0, 0};
            size_t n = anchored || down ? 1 : 2, N = down ? 2 : 1; /* anchored: the anchor is 0 */
            et_gate_forward(NULL, gates[g], N, n, r, p, &anchor);
            et_gate_backward(NULL, gates[g], N, n, r, p, &anchor, dp, NULL, dr);
            relatively("dr_0", (double)logits[j], (double)dr[0], want, 12 * U);
            if (!anchored) relatively("dr_1", (double)logits[j], (double)dr[1], -want, 12 * U);
        }
    }
}
END_TEST

/* Equal shares: two experts and, where there is one, the anchor. dr_i = p sum_j p (dp_i - dp_j). */
START_TEST(softmax_jacobians_by_hand)
{
    const et_real r[] = {0, 0}, dp[] = {3, 1}, danchor[] = {8};
    et_real p[2], anchor, dr[] = {10, 20};
    et_gate_forward(NULL, ET_GATE_SOFTMAX, 1, 2, r, p, NULL);
    et_gate_backward(NULL, ET_GATE_SOFTMAX, 1, 2, r, p, NULL, dp, NULL, dr);
    same_reals("softmax: (3 - 1)/4", 2, dr, (const et_real[]){10.5, 19.5});
    et_gate_backward(NULL, ET_GATE_SOFTMAX_TOKENS, 2, 1, r, p, NULL, dp, NULL, dr);
    same_reals("softmax_tokens: the same down a column", 2, dr, (const et_real[]){11, 19});
    et_gate_forward(NULL, ET_GATE_SOFTMAX_ANCHOR, 1, 1, r, p, &anchor);
    dr[0] = 10;
    et_gate_backward(NULL, ET_GATE_SOFTMAX_ANCHOR, 1, 1, r, p, &anchor, dp, danchor, dr);
    same_reals("softmax_anchor: (3 - 8)/4", 1, dr, (const et_real[]){8.75});
    et_gate_backward(NULL, ET_GATE_SOFTMAX_ANCHOR_OUT, 1, 1, r, p, &anchor, dp, NULL, dr);
    same_reals("softmax_anchor_out: (3 - 0)/4", 1, dr, (const et_real[]){9.5});
}
END_TEST

enum { GATE_N = 3, GATE_n = 4 };

static void fill(const char *name, size_t count, et_real *to)
{
    et_stream stream = et_stream_open(3, name);
    for (size_t j = 0; j < count; j++) to[j] = (et_real)et_normal(stream, j);
}

/* The scalar sum dp p (+ sum danchor a_0) as a function of the logits, summed in double. */
static double gate_scalar(et_gate gate, const et_real *r, const et_real *dp, const et_real *danchor)
{
    et_real p[GATE_N * GATE_n], anchor[GATE_N];
    double sum = 0;
    et_gate_forward(NULL, gate, GATE_N, GATE_n, r, p, anchor);
    for (size_t j = 0; j < GATE_N * GATE_n; j++) sum += (double)dp[j] * (double)p[j];
    for (size_t t = 0; danchor && t < GATE_N; t++) sum += (double)danchor[t] * (double)anchor[t];
    return sum;
}

/* (L(r+e) - L(r-e)) / 2e differs from the derivative by e^2/6 |L'''| at most, and each L by 16 u of
 * the sum of the |dp|. Third derivatives of a share are below 1/4 (sigmoid 1/8), so with W that sum
 * and danchor's the error is at most W (e^2/24 + 16 u/e); e near the least of it. */
START_TEST(gate_derivatives_are_those_of_differences)
{
    const double step = ldexp(1, sizeof(et_real) == sizeof(double) ? -15 : -6);
    for (size_t g = 0; g < COUNT(gates); g++) {
        et_real r[GATE_N * GATE_n], dp[GATE_N * GATE_n], danchor[GATE_N], anchor[GATE_N];
        et_real p[GATE_N * GATE_n], dr[GATE_N * GATE_n] = {0};
        const et_real *da = gates[g] == ET_GATE_SOFTMAX_ANCHOR ? danchor : NULL;
        double weight = 0;
        fill("test.r", GATE_N * GATE_n, r);
        fill("test.dp", GATE_N * GATE_n, dp);
        fill("test.danchor", GATE_N, danchor);
        for (size_t j = 0; j < GATE_N * GATE_n; j++) {
            r[j] = (et_real)(rint(256 * (double)r[j]) / 256 + 1. / 32); /* r +- e: exact, no kink */
            weight += fabs((double)dp[j]);
        }
        for (size_t t = 0; t < GATE_N; t++) weight += fabs((double)danchor[t]);
        et_gate_forward(NULL, gates[g], GATE_N, GATE_n, r, p, anchor);
        et_gate_backward(NULL, gates[g], GATE_N, GATE_n, r, p, anchor, dp, da, dr);
        for (size_t j = 0; j < GATE_N * GATE_n; j++) {
            et_real at = r[j];
            r[j] = (et_real)((double)at + step);
            double difference = gate_scalar(gates[g], r, dp, da);
            r[j] = (et_real)((double)at - step);
            difference = (difference - gate_scalar(gates[g], r, dp, da)) / (2 * step);
            r[j] = at;
            double bound = weight * (step * step / 24 + 16 * U / step);
            if (!(fabs(difference - (double)dr[j]) <= bound))
                ck_abort_msg("gate %zu, logit %zu: backward %.12g, differences %.12g, bound %.3g",
                             g, j, (double)dr[j], difference, bound);
        }
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gate");
    TCase *gate = add_case(suite, "gate");
    tcase_add_test(gate, gates_by_hand);
    tcase_add_test(gate, sigmoid_and_its_slope_are_accurate_everywhere);
    tcase_add_test(gate, relu_slope_is_zero_at_zero);
    tcase_add_test(gate, a_dominating_softmax_keeps_its_derivative);
    tcase_add_test(gate, softmax_jacobians_by_hand);
    tcase_add_test(gate, gate_derivatives_are_those_of_differences);
    return run_suite(suite);
}
