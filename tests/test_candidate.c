/* test_candidate.c: reading what a kernel computed: every legal form arrives with its values, and
 * whatever else a file claims is refused in one line before memory is taken.
 *
 * Bad candidates are made from a good one: each row of the table changes one thing.
 */
#include "etref/etref.h"
#include "tests/check_main.h"
#include "tests/run_case.h"
#include "tests/scratch.h"

#include <stdint.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static const char *const golden_case =
    "{'name':'g','rule':'tc','top_k':2,'tokens':6,'d_model':2,'d_expert':3,'experts':3,"
    "'input':{'source':'normal'}}";

static et_step golden;

static void set_up(void)
{
    et_case c;
    make_folder();
    ck_assert_int_eq(parse_quoted(&c, golden_case, NULL), ET_OK);
    run_case(&golden, &c);
}

static void tear_down(void)
{
    et_step_free(&golden);
    remove_folder();
}

/* ---- a candidate about to be written: everything that a row may change ---- */

typedef struct draft {
    et_tensor_out tensors[ET_MAX_STEP_TENSORS + 1];
    size_t count;
    char metadata[2][2048]; /* one key and its value; no key: none */
    et_alias aliases[4];
    size_t alias_count, max_bytes;
} draft;

static et_tensor_out golden_tensor(const char *name)
{
    et_tensor_out tensors[ET_MAX_STEP_TENSORS];
    size_t count = et_step_tensors(&golden, false, tensors);
    for (size_t i = 0; i < count; i++)
        if (strcmp(tensors[i].name, name) == 0) return tensors[i];
    ck_abort_msg("no tensor %s", name);
    return tensors[0];
}

static et_tensor_out *add(draft *d, const char *name)
{
    d->tensors[d->count] = golden_tensor(name);
    return &d->tensors[d->count++];
}

static et_tensor_out *tensor(draft *d, const char *name)
{
    for (size_t i = 0; i < d->count; i++)
        if (strcmp(d->tensors[i].name, name) == 0) return &d->tensors[i];
    return add(d, name);
}

static void set_case(draft *d, const char *json)
{
    strcpy(d->metadata[0], "case");
    snprintf(d->metadata[1], sizeof d->metadata[1], "%s", json);
    double_the_quotes(d->metadata[1]);
}

/* What a kernel of a training step would write. */
static draft good_draft(void)
{
    draft d = {.count = 0};
    add(&d, "fwd.y")->dtype = ET_BF16;
    add(&d, "route.mask");
    add(&d, "bwd.w_up")->dtype = ET_F32;
    return d;
}

static void write_draft(const draft *d)
{
    const char *metadata[] = {d->metadata[0], d->metadata[1], NULL};
    et_error error;
    ck_assert_msg(et_tensor_file_write(path, d->tensors, d->count,
                                       d->metadata[0][0] ? metadata : NULL, &error) == ET_OK,
                  "%s", error.text);
}

static et_status read_draft(et_candidate *c, const draft *d, et_error *error)
{
    et_tensor_file file;
    write_draft(d);
    ck_assert_int_eq(et_tensor_file_open(&file, path, NULL), ET_OK);
    et_status status =
        et_candidate_read(c, &file, &golden, d->aliases, d->alias_count, d->max_bytes, error);
    et_tensor_file_close(&file);
    return status;
}

static et_candidate read_good(const draft *d)
{
    et_candidate c;
    et_error error = {""};
    ck_assert_msg(read_draft(&c, d, &error) == ET_OK, "%s", error.text);
    ck_assert_str_eq(error.text, "");
    return c;
}

static const et_tensor_out *found(const et_candidate *c, const char *name)
{
    for (size_t i = 0; i < c->count; i++)
        if (strcmp(c->tensors[i].name, name) == 0) return &c->tensors[i];
    ck_abort_msg("%s did not arrive", name);
    return NULL;
}

/* ---- what arrives ---- */

