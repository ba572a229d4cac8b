/* study_stream.c: batches of scores. See study_stream.h. */
#include "tools/leakage-study/study_stream.h"
#include "etref/matmul.h"
#include "etref/random.h"
#include "etref/step.h"
#include "tools/etref/memory_limit.h"
#include "tools/etref/options.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

const char *const stream_names[STREAM_KINDS] = {"normal", "text", "drifting"};

enum { SEQUENCE = 128, WIDTH = 32, MOST_BYTES = 1 << 17 };
static const double DRIFT = 0.005;

/* ---- text ---- */

static et_status size_of(const char *path, size_t *bytes, et_error *error)
{
    struct stat facts;
    if (stat(path, &facts) != 0)
        return et_fail(error, ET_EIO, "--text %s: %s", path, strerror(errno));
    if (facts.st_size <= SEQUENCE)
        return et_fail(error, ET_EINVAL, "--text %s: %lld bytes; more than %d are needed", path,
                       (long long)facts.st_size, SEQUENCE);
    *bytes = facts.st_size < MOST_BYTES ? (size_t)facts.st_size : MOST_BYTES;
    return ET_OK;
}

/* A case whose in.x are the text's first bytes, one after the other. */
static et_status text_case(et_case *c, const score_stream *s, const char *path, et_error *error)
{
    char name[300];
    snprintf(name, sizeof name, strchr(path, '/') ? "%s" : "./%s", path);
    json_t *fields = json_pack("{s:s, s:s, s:I, s:i, s:i, s:s, s:{s:s, s:I, s:s}}", "name", "study",
                               "layer", "dense", "tokens", (json_int_t)s->bytes, "d_model", WIDTH,
                               "d_expert", 1, "precision", "f64", "input", "source", "text", "seed",
                               (json_int_t)s->seed, "text", name);
    char *text = fields ? json_dumps(fields, 0) : NULL;
    et_status status = text ? et_case_parse(c, text, strlen(text), "--text", error)
                            : et_fail(error, ET_EINVAL, "--text %s: not a name in UTF-8", path);
    free(text);
    json_decref(fields);
    return status;
}

/* The text's tokens, scored by a router of independent rows. */
static et_status score_text(score_stream *s, const char *path, et_error *error)
{
    et_step step;
    et_case c;
    et_status status = text_case(&c, s, path, error);
    if (status == ET_OK) status = et_step_create(&step, &c, memory_limit(), error);
    if (status != ET_OK) return status;
    status = et_step_draw_inputs(&step, error);
    if (status == ET_OK) {
        et_real *router = allocate(s->experts * WIDTH, sizeof *router);
        et_stream numbers = et_stream_open(s->seed, "study.router");
        for (size_t i = 0; i < s->experts * WIDTH; i++)
            router[i] = (et_real)(et_normal(numbers, i) / sqrt(WIDTH));
        et_matmul(ET_PLAIN, s->bytes, s->experts, WIDTH, et_rows(step.in.x, WIDTH),
                  et_transposed(router, WIDTH), false, s->table, s->experts);
        free(router);
    }
    et_step_free(&step);
    return status;
}

static void next_text(const score_stream *s, et_stream numbers, size_t N, et_real *r)
{
    size_t n = s->experts, places = s->bytes - SEQUENCE + 1;
    for (size_t first = 0; first < N; first += SEQUENCE) {
        size_t count = N - first < SEQUENCE ? N - first : SEQUENCE;
        double u = et_uniform(numbers, s->drawn * (N / SEQUENCE + 1) + first / SEQUENCE, 0);
        size_t place = (size_t)(u * (double)places);
        memcpy(r + first * n, s->table + place * n, count * n * sizeof *r);
    }
}

/* ---- deviates ---- */

static void next_normal(const score_stream *s, et_stream numbers, size_t N, et_real *r)
{
    size_t n = s->experts;
    uint64_t first = s->drawn * N * n;
#pragma omp parallel for schedule(static) if (N * n > 4000) /* else not worth it */
    for (size_t i = 0; i < N * n; i++) {
        double mean = s->center ? s->center[i % n] : 0;
        r[i] = (et_real)(mean + et_normal(numbers, first + i));
    }
}

static void walk(score_stream *s, et_stream steps)
{
    for (size_t i = 0; i < s->experts; i++)
        s->center[i] += DRIFT * et_normal(steps, s->drawn * s->experts + i);
}

/* ---- the interface ---- */

et_status stream_open(score_stream *s, stream_kind kind, size_t experts, uint64_t seed,
                      const char *text, et_error *error)
{
    *s = (score_stream){.kind = kind, .experts = experts, .seed = seed};
    et_status status = ET_OK;
    if (kind == STREAM_DRIFTING) s->center = allocate(experts, sizeof *s->center);
    if (kind == STREAM_TEXT && (status = size_of(text, &s->bytes, error)) == ET_OK) {
        s->table = allocate(s->bytes * experts, sizeof *s->table);
        status = score_text(s, text, error);
    }
    if (status != ET_OK) stream_close(s);
    return status;
}

void stream_close(score_stream *s)
{
    free(s->table);
    free(s->center);
    *s = (score_stream){0};
}

void stream_begin(score_stream *s, const char *label, size_t number)
{
    snprintf(s->name, sizeof s->name, "study.%.40s.%zu", label, number);
    s->drawn = 0;
    if (s->center) memset(s->center, 0, s->experts * sizeof *s->center);
}

void stream_next(score_stream *s, size_t N, et_real *r)
{
    et_stream numbers = et_stream_open(s->seed, s->name);
    if (s->center) walk(s, et_stream_open(s->seed, "study.walk"));
    if (s->kind == STREAM_TEXT)
        next_text(s, numbers, N, r);
    else
        next_normal(s, numbers, N, r);
    s->drawn++;
}
