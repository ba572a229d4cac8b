/* gates.c: what lies between logits and weights, and back; and the losses.
 *
 *     p = gate(r)        w = p, p / n_t or p / sum p        s
 *     aux, z             their gradients by p and r
 *     dw -> dp -> dr
 *
 * Every operation is rounded to the accumulator's precision (or, with wide_gates, none); p, w and s are
 * then rounded as gates, dr as a logit. Formulas as in etref/gate.h and etref/moe.h.
 */
#include "tests/candidates/work.h"

/* One operation of a gate. */
static double op(const cd_work *w, double v)
{
    return cd_round(&w->gate_work, v);
}

static double rounded_gate(const cd_work *w, double v)
{
    return cd_round(&w->gate, v);
}

static double exponential(const cd_work *w, double v)
{
    return op(w, et_exp(op(w, v)));
}

/* ---- p = gate(r) ---- */

static double sigmoid(const cd_work *w, double r)
{
    double e = exponential(w, -fabs(r)), over = op(w, 1 + e);
    return op(w, (r < 0 ? e : 1) / over);
}

/* A softmax's row (or column): `count` logits `step` apart, and a zero one if it has an anchor. */
typedef struct row {
    size_t count, step;
    const double *r;
    double *p, *anchor;
} row;

static double largest_of(const row *s)
{
    double largest = s->anchor ? 0 : s->r[0];
    for (size_t i = 0; i < s->count; i++) largest = fmax(largest, s->r[i * s->step]);
    return largest;
}

/* How many of its members get into a softmax's sum. */
static size_t members(const cd_work *w, const row *s)
{
    bool lacks = cd_bad(w, CD_SOFTMAX_LACKS_LAST) && s->p && s->count > 1;
    return s->count - (lacks ? 1 : 0);
}

static double plain_sum(const cd_work *w, const row *s, double largest)
{
    double sum = s->anchor ? exponential(w, -largest) : 0;
    for (size_t i = 0; i < members(w, s); i++)
        sum = op(w, sum + exponential(w, s->r[i * s->step] - largest));
    return sum;
}

/* The same in one pass: whenever a larger logit comes, what has been added up so far is scaled down. */
static double online_sum(const cd_work *w, const row *s)
{
    double running = s->anchor ? 0 : s->r[0], sum = s->anchor ? 1 : 0;
    for (size_t i = 0; i < members(w, s); i++) {
        double r = s->r[i * s->step];
        if (r > running) {
            sum = op(w, sum * exponential(w, running - r));
            running = r;
        }
        sum = op(w, sum + exponential(w, r - running));
    }
    return sum;
}

static void softmax(const cd_work *w, const row *s)
{
    double largest = largest_of(s);
    double sum = w->kernel->online ? online_sum(w, s) : plain_sum(w, s, largest);
    bool overflows = exponential(w, largest) > w->gate_work.largest;
    if (cd_bad(w, CD_SOFTMAX_OVERFLOW) && overflows) sum = (double)NAN;
    for (size_t i = 0; i < s->count; i++)
        s->p[i * s->step] =
            rounded_gate(w, op(w, exponential(w, s->r[i * s->step] - largest) / sum));
    if (s->anchor) *s->anchor = rounded_gate(w, op(w, exponential(w, -largest) / sum));
}

/* Does the softmax run over a micro-batch's tokens? */
static bool over_tokens(const cd_work *w)
{
    return (w->moe.gate == ET_GATE_SOFTMAX_TOKENS) != cd_bad(w, CD_SOFTMAX_AXIS);
}

/* Calls `visit` for every softmax of the step; its row begins at entry `at` of [N,n]. */
typedef void visitor(cd_work *w, size_t at, size_t count, size_t step);

static void each_softmax(cd_work *w, visitor *visit)
{
    size_t n = w->n, micro = cd_bad(w, CD_SOFTMAX_OF_STEP) ? w->N : w->moe.gate_tokens;
    if (!over_tokens(w)) {
        for (size_t t = 0; t < w->N; t++) visit(w, t * n, n, 1);
        return;
    }
    for (size_t t = 0; t < w->N; t += micro)
        for (size_t i = 0; i < n; i++) visit(w, t * n + i, micro, n);
}

static bool has_anchor(const cd_work *w)
{
    return et_gate_has_anchor(w->moe.gate) && !cd_bad(w, CD_ANCHOR_FORGOTTEN);
}

