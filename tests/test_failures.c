/* test_failures.c: whole commands where memory, threads or stack cannot be had.
 *
 * A script must be able to trust the exit status: it is what it would have been, with the same
 * output, or it is 2 with a line that says why. Never 1, which says that a kernel is wrong; never 0
 * with a piece of the result missing; never a signal, and never for ever.
 *
 * preload/failing_memory.c makes the k-th allocation of the process fail, whichever library asks:
 * once, which is what code overlooks that goes on, or for good. k goes through a sample of 16 for
 * each command; ETREF_SWEEP=10000 in the environment takes as many (hours, and nearly every k).
 *
 * A sanitizer brings an allocator and address space of its own, and clang's OpenMP does not survive
 * a lack of memory: for both the Makefile lists this test out.
 */
#include "etref/bundle.h"
#include "etref/matmul.h"
#include "tests/run_tool.h"

#include <pthread.h>

/* ---- the commands ---- */

static const char *const cases =
    "[{\"name\": \"tc\", \"rule\": \"tc\", \"top_k\": 2, \"tokens\": 24, \"d_model\": 6,"
    "  \"d_expert\": 5, \"experts\": 4, \"balance\": \"aux\", \"input\": {\"source\": \"normal\"}},"
    " {\"name\": \"et\", \"rule\": \"et\", \"capacity_factor\": 1.5, \"tokens\": 24, \"d_model\": "
    "6,"
    "  \"ema_decay\": 0.98765432109876543, \"d_expert\": 5, \"experts\": 4,"
    "  \"input\": {\"source\": \"normal\"}}]";

typedef struct command {
    const char *words[12]; /* '@' stands for the folder of the test, '>' for that of the output */
    int status;            /* where nothing fails */
    bool timed;            /* its output tells seconds */
    bool judges;           /* not in the float build */
} command;

static const command commands[] = {
    {{"generate", "--case", "@/cases.json", "--out", ">", "--layout", "block:4"}, 0, true, false},
    {{"generate", "--case", "smoke-tc", "--set", "name=b", "--set", "input.seed=3", "--out", ">",
      "--profile", "bf16"},
     0,
     true,
     true},
    {{"verify", "@/et.safetensors"}, 0, false, false},
    {{"verify", "@/et.safetensors", "--format", "json"}, 0, false, false},
    {{"verify", "@/et.safetensors", "@/right.safetensors", "--profile", "f32"}, 0, false, true},
    {{"verify", "@/et.safetensors", "@/wrong.safetensors", "--profile", "f32"}, 1, false, true},
    {{"verify", "@/et.safetensors", "@/wrong.safetensors", "--profile", "f32", "--format", "json"},
     1,
     false,
     true},
    {{"verify", "@/et.safetensors", "@/wrong.safetensors", "--profile", "f32", "--format", "junit"},
     1,
     false,
     true},
    {{"show", "@/et.safetensors"}, 0, false, false},
    {{"show", "@/et.safetensors", "--format", "json"}, 0, false, false},
    {{"show", "@/et.safetensors", "fwd.y", "--all"}, 0, false, false},
    {{"list"}, 0, false, false},
    {{"list", "fields", "--format", "json"}, 0, false, false},
    {{"leakage", "bound", "--sweep", "--format", "csv"}, 0, false, false},
    {{"leakage", "bound", "--format", "json"}, 0, false, false},
    {{"leakage", "exact", "--tokens", "4", "--select", "2", "--levels", "3", "--format", "json"},
     0,
     false,
     false},
    {{"leakage", "encode", "0110100"}, 0, false, false},
    {{"leakage", "encode", "--all", "--format", "json", "0110100"}, 0, false, false},
    {{"leakage", "reach", "--format", "json"}, 0, false, false},
    {{"leakage", "audit", "@/et.safetensors", "--all-rules", "--format", "json"}, 1, false, false},
    {{"leakage", "audit", "@/et.safetensors", "--twin", ">/twin.safetensors", "--cut", "9"},
     0,
     false,
     false},
    {{"leakage", "study", "--out", ">", "--experts", "4", "--tokens", "128", "--batches", "2",
      "--no-figures"},
     0,
     false,
     false},
};

