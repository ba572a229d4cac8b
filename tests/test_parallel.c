/* test_parallel.c: which rows travel between ranks.
 *
 * By hand for the header's example and the edges; for random masks every table's promises, which et_parallel_plan_check asks
 * in another way than the plan is made, and an identity expert: what is sent, received and sent back gives fanout times x.
 * Then each table is broken, and the check must say which.
 */
#include "etref/parallel.h"
#include "etref/random.h"
#include "tests/check_main.h"
#include "tests/expect.h"

#include <string.h>

enum { MOST_MASK = 4096 };

static void plan_of(et_parallel_plan *p, et_assignment *a, size_t N, size_t n, size_t R,
                    const uint8_t *mask)
{
    et_error error;
    done(et_assignment_build(a, N, n, mask, &error), &error);
    done(et_parallel_plan_build(p, a, R, &error), &error);
    done(et_parallel_plan_check(p, a, &error), &error);
}

static void end(et_parallel_plan *p, et_assignment *a)
{
    et_parallel_plan_free(p);
    et_parallel_plan_free(p); /* zeros by now */
    et_assignment_free(a);
}

START_TEST(the_example)
{
    const uint8_t mask[] = {1, 0, 0, 1, 1, 1, 1, 0}, in_rank[] = {1, 0, 0, 1, 1, 1, 1, 0};
    const int32_t counts[] = {1, 1, 2, 1}, sent[] = {0, 3, 1, 2, 4}, begin[] = {0, 2, 5};
    const int32_t received[] = {0, 1, 2, 3, 4}, recv_begin[] = {0, 3, 5}, rows[] = {3, 2};
    const int32_t padded[] = {0, 1, 2, 3, 4, -1}, token[] = {0, 1, 0, 1, 0},
                  expert[] = {0, 0, 0, 0, 0};
    const int32_t copies[] = {1, 1, 2, 1}, prefix[] = {1, 1, 3, 2}, tokens[] = {0, 2, 3, 1, 2};
    const int32_t first[] = {0, 1, 2, 3, 4, 5};
    et_assignment a;
    et_parallel_plan p;
    plan_of(&p, &a, 4, 2, 2, mask);
    ck_assert_uint_eq(p.copies, 5);
    ck_assert_uint_eq(p.padded, 3);
    same_integers("send_counts", 4, p.send_counts, counts);
    same_integers("send_slot", 5, p.send_slot, sent);
    same_integers("send_begin", 3, p.send_begin, begin);
    same_integers("recv_slot", 5, p.recv_slot, received);
    same_integers("recv_begin", 3, p.recv_begin, recv_begin);
    same_integers("recv_padded", 6, p.recv_padded, padded);
    same_integers("recv_rows", 2, p.recv_rows, rows);
    same_integers("local_token", 5, p.local_token, token);
    same_integers("local_expert", 5, p.local_expert, expert);
    same_integers("tokens_per_rank", 4, p.tokens_per_rank, copies);
    same_integers("rank_prefix", 4, p.rank_prefix, prefix);
    same_integers("recv_token", 5, p.recv_token, tokens);
    same_integers("recv_experts", 5, p.recv_experts, expert);
    same_integers("recv_experts_begin", 6, p.recv_experts_begin, first);
    ck_assert_mem_eq(p.token_in_rank, in_rank, sizeof in_rank);
    end(&p, &a);
}
END_TEST

/* Two experts a rank: j comes before q, so a rank's rows are not in the order of slots. */
START_TEST(local_experts_one_after_the_other)
{
    const uint8_t mask[] = {1, 1, 1, 1, 0, 1, 1, 0};
    const int32_t counts[] = {1, 1, 1, 1, 0, 1, 1, 0}, sent[] = {0, 3, 1, 5, 4, 2};
    const int32_t experts[] = {0, 0, 1, 1, 0, 1}, local[] = {0, 1, 1, 0, 1, 0};
    const int32_t begin[] = {0, 2, 3, 5, 6};
    const int32_t topk[] = {0, 1, -1, -1, 1, -1, -1, -1, -1, -1, 0, 1, -1, 0, -1, -1};
    et_assignment a;
    et_parallel_plan p;
    plan_of(&p, &a, 2, 4, 2, mask);
    same_integers("send_counts", 8, p.send_counts, counts);
    same_integers("send_slot", 6, p.send_slot, sent);
    same_integers("local_expert", 6, p.local_expert, experts);
    ck_assert_uint_eq(p.copies, 4);
    same_integers("recv_experts", 6, p.recv_experts, local);
    same_integers("recv_experts_begin", 5, p.recv_experts_begin, begin);
    ck_assert_uint_eq(p.widest, 4);
    same_integers("recv_topk", 16, p.recv_topk, topk);
    end(&p, &a);
}
END_TEST

