/* faults_precision.c: values off by a factor, and kernels of another precision. See faults.h. */
#include "ref/diagnose/faults.h"

/* ---- a factor ---- */

static ET_ALTERATION(scale, et_scale_values(r->size, m->fault.factor, r->values));

/* The losses' share of dp, and of dr. */
static void scale_share(const et_row *r, double factor, const et_real *shares)
{
    et_add_row(r->size, (et_real)factor - 1, shares + r->t * r->size, r->values);
}

static ET_ALTERATION(scale_aux_gradient, scale_share(r, m->fault.factor, m->loss_gates));
static ET_ALTERATION(scale_z_gradient, scale_share(r, m->fault.factor, m->loss_logits));

/* dp, but for that share. Under norm = sum: f (dw - sum_j w_j dw_j) / T of the right weights w. */
static void scale_dp(et_mutant *m, const et_row *r)
{
    et_real f = (et_real)m->fault.factor;
    if (m->moe.norm == ET_NORM_SUM) {
        et_weigh_backward(m, r, et_carried(m, r->t) / f, et_sum_of_gates(m, r->t) / f);
        return;
    }
    scale(m, r);
    scale_share(r, 2 - m->fault.factor, m->loss_gates);
}

/* A loss as it is shown. */
static void scale_loss(et_mutant *m)
{
    et_real *loss = m->fault.variant == 19 ? m->losses.loss_z : m->losses.loss_aux;
    if (loss) *loss *= (et_real)m->fault.factor;
}

static void scale_loss_and_gradient(et_mutant *m)
{
    bool z = m->fault.variant == 21;
    et_real *loss = z ? m->losses.loss_z : m->losses.loss_aux;
    if (loss == NULL) return;
    *loss *= (et_real)m->fault.factor;
    et_scale_values(m->moe.N * m->moe.n, m->fault.factor,
                    z ? m->losses.bwd.logits : m->losses.bwd.gates);
}

static void scale_gradients_of_losses(et_mutant *m)
{
    et_scale_values(m->moe.N * m->moe.n, m->fault.factor, m->losses.bwd.gates);
    et_scale_values(m->moe.N * m->moe.n, m->fault.factor, m->losses.bwd.logits);
}

/* ---- the table ---- */

