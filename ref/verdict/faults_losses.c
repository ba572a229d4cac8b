/* faults_losses.c: the losses and their gradients, wrongly. See faults.h. */
#include "ref/verdict/faults.h"

ET_WHERE(has_z_loss, s->loss_z != NULL);
ET_WHERE(has_loss, et_has_aux(s) || has_z_loss(s));
ET_WHERE(has_loss_in_micro_batches, has_loss(s) && s->c.micro_batches > 1);
ET_SETTING(no_aux_gradient, s->c.balance_coef = 0);
ET_SETTING(aux_gradient_twice, s->c.balance_coef *= 2);

/* The step has no z-loss without its coefficient. */
static void no_z_gradient(et_mutant *m)
{
    et_scale_values(m->moe.N * m->moe.n, 0, m->losses.bwd.logits);
}

ET_SETTING(z_gradient_twice, s->c.z_loss_coef *= 2);

static void gradients_without_coefficients(et_mutant *m, et_step *s)
{
    (void)m;
    if (s->c.balance_coef > 0) s->c.balance_coef = 1;
    if (s->c.z_loss_coef > 0) s->c.z_loss_coef = 1;
}

static void aux_gradient_of_selected(et_mutant *m)
{
    for (size_t j = 0; j < m->moe.N * m->moe.n; j++)
        if (!m->all.route.mask[j]) m->losses.bwd.gates[j] = 0;
}

/* F_i = n/(KN) sum_t z_ti, as if dz/dp were 1: dL/dp_ti gets alpha P_i n/(KN), on the slots (variant
 * 0) or everywhere. */
static void aux_gradient_through_f(et_mutant *m)
{
    const et_case *c = &m->all.c;
    size_t micro = et_case_micro_tokens(c), n = m->moe.n;
    double scale = c->balance_coef / (double)c->micro_batches;
    for (size_t at = 0; at < c->micro_batches * n; at++) {
        size_t first = at / n * micro, i = at % n;
        double P = 0;
        for (size_t t = first; t < first + micro; t++) P += (double)m->all.fwd.gates[t * n + i];
        double each = scale * (P / (double)micro) * (double)n / ((double)c->top_k * (double)micro);
        for (size_t t = first; t < first + micro; t++)
            if (m->variant == 1 || m->all.route.mask[t * n + i])
                m->losses.bwd.gates[t * n + i] += (et_real)each;
    }
}

static void other_aux(et_mutant *m, et_step *s)
{
    bool error = s->c.balance == ET_BALANCE_AUX;
    (void)m;
    s->c.balance = error ? ET_BALANCE_AUX_ERROR : ET_BALANCE_AUX;
}

static void scale_losses(et_mutant *m, double aux, double z)
{
    if (m->losses.loss_aux) *m->losses.loss_aux *= (et_real)aux;
    if (m->losses.loss_z) *m->losses.loss_z *= (et_real)z;
}

static void losses_with_coefficients(et_mutant *m)
{
    scale_losses(m, m->all.c.balance_coef, m->all.c.z_loss_coef);
}

static void losses_summed(et_mutant *m)
{
    scale_losses(m, (double)m->all.c.micro_batches, (double)m->all.c.micro_batches);
}

/* ---- the table ---- */

/* clang-format off */
static const et_hypothesis table[] = {
    {.doc = {"aux-gradient-missing", "the balancing loss has no gradient", "backward"},
     .applies = et_has_aux, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_LOSSES, .settings = no_aux_gradient}}},
    {.doc = {"aux-gradient-doubled", "the balancing loss's gradient counts twice", "backward"},
     .applies = et_has_aux, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_LOSSES, .settings = aux_gradient_twice}}},
    {.doc = {"aux-gradient-through-f", "the balancing loss's gradient flows through F, too, as though z were p", "backward"},
     .applies = et_has_aux, .variants = {"on the slots", "everywhere"}, .hooks = {{.at = ET_AT_LOSSES, .whole = aux_gradient_through_f}}},
    {.doc = {"aux-gradient-of-selected", "the balancing loss's gradient reaches the selected gates alone", "backward"},
     .applies = et_has_aux, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_LOSSES, .whole = aux_gradient_of_selected}}},
    {.doc = {"aux-error-exchanged", "the balancing loss has F where F - 1 is meant, or back", "backward"},
     .applies = et_has_aux, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_LOSSES, .settings = other_aux}}},
    {.doc = {"z-gradient-missing", "the z-loss has no gradient", "backward"},
     .applies = has_z_loss, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_LOSSES, .whole = no_z_gradient}}},
    {.doc = {"z-gradient-doubled", "the z-loss's gradient counts twice", "backward"},
     .applies = has_z_loss, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_LOSSES, .settings = z_gradient_twice}}},
    {.doc = {"loss-coefficient-missing", "the losses' gradients lack their coefficients", "backward"},
     .applies = has_loss, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_LOSSES, .settings = gradients_without_coefficients}}},
    {.doc = {"loss-with-coefficient", "the losses are shown with their coefficients", "backward"},
     .applies = has_loss, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_LOSSES, .whole = losses_with_coefficients}}},
    {.doc = {"loss-summed-over-micro-batches", "the losses are sums, not means, over the micro-batches", "backward"},
     .applies = has_loss_in_micro_batches, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_LOSSES, .whole = losses_summed}}},
};
/* clang-format on */

const et_faults et_loss_faults = ET_FAULTS(table);
