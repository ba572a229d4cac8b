/* attention.c: causal attention with shared key/value heads, forward and backward. See
 * etref/attention.h.
 *
 *     S = q k' / sqrt(e)      P = e^(S - lse), 0 above the diagonal      o = P v
 *
 * A few rows of one head are taken at a time, so that memory is linear in tokens: S of ROWS queries
 * and of the keys up to the last of these. Of P only lse is kept, one number a row.
 *
 * Backward. o_tc = sum_u P_tu v_uc, and P_t is a softmax of S_t (lse is a function of S, with
 * dlse_t/dS_tu = P_tu). So
 *
 *     dv_uc = sum_t P_tu do_tc                                          dv = P' do
 *     dP_tu = sum_c do_tc v_uc                                          dP = do v'
 *     dS_tu = sum_w dP_tw P_tw ([u = w] - P_tu) = P_tu (dP_tu - D_t),   D_t = sum_w P_tw dP_tw
 *     dq_tc = sum_u dS_tu k_uc / sqrt(e)                                dq = dS k / sqrt(e)
 *     dk_uc = sum_t dS_tu q_tc / sqrt(e)                                dk = dS' q / sqrt(e)
 *
 * A kernel that has o takes D_t = sum_c do_tc o_tc, the same number: its errors are others, and where a row is one number of
 * P, which is 1 then, dP - D is no longer exactly 0.
 *
 * dk and dv are sums over the query heads that share them and over blocks of rows, taken in this
 * order by one thread: no bit depends on threads.
 *
 * Left out: dropout, windows, sequences of unequal length, and the online softmax of fused kernels:
 * all scores of a row are there at once.
 */
#include "etref/attention.h"
#include "etref/elementary.h"
#include "ref/base/float_environment.h"
#include "ref/base/exponential.h"
#include "ref/base/memory.h"
#include "ref/base/threads.h"
#include "ref/base/product.h"
#include "ref/base/sum.h"
#include "ref/layers/layer_arrays.h"

#include <math.h> /* sqrt: correctly rounded */
#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 32 }; /* queries at a time */

static size_t columns(const et_attention *f)
{
    return (f->heads + 2 * f->kv_heads) * f->width;
}

size_t et_attention_room(const et_attention *f)
{
    return f->workers * 2 * ROWS * f->T;
}

/* One query head of one sequence: where its rows of q, k, v begin. */
typedef struct head {
    size_t q, k, v; /* columns */
    size_t row;     /* of the sequence's first token */
} head;

static head head_of(const et_attention *f, size_t sequence, size_t i)
{
    size_t shared = i * f->kv_heads / f->heads;
    return (head){.q = i * f->width,
                  .k = (f->heads + shared) * f->width,
                  .v = (f->heads + f->kv_heads + shared) * f->width,
                  .row = sequence * f->T};
}

/* Rows from `row` of the `column`s of a head, as an operand that a kernel has stored. */
static et_operand rows_of(const et_attention *f, const char *site, const et_real *qkv, size_t row,
                          size_t column, bool transposed)
{
    et_matrix at = {qkv + row * columns(f) + column, columns(f), transposed};
    return (et_operand){at, ET_ACTIVATIONS, site, ET_INTERMEDIATES};
}

/* P or dS [m,keys]: made in a kernel's registers, rounded as an operand alone. */
static et_operand block_of(const char *site, const et_real *block, size_t keys, bool transposed)
{
    return (et_operand){{block, keys, transposed}, ET_ACTIVATIONS, site, ET_UNSTORED};
}

static et_status check(const et_attention *f, const et_real *qkv, const et_real *o,
                       const et_real *lse, const et_real *room, et_error *error)
{
    et_status status = et_model_engine_check("et_attention", f->engine, error);
    if (status != ET_OK) return status;
    if (f->kv_heads == 0 || f->heads % f->kv_heads != 0)
        return et_fail(error, ET_EINVAL,
                       "et_attention: %zu query heads share %zu for keys; these divide those",
                       f->heads, f->kv_heads);
    if (f->first > f->T || f->workers == 0 || f->width == 0)
        return et_fail(error, ET_EINVAL,
                       "et_attention: first %zu of %zu, %zu workers, width %zu; at least 1 each",
                       f->first, f->T, f->workers, f->width);
    const et_array arrays[] = {{"qkv", qkv, f->B * f->T, columns(f)},
                               {"o", o, f->B * f->T, f->heads * f->width},
                               {"lse", lse, f->B * f->heads, f->T},
                               {"room", room, f->workers * 2 * ROWS, f->T}};
    return ET_CHECK_ARRAYS("et_attention", f->rounding, arrays, error);
}

