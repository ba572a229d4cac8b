/* test_corpus.c: a file's bytes as tokens: what training draws, what is held out. See etref/corpus.h. */
#include "etref/corpus.h"
#include "tests/check_main.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* 100,000 bytes, of which the last 5,000 are held out: 'a' in front, then '0', '1', .. each a thousand times. */
enum { BYTES = 100000, HELD = BYTES / 20, LENGTH = 16, ROWS = 4 };

static char path[64];
static et_corpus corpus;

static void open_text(void)
{
    static char text[BYTES];
    memset(text, 'a', sizeof text);
    for (size_t i = 0; i < HELD; i++) text[BYTES - HELD + i] = (char)('0' + i / 1000);
    snprintf(path, sizeof path, "/tmp/etref-corpus-XXXXXX");
    FILE *file = fdopen(mkstemp(path), "w");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(text, 1, sizeof text, file), sizeof text);
    fclose(file);
    ck_assert_int_eq(et_corpus_open(&corpus, path, LENGTH, NULL), ET_OK);
}

static void close_text(void)
{
    et_corpus_close(&corpus);
    remove(path);
}

START_TEST(training_sees_nothing_that_is_held_out)
{
    int32_t tokens[ROWS * (LENGTH + 1)];
    for (uint64_t row = 0; row < 10000; row += ROWS) {
        ck_assert_int_eq(et_corpus_draw(&corpus, 1, row, ROWS, tokens, NULL), ET_OK);
        for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++)
            ck_assert_int_eq(tokens[i], 'a');
    }
}
END_TEST

START_TEST(few_batches_are_spread_over_all_that_is_held_out)
{
    int32_t tokens[ROWS * (LENGTH + 1)];
    ck_assert_uint_eq(et_corpus_held(&corpus), (HELD - 1) / LENGTH);
    for (size_t batch = 0; batch < 5; batch++) {
        size_t first = et_corpus_spread(&corpus, ROWS, batch, 5);
        ck_assert_uint_le(first + ROWS, et_corpus_held(&corpus));
        ck_assert_int_eq(et_corpus_read_held(&corpus, first, ROWS, tokens, NULL), ET_OK);
        ck_assert_int_ge(tokens[LENGTH], '0' + (int)batch - (batch > 0));
        ck_assert_int_le(tokens[LENGTH], '0' + (int)batch);
    }
    /* all of them: each once; more than there are of one batch: from the beginning */
    size_t all = et_corpus_held(&corpus) / ROWS;
    for (size_t batch = 0; batch < all; batch++)
        ck_assert_uint_eq(et_corpus_spread(&corpus, ROWS, batch, all), batch * ROWS);
    ck_assert_uint_eq(et_corpus_spread(&corpus, HELD, 0, 1), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("corpus");
    TCase *text = add_case(suite, "text");
    tcase_add_checked_fixture(text, open_text, close_text);
    tcase_add_test(text, training_sees_nothing_that_is_held_out);
    tcase_add_test(text, few_batches_are_spread_over_all_that_is_held_out);
    return run_suite(suite);
}
