/* test_balance.c: losses and biases that balance loads, and what is measured of a routing.
 *
 * By hand, with numbers that every operation leaves exact; where logarithms enter, by their
 * definitions, within a few units of roundoff that are counted beside the comparison.
 */
#include "etref/random.h"
#include "etref/routing.h"
#include "tests/check_main.h"
#include "tests/expect.h"

static const double U = ET_UNIT_ROUNDOFF;

/* ---- balancing ---- */

START_TEST(fractions_of_loads)
{
    const et_real load[] = {3, 1, 0, 4};
    et_real F[4];
    et_balance_fractions(4, 4, 2, load, F); /* n load / (K N) = load / 2 */
    same_reals("F", 4, F, (const et_real[]){1.5, 0.5, 0, 2});
    const et_real even[] = {6, 6, 6, 6};
    et_balance_fractions(8, 4, 3, even, F);
    same_reals("perfect balance", 4, F, (const et_real[]){1, 1, 1, 1});
}
END_TEST

/* P = (3/8, 1/2), F = (3/2, 1/2). */
START_TEST(auxiliary_losses_by_hand)
{
    const et_real p[] = {0.25, 0.75, 0.5, 0.25}, F[] = {1.5, 0.5};
    static const struct {
        et_balance balance;
        et_real loss, gradient[2]; /* scale F' / N, with scale 4 */
    } known[] = {{ET_BALANCE_AUX, 0.8125, {3, 1}}, {ET_BALANCE_AUX_ERROR, -0.0625, {1, -1}}};
    for (size_t v = 0; v < COUNT(known); v++) {
        et_real dp[] = {10, 20, 30, 40}, want[] = {10, 20, 30, 40};
        for (size_t j = 0; j < 4; j++) want[j] += known[v].gradient[j % 2];
        et_real loss = et_aux_loss(NULL, known[v].balance, 2, 2, F, p, 4, dp);
        same_reals("value", 1, &loss, &known[v].loss);
        same_reals("gradient, accumulated", 4, dp, want);
        loss = et_aux_loss(NULL, known[v].balance, 2, 2, F, p, 4, NULL);
        same_reals("value alone", 1, &loss, &known[v].loss);
    }
}
END_TEST

/* Under perfect balance (F = 1) aux is the mean over tokens of the sum of their gate values, and
 * aux_error is 0, whatever the gates; renaming experts changes neither. */
START_TEST(auxiliary_losses_are_invariant)
{
    enum { N = 8, n = 4 };
    const et_real ones[n] = {1, 1, 1, 1}, F[n] = {2, 0.5, 0, 1.5};
    et_real p[N * n], renamed[N * n], F_renamed[n], total = 0, loss;
    et_stream stream = et_stream_open(7, "test.gates");
    for (size_t j = 0; j < N * n; j++) {
        p[j] = (et_real)floor(16 * et_uniform(stream, j, 0)) / 16; /* sums of these are exact */
        renamed[j / n * n + (j + 1) % n] = p[j];
        total += p[j];
    }
    for (size_t i = 0; i < n; i++) F_renamed[(i + 1) % n] = F[i];
    loss = et_aux_loss(NULL, ET_BALANCE_AUX, N, n, ones, p, 1, NULL) * N;
    same_reals("perfect balance", 1, &loss, &total);
    loss = et_aux_loss(NULL, ET_BALANCE_AUX_ERROR, N, n, ones, p, 1, NULL);
    same_reals("perfect balance, error", 1, &loss, &(const et_real){0});
    loss = et_aux_loss(NULL, ET_BALANCE_AUX, N, n, F, p, 1, NULL);
    total = et_aux_loss(NULL, ET_BALANCE_AUX, N, n, F_renamed, renamed, 1, NULL);
    same_reals("renamed", 1, &loss, &total);
}
END_TEST

/* Tokens of one expert: lse = r, the loss is the mean of r^2 and its gradient 2 r / N. */
START_TEST(z_loss_of_one_expert)
{
    const et_real r[] = {3, -5, 0, 800};
    et_real dr[] = {1, 1, 1, 1}, loss = et_z_loss(NULL, 4, 1, r, 2, dr);
    same_reals("value", 1, &loss, &(const et_real){(9 + 25 + 640000) / (et_real)4});
    same_reals("gradient, accumulated", 4, dr, (const et_real[]){4, -4, 1, 801});
}
END_TEST

