/* input_text.c: real text as input: a file's bytes turned into contextual vectors.
 *
 *     v_t = sum_{j=0..3} 2^-j e(b_{t-j})          e: a normal vector for each of 256 byte values
 *     x_t = v_t / sqrt(mean(v_t^2))
 *
 * Random vectors are never alike; tokens of real text are. Here a token is a byte mixed with its
 * three predecessors, so wherever four bytes occur again the vector occurs again, to the last bit:
 * the ties and the uneven loads that a router meets in practice. The window is short on purpose;
 * with a longer one (or a recurrence) no two vectors would ever be equal. It looks back only, as a
 * language model does; before the first byte used there is nothing.
 *
 * sqrt and division are correctly rounded under IEEE-754, so the vectors are the same everywhere.
 * A name without '/' is looked for in the folder of common licences, which every Debian system has:
 * prose that can be had anywhere, and never changes.
 *
 * Left out: a tokeniser, and any use of the text beyond its bytes.
 */
#include "ref/step/input_text.h"
#include "etref/random.h"
#include "ref/base/memory.h"
#include "ref/format/files.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BYTE_VALUES = 256, WINDOW = 4 };

static const char licences[] = "/usr/share/common-licenses/";

static et_status read_file(et_text *text, const char *path, uint64_t offset, et_error *error)
{
    char where[320];
    int descriptor = -1;
    uint64_t size = 0;
    void *bytes = NULL;
    snprintf(where, sizeof where, "input.text '%s'", path);
    et_status status = et_open_regular(&descriptor, &size, path, where, "any file of text", error);
    if (status == ET_OK && (size < offset || size - offset < text->count))
        status = et_fail(error, ET_EINVAL,
                         "%s: %llu bytes, but the case uses %zu from byte %llu on; use fewer "
                         "tokens, a smaller input.text_offset or a longer text",
                         where, (unsigned long long)size, text->count, (unsigned long long)offset);
    if (status == ET_OK) status = et_allocate(&bytes, text->count, 1, path, error);
    text->bytes = bytes;
    if (status == ET_OK) status = et_read_at(descriptor, bytes, text->count, offset, where, error);
    if (descriptor >= 0) close(descriptor);
    return status;
}

static et_status draw_embedding(et_text *text, uint64_t seed, et_error *error)
{
    size_t count;
    void *room;
    if (!et_size_mul(BYTE_VALUES, text->d, &count))
        return et_fail(error, ET_ENOMEM, "text embedding: width %zu is too large", text->d);
    et_status status = et_allocate(&room, count, sizeof(double), "text embedding", error);
    if (status != ET_OK) return status;
    text->embedding = room;
    et_stream stream = et_stream_open(seed, "text.embedding");
    for (size_t i = 0; i < count; i++) text->embedding[i] = et_normal(stream, i);
    return ET_OK;
}

et_status et_text_read(et_text *text, const char *name, uint64_t offset, size_t count,
                       et_error *error)
{
    char path[sizeof licences + 256];
    int length = snprintf(path, sizeof path, "%s%s", strchr(name, '/') ? "" : licences, name);
    if (length < 0 || (size_t)length >= sizeof path)
        return et_fail(error, ET_EINVAL, "text: a path of %d bytes; allowed: at most %zu", length,
                       sizeof path - 1);
    *text = (et_text){.count = count};
    et_status status = read_file(text, path, offset, error);
    if (status != ET_OK) et_text_free(text);
    return status;
}

et_status et_text_open(et_text *text, const char *name, uint64_t offset, size_t count, size_t d,
                       uint64_t seed, et_error *error)
{
    et_status status = et_text_read(text, name, offset, count, error);
    if (status != ET_OK) return status;
    text->d = d;
    status = draw_embedding(text, seed, error);
    if (status != ET_OK) et_text_free(text);
    return status;
}

void et_text_free(et_text *text)
{
    free(text->bytes);
    free(text->embedding);
    *text = (et_text){0};
}

void et_text_vector(const et_text *text, size_t t, double *out)
{
    size_t d = text->d;
    double scale = 1, squares = 0;
    for (size_t i = 0; i < d; i++) out[i] = 0;
    for (size_t j = 0; j < WINDOW && j <= t; j++, scale /= 2) {
        const double *e = text->embedding + text->bytes[t - j] * d;
        for (size_t i = 0; i < d; i++) out[i] += scale * e[i];
    }
    for (size_t i = 0; i < d; i++) squares += out[i] * out[i];
    double norm = sqrt(squares / (double)d);
    for (size_t i = 0; i < d && norm > 0; i++) out[i] /= norm;
}
