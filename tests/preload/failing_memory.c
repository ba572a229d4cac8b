/* failing_memory.c: loaded before the C library (LD_PRELOAD), makes allocations of a whole command
 * fail, whichever library asks for them.
 *
 *   ETREF_FAIL=once:K    the K-th allocation of the process fails, counted from 1
 *   ETREF_FAIL=from:K    so does every later one
 *   ETREF_FAIL=each:STEP at every STEP-th allocation the process forks: a child sees it fail, once, and
 *                        where it then asks again, another child sees all the later ones fail, too. The
 *                        process itself goes on when they have ended. So every allocation of a command
 *                        is tried in one run of it; the process must have one thread
 *   ETREF_TALK=OUT:IN    descriptors; each: a report goes to OUT before a child is forked, and again
 *                        when it has ended; then a byte is waited for on IN
 *   ETREF_FAIL=threads   no thread can be started
 *   ETREF_COUNT=FILE     at its end the process writes here how many allocations it asked for
 *
 * __libc_malloc and its like are the C library's own names for what is replaced here.
 */
#include "tests/preload/failing_memory.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/* glibc's own names for its allocator. NOLINTBEGIN(bugprone-reserved-identifier) */
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *room, size_t size);
void *__libc_memalign(size_t alignment, size_t size);
/* NOLINTEND(bugprone-reserved-identifier) */

enum { UNREAD, NONE, ONCE, FROM, EACH, THREADS };
enum { DESCRIPTORS = 32 }; /* more than the tool has open */

static atomic_int mode = UNREAD;
static atomic_ulong asked;
static unsigned long at;       /* EACH: the step */
static int to_test, from_test; /* descriptors */
static atomic_bool *again;     /* shared with children: the last one asked for more */

/* Before the C library has set the environment up, nothing is counted and nothing fails. */
static void read_wish(void)
{
    const char *wish = environ ? getenv("ETREF_FAIL") : NULL;
    if (environ == NULL) return;
    at = wish && strchr(wish, ':') ? strtoul(strchr(wish, ':') + 1, NULL, 10) : 0;
    mode = wish == NULL                     ? NONE
           : strncmp(wish, "once:", 5) == 0 ? ONCE
           : strncmp(wish, "from:", 5) == 0 ? FROM
           : strncmp(wish, "each:", 5) == 0 ? EACH
           : strcmp(wish, "threads") == 0   ? THREADS
                                            : NONE;
}

/* Without the test, or without memory for a child, there is nothing to go on for. */
static _Noreturn void give_up(void)
{
    _exit(97);
}

static void start_talking(void)
{
    const char *descriptors = getenv("ETREF_TALK");
    char *second;
    if (again != NULL) return;
    if (descriptors) {
        to_test = (int)strtol(descriptors, &second, 10);
        from_test = (int)strtol(second + (*second == ':'), NULL, 10);
    }
    again = mmap(NULL, sizeof *again, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (!descriptors || again == MAP_FAILED) give_up();
}

static void report(failing_report r)
{
    char answer;
    if (write(to_test, &r, sizeof r) != sizeof r || read(from_test, &answer, 1) != 1) give_up();
}

/* A child moves the places in open files that it has from its parent. */
static void keep_places(off_t *places)
{
    for (int i = 0; i < DESCRIPTORS; i++) places[i] = lseek(i, 0, SEEK_CUR);
}

static void restore_places(const off_t *places)
{
    for (int i = 0; i < DESCRIPTORS; i++)
        if (places[i] >= 0) lseek(i, places[i], SEEK_SET);
}

/* True in a child, which fails as `how` says; false when it has ended and was reported. */
static bool becomes_child(int how, unsigned long number)
{
    off_t places[DESCRIPTORS];
    failing_report r = {.number = number, .for_good = how == FROM, .ended = false};
    report(r);
    keep_places(places);
    pid_t child = fork();
    if (child == 0) {
        /* A child that starts the tool anew sees nothing fail there. */
        char *asked = getenv("ETREF_FAIL");
        if (asked) asked[0] = '-';
        mode = how;
        at = number;
        return true;
    }
    if (child < 0 || waitpid(child, &r.status, 0) != child) give_up();
    r.ended = true;
    report(r);
    restore_places(places);
    return false;
}

static bool fails_in_a_child(unsigned long number)
{
    start_talking();
    *again = false;
    return becomes_child(ONCE, number) || (*again && becomes_child(FROM, number));
}

static bool fails(void)
{
    if (mode == UNREAD) read_wish();
    if (mode == UNREAD) return false;
    unsigned long number = ++asked;
    bool now = (mode == ONCE && number == at) || (mode == FROM && number >= at) ||
               (mode == EACH && at > 0 && number % at == 0 && fails_in_a_child(number));
    if (!now && mode == ONCE && number > at && again != NULL) *again = true;
    if (now) errno = ENOMEM;
    return now;
}

void *malloc(size_t size)
{
    return fails() ? NULL : __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    return fails() ? NULL : __libc_calloc(count, size);
}

void *realloc(void *room, size_t size)
{
    return fails() ? NULL : __libc_realloc(room, size);
}

void *memalign(size_t alignment, size_t size)
{
    return fails() ? NULL : __libc_memalign(alignment, size);
}

void *aligned_alloc(size_t alignment, size_t size)
{
    return fails() ? NULL : __libc_memalign(alignment, size);
}

int posix_memalign(void **room, size_t alignment, size_t size)
{
    if (fails()) return ENOMEM;
    *room = __libc_memalign(alignment, size);
    return *room ? 0 : ENOMEM;
}

int pthread_create(pthread_t *thread, const pthread_attr_t *facts, void *(*start)(void *),
                   void *with)
{
    int (*usual)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    if (mode == THREADS) return EAGAIN;
    *(void **)&usual = dlsym(RTLD_NEXT, "pthread_create");
    return usual(thread, facts, start, with);
}

__attribute__((destructor)) static void write_count(void)
{
    const char *name = getenv("ETREF_COUNT");
    FILE *file = name ? fopen(name, "w") : NULL;
    if (file == NULL) return;
    fprintf(file, "%lu\n", asked);
    fclose(file);
}
