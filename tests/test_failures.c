/* test_failures.c: whole commands where memory, threads or stack cannot be had.
 *
 * A script must be able to trust the exit status: it is what it would have been, with the same
 * output, or it is 2 with a line that says why. Never 1, which says that a kernel is wrong; never 0
 * with a piece of the result missing; never a signal, and never for ever.
 *
 * preload/failing_memory.c makes the k-th allocation of the process fail, whichever library asks:
 * once, which is what code overlooks that goes on, or for good. With one thread each k is tried in a
 * child forked there, so that every k can be tried: k goes through a sample of 64 for each command;
 * ETREF_SWEEP=all takes every one (an hour or two). With two threads the command starts anew for each
 * k, of which there are four.
 *
 * A sanitizer brings an allocator and address space of its own, and clang's OpenMP does not survive
 * a lack of memory: for both the Makefile lists this test out.
 */
#include "etref/bundle.h"
#include "etref/matmul.h"
#include "tests/preload/failing_memory.h"
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
    {{"generate", "--inputs", "@/et.safetensors", "--lean", "--out", ">"}, 0, true, false},
    {{"generate", "--case", "smoke-et", "--emulate", "bf16", "--out", ">"}, 0, true, true},
    {{"generate", "--case", "smoke-et", "--conclusive", "bf16", "--out", ">"}, 0, true, true},
    {{"verify", "@/et.safetensors"}, 0, false, false},
    {{"verify", "@/et.safetensors", "--format", "json"}, 0, false, false},
    {{"check", "@/et.safetensors", "--format", "junit"}, 0, true, false},
    {{"verify", "@/et.safetensors", "@/right.safetensors", "--profile", "f32"}, 0, false, true},
    {{"verify", "@/et.safetensors", "@/right.safetensors", "--alias", "fwd.y=fwd.y", "--require",
      "fwd.y", "--ties", "any", "--quiet"},
     0,
     false,
     true},
    {{"verify", "@/et.safetensors", "@/wrong.safetensors", "--profile", "f32", "--explain-limit",
      "3600"},
     1,
     false,
     true},
    {{"verify", "@/et.safetensors", "@/wrong.safetensors", "--profile", "f32", "--explain-limit",
      "3600", "--format", "json"},
     1,
     false,
     true},
    {{"verify", "@/et.safetensors", "@/wrong.safetensors", "--profile", "f32", "--explain-limit",
      "3600", "--format", "junit"},
     1,
     true,
     true},
    {{"show", "@/et.safetensors"}, 0, false, false},
    {{"show", "@/et.safetensors", "--format", "json"}, 0, false, false},
    {{"show", "@/et.safetensors", "fwd.y", "--all"}, 0, false, false},
    {{"show", "@/et.safetensors", "--all"}, 0, false, false},
    {{"show", "@/et.safetensors", "--against", "@/tc.safetensors"}, 0, false, false},
    {{"show", "@/right.safetensors"}, 0, false, false},
    {{"list"}, 0, false, false},
    {{"list", "fields", "--format", "json"}, 0, false, false},
    {{"list", "tensors", "--format", "json"}, 0, false, false},
    {{"list", "layers"}, 0, false, false},
    {{"list", "profiles", "bf16", "--format", "json"}, 0, false, false},
    {{"list", "hypotheses", "--format", "json"}, 0, false, false},
    {{"help", "verify"}, 0, false, false},
    {{"--version"}, 0, false, false},
    {{"leakage", "bound", "--sweep", "--format", "csv"}, 0, false, false},
    {{"leakage", "bound", "--format", "json"}, 0, false, false},
    {{"leakage", "exact", "--tokens", "4", "--select", "2", "--levels", "3", "--format", "json"},
     0,
     false,
     false},
    {{"leakage", "exact", "--table", "--format", "csv"}, 0, false, false},
    {{"leakage", "exact", "--search"}, 0, false, false},
    {{"leakage", "encode", "0110100"}, 0, false, false},
    {{"leakage", "encode", "011111111", "--precision", "bf16"}, 1, false, false},
    {{"leakage", "encode", "--mask", "@/et.safetensors", "--expert", "1"}, 0, false, false},
    {{"leakage", "decode", "1001011", "--format", "json"}, 0, false, false},
    {{"leakage", "encode", "--all", "--format", "json", "0110100"}, 0, false, false},
    {{"leakage", "reach", "--format", "json"}, 0, false, false},
    {{"leakage", "audit", "@/et.safetensors", "--all-rules", "--format", "json"}, 1, false, false},
    {{"leakage", "audit", "@/et.safetensors", "--twin", ">/twin.safetensors", "--cut", "9"},
     0,
     false,
     false},
    {{"leakage", "audit", "@/et.safetensors", "@/twin.safetensors"}, 0, false, false},
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
    status = RUN("leakage", "audit", in_folder("et.safetensors"), "--twin",
                 in_folder("twin.safetensors"), "--cut", "9");
    ck_assert_msg(status == 0, "%s", errors);
}

