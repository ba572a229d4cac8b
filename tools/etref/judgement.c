/* judgement.c: `etref verify GOLDEN CANDIDATE`: from two files and the options to a verdict.
 *
 * The golden's stored values are not judged by: the reference is computed from its inputs, as in the
 * check of its integrity. They are read for one question alone, whether the candidate is a copy of them. The
 * verdict is the library's.
 */
#include "etref/etref.h"
#include "ref/report/describe_case.h"
#include "tools/etref/commands.h"
#include "tools/etref/ending.h"
#include "tools/etref/idle.h"
#include "tools/etref/memory_limit.h"
#include "tools/etref/profiles.h"
#include "tools/etref/standard_input.h"
#include "tools/etref/terminal.h"
#include "tools/etref/verify.h"
#include "ref/step/step_work.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* A candidate judged: what was read, what was computed, what came of it. */
typedef struct judgement {
    const verify_options *options;
    et_tensor_file golden_file, candidate_file;
    et_step golden;
    et_candidate candidate;
    et_profile profile; /* the one named */
    bool same_file;     /* golden and candidate are one file under two names, or under one */
    et_verdict verdict;
    et_assignment routing; /* the candidate's own where it shows one; names slots in the report */
    bool routing_owned;
} judgement;

/* ---- what is asked for ---- */

/* Without --profile the library chooses, from the candidate's own numbers. */
static et_status choose_profile(judgement *j, et_error *error)
{
    const char *named = j->options->profile;
    return named ? profile_choose(&j->profile, named, error) : ET_OK;
}

/* "mine=fwd.y", cut in two. `text` is a copy that the aliases then point into. */
static et_status cut_alias(et_alias *alias, char *text, et_error *error)
{
    char *equals = strrchr(text, '=');
    if (equals == NULL || equals == text || equals[1] == '\0')
        return et_fail(error, ET_EINVAL,
                       "--alias %s: the candidate's name, '=' and a bundle's name belong here, for "
                       "example out=fwd.y",
                       text);
    *equals = '\0';
    *alias = (et_alias){.mine = text, .name = equals + 1};
    return ET_OK;
}

static et_status read_candidate(judgement *j, et_error *error)
{
    const word_list *words = &j->options->aliases;
    et_alias *aliases = allocate(words->count, sizeof *aliases);
    char **texts = allocate(words->count, sizeof *texts);
    size_t left = memory_left(j->golden.bytes);
    et_status status = ET_OK;
    for (size_t i = 0; i < words->count && status == ET_OK; i++) {
        texts[i] = strcpy(allocate(strlen(words->at[i]) + 1, 1), words->at[i]);
        status = cut_alias(&aliases[i], texts[i], error);
    }
    if (status == ET_OK)
        status = et_candidate_read(&j->candidate, &j->candidate_file, &j->golden, aliases,
                                   words->count, left, error);
    for (size_t i = 0; i < words->count; i++) free(texts[i]);
    free(texts);
    free(aliases);
    return status;
}

/* Names of the golden's outputs, and "fwd.*" for each family of them. */
static void list_outputs(word_list *names, const et_step *golden)
{
    static const char *const families[] = {"fwd.*",   "route.*",  "bwd.*",   "loss.*",
                                           "state.*", "metric.*", "layout.*"};
    et_tensor_out tensors[ET_MAX_STEP_TENSORS];
    size_t count = et_step_tensors(golden, false, tensors);
    for (size_t i = 0; i < count; i++)
        if (strncmp(tensors[i].name, "in.", 3) != 0) word_list_add(names, tensors[i].name);
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        word_list_add(names, families[i]);
    word_list_add(names, NULL);
}

/* True if the word is one of the names, or ends in '*' and begins some of them. */
static bool names_something(const char *word, const word_list *names)
{
    size_t length = strlen(word);
    bool prefix = length > 0 && word[length - 1] == '*';
    for (size_t i = 0; names->at[i]; i++) {
        bool family = strchr(names->at[i], '*') != NULL;
        if (!family && (prefix ? strncmp(names->at[i], word, length - 1) == 0
                               : strcmp(names->at[i], word) == 0))
            return true;
    }
    return false;
}

/* What is wrong with one word of --require: appended. */
static void describe_required(char *out, size_t room, const char *word, const word_list *names)
{
    const char *near = nearest_word(word, names->at);
    if (near && !names_something(near, names)) near = NULL; /* "loss.*" of a case without losses */
    bool bundle = et_tensor_doc_find(word) != NULL;
    et_append(out, room, "%s--require %s: %s", out[0] ? "; " : "", word,
              bundle ? "the case computes no such tensor"
                     : "no such tensor; names like fwd.y and prefixes like bwd.* belong here");
    if (near) et_append(out, room, "; did you mean %s?", near);
}

