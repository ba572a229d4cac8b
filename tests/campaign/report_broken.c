/* report_broken.c: broken kernels and detection floors. */
#include "tests/campaign/report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- broken kernels ---- */

/* Fields of a line `run`. */
enum {
    FAULT = 1,
    CASE,
    PROFILE,
    KERNEL,
    OUTCOME,
    EXPLAINED,
    NAMES,
    TORCH,
    GGML,
    CHANGE,
    FARTHEST,
    STRENGTH,
    DIFFERING,
    REASON
};

typedef struct row {
    double runs, rejected, accepted, doubtful, refused, own, wrong, none, torch, ggml, missed;
} row;

static bool is(const cp_reader *reader, size_t field, const char *text)
{
    return field < reader->count && strcmp(reader->fields[field], text) == 0;
}

/* Larger than any rounding: an element beyond twice what an honest one may err by, or a difference that
 * cannot be told in deviations, while the routing is the same. */
static bool is_clear(const cp_reader *reader)
{
    return cp_number(reader, FARTHEST) > 20 && cp_number(reader, DIFFERING) == 0;
}

static void add_run(row *r, const cp_reader *reader)
{
    bool rejected = is(reader, OUTCOME, "mismatch"), accepted = is(reader, OUTCOME, "pass");
    r->runs++;
    r->rejected += rejected;
    r->accepted += accepted;
    r->doubtful += !rejected && !accepted;
    r->own += is(reader, EXPLAINED, "own") || is(reader, EXPLAINED, "both");
    r->wrong += is(reader, EXPLAINED, "wrong");
    r->none += is(reader, EXPLAINED, "none");
    r->torch += cp_number(reader, TORCH);
    r->ggml += cp_number(reader, GGML);
    r->missed += accepted && is_clear(reader);
}

static void add_row(row *to, const row *more)
{
    to->runs += more->runs;
    to->rejected += more->rejected;
    to->accepted += more->accepted;
    to->doubtful += more->doubtful;
    to->refused += more->refused;
    to->own += more->own;
    to->wrong += more->wrong;
    to->none += more->none;
    to->torch += more->torch;
    to->ggml += more->ggml;
    to->missed += more->missed;
}

static void print_row(FILE *to, const char *name, const char *expected, const row *r)
{
    fprintf(to, "%-26s %6.0f %6.0f %6.0f %6.0f %6.0f %6.0f | ", name, r->runs, r->rejected,
            r->accepted, r->missed, r->doubtful, r->refused);
    if (r->rejected > 0)
        fprintf(to, "%5.1f%% %5.0f %5.0f", 100 * r->own / r->rejected, r->wrong, r->none);
    else
        fprintf(to, "%6s %5s %5s", "-", "-", "-");
    fprintf(to, " | %5.0f %5.0f  %s\n", r->torch, r->ggml, expected ? expected : "(no name)");
}

static void print_header(FILE *to)
{
    fprintf(to, "\n%-26s %6s %6s %6s %6s %6s %6s | %6s %5s %5s | %5s %5s  %s\n", "fault", "runs",
            "reject", "accept", "MISSED", "incon.", "refus.", "own", "wrong", "none", "torch",
            "ggml", "must be explained by");
}

/* One profile's accepted runs, fault by fault: how far below the rounding. */
static void print_accepted(const cp_report *r)
{
    fprintf(r->to,
            "\naccepted: the largest change of an element, and of a tensor, in deviations\n");
    for (size_t f = 0; cd_fault_at(f); f++)
        for (size_t p = 0; p < CP_PROFILES; p++) {
            double runs = 0, farthest = 0, strength = 0, differing = 0;
            char at[80] = "";
            for (cp_reader reader = cp_read(r); cp_next(&reader, "run");) {
                if (!is(&reader, OUTCOME, "pass") || !is(&reader, FAULT, cd_fault_at(f)->name) ||
                    !is(&reader, PROFILE, et_profile_at(p)->name))
                    continue;
                runs++;
                if (!(cp_number(&reader, FARTHEST) < farthest))
                    snprintf(at, sizeof at, "%s %s", reader.fields[CASE], reader.fields[KERNEL]);
                farthest = fmax(farthest, cp_number(&reader, FARTHEST));
                strength = fmax(strength, cp_number(&reader, STRENGTH));
                differing = fmax(differing, cp_number(&reader, DIFFERING));
            }
            if (runs > 0)
                fprintf(r->to, "%-26s %-9s %4.0f  %8.3g %8.3g  %s%s\n", cd_fault_at(f)->name,
                        et_profile_at(p)->name, runs, farthest, strength, at,
                        differing > 0 ? "  (other decisions, all legal)" : "");
        }
}

