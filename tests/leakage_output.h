/* leakage_output.h: `etref leakage`, run as a child process, and what it prints and writes: JSON and CSV. */
#ifndef ETREF_TESTS_LEAKAGE_OUTPUT_H
#define ETREF_TESTS_LEAKAGE_OUTPUT_H

#include "tests/run_tool.h"

#include <math.h>

#define LEAKAGE(...) RUN("leakage", __VA_ARGS__)

static const char PROSE[] =
    "A router that looks ahead is like a reader who has seen the last page: what it says of the "
    "first is no guess. Of all that a batch may know, the one thing it must not know is what comes "
    "next; a token is read, is sent to whoever will have it, and is done with. ";

static inline json_t *leakage_json(int status, int want)
{
    ck_assert_msg(status == want, "status %d, not %d: %s", status, want, errors);
    return parse_output();
}

static inline json_int_t whole(const json_t *object, const char *name)
{
    const json_t *value = json_object_get(object, name);
    ck_assert_msg(json_is_integer(value), "no whole number '%s'", name);
    return json_integer_value(value);
}

static inline double number(const json_t *object, const char *name)
{
    const json_t *value = json_object_get(object, name);
    ck_assert_msg(json_is_number(value), "no number '%s'", name);
    return json_number_value(value);
}

static inline const char *word(const json_t *object, const char *name)
{
    const char *value = json_string_value(json_object_get(object, name));
    ck_assert_msg(value != NULL, "no word '%s'", name);
    return value;
}

/* Fails unless |got - want| <= 1e-13 |want|: the last digits of 17. */
static inline void close_to(const char *what, double got, double want)
{
    ck_assert_msg(fabs(got - want) <= 1e-13 * fabs(want), "%s: got %.17g, want %.17g", what, got,
                  want);
}

static inline void has(const char *part)
{
    ck_assert_msg(strstr(output, part) != NULL, "no '%s' in: %s", part, output);
}

/* A CSV file or output: lines, and the fields of one. Lines end where text is cut. */
enum { MOST_LINES = 4096, MOST_FIELDS = 32 };

typedef struct csv {
    char *text, *line[MOST_LINES];
    size_t lines;
} csv;

static inline void csv_split(csv *c, char *text)
{
    c->text = text;
    c->lines = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        ck_assert_uint_lt(c->lines, MOST_LINES);
        c->line[c->lines++] = line;
    }
}

static inline char *read_file(const char *name)
{
    char *text = calloc(1, MAX_OUTPUT);
    FILE *file = fopen(in_folder(name), "r");
    ck_assert_msg(file != NULL, "no file %s", name);
    size_t length = fread(text, 1, MAX_OUTPUT - 1, file);
    ck_assert_uint_lt(length, MAX_OUTPUT - 1);
    fclose(file);
    return text;
}

static inline void csv_read(csv *c, const char *name, const char *head)
{
    csv_split(c, read_file(name));
    ck_assert_uint_gt(c->lines, 1);
    ck_assert_str_eq(c->line[0], head);
}

/* Field i of a line, from 0; an empty one is "". */
static inline const char *field(const csv *c, size_t line, size_t i)
{
    static char text[64];
    const char *at = c->line[line];
    for (; i > 0; i--) {
        at = strchr(at, ',');
        ck_assert_msg(at != NULL, "too few fields: %s", c->line[line]);
        at++;
    }
    size_t length = strcspn(at, ",");
    ck_assert_uint_lt(length, sizeof text);
    memcpy(text, at, length);
    text[length] = '\0';
    return text;
}

static inline double value(const csv *c, size_t line, size_t i)
{
    char *end;
    const char *text = field(c, line, i);
    double number_there = strtod(text, &end);
    ck_assert_msg(end != text && *end == '\0', "no number: '%s' in %s", text, c->line[line]);
    return number_there;
}

#endif
