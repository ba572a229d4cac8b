/* describe.h: words for a case and for an element of one of its tensors. */
#ifndef ETREF_TOOL_DESCRIBE_H
#define ETREF_TOOL_DESCRIBE_H

#include "etref/bundle.h"
#include <stdbool.h>
#include <stddef.h>

/* Appends a formatted piece to a text that has room for `room` bytes; what does not fit is cut. */
void append(char *out, size_t room, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* "tc", "ec", "et", "dense": what a table shows of a case's rule. */
const char *rule_name(const et_case *c);
const char *gate_name(et_gate gate);

/* One sentence: "expert threshold, training: 96 tokens of width 16, 8 experts of width 32 ...". */
void describe_case(char *out, size_t room, const et_case *c);

/* What the routing aims at: the load of one expert in the whole step; 0 for a dense layer. */
double target_load(const et_case *c);

/* The row of the table of tensors; of "noise.fwd.y", that of fwd.y; or NULL. */
const et_tensor_doc *tensor_doc_find(const char *name);
bool is_noise(const char *name);

/* "[4,32,16]" */
void describe_shape(char *out, size_t room, const et_tensor_info *tensor);

/* "[3,5]" */
void describe_place(char *out, size_t room, const et_tensor_info *tensor, size_t index);

/* "token 3, expert 5": the index in words, by the letters of the tensor's documented shape. With an
 * assignment (or NULL) a slot is named by its token and expert, too. */
void describe_element(char *out, size_t room, const et_tensor_info *tensor, size_t index,
                      const et_assignment *a);

/* True if the file's metadata says that it is a bundle. */
bool is_bundle(const et_tensor_file *file);

#endif
