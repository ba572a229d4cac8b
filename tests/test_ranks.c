/* test_ranks.c: what each of several ranks has of a step.
 *
 * A step is the same for any number of ranks, to the bit. Under dp each rank's values are those of a step of its own tokens
 * alone, run without parallel. Under ep rows are compared with what they are made of, and parts add up; that a layer computed
 * with these tables by several processes has the same bits is shown by tools/examples/mpi.
 */
#include "tests/check_main.h"

#include "ref/step/tensors.h"
#include "tests/expect.h"
#define SUITE "parallel.json"
#include "tests/one_suite.h"

static const double unit = sizeof(et_real) == sizeof(double) ? 0x1p-53 : 0x1p-24;

static void close_to(const char *what, double got, double want, double size)
{
    near(what, got, want, 1000 * unit * size);
}

static double largest(size_t count, const et_real *values)
{
    double most = 0;
    for (size_t i = 0; i < count; i++) most = fmax(most, fabs((double)values[i]));
    return most;
}

/* ---- any number of ranks ---- */

static bool is_of_ranks(et_tensor_id id)
{
    return et_tensors[id].stage == ET_AT_RANKS;
}

START_TEST(a_step_is_the_same)
{
    for (size_t i = 0; i < cases; i++) {
        et_step many, one;
        et_case c = suite[i];
        run_case(&many, &c);
        c.parallel = ET_ONE_RANK;
        run_case(&one, &c);
        size_t own = 0;
        for (et_tensor_id id = ET_FIRST_INPUT; id < ET_TENSORS; id++) {
            et_tensor_out a = et_tensor_view(&many, id), b = et_tensor_view(&one, id);
            own += a.values && is_of_ranks(id);
            ck_assert(!(b.values && is_of_ranks(id)));
            bool apart = id == ET_STATE_EMA && c.sync_after_warmup;
            if (is_of_ranks(id) || a.values == NULL || apart) continue;
            ck_assert_uint_eq(et_tensor_count(&a), et_tensor_count(&b));
            for (size_t k = 0; k < et_tensor_count(&a); k++)
                ck_assert_msg(et_tensor_element(&a, k) == et_tensor_element(&b, k), "%s: %s",
                              c.name, a.name);
        }
        ck_assert_uint_ge(own, c.parallel == ET_EXPERT_PARALLEL ? 20 : 2);
        et_step_free(&many);
        et_step_free(&one);
    }
}
END_TEST

/* ---- ep ---- */

static void expect_rows(const et_step *s)
{
    const et_assignment *a = &s->assignment;
    size_t d = s->c.d_model;
    for (size_t i = 0; i < a->slots * d; i++) {
        size_t slot = i / d, t = (size_t)a->slot_token[slot];
        ck_assert_msg(s->rank.x_recv[i] == s->in.x[t * d + i % d], "x_recv %zu", i);
        ck_assert_msg(s->rank.dout_recv[i] == s->fwd.slot_weight[slot] * s->in.dy[t * d + i % d],
                      "dout_recv %zu", i);
    }
}

/* A copy's sum is that of its listed experts. */
static void expect_partials(const et_step *s)
{
    const et_parallel_plan *p = &s->plan;
    const et_assignment *a = &s->assignment;
    size_t d = s->c.d_model, h = s->c.d_expert, local = s->c.experts / s->c.ranks, copy = 0;
    for (size_t q = 0; q < p->ranks; q++)
        for (; copy < p->copies && p->recv_experts_begin[copy] < p->recv_begin[q + 1]; copy++)
            for (size_t k = 0; k < d; k++) {
                double y = 0, dx = 0, size = 1;
                for (int32_t i = p->recv_experts_begin[copy]; i < p->recv_experts_begin[copy + 1];
                     i++) {
                    size_t e = q * local + (size_t)p->recv_experts[i];
                    size_t slot = (size_t)a->expert_offsets[e];
                    while (a->slot_token[slot] != p->recv_token[copy]) slot++;
                    y += (double)s->fwd.slot_weight[slot] * (double)s->fwd.slot_out[slot * d + k];
                    for (size_t j = 0; j < h; j++)
                        dx += (double)s->bwd.slot_pre[slot * h + j] *
                              (double)s->in.up[(e * h + j) * d + k];
                    for (size_t j = 0; s->in.gating && j < h; j++)
                        dx += (double)s->bwd.slot_gate_pre[slot * h + j] *
                              (double)s->in.gating[(e * h + j) * d + k];
                    size += fabs(y) + fabs(dx) + largest(h, s->bwd.slot_pre + slot * h);
                }
                close_to("partial", (double)s->rank.partial[copy * d + k], y, size);
                close_to("dx_partial", (double)s->rank.dx_partial[copy * d + k], dx, size);
            }
    ck_assert_uint_eq(copy, p->copies);
}

