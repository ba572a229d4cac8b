/* test_bars.c: error bars from replicas (ref/bars): sums over groups against plain ones, what V is where nothing, or
 * something, errs; honest kernels within the limits, and factors past them.
 */
#include "etref/suite.h"
#include "ref/bars/bars.h"
#include "ref/bars/independent_errors.h"
#include "ref/base/grid.h"
#include "ref/bars/variance.h"
#include "ref/step/decide.h"
#include "ref/step/tensors.h"
#include "ref/verdict/judge.h"
#include "tests/check_main.h"
#include "tests/run_case.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#ifndef ETREF_F32 /* the float build's own errors are a kernel's */

#include "tests/scratch.h"

static const char *const ec =
    "{'name':'ec','rule':'ec','tokens':96,'d_model':24,'d_expert':40,"
    "'experts':4,'precision':'bf16','input':{'source':'normal','seed':3}}";

typedef struct subject {
    et_step golden;
    const et_profile *profile;
    et_bars bars;
} subject;

static void open_subject(subject *s, const char *json, const char *profile)
{
    et_case c;
    et_error error;
    ck_assert_msg(parse_quoted(&c, json, &error) == ET_OK, "%s", error.text);
    draw_case(&s->golden, &c);
    ck_assert_int_eq(et_step_run(&s->golden, ET_PLAIN, NULL, NULL, &error), ET_OK);
    s->profile = et_profile_find(profile);
    ck_assert_msg(et_bars_make(&s->bars, &s->golden, s->profile, 0, NULL, NULL, &error) == ET_OK,
                  "%s", error.text);
}

static void close_subject(subject *s)
{
    et_bars_free(&s->bars);
    et_step_free(&s->golden);
}

/* A kernel: rounded to nearest, or a replica that no bar has seen. */
static et_step kernel_of(const subject *s, et_rounding_mode mode, uint64_t seed)
{
    et_step kernel;
    const et_rounding r = {.profile = s->profile, .mode = mode, .seed = seed};
    ck_assert_int_eq(et_replica_run(&kernel, &s->golden, &r, 0, NULL), ET_OK);
    return kernel;
}

static et_tensor_out find(const et_step *s, const char *name)
{
    et_tensor_out list[ET_MAX_STEP_TENSORS];
    size_t have = et_step_tensors(s, false, list), i = 0;
    while (i < have && strcmp(list[i].name, name) != 0) i++;
    ck_assert_msg(i < have, "no %s", name);
    return list[i];
}

static et_errors errors_of(const subject *s, const et_step *kernel, const char *name)
{
    return (et_errors){.got = find(kernel, name).values,
                       .want = find(&s->golden, name).values,
                       .variance = find(&s->bars.variance, name).values};
}

/* The largest share of its limit that a group of the tensor needs. */
static void note_most(void *user, const char *tensor, const et_group *g)
{
    double *most = user;
    (void)tensor;
    *most = fmax(*most, g->deviations / g->allowed);
}

/* One tensor under the verdict; *element: the largest |e| / sqrt(V). */
static double judge(const subject *s, const et_step *kernel, const char *name, double *element)
{
    double most = 0;
    et_tensor_verdict out = {0};
    const et_tensor_out got = find(kernel, name);
    const et_verify_options options = {.profile = s->profile};
    const et_judgement j = {.golden = &s->golden,
                            .reference = &s->golden,
                            .bars = &s->bars,
                            .candidate = &got,
                            .count = 1,
                            .mask = s->golden.route.mask,
                            .options = &options,
                            .visit = note_most,
                            .user = &most};
    ck_assert_int_eq(et_judge_tensor(&j, 0, &s->golden, NULL, &out, NULL), ET_OK);
    *element = out.largest_sigmas;
    /* either makes a mismatch, and nothing else does */
    bool fails = most > 1 || !(*element <= s->bars.limits.element);
    ck_assert_msg((out.outcome == ET_MISMATCH) == fails, "%s: %s", name, out.reason);
    return most;
}