START_TEST(edges)
{
    const uint8_t none[16] = {0}, to_last[] = {0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1};
    et_assignment a;
    et_parallel_plan p;
    plan_of(&p, &a, 4, 4, 2, none); /* nobody sends anything */
    ck_assert_uint_eq(p.copies + p.padded + (size_t)p.recv_rows[1], 0);
    end(&p, &a);
    plan_of(&p, &a, 4, 4, 4, to_last); /* all tokens to one rank */
    ck_assert_uint_eq(p.copies, 4);
    ck_assert(p.recv_begin[3] == 0 && p.recv_begin[4] == 4 && p.recv_rows[3] == 4);
    ck_assert(p.recv_padded[0] == -1 && p.recv_padded[3 * p.padded] == 0);
    end(&p, &a);
    plan_of(&p, &a, 4, 4, 1, to_last); /* one rank: sent as received, as slots are numbered */
    same_integers("one rank", 4, p.send_slot, p.recv_slot);
    ck_assert(p.send_counts[3] == 4 && p.copies == 4);
    end(&p, &a);
    plan_of(&p, &a, 0, 0, 3, none);
    ck_assert_uint_eq(p.slots + p.copies, 0);
    end(&p, &a);
}
END_TEST

START_TEST(ranks_must_divide)
{
    const uint8_t mask[12] = {1};
    et_assignment a;
    et_parallel_plan p;
    et_error error;
    done(et_assignment_build(&a, 4, 3, mask, &error), &error);
    refused(et_parallel_plan_build(&p, &a, 0, &error), &error,
            "parallel plan: 0 ranks; 1 to 2^31-1");
    refused(et_parallel_plan_build(&p, &a, 2, &error), &error,
            "parallel plan: 4 tokens and 3 experts on 2 ranks; the ranks must divide both");
    ck_assert_ptr_null(p.send_counts);
    refused(et_parallel_plan_build(&p, &a, 3, &error), &error,
            "parallel plan: 4 tokens and 3 experts on 3 ranks; the ranks must divide both");
    et_assignment_free(&a);
}
END_TEST

/* ---- random masks ---- */

static const struct {
    size_t N, n, R;
    double p;
} shapes[] = {{1, 1, 1, 1},    {8, 4, 2, 0.3},    {12, 6, 3, 0.5},  {16, 8, 8, 0.1},
              {16, 8, 4, 0.9}, {40, 20, 5, 0.05}, {24, 24, 8, 0.2}, {64, 16, 1, 0.3}};

static void random_mask(uint64_t seed, size_t v, uint8_t *mask)
{
    et_stream stream = et_stream_open(seed, "mask");
    for (size_t i = 0; i < shapes[v].N * shapes[v].n; i++)
        mask[i] = et_uniform(stream, i, 0) < shapes[v].p;
}

/* Rows x[t] travel as the splits say, each expert is the identity, and what comes back is added by its sender. */
static void expect_fanouts(const et_parallel_plan *p, const et_assignment *a)
{
    size_t R = p->ranks, nl = p->experts / R, Nl = p->tokens / R, groups = R * p->experts;
    double *received = room_for(p->slots, sizeof *received);
    double *y = room_for(p->tokens, sizeof *y);
    int32_t *at = room_for(groups, sizeof *at);
    int32_t begin = 0;
    for (size_t q = 0; q < R; q++) /* where the rows of [s][j][q] are received */
        for (size_t j = 0; j < nl; j++)
            for (size_t s = 0; s < R; s++) {
                at[(s * nl + j) * R + q] = begin;
                begin += p->send_counts[(s * nl + j) * R + q];
            }
    for (int back = 0; back < 2; back++)
        for (size_t g = 0, row = 0; g < groups; g++)
            for (int32_t i = 0; i < p->send_counts[g]; i++, row++) {
                size_t t = g / p->experts * Nl + (size_t)p->local_token[row];
                if (back)
                    y[t] += received[at[g] + i];
                else
                    received[at[g] + i] = 1 + (double)t;
            }
    for (size_t slot = 0; slot < p->slots; slot++)
        ck_assert_msg(received[slot] == 1 + (double)a->slot_token[p->recv_slot[slot]], "row %zu",
                      slot);
    for (size_t t = 0; t < p->tokens; t++)
        ck_assert_msg(y[t] == a->fanout[t] * (1 + (double)t), "token %zu", t);
    free(received);
    free(y);
    free(at);
}

