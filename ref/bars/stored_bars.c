/* stored_bars.c: what error bars are made of, in a golden bundle, so that a verdict need not make them. See etref/bars.h.
 *
 * noise.NAME holds sqrt(V) of every real tensor, for everybody; noise.alone.NAME that of its stage by
 * itself. noise.bars holds what replicas said of groups: a row a group, tensor after tensor in the order
 * of the table, within each in the order of et_tensor_bars, then once more those of stages; columns as
 * put_group has them. Grids and summands are not stored: the reference has them.
 */
#include "ref/bars/bars.h"
#include "ref/base/float_environment.h"
#include "ref/base/memory.h"
#include "ref/step/decide.h"
#include "ref/step/tensors.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- a group as a row of numbers ---- */

enum { FIGURES = 9 };

static void put_group(const et_tensor_bars *t, const et_group_bar *bar, double row[FIGURES])
{
    const double figures[FIGURES] = {bar->n,
                                     bar->uu,
                                     bar->slope,
                                     bar->slope_sd,
                                     bar->slope_systematic,
                                     bar->spread,
                                     bar->spread_sd,
                                     bar->spread_systematic,
                                     t->farthest};
    memcpy(row, figures, sizeof figures);
}

static void get_group(et_tensor_bars *t, et_group_bar *bar, const double row[FIGURES])
{
    *bar = (et_group_bar){.n = row[0],
                          .uu = row[1],
                          .slope = row[2],
                          .slope_sd = row[3],
                          .slope_systematic = row[4],
                          .spread = row[5],
                          .spread_sd = row[6],
                          .spread_systematic = row[7]};
    t->farthest = row[8];
}

/* A deviation is infinite where sum u^2/V is too small for a number: such a group says nothing. */
static bool is_possible(const double row[FIGURES])
{
    for (size_t i = 0; i < FIGURES; i++) {
        bool unbounded = (i == 3 || i == 6) && row[i] == (double)INFINITY;
        if ((!isfinite(row[i]) && !unbounded) || (row[i] < 0 && i != 2)) return false;
    }
    return true;
}

/* ---- writing ---- */

static size_t all_groups(const et_bars *b)
{
    size_t count = 0;
    for (const et_bars *x = b; x; x = x->alone)
        for (size_t i = 0; i < ET_MAX_STEP_TENSORS; i++) count += x->tensor[i].groups;
    return count;
}

static et_status list_groups(et_tensor_out *table, const et_bars *b, et_error *error)
{
    void *room;
    size_t groups = all_groups(b);
    et_status status = et_allocate(&room, groups, FIGURES * sizeof(double), "groups", error);
    if (status != ET_OK) return status;
    double *row = room;
    for (const et_bars *x = b; x; x = x->alone)
        for (size_t i = 0; i < ET_MAX_STEP_TENSORS; i++)
            for (size_t g = 0; g < x->tensor[i].groups; g++, row += FIGURES)
                put_group(&x->tensor[i], &x->tensor[i].bars[g], row);
    *table = (et_tensor_out){.name = ET_NOISE_BARS,
                             .dtype = ET_F64,
                             .source = ET_FROM_F64,
                             .rank = 2,
                             .shape = {groups, FIGURES},
                             .values = room};
    return ET_OK;
}

/* Has V a root among F32's normal numbers, 0 and infinity? */
static bool has_root(double V)
{
    double root = sqrt(V);
    return root == 0 || isinf(root) || (root >= (double)FLT_MIN && root <= (double)FLT_MAX);
}

/* Each number's V in turn. */
static et_real *variances(const et_bars *b, et_tensor_id id, size_t *count)
{
    const et_cut *g = &b->tensor[id].grid;
    *count = g->rows * g->columns;
    return (et_real *)(uintptr_t)et_tensor_view(&b->variance, id).values;
}

static bool fits_f32(const et_bars *b)
{
    size_t count;
    for (et_tensor_id id = ET_NO_TENSOR + 1; id < ET_TENSORS; id++) {
        const et_real *V = variances(b, id, &count);
        for (size_t i = 0; i < count; i++)
            if (!has_root((double)V[i])) return false;
    }
    return true;
}

void et_bars_round_as_stored(et_bars *b)
{
    size_t count;
    for (et_tensor_id id = ET_NO_TENSOR + 1; id < ET_TENSORS; id++) {
        et_real *V = variances(b, id, &count);
        for (size_t i = 0; i < count; i++) {
            double root = (double)(float)sqrt((double)V[i]);
            if (has_root((double)V[i])) V[i] = (et_real)(root * root);
        }
    }
}

