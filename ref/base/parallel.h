/* parallel.h: when a loop is worth more than one thread. Internal.
 *
 * Waking threads takes some microseconds, and on a busy machine milliseconds. A loop that moves
 * fewer elements than this is done before they would have started. No bit depends on it.
 */
#ifndef ET_PARALLEL_H
#define ET_PARALLEL_H

enum { ET_WORTH_THREADS = 1 << 15 };

#endif
