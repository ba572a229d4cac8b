/* bench.h: what the tables of `etref bench` share. */
#ifndef ETREF_TOOL_BENCH_H
#define ETREF_TOOL_BENCH_H

#include <stdbool.h>
#include <stddef.h>

/* Sorts the values. */
double bench_median(double *values, size_t count);

/* Table "verify" (bench_verify.c); returns the exit status. */
int bench_verify(size_t rounds, bool json);

#endif
