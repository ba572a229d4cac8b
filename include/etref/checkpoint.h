/* checkpoint.h: a model on disk: everything that the next step hangs on.
 *
 * A safetensors file. Its tensors: each parameter and state of et_gpt_tensor_at under its own name,
 * the optimisers' moments as first.NAME and second.NAME, in the type of the build (in a file of
 * values alone: in any float type, and no moments). Its metadata:
 * format "etref-checkpoint", version "1", `model` (et_gpt_config_print), `steps` and `ema_updates`,
 * and what the caller adds. A batch is a function of seed and step (corpus.h): there is nothing
 * else to keep.
 */
#ifndef ETREF_CHECKPOINT_H
#define ETREF_CHECKPOINT_H

#include "etref/gpt.h"
#include "etref/safetensors.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* Whole or not at all (et_file_write). notes: key, value, .., NULL, or NULL: into the metadata. */
et_status et_checkpoint_write(const char *path, et_gpt *g, const char *const *notes,
                              et_error *error);

/* The same of parameters and states alone, rounded to F64, F32, BF16 or F16: what a model does can be
 * computed of it, but training cannot go on. Its metadata has moments "none". */
et_status et_checkpoint_write_values(const char *path, et_gpt *g, et_dtype type,
                                     const char *const *notes, et_error *error);

/* False for a file of et_checkpoint_write_values, whose model has moments of 0. */
bool et_checkpoint_has_moments(const et_tensor_file *file);

/* A new model, as it was written; and the file, for its notes: the caller frees and closes both.
 * batch 0: micro-batches as the run had them; else of so many sequences, one a step, with expert
 * choice's pools and target loads at their defaults: for evaluation and et_gpt_extend. max_bytes
 * (0: no limit) as et_gpt_create. ET_EINVAL: no checkpoint, a contradiction between configuration
 * and tensors, a number that is not finite; ET_EIO, ET_ENOMEM. On failure there is nothing to free.
 * */
et_status et_checkpoint_read(const char *path, size_t batch, size_t max_bytes, et_gpt **g,
                             et_tensor_file *file, et_error *error);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
