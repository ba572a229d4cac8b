/* test_round.c: rounding as a kernel does, and by chance; and layers that round.
 *
 * To nearest and by truncation: against the candidates' own rounding (tests/candidates/rounding.h),
 * which shares nothing with the library's. By chance: mean and variance over many seeds against the
 * formula; what errs alike, and what does not. Layers: every array of an emulated kernel is in the
 * profile's format, and the verdict, which knows nothing of et_round, finds kernel and replicas honest.
 */
#include "etref/etref.h"
#include "ref/verdict/judge.h"
#include "tests/candidates/rounding.h"
#include "tests/check_main.h"
#include "tests/run_case.h"

enum { MANY = 20000 };

/* A profile with the same format at each place. */
static et_profile all_places(int bits, int exponent_bits)
{
    et_profile p = {.name = "test", .exponent_bits = exponent_bits};
    for (int place = 0; place < ET_PLACES; place++) p.bits[place] = bits;
    return p;
}

static double rounded(const et_profile *p, et_rounding_mode mode, uint64_t seed, const char *site,
                      double v)
{
    const et_rounding r = {.profile = p, .mode = mode, .seed = seed};
    et_real value = (et_real)v;
    et_round(&r, ET_OPERANDS, site, 1, &value);
    return (double)value;
}

/* Numbers of every size that a format has, and beyond: significands of 53 random bits, or of few. */
static double some_number(et_stream s, uint64_t i, int least, int most)
{
    double fraction = 1 + et_uniform(s, i, 0) + 0x1p-33 * et_uniform(s, i, 1);
    int exponent = least + (int)(et_uniform(s, i, 2) * (most - least));
    double v = ldexp(fraction, exponent);
    int kept = i % 3 == 0   ? 9
               : i % 3 == 1 ? 12
                            : 53; /* few bits: ties, and what is representable */
    double ulp = ldexp(1, exponent + 1 - kept);
    v = kept == 53 ? v : floor(v / ulp) * ulp;
    return i & 1 ? -v : v;
}

static void agrees(int bits, int exponent_bits, bool truncate, bool ftz)
{
    int emin = exponent_bits == 5 ? -14 : -126;
    cd_format f = {.bits = bits, .emin = emin, .truncate = truncate, .ftz = ftz};
    f.smallest = ldexp(1, emin);
    f.largest = ldexp(2 - ldexp(1, 1 - bits), 1 - emin);
    et_profile p = all_places(bits, exponent_bits);
    p.truncate_operands = truncate;
    p.ftz = ftz;
    et_stream s = et_stream_open(5, "numbers");
    for (uint64_t i = 0; i < MANY; i++) {
        double v = some_number(s, i, emin - bits - 3, 2 - emin);
        double got = rounded(&p, ET_ROUND_NEAREST, 1, "x", v), want = cd_round(&f, v);
        ck_assert_msg(got == want && signbit(got) == signbit(want),
                      "%d bits, emin %d, truncate %d, ftz %d: %a becomes %a, not %a", bits, emin,
                      truncate, ftz, v, got, want);
    }
}

START_TEST(nearest_and_truncated_as_the_candidates_round)
{
    for (int switches = 0; switches < 4; switches++) {
        bool truncate = switches & 1, ftz = switches & 2;
        agrees(8, 8, truncate, ftz);
        agrees(11, 5, truncate, ftz);
        agrees(11, 8, truncate, ftz);
        agrees(24, 8, truncate, ftz);
        agrees(2, 8, truncate, ftz);
    }
}
END_TEST

