/* routing.c: from a kernel's own logits to its own routing, and the state after the step.
 *
 *     scores     r + b, in the accumulator's precision
 *     threshold  ema, or ema / (1 - beta^u)
 *     choice     the library's three rules, micro-batch by micro-batch, pool by pool
 *     cutoff     mean over pools and micro-batches of the k-th largest score
 *     ema, bias  as they leave the step
 *
 * A kernel selects as the rule says, from numbers that are a little wrong: so its choice may differ
 * where a decision was close. Faults of selection and state sit here.
 */
#include "ref/base/memory.h"
#include "tests/candidates/work.h"

#include <stdlib.h>
#include <string.h>

/* A run of tokens that are routed together: a pool, or a micro-batch. */
typedef struct span {
    size_t first, count;
} span;

/* ---- which rule, which k ---- */

/* K of TC, k of the others. */
static size_t case_target(const et_case *c)
{
    return c->rule == ET_TC ? c->top_k : c->target_load;
}

/* k of the whole step, as if it were one pool. */
static size_t step_target(const et_case *c)
{
    size_t P = c->pool_tokens, N = c->tokens, G = c->granularity, n = c->experts;
    return c->target_load == P * G / n ? N * G / n : c->target_load * (N / P);
}

static size_t target(const cd_work *w)
{
    const et_case *c = w->c;
    bool tc = c->rule == ET_TC;
    size_t k = case_target(c), most = tc ? c->experts : c->pool_tokens;
    if (cd_bad(w, CD_K_PLUS_ONE)) k++;
    if (cd_bad(w, CD_K_MINUS_ONE) && k > 1) k--;
    if (cd_bad(w, CD_K_CEIL) && !tc) k = cd_ceil(c->pool_tokens * c->granularity, c->experts);
    if (cd_bad(w, CD_K_FROM_BATCH) && !tc) k = step_target(c);
    return cd_smaller(k, most);
}

/* Tokens that are routed together. */
static size_t micro_tokens(const cd_work *w)
{
    return cd_bad(w, CD_MICRO_IGNORED) ? w->N : et_case_micro_tokens(w->c);
}

static size_t pool_tokens(const cd_work *w)
{
    size_t P = w->c->pool_tokens;
    if (cd_bad(w, CD_POOLS_IGNORED)) return et_case_micro_tokens(w->c);
    return cd_bad(w, CD_MICRO_IGNORED) && P == et_case_micro_tokens(w->c) ? w->N : P;
}

static bool routes_by_choice(const cd_work *w)
{
    return et_case_routes_by_choice(w->c) != cd_bad(w, CD_WRONG_PHASE);
}

/* k in a pool of the size that the kernel believes in. */
static size_t pool_target(const cd_work *w)
{
    return w->k * (pool_tokens(w) / w->c->pool_tokens);
}

static bool is_clamped(const cd_work *w)
{
    bool in_force = !w->c->eval || cd_bad(w, CD_CAPACITY_IN_EVALUATION);
    return w->c->has_capacity && in_force && !cd_bad(w, CD_CAPACITY_IGNORED);
}

static et_capacity bounds(const cd_work *w, size_t N)
{
    et_capacity b = et_capacity_bounds(pool_target(w), w->c->capacity_factor, N);
    if (cd_bad(w, CD_UPPER_PLUS)) b.upper++;
    if (cd_bad(w, CD_UPPER_MINUS) && b.upper > b.lower) b.upper--;
    if (cd_bad(w, CD_LOWER_PLUS) && b.lower < b.upper) b.lower++;
    if (cd_bad(w, CD_LOWER_MINUS) && b.lower > 0) b.lower--;
    if (cd_bad(w, CD_PADDING_FORGOTTEN)) b.lower = 0;
    return b;
}

/* ---- the library's rules, on a copy that can be turned round ---- */

/* What a rule works on: a span's scores as the library takes them, and what it answers. Turned
 * round (tokens, or for TC experts), a rule that prefers the lower index prefers the higher. */
typedef struct desk {
    size_t count, n;
    bool turn_tokens, turn_experts;
    et_real *r, *margin, *kth; /* [count,n], [count,n], [n] */
    uint8_t *mask;             /* [count,n] */
    int32_t *list, *passed;    /* [count * n] at most, [n] */
} desk;

