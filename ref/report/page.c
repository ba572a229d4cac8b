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

static size_t page_width(const et_page *t)
{
    enum { USUAL = 80 };
    return t->width ? t->width : USUAL;
}

/* Words up to the end of their line; at least one, however long. Returns what is left of them. */
static const char *add_line(et_page *t, size_t used, const char *words)
{
    for (bool first = true;; first = false) {
        words += strspn(words, " ");
        size_t length = strcspn(words, " ");
        if (length == 0 || (!first && used + 1 + length > page_width(t))) return words;
        char word[1024];
        snprintf(word, sizeof word, "%.*s", (int)(length < sizeof word ? length : sizeof word - 1), words);
        if (!first) et_page_add(t, " ");
        et_page_clean(t, word);
        used += length + !first;
        words += length;
    }
}

void et_page_hang(et_page *t, size_t used, size_t margin, const char *words)
{
    words = add_line(t, used, words);
    while (*words) {
        et_page_add(t, "\n%*s", (int)margin, "");
        words = add_line(t, margin, words);
    }
    et_page_add(t, "\n");
}

void et_page_wrap(et_page *t, size_t margin, const char *words)
{
    if (words[strspn(words, " ")] == '\0') return;
    et_page_add(t, "%*s", (int)margin, "");
    et_page_hang(t, margin, margin, words);
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

/* Where the lines of a row are cut. */
typedef struct layout {
    size_t *width; /* of each column */
    size_t *cut;   /* the column with which each line begins, and the last one's end */
    size_t lines, last_width; /* of the last column, where it is wrapped */
} layout;

enum { GAP = 2, MARGIN = 4, LEAST = 24 }; /* places of the last column */

/* As many columns on a line as there is room for; the last column may be narrower than its cells. */
static void lay_out(layout *l, const et_table *t, size_t room)
{
    size_t used = 0;
    l->lines = 0;
    l->cut[0] = 0;
    for (size_t c = 0; c < t->columns; c++) {
        bool last = c + 1 == t->columns && t->align[c] == 'l';
        size_t begin = used ? used + GAP : 0, width = l->width[c];
        size_t wanted = last && width > LEAST ? LEAST : width;
        if (used > 0 && begin + wanted > room) {
            l->cut[++l->lines] = c;
            begin = MARGIN;
        }
        used = begin + width;
        l->last_width = room > begin + 1 ? room - begin : 1;
    }
    l->cut[++l->lines] = t->columns;
}

/* Padding is held back until something stands behind it, so that no line ends in spaces. */
static void print_line(const et_table *t, char *const *cells, const layout *l, size_t line, et_page *out)
{
    size_t held = line > 0 ? MARGIN : 0, used = held;
    for (size_t c = l->cut[line]; c < l->cut[line + 1]; c++) {
        size_t length = strlen(cells[c]), pad = l->width[c] - length;
        if (t->align[c] == 'r') held += pad;
        if (length > 0) {
            et_page_add(out, "%*s", (int)held, "");
            held = 0;
        }
        if (length > 0 && c + 1 == t->columns && length > l->last_width) {
            et_page_hang(out, used, used, cells[c]);
            return;
        }
        if (length > 0) et_page_clean(out, cells[c]);
        used += l->width[c] + GAP;
        held += GAP + (t->align[c] == 'l' ? pad : 0);
    }
    et_page_add(out, "\n");
}

static bool is_empty(char *const *cells, size_t first, size_t end)
{
    for (size_t c = first; c < end; c++)
        if (cells[c][0]) return false;
    return true;
}

static void print_row(const et_table *t, char *const *cells, const layout *l, et_page *out)
{
    for (size_t i = 0; i < l->lines; i++)
        if (i == 0 || !is_empty(cells, l->cut[i], l->cut[i + 1])) print_line(t, cells, l, i, out);
}

void et_table_print(et_table *t, et_page *out)
{
    void *room = NULL;
    if (et_allocate(&room, 2 * t->columns + 1, sizeof(size_t), "a table", NULL) != ET_OK) t->failed = true;
    if (!t->failed) {
        layout l = {.width = room, .cut = (size_t *)room + t->columns};
        for (size_t c = 0; c < t->columns; c++) l.width[c] = column_width(t, c);
        lay_out(&l, t, page_width(out));
        for (size_t i = 0; i < t->count; i += t->columns) print_row(t, t->cells + i, &l, out);
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
