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
#include "ref/layers/gate.h"
#include "ref/base/arithmetic.h"
#include "ref/base/exponential.h"
#include "ref/base/parallel.h"
#include "ref/base/product_noise.h"
#include "ref/base/rounding.h"
#include "ref/base/sum.h"
#include "ref/base/twofold.h"

#include <math.h>

/* A kernel's steps between logits and gate values. */
typedef struct steps {
    const et_rounding *kernel;
    et_grid grid; /* of each step's result; unused in a golden */
    bool underflows;
} steps;

/* A kernel that has 1/(1 + e^-r) gets 0 where e^-r is beyond its format, another one e^r, which is
 * below the normal numbers there: half of the replicas have the one, half the other. */
static steps steps_of(const et_rounding *r)
{
    steps s = {.kernel = et_rounds(r) ? r : NULL};
    const et_rounding *kernel = s.kernel;
    if (kernel == NULL) return s;
    s.grid = et_grid_of(kernel, ET_GATE_ARITHMETIC, "gate");
    s.underflows = !s.grid.nearest && (s.grid.key & 1);
    return s;
}

static const et_grid *grid_of(const steps *s)
{
    return s->kernel ? &s->grid : NULL;
}

static et_real e_to(const steps *s, et_real v)
{
    et_real e = (et_real)exponential((double)v);
    if (s->underflows && (double)e < s->grid.smallest) return 0;
    return (et_real)et_rounded(grid_of(s), (double)e);
}

bool et_gate_has_anchor(et_gate gate)
{
    return gate == ET_GATE_SOFTMAX_ANCHOR || gate == ET_GATE_SOFTMAX_ANCHOR_OUT;
}

/* Written with e^-|r| <= 1, so that nothing overflows: for r < 0, 1/(1+e^-r) = e^r/(1+e^r). */
static et_real sigmoid(const steps *s, et_real r)
{
    et_real e = e_to(s, -(et_real)fabs(r));
    return (r < 0 ? e : 1) / (et_real)et_plus(grid_of(s), 1, (double)e);
}

/* p(1-p) = e^-|r| / (1+e^-|r|)^2: the same number for r and -r. The product itself would lose all
 * its digits by r = 30, where p rounds to 1. */
static et_real sigmoid_slope(et_real r)
{
    et_real e = (et_real)exponential(-fabs((double)r));
    return e / ((1 + e) * (1 + e));
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
    for (size_t i = 0; i < count; i++) p[i * step] /= sum;
    if (anchor) *anchor = zero_share / sum;
}

void et_gate_forward_rounded(const et_rounding *kernel, et_gate gate, size_t N, size_t n,
                             const et_real *r, et_real *p, et_real *anchor)
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

void et_gate_forward(et_gate gate, size_t N, size_t n, const et_real *r, et_real *p,
                     et_real *anchor)
{
    et_gate_forward_rounded(NULL, gate, N, n, r, p, anchor);
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
    if (s->kernel == NULL)
        softmax_backward(count, step, p, dp, anchor, danchor, dr);
    else
        rounded_softmax_backward(s, count, step, p, dp, anchor, danchor, dr);
}

