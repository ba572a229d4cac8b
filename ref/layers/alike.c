/* alike.c: rounding that does the same to many values at once. See alike.h, moe_noise.c.
 *
 * Rounding errors count as independent of each other, and mostly are. But the gates of a router that is
 * still small are all nearly 1/n, and a balancing loss gives an expert the same dr for every token.
 * Values that are nearly equal are rounded to the same side; what should average out adds up. Then
 *
 *     e = round(v) - v
 *
 * is no matter of chance, and takes the place of the variance wherever over a whole column the squares
 * of e sum up to more than 1.3 times what chance makes of them. It goes on:
 *
 *     p            e_i = round(p_i) - p_i
 *     dr           sigmoid  dp (1-2p) e;  relu  0
 *                  softmax  e_i (dp_i - D) + p_i sum_j (dp_i - dp_j) e_j,  D = sum_j p_j dp_j, over the
 *                  anchor, too; or, in kernels that compute p_i (dp_i - D), without dp_i in the sum:
 *                  whichever is larger; then the rounding of dr itself
 *     dW_r, dx     dW_r = dr' x, dx = dr W_r of that
 *
 * A kernel that keeps gates or dr in full makes none of these errors, and stays within the same bars.
 */
#include "ref/layers/alike.h"
#include "ref/base/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Of a sum of squares beside its expectation. */
static const double more_than_chance = 1.3;

void et_alike_columns(size_t rows, size_t columns, const et_real *shift, et_real *V)
{
    for (size_t i = 0; i < columns; i++) {
        double squares = 0, chance = 0;
        for (size_t k = i; k < rows * columns; k += columns) {
            squares += (double)shift[k] * (double)shift[k];
            chance += (double)V[k];
        }
        if (!(squares > more_than_chance * chance)) continue;
        for (size_t k = i; k < rows * columns; k += columns) {
            et_real square = shift[k] * shift[k];
            if (square > V[k]) V[k] = square;
        }
    }
}

et_status et_alike_gates(const et_profile *p, size_t rows, size_t columns, const et_real *gates,
                         et_real *V, et_error *error)
{
    const rounding gate = et_rounding_at(p, ET_GATES);
    size_t count = rows * columns;
    void *room;
    et_status status = et_allocate(&room, count, sizeof(et_real), "gates", error);
    if (status != ET_OK) return status;
    et_real *shift = room;
    for (size_t i = 0; i < count; i++) shift[i] = (et_real)rounding_moves(&gate, (double)gates[i]);
    et_alike_columns(rows, columns, shift, V);
    free(room);
    return ET_OK;
}

/* ---- dr ---- */

/* One softmax: `count` gates `step` apart, and the anchor, or NULL. */
static void softmax_shift(const rounding *gate, size_t count, size_t step, const et_real *gates,
                          const et_real *anchor, const et_real *dp, const et_real *danchor,
                          et_real *shift)
{
    double D = 0, all = 0, along = 0; /* sum_j p_j dp_j, e_j, dp_j e_j */
    if (anchor) {
        double up = danchor ? (double)*danchor : 0, e = rounding_moves(gate, (double)*anchor);
        D = (double)*anchor * up;
        all = e;
        along = up * e;
    }
    for (size_t j = 0; j < count; j++) {
        double up = (double)dp[j * step], value = (double)gates[j * step];
        double e = rounding_moves(gate, value);
        D += value * up;
        all += e;
        along += up * e;
    }
    for (size_t i = 0; i < count; i++) {
        double up = (double)dp[i * step], value = (double)gates[i * step];
        double own = rounding_moves(gate, value) * (up - D);
        double free_of_cancelling = own + value * (up * all - along), usual = own - value * along;
        bool larger = fabs(usual) > fabs(free_of_cancelling);
        shift[i * step] = (et_real)(larger ? usual : free_of_cancelling);
    }
}

