/* json_load.c: JSON text into Jansson's values. See json.h.
 *
 * Jansson has a reader, too, but it drops the characters for which it finds no memory, and aborts
 * the process over some of them. This one asks for all the memory that a token may need before it
 * reads the token, and knows at each step whether memory or the text was at fault. What it says is
 * what Jansson's would say. Grammar: RFC 8259, with nothing added.
 */
#include "ref/base/memory.h"
#include "ref/oracle/json.h"

#include <errno.h>
#include <locale.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_DEPTH = 2048, MAX_NUMBER = 400, MAX_SHOWN = 20 };

typedef struct reader {
    const char *text;
    size_t length, token, at; /* the token read last is text[token..at) */
    int depth;
    bool no_memory;
    json_error_t *trouble;
} reader;

static json_t *parse_value(reader *r);

/* ---- failure ---- */

/* Line and column, in characters, of the end of the last token. */
static void locate(const reader *r)
{
    json_error_t *t = r->trouble;
    t->line = 1;
    t->column = 0;
    t->position = (int)r->at;
    for (size_t i = 0; i < r->at; i++) {
        if (r->text[i] == '\n') {
            t->line++;
            t->column = 0;
        } else if (((unsigned char)r->text[i] & 0xC0) != 0x80) {
            t->column++;
        }
    }
}

/* Returns NULL. The first failure counts. */
__attribute__((format(printf, 2, 3))) static void *refuse(reader *r, const char *format, ...)
{
    char what[96];
    va_list arguments;
    size_t shown = r->at - r->token, room = sizeof r->trouble->text;
    if (r->no_memory || r->trouble->text[0] != '\0') return NULL;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    locate(r);
    if (shown == 0 && r->at == r->length)
        snprintf(r->trouble->text, room, "%s near end of file", what);
    else if (shown > 0 && shown <= MAX_SHOWN)
        snprintf(r->trouble->text, room, "%s near '%.*s'", what, (int)shown, r->text + r->token);
    else
        snprintf(r->trouble->text, room, "%s", what);
    return NULL;
}

static void *out_of_memory(reader *r)
{
    r->no_memory = true;
    return NULL;
}

/* A new value, or NULL: then it was memory that was missing. */
static json_t *made(reader *r, json_t *value)
{
    return value != NULL ? value : out_of_memory(r);
}

/* ---- tokens ---- */

static int peek(const reader *r)
{
    return r->at < r->length ? (unsigned char)r->text[r->at] : EOF;
}

static bool is_digit(int c)
{
    return c >= '0' && c <= '9';
}

static bool is_letter(int c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* The first character of the next token, which begins here; EOF at the end. */
static int next_token(reader *r)
{
    while (r->at < r->length && memchr(" \t\n\r", r->text[r->at], 4) != NULL) r->at++;
    r->token = r->at;
    return peek(r);
}

/* Bytes of the character in UTF-8 at `from`, 0 if there is none: shortest form, no surrogates. */
static size_t utf8_width(const unsigned char *from, size_t room)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t width = from[0] < 0x80 ? 1 : from[0] < 0xE0 ? 2 : from[0] < 0xF0 ? 3 : 4;
    bool leads = from[0] < 0x80 || (from[0] >= 0xC0 && from[0] < 0xF8);
    if (width > room || !leads) return 0;
    uint32_t code = width == 1 ? from[0] : from[0] & (0xFFu >> (width + 1));
    for (size_t i = 1; i < width; i++) {
        if ((from[i] & 0xC0) != 0x80) return 0;
        code = code << 6 | (from[i] & 0x3Fu);
    }
    bool surrogate = code >= 0xD800 && code <= 0xDFFF;
    return code < least[width] || code > 0x10FFFF || surrogate ? 0 : width;
}

/* Takes one character, if it is one. */
static bool take_character(reader *r)
{
    size_t width = utf8_width((const unsigned char *)r->text + r->at, r->length - r->at);
    r->at += width;
    return width > 0;
}

/* A byte is shown by its number: a message is UTF-8. */
static void *refuse_byte(reader *r)
{
    unsigned byte = (unsigned char)r->text[r->at];
    return refuse(r, "unable to decode byte 0x%x", byte);
}

/* Reads the next token for a message that something else belongs here. */
static void *refuse_next(reader *r, const char *expected)
{
    int c = next_token(r);
    bool fine = c == EOF || take_character(r);
    if (is_letter(c) || is_digit(c))
        while (is_letter(peek(r)) || is_digit(peek(r))) r->at++;
    if (c == '"') do
            fine = peek(r) != EOF && take_character(r);
        while (fine && r->text[r->at - 1] != '"');
    if (!fine && peek(r) != EOF) return refuse_byte(r);
    return refuse(r, "%s expected", expected);
}

