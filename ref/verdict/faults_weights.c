/* faults_weights.c: gate values, and the weights with which outputs enter y, wrongly. See faults.h. */
#include "ref/verdict/faults.h"

ET_WHERE(has_bias, s->in.bias != NULL);
ET_WHERE(has_plain_softmax,
         et_is_moe(s) && (s->c.gate == ET_GATE_SOFTMAX || s->c.gate == ET_GATE_SOFTMAX_TOKENS));
ET_WHERE(has_norm, et_is_moe(s) && s->c.norm != ET_NORM_NONE);
ET_WHERE(has_no_norm, et_is_moe(s) && s->c.norm == ET_NORM_NONE);
ET_WHERE(counts_shared, et_divides_by_fanout(s) && s->c.shared);

/* ---- gates ---- */

static et_real *biased_scores(et_mutant *m)
{
    size_t N = m->moe.N, n = m->moe.n;
    et_real *scores = et_mutant_copy(m, m->all.fwd.logits, N * n);
    for (size_t j = 0; scores && j < N * n; j++) scores[j] += m->all.in.bias[j % n];
    return scores;
}

static void biased_gates(et_mutant *m)
{
    const et_real *scores = biased_scores(m);
    if (scores) et_gates_again(m, scores);
}

/* Their derivative, too, is taken at the biased score. */
static void biased_logits(et_mutant *m, et_step *s)
{
    et_real *scores = biased_scores(m);
    if (scores) s->fwd.logits = scores;
}

/* A gate without an anchor leaves the shared expert a constant weight. */
static void another_gate(et_mutant *m, et_gate gate, et_real shared)
{
    m->moe.gate = gate;
    if (m->moe.anchor_weighs_shared && !et_gate_has_anchor(gate)) {
        m->moe.anchor_weighs_shared = false;
        m->moe.shared_constant = shared;
    }
}

ET_SETTING(no_anchor, another_gate(m, ET_GATE_SOFTMAX, m->variant == 0 ? 1 : 0));
ET_SETTING(other_axis,
           another_gate(m,
                        m->moe.gate == ET_GATE_SOFTMAX ? ET_GATE_SOFTMAX_TOKENS : ET_GATE_SOFTMAX,
                        1));

static void other_gate(et_mutant *m, et_step *s)
{
    static const et_gate gates[] = {ET_GATE_SIGMOID, ET_GATE_SOFTMAX, ET_GATE_RELU,
                                    ET_GATE_SOFTMAX_ANCHOR};
    et_gate gate = gates[m->variant];
    (void)s;
    if (m->moe.gate == ET_GATE_SOFTMAX_TOKENS && gate == ET_GATE_SOFTMAX)
        return; /* the wrong axis */
    if (et_gate_has_anchor(m->moe.gate) && gate != ET_GATE_SIGMOID && gate != ET_GATE_RELU) return;
    another_gate(m, gate, 1);
}

/* ---- weights ---- */

static const et_real *gates_at(const et_mutant *m, size_t token)
{
    return m->all.fwd.gates + token * m->moe.n;
}

ET_ROW(weight_one, if (r->expert < m->moe.n) *r->w = 1);
ET_ROW(weight_twice, if (r->expert < m->moe.n) *r->w *= gates_at(m, r->token)[r->expert]);
ET_SETTING(no_norm, m->moe.norm = ET_NORM_NONE);
ET_SETTING(another_norm, m->moe.norm = m->variant == 0 ? ET_NORM_SUM : ET_NORM_FANOUT);

static et_real sum_over_all(const et_mutant *m, size_t token)
{
    et_real sum = 0;
    for (size_t i = 0; i < m->moe.n; i++) sum += gates_at(m, token)[i];
    return sum;
}

static et_real sum_over_selected(const et_mutant *m, size_t token)
{
    const int32_t *slots;
    size_t count = et_slots_of(m->a, token, &slots);
    et_real sum = 0;
    for (size_t j = 0; j < count; j++) sum += gates_at(m, token)[m->a->slot_expert[slots[j]]];
    return sum;
}

static void norm_over_all(et_mutant *m)
{
    for (size_t slot = 0; slot < m->a->slots; slot++) {
        size_t t = (size_t)m->a->slot_token[slot];
        et_real by = sum_over_all(m, t), p = gates_at(m, t)[m->a->slot_expert[slot]];
        m->all.fwd.slot_weight[slot] = by != 0 ? p / by : 0;
    }
}

