/* checkpoint.c: a model on disk. See etref/checkpoint.h. */
#include "etref/checkpoint.h"
#include "ref/base/float_environment.h"
#include "ref/base/memory.h"
#include "ref/model/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_NOTES = 24, NAME = 64 };
#define MOMENTS "moments" /* metadata: "none" where the file holds values alone */

#ifdef ETREF_F32
static const et_source source = ET_FROM_F32;
static const et_dtype dtype = ET_F32;
#else
static const et_source source = ET_FROM_F64;
static const et_dtype dtype = ET_F64;
#endif

/* What is kept of a tensor: its value, and its moments where it has some. */
static const char *const prefixes[] = {"", "first.", "second."};
enum { VALUES = 1, PARTS = 3 };

static et_real *part_of(const et_gpt_tensor *t, int part)
{
    return part == 0 ? t->value : part == 1 ? t->first : t->second;
}

static void name_part(const et_gpt_tensor *t, int part, char name[NAME])
{
    snprintf(name, NAME, "%s%s", prefixes[part], t->name);
}

/* ---- writing ---- */

/* The tensors as the writer wants them, with their names; returns how many. */
static size_t list_parts(et_gpt *g, int parts, et_dtype type, et_tensor_out *out,
                         char (*names)[NAME])
{
    size_t count = 0;
    et_gpt_tensor *t;
    for (size_t i = 0; (t = et_gpt_tensor_at(g, i)) != NULL; i++)
        for (int part = 0; part < parts; part++) {
            if (part_of(t, part) == NULL) continue;
            name_part(t, part, names[count]);
            out[count] = (et_tensor_out){.name = names[count],
                                         .dtype = type,
                                         .rank = t->rank,
                                         .values = part_of(t, part),
                                         .source = source};
            memcpy(out[count++].shape, t->shape, sizeof t->shape);
        }
    return count;
}

static et_status write_file(const char *path, const et_gpt *g, const char *model, int parts,
                            const char *const *notes, const et_tensor_out *out, size_t tensors,
                            et_error *error)
{
    char steps[24], updates[24];
    const et_gpt_progress *done = &g->progress;
    snprintf(steps, sizeof steps, "%zu", done->steps);
    snprintf(updates, sizeof updates, "%zu", done->ema_updates);
    const char *metadata[MOST_NOTES + 1] = {
        "format", "etref-checkpoint", "version", "1", "model", model, "steps",
        steps,    "ema_updates",      updates};
    size_t count = 10;
    if (parts == VALUES) {
        metadata[count++] = MOMENTS;
        metadata[count++] = "none";
    }
    for (size_t i = 0; notes && notes[i]; i++) {
        if (count == MOST_NOTES)
            return et_fail(error, ET_EINVAL, "et_checkpoint: more than %d notes",
                           (MOST_NOTES - 12) / 2);
        metadata[count++] = notes[i];
    }
    return et_tensor_file_write(path, out, tensors, metadata, error);
}

static et_status write_parts(const char *path, et_gpt *g, int parts, et_dtype type,
                             const char *const *notes, et_error *error)
{
    ET_ARITHMETIC;
    char *model = NULL;
    void *out = NULL, *names = NULL;
    et_status status = et_gpt_config_print(&model, et_gpt_configuration(g), error);
    if (status == ET_OK)
        status = et_allocate(&out, PARTS * g->tensor_count, sizeof(et_tensor_out), path, error);
    if (status == ET_OK) status = et_allocate(&names, PARTS * g->tensor_count, NAME, path, error);
    if (status == ET_OK)
        status = write_file(path, g, model, parts, notes, out,
                            list_parts(g, parts, type, out, names), error);
    free(names);
    free(out);
    free(model);
    return status;
}

et_status et_checkpoint_write(const char *path, et_gpt *g, const char *const *notes,
                              et_error *error)
{
    return write_parts(path, g, PARTS, dtype, notes, error);
}

et_status et_checkpoint_write_values(const char *path, et_gpt *g, et_dtype type,
                                     const char *const *notes, et_error *error)
{
    return write_parts(path, g, VALUES, type, notes, error);
}

/* ---- reading ---- */

static et_status number_of(const et_tensor_file *file, const char *key, size_t *number,
                           et_error *error)
{
    const char *text = et_tensor_file_metadata(file, key);
    size_t digits = text ? strspn(text, "0123456789") : 0;
    if (digits < 1 || digits > 9 || text[digits] != '\0')
        return et_fail(error, ET_EINVAL, "%s: %s is '%.20s'; a whole number of at most 9 digits",
                       file->path, key, text ? text : "missing");
    *number = (size_t)strtoul(text, NULL, 10);
    return ET_OK;
}

bool et_checkpoint_has_moments(const et_tensor_file *file)
{
    const char *moments = et_tensor_file_metadata(file, MOMENTS);
    return moments == NULL || strcmp(moments, "none") != 0;
}

