/* test_model_steps.c: layers of the model around the experts, and optimisers, as cases: computed, stored, judged, explained.
 *
 * That they are right is the business of test_model_layers and test_gpt_witness; and PyTorch's own layers are judged by
 * tools/examples/model_layers_pytorch.py.
 */
#include "tests/check_main.h"

#ifndef ETREF_F32

#include "ref/step/decide.h"
#include "ref/diagnose/mutant.h"
#include "tests/honest.h"
#define SUITE "model.json"
#include "tests/one_suite.h"

#include <unistd.h>

/* Honest: a replica of the case under a profile, that no bar has seen. */
static void make_honest_case(honest *k, const et_case *c, const char *profile)
{
    draw_case(&k->golden, c);
    make_kernel(k, profile, 3);
}

START_TEST(a_bundle_is_read_as_written)
{
    for (size_t i = 0; i < cases; i++) {
        char path[] = "/tmp/etref-model-XXXXXX";
        et_tensor_file file;
        et_step golden, again;
        et_comparison *list;
        et_error error;
        size_t count;
        close(mkstemp(path));
        draw_case(&golden, &suite[i]);
        ck_assert_int_eq(et_step_run(&golden, ET_PLAIN, NULL, NULL, NULL), ET_OK);
        ck_assert_msg(et_bundle_write(path, &golden, false, &error) == ET_OK, "%s", error.text);
        ck_assert_msg(et_bundle_open(&file, &again, path, 0, &error) == ET_OK, "%s", error.text);
        ck_assert_int_eq(et_step_run(&again, ET_PLAIN, NULL, NULL, NULL), ET_OK);
        ck_assert_int_eq(et_bundle_compare(&list, &count, &file, &again, NULL), ET_OK);
        ck_assert_uint_ge(count, 2);
        for (size_t t = 0; t < count; t++)
            ck_assert_msg(list[t].pass && list[t].different == 0, "%s: %s", suite[i].name,
                          list[t].name);
        free(list);
        et_tensor_file_close(&file);
        et_step_free(&again);
        et_step_free(&golden);
        unlink(path);
    }
}
END_TEST

START_TEST(every_input_must_be_there)
{
    for (size_t i = 0; i < cases; i++) {
        et_step whole;
        draw_case(&whole, &suite[i]);
        for (et_tensor_id id = ET_FIRST_INPUT; id <= ET_LAST_INPUT; id++) {
            et_step s = et_step_like(&whole);
            et_error error;
            const void *none = NULL;
            if (!et_tensor_values(&s, id)) continue;
            memcpy((char *)&s + et_tensors[id].offset, &none, sizeof none);
            ck_assert_int_eq(et_step_run(&s, ET_PLAIN, NULL, NULL, &error), ET_EINVAL);
            ck_assert_msg(strstr(error.text, "no inputs") != NULL, "%s", error.text);
            et_step_free(&s);
        }
        et_step_free(&whole);
    }
}
END_TEST

/* The engines differ by rounding alone. */
START_TEST(engines_agree)
{
    for (size_t i = 0; i < cases; i++) {
        et_step plain, fast;
        draw_case(&plain, &suite[i]);
        draw_case(&fast, &suite[i]);
        ck_assert_int_eq(et_step_run(&plain, ET_PLAIN, NULL, NULL, NULL), ET_OK);
        ck_assert_int_eq(et_step_run(&fast, ET_BLAS, NULL, NULL, NULL), ET_OK);
        for (et_tensor_id id = ET_LAST_INPUT + 1; id < ET_TENSORS; id++) {
            et_tensor_out a = et_tensor_view(&plain, id), b = et_tensor_view(&fast, id);
            double largest = 0, error = 0;
            ck_assert((a.values == NULL) == (b.values == NULL));
            for (size_t k = 0; a.values && k < et_tensor_count(&a); k++) {
                largest = fmax(largest, fabs(et_tensor_element(&a, k)));
                error = fmax(error, fabs(et_tensor_element(&a, k) - et_tensor_element(&b, k)));
            }
            ck_assert_msg(error <= 1e-13 * largest, "%s: %s", suite[i].name, a.name);
        }
        et_step_free(&plain);
        et_step_free(&fast);
    }
}
END_TEST

/* Rounded by chance, and to nearest; in none of the profiles does one stand out. */
START_TEST(honest_kernels_pass)
{
    static const char *const profiles[] = {"f32", "bf16", "f16", "tf32", "bf16-low", "f64"};
    const char *profile = profiles[_i];
    for (size_t i = 0; i < cases; i++) {
        honest k;
        make_honest_case(&k, &suite[i], profile);
        for (int nearest = 0; nearest < 2; nearest++) {
            if (nearest) emulate(&k, k.profile, ET_ROUND_NEAREST, 3);
            et_verdict v = judge_by(&k, (et_verify_options){.explain = false});
            ck_assert_msg(v.outcome != ET_MISMATCH, "%s, %s: %s", suite[i].name, profile, v.line);
            et_verdict_free(&v);
        }
        free_honest(&k);
    }
}
END_TEST

