/* duplicate_rows.c: rows that are equal, by a hash table. See duplicate_rows.h. */
#include "ref/routing/duplicate_rows.h"
#include "ref/base/bits.h"
#include "ref/base/memory.h"
#include "ref/base/threads.h"

#include <stdbool.h>
#include <stdlib.h>

static bool same_row(size_t d, const et_real *a, const et_real *b)
{
    for (size_t c = 0; c < d; c++)
        if (a[c] != b[c]) return false;
    return true;
}

/* In the manner of FNV-1a, over numbers; adding 0 turns -0 into +0. Short numbers end in zeros and differ in their
 * upper bits alone, which a product moves further up: they are folded down. */
static uint64_t hash_row(size_t d, const et_real *row)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t c = 0; c < d; c++) {
        hash = (hash ^ to_bits((double)row[c] + 0)) * 0x100000001b3u;
        hash ^= hash >> 32;
    }
    return hash ^ hash >> 16;
}

static size_t table_size(size_t count)
{
    size_t size = 2;
    while (size < 2 * count) size *= 2;
    return size;
}

et_status et_find_duplicate_rows(size_t N, size_t d, const et_real *x, int32_t *first,
                                 et_error *error)
{
    size_t size = table_size(N);
    void *hashes, *entries;
    et_status status = et_allocate(&hashes, N, sizeof(uint64_t), "equal rows", error);
    if (status != ET_OK) return status;
    status = et_allocate(&entries, size, sizeof(int32_t), "equal rows", error);
    if (status != ET_OK) {
        free(hashes);
        return status;
    }
    uint64_t *hash = hashes;
    int32_t *table = entries;
#pragma omp parallel for if (et_worth_threads(N * d))
    for (size_t t = 0; t < N; t++) hash[t] = hash_row(d, x + t * d);
    for (size_t i = 0; i < size; i++) table[i] = -1;
    for (size_t t = 0; t < N; t++) {
        size_t at = (size_t)hash[t] & (size - 1);
        while (table[at] >= 0 && !same_row(d, x + (size_t)table[at] * d, x + t * d))
            at = (at + 1) & (size - 1);
        if (table[at] < 0) table[at] = (int32_t)t;
        first[t] = table[at];
    }
    free(table);
    free(hash);
    return ET_OK;
}
