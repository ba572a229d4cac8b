/* test_candidates.c: are the emulated kernels what they claim to be?
 *
 *     rounding   of its own making, against dtype.c, which shares nothing with it
 *     kernels    in f64 each is the reference; in whole numbers each is exact, in every precision; under
 *                a short profile each stays as near as its roundings let it; what it shows fits the type
 *                that it says; double emulates float to the bit
 *
 * What is compared where a kernel's logits turn a close decision: the reference with the candidate's
 * own assignment.
 *
 * Left out: the verdict on these candidates (the campaign), and kernels at the paper's sizes.
 */
#include "tests/candidate_cases.h"
#include "tests/candidates/rounding.h"

#include <float.h>
#include <math.h>

/* ---- rounding ---- */

static const cd_format formats[] = {
    {.bits = 8, .emin = -126, .smallest = 0x1p-126, .largest = 0x1.fep127},
    {.bits = 11, .emin = -14, .smallest = 0x1p-14, .largest = 65504},
    {.bits = 24, .emin = -126, .smallest = 0x1p-126, .largest = 0x1.fffffep127}};
static const et_dtype types[] = {ET_BF16, ET_F16, ET_F32};

/* A number whose exponent is anything from below the format's subnormals to above its largest, or
 * near the middle between two of its numbers, where rounding is decided. */
static double draw_number(const cd_format *f, et_stream stream, uint64_t i)
{
    double m = 1 + et_uniform(stream, i, 0), u = et_uniform(stream, i, 1);
    int span = 2 - 2 * f->emin + f->bits + 4;
    int e = f->emin - f->bits - 2 + (int)(u * span);
    double steps = floor(m * ldexp(1, f->bits - 1)) + 0.5; /* between two */
    double tie = ldexp(steps, 1 - f->bits);
    double bent = i % 3 == 0 ? m : i % 3 == 1 ? tie : tie + 1e-9;
    return ldexp(i % 2 ? -bent : bent, e);
}

START_TEST(numbers_round_as_their_type_does)
{
    const cd_format *f = &formats[_i];
    et_stream stream = et_stream_open(SEED, "numbers");
    for (uint64_t i = 0; i < 60000; i++) {
        double v = draw_number(f, stream, i), want = et_round_to_dtype(v, types[_i]);
        double got = cd_round(f, v);
        ck_assert_msg(got == want, "%a gives %a, not %a", v, got, want);
        float single = (float)v;
        double of_single = et_round_to_dtype((double)single, types[_i]);
        double fast = f->emin == -126 ? (double)cd_round_short(f->bits, single)
                                      : (double)cd_round_narrow(f, single);
        ck_assert_msg(fast == of_single, "%a gives %a, not %a", (double)single, fast, of_single);
    }
}
END_TEST

START_TEST(truncation_goes_towards_zero)
{
    cd_format f = formats[_i];
    et_stream stream = et_stream_open(SEED, "truncated");
    f.truncate = true;
    for (uint64_t i = 0; i < 20000; i++) {
        double v = draw_number(&f, stream, i), got = cd_round(&f, v);
        double ulp = ldexp(1, (int)fmax(floor(log2(fabs(v))), f.emin) - f.bits + 1);
        bool inside = fabs(got) <= fabs(v) && got == et_round_to_dtype(got, types[_i]);
        ck_assert_msg(inside && (fabs(got) == f.largest || fabs(v) - fabs(got) < ulp),
                      "%a gives %a", v, got);
    }
}
END_TEST

START_TEST(what_is_flushed_is_zero)
{
    cd_format f = formats[_i];
    f.ftz = true;
    ck_assert(cd_round(&f, f.smallest * 0.75) == 0);
    ck_assert(cd_round(&f, -f.smallest) == -f.smallest);
    ck_assert(cd_round(&f, f.smallest * (1 - 0x1p-30)) ==
              f.smallest); /* rounded before it is small */
    ck_assert(isnan(cd_round(&f, (double)NAN)) && isinf(cd_round(&f, (double)INFINITY)));
}
END_TEST

/* ---- in double, every kernel is the reference ---- */

