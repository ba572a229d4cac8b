/* cmd_leakage.c: `etref leakage`: how much of the future a routing tells the present.
 *
 * bound, exact, encode, decode, reach, audit, study: one file each or nearly so, leakage_*.c.
 */
#include "tools/etref/commands.h"
#include "tools/etref/cmd_leakage.h"
#include "tools/etref/memory_limit.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- what the parts share ---- */

/* Digits, or 2^E with E below 64; false for anything else, and beyond 64 bits. */
static bool parse_whole(const char *text, uint64_t *value)
{
    uint64_t number = 0;
    bool power = strncmp(text, "2^", 2) == 0;
    if (power) text += 2;
    if (*text == '\0') return false;
    for (; *text; text++) {
        if (*text < '0' || *text > '9') return false;
        uint64_t digit = (uint64_t)(*text - '0');
        if (number > (UINT64_MAX - digit) / 10) return false;
        number = 10 * number + digit;
    }
    if (power && number > 63) return false;
    *value = power ? UINT64_C(1) << number : number;
    return true;
}

bool whole_number(const char *name, const char *text, uint64_t least, uint64_t most,
                  uint64_t *value)
{
    uint64_t number = 0;
    if (text == NULL) return true;
    if (parse_whole(text, &number) && number >= least && number <= most) {
        *value = number;
        return true;
    }
    fail("%s %s: a whole number from %llu to %llu belongs here, in digits or as 2^20", name, text,
         (unsigned long long)least, (unsigned long long)most);
    return false;
}

bool refuse(const char *part, const char *message)
{
    fail("leakage %s: %s", part, message);
    return false;
}

bool is_text(const char *path)
{
    struct stat facts;
    if (stat(path, &facts) != 0 || access(path, R_OK) != 0)
        fail("--text %s: %s", path, strerror(errno));
    else if (!S_ISREG(facts.st_mode) || facts.st_size == 0)
        fail("--text %s: %s; a file of text belongs here", path,
             S_ISREG(facts.st_mode) ? "empty" : "not a regular file");
    else
        return true;
    return false;
}

bool no_words(const char *part, const word_list *words)
{
    if (words->count == 0) return true;
    fail("leakage %s: '%s' stands alone; values follow an option: see 'etref help leakage'", part,
         words->at[0]);
    return false;
}

et_status read_matrix(const et_tensor_file *file, const char *name, double **values,
                      size_t shape[2], et_error *error)
{
    const et_tensor_info *t = et_tensor_file_find(file, name);
    if (t == NULL)
        return et_fail(error, ET_EINVAL, "%s: has no %s; 'etref show %s' lists what it has",
                       file->path, name, file->path);
    if (t->rank != 2 || t->count == 0)
        return et_fail(error, ET_EINVAL, "%s: %s is no matrix with rows and columns", file->path,
                       name);
    shape[0] = t->shape[0];
    shape[1] = t->shape[1];
    if (t->count > memory_limit() / sizeof **values)
        return et_fail(error, ET_ENOMEM, "%s: %s is larger than this machine's memory", file->path,
                       name);
    *values = allocate(t->count, sizeof **values);
    return et_tensor_file_read(file, t, 0, t->count, *values, error);
}

et_status read_mask(const et_tensor_file *file, double **mask, size_t shape[2], et_error *error)
{
    et_status status = read_matrix(file, "route.mask", mask, shape, error);
    for (size_t j = 0; status == ET_OK && j < shape[0] * shape[1]; j++)
        if ((*mask)[j] != 0 && (*mask)[j] != 1)
            status = et_fail(error, ET_EINVAL,
                             "%s: route.mask is %g at token %zu, expert %zu; 0 or 1 belongs there",
                             file->path, (*mask)[j], j / shape[1], j % shape[1]);
    return status;
}

void share_cell(et_table *table, double share)
{
    if (isnan(share))
        et_table_cell(table, "-");
    else if (share == 0)
        et_table_cell(table, "0");
    else if (share < 0.5e-5)
        et_table_cell(table, "< 0.001 %%");
    else
        et_table_cell(table, "%.3f %%", 100 * share);
}

/* ---- the command ---- */

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
} parts[] = {{"bound", leakage_bound},   {"exact", leakage_exact}, {"encode", leakage_encode},
             {"decode", leakage_decode}, {"reach", leakage_reach}, {"audit", leakage_audit},
             {"study", leakage_study}};

enum { PARTS = sizeof parts / sizeof *parts };

static int fail_no_part(const char *word)
{
    word_list names = {0};
    for (size_t i = 0; i < PARTS; i++) word_list_add(&names, parts[i].name);
    word_list_add(&names, NULL);
    int status = fail_unknown("part of leakage", word, names.at, "leakage");
    word_list_free(&names);
    return status;
}

int cmd_leakage(int argc, char **argv)
{
    if (argc < 2)
        return fail("leakage: bound, exact, encode, decode, reach, audit or study belongs here: "
                    "see 'etref help leakage'");
    for (size_t i = 0; i < PARTS; i++) {
        if (strcmp(argv[1], parts[i].name) != 0) continue;
        argv[1] = argv[0]; /* messages point to the command's help */
        return parts[i].run(argc - 1, argv + 1);
    }
    return fail_no_part(argv[1]);
}