/* The suite's case of that name, and a kernel in f32. */
static void make_f32_kernel(honest *k, const char *name)
{
    size_t i = 0;
    while (i < cases && strcmp(suite[i].name, name) != 0) i++;
    ck_assert_uint_lt(i, cases);
    make_honest_case(k, &suite[i], "f32");
}

static void expect_no_mismatch(honest *k)
{
    et_verdict v = judge_by(k, (et_verify_options){.explain = false});
    ck_assert_msg(v.outcome != ET_MISMATCH, "%s", v.line);
    et_verdict_free(&v);
    free_honest(k);
}

/* D = do o and dP = do v are one number where P = 1, as for the first token, but not always to the bit: then dS is no 0. */
START_TEST(a_kernel_that_keeps_its_output_passes)
{
    honest k;
    make_f32_kernel(&k, "attention-sharp");
    const et_step *s = &k.golden;
    size_t e = 16;
    double *dqkv = values_of(&k, "bwd.qkv"), dP = 0;
    for (size_t c = 0; c < e; c++) dP += (double)s->in.dy[c] * (double)s->model.qkv[64 + c];
    double dS = ldexp(1, ilogb(dP) - 23) / 4; /* an ulp of f32, times 1/sqrt(e) */
    for (size_t c = 0; c < e; c++) dqkv[c] = in_bits(dS * (double)s->model.qkv[32 + c], 24);
    expect_no_mismatch(&k);
}
END_TEST

/* 1 - b^t from a rounded b and a rounded b^t, as where they are tensors of f32. */
START_TEST(corrections_in_few_bits_pass)
{
    honest k;
    et_case parsed;
    const char *json =
        "{'name':'young','layer':'adamw','tokens':24,'d_model':32,'step':4,'beta2':0.999,"
        "'precision':'f32','input':{'source':'normal','seed':13}}";
    ck_assert_int_eq(parse_quoted(&parsed, json, NULL), ET_OK);
    make_honest_case(&k, &parsed, "f32");
    const et_step_model *m = &k.golden.model;
    const et_case *c = &k.golden.c;
    double t = (double)c->step + 1, *w = values_of(&k, "state.w");
    double first = 1 - in_bits(pow(in_bits(c->beta1, 24), t), 24);
    double second = 1 - in_bits(pow(in_bits(c->beta2, 24), t), 24);
    for (size_t i = 0; i < c->tokens * c->d_model; i++) {
        double root = in_bits(sqrt(in_bits((double)m->new_second[i] / second, 24)), 24);
        double step = in_bits((double)m->new_first[i] / first, 24) / in_bits(root + c->eps, 24);
        double kept = in_bits((double)m->weight[i] * in_bits(1 - c->rate * c->decay, 24), 24);
        w[i] = in_bits(kept - in_bits(c->rate * in_bits(step, 24), 24), 24);
    }
    expect_no_mismatch(&k);
}
END_TEST

/* z (1/cap), 1/cap being a number of f32. */
START_TEST(a_reciprocal_of_the_cap_passes)
{
    honest k;
    make_f32_kernel(&k, "cross-entropy");
    double *l = values_of(&k, "fwd.vocab_logits"), cap = k.golden.c.softcap;
    for (size_t i = 0; i < elements_of(tensor_of(&k, "fwd.vocab_logits")); i++) {
        double z = cap * atanh(l[i] / cap);
        l[i] = in_bits(cap * in_bits(tanh(in_bits(z * in_bits(1 / cap, 24), 24)), 24), 24);
    }
    keep_only(&k, "fwd.vocab_logits", "fwd.vocab_logits");
    expect_no_mismatch(&k);
}
END_TEST

/* The step that a mistake makes. */
static et_step mistaken(const honest *k, const et_hypothesis *what, size_t variant)
{
    et_step wrong;
    ck_assert_int_eq(et_step_take_like(&wrong, &k->golden, NULL), ET_OK);
    wrong.engine = ET_BLAS;
    ck_assert_int_eq(what->layer(&wrong, &k->golden, variant, NULL), ET_OK);
    wrong.in = k->golden.in;
    return wrong;
}

static bool is_named(const et_verdict *v, const char *name)
{
    size_t i = 0;
    while (i < v->explanation_count && strcmp(v->explanations[i].name, name) != 0) i++;
    return i < v->explanation_count;
}

