/* report_json.c: a verdict for programs. See etref/report.h. */
#include "ref/report/json_out.h"
#include "ref/report/report_words.h"

static void put_count(json_t **object, const char *key, size_t value)
{
    et_json_put(object, key, json_integer((json_int_t)value));
}

static json_t *group_json(const et_group *g)
{
    if (g->kind == NULL) return json_null();
    json_t *object = json_object();
    et_json_put(&object, "kind", json_string(g->kind));
    et_json_put(&object, "part", g->part ? json_string(g->part) : json_null());
    put_count(&object, "index", g->index);
    put_count(&object, "column", g->column);
    put_count(&object, "elements", g->elements);
    et_json_put(&object, "slope", et_json_number(g->slope));
    et_json_put(&object, "slope_sigma", et_json_number(g->slope_sigma));
    et_json_put(&object, "slope_limit", et_json_number(g->slope_limit));
    et_json_put(&object, "spread", et_json_number(g->spread));
    et_json_put(&object, "spread_limit", et_json_number(g->spread_limit));
    et_json_put(&object, "deviations", et_json_number(g->deviations));
    et_json_put(&object, "pass", json_boolean(g->pass));
    return object;
}

static json_t *tensor_json(const et_report *r, const et_tensor_verdict *t)
{
    char place[320];
    json_t *row = json_object();
    et_report_place(place, sizeof place, r, t->name, t->worst);
    et_json_put(&row, "name", json_string(t->name));
    et_json_put(&row, "outcome", json_string(et_outcome_name(t->outcome)));
    et_json_put(&row, "reason", et_json_clean(t->reason));
    et_json_put(&row, "type", json_string(et_dtype_name(t->dtype)));
    put_count(&row, "elements", t->elements);
    put_count(&row, "judged", t->judged);
    put_count(&row, "failed", t->failed);
    put_count(&row, "exact", t->exact);
    et_json_put(&row, "largest_error", et_json_number(t->largest_error));
    et_json_put(&row, "largest_ulps", et_json_number(t->largest_ulps));
    et_json_put(&row, "largest_sigmas", et_json_number(t->largest_sigmas));
    et_json_put(&row, "limit_sigmas", et_json_number(t->limit_sigmas));
    put_count(&row, "worst", t->worst);
    et_json_put(&row, "worst_at", json_string(place));
    et_json_put(&row, "got", et_json_number(t->got));
    et_json_put(&row, "want", et_json_number(t->want));
    et_json_put(&row, "bar", et_json_number(t->bar));
    et_json_put(&row, "effective_sample", et_json_number(t->effective_sample));
    et_json_put(&row, "whole", group_json(&t->whole));
    et_json_put(&row, "worst_group", group_json(&t->worst_group));
    return row;
}

static json_t *routing_json(const et_report *report)
{
    const et_routing_verdict *r = &report->verdict->routing;
    if (!et_report_is_routed(report)) return json_null();
    json_t *object = json_object();
    et_json_put(&object, "outcome", json_string(et_outcome_name(r->outcome)));
    et_json_put(&object, "reason", et_json_clean(r->reason));
    et_json_put(&object, "shown", json_boolean(r->shown));
    put_count(&object, "decisions", r->decisions);
    put_count(&object, "open", r->open);
    put_count(&object, "differing", r->differing);
    put_count(&object, "illegal", r->illegal);
    put_count(&object, "token", r->token);
    put_count(&object, "expert", r->expert);
    return object;
}

static json_t *explanations_json(const et_verdict *v)
{
    json_t *rows = json_array();
    for (size_t i = 0; i < v->explanation_count; i++) {
        const et_explanation *e = &v->explanations[i];
        json_t *row = json_object();
        et_json_put(&row, "name", json_string(e->name));
        et_json_put(&row, "sentence", json_string(e->sentence));
        et_json_put(&row, "scope", et_json_clean(e->scope));
        et_json_put(&row, "explains", json_string(e->explains));
        et_json_append(&rows, row);
    }
    return rows;
}

static json_t *word_json(const char *word)
{
    return word ? et_json_clean(word) : json_null();
}

et_status et_report_json(char **text, const et_report *r, et_error *error)
{
    const et_verdict *v = r->verdict;
    json_t *report = json_object(), *rows = json_array(), *missing = json_array();
    et_json_put(&report, "schema", json_string("etref-verdict-1"));
    et_json_put(&report, "name", word_json(r->name));
    et_json_put(&report, "golden", word_json(r->golden_name));
    et_json_put(&report, "candidate", word_json(r->candidate_name));
    et_json_put(&report, "same_file", json_boolean(r->same_file));
    et_json_put(&report, "case", json_string(r->golden->c.name));
    et_json_put(&report, "verdict", json_string(et_outcome_name(v->outcome)));
    et_json_put(&report, "message", et_json_clean(v->line));
    et_json_put(&report, "profile", et_profile_json(&v->profile));
    et_json_put(&report, "default_profile", json_boolean(v->chosen_from[0] != '\0'));
    et_json_put(&report, "profile_chosen_from", et_json_clean(v->chosen_from));
    et_json_put(&report, "note", et_json_clean(v->note));
    et_json_put(&report, "idle", word_json(r->idle));
    et_json_put(&report, "routing", routing_json(r));
    for (size_t i = 0; i < v->tensor_count; i++)
        et_json_append(&rows, tensor_json(r, &v->tensors[i]));
    et_json_put(&report, "tensors", rows);
    for (size_t i = 0; i < v->missing_count; i++) et_json_append(&missing, json_string(v->missing[i]));
    et_json_put(&report, "missing", missing);
    et_json_put(&report, "passes_under", word_json(v->passes_under));
    et_json_put(&report, "explanations", explanations_json(v));
    et_json_put(&report, "residual", et_json_clean(v->residual));
    et_json_put(&report, "search", et_json_clean(v->search));
    et_json_put(&report, "command", word_json(r->command));
    *text = et_json_text(report);
    return *text ? ET_OK : et_fail(error, ET_ENOMEM, "the report: no memory");
}
