/* bundle.c: writing, opening and checking golden bundles. See etref/bundle.h.
 *
 * What a file says is never trusted: its case is parsed and validated like a user's, its tensors
 * must be those of the table with the shapes that the case implies, and nothing is allocated beyond
 * the caller's limit.
 */
#include "etref/bundle.h"
#include "etref/version.h"
#include "ref/base/float_environment.h"
#include "ref/base/memory.h"
#include "ref/format/safetensors.h"
#include "ref/step/tensors.h"

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
    et_tensor_out tensors[2 * ET_MAX_STEP_TENSORS];
    char names[2 * ET_MAX_STEP_TENSORS][48];
} deviations;

/* prefix and NAME, with values of its own. */
static et_status take_root(deviations *d, const char *prefix, const et_tensor_out *variance,
                           et_error *error)
{
    size_t count = et_tensor_count(variance);
    void *room;
    et_status status = et_allocate(&room, count, sizeof(et_real), "standard deviations", error);
    if (status != ET_OK) return status;
    et_real *roots = room;
    for (size_t i = 0; i < count; i++) {
        et_real root = (et_real)sqrt(et_tensor_element(variance, i));
        roots[i] = root > 0 && root < (et_real)FLT_TRUE_MIN ? (et_real)FLT_TRUE_MIN : root;
    }
    et_tensor_out *t = &d->tensors[d->count];
    char *name = d->names[d->count++];
    snprintf(name, sizeof d->names[0], "%s%s", prefix, variance->name);
    *t = *variance;
    t->name = name;
    t->values = roots;
    t->dtype = ET_F32;
    return ET_OK;
}

static et_status take_roots(deviations *d, const char *prefix, const et_step *variance, bool lean,
                            et_error *error)
{
    et_status status = ET_OK;
    for (et_tensor_id id = ET_NO_TENSOR + 1; id < ET_TENSORS && status == ET_OK; id++) {
        et_tensor_out t = et_tensor_view(variance, id);
        if (!t.values || !et_tensor_is_real(&t) || et_is_input(id)) continue;
        if (!lean || et_tensors[id].doc.lean) status = take_root(d, prefix, &t, error);
    }
    return status;
}

