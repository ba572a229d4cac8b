/* test_whole.c: files are there whole or not at all, whoever else writes, and whatever kills a writer.
 *
 * Calls of openat and linkat from the library pass through here (the linker's --wrap), so that a
 * file system without nameless files (O_TMPFILE), or one that cannot name them, can be played.
 * Writers in other processes are stopped in the middle, by a pipe, and killed there.
 */
#include "etref/safetensors.h"
#include "tests/check_main.h"
#include "tests/scratch.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>
#include <sys/file.h>
#include <sys/wait.h>

static bool nameless_files = true, names_can_be_given = true;

/* The linker gives these names. NOLINTBEGIN(bugprone-reserved-identifier) */
int __real_openat(int folder_fd, const char *name, int flags, ...);
int __wrap_openat(int folder_fd, const char *name, int flags, ...);
int __real_linkat(int from_fd, const char *from, int to_fd, const char *to, int flags);
int __wrap_linkat(int from_fd, const char *from, int to_fd, const char *to, int flags);
/* NOLINTEND(bugprone-reserved-identifier) */

int __wrap_openat(int folder_fd, const char *name, int flags, ...)
{
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = (flags & O_TMPFILE) == O_TMPFILE ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    if ((flags & O_TMPFILE) == O_TMPFILE && !nameless_files) {
        errno = EOPNOTSUPP;
        return -1;
    }
    return __real_openat(folder_fd, name, flags, mode);
}

int __wrap_linkat(int from_fd, const char *from, int to_fd, const char *to, int flags)
{
    if (names_can_be_given) return __real_linkat(from_fd, from, to_fd, to, flags);
    errno = EPERM;
    return -1;
}

/* ---- writers ---- */

static et_status write_text(int descriptor, void *user, et_error *error)
{
    const char *text = user;
    (void)error;
    return write(descriptor, text, strlen(text)) == (ssize_t)strlen(text) ? ET_OK : ET_EIO;
}

static et_status write_and_fail(int descriptor, void *user, et_error *error)
{
    write_text(descriptor, user, error);
    return et_fail(error, ET_EIO, "on purpose");
}

static void expect_text(const char *name, const char *text)
{
    char got[100];
    FILE *file = fopen(name, "r");
    ck_assert_msg(file != NULL, "%s is not there", name);
    size_t length = fread(got, 1, sizeof got - 1, file);
    got[length] = '\0';
    fclose(file);
    ck_assert_str_eq(got, text);
}

/* A writer in a process of its own, which has written half and waits for a byte. */
typedef struct writer {
    pid_t process;
    int to, from;
} writer;

typedef struct halves {
    int hear, tell;
} halves;

static et_status write_halves(int descriptor, void *user, et_error *error)
{
    const halves *h = user;
    char byte = 'h';
    et_status status = write_text(descriptor, "first half, ", error);
    if (write(h->tell, &byte, 1) != 1 || read(h->hear, &byte, 1) != 1) _exit(3);
    return status == ET_OK ? write_text(descriptor, "second half", error) : status;
}

static writer start_writer(const char *name)
{
    int down[2], up[2];
    char byte;
    ck_assert(pipe(down) == 0 && pipe(up) == 0);
    fflush(NULL);
    writer w = {fork(), down[1], up[0]};
    ck_assert_int_ge(w.process, 0);
    if (w.process == 0) {
        halves h = {down[0], up[1]};
        signal(SIGTERM, SIG_DFL); /* Check's own handler would end the test as well */
        _exit(et_file_write(name, write_halves, &h, NULL) == ET_OK ? 0 : 1);
    }
    close(down[0]);
    close(up[1]);
    ck_assert_int_eq((int)read(w.from, &byte, 1), 1);
    return w;
}

static int end_writer(writer *w, int number)
{
    int status;
    if (number != 0)
        kill(w->process, number);
    else
        ck_assert_int_eq((int)write(w->to, "g", 1), 1);
    ck_assert_int_eq(waitpid(w->process, &status, 0), w->process);
    close(w->to);
    close(w->from);
    return status;
}

static const char *beside(const char *name)
{
    static char other[4300];
    snprintf(other, sizeof other, "%s/%s", folder, name);
    return other;
}

