/* test_bad_bundles.c: what a bundle claims is not believed.
 *
 * The bad bundles are made from a good one: each row of the table changes one thing.
 */
#include "tests/good_bundle.h"
#include "tests/scratch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A bundle about to be written: everything that a row may change. */
typedef struct draft {
    et_tensor_out tensors[ET_MAX_STEP_TENSORS + 1];
    size_t count;
    char metadata[8][2][1024]; /* "" as a key: left out */
} draft;

static et_tensor_out *tensor(draft *d, const char *name)
{
    for (size_t i = 0; i < d->count; i++)
        if (strcmp(d->tensors[i].name, name) == 0) return &d->tensors[i];
    ck_abort_msg("no tensor %s", name);
    return NULL;
}

static void drop(draft *d, const char *name)
{
    *tensor(d, name) = d->tensors[--d->count];
}

static char *metadata(draft *d, const char *key, int part)
{
    for (size_t i = 0; i < 8; i++)
        if (strcmp(d->metadata[i][0], key) == 0) return d->metadata[i][part];
    ck_abort_msg("no metadata %s", key);
    return NULL;
}

static double bad_values[64];

/* Replaces one element by `value`, the others by 0. */
static void spoil(draft *d, const char *name, size_t element, double value)
{
    et_tensor_out *t = tensor(d, name);
    memset(bad_values, 0, sizeof bad_values);
    bad_values[element] = value;
    t->values = bad_values;
    t->source = ET_FROM_F64;
}

static void no_format(draft *d)
{
    metadata(d, "format", 0)[0] = '\0';
}
static void other_format(draft *d)
{
    strcpy(metadata(d, "format", 1), "pt");
}
static void model_format(draft *d)
{
    strcpy(metadata(d, "format", 1), "etref-model-witness");
}
static void later_version(draft *d)
{
    strcpy(metadata(d, "version", 1), "2");
}
static void no_case(draft *d)
{
    metadata(d, "case", 0)[0] = '\0';
}
static void case_is_no_json(draft *d)
{
    strcpy(metadata(d, "case", 1), "{");
}
static void case_is_empty(draft *d)
{
    strcpy(metadata(d, "case", 1), "{}");
}
static void layout_word(draft *d)
{
    strcpy(d->metadata[5][0], "layout"), strcpy(d->metadata[5][1], "tile:4");
}
static void layout_zero(draft *d)
{
    strcpy(d->metadata[5][0], "layout"), strcpy(d->metadata[5][1], "block:0");
}
static void layout_huge(draft *d)
{
    strcpy(d->metadata[5][0], "layout"), strcpy(d->metadata[5][1], "block:99999999999999999999");
}
static void layout_tail(draft *d)
{
    strcpy(d->metadata[5][0], "layout"), strcpy(d->metadata[5][1], "block:8x");
}
static void no_x(draft *d)
{
    drop(d, "in.x");
}
static void no_dy(draft *d)
{
    drop(d, "in.dy");
}
static void no_ema(draft *d)
{
    drop(d, "in.ema");
}
static void no_shared(draft *d)
{
    drop(d, "in.shared_down");
}
static void x_misshaped(draft *d)
{
    tensor(d, "in.x")->shape[0] = 2, tensor(d, "in.x")->shape[1] = 6;
}
static void x_flat(draft *d)
{
    tensor(d, "in.x")->rank = 1, tensor(d, "in.x")->shape[0] = 12;
}
static void up_transposed(draft *d)
{
    tensor(d, "in.w_up")->shape[1] = 2, tensor(d, "in.w_up")->shape[2] = 3;
}
static void nan_weight(draft *d)
{
    spoil(d, "in.w_down", 5, NAN);
}
static void infinite_x(draft *d)
{
    spoil(d, "in.x", 3, -INFINITY);
}
static void nan_ema(draft *d)
{
    spoil(d, "in.ema", 1, NAN);
}
static void huge_logits(draft *d)
{
    spoil(d, "in.x", 0, 0.99 * (double)ET_REAL_MAX);
}
static void stranger(draft *d)
{
    tensor(d, "fwd.y")->name = "fwd.z";
}
static void stranger_input(draft *d)
{
    tensor(d, "in.ema")->name = "in.bias";
}

static void noise_without_profile(draft *d)
{
    tensor(d, "fwd.y")->name = "noise.fwd.y";
}
static void noise_of_a_mask(draft *d)
{
    tensor(d, "fwd.y")->name = "noise.route.mask";
}
static void noise_of_an_input(draft *d)
{
    tensor(d, "fwd.y")->name = "noise.in.ema";
}
static void bad_profile(draft *d)
{
    strcpy(d->metadata[5][0], "profile"), strcpy(d->metadata[5][1], "{\"name\": \"p\"}");
}

static void x_of_integers(draft *d)
{
    et_tensor_out *t = tensor(d, "in.x");
    t->dtype = ET_I32;
    t->source = ET_FROM_I32;
    t->values = bad_values;
}

