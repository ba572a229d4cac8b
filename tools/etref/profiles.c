/* profiles.c: finding a precision profile. See profiles.h. */
#include "tools/etref/profiles.h"
#include "ref/report/describe.h"
#include "tools/etref/options.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>
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

/* What frameworks call the numbers of a profile. */
static const char *usual_name(const char *word)
{
    static const char *const names[][2] = {{"bfloat16", "bf16"}, {"brain16", "bf16"}, {"float16", "f16"},
                                           {"fp16", "f16"},      {"half", "f16"},     {"float32", "f32"},
                                           {"fp32", "f32"},      {"float", "f32"},    {"single", "f32"},
                                           {"float64", "f64"},   {"fp64", "f64"},     {"double", "f64"},
                                           {"tfloat32", "tf32"}};
    const char *dot = strrchr(word, '.'); /* torch.bfloat16 */
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcasecmp(dot ? dot + 1 : word, names[i][0]) == 0) return names[i][1];
    for (size_t i = 0; et_profile_at(i); i++)
        if (strcasecmp(dot ? dot + 1 : word, et_profile_at(i)->name) == 0) return et_profile_at(i)->name;
    return NULL;
}

static et_status fail_no_profile(const char *word, et_error *error)
{
    word_list names = {0};
    for (size_t i = 0; et_profile_at(i); i++) word_list_add(&names, et_profile_at(i)->name);
    word_list_add(&names, NULL);
    const char *usual = usual_name(word), *near = usual ? usual : nearest_word(word, names.at);
    et_status status = et_fail(error, ET_EINVAL,
                               "--profile %s: neither a built-in profile nor a file; %s%s'etref "
                               "list profiles' names them",
                               word, near ? near : "", usual ? " is its name here; " : near ? " is near; " : "");
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