/* Of a tensor's largest element: what goldens are good to, see against_witness.h; in a float build as
 * many unit roundoffs. There logits are rounded, so orders among equal scores may differ. */
static const double reference_error = 1e-13 * (ET_UNIT_ROUNDOFF / 0x1p-53);
static const bool exact_orders = sizeof(et_real) == sizeof(double);

/* p(1-p) of a rounded p close to 1 has few digits, in any precision: so these two gradients have, too. */
static bool loses_digits(const cd_kernel *kernel, const et_step *golden, const char *name)
{
    bool sigmoid = golden->c.gate == ET_GATE_SIGMOID && kernel->slope_from_gate;
    return sigmoid && (!strcmp(name, "bwd.logits") || !strcmp(name, "bwd.w_router"));
}

static void assert_is_reference(const et_step *golden, const cd_kernel *kernel)
{
    cd_candidate c = run_kernel(golden, "f64", kernel);
    et_tensor_out want[ET_MAX_STEP_TENSORS];
    et_step reference;
    size_t given = 0;
    run_reference(&reference, golden, &c);
    size_t count = et_step_tensors(&reference, false, want);
    for (size_t i = 0; i < c.count; i++) {
        const et_tensor_out *got = &c.tensors[i], *w = find(want, count, got->name);
        ck_assert_msg(w != NULL, "%s: no %s", golden->c.name, got->name);
        given++;
        if (loses_digits(kernel, golden, got->name)) continue;
        if (begins(got->name, "route.topk") && !exact_orders) continue;
        distance d = measure(got, w);
        ck_assert_msg(d.largest <= (is_real(got) ? reference_error : 0), "%s, %s: %s is off by %g",
                      golden->c.name, kernel->name, got->name, d.largest);
    }
    for (size_t i = 0; i < count; i++) {
        const char *name = want[i].name;
        bool lacks = kernel->weight_on_act && strstr(name, "_out") && golden->c.layer == ET_MOE;
        if (begins(name, "in.") || begins(name, "metric.") || !strcmp(name, "route.margin"))
            continue;
        ck_assert_msg(lacks || cd_tensor(&c, name), "%s, %s lacks %s", golden->c.name, kernel->name,
                      name);
    }
    ck_assert_uint_gt(given, 8);
    et_step_free(&reference);
    cd_free(&c);
}

static void look_in_double(const et_step *golden)
{
    for (size_t k = 0; cd_kernel_at(k); k++) assert_is_reference(golden, cd_kernel_at(k));
}

START_TEST(in_double_every_kernel_is_the_reference)
{
    each_case(MANY_TOKENS, look_in_double);
}
END_TEST

/* ---- whole numbers are exact ---- */

static const char *const profiles[] = {"f64", "f32", "tf32", "tf32-rz", "f16", "bf16", "bf16-low"};

enum { PROFILES = sizeof profiles / sizeof *profiles };

static void assert_is_exact(const et_step *golden, const char *profile, const cd_kernel *kernel)
{
    cd_candidate c = run_kernel(golden, profile, kernel);
    et_tensor_out want[ET_MAX_STEP_TENSORS];
    size_t count = et_step_tensors(golden, false, want);
    for (size_t i = 0; i < c.count; i++) {
        const et_tensor_out *got = &c.tensors[i];
        if (!strcmp(got->name, "state.ema")) continue; /* 0.999 is no whole number */
        distance d = measure(got, find(want, count, got->name));
        ck_assert_msg(d.largest == 0, "%s, %s, %s: %s is off by %g", golden->c.name, profile,
                      kernel->name, got->name, d.largest);
    }
    cd_free(&c);
}

static size_t exact_runs;

static void look_at_integers(const et_step *golden)
{
    int bits = et_dtype_significand(golden->c.precision);
    if (golden->c.input.source != ET_INPUT_INTEGER) return;
    for (size_t p = 0; p < PROFILES; p++)
        for (size_t k = 0;
             et_profile_find(profiles[p])->bits[ET_OPERANDS] >= bits && cd_kernel_at(k); k++) {
            assert_is_exact(golden, profiles[p], cd_kernel_at(k));
            exact_runs++;
        }
}

