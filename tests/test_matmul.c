/* test_matmul.c: the matrix product.
 *
 * The plain product is held bit for bit against its three-loop definition, over sizes on both sides
 * of every block edge of matmul.c, and with any number of threads; OpenBLAS's within a bound.
 */
#include "etref/matmul.h"
#include "etref/random.h"
#include "tests/check_main.h"
#include "tests/expect.h"

#include <omp.h>
#include <string.h>

static const double U = ET_UNIT_ROUNDOFF;

/* Both zeros, integers and fractions of both signs; no two streams alike. */
static void fill(const char *name, size_t count, et_real *to)
{
    et_stream stream = et_stream_open(3, name);
    for (size_t j = 0; j < count; j++) {
        double u = et_uniform(stream, j, 0);
        to[j] = (et_real)(u < 0.05 ? -0.0 : u < 0.1 ? 0 : et_normal(stream, j));
    }
}

/* One product: its sizes, how its operands lie, and room for them and for C. */
typedef struct product {
    size_t M, N, K;
    bool a_transposed, b_transposed, accumulate;
    size_t slack; /* elements between the end of a row and the next */
    et_real *a, *b, *c;
    size_t c_count, c_stride;
} product;

static size_t rows_of(size_t rows, size_t columns, bool transposed)
{
    return transposed ? columns : rows;
}

static void open_product(product *p)
{
    size_t a_rows = rows_of(p->M, p->K, p->a_transposed), a_columns = p->M + p->K - a_rows;
    size_t b_rows = rows_of(p->K, p->N, p->b_transposed), b_columns = p->K + p->N - b_rows;
    size_t a_count = a_rows * (a_columns + p->slack), b_count = b_rows * (b_columns + p->slack);
    p->c_stride = p->N + p->slack;
    p->c_count = p->M * p->c_stride;
    p->a = room_for(a_count, sizeof(et_real));
    p->b = room_for(b_count, sizeof(et_real));
    p->c = room_for(p->c_count, sizeof(et_real));
    fill("test.a", a_count, p->a);
    fill("test.b", b_count, p->b);
    fill("test.c", p->c_count, p->c);
}

static void close_product(product *p)
{
    free(p->a);
    free(p->b);
    free(p->c);
}

static et_matrix matrix_a(const product *p)
{
    return (et_matrix){p->a, (p->a_transposed ? p->M : p->K) + p->slack, p->a_transposed};
}

static et_matrix matrix_b(const product *p)
{
    return (et_matrix){p->b, (p->b_transposed ? p->K : p->N) + p->slack, p->b_transposed};
}

/* Element (row, column) of op(X). */
static et_real element(et_matrix X, size_t row, size_t column)
{
    return X.transposed ? X.at[column * X.stride + row] : X.at[row * X.stride + column];
}

/* The definition in matmul.h, and with it sum_k |a_ik||b_kj| (+ |C_ij|) of each element. */
static void multiply_literally(const product *p, et_real *c, double *magnitude)
{
    et_matrix A = matrix_a(p), B = matrix_b(p);
    for (size_t i = 0; i < p->M; i++)
        for (size_t j = 0; j < p->N; j++) {
            et_real sum = p->accumulate ? c[i * p->c_stride + j] : 0;
            double absolute = fabs((double)sum);
            for (size_t k = 0; k < p->K; k++) {
                et_real a = element(A, i, k), b = element(B, k, j);
                sum += a * b;
                absolute += fabs((double)a) * fabs((double)b);
            }
            c[i * p->c_stride + j] = sum;
            if (magnitude) magnitude[i * p->c_stride + j] = absolute;
        }
}

static et_real *multiplied(const product *p, et_engine engine)
{
    et_real *c = room_for(p->c_count, sizeof(et_real));
    memcpy(c, p->c, p->c_count * sizeof *c);
    et_matmul(engine, p->M, p->N, p->K, matrix_a(p), matrix_b(p), p->accumulate, c, p->c_stride);
    return c;
}

