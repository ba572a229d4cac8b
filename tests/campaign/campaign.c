/* campaign.c: the command. See campaign.h.
 *
 *     campaign --of HASH [--explaining HASH] [--part NAME] [--seeds N] [--only TEXT] [--workers N]
 *              [--data data] [--journal FOLDER] [--out FOLDER]
 *     campaign --judge 'CASE SEED PROFILE KERNEL [FAULT [AMOUNT]]'
 *
 * Explanations are asked of broken kernels alone: a change there costs these, not the two hours.
 * --workers 0: the tables of what there is. Exit status: 0 all bounds are kept; 1 one is missed; 2 something could not be done.
 */
#include "tests/campaign/campaign.h"

#include <limits.h>
#include <malloc.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const cp_part *const parts[] = {&cp_honest,      &cp_paper,  &cp_random, &cp_habits,
                                       &cp_calibration, &cp_limits, &cp_broken, &cp_floors};
enum { PARTS = sizeof parts / sizeof *parts };

typedef struct command {
    cp_options o;
    const char *part, *of, *journal, *judge;
    size_t workers;
} command;

/* ---- the command line ---- */

static bool take(command *c, const char *name, const char *value)
{
    const struct {
        const char *name, **to;
    } texts[] = {{"--part", &c->part},       {"--of", &c->of},
                 {"--journal", &c->journal}, {"--judge", &c->judge},
                 {"--only", &c->o.only},     {"--data", &c->o.data},
                 {"--out", &c->o.out},       {"--explaining", &c->o.explaining}};
    const struct {
        const char *name;
        size_t *to;
    } numbers[] = {{"--seeds", &c->o.seeds}, {"--workers", &c->workers}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (strcmp(name, texts[i].name) == 0) return (*texts[i].to = value) != NULL;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (strcmp(name, numbers[i].name) == 0) {
            *numbers[i].to = strtoul(value, NULL, 10);
            return true;
        }
    return false;
}

static bool read_command(command *c, int count, char **words)
{
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    *c = (command){.o = {.data = "data", .out = "data/campaign", .explaining = "-"},
                   .journal = "build/campaign",
                   .workers = processors > 0 ? (size_t)processors : 1};
    for (int i = 1; i < count; i += 2)
        if (i + 1 == count || !take(c, words[i], words[i + 1])) {
            fprintf(stderr, "campaign: %s: no such option, or no value\n", words[i]);
            return false;
        }
    for (size_t i = 0; c->part && i < PARTS; i++)
        if (strcmp(parts[i]->name, c->part) == 0) return c->of || c->judge;
    if (!c->part && (c->of || c->judge)) return true;
    fprintf(stderr, "campaign: %s\n", c->part ? "no such part" : "--of or --judge is needed");
    return false;
}

/* ---- the work ---- */

/* A part without units of its own needs those of the others. */
static bool is_wanted(const command *c, const cp_part *part)
{
    return !c->part || strcmp(c->part, part->name) == 0;
}

static bool is_needed(const command *c, const cp_part *part)
{
    return is_wanted(c, part) || is_wanted(c, &cp_limits);
}

static bool plan_all(const command *c, cp_list *list, et_error *error)
{
    for (size_t i = 0; i < PARTS; i++)
        if (parts[i]->plan && is_needed(c, parts[i]) && !parts[i]->plan(list, &c->o, error))
            return false;
    size_t kept = 0;
    for (size_t i = 0; i < list->count; i++)
        if (!c->o.only || strstr(list->units[i].key, c->o.only))
            list->units[kept++] = list->units[i];
    list->count = kept;
    return true;
}

/* All tables; true if every bound is kept. */
static bool report_all(const command *c, const cp_list *list, const cp_journal *journal)
{
    bool kept = true;
    for (size_t i = 0; i < PARTS; i++) {
        cp_report r = {parts[i], list, journal, &c->o, stdout};
        if (!is_wanted(c, parts[i])) continue;
        printf("\n== %s: %s\n", parts[i]->name, parts[i]->what);
        kept = parts[i]->report(&r) && kept;
    }
    printf("\n%s\n", kept ? "every bound is kept" : "A BOUND IS MISSED");
    return kept;
}

static int conduct(const command *c, et_error *error)
{
    cp_list list = {0};
    cp_journal journal = {0};
    int status = 2;
    if (plan_all(c, &list, error) && cp_journal_open(&journal, c->journal, c->of, error)) {
        bool whole = cp_do_all(&list, &journal, c->workers);
        cp_journal_close(&journal);
        if (cp_journal_open(&journal, c->journal, c->of, error))
            status = report_all(c, &list, &journal) ? 0 : 1;
        if (!whole) status = 2;
    }
    cp_journal_close(&journal);
    free(list.units);
    return status;
}

int main(int count, char **words)
{
    command c;
    et_error error = {.text = ""};
    omp_set_num_threads(1);
    mallopt(M_MMAP_THRESHOLD, INT_MAX); /* one layer after the other in the same memory */
    mallopt(M_TRIM_THRESHOLD, INT_MAX);
    if (!read_command(&c, count, words)) return 2;
    int status = 2;
    if (!c.judge)
        status = conduct(&c, &error);
    else if (cp_reproduce(c.o.data, c.judge, &error))
        status = 0;
    if (error.text[0] && status == 2) fprintf(stderr, "campaign: %s\n", error.text);
    return status;
}
