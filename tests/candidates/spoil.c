/* spoil.c: faults that befall finished tensors: rows left unwritten, exchanged or shifted, stray NaN, and
 * the ways of numbering slots, experts and tokens that a bundle does not use.
 */
#include "tests/candidates/work.h"

#include <stdlib.h>
#include <string.h>

static et_tensor_out *find(cd_candidate *c, const char *name)
{
    for (size_t i = 0; i < c->count; i++)
        if (strcmp(c->tensors[i].name, name) == 0) return &c->tensors[i];
    return NULL;
}

/* The arrays are the candidate's own; et_tensor_out is what a reader may see of them. */
static void *mutable_values(const et_tensor_out *t)
{
    void *values;
    memcpy(&values, &t->values, sizeof values);
    return values;
}

static void put(const et_tensor_out *t, size_t i, double v)
{
    void *at = mutable_values(t);
    if (t->source == ET_FROM_F64) ((double *)at)[i] = v;
    if (t->source == ET_FROM_F32) ((float *)at)[i] = (float)v;
    if (t->source == ET_FROM_I32) ((int32_t *)at)[i] = (int32_t)v;
    if (t->source == ET_FROM_U8) ((uint8_t *)at)[i] = (uint8_t)v;
}

/* ---- rows and elements of y, dx, dW ---- */

static double rms(const et_tensor_out *t)
{
    double sum = 0;
    size_t count = cd_count(t);
    for (size_t i = 0; i < count; i++) sum += cd_element(t, i) * cd_element(t, i);
    return sqrt(sum / (double)count);
}

static void write_stale_row(const et_tensor_out *y, const cd_work *w)
{
    et_stream stream = et_stream_open(w->seed, "candidate.stale");
    double size = rms(y);
    for (size_t c = 0; c < w->d; c++)
        put(y, w->some_token * w->d + c,
            cd_round(&w->output, (size > 0 ? size : 1) * et_normal(stream, c)));
}

/* The last d mod 8 elements, or 4: what a kernel forgets that writes whole vectors. */
static void write_garbage(const et_tensor_out *y, const cd_work *w)
{
    size_t count = cd_count(y), tail = w->d % 8 ? w->d % 8 : 4;
    for (size_t i = count - cd_smaller(tail, count); i < count; i++)
        put(y, i, (i % 2 ? 1 : -1) * cd_round(&w->output, w->output.largest / 4));
}

static void write_nan(const et_tensor_out *t, const cd_work *w)
{
    double u = et_uniform(et_stream_open(w->seed, "candidate.nan"), 0, 0);
    put(t, (size_t)(u * (double)cd_count(t)), (double)NAN);
}

static void exchange_rows(const et_tensor_out *y, const cd_work *w)
{
    size_t a = w->some_token * w->d, b = (w->some_token + 1) % w->N * w->d;
    for (size_t c = 0; c < w->d; c++) {
        double last = cd_element(y, a + c);
        put(y, a + c, cd_element(y, b + c));
        put(y, b + c, last);
    }
}

static void clear(const et_tensor_out *y, size_t first, size_t count)
{
    for (size_t i = first; i < first + count; i++) put(y, i, 0);
}

static void write_input(const et_tensor_out *y, const cd_work *w)
{
    for (size_t i = 0; i < w->N * w->d; i++)
        put(y, i, cd_round(&w->output, (double)w->golden->in.x[i]));
}

static void shift_columns(const et_tensor_out *y, const cd_work *w)
{
    for (size_t t = 0; t < w->N; t++) {
        double first = cd_element(y, t * w->d);
        for (size_t c = 0; c + 1 < w->d; c++) put(y, t * w->d + c, cd_element(y, t * w->d + c + 1));
        put(y, t * w->d + w->d - 1, first);
    }
}

