/* candidate.c: reading a candidate. See etref/candidate.h.
 *
 * Two walks over the file's tensors: the first checks everything that the header says, the second
 * takes memory and reads. What a file claims decides neither how much is taken nor what is computed.
 */
#include "etref/candidate.h"
#include "ref/base/arithmetic.h"
#include "ref/base/memory.h"
#include "ref/oracle/fields.h"
#include "ref/oracle/json.h"
#include "ref/oracle/tensors.h"
#include "ref/verdict/judge.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 65536 }; /* elements read from a file at a time */

/* What a read works on. */
typedef struct reading {
    const et_tensor_file *file;
    const et_step *golden;
    et_tensor_out known[ET_MAX_STEP_TENSORS]; /* of the golden */
    size_t known_count;
    const et_alias *aliases;
    size_t alias_count;
    size_t max_bytes;
    et_error *error;
} reading;

/* ---- the case ---- */

/* What a case computes does not hang on what it is called. */
static bool says_something(const et_field *f)
{
    return strcmp(f->doc.name, "name") != 0 && strcmp(f->doc.name, "hunts") != 0;
}

static et_status compare_cases(const reading *r, const et_case *mine)
{
    const et_case *golden = &r->golden->c;
    for (size_t i = 0; i < ET_FIELDS; i++) {
        const et_field *f = &et_fields[i];
        if (!says_something(f) || et_member_equal(&f->member, mine, golden)) continue;
        json_t *got = et_member_load(&f->member, mine);
        json_t *want = et_member_load(&f->member, golden);
        et_status status = et_fail(
            r->error, ET_EINVAL,
            "%s: a bundle of another case: %s = %s, the golden's case '%s' has %s", r->file->path,
            f->doc.name, et_json_quote(got).text, golden->name, et_json_quote(want).text);
        json_decref(got);
        json_decref(want);
        return status;
    }
    return ET_OK;
}

static et_status check_case(const reading *r)
{
    et_case c;
    char where[300];
    const char *json = et_tensor_file_metadata(r->file, "case");
    if (json == NULL) return ET_OK;
    snprintf(where, sizeof where, "%.250s: metadata 'case'", r->file->path);
    et_status status = et_case_parse(&c, json, strlen(json), where, r->error);
    return status == ET_OK ? compare_cases(r, &c) : status;
}

/* ---- names ---- */

static const et_alias *alias_of(const reading *r, const char *name)
{
    for (size_t i = 0; i < r->alias_count; i++)
        if (strcmp(r->aliases[i].mine, name) == 0) return &r->aliases[i];
    return NULL;
}

/* What a kernel computes: not in.*, which it is given. */
static const char *output_name(size_t index)
{
    const et_tensor_doc *doc;
    for (size_t i = 0; (doc = et_tensor_doc_at(i)) != NULL; i++)
        if (strncmp(doc->name, "in.", 3) != 0 && index-- == 0) return doc->name;
    return "";
}

static const char *nearest_output(const char *word)
{
    size_t count = 0;
    while (output_name(count)[0] != '\0') count++;
    return et_nearest_name(word, output_name, count);
}

static et_status refuse_unknown(const reading *r, const char *name)
{
    const char *near = nearest_output(name);
    if (near != NULL)
        return et_fail(r->error, ET_EINVAL,
                       "%s: tensor '%s' is not one of a bundle; if it is %s, give the alias %s=%s",
                       r->file->path, name, near, name, near);
    return et_fail(r->error, ET_EINVAL,
                   "%s: tensor '%s' is not one of a bundle; rename it, give an alias, or leave it "
                   "out ('etref list tensors' names what can be judged)",
                   r->file->path, name);
}

static et_status check_aliases(const reading *r)
{
    for (size_t i = 0; i < r->alias_count; i++) {
        const et_alias *a = &r->aliases[i];
        if (r->aliases == NULL || a->mine == NULL || a->name == NULL)
            return et_fail(r->error, ET_EINVAL, "alias %zu: two names belong to it", i);
        const char *near = nearest_output(a->name);
        if (et_tensor_doc_find(a->name) == NULL)
            return et_fail(r->error, ET_EINVAL,
                           "alias %s=%s: a bundle has no tensor %s%s%s; 'etref list tensors' names "
                           "them",
                           a->mine, a->name, a->name, near ? ", the nearest is " : "",
                           near ? near : "");
        if (et_tensor_file_find(r->file, a->mine) == NULL)
            return et_fail(r->error, ET_EINVAL, "alias %s=%s: %s has no tensor %s", a->mine,
                           a->name, r->file->path, a->mine);
        if (alias_of(r, a->mine) != a)
            return et_fail(r->error, ET_EINVAL, "alias %s=%s: %s is given another alias before",
                           a->mine, a->name, a->mine);
    }
    return ET_OK;
}

/* ---- types and shapes ---- */

