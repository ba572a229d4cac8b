/* cmd_train.c: `etref train`: a small model on the bytes of a file.
 *
 * The loop: draw a batch, take a step, write a line of the log; now and then evaluate on the
 * held-out part and write a checkpoint. Everything that a step hangs on is in the checkpoint, and
 * the batch is a function of seed and step: a run that was stopped, in whatever way, goes on with
 * --resume to the same losses, bit for bit, as if it had not been (with the same number of
 * threads).
 */
#include "etref/etref.h"
#include "tools/etref/commands.h"
#include "tools/etref/ending.h"
#include "tools/etref/folder.h"
#include "tools/etref/memory_limit.h"
#include "tools/etref/options.h"
#include "tools/etref/partial.h"
#include "tools/etref/terminal.h"
#include "tools/etref/train.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* ---- stopping: the step that has begun is finished, and a checkpoint written ---- */

static volatile sig_atomic_t stopped_by;

static void on_stop(int number)
{
    if (stopped_by != 0) { /* a second time: at once */
        signal(number, SIG_DFL);
        raise(number);
    }
    stopped_by = number;
}

static void catch_stops(void)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    const struct sigaction action = {.sa_handler = on_stop, .sa_flags = SA_RESTART};
    struct sigaction before;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (sigaction(numbers[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN)
            sigaction(numbers[i], &action, NULL);
}

/* ---- what is asked for ---- */

static bool read_options(train_options *o, int argc, char **argv)
{
    word_list words = {0};
    const option table[] = {{"--text", OPTION_WORD, &o->text, NULL},
                            {"--out", OPTION_WORD, &o->out, NULL},
                            {"--config", OPTION_WORD, &o->config, NULL},
                            {"--rule", OPTION_CHOICE, &o->rule, TRAIN_RULES},
                            {"--layers", OPTION_COUNT, &o->layers, NULL},
                            {"--d-model", OPTION_COUNT, &o->d_model, NULL},
                            {"--heads", OPTION_COUNT, &o->heads, NULL},
                            {"--experts", OPTION_COUNT, &o->experts, NULL},
                            {"--steps", OPTION_COUNT, &o->steps, NULL},
                            {"--tokens", OPTION_COUNT, &o->tokens, NULL},
                            {"--seed", OPTION_WORD, &o->seed, NULL},
                            {"--resume", OPTION_FLAG, &o->resume, NULL},
                            {"--evaluate-every", OPTION_COUNT, &o->evaluate_every, NULL},
                            {"--evaluate-batches", OPTION_COUNT, &o->evaluate_batches, NULL},
                            {"--checkpoint-every", OPTION_COUNT, &o->checkpoint_every, NULL},
                            {"--final", OPTION_CHOICE, &o->final, TRAIN_FINALS},
                            {"--keep-every", OPTION_COUNT, &o->keep_every, NULL},
                            {"--threads", OPTION_THREADS, &o->threads, NULL},
                            {NULL, OPTION_FLAG, NULL, NULL}};
    bool fine = options_parse(table, argc, argv, &words);
    if (fine && words.count > 0) {
        fail("train: '%s' stands alone; the text is named with --text %s", words.at[0],
             words.at[0]);
        fine = false;
    } else if (fine && (o->text == NULL || o->out == NULL)) {
        fail("train: %s is missing: see 'etref help train'", o->text ? "--out DIR" : "--text FILE");
        fine = false;
    }
    word_list_free(&words);
    return fine;
}

static et_status name_files(train_run *run, const char *out, et_error *error)
{
    size_t room = sizeof run->checkpoint;
    if (snprintf(run->checkpoint, room, "%s/checkpoint.safetensors", out) < (int)room &&
        snprintf(run->final, room, "%s/final.safetensors", out) < (int)room &&
        snprintf(run->log, room, "%s/log.jsonl", out) < (int)room)
        return ET_OK;
    return et_fail(error, ET_EINVAL, "--out %s: the path is too long", out);
}

/* ---- one step, and what is said of it ---- */

/* A loss that is far above the mean of those before: three nats, or twice as high, after 20 steps.
 * The first step that goes wrong is the one to look at. */
static et_status check_loss(train_run *run, const et_gpt_report *report, et_error *error)
{
    double ratio, before = run->mean;
    run->seen++;
    run->mean += (report->loss - before) / (double)(run->seen < 50 ? run->seen : 50);
    if (run->seen <= 20 || (report->loss < before + 3 && report->loss < 2 * before + 0.1))
        return ET_OK;
    const et_gpt_tensor *t = et_gpt_loudest(run->g, &ratio);
    return et_fail(error, ET_EINVAL,
                   "step %zu: the loss is %.4g, far above its mean of %.4g; the gradient of %s is "
                   "the largest, %.3g times the tensor itself",
                   et_gpt_progress_of(run->g)->steps - 1, report->loss, before, t->name, ratio);
}

static void show_progress(const train_run *run, const et_gpt_report *report, double rate)
{
    char phase[160];
    const et_gpt_config *c = et_gpt_configuration(run->g);
    size_t step = et_gpt_progress_of(run->g)->steps;
    train_spread s = train_spread_of(run->g);
    size_t used = (size_t)snprintf(phase, sizeof phase, "step %zu of %zu, loss %.3f, %.0f tokens/s",
                                   step, c->schedule.steps, report->loss, rate);
    if (s.load > 0)
        used += (size_t)snprintf(phase + used, sizeof phase - used, ", load %.2f of mean", s.load);
    if (s.load > 0 && s.cutoff >= 0)
        snprintf(phase + used, sizeof phase - used, ", cutoff off %.3f", s.cutoff);
    progress_show("train", phase, (double)step / (double)c->schedule.steps);
}

static et_status evaluate(train_run *run, const train_options *o, et_error *error)
{
    const et_gpt_config *c = et_gpt_configuration(run->g);
    size_t batches = et_corpus_held(&run->corpus) / c->batch;
    double sum = 0;
    if (batches > o->evaluate_batches) batches = o->evaluate_batches;
    if (batches == 0) batches = 1; /* fewer sequences than a batch has: they are repeated */
    for (size_t i = 0; i < batches; i++) {
        double loss;
        size_t first = et_corpus_spread(&run->corpus, c->batch, i, batches);
        et_status status = et_corpus_read_held(&run->corpus, first, c->batch, run->tokens, error);
        if (status == ET_OK) status = et_gpt_forward(run->g, true, run->tokens, &loss, NULL, error);
        if (status != ET_OK) return status;
        sum += loss;
    }
    run->evaluated = sum / (double)batches;
    return train_log_evaluation(run, batches * c->batch * c->sequence, error);
}

/* Everything, or (`only` not 0) values alone in that type of TRAIN_FINALS. */
static et_status save(train_run *run, const char *path, int only, et_error *error)
{
    static const et_dtype types[] = {ET_F64, ET_F64, ET_F32, ET_BF16, ET_F16};
    char seed[24], bytes[24], hash[24];
    snprintf(seed, sizeof seed, "%llu", (unsigned long long)run->seed);
    snprintf(bytes, sizeof bytes, "%llu", (unsigned long long)run->corpus.bytes);
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)run->corpus.hash);
    const char *notes[] = {"seed", seed, "text_bytes", bytes, "text_fnv1a", hash, NULL};
    et_status status = partial_guard(path, error);
    if (status == ET_OK && only == 0) status = et_checkpoint_write(path, run->g, notes, error);
    if (status == ET_OK && only > 0)
        status = et_checkpoint_write_values(path, run->g, types[only], notes, error);
    partial_release();
    return status;
}

