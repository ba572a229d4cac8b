/* cmd_show.c: `etref show`: what is in a bundle, for people and for programs.
 *
 * Any safetensors file can be shown; one with a case also tells what was computed and who went
 * where. The pictures are in show_routing.c, single values in show_values.c.
 */
#include "tools/etref/show.h"
#include "tools/etref/commands.h"
#include "ref/report/describe_case.h"
#include "tools/etref/options.h"
#include "tools/etref/profiles.h"
#include "tools/etref/terminal.h"

#include "etref/routing.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FEW_VALUES = 1000 };

typedef struct show_options {
    const char *path, *tensor, *against;
    int format; /* 0 text, 1 json */
    bool all;
} show_options;

/* ---- opening ---- */

static bool is_bundle(const et_tensor_file *file)
{
    const char *format = et_tensor_file_metadata(file, "format");
    return format && strcmp(format, "etref-bundle") == 0;
}

static void shown_close(shown *s)
{
    free(s->order);
    et_tensor_file_close(&s->file);
}

/* Adds the file's tensors that the table names, each behind `prefix`. */
static size_t order_known(shown *s, const char *prefix, size_t count)
{
    const et_tensor_doc *doc;
    for (size_t i = 0; (doc = et_tensor_doc_at(i)) != NULL; i++) {
        char name[ET_MAX_TENSOR_NAME + 1];
        snprintf(name, sizeof name, "%s%s", prefix, doc->name);
        const et_tensor_info *t = et_tensor_file_find(&s->file, name);
        if (t) s->order[count++] = t;
    }
    return count;
}

static void order_tensors(shown *s)
{
    s->order = allocate(s->file.tensor_count, sizeof *s->order);
    size_t count = order_known(s, "", 0);
    count = order_known(s, ET_NOISE_PREFIX, count);
    count = order_known(s, ET_NOISE_ALONE, count);
    for (size_t i = 0; i < s->file.tensor_count; i++)
        if (et_doc_of(s->file.tensors[i].name) == NULL)
            s->order[count++] = &s->file.tensors[i];
}

/* A case that this version cannot read does not keep its tensors from being shown. */
static et_status shown_open(shown *s, const char *path, et_error *error)
{
    *s = (shown){0};
    et_status status = et_tensor_file_open(&s->file, path, error);
    if (status != ET_OK) return status;
    const char *text = et_tensor_file_metadata(&s->file, "case");
    s->bundle = is_bundle(&s->file);
    s->has_case = s->bundle && text &&
                  could_be_read(et_case_parse(&s->c, text, strlen(text), path, NULL));
    order_tensors(s);
    return ET_OK;
}

/* ---- the case and the table of tensors ---- */

static json_t *case_json(const shown *s)
{
    char *text = NULL;
    json_t *fields = NULL;
    if (s->has_case && could_be_read(et_case_print(&text, &s->c, NULL)))
        fields = json_loads(text, 0, NULL);
    free(text);
    return fields;
}

/* Appends "field=value " for each field; the input's are named with their prefix. */
static void add_fields(char *out, size_t room, json_t *fields, const char *prefix)
{
    const char *key;
    json_t *value;
    json_object_foreach(fields, key, value)
    {
        size_t used = strlen(out);
        if (json_is_object(value)) {
            add_fields(out, room, value, "input.");
            continue;
        }
        char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
        snprintf(out + used, room - used, "%s%s=%s ", prefix, key, text ? text : "");
        free(text);
    }
}

static void print_profile(const char *json)
{
    et_profile p;
    char text[512] = "";
    if (et_profile_parse(&p, json, strlen(json), "", NULL) == ET_OK)
        et_describe_profile(text, sizeof text, &p);
    printf("noise.* of the profile %s\n", text[0] ? text : "that this etref does not understand");
}

static void print_case(const shown *s)
{
    const char *producer = et_tensor_file_metadata(&s->file, "producer");
    const char *profile = et_tensor_file_metadata(&s->file, "profile");
    char sentence[512];
    print_clean(stdout, s->file.path);
    printf(": %s, %zu tensors\n", s->bundle ? "etref bundle" : "safetensors file",
           s->file.tensor_count);
    if (s->bundle && producer) {
        fputs("computed by ", stdout);
        print_clean(stdout, producer);
        putchar('\n');
    }
    if (s->bundle && profile) print_profile(profile);
    if (s->bundle && !s->has_case) puts("its case is not one that this etref understands");
    json_t *fields = case_json(s);
    if (fields == NULL) return;
    char words[8192] = "";
    et_describe_case(sentence, sizeof sentence, &s->c);
    add_fields(words, sizeof words, fields, "");
    printf("\n%s\n", s->c.name);
    print_wrapped(2, sentence);
    print_wrapped(2, words);
    json_decref(fields);
}

