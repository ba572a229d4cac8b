/* test_audit.c: the audit: which past decisions does a future change, and which could any?
 *
 * The adversary is held against all futures there are, listed one by one, on batches small enough;
 * the scores of both come from few levels, so that ties are everywhere. TC and ET without capacity
 * must never show a change, whatever the futures; Algorithm 2's scores must show one at every token.
 */
#include "etref/leakage.h"
#include "etref/random.h"
#include "tools/leakage-study/audit.h"
#include "tests/check_main.h"
#include "tests/expect.h"
#include "tests/run_case.h"

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { MOST = 64 }; /* positions */

typedef struct counts {
    uint64_t compared[MOST], taken[MOST], changed[MOST];
} counts;

static et_audit_count places(counts *c)
{
    return (et_audit_count){c->compared, c->taken, c->changed};
}

static uint64_t sum(const uint64_t values[MOST])
{
    uint64_t total = 0;
    for (size_t s = 0; s < MOST; s++) total += values[s];
    return total;
}

static void route(const et_audit_rule *rule, size_t N, const et_real *r, uint8_t *mask)
{
    et_error error;
    done(et_audit_route(rule, N, r, mask, &error), &error);
}

static void replace(const et_audit_rule *rule, size_t N, const et_real *r, const et_real *future,
                    size_t cut, counts *c)
{
    uint8_t mask[1024];
    et_error error;
    et_audit_count count = places(c);
    ck_assert_msg(N * rule->experts <= sizeof mask, "N = %zu", N);
    route(rule, N, r, mask);
    done(et_audit_replace(rule, &(et_audit_routed){N, r, mask}, future, cut, &count, &error),
         &error);
}

static void adversary(const et_audit_rule *rule, size_t N, const et_real *r, size_t cut, counts *c)
{
    uint8_t mask[1024];
    et_error error;
    et_audit_count count = places(c);
    ck_assert_msg(N * rule->experts <= sizeof mask, "N = %zu", N);
    route(rule, N, r, mask);
    done(et_audit_adversary(rule, &(et_audit_routed){N, r, mask}, cut, &count, &error), &error);
}

/* Level 1 .. levels, at random. */
static et_real level(et_stream stream, uint64_t index, size_t levels)
{
    return (et_real)(1 + (size_t)(et_uniform(stream, index, 0) * (double)levels));
}

/* ---- the adversary against every future ---- */

/* Marks the kept tokens whose decision some future on the levels 0 .. levels + 1 changes: two more
 * than the kept ones have, so that a future may be above all of them, and below. */
static void try_every_future(const et_audit_rule *rule, const et_real *r, size_t cut, size_t levels,
                             bool changed[MOST])
{
    size_t U = rule->batch, futures = 1;
    uint8_t mask[MOST], other[MOST];
    et_real batch[MOST];
    route(rule, U, r, mask);
    for (size_t s = cut; s < U; s++) futures *= levels + 2;
    for (size_t f = 0; f < futures; f++) {
        size_t rest = f;
        memcpy(batch, r, cut * sizeof *r);
        for (size_t s = cut; s < U; s++, rest /= levels + 2)
            batch[s] = (et_real)(rest % (levels + 2));
        route(rule, U, batch, other);
        for (size_t s = 0; s < cut; s++) changed[s] |= mask[s] != other[s];
    }
}

static void same_as_every_future(const et_audit_rule *rule, const et_real *r, size_t levels)
{
    for (size_t cut = 0; cut <= rule->batch; cut++) {
        bool changed[MOST] = {false};
        counts c = {0};
        if (cut > 0) try_every_future(rule, r, cut, levels, changed);
        adversary(rule, rule->batch, r, cut, &c);
        for (size_t s = 0; s < rule->batch; s++)
            ck_assert_msg(c.changed[s] == changed[s],
                          "rule %d, U = %zu, k = %zu, C = %g, cut %zu, token %zu: got %d, want %d",
                          (int)rule->rule, rule->batch, rule->select, rule->capacity, cut, s,
                          (int)c.changed[s], (int)changed[s]);
    }
}

