/* router.cl: who goes where, with which weight, and back: the kernels of an Expert Threshold layer
 * that multiply no matrices, in OpenCL C 1.2. The others, and how a group of work-items works
 * together, are in experts.cl.
 *
 *     gates, ranks, tokens taken, slots, weights; dp, dr; the moving average
 *
 * Letters: N tokens, n experts, S slots: pairs of a token and an expert that takes it, numbered
 * expert by expert, tokens ascending. All numbers are floats, matrices [N,n] row-major.
 */
#define LANES 64 /* items of a group */

/* In etref's order (gate.h, moe.h). */
enum { SIGMOID, RELU, SOFTMAX, SOFTMAX_ANCHOR, SOFTMAX_ANCHOR_OUT, SOFTMAX_TOKENS };
enum { NORM_NONE, NORM_FANOUT, NORM_SUM };

/* ---- gates ---- */

/* A softmax runs along a line: a token's n logits, or an expert's in the P tokens of a micro-batch.
 * Every gate takes its lines so. */
typedef struct line {
    size_t first, step;
    int count;
} line;

static line line_of(int gate, int at, int n, int P)
{
    return gate == SOFTMAX_TOKENS ? (line){(size_t)(at / n) * P * n + at % n, n, P}
                                  : (line){(size_t)at * n, 1, n};
}

static bool is_softmax(int gate)
{
    return gate != SIGMOID && gate != RELU;
}

static bool is_anchored(int gate)
{
    return gate == SOFTMAX_ANCHOR || gate == SOFTMAX_ANCHOR_OUT;
}

/* p [N,n], an item a line; anchor [N]: what the softmax gives to a logit of 0 beside the others. */
kernel void gates(global const float *r, global float *p, global float *anchor, int gate, int n,
                  int P, int lines)
{
    const int at = get_global_id(0);
    if (at >= lines) return;
    const line l = line_of(gate, at, n, P);
    float most = is_anchored(gate) ? 0 : -INFINITY, sum = 0;
    for (int j = 0; j < l.count; j++) most = fmax(most, r[l.first + j * l.step]);
    for (int j = 0; j < l.count; j++) sum += exp(r[l.first + j * l.step] - most);
    if (is_anchored(gate)) {
        sum += exp(-most);
        anchor[at] = exp(-most) / sum;
    }
    for (int j = 0; j < l.count; j++) {
        const float score = r[l.first + j * l.step], e = exp(-fabs(score));
        p[l.first + j * l.step] = gate == SIGMOID ? (score < 0 ? e : 1) / (1 + e)
                                  : gate == RELU  ? fmax(score, 0.0f)
                                                  : exp(score - most) / sum;
    }
}

/* ---- routing ---- */

/* How many tokens of its pool of P come before token t when expert i orders them: higher scores,
 * and equal ones of a lower index. */
kernel void rank_tokens(global const float *r, global int *rank, int N, int n, int P)
{
    const int i = get_global_id(0), t = get_global_id(1);
    if (i >= n || t >= N) return;
    const float own = r[(size_t)t * n + i];
    int before = 0;
    for (int u = t - t % P; u < t - t % P + P; u++) {
        const float other = r[(size_t)u * n + i];
        before += other > own || (other == own && u < t);
    }
    rank[(size_t)t * n + i] = before;
}

/* Expert i takes as many of a pool's best tokens as pass its threshold c_i, within the bounds of
 * its capacity; under expert choice both bounds are k. A group for each expert and pool of P.
 * kth [pools,n]: the k-th largest score. load [n] += the tokens taken. */
kernel void take(global const float *r, global const float *c, global const int *rank,
                 global uchar *mask, global int *load, global float *kth, int n, int P, int lower,
                 int upper, int inclusive, int k)
{
    local int passed;
    const int lane = get_local_id(0), i = get_group_id(0), pool = get_group_id(1);
    int mine = 0;
    if (lane == 0) passed = 0;
    barrier(CLK_LOCAL_MEM_FENCE); /* it is 0 before anybody adds */
    for (int t = pool * P + lane; t < (pool + 1) * P; t += LANES) {
        const float score = r[(size_t)t * n + i];
        mine += inclusive ? score >= c[i] : score > c[i];
    }
    atomic_add(&passed, mine);
    barrier(CLK_LOCAL_MEM_FENCE); /* all have added before anybody reads it */
    const int count = clamp(passed, lower, upper);
    for (int t = pool * P + lane; t < (pool + 1) * P; t += LANES) {
        const size_t at = (size_t)t * n + i;
        mask[at] = rank[at] < count;
        if (rank[at] == k - 1) kth[pool * n + i] = r[at];
    }
    if (lane == 0) atomic_add(&load[i], count); /* pools of one expert run at the same time */
}