static et_status check_required(const word_list *required, const judgement *j, et_error *error)
{
    word_list names = {0};
    char wrong[600] = "";
    list_outputs(&names, &j->golden);
    for (size_t i = 0; i < required->count; i++)
        if (!names_something(required->at[i], &names))
            describe_required(wrong, sizeof wrong, required->at[i], &names);
    word_list_free(&names);
    return wrong[0] ? et_fail(error, ET_EINVAL, "%s", wrong) : ET_OK;
}

/* Cuts "fwd.y,bwd.*" at its commas. `text` is a copy that the words then point into. */
static void cut_required(word_list *required, char *text)
{
    for (char *word = strtok(text, ", "); word; word = strtok(NULL, ", "))
        word_list_add(required, word);
}

/* ---- computing ---- */

/* The library, which knows no files, says "candidate: ..."; a reader of a log wants to know which. */
static et_status name_candidate(const char *path, et_status status, et_error *error)
{
    static const char head[] = "candidate: ";
    et_error own = *error;
    if (strncmp(own.text, head, strlen(head)) != 0) return status;
    return et_fail(error, status, "%s: %s", path, own.text + strlen(head));
}

static et_status judge_with(judgement *j, const word_list *required, et_error *error)
{
    const verify_options *o = j->options;
    et_verify_options options = {.profile = o->profile ? &j->profile : NULL,
                                 .ties_any = o->ties == 1,
                                 .require = required->at,
                                 .require_count = required->count,
                                 .explain = !o->no_explain,
                                 .explain_seconds = (double)o->explain_limit,
                                 .bars = o->golden,
                                 .max_bytes = memory_left(j->golden.bytes + j->candidate.bytes),
                                 .progress = progress_show,
                                 .user = (void *)o->candidate};
    et_status status = et_verify(&j->verdict, &j->golden, j->candidate.tensors, j->candidate.count,
                                 &options, error);
    return status == ET_OK ? ET_OK : name_candidate(o->candidate, status, error);
}

static et_status judge(judgement *j, et_error *error)
{
    const word_list *lists = &j->options->require;
    word_list required = {0}, texts = {0};
    for (size_t i = 0; i < lists->count; i++) {
        char *text = strcpy(allocate(strlen(lists->at[i]) + 1, 1), lists->at[i]);
        word_list_add(&texts, text);
        cut_required(&required, text);
    }
    et_status status =
        lists->count > 0 && required.count == 0
            ? et_fail(error, ET_EINVAL, "--require: names like fwd.y,bwd.* belong here")
            : check_required(&required, j, error);
    if (status == ET_OK) status = judge_with(j, &required, error);
    for (size_t i = 0; i < texts.count; i++) free((char *)texts.at[i]);
    word_list_free(&texts);
    word_list_free(&required);
    return status;
}

static const et_tensor_out *candidate_tensor(const judgement *j, const char *name)
{
    for (size_t i = 0; i < j->candidate.count; i++)
        if (strcmp(j->candidate.tensors[i].name, name) == 0) return &j->candidate.tensors[i];
    return NULL;
}

/* Are a tensor's values those of the golden's file? */
static et_status is_copied(const judgement *j, const et_tensor_out *t, size_t elements,
                           bool *copied, et_error *error)
{
    enum { CHUNK = 4096 };
    double stored[CHUNK];
    const et_tensor_info *info = et_tensor_file_find(&j->golden_file, t->name);
    et_status status = ET_OK;
    *copied = info != NULL && info->dtype == ET_F64 && info->count == elements; /* its own slots */
    for (size_t first = 0; status == ET_OK && *copied && first < info->count; first += CHUNK) {
        size_t count = info->count - first < CHUNK ? info->count - first : CHUNK;
        status = et_tensor_file_read(&j->golden_file, info, first, count, stored, error);
        const double *own = (const double *)t->values + first;
        *copied = status == ET_OK && memcmp(own, stored, count * sizeof *own) == 0;
    }
    return status;
}

/* A pass that every value of the layer owes to the golden's file proves nothing. Where a profile is coarser than the
 * golden the verdict sees by itself that nothing was rounded; a copy in 64 bits it takes for a kernel, since the
 * reference was computed by another engine. Values that must be exact are no sign of a copy; the same file is. */
