/* random.c: honest kernels on layers that nobody chose. See campaign.h.
 *
 * Cases of a suite are made by somebody who knows what he fears. Here numbers decide: sizes from 1 up, any
 * rule, gate, norm, source of inputs, loss and state that the library accepts together, in storage that is coarser or
 * finer than the profile. Few of these layers are of use to anybody; a verdict on each must be just all the same.
 */
#include "etref/random.h"
#include "tests/campaign/campaign.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* ---- a case from a number ---- */

typedef struct dice {
    et_stream stream;
    uint64_t thrown;
    char text[1500]; /* the case, so far */
    size_t length;
} dice;

static double throw(dice * d)
{
    return et_uniform(d->stream, d->thrown++, 0);
}

/* 0 .. sides-1 */
static size_t one_of(dice *d, size_t sides)
{
    return (size_t)(throw(d) * (double)sides);
}

static bool now_and_then(dice *d, size_t times)
{
    return one_of(d, times) == 0;
}

/* low .. high, each power of two as likely as the next. */
static size_t size_between(dice *d, double low, double high)
{
    return (size_t)(low * pow((high + 1) / low, throw(d)));
}

static void say(dice *d, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    int more = vsnprintf(d->text + d->length, sizeof d->text - d->length, format, values);
    va_end(values);
    if (more > 0 && d->length + (size_t)more < sizeof d->text) d->length += (size_t)more;
}

/* One of the words in `list`, which are separated by spaces. */
static void say_one(dice *d, const char *field, const char *list)
{
    size_t words = 1;
    for (const char *at = list; *at; at++) words += *at == ' ';
    for (size_t skip = one_of(d, words); skip > 0; skip--) list = strchr(list, ' ') + 1;
    int width = (int)strcspn(list, " ");
    bool number = strspn(list, "0123456789.-") >= (size_t)width || strncmp(list, "true", 4) == 0 ||
                  strncmp(list, "false", 5) == 0;
    say(d, number ? ",'%s':%.*s" : ",'%s':'%.*s'", field, width, list);
}

static void say_token_choice(dice *d, size_t experts)
{
    static const char *const balances[] = {"none", "aux", "aux_error", "lossfree", "proportional"};
    size_t balance = one_of(d, 5);
    say(d, ",'top_k':%zu,'balance':'%s'", 1 + one_of(d, experts < 6 ? experts : 6),
        balances[balance]);
    if (balance == 1 || balance == 2) say_one(d, "balance_coef", "0.01 0.3");
    if (balance == 3 || balance == 4) say_one(d, "bias_rate", "0.01 0.1");
    if (balance > 0 && now_and_then(d, 4)) say(d, ",'global_load':true");
}

static void say_thresholds(dice *d, bool et, size_t pool)
{
    say(d, ",'pool_tokens':%zu", pool);
    if (now_and_then(d, 2)) say(d, ",'target_load':%zu", 1 + one_of(d, pool < 60 ? pool : 60));
    say_one(d, "threshold", "strict inclusive");
    say_one(d, "ema_decay", "0.9 0.99 0.999 0");
    say(d, ",'ema_updates':%zu", now_and_then(d, 2) ? one_of(d, 4) : 10 + one_of(d, 1000));
    say_one(d, "ema_bias_correction", "true false");
    if (et && now_and_then(d, 2)) say_one(d, "capacity_factor", "0 0.25 0.5 1 3");
    if (et && now_and_then(d, 6)) say(d, ",'warmup_steps':10,'step':%zu", one_of(d, 20));
}

static void say_input(dice *d, size_t number, size_t experts)
{
    static const char *const sources[] = {"normal", "normal", "text",    "integer", "ties",
                                          "skewed", "tiny",   "outlier", "huge"};
    const char *source = sources[one_of(d, 9)];
    bool drawn = strcmp(source, "text") != 0 && strcmp(source, "integer") != 0;
    say(d, ",'input':{'source':'%s','seed':%zu", source, number);
    if (drawn && now_and_then(d, 4)) say_one(d, "mean", "0.5 2 -1");
    if (drawn && now_and_then(d, 5)) say_one(d, "router_mean", "1 -2 4");
    if (strcmp(source, "ties") == 0) say(d, ",'copies':%zu", 2 + one_of(d, 6));
    if (strcmp(source, "ties") == 0) say_one(d, "jitter", "0 0.001");
    if (strcmp(source, "skewed") == 0) say(d, ",'hot':%zu", one_of(d, experts));
    say(d, "}}");
}

/* False where the library refuses what came out. */
static bool case_of_number(et_case *c, size_t number)
{
    static const char *const rules[] = {"tc", "ec", "et"};
    et_error error;
    dice d = {.stream = et_stream_open(number, "random case")};
    size_t batches = now_and_then(&d, 4) ? 1 + one_of(&d, 3) : 1;
    size_t batch = size_between(&d, 1, 500 / (double)batches), rule = one_of(&d, 3);
    size_t experts = size_between(&d, 1, 40);
    size_t pool = batch % 2 == 0 && now_and_then(&d, 3) ? batch / 2 : batch;
    say(&d, "{'name':'random-%zu','rule':'%s','tokens':%zu,'micro_batches':%zu", number,
        rules[rule], batches * batch, batches);
    say(&d, ",'d_model':%zu", size_between(&d, 2, 200));
    say(&d, ",'d_expert':%zu,'experts':%zu", size_between(&d, 1, 200), experts);
    say_one(&d, "gate",
            "sigmoid sigmoid relu softmax softmax_anchor softmax_anchor_out softmax_tokens");
    say_one(&d, "norm", "none none fanout sum");
    say_one(&d, "shared", "true true false");
    say_one(&d, "mode", "train train train eval");
    if (rule == 0)
        say_token_choice(&d, experts);
    else
        say_thresholds(&d, rule == 2, pool);
    if (now_and_then(&d, 3)) say_one(&d, "z_loss_coef", "0.001 0.1");
    say_one(&d, "precision", "f64 f32 bf16 f16");
    say_input(&d, number, experts);
    return cp_case(c, d.text, &error) == ET_OK;
}

bool cp_random_case(et_case *c, const char *name)
{
    size_t number;
    return sscanf(name, "random-%zu", &number) == 1 && case_of_number(c, number);
}

/* ---- units ---- */

/* `seeds` hundreds of numbers; of a hundred some seventy make cases. */
static bool plan(cp_list *list, const cp_options *o, et_error *error)
{
    size_t numbers = 100 * (o->seeds ? o->seeds : cp_random.seeds);
    for (size_t i = 0; i < numbers; i++) {
        et_case c;
        if (case_of_number(&c, i) && !cp_list_add_case(list, &cp_random, &c, i, error))
            return false;
    }
    return true;
}

const cp_part cp_random = {"random",    "honest kernels on layers that nobody chose",
                           12,          plan,
                           cp_try_some, cp_report_honest};
