/* test_product.c: sums in a kernel's arithmetic: products, rows, numbers.
 *
 * Against the plainest loop there is: one term after the other, rounded by float itself or by the
 * candidates' rounding, which shares nothing with the library's.
 */
#include "ref/base/product.h"
#include "ref/base/sum.h"
#include "etref/etref.h"
#include "tests/candidates/rounding.h"
#include "tests/check_main.h"
#include "tests/run_case.h"

#include <omp.h>

enum { M = 7, N = 29, K = 300, SEEDS = 12, KINDS = 9 };

/* Numbers of `bits` significand bits, of many sizes. */
static void fill(size_t count, int bits, uint64_t stream, et_real *to)
{
    et_stream s = et_stream_open(stream, "operands");
    for (uint64_t i = 0; i < count; i++) {
        double unit = ldexp(1, 1 - bits), v = 1 + floor(et_uniform(s, i, 0) / unit) * unit;
        int exponent = (int)(et_uniform(s, i, 1) * 6) - 3;
        to[i] = (et_real)ldexp(et_uniform(s, i, 2) < 0.5 ? v : -v, exponent);
    }
}

static et_real a[M * K], b[K * N], got[M * N];

static et_operand operand(const char *site, const et_real *at, size_t columns, bool transposed)
{
    et_matrix X = transposed ? et_transposed(at, columns) : et_rows(at, columns);
    return (et_operand){X, ET_OPERANDS, site, ET_UNSTORED};
}

#ifndef ETREF_F32

static et_real start[M * N];

/* The number at row i, column j of op(X), and how X lies: [rows, columns], or its transpose. */
static double element(const et_real *X, size_t rows, size_t columns, bool transposed, size_t i,
                      size_t j)
{
    return (double)(transposed ? X[j * rows + i] : X[i * columns + j]);
}

/* One step of the plainest kernel, which may fuse product and sum as processors do. */
static double step(const et_profile *p, const cd_format *f, bool fused, double sum, double x,
                   double y)
{
    int bits = p->bits[ET_ACCUMULATOR];
    if (fused && bits == 53) return fma(x, y, sum);
    if (fused && bits == 24 && !p->truncate_accumulator && !p->ftz)
        return (double)fmaf((float)x, (float)y, (float)sum);
    if (p->flush_products && fabs(x * y) < 0x1p-126) return sum;
    if (bits == 24 && !p->truncate_accumulator && !p->ftz)
        return (double)((float)sum + (float)x * (float)y);
    return bits == 53 ? sum + x * y : cd_round(f, sum + cd_round(f, x * y));
}

/* Two sums; chunks are added in binary32. */
static double plus(const et_profile *p, const cd_format *f, bool chunks, double x, double y)
{
    int bits = p->bits[ET_ACCUMULATOR];
    if (chunks || (bits == 24 && !p->truncate_accumulator && !p->ftz))
        return (double)((float)x + (float)y);
    return bits == 53 ? x + y : cd_round(f, x + y);
}

static cd_format accumulator(const et_profile *p)
{
    int emin = p->exponent_bits == 5 && p->bits[ET_ACCUMULATOR] <= 11 ? -14 : -126;
    cd_format f = {.bits = p->bits[ET_ACCUMULATOR],
                   .emin = emin,
                   .truncate = p->truncate_accumulator,
                   .ftz = p->ftz};
    f.smallest = ldexp(1, emin);
    f.largest = ldexp(2 - ldexp(1, 1 - f.bits), 1 - emin);
    return f;
}

