/* terminal.c: tables, sizes, JSON. See terminal.h. */
#include "tools/etref/terminal.h"
#include "tools/etref/failure.h"
#include "tools/etref/options.h"

#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static void print_text(et_page *t)
{
    char *text = et_page_take(t);
    if (text == NULL) {
        fail("no memory for what would stand here");
        leave_without_memory();
    }
    fputs(text, stdout);
    free(text);
}

size_t terminal_width(void)
{
    enum { USUAL = 80, LEAST = 40, MOST = 1000 };
    struct winsize size;
    const char *asked = getenv("COLUMNS");
    size_t columns = asked ? parse_count(asked) : 0;
    if (columns == 0 && isatty(STDOUT_FILENO) && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0) columns = size.ws_col;
    if (columns == 0) return USUAL;
    return columns < LEAST ? LEAST : columns > MOST ? MOST : columns;
}

void print_wrapped(size_t margin, const char *text)
{
    et_page t = {.width = terminal_width()};
    et_page_wrap(&t, margin, text);
    print_text(&t);
}

void print_hung(size_t used, const char *text)
{
    et_page t = {.width = terminal_width()};
    et_page_hang(&t, used, used, text);
    print_text(&t);
}

void table_print(et_table *t)
{
    et_page text = {.width = terminal_width()};
    et_table_print(t, &text);
    print_text(&text);
}

/* ---- sizes ---- */

void print_size(char *out, size_t room, double bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    size_t unit = 0;
    for (; bytes >= 1024 && unit < 4; unit++) bytes /= 1024;
    snprintf(out, room, unit ? "%.1f %s" : "%.0f %s", bytes, units[unit]);
}

/* ---- JSON ---- */

void print_number(double value)
{
    const char *word = et_number_word(value);
    if (word)
        printf("\"%s\"", word);
    else
        printf("%.17g", value);
}

static char *json_text(json_t *value)
{
    char *text = et_json_text(value);
    if (text == NULL) leave(fail("no memory for the JSON output"));
    return text;
}

void json_print(json_t *value)
{
    char *text = json_text(value);
    result_begins();
    puts(text);
    free(text);
}

void json_print_open(json_t *object)
{
    char *text = json_text(object);
    result_begins();
    text[strlen(text) - 2] = '\0'; /* the closing brace and the end of line before it */
    fputs(text, stdout);
    free(text);
}
