/* page.c: texts, paragraphs, tables. See page.h. */
#include "ref/report/page.h"
#include "ref/base/memory.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- a text that grows ---- */

/* Room for `count` bytes more, and the 0 behind them. */
static bool has_room(et_page *t, size_t count)
{
    size_t room = t->room ? t->room : 256;
    void *grown;
    if (t->failed) return false;
    while (room - t->length <= count) room *= 2;
    if (room == t->room) return true;
    t->failed = et_allocate(&grown, room, 1, "a text", NULL) != ET_OK;
    if (t->failed) return false;
    if (t->length > 0) memcpy(grown, t->at, t->length);
    free(t->at);
    t->at = grown;
    t->room = room;
    return true;
}

static void add_bytes(et_page *t, const char *bytes, size_t count)
{
    if (!has_room(t, count)) return;
    memcpy(t->at + t->length, bytes, count);
    t->length += count;
    t->at[t->length] = '\0';
}

void et_page_add(et_page *t, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (length <= 0 || !has_room(t, (size_t)length)) return;
    va_start(arguments, format);
    vsnprintf(t->at + t->length, (size_t)length + 1, format, arguments);
    va_end(arguments);
    t->length += (size_t)length;
}

/* C0 and DEL, and the C1 controls as UTF-8 spells them (C2 80 to C2 9F): some terminals obey both.
 */
size_t et_clean_character(const unsigned char *c, char *shown)
{
    bool c1 = c[0] == 0xC2 && c[1] >= 0x80 && c[1] <= 0x9F;
    *shown = *c < 0x20 || *c == 0x7F || c1 ? '?' : (char)*c;
    return c1 ? 2 : 1;
}

void et_page_clean(et_page *t, const char *words)
{
    const unsigned char *c = (const unsigned char *)words;
    while (*c) {
        char shown;
        c += et_clean_character(c, &shown);
        add_bytes(t, &shown, 1);
    }
}

void et_page_wrap(et_page *t, size_t margin, const char *words)
{
    enum { WIDTH = 96 };
    size_t used = 0;
    while (*(words += strspn(words, " ")) != '\0') {
        char word[1024];
        size_t length = strcspn(words, " ");
        snprintf(word, sizeof word, "%.*s", (int)(length < sizeof word ? length : sizeof word - 1),
                 words);
        bool fits = used > 0 && used + 1 + length <= WIDTH;
        if (used > 0) et_page_add(t, fits ? " " : "\n");
        if (!fits) et_page_add(t, "%*s", (int)margin, "");
        et_page_clean(t, word);
        used = (fits ? used + 1 : margin) + length;
        words += length;
    }
    if (used > 0) et_page_add(t, "\n");
}

char *et_page_take(et_page *t)
{
    if (!t->at) add_bytes(t, "", 0);
    char *text = t->at;
    if (t->failed) {
        free(text);
        text = NULL;
    }
    *t = (et_page){0};
    return text;
}

/* ---- tables ---- */

void et_table_begin(et_table *t, const char *align)
{
    *t = (et_table){.align = align, .columns = strlen(align)};
}

/* The array of cells is full at each power of 2. */
static bool has_cell(et_table *t)
{
    void *grown;
    if (t->failed) return false;
    if ((t->count & (t->count - 1)) != 0) return true;
    size_t room = t->count ? 2 * t->count : 1;
    t->failed = et_allocate(&grown, room, sizeof *t->cells, "a table", NULL) != ET_OK;
    if (t->failed) return false;
    if (t->count) memcpy(grown, t->cells, t->count * sizeof *t->cells);
    free(t->cells);
    t->cells = grown;
    return true;
}

void et_table_cell(et_table *t, const char *format, ...)
{
    char text[512];
    void *copy;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (!has_cell(t)) return;
    t->failed = et_allocate(&copy, strlen(text) + 1, 1, "a table", NULL) != ET_OK;
    if (!t->failed) t->cells[t->count++] = strcpy(copy, text);
}

static size_t column_width(const et_table *t, size_t column)
{
    size_t width = 0;
    for (size_t i = column; i < t->count; i += t->columns)
        if (strlen(t->cells[i]) > width) width = strlen(t->cells[i]);
    return width;
}

/* Padding is held back until something stands behind it, so that no line ends in spaces. */
static void print_row(const et_table *t, char *const *cells, const size_t *width, et_page *out)
{
    size_t held = 0;
    for (size_t c = 0; c < t->columns; c++) {
        size_t length = strlen(cells[c]), pad = width[c] - length;
        if (t->align[c] == 'r') held += pad;
        if (length > 0) {
            et_page_add(out, "%*s", (int)held, "");
            et_page_clean(out, cells[c]);
            held = 0;
        }
        held += 2 + (t->align[c] == 'l' ? pad : 0);
    }
    et_page_add(out, "\n");
}

void et_table_print(et_table *t, et_page *out)
{
    void *room = NULL;
    if (et_allocate(&room, t->columns, sizeof(size_t), "a table", NULL) != ET_OK) t->failed = true;
    if (!t->failed) {
        size_t *width = room;
        for (size_t c = 0; c < t->columns; c++) width[c] = column_width(t, c);
        for (size_t i = 0; i < t->count; i += t->columns) print_row(t, t->cells + i, width, out);
    }
    out->failed = out->failed || t->failed;
    free(room);
    et_table_free(t);
}

void et_table_free(et_table *t)
{
    for (size_t i = 0; i < t->count; i++) free(t->cells[i]);
    free(t->cells);
    *t = (et_table){0};
}
