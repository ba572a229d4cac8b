/* test_witness.c: every tensor of a step against the binary128 witness.
 *
 * Two sets of cases: those whose goldens are committed (data/cases), and a covering, in which every
 * two switches of a case meet in every way that the language of cases allows. What agrees with the
 * witness agrees with the equations, written down twice and computed twice; see
 * tests/against_witness.h for what "agrees" means.
 *
 * The pairs of switches that contradict each other are listed here by hand, and must be exactly
 * those that et_case_parse refuses: a case that becomes illegal, or legal, by mistake shows.
 *
 * Left out: layers of real sizes (a witness takes 60 ns for a product), input.decisive (it changes
 * inputs, not what is computed from them), metrics and layouts (tests of their own). A float build
 * does not compute the covering, whose outliers leave the range of float's exponents.
 */
#include "ref/step/decide.h"
#include "ref/step/case_kinds.h"
#include "tests/against_witness.h"
#include "tests/check_main.h"
#include "tests/covering.h"
#include "tests/run_case.h"

#include <omp.h>
#include <stdarg.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static void compare_case(agreement *all, const et_case *c)
{
    et_step s;
    run_case(&s, c);
    compare_with_witness(all, &s);
    et_step_free(&s);
}

/* ---- the committed cases ---- */

static void compare_suite(const char *name)
{
    agreement all = {0};
    size_t count = 0;
    et_case *cases = read_suite(name, &count);
    ck_assert_uint_gt(count, 0);
    for (size_t i = 0; i < count; i++)
        if (is_ffn(&cases[i])) compare_case(&all, &cases[i]);
    free(cases);
    print_agreement(&all, name);
    ck_assert_uint_eq(all.failures, 0);
}

START_TEST(the_core_suite_agrees)
{
    compare_suite("core.json");
}
END_TEST

START_TEST(the_modern_suite_agrees)
{
    compare_suite("modern.json");
}
END_TEST

START_TEST(the_smoke_suite_agrees)
{
    compare_suite("smoke.json");
}
END_TEST

START_TEST(layers_of_a_trained_model_agree)
{
    compare_suite("real.json");
}
END_TEST

/* ---- given assignments, which no rule would make ---- */

static void compare_given(agreement *all, const et_case *c)
{
    et_step s;
    et_error error;
    uint8_t *mask;
    draw_case(&s, c);
    ck_assert_int_eq(et_step_take_given(&s, &mask, &error), ET_OK);
    for (size_t i = 0; i < c->tokens * c->experts; i++) mask[i] = i % 3 == 0 || i % 7 == 2;
    ck_assert_msg(et_step_run(&s, ET_PLAIN, NULL, NULL, &error) == ET_OK, "%s", error.text);
    compare_with_witness(all, &s);
    et_step_free(&s);
}

START_TEST(given_assignments_agree)
{
    static const char *const suites[] = {"smoke.json", "modern.json"};
    agreement all = {0};
    for (size_t k = 0; k < COUNT(suites); k++) {
        size_t count = 0;
        et_case *cases = read_suite(suites[k], &count);
        for (size_t i = 0; i < count; i++)
            if (is_moe(&cases[i]) && !has_padding(&cases[i])) compare_given(&all, &cases[i]);
        free(cases);
    }
    print_agreement(&all, "given");
    ck_assert_uint_eq(all.failures, 0);
}
END_TEST

/* ---- the integer suite: exact in the case's own precision, whatever the kernel ---- */

/* Every value and gradient of a step is what its precision can hold: nothing would be rounded. */
static void check_representable(const et_step *s)
{
    et_tensor_out tensors[ET_MAX_STEP_TENSORS];
    size_t have = et_step_tensors(s, false, tensors);
    for (size_t i = 0; i < have; i++) {
        const et_tensor_out *t = &tensors[i];
        bool flows = strncmp(t->name, "fwd.", 4) == 0 || strncmp(t->name, "bwd.", 4) == 0;
        size_t count = 1;
        for (size_t j = 0; j < t->rank; j++) count *= t->shape[j];
        for (size_t j = 0; flows && j < count; j++) {
            double value = (double)((const et_real *)t->values)[j];
            ck_assert_msg(et_round_to_dtype(value, s->c.precision) == value,
                          "%s: %s[%zu] = %.17g is not exact in %s", s->c.name, t->name, j, value,
                          et_dtype_name(s->c.precision));
        }
    }
}