static void visit_softmax(cd_work *w, size_t at, size_t count, size_t step)
{
    row s = {count, step, w->logits + at, w->gates + at,
             has_anchor(w) ? w->anchor + at / w->n : NULL};
    softmax(w, &s);
}

et_status cd_gates(cd_work *w)
{
    const et_real *b = w->golden->in.bias;
    w->gates = cd_take(w, w->N * w->n, sizeof(double));
    w->anchor = cd_take(w, w->N, sizeof(double));
    if (w->gates == NULL || w->anchor == NULL) return ET_ENOMEM;
    if (cd_bad(w, CD_RAW_LOGITS)) {
        for (size_t j = 0; j < w->N * w->n; j++) w->gates[j] = rounded_gate(w, w->logits[j]);
        return ET_OK;
    }
    if (w->moe.gate != ET_GATE_SIGMOID && w->moe.gate != ET_GATE_RELU) {
        each_softmax(w, visit_softmax);
        return ET_OK;
    }
    for (size_t j = 0; j < w->N * w->n; j++) {
        double r = w->logits[j];
        if (b != NULL && cd_bad(w, CD_BIASED_GATE)) r = cd_acc(w, r + (double)b[j % w->n]);
        w->gates[j] = rounded_gate(w, w->moe.gate == ET_GATE_SIGMOID ? sigmoid(w, r) : fmax(r, 0));
    }
    return ET_OK;
}

/* ---- w and s ---- */

static double fanout(const cd_work *w, size_t t)
{
    bool counts = w->hs > 0 && !cd_bad(w, CD_FANOUT_WITHOUT_SHARED);
    return (double)(w->a.fanout[t] + counts);
}

static double all_gates(const cd_work *w, size_t t)
{
    double sum = 0;
    for (size_t i = 0; i < w->n; i++) sum = op(w, sum + w->gates[t * w->n + i]);
    return sum;
}

/* What a token's gate values are divided by. */
static double divisor(const cd_work *w, size_t t)
{
    double sum = 0;
    if (w->moe.norm == ET_NORM_NONE || cd_bad(w, CD_NORM_FORGOTTEN)) return 1;
    if (w->moe.norm == ET_NORM_FANOUT) return fanout(w, t);
    if (cd_bad(w, CD_NORM_OVER_ALL)) return all_gates(w, t);
    int32_t first = w->a.token_offsets[t], end = w->a.token_offsets[t + 1];
    for (size_t i = 0; cd_bad(w, CD_NORM_BEFORE_CAPACITY) && i < w->n; i++)
        if (w->scores[t * w->n + i] > w->threshold[i]) sum = op(w, sum + w->gates[t * w->n + i]);
    if (cd_bad(w, CD_NORM_BEFORE_CAPACITY)) return sum;
    if (cd_bad(w, CD_NORM_LACKS_LAST) && end - first > 1) end--;
    for (int32_t j = first; j < end; j++) {
        size_t i = (size_t)w->a.slot_expert[w->a.token_slots[j]];
        sum = op(w, sum + w->gates[t * w->n + i]);
    }
    return cd_bad(w, CD_NORM_EPSILON) ? op(w, sum + w->amount) : sum;
}

static double shared_divisor(const cd_work *w, size_t t)
{
    bool divides = w->moe.norm == ET_NORM_FANOUT && !cd_bad(w, CD_NORM_FORGOTTEN) &&
                   !cd_bad(w, CD_SHARED_WHOLE);
    double by = divides ? fanout(w, t) : 1;
    return by > 0 ? by : 1; /* 0 only where a fault does not count the shared expert */
}

/* Below the threshold, and there only because of the lower bound. */
static bool is_padding(const cd_work *w, size_t t, size_t i)
{
    if (!w->threshold) return false;
    double r = w->scores[t * w->n + i], c = w->threshold[i];
    return w->c->inclusive ? r < c : r <= c;
}

/* The factor by which faults change a slot's weight, and its gradient by the gate. */
static double tampered(const cd_work *w, size_t t, size_t i)
{
    if (cd_bad(w, CD_PADDING_WEIGHT_ZERO) && is_padding(w, t, i)) return 0;
    return cd_bad(w, CD_GATE_SCALED) ? 1 + w->amount : 1;
}

