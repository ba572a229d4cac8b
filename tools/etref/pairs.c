/* pairs.c: see pairs.h. */
#include "tools/etref/pairs.h"
#include "tools/etref/options.h"

#include <stdlib.h>
#include <string.h>

void pair_list_add(pair_list *list, verify_pair pair)
{
    size_t n = list->count;
    if ((n & (n - 1)) == 0) {
        verify_pair *grown = allocate(n ? 2 * n : 1, sizeof *grown);
        if (n) memcpy(grown, list->at, n * sizeof *grown);
        free(list->at);
        list->at = grown;
    }
    list->at[list->count++] = pair;
}

/* "kernels/a.bf16.safetensors" is "a.bf16": how a report knows one kernel of many. */
static const char *file_name(pair_list *list, const char *path)
{
    static const char ending[] = ".safetensors";
    const char *slash = strrchr(path, '/'), *name = slash && slash[1] ? slash + 1 : path;
    size_t length = strlen(name), end = sizeof ending - 1;
    if (length > end && strcmp(name + length - end, ending) == 0) length -= end;
    char *copy = allocate(length + 1, 1);
    memcpy(copy, name, length);
    word_list_add(&list->names, copy);
    return copy;
}

/* Two candidates of one name on one golden, and bundles of one name, are known by their whole paths. */
static void tell_apart(pair_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        for (size_t j = 0; j < i; j++) {
            verify_pair *a = &list->at[i], *b = &list->at[j];
            if (strcmp(a->name, b->name) != 0 || (a->candidate && strcmp(a->golden, b->golden) != 0)) continue;
            a->name = a->candidate ? a->candidate : a->golden;
            b->name = b->candidate ? b->candidate : b->golden;
        }
}

void pair_list_take_files(pair_list *list, const word_list *words, const char *name)
{
    for (size_t i = 0; i < words->count; i++) {
        const char *path = words->at[i];
        pair_list_add(list, (verify_pair){.golden = path, .name = words->count > 1 ? file_name(list, path) : name});
    }
    if (words->count > 1) tell_apart(list);
}

bool pair_list_take(pair_list *list, const word_list *words, const char *name)
{
    if (words->count == 1) pair_list_add(list, (verify_pair){.golden = words->at[0], .name = name});
    for (size_t i = 0; i + 1 < words->count; i += 2) {
        const char *candidate = words->at[i + 1];
        pair_list_add(list, (verify_pair){words->at[i], candidate, words->count > 2 ? file_name(list, candidate) : name});
    }
    if (words->count > 2) tell_apart(list);
    return true;
}

/* Two words or three; *count is what there is. */
static verify_pair cut_line(pair_list *list, char *line, size_t *count)
{
    const char *ends = strchr(line, '\t') ? "\t" : " ";
    char *rest = NULL, *at[3] = {NULL, NULL, NULL};
    *count = 0;
    for (char *word = strtok_r(line, ends, &rest); word; word = strtok_r(NULL, ends, &rest)) {
        if (*count < 3) at[*count] = word;
        ++*count;
    }
    return (verify_pair){at[0], at[1], at[2] ? at[2] : at[1] ? file_name(list, at[1]) : NULL};
}

static bool fail_line(const char *path, size_t number, const char *what)
{
    fail("--pairs %s: line %zu %s; GOLDEN CANDIDATE [NAME] belongs there, tabs between them if a name has blanks",
         path, number, what);
    return false;
}

static bool read_lines(pair_list *list, const char *path)
{
    size_t number = 0;
    char *rest = list->text;
    for (char *line; (line = strsep(&rest, "\n")) != NULL;) {
        size_t width = strlen(line), words;
        number++;
        if (width > 0 && line[width - 1] == '\r') line[width - 1] = '\0';
        if (line[0] == '#' || line[strspn(line, " \t")] == '\0') continue;
        verify_pair pair = cut_line(list, line, &words);
        if (words < 2) return fail_line(path, number, "names one file");
        if (words > 3) return fail_line(path, number, "has more than three words");
        if (strcmp(pair.golden, "-") == 0 || strcmp(pair.candidate, "-") == 0)
            return fail_line(path, number, "names standard input");
        pair_list_add(list, pair);
    }
    tell_apart(list);
    if (list->count > 0) return true;
    fail("--pairs %s: names no pair of files", path);
    return false;
}

bool pair_list_read(pair_list *list, const char *path)
{
    enum { MAX_TEXT = 16 << 20 };
    size_t length = 0;
    et_error error;
    et_status status = read_text(path, MAX_TEXT, "a list of pairs", &list->text, &length, &error);
    if (status == ET_OK) return read_lines(list, path);
    fail_status(status, &error);
    return false;
}

void pair_list_free(pair_list *list)
{
    for (size_t i = 0; i < list->names.count; i++) free((char *)list->names.at[i]);
    word_list_free(&list->names);
    free(list->at);
    free(list->text);
    *list = (pair_list){0};
}