static const char *const tensors[] = {
    "fwd.logits",   "fwd.gates",    "fwd.slot_pre", "fwd.slot_act", "fwd.slot_out",
    "fwd.y",        "bwd.slot_out", "bwd.slot_pre", "bwd.logits",   "bwd.x",
    "bwd.w_router", "bwd.w_up",     "bwd.w_down",   "state.ema",    "metric.gate_mean"};
enum { TENSORS = sizeof tensors / sizeof *tensors };

static const char *const profiles[] = {"f64", "f32", "tf32", "bf16", "bf16-low", "f16"};

START_TEST(honest_kernels_are_within)
{
    subject s;
    open_subject(&s, ec, profiles[_i]);
    for (uint64_t seed = 0; seed < 4; seed++) {
        et_step kernel = kernel_of(&s, seed == 0 ? ET_ROUND_NEAREST : ET_ROUND_RANDOM, 1000 + seed);
        for (size_t i = 0; i < TENSORS; i++) {
            double element, share = judge(&s, &kernel, tensors[i], &element);
            ck_assert_msg(share <= 1 && element <= s.bars.limits.element,
                          "%s: %g of an allowance, an element of %g deviations", tensors[i], share,
                          element);
        }
        et_step_free(&kernel);
    }
    close_subject(&s);
}
END_TEST

/* A factor on a tensor is found by its groups where no element is past its bar. */
static const struct {
    const char *tensor, *profile;
    double factor;
} factors[] = {{"fwd.y", "bf16", 1.005},
               {"fwd.gates", "bf16", 1 + 2e-7},
               {"bwd.w_up", "bf16", 1.006},
               {"bwd.x", "f32", 1 + 1e-6},
               {"fwd.y", "f16", 1.0006}};

START_TEST(factors_are_found)
{
    subject s;
    double element;
    open_subject(&s, ec, factors[_i].profile);
    et_step kernel = kernel_of(&s, ET_ROUND_NEAREST, 1);
    et_tensor_out t = find(&kernel, factors[_i].tensor);
    et_real *values = (et_real *)(uintptr_t)t.values;
    for (size_t i = 0; i < t.shape[0] * t.shape[1] * (t.rank > 2 ? t.shape[2] : 1); i++)
        values[i] *= (et_real)factors[_i].factor;
    double share = judge(&s, &kernel, factors[_i].tensor, &element);
    ck_assert_msg(share > 1, "%g of an allowance", share);
    ck_assert_msg(element <= s.bars.limits.element, "an element of %g deviations", element);
    et_step_free(&kernel);
    close_subject(&s);
}
END_TEST

/* Small whole numbers: every sum is exact, nothing has an error. */
START_TEST(what_is_exact_has_no_bar)
{
    subject s;
    open_subject(&s,
                 "{'name':'exact','rule':'et','tokens':64,'d_model':8,'d_expert':8,'experts':4,"
                 "'gate':'relu','precision':'bf16','input':{'source':'integer','seed':3}}",
                 "f32");
    et_tensor_out H = find(&s.bars.variance, "fwd.slot_pre");
    for (size_t i = 0; i < H.shape[0] * H.shape[1]; i++)
        ck_assert(((const et_real *)H.values)[i] == 0);
    double element;
    et_step kernel = kernel_of(&s, ET_ROUND_NEAREST, 1);
    kernel.fwd.slot_pre[5] += (et_real)0x1p-20;
    judge(&s, &kernel, "fwd.slot_pre", &element);
    ck_assert(element == (double)INFINITY);
    et_step_free(&kernel);
    close_subject(&s);
}
END_TEST

