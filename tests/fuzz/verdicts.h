/* verdicts.h: verdicts on small layers that nobody chose, and on candidates that nobody meant. What
 * fuzz_verify.c (libFuzzer) and test_random_verdicts.c (fixed seeds; also under Valgrind) have in common.
 *
 *     bytes -> a case of any rule, gate, norm, loss, state, widths that are equal or are not
 *           -> its golden
 *           -> a candidate: the golden, the same layer with another routing, or that of another case;
 *              in other types, its values spoiled here and there, most of its tensors left out
 *           -> et_verify with its explanation
 *
 * Whatever comes of it, nothing may be read or written past an array; beyond that, what must hold of any
 * verdict: a refusal says why; the golden's own values, or what storing them in 24 bits makes of them, are
 * no mismatch; the order of tensors and a golden's block layout say nothing about the kernel.
 *
 * Products are three plain loops here (the linker's --wrap, see the Makefile), so that a sanitizer sees
 * every number that they read: OpenBLAS is nobody's to instrument.
 *
 * Left out: files (fuzz_candidate.c), and large layers, which explanations look at in part only.
 */
#ifndef ETREF_TESTS_VERDICTS_H
#define ETREF_TESTS_VERDICTS_H

#include "etref/etref.h"

#include <cblas.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- products that can be watched ---- */

static void multiply(size_t M, size_t N, size_t K, et_matrix A, et_matrix B, bool accumulate,
                     et_real *C, size_t stride)
{
    for (size_t i = 0; i < M; i++)
        for (size_t j = 0; j < N; j++) {
            et_real sum = accumulate ? C[i * stride + j] : 0;
            for (size_t k = 0; k < K; k++)
                sum += A.at[A.transposed ? k * A.stride + i : i * A.stride + k] *
                       B.at[B.transposed ? j * B.stride + k : k * B.stride + j];
            C[i * stride + j] = sum;
        }
}

void watched_matmul(et_engine engine, size_t M, size_t N, size_t K, et_matrix A, et_matrix B,
                    bool accumulate, et_real *C, size_t stride) __asm__("__wrap_et_matmul");
void watched_matmul(et_engine engine, size_t M, size_t N, size_t K, et_matrix A, et_matrix B,
                    bool accumulate, et_real *C, size_t stride)
{
    (void)engine;
    multiply(M, N, K, A, B, accumulate, C, stride);
}

void watched_sgemm(enum CBLAS_ORDER order, enum CBLAS_TRANSPOSE turn_a, enum CBLAS_TRANSPOSE turn_b,
                   int M, int N, int K, float alpha, const float *A, int a_stride, const float *B,
                   int b_stride, float beta, float *C, int stride) __asm__("__wrap_cblas_sgemm");
void watched_sgemm(enum CBLAS_ORDER order, enum CBLAS_TRANSPOSE turn_a, enum CBLAS_TRANSPOSE turn_b,
                   int M, int N, int K, float alpha, const float *A, int a_stride, const float *B,
                   int b_stride, float beta, float *C, int stride)
{
    (void)order;
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            float sum = 0;
            for (int k = 0; k < K; k++)
                sum += A[turn_a == CblasTrans ? k * a_stride + i : i * a_stride + k] *
                       B[turn_b == CblasTrans ? j * b_stride + k : k * b_stride + j];
            C[i * stride + j] = alpha * sum + (beta != 0 ? beta * C[i * stride + j] : 0);
        }
}

/* ---- dice: an input's bytes, then as many numbers as are asked for, which follow from these ---- */

typedef struct dice {
    const uint8_t *bytes;
    size_t count, used;
    et_stream more;
} dice;

static dice dice_of(const uint8_t *bytes, size_t count)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < count; i++) hash = (hash ^ bytes[i]) * UINT64_C(0x100000001b3);
    return (dice){bytes, count, 0, et_stream_open(hash, "verdicts")};
}

/* 0 .. sides-1; sides up to 256 */
static size_t roll(dice *d, size_t sides)
{
    size_t at = d->used++;
    if (at < d->count) return d->bytes[at] % sides;
    return (size_t)(et_uniform(d->more, at, 0) * (double)sides);
}

static bool one_in(dice *d, size_t sides)
{
    return roll(d, sides) == 0;
}

/* ---- a case ---- */

typedef struct script {
    char text[1024];
    size_t used;
} script;

#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
static void
say(script *s, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    s->used += (size_t)vsnprintf(s->text + s->used, sizeof s->text - s->used, format, arguments);
    va_end(arguments);
}

