/* judge.c: a verdict from arrays in memory to a report. See etref/golden.h. */
#include "etref/candidate.h"
#include "etref/report.h"
#include "ref/base/float_environment.h"
#include "ref/base/memory.h"
#include "ref/interface/handle.h"
#include "ref/diagnose/explain.h"
#include "ref/format/json.h"
#include "ref/report/page.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One call of et_judge, and what it owns. */
typedef struct request {
    et_golden *g;
    json_t *options; /* an object, or NULL */
    et_profile profile;
    const char **require; /* point into options */
    et_verify_options how;
    et_candidate candidate;
    et_verdict verdict;
    et_assignment routing; /* the candidate's own, if it shows one */
} request;

static void end_request(request *r)
{
    et_assignment_free(&r->routing);
    et_verdict_free(&r->verdict);
    et_candidate_free(&r->candidate);
    free(r->require);
    json_decref(r->options);
}

/* ---- options ---- */

static et_status refuse(const char *name, const char *allowed, et_error *error)
{
    return et_fail(error, ET_EINVAL, "option '%.40s': %s", name, allowed);
}

static et_status take_profile(request *r, json_t *value, et_error *error)
{
    char *text = NULL;
    if (json_is_null(value)) return ET_OK;
    if (!json_is_string(value) && !json_is_object(value))
        return refuse("profile", "a name or an object belongs there", error);
    if (json_is_object(value) && (text = json_dumps(value, 0)) == NULL)
        return et_json_no_memory("options", "the profile", error);
    et_status status =
        et_profile_of_words(&r->profile, text ? text : json_string_value(value), error);
    free(text);
    r->how.profile = &r->profile;
    return status;
}

static et_status take_require(request *r, json_t *value, et_error *error)
{
    void *room;
    size_t count = json_array_size(value);
    if (!json_is_array(value)) return refuse("require", "an array of names belongs there", error);
    et_status status = et_allocate(&room, count, sizeof *r->require, "names", error);
    if (status != ET_OK) return status;
    r->require = room;
    for (size_t i = 0; i < count; i++) {
        r->require[i] = json_string_value(json_array_get(value, i));
        if (!r->require[i]) return refuse("require", "an array of names belongs there", error);
    }
    r->how.require = r->require;
    r->how.require_count = count;
    return ET_OK;
}

static et_status take_ties(request *r, json_t *value, et_error *error)
{
    const char *word = json_is_string(value) ? json_string_value(value) : "";
    r->how.ties_any = strcmp(word, "any") == 0;
    if (r->how.ties_any || strcmp(word, "rule") == 0) return ET_OK;
    return refuse("ties", "\"rule\" or \"any\" belongs there", error);
}

static et_status take_explain(request *r, json_t *value, et_error *error)
{
    if (!json_is_boolean(value)) return refuse("explain", "true or false belongs there", error);
    r->how.explain = json_is_true(value);
    return ET_OK;
}

static et_status take_seconds(request *r, json_t *value, et_error *error)
{
    if (!json_is_number(value)) return refuse("explain_seconds", "a number belongs there", error);
    r->how.explain_seconds = json_number_value(value);
    return ET_OK;
}

static et_status take_options(request *r, const char *text, et_error *error)
{
    static const struct {
        const char *name;
        et_status (*take)(request *r, json_t *value, et_error *error);
    } rows[] = {{"profile", take_profile},
                {"require", take_require},
                {"ties", take_ties},
                {"explain", take_explain},
                {"explain_seconds", take_seconds}};
    enum { ROWS = sizeof rows / sizeof *rows, MOST = 1 << 20 };
    const char *name;
    json_t *value;
    r->how = (et_verify_options){.explain = true, .explain_seconds = 10};
    if (text == NULL) return ET_OK;
    et_status status =
        et_json_read(&r->options, text, strlen(text), MOST, "options", "the options", error);
    if (status == ET_OK && !json_is_object(r->options))
        status = et_fail(error, ET_EINVAL, "options: an object belongs there");
    if (status != ET_OK) return status;
    json_object_foreach(r->options, name, value)
    {
        size_t i = 0;
        while (i < ROWS && strcmp(rows[i].name, name) != 0) i++;
        if (i == ROWS)
            return refuse(name, "there are profile, require, ties, explain, explain_seconds",
                          error);
        status = rows[i].take(r, value, error);
        if (status != ET_OK) return status;
    }
    return ET_OK;
}

/* ---- the verdict ---- */

