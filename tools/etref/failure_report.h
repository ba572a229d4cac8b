/* failure_report.h: what a program reads that waits for JSON, or for a CI system's XML, where there is no result.
 *
 * A command that ends with STATUS_BAD has said why on standard error. Where `--format json` or `--format junit` stood
 * on its command line, and nothing was printed yet, standard output then gets an object (data/schema/error-1.json), or a
 * suite with one error, with the same words.
 */
#ifndef ETREF_TOOL_FAILURE_REPORT_H
#define ETREF_TOOL_FAILURE_REPORT_H

/* Looks which form a command line asks for; `suite` is how the XML calls it, and `name`, or NULL, what the object says
 * it is about. Before the command runs; the rest comes at the end of the process. */
void failure_report_expect(int argc, char **argv, const char *suite, const char *name);

#endif