static void is_one_chain(const et_rounding *r, bool a_down, bool b_down, bool accumulate)
{
    et_error error;
    const et_order order = et_order_of(r, "A", K);
    const cd_format f = accumulator(r->profile);
    bool fused = et_goes_other_way(r, "fma", "A") && !r->profile->flush_products;
    memcpy(got, start, sizeof got);
    ck_assert_msg(et_product(r, ET_PLAIN, M, N, K, operand("A", a, a_down ? M : K, a_down),
                             operand("B", b, b_down ? K : N, b_down), accumulate, got, N,
                             &error) == ET_OK,
                  "%s", error.text);
    for (size_t i = 0; i < M; i++)
        for (size_t j = 0; j < N; j++) {
            double sum = accumulate ? (double)start[i * N + j] : 0;
            size_t chunk = (size_t)r->profile->accumulator_chunk;
            size_t part = chunk > 0 ? chunk : et_terms_of_part(r, "A", K);
            double parts = sum;
            for (size_t k = 0; k < K; k++) {
                size_t term = et_order_at(&order, k);
                if (part > 0 && k % part == 0) sum = 0;
                sum = step(r->profile, &f, fused, sum, element(a, M, K, a_down, i, term),
                           element(b, K, N, b_down, term, j));
                if (part > 0 && (k % part == part - 1 || k == K - 1))
                    parts = plus(r->profile, &f, chunk > 0, parts, sum);
            }
            if (part > 0) sum = parts;
            ck_assert_msg((double)got[i * N + j] == sum,
                          "%s, seed %llu, way %d: C[%zu,%zu] = %a, not %a", r->profile->name,
                          (unsigned long long)r->seed, (int)order.way, i, j, (double)got[i * N + j],
                          sum);
        }
}

static et_profile with_sums(const char *name, int operands, int bits, int exponent_bits,
                            bool truncate)
{
    et_profile p = *et_profile_find("f64");
    strcpy(p.name, name);
    p.bits[ET_OPERANDS] = operands;
    p.bits[ET_ACCUMULATOR] = bits;
    p.exponent_bits = exponent_bits;
    p.truncate_accumulator = truncate;
    return p;
}

static const et_profile *sums(int index)
{
    static et_profile list[KINDS];
    list[0] = *et_profile_find("f32");
    list[1] = *et_profile_find("f64");
    list[2] = with_sums("truncating", 8, 24, 8, true);
    list[3] = with_sums("eight", 8, 8, 8, false);
    list[4] = with_sums("eight-rz", 8, 8, 8, true);
    list[5] = with_sums("half", 11, 11, 5, false);
    list[6] = with_sums("flushing", 8, 24, 8, false);
    list[6].ftz = true;
    list[7] = with_sums("chunks", 11, 11, 5, false);
    list[7].accumulator_chunk = 32;
    list[8] = with_sums("flushing-products", 8, 24, 8, false);
    list[8].flush_products = true;
    return &list[index];
}

START_TEST(a_product_is_one_chain_in_the_accumulator)
{
    const et_profile *p = sums(_i);
    bool drawn[3] = {false};
    int bits = p->bits[ET_OPERANDS] < 24 ? p->bits[ET_OPERANDS] : 24;
    fill(M * K, bits, 1, a);
    fill(K * N, bits, 2, b);
    fill(M * N, 8, 3, start);
    for (size_t i = 0; (p->ftz || p->flush_products) && i < M * K; i++) a[i] *= (et_real)0x1p-63;
    for (size_t i = 0; (p->ftz || p->flush_products) && i < K * N; i++) b[i] *= (et_real)0x1p-63;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        const et_rounding r = {.profile = p, .mode = ET_ROUND_RANDOM, .seed = seed};
        drawn[et_order_of(&r, "A", K).way] = true;
        is_one_chain(&r, seed & 1, seed & 2, seed & 4);
    }
    ck_assert(drawn[ET_FORWARDS] && drawn[ET_BACKWARDS] && drawn[ET_SHUFFLED]);
    is_one_chain(&(et_rounding){.profile = p, .mode = ET_ROUND_NEAREST, .seed = 1}, false, false,
                 true);
    ck_assert_int_eq(
        et_order_of(&(et_rounding){.profile = p, .mode = ET_ROUND_NEAREST, .seed = 1}, "A", K).way,
        ET_FORWARDS);
}
END_TEST

/* Times the identity a product is its operand. */
static void through_identity(const et_profile *p, int stored, et_real *out)
{
    static et_real one[M * M];
    et_error error;
    const et_rounding r = {.profile = p, .mode = ET_ROUND_RANDOM, .seed = 5};
    et_operand A = {et_rows(a, M), ET_OPERANDS, "A", stored},
               I = {et_rows(one, M), ET_OPERANDS, "I", ET_UNSTORED};
    for (size_t i = 0; i < M; i++) one[i * M + i] = 1;
    ck_assert(et_product(&r, ET_PLAIN, M, M, M, A, I, false, out, M, &error) == ET_OK);
}