START_TEST(whole_numbers_are_exact_in_every_precision_that_holds_them)
{
    exact_runs = 0;
    each_case(MANY_TOKENS, look_at_integers);
    ck_assert_uint_gt(exact_runs, 500);
}
END_TEST

/* ---- short words: as near as the roundings let it ---- */

/* Root mean square errors in units of 2^-bits. A chain from x to a weight gradient rounds six values, by
 * 0.29 of a unit each, A counting double: some two units. dw is a sum that may cancel, and so is dr: they
 * lose digits, and so does dW_r. What was measured is printed, and where. */
static bool cancels(const char *name)
{
    return !strcmp(name, "bwd.logits") || !strcmp(name, "bwd.w_router");
}

static struct worst {
    double units;
    char where[160];
} worst[2]; /* of tensors that do not cancel, and that do */

static void assert_is_near(const et_step *golden, const char *profile, const cd_kernel *kernel)
{
    cd_candidate c = run_kernel(golden, profile, kernel);
    et_tensor_out want[ET_MAX_STEP_TENSORS];
    et_step reference;
    run_reference(&reference, golden, &c);
    size_t count = et_step_tensors(&reference, false, want);
    int bits = et_profile_find(profile)->bits[ET_OPERANDS];
    for (size_t i = 0; i < c.count; i++) {
        const et_tensor_out *got = &c.tensors[i];
        if (!is_real(got) || loses_digits(kernel, golden, got->name)) continue;
        double units = ldexp(measure(got, find(want, count, got->name)).rms, bits);
        struct worst *seen = &worst[cancels(got->name)];
        ck_assert_msg(units <= (cancels(got->name) ? 24 : 3), "%s, %s, %s: %s is off by %g units",
                      golden->c.name, profile, kernel->name, got->name, units);
        if (units <= seen->units) continue;
        seen->units = units;
        snprintf(seen->where, sizeof seen->where, "%s of %s, %s", got->name, golden->c.name,
                 kernel->name);
    }
    et_step_free(&reference);
    cd_free(&c);
}

static void look_in_bf16(const et_step *golden)
{
    for (size_t k = 0; cd_kernel_at(k); k++) assert_is_near(golden, "bf16", cd_kernel_at(k));
}

START_TEST(in_bf16_every_kernel_stays_near)
{
    memset(worst, 0, sizeof worst);
    each_case(MANY_TOKENS, look_in_bf16);
    for (size_t i = 0; i < 2; i++)
        printf("bf16: errors of at most %.2f units of 2^-8 (%s)\n", worst[i].units, worst[i].where);
    ck_assert(worst[0].units > 0.5); /* it does round */
}
END_TEST

/* ---- what is shown fits the type that is named ---- */

static void look_at_types(const et_step *golden)
{
    if (!begins(golden->c.name, "odd") && !begins(golden->c.name, "aux") &&
        !begins(golden->c.name, "dense") && !begins(golden->c.name, "softmax-anchor") &&
        !begins(golden->c.name, "normal"))
        return;
    for (size_t p = 1; p < PROFILES; p++)
        for (size_t k = 0; cd_kernel_at(k); k++) {
            cd_candidate c = run_kernel(golden, profiles[p], cd_kernel_at(k));
            for (size_t i = 0; i < c.count; i++) {
                const et_tensor_out *t = &c.tensors[i];
                for (size_t j = 0; is_real(t) && j < cd_count(t); j++) {
                    double v = cd_element(t, j);
                    bool dy = golden->c.layer == ET_DENSE && !strcmp(t->name, "bwd.slot_out");
                    ck_assert_msg(dy || et_round_to_dtype(v, t->dtype) == v,
                                  "%s, %s, %s: %s has %a as %s", golden->c.name, profiles[p],
                                  cd_kernel_at(k)->name, t->name, v, et_dtype_name(t->dtype));
                }
            }
            const et_tensor_out *y = cd_tensor(&c, "fwd.y");
            et_dtype type = profiles[p][0] == 'b'        ? ET_BF16
                            : strcmp(profiles[p], "f16") ? ET_F32
                                                         : ET_F16;
            ck_assert_int_eq(y->dtype, cd_kernel_at(k)->wide_outputs ? ET_F32 : type);
            cd_free(&c);
        }
}

