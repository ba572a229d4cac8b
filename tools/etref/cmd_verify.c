/* cmd_verify.c: `etref verify`: of two files the second is a kernel's output that is judged against the first; of
 * several pairs each. `etref check`, and verify of one file: a bundle against its own recomputation.
 */
#include "tools/etref/commands.h"
#include "tools/etref/ending.h"
#include "tools/etref/junit.h"
#include "tools/etref/pairs.h"
#include "tools/etref/standard_input.h"
#include "tools/etref/terminal.h"
#include "tools/etref/verify.h"

#include <stdio.h>
#include <string.h>

enum { EXPLAIN_SECONDS = 10 }; /* of CPU, unless --explain-limit says otherwise */

/* ---- words ---- */

/* An unset variable leaves an empty word, and a golden alone would pass. */
static bool check_empty(const char *command, const word_list *words)
{
    for (size_t i = 0; i < words->count; i++) {
        if (words->at[i][0] != '\0') continue;
        fail("%s: word %zu is empty, as where a variable is unset: etref verify GOLDEN CANDIDATE judges a "
             "candidate, etref check GOLDEN a bundle by itself",
             command, i + 1);
        return false;
    }
    return true;
}

static bool check_words(const verify_options *o, const word_list *words, const pair_list *listed)
{
    if (!check_empty("verify", words)) return false;
    if (listed->given && words->count > 0)
        fail("verify: '%s' beside --pairs, which names all files", words->at[0]);
    else if (!listed->given && words->count == 0)
        fail("verify: no file given: etref verify GOLDEN CANDIDATE");
    else if (words->count > 1 && words->count % 2 == 1)
        fail("verify: %zu files given; pairs belong here: etref verify GOLDEN CANDIDATE [GOLDEN CANDIDATE]...",
             words->count);
    else if (o->name && (listed->given || words->count > 2))
        fail("verify: --name is of one candidate; in a list of --pairs the third word of a line is a name");
    else if (o->name && o->name[0] == '\0')
        fail("verify: --name is empty: a word that tells two kernels apart belongs there");
    else
        return true;
    return false;
}

/* ---- options ---- */

