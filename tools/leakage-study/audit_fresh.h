/* audit_fresh.h: tokens to put in place of a batch's future. */
#ifndef ETREF_TOOL_AUDIT_FRESH_H
#define ETREF_TOOL_AUDIT_FRESH_H

#include "etref/step.h"

typedef enum fresh_kind { FRESH_NOISE, FRESH_TEXT } fresh_kind;

/* x [N,d], allocated: as many tokens as the step has, none of them in it, in the case's precision.
 *
 *     noise  the case's own source, drawn on; where that is text, or the bundle brought its tokens,
 *            normal deviates of in.x's root mean square
 *     text   of a text case, its text read on; otherwise the file `text` (NULL: GPL-3 as Debian
 *            ships it), scaled to in.x's root mean square. A short text is repeated
 *
 * `text` is a path, or a name among the common licences. The caller frees x in any case. */
et_status fresh_tokens(et_real **x, const et_step *s, fresh_kind kind, const char *text,
                       et_error *error);

/* r [N,n] = x W_r', by the plain engine, as the library routes. ET_EINVAL: a score is not finite. */
et_status score_tokens(const et_step *s, const et_real *x, et_real *r, et_error *error);

#endif