START_TEST(every_value_fits_its_type)
{
    each_case(MANY_TOKENS, look_at_types);
}
END_TEST

/* ---- other profiles ---- */

static void assert_same(const cd_candidate *a, const cd_candidate *b)
{
    ck_assert_uint_eq(a->count, b->count);
    for (size_t i = 0; i < a->count; i++)
        for (size_t j = 0; j < cd_count(&a->tensors[i]); j++) {
            double x = cd_element(&a->tensors[i], j), y = cd_element(&b->tensors[i], j);
            ck_assert_msg(x == y, "%s: %s[%zu] is %a and %a", a->golden->c.name, a->tensors[i].name,
                          j, x, y);
        }
}

/* Flushing makes the emulation run in double, where it rounds every operation by itself; the numbers
 * of these cases are far from what is flushed. Products of bf16 numbers are exact in float, so where
 * all operands are rounded both ways must agree to the bit. */
static void look_at_emulation(const et_step *golden)
{
    et_profile flushing = *et_profile_find("bf16");
    static const char *const kernels[] = {"sequential", "reversed", "tree", "split-4"};
    if (!begins(golden->c.name, "sigmoid-t") && !begins(golden->c.name, "softmax-a") &&
        !begins(golden->c.name, "z-loss") && !begins(golden->c.name, "aux") &&
        !begins(golden->c.name, "dense-odd"))
        return;
    flushing.ftz = true;
    strcpy(flushing.name, "flushing");
    for (size_t k = 0; k < sizeof kernels / sizeof *kernels; k++) {
        et_error error;
        cd_candidate in_float = run_kernel(golden, "bf16", cd_kernel_find(kernels[k])), in_double;
        et_status status = cd_run(&in_double, golden, &flushing, cd_kernel_find(kernels[k]), NULL,
                                  0, SEED, &error);
        ck_assert_msg(status == ET_OK, "%s", error.text);
        ck_assert_int_eq(cd_tensor(&in_float, "fwd.y")->source, ET_FROM_F32);
        ck_assert_int_eq(cd_tensor(&in_double, "fwd.y")->source, ET_FROM_F64);
        assert_same(&in_float, &in_double);
        cd_free(&in_float);
        cd_free(&in_double);
    }
}

START_TEST(double_emulates_float_to_the_bit)
{
    each_case(MANY_TOKENS, look_at_emulation);
}
END_TEST

/* Error of a kernel with an accumulator of its own, H alone: H is summed from exact products. */
static double error_of_sums(const et_step *golden, int bits, bool truncate, cd_order order)
{
    et_profile p = {.name = "own", .bits = {53, 53, 53, 53, bits, 53}, .exponent_bits = 8};
    cd_kernel kernel = {.name = "own", .what = "", .order = order};
    cd_candidate c;
    et_step reference;
    et_error error;
    p.truncate_accumulator = truncate;
    ck_assert_msg(cd_run(&c, golden, &p, &kernel, NULL, 0, SEED, &error) == ET_OK, "%s",
                  error.text);
    run_reference(&reference, golden, &c);
    et_tensor_out want[ET_MAX_STEP_TENSORS];
    size_t count = et_step_tensors(&reference, false, want);
    distance d = measure(cd_tensor(&c, "fwd.slot_pre"), find(want, count, "fwd.slot_pre"));
    et_step_free(&reference);
    cd_free(&c);
    return d.rms;
}

/* A sequential sum of K = 64 terms in p bits is off by about 0.42 2^-p sqrt(K/6 + K/2), which is 2.6 units; halving the unit halves
 * the error; a pairwise sum errs less, truncation more. */
START_TEST(an_accumulator_of_any_length_is_emulated)
{
    et_step golden;
    run_text(&golden, BIG_CASE);
    for (int bits = 10; bits <= 20; bits += 5) {
        double unit = ldexp(1, -bits),
               own = error_of_sums(&golden, bits, false, CD_SEQUENTIAL) / unit;
        ck_assert_msg(own > 1 && own < 4, "%d bits: %g units", bits, own);
        ck_assert(error_of_sums(&golden, bits, false, CD_TREE) / unit < 0.8 * own);
        ck_assert(error_of_sums(&golden, bits, true, CD_SEQUENTIAL) / unit > 1.5 * own);
        ck_assert(error_of_sums(&golden, bits, false, CD_COMPENSATED) / unit < 0.5 * own);
    }
    et_step_free(&golden);
}
END_TEST