/* What only a judgement understands. */
static bool check_alone(const verify_options *o)
{
    const struct {
        bool given;
        const char *name;
    } rows[] = {{o->profile != NULL, "--profile"}, {o->require.count > 0, "--require"},
                {o->ties >= 0, "--ties"},          {o->aliases.count > 0, "--alias"},
                {o->no_explain, "--no-explain"},   {o->explain_asked, "--explain-limit"},
                {o->all, "--all"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (!rows[i].given) continue;
        fail(
            "verify: %s is about judging a candidate, and none is given: etref verify %s CANDIDATE "
            "%s ...",
            rows[i].name, o->golden, rows[i].name);
        return false;
    }
    return true;
}

static bool check_forms(const verify_options *o)
{
    if (o->quiet && o->format != FORMAT_TEXT)
        fail("%s: --quiet is a line of text; leave out --quiet or --format", o->argv[0]);
    else if (o->all && (o->quiet || o->format != FORMAT_TEXT))
        fail("verify: --all is the whole table as text; leave out --all, or --quiet and --format");
    else if (o->no_explain && o->explain_limit > 0)
        fail("verify: --no-explain looks for no explanation; leave out --explain-limit");
    else
        return true;
    return false;
}

static bool read_options(verify_options *o, pair_list *pairs, int argc, char **argv)
{
    word_list words = {0};
    const char *list = NULL;
    const option table[] = {{"--profile", OPTION_WORD, &o->profile, NULL},
                            {"--require", OPTION_LIST, &o->require, NULL},
                            {"--ties", OPTION_CHOICE, &o->ties, "rule|any"},
                            {"--alias", OPTION_LIST, &o->aliases, NULL},
                            {"--no-explain", OPTION_FLAG, &o->no_explain, NULL},
                            {"--explain-limit", OPTION_COUNT, &o->explain_limit, NULL},
                            {"--engine", OPTION_CHOICE, &o->engine, "plain|blas"},
                            {"--format", OPTION_CHOICE, &o->format, "text|json|junit"},
                            {"--quiet", OPTION_FLAG, &o->quiet, NULL},
                            {"--all", OPTION_FLAG, &o->all, NULL},
                            {"--name", OPTION_WORD, &o->name, NULL},
                            {"--pairs", OPTION_WORD, &list, NULL},
                            {"--jobs", OPTION_THREADS, &o->jobs, NULL},
                            {"--threads", OPTION_THREADS, &o->threads, NULL},
                            {NULL, OPTION_FLAG, NULL, NULL}};
    bool fine = options_parse(table, argc, argv, &words);
    pairs->given = list != NULL;
    fine = fine && check_words(o, &words, pairs) && check_forms(o);
    fine = fine && (list ? pair_list_read(pairs, list) : pair_list_take(pairs, &words, o->name));
    word_list_free(&words);
    if (!fine) return false;
    o->golden = pairs->at[0].golden;
    o->candidate = pairs->at[0].candidate;
    o->explain_asked = o->explain_limit > 0;
    if (!o->candidate) return check_alone(o);
    if (o->explain_limit == 0) o->explain_limit = EXPLAIN_SECONDS;
    return true;
}

/* ---- the commands ---- */

static int verify_one(verify_options *o)
{
    et_error error;
    et_status status = take_standard_input(&o->golden, &error);
    if (status == ET_OK && o->candidate) status = take_standard_input(&o->candidate, &error);
    if (status != ET_OK) return fail_status(status, &error);
    return o->candidate ? verify_candidate(o) : verify_integrity(o);
}

static int verify_all(verify_options *o, const pair_list *pairs)
{
    bool many = pairs->given || pairs->count > 1;
    return many ? verify_many(o, pairs->at, pairs->count) : verify_one(o);
}

int cmd_verify(int argc, char **argv)
{
    verify_options o = {.engine = -1, .ties = -1, .argc = argc, .argv = argv};
    pair_list pairs = {0};
    int result = STATUS_BAD;
    junit_start();
    if (read_options(&o, &pairs, argc, argv)) result = verify_all(&o, &pairs);
    pair_list_free(&pairs);
    word_list_free(&o.require);
    word_list_free(&o.aliases);
    return result;
}

static bool check_files(const verify_options *o, const word_list *words)
{
    if (words->count == 0) {
        fail("check: no file given: etref check FILE...");
        return false;
    }
    if (o->name && (words->count > 1 || o->name[0] == '\0')) {
        fail("check: --name is a word for one file, and %zu are given", words->count);
        return false;
    }
    return check_empty("check", words);
}

static bool read_check(verify_options *o, pair_list *files, int argc, char **argv)
{
    word_list words = {0};
    const option table[] = {{"--engine", OPTION_CHOICE, &o->engine, "plain|blas"},
                            {"--format", OPTION_CHOICE, &o->format, "text|json|junit"},
                            {"--quiet", OPTION_FLAG, &o->quiet, NULL},
                            {"--name", OPTION_WORD, &o->name, NULL},
                            {"--jobs", OPTION_THREADS, &o->jobs, NULL},
                            {"--threads", OPTION_THREADS, &o->threads, NULL},
                            {NULL, OPTION_FLAG, NULL, NULL}};
    bool fine = options_parse(table, argc, argv, &words) && check_forms(o) && check_files(o, &words);
    if (fine) pair_list_take_files(files, &words, o->name);
    word_list_free(&words);
    if (fine) o->golden = files->at[0].golden;
    return fine;
}

int cmd_check(int argc, char **argv)
{
    verify_options o = {.engine = -1, .ties = -1, .argc = argc, .argv = argv};
    pair_list files = {0};
    int result = STATUS_BAD;
    junit_start();
    if (read_check(&o, &files, argc, argv)) result = verify_all(&o, &files);
    pair_list_free(&files);
    return result;
}

/* ---- what the reports share ---- */

void name_suite(char *out, size_t room, const verify_options *o, const char *what, const char *of)
{
    snprintf(out, room, "etref.%s%s%s.%s", o->name ? o->name : "", o->name ? "." : "", what, of);
}

void print_last_line(const verify_options *o, const char *line)
{
    if (o->one_of_many && o->name) print_clean(stdout, o->name);
    if (o->one_of_many && o->name) fputs(": ", stdout);
    et_page clean = {0};
    et_page_clean(&clean, line);
    et_page_add(&clean, "\n");
    print_page(&clean);
}

void log_last_line(const verify_options *o, const char *line)
{
    bool named = o->one_of_many && o->name;
    fail("%s%s%s", named ? o->name : "", named ? ": " : "", line);
}
