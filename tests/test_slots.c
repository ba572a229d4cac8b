/* test_slots.c: candidates whose slots stand in another order, as sorting with atomics leaves them (ref/verdict/candidate_slots.c),
 * and scalars of shape [].
 */
#include "ref/step/tensors.h"
#include "ref/verdict/judge.h"
#include "tests/check_main.h"

#include <stdlib.h>
#include <string.h>

#ifndef ETREF_F32

#include "tests/honest.h"

static const char *const layers[] = {
    "{'name':'ec','rule':'ec','tokens':64,'d_model':24,'d_expert':40,'experts':4,"
    "'precision':'bf16','input':{'source':'normal','seed':3}}",
    "{'name':'tc','rule':'tc','top_k':2,'tokens':64,'d_model':24,'d_expert':40,'experts':4,"
    "'precision':'bf16','input':{'source':'normal','seed':4}}"};

static const et_verify_options quick = {.explain = false};

static bool is_of_slots(const et_tensor_out *t)
{
    return et_rows_are(et_tensors[et_tensor_find(t->name)].doc.shape, "S");
}

static void exchange(void *rows, size_t a, size_t b, size_t bytes)
{
    char *at = rows, room[4096];
    ck_assert_uint_le(bytes, sizeof room);
    memcpy(room, at + a * bytes, bytes);
    memcpy(at + a * bytes, at + b * bytes, bytes);
    memcpy(at + b * bytes, room, bytes);
}

/* Slots a and b change places in every tensor that has slots, or in one alone. */
static void exchange_slots(honest *k, size_t a, size_t b, const char *only)
{
    for (size_t i = 0; i < k->count; i++) {
        et_tensor_out *t = &k->tensors[i];
        if (!is_of_slots(t) || (only && strcmp(t->name, only) != 0)) continue;
        if (strcmp(t->name, "route.token_slots") == 0) {
            int32_t *slots = (int32_t *)(uintptr_t)t->values;
            for (size_t s = 0; s < t->shape[0]; s++)
                slots[s] = slots[s] == (int32_t)a   ? (int32_t)b
                           : slots[s] == (int32_t)b ? (int32_t)a
                                                    : slots[s];
        } else {
            size_t bytes = et_tensor_count(t) / t->shape[0] * bytes_per_element(t->source);
            exchange((void *)(uintptr_t)t->values, a, b, bytes);
        }
    }
}

/* Of all slots of each expert, or across experts. */
static void mix(honest *k, bool across)
{
    const et_assignment *a = &k->golden.assignment;
    for (size_t i = 0; i < a->experts; i++)
        for (int32_t s = a->expert_offsets[i]; s + 5 < a->expert_offsets[i + 1]; s += 2)
            exchange_slots(k, (size_t)s, (size_t)s + 5, NULL);
    if (across) exchange_slots(k, 0, a->slots - 1, NULL);
}

static et_outcome outcome_of(honest *k, const char **reason)
{
    static char line[1024];
    et_verdict v = judge_by(k, quick);
    et_outcome outcome = v.outcome;
    snprintf(line, sizeof line, "%s", v.line);
    *reason = line;
    et_verdict_free(&v);
    return outcome;
}

static void expect(honest *k, et_outcome outcome)
{
    const char *line;
    et_outcome got = outcome_of(k, &line);
    ck_assert_msg(got == outcome, "%s", line);
}

START_TEST(any_declared_order_is_right)
{
    honest k;
    make_honest(&k, layers[_i], "bf16", 5);
    expect(&k, ET_PASS);
    mix(&k, false);
    expect(&k, ET_PASS);
    mix(&k, true); /* experts are not in a row: slot_expert says so */
    expect(&k, ET_PASS);
    free_honest(&k);
}
END_TEST

/* Without slot_expert the experts follow each other. */
START_TEST(experts_in_a_row_need_no_list)
{
    honest k;
    make_honest(&k, layers[_i], "bf16", 5);
    mix(&k, false);
    remove_tensor(&k, "route.slot_expert");
    expect(&k, ET_PASS);
    free_honest(&k);
}
END_TEST

/* The list moved and not its rows, the rows and not the list; a wrong number in a row that moved. */
START_TEST(what_contradicts_the_list_fails)
{
    static const char *const alone[] = {"route.slot_token", "fwd.slot_pre", "bwd.slot_weight"};
    for (size_t i = 0; i < sizeof alone / sizeof *alone; i++) {
        honest k;
        make_honest(&k, layers[_i], "bf16", 5);
        mix(&k, false);
        exchange_slots(&k, 1, 2, alone[i]);
        expect(&k, ET_MISMATCH);
        free_honest(&k);
    }
    honest k;
    make_honest(&k, layers[_i], "bf16", 5);
    mix(&k, false);
    values_of(&k, "fwd.slot_act")[7] += 1;
    expect(&k, ET_MISMATCH);
    free_honest(&k);
}
END_TEST

/* A token twice, one that does not exist, an expert that does not: judged as it stands, nothing crashes. */
START_TEST(a_list_that_is_none_fails)
{
    for (int way = 0; way < 3; way++) {
        honest k;
        make_honest(&k, layers[_i], "bf16", 5);
        int32_t *tokens = integers_of(&k, "route.slot_token");
        if (way == 0) tokens[1] = tokens[0];
        if (way == 1) tokens[0] = INT32_MIN;
        if (way == 2) integers_of(&k, "route.slot_expert")[0] = INT32_MAX;
        expect(&k, ET_MISMATCH);
        free_honest(&k);
    }
}
END_TEST

/* Frameworks write scalars so. */
START_TEST(scalars_may_have_no_dimension)
{
    honest k;
    make_honest(&k,
                "{'name':'loss','rule':'tc','top_k':2,'tokens':64,'d_model':24,'d_expert':40,"
                "'experts':4,'balance':'aux','z_loss_coef':0.1,'precision':'bf16',"
                "'input':{'source':'normal','seed':4}}",
                "bf16", 5);
    for (size_t i = 0; i < k.count; i++) /* its own. NOLINT(clang-analyzer-unix.Malloc) */
        if (k.tensors[i].rank == 1 && k.tensors[i].shape[0] == 1) k.tensors[i].rank = 0;
    expect(&k, ET_PASS);
    values_of(&k, "loss.z")[0] *= 2;
    expect(&k, ET_MISMATCH);
    free_honest(&k);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("slots");
    TCase *slots = add_case(suite, "slots");
    const int all = sizeof layers / sizeof *layers;
    tcase_add_loop_test(slots, any_declared_order_is_right, 0, all);
    tcase_add_loop_test(slots, experts_in_a_row_need_no_list, 0, all);
    tcase_add_loop_test(slots, what_contradicts_the_list_fails, 0, all);
    tcase_add_loop_test(slots, a_list_that_is_none_fails, 0, all);
    tcase_add_test(slots, scalars_may_have_no_dimension);
    return run_suite(suite);
}

#else

int main(void)
{
    return EXIT_SUCCESS; /* the float build does not judge */
}

#endif
