/* capture.h: the inputs of a case from a step of a trained model.
 *
 * A case whose input source is `checkpoint` names a file of etref train, a layer and a text:
 *
 *     "input": {"source": "checkpoint", "checkpoint": "run/final.safetensors", "checkpoint_layer": 1,
 *               "text": "./passage.txt", "text_offset": 0}
 *
 * The model takes the step that would come next, on the bytes of the text: micro-batch after
 * micro-batch, and in each sequence after sequence, T tokens and the next as the last one's target. What
 * the layer gets in it becomes in.*, rounded to the case's precision (the state is kept as it is):
 *
 *     layer                  x                          dy                         beside them
 *     dense, moe             norm(stream), l's second   dL/dy, before clipping     weights, EMA, bias
 *     attention              [q;k;v] after QK-norm      dL/d attended
 *     rmsnorm                the stream that enters l   dL/d norm(stream), the first
 *     cross_entropy          norm(stream), the head's                              head, targets
 *
 * The engine is plain, whatever trained the model: the bits are the same on every machine. A bundle made
 * of such a case holds its in.* like any other; checking or judging by it needs neither the checkpoint
 * nor the text.
 *
 * Sizes, rule and switches are the model's. `tokens` is those of a step, as the run had them, or, where the
 * case says otherwise, whole sequences in one micro-batch, with expert choice's pools and target load at
 * their defaults. The text's tokens are bytes: the vocabulary must be 256.
 */
#ifndef ETREF_CAPTURE_H
#define ETREF_CAPTURE_H

#include "etref/step.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* As et_case_parse_all, for a text that may have cases of the source checkpoint: what these leave out is
 * their model's. `file`: where the text was read, or NULL: relative paths in it (input.checkpoint, and
 * input.text where it has a '/') begin at the file's folder. ET_EINVAL, too: a field that contradicts
 * the model, a file that is no checkpoint; ET_EIO. */
et_status et_capture_cases(et_case **cases, size_t *count, const char *json, size_t length,
                           const char *where, const char *file, et_error *error);

/* in.* of a step that et_step_create made: captured where the source is checkpoint, else drawn as by
 * et_step_draw_inputs. s->c.input.checkpoint_fnv1a, where it is empty, becomes the file's. max_bytes
 * (0: no limit): of the model's arrays. ET_EINVAL: a case that contradicts its model, a text that is too
 * short, a checkpoint that is not the one named by its hash; ET_EIO, ET_ENOMEM. */
et_status et_capture_inputs(et_step *s, size_t max_bytes, et_error *error);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