/* Off the slots dr is 0 in every kernel; on them it errs. */
START_TEST(zeros_that_never_move_have_no_bar)
{
    subject s;
    open_subject(&s, ec, "bf16");
    const et_step *V = &s.bars.variance;
    size_t off = 0, on = 0;
    for (size_t i = 0; i < 96 * 4; i++) {
        ck_assert_int_eq(V->bwd.logits[i] > 0, s.golden.route.mask[i]);
        off += !s.golden.route.mask[i];
        on += s.golden.route.mask[i];
    }
    ck_assert_uint_gt(off, 0);
    ck_assert_uint_gt(on, 0);
    close_subject(&s);
}
END_TEST

static bool stop_after(void *user, double done)
{
    int *left = user;
    ck_assert(done >= 0 && done < 1);
    return (*left)-- > 0;
}

/* Stopped before the first run, among the first replicas, among the second: no bars, and nothing to free. */
START_TEST(making_them_can_be_stopped)
{
    static const int runs[] = {0, 5, 40};
    subject s;
    open_subject(&s, ec, "bf16");
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        int left = runs[i];
        et_bars bars;
        ck_assert_int_eq(et_bars_make(&bars, &s.golden, s.profile, 0, stop_after, &left, NULL),
                         ET_ENOMEM);
        ck_assert_int_eq(left, -1);
    }
    close_subject(&s);
}
END_TEST

/* The one pass over a tensor sums what sums over each group would. */
/* A grid of 1024 rows and 64 columns: y's. */
static const char *const counted =
    "{'name':'counted','layer':'dense','tokens':1024,'d_model':64,'d_expert':1,"
    "'precision':'f32','input':{'source':'normal','seed':1}}";

/* Few numbers, many times over, are told from as many different ones: to a tenth, up to 2^14 and some more. */
START_TEST(different_numbers_are_counted)
{
    enum { ROWS = 1024, COLUMNS = 64 };
    static const size_t different[] = {1, 40, 192, 3000, 20000};
    subject s;
    open_subject(&s, counted, "f32");
    const et_cut *grid = &s.bars.tensor[ET_FWD_Y].grid;
    et_real *u = malloc(ROWS * COLUMNS * sizeof *u);
    uint16_t *marks = malloc(ROWS * COLUMNS * sizeof *marks);
    for (size_t k = 0; k < sizeof different / sizeof *different; k++) {
        for (size_t i = 0; i < ROWS * COLUMNS; i++) u[i] = 1 + (et_real)(i % different[k]);
        et_draw_marks(ROWS * COLUMNS, 24, u, marks);
        double count = et_count_different(grid, ET_KIND_TENSOR, 0, marks);
        ck_assert_double_eq_tol(count, (double)different[k], 0.1 * (double)different[k]);
    }
    for (size_t i = 0; i < ROWS * COLUMNS; i++) u[i] = 1 + (et_real)i;
    et_draw_marks(ROWS * COLUMNS, 24, u, marks);
    ck_assert(isinf(et_count_different(grid, ET_KIND_TENSOR, 0, marks)));
    free(marks);
    free(u);
    close_subject(&s);
}
END_TEST

/* Errors of which so many at a time are one and the same, drawn anew in each run; and a part that is the same in all, which
 * says nothing. */
