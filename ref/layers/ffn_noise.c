/* ffn_noise.c: the variance of an expert's errors, forward and backward. See etref/ffn.h.
 *
 * A kernel rounds H, A and f(x) when it stores them, and its sums as it goes. Errors of different
 * places are independent; to first order each travels on by the derivative of what follows, so
 * variances travel by its square:
 *
 *   V[H] = acc(H) + site(H)                      (+ V[x] (W o W)' where x had to be rounded)
 *   V[A] = 4 R^2 V[H] + 2 V[H]^2 + site(A)       R = relu(H); (H+e)^2 - H^2 = 2He + e^2; but at
 *                                                the bend no less than its tail needs (rounding.h)
 *   V[f] = V[A] (W_down o W_down)' + acc(f) + site(f)
 *
 * Where errors are not independent they add up before they are squared. What is known to err alike: tokens
 * with the same x (twins.h, backward below), hidden units with the same weights (with_copies), all units,
 * where the weights have a common direction (common_noise), all of a row of dO (find_one_factor), tokens with
 * the same or a parallel dy (alike_upstream_noise).
 *
 * At H <= 0 the reference's A is 0, but where H is within 6 deviations of 0 the kernel's H may be
 * positive, and its A is e^2.
 */
#include "etref/ffn.h"
#include "ref/base/arithmetic.h"
#include "ref/base/memory.h"
#include "ref/base/parallel.h"
#include "ref/base/product_noise.h"
#include "ref/base/rounding.h"
#include "ref/layers/twins.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

/* dA/dH = 2 R */
static et_real slope(et_real H)
{
    return H > 0 ? 2 * H : 0;
}

/* variance += the error of rounding each value at this place. */
static void round_at(const et_profile *p, et_place place, size_t count, const et_real *value,
                     et_real *variance)
{
    const rounding r = et_rounding_at(p, place);
#pragma omp parallel for if (et_worth_threads(count))
    for (size_t i = 0; i < count; i++)
        variance[i] += (et_real)rounding_site(&r, (double)value[i], (double)variance[i]);
}

/* What an intermediate brings into a product: V[value], and the error of rounding it once more where
 * operands are shorter than intermediates. `to` is written only then; returns the one to use. */
static const et_real *as_operand(const et_profile *p, size_t count, const et_real *value,
                                 const et_real *variance, et_real *to)
{
    if (p->bits[ET_OPERANDS] >= p->bits[ET_INTERMEDIATES]) return variance;
    if (to != variance) memcpy(to, variance, count * sizeof *to);
    round_at(p, ET_OPERANDS, count, value, to);
    return to;
}

/* A sum over hidden units counts V[A_j] as many times as there are copies of the unit (twins.h), which is
 * what (sum W)^2 is at most of sum W^2; and so with dH. `to` is written only where there are any. Returns the
 * one to use. */
static const et_real *with_copies(size_t m, size_t h, const et_copies *copies, const et_real *V,
                                  et_real *to)
{
    if (!copies->of) return V;
#pragma omp parallel for if (et_worth_threads(m * h))
    for (size_t i = 0; i < m * h; i++) to[i] = V[i] * copies->of[i % h];
    return to;
}

/* Can a kernel's H be positive, where it is `value` with this variance? */
static bool may_be_positive(double value, double variance)
{
    return value + rounding_tail * sqrt(variance) > 0;
}

static void activation_noise(size_t count, const et_real *H, const et_real *VH, et_real *VA)
{
#pragma omp parallel for if (et_worth_threads(count))
    for (size_t i = 0; i < count; i++) {
        double s = (double)slope(H[i]), v = (double)VH[i], r = s / 2;
        double most = larger((double)H[i] + rounding_tail * sqrt(v), 0);
        double near = H[i] > 0 ? s * s * v + 2 * v * v : 0;
        VA[i] = (et_real)larger(near, rounding_reaches(most * most - r * r));
    }
}

static double mean_of(size_t count, const et_real *values)
{
    double sum = 0;
    for (size_t i = 0; i < count; i++) sum += (double)values[i];
    return sum / (double)count;
}

/* V [m,d] += (sum_j by_j along_j W_jc)^2 times the mean of VX's row: an error of X [m,d] that moves all units along
 * their common direction (twins.h) reaches them all at once, each by a factor of by [m,h]. W [h,d]. */
static et_status common_noise(const et_ffn *f, size_t m, const et_real *by, const et_real *along,
                              const et_real *VX, et_matrix W, et_real *V, et_error *error)
{
    size_t d = f->d, h = f->h;
    void *room;
    et_status status = et_allocate(&room, m * (h + d), sizeof(et_real), "common noise", error);
    if (status != ET_OK) return status;
    et_real *moved = room, *sum = moved + m * h;
    for (size_t t = 0; t < m; t++) {
        et_real deviation = (et_real)sqrt(mean_of(d, VX + t * d));
        for (size_t j = 0; j < h; j++) moved[t * h + j] = by[t * h + j] * along[j] * deviation;
    }
    et_matmul(f->engine, m, d, h, et_rows(moved, h), W, false, sum, d);
    for (size_t i = 0; i < m * d; i++) V[i] += sum[i] * sum[i];
    free(room);
    return ET_OK;
}