static void spoil_values(cd_candidate *out, const cd_work *w)
{
    const et_tensor_out *y = find(out, "fwd.y");
    switch (w->fault) {
    case CD_STALE_ROW: write_stale_row(y, w); return;
    case CD_GARBAGE_TAIL: write_garbage(y, w); return;
    case CD_NAN_Y: write_nan(y, w); return;
    case CD_NAN_DX: write_nan(find(out, "bwd.x"), w); return;
    case CD_NAN_DW: write_nan(find(out, "bwd.w_up"), w); return;
    case CD_ROWS_EXCHANGED: exchange_rows(y, w); return;
    case CD_ROW_ZERO: clear(y, w->some_token * w->d, w->d); return;
    case CD_ALL_ZERO: clear(y, 0, w->N * w->d); return;
    case CD_RETURNS_INPUT: write_input(y, w); return;
    case CD_COLUMNS_SHIFTED: shift_columns(y, w); return;
    default: return;
    }
}

/* ---- numbering ---- */

static void make_inclusive(const et_tensor_out *offsets)
{
    for (size_t i = 0; i + 1 < cd_count(offsets); i++) put(offsets, i, cd_element(offsets, i + 1));
}

static void add_to_all(const et_tensor_out *t, int add, size_t modulo)
{
    for (size_t i = 0; t != NULL && i < cd_count(t); i++) {
        size_t v = (size_t)cd_element(t, i) + (size_t)add;
        put(t, i, (double)(modulo > 0 ? v % modulo : v));
    }
}

static bool is_by_slot(const char *name)
{
    return strncmp(name, "route.slot_", 11) == 0 || strncmp(name, "fwd.slot_", 9) == 0 ||
           strncmp(name, "bwd.slot_", 9) == 0;
}

/* Row j of `t` becomes row order[j]. `copy` has room for all of it. */
static void permute_rows(const et_tensor_out *t, const double *order, double *copy)
{
    size_t rows = t->shape[0], count = cd_count(t), width = rows > 0 ? count / rows : 0;
    if (width == 0) return;
    for (size_t i = 0; i < count; i++) copy[i] = cd_element(t, i);
    for (size_t i = 0; i < count; i++)
        put(t, i, copy[(size_t)order[i / width] * width + i % width]);
}

static void forget(cd_candidate *out, const char *name)
{
    size_t i = 0;
    while (i < out->count && strcmp(out->tensors[i].name, name) != 0) i++;
    if (i == out->count) return;
    out->count--;
    memmove(&out->tensors[i], &out->tensors[i + 1], (out->count - i) * sizeof *out->tensors);
}

static et_status make_token_major(cd_candidate *out, cd_work *w)
{
    const et_tensor_out *slots = find(out, "route.token_slots");
    size_t widest = w->d > w->h ? w->d : w->h;
    double *order = cd_take(w, w->S, sizeof *order),
           *copy = cd_take(w, w->S * widest, sizeof *copy);
    if (order == NULL || copy == NULL) return ET_ENOMEM;
    for (size_t j = 0; j < w->S; j++) order[j] = cd_element(slots, j);
    for (size_t i = 0; i < out->count; i++)
        if (is_by_slot(out->tensors[i].name)) permute_rows(&out->tensors[i], order, copy);
    for (size_t j = 0; j < w->S; j++) put(slots, j, (double)j);
    forget(out, "route.slot_token"); /* which would make it legal */
    return ET_OK;
}

static et_status spoil_layout(cd_candidate *out, cd_work *w)
{
    switch (w->fault) {
    case CD_OFFSETS_INCLUSIVE: make_inclusive(find(out, "route.expert_offsets")); break;
    case CD_TOKEN_MAJOR: return make_token_major(out, w);
    case CD_ONE_BASED:
        add_to_all(find(out, "route.slot_expert"), 1, 0);
        add_to_all(find(out, "route.topk_expert"), 1, 0);
        break;
    case CD_MODULO_POOL:
        add_to_all(find(out, "route.slot_token"), 0, w->c->pool_tokens);
        add_to_all(find(out, "route.topk_token"), 0, w->c->pool_tokens);
        break;
    default: break;
    }
    return ET_OK;
}

et_status cd_spoil(cd_candidate *out, cd_work *w)
{
    spoil_values(out, w);
    return w->n > 0 ? spoil_layout(out, w) : ET_OK;
}
