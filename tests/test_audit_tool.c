/* test_audit_tool.c: `etref leakage audit`, run as a child process on bundles and on a kernel's files.
 *
 * The mathematics is tested in test_audit.c. The decisions of expert choice that some future changes have
 * a closed form, which is written down here again and compared.
 */
#include "etref/bundle.h"
#include "tests/leakage_output.h"

/* ---- bundles ---- */

#define SIZES  "\"tokens\": 64, \"d_model\": 6, \"d_expert\": 3, \"experts\": 4"
#define NORMAL "\"input\": {\"source\": \"normal\"}"

/* After 5000 steps the moving average is what it should be: some tokens pass, some do not. */
static const char *const cases =
    "[{\"name\": \"tc\", \"rule\": \"tc\", \"top_k\": 2, " SIZES ", " NORMAL "},"
    " {\"name\": \"biased\", \"rule\": \"tc\", \"micro_batches\": 2, \"balance\": \"lossfree\", "
    "  " SIZES ", " NORMAL "},"
    " {\"name\": \"et\", \"rule\": \"et\", \"ema_updates\": 5000, " SIZES ", " NORMAL "},"
    " {\"name\": \"capacity\", \"rule\": \"et\", \"ema_updates\": 5000, \"capacity_factor\": 0.25,"
    "  " SIZES ", " NORMAL "},"
    " {\"name\": \"ec\", \"rule\": \"ec\", \"pool_tokens\": 32, " SIZES ", " NORMAL "},"
    " {\"name\": \"warm\", \"rule\": \"et\", \"warmup_steps\": 9, " SIZES ", " NORMAL "},"
    " {\"name\": \"eval\", \"rule\": \"ec\", \"mode\": \"eval\", \"ema_updates\": 5000, " SIZES
    ", " NORMAL "},"
    " {\"name\": \"column\", \"rule\": \"et\", \"ema_updates\": 5000, \"gate\": "
    "\"softmax_tokens\", " SIZES ", " NORMAL "},"
    " {\"name\": \"ffn\", \"layer\": \"dense\", \"tokens\": 7, \"d_model\": 6, \"d_expert\": 5, "
    "  " NORMAL "},"
    " {\"name\": \"single\", \"rule\": \"ec\", \"mode\": \"eval\", \"tokens\": 1, \"d_model\": 6, "
    "  \"d_expert\": 5, \"experts\": 4, \"ema_updates\": 9, " NORMAL "}]";

static void make_bundles(void)
{
    make_folder();
    write_text("cases.json", cases);
    write_text("prose.txt", PROSE);
    int status = RUN("generate", "--case", in_folder("cases.json"), "--out", folder);
    ck_assert_msg(status == 0, "%s", errors);
}

static const char *bundle(const char *name)
{
    char file[128];
    snprintf(file, sizeof file, "%s.safetensors", name);
    return in_folder(file);
}

static const json_t *future_of(const json_t *rule, const char *name)
{
    const json_t *futures = json_object_get(rule, "futures");
    for (size_t i = 0; i < json_array_size(futures); i++)
        if (strcmp(word(json_array_get(futures, i), "future"), name) == 0)
            return json_array_get(futures, i);
    ck_abort_msg("no future %s", name);
    return NULL;
}

/* The sum over the rows of positions is the total. */
static void check_positions(const json_t *counts, json_int_t batch)
{
    const json_t *rows = json_object_get(counts, "positions");
    json_int_t compared = 0, changed = 0, next = 0;
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        ck_assert_int_eq(whole(row, "first"), next);
        next = whole(row, "last") + 1;
        compared += whole(row, "compared");
        changed += whole(row, "changed");
    }
    ck_assert_int_eq(next, batch);
    ck_assert_int_eq(compared, whole(counts, "compared"));
    ck_assert_int_eq(changed, whole(counts, "changed"));
}

/* Of t kept tokens of a pool of U, min(k,t) - max(k - (U-t), 0) decisions are open. */
static json_int_t open_decisions(const json_t *rule, json_int_t pools)
{
    const json_t *kept = json_object_get(rule, "kept");
    json_int_t U = whole(rule, "batch"), k = whole(rule, "select"), sum = 0;
    for (size_t i = 0; i < json_array_size(kept); i++) {
        json_int_t t = json_integer_value(json_array_get(kept, i)), F = U - t;
        sum += (k < t ? k : t) - (k > F ? k - F : 0);
    }
    return 4 * pools * sum; /* 4 experts */
}

