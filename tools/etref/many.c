/* many.c: `etref verify` of many pairs, `etref check` of many files. See verify.h.
 *
 * Each is judged in a process of its own, forked from this one: the libraries are loaded once, and what one of them
 * meets (no memory, a crash) is its own. So this process must start no thread before: OpenMP does not survive a fork.
 * What a job prints goes into a file without a name, and from there to standard output when those before it are done.
 */
#include "tools/etref/commands.h"
#include "tools/etref/ending.h"
#include "tools/etref/failure_report.h"
#include "tools/etref/junit.h"
#include "tools/etref/memory_limit.h"
#include "tools/etref/progress.h"
#include "tools/etref/terminal.h"
#include "tools/etref/verify.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { STATUSES = STATUS_INCONCLUSIVE + 1 };

typedef struct job {
    pid_t process; /* 0: none */
    FILE *output;
    int status; /* where it is done; -1 before */
} job;

typedef struct many {
    const verify_options *options;
    const verify_pair *pairs;
    size_t count, next, done, limit;
    job *jobs;       /* one for each pair */
    junit_sum *sums; /* the same; written by the jobs */
} many;

/* ---- one job ---- */

/* In the job's own process. */
static void run_job(const many *m, size_t i, const char *trouble)
{
    verify_options o = *m->options;
    static char suite[320];
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    o.golden = m->pairs[i].golden;
    o.candidate = m->pairs[i].candidate;
    o.name = m->pairs[i].name;
    o.one_of_many = true;
    if (dup2(fileno(m->jobs[i].output), STDOUT_FILENO) < 0) _exit(STATUS_BAD);
    snprintf(suite, sizeof suite, "etref.%s", o.name ? o.name : o.golden);
    failure_report_expect(o.argc, o.argv, suite, o.name ? o.name : o.golden);
    junit_print_parts(&m->sums[i]);
    junit_start();
    progress_hide();
    memory_share(m->limit);
    threads_share(m->limit);
    int status = trouble ? fail("%s: %s", o.name ? o.name : o.golden, trouble)
                 : o.candidate ? verify_candidate(&o)
                               : verify_integrity(&o);
    leave(fflush(stdout) == 0 && !ferror(stdout) ? status : fail("a report: %s", strerror(errno)));
}

/* trouble: why there can be no verdict; NULL: judge. */
static void start_job(many *m, size_t i, const char *trouble)
{
    job *j = &m->jobs[i];
    if (j->output == NULL) j->output = tmpfile();
    if (j->output == NULL) leave(fail("a file for a report: %s", strerror(errno)));
    fflush(NULL);
    j->process = fork();
    if (j->process < 0) leave(fail("a process for a verdict: %s; take fewer --jobs", strerror(errno)));
    if (j->process == 0) run_job(m, i, trouble);
}

/* Ended by itself, with a report if a program waits for one. */
static bool is_complete(const many *m, const job *j, int ended)
{
    struct stat facts;
    if (!WIFEXITED(ended) || WEXITSTATUS(ended) >= STATUSES) return false;
    return m->options->format == FORMAT_TEXT || (fstat(fileno(j->output), &facts) == 0 && facts.st_size > 0);
}

/* Waits for any job, and notes how it ended. One that a signal ended has its report written by another. */
static void await_job(many *m)
{
    int ended;
    pid_t process;
    while ((process = wait(&ended)) < 0)
        if (errno != EINTR) leave(fail("a process for a verdict: %s", strerror(errno)));
    for (size_t i = 0; i < m->next; i++) {
        job *j = &m->jobs[i];
        if (j->process != process) continue;
        j->process = 0;
        if (is_complete(m, j, ended)) {
            j->status = WEXITSTATUS(ended);
            m->done++;
            continue;
        }
        char trouble[80];
        snprintf(trouble, sizeof trouble, "the process that judged it was ended by signal %d",
                 WIFSIGNALED(ended) ? WTERMSIG(ended) : 0);
        rewind(j->output);
        if (ftruncate(fileno(j->output), 0) != 0) leave(fail("a report: %s", strerror(errno)));
        start_job(m, i, WIFSIGNALED(ended) ? trouble : "a library ended the process that judged it");
    }
}

