/* named_cases.c: finding cases. See named_cases.h. */
#include "tools/etref/named_cases.h"
#include "etref/capture.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* tests/inconclusive.h has them, too, and is held against et_find_conclusive. */
const char *suite_remark(const char *name)
{
    static const char *const cancelled[] = {"all-on-one-tc", "all-on-one-aux", "all-experts-et",
                                            "sigmoid-saturated-ec", "capacity-upper-et", "ep-hot-tc"};
    for (size_t i = 0; i < sizeof cancelled / sizeof *cancelled; i++)
        if (strcmp(name, cancelled[i]) == 0)
            return "bwd.logits is below its noise: inconclusive if required";
    return "";
}

enum { MAX_TEXT = 1 << 20 }; /* et_case_parse_all's limit */

void case_list_free(case_list *list)
{
    free(list->at);
    *list = (case_list){0};
}

static void case_list_append(case_list *list, const et_case *cases, size_t count)
{
    et_case *grown = allocate(list->count + count, sizeof *grown);
    if (list->count > 0) memcpy(grown, list->at, list->count * sizeof *grown);
    if (count > 0) memcpy(grown + list->count, cases, count * sizeof *grown);
    free(list->at);
    list->at = grown;
    list->count += count;
}

/* ---- settings: field=value ---- */

/* Sets "a.b=value" in one case. The value is JSON where it parses as JSON, else a word. */
static et_status set_field(json_t *object, const char *setting, et_error *error)
{
    char path[128];
    size_t width = strcspn(setting, "=");
    if (setting[width] == '\0' || width == 0 || width >= sizeof path)
        return et_fail(error, ET_EINVAL, "--set %s: field=value belongs here", setting);
    snprintf(path, sizeof path, "%.*s", (int)width, setting);
    json_t *value = json_loads(setting + width + 1, JSON_DECODE_ANY, NULL);
    if (value == NULL) value = json_string(setting + width + 1);
    char *field = path, *dot = strchr(path, '.');
    if (dot) {
        *dot = '\0';
        field = dot + 1;
        if (json_object_get(object, path) == NULL) json_object_set_new(object, path, json_object());
        object = json_object_get(object, path);
    }
    if (json_object_set_new(object, field, value) != 0)
        return et_fail(error, ET_EINVAL, "--set %s: cannot be set", setting);
    return ET_OK;
}

static et_status set_fields(json_t *object, const word_list *settings, et_error *error)
{
    et_status status = ET_OK;
    for (size_t i = 0; i < settings->count && status == ET_OK; i++)
        status = set_field(object, settings->at[i], error);
    return status;
}

/* The text with every case changed, allocated by Jansson. */
static et_status apply_settings(char **out, const char *json, size_t length, const char *where,
                                const word_list *settings, et_error *error)
{
    json_error_t problem;
    json_t *root = json_loadb(json, length, JSON_REJECT_DUPLICATES, &problem), *item;
    if (root == NULL)
        return et_fail(error, ET_EINVAL, "%s: line %d: %s", where, problem.line, problem.text);
    et_status status = ET_OK;
    size_t i;
    if (json_is_object(root)) status = set_fields(root, settings, error);
    json_array_foreach(root, i, item)
    {
        if (status == ET_OK) status = set_fields(item, settings, error);
    }
    if (status == ET_OK && (*out = json_dumps(root, JSON_REAL_PRECISION(17))) == NULL)
        status = et_fail(error, ET_ENOMEM, "%s: no memory", where);
    json_decref(root);
    return status;
}

/* ---- texts, suites, files ---- */

static et_status add_parsed(case_list *list, const char *json, size_t length, const char *where,
                            const char *file, et_error *error)
{
    et_case *cases = NULL;
    size_t count = 0;
    et_status status = et_capture_cases(&cases, &count, json, length, where, file, error);
    if (status == ET_OK) case_list_append(list, cases, count);
    free(cases);
    return status;
}