static void add_tensor_row(et_table *table, const et_tensor_info *t, const tensor_facts *facts)
{
    char shape[192];
    et_describe_shape(shape, sizeof shape, t);
    et_table_cell(table, "%s", t->name);
    et_table_cell(table, "%s", et_dtype_name(t->dtype));
    et_table_cell(table, "%s", shape);
    bool known = has_values(t) && !isnan(facts->least);
    const double numbers[] = {facts->least, facts->largest, facts->norm};
    for (size_t i = 0; i < 3; i++)
        known ? et_table_cell(table, "%.5g", numbers[i]) : et_table_cell(table, "-");
    const size_t counts[] = {facts->zeros, facts->nonfinite};
    for (size_t i = 0; i < 2; i++)
        has_values(t) ? et_table_cell(table, "%zu", counts[i]) : et_table_cell(table, "-");
}

static et_status print_tensors(const shown *s, et_error *error)
{
    static const char *const heads[] = {"tensor", "type", "shape", "min",
                                        "max",    "norm", "zeros", "nonfinite"};
    et_table table;
    et_status status = ET_OK;
    et_table_begin(&table, "lllrrrrr");
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) et_table_cell(&table, "%s", heads[i]);
    for (size_t i = 0; i < s->file.tensor_count && status == ET_OK; i++) {
        tensor_facts facts;
        status = tensor_facts_read(&facts, &s->file, s->order[i], error);
        add_tensor_row(&table, s->order[i], &facts);
    }
    putchar('\n');
    table_print(&table);
    return status;
}

static json_t *file_json(const shown *s)
{
    json_t *report = json_object(), *fields = case_json(s);
    const char *producer = et_tensor_file_metadata(&s->file, "producer");
    json_object_set_new(report, "file", et_json_clean(s->file.path));
    json_object_set_new(report, "bundle", json_boolean(s->bundle));
    if (producer) json_object_set_new(report, "producer", et_json_clean(producer));
    if (fields) json_object_set_new(report, "case", fields);
    const char *profile = et_tensor_file_metadata(&s->file, "profile");
    json_t *places = profile ? json_loads(profile, 0, NULL) : NULL;
    if (places) json_object_set_new(report, "profile", places);
    return report;
}

/* ---- the views ---- */

static et_status show_file_text(const shown *s, et_error *error)
{
    print_case(s);
    et_status status = print_tensors(s, error);
    if (status == ET_OK && s->has_case && s->c.layer == ET_MOE)
        status = show_routing_text(s, error);
    return status;
}

static et_status show_file_json(const shown *s, et_error *error)
{
    json_t *report = file_json(s), *rows = json_array();
    et_status status = ET_OK;
    for (size_t i = 0; i < s->file.tensor_count && status == ET_OK; i++) {
        tensor_facts facts;
        status = tensor_facts_read(&facts, &s->file, s->order[i], error);
        json_array_append_new(rows, facts_json(s->order[i], &facts));
    }
    json_object_set_new(report, "tensors", rows);
    if (status == ET_OK && s->has_case && s->c.layer == ET_MOE)
        status = add_routing_json(report, s, error);
    if (status == ET_OK)
        json_print(report);
    else
        json_decref(report);
    return status;
}

static et_status show_all_text(const shown *s, et_error *error)
{
    et_status status = ET_OK;
    print_case(s);
    for (size_t i = 0; i < s->file.tensor_count && status == ET_OK; i++) {
        putchar('\n');
        status = show_values_text(s, s->order[i], 0, error);
    }
    return status;
}

static et_status show_all_json(const shown *s, et_error *error)
{
    et_status status = ET_OK;
    json_print_open(file_json(s));
    fputs(", \"tensors\": [", stdout);
    for (size_t i = 0; i < s->file.tensor_count && status == ET_OK; i++) {
        if (i > 0) fputs(", ", stdout);
        status = show_values_json(s, s->order[i], 0, error);
    }
    fputs("]}\n", stdout);
    return status;
}

static et_status show_tensor(const shown *s, const show_options *o, et_error *error)
{
    const et_tensor_info *t = et_tensor_file_find(&s->file, o->tensor);
    size_t limit = o->all ? 0 : FEW_VALUES;
    if (t)
        return o->format ? show_values_json(s, t, limit, error)
                         : show_values_text(s, t, limit, error);
    word_list names = {0};
    for (size_t i = 0; i < s->file.tensor_count; i++) word_list_add(&names, s->order[i]->name);
    word_list_add(&names, NULL);
    const char *near = nearest_word(o->tensor, names.at);
    et_status status =
        et_fail(error, ET_EINVAL, "%s: has no tensor %s%s%s%s", s->file.path, o->tensor,
                near ? "; did you mean " : "", near ? near : "", near ? "?" : "");
    word_list_free(&names);
    return status;
}

/* ---- overlap of two routings ---- */

static void keep_mask(void *user, const double *values, size_t first, size_t count)
{
    uint8_t *mask = user;
    for (size_t i = 0; i < count; i++) mask[first + i] = values[i] != 0;
}