START_TEST(what_the_format_holds_stays)
{
    const et_profile formats[] = {all_places(8, 8), all_places(11, 5), all_places(24, 8)};
    const double held[] = {0, -0.0, 1, -1.5, 3.25, 0x1.fcp3, 0x1p-14, 0x1p-24};
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        for (size_t j = 0; j < sizeof held / sizeof *held; j++)
            for (uint64_t seed = 0; seed < 50; seed++) {
                double got = rounded(&formats[i], ET_ROUND_RANDOM, seed, "x", held[j]);
                ck_assert_msg(got == held[j] && signbit(got) == signbit(held[j]), "%a became %a",
                              held[j], got);
            }
    et_real values[2] = {(et_real)0x1.2345678p0, 7};
    et_round(NULL, ET_OPERANDS, "x", 2, values);
    ck_assert(values[0] == (et_real)0x1.2345678p0 && values[1] == 7);
    ck_assert(isnan(rounded(&formats[0], ET_ROUND_RANDOM, 1, "x", NAN)));
    ck_assert(isinf(rounded(&formats[0], ET_ROUND_RANDOM, 1, "x", -INFINITY)));
}
END_TEST

static void double_them(void *user, const char *site, size_t count, et_real *values)
{
    *(const char **)user = site;
    for (size_t i = 0; i < count; i++) values[i] *= 2;
}

/* A mutant's hand comes before the rounding, and needs none; what is not stored only passes it. */
START_TEST(a_hand_alters_what_passes)
{
    const char *seen = NULL;
    et_profile format = all_places(8, 8);
    et_rounding r = {.mutate = double_them, .user = &seen};
    et_real value = (et_real)0x1.01p0;
    ck_assert_int_eq(et_rounding_check(&r, NULL), ET_OK);
    ck_assert(!et_rounds(NULL) && !et_rounds(&r));
    et_round(&r, ET_OPERANDS, "H", 1, &value);
    ck_assert(value == (et_real)0x1.01p1);
    ck_assert_str_eq(seen, "H");
    r.profile = &format;
    r.mode = ET_ROUND_NEAREST;
    ck_assert(et_rounds(&r));
    et_pass(&r, "dp", 1, &value);
    ck_assert(value == (et_real)0x1.01p2);
    et_round(&r, ET_OPERANDS, "A", 1, &value);
    ck_assert(value == 8);
    et_pass(NULL, "dp", 1, &value);
    ck_assert(value == 8);
}
END_TEST

/* That f and two numbers together are above 1/2: of those that are uniform from -1/16 to 1/16 and from -3/16 to 3/16. */
static double chance_of(double f)
{
    double d = f - 0.5, tail = fmax(0, 0.25 - fabs(d));
    if (fabs(d) <= 0.125) return 0.5 + d * 8 / 3;
    tail = tail * tail / (2 * 0.125 * 0.375);
    return d > 0 ? 1 - tail : tail;
}

/* Up with that chance: within 5 standard deviations of what is drawn. */
static void scatters(const et_profile *p, double v, double ulp, double f)
{
    double chance = chance_of(f), ups = 0;
    for (uint64_t seed = 0; seed < MANY; seed++) {
        double e = fabs(rounded(p, ET_ROUND_RANDOM, seed, "x", v)) - fabs(v);
        ck_assert_msg(fabs(e - (e > 0 ? 1 - f : -f) * ulp) <= 1e-9 * ulp, "%a moves by %g ulp", v,
                      e / ulp);
        ups += e > 0;
    }
    ck_assert_msg(fabs(ups / MANY - chance) <= 5 * sqrt(chance * (1 - chance) / MANY),
                  "%a: up with chance %g, must be %g", v, ups / MANY, chance);
}

START_TEST(by_chance_without_bias)
{
    const et_profile bf16 = all_places(8, 8), f16 = all_places(11, 5);
    const double last = 0x1p-20; /* more bits than products of the format's numbers have */
    const double parts[] = {0.5 + last,   0.25 + last, 0.3125 + last,
                            0.625 + last, 0.01,        0.9375 + last};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        scatters(&bf16, 1.5 + parts[i] * 0x1p-7, 0x1p-7, parts[i]);
        scatters(&bf16, -(0x1.fep9 + parts[i] * 0x1p2), 0x1p2, parts[i]);  /* a carry */
        scatters(&f16, 0x1.9p-16 + parts[i] * 0x1p-24, 0x1p-24, parts[i]); /* subnormal */
    }
}
END_TEST

