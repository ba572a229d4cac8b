/* faults_forward.c: gates, weights, the experts' rows and y, wrongly. See faults.h. */
#include "ref/base/memory.h"
#include "ref/layers/weigh.h"
#include "ref/diagnose/faults.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static ET_SHOWS(has_plain_softmax, et_is_moe(s) && (s->c.gate == ET_GATE_SOFTMAX ||
                                                    s->c.gate == ET_GATE_SOFTMAX_TOKENS));
static ET_SHOWS(is_moe_of_relu2, et_weighs_outputs(s) && et_is_relu2(s) && !et_is_biased(s));
static ET_SHOWS(has_norm, et_is_moe(s) && s->c.norm != ET_NORM_NONE);
static ET_SHOWS(has_no_norm, et_is_moe(s) && s->c.norm == ET_NORM_NONE);
static ET_SHOWS(counts_shared, et_divides_by_fanout(s) && s->c.shared);
static ET_SHOWS(gates_many_experts, et_has_many_experts(s) && et_is_gated(s));
/* Some expert's weights can be read as if transposed. */
static ET_SHOWS(is_square, s->c.d_expert == s->c.d_model ||
                               (et_is_moe(s) && s->c.shared_d_expert == s->c.d_model));

/* ---- gates ---- */

/* Their derivative, too, is taken at the biased score. */
static void biased_logits(et_mutant *m, et_step *s)
{
    size_t N = m->moe.N, n = m->moe.n;
    et_real *scores = et_mutant_copy(m, m->all.fwd.logits, N * n);
    for (size_t j = 0; scores && j < N * n; j++) scores[j] += m->all.in.bias[j % n];
    if (scores) s->fwd.logits = scores;
}

static void biased_gates(et_mutant *m)
{
    et_step biased = m->all;
    biased_logits(m, &biased);
    et_gates_again(m, biased.fwd.logits);
}

