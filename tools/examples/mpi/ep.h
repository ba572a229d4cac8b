/* ep.h: an MoE layer on several processes, experts cut up among them (expert parallelism).
 *
 * R processes, N tokens, n experts. Process s holds the tokens from s N/R on and the experts from s n/R on; router and shared
 * expert each of them holds.
 *
 *     score      its tokens' logits, gathered from all: N x n numbers on every process
 *     route      all tokens, on every process: masks and cutoffs agree without a word
 *     forward    for each local expert j an all-to-all brings rows x to the processes of experts j, n/R + j, ...,
 *                and another f(x) back; the sender weighs and adds, experts ascending
 *     backward   the same two, with rows dO = w dy there and dH W_up back
 *
 * Nothing here looks at etref's tables of rows (parallel.h): those are compared with what is sent.
 */
#ifndef EP_H
#define EP_H

#include <etref/etref.h>

typedef struct ep_layer {
    const et_step *s; /* case and inputs */
    size_t ranks, rank;
    size_t tokens, first_token;   /* N/R, s N/R */
    size_t experts, first_expert; /* n/R, s n/R */
    bool local_numbers;           /* a fault: experts are taken by their local numbers */
    /* of the whole step, equal on every process */
    et_real *all_logits; /* [N,n] */
    uint8_t *mask;       /* [N,n] */
    et_real *cutoff;     /* [n], or NULL for tc and in evaluation */
    /* of its tokens, in the library's names */
    et_moe moe;
    et_assignment a;
    et_moe_values v;
    et_moe_grads g; /* up, down [n/R,..]: of its experts */
    /* of its experts: rows received, j by j, and what the forward pass leaves of them */
    size_t received;
    int *sends, *receives;       /* [n/R,R] rows to and from each process */
    et_real *x_recv, *dout_recv; /* [received,d] */
    et_real *H, *A;              /* [received,h] */
} ep_layer;

/* Ends all processes where something fails. */
void ep_open(ep_layer *l, const et_step *s, int rank, int ranks);
void ep_forward(ep_layer *l);
void ep_backward(ep_layer *l);
void ep_close(ep_layer *l);

/* Ends all processes, with a line on stderr. */
void ep_end(const char *why);
void *ep_room(size_t count, size_t size);

#endif