START_TEST(integer_cases_are_exact_in_their_precision)
{
    size_t count = 0, checked = 0;
    et_case *cases = read_suite("core.json", &count);
    for (size_t i = 0; i < count; i++) {
        et_step s;
        if (cases[i].input.source != ET_INPUT_INTEGER) continue;
        run_case(&s, &cases[i]);
        check_representable(&s);
        et_step_free(&s);
        checked++;
    }
    free(cases);
    ck_assert_uint_ge(checked, 6);
}
END_TEST

/* ---- the switches of an MoE case ---- */

/* clang-format off */
enum {
    RULE, MODE, GATE, NORM, SHARED, THRESHOLD, CAPACITY, DECAY, CORRECTION, UPDATES, WARMUP, MICRO,
    BALANCE, GLOBAL, Z_LOSS, EXPERTS, GRANULARITY, TOKENS, POOL, TARGET, WIDTH, HIDDEN, PRECISION,
    SOURCE, SHIFT, ACTIVATION, SCALE, SELECT, WEIGH, BIASES, PADDING, DROP, GROUPS,
    SWITCHES
};
/* clang-format on */

/* `json` takes the value's name; NULL: written by hand below. `tried` is covering.h's: where it is
 * 1, value 0 contradicts no other switch. */
static const struct {
    const char *name, *json;
    size_t tried;
    const char *values[COVERING_VALUES];
} switches[SWITCHES] = {
    [RULE] = {"rule", "'rule':'%s'", 3, {"tc", "ec", "et"}},
    [MODE] = {"mode", "'mode':'%s'", 2, {"train", "eval"}},
    [GATE] = {"gate",
              "'gate':'%s'",
              2,
              {"sigmoid", "relu", "softmax", "softmax_anchor", "softmax_anchor_out",
               "softmax_tokens"}},
    [NORM] = {"norm", "'norm':'%s'", 1, {"none", "fanout", "sum"}},
    [SHARED] = {"shared", NULL, 1, {"same", "none", "wider"}},
    [THRESHOLD] = {"threshold", "'threshold':'%s'", 1, {"strict", "inclusive"}},
    [CAPACITY] = {"capacity", "'capacity_factor':%s", 1, {"null", "0.5", "0", "2.0", "0.3"}},
    [DECAY] = {"ema_decay", "'ema_decay':%s", 1, {"0.999", "0.999999", "0.5", "0"}},
    [CORRECTION] = {"ema_bias_correction", "'ema_bias_correction':%s", 1, {"false", "true"}},
    [UPDATES] = {"ema_updates", "'ema_updates':%s", 1, {"0", "1", "7"}},
    [WARMUP] = {"warmup", NULL, 3, {"none", "on", "over"}},
    [MICRO] = {"micro_batches", "'micro_batches':%s", 1, {"1", "2", "3"}},
    [BALANCE] = {"balance", NULL, 2, {"none", "aux", "aux_error", "lossfree", "proportional"}},
    [GLOBAL] = {"global_load", "'global_load':%s", 1, {"false", "true"}},
    [Z_LOSS] = {"z_loss", "'z_loss_coef':%s", 1, {"0", "0.01"}},
    [EXPERTS] = {"experts", "'experts':%s", 2, {"4", "1", "7"}},
    [GRANULARITY] = {"granularity", NULL, 3, {"1", "2", "all"}},
    [TOKENS] = {"tokens", NULL, 1, {"8", "1", "15"}}, /* of a micro-batch */
    [POOL] = {"pool", NULL, 1, {"batch", "half"}},
    [TARGET] = {"target_load", NULL, 2, {"derived", "1", "pool"}},
    [WIDTH] = {"d_model", "'d_model':%s", 1, {"4", "1", "9"}},
    [HIDDEN] = {"d_expert", "'d_expert':%s", 1, {"3", "1", "8"}},
    [PRECISION] = {"precision", "'precision':'%s'", 1, {"bf16", "f64", "f32", "f16"}},
    [SOURCE] = {"source",
                NULL,
                1,
                {"normal", "text", "integer", "ties", "near-ties", "skewed", "outlier", "tiny",
                 "huge"}},
    [SHIFT] = {"shift", NULL, 1, {"none", "mean"}},
    [DROP] = {"drop", "'drop':'%s'", 1, {"arrival", "score"}},
    [GROUPS] = {"groups", NULL, 1, {"none", "max", "top2"}},
    [SCALE] = {"routed_scale", "'routed_scale':%s", 1, {"1", "2.5"}},
    [PADDING] = {"padding", "'padding':%s", 1, {"0", "2", "4"}},
    [BIASES] = {"expert_bias", "'expert_bias':%s", 1, {"false", "true"}},
    [SELECT] = {"select", "'select':'%s'", 1, {"logit", "gate"}},
    [WEIGH] = {"weigh", "'weigh':'%s'", 1, {"output", "input"}},
    [ACTIVATION] = {"activation", "'activation':'%s'", 1, {"relu2", "swiglu", "gelu", "gelu_tanh"}},
};

