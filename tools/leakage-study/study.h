/* study.h: the parts of `etref leakage study`. */
#ifndef ETREF_TOOL_LEAKAGE_STUDY_H
#define ETREF_TOOL_LEAKAGE_STUDY_H

#include "tools/leakage-study/audit_command.h"
#include "tools/leakage-study/study_stream.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef struct study_options {
    const char *out, *text;
    size_t experts, tokens, batches;
    uint64_t seed;
    int format;
    bool no_figures;
    size_t threads;
} study_options;

/* Of the moving average; its weights reach back 100 batches. */
#define STUDY_DECAY 0.99

/* ---- study_pools.c: what batches of N tokens show ---- */

enum { MAX_SIZES = 16, LEAST_TOKENS = 64 };

/* One stream, batches of one size: EC with the batch as its pool beside ET, whose threshold is the
 * bias-corrected moving average of the cutoffs of the batches before. Standard deviations are over
 * batches, the root of the mean of the squares over experts. */
typedef struct pool_row {
    stream_kind stream;
    size_t tokens, select;
    double cutoff_mean, cutoff_std; /* of the batch cutoffs */
    double gap_std;                 /* of batch cutoff - threshold */
    double load_mean, load_std;     /* of ET's load / k */
    double load_least, load_most;
    double outside;                        /* share of loads that a capacity of 0.5 would change */
    double disagreement;                   /* 1 - pooled Jaccard of EC's and ET's assignments */
    double expected_cutoff, expected_load; /* the standard deviations in theory; normal, else NaN */
} pool_row;

/* EC at pool P within batches of the largest size, beside ET with its threshold. */
typedef struct agreement_row {
    stream_kind stream;
    size_t pool;
    double jaccard;
} agreement_row;

/* y = a N^exponent, by least squares on logarithms. */
typedef struct fit_row {
    stream_kind stream;
    const char *quantity;
    double factor, exponent, error; /* error: the exponent's standard error */
} fit_row;

typedef struct pool_study {
    size_t rows, agreements, fits;
    pool_row row[STREAM_KINDS * MAX_SIZES];
    agreement_row agreement[STREAM_KINDS * MAX_SIZES];
    fit_row fit[STREAM_KINDS * 4];
} pool_study;

et_status study_pools(pool_study *p, score_stream *s, const study_options *o, et_error *error);

/* ---- study_start.c: the moving average from its first step on ---- */

enum { START_STEPS = 500, WARM_UP = 400 };

/* How ET's threshold may come about: the average as it is, or corrected; the same two behind a
 * warm-up, EC for WARM_UP steps. */
enum { START_PLAIN, START_CORRECTED, START_WARM, START_WARM_CORRECTED, START_WAYS };

typedef struct start_row {
    stream_kind stream;
    size_t step;
    double cutoff;                         /* this batch's, mean over experts */
    double plain, corrected;               /* thresholds, means over experts */
    double load_plain, load_corrected;     /* ET's load / k under them, means over experts */
    double load_warm, load_warm_corrected; /* the same after the warm-up, in which it is 1 */
} start_row;

typedef struct start_study {
    size_t rows;
    start_row row[STREAM_KINDS * START_STEPS];
    /* the first step from which the mean load stays within a tenth of k, by stream */
    size_t settled[STREAM_KINDS][START_WAYS];
} start_study;

et_status study_start(start_study *a, score_stream *s, const study_options *o, et_error *error);

/* ---- study_figures.c ---- */

/* A CSV file: written in memory, then into the folder, whole or not at all. */
typedef struct csv_file {
    const char *name;
    char *text;
    size_t length, room;
    FILE *out;
} csv_file;

void csv_begin(csv_file *f, const char *name);
et_status csv_end(csv_file *f, const char *folder, et_error *error); /* closes in any case */

enum { FIGURES = 5, FIGURE_TYPES = 2 };

/* The figures that were drawn, by file name: "cutoff.svg". */
typedef struct figure_list {
    size_t count;
    char name[FIGURES * FIGURE_TYPES][32];
} figure_list;

/* Writes the scripts into the folder and runs gnuplot on each. Figures of an earlier run, of other
 * data, go. `figures` stays empty where there is no gnuplot. */
et_status draw_figures(const char *folder, figure_list *figures, et_error *error);

/* ---- study_flips.c: how often real scores let the future decide ---- */

enum { FLIP_RULES = 12, FLIP_TOKENS = 4096 };

typedef struct flip_row {
    stream_kind stream;
    et_audit_rule rule;
    double noise, adversary; /* shares of past decisions that change */
} flip_row;

typedef struct flip_study {
    size_t rows;
    flip_row row[STREAM_KINDS * FLIP_RULES];
    csv_file positions; /* the shares by position, written as they are found */
} flip_study;

et_status study_flips(flip_study *f, score_stream *s, const study_options *o, et_error *error);

#endif
