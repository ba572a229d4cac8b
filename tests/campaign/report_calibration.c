/* report_calibration.c: root mean square of error/sigma, tensor by tensor and situation by situation; and what
 * the limits of groups would have to be, against those in force.
 */
#include "ref/verdict/calibration.h"
#include "tests/campaign/report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- calibration ---- */

enum { MOST_CASES = 32 };

typedef struct cell {
    double elements, squares, sample;
} cell;

/* One profile, one kernel or all but the first: rows are tensors, columns are cases. */
typedef struct sheet {
    size_t cases;
    const char *names[MOST_CASES];
    cell of[ET_MAX_STEP_TENSORS][MOST_CASES];
} sheet;

static size_t column_of(sheet *s, const char *name)
{
    size_t i = 0;
    while (i < s->cases && strcmp(s->names[i], name) != 0) i++;
    if (i == s->cases && i + 1 < MOST_CASES) s->names[s->cases++] = name;
    return i;
}

static double level(const cell *c)
{
    return sqrt(c->squares / c->elements);
}

static bool is_large(const cell *c)
{
    return c->sample >= 1e4;
}

static void read_sheet(const cp_report *r, const char *profile, const char *kernel, sheet *s)
{
    memset(s, 0, sizeof *s);
    for (cp_reader reader = cp_read(r); cp_next(&reader, "tensor");) {
        if (strcmp(reader.fields[1], profile) != 0 || strcmp(reader.fields[2], kernel) != 0)
            continue;
        cell *c = &s->of[cp_tensor_row(reader.fields[3])][column_of(s, reader.unit->c.name)];
        c->elements += cp_number(&reader, 5);
        c->squares += cp_number(&reader, 6);
        c->sample += cp_number(&reader, 7);
    }
}

/* Names of columns, turned: they are longer than the numbers. */
static void print_names(FILE *to, const sheet *s)
{
    for (size_t i = 0; i < s->cases; i++)
        fprintf(to, "%24s %c%zu %s\n", i == 0 ? "columns:" : "", 'c', i, s->names[i]);
    fprintf(to, "%-20s", "tensor");
    for (size_t i = 0; i < s->cases; i++) fprintf(to, "    %c%-3zu", 'c', i);
    fprintf(to, "\n");
}

static void print_sheet(FILE *to, const sheet *s, double low, double high)
{
    print_names(to, s);
    for (size_t row = 0; et_tensor_doc_at(row); row++) {
        double any = 0;
        for (size_t i = 0; i < s->cases; i++) any += s->of[row][i].elements;
        if (any == 0) continue;
        fprintf(to, "%-20s", et_tensor_doc_at(row)->name);
        for (size_t i = 0; i < s->cases; i++) {
            const cell *c = &s->of[row][i];
            if (c->elements == 0)
                fprintf(to, " %7s", "-");
            else
                fprintf(to, " %6.3f%c", level(c),
                        !is_large(c)                        ? '.'
                        : level(c) < low || level(c) > high ? '!'
                                                            : ' ');
        }
        fprintf(to, "\n");
    }
}

/* How many cells with a large sample lie outside. */
static size_t count_outside(const sheet *s, double low, double high)
{
    size_t outside = 0;
    for (size_t row = 0; et_tensor_doc_at(row); row++)
        for (size_t i = 0; i < s->cases; i++) {
            const cell *c = &s->of[row][i];
            bool counts = c->elements > 0 && is_large(c);
            outside += counts && !(level(c) >= low && level(c) <= high);
        }
    return outside;
}

static void write_sheet(FILE *file, const char *profile, const sheet *s)
{
    for (size_t row = 0; file && et_tensor_doc_at(row); row++)
        for (size_t i = 0; i < s->cases; i++) {
            const cell *c = &s->of[row][i];
            if (c->elements > 0)
                fprintf(file, "%s,%s,%s,%.0f,%.4g,%.4f\n", profile, s->names[i],
                        et_tensor_doc_at(row)->name, c->elements, c->sample, level(c));
        }
}

/* Kernels that round less: only too large is wrong. One rounds dy, too: see upstream_site in ffn_noise.c. */
static size_t check_others(const cp_report *r, const char *profile)
{
    static sheet s;
    size_t all = 0;
    for (size_t k = 1; cd_kernel_at(k); k++) {
        read_sheet(r, profile, cd_kernel_at(k)->name, &s);
        double most = cd_kernel_at(k)->short_upstream ? 1.35 : 1.1;
        size_t own = count_outside(&s, 0, most);
        if (own > 0) {
            fprintf(r->to, "\n%s under %s: %zu tensors above %g\n", cd_kernel_at(k)->name, profile,
                    own, most);
            print_sheet(r->to, &s, 0, most);
        }
        all += own;
    }
    return all;
}

