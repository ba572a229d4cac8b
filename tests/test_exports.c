/* test_exports.c: what a program sees of the library: what include/etref declares, and no name more.
 *
 * nm lists the names that libetref.so exports; the declarations are the names in include/etref that
 * stand before a parenthesis, outside of comments. Of the static library, whose objects keep their
 * internal names, every name must begin with et_, or a user's function might be taken for ours.
 * Names that begin with two underscores or a point belong to the compiler.
 */
#include "tests/check_main.h"

#include <ctype.h>
#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 4000, LONGEST = 80 };

typedef struct names {
    size_t count;
    char at[MOST][LONGEST];
} names;

static bool has(const names *list, const char *name)
{
    for (size_t i = 0; i < list->count; i++)
        if (strcmp(list->at[i], name) == 0) return true;
    return false;
}

static void add(names *list, const char *name)
{
    if (has(list, name)) return;
    ck_assert_uint_lt(list->count, MOST);
    ck_assert_uint_lt(strlen(name), LONGEST);
    memcpy(list->at[list->count++], name, strlen(name) + 1);
}

/* ---- what is declared ---- */

/* Adds the et_... before each '(' of a header's text, comments left out. A typedef of a function
 * (et_progress) is a type: no name of the library. */
static void add_declared(names *list, const char *text)
{
    char word[LONGEST] = "";
    size_t length = 0;
    bool is_typedef = false;
    for (const char *c = text; *c != '\0'; c++) {
        if (strncmp(c, "/*", 2) == 0) {
            c = strstr(c, "*/") + 1;
            continue;
        }
        if (isalnum((unsigned char)*c) || *c == '_') {
            ck_assert_uint_lt(length, LONGEST - 1);
            word[length++] = *c;
            word[length] = '\0';
            continue;
        }
        if (strcmp(word, "typedef") == 0) is_typedef = true;
        if (*c == '(' && strncmp(word, "et_", 3) == 0 && !is_typedef) add(list, word);
        if (*c == ';') is_typedef = false;
        if (!isspace((unsigned char)*c) || c[1] != '(') length = 0;
    }
}

static void read_headers(names *list)
{
    static char text[1 << 20];
    DIR *folder = opendir("include/etref");
    struct dirent *entry;
    ck_assert_msg(folder != NULL, "run from the project's folder");
    while ((entry = readdir(folder)) != NULL) {
        char path[600];
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "include/etref/%s", entry->d_name);
        FILE *file = fopen(path, "r");
        ck_assert_ptr_nonnull(file);
        text[fread(text, 1, sizeof text - 1, file)] = '\0';
        fclose(file);
        add_declared(list, text);
    }
    closedir(folder);
}

/* ---- what is defined ---- */

/* The names that `nm OPTIONS` lists of a file beside the tool. */
static void read_defined(names *list, const char *options, const char *file)
{
    const char *tool = getenv("ETREF_TOOL");
    if (tool == NULL) tool = "build/etref";
    char command[600], line[600];
    snprintf(command, sizeof command, "nm -P --defined-only %s '%.*s%s'", options,
             (int)(strrchr(tool, '/') + 1 - tool), tool, file);
    FILE *from = popen(command, "r");
    ck_assert_ptr_nonnull(from);
    while (fgets(line, sizeof line, from) != NULL) {
        char name[LONGEST], kind; /* "NAME KIND VALUE SIZE", and of an archive "FILE:" */
        if (sscanf(line, "%79s %c", name, &kind) == 2 && strncmp(name, "__", 2) != 0 &&
            name[0] != '.')
            add(list, name);
    }
    ck_assert_msg(pclose(from) == 0, "failed: %s", command);
}

START_TEST(the_shared_library_exports_what_is_declared)
{
    static names declared, exported;
    read_headers(&declared);
    read_defined(&exported, "-D", "libetref.so");
    ck_assert_uint_gt(declared.count, 100);
    for (size_t i = 0; i < declared.count; i++)
        ck_assert_msg(has(&exported, declared.at[i]), "%s is declared, and not exported",
                      declared.at[i]);
    for (size_t i = 0; i < exported.count; i++)
        ck_assert_msg(has(&declared, exported.at[i]), "%s is exported, and not declared",
                      exported.at[i]);
}
END_TEST

START_TEST(every_name_of_the_static_library_begins_with_et)
{
    static names defined;
    read_defined(&defined, "-g", "libetref.a");
    ck_assert_uint_gt(defined.count, 100);
    for (size_t i = 0; i < defined.count; i++)
        ck_assert_msg(strncmp(defined.at[i], "et_", 3) == 0, "%s does not begin with et_",
                      defined.at[i]);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("exports");
    TCase *names_case = add_case(suite, "names");
    tcase_add_test(names_case, the_shared_library_exports_what_is_declared);
    tcase_add_test(names_case, every_name_of_the_static_library_begins_with_et);
    return run_suite(suite);
}
