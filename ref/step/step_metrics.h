/* step_metrics.h: what is measured of a step's routing. Internal. */
#ifndef ET_STEP_METRICS_H
#define ET_STEP_METRICS_H

#include "etref/step.h"

/* s->metric, whose arrays are there and zeroed; routing, gates and the state before the step are known. ET_ENOMEM. */
et_status et_metrics_run(et_step *s, et_error *error);

#endif
