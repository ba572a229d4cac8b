/* failure_report.c: see failure_report.h. */
#include "tools/etref/failure_report.h"
#include "tools/etref/commands.h"
#include "tools/etref/failure.h"
#include "tools/etref/junit.h"
#include "tools/etref/terminal.h"

#include <stdio.h>
#include <string.h>

static const char *suite_name, *about;
static const char *wanted; /* "json", "junit"; NULL: a text, or it is printed already */

/* True once: what is printed in place of a result is printed in full. */
static bool takes(const char *format)
{
    bool is = wanted != NULL && !result_has_begun() && strcmp(wanted, format) == 0;
    if (is) wanted = NULL;
    return is;
}

static void print_object(void)
{
    json_t *object = json_object();
    json_object_set_new(object, "schema", json_string("etref-error-1"));
    json_object_set_new(object, "name", about ? et_json_clean(about) : json_null());
    json_object_set_new(object, "verdict", json_string("error"));
    json_object_set_new(object, "status", json_integer(STATUS_BAD));
    json_object_set_new(object, "message", et_json_clean(last_failure()));
    json_print(object);
}

static void print_by_fixed_words(void)
{
    if (takes("json"))
        puts("{\"schema\": \"etref-error-1\", \"name\": null, \"verdict\": \"error\", \"status\": 2, "
             "\"message\": \"no memory\"}");
    else if (takes("junit"))
        junit_print_without_memory();
    fflush(stdout);
}

static void print_failure(int status, bool memory)
{
    if (status != STATUS_BAD) return;
    if (!memory) {
        print_by_fixed_words();
    } else if (takes("json")) {
        print_object();
    } else if (takes("junit")) {
        junit rows = {0};
        junit_add(&rows, "verdict", JUNIT_ERROR, last_failure(), NULL);
        junit_print(&rows, suite_name);
    }
}

void failure_report_expect(int argc, char **argv, const char *suite, const char *name)
{
    static const char option[] = "--format";
    size_t width = sizeof option - 1;
    suite_name = suite;
    about = name;
    wanted = NULL;
    set_last_words(print_failure);
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strncmp(argv[i], option, width) != 0) continue;
        if (argv[i][width] == '=') wanted = argv[i] + width + 1;
        if (argv[i][width] == '\0' && i + 1 < argc) wanted = argv[i + 1];
    }
}
