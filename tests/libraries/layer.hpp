/* layer.hpp: a Mixture-of-Experts layer, forward and backward, as one writes it who has a library for
 * the products: gather, experts one after the other, gates, combine, and all of it back.
 *
 * Gates, weights, logits and sums over experts are `real`; the experts' arrays, y and gradients are
 * numbers of the library's storage format. The routing is the golden's: which tokens an expert takes
 * is no matter of arithmetic here.
 *
 * Letters: N tokens, d width, h hidden width, n experts, S slots (pairs of a token and an expert that takes it,
 * expert by expert, tokens ascending). A dense layer is one expert with S = N.
 *
 * Left out: the state after the step, margins and metrics.
 */
#ifndef ETREF_TESTS_LAYER_HPP
#define ETREF_TESTS_LAYER_HPP

#include "etref/step.h"
#include "tests/libraries/gates.hpp"
#include "tests/libraries/products.hpp"

#include <string>
#include <vector>

/* Which tokens each expert takes: slots first[i] to first[i+1] are those of expert i. */
struct slots {
    std::vector<int32_t> token, expert, first;
};

/* A tensor to be shown under its name in a bundle. */
template <class real> struct shown {
    std::string name;
    et_dtype type;
    std::vector<size_t> shape;
    const std::vector<real> *values;
};

/* Experts of one width, and what they compute: H = x W_up', A = relu(H)^2, f(x) = A W_down'. */
template <class real> struct experts {
    size_t n, h, d;
    std::vector<real> up, down;       /* [n,h,d], [n,d,h] */
    std::vector<real> x, H, A, out;   /* [S,d], [S,h], [S,h], [S,d] */
    std::vector<real> dout, dA, dH;   /* [S,d], [S,h], [S,h] */
    std::vector<real> dx, dup, ddown; /* [S,d], [n,h,d], [n,d,h] */
};