static void norm_over_all_backward(et_mutant *m, const et_row *r)
{
    if (m->forward_only) return;
    et_weigh_backward(m, r, et_carried(m, r->t), sum_over_all(m, r->token));
}

/* n_t without the shared expert. */
static et_real own_fanout(const et_mutant *m, size_t token)
{
    return (et_real)m->a->fanout[token];
}

static void without_shared(et_mutant *m)
{
    const int32_t *slots;
    for (size_t t = 0; t < m->moe.N; t++) {
        et_real by = own_fanout(m, t), more = by > 0 ? (by + 1) / by : 1;
        size_t count = et_slots_of(m->a, t, &slots);
        for (size_t j = 0; j < count; j++) m->all.fwd.slot_weight[slots[j]] *= more;
        m->all.fwd.shared_weight[t] *= more;
    }
}

ET_ROW(without_shared_backward,
       if (!m->forward_only) et_weigh_backward(m, r, 0, own_fanout(m, r->token)));

/* The anchor's gradient is divided by it, too. */
static void without_shared_anchor(et_mutant *m, const et_row *r)
{
    et_real by = own_fanout(m, r->token);
    et_real danchor = m->s.bwd.shared_weight[r->t] / (by > 0 ? by : 1);
    if (!m->forward_only && m->moe.anchor_weighs_shared)
        et_gate_backward_again(m, r, m->moe.gate, m->used.anchor + r->t, &danchor);
}

/* Weights lie token by token, and are read expert by expert; or the other way round. */
static void weights_in_other_order(et_mutant *m)
{
    et_real *w = m->all.fwd.slot_weight, *right = et_mutant_copy(m, w, m->a->slots);
    for (size_t q = 0; right && q < m->a->slots; q++) {
        size_t slot = (size_t)m->a->token_slots[q];
        if (m->variant == 0)
            w[q] = right[slot];
        else
            w[slot] = right[q];
    }
}

static void gate_of_neighbour(et_mutant *m, const et_row *r)
{
    size_t n = m->moe.n, step = m->variant == 1 ? n - 1 : 1;
    if (r->expert == n) return;
    et_real by = 1, p = gates_at(m, r->token)[(r->expert + step) % n];
    if (m->moe.norm == ET_NORM_FANOUT) by = own_fanout(m, r->token) + (m->moe.hs > 0 ? 1 : 0);
    if (m->moe.norm == ET_NORM_SUM) by = sum_over_selected(m, r->token);
    *r->w = by != 0 ? p / by : 0;
}

/* ---- what a gate in the wrong place makes of H, A and y ---- */

static void weigh_hidden(et_mutant *m, const et_row *r)
{
    for (size_t j = 0; r->expert < m->moe.n && j < r->width; j++) r->H[j] *= *r->w;
}

static void weigh_hidden_inside(et_mutant *m, const et_row *r)
{
    for (size_t j = 0; r->expert < m->moe.n && j < r->width; j++) r->A[j] *= *r->w * *r->w;
}

/* Each slot's f(x) with weight 1, or with another factor w. */
static void reweigh_y(et_mutant *m, size_t t, bool twice)
{
    const int32_t *slots;
    size_t count = et_slots_of(&m->pick->a, t, &slots);
    et_start_y(m, t);
    for (size_t j = 0; j < count; j++) {
        et_real w = m->s.fwd.slot_weight[slots[j]];
        et_add_slot(m, t, (size_t)slots[j], twice ? w * w : 1);
    }
}

ET_ROW(y_unweighted, reweigh_y(m, r->t, false));
ET_ROW(y_weighted_twice, reweigh_y(m, r->t, true));
ET_ROW(no_dw, if (r->expert < m->moe.n) *r->dw = 0);

/* d(w^2)/dw = 2 w */
ET_ROW(dw_of_square, if (r->expert < m->moe.n) *r->dw *= 2 * *r->w);

/* ---- the table ---- */

