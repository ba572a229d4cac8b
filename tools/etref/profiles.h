/* profiles.h: the precision profile that a user names. */
#ifndef ETREF_TOOL_PROFILES_H
#define ETREF_TOOL_PROFILES_H

#include "etref/profile.h"
#include <jansson.h>

/* `word` is the name of a built-in profile, or else a file with one ("-": standard input). */
et_status profile_choose(et_profile *p, const char *word, et_error *error);

/* "bf16: operands 8, intermediates 8, ... bits" */
void describe_profile(char *out, size_t room, const et_profile *p);
/* What there is beside the six places; appended to out. */
void describe_rest(char *out, size_t room, const et_profile *p);

/* A valid profile as the object that such a file holds. */
json_t *profile_json(const et_profile *p);

#endif