bool cp_report_calibration(const cp_report *r)
{
    static const char *const profiles[] = {"bf16", "f16"};
    static sheet s;
    size_t outside = 0;
    FILE *file = cp_csv(r, "deviations.csv",
                        "kernel sequential; root mean square of error/sigma, pooled over seeds; "
                        "sample = (sum V)^2/sum V^2",
                        "profile,case,tensor,elements,effective_sample,rms_error_over_sigma");
    for (size_t p = 0; p < 2; p++) {
        read_sheet(r, profiles[p], "sequential", &s);
        fprintf(r->to,
                "\nroot mean square of error/sigma under %s, kernel sequential; '.': effective "
                "sample below 1e4, '!': outside 0.9 to 1.1\n",
                profiles[p]);
        print_sheet(r->to, &s, 0.9, 1.1);
        write_sheet(file, profiles[p], &s);
        outside += count_outside(&s, 0.9, 1.1) + check_others(r, profiles[p]);
    }
    fprintf(r->to, "\noutside: %zu\n", outside);
    return file && fclose(file) == 0 && cp_report_honest(r) && outside == 0;
}

/* ---- limits ---- */

enum { FEW = 20 }; /* groups from which nothing is taken */

/* The largest that was measured for one tensor and kind of group under one profile, and where. c holds for all
 * cases: it is the farthest group of them all that it is held against. Mean slopes are taken of whole tensors
 * alone, over seeds: inside one run, groups share their sources. They may reach b and one deviation: what all seeds
 * round alike, as the weight 1/3, errs once, by chance. */
typedef struct extreme {
    double slope, spread, most, mean, mean_sigma, b, level, use, groups;
    char slope_at[80], most_at[80], spread_at[80], mean_at[80];
} extreme;

static void keep(double value, const char *where, double *most, char *at)
{
    if (!(value > *most)) return;
    *most = value;
    snprintf(at, 80, "%s", where);
}

/* c as the farthest of all groups has it, see groups.c; of few that says nothing. */
static double c_of_farthest(const extreme *x)
{
    return x->groups < FEW ? 0 : x->most / et_normal_quantile(0.25 / x->groups);
}

/* By how much a mean slope surely exceeds its allowance. */
static double excess(double mean, double sigma, double b)
{
    return fabs(mean) - 4 * sigma - b;
}

static void take_in(extreme *x, const cp_sums *s, bool whole, const char *where)
{
    cp_measured m = cp_measure(s);
    double sure =
        1 - 2 / sqrt(2 * s->count); /* what is left of c if it is 2 deviations too large */
    x->groups += s->count;
    x->use = fmax(x->use, fmax(s->slope_use, s->spread_use));
    keep(s->most, where, &x->most, x->most_at);
    if (s->count < FEW) return;
    keep(sure * m.slope, where, &x->slope, x->slope_at);
    keep(sure * m.spread, where, &x->spread, x->spread_at);
    x->level = fmax(x->level, m.level);
    if (!whole) return;
    double allowed = s->b + (s->w > 0 ? sqrt(s->count / s->w) : 0);
    if (x->mean_at[0] &&
        !(excess(m.mean, m.mean_sigma, allowed) > excess(x->mean, x->mean_sigma, x->b)))
        return;
    x->mean = m.mean;
    x->mean_sigma = m.mean_sigma;
    x->b = allowed;
    snprintf(x->mean_at, sizeof x->mean_at, "%s", where);
}

typedef struct limits {
    extreme of[CP_PROFILES][ET_MAX_STEP_TENSORS][CP_KINDS];
} limits;

static void read_limits(const cp_report *r, limits *all)
{
    for (cp_reader reader = cp_read(r); cp_next(&reader, "group");) {
        cp_sums s = cp_groups_read(&reader);
        size_t kind = cp_kind_row(reader.fields[3]);
        take_in(&all->of[cp_profile_row(reader.fields[1])][cp_tensor_row(reader.fields[2])][kind],
                &s, kind == 0, reader.unit->c.name);
    }
}

