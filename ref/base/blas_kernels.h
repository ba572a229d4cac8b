/* blas_kernels.h: which kernels OpenBLAS multiplies with, and whether this processor has better ones.
 *
 * OpenBLAS chooses its kernels once, when it is loaded, by the processor's model. On a model that is newer
 * than itself it falls back: OpenBLAS 0.3.21 takes its SSE3 kernels ("Prescott") on recent Intel processors,
 * a fifth of the speed, and AVX2 kernels on AMD processors that have AVX-512. OPENBLAS_CORETYPE in the
 * environment says which to take, but only before the program starts; a library comes too late. So the
 * tool sets the variable and starts itself anew, and another program has a sentence to show (et_engine_warning).
 *
 * Nothing of this changes a value of the plain engine. Where the processor is not an x86, or OpenBLAS was
 * built for one kind of processor alone, there is nothing to choose and nothing better.
 */
#ifndef ET_BLAS_KERNELS_H
#define ET_BLAS_KERNELS_H

/* The kernels in use, by OpenBLAS's own name: "Prescott", "Haswell", "SkylakeX". Never NULL. */
const char *et_kernels_in_use(void);

/* The value of OPENBLAS_CORETYPE that would give kernels of a higher class (AVX2 with FMA: "Haswell";
 * AVX-512: "SkylakeX"), out of those that this OpenBLAS has and that processor and operating system can
 * run; or NULL where those in use are of that class. */
const char *et_better_kernels(void);

#endif