/* One of the words between spaces. */
static void say_one(dice *d, script *s, const char *field, const char *list)
{
    size_t words = 1;
    for (const char *at = list; *at; at++) words += *at == ' ';
    for (size_t skip = roll(d, words); skip > 0; skip--) list += strcspn(list, " ") + 1;
    int width = (int)strcspn(list, " ");
    bool bare = strncmp(list, "true", 4) == 0 || strncmp(list, "false", 5) == 0 ||
                (*list >= '0' && *list <= '9');
    say(s, bare ? ",'%s':%.*s" : ",'%s':'%.*s'", field, width, list);
}

static void say_dense(dice *d, script *s)
{
    say(s, "{'name':'dense','layer':'dense','tokens':%zu", 1 + roll(d, 20));
}

static void say_token_choice(dice *d, script *s, size_t experts)
{
    say(s, ",'top_k':%zu", 1 + roll(d, experts));
    switch (roll(d, 5)) {
    case 0: say(s, ",'balance':'aux','balance_coef':0.1"); break;
    case 1: say(s, ",'balance':'aux_error','balance_coef':0.1"); break;
    case 2: say(s, ",'balance':'lossfree'"); break;
    case 3: say(s, ",'balance':'proportional'"); break;
    default: return;
    }
    if (one_in(d, 3)) say(s, ",'global_load':true");
}

static void say_thresholds(dice *d, script *s, bool et, size_t micro)
{
    size_t pool = micro % 2 == 0 && one_in(d, 2) ? micro / 2 : micro;
    if (!et) say(s, ",'pool_tokens':%zu", pool);
    say(s, ",'target_load':%zu", 1 + roll(d, et ? micro : pool));
    say_one(d, s, "threshold", "strict inclusive");
    say_one(d, s, "ema_bias_correction", "true false");
    say_one(d, s, "ema_decay", "0.9 0 0.999");
    say(s, ",'ema_updates':%zu", roll(d, 40));
    if (et && one_in(d, 2)) say_one(d, s, "capacity_factor", "0 0.5 1 3");
    if (et && one_in(d, 5)) say(s, ",'warmup_steps':10,'step':%zu", roll(d, 20));
}

static void say_experts(dice *d, script *s, size_t width)
{
    static const char *const rules[] = {"tc", "ec", "et"};
    size_t rule = roll(d, 3), batches = one_in(d, 3) ? 2 + roll(d, 2) : 1;
    size_t micro = 1 + roll(d, 16 / batches), experts = 1 + roll(d, 6);
    say(s, "{'name':'moe','rule':'%s','tokens':%zu,'micro_batches':%zu,'experts':%zu", rules[rule],
        batches * micro, batches, experts);
    say_one(d, s, "gate",
            rule == 0 ? "sigmoid relu softmax softmax_anchor softmax_anchor_out"
                      : "sigmoid relu softmax softmax_anchor softmax_anchor_out softmax_tokens");
    say_one(d, s, "norm", "none fanout sum");
    if (one_in(d, 3))
        say(s, ",'shared':false");
    else if (one_in(d, 2))
        say(s, ",'shared_d_expert':%zu", one_in(d, 3) ? width : 1 + roll(d, 8));
    if (one_in(d, 5)) say(s, ",'mode':'eval'");
    if (one_in(d, 3)) say(s, ",'z_loss_coef':0.1");
    if (rule == 0)
        say_token_choice(d, s, experts);
    else
        say_thresholds(d, s, rule == 2, micro);
}

/* False where the library refuses what came out. */
static bool draw_case(dice *d, et_case *c)
{
    script s = {0};
    size_t width = 1 + roll(d, 10);
    if (one_in(d, 8))
        say_dense(d, &s);
    else
        say_experts(d, &s, width);
    say(&s, ",'d_model':%zu,'d_expert':%zu", width, one_in(d, 3) ? width : 1 + roll(d, 10));
    say_one(d, &s, "precision", "f64 f32 bf16 f16");
    say(&s, ",'input':{'seed':%zu", roll(d, 256));
    say_one(d, &s, "source", "normal normal normal ties outlier tiny huge");
    say(&s, "}}");
    for (char *at = s.text; *at != '\0'; at++)
        if (*at == '\'') *at = '"';
    return et_case_parse(c, s.text, s.used, "drawn", NULL) == ET_OK;
}

/* ---- the golden, and other layers with its inputs ---- */