/* 1 / sqrt(e); some kernels have it in as many bits as their sums. */
static et_real scale_of(const et_attention *f)
{
    double scale = 1 / sqrt((double)f->width);
    et_grid room;
    const et_grid *g = et_grid_in(&room, f->rounding, et_sum_place(f->rounding), "scale");
    bool rounded = et_goes_other_way(f->rounding, "coefficient", "S");
    return (et_real)(rounded ? et_rounded(g, scale) : scale);
}

/* S [m,keys] = q k' / sqrt(e) of the m queries from t on; keys = t + m. */
static et_status scores(const et_attention *f, const et_real *qkv, head h, size_t t, size_t m,
                        et_real *S)
{
    size_t keys = t + m;
    et_status status = et_product(f->rounding, f->engine, m, keys, f->width,
                                  rows_of(f, "q", qkv, h.row + t, h.q, false),
                                  rows_of(f, "k", qkv, h.row, h.k, true), false, S, keys, NULL);
    et_real scale = scale_of(f);
    if (et_goes_other_way(f->rounding, "stored before it is scaled", "S"))
        et_round(f->rounding, ET_LOGITS, "q k", m * keys, S);
    for (size_t i = 0; i < m * keys; i++) S[i] *= scale;
    et_round(f->rounding, ET_LOGITS, "S", m * keys, S);
    return status;
}

/* P = e^(S - shift) in place on `seen` numbers; the row's others become 0. */
static void exponentials(const et_grid *g, et_real shift, size_t seen, size_t keys, et_real *row)
{
    et_exponentials(g, seen, shift, row, row);
    for (size_t u = seen; u < keys; u++) row[u] = 0;
}

/* From S to e^(S - max), in place, of the m queries from t on; the rows' sums, and lse. */
static void softmax_rows(const et_rounding *r, size_t t, size_t m, et_real *S, et_real *sums,
                         et_real *lse)
{
    size_t keys = t + m;
    et_grid grid;
    const et_grid *g = et_grid_in(&grid, r, et_sum_place(r), "softmax");
    for (size_t i = 0; i < m; i++) {
        et_real *row = S + i * keys, largest = et_largest(t + i + 1, row);
        exponentials(g, largest, t + i + 1, keys, row);
        lse[i] = largest;
    }
    et_row_sums(r, ET_GATE_ARITHMETIC, "softmax", m, keys, t + 1, 1, S, NULL, sums);
    for (size_t i = 0; i < m; i++) lse[i] += (et_real)et_rounded(g, et_log((double)sums[i]));
}

/* Each row by its sum, which is 1 then. */
static void divide_rows(size_t m, size_t columns, et_real *sums, et_real *rows)
{
    for (size_t i = 0; i < m; i++) {
        for (size_t u = 0; u < columns; u++) rows[i * columns + u] /= sums[i];
        sums[i] = 1;
    }
}

/* o of the m queries from t on: o_t = (sum_u e^(S_tu - max) v_u) / sum_u e^(S_tu - max). */
static et_status block_forward(const et_attention *f, const et_real *qkv, head h, size_t t,
                               size_t m, et_real *o, et_real *lse, et_real *S)
{
    size_t keys = t + m, stride = f->heads * f->width;
    et_real sums[ROWS];
    et_status status = scores(f, qkv, h, t, m, S);
    softmax_rows(f->rounding, t, m, S, sums, lse + t);
    if (et_goes_other_way(f->rounding, "P is divided by its sum", "P"))
        divide_rows(m, keys, sums, S);
    et_real *to = o + (h.row + t) * stride + h.q;
    if (status == ET_OK)
        status =
            et_product(f->rounding, f->engine, m, f->width, keys, block_of("P", S, keys, false),
                       rows_of(f, "v", qkv, h.row, h.v, false), false, to, stride, NULL);
    for (size_t i = 0; i < m; i++) {
        for (size_t c = 0; c < f->width; c++) to[i * stride + c] /= sums[i];
        if (f->rounding != NULL)
            et_round(f->rounding, ET_INTERMEDIATES, "o", f->width, to + i * stride);
    }
    return status;
}

