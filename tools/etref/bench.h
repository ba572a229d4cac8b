/* bench.h: what the tables of `etref bench` share. */
#ifndef ETREF_TOOL_BENCH_H
#define ETREF_TOOL_BENCH_H

#include "etref/gpt.h"

#include <stdbool.h>
#include <stddef.h>

enum { BENCH_ROUNDS = 99 }; /* at most */

/* Sorts the values. */
double bench_median(double *values, size_t count);

/* What a peak is measured on, allocated; and flops per second of one large square product: the best
 * that this machine does. */
et_real *bench_squares(void);
double bench_peak(et_engine engine, et_real *squares);

/* A line: precision, engine, kernels, threads, rounds. */
void bench_print_setting(et_engine engine, size_t rounds);

/* Table "verify" (bench_verify.c); returns the exit status. */
int bench_verify(size_t rounds, bool json);

/* --model (bench_model.c); returns the exit status. */
int bench_model(const et_gpt_config *config, size_t rounds, bool json);

#endif
