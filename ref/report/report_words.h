/* report_words.h: what the forms of a report share. Internal. */
#ifndef ET_REPORT_WORDS_H
#define ET_REPORT_WORDS_H

#include "etref/report.h"

bool et_report_is_routed(const et_report *r); /* else another layer than moe */

/* The slots by which a report names tokens and experts. */
const et_assignment *et_report_slots(const et_report *r);

/* "[3,5] (token 3, column 5; token 3 is on expert 1)"; empty: the candidate has no such thing. */
void et_report_place(char *out, size_t room, const et_report *r, const char *name, size_t index);

#endif