/* *s is a step of the case with the inputs of `from`; NULL: with its own. The caller frees it. */
static et_status run_like(et_step *s, const et_case *c, const et_step *from, size_t block,
                          const uint8_t *mask)
{
    et_status status = et_step_create(s, c, 0, NULL);
    if (status != ET_OK) return status;
    if (from == NULL) {
        status = et_step_draw_inputs(s, NULL);
    } else {
        et_tensor_out mine[ET_MAX_STEP_TENSORS], theirs[ET_MAX_STEP_TENSORS];
        size_t count = et_step_tensors(s, false, mine);
        size_t have = et_step_tensors(from, false, theirs);
        for (size_t i = 0; i < count; i++)
            for (size_t k = 0; k < have; k++) {
                size_t elements = 1;
                if (strcmp(mine[i].name, theirs[k].name) != 0) continue;
                for (size_t r = 0; r < mine[i].rank; r++) elements *= mine[i].shape[r];
                memcpy((et_real *)(uintptr_t)mine[i].values, theirs[k].values,
                       elements * sizeof(et_real));
            }
    }
    s->block = block;
    s->given_mask = mask;
    if (status == ET_OK) status = et_step_run(s, ET_PLAIN, NULL, NULL, NULL);
    if (status != ET_OK) et_step_free(s);
    return status;
}

/* The rule, or the layer, with one switch set otherwise; the inputs fit still. */
static void misread_case(dice *d, et_case *c)
{
    bool tc = c->rule == ET_TC;
    size_t most = tc ? c->experts : c->pool_tokens, *k = tc ? &c->top_k : &c->target_load;
    if (c->layer == ET_DENSE) return;
    switch (roll(d, 9)) {
    case 0: *k += *k < most; break;
    case 1: *k -= *k > 1; break;
    case 2: *k = most; break;
    case 3: c->inclusive = !c->inclusive; break;
    case 4: c->gate = c->gate == ET_GATE_SIGMOID ? ET_GATE_SOFTMAX : ET_GATE_SIGMOID; break;
    case 5: c->norm = (et_norm)((c->norm + 1) % 3); break;
    case 6: c->has_capacity = false; break;
    case 7: c->ema_bias_correction = !c->ema_bias_correction; break;
    default: c->eval = !c->eval;
    }
    if (tc) c->granularity = c->top_k;
}

/* Another assignment: some decisions turned, an expert or a token too many or left out, none, all. */
static void misroute(dice *d, size_t N, size_t n, uint8_t *mask)
{
    size_t what = roll(d, 6), turns = 1 + roll(d, 4), chosen = roll(d, N < n ? N : n);
    for (size_t i = 0; i < N * n; i++) {
        if (what == 1 && i % n == chosen) mask[i] = !mask[i];
        if (what == 2 && i / n == chosen) mask[i] = !mask[i];
        if (what == 3) mask[i] = 1;
        if (what == 4) mask[i] = 0;
        if (what == 5) mask[i] = one_in(d, 2);
    }
    for (; what == 0 && turns > 0; turns--) {
        size_t at = roll(d, N * n < 256 ? N * n : 256);
        mask[at] = !mask[at];
    }
}

/* ---- a candidate ---- */

typedef struct suspect {
    size_t count;
    et_tensor_out tensors[ET_MAX_STEP_TENSORS]; /* reals as doubles or floats, the suspect's own */
    bool shared_rounding;                       /* all reals are stored in 24 bits */
    bool honest;                                /* nothing is wrong with it but its rounding */
} suspect;

static size_t count_of(const et_tensor_out *t)
{
    size_t count = 1;
    for (size_t i = 0; i < t->rank; i++) count *= t->shape[i];
    return count;
}

static bool is_real(const et_tensor_out *t)
{
    return t->source == ET_FROM_F64 || t->source == ET_FROM_F32;
}

static void free_suspect(suspect *k)
{
    for (size_t i = 0; i < k->count; i++) free((void *)(uintptr_t)k->tensors[i].values);
    k->count = 0;
}