/* Over all f: the error's square is 1.16 ulp^2/12, of which 0.68 is chance; the rest is what variance.c never goes below. */
START_TEST(a_third_of_an_error_is_settled)
{
    enum { POINTS = 10000 };
    double square = 0, chance = 0;
    for (int i = 0; i < POINTS; i++) {
        double f = (i + 0.5) / POINTS, up = chance_of(f);
        square += (up * (1 - f) * (1 - f) + (1 - up) * f * f) / POINTS;
        chance += up * (1 - up) / POINTS;
    }
    ck_assert_double_eq_tol(square * 12, 1.156, 1e-3);
    ck_assert_double_eq_tol(chance / square, 0.682, 1e-3);
}
END_TEST

/* Stochastic rounding: a number of the format, with chance f the upper one; in either mode. */
START_TEST(a_stochastic_kernel_rounds_by_its_own_chances)
{
    et_profile p = all_places(8, 8);
    double v = 1.5 + 0.25 * 0x1p-7;
    int up[2] = {0};
    p.stochastic = true;
    for (uint64_t seed = 0; seed < MANY; seed++)
        for (int mode = 0; mode < 2; mode++) {
            double got = rounded(&p, mode ? ET_ROUND_NEAREST : ET_ROUND_RANDOM, seed, "x", v);
            ck_assert(got == 1.5 || got == 1.5 + 0x1p-7);
            up[mode] += got > v;
        }
    ck_assert_int_eq(up[0], up[1]);
    ck_assert_double_le(fabs(up[0] - 0.25 * MANY), 5 * sqrt(MANY * 0.25 * 0.75));
}
END_TEST

START_TEST(equal_and_neighbouring_numbers_err_alike)
{
    const et_profile p = all_places(8, 8);
    int alike = 0, other_site = 0, other_cell = 0;
    for (uint64_t seed = 0; seed < MANY; seed++) {
        double v = 1 + (0.5 + 0x1p-20) * 0x1p-7, near = v + 0x1p-40, next = v + 0x1p-7;
        bool up = rounded(&p, ET_ROUND_RANDOM, seed, "H", v) > v;
        ck_assert_int_eq(up, rounded(&p, ET_ROUND_RANDOM, seed, "H", -v) < -v);
        alike += up == (rounded(&p, ET_ROUND_RANDOM, seed, "H", near) > near);
        other_site += up == (rounded(&p, ET_ROUND_RANDOM, seed, "A", v) > v);
        other_cell += up == (rounded(&p, ET_ROUND_RANDOM, seed, "H", next) > next);
    }
    ck_assert_int_gt(alike, MANY / 2 + 2 * 71); /* a part of chance is the cell's */
    ck_assert_int_lt(alike, MANY);
    ck_assert_int_lt(abs(other_site - MANY / 2), 5 * 71); /* sqrt(20000 / 4) = 71 */
    ck_assert_int_lt(abs(other_cell - MANY / 2), 5 * 71);
}
END_TEST

/* A product of two numbers of the format, as relu(H)^2 of a stored H: every kernel has it, and rounds it to nearest. */
START_TEST(known_numbers_go_to_the_nearest)
{
    const et_profile p = all_places(8, 8);
    const double v = (1 + 0x7p-7) * (1 + 0x7p-7),
                 nearest = rounded(&p, ET_ROUND_NEAREST, 0, "A", v);
    int other = 0;
    for (uint64_t seed = 0; seed < MANY; seed++) {
        ck_assert_double_eq(rounded(&p, ET_ROUND_RANDOM, seed, "A", v), nearest);
        other += rounded(&p, ET_ROUND_RANDOM, seed, "A", v + 0x1p-30) != nearest;
    }
    ck_assert_int_gt(other, 0); /* one that is not known may go elsewhere */
}
END_TEST

