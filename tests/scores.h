/* scores.h: layers whose scores are written down by hand, for the tests of the verdict on a routing.
 *
 * The router is the identity, so a token's row of x is its row of scores.
 */
#ifndef ETREF_TESTS_SCORES_H
#define ETREF_TESTS_SCORES_H

#include "tests/honest.h"

#define SCORED "'precision':'f64','d_expert':2,'shared':false"
#define SCORED_ET(more)                                                                            \
    "{'name':'t','rule':'et','experts':1,'d_model':1,'granularity':1,'ema_updates':9,"             \
    "'target_load':2,'mode':'train'," more "," SCORED "}"

/* A case without shared expert whose scores are given; ema: the threshold. */
static inline void make_scores(honest *k, const char *json, const double *scores, double ema)
{
    et_case c;
    et_error error;
    et_step *s = &k->golden;
    ck_assert_msg(parse_quoted(&c, json, &error) == ET_OK, "%s", error.text);
    ck_assert_msg(et_step_create(s, &c, 0, &error) == ET_OK, "%s", error.text);
    ck_assert_uint_eq(c.d_model, c.experts);
    size_t N = c.tokens, n = c.experts, h = c.d_expert;
    et_stream stream = et_stream_open(5, "scores");
    for (size_t i = 0; i < N * n; i++) s->in.x[i] = scores[i];
    for (size_t i = 0; i < n; i++) s->in.router[i * n + i] = 1;
    for (size_t i = 0; i < N * n; i++) s->in.dy[i] = et_normal(stream, i);
    for (size_t i = 0; i < n * h * n; i++) s->in.up[i] = et_normal(stream, 1000 + i);
    for (size_t i = 0; i < n * h * n; i++) s->in.down[i] = et_normal(stream, 2000 + i);
    for (size_t i = 0; s->in.ema && i < n; i++) s->in.ema[i] = ema;
}

/* "1100 0011" */
static inline void read_rows(const char *rows, uint8_t *mask, size_t places)
{
    size_t used = 0;
    for (; *rows; rows++)
        if (*rows != ' ') mask[used++] = *rows == '1';
    ck_assert_uint_eq(used, places);
}

static inline et_routing_verdict judge_mask(honest *k, const uint8_t *mask, bool ties_any, uint8_t *open)
{
    const et_verify_options options = {.profile = k->profile, .ties_any = ties_any};
    const et_bars bars = {.reference = &k->golden, .limits.element = 30, .variance = k->noise};
    et_judgement j = {.golden = &k->golden,
                      .reference = &k->golden,
                      .bars = &bars,
                      .mask = mask,
                      .options = &options};
    et_routing_verdict out = {.shown = mask != NULL};
    ck_assert_int_eq(et_routing_judge(&j, &out, open, NULL), ET_OK);
    return out;
}

static inline double variance_of(double sigma)
{
    return sigma / 6 * (sigma / 6);
}

/* Every score, and every gate value, gets the deviation `sigma` / 6, thresholds none. */
static inline void set_deviation(honest *k, double sigma)
{
    size_t n = k->golden.c.experts;
    for (size_t i = 0; i < k->golden.c.tokens * n; i++)
        k->noise.fwd.logits[i] = k->noise.fwd.gates[i] = variance_of(sigma);
    for (size_t i = 0; k->noise.route.threshold && i < n; i++) k->noise.route.threshold[i] = 0;
}

#endif
