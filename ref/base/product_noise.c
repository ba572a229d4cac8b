/* product_noise.c: the variance of a matrix product's error. See product_noise.h. */
#include "ref/base/product_noise.h"
#include "ref/base/bits.h"
#include "ref/base/memory.h"
#include "ref/base/parallel.h"
#include "ref/base/rounding.h"

#include <cblas.h>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>

et_sum_noise et_sum_noise_of(const et_profile *p, size_t K)
{
    double u = ldexp(1, -p->bits[ET_ACCUMULATOR]), a = 0.18 * u * u, terms = (double)K;
    bool products_fit = 2 * p->bits[ET_OPERANDS] <= p->bits[ET_ACCUMULATOR];
    et_sum_noise c = {a * (terms / 3 + 0.5), a * (terms / 6 + (products_fit ? 0 : 1))};
    if (p->truncate_accumulator) {
        double mean = 0.72 * u * terms;
        c.square = 4 * c.square + mean * mean / 4;
        c.squares = 4 * c.squares + mean * mean / 6;
    }
    return c;
}

int et_lowest_bit(double value)
{
    if (value == 0) return INT_MAX / 4;
    uint64_t bits = to_bits(value), significand = bits & (((uint64_t)1 << 52) - 1);
    int exponent = (int)(bits >> 52 & 0x7ff);
    if (exponent > 0) significand |= (uint64_t)1 << 52;
    return (exponent > 0 ? exponent : 1) - 1075 + __builtin_ctzll(significand);
}

bool et_sum_is_exact(const et_profile *p, size_t count, const double *terms)
{
    int lowest = INT_MAX / 4;
    double sum = 0;
    for (size_t i = 0; i < count; i++) {
        int bit = et_lowest_bit(terms[i]);
        if (bit < lowest) lowest = bit;
        sum += fabs(terms[i]);
    }
    return sum == 0 || sum <= ldexp(1, p->bits[ET_ACCUMULATOR] + lowest);
}

/* ---- additions that lose nothing ---- */

static double element(et_matrix x, size_t row, size_t column)
{
    return (double)x.at[x.transposed ? column * x.stride + row : row * x.stride + column];
}

/* The last bit of an operand: its own, or where it has to be rounded, that of its format. */
static int last_bit(const rounding *r, double value)
{
    return rounding_holds(r, value) ? et_lowest_bit(value) : ilogb(rounding_ulp(r, value));
}

/* The variance of losing k bits, times 12/ulp^2: of a term that ends k bits below the ulp with a 1, as all do
 * (a single one is always ulp/2), or of a sum whose last bits may be anything. */
static double loss(int k, bool ends_with_one)
{
    if (ends_with_one) return k == 1 ? 3 : 1 - ldexp(1, 2 - 2 * k);
    return 1 + ldexp(1, 1 - 2 * k);
}

/* One element of a product. */
typedef struct followed {
    double lost, predicted; /* variance: addition by addition; by et_sum_noise */
    double sum;
} followed;

/* From the first term to the last; or backwards. */
static followed follow(const et_profile *p, et_sum_noise c, size_t K, et_matrix X, et_matrix Y,
                       size_t i, size_t j, bool backwards)
{
    const rounding operand = et_rounding_at(p, ET_OPERANDS);
    double sum = 0, squares = 0, lost = 0;
    int last = INT_MAX / 4;
    for (size_t step = 0; step < K; step++) {
        size_t k = backwards ? K - 1 - step : step;
        double x = element(X, i, k), y = element(Y, k, j);
        if (x == 0 || y == 0) continue;
        int bit = last_bit(&operand, x) + last_bit(&operand, y);
        sum += x * y;
        squares += x * y * x * y;
        if (sum == 0 || !isfinite(sum)) continue;
        int ulp = ilogb(sum) - p->bits[ET_ACCUMULATOR] + 1;
        bool below = bit < last;
        if (below) last = bit;
        if (last >= ulp) continue;
        lost += ldexp(1, 2 * ulp) / 12 * loss(ulp - last, below);
        last = ulp;
    }
    return (followed){lost, c.square * sum * sum + c.squares * squares, sum};
}

static double part_lost_of(followed f)
{
    return f.predicted > 0 && isfinite(f.predicted) ? f.lost / f.predicted : 1;
}

