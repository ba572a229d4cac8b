/* partial.c: removing the partial file on a signal. See partial.h.
 *
 * The name lies in a static buffer: a handler must not allocate, and may only call what POSIX lists
 * as async-signal-safe (here unlink, signal, raise, pthread_self, pthread_kill).
 *
 * A signal may be delivered to any thread. If a worker's handler removed the file, the main thread
 * could create it a moment later and the process die after that. So the work is passed on to the
 * main thread, the only one that writes: nothing of its own code runs between its handler's unlink
 * and the end of the process, because a signal raised inside its own handler stays blocked until
 * the handler returns, and is delivered before the interrupted code goes on.
 */
#include "tools/etref/partial.h"
#include "etref/safetensors.h"

#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <unistd.h>

static char partial_path[PATH_MAX];
static volatile sig_atomic_t partial_armed;
static pthread_t main_thread;

static void on_signal(int number)
{
    if (!pthread_equal(pthread_self(), main_thread)) {
        pthread_kill(main_thread, number);
        return;
    }
    if (partial_armed) unlink(partial_path);
    signal(number, SIG_DFL);
    raise(number);
}

void partial_install(void)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction action = {.sa_handler = on_signal}, before;
    main_thread = pthread_self();
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        /* nohup and shells that start us in the background ignore some of these: so do we. */
        if (sigaction(numbers[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN)
            sigaction(numbers[i], &action, NULL);
    }
    /* Past the file size limit, write() then fails with EFBIG and the library cleans up. */
    signal(SIGXFSZ, SIG_IGN);
}

et_status partial_guard(const char *path, et_error *error)
{
    partial_armed = 0;
    if (et_partial_path(path, partial_path, sizeof partial_path) != 0)
        return et_fail(error, ET_EINVAL, "%s: the path is too long", path);
    partial_armed = 1;
    return ET_OK;
}

void partial_release(void)
{
    partial_armed = 0;
}