static et_status open_desk(desk *t, cd_work *w)
{
    size_t most = w->N, n = w->n;
    bool higher = cd_bad(w, CD_TIE_HIGHER);
    *t = (desk){.n = n,
                .turn_tokens = higher && w->c->rule != ET_TC,
                .turn_experts = higher && w->c->rule == ET_TC,
                .r = cd_take(w, most * n, sizeof(et_real)),
                .margin = cd_take(w, most * n, sizeof(et_real)),
                .kth = cd_take(w, n, sizeof(et_real)),
                .mask = cd_take(w, most * n, 1),
                .list = cd_take(w, most * n, sizeof(int32_t)),
                .passed = cd_take(w, n, sizeof(int32_t))};
    return t->r && t->margin && t->kth && t->mask && t->list && t->passed ? ET_OK : ET_ENOMEM;
}

static size_t turned(bool turn, size_t index, size_t count)
{
    return turn ? count - 1 - index : index;
}

/* Where entry (t,i) of the span lies on the desk. */
static size_t desk_place(const desk *d, size_t t, size_t i)
{
    return turned(d->turn_tokens, t, d->count) * d->n + turned(d->turn_experts, i, d->n);
}

static void lay_out(desk *d, const cd_work *w, span s)
{
    et_real sign = cd_bad(w, CD_LOWEST_SCORES) ? -1 : 1;
    d->count = s.count;
    for (size_t t = 0; t < s.count; t++)
        for (size_t i = 0; i < d->n; i++)
            d->r[desk_place(d, t, i)] = sign * (et_real)w->scores[(s.first + t) * d->n + i];
}

static void take_mask(const desk *d, cd_work *w, span s)
{
    for (size_t t = 0; t < s.count; t++)
        for (size_t i = 0; i < d->n; i++)
            w->mask[(s.first + t) * d->n + i] = d->mask[desk_place(d, t, i)];
}

/* ---- TC ---- */

static et_status by_token(cd_work *w, desk *d, span s, size_t K, int32_t *list)
{
    lay_out(d, w, s);
    et_status status =
        et_token_choice(s.count, d->n, K, d->r, NULL, d->mask, d->margin, d->list, w->error);
    if (status != ET_OK) return status;
    take_mask(d, w, s);
    for (size_t j = 0; list != NULL && j < s.count * K; j++)
        list[s.first * K + j] = (int32_t)turned(d->turn_experts, (size_t)d->list[j], d->n);
    return ET_OK;
}

/* ---- EC ---- */

/* One pool. cutoffs [n] out; list [n,k] of the pool, or NULL. */
static et_status by_expert(cd_work *w, desk *d, span s, size_t k, double *cutoffs, int32_t *list)
{
    lay_out(d, w, s);
    et_status status = et_expert_choice(s.count, d->n, s.count, k, d->r, d->mask, d->margin, d->kth,
                                        d->list, 0, w->error);
    if (status != ET_OK) return status;
    take_mask(d, w, s);
    double sign = cd_bad(w, CD_LOWEST_SCORES) ? -1 : 1;
    for (size_t i = 0; i < d->n; i++) cutoffs[i] = sign * (double)d->kth[i];
    for (size_t j = 0; list != NULL && j < d->n * k; j++)
        list[j] = (int32_t)(s.first + turned(d->turn_tokens, (size_t)d->list[j], s.count));
    return ET_OK;
}