/* A kernel with a mistake, whose numbers are then stored in the profile's formats. */
static bool is_caught_and_named(honest *k, const et_hypothesis *what, size_t variant)
{
    et_step wrong = mistaken(k, what, variant);
    for (size_t t = 0; t < k->count; t++) {
        et_tensor_out *own = &k->tensors[t];
        et_tensor_id id = et_tensor_find(own->name);
        const et_tensor_out other = et_tensor_view(&wrong, id);
        memcpy((void *)(uintptr_t)own->values, other.values, elements_of(own) * sizeof(double));
        coarsen(k, own->name, 1, et_place_bits(k->profile, et_tensors[id].place));
    }
    et_verdict v = judge_by(k, (et_verify_options){.explain = true});
    bool caught = v.outcome == ET_MISMATCH;
    ck_assert_msg(!caught || is_named(&v, what->doc.name), "%s in %s, variant %zu, %s: %s",
                  what->doc.name, k->golden.c.name, variant, k->profile->name, v.line);
    et_verdict_free(&v);
    et_step_free(&wrong);
    return caught;
}

static bool is_of_model(const et_hypothesis *what)
{
    return strcmp(what->doc.stage, "model") == 0;
}

/* Every form of every mistake is caught in one of the cases at least, and where it is caught it is named. (An eps may be too
 * small for any case.) */
START_TEST(mistakes_are_named)
{
    enum { MOST = 1000 };
    static const char *const profiles[] = {"f32", "bf16"};
    static bool caught[2][MOST][ET_MAX_VARIANTS];
    const et_hypothesis *what;
    for (size_t i = 0; i < cases; i++) {
        honest k;
        make_honest_case(&k, &suite[i], profiles[_i]);
        for (size_t h = 0; (what = et_hypothesis_row(h)) != NULL; h++)
            for (size_t variant = 0; is_of_model(what) && what->applies(&k.golden) &&
                                     et_hypothesis_form(what, variant);
                 variant++)
                caught[_i][h][variant] |= is_caught_and_named(&k, what, variant);
        free_honest(&k);
    }
    for (size_t h = 0; (what = et_hypothesis_row(h)) != NULL; h++)
        for (size_t variant = 0; is_of_model(what) && et_hypothesis_form(what, variant);
             variant++)
            ck_assert_msg(caught[_i][h][variant] || strstr(what->doc.name, "eps"),
                          "%s, variant %zu, %s: accepted everywhere", what->doc.name, variant,
                          profiles[_i]);
}
END_TEST

/* A tensor times 1.375, which no mistake makes, is described where nothing explains it: by its name, and by the factor where
 * every one of many numbers fails. */
START_TEST(what_no_mistake_makes_is_described)
{
    size_t described = 0, factors = 0;
    for (size_t i = 0; i < cases; i++) {
        honest k;
        make_honest_case(&k, &suite[i], "bf16");
        for (size_t t = 0; t < k.count; t++) {
            double *values = (double *)(uintptr_t)k.tensors[t].values;
            size_t count = elements_of(&k.tensors[t]);
            for (size_t e = 0; e < count; e++) values[e] *= 1.375;
            et_verdict v = judge_by(&k, (et_verify_options){.explain = true});
            for (size_t e = 0; e < count; e++) values[e] /= 1.375;
            if (v.outcome == ET_MISMATCH && v.explanation_count == 0 && !v.passes_under) {
                ck_assert_msg(strstr(v.residual, k.tensors[t].name), "%s, %s: '%s'", suite[i].name,
                              k.tensors[t].name, v.residual);
                described++;
                factors += strstr(v.residual, "the right ones times 1.37") != NULL;
            }
            et_verdict_free(&v);
        }
        free_honest(&k);
    }
    ck_assert_uint_ge(described, cases);
    ck_assert_uint_ge(2 * factors, described);
}
END_TEST

int main(void)
{
    Suite *all = suite_create("model_steps");
    TCase *tests = add_case(all, "steps");
    tcase_add_unchecked_fixture(tests, read_cases, free_cases);
    tcase_add_test(tests, a_bundle_is_read_as_written);
    tcase_add_test(tests, every_input_must_be_there);
    tcase_add_test(tests, engines_agree);
    bool all_profiles = getenv("ETREF_CAMPAIGN") != NULL;
    tcase_add_loop_test(tests, honest_kernels_pass, 0, all_profiles ? 6 : 2);
    tcase_add_test(tests, a_kernel_that_keeps_its_output_passes);
    tcase_add_test(tests, corrections_in_few_bits_pass);
    tcase_add_test(tests, a_reciprocal_of_the_cap_passes);
    tcase_add_test(tests, what_no_mistake_makes_is_described);
    tcase_add_loop_test(tests, mistakes_are_named, 0, all_profiles ? 2 : 1);
    return run_suite(all);
}

#else

int main(void)
{
    return EXIT_SUCCESS; /* a float build does not judge */
}

#endif
