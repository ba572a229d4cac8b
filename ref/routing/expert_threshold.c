/* expert_threshold.c: z_ti = [r_ti > c_i], and where c comes from. See etref/routing.h.
 *
 * The threshold is a moving average over past batches of the k-th largest score: of the cutoff that
 * expert choice would have drawn, k = floor(P G / n) being the load an expert is meant to have. It
 * is as good as one drawn from some 2N/(1-beta) tokens (ref/README.md), and it is known
 * before the batch comes, so z_ti depends on r_ti alone: causal, as expert choice is not.
 *
 * Capacity (training only) clamps a load to [k(1-C), k(1+C)]: then a choice of the top tokens,
 * which sees the batch; causality is given up for those experts. Source: paper (arXiv:2603.11535),
 * Eq. 6, Algorithm 1; the released code tests >= and divides the average by 1 - beta^u.
 */
#include "etref/routing.h"
#include "ref/base/float_environment.h"
#include "ref/base/memory.h"
#include "ref/base/sum.h"
#include "ref/layers/moving_average.h"
#include "ref/routing/top_k.h"

#include <math.h>
#include <stdlib.h>

/* min(floor(bound), N), and 0 for what is below 0 or no number. */
static size_t floor_to(double bound, size_t N)
{
    double whole = floor(bound);
    if (!(whole > 0)) return 0;
    return whole >= (double)N ? N : (size_t)whole;
}

/* In binary64, as released, whatever et_real is: the rounding of 1-C decides cases such as
 * k = 10, C = 0.9, where 10 * (1 - 0.9) = 0.99999999999999978 is floored to 0. */
et_capacity et_capacity_bounds(size_t k, double C, size_t N)
{
    ET_ARITHMETIC;
    return (et_capacity){floor_to((double)k * (1.0 - C), N), floor_to((double)k * (1.0 + C), N)};
}

static int32_t apply_threshold(size_t i, size_t N, size_t n, const et_real *r, et_real c,
                               bool inclusive, uint8_t *mask, et_real *margin)
{
    int32_t passed = 0;
    for (size_t t = 0; t < N; t++) {
        et_real score = r[t * n + i];
        mask[t * n + i] = inclusive ? score >= c : score > c;
        margin[t * n + i] = score - c;
        passed += mask[t * n + i];
    }
    return passed;
}

/* Expert i takes its `count` best instead, whoever passed the test. */
static void clamp_expert(size_t i, size_t N, size_t n, size_t count, const et_real *r,
                         et_ranked *items, uint8_t *mask, et_real *margin)
{
    et_rank(items, N, r + i, n);
    et_top(items, N, count);
    for (size_t j = 0; j < N; j++) {
        size_t place = (size_t)items[j].index * n + i;
        mask[place] = j < count;
        margin[place] = et_top_margin(items, N, count, j);
    }
}

et_status et_expert_threshold(size_t N, size_t n, const et_real *r, const et_real *c,
                              bool inclusive, const et_capacity *capacity, uint8_t *mask,
                              et_real *margin, int32_t *passed, et_error *error)
{
    ET_ARITHMETIC;
    void *items = NULL;
    et_status status = et_allocate(&items, N, sizeof(et_ranked), "expert threshold", error);
    if (status != ET_OK) return status;
    for (size_t i = 0; i < n; i++) {
        passed[i] = apply_threshold(i, N, n, r, c[i], inclusive, mask, margin);
        size_t m = (size_t)passed[i], count = m;
        if (capacity != NULL) { /* min(max(m, lower), upper) */
            if (count < capacity->lower) count = capacity->lower;
            if (count > capacity->upper) count = capacity->upper;
            if (count > N) count = N; /* bounds that were made for a larger batch */
        }
        if (count != m) clamp_expert(i, N, n, count, r, items, mask, margin);
    }
    free(items);
    return ET_OK;
}

et_status et_kth_largest(size_t N, size_t n, size_t k, const et_real *r, et_real *kth,
                         et_error *error)
{
    ET_ARITHMETIC;
    if (k < 1 || k > N)
        return et_fail(error, ET_EINVAL, "k-th largest: k = %zu of %zu tokens; 1 to %zu", k, N, N);
    void *room = NULL;
    et_status status = et_allocate(&room, N, sizeof(et_ranked), "k-th largest", error);
    if (status != ET_OK) return status;
    et_ranked *items = room;
    for (size_t i = 0; i < n; i++) {
        et_rank(items, N, r + i, n);
        et_top(items, N, k);
        kth[i] = items[k - 1].score;
    }
    free(room);
    return ET_OK;
}

/* 1 - beta^u. Written as 1 - power it would cancel: at beta = 0.999999 ten digits are lost. So the
 * complements are carried instead of the powers, by repeated squaring: with a = beta^i, b = beta^j
 *
 *     1 - ab = (1-a) + a(1-b)        and, for a = b,        1 - aa = (1-a)(2 - (1-a)),
 *
 * sums and products of numbers between 0 and 2, without a difference of close ones. */
double et_ema_weight(double beta, size_t updates)
{
    ET_ARITHMETIC;
    double weight = 0, rest = 1 - beta; /* 1 - beta^(bits so far), 1 - beta^(2^bit) */
    for (; updates > 0; updates /= 2, rest *= 2 - rest)
        if (updates % 2 == 1) weight += rest * (1 - weight);
    return weight;
}

/* After u updates from 0, ema = (1-beta) sum_s beta^(u-1-s) kth_s, whose weights add up to
 * 1 - beta^u; dividing by that makes it a mean. */
void et_ema_threshold(const et_rounding *rounding, size_t n, const et_real *ema, double beta,
                      bool bias_correction, size_t updates, et_real *c)
{
    ET_ARITHMETIC;
    et_grid room;
    const et_grid *q = et_grid_in(&room, rounding, et_sum_place(rounding), "ema");
    double weight = 1;
    if (bias_correction) weight = et_rounded(q, et_ema_weight(et_rounded(q, beta), updates));
    /* 1 - beta^u, beta^u being rounded first, as a kernel's powf does */
    if (bias_correction && et_goes_other_way(rounding, "1 - beta^u", "ema"))
        weight = et_plus(q, 1, -et_rounded(q, 1 - weight));
    for (size_t i = 0; i < n; i++) {
        double kept = et_rounded(q, (double)ema[i]);
        c[i] = weight > 0 ? (et_real)(kept / weight) : 0;
    }
}

/* ema <- beta ema + (1-beta) kth; the arithmetic is in layers/moving_average.h. */
void et_ema_update(const et_rounding *rounding, size_t n, double beta, const et_real *kth,
                   et_real *ema)
{
    ET_ARITHMETIC;
    const et_mixing mixing = et_mixing_of(rounding, "ema", beta);
    for (size_t i = 0; i < n; i++) {
        double kept = et_mixed(&mixing, (double)ema[i]);
        ema[i] = (et_real)et_mix_in(&mixing, kept, (double)kth[i]);
    }
}
