/* profiles.h: the precision profile that a user names. */
#ifndef ETREF_TOOL_PROFILES_H
#define ETREF_TOOL_PROFILES_H

#include "etref/profile.h"

/* `word` is the name of a built-in profile, or else a file with one ("-": standard input). */
et_status profile_choose(et_profile *p, const char *word, et_error *error);

#endif