/* ---- the tests; each with nameless files and without ---- */

static void begin(int named)
{
    nameless_files = named == 0;
    names_can_be_given = true;
}

START_TEST(a_file_is_written_and_replaced)
{
    et_error error;
    begin(_i);
    ck_assert_int_eq(et_file_write(path, write_text, "one", &error), ET_OK);
    expect_text(path, "one");
    ck_assert_int_eq(et_file_write(path, write_text, "two", &error), ET_OK);
    expect_text(path, "two");
    ck_assert_int_eq(et_file_write(path, write_and_fail, "three", &error), ET_EIO);
    ck_assert_str_eq(error.text, "on purpose");
    expect_text(path, "two");
    ck_assert_int_eq(entries_in_folder(), 1);
    struct stat facts;
    mode_t mask = umask(0);
    umask(mask);
    ck_assert_int_eq(stat(path, &facts), 0);
    ck_assert_int_eq(facts.st_mode & 0777, 0666 & ~mask);
}
END_TEST

START_TEST(a_file_that_cannot_be_named_is_not_there)
{
    et_error error;
    int descriptors = open_descriptors();
    begin(0);
    names_can_be_given = false;
    ck_assert_int_eq(et_file_write(path, write_text, "one", &error), ET_EIO);
    ck_assert_msg(strstr(error.text, "cannot create the temporary file") != NULL, "%s", error.text);
    ck_assert_int_eq(entries_in_folder(), 0);
    ck_assert_int_eq(open_descriptors(), descriptors);
}
END_TEST

/* Whoever is killed in the middle leaves nothing, or nothing after the next file in that folder. */
START_TEST(what_a_killed_writer_leaves_goes_with_the_next_file)
{
    static const int signals[] = {SIGKILL, SIGXCPU, SIGTERM};
    const char *other = beside("other");
    begin(_i);
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        writer w = start_writer(path);
        end_writer(&w, signals[i]);
        ck_assert_int_eq(entries_in_folder(), nameless_files ? 0 : 1);
        ck_assert_int_eq(et_file_write(other, write_text, "next", NULL), ET_OK);
        ck_assert_int_eq(entries_in_folder(), 1);
        expect_text(other, "next");
        ck_assert_int_eq(unlink(other), 0);
    }
}
END_TEST

/* A writer that lives keeps its file, whoever writes beside it, or the same path. */
START_TEST(a_living_writer_is_left_alone)
{
    const char *other = beside("other");
    begin(_i);
    writer w = start_writer(path);
    int with_part = nameless_files ? 0 : 1;
    ck_assert_int_eq(et_file_write(other, write_text, "beside", NULL), ET_OK);
    ck_assert_int_eq(entries_in_folder(), 1 + with_part);
    ck_assert_int_eq(et_file_write(path, write_text, "mine", NULL), ET_OK);
    expect_text(path, "mine");
    ck_assert_int_eq(entries_in_folder(), 2 + with_part);
    ck_assert_int_eq(end_writer(&w, 0), 0);
    expect_text(path, "first half, second half");
    ck_assert_int_eq(unlink(other), 0);
}
END_TEST

/* Only names that the library makes are swept up. */
START_TEST(other_files_are_left_alone)
{
    static const char *const names[] = {"film.part",
                                        "file.safetensors.123.part",
                                        "x.12-0123456789abcdef",
                                        "x.12-0123456789ABCDEF.part",
                                        ".-0123456789abcdef.part",
                                        "x.a2-0123456789abcdef.part"};
    enum { NAMES = sizeof names / sizeof *names };
    begin(_i);
    for (int i = 0; i < NAMES; i++) fclose(fopen(beside(names[i]), "w"));
    fclose(fopen(beside("x.12-0123456789abcdef.part"), "w"));
    ck_assert_int_eq(mkdir(beside("y.12-0123456789abcdef.part"), 0777), 0);
    ck_assert_int_eq(et_file_write(path, write_text, "one", NULL), ET_OK);
    ck_assert_int_eq(entries_in_folder(), NAMES + 2);
    ck_assert_int_eq(access(beside("x.12-0123456789abcdef.part"), F_OK), -1);
    for (int i = 0; i < NAMES; i++) ck_assert_int_eq(unlink(beside(names[i])), 0);
    ck_assert_int_eq(rmdir(beside("y.12-0123456789abcdef.part")), 0);
}
END_TEST

