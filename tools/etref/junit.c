/* junit.c: XML for CI systems. See junit.h.
 *
 * The dialect is the one that Jenkins, GitLab and GitHub's actions read: <testsuites>, <testsuite>
 * with counts, <testcase> with at most one of <failure>, <error>, <skipped>. A verdict is reached as a
 * whole: its case, the last, has all of the suite's time, and the tensors' cases have none.
 */
#include "tools/etref/junit.h"
#include "tools/etref/options.h"
#include "tools/etref/terminal.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static junit_sum *sum_of_parts; /* NULL: each suite is a report */
static double started;

static char *copy(const char *text)
{
    return text ? strcpy(allocate(strlen(text) + 1, 1), text) : NULL;
}

void junit_add(junit *j, const char *name, junit_result result, const char *message,
               const char *detail)
{
    size_t n = j->count;
    if ((n & (n - 1)) == 0) {
        junit_row *grown = allocate(n ? 2 * n : 1, sizeof *grown);
        if (n) memcpy(grown, j->rows, n * sizeof *grown);
        free(j->rows);
        j->rows = grown;
    }
    j->rows[j->count++] = (junit_row){copy(name), copy(message), copy(detail), result};
    j->results[result]++;
}

/* XML 1.0 has no control characters but tab and the line's end, and neither U+FFFE nor U+FFFF, not
 * even escaped; et_json_clean has seen to it that the text is UTF-8. */
static bool is_no_character(const unsigned char *c)
{
    bool control = (*c < 0x20 && *c != '\t' && *c != '\n') || *c == 0x7F;
    return control || (c[0] == 0xEF && c[1] == 0xBF && c[2] >= 0xBE);
}

static void print_escaped(const char *text)
{
    json_t *clean = et_json_clean(text);
    const unsigned char *c = (const unsigned char *)json_string_value(clean);
    for (; *c; c++) {
        switch (*c) {
        case '&': fputs("&amp;", stdout); break;
        case '<': fputs("&lt;", stdout); break;
        case '>': fputs("&gt;", stdout); break;
        case '"': fputs("&quot;", stdout); break;
        default:
            if (!is_no_character(c)) {
                putchar(*c);
            } else {
                putchar('?');
                if (*c == 0xEF) c += 2;
            }
        }
    }
    json_decref(clean);
}

static void print_attribute(const char *name, const char *value)
{
    printf(" %s=\"", name);
    print_escaped(value);
    putchar('"');
}

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void junit_start(void)
{
    started = seconds_now();
}

/* Of junit-10 <testsuites> has no "skipped". */
void junit_print_head(const junit_sum *sum)
{
    printf("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
           "<testsuites name=\"etref\" tests=\"%zu\" failures=\"%zu\" errors=\"%zu\" time=\"%.3f\">\n",
           sum->tests, sum->failures, sum->errors, sum->seconds);
}

void junit_print_foot(void)
{
    fputs("</testsuites>\n", stdout);
}

void junit_print_parts(junit_sum *sum)
{
    sum_of_parts = sum;
}

static void print_suite_head(const junit *j, const char *suite, double seconds)
{
    fputs("  <testsuite", stdout);
    print_attribute("name", suite);
    printf(" tests=\"%zu\" failures=\"%zu\" errors=\"%zu\" skipped=\"%zu\" time=\"%.3f\">\n", j->count,
           j->results[JUNIT_FAILURE], j->results[JUNIT_ERROR], j->results[JUNIT_SKIPPED], seconds);
}

static void print_row(const junit_row *row, const char *suite, double seconds)
{
    static const char *const words[] = {NULL, "failure", "error", "skipped", "system-out"};
    const char *word = words[row->result];
    fputs("    <testcase", stdout);
    print_attribute("classname", suite);
    print_attribute("name", row->name);
    printf(" time=\"%.3f\"", seconds);
    if (word == NULL) {
        fputs("/>\n", stdout);
        return;
    }
    if (row->result == JUNIT_NOTE) {
        fputs(">\n      <system-out>", stdout);
        print_escaped(row->message ? row->message : "");
        fputs("</system-out>\n    </testcase>\n", stdout);
        return;
    }
    printf(">\n      <%s", word);
    print_attribute("message", row->message ? row->message : "");
    if (row->result != JUNIT_SKIPPED)
        print_attribute("type", row->result == JUNIT_ERROR ? "no verdict" : "mismatch");
    putchar('>');
    print_escaped(row->detail ? row->detail : "");
    printf("</%s>\n    </testcase>\n", word);
}

void junit_print(junit *j, const char *suite)
{
    double seconds = seconds_now() - started;
    const junit_sum sum = {j->count, j->results[JUNIT_FAILURE], j->results[JUNIT_ERROR], seconds};
    if (sum_of_parts)
        *sum_of_parts = sum;
    else
        junit_print_head(&sum);
    print_suite_head(j, suite, seconds);
    for (size_t i = 0; i < j->count; i++) {
        print_row(&j->rows[i], suite, i + 1 == j->count ? seconds : 0);
        free(j->rows[i].name);
        free(j->rows[i].message);
        free(j->rows[i].detail);
    }
    fputs("  </testsuite>\n", stdout);
    if (!sum_of_parts) junit_print_foot();
    free(j->rows);
    *j = (junit){0};
}

void junit_print_without_memory(void)
{
    const junit_sum sum = {.tests = 1, .errors = 1};
    if (sum_of_parts)
        *sum_of_parts = sum;
    else
        junit_print_head(&sum);
    fputs("  <testsuite name=\"etref\" tests=\"1\" failures=\"0\" errors=\"1\" skipped=\"0\" time=\"0.000\">\n"
          "    <testcase classname=\"etref\" name=\"verdict\" time=\"0.000\">\n"
          "      <error message=\"no memory\" type=\"no verdict\"></error>\n"
          "    </testcase>\n  </testsuite>\n",
          stdout);
    if (!sum_of_parts) junit_print_foot();
}
