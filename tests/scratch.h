/* scratch.h: a folder of its own for each test, empty before and after.
 *
 * make_folder and remove_folder are a Check fixture; a test works on `path`, or on other names in
 * `folder` that it removes itself. remove_folder fails the test if anything else was left behind.
 */
#ifndef ETREF_TESTS_SCRATCH_H
#define ETREF_TESTS_SCRATCH_H

#include "tests/check.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[4096];
static char path[4200]; /* the file under test, in the folder */

static inline int entries_in_folder(void)
{
    DIR *open_folder = opendir(folder);
    ck_assert_ptr_nonnull(open_folder);
    int entries = -2; /* . and .. */
    while (readdir(open_folder) != NULL) entries++;
    closedir(open_folder);
    return entries;
}

static inline void make_folder(void)
{
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/etref-test-XXXXXX", base != NULL ? base : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/file.safetensors", folder);
}

static inline void remove_folder(void)
{
    unlink(path);
    ck_assert_int_eq(entries_in_folder(), 0); /* nothing else was left behind */
    ck_assert_int_eq(rmdir(folder), 0);
}

static inline int open_descriptors(void)
{
    int open_ones = 0;
    for (int fd = 0; fd < 256; fd++) open_ones += fcntl(fd, F_GETFD) != -1;
    return open_ones;
}

#endif
