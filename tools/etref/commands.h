/* commands.h: the one table of subcommands, and what every subcommand promises.
 *
 * A command gets its own name as argv[0] and the words after it; it returns the tool's exit status.
 * Results go to standard output. Progress and errors go to standard error; a failure ends with one
 * line that says everything a reader of a log needs.
 */
#ifndef ETREF_TOOL_COMMANDS_H
#define ETREF_TOOL_COMMANDS_H

#include <stddef.h>

/* The tool's exit statuses. A signal ends the process by that signal: a shell shows 130 for SIGINT.
 */
enum {
    STATUS_PASS = 0,
    STATUS_MISMATCH = 1,    /* something stored differs from what etref computes */
    STATUS_BAD = 2,         /* bad usage, or something could not be read, computed or written */
    STATUS_INCONCLUSIVE = 3 /* nothing was compared that could decide */
};

typedef struct subcommand {
    const char *name, *summary;
    int (*run)(int argc, char **argv);
    const char *help;
} subcommand;

extern const subcommand commands[]; /* ends with a NULL name */

int cmd_generate(int argc, char **argv);
int cmd_verify(int argc, char **argv);
int cmd_check(int argc, char **argv);
int cmd_show(int argc, char **argv);
int cmd_list(int argc, char **argv);
int cmd_leakage(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_train(int argc, char **argv);
int cmd_sample(int argc, char **argv);
int cmd_eval(int argc, char **argv);
int cmd_compare(int argc, char **argv);

#endif
