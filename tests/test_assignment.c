/* test_assignment.c: from a mask to slots, their offsets, and the layout in blocks.
 *
 * By hand for the smallest masks; for random ones, what each array promises, asked of every slot.
 */
#include "etref/random.h"
#include "etref/routing.h"
#include "tests/check_main.h"
#include "tests/expect.h"

#include <string.h>

typedef struct layout_case {
    const char *what;
    size_t N, n;
    uint8_t mask[12];
    int32_t expert_offsets[5], token_offsets[5];
    int32_t slot_token[8], slot_expert[8], token_slots[8];
} layout_case;

/* clang-format off */
static const layout_case layouts[] = {
    {"the header's example", 3, 2, {1, 0, 1, 1, 0, 0}, {0, 2, 3}, {0, 1, 3, 3}, {0, 1, 1},
     {0, 0, 1}, {0, 1, 2}},
    {"slots are expert by expert, token_slots token by token", 3, 2, {1, 1, 0, 1, 1, 0}, {0, 2, 4},
     {0, 2, 3, 4}, {0, 2, 0, 1}, {0, 0, 1, 1}, {0, 2, 3, 1}},
    {"the first expert is empty", 2, 3, {0, 1, 1, 0, 0, 1}, {0, 0, 1, 3}, {0, 2, 3}, {0, 0, 1},
     {1, 2, 2}, {0, 1, 2}},
    {"the middle expert is empty", 2, 3, {1, 0, 0, 1, 0, 1}, {0, 2, 2, 3}, {0, 1, 3}, {0, 1, 1},
     {0, 0, 2}, {0, 1, 2}},
    {"the last expert is empty", 2, 3, {0, 1, 0, 1, 1, 0}, {0, 1, 3, 3}, {0, 1, 3}, {1, 0, 1},
     {0, 1, 1}, {1, 0, 2}},
    {"all empty", 2, 3, {0}, {0, 0, 0, 0}, {0, 0, 0}, {0}, {0}, {0}},
    {"any byte but 0 is a slot", 1, 3, {2, 0, 255}, {0, 1, 1, 2}, {0, 2}, {0, 0}, {0, 2}, {0, 1}},
    {"no token", 0, 2, {0}, {0, 0, 0}, {0}, {0}, {0}, {0}},
    {"no expert", 2, 0, {0}, {0}, {0, 0, 0}, {0}, {0}, {0}},
    {"nothing", 0, 0, {0}, {0}, {0}, {0}, {0}, {0}},
};
/* clang-format on */

START_TEST(assignments_by_hand)
{
    for (size_t v = 0; v < COUNT(layouts); v++) {
        const layout_case *c = &layouts[v];
        et_assignment a;
        et_error error;
        ck_assert_int_eq(et_assignment_build(&a, c->N, c->n, c->mask, &error), ET_OK);
        size_t S = (size_t)c->expert_offsets[c->n];
        ck_assert_uint_eq(a.slots, S);
        ck_assert_uint_eq(a.tokens, c->N);
        ck_assert_uint_eq(a.experts, c->n);
        same_integers(c->what, c->n + 1, a.expert_offsets, c->expert_offsets);
        same_integers(c->what, c->N + 1, a.token_offsets, c->token_offsets);
        same_integers(c->what, S, a.slot_token, c->slot_token);
        same_integers(c->what, S, a.slot_expert, c->slot_expert);
        same_integers(c->what, S, a.token_slots, c->token_slots);
        for (size_t i = 0; i < c->n; i++)
            ck_assert_int_eq(a.load[i], c->expert_offsets[i + 1] - c->expert_offsets[i]);
        for (size_t t = 0; t < c->N; t++)
            ck_assert_int_eq(a.fanout[t], c->token_offsets[t + 1] - c->token_offsets[t]);
        et_assignment_free(&a);
        et_assignment_free(&a); /* zeros by now */
    }
}
END_TEST