/* clang-format off */
static const et_hypothesis table[] = {
    {.doc = {"scaled", "values are off by a constant factor", "precision"}, .nature = ET_BY_FACTOR,
     .variants = {"the gates", "w", "A", "f(x)", "y", "dw", "dO", "dA", "dH", "dW_up and dW_down", "dW_up", "dW_down",
                  "each expert's share of dx", "dr", "dW_r", "dx", "the balancing loss's gradient", "the z-loss's gradient",
                  "loss.aux", "loss.z", "loss.aux and its gradient", "loss.z and its gradient", "all gradients", "all gradients but the losses'",
                  "the routed experts' part of y", "dW_gate", "dW_up, dW_down, dW_gate and dW_r"},
     .hooks = {{.at = ET_AT_WEIGHTS, .variants = 1, .who = et_is_routed, .row = scale}, {.at = ET_AT_DGATES, .variants = 1, .row = scale_dp},
               {.at = ET_AT_WEIGHTS, .variants = 2, .row = scale},
               {.at = ET_AT_ACT, .variants = 4, .row = scale}, {.at = ET_AT_OUT, .variants = 8, .row = scale},
               {.at = ET_AT_Y, .variants = 16, .row = scale}, {.at = ET_AT_DWEIGHT, .variants = 32, .row = scale},
               {.at = ET_AT_DOUT, .variants = 64, .row = scale}, {.at = ET_AT_DACT, .variants = 128, .row = scale},
               {.at = ET_AT_DPRE, .variants = 256, .row = scale}, {.at = ET_AT_DUP, .variants = 512 | 1024 | 1 << 26, .rows = scale},
               {.at = ET_AT_DDOWN, .variants = 512 | 2048 | 1 << 26, .rows = scale}, {.at = ET_AT_DGATING, .variants = 3 << 25, .rows = scale},
               {.at = ET_AT_MIX, .variants = 1 << 24, .who = et_is_routed, .row = scale}, {.at = ET_AT_SLOT_DX, .variants = 4096, .row = scale},
               {.at = ET_AT_DLOGITS, .variants = 8192, .row = scale}, {.at = ET_AT_DROUTER, .variants = 16384 | 1 << 26, .rows = scale},
               {.at = ET_AT_DX, .variants = 32768, .row = scale}, {.at = ET_AT_DGATES, .variants = 65536, .row = scale_aux_gradient},
               {.at = ET_AT_DLOGITS, .variants = 131072, .row = scale_z_gradient}, {.at = ET_AT_LOSSES, .variants = 3 << 18, .whole = scale_loss},
               {.at = ET_AT_LOSSES, .variants = 3 << 20, .whole = scale_loss_and_gradient}, {.at = ET_AT_LOSSES, .variants = 1 << 22, .whole = scale_gradients_of_losses},
               {.at = ET_AT_DWEIGHT, .variants = 3 << 22, .row = scale}, {.at = ET_AT_DOUT, .variants = 3 << 22, .row = scale}}},
    {.doc = {"rounded-to-bf16", "values are stored in 8 significand bits", "precision"}, .nature = ET_BY_FORMAT, .format = ET_BF16},
    {.doc = {"rounded-to-f16", "values are stored in 11 significand bits", "precision"}, .nature = ET_BY_FORMAT, .format = ET_F16},
    {.doc = {"truncation", "values are truncated where the profile rounds to nearest", "precision"}, .nature = ET_BY_TRUNCATION},
    {.doc = {"subnormals-flushed", "numbers below the smallest normal one become 0", "precision"}, .nature = ET_BY_PROFILE},
    {.doc = {"stochastic-rounding", "what is stored is rounded up or down by chance, not to nearest", "precision"}, .nature = ET_BY_PROFILE, .stochastic = true},
    {.doc = {"operands-tf32", "operands of products are rounded to 11 bits", "precision"}, .nature = ET_BY_PROFILE, .place = ET_OPERANDS, .bits = 11},
    {.doc = {"operands-bf16", "operands of products are rounded to 8 bits", "precision"}, .nature = ET_BY_PROFILE, .place = ET_OPERANDS, .bits = 8},
    {.doc = {"intermediates-bf16", "H, A, f(x) and their gradients are rounded to 8 bits", "precision"}, .nature = ET_BY_PROFILE, .place = ET_INTERMEDIATES, .bits = 8},
    {.doc = {"logits-bf16", "logits are rounded to 8 bits", "precision"}, .nature = ET_BY_PROFILE, .applies = et_is_moe, .place = ET_LOGITS, .bits = 8},
    {.doc = {"gates-bf16", "gates and weights are rounded to 8 bits", "precision"}, .nature = ET_BY_PROFILE, .applies = et_is_moe, .place = ET_GATES, .bits = 8},
    {.doc = {"shares-bf16", "sums over a token's experts, in y or dx, are kept in 8 bits", "precision"}, .nature = ET_BY_PROFILE, .applies = et_is_moe, .place = ET_SHARES, .bits = 8},
    {.doc = {"dw-sums-bf16", "weight gradients are summed over micro-batches in 8 bits", "precision"}, .nature = ET_BY_PROFILE, .place = ET_DW_SUMS, .bits = 8},
    {.doc = {"accumulator-f16", "sums are kept in 11 bits", "precision"}, .nature = ET_BY_PROFILE, .place = ET_ACCUMULATOR, .bits = 11},
    {.doc = {"accumulator-bf16", "sums are kept in 8 bits", "precision"}, .nature = ET_BY_PROFILE, .place = ET_ACCUMULATOR, .bits = 8},
};
/* clang-format on */

const et_faults et_precision_faults = ET_FAULTS(table);
