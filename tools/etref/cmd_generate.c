/* cmd_generate.c: `etref generate`: from cases to golden bundles.
 *
 * Everything that can be refused is refused before the first product is taken: every case is
 * parsed, its size is checked against the machine's memory, and no two may share a name and so a
 * file. A failure in the middle leaves the bundles already written whole, and none half-written.
 */
#include "etref/etref.h"
#include "tools/etref/commands.h"
#include "tools/etref/ending.h"
#include "tools/etref/folder.h"
#include "tools/etref/idle.h"
#include "tools/etref/memory_limit.h"
#include "tools/etref/options.h"
#include "tools/etref/partial.h"
#include "tools/etref/profiles.h"
#include "tools/etref/named_cases.h"
#include "tools/etref/terminal.h"
#include "ref/step/step_work.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef struct generate_options {
    word_list cases, suites, settings;
    const char *out, *layout, *text, *profile;
    const char *conclusive; /* a profile: leave out cases in which none of its kernels can pass */
    const char *emulate;    /* a profile: write what such a kernel computes, a candidate */
    const char *inputs;     /* a bundle whose case and in.* are taken */
    int engine;             /* et_engine */
    int routing;            /* 0: the rule's own; 1: that of the bundle `inputs`; -1: as its case says */
    bool lean, quiet;
    et_profile noise;  /* where `profile` is not NULL */
    et_profile judges; /* where `conclusive` is not NULL */
    et_profile kernel; /* where `emulate` is not NULL */
    size_t threads, block;
} generate_options;

/* ---- what is asked for ---- */

static bool read_options(generate_options *o, int argc, char **argv)
{
    word_list words = {0};
    const option table[] = {{"--case", OPTION_LIST, &o->cases, NULL},
                            {"--suite", OPTION_LIST, &o->suites, NULL},
                            {"--set", OPTION_LIST, &o->settings, NULL},
                            {"--out", OPTION_WORD, &o->out, NULL},
                            {"--engine", OPTION_CHOICE, &o->engine, "plain|blas"},
                            {"--lean", OPTION_FLAG, &o->lean, NULL},
                            {"--quiet", OPTION_FLAG, &o->quiet, NULL},
                            {"--profile", OPTION_WORD, &o->profile, NULL},
                            {"--conclusive", OPTION_WORD, &o->conclusive, NULL},
                            {"--emulate", OPTION_WORD, &o->emulate, NULL},
                            {"--layout", OPTION_WORD, &o->layout, NULL},
                            {"--text", OPTION_WORD, &o->text, NULL},
                            {"--inputs", OPTION_WORD, &o->inputs, NULL},
                            {"--routing", OPTION_CHOICE, &o->routing, "rule|given"},
                            {"--threads", OPTION_THREADS, &o->threads, NULL},
                            {NULL, OPTION_FLAG, NULL, NULL}};
    bool fine = options_parse(table, argc, argv, &words);
    if (fine && words.count > 0) {
        fail("generate: '%s' stands alone; a case is named with --case %s", words.at[0],
             words.at[0]);
        fine = false;
    }
    word_list_free(&words);
    return fine;
}

static et_status check_layout(generate_options *o, et_error *error)
{
    if (o->layout == NULL) return ET_OK;
    if (strncmp(o->layout, "block:", 6) == 0) o->block = parse_count(o->layout + 6);
    if (o->block > 0 && o->block <= ET_MAX_BLOCK) return ET_OK;
    return et_fail(error, ET_EINVAL, "--layout %s: block:M with M from 1 to %d belongs here",
                   o->layout, ET_MAX_BLOCK);
}