static void print_lines(const cp_report *r, const char *explained, const char *title, size_t most)
{
    cp_counts lines = {0};
    for (cp_reader reader = cp_read(r); cp_next(&reader, "run");) {
        const cd_fault *fault = cd_fault_find(reader.fields[FAULT]);
        char text[400], example[900];
        if (!is(&reader, EXPLAINED, explained) || !fault || !fault->explained_by) continue;
        snprintf(text, sizeof text, "%s%s%s", reader.fields[FAULT],
                 reader.fields[NAMES][0] ? " explained by " : "", reader.fields[NAMES]);
        snprintf(example, sizeof example, "--judge '%s 0 %s %s %s': %s", reader.fields[CASE],
                 reader.fields[PROFILE], reader.fields[KERNEL], reader.fields[FAULT],
                 reader.fields[REASON]);
        if (!cp_counts_add(&lines, text, example)) break;
    }
    cp_counts_sort(&lines);
    if (lines.count > 0) fprintf(r->to, "\n%s\n", title);
    for (size_t i = 0; i < lines.count && i < most; i++)
        fprintf(r->to, "%6.0f %s\n       %s\n", lines.rows[i].times, lines.rows[i].text,
                lines.rows[i].example);
    cp_counts_free(&lines);
}

static void write_csv(FILE *file, const char *fault, const char *profile, const char *name,
                      const row *r)
{
    if (file && r->runs > 0)
        fprintf(file, "%s,%s,%s,%.0f,%.0f,%.0f,%.0f,%.0f,%.0f,%.0f,%.0f,%.0f,%.0f,%.0f\n", fault,
                profile, name ? name : "", r->runs, r->rejected, r->accepted, r->missed,
                r->doubtful, r->refused, r->own, r->wrong, r->none, r->torch, r->ggml);
}

typedef struct totals {
    row *of; /* [faults, CP_PROFILES] */
    row profile[CP_PROFILES], all, named;
    size_t absent, unexplained; /* faults: planted nowhere; explained by their names too rarely */
} totals;

static size_t index_of(const cp_reader *reader)
{
    size_t f = 0, p = 0;
    while (cd_fault_at(f) && !is(reader, FAULT, cd_fault_at(f)->name)) f++;
    while (p + 1 < CP_PROFILES && !is(reader, PROFILE, et_profile_at(p)->name)) p++;
    return f * CP_PROFILES + p;
}

static bool read_totals(const cp_report *r, totals *t)
{
    size_t faults = 0;
    while (cd_fault_at(faults)) faults++;
    *t = (totals){.of = calloc((faults + 1) * CP_PROFILES, sizeof *t->of)};
    if (!t->of) return false;
    for (cp_reader reader = cp_read(r); cp_next(&reader, "run");)
        add_run(&t->of[index_of(&reader)], &reader);
    for (cp_reader reader = cp_read(r); cp_next(&reader, "refused");) {
        t->of[index_of(&reader)].runs++;
        t->of[index_of(&reader)].refused++;
    }
    return true;
}

static bool is_planned(const cp_report *r, size_t fault)
{
    for (size_t i = 0; i < r->list->count; i++)
        if (r->list->units[i].part == r->part && r->list->units[i].index == fault) return true;
    return false;
}

/* In at least 95 % of the runs rejected, and never by other names alone. */
static bool is_explained(const row *r)
{
    return r->own >= 0.95 * r->rejected && r->wrong == 0;
}

