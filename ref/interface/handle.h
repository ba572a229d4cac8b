/* handle.h: what is behind an et_golden. Internal.
 *
 * Whoever has the lock may look and compute; nobody else does. Functions that end in "_locked" want
 * it to be held.
 */
#ifndef ET_HANDLE_H
#define ET_HANDLE_H

#include "etref/golden.h"
#include "ref/step/tensors.h"
#include "ref/verdict/judge.h"
#include <pthread.h>

struct et_golden {
    pthread_mutex_t lock;
    et_step step;            /* its inputs; once it is asked for, all the rest */
    bool awaits[ET_TENSORS]; /* in.* that have not been given yet */
    bool has_run;
    et_shelf shelf;   /* of `step`: error bars */
    char *path;       /* the bundle in which it lies, or NULL */
    size_t max_bytes; /* 0: no limit */
    int threads;      /* the caller's own number, while the lock is held */
};

/* Waits for the lock. Until it is given back the calling thread computes with as many threads as the layer is worth, unless
 * OMP_NUM_THREADS says how many; then again with as many as before. */
void et_golden_lock(et_golden *g);
void et_golden_unlock(et_golden *g);

/* The layer, once. */
et_status et_golden_run_locked(et_golden *g, et_error *error);

/* A profile by its built-in name, or from JSON. */
et_status et_profile_of_words(et_profile *p, const char *words, et_error *error);

#endif
