/* hypothesis_fit.c: how tightly a hypothesis fits. See diagnosis.h.
 *
 * Wide bars fit everything. So explanations are compared by the likelihood of the errors that they leave: with the
 * values u and the variances V that a hypothesis expects, errors e = g - u are normal, and
 *
 *     fit = mean over all elements of the tensors that fail of    -ln(V)/2 - e^2/(2V)
 *
 * Bars r times as wide as the errors need cost about ln(r). A factor of 1.001 under bars of 24 bits beats any rounding
 * of gates to 8 bits that would also cover it, by ln(2^14).
 *
 * Left out: elements that must be exact; they have no variance.
 */
#include "ref/diagnose/diagnosis.h"

#include <math.h>

/* ulp^2/12 at `value` of a format of so many bits. */
static double rounding_variance(double value, int bits)
{
    int exponent;
    frexp(value, &exponent);
    double ulp = value == 0 ? 0 : ldexp(1, exponent - bits);
    return ulp * ulp / 12;
}

void et_fit_add(et_likelihood *l, const et_observed *x, const et_guess *guess)
{
    const et_real *own = x->variance, *right = x->right;
    const et_real *V = guess->variance ? guess->variance : own;
    const et_real *values = guess->values ? guess->values : right;
    for (size_t i = 0; i < et_tensor_count(x->got); i++) {
        double u = (double)values[i] + guess->slope * (double)right[i];
        double e = et_tensor_element(x->got, i) - u, v = (double)V[i];
        if (guess->bits > 0) v += rounding_variance(u, guess->bits);
        if (!(own[i] > 0) || !(v > 0) || !isfinite(v) || !isfinite(e)) continue;
        l->sum += -0.5 * log(v) - 0.5 * e * e / v;
        l->squares += e * e / v;
        l->n++;
    }
}

double et_fit_of(const et_likelihood *l)
{
    return l->n > 0 ? l->sum / l->n : -INFINITY;
}