/* Equal logits: lse = r + log n. Far apart: lse is the larger one. exp and log are good to 2 u, the
 * sums and products around them round four times: 8 u, and lse enters its square twice. */
START_TEST(z_loss_by_hand)
{
    static const struct {
        et_real r[2];
        double lse, share[2]; /* and the softmax */
    } known[] = {
        {{0, 0}, 0.69314718055994531, {0.5, 0.5}},
        {{3, 3}, 3.69314718055994531, {0.5, 0.5}},
        {{-800, -800}, -799.30685281944005, {0.5, 0.5}},
        {{800, 800}, 800.69314718055995, {0.5, 0.5}},
        {{800, -800}, 800, {1, 0}},
        {{-800, 800}, 800, {0, 1}},
        {{-3, -50}, -3, {1, 3.8739976286871872e-21}},
    };
    for (size_t v = 0; v < COUNT(known); v++) {
        double lse = known[v].lse;
        et_real dr[2] = {0, 0}, loss = et_z_loss(NULL, 1, 2, known[v].r, 0.5, dr);
        near("value", (double)loss, lse * lse, 16 * U);
        for (int i = 0; i < 2; i++) /* relative to the share, however small it is */
            ck_assert(fabs((double)dr[i] - lse * known[v].share[i]) <=
                      16 * U * fabs(lse * known[v].share[i]));
        et_real again = et_z_loss(NULL, 1, 2, known[v].r, 0.5, NULL);
        same_reals("value alone", 1, &again, &loss);
    }
}
END_TEST

/* Adding s to a token's logits adds s to its lse: here lse = 2 s + log(e^1 + e^2 + e^4). */
START_TEST(z_loss_shifts_and_averages)
{
    const double lse = log(exp(1) + exp(2) + exp(4));
    const et_real r[] = {1, 2, 4, 12, 9, 10}; /* the second token: shifted by 8, and renamed */
    et_real dr[6] = {0}, loss = et_z_loss(NULL, 2, 3, r, 1, dr);
    near("mean over tokens", (double)loss, (lse * lse + (lse + 8) * (lse + 8)) / 2, 16 * U);
    for (int i = 0; i < 3; i++) {
        double share = exp((double)r[i] - lse);
        near("first token", (double)dr[i], lse * share, 16 * U);
        near("second token", (double)dr[3 + (i + 1) % 3], (lse + 8) * share, 16 * U);
    }
}
END_TEST

START_TEST(biases_move_by_hand)
{
    static const struct {
        const char *what;
        et_balance balance;
        et_real load[3], moved[3]; /* by a rate of 1/4; N = n = 3, K = 2 */
    } known[] = {
        {"loss-free: the mean itself stays", ET_BALANCE_LOSSFREE, {1, 2, 3}, {0.25, 0, -0.25}},
        {"loss-free: a mean of 4/3", ET_BALANCE_LOSSFREE, {1, 1, 2}, {0.25, 0.25, -0.25}},
        {"loss-free: even", ET_BALANCE_LOSSFREE, {7, 7, 7}, {0, 0, 0}},
        {"loss-free: no size, only sign", ET_BALANCE_LOSSFREE, {0, 1000, 0}, {0.25, -0.25, 0.25}},
        {"proportional: F = load / 2", ET_BALANCE_PROPORTIONAL, {2, 1, 3}, {0, 0.125, -0.125}},
        {"proportional: empty and full", ET_BALANCE_PROPORTIONAL, {0, 6, 0}, {0.25, -0.5, 0.25}},
        {"none", ET_BALANCE_NONE, {1, 2, 3}, {0, 0, 0}},
        {"aux", ET_BALANCE_AUX, {1, 2, 3}, {0, 0, 0}},
        {"aux_error", ET_BALANCE_AUX_ERROR, {1, 2, 3}, {0, 0, 0}},
    };
    for (size_t v = 0; v < COUNT(known); v++) {
        et_real bias[] = {1, 2, 3}, want[] = {1, 2, 3};
        for (size_t i = 0; i < 3; i++) want[i] += known[v].moved[i];
        et_bias_update(NULL, known[v].balance, 3, 3, 2, known[v].load, 0.25,
                       bias); /* n/(K N) = 1/2 */
        same_reals(known[v].what, 3, bias, want);
    }
}
END_TEST

