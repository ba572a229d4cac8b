/* journal.c: what has been done so far. See campaign.h.
 *
 *     etref-campaign HASH
 *     = KEY
 *     lines of a unit
 *     .
 *
 * A block is written by a single call, at the end of the file, whoever else writes: so blocks never mix. One
 * without its final dot was cut off, and does not count. HASH stands for everything the lines
 * depend on; a journal of another is put aside.
 */
#include "tests/campaign/campaign.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char mark[] = "etref-campaign ";

/* The whole file, or NULL. */
static char *read_all(const char *path)
{
    FILE *file = fopen(path, "rb");
    char *text = NULL;
    long size;
    if (!file) return NULL;
    if (fseek(file, 0, SEEK_END) == 0 && (size = ftell(file)) >= 0 &&
        fseek(file, 0, SEEK_SET) == 0 && (text = calloc((size_t)size + 1, 1)) != NULL)
        text[fread(text, 1, (size_t)size, file)] = '\0';
    fclose(file);
    return text;
}

static bool is_of(const char *content, const char *of)
{
    size_t length = strlen(of);
    const char *hash = content + sizeof mark - 1;
    return strncmp(content, mark, sizeof mark - 1) == 0 && strncmp(hash, of, length) == 0 &&
           hash[length] == '\n';
}

static bool begin(const char *path, const char *of, et_error *error)
{
    FILE *file = fopen(path, "wb");
    if (!file || fprintf(file, "%s%s\n", mark, of) < 0 || fclose(file) != 0) {
        et_fail(error, ET_EIO, "%s cannot be written: %s", path, strerror(errno));
        return false;
    }
    return true;
}

/* Cuts the content into blocks, in place; what follows the last whole one is cut off the file. */
static bool split(cp_journal *j)
{
    size_t room = 0;
    char *at = strchr(j->content, '\n');
    while (strncmp(at, "\n= ", 3) == 0) {
        char *key = at + 3, *text = strchr(key, '\n'), *end = text ? strstr(text, "\n.\n") : NULL;
        if (!end) break;
        if (j->count == room) {
            cp_block *more = realloc(j->blocks, (2 * room + 64) * sizeof *more);
            if (!more) return false;
            room = 2 * room + 64;
            j->blocks = more;
        }
        at = end + 2;
        *text = '\0';
        end[1] = '\0';
        j->blocks[j->count++] = (cp_block){key, text + 1};
    }
    return at[1] == '\0' || truncate(j->path, at + 1 - j->content) == 0;
}

bool cp_journal_open(cp_journal *j, const char *folder, const char *of, et_error *error)
{
    *j = (cp_journal){0};
    size_t room = strlen(folder) + sizeof "/journal";
    if (!(j->path = malloc(room))) {
        et_fail(error, ET_ENOMEM, "journal: no memory");
        return false;
    }
    snprintf(j->path, room, "%s/journal", folder);
    if (mkdir(folder, 0777) != 0 && errno != EEXIST) {
        et_fail(error, ET_EIO, "%s cannot be made: %s", folder, strerror(errno));
        return false;
    }
    j->content = read_all(j->path);
    if (!j->content || !is_of(j->content, of)) {
        free(j->content);
        j->content = NULL;
        return begin(j->path, of, error);
    }
    bool well = split(j);
    if (!well) et_fail(error, ET_EIO, "%s cannot be mended: %s", j->path, strerror(errno));
    return well;
}

void cp_journal_close(cp_journal *j)
{
    free(j->path);
    free(j->content);
    free(j->blocks);
    *j = (cp_journal){0};
}

const char *cp_journal_find(const cp_journal *j, const char *key)
{
    for (size_t i = 0; i < j->count; i++)
        if (strcmp(j->blocks[i].key, key) == 0) return j->blocks[i].text;
    return NULL;
}

bool cp_journal_append(const char *path, const char *key, const char *text)
{
    size_t room = strlen(key) + strlen(text) + sizeof "= \n\n.\n";
    char *block = malloc(room);
    int file = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    bool done = false;
    if (block && file >= 0) {
        int length = snprintf(block, room, "= %s\n%s.\n", key, text);
        done = write(file, block, (size_t)length) == length;
    }
    if (file >= 0) done = close(file) == 0 && done;
    free(block);
    return done;
}

/* ---- reading lines ---- */

cp_reader cp_read(const cp_report *r)
{
    return (cp_reader){.r = r};
}

/* The next unit of the part that is in the journal; false after the last one. */
static bool next_unit(cp_reader *reader)
{
    const cp_report *r = reader->r;
    while (reader->next < r->list->count) {
        const cp_unit *unit = &r->list->units[reader->next++];
        if (r->part->plan && unit->part != r->part) continue;
        reader->unit = unit;
        reader->at = cp_journal_find(r->journal, unit->key);
        if (reader->at) return true;
    }
    return false;
}

static void cut_fields(cp_reader *reader)
{
    char *at = reader->line;
    reader->count = 0;
    while (at && reader->count < CP_FIELDS) {
        reader->fields[reader->count++] = at;
        at = strchr(at, '\t');
        if (at) *at++ = '\0';
    }
}

bool cp_next(cp_reader *reader, const char *kind)
{
    size_t length = strlen(kind);
    for (;;) {
        while (!reader->at || !*reader->at)
            if (!next_unit(reader)) return false;
        const char *line = reader->at, *end = strchr(line, '\n');
        size_t size = end ? (size_t)(end - line) : strlen(line);
        reader->at = line + size + (end ? 1 : 0);
        if (strncmp(line, kind, length) != 0 || line[length] != '\t') continue;
        snprintf(reader->line, sizeof reader->line, "%.*s", (int)size, line);
        cut_fields(reader);
        return true;
    }
}

double cp_number(const cp_reader *reader, size_t field)
{
    return field < reader->count ? strtod(reader->fields[field], NULL) : 0;
}

FILE *cp_csv(const cp_report *r, const char *name, const char *provenance, const char *header)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", r->options->out, name);
    FILE *file = fopen(path, "wb");
    if (!file)
        fprintf(stderr, "campaign: %s cannot be written: %s\n", path, strerror(errno));
    else
        fprintf(file, "# made by 'make campaign': %s\n%s\n", provenance, header);
    return file;
}
