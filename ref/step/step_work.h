/* step_work.h: how much a case is to compute, and how many threads that is worth. Internal. */
#ifndef ET_STEP_WORK_H
#define ET_STEP_WORK_H

#include "etref/case.h"
#include <stddef.h>

/* Multiplications of a step forward and backward, of its matrix products alone; about, where the routing decides. */
double et_case_work(const et_case *c);

/* Of so many cores those that are worth being woken for layers of `work` multiplications; at least 1. A small layer has one. */
size_t et_threads_worth(double work, size_t cores);

#endif
