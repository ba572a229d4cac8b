/* fuzz_candidate.c: any bytes at all, taken for what a kernel computed, as `etref verify GOLDEN FILE`
 * takes them. For libFuzzer.
 *
 * The golden is one small layer, computed once. What can be read is judged: hostile masks, offsets
 * and infinities must not make the verdict crash or index beyond an array. A refusal says why.
 */
#include "etref/etref.h"
#include "tests/fuzz/fuzz.h"

#include <string.h>

enum { LIMIT = 1 << 20 }; /* bytes that a candidate, and then its verdict, may take */

static const char golden_case[] =
    "{\"name\": \"g\", \"rule\": \"tc\", \"top_k\": 2, \"tokens\": 6, \"d_model\": 2, "
    "\"d_expert\": 3, "
    "\"experts\": 3, \"balance\": \"aux\", \"input\": {\"source\": \"normal\"}}";

static const et_step *golden_step(void)
{
    static et_step golden;
    et_case c;
    if (golden.c.tokens > 0) return &golden;
    require(et_case_parse(&c, golden_case, strlen(golden_case), "golden", NULL) == ET_OK &&
                et_step_create(&golden, &c, 0, NULL) == ET_OK &&
                et_step_draw_inputs(&golden, NULL) == ET_OK,
            "the golden's inputs");
    golden.block = 4;
    require(et_step_run(&golden, ET_PLAIN, NULL, NULL, NULL) == ET_OK, "the golden");
    return &golden;
}

static void check_message(et_status status, const et_error *error)
{
    require((status == ET_OK) == (error->text[0] == '\0'), "a message if and only if refused");
    require(strpbrk(error->text, "\n\r\x1b") == NULL, "a message is one line of text");
}

static void judge(const et_step *golden, const et_candidate *c)
{
    const et_verify_options options = {
        .profile = et_profile_find("bf16"), .explain = true, .max_bytes = LIMIT};
    et_verdict verdict;
    et_error error = {""};
    et_status status = et_verify(&verdict, golden, c->tensors, c->count, &options, &error);
    check_message(status, &error);
    if (status != ET_OK) return;
    require(verdict.line[0] != '\0', "a verdict has a line");
    et_verdict_free(&verdict);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    char path[64];
    et_tensor_file file;
    et_candidate candidate;
    et_error error = {""};
    const et_step *golden = golden_step();
    int descriptor = file_of(bytes, count, path);
    if (et_tensor_file_open(&file, path, NULL) == ET_OK) {
        et_status status = et_candidate_read(&candidate, &file, golden, NULL, 0, LIMIT, &error);
        check_message(status, &error);
        require(candidate.bytes <= LIMIT, "the candidate keeps to its limit");
        if (status == ET_OK) {
            require(candidate.count > 0, "a candidate holds something");
            judge(golden, &candidate);
            et_candidate_free(&candidate);
        }
        et_tensor_file_close(&file);
    }
    close(descriptor);
    return 0;
}