static const char *value_of(const size_t *choice, int s)
{
    return switches[s].values[choice[s]];
}

static bool has_value(const size_t *choice, int s, const char *value)
{
    return strcmp(value_of(choice, s), value) == 0;
}

static size_t number_of(const size_t *choice, int s)
{
    return strtoul(value_of(choice, s), NULL, 10);
}

/* A case being written, in single quotes. */
typedef struct writer {
    char text[2048];
    size_t length;
} writer;

__attribute__((format(printf, 2, 3))) static void put(writer *w, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int more = vsnprintf(w->text + w->length, sizeof w->text - w->length, format, arguments);
    va_end(arguments);
    ck_assert(more >= 0 && (size_t)more < sizeof w->text - w->length);
    w->length += (size_t)more;
}

/* Fields whose value depends on other switches. A micro-batch has as many tokens as TOKENS says. */
static void write_sizes(writer *w, const size_t *choice)
{
    size_t tokens = number_of(choice, TOKENS), padding = number_of(choice, PADDING);
    size_t real = tokens > padding ? tokens - padding : 1, pool = real; /* none: to be refused */
    bool all = has_value(choice, GRANULARITY, "all"), tc = has_value(choice, RULE, "tc");
    size_t each = number_of(choice, all ? EXPERTS : GRANULARITY);
    put(w, ",'tokens':%zu", tokens * number_of(choice, MICRO));
    put(w, tc ? ",'top_k':%zu" : ",'granularity':%zu", each);
    if (has_value(choice, POOL, "half")) { /* an odd number has none, and is to be refused */
        pool = real > 1 ? real / 2 : 2;
        put(w, ",'pool_tokens':%zu", pool);
    }
    if (has_value(choice, TARGET, "1")) put(w, ",'target_load':1");
    if (has_value(choice, TARGET, "pool")) put(w, ",'target_load':%zu", pool);
}

static void write_switches(writer *w, const size_t *choice)
{
    put(w, ",'shared':%s", has_value(choice, SHARED, "none") ? "false" : "true");
    if (has_value(choice, SHARED, "wider"))
        put(w, ",'shared_d_expert':%zu", number_of(choice, HIDDEN) + 2);
    if (!has_value(choice, WARMUP, "none"))
        put(w, ",'warmup_steps':3,'step':%d", has_value(choice, WARMUP, "on") ? 2 : 3);
    if (!has_value(choice, GROUPS, "none"))
        put(w, ",'groups':2,'groups_kept':1,'group_score':'%s'", value_of(choice, GROUPS));
    put(w, ",'balance':'%s'", value_of(choice, BALANCE));
    if (strncmp(value_of(choice, BALANCE), "aux", 3) == 0)
        put(w, ",'balance_coef':0.25");
    else if (!has_value(choice, BALANCE, "none"))
        put(w, ",'bias_rate':0.01");
}