static json_t *audit_json(const char *name, int status)
{
    json_t *report = leakage_json(LEAKAGE("audit", bundle(name), "--text", in_folder("prose.txt"),
                                          "--all-rules", "--format=json"),
                                  status);
    ck_assert_str_eq(word(report, "verdict"), status == 0 ? "causal" : "leaks");
    return report;
}

START_TEST(causal_bundles_never_change)
{
    static const char *const names[] = {"tc", "biased", "et", "eval", "column"};
    static const char *const futures[] = {"noise", "text", "adversary"};
    for (size_t i = 0; i < COUNT(names); i++) {
        json_t *report = audit_json(names[i], 0);
        const json_t *own = json_array_get(json_object_get(report, "rules"), 0);
        ck_assert(json_is_true(json_object_get(own, "own")));
        ck_assert(json_is_true(json_object_get(own, "causal")));
        for (size_t f = 0; f < COUNT(futures); f++) {
            const json_t *counts = future_of(own, futures[f]);
            ck_assert_int_eq(whole(counts, "changed"), 0);
            ck_assert_int_gt(whole(counts, "taken"), 0);
            ck_assert_int_gt(whole(counts, "compared"), whole(counts, "taken"));
            check_positions(counts, whole(own, "batch"));
        }
        bool column =
            strcmp(names[i], "column") == 0; /* its gates are not causal, and it says so */
        ck_assert_int_eq(json_is_true(json_object_get(report, "gates_causal")), !column);
        json_decref(report);
        ck_assert_int_eq(LEAKAGE("audit", bundle(names[i])), 0);
        ck_assert_int_eq(strstr(output, "softmax_tokens normalises") != NULL, column);
        ck_assert_int_eq(strncmp(last_line(output), "CAUSAL ", 7), 0);
    }
}
END_TEST

START_TEST(leaking_bundles_are_found)
{
    static const char *const names[] = {"ec", "warm", "capacity"};
    for (size_t i = 0; i < COUNT(names); i++) {
        json_t *report = audit_json(names[i], 1);
        const json_t *own = json_array_get(json_object_get(report, "rules"), 0);
        const json_t *any = future_of(own, "adversary");
        ck_assert(json_is_false(json_object_get(own, "causal")));
        ck_assert_int_gt(whole(any, "changed"), 0);
        ck_assert(number(future_of(own, "noise"), "share") <= number(any, "share"));
        ck_assert(number(future_of(own, "text"), "share") <= number(any, "share"));
        check_positions(any, whole(own, "batch"));
        check_positions(future_of(own, "noise"), whole(own, "batch"));
        json_decref(report);
        ck_assert_int_eq(LEAKAGE("audit", bundle(names[i]), "--bands=4", "--threads=2"), 1);
        has("changed, by the token's place in its batch");
        ck_assert_int_eq(strncmp(last_line(output), "LEAKS ", 6), 0);
    }
}
END_TEST

/* On one bundle's scores: each rule's verdict, and expert choice's closed form, by falling pool. */
START_TEST(every_rule_by_falling_batch)
{
    json_t *report = audit_json("et", 0);
    const json_t *rules = json_object_get(report, "rules");
    json_int_t pool = 256;
    size_t choices = 0, clamped = 0;
    for (size_t i = 0; i < json_array_size(rules); i++) {
        const json_t *rule = json_array_get(rules, i), *any = future_of(rule, "adversary");
        bool choice = strcmp(word(rule, "rule"), "ec") == 0;
        bool causal =
            strcmp(word(rule, "rule"), "tc") == 0 || strcmp(word(rule, "rule"), "et") == 0;
        ck_assert_int_eq(json_is_true(json_object_get(rule, "causal")), causal);
        ck_assert_int_eq(whole(any, "changed") == 0, causal);
        clamped += !choice && !causal;
        if (!choice) continue;
        choices++;
        pool = whole(rule, "batch");
        ck_assert_int_eq(whole(rule, "select"), pool / 4);
        ck_assert_int_eq(whole(any, "changed"), open_decisions(rule, 64 / pool));
    }
    ck_assert_uint_eq(choices, 3); /* 64, 16, 4 */
    ck_assert_uint_eq(clamped, 3);
    ck_assert_int_eq(pool, 4);
    json_decref(report);
    ck_assert_int_eq(LEAKAGE("audit", bundle("et"), "--all-rules", "--future=adversary"), 0);
    has("et (its own)");
}
END_TEST

