/* ending.c: how the process ends where memory or threads cannot be had. See ending.h. */
#include "tools/etref/ending.h"
#include "ref/step/step_work.h"
#include "tools/etref/commands.h"
#include "tools/etref/failure.h"

#include <cblas.h>
#include <jansson.h>
#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- the end ---- */

static size_t starting; /* so many threads are being started */

/* NOLINTBEGIN(bugprone-signal-handler): on_abort runs where this process itself calls abort(), and
 * interrupts nothing. */

/* " with OMP_STACKSIZE=16k", where it is set. */
static void describe_stack(char *out, size_t room)
{
    const char *name = "OMP_STACKSIZE", *value = getenv(name);
    if (value == NULL) value = getenv(name = "GOMP_STACKSIZE");
    out[0] = '\0';
    if (value) snprintf(out, room, " with %s=%.40s", name, value);
}

static void fail_threads(void)
{
    char stack[80];
    describe_stack(stack, sizeof stack);
    fail("%zu threads cannot be started%s: take fewer (--threads, OMP_NUM_THREADS), leave "
         "OMP_STACKSIZE unset or set it to 1M, or raise 'ulimit -u' and 'ulimit -v'",
         starting, stack);
}

/* The last handler to run, since it was registered first. Buffered results are printed before. */
static void tell_end(void)
{
    if (starting > 0)
        fail_threads();
    else
        fail("a library ended the process, most likely since memory or threads could not be had: "
             "see 'ulimit -a', OMP_NUM_THREADS and OMP_STACKSIZE");
    fflush(stderr);
    _exit(STATUS_BAD);
}

static void end_of_a_library(void)
{
    if (!leaves_by_itself()) tell_end();
}

/* clang's OpenMP aborts instead. What aborts has no result, and no file that is half-written. */
static void on_abort(int number)
{
    (void)number;
    tell_end();
}

/* NOLINTEND(bugprone-signal-handler) */

/* ---- before any library starts ---- */

enum {
    BLAS_BUFFER = 128 << 20, /* OpenBLAS's BUFFER_SIZE on x86-64 and AArch64 */
    BLAS_THREADS = 128       /* no distribution builds it for more */
};