START_TEST(orders_of_summation_differ_in_float)
{
    et_step golden;
    static const char *const kernels[] = {"sequential", "reversed", "tree",
                                          "split-4",    "blocked",  "wide"};
    enum { KERNELS = sizeof kernels / sizeof *kernels };
    cd_candidate c[KERNELS];
    run_text(&golden, BIG_CASE);
    for (size_t k = 0; k < KERNELS; k++)
        c[k] = run_kernel(&golden, "f32", cd_kernel_find(kernels[k]));
    for (size_t a = 0; a < KERNELS; a++)
        for (size_t b = 0; b < a; b++) {
            distance d = measure(cd_tensor(&c[a], "bwd.w_up"), cd_tensor(&c[b], "bwd.w_up"));
            ck_assert_msg(d.rms > 0 && d.rms < 1e-5, "%s and %s: %g", kernels[a], kernels[b],
                          d.rms);
        }
    for (size_t k = 0; k < KERNELS; k++) cd_free(&c[k]);
    et_step_free(&golden);
}
END_TEST

START_TEST(a_seed_shuffles_and_repeats)
{
    et_step golden;
    et_error error;
    cd_candidate run[3];
    run_text(&golden,
             "{'name': 'many', 'rule': 'tc', 'tokens': 40, 'd_model': 24, 'd_expert': 16, "
             "'experts': 9, 'top_k': 7, 'precision': 'bf16', 'input': {'source': 'normal'}}");
    for (uint64_t i = 0; i < 3; i++) {
        et_status status = cd_run(&run[i], &golden, et_profile_find("f32"),
                                  cd_kernel_find("shuffled"), NULL, 0, 7 + i / 2, &error);
        ck_assert_msg(status == ET_OK, "%s", error.text);
    }
    assert_same(&run[0], &run[1]);
    ck_assert(measure(cd_tensor(&run[0], "fwd.y"), cd_tensor(&run[2], "fwd.y")).rms > 0);
    ck_assert(measure(cd_tensor(&run[0], "bwd.x"), cd_tensor(&run[2], "bwd.x")).rms > 0);
    for (size_t i = 0; i < 3; i++) cd_free(&run[i]);
    et_step_free(&golden);
}
END_TEST

/* What a kernel is said not to round is not rounded: somewhere it has more than 8 bits. */
START_TEST(what_is_fused_is_not_rounded)
{
    static const char *const fused[][2] = {
        {"fused-hidden", "fwd.slot_pre"},  {"fused", "fwd.slot_act"},
        {"fused", "fwd.slot_out"},         {"fused", "bwd.slot_out"},
        {"fused", "bwd.slot_act"},         {"fused-combine", "fwd.shared_out"},
        {"wide-outputs", "fwd.y"},         {"wide-outputs", "bwd.x"},
        {"wide-outputs", "bwd.w_up"},      {"wide-outputs", "bwd.w_down"},
        {"wide-outputs", "bwd.w_router"},  {"weight-on-act", "fwd.slot_act"},
        {"weight-on-act", "bwd.slot_act"}, {"atomic", "fwd.shared_pre"},
        {"all-in-one", "bwd.shared_up"}};
    et_step golden;
    run_text(&golden, BIG_CASE);
    for (size_t i = 0; i < sizeof fused / sizeof *fused; i++) {
        cd_candidate c = run_kernel(&golden, "bf16", cd_kernel_find(fused[i][0]));
        const et_tensor_out *t = cd_tensor(&c, fused[i][1]);
        size_t longer = 0;
        ck_assert_ptr_nonnull(t);
        for (size_t j = 0; j < cd_count(t); j++)
            longer += et_round_to_dtype(cd_element(t, j), ET_BF16) != cd_element(t, j);
        ck_assert_msg(longer > cd_count(t) / 8, "%s: %zu of %s", fused[i][0], longer, fused[i][1]);
        cd_free(&c);
    }
    et_step_free(&golden);
}
END_TEST

