/* golden.c: a golden behind a handle. See etref/golden.h.
 *
 * The reference is computed by the plain engine: what a caller reads here are the bits of any
 * golden of this producer, and a kernel is judged by them.
 */
#include "etref/bars.h"
#include "etref/capture.h"
#include "etref/suite.h"
#include "etref/version.h"
#include "ref/base/float_environment.h"
#include "ref/base/memory.h"
#include "ref/interface/handle.h"
#include "ref/step/profile_names.h"
#include "ref/step/step_work.h"

#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int et_face(void)
{
    return ET_FACE;
}

const char *et_version(void)
{
    return ETREF_VERSION;
}

const char *et_producer(void)
{
    return et_bundle_producer(ET_PLAIN);
}

void et_release(char *text)
{
    free(text);
}

/* ---- whose turn it is ---- */

void et_golden_lock(et_golden *g)
{
    pthread_mutex_lock(&g->lock);
    g->threads = omp_get_max_threads();
    if (getenv("OMP_NUM_THREADS") == NULL)
        omp_set_num_threads((int)et_threads_worth(et_case_work(&g->step.c), (size_t)g->threads));
}

void et_golden_unlock(et_golden *g)
{
    omp_set_num_threads(g->threads);
    pthread_mutex_unlock(&g->lock);
}

/* ---- opening and closing ---- */

static et_status take_handle(et_golden **golden, size_t max_bytes, et_error *error)
{
    void *room;
    et_status status = et_allocate(&room, 1, sizeof **golden, "a golden", error);
    if (status != ET_OK) return status;
    et_golden *g = room;
    pthread_mutex_init(&g->lock, NULL);
    g->shelf.golden = &g->step;
    g->max_bytes = max_bytes;
    *golden = g;
    return ET_OK;
}

void et_golden_close(et_golden *g)
{
    if (g == NULL) return;
    et_shelf_free(&g->shelf);
    et_step_free(&g->step);
    pthread_mutex_destroy(&g->lock);
    free(g->path);
    free(g);
}

static et_status keep_path(et_golden *g, const char *path, et_error *error)
{
    void *room;
    et_status status = et_allocate(&room, strlen(path) + 1, 1, "a path", error);
    if (status != ET_OK) return status;
    free(g->path);
    g->path = strcpy(room, path);
    g->shelf.stored = g->path;
    return ET_OK;
}

static et_status parse_case(et_case *c, const char *text, et_error *error)
{
    et_case *one;
    size_t count;
    if (text[strspn(text, " \t\r\n")] != '{') return et_case_find(c, text, error);
    et_status status = et_capture_cases(&one, &count, text, strlen(text), "case", NULL, error);
    if (status != ET_OK) return status;
    *c = *one;
    free(one);
    return ET_OK;
}

et_status et_golden_of_case(et_golden **golden, const char *text, size_t max_bytes, et_error *error)
{
    ET_ARITHMETIC;
    et_case c;
    et_golden *g;
    et_status status = parse_case(&c, text, error);
    if (status == ET_OK) status = take_handle(&g, max_bytes, error);
    if (status != ET_OK) return status;
    bool drawn = c.input.source != ET_INPUT_NONE;
    status = et_step_create(&g->step, &c, max_bytes, error);
    if (status == ET_OK && drawn) status = et_capture_inputs(&g->step, max_bytes, error);
    for (et_tensor_id id = ET_NO_TENSOR + 1; id < ET_TENSORS && status == ET_OK; id++)
        g->awaits[id] = !drawn && et_tensor_values(&g->step, id) != NULL;
    if (status == ET_OK)
        *golden = g;
    else
        et_golden_close(g);
    return status;
}

