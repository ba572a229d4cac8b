/* faults_backward.c: dw, dO, the experts' gradients, dp, dr, dx and the losses, wrongly. See faults.h. */
#include "ref/layers/weigh.h"
#include "ref/step/tensors.h"
#include "ref/diagnose/faults.h"
#include "ref/verdict/judge.h"

#include <string.h>

static bool has_empty_expert(const et_step *s)
{
    bool empty = false;
    for (size_t i = 0; et_is_moe(s) && i < s->c.experts; i++) empty |= s->assignment.load[i] == 0;
    return empty;
}

static ET_SHOWS(has_softmax,
                et_is_moe(s) && s->c.gate != ET_GATE_SIGMOID && s->c.gate != ET_GATE_RELU);
static ET_SHOWS(has_anchor_gradient, et_has_anchor(s) && et_step_layer(s).anchor_weighs_shared);
static ET_SHOWS(has_scale, et_is_moe(s) && s->c.routed_scale != 1);
static ET_SHOWS(has_z_loss, s->loss_z != NULL);
static ET_SHOWS(has_loss, et_has_aux(s) || has_z_loss(s));
static ET_SHOWS(has_loss_in_micro_batches, has_loss(s) && s->c.micro_batches > 1);

/* ---- dH, dA ---- */

static ET_ALTERATION(relu_slope, et_slope_row(r, ET_CURVE_RELU));
static ET_ALTERATION(square_slope, et_slope_row(r, ET_CURVE_SQUARE));

static void through_activation(et_mutant *m, const et_row *r)
{
    (void)m;
    for (size_t j = 0; j < r->width; j++) r->dH[j] = r->dA[j] * (2 * r->A[j]);
}

static ET_ALTERATION(neighbours_weights,
                     et_use_expert(m, r, r->expert + (m->fault.variant == 1 ? m->moe.n - 1 : 1)));

/* ---- weight gradients ---- */

/* dW_down, or else dW_up or dW_gate. */
static bool is_down(const et_row *r)
{
    return r->stage == ET_AT_DDOWN;
}

static const et_real *left_factor(const et_row *r)
{
    return is_down(r) ? r->dO : r->stage == ET_AT_DUP ? r->dH : r->dV;
}

/* From other factors: left [load,.] for dH, dV or dO, right [load,.] for x or A; NULL: the right ones. */
void et_gradient_from(const et_mutant *m, const et_row *r, const et_real *left, const et_real *right)
{
    size_t d = m->moe.d, h = r->width;
    bool up = !is_down(r);
    size_t rows = up ? h : d, columns = up ? d : h;
    if (left == NULL) left = left_factor(r);
    if (right == NULL) right = r->A;
    et_matmul(ET_BLAS, rows, columns, r->count, et_transposed(left, rows), et_rows(right, columns),
              false, r->values, columns);
}

/* The token from which row q of an expert's factor is read: 0: the slot's own number; 1: the row's; 2: the
 * token at this place of token_slots; 3: from the last row to the first. */
static size_t wrong_row(const et_mutant *m, const et_row *r, size_t q)
{
    const et_assignment *a = m->a;
    size_t N = m->moe.N;
    if (r->expert == m->moe.n) return m->fault.variant == 3 ? N - 1 - q : q;
    size_t first = (size_t)a->expert_offsets[r->expert], slot = first + q;
    if (m->fault.variant == 0) return slot % N;
    if (m->fault.variant == 1) return q;
    if (m->fault.variant == 2) slot = (size_t)a->token_slots[slot];
    if (m->fault.variant == 3) slot = first + r->count - 1 - q;
    return (size_t)a->slot_token[slot];
}