/* ---- operands ---- */

static void round_inputs(et_real *v, size_t count)
{
    for (size_t i = 0; i < count; i++) v[i] = (et_real)et_round_to_dtype((double)v[i], ET_BF16);
}

/* x and W in f32 under bf16: the same as if they had come in bf16. */
START_TEST(inputs_enter_products_rounded)
{
    et_step given, rounded;
    run_text(&given,
             "{'name': 'stored', 'rule': 'ec', 'tokens': 20, 'd_model': 12, 'd_expert': 10, "
             "'experts': 3, 'precision': 'f32', 'input': {'source': 'normal'}}");
    draw_case(&rounded, &given.c);
    round_inputs(rounded.in.x, 20 * 12);
    round_inputs(rounded.in.router, 3 * 12);
    round_inputs(rounded.in.up, 3 * 10 * 12);
    round_inputs(rounded.in.down, 3 * 12 * 10);
    round_inputs(rounded.in.shared_up, 10 * 12);
    round_inputs(rounded.in.shared_down, 12 * 10);
    for (size_t k = 0; cd_kernel_at(k); k++) {
        cd_candidate a = run_kernel(&given, "bf16", cd_kernel_at(k));
        cd_candidate b = run_kernel(&rounded, "bf16", cd_kernel_at(k));
        if (!cd_kernel_at(k)->wide_router) assert_same(&a, &b);
        cd_free(&a);
        cd_free(&b);
    }
    et_step_free(&given);
    et_step_free(&rounded);
}
END_TEST

/* A factor of a product: a tensor of the candidate, or one of the golden's inputs; rows by columns. */
typedef struct factor {
    const et_tensor_out *tensor;
    const et_real *input;
    size_t columns;
    bool transposed;
} factor;

static double element_of(const factor *f, size_t row, size_t column)
{
    size_t i = f->transposed ? column * f->columns + row : row * f->columns + column;
    double v = f->tensor ? cd_element(f->tensor, i) : (double)f->input[i];
    return cd_round(&cd_eleven_bits, v);
}

/* C [M,N] = A B, both rounded as operands of tf32: to some units of 2^-24 of what is summed. Without that
 * rounding of one of them it would be off by 2^-12. */
static void assert_product(const et_tensor_out *C, size_t M, size_t N, size_t K, factor A, factor B)
{
    ck_assert_msg(cd_count(C) == M * N, "%s has %zu elements", C->name, cd_count(C));
    for (size_t i = 0; i < M; i++)
        for (size_t j = 0; j < N; j++) {
            double sum = 0, size = 0;
            for (size_t k = 0; k < K; k++) {
                double term = element_of(&A, i, k) * element_of(&B, k, j);
                sum += term;
                size += fabs(term);
            }
            double got = cd_element(C, i * N + j);
            ck_assert_msg(fabs(got - sum) <= 0x1p-20 * size, "%s: %g, not %g", C->name, got, sum);
        }
}

enum { N = 14, D = 9, H = 11, EXPERTS = 3 };

#define SMALL_SIZES                                                                                \
    "'tokens': 14, 'd_model': 9, 'd_expert': 11, 'precision': 'f32', 'input': {'source': "         \
    "'normal'}"

static factor shown(const cd_candidate *c, const char *name, size_t columns, bool transposed)
{
    return (factor){cd_tensor(c, name), NULL, columns, transposed};
}

static factor given(const et_real *input, size_t columns, bool transposed)
{
    return (factor){NULL, input, columns, transposed};
}

