/* json_load.c: JSON text into Jansson's values, where memory may run out. See json.h.
 *
 * Jansson's reader is not made for that: its buffer drops a character for which it finds no memory,
 * and aborts the process over the next. So while it reads, it gets memory that cannot be refused
 * half-way: its allocation function does not return without it, but leaves the reader as a whole
 * (longjmp), and everything that the reader has taken is released at once. What was read is then
 * copied into ordinary memory, since Jansson's copying reports a failure as it should.
 *
 * Jansson has one pair of allocation functions for the whole process. Ours take their place while a
 * text is read, one at a time, and hand over to them whenever another thread asks.
 */
#include "ref/base/memory.h"
#include "ref/format/json.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdalign.h>
#include <stdlib.h>

/* Memory of one reading: blocks, each twice as large as the one before, handed out front to back. */
typedef struct block {
    struct block *before;
    size_t used, size;
    alignas(max_align_t) char bytes[];
} block;

typedef struct reading {
    block *last;
    bool no_memory;
    jmp_buf leave;
} reading;

static _Thread_local reading *current;
static json_malloc_t usual_malloc;
static json_free_t usual_free;

static void *take(size_t size)
{
    reading *r = current;
    if (r == NULL) return usual_malloc(size);
    size = (size + alignof(max_align_t) - 1) / alignof(max_align_t) * alignof(max_align_t);
    if (r->last == NULL || r->last->size - r->last->used < size) {
        size_t room = r->last ? 2 * r->last->size : 256;
        if (room < size) room = size;
        void *fresh;
        r->no_memory = et_allocate(&fresh, sizeof(block) + room, 1, "JSON", NULL) != ET_OK;
        if (r->no_memory) longjmp(r->leave, 1);
        block *b = fresh;
        *b = (block){.before = r->last, .size = room};
        r->last = b;
    }
    void *taken = r->last->bytes + r->last->used;
    r->last->used += size;
    return taken;
}

static void give(void *taken)
{
    if (current == NULL) usual_free(taken);
}

/* NULL after a syntax error, and where memory ran out. */
static json_t *read_guarded(reading *r, const char *text, size_t length, size_t flags,
                            json_error_t *trouble)
{
    if (setjmp(r->leave) != 0) return NULL;
    return json_loadb(text, length, flags, trouble);
}

/* The values lie in the reading's blocks, and are gone with them. */
static json_t *read_into(reading *r, const char *text, size_t length, size_t flags,
                         json_error_t *trouble)
{
    static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&one_at_a_time);
    json_get_alloc_funcs(&usual_malloc, &usual_free);
    json_set_alloc_funcs(take, give);
    current = r;
    json_t *root = read_guarded(r, text, length, flags, trouble);
    current = NULL;
    json_set_alloc_funcs(usual_malloc, usual_free);
    pthread_mutex_unlock(&one_at_a_time);
    return root;
}

json_t *et_json_load(const char *text, size_t length, size_t flags, json_error_t *trouble,
                     bool *no_memory)
{
    reading r = {0};
    json_t *read = read_into(&r, text, length, flags | JSON_REJECT_DUPLICATES, trouble);
    json_t *root = read != NULL ? json_deep_copy(read) : NULL;
    *no_memory = r.no_memory || (read != NULL && root == NULL);
    for (block *b = r.last, *before; b != NULL; b = before) {
        before = b->before;
        free(b);
    }
    return root;
}
