/* test_groups.c: what hides inside every element's bar, and shows in a group (ref/verdict/group_limits.c).
 *
 * Errors of a known size are put into an honest kernel's numbers (honest.h): a factor on a part of a tensor, noise that
 * is too large, rows that err as wholes. Values that elements show: test_elements.c.
 */
#include "tests/check_main.h"
#include "tests/honest.h"

#include <omp.h>

#ifndef ETREF_F32

/* Large enough for limits of groups to lie well inside the elements' own bars. */
static const char *const wide_case =
    "{'name':'wide','rule':'ec','tokens':512,'d_model':64,'d_expert':96,'experts':8,"
    "'precision':'bf16','input':{'source':'normal','seed':3}}";

/* Its golden and bars are made once; each test has the kernel as it was. */
static honest wide;

static void make_wide(void)
{
    make_honest(&wide, wide_case, "bf16", 1);
}

static void restore_wide(void)
{
    make_tensors(&wide, 1);
}

static void free_wide(void)
{
    free_honest(&wide);
}

/* One group of a verdict, and the verdict on its tensor. */
typedef struct sight {
    const char *tensor, *kind, *part;
    size_t index;
    et_group group;
    bool seen;
    size_t failed;
    et_outcome outcome;
} sight;

static void look_at(void *user, const char *tensor, const et_group *g)
{
    sight *s = user;
    if (strcmp(tensor, s->tensor) != 0 || strcmp(g->kind, s->kind) != 0 ||
        strcmp(g->part, s->part) != 0 || g->index != s->index)
        return;
    s->group = *g;
    s->seen = true;
}

/* Of a candidate that shows this tensor and its routing alone: not what its stage starts from. */
static sight look(honest *k, const char *tensor, const char *kind, const char *part, size_t index)
{
    sight s = {.tensor = tensor, .kind = kind, .part = part, .index = index};
    const et_verify_options options = {.profile = k->profile};
    const et_tensor_out shown[] = {*tensor_of(k, tensor), *tensor_of(k, "route.mask")};
    et_verdict v;
    et_error error;
    const et_aside aside = {&k->shelf, look_at, &s, NULL};
    ck_assert_msg(et_verify_with(&v, &k->golden, shown, 2, &options, &aside, &error) == ET_OK, "%s",
                  error.text);
    ck_assert_msg(s.seen, "%s has no group %s %zu (%s)", tensor, kind, index, part);
    s.failed = verdict_on(&v, tensor)->failed;
    s.outcome = verdict_on(&v, tensor)->outcome;
    et_verdict_free(&v);
    return s;
}

/* The part of the tensor that a group's regressor is, at each element; 0 outside the group. */
static double part_of(const honest *k, const sight *s, size_t at)
{
    const et_step *g = &k->golden;
    const et_assignment *a = &g->assignment;
    size_t row = at / 64, column = at % 64;
    double sum = 0;
    if (strcmp(s->tensor, "bwd.shared_up") == 0) return g->bwd.shared_up[at];
    if (strcmp(s->tensor, "bwd.w_up") == 0) return row / 96 == s->index ? g->bwd.up[at] : 0;
    if (strcmp(s->tensor, "fwd.slot_out") == 0)
        return (size_t)a->slot_expert[row] == s->index ? g->fwd.slot_out[at] : 0;
    if (strcmp(s->part, "shared") == 0 && strcmp(s->tensor, "fwd.y") == 0)
        return g->fwd.shared_weight[row] * g->fwd.shared_out[at];
    if (strcmp(s->tensor, "fwd.y") == 0) { /* routed: of one expert, or of all */
        for (int32_t j = a->token_offsets[row]; j < a->token_offsets[row + 1]; j++) {
            size_t slot = (size_t)a->token_slots[j];
            bool in = strcmp(s->kind, "part") == 0 || (size_t)a->slot_expert[slot] == s->index;
            if (in) sum += g->fwd.slot_weight[slot] * g->fwd.slot_out[slot * 64 + column];
        }
        return sum;
    }
    bool shared = strcmp(s->part, "shared") == 0; /* dx by way of the shared expert */
    for (size_t i = 0; shared && i < 96; i++)
        sum += g->bwd.shared_pre[row * 96 + i] * g->in.shared_up[i * 64 + column];
    for (size_t i = 0; !shared && i < 8; i++) /* dx by way of the router */
        sum += g->bwd.logits[row * 8 + i] * g->in.router[i * 64 + column];
    return sum;
}

