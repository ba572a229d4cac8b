/* test_memory.c: the limit that control groups set, read from folders made here. */
#include "tools/etref/memory_limit.c" /* no part of the library. NOLINT(bugprone-suspicious-include) */

#include "tests/check_main.h"
#include "tests/scratch.h"

/* A folder, or a file with a text, below the test's folder; removed in reverse order. */
static char made[32][4300];
static int made_count;

static const char *in(const char *name)
{
    static char out[4300];
    snprintf(out, sizeof out, "%s/%s", folder, name);
    return out;
}

static void keep(const char *name)
{
    snprintf(made[made_count++], sizeof made[0], "%s/%s", folder, name);
}

static void make_sub(const char *name)
{
    ck_assert_int_eq(mkdir(in(name), 0777), 0);
    keep(name);
}

static void write_file(const char *name, const char *text)
{
    FILE *file = fopen(in(name), "w");
    ck_assert_ptr_nonnull(file);
    fputs(text, file);
    fclose(file);
    keep(name);
}

static void remove_made(void)
{
    while (made_count > 0) ck_assert_int_eq(remove(made[--made_count]), 0);
    remove_folder();
}

static size_t limit(void)
{
    char groups[4300];
    snprintf(groups, sizeof groups, "%s/groups", folder);
    return memory_limit_of_groups(groups, folder);
}

START_TEST(the_second_version)
{
    ck_assert(limit() == SIZE_MAX); /* no such file */
    write_file("groups", "0::/a/b\n");
    ck_assert(limit() == SIZE_MAX);
    make_sub("a");
    make_sub("a/b");
    write_file("a/b/memory.max", "max\n");
    ck_assert(limit() == SIZE_MAX);
    write_file("a/memory.max", "5000000\n"); /* the group above */
    ck_assert_uint_eq(limit(), 5000000);
    write_file("memory.max", "4000000\n"); /* and the mount itself */
    ck_assert_uint_eq(limit(), 4000000);
    made_count--; /* written twice */
    write_file("memory.max", "6000000\n");
    ck_assert_uint_eq(limit(), 5000000);
}
END_TEST

/* In a container the path may be the one outside. */
START_TEST(a_path_that_is_not_here)
{
    write_file("groups", "0::/docker/0123\n");
    write_file("memory.max", "7000000\n");
    ck_assert_uint_eq(limit(), 7000000);
    made_count--;
    write_file("memory.max", "nonsense\n");
    ck_assert(limit() == SIZE_MAX);
    made_count -= 2;
    write_file("groups", "0::/../elsewhere\n");
    write_file("memory.max", "8000000\n");
    ck_assert_uint_eq(limit(), 8000000);
}
END_TEST

START_TEST(the_first_version)
{
    write_file("groups", "9:name=systemd:/x\n4:cpu,memory:/x/y\n3:cpuset:/x\n0::/\n");
    make_sub("memory");
    make_sub("memory/x");
    make_sub("memory/x/y");
    write_file("memory/x/y/memory.limit_in_bytes", "9223372036854771712\n"); /* none */
    ck_assert_uint_eq(limit(), 9223372036854771712u);
    write_file("memory/x/memory.limit_in_bytes", "3000000\n");
    ck_assert_uint_eq(limit(), 3000000);
    make_sub("unified");
    write_file("unified/memory.max", "2000000\n");
    ck_assert_uint_eq(limit(), 2000000);
}
END_TEST

START_TEST(the_machine_has_a_limit)
{
    size_t least = memory_limit();
    ck_assert_uint_gt(least, 1 << 20);
    ck_assert_uint_le(least, (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("memory");
    TCase *groups = add_case(suite, "groups");
    tcase_add_checked_fixture(groups, make_folder, remove_made);
    tcase_add_test(groups, the_second_version);
    tcase_add_test(groups, a_path_that_is_not_here);
    tcase_add_test(groups, the_first_version);
    tcase_add_test(groups, the_machine_has_a_limit);
    return run_suite(suite);
}