/* A micro-batch in pools; kth [n] out: the mean of their cutoffs. */
static et_status by_pools(cd_work *w, desk *d, span s, double *kth)
{
    size_t P = w->c->pool_tokens, own = pool_tokens(w), k = pool_target(w), n = w->n;
    et_status status = ET_OK;
    bool last = cd_bad(w, CD_EMA_LAST_POOL);
    for (size_t i = 0; i < n; i++) kth[i] = 0;
    for (size_t at = 0; status == ET_OK && at < s.count; at += own) {
        size_t pool = (s.first + at) / P;
        double *cutoffs = w->pool_cutoff + pool * n;
        status = by_expert(w, d, (span){s.first + at, own}, k, cutoffs,
                           w->topk_token ? w->topk_token + pool * n * k : NULL);
        for (size_t i = 0; i < n; i++) kth[i] = last ? cutoffs[i] : cd_acc(w, kth[i] + cutoffs[i]);
        for (size_t more = 1; more < own / P; more++) /* one pool for several: one cutoff for all */
            memcpy(cutoffs + more * n, cutoffs, n * sizeof *cutoffs);
    }
    for (size_t i = 0; !last && i < n; i++) kth[i] = cd_acc(w, kth[i] / (double)(s.count / own));
    if (status == ET_OK && cd_bad(w, CD_EC_PER_TOKEN))
        status = by_token(w, d, s, cd_smaller(w->c->granularity, n), NULL);
    return status;
}

/* ---- ET ---- */

/* Expert i keeps its first `upper` tokens, or adds the first of the others: by index, not by score. */
static void clamp_by_index(cd_work *w, span s, size_t i, et_capacity b)
{
    size_t count = 0;
    for (size_t t = s.first; t < s.first + s.count; t++) {
        uint8_t *z = &w->mask[t * w->n + i];
        if (*z && count == b.upper) *z = 0;
        count += *z;
    }
    for (size_t t = s.first; t < s.first + s.count && count < b.lower; t++) {
        uint8_t *z = &w->mask[t * w->n + i];
        if (!*z) count++;
        *z = 1;
    }
}

static et_status by_threshold(cd_work *w, desk *d, span s)
{
    bool inclusive = w->c->inclusive != cd_bad(w, CD_THRESHOLD_SIDE);
    bool by_index = cd_bad(w, CD_CLAMPED_BY_INDEX);
    et_capacity b = bounds(w, s.count);
    lay_out(d, w, s);
    for (size_t i = 0; i < d->n; i++) d->kth[i] = (et_real)w->threshold[i];
    et_status status = et_expert_threshold(s.count, d->n, d->r, d->kth, inclusive,
                                           is_clamped(w) && !by_index ? &b : NULL, d->mask,
                                           d->margin, d->passed, w->error);
    if (status != ET_OK) return status;
    take_mask(d, w, s);
    for (size_t i = 0; is_clamped(w) && by_index && i < w->n; i++) clamp_by_index(w, s, i, b);
    return ET_OK;
}

/* The k-th largest scores of a micro-batch, whoever was routed. */
static et_status kth_largest(cd_work *w, desk *d, span s, double *kth)
{
    lay_out(d, w, s);
    et_status status =
        et_kth_largest(s.count, d->n, cd_smaller(pool_target(w), s.count), d->r, d->kth, w->error);
    for (size_t i = 0; status == ET_OK && i < d->n; i++) kth[i] = (double)d->kth[i];
    return status;
}

/* Of the routed instead; an expert without tokens keeps what it has. */
static void lowest_routed(const cd_work *w, span s, double *kth)
{
    for (size_t i = 0; i < w->n; i++) {
        bool any = false;
        for (size_t t = s.first; t < s.first + s.count; t++) {
            double r = w->scores[t * w->n + i];
            if (!w->mask[t * w->n + i] || (any && r >= kth[i])) continue;
            kth[i] = r;
            any = true;
        }
    }
}

/* ---- the moving average ---- */

static double average(const cd_work *w, double ema, double kth)
{
    double beta = w->c->ema_decay;
    if (cd_bad(w, CD_EMA_BETA_SWAPPED)) beta = 1 - beta;
    if (cd_bad(w, CD_EMA_DECAY)) beta = 1 - 10 * (1 - beta);
    return cd_acc(w, cd_acc(w, beta * ema) + cd_acc(w, (1 - beta) * kth));
}

/* The threshold of a step behind which lie u updates, from the average `ema` [n]. */
static void set_threshold(cd_work *w, const double *ema, size_t u)
{
    bool corrected = w->c->ema_bias_correction;
    if (cd_bad(w, CD_EMA_UNCORRECTED)) corrected = false;
    if (cd_bad(w, CD_EMA_CORRECTED)) corrected = true;
    if (cd_bad(w, CD_EMA_CORRECTION_OFF)) u++;
    double weight = corrected ? et_ema_weight(w->c->ema_decay, u) : 1;
    for (size_t i = 0; i < w->n; i++) w->threshold[i] = weight > 0 ? cd_acc(w, ema[i] / weight) : 0;
}

