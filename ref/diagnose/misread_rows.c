/* misread_rows.c: is a wrong row the product of right numbers that do not belong together?
 *
 * A slot (t, e) of H, V, f(x) or dA is one row times its expert's weights:
 *
 *     H = x_t W_up[e]' + b_up     V = x_t W_gate[e]' + b_gate     f(x) = A W_down[e]' + b_down     dA = dO W_down[e]
 *
 * It is looked for among the same row's products with other experts' weights, and, of H and V, among other tokens'
 * products with the same weights. Factors are left aside, such as a weight on the input: directions are compared, of the
 * first columns, which tell a row from 100,000 others.
 */
#include "ref/diagnose/diagnosis.h"

enum { COMPARED = 16 };

/* The products of one stage: sums over K of left[k] W[e][c * column + k * term], and a bias. */
typedef struct products {
    const et_real *left, *W, *bias;
    size_t K, columns, column, term;
} products;

static products products_at(const et_diagnosis *q, const et_observed *x, size_t slot, size_t token)
{
    const et_step *s = q->right;
    size_t d = s->c.d_model, h = s->c.d_expert;
    const et_real *own = s->in.x + token * d;
    switch (x->stage) {
    case ET_AT_PRE: return (products){own, s->in.up, s->in.b_up, d, h, d, 1};
    case ET_AT_GATE_PRE: return (products){own, s->in.gating, s->in.b_gate, d, h, d, 1};
    case ET_AT_OUT: return (products){s->fwd.slot_act + slot * h, s->in.down, s->in.b_down, h, d, h, 1};
    case ET_AT_DACT: return (products){s->bwd.slot_out + slot * d, s->in.down, NULL, d, h, 1, h};
    default: return (products){0};
    }
}

/* Does the candidate's row point where `left` by expert e's weights does? By the measure of unexplained.c. */
static bool is_product_of(const et_observed *x, size_t row, const products *p, const et_real *left, size_t e)
{
    double gg = 0, gv = 0, vv = 0, error = 0;
    for (size_t c = 0; c < x->columns && c < COMPARED; c++) {
        const et_real *W = p->W + e * p->K * p->columns + c * p->column;
        double v = 0, g = et_tensor_element(x->got, row * x->columns + c);
        double off = g - (double)((const et_real *)x->right)[row * x->columns + c];
        for (size_t k = 0; k < p->K; k++) v += (double)left[k] * (double)W[k * p->term];
        if (p->bias) g -= (double)p->bias[e * p->columns + c];
        gg += g * g, gv += g * v, vv += v * v, error += off * off;
    }
    double rest = vv > 0 ? gg - gv * gv / vv : gg;
    return gg > 0 && 100 * rest <= gg && 25 * rest <= error;
}

bool et_is_misread(const et_diagnosis *q, const et_observed *x, size_t row, et_owner *as)
{
    const et_step *s = q->right;
    if (s->c.layer != ET_MOE || et_is_shared(x) || x->columns < ET_TELLING_COLUMNS) return false;
    et_owner own = et_owner_of(q, x, row, 0);
    const products p = products_at(q, x, row, own.token);
    if (p.left == NULL || p.W == NULL) return false;
    *as = own;
    for (as->expert = 0; as->expert < s->c.experts; as->expert++)
        if (as->expert != own.expert && is_product_of(x, row, &p, p.left, as->expert)) return true;
    as->expert = own.expert;
    bool reads_x = x->stage == ET_AT_PRE || x->stage == ET_AT_GATE_PRE;
    for (as->token = 0; reads_x && as->token < s->c.tokens; as->token++)
        if (as->token != own.token && is_product_of(x, row, &p, s->in.x + as->token * p.K, own.expert))
            return true;
    return false;
}
