/* gates.hpp: from logits to gate values and back, in plain `real` arithmetic, as kernels do it. */
#ifndef ETREF_TESTS_GATES_HPP
#define ETREF_TESTS_GATES_HPP

#include "etref/case.h"

#include <algorithm>
#include <cmath>
#include <vector>

/* `count` numbers, `stride` apart. */
template <class real> struct strided {
    real *at;
    size_t count, stride;

    real &operator[](size_t i) const
    {
        return at[i * stride];
    }
};

/* values = softmax(values), in place. Anchored: a logit of 0 takes part, and its share is returned. */
template <class real> real softmax(strided<real> values, bool anchored)
{
    real most = anchored ? real(0) : values[0], sum = 0;
    for (size_t i = 0; i < values.count; i++) most = std::max(most, values[i]);
    for (size_t i = 0; i < values.count; i++) sum += values[i] = std::exp(values[i] - most);
    real anchor = anchored ? std::exp(-most) : real(0);
    sum += anchor;
    for (size_t i = 0; i < values.count; i++) values[i] /= sum;
    return anchor / sum;
}

/* grads = dr of dp = grads, in place: dr_i = p_i (dp_i - sum_j p_j dp_j), the anchor in the sum. */
template <class real>
void softmax_backward(strided<real> p, strided<real> grads, real anchor, real danchor)
{
    real mean = anchor * danchor;
    for (size_t i = 0; i < p.count; i++) mean += p[i] * grads[i];
    for (size_t i = 0; i < p.count; i++) grads[i] = p[i] * (grads[i] - mean);
}

/* The rows or columns over which a gate is a softmax; of the other gates, none. */
template <class real> std::vector<strided<real>> softmax_groups(const et_case &c, real *values)
{
    std::vector<strided<real>> groups;
    size_t tokens = et_case_micro_tokens(&c), n = c.experts;
    if (c.gate == ET_GATE_SOFTMAX_TOKENS) {
        for (size_t first = 0; first < c.tokens; first += tokens)
            for (size_t i = 0; i < n; i++) groups.push_back({values + first * n + i, tokens, n});
    } else if (c.gate != ET_GATE_SIGMOID && c.gate != ET_GATE_RELU) {
        for (size_t t = 0; t < c.tokens; t++) groups.push_back({values + t * n, n, 1});
    }
    return groups;
}

inline bool is_anchored(const et_case &c)
{
    return c.gate == ET_GATE_SOFTMAX_ANCHOR || c.gate == ET_GATE_SOFTMAX_ANCHOR_OUT;
}

/* p [N,n] = gate(r), and the anchor's share of each token (0 without one). */
template <class real>
void gate_forward(const et_case &c, const std::vector<real> &r, std::vector<real> &p,
                  std::vector<real> &anchor)
{
    p = r;
    anchor.assign(c.tokens, 0);
    if (c.gate == ET_GATE_SIGMOID)
        for (real &v : p) v = 1 / (1 + std::exp(-v));
    if (c.gate == ET_GATE_RELU)
        for (real &v : p) v = std::max(v, real(0));
    size_t row = 0;
    for (auto &group : softmax_groups(c, p.data())) {
        real share = softmax(group, is_anchored(c));
        if (is_anchored(c)) anchor[row++] = share;
    }
}

/* dr [N,n] from dp [N,n] and the anchor's own upstream gradient [N], which is 0 where it weighs nothing. */
template <class real>
std::vector<real> gate_backward(const et_case &c, std::vector<real> &p,
                                const std::vector<real> &anchor, const std::vector<real> &dp,
                                const std::vector<real> &danchor)
{
    std::vector<real> dr = dp;
    for (size_t i = 0; i < dr.size(); i++) {
        if (c.gate == ET_GATE_SIGMOID) dr[i] *= p[i] * (1 - p[i]);
        if (c.gate == ET_GATE_RELU && !(p[i] > 0)) dr[i] = 0;
    }
    auto of_p = softmax_groups(c, p.data()), of_dr = softmax_groups(c, dr.data());
    for (size_t g = 0; g < of_p.size(); g++) {
        bool row = is_anchored(c);
        softmax_backward(of_p[g], of_dr[g], row ? anchor[g] : 0, row ? danchor[g] : 0);
    }
    return dr;
}

#endif
