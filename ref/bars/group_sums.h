/* group_sums.h: the groups of a tensor, and how an error looks in each. Internal.
 *
 * A tensor of reference u, laid out as a matrix of `rows` by `columns` (the last dimension), is cut into
 *
 *     tensor   all of it
 *     expert   a section: an expert's slots, or its weights; where there is more than one
 *     row      of one token or slot, or of a weight matrix
 *     column   of one section
 *     block    16, 64, 128 rows that follow each other in a section
 *     tile     16 rows by 16 columns
 *
 * and in a group, with errors e = got - u and variances V, two numbers are asked for:
 *
 *     slope    S = sum(e u / V) / sum(u^2 / V)    least squares' answer to "scaled by which 1 + S?"
 *     spread   Q = sqrt(mean(e^2 / V))            1 if errors are as large as V says
 *
 * Elements with V = 0 are judged by themselves and take no part, nor do errors that are not finite.
 */
#ifndef ET_GROUP_SUMS_H
#define ET_GROUP_SUMS_H

#include "ref/step/tensors.h"
#include <stdint.h>
#include "etref/bundle.h"

typedef enum et_group_kind {
    ET_KIND_TENSOR,
    ET_KIND_EXPERT,
    ET_KIND_ROW,
    ET_KIND_COLUMN,
    ET_KIND_BLOCK_16,
    ET_KIND_BLOCK_64,
    ET_KIND_BLOCK_128,
    ET_KIND_TILE,
    ET_KINDS
} et_group_kind;

/* "tensor", "expert", "row", ... */
const char *et_kind_name(et_group_kind kind);

/* How the rows are cut: sections, and bands of up to 16 rows in them. */
typedef struct et_cut {
    size_t rows, columns, sections, bands;
    size_t *section_row;        /* [sections+1] the first row of each, then rows */
    size_t *section_band;       /* [sections+1] the first band of each, then bands */
    size_t *band_row;           /* [bands+1] */
    size_t first[ET_KINDS + 1]; /* group k of a kind is number first[kind] + k of all groups */
} et_cut;

/* Of tensor `t` of a step. ET_ENOMEM. */
et_status et_cut_make(et_cut *g, const et_step *s, const et_tensor_out *t, et_error *error);
void et_cut_free(et_cut *g); /* accepts zeros */

/* Where group `index` of a kind stands: its first row and column. */
typedef struct et_corner {
    size_t row, column;
} et_corner;
et_corner et_group_corner(const et_cut *g, et_group_kind kind, size_t index);

/* Below this a variance, a square, is lost in binary64's smallest numbers: the element says nothing to its groups. */
#define ET_LEAST_VARIANCE 0x1p-900

/* For each size |u| > 0 in `bits` significand bits a number from 1 on, drawn by chance; for a zero 0. */
void et_draw_marks(size_t count, int bits, const et_real *u, uint16_t *marks);

/* About how many different sizes the group's elements have, from the tensor's marks: up to 2^14 are told apart. INFINITY: more. */
double et_count_different(const et_cut *g, et_group_kind kind, size_t index, const uint16_t *marks);

/* What is compared. */
typedef struct et_errors {
    const void *got; /* et_real, or floats */
    bool floats;
    const et_real *want, *variance;
    const uint8_t
        *skip; /* 1: a row that is not judged; row r asks skip[r / rows_per_skip]; or NULL */
    size_t rows_per_skip;
} et_errors;

/* A group's sums over its elements: their number, sum e u/V, sum u^2/V, sum e^2/V; and the largest terms of the last
 * two. */
typedef struct et_group_sums {
    double n, eu, uu, ee, most_uu, most_ee;
} et_group_sums;

double et_slope_of(const et_group_sums *s);  /* S; 0 where u is 0 throughout */
double et_spread_of(const et_group_sums *s); /* Q; 0 without elements */

/* sums [first[ET_KINDS]] out: of all groups. No bit depends on the number of threads. ET_ENOMEM. */
et_status et_sum_groups(const et_cut *g, const et_errors *e, et_group_sums *sums, et_error *error);

/* One summand of a tensor, on which its error is regressed, where a factor on this summand alone shows
 * undiluted: fwd.y = routed + shared, routed = sum over slots of w f(x), of all experts and of each;
 * bwd.x = experts + shared + router, shared = dH W_up of the shared expert, router = dr W_r. */
typedef struct et_summand {
    const char *name;
    bool by_expert;
    size_t rows;                /* of its own */
    et_real *values;            /* [rows, columns], owned */
    const int32_t *row_of;      /* [rows] the tensor's row that it enters; NULL: its own */
    const int32_t *section_row; /* [sections+1]; NULL: one section, all rows */
    size_t sections;
} et_summand;

enum { ET_MAX_SUMMANDS = 3 };

/* The summands of a tensor of `s`: a number, 0 for tensors that have none. ET_ENOMEM. */
et_status et_summands_of(et_summand list[ET_MAX_SUMMANDS], size_t *count, const et_step *s,
                         et_tensor_id tensor, et_error *error);
void et_summands_free(et_summand *list, size_t count);

/* sums [sections] out. ET_ENOMEM. */
et_status et_sum_summand(const et_summand *p, size_t columns, const et_errors *e,
                         et_group_sums *sums, et_error *error);

#endif
