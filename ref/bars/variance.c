/* variance.c: from the errors of a few replicas to a variance for each element. See bars.h.
 *
 * m = mean e^2 of R replicas scatters, by a factor two where R = 16. What elements have in common is known
 * better: sizes of rows and of columns. So V is m and a smooth shape, as if of as many replicas more,
 *
 *     V = (R m + PRIOR p) / (R + PRIOR), PRIOR = 16      p = (row's mean of m) (column's mean) / (section's mean)
 *
 * and the means themselves lean on the next larger one, as if it had been seen PRIOR times.
 *
 * Errors may be rare: a sum of few short products is exact in most orders, and loses a bit in one of a hundred.
 * Then it is the errors that count, not the runs: the shape counts as many runs as show PRIOR of them. But few elements may
 * err more than others do (f16's smallest numbers): one that erred more than its shape leans on it by PRIOR runs alone. An element on which
 * no replica erred may yet err as much, for its size, as others do.
 *
 * An element, or a whole row of equal ones, may err little by luck: where a number is far from half way between two of the
 * format, all replicas round it alike. Such settled errors are a third of all, in squares (etref/rounding.h); one may be 0,
 * but another kernel's number is another one. So an element errs by at least that third of what its section does for its size.
 *
 * Of a token and an expert, numbers on slots and off them are two kinds: dr has all of the layer's errors on them, and
 * only the losses' off them. Each kind is smoothed by itself.
 *
 * A value of exactly 0 is another thing: relu makes it, a mask does, and its error, where it has any, is of
 * another size (A of an H just below 0). The zeros of a tensor have the shape p times r, r = what m / p
 * is on those that moved; in a tensor of zeros alone p is the shape of their own m. Where none of them moved in any
 * replica, none may move: V = 0. Likewise where none of the other elements did.
 */
#include "ref/bars/variance.h"
#include "ref/base/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Sums of m over some elements, and their number. */
typedef struct mean {
    double sum, count;
} mean;

static void take(mean *m, double value)
{
    m->sum += value;
    m->count++;
}

/* Replicas, and how many of them stand behind what is leant on. */
typedef struct weights {
    double R, prior;
} weights;

/* The mean as a sample of `count` elements has it, leaning on `wider`. */
static double lean(const mean *m, const weights *w, double wider)
{
    return (w->R * m->sum + w->prior * wider) / (w->R * m->count + w->prior);
}

/* So many runs show PRIOR errors of an element, where a part f of all elements erred in R of them: each did with chance
 * 1 - (1 - f)^(1/R). */
static weights weights_of(double R, double moved, double count)
{
    double chance = -expm1(log1p(-moved / count) / R);
    return (weights){R, chance > 0 ? ET_PRIOR / chance : ET_PRIOR};
}

/* One section of a tensor. */
typedef struct patch {
    const et_real *u;
    et_real *V; /* m, then V */
    size_t rows, columns;
    const uint8_t *slots; /* of its elements those with this mark; NULL: all */
    bool mark, of_zeros;
    mean *row, *column, all; /* of elements that are not 0; or of zeros */
    double moved, squares;   /* how many of these erred; sum of u^2 */
} patch;

/* An infinite number, as the margin of a token that nothing was refused, has no error and none to share. */
static bool belongs(const patch *p, size_t i)
{
    return isfinite(p->u[i]) && (p->slots == NULL || (p->slots[i] != 0) == p->mark);
}

static bool counts(const patch *p, size_t i)
{
    return belongs(p, i) && (p->u[i] == 0) == p->of_zeros && isfinite(p->V[i]);
}

static void gather(patch *p)
{
    for (size_t r = 0; r < p->rows; r++)
        for (size_t c = 0; c < p->columns; c++) {
            size_t i = r * p->columns + c;
            if (!counts(p, i)) continue;
            take(&p->row[r], (double)p->V[i]);
            take(&p->column[c], (double)p->V[i]);
            take(&p->all, (double)p->V[i]);
            p->moved += p->V[i] > 0;
            p->squares += (double)p->u[i] * (double)p->u[i];
        }
}