static void run_jobs(many *m)
{
    char phase[64];
    while (m->done < m->count) {
        while (m->next < m->count && m->next - m->done < m->limit) start_job(m, m->next++, NULL);
        await_job(m);
        snprintf(phase, sizeof phase, "%zu of %zu", m->done, m->count);
        progress_show((void *)m->options->argv[0], phase, (double)m->done / (double)m->count);
    }
    progress_clear();
}

/* ---- the report ---- */

static void copy_report(FILE *from)
{
    static char bytes[1 << 16];
    size_t length;
    rewind(from);
    while ((length = fread(bytes, 1, sizeof bytes, from)) > 0) fwrite(bytes, 1, length, stdout);
}

/* A mismatch is the worst that can be said of a kernel, then that nothing can. */
static int whole_status(const size_t counts[STATUSES])
{
    static const int order[] = {STATUS_MISMATCH, STATUS_BAD, STATUS_INCONCLUSIVE};
    for (size_t i = 0; i < sizeof order / sizeof *order; i++)
        if (counts[order[i]] > 0) return order[i];
    return STATUS_PASS;
}

static void print_text(const many *m, const size_t counts[STATUSES])
{
    for (size_t i = 0; i < m->count; i++) {
        copy_report(m->jobs[i].output);
        if (!m->options->quiet) putchar('\n');
    }
    printf("%zu judged: %zu pass, %zu mismatch, %zu inconclusive, %zu without a verdict\n", m->count,
           counts[STATUS_PASS], counts[STATUS_MISMATCH], counts[STATUS_INCONCLUSIVE], counts[STATUS_BAD]);
}

static void print_json(const many *m, const size_t counts[STATUSES])
{
    printf("{\n  \"schema\": \"etref-verdicts-1\",\n  \"status\": %d,\n  \"pass\": %zu,\n  \"mismatch\": %zu,\n"
           "  \"inconclusive\": %zu,\n  \"error\": %zu,\n  \"verdicts\": [\n",
           whole_status(counts), counts[STATUS_PASS], counts[STATUS_MISMATCH], counts[STATUS_INCONCLUSIVE],
           counts[STATUS_BAD]);
    for (size_t i = 0; i < m->count; i++) {
        copy_report(m->jobs[i].output);
        if (i + 1 < m->count) puts(",");
    }
    puts("  ]\n}");
}

static void print_junit(const many *m)
{
    junit_sum all = {0};
    for (size_t i = 0; i < m->count; i++) {
        all.tests += m->sums[i].tests;
        all.failures += m->sums[i].failures;
        all.errors += m->sums[i].errors;
        all.seconds += m->sums[i].seconds;
    }
    junit_print_head(&all);
    for (size_t i = 0; i < m->count; i++) copy_report(m->jobs[i].output);
    junit_print_foot();
}

static int print_all(const many *m)
{
    size_t counts[STATUSES] = {0};
    for (size_t i = 0; i < m->count; i++) counts[m->jobs[i].status]++;
    result_begins();
    switch (m->options->format) {
    case FORMAT_JSON: print_json(m, counts); break;
    case FORMAT_JUNIT: print_junit(m); break;
    default: print_text(m, counts);
    }
    return whole_status(counts);
}

/* ---- all of them ---- */

int verify_many(const verify_options *o, const verify_pair *pairs, size_t count)
{
    many m = {.options = o, .pairs = pairs, .count = count, .limit = o->jobs ? o->jobs : 1};
    size_t bytes = count * sizeof *m.sums;
    if (m.limit > count) m.limit = count;
    m.jobs = allocate(count, sizeof *m.jobs);
    m.sums = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (m.sums == MAP_FAILED) {
        free(m.jobs);
        return fail("no memory for %zu verdicts", count);
    }
    (void)terminal_colors(); /* settled here, before the jobs write to files */
    run_jobs(&m);
    int status = print_all(&m);
    for (size_t i = 0; i < count; i++) fclose(m.jobs[i].output);
    munmap(m.sums, bytes);
    free(m.jobs);
    return status;
}
