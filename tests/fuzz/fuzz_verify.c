/* fuzz_verify.c: a small layer of any kind and a candidate for it, drawn from the input's bytes; judged
 * and explained. For libFuzzer. What is drawn, and what must hold, stands in verdicts.h.
 */
#include "tests/fuzz/verdicts.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    const char *wrong = try_verdict(bytes, count, NULL);
    require(wrong == NULL, wrong);
    return 0;
}
