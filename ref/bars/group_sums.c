/* group_sums.c: a tensor cut into groups, and sums over them. See group_sums.h.
 *
 * One pass over the tensor serves all kinds. A band of 16 rows is summed column by column into strips;
 * 16 strips side by side are a tile, the strips of a section under each other its columns; rows are
 * summed on their way; bands are rows added up, blocks and sections are bands added up.
 */
#include "ref/bars/group_sums.h"
#include "etref/matmul.h"
#include "ref/base/grid.h"
#include "ref/base/lanes.h"
#include "ref/base/memory.h"
#include "ref/base/threads.h"
#include "ref/step/tensors.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BAND = 16, TILE = 16 };

const char *et_kind_name(et_group_kind kind)
{
    static const char *const names[ET_KINDS] = {"tensor", "expert", "row",   "column",
                                                "block",  "block",  "block", "tile"};
    return names[kind];
}

/* ---- the grid ---- */

static size_t ceiling(size_t count, size_t of)
{
    return (count + of - 1) / of;
}

/* Bands of a block. */
static size_t bands_of(et_group_kind kind)
{
    return kind == ET_KIND_BLOCK_16 ? 1 : kind == ET_KIND_BLOCK_64 ? 4 : 8;
}

static size_t blocks_in(const et_cut *g, et_group_kind kind)
{
    size_t count = 0;
    for (size_t i = 0; i < g->sections; i++)
        count += ceiling(g->section_band[i + 1] - g->section_band[i], bands_of(kind));
    return count;
}

static size_t groups_of(const et_cut *g, et_group_kind kind)
{
    switch (kind) {
    case ET_KIND_TENSOR: return 1;
    case ET_KIND_EXPERT: return g->sections > 1 ? g->sections : 0;
    case ET_KIND_ROW: return g->rows;
    case ET_KIND_COLUMN: return g->sections * g->columns;
    case ET_KIND_TILE: return g->bands * ceiling(g->columns, TILE);
    default: return blocks_in(g, kind);
    }
}

static void cut(et_cut *g)
{
    size_t band = 0;
    for (size_t i = 0; i < g->sections; i++) {
        g->section_band[i] = band;
        for (size_t r = g->section_row[i]; r < g->section_row[i + 1]; r += BAND)
            g->band_row[band++] = r;
    }
    g->section_band[g->sections] = g->bands = band;
    g->band_row[band] = g->rows;
    for (int kind = 0; kind < ET_KINDS; kind++)
        g->first[kind + 1] = g->first[kind] + groups_of(g, (et_group_kind)kind);
}

et_status et_cut_make(et_cut *g, const et_step *s, const et_tensor_out *t, et_error *error)
{
    const char *shape = et_tensor_doc_find(t->name)->shape;
    bool moe = s->c.layer == ET_MOE, slots = moe && et_rows_are(shape, "S");
    bool matrices = moe && t->rank == 3; /* of weights: of each expert, or of each rank */
    size_t count = et_tensor_count(t);
    *g = (et_cut){.columns = t->rank > 1 ? t->shape[t->rank - 1] : 1,
                  .sections = slots ? s->c.experts : matrices ? t->shape[0] : 1};
    g->rows = g->columns > 0 ? count / g->columns : 0;
    size_t most = g->rows / BAND + g->sections + 1;
    void *room;
    et_status status =
        et_allocate(&room, 2 * (g->sections + 1) + most + 1, sizeof(size_t), "groups", error);
    if (status != ET_OK) return status;
    g->section_row = room;
    g->section_band = g->section_row + g->sections + 1;
    g->band_row = g->section_band + g->sections + 1;
    for (size_t i = 0; i <= g->sections; i++)
        g->section_row[i] =
            slots ? (size_t)s->assignment.expert_offsets[i] : i * (g->rows / g->sections);
    cut(g);
    return ET_OK;
}

void et_cut_free(et_cut *g)
{
    free(g->section_row);
    *g = (et_cut){0};
}

static et_corner block_corner(const et_cut *g, et_group_kind kind, size_t index)
{
    size_t section = 0, bands = bands_of(kind), blocks;
    while ((blocks = ceiling(g->section_band[section + 1] - g->section_band[section], bands)) <=
           index) {
        index -= blocks;
        section++;
    }
    return (et_corner){g->band_row[g->section_band[section] + index * bands], 0};
}