/* ---- the whole step ---- */

static et_status take_routing(cd_work *w)
{
    const et_case *c = w->c;
    bool choice = routes_by_choice(w), pooled = c->rule != ET_TC;
    bool listed = w->k == case_target(c) && pool_tokens(w) == c->pool_tokens &&
                  !cd_bad(w, CD_EC_PER_TOKEN) && !cd_bad(w, CD_WRONG_PHASE);
    size_t n = w->n, pools = pooled ? w->N / c->pool_tokens : 0, K = w->k;
    if (!(w->scores = cd_take(w, w->N * n, sizeof(double))) || !(w->mask = cd_take(w, w->N * n, 1)))
        return ET_ENOMEM;
    if (pooled && (!(w->threshold = cd_take(w, n, sizeof(double))) ||
                   !(w->cutoff = cd_take(w, n, sizeof(double)))))
        return ET_ENOMEM;
    if (choice && !(w->pool_cutoff = cd_take(w, pools * n, sizeof(double)))) return ET_ENOMEM;
    if (!pooled && listed && !(w->topk_expert = cd_take(w, w->N * K, sizeof(int32_t))))
        return ET_ENOMEM;
    if (choice && listed && !(w->topk_token = cd_take(w, pools * n * K, sizeof(int32_t))))
        return ET_ENOMEM;
    return ET_OK;
}

/* A number of the state, as this kernel keeps it. */
static double kept(const cd_work *w, cd_fault_id in_short, double v)
{
    return cd_bad(w, in_short) ? cd_round(&cd_eight_bits, v) : v;
}

static void set_scores(cd_work *w)
{
    const et_real *b = cd_bad(w, CD_BIAS_NOT_IN_SELECTION) ? NULL : w->golden->in.bias;
    for (size_t j = 0; j < w->N * w->n; j++) {
        double r = w->logits[j];
        if (b != NULL) r = cd_acc(w, r + kept(w, CD_BIAS_BF16, cd_acc(w, (double)b[j % w->n])));
        if (cd_bad(w, CD_GATES_IN_SELECTION)) r = w->gates[j];
        w->scores[j] = cd_bad(w, CD_LOGITS_LOW) ? cd_round(&cd_eight_bits, r) : r;
    }
}

/* Micro-batch s. kth [n] out, except for TC. */
static et_status route_batch(cd_work *w, desk *d, span s, double *kth)
{
    if (w->c->rule == ET_TC) return by_token(w, d, s, w->k, w->topk_expert);
    if (routes_by_choice(w)) return by_pools(w, d, s, kth);
    et_status status = by_threshold(w, d, s);
    if (status == ET_OK) status = kth_largest(w, d, s, kth);
    if (status == ET_OK && cd_bad(w, CD_EMA_FROM_ROUTED)) lowest_routed(w, s, kth);
    return status;
}

/* All micro-batches with one and the same threshold; w->cutoff becomes the mean of their kth. */
static et_status route_batches(cd_work *w, desk *d, double *kth)
{
    size_t micro = micro_tokens(w), M = w->N / micro;
    bool last = cd_bad(w, CD_EMA_LAST_MICRO);
    et_status status = ET_OK;
    for (size_t i = 0; w->cutoff && i < w->n; i++) w->cutoff[i] = 0;
    for (size_t m = 0; status == ET_OK && m < M; m++) {
        status = route_batch(w, d, (span){m * micro, micro}, kth);
        for (size_t i = 0; w->stepwise && i < w->n; i++)
            w->stepwise[i] = average(w, w->stepwise[i], kth[i]);
        for (size_t i = 0; w->cutoff && i < w->n; i++)
            w->cutoff[i] = last ? kth[i] : cd_acc(w, w->cutoff[i] + kth[i]);
    }
    for (size_t i = 0; w->cutoff && !last && i < w->n; i++)
        w->cutoff[i] = cd_acc(w, w->cutoff[i] / (double)M);
    return status;
}

/* ---- how kernels search, and cut loads ---- */