/* Two operands' bits fit the accumulator: products are exact. */
static bool products_are_exact(const et_profile *p)
{
    return 2 * p->bits[ET_OPERANDS] <= p->bits[ET_ACCUMULATOR] && !p->truncate_accumulator;
}

/* A sum of many terms may lose its one bit where a sample of sums lost none. */
static const double least_lost = 0.01;

/* Which part of acc is left, from a sample of the elements (all of them, where they are few). */
static double part_lost(const et_profile *p, et_sum_noise c, size_t M, size_t N, size_t K,
                        et_matrix X, et_matrix Y)
{
    enum { ADDITIONS = 65536, LEAST = 8, MOST = 1024 };
    if (!products_are_exact(p) || M * N * K == 0) return 1;
    size_t wanted = ADDITIONS / K;
    if (wanted < LEAST) wanted = LEAST;
    if (wanted > MOST) wanted = MOST;
    if (wanted > M * N) wanted = M * N;
    double part = 0;
    for (size_t s = 0; s < wanted; s++) /* 7919: a prime, so that no column is left out */
        part += part_lost_of(follow(p, c, K, X, Y, s * M / wanted, s * 7919 % N, false));
    return fmin(fmax(part / (double)wanted, least_lost), 1.25);
}

/* The mean of those that are at most twice the mean. */
static double usual_of(size_t count, const double *values)
{
    double usual = HUGE_VAL, before;
    do {
        double sum = 0, n = 0;
        before = usual;
        for (size_t j = 0; j < count; j++)
            if (values[j] <= 2 * before) {
                sum += values[j];
                n++;
            }
        usual = sum / n;
    } while (usual < before);
    return usual;
}

/* The part that column j loses, over `each` of its sums, to and fro. */
static double column_lost(const et_profile *p, et_sum_noise c, size_t M, size_t K, et_noisy X,
                          et_noisy Y, size_t j, size_t each)
{
    double sum = 0;
    for (size_t s = 0; s < each; s++)
        sum += part_lost_of(follow(p, c, K, X.at, Y.at, s * M / each, j, s % 2 > 0));
    return sum / (double)each;
}

/* A column of Y with one number that ends far below the others makes sums lose more, whatever the row: where
 * operands bring no errors of their own, acc is taken times[j] as large in column j, by what its sums lose; or
 * by those of all usual columns, if it is one. 64 sums, of which few lose anything, say which columns to look at
 * again; 1024 tell how much. Long sums have many such numbers in every column, and a large product would cost too
 * much. *times [N], to be freed; NULL: once everywhere. */
static et_status columns_lost(const et_profile *p, et_sum_noise c, double part, size_t M, size_t N,
                              size_t K, et_noisy X, et_noisy Y, double **times, et_error *error)
{
    enum { FEW = 64, MANY = 1024, AT_MOST = 1 << 15 };
    void *room;
    *times = NULL;
    if (!products_are_exact(p) || X.variance || Y.variance || M * N * K == 0 || N > AT_MOST / K)
        return ET_OK;
    et_status status = et_allocate(&room, N, sizeof(double), "columns", error);
    if (status != ET_OK) return status;
    double *lost = room;
    for (size_t j = 0; j < N; j++) lost[j] = column_lost(p, c, M, K, X, Y, j, M < FEW ? M : FEW);
    double usual = usual_of(N, lost);
    for (size_t j = 0; j < N; j++) {
        if (lost[j] > 2 * usual && M > FEW)
            lost[j] = column_lost(p, c, M, K, X, Y, j, M < MANY ? M : MANY);
        bool apart = lost[j] > 2 * usual;
        lost[j] = fmax(apart ? lost[j] : usual, least_lost) / part;
    }
    *times = lost;
    return ET_OK;
}

/* ---- operands in memory ---- */

/* variance + factor * value^2, element by element: what a product of squares is made of. */
typedef struct squares {
    const et_real *value, *variance; /* either may be NULL: none */
    double factor;
    et_matrix at; /* as the operand lies in memory; its own `at` is not used */
    size_t count;
} squares;

static double square_at(const squares *x, size_t i)
{
    double value = x->value ? (double)x->value[i] : 0;
    return (x->variance ? (double)x->variance[i] : 0) + x->factor * value * value;
}

