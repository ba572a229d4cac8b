/* folder.c: see folder.h. */
#include "tools/etref/folder.h"
#include "tools/etref/failure.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* False: errno says why. */
static bool make_one(const char *path)
{
    struct stat facts;
    if (mkdir(path, 0777) == 0) return true;
    int reason = errno;
    if (stat(path, &facts) == 0) reason = S_ISDIR(facts.st_mode) ? 0 : ENOTDIR;
    errno = reason;
    return reason == 0;
}

et_status make_folders(const char *path, et_error *error)
{
    char *part = strcpy(allocate(strlen(path) + 1, 1), path);
    bool made = true;
    for (char *slash = strchr(part + (*part == '/'), '/'); made && slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        made = make_one(part);
        *slash = '/';
    }
    made = made && make_one(part) && access(part, W_OK | X_OK) == 0;
    int reason = errno;
    free(part);
    if (made) return ET_OK;
    return et_fail(error, ET_EIO, "--out %s: %s; a folder to write to belongs here", path, strerror(reason));
}
