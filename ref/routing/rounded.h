/* rounded.h: losses, state and measures as a kernel computes them, in the accumulator's arithmetic.
 * Internal; without a rounding (NULL) they are the functions of etref/routing.h. What comes out is
 * rounded by the caller, as it is stored.
 */
#ifndef ET_ROUTING_ROUNDED_H
#define ET_ROUTING_ROUNDED_H

#include "etref/rounding.h"
#include "etref/routing.h"

et_real et_aux_loss_rounded(const et_rounding *rounding, et_balance balance, size_t N, size_t n,
                            const et_real *F, const et_real *p, double scale, et_real *dp);
et_real et_z_loss_rounded(const et_rounding *rounding, size_t N, size_t n, const et_real *r,
                          double scale, et_real *dr);
void et_bias_update_rounded(const et_rounding *rounding, et_balance balance, size_t N, size_t n,
                            size_t K, const et_real *load, double rate, et_real *bias);
void et_ema_threshold_rounded(const et_rounding *rounding, size_t n, const et_real *ema,
                              double beta, bool bias_correction, size_t updates, et_real *c);
void et_ema_update_rounded(const et_rounding *rounding, size_t n, double beta, const et_real *kth,
                           et_real *ema);
void et_mean_std_rounded(const et_rounding *rounding, size_t count, const et_real *values,
                         et_real *mean, et_real *std);

#endif