static squares mixed(et_noisy x, double factor, size_t count)
{
    return (squares){x.at.at, x.variance, factor, x.at, count};
}

/* ---- products of squares ---- */

/* Results are worked on in pieces of a row, which stay in the cache. */
enum { PIECE = 256 };

void et_product_room_free(et_product_room *room)
{
    for (size_t i = 0; i < sizeof room->at / sizeof *room->at; i++) free(room->at[i]);
    *room = (et_product_room){0};
}

/* Makes buffer `i` hold at least `count` elements. */
static et_status grow(et_product_room *room, size_t i, size_t count, size_t size, et_error *error)
{
    if (room->at[i] && room->bytes[i] / size >= count) return ET_OK;
    void *more;
    et_status status = et_allocate(&more, count, size, "squares", error);
    if (status != ET_OK) return status;
    free(room->at[i]);
    room->at[i] = more;
    room->bytes[i] = count * size;
    return ET_OK;
}

/* A product of squares in floats, times 2^exponent, which is applied when an element is asked for. */
typedef struct floats {
    const float *w;
    int exponent;
    bool underflows; /* 0 may have been more */
    const squares *X, *Y;
} floats;

/* What V is made of: W, or the sum of one or two products. */
typedef struct product {
    const et_real *W;
    floats of[2];
    size_t count, N, K;
} product;

static et_status multiply_plain(et_product_room *room, size_t M, size_t N, size_t K,
                                const squares *X, const squares *Y, bool accumulate, et_real *W,
                                et_error *error)
{
    et_status status;
    if ((status = grow(room, 0, M * K, sizeof(et_real), error)) ||
        (status = grow(room, 1, K * N, sizeof(et_real), error)))
        return status;
    et_real *x = room->at[0], *y = room->at[1];
    for (size_t i = 0; i < M * K; i++) x[i] = (et_real)square_at(X, i);
    for (size_t i = 0; i < K * N; i++) y[i] = (et_real)square_at(Y, i);
    et_matmul(ET_PLAIN, M, N, K, (et_matrix){x, X->at.stride, X->at.transposed},
              (et_matrix){y, Y->at.stride, Y->at.transposed}, accumulate, W, N);
    return ET_OK;
}

/* Squares first .. first+PIECE, as far as there are any; returns how many. */
static size_t take_squares(const squares *x, size_t first, double *to)
{
    size_t count = x->count - first < PIECE ? x->count - first : PIECE;
    for (size_t i = 0; i < count; i++) to[i] = square_at(x, first + i);
    return count;
}

/* to = the squares / 2^exponent, which brings the largest near 1; returns the exponent. *small: a square is there,
 * and yet below 2^-63: the product of two such may be below 2^-126, float's smallest normal number. Beside an infinite
 * one all are. */
static int scaled(const squares *x, float *to, bool *small)
{
    double largest = 0, few = 0;
#pragma omp parallel for reduction(max : largest) if (et_worth_threads(x->count))
    for (size_t first = 0; first < x->count; first += PIECE) {
        double piece[PIECE];
        size_t count = take_squares(x, first, piece);
        largest = larger(largest_in(count, piece), largest);
    }
    int exponent = largest > 0 && isfinite(largest) ? ilogb(fmax(largest, DBL_MIN)) : 0;
    double scale = isfinite(largest) ? ldexp(1, -exponent) : 0;
#pragma omp parallel for reduction(+ : few) if (et_worth_threads(x->count))
    for (size_t first = 0; first < x->count; first += PIECE) {
        double piece[PIECE];
        size_t count = take_squares(x, first, piece);
#pragma omp simd reduction(+ : few)
        for (size_t i = 0; i < count; i++) {
            double square = scale * piece[i];
            to[first + i] = (float)square;
            few += ((square >= 0x1p-63) | (piece[i] == 0)) ? 0.0 : 1.0; /* NaN counts, too */
        }
    }
    *small = few > 0;
    return exponent;
}

static double dot_of_squares(size_t K, const squares *X, const squares *Y, size_t i, size_t j)
{
    double sum = 0;
    for (size_t k = 0; k < K; k++)
        sum += square_at(X, X->at.transposed ? k * X->at.stride + i : i * X->at.stride + k) *
               square_at(Y, Y->at.transposed ? j * Y->at.stride + k : k * Y->at.stride + j);
    return sum;
}

