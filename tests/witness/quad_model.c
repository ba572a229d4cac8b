/* quad_model.c: the layers around the experts in binary128. See quad_model.h.
 *
 * Written from the equations, with the Jacobians in full, where ref/model has shorter forms. Shares
 * no code with ref/.
 */
#include "tests/witness/quad_model.h"

#include <math.h>
#include <quadmath.h>
#include <stdlib.h>

typedef __float128 quad;

static double ulps(quad exact, quad least, double got)
{
    int exponent;
    if (isnan(got)) return INFINITY;
    frexpq(fabsq(exact) > least ? exact : least, &exponent);
    return (double)(fabsq((quad)got - exact) / ldexpq(1, exponent - 53));
}

void quad_sin_cos_ulps(double x, double sine, double cosine, double error[2])
{
    error[0] = ulps(sinq((quad)x), 0x1p-30Q, sine);
    error[1] = ulps(cosq((quad)x), 0x1p-30Q, cosine);
}

double quad_tanh_ulps(double x, double got)
{
    quad exact = tanhq((quad)x);
    return exact == 0 ? (got == 0 ? 0 : INFINITY) : ulps(exact, 0, got);
}

void quad_rope_angle(size_t t, size_t j, size_t w, double base, double *cosine, double *sine)
{
    quad angle = (quad)t * powq((quad)base, -2 * (quad)j / (quad)w);
    *cosine = (double)cosq(angle);
    *sine = (double)sinq(angle);
}

static quad *room_for(size_t count)
{
    quad *room = calloc(count, sizeof *room);
    if (room == NULL) abort();
    return room;
}

/* dx_j = sum_i dy_i dy_i/dx_j with y_i = x_i (q)^(-1/2), q = mean(x^2) + eps. */
void quad_rmsnorm(size_t rows, size_t w, double eps, const double *x, const double *dy, double *y,
                  double *dx)
{
    for (size_t t = 0; t < rows; t++) {
        const double *v = x + t * w;
        quad q = (quad)eps;
        for (size_t i = 0; i < w; i++) q += (quad)v[i] * v[i] / (quad)w;
        quad s = 1 / sqrtq(q);
        for (size_t j = 0; j < w; j++) {
            quad sum = 0;
            for (size_t i = 0; i < w; i++)
                sum += dy[t * w + i] * ((i == j ? s : 0) - (quad)v[i] * s / q * v[j] / (quad)w);
            y[t * w + j] = (double)(v[j] * s);
            dx[t * w + j] = (double)sum;
        }
    }
}

/* One query head of one sequence. */
static void attend(quad_attention_sizes n, size_t b, size_t i, const double *qkv,
                   const double *dout, double *o, double *lse, quad *dqkv)
{
    size_t T = n.T, e = n.e, R = (n.Hq + 2 * n.Hkv) * e, own = i * n.Hkv / n.Hq;
    size_t q = i * e, k = (n.Hq + own) * e, v = (n.Hq + n.Hkv + own) * e;
    quad root = sqrtq((quad)e), *S = room_for(T), *dP = room_for(T);
    for (size_t t = 0; t < T; t++) {
        size_t row = b * T + t;
        quad sum = 0;
        for (size_t u = 0; u <= t; u++) {
            S[u] = 0;
            for (size_t c = 0; c < e; c++)
                S[u] += (quad)qkv[row * R + q + c] * qkv[(b * T + u) * R + k + c];
            S[u] = expq(S[u] / root);
            sum += S[u];
        }
        lse[(b * n.Hq + i) * T + t] = (double)logq(sum);
        for (size_t u = 0; u <= t; u++) {
            S[u] /= sum;
            dP[u] = 0;
            for (size_t c = 0; c < e; c++) {
                quad up = (quad)dout[row * n.Hq * e + q + c];
                dP[u] += up * qkv[(b * T + u) * R + v + c];
                dqkv[(b * T + u) * R + v + c] += S[u] * up;
            }
        }
        for (size_t c = 0; c < e; c++) {
            quad out = 0;
            for (size_t u = 0; u <= t; u++) out += S[u] * qkv[(b * T + u) * R + v + c];
            o[row * n.Hq * e + q + c] = (double)out;
        }
        for (size_t u = 0; u <= t; u++) {
            quad dS = 0; /* the Jacobian, term by term */
            for (size_t w = 0; w <= t; w++) dS += dP[w] * S[w] * ((u == w) - S[u]);
            for (size_t c = 0; c < e; c++) {
                dqkv[row * R + q + c] += dS / root * qkv[(b * T + u) * R + k + c];
                dqkv[(b * T + u) * R + k + c] += dS / root * qkv[row * R + q + c];
            }
        }
    }
    free(S);
    free(dP);
}

void quad_attention(quad_attention_sizes n, const double *qkv, const double *dout, double *o,
                    double *lse, double *dqkv)
{
    size_t count = n.B * n.T * (n.Hq + 2 * n.Hkv) * n.e;
    quad *sums = room_for(count);
    for (size_t b = 0; b < n.B; b++)
        for (size_t i = 0; i < n.Hq; i++) attend(n, b, i, qkv, dout, o, lse, sums);
    for (size_t i = 0; i < count; i++) dqkv[i] = (double)sums[i];
    free(sums);
}

void quad_cross_entropy(const quad_losses *q)
{
    size_t N = q->N, d = q->d, V = q->V;
    double cap = q->cap;
    quad *l = room_for(V), *slope = room_for(V), *sums = room_for(V * d);
    for (size_t t = 0; t < N; t++) {
        quad sum = 0;
        for (size_t v = 0; v < V; v++) {
            quad z = 0;
            for (size_t c = 0; c < d; c++) z += (quad)q->x[t * d + c] * q->head[v * d + c];
            quad flat = cap > 0 ? tanhq(z / cap) : 0;
            l[v] = cap > 0 ? cap * flat : z;
            slope[v] = 1 - flat * flat;
            sum += expq(l[v]);
            q->logits[t * V + v] = (double)l[v];
        }
        q->loss[t] = (double)(logq(sum) - l[q->targets[t]]);
        for (size_t c = 0; c < d; c++) {
            quad total = 0;
            for (size_t v = 0; v < V; v++) {
                quad dz = q->scale * (expq(l[v]) / sum - ((size_t)q->targets[t] == v)) * slope[v];
                total += dz * q->head[v * d + c];
                sums[v * d + c] += dz * q->x[t * d + c];
            }
            q->dx[t * d + c] = (double)total;
        }
    }
    for (size_t i = 0; i < V * d; i++) q->dhead[i] = (double)sums[i];
    free(l);
    free(slope);
    free(sums);
}
