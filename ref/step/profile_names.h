/* profile_names.h: a word that should have named a profile. Internal. */
#ifndef ET_PROFILE_NAMES_H
#define ET_PROFILE_NAMES_H

#include "etref/profile.h"

/* bf16 for bfloat16 and torch.bfloat16: the profile of the numbers that frameworks call so, in any case of letters. NULL: none. */
const char *et_usual_name(const char *word);

/* ET_EINVAL: "<where> <word>: <why>; bf16 is its name here; 'etref list profiles' names them", where `word` is what
 * frameworks call a built-in profile's numbers, or nearly its name. */
et_status et_fail_no_profile(const char *where, const char *word, const char *why, et_error *error);

#endif
