/* honest.h: candidates for the tests of the verdict, made from the golden.
 *
 * An honest kernel is a replica that no error bar has seen. A test then breaks one thing of it. All arrays are the kernel's own, and may be written. (Kernels with
 * arithmetic of their own are in candidates/.)
 */
#ifndef ETREF_TESTS_HONEST_H
#define ETREF_TESTS_HONEST_H

#include "etref/etref.h"
#include "ref/bars/bars.h"
#include "ref/diagnose/explain.h"
#include "tests/run_case.h"

#include <math.h>

typedef struct honest {
    et_step golden, noise; /* noise: variances, the shelf's */
    et_shelf shelf;
    const et_profile *profile;
    size_t count;
    et_tensor_out tensors[ET_MAX_STEP_TENSORS];
} honest;

static inline size_t elements_of(const et_tensor_out *t)
{
    size_t count = 1;
    for (size_t i = 0; i < t->rank; i++) count *= t->shape[i];
    return count;
}

static inline et_tensor_out *tensor_of(honest *k, const char *name)
{
    for (size_t i = 0; i < k->count; i++)
        if (strcmp(k->tensors[i].name, name) == 0) return &k->tensors[i];
    ck_abort_msg("the candidate has no %s", name);
    return NULL;
}

static inline double *values_of(honest *k, const char *name)
{
    return (double *)(uintptr_t)tensor_of(k, name)->values;
}

static inline int32_t *integers_of(honest *k, const char *name)
{
    return (int32_t *)(uintptr_t)tensor_of(k, name)->values;
}

static inline uint8_t *bytes_of(honest *k, const char *name)
{
    return (uint8_t *)(uintptr_t)tensor_of(k, name)->values;
}

static inline void remove_tensor(honest *k, const char *name)
{
    et_tensor_out *t = tensor_of(k, name);
    free((void *)(uintptr_t)t->values);
    *t = k->tensors[--k->count];
}

/* Keeps those whose names begin with one of the two. */
static inline void keep_only(honest *k, const char *prefix, const char *other)
{
    for (size_t i = k->count; i-- > 0;) {
        const char *name = k->tensors[i].name;
        if (strncmp(name, prefix, strlen(prefix)) != 0 && strncmp(name, other, strlen(other)) != 0)
            remove_tensor(k, name);
    }
}

static inline size_t bytes_per_element(et_source source)
{
    return source == ET_FROM_F64 ? sizeof(double) : source == ET_FROM_I32 ? sizeof(int32_t) : 1;
}

/* The tensors of a step but in.*. */
static inline void add_tensors(honest *k, const et_step *from)
{
    et_tensor_out own[ET_MAX_STEP_TENSORS];
    size_t have = et_step_tensors(from, false, own);
    for (size_t i = 0; i < have; i++) {
        if (strncmp(own[i].name, "in.", 3) == 0) continue;
        et_tensor_out *t = &k->tensors[k->count++];
        size_t bytes = elements_of(&own[i]) * bytes_per_element(own[i].source);
        void *copy = malloc(bytes + 1);
        ck_assert(copy != NULL);
        memcpy(copy, own[i].values, bytes);
        *t = own[i];
        t->values = copy; /* the kernel's own. NOLINT(clang-analyzer-unix.Malloc) */
    }
}

/* The real tensors become those of a kernel of profile `p` that computes the step `like`: its roundings to nearest, or by
 * chance as in a replica that no bar has seen. Errors then line up where a kernel's do, and each tensor is what its stage
 * makes of the others, as with independent noise it would not be. */
static inline void emulate_step(honest *k, const et_step *like, const et_profile *p,
                                et_rounding_mode mode, uint64_t seed)
{
    enum { UNSEEN = 1000 };
    et_step kernel;
    et_error error;
    et_tensor_out list[ET_MAX_STEP_TENSORS];
    const et_rounding how = {.profile = p, .mode = mode, .seed = UNSEEN + seed};
    ck_assert_msg(et_replica_run(&kernel, like, &how, 0, &error) == ET_OK, "%s", error.text);
    size_t have = et_step_tensors(&kernel, false, list);
    for (size_t i = 0; i < have; i++)
        for (size_t t = 0; t < k->count && list[i].source == ET_FROM_F64; t++)
            if (strcmp(list[i].name, k->tensors[t].name) == 0)
                memcpy((void *)(uintptr_t)k->tensors[t].values, list[i].values,
                       elements_of(&list[i]) * sizeof(double));
    et_step_free(&kernel);
}

