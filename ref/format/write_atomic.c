/* write_atomic.c: a file that is there whole or not at all. See et_file_write in etref/safetensors.h.
 *
 *     a file without a name in the folder -> content -> fsync -> name beside it -> rename -> fsync of the folder
 *
 * Where the file system has files without a name (O_TMPFILE), what a killed process leaves behind
 * vanishes with it, whatever killed it. The finished file needs a name of its own for an instant,
 * since a link cannot replace what is there and a rename can. Elsewhere (NFS, FUSE, old overlays)
 * the file has that name from the start.
 *
 * The name holds 64 random bits drawn once a process, to which the thread's number is added: two
 * containers may write one path on a shared volume with one process id, and so may two threads. Nobody
 * else's file is removed: each is locked (flock) for as long
 * as its writer lives, and only what nobody holds, and has a name of ours, is swept up by the next
 * file that is written into the folder. That rests on locks that all hosts see: where a network file
 * system keeps them to itself (NFS mounted with local_lock), a writer on another host may lose its
 * file while it writes, and gets ET_EIO.
 *
 * Left out: locking of `path` itself. Two writers of one path each write a whole file; the later
 * rename stays.
 */
#include "etref/safetensors.h"
#include "ref/base/memory.h"
#include "ref/format/files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- the name: PATH.PROCESS-RANDOM.part ---- */

static const char SUFFIX[] = ".part", HEX[] = "0123456789abcdef";

enum { RANDOM_DIGITS = 16, NAME_ROOM = sizeof ".-9223372036854775808-0123456789abcdef.part" };

static pthread_once_t drawn = PTHREAD_ONCE_INIT;
static uint64_t
    process_random; /* written once, and by a forked child: in a container of its own it may have its parent's number */
static atomic_uint threads; /* that have asked for a name */
static _Thread_local unsigned thread_number; /* from 1; 0: has not asked yet */

static void draw_anew(void)
{
    struct timespec now = {0};
    if (getentropy(&process_random, sizeof process_random) == 0) return;
    clock_gettime(CLOCK_REALTIME, &now); /* a kernel without entropy */
    process_random = (uint64_t)now.tv_sec * 1000000007u ^ (uint64_t)now.tv_nsec << 20;
}

static void draw(void)
{
    draw_anew();
    pthread_atfork(NULL, NULL, draw_anew);
}

int et_partial_path(const char *path, char *buffer, size_t room)
{
    pthread_once(&drawn, draw);
    if (thread_number == 0) thread_number = atomic_fetch_add(&threads, 1) + 1;
    int length = snprintf(buffer, room, "%s.%ld-%016llx%s", path, (long)getpid(),
                          (unsigned long long)(process_random + thread_number), SUFFIX);
    return length >= 0 && (size_t)length < room ? 0 : -1;
}

/* Ends a name as et_partial_path ends it? */
static bool is_partial(const char *name)
{
    size_t length = strlen(name), end = sizeof SUFFIX - 1;
    if (length < end + RANDOM_DIGITS + 1 || strcmp(name + length - end, SUFFIX) != 0) return false;
    const char *random = name + length - end - RANDOM_DIGITS;
    if (strspn(random, HEX) != RANDOM_DIGITS || random[-1] != '-') return false;
    const char *digit = random - 1;
    while (digit > name && digit[-1] >= '0' && digit[-1] <= '9') digit--;
    return digit < random - 1 && digit - 1 > name && digit[-1] == '.';
}

/* ---- what dead writers left ---- */

