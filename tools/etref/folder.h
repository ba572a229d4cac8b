/* folder.h: the folder of --out. */
#ifndef ETREF_TOOL_FOLDER_H
#define ETREF_TOOL_FOLDER_H

#include "etref/status.h"

/* Makes it, and the folders above it, where they are missing. ET_EIO: cannot be made, is no folder, or cannot be
 * written to. */
et_status make_folders(const char *path, et_error *error);

#endif