static const sight scaled[] = {
    {.tensor = "bwd.shared_up", .kind = "tensor", .part = "reference"},
    {.tensor = "bwd.w_up", .kind = "expert", .part = "reference", .index = 3},
    {.tensor = "fwd.slot_out", .kind = "expert", .part = "reference", .index = 5},
    {.tensor = "fwd.y", .kind = "expert", .part = "routed", .index = 6},
    {.tensor = "fwd.y", .kind = "part", .part = "routed"},
    {.tensor = "fwd.y", .kind = "part", .part = "shared"},
    {.tensor = "bwd.x", .kind = "part", .part = "shared"},
    {.tensor = "bwd.x",
     .kind = "part",
     .part = "router"}, /* so little that elements show it first */
};

static void add_part(honest *k, const sight *s, double factor)
{
    double *values = values_of(k, s->tensor);
    for (size_t i = 0; i < elements_of(tensor_of(k, s->tensor)); i++)
        values[i] += factor * part_of(k, s, i);
}

/* A factor of half a group's limit is an honest kernel's right; of twice the limit no element alone
 * shows it, and the group does. */
START_TEST(hidden_factors_are_found)
{
    honest *k = &wide;
    const sight *w = &scaled[_i];
    sight s = look(k, w->tensor, w->kind, w->part, w->index);
    double limit = s.group.slope_limit;
    ck_assert(s.group.pass && s.outcome == ET_PASS && limit > 0 && limit < 0.1);
    add_part(k, w, 0.5 * limit);
    s = look(k, w->tensor, w->kind, w->part, w->index);
    ck_assert_msg(s.group.pass, "slope %g of %g", s.group.slope, s.group.slope_limit);
    add_part(k, w, 1.5 * limit);
    s = look(k, w->tensor, w->kind, w->part, w->index);
    if (strcmp(w->part, "router") != 0) ck_assert_uint_eq(s.failed, 0);
    ck_assert_int_eq(s.outcome, ET_MISMATCH);
    ck_assert_msg(!s.group.pass, "slope %g of %g", s.group.slope, s.group.slope_limit);
    ck_assert_double_eq_tol(s.group.slope, 2 * limit, limit);
}
END_TEST

static const sight noisy[] = {
    {.tensor = "fwd.y", .kind = "tensor", .part = "reference"},
    {.tensor = "fwd.y", .kind = "row", .part = "reference", .index = 77},
    {.tensor = "fwd.shared_out", .kind = "column", .part = "reference", .index = 9},
    {.tensor = "fwd.slot_out", .kind = "expert", .part = "reference", .index = 2},
    {.tensor = "bwd.shared_act", .kind = "block", .part = "reference", .index = 128},
};

/* Errors of the group become +-`deviations` each. */
static void set_errors(honest *k, const sight *s, double deviations)
{
    et_tensor_out want[ET_MAX_STEP_TENSORS], variance[ET_MAX_STEP_TENSORS];
    size_t have = et_step_tensors(&k->golden, false, want), at = 0;
    et_step_tensors(&k->noise, false, variance);
    while (at < have && strcmp(want[at].name, s->tensor) != 0) at++;
    double *values = values_of(k, s->tensor);
    size_t columns = want[at].shape[1];
    for (size_t i = 0; i < elements_of(&want[at]); i++) {
        size_t row = i / columns;
        bool in = strcmp(s->kind, "tensor") == 0 ||
                  (strcmp(s->kind, "row") == 0 && row == s->index) ||
                  (strcmp(s->kind, "column") == 0 && i % columns == s->index) ||
                  (strcmp(s->kind, "expert") == 0 && row / 64 == s->index) ||
                  (strcmp(s->kind, "block") == 0 && row / 128 == s->index / 128);
        double sigma = sqrt(((const double *)variance[at].values)[i]);
        if (in)
            values[i] =
                ((const double *)want[at].values)[i] +
                (et_uniform(et_stream_open(9, "signs"), i, 0) < 0.5 ? -1 : 1) * deviations * sigma;
    }
}