START_TEST(one_future_at_a_time)
{
    json_t *report = leakage_json(LEAKAGE("audit", bundle("ec"), "--future=adversary", "--cuts=1",
                                          "--bands=2", "--format=json"),
                                  1);
    const json_t *own = json_array_get(json_object_get(report, "rules"), 0);
    ck_assert_uint_eq(json_array_size(json_object_get(own, "futures")), 1);
    ck_assert_uint_eq(json_array_size(json_object_get(own, "kept")), 1);
    /* two pools of 32, k = 8, cut in the middle: all of the 8 best kept ones are open */
    ck_assert_int_eq(whole(future_of(own, "adversary"), "changed"), 2 * 4 * 8);
    ck_assert_int_eq(whole(future_of(own, "adversary"), "compared"), 2 * 4 * 16);
    json_decref(report);
    ck_assert_int_eq(LEAKAGE("audit", bundle("et"), "--future=noise", "--draws=1"), 0);
    ck_assert_ptr_nonnull(strstr(last_line(output), "under the futures tried"));
}
END_TEST

START_TEST(nothing_to_audit_is_inconclusive)
{
    static const char *const names[] = {"ffn", "single"};
    for (size_t i = 0; i < COUNT(names); i++) {
        ck_assert_int_eq(LEAKAGE("audit", bundle(names[i])), 3);
        ck_assert_int_eq(strncmp(last_line(output), "INCONCLUSIVE ", 13), 0);
        json_t *report = leakage_json(LEAKAGE("audit", bundle(names[i]), "--format=json"), 3);
        ck_assert_str_eq(word(report, "verdict"), "inconclusive");
        json_decref(report);
    }
}
END_TEST

/* ---- two files ---- */

/* Writes in.x of one bundle and a mask [64,4] as somebody's kernel would, in F32 and I32. */
static void write_kernel(const char *name, const uint8_t *mask)
{
    int32_t values[64 * 4];
    et_error error;
    for (size_t j = 0; j < COUNT(values); j++) values[j] = mask[j];
    const et_tensor_out out = {"route.mask", ET_I32, 2, {64, 4}, values, ET_FROM_I32};
    ck_assert_msg(et_tensor_file_write(in_folder(name), &out, 1, NULL, &error) == ET_OK, "%s",
                  error.text);
}

static void read_mask(const char *name, uint8_t mask[64 * 4])
{
    double values[64 * 4];
    et_tensor_file file;
    ck_assert_int_eq(et_tensor_file_open(&file, bundle(name), NULL), ET_OK);
    const et_tensor_info *t = et_tensor_file_find(&file, "route.mask");
    ck_assert_uint_eq(t->count, COUNT(values));
    ck_assert_int_eq(et_tensor_file_read(&file, t, 0, t->count, values, NULL), ET_OK);
    for (size_t j = 0; j < COUNT(values); j++) mask[j] = values[j] != 0;
    et_tensor_file_close(&file);
}

/* NAME-other: the same case, the same first 23 tokens, and 41 others from the prose. */
static void make_twin(const char *name)
{
    char twin[64];
    snprintf(twin, sizeof twin, "%s-other", name);
    int status = LEAKAGE("audit", bundle(name), "--future=text", "--text", in_folder("prose.txt"),
                         "--twin", bundle(twin), "--cut=23");
    ck_assert_msg(status == 0, "%s", errors);
}

START_TEST(a_golden_and_its_twin)
{
    static const struct {
        const char *name, *other;
        bool leaks;
    } pairs[] = {{"tc", "tc-other", false},
                 {"et", "et-other", false},
                 {"capacity", "capacity-other", true},
                 {"ec", "ec-other", true}};
    for (size_t i = 0; i < COUNT(pairs); i++) {
        const char *verdict = pairs[i].leaks ? "leaks" : "causal";
        make_twin(pairs[i].name);
        ck_assert_int_eq(RUN("verify", "--quiet", bundle(pairs[i].other)), 0);
        json_t *report = leakage_json(
            LEAKAGE("audit", bundle(pairs[i].name), bundle(pairs[i].other), "--format=json"),
            pairs[i].leaks);
        ck_assert_str_eq(word(report, "verdict"), verdict);
        ck_assert_int_eq(whole(report, "tokens"), 64);
        ck_assert_int_eq(whole(report, "shared"), 23);
        ck_assert_int_eq(whole(report, "compared"), 23 * 4);
        ck_assert_int_eq(whole(report, "changed") > 0, pairs[i].leaks);
        check_positions(report, 23);
        json_decref(report);
        ck_assert_int_eq(LEAKAGE("audit", bundle(pairs[i].name), bundle(pairs[i].other)),
                         pairs[i].leaks);
    }
}
END_TEST

