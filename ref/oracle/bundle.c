/* bundle.c: writing, opening and checking golden bundles. See etref/bundle.h.
 *
 * What a file says is never trusted: its case is parsed and validated like a user's, its tensors
 * must be those of the table with the shapes that the case implies, and nothing is allocated beyond
 * the caller's limit.
 */
#include "etref/bundle.h"
#include "etref/version.h"
#include "ref/base/arithmetic.h"
#include "ref/base/memory.h"
#include "ref/oracle/tensors.h"

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 65536 }; /* elements read from a file at a time */

const char *et_bundle_producer(et_engine engine)
{
    return engine == ET_PLAIN ? "etref " ETREF_VERSION " (plain, " ET_REAL_NAME ")"
                              : "etref " ETREF_VERSION " (blas, " ET_REAL_NAME ")";
}

/* ---- writing ---- */

/* `profile` may be NULL. */
static et_status write_tensors(const char *path, const et_step *s, const et_tensor_out *tensors,
                               size_t count, const char *profile, et_error *error)
{
    char *json, layout[32];
    const char *metadata[16] = {"format", "etref-bundle", "version",
                                "1",      "producer",     et_bundle_producer(s->engine)};
    size_t used = 6;
    et_status status = et_step_check_inputs(s, error);
    if (status == ET_OK) status = et_case_print(&json, &s->c, error);
    if (status != ET_OK) return status;
    snprintf(layout, sizeof layout, "block:%zu", s->block);
    const char *more[][2] = {{"case", json},
                             {"layout", s->block ? layout : NULL},
                             {"profile", profile},
                             {"emulates", s->rounding ? s->rounding->profile->name : NULL}};
    for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
        if (more[i][1] == NULL) continue;
        metadata[used++] = more[i][0];
        metadata[used++] = more[i][1];
    }
    status = et_tensor_file_write(path, tensors, count, metadata, error);
    free(json);
    return status;
}

et_status et_bundle_write(const char *path, const et_step *s, bool lean, et_error *error)
{
    ET_ARITHMETIC;
    et_tensor_out tensors[ET_MAX_STEP_TENSORS];
    size_t count = et_step_tensors(s, lean, tensors);
    et_status status = et_step_check_values(s, error);
    return status == ET_OK ? write_tensors(path, s, tensors, count, NULL, error) : status;
}

/* ---- standard deviations: variances add, but a reader wants error bars ---- */

typedef struct deviations {
    size_t count;
    et_tensor_out tensors[ET_MAX_STEP_TENSORS];
    char names[ET_MAX_STEP_TENSORS][48];
} deviations;

/* noise.NAME, with values of its own. */
static et_status take_root(deviations *d, const et_tensor_out *variance, et_error *error)
{
    size_t count = 1;
    void *room;
    for (size_t i = 0; i < variance->rank; i++) count *= variance->shape[i];
    et_status status = et_allocate(&room, count, sizeof(et_real), "standard deviations", error);
    if (status != ET_OK) return status;
    et_real *roots = room;
    for (size_t i = 0; i < count; i++) {
        et_real root = (et_real)sqrt(et_tensor_element(variance, i));
        roots[i] = root > 0 && root < (et_real)FLT_TRUE_MIN ? (et_real)FLT_TRUE_MIN : root;
    }
    et_tensor_out *t = &d->tensors[d->count];
    char *name = d->names[d->count++];
    snprintf(name, sizeof d->names[0], ET_NOISE_PREFIX "%s", variance->name);
    *t = *variance;
    t->name = name;
    t->values = roots;
    t->dtype = ET_F32;
    return ET_OK;
}

static et_status take_roots(deviations *d, const et_step *variance, bool lean, et_error *error)
{
    et_tensor_out list[ET_MAX_STEP_TENSORS];
    size_t have = et_step_tensors(variance, lean, list);
    et_status status = ET_OK;
    for (size_t i = 0; i < have && status == ET_OK; i++) {
        bool real = list[i].source == ET_FROM_F64 || list[i].source == ET_FROM_F32;
        if (real && strncmp(list[i].name, "in.", 3) != 0) status = take_root(d, &list[i], error);
    }
    return status;
}

