/* test_study_tool.c: `etref leakage study`, run as a child process: files whole or absent, and what they say. */
#include "tests/leakage_output.h"

#define STUDY "study", "--out", folder, "--tokens=1024", "--experts=4", "--batches=20"
enum { SIZES_STUDIED = 5 }; /* 64 to 1024 tokens */

static const char *const csv_names[] = {"pools.csv", "agreement.csv", "fits.csv",
                                        "start.csv", "flips.csv",     "flips-by-position.csv",
                                        "bounds.csv"};
static const char POOLS[] =
    "stream,tokens,select,cutoff_mean,cutoff_std,gap_std,load_mean,load_std,load_least,load_most,"
    "outside,disagreement,expected_cutoff_std,expected_load_std";

static void make_study(void)
{
    char prose[4096] = "";
    make_folder();
    for (size_t i = 0; i < 12; i++) strcat(prose, PROSE);
    write_text("prose.txt", prose);
}

/* The rows of a stream; they follow one another. */
static size_t rows_of(const csv *c, const char *stream, size_t *first)
{
    size_t count = 0;
    for (size_t i = 1; i < c->lines; i++) {
        if (strcmp(field(c, i, 0), stream) != 0) continue;
        if (count++ == 0) *first = i;
    }
    return count;
}

static void check_pools(void)
{
    static const char *const streams[] = {"normal", "text", "drifting"};
    static csv c;
    csv_read(&c, "pools.csv", POOLS);
    for (size_t s = 0; s < COUNT(streams); s++) {
        size_t first = 0;
        ck_assert_uint_eq(rows_of(&c, streams[s], &first), SIZES_STUDIED);
        for (size_t i = 0; i < SIZES_STUDIED; i++) {
            size_t line = first + i;
            ck_assert(value(&c, line, 1) == 64 << i && value(&c, line, 2) == 16 << i);
            ck_assert_int_eq(*field(&c, line, 12) != '\0', s == 0); /* theory is of normal scores */
            if (i == 0 || s == 1) continue;
            ck_assert(value(&c, line, 4) < value(&c, line - 1, 4));   /* the cutoff's deviation */
            ck_assert(value(&c, line, 7) < value(&c, line - 1, 7));   /* the load's */
            ck_assert(value(&c, line, 11) < value(&c, line - 1, 11)); /* EC and ET part less */
        }
    }
    for (size_t line = 1; line <= SIZES_STUDIED;
         line++) /* of 80 values: a tenth off, give or take */
        ck_assert(fabs(value(&c, line, 4) / value(&c, line, 12) - 1) < 0.3 &&
                  fabs(value(&c, line, 7) / value(&c, line, 13) - 1) < 0.3);
    free(c.text);
}

static void check_fits(void)
{
    static csv c;
    csv_read(&c, "fits.csv", "stream,quantity,factor,exponent,error");
    ck_assert_uint_eq(c.lines, 1 + 3 * 4);
    ck_assert_str_eq(field(&c, 1, 1), "cutoff_std");
    ck_assert(fabs(value(&c, 1, 3) + 0.5) < 0.08);
    ck_assert(value(&c, 1, 4) > 0 && value(&c, 1, 4) < 0.08);
    free(c.text);
}

static void check_agreement(void)
{
    static csv c;
    csv_read(&c, "agreement.csv", "stream,pool,jaccard");
    ck_assert_uint_eq(c.lines, 1 + 3 * SIZES_STUDIED);
    for (size_t i = 1; i < c.lines; i++) {
        ck_assert(value(&c, i, 2) > 0 && value(&c, i, 2) <= 1);
        if ((i - 1) % SIZES_STUDIED > 0) ck_assert(value(&c, i, 2) > value(&c, i - 1, 2));
    }
    free(c.text);
}

/* Plain, the average is (1 - 0.99^u) of what it should be; divided by that, right at once. */
static void check_start(void)
{
    static csv c;
    csv_read(&c, "start.csv",
             "stream,step,cutoff,plain,corrected,load_plain,load_corrected,load_warm,"
             "load_warm_corrected");
    ck_assert_uint_eq(c.lines, 1 + 3 * 500);
    for (size_t u = 0; u < 500; u++) {
        double weight = 1 - pow(0.99, (double)u), plain = value(&c, u + 1, 3);
        ck_assert(fabs(plain - weight * value(&c, u + 1, 4)) < 1e-6);
        ck_assert(value(&c, u + 1, 1) == (double)u);
        if (u < 400) ck_assert(value(&c, u + 1, 7) == 1 && value(&c, u + 1, 8) == 1);
        if (u >= 400) ck_assert(value(&c, u + 1, 7) == value(&c, u + 1, 5));
        if (u >= 400) ck_assert(value(&c, u + 1, 8) == value(&c, u + 1, 6));
    }
    ck_assert(fabs(value(&c, 2, 4) - 0.6745) < 0.1); /* the upper quarter of N(0,1) */
    ck_assert(value(&c, 11, 5) > 1.5 && fabs(value(&c, 11, 6) - 1) < 0.2); /* loads at step 10 */
    free(c.text);
}