static int workers(const et_attention *f)
{
    return (int)et_smaller(f->workers, (size_t)omp_get_max_threads());
}

static et_status no_room(et_error *error)
{
    return et_fail(error, ET_ENOMEM, "et_attention: no memory for rounded operands");
}

et_status et_attention_forward(const et_attention *f, const et_real *qkv, et_real *o, et_real *lse,
                               et_real *room, et_error *error)
{
    ET_ARITHMETIC;
    et_status status = check(f, qkv, o, lse, room, error);
    if (status != ET_OK) return status;
    size_t tasks = f->B * f->heads, share = 2 * ROWS * f->T;
    bool failed = false; /* for want of memory: the rest has been checked */
#pragma omp parallel for schedule(dynamic) reduction(||                                            \
                                                     : failed)                                     \
    num_threads(workers(f)) if (et_worth_threads(tasks * f->T * f->width))
    for (size_t task = 0; task < tasks; task++) {
        head h = head_of(f, task / f->heads, task % f->heads);
        et_real *S = room + (size_t)omp_get_thread_num() * share;
        for (size_t t = f->first; t < f->T; t += ROWS)
            failed |= block_forward(f, qkv, h, t, et_smaller(ROWS, f->T - t), o, lse + task * f->T,
                                    S) != ET_OK;
    }
    if (failed) return no_room(error);
    et_round(f->rounding, ET_ACCUMULATOR, "lse", tasks * f->T, lse);
    return ET_OK;
}

/* D [m] of the output, in a kernel that has kept it: do o, o being stored. Whether it is dP to the bit, where P = 1, hangs on
 * the orders of both sums: it is one place off, up or down. */
static et_status sums_of_output(const et_attention *f, const et_real *qkv, head h, size_t t,
                                size_t m, size_t keys, const et_real *P, const et_real *dout,
                                et_real *D)
{
    const et_rounding *r = f->rounding;
    size_t e = f->width, stride = f->heads * e;
    void *room;
    et_status status = et_allocate(&room, m * e, sizeof(et_real), "attention", NULL);
    if (status != ET_OK) return status;
    et_real *o = room;
    status = et_product(r, f->engine, m, e, keys, block_of("P", P, keys, false),
                        rows_of(f, "v", qkv, h.row, h.v, false), false, o, e, NULL);
    et_round(r, ET_INTERMEDIATES, "o", m * e, o);
    et_grid grid;
    const et_grid *g = et_grid_in(&grid, r, et_sum_place(r), "do o");
    for (size_t i = 0; i < m; i++) {
        double sum = et_sum(r, et_sum_place(r), "do o", 0, e, 1, dout + i * stride, o + i * e);
        double off = ldexp(et_mix(g->key ^ (h.row + t + i)) & 1 ? 1 : -1, g->drop - 52);
        D[i] = (et_real)et_rounded(g, sum * (1 + off));
    }
    free(room);
    return status;
}

/* dS = P (dP - D), in dP's place, with the 1/sqrt(e) of S = q k' / sqrt(e). */
static void softmax_backward(const et_attention *f, size_t m, size_t keys, const et_real *P,
                             const et_real *D, et_real *dP)
{
    et_real scale = scale_of(f);
    for (size_t i = 0; i < m; i++)
        for (size_t u = i * keys; u < (i + 1) * keys; u++) dP[u] = P[u] * (dP[u] - D[i]) * scale;
    et_round(f->rounding, ET_GATE_ARITHMETIC, "dS", m * keys, dP);
}

