/* faults_backward.c: dw, dO, the experts' gradients, wrongly. See faults.h. */
#include "ref/oracle/tensors.h"
#include "ref/verdict/faults.h"
#include "ref/verdict/judge.h"

#include <string.h>

static bool has_empty_expert(const et_step *s)
{
    bool empty = false;
    for (size_t i = 0; et_is_moe(s) && i < s->c.experts; i++) empty |= s->assignment.load[i] == 0;
    return empty;
}

/* ---- dw, dO, dA, dH ---- */

ET_ROW(dw_of_weighted, *r->dw *= *r->w);

void et_dO_unweighted(et_mutant *m, const et_row *r)
{
    size_t d = m->moe.d;
    if (r->expert < m->moe.n) memcpy(r->dO, m->on->right->in.dy + r->token * d, d * sizeof *r->dO);
}

void et_dO_weighted_twice(et_mutant *m, const et_row *r)
{
    if (r->expert < m->moe.n) et_scale_values(m->moe.d, (double)*r->w, r->dO);
}

void et_not_squared_slope(et_mutant *m, const et_row *r)
{
    (void)m;
    for (size_t j = 0; j < r->width; j++) r->dH[j] = r->H[j] > 0 ? r->dA[j] : 0;
}

void et_square_slope(et_mutant *m, const et_row *r)
{
    (void)m;
    for (size_t j = 0; j < r->width; j++) r->dH[j] = r->dA[j] * (2 * r->H[j]);
}

ET_ROW(without_factor_two, et_scale_values(r->width, 0.5, r->dH));

static void through_activation(et_mutant *m, const et_row *r)
{
    (void)m;
    for (size_t j = 0; j < r->width; j++) r->dH[j] = r->dA[j] * (2 * r->A[j]);
}

ET_ROW(neighbours_weights, et_use_expert(m, r, r->expert + (m->variant == 1 ? m->moe.n - 1 : 1)));

/* ---- weight gradients ---- */

/* From other factors: left [load,.] for dH or dO, right [load,.] for x or A; NULL: the right ones. */
static void gradient(const et_mutant *m, const et_row *r, const et_real *left, const et_real *right)
{
    size_t d = m->moe.d, h = r->width;
    bool up = r->stage == ET_AT_DUP;
    size_t rows = up ? h : d, columns = up ? d : h;
    if (left == NULL) left = up ? r->dH : r->dO;
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
    if (r->expert == m->moe.n) return m->variant == 3 ? N - 1 - q : q;
    size_t first = (size_t)a->expert_offsets[r->expert], slot = first + q;
    if (m->variant == 0) return slot % N;
    if (m->variant == 1) return q;
    if (m->variant == 2) slot = (size_t)a->token_slots[slot];
    if (m->variant == 3) slot = first + r->count - 1 - q;
    return (size_t)a->slot_token[slot];
}

static void x_in_wrong_order(et_mutant *m, const et_row *r)
{
    size_t d = m->moe.d;
    et_real *x = et_mutant_reals(m, r->count * d);
    if (x == NULL) return;
    for (size_t q = 0; q < r->count; q++)
        memcpy(x + q * d, m->on->right->in.x + wrong_row(m, r, q) * d, d * sizeof *x);
    gradient(m, r, NULL, x);
}

static void dy_in_wrong_order(et_mutant *m, const et_row *r)
{
    size_t d = m->moe.d;
    const et_real *w =
        r->expert == m->moe.n ? m->used.shared_weight : m->used.slot_weight + r->first;
    et_real *dO = et_mutant_reals(m, r->count * d);
    if (dO == NULL) return;
    for (size_t q = 0; q < r->count; q++)
        et_add_row(d, w[q], m->on->right->in.dy + wrong_row(m, r, q) * d, dO + q * d);
    gradient(m, r, dO, NULL);
}

/* Less the last row's share. */
static void without_last_token(et_mutant *m, const et_row *r)
{
    size_t d = m->moe.d, h = r->width, q = r->count - 1;
    bool up = r->stage == ET_AT_DUP;
    if (r->count == 0) return;
    const et_real *x =
        m->on->x + d * (r->expert < m->moe.n ? (size_t)m->pick->a.slot_token[r->first + q] : q);
    const et_real *left = up ? r->dH + q * h : r->dO + q * d, *right = up ? x : r->A + q * h;
    size_t rows = up ? h : d, columns = up ? d : h;
    for (size_t i = 0; i < rows; i++) et_add_row(columns, -left[i], right, r->values + i * columns);
}

static void averaged(et_mutant *m, const et_row *r)
{
    size_t count = m->variant == 0 ? r->count : m->moe.N;
    if (count > 0) et_scale_values(r->size, 1 / (double)count, r->values);
}

static void averaged_router(et_mutant *m)
{
    et_scale_values(m->moe.n * m->moe.d, 1 / (double)m->moe.N, m->s.bwd.router);
}