static inline double in_bits(double value, int bits)
{
    int exponent;
    double part = frexp(value, &exponent);
    return ldexp(nearbyint(ldexp(part, bits)), exponent - bits);
}

/* A part of a tensor, from the first element on, of a kernel that stores it in fewer bits. */
static inline void coarsen(honest *k, const char *tensor, double part_of_it, int bits)
{
    double *values = values_of(k, tensor), count = (double)elements_of(tensor_of(k, tensor));
    for (size_t i = 0; i < (size_t)(part_of_it * count); i++) values[i] = in_bits(values[i], bits);
}

static inline void emulate(honest *k, const et_profile *p, et_rounding_mode mode, uint64_t seed)
{
    emulate_step(k, &k->golden, p, mode, seed);
}

static inline void clear_tensors(honest *k)
{
    while (k->count > 0) remove_tensor(k, k->tensors[0].name);
}

/* A kernel's own numbers, whatever was there before. */
static inline void make_tensors(honest *k, uint64_t seed)
{
    clear_tensors(k);
    add_tensors(k, &k->golden);
    emulate(k, k->profile, ET_ROUND_RANDOM, seed);
}

/* The golden of a step whose inputs are there, and a kernel. */
static inline void make_kernel_of(honest *k, const et_profile *profile, uint64_t seed)
{
    et_error error;
    k->profile = profile;
    k->count = 0;
    ck_assert_msg(et_step_run(&k->golden, ET_PLAIN, NULL, NULL, &error) == ET_OK, "%s", error.text);
    et_shelved *taken;
    k->shelf = (et_shelf){.golden = &k->golden};
    ck_assert_msg(et_shelf_take(&k->shelf, NULL, k->profile, 0, NULL, NULL, &taken, &error) ==
                      ET_OK,
                  "%s", error.text);
    k->noise = taken->bars.variance; /* stays there: its user never gives it back */
    make_tensors(k, seed);
}

static inline void make_kernel(honest *k, const char *profile, uint64_t seed)
{
    make_kernel_of(k, et_profile_find(profile), seed);
}

static inline void make_honest(honest *k, const char *json, const char *profile, uint64_t seed)
{
    et_case c;
    et_error error;
    ck_assert_msg(parse_quoted(&c, json, &error) == ET_OK, "%s", error.text);
    draw_case(&k->golden, &c);
    make_kernel(k, profile, seed);
}

static inline void free_honest(honest *k)
{
    clear_tensors(k);
    et_shelf_free(&k->shelf);
    et_step_free(&k->golden);
}

/* The verdict; the caller frees it. */
static inline et_verdict judge_by(honest *k, et_verify_options options)
{
    et_verdict verdict;
    et_error error;
    options.profile = k->profile;
    const et_aside aside = {.shelf = &k->shelf, .explain = et_explain};
    ck_assert_msg(et_verify_with(&verdict, &k->golden, k->tensors, k->count, &options, &aside,
                                 &error) == ET_OK,
                  "%s", error.text);
    return verdict;
}

static inline const et_tensor_verdict *verdict_on(const et_verdict *v, const char *name)
{
    for (size_t i = 0; i < v->tensor_count; i++)
        if (strcmp(v->tensors[i].name, name) == 0) return &v->tensors[i];
    ck_abort_msg("no verdict on %s", name);
    return NULL;
}

/* A kernel of the case that rounds by chance, and one that rounds to nearest: none is rejected. */
static inline void expect_honest_passes(const et_case *c, const char *profile)
{
    honest k;
    draw_case(&k.golden, c);
    make_kernel(&k, profile, 3);
    for (int nearest = 0; nearest < 2; nearest++) {
        if (nearest) emulate(&k, k.profile, ET_ROUND_NEAREST, 3);
        et_verdict v = judge_by(&k, (et_verify_options){.explain = false});
        ck_assert_msg(v.outcome != ET_MISMATCH, "%s, %s: %s", c->name, profile, v.line);
        et_verdict_free(&v);
    }
    free_honest(&k);
}

#endif
