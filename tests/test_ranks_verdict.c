/* test_ranks_verdict.c: kernels on several ranks, judged: honest ones pass, whatever order is theirs to choose; every mistake of
 * the catalogue is caught, and named.
 */
#include "tests/check_main.h"

#ifndef ETREF_F32

#include "ref/step/decide.h"
#include "ref/diagnose/mutant.h"
#include "tests/expect.h"
#include "tests/honest.h"
#define SUITE "parallel.json"
#include "tests/one_suite.h"

static void make_case(honest *k, const char *name, const char *profile)
{
    size_t i = 0;
    while (i < cases && strcmp(suite[i].name, name) != 0) i++;
    ck_assert_uint_lt(i, cases);
    draw_case(&k->golden, &suite[i]);
    make_kernel(k, profile, 3);
}

static void expect(honest *k, et_outcome outcome)
{
    et_verdict v = judge_by(k, (et_verify_options){.explain = false});
    ck_assert_msg(v.outcome == outcome, "%s: %s", k->golden.c.name, v.line);
    et_verdict_free(&v);
}

START_TEST(honest_kernels_pass)
{
    for (size_t i = 0; i < cases; i++) expect_honest_passes(&suite[i], _i == 0 ? "f32" : "bf16");
}
END_TEST

/* ---- order ---- */

static void exchange(void *values, size_t bytes, size_t i, size_t j)
{
    char room[4096], *at = values;
    ck_assert_uint_le(bytes, sizeof room);
    memcpy(room, at + i * bytes, bytes);
    memcpy(at + i * bytes, at + j * bytes, bytes);
    memcpy(at + j * bytes, room, bytes);
}

/* Two rows next to each other that go from one rank to one expert. */
static size_t pair_in(const honest *k, const int32_t *slots)
{
    const et_assignment *a = &k->golden.assignment;
    int32_t Nl = (int32_t)(k->golden.c.tokens / k->golden.c.ranks);
    size_t i = 0;
    while (a->slot_expert[slots[i]] != a->slot_expert[slots[i + 1]] ||
           a->slot_token[slots[i]] / Nl != a->slot_token[slots[i + 1]] / Nl)
        ck_assert_uint_lt(++i + 1, a->slots);
    return i;
}

START_TEST(rows_of_a_group_in_any_order)
{
    honest k;
    make_case(&k, "ep-ec", "bf16");
    size_t d = k.golden.c.d_model;
    size_t sent = pair_in(&k, integers_of(&k, "ep.send_slot"));
    size_t received = pair_in(&k, integers_of(&k, "ep.recv_slot"));
    exchange(integers_of(&k, "ep.send_slot"), 4, sent, sent + 1);
    expect(&k, ET_MISMATCH); /* local_token belongs to it */
    exchange(integers_of(&k, "ep.local_token"), 4, sent, sent + 1);
    expect(&k, ET_PASS);
    exchange(integers_of(&k, "ep.recv_slot"), 4, received, received + 1);
    exchange(values_of(&k, "ep.x_recv"), d * sizeof(double), received, received + 1);
    expect(&k, ET_MISMATCH); /* and dO here */
    exchange(values_of(&k, "ep.dout_recv"), d * sizeof(double), received, received + 1);
    expect(&k, ET_PASS);
    exchange(integers_of(&k, "ep.recv_padded"), 4, 0, 1);
    expect(&k, ET_PASS);
    exchange(integers_of(&k, "ep.send_slot"), 4, 0, k.golden.assignment.slots - 1);
    expect(&k, ET_MISMATCH); /* another rank's row */
    free_honest(&k);
}
END_TEST

/* A kernel whose slots lie in another order speaks of them by its own numbers. */
START_TEST(slots_in_the_kernels_order)
{
    honest k;
    make_case(&k, "ep-ec", "bf16");
    const et_assignment *a = &k.golden.assignment;
    for (size_t t = 0; t < k.count; t++) {
        et_tensor_out *own = &k.tensors[t];
        et_tensor_id id = et_tensor_find(own->name);
        size_t count = elements_of(own);
        int32_t *slots = (int32_t *)(uintptr_t)own->values;
        if (et_rows_are(et_tensors[id].doc.shape, "S") && id != ET_ROUTE_TOKEN_SLOTS)
            exchange(slots, count / a->slots * bytes_per_element(own->source), 0, 1);
        bool names = id == ET_ROUTE_TOKEN_SLOTS || id == ET_EP_SEND_SLOT || id == ET_EP_RECV_SLOT ||
                     id == ET_EP_RECV_PADDED;
        for (size_t i = 0; names && i < count; i++)
            slots[i] = slots[i] == 0 ? 1 : slots[i] == 1 ? 0 : slots[i];
    }
    expect(&k, ET_PASS);
    free_honest(&k);
}
END_TEST