static et_status look_for_copy(judgement *j, et_error *error)
{
    size_t copies = 0;
    et_verdict *v = &j->verdict;
    et_status status = ET_OK;
    for (size_t i = 0; v->outcome == ET_PASS && i < v->tensor_count; i++) {
        const et_tensor_out *t = candidate_tensor(j, v->tensors[i].name);
        bool layer = strncmp(t->name, "fwd.", 4) == 0 || strncmp(t->name, "bwd.", 4) == 0, copied;
        if (!layer || v->tensors[i].judged == v->tensors[i].exact) continue;
        if (t->dtype != ET_F64) return ET_OK;
        status = is_copied(j, t, v->tensors[i].elements, &copied, error);
        if (status != ET_OK || !copied) return status;
        copies++;
    }
    if (v->outcome != ET_PASS || (copies == 0 && !j->same_file)) return ET_OK;
    v->outcome = ET_INCONCLUSIVE;
    v->note[0] = '\0';
    snprintf(v->line, sizeof v->line, "INCONCLUSIVE: the candidate is the golden %s",
             j->same_file ? "itself: both are one file" : "itself: every value is its own");
    return ET_OK;
}

static bool same_file(const et_tensor_file *a, const et_tensor_file *b)
{
    struct stat first, second;
    return fstat(a->descriptor, &first) == 0 && fstat(b->descriptor, &second) == 0 &&
           first.st_dev == second.st_dev && first.st_ino == second.st_ino;
}

/* The report names a slot by token and expert: by the candidate's own routing, where it shows one. */
static et_status find_routing(judgement *j, et_error *error)
{
    const uint8_t *mask = j->verdict.routing.mask;
    j->routing = j->golden.assignment;
    if (mask == NULL) return ET_OK;
    et_status status =
        et_assignment_build(&j->routing, j->golden.c.tokens, j->golden.c.experts, mask, error);
    j->routing_owned = status == ET_OK;
    return status;
}

/* Says which file it was, if the library did not, and in which order the two belong. */
static et_status open_golden(judgement *j, et_error *error)
{
    const char *path = j->options->golden;
    et_status status = et_bundle_open(&j->golden_file, &j->golden, path, memory_limit(), error);
    if (status == ET_OK) return refuse_emulated(&j->golden_file, error);
    et_error own = *error;
    if (status != ET_EINVAL) return status;
    bool named = strncmp(own.text, path, strlen(path)) == 0;
    bool other = strstr(own.text, "not a bundle") != NULL;
    return et_fail(error, status, "%s%s%s%s", named ? "" : path, named ? "" : ": ", own.text,
                   other ? "; the golden comes first, the candidate second" : "");
}

/* Opens the candidate before the reference is computed: a slip in the file's name shows at once. */
static et_status compute(judgement *j, et_error *error)
{
    const verify_options *o = j->options;
    et_engine engine = o->engine < 0 ? ET_BLAS : (et_engine)o->engine;
    et_status status = open_golden(j, error);
    if (status != ET_OK) return status;
    use_threads_for(o->threads, et_case_work(&j->golden.c));
    status = et_tensor_file_open(&j->candidate_file, o->candidate, error);
    if (status == ET_OK) {
        j->same_file = same_file(&j->golden_file, &j->candidate_file);
        status = choose_profile(j, error);
    }
    if (status == ET_OK)
        status = et_step_run(&j->golden, engine, progress_show, (void *)o->golden, error);
    if (status == ET_OK) status = et_step_check_values(&j->golden, error);
    if (status == ET_OK) status = read_candidate(j, error);
    if (status == ET_OK) status = judge(j, error);
    if (status == ET_OK) status = look_for_copy(j, error);
    if (status == ET_OK) status = find_routing(j, error);
    progress_clear();
    return status;
}

static void judgement_free(judgement *j)
{
    et_verdict_free(&j->verdict);
    if (j->routing_owned) et_assignment_free(&j->routing);
    et_candidate_free(&j->candidate);
    et_step_free(&j->golden);
    et_tensor_file_close(&j->candidate_file);
    et_tensor_file_close(&j->golden_file);
}

/* ---- the report ---- */

static bool is_plain_word(const char *word)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                "-_./=,:+%@";
    return word[0] != '\0' && strspn(word, plain) == strlen(word);
}

