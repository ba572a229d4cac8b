/* test_bundle.c: golden bundles: what is written comes back, and what others computed agrees. */
#include "tests/good_bundle.h"
#include "tests/scratch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- verifying ---- */

/* Verifies a file with `engine`; returns how many tensors it compared, all of which must pass. */
static size_t verify(const char *name, et_engine engine, double *largest)
{
    et_tensor_file file;
    et_step s;
    et_comparison *list;
    size_t count;
    et_error error = {""};
    ck_assert_msg(et_bundle_open(&file, &s, name, 0, &error) == ET_OK, "%s", error.text);
    ck_assert_msg(et_step_run(&s, engine, NULL, NULL, &error) == ET_OK, "%s", error.text);
    ck_assert_int_eq(et_bundle_compare(&list, &count, &file, &s, &error), ET_OK);
    for (size_t i = 0; i < count; i++) {
        const et_comparison *r = &list[i];
        ck_assert_msg(r->pass, "%s: %s: element %zu: stored %.17g, recomputed %.17g", name, r->name,
                      r->worst, r->stored, r->recomputed);
        if (r->max_error > 0 && r->max_error / r->largest > *largest)
            *largest = r->max_error / r->largest;
    }
    free(list);
    et_step_free(&s);
    et_tensor_file_close(&file);
    return count;
}

#ifndef ETREF_F32
static const char *const released_files[] = {"ec-batch",
                                             "ec-fine-grained",
                                             "ec-noshared",
                                             "ec-sequence-pool",
                                             "ec-softmax-tokens",
                                             "et-cold-capacity",
                                             "et-eval",
                                             "et-relu-gate",
                                             "et-softmax-shared-anchor",
                                             "et-train-capacity",
                                             "et-train-warm",
                                             "tc-aux-error",
                                             "tc-aux",
                                             "tc-lossfree",
                                             "tc-plain",
                                             "tc-softmax",
                                             "tc-top2-noshared",
                                             "tc-top3-fine"};

static const char *const autograd_files[] = {"autograd-aux-tc-global",
                                             "autograd-aux-tc-micro",
                                             "autograd-fanout-ec",
                                             "autograd-fanout-et-anchor",
                                             "autograd-fanout-et-noshared",
                                             "autograd-lossfree-tc-global",
                                             "autograd-micro-ec-pools",
                                             "autograd-micro-et-capacity",
                                             "autograd-out-ec",
                                             "autograd-out-ec-fanout",
                                             "autograd-out-ec-fine",
                                             "autograd-out-ec-noshared",
                                             "autograd-out-et",
                                             "autograd-out-et-eval",
                                             "autograd-out-et-fine-capacity",
                                             "autograd-out-et-noshared",
                                             "autograd-out-et-warmup",
                                             "autograd-out-tc",
                                             "autograd-paper-et",
                                             "autograd-proportional-tc",
                                             "autograd-softmax-et",
                                             "autograd-softmax-tokens-et-micro",
                                             "autograd-sum-et",
                                             "autograd-sum-tc",
                                             "autograd-ties-ec",
                                             "autograd-ties-et-capacity",
                                             "autograd-ties-et-relu",
                                             "autograd-ties-et-strict",
                                             "autograd-ties-tc",
                                             "autograd-warmup-over-et",
                                             "autograd-z-loss-et",
                                             "autograd-z-loss-tc-micro"};

/* Bundles that others computed: below 1e-13 of each tensor's largest element. */
static void others_agree(const char *who, const char *const *files, size_t count, size_t tensors)
{
    const char *data = getenv("ETREF_DATA");
    double largest = 0;
    for (size_t i = 0; i < count; i++) {
        char name[4200];
        snprintf(name, sizeof name, "%s/witness/%s.safetensors", data ? data : "data", files[i]);
        ck_assert_uint_ge(verify(name, ET_PLAIN, &largest), tensors);
    }
    printf("%s: largest error %.2g of a tensor's largest element\n", who, largest);
    ck_assert(largest > 0 && largest < 1e-13); /* 0 would mean that nothing was compared */
}

/* The released PyTorch code is the first witness. */
START_TEST(the_released_code_agrees)
{
    size_t count = sizeof released_files / sizeof *released_files;
    others_agree("released code", released_files, count, 8);
}
END_TEST

/* tests/witness/autograd.py: the switches on which no bundle of the released code bears. */
START_TEST(autograd_agrees)
{
    size_t count = sizeof autograd_files / sizeof *autograd_files;
    others_agree("autograd", autograd_files, count, 17);
}
END_TEST
#endif

