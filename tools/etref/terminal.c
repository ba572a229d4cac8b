/* terminal.c: colours, tables, sizes, JSON. See terminal.h. */
#include "tools/etref/terminal.h"
#include "tools/etref/failure.h"
#include "tools/etref/options.h"

#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* ---- colours ---- */

bool terminal_colors(void)
{
    static int known = -1;
    const char *plain = getenv("NO_COLOR"), *kind = getenv("TERM");
    if (known < 0) known = isatty(STDOUT_FILENO) && !(plain && *plain) && !(kind && strcmp(kind, "dumb") == 0);
    return known;
}

/* The colour of a word that is a verdict, else 0. */
static int color_of(const char *word, size_t length)
{
    enum { RED = 31, GREEN = 32, YELLOW = 33 };
    static const struct {
        const char *word;
        int color;
    } verdicts[] = {{"PASS", GREEN},          {"pass", GREEN},     {"identical", GREEN},
                    {"FAIL", RED},            {"MISMATCH", RED},   {"INCONCLUSIVE", YELLOW},
                    {"inconclusive", YELLOW}, {"unclear", YELLOW}};
    for (size_t i = 0; i < sizeof verdicts / sizeof *verdicts; i++)
        if (strlen(verdicts[i].word) == length && strncmp(word, verdicts[i].word, length) == 0) return verdicts[i].color;
    return 0;
}

/* Cells stand two spaces apart; words of a sentence do not. */
static bool is_marked(const char *text, const char *word, size_t length)
{
    const char *end = word + length;
    if (word == text || word[-1] == '\n') return true;
    return word - text > 1 && word[-1] == ' ' && word[-2] == ' ' &&
           (*end == '\0' || *end == '\n' || strncmp(end, "  ", 2) == 0);
}

void print_verdicts(const char *text)
{
    static const char between[] = " :\n";
    for (const char *word = text; *word;) {
        size_t length = strcspn(word, between), gap = strspn(word + length, between);
        int color = terminal_colors() && is_marked(text, word, length) ? color_of(word, length) : 0;
        if (color) printf("\033[%dm", color);
        printf("%.*s%s", (int)length, word, color ? "\033[0m" : "");
        printf("%.*s", (int)gap, word + length);
        word += length + gap;
    }
}

/* ---- lines ---- */

void print_page(et_page *t)
{
    char *text = et_page_take(t);
    if (text == NULL) {
        fail("no memory for what would stand here");
        leave_without_memory();
    }
    print_verdicts(text);
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
    print_page(&t);
}

void print_hung(size_t used, const char *text)
{
    et_page t = {.width = terminal_width()};
    et_page_hang(&t, used, used, text);
    print_page(&t);
}

void table_print(et_table *t)
{
    et_page text = {.width = terminal_width()};
    et_table_print(t, &text);
    print_page(&text);
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