template <class real> class layer
{
  public:
    /* gate_factor: 1; a kernel with a fault multiplies its slots' weights by another. */
    layer(const et_step &golden, const slots &routing, products<real> &with, double gate_factor)
        : c(golden.c), moe(c.layer == ET_MOE), N(c.tokens), d(c.d_model), n(moe ? c.experts : 1),
          S(routing.token.size()), route(routing), lib(with), factor(real(gate_factor)),
          x(take(golden.in.x, N * d)), dy(take(golden.in.dy, N * d)),
          router(take(golden.in.router, n * d)),
          routed(make(n, c.d_expert, golden.in.up, golden.in.down)),
          shared(make(1, c.shared_d_expert, golden.in.shared_up, golden.in.shared_down))
    {
        if (golden.in.load) load.assign(golden.in.load, golden.in.load + n);
    }

    void run()
    {
        if (moe) score();
        routed.x = gathered(x);
        forward(routed, route.first);
        if (c.shared) shared.x = x;
        if (c.shared) forward(shared, everyone());
        combine();
        distribute();
        backward(routed, route.first);
        if (c.shared) backward(shared, everyone());
        if (moe) score_backward();
        sum_dx();
    }

    /* Every tensor that was computed. */
    std::vector<shown<real>> show() const
    {
        et_dtype low = lib.storage(), wide = lib.wide();
        std::vector<shown<real>> all = {{"fwd.y", low, {N, d}, &y}, {"bwd.x", low, {N, d}, &dx}};
        show_experts(all, routed, "slot_", S);
        std::vector<size_t> up = {n, c.d_expert, d}, down = {n, d, c.d_expert};
        if (!moe) up.erase(up.begin()), down.erase(down.begin());
        all.push_back({"bwd.w_up", low, up, &routed.dup});
        all.push_back({"bwd.w_down", low, down, &routed.ddown});
        if (!moe) return all;
        all.push_back({"fwd.logits", wide, {N, n}, &r});
        all.push_back({"fwd.gates", wide, {N, n}, &p});
        all.push_back({"route.slot_weight", wide, {S}, &w});
        all.push_back({"bwd.slot_weight", wide, {S}, &dw});
        all.push_back({"bwd.logits", wide, {N, n}, &dr});
        all.push_back({"bwd.w_router", low, {n, d}, &drouter});
        if (!loss_aux.empty()) all.push_back({"loss.aux", wide, {1}, &loss_aux});
        if (!loss_z.empty()) all.push_back({"loss.z", wide, {1}, &loss_z});
        if (!c.shared) return all;
        show_experts(all, shared, "shared_", N);
        all.push_back({"fwd.shared_weight", wide, {N}, &s});
        all.push_back({"bwd.shared_weight", wide, {N}, &ds});
        all.push_back({"bwd.shared_up", low, {shared.h, d}, &shared.dup});
        all.push_back({"bwd.shared_down", low, {d, shared.h}, &shared.ddown});
        return all;
    }

  private:
    using reals = std::vector<real>;

    const et_case c;
    const bool moe;
    const size_t N, d, n, S;
    const slots &route;
    products<real> &lib;
    const real factor;
    reals x, dy, router, load;
    experts<real> routed, shared;
    reals r, p, anchor, w, s; /* [N,n], [N,n], [N], [S], [N] */
    reals dw, ds, dr, drouter, y, dx;
    reals loss_aux, loss_z;

    /* ---- arrays ---- */

    /* An input, in the storage format. */
    reals take(const et_real *from, size_t count) const
    {
        reals to(from ? count : 0);
        for (size_t i = 0; i < to.size(); i++) to[i] = lib.stored(real(from[i]));
        return to;
    }

    experts<real> make(size_t count, size_t h, const et_real *up, const et_real *down) const
    {
        experts<real> e{};
        e.n = count, e.h = h, e.d = d;
        e.up = take(up, count * h * d), e.down = take(down, count * h * d);
        return e;
    }

    reals gathered(const reals &rows) const
    {
        reals to(S * d);
        for (size_t k = 0; k < S; k++) std::copy_n(&rows[route.token[k] * d], d, &to[k * d]);
        return to;
    }

    std::vector<int32_t> everyone() const
    {
        return {0, int32_t(N)};
    }

    /* out = a b; where there is nothing to be added, 0. */
    void multiply(view<real> a, view<real> b, result as, real *out) const
    {
        if (a.height() == 0 || b.width() == 0) return;
        if (a.width() > 0)
            lib.multiply(a, b, as, out);
        else
            std::fill_n(out, a.height() * b.width(), real(0));
    }

    static real dot(size_t count, const real *a, const real *b)
    {
        real sum = 0;
        for (size_t i = 0; i < count; i++) sum += a[i] * b[i];
        return sum;
    }

    /* ---- experts ---- */

    static view<real> rows(const reals &values, size_t first, size_t count, size_t width)
    {
        return {values.data() + first * width, count, width};
    }

    void forward(experts<real> &e, const std::vector<int32_t> &first)
    {
        size_t all = first.back();
        e.H.resize(all * e.h), e.A.resize(all * e.h), e.out.resize(all * d);
        for (size_t i = 0; i < e.n; i++) {
            size_t at = first[i], count = first[i + 1] - at;
            multiply(rows(e.x, at, count, d), rows(e.up, i * e.h, e.h, d).t(), result::stored,
                     e.H.data() + at * e.h);
            for (size_t j = at * e.h; j < (at + count) * e.h; j++) {
                real positive = std::max(e.H[j], real(0));
                e.A[j] = lib.stored(positive * positive);
            }
            multiply(rows(e.A, at, count, e.h), rows(e.down, i * d, d, e.h).t(), result::stored,
                     e.out.data() + at * d);
        }
    }

    /* From dout: dA = dO W_down, dH = dA 2 relu(H), dW_down = dO' A, dW_up = dH' x, dx = dH W_up. */
    void backward(experts<real> &e, const std::vector<int32_t> &first)
    {
        e.dA.resize(e.A.size()), e.dH.resize(e.H.size()), e.dx.resize(e.x.size());
        e.dup.resize(e.up.size()), e.ddown.resize(e.down.size());
        for (size_t i = 0; i < e.n; i++) {
            size_t at = first[i], count = first[i + 1] - at, weights = i * e.h * d;
            auto dout = rows(e.dout, at, count, d), dH = rows(e.dH, at, count, e.h);
            multiply(dout, rows(e.down, i * d, d, e.h), result::stored, e.dA.data() + at * e.h);
            for (size_t j = at * e.h; j < (at + count) * e.h; j++)
                e.dH[j] = lib.stored(e.dA[j] * 2 * std::max(e.H[j], real(0)));
            multiply(dout.t(), rows(e.A, at, count, e.h), result::stored, &e.ddown[weights]);
            multiply(dH.t(), rows(e.x, at, count, d), result::stored, &e.dup[weights]);
            multiply(dH, rows(e.up, i * e.h, e.h, d), result::wide, e.dx.data() + at * d);
        }
    }

    void show_experts(std::vector<shown<real>> &all, const experts<real> &e,
                      const std::string &name, size_t count) const
    {
        et_dtype low = lib.storage();
        const struct {
            std::string name;
            size_t width;
            const reals *values;
        } each[] = {{"fwd." + name + "pre", e.h, &e.H},  {"fwd." + name + "act", e.h, &e.A},
                    {"fwd." + name + "out", d, &e.out},  {"bwd." + name + "pre", e.h, &e.dH},
                    {"bwd." + name + "act", e.h, &e.dA}, {"bwd." + name + "out", d, &e.dout}};
        for (const auto &one : each) all.push_back({one.name, low, {count, one.width}, one.values});
    }

    /* ---- the mixture: y_t = s_t f_shared(x_t) + sum over slots of w f(x) ---- */

    void score()
    {
        r.resize(N * n);
        multiply({x.data(), N, d}, view<real>{router.data(), n, d}.t(), result::wide, r.data());
        gate_forward(c, r, p, anchor);
        weigh();
    }

    /* What weights are divided by: the token's experts, the sum of their gates, or 1. 0 stands for a
     * token whose chosen gates are all 0. */
    reals divisors() const
    {
        reals by(N, c.norm == ET_NORM_NONE ? 1 : 0);
        if (c.norm == ET_NORM_FANOUT) std::fill(by.begin(), by.end(), real(c.shared));
        for (size_t k = 0; k < S; k++) {
            if (c.norm == ET_NORM_FANOUT) by[route.token[k]] += 1;
            if (c.norm == ET_NORM_SUM) by[route.token[k]] += p_of(k);
        }
        return by;
    }

    real p_of(size_t slot) const
    {
        return p[route.token[slot] * n + route.expert[slot]];
    }

    bool anchor_weighs() const
    {
        return c.gate == ET_GATE_SOFTMAX_ANCHOR && c.rule != ET_TC && c.shared;
    }

    void weigh()
    {
        reals by = divisors();
        w.resize(S);
        for (size_t k = 0; k < S; k++) {
            real divisor = by[route.token[k]];
            w[k] = divisor > 0 ? factor * (p_of(k) / divisor) : 0;
        }
        if (!c.shared) return;
        s.assign(N, 1);
        if (anchor_weighs()) s = anchor;
        if (c.gate == ET_GATE_SOFTMAX_ANCHOR_OUT && c.rule != ET_TC)
            s.assign(N, 1 / real(c.granularity + 1));
        for (size_t t = 0; t < N; t++)
            if (c.norm == ET_NORM_FANOUT) s[t] /= by[t];
    }

    void combine()
    {
        if (!moe) {
            y = routed.out;
            return;
        }
        y.assign(N * d, 0);
        for (size_t t = 0; c.shared && t < N; t++)
            for (size_t j = 0; j < d; j++) y[t * d + j] = s[t] * shared.out[t * d + j];
        for (size_t k = 0; k < S; k++)
            for (size_t j = 0; j < d; j++)
                y[route.token[k] * d + j] += w[k] * routed.out[k * d + j];
        for (real &v : y) v = lib.stored(v);
    }

    /* combine's backward: dO = w dy, dw = <dy, f(x)>. */
    void distribute()
    {
        routed.dout = gathered(dy);
        if (!moe) return;
        dw.resize(S);
        for (size_t k = 0; k < S; k++) {
            dw[k] = dot(d, &routed.dout[k * d], &routed.out[k * d]);
            for (size_t j = 0; j < d; j++)
                routed.dout[k * d + j] = lib.stored(w[k] * routed.dout[k * d + j]);
        }
        if (!c.shared) return;
        ds.resize(N);
        shared.dout.resize(N * d);
        for (size_t t = 0; t < N; t++) {
            ds[t] = dot(d, &dy[t * d], &shared.out[t * d]);
            for (size_t j = 0; j < d; j++)
                shared.dout[t * d + j] = lib.stored(s[t] * dy[t * d + j]);
        }
    }

    /* ---- from the weights' gradients to the router's ---- */

    void score_backward()
    {
        reals dp = weigh_backward(), danchor(N, 0);
        reals by = divisors();
        for (size_t t = 0; t < N && anchor_weighs(); t++)
            danchor[t] = c.norm == ET_NORM_FANOUT ? ds[t] / by[t] : ds[t];
        if (!c.eval) balance(dp);
        dr = gate_backward(c, p, anchor, dp, danchor);
        if (!c.eval && c.z_loss_coef > 0) add_z_loss();
        drouter.resize(n * d);
        multiply(view<real>{dr.data(), N, n}.t(), {x.data(), N, d}, result::stored, drouter.data());
    }

    /* dp [N,n]: dw divided as the weights were; under norm sum (dw - sum of w dw) / sum of p. */
    reals weigh_backward() const
    {
        reals dp(N * n, 0), by = divisors(), mean(N, 0);
        for (size_t k = 0; k < S && c.norm == ET_NORM_SUM; k++)
            mean[route.token[k]] += w[k] * dw[k];
        for (size_t k = 0; k < S; k++) {
            size_t t = route.token[k];
            if (by[t] > 0) dp[t * n + route.expert[k]] = factor * ((dw[k] - mean[t]) / by[t]);
        }
        return dp;
    }

    /* The balancing loss of each micro-batch, sum_i F_i P_i with P_i its mean gate, and its gradient. */
    void balance(reals &dp)
    {
        if (c.balance != ET_BALANCE_AUX && c.balance != ET_BALANCE_AUX_ERROR) return;
        size_t tokens = et_case_micro_tokens(&c);
        loss_aux.assign(1, 0);
        for (size_t first = 0; first < N; first += tokens) {
            reals F = load_fractions(first, tokens);
            for (size_t i = first * n; i < (first + tokens) * n; i++) {
                loss_aux[0] += F[i % n] * p[i] / real(N);
                dp[i] += real(c.balance_coef) * F[i % n] / real(N);
            }
        }
    }

    reals load_fractions(size_t first, size_t tokens) const
    {
        reals F = load;
        if (F.empty()) {
            F.assign(n, 0);
            for (size_t k = 0; k < S; k++)
                F[route.expert[k]] += size_t(route.token[k]) - first < tokens;
        }
        for (real &v : F) {
            v *= real(n) / real(c.top_k * tokens);
            if (c.balance == ET_BALANCE_AUX_ERROR) v -= 1;
        }
        return F;
    }

    /* zeta/N sum_t l_t^2 with l_t = log sum_i e^r_ti, whose gradient is 2 zeta/N l_t softmax(r_t). */
    void add_z_loss()
    {
        reals share = r;
        loss_z.assign(1, 0);
        for (size_t t = 0; t < N; t++) {
            real most = *std::max_element(&r[t * n], &r[t * n] + n), sum = 0;
            for (size_t i = 0; i < n; i++) sum += std::exp(r[t * n + i] - most);
            real l = most + std::log(sum);
            loss_z[0] += l * l / real(N);
            softmax(strided<real>{&share[t * n], n, 1}, false);
            for (size_t i = 0; i < n; i++)
                dr[t * n + i] += 2 * real(c.z_loss_coef) * l * share[t * n + i] / real(N);
        }
    }

    /* dx = dr W_r + the experts' shares. */
    void sum_dx()
    {
        dx.assign(N * d, 0);
        if (moe) multiply({dr.data(), N, n}, {router.data(), n, d}, result::wide, dx.data());
        for (size_t i = 0; i < shared.dx.size(); i++) dx[i] += shared.dx[i];
        for (size_t k = 0; k < S; k++)
            for (size_t j = 0; j < d; j++) dx[route.token[k] * d + j] += routed.dx[k * d + j];
        for (real &v : dx) v = lib.stored(v);
    }
};

#endif
