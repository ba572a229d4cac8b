/* report_words.c: the places, values and groups of a verdict in words. See etref/report.h. */
#include "ref/report/report_words.h"
#include "ref/report/describe_case.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

bool et_report_is_routed(const et_report *r)
{
    return r->golden->c.layer == ET_MOE;
}

const et_assignment *et_report_slots(const et_report *r)
{
    return r->routing ? r->routing : &r->golden->assignment;
}

static const et_tensor_out *tensor_named(const et_report *r, const char *name)
{
    for (size_t i = 0; i < r->count; i++)
        if (strcmp(r->candidate[i].name, name) == 0) return &r->candidate[i];
    return NULL;
}

/* "; token 3 is on experts 1, 4": for a tensor whose first index is a token. */
static void append_experts(char *out, size_t room, const et_report *r, size_t token)
{
    const et_assignment *a = et_report_slots(r);
    if (!et_report_is_routed(r) || token >= a->tokens) return;
    int32_t first = a->token_offsets[token], end = a->token_offsets[token + 1];
    et_append(out, room, "; token %zu is on %s", token,
              first == end       ? "no expert"
              : end - first == 1 ? "expert"
                                 : "experts");
    for (int32_t i = first; i < end && i < first + 8; i++)
        et_append(out, room, "%s %d", i == first ? "" : ",",
                  (int)a->slot_expert[a->token_slots[i]]);
    if (end - first > 8) et_append(out, room, ", ...");
}

/* "[3,5] (token 3, column 5; token 3 is on expert 1)" */
void et_report_place(char *out, size_t room, const et_report *r, const char *name, size_t index)
{
    char place[96], words[192];
    const et_tensor_out *t = tensor_named(r, name);
    const et_tensor_doc *doc = et_tensor_doc_find(name);
    out[0] = '\0';
    if (t == NULL || doc == NULL) return;
    et_tensor_info info = {.name = (char *)name, .dtype = t->dtype, .rank = t->rank, .count = 1};
    for (size_t i = 0; i < t->rank; i++) info.count *= info.shape[i] = t->shape[i];
    if (index >= info.count) return;
    et_describe_place(place, sizeof place, &info, index);
    et_describe_element(words, sizeof words, &info, index,
                        et_report_is_routed(r) ? et_report_slots(r) : NULL);
    et_append(out, room, "%s (%s", place, words);
    bool tokens = strncmp(doc->shape, "[N,", 3) == 0 || strcmp(doc->shape, "[N]") == 0;
    size_t width = tokens && info.shape[0] ? info.count / info.shape[0] : 0;
    if (width > 0) append_experts(out, room, r, index / width);
    et_append(out, room, ")");
}

/* With as many digits as tell two values of the type apart. */
static void append_value(char *out, size_t room, double value, et_dtype dtype)
{
    if (isnan(value)) /* whatever its sign bit says */
        et_append(out, room, "nan");
    else
        et_append(out, room, "%.*g", dtype == ET_F64 ? 17 : 9, value);
}

void et_report_routing(char *out, size_t room, const et_report *report)
{
    const et_routing_verdict *r = &report->verdict->routing;
    out[0] = '\0';
    if (!et_report_is_routed(report)) {
        et_append(out, room, "none, layer %s", et_rule_name(&report->golden->c));
        return;
    }
    et_append(out, room, "%s; %zu decisions, %zu open under the profile",
              r->shown ? "shown by the candidate" : "not shown by the candidate", r->decisions,
              r->open);
    if (r->shown)
        et_append(out, room, "; %zu decided differently, %zu illegally", r->differing, r->illegal);
    et_append(out, room, ": %s", et_outcome_name(r->outcome));
    if (r->outcome == ET_MISMATCH && r->illegal > 0)
        et_append(out, room, " (first at token %zu, expert %zu)", r->token, r->expert);
    if (r->outcome != ET_PASS && r->reason[0]) et_append(out, room, ": %s", r->reason);
}

void et_report_worst(char *out, size_t room, const et_report *r, const et_tensor_verdict *t)
{
    char place[320];
    out[0] = '\0';
    if (t->judged == 0) return;
    et_report_place(place, sizeof place, r, t->name, t->worst);
    et_append(out, room, "%s: got ", place);
    append_value(out, room, t->got, t->dtype);
    et_append(out, room, ", want ");
    append_value(out, room, t->want, t->dtype);
    et_append(out, room, ", bar %.3g", t->bar);
}

void et_report_group(char *out, size_t room, const et_group *g)
{
    et_group_print(g, out, room);
    et_append(out, room, " (%zu elements): slope %+.3g +- %.2g (limit %.3g)", g->elements, g->slope,
              g->slope_sigma, g->slope_limit);
    if (g->spread_limit > 0)
        et_append(out, room, ", spread %.4g (limit %.4g)", g->spread, g->spread_limit);
}
