/* gate.c: from router logits to gate values, and back. See etref/gate.h.
 *
 *   sigmoid             p = 1/(1+e^-r)                       p' = p(1-p)
 *   relu                p = max(r,0)                         p' = [r > 0]
 *   softmax             p_i = e^r_i / sum_j e^r_j            dr_i = p_i sum_j p_j (dp_i - dp_j)
 *   softmax_anchor      the same over [0, r_1 .. r_n]        the same, j over the anchor, too
 *   softmax_anchor_out  the same values                      the same with da_0 = 0, for the
 *                                                            shared expert's weight is a constant
 *   softmax_tokens      softmax down a column                the same down a column
 *
 * Source: paper, Eq. 1 (sigmoid); the other gates are those of the released code.
 * Every sum runs in index order. Left out: selection. A gate knows nothing of the assignment.
 *
 * With a rounding every step is a kernel's: rounded, and in the formulas that kernels use, which lose
 * more than the golden's do. A gate's last step is rounded where its result is stored.
 */
#include "etref/cross_entropy.h"
#include "etref/elementary.h"
#include "etref/gate.h"
#include "ref/base/float_environment.h"
#include "ref/base/bits.h"
#include "ref/base/exponential.h"
#include "ref/base/threads.h"
#include "ref/base/sum.h"
#include "ref/base/twofold.h"

#include <math.h>

/* A kernel's steps between logits and gate values. */
typedef struct steps {
    const et_rounding *kernel;
    et_grid grid, tanh; /* of each step's result, of tanh's; unused in a golden */
    bool grows, by_tanh, loose, inverts, saves, by_lse;
} steps;

/* Kernels' formulas differ, and half of the replicas have the one, half the other:
 *
 *     1/(1 + e^-r)      for e^r/(1 + e^r), r < 0: 0 where e^-r is beyond the format; e^r is below the normal numbers there
 *     (1 + tanh(r/2))/2 for both: of a small gate it has lost what is small beside 1
 *     2^(r log2 e)      as processors have it, or a polynomial: by how much it is off, below
 *     a (1/b)           for a/b
 *     e^(r - lse)       for e^r / sum e^r, lse = log sum e^r, which has lost what is small beside the largest logit
 *     p_i (dp_i - D)    and p (1 - p), which lose where a gate is nearly 1 what p_i sum_j p_j (dp_i - dp_j) and
 *                       e^-|r| / (1 + e^-|r|)^2 save; these err as little as the golden's, rounded */
static steps steps_of(const et_rounding *r)
{
    steps s = {.kernel = et_rounds(r) ? r : NULL};
    const et_rounding *kernel = s.kernel;
    if (kernel == NULL) return s;
    s.grid = et_grid_of(kernel, ET_GATE_ARITHMETIC, "gate");
    s.tanh = et_grid_of(kernel, ET_GATE_ARITHMETIC, "tanh");
    s.grows = et_goes_other_way(r, "1/(1+e^-r)", "gate");
    s.by_tanh = et_goes_other_way(r, "tanh", "gate");
    s.loose = et_goes_other_way(r, "2^(r log2 e)", "gate");
    s.inverts = et_goes_other_way(r, "a (1/b)", "gate");
    s.saves = et_goes_other_way(r, "1 - p", "gate");
    s.by_lse =
        et_goes_other_way(r, "e^(r - lse)", "gate") &&
        et_place_bits(r->profile, ET_GATE_ARITHMETIC) >= et_place_bits(r->profile, ET_ACCUMULATOR);
    return s;
}

static const et_grid *grid_of(const steps *s)
{
    return s->kernel ? &s->grid : NULL;
}

/* Libraries promise e^v to an ulp or two, those that take 2^(v log2 e) to so many and one more for each unit of |v|, half of
 * which is the rounding of v log2 e. By how much one is off, nobody but its author knows; equal numbers are off alike. Here up
 * to (1 + |v|)/2 ulp, by chance of the number that it would be rounded to. e^0 is 1, by every library, and so is what rounds
 * to it. */
static double off_by_library(const et_grid *g, double v, double e)
{
    double chance = (double)(et_mix(to_bits(e) ^ g->key) >> 11) * 0x1p-52 - 1; /* from -1 to 1 */
    return et_rounded(g, e * (1 + chance * ldexp(1 + fabs(v), g->drop - 53)));
}

static et_real e_to(const steps *s, et_real v)
{
    double e = et_rounded(grid_of(s), exponential((double)v));
    if (s->grows && e < s->grid.smallest) return 0;
    return (et_real)(s->loose && e > 0 && e != 1 && e < (double)INFINITY
                         ? off_by_library(&s->grid, (double)v, e)
                         : e);
}

static et_real over(const steps *s, et_real a, et_real b)
{
    return s->inverts ? a * (et_real)et_over(&s->grid, 1, (double)b) : a / b;
}

bool et_gate_has_anchor(et_gate gate)
{
    return gate == ET_GATE_SOFTMAX_ANCHOR || gate == ET_GATE_SOFTMAX_ANCHOR_OUT;
}