et_status et_bundle_write_noise(const char *path, const et_step *s, bool lean, const et_profile *p,
                                const et_step *variance, const et_tensor_out *bars,
                                et_error *error)
{
    ET_ARITHMETIC;
    et_tensor_out tensors[2 * ET_MAX_STEP_TENSORS + 1];
    deviations noise = {.count = 0};
    char *profile;
    size_t count = et_step_tensors(s, lean, tensors);
    et_status status = et_step_check_values(s, error);
    if (status == ET_OK) status = et_profile_print(&profile, p, error);
    if (status != ET_OK) return status;
    status = take_roots(&noise, variance, lean, error);
    memcpy(tensors + count, noise.tensors, noise.count * sizeof *tensors);
    count += noise.count;
    if (bars) tensors[count++] = *bars;
    if (status == ET_OK) status = write_tensors(path, s, tensors, count, profile, error);
    for (size_t i = 0; i < noise.count; i++) free((void *)(uintptr_t)noise.tensors[i].values);
    free(profile);
    return status;
}

/* ---- opening ---- */

static et_status check_metadata(const et_tensor_file *file, et_error *error)
{
    const char *expected[][2] = {{"format", "etref-bundle"}, {"version", "1"}};
    for (size_t i = 0; i < 2; i++) {
        const char *value = et_tensor_file_metadata(file, expected[i][0]);
        if (value == NULL || strcmp(value, expected[i][1]) != 0)
            return et_fail(
                error, ET_EINVAL,
                "%s: not a bundle of this version: metadata '%s' is '%.40s', must be '%s'",
                file->path, expected[i][0], value ? value : "(absent)", expected[i][1]);
    }
    return ET_OK;
}

static et_status read_case(const et_tensor_file *file, et_case *c, et_error *error)
{
    const char *json = et_tensor_file_metadata(file, "case");
    if (json == NULL)
        return et_fail(error, ET_EINVAL, "%s: metadata has no 'case'; a bundle must bring its case",
                       file->path);
    return et_case_parse(c, json, strlen(json), file->path, error);
}

/* "block:M", or no layout at all. */
static et_status read_layout(const et_tensor_file *file, size_t *block, et_error *error)
{
    const char *text = et_tensor_file_metadata(file, "layout");
    *block = 0;
    if (text == NULL) return ET_OK;
    char *end = NULL;
    unsigned long value = 0;
    if (strncmp(text, "block:", 6) == 0 && text[6] >= '1' && text[6] <= '9')
        value = strtoul(text + 6, &end, 10);
    if (end == NULL || *end != '\0' || value > ET_MAX_BLOCK)
        return et_fail(error, ET_EINVAL,
                       "%s: metadata 'layout' is '%.40s', must be block:1 to block:%d", file->path,
                       text, ET_MAX_BLOCK);
    *block = value;
    return ET_OK;
}

/* *has = whether the bundle names a profile; then *p is it. */
static et_status read_profile(const et_tensor_file *file, et_profile *p, bool *has, et_error *error)
{
    char where[300];
    const char *json = et_tensor_file_metadata(file, "profile");
    *has = json != NULL;
    if (json == NULL) return ET_OK;
    snprintf(where, sizeof where, "%.250s: metadata 'profile'", file->path);
    return et_profile_parse(p, json, strlen(json), where, error);
}

static bool same_shape(const et_tensor_info *info, const et_tensor_out *want)
{
    return info->rank == want->rank &&
           memcmp(info->shape, want->shape, want->rank * sizeof *want->shape) == 0;
}