START_TEST(what_is_written_comes_back)
{
    et_step s;
    double largest = 0;
    et_tensor_out tensors[ET_MAX_STEP_TENSORS];
    make_step(&s, good_case);
    s.block = 0;
    for (int lean = 0; lean < 2; lean++) {
        ck_assert_int_eq(et_bundle_write(path, &s, lean, NULL), ET_OK);
        size_t inputs = 6, all = et_step_tensors(&s, lean, tensors);
        inputs += s.in.shared_up != NULL ? 2 : 0;
        ck_assert_uint_eq(verify(path, ET_PLAIN, &largest), all - inputs);
        ck_assert(largest == 0);
    }
    et_step_free(&s);
}
END_TEST

#ifndef ETREF_F32
static void scale(size_t count, double factor, et_real *values)
{
    for (size_t i = 0; i < count; i++) values[i] *= (et_real)factor;
}

/* Finite inputs of which something is made that is not: a golden with NaN would not even equal itself. */
START_TEST(what_is_no_number_is_not_written)
{
    static const struct {
        double x, dy;
        const char *message;
    } scales[] = {{0x1p600, 1, "fwd.slot_act["}, {0x1p100, 0x1p1000, "bwd."}};
    et_step s;
    et_error error;
    for (size_t k = 0; k < 2; k++) {
        draw_step(&s, good_case);
        scale(s.c.tokens * s.c.d_model, scales[k].x, s.in.x);
        scale(s.c.tokens * s.c.d_model, scales[k].dy, s.in.dy);
        ck_assert_int_eq(et_step_run(&s, ET_PLAIN, NULL, NULL, &error), ET_OK);
        ck_assert_int_eq(et_bundle_write(path, &s, false, &error), ET_EINVAL);
        ck_assert_msg(strstr(error.text, scales[k].message) && strstr(error.text, "scale in.*"),
                      "%s", error.text);
        ck_assert_int_eq(et_bundle_write_noise(path, &s, true, et_profile_find("bf16"), &s, NULL, NULL, &error),
                         ET_EINVAL);
        ck_assert_int_eq(entries_in_folder(), 0);
        et_step_free(&s);
    }
}
END_TEST
#endif

/* The table of documentation and the tensors of a step name the same things. */
START_TEST(every_tensor_is_documented)
{
    et_step s;
    et_tensor_out tensors[ET_MAX_STEP_TENSORS];
    make_step(&s, good_case);
    size_t count = et_step_tensors(&s, false, tensors), found = 0;
    for (size_t i = 0; i < count; i++) {
        const et_tensor_doc *doc;
        for (size_t j = 0; (doc = et_tensor_doc_at(j)) != NULL; j++)
            found += strcmp(doc->name, tensors[i].name) == 0;
        size_t elements = 1;
        for (size_t j = 0; j < tensors[i].rank; j++) elements *= tensors[i].shape[j];
        ck_assert_msg(elements > 0, "%s is empty", tensors[i].name);
    }
    ck_assert_uint_eq(found, count);
    et_step_free(&s);
}
END_TEST

/* ---- noise ---- */

static et_step noise_step, noise_variance; /* what bundles with noise are made of */
static const et_profile *noise_profile;

static void write_noise(bool lean)
{
    et_error error = {""};
    noise_profile = et_profile_find("bf16");
    make_step(&noise_step, good_case);
    ck_assert_msg(et_step_noise(&noise_variance, &noise_step, noise_profile, NULL, NULL, &error) ==
                      ET_OK,
                  "%s", error.text);
    ck_assert_msg(et_bundle_write_noise(path, &noise_step, lean, noise_profile, &noise_variance,
                                        NULL, NULL, &error) == ET_OK,
                  "%s", error.text);
}

static void free_noise(void)
{
    et_step_free(&noise_variance);
    et_step_free(&noise_step);
}

/* Every computed real tensor of the file has its noise, integers and inputs have none, and the
 * values are the square roots of et_step_noise's in F32. */
