/* adamw.c: AdamW, and the clipping of gradients. See etref/optimizer.h.
 *
 * m and v are moving averages that begin at 0; 1 - b^t is the weight that t gradients have in them
 * (et_ema_weight), and dividing by it makes them means. Decoupled decay acts on w itself. Each
 * number stands alone, in double, and is stored as et_real.
 *
 * Left out: AMSGrad, and learning rates by group: a call has one.
 */
#include "etref/optimizer.h"
#include "etref/routing.h"
#include "ref/base/float_environment.h"
#include "ref/base/threads.h"
#include "ref/layers/layer_arrays.h"
#include "ref/layers/moving_average.h"

#include <math.h>

double et_squares(size_t count, const et_real *g)
{
    ET_ARITHMETIC;
    double sum = 0;
    for (size_t i = 0; i < count; i++) sum += (double)g[i] * (double)g[i];
    return sum;
}

double et_clip_factor(double norm, double clip)
{
    double factor = clip / (norm + 1e-6);
    return clip == 0 || factor > 1 ? 1 : factor;
}

static bool is_beta(double b)
{
    return b >= 0 && b < 1;
}

et_status et_adamw_update(const et_adamw *a, size_t updates, size_t count, const et_real *g,
                          et_real *m, et_real *v, et_real *w, et_error *error)
{
    ET_ARITHMETIC;
    const et_array arrays[] = {
        {"g", g, count, 1}, {"m", m, count, 1}, {"v", v, count, 1}, {"w", w, count, 1}};
    if (!is_beta(a->beta1) || !is_beta(a->beta2) || !(a->eps > 0))
        return et_fail(error, ET_EINVAL,
                       "et_adamw: betas %g and %g, eps %g; from 0 to less than 1, above 0",
                       a->beta1, a->beta2, a->eps);
    et_status status = ET_CHECK_ARRAYS("et_adamw", a->rounding, arrays, error);
    if (status != ET_OK) return status;
    const et_mixing of_m = et_mixing_of(a->rounding, "m", a->beta1);
    const et_mixing of_v = et_mixing_of(a->rounding, "v", a->beta2);
    const et_mixing of_w = et_mixing_of(a->rounding, "w", 0);
    double first = et_mixed_weight(&of_m, a->rounding, "m", a->beta1, updates + 1),
           second = et_mixed_weight(&of_v, a->rounding, "v", a->beta2, updates + 1);
#pragma omp parallel for if (et_worth_threads(count))
    for (size_t i = 0; i < count; i++) {
        double gi = (double)g[i], wi = (double)w[i];
        double mi = et_mix_in(&of_m, (double)m[i], gi);
        double vi = et_mix_in(&of_v, (double)v[i], et_mixed(&of_v, gi * gi));
        m[i] = (et_real)mi;
        v[i] = (et_real)vi;
        double root = et_mixed(&of_w, sqrt(et_mixed(&of_w, vi / second)));
        double step = et_mixed(&of_w, a->rate * et_mixed(&of_w, mi / first));
        wi = et_mixed(&of_w, wi - et_mixed(&of_w, a->rate * a->decay * wi));
        w[i] = (et_real)(wi - et_mixed(&of_w, step / et_mixed(&of_w, root + a->eps)));
    }
    et_round(a->rounding, ET_ACCUMULATOR, "m", count, m);
    et_round(a->rounding, ET_ACCUMULATOR, "v", count, v);
    et_round(a->rounding, ET_ACCUMULATOR, "w", count, w);
    return ET_OK;
}