/* The words with the folders in place of their signs. */
static const char *const *fill_in(const char *const *words, size_t count)
{
    static char room[MAX_WORDS][4200];
    static const char *filled[MAX_WORDS + 1];
    size_t i = 0;
    for (; i < count && words[i] != NULL; i++) {
        const char *base = words[i][0] == '@' ? "" : "/out";
        filled[i] = words[i];
        if (words[i][0] != '@' && words[i][0] != '>') continue;
        snprintf(room[i], sizeof room[i], "%s%s%s", folder, base, words[i] + 1);
        filled[i] = room[i];
    }
    filled[i] = NULL;
    return filled;
}

/* ---- files ---- */

static const char *in_output(const char *name)
{
    static char names[2][4600];
    static unsigned turn;
    char *out = names[turn++ % 2];
    snprintf(out, sizeof names[0], "%s/out/%s", folder, name);
    return out;
}

static unsigned long checksum(const char *name)
{
    unsigned long sum = 5381;
    FILE *file = fopen(name, "rb");
    ck_assert_ptr_nonnull(file);
    for (int byte; (byte = fgetc(file)) != EOF;) sum = sum * 33 + (unsigned char)byte;
    fclose(file);
    return sum;
}

typedef struct file_facts {
    char name[256];
    unsigned long sum;
} file_facts;

enum { MAX_FILES = 32 };

/* What lies in the folder of the output, which is emptied. */
static size_t collect_files(file_facts *files)
{
    DIR *open_folder = opendir(in_output(""));
    struct dirent *entry;
    size_t count = 0;
    ck_assert_ptr_nonnull(open_folder);
    while ((entry = readdir(open_folder)) != NULL) {
        if (entry->d_name[0] == '.') continue;
        ck_assert_uint_lt(count, MAX_FILES);
        snprintf(files[count].name, sizeof files[count].name, "%s", entry->d_name);
        files[count++].sum = checksum(in_output(entry->d_name));
        unlink(in_output(entry->d_name));
    }
    closedir(open_folder);
    return count;
}

static bool is_among(const file_facts *file, const file_facts *files, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(files[i].name, file->name) == 0) return files[i].sum == file->sum;
    return false;
}

/* fwd.y of the golden in float, times `factor`. */
static void write_candidate(const char *name, double factor)
{
    et_tensor_file file;
    ck_assert_int_eq(et_tensor_file_open(&file, in_folder("et.safetensors"), NULL), ET_OK);
    const et_tensor_info *y = et_tensor_file_find(&file, "fwd.y");
    double values[24 * 6];
    ck_assert_uint_eq(y->count, COUNT(values));
    ck_assert_int_eq(et_tensor_file_read(&file, y, 0, y->count, values, NULL), ET_OK);
    for (size_t i = 0; i < y->count; i++) values[i] *= factor;
    const et_tensor_out out = {"fwd.y", ET_F32, 2, {24, 6}, values, ET_FROM_F64};
    const char *const metadata[] = {NULL};
    ck_assert_int_eq(et_tensor_file_write(in_folder(name), &out, 1, metadata, NULL), ET_OK);
    et_tensor_file_close(&file);
}

static void make_files(void)
{
    static const char *const names[] = {"LD_PRELOAD", "ETREF_FAIL", "OMP_NUM_THREADS",
                                        "OMP_STACKSIZE"};
    for (size_t i = 0; i < COUNT(names); i++) unsetenv(names[i]); /* a test that failed left them */
    make_folder();
    ck_assert_int_eq(mkdir(in_folder("out"), 0700), 0);
    write_text("cases.json", cases);
    int status = RUN("generate", "--case", in_folder("cases.json"), "--out", folder);
    ck_assert_msg(status == 0, "%s", errors);
    write_candidate("right.safetensors", 1);
    write_candidate("wrong.safetensors", 1.25);
}