et_status et_ffn_noise(const et_ffn *f, const et_profile *p, et_ffn_parameter_noise W, size_t m,
                       const et_ffn_tensors *v, et_ffn_tensors *V, struct et_product_room *room,
                       et_error *error)
{
    ET_ARITHMETIC;
    size_t d = f->d, h = f->h;
    void *operand;
    et_real *along = NULL;
    et_copies copies = {0};
    et_status status = et_allocate(&operand, m * h, sizeof(et_real), "operand noise", error);
    if (status != ET_OK) return status;
    if ((status = et_find_copies(&copies, h, d, f->up, error)) != ET_OK) goto out;
    et_noisy x = {et_rows(v->x, d), V->x, NULL, 0};
    et_noisy up = {et_transposed(f->up, d), W.up, NULL, 0};
    status = et_product_noise(f->engine, p, room, m, h, d, x, up, v->H, ET_INTERMEDIATES, false,
                              V->H, error);
    if (status != ET_OK) goto out;
    activation_noise(m * h, v->H, V->H, V->A);
    round_at(p, ET_INTERMEDIATES, m * h, v->A, V->A);
    const et_real *VA = as_operand(p, m * h, v->A, V->A, operand);
    et_noisy A = {et_rows(v->A, h), with_copies(m, h, &copies, VA, operand), NULL, copies.mean};
    et_noisy down = {et_transposed(f->down, h), W.down, NULL, 0};
    status = et_product_noise(f->engine, p, room, m, d, h, A, down, v->out, ET_INTERMEDIATES, false,
                              V->out, error);
    if (status != ET_OK || !V->x ||
        (status = et_find_common(&along, h, d, et_rows(f->up, d), error)))
        goto out;
    et_real *slopes = operand;
    for (size_t i = 0; along && i < m * h; i++) slopes[i] = slope(v->H[i]);
    if (along)
        status = common_noise(f, m, slopes, along, V->x, et_transposed(f->down, h), V->out, error);
out:
    free(operand);
    free(along);
    et_free_copies(&copies);
    return status;
}

/* Backward, with g = dy W_down, the gradient before its weight: dA = w g. Errors of the weight w and
 * of H are those of the forward pass, and come back coherently:
 *
 *   V[dO] = dy^2 V[w] + site(dO)
 *   V[dA] = g^2 V[w] + site(dO) (W_down o W_down) + acc(dA) + site(dA)
 *   V[dH] = 4 R^2 V[dA] + [H > -6 deviations] 4 (dA^2 + 8 V[dA]) V[H] + site(dH)
 *   V[dW_down] = V[dO]' (A o A) + (dO o dO)' V[A] + acc + site
 *   V[dW_up]   = V[dH]' (x o x) + (dH o dH)' V[x] + acc + site
 *   V[dx]      = V[dH] (W_up o W_up) + acc                 (this expert's share; rounded with the rest)
 *   V[dw]      = sum_j g_j^2 V[A_j] + sum_c dy_c^2 (acc + site)(f_c) + acc(dw)
 *
 * The 8 V[H] V[dA] of V[dH] is the product of both errors, which reaches 23 products of deviations as seldom
 * as a normal error its 6 deviations: 8 of its own, then.
 *
 * The last line: an error of A_j reaches every f_c at once, so it must be followed to dw as a whole;
 * what f adds of its own is independent from column to column.
 *
 * dx and dw share the error of H: 2 dA_j W_up,jc of it goes to dx_c, 2 R_j g_j to dw, and dw reaches dx
 * once more through the router. With inputs of mean 2 that correlation is worth a factor 1.2 in dx:
 *   cov(dx_c, dw) = 4 sum_j dA_j g_j R_j V[H_j] W_up,jc
 *
 * Twins. Tokens with the same x make the same errors in H, A, f and w: their contributions to a weight
 * gradient add up before they are squared, (sum dO)^2 V[A] in place of sum dO^2 V[A]. Where dy is the
 * same, too, all errors are. A twin's sum stands in the row of the first of them, and 0 in the others.
 * What they share is the rounding of a stored H. Their sums may be taken in different orders, in another
 * tile of the product; so where acc(H) is no small part of V[H], that part counts for each by itself.
 */

/* to[leader of row t] += rows[t], and 0 for all but leaders. */
static void sum_by_leader(size_t m, size_t columns, const int32_t *leader, const et_real *rows,
                          et_real *to)
{
    enum { BLOCK = 64 }; /* of columns: a leader's sum stays with one thread */
#pragma omp parallel for if (et_worth_threads(m * columns))
    for (size_t c = 0; c < columns; c += BLOCK) {
        size_t end = c + BLOCK < columns ? c + BLOCK : columns;
        for (size_t t = 0; t < m; t++) memset(to + t * columns + c, 0, (end - c) * sizeof *to);
        for (size_t t = 0; t < m; t++)
            for (size_t k = c; k < end; k++)
                to[(size_t)leader[t] * columns + k] += rows[t * columns + k];
    }
}

/* Scratch of the backward noise, and the parts of V[dO] and V[dH] by where they come from. */
typedef struct parts {
    et_real *g;            /* [m,h] */
    et_real *dO_own;       /* [m,d] site(dO) */
    et_real *dH_own;       /* [m,h] all of V[dH] that the backward pass makes itself */
    et_real *left, *right; /* [m,max(d,h)] twice */
    et_real *sum;
    et_real *apart;      /* [m] the part of a row's forward errors that its twins do not share */
    et_real *one_factor; /* [m] variance of the factor by which all of a row of dO errs; mostly 0 */
    et_real *along_up, *along_down; /* [h] of W_up's rows, W_down's columns; or NULL (twins.h) */
    const et_real *own; /* [m,d] dO_own, rounded as an operand: in `rounded`, if it is */
    et_real *rounded;
    et_copies copies, outputs; /* of hidden units; of columns of f, by the rows of W_down */
    int32_t *same, *next;      /* [m] the first row with the same dO; the next such row, or -1 */
    size_t different;          /* rows of dO */
    bool one_upstream;         /* dy has one main direction, */
    et_real *main, *z;         /* [d] this one, and [m] that much of each row lies along it */
    void *room;
} parts;

static et_status take_parts(parts *s, size_t m, size_t d, size_t h, et_error *error)
{
    size_t most = d > h ? d : h;
    void *same;
    *s = (parts){0};
    et_status status = et_allocate(&s->room, m * (2 * h + 2 * d + 3 * most + 3) + d,
                                   sizeof(et_real), "gradient noise", error);
    if (status == ET_OK) status = et_allocate(&same, 2 * m, sizeof(int32_t), "equal rows", error);
    if (status != ET_OK) {
        free(s->room);
        return status;
    }
    s->same = same;
    s->next = s->same + m;
    s->g = s->room;
    s->dH_own = s->g + m * h;
    s->dO_own = s->dH_own + m * h;
    s->rounded = s->dO_own + m * d;
    s->left = s->rounded + m * d;
    s->right = s->left + m * most;
    s->sum = s->right + m * most;
    s->apart = s->sum + m * most;
    s->one_factor = s->apart + m;
    s->z = s->one_factor + m;
    s->main = s->z + m;
    return ET_OK;
}

