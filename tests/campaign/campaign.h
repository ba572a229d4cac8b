/* campaign.h: how the verifier is itself verified. What the parts of the campaign share.
 *
 * Kernels whose truth is known, honest and broken (tests/candidates), are judged by the thousand, and
 * the verdicts counted:
 *
 *     honest        none may be rejected
 *     paper         the same at the paper's sizes
 *     random        the same on layers that nobody chose
 *     habits        the same on layers of ones, copies, positive numbers, and the like
 *     calibration   errors are as large as predicted: root mean square of error/sigma, tensor by tensor
 *     limits        T_e and T_g of ref/bars/limits.c against what all of these show
 *     broken        each fault is rejected and explained, unless it is smaller than the rounding
 *     floors        the smallest factor 1 + epsilon that is always caught
 *
 * Work comes in units, from a second to some minutes each, done by a few processes of one thread. What a
 * unit finds is a block of lines in a journal, so that a campaign which is interrupted goes on
 * where it stopped. Tables and bounds are made of the journal alone.
 *
 * Where what lives: campaign.c the command | journal.c | workers.c | subject.c a case with its
 * reference, and the verdicts of etref and of others | groups.c how near to their limits groups come |
 * honest.c, random.c, habits.c, calibration.c, broken.c, floors.c the units | report_*.c the tables | reproduce.c one
 * verdict in full.
 */
#ifndef CP_CAMPAIGN_H
#define CP_CAMPAIGN_H

#include "etref/etref.h"
#include "ref/verdict/judge.h"
#include "tests/candidates/candidate.h"

#include <stdio.h>

typedef struct cp_options {
    size_t seeds;           /* of each kind of run */
    const char *only;       /* units whose key contains this; NULL: all */
    const char *data;       /* the folder that holds cases/ */
    const char *out;        /* the folder for tables */
    const char *explaining; /* a hash of what explanations depend on, beside all the rest */
} cp_options;

/* ---- units ---- */

enum { CP_KEY = 128 };

struct cp_part;

typedef struct cp_unit {
    const struct cp_part *part;
    char key[CP_KEY]; /* "honest ties-tc 20": part, what, and how much of it */
    et_case c;
    size_t index; /* of a profile, a fault, a seed: the part's business */
    size_t seeds;
    double cost; /* seconds, roughly: the long ones go first */
} cp_unit;

typedef struct cp_list {
    cp_unit *units;
    size_t count, room;
} cp_list;

/* A zeroed unit at the end of the list, or NULL if there is no memory. */
cp_unit *cp_list_add(cp_list *list, const struct cp_part *part);
/* One for a case that costs little, with the key "PART CASE"; false, with a message, if there is no memory. */
bool cp_list_add_case(cp_list *list, const struct cp_part *part, const et_case *c, size_t index,
                      et_error *error);

struct cp_report;

typedef struct cp_part {
    const char *name, *what;
    size_t seeds; /* the usual number */
    /* Lists its units; false, with a message, if there is no memory or no data. NULL: it has none. */
    bool (*plan)(cp_list *list, const cp_options *o, et_error *error);
    /* Does a unit and writes its lines; false, with a message, if it could not. */
    bool (*work)(const cp_unit *unit, FILE *lines, et_error *error);
    /* Prints tables, writes files; false if a bound was missed. */
    bool (*report)(const struct cp_report *r);
} cp_part;

extern const cp_part cp_honest, cp_paper, cp_random, cp_habits, cp_calibration, cp_limits,
    cp_broken, cp_floors;

/* ---- cases ---- */

/* All cases of data/cases/NAME, or NULL with a message. The caller frees them. */
et_case *cp_suite(const char *data, const char *name, size_t *count, et_error *error);

/* A case in single quotes. */
et_status cp_case(et_case *c, const char *json, et_error *error);

/* The same case with other random numbers; seed 0: as it is. */
et_case cp_reseeded(const et_case *c, size_t seed);

enum { CP_PROFILES = 7 };

/* ---- rows of tables, by name; past the last, or the last itself, where there is none ---- */

size_t cp_tensor_row(const char *name);
size_t cp_profile_row(const char *name);
size_t cp_kernel_row(const char *name);
size_t cp_kind_row(const char *name);

/* ---- the journal ---- */

typedef struct cp_block {
    const char *key, *text;
} cp_block;

typedef struct cp_journal {
    char *path, *content;
    size_t count;
    cp_block *blocks;
} cp_journal;

/* Reads the journal, or begins a new one: if there is none, or if it is not `of` this very program.
 * False with a message. */
bool cp_journal_open(cp_journal *j, const char *folder, const char *of, et_error *error);
void cp_journal_close(cp_journal *j);
/* A unit's lines, or NULL. */
const char *cp_journal_find(const cp_journal *j, const char *key);
/* Adds a block, whole or not at all; several processes may do so at once. */
bool cp_journal_append(const char *path, const char *key, const char *text);

/* ---- doing units ---- */

/* Does all units of the list that the journal does not have; false if one failed. */
bool cp_do_all(const cp_list *list, const cp_journal *journal, size_t workers);

/* ---- reporting ---- */

typedef struct cp_report {
    const cp_part *part;
    const cp_list *list;
    const cp_journal *journal;
    const cp_options *options;
    FILE *to;
} cp_report;

enum { CP_FIELDS = 24, CP_LINE = 2048 };