/* Expert i's last tokens of a micro-batch go, until no more than `most` are left. */
static void drop_last(cd_work *w, size_t first, size_t i, size_t most)
{
    size_t load = 0, micro = et_case_micro_tokens(w->c);
    for (size_t t = first; t < first + micro; t++) {
        uint8_t *z = &w->mask[t * w->n + i];
        if (*z && load == most) *z = 0;
        load += *z;
    }
}

static size_t load_in(const cd_work *w, size_t first, size_t i)
{
    size_t load = 0;
    for (size_t t = first; t < first + et_case_micro_tokens(w->c); t++)
        load += w->mask[t * w->n + i];
    return load;
}

static void tamper_with_mask(cd_work *w)
{
    size_t n = w->n, micro = et_case_micro_tokens(w->c), tile = 8;
    bool tiles = cd_bad(w, CD_LOADS_IN_TILES), cuts = cd_bad(w, CD_OVERFLOW_DROPPED);
    bool lacks = tiles || cuts || cd_bad(w, CD_POSITIVE_SCORES) || cd_bad(w, CD_INDEX_OF_8_BITS);
    for (size_t j = 0; j < w->N * n; j++) {
        if (cd_bad(w, CD_POSITIVE_SCORES) && w->scores[j] <= 0) w->mask[j] = 0;
        if (cd_bad(w, CD_INDEX_OF_8_BITS) && j % n > 255) w->mask[j] = 0;
    }
    for (size_t first = 0; first < w->N; first += micro)
        for (size_t i = 0; (tiles || cuts) && i < n; i++) {
            size_t load = load_in(w, first, i);
            drop_last(w, first, i, tiles ? load - load % tile : cd_ceil(w->k * micro, n));
        }
    if (lacks) w->topk_expert = w->topk_token = NULL; /* the lists that nobody has cut */
}

static et_status check_scores(const cd_work *w)
{
    for (size_t j = 0; j < w->N * w->n; j++)
        if (!isfinite(w->scores[j]))
            return et_fail(w->error, ET_EINVAL,
                           "case '%s': under profile %s the score of token %zu for expert %zu is "
                           "no finite number; take a profile with a wider range",
                           w->c->name, w->profile->name, j / w->n, j % w->n);
    return ET_OK;
}

et_status cd_route(cd_work *w)
{
    desk d;
    w->k = target(w);
    et_status status = take_routing(w);
    if (status == ET_OK) status = open_desk(&d, w);
    double *kth = cd_take(w, w->n, sizeof(double)), *ema = cd_take(w, w->n, sizeof(double));
    if (status == ET_OK && (kth == NULL || ema == NULL)) status = ET_ENOMEM;
    if (status != ET_OK) return status;
    set_scores(w);
    if ((status = check_scores(w))) return status;
    for (size_t i = 0; w->golden->in.ema && i < w->n; i++)
        ema[i] = kept(w, CD_EMA_BF16, cd_acc(w, (double)w->golden->in.ema[i]));
    if (cd_bad(w, CD_EMA_LOST)) memset(ema, 0, w->n * sizeof *ema);
    if (cd_bad(w, CD_EMA_PER_MICRO)) w->stepwise = cd_take(w, w->n, sizeof(double));
    if (w->stepwise) memcpy(w->stepwise, ema, w->n * sizeof *ema);
    if (w->c->rule != ET_TC) set_threshold(w, ema, w->c->ema_updates);
    status = route_batches(w, &d, kth);
    if (status == ET_OK && cd_bad(w, CD_EMA_BEFORE_USE)) {
        for (size_t i = 0; i < w->n; i++) ema[i] = average(w, ema[i], w->cutoff[i]);
        set_threshold(w, ema, w->c->ema_updates + 1);
        status = route_batches(w, &d, kth);
    }
    if (cd_bad(w, CD_WRONG_PHASE)) w->pool_cutoff = NULL; /* not what the case calls so */
    if (!et_case_routes_by_threshold(w->c)) w->threshold = NULL;
    if (status == ET_OK) tamper_with_mask(w);
    if (status == ET_OK) status = et_assignment_build(&w->a, w->N, w->n, w->mask, w->error);
    w->S = w->a.slots;
    return status;
}

/* ---- the state after the step ---- */

