/* report.c: a verdict for people, for programs and for CI systems. See verify.h.
 *
 * What a number means stands in etref/verify.h, field by field; here it only gets its words.
 */
#include "tools/etref/commands.h"
#include "tools/etref/describe.h"
#include "tools/etref/junit.h"
#include "tools/etref/profiles.h"
#include "tools/etref/terminal.h"
#include "tools/etref/verify.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- words ---- */

static bool is_routed(const judgement *j)
{
    return j->golden.c.layer == ET_MOE;
}

/* "; token 3 is on experts 1, 4": for a tensor whose first index is a token. */
static void append_experts(char *out, size_t room, const judgement *j, size_t token)
{
    const et_assignment *a = &j->routing;
    if (!is_routed(j) || token >= a->tokens) return;
    int32_t first = a->token_offsets[token], end = a->token_offsets[token + 1];
    append(out, room, "; token %zu is on %s", token,
           first == end       ? "no expert"
           : end - first == 1 ? "expert"
                              : "experts");
    for (int32_t i = first; i < end && i < first + 8; i++)
        append(out, room, "%s %d", i == first ? "" : ",", (int)a->slot_expert[a->token_slots[i]]);
    if (end - first > 8) append(out, room, ", ...");
}

/* "[3,5] (token 3, column 5; token 3 is on expert 1)" */
static void describe_index(char *out, size_t room, const judgement *j, const char *name,
                           size_t index)
{
    char place[96], words[192];
    const et_tensor_out *t = candidate_tensor(j, name);
    const et_tensor_doc *doc = et_tensor_doc_find(name);
    out[0] = '\0';
    if (t == NULL || doc == NULL) return;
    et_tensor_info info = {.name = (char *)name, .dtype = t->dtype, .rank = t->rank, .count = 1};
    for (size_t i = 0; i < t->rank; i++) info.count *= info.shape[i] = t->shape[i];
    if (index >= info.count) return;
    describe_place(place, sizeof place, &info, index);
    describe_element(words, sizeof words, &info, index, is_routed(j) ? &j->routing : NULL);
    append(out, room, "%s (%s", place, words);
    bool tokens = strncmp(doc->shape, "[N,", 3) == 0 || strcmp(doc->shape, "[N]") == 0;
    size_t width = tokens && info.shape[0] ? info.count / info.shape[0] : 0;
    if (width > 0) append_experts(out, room, j, index / width);
    append(out, room, ")");
}

/* With as many digits as tell two values of the type apart. */
static void append_value(char *out, size_t room, double value, et_dtype dtype)
{
    if (isnan(value)) /* whatever its sign bit says */
        append(out, room, "nan");
    else
        append(out, room, "%.*g", dtype == ET_F64 ? 17 : 9, value);
}

static void describe_routing(char *out, size_t room, const judgement *j)
{
    const et_routing_verdict *r = &j->verdict.routing;
    out[0] = '\0';
    if (!is_routed(j)) {
        append(out, room, "none, a dense layer");
        return;
    }
    append(out, room, "%s; %zu decisions, %zu open under the profile",
           r->shown ? "shown by the candidate" : "not shown by the candidate", r->decisions,
           r->open);
    if (r->shown)
        append(out, room, "; %zu decided differently, %zu illegally", r->differing, r->illegal);
    append(out, room, ": %s", et_outcome_name(r->outcome));
    if (r->outcome == ET_MISMATCH && r->illegal > 0)
        append(out, room, " (first at token %zu, expert %zu)", r->token, r->expert);
    if (r->outcome != ET_PASS && r->reason[0]) append(out, room, ": %s", r->reason);
}

static bool is_plain_word(const char *word)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                "-_./=,:+%@";
    return word[0] != '\0' && strspn(word, plain) == strlen(word);
}

/* A word as a shell wants it: in single quotes, where it is not plain. */
static void append_word(char *out, size_t room, const char *word)
{
    if (is_plain_word(word)) {
        append(out, room, " %s", word);
        return;
    }
    append(out, room, " '");
    for (; *word; word++)
        if (*word == '\'')
            append(out, room, "'\\''");
        else
            append(out, room, "%c", *word);
    append(out, room, "'");
}

/* The command line that gives this verdict again, the default profile written out (right behind the
 * command: later there may be a "--"). */
static void describe_command(char *out, size_t room, const judgement *j)
{
    const verify_options *o = j->options;
    snprintf(out, room, "etref");
    append_word(out, room, o->argv[0]);
    if (o->profile == NULL) append(out, room, " --profile %s", j->profile.name);
    for (int i = 1; i < o->argc; i++) append_word(out, room, o->argv[i]);
}