START_TEST(what_was_stored_as_an_operand_is_not_rounded_again)
{
    const et_rounding r = {.profile = et_profile_find("bf16"), .mode = ET_ROUND_RANDOM, .seed = 5};
    fill(M * M, 24, 4, a);
    et_round(&r, ET_INTERMEDIATES, "A", M * M, a);
    size_t moved = 0;
    through_identity(r.profile, ET_INTERMEDIATES, got);
    for (size_t i = 0; i < M * M; i++) ck_assert(got[i] == (et_real)(float)a[i]);
    through_identity(r.profile, ET_UNSTORED, got); /* numbers of the format stay as they are */
    for (size_t i = 0; i < M * M; i++) ck_assert(got[i] == a[i]);
    /* Operands that are coarser, or of a smaller range, than what was stored. */
    const char *const coarser[] = {"tf32", "f16"};
    for (size_t k = 0; k < 2; k++) {
        et_profile p = *et_profile_find(coarser[k]);
        p.bits[ET_INTERMEDIATES] = 24;
        fill(M * M, 24, 4, a);
        through_identity(&p, ET_INTERMEDIATES, got);
        moved = 0;
        for (size_t i = 0; i < M * M; i++) moved += got[i] != a[i];
        ck_assert_uint_gt(moved, M * M / 2);
    }
}
END_TEST

START_TEST(rows_and_numbers_are_chains_too)
{
    const et_profile *p = sums(0);
    et_real dots[M], sum[K];
    fill(M * K, 24, 1, a);
    fill(K * M, 24, 2, b);
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        const et_rounding r = {.profile = p, .mode = ET_ROUND_RANDOM, .seed = seed};
        const et_order order = et_order_of(&r, "dw", K);
        ck_assert(et_dots(&r, "dw", M, K, a, NULL, b, dots, NULL) == ET_OK);
        for (size_t i = 0; i < M; i++) {
            float want = 0;
            for (size_t k = 0; k < K; k++) {
                size_t c = et_order_at(&order, k);
                want = want + (float)a[i * K + c] * (float)b[i * K + c];
            }
            ck_assert((float)dots[i] == want);
            ck_assert(et_sum(&r, ET_ACCUMULATOR, "dw", 0, K, 1, a + i * K, b + i * K) ==
                      (et_real)want);
        }
        memcpy(sum, a, sizeof sum);
        et_add_rows(&r, ET_SHARES, 1, K, NULL, b, NULL, sum);
        for (size_t c = 0; c < K; c++) ck_assert((float)sum[c] == (float)a[c] + (float)b[c]);
    }
}
END_TEST

#endif

START_TEST(an_order_takes_every_term_once)
{
    const size_t counts[] = {1, 2, 3, 8, 13, 64, 257, 4096};
    static bool taken[4096];
    size_t moved = 0;
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
        for (uint64_t seed = 0; seed < SEEDS; seed++) {
            const et_rounding r = {
                .profile = et_profile_find("f32"), .mode = ET_ROUND_RANDOM, .seed = seed};
            const et_order order = et_order_of(&r, "x", counts[c]);
            memset(taken, 0, sizeof taken);
            for (size_t k = 0; k < counts[c]; k++) {
                size_t term = et_order_at(&order, k);
                ck_assert(term < counts[c] && !taken[term]);
                taken[term] = true;
                moved += order.way == ET_SHUFFLED && term != k;
            }
        }
    ck_assert_uint_gt(moved, 4096); /* of shuffles, nearly all terms */
    ck_assert_int_eq(et_order_of(NULL, "x", 5).way, ET_FORWARDS);
}
END_TEST