/* ---- what is broken is said ---- */

static void expect_reason(honest *k, const char *tensor, const char *words)
{
    et_verdict v = judge_by(k, (et_verify_options){.explain = false});
    const et_tensor_verdict *one = verdict_on(&v, tensor);
    ck_assert_int_eq(one->outcome, ET_MISMATCH);
    ck_assert_msg(strstr(one->reason, words) != NULL, "%s: %s", tensor, one->reason);
    et_verdict_free(&v);
}

START_TEST(tables_are_judged_by_what_holds_of_them)
{
    honest k;
    make_case(&k, "ep-et", "bf16");
    integers_of(&k, "ep.send_slot")[1] = integers_of(&k, "ep.send_slot")[0];
    expect_reason(&k, "ep.send_slot", "stands there twice");
    integers_of(&k, "ep.recv_begin")[2]++;
    expect_reason(&k, "ep.recv_begin", "rows belong to the ranks before");
    bytes_of(&k, "ep.token_in_rank")[3] ^= 1;
    expect_reason(&k, "ep.token_in_rank", "experts of that rank take the token");
    integers_of(&k, "ep.rank_prefix")[5]++;
    expect_reason(&k, "ep.rank_prefix", "the ranks up to it send");
    integers_of(&k, "ep.recv_padded")[0] = -1;
    expect_reason(&k, "ep.recv_padded", "a slot of that expert belongs there");
    values_of(&k, "ep.w_router_rank")[k.golden.c.experts * k.golden.c.d_model] += 1;
    expect_reason(&k, "ep.w_router_rank", "rank 1, row 0, column 0");
    free_honest(&k);
}
END_TEST

/* ---- mistakes ---- */

static bool is_of_ranks(const et_hypothesis *what)
{
    return strcmp(what->doc.stage, "ranks") == 0;
}

static bool is_named(const et_verdict *v, const char *name)
{
    size_t i = 0;
    while (i < v->explanation_count && strcmp(v->explanations[i].name, name) != 0) i++;
    return i < v->explanation_count;
}

/* A kernel with the mistake, in the profile's formats. `wrong` would be the right step, if nothing were wrong with it. */
static bool is_caught_and_named(honest *k, const et_hypothesis *what, size_t variant)
{
    et_step wrong = et_step_like(&k->golden);
    et_error error;
    wrong.given_mask = k->golden.route.mask;
    ck_assert_msg(what->layer(&wrong, &k->golden, variant, &error) == ET_OK, "%s", error.text);
    for (size_t t = 0; t < k->count; t++) {
        et_tensor_out *own = &k->tensors[t];
        et_tensor_id id = et_tensor_find(own->name);
        const et_tensor_out other = et_tensor_view(&wrong, id);
        ck_assert_uint_eq(elements_of(own), et_tensor_count(&other));
        memcpy((void *)(uintptr_t)own->values, other.values,
               elements_of(own) * bytes_per_element(own->source));
        if (own->source == ET_FROM_F64)
            coarsen(k, own->name, 1, et_place_bits(k->profile, et_tensors[id].place));
    }
    et_verdict v = judge_by(k, (et_verify_options){.explain = true});
    bool caught = v.outcome == ET_MISMATCH;
    ck_assert_msg(!caught || is_named(&v, what->doc.name), "%s in %s, variant %zu: %s; %s",
                  what->doc.name, k->golden.c.name, variant, v.line,
                  v.explanation_count ? v.explanations[0].name : "nothing");
    et_verdict_free(&v);
    wrong.in = k->golden.in;
    et_step_free(&wrong);
    return caught;
}

/* Every form is caught in one of the cases at least, and where it is caught it is named. */
START_TEST(mistakes_are_named)
{
    enum { MOST = 1000 };
    static bool caught[MOST][ET_MAX_VARIANTS];
    const et_hypothesis *what;
    size_t mistakes = 0;
    for (size_t i = 0; i < cases; i++) {
        honest k;
        make_case(&k, suite[i].name, "bf16");
        for (size_t h = 0; (what = et_hypothesis_row(h)) != NULL; h++)
            for (size_t variant = 0;
                 is_of_ranks(what) && what->applies(&k.golden) && et_hypothesis_form(what, variant);
                 variant++)
                caught[h][variant] |= is_caught_and_named(&k, what, variant);
        free_honest(&k);
    }
    for (size_t h = 0; (what = et_hypothesis_row(h)) != NULL; h++) {
        mistakes += is_of_ranks(what);
        for (size_t variant = 0; is_of_ranks(what) && et_hypothesis_form(what, variant); variant++)
            ck_assert_msg(caught[h][variant], "%s, variant %zu: accepted everywhere",
                          what->doc.name, variant);
    }
    ck_assert_uint_eq(mistakes, 6);
}
END_TEST