/* The twin is a golden already; generate makes the same one of its inputs. */
START_TEST(a_twin_is_generated_again)
{
    uint8_t mask[64 * 4], again[64 * 4];
    ck_assert_int_eq(
        LEAKAGE("audit", bundle("ec"), "--future=noise", "--twin", bundle("other"), "--cut=23"), 0);
    ck_assert_msg(RUN("generate", "--inputs", bundle("other"), "--out", folder) == 0, "%s", errors);
    read_mask("other", mask);
    read_mask("ec-twin-23", again);
    ck_assert_int_eq(memcmp(mask, again, sizeof mask), 0);
    ck_assert_int_eq(LEAKAGE("audit", bundle("other"), bundle("ec-twin-23")), 3); /* no future */
}
END_TEST

START_TEST(a_kernels_files)
{
    uint8_t mask[64 * 4];
    make_twin("tc");
    char *a = strdup(bundle("tc")), *b = strdup(bundle("tc-other"));
    read_mask("tc", mask);
    write_kernel("a", mask);
    mask[23 * 4 + 1] ^= 1; /* the first token that is not shared */
    write_kernel("b", mask);
    ck_assert_int_eq(LEAKAGE("audit", a, b, in_folder("a"), in_folder("b")), 0);
    mask[22 * 4 + 2] ^= 1; /* the last that is */
    write_kernel("b", mask);
    ck_assert_int_eq(LEAKAGE("audit", a, b, in_folder("a"), in_folder("b")), 1);
    has("token 22, expert 2");
    json_t *report =
        leakage_json(LEAKAGE("audit", a, b, in_folder("a"), in_folder("b"), "--format=json"), 1);
    const json_t *place = json_array_get(json_object_get(report, "first"), 0);
    ck_assert_int_eq(whole(report, "changed"), 1);
    ck_assert_int_eq(whole(place, "token"), 22);
    ck_assert_int_eq(whole(place, "expert"), 2);
    json_decref(report);
    /* the same tokens twice, and other decisions: not the future's doing, but no pass either */
    ck_assert_int_eq(LEAKAGE("audit", a, a, in_folder("a"), in_folder("b")), 1);
    has("not repeatable");
    free(a);
    free(b);
}
END_TEST

/* What one batch of EC does not see of the other proves nothing. */
START_TEST(a_cut_between_pools_is_inconclusive)
{
    make_twin("ec");
    char *a = strdup(bundle("ec")), *b = strdup(bundle("ec-other"));
    expect_failure(LEAKAGE("audit", a, "--twin", in_folder("x"), "--cut=32"), 2,
                   "between two batches of 32 tokens");
    ck_assert_int_eq(LEAKAGE("audit", a, "--future=noise", "--twin", b, "--cut=33"), 0);
    json_t *report = leakage_json(LEAKAGE("audit", a, b, "--format=json"), 1);
    ck_assert_int_eq(whole(report, "batch"), 32);
    ck_assert_int_eq(whole(report, "tested"), 4);
    json_decref(report);
    /* the same case, and 32 tokens in common: the first pool, whole */
    static double x[2][64 * 6], mask[64 * 4];
    et_tensor_file file;
    et_error error;
    ck_assert_int_eq(et_tensor_file_open(&file, a, &error), ET_OK);
    const et_tensor_info *t = et_tensor_file_find(&file, "in.x");
    ck_assert_int_eq(et_tensor_file_read(&file, t, 0, t->count, x[0], &error), ET_OK);
    memcpy(x[1], x[0], sizeof x[0]);
    x[1][32 * 6] += 1;
    mask[0] = 1;
    const char *const metadata[] = {"case", et_tensor_file_metadata(&file, "case"), NULL};
    static const char *const names[] = {"one", "other"};
    for (size_t i = 0; i < 2; i++) {
        const et_tensor_out out[] = {{"in.x", ET_F64, 2, {64, 6}, x[i], ET_FROM_F64},
                                     {"route.mask", ET_F64, 2, {64, 4}, mask, ET_FROM_F64}};
        ck_assert_int_eq(et_tensor_file_write(in_folder(names[i]), out, 2, metadata, &error),
                         ET_OK);
    }
    et_tensor_file_close(&file);
    ck_assert_int_eq(LEAKAGE("audit", in_folder("one"), in_folder("other")), 3);
    has("cut inside one");
    free(a);
    free(b);
}
END_TEST