START_TEST(fifty_three_bits_move_by_an_ulp)
{
    const et_profile p = all_places(53, 8);
    double v = 1.0 / 3, square = 0;
    for (uint64_t seed = 0; seed < MANY; seed++) {
        double steps = (rounded(&p, ET_ROUND_RANDOM, seed, "x", v) - v) / 0x1p-54;
        ck_assert(steps == 0 || fabs(steps) == 1);
        square += steps * steps / MANY;
        ck_assert(rounded(&p, ET_ROUND_RANDOM, seed, "x", 0.375) == 0.375);
    }
    ck_assert_double_le(fabs(square - 0.5), 5 * sqrt(0.25 / MANY)); /* up or down: 1/4 each */
    ck_assert(rounded(&p, ET_ROUND_NEAREST, 1, "x", v) == v);
}
END_TEST

/* ---- layers ---- */

#ifndef ETREF_F32

static void run_rounded(et_step *s, const et_case *c, const et_rounding *rounding)
{
    et_error error;
    draw_case(s, c);
    s->rounding = rounding;
    ck_assert_msg(et_step_run(s, ET_PLAIN, NULL, NULL, &error) == ET_OK, "%s", error.text);
}

static void is_no_mismatch(const et_step *golden, const et_step *kernel, const et_rounding *r)
{
    et_tensor_out tensors[ET_MAX_STEP_TENSORS];
    et_verdict v;
    et_error error;
    const et_verify_options options = {.profile = r->profile};
    size_t count = et_step_tensors(kernel, false, tensors);
    ck_assert_msg(et_verify(&v, golden, tensors, count, &options, &error) == ET_OK, "%s: %s",
                  golden->c.name, error.text);
    ck_assert_msg(v.outcome != ET_MISMATCH, "%s: %s", golden->c.name, v.line);
    et_verdict_free(&v);
}

/* What a kernel computed stands in the format in which it stores it. */
static void is_in_format(const et_step *kernel, const et_profile *p)
{
    et_tensor_out tensors[ET_MAX_STEP_TENSORS];
    size_t count = et_step_tensors(kernel, false, tensors);
    for (size_t i = 0; i < count; i++) {
        const et_tensor_out *t = &tensors[i];
        bool stored = strncmp(t->name, "fwd.", 4) == 0 || strncmp(t->name, "bwd.", 4) == 0 ||
                      strncmp(t->name, "loss.", 5) == 0 || strncmp(t->name, "state.", 6) == 0 ||
                      strcmp(t->name, "route.slot_weight") == 0 ||
                      strcmp(t->name, "route.threshold") == 0 ||
                      strcmp(t->name, "route.cutoff") == 0;
        if (!stored || !et_tensor_is_real(t)) continue;
        for (size_t e = 0; e < et_tensor_count(t); e++)
            ck_assert_msg(et_place_holds(p, et_tensor_place(t->name), et_tensor_element(t, e)),
                          "%s under %s: %s[%zu] = %a", kernel->c.name, p->name, t->name, e,
                          et_tensor_element(t, e));
    }
}

static const et_profile *rounding_profile(size_t index)
{
    return et_profile_at(index + 1); /* the first, f64, rounds nothing */
}

START_TEST(layers_round_where_the_profile_says)
{
    enum { LARGEST = 4096, JUDGED = 512 }; /* a verdict costs fifty layers */
    size_t count, rounded = 0;
    et_case *cases = read_suite(_i == 0 ? "smoke.json" : "core.json", &count);
    for (size_t i = 0; i < count; i++) {
        const et_case *c = &cases[i];
        et_step golden, kernel;
        if (c->tokens * c->d_model > LARGEST) continue;
        const et_profile *p = rounding_profile(i % 6);
        run_case(&golden, c);
        const et_rounding r = {.profile = p, .mode = ET_ROUND_NEAREST};
        run_rounded(&kernel, c, &r);
        is_in_format(&kernel, p);
        if (c->tokens * c->d_model <= JUDGED) is_no_mismatch(&golden, &kernel, &r);
        et_step_free(&kernel);
        et_step_free(&golden);
        rounded++;
    }
    free(cases);
    ck_assert_uint_gt(rounded, count / 2);
}
END_TEST

