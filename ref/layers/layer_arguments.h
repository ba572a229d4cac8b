/* layer_arguments.h: are the structs that a caller fills what their headers say? Internal.
 *
 * One function for each struct, called by every public function that takes it, before anything is
 * computed. What is asked of an array is that it is there wherever it has elements; its length
 * nobody can ask. Messages begin with the struct and name the field.
 */
#ifndef ET_LAYER_ARGUMENTS_H
#define ET_LAYER_ARGUMENTS_H

#include "etref/moe.h"

/* Sizes whose products can be addressed, a known engine, weights. */
et_status et_ffn_check(const et_ffn *f, size_t m, et_error *error);

/* The same, and the rows' arrays that forward fills and reads; or backward, where dW_up or dW_gate, and dW_down, are wanted. */
et_status et_ffn_check_forward(const et_ffn *f, const et_ffn_rows *r, et_error *error);
et_status et_ffn_check_backward(const et_ffn *f, const et_ffn_rows *r, bool up, bool down,
                                et_error *error);

/* Offsets that start at 0, never fall and end at S; tokens ascending within an expert and experts
 * within a token, each slot once in either order; loads and fanouts that agree. Time O(S + N + n). */
et_status et_assignment_check(const et_assignment *a, et_error *error);

/* Sizes, switches and weights; gate_tokens where it matters. */
et_status et_moe_check(const et_moe *moe, et_error *error);

/* A row for each of the layer's tokens, x or dy [N,d], is there. */
et_status et_moe_check_tokens(const et_moe *moe, const char *name, const et_real *rows,
                              et_error *error);

/* Of et_moe_score: logits, gates, and the anchor where there is one. */
et_status et_moe_check_scores(const et_moe *moe, const et_moe_values *v, et_error *error);

/* The assignment is one of this layer's tokens to its experts, and all of v's arrays are there. */
et_status et_moe_check_values(const et_moe *moe, const et_assignment *a, const et_moe_values *v,
                              et_error *error);

/* All of g's arrays are there. */
et_status et_moe_check_grads(const et_moe *moe, const et_assignment *a, const et_moe_grads *g,
                             et_error *error);

#endif