/* w = elements at .. at+count, at most PIECE, or their sums; a float that underflows to 0 is computed once more. */
static void products_at(const product *q, size_t at, size_t count, double *w)
{
    for (size_t i = 0; i < count; i++) w[i] = q->W ? (double)q->W[at + i] : 0;
    for (size_t k = 0; k < q->count; k++) {
        const floats *f = &q->of[k];
        const float *from = f->w + at;
        /* in two steps: 2^exponent may be out of binary64's range */
        double value[PIECE], half = ldexp(1, f->exponent / 2);
        double rest = ldexp(1, f->exponent - f->exponent / 2);
        for (size_t i = 0; i < count; i++) value[i] = (double)from[i];
        for (size_t i = 0; i < count; i++) w[i] += rest * (half * larger(value[i], 0));
        for (size_t i = 0; f->underflows && i < count; i++)
            if (!(from[i] > 0))
                w[i] += dot_of_squares(q->K, f->X, f->Y, (at + i) / q->N, (at + i) % q->N);
    }
}

/* The floats stay in the room until the next variance. */
static et_status multiply_blas(et_product_room *room, size_t M, size_t N, size_t K,
                               const squares *X, const squares *Y, product *out, et_error *error)
{
    et_status status;
    size_t place = 2 + out->count;
    if ((status = grow(room, 0, M * K, sizeof(float), error)) ||
        (status = grow(room, 1, K * N, sizeof(float), error)) ||
        (status = grow(room, place, M * N, sizeof(float), error)))
        return status;
    float *x = room->at[0], *y = room->at[1], *w = room->at[place];
    bool small_x, small_y;
    int exponent = scaled(X, x, &small_x) + scaled(Y, y, &small_y);
    cblas_sgemm(CblasRowMajor, X->at.transposed ? CblasTrans : CblasNoTrans,
                Y->at.transposed ? CblasTrans : CblasNoTrans, (blasint)M, (blasint)N, (blasint)K, 1,
                x, (blasint)X->at.stride, y, (blasint)Y->at.stride, 0, w, (blasint)N);
    out->of[out->count++] = (floats){w, exponent, small_x || small_y, X, Y};
    return ET_OK;
}

/* W += X Y: by BLAS in floats, or all of it in `sum`. */
static et_status multiply(bool blas, et_product_room *room, size_t M, size_t N, size_t K,
                          const squares *X, const squares *Y, et_real *sum, product *W,
                          et_error *error)
{
    if (blas) return multiply_blas(room, M, N, K, X, Y, W, error);
    et_status status = multiply_plain(room, M, N, K, X, Y, W->W != NULL, sum, error);
    W->W = sum;
    return status;
}

/* ---- which elements are exact ---- */

/* Of each of `lines` vectors of an operand (rows of X, columns of Y): the lowest set bit of its values, as a power of
 * two; infinite where all are 0, and NaN (no comparison holds) if one carries an error. */
static void find_quanta(et_noisy x, size_t lines, size_t length, bool along_rows, double *quanta)
{
#pragma omp parallel for if (et_worth_threads(lines * length))
    for (size_t i = 0; i < lines; i++) {
        int least = INT_MAX / 4;
        for (size_t k = 0; k < length && least != INT_MIN; k++) {
            size_t at = along_rows ? i * x.at.stride + k : k * x.at.stride + i;
            int bit = et_lowest_bit((double)x.at.at[at]);
            if (bit < least) least = bit;
            if ((x.variance && x.variance[at] > 0) || !isfinite((double)x.at.at[at]))
                least = INT_MIN;
        }
        quanta[i] = least == INT_MIN ? NAN : ldexp(1, least);
    }
}

static bool any_without_error(const double *quanta, size_t lines)
{
    for (size_t i = 0; i < lines; i++)
        if (!isnan(quanta[i])) return true;
    return false;
}

static bool all_zero(const et_real *variance, size_t count)
{
    for (size_t i = 0; variance && i < count; i++)
        if (variance[i] != 0) return false;
    return true;
}