/* Files in which nothing could ever differ, or that hold no decisions. */
START_TEST(a_kernels_strange_masks)
{
    double values[64 * 4] = {0};
    et_error error;
    const et_tensor_out mask = {"route.mask", ET_F64, 2, {64, 4}, values, ET_FROM_F64};
    const et_tensor_out few = {"route.mask", ET_F64, 2, {64, 3}, values, ET_FROM_F64};
    make_twin("ec");
    char *a = strdup(bundle("ec")), *b = strdup(bundle("ec-other"));
    const char *const names[] = {"k", "l"};
    for (size_t i = 0; i < 2; i++)
        ck_assert_int_eq(et_tensor_file_write(in_folder(names[i]), &mask, 1, NULL, &error), ET_OK);
    ck_assert_int_eq(LEAKAGE("audit", a, b, in_folder("k"), in_folder("l")), 3);
    has("nothing was decided");
    expect_failure(LEAKAGE("audit", a, b, in_folder("k"), in_folder("k")), 2, "are one file");
    ck_assert_int_eq(et_tensor_file_write(in_folder("few"), &few, 1, NULL, &error), ET_OK);
    ck_assert_int_eq(et_tensor_file_write(in_folder("few-2"), &few, 1, NULL, &error), ET_OK);
    expect_failure(LEAKAGE("audit", a, b, in_folder("few"), in_folder("few-2")), 2,
                   "decides on 3 experts");
    values[5] = 0.5;
    ck_assert_int_eq(et_tensor_file_write(in_folder("k"), &mask, 1, NULL, &error), ET_OK);
    expect_failure(LEAKAGE("audit", a, b, in_folder("k"), in_folder("l")), 2,
                   "route.mask is 0.5 at token 1, expert 1");
    free(a);
    free(b);
}
END_TEST

START_TEST(a_masks_column_is_encoded)
{
    uint8_t mask[64 * 4];
    char column[65] = "";
    read_mask("ec", mask);
    for (size_t t = 0; t < 64; t++) column[t] = mask[t * 4 + 3] ? '1' : '0';
    ck_assert_int_eq(LEAKAGE("encode", "--mask", bundle("ec"), "--expert=3", "--quiet"), 0);
    ck_assert_int_eq(LEAKAGE("decode", last_line(output)), 0);
    ck_assert_str_eq(last_line(output), column);
    expect_failure(LEAKAGE("encode", "--mask", bundle("ec"), "--expert=4"), 2, "experts 0 to 3");
    expect_failure(LEAKAGE("encode", "--mask", bundle("ffn"), "--expert=0"), 2, "no route.mask");
}
END_TEST