/* ---- by hand, of an honest kernel's numbers ---- */

static void transpose_splits(honest *k)
{
    size_t R = k->golden.c.ranks, local = k->golden.c.experts / R;
    int32_t *counts = integers_of(k, "ep.send_counts");
    for (size_t j = 0; j < local; j++)
        for (size_t s = 0; s < R; s++)
            for (size_t q = 0; q < s; q++)
                exchange(counts, 4, (s * local + j) * R + q, (q * local + j) * R + s);
}

static void show_global_numbers(honest *k)
{
    int32_t *experts = integers_of(k, "ep.local_expert"), *slots = integers_of(k, "ep.send_slot");
    for (size_t i = 0; i < k->golden.assignment.slots; i++)
        experts[i] = k->golden.assignment.slot_expert[slots[i]];
}

static void divide_again(honest *k)
{
    static const char *const names[] = {"bwd.w_router", "bwd.w_up", "bwd.w_down", "bwd.shared_up",
                                        "bwd.shared_down"};
    for (size_t i = 0; i < COUNT(names); i++) {
        double *values = values_of(k, names[i]);
        for (size_t e = 0; e < elements_of(tensor_of(k, names[i])); e++)
            values[e] /= (double)k->golden.c.ranks;
    }
}

static void leave_out_empty_ranks(honest *k)
{
    size_t size = k->golden.c.experts * k->golden.c.d_model;
    for (size_t q = 0; q < k->golden.c.ranks; q++)
        for (size_t i = 0; i < size && k->golden.plan.recv_rows[q] == 0; i++)
            values_of(k, "bwd.w_router")[i] -= values_of(k, "ep.w_router_rank")[q * size + i];
    size = k->golden.c.shared_d_expert * k->golden.c.d_model;
    for (size_t q = 0; q < k->golden.c.ranks; q++)
        for (size_t i = 0; i < size && k->golden.plan.recv_rows[q] == 0; i++) {
            values_of(k, "bwd.shared_up")[i] -= values_of(k, "ep.shared_up_rank")[q * size + i];
            values_of(k, "bwd.shared_down")[i] -= values_of(k, "ep.shared_down_rank")[q * size + i];
        }
}

START_TEST(mistakes_by_hand)
{
    static const struct {
        const char *in, *name;
        void (*make)(honest *k);
    } list[] = {{"ep-et", "splits-transposed", transpose_splits},
                {"ep-et", "local-for-global-expert", show_global_numbers},
                {"ep-ec", "gradient-averaged-twice", divide_again},
                {"dp-et", "gradient-averaged-twice", divide_again},
                {"ep-few-tc", "empty-rank-skips-collective", leave_out_empty_ranks}};
    for (size_t i = 0; i < COUNT(list); i++) {
        honest k;
        make_case(&k, list[i].in, "f32");
        list[i].make(&k);
        et_verdict v = judge_by(&k, (et_verify_options){.explain = true});
        ck_assert_msg(v.outcome == ET_MISMATCH && is_named(&v, list[i].name), "%s: %s",
                      list[i].name, v.line);
        et_verdict_free(&v);
        free_honest(&k);
    }
}
END_TEST

/* Without a mistake of ranks the others are found as ever. */
START_TEST(other_mistakes_are_found)
{
    honest k;
    make_case(&k, "ep-et", "bf16");
    double *dx = values_of(&k, "bwd.x"), *dr = values_of(&k, "bwd.logits");
    size_t n = k.golden.c.experts, d = k.golden.c.d_model;
    for (size_t i = 0; i < k.golden.c.tokens * d; i++)
        for (size_t e = 0; e < n; e++)
            dx[i] -= dr[i / d * n + e] * (double)k.golden.in.router[e * d + i % d];
    et_verdict v = judge_by(&k, (et_verify_options){.explain = true});
    ck_assert_msg(is_named(&v, "router-term-in-dx"), "%s", v.line);
    et_verdict_free(&v);
    free_honest(&k);
}
END_TEST

int main(void)
{
    Suite *all = suite_create("ranks_verdict");
    TCase *tests = add_case(all, "verdict");
    tcase_add_unchecked_fixture(tests, read_cases, free_cases);
    tcase_add_loop_test(tests, honest_kernels_pass, 0, 2);
    tcase_add_test(tests, rows_of_a_group_in_any_order);
    tcase_add_test(tests, slots_in_the_kernels_order);
    tcase_add_test(tests, tables_are_judged_by_what_holds_of_them);
    tcase_add_test(tests, mistakes_are_named);
    tcase_add_test(tests, mistakes_by_hand);
    tcase_add_test(tests, other_mistakes_are_found);
    return run_suite(all);
}

#else

int main(void)
{
    return EXIT_SUCCESS; /* a float build does not judge */
}

#endif