START_TEST(a_rounding_is_checked_where_it_enters)
{
    const et_real one = 1, x = 2;
    et_real H, A, out;
    const et_profile wide = all_places(60, 8), narrow = all_places(1, 8), odd = all_places(8, 7);
    const et_profile bf16 = all_places(8, 8);
    const et_rounding bad[] = {{.profile = NULL, .mode = ET_ROUND_NEAREST},
                               {.profile = &wide, .mode = ET_ROUND_NEAREST},
                               {.profile = &narrow, .mode = ET_ROUND_RANDOM},
                               {.profile = &odd, .mode = ET_ROUND_RANDOM},
                               {.profile = &bf16, .mode = (et_rounding_mode)7}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        et_error error = {""};
        const et_ffn f = {.d = 1, .h = 1, .up = &one, .down = &one, .rounding = &bad[i]};
        ck_assert_int_eq(
            et_ffn_forward(&f, &(et_ffn_rows){.m = 1, .x = &x, .H = &H, .A = &A, .out = &out},
                           &error),
            ET_EINVAL);
        ck_assert_msg(strncmp(error.text, "et_rounding: ", 13) == 0, "%s", error.text);
    }
}
END_TEST

/* Tokens that are copies of each other go through the layer alike, rounded or not. */
START_TEST(replicas_move_and_equal_tokens_stay_equal)
{
    et_case c;
    et_step golden, replica, again;
    et_error error;
    ck_assert_msg(parse_quoted(&c,
                               "{'name':'copies','rule':'ec','tokens':16,'d_model':8,'d_expert':12,"
                               "'experts':4,'precision':'bf16','input':{'source':'ties'}}",
                               &error) == ET_OK,
                  "%s", error.text);
    const et_rounding r = {.profile = et_profile_find("bf16"), .mode = ET_ROUND_RANDOM, .seed = 1},
                      other = {.profile = r.profile, .mode = r.mode, .seed = 2};
    run_case(&golden, &c);
    run_rounded(&replica, &c, &r);
    size_t d = c.d_model, row = d * sizeof(et_real), copies = 0;
    ck_assert(memcmp(replica.fwd.y, golden.fwd.y, c.tokens * row) != 0);
    for (size_t t = 0; t < c.tokens; t++)
        for (size_t u = 0; u < t; u++) {
            if (memcmp(golden.fwd.y + t * d, golden.fwd.y + u * d, row) != 0) continue;
            ck_assert(memcmp(replica.fwd.y + t * d, replica.fwd.y + u * d, row) == 0);
            copies++;
        }
    ck_assert_uint_gt(copies, 0);
    run_rounded(&again, &c, &r);
    ck_assert(memcmp(replica.bwd.x, again.bwd.x, c.tokens * row) == 0);
    et_step_free(&again);
    run_rounded(&again, &c, &other);
    ck_assert(memcmp(replica.bwd.x, again.bwd.x, c.tokens * row) != 0);
    et_step_free(&again);
    et_step_free(&replica);
    et_step_free(&golden);
}
END_TEST

#endif

int main(void)
{
    Suite *suite = suite_create("round");
    TCase *tests = add_case(suite, "round");
    tcase_add_test(tests, nearest_and_truncated_as_the_candidates_round);
    tcase_add_test(tests, what_the_format_holds_stays);
    tcase_add_test(tests, a_hand_alters_what_passes);
    tcase_add_test(tests, by_chance_without_bias);
    tcase_add_test(tests, a_third_of_an_error_is_settled);
    tcase_add_test(tests, a_stochastic_kernel_rounds_by_its_own_chances);
    tcase_add_test(tests, equal_and_neighbouring_numbers_err_alike);
    tcase_add_test(tests, known_numbers_go_to_the_nearest);
    tcase_add_test(tests, fifty_three_bits_move_by_an_ulp);
#ifndef ETREF_F32
    TCase *layers = add_case(suite, "layers");
    tcase_add_test(layers, a_rounding_is_checked_where_it_enters);
    tcase_add_test(layers, replicas_move_and_equal_tokens_stay_equal);
    tcase_add_loop_test(layers, layers_round_where_the_profile_says, 0, 2);
#endif
    return run_suite(suite);
}