START_TEST(float_types_arrive_with_their_values)
{
    static const et_dtype types[] = {ET_F64, ET_F32, ET_F16, ET_BF16};
    const et_real *y = golden.fwd.y;
    for (size_t k = 0; k < COUNT(types); k++) {
        draft d = {.count = 0};
        add(&d, "fwd.y")->dtype = types[k];
        et_candidate c = read_good(&d);
        const et_tensor_out *t = found(&c, "fwd.y");
        ck_assert(t->dtype == types[k] && t->rank == 2 && t->shape[0] == 6 && t->shape[1] == 2);
        ck_assert(t->source == (types[k] == ET_F64 ? ET_FROM_F64 : ET_FROM_F32));
        for (size_t i = 0; i < 12; i++) {
            double want = et_round_to_dtype((double)y[i], types[k]);
            double got = t->source == ET_FROM_F64 ? ((const double *)t->values)[i]
                                                  : (double)((const float *)t->values)[i];
            ck_assert_msg(got == want, "%s: %.17g, not %.17g", et_dtype_name(types[k]), got, want);
        }
        ck_assert_uint_eq(c.bytes, 12 * (types[k] == ET_F64 ? sizeof(double) : sizeof(float)));
        et_candidate_free(&c);
    }
}
END_TEST

START_TEST(integers_arrive_from_wide_types_and_masks_from_booleans)
{
    draft d = {.count = 0};
    add(&d, "route.load")->dtype = ET_I64;
    add(&d, "route.mask")->dtype = ET_BOOL;
    add(&d, "route.slot_token");
    et_candidate c = read_good(&d);
    const et_tensor_out *load = found(&c, "route.load"), *mask = found(&c, "route.mask");
    ck_assert(load->source == ET_FROM_I32 && load->dtype == ET_I64);
    ck_assert(memcmp(load->values, golden.assignment.load, 3 * sizeof(int32_t)) == 0);
    ck_assert(mask->source == ET_FROM_U8 && mask->dtype == ET_BOOL);
    ck_assert(memcmp(mask->values, golden.route.mask, 18) == 0);
    ck_assert_uint_eq(found(&c, "route.slot_token")->shape[0], 12);
    et_candidate_free(&c);
}
END_TEST

/* A mask in I32, as some frameworks write it. */
START_TEST(a_mask_of_integers_is_a_mask)
{
    draft d = {.count = 0};
    int32_t values[18];
    for (size_t i = 0; i < 18; i++) values[i] = golden.route.mask[i];
    et_tensor_out *t = add(&d, "route.mask");
    t->values = values;
    t->source = ET_FROM_I32;
    t->dtype = ET_I32;
    et_candidate c = read_good(&d);
    ck_assert(memcmp(found(&c, "route.mask")->values, golden.route.mask, 18) == 0);
    et_candidate_free(&c);
}
END_TEST

START_TEST(another_number_of_slots_is_no_wrong_shape)
{
    static const size_t counts[] = {0, 1, 11, 13, 18};
    static int32_t experts[18];
    static double rows[18 * 3];
    for (size_t k = 0; k < COUNT(counts); k++) {
        draft d = {.count = 0};
        et_tensor_out *t = add(&d, "route.slot_expert"), *act = add(&d, "fwd.slot_act");
        t->values = experts;
        t->shape[0] = counts[k];
        act->values = rows;
        act->source = ET_FROM_F64;
        act->shape[0] = counts[k];
        et_candidate c = read_good(&d);
        ck_assert_uint_eq(found(&c, "fwd.slot_act")->shape[0], counts[k]);
        et_candidate_free(&c);
    }
}
END_TEST

START_TEST(an_alias_renames)
{
    draft d = good_draft();
    tensor(&d, "fwd.y")->name = "out";
    tensor(&d, "bwd.w_up")->name = "fwd.slot_out"; /* a name of the bundle for another thing */
    d.aliases[0] = (et_alias){"out", "fwd.y"};
    d.aliases[1] = (et_alias){"fwd.slot_out", "bwd.w_up"};
    d.alias_count = 2;
    et_candidate c = read_good(&d);
    ck_assert_uint_eq(c.count, 3);
    ck_assert_int_eq(found(&c, "fwd.y")->dtype, ET_BF16);
    ck_assert_int_eq(found(&c, "bwd.w_up")->dtype, ET_F32);
    et_candidate_free(&c);
}
END_TEST