static et_status update_ema(cd_work *w)
{
    size_t n = w->n, u = w->c->ema_updates;
    w->ema = cd_take(w, n, sizeof(double));
    w->updates = cd_take(w, 1, sizeof(int32_t));
    if (w->ema == NULL || w->updates == NULL) return ET_ENOMEM;
    size_t M = w->c->micro_batches, more = cd_bad(w, CD_EMA_TWICE) ? 2 : w->stepwise ? M : 1;
    *w->updates = (int32_t)(cd_bad(w, CD_UPDATES_NOT_COUNTED) ? u : u + more);
    for (size_t i = 0; i < n; i++) {
        double ema = kept(w, CD_EMA_BF16, cd_acc(w, (double)w->golden->in.ema[i]));
        double kth = w->cutoff[i] * (double)(cd_bad(w, CD_EMA_SUMMED) ? M : 1);
        w->ema[i] = cd_bad(w, CD_EMA_NOT_UPDATED) ? ema : average(w, ema, kth);
        if (cd_bad(w, CD_EMA_TWICE)) w->ema[i] = average(w, w->ema[i], kth);
        if (w->stepwise) w->ema[i] = w->stepwise[i];
        w->ema[i] = kept(w, CD_EMA_BF16, w->ema[i]);
    }
    return ET_OK;
}

/* Expert i's load: given, or counted in the tokens from `first` on. */
static double load_of(const cd_work *w, size_t first, size_t i)
{
    const et_real *given = cd_bad(w, CD_LOAD_IGNORED) ? NULL : w->golden->in.load;
    double load = 0;
    if (given) return cd_acc(w, (double)given[i]);
    for (size_t t = first; t < w->N; t++) load += w->mask[t * w->n + i];
    return load;
}

/* Loss-free: b += u sign(mean load - load_i). Proportional: b += u (1 - F_i). */
static et_status update_bias(cd_work *w)
{
    const et_case *c = w->c;
    size_t n = w->n, micro = et_case_micro_tokens(c);
    bool last = cd_bad(w, CD_BIAS_LAST_MICRO);
    bool given = w->golden->in.load && !cd_bad(w, CD_LOAD_IGNORED);
    bool by_sign = (c->balance == ET_BALANCE_LOSSFREE) != cd_bad(w, CD_BIAS_RULE);
    size_t tokens = given || last ? micro : w->N;
    double *load = cd_take(w, n, sizeof(double)), total = 0;
    w->bias = cd_take(w, n, sizeof(double));
    if (load == NULL || w->bias == NULL) return ET_ENOMEM;
    for (size_t i = 0; i < n; i++) {
        load[i] = load_of(w, last ? w->N - micro : 0, i);
        if (cd_bad(w, CD_LOADS_TWICE)) load[i] *= 2;
        if (cd_bad(w, CD_LOSSFREE_COUNTS)) load[i] = cd_round(&cd_eight_bits, load[i]);
        total = cd_acc(w, total + load[i]);
    }
    for (size_t i = 0; i < n; i++) {
        double above = total - (double)n * load[i];
        double F = cd_acc(w, (double)n * load[i] / ((double)c->top_k * (double)tokens));
        double way = by_sign ? (double)((above > 0) - (above < 0)) : cd_acc(w, 1 - F);
        if (cd_bad(w, CD_LOSSFREE_SIGN)) way = -way;
        if (cd_bad(w, CD_BIAS_NOT_UPDATED)) way = 0;
        double bias = kept(w, CD_BIAS_BF16, cd_acc(w, (double)w->golden->in.bias[i]));
        w->bias[i] = kept(w, CD_BIAS_BF16, cd_acc(w, bias + cd_acc(w, c->bias_rate * way)));
    }
    return ET_OK;
}

et_status cd_update_state(cd_work *w)
{
    bool eval = w->c->eval;
    et_status status = ET_OK;
    if (w->golden->in.bias && (!eval || cd_bad(w, CD_BIAS_IN_EVALUATION))) status = update_bias(w);
    if (status == ET_OK && w->golden->in.ema && (!eval || cd_bad(w, CD_EMA_IN_EVALUATION)))
        status = update_ema(w);
    return status;
}
