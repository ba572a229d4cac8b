/* faults_activation.c: experts' activations, and the gate of SwiGLU, wrongly. See faults.h.
 *
 *     relu2       A = relu(H)^2
 *     swiglu      A = silu(V) H      dH = dA silu(V)      dV = dA H silu'(V)      V = x W_gate'
 *     gelu, gelu_tanh                A = gelu(H)
 *
 * The values are computed by libm, apart from the layer's own.
 */
#include "etref/elementary.h"
#include "ref/diagnose/faults.h"

#include <math.h>


static ET_SHOWS(is_smooth, !et_is_relu2(s));

/* ---- curves ---- */

/* x s(x), or x s(2u) with u = sqrt(2/pi) (x + 0.044715 x^3), s the logistic function: slope s + x s (1-s) ds. Or
 * x P(x), P the normal distribution's function: slope P + x e^(-x^2/2) / sqrt(2 pi). */
static double smooth(et_curve f, double x, double *slope)
{
    const double root = 0.79788456080286536;
    bool silu = f == ET_CURVE_SILU;
    if (f == ET_CURVE_GELU) {
        double below = 0.5 * erfc(-x * 0.70710678118654752);
        *slope = below + x * 0.39894228040143268 * et_exp(-x * x / 2);
        return x * below;
    }
    double inner = silu ? x : 2 * root * (x + 0.044715 * x * x * x);
    double s = 1 / (1 + et_exp(-inner)), ds = silu ? 1 : 2 * root * (1 + 3 * 0.044715 * x * x);
    *slope = s + x * s * (1 - s) * ds;
    return x * s;
}

/* A curve's value at x, and its slope. */
static double curve_at(et_curve f, double x, double *slope)
{
    double s = 1 / (1 + et_exp(-x)), above = x > 0 ? x : 0;
    switch (f) {
    case ET_CURVE_RELU: *slope = x > 0; return above;
    case ET_CURVE_SQUARE: *slope = 2 * x; return x * x;
    case ET_CURVE_NONE: *slope = 1; return x;
    case ET_CURVE_LOGISTIC: *slope = s * (1 - s); return s;
    case ET_CURVE_RELU2: *slope = 2 * above; return above * above;
    case ET_CURVE_SILU:
    case ET_CURVE_GELU_TANH:
    case ET_CURVE_GELU: break;
    }
    return smooth(f, x, slope);
}

static et_real value(et_curve f, et_real x)
{
    double slope;
    return (et_real)curve_at(f, (double)x, &slope);
}

static et_real slope_of(et_curve f, et_real x)
{
    double slope;
    curve_at(f, (double)x, &slope);
    return (et_real)slope;
}

void et_slope_row(const et_row *r, et_curve f)
{
    for (size_t j = 0; j < r->width; j++) r->dH[j] = r->dA[j] * slope_of(f, r->H[j]);
}

/* ---- another activation: a(H), or a(V) H ---- */

static void activate_row(const et_row *r, et_curve f)
{
    for (size_t j = 0; j < r->width; j++)
        r->A[j] = r->V ? value(f, r->V[j]) * r->H[j] : value(f, r->H[j]);
}

/* dH of a(V) H; of a(H). */
static void dH_of(const et_row *r, et_curve f)
{
    for (size_t j = 0; j < r->width; j++)
        r->dH[j] = r->dA[j] * (r->V ? value(f, r->V[j]) : slope_of(f, r->H[j]));
}

static void dV_of(const et_row *r, et_curve f)
{
    for (size_t j = 0; j < r->width; j++) r->dV[j] = r->dA[j] * r->H[j] * slope_of(f, r->V[j]);
}

static et_curve smooth_one(const et_mutant *m)
{
    static const et_curve smooth_ones[] = {ET_CURVE_SILU, ET_CURVE_GELU_TANH, ET_CURVE_GELU};
    return smooth_ones[m->fault.variant];
}

static et_curve other_one(const et_mutant *m)
{
    static const et_curve others[] = {ET_CURVE_SILU, ET_CURVE_GELU_TANH, ET_CURVE_GELU,    ET_CURVE_RELU2,
                                      ET_CURVE_RELU, ET_CURVE_NONE,      ET_CURVE_LOGISTIC};
    return others[m->fault.variant % (sizeof others / sizeof *others)];
}

static ET_ALTERATION(relu_alone, activate_row(r, ET_CURVE_RELU));
static ET_ALTERATION(relu_slope, et_slope_row(r, ET_CURVE_RELU));
static ET_ALTERATION(square_alone, activate_row(r, ET_CURVE_SQUARE));
static ET_ALTERATION(square_slope, et_slope_row(r, ET_CURVE_SQUARE));
static ET_ALTERATION(smooth_instead, activate_row(r, smooth_one(m)));
static ET_ALTERATION(smooth_slope, et_slope_row(r, smooth_one(m)));
static ET_ALTERATION(other_instead, activate_row(r, other_one(m)));
static ET_ALTERATION(other_dH, dH_of(r, other_one(m)));
static ET_ALTERATION(other_dV, dV_of(r, other_one(m)));