/* Bits, of the whole of C: what lies between its rows must stay as it was, too. */
static void same_bits(const product *p, const et_real *got, const et_real *want)
{
    for (size_t j = 0; j < p->c_count; j++)
        if (memcmp(got + j, want + j, sizeof *got) != 0)
            ck_abort_msg("%zu x %zu, K = %zu, A%s B%s%s, slack %zu: element (%zu, %zu): got %a, "
                         "want %a",
                         p->M, p->N, p->K, p->a_transposed ? "'" : "", p->b_transposed ? "'" : "",
                         p->accumulate ? ", accumulated" : "", p->slack, j / p->c_stride,
                         j % p->c_stride, (double)got[j], (double)want[j]);
}

/* |blas - plain| <= 2 gamma_(K+1) sum|a||b|, as the header says of two engines. */
static void within_bound(const product *p, const et_real *got, const et_real *want,
                         const double *magnitude)
{
    double m = (double)(p->K + 1), bound = 2 * m * U / (1 - m * U);
    for (size_t j = 0; j < p->c_count; j++)
        if (!(fabs((double)got[j] - (double)want[j]) <= bound * magnitude[j]))
            ck_abort_msg("%zu x %zu, K = %zu: element %zu: blas %.17g, plain %.17g, bound %.3g",
                         p->M, p->N, p->K, j, (double)got[j], (double)want[j],
                         bound * magnitude[j]);
}

static void check_product(product p)
{
    open_product(&p);
    double *magnitude = calloc(p.c_count + 1, sizeof *magnitude); /* 0 between rows: no error */
    et_real *want = room_for(p.c_count, sizeof(et_real));
    memcpy(want, p.c, p.c_count * sizeof *want);
    multiply_literally(&p, want, magnitude);
    et_real *plain = multiplied(&p, ET_PLAIN), *blas = multiplied(&p, ET_BLAS);
    same_bits(&p, plain, want);
    within_bound(&p, blas, want, magnitude);
    free(plain);
    free(blas);
    free(want);
    free(magnitude);
    close_product(&p);
}

/* All four transpositions, written and accumulated. */
static void check_size(size_t M, size_t N, size_t K, size_t slack)
{
    for (int form = 0; form < 8; form++)
        check_product((product){.M = M,
                                .N = N,
                                .K = K,
                                .a_transposed = form & 1,
                                .b_transposed = form & 2,
                                .accumulate = form & 4,
                                .slack = slack});
}

START_TEST(small_products_are_the_definition)
{
    static const size_t sizes[] = {0, 1, 2, 3, 5, 10};
    for (size_t m = 0; m < COUNT(sizes); m++)
        for (size_t n = 0; n < COUNT(sizes); n++)
            for (size_t k = 0; k < COUNT(sizes); k++)
                check_size(sizes[m], sizes[n], sizes[k], (m + n + k) % 4);
}
END_TEST

/* matmul.c cuts at MR = 4 and MC = 64 rows, KC = 256 terms, NR = 6 and NC = 96 columns (12 and 192
 * in float): below, at and above each, alone and together. */
START_TEST(products_across_every_block_edge_are_the_definition)
{
    static const size_t edges[][3] = {
        {3, 5, 4},    {4, 6, 7},     {5, 7, 5},      {8, 12, 9},    {9, 13, 3},      {63, 7, 5},
        {64, 6, 5},   {65, 5, 5},    {128, 3, 2},    {129, 1, 3},   {3, 95, 5},      {4, 96, 5},
        {5, 97, 5},   {2, 191, 4},   {2, 192, 4},    {3, 193, 4},   {5, 7, 255},     {5, 7, 256},
        {5, 7, 257},  {3, 2, 511},   {2, 3, 512},    {1, 1, 513},   {63, 63, 63},    {64, 64, 64},
        {65, 65, 65}, {65, 97, 257}, {66, 194, 258}, {255, 5, 3},   {256, 4, 65},    {257, 3, 64},
        {5, 255, 64}, {4, 256, 63},  {3, 257, 65},   {63, 255, 65}, {130, 100, 300},
    };
    for (size_t e = 0; e < COUNT(edges); e++)
        check_size(edges[e][0], edges[e][1], edges[e][2], e % 3 * 5);
}
END_TEST