/* ---- text ---- */

static void print_line(const char *head, const char *text)
{
    printf("%-11s", head);
    print_clean(stdout, text);
    putchar('\n');
}

static void print_head(const judgement *j)
{
    char text[1024];
    if (j->options->all) {
        describe_case(text, sizeof text, &j->golden.c);
        printf("%s\n", j->golden.c.name);
        print_wrapped(2, text);
        putchar('\n');
        print_line("golden", j->options->golden);
    }
    print_line("candidate", j->options->candidate);
    if (j->same_file) print_line("", "(this is the golden file itself)");
    if (j->candidate.inputs > 0) {
        snprintf(text, sizeof text, "(its %zu in.* tensors are the golden's)", j->candidate.inputs);
        print_line("", text);
    }
    if (j->candidate.ignored > 0) {
        snprintf(text, sizeof text, "(its %zu noise.* tensors are not judged)",
                 j->candidate.ignored);
        print_line("", text);
    }
    text[0] = '\0';
    describe_profile(text, sizeof text, &j->profile);
    print_line("profile", text);
    if (j->options->all && j->verdict.chosen_from[0]) { /* the last line says it, too */
        snprintf(text, sizeof text, "(chosen: %s)", j->verdict.chosen_from);
        print_line("", text);
    }
    describe_routing(text, sizeof text, j);
    print_line("routing", text);
}

static const char *verdict_word(et_outcome outcome)
{
    static const char *const words[] = {
        [ET_PASS] = "pass", [ET_MISMATCH] = "FAIL", [ET_INCONCLUSIVE] = "inconclusive"};
    return words[outcome];
}

/* A number of ulps or sigmas: two decimals, where they say something. */
static void print_multiple(char *out, size_t room, double value)
{
    if (value > 0 && value < 0.005)
        snprintf(out, room, "<0.01");
    else
        snprintf(out, room, value < 1000 ? "%.2f" : "%.3g", value);
}

/* "4.31 of 7.52"; "exact" where no deviation is allowed. */
static void add_sigmas(text_table *table, const et_tensor_verdict *t)
{
    char value[32];
    print_multiple(value, sizeof value, t->largest_sigmas);
    if (t->exact == t->elements)
        table_cell(table, "%s", t->failed ? "must be exact" : "exact");
    else
        table_cell(table, "%s of %.2f", value, t->limit_sigmas);
}

static void add_tensor_row(text_table *table, const et_tensor_verdict *t)
{
    char ulps[32];
    table_cell(table, "%s", t->name);
    table_cell(table, "%s", et_dtype_name(t->dtype));
    if (t->judged == t->elements)
        table_cell(table, "%zu", t->elements);
    else
        table_cell(table, "%zu of %zu", t->judged, t->elements);
    bool real = et_dtype_significand(t->dtype) > 0;
    table_cell(table, "%.3g", t->largest_error);
    print_multiple(ulps, sizeof ulps, t->largest_ulps);
    table_cell(table, "%s", real ? ulps : "-");
    add_sigmas(table, t);
    bool spread = t->whole.spread_limit > 0, slope = t->whole.slope_limit > 0;
    spread ? table_cell(table, "%.3f", t->whole.spread) : table_cell(table, "-");
    slope ? table_cell(table, "%+.1e +- %.0e", t->whole.slope, t->whole.slope_sigma)
          : table_cell(table, "-");
    table_cell(table, "%s", verdict_word(t->outcome));
}

/* The part of its limit that a tensor's worst element, or group, takes up. */
static double nearness(const et_tensor_verdict *t)
{
    double nearest = t->limit_sigmas > 0 ? t->largest_sigmas / t->limit_sigmas : 0;
    const et_group *g = &t->worst_group;
    if (g->slope_limit > 0) nearest = fmax(nearest, fabs(g->slope) / g->slope_limit);
    if (g->spread_limit > 0) nearest = fmax(nearest, g->spread / g->spread_limit);
    return nearest;
}

/* How many tensors that pass come nearer to their limits. */
static size_t count_nearer(const et_verdict *v, size_t index)
{
    size_t nearer = 0;
    for (size_t i = 0; i < v->tensor_count; i++) {
        if (v->tensors[i].outcome != ET_PASS) continue;
        double own = nearness(&v->tensors[index]), other = nearness(&v->tensors[i]);
        nearer += other > own || (other == own && i < index);
    }
    return nearer;
}

enum { NEAREST = 3 };