static void remove_files(void)
{
    ck_assert_int_eq(rmdir(in_folder("out")), 0);
    remove_all();
}

/* ---- memory ---- */

/* What a command does where nothing fails. */
static struct {
    char output[MAX_OUTPUT];
    file_facts files[MAX_FILES];
    size_t file_count;
} usual;

static size_t tried, refused, wrong;

/* The last line is the tool's; a library may have said something of its own before. */
static bool ends_with_a_line(void)
{
    static char copy[MAX_OUTPUT];
    strcpy(copy, errors);
    const char *line = last_line(copy);
    return strncmp(line, "etref: ", 7) == 0 && strlen(line) > 20;
}

/* What is wrong with an ending whose output, errors and files these are; NULL where nothing is. */
static const char *complaint(const command *c, int status, const file_facts *made, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (!is_among(&made[i], usual.files, usual.file_count)) return "a file is another";
    if (!WIFEXITED(status)) return "ended by a signal";
    if (WEXITSTATUS(status) == 2) return ends_with_a_line() ? NULL : "no line that says why";
    if (WEXITSTATUS(status) != c->status) return "another status";
    if (!c->timed && strcmp(output, usual.output) != 0) return "another output";
    return count == usual.file_count ? NULL : "a file is missing";
}

static void judge_ending(const command *c, const char *wish, size_t number, int status,
                         const file_facts *made, size_t count)
{
    const char *why = complaint(c, status, made, count);
    tried++;
    refused += WIFEXITED(status) && WEXITSTATUS(status) == 2;
    wrong += why != NULL;
    if (why != NULL && wrong < 20)
        printf("%s %s, %s:%zu: %s: status %#x, '%.300s'\n", c->words[0],
               c->words[1] ? c->words[1] : "", wish, number, why, (unsigned)status, errors);
}

/* ETREF_SWEEP; `most` where it is "all". */
static size_t samples(size_t most)
{
    const char *wish = getenv("ETREF_SWEEP");
    if (wish == NULL) return 64;
    return strcmp(wish, "all") == 0 ? most : strtoul(wish, NULL, 10);
}

static size_t step_for(size_t count, size_t wanted)
{
    return wanted > 0 && wanted < count ? (count + wanted - 1) / wanted : 1;
}

/* ---- every allocation in one run ---- */

static void set_failing(const char *wish)
{
    setenv("ETREF_FAIL", wish, 1);
    set_preload("failing_memory");
}

static void set_nothing_failing(void)
{
    unsetenv("LD_PRELOAD");
    unsetenv("ETREF_FAIL");
}

/* What stands in a file that a child shares; its place is left at the end. */
static void read_shared(FILE *file, char *text)
{
    ssize_t length = pread(fileno(file), text, MAX_OUTPUT - 1, 0);
    text[length > 0 ? length : 0] = '\0';
}

/* Takes away what was written behind this place. */
static void cut_back(FILE *file, off_t place)
{
    ck_assert_int_eq(ftruncate(fileno(file), place), 0);
}

static off_t place_of(FILE *file)
{
    return lseek(fileno(file), 0, SEEK_CUR);
}

/* Adds to `files` those of `more` that are not there yet. */
static size_t unite(file_facts *files, size_t count, const file_facts *more, size_t more_count)
{
    for (size_t i = 0; i < more_count; i++) {
        if (is_among(&more[i], files, count)) continue;
        ck_assert_uint_lt(count, MAX_FILES);
        files[count++] = more[i];
    }
    return count;
}

/* Children write where their parent does, and what they write is taken away again. The parent's own
 * files are taken away, too, and remembered: it does not look at them again. */