START_TEST(an_empty_sum_is_zero_or_what_was_there)
{
    const et_real none[1] = {9};
    et_real c[] = {1, 2, 3, 4, 5, 6};
    for (et_engine engine = ET_PLAIN; engine <= ET_BLAS; engine++) {
        et_real got[6];
        memcpy(got, c, sizeof c);
        et_matmul(engine, 2, 2, 0, et_rows(none, 0), et_rows(none, 2), true, got, 3);
        same_reals("accumulated", 6, got, c);
        et_matmul(engine, 2, 2, 0, et_rows(none, 0), et_rows(none, 2), false, got, 3);
        same_reals("written", 6, got, (const et_real[]){0, 0, 3, 0, 0, 6});
    }
}
END_TEST

START_TEST(threads_do_not_change_a_product)
{
    product p = {.M = 130, .N = 200, .K = 270, .b_transposed = true, .accumulate = true};
    open_product(&p);
    et_real *want = room_for(p.c_count, sizeof(et_real));
    memcpy(want, p.c, p.c_count * sizeof *want);
    multiply_literally(&p, want, NULL);
    static const int thread_counts[] = {1, 2, 5};
    int usual = omp_get_max_threads();
    for (size_t v = 0; v < COUNT(thread_counts); v++) {
        omp_set_num_threads(thread_counts[v]);
        et_real *got = multiplied(&p, ET_PLAIN);
        same_bits(&p, got, want);
        free(got);
    }
    omp_set_num_threads(usual);
    free(want);
    close_product(&p);
}
END_TEST

/* X X' of a symmetric product: plain, the definition's bits; in both engines symmetric to the bit. */
static void check_gram(size_t s, size_t K, bool transposed, size_t slack)
{
    product p = {.M = s, .N = s, .K = K, .a_transposed = transposed, .slack = slack};
    open_product(&p);
    et_matrix X = matrix_a(&p), turned = {X.at, X.stride, !X.transposed};
    et_real *want = room_for(s * s, sizeof *want), *got = room_for(s * s, sizeof *got);
    et_matmul(ET_PLAIN, s, s, K, X, turned, false, want, s);
    for (et_engine engine = ET_PLAIN; engine <= ET_BLAS; engine++) {
        fill("test.c", s * s, got);
        et_gram(engine, s, K, X, got);
        double gamma = (double)(K + 1) * U / (1 - (double)(K + 1) * U);
        for (size_t i = 0; i < s; i++)
            for (size_t j = 0; j < s; j++) {
                double magnitude = 0, apart = fabs((double)(got[i * s + j] - want[i * s + j]));
                for (size_t k = 0; k < K; k++)
                    magnitude += fabs((double)element(X, i, k) * (double)element(X, j, k));
                ck_assert_msg(apart <= (engine == ET_BLAS ? 2 * gamma * magnitude : 0) &&
                                  memcmp(got + i * s + j, got + j * s + i, sizeof *got) == 0,
                              "engine %d, %zu x %zu%s: (%zu, %zu) is %a and %a, not %a", engine, s,
                              K, transposed ? "'" : "", i, j, (double)got[i * s + j],
                              (double)got[j * s + i], (double)want[i * s + j]);
            }
    }
    free(got);
    free(want);
    close_product(&p);
}

START_TEST(a_gram_matrix_is_the_product_and_symmetric)
{
    static const size_t sizes[] = {0, 1, 2, 7, 15, 16, 17, 31, 32, 33, 65, 130};
    for (size_t i = 0; i < COUNT(sizes); i++)
        for (size_t k = 0; k < COUNT(sizes); k += 2)
            for (int transposed = 0; transposed < 2; transposed++)
                check_gram(sizes[i], sizes[k], transposed == 1, (i + k) % 3);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("matmul");
    TCase *matmul = add_case(suite, "matmul");
    tcase_add_test(matmul, small_products_are_the_definition);
    tcase_add_test(matmul, products_across_every_block_edge_are_the_definition);
    tcase_add_test(matmul, an_empty_sum_is_zero_or_what_was_there);
    tcase_add_test(matmul, threads_do_not_change_a_product);
    tcase_add_test(matmul, a_gram_matrix_is_the_product_and_symmetric);
    return run_suite(suite);
}
