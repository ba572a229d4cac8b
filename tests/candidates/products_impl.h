/* products_impl.h: the matrix products of a kernel, in every order of summation. Internal; included by
 * kernel_impl.h, once for each word `num`.
 *
 *     C = op(A) op(B)      C [M,N], op(A) [M,K], op(B) [K,N], row-major
 *
 * Element (i,j) is a sum of K terms. It is cut into tiles of so many terms; each tile is summed in one of
 * the orders of cd_order, and the tiles' sums are added from the first to the last. MR rows by NR columns
 * are computed side by side, which changes no element's own sum: equal rows give equal results, wherever
 * they stand. Terms are rounded to the word before they are added: exact for operands of up to 12 bits in
 * float, of 26 in double.
 *
 * An accumulator that is not the word's own is emulated: every sum is rounded to its format.
 */

typedef struct matrix {
    const num *at;
    size_t stride;
    bool transposed;
} matrix;

typedef struct sums {
    cd_order order;
    size_t tile;                  /* terms of a partial sum; 0: all */
    const cd_format *accumulator; /* NULL: the word's own arithmetic */
    const cd_format *tiles;       /* of the sum of the partial sums; NULL: as `accumulator` */
    num *room;                    /* for packed operands: room_for_products */
} sums;

enum {
    V = 16 / sizeof(num), /* lanes of a vector that every machine has */
    NV = 3,
    MR = 4,
    NR = NV * V, /* MR * NV sums, a row of B and an element of A: 16 registers */
    LEAF = 8,    /* terms below which a pairwise sum goes in order */
    BLOCK = 64   /* terms of a partial sum of CD_BLOCKED, where OpenBLAS cannot serve */
};

typedef num lanes __attribute__((vector_size(16)));
typedef num block[MR][NR];

/* Elements of `room` for products of up to R rows, and widths of up to W. */
static size_t room_for_products(size_t R, size_t W)
{
    size_t wide = (R + W + MR + NR) * W, deep = (2 * W + MR + NR) * R;
    return wide > deep ? wide : deep;
}

/* ---- a tile of K terms, a [K][MR] and b [K][NR], added to `sum` ---- */

static void add_plainly(size_t K, const num *a, const num *b, block sum)
{
    lanes s[MR][NV];
    memcpy(s, sum, sizeof s);
    for (size_t k = 0; k < K; k++, a += MR, b += NR) {
        lanes row[NV];
        memcpy(row, b, sizeof row);
        for (int i = 0; i < MR; i++)
            for (int v = 0; v < NV; v++) s[i][v] = s[i][v] + row[v] * a[i];
    }
    memcpy(sum, s, sizeof s);
}

/* The same with every sum rounded to f. */
static void add_rounding(const cd_format *f, size_t K, const num *a, const num *b, block sum)
{
    for (size_t k = 0; k < K; k++) {
        add_plainly(1, a + k * MR, b + k * NR, sum);
        round_all(f, MR * NR, &sum[0][0]);
    }
}

/* The same for a short format in float, cd_round_short on whole vectors: ten times as fast. */
static void add_rounding_short(int bits, size_t K, const num *a, const num *b, block sum)
{
    typedef uint32_t patterns __attribute__((vector_size(16)));
    const uint32_t drop = 24 - (uint32_t)bits, tail = (UINT32_C(1) << drop) - 1;
    lanes s[MR][NV];
    memcpy(s, sum, sizeof s);
    for (size_t k = 0; k < K; k++, a += MR, b += NR) {
        lanes row[NV];
        memcpy(row, b, sizeof row);
        for (int i = 0; i < MR; i++)
            for (int v = 0; v < NV; v++) {
                patterns u = (patterns)(s[i][v] + row[v] * a[i]);
                s[i][v] = (lanes)((u + (tail >> 1) + (u >> drop & 1)) & ~tail);
            }
    }
    memcpy(sum, s, sizeof s);
}

/* sum += more, rounded to f unless that is NULL. */
static void add_block(const cd_format *f, block more, block sum)
{
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < NR; j++) sum[i][j] += more[i][j];
    if (f != NULL) round_all(f, MR * NR, &sum[0][0]);
}

static void add_in_order(const cd_format *f, size_t K, const num *a, const num *b, block sum)
{
    if (f == NULL)
        add_plainly(K, a, b, sum);
    else if (is_short(f) && f->bits < 24)
        add_rounding_short(f->bits, K, a, b, sum);
    else
        add_rounding(f, K, a, b, sum);
}

static void add_pairwise(const cd_format *f, size_t K, const num *a, const num *b, block sum)
{
    block right = {{0}};
    size_t half = K / 2;
    if (K <= LEAF) {
        add_in_order(f, K, a, b, sum);
        return;
    }
    add_pairwise(f, half, a, b, sum);
    add_pairwise(f, K - half, a + half * MR, b + half * NR, right);
    add_block(f, right, sum);
}