START_TEST(errors_alike_are_seen)
{
    enum { ROWS = 1024, COLUMNS = 64, COUNT = ROWS * COLUMNS, RUNS = 600 };
    static const size_t alike[] = {1, 8, 64, 4096};
    subject s;
    open_subject(&s, counted, "f32");
    const et_cut *grid = &s.bars.tensor[ET_FWD_Y].grid;
    et_real *e = calloc(COUNT, sizeof *e), *zero = calloc(COUNT, sizeof *zero),
            *V = calloc(COUNT, sizeof *V);
    et_group_sums *sums = calloc(grid->first[ET_KINDS], sizeof *sums);
    const et_errors run = {.got = e, .want = zero, .variance = V};
    for (size_t i = 0; i < COUNT; i++) V[i] = (et_real)(1 + i % 3);
    for (size_t k = 0; k < sizeof alike / sizeof *alike; k++) {
        et_changes c;
        et_coherence found = {0};
        et_errors changes;
        ck_assert_int_eq(et_changes_make(&c, COUNT, COUNT, NULL), ET_OK);
        for (; c.runs < RUNS; c.runs++) {
            for (size_t i = 0; i < COUNT; i++) {
                bool up = et_mix(i / alike[k] + COUNT * c.runs) & 1;
                e[i] = (et_real)(sqrt((double)V[i]) * (up ? 1 : -1) + (double)(i % 5));
            }
            bool ready = et_changes_note(&c, 0, COUNT, &run, &changes);
            ck_assert_int_eq(ready, c.runs >= 3 && c.runs % 2 == 1);
            if (!ready) continue;
            ck_assert_int_eq(et_sum_groups(grid, &changes, sums, NULL), ET_OK);
            et_coherence_note(&found, &sums[grid->first[ET_KIND_TENSOR]]);
        }
        double expected = (double)alike[k];
        ck_assert_double_eq_tol(et_coherence_of(&found), expected, 0.25 * expected);
        et_changes_free(&c);
    }
    free(e);
    free(zero);
    free(V);
    free(sums);
    close_subject(&s);
}
END_TEST

START_TEST(groups_are_summed)
{
    subject s;
    open_subject(&s, ec, "bf16");
    et_step kernel = kernel_of(&s, ET_ROUND_NEAREST, 1);
    et_errors e = errors_of(&s, &kernel, "bwd.w_up");
    const et_cut *cut = &s.bars.tensor[et_tensor_find("bwd.w_up")].grid;
    et_group_sums *sums = calloc(cut->first[ET_KINDS], sizeof *sums);
    ck_assert(sums != NULL);
    ck_assert_int_eq(et_sum_groups(cut, &e, sums, NULL), ET_OK);
    ck_assert_uint_eq(cut->rows, 4 * 40);
    ck_assert_uint_eq(cut->sections, 4);
    ck_assert_uint_eq(cut->bands, 4 * 3); /* of 16, 16 and 8 rows */
    for (int kind = 0; kind < ET_KINDS; kind++)
        for (size_t i = 0; i < cut->first[kind + 1] - cut->first[kind]; i++) {
            et_corner at = et_group_corner(cut, (et_group_kind)kind, i);
            size_t left = 40 - at.row % 40; /* rows to the section's end */
            size_t rows[ET_KINDS] = {160, 40, 1, 40, 16, 64, 128, 16};
            size_t most = rows[kind] < left || kind == 0 ? rows[kind] : left;
            size_t width = kind == ET_KIND_COLUMN ? 1 : kind == ET_KIND_TILE ? 16 : 24;
            double eu = 0, ee = 0;
            for (size_t r = at.row; r < at.row + most; r++)
                for (size_t c = at.column; c < at.column + width && c < 24; c++) {
                    size_t k = r * 24 + c;
                    double u = (double)e.want[k], V = (double)e.variance[k];
                    double error = (double)((const et_real *)e.got)[k] - u;
                    if (!(V > 0)) continue;
                    eu += error * u / V;
                    ee += error * error / V;
                }
            const et_group_sums *one = &sums[cut->first[kind] + i];
            ck_assert_msg(fabs(one->eu - eu) <= 1e-9 * (1 + fabs(eu)) &&
                              fabs(one->ee - ee) <= 1e-9 * ee,
                          "%s %zu", et_kind_name((et_group_kind)kind), i);
        }
    free(sums);
    et_step_free(&kernel);
    close_subject(&s);
}
END_TEST

