/* parallel.h: several ranks: which rows of an assignment travel where.
 *
 * R ranks, N tokens, n experts, S slots; R divides N and n. Rank s holds Nl = N/R tokens, those from s Nl on; expert e
 * lives on rank floor(e / nl), nl = n/R, as its local expert e mod nl. Each slot is a row that its token's rank sends
 * to its expert's; the expert's output comes back the same way, and the sender weighs and adds.
 *
 *     sent       by rank s of the token, local expert j, rank q of the expert; then tokens ascending
 *                (for each j one all-to-all sends rows to the ranks 0 .. R-1)
 *     received   by q, j, s, tokens ascending: expert by expert, as slots are numbered (assignment.h)
 *     copies     by q, s, tokens ascending: where a token travels once to a rank, whichever experts it has there
 *                (DeepEP's layout)
 *
 * An example: R = 2, N = 4, n = 2, z below, so Nl = 2 and nl = 1; slots in parentheses.
 *
 *     z = 1(0) 0      rank 0     send_slot  0 3 | 1 2 4     counts[s][0][q] = 1 1
 *         0    1(3)              recv_slot  0 1 2 | 3 4                       2 1
 *         1(1) 1(4)   rank 1
 *         1(2) 0
 */
#ifndef ETREF_PARALLEL_H
#define ETREF_PARALLEL_H

#include "etref/assignment.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* P copies; Q rows of the largest padded buffer. All arrays are the plan's own. */
typedef struct et_parallel_plan {
    size_t ranks, tokens, experts; /* R, N, n */
    size_t slots, copies, padded;  /* S, P, Q = nl times the largest load of all */
    size_t widest;                 /* K: the largest fan-out of a token */
    int32_t *send_counts;          /* [R,nl,R] [s][j][q]: rows that rank s sends to local expert j of rank q:
                                    * s's input splits of all-to-all j. q's output splits: [.][j][q] */
    int32_t *send_slot;            /* [S] slots in the order sent */
    int32_t *send_begin;           /* [R+1] first row that each rank sends, then S */
    int32_t *recv_slot;            /* [S] slots in the order received */
    int32_t *recv_begin;           /* [R+1] first row that each rank receives, then S */
    int32_t *recv_padded;          /* [R,Q] slot, or -1: each expert's rows from j times the rank's largest load on */
    int32_t *recv_rows;            /* [R] rows of the rank's padded buffer: nl times its largest load */
    int32_t *local_token;          /* [S] of each row sent: its token's number on its rank */
    int32_t *local_expert;         /* [S] and its expert's */
    uint8_t *token_in_rank;        /* [N,R] 1: some expert of the rank takes the token */
    int32_t *tokens_per_rank;      /* [R,R] [s][q]: copies that s sends to q */
    int32_t *rank_prefix;          /* [R,R] [s][q]: those that the ranks 0 .. s send to q */
    int32_t *recv_token;           /* [P] token of each copy */
    int32_t *recv_experts;         /* [S] local experts of each copy, ascending, copy by copy */
    int32_t *recv_experts_begin;   /* [P+1] first of each copy, then S */
    int32_t *
        recv_topk; /* [P,K] the same with a place for each of the token's experts, ascending: the local
                                    * number, or -1 where it is another rank's, or there is none */
} et_parallel_plan;

/* A pure function of the assignment and R >= 1. A rank may send nothing to another, hold no token that has a slot, or
 * receive nothing; N = 0 and n = 0 are legal. R = 1: everything is sent to oneself. ET_EINVAL: R = 0, R does not
 * divide N or n, an assignment that contradicts itself, more than INT32_MAX elements of an array; ET_ENOMEM. On failure
 * there is nothing to free. */
et_status et_parallel_plan_build(et_parallel_plan *p, const et_assignment *a, size_t ranks,
                                 et_error *error);
void et_parallel_plan_free(et_parallel_plan *p); /* accepts zeros */

/* What holds of every plan, asked of each array by itself and against the assignment alone:
 *
 *     rows        each slot once; those of a rank, a local expert and a rank stand together, in any order
 *     counts      of slots by rank, local expert and rank: over s they add up to the loads, over j and q to fanouts
 *     padding     -1, and -1 alone, outside the experts' rows
 *     local       numbers below Nl and nl, of the slots in the order sent
 *     copies      a token is in a rank if it has a slot there; prefixes are sums; every copy once, its experts ascending
 *                 (in recv_topk in any order)
 *
 * An array that is NULL is not asked for; of send_slot, local_* expect the order of a plan where it is NULL. ET_EINVAL says
 * what does not hold, where. */
et_status et_parallel_plan_check(const et_parallel_plan *p, const et_assignment *a,
                                 et_error *error);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