static bool is_of_layer(const char *name)
{
    return strncmp(name, "fwd.", 4) == 0 || strncmp(name, "bwd.", 4) == 0;
}

static bool is_copied(const et_golden *g, const et_tensor_out *t)
{
    const et_tensor_out own = et_tensor_view(&g->step, et_tensor_find(t->name));
    return t->dtype == ET_F64 && own.source == t->source && et_same_shape(t, &own) &&
           memcmp(t->values, own.values, et_tensor_count(t) * sizeof(double)) == 0;
}

/* A pass that every value of the layer owes to the golden itself proves nothing. Where a profile is
 * coarser than 64 bits the verdict sees by itself that nothing was rounded. Values that must be
 * exact are no sign of a copy. */
static void look_for_copy(request *r)
{
    et_verdict *v = &r->verdict;
    size_t copies = 0;
    for (size_t i = 0; v->outcome == ET_PASS && i < v->tensor_count; i++) {
        const et_tensor_verdict *t = &v->tensors[i];
        if (!is_of_layer(t->name) || t->judged == t->exact) continue;
        if (!is_copied(r->g, et_tensor_named(r->candidate.tensors, r->candidate.count, t->name)))
            return;
        copies++;
    }
    if (copies == 0) return;
    v->outcome = ET_INCONCLUSIVE;
    v->note[0] = '\0';
    snprintf(v->line, sizeof v->line,
             "INCONCLUSIVE: the candidate is the golden itself: every value is its own");
}

static et_status judge(request *r, const et_array *arrays, size_t count, et_error *error)
{
    et_golden *g = r->g;
    size_t left = g->max_bytes;
    const et_aside aside = {.shelf = &g->shelf, .explain = et_explain};
    et_status status = et_golden_run_locked(g, error);
    if (left > 0) left = left > g->step.bytes ? left - g->step.bytes : 1;
    if (status == ET_OK)
        status = et_candidate_take(&r->candidate, arrays, count, &g->step, left, error);
    r->how.max_bytes = left;
    if (status == ET_OK)
        status = et_verify_with(&r->verdict, &g->step, r->candidate.tensors, r->candidate.count,
                                &r->how, &aside, error);
    if (status != ET_OK) return status;
    look_for_copy(r);
    if (r->verdict.routing.mask == NULL) return ET_OK;
    return et_assignment_build(&r->routing, g->step.c.tokens, g->step.c.experts,
                               r->verdict.routing.mask, error);
}

/* ---- the report ---- */

static et_status add_line(char **text, const char *line, et_error *error)
{
    et_page page = {0};
    et_page_add(&page, "%s", *text);
    et_page_clean(&page, line);
    et_page_add(&page, "\n");
    free(*text);
    *text = et_page_take(&page);
    return *text ? ET_OK : et_fail(error, ET_ENOMEM, "the report: no memory");
}

static et_status report(const request *asked, char **json, char **text, et_error *error)
{
    const et_golden *g = asked->g;
    const et_report r = {.golden = &g->step,
                         .candidate = asked->candidate.tensors,
                         .count = asked->candidate.count,
                         .verdict = &asked->verdict,
                         .routing = asked->verdict.routing.mask ? &asked->routing : NULL,
                         .golden_name = g->path,
                         .explained = asked->how.explain,
                         .all = true,
                         .inputs = asked->candidate.inputs,
                         .ignored = asked->candidate.ignored};
    et_status status = et_report_json(json, &r, error);
    if (status == ET_OK && text) status = et_report_text(text, &r, error);
    if (status == ET_OK && text) status = add_line(text, asked->verdict.line, error);
    return status;
}

et_status et_judge(et_golden *g, const et_array *arrays, size_t count, const char *options,
                   char **json, char **text, et_error *error)
{
    ET_ARITHMETIC;
    request r = {.g = g};
    char *found = NULL, *words = NULL;
    et_golden_lock(g);
    et_status status = take_options(&r, options, error);
    if (status == ET_OK && arrays == NULL && count > 0)
        status = et_fail(error, ET_EINVAL, "et_judge: arrays is NULL, of %zu", count);
    if (status == ET_OK) status = judge(&r, arrays, count, error);
    if (status == ET_OK) status = report(&r, &found, text ? &words : NULL, error);
    end_request(&r);
    et_golden_unlock(g);
    if (status == ET_OK) {
        *json = found;
        if (text) *text = words;
    } else {
        free(found);
        free(words);
    }
    return status;
}