/* V of the stages that are judged by themselves; of the others no array. */
static et_step variance_alone(const et_bars *b)
{
    et_step shown = b->alone ? b->alone->variance : (et_step){0};
    const void *none = NULL;
    for (et_tensor_id id = ET_NO_TENSOR + 1; b->alone && id < ET_TENSORS; id++)
        if (b->alone->tensor[id].groups == 0)
            memcpy((char *)&shown + et_tensors[id].offset, &none, sizeof none);
    return shown;
}

et_status et_bars_write(const char *path, const et_bars *b, const et_step *s, const et_profile *p,
                        et_error *error)
{
    et_tensor_out table = {.values = NULL};
    const et_step alone = variance_alone(b);
    bool complete = fits_f32(b) && (!b->alone || fits_f32(b->alone));
    et_status status = complete ? list_groups(&table, b, error) : ET_OK;
    if (status == ET_OK)
        status = et_bundle_write_noise(path, s, false, p, &b->variance,
                                       complete && b->alone ? &alone : NULL,
                                       complete ? &table : NULL, error);
    free((void *)(uintptr_t)table.values);
    return status;
}

et_status et_bundle_write_bars(const char *path, const et_step *s, const et_profile *p,
                               et_progress *progress, void *user, et_error *error)
{
    ET_ARITHMETIC;
    et_bars b;
    et_bars_teller t = {progress, user};
    et_step shown = *s; /* as a verdict sees it */
    int32_t updates;
    et_show_state(&shown, &updates);
    et_status status = et_profile_check(p, error);
    if (status == ET_OK)
        status = et_bars_make(&b, &shown, p, s->max_bytes, et_bars_tell, &t, error);
    if (status != ET_OK) return status;
    status = et_bars_write(path, &b, s, p, error);
    et_bars_free(&b);
    return status;
}

/* ---- reading ---- */

/* Bars of this very etref, for this profile? */
static bool has_bars_of(const et_tensor_file *file, const et_profile *p)
{
    const char *producer = et_tensor_file_metadata(file, "producer");
    const char *json = et_tensor_file_metadata(file, "profile");
    et_profile theirs;
    bool ours = producer && (strcmp(producer, et_bundle_producer(ET_PLAIN)) == 0 ||
                             strcmp(producer, et_bundle_producer(ET_BLAS)) == 0);
    return ours && json && et_tensor_file_find(file, ET_NOISE_BARS) &&
           et_profile_parse(&theirs, json, strlen(json), file->path, NULL) == ET_OK &&
           et_profile_equals(&theirs, p);
}

static et_status contradicts(const char *path, const char *name, const char *why, et_error *error)
{
    return et_fail(error, ET_EINVAL, "%s: tensor '%s' %s; write the golden again, with --profile",
                   path, name, why);
}

/* V of one tensor. */
static et_status read_variance(const et_tensor_file *file, const et_bars *b, et_tensor_id id,
                               et_error *error)
{
    char name[ET_MAX_TENSOR_NAME + 1];
    enum { PIECE = 4096 };
    double piece[PIECE];
    const et_tensor_out to = et_tensor_view(&b->variance, id);
    const et_cut *g = &b->tensor[id].grid;
    snprintf(name, sizeof name, "%s%s", b->of_stages ? ET_NOISE_ALONE : ET_NOISE_PREFIX,
             et_tensors[id].doc.name);
    const et_tensor_info *info = et_tensor_file_find(file, name);
    size_t count = g->rows * g->columns;
    if (!info || info->count != count || info->dtype != ET_F32)
        return contradicts(file->path, name, "is missing, or not what its case makes", error);
    et_real *V = (et_real *)(uintptr_t)to.values;
    for (size_t first = 0; first < count; first += PIECE) {
        size_t width = count - first < PIECE ? count - first : PIECE;
        et_status status = et_tensor_file_read(file, info, first, width, piece, error);
        if (status != ET_OK) return status;
        for (size_t i = 0; i < width; i++) {
            if (!(piece[i] >= 0))
                return contradicts(file->path, name, "has a negative deviation or NaN", error);
            V[first + i] = (et_real)(piece[i] * piece[i]);
        }
    }
    return ET_OK;
}

/* Elements and sum u^2/V of every group are known without a replica: those in the file must be
 * these, but for F32's rounding of sqrt(V), and for what is no signal (far less than n: a summand that cancels). */
static et_status check_groups(const et_bars *b, et_tensor_id id, const char *path, et_error *error)
{
    const et_tensor_bars *t = &b->tensor[id];
    const et_tensor_out u = et_tensor_view(b->reference, id), V = et_tensor_view(&b->variance, id);
    const et_errors none = {.got = u.values, .want = u.values, .variance = V.values};
    void *room;
    et_status status = et_allocate(&room, t->groups, sizeof(et_group_sums), "groups", error);
    if (status != ET_OK) return status;
    const et_group_sums *sums = room;
    status = et_sum_tensor(t, &none, room, error);
    for (size_t g = 0; g < t->groups && status == ET_OK; g++) {
        const et_group_bar *bar = &t->bars[g];
        if (bar->n != sums[g].n || fabs(bar->uu - sums[g].uu) > 1e-4 * fmax(bar->uu, bar->n))
            status = contradicts(path, ET_NOISE_BARS, "does not fit the golden's noise.*", error);
    }
    free(room);
    return status;
}

