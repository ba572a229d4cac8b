/* tiles.h: the loops of plain_product.c around one register tile, once for each kind of number. Internal;
 * included several times, each time with
 *
 *     NUMBER, MATRIX   the type of numbers and of a matrix of them
 *     NAMED(word)      the name that a function has in this kind
 *     BYTES            of a vector; NV of them are a row of a tile
 *     NAMED(tile)      C_ij = (load ? C_ij : 0) + a[k][i] * b[k][j] for k in order; defined before
 *
 * Cutting the loops changes the order in which ELEMENTS are visited, never the order of the sum
 * within one: a block of k ends by storing c, the next begins by loading it, and a store and a load
 * change no bit.
 *
 *     K in blocks of KC                the packed pieces of A and B below fit the caches
 *       rows in strips of MR           A packed to [k][MR], one strip at a time
 *         columns in panels of NR      B packed to [k][NR]: one row of a panel is NV vectors;
 *                                      MR*NR sums live in registers
 *
 * The packed pieces lie on the stack, which may be a small thread's: 52 KiB together.
 *
 * Source of the scheme: Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication,
 * ACM TOMS 34(3), 2008. Left out: anything that would change a bit (fused multiply-add, partial
 * sums by lane), and assembly.
 */

#define NR (NV * BYTES / sizeof(NUMBER)) /* columns of a tile */
#define NC (128 / BYTES * NR)            /* columns of C in a block, of B packed at a time: 48 KiB */

typedef struct NAMED(job) {
    size_t M, N, K;
    MATRIX A, B;
    bool accumulate;
    NUMBER *C;
    size_t stride;
    const et_grid *grids; /* of products and sums that are rounded; else NULL */
} NAMED(job);

/* Terms [terms][full] without gaps: number j < count of term k is from[k * along + j * across], and 0 beyond. */
static inline __attribute__((always_inline)) void NAMED(pack)(const NUMBER *from, size_t along,
                                                              size_t across, size_t terms,
                                                              size_t count, size_t full, NUMBER *to)
{
    if (across == 1 && count == full) {
        for (size_t k = 0; k < terms; k++)
            memcpy(to + k * full, from + k * along, full * sizeof(NUMBER));
        return;
    }
    if (count == MR && full == MR) { /* few lines, read side by side */
        for (size_t k = 0; k < terms; k++)
            for (size_t j = 0; j < MR; j++) to[k * MR + j] = from[k * along + j * across];
        return;
    }
    if (count < full) memset(to, 0, terms * full * sizeof(NUMBER));
    for (size_t j = 0; j < count; j++)
        for (size_t k = 0; k < terms; k++) to[k * full + j] = from[k * along + j * across];
}

/* op(A) rows [i0, i0+rows), terms [k0, k0+terms) into a strip [terms][MR]. */
static void NAMED(pack_rows)(MATRIX A, size_t i0, size_t rows, size_t k0, size_t terms, NUMBER *to)
{
    size_t across = A.transposed ? 1 : A.stride, along = A.transposed ? A.stride : 1;
    NAMED(pack)(A.at + i0 * across + k0 * along, along, across, terms, rows, MR, to);
}

/* op(B) terms [k0, k0+terms), columns [j0, j0+columns) into panels [terms][NR]. */
static void NAMED(pack_columns)(MATRIX B, size_t k0, size_t terms, size_t j0, size_t columns,
                                NUMBER *to)
{
    size_t along = B.transposed ? 1 : B.stride, across = B.transposed ? B.stride : 1;
    for (size_t j = 0; j < columns; j += NR, to += terms * NR)
        NAMED(pack)
        (B.at + k0 * along + (j0 + j) * across, along, across, terms, et_smaller(NR, columns - j),
         NR, to);
}

/* The tile at rows [0, rows), columns [0, columns) of C, which may be cut at C's edge. */
static void NAMED(tile_at)(const NAMED(job) * p, size_t terms, const NUMBER *a, const NUMBER *b,
                           size_t rows, size_t columns, bool load, NUMBER *C)
{
    if (rows == MR && columns == NR) {
        NAMED(tile)(p->grids, terms, a, b, load, C, p->stride);
        return;
    }
    NUMBER sums[MR][NR] = {{0}};
    for (size_t i = 0; load && i < rows; i++)
        memcpy(sums[i], C + i * p->stride, columns * sizeof(NUMBER));
    NAMED(tile)(p->grids, terms, a, b, true, sums[0], NR);
    for (size_t i = 0; i < rows; i++) memcpy(C + i * p->stride, sums[i], columns * sizeof(NUMBER));
}

/* The block of C at rows [i0, ..+MC), columns [j0, ..+NC), all K terms. */
static void NAMED(block)(const NAMED(job) * p, size_t i0, size_t j0)
{
    NUMBER packed_a[MR * KC], packed_b[NC * KC];
    size_t rows = et_smaller(MC, p->M - i0), columns = et_smaller(NC, p->N - j0);
    for (size_t k0 = 0; k0 < p->K; k0 += KC) {
        size_t terms = et_smaller(KC, p->K - k0);
        NAMED(pack_columns)(p->B, k0, terms, j0, columns, packed_b);
        for (size_t i = 0; i < rows; i += MR) {
            NAMED(pack_rows)(p->A, i0 + i, et_smaller(MR, rows - i), k0, terms, packed_a);
            for (size_t j = 0; j < columns; j += NR) NAMED(tile_at)
            (p, terms, packed_a, packed_b + j * terms, et_smaller(MR, rows - i),
             et_smaller(NR, columns - j), p->accumulate || k0 > 0,
             p->C + (i0 + i) * p->stride + j0 + j);
        }
    }
}

static void NAMED(product)(const NAMED(job) * p)
{
    size_t down = (p->M + MC - 1) / MC, across = (p->N + NC - 1) / NC;
    if (down * across == 1) {
        NAMED(block)(p, 0, 0);
        return;
    }
    /* Blocks of C are disjoint: whoever computes one, it gets the same bits. */
#pragma omp parallel for schedule(dynamic) if (et_worth_threads(p->M * p->N / 8 * p->K))
    for (size_t b = 0; b < down * across; b++) NAMED(block)(p, b % down * MC, b / down * NC);
}

#undef NUMBER
#undef MATRIX
#undef NAMED
#undef BYTES
#undef NR
#undef NC