static et_status check_input(const et_tensor_file *file, const et_tensor_info *info,
                             const et_tensor_out *want, et_error *error)
{
    char got[200], must[200];
    et_shape_print(info->rank, info->shape, got, sizeof got);
    et_shape_print(want->rank, want->shape, must, sizeof must);
    if (!same_shape(info, want))
        return et_fail(error, ET_EINVAL, "%s: tensor '%s' has shape %s, its case says %s",
                       file->path, info->name, got, must);
    if (et_dtype_significand(info->dtype) == 0)
        return et_fail(error, ET_EINVAL,
                       "%s: tensor '%s' has type %s, must be F64, F32, BF16 or F16", file->path,
                       info->name, et_dtype_name(info->dtype));
    return ET_OK;
}

/* Reads one in.* tensor into the step's own array, chunk by chunk. */
static et_status read_input(const et_tensor_file *file, const et_tensor_info *info, et_real *to,
                            double *chunk, et_error *error)
{
    for (size_t first = 0; first < info->count; first += CHUNK) {
        size_t count = info->count - first < CHUNK ? info->count - first : CHUNK;
        et_status status = et_tensor_file_read(file, info, first, count, chunk, error);
        if (status != ET_OK) return status;
        for (size_t i = 0; i < count; i++) to[first + i] = (et_real)chunk[i];
    }
    return ET_OK;
}

/* A state that has seen no update is zero (the average starts at 0), so it may be left out. */
static bool may_be_absent(const et_step *s, const char *name)
{
    return strcmp(name, "in.ema") == 0 && s->c.ema_updates == 0;
}

static et_status read_inputs(const et_tensor_file *file, et_step *s, et_error *error)
{
    et_tensor_out tensors[ET_MAX_STEP_TENSORS];
    size_t count = et_step_tensors(s, false, tensors); /* before the run: in.* and nothing else */
    void *chunk = NULL;
    et_status status = et_allocate(&chunk, CHUNK, sizeof(double), "reading buffer", error);
    for (size_t i = 0; status == ET_OK && i < count; i++) {
        const et_tensor_info *info = et_tensor_file_find(file, tensors[i].name);
        if (info == NULL && may_be_absent(s, tensors[i].name)) continue;
        if (info == NULL)
            status = et_fail(error, ET_EINVAL, "%s: tensor '%s' is missing; its case needs it",
                             file->path, tensors[i].name);
        else if ((status = check_input(file, info, &tensors[i], error)) == ET_OK)
            /* the table's pointers are const for its many readers; this one array is ours to fill
             */
            status = read_input(file, info, (et_real *)(uintptr_t)tensors[i].values, chunk, error);
    }
    free(chunk);
    return status;
}

/* noise.* says nothing without the profile whose noise it is. */
static et_status check_noise(const et_tensor_file *file, const char *name, bool has_profile,
                             et_error *error)
{
    if (!et_is_noise(name))
        return et_fail(error, ET_EINVAL,
                       "%s: tensor '%s' is not one of a bundle; 'etref list tensors' shows them",
                       file->path, name);
    if (has_profile) return ET_OK;
    return et_fail(error, ET_EINVAL,
                   "%s: tensor '%s' is there, but metadata 'profile' is not; a bundle with noise "
                   "must say whose",
                   file->path, name);
}

/* Every tensor of the file must be one that a bundle has, and every in.* one of this case. */
static et_status check_names(const et_tensor_file *file, const et_step *s, et_error *error)
{
    et_tensor_out tensors[ET_MAX_STEP_TENSORS];
    size_t count = et_step_tensors(s, false, tensors);
    et_profile profile;
    bool has_profile;
    et_status status = read_profile(file, &profile, &has_profile, error);
    for (size_t j = 0; status == ET_OK && j < file->tensor_count; j++) {
        const char *name = file->tensors[j].name;
        bool known = strncmp(name, "in.", 3) != 0;
        for (size_t i = 0; !known && i < count; i++) known = strcmp(tensors[i].name, name) == 0;
        if (et_tensor_doc_find(name) == NULL)
            status = check_noise(file, name, has_profile, error);
        else if (!known)
            status = et_fail(error, ET_EINVAL, "%s: tensor '%s' does not belong to its case",
                             file->path, name);
    }
    return status;
}