/* ---- metrics ---- */

START_TEST(means_and_deviations)
{
    const et_real values[] = {2, 4, 4, 4, 5, 5, 7, 9};
    et_real mean, std, far[8];
    et_mean_std(NULL, 0, NULL, &mean, &std);
    ck_assert(mean == 0 && std == 0);
    et_mean_std(NULL, 1, values, &mean, &std);
    ck_assert(mean == 2 && std == 0);
    et_mean_std(NULL, 8, values, &mean, &std); /* squares 9 1 1 1 0 0 4 16, mean 4 */
    ck_assert(mean == 5 && std == 2);
    for (int i = 0; i < 8; i++) far[i] = values[i] + 1048576;
    et_mean_std(NULL, 8, far, &mean, &std); /* nothing cancels */
    ck_assert(mean == 1048581 && std == 2);
}
END_TEST

START_TEST(capacity_use_by_hand)
{
    static const struct {
        const char *what;
        et_capacity bounds;
        int32_t passed[4];
        et_real saturation, starvation, overflow, underflow;
    } known[] = {
        /* 16 passed, 3 of them dropped; 3 + 3 of 4 x 4 places padded */
        {"both sides", {4, 6}, {1, 5, 9, 1}, 3. / 16, 6. / 16, 0.25, 0.5},
        {"at the bounds", {4, 6}, {4, 6, 6, 4}, 0, 0, 0, 0},
        {"one beyond", {4, 6}, {3, 7, 4, 6}, 1. / 20, 1. / 16, 0.25, 0.25},
        {"none passed", {2, 6}, {0, 0, 0, 0}, 0, 1, 0, 1},
        {"no lower bound", {0, 2}, {0, 4, 4, 0}, 0.5, 0, 0.5, 0},
    };
    for (size_t v = 0; v < COUNT(known); v++) /* as one batch of four experts, and as two of two */
        for (size_t M = 1; M <= 2; M++) {
            et_capacity_use use = et_capacity_measure(M, 4 / M, known[v].bounds, known[v].passed);
            const et_real got[] = {use.saturation, use.starvation, use.overflow, use.underflow};
            const et_real want[] = {known[v].saturation, known[v].starvation, known[v].overflow,
                                    known[v].underflow};
            same_reals(known[v].what, 4, got, want);
        }
}
END_TEST

/* One token, four experts. Divergences are in bits: 1 is the most there can be. */
START_TEST(overlaps_by_hand)
{
    static const struct {
        const char *what;
        uint8_t a[4], b[4];
        double jaccard, dice, divergence, variation;
    } known[] = {
        {"both empty", {0, 0, 0, 0}, {0, 0, 0, 0}, 1, 1, 0, 0},
        {"first empty", {0, 0, 0, 0}, {0, 1, 0, 1}, 0, 0, 1, 1},
        {"second empty", {1, 0, 0, 0}, {0, 0, 0, 0}, 0, 0, 1, 1},
        {"identical", {1, 0, 1, 1}, {1, 0, 1, 1}, 1, 1, 0, 0},
        {"identical, any byte counts as 1", {1, 0, 2, 255}, {4, 0, 1, 7}, 1, 1, 0, 0},
        {"disjoint", {1, 1, 0, 0}, {0, 0, 1, 0}, 0, 0, 1, 1},
        {"half", {1, 1, 0, 0}, {0, 1, 1, 0}, 1. / 3, 0.5, 0.5, 0.5},
        /* P = (1/2, 1/2), Q = (0, 1), M = (1/4, 3/4):
         * JSD = (1/2 log 2 + 1/2 log 2/3 + log 4/3) / 2 = 3/2 - 3/4 log 3,  log 3 = 1.58496... */
        {"contained", {1, 1, 0, 0}, {0, 1, 0, 0}, 0.5, 2. / 3, 0.31127812445913283, 0.5},
        /* P = (1/2, 1/2, 0, 0), Q = (0, 1/3, 1/3, 1/3), M = (1/4, 5/12, 1/6, 1/6):
         * JSD = (1/2 log 2 + 1/2 log 6/5 + 1/3 log 4/5 + 2/3 log 2) / 2 */
        {"one of two, of three",
         {1, 1, 0, 0},
         {0, 1, 1, 1},
         0.25,
         0.4,
         0.59543725231055487,
         2. / 3},
    };
    for (size_t v = 0; v < COUNT(known); v++) {
        et_overlap o = et_routing_overlap(1, 4, known[v].a, known[v].b);
        near(known[v].what, o.jaccard, known[v].jaccard, 1e-15);
        near(known[v].what, o.dice, known[v].dice, 1e-15);
        near(known[v].what, o.divergence, known[v].divergence, 1e-15);
        near(known[v].what, o.variation, known[v].variation, 1e-15);
        near(known[v].what, o.pooled_jaccard, known[v].jaccard, 1e-15); /* of one token: the same */
        near(known[v].what, o.pooled_dice, known[v].dice, 1e-15);
    }
}
END_TEST

