/* run_tool.h: the command-line tool, run as a child process as a user would run it.
 *
 * The program is $ETREF_TOOL, or build/etref. What it prints is kept; a failure must be one line.
 * Files lie in a folder of the test's own (scratch.h).
 */
#ifndef ETREF_TESTS_RUN_TOOL_H
#define ETREF_TESTS_RUN_TOOL_H

#include "tests/check_main.h"
#include "tests/scratch.h"

#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

enum { MAX_WORDS = 20, MAX_OUTPUT = 1 << 20 };

/* ---- running the tool ---- */

static char output[MAX_OUTPUT], errors[MAX_OUTPUT]; /* what the last run printed */

static inline const char *tool(void)
{
    const char *name = getenv("ETREF_TOOL");
    return name != NULL ? name : "build/etref";
}

/* Loads tests/preload/NAME.c, which lies built beside the tool's objects, into what is run next. */
static inline void set_preload(const char *name)
{
    char library[4400];
    snprintf(library, sizeof library, "%.*s/tests/preload/%s.so",
             (int)(strrchr(tool(), '/') - tool()), tool(), name);
    ck_assert_msg(access(library, R_OK) == 0, "%s is not there: make run-tests builds it", library);
    setenv("LD_PRELOAD", library, 1);
}

static inline void read_back(FILE *file, char *text)
{
    rewind(file);
    size_t length = fread(text, 1, MAX_OUTPUT - 1, file);
    text[length] = '\0';
    fclose(file);
}

/* How a child is to be started. */
typedef struct setting {
    const char *output;   /* a file for its standard output, or NULL */
    rlim_t file_limit;    /* bytes a file may have; 0: no limit */
    rlim_t address_limit; /* bytes of address space; 0: no limit */
} setting;

static inline void become_tool(const char *const *words, const setting *s, FILE *out, FILE *err)
{
    int to = s->output != NULL ? open(s->output, O_WRONLY) : fileno(out);
    if (to < 0 || dup2(to, STDOUT_FILENO) < 0 || dup2(fileno(err), STDERR_FILENO) < 0) _exit(97);
    if (s->file_limit > 0) {
        struct rlimit limit = {s->file_limit, s->file_limit};
        if (setrlimit(RLIMIT_FSIZE, &limit) != 0) _exit(97);
    }
    if (s->address_limit > 0) {
        struct rlimit limit = {s->address_limit, s->address_limit};
        const struct rlimit seconds = {20, 20}; /* of computing: who waits for memory spins */
        if (setrlimit(RLIMIT_AS, &limit) != 0 || setrlimit(RLIMIT_CPU, &seconds) != 0) _exit(97);
    }
    /* a test run in the background, or by nohup, may have inherited "ignore" */
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) signal(signals[i], SIG_DFL);
    char *argv[MAX_WORDS + 2] = {(char *)tool()};
    for (size_t i = 0; i < MAX_WORDS && words[i] != NULL; i++) argv[i + 1] = (char *)words[i];
    execv(tool(), argv);
    _exit(98);
}

static inline pid_t start(const char *const *words, const setting *s, FILE *out, FILE *err)
{
    fflush(NULL);
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) become_tool(words, s, out, err);
    return child;
}

static inline int wait_for(pid_t child)
{
    int status;
    while (waitpid(child, &status, 0) < 0) ck_assert_int_eq(errno, EINTR);
    return status;
}

/* Runs the tool with words up to a NULL; returns its exit status, fills output and errors. */
static inline int run_as(const setting *s, const char *const *words)
{
    FILE *out = tmpfile(), *err = tmpfile();
    ck_assert(out != NULL && err != NULL);
    int status = wait_for(start(words, s, out, err));
    read_back(out, output);
    read_back(err, errors);
    ck_assert_msg(WIFEXITED(status), "%s %s: ended by signal %d", tool(), words[0],
                  WTERMSIG(status));
    ck_assert_msg(WEXITSTATUS(status) < 97, "%s cannot be run", tool());
    return WEXITSTATUS(status);
}

#define RUN(...) run_as(&(setting){0}, (const char *const[]){__VA_ARGS__, NULL})

/* The last run failed with this status and said so in one line that contains `part`. */
static inline void expect_failure(int status, int want, const char *part)
{
    const char *end = strchr(errors, '\n');
    ck_assert_msg(status == want, "status %d, not %d: %s", status, want, errors);
    ck_assert_msg(strncmp(errors, "etref: ", 7) == 0 && end != NULL && end[1] == '\0',
                  "not one line: %s", errors);
    ck_assert_msg(strstr(errors, part) != NULL, "no '%s' in: %s", part, errors);
}

static inline const char *last_line(char *text)
{
    size_t length = strlen(text);
    if (length > 0 && text[length - 1] == '\n') text[length - 1] = '\0';
    const char *end = strrchr(text, '\n');
    return end != NULL ? end + 1 : text;
}

static inline json_t *parse_output(void)
{
    json_error_t problem;
    json_t *value = json_loads(output, 0, &problem);
    ck_assert_msg(value != NULL, "line %d: %s in: %.200s", problem.line, problem.text, output);
    return value;
}

/* ---- the folder ---- */

static inline const char *in_folder(const char *name)
{
    static char names[4][4400];
    static unsigned turn;
    char *out = names[turn++ % 4];
    snprintf(out, sizeof names[0], "%s/%s", folder, name);
    return out;
}

static inline void write_text(const char *name, const char *text)
{
    FILE *file = fopen(in_folder(name), "w");
    ck_assert_ptr_nonnull(file);
    fputs(text, file);
    ck_assert_int_eq(fclose(file), 0);
}

static inline void remove_all(void)
{
    DIR *open_folder = opendir(folder);
    struct dirent *entry;
    ck_assert_ptr_nonnull(open_folder);
    while ((entry = readdir(open_folder)) != NULL) unlink(in_folder(entry->d_name));
    closedir(open_folder);
    remove_folder();
}

static inline bool exists(const char *name)
{
    return access(in_folder(name), F_OK) == 0;
}

#endif
