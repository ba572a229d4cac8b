/* twins.c: rows that are equal, by a hash table. See twins.h. */
#include "ref/layers/twins.h"
#include "ref/base/bits.h"
#include "ref/base/memory.h"

#include <stdlib.h>

static bool same_row(size_t d, const et_real *a, const et_real *b)
{
    for (size_t c = 0; c < d; c++)
        if (a[c] != b[c]) return false;
    return true;
}

/* FNV-1a over the row's numbers; adding 0 turns -0 into +0. */
static uint64_t hash_row(size_t d, const et_real *row, uint64_t hash)
{
    for (size_t c = 0; c < d; c++) hash = (hash ^ to_bits((double)row[c] + 0)) * 0x100000001b3u;
    return hash ^ hash >> 29;
}

/* first[t] = the first token whose rows equal token t's; dy may be NULL. table [size] is scratch, size a
 * power of two above N. */
static void find(size_t N, size_t d, const et_real *x, const et_real *dy, int32_t *table,
                 size_t size, int32_t *first, int32_t *count)
{
    for (size_t i = 0; i < size; i++) table[i] = -1;
    for (size_t t = 0; t < N; t++) {
        uint64_t hash = hash_row(d, x + t * d, 0xcbf29ce484222325u);
        if (dy) hash = hash_row(d, dy + t * d, hash);
        size_t at = (size_t)hash & (size - 1);
        while (table[at] >= 0 && !(same_row(d, x + (size_t)table[at] * d, x + t * d) &&
                                   (!dy || same_row(d, dy + (size_t)table[at] * d, dy + t * d))))
            at = (at + 1) & (size - 1);
        if (table[at] < 0) table[at] = (int32_t)t;
        first[t] = table[at];
        count[first[t]]++;
    }
    for (size_t t = 0; t < N; t++) count[t] = count[first[t]];
}

et_status et_find_twins(et_token_twins *twins, size_t N, size_t d, const et_real *x,
                        const et_real *dy, et_error *error)
{
    size_t size = 2;
    while (size < 2 * N) size *= 2;
    void *room, *table;
    *twins = (et_token_twins){0};
    et_status status = et_allocate(&table, size, sizeof(int32_t), "twins", error);
    if (status != ET_OK) return status;
    status = et_allocate(&room, 4 * N, sizeof(int32_t), "twins", error);
    if (status == ET_OK) {
        twins->input = room;
        twins->both = twins->input + N;
        twins->inputs = twins->both + N;
        twins->boths = twins->inputs + N;
        find(N, d, x, NULL, table, size, twins->input, twins->inputs);
        find(N, d, x, dy, table, size, twins->both, twins->boths);
        for (size_t t = 0; t < N; t++) twins->groups += twins->input[t] == (int32_t)t;
    }
    free(table);
    return status;
}

void et_free_twins(et_token_twins *twins)
{
    free(twins->input);
    *twins = (et_token_twins){0};
}
