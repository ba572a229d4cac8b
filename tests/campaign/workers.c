/* workers.c: a few processes that do the units of a list. See campaign.h.
 *
 * Processes, not threads: each has one thread for all its products, so that what a unit finds does not
 * depend on how many there are; and one that crashes takes nothing else with it.
 */
#include "tests/campaign/campaign.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST_WORKERS = 64 };

/* What the processes share. at: the unit that each one is at, and none. */
typedef struct shared {
    atomic_size_t next, done, failed, at[MOST_WORKERS];
} shared;

typedef struct crew {
    const cp_unit **units; /* those to be done, the longest first */
    size_t count;
    const char *journal;
    shared *common;
    pid_t process[MOST_WORKERS]; /* 0: has ended */
} crew;

static bool do_unit(const crew *k, const cp_unit *unit)
{
    char *text = NULL;
    size_t length = 0;
    et_error error = {.text = ""};
    FILE *lines = open_memstream(&text, &length);
    bool done = lines && unit->part->work(unit, lines, &error);
    if (lines) done = fclose(lines) == 0 && done;
    if (done) done = cp_journal_append(k->journal, unit->key, text);
    if (!done)
        fprintf(stderr, "campaign: %s: %s\n", unit->key,
                error.text[0] ? error.text : "cannot be written to the journal");
    free(text);
    return done;
}

static void work(const crew *k, size_t worker)
{
    size_t i;
    while ((i = atomic_fetch_add(&k->common->next, 1)) < k->count) {
        atomic_store(&k->common->at[worker], i);
        if (!do_unit(k, k->units[i])) atomic_fetch_add(&k->common->failed, 1);
        atomic_fetch_add(&k->common->done, 1);
    }
}

/* ---- progress, for people ---- */

static void show_progress(const crew *k, double seconds)
{
    size_t begun = atomic_load(&k->common->next), done = atomic_load(&k->common->done);
    double all = 0, behind = 0;
    for (size_t i = 0; i < k->count; i++) all += k->units[i]->cost;
    for (size_t i = 0; i < k->count && i < done; i++) behind += k->units[i]->cost;
    const cp_unit *unit = k->units[begun < k->count ? begun : k->count - 1];
    double left = behind > 0 ? seconds * (all - behind) / behind : 0;
    fprintf(stderr, "\r%zu of %zu, %.0f min gone, about %.0f min left: %-40.40s", done, k->count,
            seconds / 60, left / 60, unit->key);
}

/* ---- processes ---- */

static bool start(crew *k, size_t worker)
{
    pid_t child;
    atomic_store(&k->common->at[worker], k->count);
    fflush(NULL);
    child = fork();
    if (child == 0) {
        work(k, worker);
        _exit(EXIT_SUCCESS);
    }
    k->process[worker] = child > 0 ? child : 0;
    return child > 0;
}

/* One of them has ended. If it crashed, its unit is lost, and another takes its place. */
static void replace(crew *k, size_t worker, int status)
{
    size_t i = atomic_load(&k->common->at[worker]);
    k->process[worker] = 0;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return;
    fprintf(stderr, "campaign: %s: crashed (status %d)\n", i < k->count ? k->units[i]->key : "-",
            status);
    atomic_fetch_add(&k->common->failed, 1);
    atomic_fetch_add(&k->common->done, 1);
    start(k, worker);
}

static bool is_anyone_there(const crew *k, size_t workers)
{
    for (size_t i = 0; i < workers; i++)
        if (k->process[i] != 0) return true;
    return false;
}

static void wait_for(crew *k, size_t workers)
{
    bool watched = isatty(STDERR_FILENO);
    const struct timespec moment = {.tv_nsec = 500000000};
    for (double seconds = 0; is_anyone_there(k, workers);) {
        int status;
        pid_t ended = waitpid(-1, &status, watched ? WNOHANG : 0);
        if (ended < 0) break;
        for (size_t i = 0; ended > 0 && i < workers; i++)
            if (k->process[i] == ended) replace(k, i, status);
        if (ended > 0) continue;
        show_progress(k, seconds);
        nanosleep(&moment, NULL);
        seconds += 0.5;
    }
    if (watched) fprintf(stderr, "\r%80s\r", "");
}

static bool work_together(crew *k, size_t workers)
{
    if (workers > MOST_WORKERS) workers = MOST_WORKERS;
    if (workers > k->count) workers = k->count;
    for (size_t i = 0; i < workers; i++)
        if (!start(k, i)) break;
    wait_for(k, workers);
    return atomic_load(&k->common->failed) == 0 && atomic_load(&k->common->done) == k->count;
}

/* ---- which ---- */

cp_unit *cp_list_add(cp_list *list, const cp_part *part)
{
    if (list->count == list->room) {
        size_t room = 2 * list->room + 64;
        cp_unit *more = realloc(list->units, room * sizeof *more);
        if (!more) return NULL;
        list->units = more;
        list->room = room;
    }
    cp_unit *unit = &list->units[list->count++];
    *unit = (cp_unit){.part = part};
    return unit;
}

static int longest_first(const void *a, const void *b)
{
    const cp_unit *one = *(const cp_unit *const *)a, *two = *(const cp_unit *const *)b;
    return one->cost < two->cost ? 1 : one->cost > two->cost ? -1 : strcmp(one->key, two->key);
}

static size_t find_missing(const cp_list *list, const cp_journal *journal, const cp_unit **missing)
{
    size_t count = 0;
    for (size_t i = 0; i < list->count; i++)
        if (!cp_journal_find(journal, list->units[i].key)) missing[count++] = &list->units[i];
    qsort(missing, count, sizeof *missing, longest_first);
    return count;
}

bool cp_do_all(const cp_list *list, const cp_journal *journal, size_t workers)
{
    shared *common =
        mmap(NULL, sizeof *common, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    const cp_unit **missing = calloc(list->count + 1, sizeof *missing);
    bool well = missing && common != MAP_FAILED;
    if (well) {
        crew k = {missing, find_missing(list, journal, missing), journal->path, common, {0}};
        well = k.count == 0 || (workers > 0 && work_together(&k, workers));
    }
    if (common != MAP_FAILED) munmap(common, sizeof *common);
    free(missing);
    return well;
}