/* A tensor of zeros alone: where one has moved another may, and where none has none may. */
START_TEST(zeros_alone_have_a_shape)
{
    enum { ROWS = 2, COLUMNS = 3, COUNT_OF_ZEROS = ROWS * COLUMNS };
    size_t section_row[] = {0, ROWS, ROWS};
    const et_cut cut = {
        .rows = ROWS, .columns = COLUMNS, .sections = 1, .section_row = section_row};
    const et_real u[COUNT_OF_ZEROS] = {0};
    for (int moved = 0; moved < 2; moved++) {
        et_real V[COUNT_OF_ZEROS] = {moved ? 1 : 0};
        ck_assert_int_eq(et_smooth_variance(&cut, u, NULL, V, 16, NULL), ET_OK);
        for (size_t i = 0; i < COUNT_OF_ZEROS; i++) ck_assert((V[i] > 0) == (moved == 1));
    }
}
END_TEST

/* It is what the verdict's bars begin with: 16 replicas. Where one of the 32 others erred farther they have more. */
static void count_phase(void *user, const char *phase, double done)
{
    size_t *calls = user;
    ck_assert_str_eq(phase, "error bars");
    ck_assert(done >= 0 && done <= 1);
    ++*calls;
}

START_TEST(noise_is_the_variance_of_bars)
{
    subject s;
    et_step noise;
    et_error error;
    size_t calls = 0;
    open_subject(&s, ec, "bf16");
    ck_assert_int_eq(et_step_noise(&noise, &s.golden, s.profile, count_phase, &calls, &error),
                     ET_OK);
    ck_assert_uint_eq(calls, ET_FIRST_REPLICAS);
    for (size_t i = 0; i < TENSORS; i++) {
        et_tensor_out mine = find(&noise, tensors[i]), other = find(&s.bars.variance, tensors[i]);
        const et_real *V = mine.values, *most = other.values;
        size_t count = et_tensor_count(&mine), more = 0;
        for (size_t k = 0; k < count; k++) {
            et_real root = (float)sqrt((double)V[k]), first = root * root; /* as it is stored */
            ck_assert_msg(first <= most[k], "%s: %g, and %g in the end", tensors[i], first,
                          most[k]);
            more += first < most[k];
        }
        ck_assert_uint_le(50 * more, count);
    }
    et_step_free(&noise);
    et_profile bad = *s.profile;
    bad.bits[ET_OUTPUTS] = 0;
    ck_assert_int_eq(et_step_noise(&noise, &s.golden, &bad, NULL, NULL, &error), ET_EINVAL);
    ck_assert_msg(strstr(error.text, "outputs = 0") != NULL, "%s", error.text);
    close_subject(&s);
}
END_TEST

/* ---- stored with the golden ---- */

static void store(const subject *s)
{
    ck_assert_int_eq(et_bundle_write_bars(path, &s->golden, s->profile, NULL, NULL, NULL), ET_OK);
}

/* A number of a stored tensor becomes another one; its bytes are at the file's offset. */
static void spoil(const char *name, size_t index, const void *bytes, size_t size)
{
    et_tensor_file file;
    ck_assert_int_eq(et_tensor_file_open(&file, path, NULL), ET_OK);
    long at = (long)(file.data_start + et_tensor_file_find(&file, name)->offset + index * size);
    et_tensor_file_close(&file);
    FILE *f = fopen(path, "r+b");
    ck_assert(f && fseek(f, at, SEEK_SET) == 0 && fwrite(bytes, size, 1, f) == 1);
    ck_assert_int_eq(fclose(f), 0);
}

