/* no_lock.c: libetref without the locks of its goldens. Loaded before ThreadSanitizer's runtime with
 * LD_PRELOAD, it makes pthread_mutex_lock and pthread_mutex_unlock do nothing where the library calls
 * them for a mutex in allocated memory. A check that finds no race then could find none.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>

typedef int on_mutex(pthread_mutex_t *mutex);

static bool of_golden(const void *caller, const pthread_mutex_t *mutex)
{
    Dl_info from, lies;
    return dladdr(caller, &from) && strstr(from.dli_fname, "/libetref.so") && !dladdr(mutex, &lies);
}

static int pass_on(const char *name, pthread_mutex_t *mutex)
{
    on_mutex *real;
    *(void **)&real = dlsym(RTLD_NEXT, name);
    return real(mutex);
}

int pthread_mutex_lock(pthread_mutex_t *mutex)
{
    return of_golden(__builtin_return_address(0), mutex) ? 0 : pass_on("pthread_mutex_lock", mutex);
}

int pthread_mutex_unlock(pthread_mutex_t *mutex)
{
    return of_golden(__builtin_return_address(0), mutex) ? 0 : pass_on("pthread_mutex_unlock", mutex);
}