static void expect_parts(const char *what, size_t ranks, size_t size, const et_real *parts,
                         const et_real *whole)
{
    double most = largest(ranks * size, parts) + largest(size, whole);
    for (size_t i = 0; i < size; i++) {
        double sum = 0;
        for (size_t q = 0; q < ranks; q++) sum += (double)parts[q * size + i];
        close_to(what, sum, (double)whole[i], most);
    }
}

/* Of rank 0's tokens alone. */
static void expect_first_part(const et_step *s)
{
    size_t n = s->c.experts, d = s->c.d_model;
    double most = largest(n * d, s->rank.router) + largest(n * d, s->bwd.router);
    for (size_t i = 0; i < n * d; i++) {
        double sum = 0;
        for (size_t t = 0; t < s->c.tokens / s->c.ranks; t++)
            sum += (double)s->bwd.logits[t * n + i / d] * (double)s->in.x[t * d + i % d];
        close_to("w_router_rank", (double)s->rank.router[i], sum, most);
    }
}

START_TEST(rows_and_parts)
{
    for (size_t i = 0; i < cases; i++) {
        et_step s;
        et_error error;
        if (suite[i].parallel != ET_EXPERT_PARALLEL) continue;
        run_case(&s, &suite[i]);
        size_t R = s.c.ranks, n = s.c.experts, d = s.c.d_model, hs = s.c.shared_d_expert;
        done(et_parallel_plan_check(&s.plan, &s.assignment, &error), &error);
        expect_rows(&s);
        expect_partials(&s);
        expect_first_part(&s);
        expect_parts("w_router", R, n * d, s.rank.router, s.bwd.router);
        if (hs) expect_parts("shared_up", R, hs * d, s.rank.shared_up, s.bwd.shared_up);
        if (hs) expect_parts("shared_down", R, d * hs, s.rank.shared_down, s.bwd.shared_down);
        if (s.rank.shared_gating)
            expect_parts("shared_gate", R, hs * d, s.rank.shared_gating, s.bwd.shared_gating);
        et_step_free(&s);
    }
}
END_TEST

/* ---- dp ---- */

/* A step of one rank's tokens. */
static void run_alone(et_step *s, const et_step *all, size_t rank)
{
    et_case c = all->c;
    et_error error;
    size_t N = c.tokens / c.ranks, d = c.d_model, n = c.experts, size = n * c.d_expert * d;
    size_t hs = c.shared_d_expert * d;
    c.parallel = ET_ONE_RANK;
    c.tokens = N;
    c.micro_batches /= c.ranks;
    c.z_loss_coef /= (double)c.ranks; /* its mean is over all micro-batches */
    c.balance_coef /= (double)c.ranks;
    done(et_step_create(s, &c, 0, &error), &error);
    memcpy(s->in.x, all->in.x + rank * N * d, N * d * sizeof(et_real));
    memcpy(s->in.dy, all->in.dy + rank * N * d, N * d * sizeof(et_real));
    memcpy(s->in.router, all->in.router, n * d * sizeof(et_real));
    memcpy(s->in.up, all->in.up, size * sizeof(et_real));
    memcpy(s->in.down, all->in.down, size * sizeof(et_real));
    if (hs) memcpy(s->in.shared_up, all->in.shared_up, hs * sizeof(et_real));
    if (hs) memcpy(s->in.shared_down, all->in.shared_down, hs * sizeof(et_real));
    if (s->in.gating) memcpy(s->in.gating, all->in.gating, size * sizeof(et_real));
    if (s->in.shared_gating)
        memcpy(s->in.shared_gating, all->in.shared_gating, hs * sizeof(et_real));
    if (s->in.ema) memcpy(s->in.ema, all->in.ema, n * sizeof(et_real));
    if (s->in.bias) memcpy(s->in.bias, all->in.bias, n * sizeof(et_real));
    done(et_step_run(s, ET_PLAIN, NULL, NULL, &error), &error);
}

static double squares(size_t count, const et_real *values)
{
    double sum = 0;
    for (size_t i = 0; i < count; i++) sum += (double)values[i] * (double)values[i];
    return sum;
}

