/* activation.c: what an expert makes of H = x W_up' (and V = x W_gate'). See activation.h and etref/ffn.h.
 *
 *     relu2       A = relu(H)^2      dH = dA 2 relu(H)
 *     swiglu      A = silu(V) H      dH = dA silu(V)                   dV = dA H silu'(V)
 *     gelu        A = H P(H)         dH = dA (P(H) + H P'(H))          P'(h) = e^(-h^2/2) / sqrt(2 pi)
 *     gelu_tanh   A = H s(g(H))      dH = dA (s + H s (1-s) g'(H))     g(h) = 2 sqrt(2/pi) (h + 0.044715 h^3)
 *
 * s(v) = 1/(1 + e^-v), silu(v) = v s(v), silu'(v) = s (1 + v (1-s)); and (1 + tanh(g/2)) / 2 = s(g).
 *
 * s(v) is taken with e^-|v|, as e^v/(1 + e^v) for v < 0; some kernels have 1/(1 + e^-v) there, too, or tanh.
 *
 * With a rounding each step is a kernel's, in the arithmetic of its sums. silu(V), and dA H on the way back, pass through
 * memory in kernels that do not fuse; others leave that rounding out, as replicas do.
 */
#include "ref/layers/activation.h"
#include "ref/base/exponential.h"
#include "ref/base/lanes.h"
#include "ref/base/threads.h"
#include "ref/base/sum.h"

#include <math.h>

/* A kernel's arithmetic, grid NULL: none; what its erf and tanh are off by besides; and whether it takes 1 - s for what
 * loses nothing. */
typedef struct steps {
    const et_grid *grid, *function;
    et_grid rooms[2];
    bool from_one, grows, by_tanh;
} steps;

static void take_steps(steps *s, const et_rounding *r)
{
    s->grid = et_grid_in(&s->rooms[0], r, et_sum_place(r), "activation");
    s->function = et_grid_in(&s->rooms[1], r, et_sum_place(r), "erf");
    s->from_one = et_goes_other_way(r, "1 - s", "activation");
    s->grows = et_goes_other_way(r, "1/(1+e^-v)", "activation");
    s->by_tanh = et_goes_other_way(r, "tanh", "activation");
}

/* ---- relu2 ---- */

/* v where v > 0, and +0 elsewhere: also for -0 and for NaN, which is not above 0. Half of the elements are,
 * in no order that a processor could foresee, so nothing must branch here: the loops below become vectors,
 * in which this is a comparison and a mask. */
static et_real relu(et_real v)
{
    return v > 0 ? v : 0;
}

/* ---- s and silu ---- */

/* With e^-|v| <= 1, so that nothing overflows; or with e^-v, of which 1/inf is 0. */
ET_IN_LANES double logistic(const et_grid *g, bool grows, double v)
{
    grows = grows && v < 0;
    double e = et_rounded(g, exponential(grows ? -v : -fabs(v)));
    return et_over(g, v < 0 && !grows ? e : 1, et_plus(g, 1, e));
}

/* s(v), or half of 1 + tanh(v/2): tanh is off by a unit in its last place. */
ET_IN_LANES double tanh_share(const steps *k, double v)
{
    double s = logistic(NULL, false, v);
    return k->grid ? et_half_of_one_and(k->grid, k->function, 2 * s - 1, 1) : s;
}

ET_IN_LANES double sigmoid(const steps *k, double v)
{
    return k->by_tanh ? tanh_share(k, v) : logistic(k->grid, k->grows, v);
}

ET_IN_LANES double silu(const steps *k, double v)
{
    return et_times(k->grid, v, sigmoid(k, v));
}

ET_IN_LANES double silu_slope(const steps *k, double v)
{
    const et_grid *g = k->grid;
    double s = sigmoid(k, v), rest = k->from_one ? et_plus(g, 1, -s) : sigmoid(k, -v);
    return et_times(g, s, et_plus(g, 1, et_times(g, v, rest)));
}

