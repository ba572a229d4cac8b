/* expect.h: what a test asks for. Whatever is not so fails the test, with both values. */
#ifndef ETREF_TESTS_EXPECT_H
#define ETREF_TESTS_EXPECT_H

#include "etref/real.h"
#include "etref/status.h"

#include "tests/check.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static inline void done(et_status status, const et_error *error)
{
    ck_assert_msg(status == ET_OK, "%s", error->text);
}

static inline void refused(et_status status, const et_error *error, const char *message)
{
    ck_assert_int_eq(status, ET_EINVAL);
    ck_assert_str_eq(error->text, message);
}

/* Zeros, for one element at least. */
static inline void *room_for(size_t count, size_t size)
{
    void *room = calloc(count > 0 ? count : 1, size);
    ck_assert_ptr_nonnull(room);
    return room;
}

/* Values are compared as numbers; -0 equals +0, NaN equals nothing. */
static inline void same_reals(const char *what, size_t count, const et_real *got,
                              const et_real *want)
{
    for (size_t j = 0; j < count; j++)
        ck_assert_msg(got[j] == want[j], "%s: element %zu: got %.17g, want %.17g", what, j,
                      (double)got[j], (double)want[j]);
}

static inline void same_integers(const char *what, size_t count, const int32_t *got,
                                 const int32_t *want)
{
    for (size_t j = 0; j < count; j++)
        ck_assert_msg(got[j] == want[j], "%s: element %zu: got %d, want %d", what, j, (int)got[j],
                      (int)want[j]);
}

static inline void same_mask(const char *what, size_t count, const uint8_t *got,
                             const uint8_t *want)
{
    for (size_t j = 0; j < count; j++)
        ck_assert_msg(got[j] == want[j], "%s: mask[%zu]: got %d, want %d", what, j, got[j],
                      want[j]);
}

/* |got - want| <= tolerance * max(1, |want|), and no NaN. */
static inline void near(const char *what, double got, double want, double tolerance)
{
    ck_assert_msg(fabs(got - want) <= tolerance * fmax(1, fabs(want)),
                  "%s: got %.17g, want %.17g, apart %.3g", what, got, want, fabs(got - want));
}

#endif