static double norm_of(const et_step *s)
{
    size_t d = s->c.d_model, n = s->c.experts, size = n * s->c.d_expert * d;
    size_t hs = s->c.shared_d_expert * d;
    double sum = squares(n * d, s->bwd.router) + squares(size, s->bwd.up);
    sum += squares(size, s->bwd.down);
    if (hs) sum += squares(hs, s->bwd.shared_up) + squares(hs, s->bwd.shared_down);
    if (s->bwd.gating) sum += squares(size, s->bwd.gating);
    if (s->bwd.shared_gating) sum += squares(hs, s->bwd.shared_gating);
    return sqrt(sum);
}

static void expect_rank(const et_step *all, size_t q)
{
    et_step s;
    run_alone(&s, all, q);
    size_t n = s.c.experts;
    for (size_t i = 0; i < n; i++) {
        ck_assert((double)all->rank.load[q * n + i] == s.assignment.load[i]);
        if (!all->rank.kth) continue;
        ck_assert(all->rank.kth[q * n + i] == s.route.cutoff[i]);
        ck_assert(all->rank.ema[q * n + i] == s.state_ema[i]);
    }
    close_to("grad_norm", (double)all->rank.grad_norm[q], norm_of(&s), norm_of(&s));
    et_step_free(&s);
}

/* The mean of the ranks' averages; kept apart, rank 0's own. */
static void expect_average(const et_step *s)
{
    size_t n = s->c.experts, R = s->c.ranks;
    bool apart = s->c.sync_after_warmup && s->c.step < s->c.warmup_steps;
    bool differ = false;
    for (size_t i = 0; i < n; i++) {
        double mean = 0;
        for (size_t q = 0; q < R; q++) mean += (double)s->rank.ema[q * n + i] / (double)R;
        close_to("state.ema", (double)s->state_ema[i], apart ? (double)s->rank.ema[i] : mean,
                 1 + fabs(mean));
        differ = differ || fabs((double)s->rank.ema[i] - mean) > 1e-3;
    }
    ck_assert(differ); /* so that one could not stand for the other */
}

START_TEST(each_rank_by_itself)
{
    for (size_t i = 0; i < cases; i++) {
        et_step s;
        if (suite[i].parallel != ET_DATA_PARALLEL) continue;
        run_case(&s, &suite[i]);
        for (size_t q = 0; q < s.c.ranks; q++) expect_rank(&s, q);
        if (s.rank.ema) expect_average(&s);
        et_step_free(&s);
    }
}
END_TEST

/* As released: apart while the warm-up lasts, and under ec always. */
START_TEST(averages_kept_apart)
{
    static const struct {
        const char *fields;
        bool apart;
    } list[] = {{"'rule':'et','step':3,'warmup_steps':4", true},
                {"'rule':'et','step':4,'warmup_steps':4", false},
                {"'rule':'ec','step':9", true}};
    for (size_t v = 0; v < COUNT(list) * 2; v++) {
        char text[512];
        et_case c;
        et_step s;
        et_error error;
        bool apart = list[v / 2].apart && v % 2;
        snprintf(text, sizeof text,
                 "{'name':'a',%s,'tokens':24,'d_model':6,'d_expert':5,'experts':4,'ema_decay':0.5,"
                 "'ema_updates':2,'parallel':'dp','ranks':2,'sync_after_warmup':%s,"
                 "'input':{'source':'normal'}}",
                 list[v / 2].fields, v % 2 ? "true" : "false");
        done(parse_quoted(&c, text, &error), &error);
        run_case(&s, &c);
        for (size_t i = 0; i < 4; i++) {
            double own = (double)s.rank.ema[i], mean = (own + (double)s.rank.ema[4 + i]) / 2;
            close_to("state.ema", (double)s.state_ema[i], apart ? own : mean, 1 + fabs(mean));
            ck_assert(fabs(own - mean) > 1e-6);
        }
        et_step_free(&s);
    }
}
END_TEST

int main(void)
{
    Suite *all = suite_create("ranks");
    TCase *tests = add_case(all, "ranks");
    tcase_add_unchecked_fixture(tests, read_cases, free_cases);
    tcase_add_test(tests, a_step_is_the_same);
    tcase_add_test(tests, rows_and_parts);
    tcase_add_test(tests, each_rank_by_itself);
    tcase_add_test(tests, averages_kept_apart);
    return run_suite(all);
}