static bool is_integer(et_dtype dtype)
{
    return et_dtype_significand(dtype) == 0 && dtype != ET_F8_E4M3 && dtype != ET_F8_E5M2;
}

static et_status check_type(const reading *r, const et_tensor_info *info, const et_tensor_out *want)
{
    bool real = et_tensor_is_real(want);
    if (real ? et_dtype_significand(info->dtype) > 0 : is_integer(info->dtype)) return ET_OK;
    return et_fail(r->error, ET_EINVAL, "%s: tensor '%s' has type %s, must be %s", r->file->path,
                   info->name, et_dtype_name(info->dtype),
                   real                         ? "F64, F32, BF16 or F16"
                   : want->source == ET_FROM_U8 ? "BOOL, U8 or another integer type"
                                                : "I32 or another integer type");
}

static et_status check_shape(const reading *r, const et_tensor_info *info,
                             const et_tensor_out *want)
{
    char got[200], must[200];
    const et_tensor_doc *doc = et_tensor_doc_find(want->name);
    if (et_tensor_fits(r->golden, doc, info->rank, info->shape)) return ET_OK;
    et_shape_print(info->rank, info->shape, got, sizeof got);
    et_shape_print(want->rank, want->shape, must, sizeof must);
    return et_fail(r->error, ET_EINVAL,
                   "%s: tensor '%s' has shape %s; %s is %s, which is %s for this case",
                   r->file->path, info->name, got, want->name, doc->shape, must);
}

/* ---- the first walk: what is there ---- */

static et_status add_tensor(et_candidate *c, const reading *r, const et_tensor_info *info,
                            const et_tensor_out *want)
{
    et_tensor_out *t = &c->tensors[c->count];
    for (size_t i = 0; i < c->count; i++)
        if (strcmp(c->tensors[i].name, want->name) == 0)
            return et_fail(r->error, ET_EINVAL, "%s: %s is given twice, once as tensor '%s'",
                           r->file->path, want->name, info->name);
    *t = (et_tensor_out){.name = want->name, .rank = info->rank, .dtype = info->dtype};
    memcpy(t->shape, info->shape, info->rank * sizeof *t->shape);
    t->source = want->source;
    if (et_tensor_is_real(want)) t->source = info->dtype == ET_F64 ? ET_FROM_F64 : ET_FROM_F32;
    if (want->source == ET_FROM_I32) t->dtype = info->dtype == ET_I64 ? ET_I64 : ET_I32;
    if (want->source == ET_FROM_U8) t->dtype = info->dtype == ET_BOOL ? ET_BOOL : ET_U8;
    c->count++;
    return ET_OK;
}

/* The tensor's row, type and shape; and its place among what is judged, if it is an output. */
static et_status check_tensor(et_candidate *c, const reading *r, const et_tensor_info *info)
{
    const et_alias *alias = alias_of(r, info->name);
    const char *name = alias ? alias->name : info->name;
    const et_tensor_out *want = et_tensor_named(r->known, r->known_count, name);
    if (et_is_noise(name)) {
        c->ignored++;
        return ET_OK;
    }
    if (et_tensor_doc_find(name) == NULL) return refuse_unknown(r, name);
    if (want == NULL)
        return et_fail(r->error, ET_EINVAL,
                       "%s: tensor '%s' does not belong to the golden's case '%s'; leave it out",
                       r->file->path, info->name, r->golden->c.name);
    et_status status = check_type(r, info, want);
    if (status == ET_OK) status = check_shape(r, info, want);
    if (status != ET_OK) return status;
    if (strncmp(name, "in.", 3) != 0) return add_tensor(c, r, info, want);
    c->inputs++;
    return ET_OK;
}

static et_status check_tensors(et_candidate *c, const reading *r)
{
    et_status status = check_aliases(r);
    for (size_t i = 0; status == ET_OK && i < r->file->tensor_count; i++)
        status = check_tensor(c, r, &r->file->tensors[i]);
    if (status == ET_OK && c->count == 0)
        status = et_fail(r->error, ET_EINVAL,
                         "%s: holds nothing that a kernel computed; write at least one of fwd.*, "
                         "route.*, bwd.*, state.* into it",
                         r->file->path);
    return status;
}

/* ---- the second walk: values ---- */

static size_t size_of(et_source source)
{
    static const size_t sizes[] = {[ET_FROM_F64] = sizeof(double),
                                   [ET_FROM_F32] = sizeof(float),
                                   [ET_FROM_I32] = sizeof(int32_t),
                                   [ET_FROM_U8] = sizeof(uint8_t)};
    return sizes[source];
}