static void free_parts(parts *s)
{
    free(s->room);
    free(s->same);
    free(s->along_up);
    free(s->along_down);
    et_free_copies(&s->copies);
    et_free_copies(&s->outputs);
}

/* g = dA / w, or dy W_down where the weight is 0. */
static void unweighted_gradient(const et_ffn *f, size_t m, const et_upstream *u, const et_real *dA,
                                et_real *g)
{
#pragma omp parallel for if (et_worth_threads(m * f->h))
    for (size_t t = 0; t < m; t++) {
        et_real w = u->w ? u->w[t] : 1;
        for (size_t j = 0; w != 0 && j < f->h; j++) g[t * f->h + j] = dA[t * f->h + j] / w;
        if (w == 0)
            et_matmul(f->engine, 1, f->h, f->d, et_rows(u->dy + t * f->d, f->d),
                      et_rows(f->down, f->h), false, g + t * f->h, f->h);
    }
}

/* The rounding of dO = w dy. dy is exact and w nearly, so that this error is no matter of chance: it is
 * what is missing to the nearest number of the format, or, where w's error pushes dO over the middle between
 * two, what is missing to the other. It matters where w is close to 1 (a saturated gate), and dO rounds to dy
 * itself. Where w errs by an eighth of an ulp and more, the error is uniform like any other. A w that was
 * rounded to 1 has already made it. */
static double product_site(const rounding *r, double dO, double from_w)
{
    double uniform = rounding_site(r, dO, from_w), ulp = rounding_ulp(r, dO);
    if (64 * from_w > ulp * ulp || r->ftz || uniform == 0) return uniform;
    double nearest = fabs(nearbyint(dO / ulp) * ulp - dO), other = ulp - nearest;
    double to_the_middle = 0.5 * ulp - nearest, own = nearest * nearest;
    if (to_the_middle < rounding_tail * sqrt(from_w)) {
        double over = 0.5 * erfc(to_the_middle / sqrt(2 * from_w));
        own = larger((1 - over) * own + over * other * other, rounding_reaches(other));
    }
    return larger(own - from_w, 0);
}

/* What comes after the weight has errors in proportion to it: w^2 + V[w] in place of w^2 matters for a
 * weight that may be anything (saturated gates whose logits err by much). Below the smallest normal
 * number errors are proportional to nothing. */
static double beyond_weight(const et_profile *p, double w, double Vw)
{
    double relative = sqrt(Vw) / fmax(w, et_place_smallest(p, ET_ACCUMULATOR));
    return 1 + relative * relative;
}

/* A kernel that weighs later rounds dy, in the place of w dy, and in the end errs by that. One that was given
 * its dy in the format of intermediates (autograd, where y is) rounds both. So where dy has to be rounded and w dy
 * is something else, the error is taken as uniform, and a fifth of dy's variance added: a kernel that rounds once
 * comes out at 0.91 of its bar, one that rounds twice at 1.29. */
static double upstream_site(const rounding *intermediate, const rounding *operand, double w,
                            double dy, double dO, double from_w)
{
    double before = w * rounding_moves(operand, dy);
    double of_dy = w == 1 ? 0 : w * w * rounding_site(intermediate, dy, 0);
    double own = of_dy > 0 ? rounding_site(intermediate, dO, from_w) + of_dy / 5
                           : product_site(intermediate, dO, from_w);
    return larger(own, rounding_reaches(before));
}

static void upstream_noise(const et_profile *p, size_t m, size_t d, const et_upstream *u,
                           const et_real *dO, parts *s, et_real *VdO)
{
    const rounding r = et_rounding_at(p, ET_INTERMEDIATES), operand = et_rounding_at(p, ET_OPERANDS);
#pragma omp parallel for if (et_worth_threads(m * d))
    for (size_t t = 0; t < m; t++) {
        double w = u->w ? (double)u->w[t] : 1, Vw = u->w ? (double)u->w_variance[t] : 0;
        double more = beyond_weight(p, w, Vw);
        for (size_t i = t * d; i < (t + 1) * d; i++) {
            double dy = (double)u->dy[i], from_w = dy * dy * Vw;
            double own = upstream_site(&r, &operand, w, dy, (double)dO[i], from_w);
            s->dO_own[i] = (et_real)own;
            VdO[i] = (et_real)(from_w + more * own);
        }
    }
}

/* to = own, dO's variance for the product. Where all of a row's numbers have one size (dy = 1, the gradient of
 * a sum) they are all rounded by the same factor, and so is dA: V of that factor, and next to nothing in that
 * row of `to`. It is nothing only where dO has no error at all, not from w either: sums may be exact then. */
static void find_one_factor(size_t m, size_t d, const et_upstream *u, const et_real *dO,
                            const et_real *own, et_real *to, et_real *one_factor)
{
    const double next_to_nothing = 1e-20;
#pragma omp parallel for if (et_worth_threads(m * d))
    for (size_t t = 0; t < m; t++) {
        double size = 0, variance = 0;
        bool one_size = true;
        for (size_t i = t * d; i < (t + 1) * d && one_size; i++) {
            double value = fabs((double)dO[i]);
            one_size = value == 0 || size == 0 || value == size;
            if (value != 0) size = value, variance = (double)own[i];
        }
        one_factor[t] = (et_real)(one_size && size > 0 ? variance / (size * size) : 0);
        bool replaced = one_size && (one_factor[t] > 0 || (u->w && u->w_variance[t] > 0));
        for (size_t i = t * d; i < (t + 1) * d; i++)
            to[i] = replaced ? (et_real)(next_to_nothing * (double)(dO[i] * dO[i])) : own[i];
    }
}