/* The slope alone is another's: at H, or at V; form 7: the own function's, as if its factor s, or P, were a constant. */
static void other_slope(et_mutant *m, const et_row *r)
{
    bool gated = r->V != NULL;
    et_curve own = gated                                  ? ET_CURVE_SILU
                   : m->moe.activation == ET_GELU_TANH ? ET_CURVE_GELU_TANH
                                                       : ET_CURVE_GELU;
    for (size_t j = 0; j < r->width; j++) {
        et_real x = gated ? r->V[j] : r->H[j], factor = gated ? r->H[j] : 1;
        et_real share = x != 0 ? value(own, x) / x : 0.5;
        et_real slope = m->fault.variant == 7 ? share : slope_of(other_one(m), x);
        r->values[j] = r->dA[j] * factor * slope;
    }
}

static ET_CHOICE(is_not_gated, r->V == NULL);

/* ---- SwiGLU: its two halves ---- */

/* A = silu(H) V, and from there back. */
static void halves_exchanged(et_mutant *m, const et_row *r)
{
    (void)m;
    for (size_t j = 0; j < r->width; j++) {
        et_real H = r->H[j], V = r->V[j];
        if (r->stage == ET_AT_ACT) r->A[j] = value(ET_CURVE_SILU, H) * V;
        if (r->stage == ET_AT_DPRE) r->dH[j] = r->dA[j] * V * slope_of(ET_CURVE_SILU, H);
        if (r->stage == ET_AT_DGATE_PRE) r->dV[j] = r->dA[j] * value(ET_CURVE_SILU, H);
    }
}

/* H by W_gate, V by W_up; dW_up from dV, dW_gate from dH; dx by way of these. */
static ET_ALTERATION(weights_exchanged,
                     et_through(m, r, r->stage == ET_AT_PRE ? r->gating : r->up, false, NULL));

static void gradients_exchanged(et_mutant *m, const et_row *r)
{
    size_t d = m->moe.d, h = r->width;
    const et_real *dP = r->stage == ET_AT_DUP ? r->dV : r->dH;
    et_scale_values(r->size, 0, r->values);
    for (size_t q = 0; q < r->count; q++) {
        const int32_t *tokens = r->expert < m->moe.n ? m->pick->a.slot_token : NULL;
        size_t t = tokens ? (size_t)tokens[r->first + q] : r->first + q;
        for (size_t i = 0; i < h; i++)
            et_add_row(d, et_factor_of_x(m, r, q) * dP[q * h + i], m->on->x + t * d,
                       r->values + i * d);
    }
}

/* to += factor dP W for one row. */
static void add_share(const et_mutant *m, const et_row *r, et_real factor, const et_real *dP,
                      const et_real *W)
{
    for (size_t i = 0; i < r->width; i++)
        et_add_row(m->moe.d, factor * dP[i], W + i * m->moe.d, r->values);
}

static void shares_exchanged(et_mutant *m, const et_row *r)
{
    et_scale_values(r->size, 0, r->values);
    add_share(m, r, 1, r->dH, r->gating);
    add_share(m, r, 1, r->dV, r->up);
}

/* Form 0: A = silu(V); 1: A = H; and from there back. */
static void half_missing(et_mutant *m, const et_row *r)
{
    bool without_H = m->fault.variant == 0;
    for (size_t j = 0; j < r->width; j++) {
        et_real dA = r->dA ? r->dA[j] : 0, V = r->V[j];
        if (r->stage == ET_AT_ACT) r->A[j] = without_H ? value(ET_CURVE_SILU, V) : r->H[j];
        if (r->stage == ET_AT_DPRE) r->dH[j] = without_H ? 0 : dA;
        if (r->stage == ET_AT_DGATE_PRE) r->dV[j] = without_H ? dA * slope_of(ET_CURVE_SILU, V) : 0;
    }
}

/* Form 0: dH = dA; 1: dV = dA silu'(V); 2: dV = 0; 3: dH = 0. */
static void gradient_without_factor(et_mutant *m, const et_row *r)
{
    for (size_t j = 0; j < r->width; j++)
        r->values[j] = m->fault.variant == 0   ? r->dA[j]
                       : m->fault.variant == 1 ? r->dA[j] * slope_of(ET_CURVE_SILU, r->V[j])
                                               : 0;
}