START_TEST(inputs_and_noise_are_no_outputs)
{
    draft d = good_draft();
    add(&d, "in.x");
    add(&d, "in.w_router");
    add(&d, "fwd.y")->name = "noise.fwd.y";
    et_candidate c = read_good(&d);
    ck_assert(c.count == 3 && c.inputs == 2 && c.ignored == 1);
    et_candidate_free(&c);
}
END_TEST

/* The case may be told again, under another name. */
START_TEST(the_same_case_is_no_other_case)
{
    draft d = good_draft();
    set_case(&d, "{'name':'other','hunts':'nothing','rule':'tc','top_k':2,'tokens':6,'d_model':2,"
                 "'d_expert':3,'experts':3,'input':{'source':'normal'}}");
    et_candidate c = read_good(&d);
    et_candidate_free(&c);
    strcpy(d.metadata[0], "framework");
    strcpy(d.metadata[1], "pt");
    c = read_good(&d);
    et_candidate_free(&c);
}
END_TEST

/* Everything that the step holds, and what it becomes in memory. */
START_TEST(a_whole_bundle_is_a_candidate)
{
    draft d = {.count = 0};
    d.count = et_step_tensors(&golden, false, d.tensors);
    et_candidate c = read_good(&d);
    ck_assert_uint_eq(c.count + c.inputs, d.count);
    for (size_t i = 0; i < c.count; i++) {
        et_tensor_out want = golden_tensor(c.tensors[i].name);
        size_t size = want.source == ET_FROM_F64 ? 8 : want.source == ET_FROM_U8 ? 1 : 4, count = 1;
        for (size_t k = 0; k < want.rank; k++) count *= want.shape[k];
        ck_assert(c.tensors[i].source == want.source);
        ck_assert(count == 0 || memcmp(c.tensors[i].values, want.values, count * size) == 0);
    }
    et_candidate_free(&c);
    et_candidate_free(&c); /* zeros by now */
}
END_TEST

/* ---- what is refused ---- */

static double reals[64];
static int32_t integers[64];

static void spoil(draft *d, const char *name, size_t element, int32_t value)
{
    et_tensor_out *t = tensor(d, name);
    memset(integers, 0, sizeof integers);
    integers[element] = value;
    t->values = integers;
    t->source = ET_FROM_I32;
    t->dtype = ET_I32;
}