/* ---- gelu ----
 *
 * P(x) = 1/2 + P'(x) sum_k x^(2k+1) / (1 3 5 .. (2k+1)): terms of one sign, each less than x^2/(2k+1) times the one before;
 * from x^2 = 4 on 30 of them leave less than 2^-60. For x < -2 Laplace's fraction,
 *
 *     P(-x) = P'(x) / (x + 1/(x + 2/(x + 3/(x + ...)))),
 *
 * whose 80th convergent is within 2^-60 at x = 2, and nearer beyond. e^(-x^2/2) is off by x^2 2^-54 of itself. */

static const double root_of_two_pi = 2.5066282746310005;

static double normal_density(double x)
{
    return exponential(-x * x / 2) / root_of_two_pi;
}

static double normal_tail(double x)
{
    double fraction = x;
    for (int k = 80; k > 0; k--) fraction = x + k / fraction;
    return normal_density(x) / fraction;
}

double et_normal_share(double x)
{
    if (x < -2) return normal_tail(-x);
    if (x > 2) return 1 - normal_tail(x);
    double sum = x, term = x;
    for (int k = 1; k < 30; k++) {
        term = term * (x * x) / (2 * k + 1);
        sum += term;
    }
    return 0.5 + normal_density(x) * sum;
}

/* P(x), or half of 1 + erf(x / sqrt 2). erf is off by 5 units of its last place where it is Abramowitz and Stegun's 7.1.26, as
 * in PyTorch's gelu on the CPU: good to 1.5e-7, which is 2.5; and its polynomial's five terms, of about 1, each round, which
 * is sqrt(5) more. */
static double share(const steps *k, double x)
{
    const double root = 1.4142135623730951;
    if (k->grid == NULL) return et_normal_share(x);
    double rounded = root * et_times(k->grid, x, 1 / root);
    return et_half_of_one_and(k->grid, k->function, 2 * et_normal_share(rounded) - 1, 5);
}

static double gelu(const steps *k, double x)
{
    return et_times(k->grid, x, share(k, x));
}

static double gelu_slope(const steps *k, double x)
{
    const et_grid *g = k->grid;
    double square = et_times(g, x, x), density = normal_density(g ? sqrt(square) : x);
    return et_plus(g, share(k, x), et_times(g, x, et_rounded(g, density)));
}

/* ---- gelu_tanh ---- */

static const double cubic = 0.044715, twice_root = 1.5957691216057308; /* 2 sqrt(2/pi) */

ET_IN_LANES double inner(const et_grid *g, double x)
{
    double cube = et_times(g, et_times(g, x, x), x);
    return et_times(g, twice_root, et_plus(g, x, et_times(g, cubic, cube)));
}

ET_IN_LANES double inner_slope(const et_grid *g, double x)
{
    return et_times(g, twice_root, et_plus(g, 1, et_times(g, 3 * cubic, et_times(g, x, x))));
}

ET_IN_LANES double gelu_tanh(const steps *k, double x)
{
    return et_times(k->grid, x, tanh_share(k, inner(k->grid, x)));
}

ET_IN_LANES double gelu_tanh_slope(const steps *k, double x)
{
    const et_grid *g = k->grid;
    double g2 = inner(g, x), s = tanh_share(k, g2);
    double rest = g ? et_plus(g, 1, -s) : logistic(g, false, -g2);
    return et_plus(g, s, et_times(g, et_times(g, x, et_times(g, s, rest)), inner_slope(g, x)));
}

/* ---- all of them ---- */

enum { PIECE = 256 };
static const steps exact = {0};

/* A function of one number: of many in a golden, where nothing is rounded and several are made at once, and step by step
 * in a kernel's arithmetic, or where no loop becomes vectors. */
typedef struct curve {
    double (*one)(const steps *k, double v);
    void (*many)(size_t count, const et_real *v, et_real *to);
} curve;