/* What failed, and of what passed the three that came nearest to their limits; or all. */
static bool is_printed(const judgement *j, size_t index)
{
    const et_tensor_verdict *t = &j->verdict.tensors[index];
    return j->options->all || t->outcome == ET_MISMATCH ||
           (t->outcome == ET_PASS && count_nearer(&j->verdict, index) < NEAREST);
}

static void print_tensors(const judgement *j)
{
    static const char *const heads[] = {"tensor", "type",   "elements", "largest error", "ulps",
                                        "sigmas", "spread", "slope",    "verdict"};
    text_table table;
    table_begin(&table, "llrrrrrrl");
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) table_cell(&table, "%s", heads[i]);
    for (size_t i = 0; i < j->verdict.tensor_count; i++)
        if (is_printed(j, i)) add_tensor_row(&table, &j->verdict.tensors[i]);
    putchar('\n');
    table_print(&table);
}

/* One line each: the worst element, and the group that failed or came nearest to it. */
static void describe_worst(char *out, size_t room, const judgement *j, const et_tensor_verdict *t)
{
    char place[320];
    out[0] = '\0';
    if (t->judged == 0) return;
    describe_index(place, sizeof place, j, t->name, t->worst);
    append(out, room, "%s: got ", place);
    append_value(out, room, t->got, t->dtype);
    append(out, room, ", want ");
    append_value(out, room, t->want, t->dtype);
    append(out, room, ", bar %.3g", t->bar);
}

static void describe_limits(char *out, size_t room, const et_group *g)
{
    et_group_print(g, out, room);
    append(out, room, " (%zu elements): slope %+.3g +- %.2g (limit %.3g)", g->elements, g->slope,
           g->slope_sigma, g->slope_limit);
    if (g->spread_limit > 0)
        append(out, room, ", spread %.4g (limit %.4g)", g->spread, g->spread_limit);
}

/* others: how many more tensors it is the reason for. */
static void print_reason(const et_tensor_verdict *t, size_t others)
{
    printf("%s %s", verdict_word(t->outcome), t->name);
    if (others > 0) printf(" and %zu more", others);
    fputs(": ", stdout);
    print_clean(stdout, t->reason);
    putchar('\n');
}

static void print_failure(const judgement *j, const et_tensor_verdict *t)
{
    char text[640];
    putchar('\n');
    print_reason(t, 0);
    describe_worst(text, sizeof text, j, t);
    if (text[0] && t->failed > 0) {
        fputs("  worst  ", stdout);
        print_clean(stdout, text);
        putchar('\n');
    }
    const et_group *g = t->whole.kind && !t->whole.pass ? &t->whole : &t->worst_group;
    if (g->kind == NULL || g->pass) return;
    describe_limits(text, sizeof text, g);
    printf("  group  %s\n", text);
}

/* How many of the inconclusive tensors of [first, end) have the reason of `t`. */
static size_t count_alike(const et_verdict *v, size_t first, size_t end, const et_tensor_verdict *t)
{
    size_t count = 0;
    for (size_t i = first; i < end; i++)
        count += v->tensors[i].outcome == ET_INCONCLUSIVE &&
                 strcmp(v->tensors[i].reason, t->reason) == 0;
    return count;
}

/* What could not be judged, a line for each reason; then what failed, in full. */
static void print_failures(const judgement *j)
{
    const et_verdict *v = &j->verdict;
    size_t lines = 0;
    for (size_t i = 0; i < v->tensor_count; i++) {
        const et_tensor_verdict *t = &v->tensors[i];
        if (t->outcome != ET_INCONCLUSIVE || count_alike(v, 0, i, t) > 0) continue;
        if (lines++ == 0) putchar('\n');
        print_reason(t, count_alike(v, i + 1, v->tensor_count, t));
    }
    for (size_t i = 0; i < v->tensor_count; i++)
        if (v->tensors[i].outcome == ET_MISMATCH) print_failure(j, &v->tensors[i]);
}

/* Beside it something else is wrong. */
static bool is_partial(const et_explanation *e)
{
    return strcmp(e->explains, "everything") != 0;
}

static void print_explanation(const judgement *j)
{
    const et_verdict *v = &j->verdict;
    if (v->outcome != ET_MISMATCH || j->options->no_explain) return;
    putchar('\n');
    if (v->passes_under)
        printf("passes under profile %s, and under no tighter one of 'etref list profiles'\n",
               v->passes_under);
    for (size_t i = 0; i < v->explanation_count; i++) {
        const et_explanation *e = &v->explanations[i];
        printf("%s %s: %s (%s)%s%s%s\n", i ? "       or by" : "explained by", e->name, e->sentence,
               e->scope, is_partial(e) ? "; only " : "", is_partial(e) ? e->explains : "",
               is_partial(e) ? " is explained by it" : "");
    }
    if (v->explanation_count == 0 && !v->passes_under)
        puts("explained by no hypothesis of 'etref list hypotheses'");
    if (v->residual[0]) print_wrapped(2, v->residual);
    if (v->search[0]) printf("%s; --explain-limit SECONDS allows more\n", v->search);
}

