/* ending.h: the process ends with the tool's own status, or with STATUS_BAD and a line.
 *
 * Libraries end a process in their own way: OpenMP calls exit(1) where it cannot start its threads,
 * and 1 would say that a kernel is wrong; OpenBLAS tries for ever where it cannot map its buffers;
 * Jansson drops what it finds no memory for. Here each of them gets an end that says what is missing.
 */
#ifndef ETREF_TOOL_ENDING_H
#define ETREF_TOOL_ENDING_H

#include <stddef.h>

/* Called first in main: the libraries are loaded. Jansson allocates in the same way from here on, in
 * the library's readers and writers, too. */
void begin(void);

/* More threads than this are a slip: the system would refuse to start them. */
enum { MAX_THREADS = 1024 };

/* Threads for OpenMP and OpenBLAS; 0 leaves the default (OMP_NUM_THREADS, or the machine's cores),
 * cut at MAX_THREADS. They are started at once, with what OpenBLAS needs for each, so that a command
 * that cannot have them ends before it has done anything. */
void use_threads(size_t threads);

/* The same for layers of at most `work` multiplications each (ref/step/step_work.h). Where nobody says how many threads, neither
 * `threads` nor OMP_NUM_THREADS, each gets a share that is worth being woken for: a small layer has one. */
void use_threads_for(size_t threads, double work);

/* From here on the machine's cores are shared with so many processes like this one. */
void threads_share(size_t processes);

#endif
