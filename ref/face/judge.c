/* judge.c: a verdict from arrays in memory to a report. See etref/golden.h. */
#include "etref/candidate.h"
#include "etref/report.h"
#include "ref/base/arithmetic.h"
#include "ref/base/memory.h"
#include "ref/face/handle.h"
#include "ref/oracle/json.h"
#include "ref/report/page.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One call of et_judge, and what it owns. */
typedef struct hearing {
    et_golden *g;
    json_t *options; /* an object, or NULL */
    et_profile profile;
    const char **require; /* point into options */
    et_verify_options how;
    et_candidate candidate;
    et_verdict verdict;
    et_assignment routing; /* the candidate's own, if it shows one */
} hearing;

static void end_hearing(hearing *h)
{
    et_assignment_free(&h->routing);
    et_verdict_free(&h->verdict);
    et_candidate_free(&h->candidate);
    free(h->require);
    json_decref(h->options);
}

/* ---- options ---- */

static et_status refuse(const char *name, const char *allowed, et_error *error)
{
    return et_fail(error, ET_EINVAL, "option '%.40s': %s", name, allowed);
}

static et_status take_profile(hearing *h, json_t *value, et_error *error)
{
    char *text = NULL;
    if (json_is_null(value)) return ET_OK;
    if (!json_is_string(value) && !json_is_object(value))
        return refuse("profile", "a name or an object belongs there", error);
    if (json_is_object(value) && (text = json_dumps(value, 0)) == NULL)
        return et_json_no_memory("options", "the profile", error);
    et_status status =
        et_profile_of_words(&h->profile, text ? text : json_string_value(value), error);
    free(text);
    h->how.profile = &h->profile;
    return status;
}

static et_status take_require(hearing *h, json_t *value, et_error *error)
{
    void *room;
    size_t count = json_array_size(value);
    if (!json_is_array(value)) return refuse("require", "an array of names belongs there", error);
    et_status status = et_allocate(&room, count, sizeof *h->require, "names", error);
    if (status != ET_OK) return status;
    h->require = room;
    for (size_t i = 0; i < count; i++) {
        h->require[i] = json_string_value(json_array_get(value, i));
        if (!h->require[i]) return refuse("require", "an array of names belongs there", error);
    }
    h->how.require = h->require;
    h->how.require_count = count;
    return ET_OK;
}

static et_status take_ties(hearing *h, json_t *value, et_error *error)
{
    const char *word = json_is_string(value) ? json_string_value(value) : "";
    h->how.ties_any = strcmp(word, "any") == 0;
    if (h->how.ties_any || strcmp(word, "rule") == 0) return ET_OK;
    return refuse("ties", "\"rule\" or \"any\" belongs there", error);
}

static et_status take_explain(hearing *h, json_t *value, et_error *error)
{
    if (!json_is_boolean(value)) return refuse("explain", "true or false belongs there", error);
    h->how.explain = json_is_true(value);
    return ET_OK;
}

static et_status take_seconds(hearing *h, json_t *value, et_error *error)
{
    if (!json_is_number(value)) return refuse("explain_seconds", "a number belongs there", error);
    h->how.explain_seconds = json_number_value(value);
    return ET_OK;
}

static et_status take_options(hearing *h, const char *text, et_error *error)
{
    static const struct {
        const char *name;
        et_status (*take)(hearing *h, json_t *value, et_error *error);
    } rows[] = {{"profile", take_profile},
                {"require", take_require},
                {"ties", take_ties},
                {"explain", take_explain},
                {"explain_seconds", take_seconds}};
    enum { ROWS = sizeof rows / sizeof *rows, MOST = 1 << 20 };
    const char *name;
    json_t *value;
    h->how = (et_verify_options){.explain = true, .explain_seconds = 10};
    if (text == NULL) return ET_OK;
    et_status status =
        et_json_read(&h->options, text, strlen(text), MOST, "options", "the options", error);
    if (status == ET_OK && !json_is_object(h->options))
        status = et_fail(error, ET_EINVAL, "options: an object belongs there");
    if (status != ET_OK) return status;
    json_object_foreach(h->options, name, value)
    {
        size_t i = 0;
        while (i < ROWS && strcmp(rows[i].name, name) != 0) i++;
        if (i == ROWS)
            return refuse(name, "there are profile, require, ties, explain, explain_seconds",
                          error);
        status = rows[i].take(h, value, error);
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
static void look_for_copy(hearing *h)
{
    et_verdict *v = &h->verdict;
    size_t copies = 0;
    for (size_t i = 0; v->outcome == ET_PASS && i < v->tensor_count; i++) {
        const et_tensor_verdict *t = &v->tensors[i];
        if (!is_of_layer(t->name) || t->judged == t->exact) continue;
        if (!is_copied(h->g, et_tensor_named(h->candidate.tensors, h->candidate.count, t->name)))
            return;
        copies++;
    }
    if (copies == 0) return;
    v->outcome = ET_INCONCLUSIVE;
    v->note[0] = '\0';
    snprintf(v->line, sizeof v->line,
             "INCONCLUSIVE: the candidate is the golden itself: every value is its own");
}

static et_status judge(hearing *h, const et_array *arrays, size_t count, et_error *error)
{
    et_golden *g = h->g;
    size_t left = g->max_bytes;
    et_status status = et_golden_run_locked(g, error);
    if (left > 0) left = left > g->step.bytes ? left - g->step.bytes : 1;
    if (status == ET_OK)
        status = et_candidate_take(&h->candidate, arrays, count, &g->step, left, error);
    h->how.max_bytes = left;
    if (status == ET_OK)
        status = et_verify_with(&h->verdict, &g->step, &g->shelf, h->candidate.tensors,
                                h->candidate.count, &h->how, NULL, NULL, error);
    if (status != ET_OK) return status;
    look_for_copy(h);
    if (h->verdict.routing.mask == NULL) return ET_OK;
    return et_assignment_build(&h->routing, g->step.c.tokens, g->step.c.experts,
                               h->verdict.routing.mask, error);
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

static et_status report(const hearing *h, char **json, char **text, et_error *error)
{
    const et_golden *g = h->g;
    const et_report r = {.golden = &g->step,
                         .candidate = h->candidate.tensors,
                         .count = h->candidate.count,
                         .verdict = &h->verdict,
                         .routing = h->verdict.routing.mask ? &h->routing : NULL,
                         .golden_name = g->path,
                         .explained = h->how.explain,
                         .inputs = h->candidate.inputs,
                         .ignored = h->candidate.ignored};
    et_status status = et_report_json(json, &r, error);
    if (status == ET_OK && text) status = et_report_text(text, &r, error);
    if (status == ET_OK && text) status = add_line(text, h->verdict.line, error);
    return status;
}

et_status et_judge(et_golden *g, const et_array *arrays, size_t count, const char *options,
                   char **json, char **text, et_error *error)
{
    ET_ARITHMETIC;
    hearing h = {.g = g};
    char *found = NULL, *words = NULL;
    pthread_mutex_lock(&g->lock);
    et_status status = take_options(&h, options, error);
    if (status == ET_OK) status = judge(&h, arrays, count, error);
    if (status == ET_OK) status = report(&h, &found, text ? &words : NULL, error);
    end_hearing(&h);
    pthread_mutex_unlock(&g->lock);
    if (status == ET_OK) {
        *json = found;
        if (text) *text = words;
    } else {
        free(found);
        free(words);
    }
    return status;
}