/* V[dA], V[dH] from the product's noise, which stands in VdA. */
static void activation_backward_noise(const et_profile *p, size_t m, size_t h, const et_upstream *u,
                                      const et_ffn_tensors *v, parts *s, et_ffn_tensors *V)
{
    const rounding r = et_rounding_at(p, ET_INTERMEDIATES);
#pragma omp parallel for if (et_worth_threads(m * h))
    for (size_t t = 0; t < m; t++) {
        double w = u->w ? (double)u->w[t] : 1, Vw = u->w ? (double)u->w_variance[t] : 0;
        double more = beyond_weight(p, w, Vw);
        for (size_t i = t * h; i < (t + 1) * h; i++) {
            double g = (double)s->g[i], dA = (double)v->dA[i], slant = (double)slope(v->H[i]);
            double from_w = g * g * Vw;
            double own = more * ((double)V->dA[i] + (double)s->one_factor[t] * dA * dA);
            own += rounding_site(&r, dA, own + from_w);
            V->dA[i] = (et_real)(from_w + own);
            double VH = (double)V->H[i], VA = (double)V->dA[i];
            double from_H = may_be_positive((double)v->H[i], VH) ? 4 * (dA * dA + 8 * VA) * VH : 0;
            double dH = from_H + slant * slant * (from_w + own);
            double site = rounding_site(&r, (double)v->dH[i], dH);
            s->dH_own[i] = (et_real)(slant * slant * own + site);
            V->dH[i] = (et_real)(dH + site);
        }
    }
}

/* Row by row, the part of V[A] whose H errs by its sum rather than by its rounding: from a quarter of V[H]
 * on, all of it, since H then rounds to other numbers. */
static void find_apart(const et_profile *p, size_t m, size_t h, const et_ffn_tensors *v,
                       const et_ffn_tensors *V, et_real *apart)
{
    const rounding r = et_rounding_at(p, ET_INTERMEDIATES);
#pragma omp parallel for if (et_worth_threads(m * h))
    for (size_t t = 0; t < m; t++) {
        double all = 0, own = 0;
        for (size_t i = t * h; i < (t + 1) * h; i++) {
            double VH = (double)V->H[i],
                   acc = larger(VH - rounding_site(&r, (double)v->H[i], 1), 0);
            all += (double)V->A[i];
            if (VH > 0) own += (double)V->A[i] * (4 * acc < VH ? 4 * acc / VH : 1);
        }
        apart[t] = (et_real)(all > 0 ? own / all : 0);
    }
}

/* to = sqrt(own + what is rounded to operands): twins round alike there, too. V is all of the variance. */
static void own_deviations(const et_profile *p, size_t count, const et_real *value,
                           const et_real *V, const et_real *own, et_real *to)
{
    const rounding r = et_rounding_at(p, ET_OPERANDS);
    bool shorter = p->bits[ET_OPERANDS] < p->bits[ET_INTERMEDIATES];
#pragma omp parallel for if (et_worth_threads(count))
    for (size_t i = 0; i < count; i++) {
        double operand = shorter ? rounding_site(&r, (double)value[i], (double)V[i]) : 0;
        to[i] = (et_real)sqrt((double)own[i] + operand);
    }
}

/* What stands in place of V[dO] where rows have twins: (sum dy)^2 V[w] + (sum of own deviations)^2. */
static void twin_upstream(const et_profile *p, size_t m, size_t d, const et_upstream *u,
                          const et_twins *twins, const et_ffn_tensors *v, const et_ffn_tensors *V,
                          parts *s)
{
    et_real *own = s->right;
    own_deviations(p, m * d, v->dO, V->dO, s->dO_own, own);
    sum_by_leader(m, d, twins->both, own, s->left);
#pragma omp parallel for if (et_worth_threads(m * d))
    for (size_t i = 0; i < m * d; i++) s->left[i] *= s->left[i];
    if (!u->w) return;
    sum_by_leader(m, d, twins->input, u->dy, s->right);
#pragma omp parallel for if (et_worth_threads(m * d))
    for (size_t t = 0; t < m; t++)
        for (size_t i = t * d; i < (t + 1) * d; i++)
            s->left[i] += s->right[i] * s->right[i] * u->w_variance[t];
}

/* The same for V[dH]: (sum 2 dA)^2 V[H] + (sum 2 R g)^2 V[w] + (sum of own deviations)^2. */
static void twin_hidden(const et_profile *p, size_t m, size_t h, const et_upstream *u,
                        const et_twins *twins, const et_ffn_tensors *v, const et_ffn_tensors *V,
                        parts *s)
{
    et_real *row = s->right;
    own_deviations(p, m * h, v->dH, V->dH, s->dH_own, row);
    sum_by_leader(m, h, twins->both, row, s->left);
#pragma omp parallel for if (et_worth_threads(m * h))
    for (size_t i = 0; i < m * h; i++) {
        s->left[i] *= s->left[i];
        row[i] = may_be_positive((double)v->H[i], (double)V->H[i]) ? 2 * v->dA[i] : 0;
    }
    sum_by_leader(m, h, twins->input, row, s->sum);
#pragma omp parallel for if (et_worth_threads(m * h))
    for (size_t t = 0; t < m; t++)
        for (size_t i = t * h; i < (t + 1) * h; i++) {
            s->left[i] += (s->sum[i] * s->sum[i] + s->apart[t] * row[i] * row[i]) * V->H[i];
            row[i] = slope(v->H[i]) * s->g[i];
        }
    if (!u->w) return;
    sum_by_leader(m, h, twins->input, row, s->sum);
#pragma omp parallel for if (et_worth_threads(m * h))
    for (size_t t = 0; t < m; t++)
        for (size_t i = t * h; i < (t + 1) * h; i++)
            s->left[i] += s->sum[i] * s->sum[i] * u->w_variance[t];
}

/* (sum of rows of the same input)^2, for the operand whose partner's error they share; and each row's own
 * square, for the part of it, `apart` (NULL: none), that they do not. */
static const et_real *twin_squares(size_t m, size_t columns, const et_twins *twins,
                                   const et_real *rows, const et_real *apart, et_real *to)
{
    sum_by_leader(m, columns, twins->input, rows, to);
#pragma omp parallel for if (et_worth_threads(m * columns))
    for (size_t t = 0; t < m; t++)
        for (size_t i = t * columns; i < (t + 1) * columns; i++) {
            to[i] *= to[i];
            if (apart) to[i] += apart[t] * rows[i] * rows[i];
        }
    return to;
}