/* Three tokens: identical (3 experts), disjoint (1 and 1), both empty. Pooled, 3 of 5 pairs are
 * common; token by token, the means are (1 + 0 + 1)/3. */
START_TEST(pooled_is_not_the_mean)
{
    const uint8_t a[] = {1, 1, 1, 1, 0, 0, 0, 0, 0}, b[] = {1, 1, 1, 0, 1, 0, 0, 0, 0};
    et_overlap o = et_routing_overlap(3, 3, a, b);
    near("pooled Jaccard", o.pooled_jaccard, 3. / 5, 1e-15);
    near("pooled Dice", o.pooled_dice, 6. / 8, 1e-15);
    near("Jaccard", o.jaccard, 2. / 3, 1e-15);
    near("Dice", o.dice, 2. / 3, 1e-15);
    near("divergence", o.divergence, 1. / 3, 1e-15);
    near("variation", o.variation, 1. / 3, 1e-15);
}
END_TEST

/* Probability of expert i under the uniform distribution over a token's experts. */
static double share(size_t n, const uint8_t *z, size_t i)
{
    double count = 0;
    for (size_t j = 0; j < n; j++) count += z[j] != 0;
    return z[i] ? 1 / count : 0;
}

static double term(double p, double m)
{
    return p > 0 ? p * log2(p / m) : 0;
}

/* The definitions: sums over the experts of the two distributions. Neither side is empty. */
static void distances(size_t n, const uint8_t *a, const uint8_t *b, double *jsd, double *tv)
{
    *jsd = *tv = 0;
    for (size_t i = 0; i < n; i++) {
        double p = share(n, a, i), q = share(n, b, i), m = (p + q) / 2;
        *jsd += (term(p, m) + term(q, m)) / 2;
        *tv += fabs(p - q) / 2;
    }
}

/* All pairs of non-empty sets of up to five experts. */
START_TEST(divergence_is_that_of_the_distributions)
{
    enum { n = 5, SETS = 1 << n };
    for (unsigned x = 1; x < SETS; x++)
        for (unsigned y = 1; y < SETS; y++) {
            uint8_t a[n], b[n];
            for (unsigned i = 0; i < n; i++) {
                a[i] = (uint8_t)(x >> i & 1);
                b[i] = (uint8_t)(y >> i & 1);
            }
            double jsd, tv;
            distances(n, a, b, &jsd, &tv);
            et_overlap o = et_routing_overlap(1, n, a, b);
            near("JSD", o.divergence, jsd, 1e-14);
            near("TV", o.variation, tv, 1e-14);
        }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("balance and metrics");
    TCase *balance = add_case(suite, "balancing"), *metrics = add_case(suite, "metrics");
    tcase_add_test(balance, fractions_of_loads);
    tcase_add_test(balance, auxiliary_losses_by_hand);
    tcase_add_test(balance, auxiliary_losses_are_invariant);
    tcase_add_test(balance, z_loss_of_one_expert);
    tcase_add_test(balance, z_loss_by_hand);
    tcase_add_test(balance, z_loss_shifts_and_averages);
    tcase_add_test(balance, biases_move_by_hand);
    tcase_add_test(metrics, means_and_deviations);
    tcase_add_test(metrics, capacity_use_by_hand);
    tcase_add_test(metrics, overlaps_by_hand);
    tcase_add_test(metrics, pooled_is_not_the_mean);
    tcase_add_test(metrics, divergence_is_that_of_the_distributions);
    return run_suite(suite);
}