static et_status read_mask(uint8_t **mask, const shown *s, size_t shape[2], et_error *error)
{
    const et_tensor_info *t = et_tensor_file_find(&s->file, "route.mask");
    if (t == NULL || t->rank != 2 || t->shape[0] == 0 || !has_values(t))
        return et_fail(error, ET_EINVAL, "%s: has no route.mask of tokens by experts",
                       s->file.path);
    shape[0] = t->shape[0];
    shape[1] = t->shape[1];
    *mask = allocate(t->count, 1);
    return visit_values(&s->file, t, t->count, keep_mask, *mask, error);
}

static void print_overlap(const et_overlap *overlap, const show_options *o)
{
    const struct {
        const char *name;
        double value;
        const char *what;
    } rows[] = {
        {"pooled_jaccard", overlap->pooled_jaccard, "pairs in both, of pairs in either"},
        {"pooled_dice", overlap->pooled_dice, "twice the pairs in both, of the pairs of each"},
        {"jaccard", overlap->jaccard, "the same of each token's experts, averaged over tokens"},
        {"dice", overlap->dice, "the same of each token's experts, averaged over tokens"},
        {"divergence", overlap->divergence, "Jensen-Shannon, in bits, averaged over tokens"},
        {"variation", overlap->variation, "total variation, averaged over tokens"}};
    size_t count = sizeof rows / sizeof *rows;
    if (o->format == 1) {
        json_t *report = json_object();
        json_object_set_new(report, "file", et_json_clean(o->path));
        json_object_set_new(report, "against", et_json_clean(o->against));
        for (size_t i = 0; i < count; i++)
            json_object_set_new(report, rows[i].name, et_json_number(rows[i].value));
        json_print(report);
        return;
    }
    et_table table;
    et_table_begin(&table, "lrl");
    for (size_t i = 0; i < count; i++) {
        et_table_cell(&table, "%s", rows[i].name);
        et_table_cell(&table, "%.6f", rows[i].value);
        et_table_cell(&table, "%s", rows[i].what);
    }
    table_print(&table);
}

static et_status show_overlap(const shown *s, const show_options *o, et_error *error)
{
    shown other;
    uint8_t *a = NULL, *b = NULL;
    size_t ours[2], theirs[2];
    et_status status = shown_open(&other, o->against, error);
    if (status != ET_OK) return status;
    status = read_mask(&a, s, ours, error);
    if (status == ET_OK) status = read_mask(&b, &other, theirs, error);
    if (status == ET_OK && (ours[0] != theirs[0] || ours[1] != theirs[1]))
        status = et_fail(error, ET_EINVAL,
                         "%s has %zu tokens and %zu experts, %s has %zu and %zu: only routings of "
                         "the same tokens overlap",
                         o->path, ours[0], ours[1], o->against, theirs[0], theirs[1]);
    if (status == ET_OK) {
        et_overlap overlap = et_routing_overlap(ours[0], ours[1], a, b);
        print_overlap(&overlap, o);
    }
    free(a);
    free(b);
    shown_close(&other);
    return status;
}

/* ---- the command ---- */

static bool read_options(show_options *o, int argc, char **argv)
{
    word_list words = {0};
    const option table[] = {{"--all", OPTION_FLAG, &o->all, NULL},
                            {"--against", OPTION_WORD, &o->against, NULL},
                            {"--format", OPTION_CHOICE, &o->format, "text|json"},
                            {NULL, OPTION_FLAG, NULL, NULL}};
    bool fine = options_parse(table, argc, argv, &words);
    if (fine && words.count == 0) fail("show: no file given: etref show FILE [TENSOR]");
    if (fine && words.count > 2) fail("show: one file and one tensor at a time");
    fine = fine && (words.count == 1 || words.count == 2);
    if (fine && o->against && (words.count == 2 || o->all)) {
        fail("show: --against compares whole routings: it goes with neither TENSOR nor --all");
        fine = false;
    }
    if (fine) o->path = words.at[0];
    if (fine && words.count == 2) o->tensor = words.at[1];
    word_list_free(&words);
    return fine;
}

static et_status show(const shown *s, const show_options *o, et_error *error)
{
    if (o->against) return show_overlap(s, o, error);
    if (o->tensor) return show_tensor(s, o, error);
    if (o->all) return o->format ? show_all_json(s, error) : show_all_text(s, error);
    return o->format ? show_file_json(s, error) : show_file_text(s, error);
}

int cmd_show(int argc, char **argv)
{
    show_options o = {0};
    shown s;
    et_error error = {0};
    if (!read_options(&o, argc, argv)) return STATUS_BAD;
    et_status status = shown_open(&s, o.path, &error);
    if (status == ET_OK) {
        status = show(&s, &o, &error);
        shown_close(&s);
    }
    return status == ET_OK ? STATUS_PASS : fail_status(status, &error);
}