typedef struct exactness {
    double *rows, *columns; /* quanta; NULL: nothing is exact */
    double span;            /* 2^p of the accumulator */
    et_real *sums;          /* sum_k |X_ik Y_kj|, or NULL: Cauchy-Schwarz decides */
} exactness;

/* NaN if there are errors. */
static double largest_exact(const exactness *e, size_t i, size_t j)
{
    return e->span * e->rows[i] * e->columns[j];
}

/* The sums of absolute values, if there is an element for which the cheap bound does not decide. */
static et_status sum_if_needed(exactness *e, et_engine engine, size_t M, size_t N, size_t K,
                               et_noisy X, et_noisy Y, const product *Q, double per_square,
                               et_error *error)
{
    bool undecided = false;
#pragma omp parallel for reduction(|| : undecided) if (et_worth_threads(M * N))
    for (size_t i = 0; i < M; i++)
        for (size_t first = 0; first < N && !undecided; first += PIECE) {
            double w[PIECE];
            size_t width = N - first < PIECE ? N - first : PIECE;
            products_at(Q, i * N + first, width, w);
            for (size_t j = 0; j < width && !undecided; j++) {
                double q = w[j] / per_square, most = largest_exact(e, i, first + j);
                undecided = sqrt(q) <= 1.000001 * most && 1.000001 * sqrt((double)K * q) > most;
            }
        }
    if (!undecided) return ET_OK;
    void *x = NULL, *y = NULL, *sums = NULL;
    et_status status;
    if ((status = et_allocate(&x, M * K, sizeof(et_real), "absolute values", error)) ||
        (status = et_allocate(&y, K * N, sizeof(et_real), "absolute values", error)) ||
        (status = et_allocate(&sums, M * N, sizeof(et_real), "absolute sums", error))) {
        free(x);
        free(y);
        return status;
    }
    for (size_t i = 0; i < M * K; i++) ((et_real *)x)[i] = (et_real)fabs((double)X.at.at[i]);
    for (size_t i = 0; i < K * N; i++) ((et_real *)y)[i] = (et_real)fabs((double)Y.at.at[i]);
    et_matmul(engine, M, N, K, (et_matrix){x, X.at.stride, X.at.transposed},
              (et_matrix){y, Y.at.stride, Y.at.transposed}, false, sums, N);
    e->sums = sums;
    free(x);
    free(y);
    return ET_OK;
}

static et_status find_exact(exactness *e, et_engine engine, const et_profile *p, size_t M, size_t N,
                            size_t K, et_noisy X, et_noisy Y, const product *Q, double per_square,
                            et_error *error)
{
    void *room;
    et_status status = et_allocate(&room, M + N, sizeof(double), "quanta", error);
    if (status != ET_OK) return status;
    e->span = ldexp(1, p->bits[ET_ACCUMULATOR]);
    e->rows = room;
    e->columns = e->rows + M;
    find_quanta(X, M, K, !X.at.transposed, e->rows);
    if (any_without_error(e->rows, M)) find_quanta(Y, N, K, Y.at.transposed, e->columns);
    if (!any_without_error(e->rows, M) || !any_without_error(e->columns, N)) {
        free(e->rows);
        e->rows = NULL;
        return ET_OK;
    }
    if (!all_zero(X.variance, M * K) || !all_zero(Y.variance, K * N)) return ET_OK;
    return sum_if_needed(e, engine, M, N, K, X, Y, Q, per_square, error);
}

/* ---- the product ---- */

/* acc where it is more than the rounding that follows it: a sum of exact operands that cancels. The verdict asks for
 * 8 deviations of what is rounded more coarsely than summed, as of a normal error; but acc is an average over orders of
 * summation, and the actual one has an exponential tail that reaches 27 (ref/verdict/calibration.c). Few elements
 * are so small. */
static double with_tail(double acc, double site)
{
    const double reach = 27. / 8;
    return acc > site ? acc + (reach * reach - 1) * (acc - site) : acc;
}

/* What becomes of W: V (+)= (W + square * C^2) times[j], but 0 where the sum is exact; then the rounding. */
typedef struct finishing {
    const product *W; /* [M,N], everything else */
    const exactness *exact;
    et_sum_noise c;
    const double *times; /* [N], NULL: 1 */
    const et_real *C;    /* [M,N], NULL: not kept */
    rounding site;
    bool rounded, tail; /* is there a site; is W acc and nothing else, and the site coarser */
    bool accumulate;
} finishing;

