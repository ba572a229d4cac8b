/* quad_model.h: the layers around the experts in binary128, as naive sums.
 *
 * A plain-double interface, because only gcc has quadmath.h (see quad_elementary.h). Everything is
 * computed in binary128 from the doubles given, and rounded once. Shapes as in etref/rmsnorm.h,
 * attention.h, cross_entropy.h; every output is written.
 */
#ifndef ETREF_WITNESS_QUAD_MODEL_H
#define ETREF_WITNESS_QUAD_MODEL_H

#include <stddef.h>
#include <stdint.h>

/* Errors of sin x and cos x in units of the last place of the larger of the exact value and 2^-30.
 * */
void quad_sin_cos_ulps(double x, double sine, double cosine, double ulps[2]);

/* Error of tanh x in units of the exact value's last place. */
double quad_tanh_ulps(double x, double got);

/* cos and sin of t base^(-2j/w). */
void quad_rope_angle(size_t t, size_t j, size_t w, double base, double *cosine, double *sine);

/* rows vectors of w numbers: y and, from dy, dx. */
void quad_rmsnorm(size_t rows, size_t w, double eps, const double *x, const double *dy, double *y,
                  double *dx);

/* qkv, dqkv [B T, (Hq + 2 Hkv) e]; o, dout [B T, Hq e]; lse [B,Hq,T]. */
typedef struct quad_attention_sizes {
    size_t B, T, Hq, Hkv, e;
} quad_attention_sizes;
void quad_attention(quad_attention_sizes n, const double *qkv, const double *dout, double *o,
                    double *lse, double *dqkv);

typedef struct quad_losses {
    size_t N, d, V;
    double cap, scale;
    const double *x, *head; /* [N,d], [V,d] */
    const int32_t *targets; /* [N] */
    double *loss, *logits;  /* out [N], [N,V] */
    double *dx, *dhead;     /* out: the gradient of scale * sum loss */
} quad_losses;
void quad_cross_entropy(const quad_losses *q);

#endif
