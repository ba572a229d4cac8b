/* report_text.c: a verdict for people. See etref/report.h. */
#include "ref/report/describe.h"
#include "ref/report/page.h"
#include "ref/report/words.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static void add_line(et_page *out, const char *head, const char *text)
{
    et_page_add(out, "%-11s", head);
    et_page_clean(out, text);
    et_page_add(out, "\n");
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
static void add_sigmas(et_table *table, const et_tensor_verdict *t)
{
    char value[32];
    print_multiple(value, sizeof value, t->largest_sigmas);
    if (t->exact == t->elements)
        et_table_cell(table, "%s", t->failed ? "must be exact" : "exact");
    else
        et_table_cell(table, "%s of %.2f", value, t->limit_sigmas);
}

static void add_tensor_row(et_table *table, const et_tensor_verdict *t)
{
    char ulps[32];
    et_table_cell(table, "%s", t->name);
    et_table_cell(table, "%s", et_dtype_name(t->dtype));
    if (t->judged == t->elements)
        et_table_cell(table, "%zu", t->elements);
    else
        et_table_cell(table, "%zu of %zu", t->judged, t->elements);
    bool real = et_dtype_significand(t->dtype) > 0;
    et_table_cell(table, "%.3g", t->largest_error);
    print_multiple(ulps, sizeof ulps, t->largest_ulps);
    et_table_cell(table, "%s", real ? ulps : "-");
    add_sigmas(table, t);
    bool spread = t->whole.spread_limit > 0, slope = t->whole.slope_limit > 0;
    spread ? et_table_cell(table, "%.3f", t->whole.spread) : et_table_cell(table, "-");
    slope ? et_table_cell(table, "%+.1e +- %.0e", t->whole.slope, t->whole.slope_sigma)
          : et_table_cell(table, "-");
    et_table_cell(table, "%s", verdict_word(t->outcome));
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
    static const char *const heads[] = {"tensor", "type",   "elements", "largest error", "ulps",
                                        "sigmas", "spread", "slope",    "verdict"};
    et_table table;
    et_table_begin(&table, "llrrrrrrl");
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) et_table_cell(&table, "%s", heads[i]);
    for (size_t i = 0; i < r->verdict->tensor_count; i++)
        if (is_printed(r, i)) add_tensor_row(&table, &r->verdict->tensors[i]);
    et_page_add(out, "\n");
    et_table_print(&table, out);
}

/* others: how many more tensors it is the reason for. */
static void add_reason(et_page *out, const et_tensor_verdict *t, size_t others)
{
    et_page_add(out, "%s %s", verdict_word(t->outcome), t->name);
    if (others > 0) et_page_add(out, " and %zu more", others);
    et_page_add(out, ": ");
    et_page_clean(out, t->reason);
    et_page_add(out, "\n");
}

static void add_failure(et_page *out, const et_report *r, const et_tensor_verdict *t)
{
    char text[640];
    et_page_add(out, "\n");
    add_reason(out, t, 0);
    et_report_worst(text, sizeof text, r, t);
    if (text[0] && t->failed > 0) {
        et_page_add(out, "  worst  ");
        et_page_clean(out, text);
        et_page_add(out, "\n");
    }
    const et_group *g = t->whole.kind && !t->whole.pass ? &t->whole : &t->worst_group;
    if (g->kind == NULL || g->pass) return;
    et_report_group(text, sizeof text, g);
    et_page_add(out, "  group  %s\n", text);
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
        et_page_add(out, "%s %s: %s (%s)%s%s%s\n", i ? "       or by" : "explained by", e->name,
                    e->sentence, e->scope, is_partial(e) ? "; only " : "",
                    is_partial(e) ? e->explains : "", is_partial(e) ? " is explained by it" : "");
    }
    if (v->explanation_count == 0 && !v->passes_under)
        et_page_add(out, "%s\n", "explained by no hypothesis of 'etref list hypotheses'");
    if (v->residual[0]) et_page_wrap(out, 2, v->residual);
    if (v->search[0]) et_page_add(out, "%s; --explain-limit SECONDS allows more\n", v->search);
}

et_status et_report_text(char **text, const et_report *r, et_error *error)
{
    et_page out = {0};
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
