/* memory_limit.h: how much memory this process may take. */
#ifndef ETREF_TOOL_MEMORY_LIMIT_H
#define ETREF_TOOL_MEMORY_LIMIT_H

#include <stddef.h>

/* Three quarters of what there is: of the machine's memory, or of the least limit that a control
 * group of this process sets (a container's). 0 where neither is known: no limit. */
size_t memory_limit(void);

/* From here on the limit is of one process of so many. */
void memory_share(size_t processes);

/* What is left of it beside `used` bytes, at least 1; 0 where there is no limit. */
size_t memory_left(size_t used);

/* The least limit among the groups that `groups` names (/proc/self/cgroup), and the groups above
 * them, as their files below `mount` (/sys/fs/cgroup) give it; SIZE_MAX if there is none. */
size_t memory_limit_of_groups(const char *groups, const char *mount);

#endif
