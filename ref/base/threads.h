/* threads.h: when a loop is worth more than one thread. Internal.
 *
 * Waking threads takes some microseconds, and on a busy machine milliseconds. A loop that moves
 * fewer elements than 2^15 is done before they would have started. No bit depends on it.
 */
#ifndef ET_THREADS_H
#define ET_THREADS_H

#include <stdbool.h>
#include <stddef.h>

/* For the `if` of every parallel loop. Where true, the threads have been made ready to compute:
 * they have the environment of float_environment.h. */
bool et_worth_threads(size_t elements);

/* ET_BY_THREADS(et_worth_threads(n), for (...) one_thing(...)): the loop by threads where it is worth them, else by itself.
 * `omp parallel if (false)` would do, too; but it makes a team of one, whose end is a system call, and small layers
 * pass such loops by the million: a seventh of the time of a verdict on one. */
#define ET_BY_THREADS(worth, ...)                                                                  \
    do {                                                                                           \
        if (worth) {                                                                               \
            _Pragma("omp parallel for") __VA_ARGS__;                                               \
        } else {                                                                                   \
            __VA_ARGS__;                                                                           \
        }                                                                                          \
    } while (0)

/* The smaller of two sizes: what is left of a loop that is cut into pieces. */
static inline size_t et_smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

#endif