/* A word as a shell wants it: in single quotes, where it is not plain. */
static void append_word(et_page *out, const char *word)
{
    if (is_plain_word(word)) {
        et_page_add(out, " %s", word);
        return;
    }
    et_page_add(out, " '");
    for (; *word; word++)
        if (*word == '\'')
            et_page_add(out, "'\\''");
        else
            et_page_add(out, "%c", *word);
    et_page_add(out, "'");
}

static void append_option(et_page *out, const char *name, const char *value)
{
    if (value == NULL) return;
    et_page_add(out, " %s", name);
    append_word(out, value);
}

/* The command line that gives this verdict again, the default profile written out. What says how it is reported, and
 * which others are judged beside it, is left out. */
static void describe_command(et_page *out, const judgement *j)
{
    const verify_options *o = j->options;
    const char *golden = open_name(o->golden), *candidate = open_name(o->candidate);
    bool like_options = (golden[0] == '-' && golden[1]) || (candidate[0] == '-' && candidate[1]);
    et_page_add(out, "etref verify");
    append_option(out, "--profile", o->profile ? o->profile : j->verdict.profile.name);
    for (size_t i = 0; i < o->require.count; i++) append_option(out, "--require", o->require.at[i]);
    for (size_t i = 0; i < o->aliases.count; i++) append_option(out, "--alias", o->aliases.at[i]);
    if (o->ties == 1) append_option(out, "--ties", "any");
    if (o->engine == ET_PLAIN) append_option(out, "--engine", "plain");
    if (o->no_explain) et_page_add(out, " --no-explain");
    if (o->explain_asked) et_page_add(out, " --explain-limit %zu", o->explain_limit);
    if (like_options) et_page_add(out, " --");
    append_word(out, golden);
    append_word(out, candidate);
}

static et_status print_report(const et_report *r, int format, et_error *error)
{
    char *text = NULL;
    et_status status =
        format == FORMAT_JSON ? et_report_json(&text, r, error) : et_report_text(&text, r, error);
    if (status != ET_OK) return status;
    result_begins();
    format == FORMAT_JSON ? (void)puts(text) : print_verdicts(text);
    free(text);
    return ET_OK;
}

static et_status print_verdict(const judgement *j, et_error *error)
{
    const verify_options *o = j->options;
    char suite[320], idle[256];
    et_page again = {0};
    describe_command(&again, j);
    char *command = et_page_take(&again);
    if (command == NULL) return et_fail(error, ET_ENOMEM, "the report: no memory");
    et_status status = ET_OK;
    name_suite(suite, sizeof suite, o, j->golden.c.name, j->verdict.profile.name);
    const et_report r = {.golden = &j->golden,
                         .candidate = j->candidate.tensors,
                         .count = j->candidate.count,
                         .verdict = &j->verdict,
                         .routing = &j->routing,
                         .name = o->name,
                         .golden_name = shown_name(o->golden),
                         .candidate_name = shown_name(o->candidate),
                         .command = command,
                         .idle = describe_idle(idle, sizeof idle, &j->golden) ? idle : NULL,
                         .width = terminal_width(),
                         .explained = !o->no_explain,
                         .all = o->all,
                         .same_file = j->same_file,
                         .inputs = j->candidate.inputs,
                         .ignored = j->candidate.ignored};
    if (o->format == FORMAT_JUNIT) {
        result_begins();
        print_junit_report(&r, suite);
    } else if (!o->quiet) {
        status = print_report(&r, o->format, error);
    }
    free(command);
    return status;
}

static int report(const judgement *j)
{
    static const int statuses[] = {[ET_PASS] = STATUS_PASS,
                                   [ET_MISMATCH] = STATUS_MISMATCH,
                                   [ET_INCONCLUSIVE] = STATUS_INCONCLUSIVE};
    et_error error = {0};
    et_status status = print_verdict(j, &error);
    if (status != ET_OK) return fail_status(status, &error);
    if (j->options->format == FORMAT_TEXT)
        print_last_line(j->options, j->verdict.line);
    else if (j->verdict.outcome != ET_PASS)
        log_last_line(j->options, j->verdict.line);
    return statuses[j->verdict.outcome];
}

int verify_candidate(const verify_options *o)
{
    et_error error = {0};
    judgement j = {.options = o, .golden_file.descriptor = -1, .candidate_file.descriptor = -1};
    et_status status = compute(&j, &error);
    name_standard_input(error.text, sizeof error.text);
    int result = status == ET_OK ? report(&j) : fail_status(status, &error);
    judgement_free(&j);
    return result;
}