/* A checkpoint that stays: step-000250.safetensors. */
static et_status keep(train_run *run, const train_options *o, et_error *error)
{
    if (snprintf(run->kept, sizeof run->kept, "%s/step-%06zu.safetensors", o->out,
                 et_gpt_progress_of(run->g)->steps) >= (int)sizeof run->kept)
        return et_fail(error, ET_EINVAL, "--out %s: the path is too long", o->out);
    return save(run, run->kept, 0, error);
}

static et_status step(train_run *run, const train_options *o, et_error *error)
{
    const et_gpt_config *c = et_gpt_configuration(run->g);
    size_t at = et_gpt_progress_of(run->g)->steps, rows = c->micro_batches * c->batch;
    size_t every = o->checkpoint_every, look = o->evaluate_every;
    et_gpt_report report;
    double start = seconds_now();
    et_status status =
        et_corpus_draw(&run->corpus, run->seed, (uint64_t)at * rows, rows, run->tokens, error);
    if (status == ET_OK) status = et_gpt_step(run->g, run->tokens, &report, error);
    if (status != ET_OK) return status;
    double seconds = seconds_now() - start;
    if ((status = train_log_step(run, &report, seconds, error)) ||
        (status = check_loss(run, &report, error)))
        return status;
    show_progress(run, &report, (double)(rows * c->sequence) / seconds);
    bool last = at + 1 == c->schedule.steps;
    if ((at + 1) % look == 0 || last) status = evaluate(run, o, error);
    if (status == ET_OK && o->keep_every > 0 && (at + 1) % o->keep_every == 0)
        status = keep(run, o, error);
    if (status == ET_OK && ((at + 1) % every == 0 || last || stopped_by != 0))
        status = save(run, run->checkpoint, 0, error);
    return status;
}