/* True if `count` more buffers of OpenBLAS can be mapped. Mapped only: no page is touched. */
static bool buffers_can_be_had(size_t count)
{
    static void *buffer[BLAS_THREADS + 2 * MAX_THREADS];
    size_t had = 0;
    for (; had < count; had++) {
        buffer[had] =
            mmap(NULL, BLAS_BUFFER, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (buffer[had] == MAP_FAILED) break;
    }
    for (size_t i = 0; i < had; i++) munmap(buffer[i], BLAS_BUFFER);
    return had == count;
}

/* The number in "NAME=number" of the environment; 0 if there is none. getenv does not work yet. */
static size_t number_of(char **environment, const char *name)
{
    size_t width = strlen(name), number = 0;
    for (; *environment; environment++) {
        const char *digit = *environment + width + 1;
        if (strncmp(*environment, name, width) != 0 || digit[-1] != '=') continue;
        while (*digit >= '0' && *digit <= '9' && number < BLAS_THREADS)
            number = 10 * number + (size_t)(*digit++ - '0');
        return number;
    }
    return 0;
}

/* The threads for which OpenBLAS maps a buffer each as soon as it is loaded, as it counts them. */
static size_t threads_of_blas(char **environment)
{
    static const char *const names[] = {"OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS",
                                        "OMP_NUM_THREADS"};
    cpu_set_t set;
    size_t processors = sched_getaffinity(0, sizeof set, &set) == 0 ? (size_t)CPU_COUNT(&set) : 1;
    size_t most = processors < BLAS_THREADS ? processors : BLAS_THREADS, wanted = 0;
    for (size_t i = 0; i < 3 && wanted == 0; i++) wanted = number_of(environment, names[i]);
    return wanted > 0 && wanted < most ? wanted : most;
}

static void say_and_end(const char *line, size_t length)
{
    if (write(STDERR_FILENO, line, length) < 0) _exit(STATUS_BAD);
    _exit(STATUS_BAD);
}

/* Fortran's library, which OpenBLAS brings, calls itself without end where it finds no memory. */
static void on_crash(int number)
{
    static const char line[] = "etref: a library crashed while it was loaded or started its "
                               "threads, most likely since memory could not be had: see 'ulimit "
                               "-a'\n";
    (void)number;
    say_and_end(line, sizeof line - 1);
}

static struct sigaction usual_crash, usual_abort;

/* Only while libraries are loaded, or start their threads: at other times a signal means what it means. */
static void catch_crashes(void)
{
    static char stack[1 << 14];
    const stack_t other = {.ss_sp = stack, .ss_size = sizeof stack};
    const struct sigaction crash = {.sa_handler = on_crash, .sa_flags = SA_ONSTACK};
    const struct sigaction aborted = {.sa_handler = on_abort};
    if (sigaltstack(&other, NULL) == 0) sigaction(SIGSEGV, &crash, &usual_crash);
    sigaction(SIGABRT, &aborted, &usual_abort);
}

static void release_crashes(void)
{
    sigaction(SIGSEGV, &usual_crash, NULL);
    sigaction(SIGABRT, &usual_abort, NULL);
}

/* Where OpenBLAS cannot map a buffer it tries again for ever, and first while it is loaded. So this
 * runs before the constructors of all libraries, when little of the C library works. */
static void before_libraries(int argc, char **argv, char **environment)
{
    static const char line[] =
        "etref: not enough address space for OpenBLAS, which takes 128 MiB and more for each "
        "thread: raise 'ulimit -v', or set OMP_NUM_THREADS=1\n";
    (void)argc, (void)argv;
    atexit(end_of_a_library);
    catch_crashes();
    if (buffers_can_be_had(threads_of_blas(environment))) return;
    say_and_end(line, sizeof line - 1);
}

__attribute__((section(".preinit_array"),
               used)) static void (*const first)(int, char **, char **) = before_libraries;

/* ---- memory ---- */

void begin(void)
{
    release_crashes();
    json_set_alloc_funcs(allocate_bytes, free);
}

/* ---- threads ---- */

/* What the deepest of the library's loops take, twice over. */
enum { LEAST_STACK = 256 << 10 };

static size_t sharing = 1;

void threads_share(size_t processes)
{
    sharing = processes;
}

void use_threads_for(size_t threads, double work)
{
    if (threads == 0 && getenv("OMP_NUM_THREADS") == NULL)
        threads = et_threads_worth(work, (size_t)omp_get_max_threads() / sharing);
    use_threads(threads);
}

/* Bytes of this thread's stack; as many as can be, if the system does not say. */
static size_t stack_size(void)
{
    pthread_attr_t facts;
    void *bottom;
    size_t size = SIZE_MAX;
    if (pthread_getattr_np(pthread_self(), &facts) != 0) return size;
    if (pthread_attr_getstack(&facts, &bottom, &size) != 0) size = SIZE_MAX;
    pthread_attr_destroy(&facts);
    return size;
}

/* OpenBLAS maps a buffer for each of its threads, and one for each thread that asks for a product.
 */
static bool products_can_be_had(size_t threads)
{
    size_t started = (size_t)openblas_get_num_threads();
    return buffers_can_be_had(threads + (threads > started ? threads - started : 0));
}

void use_threads(size_t threads)
{
    size_t least = SIZE_MAX;
    char stack[80];
    if (threads > 0) omp_set_num_threads((int)threads);
    if (omp_get_max_threads() > MAX_THREADS) omp_set_num_threads(MAX_THREADS);
    starting = (size_t)omp_get_max_threads();
    catch_crashes();
#pragma omp parallel reduction(min : least)
    least = stack_size();
    describe_stack(stack, sizeof stack);
    if (least < LEAST_STACK)
        leave(fail("%zu KiB of stack%s are not enough for a thread: at least %d; set OMP_STACKSIZE "
                   "and 'ulimit -s' to more, or leave them unset",
                   least >> 10, stack, LEAST_STACK >> 10));
    if (!products_can_be_had(starting))
        leave(fail("not enough address space for %zu threads of OpenBLAS, which takes 256 MiB for "
                   "each: raise 'ulimit -v', or take fewer threads (--threads, OMP_NUM_THREADS)",
                   starting));
    release_crashes();
    starting = 0;
}