/* How many rows are like each one, on the average; `count` [m] is scratch. */
static double mean_twins(size_t m, const int32_t *leader, et_real *count)
{
    double sum = 0;
    for (size_t t = 0; t < m; t++) count[t] = 0;
    for (size_t t = 0; t < m; t++) count[leader[t]]++;
    for (size_t t = 0; t < m; t++) sum += (double)(count[t] * count[t]);
    return m > 0 ? sum / (double)m : 1;
}

/* Lists of equal rows. */
static et_status list_equal(size_t m, size_t d, const et_real *rows, parts *s, et_error *error)
{
    et_status status = et_find_equal_rows(m, d, rows, false, s->same, &s->different, error);
    if (status != ET_OK) return status;
    for (size_t t = 0; t < m; t++) s->next[t] = -1;
    for (size_t t = m; t-- > 0;) {
        int32_t first = s->same[t];
        if (first == (int32_t)t) continue;
        s->next[t] = s->next[first];
        s->next[first] = (int32_t)t;
    }
    return ET_OK;
}

static bool is_first_of_some(const parts *s, size_t t)
{
    return s->same[t] == (int32_t)t && s->next[t] >= 0;
}

/* more [h,d] = (sum_t a_tj x_tc)^2 - sum_t (a_tj x_tc)^2 over n rows, 0 where that is negative. a [n,h] and x [n,d]
 * are squared on the way; squares [h,d] is scratch. */
static void sum_along(const et_ffn *f, size_t n, et_real *a, et_real *x, et_real *more,
                      et_real *squares)
{
    size_t d = f->d, h = f->h;
    et_matmul(f->engine, h, d, n, et_transposed(a, h), et_rows(x, d), false, more, d);
    for (size_t i = 0; i < n * h; i++) a[i] *= a[i];
    for (size_t i = 0; i < n * d; i++) x[i] *= x[i];
    et_matmul(f->engine, h, d, n, et_transposed(a, h), et_rows(x, d), false, squares, d);
#pragma omp parallel for if (et_worth_threads(h * d))
    for (size_t i = 0; i < h * d; i++)
        more[i] = (et_real)larger((double)more[i] * (double)more[i] - (double)squares[i], 0);
}

/* Rows with the same dO (dy = 1, the gradient of a sum, and a weight of 1 or none) round it alike, and dA as
 * well. In the weights' gradients these errors add up before they are squared:
 *
 *     V[dW_down_cj] += own(dO_c) ((sum A_j)^2 - sum A_j^2)
 *     V[dW_up_jc]   += own(dA_j) more_jc                  more: sum_along, a = 2 R */
static void same_in_down(const et_ffn *f, size_t m, const et_ffn_tensors *v, et_ffn_tensors *V,
                         parts *s)
{
    size_t d = f->d, h = f->h;
    sum_by_leader(m, h, s->same, v->A, s->right);
    for (size_t i = 0; i < m * h; i++) s->right[i] *= s->right[i];
    for (size_t i = 0; i < m * h; i++)
        s->right[(size_t)s->same[i / h] * h + i % h] -= v->A[i] * v->A[i];
    et_matmul(f->engine, d, h, m, et_transposed(s->own, d), et_rows(s->right, h), true, V->ddown,
              h);
}

static void same_upstream_noise(const et_ffn *f, size_t m, const et_upstream *u,
                                const et_ffn_tensors *v, et_ffn_tensors *V, parts *s, et_real *more,
                                et_real *squares)
{
    size_t d = f->d, h = f->h;
    same_in_down(f, m, v, V, s);
    for (size_t t = 0; t < m; t++) {
        size_t n = 0;
        if (!is_first_of_some(s, t)) continue;
        for (int32_t k = (int32_t)t; k >= 0; k = s->next[k], n++) {
            memcpy(s->right + n * d, v->x + (size_t)k * d, d * sizeof *s->right);
            for (size_t j = 0; j < h; j++) s->left[n * h + j] = slope(v->H[(size_t)k * h + j]);
        }
        sum_along(f, n, s->left, s->right, more, squares);
        double Vw = u->w ? (double)u->w_variance[t] : 0;
        for (size_t j = 0; j < h; j++) {
            double g = (double)s->g[t * h + j];
            double own = larger((double)V->dA[t * h + j] - g * g * Vw, 0);
            for (size_t i = j * d; i < (j + 1) * d; i++)
                V->dup[i] += (et_real)(own * (double)more[i]);
        }
    }
}

/* 2 [H > 0] times the deviation of H that the rounding of W_up makes, [m,h]; `squares` [m,d] is scratch. */
static void moved_by_weights(const et_ffn *f, size_t m, const et_real *up_variance,
                             const et_ffn_tensors *v, et_real *squares, et_real *moved)
{
    for (size_t i = 0; i < m * f->d; i++) squares[i] = v->x[i] * v->x[i];
    et_matmul(f->engine, m, f->h, f->d, et_rows(squares, f->d), et_transposed(up_variance, f->d),
              false, moved, f->h);
    for (size_t i = 0; i < m * f->h; i++)
        moved[i] = v->H[i] > 0 ? 2 * (et_real)sqrt(larger((double)moved[i], 0)) : 0;
}

/* As far as dy has one direction, dy_t = z_t main (dy = 1 in all rows, or not about 0), all dA err along w z times
 * the same vector where W_down had to be rounded; and the errors of W_up come back to all A along with them:
 *
 *     V[dW_up_jc]   += (sum_c' main_c'^2 V[W_down_c'j]) more_jc          more: sum_along, a = 2 R w z
 *     V[dW_down_cj] += main_c^2 sum_c' V[W_up_jc'] more_jc' */
static void from_weights(const et_ffn *f, et_ffn_parameter_noise W, const et_real *main,
                         const et_real *more, et_ffn_tensors *V)
{
    size_t d = f->d, h = f->h;
#pragma omp parallel for if (et_worth_threads(h * d))
    for (size_t j = 0; j < h; j++) {
        double from_down = 0, from_up = 0;
        for (size_t c = 0; W.down && c < d; c++)
            from_down += (double)(main[c] * main[c] * W.down[c * h + j]);
        for (size_t c = 0; W.up && c < d; c++)
            from_up += (double)(W.up[j * d + c] * more[j * d + c]);
        for (size_t c = 0; c < d; c++) {
            V->dup[j * d + c] += (et_real)from_down * more[j * d + c];
            V->ddown[c * h + j] += (et_real)from_up * main[c] * main[c];
        }
    }
}

