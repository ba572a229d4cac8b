/* profile_names.c: a word that should have named a profile. See profile_names.h. */
#include "ref/step/profile_names.h"
#include "ref/format/json.h"

#include <string.h>
#include <strings.h>

static const char *name_at(size_t index)
{
    return et_profile_at(index)->name;
}

static size_t count_names(void)
{
    size_t count = 0;
    while (et_profile_at(count)) count++;
    return count;
}

const char *et_usual_name(const char *word)
{
    static const char *const names[][2] = {
        {"bfloat16", "bf16"}, {"brain16", "bf16"}, {"float16", "f16"}, {"fp16", "f16"},
        {"half", "f16"},      {"float32", "f32"},  {"fp32", "f32"},    {"float", "f32"},
        {"single", "f32"},    {"float64", "f64"},  {"fp64", "f64"},    {"double", "f64"},
        {"tfloat32", "tf32"}};
    const char *dot = strrchr(word, '.'); /* torch.bfloat16 */
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcasecmp(dot ? dot + 1 : word, names[i][0]) == 0) return names[i][1];
    for (size_t i = 0; et_profile_at(i); i++)
        if (strcasecmp(dot ? dot + 1 : word, et_profile_at(i)->name) == 0)
            return et_profile_at(i)->name;
    return NULL;
}

et_status et_fail_no_profile(const char *where, const char *word, const char *why, et_error *error)
{
    const char *usual = et_usual_name(word),
               *near = usual ? usual : et_nearest_name(word, name_at, count_names());
    return et_fail(error, ET_EINVAL, "%s %.80s: %s; %s%s'etref list profiles' names them", where,
                   word, why, near ? near : "",
                   usual  ? " is its name here; "
                   : near ? " is near; "
                          : "");
}