/* Near-ties: three copies of a token, scaled by 1, 1.001 and 1.002. */
static void write_input(writer *w, const size_t *choice, size_t seed)
{
    bool near = has_value(choice, SOURCE, "near-ties");
    put(w, ",'input':{'seed':%zu,'source':'%s'", seed, near ? "ties" : value_of(choice, SOURCE));
    if (near) put(w, ",'copies':3,'jitter':0.001");
    if (has_value(choice, SOURCE, "text")) put(w, ",'text_offset':5000"); /* past the blank lines */
    if (has_value(choice, SHIFT, "mean")) put(w, ",'mean':0.5,'router_mean':2.0");
    put(w, "}");
}

static et_status parse_choice(et_case *c, const size_t *choice, size_t number, et_error *error)
{
    writer w = {.length = 0};
    put(&w, "{'name':'covering-%zu'", number);
    for (int s = 0; s < SWITCHES; s++) {
        char field[80];
        if (switches[s].json == NULL) continue;
        snprintf(field, sizeof field, switches[s].json, value_of(choice, s));
        put(&w, ",%s", field);
    }
    write_sizes(&w, choice);
    write_switches(&w, choice);
    write_input(&w, choice, number + 1);
    put(&w, "}");
    return parse_quoted(c, w.text, error);
}

/* ---- cases that have an answer in double ----
 *
 * Some legal cases ask what no double can know, whatever program computes it. Those are left out of
 * the covering; each of the pairs of switches in them occurs elsewhere.
 */

static bool by_threshold(const size_t *choice)
{
    bool warm = has_value(choice, RULE, "et") && !has_value(choice, WARMUP, "on");
    return !has_value(choice, RULE, "tc") && (warm || has_value(choice, MODE, "eval"));
}

/* Products of two short numbers, and a few of them added up, are exact in double: so are logits. */
static bool has_exact_logits(const size_t *choice)
{
    return has_value(choice, PRECISION, "bf16") || has_value(choice, PRECISION, "f16");
}

/* Copies of a token tie whatever the rounding. But with thresholds made to equal a score, and with
 * words that are equal but for their beginning, a rounded logit falls on either side; and so does a
 * score beside a threshold that was multiplied by 1 - beta^u and is divided by it again. */
static bool is_decided(const size_t *choice)
{
    bool text = has_value(choice, SOURCE, "text"), tc = has_value(choice, RULE, "tc");
    bool meets =
        text || has_value(choice, SOURCE, "ties") || has_value(choice, SOURCE, "near-ties");
    bool divided = has_value(choice, CORRECTION, "true") && has_value(choice, UPDATES, "7") &&
                   (has_value(choice, DECAY, "0.999") || has_value(choice, DECAY, "0.999999"));
    if (text && !tc && !has_exact_logits(choice)) return false;
    return !(meets && by_threshold(choice)) || (has_exact_logits(choice) && !divided);
}

/* e^r turns the last place of r, r 2^-53, into r 2^-53 of the result: with r = 1000 more than the
 * tolerance. And with norm = sum the gates must not all be e^-1000, which is 0 in double: 0/0. (The
 * library then says 0, as moe.h promises; the exact quotient is another number.) A text of width 1
 * consists of -1 and 1: a softmax over such tokens has a gradient that adds up to 0. Gates of tiny logits are all alike
 * (but relu's), and those of an expert that draws all tokens are near 1; what is dropped by score, or selected by gate
 * value, has a difference of two for its margin; large logits saturate. */