/* What has been compared to choose experts is taken for the gate: p + b. */
static void gates_and_bias(et_mutant *m)
{
    for (size_t j = 0; j < m->moe.N * m->moe.n; j++)
        m->all.fwd.gates[j] += m->all.in.bias[j % m->moe.n];
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

static ET_SETTING(no_anchor, another_gate(m, ET_GATE_SOFTMAX, m->fault.variant == 0 ? 1 : 0));
static ET_SETTING(
    other_axis,
    another_gate(m, m->moe.gate == ET_GATE_SOFTMAX ? ET_GATE_SOFTMAX_TOKENS : ET_GATE_SOFTMAX, 1));

static void other_gate(et_mutant *m, et_step *s)
{
    static const et_gate gates[] = {ET_GATE_SIGMOID, ET_GATE_SOFTMAX, ET_GATE_RELU,
                                    ET_GATE_SOFTMAX_ANCHOR};
    et_gate gate = gates[m->fault.variant];
    (void)s;
    if (m->moe.gate == ET_GATE_SOFTMAX_TOKENS && gate == ET_GATE_SOFTMAX)
        return; /* the wrong axis */
    if (et_gate_has_anchor(m->moe.gate) && gate != ET_GATE_SIGMOID && gate != ET_GATE_RELU) return;
    another_gate(m, gate, 1);
}

/* The logits themselves, in the gate's place. */
static void raw_logits(et_mutant *m)
{
    memcpy(m->all.fwd.gates, m->all.fwd.logits, m->moe.N * m->moe.n * sizeof(et_real));
}

static ET_ALTERATION(raw_slope, if (!m->fault.forward_only) et_slope_one(m, r));

static ET_SHOWS(softens_parts,
                et_is_moe(s) && s->c.gate == ET_GATE_SOFTMAX_TOKENS && s->c.micro_batches > 1);
static ET_SETTING(softmax_of_step, m->moe.gate_tokens = m->moe.N);

/* ---- weights: of one row, or as y takes them ---- */

static const et_real *gates_at(const et_mutant *m, size_t token)
{
    return m->all.fwd.gates + token * m->moe.n;
}

static ET_ALTERATION(weight_one, *r->values = 1);
static ET_ALTERATION(weight_squared, *r->values *= *r->values);
static ET_ALTERATION(weight_by_gate, *r->values *= gates_at(m, r->token)[r->expert]);
static ET_ALTERATION(weigh_twice, et_scale_values(r->size, (double)(*r->w * * r->w), r->values));
static ET_SETTING(no_norm, m->moe.norm = ET_NORM_NONE);
static ET_SETTING(another_norm, m->moe.norm = m->fault.variant == 0 ? ET_NORM_SUM : ET_NORM_FANOUT);

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

static void norm_over_all(et_mutant *m, const et_row *r)
{
    et_real by = sum_over_all(m, r->token);
    *r->w = by != 0 ? et_routed_scale(&m->moe) * gates_at(m, r->token)[r->expert] / by : 0;
}

static ET_ALTERATION(norm_over_all_backward,
                     if (!m->fault.forward_only)
                         et_weigh_backward(m, r, et_carried(m, r->t), sum_over_all(m, r->token)));

/* n_t without the shared expert. */
static et_real own_fanout(const et_mutant *m, size_t token)
{
    return (et_real)m->a->fanout[token];
}

static void without_shared(et_mutant *m, const et_row *r)
{
    et_real by = own_fanout(m, r->token);
    if (by > 0) *r->w *= (by + 1) / by;
}

static ET_ALTERATION(without_shared_backward,
                     if (!m->fault.forward_only)
                         et_weigh_backward(m, r, 0, own_fanout(m, r->token)));

/* The anchor's gradient is divided by it, too. */
static void without_shared_anchor(et_mutant *m, const et_row *r)
{
    et_real by = own_fanout(m, r->token);
    et_real danchor = m->s.bwd.shared_weight[r->t] / (by > 0 ? by : 1);
    if (!m->fault.forward_only && m->moe.anchor_weighs_shared)
        et_gate_backward_again(m, r, m->moe.gate, m->used.anchor + r->t, &danchor);
}

/* n_t divides the routed experts alone. */
static ET_ALTERATION(shared_whole, *r->w *= own_fanout(m, r->token) + 1);

static void shared_whole_anchor(et_mutant *m, const et_row *r)
{
    if (!m->fault.forward_only && m->moe.anchor_weighs_shared)
        et_gate_backward_again(m, r, m->moe.gate, m->used.anchor + r->t,
                               m->s.bwd.shared_weight + r->t);
}

/* ---- the routed scale ---- */

static ET_SHOWS(has_scale, et_is_moe(s) && s->c.routed_scale != 1);
static ET_SHOWS(scales_beside_shared, has_scale(s) && s->c.shared);
static ET_SETTING(scale_forgotten, m->moe.routed_scale = 1);
static ET_SETTING(scale_twice, m->moe.routed_scale *= m->moe.routed_scale);
static ET_ALTERATION(scale_shared, *r->w *= et_routed_scale(&m->moe));

/* ---- another sum T under norm = sum: w = p / T, dp = (dw - sum_j w_j dw_j) / T ---- */

static void weigh_by(const et_mutant *m, const et_row *r, et_real T)
{
    *r->w = T != 0 ? et_routed_scale(&m->moe) * gates_at(m, r->token)[r->expert] / T : 0;
}

static void weigh_backward_by(et_mutant *m, const et_row *r, et_real T, bool is_constant)
{
    bool carries = m->moe.norm == ET_NORM_SUM && !is_constant;
    if (!m->fault.forward_only) et_weigh_backward(m, r, carries ? et_carried(m, r->t) : 0, T);
}

enum { EPSILONS = 12 };

static et_real epsilon_of(const et_mutant *m)
{
    static const double epsilons[EPSILONS] = {1e-20,   1e-12, 1e-10, 1e-9, 1e-8, 1e-7,
                                              0x1p-23, 1e-6,  1e-5,  1e-4, 1e-3, 0x1p-7};
    return (et_real)epsilons[m->fault.variant % EPSILONS];
}

/* The second half of the forms: T is at least epsilon, a constant where it is that. */
static bool is_held(const et_mutant *m, size_t token)
{
    return m->fault.variant >= EPSILONS && sum_over_selected(m, token) < epsilon_of(m);
}

static et_real with_epsilon(const et_mutant *m, size_t token)
{
    et_real sum = sum_over_selected(m, token);
    if (m->fault.variant < EPSILONS) return sum + epsilon_of(m);
    return is_held(m, token) ? epsilon_of(m) : sum;
}

static ET_ALTERATION(norm_with_epsilon, weigh_by(m, r, with_epsilon(m, r->token)));
static ET_ALTERATION(norm_with_epsilon_backward,
                     weigh_backward_by(m, r, with_epsilon(m, r->token), is_held(m, r->token)));

/* Of all experts whose thresholds the token passes, or that it chooses, whether the capacity lets it in or not: their gates,
 * or their number and the shared expert. */
static et_real sum_before_capacity(const et_mutant *m, size_t token)
{
    const uint8_t *chosen = m->all.route.chosen;
    bool counts = m->moe.norm == ET_NORM_FANOUT;
    et_real sum = counts && m->moe.hs > 0 ? 1 : 0;
    for (size_t i = 0; i < m->moe.n; i++)
        if (chosen ? chosen[token * m->moe.n + i] : et_passes(m, token * m->moe.n + i))
            sum += counts ? 1 : gates_at(m, token)[i];
    return sum;
}

static ET_SHOWS(clamps_sums,
                (et_is_clamped(s) || et_drops(s)) && (et_sums_gates(s) || et_divides_by_fanout(s)));
static ET_ALTERATION(norm_before_capacity, weigh_by(m, r, sum_before_capacity(m, r->token)));
static ET_CHOICE(is_divided_shared, et_is_shared_row(m, r) && m->moe.norm == ET_NORM_FANOUT);
static ET_ALTERATION(fanout_before_capacity,
                     *r->w *= (own_fanout(m, r->token) + 1) / sum_before_capacity(m, r->token));
static ET_ALTERATION(norm_before_capacity_backward,
                     weigh_backward_by(m, r, sum_before_capacity(m, r->token), false));

/* The sum lacks its last member, or its first. */
static et_real sum_less_one(const et_mutant *m, size_t token)
{
    const int32_t *slots;
    size_t count = et_slots_of(m->a, token, &slots);
    if (count < 2) return sum_over_selected(m, token);
    size_t lost = (size_t)slots[m->fault.variant == 0 ? count - 1 : 0];
    return sum_over_selected(m, token) - gates_at(m, token)[m->a->slot_expert[lost]];
}

static ET_ALTERATION(norm_less_one, weigh_by(m, r, sum_less_one(m, r->token)));
static ET_ALTERATION(norm_less_one_backward,
                     weigh_backward_by(m, r, sum_less_one(m, r->token), false));

/* e^r_i / sum_j e^r_j, where the last expert is not among the j. */
static void softmax_less_last(et_mutant *m)
{
    size_t n = m->moe.n;
    for (size_t t = 0; t < m->moe.N; t++) {
        et_real *p = m->all.fwd.gates + t * n, rest = 1 - p[n - 1];
        if (rest > 0) et_scale_values(n, 1 / (double)rest, p);
    }
}

static ET_SHOWS(has_softmax_over_experts, et_is_moe(s) && s->c.gate == ET_GATE_SOFTMAX);

/* Weights lie token by token, and are read expert by expert; or the other way round. */
static void weights_in_other_order(et_mutant *m)
{
    et_real *w = m->all.fwd.slot_weight, *right = et_mutant_copy(m, w, m->a->slots);
    for (size_t q = 0; right && q < m->a->slots; q++) {
        size_t slot = (size_t)m->a->token_slots[q];
        if (m->fault.variant == 0)
            w[q] = right[slot];
        else
            w[slot] = right[q];
    }
}

static void gate_of_neighbour(et_mutant *m, const et_row *r)
{
    size_t n = m->moe.n, step = m->fault.variant == 1 ? n - 1 : 1;
    et_real by = 1, p = gates_at(m, r->token)[(r->expert + step) % n];
    if (m->moe.norm == ET_NORM_FANOUT) by = own_fanout(m, r->token) + (m->moe.hs > 0 ? 1 : 0);
    if (m->moe.norm == ET_NORM_SUM) by = sum_over_selected(m, r->token);
    *r->w = by != 0 ? et_routed_scale(&m->moe) * p / by : 0;
}

/* By what a kernel that gates its experts may have gated the shared one. Forms from 4 on: the same, in y alone. */
static void gate_shared(et_mutant *m, const et_row *r)
{
    const et_real *w = m->all.fwd.slot_weight;
    const int32_t *slots;
    size_t form = m->fault.variant % 4, count = et_slots_of(m->a, r->token, &slots);
    et_real sum = 0;
    for (size_t j = 0; j < count; j++) sum += w[slots[j]];
    *r->values *= form == 0   ? *gates_at(m, r->token)
                  : form == 1 ? (count > 0 ? w[slots[0]] : 1)
                  : form == 2 ? sum
                              : 1 - sum;
}

/* ---- dO of what a wrong weight in y lets come back, and dw ---- */

void et_unweigh_dO(et_mutant *m, const et_row *r)
{
    memcpy(r->dO, m->on->right->in.dy + r->token * m->moe.d, m->moe.d * sizeof *r->dO);
}

/* d(w^2)/dw = 2 w */
static ET_ALTERATION(dw_of_square, *r->dw *= 2 * *r->w);

/* y = f(w x): relu(w H)^2 = w^2 relu(H)^2, so dw = <dy, 2 w f(x)>, of which <dy, y> is at hand. */
static ET_ALTERATION(dw_of_input, *r->dw *= *r->w != 0 ? 2 / *r->w : 0);

static void dup_of_weighted(et_mutant *m, const et_row *r)
{
    size_t d = m->moe.d, h = r->width;
    et_real *dH = r->expert < m->moe.n ? et_mutant_copy(m, r->dH, r->count * h) : NULL;
    const et_real *w = m->used.slot_weight + r->first;
    if (dH == NULL) return;
    et_scale_values(r->size, 0, r->values);
    for (size_t q = 0; q < r->count; q++) {
        const et_real *x = m->on->x + (size_t)m->pick->a.slot_token[r->first + q] * d;
        for (size_t i = 0; i < h; i++) et_add_row(d, w[q] * dH[q * h + i], x, r->values + i * d);
    }
}

/* ---- other weights of experts ---- */

void et_use_expert(et_mutant *m, const et_row *r, size_t e)
{
    bool up = r->stage == ET_AT_PRE || r->stage == ET_AT_SLOT_DX;
    const et_real *weights = r->stage == ET_AT_GATE_PRE ? m->moe.gating
                             : up                       ? m->moe.up
                                                        : m->moe.down;
    if (r->expert < m->moe.n)
        et_through(m, r, weights + e % m->moe.n * m->moe.h * m->moe.d, false, NULL);
}

static size_t neighbour(const et_mutant *m, size_t e)
{
    bool before = m->fault.variant == 2 || m->fault.variant == 3 || m->fault.variant > 8;
    return e + (before ? m->moe.n - 1 : 1);
}

static ET_ALTERATION(neighbours_weights, et_use_expert(m, r, neighbour(m, r->expert)));
static ET_ALTERATION(neighbours_half,
                     et_use_expert(m, r, r->expert + (m->fault.variant % 2 ? m->moe.n - 1 : 1)));
static ET_ALTERATION(first_experts_weights, et_use_expert(m, r, 0));

/* The shared expert may have another width than the routed ones: only what is square is turned. */
static void turned(et_mutant *m, const et_row *r)
{
    bool up = r->stage == ET_AT_PRE || r->stage == ET_AT_SLOT_DX;
    if (r->width == m->moe.d) et_through(m, r, up ? r->up : r->down, true, NULL);
}

/* Which token's x a slot's row reads, by threes: the one whose number is the slot's; the next one, the one before. */
static size_t token_read(const et_mutant *m, size_t slot)
{
    size_t N = m->moe.N, form = m->fault.variant % 3;
    if (form == 0) return slot % N;
    return ((size_t)m->a->slot_token[slot] + (form == 1 ? 1 : N - 1)) % N;
}

static void slot_as_token(et_mutant *m, const et_row *r)
{
    size_t d = m->moe.d, bytes = d * sizeof(et_real);
    void *x = NULL;
    if (r->expert == m->moe.n) return;
    if (et_allocate(&x, r->count, bytes, "rows", NULL) != ET_OK) {
        m->status = ET_ENOMEM;
        return;
    }
    for (size_t q = 0; q < r->count; q++)
        memcpy((et_real *)x + q * d,
               m->on->right->in.x + token_read(m, m->pick->slots[r->first + q]) * d, bytes);
    et_through(m, r, r->stage == ET_AT_GATE_PRE ? r->gating : r->up, false, x);
    free(x);
}

/* ---- rows that get lost, and rows that count twice ---- */

/* What y lacks has dw = 0 and dO = 0, as autograd makes it; and of it there are routed experts' rows alone. */
static ET_CHOICE(is_last_row,
                 r->place + 1 == r->load && (m->fault.variant % 3 == 0 || et_is_routed(m, r)));

static bool is_in_last_tile(const et_row *r, size_t tile)
{
    return r->place >= r->load - r->load % tile;
}

static bool is_in_dropped_tile(const et_mutant *m, const et_row *r)
{
    static const size_t tiles[] = {16, 32, 64, 128, 256};
    return is_in_last_tile(r, tiles[m->fault.variant % 5]) &&
           (m->fault.variant < 10 || et_is_routed(m, r));
}

static bool is_in_strange_tile(const et_mutant *m, const et_row *r)
{
    static const size_t tiles[] = {16, 64, 128};
    return et_is_routed(m, r) && is_in_last_tile(r, tiles[m->fault.variant - 4]);
}

/* Variant 0: each token's first slot; 1: its last; 2: the first slot of all; 3: the last of all. */
static bool is_added_twice(const et_mutant *m, const et_row *r)
{
    const int32_t *slots;
    size_t count = et_slots_of(m->a, r->token, &slots);
    if (!et_is_routed(m, r)) return false;
    if (m->fault.variant >= 2) return r->slot == (m->fault.variant == 2 ? 0 : m->a->slots - 1);
    return r->slot == (size_t)slots[m->fault.variant == 0 ? 0 : count - 1];
}

bool et_is_overwritten(const et_mutant *m, const et_row *r, bool first, bool alone)
{
    const int32_t *slots;
    size_t count = et_slots_of(m->a, r->token, &slots);
    if (!et_is_routed(m, r)) return alone && count > 0;
    return r->slot != (size_t)slots[first ? 0 : count - 1];
}

/* The last slot stays; the same, without the shared expert; the first stays. From 3 on: and no gradient comes back. */
static ET_CHOICE(is_overwritten,
                 et_is_overwritten(m, r, m->fault.variant % 3 == 2, m->fault.variant % 3 == 1));

/* Each token's last slot, or its first; where it has several. */
static bool is_lost_slot(const et_mutant *m, const et_row *r)
{
    const int32_t *slots;
    size_t count = et_slots_of(m->a, r->token, &slots), form = m->fault.variant % 4;
    if (!et_is_routed(m, r) || (form > 1 && count == 1)) return false;
    return r->slot == (size_t)slots[form % 2 == 0 ? count - 1 : 0];
}

/* ---- permutations ---- */

/* Variant 0: weights and outputs are both read through the inverse; 1: outputs alone. All that comes
 * before is right, of whichever token. */
static void gather_y_by_inverse(et_mutant *m)
{
    size_t d = m->moe.d;
    const et_moe_values *all = &m->all.fwd;
    const int32_t *offsets = m->a->token_offsets, *inverse = et_inverse_of_token_slots(m);
    for (size_t t = 0; inverse && t < m->pick->count; t++) {
        size_t token = m->pick->tokens[t];
        et_real *y = m->s.fwd.y + t * d;
        et_scale_values(d, 0, y);
        if (m->moe.hs > 0) et_add_row(d, all->shared_weight[token], all->shared_out + token * d, y);
        for (int32_t q = offsets[token]; q < offsets[token + 1]; q++) {
            size_t slot = (size_t)inverse[q];
            size_t weight = m->fault.variant == 0 ? slot : (size_t)m->a->token_slots[q];
            et_add_row(d, all->slot_weight[weight], all->slot_out + slot * d, y);
        }
    }
}

/* dx_t takes the shares that the inverse names for its slots: of all tokens. */
static void shares_by_inverse(et_mutant *m)
{
    size_t d = m->moe.d;
    m->blocked = !m->pick->whole;
    const int32_t *inverse = m->blocked ? NULL : et_inverse_of_token_slots(m);
    const et_real *right = inverse ? et_mutant_copy(m, m->shares[0], m->a->slots * d) : NULL;
    for (size_t q = 0; right && q < m->a->slots; q++)
        memcpy(m->shares[0] + (size_t)m->a->token_slots[q] * d, right + (size_t)inverse[q] * d,
               d * sizeof *right);
}

/* ---- the table ---- */

/* clang-format off */
static const et_hypothesis table[] = {
    {.doc = {"gate-forgotten", "the gate is missing: f(x) enters y with weight 1", "forward"},
     .applies = et_is_moe, .variants = {"", "in y alone", "in y, and from there back"},
     .hooks = {{.at = ET_AT_WEIGHTS, .variants = 1, .who = et_is_routed, .row = weight_one}, {.at = ET_AT_MIX, .variants = 2 | 4, .who = et_is_routed, .row = weight_one},
               {.at = ET_AT_DWEIGHT, .variants = 4, .who = et_is_routed, .row = et_zero_row}, {.at = ET_AT_DOUT, .variants = 4, .who = et_is_routed, .row = et_unweigh_dO}}},
    {.doc = {"gate-twice", "the gate is applied twice", "forward"},
     .applies = et_is_moe, .variants = {"", "in y alone", "in y, and from there back"},
     .hooks = {{.at = ET_AT_WEIGHTS, .variants = 1, .who = et_is_routed, .row = weight_by_gate}, {.at = ET_AT_MIX, .variants = 2 | 4, .who = et_is_routed, .row = weight_squared},
               {.at = ET_AT_DWEIGHT, .variants = 4, .who = et_is_routed, .row = dw_of_square}, {.at = ET_AT_DOUT, .variants = 4, .who = et_is_routed, .row = et_weigh_row}}},
    {.doc = {"gate-before-activation", "the gate multiplies H before relu(H)^2, not f(x)", "forward"},
     .applies = is_moe_of_relu2,
     .variants = {"H is shown weighted", "H is shown unweighted", "in y alone", "x is weighted, and from there back", "H is shown unweighted, and from there back"},
     .hooks = {{.at = ET_AT_PRE, .variants = 1 | 8, .who = et_is_routed, .row = et_weigh_row}, {.at = ET_AT_ACT, .variants = 2 | 16, .who = et_is_routed, .row = weigh_twice},
               {.at = ET_AT_MIX, .variants = 1 | 2 | 8 | 16, .who = et_is_routed, .row = weight_one}, {.at = ET_AT_MIX, .variants = 4, .who = et_is_routed, .row = weight_squared},
               {.at = ET_AT_DWEIGHT, .variants = 8 | 16, .who = et_is_routed, .row = dw_of_input}, {.at = ET_AT_DOUT, .variants = 8 | 16, .who = et_is_routed, .row = et_unweigh_dO},
               {.at = ET_AT_DPRE, .variants = 16, .who = et_is_routed, .row = weigh_twice}, {.at = ET_AT_DUP, .variants = 8, .rows = dup_of_weighted},
               {.at = ET_AT_SLOT_DX, .variants = 8, .who = et_is_routed, .row = et_weigh_row}}},
    {.doc = {"biased-score-as-gate", "the gate value is computed from the biased score", "forward"},
     .applies = et_has_bias, .variants = {"", "its derivative, too", "p + b"},
     .hooks = {{.at = ET_AT_GATES, .variants = 1, .whole = biased_gates}, {.at = ET_AT_GATES, .variants = 2, .settings = biased_logits}, {.at = ET_AT_GATES, .variants = 4, .whole = gates_and_bias}}},
    {.doc = {"anchor-forgotten", "the softmax lacks its anchor, the zero logit", "forward"},
     .applies = et_has_anchor, .variants = {"the shared expert weighs 1", "the shared expert weighs 0"},
     .hooks = {{.at = ET_AT_GATES, .settings = no_anchor}}},
    {.doc = {"softmax-wrong-axis", "the softmax runs over the tokens where the experts are meant, or back", "forward"},
     .applies = has_plain_softmax, .hooks = {{.at = ET_AT_GATES, .settings = other_axis}}},
    {.doc = {"other-gate", "the gate is another function than the case's", "forward"},
     .applies = et_is_moe, .variants = {"sigmoid", "softmax", "relu", "softmax_anchor", "none: the logits themselves"},
     .hooks = {{.at = ET_AT_GATES, .variants = 15, .settings = other_gate}, {.at = ET_AT_GATES, .variants = 16, .whole = raw_logits}, {.at = ET_AT_DLOGITS, .variants = 16, .row = raw_slope}}},
    {.doc = {"softmax-over-step", "the softmax runs over the tokens of the whole step, not of a micro-batch", "forward"},
     .applies = softens_parts, .hooks = {{.at = ET_AT_GATES, .settings = softmax_of_step}}},
    {.doc = {"gate-of-neighbour", "f(x) is weighted by the neighbouring expert's gate", "forward"},
     .applies = et_has_many_experts, .variants = {"expert i+1", "expert i-1"}, .hooks = {{.at = ET_AT_WEIGHTS, .who = et_is_routed, .row = gate_of_neighbour}}},
    {.doc = {"weights-in-token-order", "slot weights lie token by token and are read expert by expert, or back", "forward"},
     .applies = et_is_moe, .variants = {"", "or back"}, .hooks = {{.at = ET_AT_WEIGHTS, .whole = weights_in_other_order}}},
    {.doc = {"norm-forgotten", "the weights are not normalised", "forward"},
     .applies = has_norm, .hooks = {{.at = ET_AT_WEIGHTS, .settings = no_norm}}},
    {.doc = {"norm-added", "the weights are normalised where the case has no norm", "forward"},
     .applies = has_no_norm, .variants = {"by the sum of the token's gates", "by the fanout"}, .hooks = {{.at = ET_AT_WEIGHTS, .settings = another_norm}}},
    {.doc = {"norm-over-all", "gates are divided by the sum over all experts, not over the selected ones", "forward"},
     .applies = et_sums_gates, .hooks = {{.at = ET_AT_WEIGHTS, .who = et_is_routed, .row = norm_over_all}, {.at = ET_AT_DGATES, .row = norm_over_all_backward}}},
    {.doc = {"norm-epsilon", "a small number is added to the sum of gates, or bounds it", "forward"},
     .everywhere = true, .applies = et_sums_gates,
     .variants = {"+ 1e-20", "+ 1e-12", "+ 1e-10", "+ 1e-9", "+ 1e-8", "+ 1e-7", "+ 2^-23", "+ 1e-6", "+ 1e-5", "+ 1e-4", "+ 1e-3", "+ 2^-7",
                  "at least 1e-20", "at least 1e-12", "at least 1e-10", "at least 1e-9", "at least 1e-8", "at least 1e-7", "at least 2^-23", "at least 1e-6",
                  "at least 1e-5", "at least 1e-4", "at least 1e-3", "at least 2^-7"},
     .hooks = {{.at = ET_AT_WEIGHTS, .who = et_is_routed, .row = norm_with_epsilon}, {.at = ET_AT_DGATES, .row = norm_with_epsilon_backward}}},
    {.doc = {"norm-lacks-member", "the sum of gates lacks one of the token's slots", "forward"}, .everywhere = true,
     .applies = et_sums_gates, .variants = {"the last", "the first"},
     .hooks = {{.at = ET_AT_WEIGHTS, .who = et_is_routed, .row = norm_less_one}, {.at = ET_AT_DGATES, .row = norm_less_one_backward}}},
    {.doc = {"routed-scale-forgotten", "the routed experts' weights lack routed_scale", "forward"},
     .applies = has_scale, .hooks = {{.at = ET_AT_WEIGHTS, .settings = scale_forgotten}}},
    {.doc = {"routed-scale-twice", "the routed experts' weights have routed_scale twice", "forward"},
     .applies = has_scale, .hooks = {{.at = ET_AT_WEIGHTS, .settings = scale_twice}}},
    {.doc = {"shared-scaled", "the shared expert's weight has routed_scale, too", "forward"},
     .applies = scales_beside_shared, .hooks = {{.at = ET_AT_WEIGHTS, .who = et_is_shared_row, .row = scale_shared}}},
    {.doc = {"softmax-lacks-last", "the softmax's sum lacks the last expert", "forward"},
     .applies = has_softmax_over_experts, .hooks = {{.at = ET_AT_GATES, .whole = softmax_less_last}}},
    {.doc = {"norm-before-capacity", "weights are normalised before the capacity drops or adds tokens", "forward"},
     .everywhere = true, .applies = clamps_sums, .hooks = {{.at = ET_AT_WEIGHTS, .who = et_is_routed, .row = norm_before_capacity}, {.at = ET_AT_WEIGHTS, .who = is_divided_shared, .row = fanout_before_capacity}, {.at = ET_AT_DGATES, .row = norm_before_capacity_backward}}},
    {.doc = {"shared-not-divided", "the fanout divides the routed experts, but not the shared one", "forward"},
     .applies = counts_shared, .hooks = {{.at = ET_AT_WEIGHTS, .who = et_is_shared_row, .row = shared_whole}, {.at = ET_AT_DLOGITS, .row = shared_whole_anchor}}},
    {.doc = {"fanout-without-shared", "the fanout does not count the shared expert", "forward"},
     .applies = counts_shared, .hooks = {{.at = ET_AT_WEIGHTS, .row = without_shared}, {.at = ET_AT_DGATES, .row = without_shared_backward},
               {.at = ET_AT_DLOGITS, .row = without_shared_anchor}}},
    {.doc = {"neighbour-expert", "rows are computed with the neighbouring expert's weights", "forward"},
     .applies = et_has_many_experts,
     .variants = {"expert i+1", "expert i+1, in the backward pass, too", "expert i-1", "expert i-1, in the backward pass, too",
                  "expert i+1, rows that fill no tile of 16", "expert i+1, rows that fill no tile of 64", "expert i+1, rows that fill no tile of 128",
                  "expert i+1, H alone", "expert i+1, f(x) alone", "expert i-1, H alone", "expert i-1, f(x) alone"},
     .hooks = {{.at = ET_AT_PRE, .variants = 15 | 5 << 7, .rows = neighbours_weights}, {.at = ET_AT_GATE_PRE, .variants = 15 | 5 << 7, .rows = neighbours_weights}, {.at = ET_AT_OUT, .variants = 15 | 10 << 7, .rows = neighbours_weights},
               {.at = ET_AT_DACT, .variants = 10, .rows = neighbours_weights}, {.at = ET_AT_SLOT_DX, .variants = 10, .rows = neighbours_weights},
               {.at = ET_AT_PRE, .variants = 112, .who = is_in_strange_tile, .row = neighbours_weights},
               {.at = ET_AT_GATE_PRE, .variants = 112, .who = is_in_strange_tile, .row = neighbours_weights},
               {.at = ET_AT_OUT, .variants = 112, .who = is_in_strange_tile, .row = neighbours_weights}}},
    {.doc = {"neighbour-expert-in-one-half", "H alone, or V, is computed with the neighbouring expert's weights", "forward"},
     .applies = gates_many_experts, .variants = {"expert i+1, H", "expert i-1, H", "expert i+1, V", "expert i-1, V"},
     .hooks = {{.at = ET_AT_PRE, .variants = 3, .rows = neighbours_half}, {.at = ET_AT_GATE_PRE, .variants = 12, .rows = neighbours_half}}},
    {.doc = {"first-expert-everywhere", "every expert computes with expert 0's weights", "forward"},
     .applies = et_has_many_experts, .variants = {"", "in the backward pass, too"},
     .hooks = {{.at = ET_AT_PRE, .rows = first_experts_weights}, {.at = ET_AT_GATE_PRE, .rows = first_experts_weights}, {.at = ET_AT_OUT, .rows = first_experts_weights},
               {.at = ET_AT_DACT, .variants = 2, .rows = first_experts_weights}, {.at = ET_AT_SLOT_DX, .variants = 2, .rows = first_experts_weights}}},
    {.doc = {"up-transposed", "W_up is read transposed", "forward"},
     .applies = is_square, .variants = {"", "in the backward pass, too"},
     .hooks = {{.at = ET_AT_PRE, .rows = turned}, {.at = ET_AT_SLOT_DX, .variants = 2, .rows = turned}}},
    {.doc = {"down-transposed", "W_down is read transposed", "forward"},
     .applies = is_square, .variants = {"", "in the backward pass, too"},
     .hooks = {{.at = ET_AT_OUT, .rows = turned}, {.at = ET_AT_DACT, .variants = 2, .rows = turned}}},
    {.doc = {"slot-for-token", "an expert reads another row of x than its slot's token's", "forward"},
     .applies = et_is_moe, .variants = {"the slot's number for the token's", "the next token's", "that of the token before"},
     .hooks = {{.at = ET_AT_PRE, .rows = slot_as_token}, {.at = ET_AT_GATE_PRE, .rows = slot_as_token}}},
    {.doc = {"slot-for-token-in-one-half", "H alone, or V, reads another row of x than its slot's token's", "forward"},
     .applies = gates_many_experts,
     .variants = {"the slot's number for the token's, H", "the next token's, H", "that of the token before, H",
                  "the slot's number for the token's, V", "the next token's, V", "that of the token before, V"},
     .hooks = {{.at = ET_AT_PRE, .variants = 7, .rows = slot_as_token}, {.at = ET_AT_GATE_PRE, .variants = 56, .rows = slot_as_token}}},
    {.doc = {"last-row-dropped", "an expert's last row is missing", "forward"}, .everywhere = true,
     .variants = {"", "in y alone", "in y, and from there back", "in the backward pass, too"},
     .hooks = {{.at = ET_AT_OUT, .variants = 1 | 8, .who = is_last_row, .row = et_zero_row}, {.at = ET_AT_MIX, .variants = 2 | 4, .who = is_last_row, .row = et_zero_row},
               {.at = ET_AT_DWEIGHT, .variants = 4 | 8, .who = is_last_row, .row = et_zero_row}, {.at = ET_AT_DOUT, .variants = 4 | 8, .who = is_last_row, .row = et_zero_row}}},
    {.doc = {"last-tile-dropped", "an expert's last rows, which fill no whole tile, are missing", "forward"}, .everywhere = true,
     .variants = {"tiles of 16", "tiles of 32", "tiles of 64", "tiles of 128", "tiles of 256",
                  "tiles of 16, in the backward pass, too", "tiles of 32, in the backward pass, too", "tiles of 64, in the backward pass, too",
                  "tiles of 128, in the backward pass, too", "tiles of 256, in the backward pass, too", "tiles of 16, in y, and from there back",
                  "tiles of 32, in y, and from there back", "tiles of 64, in y, and from there back", "tiles of 128, in y, and from there back",
                  "tiles of 256, in y, and from there back"},
     .hooks = {{.at = ET_AT_OUT, .variants = 31 | 31 << 5, .who = is_in_dropped_tile, .row = et_zero_row}, {.at = ET_AT_MIX, .variants = 31 << 10, .who = is_in_dropped_tile, .row = et_zero_row},
               {.at = ET_AT_DWEIGHT, .variants = 31 << 5 | 31 << 10, .who = is_in_dropped_tile, .row = et_zero_row},
               {.at = ET_AT_DOUT, .variants = 31 << 5 | 31 << 10, .who = is_in_dropped_tile, .row = et_zero_row}}},
    {.doc = {"expert-missing", "y lacks what some experts give", "forward"}, .only = ET_IN_EXPERTS,
     .applies = et_is_moe, .variants = {"", "and from there back"},
     .hooks = {{.at = ET_AT_MIX, .rows = et_zero_row}, {.at = ET_AT_DWEIGHT, .variants = 2, .rows = et_zero_row}, {.at = ET_AT_DOUT, .variants = 2, .rows = et_zero_row}}},
    {.doc = {"slot-added-twice", "a slot is added to y twice", "forward"},
     .applies = et_is_moe, .variants = {"each token's first", "each token's last", "the first of all", "the last of all"},
     .hooks = {{.at = ET_AT_MIX, .who = is_added_twice, .row = et_double_row}}},
    {.doc = {"second-slot-overwrites", "a token's slots overwrite each other in y", "forward"},
     .applies = et_is_moe, .variants = {"the last stays", "the last stays, without the shared expert", "the first stays", "the last stays, and from there back",
                  "the last stays, without the shared expert, and from there back", "the first stays, and from there back"},
     .hooks = {{.at = ET_AT_MIX, .who = is_overwritten, .row = et_zero_row}, {.at = ET_AT_DWEIGHT, .variants = 56, .who = is_overwritten, .row = et_zero_row},
               {.at = ET_AT_DOUT, .variants = 56, .who = is_overwritten, .row = et_zero_row}}},
    {.doc = {"slot-lost", "y lacks one of a token's slots", "forward"},
     .applies = et_is_moe,
     .variants = {"each token's last", "each token's first", "the last where there are several", "the first where there are several", "each token's last, and from there back",
                  "each token's first, and from there back", "the last where there are several, and from there back", "the first where there are several, and from there back"},
     .hooks = {{.at = ET_AT_MIX, .who = is_lost_slot, .row = et_zero_row}, {.at = ET_AT_DWEIGHT, .variants = 240, .who = is_lost_slot, .row = et_zero_row},
               {.at = ET_AT_DOUT, .variants = 240, .who = is_lost_slot, .row = et_zero_row}}},
    {.doc = {"shared-forgotten", "the shared expert is missing", "forward"},
     .applies = et_has_shared, .variants = {"", "in y alone", "in y, and from there back"},
     .hooks = {{.at = ET_AT_WEIGHTS, .variants = 1, .who = et_is_shared_row, .row = et_zero_row}, {.at = ET_AT_MIX, .variants = 2 | 4, .who = et_is_shared_row, .row = et_zero_row},
               {.at = ET_AT_DWEIGHT, .variants = 4, .who = et_is_shared_row, .row = et_zero_row}, {.at = ET_AT_DOUT, .variants = 4, .who = et_is_shared_row, .row = et_zero_row}}},
    {.doc = {"shared-twice", "the shared expert is added twice", "forward"},
     .applies = et_has_shared, .variants = {"", "in y alone", "in y, and from there back"},
     .hooks = {{.at = ET_AT_WEIGHTS, .variants = 1, .who = et_is_shared_row, .row = et_double_row}, {.at = ET_AT_MIX, .variants = 2 | 4, .who = et_is_shared_row, .row = et_double_row},
               {.at = ET_AT_DWEIGHT, .variants = 4, .who = et_is_shared_row, .row = et_double_row}, {.at = ET_AT_DOUT, .variants = 4, .who = et_is_shared_row, .row = et_double_row}}},
    {.doc = {"shared-gated", "the shared expert's output is multiplied by a gate", "forward"}, .applies = et_has_shared,
     .variants = {"expert 0's", "the token's first slot's", "the sum over its slots", "1 minus that sum", "expert 0's, in y alone",
                  "the token's first slot's, in y alone", "the sum over its slots, in y alone", "1 minus that sum, in y alone"},
     .hooks = {{.at = ET_AT_WEIGHTS, .variants = 15, .who = et_is_shared_row, .row = gate_shared}, {.at = ET_AT_MIX, .variants = 240, .who = et_is_shared_row, .row = gate_shared}}},
    {.doc = {"inverse-permutation", "slots are gathered by the inverse of token_slots", "forward"},
     .applies = et_is_moe, .variants = {"in y", "in y, with the right weights", "in dx"},
     .hooks = {{.at = ET_AT_Y, .variants = 3, .whole = gather_y_by_inverse}, {.at = ET_AT_SLOT_DX, .variants = 4, .whole = shares_by_inverse}}},
};
/* clang-format on */

const et_faults et_forward_faults = ET_FAULTS(table);
