/* rounding.h: a kernel's roundings, put into the reference.
 *
 * The layers compute without any rounding but binary64's own. Where a mixed-precision kernel would
 * store an array, et_round stands in their code. It does nothing in a golden. With an et_rounding it
 * rounds that array as the profile says, so that the layer becomes
 *
 *     a replica   ET_ROUND_RANDOM: every number is moved by chance, by up to a quarter of an ulp, and
 *                 rounded to nearest. What differs from one replica to the next is what may differ
 *                 between honest kernels: replicas are what error bars are made of.
 *                 ET_ROUND_SOME: the same, but half of the roundings are left out, as kernels
 *                 leave some out.
 *     a kernel    ET_ROUND_NEAREST: every number goes to the nearest of its format, ties to the even
 *                 one. An emulated kernel: what `etref generate --emulate` writes.
 *     a mutant    with `mutate`: somebody else alters the array, before it is rounded. A kernel with one
 *                 mistake in it: what explains a mismatch (ref/diagnose/mutant.h).
 */
#ifndef ETREF_ROUNDING_H
#define ETREF_ROUNDING_H

#include "etref/profile.h"
#include "etref/real.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

typedef enum et_rounding_mode { ET_ROUND_RANDOM, ET_ROUND_SOME, ET_ROUND_NEAREST } et_rounding_mode;

/* Alters the `count` values that have been computed at `site`. Several threads may call it at once,
 * each with an array of its own. */
typedef void et_mutate(void *user, const char *site, size_t count, et_real *values);

typedef struct et_rounding {
    const et_profile *profile; /* NULL: nothing is rounded; for a mutant alone */
    et_rounding_mode mode;
    uint64_t seed;     /* of the choices that kernels have, and of the chances; one a replica */
    uint64_t draw;     /* 0; else the same choices with other chances */
    et_mutate *mutate; /* or NULL */
    void *user;
} et_rounding;

/* What every layer asks of its rounding: NULL, or a known mode and a profile with 2 to 53 bits at each
 * place and 5 or 8 exponent bits. ET_EINVAL names the field. */
et_status et_rounding_check(const et_rounding *rounding, et_error *error);

/* Rounds `count` values in place, as numbers of `place`'s format. rounding NULL: nothing happens; else
 * et_rounding_check accepts it.
 * `site` names the line ("H", "dA"): at one site of one replica, equal numbers are rounded alike.
 *
 * ET_ROUND_RANDOM. Let |v| lie between two neighbours lo < |v| < lo + ulp of the format. It goes where
 * rounding would send |v| + j,
 *
 *     j = ((h(seed, site, v) - 1/2) 3/8 + (h(seed, site, lo) - 1/2) 1/8) ulp       h: uniform on [0,1)
 *
 * since a kernel's own number is not quite v: it is off by up to a quarter of an ulp, near lo and near lo + ulp it is settled
 * where to go. Of the error's square, 1.16 ulp^2/12 over all v, 68 % is chance and about a third is settled by v. A number of the
 * format (v = lo) stays as it is, so that what is exact in a kernel is exact here. Equal numbers have the same j: numbers
 * that a kernel stores as one err alike. A part of j is shared by all numbers between the same neighbours, which nearly
 * equal ones are. v and -v err as mirror images. What has no more bits than a product of two numbers of the format is
 * known to every kernel, as relu(H)^2 of a stored H is: j = 0, ties to the even one.
 *
 * ET_ROUND_SOME. The same, but half of the roundings are left out: site by site, for a quarter of the seeds place by
 * place. The number then has the accumulator's format, as in a register; or, where that is no finer, stays as it is, as in
 * a fused multiply-add.
 *
 * Operands of fewer than 8 bits (FP8 and its like) are divided by a scale before and multiplied after: 1 + k/16, k drawn for
 * seed and site; to nearest 1.
 *
 * A profile of stochastic rounding: j = (h(seed, site, v) - 1/2) ulp, in any mode. The error's variance is f (1-f) ulp^2,
 * f = (|v| - lo)/ulp, as that of the kernel's own chances.
 *
 * All modes: a place that truncates cuts off, to nearest |v|, else |v| + j; results beyond the format's largest number become
 * infinite (truncating: stay the largest); below its smallest normal number the spacing is fixed, and
 * with `ftz` the result is 0. NaN and infinity stay as they are. A place of 53 bits: binary64 itself, whose
 * numbers have been rounded already. ET_ROUND_NEAREST leaves them alone; ET_ROUND_RANDOM moves
 * those of more than 24 bits by one ulp, up or down with chance 1/4 each: more than rounding would, but
 * the spacing gets no smaller, and what is rare would be missing from a few replicas. */
void et_round(const et_rounding *rounding, et_place place, const char *site, size_t count,
              et_real *values);

/* The same for an array that a kernel keeps to itself, as wide as it sums: only a mutant alters it. */
void et_pass(const et_rounding *rounding, const char *site, size_t count, et_real *values);

/* Does anything but a mutant's hand come between the values and the golden's? */
bool et_rounds(const et_rounding *rounding);

/* Where kernels have two ways to one number, such as (w A) W_down' for w (A W_down'), half of the replicas, by chance of
 * seed, `choice` and `site`, go the other way. false in a golden, a mutant, an emulated kernel. */
bool et_goes_other_way(const et_rounding *rounding, const char *choice, const char *site);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