static bool is_conditioned(const size_t *choice)
{
    bool relu = has_value(choice, GATE, "relu") && has_value(choice, ACTIVATION, "relu2"), tc = has_value(choice, RULE, "tc");
    bool best = tc && has_value(choice, GATE, "softmax") && has_value(choice, CAPACITY, "null");
    bool vanish = has_value(choice, NORM, "sum") && !best;
    bool equal = has_value(choice, SOURCE, "text") && has_value(choice, WIDTH, "1");
    bool alike = has_value(choice, SOURCE, "tiny") && !has_value(choice, GATE, "relu");
    alike = alike || (has_value(choice, SOURCE, "skewed") && has_value(choice, EXPERTS, "1"));
    if (equal && has_value(choice, GATE, "softmax_tokens")) return false;
    if (alike && has_value(choice, DROP, "score")) return false;
    alike = alike || (has_value(choice, SOURCE, "huge") && !has_value(choice, GATE, "relu"));
    if (alike && has_value(choice, SELECT, "gate")) return false;
    if (!has_value(choice, SOURCE, "huge") || relu) return true;
    return has_exact_logits(choice) && !vanish;
}

/* sum_i (F_i - 1) P_i is 0 where all P_i are equal, since the F_i - 1 add up to 0; near that only
 * rounding errors are left. Gates of tiny logits are all alike, and so are saturated ones (not those
 * of relu) and those of a token that is 0, as the last of the ties are. A single expert's F is 1. See
 * cancels, too. */
static bool keeps_its_aux_error(const size_t *choice)
{
    bool ties = has_value(choice, SOURCE, "ties") || has_value(choice, SOURCE, "near-ties");
    if (!has_value(choice, BALANCE, "aux_error")) return true;
    if (has_value(choice, EXPERTS, "1") && has_value(choice, GLOBAL, "true")) return false;
    if (has_value(choice, GATE, "relu")) return true;
    return !has_value(choice, SOURCE, "tiny") && !has_value(choice, SOURCE, "huge") &&
           !(ties && has_value(choice, TOKENS, "1"));
}

/* ---- what contradicts what ---- */

static size_t parsed;

static bool is_legal(const size_t *choice)
{
    et_case c;
    if (!is_decided(choice) || !is_conditioned(choice) || !keeps_its_aux_error(choice))
        return false;
    parsed++;
    return parse_choice(&c, choice, 0, NULL) == ET_OK;
}

/* A value, or with '!' every value but this one. */
typedef struct position {
    int s;
    const char *values;
} position;

static bool is_at(position p, size_t s, size_t value)
{
    bool others = p.values[0] == '!';
    if ((size_t)p.s != s) return false;
    return (strcmp(switches[s].values[value], p.values + others) == 0) != others;
}

static bool is_among_positions(const position *list, size_t count, size_t s, size_t value)
{
    for (size_t i = 0; i < count; i++)
        if (is_at(list[i], s, value)) return true;
    return false;
}

/* What only some rules know, and so excludes the other rules, and what those alone know. */
static const position of_tc[] = {{RULE, "tc"},    {BALANCE, "!none"}, {GLOBAL, "true"},
                                 {DROP, "score"}, {GROUPS, "!none"},  {SELECT, "gate"}};
static const position of_ec[] = {{RULE, "ec"}};
static const position of_et[] = {{RULE, "et"}, {CAPACITY, "0"}, {WARMUP, "!none"}};
static const position of_tc_and_et[] = {{CAPACITY, "!null"}};
static const position of_ec_and_et[] = {
    {GATE, "softmax_tokens"}, {THRESHOLD, "inclusive"}, {DECAY, "!0.999"},   {CORRECTION, "true"},
    {UPDATES, "!0"},          {POOL, "half"},           {TARGET, "!derived"}};