START_TEST(audit_refuses)
{
    char *ec = strdup(bundle("ec"));
    write_text("empty", "");
    expect_failure(LEAKAGE("audit"), 2, "no bundle given");
    expect_failure(LEAKAGE("audit", "nosuch"), 2, "nosuch: cannot open");
    expect_failure(LEAKAGE("audit", in_folder("prose.txt")), 2, "not a safetensors file");
    expect_failure(LEAKAGE("audit", ec, ec, ec), 2, "one bundle, two");
    expect_failure(LEAKAGE("audit", ec, bundle("single")), 2, "in.x is [64,6] in ");
    expect_failure(LEAKAGE("audit", ec, ec, ec, bundle("single")), 2, "route.mask is [64,4] in ");
    expect_failure(LEAKAGE("audit", ec, ec, bundle("single"), bundle("single")), 2,
                   "has 64 tokens");
    expect_failure(LEAKAGE("audit", bundle("ffn"), bundle("ffn")), 2, "has no route.mask");
    expect_failure(LEAKAGE("audit", ec, bundle("tc")), 2, "different cases");
    expect_failure(LEAKAGE("audit", ec, ec, "--cuts=3"), 2, "--bands and --format");
    expect_failure(LEAKAGE("audit", ec, "--future", "past"), 2, "noise|text|adversary");
    expect_failure(LEAKAGE("audit", ec, "--cuts", "0"), 2, "--cuts 0");
    expect_failure(LEAKAGE("audit", ec, "--cuts", "5000"), 2, "at most 4096");
    expect_failure(LEAKAGE("audit", ec, "--draws", "5000"), 2, "at most 4096");
    expect_failure(LEAKAGE("audit", ec, "--text", "nosuch"), 2, "--text nosuch: No such file");
    expect_failure(LEAKAGE("audit", ec, "--text", folder), 2, "not a regular file");
    expect_failure(LEAKAGE("audit", ec, "--text", in_folder("empty")), 2, "empty");
    expect_failure(LEAKAGE("audit", ec, "--text", in_folder("prose.txt"), "--future=noise"), 2,
                   "--text is about");
    expect_failure(LEAKAGE("audit", ec, "--cut", "3"), 2, "belong together");
    expect_failure(LEAKAGE("audit", ec, "--twin", "x"), 2, "belong together");
    expect_failure(LEAKAGE("audit", ec, "--twin", "x", "--cut=64"), 2, "64 tokens; fewer");
    expect_failure(LEAKAGE("audit", ec, "--twin", "x", "--cut=9", "--future=adversary"), 2,
                   "writes tokens");
    expect_failure(LEAKAGE("audit", ec, "--twin", "x", "--cut=9", "--format=json"), 2,
                   "audits nothing");
    expect_failure(LEAKAGE("audit", ec, "--twin", ec, "--cut=9"), 2, "the bundle itself");
    expect_failure(LEAKAGE("audit", ec, "--twin", in_folder("no/x"), "--cut=9"), 2, "folder");
    expect_failure(LEAKAGE("audit", bundle("ffn"), "--twin", "x", "--cut=3"), 2, "dense");
    ck_assert_int_eq(access("x", F_OK), -1);
    free(ec);
}
END_TEST

/* A bundle whose mask is not what its case makes of its scores is not audited as if it were. */
START_TEST(a_mask_that_is_not_the_rules_is_refused)
{
    const char *name = bundle("ec");
    et_tensor_file file;
    uint64_t header; /* its length is the file's first eight bytes; the data follow it */
    ck_assert_int_eq(et_tensor_file_open(&file, name, NULL), ET_OK);
    uint64_t offset = et_tensor_file_find(&file, "route.mask")->offset;
    et_tensor_file_close(&file);
    FILE *bytes = fopen(name, "r+b");
    ck_assert_uint_eq(fread(&header, sizeof header, 1, bytes), 1);
    long at = (long)(8 + header + offset);
    ck_assert_int_eq(fseek(bytes, at, SEEK_SET), 0);
    int byte = fgetc(bytes);
    ck_assert_int_eq(fseek(bytes, at, SEEK_SET), 0);
    fputc(byte == 0 ? 1 : 0, bytes);
    fclose(bytes);
    expect_failure(LEAKAGE("audit", name), 2, "1 decisions; 'etref verify' says where");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("audit tool");
    TCase *audits = add_case(suite, "audit");
    tcase_add_checked_fixture(audits, make_bundles, remove_all);
    tcase_add_test(audits, causal_bundles_never_change);
    tcase_add_test(audits, leaking_bundles_are_found);
    tcase_add_test(audits, every_rule_by_falling_batch);
    tcase_add_test(audits, one_future_at_a_time);
    tcase_add_test(audits, nothing_to_audit_is_inconclusive);
    tcase_add_test(audits, a_golden_and_its_twin);
    tcase_add_test(audits, a_twin_is_generated_again);
    tcase_add_test(audits, a_kernels_files);
    tcase_add_test(audits, a_cut_between_pools_is_inconclusive);
    tcase_add_test(audits, a_kernels_strange_masks);
    tcase_add_test(audits, a_masks_column_is_encoded);
    tcase_add_test(audits, audit_refuses);
    tcase_add_test(audits, a_mask_that_is_not_the_rules_is_refused);
    return run_suite(suite);
}
