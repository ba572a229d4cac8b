/* step_model.h: a step of a layer of the model around the experts, or of an optimiser. Internal. */
#ifndef ET_STEP_MODEL_H
#define ET_STEP_MODEL_H

#include "etref/step.h"

/* The inputs alone. */
et_step_model et_model_inputs(const et_step_model *m);

/* Everything that the case's layer computes, into the step's arrays, which are there and zeroed. */
et_status et_model_step_run(et_step *s, et_error *error);

#endif
