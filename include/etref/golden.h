/* golden.h: goldens and verdicts behind one handle, for programs in C++, Python and others.
 *
 *     et_golden *g;
 *     et_golden_of_case(&g, "smoke-et", 0, &error)
 *     et_golden_tensor(g, 0, &array, &error) ...        what the kernel is given: in.*
 *     et_judge(g, arrays, count, "{\"profile\": \"bf16\"}", &json, NULL, &error)
 *     et_release(json); et_golden_close(g);
 *
 * This header is stable: as long as ET_FACE stays, nothing that it declares changes its meaning,
 * and a report may get more members, but loses none. It uses no other types than et_status,
 * et_error and et_array, whose layouts stay, too.
 *
 * A handle may be used by several threads at a time; they take turns. Whatever it computes, it
 * keeps: the layer is run once, and error bars are made once for each profile (and routing, if a
 * candidate has its own). While it computes, the calling thread's OpenMP has as many threads as the layer is
 * worth, one for each 2^21 multiplications, unless OMP_NUM_THREADS is set; then as many as before.
 */
#ifndef ETREF_GOLDEN_H
#define ETREF_GOLDEN_H

#include "etref/array.h"
#include "etref/status.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

#define ET_FACE 1
int et_face(void);            /* the ET_FACE of the library in use */
const char *et_version(void); /* "0.1.0": ETREF_VERSION of the library in use */
const char *
et_producer(void); /* version and arithmetic: goldens of one producer have the same bits */

typedef struct et_golden et_golden;

/* A golden of a case: `text` is a built-in case's name, or a JSON object (case.h). Inputs are drawn
 * as the case says; a case without `input` awaits them (et_golden_give). Nothing is computed yet.
 * max_bytes: the most that the layer, or its error bars, may take; 0: no limit. ET_EINVAL,
 * ET_ENOMEM. */
et_status et_golden_of_case(et_golden **golden, const char *text, size_t max_bytes,
                            et_error *error);

/* The same from a bundle; error bars that it has are used. ET_EINVAL, ET_EIO, ET_ENOMEM. */
et_status et_golden_open(et_golden **golden, const char *path, size_t max_bytes, et_error *error);

/* One's own inputs, for a case without `input`: in.*, in any float type, with values that are numbers of the
 * case's precision; integers (in.mask) in any integer type or BOOL, with values of I32. All must be there before
 * something is computed. ET_EINVAL. */
et_status et_golden_give(et_golden *golden, const et_array *inputs, size_t count, et_error *error);

/* The case as JSON with every field, which the caller releases. ET_ENOMEM. */
et_status et_golden_case(const et_golden *golden, char **json, et_error *error);

/* Tensor `index`, in the order of the mathematics: in.* first. name NULL: past the end. F64, I32 or
 * U8; the values belong to the golden, and are only to be read. Computes the layer, unless only
 * in.* is asked for. ET_EINVAL, ET_ENOMEM. */
et_status et_golden_tensor(et_golden *golden, size_t index, et_array *out, et_error *error);

/* Writes it as a bundle, whole or not at all. profile NULL, or a built-in one's name or JSON: with
 * its error bars, from many runs of the layer, which later verdicts of this golden use. ET_EINVAL,
 * ET_EIO, ET_ENOMEM. */
et_status et_golden_write(et_golden *golden, const char *path, const char *profile,
                          et_error *error);

/* Judges a kernel's arrays, under the bundle's names. `options`: NULL, or a JSON object, all of
 * whose members may be left out:
 *
 *     "profile"          a built-in profile's name, or a profile (profile.h); else the arrays' own
 *                        numbers choose
 *     "require"          an array of names that must be there: ["fwd.y", "bwd.*"]
 *     "ties"             "rule" or "any"
 *     "explain"          false: no explanation is looked for
 *     "explain_seconds"  of CPU; 0: no limit; 10 if left out
 *
 * ET_OK whenever there is a verdict, whatever it says. *json: the report of `etref verify --format
 * json`; *text, unless NULL: that of --format text. The caller releases both. ET_EINVAL as
 * et_candidate_take and et_verify, or an unknown option; ET_ENOMEM. */
et_status et_judge(et_golden *golden, const et_array *arrays, size_t count, const char *options,
                   char **json, char **text, et_error *error);

void et_release(char *text);             /* accepts NULL */
void et_golden_close(et_golden *golden); /* accepts NULL */

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
