/* report_calibration.c: root mean square of error/sigma, tensor by tensor and situation by situation; and what
 * honest kernels need of T_e and T_g, against what is in force.
 */
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

/* Of kernels that round exactly where the profile says. V allows for what others do, so it may be wider than needed. */
static const double least_level = 0.7, most_level = 1.15;

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

/* Kernels that round less: only too large is wrong. */
static size_t check_others(const cp_report *r, const char *profile)
{
    static sheet s;
    size_t all = 0;
    for (size_t k = 1; cd_kernel_at(k); k++) {
        read_sheet(r, profile, cd_kernel_at(k)->name, &s);
        size_t own = count_outside(&s, 0, most_level);
        if (own > 0) {
            fprintf(r->to, "\n%s under %s: %zu tensors above %g\n", cd_kernel_at(k)->name, profile,
                    own, most_level);
            print_sheet(r->to, &s, 0, most_level);
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
                "sample below 1e4, '!': outside 0.7 to 1.15\n",
                profiles[p]);
        print_sheet(r->to, &s, least_level, most_level);
        write_sheet(file, profiles[p], &s);
        outside += count_outside(&s, least_level, most_level) + check_others(r, profiles[p]);
    }
    fprintf(r->to, "\noutside: %zu\n", outside);
    return file && fclose(file) == 0 && cp_report_honest(r) && outside == 0;
}

/* ---- limits ---- */

/* What one kind of group needed under one profile, and where. */
typedef struct need {
    cp_sums all;
    char where[CP_KEY], tensor[48];
} need;

static void read_needs(const cp_report *r, need needs[CP_PROFILES][CP_KINDS])
{
    for (cp_reader reader = cp_read(r); cp_next(&reader, "group");) {
        cp_sums s = cp_groups_read(&reader);
        need *n = &needs[cp_profile_row(reader.fields[1])][cp_kind_row(reader.fields[3])];
        if (s.share > n->all.share) {
            snprintf(n->where, sizeof n->where, "%s", reader.unit->c.name);
            snprintf(n->tensor, sizeof n->tensor, "%s", reader.fields[2]);
        }
        cp_sums_add(&n->all, &s);
    }
}

bool cp_report_limits(const cp_report *r)
{
    static need needs[CP_PROFILES][CP_KINDS];
    const double margin = 1.5; /* between what was needed and what is allowed */
    bool kept = true;
    memset(needs, 0, sizeof needs);
    read_needs(r, needs);
    FILE *file =
        cp_csv(r, "limits.csv",
               "the largest share of a limit that honest kernels needed; two thirds at most",
               "profile,kind,groups,share,tensor,case");
    fprintf(r->to, "\n%-9s %-8s %12s %8s\n", "profile", "kind", "groups", "share");
    for (size_t p = 0; p < CP_PROFILES; p++)
        for (size_t k = 0; k < CP_KINDS; k++) {
            const need *n = &needs[p][k];
            bool enough = margin * n->all.share <= 1;
            if (n->all.count == 0) continue;
            kept = kept && enough;
            fprintf(r->to, "%-9s %-8s %12.0f %8.2f%s %s %s\n", et_profile_at(p)->name, cp_kinds[k],
                    n->all.count, n->all.share, enough ? " " : "!", n->tensor, n->where);
            if (file)
                fprintf(file, "%s,%s,%.0f,%.2f,%s,%s\n", et_profile_at(p)->name, cp_kinds[k],
                        n->all.count, n->all.share, n->tensor, n->where);
        }
    return file && fclose(file) == 0 && kept;
}

const cp_part cp_limits = {
    "limits", "limits against what honest kernels need", 1, NULL, NULL, cp_report_limits};