et_status et_bundle_open(et_tensor_file *file, et_step *step, const char *path, size_t max_bytes,
                         et_error *error)
{
    ET_ARITHMETIC;
    et_case c;
    size_t block;
    *step = (et_step){0};
    et_status status = et_tensor_file_open(file, path, error);
    if (status != ET_OK) return status;
    if ((status = check_metadata(file, error)) || (status = read_case(file, &c, error)) ||
        (status = read_layout(file, &block, error)) ||
        (status = et_step_create(step, &c, max_bytes, error)) ||
        (status = check_names(file, step, error)) || (status = read_inputs(file, step, error)) ||
        (status = et_step_check_inputs(step, error))) {
        et_step_free(step);
        et_tensor_file_close(file);
        return status;
    }
    step->block = block;
    return ET_OK;
}

/* ---- integrity ---- */

/* |stored - recomputed|; equal values, infinities among them, differ by 0; NaN by +inf. */
static double distance(double stored, double recomputed)
{
    if (stored == recomputed) return 0;
    double gap = fabs(stored - recomputed);
    return isnan(gap) ? INFINITY : gap;
}

static void compare_element(et_comparison *r, size_t i, double stored, double recomputed)
{
    double gap = distance(stored, recomputed);
    if (isfinite(recomputed) && fabs(recomputed) > r->largest) r->largest = fabs(recomputed);
    if (gap > 0) r->different++;
    if (gap > r->max_error || i == 0) {
        r->max_error = gap;
        r->worst = i;
        r->stored = stored;
        r->recomputed = recomputed;
    }
}

/* The bound of a foreign bundle's real numbers, relative to a tensor's largest element: 1e-13 in
 * binary64. Another order of summation costs a few unit roundoffs there; hundreds are no longer
 * rounding. Of a bundle of this very producer every bit must come out again. */
static const double foreign_bound = 900 * (double)ET_UNIT_ROUNDOFF;

static et_status compare_tensor(et_comparison *r, const et_tensor_file *file,
                                const et_tensor_info *info, const et_tensor_out *want,
                                double *chunk, et_error *error)
{
    bool real = want->source == ET_FROM_F64 || want->source == ET_FROM_F32;
    if (!same_shape(info, want)) {
        r->problem = "shape";
        return ET_OK;
    }
    if (real != (et_dtype_significand(info->dtype) > 0)) {
        r->problem = "type";
        return ET_OK;
    }
    r->exact_required |= !real;
    for (size_t first = 0; first < info->count; first += CHUNK) {
        size_t count = info->count - first < CHUNK ? info->count - first : CHUNK;
        et_status status = et_tensor_file_read(file, info, first, count, chunk, error);
        if (status != ET_OK) return status;
        for (size_t i = 0; i < count; i++)
            compare_element(r, first + i, chunk[i], et_tensor_element(want, first + i));
    }
    r->pass = r->exact_required ? r->different == 0 : r->max_error <= foreign_bound * r->largest;
    return ET_OK;
}

/* A list of comparisons that grows, and what goes into each. */
typedef struct comparing {
    const et_tensor_file *file;
    bool ours;
    double *chunk;
    et_comparison *list; /* room for every row and its noise */
    size_t used;
} comparing;

/* Compares the file's tensor of this name, if there is one, with that among `have`. */
static et_status compare_named(comparing *c, const char *name, const et_tensor_out *have,
                               size_t count, et_error *error)
{
    const et_tensor_info *info = et_tensor_file_find(c->file, name);
    if (info == NULL) return ET_OK;
    et_comparison *r = &c->list[c->used++];
    *r = (et_comparison){
        .count = info->count, .exact_required = c->ours, .problem = "not of its case"};
    snprintf(r->name, sizeof r->name, "%s", name);
    for (size_t j = 0; j < count; j++) {
        if (strcmp(have[j].name, name) != 0) continue;
        r->problem = NULL;
        return compare_tensor(r, c->file, info, &have[j], c->chunk, error);
    }
    return ET_OK;
}