static bool same_file(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* Removes `name` if nobody holds its lock: its writer is dead. Where there are no locks, nothing. */
static void sweep_one(int folder, const char *name)
{
    struct stat facts, now;
    int file = openat(folder, name, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (file < 0) return;
    if (fstat(file, &facts) == 0 && S_ISREG(facts.st_mode) && flock(file, LOCK_EX | LOCK_NB) == 0 &&
        fstatat(folder, name, &now, AT_SYMLINK_NOFOLLOW) == 0 && same_file(&facts, &now))
        unlinkat(folder, name, 0);
    close(file);
}

static void sweep(int folder)
{
    int copy = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *list = copy >= 0 ? fdopendir(copy) : NULL;
    struct dirent *entry;
    if (list == NULL && copy >= 0) close(copy);
    while (list != NULL && (entry = readdir(list)) != NULL)
        if (is_partial(entry->d_name)) sweep_one(folder, entry->d_name);
    if (list != NULL) closedir(list);
}

/* ---- one file ---- */

typedef struct whole {
    const char *path;
    char *partial;
    int folder, file;
    bool named; /* the file has the name `partial`, and is ours */
} whole;

/* The folder of the path: listed, and made durable after the rename. */
static et_status open_folder(whole *w, et_error *error)
{
    const char *slash = strrchr(w->path, '/');
    const char *from = slash == NULL ? "." : slash == w->path ? "/" : w->path;
    size_t length = slash == NULL || slash == w->path ? 1 : (size_t)(slash - w->path);
    void *room;
    et_status status = et_allocate(&room, length + 1, 1, "a name", error);
    if (status != ET_OK) return status;
    memcpy(room, from, length);
    w->folder = open(room, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(room);
    if (w->folder >= 0) return ET_OK;
    return et_fail(error, ET_EIO, "%s: cannot open its folder: %s; create it first", et_shown_path(w->path),
                   strerror(errno));
}

/* The place under which a file without a name can be given one. */
static void descriptor_path(int file, char out[40])
{
    snprintf(out, 40, "/proc/self/fd/%d", file);
}

/* A file without a name, locked; false where there are none. */
static bool open_unnamed(whole *w)
{
    char place[40];
    w->file = openat(w->folder, ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0666);
    if (w->file < 0) return false;
    descriptor_path(w->file, place);
    if (access(place, F_OK) == 0) {
        flock(w->file, LOCK_EX | LOCK_NB);
        return true;
    }
    close(w->file);
    w->file = -1;
    return false;
}

/* A new file with the partial name, locked. Somebody who sweeps may take the file for a dead
 * writer's in the moment before it is locked; then it is made once more. */
static et_status open_named(whole *w, et_error *error)
{
    enum { ATTEMPTS = 100 };
    struct stat ours, now;
    for (int i = 0; i < ATTEMPTS; i++) {
        w->file = open(w->partial, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (w->file < 0)
            return et_fail(error, ET_EIO, "%s: cannot create the temporary file beside it: %s",
                           et_shown_path(w->path), strerror(errno));
        flock(w->file, LOCK_EX); /* where there are no locks nobody sweeps */
        if (fstat(w->file, &ours) == 0 && lstat(w->partial, &now) == 0 && same_file(&ours, &now)) {
            w->named = true;
            return ET_OK;
        }
        close(w->file);
        w->file = -1;
    }
    return et_fail(error, ET_EIO, "%s: the temporary file beside it is taken away again and again",
                   et_shown_path(w->path));
}

static et_status cannot_write(const whole *w, et_error *error)
{
    return et_fail(error, ET_EIO, "%s: cannot write: %s; nothing was kept", et_shown_path(w->path),
                   strerror(errno));
}

static et_status fill(const whole *w, et_file_content *content, void *user, et_error *error)
{
    et_status status = content(w->file, user, error);
    if (status == ET_OK && fsync(w->file) != 0) status = cannot_write(w, error);
    return status;
}

/* Gives the finished file its name. Some file systems cannot sync a folder and say EINVAL. */
static et_status publish(whole *w, et_error *error)
{
    if (!w->named) {
        char place[40];
        descriptor_path(w->file, place);
        if (linkat(AT_FDCWD, place, AT_FDCWD, w->partial, AT_SYMLINK_FOLLOW) != 0)
            return et_fail(error, ET_EIO, "%s: cannot create the temporary file beside it: %s",
                           et_shown_path(w->path), strerror(errno));
        w->named = true;
    }
    if (rename(w->partial, w->path) != 0)
        return et_fail(error, ET_EIO, "%s: cannot rename the temporary file to this: %s",
                       et_shown_path(w->path), strerror(errno));
    w->named = false;
    if (fsync(w->folder) != 0 && errno != EINVAL)
        return et_fail(error, ET_EIO, "%s: is written, but may not survive a power failure: %s",
                       et_shown_path(w->path), strerror(errno));
    return ET_OK;
}

et_status et_file_write(const char *path, et_file_content *content, void *user, et_error *error)
{
    /* A rename would silently replace a device such as /dev/null, or a pipe, by a file. */
    struct stat facts;
    if (stat(path, &facts) == 0 && !S_ISREG(facts.st_mode))
        return et_fail(error, ET_EIO, "%s: exists and is not a regular file; choose another name",
                       et_shown_path(path));
    void *name = NULL;
    size_t room = strlen(path) + NAME_ROOM;
    whole w = {.path = path, .folder = -1, .file = -1};
    et_status status = et_allocate(&name, room, 1, "a name", error);
    if (status != ET_OK) return status;
    w.partial = name;
    et_partial_path(path, w.partial, room);
    if ((status = open_folder(&w, error)) == ET_OK) {
        sweep(w.folder);
        if (!open_unnamed(&w)) status = open_named(&w, error);
    }
    if (status == ET_OK) status = fill(&w, content, user, error);
    if (status == ET_OK) status = publish(&w, error);
    if (w.named) unlink(w.partial);
    if (w.file >= 0) close(w.file); /* and the lock; fsync has said what could not be written */
    if (w.folder >= 0) close(w.folder);
    free(w.partial);
    return status;
}