static void remove_files(void)
{
    ck_assert_int_eq(rmdir(in_folder("out")), 0);
    remove_all();
}

/* ---- memory ---- */

/* Runs the command with allocations that fail as `wish` says. */
static int run_failing(const char *wish, const char *const *words)
{
    setenv("ETREF_FAIL", wish, 1);
    set_preload("failing_memory");
    int status = run_as(&(setting){0}, words);
    unsetenv("LD_PRELOAD");
    unsetenv("ETREF_FAIL");
    return status;
}

static size_t count_allocations(const char *const *words)
{
    size_t count = 0;
    setenv("ETREF_COUNT", in_folder("count"), 1);
    run_failing("nothing", words);
    unsetenv("ETREF_COUNT");
    FILE *file = fopen(in_folder("count"), "r");
    ck_assert_msg(file != NULL, "failing_memory.so was not loaded");
    ck_assert_int_eq(fscanf(file, "%zu", &count), 1);
    fclose(file);
    return count;
}

/* The last line is the tool's; a library may have said something of its own before. */
static void expect_line(const char *wish)
{
    static char copy[MAX_OUTPUT];
    strcpy(copy, errors);
    const char *line = last_line(copy);
    ck_assert_msg(strncmp(line, "etref: ", 7) == 0 && strlen(line) > 20, "%s: '%.300s'", wish,
                  errors);
}

static size_t steps(size_t count)
{
    const char *wish = getenv("ETREF_SWEEP");
    size_t samples = wish != NULL ? strtoul(wish, NULL, 10) : 16;
    return count / (samples > 0 ? samples : 1) + 1;
}

START_TEST(a_command_without_memory_fails_as_a_whole)
{
    const command *c = &commands[_i];
    static char usual[MAX_OUTPUT];
    file_facts want[MAX_FILES], got[MAX_FILES];
    const char *const *words = fill_in(c->words, COUNT(c->words));
    size_t count = count_allocations(words), failed = 0;
    int status = run_as(&(setting){0}, words);
    ck_assert_msg(status == c->status, "%s %s: %d, %s", words[0], words[1], status, errors);
    strcpy(usual, output);
    size_t files = collect_files(want);
    for (size_t k = 1; k <= count; k += steps(count))
        for (int mode = 0; mode < 2; mode++) {
            char wish[32];
            snprintf(wish, sizeof wish, "%s:%zu", mode ? "from" : "once", k);
            status = run_failing(wish, words);
            size_t made = collect_files(got);
            ck_assert_msg(status == c->status || status == 2, "%s %s, %s of %zu: %d, %.300s",
                          words[0], words[1], wish, count, status, errors);
            if (status == 2) expect_line(wish);
            if (status == c->status && !c->timed)
                ck_assert_msg(strcmp(output, usual) == 0, "%s: other output: %.300s", wish, output);
            ck_assert_msg(status == 2 || made == files, "%s: %zu files, not %zu", wish, made,
                          files);
            for (size_t i = 0; i < made; i++)
                ck_assert_msg(is_among(&got[i], want, files), "%s: %s", wish, got[i].name);
            failed += status == 2;
        }
    ck_assert_uint_gt(count, 10);
    ck_assert_uint_gt(failed, 10);
}
END_TEST

/* ---- threads, stack, address space ---- */

/* The last run ended with status 2, and its last line contains `part`. */
static void expect_refusal(const char *what, int status, const char *part)
{
    ck_assert_msg(status == 2, "%s: status %d, %s", what, status, errors);
    expect_line(what);
    ck_assert_msg(strstr(errors, part) != NULL, "%s: no '%s' in: %s", what, part, errors);
}