et_corner et_group_corner(const et_cut *g, et_group_kind kind, size_t index)
{
    size_t tiles = ceiling(g->columns, TILE);
    switch (kind) {
    case ET_KIND_TENSOR: return (et_corner){0, 0};
    case ET_KIND_EXPERT: return (et_corner){g->section_row[index], 0};
    case ET_KIND_ROW: return (et_corner){index, 0};
    case ET_KIND_COLUMN: return (et_corner){g->section_row[index / g->columns], index % g->columns};
    case ET_KIND_TILE: return (et_corner){g->band_row[index / tiles], index % tiles * TILE};
    default: return block_corner(g, kind, index);
    }
}

/* Behind its last row and column. */
static et_corner group_end(const et_cut *g, et_group_kind kind, size_t index)
{
    size_t tiles = ceiling(g->columns, TILE), row = et_group_corner(g, kind, index).row;
    size_t band = 0, section = 0, last;
    switch (kind) {
    case ET_KIND_TENSOR: return (et_corner){g->rows, g->columns};
    case ET_KIND_EXPERT: return (et_corner){g->section_row[index + 1], g->columns};
    case ET_KIND_ROW: return (et_corner){index + 1, g->columns};
    case ET_KIND_COLUMN:
        return (et_corner){g->section_row[index / g->columns + 1], index % g->columns + 1};
    case ET_KIND_TILE:
        last = (index % tiles + 1) * TILE;
        return (et_corner){g->band_row[index / tiles + 1], last < g->columns ? last : g->columns};
    default:
        while (g->band_row[band] < row) band++;
        while (g->section_band[section + 1] <= band) section++;
        last = band + bands_of(kind);
        if (last > g->section_band[section + 1]) last = g->section_band[section + 1];
        return (et_corner){g->band_row[last], g->columns};
    }
}

enum { MOST_MARKS = 1 << 14 };

ET_LANES static void draw_marks(size_t count, int bits, const et_real *u, uint16_t *marks)
{
    for (size_t i = 0; i < count; i++) {
        double size = fabs((double)u[i]);
        uint64_t mark = et_mix(to_bits(size) >> (53 - bits)) % MOST_MARKS;
        marks[i] = (uint16_t)(size == 0 ? 0 : mark + MOST_MARKS);
    }
}

void et_draw_marks(size_t count, int bits, const et_real *u, uint16_t *marks)
{
    draw_marks(count, bits, u, marks);
}

/* Each size sets one of as many marks as there are numbers; from the marks that are left follows how many there were (linear
 * counting: Whang et al., 1990), until seven of eight are set. */
double et_count_different(const et_cut *g, et_group_kind kind, size_t index, const uint16_t *marks)
{
    enum { WORD = 64 };
    const et_corner from = et_group_corner(g, kind, index), to = group_end(g, kind, index);
    uint64_t is_set[MOST_MARKS / WORD] = {0};
    size_t elements = (to.row - from.row) * (to.column - from.column), room = WORD, set = 0;
    while (room < elements && room < MOST_MARKS) room *= 2;
    for (size_t r = from.row; r < to.row; r++)
        for (size_t c = from.column; c < to.column; c++) {
            size_t mark = marks[r * g->columns + c], at = mark & (room - 1);
            uint64_t bit = UINT64_C(1) << at % WORD;
            if (mark == 0 || is_set[at / WORD] & bit) continue;
            is_set[at / WORD] |= bit;
            if (++set == room / 8 * 7) return (double)INFINITY;
        }
    return (double)room * log((double)room / (double)(room - set));
}

/* ---- sums ---- */

double et_slope_of(const et_group_sums *s)
{
    return s->uu > 0 ? s->eu / s->uu : 0;
}

double et_spread_of(const et_group_sums *s)
{
    return s->n > 0 ? sqrt(s->ee / s->n) : 0;
}

static void add(et_group_sums *to, const et_group_sums *more)
{
    to->n += more->n;
    to->eu += more->eu;
    to->uu += more->uu;
    to->ee += more->ee;
    to->most_uu = more->most_uu > to->most_uu ? more->most_uu : to->most_uu;
    to->most_ee = more->most_ee > to->most_ee ? more->most_ee : to->most_ee;
}