/* The next token is this character, and is taken. */
static bool take(reader *r, int wanted)
{
    if (next_token(r) != wanted) return false;
    r->at++;
    return true;
}

/* ---- strings ---- */

static char *put_utf8(char *to, uint32_t code)
{
    if (code < 0x80) {
        *to++ = (char)code;
        return to;
    }
    static const int lead[] = {0, 0xC0, 0xE0, 0xF0};
    int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    *to++ = (char)(lead[more] | (int)(code >> (6 * more)));
    while (more-- > 0) *to++ = (char)(0x80 | (code >> (6 * more) & 0x3F));
    return to;
}

/* The four hexadecimal digits behind "\u"; false if they are not there. */
static bool take_unit(reader *r, uint32_t *unit)
{
    *unit = 0;
    for (int i = 0; i < 4; i++) {
        int c = peek(r), low = c | 0x20;
        if (c != EOF) r->at++; /* a wrong one is shown, too */
        if (!is_digit(c) && !(low >= 'a' && low <= 'f')) return false;
        *unit = *unit << 4 | (uint32_t)(is_digit(c) ? c - '0' : low - 'a' + 10);
    }
    return true;
}

/* Bytes from here to behind the closing quote, or to the end. */
static size_t string_room(const reader *r)
{
    size_t end = r->at;
    while (end < r->length && r->text[end] != '"') end += r->text[end] == '\\' ? 2 : 1;
    return (end < r->length ? end + 1 : r->length) - r->at;
}