static void stranger(draft *d)
{
    tensor(d, "fwd.y")->name = "fwd.yy";
}
static void bare_name(draft *d)
{
    tensor(d, "fwd.y")->name = "y";
}
static void nonsense(draft *d)
{
    tensor(d, "fwd.y")->name = "activations";
}
static void noise_of_nothing(draft *d)
{
    tensor(d, "fwd.y")->name = "noise.route.mask";
}
static void of_another_rule(draft *d)
{
    tensor(d, "fwd.y")->name = "route.cutoff";
}
static void transposed(draft *d)
{
    tensor(d, "fwd.y")->shape[0] = 2, tensor(d, "fwd.y")->shape[1] = 6;
}
static void flat(draft *d)
{
    tensor(d, "fwd.y")->rank = 1, tensor(d, "fwd.y")->shape[0] = 12;
}
static void row_short(draft *d)
{
    tensor(d, "fwd.y")->shape[0] = 5;
}
static void too_many_slots(draft *d)
{
    et_tensor_out *t = tensor(d, "route.slot_token");
    t->values = integers;
    t->shape[0] = 19;
}
static void slots_of_another_width(draft *d)
{
    et_tensor_out *t = tensor(d, "fwd.slot_act");
    t->values = reals;
    t->source = ET_FROM_F64;
    t->shape[0] = 5, t->shape[1] = 4;
}
static void y_of_integers(draft *d)
{
    spoil(d, "fwd.y", 0, 1);
}
static void mask_of_floats(draft *d)
{
    et_tensor_out *t = tensor(d, "route.mask");
    t->values = reals, t->source = ET_FROM_F64, t->dtype = ET_F32;
}
static void load_of_floats(draft *d)
{
    et_tensor_out *t = tensor(d, "route.load");
    t->values = reals, t->source = ET_FROM_F64, t->dtype = ET_F64;
}
static void mask_beyond(draft *d)
{
    spoil(d, "route.mask", 7, 256);
}
static void mask_below(draft *d)
{
    spoil(d, "route.mask", 17, -1);
}
static void other_input(draft *d)
{
    et_tensor_out *t = tensor(d, "in.x");
    memset(reals, 0, sizeof reals);
    t->values = reals, t->source = ET_FROM_F64;
}
static void input_of_another_case(draft *d)
{
    tensor(d, "fwd.y")->name = "in.ema";
}
static void input_misshaped(draft *d)
{
    tensor(d, "in.x")->shape[0] = 4, tensor(d, "in.x")->shape[1] = 3;
}
static void alias_to_nothing(draft *d)
{
    d->aliases[d->alias_count++] = (et_alias){"fwd.y", "fwd.z"};
}
static void alias_to_noise(draft *d)
{
    d->aliases[d->alias_count++] = (et_alias){"fwd.y", "noise.fwd.y"};
}
static void alias_from_nothing(draft *d)
{
    d->aliases[d->alias_count++] = (et_alias){"out", "fwd.y"};
}
static void alias_twice(draft *d)
{
    d->aliases[d->alias_count++] = (et_alias){"fwd.y", "fwd.y"};
    d->aliases[d->alias_count++] = (et_alias){"fwd.y", "bwd.x"};
}
static void given_twice(draft *d)
{
    add(d, "bwd.x");
    d->aliases[d->alias_count++] = (et_alias){"bwd.x", "fwd.y"};
}
static void nothing_at_all(draft *d)
{
    d->count = 0;
}
static void inputs_alone(draft *d)
{
    d->count = 0;
    add(d, "in.x");
}
static void too_large(draft *d)
{
    d->max_bytes = 12 * 4 + 18 + 53;
}
static void other_size(draft *d)
{
    set_case(d, "{'name':'g','rule':'tc','top_k':2,'tokens':7,'d_model':2,'d_expert':3,'experts':3,"
                "'input':{'source':'normal'}}");
}
static void other_seed(draft *d)
{
    set_case(d, "{'name':'g','rule':'tc','top_k':2,'tokens':6,'d_model':2,'d_expert':3,'experts':3,"
                "'input':{'source':'normal','seed':2}}");
}
static void other_rule(draft *d)
{
    set_case(d, "{'name':'g','rule':'ec','tokens':6,'d_model':2,'d_expert':3,'experts':3,"
                "'input':{'source':'normal'}}");
}
static void case_is_no_json(draft *d)
{
    set_case(d, "my favourite");
}

#define SHAPE_OF_Y "; fwd.y is [N,d], which is [6,2] for this case"