/* Form 0: without dV W_gate; 1: without dH W_up. */
static ET_ALTERATION(share_missing,
                     add_share(m, r, -1, m->fault.variant == 0 ? r->dV : r->dH,
                               m->fault.variant == 0 ? r->gating : r->up));

/* ---- the table ---- */

/* clang-format off */
static const et_hypothesis table[] = {
    {.doc = {"relu-not-squared", "A = relu(H), not its square", "forward"}, .applies = et_is_relu2, .variants = {"", "its derivative, too"},
     .hooks = {{.at = ET_AT_ACT, .row = relu_alone}, {.at = ET_AT_DPRE, .variants = 2, .row = relu_slope}}},
    {.doc = {"square-without-relu", "A = H^2, not relu(H)^2", "forward"}, .applies = et_is_relu2, .variants = {"", "its derivative, too"},
     .hooks = {{.at = ET_AT_ACT, .row = square_alone}, {.at = ET_AT_DPRE, .variants = 2, .row = square_slope}}},
    {.doc = {"other-activation", "the activation is not relu(H)^2", "forward"}, .applies = et_is_relu2, .variants = {"SiLU", "GELU by its tanh", "GELU"},
     .hooks = {{.at = ET_AT_ACT, .row = smooth_instead}, {.at = ET_AT_DPRE, .row = smooth_slope}}},
    {.doc = {"activation-exchanged", "the activation is another function than the case's", "forward"}, .applies = is_smooth,
     .variants = {"SiLU", "GELU by its tanh", "GELU", "relu^2", "relu", "none", "the logistic function",
                  "SiLU, but for its derivative", "GELU by its tanh, but for its derivative", "GELU, but for its derivative", "relu^2, but for its derivative",
                  "relu, but for its derivative", "none, but for its derivative", "the logistic function, but for its derivative"},
     .hooks = {{.at = ET_AT_ACT, .row = other_instead}, {.at = ET_AT_DPRE, .variants = 127, .row = other_dH}, {.at = ET_AT_DGATE_PRE, .variants = 127, .row = other_dV}}},
    {.doc = {"swiglu-halves-exchanged", "A = silu(H) V: W_gate and W_up are taken for each other", "forward"}, .applies = et_is_gated,
     .variants = {"H and V are shown as they should be", "H and V are shown exchanged"},
     .hooks = {{.at = ET_AT_ACT, .variants = 1, .row = halves_exchanged}, {.at = ET_AT_DPRE, .variants = 1, .row = halves_exchanged}, {.at = ET_AT_DGATE_PRE, .variants = 1, .row = halves_exchanged},
               {.at = ET_AT_PRE, .variants = 2, .rows = weights_exchanged}, {.at = ET_AT_GATE_PRE, .variants = 2, .rows = weights_exchanged},
               {.at = ET_AT_DUP, .variants = 2, .rows = gradients_exchanged}, {.at = ET_AT_DGATING, .variants = 2, .rows = gradients_exchanged},
               {.at = ET_AT_SLOT_DX, .variants = 2, .row = shares_exchanged}}},
    {.doc = {"swiglu-half-missing", "one of the two factors of A = silu(V) H is missing", "forward"}, .applies = et_is_gated,
     .variants = {"A = silu(V)", "A = H"},
     .hooks = {{.at = ET_AT_ACT, .row = half_missing}, {.at = ET_AT_DPRE, .row = half_missing}, {.at = ET_AT_DGATE_PRE, .row = half_missing}}},
    {.doc = {"swiglu-gradient-factor", "dH or dV lacks a factor", "backward"}, .applies = et_is_gated,
     .variants = {"dH = dA", "dV = dA silu'(V)", "dV = 0", "dH = 0"},
     .hooks = {{.at = ET_AT_DPRE, .variants = 1 | 8, .row = gradient_without_factor}, {.at = ET_AT_DGATE_PRE, .variants = 2 | 4, .row = gradient_without_factor}}},
    {.doc = {"swiglu-share-of-dx", "dx lacks what comes through W_gate, or through W_up", "backward"}, .applies = et_is_gated,
     .variants = {"dV W_gate", "dH W_up"}, .hooks = {{.at = ET_AT_SLOT_DX, .row = share_missing}}},
    {.doc = {"activation-slope", "the activation's derivative is another's", "backward"}, .applies = is_smooth,
     .variants = {"SiLU's", "that of GELU by its tanh", "GELU's", "that of relu^2", "relu's", "1", "the logistic function's", "its own, less how s(v), or P(H), changes"},
     .hooks = {{.at = ET_AT_DPRE, .who = is_not_gated, .row = other_slope}, {.at = ET_AT_DGATE_PRE, .row = other_slope}}},
};
/* clang-format on */

const et_faults et_activation_faults = ET_FAULTS(table);