/* A copy in memory of its own, exactly as large as it is, so that a reader past its end is seen. */
static bool add_copy(suspect *k, const et_tensor_out *from, et_dtype type)
{
    size_t count = count_of(from);
    size_t size = from->source == ET_FROM_I32  ? sizeof(int32_t)
                  : from->source == ET_FROM_U8 ? sizeof(uint8_t)
                  : type == ET_F64             ? sizeof(double)
                                               : sizeof(float);
    void *room = calloc(count, size);
    et_tensor_out *t = &k->tensors[k->count];
    if (room == NULL && count > 0) return false;
    *t = *from;
    t->values = room;
    k->count++;
    if (!is_real(from)) {
        if (count > 0) memcpy(room, from->values, count * size);
        return true;
    }
    t->dtype = type;
    t->source = type == ET_F64 ? ET_FROM_F64 : ET_FROM_F32;
    for (size_t i = 0; i < count; i++) {
        double value = et_round_to_dtype((double)((const et_real *)from->values)[i], type);
        if (type == ET_F64)
            ((double *)room)[i] = value;
        else
            ((float *)room)[i] = (float)value;
    }
    return true;
}

static const et_tensor_out *find_named(const et_tensor_out *list, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(list[i].name, name) == 0) return &list[i];
    return NULL;
}

/* May a candidate show it? Rows of slots are as many as its own routing makes. */
static bool can_be_shown(const et_tensor_out *t, const et_tensor_out *golden)
{
    if (golden == NULL || t->rank != golden->rank) return false;
    bool slots = strchr("SBR", et_tensor_doc_find(t->name)->shape[1]) != NULL;
    return memcmp(t->shape + slots, golden->shape + slots, (t->rank - slots) * sizeof *t->shape) ==
           0;
}

/* Of which tensors the candidate consists. */
typedef enum kept { ALL, HALF, Y_ALONE, Y_AND_DX, NO_ROUTING, GRADIENTS, FEW, CHOICES } kept;

static bool keeps(dice *d, kept what, const char *name)
{
    bool y = strcmp(name, "fwd.y") == 0, in = strncmp(name, "in.", 3) == 0;
    if (in) return one_in(d, 16);
    switch (what) {
    case ALL: return true;
    case HALF: return one_in(d, 2);
    case Y_ALONE: return y;
    case Y_AND_DX: return y || strcmp(name, "bwd.x") == 0;
    case NO_ROUTING: return strncmp(name, "route.", 6) != 0;
    case GRADIENTS: return strncmp(name, "bwd.w", 5) == 0 || strcmp(name, "bwd.x") == 0;
    case FEW: return one_in(d, 8);
    case CHOICES:
        return strncmp(name, "route.", 6) == 0 || strncmp(name, "state.", 6) == 0 || one_in(d, 4);
    }
    return false;
}

static et_dtype draw_type(dice *d)
{
    static const et_dtype types[] = {ET_F64, ET_F32, ET_BF16, ET_F16};
    return types[roll(d, 4)];
}

static bool take_tensors(dice *d, suspect *k, const et_step *from, const et_step *golden)
{
    et_tensor_out own[ET_MAX_STEP_TENSORS], theirs[ET_MAX_STEP_TENSORS];
    size_t count = et_step_tensors(from, false, own);
    size_t have = et_step_tensors(golden, false, theirs);
    kept what = (kept)roll(d, 8);
    bool mixed = one_in(d, 6), fine = true;
    et_dtype type = draw_type(d);
    k->shared_rounding = !mixed && type == ET_F32;
    for (size_t i = 0; fine && i < count; i++) {
        et_dtype its = mixed ? draw_type(d) : type;
        bool in = strncmp(own[i].name, "in.", 3) == 0; /* copies of the golden's, or refused */
        if (!can_be_shown(&own[i], find_named(theirs, have, own[i].name)) ||
            !keeps(d, what, own[i].name))
            continue;
        fine = add_copy(k, &own[i], in ? ET_F64 : its);
    }
    return fine;
}

/* ---- what may be wrong with a tensor ---- */

static double value_at(const et_tensor_out *t, size_t i)
{
    return t->source == ET_FROM_F64 ? ((const double *)t->values)[i]
                                    : (double)((const float *)t->values)[i];
}

static void set_value(const et_tensor_out *t, size_t i, double value)
{
    double *doubles = (double *)(uintptr_t)t->values;
    float *floats = (float *)(uintptr_t)t->values;
    if (t->source == ET_FROM_F64)
        doubles[i] = value;
    else
        floats[i] = (float)et_round_to_dtype(value, t->dtype);
}

