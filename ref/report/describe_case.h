/* describe_case.h: words for a case, for an element of one of its tensors, for a profile. Internal. */
#ifndef ET_DESCRIBE_CASE_H
#define ET_DESCRIBE_CASE_H

#include "etref/bundle.h"
#include <stdbool.h>
#include <stddef.h>

/* Appends a formatted piece to a text that has room for `room` bytes; what does not fit is cut. */
void et_append(char *out, size_t room, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* "tc", "ec", "et", "dense": what a table shows of a case's rule. */
const char *et_rule_name(const et_case *c);
const char *et_gate_name(et_gate gate);

/* One sentence: "expert threshold, training: 96 tokens of width 16, 8 experts of width 32 ...". */
void et_describe_case(char *out, size_t room, const et_case *c);

/* The row of the table of tensors; of "noise.fwd.y", that of fwd.y; or NULL. */
const et_tensor_doc *et_doc_of(const char *name);

/* "[4,32,16]" */
void et_describe_shape(char *out, size_t room, const et_tensor_info *tensor);

/* "[3,5]" */
void et_describe_place(char *out, size_t room, const et_tensor_info *tensor, size_t index);

/* "token 3, expert 5": the index in words, by the letters of the tensor's documented shape. With an
 * assignment (or NULL) a slot is named by its token and expert, too. */
void et_describe_element(char *out, size_t room, const et_tensor_info *tensor, size_t index,
                         const et_assignment *a);

/* "bf16: operands 8, intermediates 8, ... bits" */
void et_describe_profile(char *out, size_t room, const et_profile *p);
/* What there is beside the six places; appended to out. */
void et_describe_rest(char *out, size_t room, const et_profile *p);

#endif
