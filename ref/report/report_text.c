/* report_text.c: a verdict for people. See etref/report.h. */
#include "ref/report/describe_case.h"
#include "ref/report/page.h"
#include "ref/report/report_words.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static void add_line(et_page *out, const char *head, const char *text)
{
    enum { HEAD = 11 };
    et_page_add(out, "%-*s", HEAD, head);
    et_page_hang(out, HEAD, HEAD, text);
}

static void add_head(et_page *out, const et_report *r)
{
    char text[1024];
    if (r->all) {
        et_describe_case(text, sizeof text, &r->golden->c);
        et_page_add(out, "%s\n", r->golden->c.name);
        et_page_wrap(out, 2, text);
        et_page_add(out, "\n");
        if (r->golden_name) add_line(out, "golden", r->golden_name);
    }
    if (r->candidate_name) add_line(out, "candidate", r->candidate_name);
    if (r->same_file) add_line(out, "", "(this is the golden file itself)");
    if (r->inputs > 0) {
        snprintf(text, sizeof text, "(its %zu in.* tensors are the golden's)", r->inputs);
        add_line(out, "", text);
    }
    if (r->ignored > 0) {
        snprintf(text, sizeof text, "(its %zu noise.* tensors are not judged)", r->ignored);
        add_line(out, "", text);
    }
    text[0] = '\0';
    et_describe_profile(text, sizeof text, &r->verdict->profile);
    add_line(out, "profile", text);
    if (r->all && r->verdict->chosen_from[0]) { /* the last line says it, too */
        snprintf(text, sizeof text, "(chosen: %s)", r->verdict->chosen_from);
        add_line(out, "", text);
    }
    et_report_routing(text, sizeof text, r);
    add_line(out, "routing", text);
    if (r->idle) add_line(out, "idle", r->idle);
    text[0] = '\0';
    for (size_t i = 0; i < r->verdict->missing_count; i++)
        et_append(text, sizeof text, "%s%s", i ? ", " : "", r->verdict->missing[i]);
    if (text[0]) add_line(out, "missing", text);
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
        snprintf(out, room, value < 1000 ? "%.2f" : "%.2g", value);
}

/* "4.31/30"; "exact" where no deviation is allowed. */
static void add_sigmas(et_table *table, const et_tensor_verdict *t)
{
    char value[32];
    print_multiple(value, sizeof value, t->largest_sigmas);
    if (t->exact == t->elements)
        et_table_cell(table, "%s", t->failed ? "not exact" : "exact");
    else
        et_table_cell(table, "%s/%.3g", value, t->limit_sigmas);
}

static void add_tensor_row(et_table *table, const et_tensor_verdict *t)
{
    char ulps[32];
    et_table_cell(table, "%s", t->name);
    if (t->judged == t->elements)
        et_table_cell(table, "%zu", t->elements);
    else
        et_table_cell(table, "%zu of %zu", t->judged, t->elements);
    bool real = et_dtype_significand(t->dtype) > 0;
    print_multiple(ulps, sizeof ulps, t->largest_ulps);
    et_table_cell(table, "%s", real ? ulps : "-");
    add_sigmas(table, t);
    bool spread = t->whole.spread_limit > 0, slope = t->whole.slope_limit > 0;
    spread ? et_table_cell(table, "%.3g", t->whole.spread) : et_table_cell(table, "-");
    slope ? et_table_cell(table, "%+.1e", t->whole.slope)
          : et_table_cell(table, "-");
    et_table_cell(table, "%s", t->outcome == ET_INCONCLUSIVE ? "unclear" : verdict_word(t->outcome));
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
static bool is_printed(const et_report *r, size_t index)
{
    const et_tensor_verdict *t = &r->verdict->tensors[index];
    return r->all || t->outcome == ET_MISMATCH ||
           (t->outcome == ET_PASS && count_nearer(r->verdict, index) < NEAREST);
}

static void add_tensors(et_page *out, const et_report *r)
{
    static const char *const heads[] = {"tensor", "elements", "ulps", "sigmas", "spread", "slope", "verdict"};
    et_table table;
    et_table_begin(&table, "lrrrrrl");
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) et_table_cell(&table, "%s", heads[i]);
    for (size_t i = 0; i < r->verdict->tensor_count; i++)
        if (is_printed(r, i)) add_tensor_row(&table, &r->verdict->tensors[i]);
    et_page_add(out, "\n");
    et_table_print(&table, out);
}

