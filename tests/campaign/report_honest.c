/* report_honest.c: honest kernels, counted by profile and by kernel. */
#include "tests/campaign/report.h"

#include <string.h>

static void print_header(FILE *to, const char *what)
{
    fprintf(to, "\n%-16s %9s %9s %9s %9s %9s %9s | %9s %9s\n", what, "verdicts", "pass", "inconcl.",
            "REJECTED", "flipped", "not run", "PyTorch", "ggml");
}

static void print_row(FILE *to, const char *name, const cp_tally *t)
{
    if (t->runs + t->skipped == 0) return;
    fprintf(to, "%-16s %9.0f %9.0f %9.0f %9.0f %9.0f %9.0f | %8.1f%% %8.1f%%\n", name, t->runs,
            t->passed, t->doubtful, t->rejected, t->flipped, t->skipped, 100 * t->torch / t->runs,
            100 * t->ggml / t->runs);
}

typedef struct totals {
    cp_tally of[CP_PROFILES][CP_KERNELS], all;
    size_t kernels;
} totals;

static void read_totals(const cp_report *r, totals *t)
{
    for (cp_reader reader = cp_read(r); cp_next(&reader, "runs");) {
        cp_tally more = cp_tally_read(&reader);
        cp_tally_add(&t->of[cp_profile_row(reader.fields[1])][cp_kernel_row(reader.fields[2])],
                     &more);
        cp_tally_add(&t->all, &more);
    }
}

static void print_tables(const cp_report *r, const totals *t)
{
    print_header(r->to, "profile");
    for (size_t p = 0; p < CP_PROFILES; p++) {
        cp_tally row = {0};
        for (size_t k = 0; cd_kernel_at(k); k++) cp_tally_add(&row, &t->of[p][k]);
        print_row(r->to, et_profile_at(p)->name, &row);
    }
    print_header(r->to, "kernel");
    for (size_t k = 0; cd_kernel_at(k); k++) {
        cp_tally row = {0};
        for (size_t p = 0; p < CP_PROFILES; p++) cp_tally_add(&row, &t->of[p][k]);
        print_row(r->to, cd_kernel_at(k)->name, &row);
    }
    print_row(r->to, "all", &t->all);
    fprintf(r->to,
            "flipped: runs with decisions that differ legally (%.0f decisions in all). "
            "PyTorch, ggml: accepted by theirs.\n",
            t->all.flips);
}

/* Lines of one kind, the same but for their numbers counted together. */
static void print_reasons(const cp_report *r, const char *kind, const char *title, size_t most)
{
    cp_counts reasons = {0};
    for (cp_reader reader = cp_read(r); cp_next(&reader, kind);) {
        char text[600], blurred[600], example[900];
        if (reader.count < 5) continue;
        snprintf(text, sizeof text, "%s: %s", reader.fields[1], reader.fields[4]);
        cp_blur(text + strlen(reader.fields[1]), blurred, sizeof blurred - 40);
        snprintf(text, sizeof text, "%s%s", reader.fields[1], blurred);
        snprintf(example, sizeof example, "--judge '%s %s %s %s': %s", reader.unit->c.name,
                 reader.fields[3], reader.fields[1], reader.fields[2], reader.fields[4]);
        if (!cp_counts_add(&reasons, text, example)) break;
    }
    cp_counts_sort(&reasons);
    if (reasons.count > 0) fprintf(r->to, "\n%s\n", title);
    for (size_t i = 0; i < reasons.count && i < most; i++)
        fprintf(r->to, "%6.0f %s\n       %s\n", reasons.rows[i].times, reasons.rows[i].text,
                reasons.rows[i].example);
    if (reasons.count > most) fprintf(r->to, "       and %zu more kinds\n", reasons.count - most);
    cp_counts_free(&reasons);
}

static bool write_csv(const cp_report *r, const totals *t)
{
    char name[64];
    snprintf(name, sizeof name, "%s.csv", r->part->name);
    FILE *file = cp_csv(r, name, "honest kernels judged; counts of verdicts, flips in decisions",
                        "profile,kernel,verdicts,pass,inconclusive,rejected,not_run,flipped_runs,"
                        "flipped_decisions,pytorch_accepts,ggml_accepts");
    for (size_t p = 0; file && p < CP_PROFILES; p++)
        for (size_t k = 0; cd_kernel_at(k); k++) {
            const cp_tally *c = &t->of[p][k];
            if (c->runs + c->skipped == 0) continue;
            fprintf(file, "%s,%s,%.0f,%.0f,%.0f,%.0f,%.0f,%.0f,%.0f,%.0f,%.0f\n",
                    et_profile_at(p)->name, cd_kernel_at(k)->name, c->runs, c->passed, c->doubtful,
                    c->rejected, c->skipped, c->flipped, c->flips, c->torch, c->ggml);
        }
    return file && fclose(file) == 0;
}

bool cp_report_honest(const cp_report *r)
{
    static totals t;
    t = (totals){0};
    read_totals(r, &t);
    print_tables(r, &t);
    print_reasons(r, "rejected", "Rejected, and should not be:", 80);
    print_reasons(r, "doubt", "Inconclusive:", 40);
    print_reasons(r, "skipped", "Not run:", 10);
    return write_csv(r, &t) && t.all.rejected == 0 && t.all.runs > 0;
}