/* Everything else. Integers stay integers only where nothing is divided or exponentiated. */
static const position clashes[][2] = {
    {{BALANCE, "none"}, {GLOBAL, "true"}},     {{EXPERTS, "1"}, {GRANULARITY, "2"}},
    {{TOKENS, "!8"}, {POOL, "half"}},          {{GATE, "!relu"}, {SOURCE, "integer"}},
    {{NORM, "!none"}, {SOURCE, "integer"}},    {{BALANCE, "!none"}, {SOURCE, "integer"}},
    {{GLOBAL, "true"}, {SOURCE, "integer"}},   {{Z_LOSS, "!0"}, {SOURCE, "integer"}},
    {{SOURCE, "integer"}, {SCALE, "2.5"}},     {{SOURCE, "integer"}, {ACTIVATION, "!relu2"}},
    {{TOKENS, "1"}, {PADDING, "!0"}},          {{SOURCE, "integer"}, {SHIFT, "mean"}},
    {{SOURCE, "text"}, {SHIFT, "mean"}},       {{GATE, "softmax_tokens"}, {PADDING, "!0"}},
    {{CAPACITY, "null"}, {DROP, "score"}},     {{EXPERTS, "!4"}, {GROUPS, "!none"}},
    {{GRANULARITY, "all"}, {GROUPS, "!none"}},
};

/* Which rules know of this value: a bit for each of tc, ec and et. */
static unsigned rules_knowing(size_t s, size_t value)
{
    if (is_among_positions(of_tc, COUNT(of_tc), s, value)) return 1;
    if (is_among_positions(of_ec, COUNT(of_ec), s, value)) return 2;
    if (is_among_positions(of_et, COUNT(of_et), s, value)) return 4;
    if (is_among_positions(of_tc_and_et, COUNT(of_tc_and_et), s, value)) return 1 | 4;
    return is_among_positions(of_ec_and_et, COUNT(of_ec_and_et), s, value) ? 2 | 4 : 1 | 2 | 4;
}

static bool contradicts(covering_pair p)
{
    if ((rules_knowing(p.s, p.a) & rules_knowing(p.t, p.b)) == 0) return true;
    for (size_t i = 0; i < COUNT(clashes); i++)
        if (is_at(clashes[i][0], p.s, p.a) && is_at(clashes[i][1], p.t, p.b)) return true;
    return false;
}

/* ---- the covering ---- */

_Static_assert((int)SWITCHES <= (int)COVERING_SWITCHES, "room for the switches");
static covering cover = {.switches = SWITCHES, .crossed = SHARED + 1, .legal = is_legal};

static void build_covering(void)
{
    if (cover.cases > 0) return;
    for (size_t s = 0; s < SWITCHES; s++) {
        cover.tried[s] = switches[s].tried;
        while (cover.values[s] < COVERING_VALUES && switches[s].values[cover.values[s]] != NULL)
            cover.values[s]++;
    }
    covering_build(&cover);
}

/* Which values of t the generator found no case for together with value a of s; a bit for each. */
static unsigned excluded_by(size_t s, size_t a, size_t t)
{
    unsigned set = 0;
    for (size_t i = 0; i < cover.excluded; i++) {
        const covering_pair *p = &cover.excluded_pair[i];
        if (p->s == s && p->a == a && p->t == t) set |= 1U << p->b;
    }
    return set;
}

static void print_values(size_t s, unsigned set)
{
    const char *between = "=";
    printf("%s", switches[s].name);
    for (size_t a = 0; a < cover.values[s]; a++) {
        if ((set >> a & 1) == 0) continue;
        printf("%s%s", between, switches[s].values[a]);
        between = "|";
    }
}

/* One line for all the values of s that exclude the same values of t. */
static void print_excluded(size_t s, size_t t)
{
    unsigned printed = 0;
    for (size_t a = 0; a < cover.values[s]; a++) {
        unsigned set = excluded_by(s, a, t), alike = 0;
        if (set == 0 || (printed >> a & 1) != 0) continue;
        for (size_t other = 0; other < cover.values[s]; other++)
            if (excluded_by(s, other, t) == set) alike |= 1U << other;
        printed |= alike;
        printf("excluded as contradictory: ");
        print_values(s, alike);
        printf(" with ");
        print_values(t, set);
        printf("\n");
    }
}

/* Counted from the list of cases, not taken from the generator. */
static bool occurs(covering_pair p)
{
    for (size_t i = 0; i < cover.cases; i++)
        if (cover.choice[i][p.s] == p.a && cover.choice[i][p.t] == p.b) return true;
    return false;
}

static size_t pairs;