/* What follows a backslash; NULL after a message. */
static char *take_escape(reader *r, char *to)
{
    static const char letters[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
    int c = peek(r);
    const char *place = c > 0 ? strchr(letters, c) : NULL;
    if (place != NULL) {
        r->at++;
        *to = meant[place - letters];
        return to + 1;
    }
    uint32_t code, second = 0;
    if (c != EOF) r->at++;
    if (c != 'u' || !take_unit(r, &code)) return refuse(r, "invalid escape");
    if (code < 0xD800 || code > 0xDFFF) return put_utf8(to, code);
    bool pair = code < 0xDC00 && r->length - r->at >= 2 && memcmp(r->text + r->at, "\\u", 2) == 0;
    if (pair) r->at += 2;
    if (pair && !take_unit(r, &second)) return refuse(r, "invalid escape");
    if (second >= 0xDC00 && second <= 0xDFFF)
        return put_utf8(to, 0x10000 + ((code - 0xD800) << 10) + (second - 0xDC00));
    r->at += string_room(r); /* the message shows the whole string */
    if (!pair) return refuse(r, "invalid Unicode '\\u%04X'", code);
    return refuse(r, "invalid Unicode '\\u%04X\\u%04X'", code, second);
}

/* The string whose opening quote is next: allocated, terminated, without NUL; NULL after a message. */
static char *parse_string(reader *r, size_t *length, const char *of_nul)
{
    void *room;
    r->at++;
    if (et_allocate(&room, string_room(r) + 1, 1, "a string", NULL) != ET_OK)
        return out_of_memory(r);
    char *text = room, *to = text;
    while (to != NULL && peek(r) != '"') {
        int c = peek(r);
        size_t from = r->at;
        if (c == EOF) {
            to = refuse(r, "premature end of input");
        } else if (c == '\n') {
            to = refuse(r, "unexpected newline");
        } else if (c < 0x20) {
            to = refuse(r, "control character 0x%x", (unsigned)c);
        } else if (c == '\\') {
            r->at++;
            to = take_escape(r, to);
        } else if (take_character(r)) {
            memcpy(to, r->text + from, r->at - from);
            to += r->at - from;
        } else {
            to = refuse_byte(r);
        }
    }
    if (to != NULL) r->at++;
    if (to != NULL && memchr(text, '\0', (size_t)(to - text)) != NULL) to = refuse(r, "%s", of_nul);
    if (to != NULL) *length = (size_t)(to - text);
    if (to == NULL) free(text);
    return to != NULL ? text : NULL;
}

/* ---- values ---- */

static void take_digits(reader *r)
{
    while (is_digit(peek(r))) r->at++;
}

/* strtod and strtoll want a terminated text, and strtod the country's decimal point. */
static json_t *number_of(reader *r, bool real)
{
    char text[MAX_NUMBER + 16];
    size_t length = r->at - r->token;
    if (length > MAX_NUMBER) return refuse(r, "a number of more than %d characters", MAX_NUMBER);
    memcpy(text, r->text + r->token, length);
    text[length] = '\0';
    char *point = strchr(text, '.');
    const char *local = localeconv()->decimal_point;
    if (point != NULL && local[0] != '\0' && local[1] == '\0') *point = local[0];
    errno = 0;
    if (!real) {
        long long value = strtoll(text, NULL, 10);
        if (errno == ERANGE) return refuse(r, "too big %sinteger", value < 0 ? "negative " : "");
        return made(r, json_integer(value));
    }
    double value = strtod(text, NULL);
    if (isinf(value)) return refuse(r, "real number overflow");
    return made(r, json_real(value));
}

static json_t *parse_number(reader *r)
{
    bool real = false;
    if (peek(r) == '-') r->at++;
    bool zero = peek(r) == '0', digits = is_digit(peek(r));
    if (zero)
        r->at++;
    else
        take_digits(r);
    if (!digits || (zero && is_digit(peek(r)))) return refuse(r, "invalid token");
    if (peek(r) == '.') {
        real = true;
        r->at++;
        if (!is_digit(peek(r))) return refuse(r, "invalid token");
        take_digits(r);
    }
    if (peek(r) == 'e' || peek(r) == 'E') {
        real = true;
        r->at++;
        if (peek(r) == '+' || peek(r) == '-') r->at++;
        if (!is_digit(peek(r))) return refuse(r, "invalid token");
        take_digits(r);
    }
    return number_of(r, real);
}

static json_t *parse_word(reader *r)
{
    static const char *const words[] = {"true", "false", "null"};
    while (is_letter(peek(r))) r->at++;
    size_t length = r->at - r->token;
    for (int i = 0; i < 3; i++)
        if (strlen(words[i]) == length && memcmp(words[i], r->text + r->token, length) == 0)
            return i == 2 ? json_null() : json_boolean(i == 0);
    return refuse(r, "invalid token");
}

/* The value behind `key`, into the object. */
static bool parse_member(reader *r, json_t *object, const char *key)
{
    if (json_object_get(object, key) != NULL) return refuse(r, "duplicate object key") != NULL;
    if (!take(r, ':')) return refuse_next(r, "':'") != NULL;
    json_t *value = parse_value(r);
    if (value == NULL) return false;
    if (json_object_set_new_nocheck(object, key, value) == 0) return true;
    return out_of_memory(r) != NULL;
}

/* True after "key": value. */
static bool parse_pair(reader *r, json_t *object)
{
    size_t length;
    if (next_token(r) != '"') return refuse_next(r, "string or '}'") != NULL;
    char *key = parse_string(r, &length, "NUL byte in object key not supported");
    bool fine = key != NULL && parse_member(r, object, key);
    free(key);
    return fine;
}

static json_t *parse_object(reader *r)
{
    json_t *object = made(r, json_object());
    if (object == NULL || take(r, '}')) return object;
    bool fine;
    while ((fine = parse_pair(r, object)) && take(r, ',')) continue;
    if (fine && take(r, '}')) return object;
    if (fine) refuse_next(r, "'}'");
    json_decref(object);
    return NULL;
}

static json_t *parse_array(reader *r)
{
    json_t *array = made(r, json_array());
    if (array == NULL || take(r, ']')) return array;
    bool fine;
    do {
        json_t *value = next_token(r) != EOF ? parse_value(r) : refuse_next(r, "']'");
        fine = value != NULL && json_array_append_new(array, value) == 0;
        if (value != NULL && !fine) out_of_memory(r);
    } while (fine && take(r, ','));
    if (fine && take(r, ']')) return array;
    if (fine) refuse_next(r, "']'");
    json_decref(array);
    return NULL;
}

static json_t *parse_text(reader *r)
{
    size_t length = 0;
    char *text = parse_string(r, &length, "\\u0000 is not allowed without JSON_ALLOW_NUL");
    json_t *value = text != NULL ? made(r, json_stringn_nocheck(text, length)) : NULL;
    free(text);
    return value;
}

/* The value that comes next. */
static json_t *parse_value(reader *r)
{
    int c = next_token(r);
    json_t *value = NULL;
    if (c == '"') return parse_text(r);
    if (c == '-' || is_digit(c)) return parse_number(r);
    if (is_letter(c)) return parse_word(r);
    if (c != EOF && !take_character(r)) return refuse_byte(r);
    if (c != '{' && c != '[')
        return refuse(r, c == EOF || strchr("]},:", c) ? "unexpected token" : "invalid token");
    if (++r->depth > MAX_DEPTH) return refuse(r, "maximum parsing depth reached");
    value = c == '{' ? parse_object(r) : parse_array(r);
    r->depth--;
    return value;
}

json_t *et_json_load(const char *text, size_t length, bool any, json_error_t *trouble,
                     bool *no_memory)
{
    memset(trouble, 0, sizeof *trouble);
    reader r = {.text = text, .length = length, .trouble = trouble};
    int c = next_token(&r);
    json_t *root = any || c == '{' || c == '[' ? parse_value(&r) : refuse_next(&r, "'[' or '{'");
    if (root != NULL && next_token(&r) != EOF) {
        refuse_next(&r, "end of file");
        json_decref(root);
        root = NULL;
    }
    *no_memory = r.no_memory;
    return root;
}
