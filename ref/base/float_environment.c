/* float_environment.c: the floating-point environment in which the library computes. See float_environment.h.
 *
 * What is kept here is kept for each thread by itself, as the environment is: how deep the thread is
 * in public functions that call each other, how many of a team's threads were prepared, and, of a
 * worker, what it had before. Where a caller's own code asks for fewer threads in between (a progress
 * function may), OpenMP ends some workers and makes new ones later: those have nothing to get back.
 */
#include "ref/base/float_environment.h"
#include "ref/base/threads.h"

#include <omp.h>

static _Thread_local struct {
    int depth, team;
    bool prepared; /* a worker: `worker` is what it had before */
    fenv_t worker;
} here;

et_arithmetic et_arithmetic_enter(void)
{
    et_arithmetic a;
    fegetenv(&a.caller);
    fesetenv(FE_DFL_ENV);
    here.depth++;
    return a;
}

void et_arithmetic_share(void)
{
    if (here.depth == 0 || here.team > 0 || omp_in_parallel()) return;
    here.team = omp_get_max_threads();
    if (here.team == 1) return;
#pragma omp parallel num_threads(here.team)
    if (omp_get_thread_num() > 0) {
        fegetenv(&here.worker);
        fesetenv(FE_DFL_ENV);
        here.prepared = true;
    }
}

/* To the workers what they had before. */
static void end_sharing(void)
{
    int team = here.team;
    here.team = 0;
    if (team <= 1) return;
#pragma omp parallel num_threads(team)
    if (here.prepared) {
        fesetenv(&here.worker);
        here.prepared = false;
    }
}

void et_arithmetic_leave(et_arithmetic *a)
{
    if (--here.depth == 0) end_sharing();
    fesetenv(&a->caller);
}

bool et_worth_threads(size_t elements)
{
    enum { WORTH_THREADS = 1 << 15 };
    if (elements <= WORTH_THREADS) return false;
    et_arithmetic_share();
    return true;
}
