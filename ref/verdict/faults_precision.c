/* faults_precision.c: values off by a factor, and kernels of another precision. See faults.h. */
#include "ref/verdict/faults.h"

void et_scale_values(size_t count, double factor, et_real *values)
{
    for (size_t j = 0; j < count; j++) values[j] *= (et_real)factor;
}

/* ---- a factor ---- */

static void scale_w(et_mutant *m, const et_row *r)
{
    if (r->w) *r->w *= (et_real)m->factor;
}

static void scale_gates(et_mutant *m, const et_row *r)
{
    if (r->expert < m->moe.n) scale_w(m, r);
}

static void scale_dp(et_mutant *m, size_t t)
{
    size_t n = m->moe.n;
    for (size_t j = t * n; j < (t + 1) * n; j++)
        m->s.bwd.gates[j] =
            m->loss_gates[j] + (et_real)m->factor * (m->s.bwd.gates[j] - m->loss_gates[j]);
}

static void scale_A(et_mutant *m, const et_row *r)
{
    et_scale_values(r->width, m->factor, r->A);
}

static void scale_O(et_mutant *m, const et_row *r)
{
    et_scale_values(m->moe.d, m->factor, r->O);
}

static void scale_y(et_mutant *m, size_t t)
{
    et_scale_values(m->moe.d, m->factor, et_y_of(m, t));
}

static void scale_dw(et_mutant *m, const et_row *r)
{
    *r->dw *= (et_real)m->factor;
}

static void scale_dO(et_mutant *m, const et_row *r)
{
    et_scale_values(m->moe.d, m->factor, r->dO);
}

static void scale_dA(et_mutant *m, const et_row *r)
{
    et_scale_values(r->width, m->factor, r->dA);
}

static void scale_dH(et_mutant *m, const et_row *r)
{
    et_scale_values(r->width, m->factor, r->dH);
}

static void scale_gradient(et_mutant *m, const et_rows_of *r)
{
    et_scale_values(r->width * m->moe.d, m->factor, r->stage == ET_AT_DUP ? r->dup : r->ddown);
}

static void scale_slot_dx(et_mutant *m, const et_row *r)
{
    et_scale_values(m->moe.d, m->factor, r->dx);
}

static void scale_dr(et_mutant *m, size_t t)
{
    et_scale_values(m->moe.n, m->factor, m->s.bwd.logits + t * m->moe.n);
}

static void scale_router(et_mutant *m)
{
    et_scale_values(m->moe.n * m->moe.d, m->factor, m->s.bwd.router);
}

static void scale_aux_gradient(et_mutant *m, size_t t)
{
    size_t n = m->moe.n;
    et_add_row(n, (et_real)m->factor - 1, m->loss_gates + t * n, m->s.bwd.gates + t * n);
}

static void scale_z_gradient(et_mutant *m, size_t t)
{
    size_t n = m->moe.n;
    et_add_row(n, (et_real)m->factor - 1, m->loss_logits + t * n, m->s.bwd.logits + t * n);
}

static void scale_dx(et_mutant *m, size_t t)
{
    et_scale_values(m->moe.d, m->factor, et_dx_of(m, t));
}

/* ---- other precision ---- */

static void sums_in_bf16(et_profile *p)
{
    p->bits[ET_ACCUMULATOR] = 8;
}

static void sums_in_f16(et_profile *p)
{
    p->bits[ET_ACCUMULATOR] = 11;
}

static void operands_in_bf16(et_profile *p)
{
    p->bits[ET_OPERANDS] = 8;
}

static void operands_in_tf32(et_profile *p)
{
    p->bits[ET_OPERANDS] = 11;
}

static void logits_in_bf16(et_profile *p)
{
    p->bits[ET_LOGITS] = 8;
}

static void gates_in_bf16(et_profile *p)
{
    p->bits[ET_GATES] = 8;
}

static void intermediates_in_bf16(et_profile *p)
{
    p->bits[ET_INTERMEDIATES] = 8;
}

static void flushed(et_profile *p)
{
    p->ftz = true;
}

/* ---- the table ---- */