static void check_flips(void)
{
    static csv c;
    csv_read(&c, "flips.csv", "stream,rule,batch,select,noise,adversary");
    size_t causal = 0, choices = 0;
    double last = 0;
    for (size_t i = 1; i < c.lines; i++) {
        char rule[64];
        snprintf(rule, sizeof rule, "%s", field(&c, i, 1));
        bool never = strcmp(rule, "tc") == 0 || strcmp(rule, "et") == 0;
        ck_assert_int_eq(value(&c, i, 5) == 0, never);
        ck_assert(value(&c, i, 4) <= value(&c, i, 5));
        if (!never || strcmp(rule, "et") == 0) ck_assert(value(&c, i, 3) == value(&c, i, 2) / 4);
        causal += never;
        if (strcmp(rule, "ec") != 0) continue;
        /* by falling pool, noise changes ever more */
        ck_assert(value(&c, i, 2) == 1024 || value(&c, i, 4) > last);
        last = value(&c, i, 4);
        choices++;
    }
    ck_assert_uint_eq(causal, 4);      /* two rules, two streams */
    ck_assert_uint_eq(choices, 2 * 5); /* 1024, 256, 64, 16, 4 */
    free(c.text);
    csv_read(&c, "flips-by-position.csv", "stream,rule,batch,select,position,noise,adversary");
    for (size_t i = 1; i < c.lines; i++) ck_assert(value(&c, i, 4) > 0 && value(&c, i, 4) < 1);
    free(c.text);
}

START_TEST(a_study_writes_what_it_measured)
{
    json_t *report = leakage_json(
        LEAKAGE(STUDY, "--text", in_folder("prose.txt"), "--no-figures", "--format=json"), 0);
    ck_assert_uint_eq(json_array_size(json_object_get(report, "files")), COUNT(csv_names));
    ck_assert_uint_eq(json_array_size(json_object_get(report, "figures")), 0);
    ck_assert_uint_eq(json_array_size(json_object_get(report, "fits")), 3 * 4);
    ck_assert_uint_eq(json_array_size(json_object_get(report, "settled")), 3);
    ck_assert_int_eq(entries_in_folder(), 1 + COUNT(csv_names));
    json_decref(report);
    check_pools();
    check_fits();
    check_agreement();
    check_start();
    check_flips();
    static csv c;
    csv_read(&c, "bounds.csv", "tokens,set_per_token,entropy,log_refused,tied_cutoff_per_token");
    ck_assert_uint_eq(c.lines, 1 + 38); /* 2^3 to 2^40 */
    free(c.text);
}
END_TEST

/* 1024 tokens by 4 experts are drawn in parallel; fewer are not worth it. */
START_TEST(a_study_is_the_same_for_any_number_of_threads)
{
    char *once[COUNT(csv_names)];
    static const char *const threads[] = {"--threads=1", "--threads=3"};
    for (size_t run = 0; run < 2; run++) {
        ck_assert_int_eq(LEAKAGE(STUDY, "--seed=7", "--text", in_folder("prose.txt"),
                                 "--no-figures", threads[run]),
                         0);
        has("cutoff_std");
        for (size_t i = 0; i < COUNT(csv_names); i++) {
            char *text = read_file(csv_names[i]);
            if (run == 1) {
                ck_assert_msg(strcmp(text, once[i]) == 0, "%s differs", csv_names[i]);
                free(once[i]);
                free(text);
            } else {
                once[i] = text;
            }
        }
    }
}
END_TEST

/* A gnuplot of our own, the only command there is: what it is given, and what becomes of it. */
static int study_with_gnuplot(const char *script)
{
    char *usual = strdup(getenv("PATH"));
    unlink(in_folder("gnuplot"));
    if (script) {
        write_text("gnuplot", script);
        ck_assert_int_eq(chmod(in_folder("gnuplot"), 0755), 0);
    }
    setenv("PATH", folder, 1);
    int status = LEAKAGE("study", "--out", folder, "--tokens=128", "--experts=2", "--batches=2",
                         "--text", in_folder("prose.txt"), "--format=json");
    setenv("PATH", usual, 1);
    free(usual);
    return status;
}