START_TEST(threads_that_cannot_be_had_are_no_mismatch)
{
    static const char *const sizes[] = {"16k", "100k", "100G"};
    static const char *const all[][6] = {
        {"verify", "--quiet", "@/et.safetensors"},
        {"verify", "@/et.safetensors", "@/right.safetensors"},
        {"generate", "--case", "@/cases.json", "--out", ">"},
        {"leakage", "audit", "@/et.safetensors"},
        {"bench"},
    };
    for (size_t i = 0; i < COUNT(all); i++) {
        const char *const *words = fill_in(all[i], COUNT(all[i]));
        setenv("OMP_NUM_THREADS", "4", 1);
        for (size_t j = 0; j < COUNT(sizes); j++) {
            setenv("OMP_STACKSIZE", sizes[j], 1);
            expect_refusal(sizes[j], run_as(&(setting){0}, words), "OMP_STACKSIZE");
        }
        unsetenv("OMP_STACKSIZE");
        expect_refusal("threads", run_failing("threads", words), "4 threads cannot be started");
        unsetenv("OMP_NUM_THREADS");
    }
}
END_TEST

/* Megabytes of address space: OpenBLAS alone takes 256 for two threads and would wait for ever. */
START_TEST(address_space_that_cannot_be_had_is_said_at_once)
{
    for (rlim_t limit = 60; limit <= 600; limit += 20) {
        const setting narrow = {.address_limit = limit << 20};
        const char *const words[] = {"verify", "--quiet", in_folder("et.safetensors"), NULL};
        setenv("OMP_NUM_THREADS", "2", 1);
        int status = run_as(&narrow, words);
        unsetenv("OMP_NUM_THREADS");
        ck_assert_msg(status == 2 || (status == 0 && limit > 400), "%zu MB: %d, %s", (size_t)limit,
                      status, errors);
        if (status == 2) expect_line("limit");
    }
}
END_TEST

/* ---- the library in a small thread ---- */

enum { SIDE = 150 };
static et_real A[SIDE * SIDE], B[SIDE * SIDE], C[SIDE * SIDE];

static void *multiply(void *unused)
{
    (void)unused;
    et_matmul(ET_PLAIN, SIDE, SIDE, SIDE, et_rows(A, SIDE), et_transposed(B, SIDE), false, C, SIDE);
    return NULL;
}

/* So many bytes of stack leave a product 64 KiB, after what the C library puts there itself. */
START_TEST(a_product_needs_little_stack)
{
    pthread_attr_t facts;
    pthread_t thread;
    for (size_t i = 0; i < SIDE * SIDE; i++) A[i] = B[i] = 1;
    ck_assert_int_eq(pthread_attr_init(&facts), 0);
    ck_assert_int_eq(pthread_attr_setstacksize(&facts, 128 << 10), 0);
    ck_assert_int_eq(pthread_create(&thread, &facts, multiply, NULL), 0);
    ck_assert_int_eq(pthread_join(thread, NULL), 0);
    pthread_attr_destroy(&facts);
    for (size_t i = 0; i < SIDE * SIDE; i++) ck_assert(C[i] == SIDE);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("failures");
    TCase *memory = add_case(suite, "memory"), *limits = add_case(suite, "limits");
    TCase *stack = add_case(suite, "stack");
    tcase_add_checked_fixture(memory, make_files, remove_files);
    for (size_t i = 0; i < COUNT(commands); i++)
        if (sizeof(et_real) == sizeof(double) || !commands[i].judges)
            tcase_add_loop_test(memory, a_command_without_memory_fails_as_a_whole, (int)i,
                                (int)i + 1);
    tcase_add_checked_fixture(limits, make_files, remove_files);
    tcase_add_test(limits, threads_that_cannot_be_had_are_no_mismatch);
    tcase_add_test(limits, address_space_that_cannot_be_had_is_said_at_once);
    tcase_add_test(stack, a_product_needs_little_stack);
    return run_suite(suite);
}