/* others: how many more tensors it is the reason for. */
static void add_reason(et_page *out, const et_tensor_verdict *t, size_t others)
{
    char text[400];
    snprintf(text, sizeof text, "%s %s", verdict_word(t->outcome), t->name);
    if (others > 0) et_append(text, sizeof text, " and %zu more", others);
    et_append(text, sizeof text, ": %s", t->reason);
    et_page_hang(out, 0, 2, text);
}

static void add_failure(et_page *out, const et_report *r, const et_tensor_verdict *t)
{
    char text[640];
    et_page_add(out, "\n");
    add_reason(out, t, 0);
    et_report_worst(text, sizeof text, r, t);
    if (text[0] && t->failed > 0) {
        et_page_add(out, "  worst  ");
        et_page_hang(out, 9, 9, text);
    }
    const et_group *g = t->whole.kind && !t->whole.pass ? &t->whole : &t->worst_group;
    if (g->kind == NULL || g->pass) return;
    et_report_group(text, sizeof text, g);
    et_page_add(out, "  group  ");
    et_page_hang(out, 9, 9, text);
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
static void add_failures(et_page *out, const et_report *r)
{
    const et_verdict *v = r->verdict;
    size_t lines = 0;
    for (size_t i = 0; i < v->tensor_count; i++) {
        const et_tensor_verdict *t = &v->tensors[i];
        if (t->outcome != ET_INCONCLUSIVE || count_alike(v, 0, i, t) > 0) continue;
        if (lines++ == 0) et_page_add(out, "\n");
        add_reason(out, t, count_alike(v, i + 1, v->tensor_count, t));
    }
    for (size_t i = 0; i < v->tensor_count; i++)
        if (v->tensors[i].outcome == ET_MISMATCH) add_failure(out, r, &v->tensors[i]);
}

/* Beside it something else is wrong. */
static bool is_partial(const et_explanation *e)
{
    return strcmp(e->explains, "everything") != 0;
}

static void add_explanation(et_page *out, const et_report *r)
{
    const et_verdict *v = r->verdict;
    if (v->outcome != ET_MISMATCH || !r->explained) return;
    et_page_add(out, "\n");
    if (v->passes_under)
        et_page_add(out,
                    "passes under profile %s, and under no tighter one of 'etref list profiles'\n",
                    v->passes_under);
    for (size_t i = 0; i < v->explanation_count; i++) {
        const et_explanation *e = &v->explanations[i];
        char text[640];
        snprintf(text, sizeof text, "%s: %s (%s)%s%s%s", e->name, e->sentence, e->scope,
                 is_partial(e) ? "; only " : "", is_partial(e) ? e->explains : "",
                 is_partial(e) ? " is explained by it" : "");
        et_page_add(out, "%s ", i ? "       or by" : "explained by");
        et_page_hang(out, 13, 13, text);
    }
    if (v->explanation_count == 0 && !v->passes_under)
        et_page_add(out, "%s\n", "explained by no hypothesis of 'etref list hypotheses'");
    if (v->residual[0]) et_page_wrap(out, 2, v->residual);
    if (v->search[0]) {
        char text[200];
        snprintf(text, sizeof text, "%s; --explain-limit SECONDS allows more", v->search);
        et_page_wrap(out, 0, text);
    }
}

et_status et_report_text(char **text, const et_report *r, et_error *error)
{
    et_page out = {.width = r->width};
    add_head(&out, r);
    add_tensors(&out, r);
    add_failures(&out, r);
    add_explanation(&out, r);
    if (r->verdict->outcome != ET_PASS && r->command) {
        et_page_add(&out, "\nagain: ");
        et_page_clean(&out, r->command);
        et_page_add(&out, "\n");
    }
    et_page_add(&out, "\n");
    *text = et_page_take(&out);
    return *text ? ET_OK : et_fail(error, ET_ENOMEM, "the report: no memory");
}
