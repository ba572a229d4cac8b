/* profile.h: where a kernel rounds, and to how many bits.
 *
 * A precision profile names six places at which a kernel may round, and gives each a number of
 * significand bits (the implicit one included). `etref list profiles` prints the built-in ones.
 *
 *     operands       x, W and every intermediate when it enters a matrix product
 *     intermediates  H, A, f(x); dO, dA, dH
 *     gates          gate values p, slot weights w, the shared expert's weight s
 *     logits         r
 *     accumulator    partial sums; whatever is kept for long: losses, EMA, bias
 *     outputs        y, dx, dW; but bwd.logits as a logit, bwd.slot_weight and shared_weight as gates
 *
 * Six more are parts of these, for kernels that treat a part in another way; 0 bits: as the whole.
 *
 *     activations         operands     x, A, dO, dH as operands of experts, beside the weights
 *     router_operands     operands     x, W_r, dr as operands of the router's products; where operands have
 *                                      fewer than 8 bits, as intermediates: experts alone are quantised
 *     router_accumulator  accumulator  partial sums of the router's products
 *     gate_arithmetic     accumulator  each step from logits to weights and back: e^r, sums, quotients;
 *                                      also <dy, f>, losses, state, unless the accumulator is finer
 *     shares              accumulator  what a slot, the shared expert, the router adds to y or dx; and the
 *                                      running sums of these
 *     dw_sums             accumulator  a micro-batch's share of dW, and the running sums
 *
 * Replicas, of which error bars are made, and emulated kernels round there (rounding.h).
 *
 * One rounding to nearest with p bits makes an error that is uniform on +-ulp/2, with variance
 * ulp^2/12, ulp = 2^(e-p+1) for a value in [2^e, 2^(e+1)); below the smallest normal number the
 * spacing of the format is fixed. Truncation makes an error uniform on [0, ulp): second moment
 * ulp^2/3. A value that carries no error and is representable is not rounded: variance 0. Error bars
 * are not made of these formulas but of replicas; explanations of a failure use them.
 */
#ifndef ETREF_PROFILE_H
#define ETREF_PROFILE_H

#include "etref/status.h"
#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

typedef enum et_place {
    ET_OPERANDS,
    ET_INTERMEDIATES,
    ET_GATES,
    ET_LOGITS,
    ET_ACCUMULATOR,
    ET_OUTPUTS,
    /* parts of the above */
    ET_ACTIVATIONS,
    ET_ROUTER_OPERANDS,
    ET_ROUTER_ACCUMULATOR,
    ET_GATE_ARITHMETIC,
    ET_SHARES,
    ET_DW_SUMS
} et_place;

enum { ET_PLACES = ET_OUTPUTS + 1, ET_ALL_PLACES = ET_DW_SUMS + 1 };

typedef struct et_profile {
    char name[32];
    int bits[ET_ALL_PLACES]; /* 2 to 53; from ET_PLACES on also 0 */
    int exponent_bits; /* 5 (f16) or 8 of formats up to 24 bits; only where bits <= 11 can it be 5 */
    bool ftz;          /* results below the smallest normal number become 0 */
    bool truncate_operands, truncate_accumulator; /* instead of rounding to nearest */
    int accumulator_chunk; /* so many terms of a product are added in the accumulator, the sums of such
                            * chunks in binary32; 0: all of them in the accumulator */
    bool flush_operands, flush_products; /* below the smallest normal number they become 0 */
    bool stochastic; /* what is stored goes up or down by chance, with the mean where it was */
} et_profile;

/* The built-in profiles: f64, f32, tf32, tf32-rz, bf16, bf16-low, f16, then those of libraries (the table in
 * ref/step/profile.c). NULL past the end. */
const et_profile *et_profile_at(size_t index);
/* One of them by name, or NULL. */
const et_profile *et_profile_find(const char *name);
/* From a JSON object, {"name": "mine", "operands": 8, "intermediates": 8, "gates": 24, "logits": 24,
 * "accumulator": 24, "outputs": 8, "exponent_bits": 8, "ftz": false, "operand_rounding": "nearest",
 * "accumulator_rounding": "truncate"}. Name and these six places are required; the last four have the
 * defaults 8, false and "nearest". So may stand there: the six parts of places, "accumulator_chunk",
 * "flush_operands", "flush_products", "stochastic", under their names above. `where` begins the message. ET_EINVAL names the field, its value and what
 * is allowed; on failure *p is as it was. At most 64 KiB. */
et_status et_profile_parse(et_profile *p, const char *json, size_t length, const char *where,
                           et_error *error);

/* What et_profile_parse asks of a profile that was put together in memory: a name of 1 to 31
 * letters, digits, '-', '_', '.', and not a built-in one's unless it is that one; bits from 2 to 53 (of a
 * part of a place: or 0); a chunk of at most 1048576 terms;
 * exponent bits 5 or 8, and 5 only if some place has at most 11 bits. */
et_status et_profile_check(const et_profile *p, et_error *error);

/* The profile as one line of JSON with every field but those that are as in most profiles, such that parsing it gives the same profile.
 * Allocated; the caller frees it. ET_EINVAL as et_profile_check; ET_ENOMEM. */
et_status et_profile_print(char **json, const et_profile *p, et_error *error);

/* Whether they agree in every field. */
bool et_profile_equals(const et_profile *a, const et_profile *b);

/* "operands", "intermediates", ... */
const char *et_place_name(et_place place);

/* The place whose bits count: a part's own where it has some, else the whole's. And these bits. */
et_place et_place_meant(const et_profile *p, et_place place);
int et_place_bits(const et_profile *p, et_place place);

/* Smallest normal and largest finite number of a place's format. A place of more than 24 bits has
 * binary64's range; of at most 11 bits with exponent_bits 5, binary16's; any other, binary32's. */
double et_place_smallest(const et_profile *p, et_place place);
double et_place_largest(const et_profile *p, et_place place);

/* True if the place's format holds `value` exactly. */
bool et_place_holds(const et_profile *p, et_place place, double value);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