et_status et_golden_open(et_golden **golden, const char *path, size_t max_bytes, et_error *error)
{
    ET_ARITHMETIC;
    et_golden *g;
    et_tensor_file file;
    et_status status = take_handle(&g, max_bytes, error);
    if (status != ET_OK) return status;
    status = et_bundle_open(&file, &g->step, path, max_bytes, error);
    if (status == ET_OK) {
        if (et_tensor_file_metadata(&file, "emulates") != NULL)
            status = et_fail(error, ET_EINVAL, "%s: what a kernel would compute, no golden", path);
        et_tensor_file_close(&file);
    }
    if (status == ET_OK) status = keep_path(g, path, error);
    if (status == ET_OK)
        *golden = g;
    else
        et_golden_close(g);
    return status;
}

/* ---- one's own inputs ---- */

/* They are kept as I32. */
static et_status check_integers(const et_array *a, et_error *error)
{
    const unsigned char *bytes = a->values;
    size_t count = 1, size = et_dtype_size(a->dtype);
    for (size_t i = 0; i < a->rank; i++) count *= a->shape[i];
    for (size_t i = 0; i < count; i++) {
        double value = et_dtype_decode(bytes + i * size, a->dtype);
        if (value < INT32_MIN || value > INT32_MAX)
            return et_fail(error, ET_EINVAL,
                           "input '%s' has the value %.0f, which is no integer of 32 bits", a->name,
                           value);
    }
    return ET_OK;
}

static et_status check_input(const et_golden *g, const et_array *a, et_tensor_id id,
                             et_error *error)
{
    const et_tensor_out want = et_tensor_view(&g->step, id);
    bool fits = a->rank == want.rank;
    for (size_t i = 0; fits && i < a->rank; i++) fits = a->shape[i] == want.shape[i];
    if (id == ET_NO_TENSOR || !et_is_input(id) || want.values == NULL)
        return et_fail(error, ET_EINVAL, "input '%.80s': the case has no such input",
                       a->name ? a->name : "");
    if (!fits)
        return et_fail(error, ET_EINVAL, "input '%s' has shape %s; for this case it is %s", a->name,
                       a->rank <= ET_MAX_RANK ? et_shape_show(a->rank, a->shape).text : "too long",
                       et_shape_show(want.rank, want.shape).text);
    bool integers = !et_tensor_is_real(&want);
    if (integers && !et_dtype_is_integer(a->dtype))
        return et_fail(error, ET_EINVAL,
                       "input '%s' has type %s; convert it to BOOL, I32 or another integer type",
                       a->name, et_dtype_name(a->dtype));
    if (!integers && et_dtype_significand(a->dtype) == 0)
        return et_fail(error, ET_EINVAL, "input '%s' has type %s; F64, F32, BF16 or F16", a->name,
                       et_dtype_name(a->dtype));
    if (a->values == NULL) return et_fail(error, ET_EINVAL, "input '%s' has no values", a->name);
    return integers ? check_integers(a, error) : ET_OK;
}

static void take_input(et_golden *g, const et_array *a, et_tensor_id id)
{
    const et_tensor_out to = et_tensor_view(&g->step, id);
    void *values = (void *)(uintptr_t)to.values;
    bool real = et_tensor_is_real(&to);
    size_t count = et_tensor_count(&to), size = et_dtype_size(a->dtype);
    const unsigned char *bytes = a->values;
    for (size_t i = 0; i < count; i++) {
        double value = et_dtype_decode(bytes + i * size, a->dtype);
        if (real)
            ((et_real *)values)[i] = (et_real)value;
        else
            ((int32_t *)values)[i] = (int32_t)value;
    }
    g->awaits[id] = false;
}

et_status et_golden_give(et_golden *g, const et_array *inputs, size_t count, et_error *error)
{
    ET_ARITHMETIC;
    et_status status = ET_OK;
    et_golden_lock(g);
    if (g->has_run || g->step.c.input.source != ET_INPUT_NONE || g->path)
        status = et_fail(error, ET_EINVAL, "case '%s' has its inputs already", g->step.c.name);
    for (size_t i = 0; i < count && status == ET_OK; i++) {
        et_tensor_id id = inputs[i].name ? et_tensor_find(inputs[i].name) : ET_NO_TENSOR;
        status = check_input(g, &inputs[i], id, error);
        if (status == ET_OK) take_input(g, &inputs[i], id);
    }
    et_golden_unlock(g);
    return status;
}

