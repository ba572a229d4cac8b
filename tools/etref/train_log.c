/* train_log.c: the log of a training run, a line of JSON for each step. See train.h. */
#include "etref/etref.h"
#include "tools/etref/ending.h"
#include "tools/etref/failure.h"
#include "tools/etref/train.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- a log that goes on ---- */

typedef struct kept {
    const train_run *run;
    FILE *from;
} kept;

/* Whether a line is of a step that has been taken, as the checkpoint counts; a line that was cut is
 * not. */
static bool is_kept(const char *line, size_t steps)
{
    json_t *object = json_loads(line, 0, NULL);
    const json_t *step = json_object_get(object, "step");
    bool keep = json_is_integer(step) && (size_t)json_integer_value(step) < steps;
    json_decref(object);
    return keep;
}

static et_status copy_kept(int descriptor, void *user, et_error *error)
{
    const kept *k = user;
    char *line = NULL;
    size_t room = 0, steps = et_gpt_progress_of(k->run->g)->steps;
    et_status status = ET_OK;
    while (status == ET_OK && getline(&line, &room, k->from) > 0)
        if (is_kept(line, steps) && dprintf(descriptor, "%s", line) < 0)
            status = et_fail(error, ET_EIO, "%s: %s", k->run->log, strerror(errno));
    free(line);
    return status;
}

et_status train_log_open(train_run *run, bool resume, et_error *error)
{
    et_status status = ET_OK;
    kept k = {run, resume ? fopen(run->log, "re") : NULL};
    if (k.from) {
        status = et_file_write(run->log, copy_kept, &k, error);
        fclose(k.from);
    }
    if (status != ET_OK) return status;
    run->lines = fopen(run->log, resume ? "ae" : "we");
    if (run->lines == NULL) return et_fail(error, ET_EIO, "%s: %s", run->log, strerror(errno));
    return ET_OK;
}

/* ---- lines ---- */

static et_status write_line(train_run *run, json_t *object, et_error *error)
{
    char *text = json_dumps(object, JSON_COMPACT | JSON_REAL_PRECISION(17));
    json_decref(object);
    if (text == NULL) return et_fail(error, ET_ENOMEM, "%s: no memory for a line", run->log);
    errno = 0;
    bool written = fprintf(run->lines, "%s\n", text) > 0 && fflush(run->lines) == 0;
    free(text);
    if (written) return ET_OK;
    return et_fail(error, ET_EIO, "%s: %s", run->log, errno ? strerror(errno) : "not written");
}

/* values[i] / by, or (values[i] - minus[i]) where minus is given. */
static json_t *numbers(size_t count, const et_real *values, double by, const et_real *minus)
{
    json_t *array = json_array();
    for (size_t i = 0; i < count; i++)
        json_array_append_new(array,
                              json_real(((double)values[i] - (minus ? (double)minus[i] : 0)) / by));
    return array;
}

/* Standard deviations of the logits, and of the gate values of slots, in the last micro-batch. */
static void put_spreads(json_t *layer, const et_gpt_routing *r, size_t tokens)
{
    et_real mean, std;
    size_t slots = 0;
    et_real *gates = allocate(tokens * r->experts, sizeof *gates);
    for (size_t i = 0; i < tokens * r->experts; i++)
        if (r->mask[i]) gates[slots++] = r->gates[i];
    et_mean_std(NULL, tokens * r->experts, r->logits, &mean, &std);
    json_object_set_new(layer, "logit_std", json_real((double)std));
    et_mean_std(NULL, slots, gates, &mean, &std);
    json_object_set_new(layer, "gate_std", json_real((double)std));
    free(gates);
}

static json_t *layers_of(const et_gpt *g)
{
    json_t *layers = json_array();
    const et_gpt_config *c = et_gpt_configuration(g);
    for (size_t i = 0; i < c->layers; i++) {
        et_gpt_routing r;
        if (!et_gpt_routing_of(g, i, &r)) continue;
        json_t *layer = json_pack("{s:I}", "layer", (json_int_t)i);
        json_object_set_new(layer, "usage", numbers(r.experts, r.load, (double)r.tokens, NULL));
        if (r.passed)
            json_object_set_new(layer, "raw_usage",
                                numbers(r.experts, r.passed, (double)r.tokens, NULL));
        if (r.cutoff)
            json_object_set_new(layer, "cutoff_gap", numbers(r.experts, r.cutoff, 1, r.threshold));
        if (r.threshold)
            json_object_set_new(layer, "threshold", numbers(r.experts, r.threshold, 1, NULL));
        if (r.bias) json_object_set_new(layer, "bias", numbers(r.experts, r.bias, 1, NULL));
        put_spreads(layer, &r, c->batch * c->sequence);
        json_array_append_new(layers, layer);
    }
    return layers;
}

et_status train_log_step(train_run *run, const et_gpt_report *report, double seconds,
                         et_error *error)
{
    const et_gpt_config *c = et_gpt_configuration(run->g);
    double tokens = (double)(c->micro_batches * c->batch * c->sequence);
    json_t *line =
        json_pack("{s:I, s:f, s:f, s:f, s:f, s:f, s:o}", "step",
                  (json_int_t)et_gpt_progress_of(run->g)->steps - 1, "loss", report->loss,
                  "gradient_norm", report->norm, "rate_factor", report->factor, "seconds", seconds,
                  "tokens_per_second", tokens / seconds, "layers", layers_of(run->g));
    return write_line(run, line, error);
}

et_status train_log_evaluation(train_run *run, size_t tokens, et_error *error)
{
    json_t *line =
        json_pack("{s:I, s:f, s:f, s:I}", "step", (json_int_t)et_gpt_progress_of(run->g)->steps - 1,
                  "held_out_loss", run->evaluated, "bits_per_byte", run->evaluated / log(2),
                  "tokens", (json_int_t)tokens);
    return write_line(run, line, error);
}

train_spread train_spread_of(const et_gpt *g)
{
    train_spread s = {.cutoff = -1};
    double gaps = 0, cutoffs = 0;
    for (size_t layer = 0; layer < et_gpt_configuration(g)->layers; layer++) {
        et_gpt_routing r;
        double sum = 0, most = 0;
        if (!et_gpt_routing_of(g, layer, &r)) continue;
        for (size_t i = 0; i < r.experts; i++) {
            sum += (double)r.load[i];
            most = fmax(most, (double)r.load[i]);
            if (r.cutoff == NULL) continue;
            gaps += fabs((double)(r.cutoff[i] - r.threshold[i]));
            cutoffs++;
        }
        if (sum > 0) s.load = fmax(s.load, most * (double)r.experts / sum);
    }
    if (cutoffs > 0) s.cutoff = gaps / cutoffs;
    return s;
}
