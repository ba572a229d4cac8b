/* failing_memory.c: loaded before the C library (LD_PRELOAD), makes allocations of a whole command
 * fail, whichever library asks for them.
 *
 *   ETREF_FAIL=once:K    the K-th allocation of the process fails, counted from 1
 *   ETREF_FAIL=from:K    so does every later one
 *   ETREF_FAIL=threads   no thread can be started
 *   ETREF_COUNT=FILE     at its end the process writes here how many allocations it asked for
 *
 * __libc_malloc and its like are the C library's own names for what is replaced here.
 */
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* glibc's own names for its allocator. NOLINTBEGIN(bugprone-reserved-identifier) */
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *room, size_t size);
void *__libc_memalign(size_t alignment, size_t size);
/* NOLINTEND(bugprone-reserved-identifier) */

enum { UNREAD, NONE, ONCE, FROM, THREADS };

static atomic_int mode = UNREAD;
static atomic_ulong asked;
static unsigned long at;

/* Before the C library has set the environment up, nothing is counted and nothing fails. */
static void read_wish(void)
{
    const char *wish = environ ? getenv("ETREF_FAIL") : NULL;
    if (environ == NULL) return;
    at = wish && strchr(wish, ':') ? strtoul(strchr(wish, ':') + 1, NULL, 10) : 0;
    mode = wish == NULL                     ? NONE
           : strncmp(wish, "once:", 5) == 0 ? ONCE
           : strncmp(wish, "from:", 5) == 0 ? FROM
           : strcmp(wish, "threads") == 0   ? THREADS
                                            : NONE;
}

static bool fails(void)
{
    if (mode == UNREAD) read_wish();
    if (mode == UNREAD) return false;
    unsigned long number = ++asked;
    bool now = (mode == ONCE && number == at) || (mode == FROM && number >= at);
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