static et_status train(train_run *run, const train_options *o, et_error *error)
{
    const et_gpt_config *c = et_gpt_configuration(run->g);
    et_status status = ET_OK;
    catch_stops();
    while (status == ET_OK && et_gpt_progress_of(run->g)->steps < c->schedule.steps) {
        status = step(run, o, error);
        if (stopped_by != 0) break;
    }
    progress_clear();
    if (status == ET_OK && stopped_by == 0) status = save(run, run->final, o->final, error);
    return status;
}

static void say_what_was_done(const train_run *run)
{
    const et_gpt_config *c = et_gpt_configuration(run->g);
    size_t done = et_gpt_progress_of(run->g)->steps;
    if (stopped_by != 0)
        printf("stopped after step %zu of %zu; --resume goes on\n", done, c->schedule.steps);
    else if (run->evaluated > 0)
        printf("%zu steps, held-out loss %.4f nats, %.4f bits per byte\n", done, run->evaluated,
               run->evaluated / log(2));
    else
        printf("%zu steps had been taken: there was nothing left to do\n", done);
    print_clean(stdout, stopped_by != 0 ? run->checkpoint : run->final);
    putchar('\n');
    fflush(stdout);
}

int cmd_train(int argc, char **argv)
{
    train_options o = {
        .rule = -1, .evaluate_every = 100, .evaluate_batches = 20, .checkpoint_every = 100};
    train_run run = {.corpus = {.descriptor = -1}};
    et_error error = {0};
    if (!read_options(&o, argc, argv)) return STATUS_BAD;
    use_threads(o.threads);
    et_status status = name_files(&run, o.out, &error);
    if (status == ET_OK) status = train_begin(&run, &o, &error);
    if (status == ET_OK) status = make_folders(o.out, &error);
    if (status == ET_OK) status = train_log_open(&run, o.resume, &error);
    if (status == ET_OK) status = train(&run, &o, &error);
    if (status == ET_OK) say_what_was_done(&run);
    train_end(&run);
    if (status != ET_OK) return fail_status(status, &error);
    if (stopped_by == 0) return STATUS_PASS;
    signal(stopped_by, SIG_DFL);
    raise(stopped_by);
    return STATUS_BAD;
}
