/* train.h: a training run: what it is made of, how it begins, what it writes down. */
#ifndef ETREF_TOOL_TRAIN_H
#define ETREF_TOOL_TRAIN_H

#include "etref/checkpoint.h"
#include "etref/corpus.h"
#include "etref/gpt.h"

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>

#define TRAIN_RULES "dense|tc|ec|et"
#define TRAIN_FINALS "all|f64|f32|bf16|f16"

typedef struct train_options {
    const char *text, *out, *config, *seed;
    int rule;                                              /* -1: not given */
    int final;                                             /* index into TRAIN_FINALS; 0: all */
    size_t layers, d_model, heads, experts, steps, tokens; /* 0: not given */
    bool resume;
    size_t evaluate_every, evaluate_batches, checkpoint_every;
    size_t keep_every; /* 0: no checkpoint stays beside the last */
    size_t threads;
} train_options;

typedef struct train_run {
    et_gpt *g;
    et_corpus corpus;
    uint64_t seed;
    int32_t *tokens; /* of a step */
    char checkpoint[PATH_MAX], final[PATH_MAX], log[PATH_MAX];
    char kept[PATH_MAX]; /* of the last checkpoint that stays */
    FILE *lines;      /* the log */
    double mean;      /* running, of the losses */
    size_t seen;      /* losses in it */
    double evaluated; /* the last loss on the held-out part; 0: none yet */
} train_run;

/* ---- train_begin.c ---- */

/* The configuration that --config and the sizes ask for; whether any of these was given. */
et_status train_configure(et_gpt_config *c, const train_options *o, et_error *error);
bool train_says_anything(const train_options *o);

/* The model, new or from the run's checkpoint, and its text. Writes nothing. */
et_status train_begin(train_run *run, const train_options *o, et_error *error);
void train_end(train_run *run); /* accepts what failed to begin */

/* ---- train_log.c ---- */

/* Opens the log; where the run goes on, without the lines of steps that will be taken again. */
et_status train_log_open(train_run *run, bool resume, et_error *error);

/* Lines of JSON: {"step": .., "loss": .., ..}, {"step": .., "held_out_loss": ..}. */
et_status train_log_step(train_run *run, const et_gpt_report *report, double seconds,
                         et_error *error);
et_status train_log_evaluation(train_run *run, size_t tokens, et_error *error);

/* Of the last step's routing: the largest load over the mean one, of any layer, 0 where there is no
 * MoE layer; the mean |cutoff - threshold|, negative where there is none. */
typedef struct train_spread {
    double load, cutoff;
} train_spread;
train_spread train_spread_of(const et_gpt *g);

#endif