START_TEST(an_experts_products_take_rounded_operands)
{
    et_step golden;
    run_text(&golden, "{'name': 'dense', 'layer': 'dense', " SMALL_SIZES "}");
    cd_candidate c = run_kernel(&golden, "tf32", cd_kernel_at(0));
    const et_real *x = golden.in.x, *up = golden.in.up, *down = golden.in.down;
    const char *A = "fwd.slot_act", *dO = "bwd.slot_out", *dH = "bwd.slot_pre";
    assert_product(cd_tensor(&c, "fwd.slot_pre"), N, H, D, given(x, D, false), given(up, D, true));
    assert_product(cd_tensor(&c, "fwd.slot_out"), N, D, H, shown(&c, A, H, false),
                   given(down, H, true));
    assert_product(cd_tensor(&c, "bwd.slot_act"), N, H, D, shown(&c, dO, D, false),
                   given(down, H, false));
    assert_product(cd_tensor(&c, "bwd.w_down"), D, H, N, shown(&c, dO, D, true),
                   shown(&c, A, H, false));
    assert_product(cd_tensor(&c, "bwd.w_up"), H, D, N, shown(&c, dH, H, true), given(x, D, false));
    assert_product(cd_tensor(&c, "bwd.x"), N, D, H, shown(&c, dH, H, false), given(up, D, false));
    cd_free(&c);
    et_step_free(&golden);
}
END_TEST

START_TEST(the_routers_products_take_rounded_operands)
{
    et_step golden;
    run_text(&golden, "{'name': 'moe', 'rule': 'tc', 'experts': 3, " SMALL_SIZES "}");
    cd_candidate c = run_kernel(&golden, "tf32", cd_kernel_at(0));
    const et_real *x = golden.in.x, *router = golden.in.router;
    assert_product(cd_tensor(&c, "fwd.logits"), N, EXPERTS, D, given(x, D, false),
                   given(router, D, true));
    assert_product(cd_tensor(&c, "bwd.w_router"), EXPERTS, D, N,
                   shown(&c, "bwd.logits", EXPERTS, true), given(x, D, false));
    cd_free(&c);
    et_step_free(&golden);
}
END_TEST

/* A float holds no logit of 1e40. */
START_TEST(logits_beyond_the_range_are_an_error)
{
    et_case c;
    et_step golden;
    et_error error;
    cd_candidate out;
    const char *text = "{'name': 'beyond', 'rule': 'ec', 'tokens': 8, 'd_model': 8, 'd_expert': 8, "
                       "'experts': 2, 'precision': 'f32', 'input': {'source': 'huge'}}";
    ck_assert_msg(parse_quoted(&c, text, &error) == ET_OK, "%s", error.text);
    draw_case(&golden, &c);
    for (size_t i = 0; i < 64; i++) golden.in.x[i] *= (et_real)1e33;
    for (size_t i = 0; i < 16; i++) golden.in.router[i] *= (et_real)1e4;
    ck_assert_int_eq(
        cd_run(&out, &golden, et_profile_find("f32"), cd_kernel_at(0), NULL, 0, 1, &error),
        ET_EINVAL);
    ck_assert_msg(strstr(error.text, "beyond") && strstr(error.text, "f32"), "%s", error.text);
    et_step_free(&golden);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("candidates");
    TCase *rounding = add_case(suite, "rounding");
    tcase_add_loop_test(rounding, numbers_round_as_their_type_does, 0, 3);
    tcase_add_loop_test(rounding, truncation_goes_towards_zero, 0, 3);
    tcase_add_loop_test(rounding, what_is_flushed_is_zero, 0, 3);
    TCase *kernels = add_case(suite, "kernels");
    tcase_add_test(kernels, in_double_every_kernel_is_the_reference);
    tcase_add_test(kernels, whole_numbers_are_exact_in_every_precision_that_holds_them);
    tcase_add_test(kernels, in_bf16_every_kernel_stays_near);
    tcase_add_test(kernels, every_value_fits_its_type);
    tcase_add_test(kernels, double_emulates_float_to_the_bit);
    tcase_add_test(kernels, an_accumulator_of_any_length_is_emulated);
    tcase_add_test(kernels, orders_of_summation_differ_in_float);
    tcase_add_test(kernels, a_seed_shuffles_and_repeats);
    tcase_add_test(kernels, what_is_fused_is_not_rounded);
    tcase_add_test(kernels, inputs_enter_products_rounded);
    tcase_add_test(kernels, an_experts_products_take_rounded_operands);
    tcase_add_test(kernels, the_routers_products_take_rounded_operands);
    tcase_add_test(kernels, logits_beyond_the_range_are_an_error);
    return run_suite(suite);
}