START_TEST(stored_bars_are_read_as_made)
{
    subject s;
    et_bars b;
    bool found;
    open_subject(&s, ec, "bf16");
    store(&s);
    ck_assert_int_eq(et_bars_read(&b, &found, &s.golden, s.profile, path, NULL), ET_OK);
    ck_assert(found);
    for (size_t id = 0; id < ET_MAX_STEP_TENSORS; id++) {
        ck_assert_uint_eq(b.tensor[id].groups, s.bars.tensor[id].groups);
        for (size_t g = 0; g < b.tensor[id].groups; g++)
            ck_assert_mem_eq(&b.tensor[id].bars[g], &s.bars.tensor[id].bars[g],
                             sizeof(et_group_bar));
        ck_assert_double_eq(b.tensor[id].farthest, s.bars.tensor[id].farthest);
    }
    for (size_t i = 0; i < TENSORS; i++) {
        et_tensor_out V = find(&b.variance, tensors[i]), made = find(&s.bars.variance, tensors[i]);
        for (size_t k = 0; k < et_tensor_count(&V); k++)
            ck_assert_double_eq(et_tensor_element(&V, k), et_tensor_element(&made, k));
    }
    et_bars_free(&b);
    ck_assert_int_eq(et_bars_read(&b, &found, &s.golden, et_profile_find("f16"), path, NULL),
                     ET_OK);
    ck_assert(!found);
    close_subject(&s);
}
END_TEST

/* Written beside the golden and read with it, as `generate --profile` and `verify` do; small cases of all suites: evaluation,
 * no expert, no gradient, margins without end. */
static void write_and_read(const et_case *c)
{
    et_step made, read;
    et_bars b;
    et_error error;
    et_tensor_file file;
    bool found;
    int32_t updates;
    const et_profile *p = et_profile_find("bf16");
    draw_case(&made, c);
    ck_assert_int_eq(et_step_run(&made, ET_BLAS, NULL, NULL, NULL), ET_OK);
    ck_assert_int_eq(et_bundle_write_bars(path, &made, p, NULL, NULL, NULL), ET_OK);
    et_step_free(&made);
    ck_assert_int_eq(et_bundle_open(&file, &read, path, 0, &error), ET_OK);
    ck_assert_int_eq(et_step_run(&read, ET_PLAIN, NULL, NULL, NULL), ET_OK);
    et_show_state(&read, &updates);
    ck_assert_msg(et_bars_read(&b, &found, &read, p, path, &error) == ET_OK, "%s: %s", c->name,
                  error.text); /* none are stored whose squares F32 has no room for */
    et_bars_free(&b);
    et_step_free(&read);
    et_tensor_file_close(&file);
}

enum { SUITES = 6 };

START_TEST(bars_of_every_case_can_be_read)
{
    const size_t small = 1 << 13;
    const et_suite *suite = et_suite_at((size_t)_i);
    et_case *cases;
    size_t count;
    ck_assert_int_eq(
        et_case_parse_all(&cases, &count, suite->json, strlen(suite->json), suite->name, NULL),
        ET_OK);
    for (size_t i = 0; i < count; i++)
        if (cases[i].tokens * cases[i].d_model * (cases[i].experts + 1) < small)
            write_and_read(&cases[i]);
    free(cases);
}
END_TEST

/* Stored bars judge as those that are made: the same line, and no replica is run. */
START_TEST(stored_bars_judge_alike)
{
    subject s;
    et_verdict stored, made;
    et_tensor_out list[ET_MAX_STEP_TENSORS];
    open_subject(&s, ec, "bf16");
    store(&s);
    et_step kernel = kernel_of(&s, ET_ROUND_NEAREST, 0);
    et_tensor_out y = find(&kernel, "fwd.y");
    ((et_real *)(uintptr_t)y.values)[5] *= (et_real)1.5; /* something to say */
    size_t have = et_step_tensors(&kernel, true, list);
    et_verify_options o = {.profile = s.profile};
    ck_assert_int_eq(et_verify(&made, &s.golden, list, have, &o, NULL), ET_OK);
    o.bars = path;
    ck_assert_int_eq(et_verify(&stored, &s.golden, list, have, &o, NULL), ET_OK);
    ck_assert_int_eq(stored.outcome, ET_MISMATCH);
    ck_assert_str_eq(stored.line, made.line);
    et_verdict_free(&stored);
    et_verdict_free(&made);
    et_step_free(&kernel);
    close_subject(&s);
}
END_TEST

