/* integrity.c: `etref verify GOLDEN`: is every value of a bundle what its inputs and its case say?
 *
 * The step is computed again from in.* and compared, tensor by tensor. For a bundle that this very
 * etref wrote nothing but identity will do; for one that somebody else computed (the released code,
 * say) the last digits may differ, since sums are taken in another order.
 */
#include "etref/etref.h"
#include "tools/etref/commands.h"
#include "tools/etref/ending.h"
#include "ref/report/describe_case.h"
#include "tools/etref/junit.h"
#include "tools/etref/idle.h"
#include "tools/etref/memory_limit.h"
#include "tools/etref/standard_input.h"
#include "tools/etref/terminal.h"
#include "tools/etref/verify.h"
#include "ref/step/step_work.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A verified bundle: what was read, what was computed, what came of it. */
typedef struct integrity {
    const char *path;
    et_tensor_file file;
    et_step step;
    et_comparison *tensors;
    size_t count, failed;
    const et_comparison *worst; /* the first that failed, or the one with the largest error */
} integrity;

/* ---- numbers and words about one comparison ---- */

/* The error as a part of the tensor's largest element; 0 where there is no error at all. */
static double relative_error(const et_comparison *t)
{
    return t->max_error == 0 ? 0 : t->max_error / t->largest;
}

static void describe_worst(char *out, size_t room, const integrity *v, const et_comparison *t)
{
    const et_tensor_info *info = et_tensor_file_find(&v->file, t->name);
    const et_assignment *a = v->step.c.layer == ET_MOE ? &v->step.assignment : NULL;
    out[0] = '\0';
    if (info && t->count > 0) et_describe_element(out, room, info, t->worst, a);
}

static void describe_failure(char *out, size_t room, const integrity *v, const et_comparison *t)
{
    char place[192];
    if (t->problem) {
        const char *what = strcmp(t->problem, "shape") == 0  ? "has the wrong shape"
                           : strcmp(t->problem, "type") == 0 ? "has the wrong type"
                                                             : "does not belong to its case";
        snprintf(out, room, "%s", what);
        return;
    }
    describe_worst(place, sizeof place, v, t);
    snprintf(out, room, "%zu of %zu elements differ; worst at %s: stored %.17g, recomputed %.17g",
             t->different, t->count, place, t->stored, t->recomputed);
}

/* The line that ends the report. */
static void verdict_line(char *out, size_t room, const integrity *v)
{
    char failure[512], others[48] = "";
    if (v->count == 0) {
        snprintf(out, room, "INCONCLUSIVE %s: holds inputs only, nothing to compare", v->path);
    } else if (v->failed > 0) {
        describe_failure(failure, sizeof failure, v, v->worst);
        if (v->failed > 1)
            snprintf(others, sizeof others, " (and %zu more tensors)", v->failed - 1);
        snprintf(out, room, "FAIL %s: %s: %s%s", v->path, v->worst->name, failure, others);
    } else if (v->worst && v->worst->max_error > 0) {
        snprintf(out, room,
                 "PASS %s: %zu tensors, largest error %.2g of its tensor's largest element",
                 v->path, v->count, relative_error(v->worst));
    } else {
        snprintf(out, room, "PASS %s: %zu tensors, all identical", v->path, v->count);
    }
}

/* ---- computing ---- */

static void judge(integrity *v)
{
    for (size_t i = 0; i < v->count; i++) {
        const et_comparison *t = &v->tensors[i];
        bool larger = v->worst == NULL || relative_error(t) > relative_error(v->worst);
        if (!t->pass ? v->failed == 0 : v->failed == 0 && larger) v->worst = t;
        if (!t->pass) v->failed++;
    }
}

/* Which precision computed the bundle: our own producers name it; others count as double. */
static const char *bundle_precision(const et_tensor_file *file)
{
    const char *producer = et_tensor_file_metadata(file, "producer");
    bool ours = producer && strncmp(producer, "etref", 5) == 0;
    return ours && strstr(producer, "f32") ? "f32" : "f64";
}

static et_status check_precision(const et_tensor_file *file, et_error *error)
{
    const char *precision = bundle_precision(file);
    if (strcmp(precision, ET_REAL_NAME) == 0) return ET_OK;
    return et_fail(error, ET_EINVAL,
                   "%s: computed in %s, but this etref computes in %s: verify it with a build of "
                   "PRECISION=%s",
                   file->path, precision, ET_REAL_NAME, precision);
}

et_status refuse_emulated(const et_tensor_file *file, et_error *error)
{
    const char *profile = et_tensor_file_metadata(file, "emulates");
    if (profile == NULL) return ET_OK;
    return et_fail(error, ET_EINVAL,
                   "%s: what a kernel of profile %.40s would compute, no golden: judge it with "
                   "'etref verify GOLDEN %s'",
                   file->path, profile, file->path);
}

static et_status compute(integrity *v, const verify_options *o, et_error *error)
{
    et_status status = et_bundle_open(&v->file, &v->step, o->golden, memory_limit(), error);
    if (status != ET_OK) return status;
    use_threads_for(o->threads, et_case_work(&v->step.c));
    status = refuse_emulated(&v->file, error);
    if (status == ET_OK) status = check_precision(&v->file, error);
    if (status == ET_OK)
        status = et_step_run(&v->step, o->engine < 0 ? ET_PLAIN : (et_engine)o->engine,
                             progress_show, (void *)o->golden, error);
    if (status == ET_OK) status = et_step_check_values(&v->step, error);
    if (status == ET_OK)
        status = et_bundle_compare(&v->tensors, &v->count, &v->file, &v->step, error);
    progress_clear();
    if (status == ET_OK) judge(v);
    return status;
}

