/* fuzz_profile.c: any bytes at all, taken for a precision profile. For libFuzzer.
 *
 * Checked: a refusal says why, in one line, and touches nothing; an accepted profile is one that
 * et_profile_check accepts, and prints itself as JSON that parses to the same; Jansson's memory is
 * released and bounded by the input.
 */
#include "etref/profile.h"
#include "tests/fuzz/fuzz.h"

#include <string.h>

/* Bytes per byte of input, and bytes in any case, that parsing may take: as for a case. */
enum { PER_BYTE = 128, ALWAYS = 1 << 16 };

static void check_accepted(const et_profile *p)
{
    char *text;
    et_profile again;
    et_error error = {""};
    require(et_profile_check(p, &error) == ET_OK, "an accepted profile is legal");
    require(et_profile_print(&text, p, &error) == ET_OK, "an accepted profile can be printed");
    require(et_profile_parse(&again, text, strlen(text), "printed", &error) == ET_OK,
            "what is printed can be parsed");
    require(memcmp(p->name, again.name, sizeof p->name) == 0 &&
                memcmp(p->bits, again.bits, sizeof p->bits) == 0 &&
                p->exponent_bits == again.exponent_bits && p->ftz == again.ftz &&
                p->truncate_operands == again.truncate_operands &&
                p->truncate_accumulator == again.truncate_accumulator,
            "parse(print(p)) is p");
    require(strchr(text, '\n') == NULL, "a profile is printed on one line");
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    et_profile p, untouched;
    et_error error = {""};
    count_json();
    memset(&untouched, 0x5a, sizeof untouched);
    memcpy(&p, &untouched, sizeof p);
    et_status status = et_profile_parse(&p, (const char *)bytes, count, "input", &error);
    require(status == ET_OK || status == ET_EINVAL, "bytes can break rules, and do nothing worse");
    require((status == ET_OK) == (error.text[0] == '\0'), "a message if and only if refused");
    require(strpbrk(error.text, "\n\r\x1b") == NULL, "a message is one line of text");
    if (status == ET_OK)
        check_accepted(&p);
    else
        require(memcmp(&p, &untouched, sizeof p) == 0, "a refused profile leaves the struct alone");
    require(json_now == 0, "Jansson's memory is released");
    require(json_peak <= PER_BYTE * count + ALWAYS, "Jansson's memory is bounded by the input");
    return 0;
}