static const struct {
    void (*change)(draft *);
    const char *message; /* after the file's name, unless it begins with "alias" */
} bad[] = {
    {stranger,
     "tensor 'fwd.yy' is not one of a bundle; if it is fwd.y, give the alias fwd.yy=fwd.y"},
    {bare_name, "tensor 'y' is not one of a bundle; if it is fwd.y, give the alias y=fwd.y"},
    {nonsense, "tensor 'activations' is not one of a bundle; rename it, give an alias, or leave it "
               "out ('etref list tensors' names what can be judged)"},
    {noise_of_nothing,
     "tensor 'noise.route.mask' is not one of a bundle; rename it, give an alias, or leave it out "
     "('etref list tensors' names what can be judged)"},
    {of_another_rule,
     "tensor 'route.cutoff' does not belong to the golden's case 'g'; leave it out"},
    {transposed, "tensor 'fwd.y' has shape [2,6]" SHAPE_OF_Y},
    {flat, "tensor 'fwd.y' has shape [12]" SHAPE_OF_Y},
    {row_short, "tensor 'fwd.y' has shape [5,2]" SHAPE_OF_Y},
    {too_many_slots, "tensor 'route.slot_token' has shape [19]; route.slot_token is [S], which is "
                     "[12] for this case"},
    {slots_of_another_width, "tensor 'fwd.slot_act' has shape [5,4]; fwd.slot_act is [S,h], which "
                             "is [12,3] for this case"},
    {y_of_integers, "tensor 'fwd.y' has type I32, must be F64, F32, BF16 or F16"},
    {mask_of_floats, "tensor 'route.mask' has type F32, must be BOOL, U8 or another integer type"},
    {load_of_floats, "tensor 'route.load' has type F64, must be I32 or another integer type"},
    {mask_beyond, "tensor 'route.mask' holds 256 at element 7; allowed: 0 and 1"},
    {mask_below, "tensor 'route.mask' holds -1 at element 17; allowed: 0 and 1"},
    {other_input, NULL}, /* the message holds a drawn number */
    {input_of_another_case,
     "tensor 'in.ema' does not belong to the golden's case 'g'; leave it out"},
    {input_misshaped, "tensor 'in.x' has shape [4,3]; in.x is [N,d], which is [6,2] for this case"},
    {alias_to_nothing, "alias fwd.y=fwd.z: a bundle has no tensor fwd.z, the nearest is fwd.y; "
                       "'etref list tensors' names them"},
    {alias_to_noise, NULL},     /* which name is nearest is no matter */
    {alias_from_nothing, NULL}, /* the file's name stands in the middle */
    {alias_twice, "alias fwd.y=bwd.x: fwd.y is given another alias before"},
    {given_twice, NULL}, /* which of the two comes second is the file's order */
    {nothing_at_all, "holds nothing that a kernel computed; write at least one of fwd.*, route.*, "
                     "bwd.*, state.* into it"},
    {inputs_alone, "holds nothing that a kernel computed; write at least one of fwd.*, route.*, "
                   "bwd.*, state.* into it"},
    {other_size, "a bundle of another case: tokens = 7, the golden's case 'g' has 6"},
    {other_seed, "a bundle of another case: input.seed = 2, the golden's case 'g' has 1"},
    {other_rule, "a bundle of another case: rule = \"ec\", the golden's case 'g' has \"tc\""},
    {case_is_no_json, NULL}, /* in Jansson's words */
};

START_TEST(bad_candidates_are_refused)
{
    draft d = good_draft();
    et_candidate c;
    et_error error = {""};
    bad[_i].change(&d);
    ck_assert_msg(read_draft(&c, &d, &error) == ET_EINVAL, "row %d is accepted: %s", _i,
                  error.text);
    size_t at = strlen(path) + 2;
    bool named = strncmp(error.text, path, at - 2) == 0;
    ck_assert_msg(named || strncmp(error.text, "alias ", 6) == 0, "%s", error.text);
    if (bad[_i].message) ck_assert_str_eq(named ? error.text + at : error.text, bad[_i].message);
    ck_assert_uint_eq(c.count + c.bytes, 0);
}
END_TEST

/* A limit stops what a file claims before it is taken. */
START_TEST(memory_is_limited)
{
    draft d = good_draft();
    et_candidate c;
    et_error error = {""};
    too_large(&d);
    ck_assert_int_eq(read_draft(&c, &d, &error), ET_ENOMEM);
    ck_assert_ptr_nonnull(strstr(error.text, "needs more than"));
    d.max_bytes = 12 * 4 + 18 + 18 * 4;
    c = read_good(&d);
    ck_assert_uint_eq(c.bytes, d.max_bytes);
    et_candidate_free(&c);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("candidate");
    TCase *tests = add_case(suite, "reading");
    tcase_add_checked_fixture(tests, set_up, tear_down);
    tcase_add_test(tests, float_types_arrive_with_their_values);
    tcase_add_test(tests, integers_arrive_from_wide_types_and_masks_from_booleans);
    tcase_add_test(tests, a_mask_of_integers_is_a_mask);
    tcase_add_test(tests, another_number_of_slots_is_no_wrong_shape);
    tcase_add_test(tests, an_alias_renames);
    tcase_add_test(tests, inputs_and_noise_are_no_outputs);
    tcase_add_test(tests, the_same_case_is_no_other_case);
    tcase_add_test(tests, a_whole_bundle_is_a_candidate);
    tcase_add_loop_test(tests, bad_candidates_are_refused, 0, (int)COUNT(bad));
    tcase_add_test(tests, memory_is_limited);
    return run_suite(suite);
}
