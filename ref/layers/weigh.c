/* weigh.c: from gate values to the weights w and s with which outputs enter y, and back. See weigh.h.
 *
 * From w to p:
 *     none     w = p                dp = dw
 *     fanout   w = p / n_t          dp = dw / n_t
 *     sum      w = p / T, T = sum_j p_j over the token's slots. dw_j/dp_i = [i = j]/T - p_j/T^2, so
 *              dp_i = dw_i/T - sum_j dw_j p_j/T^2 = (dw_i - sum_j w_j dw_j) / T
 * and off the slots dp = 0. A routed_scale a multiplies every w: a dw_i stands for dw_i; w_j has it already.
 */
#include "ref/layers/weigh.h"
#include "ref/base/threads.h"

et_place et_stored_as(const et_moe *moe, et_place place)
{
    const et_profile *p = moe->rounding ? moe->rounding->profile : NULL;
    bool coarse = p && et_place_bits(p, ET_GATE_ARITHMETIC) < et_place_bits(p, place);
    return coarse ? ET_GATE_ARITHMETIC : place;
}

double et_routed_scale(const et_moe *moe)
{
    double scale = moe->routed_scale == 0 ? 1 : (double)moe->routed_scale;
    et_grid room;
    const et_grid *sums = et_grid_in(&room, moe->rounding, et_sum_place(moe->rounding), "scale");
    return et_goes_other_way(moe->rounding, "coefficient", "w") ? et_rounded(sums, scale) : scale;
}

/* n_t, the fanout with the shared expert counted. */
static et_real fanout(const et_moe *moe, const et_assignment *a, size_t t)
{
    return (et_real)(a->fanout[t] + (moe->hs > 0 ? 1 : 0));
}

/* What token t's gate values are divided by: 1, n_t or sum_j z_tj p_tj. 0 only where every weight
 * of the token is 0 anyway: no expert at all, or only gate values of 0. Steps are rounded to grid q. */
static et_real divisor(const et_moe *moe, const et_assignment *a, const et_moe_values *v, size_t t,
                       const et_grid *q)
{
    if (moe->norm == ET_NORM_NONE) return 1;
    if (moe->norm == ET_NORM_FANOUT) return fanout(moe, a, t);
    double sum = 0;
    for (int32_t j = a->token_offsets[t]; j < a->token_offsets[t + 1]; j++)
        sum = et_plus(q, sum, v->gates[t * moe->n + (size_t)a->slot_expert[a->token_slots[j]]]);
    return (et_real)sum;
}

et_real et_shared_divisor(const et_moe *moe, const et_assignment *a, size_t t)
{
    return moe->norm == ET_NORM_FANOUT ? fanout(moe, a, t) : 1;
}

/* Where a kernel's format has only zeros for a token's gates, some kernels have 0/0. (Gates that are 0 themselves, relu's,
 * make weights of 0 by definition.) */
static bool divides_by_zero(const et_moe *moe)
{
    return moe->gate != ET_GATE_RELU && et_goes_other_way(moe->rounding, "0/0", "w");
}

void et_weigh(const et_moe *moe, const et_assignment *a, et_moe_values *v)
{
    et_grid rooms[2];
    const et_grid *step = et_grid_in(&rooms[0], moe->rounding, ET_GATE_ARITHMETIC, "gate"),
                  *stored = et_grid_in(&rooms[1], moe->rounding, et_stored_as(moe, ET_GATES), "w");
    double constant = et_rounded(stored, moe->shared_constant), scale = et_routed_scale(moe);
    bool inverts = et_goes_other_way(moe->rounding, "p (1/T)", "w");
#pragma omp parallel for if (et_worth_threads(moe->N * moe->n))
    for (size_t t = 0; t < moe->N; t++) {
        et_real divide_by = divisor(moe, a, v, t, step);
        double inverse = inverts ? et_over(step, 1, divide_by) : 0;
        for (int32_t j = a->token_offsets[t]; j < a->token_offsets[t + 1]; j++) {
            int32_t slot = a->token_slots[j];
            et_real p = v->gates[t * moe->n + (size_t)a->slot_expert[slot]];
            bool divides = divide_by != 0 || divides_by_zero(moe);
            const et_grid *of_w = scale == 1 ? stored : step;
            double w = inverts ? et_times(of_w, p, inverse) : et_over(of_w, p, divide_by);
            if (!divides) w = 0;
            v->slot_weight[slot] = (et_real)(scale == 1 ? w : et_rounded(stored, scale * w));
        }
        if (moe->hs > 0) {
            double s = moe->anchor_weighs_shared ? v->anchor[t] : constant;
            bool real = moe->mask == NULL || moe->mask[t];
            v->shared_weight[t] =
                real ? (et_real)et_over(stored, s, et_shared_divisor(moe, a, t)) : 0;
        }
    }
    et_pass(moe->rounding, "w", a->slots, v->slot_weight);
    if (moe->hs > 0) et_pass(moe->rounding, "w", moe->N, v->shared_weight);
}