static void spoil_reals(dice *d, const et_tensor_out *t)
{
    static const double factors[] = {2, 0.5, 1.03125, 1.001, -1, 0, 1e30, 1e-30};
    static const double numbers[] = {NAN, INFINITY, -INFINITY, 0, 1, -3, 1e300, 1e-310};
    size_t count = count_of(t), columns = t->rank > 1 ? t->shape[t->rank - 1] : 1;
    size_t what = roll(d, 6), which = roll(d, 8), place = roll(d, 256);
    if (count == 0) return;
    et_stream noise = et_stream_open(place, t->name);
    double first = value_at(t, 0);
    for (size_t i = 0; i < count; i++) {
        double value = value_at(t, i);
        bool here = what == 0 || (what == 1 && i / columns == place % (count / columns)) ||
                    (what == 2 && i % columns == place % columns);
        if (here) set_value(t, i, factors[which] * value);
        if (what == 3 && i == place % count) set_value(t, i, numbers[which]);
        if (what == 4) set_value(t, i, value * (1 + 0x1p-7 * et_normal(noise, i)));
        if (what == 5) set_value(t, i, i + 1 < count ? value_at(t, i + 1) : first);
    }
}

/* A mask of other numbers is refused; so most of them get 0 and 1. */
static void spoil_integers(dice *d, const et_tensor_out *t)
{
    static const int32_t numbers[] = {0, 1, -1, 2, 7, INT32_MAX, INT32_MIN, 255};
    size_t count = count_of(t), which = roll(d, 8), place = roll(d, 256);
    bool all = one_in(d, 3);
    int32_t *integers = (int32_t *)(uintptr_t)t->values;
    uint8_t *bytes = (uint8_t *)(uintptr_t)t->values;
    for (size_t i = 0; i < count; i++) {
        if (!all && i != place % count) continue;
        if (t->source == ET_FROM_U8)
            bytes[i] = which < 7 ? bytes[i] ^ 1 : 2;
        else if (which < 4)
            integers[i] = (int32_t)((uint32_t)integers[i] + (uint32_t)numbers[which]);
        else
            integers[i] = numbers[which];
    }
}

static void spoil(dice *d, suspect *k)
{
    for (size_t times = 1 + roll(d, 3); times > 0 && k->count > 0; times--) {
        const et_tensor_out *t = &k->tensors[roll(d, k->count)];
        if (strncmp(t->name, "in.", 3) == 0) continue;
        if (is_real(t))
            spoil_reals(d, t);
        else
            spoil_integers(d, t);
    }
}

/* The layer that the candidate computed: the golden's, with another routing, or another one. */
static et_status run_candidate(dice *d, et_step *s, const et_step *golden, bool *right)
{
    et_case c = golden->c;
    size_t places = c.tokens * c.experts, kind = roll(d, 4);
    uint8_t *mask = NULL;
    *right = c.layer == ET_DENSE || kind < 2;
    if (!*right && kind == 2) {
        mask = calloc(places, 1);
        if (mask == NULL) return ET_ENOMEM;
        memcpy(mask, golden->route.mask, places);
        misroute(d, c.tokens, c.experts, mask);
    } else if (!*right) {
        misread_case(d, &c);
    }
    et_status status = run_like(s, &c, golden, golden->block, mask);
    free(mask);
    return status;
}

static bool draw_candidate(dice *d, suspect *k, const et_step *golden)
{
    et_step layer;
    bool right;
    *k = (suspect){0};
    if (run_candidate(d, &layer, golden, &right) != ET_OK) return false;
    bool fine = take_tensors(d, k, &layer, golden);
    et_step_free(&layer);
    bool spoilt = one_in(d, 2);
    if (fine && spoilt) spoil(d, k);
    k->honest = right && !spoilt;
    return fine;
}

/* ---- verdicts, and what must hold of them ---- */

static et_status judge(et_verdict *v, const et_step *golden, const suspect *k,
                       const et_verify_options *options, et_error *error)
{
    *error = (et_error){""};
    return et_verify(v, golden, k->tensors, k->count, options, error);
}

/* A mismatch of values that a type of 24 bits holds no better, under a profile that keeps no more. */
static bool is_unjust(const suspect *k, const et_verdict *v, const et_profile *p)
{
    bool few = true;
    for (int i = 0; i < ET_PLACES; i++) few = few && p->bits[i] <= 24;
    return k->honest && k->shared_rounding && few && v->outcome == ET_MISMATCH;
}

static bool is_same(const et_verdict *a, const et_verdict *b)
{
    bool same = a->outcome == b->outcome && strcmp(a->line, b->line) == 0 &&
                a->tensor_count == b->tensor_count &&
                a->explanation_count == b->explanation_count &&
                strcmp(a->residual, b->residual) == 0;
    for (size_t i = 0; same && i < a->tensor_count; i++)
        same = a->tensors[i].outcome == b->tensors[i].outcome &&
               strcmp(a->tensors[i].reason, b->tensors[i].reason) == 0;
    for (size_t i = 0; same && i < a->explanation_count; i++)
        same = strcmp(a->explanations[i].name, b->explanations[i].name) == 0 &&
               strcmp(a->explanations[i].scope, b->explanations[i].scope) == 0;
    return same;
}