/* slot [N,n]: the slot of token and expert, or -1; token [S]. offset [n+1]: sums of loads. */
kernel void fill_slots(global const uchar *mask, global const int *offset, global int *slot,
                       global int *token, int N, int n)
{
    const int i = get_global_id(0), t = get_global_id(1);
    if (i >= n || t >= N) return;
    int place = offset[i];
    for (int u = 0; u < t; u++) place += mask[(size_t)u * n + i];
    const bool taken = mask[(size_t)t * n + i];
    slot[(size_t)t * n + i] = taken ? place : -1;
    if (taken) token[place] = t;
}

/* w [S] and the shared expert's s [N], an item a token. `fixed`: s where no anchor says it.
 * divisor [N]: what the norm divides gates by. */
kernel void weights(global const float *p, global const float *anchor, global const int *slot,
                    global float *w, global float *s, global float *divisor, int gate, int norm,
                    int shared, float fixed, int N, int n)
{
    const int t = get_global_id(0);
    if (t >= N) return;
    p += (size_t)t * n, slot += (size_t)t * n;
    float fanout = shared, sum = 0;
    for (int i = 0; i < n; i++)
        if (slot[i] >= 0) fanout += 1, sum += p[i];
    const float by = norm == NORM_FANOUT ? fanout : norm == NORM_SUM ? sum : 1;
    for (int i = 0; i < n; i++)
        if (slot[i] >= 0) w[slot[i]] = by != 0 ? p[i] / by : 0;
    divisor[t] = by;
    if (!shared) return;
    s[t] = (gate == SOFTMAX_ANCHOR ? anchor[t] : fixed) / (norm == NORM_FANOUT ? by : 1);
}

/* ---- backward of weights and gates ---- */

/* dp [N,n], 0 off the slots, and da_0 [N], an item a token. ds: of the shared expert's weight. */
kernel void weights_backward(global const float *w, global const float *dw, global const float *ds,
                             global const int *slot, global const float *divisor, global float *dp,
                             global float *danchor, int gate, int norm, int shared, int N, int n)
{
    const int t = get_global_id(0);
    if (t >= N) return;
    slot += (size_t)t * n, dp += (size_t)t * n;
    const float by = divisor[t];
    float carried = 0;
    for (int i = 0; norm == NORM_SUM && i < n; i++)
        if (slot[i] >= 0) carried += w[slot[i]] * dw[slot[i]];
    for (int i = 0; i < n; i++) dp[i] = slot[i] >= 0 && by != 0 ? (dw[slot[i]] - carried) / by : 0;
    danchor[t] = gate == SOFTMAX_ANCHOR && shared ? ds[t] / (norm == NORM_FANOUT ? by : 1) : 0;
}

/* dr_i = p_i sum_j p_j (dp_i - dp_j) for a softmax: p_i (dp_i - sum_j p_j dp_j) would cancel. The
 * anchor is one of the j. */
kernel void gates_backward(global const float *r, global const float *p, global const float *anchor,
                           global const float *dp, global const float *danchor, global float *dr,
                           int gate, int n, int P, int lines)
{
    const int at = get_global_id(0);
    if (at >= lines) return;
    const line l = line_of(gate, at, n, P);
    for (int i = 0; i < l.count; i++) {
        const size_t own = l.first + i * l.step;
        const float e = exp(-fabs(r[own])); /* p (1 - p) = e / (1 + e)^2 keeps its digits near 1 */
        float sum = is_anchored(gate) ? anchor[at] * (dp[own] - danchor[at]) : 0;
        for (int j = 0; is_softmax(gate) && j < l.count; j++) {
            const size_t other = l.first + j * l.step;
            sum += p[other] * (dp[own] - dp[other]);
        }
        dr[own] = gate == SIGMOID ? dp[own] * (e / ((1 + e) * (1 + e)))
                  : gate == RELU  ? (r[own] > 0 ? dp[own] : 0)
                                  : p[own] * sum;
    }
}

/* ---- state: ema <- beta ema + (1 - beta) cutoff, the mean over pools of the k-th largest ---- */

kernel void moving_average(global const float *kth, global float *cutoff, global float *ema,
                           float beta, float rest, int n, int pools)
{
    const int i = get_global_id(0);
    if (i >= n) return;
    float sum = 0;
    for (int pool = 0; pool < pools; pool++) sum += kth[pool * n + i];
    cutoff[i] = sum / pools;
    ema[i] = beta * ema[i] + rest * cutoff[i];
}