static double shape_of(const patch *p, size_t i, const weights *w, double whole)
{
    double section = lean(&p->all, w, whole);
    double row = lean(&p->row[i / p->columns], w, section);
    double column = lean(&p->column[i % p->columns], w, section);
    return section > 0 ? row * (column / section) : 0;
}

/* What m is of the shape on zeros that moved: the sum of both. */
static void gather_zeros(const patch *p, const weights *w, double whole, double *moved,
                         double *shape)
{
    for (size_t i = 0; i < p->rows * p->columns; i++)
        if (belongs(p, i) && p->u[i] == 0 && p->V[i] > 0 && isfinite(p->V[i])) {
            *moved += (double)p->V[i];
            *shape += shape_of(p, i, w, whole);
        }
}

static void smooth(patch *p, const weights *w, double whole, double zeros)
{
    double relative = p->squares > 0 ? p->all.sum / p->squares : 0;
    for (size_t i = 0; i < p->rows * p->columns; i++) {
        if (!belongs(p, i)) continue;
        double shape = shape_of(p, i, w, whole) * (p->u[i] == 0 ? zeros : 1);
        if (p->V[i] == 0) shape = fmax(shape, relative * (double)p->u[i] * (double)p->u[i]);
        double m = (double)p->V[i], prior = m > shape ? ET_PRIOR : w->prior;
        double least = relative * (double)p->u[i] * (double)p->u[i] / 3;
        if (isfinite(m))
            p->V[i] = (et_real)fmax((w->R * m + prior * shape) / (w->R + prior), least);
    }
}

/* Rows and columns of all sections side by side. */
static void lay_out(const et_cut *g, const et_real *u, et_real *V, mean *room, patch *list)
{
    for (size_t k = 0; k < g->sections; k++) {
        size_t first = g->section_row[k], rows = g->section_row[k + 1] - first;
        list[k] = (patch){.u = u + first * g->columns,
                          .V = V + first * g->columns,
                          .rows = rows,
                          .columns = g->columns,
                          .row = room,
                          .column = room + rows};
        room += rows + g->columns;
    }
}

/* The means of all sections, of elements that are not 0, or of zeros; *erred: how many erred. */
static mean gather_all(patch *list, size_t n, bool of_zeros, double *erred)
{
    mean all = {0};
    *erred = 0;
    for (size_t k = 0; k < n; k++) {
        list[k].of_zeros = of_zeros;
        gather(&list[k]);
        all.sum += list[k].all.sum;
        all.count += list[k].all.count;
        *erred += list[k].moved;
    }
    return all;
}

static void smooth_all(patch *list, size_t n, double replicas)
{
    double moved = 0, shape = 0, erred;
    mean all = gather_all(list, n, false, &erred);
    bool zeros_alone = all.count == 0;
    if (zeros_alone) all = gather_all(list, n, true, &erred);
    const weights w = weights_of(replicas, erred, all.count);
    double whole = all.count > 0 ? all.sum / all.count : 0;
    for (size_t k = 0; k < n; k++) gather_zeros(&list[k], &w, whole, &moved, &shape);
    double zeros = zeros_alone ? 1 : shape > 0 ? moved / shape : 0;
    for (size_t k = 0; k < n; k++) smooth(&list[k], &w, whole, zeros);
}

et_status et_smooth_variance(const et_cut *g, const et_real *u, const uint8_t *slots, et_real *V,
                             double replicas, et_error *error)
{
    void *room, *patches;
    size_t means = g->rows + g->sections * g->columns, n = g->sections;
    et_status status = et_allocate(&room, means, sizeof(mean), "bars", error);
    if (status != ET_OK) return status;
    status = et_allocate(&patches, n, sizeof(patch), "bars", error);
    if (status != ET_OK) {
        free(room);
        return status;
    }
    patch *list = patches;
    for (int mark = 0; mark < (slots ? 2 : 1); mark++) {
        memset(room, 0, means * sizeof(mean));
        lay_out(g, u, V, room, list);
        for (size_t k = 0; slots && k < n; k++) {
            list[k].slots = slots + g->section_row[k] * g->columns;
            list[k].mark = mark;
        }
        smooth_all(list, n, replicas);
    }
    free(patches);
    free(room);
    return ET_OK;
}