/* Written with e^-|r| <= 1, so that nothing overflows: for r < 0, 1/(1+e^-r) = e^r/(1+e^r). */
static et_real sigmoid(const steps *s, et_real r)
{
    if (s->by_tanh)
        return (et_real)et_half_of_one_and(&s->grid, &s->tanh, et_tanh((double)r / 2), 1);
    bool grows = r < 0 && s->grows;
    et_real e = e_to(s, grows ? -r : -(et_real)fabs(r));
    return over(s, r < 0 && !grows ? e : 1, (et_real)et_plus(grid_of(s), 1, (double)e));
}

/* p(1-p) = e^-|r| / (1+e^-|r|)^2: the same number for r and -r. The product itself would lose all
 * its digits by r = 30, where p rounds to 1. */
static et_real sigmoid_slope(const steps *s, et_real r)
{
    const et_grid *g = grid_of(s);
    double e = (double)e_to(s, -(et_real)fabs(r)), below = et_plus(g, 1, e);
    return (et_real)et_over(g, e, et_times(g, below, below));
}

/* One softmax over `count` logits `step` apart, and over a zero logit, too, if `anchor` is given.
 * The largest logit is subtracted first: the same value, and no overflow. */
static void softmax(const steps *s, size_t count, size_t step, const et_real *r, et_real *p,
                    et_real *anchor)
{
    et_real largest = anchor ? 0 : r[0];
    for (size_t i = 0; i < count; i++)
        if (r[i * step] > largest) largest = r[i * step];
    et_real zero_share = anchor ? e_to(s, -largest) : 0;
    for (size_t i = 0; i < count; i++)
        p[i * step] = e_to(s, (et_real)et_plus(grid_of(s), (double)r[i * step], (double)-largest));
    et_real sum =
        et_sum(s->kernel, ET_GATE_ARITHMETIC, "softmax", zero_share, count, step, p, NULL);
    if (s->by_lse) {
        const et_grid *g = grid_of(s);
        double lse = et_plus(g, (double)largest, et_rounded(g, et_log((double)sum)));
        for (size_t i = 0; i < count; i++)
            p[i * step] = e_to(s, (et_real)et_plus(g, (double)r[i * step], -lse));
        if (anchor) *anchor = e_to(s, (et_real)-lse);
        return;
    }
    for (size_t i = 0; i < count; i++) p[i * step] = over(s, p[i * step], sum);
    if (anchor) *anchor = over(s, zero_share, sum);
}

void et_gate_forward(const et_rounding *kernel, et_gate gate, size_t N, size_t n, const et_real *r,
                     et_real *p, et_real *anchor)
{
    ET_ARITHMETIC;
    const steps s = steps_of(kernel);
    if (N == 0 || n == 0) return;
    switch (gate) {
    case ET_GATE_SIGMOID:
#pragma omp parallel for if (et_worth_threads(N * n))
        for (size_t i = 0; i < N * n; i++) p[i] = sigmoid(&s, r[i]);
        return;
    case ET_GATE_RELU:
        for (size_t i = 0; i < N * n; i++) p[i] = r[i] > 0 ? r[i] : 0;
        return;
    case ET_GATE_SOFTMAX:
    case ET_GATE_SOFTMAX_ANCHOR:
    case ET_GATE_SOFTMAX_ANCHOR_OUT:
#pragma omp parallel for if (et_worth_threads(N * n))
        for (size_t t = 0; t < N; t++)
            softmax(&s, n, 1, r + t * n, p + t * n, et_gate_has_anchor(gate) ? anchor + t : NULL);
        return;
    case ET_GATE_SOFTMAX_TOKENS:
#pragma omp parallel for if (et_worth_threads(N * n))
        for (size_t i = 0; i < n; i++) softmax(&s, N, n, r + i, p + i, NULL);
        return;
    }
}

/* The softmax's Jacobian. p_j = e^r_j / Z gives dp_j/dr_i = p_i ([i = j] - p_j), so
 *
 *     dr_i = p_i dp_i - p_i sum_j p_j dp_j = p_i sum_j p_j (dp_i - dp_j),
 *
 * the last step because the p_j (the anchor's share among them) add up to 1. The form with the differences
 * is the one to compute: it is as exact as its terms where one p is close to 1, and where the dp are large
 * and nearly equal. Term by term it takes count^2 steps; but for any number c, with S = sum_j p_j,
 *
 *     sum_j p_j (dp_i - dp_j) = S (dp_i - c) - D,     D = sum_j p_j (dp_j - c),
 *
 * whatever S is: the rounded p_j do not add up to 1 exactly, and to write dp_i for S dp_i would bring in
 * the part of dp that all have in common. What is left is cancellation between the two terms on the
 * right. c = dp_m of the largest share p_m bounds it: with T_i = sum_j p_j |dp_i - dp_j|,
 *
 *     p_m |dp_i - c| <= T_i,   p_m >= S / (count + 1)      S |dp_i - c|          <= (count + 1) T_i
 *     |dp_j - c| <= |dp_j - dp_i| + |dp_i - c|              sum_j p_j |dp_j - c| <= (count + 2) T_i
 *
 * so that sums of 106 bits (each step errs by at most 8 u^2, see twofold.h) leave less than
 * 8 (count + 3) (2 count + 3) u^2 T_i, 2^-77 T_i for 4096 tokens. Two roundings follow, of the bracket
 * and of its product with p_i:
 *
 *     error of dr_i <= 2 u |dr_i| + 2^-77 p_i T_i + 2^-1040
 *
 * (the last where a product is so small that it cannot be split without a rest any more). dp must be
 * finite, and below 2^996. The anchor's logit is fixed at 0, so it receives nothing; its share p_0 stands in
 * the sums with its own upstream gradient da_0. */
