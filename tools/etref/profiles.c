/* profiles.c: finding a precision profile. See profiles.h. */
#include "tools/etref/profiles.h"
#include "tools/etref/describe.h"
#include "tools/etref/options.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_TEXT = 64 << 10 }; /* et_profile_parse's limit */

static et_status read_profile(et_profile *p, const char *path, et_error *error)
{
    char *text = NULL;
    size_t length = 0;
    et_status status = read_text(path, MAX_TEXT, "a profile", &text, &length, error);
    if (status == ET_OK) status = et_profile_parse(p, text, length, path, error);
    free(text);
    return status;
}

static et_status fail_no_profile(const char *word, et_error *error)
{
    word_list names = {0};
    for (size_t i = 0; et_profile_at(i); i++) word_list_add(&names, et_profile_at(i)->name);
    word_list_add(&names, NULL);
    const char *near = nearest_word(word, names.at);
    et_status status = et_fail(error, ET_EINVAL,
                               "--profile %s: neither a built-in profile nor a file; %s%s'etref "
                               "list profiles' names them",
                               word, near ? near : "", near ? " is near; " : "");
    word_list_free(&names);
    return status;
}

et_status profile_choose(et_profile *p, const char *word, et_error *error)
{
    const et_profile *known = et_profile_find(word);
    if (known) *p = *known;
    if (known) return ET_OK;
    if (strcmp(word, "-") == 0 || strchr(word, '/') || access(word, F_OK) == 0)
        return read_profile(p, word, error);
    return fail_no_profile(word, error);
}

/* `what` with a comma before it, unless it is the first. */
static void also(char *out, size_t room, bool is, const char *what)
{
    if (is) append(out, room, "%s%s", out[0] ? ", " : "", what);
}

void describe_rest(char *out, size_t room, const et_profile *p)
{
    also(out, room, p->exponent_bits == 5, "f16's range");
    also(out, room, p->ftz, "subnormals flushed");
    also(out, room, p->truncate_operands, "operands truncated");
    also(out, room, p->truncate_accumulator, "sums truncated");
    for (int i = ET_PLACES; i < ET_ALL_PLACES; i++) {
        also(out, room, p->bits[i] > 0, et_place_name((et_place)i));
        if (p->bits[i] > 0) append(out, room, " %d", p->bits[i]);
    }
    also(out, room, p->accumulator_chunk > 0, "sums of");
    if (p->accumulator_chunk > 0) append(out, room, " %d terms", p->accumulator_chunk);
    also(out, room, p->flush_operands, "subnormal operands flushed");
    also(out, room, p->flush_products, "subnormal products flushed");
    also(out, room, p->stochastic, "stochastic");
}

void describe_profile(char *out, size_t room, const et_profile *p)
{
    append(out, room, "%s:", p->name);
    for (int i = 0; i < ET_PLACES; i++)
        append(out, room, "%s %s %d", i ? "," : "", et_place_name((et_place)i), p->bits[i]);
    char rest[256] = "";
    describe_rest(rest, sizeof rest, p);
    append(out, room, " bits%s%s", rest[0] ? ", " : "", rest);
}

json_t *profile_json(const et_profile *p)
{
    char *text = NULL;
    json_t *object = NULL;
    if (could_be_read(et_profile_print(&text, p, NULL))) object = json_loads(text, 0, NULL);
    free(text);
    if (object == NULL) leave(fail("no memory for a profile"));
    return object;
}