/* --text goes into the case itself, so that the bundle says from what it was drawn. */
static et_status set_text(case_list *list, const char *text, et_error *error)
{
    size_t changed = 0;
    if (text == NULL) return ET_OK;
    if (access(text, R_OK) != 0)
        return et_fail(error, ET_EIO, "--text %s: %s", text, strerror(errno));
    for (size_t i = 0; i < list->count; i++) {
        et_input *input = &list->at[i].input;
        if (input->source != ET_INPUT_TEXT && input->source != ET_INPUT_CHECKPOINT) continue;
        if (strlen(text) + 2 >= sizeof input->text)
            return et_fail(error, ET_EINVAL, "--text %s: the name has more than %zu bytes", text,
                           sizeof input->text - 3);
        /* In a case a bare name means a common licence; on a command line, a file here. */
        snprintf(input->text, sizeof input->text, strchr(text, '/') ? "%s" : "./%s", text);
        changed++;
    }
    if (changed > 0) return ET_OK;
    return et_fail(error, ET_EINVAL, "--text %s: no case here has the input source text or "
                   "checkpoint", text);
}

static et_status check_names(const case_list *list, et_error *error)
{
    for (size_t i = 0; i < list->count; i++)
        for (size_t j = 0; j < i; j++)
            if (strcmp(list->at[i].name, list->at[j].name) == 0)
                return et_fail(error, ET_EINVAL,
                               "case %s is asked for twice, and both would be one file: give each "
                               "its own name",
                               list->at[i].name);
    return ET_OK;
}

/* A step is created and thrown away: that is where the library checks what it would take. */
static et_status check_case(const et_case *c, et_error *error)
{
    et_step step;
    if (c->input.source == ET_INPUT_NONE)
        return et_fail(
            error, ET_EINVAL,
            "case '%s' has no input; give it one, e.g. \"input\": {\"source\": \"normal\"}",
            c->name);
    if (c->given)
        return et_fail(error, ET_EINVAL,
                       "case '%s' has routing = \"given\": the assignment is a bundle's; name it with --inputs and "
                       "--routing given, and leave the field out",
                       c->name);
    et_status status = et_step_create(&step, c, memory_limit(), error);
    if (status == ET_OK) et_step_free(&step);
    return status;
}

/* A candidate never takes the name of its golden. False: too long. */
static bool name_file(char *path, size_t room, const generate_options *o, const char *name)
{
    int length = snprintf(path, room, "%s/%s%s%s.safetensors", o->out, name, o->emulate ? "." : "",
                          o->emulate ? o->kernel.name : "");
    return length >= 0 && (size_t)length < room;
}

/* --inputs, and --routing: what the bundle brings, and who goes where. */
static et_status open_inputs(et_tensor_file *file, et_step *step, const generate_options *o,
                             et_error *error)
{
    et_status status = et_bundle_open(file, step, o->inputs, memory_limit(), error);
    if (status != ET_OK || o->routing < 0) return status;
    step->c.given = false;
    step->given_mask = NULL;
    if (o->routing == 1) status = et_bundle_give_routing(step, file, error);
    if (status == ET_OK) return ET_OK;
    et_step_free(step);
    et_tensor_file_close(file);
    return status;
}

/* --inputs: the bundle brings its case. Its file must not be the one that would be written. */
static et_status take_case(case_list *list, const generate_options *o, et_error *error)
{
    et_tensor_file file;
    et_step step;
    if (o->cases.count + o->suites.count + o->settings.count > 0 || o->text)
        return et_fail(error, ET_EINVAL,
                       "--inputs %s: the bundle is the case; --case, --suite, --set and --text do "
                       "not go with it",
                       o->inputs);
    et_status status = open_inputs(&file, &step, o, error);
    if (status != ET_OK) return status;
    char path[PATH_MAX];
    struct stat from, to;
    name_file(path, sizeof path, o, step.c.name);
    if (stat(path, &to) == 0 && stat(o->inputs, &from) == 0 && from.st_dev == to.st_dev &&
        from.st_ino == to.st_ino)
        status =
            et_fail(error, ET_EINVAL,
                    "--inputs %s: would be overwritten; give another folder with --out", o->inputs);
    list->at = allocate(1, sizeof *list->at);
    list->at[0] = step.c;
    list->count = 1;
    et_step_free(&step);
    et_tensor_file_close(&file);
    return status;
}