void report_text(const judgement *j)
{
    char command[4096];
    print_head(j);
    print_tensors(j);
    print_failures(j);
    print_explanation(j);
    if (j->verdict.outcome != ET_PASS) {
        describe_command(command, sizeof command, j);
        fputs("\nagain: ", stdout);
        print_clean(stdout, command);
        putchar('\n');
    }
    putchar('\n');
}

/* ---- JSON ---- */

static void set_count(json_t *object, const char *key, size_t value)
{
    json_object_set_new(object, key, json_integer((json_int_t)value));
}

static json_t *group_json(const et_group *g)
{
    if (g->kind == NULL) return json_null();
    json_t *object = json_object();
    json_object_set_new(object, "kind", json_string(g->kind));
    json_object_set_new(object, "part", g->part ? json_string(g->part) : json_null());
    set_count(object, "index", g->index);
    set_count(object, "column", g->column);
    set_count(object, "elements", g->elements);
    json_object_set_new(object, "slope", json_number(g->slope));
    json_object_set_new(object, "slope_sigma", json_number(g->slope_sigma));
    json_object_set_new(object, "slope_limit", json_number(g->slope_limit));
    json_object_set_new(object, "spread", json_number(g->spread));
    json_object_set_new(object, "spread_limit", json_number(g->spread_limit));
    json_object_set_new(object, "deviations", json_number(g->deviations));
    json_object_set_new(object, "pass", json_boolean(g->pass));
    return object;
}

static json_t *tensor_json(const judgement *j, const et_tensor_verdict *t)
{
    char place[320];
    json_t *row = json_object();
    describe_index(place, sizeof place, j, t->name, t->worst);
    json_object_set_new(row, "name", json_string(t->name));
    json_object_set_new(row, "outcome", json_string(et_outcome_name(t->outcome)));
    json_object_set_new(row, "reason", json_clean(t->reason));
    json_object_set_new(row, "type", json_string(et_dtype_name(t->dtype)));
    set_count(row, "elements", t->elements);
    set_count(row, "judged", t->judged);
    set_count(row, "failed", t->failed);
    set_count(row, "exact", t->exact);
    json_object_set_new(row, "largest_error", json_number(t->largest_error));
    json_object_set_new(row, "largest_ulps", json_number(t->largest_ulps));
    json_object_set_new(row, "largest_sigmas", json_number(t->largest_sigmas));
    json_object_set_new(row, "limit_sigmas", json_number(t->limit_sigmas));
    set_count(row, "worst", t->worst);
    json_object_set_new(row, "worst_at", json_string(place));
    json_object_set_new(row, "got", json_number(t->got));
    json_object_set_new(row, "want", json_number(t->want));
    json_object_set_new(row, "bar", json_number(t->bar));
    json_object_set_new(row, "effective_sample", json_number(t->effective_sample));
    json_object_set_new(row, "whole", group_json(&t->whole));
    json_object_set_new(row, "worst_group", group_json(&t->worst_group));
    return row;
}

static json_t *routing_json(const judgement *j)
{
    const et_routing_verdict *r = &j->verdict.routing;
    if (!is_routed(j)) return json_null();
    json_t *object = json_object();
    json_object_set_new(object, "outcome", json_string(et_outcome_name(r->outcome)));
    json_object_set_new(object, "reason", json_clean(r->reason));
    json_object_set_new(object, "shown", json_boolean(r->shown));
    set_count(object, "decisions", r->decisions);
    set_count(object, "open", r->open);
    set_count(object, "differing", r->differing);
    set_count(object, "illegal", r->illegal);
    set_count(object, "token", r->token);
    set_count(object, "expert", r->expert);
    return object;
}

static json_t *explanations_json(const et_verdict *v)
{
    json_t *rows = json_array();
    for (size_t i = 0; i < v->explanation_count; i++) {
        const et_explanation *e = &v->explanations[i];
        json_t *row = json_object();
        json_object_set_new(row, "name", json_string(e->name));
        json_object_set_new(row, "sentence", json_string(e->sentence));
        json_object_set_new(row, "scope", json_clean(e->scope));
        json_object_set_new(row, "explains", json_string(e->explains));
        json_array_append_new(rows, row);
    }
    return rows;
}

