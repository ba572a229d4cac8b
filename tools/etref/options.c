/* options.c: the command line. See options.h.
 *
 * Left out on purpose: abbreviated options and bundled letters. A script that says --eng today must
 * not mean something else when --energy is added.
 */
#include "tools/etref/options.h"
#include "etref/matmul.h"
#include "ref/format/json.h"
#include "tools/etref/ending.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- words ---- */

/* Grows when the count is a power of two, so that adding n words copies at most 2n. */
void word_list_add(word_list *list, const char *word)
{
    size_t n = list->count;
    if ((n & (n - 1)) == 0) {
        const char **grown = allocate(n ? 2 * n : 1, sizeof *grown);
        if (n) memcpy(grown, list->at, n * sizeof *grown);
        free(list->at);
        list->at = grown;
    }
    list->at[list->count++] = word;
}

void word_list_free(word_list *list)
{
    free(list->at);
    *list = (word_list){0};
}

/* ---- unknown words ---- */

/* The part of a name behind its dot is a name, too, but only where it is nearly right: "y" means
 * "fwd.y", and "q" nothing. */
static size_t tail_distance(const char *word, const char *name)
{
    const char *dot = strchr(name, '.');
    size_t distance = dot ? et_edit_distance(word, dot + 1) : SIZE_MAX;
    return dot && distance <= strlen(dot + 1) / 3 ? distance : SIZE_MAX;
}

const char *nearest_word(const char *word, const char *const *known)
{
    const char *best = NULL;
    size_t least = strlen(word) / 3 + 2; /* a slip changes a letter or two, not half the word */
    if (least > 64) least = 64;          /* et_edit_distance counts no further */
    for (; *known; known++) {
        size_t whole = et_edit_distance(word, *known), tail = tail_distance(word, *known);
        size_t distance = whole < tail ? whole : tail;
        if (distance < least) {
            least = distance;
            best = *known;
        }
    }
    return best;
}

int fail_unknown(const char *what, const char *word, const char *const *known, const char *owner)
{
    const char *near = nearest_word(word, known);
    char hint[160] = "";
    if (near) snprintf(hint, sizeof hint, "did you mean '%s'? ", near);
    return fail("unknown %s '%s': %ssee 'etref help%s%s'", what, word, hint, *owner ? " " : "",
                owner);
}

/* ---- texts ---- */

et_status read_text(const char *path, size_t limit, const char *what, char **text, size_t *length,
                    et_error *error)
{
    bool standard = strcmp(path, "-") == 0;
    FILE *file = standard ? stdin : fopen(path, "rb");
    if (file == NULL) return et_fail(error, ET_EIO, "%s: %s", path, strerror(errno));
    *text = allocate(limit + 2, 1);
    *length = fread(*text, 1, limit + 1, file);
    et_status status = ET_OK;
    if (ferror(file))
        status = et_fail(error, ET_EIO, "%s: %s", path, strerror(errno));
    else if (*length > limit)
        status = et_fail(error, ET_EINVAL, "%s: %s has at most %zu KiB", path, what, limit >> 10);
    if (!standard) fclose(file);
    return status;
}

/* ---- options ---- */

int choice_find(const char *choices, const char *word)
{
    size_t length = strlen(word);
    for (int place = 0;; place++) {
        size_t width = strcspn(choices, "|");
        if (width == length && strncmp(choices, word, width) == 0) return place;
        if (choices[width] == '\0') return -1;
        choices += width + 1;
    }
}

size_t parse_count(const char *text)
{
    size_t value = 0;
    for (const char *c = text; *c; c++) {
        if (*c < '0' || *c > '9') return 0;
        value = 10 * value + (size_t)(*c - '0');
        if (value > INT32_MAX) return 0;
    }
    return value;
}

/* False after an error message. */
static bool option_store(const option *o, const char *word)
{
    switch (o->kind) {
    case OPTION_FLAG: *(bool *)o->value = true; return true;
    case OPTION_WORD: *(const char **)o->value = word; return true;
    case OPTION_LIST: word_list_add(o->value, word); return true;
    case OPTION_COUNT:
        *(size_t *)o->value = parse_count(word);
        if (*(size_t *)o->value != 0) return true;
        fail("%s %s: a whole number from 1 to 2147483647 belongs here", o->name, word);
        return false;
    case OPTION_THREADS:
        *(size_t *)o->value = parse_count(word);
        if (*(size_t *)o->value >= 1 && *(size_t *)o->value <= MAX_THREADS) return true;
        fail("%s %s: a whole number from 1 to %d belongs here", o->name, word, MAX_THREADS);
        return false;
    case OPTION_CHOICE:
        *(int *)o->value = choice_find(o->choices, word);
        if (*(int *)o->value >= 0) return true;
        fail("%s %s: one of %s belongs here", o->name, word, o->choices);
        return false;
    }
    return false;
}

/* Two that everybody types, where the command has the option. */
static const char *long_name(const char *word)
{
    return strcmp(word, "-q") == 0 ? "--quiet" : strcmp(word, "-o") == 0 ? "--out" : word;
}

/* The row of "--name" or "--name=value"; `value` gets the part after '=', or NULL. */
static const option *option_find(const option *table, const char *word, const char **value)
{
    word = long_name(word);
    size_t width = strcspn(word, "=");
    *value = word[width] ? word + width + 1 : NULL;
    for (; table->name; table++)
        if (strlen(table->name) == width && strncmp(table->name, word, width) == 0) return table;
    return NULL;
}

static void fail_unknown_option(const option *table, const char *word, const char *command)
{
    word_list names = {0};
    for (; table->name; table++) word_list_add(&names, table->name);
    word_list_add(&names, "--help");
    word_list_add(&names, NULL);
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(word, "="), word);
    fail_unknown("option", name, names.at, command);
    word_list_free(&names);
}

/* Reads the option at argv[i]; returns how many words it took, 0 after an error. */
static int option_read(const option *table, int argc, char **argv, int i)
{
    const char *value;
    const option *o = option_find(table, argv[i], &value);
    if (o == NULL) {
        fail_unknown_option(table, argv[i], argv[0]);
        return 0;
    }
    if (o->kind == OPTION_FLAG && value != NULL) {
        fail("%s takes no value", o->name);
        return 0;
    }
    bool next = o->kind != OPTION_FLAG && value == NULL;
    if (next && i + 1 == argc) {
        fail("%s needs a value: see 'etref help %s'", o->name, argv[0]);
        return 0;
    }
    return option_store(o, next ? argv[i + 1] : value) ? 1 + next : 0;
}

bool options_parse(const option *table, int argc, char **argv, word_list *words)
{
    bool ended = false;
    for (int i = 1; i < argc;) {
        if (!ended && strcmp(argv[i], "--") == 0) {
            ended = true;
            i++;
        } else if (ended || argv[i][0] != '-' || argv[i][1] == '\0') {
            word_list_add(words, argv[i++]);
        } else {
            int taken = option_read(table, argc, argv, i);
            if (taken == 0) return false;
            i += taken;
        }
    }
    return true;
}

/* ---- the machine ---- */

void note_slow_kernels(void)
{
    const char *warning = et_engine_warning();
    if (warning != NULL) fprintf(stderr, "etref: note: %s\n", warning);
}
