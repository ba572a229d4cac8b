/* parallel.h: when a loop is worth more than one thread. Internal.
 *
 * Waking threads takes some microseconds, and on a busy machine milliseconds. A loop that moves
 * fewer elements than 2^15 is done before they would have started. No bit depends on it.
 */
#ifndef ET_PARALLEL_H
#define ET_PARALLEL_H

#include <stdbool.h>
#include <stddef.h>

/* For the `if` of every parallel loop. Where true, the threads have been made ready to compute:
 * they have the environment of arithmetic.h. */
bool et_worth_threads(size_t elements);

#endif
