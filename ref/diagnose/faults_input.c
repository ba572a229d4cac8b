/* faults_input.c: weights on the experts' inputs, wrongly. See faults.h.
 *
 *     X = w x      y takes f(X)      dO = dy      dX = dH W_up (+ dV W_gate)      dw = <dX, x>      dx += w dX
 */
#include "ref/diagnose/faults.h"

#include <string.h>

static ET_SHOWS(weighs_inputs, et_is_moe(s) && s->c.weighs_input);
static ET_SHOWS(weighs_inputs_of_relu2, weighs_inputs(s) && et_is_relu2(s) && !et_is_biased(s));

static ET_SETTING(weighs_outputs, m->moe.weighs_input = false);

/* ---- dw ---- */

/* <dy, f(w x)> */
static et_real of_output(const et_mutant *m, const et_row *r)
{
    size_t d = m->moe.d;
    const et_real *dy = m->on->dy + (size_t)m->pick->a.slot_token[r->first] * d;
    const et_real *out = m->used.slot_out + r->first * d;
    et_real sum = 0;
    for (size_t c = 0; c < d; c++) sum += dy[c] * out[c];
    return sum;
}

/* y = w f(w x): <dX, x> is there already. */
static ET_ALTERATION(and_of_output, *r->dw += of_output(m, r));

static void other_dw(et_mutant *m, const et_row *r)
{
    et_real w = *r->w, form = (et_real)m->fault.variant;
    if (form == 1)
        *r->dw *= w;
    else
        *r->dw = form == 0 || w == 0 ? of_output(m, r) : of_output(m, r) / w;
}

/* ---- A = w relu(x W_up')^2 ---- */

static ET_ALTERATION(divide_row, if (*r->w != 0) et_scale_values(r->size, 1 / (double)*r->w, r->values));
static ET_ALTERATION(one, *r->values = 1);

/* ---- dW_up, dW_gate and dx ---- */

/* From x where w x is meant. */
static void from_unweighted(et_mutant *m, const et_row *r)
{
    size_t d = m->moe.d;
    et_real *x = r->expert < m->moe.n ? et_mutant_reals(m, r->count * d) : NULL;
    if (x == NULL) return;
    for (size_t q = 0; q < r->count; q++)
        memcpy(x + q * d, m->on->x + (size_t)m->pick->a.slot_token[r->first + q] * d, d * sizeof *x);
    et_gradient_from(m, r, NULL, x);
}

/* Form 0: dX, not w dX; 1: w w dX. */
static void other_share(et_mutant *m, const et_row *r)
{
    const int32_t *slots;
    size_t count = et_slots_of(&m->pick->a, r->t, &slots);
    if (!et_take_shares(m)) return;
    for (size_t j = 0; j < count; j++) {
        et_real w = m->used.slot_weight[slots[j]], instead = m->fault.variant == 0 ? 1 : w * w;
        et_add_row(r->size, instead - w, m->shares[0] + (size_t)slots[j] * r->size, r->values);
    }
}

/* ---- the table ---- */

/* clang-format off */
static const et_hypothesis table[] = {
    {.doc = {"weight-on-output", "the weight multiplies f(x), not the expert's input", "forward"},
     .applies = weighs_inputs, .hooks = {{.at = ET_AT_WEIGHTS, .settings = weighs_outputs}}},
    {.doc = {"weight-on-both", "the weight multiplies the expert's input and its output", "forward"},
     .applies = weighs_inputs, .variants = {"in y alone", "in y, and from there back"},
     .hooks = {{.at = ET_AT_MIX, .who = et_is_routed, .row = et_weigh_row}, {.at = ET_AT_DOUT, .variants = 2, .who = et_is_routed, .row = et_weigh_row},
               {.at = ET_AT_DWEIGHT, .variants = 2, .who = et_is_routed, .row = and_of_output}}},
    {.doc = {"weight-once-in-square", "A = w relu(x W_up')^2, not relu(w x W_up')^2", "forward"},
     .applies = weighs_inputs_of_relu2, .variants = {"H is shown weighted", "H is shown unweighted, and from there back"},
     .hooks = {{.at = ET_AT_ACT, .variants = 1, .who = et_is_routed, .row = divide_row},
               {.at = ET_AT_WEIGHTS, .variants = 2, .settings = weighs_outputs}, {.at = ET_AT_ACT, .variants = 2, .who = et_is_routed, .row = et_weigh_row},
               {.at = ET_AT_MIX, .variants = 2, .who = et_is_routed, .row = one}, {.at = ET_AT_DWEIGHT, .variants = 2, .who = et_is_routed, .row = divide_row},
               {.at = ET_AT_DOUT, .variants = 2, .who = et_is_routed, .row = et_unweigh_dO}, {.at = ET_AT_DPRE, .variants = 2, .who = et_is_routed, .row = et_weigh_row}}},
    {.doc = {"input-weight-gradient", "dw is not <dX, x>, X = w x being the expert's input", "backward"},
     .applies = weighs_inputs, .variants = {"<dy, f(w x)>", "<dX, w x>", "<dy, f(w x)> / w"}, .hooks = {{.at = ET_AT_DWEIGHT, .who = et_is_routed, .row = other_dw}}},
    {.doc = {"gradient-of-unweighted-input", "dW_up, and dW_gate, are taken from x, not from w x", "backward"},
     .applies = weighs_inputs, .hooks = {{.at = ET_AT_DUP, .rows = from_unweighted}, {.at = ET_AT_DGATING, .rows = from_unweighted}}},
    {.doc = {"input-weight-in-dx", "the experts' shares of dx are not w dX", "backward"},
     .applies = weighs_inputs, .variants = {"dX", "w w dX"}, .hooks = {{.at = ET_AT_DX, .row = other_share}}},
};
/* clang-format on */

const et_faults et_input_faults = ET_FAULTS(table);