static et_status collect(case_list *list, generate_options *o, et_error *error)
{
    et_status status = check_layout(o, error);
    if (status == ET_OK && o->profile) status = profile_choose(&o->noise, o->profile, error);
    if (status == ET_OK && o->conclusive) status = profile_choose(&o->judges, o->conclusive, error);
    if (status == ET_OK && o->emulate && (o->profile || o->conclusive || o->block > 0))
        status = et_fail(error, ET_EINVAL,
                         "--emulate %s: writes a candidate; --profile, --conclusive and --layout "
                         "belong to its golden",
                         o->emulate);
    if (status == ET_OK && o->emulate) status = profile_choose(&o->kernel, o->emulate, error);
    if (status == ET_OK && !o->inputs && o->routing == 1)
        status = et_fail(error, ET_EINVAL, "--routing given: the assignment is a bundle's; name it with --inputs");
    if (status == ET_OK && o->inputs) return take_case(list, o, error);
    for (size_t i = 0; i < o->suites.count && status == ET_OK; i++)
        status = case_list_add_suite(list, o->suites.at[i], &o->settings, error);
    for (size_t i = 0; i < o->cases.count && status == ET_OK; i++)
        status = case_list_add(list, o->cases.at[i], &o->settings, error);
    if (status == ET_OK && list->count == 0)
        status =
            et_fail(error, ET_EINVAL, "generate: no case given; --suite smoke is a good first one");
    if (status == ET_OK) status = check_names(list, error);
    if (status == ET_OK) status = set_text(list, o->text, error);
    for (size_t i = 0; i < list->count && status == ET_OK; i++)
        status = check_case(&list->at[i], error);
    return status;
}

/* ---- computing and writing ---- */

static et_status write_guarded(const char *path, const et_step *step, const generate_options *o,
                               et_error *error)
{
    et_step variance = {0};
    et_status status = ET_OK;
    if (o->profile && o->lean)
        status =
            et_step_noise(&variance, step, &o->noise, progress_show, (void *)step->c.name, error);
    if (status == ET_OK) status = partial_guard(path, error);
    if (status != ET_OK) {
        et_step_free(&variance);
        return status;
    }
    progress_show((void *)step->c.name, "write", 1);
    status = !o->profile ? et_bundle_write(path, step, o->lean, error)
             : o->lean
                 ? et_bundle_write_noise(path, step, true, &o->noise, &variance, NULL, NULL, error)
                 : et_bundle_write_bars(path, step, &o->noise, progress_show,
                                        (void *)step->c.name, error);
    et_step_free(&variance);
    partial_release();
    return status;
}

/* The case's inputs: drawn, or those of the bundle that brought it. */
static et_status take_inputs(et_step *step, const et_case *c, const generate_options *o,
                             et_error *error)
{
    et_tensor_file file;
    et_status status;
    if (o->inputs) {
        status = open_inputs(&file, step, o, error);
        if (status == ET_OK) et_tensor_file_close(&file);
        return status;
    }
    status = et_step_create(step, c, memory_limit(), error);
    return status == ET_OK ? et_capture_inputs(step, memory_limit(), error) : status;
}

static void note_idle(const et_step *s)
{
    char idle[256];
    if (describe_idle(idle, sizeof idle, s)) fprintf(stderr, "etref: note: case '%s': %s\n", s->c.name, idle);
}

static et_status look_whether_conclusive(et_conclusiveness *found, const et_step *step,
                                         const generate_options *o, et_error *error)
{
    *found = (et_conclusiveness){.conclusive = true};
    if (!o->conclusive) return ET_OK;
    progress_show((void *)step->c.name, "verdict", 0.9);
    return et_find_conclusive(found, step, &o->judges, memory_left(step->bytes), error);
}

/* Writes no file where *found says that the case is not conclusive. */
static et_status generate_one(const et_case *c, const char *path, const generate_options *o,
                              size_t *slots, et_conclusiveness *found, et_error *error)
{
    et_step step = {0};
    progress_show((void *)c->name, "inputs", 0);
    et_status status = take_inputs(&step, c, o, error);
    step.block = c->layer == ET_MOE ? o->block : 0;
    const et_rounding kernel = {.profile = &o->kernel, .mode = ET_ROUND_NEAREST};
    step.rounding = o->emulate ? &kernel : NULL;
    if (status == ET_OK)
        status = et_step_run(&step, (et_engine)o->engine, progress_show, (void *)c->name, error);
    if (status == ET_OK) status = look_whether_conclusive(found, &step, o, error);
    if (status == ET_OK && found->conclusive) status = write_guarded(path, &step, o, error);
    *slots = c->layer == ET_MOE ? step.assignment.slots : c->tokens;
    progress_clear();
    if (status == ET_OK) note_idle(&step);
    et_step_free(&step);
    return status;
}

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int name_width(const case_list *list)
{
    size_t width = strlen("case");
    for (size_t i = 0; i < list->count; i++)
        if (strlen(list->at[i].name) > width) width = strlen(list->at[i].name);
    return (int)width;
}