/* The same candidate, its tensors from last to first, against a golden with another block layout: what is wrong
 * with the second verdict, or NULL. */
static const char *judge_again(const et_step *golden, const suspect *k,
                               const et_verify_options *options, const et_verdict *first)
{
    et_step other;
    suspect turned = *k;
    et_verdict again;
    et_error error;
    size_t block = golden->block ? 0 : 3;
    for (size_t i = 0; i < k->count; i++) {
        if (strncmp(k->tensors[i].name, "layout.", 7) == 0) return NULL; /* the other has none */
        turned.tensors[i] = k->tensors[k->count - 1 - i];
    }
    if (run_like(&other, &golden->c, golden, block, NULL) != ET_OK) return "the golden, once more";
    const char *wrong = NULL;
    if (judge(&again, &other, &turned, options, &error) != ET_OK) {
        wrong = "refused in another order, or with another layout";
    } else {
        if (!is_same(first, &again)) wrong = "another verdict in another order or layout";
        et_verdict_free(&again);
    }
    et_step_free(&other);
    return wrong;
}

/* What a failure was about, for whoever looks into it. */
static void describe(const et_step *golden, const suspect *k, const et_profile *p,
                     const et_verdict *v)
{
    char *json;
    if (et_case_print(&json, &golden->c, NULL) != ET_OK) return;
    fprintf(stderr, "%s\nblock %zu, profile %s; the candidate shows", json, golden->block, p->name);
    for (size_t i = 0; i < k->count; i++)
        fprintf(stderr, " %s (%s)", k->tensors[i].name, et_dtype_name(k->tensors[i].dtype));
    fprintf(stderr, "\n%s\n", v->line);
    free(json);
}

static const char *judge_candidate(dice *d, const et_step *golden, const suspect *k)
{
    static const char *const profiles[] = {"f32", "tf32", "bf16", "bf16-low", "f16", "f64"};
    static const char *const required[] = {"fwd.y", "bwd.*"};
    const et_verify_options options = {.profile = et_profile_find(profiles[roll(d, 6)]),
                                       .ties_any = one_in(d, 4),
                                       .require = required,
                                       .require_count = one_in(d, 6) ? roll(d, 3) : 0,
                                       .explain = true};
    et_verdict verdict;
    et_error error;
    bool twice = one_in(d, 4);
    if (options.profile == NULL) return "a profile is missing";
    et_status status = judge(&verdict, golden, k, &options, &error);
    if ((status == ET_OK) != (error.text[0] == '\0')) return "a message if and only if refused";
    if (status != ET_OK && status != ET_EINVAL) return "there is memory enough";
    if (status != ET_OK) return k->honest ? "an honest candidate is refused" : NULL;
    const char *wrong = NULL;
    if (verdict.line[0] == '\0') wrong = "a verdict has a line";
    if (is_unjust(k, &verdict, options.profile)) wrong = "the golden in 24 bits is a mismatch";
    if (wrong == NULL && twice) wrong = judge_again(golden, k, &options, &verdict);
    if (wrong) describe(golden, k, options.profile, &verdict);
    et_verdict_free(&verdict);
    return wrong;
}

/* Draws and judges; what does not hold, or NULL. `judged` counts verdicts; NULL: nobody does. */
static const char *try_verdict(const uint8_t *bytes, size_t count, size_t *judged)
{
    et_case c;
    et_step golden;
    suspect k;
    dice d = dice_of(bytes, count);
    const char *wrong = NULL;
    if (!draw_case(&d, &c)) return NULL;
    size_t block = c.layer == ET_MOE && one_in(&d, 3) ? 1 + roll(&d, 5) : 0;
    if (run_like(&golden, &c, NULL, block, NULL) != ET_OK) return NULL; /* huge: it overflows */
    if (draw_candidate(&d, &k, &golden)) {
        k.honest &= et_step_check_values(&golden, NULL) == ET_OK; /* else nothing is */
        wrong = judge_candidate(&d, &golden, &k);
        if (judged) ++*judged;
    }
    free_suspect(&k);
    et_step_free(&golden);
    return wrong;
}

#endif
