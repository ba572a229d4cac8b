/* test_ep.c: the layer of ep.c has the bits of one rank.
 *
 *     mpirun -np R test_ep [--local-numbers] GOLDEN...
 *
 * Each golden brings a case with its inputs. Process 0 computes the step as one rank does, by etref's plain engine, gathers
 * what the others have, and compares: mask, cutoff, y, dx, dW_up, dW_down to the bit. Those of router and shared expert are
 * sums over processes, cut elsewhere: they are compared to rounding. Where the case is for as many ranks (ep), also its
 * tensors ep.*: splits, rows sent and received, each rank's gradients; to the bit.
 * --local-numbers: a fault, every process takes its experts' weights by their local numbers.
 *
 * Exit status: 0 all the same, 1 not, 2 error.
 */
#include "ep.h"

#include <mpi.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct test {
    const ep_layer *l;
    const et_step *one; /* process 0's */
    const char *path;
    size_t compared, differ;
} test;

static void note(test *t, const char *what, bool same)
{
    t->compared++;
    if (same) return;
    t->differ++;
    fprintf(stderr, "ep: %s on %zu ranks: %s differs\n", t->path, t->l->ranks, what);
}

/* ---- gathering ---- */

/* Parts of the same size, or, with own counts, of any; at process 0 one after the other. */
static void *gather(const ep_layer *l, const void *own, size_t count, MPI_Datatype type,
                    size_t size)
{
    int mine = (int)count, all = 0, *counts = ep_room(2 * l->ranks, sizeof *counts);
    int *at = counts + l->ranks;
    MPI_Gather(&mine, 1, MPI_INT, counts, 1, MPI_INT, 0, MPI_COMM_WORLD);
    for (size_t q = 0; q < l->ranks; q++) at[q] = all, all += counts[q];
    void *room = ep_room((size_t)all, size);
    MPI_Gatherv(own, mine, type, room, counts, at, type, 0, MPI_COMM_WORLD);
    free(counts);
    return room;
}

/* The same bits, where one rank has such an array. */
static void compare(test *t, const char *what, const et_real *own, size_t count, const et_real *one)
{
    et_real *all = gather(t->l, own, count, MPI_DOUBLE, sizeof(et_real));
    if (t->l->rank == 0 && one)
        note(t, what, memcmp(all, one, count * t->l->ranks * sizeof(et_real)) == 0);
    free(all);
}

/* Rows, of which every process has its own number: `rows` in all. */
static void compare_rows(test *t, const char *what, const et_real *own, size_t rows,
                         size_t all_rows, const et_real *one)
{
    size_t d = t->l->moe.d;
    et_real *all = gather(t->l, own, rows * d, MPI_DOUBLE, sizeof(et_real));
    if (t->l->rank == 0 && one)
        note(t, what, memcmp(all, one, all_rows * d * sizeof(et_real)) == 0);
    free(all);
}

/* A sum over processes. */
static void compare_sum(test *t, const char *what, const et_real *own, size_t count,
                        const et_real *one)
{
    et_real *sum = ep_room(count, sizeof *sum), error = 0, largest = 0;
    MPI_Reduce(own, sum, (int)count, MPI_DOUBLE, MPI_SUM, 0, MPI_COMM_WORLD);
    for (size_t i = 0; i < count && t->l->rank == 0; i++) {
        error = fmax(error, fabs(sum[i] - one[i]));
        largest = fmax(largest, fabs(one[i]));
    }
    if (t->l->rank == 0) note(t, what, error <= 1e-14 * largest);
    free(sum);
}

/* Every process's own copy. */
static void compare_copies(test *t, const char *what, const void *own, size_t bytes,
                           const void *one)
{
    unsigned char *all = gather(t->l, own, bytes, MPI_BYTE, 1);
    bool same = true;
    for (size_t q = 0; t->l->rank == 0 && q < t->l->ranks; q++)
        same = same && memcmp(all + q * bytes, one, bytes) == 0;
    if (t->l->rank == 0) note(t, what, same);
    free(all);
}

/* ---- one golden ---- */