bool cp_report_honest(const cp_report *r);
bool cp_report_calibration(const cp_report *r);
bool cp_report_limits(const cp_report *r);
bool cp_report_broken(const cp_report *r);
bool cp_report_floors(const cp_report *r);

/* One line after the other of all units of the report's part (of all parts, if it has no units): fields between tabs, the first of which is
 * the line's kind. */
typedef struct cp_reader {
    const cp_report *r;
    size_t next;
    const cp_unit *unit; /* whose line it is */
    const char *at;
    char line[CP_LINE];
    size_t count;
    const char *fields[CP_FIELDS];
} cp_reader;

cp_reader cp_read(const cp_report *r);
bool cp_next(cp_reader *reader, const char *kind); /* the next line of that kind */
double cp_number(const cp_reader *reader, size_t field);

/* A table for others to read: `header` without line end. NULL if it cannot be written, with a message. */
FILE *cp_csv(const cp_report *r, const char *name, const char *provenance, const char *header);

/* ---- subjects: cases with their reference ---- */

typedef struct cp_subject {
    et_step golden;
    const et_profile *profile; /* by which is judged; NULL before */
    et_shelf *shelf;           /* error bars, from one verdict to the next */
} cp_subject;

/* Draws and computes a case. The caller closes it. */
et_status cp_subject_open(cp_subject *s, const et_case *c, et_error *error);
/* From here on, judge by this profile. */
et_status cp_subject_profile(cp_subject *s, const et_profile *p, et_error *error);
void cp_subject_close(cp_subject *s);
/* The golden's own error bars; NULL: no memory. */
const et_bars *cp_subject_bars(const cp_subject *s);

/* The verdict of others on the same tensors: accepted? */
typedef struct cp_peers {
    bool torch; /* torch.testing.assert_close with its default tolerances, tensor by tensor */
    bool ggml;  /* sum e^2 <= 5e-4 sum want^2, tensor by tensor */
} cp_peers;

cp_peers cp_ask_peers(const cp_subject *s, const et_tensor_out *tensors, size_t count);

/* ---- groups ---- */

/* What has been seen of one kind of group of one tensor: the largest share of its limit that one needed. */
typedef struct cp_sums {
    double count, share;
} cp_sums;

enum { CP_KINDS = 8 }; /* the first: single elements */
extern const char *const cp_kinds[CP_KINDS];

typedef struct cp_groups {
    const char *last; /* the tensor seen last, and its row */
    size_t row;
    cp_sums of[ET_MAX_STEP_TENSORS][CP_KINDS];
} cp_groups;

struct et_group;
void cp_groups_visit(void *groups, const char *tensor, const et_group *group);
void cp_groups_elements(cp_groups *groups, const et_verdict *verdict);
void cp_groups_print(const cp_groups *g, const char *profile, FILE *lines);
/* Reads what cp_groups_print has written, from field 1 on: profile, tensor, kind, sums. */
cp_sums cp_groups_read(const cp_reader *reader);
void cp_sums_add(cp_sums *to, const cp_sums *more);

/* The verdict, with every group shown to `groups` (or NULL). */
et_status cp_judge(et_verdict *verdict, const cp_subject *s, const et_tensor_out *tensors,
                   size_t count, bool explain, cp_groups *groups, et_error *error);

/* The text without line ends and tabs, and every number as '#'. */
void cp_blur(const char *text, char *blurred, size_t room);

/* ---- counting verdicts ---- */

enum { CP_KERNELS = 32 };

/* Of one kernel under one profile. */
typedef struct cp_tally {
    double runs, passed, doubtful, rejected, skipped; /* skipped: the kernel could not run */
    double flips, flipped;                            /* decisions; runs with any */
    double torch, ggml;                               /* accepted */
} cp_tally;

/* Runs an honest kernel and judges it. Writes a line `rejected` or `doubt` where there is cause; seed: for
 * that line. groups: or NULL. `verdict` is the caller's to free if it wants it; or NULL. */
bool cp_try_honest(const cp_subject *s, const cd_kernel *kernel, size_t seed, cp_groups *groups,
                   cp_tally *tally, FILE *lines, et_verdict *verdict, et_error *error);
/* A unit of `random` or `habits`: three kernels under every profile, others for each. */
bool cp_try_some(const cp_unit *unit, FILE *lines, et_error *error);
/* The line `runs`: profile, kernel, figures. */
void cp_tally_print(const cp_tally *t, const char *profile, const char *kernel, FILE *lines);
cp_tally cp_tally_read(const cp_reader *reader);
void cp_tally_add(cp_tally *to, const cp_tally *more);

/* ---- one verdict in full ---- */

/* "CASE SEED PROFILE KERNEL [FAULT [AMOUNT]]": judges and prints. */
bool cp_reproduce(const char *data, const char *what, et_error *error);

/* A case of calibration.c, broken.c, habits.c or random.c by its name; false if there is none. */
bool cp_own_case(et_case *c, const char *name);
bool cp_calibration_case(et_case *c, size_t index, et_error *error); /* false past the end */
bool cp_larger_case(et_case *c, size_t index, et_error *error);
bool cp_random_case(et_case *c, const char *name);             /* "random-N" */
bool cp_habit_case(et_case *c, size_t index, et_error *error); /* "habit-NAME-LAYER" */

/* Changes a case's drawn inputs, if its name says so; see habits.c. */
void cp_take_habit(const et_case *c, et_step_inputs *in);

#endif