/* Errors of the right kind, and too large: each element passes. */
START_TEST(hidden_noise_is_found)
{
    honest *k = &wide;
    const sight *w = &noisy[_i];
    sight s = look(k, w->tensor, w->kind, w->part, w->index);
    double limit = s.group.spread_limit;
    ck_assert_double_eq_tol(s.group.spread, 1, 0.5);
    ck_assert(limit > s.group.spread && limit < 6);
    set_errors(k, w, 0.9 * limit);
    ck_assert(look(k, w->tensor, w->kind, w->part, w->index).group.pass);
    set_errors(k, w, 1.1 * limit);
    s = look(k, w->tensor, w->kind, w->part, w->index);
    ck_assert_uint_eq(s.failed, 0);
    ck_assert_int_eq(s.outcome, ET_MISMATCH);
    ck_assert(!s.group.pass);
    ck_assert_double_eq_tol(s.group.spread, 1.1 * limit, 0.01);
}
END_TEST

/* What the campaign gathers: every kind of group of every tensor, with numbers in them. */
typedef struct census {
    size_t tensors, experts, rows, columns, blocks, tiles, parts;
} census;

static void count_group(void *user, const char *tensor, const et_group *g)
{
    census *c = user;
    ck_assert(g->elements >= 8 && g->spread > 0 && g->spread_limit > g->spread);
    ck_assert(g->pass && g->deviations < 20);
    bool y = strcmp(tensor, "fwd.y") == 0;
    c->tensors += strcmp(g->kind, "tensor") == 0;
    c->experts += strcmp(g->kind, "expert") == 0;
    c->rows += y && strcmp(g->kind, "row") == 0;
    c->columns += y && strcmp(g->kind, "column") == 0;
    c->blocks += y && strcmp(g->kind, "block") == 0;
    c->tiles += y && strcmp(g->kind, "tile") == 0;
    c->parts += strcmp(g->kind, "part") == 0;
}

START_TEST(every_group_is_shown)
{
    honest *k = &wide;
    census seen = {0};
    et_verdict v;
    keep_only(k, "fwd.y", "bwd.x");
    const et_verify_options options = {.profile = k->profile};
    const et_aside aside = {&k->shelf, count_group, &seen, NULL};
    ck_assert_int_eq(et_verify_with(&v, &k->golden, k->tensors, k->count, &options, &aside, NULL),
                     ET_OK);
    ck_assert_uint_eq(seen.tensors, 2);
    ck_assert_uint_eq(seen.experts, 8); /* their parts of y */
    ck_assert_uint_eq(seen.rows, 512);
    ck_assert_uint_eq(seen.columns, 64);
    ck_assert_uint_eq(seen.blocks, 512 / 16 + 512 / 64 + 512 / 128);
    ck_assert_uint_eq(seen.tiles, (512 / 16) * (64 / 16));
    ck_assert_uint_eq(seen.parts, 2 + 3); /* y: routed, shared; dx: experts, shared, router */
    et_verdict_free(&v);
}
END_TEST

/* Sums are taken in a fixed order, whoever takes them. */
static et_tensor_verdict judged_by_threads(const honest *k, size_t index, int threads)
{
    const et_verify_options options = {.profile = k->profile};
    const et_judgement j = {.golden = &k->golden,
                            .reference = &k->golden,
                            .bars = &k->shelf.first->bars,
                            .candidate = k->tensors,
                            .count = k->count,
                            .mask = k->golden.route.mask,
                            .options = &options};
    et_tensor_verdict out;
    int before = omp_get_max_threads();
    omp_set_num_threads(threads);
    ck_assert_int_eq(et_judge_tensor(&j, index, &k->golden, NULL, &out, NULL), ET_OK);
    omp_set_num_threads(before);
    return out;
}

