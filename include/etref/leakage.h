/* leakage.h: how much of the future a routing rule tells the present (paper, Appendix A).
 *
 * A rule F maps the scores r_1 .. r_N of one expert to decisions z_1 .. z_N. An advice is a label
 * that is chosen in sight of all scores; it causalises F if each z_t is a function of r_1 .. r_t
 * and the label. chi is the least number of labels that causalises F, and
 *
 *     L_F = log2 chi      bits
 *
 * is the rule's leakage: 0 if and only if F is causal. Labels of experts whose scores are
 * independent multiply; the leakage of experts that share an input is at most the sum.
 *
 * Three parts: bounds for real sizes, exact chi where scores take M ordered levels, and the codec
 * (paper, Algorithm 2) that shows the combinatorial bound to be met: any selection can be written into
 * scores each of which depends on earlier decisions alone.
 *
 * Left out: probabilities. L_F counts what a rule CAN tell; which decisions of a batch depend on the
 * future, and how often they do for scores of a given distribution, is an experiment's matter
 * (tools/leakage-study: `etref leakage audit` and `etref leakage study`).
 */
#ifndef ETREF_LEAKAGE_H
#define ETREF_LEAKAGE_H

#include "etref/dtype.h"
#include "etref/real.h"
#include "etref/routing.h"
#include "etref/status.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* ---- Bounds (ref/leakage/leakage_bounds.c) ---- */

/* log2 C(N,k) for 0 <= k <= N <= 2^40. Error: below 0.52 ulp; the same bits on every machine.
 * Returns: ET_EINVAL outside that range. */
et_status et_log2_choose(size_t N, size_t k, double *bits, et_error *error);

/* log2((2^b - 1) k + 1) for 0 <= b <= 64, k <= 2^40: what suffices for an exact top-k whose scores,
 * and so its cutoff, have b bits (proof: ref/leakage/label_counts.c). Error: below 0.52 ulp.
 * Between b and b + log2 k; 0 for k = 0. Returns: ET_EINVAL outside that range. */
et_status et_log2_tied_cutoff(size_t b, size_t k, double *bits, et_error *error);

/* log2 of a number of labels, 0 for chi = 1. Error: below 0.52 ulp. labels >= 1; 0 gives -inf. */
double et_leakage_bits(uint64_t labels);

/* n = G E experts in each of L layers, N tokens in a batch, scores of b bits. */
typedef struct et_leakage_setup {
    size_t tokens, experts, granularity, layers; /* N, n, G, L */
    size_t score_bits;                           /* b */
} et_leakage_setup;

/* Bits of leakage of expert choice. The per-token values are for all experts and all layers. */
typedef struct et_leakage_bounds {
    size_t select;                /* k = floor(N G / n), an expert's tokens in the batch */
    double set;                   /* log2 C(N,k): one expert, one batch, unlimited precision */
    double set_per_token;         /* L (n/N) log2 C(N,k)                        (paper, Eq. 7) */
    double entropy;               /* L n H2(1/E), its limit for large N */
    double log_expansion;         /* L G log2 E, which the limit exceeds */
    double log_refused;           /* L G log2(E-1), the paper's figure; -inf for E = 1 */
    double cutoff;                /* b: one expert, one batch, decided by [r >= cutoff] (Thm A.2) */
    double tied_cutoff;           /* log2((2^b - 1) k + 1): the same, exact top-k with ties */
    double cutoff_per_token;      /* L (n/N) times `cutoff` */
    double tied_cutoff_per_token; /* L (n/N) times `tied_cutoff` */
} et_leakage_bounds;

/* Error: each value below 0.52 ulp. Edge: k = 0 (N < E) gives set = 0. Needs 1 <= G <= n <= 2^20,
 * 1 <= N <= 2^40, 1 <= L <= 2^20, b <= 64. Returns: ET_EINVAL otherwise. */
et_status et_leakage_bound(const et_leakage_setup *setup, et_leakage_bounds *bounds,
                           et_error *error);

/* ---- Exact leakage (ref/leakage/label_counts.c) ---- */

typedef enum et_leakage_rule {
    ET_LEAKAGE_TOPK,       /* the k largest, ties to the lower index: expert choice */
    ET_LEAKAGE_THRESHOLD,  /* every r >= the k-th largest: may be more than k */
    ET_LEAKAGE_TC,         /* token choice */
    ET_LEAKAGE_ET,         /* expert threshold, its threshold fixed before the batch */
    ET_LEAKAGE_ET_CAPACITY /* the same, clamped to floor(k(1-C)) .. floor(k(1+C)) tokens */
} et_leakage_rule;

/* Scores are the levels 1 .. M. */
typedef struct et_leakage_case {
    et_leakage_rule rule;
    size_t tokens, select; /* N, k */
    uint64_t levels;       /* M = 2^b for scores of b bits */
    /* ET with capacity only: how many levels pass the threshold, the uppermost ones (an inclusive
     * threshold at level c: M - c + 1; a strict one: M - c), and C. */
    uint64_t passing;
    double capacity;
} et_leakage_case;

