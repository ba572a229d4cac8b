/* study.c: `etref leakage study`: what pools, thresholds and futures do on streams of scores.
 *
 * Everything is decided by the seed: files are the same for any number of threads. CSV files hold
 * what was measured, gnuplot draws it where it is installed, and standard output says the outcome.
 */
#include "ref/report/describe_case.h"
#include "tools/etref/commands.h"
#include "tools/etref/ending.h"
#include "tools/etref/folder.h"
#include "tools/etref/cmd_leakage.h"
#include "tools/leakage-study/study.h"
#include "tools/etref/terminal.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LICENCE "/usr/share/common-licenses/GPL-3"

typedef struct study {
    pool_study pools;
    start_study start;
    flip_study flips;
    bool has[STREAM_KINDS];
    figure_list figures;
} study;

static const char *const start_names[START_WAYS] = {"plain", "corrected", "warm_up",
                                                    "warm_up_corrected"};

/* ---- CSV ---- */

static void csv_number(FILE *out, double value, const char *end)
{
    isnan(value) ? fprintf(out, "%s", end) : fprintf(out, "%.9g%s", value, end);
}

static et_status write_pools(const study *s, const char *folder, et_error *error)
{
    csv_file f;
    csv_begin(&f, "pools.csv");
    fputs("stream,tokens,select,cutoff_mean,cutoff_std,gap_std,load_mean,load_std,load_least,"
          "load_most,outside,disagreement,expected_cutoff_std,expected_load_std\n",
          f.out);
    for (size_t i = 0; i < s->pools.rows; i++) {
        const pool_row *r = &s->pools.row[i];
        fprintf(f.out, "%s,%zu,%zu,", stream_names[r->stream], r->tokens, r->select);
        const double values[] = {r->cutoff_mean,  r->cutoff_std,      r->gap_std,      r->load_mean,
                                 r->load_std,     r->load_least,      r->load_most,    r->outside,
                                 r->disagreement, r->expected_cutoff, r->expected_load};
        size_t count = sizeof values / sizeof *values;
        for (size_t j = 0; j < count; j++) csv_number(f.out, values[j], j + 1 < count ? "," : "\n");
    }
    return csv_end(&f, folder, error);
}

static et_status write_agreements(const study *s, const char *folder, et_error *error)
{
    csv_file f;
    csv_begin(&f, "agreement.csv");
    fputs("stream,pool,jaccard\n", f.out);
    for (size_t i = 0; i < s->pools.agreements; i++)
        fprintf(f.out, "%s,%zu,%.9g\n", stream_names[s->pools.agreement[i].stream],
                s->pools.agreement[i].pool, s->pools.agreement[i].jaccard);
    return csv_end(&f, folder, error);
}

static et_status write_fits(const study *s, const char *folder, et_error *error)
{
    csv_file f;
    csv_begin(&f, "fits.csv");
    fputs("stream,quantity,factor,exponent,error\n", f.out);
    for (size_t i = 0; i < s->pools.fits; i++) {
        const fit_row *r = &s->pools.fit[i];
        fprintf(f.out, "%s,%s,", stream_names[r->stream], r->quantity);
        csv_number(f.out, r->factor, ",");
        csv_number(f.out, r->exponent, ",");
        csv_number(f.out, r->error, "\n");
    }
    return csv_end(&f, folder, error);
}

static et_status write_start(const study *s, const char *folder, et_error *error)
{
    csv_file f;
    csv_begin(&f, "start.csv");
    fputs("stream,step,cutoff,plain,corrected,load_plain,load_corrected,load_warm,"
          "load_warm_corrected\n",
          f.out);
    for (size_t i = 0; i < s->start.rows; i++) {
        const start_row *r = &s->start.row[i];
        fprintf(f.out, "%s,%zu,%.9g,%.9g,%.9g,%.9g,%.9g,%.9g,%.9g\n", stream_names[r->stream],
                r->step, r->cutoff, r->plain, r->corrected, r->load_plain, r->load_corrected,
                r->load_warm, r->load_warm_corrected);
    }
    return csv_end(&f, folder, error);
}

