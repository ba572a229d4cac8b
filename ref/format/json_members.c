/* json_members.c: one value, from JSON into a struct and back. See json_members.h. */
#include "ref/format/json_members.h"

#include <stdlib.h>
#include <string.h>

static void *inside(void *object, size_t offset)
{
    return (char *)object + offset;
}

static const void *at(const et_member *m, const void *object)
{
    return (const char *)object + m->offset;
}

/* ---- words ---- */

int et_word_position(const char *list, const char *word)
{
    size_t length = strlen(word);
    for (int i = 0;; i++) {
        size_t here = strcspn(list, "|");
        if (here == length && memcmp(list, word, here) == 0) return i;
        if (list[here] == '\0') return -1;
        list += here + 1;
    }
}

static json_t *word_at(const char *list, int position)
{
    while (position-- > 0) list += strcspn(list, "|") + 1;
    return json_stringn(list, strcspn(list, "|"));
}

static int words_in(const char *list)
{
    int count = 1;
    for (; *list != '\0'; list++) count += *list == '|';
    return count;
}

/* Words live in enums, which are ints here, or in bools: 0 is the first word, 1 the second. */
static int load_word(const et_member *m, const void *object)
{
    unsigned char flag;
    int value;
    memcpy(&flag, at(m, object), sizeof flag);
    if (m->size == sizeof(bool)) return flag;
    memcpy(&value, at(m, object), sizeof value);
    return value;
}

/* The position of the word that the member holds, or -1. */
static int position_of(const et_member *m, const void *object)
{
    int value = load_word(m, object), position = words_in(m->type) - 1;
    while (position >= 0 && value != (m->values ? m->values[position] : position)) position--;
    return position;
}

static bool store_word(const et_member *m, void *object, const json_t *v)
{
    int position = json_is_string(v) ? et_word_position(m->type, json_string_value(v)) : -1;
    int value = position >= 0 && m->values ? m->values[position] : position;
    bool flag = value != 0;
    if (position >= 0)
        memcpy(inside(object, m->offset),
               m->size == sizeof(bool) ? (const void *)&flag : (const void *)&value, m->size);
    return position >= 0;
}

/* ---- texts and numbers ---- */

static bool store_text(const et_member *m, char *to, const json_t *v)
{
    size_t length = json_string_length(v);
    if (!json_is_string(v) || length == 0 || length >= m->size) return false;
    if (m->kind == ET_NAME && !et_is_name(json_string_value(v))) return false;
    memset(to, 0, m->size);
    memcpy(to, json_string_value(v), length);
    return true;
}

static bool text_fits(const et_member *m, const char *text)
{
    if (memchr(text, '\0', m->size) == NULL) return false;
    return m->kind == ET_NAME ? text[0] != '\0' && et_is_name(text)
                              : m->optional || text[0] != '\0';
}

static bool is_allowed(const et_member *m, long long value)
{
    if (m->values == NULL) return value >= (long long)m->low && value <= (long long)m->high;
    const int *one = m->values;
    while (*one != 0 && *one != value) one++;
    return *one != 0;
}

static int load_small(const et_member *m, const void *object)
{
    return *(const int *)at(m, object);
}

static bool store_integer(const et_member *m, void *to, const json_t *v)
{
    if (!json_is_integer(v) || !is_allowed(m, json_integer_value(v))) return false;
    if (m->kind == ET_COUNT)
        *(size_t *)to = (size_t)json_integer_value(v);
    else if (m->kind == ET_LONG)
        *(uint64_t *)to = (uint64_t)json_integer_value(v);
    else
        *(int *)to = (int)json_integer_value(v);
    return true;
}

static bool store_number(const et_member *m, void *object, const json_t *v)
{
    bool or_null = m->kind == ET_NUMBER_OR_NULL, is_null = or_null && json_is_null(v);
    if (!is_null && !json_is_number(v)) return false;
    double value = is_null ? 0 : json_number_value(v);
    if (!(value >= m->low && value <= m->high)) return false;
    if (or_null) *(bool *)inside(object, m->flag) = !is_null;
    *(double *)inside(object, m->offset) = value;
    return true;
}

static bool is_null(const et_member *m, const void *object)
{
    return m->kind == ET_NUMBER_OR_NULL && !*((const bool *)object + m->flag);
}

/* ---- any kind ---- */

bool et_member_store(const et_member *m, void *object, const json_t *v)
{
    void *to = inside(object, m->offset);
    switch (m->kind) {
    case ET_NAME:
    case ET_TEXT: return store_text(m, to, v);
    case ET_COUNT:
    case ET_LONG:
    case ET_SMALL: return store_integer(m, to, v);
    case ET_WORD: return store_word(m, object, v);
    case ET_NUMBER:
    case ET_NUMBER_OR_NULL: return store_number(m, object, v);
    case ET_SWITCH: break;
    }
    if (json_is_boolean(v)) *(bool *)to = json_is_true(v);
    return json_is_boolean(v);
}

bool et_member_fits(const et_member *m, const void *object)
{
    const void *from = at(m, object);
    switch (m->kind) {
    case ET_NAME:
    case ET_TEXT: return text_fits(m, from);
    case ET_COUNT:
        return *(const size_t *)from >= (size_t)m->low && *(const size_t *)from <= (size_t)m->high;
    case ET_LONG: return *(const uint64_t *)from <= (uint64_t)m->high;
    case ET_SMALL:
        return (m->optional && load_small(m, object) == 0) || is_allowed(m, load_small(m, object));
    case ET_NUMBER_OR_NULL:
    case ET_NUMBER:
        return is_null(m, object) ||
               (*(const double *)from >= m->low && *(const double *)from <= m->high);
    case ET_SWITCH: return *(const unsigned char *)from <= 1;
    case ET_WORD: break;
    }
    return position_of(m, object) >= 0;
}

bool et_member_equal(const et_member *m, const void *a, const void *b)
{
    return memcmp(at(m, a), at(m, b), m->size) == 0;
}

json_t *et_member_load(const et_member *m, const void *object)
{
    const void *from = at(m, object);
    switch (m->kind) {
    case ET_NAME:
    case ET_TEXT: return json_string(from);
    case ET_COUNT: return json_integer((json_int_t) * (const size_t *)from);
    case ET_LONG: return json_integer((json_int_t) * (const uint64_t *)from);
    case ET_SMALL: return json_integer(load_small(m, object));
    case ET_SWITCH: return json_boolean(*(const bool *)from);
    case ET_NUMBER_OR_NULL:
    case ET_NUMBER: return is_null(m, object) ? json_null() : json_real(*(const double *)from);
    case ET_WORD: break;
    }
    return word_at(m->type, position_of(m, object));
}

/* ---- printing ---- */

/* The fewest digits, of 15, 16 or 17, that read back as the same number; 17 always do. */
static size_t digits_of(const json_t *v)
{
    for (size_t digits = 15; digits < 17; digits++) {
        char text[40];
        snprintf(text, sizeof text, "%.*g", (int)digits, json_real_value(v));
        if (strtod(text, NULL) == json_real_value(v)) return digits;
    }
    return 17;
}

bool et_member_print(et_line *line, const char *name, json_t *v)
{
    if (v == NULL) return false;
    et_line_append("\"", 1, line);
    et_line_append(name, strlen(name), line);
    et_line_append("\": ", 3, line);
    size_t precision = json_is_real(v) ? JSON_REAL_PRECISION(digits_of(v)) : 0;
    int failed =
        json_dump_callback(v, et_line_append, line, JSON_ENCODE_ANY | JSON_COMPACT | precision);
    json_decref(v);
    return failed == 0;
}
