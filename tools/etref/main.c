/* main.c: the command-line tool `etref`: finds the command, and sees that nothing fails silently.
 *
 * The commands themselves are in cmd_*.c and use the public headers. The table below is the
 * one place that knows them all.
 */
#include "etref/etref.h"
#include "tools/etref/commands.h"
#include "tools/etref/ending.h"
#include "tools/etref/failure_report.h"
#include "tools/etref/help.h"
#include "tools/etref/options.h"
#include "tools/etref/partial.h"
#include "ref/base/blas_kernels.h"
#include "tools/etref/terminal.h"

#include <cblas.h>
#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>

const subcommand commands[] = {
    {"generate", "compute golden bundles from cases", cmd_generate, help_generate},
    {"verify", "judge a kernel's output, or a bundle against its recomputation", cmd_verify,
     help_verify},
    {"check", "recompute every stored value of a bundle, and compare", cmd_check, help_check},
    {"show", "look into a bundle: case, routing, tensors, values", cmd_show, help_show},
    {"list", "name the built-in suites, cases, fields, tensors, profiles", cmd_list, help_list},
    {"leakage", "how much of the future a routing tells: bounds, codec, audit",
     cmd_leakage, help_leakage},
    {"bench", "time the layer's phases on this machine", cmd_bench, help_bench},
    {"train", "train a small language model on the bytes of a file", cmd_train, help_train},
    {"eval", "measure a trained model on the held-out part of a text", cmd_eval, help_eval},
    {"compare", "do two checkpoints send the same tokens to the same experts?", cmd_compare,
     help_compare},
    {"sample", "let a trained model write, and show where experts are used", cmd_sample, help_sample},
    {NULL, NULL, NULL, NULL}};

static const subcommand *command_find(const char *name)
{
    for (const subcommand *c = commands; c->name; c++)
        if (strcmp(c->name, name) == 0) return c;
    return NULL;
}

static int fail_unknown_word(const char *what, const char *word)
{
    word_list names = {0};
    for (const subcommand *c = commands; c->name; c++) word_list_add(&names, c->name);
    word_list_add(&names, what[0] == 'o' ? "--help" : "help");
    word_list_add(&names, what[0] == 'o' ? "--version" : "version");
    word_list_add(&names, NULL);
    int status = fail_unknown(what, word, names.at, "");
    word_list_free(&names);
    return status;
}

static void print_usage(FILE *out)
{
    fputs(
        "usage: etref COMMAND [OPTION]... [WORD]...\n\n"
        "The reference for Mixture-of-Experts layers: dense, token choice, expert choice,\n"
        "expert threshold; forward, backward and state.\n\n",
        out);
    for (const subcommand *c = commands; c->name; c++)
        fprintf(out, "  %-9s %s\n", c->name, c->summary);
    fputs(
        "\n  etref help COMMAND    options and examples of a command\n"
        "  etref version         version, precision, matrix library and its kernels\n\n"
        "Exit status: 0 pass; 1 mismatch; 2 bad usage, unreadable input, no memory or\n"
        "threads to be had; 3 inconclusive; 128 + the number of a signal. Results go to\n"
        "standard output, errors to standard error.\n",
        out);
}

static int print_help(int argc, char **argv)
{
    if (argc > 2) return fail("help takes one command: see 'etref help'");
    bool of_itself = argc == 2 && (strcmp(argv[1], "help") == 0 || strcmp(argv[1], "--help") == 0 ||
                                   strcmp(argv[1], "-h") == 0);
    const subcommand *c = argc == 2 ? command_find(argv[1]) : NULL;
    if (argc == 2 && c == NULL && !of_itself) return fail_unknown_word("command", argv[1]);
    if (c)
        fputs(c->help, stdout);
    else
        print_usage(stdout);
    return STATUS_PASS;
}

static int print_version(void)
{
    printf("etref %s\nprecision %s\n", ETREF_VERSION, ET_REAL_NAME);
    char matrices[300];
    snprintf(matrices, sizeof matrices, "matrices %s", openblas_get_config());
    print_wrapped(0, matrices);
    printf("kernels %s\n", et_kernels_in_use());
    note_slow_kernels();
    return STATUS_PASS;
}

static bool asks_for_help(int argc, char **argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) return true;
    return false;
}

static int run_command(int argc, char **argv)
{
    const subcommand *c = command_find(argv[0]);
    if (c == NULL) return fail_unknown_word(argv[0][0] == '-' ? "option" : "command", argv[0]);
    if (!asks_for_help(argc, argv)) {
        static char suite[32];
        snprintf(suite, sizeof suite, "etref.%s", c->name);
        failure_report_expect(argc, argv, suite, NULL);
        return c->run(argc, argv);
    }
    fputs(c->help, stdout);
    return STATUS_PASS;
}

static int dispatch(int argc, char **argv)
{
    if (argc < 2) {
        print_usage(stderr);
        return fail("no command given: see 'etref help'");
    }
    if (strcmp(argv[1], "help") == 0) return print_help(argc - 1, argv + 1);
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) return print_help(1, argv);
    if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "version") == 0) return print_version();
    return run_command(argc - 1, argv + 1);
}

/* A full disk shows only when the buffer is written; a result that nobody can read is no pass. */
static int finish_output(int status)
{
    errno = 0;
    bool written = fflush(stdout) == 0 && !ferror(stdout);
    if (written) return status;
    int failed = fail("standard output: %s", errno ? strerror(errno) : "could not be written");
    return status == STATUS_PASS ? failed : status;
}

/* Libraries read their settings when they are loaded, before main. Where one of these is not set and should be, the tool sets
 * it and is started once more:
 *
 *     OPENBLAS_CORETYPE   if OpenBLAS has chosen slower kernels than it could have
 *     GOMP_SPINCOUNT      how often a thread of libgomp that waits for others looks whether they have come, before it sleeps.
 *                         By default that is for milliseconds, which on a machine that does something else, too, are taken
 *                         from those it waits for: tools/README.md has what that cost.
 *
 * A program that was started through the dynamic loader (which then has no base address of its own) is not the file to start,
 * and a file that cannot be started again goes on with the settings it has. */
static void start_with_settings(char **argv)
{
    const struct {
        const char *name, *value;
    } settings[] = {{"OPENBLAS_CORETYPE", et_better_kernels()},
                    {"GOMP_SPINCOUNT", getenv("OMP_WAIT_POLICY") ? NULL : "10000"}};
    enum { SETTINGS = sizeof settings / sizeof *settings };
    bool set[SETTINGS], any = false;
    char self[PATH_MAX];
    if (getauxval(AT_BASE) == 0) return;
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length <= 0) return;
    self[length] = '\0';
    for (int i = 0; i < SETTINGS; i++) {
        set[i] = settings[i].value != NULL && getenv(settings[i].name) == NULL;
        any |= set[i];
        if (set[i] && setenv(settings[i].name, settings[i].value, 1) != 0) {
            fail("no memory to set %s=%s", settings[i].name, settings[i].value);
            leave_without_memory();
        }
    }
    if (any) execv(self, argv);
    for (int i = 0; i < SETTINGS; i++)
        if (set[i]) unsetenv(settings[i].name);
}

/* Error bars run a layer some fifty times. Memory given back to the system after each run would have to be cleared by it,
 * page by page, for the next. */
static void keep_memory(void)
{
    mallopt(M_MMAP_THRESHOLD, INT_MAX);
    mallopt(M_TRIM_THRESHOLD, INT_MAX);
}

int main(int argc, char **argv)
{
    start_with_settings(argv);
    keep_memory();
    partial_install();
    begin();
    leave(finish_output(dispatch(argc, argv)));
}