/* What the m queries from t on of one head give to dq (written), dk and dv (added to). */
static et_status block_backward(const et_attention *f, const et_real *qkv, head h, size_t t,
                                size_t m, const et_real *lse, const et_real *dout, et_real *dqkv,
                                et_real *room)
{
    const et_rounding *r = f->rounding;
    et_engine engine = f->engine;
    size_t keys = t + m, e = f->width, R = columns(f), stride = f->heads * e;
    et_real *P = room, *dP = room + ROWS * f->T;
    const et_real *rows = dout + (h.row + t) * stride + h.q;
    const et_operand upstream = {{rows, stride, false}, ET_ACTIVATIONS, "do", ET_INTERMEDIATES};
    et_grid grid;
    const et_grid *g = et_grid_in(&grid, r, et_sum_place(r), "softmax");
    et_status status = scores(f, qkv, h, t, m, P);
    for (size_t i = 0; i < m; i++) exponentials(g, lse[t + i], t + i + 1, keys, P + i * keys);
    /* dv += P' do */
    if (status == ET_OK)
        status = et_product(r, engine, keys, e, m, block_of("P", P, keys, true), upstream, true,
                            dqkv + h.row * R + h.v, R, NULL);
    /* dP = do v' */
    if (status == ET_OK)
        status = et_product(r, engine, m, keys, e, upstream, rows_of(f, "v", qkv, h.row, h.v, true),
                            false, dP, keys, NULL);
    et_round(r, ET_INTERMEDIATES, "dP", m * keys, dP);
    et_real D[ROWS];
    if (et_goes_other_way(r, "do o", "D")) {
        if (status == ET_OK) status = sums_of_output(f, qkv, h, t, m, keys, P, rows, D);
        if (status != ET_OK) return status;
    } else {
        et_row_sums(r, ET_GATE_ARITHMETIC, "D", m, keys, keys, 0, P, dP, D);
    }
    softmax_backward(f, m, keys, P, D, dP);
    /* dq = dS k */
    if (status == ET_OK)
        status = et_product(r, engine, m, e, keys, block_of("dS", dP, keys, false),
                            rows_of(f, "k", qkv, h.row, h.k, false), false,
                            dqkv + (h.row + t) * R + h.q, R, NULL);
    /* dk += dS' q */
    if (status == ET_OK)
        status = et_product(r, engine, keys, e, m, block_of("dS", dP, keys, true),
                            rows_of(f, "q", qkv, h.row + t, h.q, false), true,
                            dqkv + h.row * R + h.k, R, NULL);
    return status;
}

et_status et_attention_backward(const et_attention *f, const et_real *qkv, const et_real *lse,
                                const et_real *dout, et_real *dqkv, et_real *room, et_error *error)
{
    ET_ARITHMETIC;
    et_status status = check(f, qkv, dout, lse, room, error);
    if (status == ET_OK) status = check(f, dqkv, dout, lse, room, error);
    if (status != ET_OK) return status;
    size_t tasks = f->B * f->kv_heads, group = f->heads / f->kv_heads, share = 2 * ROWS * f->T;
    memset(dqkv, 0, f->B * f->T * columns(f) * sizeof *dqkv);
    bool failed = false;
#pragma omp parallel for schedule(dynamic) reduction(||                                            \
                                                     : failed)                                     \
    num_threads(workers(f)) if (et_worth_threads(tasks * group * f->T * f->width))
    for (size_t task = 0; task < tasks; task++) {
        et_real *own = room + (size_t)omp_get_thread_num() * share;
        size_t sequence = task / f->kv_heads, shared = task % f->kv_heads;
        for (size_t i = shared * group; i < (shared + 1) * group; i++)
            for (size_t t = 0; t < f->T; t += ROWS)
                failed |= block_backward(
                              f, qkv, head_of(f, sequence, i), t, et_smaller(ROWS, f->T - t),
                              lse + (sequence * f->heads + i) * f->T, dout, dqkv, own) != ET_OK;
    }
    if (failed) return no_room(error);
    et_round(f->rounding, ET_INTERMEDIATES, "dqkv", f->B * f->T * columns(f), dqkv);
    return ET_OK;
}