START_TEST(the_adversary_finds_every_open_decision)
{
    enum { LEVELS = 3 };
    et_stream stream = et_stream_open(1, "audit");
    uint64_t index = 0;
    for (size_t U = 1; U <= 6; U++)
        for (size_t trial = 0; trial < 6; trial++) {
            et_real r[MOST], c;
            for (size_t s = 0; s < U; s++) r[s] = level(stream, index++, LEVELS);
            et_audit_rule rule = {.rule = ET_EC, .experts = 1, .batch = U, .threshold = &c};
            for (rule.select = 1; rule.select <= U; rule.select++) {
                rule.rule = ET_EC;
                same_as_every_future(&rule, r, LEVELS);
                rule.rule = ET_ET;
                rule.has_capacity = true;
                rule.inclusive = trial % 2;
                for (c = 0; c <= LEVELS; c++) /* a level itself, where < and <= part */
                    for (size_t C = 0; C <= 2; C++) {
                        rule.capacity = 0.5 * (double)C;
                        same_as_every_future(&rule, r, LEVELS);
                    }
            }
        }
}
END_TEST

/* ---- causal rules ---- */

START_TEST(causal_rules_never_change)
{
    enum { N = 48, n = 4 };
    et_stream stream = et_stream_open(2, "audit");
    const et_real bias[n] = {0, 1, 0, -1}, thresholds[n] = {2, 3, 1, 5};
    et_audit_rule rules[] = {
        {.rule = ET_TC, .experts = n, .batch = 16, .select = 2},
        {.rule = ET_TC, .experts = n, .batch = 16, .select = 1, .bias = bias},
        {.rule = ET_ET, .experts = n, .batch = 16, .select = 4, .threshold = thresholds},
        {.rule = ET_ET, .experts = n, .batch = 48, .threshold = thresholds, .inclusive = true},
    };
    for (size_t i = 0; i < COUNT(rules); i++)
        for (uint64_t trial = 0; trial < 50; trial++) {
            et_real r[N * n], future[N * n];
            counts c = {0};
            for (size_t j = 0; j < N * n; j++) {
                r[j] = level(stream, 2 * (trial * N * n + j), 6);
                future[j] = level(stream, 2 * (trial * N * n + j) + 1, 9);
            }
            for (size_t cut = 0; cut <= rules[i].batch; cut++) {
                replace(&rules[i], N, r, future, cut, &c);
                adversary(&rules[i], N, r, cut, &c);
            }
            ck_assert_uint_eq(sum(c.changed), 0);
            ck_assert_uint_gt(sum(c.taken), 0);
            ck_assert_uint_gt(sum(c.compared), sum(c.taken));
        }
}
END_TEST

/* ---- counting ---- */

