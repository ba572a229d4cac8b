/* test_softmax.c: the softmax's gradient against binary128, where it is hard.
 *
 * gate.c computes dr_i = p_i sum_j p_j (dp_i - dp_j) from two sums that all i share, and claims
 *
 *     error <= 2 u |dr_i| + 2^-77 p_i T_i,     T_i = sum_j p_j |dp_i - dp_j|,
 *
 * for 4096 members. So much is asked for here, and no more is allowed; in the float build the sums are
 * doubles, too, and one rounding to float is added. The shares are those that the forward pass gave: they
 * do not add up to 1 exactly, and the formula must not assume it.
 *
 * Each layer below is one at which a plausible shortcut fails:
 *     shares as they come, alike         S taken for 1; sums in plain double
 *     one share close to 1, or equal 1   dp_i - sum_j p_j dp_j: even with 106 bits nothing is left of it
 *     dp = 10^9 + little                 the common part, times 1 - S, drowns the differences
 *     the largest share's dp stands out  a difference to it that is rounded to double
 */
#include "etref/gate.h"
#include "etref/random.h"
#include "etref/real.h"
#include "tests/check_main.h"
#include "tests/witness/quad_softmax.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

enum { MOST = 4096, LOOK_AT = 48 }; /* members; of which so many are checked */

typedef struct layer {
    const char *what;
    double spread;   /* of the logits, normal */
    double dominant; /* added to one of them */
    double common;   /* of the dp */
    double differ;   /* standard deviation of the dp */
    double outlier;  /* added to the dominant one's dp */
} layer;

static const layer layers[] = {
    {"plain", 1, 0, 0, 1, 0},
    {"all logits equal", 0, 0, 0, 1, 0},
    {"one share near 1", 1, 20, 0, 1, 0},
    {"one share rounds to 1", 1, 60, 0, 1, 0},
    {"the others are tiny", 1, 300, 0, 1, 0},
    {"a common part of 1e9", 1, 0, 1e9, 1e-3, 0},
    {"a common part, one share near 1", 1, 20, 1e9, 1e-3, 0},
    {"a common part of 1e30", 3, 10, 1e30, 1e18, 0},
    {"a large dp at a share like the others", 0, 1e-3, 0, 1e-8, 1e8},
    {"a large dp at a share near 1", 1, 20, 0, 1, 1e12},
    {"logits far apart", 30, 0, 0, 1, 0},
    {"small dp", 1, 5, 0, 1e-200, 0},
};

static void bounded(const layer *l, size_t count, const double *p, const double *dp, size_t i,
                    double got)
{
    quad_slope want = quad_softmax_slope(count, p, dp, i, got);
    bool shorter = sizeof(et_real) < sizeof(double);
    double u = shorter ? 0x1p-24 : 0x1p-53, least = shorter ? 0x1p-149 : 0x1p-1040;
    double rest = shorter ? 0x1p-52 : 0x1p-77;
    double bound = (shorter ? 1 : 2) * u * fabs(want.exact) + rest * want.reach + least;
    if (!(want.error <= bound))
        ck_abort_msg("%s, %zu members, %zu: got %.17g, want %.17g: off by %.3g, allowed %.3g",
                     l->what, count, i, got, want.exact, want.error, bound);
}

/* Members 0 to n-1, and the anchor as the last one where there is one. */
static void check(const layer *l, et_gate gate, size_t n)
{
    static et_real r[MOST], dp[MOST], p[MOST], dr[MOST];
    static double all_p[MOST + 1], all_dp[MOST + 1];
    bool down = gate == ET_GATE_SOFTMAX_TOKENS, anchored = et_gate_has_anchor(gate);
    et_real anchor = 0, danchor = (et_real)(l->common + l->differ);
    et_stream logits = et_stream_open(1, "softmax.r"), upstream = et_stream_open(1, "softmax.dp");
    for (size_t i = 0; i < n; i++) {
        bool chosen = i == n / 2;
        r[i] = (et_real)(l->spread * et_normal(logits, i) + (chosen ? l->dominant : 0));
        dp[i] =
            (et_real)(l->common + l->differ * et_normal(upstream, i) + (chosen ? l->outlier : 0));
        dr[i] = 0;
    }
    et_gate_forward(NULL, gate, down ? n : 1, down ? 1 : n, r, p, &anchor);
    et_gate_backward(NULL, gate, down ? n : 1, down ? 1 : n, r, p, &anchor, dp,
                     gate == ET_GATE_SOFTMAX_ANCHOR ? &danchor : NULL, dr);
    for (size_t i = 0; i < n; i++) {
        all_p[i] = (double)p[i];
        all_dp[i] = (double)dp[i];
    }
    all_p[n] = (double)anchor;
    all_dp[n] = gate == ET_GATE_SOFTMAX_ANCHOR ? (double)danchor : 0;
    for (size_t look = 0; look <= LOOK_AT; look++) {
        size_t i = look == LOOK_AT ? n / 2 : look * n / LOOK_AT;
        bounded(l, n + (anchored ? 1 : 0), all_p, all_dp, i, (double)dr[i]);
    }
}

START_TEST(gradients_are_those_of_binary128)
{
    static const et_gate gates[] = {ET_GATE_SOFTMAX, ET_GATE_SOFTMAX_ANCHOR,
                                    ET_GATE_SOFTMAX_ANCHOR_OUT, ET_GATE_SOFTMAX_TOKENS};
    static const size_t sizes[] = {1, 2, 3, 16, 257, MOST};
    for (size_t l = 0; l < COUNT(layers); l++)
        for (size_t g = 0; g < COUNT(gates); g++)
            for (size_t s = 0; s < COUNT(sizes); s++) check(&layers[l], gates[g], sizes[s]);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("softmax");
    tcase_add_test(add_case(suite, "gradient"), gradients_are_those_of_binary128);
    return run_suite(suite);
}
