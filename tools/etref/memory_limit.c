/* memory_limit.c: how much memory this process may take. See memory_limit.h.
 *
 * A line of /proc/self/cgroup is NUMBER:CONTROLLERS:PATH. Of version 2 the number is 0, no controller is
 * named, and the limit stands in MOUNT/PATH/memory.max (MOUNT/unified where both versions are
 * mounted); of version 1 the controller is memory, and the file MOUNT/memory/PATH/
 * memory.limit_in_bytes. Each group above sets a limit, too. Within a container the path may be the
 * one outside, which is not there; then the container's own group is the mount itself.
 */
#include "tools/etref/memory_limit.h"

#include <errno.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The number in a file, or SIZE_MAX: no such file, "max", or more than there can be. */
static size_t read_limit(const char *folder, const char *name)
{
    char path[PATH_MAX + 64], text[32], *end = NULL;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "re");
    if (file == NULL) return SIZE_MAX;
    errno = 0;
    unsigned long long limit =
        fgets(text, sizeof text, file) != NULL ? strtoull(text, &end, 10) : ULLONG_MAX;
    fclose(file);
    if (end == NULL || end == text || errno != 0 || limit > SIZE_MAX) return SIZE_MAX;
    return (size_t)limit;
}

/* The least limit of ROOT/PATH and of every group above it, up to ROOT. */
static size_t least_limit(const char *root, const char *group, const char *name)
{
    char path[PATH_MAX];
    size_t least = SIZE_MAX, start = strlen(root);
    if (snprintf(path, sizeof path, "%s%s", root, group) >= (int)sizeof path) return SIZE_MAX;
    for (;;) {
        size_t limit = read_limit(path, name);
        if (limit < least) least = limit;
        char *slash = strrchr(path, '/');
        if (strlen(path) <= start || slash == NULL) return least;
        *slash = '\0';
    }
}

static int is_among(const char *word, const char *list)
{
    size_t length = strlen(word);
    for (const char *at = list; at != NULL; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
        if (strncmp(at, word, length) == 0 && (at[length] == ',' || at[length] == '\0')) return 1;
    return 0;
}

size_t memory_limit_of_groups(const char *groups, const char *mount)
{
    char line[PATH_MAX], root[PATH_MAX];
    size_t least = SIZE_MAX;
    FILE *file = fopen(groups, "re");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *group = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
        if (group == NULL || group[1] != '/') continue;
        *controllers++ = *group++ = '\0';
        if (strstr(group, "/..") != NULL) group = "/"; /* outside of what is mounted here */
        static const char *const below[] = {"", "/unified", "/memory"};
        for (int i = 0; i < 3; i++) {
            int old = i == 2;
            if (old ? !is_among("memory", controllers) : *controllers != '\0') continue;
            if (snprintf(root, sizeof root, "%s%s", mount, below[i]) >= (int)sizeof root) continue;
            size_t limit = least_limit(root, group, old ? "memory.limit_in_bytes" : "memory.max");
            if (limit < least) least = limit;
        }
    }
    if (file != NULL) fclose(file);
    return least;
}

static size_t sharing = 1; /* so many processes like this one */

void memory_share(size_t processes)
{
    sharing = processes;
}

size_t memory_limit(void)
{
    long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
    size_t machine = pages > 0 && size > 0 ? (size_t)pages * (size_t)size : 0;
    size_t groups = memory_limit_of_groups("/proc/self/cgroup", "/sys/fs/cgroup");
    size_t least = machine == 0 || groups < machine ? groups : machine;
    return least == SIZE_MAX ? 0 : least / 4 * 3 / sharing;
}

size_t memory_left(size_t used)
{
    size_t limit = memory_limit();
    if (limit == 0) return 0;
    return used < limit ? limit - used : 1;
}