/* x for dW_up and dW_gate, w dy for dW_down. */
static void in_wrong_order(et_mutant *m, const et_row *r)
{
    size_t d = m->moe.d;
    bool up = !is_down(r);
    const et_real *from = up ? m->on->right->in.x : m->on->right->in.dy;
    const et_real *w =
        r->expert == m->moe.n ? m->used.shared_weight : m->used.slot_weight + r->first;
    et_real *rows = et_mutant_reals(m, r->count * d);
    if (rows == NULL) return;
    for (size_t q = 0; q < r->count; q++) {
        et_real factor = up                      ? et_factor_of_x(m, r, q)
                         : m->moe.weighs_input ? 1
                                                 : w[q];
        et_add_row(d, factor, from + wrong_row(m, r, q) * d, rows + q * d);
    }
    et_gradient_from(m, r, up ? NULL : rows, up ? rows : NULL);
}

/* Less the last row's share. */
static void without_last_token(et_mutant *m, const et_row *r)
{
    size_t d = m->moe.d, h = r->width, q = r->count - 1;
    bool up = !is_down(r);
    if (r->count == 0) return;
    const et_real *x =
        m->on->x + d * (r->expert < m->moe.n ? (size_t)m->pick->a.slot_token[r->first + q] : q);
    const et_real *left = left_factor(r) + q * (up ? h : d), *right = up ? x : r->A + q * h;
    size_t rows = up ? h : d, columns = up ? d : h;
    et_real factor = up ? et_factor_of_x(m, r, q) : 1;
    for (size_t i = 0; i < rows; i++)
        et_add_row(columns, -factor * left[i], right, r->values + i * columns);
}

static void without_last_of_router(et_mutant *m, const et_row *r)
{
    size_t n = m->moe.n, d = m->moe.d, t = m->moe.N - 1;
    for (size_t i = 0; i < n; i++)
        et_add_row(d, -m->s.bwd.logits[t * n + i], m->on->x + t * d, r->values + i * d);
}

/* dW_r is a mean over all tokens or none. */
static void averaged(et_mutant *m, const et_row *r)
{
    size_t count = m->fault.variant == 0 ? r->count : m->moe.N;
    if (count > 0) et_scale_values(r->size, 1 / (double)count, r->values);
}

/* dW_down from relu(H), or H, for A = relu(H)^2. */
static void before_square(et_mutant *m, const et_row *r)
{
    size_t size = r->count * r->width;
    const et_real *used =
        r->expert == m->moe.n ? m->used.shared_pre : m->used.slot_pre + r->first * r->width;
    et_real *H = et_mutant_copy(m, used, size);
    for (size_t j = 0; H && m->fault.variant == 0 && j < size; j++) H[j] = H[j] > 0 ? H[j] : 0;
    if (H) et_gradient_from(m, r, NULL, H);
}

/* Whatever the candidate holds there: nobody can say what memory held before. */
static void stale(et_mutant *m, const et_row *r)
{
    const et_tensor_out *t =
        et_tensor_named(m->on->candidate, m->on->count, et_tensor_at(r->stage, false));
    if (t == NULL || !et_is_routed(m, r) || m->a->load[r->expert] > 0) return;
    for (size_t j = 0; j < r->size; j++)
        r->values[j] = (et_real)et_tensor_element(t, r->expert * r->size + j);
}

/* ---- dp ---- */

void et_weigh_backward(et_mutant *m, const et_row *r, et_real carried, et_real by)
{
    const int32_t *slots;
    const et_assignment *a = &m->pick->a;
    size_t n = m->moe.n, count = et_slots_of(a, r->t, &slots);
    for (size_t j = 0; j < count; j++) {
        size_t i = (size_t)a->slot_expert[slots[j]];
        et_real dw = et_routed_scale(&m->moe) * m->s.bwd.slot_weight[slots[j]];
        r->values[i] = m->loss_gates[r->t * n + i] + (by != 0 ? (dw - carried) / by : 0);
    }
}

et_real et_carried(const et_mutant *m, size_t t)
{
    const int32_t *slots;
    size_t count = et_slots_of(&m->pick->a, t, &slots);
    et_real sum = 0;
    for (size_t j = 0; j < count; j++)
        sum += m->used.slot_weight[slots[j]] * m->s.bwd.slot_weight[slots[j]];
    return sum;
}