static et_status write_flips(const study *s, const char *folder, et_error *error)
{
    csv_file f;
    csv_begin(&f, "flips.csv");
    fputs("stream,rule,batch,select,noise,adversary\n", f.out);
    for (size_t i = 0; i < s->flips.rows; i++) {
        const flip_row *r = &s->flips.row[i];
        fprintf(f.out, "%s,%s,%zu,%zu,%.9g,%.9g\n", stream_names[r->stream], rule_word(&r->rule),
                r->rule.batch, r->rule.select, r->noise, r->adversary);
    }
    return csv_end(&f, folder, error);
}

/* The paper's example over the number of tokens. */
static et_status write_bounds(const char *folder, et_error *error)
{
    csv_file f;
    et_status status = ET_OK;
    csv_begin(&f, "bounds.csv");
    fputs("tokens,set_per_token,entropy,log_refused,tied_cutoff_per_token\n", f.out);
    for (size_t N = 8; N <= (size_t)1 << 40 && status == ET_OK; N *= 2) {
        const et_leakage_setup setup = {N, 16, 2, 9, 16};
        et_leakage_bounds b;
        status = et_leakage_bound(&setup, &b, error);
        fprintf(f.out, "%zu,%.9g,%.9g,%.9g,%.9g\n", N, b.set_per_token, b.entropy, b.log_refused,
                b.tied_cutoff_per_token);
    }
    et_status written = csv_end(&f, folder, error);
    return status == ET_OK ? written : status;
}

static const char *const csv_names[] = {"pools.csv", "agreement.csv", "fits.csv",
                                        "start.csv", "flips.csv",     "flips-by-position.csv",
                                        "bounds.csv"};

static et_status write_all(study *s, const char *folder, et_error *error)
{
    et_status status;
    if ((status = csv_end(&s->flips.positions, folder, error)) ||
        (status = write_pools(s, folder, error)) || (status = write_agreements(s, folder, error)) ||
        (status = write_fits(s, folder, error)) || (status = write_start(s, folder, error)) ||
        (status = write_flips(s, folder, error)))
        return status;
    return write_bounds(folder, error);
}

/* ---- the streams ---- */

/* Without a text of one's own, a machine that lacks the licences does without that stream. */
static et_status open_stream(score_stream *stream, stream_kind kind, const study_options *o,
                             bool *there, et_error *error)
{
    const char *text = o->text ? o->text : LICENCE;
    *there = kind != STREAM_TEXT || o->text || access(text, R_OK) == 0;
    if (*there) return stream_open(stream, kind, o->experts, o->seed, text, error);
    fprintf(stderr, "etref: note: no stream 'text': %s is not here; --text FILE gives another\n",
            text);
    return ET_OK;
}

static et_status study_stream(study *s, score_stream *stream, const study_options *o,
                              et_error *error)
{
    et_status status = study_pools(&s->pools, stream, o, error);
    if (status == ET_OK) status = study_start(&s->start, stream, o, error);
    if (status == ET_OK && stream->kind != STREAM_DRIFTING) /* one batch does not drift */
        status = study_flips(&s->flips, stream, o, error);
    return status;
}

/* ---- the report ---- */

static json_t *fits_json(const study *s)
{
    json_t *rows = json_array();
    for (size_t i = 0; i < s->pools.fits; i++) {
        const fit_row *r = &s->pools.fit[i];
        json_t *row = json_object();
        json_object_set_new(row, "stream", json_string(stream_names[r->stream]));
        json_object_set_new(row, "quantity", json_string(r->quantity));
        json_object_set_new(row, "exponent", et_json_number(r->exponent));
        json_object_set_new(row, "error", et_json_number(r->error));
        json_array_append_new(rows, row);
    }
    return rows;
}