/* A verdict's engine may leave a residue where the golden's sums cancel to 0 exactly. Then so may a kernel. */
static et_status admit_residues(const et_tensor_file *file, const et_bars *b, et_tensor_id id,
                                et_error *error)
{
    enum { PIECE = 4096 };
    double golden[PIECE];
    const et_tensor_info *info = et_tensor_file_find(file, et_tensors[id].doc.name);
    const et_real *u = et_tensor_view(b->reference, id).values;
    size_t count;
    et_real *V = variances(b, id, &count);
    if (!info || info->count != count) return ET_OK;
    for (size_t first = 0; first < count; first += PIECE) {
        size_t width = count - first < PIECE ? count - first : PIECE, suspects = 0;
        for (size_t i = first; i < first + width; i++) suspects += V[i] == 0 && u[i] != 0;
        if (suspects == 0) continue;
        et_status status = et_tensor_file_read(file, info, first, width, golden, error);
        if (status != ET_OK) return status;
        for (size_t i = 0; i < width; i++)
            if (V[first + i] == 0 && golden[i] == 0) V[first + i] = u[first + i] * u[first + i];
    }
    return ET_OK;
}

/* *at: the first row of these bars in the table; then the first behind them. */
static et_status read_groups(const et_tensor_file *file, et_bars *b, size_t *at, et_error *error)
{
    const et_tensor_info *info = et_tensor_file_find(file, ET_NOISE_BARS);
    for (int id = 1; id < ET_TENSORS; id++) {
        et_tensor_bars *t = &b->tensor[id];
        for (size_t g = 0; g < t->groups; g++, (*at)++) {
            double row[FIGURES];
            et_status status = et_tensor_file_read(file, info, *at * FIGURES, FIGURES, row, error);
            if (status != ET_OK) return status;
            if (!is_possible(row))
                return contradicts(file->path, ET_NOISE_BARS, "holds what is no bar", error);
            get_group(t, &t->bars[g], row);
        }
    }
    return ET_OK;
}

static et_status check_table(const et_tensor_file *file, const et_bars *b, et_error *error)
{
    const et_tensor_info *info = et_tensor_file_find(file, ET_NOISE_BARS);
    if (info->dtype == ET_F64 && info->rank == 2 && info->shape[1] == FIGURES &&
        info->shape[0] == all_groups(b))
        return ET_OK;
    return contradicts(file->path, ET_NOISE_BARS, "has not the groups of its case", error);
}

static et_status read_all(const et_tensor_file *file, et_bars *bars, et_error *error)
{
    et_status status = ET_OK;
    size_t at = 0;
    for (et_bars *b = bars; b && status == ET_OK; b = b->alone) {
        status = et_step_take_like(&b->variance, b->reference, error);
        if (status == ET_OK) status = et_bars_lay_out(b, error);
    }
    if (status == ET_OK) status = check_table(file, bars, error);
    for (et_bars *b = bars; b && status == ET_OK; b = b->alone) {
        for (int id = 1; id < ET_TENSORS && status == ET_OK; id++)
            if (b->tensor[id].groups > 0) status = read_variance(file, b, (et_tensor_id)id, error);
        if (status == ET_OK) status = read_groups(file, b, &at, error);
        for (int id = 1; id < ET_TENSORS && status == ET_OK; id++)
            if (b->tensor[id].groups > 0)
                status = check_groups(b, (et_tensor_id)id, file->path, error);
        for (int id = 1; id < ET_TENSORS && status == ET_OK && !b->of_stages; id++)
            if (b->tensor[id].groups > 0) status = admit_residues(file, b, (et_tensor_id)id, error);
    }
    return status;
}

et_status et_bars_read(et_bars *b, bool *found, const et_step *reference, const et_profile *p,
                       const char *path, et_error *error)
{
    et_tensor_file file;
    et_status status = et_tensor_file_open(&file, path, error);
    if (status != ET_OK) return status;
    *found = has_bars_of(&file, p);
    *b = (et_bars){0};
    if (*found) status = et_bars_open(b, reference, p, error);
    if (*found && status == ET_OK) status = read_all(&file, b, error);
    if (status != ET_OK) et_bars_free(b);
    et_tensor_file_close(&file);
    return status;
}