/* clang-format off */
static const et_hypothesis table[] = {
    {.doc = {"gate-forgotten", "the gate is missing: f(x) enters y with weight 1", "forward"},
     .applies = et_is_moe, .variants = {"", "in y alone", "in y, and from there back"},
     .hooks = {{.at = ET_AT_WEIGHTS, .variants = 1, .row = weight_one}, {.at = ET_AT_Y, .variants = 2 | 4, .row = y_unweighted},
               {.at = ET_AT_DWEIGHT, .variants = 4, .row = no_dw}, {.at = ET_AT_DOUT, .variants = 4, .row = et_dO_unweighted}}},
    {.doc = {"gate-twice", "the gate is applied twice", "forward"},
     .applies = et_is_moe, .variants = {"", "in y alone", "in y, and from there back"},
     .hooks = {{.at = ET_AT_WEIGHTS, .variants = 1, .row = weight_twice}, {.at = ET_AT_Y, .variants = 2 | 4, .row = y_weighted_twice},
               {.at = ET_AT_DWEIGHT, .variants = 4, .row = dw_of_square}, {.at = ET_AT_DOUT, .variants = 4, .row = et_dO_weighted_twice}}},
    {.doc = {"gate-before-activation", "the gate multiplies H before relu(H)^2, not f(x)", "forward"},
     .applies = et_is_moe, .variants = {"H is shown weighted", "H is shown unweighted", "in y alone"},
     .hooks = {{.at = ET_AT_PRE, .variants = 1, .row = weigh_hidden}, {.at = ET_AT_ACT, .variants = 2, .row = weigh_hidden_inside},
               {.at = ET_AT_Y, .variants = 3, .row = y_unweighted}, {.at = ET_AT_Y, .variants = 4, .row = y_weighted_twice}}},
    {.doc = {"biased-score-as-gate", "the gate value is computed from the biased score", "forward"},
     .applies = has_bias, .variants = {"", "its derivative, too"}, .hooks = {{.at = ET_AT_GATES, .variants = 1, .whole = biased_gates}, {.at = ET_AT_GATES, .variants = 2, .settings = biased_logits}}},
    {.doc = {"anchor-forgotten", "the softmax lacks its anchor, the zero logit", "forward"},
     .applies = et_has_anchor, .variants = {"the shared expert weighs 1", "the shared expert weighs 0"},
     .hooks = {{.at = ET_AT_GATES, .settings = no_anchor}}},
    {.doc = {"softmax-wrong-axis", "the softmax runs over the tokens where the experts are meant, or back", "forward"},
     .applies = has_plain_softmax, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_GATES, .settings = other_axis}}},
    {.doc = {"other-gate", "the gate is another function than the case's", "forward"},
     .applies = et_is_moe, .variants = {"sigmoid", "softmax", "relu", "softmax_anchor"}, .hooks = {{.at = ET_AT_GATES, .settings = other_gate}}},
    {.doc = {"gate-of-neighbour", "f(x) is weighted by the neighbouring expert's gate", "forward"},
     .applies = et_has_many_experts, .variants = {"expert i+1", "expert i-1"}, .hooks = {{.at = ET_AT_WEIGHTS, .row = gate_of_neighbour}}},
    {.doc = {"weights-in-token-order", "slot weights lie token by token and are read expert by expert, or back", "forward"},
     .applies = et_is_moe, .variants = {"", "or back"}, .hooks = {{.at = ET_AT_WEIGHTS, .whole = weights_in_other_order}}},
    {.doc = {"norm-forgotten", "the weights are not normalised", "forward"},
     .applies = has_norm, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_WEIGHTS, .settings = no_norm}}},
    {.doc = {"norm-added", "the weights are normalised where the case has no norm", "forward"},
     .applies = has_no_norm, .variants = {"by the sum of the token's gates", "by the fanout"}, .hooks = {{.at = ET_AT_WEIGHTS, .settings = another_norm}}},
    {.doc = {"norm-over-all", "gates are divided by the sum over all experts, not over the selected ones", "forward"},
     .applies = et_sums_gates, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_WEIGHTS, .whole = norm_over_all}, {.at = ET_AT_DGATES, .row = norm_over_all_backward}}},
    {.doc = {"fanout-without-shared", "the fanout does not count the shared expert", "forward"},
     .applies = counts_shared, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_WEIGHTS, .whole = without_shared}, {.at = ET_AT_DGATES, .row = without_shared_backward},
               {.at = ET_AT_DLOGITS, .row = without_shared_anchor}}},
};
/* clang-format on */

const et_faults et_weight_faults = ET_FAULTS(table);