START_TEST(a_batch_by_hand)
{
    /* Two pools of four, two experts, k = 1. Expert 0 has 3 1 4 1, then 5 2 2 0; expert 1 the same
     * in the other order. Kept: the first two of each pool; the others become 9 0, then 0 0. */
    const et_real r[] = {3, 1, 1, 4, 4, 1, 1, 3, 5, 0, 2, 2, 2, 2, 0, 5};
    const et_real future[] = {0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    const et_audit_rule rule = {.rule = ET_EC, .experts = 2, .batch = 4, .select = 1};
    const uint8_t want[] = {0, 0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1};
    uint8_t mask[16];
    counts c = {0};
    route(&rule, 8, r, mask);
    ck_assert_int_eq(memcmp(mask, want, sizeof want), 0);
    /* pool 0: expert 0 takes the 9 instead of the 4: nobody kept is touched; expert 1 keeps its 4.
     * pool 1: expert 0 keeps its 5; expert 1 loses the 5 of token 3, and takes token 1's 2. */
    replace(&rule, 8, r, future, 2, &c);
    ck_assert_uint_eq(c.compared[0], 4);
    ck_assert_uint_eq(c.compared[1], 4);
    ck_assert_uint_eq(c.taken[0], 1);
    ck_assert_uint_eq(c.taken[1], 1);
    ck_assert_uint_eq(c.changed[0], 0);
    ck_assert_uint_eq(c.changed[1], 1);
    ck_assert_uint_eq(sum(c.compared), 8);
    ck_assert_uint_eq(sum(c.changed), 1);
    /* any future: the best kept token of each expert and pool, by score and then by index */
    counts any = {0};
    adversary(&rule, 8, r, 2, &any);
    ck_assert_uint_eq(any.changed[0], 2);
    ck_assert_uint_eq(any.changed[1], 2);
    adversary(&rule, 8, r, 4, &any); /* nothing replaced, nothing changed, eight compared */
    ck_assert_uint_eq(sum(any.changed), 4);
    ck_assert_uint_eq(sum(any.compared), 8 + 16);
    adversary(&rule, 8, r, 0, &any);
    ck_assert_uint_eq(sum(any.compared), 8 + 16);
}
END_TEST

START_TEST(noise_changes_no_more_than_the_adversary)
{
    enum { N = 64, n = 4, U = 16 };
    et_stream stream = et_stream_open(3, "audit");
    const et_real thresholds[n] = {0.5, 0.7, -0.2, 1};
    et_audit_rule rules[] = {
        {.rule = ET_EC, .experts = n, .batch = U, .select = 4},
        {.rule = ET_ET,
         .experts = n,
         .batch = U,
         .select = 4,
         .threshold = thresholds,
         .has_capacity = true,
         .capacity = 0.25},
    };
    for (size_t i = 0; i < COUNT(rules); i++) {
        counts noise = {0}, worst = {0};
        et_real r[N * n], future[N * n];
        for (size_t j = 0; j < N * n; j++) {
            r[j] = (et_real)et_normal(stream, 2 * j);
            future[j] = (et_real)et_normal(stream, 2 * j + 1);
        }
        for (size_t cut = 1; cut < U; cut++) {
            replace(&rules[i], N, r, future, cut, &noise);
            adversary(&rules[i], N, r, cut, &worst);
        }
        for (size_t s = 0; s < MOST; s++) ck_assert_uint_le(noise.changed[s], worst.changed[s]);
        ck_assert_uint_gt(sum(noise.changed), 0);
        ck_assert_uint_lt(sum(noise.changed), sum(worst.changed));
    }
}
END_TEST

/* EC alone has a closed form: of t kept tokens min(k,t) - max(k-F,0) decisions are open. */
START_TEST(expert_choice_in_closed_form)
{
    enum { n = 3 };
    et_stream stream = et_stream_open(4, "audit");
    for (size_t U = 2; U <= 20; U++)
        for (size_t k = 1; k <= U; k++)
            for (size_t cut = 0; cut <= U; cut++) {
                const et_audit_rule rule = {.rule = ET_EC, .experts = n, .batch = U, .select = k};
                et_real r[20 * n];
                counts c = {0};
                for (size_t j = 0; j < U * n; j++) r[j] = level(stream, U * 1000 + j, 5);
                adversary(&rule, U, r, cut, &c);
                size_t most = k < cut ? k : cut, F = U - cut, least = k > F ? k - F : 0;
                ck_assert_uint_eq(sum(c.changed), n * (most - least));
            }
}
END_TEST

/* ---- Algorithm 2 ---- */

/* Two selections of k tokens that agree before t and part at t have the same scores up to t: the
 * future alone decides about t. The audit must see exactly that, at every token. */
START_TEST(algorithm_2_leaks_at_every_token)
{
    enum { N = 20, K = 8 };
    size_t carried;
    et_error error;
    const et_audit_rule rule = {.rule = ET_EC, .experts = 1, .batch = N, .select = K};
    for (size_t t = 0; t < N; t++) {
        uint8_t taken[N] = {0}, refused[N] = {0};
        double a[N], b[N], cutoff;
        et_real r[N], future[N];
        counts c = {0};
        size_t places_left = K;
        for (size_t s = 0; s < t; s++) { /* the past: every third, as far as both can go on */
            bool take = s % 3 == 1 && places_left > 1;
            if (N - s - 1 <= places_left) take = true;
            taken[s] = refused[s] = take;
            places_left -= take;
        }
        if (places_left == 0 || places_left >= N - t) continue; /* decided already */
        taken[t] = 1;
        for (size_t s = t + 1, left = places_left - 1; left > 0; s++, left--) taken[s] = 1;
        for (size_t s = N, left = places_left; left > 0; left--) refused[--s] = 1;
        done(et_codec_encode_in(ET_F32, N, taken, a, &cutoff, &carried, &error), &error);
        done(et_codec_encode_in(ET_F32, N, refused, b, &cutoff, &carried, &error), &error);
        ck_assert_uint_eq(carried, N);
        for (size_t s = 0; s < N; s++) {
            r[s] = (et_real)a[s];
            future[s] = (et_real)b[s];
            ck_assert(s > t || a[s] == b[s]);
        }
        replace(&rule, N, r, future, t + 1, &c);
        ck_assert_uint_eq(c.changed[t], 1);
        ck_assert_uint_eq(sum(c.changed), 1);
    }
}
END_TEST

/* ---- whole steps ---- */

/* A case's own routing, run through the audit's rule, is the step's. */
START_TEST(the_same_routing_as_a_step)
{
    const struct {
        const char *json;
        et_rule rule;
        size_t batch;
        bool capacity;
    } cases[] = {
        {"{'name':'a','rule':'ec','tokens':48,'d_model':8,'d_expert':4,'experts':4,'pool_tokens':"
         "12,"
         "'input':{'source':'ties','copies':3}}",
         ET_EC, 12, false},
        {"{'name':'b','rule':'et','tokens':48,'d_model':8,'d_expert':4,'experts':4,'micro_batches':"
         "3,"
         "'capacity_factor':0.25,'ema_updates':50,'input':{'source':'ties','copies':2}}",
         ET_ET, 16, true},
        {"{'name':'c','rule':'tc','top_k':2,'tokens':48,'d_model':8,'d_expert':4,'experts':4,"
         "'balance':'lossfree','input':{'source':'ties','copies':4}}",
         ET_TC, 48, false},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        et_case c;
        et_step s;
        et_error error;
        uint8_t mask[48 * 4];
        done(parse_quoted(&c, cases[i].json, &error), &error);
        run_case(&s, &c);
        const et_audit_rule rule = {.rule = cases[i].rule,
                                    .experts = 4,
                                    .batch = cases[i].batch,
                                    .select = c.rule == ET_TC ? c.top_k : c.target_load,
                                    .bias = s.in.bias,
                                    .threshold = s.route.threshold,
                                    .inclusive = c.inclusive,
                                    .has_capacity = cases[i].capacity,
                                    .capacity = c.capacity_factor};
        route(&rule, 48, s.fwd.logits, mask);
        ck_assert_int_eq(memcmp(mask, s.route.mask, sizeof mask), 0);
        et_step_free(&s);
    }
}
END_TEST

/* ---- refusals ---- */

START_TEST(what_is_refused)
{
    const et_real r[8] = {0};
    uint8_t mask[8] = {7, 7, 7, 7, 7, 7, 7, 7};
    et_error error;
    counts c = {0};
    et_audit_count count = places(&c);
    const et_audit_routed tokens = {8, r, mask};
    et_audit_rule rule = {.rule = ET_EC, .experts = 1, .batch = 3, .select = 1};
    ck_assert_int_eq(et_audit_route(&rule, 8, r, mask, &error), ET_EINVAL);
    ck_assert_str_eq(error.text, "audit: batches of 3 tokens do not divide 8");
    rule.batch = 0;
    ck_assert_int_eq(et_audit_adversary(&rule, &tokens, 0, &count, &error), ET_EINVAL);
    rule.batch = 4;
    ck_assert_int_eq(et_audit_replace(&rule, &tokens, r, 5, &count, &error), ET_EINVAL);
    ck_assert_str_eq(error.text, "audit: 5 tokens kept of batches of 4; at most all");
    rule.select = 5; /* the rule's own refusal */
    ck_assert_int_eq(et_audit_adversary(&rule, &tokens, 2, &count, &error), ET_EINVAL);
    ck_assert_ptr_nonnull(strstr(error.text, "k = 5"));
    rule.rule = (et_rule)9;
    ck_assert_int_eq(et_audit_adversary(&rule, &tokens, 2, &count, &error), ET_EINVAL);
    ck_assert_str_eq(error.text, "audit: rule 9 is none of the three");
    rule.experts = SIZE_MAX / 2;
    ck_assert_int_eq(et_audit_adversary(&rule, &tokens, 2, &count, &error), ET_ENOMEM);
    ck_assert_uint_eq(sum(c.compared), 0);
    ck_assert(mask[0] == 7 && mask[7] == 7);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("audit");
    TCase *tests = add_case(suite, "audit");
    tcase_add_test(tests, the_adversary_finds_every_open_decision);
    tcase_add_test(tests, causal_rules_never_change);
    tcase_add_test(tests, a_batch_by_hand);
    tcase_add_test(tests, noise_changes_no_more_than_the_adversary);
    tcase_add_test(tests, expert_choice_in_closed_form);
    tcase_add_test(tests, algorithm_2_leaks_at_every_token);
    tcase_add_test(tests, the_same_routing_as_a_step);
    tcase_add_test(tests, what_is_refused);
    return run_suite(suite);
}
