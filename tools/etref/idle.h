/* idle.h: switches of a case that do nothing in its golden. */
#ifndef ETREF_TOOL_IDLE_H
#define ETREF_TOOL_IDLE_H

#include "etref/step.h"
#include <stdbool.h>

/* A capacity that clamps nobody, groups that are all kept, a loss without weight, a synchronisation after no warm-up: a
 * kernel that forgot it would pass by this golden. False: there is none. The step has run. */
bool describe_idle(char *out, size_t room, const et_step *s);

#endif
