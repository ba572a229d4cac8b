/* lanes.h: loops for the widest vectors that the processor has. Internal.
 *
 * A function marked ET_LANES is compiled several times, and the best that this processor can run is
 * chosen when the program is loaded. Its loop does the same operations on each element whatever the
 * width, without fused multiply-add: no bit depends on the choice. Other processors and compilers: once.
 * Before a loop whose elements have nothing to do with each other stands ET_SIMD.
 */
#ifndef ET_LANES_H
#define ET_LANES_H

#if defined __x86_64__ && !defined __clang__ && !defined __SANITIZE_ADDRESS__ &&                   \
    !defined __SANITIZE_THREAD__
#define ET_LANES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define ET_SIMD  _Pragma("omp simd")
#else
#define ET_LANES
#define ET_SIMD
#endif

/* What such a loop is made of: a call in it, and it has no lanes. */
#define ET_IN_LANES static inline __attribute__((always_inline))

#endif