static void listen_to_children(const command *c, int from_tool, int to_tool, FILE *out, FILE *err)
{
    failing_report r;
    file_facts parents[MAX_FILES], made[MAX_FILES];
    size_t parents_count = 0, count;
    off_t out_place = 0, err_place = 0;
    while (read(from_tool, &r, sizeof r) == sizeof r) {
        count = collect_files(made);
        if (!r.ended) {
            parents_count = unite(parents, parents_count, made, count);
            out_place = place_of(out);
            err_place = place_of(err);
        } else {
            read_shared(out, output);
            read_shared(err, errors);
            count = unite(made, count, parents, parents_count);
            judge_ending(c, r.for_good ? "from" : "once", r.number, r.status, made, count);
            cut_back(out, out_place);
            cut_back(err, err_place);
        }
        ck_assert_int_eq((int)write(to_tool, "g", 1), 1);
    }
}

static void try_in_children(const command *c, const char *const *words, size_t count)
{
    int up[2], down[2];
    char wish[40], talk[40];
    FILE *out = tmpfile(), *err = tmpfile();
    ck_assert(out != NULL && err != NULL && pipe(up) == 0 && pipe(down) == 0);
    snprintf(wish, sizeof wish, "each:%zu", step_for(count, samples(count)));
    snprintf(talk, sizeof talk, "%d:%d", up[1], down[0]);
    setenv("ETREF_TALK", talk, 1);
    setenv("OMP_NUM_THREADS", "1", 1);
    set_failing(wish);
    pid_t parent = start(words, &(setting){0}, out, err);
    set_nothing_failing();
    unsetenv("OMP_NUM_THREADS");
    unsetenv("ETREF_TALK");
    close(up[1]);
    close(down[0]);
    listen_to_children(c, up[0], down[1], out, err);
    int status = wait_for(parent);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == c->status, "the parent: %#x", status);
    close(up[0]);
    close(down[1]);
    fclose(out);
    fclose(err);
}

/* ---- a run for each ---- */

/* Runs the command with allocations that fail as `wish` says. */
static int run_failing(const char *wish, const char *const *words)
{
    set_failing(wish);
    int status = run_as(&(setting){0}, words);
    set_nothing_failing();
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

static void try_one_by_one(const command *c, const char *const *words, size_t count)
{
    enum { RUNS = 4 };
    file_facts made[MAX_FILES];
    setenv("OMP_NUM_THREADS", "2", 1);
    for (size_t k = 1; k <= count; k += step_for(count, RUNS))
        for (int mode = 0; mode < 2; mode++) {
            char wish[40];
            snprintf(wish, sizeof wish, "%s:%zu", mode ? "from" : "once", k);
            int status = run_failing(wish, words);
            size_t made_count = collect_files(made);
            judge_ending(c, mode ? "from" : "once", k, W_EXITCODE(status, 0), made, made_count);
        }
    unsetenv("OMP_NUM_THREADS");
}

static void look_at_the_usual(const command *c, const char *const *words)
{
    int status = run_as(&(setting){0}, words);
    ck_assert_msg(status == c->status, "%s %s: %d, %s", words[0], words[1], status, errors);
    strcpy(usual.output, output);
    usual.file_count = collect_files(usual.files);
}

START_TEST(a_command_without_memory_fails_as_a_whole)
{
    const command *c = &commands[_i];
    const char *const *words = fill_in(c->words, COUNT(c->words));
    look_at_the_usual(c, words);
    size_t count = count_allocations(words);
    collect_files(usual.files);
    tried = refused = wrong = 0;
    try_in_children(c, words, count);
    try_one_by_one(c, words, count);
    printf("%s %s: %zu allocations, %zu endings, %zu of status 2\n", words[0],
           words[1] ? words[1] : "", count, tried, refused);
    ck_assert_uint_eq(wrong, 0);
    ck_assert_uint_gt(count, 10);
    ck_assert_uint_gt(refused, 10);
}
END_TEST

/* ---- threads, stack, address space ---- */

/* The last run ended with status 2, and its last line contains `part`. */
static void expect_refusal(const char *what, int status, const char *part)
{
    ck_assert_msg(status == 2, "%s: status %d, %s", what, status, errors);
    ck_assert_msg(ends_with_a_line(), "%s: '%.300s'", what, errors);
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
        if (status == 2) ck_assert_msg(ends_with_a_line(), "'%.300s'", errors);
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
    tcase_add_unchecked_fixture(memory, make_files, remove_files);
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