START_TEST(no_figure_depends_on_threads)
{
    honest *k = &wide;
    for (size_t i = 0; i < k->count; i++) {
        et_tensor_verdict one = judged_by_threads(k, i, 1), three = judged_by_threads(k, i, 3);
        ck_assert_double_eq(one.whole.slope, three.whole.slope);
        ck_assert_double_eq(one.whole.spread, three.whole.spread);
        ck_assert_double_eq(one.worst_group.slope, three.worst_group.slope);
        ck_assert_double_eq(one.largest_ulps, three.largest_ulps);
        ck_assert_uint_eq(one.worst, three.worst);
    }
}
END_TEST

/* What errors of dH, or of dO and A, make of the shared expert's gradient: each row, and each column, by itself. */
static const struct {
    const char *tensor, *input;
} whole_rows[] = {{"bwd.shared_up", "'source':'normal'"},
                  {"bwd.shared_up", "'source':'normal','mean':2"},
                  {"bwd.shared_up", "'source':'skewed','hot':1"},
                  {"bwd.shared_down", "'source':'normal'"},
                  {"bwd.shared_down", "'source':'normal','mean':2"}};

/* The gradient p' q [a,b] becomes that of a p whose elements err by V. */
static void err_by(size_t tokens, size_t a, const et_real *V, size_t b, const et_real *q,
                   bool transposed, et_stream stream, double *gradient)
{
    for (size_t t = 0; t < tokens; t++)
        for (size_t i = 0; i < a; i++) {
            double e = sqrt(V[t * a + i]) * et_normal(stream, t * a + i);
            for (size_t k = 0; e != 0 && k < b; k++)
                gradient[transposed ? k * a + i : i * b + k] += e * q[t * b + k];
        }
}

START_TEST(rows_may_err_as_wholes)
{
    enum { TOKENS = 512, D = 96, H = 24, DRAWS = 20 };
    honest k;
    char json[512];
    bool up = strstr(whole_rows[_i].tensor, "_up") != NULL;
    snprintf(json, sizeof json,
             "{'name':'rows','rule':'tc','top_k':1,'tokens':%d,'d_model':%d,'d_expert':8,"
             "'shared_d_expert':%d,'experts':2,'norm':'fanout','precision':'bf16','input':{%s,'"
             "seed':4}}",
             TOKENS, D, H, whole_rows[_i].input);
    make_honest(&k, json, "bf16", 1);
    keep_only(&k, whole_rows[_i].tensor, "route.mask");
    const et_step *g = &k.golden, *V = &k.noise;
    for (uint64_t draw = 0; draw < DRAWS; draw++) {
        double *gradient = values_of(&k, whole_rows[_i].tensor);
        memcpy(gradient, up ? g->bwd.shared_up : g->bwd.shared_down, D * H * sizeof *gradient);
        et_stream first = et_stream_open(draw, "p"), second = et_stream_open(draw, "q");
        if (up) {
            err_by(TOKENS, H, V->bwd.shared_pre, D, g->in.x, false, first, gradient);
        } else {
            err_by(TOKENS, D, V->bwd.shared_out, H, g->fwd.shared_act, false, first, gradient);
            err_by(TOKENS, H, V->fwd.shared_act, D, g->bwd.shared_out, true, second, gradient);
        }
        sight s = look(&k, whole_rows[_i].tensor, "tensor", "reference", 0);
        ck_assert_msg(s.outcome == ET_PASS, "slope %g of %g, spread %g of %g", s.group.slope,
                      s.group.slope_limit, s.group.spread, s.group.spread_limit);
    }
    free_honest(&k);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("groups");
    TCase *of_wide = add_case(suite, "wide"), *rows = add_case(suite, "rows");
    tcase_add_unchecked_fixture(of_wide, make_wide, free_wide);
    tcase_add_checked_fixture(of_wide, restore_wide, NULL);
    tcase_add_loop_test(of_wide, hidden_factors_are_found, 0, sizeof scaled / sizeof *scaled);
    tcase_add_loop_test(of_wide, hidden_noise_is_found, 0, sizeof noisy / sizeof *noisy);
    tcase_add_test(of_wide, every_group_is_shown);
    tcase_add_test(of_wide, no_figure_depends_on_threads);
    tcase_add_loop_test(rows, rows_may_err_as_wholes, 0, sizeof whole_rows / sizeof *whole_rows);
    return run_suite(suite);
}

#else

int main(void)
{
    return EXIT_SUCCESS; /* the float build does not judge */
}

#endif