static double shared_weight(const cd_work *w, size_t t)
{
    bool anchored = w->moe.anchor_weighs_shared && !cd_bad(w, CD_ANCHOR_FORGOTTEN);
    double s = anchored ? w->anchor[t] : (double)w->moe.shared_constant;
    return rounded_gate(w, op(w, s / shared_divisor(w, t)));
}

/* Weights that were written token by token are read expert by expert. */
static et_status misread_weights(cd_work *w)
{
    const double *right = w->slot_weight;
    double *wrong = cd_take(w, w->S, sizeof *wrong);
    if (wrong == NULL) return ET_ENOMEM;
    for (size_t j = 0; j < w->S; j++) wrong[j] = right[w->a.token_slots[j]];
    w->slot_weight = wrong;
    return ET_OK;
}

et_status cd_weigh(cd_work *w)
{
    w->slot_weight = cd_take(w, w->S, sizeof(double));
    w->shared_weight = cd_take(w, w->N, sizeof(double));
    if (w->slot_weight == NULL || w->shared_weight == NULL) return ET_ENOMEM;
    for (size_t t = 0; t < w->N; t++) {
        double by = divisor(w, t);
        for (int32_t j = w->a.token_offsets[t]; j < w->a.token_offsets[t + 1]; j++) {
            int32_t slot = w->a.token_slots[j];
            size_t i = (size_t)w->a.slot_expert[slot];
            size_t from = cd_bad(w, CD_GATE_OF_NEIGHBOUR) ? (i + 1) % w->n : i;
            double p = op(w, w->gates[t * w->n + from] * tampered(w, t, i));
            w->slot_weight[slot] = by != 0 ? rounded_gate(w, op(w, p / by)) : 0;
        }
        if (w->hs > 0) w->shared_weight[t] = shared_weight(w, t);
    }
    et_stream memory = et_stream_open(w->seed, "candidate.weights");
    for (size_t j = 0; cd_bad(w, CD_STALE_WEIGHTS) && j < w->S; j++)
        if (4 * (size_t)w->a.slot_token[j] >= 3 * w->N)
            w->slot_weight[j] = rounded_gate(w, et_uniform(memory, j, 0));
    return cd_bad(w, CD_WEIGHTS_TOKEN_ORDER) ? misread_weights(w) : ET_OK;
}

/* ---- losses ---- */

static bool is_chosen(const cd_work *w, size_t t, size_t i)
{
    return w->mask[t * w->n + i] != 0;
}

/* Is expert i the one of token t's that has the highest score? */
static bool is_first_choice(const cd_work *w, size_t t, size_t i)
{
    for (size_t k = 0; k < w->n; k++)
        if (is_chosen(w, t, k) && w->scores[t * w->n + k] > w->scores[t * w->n + i]) return false;
    return true;
}

/* F_i of micro-batch m. */
static double fraction(const cd_work *w, size_t m, size_t i)
{
    size_t micro = w->moe.gate_tokens, first = cd_bad(w, CD_AUX_RUNNING) ? 0 : m;
    double load = 0;
    if (w->golden->in.load && !cd_bad(w, CD_LOAD_IGNORED))
        load = (double)w->golden->in.load[i];
    else
        for (size_t t = first * micro; t < (m + 1) * micro; t++)
            load += w->mask[t * w->n + i] &&
                    (!cd_bad(w, CD_AUX_FIRST_CHOICES) || is_first_choice(w, t, i));
    if (cd_bad(w, CD_AUX_IN_TILES)) load = 16 * ceil(load / 16);
    double K = cd_bad(w, CD_AUX_NOT_OVER_K) ? 1 : (double)w->c->top_k;
    return cd_acc(w, (double)w->n * load / (K * (double)((m + 1 - first) * micro)));
}