/* w = 0 where sum_k |X_ik Y_kj| <= 2^p q. The bound comes from floats: a little more than it. */
static void clear_exact(const finishing *f, size_t i, size_t first, size_t count, double *w)
{
    const exactness *e = f->exact;
    size_t N = f->W->N;
    for (size_t j = 0; j < count && !isnan(e->rows[i]); j++) {
        double bound = 1.000001 * sqrt((double)f->W->K * w[j] / f->c.squares);
        double sum = e->sums ? (double)e->sums[i * N + first + j] : bound;
        if (sum <= largest_exact(e, i, first + j)) w[j] = 0;
    }
}

/* w += the rounding of C, at first as if all of them erred. */
static void add_site(const finishing *f, size_t count, const double *C, double *w)
{
    double site[PIECE], exact = 0;
#pragma omp simd reduction(+ : exact)
    for (size_t j = 0; j < count; j++) {
        site[j] = rounding_usual(&f->site, C[j]);
        exact += w[j] == 0 ? 1.0 : 0.0;
    }
    for (size_t j = 0; (f->site.ftz || exact > 0) && j < count; j++)
        site[j] = rounding_site(&f->site, C[j], w[j]);
    for (size_t j = 0; f->tail && j < count; j++) w[j] = with_tail(w[j], site[j]);
    for (size_t j = 0; j < count; j++) w[j] += site[j];
}

/* Elements first .. first+count of row i, in loops that a compiler makes vectors of: a condition chooses between two
 * results, and does not decide whether one is computed. */
static void finish_piece(const finishing *f, size_t i, size_t first, size_t count, et_real *V)
{
    size_t at = i * f->W->N + first;
    double w[PIECE], C[PIECE], square = f->c.square;
    const double *times = f->times ? f->times + first : NULL;
    products_at(f->W, at, count, w);
    if (f->exact->rows) clear_exact(f, i, first, count, w);
    for (size_t j = 0; j < count; j++) C[j] = f->C ? (double)f->C[at + j] : 0;
    for (size_t j = 0; j < count; j++) {
        double all = (w[j] + square * C[j] * C[j]) * (times ? times[j] : 1);
        w[j] = w[j] > 0 ? all : w[j];
    }
    if (f->rounded) add_site(f, count, C, w);
    for (size_t j = 0; j < count; j++)
        V[at + j] = (et_real)((f->accumulate ? (double)V[at + j] : 0) + w[j]);
}

static void finish(const finishing *f, size_t M, et_real *V)
{
    size_t N = f->W->N;
#pragma omp parallel for if (et_worth_threads(M * N))
    for (size_t i = 0; i < M; i++)
        for (size_t j = 0; j < N; j += PIECE)
            finish_piece(f, i, j, N - j < PIECE ? N - j : PIECE, V);
}

/* ---- short sums, one by one ---- */

enum { SHORT = 32, AT_MOST = 1 << 22 };

static double variance_at(et_noisy x, size_t row, size_t column)
{
    size_t stride = x.at.stride,
           at = x.at.transposed ? column * stride + row : row * stride + column;
    return x.variance ? (double)x.variance[at] : 0;
}

static double coherent_at(et_noisy x, size_t row, size_t column)
{
    if (x.coherent) return variance_at((et_noisy){x.at, x.coherent, NULL, 0}, row, column);
    double value = element(x.at, row, column);
    return value * value;
}

/* Whether a sum of a few terms loses anything is a matter of these terms and their order; an average says
 * nothing about it. So each is followed by itself, to and fro. No partial sum of any order is beyond
 * sum |term|; where that one would have to be rounded, a sixth of the deviation is the least. */