et_status case_list_add_text(case_list *list, const char *json, size_t length, const char *where,
                             const char *file, const word_list *settings, et_error *error)
{
    char *changed = NULL;
    if (settings == NULL || settings->count == 0)
        return add_parsed(list, json, length, where, file, error);
    et_status status = apply_settings(&changed, json, length, where, settings, error);
    if (status == ET_OK) status = add_parsed(list, changed, strlen(changed), where, file, error);
    free(changed);
    return status;
}

et_status case_list_add_suite(case_list *list, const char *name, const word_list *settings,
                              et_error *error)
{
    const et_suite *s = et_suite_find(name);
    if (s == NULL)
        return et_fail(error, ET_EINVAL,
                       "--suite %s: no such suite; 'etref list suites' names them", name);
    return case_list_add_text(list, s->json, strlen(s->json), s->name, NULL, settings, error);
}

static et_status add_file(case_list *list, const char *path, const word_list *settings,
                          et_error *error)
{
    char *text = NULL;
    size_t length = 0;
    et_status status = read_text(path, MAX_TEXT, "a text of cases", &text, &length, error);
    if (status == ET_OK) status = case_list_add_text(list, text, length, path, path, settings, error);
    free(text);
    return status;
}

/* ---- one built-in case ---- */

/* All built-in cases, and in `found`, `index` the place of the one with this name. Parsing them all
 * takes well under a millisecond. */
static et_status find_built_in(const char *name, case_list *all, const et_suite **found,
                               size_t *index, et_error *error)
{
    et_status status = ET_OK;
    for (size_t n = 0; et_suite_at(n) && status == ET_OK; n++) {
        const et_suite *s = et_suite_at(n);
        size_t first = all->count;
        status = case_list_add_suite(all, s->name, NULL, error);
        for (size_t i = first; i < all->count && status == ET_OK; i++) {
            if (strcmp(all->at[i].name, name) != 0) continue;
            *found = s;
            *index = i - first;
        }
    }
    return status;
}

/* Settings change the text before it is parsed, so one case is cut out of its suite's text. */
static et_status add_nth(case_list *list, const et_suite *s, size_t index,
                         const word_list *settings, et_error *error)
{
    json_t *root = json_loadb(s->json, strlen(s->json), 0, NULL);
    json_t *item = json_is_array(root) ? json_array_get(root, index) : root;
    char *text = item ? json_dumps(item, JSON_REAL_PRECISION(17)) : NULL;
    et_status status = text ? case_list_add_text(list, text, strlen(text), s->name, NULL, settings,
                                                error)
                            : et_fail(error, ET_ENOMEM, "%s: no memory", s->name);
    free(text);
    json_decref(root);
    return status;
}

static et_status fail_no_case(const char *word, const case_list *all, et_error *error)
{
    word_list names = {0};
    for (size_t i = 0; i < all->count; i++) word_list_add(&names, all->at[i].name);
    word_list_add(&names, NULL);
    const char *near = nearest_word(word, names.at);
    et_status status = et_fail(error, ET_EINVAL,
                               "--case %s: neither a file nor a built-in case; %s%s'etref list' "
                               "names them",
                               word, near ? near : "", near ? " is near; " : "");
    word_list_free(&names);
    return status;
}

static bool looks_like_file(const char *word)
{
    size_t length = strlen(word);
    return strchr(word, '/') || strcmp(word, "-") == 0 ||
           (length > 5 && strcmp(word + length - 5, ".json") == 0);
}

et_status case_list_add(case_list *list, const char *word, const word_list *settings,
                        et_error *error)
{
    if (looks_like_file(word)) return add_file(list, word, settings, error);
    case_list all = {0};
    const et_suite *found = NULL;
    size_t index = 0;
    et_status status = find_built_in(word, &all, &found, &index, error);
    if (status == ET_OK && found)
        status = add_nth(list, found, index, settings, error);
    else if (status == ET_OK && access(word, F_OK) == 0)
        status = add_file(list, word, settings, error);
    else if (status == ET_OK)
        status = fail_no_case(word, &all, error);
    case_list_free(&all);
    return status;
}