#define CURVE(of)                                                                                  \
    ET_LANES static void many_##of(size_t count, const et_real *v, et_real *to)                    \
    {                                                                                              \
        ET_SIMD for (size_t i = 0; i < count; i++) to[i] = (et_real)of(&exact, (double)v[i]);      \
    }                                                                                              \
    static const curve of_##of = {of, many_##of}

CURVE(silu);
CURVE(silu_slope);
CURVE(gelu_tanh);
CURVE(gelu_tanh_slope);
static const curve of_gelu = {gelu, NULL}, of_gelu_slope = {gelu_slope, NULL};

/* At most PIECE numbers. */
static void apply_piece(const steps *k, const curve *of, size_t count, const et_real *v,
                        et_real *to)
{
    if (k->grid == NULL && of->many)
        of->many(count, v, to);
    else
        for (size_t i = 0; i < count; i++) to[i] = (et_real)of->one(k, (double)v[i]);
}

static void apply(const et_ffn *f, const curve *of, size_t count, const et_real *v, et_real *to)
{
    steps k;
    take_steps(&k, f->rounding);
    ET_BY_THREADS(et_worth_threads(8 * count),
                  for (size_t i = 0; i < count; i += PIECE)
                      apply_piece(&k, of, et_smaller(PIECE, count - i), v + i, to + i));
}

/* A kernel that does not fuse stores it, in an array of its own: no mutant's hand comes here. */
static void store(const et_ffn *f, const char *site, size_t count, et_real *values)
{
    if (et_rounds(f->rounding)) et_round(f->rounding, ET_INTERMEDIATES, site, count, values);
}

static void times(size_t count, const et_real *by, et_real *to)
{
    for (size_t i = 0; i < count; i++) to[i] *= by[i];
}

void et_activate(const et_ffn *f, size_t count, const et_real *H, const et_real *V, et_real *A)
{
    switch (f->activation) {
    case ET_RELU2:
        ET_BY_THREADS(et_worth_threads(count),
                      for (size_t i = 0; i < count; i++) A[i] = relu(H[i]) * relu(H[i]));
        return;
    case ET_SWIGLU:
        apply(f, &of_silu, count, V, A);
        store(f, "silu", count, A);
        times(count, H, A);
        return;
    case ET_GELU: apply(f, &of_gelu, count, H, A); return;
    case ET_GELU_TANH: apply(f, &of_gelu_tanh, count, H, A); return;
    }
}

/* dV *= silu'(V), of at most PIECE numbers. */
static void times_slope(const steps *k, size_t count, const et_real *V, et_real *dV)
{
    et_real slope[PIECE];
    apply_piece(k, &of_silu_slope, count, V, slope);
    times(count, slope, dV);
}

/* dV = (dA H) silu'(V) */
static void gate_backward(const et_ffn *f, size_t count, const et_real *H, const et_real *V,
                          const et_real *dA, et_real *dV)
{
    steps k;
    take_steps(&k, f->rounding);
    for (size_t i = 0; i < count; i++) dV[i] = dA[i] * H[i];
    store(f, "dsilu", count, dV);
    ET_BY_THREADS(et_worth_threads(8 * count),
                  for (size_t i = 0; i < count; i += PIECE)
                      times_slope(&k, et_smaller(PIECE, count - i), V + i, dV + i));
}

void et_activate_backward(const et_ffn *f, size_t count, const et_real *H, const et_real *V,
                          const et_real *dA, et_real *dH, et_real *dV)
{
    switch (f->activation) {
    case ET_RELU2:
        ET_BY_THREADS(et_worth_threads(count),
                      for (size_t i = 0; i < count; i++) dH[i] = dA[i] * (2 * relu(H[i])));
        return;
    case ET_SWIGLU:
        apply(f, &of_silu, count, V, dH);
        store(f, "silu", count, dH);
        times(count, dA, dH);
        gate_backward(f, count, H, V, dA, dV);
        return;
    case ET_GELU: apply(f, &of_gelu_slope, count, H, dH); break;
    case ET_GELU_TANH: apply(f, &of_gelu_tanh_slope, count, H, dH); break;
    }
    times(count, dA, dH);
}