static void ema_without_updates(draft *d)
{
    char *json = metadata(d, "case", 1), *at = strstr(json, "\"ema_updates\": 1");
    at[strlen("\"ema_updates\": ")] = '0';
}

static void case_of_other_size(draft *d)
{
    char *json = metadata(d, "case", 1), *at = strstr(json, "\"d_model\": 2");
    at[strlen("\"d_model\": ")] = '4';
}

static const struct {
    void (*change)(draft *);
    et_status status;
    const char *message; /* after the file's name */
} bad[] = {
    {no_format, ET_EINVAL,
     "not a bundle of this version: metadata 'format' is '(absent)', must be 'etref-bundle'"},
    {other_format, ET_EINVAL,
     "not a bundle of this version: metadata 'format' is 'pt', must be 'etref-bundle'"},
    {model_format, ET_EINVAL,
     "not a bundle of this version: metadata 'format' is 'etref-model-witness', must be "
     "'etref-bundle'"},
    {later_version, ET_EINVAL,
     "not a bundle of this version: metadata 'version' is '2', must be '1'"},
    {no_case, ET_EINVAL, "metadata has no 'case'; a bundle must bring its case"},
    {case_is_no_json, ET_EINVAL,
     "line 1, column 1: cannot be read as JSON: string or '}' expected near end of file"},
    {case_is_empty, ET_EINVAL,
     "name is missing; allowed: 1 to 63 letters, digits, '-', '_', '.', the first a letter or "
     "digit"},
    {layout_word, ET_EINVAL, "metadata 'layout' is 'tile:4', must be block:1 to block:65536"},
    {layout_zero, ET_EINVAL, "metadata 'layout' is 'block:0', must be block:1 to block:65536"},
    {layout_huge, ET_EINVAL,
     "metadata 'layout' is 'block:99999999999999999999', must be block:1 to block:65536"},
    {layout_tail, ET_EINVAL, "metadata 'layout' is 'block:8x', must be block:1 to block:65536"},
    {no_x, ET_EINVAL, "tensor 'in.x' is missing; its case needs it"},
    {no_dy, ET_EINVAL, "tensor 'in.dy' is missing; its case needs it"},
    {no_ema, ET_EINVAL, "tensor 'in.ema' is missing; its case needs it"},
    {no_shared, ET_EINVAL, "tensor 'in.shared_down' is missing; its case needs it"},
    {x_misshaped, ET_EINVAL, "tensor 'in.x' has shape [2,6], its case says [6,2]"},
    {x_flat, ET_EINVAL, "tensor 'in.x' has shape [12], its case says [6,2]"},
    {up_transposed, ET_EINVAL, "tensor 'in.w_up' has shape [2,2,3], its case says [2,3,2]"},
    {x_of_integers, ET_EINVAL, "tensor 'in.x' has type I32, must be F64, F32, BF16 or F16"},
    {nan_weight, ET_EINVAL, "case 'b': in.w_down[5] = nan; allowed: finite numbers"},
    {infinite_x, ET_EINVAL, "case 'b': in.x[3] = -inf; allowed: finite numbers"},
    {nan_ema, ET_EINVAL, "case 'b': in.ema[1] = nan; allowed: finite numbers"},
    {stranger, ET_EINVAL, "tensor 'fwd.z' is not one of a bundle; 'etref list tensors' shows them"},
    {noise_without_profile, ET_EINVAL,
     "tensor 'noise.fwd.y' is there, but metadata 'profile' is not; a bundle with noise must say "
     "whose"},
    {noise_of_a_mask, ET_EINVAL,
     "tensor 'noise.route.mask' is not one of a bundle; 'etref list tensors' shows them"},
    {noise_of_an_input, ET_EINVAL,
     "tensor 'noise.in.ema' is not one of a bundle; 'etref list tensors' shows them"},
    {bad_profile, ET_EINVAL, NULL}, /* in the words of test_profile */
    {stranger_input, ET_EINVAL, "tensor 'in.bias' does not belong to its case"},
    {case_of_other_size, ET_EINVAL, "tensor 'in.x' has shape [6,2], its case says [6,4]"},
    {ema_without_updates, ET_EINVAL, NULL}, /* the message holds a drawn number */
    {huge_logits, ET_OK, NULL},             /* opens; the step itself refuses it, see below */
};

enum { BAD = sizeof bad / sizeof *bad };

static void write_draft(const draft *d)
{
    const char *words[17];
    size_t used = 0;
    for (size_t i = 0; i < 8; i++)
        for (int part = 0; part < 2 && d->metadata[i][0][0]; part++)
            words[used++] = d->metadata[i][part];
    words[used] = NULL;
    ck_assert_int_eq(et_tensor_file_write(path, d->tensors, d->count, words, NULL), ET_OK);
}

