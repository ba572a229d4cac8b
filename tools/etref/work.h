/* work.h: how much a case is to compute. */
#ifndef ETREF_TOOL_WORK_H
#define ETREF_TOOL_WORK_H

#include "etref/case.h"

/* Multiplications of a step forward and backward, of its matrix products alone; about, where the routing decides. */
double case_work(const et_case *c);

#endif
