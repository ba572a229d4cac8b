/* gate.c: from router logits to gate values, and back. See etref/gate.h.
 *
 *   sigmoid             p = 1/(1+e^-r)                       p' = p(1-p)
 *   relu                p = max(r,0)                         p' = [r > 0]
 *   softmax             p_i = e^r_i / sum_j e^r_j            dr_i = p_i sum_j p_j (dp_i - dp_j)
 *   softmax_anchor      the same over [0, r_1 .. r_n]        the same, j over the anchor, too
 *   softmax_anchor_out  the same values                      the same with da_0 = 0
 *   softmax_tokens      softmax down a column                the same down a column
 *
 * Source: paper, Eq. 1 (sigmoid); the other gates are those of the released code.
 * Every sum runs in index order. Left out: selection. A gate knows nothing of the assignment.
 */
#include "etref/gate.h"
#include "etref/elementary.h"
#include "ref/base/parallel.h"

#include <math.h>

static et_real exponential(et_real v)
{
    return (et_real)et_exp((double)v);
}

bool et_gate_has_anchor(et_gate gate)
{
    return gate == ET_GATE_SOFTMAX_ANCHOR || gate == ET_GATE_SOFTMAX_ANCHOR_OUT;
}

/* Written with e^-|r| <= 1, so that nothing overflows: for r < 0, 1/(1+e^-r) = e^r/(1+e^r). */
static et_real sigmoid(et_real r)
{
    et_real e = exponential(-(et_real)fabs(r));
    return r < 0 ? e / (1 + e) : 1 / (1 + e);
}

/* p(1-p) = e^-|r| / (1+e^-|r|)^2: the same number for r and -r. The product itself would lose all
 * its digits by r = 30, where p rounds to 1. */
static et_real sigmoid_slope(et_real r)
{
    et_real e = exponential(-(et_real)fabs(r));
    return e / ((1 + e) * (1 + e));
}

/* One softmax over `count` logits `step` apart, and over a zero logit, too, if `anchor` is given.
 * The largest logit is subtracted first: the same value, and no overflow. */
static void softmax(size_t count, size_t step, const et_real *r, et_real *p, et_real *anchor)
{
    et_real largest = anchor ? 0 : r[0];
    for (size_t i = 0; i < count; i++)
        if (r[i * step] > largest) largest = r[i * step];
    et_real zero_share = anchor ? exponential(-largest) : 0, sum = zero_share;
    for (size_t i = 0; i < count; i++) {
        p[i * step] = exponential(r[i * step] - largest);
        sum += p[i * step];
    }
    for (size_t i = 0; i < count; i++) p[i * step] /= sum;
    if (anchor) *anchor = zero_share / sum;
}

void et_gate_forward(et_gate gate, size_t N, size_t n, const et_real *r, et_real *p,
                     et_real *anchor)
{
    if (N == 0 || n == 0) return;
    switch (gate) {
    case ET_GATE_SIGMOID:
#pragma omp parallel for if (N * n > ET_WORTH_THREADS)
        for (size_t i = 0; i < N * n; i++) p[i] = sigmoid(r[i]);
        return;
    case ET_GATE_RELU:
        for (size_t i = 0; i < N * n; i++) p[i] = r[i] > 0 ? r[i] : 0;
        return;
    case ET_GATE_SOFTMAX:
    case ET_GATE_SOFTMAX_ANCHOR:
    case ET_GATE_SOFTMAX_ANCHOR_OUT:
#pragma omp parallel for if (N * n > ET_WORTH_THREADS)
        for (size_t t = 0; t < N; t++)
            softmax(n, 1, r + t * n, p + t * n, et_gate_has_anchor(gate) ? anchor + t : NULL);
        return;
    case ET_GATE_SOFTMAX_TOKENS:
#pragma omp parallel for if (N * n > ET_WORTH_THREADS)
        for (size_t i = 0; i < n; i++) softmax(N, n, r + i, p + i, NULL);
        return;
    }
}

/* The softmax's Jacobian. p_j = e^r_j / Z gives dp_j/dr_i = p_i ([i = j] - p_j), so
 *
 *     dr_i = p_i dp_i - p_i sum_j p_j dp_j = p_i sum_j p_j (dp_i - dp_j),
 *
 * the last step because the p_j (the anchor's share among them) add up to 1. The form with the
 * difference inside the sum is free of cancellation when one p is close to 1: it never subtracts
 * two nearly equal sums. The anchor's logit is fixed at 0, so it receives nothing; its share p_0
 * stands in the sum with its own upstream gradient da_0. */
static void softmax_backward(size_t count, size_t step, const et_real *p, const et_real *dp,
                             et_real anchor, et_real danchor, et_real *dr)
{
    for (size_t i = 0; i < count; i++) {
        et_real sum = anchor * (dp[i * step] - danchor);
        for (size_t j = 0; j < count; j++) sum += p[j * step] * (dp[i * step] - dp[j * step]);
        dr[i * step] += p[i * step] * sum;
    }
}

void et_gate_backward(et_gate gate, size_t N, size_t n, const et_real *r, const et_real *p,
                      const et_real *anchor, const et_real *dp, const et_real *danchor, et_real *dr)
{
    switch (gate) {
    case ET_GATE_SIGMOID:
#pragma omp parallel for if (N * n > ET_WORTH_THREADS)
        for (size_t i = 0; i < N * n; i++) dr[i] += dp[i] * sigmoid_slope(r[i]);
        return;
    case ET_GATE_RELU:
        for (size_t i = 0; i < N * n; i++) dr[i] += r[i] > 0 ? dp[i] : 0;
        return;
    case ET_GATE_SOFTMAX:
    case ET_GATE_SOFTMAX_ANCHOR:
    case ET_GATE_SOFTMAX_ANCHOR_OUT:
#pragma omp parallel for if (N * n > ET_WORTH_THREADS)
        for (size_t t = 0; t < N; t++)
            softmax_backward(n, 1, p + t * n, dp + t * n, et_gate_has_anchor(gate) ? anchor[t] : 0,
                             danchor ? danchor[t] : 0, dr + t * n);
        return;
    case ET_GATE_SOFTMAX_TOKENS:
#pragma omp parallel for if (N * n > ET_WORTH_THREADS)
        for (size_t i = 0; i < n; i++) softmax_backward(N, n, p + i, dp + i, 0, 0, dr + i);
        return;
    }
}
