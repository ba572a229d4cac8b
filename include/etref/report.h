/* report.h: a verdict in words, for people and for programs.
 *
 * `etref verify` prints these reports. What a number means stands in verify.h, field by field.
 */
#ifndef ETREF_REPORT_H
#define ETREF_REPORT_H

#include "etref/assignment.h"
#include "etref/verify.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* What a report is about. */
typedef struct et_report {
    const et_step *golden; /* as et_verify had it */
    const et_tensor_out *candidate;
    size_t count;
    const et_verdict *verdict;
    const et_assignment *routing; /* names slots: the candidate's own, or NULL: the golden's */
    const char *golden_name, *candidate_name; /* files, or other words; NULL: none is known */
    const char *name;    /* which kernel this is, for programs; NULL: none was given */
    const char *command;    /* which gives this verdict again; NULL: none is known */
    const char *idle;       /* a switch of the case that does nothing in this golden; NULL: none is known */
    size_t width;           /* of the text's tables and paragraphs; 0: 80 */
    bool explained;         /* an explanation was asked for */
    bool all;               /* in the text: the case, and every tensor; else what matters */
    bool same_file;         /* golden and candidate are one file */
    size_t inputs, ignored; /* tensors of the candidate that are not judged: in.*, noise.* */
} et_report;

/* All that the verdict says but its line: the case, the profile, the routing, a table of tensors;
 * where something fails the worst places, the explanation, the command. *text is allocated; the
 * caller frees it. ET_ENOMEM. */
et_status et_report_text(char **text, const et_report *r, et_error *error);

/* The same and every number of the verdict, as one JSON object without a newline at its end:
 * data/schema/verdict-1.json. Members may be added; where one changes or goes it becomes verdict-2.
 * Numbers that are not finite are the strings "NaN", "Infinity", "-Infinity". */
et_status et_report_json(char **text, const et_report *r, et_error *error);

/* ---- words of it, for other forms: into a buffer of `room` bytes; what does not fit is cut ---- */

/* The worst element of a tensor; empty if none was judged: "[3,5] (token 3, column 5; token 3 is on
 * expert 1): got 0.5, want 0.25, bar 0.01". */
void et_report_worst(char *out, size_t room, const et_report *r, const et_tensor_verdict *t);
/* A group and its limits: "rows 16 and following (128 elements): slope ...". */
void et_report_group(char *out, size_t room, const et_group *g);
/* "shown by the candidate; 32 decisions, ...". */
void et_report_routing(char *out, size_t room, const et_report *r);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
