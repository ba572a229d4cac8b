/* candidate_cases.h: emulated kernels run on cases, and compared with the reference. */
#ifndef ET_TESTS_CANDIDATE_CASES_H
#define ET_TESTS_CANDIDATE_CASES_H

#include "etref/bundle.h"
#include "tests/candidates/candidate.h"
#include "tests/check_main.h"
#include "tests/expect.h"
#include "tests/run_case.h"

#include <math.h>

enum { SEED = 1, MANY_TOKENS = 512 };

#define BIG_CASE                                                                                   \
    "{'name': 'big', 'rule': 'tc', 'tokens': 999, 'd_model': 64, 'd_expert': 16, 'experts': 3, "   \
    "'balance': 'proportional', 'precision': 'bf16', 'input': {'source': 'normal', 'seed': 3}}"

/* A sum of gates in experts that a capacity clamps: no case of the core suite has one. */
#define CLAMPED_CASE                                                                               \
    "{'name': 'clamped', 'rule': 'et', 'granularity': 3, 'experts': 8, 'tokens': 96, "             \
    "'d_model': 24, 'd_expert': 20, 'capacity_factor': 0.05, 'norm': 'sum', 'ema_updates': 5000, " \
    "'precision': 'bf16', 'input': {'source': 'normal', 'seed': 3}}"

typedef void look(const et_step *golden);

/* Runs every case of the core suite of at most so many tokens. */
static inline void each_case(size_t most_tokens, look *look_at)
{
    size_t count = 0, looked = 0;
    et_case *cases = read_suite("core.json", &count);
    for (size_t i = 0; i < count; i++) {
        if (cases[i].tokens > most_tokens) continue;
        et_step golden;
        run_case(&golden, &cases[i]);
        look_at(&golden);
        et_step_free(&golden);
        looked++;
    }
    free(cases);
    ck_assert_uint_gt(looked, 100);
}

/* The step of a case written in single quotes; the caller frees it. */
static inline void run_text(et_step *golden, const char *json)
{
    et_case c;
    et_error error;
    ck_assert_msg(parse_quoted(&c, json, &error) == ET_OK, "%s", error.text);
    run_case(golden, &c);
}

static inline cd_candidate run_kernel(const et_step *golden, const char *profile,
                                      const cd_kernel *kernel)
{
    cd_candidate c;
    et_error error;
    et_status status = cd_run(&c, golden, et_profile_find(profile), kernel, NULL, 0, SEED, &error);
    ck_assert_msg(status == ET_OK, "%s", error.text);
    return c;
}

/* The golden's inputs, computed with the candidate's assignment. */
static inline void run_reference(et_step *reference, const et_step *golden, const cd_candidate *c)
{
    et_error error;
    const et_tensor_out *mask = cd_tensor(c, "route.mask");
    draw_case(reference, &golden->c);
    reference->given_mask = mask ? mask->values : NULL;
    et_status status = et_step_run(reference, ET_PLAIN, NULL, NULL, &error);
    ck_assert_msg(status == ET_OK, "%s", error.text);
}

static inline const et_tensor_out *find(const et_tensor_out *list, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(list[i].name, name) == 0) return &list[i];
    return NULL;
}

static inline bool begins(const char *name, const char *with)
{
    return strncmp(name, with, strlen(with)) == 0;
}

static inline bool is_real(const et_tensor_out *t)
{
    return t->source == ET_FROM_F64 || t->source == ET_FROM_F32;
}

/* Largest and root mean square error of a tensor, each relative to the reference's own. */
typedef struct distance {
    double largest, rms;
} distance;

static inline distance measure(const et_tensor_out *got, const et_tensor_out *want)
{
    double error = 0, size = 0, squares = 0, sizes = 0;
    size_t count = cd_count(want);
    ck_assert_msg(cd_count(got) == count, "%s has %zu elements, not %zu", got->name, cd_count(got),
                  count);
    for (size_t i = 0; i < count; i++) {
        double w = cd_element(want, i), e = fabs(cd_element(got, i) - w);
        if (!(e <= error)) error = e;
        size = fmax(size, fabs(w));
        squares += e * e;
        sizes += w * w;
    }
    distance d = {error, sqrt(squares)};
    if (size > 0) d.largest /= size;
    if (sizes > 0) d.rms /= sqrt(sizes);
    return d;
}

#endif
