/* report.c: counting texts. See report.h. */
#include "tests/campaign/report.h"

#include <stdlib.h>
#include <string.h>

cp_count *cp_counts_add(cp_counts *c, const char *text, const char *example)
{
    size_t i = 0;
    while (i < c->count && strcmp(c->rows[i].text, text) != 0) i++;
    if (i == c->room) {
        size_t room = 2 * c->room + 64;
        cp_count *more = realloc(c->rows, room * sizeof *more);
        if (!more) return NULL;
        c->rows = more;
        c->room = room;
    }
    if (i == c->count) {
        c->rows[i] = (cp_count){strdup(text), strdup(example), 0};
        if (!c->rows[i].text || !c->rows[i].example) return NULL;
        c->count++;
    }
    c->rows[i].times++;
    return &c->rows[i];
}

static int most_first(const void *a, const void *b)
{
    const cp_count *one = a, *two = b;
    return one->times < two->times   ? 1
           : one->times > two->times ? -1
                                     : strcmp(one->text, two->text);
}

void cp_counts_sort(cp_counts *c)
{
    if (c->count > 0) qsort(c->rows, c->count, sizeof *c->rows, most_first);
}

void cp_counts_free(cp_counts *c)
{
    for (size_t i = 0; i < c->count; i++) {
        free(c->rows[i].text);
        free(c->rows[i].example);
    }
    free(c->rows);
    *c = (cp_counts){0};
}

bool cp_is_result(const char *tensor)
{
    return strcmp(tensor, "fwd.y") == 0 || strcmp(tensor, "bwd.x") == 0 ||
           strncmp(tensor, "bwd.w_", 6) == 0 || strcmp(tensor, "bwd.shared_up") == 0 ||
           strcmp(tensor, "bwd.shared_down") == 0;
}
