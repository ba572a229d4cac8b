/* json.c: reading JSON that people wrote, and speaking about it. See json.h. */
#include "ref/format/json.h"

#include <string.h>

et_status et_json_no_memory(const char *where, const char *what, et_error *error)
{
    return et_fail(error, ET_ENOMEM, "%s: no memory to read %s", where, what);
}

static bool is_blank(const char *text, size_t length)
{
    size_t i = 0;
    while (i < length && memchr(" \t\r\n", text[i], 4) != NULL) i++;
    return i == length;
}

et_status et_json_read(json_t **root, const char *text, size_t length, size_t limit,
                       const char *where, const char *what, et_error *error)
{
    json_error_t trouble;
    bool no_memory;
    if (length > limit)
        return et_fail(error, ET_EINVAL, "%s: %zu bytes; allowed: at most %zu", where, length,
                       limit);
    if (is_blank(text, length))
        return et_fail(error, ET_EINVAL, "%s: is empty; %s belongs here", where, what);
    *root = et_json_load(text, length, JSON_DECODE_ANY, &trouble, &no_memory);
    if (*root != NULL) return ET_OK;
    if (no_memory) return et_json_no_memory(where, what, error);
    return et_fail(error, ET_EINVAL, "%s: line %d, column %d: cannot be read as JSON: %s", where,
                   trouble.line, trouble.column, trouble.text);
}

int et_line_append(const char *bytes, size_t count, void *to)
{
    et_line *line = to;
    size_t room = line->room - 1 - line->used;
    if (count > room) line->full = true;
    if (count > room) count = room;
    memcpy(line->text + line->used, bytes, count);
    line->used += count;
    line->text[line->used] = '\0';
    return 0;
}

et_quote et_json_quote(json_t *v)
{
    et_quote q = {""};
    et_line line = {.text = q.text, .room = sizeof q.text - sizeof " ..."};
    size_t flags = JSON_ENCODE_ANY | JSON_ENSURE_ASCII | JSON_COMPACT | JSON_REAL_PRECISION(15);
    if (json_dump_callback(v, et_line_append, &line, flags) != 0)
        snprintf(q.text, sizeof q.text, "(no memory to show it)");
    else if (line.full)
        memcpy(q.text + line.used, " ...", sizeof " ...");
    return q;
}

bool et_is_name(const char *text)
{
    static const char allowed[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.";
    return strspn(text, allowed) == strlen(text) && strchr("-_.", text[0]) == NULL;
}

/* Row i of the usual table, kept in one array. */
size_t et_edit_distance(const char *a, const char *b)
{
    size_t row[64], columns = strlen(b);
    if (columns > 63 || strlen(a) > 63) return 64;
    for (size_t j = 0; j <= columns; j++) row[j] = j;
    for (size_t i = 0; a[i] != '\0'; i++) {
        size_t diagonal = row[0];
        row[0] = i + 1;
        for (size_t j = 0; j < columns; j++) {
            size_t best = diagonal + (a[i] != b[j]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j + 1] + 1 < best) best = row[j + 1] + 1;
            diagonal = row[j + 1];
            row[j + 1] = best;
        }
    }
    return row[columns];
}

/* The distance where it is small enough for a slip, else 64. */
static size_t slip(const char *word, const char *name)
{
    size_t distance = et_edit_distance(word, name);
    return 3 * distance <= strlen(name) ? distance : 64;
}

const char *et_nearest_name(const char *word, const char *(*name_at)(size_t index), size_t count)
{
    const char *nearest = NULL;
    size_t least = 64;
    for (size_t i = 0; i < count; i++) {
        const char *name = name_at(i), *dot = strchr(name, '.');
        size_t whole = slip(word, name), part = dot != NULL ? slip(word, dot + 1) : 64;
        size_t distance = whole < part ? whole : part;
        if (distance < least) {
            least = distance;
            nearest = name;
        }
    }
    return nearest;
}