/* sum_i F_i P_i (or (F_i - 1) P_i) of micro-batch m; dp += scale F_i / N. */
static double aux_loss(cd_work *w, size_t m)
{
    size_t micro = w->moe.gate_tokens, n = w->n;
    double scale = w->c->balance_coef / (double)w->c->micro_batches, loss = 0;
    bool less_one = (w->c->balance == ET_BALANCE_AUX_ERROR) != cd_bad(w, CD_AUX_ERROR);
    if (cd_bad(w, CD_COEFFICIENT_MISSING)) scale /= w->c->balance_coef;
    if (cd_bad(w, CD_AUX_MISSING)) scale = 0;
    if (cd_bad(w, CD_AUX_DOUBLED)) scale *= 2;
    if (cd_bad(w, CD_AUX_SCALED)) scale *= 1 + w->amount;
    for (size_t i = 0; i < n - (cd_bad(w, CD_AUX_LACKS_LAST) ? 1 : 0); i++) {
        double F = fraction(w, m, i), P = 0;
        if (less_one) F = cd_acc(w, F - 1);
        for (size_t t = m * micro; t < (m + 1) * micro; t++) P = cd_acc(w, P + w->gates[t * n + i]);
        P = cd_acc(w, P / (double)micro);
        loss = cd_acc(w, loss + cd_acc(w, F * P));
        for (size_t t = m * micro; t < (m + 1) * micro; t++) {
            double each = scale * F / (double)micro;
            if (cd_bad(w, CD_AUX_OF_SELECTED) && !is_chosen(w, t, i)) continue;
            if (cd_bad(w, CD_AUX_THROUGH_F) && is_chosen(w, t, i)) /* dF_i/dz_ti = n / (K N) */
                each += scale * P * (double)n / ((double)w->c->top_k * (double)micro);
            w->dp[t * n + i] = cd_acc(w, w->dp[t * n + i] + cd_acc(w, each));
        }
    }
    return loss;
}

/* (1/N) sum_t (log sum_i e^r_ti)^2; dr += scale (2/N) lse softmax_i. */
static double z_loss(cd_work *w, size_t m)
{
    size_t micro = w->moe.gate_tokens, n = w->n;
    double scale = w->c->z_loss_coef / (double)w->c->micro_batches, loss = 0;
    if (cd_bad(w, CD_COEFFICIENT_MISSING)) scale /= w->c->z_loss_coef;
    if (cd_bad(w, CD_Z_MISSING)) scale = 0;
    if (cd_bad(w, CD_Z_DOUBLED)) scale *= 2;
    if (cd_bad(w, CD_Z_SCALED)) scale *= 1 + w->amount;
    for (size_t t = m * micro; t < (m + 1) * micro; t++) {
        row s = {n, 1, w->logits + t * n, NULL, NULL};
        double largest = largest_of(&s), sum = plain_sum(w, &s, largest);
        double lse = op(w, largest + op(w, et_log(sum)));
        loss = cd_acc(w, loss + cd_acc(w, lse * lse));
        double each = cd_acc(w, scale * 2 * lse / (double)micro);
        for (size_t i = 0; i < n; i++) {
            double share = op(w, exponential(w, s.r[i] - largest) / sum);
            w->dr[t * n + i] = cd_acc(w, w->dr[t * n + i] + cd_acc(w, each * share));
        }
    }
    return cd_acc(w, loss / (double)micro);
}

/* The mean of a loss over the micro-batches, without its coefficient. */
static et_status add_up(cd_work *w, double **out, double (*loss)(cd_work *, size_t),
                        double coefficient)
{
    size_t M = w->c->micro_batches;
    double sum = 0, by = cd_bad(w, CD_LOSS_SUM) ? 1 : (double)M;
    *out = cd_take(w, 1, sizeof(double));
    if (*out == NULL) return ET_ENOMEM;
    for (size_t m = 0; m < M; m++) sum = cd_acc(w, sum + loss(w, m));
    **out = cd_acc(w, sum / by);
    if (cd_bad(w, CD_LOSS_COEFFICIENT)) **out = cd_acc(w, **out * coefficient);
    return ET_OK;
}

et_status cd_losses(cd_work *w)
{
    et_status status = ET_OK;
    w->dp = cd_take(w, w->N * w->n, sizeof(double));
    w->dr = cd_take(w, w->N * w->n, sizeof(double));
    if (w->dp == NULL || w->dr == NULL) return ET_ENOMEM;
    if (w->golden->loss_aux) status = add_up(w, &w->loss_aux, aux_loss, w->c->balance_coef);
    if (status == ET_OK && w->golden->loss_z)
        status = add_up(w, &w->loss_z, z_loss, w->c->z_loss_coef);
    return status;
}

/* ---- dw -> dp ---- */

