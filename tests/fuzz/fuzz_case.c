/* fuzz_case.c: any bytes at all, taken for a case or an array of cases. For libFuzzer.
 *
 * Checked: a refusal says why, in one line, and touches nothing; an accepted case prints itself as
 * JSON that parses to the same bytes; a number in it is within its range, so that what is computed
 * from it cannot overflow; Jansson's memory is released and bounded by the input.
 */
#include "etref/case.h"
#include "ref/base/memory.h"
#include "tests/fuzz/fuzz.h"

#include <string.h>

/* Bytes per byte of input, and bytes in any case, that parsing may take. Jansson's dearest text is
 * '[': one character opens an array with room for eight values. */
enum { PER_BYTE = 128, ALWAYS = 1 << 16 };

static void check_sizes(const et_case *c)
{
    size_t product;
    /* cases that were read. NOLINTNEXTLINE(clang-analyzer-core.NullDereference) */
    require(c->tokens > 0 && c->d_model > 0 && c->d_expert > 0, "sizes are positive");
    require(c->tokens % c->micro_batches == 0, "micro-batches are equal");
    require(et_case_micro_tokens(c) % c->pool_tokens == 0, "pools are equal");
    require(et_size_mul(c->tokens, c->experts, &product), "N n fits");
    require(et_size_mul(c->experts, c->d_expert, &product) &&
                et_size_mul(product, c->d_model, &product) && et_size_mul(product, 8, &product),
            "the weights can be addressed");
    require(c->target_load <= c->pool_tokens, "k <= P");
    require(c->layer == ET_DENSE || (c->top_k <= c->experts && c->granularity <= c->experts),
            "K, G <= n");
    require(c->ema_decay >= 0 && c->ema_decay < 1, "0 <= beta < 1");
    require((c->shared_d_expert > 0) == c->shared, "a shared expert has a width");
}

static void check_accepted(const et_case *c)
{
    char *text;
    et_case again;
    et_error error = {""};
    check_sizes(c);
    require(et_case_print(&text, c, &error) == ET_OK, "an accepted case can be printed");
    require(et_case_parse(&again, text, strlen(text), "printed", &error) == ET_OK,
            "what is printed can be parsed");
    require(memcmp(c, &again, sizeof again) == 0, "parse(print(c)) is c");
    require(strchr(text, '\n') == NULL, "a case is printed on one line");
    free(text);
}

static void check_message(et_status status, const et_error *error)
{
    require(status == ET_OK || status == ET_EINVAL, "bytes can break rules, and do nothing worse");
    require((status == ET_OK) == (error->text[0] == '\0'), "a message if and only if refused");
    require(strpbrk(error->text, "\n\r\x1b") == NULL, "a message is one line of text");
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    const char *text = (const char *)bytes;
    size_t found = 0;
    et_case c, untouched, *cases = NULL;
    et_error error = {""}, again = {""};
    count_json();
    memset(&untouched, 0x5a, sizeof untouched);
    memcpy(&c, &untouched, sizeof c);

    et_status status = et_case_parse_all(&cases, &found, text, count, "input", &error);
    check_message(status, &error);
    require((status == ET_OK) == (cases != NULL), "a refused text leaves no cases");
    for (size_t i = 0; i < found; i++) check_accepted(&cases[i]);

    et_status alone = et_case_parse(&c, text, count, "input", &again);
    check_message(alone, &again);
    if (alone != ET_OK)
        require(memcmp(&c, &untouched, sizeof c) == 0, "a refused case leaves the struct alone");
    else
        require(found == 1 && memcmp(&c, cases, sizeof c) == 0, "one case is a text of one");
    free(cases);
    require(json_now == 0, "Jansson's memory is released");
    require(json_peak <= PER_BYTE * count + ALWAYS, "Jansson's memory is bounded by the input");
    return 0;
}