static et_status take_values(et_candidate *c, const reading *r, size_t index, size_t count)
{
    size_t bytes = 0, size = size_of(c->tensors[index].source);
    bool fits = et_size_mul(count, size, &bytes) && bytes <= SIZE_MAX - c->bytes;
    if (!fits || (r->max_bytes > 0 && c->bytes + bytes > r->max_bytes))
        return et_fail(r->error, ET_ENOMEM, "%s: needs more than %zu bytes in memory",
                       r->file->path, r->max_bytes);
    et_status status = et_allocate(&c->values[index], count, size, "the candidate", r->error);
    if (status == ET_OK) c->bytes += bytes;
    c->tensors[index].values = c->values[index];
    return status;
}

/* False if the number is not one of the type's. */
static bool store(void *to, et_source source, size_t i, double value)
{
    bool fits = true;
    switch (source) {
    case ET_FROM_F64: ((double *)to)[i] = value; break;
    case ET_FROM_F32: ((float *)to)[i] = (float)value; break; /* exact: it is of 24 bits at most */
    case ET_FROM_I32:
        fits = value >= INT32_MIN && value <= INT32_MAX;
        if (fits) ((int32_t *)to)[i] = (int32_t)value;
        break;
    case ET_FROM_U8:
        fits = value >= 0 && value <= UINT8_MAX;
        if (fits) ((uint8_t *)to)[i] = (uint8_t)value;
        break;
    }
    return fits;
}

static et_status read_values(et_candidate *c, const reading *r, const et_tensor_info *info,
                             size_t index, double *chunk)
{
    const et_tensor_out *t = &c->tensors[index];
    et_status status = take_values(c, r, index, info->count);
    for (size_t first = 0; status == ET_OK && first < info->count; first += CHUNK) {
        size_t count = info->count - first < CHUNK ? info->count - first : CHUNK;
        status = et_tensor_file_read(r->file, info, first, count, chunk, r->error);
        for (size_t i = 0; status == ET_OK && i < count; i++)
            if (!store(c->values[index], t->source, first + i, chunk[i]))
                status = et_fail(r->error, ET_EINVAL,
                                 "%s: tensor '%s' holds %.17g at element %zu; allowed: %s",
                                 r->file->path, info->name, chunk[i], first + i,
                                 t->source == ET_FROM_U8 ? "0 and 1" : "integers of 32 bits");
    }
    return status;
}

static et_status compare_input(const reading *r, const et_tensor_info *info, double *chunk)
{
    const et_alias *alias = alias_of(r, info->name);
    const et_tensor_out *want =
        et_tensor_named(r->known, r->known_count, alias ? alias->name : info->name);
    const et_real *values = want->values;
    et_status status = ET_OK;
    for (size_t first = 0; status == ET_OK && first < info->count; first += CHUNK) {
        size_t count = info->count - first < CHUNK ? info->count - first : CHUNK;
        status = et_tensor_file_read(r->file, info, first, count, chunk, r->error);
        for (size_t i = 0; status == ET_OK && i < count; i++)
            if (chunk[i] != (double)values[first + i] && /* or as its own type holds it */
                chunk[i] != et_round_to_dtype((double)values[first + i], info->dtype))
                status = et_fail(r->error, ET_EINVAL,
                                 "%s: tensor '%s' is not the golden's %s (element %zu is %.9g, not "
                                 "%.17g): compute from the golden's inputs, or leave it out",
                                 r->file->path, info->name, want->name, first + i, chunk[i],
                                 (double)values[first + i]);
    }
    return status;
}

static et_status read_tensors(et_candidate *c, const reading *r)
{
    void *chunk = NULL;
    size_t index = 0;
    et_status status = et_allocate(&chunk, CHUNK, sizeof(double), "reading buffer", r->error);
    for (size_t i = 0; status == ET_OK && i < r->file->tensor_count; i++) {
        const et_tensor_info *info = &r->file->tensors[i];
        const et_alias *alias = alias_of(r, info->name);
        const char *name = alias ? alias->name : info->name;
        if (et_is_noise(name)) continue;
        if (strncmp(name, "in.", 3) == 0)
            status = compare_input(r, info, chunk);
        else
            status = read_values(c, r, info, index++, chunk);
    }
    free(chunk);
    return status;
}

et_status et_candidate_read(et_candidate *c, const et_tensor_file *file, const et_step *golden,
                            const et_alias *aliases, size_t alias_count, size_t max_bytes,
                            et_error *error)
{
    ET_ARITHMETIC;
    reading r = {.file = file,
                 .golden = golden,
                 .aliases = aliases,
                 .alias_count = alias_count,
                 .max_bytes = max_bytes,
                 .error = error};
    r.known_count = et_step_tensors(golden, false, r.known);
    *c = (et_candidate){0};
    et_status status = check_case(&r);
    if (status == ET_OK) status = check_tensors(c, &r);
    if (status == ET_OK) status = read_tensors(c, &r);
    if (status != ET_OK) et_candidate_free(c);
    return status;
}

void et_candidate_free(et_candidate *c)
{
    for (size_t i = 0; i < ET_MAX_STEP_TENSORS; i++) free(c->values[i]);
    *c = (et_candidate){0};
}
