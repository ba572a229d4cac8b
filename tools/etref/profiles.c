/* profiles.c: finding a precision profile. See profiles.h. */
#include "tools/etref/profiles.h"
#include "ref/step/profile_names.h"
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

et_status profile_choose(et_profile *p, const char *word, et_error *error)
{
    const et_profile *known = et_profile_find(word);
    if (known) *p = *known;
    if (known) return ET_OK;
    if (strcmp(word, "-") == 0 || strchr(word, '/') || access(word, F_OK) == 0)
        return read_profile(p, word, error);
    return et_fail_no_profile("--profile", word, "neither a built-in profile nor a file", error);
}