/* Kahan: `lost` is what the last addition dropped. */
static void add_compensated(size_t K, const num *a, const num *b, block sum)
{
    lanes s[MR][NV], lost[MR][NV];
    memcpy(s, sum, sizeof s);
    memset(lost, 0, sizeof lost);
    for (size_t k = 0; k < K; k++, a += MR, b += NR) {
        lanes row[NV];
        memcpy(row, b, sizeof row);
        for (int i = 0; i < MR; i++)
            for (int v = 0; v < NV; v++) {
                lanes term = row[v] * a[i] - lost[i][v], total = s[i][v] + term;
                lost[i][v] = (total - s[i][v]) - term;
                s[i][v] = total;
            }
    }
    memcpy(sum, s, sizeof s);
}

static void add_in_double(size_t K, const num *a, const num *b, block sum)
{
    double s[MR][NR] = {{0}};
    for (size_t k = 0; k < K; k++, a += MR, b += NR)
        for (int i = 0; i < MR; i++)
            for (int j = 0; j < NR; j++) s[i][j] += (double)a[i] * (double)b[j];
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < NR; j++) sum[i][j] = (num)s[i][j];
}

/* A tile's sum, from 0. */
static void sum_tile(const sums *how, size_t K, const num *a, const num *b, block sum)
{
    bool wide = how->order == CD_WIDE && sizeof(num) < sizeof(double);
    memset(sum, 0, sizeof(block));
    if (how->order == CD_TREE)
        add_pairwise(how->accumulator, K, a, b, sum);
    else if (wide)
        add_in_double(K, a, b, sum);
    else if (how->order == CD_COMPENSATED || how->order == CD_WIDE)
        add_compensated(K, a, b, sum);
    else
        add_in_order(how->accumulator, K, a, b, sum);
    if (how->accumulator != NULL) round_all(how->accumulator, MR * NR, &sum[0][0]);
}

static void sum_tiles(const sums *how, size_t K, const num *a, const num *b, block sum)
{
    size_t tile = how->tile > 0 ? how->tile : K;
    sum_tile(how, cd_smaller(tile, K), a, b, sum);
    for (size_t k = tile; k < K; k += tile) {
        block more;
        sum_tile(how, cd_smaller(tile, K - k), a + k * MR, b + k * NR, more);
        add_block(how->tiles ? how->tiles : how->accumulator, more, sum);
    }
}

/* ---- the whole product ---- */

/* Lines [0, lines) of X, `width` side by side, as [K][width] one after the other; 0 beyond the last.
 * A line is a row of op(A), or a column of op(B). Reversed: the last term first. */
static void pack(num *to, const num *X, size_t lines, size_t K, size_t from_line, size_t from_term,
                 size_t width, bool reversed)
{
    for (size_t first = 0; first < lines; first += width)
        for (size_t k = 0; k < K; k++)
            for (size_t i = first; i < first + width; i++) {
                size_t term = reversed ? K - 1 - k : k;
                *to++ = i < lines ? X[i * from_line + term * from_term] : 0;
            }
}

static void by_blas(size_t tile, size_t M, size_t N, size_t K, matrix A, matrix B, num *C)
{
    if (tile == 0) tile = K;
    for (size_t k = 0; k < K; k += tile)
        GEMM(CblasRowMajor, A.transposed ? CblasTrans : CblasNoTrans,
             B.transposed ? CblasTrans : CblasNoTrans, (int)M, (int)N, (int)cd_smaller(tile, K - k),
             1, A.at + k * (A.transposed ? A.stride : 1), (int)A.stride,
             B.at + k * (B.transposed ? 1 : B.stride), (int)B.stride, k > 0, C, (int)N);
}

static void product(const sums *how, size_t M, size_t N, size_t K, matrix A, matrix B, num *C)
{
    sums s = *how;
    bool blas = s.order == CD_BLOCKED && s.accumulator == NULL && s.tiles == NULL;
    if (M == 0 || N == 0 || K == 0) {
        memset(C, 0, M * N * sizeof *C);
        return;
    }
    if (blas) {
        by_blas(s.tile, M, N, K, A, B, C);
        return;
    }
    if (s.order == CD_BLOCKED && s.tile == 0) s.tile = BLOCK;
    size_t strips = cd_ceil(M, MR), panels = cd_ceil(N, NR);
    num *a = s.room, *b = s.room + strips * MR * K;
    bool reversed = s.order == CD_REVERSED;
    pack(a, A.at, M, K, A.transposed ? 1 : A.stride, A.transposed ? A.stride : 1, MR, reversed);
    pack(b, B.at, N, K, B.transposed ? B.stride : 1, B.transposed ? 1 : B.stride, NR, reversed);
#pragma omp parallel for schedule(static) if (M * N * K > 1 << 20)
    for (size_t p = 0; p < panels; p++)
        for (size_t q = 0; q < strips; q++) {
            block sum;
            size_t rows = cd_smaller(MR, M - q * MR), columns = cd_smaller(NR, N - p * NR);
            sum_tiles(&s, K, a + q * MR * K, b + p * NR * K, sum);
            for (size_t i = 0; i < rows; i++)
                memcpy(C + (q * MR + i) * N + p * NR, sum[i], columns * sizeof(num));
        }
}

static num dot(const sums *how, size_t K, const num *a, const num *b)
{
    num c;
    product(how, 1, 1, K, (matrix){a, K, false}, (matrix){b, 1, false}, &c);
    return c;
}
