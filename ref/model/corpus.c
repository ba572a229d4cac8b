/* corpus.c: the bytes of a file as tokens. See etref/corpus.h. */
#include "etref/corpus.h"
#include "etref/random.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Exactly `count` bytes from `at` on. */
static et_status read_bytes(const et_corpus *c, uint64_t at, size_t count, unsigned char *to,
                            et_error *error)
{
    while (count > 0) {
        ssize_t got = pread(c->descriptor, to, count, (off_t)at);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return et_fail(error, ET_EIO, "%s: %s", c->path, strerror(errno));
        if (got == 0)
            return et_fail(error, ET_EIO, "%s: ends at byte %llu; it has become shorter", c->path,
                           (unsigned long long)at);
        at += (uint64_t)got;
        to += got;
        count -= (size_t)got;
    }
    return ET_OK;
}

static et_status hash_all(et_corpus *c, et_error *error)
{
    unsigned char block[1 << 14];
    c->hash = UINT64_C(0xcbf29ce484222325);
    for (uint64_t at = 0; at < c->bytes;) {
        size_t count = c->bytes - at < sizeof block ? (size_t)(c->bytes - at) : sizeof block;
        et_status status = read_bytes(c, at, count, block, error);
        if (status != ET_OK) return status;
        for (size_t i = 0; i < count; i++) c->hash = (c->hash ^ block[i]) * UINT64_C(0x100000001b3);
        at += count;
    }
    return ET_OK;
}

/* The file's size, and how it is parted. */
static et_status look(et_corpus *c, et_error *error)
{
    struct stat facts;
    uint64_t whole = (uint64_t)c->sequence + 1;
    if (fstat(c->descriptor, &facts) != 0)
        return et_fail(error, ET_EIO, "%s: %s", c->path, strerror(errno));
    if (!S_ISREG(facts.st_mode))
        return et_fail(error, ET_EIO, "%s: is no regular file; a file of text belongs here",
                       c->path);
    c->bytes = (uint64_t)facts.st_size;
    if (c->bytes < 2 * whole)
        return et_fail(
            error, ET_EINVAL,
            "%s: has %llu bytes; sequences of %zu tokens want at least %llu, one to train "
            "on and one to hold out",
            c->path, (unsigned long long)c->bytes, c->sequence, (unsigned long long)(2 * whole));
    uint64_t held = c->bytes / 20 > whole ? c->bytes / 20 : whole;
    c->trained = c->bytes - held;
    return hash_all(c, error);
}

et_status et_corpus_open(et_corpus *c, const char *path, size_t sequence, et_error *error)
{
    size_t length = strlen(path);
    *c = (et_corpus){.sequence = sequence, .descriptor = -1};
    if (sequence < 1 || sequence > INT32_MAX || length >= sizeof c->path)
        return et_fail(error, ET_EINVAL, "et_corpus: sequences of %zu, a name of %zu bytes",
                       sequence, length);
    memcpy(c->path, path, length + 1);
    /* Not to wait for a pipe's writer. */
    c->descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (c->descriptor < 0) return et_fail(error, ET_EIO, "%s: %s", path, strerror(errno));
    et_status status = look(c, error);
    if (status != ET_OK) et_corpus_close(c);
    return status;
}

void et_corpus_close(et_corpus *c)
{
    if (c->descriptor >= 0) close(c->descriptor);
    c->descriptor = -1;
}

/* One sequence and its target, T + 1 bytes from `at` on. */
static et_status read_row(const et_corpus *c, uint64_t at, int32_t *tokens, et_error *error)
{
    unsigned char block[1 << 12];
    for (size_t i = 0; i <= c->sequence;) {
        size_t left = c->sequence + 1 - i, count = left < sizeof block ? left : sizeof block;
        et_status status = read_bytes(c, at + i, count, block, error);
        if (status != ET_OK) return status;
        for (size_t j = 0; j < count; j++) tokens[i + j] = block[j];
        i += count;
    }
    return ET_OK;
}

et_status et_corpus_draw(const et_corpus *c, uint64_t seed, uint64_t first_row, size_t rows,
                         int32_t *tokens, et_error *error)
{
    et_stream stream = et_stream_open(seed, "batch");
    uint64_t places = c->trained - c->sequence; /* at which a sequence and its target begin */
    et_status status = ET_OK;
    for (size_t i = 0; status == ET_OK && i < rows; i++) {
        uint64_t row = first_row + i;
        double u = et_uniform(stream, row, 0) + 0x1p-32 * (et_uniform(stream, row, 1) - 0.5);
        uint64_t place = (uint64_t)(u * (double)places);
        status =
            read_row(c, place < places ? place : places - 1, tokens + i * (c->sequence + 1), error);
    }
    return status;
}

size_t et_corpus_held(const et_corpus *c)
{
    return (size_t)((c->bytes - c->trained - 1) / c->sequence);
}

size_t et_corpus_spread(const et_corpus *c, size_t rows, size_t batch, size_t batches)
{
    return batch * (et_corpus_held(c) / rows) / batches * rows;
}

et_status et_corpus_read_held(const et_corpus *c, size_t first, size_t rows, int32_t *tokens,
                              et_error *error)
{
    et_status status = ET_OK;
    for (size_t i = 0; status == ET_OK && i < rows; i++)
        status = read_row(c, c->trained + (first + i) % et_corpus_held(c) * c->sequence,
                          tokens + i * (c->sequence + 1), error);
    return status;
}