/* What the case says of as many ranks; the plan of one rank's step. */
static void compare_tables(test *t)
{
    const ep_layer *l = t->l;
    const et_step *s = l->s;
    const et_step_ranks *r = &t->one->rank;
    size_t n = s->c.experts, hs = s->c.shared ? s->c.shared_d_expert : 0, d = l->moe.d;
    if (s->c.parallel != ET_EXPERT_PARALLEL || s->c.ranks != l->ranks) return;
    int *sends = gather(l, l->sends, n, MPI_INT, sizeof(int));
    if (l->rank == 0)
        note(t, "ep.send_counts",
             memcmp(sends, t->one->plan.send_counts, n * l->ranks * sizeof(int)) == 0);
    free(sends);
    size_t S = l->rank == 0 ? t->one->assignment.slots : 0;
    compare_rows(t, "ep.x_recv", l->x_recv, l->received, S, r->x_recv);
    compare_rows(t, "ep.dout_recv", l->dout_recv, l->received, S, r->dout_recv);
    compare(t, "ep.w_router_rank", l->g.router, n * d, r->router);
    compare(t, "ep.shared_up_rank", l->g.shared_up, hs * d, r->shared_up);
    compare(t, "ep.shared_down_rank", l->g.shared_down, hs * d, r->shared_down);
    int begin = 0, all = (int)l->received; /* what the processes before receive */
    MPI_Exscan(&all, &begin, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    if (l->rank == 0) begin = 0;
    int *begins = gather(l, &begin, 1, MPI_INT, sizeof(int));
    if (l->rank == 0)
        note(t, "ep.recv_begin",
             memcmp(begins, t->one->plan.recv_begin, l->ranks * sizeof(int)) == 0);
    free(begins);
}

static void compare_all(test *t)
{
    const ep_layer *l = t->l;
    const et_step *s = l->s, *one = t->one;
    size_t N = s->c.tokens, n = s->c.experts, d = l->moe.d, size = l->moe.h * d, hs = l->moe.hs;
    compare_copies(t, "route.mask", l->mask, N * n, one->route.mask);
    if (l->cutoff)
        compare_copies(t, "route.cutoff", l->cutoff, n * sizeof(et_real), one->route.cutoff);
    compare(t, "fwd.y", l->v.y, l->tokens * d, one->fwd.y);
    compare(t, "bwd.x", l->g.x, l->tokens * d, one->bwd.x);
    compare(t, "bwd.w_up", l->g.up, l->experts * size, one->bwd.up);
    compare(t, "bwd.w_down", l->g.down, l->experts * size, one->bwd.down);
    compare_sum(t, "bwd.w_router", l->g.router, n * d, one->bwd.router);
    if (hs) compare_sum(t, "bwd.shared_up", l->g.shared_up, hs * d, one->bwd.shared_up);
    if (hs) compare_sum(t, "bwd.shared_down", l->g.shared_down, hs * d, one->bwd.shared_down);
    compare_tables(t);
}

static void try_golden(test *t, bool local_numbers, int rank, int ranks)
{
    et_tensor_file file;
    et_step s, one = {0};
    et_error error;
    ep_layer l;
    if (et_bundle_open(&file, &s, t->path, 0, &error) != ET_OK) ep_end(error.text);
    if (rank == 0) { /* as one rank does */
        et_tensor_file again;
        if (et_bundle_open(&again, &one, t->path, 0, &error) != ET_OK ||
            et_step_run(&one, ET_PLAIN, NULL, NULL, &error) != ET_OK)
            ep_end(error.text);
        et_tensor_file_close(&again);
    }
    ep_open(&l, &s, rank, ranks);
    l.local_numbers = local_numbers;
    ep_forward(&l);
    ep_backward(&l);
    t->l = &l;
    t->one = &one;
    compare_all(t);
    ep_close(&l);
    et_step_free(&one);
    et_step_free(&s);
    et_tensor_file_close(&file);
}

int main(int argc, char **argv)
{
    int rank, ranks, first = 1;
    test t = {0};
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    bool local_numbers = argc > 1 && strcmp(argv[1], "--local-numbers") == 0;
    if (local_numbers) first++;
    if (first >= argc) ep_end("usage: mpirun -np R test_ep [--local-numbers] GOLDEN...");
    for (int i = first; i < argc; i++) {
        t.path = argv[i];
        try_golden(&t, local_numbers, rank, ranks);
    }
    int failed = t.differ > 0;
    MPI_Bcast(&failed, 1, MPI_INT, 0, MPI_COMM_WORLD);
    if (rank == 0 && !failed)
        printf("mpi: %d goldens on %d ranks: %zu tensors, the same\n", argc - first, ranks,
               t.compared);
    MPI_Finalize();
    return failed;
}