void et_gate_backward_rounded(const et_rounding *kernel, et_gate gate, size_t N, size_t n,
                              const et_real *r, const et_real *p, const et_real *anchor,
                              const et_real *dp, const et_real *danchor, et_real *dr)
{
    ET_ARITHMETIC;
    const steps s = steps_of(kernel);
    switch (gate) {
    case ET_GATE_SIGMOID:
#pragma omp parallel for if (et_worth_threads(N * n))
        for (size_t i = 0; i < N * n; i++)
            dr[i] += dp[i] * (s.kernel ? rounded_sigmoid_slope(&s, p[i]) : sigmoid_slope(r[i]));
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

void et_gate_backward(et_gate gate, size_t N, size_t n, const et_real *r, const et_real *p,
                      const et_real *anchor, const et_real *dp, const et_real *danchor, et_real *dr)
{
    et_gate_backward_rounded(NULL, gate, N, n, r, p, anchor, dp, danchor, dr);
}

/* ---- noise ----
 *
 * A kernel evaluates a gate in the accumulator's precision (unit roundoff u; a rounding costs
 * a = 0.18 u^2 of a value's square, see rounding.c) and rounds the result as a gate:
 *
 *     V[p] = sum_j (dp/dr_j)^2 V[r_j] + evaluation + site(p)
 *
 * sigmoid   e = e^-|r| comes with a relative error of about two roundings, 1 + e with one; both move
 *           p by e/(1+e)^2 = p(1-p) and by p: evaluation = a (2 (p(1-p))^2 + p^2). Where e^-r is
 *           below u/8, whatever r's error, 1 + e is 1, and so is p, by any formula: V[p] = (1-p)^2,
 *           no matter of chance
 * softmax   r - max is rounded, e^(r-max) carries it as a relative error; then the sum of n terms and
 *           the division: evaluation = a p^2 ((r - max)^2 + 3 + n/2) + (p lost)^2, where lost is
 *           the sum of the gate values below u: beside the largest they may be lost in the sum of e^r,
 *           all of them
 * either    a value below the accumulator's smallest normal number may come out as 0: + p^2 there
 *           Where logits err by more than some hundredths, first order does not do: odds_noise
 * relu      none; where r <= 0 is within 6 deviations of 0, a kernel may see r > 0: V[p] = V[r]
 */

static double unit(const et_profile *p)
{
    return 0.18 * ldexp(1, -2 * p->bits[ET_ACCUMULATOR]);
}

et_real et_gate_slope(et_gate gate, et_real r_i, et_real p_i, et_real p_j, bool same)
{
    switch (gate) {
    case ET_GATE_SIGMOID: return same ? sigmoid_slope(r_i) : 0;
    case ET_GATE_RELU: return same && r_i > 0 ? 1 : 0;
    case ET_GATE_SOFTMAX_TOKENS: return same ? p_i * (1 - p_i) : 0;
    default: return same ? p_i * (1 - p_i) : -p_i * p_j;
    }
}

static double logistic(double z)
{
    double e = exp(-fabs(z));
    return (z < 0 ? e : 1) / (1 + e);
}

/* The variance of 1/(1 + e^-z), whose z errs by the deviation s: to first order (p(1-p) s)^2. But where s
 * is more than some hundredths, the smaller one of p and 1-p may grow by the factor e^error: then it is
 * such that the k deviations which an element is allowed lead as far as those k of z do. k is 6 at least;
 * 20 and more where the logits' tail is coarse (ref/verdict/calibration.c). Twice what that adds: what
 * one member of a softmax gains another loses, and y feels both. */
static double odds_noise(const et_profile *p, double z, double s)
{
    bool coarse = p->bits[ET_ACCUMULATOR] <= p->bits[ET_LOGITS];
    double e = exp(-fabs(z)), first_order = s * e / ((1 + e) * (1 + e));
    double v = first_order * first_order, most = v;
    for (double k = 6; s > 1e-3 && k <= (coarse ? 20 : 6); k += 14) {
        double moved = (logistic(k * s - fabs(z)) - logistic(-fabs(z))) / k;
        most = fmax(most, moved * moved);
    }
    return fmin(v + 2 * (most - v), 1);
}

/* What a kernel whose exponentials underflow at once loses of a value. */
static double underflow(const et_profile *p, double value)
{
    return value < et_place_smallest(p, ET_ACCUMULATOR) ? value * value : 0;
}

static void sigmoid_noise(const et_profile *p, size_t count, const et_real *r, const et_real *gates,
                          const et_real *Vr, et_real *Vp)
{
    const rounding site = et_rounding_at(p, ET_GATES);
    double a = unit(p), nothing = ldexp(1, -p->bits[ET_ACCUMULATOR] - 3);
    for (size_t i = 0; i < count; i++) {
        double z = (double)r[i], s = sqrt((double)Vr[i]), missing = exp(-z);
        double slope = (double)sigmoid_slope(r[i]), value = (double)gates[i];
        double v =
            odds_noise(p, z, s) + a * (2 * slope * slope + value * value) + underflow(p, value);
        if (missing * exp(20 * s) < nothing)
            Vp[i] = (et_real)(missing * missing);
        else
            Vp[i] = (et_real)(v + rounding_site(&site, value, v));
    }
}

/* Is a logit so near to 0 that a kernel may see it on the other side? */
static bool may_change_sign(double r, double Vr)
{
    return Vr > 0 && r * r < 36 * Vr;
}

static void relu_noise(const et_profile *p, size_t count, const et_real *r, const et_real *gates,
                       const et_real *Vr, et_real *Vp)
{
    const rounding site = et_rounding_at(p, ET_GATES);
    for (size_t i = 0; i < count; i++) {
        bool open = r[i] > 0 || may_change_sign((double)r[i], (double)Vr[i]);
        double v = open ? (double)Vr[i] : 0;
        Vp[i] = (et_real)(v + rounding_site(&site, (double)gates[i], v));
    }
}

/* One softmax. The anchor, where there is one, is its last member, a logit of 0 without an error. */
typedef struct members {
    size_t count, logits, step;
    const et_real *r, *V;
    size_t first;        /* the largest of them */
    double most, sum;    /* its logit; sum_j e^(r_j - most) */
    bool together;       /* their errors are one: x was rounded */
    double all;          /* sum_j p_j^2 V_j, or (together) sum_j p_j sqrt(V_j) */
    double rest, V_rest; /* log sum_j e^r_j without the first; its variance */
} members;

static double logit_of(const members *m, size_t i)
{
    return i < m->logits ? (double)m->r[i * m->step] : 0;
}

static double V_of(const members *m, size_t i)
{
    return i < m->logits ? (double)m->V[i * m->step] : 0;
}

/* What a share of an error of variance V adds to a sum of such, and the variance of that sum. */
static double part_of(const members *m, double share, double V)
{
    return m->together ? share * sqrt(V) : share * share * V;
}

static double variance_of(const members *m, double sum)
{
    return m->together ? sum * sum : sum;
}

static members members_of(size_t logits, size_t step, const et_real *r, const et_real *V,
                          bool anchor, bool together)
{
    members m = {.count = logits + (anchor ? 1 : 0),
                 .logits = logits,
                 .step = step,
                 .r = r,
                 .V = V,
                 .together = together,
                 .rest = -HUGE_VAL};
    double second = -HUGE_VAL, sum = 0;
    for (size_t i = 1; i < m.count; i++)
        if (logit_of(&m, i) > logit_of(&m, m.first)) m.first = i;
    m.most = logit_of(&m, m.first);
    for (size_t i = 0; i < m.count; i++)
        if (i != m.first) second = fmax(second, logit_of(&m, i));
    for (size_t i = 0; i < m.count; i++) {
        double e = exp(logit_of(&m, i) - m.most);
        m.sum += e;
        m.all += part_of(&m, e, V_of(&m, i));
        if (i != m.first) sum += exp(logit_of(&m, i) - second);
    }
    m.all /= together ? m.sum : m.sum * m.sum;
    if (sum > 0) m.rest = second + log(sum);
    for (size_t i = 0; i < m.count; i++) {
        double share = i != m.first ? exp(logit_of(&m, i) - m.rest) : 0;
        m.V_rest += part_of(&m, share, V_of(&m, i));
    }
    m.V_rest = variance_of(&m, m.V_rest);
    return m;
}

/* Member i is 1/(1 + e^-z), z = r_i - log(sum of the others' e^r): to first order V[z] = V_i + sum over
 * the others of (p_j / (1 - p_i))^2 V_j, where their errors are independent. The largest is set against
 * the rest, which 1 - p_i would have lost. */
static double member_noise(const et_profile *p, const members *m, size_t i)
{
    double own = logit_of(m, i), V = V_of(m, i);
    if (m->count == 1) return 0;
    if (i == m->first) return odds_noise(p, own - m->rest, sqrt(V + m->V_rest));
    double e = exp(own - m->most), others = m->sum - e, share = e / m->sum;
    double V_others = variance_of(m, fmax(m->all - part_of(m, share, V), 0));
    V_others /= (1 - share) * (1 - share);
    return odds_noise(p, own - m->most - log(others), sqrt(V + V_others));
}

/* What a kernel's own arithmetic adds to member i, whose value is p, and its rounding as a gate. lost:
 * see above. */
static et_real member_in_all(const et_profile *p, const members *m, size_t i, double value,
                             double lost)
{
    const rounding site = et_rounding_at(p, ET_GATES);
    double below = logit_of(m, i) - m->most;
    double relative = unit(p) * (below * below + 3 + (double)m->logits / 2) + lost * lost;
    double v = member_noise(p, m, i) + value * value * relative + underflow(p, value);
    return (et_real)(v + rounding_site(&site, value, v));
}

static void softmax_noise(const et_profile *p, size_t count, size_t step, const et_real *r,
                          const et_real *gates, const et_real *anchor, const et_real *Vr,
                          bool together, et_real *Vp, et_real *Vanchor)
{
    const members m = members_of(count, step, r, Vr, anchor != NULL, together);
    double least = ldexp(1, 1 - p->bits[ET_ACCUMULATOR]), lost = 0;
    for (size_t i = 0; i < count; i++)
        if ((double)gates[i * step] < least) lost += (double)gates[i * step];
    for (size_t i = 0; i < count; i++)
        Vp[i * step] = member_in_all(p, &m, i, (double)gates[i * step], lost);
    if (anchor) *Vanchor = member_in_all(p, &m, count, (double)*anchor, lost);
}

void et_gate_noise(et_gate gate, const et_profile *p, size_t N, size_t n, const et_real *r,
                   const et_real *gates, const et_real *anchor, const et_real *Vr, bool together,
                   et_real *Vp, et_real *Vanchor)
{
    ET_ARITHMETIC;
    if (N == 0 || n == 0) return;
    switch (gate) {
    case ET_GATE_SIGMOID: sigmoid_noise(p, N * n, r, gates, Vr, Vp); return;
    case ET_GATE_RELU: relu_noise(p, N * n, r, gates, Vr, Vp); return;
    case ET_GATE_SOFTMAX:
    case ET_GATE_SOFTMAX_ANCHOR:
    case ET_GATE_SOFTMAX_ANCHOR_OUT:
        for (size_t t = 0; t < N; t++)
            softmax_noise(p, n, 1, r + t * n, gates + t * n,
                          et_gate_has_anchor(gate) ? anchor + t : NULL, Vr + t * n, together,
                          Vp + t * n, et_gate_has_anchor(gate) ? Vanchor + t : NULL);
        return;
    case ET_GATE_SOFTMAX_TOKENS:
        for (size_t i = 0; i < n; i++)
            softmax_noise(p, N, n, r + i, gates + i, NULL, Vr + i, together, Vp + i, NULL);
        return;
    }
}

/* Backward. dr = J(p) dp errs through dp (the caller's business, since a token's dp may share errors),
 * through p, and by its own arithmetic, about two roundings:
 *
 *   sigmoid   dr = dp p(1-p)                  (dp (1-2p))^2 V[p] + dp^2 3 V[p]^2; where p is as
 *             good as 1, its slope e^-r errs with r all the same, unless a kernel has 0 for 1-p
 *   relu      dr = dp [r > 0]                 dp^2 where r may change its sign
 *   softmax   dr_i = p_i (dp_i - D), D = sum_j p_j dp_j
 *             (dp_i - D)^2 V[p_i] + (p_i^2 + V[p_i]) (sum_j dp_j^2 V[p_j] + acc(D) + a (dp_i^2 + D^2))
 */

static double arithmetic(const rounding *site, double value, double incoming)
{
    return incoming + 2 * rounding_site(site, value, incoming);
}

static void softmax_backward_noise(const et_profile *p, size_t count, size_t step,
                                   const et_real *gates, const et_real *anchor, const et_real *dp,
                                   const et_real *danchor, const et_real *dr, const et_real *Vp,
                                   const et_real *Vanchor, const et_real *Vdp, et_real *VD,
                                   et_real *Vdr)
{
    const rounding site = et_rounding_at(p, ET_ACCUMULATOR);
    double a = unit(p), D = 0, squares = 0, through_p = 0, through_dp = 0;
    et_sum_noise sum = et_sum_noise_of(p, count + 1);
    if (anchor && danchor) {
        double term = (double)*anchor * (double)*danchor;
        D = term;
        squares = term * term;
        through_p = (double)*danchor * (double)*danchor * (double)*Vanchor;
    }
    for (size_t j = 0; j < count; j++) {
        double value = (double)gates[j * step], up = (double)dp[j * step];
        double size = up * up + (double)Vdp[j * step];
        D += value * up;
        squares += value * value * size;
        through_p += size * (double)Vp[j * step];
        through_dp += value * value * (double)Vdp[j * step];
    }
    double acc = sum.square * D * D + sum.squares * squares;
    if (VD) *VD = (et_real)(through_p + through_dp + acc);
    for (size_t i = 0; i < count; i++) {
        double value = (double)gates[i * step], up = (double)dp[i * step];
        double v = (up - D) * (up - D) * (double)Vp[i * step];
        v += (value * value + (double)Vp[i * step]) * (through_p + acc + a * (up * up + D * D));
        if (VD) v += value * value * fmax((1 - 2 * value) * (double)Vdp[i * step] + through_dp, 0);
        Vdr[i * step] += (et_real)arithmetic(&site, (double)dr[i * step], v);
    }
}

void et_gate_backward_noise(et_gate gate, const et_profile *p, size_t N, size_t n, const et_real *r,
                            const et_real *gates, const et_real *anchor, const et_real *dp,
                            const et_real *danchor, const et_real *dr, const et_real *Vr,
                            const et_real *Vp, const et_real *Vanchor, const et_real *Vdp,
                            et_real *VD, et_real *Vdr)
{
    ET_ARITHMETIC;
    const rounding site = et_rounding_at(p, ET_ACCUMULATOR);
    bool anchored = et_gate_has_anchor(gate) && danchor;
    switch (gate) {
    case ET_GATE_SIGMOID:
        for (size_t i = 0; i < N * n; i++) {
            double up = (double)dp[i], bend = up * (1 - 2 * (double)gates[i]);
            double V = fmax((double)Vp[i], odds_noise(p, (double)r[i], sqrt((double)Vr[i])));
            double v = bend * bend * V + 3 * up * up * V * V;
            Vdr[i] += (et_real)arithmetic(&site, (double)dr[i], v);
        }
        return;
    case ET_GATE_RELU:
        for (size_t i = 0; i < N * n; i++)
            if (may_change_sign((double)r[i], (double)Vr[i])) Vdr[i] += dp[i] * dp[i];
        return;
    case ET_GATE_SOFTMAX:
    case ET_GATE_SOFTMAX_ANCHOR:
    case ET_GATE_SOFTMAX_ANCHOR_OUT:
        for (size_t t = 0; t < N; t++)
            softmax_backward_noise(p, n, 1, gates + t * n, anchored ? anchor + t : NULL, dp + t * n,
                                   anchored ? danchor + t : NULL, dr + t * n, Vp + t * n,
                                   anchored ? Vanchor + t : NULL, Vdp + t * n, NULL, Vdr + t * n);
        return;
    case ET_GATE_SOFTMAX_TOKENS:
        for (size_t i = 0; i < n; i++)
            softmax_backward_noise(p, N, n, gates + i, NULL, dp + i, NULL, dr + i, Vp + i, NULL,
                                   Vdp + i, VD + i, Vdr + i);
        return;
    }
}