/* Besides, the errors of W_up move all H alike as far as x has one direction (inputs of mean 2), and dH with
 * them; moved NULL: W_up has none.
 *
 *     V[dW_up_jc] += (main W_down)_j^2 more_jc / directions of x           a = w z moved_by_weights */
static void one_upstream_noise(const et_ffn *f, et_ffn_parameter_noise W, size_t m,
                               const et_upstream *u, const et_real *moved, double directions,
                               const et_ffn_tensors *v, et_ffn_tensors *V, parts *s, et_real *more,
                               et_real *squares)
{
    size_t d = f->d, h = f->h;
    const et_real *main = s->main;
    for (size_t i = 0; i < m * h; i++)
        s->left[i] = slope(v->H[i]) * s->z[i / h] * (u->w ? u->w[i / h] : 1);
    memcpy(s->right, v->x, m * d * sizeof *s->right);
    sum_along(f, m, s->left, s->right, more, squares);
    from_weights(f, W, main, more, V);
    if (!moved) return;
    for (size_t i = 0; i < m * h; i++)
        s->left[i] = moved[i] * s->z[i / h] * (u->w ? u->w[i / h] : 1);
    memcpy(s->right, v->x, m * d * sizeof *s->right);
    sum_along(f, m, s->left, s->right, more, squares);
    for (size_t j = 0; j < h; j++) {
        double g = 0;
        for (size_t c = 0; c < d; c++) g += (double)(main[c] * f->down[c * h + j]);
        for (size_t i = j * d; i < (j + 1) * d; i++)
            V->dup[i] += (et_real)(g * g * (double)more[i] / directions);
    }
}

/* z and main of dy, if it has so few directions that chance does not make them; else z = 0. */
static et_status find_one_upstream(size_t m, size_t d, const et_real *dy, parts *s, et_error *error)
{
    double directions, few = 1 + fmin(8, (double)(m < d ? m : d) / 8);
    et_status status = et_find_directions(&directions, m, d, dy, s->main, error);
    if (status != ET_OK) return status;
    s->one_upstream = m > 1 && directions < few;
    for (size_t t = 0; t < m; t++) {
        s->z[t] = 0;
        for (size_t c = 0; s->one_upstream && c < d; c++) s->z[t] += dy[t * d + c] * s->main[c];
    }
    return ET_OK;
}

/* What errs alike in the backward pass, by dO or dy: a sum of squares becomes the square of the sum, if that is
 * larger. */
static et_status alike_upstream_noise(const et_ffn *f, et_ffn_parameter_noise W, size_t m,
                                      const et_upstream *u, const et_ffn_tensors *v,
                                      et_ffn_tensors *V, parts *s, et_error *error)
{
    size_t size = f->h * f->d;
    double directions = 1;
    void *room;
    et_status status = list_equal(m, f->d, v->dO, s, error);
    if (status == ET_OK && (W.up || W.down)) status = find_one_upstream(m, f->d, u->dy, s, error);
    if (status == ET_OK && s->one_upstream)
        status = et_find_directions(&directions, m, f->d, v->x, NULL, error);
    if (status != ET_OK || (s->different == m && !s->one_upstream)) return status;
    status = et_allocate(&room, 2 * size + m * f->h, sizeof(et_real), "equal gradients", error);
    if (status != ET_OK) return status;
    et_real *more = room, *squares = more + size, *moved = W.up ? squares + size : NULL;
    if (s->different < m) same_upstream_noise(f, m, u, v, V, s, more, squares);
    if (s->one_upstream && moved) moved_by_weights(f, m, W.up, v, s->left, moved);
    if (s->one_upstream) one_upstream_noise(f, W, m, u, moved, directions, v, V, s, more, squares);
    free(room);
    return ET_OK;
}

/* V[dW_down] and V[dW_up]. */
static et_status weights_noise(const et_ffn *f, const et_profile *p, et_ffn_parameter_noise W,
                               size_t m, const et_upstream *u, const et_twins *twins,
                               const et_ffn_tensors *v, et_ffn_tensors *V, parts *s,
                               et_product_room *room, et_error *error)
{
    size_t d = f->d, h = f->h;
    et_noisy dO = {et_transposed(v->dO, d), V->dO, NULL, 0}, A = {et_rows(v->A, h), NULL, NULL, 0};
    if (twins) {
        find_apart(p, m, h, v, V, s->apart);
        twin_upstream(p, m, d, u, twins, v, V, s);
        dO.variance = s->left;
        dO.alike = mean_twins(m, twins->both, s->sum);
        dO.coherent = twin_squares(m, d, twins, v->dO, s->apart, s->sum);
    } else {
        dO.variance = as_operand(p, m * d, v->dO, dO.variance, s->left);
    }
    A.variance = as_operand(p, m * h, v->A, V->A, s->right);
    et_status status = et_product_noise(f->engine, p, room, d, h, m, dO, A, v->ddown, ET_OUTPUTS,
                                        false, V->ddown, error);
    if (status != ET_OK) return status;

    et_noisy dH = {et_transposed(v->dH, h), V->dH, NULL, 0}, x = {et_rows(v->x, d), V->x, NULL, 0};
    if (twins) {
        twin_hidden(p, m, h, u, twins, v, V, s);
        dH.variance = s->left;
        dH.alike = mean_twins(m, twins->both, s->sum);
        dH.coherent = twin_squares(m, h, twins, v->dH, NULL, s->sum);
    } else {
        dH.variance = as_operand(p, m * h, v->dH, dH.variance, s->left);
    }
    status = et_product_noise(f->engine, p, room, h, d, m, dH, x, v->dup, ET_OUTPUTS, false, V->dup,
                              error);
    return status == ET_OK ? alike_upstream_noise(f, W, m, u, v, V, s, error) : status;
}