et_status et_bundle_write_noise(const char *path, const et_step *s, bool lean, const et_profile *p,
                                const et_step *variance, const et_step *alone,
                                const et_tensor_out *bars, et_error *error)
{
    ET_ARITHMETIC;
    et_tensor_out tensors[3 * ET_MAX_STEP_TENSORS + 1];
    deviations noise = {.count = 0};
    char *profile;
    size_t count = et_step_tensors(s, lean, tensors);
    et_status status = et_step_check_values(s, error);
    if (status == ET_OK) status = et_profile_print(&profile, p, error);
    if (status != ET_OK) return status;
    status = take_roots(&noise, ET_NOISE_PREFIX, variance, lean, error);
    if (status == ET_OK && alone) status = take_roots(&noise, ET_NOISE_ALONE, alone, lean, error);
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

static et_status check_input(const et_tensor_file *file, const et_tensor_info *info,
                             const et_tensor_out *want, et_error *error)
{
    if (!et_is_of_shape(info, want))
        return et_fail(error, ET_EINVAL, "%s: tensor '%s' has shape %s, its case says %s",
                       file->path, info->name, et_shape_show(info->rank, info->shape).text,
                       et_shape_show(want->rank, want->shape).text);
    if (!et_tensor_is_real(want) && info->dtype != ET_I32)
        return et_fail(error, ET_EINVAL, "%s: tensor '%s' has type %s, must be I32", file->path,
                       info->name, et_dtype_name(info->dtype));
    if (et_tensor_is_real(want) && et_dtype_significand(info->dtype) == 0)
        return et_fail(error, ET_EINVAL,
                       "%s: tensor '%s' has type %s, must be F64, F32, BF16 or F16", file->path,
                       info->name, et_dtype_name(info->dtype));
    return ET_OK;
}

/* Into the step's own array. */
static et_status store_input(void *user, size_t first, size_t count, const double *values,
                             et_error *error)
{
    et_real *to = (et_real *)user + first;
    (void)error;
    for (size_t i = 0; i < count; i++) to[i] = (et_real)values[i];
    return ET_OK;
}

static et_status store_integers(void *user, size_t first, size_t count, const double *values,
                                et_error *error)
{
    int32_t *to = (int32_t *)user + first;
    (void)error;
    for (size_t i = 0; i < count; i++) to[i] = (int32_t)values[i];
    return ET_OK;
}

static et_status read_input(const et_tensor_file *file, const et_step *s, et_tensor_id id,
                            et_error *error)
{
    et_tensor_out want = et_tensor_view(s, id);
    if (!want.values) return ET_OK; /* the case has none */
    const et_tensor_info *info = et_tensor_file_find(file, want.name);
    /* a state that has seen no update is zero (the average starts at 0), so it may be left out */
    if (info == NULL && id == ET_IN_EMA && s->c.ema_updates == 0) return ET_OK;
    if (info == NULL)
        return et_fail(error, ET_EINVAL, "%s: tensor '%s' is missing; its case needs it",
                       file->path, want.name);
    et_status status = check_input(file, info, &want, error);
    /* the table's pointers are const for its many readers; this one array is ours to fill */
    void *own = (void *)(uintptr_t)want.values;
    et_visit_values *store = et_tensor_is_real(&want) ? store_input : store_integers;
    return status == ET_OK ? et_tensor_file_each(file, info, store, own, error) : status;
}

static et_status read_inputs(const et_tensor_file *file, et_step *s, et_error *error)
{
    et_status status = ET_OK;
    for (et_tensor_id id = ET_FIRST_INPUT; id <= ET_LAST_INPUT && status == ET_OK; id++)
        status = read_input(file, s, id, error);
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
    et_profile profile;
    bool has_profile;
    et_status status = read_profile(file, &profile, &has_profile, error);
    for (size_t j = 0; status == ET_OK && j < file->tensor_count; j++) {
        const char *name = file->tensors[j].name;
        et_tensor_id id = et_tensor_find(name);
        if (id == ET_NO_TENSOR)
            status = check_noise(file, name, has_profile, error);
        else if (et_is_input(id) && et_tensor_values(s, id) == NULL)
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
        (status = et_step_check_inputs(step, error)) ||
        (step->c.given && (status = et_bundle_give_routing(step, file, error)))) {
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

/* One tensor of the file, and what it should be. */
typedef struct comparing {
    et_comparison *result;
    et_tensor_out want;
} comparing;

static et_status compare_values(void *user, size_t first, size_t count, const double *values,
                                et_error *error)
{
    const comparing *c = user;
    (void)error;
    for (size_t i = 0; i < count; i++)
        compare_element(c->result, first + i, values[i], et_tensor_element(&c->want, first + i));
    return ET_OK;
}

static et_status compare_tensor(comparing *c, const et_tensor_file *file,
                                const et_tensor_info *info, et_error *error)
{
    et_comparison *r = c->result;
    bool real = et_tensor_is_real(&c->want), floats = et_dtype_significand(info->dtype) > 0;
    r->problem = !et_is_of_shape(info, &c->want) ? "shape" : real != floats ? "type" : NULL;
    r->exact_required |= !real;
    if (r->problem) return ET_OK;
    et_status status = et_tensor_file_each(file, info, compare_values, c, error);
    r->pass = r->exact_required ? r->different == 0 : r->max_error <= foreign_bound * r->largest;
    return status;
}

static et_status check_deviations(void *user, size_t first, size_t count, const double *values,
                                  et_error *error)
{
    const comparing *c = user;
    (void)first, (void)error;
    for (size_t i = 0; i < count; i++)
        if (!(values[i] >= 0)) c->result->problem = "no deviation";
    return ET_OK;
}

/* An estimate of other random runs is another one: only that it is a deviation of its tensor. */
static et_status compare_noise(comparing *c, const et_tensor_file *file, const et_tensor_info *info,
                               et_error *error)
{
    et_comparison *r = c->result;
    r->problem = !et_is_of_shape(info, &c->want) ? "shape" : info->dtype != ET_F32 ? "type" : NULL;
    if (r->problem) return ET_OK;
    et_status status = et_tensor_file_each(file, info, check_deviations, c, error);
    r->pass = !r->problem;
    return status;
}

et_status et_bundle_compare(et_comparison **out, size_t *count, const et_tensor_file *file,
                            const et_step *step, et_error *error)
{
    ET_ARITHMETIC;
    const char *producer = et_tensor_file_metadata(file, "producer");
    bool ours = producer && strcmp(producer, et_bundle_producer(step->engine)) == 0 &&
                step->engine == ET_PLAIN;
    void *room;
    size_t used = 0;
    et_status status =
        et_allocate(&room, 3 * ET_MAX_STEP_TENSORS, sizeof **out, "comparisons", error);
    if (status != ET_OK) return status;
    et_comparison *list = room;
    static const char *const prefixes[] = {"", ET_NOISE_PREFIX, ET_NOISE_ALONE};
    for (int noise = 0; noise < 3; noise++)
        for (et_tensor_id id = ET_LAST_INPUT + 1; id < ET_TENSORS && status == ET_OK; id++) {
            comparing c = {&list[used], et_tensor_view(step, id)};
            char *name = list[used].name;
            snprintf(name, sizeof list->name, "%s%s", prefixes[noise], c.want.name);
            const et_tensor_info *info = et_tensor_file_find(file, name);
            if (info == NULL) continue;
            list[used].count = info->count;
            list[used].exact_required = ours && !noise;
            list[used++].problem = "not of its case";
            if (c.want.values)
                status = (noise ? compare_noise : compare_tensor)(&c, file, info, error);
        }
    if (status != ET_OK) {
        free(list);
        return status;
    }
    *out = list;
    *count = used;
    return ET_OK;
}
