/* progress.c: see progress.h. */
#include "tools/etref/progress.h"
#include "ref/report/page.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void print_clean(FILE *out, const char *text)
{
    const unsigned char *c = (const unsigned char *)text;
    while (*c) {
        char shown;
        c += et_clean_character(c, &shown);
        fputc(shown, out);
    }
}

/* The place of a value on a bar, 0 to width. Written so that NaN lands on 0. */
static size_t bar_place(size_t width, double value, double full)
{
    if (!(value > 0) || !(full > 0)) return 0;
    return value >= full ? width : (size_t)((double)width * (value / full) + 0.5);
}

void print_bar(char *out, size_t width, double value, double mark, double full)
{
    memset(out, ' ', width);
    memset(out, '#', bar_place(width, value, full));
    size_t place = bar_place(width, mark, full);
    if (mark >= 0 && width > 0) out[place < width ? place : width - 1] = '|';
    while (width > 0 && out[width - 1] == ' ') width--;
    out[width] = '\0';
}

static bool progress_hidden;

void progress_hide(void)
{
    progress_hidden = true;
}

static bool progress_wanted(void)
{
    static int known = -1;
    if (progress_hidden) return false;
    if (known < 0) {
        const char *term = getenv("TERM"), *plain = getenv("NO_COLOR");
        known = isatty(STDERR_FILENO) && !(plain && *plain) && term && strcmp(term, "dumb") != 0;
    }
    return known;
}

static bool progress_shown;

void progress_show(void *user, const char *phase, double done)
{
    if (!progress_wanted()) return;
    char bar[31];
    print_bar(bar, 30, done, -1, 1);
    fprintf(stderr, "\r\033[K%s [%-30s] %3.0f %% %s", (const char *)user, bar, 100 * done, phase);
    fflush(stderr);
    progress_shown = true;
}

void progress_clear(void)
{
    if (!progress_shown) return;
    fputs("\r\033[K", stderr);
    fflush(stderr);
    progress_shown = false;
}