static void write_limit(FILE *file, const char *profile, const char *tensor, const char *kind,
                        const extreme *x)
{
    et_calibration c = et_calibration_of(tensor, kind);
    if (!file) return;
    fprintf(file, "%s,%s,%s,%.0f,%.3g,%s,%.3g,%.3g,%s,%.3g,%s,%.3g,%.3g,", profile, tensor, kind,
            x->groups, x->slope, x->slope_at, c.slope, c_of_farthest(x), x->most_at, x->spread,
            x->spread_at, c.spread, x->level);
    if (x->mean_at[0])
        fprintf(file, "%.3g,%.2g,%s,%.3g,", x->mean, x->mean_sigma, x->mean_at, x->b);
    else
        fprintf(file, ",,,,");
    fprintf(file, "%.3g\n", x->use);
}

/* False, and says so, if more was measured than is in force. */
static bool judge_limit(const cp_report *r, const char *profile, const char *tensor,
                        const char *kind, const extreme *x)
{
    et_calibration c = et_calibration_of(tensor, kind);
    bool whole = x->mean_at[0], well = true;
    double most = et_systematic_spread(tensor, true);
    if (!(c_of_farthest(x) <= c.slope)) {
        well = false;
        fprintf(r->to, "%-9s %-18s %-7s c of slopes %.2f, %.2f in force (%s)\n", profile, tensor,
                kind, c_of_farthest(x), c.slope, x->most_at);
    }
    if (whole && !(x->level <= most)) {
        well = false;
        fprintf(r->to, "%-9s %-18s %-7s root mean square %.2f deviations, %.2f in force\n", profile,
                tensor, kind, x->level, most);
    }
    if (whole && !(excess(x->mean, x->mean_sigma, x->b) <= 0)) {
        well = false;
        fprintf(r->to, "%-9s %-18s %-7s mean slope %.2g +- %.1g, %.2g in force (%s)\n", profile,
                tensor, kind, x->mean, x->mean_sigma, x->b, x->mean_at);
    }
    return well;
}

/* The mean slope of a tensor that stands out most, profile by profile. */
static void print_slopes(const cp_report *r, const limits *all)
{
    fprintf(r->to, "\nmean slopes of whole tensors over seeds, those nearest to their allowance\n");
    for (size_t p = 0; p < CP_PROFILES; p++) {
        size_t most = 0;
        for (size_t row = 0; et_tensor_doc_at(row); row++) {
            const extreme *x = &all->of[p][row][0], *best = &all->of[p][most][0];
            if (x->mean_at[0] &&
                (!best->mean_at[0] || excess(x->mean, x->mean_sigma, x->b) / x->b >
                                          excess(best->mean, best->mean_sigma, best->b) / best->b))
                most = row;
        }
        const extreme *x = &all->of[p][most][0];
        if (x->mean_at[0])
            fprintf(r->to, "%-9s %-18s %.2g +- %.1g of %.2g  (%s)\n", et_profile_at(p)->name,
                    et_tensor_doc_at(most)->name, x->mean, x->mean_sigma, x->b, x->mean_at);
    }
}

static bool judge_limits(const cp_report *r, FILE *file, const limits *all)
{
    bool kept = true;
    fprintf(r->to, "\nmeasured above what is in force:\n");
    for (size_t p = 0; p < CP_PROFILES; p++)
        for (size_t row = 0; et_tensor_doc_at(row); row++)
            for (size_t kind = 0; kind < CP_KINDS; kind++) {
                const char *profile = et_profile_at(p)->name, *tensor = et_tensor_doc_at(row)->name;
                const extreme *x = &all->of[p][row][kind];
                if (x->groups == 0) continue;
                write_limit(file, profile, tensor, cp_kinds[kind], x);
                kept = judge_limit(r, profile, tensor, cp_kinds[kind], x) && kept;
            }
    return kept;
}

bool cp_report_limits(const cp_report *r)
{
    limits *all = calloc(1, sizeof *all);
    bool kept = all != NULL;
    FILE *file = cp_csv(
        r, "limits.csv", "what the limits of groups have to cover: the largest over all cases",
        "profile,tensor,kind,groups,c_slope,c_slope_case,c_slope_in_force,c_farthest,"
        "c_farthest_case,c_spread,c_spread_case,c_spread_in_force,rms_error_over_sigma,"
        "mean_slope,mean_slope_deviation,mean_slope_case,mean_slope_allowed,largest_share_of_"
        "limit");
    if (all) {
        read_limits(r, all);
        print_slopes(r, all);
        kept = judge_limits(r, file, all);
    }
    free(all);
    return file && fclose(file) == 0 && kept;
}

const cp_part cp_limits = {
    "limits", "limits of groups against what honest kernels show", 1, NULL, NULL, cp_report_limits};