/* Wider deviations, no numbers, negative ones: nothing is judged by what contradicts itself. */
START_TEST(stored_bars_that_contradict_themselves_are_refused)
{
    static const float wider = 1e3F, nan = NAN;
    static const double negative = -1, none = NAN;
    static const struct {
        const char *tensor, *says;
        const void *bytes;
        size_t size;
    } spoilt[] = {{"noise.fwd.y", "noise.bars", &wider, sizeof wider},
                  {"noise.fwd.y", "noise.fwd.y", &nan, sizeof nan},
                  {"noise.bars", "noise.bars", &negative, sizeof negative},
                  {"noise.bars", "noise.bars", &none, sizeof none}};
    subject s;
    open_subject(&s, ec, "bf16");
    for (size_t i = 0; i < sizeof spoilt / sizeof *spoilt; i++) {
        et_bars b;
        bool found;
        et_error error;
        store(&s);
        spoil(spoilt[i].tensor, 3, spoilt[i].bytes, spoilt[i].size);
        ck_assert_int_eq(et_bars_read(&b, &found, &s.golden, s.profile, path, &error), ET_EINVAL);
        ck_assert_msg(strstr(error.text, spoilt[i].says) && strstr(error.text, "--profile"), "%s",
                      error.text);
    }
    close_subject(&s);
}
END_TEST

#endif

static const struct {
    et_group group;
    const char *text;
} named[] = {{{.kind = NULL}, "the whole tensor"},
             {{.kind = "tensor", .part = "reference"}, "the whole tensor"},
             {{.kind = "part", .part = "routed"}, "its routed part"},
             {{.kind = "expert", .part = "routed", .index = 3}, "expert 3's part"},
             {{.kind = "expert", .part = "reference", .index = 3}, "expert 3"},
             {{.kind = "row", .part = "reference", .index = 77}, "row 77"},
             {{.kind = "column", .part = "reference", .index = 9, .column = 9}, "column 9"},
             {{.kind = "block", .part = "reference", .index = 16}, "rows 16 and following"},
             {{.kind = "tile", .part = "reference", .index = 32, .column = 48},
              "the tile at row 32, column 48"}};

START_TEST(groups_have_names)
{
    char text[64], few[5];
    et_group_print(&named[_i].group, text, sizeof text);
    ck_assert_str_eq(text, named[_i].text);
    et_group_print(&named[_i].group, few, sizeof few);
    ck_assert(strncmp(few, text, 4) == 0 && few[4] == '\0');
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("bars");
    TCase *bars = add_case(suite, "bars");
#ifndef ETREF_F32
    tcase_add_loop_test(bars, honest_kernels_are_within, 0, sizeof profiles / sizeof *profiles);
    tcase_add_loop_test(bars, factors_are_found, 0, sizeof factors / sizeof *factors);
    tcase_add_test(bars, what_is_exact_has_no_bar);
    tcase_add_test(bars, zeros_that_never_move_have_no_bar);
    tcase_add_test(bars, making_them_can_be_stopped);
    tcase_add_test(bars, different_numbers_are_counted);
    tcase_add_test(bars, errors_alike_are_seen);
    tcase_add_test(bars, groups_are_summed);
    tcase_add_test(bars, zeros_alone_have_a_shape);
    tcase_add_test(bars, noise_is_the_variance_of_bars);
    TCase *kept = tcase_create("stored");
    tcase_add_checked_fixture(kept, make_folder, remove_folder);
    tcase_add_test(kept, stored_bars_are_read_as_made);
    tcase_add_loop_test(kept, bars_of_every_case_can_be_read, 0, SUITES);
    tcase_add_test(kept, stored_bars_judge_alike);
    tcase_add_test(kept, stored_bars_that_contradict_themselves_are_refused);
    suite_add_tcase(suite, kept);
#endif
    tcase_add_loop_test(bars, groups_have_names, 0, sizeof named / sizeof *named);
    return run_suite(suite);
}