/* chi, exactly. With n = N - k, a = passing, lo = floor(k(1-C)) and
 * up = min(floor(k(1+C)), N), both as et_capacity_bounds has them:
 *
 *   top-k         1 + the sum of the M-1 largest of C(N,k) - 1 numbers:
 *                 k, n times; k-s, C(n+s-1, s+1) times, s = 1 .. k-1 (all, if they are fewer)
 *   threshold     min(M, C(N,k))
 *   TC, ET        1
 *   ET, capacity  a recursion over (tokens taken, tokens refused, levels open on either side)
 *
 * all derived in label_counts.c from chi(S) = max over the next score of chi(S, z=0) + chi(S, z=1).
 * Time: at most some 10^5 steps. With capacity and N < up + M - 1, at most 2^36 additions (a
 * minute) in 512 MB; N >= up + M - 1 meets the bound below, and costs nothing.
 * Returns: ET_EINVAL unless 1 <= k <= N <= 2^32, 1 <= M <= 2^32, and with capacity
 * passing <= M, 0 <= C < infinity and a size within those limits; ET_ENOMEM. */
et_status et_leakage_labels(const et_leakage_case *c, uint64_t *labels, et_error *error);

/* A number of labels that always suffices, by an advice that label_counts.c writes down:
 *
 *   top-k         (M-1) k + 1                 met if and only if M <= N-k+1
 *   threshold     M                           met if and only if M <= C(N,k)
 *   TC, ET        1
 *   ET, capacity  (a-1) up + (M-a) lo + 1     met if N >= up + M - 1; for a >= 1
 *                 (M-1) lo + 1                for a = 0: nothing ever passes
 *
 * Free of N: per token each goes to 0. Arguments and errors as et_leakage_labels, any size. */
et_status et_leakage_labels_suffice(const et_leakage_case *c, uint64_t *labels, et_error *error);

/* ---- Codec (ref/leakage/leakage_codec.c; paper, Algorithm 2) ---- */

/* A dyadic number in [0,1) is a string of its binary digits after the point, '0' and '1', without a
 * terminator; digits not given are 0. Selections z [N] hold 0 for refused, anything else for taken.
 *
 * Algorithm 2 keeps a bracket [l,u], at first [0,1]. Token t's score is the midpoint; if t is to be
 * taken, u moves there, otherwise l does. In binary
 *
 *     r_t = 0.(1-z_1)(1-z_2)...(1-z_{t-1})1        cutoff x = 0.(1-z_1)(1-z_2)...(1-z_N)
 *
 * and z_t = [r_t > x]: the taken ones are exactly the top k = sum z of these scores. */

/* -1, 0, 1: the order of two dyadic numbers. A string of 0 digits is the number 0. */
int et_codec_compare(size_t digits_a, const char *a, size_t digits_b, const char *b);

/* cutoff [N] out. */
void et_codec_cutoff(size_t N, const uint8_t *z, char *cutoff);

/* score [t+1] out: that of token t, counted from 0. Reads z[0] .. z[t-1] only: causal. */
void et_codec_score(size_t t, const uint8_t *z, char *score);

/* z [N] out, from cutoff [N] alone, token by token: the decoder forms each score from its own
 * earlier decisions and compares it with the cutoff. Time O(N): the digits before token t agree.
 * Returns: ET_EINVAL if a digit is neither '0' nor '1'. */
et_status et_codec_decode(size_t N, const char *cutoff, uint8_t *z, et_error *error);

/* The same in a float type (F64, F32, F16 or BF16), each midpoint rounded to it: scores [N] out,
 * cutoff out (the last l; z_t = [r_t > cutoff]). carried out: how many leading tokens have exact
 * scores. From the first midpoint on that rounds to an end of its bracket, no further decision can
 * be told from an earlier one, and neither EC on the scores nor the decoder need return z.
 *
 * With p significand bits, smallest positive number 2^-e and f the first refused token (from 1),
 * carried = min(N, f+p-1, e) where a token is refused among the first e, min(N, e) otherwise: the
 * bracket's lower end has its leading bit at place f ever after, and p places are all there are.
 * Returns: ET_EINVAL if `type` is not one of the four. */
et_status et_codec_encode_in(et_dtype type, size_t N, const uint8_t *z, double *scores,
                             double *cutoff, size_t *carried, et_error *error);

/* z [N] out, from the cutoff alone, as et_codec_decode. Returns the selection that was encoded if
 * all N tokens were carried; a later token, not carried, may move the cutoff past earlier ones. A
 * cutoff that is no number of the type (or is NaN) is compared as it is. Returns: ET_EINVAL if
 * `type` is not one of the four. */
et_status et_codec_decode_in(et_dtype type, size_t N, double cutoff, uint8_t *z, et_error *error);

/* How many tokens a type can carry, measured by running the encoder: `every` selection of so many
 * (p: F64 53, F32 24, F16 11, BF16 8; met by refusing all), and at most for `some` selection (e:
 * 1074, 149, 24, 133; met by taking all). Returns: ET_EINVAL if `type` is not one of the four. */
et_status et_codec_reach(et_dtype type, size_t *every, size_t *some, et_error *error);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