/* For a/b some kernels take a (1/b), here as in et_weigh. */
static double over(const et_moe *moe, const et_grid *q, double a, double b)
{
    bool inverts = et_goes_other_way(moe->rounding, "p (1/T)", "w");
    return inverts ? et_times(q, a, et_over(q, 1, b)) : et_over(q, a, b);
}

/* A softmax over all experts, then divided by the sum of those selected, is one over these: p_i/T = w_i/a, and
 *
 *     dr_i = w_i/a (a dw_i - sum_j w_j dw_j)
 *
 * A kernel that computes it so loses in the difference what the softmax's own gradient, of dp, brings back where one p is
 * nearly 1. */
static bool selects_first(const et_moe *moe)
{
    return moe->norm == ET_NORM_SUM && moe->gate == ET_GATE_SOFTMAX &&
           et_goes_other_way(moe->rounding, "softmax of the selected", "dr");
}

void et_weigh_token_backward(const et_moe *moe, const et_assignment *a, const et_moe_values *v,
                             size_t t, const et_grid *q, et_moe_grads *g)
{
    double divide_by = divisor(moe, a, v, t, q), scale = et_routed_scale(moe), carried = 0;
    if (divide_by == 0 && !divides_by_zero(moe)) return; /* its weights are 0: no gradient */
    int32_t first = a->token_offsets[t], end = a->token_offsets[t + 1];
    if (moe->norm == ET_NORM_SUM)
        for (int32_t j = first; j < end; j++)
            carried = et_plus(
                q, carried,
                et_times(q, v->slot_weight[a->token_slots[j]], g->slot_weight[a->token_slots[j]]));
    /* autograd of p/T has two terms, dw/T - sum of dw (w/T), which do not cancel to the bit where w = 1. Whether they do
     * for all dw hangs on T's last place, in which a kernel's T is another: so 1/T is one place off, up or down. */
    bool apart = carried != 0 && et_goes_other_way(moe->rounding, "dw/T", "dp");
    double terms = 0, off = 0;
    if (apart) off = ldexp(et_mix(q->key ^ t) & 1 ? 1 : -1, q->drop - 52);
    for (int32_t j = first; apart && j < end; j++) {
        int32_t slot = a->token_slots[j];
        double share = et_rounded(q, (1 + off) * v->slot_weight[slot] / divide_by);
        terms = et_plus(q, terms, et_times(q, g->slot_weight[slot], share));
    }
    bool joined = selects_first(moe);
    for (int32_t j = first; j < end; j++) {
        int32_t slot = a->token_slots[j];
        size_t place = t * moe->n + (size_t)a->slot_expert[slot];
        et_real *to = joined ? &g->logits[place] : &g->gates[place];
        double dw = et_times(q, scale, g->slot_weight[slot]), left = et_plus(q, dw, -carried);
        double own = joined  ? et_times(q, v->slot_weight[slot] / scale, left)
                     : apart ? et_plus(q, over(moe, q, dw, divide_by), -terms)
                             : over(moe, q, left, divide_by);
        *to = (et_real)et_plus(q, *to, own);
    }
}
