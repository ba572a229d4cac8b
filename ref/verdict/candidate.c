/* candidate.c: reading a candidate. See etref/candidate.h.
 *
 * Two walks over the file's tensors: the first checks everything that the header says, the second
 * takes memory and reads. What a file claims decides neither how much is taken nor what is computed.
 * Arrays in memory are walked as a file's are; those of a type that et_verify takes are not copied.
 */
#include "etref/candidate.h"
#include "ref/base/float_environment.h"
#include "ref/base/memory.h"
#include "ref/step/case_fields.h"
#include "ref/format/json.h"
#include "ref/format/safetensors.h"
#include "ref/step/tensors.h"
#include "ref/verdict/judge.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What a read works on. */
typedef struct reading {
    const et_tensor_file *file;
    const et_array
        *arrays; /* in the order of the file's tensors; NULL: the values are in the file */
    const et_step *golden;
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

/* What a kernel computes: not in.*, which it is given and which come first. */
static const char *output_name(size_t index)
{
    return et_tensors[ET_LAST_INPUT + 1 + index].doc.name;
}

static const char *nearest_output(const char *word)
{
    return et_nearest_name(word, output_name, ET_TENSORS - ET_LAST_INPUT - 1);
}

/* The bundle's tensor that a tensor of the file is, by its name or alias. */
static const char *name_of(const reading *r, const et_tensor_info *info)
{
    const et_alias *alias = alias_of(r, info->name);
    return alias ? alias->name : info->name;
}

static et_status refuse_unknown(const reading *r, const char *name)
{
    const char *near = nearest_output(name);
    if (near != NULL && r->arrays != NULL)
        return et_fail(r->error, ET_EINVAL,
                       "%s: tensor '%s' is not one of a bundle; if it is %s, call it so",
                       r->file->path, name, near);
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
        if (et_tensor_find(a->name) == ET_NO_TENSOR)
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

static et_status check_type(const reading *r, const et_tensor_info *info, const et_tensor_out *want)
{
    bool real = et_tensor_is_real(want);
    if (real ? et_dtype_significand(info->dtype) > 0 : et_dtype_is_integer(info->dtype)) return ET_OK;
    return et_fail(r->error, ET_EINVAL, "%s: tensor '%s' has type %s, must be %s", r->file->path,
                   info->name, et_dtype_name(info->dtype),
                   real                         ? "F64, F32, BF16 or F16"
                   : want->source == ET_FROM_U8 ? "BOOL, U8 or another integer type"
                                                : "I32 or another integer type");
}

static et_status check_shape(const reading *r, const et_tensor_info *info,
                             const et_tensor_out *want)
{
    const et_tensor_doc *doc = et_tensor_doc_find(want->name);
    if (et_tensor_fits(r->golden, doc, info->rank, info->shape)) return ET_OK;
    return et_fail(r->error, ET_EINVAL,
                   "%s: tensor '%s' has shape %s; %s is %s, which is %s for this case",
                   r->file->path, info->name, et_shape_show(info->rank, info->shape).text,
                   want->name, doc->shape, et_shape_show(want->rank, want->shape).text);
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
    const char *name = name_of(r, info);
    et_tensor_id id = et_tensor_find(name);
    if (et_is_noise(name)) {
        c->ignored++;
        return ET_OK;
    }
    if (id == ET_NO_TENSOR) return refuse_unknown(r, name);
    et_tensor_out want = et_tensor_view(r->golden, id);
    if (want.values == NULL)
        return et_fail(r->error, ET_EINVAL,
                       "%s: tensor '%s' does not belong to the golden's case '%s'; leave it out",
                       r->file->path, info->name, r->golden->c.name);
    et_status status = check_type(r, info, &want);
    if (status == ET_OK) status = check_shape(r, info, &want);
    if (status != ET_OK) return status;
    if (!et_is_input(id)) return add_tensor(c, r, info, &want);
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

static et_status take_values(et_candidate *c, const reading *r, size_t index, size_t count)
{
    size_t bytes = 0, size = et_source_size(c->tensors[index].source);
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

/* One tensor of the file, and what its values are stored in or compared with. */
typedef struct piece {
    const reading *r;
    const et_tensor_info *info;
    const et_tensor_out *tensor;
    void *to;
} piece;

static et_status store_values(void *user, size_t first, size_t count, const double *values,
                              et_error *error)
{
    const piece *p = user;
    for (size_t i = 0; i < count; i++)
        if (!store(p->to, p->tensor->source, first + i, values[i]))
            return et_fail(error, ET_EINVAL,
                           "%s: tensor '%s' holds %.17g at element %zu; allowed: %s",
                           p->r->file->path, p->info->name, values[i], first + i,
                           p->tensor->source == ET_FROM_U8 ? "0 and 1" : "integers of 32 bits");
    return ET_OK;
}

static et_status compare_input(void *user, size_t first, size_t count, const double *values,
                               et_error *error)
{
    const piece *p = user;
    for (size_t i = 0; i < count; i++) {
        double want = et_tensor_element(p->tensor, first + i);
        /* or as its own type holds it */
        if (values[i] == want || values[i] == et_round_to_dtype(want, p->info->dtype)) continue;
        return et_fail(error, ET_EINVAL,
                       "%s: tensor '%s' is not the golden's %s (element %zu is %.9g, not %.17g): "
                       "compute from the golden's inputs, or leave it out",
                       p->r->file->path, p->info->name, p->tensor->name, first + i, values[i],
                       want);
    }
    return ET_OK;
}

/* Do the caller's own values serve as they are? */
static bool is_taken_as_is(const et_array *array, et_source source)
{
    static const et_dtype types[] = {[ET_FROM_F64] = ET_F64,
                                     [ET_FROM_F32] = ET_F32,
                                     [ET_FROM_I32] = ET_I32,
                                     [ET_FROM_U8] = ET_U8};
    bool same = array->dtype == types[source] || (source == ET_FROM_U8 && array->dtype == ET_BOOL);
    return same && (uintptr_t)array->values % et_source_size(source) == 0;
}

static et_status visit_array(const et_array *array, size_t count, et_visit_values *visit,
                             void *user, et_error *error)
{
    enum { PIECE = 4096 };
    double values[PIECE];
    size_t size = et_dtype_size(array->dtype);
    const unsigned char *bytes = array->values;
    et_status status = ET_OK;
    for (size_t first = 0; status == ET_OK && first < count; first += PIECE) {
        size_t width = count - first < PIECE ? count - first : PIECE;
        et_dtype_decode_all(bytes + first * size, array->dtype, width, values);
        status = visit(user, first, width, values, error);
    }
    return status;
}

static et_status visit_values(const piece *p, et_visit_values *visit)
{
    const reading *r = p->r;
    if (r->arrays == NULL) return et_tensor_file_each(r->file, p->info, visit, (void *)p, r->error);
    return visit_array(&r->arrays[p->info - r->file->tensors], p->info->count, visit, (void *)p,
                       r->error);
}

/* One tensor that is judged, `index` among them. */
static et_status read_output(et_candidate *c, const reading *r, const et_tensor_info *info,
                             size_t index)
{
    et_tensor_out *t = &c->tensors[index];
    const et_array *own = r->arrays ? &r->arrays[info - r->file->tensors] : NULL;
    if (own && is_taken_as_is(own, t->source)) {
        t->values = own->values ? own->values : (const void *)"";
        return ET_OK;
    }
    et_status status = take_values(c, r, index, info->count);
    const piece p = {r, info, t, c->values[index]};
    return status == ET_OK ? visit_values(&p, store_values) : status;
}

static et_status read_tensors(et_candidate *c, const reading *r)
{
    size_t index = 0;
    et_status status = ET_OK;
    for (size_t i = 0; status == ET_OK && i < r->file->tensor_count; i++) {
        const et_tensor_info *info = &r->file->tensors[i];
        et_tensor_id id = et_tensor_find(name_of(r, info));
        if (id == ET_NO_TENSOR) continue; /* noise */
        et_tensor_out golden = et_tensor_view(r->golden, id);
        const piece p = {r, info, &golden, NULL};
        status =
            et_is_input(id) ? visit_values(&p, compare_input) : read_output(c, r, info, index++);
    }
    return status;
}

static et_status read_candidate(et_candidate *c, const reading *r)
{
    *c = (et_candidate){0};
    et_status status = check_case(r);
    if (status == ET_OK) status = check_tensors(c, r);
    if (status == ET_OK) status = read_tensors(c, r);
    if (status != ET_OK) et_candidate_free(c);
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
    return read_candidate(c, &r);
}

/* ---- memory ---- */

static et_status check_array(et_tensor_info *info, const et_array *a, size_t index, et_error *error)
{
    size_t bytes;
    if (a->name == NULL || strlen(a->name) > ET_MAX_TENSOR_NAME)
        return et_fail(error, ET_EINVAL, "candidate: array %zu has no name, or a very long one",
                       index);
    if (a->rank > ET_MAX_RANK || et_dtype_size(a->dtype) == 0)
        return et_fail(error, ET_EINVAL, "candidate: array '%s': %s", a->name,
                       a->rank > ET_MAX_RANK ? "too many dimensions" : "no type of dtype.h");
    *info =
        (et_tensor_info){.name = (char *)(uintptr_t)a->name, .dtype = a->dtype, .rank = a->rank};
    memcpy(info->shape, a->shape, a->rank * sizeof *a->shape);
    if (!et_shape_size(a->shape, a->rank, a->dtype, &info->count, &bytes))
        return et_fail(error, ET_EINVAL, "candidate: array '%s' exceeds the address space",
                       a->name);
    info->bytes = bytes;
    if (a->values == NULL && info->count > 0)
        return et_fail(error, ET_EINVAL, "candidate: array '%s' has no values", a->name);
    return ET_OK;
}

et_status et_candidate_take(et_candidate *c, const et_array *arrays, size_t count,
                            const et_step *golden, size_t max_bytes, et_error *error)
{
    ET_ARITHMETIC;
    void *room;
    char path[] = "candidate";
    et_status status = et_allocate(&room, count, sizeof(et_tensor_info), "arrays", error);
    if (status != ET_OK) return status;
    et_tensor_info *infos = room;
    const et_tensor_file file = {
        .descriptor = -1, .path = path, .tensor_count = count, .tensors = infos};
    const reading r = {
        .file = &file, .arrays = arrays, .golden = golden, .max_bytes = max_bytes, .error = error};
    for (size_t i = 0; i < count && status == ET_OK; i++)
        status = check_array(&infos[i], &arrays[i], i, error);
    if (status == ET_OK) status = read_candidate(c, &r);
    free(infos);
    return status;
}

void et_candidate_free(et_candidate *c)
{
    for (size_t i = 0; i < ET_MAX_STEP_TENSORS; i++) free(c->values[i]);
    *c = (et_candidate){0};
}
