/* junit_report.c: a verdict for CI systems. See verify.h; for people and programs: etref/report.h. */
#include "ref/report/describe_case.h"
#include "tools/etref/junit.h"
#include "tools/etref/verify.h"

#include <stdio.h>

/* Inconclusive is no pass. A tensor that could not be judged shows as skipped, and the whole
 * verdict, where that is all there is against it, as an error: a CI system that looks at nothing
 * but this report must not turn green. */
static void add_row(junit *rows, const char *name, et_outcome outcome, const char *message,
                    const char *detail)
{
    static const junit_result results[] = {
        [ET_PASS] = JUNIT_PASS, [ET_MISMATCH] = JUNIT_FAILURE, [ET_INCONCLUSIVE] = JUNIT_SKIPPED};
    junit_add(rows, name, results[outcome], message, detail);
}

static void add_tensor(junit *rows, const et_report *r, const et_tensor_verdict *t)
{
    char worst[640], group[320] = "", detail[1100];
    et_report_worst(worst, sizeof worst, r, t);
    const et_group *g = t->whole.kind && !t->whole.pass ? &t->whole : &t->worst_group;
    if (g->kind) et_report_group(group, sizeof group, g);
    snprintf(detail, sizeof detail,
             "worst element: %s\nworst group: %s\n%zu of %zu elements failed\n", worst, group,
             t->failed, t->judged);
    add_row(rows, t->name, t->outcome, t->reason, detail);
}

/* The last case: the verdict itself, with the explanation. */
static void add_verdict(junit *rows, const et_report *r)
{
    const et_verdict *v = r->verdict;
    char detail[8192] = "";
    if (v->passes_under)
        et_append(detail, sizeof detail, "passes under profile %s\n", v->passes_under);
    for (size_t i = 0; i < v->explanation_count; i++)
        et_append(detail, sizeof detail, "%s explained by %s: %s (%s)\n",
                  v->explanations[i].explains, v->explanations[i].name, v->explanations[i].sentence,
                  v->explanations[i].scope);
    if (v->residual[0]) et_append(detail, sizeof detail, "%s\n", v->residual);
    if (v->search[0]) et_append(detail, sizeof detail, "%s\n", v->search);
    et_append(detail, sizeof detail, "again: %s\n", r->command);
    junit_add(rows, "verdict",
              v->outcome == ET_PASS       ? v->note[0] ? JUNIT_NOTE : JUNIT_PASS
              : v->outcome == ET_MISMATCH ? JUNIT_FAILURE
                                          : JUNIT_ERROR,
              v->line, detail);
}

void print_junit_report(const et_report *r, const char *suite)
{
    const et_verdict *v = r->verdict;
    junit rows = {0};
    char routing[512];
    et_report_routing(routing, sizeof routing, r);
    if (r->golden->c.layer == ET_MOE) add_row(&rows, "routing", v->routing.outcome, routing, NULL);
    for (size_t i = 0; i < v->tensor_count; i++) add_tensor(&rows, r, &v->tensors[i]);
    add_verdict(&rows, r);
    junit_print(&rows, suite);
}
