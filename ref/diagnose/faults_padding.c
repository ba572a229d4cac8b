/* faults_padding.c: padding tokens that are counted, or computed. See faults.h.
 *
 * A padding token takes no slot, its y is 0, and means over tokens are over the others.
 */
#include "ref/step/case_kinds.h"
#include "ref/diagnose/faults.h"

static ET_SHOWS(pads, has_padding(&s->c));
static ET_SHOWS(pads_beside_shared, pads(s) && s->c.shared);
static ET_SHOWS(pads_with_loss, pads(s) && (s->loss_aux || s->loss_z));
static ET_SHOWS(pads_pools, pads(s) && s->c.rule != ET_TC && !s->c.given && !s->c.eval);
static ET_SHOWS(pads_with_bias, pads(s) && s->state_bias);

/* All tokens are routed: in the pools there are, or where those no longer fit in one. */
static void no_padding(et_mutant *m, et_step *s)
{
    et_case *c = &s->c;
    (void)m;
    c->padding = 0;
    if (et_case_micro_tokens(c) % c->pool_tokens != 0) c->pool_tokens = et_case_micro_tokens(c);
}

/* k as if padding were tokens. */
static void k_of_all(et_mutant *m, et_step *s)
{
    et_case *c = &s->c;
    size_t k = et_case_micro_tokens(c) / pools_of_batch(c) * c->granularity / c->experts;
    (void)m;
    if (k > 0) c->target_load = k < c->pool_tokens ? k : c->pool_tokens;
}

static ET_SETTING(no_mask, m->moe.mask = NULL);

/* Sums over the real tokens, divided by the number of all; form 2: and so is F. */
static void divided_by_all(et_mutant *m)
{
    const et_case *c = &m->all.c;
    double by = (double)et_case_real_tokens(c) / (double)et_case_micro_tokens(c);
    double aux = m->fault.variant == 2 ? by * by : by;
    if (m->losses.loss_aux) et_scale_values(1, aux, m->losses.loss_aux);
    if (m->losses.loss_z) et_scale_values(1, by, m->losses.loss_z);
    et_scale_values(m->moe.N * m->moe.n, aux, m->losses.bwd.gates);
    et_scale_values(m->moe.N * m->moe.n, by, m->losses.bwd.logits);
}

/* clang-format off */
static const et_hypothesis table[] = {
    {.doc = {"padding-routed", "padding tokens are routed like others", "selection"}, .everywhere = true,
     .applies = pads, .variants = {"", "and go through the shared expert"},
     .hooks = {{.at = ET_AT_PLAN, .settings = no_padding}, {.at = ET_AT_WEIGHTS, .variants = 2, .settings = no_mask}}},
    {.doc = {"padding-in-k", "k comes from all tokens, padding, too", "selection"}, .everywhere = true,
     .applies = pads_pools, .hooks = {{.at = ET_AT_PLAN, .settings = k_of_all}}},
    {.doc = {"padding-in-shared", "the shared expert's output for padding tokens enters y", "forward"}, .everywhere = true,
     .applies = pads_beside_shared, .hooks = {{.at = ET_AT_WEIGHTS, .settings = no_mask}}},
    {.doc = {"padding-in-losses", "padding tokens count in the losses' means", "backward"}, .everywhere = true,
     .applies = pads_with_loss, .variants = {"their gates and scores, too", "in the divisor alone", "in the divisors alone, that of F, too"},
     .hooks = {{.at = ET_AT_LOSSES, .variants = 1, .settings = no_padding}, {.at = ET_AT_LOSSES, .variants = 6, .whole = divided_by_all}}},
    {.doc = {"padding-in-bias", "padding tokens count in the load that the bias aims at", "state"}, .everywhere = true,
     .applies = pads_with_bias, .hooks = {{.at = ET_AT_STATE, .settings = no_padding}}},
};
/* clang-format on */

const et_faults et_padding_faults = ET_FAULTS(table);