static void check_pair(covering *c, covering_pair p)
{
    bool found = occurs(p);
    (void)c;
    pairs++;
    ck_assert_msg(found != contradicts(p), "%s=%s with %s=%s: %s", switches[p.s].name,
                  switches[p.s].values[p.a], switches[p.t].name, switches[p.t].values[p.b],
                  found ? "occurs, but is listed as a contradiction"
                        : "is refused, but not listed as a contradiction");
}

START_TEST(every_pair_occurs_that_does_not_contradict_itself)
{
    build_covering();
    for (size_t s = 0; s < SWITCHES; s++)
        for (size_t t = s + 1; t < SWITCHES; t++) print_excluded(s, t);
    pairs = 0;
    covering_each_pair(&cover, check_pair);
    printf("covering: %zu cases; %zu pairs, %zu of them contradictory; %zu cases tried\n",
           cover.cases, pairs, cover.excluded, parsed);
    ck_assert_uint_ge(cover.cases, 200);
    ck_assert_uint_lt(cover.cases, COVERING_CASES);
}
END_TEST

/* Is the aux_error loss less than 1/300 of what it adds up? By chance, or because every F is 1 and it is exactly 0. */
static bool loss_cancels(const et_step *s)
{
    double gates = 0;
    if (s->c.balance != ET_BALANCE_AUX_ERROR || s->loss_aux == NULL) return false;
    for (size_t i = 0; i < s->c.tokens * s->c.experts; i++) gates += (double)s->fwd.gates[i];
    double sum = fabs((double)*s->loss_aux), each = gates / (double)s->c.tokens;
    return sum < each / 300;
}

/* dr under norm sum, of dw - sum_j w_j dw_j, likewise: one gate may be nearly all of its token's. */
static bool gradient_cancels(const et_step *s)
{
    double most = 0, each = 0;
    if (s->c.layer != ET_MOE || s->c.norm != ET_NORM_SUM) return false;
    for (size_t i = 0; i < s->c.tokens * s->c.experts; i++)
        most = fmax(most, fabs((double)s->bwd.logits[i]));
    for (size_t j = 0; j < s->assignment.slots; j++)
        each = fmax(each, fabs((double)s->fwd.slot_weight[j] * (double)s->bwd.slot_weight[j]));
    return most < each / 300;
}

/* Is dr, where gates saturate, so near the smallest normal number that what it is made of has been below it? */
static bool gradient_vanishes(const et_step *s)
{
    double most = 0;
    for (size_t i = 0; s->c.layer == ET_MOE && i < s->c.tokens * s->c.experts; i++)
        most = fmax(most, fabs((double)s->bwd.logits[i]));
    return most > 0 && most < 1e-280;
}

/* Margins of gate values that are nearly equal, likewise: of a choice by them, or of what a capacity drops by score. */
static bool margin_cancels(const et_step *s)
{
    double most = 0, each = 0;
    if (s->c.layer != ET_MOE || (!s->c.select_gates && s->route.chosen == NULL)) return false;
    for (size_t i = 0; i < s->c.tokens * s->c.experts; i++) {
        double margin = fabs((double)s->route.margin[i]);
        if (isfinite(margin)) most = fmax(most, margin);
        each = fmax(each, fabs((double)s->fwd.gates[i]));
    }
    return most > 0 && most < each / 300;
}

/* dW_down of a shared expert so narrow that all of its sums over tokens may, likewise. */
static bool weights_cancel(const et_step *s)
{
    size_t d = s->c.d_model, hs = s->c.shared_d_expert;
    double most = 0, each = 0;
    for (size_t i = 0; s->bwd.shared_down && i < d * hs; i++) {
        double terms = 0;
        for (size_t t = 0; t < s->c.tokens; t++)
            terms += fabs((double)s->bwd.shared_out[t * d + i / hs] *
                          (double)s->fwd.shared_act[t * hs + i % hs]);
        most = fmax(most, fabs((double)s->bwd.shared_down[i]));
        each = fmax(each, terms);
    }
    return most < each / 300;
}