START_TEST(assignment_refuses_more_than_it_can_number)
{
    const uint8_t mask[1] = {1};
    et_assignment a;
    et_error error;
    refused(et_assignment_build(&a, INT32_MAX, 1, mask, &error), &error,
            "assignment: 2147483647 tokens and 1 experts; at most 2^31-2");
    refused(et_assignment_build(&a, 1, INT32_MAX, mask, &error), &error,
            "assignment: 1 tokens and 2147483647 experts; at most 2^31-2");
    ck_assert_ptr_null(a.load); /* nothing to free */
}
END_TEST

/* Every pair with probability p, but experts 1, 5, 9, .. stay empty. */
static void random_mask(uint64_t seed, size_t N, size_t n, double p, uint8_t *mask)
{
    et_stream stream = et_stream_open(seed, "test.mask");
    for (size_t j = 0; j < N * n; j++)
        mask[j] = j % n % 4 != 1 && et_uniform(stream, j, 0) < p ? 1 : 0;
}

static void check_assignment(const et_assignment *a, const uint8_t *mask)
{
    size_t n = a->experts, expected = 0;
    for (size_t j = 0; j < a->tokens * n; j++) expected += mask[j];
    ck_assert_uint_eq(a->slots, expected);
    ck_assert_int_eq(a->expert_offsets[n], (int32_t)expected);
    ck_assert_int_eq(a->token_offsets[a->tokens], (int32_t)expected);
    for (size_t i = 0; i < n; i++) /* the slots of an expert: its own, tokens ascending */
        for (int32_t s = a->expert_offsets[i]; s < a->expert_offsets[i + 1]; s++) {
            ck_assert_uint_eq((size_t)a->slot_expert[s], i);
            ck_assert(mask[(size_t)a->slot_token[s] * n + i]);
            if (s > a->expert_offsets[i]) ck_assert(a->slot_token[s] > a->slot_token[s - 1]);
        }
    for (size_t t = 0; t < a->tokens; t++) /* the slots of a token: its own, experts ascending */
        for (int32_t j = a->token_offsets[t]; j < a->token_offsets[t + 1]; j++) {
            int32_t s = a->token_slots[j];
            ck_assert_uint_eq((size_t)a->slot_token[s], t);
            if (j > a->token_offsets[t])
                ck_assert(a->slot_expert[s] > a->slot_expert[a->token_slots[j - 1]]);
        }
}

/* Every slot stands in one row of its expert's own part; the rows of an expert are its slots in
 * order and then -1s, fewer than a block of them. */
static void check_layout(const et_block_layout *l, const et_assignment *a)
{
    size_t rows = 0;
    int32_t slot = 0;
    for (size_t i = 0; i < a->experts; i++) {
        size_t load = (size_t)a->load[i], padded = (load + l->block - 1) / l->block * l->block;
        ck_assert_uint_eq((size_t)l->padded_offsets[i], rows);
        for (size_t row = 0; row < padded; row++, rows++) {
            ck_assert_int_eq(l->padded_slot[rows], row < load ? slot : -1);
            slot += row < load;
            ck_assert_uint_eq((size_t)l->block_expert[rows / l->block], i);
        }
    }
    ck_assert_uint_eq((size_t)slot, a->slots);
    ck_assert_uint_eq((size_t)l->padded_offsets[a->experts], rows);
    ck_assert_uint_eq(rows, l->blocks * l->block);
}

START_TEST(random_assignments_keep_their_order)
{
    static const size_t blocks[] = {1, 2, 7, 16, 1000};
    static const double densities[] = {0, 0.1, 0.5, 1};
    enum { N = 41, n = 9 };
    for (uint64_t seed = 0; seed < 20; seed++) {
        uint8_t mask[N * n];
        et_assignment a;
        random_mask(seed, N, n, densities[seed % 4], mask);
        ck_assert_int_eq(et_assignment_build(&a, N, n, mask, NULL), ET_OK);
        check_assignment(&a, mask);
        for (size_t b = 0; b < COUNT(blocks); b++) {
            et_block_layout layout;
            ck_assert_int_eq(et_block_layout_build(&layout, &a, blocks[b], NULL), ET_OK);
            ck_assert_uint_eq(layout.block, blocks[b]);
            check_layout(&layout, &a);
            et_block_layout_free(&layout);
            et_block_layout_free(&layout); /* zeros by now */
        }
        et_assignment_free(&a);
    }
}
END_TEST