static void make_draft(draft *d, const et_step *s)
{
    char *json;
    *d =
        (draft){.metadata = {
                    {"format", "etref-bundle"}, {"version", "1"}, {"case", ""}, {"producer", "x"}}};
    d->count = et_step_tensors(s, true, d->tensors);
    ck_assert_int_eq(et_case_print(&json, &s->c, NULL), ET_OK);
    strcpy(metadata(d, "case", 1), json);
    free(json);
}

START_TEST(bad_bundles_are_refused)
{
    et_step good, opened;
    et_tensor_file file;
    et_error error = {""};
    draft d;
    make_step(&good, good_case);
    make_draft(&d, &good);
    bad[_i].change(&d);
    write_draft(&d);
    int descriptors = open_descriptors();
    et_status status = et_bundle_open(&file, &opened, path, 0, &error);
    ck_assert_msg(status == bad[_i].status, "row %d: %s: %s", _i, et_status_name(status),
                  error.text);
    if (bad[_i].message) {
        size_t at = strlen(path) + 2;
        bool named = strncmp(error.text, path, at - 2) == 0;
        ck_assert_str_eq(named ? error.text + at : error.text, bad[_i].message);
    }
    if (status == ET_OK) {
        et_step_free(&opened);
        et_tensor_file_close(&file);
    }
    ck_assert_int_eq(open_descriptors(), descriptors);
    et_step_free(&good);
}
END_TEST

/* Writes the step's inputs in 64 bits, under the step's own case, and opens that as a bundle. */
static et_status open_inputs_of(const et_step *s, et_error *error)
{
    et_tensor_out tensors[ET_MAX_STEP_TENSORS];
    et_tensor_file file;
    et_step opened;
    char *json;
    ck_assert_int_eq(et_case_print(&json, &s->c, NULL), ET_OK);
    const char *metadata[] = {"format", "etref-bundle", "version", "1", "case", json, NULL};
    size_t count = et_step_tensors(s, false, tensors);
    for (size_t i = 0; i < count; i++) tensors[i].dtype = ET_F64;
    ck_assert_int_eq(et_tensor_file_write(path, tensors, count, metadata, NULL), ET_OK);
    et_status status = et_bundle_open(&file, &opened, path, 0, error);
    if (status == ET_OK) {
        et_step_free(&opened);
        et_tensor_file_close(&file);
    }
    free(json);
    ck_assert_int_eq(unlink(path), 0);
    return status;
}

/* Inputs that the case's precision does not hold: neither written, where they would be rounded and
 * contradict what was computed from them, nor taken from a file. */
START_TEST(inputs_finer_than_the_precision_are_refused)
{
    et_case c;
    et_step s;
    et_error error = {""};
    ck_assert_int_eq(et_case_parse(&c, good_case, strlen(good_case), "test", NULL), ET_OK);
    c.precision = ET_BF16;
    ck_assert_int_eq(et_step_create(&s, &c, 0, NULL), ET_OK);
    ck_assert_int_eq(et_step_draw_inputs(&s, NULL), ET_OK);
    ck_assert_msg(open_inputs_of(&s, &error) == ET_OK, "%s", error.text);
    et_real was = s.in.down[4];
    const struct {
        et_real value;
        const char *remedy;
    } finer[] = {{(et_real)(1 + 0x1p-30), "set precision to f64"},
                 {(et_real)(1 + 0x1p-8), "set precision to f32"}};
    for (size_t i = sizeof(et_real) == sizeof(float); i < 2; i++) {
        s.in.down[4] = finer[i].value;
        ck_assert_int_eq(open_inputs_of(&s, &error), ET_EINVAL);
        ck_assert_msg(strstr(error.text, "in.w_down[4] = 1.0") != NULL &&
                          strstr(error.text, finer[i].remedy) != NULL,
                      "%s", error.text);
    }
    ck_assert_int_eq(et_step_run(&s, ET_PLAIN, NULL, NULL, NULL), ET_OK);
    ck_assert_int_eq(et_bundle_write(path, &s, false, &error), ET_EINVAL);
    ck_assert_msg(strstr(error.text, "set precision to f32") != NULL, "%s", error.text);
    ck_assert_int_eq(et_bundle_write_noise(path, &s, false, et_profile_at(0), &s, NULL, NULL, &error),
                     ET_EINVAL);
    ck_assert_int_eq(entries_in_folder(), 0);
    s.in.down[4] = was;
    ck_assert_int_eq(et_bundle_write(path, &s, false, &error), ET_OK);
    et_step_free(&s);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("bad bundles");
    TCase *files = add_case(suite, "files");
    tcase_add_checked_fixture(files, make_folder, remove_folder);
    tcase_add_test(files, inputs_finer_than_the_precision_are_refused);
    tcase_add_loop_test(files, bad_bundles_are_refused, 0, BAD);
    return run_suite(suite);
}