static void print_faults(const cp_report *r, totals *t, FILE *file)
{
    print_header(r->to);
    for (size_t f = 0; cd_fault_at(f); f++) {
        const cd_fault *fault = cd_fault_at(f);
        row sum = {0};
        for (size_t p = 0; p < CP_PROFILES; p++) {
            const row *one = &t->of[f * CP_PROFILES + p];
            add_row(&sum, one);
            add_row(&t->profile[p], one);
            write_csv(file, fault->name, et_profile_at(p)->name, fault->explained_by, one);
        }
        if (!is_planned(r, f)) continue;
        print_row(r->to, fault->name, fault->explained_by, &sum);
        add_row(&t->all, &sum);
        if (fault->explained_by) {
            add_row(&t->named, &sum);
            t->unexplained += !is_explained(&sum);
        }
        t->absent += sum.runs == 0;
    }
    print_header(r->to);
    for (size_t p = 0; p < CP_PROFILES; p++)
        print_row(r->to, et_profile_at(p)->name, "", &t->profile[p]);
    print_row(r->to, "all", "", &t->all);
    print_row(r->to, "those with a name", "", &t->named);
}

bool cp_report_broken(const cp_report *r)
{
    totals t;
    if (!read_totals(r, &t)) return false;
    FILE *file = cp_csv(
        r, "broken.csv", "kernels with one planted fault; counts of runs",
        "fault,profile,must_be_explained_by,runs,rejected,accepted,missed,inconclusive,refused,"
        "explained_by_own_name,by_wrong_names_alone,by_nothing,pytorch_accepts,ggml_accepts");
    print_faults(r, &t, file);
    print_accepted(r);
    print_lines(r, "wrong", "Explained wrongly:", 60);
    print_lines(r, "none", "Not explained:", 60);
    fprintf(r->to,
            "\nMISSED: accepted though an element changed by more than 20 deviations; refused: a "
            "tensor that the case does not have. %zu faults were planted nowhere; %zu are "
            "explained by their names in less than 95 of 100 runs, or by other names alone.\n",
            t.absent, t.unexplained);
    free(t.of);
    return file && fclose(file) == 0 && t.all.missed == 0 && t.absent == 0 && t.all.runs > 0 &&
           t.unexplained == 0;
}

/* ---- floors ---- */

typedef struct floor_row {
    char profile[16], name[40];
    double seeds, floor, rejected, bound;
} floor_row;

enum { MOST_FLOORS = 64 };

static floor_row *find_row(floor_row *rows, size_t *count, const cp_reader *reader)
{
    size_t i = 0;
    while (i < *count && !(is(reader, 1, rows[i].profile) && is(reader, 2, rows[i].name))) i++;
    if (i == *count && i + 1 < MOST_FLOORS) {
        snprintf(rows[i].profile, sizeof rows[i].profile, "%s", reader->fields[1]);
        snprintf(rows[i].name, sizeof rows[i].name, "%s", reader->fields[2]);
        (*count)++;
    }
    return &rows[i];
}

bool cp_report_floors(const cp_report *r)
{
    floor_row rows[MOST_FLOORS] = {0};
    size_t count = 0;
    bool kept = true;
    for (cp_reader reader = cp_read(r); cp_next(&reader, "floor");) {
        floor_row *one = find_row(rows, &count, &reader);
        one->seeds++;
        one->floor = fmax(one->floor, cp_number(&reader, 3));
        one->rejected += cp_number(&reader, 4);
        one->bound = cp_number(&reader, 5);
    }
    FILE *file =
        cp_csv(r, "floors.csv", "d12-et; smallest factor 1 + epsilon rejected for every seed",
               "profile,quantity,seeds,epsilon,bound");
    fprintf(r->to, "\nsmallest epsilon that is caught for every seed, d12-et\n");
    for (size_t i = 0; i < count; i++) {
        const floor_row *one = &rows[i];
        bool caught = one->bound == 0 || one->floor <= one->bound * (1 + 1e-9);
        bool within = caught && one->rejected == 0;
        fprintf(r->to, "%-6s %-26s %3.0f seeds  %8.0e", one->profile, one->name, one->seeds,
                one->floor);
        if (one->bound > 0) fprintf(r->to, "  (bound %.0e)", one->bound);
        fprintf(r->to, "%s%s\n", caught ? "" : "  MISSED",
                one->rejected > 0 ? ", the healthy kernel is rejected" : "");
        if (file)
            fprintf(file, "%s,\"%s\",%.0f,%g,%g\n", one->profile, one->name, one->seeds, one->floor,
                    one->bound);
        kept = kept && within;
    }
    return file && fclose(file) == 0 && kept && count > 0;
}