static et_status compare_values(comparing *c, const et_step *step, et_error *error)
{
    et_tensor_out tensors[ET_MAX_STEP_TENSORS];
    size_t have = et_step_tensors(step, false, tensors);
    const et_tensor_doc *doc;
    et_status status = ET_OK;
    for (size_t i = 0; status == ET_OK && (doc = et_tensor_doc_at(i)) != NULL; i++)
        if (strncmp(doc->name, "in.", 3) != 0)
            status = compare_named(c, doc->name, tensors, have, error);
    return status;
}

/* An estimate of other random runs is another one: only that it is a deviation of its tensor. */
static et_status check_deviation(et_comparison *r, const comparing *c, const et_tensor_info *info,
                                 const et_tensor_out *of, et_error *error)
{
    et_status status = ET_OK;
    r->problem = !same_shape(info, of) ? "shape" : info->dtype != ET_F32 ? "type" : NULL;
    for (size_t first = 0; first < info->count && !r->problem; first += CHUNK) {
        size_t count = info->count - first < CHUNK ? info->count - first : CHUNK;
        status = et_tensor_file_read(c->file, info, first, count, c->chunk, error);
        if (status != ET_OK) return status;
        for (size_t i = 0; i < count; i++)
            if (!(c->chunk[i] >= 0)) r->problem = "no deviation";
    }
    r->pass = !r->problem;
    return status;
}

static et_status compare_noise(comparing *c, const et_step *step, et_error *error)
{
    et_tensor_out tensors[ET_MAX_STEP_TENSORS];
    size_t have = et_step_tensors(step, false, tensors);
    const et_tensor_doc *doc;
    et_status status = ET_OK;
    for (size_t i = 0; status == ET_OK && (doc = et_tensor_doc_at(i)) != NULL; i++) {
        char name[ET_MAX_TENSOR_NAME + 1];
        snprintf(name, sizeof name, ET_NOISE_PREFIX "%s", doc->name);
        const et_tensor_info *info = et_tensor_file_find(c->file, name);
        if (info == NULL) continue;
        et_comparison *r = &c->list[c->used++];
        *r = (et_comparison){.count = info->count, .problem = "not of its case"};
        snprintf(r->name, sizeof r->name, "%s", name);
        for (size_t j = 0; j < have && status == ET_OK; j++)
            if (strcmp(tensors[j].name, doc->name) == 0)
                status = check_deviation(r, c, info, &tensors[j], error);
    }
    return status;
}

et_status et_bundle_compare(et_comparison **out, size_t *count, const et_tensor_file *file,
                            const et_step *step, et_error *error)
{
    ET_ARITHMETIC;
    const char *producer = et_tensor_file_metadata(file, "producer");
    void *list = NULL, *chunk = NULL;
    comparing c = {.file = file};
    c.ours = producer && strcmp(producer, et_bundle_producer(step->engine)) == 0 &&
             step->engine == ET_PLAIN;
    et_status status =
        et_allocate(&list, 2 * ET_MAX_STEP_TENSORS, sizeof **out, "comparisons", error);
    if (status == ET_OK)
        status = et_allocate(&chunk, CHUNK, sizeof(double), "reading buffer", error);
    c.list = list;
    c.chunk = chunk;
    if (status == ET_OK) status = compare_values(&c, step, error);
    if (status == ET_OK) status = compare_noise(&c, step, error);
    free(chunk);
    if (status != ET_OK) {
        free(list);
        return status;
    }
    *out = list;
    *count = c.used;
    return ET_OK;
}