void report_json(const judgement *j)
{
    const et_verdict *v = &j->verdict;
    char command[4096];
    json_t *report = json_object(), *rows = json_array();
    describe_command(command, sizeof command, j);
    json_object_set_new(report, "golden", json_clean(j->options->golden));
    json_object_set_new(report, "candidate", json_clean(j->options->candidate));
    json_object_set_new(report, "same_file", json_boolean(j->same_file));
    json_object_set_new(report, "case", json_string(j->golden.c.name));
    json_object_set_new(report, "verdict", json_string(et_outcome_name(v->outcome)));
    json_object_set_new(report, "message", json_clean(v->line));
    json_object_set_new(report, "profile", profile_json(&j->profile));
    json_object_set_new(report, "default_profile", json_boolean(j->options->profile == NULL));
    json_object_set_new(report, "profile_chosen_from", json_clean(v->chosen_from));
    json_object_set_new(report, "note", json_clean(v->note));
    json_object_set_new(report, "routing", routing_json(j));
    for (size_t i = 0; i < v->tensor_count; i++)
        json_array_append_new(rows, tensor_json(j, &v->tensors[i]));
    json_object_set_new(report, "tensors", rows);
    json_object_set_new(report, "passes_under",
                        v->passes_under ? json_string(v->passes_under) : json_null());
    json_object_set_new(report, "explanations", explanations_json(v));
    json_object_set_new(report, "residual", json_clean(v->residual));
    json_object_set_new(report, "search", json_clean(v->search));
    json_object_set_new(report, "command", json_clean(command));
    json_print(report);
}

/* ---- JUnit ---- */

/* Inconclusive is no pass. A tensor that could not be judged shows as skipped, and the whole
 * verdict, where that is all there is against it, as an error: a CI system that looks at nothing
 * but this report must not turn green. */
static void add_junit_row(junit *rows, const char *name, et_outcome outcome, const char *message,
                          const char *detail)
{
    static const junit_result results[] = {
        [ET_PASS] = JUNIT_PASS, [ET_MISMATCH] = JUNIT_FAILURE, [ET_INCONCLUSIVE] = JUNIT_SKIPPED};
    junit_add(rows, name, results[outcome], message, detail);
}

static void add_tensor_junit(junit *rows, const judgement *j, const et_tensor_verdict *t)
{
    char worst[640], group[320] = "", detail[1100];
    describe_worst(worst, sizeof worst, j, t);
    const et_group *g = t->whole.kind && !t->whole.pass ? &t->whole : &t->worst_group;
    if (g->kind) describe_limits(group, sizeof group, g);
    snprintf(detail, sizeof detail,
             "worst element: %s\nworst group: %s\n%zu of %zu elements failed\n", worst, group,
             t->failed, t->judged);
    add_junit_row(rows, t->name, t->outcome, t->reason, detail);
}

/* The last case: the verdict itself, with the explanation. */
static void add_verdict_junit(junit *rows, const judgement *j)
{
    const et_verdict *v = &j->verdict;
    char detail[8192] = "", command[4096];
    if (v->passes_under)
        append(detail, sizeof detail, "passes under profile %s\n", v->passes_under);
    for (size_t i = 0; i < v->explanation_count; i++)
        append(detail, sizeof detail, "%s explained by %s: %s (%s)\n", v->explanations[i].explains,
               v->explanations[i].name, v->explanations[i].sentence, v->explanations[i].scope);
    if (v->residual[0]) append(detail, sizeof detail, "%s\n", v->residual);
    if (v->search[0]) append(detail, sizeof detail, "%s\n", v->search);
    describe_command(command, sizeof command, j);
    append(detail, sizeof detail, "again: %s\n", command);
    junit_add(rows, "verdict",
              v->outcome == ET_PASS       ? v->note[0] ? JUNIT_NOTE : JUNIT_PASS
              : v->outcome == ET_MISMATCH ? JUNIT_FAILURE
                                          : JUNIT_ERROR,
              v->line, detail);
}

void report_junit(const judgement *j)
{
    const et_verdict *v = &j->verdict;
    junit rows = {0};
    char suite[160], routing[512];
    snprintf(suite, sizeof suite, "etref.%s.%s", j->golden.c.name, j->profile.name);
    describe_routing(routing, sizeof routing, j);
    if (is_routed(j)) add_junit_row(&rows, "routing", v->routing.outcome, routing, NULL);
    for (size_t i = 0; i < v->tensor_count; i++) add_tensor_junit(&rows, j, &v->tensors[i]);
    add_verdict_junit(&rows, j);
    junit_print(&rows, suite);
}