enum {
    PIECE = 256, /* of a row, in the nearest cache */
    LANES = 8,   /* sums side by side, and so the same bits whatever vectors the processor has */
    PLANES = sizeof(et_group_sums) / sizeof(double)
};

/* A piece of a row: u, e and the weight 1/V; zeros where there is nothing to learn, and behind the end. */
typedef struct piece {
    double u[PIECE], e[PIECE], weight[PIECE];
} piece;

/* `count` elements from `first` on; `real` is what the error is regressed on. */
ET_LANES static void weigh(const et_errors *x, size_t first, size_t count, const et_real *real,
                           piece *p)
{
    const et_real *want = x->want + first, *V = x->variance + first;
    if (x->floats) {
        const float *got = (const float *)x->got + first;
        for (size_t c = 0; c < count; c++) p->e[c] = (double)got[c] - (double)want[c];
    } else {
        const et_real *got = (const et_real *)x->got + first;
        for (size_t c = 0; c < count; c++) p->e[c] = (double)got[c] - (double)want[c];
    }
    for (size_t c = 0; c < count; c++) {
        bool learns = (double)V[c] > ET_LEAST_VARIANCE && p->e[c] - p->e[c] == 0;
        p->weight[c] = learns ? 1 / (double)V[c] : 0;
        p->e[c] = learns ? p->e[c] : 0;
        p->u[c] = learns ? (double)real[c] : 0; /* may be infinite */
    }
    for (size_t c = count; c % LANES != 0; c++) p->u[c] = p->e[c] = p->weight[c] = 0;
}

/* Adds `width` elements to sums that stand `apart`: n, eu, uu, ee, and the largest terms of the last two. */
static inline __attribute__((always_inline)) void add_terms(size_t width, const double *u,
                                                            const double *e, const double *weight,
                                                            double *sums, size_t apart)
{
    double *n = sums, *eu = n + apart, *uu = eu + apart, *ee = uu + apart;
    double *most_uu = ee + apart, *most_ee = most_uu + apart;
#pragma omp simd
    for (size_t c = 0; c < width; c++) {
        double u2 = u[c] * u[c] * weight[c], e2 = e[c] * e[c] * weight[c];
        n[c] += weight[c] > 0 ? 1.0 : 0.0;
        eu[c] += e[c] * u[c] * weight[c];
        uu[c] += u2;
        ee[c] += e2;
        most_uu[c] = u2 > most_uu[c] ? u2 : most_uu[c];
        most_ee[c] = e2 > most_ee[c] ? e2 : most_ee[c];
    }
}

/* Element c to the strip of its column. */
ET_LANES static void add_to_strips(size_t width, const piece *p, double *strips, size_t columns)
{
    add_terms(width, p->u, p->e, p->weight, strips, columns);
}

ET_LANES static void add_to_lanes(size_t width, const piece *p, double lanes[PLANES * LANES])
{
    for (size_t c = 0; c < width; c += LANES)
        add_terms(LANES, p->u + c, p->e + c, p->weight + c, lanes, LANES);
}

static et_group_sums strip(const double *strips, size_t columns, size_t c)
{
    return (et_group_sums){strips[c],
                           strips[columns + c],
                           strips[2 * columns + c],
                           strips[3 * columns + c],
                           strips[4 * columns + c],
                           strips[5 * columns + c]};
}

static et_group_sums sum_of(size_t width, const piece *p)
{
    double lanes[PLANES * LANES] = {0};
    et_group_sums all = {0};
    add_to_lanes(width, p, lanes);
    for (size_t k = 0; k < LANES; k++) {
        et_group_sums one = strip(lanes, LANES, k);
        add(&all, &one);
    }
    return all;
}

static bool is_skipped(const et_errors *x, size_t row)
{
    return x->skip && x->skip[row / x->rows_per_skip];
}

static et_group_sums sum_row(const et_errors *x, size_t row, size_t columns, double *strips)
{
    et_group_sums all = {0};
    piece p;
    for (size_t c = 0; c < columns; c += PIECE) {
        size_t width = columns - c < PIECE ? columns - c : PIECE, first = row * columns + c;
        weigh(x, first, width, x->want + first, &p);
        add_to_strips(width, &p, strips + c, columns);
        et_group_sums part = sum_of(width, &p);
        add(&all, &part);
    }
    return all;
}

