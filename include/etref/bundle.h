/* bundle.h: golden bundles: a case, its inputs and everything computed from them, in one file.
 *
 * A bundle is a safetensors file with metadata `format` = "etref-bundle", `version` = "1", `case`
 * (JSON), `producer`, and, where block layouts were asked for, `layout` = "block:M"; in an emulated
 * kernel's output, which is no golden, `emulates` = its profile. The tensors,
 * with types and shapes, are the table of ref/step/tensors.def; `etref list tensors` prints it.
 *
 * A bundle may hold the noise of a precision profile, too: metadata `profile` (JSON), and for a real
 * tensor NAME that was computed a tensor noise.NAME of its shape in F32, the standard deviation of
 * the rounding error that a kernel of that profile must be expected to make (et_step_noise, bars.h); and
 * noise.bars [groups,9] in F64, what replicas showed of groups of elements (et_bundle_write_bars).
 */
#ifndef ETREF_BUNDLE_H
#define ETREF_BUNDLE_H

#include "etref/profile.h"
#include "etref/safetensors.h"
#include "etref/step.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* One row of the table. Letters of shapes: N tokens, d width, h and hs hidden widths of a routed and of
 * the shared expert, n routed experts, S slots, K choices of a token (tc), k choices of an expert in a
 * pool (ec), pools, B blocks and R padded rows of a block layout. A dense layer has no leading n. Of several ranks (parallel.h),
 * in words: ranks, local experts, rows sent and received, copies, local experts listed with them, padded rows. */
typedef struct et_tensor_doc {
    const char *name;
    const char *type;    /* "case" (the case's precision), "F64", "I32", "U8" */
    const char *shape;   /* "[N,d]", in the letters above */
    const char *meaning; /* a few words */
    bool lean;           /* kept in a lean bundle */
} et_tensor_doc;
const et_tensor_doc *et_tensor_doc_at(size_t index);       /* NULL past the end */
const et_tensor_doc *et_tensor_doc_find(const char *name); /* NULL if there is none */

#define ET_NOISE_PREFIX "noise."
#define ET_NOISE_ALONE  "noise.alone."
#define ET_NOISE_BARS   "noise.bars" /* of groups of elements: et_bundle_write_bars, bars.h */

/* The tensors that a step holds at this moment, in the table's order: the order of the mathematics.
 * `out` has room for ET_MAX_STEP_TENSORS; returns how many. The views point into the step. */
enum { ET_MAX_STEP_TENSORS = 160 };
size_t et_step_tensors(const et_step *s, bool lean, et_tensor_out out[ET_MAX_STEP_TENSORS]);

/* Every value that has been computed is a number. Inputs are finite, but what is made of them may leave the
 * range of binary64: relu(H)^2 does so beyond |H| = 1e154, and inf - inf is NaN. No kernel can be measured by that. (A
 * margin is infinite by design where nothing was refused, or taken.) ET_EINVAL names the first tensor, in the
 * order of the mathematics, its element and the remedy. */
et_status et_step_check_values(const et_step *s, et_error *error);

/* Writes the bundle, whole or not at all (et_tensor_file_write). ET_EINVAL: et_step_check_values; or
 * et_step_check_inputs, since inputs finer than the case's precision would be stored rounded, and what
 * was computed from them would contradict them. */
et_status et_bundle_write(const char *path, const et_step *s, bool lean, et_error *error);

/* The same with the noise of profile `p` for every real tensor that is written and was computed: the roots of
 * `variance`, which et_step_noise made (bars.h). Those too small for F32 become its smallest number, so that 0 still means
 * exact. With all bars (et_bundle_write_bars): alone, variances of stages by themselves, for noise.alone.NAME, and bars, for
 * ET_NOISE_BARS; or NULL both. ET_ENOMEM. */
et_status et_bundle_write_noise(const char *path, const et_step *s, bool lean, const et_profile *p,
                                const et_step *variance, const et_step *alone,
                                const et_tensor_out *bars, et_error *error);

/* The string that et_bundle_write puts under `producer`, for this engine and precision. */
const char *et_bundle_producer(et_engine engine);

/* Opens a bundle: checks the metadata, parses the case, and reads in.* into a new step that is
 * ready for et_step_run. Missing, misshaped, mistyped or non-finite in.* tensors, in.x, in.dy and
 * weights with values that are not numbers of the case's precision, tensors that no
 * bundle has, and cases larger than max_bytes are errors. On success the caller closes the file and
 * frees the step; on failure neither. */
et_status et_bundle_open(et_tensor_file *file, et_step *step, const char *path, size_t max_bytes,
                         et_error *error);

/* The step's assignment is that of the open bundle from now on (`routing` given), whatever its case says: read from the first
 * that is there of route.mask, route.slot_token with route.slot_expert or route.expert_offsets, and the choices; counts
 * beside it must agree. et_bundle_open does it by itself where the case says so. To be called before et_step_run.
 * ET_EINVAL: none there, a token or an expert out of range, a pair twice, counts that do not add up, no layer moe. */
et_status et_bundle_give_routing(et_step *step, const et_tensor_file *file, et_error *error);

/* ---- integrity: every stored value against a recomputation ---- */

typedef struct et_comparison {
    char name[ET_MAX_TENSOR_NAME + 1];
    size_t count;
    bool exact_required;       /* integers, and everything in a bundle of this very producer */
    double largest;            /* largest finite |value| recomputed */
    double max_error;          /* largest |stored - recomputed| (equal infinities count 0) */
    size_t different;          /* elements whose values differ at all */
    size_t worst;              /* index of the largest error */
    double stored, recomputed; /* there */
    bool pass; /* exact: different == 0; else max_error <= 900 u * largest (1e-13), no NaN */
    const char *problem; /* NULL, or "shape", "type", "not of its case", "no deviation": nothing was compared */
} et_comparison;

/* Compares every tensor of the file but in.* with the step, which et_step_run has filled. Of noise.*, estimates from
 * a few random runs, only shape, type and that no value is negative or NaN. `out`
 * gets an allocated array of *count comparisons in the table's order; the caller frees it. ET_OK
 * even when some do not pass. */
et_status et_bundle_compare(et_comparison **out, size_t *count, const et_tensor_file *file,
                            const et_step *step, et_error *error);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