START_TEST(the_noise_is_that_of_the_step)
{
    et_tensor_file file;
    et_step variance;
    et_tensor_out tensors[ET_MAX_STEP_TENSORS];
    write_noise(_i);
    ck_assert_int_eq(et_step_noise(&variance, &noise_step, noise_profile, NULL, NULL, NULL), ET_OK);
    ck_assert_int_eq(et_tensor_file_open(&file, path, NULL), ET_OK);
    size_t count = et_step_tensors(&variance, _i, tensors), noisy = 0, positive = 0;
    for (size_t k = 0; k < count; k++) {
        char name[64];
        double stored[64];
        snprintf(name, sizeof name, "noise.%s", tensors[k].name);
        const et_tensor_info *t = et_tensor_file_find(&file, name);
        bool real = tensors[k].source == ET_FROM_F64 || tensors[k].source == ET_FROM_F32;
        bool wanted = real && strncmp(tensors[k].name, "in.", 3) != 0;
        ck_assert_msg((t != NULL) == wanted, "%s", name);
        if (t == NULL) continue;
        ck_assert(t->dtype == ET_F32 && t->count <= 64);
        ck_assert_int_eq(et_tensor_file_read(&file, t, 0, t->count, stored, NULL), ET_OK);
        const et_real *values = tensors[k].values;
        for (size_t i = 0; i < t->count; i++) {
            double want = (double)(float)(et_real)sqrt((double)values[i]);
            ck_assert_msg(stored[i] == want, "%s[%zu]: %.9g, not %.9g", name, i, stored[i], want);
            positive += stored[i] > 0;
        }
        noisy++;
    }
    ck_assert_uint_gt(noisy, 10);
    ck_assert_uint_gt(positive, 20);
    et_tensor_file_close(&file);
    et_step_free(&variance);
    free_noise();
}
END_TEST

START_TEST(a_bundle_with_noise_verifies)
{
    double largest = 0;
    et_tensor_out tensors[ET_MAX_STEP_TENSORS];
    write_noise(_i);
    size_t all = et_step_tensors(&noise_step, _i, tensors);
    ck_assert_uint_gt(verify(path, ET_PLAIN, &largest), all);
    ck_assert(largest == 0);
#ifndef ETREF_F32
    ck_assert_uint_gt(verify(path, ET_BLAS, &largest), all);
#endif
    free_noise();
}
END_TEST

/* The fourth deviation of y in the file becomes `value`. */
static void store_deviation(float value)
{
    et_tensor_file file;
    ck_assert_int_eq(et_tensor_file_open(&file, path, NULL), ET_OK);
    const et_tensor_info *t = et_tensor_file_find(&file, "noise.fwd.y");
    ck_assert_ptr_nonnull(t);
    long place = (long)(file.data_start + t->offset + 3 * sizeof(float));
    et_tensor_file_close(&file);
    FILE *bytes = fopen(path, "r+b");
    ck_assert_ptr_nonnull(bytes);
    ck_assert_int_eq(fseek(bytes, place, SEEK_SET), 0);
    ck_assert_uint_eq(fwrite(&value, sizeof value, 1, bytes), 1);
    ck_assert_int_eq(fclose(bytes), 0);
}

/* What cannot be a deviation is found, and under the name of the noise. Any other number may be one. */
START_TEST(changed_noise_is_found)
{
    static const struct {
        float value;
        bool is_one;
    } changes[] = {{-0x1p-20f, false}, {-INFINITY, false}, {NAN, false},
                   {0x1p-20f, true},   {0, true},          {INFINITY, true}};
    write_noise(false);
    for (size_t k = 0; k < sizeof changes / sizeof *changes; k++) {
        et_tensor_file file;
        et_step s;
        et_comparison *list;
        size_t count, failed = 0;
        store_deviation(changes[k].value);
        ck_assert_int_eq(et_bundle_open(&file, &s, path, 0, NULL), ET_OK);
        ck_assert_int_eq(et_step_run(&s, ET_PLAIN, NULL, NULL, NULL), ET_OK);
        ck_assert_int_eq(et_bundle_compare(&list, &count, &file, &s, NULL), ET_OK);
        for (size_t i = 0; i < count; i++) {
            if (list[i].pass) continue;
            failed++;
            ck_assert_str_eq(list[i].name, "noise.fwd.y");
            ck_assert_str_eq(list[i].problem, "no deviation");
        }
        ck_assert_uint_eq(failed, !changes[k].is_one);
        free(list);
        et_step_free(&s);
        et_tensor_file_close(&file);
    }
    free_noise();
}
END_TEST