et_real et_sum_of_gates(const et_mutant *m, size_t t)
{
    const int32_t *slots;
    size_t count = et_slots_of(&m->pick->a, t, &slots);
    et_real sum = 0;
    for (size_t j = 0; j < count; j++)
        sum += m->used.gates[t * m->moe.n + (size_t)m->pick->a.slot_expert[slots[j]]];
    return m->moe.norm == ET_NORM_SUM ? sum : 1;
}

/* Of dw, and of what the norm carries, which has it in w. */
static void without_scale(et_mutant *m, const et_row *r)
{
    et_real scale = et_routed_scale(&m->moe), by = et_sum_of_gates(m, r->t);
    bool sums = m->moe.norm == ET_NORM_SUM;
    if (m->moe.norm == ET_NORM_FANOUT)
        by = (et_real)(m->a->fanout[r->token] + (m->moe.hs > 0 ? 1 : 0));
    et_weigh_backward(m, r, sums ? et_carried(m, r->t) : 0, scale * by);
}

/* dp of the slots as if what they are divided by were a constant, or 1. */
static ET_ALTERATION(norm_is_constant, et_weigh_backward(m, r, 0, et_sum_of_gates(m, r->t)));

/* Variant 0: unselected gates get the dw of the token's first slot; 1: their share of the norm's
 * gradient, as if they stood in the sum. */
static void gradient_of_unselected(et_mutant *m, const et_row *r)
{
    const int32_t *slots;
    const uint8_t *mask = m->s.route.mask + r->t * m->moe.n;
    if (et_slots_of(&m->pick->a, r->t, &slots) == 0) return;
    et_real more = m->s.bwd.slot_weight[slots[0]], by = et_sum_of_gates(m, r->t);
    if (m->fault.variant == 1)
        more = m->moe.norm == ET_NORM_SUM && by != 0 ? -et_carried(m, r->t) / by : 0;
    for (size_t i = 0; i < r->size; i++)
        if (!mask[i]) r->values[i] += more;
}

/* ---- dr, from dp and the losses' share of dr, with another slope of the gate ---- */

void et_slope_one(et_mutant *m, const et_row *r)
{
    for (size_t i = 0, j = r->t * r->size; i < r->size; i++, j++)
        r->values[i] = m->loss_logits[j] + m->s.bwd.gates[j];
}

static void diagonal_alone(et_mutant *m, const et_row *r)
{
    for (size_t i = 0, j = r->t * r->size; i < r->size; i++, j++) {
        et_real p = m->used.gates[j];
        r->values[i] = m->loss_logits[j] + p * (1 - p) * m->s.bwd.gates[j];
    }
}

void et_gate_backward_again(et_mutant *m, const et_row *r, et_gate gate, const et_real *anchor,
                            const et_real *danchor)
{
    size_t n = m->moe.n, at = r->t * n;
    memcpy(r->values, m->loss_logits + at, n * sizeof(et_real));
    et_gate_backward(NULL, gate, 1, n, m->s.fwd.logits + at, m->used.gates + at, anchor,
                     m->s.bwd.gates + at, danchor, r->values);
}

static ET_ALTERATION(without_anchors_share,
                     et_gate_backward_again(m, r, m->moe.gate, m->used.anchor + r->t, NULL));
static ET_ALTERATION(without_anchor_in_sum,
                     et_gate_backward_again(m, r, ET_GATE_SOFTMAX, NULL, NULL));

static void selected_alone(et_mutant *m, const et_row *r)
{
    for (size_t i = 0; i < r->size; i++) r->values[i] *= m->s.route.mask[r->t * r->size + i];
}

/* ---- a router that learns nothing, or from some experts alone ---- */

static void without_dw(et_mutant *m, const et_row *r)
{
    memcpy(r->values, m->loss_gates + r->t * r->size, r->size * sizeof *r->values);
}

/* Experts of one of 2, 3, 4 or 8 equal parts. */
static bool is_local(const et_mutant *m, size_t expert)
{
    static const struct {
        size_t part, of;
    } parts[] = {{0, 2}, {1, 2}, {0, 3}, {2, 3}, {0, 4}, {1, 4}, {2, 4}, {3, 4}, {0, 8}, {7, 8}};
    size_t n = m->moe.n, part = parts[m->fault.variant % 10].part,
           of = parts[m->fault.variant % 10].of;
    return expert >= part * n / of && expert < (part + 1) * n / of;
}

