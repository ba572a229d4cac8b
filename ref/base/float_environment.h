/* float_environment.h: the floating-point environment in which the library computes. Internal.
 *
 * A golden's bits rest on IEEE-754's default environment: rounding to nearest, gradual underflow, no
 * traps. The caller's may be another: a library built with fast-math sets flush-to-zero for the
 * thread that loads it. So every public function that computes begins with
 *
 *     ET_ARITHMETIC;
 *
 * which sets the default for the calling thread and gives the caller's own back, exception flags
 * included, when the function returns, wherever that is. Functions of single numbers that stand in
 * inner loops (elementary.h, dtype.h, random.h, et_place_...) take the environment as it is.
 *
 * The environment belongs to a thread, and OpenMP's workers have that of the thread that created
 * them, at that time. Before the first loop of a call that is shared among threads (threads.h), each
 * worker's is set, too, and when the outermost function returns each gets its own back.
 */
#ifndef ET_FLOAT_ENVIRONMENT_H
#define ET_FLOAT_ENVIRONMENT_H

#include <fenv.h>

typedef struct et_arithmetic {
    fenv_t caller;
} et_arithmetic;

et_arithmetic et_arithmetic_enter(void);
void et_arithmetic_leave(et_arithmetic *a);

#define ET_ARITHMETIC                                                                              \
    __attribute__((cleanup(et_arithmetic_leave), unused)) et_arithmetic et_arithmetic_before =     \
        et_arithmetic_enter()

/* The workers of the calling thread's team get the default environment until the outermost public
 * function returns. Cheap from the second time on. */
void et_arithmetic_share(void);

#endif
