/* test_kept_cases.c: the cases that the project keeps, those of the suites and of data/witness, are read, say what they
 * hunt, and are printed as they were.
 */
#include "etref/case.h"
#include "etref/safetensors.h"
#include "tests/check_main.h"
#include "tests/run_case.h"

#include <dirent.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static void data_path(char *path, size_t room, const char *rest)
{
    const char *folder = getenv("ETREF_DATA");
    int length = snprintf(path, room, "%s/%s", folder != NULL ? folder : "data", rest);
    ck_assert(length > 0 && (size_t)length < room);
}

/* Multiply-adds of a step: six products for each slot and for each token of the shared expert,
 * three for the router. An upper bound on the slots: what the rule can take. */
static double cost(const et_case *c)
{
    double N = (double)c->tokens, d = (double)c->d_model, h = (double)c->d_expert;
    double n = (double)c->experts, pools = N / (double)c->pool_tokens;
    double most = c->layer == ET_DENSE          ? N
                  : c->rule == ET_TC            ? N * (double)c->top_k
                  : et_case_routes_by_choice(c) ? pools * n * (double)c->target_load
                                                : N * n;
    return 6 * most * d * h + 6 * N * d * (double)c->shared_d_expert + 3 * N * d * n;
}

START_TEST(every_case_of_the_suites_parses_and_prints)
{
    static const struct {
        const char *file;
        size_t least;
        double most_cost;
    } suites[] = {{"smoke.json", 6, 1e6}, {"core.json", 70, 1e8}, {"paper.json", 8, 1e13},
                  {"modern.json", 10, 1e6}, {"parallel.json", 10, 1e6}, {"real.json", 6, 1e8}};
    static char names[1000][64];
    size_t known = 0;
    for (size_t s = 0; s < COUNT(suites); s++) {
        size_t count = 0;
        et_case *cases = read_suite(suites[s].file, &count);
        ck_assert_uint_ge(count, suites[s].least);
        for (size_t i = 0; i < count; i++) {
            et_case c = cases[i];
            check_round_trip(&c);
            ck_assert_msg(c.hunts[0] != '\0', "case '%s' does not say what it hunts", c.name);
            ck_assert_msg(cost(&c) <= suites[s].most_cost, "case '%s' is too expensive", c.name);
            ck_assert_msg(c.input.source != ET_INPUT_NONE, "case '%s' has no input", c.name);
            for (size_t k = 0; k < known; k++) ck_assert_str_ne(names[k], c.name);
            ck_assert_uint_lt(known, COUNT(names));
            memcpy(names[known++], c.name, sizeof c.name);
        }
        free(cases);
    }
}
END_TEST

START_TEST(every_witness_case_parses_and_prints)
{
    char folder[4096], path[8192];
    size_t files = 0;
    data_path(folder, sizeof folder, "witness");
    DIR *open_folder = opendir(folder);
    ck_assert_ptr_nonnull(open_folder);
    for (struct dirent *entry; (entry = readdir(open_folder)) != NULL;) {
        et_tensor_file file;
        et_error error = {""};
        et_case c;
        bool of_model = strncmp(entry->d_name, "gpt-", 4) == 0; /* no bundles: test_gpt.c */
        if (strstr(entry->d_name, ".safetensors") == NULL || of_model) continue;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        ck_assert_msg(et_tensor_file_open(&file, path, &error) == ET_OK, "%s", error.text);
        const char *json = et_tensor_file_metadata(&file, "case");
        ck_assert_msg(json != NULL, "%s has no case", path);
        ck_assert_msg(et_case_parse(&c, json, strlen(json), path, &error) == ET_OK, "%s",
                      error.text);
        ck_assert(c.input.source == ET_INPUT_NONE);
        check_round_trip(&c);
        et_tensor_file_close(&file);
        files++;
    }
    closedir(open_folder);
    ck_assert_uint_ge(files, 50);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("kept cases");
    TCase *tests = add_case(suite, "kept cases");
    tcase_add_test(tests, every_case_of_the_suites_parses_and_prints);
    tcase_add_test(tests, every_witness_case_parses_and_prints);
    return run_suite(suite);
}