/* Rows, tiles and the band itself. */
static void sum_band(const et_cut *g, const et_errors *x, size_t band, double *strips,
                     et_group_sums *sums)
{
    size_t tiles = ceiling(g->columns, TILE);
    et_group_sums *rows = sums + g->first[ET_KIND_ROW],
                  *all = sums + g->first[ET_KIND_BLOCK_16] + band;
    et_group_sums *tile = sums + g->first[ET_KIND_TILE] + band * tiles;
    for (size_t r = g->band_row[band]; r < g->band_row[band + 1]; r++) {
        if (!is_skipped(x, r)) rows[r] = sum_row(x, r, g->columns, strips);
        add(all, &rows[r]);
    }
    for (size_t c = 0; c < g->columns; c++) {
        et_group_sums one = strip(strips, g->columns, c);
        add(&tile[c / TILE], &one);
    }
}

static void sum_columns(const et_cut *g, const double *strips, et_group_sums *columns)
{
    for (size_t i = 0; i < g->sections; i++)
        for (size_t b = g->section_band[i]; b < g->section_band[i + 1]; b++)
            for (size_t c = 0; c < g->columns; c++) {
                et_group_sums one = strip(strips + b * PLANES * g->columns, g->columns, c);
                add(&columns[i * g->columns + c], &one);
            }
}

/* Larger blocks, sections and the whole, from the bands. */
static void sum_blocks(const et_cut *g, et_group_sums *sums)
{
    const et_group_sums *bands = sums + g->first[ET_KIND_BLOCK_16];
    et_group_sums *of4 = sums + g->first[ET_KIND_BLOCK_64],
                  *of8 = sums + g->first[ET_KIND_BLOCK_128];
    for (size_t i = 0; i < g->sections; i++) {
        size_t first = g->section_band[i], end = g->section_band[i + 1];
        et_group_sums section = {0};
        for (size_t b = first; b < end; b++) {
            add(&of4[(b - first) / 4], &bands[b]);
            add(&of8[(b - first) / 8], &bands[b]);
            add(&section, &bands[b]);
        }
        of4 += ceiling(end - first, 4);
        of8 += ceiling(end - first, 8);
        if (g->sections > 1) sums[g->first[ET_KIND_EXPERT] + i] = section;
        add(&sums[g->first[ET_KIND_TENSOR]], &section);
    }
}

et_status et_sum_groups(const et_cut *g, const et_errors *x, et_group_sums *sums, et_error *error)
{
    void *room;
    et_status status =
        et_allocate(&room, g->bands * g->columns, PLANES * sizeof(double), "groups", error);
    if (status != ET_OK) return status;
    double *strips = room;
    memset(sums, 0, g->first[ET_KINDS] * sizeof *sums);
    ET_BY_THREADS(et_worth_threads(g->rows * g->columns),
                  for (size_t b = 0; b < g->bands; b++)
                      sum_band(g, x, b, strips + b * PLANES * g->columns, sums));
    sum_columns(g, strips, sums + g->first[ET_KIND_COLUMN]);
    sum_blocks(g, sums);
    free(strips);
    return ET_OK;
}

/* ---- summands ---- */

et_status et_sum_summand(const et_summand *p, size_t columns, const et_errors *x,
                         et_group_sums *sums, et_error *error)
{
    void *room;
    et_status status = et_allocate(&room, p->rows, sizeof(et_group_sums), "summands", error);
    if (status != ET_OK) return status;
    et_group_sums *rows = room;
#pragma omp parallel for if (et_worth_threads(p->rows * columns))
    for (size_t i = 0; i < p->rows; i++) {
        piece here;
        size_t r = p->row_of ? (size_t)p->row_of[i] : i;
        for (size_t c = 0; c < columns && !is_skipped(x, r); c += PIECE) {
            size_t width = columns - c < PIECE ? columns - c : PIECE;
            weigh(x, r * columns + c, width, p->values + i * columns + c, &here);
            et_group_sums part = sum_of(width, &here);
            add(&rows[i], &part);
        }
    }
    memset(sums, 0, p->sections * sizeof *sums);
    for (size_t k = 0; k < p->sections; k++) {
        size_t first = p->section_row ? (size_t)p->section_row[k] : 0;
        size_t end = p->section_row ? (size_t)p->section_row[k + 1] : p->rows;
        for (size_t i = first; i < end; i++) add(&sums[k], &rows[i]);
    }
    free(rows);
    return ET_OK;
}