/* Values alone may be of any type; a run that goes on needs every bit. */
static bool has_shape(const et_tensor_info *info, const et_gpt_tensor *t, bool any_type)
{
    bool fits = any_type ? et_dtype_significand(info->dtype) > 0 : info->dtype == dtype;
    bool same = fits && info->rank == t->rank;
    for (size_t i = 0; same && i < t->rank; i++) same = info->shape[i] == t->shape[i];
    return same;
}

static et_status read_part(const et_tensor_file *file, const et_gpt_tensor *t, int part,
                           et_error *error)
{
    enum { AT_ONCE = 4096 };
    double block[AT_ONCE];
    char name[NAME];
    et_real *to = part_of(t, part);
    name_part(t, part, name);
    const et_tensor_info *info = et_tensor_file_find(file, name);
    if (info == NULL || !has_shape(info, t, !et_checkpoint_has_moments(file)))
        return et_fail(error, ET_EINVAL, "%s: tensor %s is %s", file->path, name,
                       info ? "of another shape or type than its configuration says" : "missing");
    for (size_t from = 0; from < t->count; from += AT_ONCE) {
        size_t count = t->count - from < AT_ONCE ? t->count - from : AT_ONCE;
        et_status status = et_tensor_file_read(file, info, from, count, block, error);
        if (status != ET_OK) return status;
        for (size_t i = 0; i < count; i++) {
            to[from + i] = (et_real)block[i];
            if (!isfinite(to[from + i]))
                return et_fail(error, ET_EINVAL, "%s: %s[%zu] is not finite", file->path, name,
                               from + i);
        }
    }
    return ET_OK;
}

static et_status read_parts(const et_tensor_file *file, et_gpt *g, et_error *error)
{
    size_t count = 0;
    int parts = et_checkpoint_has_moments(file) ? PARTS : VALUES;
    et_gpt_tensor *t;
    for (size_t i = 0; (t = et_gpt_tensor_at(g, i)) != NULL; i++)
        for (int part = 0; part < parts; part++) {
            if (part_of(t, part) == NULL) continue;
            et_status status = read_part(file, t, part, error);
            if (status != ET_OK) return status;
            count++;
        }
    if (count == file->tensor_count) return ET_OK;
    return et_fail(error, ET_EINVAL, "%s: holds %zu tensors; its configuration has %zu", file->path,
                   file->tensor_count, count);
}

/* Another batch. A pool of expert choice can then be no larger than it. */
static void take_batch(et_gpt_config *c, size_t batch)
{
    c->batch = batch;
    c->micro_batches = 1;
    c->ffn.pool_tokens = 0;
    c->ffn.target_load = c->sequence * batch * c->ffn.granularity < c->ffn.experts ? 1 : 0;
}

et_status et_checkpoint_facts(const et_tensor_file *file, size_t batch, et_gpt_config *config,
                              et_gpt_progress *done, et_error *error)
{
    const char *format = et_tensor_file_metadata(file, "format");
    const char *version = et_tensor_file_metadata(file, "version");
    const char *text = et_tensor_file_metadata(file, "model");
    if (format == NULL || strcmp(format, "etref-checkpoint") != 0 || version == NULL ||
        strcmp(version, "1") != 0 || text == NULL)
        return et_fail(error, ET_EINVAL, "%s: is no checkpoint that this etref reads", file->path);
    et_status status;
    if ((status = number_of(file, "steps", &done->steps, error)) ||
        (status = number_of(file, "ema_updates", &done->ema_updates, error)) ||
        (status = et_gpt_config_parse(config, text, strlen(text), file->path, error)))
        return status;
    if (batch > 0) take_batch(config, batch);
    return ET_OK;
}

static et_status read_model(const et_tensor_file *file, size_t batch, size_t max_bytes, et_gpt **g,
                            et_error *error)
{
    et_gpt *model;
    et_gpt_config config;
    et_gpt_progress done;
    et_status status = et_checkpoint_facts(file, batch, &config, &done, error);
    if (status != ET_OK || (status = et_gpt_create(&model, &config, max_bytes, error)))
        return status;
    *et_gpt_progress_of(model) = done;
    status = read_parts(file, model, error);
    if (status == ET_OK)
        *g = model;
    else
        et_gpt_free(model);
    return status;
}

et_status et_checkpoint_read(const char *path, size_t batch, size_t max_bytes, et_gpt **g,
                             et_tensor_file *file, et_error *error)
{
    ET_ARITHMETIC;
    et_status status = et_tensor_file_open(file, path, error);
    if (status != ET_OK) return status;
    status = read_model(file, batch, max_bytes, g, error);
    if (status != ET_OK) et_tensor_file_close(file);
    return status;
}