START_TEST(random_plans)
{
    for (size_t v = 0; v < COUNT(shapes); v++)
        for (uint64_t seed = 1; seed <= 20; seed++) {
            uint8_t mask[MOST_MASK];
            et_assignment a;
            et_parallel_plan p;
            random_mask(seed, v, mask);
            plan_of(&p, &a, shapes[v].N, shapes[v].n, shapes[v].R, mask);
            expect_fanouts(&p, &a);
            end(&p, &a);
        }
}
END_TEST

/* ---- the check notices ---- */

static void notice(const et_parallel_plan *p, const et_assignment *a, const char *words)
{
    et_error error;
    ck_assert_msg(et_parallel_plan_check(p, a, &error) == ET_EINVAL, "accepted: %s", words);
    ck_assert_msg(strstr(error.text, words) != NULL, "%s: %s", words, error.text);
}

static void exchange(int32_t *list, size_t i, size_t j)
{
    int32_t before = list[i];
    list[i] = list[j];
    list[j] = before;
}

/* Rows of a group may lie in any order; the local numbers go with them. */
START_TEST(order_within_a_group_is_free)
{
    const uint8_t mask[] = {1, 0, 1, 0, 1, 1, 0, 1};
    et_assignment a;
    et_parallel_plan p;
    et_error error;
    plan_of(&p, &a, 4, 2, 2, mask);
    exchange(p.send_slot, 0, 1);
    exchange(p.local_token, 0, 1);
    exchange(p.recv_slot, 0, 1);
    exchange(p.recv_padded, 0, 2);
    done(et_parallel_plan_check(&p, &a, &error), &error);
    exchange(p.send_slot, 0, 2);
    notice(&p, &a, "belongs further ahead");
    end(&p, &a);
}
END_TEST

START_TEST(every_table_is_checked)
{
    enum { TABLES = 15 };
    static const char *const says[TABLES] = {
        "send_counts[", "send_slot[",  "send_begin[",   "recv_slot[",          "recv_begin[",
        "recv_padded[", "recv_rows[",  "local_token[",  "local_expert[",       "tokens_per_rank[",
        "rank_prefix[", "recv_token[", "recv_experts[", "recv_experts_begin[", "recv_topk["};
    uint8_t mask[MOST_MASK];
    et_assignment a;
    et_parallel_plan p;
    random_mask(3, 4, mask);
    plan_of(&p, &a, shapes[4].N, shapes[4].n, shapes[4].R, mask);
    int32_t *tables[TABLES] = {p.send_counts,  p.send_slot,          p.send_begin,  p.recv_slot,
                               p.recv_begin,   p.recv_padded,        p.recv_rows,   p.local_token,
                               p.local_expert, p.tokens_per_rank,    p.rank_prefix, p.recv_token,
                               p.recv_experts, p.recv_experts_begin, p.recv_topk};
    for (size_t i = 0; i < TABLES; i++) {
        tables[i][1]++;
        notice(&p, &a, says[i]);
        tables[i][1]--;
    }
    p.token_in_rank[5] ^= 1;
    notice(&p, &a, "token_in_rank[");
    p.token_in_rank[5] ^= 1;
    int32_t *counts = p.send_counts, turned[32 * 4];
    for (size_t g = 0; g < 32; g++) turned[g] = counts[(g % 4 * 2 + g / 4 % 2) * 4 + g / 8];
    p.send_counts = turned;
    notice(&p, &a, "send_counts is transposed");
    p.send_counts = counts;
    end(&p, &a);
}
END_TEST

int main(void)
{
    Suite *all = suite_create("parallel");
    TCase *tests = add_case(all, "plans");
    tcase_add_test(tests, the_example);
    tcase_add_test(tests, local_experts_one_after_the_other);
    tcase_add_test(tests, edges);
    tcase_add_test(tests, ranks_must_divide);
    tcase_add_test(tests, random_plans);
    tcase_add_test(tests, order_within_a_group_is_free);
    tcase_add_test(tests, every_table_is_checked);
    return run_suite(all);
}
