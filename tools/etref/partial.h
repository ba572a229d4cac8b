/* partial.h: no half-written file survives SIGINT, SIGTERM or SIGHUP.
 *
 * The library writes into a file without a name, which vanishes with the process, or, where the file
 * system has none, into et_partial_path(path), which would stay until the next file is written into
 * that folder. The handler here removes it at once, and then lets the signal end the process as it
 * would have, so that a shell or a build sees 128 + its number.
 */
#ifndef ETREF_TOOL_PARTIAL_H
#define ETREF_TOOL_PARTIAL_H

#include "etref/status.h"

/* Call once, in the main thread, before any other thread starts. */
void partial_install(void);

/* Call before and after the library writes `path`. ET_EINVAL: the path is too long. */
et_status partial_guard(const char *path, et_error *error);
void partial_release(void);

#endif
