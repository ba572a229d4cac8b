/* noise.h: errors that do not average out. Internal.
 *
 * Rounding to nearest errs to both sides; truncation always makes smaller. A profile with truncated
 * operands shrinks every product by 0.72 2^-p for each operand (the mean of ulp/2 over the value, for a
 * significand spread as 1/m), and the shrinking adds up along the way: f(x) = (x W_up')^2 W_down' has
 * lost it twice for H, which is squared, once for A and once for W_down. Smaller logits make other gates:
 * dp/p = (1-p) dr of a sigmoid, dr_i - sum_j p_j dr_j of a softmax.
 *
 * And dO = w dy rounds to dy itself wherever w is just below 1, as a saturated gate makes it: then dO is
 * too large by 1 - w, up to half an ulp, in every element of the slot, and so is all that follows; y = w f(x) of
 * a rounded f(x) is, too. The same befalls dr where many tokens have nearly the same, an expert's share of a
 * balancing loss; and a weight 1/n_t, which few tokens have to themselves.
 */
#ifndef ET_NOISE_H
#define ET_NOISE_H

#include "etref/profile.h"
#include "etref/step.h"

/* By which part rounding changes something as a whole, and at most that of one expert. */
typedef struct et_shift {
    double whole, most;
} et_shift;

/* What one truncation takes (0: the profile rounds to nearest, and x is not looked at), whether x and the parameters
 * are not representable, and dy in the format of intermediates; what rounding does to dO, to the
 * weights w, to the gates, to dr as it is stored and as an operand; how large dr W_r is beside all of dx; and, under
 * truncation, the relative change of the weights w, and the largest of any gate, for one of the logits. */
typedef struct et_systematic {
    double each, router_share, gates;
    et_shift upstream, weight, gate, logits, router, scores;
    bool x, parameters, dy;
} et_systematic;

/* s has been run. ET_ENOMEM. */
et_status et_noise_systematic(et_systematic *by, const et_step *s, const et_profile *p,
                              et_error *error);

/* The part by which an honest kernel's tensor may differ from the reference's: as a `whole`, or in one of
 * its groups. */
double et_noise_slope(const et_systematic *by, const char *tensor, bool whole);

/* et_step_noise without the next: what is not the layer, as a deviation of it, cannot be run once more. */
et_status et_noise_by_chance(et_step *variance, const et_step *s, const et_profile *p,
                             et_error *error);

/* Widens the variances of weight gradients in V by what rounded operands move all tokens' shares by together:
 * parameters.c. ET_ENOMEM. */
et_status et_noise_of_parameters(et_step *V, const et_step *s, const et_profile *p,
                                 et_error *error);

#endif