/* Of token t. norm = sum: dp_i = (dw_i - sum_j w_j dw_j) / T. */
static void weigh_backward(cd_work *w, size_t t)
{
    int32_t first = w->a.token_offsets[t], end = w->a.token_offsets[t + 1];
    bool subtracts =
        w->moe.norm == ET_NORM_SUM && !cd_bad(w, CD_NORM_FORGOTTEN) && !cd_bad(w, CD_NORM_GRADIENT);
    bool undivided = cd_bad(w, CD_FANOUT_GRADIENT) && w->moe.norm == ET_NORM_FANOUT;
    double by = undivided ? 1 : divisor(w, t), carried = 0;
    if (by == 0 || cd_bad(w, CD_ROUTER_DETACHED)) return; /* its weights are 0 by definition */
    for (int32_t j = first; subtracts && j < end; j++) {
        int32_t slot = w->a.token_slots[j];
        carried = op(w, carried + op(w, w->slot_weight[slot] * w->dw[slot]));
    }
    for (int32_t j = first; j < end; j++) {
        int32_t slot = w->a.token_slots[j];
        size_t i = (size_t)w->a.slot_expert[slot];
        double *dp = &w->dp[t * w->n + i];
        if (cd_bad(w, CD_ROUTER_LOCAL) && i >= w->n / 2) continue;
        double own = op(w, op(w, w->dw[slot] - carried) * tampered(w, t, i));
        *dp = op(w, *dp + op(w, own / by));
    }
    for (size_t i = 0; cd_bad(w, CD_UNSELECTED) && first < end && i < w->n; i++)
        if (!is_chosen(w, t, i)) w->dp[t * w->n + i] += w->dw[w->a.token_slots[first]];
}

/* ---- dp -> dr ---- */

static double sigmoid_slope(const cd_work *w, double r, double p)
{
    if (w->kernel->slope_from_gate) return op(w, p * op(w, 1 - p));
    double e = exponential(w, -fabs(r)), over = op(w, 1 + e);
    return op(w, e / op(w, over * over));
}

/* dr_i += p_i sum_j p_j (dp_i - dp_j), j over the anchor, too. */
static void visit_softmax_backward(cd_work *w, size_t at, size_t count, size_t step)
{
    const double *p = w->gates + at, *dp = w->dp + at;
    size_t t = at / w->n;
    bool anchored = has_anchor(w) && !cd_bad(w, CD_ANCHOR_TERM);
    bool anchor_weighs = w->moe.anchor_weighs_shared && !cd_bad(w, CD_ANCHOR_SHARE);
    double a = anchored ? w->anchor[t] : 0;
    double da = anchored && anchor_weighs ? op(w, w->ds[t] / shared_divisor(w, t)) : 0;
    for (size_t i = 0; i < count; i++) {
        double own = dp[i * step], sum = op(w, a * op(w, own - da));
        for (size_t j = 0; j < count; j++)
            sum = op(w, sum + op(w, p[j * step] * op(w, own - dp[j * step])));
        if (cd_bad(w, CD_SOFTMAX_DIAGONAL)) sum = op(w, op(w, 1 - p[i * step]) * own);
        w->dr[at + i * step] = op(w, w->dr[at + i * step] + op(w, p[i * step] * sum));
    }
}

et_status cd_gates_backward(cd_work *w)
{
    size_t entries = w->N * w->n;
    for (size_t t = 0; t < w->N; t++) weigh_backward(w, t);
    bool by_softmax = w->moe.gate != ET_GATE_SIGMOID && w->moe.gate != ET_GATE_RELU;
    bool flat = cd_bad(w, CD_GATE_DERIVATIVE) || cd_bad(w, CD_RAW_LOGITS);
    if (by_softmax && !flat) each_softmax(w, visit_softmax_backward);
    for (size_t j = 0; j < entries; j++) {
        double slope = 1;
        if (by_softmax && !flat) continue;
        if (!flat)
            slope = w->moe.gate == ET_GATE_RELU ? w->logits[j] > 0
                                                : sigmoid_slope(w, w->logits[j], w->gates[j]);
        w->dr[j] = op(w, w->dr[j] + op(w, w->dp[j] * slope));
    }
    for (size_t j = 0; j < entries; j++) {
        if (cd_bad(w, CD_DR_OF_SELECTED) && !w->mask[j]) w->dr[j] = 0;
        w->dr[j] = cd_round(&w->logit, w->dr[j]);
    }
    return ET_OK;
}