/* dW_down from relu(H), or H, for A = relu(H)^2. */
static void before_square(et_mutant *m, const et_row *r)
{
    size_t size = r->count * r->width;
    const et_real *used =
        r->expert == m->moe.n ? m->used.shared_pre : m->used.slot_pre + r->first * r->width;
    et_real *H = et_mutant_copy(m, used, size);
    for (size_t j = 0; H && m->variant == 0 && j < size; j++) H[j] = H[j] > 0 ? H[j] : 0;
    if (H) gradient(m, r, NULL, H);
}

/* Whatever the candidate holds there: nobody can say what memory held before. */
static void take_candidates(et_mutant *m, const char *name, et_real *gradient)
{
    const et_tensor_out *t = et_tensor_named(m->on->candidate, m->on->count, name);
    size_t size = m->moe.h * m->moe.d;
    for (size_t i = 0; t && i < m->moe.n; i++)
        for (size_t j = i * size; m->a->load[i] == 0 && j < (i + 1) * size; j++)
            gradient[j] = (et_real)et_tensor_element(t, j);
}

static void stale(et_mutant *m)
{
    take_candidates(m, "bwd.w_up", m->s.bwd.up);
    take_candidates(m, "bwd.w_down", m->s.bwd.down);
}

/* ---- the table ---- */

/* clang-format off */
static const et_hypothesis table[] = {
    {.doc = {"factor-two", "the factor 2 of relu(H)^2's derivative is missing", "backward"},
     .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_DPRE, .row = without_factor_two}}},
    {.doc = {"relu-mask", "the derivative of relu(H)^2 is taken as 2 H, also where H < 0", "backward"},
     .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_DPRE, .row = et_square_slope}}},
    {.doc = {"relu-derivative", "the derivative of relu(H)^2 is taken as relu's: 1 where H > 0", "backward"},
     .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_DPRE, .row = et_not_squared_slope}}},
    {.doc = {"activation-for-relu", "the derivative of relu(H)^2 is taken as 2 A, not 2 relu(H)", "backward"},
     .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_DPRE, .row = through_activation}}},
    {.doc = {"dw-from-weighted", "dw is taken from the weighted output: <dy, w f(x)>", "backward"},
     .applies = et_is_moe, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_DWEIGHT, .row = dw_of_weighted}}},
    {.doc = {"weight-missing-in-dO", "dO = dy: the weight is missing", "backward"},
     .applies = et_is_moe, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_DOUT, .row = et_dO_unweighted}}},
    {.doc = {"weight-twice-in-dO", "dO = w w dy: the weight is applied twice", "backward"},
     .applies = et_is_moe, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_DOUT, .row = et_dO_weighted_twice}}},
    {.doc = {"neighbour-expert-backward", "dA and dx are computed with the neighbouring expert's weights", "backward"},
     .applies = et_has_many_experts, .variants = {"expert i+1", "expert i-1"},
     .hooks = {{.at = ET_AT_DACT, .rows = neighbours_weights}, {.at = ET_AT_SLOT_DX, .rows = neighbours_weights}}},
    {.doc = {"token-order-up", "dW_up takes the rows of x in the wrong order", "backward"},
     .applies = et_is_moe, .variants = {"the slot's number for its token", "the row's number for its token", "the order of token_slots", "from the last to the first"},
     .hooks = {{.at = ET_AT_DUP, .rows = x_in_wrong_order}}},
    {.doc = {"token-order-down", "dW_down takes the rows of dy in the wrong order", "backward"},
     .applies = et_is_moe, .variants = {"the slot's number for its token", "the row's number for its token", "the order of token_slots", "from the last to the first"},
     .hooks = {{.at = ET_AT_DDOWN, .rows = dy_in_wrong_order}}},
    {.doc = {"last-token-in-dw", "an expert's last token is missing in its weight gradients", "backward"},
     .variants = {"", "dW_up alone", "dW_down alone"},
     .hooks = {{.at = ET_AT_DUP, .variants = 3, .rows = without_last_token}, {.at = ET_AT_DDOWN, .variants = 5, .rows = without_last_token}}},
    {.doc = {"gradient-averaged", "weight gradients are means, not sums, over tokens", "backward"},
     .variants = {"over the expert's tokens", "over all tokens"},
     .hooks = {{.at = ET_AT_DUP, .rows = averaged}, {.at = ET_AT_DDOWN, .rows = averaged}, {.at = ET_AT_DROUTER, .variants = 2, .whole = averaged_router}}},
    {.doc = {"down-before-square", "dW_down is taken from what is squared, not from A", "backward"},
     .variants = {"relu(H)", "H"}, .hooks = {{.at = ET_AT_DDOWN, .rows = before_square}}},
    {.doc = {"empty-expert-gradient", "the weight gradients of an expert without tokens are not zeroed", "backward"},
     .applies = has_empty_expert, .variants = ET_ONE_FORM,
     .hooks = {{.at = ET_AT_DUP, .whole = stale}, {.at = ET_AT_DDOWN, .whole = stale}}},
};
/* clang-format on */

const et_faults et_backward_faults = ET_FAULTS(table);
