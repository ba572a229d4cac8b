/* routing_metrics.c: what is measured of a routing, and of two. See etref/routing.h.
 *
 * Of one token, with a and b experts under the two routings, c of them common, the uniform
 * distributions P = 1/a on A and Q = 1/b on B give
 *
 *     Jaccard  c / (a+b-c)        Dice  2c / (a+b)
 *     TV       1/2 ( (a-c)/a + (b-c)/b + c |1/a - 1/b| )
 *     JSD      1/2 KL(P||M) + 1/2 KL(Q||M), M = (P+Q)/2, where
 *              KL(P||M) = (a-c)/a log2(2) + c/a log2( (1/a) / ((1/a + 1/b)/2) )
 *                       = (a-c)/a + c/a log2( 2b/(a+b) )
 *
 * Source: paper, appendix F.2. It does not name the logarithm; its figures 8 and 14 fit base 2
 * alone, in which the divergence is at most 1 (no expert in common). Every mean runs over tokens in order.
 */
#include "etref/elementary.h"
#include "etref/routing.h"
#include "ref/base/float_environment.h"
#include "ref/base/sum.h"

#include <math.h>

void et_mean_std(const et_rounding *rounding, size_t count, const et_real *values, et_real *mean,
                 et_real *std)
{
    ET_ARITHMETIC;
    et_grid room;
    const et_grid *q = et_grid_in(&room, rounding, et_sum_place(rounding), "mean");
    double sum = 0, squares = 0;
    for (size_t i = 0; i < count; i++) sum = et_added(q, sum, (double)values[i]);
    double m = count ? et_rounded(q, sum / (double)count) : 0;
    for (size_t i = 0; i < count; i++) {
        double apart = et_plus(q, (double)values[i], -m);
        squares = et_added(q, squares, et_times(q, apart, apart));
    }
    *mean = (et_real)m;
    *std = (et_real)(count ? sqrt(et_over(q, squares, (double)count)) : 0);
}

et_capacity_use et_capacity_measure(size_t M, size_t n, et_capacity bounds, const int32_t *passed)
{
    ET_ARITHMETIC;
    size_t all = 0, dropped = 0, padded = 0, above = 0, below = 0;
    for (size_t i = 0; i < M * n; i++) {
        size_t m = (size_t)passed[i];
        all += m;
        if (m > bounds.upper) {
            dropped += m - bounds.upper;
            above++;
        }
        if (m < bounds.lower) {
            padded += bounds.lower - m;
            below++;
        }
    }
    et_real places = (et_real)(M * n) * (et_real)bounds.lower, experts = (et_real)(M * n);
    return (et_capacity_use){all ? (et_real)dropped / (et_real)all : 0,
                             places > 0 ? (et_real)padded / places : 0, (et_real)above / experts,
                             (et_real)below / experts};
}

/* KL(P||M) of the formula above. */
static double half_divergence(double a, double b, double c)
{
    return (a - c) / a + c / a * (et_log(2 * b / (a + b)) / et_log(2));
}

static void add_token(et_overlap *o, double a, double b, double c)
{
    if (a == 0 && b == 0) {
        o->jaccard += 1;
        o->dice += 1;
    } else if (a == 0 || b == 0) {
        o->divergence += 1;
        o->variation += 1;
    } else {
        o->jaccard += c / (a + b - c);
        o->dice += 2 * c / (a + b);
        o->divergence += (half_divergence(a, b, c) + half_divergence(b, a, c)) / 2;
        o->variation += ((a - c) / a + (b - c) / b + c * fabs(1 / a - 1 / b)) / 2;
    }
}

et_overlap et_routing_overlap(size_t N, size_t n, const uint8_t *A, const uint8_t *B)
{
    ET_ARITHMETIC;
    et_overlap o = {0};
    double all_a = 0, all_b = 0, common = 0;
    for (size_t t = 0; t < N; t++) {
        double a = 0, b = 0, c = 0;
        for (size_t i = t * n; i < (t + 1) * n; i++) {
            a += A[i] != 0;
            b += B[i] != 0;
            c += A[i] != 0 && B[i] != 0;
        }
        add_token(&o, a, b, c);
        all_a += a;
        all_b += b;
        common += c;
    }
    double *means[] = {&o.jaccard, &o.dice, &o.divergence, &o.variation};
    for (size_t i = 0; i < 4; i++) *means[i] /= (double)N;
    o.pooled_jaccard = all_a + all_b > 0 ? common / (all_a + all_b - common) : 1;
    o.pooled_dice = all_a + all_b > 0 ? 2 * common / (all_a + all_b) : 1;
    return o;
}