static json_t *start_json(const study *s)
{
    json_t *rows = json_array();
    for (int kind = 0; kind < STREAM_KINDS; kind++) {
        if (!s->has[kind]) continue;
        json_t *row = json_object();
        json_object_set_new(row, "stream", json_string(stream_names[kind]));
        for (int way = 0; way < START_WAYS; way++) {
            size_t step = s->start.settled[kind][way];
            json_object_set_new(row, start_names[way],
                                step < START_STEPS ? json_integer((json_int_t)step) : json_null());
        }
        json_array_append_new(rows, row);
    }
    return rows;
}

static json_t *agreements_json(const study *s)
{
    json_t *rows = json_array();
    for (size_t i = 0; i < s->pools.agreements; i++) {
        const agreement_row *r = &s->pools.agreement[i];
        json_t *row = json_object();
        json_object_set_new(row, "stream", json_string(stream_names[r->stream]));
        json_object_set_new(row, "pool", json_integer((json_int_t)r->pool));
        json_object_set_new(row, "jaccard", et_json_number(r->jaccard));
        json_array_append_new(rows, row);
    }
    return rows;
}

static void report_json(const study *s, const study_options *o)
{
    json_t *report = json_object(), *files = json_array(), *figures = json_array();
    for (size_t i = 0; i < sizeof csv_names / sizeof *csv_names; i++)
        json_array_append_new(files, json_string(csv_names[i]));
    for (size_t i = 0; i < s->figures.count; i++)
        json_array_append_new(figures, json_string(s->figures.name[i]));
    json_object_set_new(report, "out", et_json_clean(o->out));
    json_object_set_new(report, "seed", json_integer((json_int_t)o->seed));
    json_object_set_new(report, "experts", json_integer((json_int_t)o->experts));
    json_object_set_new(report, "tokens", json_integer((json_int_t)o->tokens));
    json_object_set_new(report, "batches", json_integer((json_int_t)o->batches));
    json_object_set_new(report, "files", files);
    json_object_set_new(report, "figures", figures);
    json_object_set_new(report, "fits", fits_json(s));
    json_object_set_new(report, "agreement", agreements_json(s));
    json_object_set_new(report, "settled", start_json(s));
    json_print(report);
}

static void heads(et_table *table, const char *align, const char *const *names)
{
    et_table_begin(table, align);
    for (size_t i = 0; align[i]; i++) et_table_cell(table, "%s", names[i]);
}

static void print_pools(const study *s)
{
    static const char *const names[] = {"stream",      "N",          "cutoff std", "expected",
                                        "gap std",     "load",       "load std",   "expected",
                                        "outside 0.5", "1 - Jaccard"};
    et_table table;
    heads(&table, "lrrrrrrrrr", names);
    for (size_t i = 0; i < s->pools.rows; i++) {
        const pool_row *r = &s->pools.row[i];
        const double values[] = {r->cutoff_std, r->expected_cutoff, r->gap_std, r->load_mean,
                                 r->load_std,   r->expected_load,   r->outside, r->disagreement};
        et_table_cell(&table, "%s", stream_names[r->stream]);
        et_table_cell(&table, "%zu", r->tokens);
        for (size_t j = 0; j < sizeof values / sizeof *values; j++)
            isnan(values[j]) ? et_table_cell(&table, "-")
                             : et_table_cell(&table, "%.4f", values[j]);
    }
    puts("batches of N tokens: EC's cutoff, its gap to ET's threshold, ET's load / k\n");
    table_print(&table);
}

static void print_fits(const study *s)
{
    static const char *const names[] = {"stream", "quantity", "exponent", "error"};
    et_table table;
    heads(&table, "llrr", names);
    for (size_t i = 0; i < s->pools.fits; i++) {
        const fit_row *r = &s->pools.fit[i];
        et_table_cell(&table, "%s", stream_names[r->stream]);
        et_table_cell(&table, "%s", r->quantity);
        isnan(r->exponent) ? et_table_cell(&table, "-")
                           : et_table_cell(&table, "%.3f", r->exponent);
        isnan(r->error) ? et_table_cell(&table, "-") : et_table_cell(&table, "%.3f", r->error);
    }
    puts("\nfitted to a power of N; in theory -0.5 for independent scores\n");
    table_print(&table);
}