static ET_CHOICE(is_remote, et_is_routed(m, r) && !is_local(m, r->expert));

static void without_remote_gates(et_mutant *m, const et_row *r)
{
    for (size_t i = 0; i < r->size; i++)
        if (!is_local(m, i)) r->values[i] = m->loss_gates[r->t * r->size + i];
}

/* ---- dx: its shares, and the router's term ---- */

/* Variant 0: each token's last slot; 1: its first; 2 and 3: the same where it has several. */
static bool is_lost_share(const et_mutant *m, const et_row *r)
{
    const int32_t *slots;
    size_t count = et_slots_of(m->a, r->token, &slots);
    if (!et_is_routed(m, r) || (m->fault.variant > 1 && count == 1)) return false;
    return r->slot == (size_t)slots[m->fault.variant % 2 == 0 ? count - 1 : 0];
}

/* Variant 0: of the slots only the last stays; 1: nor the shared expert; 2: nor the router's term. */
static ET_CHOICE(is_overwritten_share, et_is_overwritten(m, r, false, m->fault.variant > 0));
static ET_CHOICE(has_slots, m->a->fanout[r->token] > 0);

static void without_router_term(et_mutant *m, const et_row *r)
{
    size_t n = m->moe.n, d = m->moe.d;
    for (size_t i = 0; i < n; i++)
        et_add_row(d, -m->s.bwd.logits[r->t * n + i], m->moe.router + i * d, r->values);
}

/* ---- the losses ---- */

static ET_SETTING(no_aux_gradient, s->c.balance_coef = 0);
static ET_SETTING(aux_gradient_twice, s->c.balance_coef *= 2);
static ET_SETTING(z_gradient_twice, s->c.z_loss_coef *= 2);
static ET_SETTING(other_aux, s->c.balance = s->c.balance == ET_BALANCE_AUX ? ET_BALANCE_AUX_ERROR
                                                                           : ET_BALANCE_AUX);

/* The step has no z-loss without its coefficient. */
static ET_WHOLE(no_z_gradient, et_scale_values(m->moe.N * m->moe.n, 0, m->losses.bwd.logits));

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
    size_t micro = et_case_real_tokens(c), n = m->moe.n;
    double scale = c->balance_coef / (double)c->micro_batches;
    for (size_t at = 0; at < c->micro_batches * n; at++) {
        size_t first = at / n * et_case_micro_tokens(c), i = at % n;
        double P = 0;
        for (size_t t = first; t < first + micro; t++) P += (double)m->all.fwd.gates[t * n + i];
        double each = scale * (P / (double)micro) * (double)n / ((double)c->top_k * (double)micro);
        for (size_t t = first; t < first + micro; t++)
            if (m->fault.variant == 1 || m->all.route.mask[t * n + i])
                m->losses.bwd.gates[t * n + i] += (et_real)each;
    }
}

static void scale_losses(et_mutant *m, double aux, double z)
{
    if (m->losses.loss_aux) *m->losses.loss_aux *= (et_real)aux;
    if (m->losses.loss_z) *m->losses.loss_z *= (et_real)z;
}

static ET_WHOLE(losses_with_coefficients,
                scale_losses(m, m->all.c.balance_coef, m->all.c.z_loss_coef));

static ET_WHOLE(losses_summed,
                scale_losses(m, (double)m->all.c.micro_batches, (double)m->all.c.micro_batches));

/* ---- the table ---- */