START_TEST(golden_sums_are_what_they_were)
{
    et_real want[M * N], dot;
    fill(M * K, 53, 1, a);
    fill(K * N, 53, 2, b);
    et_error error;
    et_matmul(ET_PLAIN, M, N, K, et_rows(a, K), et_rows(b, N), false, want, N);
    ck_assert(et_product(NULL, ET_PLAIN, M, N, K, operand("A", a, K, false),
                         operand("B", b, N, false), false, got, N, &error) == ET_OK);
    ck_assert(memcmp(got, want, sizeof want) == 0);
    ck_assert(et_dots(NULL, "dw", 1, K, a, NULL, b, &dot, &error) == ET_OK);
    et_real plain = 0;
    for (size_t k = 0; k < K; k++) plain += a[k] * b[k];
    ck_assert(dot == plain && et_sum(NULL, ET_ACCUMULATOR, "dw", 0, K, 1, a, b) == plain);
}
END_TEST

#ifndef ETREF_F32

/* An emulated kernel and a replica under the plain engine: the same bits with one thread and with two. */
START_TEST(threads_change_no_bit_of_a_replica)
{
    et_case c;
    et_error error;
    et_step one, two;
    ck_assert(parse_quoted(
                  &c,
                  "{'name':'threads','rule':'et','tokens':256,'d_model':64,"
                  "'d_expert':96,'experts':8,'gate':'softmax_anchor','input':{'source':'normal'}}",
                  &error) == ET_OK);
    const et_rounding r = {
        .profile = et_profile_find(_i ? "f32" : "bf16"), .mode = ET_ROUND_RANDOM, .seed = 3};
    int before = omp_get_max_threads();
    draw_case(&one, &c);
    draw_case(&two, &c);
    one.rounding = two.rounding = &r;
    omp_set_num_threads(1);
    ck_assert(et_step_run(&one, ET_PLAIN, NULL, NULL, &error) == ET_OK);
    omp_set_num_threads(2);
    ck_assert(et_step_run(&two, ET_PLAIN, NULL, NULL, &error) == ET_OK);
    omp_set_num_threads(before);
    size_t bytes = c.tokens * c.d_model * sizeof(et_real);
    ck_assert(memcmp(one.fwd.y, two.fwd.y, bytes) == 0);
    ck_assert(memcmp(one.bwd.x, two.bwd.x, bytes) == 0);
    et_step_free(&one);
    et_step_free(&two);
}
END_TEST

/* What the profile has parts for is a number of these, where nothing is rounded after it. */
START_TEST(shares_and_sums_are_numbers_of_their_places)
{
    et_case c;
    et_error error;
    et_step s;
    et_profile p = *et_profile_find("f32");
    const struct {
        et_place place;
        const char *part;
    } rows[] = {{ET_SHARES, "y"}, {ET_SHARES, "dx"}, {ET_DW_SUMS, "dW_up"}, {ET_DW_SUMS, "dW_r"}};
    ck_assert(parse_quoted(&c,
                           "{'name':'parts','rule':'ec','tokens':64,'micro_batches':2,'d_model':16,"
                           "'d_expert':24,'experts':4,'input':{'source':'normal'}}",
                           &error) == ET_OK);
    p.bits[rows[_i].place] = 8;
    const et_rounding r = {.profile = &p, .mode = ET_ROUND_NEAREST, .seed = 0};
    draw_case(&s, &c);
    s.rounding = &r;
    ck_assert(et_step_run(&s, ET_PLAIN, NULL, NULL, &error) == ET_OK);
    const et_real *const values[] = {s.fwd.y, s.bwd.x, s.bwd.up, s.bwd.router};
    size_t beyond = 0;
    for (size_t i = 0; i < c.experts * c.d_model; i++) {
        ck_assert_msg(et_place_holds(&p, rows[_i].place, (double)values[_i][i]), "%s[%zu] = %a",
                      rows[_i].part, i, (double)values[_i][i]);
        beyond += !et_place_holds(&p, rows[_i].place, (double)values[(_i + 2) % 4][i]);
    }
    ck_assert_uint_gt(beyond, 0); /* the others keep 24 bits */
    et_step_free(&s);
}
END_TEST