/* (acc + site)(f_c) of one row, and what the rounding of W_down brings, from the mean square of each row
 * of W_down and its mean variance: sum_j A_j^2 W_cj^2 is near enough |A|^2 times it for a sum over c.
 * Exact elements have none. Where rows of W_down are alike, so are these errors, which then add up in dw. */
static void own_output_noise(const et_ffn *f, const et_profile *p, const et_real *mean_square,
                             const et_real *mean_noise, const et_copies *alike, const et_real *A,
                             const et_real *out, const et_real *Vout, et_real *own)
{
    const rounding r = et_rounding_at(p, ET_INTERMEDIATES);
    et_sum_noise c = et_sum_noise_of(p, f->h);
    double length = 0;
    for (size_t j = 0; j < f->h; j++) length += (double)A[j] * (double)A[j];
    for (size_t k = 0; k < f->d; k++) {
        double value = (double)out[k], V = (double)Vout[k];
        double acc = c.square * value * value + c.squares * length * (double)mean_square[k] +
                     length * (double)mean_noise[k];
        own[k] = (et_real)(V > 0 ? fmin(V, acc + rounding_site(&r, value, V)) : 0);
        if (alike->of) own[k] *= alike->of[k];
    }
}

/* (sum_j g_j slope(H_j) along_j)^2 times the mean of Vx [d]: see common_noise. */
static double common_in_dw(size_t d, size_t h, const et_real *g, const et_real *H,
                           const et_real *along, const et_real *Vx)
{
    double sum = 0;
    for (size_t j = 0; j < h; j++) sum += (double)(g[j] * slope(H[j]) * along[j]);
    return sum * sum * mean_of(d, Vx);
}

/* sum_j g_j^2 V[A_j] + sum_c dy_c^2 own_c */
static double through_expert(size_t d, size_t h, const et_real *g, const et_real *VA,
                             const et_real *dy, const et_real *own)
{
    double sum = 0;
    for (size_t j = 0; j < h; j++) sum += (double)g[j] * (double)g[j] * (double)VA[j];
    for (size_t c = 0; c < d; c++) sum += (double)dy[c] * (double)dy[c] * (double)own[c];
    return sum;
}

/* A kernel may take dw = <dA, A> instead of <dy, f(x)>, with dA = dy W_down of the rounded dy, and weigh dA later: then dw
 * has sum_c f_c^2 times the rounding of dy_c. Less than through_expert, but where f(x) is nearly the same in all columns,
 * and dy cancels in the sum. */
static double through_dA(const rounding *r, size_t d, const et_real *dy, const et_real *out)
{
    double sum = 0;
    for (size_t c = 0; c < d; c++)
        sum += (double)out[c] * (double)out[c] * rounding_site(r, (double)dy[c], 0);
    return sum;
}

/* acc of dw = sum_c dy_c f_c; 0 if that sum is exact. `terms` [d] is scratch: the thread's own. */
static double dot_noise(const et_profile *p, size_t d, const et_real *dy, const et_real *out,
                        double incoming, double *terms)
{
    et_sum_noise c = et_sum_noise_of(p, d);
    double value = 0, squares = 0;
    for (size_t k = 0; k < d; k++) {
        terms[k] = (double)dy[k] * (double)out[k];
        value += terms[k];
        squares += terms[k] * terms[k];
    }
    if (incoming == 0 && et_sum_is_exact(p, d, terms)) return 0;
    return c.square * value * value + c.squares * squares;
}

/* The mean of each row of W (power 1) or of its squares (power 2); W NULL: 0. */
static void row_means(size_t rows, size_t columns, const et_real *W, int power, et_real *to)
{
#pragma omp parallel for if (et_worth_threads(rows * columns))
    for (size_t i = 0; i < rows; i++) {
        double sum = 0;
        for (size_t j = 0; W && j < columns; j++) {
            double w = (double)W[i * columns + j];
            sum += power == 2 ? w * w : w;
        }
        to[i] = (et_real)(sum / (double)columns);
    }
}

/* The mean of a variance, NULL: 0. */
static double mean_or_0(size_t count, const et_real *V)
{
    return V ? mean_of(count, V) : 0;
}

/* weight->common, of what lies along dy's main direction: z^2 sum_cj main_c^2 A_j^2 V[W_down_cj]
 * + sum_jc (g_j slope(H_j) x_c)^2 V[W_up_jc]; with the mean of each V, that is near enough. */
static void find_common_dw(const et_ffn *f, et_ffn_parameter_noise W, size_t m,
                           const et_ffn_tensors *v, const parts *s, et_real *common)
{
    size_t d = f->d, h = f->h;
    double up = mean_or_0(h * d, W.up), down = mean_or_0(h * d, W.down);
    memset(common, 0, m * sizeof *common);
    for (size_t t = 0; s->one_upstream && t < m; t++) {
        double of_x = 0, of_A = 0, of_g = 0, z = (double)s->z[t];
        for (size_t c = 0; c < d; c++) of_x += (double)(v->x[t * d + c] * v->x[t * d + c]);
        for (size_t j = 0; j < h; j++) {
            double A = (double)v->A[t * h + j];
            double g = (double)(s->g[t * h + j] * slope(v->H[t * h + j]));
            of_A += A * A;
            of_g += g * g;
        }
        common[t] = (et_real)copysign(sqrt(down * z * z * of_A + up * of_x * of_g), z);
    }
}

