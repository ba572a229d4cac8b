/* sample.c: drawing bytes and printing characters. See sample.h. */
#include "tools/etref/sample.h"
#include "etref/elementary.h"
#include "etref/random.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- drawing ---- */

typedef struct word {
    double share;
    size_t index;
} word;

/* The likelier first, of equal ones the lower index. */
static int compare(const void *a, const void *b)
{
    const word *left = a, *right = b;
    if (left->share != right->share) return left->share > right->share ? -1 : 1;
    return left->index < right->index ? -1 : 1;
}

size_t sample_next(const sampler *s, uint64_t index, size_t V, const et_real *logits)
{
    word words[256];
    size_t best = 0, taken = 0;
    for (size_t v = 1; v < V; v++)
        if (logits[v] > logits[best]) best = v;
    if (s->temperature == 0) return best;
    double sum = 0, kept = 0;
    for (size_t v = 0; v < V; v++) {
        words[v] = (word){et_exp((double)(logits[v] - logits[best]) / s->temperature), v};
        sum += words[v].share;
    }
    qsort(words, V, sizeof *words, compare);
    do kept += words[taken++].share;
    while (taken < V && kept < s->top_p * sum);
    double left = et_uniform(et_stream_open(s->seed, "sample"), index, 0) * kept;
    for (size_t i = 0; i + 1 < taken; i++)
        if ((left -= words[i].share) < 0) return words[i].index;
    return words[taken - 1].index;
}

/* ---- printing ---- */

/* Backgrounds of 256-colour terminals, from white to red, under black letters. */
static const struct {
    double below; /* fanout / usual */
    int color;
    const char *label;
} levels[] = {{0.25, 231, "< 0.25"},
              {0.75, 229, "< 0.75"},
              {1.25, 222, "< 1.25"},
              {2, 215, "< 2"},
              {1e300, 209, "2 and more"}};

static int color_of(const printer *p, double fanout)
{
    size_t i = 0;
    while (fanout >= levels[i].below * p->usual) i++;
    return levels[i].color;
}

static void show_color(printer *p, int color)
{
    if (!p->colors || color == p->shown) return;
    if (color == 0)
        fputs("\033[0m", stdout);
    else
        printf("\033[38;5;16;48;5;%dm", color);
    p->shown = color;
}

void print_legend(printer *p)
{
    if (!p->colors) return;
    fputs("experts of a token beside the usual number: ", stdout);
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++) {
        show_color(p, levels[i].color);
        printf(" %s ", levels[i].label);
    }
    show_color(p, 0);
    putchar('\n');
}

/* Bytes that a character has which begins with `first`; 0: none begins so. */
static size_t length_of(unsigned char first)
{
    if (first < 0x80) return 1;
    if (first < 0xC2 || first > 0xF4) return 0;
    return first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
}

/* Whether the bytes are one character of UTF-8, and no control character but an end of line or a
 * tab. */
static bool is_shown(const unsigned char *bytes, size_t count)
{
    if (count == 1)
        return (bytes[0] >= 0x20 && bytes[0] < 0x7F) || bytes[0] == '\n' || bytes[0] == '\t';
    if (count == 2 && bytes[0] == 0xC2 && bytes[1] < 0xA0) return false;
    json_t *text = json_stringn((const char *)bytes, count); /* NULL if it is not UTF-8 */
    json_decref(text);
    return text != NULL;
}

/* Prints what is pending: the character, or a '?' for each of its bytes. */
static void flush(printer *p)
{
    bool whole = p->count == p->wanted && is_shown(p->bytes, p->count);
    bool line = p->count == 1 && p->bytes[0] == '\n';
    show_color(p, line || p->count == 0 ? 0 : color_of(p, p->fanout));
    for (size_t i = 0; i < p->count; i++) putchar(whole ? p->bytes[i] : '?');
    p->count = p->wanted = 0;
    p->fanout = 0;
}

void print_byte(printer *p, unsigned char byte, double fanout)
{
    bool goes_on = byte >= 0x80 && byte < 0xC0;
    if (p->count > 0 && !goes_on) flush(p);
    if (p->count == 0) p->wanted = length_of(byte);
    p->bytes[p->count++] = byte;
    if (fanout > p->fanout) p->fanout = fanout;
    if (p->count >= p->wanted) flush(p);
}

void print_end(printer *p)
{
    if (p->count > 0) flush(p);
    show_color(p, 0);
    putchar('\n');
}
