/* cmd_verify.c: `etref verify`: one file is checked against its own recomputation; of two, the
 * second is a kernel's output that is judged against the first.
 */
#include "tools/etref/commands.h"
#include "tools/etref/ending.h"
#include "tools/etref/verify.h"

#include <stdio.h>
#include <string.h>

enum { EXPLAIN_SECONDS = 10 }; /* of CPU, unless --explain-limit says otherwise */

static bool check_words(const word_list *words)
{
    if (words->count == 1 || words->count == 2) return true;
    if (words->count == 0)
        fail("verify: no file given: etref verify GOLDEN [CANDIDATE]");
    else
        fail("verify: %zu files given; one golden and at most one candidate belong here: etref "
             "verify GOLDEN CANDIDATE",
             words->count);
    return false;
}

/* What only a judgement understands. */
static bool check_alone(const verify_options *o)
{
    const struct {
        bool given;
        const char *name;
    } rows[] = {{o->profile != NULL, "--profile"}, {o->require.count > 0, "--require"},
                {o->ties >= 0, "--ties"},          {o->aliases.count > 0, "--alias"},
                {o->no_explain, "--no-explain"},   {o->explain_limit > 0, "--explain-limit"},
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

static bool read_options(verify_options *o, int argc, char **argv)
{
    word_list words = {0};
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
                            {"--threads", OPTION_THREADS, &o->threads, NULL},
                            {NULL, OPTION_FLAG, NULL, NULL}};
    bool fine = options_parse(table, argc, argv, &words) && check_words(&words);
    if (fine) o->golden = words.at[0];
    if (fine && words.count == 2) o->candidate = words.at[1];
    word_list_free(&words);
    if (fine && o->quiet && o->format != FORMAT_TEXT) {
        fail("verify: --quiet is a line of text; leave out --quiet or --format");
        return false;
    }
    if (fine && o->all && (o->quiet || o->format != FORMAT_TEXT)) {
        fail("verify: --all is the whole table as text; leave out --all, or --quiet and --format");
        return false;
    }
    if (fine && o->no_explain && o->explain_limit > 0) {
        fail("verify: --no-explain looks for no explanation; leave out --explain-limit");
        return false;
    }
    if (fine && !o->candidate) return check_alone(o);
    if (o->explain_limit == 0) o->explain_limit = EXPLAIN_SECONDS;
    return fine;
}

int cmd_verify(int argc, char **argv)
{
    verify_options o = {.engine = -1, .ties = -1, .argc = argc, .argv = argv};
    int result = STATUS_BAD;
    if (read_options(&o, argc, argv)) {
        use_threads(o.threads);
        result = o.candidate ? verify_candidate(&o) : verify_integrity(&o);
    }
    word_list_free(&o.require);
    word_list_free(&o.aliases);
    return result;
}