/* The random digits of the partial name in a process of its own. */
static void read_random(char digits[17])
{
    int up[2];
    ck_assert_int_eq(pipe(up), 0);
    pid_t child = fork();
    if (child == 0) {
        char name[100];
        et_partial_path("p", name, sizeof name);
        _exit(write(up[1], strchr(name, '-') + 1, 16) == 16 ? 0 : 1);
    }
    ck_assert_int_eq((int)read(up[0], digits, 16), 16);
    digits[16] = '\0';
    ck_assert_int_eq(waitpid(child, NULL, 0), child);
    close(up[0]);
    close(up[1]);
}

/* Two containers' processes may have one number, also a parent's and its child's, whether the parent has drawn before or not. */
START_TEST(no_two_processes_share_a_name)
{
    char one[17], two[17], name[100], again[100];
    if (_i == 1) et_partial_path("p", name, sizeof name);
    read_random(one);
    read_random(two);
    ck_assert_str_ne(one, two);
    ck_assert_int_eq(et_partial_path("p", name, sizeof name), 0);
    ck_assert_int_eq(et_partial_path("p", again, sizeof again), 0);
    ck_assert_str_eq(name, again);
    ck_assert_int_eq(et_partial_path("p", again, 10), -1);
}
END_TEST

/* A thread that writes a whole file to the same path while the test is in the middle of one. */
static void *write_between(void *status)
{
    *(et_status *)status = et_file_write(path, write_text, "theirs", NULL);
    return NULL;
}

static et_status write_around(int descriptor, void *user, et_error *error)
{
    pthread_t other;
    (void)error;
    ck_assert_int_eq((int)write(descriptor, "ou", 2), 2);
    ck_assert_int_eq(pthread_create(&other, NULL, write_between, user), 0);
    ck_assert_int_eq(pthread_join(other, NULL), 0);
    expect_text(path, "theirs");
    return write(descriptor, "rs", 2) == 2 ? ET_OK : ET_EIO;
}

START_TEST(threads_may_write_one_path)
{
    et_status theirs = ET_EIO;
    begin(_i);
    ck_assert_int_eq(et_file_write(path, write_around, &theirs, NULL), ET_OK);
    ck_assert_int_eq(theirs, ET_OK);
    expect_text(path, "ours");
    ck_assert_int_eq(entries_in_folder(), 1);
}
END_TEST

/* The name is taken: the file that has it is not touched. */
START_TEST(a_name_that_is_taken_is_not_removed)
{
    char partial[4300];
    et_error error;
    begin(_i);
    ck_assert_int_eq(et_partial_path(path, partial, sizeof partial), 0);
    int file = open(partial, O_WRONLY | O_CREAT | O_EXCL, 0666);
    ck_assert_int_ge(file, 0);
    ck_assert_int_eq(flock(file, LOCK_EX), 0);
    ck_assert_int_eq(et_file_write(path, write_text, "one", &error), ET_EIO);
    ck_assert_int_eq(access(partial, F_OK), 0);
    close(file);
    ck_assert_int_eq(et_file_write(path, write_text, "one", &error), ET_OK);
    ck_assert_int_eq(entries_in_folder(), 1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("whole");
    TCase *files = add_case(suite, "files");
    tcase_add_checked_fixture(files, make_folder, remove_folder);
    tcase_add_loop_test(files, no_two_processes_share_a_name, 0, 2); /* first: the children draw */
    tcase_add_loop_test(files, a_file_is_written_and_replaced, 0, 2);
    tcase_add_test(files, a_file_that_cannot_be_named_is_not_there);
    tcase_add_loop_test(files, what_a_killed_writer_leaves_goes_with_the_next_file, 0, 2);
    tcase_add_loop_test(files, a_living_writer_is_left_alone, 0, 2);
    tcase_add_loop_test(files, threads_may_write_one_path, 0, 2);
    tcase_add_loop_test(files, other_files_are_left_alone, 0, 2);
    tcase_add_loop_test(files, a_name_that_is_taken_is_not_removed, 0, 2);
    return run_suite(suite);
}
