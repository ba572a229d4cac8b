/* bars.h: how far off an honest kernel may be. Derivation: ref/bars/README.md.
 *
 * A replica is the layer run once more with a kernel's roundings in it, each moved by chance (rounding.h). What
 * differs between replicas may differ between honest kernels.
 */
#ifndef ETREF_BARS_H
#define ETREF_BARS_H

#include "etref/bundle.h"
#include "etref/profile.h"
#include "etref/step.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* The variance of the rounding error that a kernel of this profile must be expected to make, for every real tensor of
 * `s`, which et_step_run has filled: from 16 replicas, smoothed. (et_verify takes 32 more; what errs farther in one of
 * these has more there.) *variance becomes a step of the same case with the same assignment, whose real arrays hold
 * variances: et_step_tensors lists them under the tensors' names (in.* are the values of `s`; other integers than the
 * assignment's are zero). 0 where no replica errs: the value must be exact. Infinite where one leaves the range of the
 * profile's numbers. progress may be NULL. The caller frees it, before `s`. ET_EINVAL as et_profile_check; ET_ENOMEM. */
et_status et_step_noise(et_step *variance, const et_step *s, const et_profile *p,
                        et_progress *progress, void *user, et_error *error);

/* et_bundle_write (bundle.h), not lean, and with the error bars of profile `p`, from 48 replicas and a run to nearest:
 * noise.NAME, the root of NAME's variance; noise.alone.NAME, that of its stage by itself; and noise.bars [groups,9], what
 * replicas said of each group of elements, with which et_verify need make none. The latter two are left out where F32 would lose bits of a
 * deviation. progress may be NULL. ET_EINVAL as et_profile_check and et_bundle_write; ET_EIO, ET_ENOMEM. */
et_status et_bundle_write_bars(const char *path, const et_step *s, const et_profile *p,
                               et_progress *progress, void *user, et_error *error);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
