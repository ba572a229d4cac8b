/* faults_precision.c: values off by a factor, and kernels of another precision. See faults.h. */
#include "ref/verdict/faults.h"

void et_scale_values(size_t count, double factor, et_real *values)
{
    for (size_t j = 0; j < count; j++) values[j] *= (et_real)factor;
}

/* ---- a factor ---- */

ET_ROW(scale, et_scale_values(r->size, m->factor, r->values));
ET_ROW(scale_routed, if (r->expert < m->moe.n) scale(m, r));

static void scale_router(et_mutant *m)
{
    et_scale_values(m->moe.n * m->moe.d, m->factor, m->s.bwd.router);
}

/* dp, but for the losses' share; and that share alone, of dp and of dr. */
static void scale_dp(et_mutant *m, const et_row *r)
{
    scale(m, r);
    et_add_row(r->size, 1 - (et_real)m->factor, m->loss_gates + r->t * r->size, r->values);
}

ET_ROW(scale_aux_gradient,
       et_add_row(r->size, (et_real)m->factor - 1, m->loss_gates + r->t * r->size, r->values));
ET_ROW(scale_z_gradient,
       et_add_row(r->size, (et_real)m->factor - 1, m->loss_logits + r->t * r->size, r->values));

/* ---- other precision ---- */

#define ET_PROFILE(name, difference)                                                               \
    static void name(et_profile *p)                                                                \
    {                                                                                              \
        difference;                                                                                \
    }                                                                                              \
    static void name(et_profile *p)

ET_PROFILE(sums_in_bf16, p->bits[ET_ACCUMULATOR] = 8);
ET_PROFILE(sums_in_f16, p->bits[ET_ACCUMULATOR] = 11);
ET_PROFILE(operands_in_bf16, p->bits[ET_OPERANDS] = 8);
ET_PROFILE(operands_in_tf32, p->bits[ET_OPERANDS] = 11);
ET_PROFILE(logits_in_bf16, p->bits[ET_LOGITS] = 8);
ET_PROFILE(gates_in_bf16, p->bits[ET_GATES] = 8);
ET_PROFILE(intermediates_in_bf16, p->bits[ET_INTERMEDIATES] = 8);
ET_PROFILE(flushed, p->ftz = true);

/* ---- the table ---- */

/* clang-format off */
static const et_hypothesis table[] = {
    {.doc = {"scaled", "values are off by a constant factor", "precision"}, .nature = ET_BY_FACTOR,
     .variants = {"the gates", "w", "A", "f(x)", "y", "dw", "dO", "dA", "dH", "dW_up and dW_down", "dW_up", "dW_down",
                  "each expert's share of dx", "dr", "dW_r", "dx", "the balancing loss's gradient", "the z-loss's gradient"},
     .hooks = {{.at = ET_AT_WEIGHTS, .variants = 1, .row = scale_routed}, {.at = ET_AT_DGATES, .variants = 1, .row = scale_dp},
               {.at = ET_AT_WEIGHTS, .variants = 2, .row = scale},
               {.at = ET_AT_ACT, .variants = 4, .row = scale}, {.at = ET_AT_OUT, .variants = 8, .row = scale},
               {.at = ET_AT_Y, .variants = 16, .row = scale}, {.at = ET_AT_DWEIGHT, .variants = 32, .row = scale},
               {.at = ET_AT_DOUT, .variants = 64, .row = scale}, {.at = ET_AT_DACT, .variants = 128, .row = scale},
               {.at = ET_AT_DPRE, .variants = 256, .row = scale}, {.at = ET_AT_DUP, .variants = 512 | 1024, .rows = scale},
               {.at = ET_AT_DDOWN, .variants = 512 | 2048, .rows = scale}, {.at = ET_AT_SLOT_DX, .variants = 4096, .row = scale},
               {.at = ET_AT_DLOGITS, .variants = 8192, .row = scale}, {.at = ET_AT_DROUTER, .variants = 16384, .whole = scale_router},
               {.at = ET_AT_DX, .variants = 32768, .row = scale}, {.at = ET_AT_DGATES, .variants = 65536, .row = scale_aux_gradient},
               {.at = ET_AT_DLOGITS, .variants = 131072, .row = scale_z_gradient}}},
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