typedef struct softmax_sums {
    double c;        /* the dp of the largest share */
    et_twofold S, D; /* sum_j p_j, sum_j p_j (dp_j - c) */
} softmax_sums;

static void add_share(softmax_sums *s, double p, double dp)
{
    s->S = twofold_add(s->S, (et_twofold){p, 0});
    s->D = twofold_add(s->D, twofold_scale(twofold_sum(dp, -s->c), p));
}

static void softmax_backward(size_t count, size_t step, const et_real *p, const et_real *dp,
                             et_real anchor, et_real danchor, et_real *dr)
{
    softmax_sums s = {.c = (double)danchor};
    et_real largest = anchor;
    for (size_t j = 0; j < count; j++) {
        s.c = p[j * step] > largest ? (double)dp[j * step] : s.c;
        largest = p[j * step] > largest ? p[j * step] : largest;
    }
    add_share(&s, (double)anchor, (double)danchor);
    for (size_t j = 0; j < count; j++) add_share(&s, (double)p[j * step], (double)dp[j * step]);
    for (size_t i = 0; i < count; i++) {
        et_twofold apart = twofold_sum((double)dp[i * step], -s.c);
        et_twofold bracket = twofold_subtract(twofold_times(s.S, apart), s.D);
        dr[i * step] += (et_real)((double)p[i * step] * bracket.high);
    }
}

/* A kernel's: p_i (dp_i - D), D = sum_j p_j dp_j. */
static void rounded_softmax_backward(const steps *s, size_t count, size_t step, const et_real *p,
                                     const et_real *dp, et_real anchor, et_real danchor,
                                     et_real *dr)
{
    const et_grid *g = grid_of(s);
    et_real D = et_sum(s->kernel, ET_GATE_ARITHMETIC, "D",
                       (et_real)et_times(g, (double)anchor, (double)danchor), count, step, p, dp);
    for (size_t i = 0; i < count * step; i += step)
        dr[i] += p[i] * (et_real)et_plus(g, (double)dp[i], (double)-D);
}

/* A kernel has p already, and no e^-|r| any more: p(1-p). */
static et_real rounded_sigmoid_slope(const steps *s, et_real p)
{
    return (et_real)et_times(grid_of(s), (double)p, et_plus(grid_of(s), 1, (double)-p));
}

static void softmax_gradient(const steps *s, size_t count, size_t step, const et_real *p,
                             const et_real *dp, et_real anchor, et_real danchor, et_real *dr)
{
    if (s->kernel == NULL || s->saves)
        softmax_backward(count, step, p, dp, anchor, danchor, dr);
    else
        rounded_softmax_backward(s, count, step, p, dp, anchor, danchor, dr);
}

void et_gate_backward(const et_rounding *kernel, et_gate gate, size_t N, size_t n, const et_real *r,
                      const et_real *p, const et_real *anchor, const et_real *dp,
                      const et_real *danchor, et_real *dr)
{
    ET_ARITHMETIC;
    const steps s = steps_of(kernel);
    switch (gate) {
    case ET_GATE_SIGMOID:
#pragma omp parallel for if (et_worth_threads(N * n))
        for (size_t i = 0; i < N * n; i++)
            dr[i] += dp[i] *
                     (s.kernel && !s.saves ? rounded_sigmoid_slope(&s, p[i]) : sigmoid_slope(&s, r[i]));
        return;
    case ET_GATE_RELU:
        for (size_t i = 0; i < N * n; i++) dr[i] += r[i] > 0 ? dp[i] : 0;
        return;
    case ET_GATE_SOFTMAX:
    case ET_GATE_SOFTMAX_ANCHOR:
    case ET_GATE_SOFTMAX_ANCHOR_OUT:
#pragma omp parallel for if (et_worth_threads(N * n))
        for (size_t t = 0; t < N; t++)
            softmax_gradient(&s, n, 1, p + t * n, dp + t * n,
                             et_gate_has_anchor(gate) ? anchor[t] : 0, danchor ? danchor[t] : 0,
                             dr + t * n);
        return;
    case ET_GATE_SOFTMAX_TOKENS:
#pragma omp parallel for if (et_worth_threads(N * n))
        for (size_t i = 0; i < n; i++) softmax_gradient(&s, N, n, p + i, dp + i, 0, 0, dr + i);
        return;
    }
}