/* weight->dw and weight->dw_sum. */
static et_status dw_noise(const et_ffn *f, const et_profile *p, et_ffn_parameter_noise W, size_t m,
                          const et_upstream *u, const et_twins *twins, const et_ffn_tensors *v,
                          const et_ffn_tensors *V, parts *s, et_weight_noise *weight,
                          et_error *error)
{
    size_t d = f->d, h = f->h, threads = (size_t)omp_get_max_threads();
    void *room;
    et_status status =
        et_allocate(&room, m * (d + h) + (2 + threads) * d, sizeof(double), "dw noise", error);
    if (status != ET_OK) return status;
    const rounding coarser = et_rounding_coarser(p, ET_INTERMEDIATES, ET_OPERANDS);
    double *all_terms = room;
    /* cppcheck-suppress invalidPointerCast ; room behind the doubles, read as what it is written */
    et_real *mean_square = (et_real *)(all_terms + threads * d), *mean_noise = mean_square + d;
    et_real *own = mean_noise + d;
    const et_real *VA = as_operand(p, m * h, v->A, V->A, own + m * d);
    VA = with_copies(m, h, &s->copies, VA, own + m * d);
    row_means(d, h, f->down, 2, mean_square);
    row_means(d, h, W.down, 1, mean_noise);
#pragma omp parallel for if (et_worth_threads(m * h))
    for (size_t t = 0; t < m; t++) {
        double *terms = all_terms + (size_t)omp_get_thread_num() * d;
        own_output_noise(f, p, mean_square, mean_noise, &s->outputs, v->A + t * h, v->out + t * d,
                         V->out + t * d, own + t * d);
        double V_dw = through_expert(d, h, s->g + t * h, VA + t * h, u->dy + t * d, own + t * d);
        V_dw = larger(V_dw, through_dA(&coarser, d, u->dy + t * d, v->out + t * d));
        if (s->along_up)
            V_dw += common_in_dw(d, h, s->g + t * h, v->H + t * h, s->along_up, V->x + t * d);
        V_dw += dot_noise(p, d, u->dy + t * d, v->out + t * d, V_dw, terms);
        weight->dw[t] = (et_real)V_dw;
    }
    if (!twins) memcpy(weight->dw_sum, weight->dw, m * sizeof *weight->dw);
    if (twins) { /* the sum of dw is linear in g and dy: their sums over rows of the same input */
        sum_by_leader(m, h, twins->input, s->g, s->left);
        sum_by_leader(m, d, twins->input, u->dy, s->sum);
#pragma omp parallel for if (et_worth_threads(m * h))
        for (size_t t = 0; t < m; t++)
            weight->dw_sum[t] = s->apart[t] * weight->dw[t] +
                                (et_real)through_expert(d, h, s->left + t * h, VA + t * h,
                                                        s->sum + t * d, own + t * d);
    }
    free(room);
    return ET_OK;
}

/* What errors of dO and of x bring into dx through all units at once. */
static et_status common_in_dx(const et_ffn *f, size_t m, const et_ffn_tensors *v, et_ffn_tensors *V,
                              parts *s, et_error *error)
{
    size_t d = f->d, h = f->h;
    et_status status = ET_OK;
    if (s->along_down) {
        for (size_t i = 0; i < m * h; i++) s->left[i] = slope(v->H[i]);
        status =
            common_noise(f, m, s->left, s->along_down, s->own, et_rows(f->up, d), V->dx, error);
    }
    if (status == ET_OK && s->along_up) {
        for (size_t i = 0; i < m * h; i++) s->left[i] = v->H[i] > 0 ? 2 * v->dA[i] : 0;
        status = common_noise(f, m, s->left, s->along_up, V->x, et_rows(f->up, d), V->dx, error);
    }
    return status;
}

et_status et_ffn_backward_noise(const et_ffn *f, const et_profile *p, et_ffn_parameter_noise W,
                                size_t m, const et_upstream *u, const et_twins *twins,
                                const et_ffn_tensors *v, et_ffn_tensors *V, et_weight_noise *weight,
                                struct et_product_room *room, et_error *error)
{
    ET_ARITHMETIC;
    size_t d = f->d, h = f->h;
    parts s;
    et_status status = take_parts(&s, m, d, h, error);
    if (status != ET_OK) return status;
    if ((status = et_find_copies(&s.copies, h, d, f->up, error)) ||
        (status = et_find_copies(&s.outputs, d, h, f->down, error)) ||
        (status = et_find_common(&s.along_down, h, d, et_transposed(f->down, h), error)) ||
        (V->x && (status = et_find_common(&s.along_up, h, d, et_rows(f->up, d), error))))
        goto out;
    unweighted_gradient(f, m, u, v->dA, s.g);
    upstream_noise(p, m, d, u, v->dO, &s, V->dO);
    s.own = as_operand(p, m * d, v->dO, s.dO_own, s.rounded);
    find_one_factor(m, d, u, v->dO, s.own, s.left, s.one_factor);
    et_noisy dO = {et_rows(v->dO, d), s.left, NULL, s.outputs.mean};
    et_noisy down = {et_rows(f->down, h), W.down, NULL, 0};
    status = et_product_noise(f->engine, p, room, m, h, d, dO, down, v->dA, ET_NOWHERE, false,
                              V->dA, error);
    if (status != ET_OK) goto out;
    activation_backward_noise(p, m, h, u, v, &s, V);
    if ((status = weights_noise(f, p, W, m, u, twins, v, V, &s, room, error))) goto out;
    const et_real *VdH = as_operand(p, m * h, v->dH, V->dH, s.left);
    et_noisy dH = {et_rows(v->dH, h), with_copies(m, h, &s.copies, VdH, s.left), NULL,
                   s.copies.mean};
    et_noisy up = {et_rows(f->up, d), W.up, NULL, 0};
    status = et_product_noise(f->engine, p, room, m, d, h, dH, up, NULL, ET_NOWHERE, false, V->dx,
                              error);
    if (status == ET_OK) status = common_in_dx(f, m, v, V, &s, error);
    if (status != ET_OK || !weight) goto out;
    find_common_dw(f, W, m, v, &s, weight->common);
    status = dw_noise(f, p, W, m, u, twins, v, V, &s, weight, error);
    if (status != ET_OK || !weight->shared) goto out;
        /* cov(dx, dw) = 4 (dA g R V[H]) W_up */
#pragma omp parallel for if (et_worth_threads(m * h))
    for (size_t i = 0; i < m * h; i++)
        s.left[i] = 2 * v->dA[i] * s.g[i] * slope(v->H[i]) * V->H[i] *
                    (s.copies.of ? s.copies.of[i % h] : 1);
    et_matmul(f->engine, m, d, h, et_rows(s.left, h), et_rows(f->up, d), false, weight->shared, d);
out:
    free_parts(&s);
    return status;
}