/* A row for each pool, a column for each stream: rows of one stream follow one another. */
static void print_agreements(const study *s)
{
    static const char align[STREAM_KINDS + 2] = "rrrr";
    et_table table;
    size_t streams = 0;
    for (int kind = 0; kind < STREAM_KINDS; kind++) streams += s->has[kind];
    size_t pools = s->pools.agreements / streams;
    et_table_begin(&table, align + STREAM_KINDS - streams);
    et_table_cell(&table, "P");
    for (int kind = 0; kind < STREAM_KINDS; kind++)
        if (s->has[kind]) et_table_cell(&table, "%s", stream_names[kind]);
    for (size_t i = 0; i < pools; i++) {
        et_table_cell(&table, "%zu", s->pools.agreement[i].pool);
        for (size_t j = 0; j < streams; j++)
            et_table_cell(&table, "%.4f", s->pools.agreement[j * pools + i].jaccard);
    }
    puts("\nEC at pool P beside ET, in batches of the largest size: Jaccard\n");
    table_print(&table);
}

static void print_start(const study *s)
{
    static const char *const names[] = {"stream", "plain", "corrected", "warm-up, plain",
                                        "warm-up, corrected"};
    et_table table;
    heads(&table, "lrrrr", names);
    for (int kind = 0; kind < STREAM_KINDS; kind++) {
        if (!s->has[kind]) continue;
        et_table_cell(&table, "%s", stream_names[kind]);
        for (int way = 0; way < START_WAYS; way++) {
            size_t step = s->start.settled[kind][way];
            step < START_STEPS ? et_table_cell(&table, "%zu", step)
                               : et_table_cell(&table, "never");
        }
    }
    printf("\nthe moving average (decay %g) from step 0: the step from which on\nET's load stays "
           "within a tenth of k (warm-up: EC for %d steps)\n\n",
           STUDY_DECAY, WARM_UP);
    table_print(&table);
}

static void print_flips(const study *s)
{
    static const char *const names[] = {"stream", "rule", "batch", "k", "noise", "adversary"};
    et_table table;
    heads(&table, "llrrrr", names);
    for (size_t i = 0; i < s->flips.rows; i++) {
        const flip_row *r = &s->flips.row[i];
        et_table_cell(&table, "%s", stream_names[r->stream]);
        et_table_cell(&table, "%s", rule_word(&r->rule));
        et_table_cell(&table, "%zu", r->rule.batch);
        et_table_cell(&table, "%zu", r->rule.select);
        share_cell(&table, r->noise);
        share_cell(&table, r->adversary);
    }
    puts("\npast decisions that another future changes\n");
    table_print(&table);
}

static void report_text(const study *s, const study_options *o)
{
    print_pools(s);
    print_fits(s);
    print_agreements(s);
    print_start(s);
    print_flips(s);
    fputs("\nin ", stdout);
    print_clean(stdout, o->out);
    puts(":");
    char names[1024] = "";
    for (size_t i = 0; i < sizeof csv_names / sizeof *csv_names; i++) et_append(names, sizeof names, " %s", csv_names[i]);
    for (size_t i = 0; i < s->figures.count; i++) et_append(names, sizeof names, " %s", s->figures.name[i]);
    print_wrapped(2, names);
}

/* ---- the command ---- */