void et_summands_free(et_summand *list, size_t count)
{
    for (size_t i = 0; i < count; i++) free(list[i].values);
}

static et_status take_summand(et_summand *list, size_t *count, const char *name, size_t rows,
                              size_t columns, et_error *error)
{
    void *room;
    et_status status = et_allocate(&room, rows * columns, sizeof(et_real), "summands", error);
    if (status == ET_OK)
        list[(*count)++] = (et_summand){.name = name, .rows = rows, .values = room, .sections = 1};
    return status;
}

/* to = the tensor less what is there. */
static void take_rest(size_t count, const et_real *all, const et_real *less, et_real *to)
{
    for (size_t i = 0; i < count; i++) to[i] = all[i] - less[i];
}

static void weigh_rows(size_t rows, size_t columns, const et_real *w, const et_real *f, et_real *to)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < columns; c++) to[r * columns + c] = w[r] * f[r * columns + c];
}

/* Without a shared expert all of y is routed, and the tensor's own slope says it. */
static et_status summands_of_y(et_summand *list, size_t *count, const et_step *s, et_error *error)
{
    size_t N = s->c.tokens, d = s->c.d_model;
    const et_assignment *a = &s->assignment;
    et_status status = take_summand(list, count, "routed", a->slots, d, error);
    if (status != ET_OK) return status;
    et_summand *slots = &list[*count - 1];
    slots->by_expert = true;
    slots->row_of = a->slot_token;
    slots->section_row = a->expert_offsets;
    slots->sections = a->experts;
    weigh_rows(a->slots, d, s->fwd.slot_weight, s->fwd.slot_out, slots->values);
    if (!s->c.shared) return ET_OK;
    status = take_summand(list, count, "shared", N, d, error);
    if (status != ET_OK) return status;
    const et_real *shared = list[*count - 1].values;
    weigh_rows(N, d, s->fwd.shared_weight, s->fwd.shared_out, list[*count - 1].values);
    status = take_summand(list, count, "routed", N, d, error);
    if (status == ET_OK) take_rest(N * d, s->fwd.y, shared, list[*count - 1].values);
    return status;
}

static et_status summands_of_dx(et_summand *list, size_t *count, const et_step *s, et_error *error)
{
    size_t N = s->c.tokens, d = s->c.d_model, n = s->c.experts, hs = s->c.shared_d_expert;
    et_status status = take_summand(list, count, "router", N, d, error);
    if (status != ET_OK) return status;
    et_real *router = list[*count - 1].values;
    et_matmul(ET_BLAS, N, d, n, et_rows(s->bwd.logits, n), et_rows(s->in.router, d), false, router,
              d);
    status = take_summand(list, count, "experts", N, d, error);
    if (status != ET_OK) return status;
    et_real *experts = list[*count - 1].values;
    take_rest(N * d, s->bwd.x, router, experts);
    if (!s->c.shared) return ET_OK;
    status = take_summand(list, count, "shared", N, d, error);
    if (status != ET_OK) return status;
    et_real *shared = list[*count - 1].values;
    et_matmul(ET_BLAS, N, d, hs, et_rows(s->bwd.shared_pre, hs), et_rows(s->in.shared_up, d), false,
              shared, d);
    take_rest(N * d, experts, shared, experts);
    return ET_OK;
}

et_status et_summands_of(et_summand list[ET_MAX_SUMMANDS], size_t *count, const et_step *s,
                         et_tensor_id tensor, et_error *error)
{
    et_status status = ET_OK;
    *count = 0;
    if (s->c.layer != ET_MOE) return ET_OK;
    if (tensor == ET_FWD_Y) status = summands_of_y(list, count, s, error);
    if (tensor == ET_BWD_X) status = summands_of_dx(list, count, s, error);
    if (status == ET_OK) return ET_OK;
    et_summands_free(list, *count);
    *count = 0; /* nothing is left to free */
    return status;
}