#ifndef ETREF_F32 /* where the values themselves would vanish */
/* Deviations below F32's smallest number stay above 0: only what must be exact is 0. */
START_TEST(noise_too_small_for_its_type_is_not_exactness)
{
    static const char *const json =
        "{\"name\": \"b\", \"layer\": \"dense\", \"tokens\": 2, \"d_model\": 2, \"d_expert\": 2}";
    et_case c;
    et_step s, variance;
    et_tensor_file file;
    double y[4];
    ck_assert_int_eq(et_case_parse(&c, json, strlen(json), "test", NULL), ET_OK);
    ck_assert_int_eq(et_step_create(&s, &c, 0, NULL), ET_OK);
    for (size_t i = 0; i < 4; i++) {
        s.in.x[i] = (et_real)(0.1 * (double)(i + 1)) * (et_real)1e-8;
        s.in.dy[i] = 1;
        s.in.up[i] = (et_real)0.3 * (et_real)1e-8;
        s.in.down[i] = (et_real)0.7e-4;
    }
    ck_assert_int_eq(et_step_run(&s, ET_PLAIN, NULL, NULL, NULL), ET_OK);
    const et_profile *p = et_profile_find("f64");
    ck_assert_int_eq(et_step_noise(&variance, &s, p, NULL, NULL, NULL), ET_OK);
    ck_assert_int_eq(et_bundle_write_noise(path, &s, false, p, &variance, NULL, NULL, NULL), ET_OK);
    et_step_free(&variance);
    ck_assert_int_eq(et_tensor_file_open(&file, path, NULL), ET_OK);
    const et_tensor_info *t = et_tensor_file_find(&file, "noise.fwd.y");
    ck_assert_int_eq(et_tensor_file_read(&file, t, 0, 4, y, NULL), ET_OK);
    for (size_t i = 0; i < 4; i++)
        ck_assert_msg(s.fwd.y[i] != 0 && y[i] == 0x1p-149, "%g %g", (double)s.fwd.y[i], y[i]);
    et_tensor_file_close(&file);
    et_step_free(&s);
}
END_TEST
#endif

/* The inputs are finite, their product is not: no mask can come of it. */
START_TEST(a_logit_that_overflows_is_an_error)
{
    et_case c;
    et_step s;
    et_error error = {""};
    ck_assert_int_eq(et_case_parse(&c, good_case, strlen(good_case), "test", NULL), ET_OK);
    ck_assert_int_eq(et_step_create(&s, &c, 0, NULL), ET_OK);
    s.in.x[2] = ET_REAL_MAX;
    s.in.router[0] = 4;
    ck_assert_int_eq(et_step_run(&s, ET_PLAIN, NULL, NULL, &error), ET_EINVAL);
    ck_assert_str_eq(error.text, "case 'b': the logit of token 1 for expert 0 is not finite; scale "
                                 "in.x or in.w_router down");
    et_step_free(&s);
}
END_TEST

/* A limit stops a case before its arrays are taken, and again when its slots are counted. */
START_TEST(memory_is_limited)
{
    et_case c;
    et_step s;
    et_error error = {""};
    ck_assert_int_eq(et_case_parse(&c, good_case, strlen(good_case), "test", NULL), ET_OK);
    ck_assert_int_eq(et_step_create(&s, &c, 100, &error), ET_ENOMEM);
    ck_assert_ptr_nonnull(strstr(error.text, "needs more than"));
    ck_assert_int_eq(et_step_create(&s, &c, 100 * sizeof(et_real), NULL), ET_OK);
    ck_assert_int_eq(et_step_draw_inputs(&s, NULL), ET_OK);
    ck_assert_int_eq(et_step_run(&s, ET_PLAIN, NULL, NULL, &error), ET_ENOMEM);
    et_step_free(&s);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("bundle");
    TCase *files = add_case(suite, "files"), *limits = add_case(suite, "limits");
    tcase_add_checked_fixture(files, make_folder, remove_folder);
    tcase_add_test(files, what_is_written_comes_back);
#ifndef ETREF_F32
    tcase_add_test(files, what_is_no_number_is_not_written);
#endif
    tcase_add_test(files, every_tensor_is_documented);
    tcase_add_loop_test(files, the_noise_is_that_of_the_step, 0, 2); /* whole and lean */
    tcase_add_loop_test(files, a_bundle_with_noise_verifies, 0, 2);
    tcase_add_test(files, changed_noise_is_found);
#ifndef ETREF_F32
    tcase_add_test(files, noise_too_small_for_its_type_is_not_exactness);
#endif
#ifndef ETREF_F32
    tcase_add_test(limits, the_released_code_agrees);
    tcase_add_test(limits, autograd_agrees);
#endif
    tcase_add_test(limits, a_logit_that_overflows_is_an_error);
    tcase_add_test(limits, memory_is_limited);
    return run_suite(suite);
}