/* All tokens of one softmax_tokens, or any of the others. */
static void gates_shift(const et_moe *moe, const rounding *gate, size_t N, const et_real *gates,
                        const et_real *anchor, const et_real *dp, const et_real *danchor,
                        et_real *shift)
{
    size_t n = moe->n;
    switch (moe->gate) {
    case ET_GATE_SIGMOID:
        for (size_t k = 0; k < N * n; k++) {
            double value = (double)gates[k];
            shift[k] = (et_real)((double)dp[k] * (1 - 2 * value) * rounding_moves(gate, value));
        }
        return;
    case ET_GATE_RELU: memset(shift, 0, N * n * sizeof *shift); return;
    case ET_GATE_SOFTMAX:
    case ET_GATE_SOFTMAX_ANCHOR:
    case ET_GATE_SOFTMAX_ANCHOR_OUT:
        for (size_t t = 0; t < N; t++)
            softmax_shift(gate, n, 1, gates + t * n, anchor ? anchor + t : NULL, dp + t * n,
                          danchor ? danchor + t : NULL, shift + t * n);
        return;
    case ET_GATE_SOFTMAX_TOKENS:
        for (size_t i = 0; i < n; i++)
            softmax_shift(gate, N, n, gates + i, NULL, dp + i, NULL, shift + i);
        return;
    }
}

void et_anchor_gradient(const et_moe *moe, const et_assignment *a, const et_moe_grads *g,
                        et_real *danchor)
{
    bool divided = moe->norm == ET_NORM_FANOUT; /* the shared expert counts */
    for (size_t t = 0; t < moe->N; t++)
        danchor[t] = g->shared_weight[t] / (et_real)(divided ? a->fanout[t] + 1 : 1);
}

et_status et_alike_dr(const et_moe *moe, const et_profile *p, const rounding *last,
                      const et_assignment *a, const et_moe_values *v, const et_moe_grads *g,
                      et_real *shift, et_error *error)
{
    const rounding gate = et_rounding_at(p, ET_GATES);
    size_t N = moe->N, n = moe->n;
    void *room;
    et_status status = et_allocate(&room, N, sizeof(et_real), "dr", error);
    if (status != ET_OK) return status;
    et_real *danchor = moe->anchor_weighs_shared ? room : NULL;
    if (danchor) et_anchor_gradient(moe, a, g, danchor);
    for (size_t t = 0; t < N; t += moe->gate_tokens)
        gates_shift(moe, &gate, moe->gate_tokens, v->gates + t * n,
                    v->anchor ? v->anchor + t : NULL, g->gates + t * n,
                    danchor ? danchor + t : NULL, shift + t * n);
    for (size_t k = 0; k < N * n; k++)
        shift[k] += (et_real)rounding_moves(last, (double)g->logits[k] + (double)shift[k]);
    free(room);
    return ET_OK;
}

/* ---- products of dr ---- */

/* V += e^2, if e^2 is more than V all in all. */
static void add_where_more(size_t count, const et_real *e, et_real *V)
{
    double squares = 0, chance = 0;
    for (size_t k = 0; k < count; k++) {
        squares += (double)e[k] * (double)e[k];
        chance += (double)V[k];
    }
    for (size_t k = 0; squares > more_than_chance * chance && k < count; k++) V[k] += e[k] * e[k];
}

et_status et_alike_products(const et_moe *moe, const et_real *x, const et_real *shift,
                            et_real *V_router, et_real *V_x, et_error *error)
{
    size_t N = moe->N, n = moe->n, d = moe->d;
    void *room;
    et_status status = et_allocate(&room, (n > N ? n : N) * d, sizeof(et_real), "dW_r", error);
    if (status != ET_OK) return status;
    et_real *e = room;
    et_matmul(moe->engine, n, d, N, et_transposed(shift, n), et_rows(x, d), false, e, d);
    for (size_t i = 0; i < n; i++) add_where_more(d, e + i * d, V_router + i * d);
    et_matmul(moe->engine, N, d, n, et_rows(shift, n), et_rows(moe->router, d), false, e, d);
    add_where_more(N * d, e, V_x);
    free(room);
    return ET_OK;
}