/* clang-format off */
static const et_hypothesis table[] = {
    {.doc = {"scaled", "values are off by a constant factor", "precision"}, .nature = ET_BY_FACTOR,
     .variants = {"the gates", "w", "A", "f(x)", "y", "dw", "dO", "dA", "dH", "dW_up and dW_down", "dW_up", "dW_down",
                  "each expert's share of dx", "dr", "dW_r", "dx", "the balancing loss's gradient", "the z-loss's gradient"},
     .hooks = {{.at = ET_AT_WEIGHTS, .variants = 1, .row = scale_gates}, {.at = ET_AT_DGATES, .variants = 1, .token = scale_dp},
               {.at = ET_AT_WEIGHTS, .variants = 2, .row = scale_w},
               {.at = ET_AT_ACT, .variants = 4, .row = scale_A}, {.at = ET_AT_OUT, .variants = 8, .row = scale_O},
               {.at = ET_AT_Y, .variants = 16, .token = scale_y}, {.at = ET_AT_DWEIGHT, .variants = 32, .row = scale_dw},
               {.at = ET_AT_DOUT, .variants = 64, .row = scale_dO}, {.at = ET_AT_DACT, .variants = 128, .row = scale_dA},
               {.at = ET_AT_DPRE, .variants = 256, .row = scale_dH}, {.at = ET_AT_DUP, .variants = 512 | 1024, .rows = scale_gradient},
               {.at = ET_AT_DDOWN, .variants = 512 | 2048, .rows = scale_gradient}, {.at = ET_AT_SLOT_DX, .variants = 4096, .row = scale_slot_dx},
               {.at = ET_AT_DLOGITS, .variants = 8192, .token = scale_dr}, {.at = ET_AT_DROUTER, .variants = 16384, .whole = scale_router},
               {.at = ET_AT_DX, .variants = 32768, .token = scale_dx}, {.at = ET_AT_DGATES, .variants = 65536, .token = scale_aux_gradient},
               {.at = ET_AT_DLOGITS, .variants = 131072, .token = scale_z_gradient}}},
    {.doc = {"rounded-to-bf16", "values are stored in 8 significand bits", "precision"}, .nature = ET_BY_FORMAT, .variants = ET_ONE_FORM, .format = ET_BF16},
    {.doc = {"rounded-to-f16", "values are stored in 11 significand bits", "precision"}, .nature = ET_BY_FORMAT, .variants = ET_ONE_FORM, .format = ET_F16},
    {.doc = {"truncation", "values are truncated where the profile rounds to nearest", "precision"}, .nature = ET_BY_TRUNCATION, .variants = ET_ONE_FORM},
    {.doc = {"subnormals-flushed", "numbers below the smallest normal one become 0", "precision"}, .nature = ET_BY_PROFILE, .variants = ET_ONE_FORM, .profile = flushed},
    {.doc = {"operands-tf32", "operands of products are rounded to 11 bits", "precision"}, .nature = ET_BY_PROFILE, .variants = ET_ONE_FORM, .profile = operands_in_tf32},
    {.doc = {"operands-bf16", "operands of products are rounded to 8 bits", "precision"}, .nature = ET_BY_PROFILE, .variants = ET_ONE_FORM, .profile = operands_in_bf16},
    {.doc = {"intermediates-bf16", "H, A, f(x) and their gradients are rounded to 8 bits", "precision"}, .nature = ET_BY_PROFILE, .variants = ET_ONE_FORM, .profile = intermediates_in_bf16},
    {.doc = {"logits-bf16", "logits are rounded to 8 bits", "precision"}, .nature = ET_BY_PROFILE, .applies = et_is_moe, .variants = ET_ONE_FORM, .profile = logits_in_bf16},
    {.doc = {"gates-bf16", "gates and weights are rounded to 8 bits", "precision"}, .nature = ET_BY_PROFILE, .applies = et_is_moe, .variants = ET_ONE_FORM, .profile = gates_in_bf16},
    {.doc = {"accumulator-f16", "sums are kept in 11 bits", "precision"}, .nature = ET_BY_PROFILE, .variants = ET_ONE_FORM, .profile = sums_in_f16},
    {.doc = {"accumulator-bf16", "sums are kept in 8 bits", "precision"}, .nature = ET_BY_PROFILE, .variants = ET_ONE_FORM, .profile = sums_in_bf16},
};
/* clang-format on */

const et_faults et_precision_faults = ET_FAULTS(table);