static double short_sum_noise(const et_profile *p, et_sum_noise c, size_t K, et_noisy X, et_noisy Y,
                              size_t i, size_t j, double *sum)
{
    double terms[SHORT], incoming = 0, sizes = 0;
    for (size_t k = 0; k < K; k++) {
        double y = element(Y.at, k, j), Vy = variance_at(Y, k, j);
        terms[k] = element(X.at, i, k) * y;
        sizes += fabs(terms[k]);
        incoming += variance_at(X, i, k) * (y * y + Vy) + coherent_at(X, i, k) * Vy;
    }
    followed to = follow(p, c, K, X.at, Y.at, i, j, false);
    *sum = to.sum;
    if (incoming == 0 && et_sum_is_exact(p, K, terms)) return 0;
    double fro = follow(p, c, K, X.at, Y.at, i, j, true).lost;
    double most = et_site_variance(p, ET_ACCUMULATOR, sizes, 1);
    return incoming + fmax((to.lost + fro) / 2, most / 36) * fmax(1, X.alike);
}

static void short_sums_noise(const et_profile *p, size_t M, size_t N, size_t K, et_noisy X,
                             et_noisy Y, et_place place, bool accumulate, et_real *V)
{
    rounding site = {0};
    et_sum_noise c = et_sum_noise_of(p, K);
    if (place != ET_NOWHERE) site = et_rounding_at(p, place);
#pragma omp parallel for if (et_worth_threads(M * N * K))
    for (size_t at = 0; at < M * N; at++) {
        double sum, v = short_sum_noise(p, c, K, X, Y, at / N, at % N, &sum);
        if (place != ET_NOWHERE) v += rounding_site(&site, sum, v);
        V[at] = (et_real)((accumulate ? (double)V[at] : 0) + v);
    }
}

/* Sizes that OpenBLAS can count; others are the plain engine's, as in matmul.c. */
static bool is_countable(size_t M, size_t N, size_t K)
{
    return M <= INT_MAX && N <= INT_MAX && K <= INT_MAX && M * N * K > 0;
}

et_status et_product_noise(et_engine engine, const et_profile *p, et_product_room *room, size_t M,
                           size_t N, size_t K, et_noisy X, et_noisy Y, const et_real *C,
                           et_place place, bool accumulate, et_real *V, et_error *error)
{
    if (products_are_exact(p) && K <= SHORT && M * N <= AT_MOST / (K + 1)) {
        short_sums_noise(p, M, N, K, X, Y, place, accumulate, V);
        return ET_OK;
    }
    const et_sum_noise plain = et_sum_noise_of(p, K);
    et_sum_noise c = plain;
    double part = part_lost(p, c, M, N, K, X.at, Y.at), alike = fmax(1, X.alike);
    if (C == NULL) c.squares += c.square;
    c.square *= part * alike;
    c.squares *= part * alike * alike;
    exactness e = {0};
    /* (V[X] + squares X o X) (Y o Y + V[Y]), then (X o X) V[Y] */
    squares x = mixed(X, c.squares, M * K), y = mixed(Y, 1, K * N);
    squares coherent = {X.coherent ? NULL : X.at.at, X.coherent, 1, X.at, M * K};
    squares variance = {NULL, Y.variance, 0, Y.at, K * N};
    product W = {.N = N, .K = K};
    double *times;
    void *own = NULL; /* the plain engine's sum, where V is added to */
    bool blas = engine == ET_BLAS && is_countable(M, N, K);
    et_status status = columns_lost(p, plain, part, M, N, K, X, Y, &times, error);
    if (status == ET_OK && accumulate && !blas)
        status = et_allocate(&own, M * N, sizeof *V, "variances", error);
    if (status != ET_OK) goto out;
    et_real *sum = own ? own : V;
    if ((status = multiply(blas, room, M, N, K, &x, &y, sum, &W, error)) ||
        (status = find_exact(&e, engine, p, M, N, K, X, Y, &W, c.squares, error)) ||
        (Y.variance &&
         (status = multiply(blas, room, M, N, K, &coherent, &variance, sum, &W, error))))
        goto out;
    finishing f = {.W = &W, .exact = &e, .c = c, .times = times, .C = C};
    f.rounded = place != ET_NOWHERE;
    if (f.rounded) f.site = et_rounding_at(p, place);
    f.tail = f.rounded && !X.variance && !Y.variance && p->bits[place] < p->bits[ET_ACCUMULATOR];
    f.accumulate = accumulate;
    finish(&f, M, V);
out:
    free(own);
    free(times);
    free(e.rows);
    free(e.sums);
    return status;
}