static bool cancels(const et_step *s)
{
    return weights_cancel(s) || loss_cancels(s) || margin_cancels(s) || gradient_cancels(s) ||
           gradient_vanishes(s);
}

/* The step of a case of the covering, from the first of 20 seeds with which nothing cancels. */
static void run_choice(et_step *s, const size_t *choice, size_t number)
{
    et_case c;
    et_error error;
    et_status status = parse_choice(&c, choice, number, &error);
    ck_assert_msg(status == ET_OK, "%s", error.text);
    run_case(s, &c);
    for (int tries = 0; tries < 20 && cancels(s); tries++) {
        et_step_free(s);
        c.input.seed += COVERING_CASES;
        run_case(s, &c);
    }
}

START_TEST(the_covering_agrees)
{
    agreement all = {0};
    build_covering();
    for (size_t i = 0; i < cover.cases; i++) {
        et_step s;
        run_choice(&s, cover.choice[i], i);
        compare_with_witness(&all, &s);
        et_step_free(&s);
    }
    print_agreement(&all, "covering");
    ck_assert_uint_eq(all.failures, 0);
}
END_TEST

/* ---- the dense layer, which has few switches ---- */

static void compare_dense(agreement *all, const char *source, const char *precision, size_t size,
                          const char *activation, const char *biased)
{
    static const size_t sizes[][3] = {{1, 1, 1}, {8, 4, 3}, {15, 9, 8}}; /* N, d, h */
    char json[512];
    et_case c;
    et_error error;
    snprintf(json, sizeof json,
             "{'name':'dense-%s-%s-%zu','layer':'dense','tokens':%zu,'d_model':%zu,'d_expert':%zu,"
             "'precision':'%s','activation':'%s','expert_bias':%s,'input':{'source':'%s'}}",
             source, precision, size, sizes[size][0], sizes[size][1], sizes[size][2], precision,
             activation, biased, source);
    et_status status = parse_quoted(&c, json, &error);
    bool skewed = strcmp(source, "skewed") == 0;
    bool whole = strcmp(source, "integer") == 0 && strcmp(activation, "relu2") != 0;
    ck_assert_msg((status == ET_OK) == !(skewed || whole), "%s", error.text);
    if (status == ET_OK) compare_case(all, &c);
}

START_TEST(dense_layers_agree)
{
    static const char *const sources[] = {"normal", "text",    "integer", "ties",
                                          "skewed", "outlier", "tiny",    "huge"};
    static const char *const precisions[] = {"f64", "f32", "bf16", "f16"};
    static const char *const activations[] = {"relu2", "swiglu", "gelu", "gelu_tanh"};
    agreement all = {0};
    for (size_t i = 0; i < COUNT(sources); i++)
        for (size_t j = 0; j < COUNT(precisions); j++)
            for (size_t k = 0; k < 3; k++)
                for (size_t a = 0; a < (strcmp(sources[i], "huge") == 0 ? 1 : 4); a++)
                    compare_dense(&all, sources[i], precisions[j], k, activations[a],
                                  (i + j + k + a) % 2 ? "true" : "false");
    print_agreement(&all, "dense");
    ck_assert_uint_eq(all.failures, 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("witness");
    omp_set_num_threads(1); /* the cases are so small that threads would only cost */
    TCase *committed = add_case(suite, "committed cases");
    tcase_add_test(committed, the_smoke_suite_agrees);
    tcase_add_test(committed, layers_of_a_trained_model_agree);
    tcase_add_test(committed, the_core_suite_agrees);
    tcase_add_test(committed, the_modern_suite_agrees);
    tcase_add_test(committed, given_assignments_agree);
    tcase_add_test(committed, integer_cases_are_exact_in_their_precision);
    TCase *covered = add_case(suite, "covering");
    tcase_add_test(covered, every_pair_occurs_that_does_not_contradict_itself);
    if (sizeof(et_real) == sizeof(double)) tcase_add_test(covered, the_covering_agrees);
    tcase_add_test(covered, dense_layers_agree);
    return run_suite(suite);
}
