/* study_figures.c: CSV files, and figures drawn from them by gnuplot where it is installed.
 *
 * The scripts are part of the program (figures.S) and are written beside the data, so that a figure
 * can be changed and drawn again with `gnuplot cutoff.gp`, without etref.
 */
#include "etref/safetensors.h"
#include "tools/leakage-study/study.h"
#include "tools/etref/options.h"
#include "tools/etref/partial.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern const char et_plot_leakage[], et_plot_leakage_end[];
extern const char et_plot_cutoff[], et_plot_cutoff_end[];
extern const char et_plot_load[], et_plot_load_end[];
extern const char et_plot_start[], et_plot_start_end[];
extern const char et_plot_flips[], et_plot_flips_end[];

static const struct {
    const char *name, *begin, *end;
} scripts[FIGURES] = {{"leakage", et_plot_leakage, et_plot_leakage_end},
                      {"cutoff", et_plot_cutoff, et_plot_cutoff_end},
                      {"load", et_plot_load, et_plot_load_end},
                      {"start", et_plot_start, et_plot_start_end},
                      {"flips", et_plot_flips, et_plot_flips_end}};

static const char *const types[FIGURE_TYPES] = {"svg", "png"};

/* ---- files ---- */

typedef struct text {
    const char *path, *at;
    size_t length;
} text;

static et_status write_text(int descriptor, void *user, et_error *error)
{
    const text *t = user;
    for (size_t done = 0; done < t->length;) {
        ssize_t written = write(descriptor, t->at + done, t->length - done);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0)
            return et_fail(error, ET_EIO, "%s: cannot write: %s", t->path, strerror(errno));
        done += (size_t)written;
    }
    return ET_OK;
}

static et_status write_whole(const char *folder, const char *name, const char *from, size_t length,
                             et_error *error)
{
    char path[PATH_MAX - 64];
    text t = {path, from, length};
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path)
        return et_fail(error, ET_EINVAL, "--out %s: the path is too long", folder);
    et_status status = partial_guard(path, error);
    if (status != ET_OK) return status;
    status = et_file_write(path, write_text, &t, error);
    partial_release();
    return status;
}

/* A stream into memory that grows or ends the tool. (open_memstream's loses what it finds no memory
 * for, and says so to nobody but the call that wrote it.) */
static ssize_t keep(void *to, const char *bytes, size_t count)
{
    csv_file *f = to;
    if (f->length + count > f->room) {
        f->room = 2 * (f->length + count);
        char *grown = allocate(f->room, 1);
        if (f->length) memcpy(grown, f->text, f->length);
        free(f->text);
        f->text = grown;
    }
    memcpy(f->text + f->length, bytes, count);
    f->length += count;
    return (ssize_t)count;
}

void csv_begin(csv_file *f, const char *name)
{
    *f = (csv_file){.name = name};
    f->out = fopencookie(f, "w", (cookie_io_functions_t){.write = keep});
    if (f->out == NULL) leave(fail("no memory for %s", name));
}

et_status csv_end(csv_file *f, const char *folder, et_error *error)
{
    et_status status = ET_OK;
    if (fclose(f->out) != 0)
        status = et_fail(error, ET_ENOMEM, "no memory for %s", f->name);
    else
        status = write_whole(folder, f->name, f->text, f->length, error);
    free(f->text);
    *f = (csv_file){0};
    return status;
}

/* ---- gnuplot ---- */

enum { NOT_FOUND = 127 };

/* In a child, so that the folder can be changed. Its output goes to standard error: standard output
 * is the report. */
static void become_gnuplot(const char *folder, const char *script)
{
    char *const words[] = {"gnuplot", (char *)script, NULL};
    if (chdir(folder) == 0 && dup2(STDERR_FILENO, STDOUT_FILENO) >= 0) execvp(words[0], words);
    _exit(errno == ENOENT ? NOT_FOUND : NOT_FOUND - 1);
}

static et_status run_gnuplot(const char *folder, const char *script, bool *found, et_error *error)
{
    int status = 0;
    fflush(NULL);
    pid_t child = fork();
    if (child < 0) return et_fail(error, ET_EIO, "gnuplot: %s", strerror(errno));
    if (child == 0) become_gnuplot(folder, script);
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    *found = !(WIFEXITED(status) && WEXITSTATUS(status) == NOT_FOUND);
    if (!*found || (WIFEXITED(status) && WEXITSTATUS(status) == 0)) return ET_OK;
    return et_fail(error, ET_EIO,
                   "gnuplot failed on %s/%s; the CSV files are there: --no-figures leaves it out",
                   folder, script);
}

/* folder/name.type, of a folder whose name write_whole has found short enough. */
static void figure_path(char out[PATH_MAX], const char *folder, const char *name, const char *type)
{
    snprintf(out, PATH_MAX, "%s/%s.%s", folder, name, type);
}

static void remove_figure(const char *folder, const char *name)
{
    char path[PATH_MAX];
    for (size_t i = 0; i < FIGURE_TYPES; i++) {
        figure_path(path, folder, name, types[i]);
        unlink(path);
    }
}

/* Which types there are is gnuplot's matter: not each build can write PNG. */
static void list_figure(const char *folder, const char *name, figure_list *figures)
{
    char path[PATH_MAX];
    for (size_t i = 0; i < FIGURE_TYPES; i++) {
        figure_path(path, folder, name, types[i]);
        if (access(path, F_OK) == 0)
            snprintf(figures->name[figures->count++], sizeof *figures->name, "%s.%s", name,
                     types[i]);
    }
}

et_status draw_figures(const char *folder, figure_list *figures, et_error *error)
{
    bool found = true;
    *figures = (figure_list){0};
    for (size_t i = 0; i < FIGURES; i++) {
        char script[32];
        snprintf(script, sizeof script, "%s.gp", scripts[i].name);
        et_status status = write_whole(folder, script, scripts[i].begin,
                                       (size_t)(scripts[i].end - scripts[i].begin), error);
        if (status != ET_OK) return status;
        remove_figure(folder, scripts[i].name);
        if (found) status = run_gnuplot(folder, script, &found, error);
        if (status != ET_OK) {
            remove_figure(folder, scripts[i].name);
            return status;
        }
        list_figure(folder, scripts[i].name, figures);
    }
    return ET_OK;
}