/* Experts in 11 bits, the router in 24: logits are a float's sums. */
START_TEST(the_router_has_operands_and_sums_of_its_own)
{
    et_error error;
    et_profile p = with_sums("apart", 11, 11, 8, false);
    const et_rounding r = {.profile = &p, .mode = ET_ROUND_NEAREST, .seed = 0};
    fill(M * K, 24, 1, a);
    fill(K * N, 24, 2, b);
    p.bits[ET_ROUTER_OPERANDS] = p.bits[ET_ROUTER_ACCUMULATOR] = 24;
    et_operand A = operand("x", a, K, false), B = operand("W_r", b, N, false);
    A.place = B.place = ET_ROUTER_OPERANDS;
    ck_assert(et_product(&r, ET_PLAIN, M, N, K, A, B, false, got, N, &error) == ET_OK);
    for (size_t i = 0; i < M; i++)
        for (size_t j = 0; j < N; j++) {
            float sum = 0;
            for (size_t k = 0; k < K; k++) sum += (float)a[i * K + k] * (float)b[k * N + j];
            ck_assert((float)got[i * N + j] == sum);
        }
}
END_TEST

START_TEST(subnormal_operands_are_flushed_where_the_profile_says)
{
    et_error error;
    et_profile p = *et_profile_find("f32");
    const et_rounding r = {.profile = &p, .mode = ET_ROUND_NEAREST, .seed = 0};
    const et_real tiny[2] = {(et_real)0x1p-130, (et_real)0x1p-126}, large[2] = {(et_real)0x1p20, 0};
    et_operand A = operand("x", tiny, 2, false), B = operand("W", large, 1, false);
    ck_assert(et_product(&r, ET_PLAIN, 1, 1, 2, A, B, false, got, 1, &error) == ET_OK);
    ck_assert(got[0] == (et_real)0x1p-110);
    p.flush_operands = true;
    ck_assert(et_product(&r, ET_PLAIN, 1, 1, 2, A, B, false, got, 1, &error) == ET_OK);
    ck_assert(got[0] == 0);
}
END_TEST

/* Without a norm a weight is the gate value itself: one number, rounded once. */
START_TEST(a_weight_that_is_a_gate_value_is_not_rounded_again)
{
    et_case c;
    et_error error;
    et_step s;
    ck_assert(parse_quoted(&c,
                           "{'name':'weights','rule':'ec','tokens':32,'d_model':16,"
                           "'d_expert':24,'experts':4,'input':{'source':'normal'}}",
                           &error) == ET_OK);
    const et_rounding r = {
        .profile = et_profile_find("bf16-low"), .mode = ET_ROUND_RANDOM, .seed = 3};
    draw_case(&s, &c);
    s.rounding = &r;
    ck_assert(et_step_run(&s, ET_PLAIN, NULL, NULL, &error) == ET_OK);
    const et_assignment *z = &s.assignment;
    for (size_t j = 0; j < z->slots; j++)
        ck_assert(s.fwd.slot_weight[j] ==
                  s.fwd.gates[(size_t)z->slot_token[j] * c.experts + (size_t)z->slot_expert[j]]);
    et_step_free(&s);
}
END_TEST

#endif

int main(void)
{
    Suite *suite = suite_create("product");
    TCase *tests = add_case(suite, "product");
    tcase_add_test(tests, an_order_takes_every_term_once);
    tcase_add_test(tests, golden_sums_are_what_they_were);
#ifndef ETREF_F32
    tcase_add_loop_test(tests, a_product_is_one_chain_in_the_accumulator, 0, KINDS);
    tcase_add_test(tests, what_was_stored_as_an_operand_is_not_rounded_again);
    tcase_add_test(tests, rows_and_numbers_are_chains_too);
    tcase_add_loop_test(tests, threads_change_no_bit_of_a_replica, 0, 2);
    tcase_add_loop_test(tests, shares_and_sums_are_numbers_of_their_places, 0, 4);
    tcase_add_test(tests, the_router_has_operands_and_sums_of_its_own);
    tcase_add_test(tests, subnormal_operands_are_flushed_where_the_profile_says);
    tcase_add_test(tests, a_weight_that_is_a_gate_value_is_not_rounded_again);
#endif
    return run_suite(suite);
}