static void integrity_free(integrity *v)
{
    free(v->tensors);
    et_step_free(&v->step);
    et_tensor_file_close(&v->file);
}

/* ---- reports ---- */

static void add_text_row(et_table *table, const integrity *v, const et_comparison *t)
{
    char place[192] = "";
    et_table_cell(table, "%s", t->name);
    if (t->problem) {
        for (int i = 0; i < 4; i++) et_table_cell(table, "-");
        et_table_cell(table, "FAIL");
        et_table_cell(table, "%s", t->problem);
        return;
    }
    et_table_cell(table, "%zu", t->count);
    et_table_cell(table, "%.4g", t->largest);
    et_table_cell(table, "%.3g", t->max_error);
    et_table_cell(table, "%.3g", relative_error(t));
    et_table_cell(table, "%s", t->pass ? (t->different ? "pass" : "identical") : "FAIL");
    if (t->different) describe_worst(place, sizeof place, v, t);
    et_table_cell(table, "%s", place);
}

static void report_table(const integrity *v)
{
    char sentence[512], idle[256];
    et_table table;
    et_describe_case(sentence, sizeof sentence, &v->step.c);
    printf("%s\n", v->step.c.name);
    print_wrapped(2, sentence);
    if (describe_idle(idle, sizeof idle, &v->step)) print_wrapped(2, idle);
    putchar('\n');
    et_table_begin(&table, "lrrrrll");
    static const char *const heads[] = {"tensor",        "elements", "largest", "error",
                                        "error/largest", "verdict",  "worst at"};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) et_table_cell(&table, "%s", heads[i]);
    for (size_t i = 0; i < v->count; i++) add_text_row(&table, v, &v->tensors[i]);
    table_print(&table);
    putchar('\n');
}

static json_t *tensor_json(const integrity *v, const et_comparison *t)
{
    char place[192];
    json_t *row = json_object();
    json_object_set_new(row, "name", et_json_clean(t->name));
    json_object_set_new(row, "pass", json_boolean(t->pass));
    if (t->problem) {
        json_object_set_new(row, "problem", json_string(t->problem));
        return row;
    }
    describe_worst(place, sizeof place, v, t);
    json_object_set_new(row, "elements", json_integer((json_int_t)t->count));
    json_object_set_new(row, "exact_required", json_boolean(t->exact_required));
    json_object_set_new(row, "different", json_integer((json_int_t)t->different));
    json_object_set_new(row, "largest", et_json_number(t->largest));
    json_object_set_new(row, "error", et_json_number(t->max_error));
    json_object_set_new(row, "relative_error", et_json_number(relative_error(t)));
    json_object_set_new(row, "worst_index", json_integer((json_int_t)t->worst));
    json_object_set_new(row, "worst_at", json_string(place));
    json_object_set_new(row, "stored", et_json_number(t->stored));
    json_object_set_new(row, "recomputed", et_json_number(t->recomputed));
    return row;
}

static void report_json_object(const integrity *v, const verify_options *o, const char *line)
{
    const char *producer = et_tensor_file_metadata(&v->file, "producer");
    json_t *report = json_object(), *rows = json_array();
    char idle[256];
    json_object_set_new(report, "schema", json_string("etref-integrity-1"));
    json_object_set_new(report, "name", o->name ? et_json_clean(o->name) : json_null());
    json_object_set_new(report, "file", et_json_clean(v->path));
    json_object_set_new(report, "case", et_json_clean(v->step.c.name));
    json_object_set_new(report, "producer", et_json_clean(producer ? producer : ""));
    json_object_set_new(report, "verdict",
                        json_string(v->count == 0 ? "inconclusive"
                                    : v->failed   ? "fail"
                                                  : "pass"));
    json_object_set_new(report, "message", et_json_clean(line));
    json_object_set_new(report, "idle", describe_idle(idle, sizeof idle, &v->step) ? json_string(idle) : json_null());
    for (size_t i = 0; i < v->count; i++)
        json_array_append_new(rows, tensor_json(v, &v->tensors[i]));
    json_object_set_new(report, "tensors", rows);
    json_print(report);
}

static void report_junit_rows(const integrity *v, const verify_options *o, const char *line)
{
    junit rows = {0};
    char failure[512], suite[320];
    name_suite(suite, sizeof suite, o, "integrity", v->step.c.name);
    result_begins();
    for (size_t i = 0; i < v->count; i++) {
        const et_comparison *t = &v->tensors[i];
        describe_failure(failure, sizeof failure, v, t);
        junit_add(&rows, t->name, t->pass ? JUNIT_PASS : JUNIT_FAILURE, failure, NULL);
    }
    if (v->count == 0) junit_add(&rows, "verdict", JUNIT_ERROR, line, NULL);
    junit_print(&rows, suite);
}

static int report(const integrity *v, const verify_options *o)
{
    char line[1024];
    verdict_line(line, sizeof line, v);
    if (o->format == FORMAT_JSON) {
        report_json_object(v, o, line);
    } else if (o->format == FORMAT_JUNIT) {
        report_junit_rows(v, o, line);
    } else {
        if (!o->quiet) report_table(v);
        print_last_line(o, line);
    }
    if (v->count == 0) return STATUS_INCONCLUSIVE;
    if (v->failed == 0) return STATUS_PASS;
    if (o->format != FORMAT_TEXT) log_last_line(o, line);
    return STATUS_MISMATCH;
}

int verify_integrity(const verify_options *o)
{
    et_error error = {0};
    integrity v = {.path = shown_name(o->golden)};
    et_status status = compute(&v, o, &error);
    name_standard_input(error.text, sizeof error.text);
    int result = status == ET_OK ? report(&v, o) : fail_status(status, &error);
    integrity_free(&v);
    return result;
}