static et_status check_given(const et_golden *g, et_error *error)
{
    for (et_tensor_id id = ET_NO_TENSOR + 1; id < ET_TENSORS; id++)
        if (g->awaits[id])
            return et_fail(error, ET_EINVAL, "case '%s' awaits its input '%s'", g->step.c.name,
                           et_tensors[id].doc.name);
    return ET_OK;
}

/* ---- computing and reading ---- */

et_status et_golden_run_locked(et_golden *g, et_error *error)
{
    if (g->has_run) return ET_OK;
    et_status status = check_given(g, error);
    if (status == ET_OK) status = et_step_check_inputs(&g->step, error);
    if (status == ET_OK) status = et_step_run(&g->step, ET_PLAIN, NULL, NULL, error);
    if (status == ET_OK) status = et_step_check_values(&g->step, error);
    g->has_run = status == ET_OK;
    return status;
}

et_status et_golden_case(const et_golden *g, char **json, et_error *error)
{
    return et_case_print(json, &g->step.c, error);
}

static et_dtype type_in_memory(const et_tensor_out *t)
{
    static const et_dtype types[] = {[ET_FROM_F64] = ET_F64,
                                     [ET_FROM_F32] = ET_F32,
                                     [ET_FROM_I32] = ET_I32,
                                     [ET_FROM_U8] = ET_U8};
    return types[t->source];
}

et_status et_golden_tensor(et_golden *g, size_t index, et_array *out, et_error *error)
{
    ET_ARITHMETIC;
    et_tensor_out all[ET_MAX_STEP_TENSORS];
    et_golden_lock(g);
    et_status status = check_given(g, error);
    size_t count = et_step_tensors(&g->step, false, all);
    if (status == ET_OK && index >= count) {
        status = et_golden_run_locked(g, error);
        count = et_step_tensors(&g->step, false, all);
    }
    et_golden_unlock(g);
    if (status != ET_OK) return status;
    *out = (et_array){0};
    if (index >= count) return ET_OK;
    const et_tensor_out *t = &all[index];
    *out = (et_array){
        .name = t->name, .dtype = type_in_memory(t), .rank = t->rank, .values = t->values};
    memcpy(out->shape, t->shape, sizeof out->shape);
    return ET_OK;
}

/* ---- writing ---- */

et_status et_profile_of_words(et_profile *p, const char *words, et_error *error)
{
    const et_profile *known = et_profile_find(words);
    if (known) *p = *known;
    if (known) return ET_OK;
    if (words[strspn(words, " \t\r\n")] == '{')
        return et_profile_parse(p, words, strlen(words), "profile", error);
    return et_fail_no_profile("profile", words, "neither a built-in profile nor a JSON object",
                              error);
}

/* With the bars that verdicts have left on the shelf, if they have. */
static et_status write_bars(et_golden *g, const char *path, const et_profile *p, et_error *error)
{
    et_shelved *taken;
    et_status status = et_profile_check(p, error);
    if (status == ET_OK)
        status = et_shelf_take(&g->shelf, NULL, p, g->max_bytes, NULL, NULL, &taken, error);
    if (status != ET_OK) return status;
    status = et_bars_write(path, &taken->bars, &g->step, p, error);
    et_shelf_give_back(&g->shelf, taken);
    return status;
}

et_status et_golden_write(et_golden *g, const char *path, const char *profile, et_error *error)
{
    ET_ARITHMETIC;
    et_profile p;
    et_golden_lock(g);
    et_status status = profile ? et_profile_of_words(&p, profile, error) : ET_OK;
    if (status == ET_OK) status = et_golden_run_locked(g, error);
    if (status == ET_OK)
        status = profile ? write_bars(g, path, &p, error)
                         : et_bundle_write(path, &g->step, false, error);
    if (status == ET_OK) status = keep_path(g, path, error);
    et_golden_unlock(g);
    return status;
}