static void print_skipped(int width, const char *name, const char *reason)
{
    int used = printf("%-*s  ", width, name);
    char text[sizeof((et_conclusiveness *)0)->reason + 16];
    snprintf(text, sizeof text, "skipped: %s", reason);
    print_hung((size_t)used, text);
}

/* Rows are printed as they are done, so the columns' widths are settled beforehand. A file's name that has no room
 * stands on a line of its own. */
static void print_row(int width, const char *name, const char *path, size_t slots, double seconds)
{
    struct stat facts = {0};
    char size[32];
    stat(path, &facts);
    print_size(size, sizeof size, (double)facts.st_size);
    int used = printf("%-*s  %11s  %9zu  %8.2f  ", width, name, size, slots, seconds);
    if ((size_t)used + strlen(path) > terminal_width()) fputs("\n    ", stdout);
    print_clean(stdout, path);
    putchar('\n');
    fflush(stdout);
}

/* In one line on standard error: a list of goldens should not be short in silence. */
static void note_left_out(const word_list *names, const generate_options *o)
{
    if (names->count == 0) return;
    fprintf(stderr, "etref: note: %zu case%s left out, inconclusive under %s: ", names->count,
            names->count == 1 ? "" : "s", o->judges.name);
    for (size_t i = 0; i < names->count; i++) fprintf(stderr, "%s%s", i ? ", " : "", names->at[i]);
    fputc('\n', stderr);
}

static et_status generate_all(const case_list *list, const generate_options *o, et_error *error)
{
    int width = name_width(list);
    word_list left_out = {0};
    et_status status = make_folders(o->out, error);
    if (status == ET_OK && !o->quiet)
        printf("%-*s  %11s  %9s  %8s  file\n", width, "case", "size", "slots", "seconds");
    fflush(stdout);
    for (size_t i = 0; i < list->count && status == ET_OK; i++) {
        const et_case *c = &list->at[i];
        char path[PATH_MAX];
        size_t slots = 0;
        double start = seconds_now();
        et_conclusiveness found;
        if (!name_file(path, sizeof path, o, c->name))
            status = et_fail(error, ET_EINVAL, "--out %s: the path is too long", o->out);
        if (status == ET_OK) status = generate_one(c, path, o, &slots, &found, error);
        if (status != ET_OK) break;
        if (!found.conclusive) word_list_add(&left_out, c->name);
        if (o->quiet) continue;
        if (found.conclusive)
            print_row(width, c->name, path, slots, seconds_now() - start);
        else
            print_skipped(width, c->name, found.reason);
        fflush(stdout);
    }
    if (status == ET_OK) note_left_out(&left_out, o);
    word_list_free(&left_out);
    return status;
}

static double most_work(const case_list *list)
{
    double most = 0;
    for (size_t i = 0; i < list->count; i++) most = fmax(most, et_case_work(&list->at[i]));
    return most;
}

int cmd_generate(int argc, char **argv)
{
    generate_options o = {.out = ".", .routing = -1};
    case_list list = {0};
    et_error error = {0};
    int result = STATUS_BAD;
    if (read_options(&o, argc, argv)) {
        et_status status = collect(&list, &o, &error);
        if (status == ET_OK) use_threads_for(o.threads, most_work(&list));
        if (status == ET_OK) status = generate_all(&list, &o, &error);
        result = status == ET_OK ? STATUS_PASS : fail_status(status, &error);
    }
    case_list_free(&list);
    word_list_free(&o.cases);
    word_list_free(&o.suites);
    word_list_free(&o.settings);
    return result;
}