START_TEST(figures_are_gnuplots_matter)
{
    /* there: it runs in the folder, script by script; a type it does not write is not listed */
    json_t *report = leakage_json(
        study_with_gnuplot("#!/bin/sh\ntest -f \"$1\" && echo figure >\"${1%.gp}.svg\"\n"), 0);
    const json_t *figures = json_object_get(report, "figures");
    ck_assert_uint_eq(json_array_size(figures), 5);
    ck_assert_str_eq(json_string_value(json_array_get(figures, 0)), "leakage.svg");
    ck_assert(exists("cutoff.svg") && exists("cutoff.gp") && !exists("cutoff.png"));
    json_decref(report);
    /* it fails: so does the study, and leaves no part of a figure; the numbers are there */
    expect_failure(study_with_gnuplot("#!/bin/sh\necho half >\"${1%.gp}.svg\"\nexit 1\n"), 2,
                   "--no-figures");
    ck_assert(!exists("leakage.svg") && exists("pools.csv"));
    /* absent: a note; and no figure of older numbers stays behind */
    report = leakage_json(study_with_gnuplot(NULL), 0);
    ck_assert_uint_eq(json_array_size(json_object_get(report, "figures")), 0);
    ck_assert_ptr_nonnull(strstr(errors, "gnuplot is not installed"));
    ck_assert(!exists("cutoff.svg") && exists("cutoff.gp"));
    json_decref(report);
}
END_TEST

/* With the gnuplot of this machine, where there is one, the scripts draw without a complaint. */
START_TEST(the_scripts_draw)
{
    json_t *report =
        leakage_json(LEAKAGE("study", "--out", folder, "--tokens=128", "--experts=4", "--batches=3",
                             "--text", in_folder("prose.txt"), "--format=json"),
                     0);
    const json_t *figures = json_object_get(report, "figures");
    if (system("command -v gnuplot >/dev/null 2>&1") == 0) {
        ck_assert_str_eq(errors, "");
        ck_assert_uint_ge(json_array_size(figures), 5);
        for (size_t i = 0; i < json_array_size(figures); i++) {
            struct stat facts;
            const char *name = json_string_value(json_array_get(figures, i));
            ck_assert_msg(stat(in_folder(name), &facts) == 0 && facts.st_size > 5000, "%s", name);
        }
    } else {
        ck_assert_uint_eq(json_array_size(figures), 0);
    }
    json_decref(report);
}
END_TEST

START_TEST(study_refuses)
{
    write_text("short", "too short");
    char *new_folder = strdup(in_folder("new"));
    expect_failure(LEAKAGE("study"), 2, "--out DIR belongs here");
    expect_failure(LEAKAGE("study", "--out", new_folder, "--tokens=1000"), 2, "a power of two");
    expect_failure(LEAKAGE("study", "--out", new_folder, "--tokens=64"), 2, "--tokens 64");
    expect_failure(LEAKAGE("study", "--out", new_folder, "--experts=65"), 2, "2 to 64");
    expect_failure(LEAKAGE("study", "--out", new_folder, "--batches=1"), 2, "--batches 1");
    expect_failure(LEAKAGE("study", "--out", new_folder, "--seed=-1"), 2, "--seed -1");
    expect_failure(LEAKAGE("study", "--out", new_folder, "--format=csv"), 2, "text|json");
    expect_failure(LEAKAGE("study", "--out", new_folder, "--text=nosuch"), 2, "--text nosuch");
    expect_failure(LEAKAGE("study", "--out", new_folder, "--text", folder), 2,
                   "a file of text belongs here");
    expect_failure(LEAKAGE("study", "--out", new_folder, "--text", in_folder("short")), 2,
                   "9 bytes; more than 128");
    ck_assert(!exists("new"));
    expect_failure(LEAKAGE("study", "--out", in_folder("short")), 2, "a folder to write to");
    expect_failure(LEAKAGE("study", "more", "--out", new_folder), 2, "stands alone");
    free(new_folder);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("study");
    TCase *studies = add_case(suite, "study");
    tcase_add_checked_fixture(studies, make_study, remove_all);
    tcase_add_test(studies, a_study_writes_what_it_measured);
    tcase_add_test(studies, a_study_is_the_same_for_any_number_of_threads);
    tcase_add_test(studies, figures_are_gnuplots_matter);
    tcase_add_test(studies, the_scripts_draw);
    tcase_add_test(studies, study_refuses);
    return run_suite(suite);
}
