/* terminal.c: tables, bars, progress, JSON. See terminal.h. */
#include "tools/etref/terminal.h"
#include "tools/etref/failure.h"

#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

void print_wrapped(size_t margin, const char *text)
{
    enum { WIDTH = 96 };
    size_t used = 0;
    while (*(text += strspn(text, " ")) != '\0') {
        char word[1024];
        size_t length = strcspn(text, " ");
        snprintf(word, sizeof word, "%.*s", (int)(length < sizeof word ? length : sizeof word - 1),
                 text);
        bool fits = used > 0 && used + 1 + length <= WIDTH;
        if (used > 0) putchar(fits ? ' ' : '\n');
        if (!fits) printf("%*s", (int)margin, "");
        print_clean(stdout, word);
        used = (fits ? used + 1 : margin) + length;
        text += length;
    }
    if (used > 0) putchar('\n');
}

/* ---- tables ---- */

void table_begin(text_table *t, const char *align)
{
    *t = (text_table){.align = align, .columns = strlen(align)};
}

void table_cell(text_table *t, const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if ((t->count & (t->count - 1)) == 0) {
        char **grown = allocate(t->count ? 2 * t->count : 1, sizeof *grown);
        if (t->count) memcpy(grown, t->cells, t->count * sizeof *grown);
        free(t->cells);
        t->cells = grown;
    }
    char *copy = allocate(strlen(text) + 1, 1);
    strcpy(copy, text);
    t->cells[t->count++] = copy;
}

static size_t column_width(const text_table *t, size_t column)
{
    size_t width = 0;
    for (size_t i = column; i < t->count; i += t->columns)
        if (strlen(t->cells[i]) > width) width = strlen(t->cells[i]);
    return width;
}

static void print_padding(size_t width)
{
    while (width-- > 0) putchar(' ');
}

/* Padding is held back until something stands behind it, so that no line ends in spaces. */
static void print_row(const text_table *t, char *const *cells, const size_t *width)
{
    size_t held = 0;
    for (size_t c = 0; c < t->columns; c++) {
        size_t length = strlen(cells[c]), pad = width[c] - length;
        if (t->align[c] == 'r') held += pad;
        if (length > 0) {
            print_padding(held);
            print_clean(stdout, cells[c]);
            held = 0;
        }
        held += 2 + (t->align[c] == 'l' ? pad : 0);
    }
    putchar('\n');
}

void table_print(text_table *t)
{
    size_t *width = allocate(t->columns, sizeof *width);
    for (size_t c = 0; c < t->columns; c++) width[c] = column_width(t, c);
    for (size_t i = 0; i < t->count; i += t->columns) print_row(t, t->cells + i, width);
    free(width);
    table_free(t);
}

void table_free(text_table *t)
{
    for (size_t i = 0; i < t->count; i++) free(t->cells[i]);
    free(t->cells);
    *t = (text_table){0};
}

/* ---- sizes and bars ---- */

void print_size(char *out, size_t room, double bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    size_t unit = 0;
    for (; bytes >= 1024 && unit < 4; unit++) bytes /= 1024;
    snprintf(out, room, unit ? "%.1f %s" : "%.0f %s", bytes, units[unit]);
}

/* ---- JSON ---- */

static const char *number_word(double value)
{
    if (isnan(value)) return "NaN";
    if (isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
    return NULL;
}

json_t *json_number(double value)
{
    const char *word = number_word(value);
    return word ? json_string(word) : json_real(value);
}

void print_number(double value)
{
    const char *word = number_word(value);
    if (word)
        printf("\"%s\"", word);
    else
        printf("%.17g", value);
}

json_t *json_clean(const char *text)
{
    json_t *value = json_string(text); /* NULL if the text is not UTF-8 */
    if (value) return value;
    char *copy = allocate(strlen(text) + 1, 1);
    for (size_t i = 0; text[i]; i++) copy[i] = (unsigned char)text[i] < 0x80 ? text[i] : '?';
    value = json_string(copy);
    free(copy);
    return value;
}

enum { JSON_FORM = JSON_INDENT(2) | JSON_REAL_PRECISION(17) | JSON_ENSURE_ASCII };

static char *json_text(json_t *value)
{
    char *text = value ? json_dumps(value, JSON_FORM) : NULL;
    if (text == NULL) leave(fail("no memory for the JSON output"));
    json_decref(value);
    return text;
}

void json_print(json_t *value)
{
    char *text = json_text(value);
    puts(text);
    free(text);
}

void json_print_open(json_t *object)
{
    char *text = json_text(object);
    text[strlen(text) - 2] = '\0'; /* the closing brace and the end of line before it */
    fputs(text, stdout);
    free(text);
}