/* clang-format off */
static const et_hypothesis table[] = {
    {.doc = {"factor-two", "the factor 2 of relu(H)^2's derivative is missing", "backward"}, .applies = et_is_relu2, .hooks = {{.at = ET_AT_DPRE, .row = et_halve_row}}},
    {.doc = {"relu-mask", "the derivative of relu(H)^2 is taken as 2 H, also where H < 0", "backward"}, .applies = et_is_relu2, .hooks = {{.at = ET_AT_DPRE, .row = square_slope}}},
    {.doc = {"relu-derivative", "the derivative of relu(H)^2 is taken as relu's: 1 where H > 0", "backward"}, .applies = et_is_relu2, .hooks = {{.at = ET_AT_DPRE, .row = relu_slope}}},
    {.doc = {"activation-for-relu", "the derivative of relu(H)^2 is taken as 2 A, not 2 relu(H)", "backward"}, .applies = et_is_relu2, .hooks = {{.at = ET_AT_DPRE, .row = through_activation}}},
    {.doc = {"dw-from-weighted", "dw is taken from the weighted output: <dy, w f(x)>", "backward"},
     .applies = et_weighs_outputs, .hooks = {{.at = ET_AT_DWEIGHT, .row = et_weigh_row}}},
    {.doc = {"weight-missing-in-dO", "dO = dy: the weight is missing", "backward"},
     .applies = et_weighs_outputs, .hooks = {{.at = ET_AT_DOUT, .who = et_is_routed, .row = et_unweigh_dO}}},
    {.doc = {"weight-twice-in-dO", "dO = w w dy: the weight is applied twice", "backward"},
     .applies = et_weighs_outputs, .hooks = {{.at = ET_AT_DOUT, .who = et_is_routed, .row = et_weigh_row}}},
    {.doc = {"neighbour-expert-backward", "dA and dx are computed with the neighbouring expert's weights", "backward"},
     .applies = et_has_many_experts, .variants = {"expert i+1", "expert i-1"},
     .hooks = {{.at = ET_AT_DACT, .rows = neighbours_weights}, {.at = ET_AT_SLOT_DX, .rows = neighbours_weights}}},
    {.doc = {"token-order-up", "dW_up takes the rows of x in the wrong order", "backward"},
     .applies = et_is_moe, .variants = {"the slot's number for its token", "the row's number for its token", "the order of token_slots", "from the last to the first"},
     .hooks = {{.at = ET_AT_DUP, .rows = in_wrong_order}, {.at = ET_AT_DGATING, .rows = in_wrong_order}}},
    {.doc = {"token-order-down", "dW_down takes the rows of dy in the wrong order", "backward"},
     .applies = et_is_moe, .variants = {"the slot's number for its token", "the row's number for its token", "the order of token_slots", "from the last to the first"},
     .hooks = {{.at = ET_AT_DDOWN, .rows = in_wrong_order}}},
    {.doc = {"last-token-in-dw", "an expert's last token is missing in its weight gradients", "backward"}, .variants = {"", "dW_up alone", "dW_down alone", "the last of all, in dW_r"},
     .hooks = {{.at = ET_AT_DROUTER, .variants = 8, .rows = without_last_of_router}, {.at = ET_AT_DUP, .variants = 3, .rows = without_last_token}, {.at = ET_AT_DGATING, .variants = 3, .rows = without_last_token}, {.at = ET_AT_DDOWN, .variants = 5, .rows = without_last_token},
               {.at = ET_AT_DB_UP, .variants = 1, .rows = et_bias_without_last}, {.at = ET_AT_DB_GATE, .variants = 1, .rows = et_bias_without_last}, {.at = ET_AT_DB_DOWN, .variants = 1, .rows = et_bias_without_last}}},
    {.doc = {"gradient-averaged", "weight gradients are means, not sums, over tokens", "backward"}, .variants = {"over the expert's tokens", "over all tokens"},
     .hooks = {{.at = ET_AT_DUP, .rows = averaged}, {.at = ET_AT_DGATING, .rows = averaged}, {.at = ET_AT_DDOWN, .rows = averaged}, {.at = ET_AT_DROUTER, .variants = 2, .rows = averaged},
               {.at = ET_AT_DB_UP, .rows = averaged}, {.at = ET_AT_DB_GATE, .rows = averaged}, {.at = ET_AT_DB_DOWN, .rows = averaged}}},
    {.doc = {"down-before-square", "dW_down is taken from what is squared, not from A", "backward"},
     .applies = et_is_relu2, .variants = {"relu(H)", "H"}, .hooks = {{.at = ET_AT_DDOWN, .rows = before_square}}},
    {.doc = {"empty-expert-gradient", "the weight gradients of an expert without tokens are not zeroed", "backward"},
     .applies = has_empty_expert, .hooks = {{.at = ET_AT_DUP, .rows = stale}, {.at = ET_AT_DGATING, .rows = stale}, {.at = ET_AT_DDOWN, .rows = stale},
               {.at = ET_AT_DB_UP, .rows = stale}, {.at = ET_AT_DB_GATE, .rows = stale}, {.at = ET_AT_DB_DOWN, .rows = stale}}},
    {.doc = {"norm-gradient", "the norm's sum is differentiated as a constant", "backward"},
     .applies = et_sums_gates, .hooks = {{.at = ET_AT_DGATES, .row = norm_is_constant}}},
    {.doc = {"routed-scale-gradient", "dp lacks routed_scale", "backward"},
     .applies = has_scale, .hooks = {{.at = ET_AT_DGATES, .row = without_scale}}},
    {.doc = {"fanout-gradient", "dp is not divided by the fanout", "backward"},
     .applies = et_divides_by_fanout, .hooks = {{.at = ET_AT_DGATES, .row = norm_is_constant}}},
    {.doc = {"gate-gradient-unselected", "a gradient flows through gates that were not selected", "backward"},
     .applies = et_is_moe, .variants = {"the dw of the token's first slot", "through the norm"}, .hooks = {{.at = ET_AT_DGATES, .row = gradient_of_unselected}}},
    {.doc = {"gate-derivative", "the gate's derivative is taken as 1", "backward"},
     .applies = et_is_moe, .hooks = {{.at = ET_AT_DLOGITS, .row = et_slope_one}}},
    {.doc = {"softmax-diagonal", "the softmax Jacobian lacks what is off its diagonal", "backward"},
     .applies = has_softmax, .hooks = {{.at = ET_AT_DLOGITS, .row = diagonal_alone}}},
    {.doc = {"anchor-share", "the gradient of the anchor's share is missing", "backward"},
     .applies = has_anchor_gradient, .hooks = {{.at = ET_AT_DLOGITS, .row = without_anchors_share}}},
    {.doc = {"anchor-out-of-jacobian", "the softmax Jacobian's sum leaves the anchor out", "backward"},
     .applies = et_has_anchor, .hooks = {{.at = ET_AT_DLOGITS, .row = without_anchor_in_sum}}},
    {.doc = {"dr-of-selected-alone", "dr is kept on the selected experts alone", "backward"},
     .applies = et_is_moe, .hooks = {{.at = ET_AT_DLOGITS, .row = selected_alone}}},
    {.doc = {"router-detached", "no gradient comes back to the router", "backward"},
     .everywhere = true, .applies = et_is_moe, .variants = {"from the experts, through the gates", "dr = 0", "dW_r = 0"},
     .hooks = {{.at = ET_AT_DGATES, .variants = 1, .row = without_dw}, {.at = ET_AT_DLOGITS, .variants = 2, .row = et_zero_row}, {.at = ET_AT_DROUTER, .variants = 4, .rows = et_zero_row}}},
    {.doc = {"router-gradient-local", "the router learns from the experts of one rank alone", "backward"},
     .everywhere = true, .applies = et_has_many_experts,
     .variants = {"the first half", "the second half", "the first third", "the last third", "the first quarter", "the second quarter", "the third quarter", "the last quarter", "the first eighth", "the last eighth",
                  "dw of the first half", "dw of the second half", "dw of the first third", "dw of the last third", "dw of the first quarter", "dw of the second quarter", "dw of the third quarter", "dw of the last quarter",
                  "dw of the first eighth", "dw of the last eighth"},
     .hooks = {{.at = ET_AT_DGATES, .variants = 1023, .row = without_remote_gates}, {.at = ET_AT_DWEIGHT, .variants = 1023 << 10, .who = is_remote, .row = et_zero_row}}},
    {.doc = {"router-term-in-dx", "dx lacks the router's term, dr W_r", "backward"},
     .applies = et_is_moe, .hooks = {{.at = ET_AT_DX, .row = without_router_term}}},
    {.doc = {"shared-term-in-dx", "dx lacks the shared expert's term", "backward"},
     .applies = et_has_shared, .hooks = {{.at = ET_AT_SLOT_DX, .who = et_is_shared_row, .row = et_zero_row}}},
    {.doc = {"routed-term-in-dx", "dx lacks the routed experts' terms", "backward"},
     .applies = et_is_moe, .hooks = {{.at = ET_AT_SLOT_DX, .who = et_is_routed, .row = et_zero_row}}},
    {.doc = {"slot-dx-dropped", "one slot's dx is lost", "backward"},
     .applies = et_is_moe, .variants = {"each token's last", "each token's first", "the last where there are several", "the first where there are several"},
     .hooks = {{.at = ET_AT_SLOT_DX, .who = is_lost_share, .row = et_zero_row}}},
    {.doc = {"dx-overwrites", "a token's slots overwrite each other in dx", "backward"},
     .applies = et_is_moe, .variants = {"the last stays", "the last stays, without the shared expert's term", "the last stays, alone"},
     .hooks = {{.at = ET_AT_SLOT_DX, .who = is_overwritten_share, .row = et_zero_row}, {.at = ET_AT_DX, .variants = 4, .who = has_slots, .row = without_router_term}}},
    {.doc = {"aux-gradient-missing", "the balancing loss has no gradient", "backward"},
     .applies = et_has_aux, .hooks = {{.at = ET_AT_LOSSES, .settings = no_aux_gradient}}},
    {.doc = {"aux-gradient-doubled", "the balancing loss's gradient counts twice", "backward"},
     .applies = et_has_aux, .hooks = {{.at = ET_AT_LOSSES, .settings = aux_gradient_twice}}},
    {.doc = {"aux-gradient-through-f", "the balancing loss's gradient flows through F, too, as though z were p", "backward"},
     .applies = et_has_aux, .variants = {"on the slots", "everywhere"}, .hooks = {{.at = ET_AT_LOSSES, .whole = aux_gradient_through_f}}},
    {.doc = {"aux-gradient-of-selected", "the balancing loss's gradient reaches the selected gates alone", "backward"},
     .applies = et_has_aux, .hooks = {{.at = ET_AT_LOSSES, .whole = aux_gradient_of_selected}}},
    {.doc = {"aux-error-exchanged", "the balancing loss has F where F - 1 is meant, or back", "backward"},
     .applies = et_has_aux, .hooks = {{.at = ET_AT_LOSSES, .settings = other_aux}}},
    {.doc = {"z-gradient-missing", "the z-loss has no gradient", "backward"},
     .applies = has_z_loss, .hooks = {{.at = ET_AT_LOSSES, .whole = no_z_gradient}}},
    {.doc = {"z-gradient-doubled", "the z-loss's gradient counts twice", "backward"},
     .applies = has_z_loss, .hooks = {{.at = ET_AT_LOSSES, .settings = z_gradient_twice}}},
    {.doc = {"loss-coefficient-missing", "the losses' gradients lack their coefficients", "backward"},
     .applies = has_loss, .hooks = {{.at = ET_AT_LOSSES, .settings = gradients_without_coefficients}}},
    {.doc = {"loss-with-coefficient", "the losses are shown with their coefficients", "backward"},
     .applies = has_loss, .hooks = {{.at = ET_AT_LOSSES, .whole = losses_with_coefficients}}},
    {.doc = {"loss-summed-over-micro-batches", "the losses are sums, not means, over the micro-batches", "backward"},
     .applies = has_loss_in_micro_batches, .hooks = {{.at = ET_AT_LOSSES, .whole = losses_summed}}},
};
/* clang-format on */

const et_faults et_backward_faults = ET_FAULTS(table);