/* Loads 15, 0, 16, 17 in blocks of 16: one block, none, one, two. */
START_TEST(blocks_by_hand)
{
    enum { N = 17, n = 4 };
    static const int32_t loads[n] = {15, 0, 16, 17};
    uint8_t mask[N * n];
    for (size_t j = 0; j < N * n; j++) mask[j] = (int32_t)(j / n) < loads[j % n];
    et_assignment a;
    et_block_layout l;
    ck_assert_int_eq(et_assignment_build(&a, N, n, mask, NULL), ET_OK);
    ck_assert_int_eq(et_block_layout_build(&l, &a, 16, NULL), ET_OK);
    ck_assert_uint_eq(l.blocks, 4);
    same_integers("offsets", 5, l.padded_offsets, (const int32_t[]){0, 16, 16, 32, 64});
    same_integers("experts", 4, l.block_expert, (const int32_t[]){0, 2, 3, 3});
    const int32_t rows[] = {0, 14, 15, 16, 31, 32, 48, 49, 63};
    const int32_t slots[] = {0, 14, -1, 15, 30, 31, 47, -1, -1};
    for (size_t j = 0; j < COUNT(rows); j++) ck_assert_int_eq(l.padded_slot[rows[j]], slots[j]);
    et_block_layout_free(&l);
    et_assignment_free(&a);
}
END_TEST

START_TEST(blocks_are_refused)
{
    const uint8_t mask[] = {1, 1};
    et_assignment a;
    et_block_layout l;
    et_error error;
    ck_assert_int_eq(et_assignment_build(&a, 1, 2, mask, NULL), ET_OK);
    refused(et_block_layout_build(&l, &a, 0, &error), &error,
            "block layout: tile of 0 slots; 1 to 65536");
    refused(et_block_layout_build(&l, &a, 65537, &error), &error,
            "block layout: tile of 65537 slots; 1 to 65536");
    ck_assert_ptr_null(l.padded_slot); /* nothing to free */
    et_assignment_free(&a);
}
END_TEST

/* 2^15 experts with a slot each, and the largest tile: 2^31 rows, one more than can be numbered. */
START_TEST(layouts_have_a_last_row)
{
    enum { EXPERTS = 32768 };
    uint8_t *mask = malloc(EXPERTS);
    et_assignment a;
    et_block_layout l;
    et_error error;
    ck_assert_ptr_nonnull(mask);
    memset(mask, 1, EXPERTS);
    ck_assert_int_eq(et_assignment_build(&a, 1, EXPERTS, mask, NULL), ET_OK);
    ck_assert_uint_eq(et_block_count(&a, ET_MAX_BLOCK), EXPERTS);
    refused(et_block_layout_build(&l, &a, ET_MAX_BLOCK, &error), &error,
            "block layout: 32768 blocks of 65536 rows; at most 2^31-1 rows");
    ck_assert_ptr_null(l.padded_slot);
    et_assignment_free(&a);
    free(mask);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("assignment");
    TCase *tests = add_case(suite, "assignment"), *blocks = add_case(suite, "blocks");
    tcase_add_test(tests, assignments_by_hand);
    tcase_add_test(tests, assignment_refuses_more_than_it_can_number);
    tcase_add_test(tests, random_assignments_keep_their_order);
    tcase_add_test(blocks, blocks_by_hand);
    tcase_add_test(blocks, blocks_are_refused);
    tcase_add_test(blocks, layouts_have_a_last_row);
    return run_suite(suite);
}