static et_status run_streams(study *s, score_stream streams[STREAM_KINDS], const study_options *o,
                             et_error *error)
{
    et_status status = make_folders(o->out, error);
    if (status != ET_OK) return status;
    csv_begin(&s->flips.positions, "flips-by-position.csv");
    fputs("stream,rule,batch,select,position,noise,adversary\n", s->flips.positions.out);
    for (int kind = 0; kind < STREAM_KINDS && status == ET_OK; kind++)
        if (s->has[kind]) status = study_stream(s, &streams[kind], o, error);
    if (status == ET_OK) return write_all(s, o->out, error);
    fclose(s->flips.positions.out);
    free(s->flips.positions.text);
    return status;
}

/* Every stream is opened before the folder is made: what can be refused is refused first. */
static et_status run(study *s, const study_options *o, et_error *error)
{
    score_stream streams[STREAM_KINDS] = {{0}};
    et_status status = ET_OK;
    for (int kind = 0; kind < STREAM_KINDS && status == ET_OK; kind++)
        status = open_stream(&streams[kind], (stream_kind)kind, o, &s->has[kind], error);
    if (status == ET_OK) status = run_streams(s, streams, o, error);
    for (int kind = 0; kind < STREAM_KINDS; kind++) stream_close(&streams[kind]);
    return status;
}

static et_status draw(study *s, const study_options *o, et_error *error)
{
    if (o->no_figures) return ET_OK;
    et_status status = draw_figures(o->out, &s->figures, error);
    if (status == ET_OK && s->figures.count == 0)
        fputs(
            "etref: note: gnuplot is not installed: no figures; the scripts (*.gp) lie beside the "
            "CSV files\n",
            stderr);
    return status;
}

static bool bad(const char *message)
{
    return refuse("study", message);
}

static bool read_options(study_options *o, int argc, char **argv)
{
    const char *tokens = NULL, *experts = NULL, *batches = NULL, *seed = NULL;
    word_list words = {0};
    const option table[] = {{"--out", OPTION_WORD, &o->out, NULL},
                            {"--text", OPTION_WORD, &o->text, NULL},
                            {"--tokens", OPTION_WORD, &tokens, NULL},
                            {"--experts", OPTION_WORD, &experts, NULL},
                            {"--batches", OPTION_WORD, &batches, NULL},
                            {"--seed", OPTION_WORD, &seed, NULL},
                            {"--no-figures", OPTION_FLAG, &o->no_figures, NULL},
                            {"--format", OPTION_CHOICE, &o->format, "text|json"},
                            {"--threads", OPTION_THREADS, &o->threads, NULL},
                            {NULL, OPTION_FLAG, NULL, NULL}};
    uint64_t N = 1 << 14, n = 16, B = 100;
    bool fine = options_parse(table, argc, argv, &words) && no_words("study", &words) &&
                whole_number("--tokens", tokens, 2 * LEAST_TOKENS, 1 << 20, &N) &&
                whole_number("--experts", experts, 2, LEAST_TOKENS, &n) &&
                whole_number("--batches", batches, 2, 100000, &B) &&
                whole_number("--seed", seed, 0, INT64_MAX, &o->seed);
    word_list_free(&words);
    fine = fine && (o->text == NULL || is_text(o->text));
    if (fine && o->out == NULL)
        fine = bad("--out DIR belongs here: the folder for CSV files and figures");
    if (fine && (N & (N - 1)) != 0)
        fine = bad("--tokens: a power of two belongs here, 2^14 for instance: pools halve it");
    o->tokens = (size_t)N;
    o->experts = (size_t)n;
    o->batches = (size_t)B;
    return fine;
}

int leakage_study(int argc, char **argv)
{
    study_options o = {.seed = 1};
    et_error error = {0};
    if (!read_options(&o, argc, argv)) return STATUS_BAD;
    use_threads(o.threads);
    study *s = allocate(1, sizeof *s);
    et_status status = run(s, &o, &error);
    if (status == ET_OK) status = draw(s, &o, &error);
    if (status == ET_OK) o.format == FORM_JSON ? report_json(s, &o) : report_text(s, &o);
    free(s);
    return status == ET_OK ? STATUS_PASS : fail_status(status, &error);
}
