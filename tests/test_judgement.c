/* test_judgement.c: `etref verify GOLDEN CANDIDATE`, run as a user would run it.
 *
 * The verdicts themselves are tested elsewhere; here it is the contract with people, scripts and CI
 * systems: the four exit statuses, a report that names what is wrong and where, JSON and XML that
 * parse, and one line with culprit and remedy for every file that is no candidate.
 *
 * The candidate is made by the library: the exact values of a small layer, stored in bf16, as an
 * excellent kernel would have them. Faults are planted into the step before it is written.
 */
#include "etref/etref.h"
#include "tests/run_case.h"
#include "tests/run_tool.h"

#include <math.h>
#include <stdarg.h>

static const char *const golden_case =
    "{'name':'judged','rule':'tc','top_k':2,'tokens':48,'d_model':16,'d_expert':24,'experts':4,"
    "'precision':'bf16','input':{'source':'normal','decisive':true}}";

static char golden[4400], candidate[4400];

static void make_golden(void)
{
    char json[1024];
    make_folder();
    setenv("COLUMNS", "300", 1); /* so that what is looked for stands on one line */
    snprintf(golden, sizeof golden, "%s", in_folder("judged.safetensors"));
    snprintf(candidate, sizeof candidate, "%s", in_folder("kernel.safetensors"));
    snprintf(json, sizeof json, "%s", golden_case);
    double_the_quotes(json);
    write_text("judged.json", json);
    ck_assert_msg(RUN("generate", "--case", in_folder("judged.json"), "--out", folder) == 0, "%s",
                  errors);
}

/* ---- a kernel ---- */

/* What goes into the candidate. */
typedef struct kernel {
    void (*fault)(et_step *);        /* or NULL */
    void (*change)(et_tensor_out *); /* of each tensor, last, or NULL */
    et_dtype type;                   /* of its floats; ET_F64 (0) stands for bf16, the usual */
    const char *names[12];           /* what it writes; none: fwd.y, bwd.x, bwd.w_up, route.mask */
    const char *metadata[3];
} kernel;

static et_tensor_out *find(et_tensor_out *tensors, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(tensors[i].name, name) == 0) return &tensors[i];
    ck_abort_msg("no tensor %s", name);
    return NULL;
}

static void write_candidate(const kernel *k)
{
    static const char *const usual[] = {"fwd.y", "bwd.x", "bwd.w_up", "route.mask", NULL};
    const char *const *names = k->names[0] ? k->names : usual;
    et_case c;
    et_step s;
    et_error error;
    et_tensor_out all[ET_MAX_STEP_TENSORS], out[12];
    size_t count = 0;
    ck_assert_int_eq(parse_quoted(&c, golden_case, NULL), ET_OK);
    run_case(&s, &c);
    if (k->fault) k->fault(&s);
    size_t have = et_step_tensors(&s, false, all);
    for (; names[count]; count++) {
        out[count] = *find(all, have, names[count]);
        if (et_dtype_significand(out[count].dtype) > 0)
            out[count].dtype = k->type == ET_F64 ? ET_BF16 : k->type;
        if (k->change) k->change(&out[count]);
    }
    ck_assert_msg(et_tensor_file_write(candidate, out, count, k->metadata[0] ? k->metadata : NULL,
                                       &error) == ET_OK,
                  "%s", error.text);
    et_step_free(&s);
}

static const kernel honest = {.fault = NULL};

static void drop_token_five(et_step *s)
{
    memset(s->fwd.y + 5 * s->c.d_model, 0, s->c.d_model * sizeof *s->fwd.y);
}

static const kernel broken = {.fault = drop_token_five};

/* The number under a dotted path of object keys. */
static json_t *at(json_t *object, const char *key)
{
    json_t *value = json_object_get(object, key);
    ck_assert_msg(value != NULL, "no '%s' in the JSON", key);
    return value;
}

static json_t *row_of(json_t *report, const char *name)
{
    size_t i;
    json_t *row;
    json_array_foreach(at(report, "tensors"), i, row)
    {
        if (strcmp(json_string_value(at(row, "name")), name) == 0) return row;
    }
    ck_abort_msg("no row of %s", name);
    return NULL;
}

/* ---- a reader of XML, as strict as a CI system's ---- */

typedef struct xml {
    const char *at;
    char open[16][32]; /* names of the elements that are open */
    size_t depth, cases, failures, errors, skipped;
} xml;

static bool is_reference(const char *text)
{
    static const char *const known[] = {"&amp;", "&lt;", "&gt;", "&quot;", "&apos;"};
    for (size_t i = 0; i < COUNT(known); i++)
        if (strncmp(text, known[i], strlen(known[i])) == 0) return true;
    return false;
}

/* Text up to one of `ends`, in which nothing stands that must be escaped. */
static void skip_text(xml *x, const char *ends)
{
    for (; *x->at && strchr(ends, *x->at) == NULL; x->at++) {
        ck_assert_msg(*x->at != '<' && *x->at != '>', "unescaped: %.40s", x->at);
        ck_assert_msg(*x->at != '&' || is_reference(x->at), "no reference: %.40s", x->at);
        ck_assert_msg((unsigned char)*x->at >= 0x20 || *x->at == '\n', "control character");
    }
}

static void count_element(xml *x, const char *name)
{
    x->cases += strcmp(name, "testcase") == 0;
    x->failures += strcmp(name, "failure") == 0;
    x->errors += strcmp(name, "error") == 0;
    x->skipped += strcmp(name, "skipped") == 0;
}

/* <name attribute="..." ...>, <name ... />, or </name>. */
static void read_tag(xml *x)
{
    bool closing = x->at[1] == '/';
    char name[32];
    x->at += 1 + closing;
    size_t length = strspn(x->at, "abcdefghijklmnopqrstuvwxyz-");
    ck_assert(length > 0 && length < sizeof name);
    snprintf(name, sizeof name, "%.*s", (int)length, x->at);
    x->at += length;
    while (!closing && *x->at == ' ') {
        x->at += 1 + strspn(x->at + 1, "abcdefghijklmnopqrstuvwxyz");
        ck_assert_msg(strncmp(x->at, "=\"", 2) == 0, "no attribute: %.40s", x->at);
        x->at += 2;
        skip_text(x, "\"");
        x->at++;
    }
    bool empty = *x->at == '/';
    x->at += empty;
    ck_assert_msg(*x->at == '>', "no end of tag: %.40s", x->at);
    x->at++;
    if (closing) {
        ck_assert_uint_gt(x->depth, 0);
        ck_assert_str_eq(x->open[--x->depth], name);
        return;
    }
    count_element(x, name);
    if (!empty) strcpy(x->open[x->depth++], name);
    ck_assert_uint_lt(x->depth, COUNT(x->open));
}

static xml parse_xml(void)
{
    static const char head[] = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";
    xml x = {.at = output};
    ck_assert_msg(strncmp(x.at, head, strlen(head)) == 0, "%.60s", output);
    for (x.at += strlen(head); *x.at;) {
        if (*x.at == '<')
            read_tag(&x);
        else
            skip_text(&x, "<");
    }
    ck_assert_msg(x.depth == 0 && x.cases > 0, "%zu elements open, %zu cases", x.depth, x.cases);
    char counts[96];
    int common = snprintf(counts, sizeof counts, "tests=\"%zu\" failures=\"%zu\" errors=\"%zu\"", x.cases,
                          x.failures, x.errors);
    const char *first = strstr(output, counts); /* of all suites, which have no count of skipped ones */
    snprintf(counts + common, sizeof counts - (size_t)common, " skipped=\"%zu\"", x.skipped);
    ck_assert_msg(first && strstr(first + 1, counts), "the counts are not %s", counts);
    return x;
}

#ifdef ETREF_F32

/* The float build's own errors are a kernel's: it does not judge. */
START_TEST(the_float_build_does_not_judge)
{
    write_candidate(&honest);
    expect_failure(RUN("verify", golden, candidate), 2, "PRECISION=f32");
}
END_TEST

#else

/* ---- the four statuses ---- */

static size_t lines_of(const char *text)
{
    size_t lines = 0;
    for (; *text; text++) lines += *text == '\n';
    return lines;
}

/* What passed is told by the three tensors that came nearest to their limits; --all shows each. */
START_TEST(a_pass_is_told_in_twelve_lines)
{
    write_candidate(&honest);
    ck_assert_int_eq(RUN("verify", golden, candidate), 0);
    size_t few = lines_of(output);
    ck_assert_uint_le(few, 12);
    ck_assert_int_eq(RUN("verify", golden, candidate, "--all"), 0);
    ck_assert_ptr_nonnull(strstr(output, "(chosen: fwd.y is stored as BF16)"));
    ck_assert_uint_gt(lines_of(output), few + 4);
    expect_failure(RUN("verify", golden, candidate, "--all", "--quiet"), 2, "leave out --all");
    expect_failure(RUN("verify", golden, "--all"), 2, "--all is about judging");
}
END_TEST

START_TEST(a_right_kernel_passes)
{
    write_candidate(&honest);
    ck_assert_msg(RUN("verify", golden, candidate) == 0, "%s", output);
    ck_assert_str_eq(errors, "");
    ck_assert_ptr_nonnull(strstr(output, "profile    bf16: operands 8, intermediates 8, gates 24, "
                                         "logits 24, accumulator 24, outputs 8 bits\n"));
    ck_assert_ptr_nonnull(strstr(output, "[profile bf16: fwd.y is stored as BF16]"));
    ck_assert_ptr_nonnull(
        strstr(output, "routing    shown by the candidate; 192 decisions, 0 open"));
    ck_assert_ptr_null(strstr(output, "FAIL"));
    char line[512];
    const char *last = last_line(output);
    ck_assert_msg(strncmp(last, "PASS", 4) == 0, "%s", last);
    snprintf(line, sizeof line, "%.500s\n", last);
    ck_assert_int_eq(RUN("verify", golden, candidate, "--quiet", "--engine", "plain"), 0);
    ck_assert_str_eq(output, line); /* that line, and no other */
    ck_assert_int_eq(RUN("verify", golden, candidate, "--profile", "bf16", "--require",
                         "fwd.y,bwd.x", "--require", "route.mask", "--ties", "any", "--threads",
                         "1"),
                     0);
    ck_assert_ptr_null(strstr(output, "stored as BF16"));
}
END_TEST

START_TEST(a_wrong_kernel_is_told_where)
{
    write_candidate(&broken);
    ck_assert_int_eq(RUN("verify", golden, candidate, "--no-explain"), 1);
    ck_assert_str_eq(errors, "");
    ck_assert_ptr_nonnull(strstr(output, "FAIL fwd.y: "));
    ck_assert_ptr_nonnull(strstr(output, "worst  [5,"));
    ck_assert_ptr_nonnull(strstr(output, "(token 5, column "));
    ck_assert_ptr_nonnull(strstr(output, "token 5 is on experts "));
    ck_assert_ptr_nonnull(strstr(output, "got 0, want "));
    ck_assert_ptr_null(strstr(output, "FAIL bwd.x"));
    ck_assert_ptr_null(strstr(output, "explained by"));
    const char *line = last_line(output);
    ck_assert_msg(strncmp(line, "FAIL: fwd.y", 11) == 0, "%s", line);
    ck_assert_int_eq(RUN("verify", golden, candidate), 1);
    ck_assert_ptr_nonnull(strstr(output, "explained by"));
}
END_TEST

START_TEST(what_is_required_and_missing_is_inconclusive)
{
    write_candidate(&honest);
    ck_assert_int_eq(RUN("verify", golden, candidate, "--require", "bwd.*"), 3);
    const char *line = last_line(output);
    ck_assert_msg(strncmp(line, "INCONCLUSIVE", 12) == 0, "%s", line);
    ck_assert_int_eq(RUN("verify", golden, candidate, "--quiet", "--require", "bwd.w_down"), 3);
    ck_assert_ptr_nonnull(strstr(output, "bwd.w_down"));
}
END_TEST

START_TEST(the_golden_is_no_candidate_of_its_own)
{
    ck_assert_int_eq(RUN("verify", golden, golden), 3);
    ck_assert_ptr_nonnull(strstr(output, "this is the golden file itself"));
    ck_assert_ptr_nonnull(strstr(output, "in.* tensors are the golden's"));
    ck_assert_int_eq(link(golden, candidate), 0);
    ck_assert_int_eq(RUN("verify", golden, candidate, "--format=json"), 3);
    json_t *report = parse_output();
    ck_assert(json_is_true(at(report, "same_file")));
    ck_assert_str_eq(json_string_value(at(report, "verdict")), "inconclusive");
    json_decref(report);
}
END_TEST

/* Under f64 the reference, by another engine, differs from the golden as a kernel would. */
START_TEST(a_copy_of_the_golden_is_no_candidate_in_64_bits)
{
    ck_assert_int_eq(RUN("verify", golden, golden, "--profile", "f64"), 3);
    ck_assert_ptr_nonnull(strstr(output, "INCONCLUSIVE: the candidate is the golden itself"));
    char command[9000];
    snprintf(command, sizeof command, "cp %s %s", golden, candidate);
    ck_assert_int_eq(system(command), 0);
    ck_assert_int_eq(RUN("verify", golden, candidate, "--profile", "f64", "--quiet"), 3);
    ck_assert_str_eq(last_line(output),
                     "INCONCLUSIVE: the candidate is the golden itself: every value is its own");
}
END_TEST

/* ---- options ---- */

static void call_it_out(et_tensor_out *t)
{
    if (strcmp(t->name, "fwd.y") == 0) t->name = "out";
    if (strcmp(t->name, "bwd.x") == 0) t->name = "dx=dout*W"; /* what stands before the last '=' */
}

START_TEST(names_of_ones_own_are_aliased)
{
    write_candidate(&(kernel){.change = call_it_out});
    expect_failure(RUN("verify", golden, candidate), 2, "is not one of a bundle");
    ck_assert_int_eq(RUN("verify", golden, candidate, "--alias", "out=fwd.y", "--alias",
                         "dx=dout*W=bwd.x", "--require", "fwd.y"),
                     0);
    ck_assert_ptr_nonnull(strstr(output, "\nfwd.y "));
    expect_failure(RUN("verify", golden, candidate, "--alias", "out"), 2, "--alias out: ");
    expect_failure(RUN("verify", golden, candidate, "--alias", "=fwd.y"), 2, "out=fwd.y");
    expect_failure(RUN("verify", golden, candidate, "--alias", "out=fwd.z"), 2,
                   "the nearest is fwd.y");
    expect_failure(RUN("verify", golden, candidate, "--alias", "mine=fwd.y"), 2,
                   "has no tensor mine");
}
END_TEST

/* Under the profile of f32, what was stored in bf16 is far from what it should be. */
START_TEST(the_profile_decides)
{
    write_candidate(&honest);
    write_text("mine.json", "{\"name\": \"mine\", \"operands\": 8, \"intermediates\": 8, "
                            "\"gates\": 8, \"logits\": 24, \"accumulator\": 24, \"outputs\": 8}");
    ck_assert_int_eq(RUN("verify", golden, candidate, "--profile", "f32", "--quiet"), 1);
    ck_assert_int_eq(RUN("verify", golden, candidate, "--profile", in_folder("mine.json")), 0);
    ck_assert_ptr_nonnull(strstr(output, "profile    mine: operands 8, intermediates 8, gates 8"));
    expect_failure(RUN("verify", golden, candidate, "--profile", "bf17"), 2, "bf16 is near");
    expect_failure(RUN("verify", golden, candidate, "--profile", in_folder("none.json")), 2,
                   "none.json: No such file");
    write_text("mine.json", "{\"name\": \"mine\", \"operand\": 8}");
    expect_failure(RUN("verify", golden, candidate, "--profile", in_folder("mine.json")), 2,
                   "unknown field operand; the nearest is operands");
    expect_failure(RUN("verify", golden, candidate, "--profile", golden), 2, "at most 64 KiB");
}
END_TEST

START_TEST(options_that_make_no_sense_are_refused)
{
    static const char *const alone[][2] = {{"--profile", "bf16"},
                                           {"--require", "fwd.y"},
                                           {"--ties", "any"},
                                           {"--ties", "rule"},
                                           {"--alias", "a=fwd.y"}};
    for (size_t i = 0; i < COUNT(alone); i++)
        expect_failure(RUN("verify", golden, alone[i][0], alone[i][1]), 2, "none is given");
    expect_failure(RUN("verify", golden, "--no-explain"), 2, "--no-explain");
    expect_failure(RUN("verify", golden, "--explain-limit", "3"), 2, "--explain-limit");
    write_candidate(&honest);
    static const char *const bad[][3] = {
        {"--require", "fwd.yy", "did you mean fwd.y?"},
        {"--require", "fwd.y,bwd", "--require bwd: no such tensor"},
        {"--require", "route.cutoff", "the case computes no such tensor"},
        {"--require", "in.x", "--require in.x"},
        {"--require", ",", "fwd.y,bwd.*"},
        {"--require", "layout.*", "--require layout.*"},
        {"--explain-limit", "0", "--explain-limit 0"},
        {"--ties", "none", "rule|any"}};
    for (size_t i = 0; i < COUNT(bad); i++)
        expect_failure(RUN("verify", golden, candidate, bad[i][0], bad[i][1]), 2, bad[i][2]);
}
END_TEST

/* ---- files that are no candidates ---- */

static void transpose(et_tensor_out *t)
{
    if (strcmp(t->name, "fwd.y") == 0) t->shape[0] = 16, t->shape[1] = 48;
}

static void misname(et_tensor_out *t)
{
    if (strcmp(t->name, "fwd.y") == 0) t->name = "fwd.yy";
}

static void mistype(et_tensor_out *t)
{
    static int32_t zeros[48 * 16];
    if (strcmp(t->name, "fwd.y") == 0)
        t->values = zeros, t->source = ET_FROM_I32, t->dtype = ET_I32;
}

static void change_inputs(et_step *s)
{
    s->in.x[7] += 1;
}

/* The mask says one slot less than the slots' own tensor. */
static void forget_a_slot(et_step *s)
{
    size_t i = 0;
    while (s->route.mask[i] == 0) i++;
    s->route.mask[i] = 0;
}

START_TEST(files_that_are_no_candidates_are_refused)
{
    static const struct {
        kernel k;
        const char *message;
    } rows[] = {
        {{.change = transpose},
         "has shape [16,48]; fwd.y is [N,d], which is [48,16] for this case"},
        {{.change = misname}, "if it is fwd.y, give the alias fwd.yy=fwd.y"},
        {{.change = mistype}, "has type I32, must be F64, F32, BF16 or F16"},
        {{.names = {"in.x"}}, "holds nothing that a kernel computed"},
        {{.names = {"fwd.y", "in.x"}, .fault = change_inputs},
         "is not the golden's in.x (element 7"},
        {{.metadata = {"case", "{\"name\": 7}"}}, "metadata 'case': name = 7"},
        {{.names = {"route.mask", "bwd.slot_weight"}, .fault = forget_a_slot},
         "bwd.slot_weight has the shape [96], must be [95]"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        write_candidate(&rows[i].k);
        expect_failure(RUN("verify", golden, candidate), 2, rows[i].message);
        ck_assert_ptr_nonnull(strstr(errors, "kernel.safetensors"));
        ck_assert_str_eq(output, "");
    }
}
END_TEST

START_TEST(the_golden_comes_first)
{
    write_candidate(&honest);
    expect_failure(RUN("verify", candidate, golden), 2,
                   "the golden comes first, the candidate second");
}
END_TEST

START_TEST(unreadable_candidates_are_refused)
{
    struct stat facts;
    write_candidate(&honest);
    ck_assert_int_eq(stat(candidate, &facts), 0);
    ck_assert_int_eq(truncate(candidate, facts.st_size - 1), 0);
    expect_failure(RUN("verify", golden, candidate), 2, "kernel.safetensors");
    ck_assert_int_eq(truncate(candidate, 0), 0);
    expect_failure(RUN("verify", golden, candidate), 2, "0 bytes are too few");
    expect_failure(RUN("verify", golden, in_folder("nosuch")), 2, "nosuch");
    expect_failure(RUN("verify", golden, folder), 2, "folder");
    expect_failure(RUN("verify", in_folder("nosuch"), candidate), 2, "nosuch");
    write_candidate(&honest);
    expect_failure(RUN("verify", candidate, golden), 2, "not a bundle"); /* the other way round */
}
END_TEST

START_TEST(a_bundle_of_another_case_is_no_candidate)
{
    ck_assert_int_eq(RUN("generate", "--case", in_folder("judged.json"), "--set", "name=kernel",
                         "--set", "input.seed=2", "--out", folder),
                     0);
    expect_failure(RUN("verify", golden, candidate), 2,
                   "a bundle of another case: input.seed = 2, the golden's case 'judged' has 1");
}
END_TEST

/* ---- profiles that nobody named ---- */

static void nudge(et_step *s)
{
    for (size_t i = 0; i < s->c.tokens * s->c.d_model; i++)
        s->fwd.y[i] *= 1 + 0x1p-20 * (double)(i % 7);
}

START_TEST(what_is_far_more_exact_is_noted_in_every_form)
{
    write_candidate(&(kernel){.fault = nudge, .type = ET_F32, .names = {"fwd.y"}});
    ck_assert_int_eq(RUN("verify", golden, candidate, "--profile", "bf16", "--quiet"), 0);
    ck_assert_msg(strstr(output, "; NOTE: far more exact than bf16"), "%s", output);
    ck_assert_int_eq(RUN("verify", golden, candidate, "--profile", "bf16", "--format=json"), 0);
    json_t *report = parse_output();
    ck_assert_msg(strstr(json_string_value(at(report, "note")), "judge it by profile f32"), "%s",
                  output);
    json_decref(report);
    ck_assert_int_eq(RUN("verify", golden, candidate, "--profile", "bf16", "--format=junit"), 0);
    xml x = parse_xml();
    ck_assert_uint_eq(x.failures + x.errors, 0);
    ck_assert_msg(strstr(output, "<system-out>PASS: "), "%s", output);
    expect_failure(RUN("verify", golden, candidate, "--format=junit"), 1,
                   "[profile f32: fwd.y is stored as F32]"); /* and so it is found */
    parse_xml();
}
END_TEST

/* A kernel of bf16 judged by f32. */
START_TEST(the_profile_that_passes_is_named_in_every_form)
{
    write_candidate(&(kernel){.type = ET_BF16, .names = {"fwd.y", "bwd.x"}});
    ck_assert_int_eq(RUN("verify", golden, candidate, "--profile", "f32"), 1);
    ck_assert_msg(strstr(output, "\npasses under profile bf16, and under no tighter one"), "%s",
                  output);
    ck_assert_msg(strstr(last_line(output), "; passes under profile bf16"), "%s", output);
    expect_failure(RUN("verify", golden, candidate, "--profile", "f32", "--format=json"), 1,
                   "; passes under profile bf16");
    json_t *report = parse_output();
    ck_assert_str_eq(json_string_value(at(report, "passes_under")), "bf16");
    json_decref(report);
    expect_failure(RUN("verify", golden, candidate, "--profile", "f32", "--format=junit"), 1,
                   "; passes under profile bf16");
    ck_assert_msg(strstr(output, "\npasses under profile bf16") ||
                      strstr(output, ">passes under profile bf16"),
                  "%s", output);
}
END_TEST

/* ---- for programs ---- */

START_TEST(json_holds_everything)
{
    static const char *const numbers[] = {
        "elements",        "judged",       "failed", "exact", "largest_error", "largest_ulps",
        "largest_sigmas",  "limit_sigmas", "worst",  "got",   "want",          "bar",
        "effective_sample"};
    static const char *const group[] = {"index",       "column",      "elements", "slope",
                                        "slope_sigma", "slope_limit", "spread",   "spread_limit"};
    write_candidate(&broken);
    expect_failure(RUN("verify", golden, candidate, "--format=json"), 1, "FAIL: fwd.y");
    json_t *report = parse_output(), *row = row_of(report, "fwd.y");
    ck_assert_str_eq(json_string_value(at(report, "verdict")), "mismatch");
    ck_assert_str_eq(json_string_value(at(report, "case")), "judged");
    ck_assert_str_eq(json_string_value(at(at(report, "profile"), "name")), "bf16");
    ck_assert(json_is_true(at(report, "default_profile")));
    ck_assert_str_eq(json_string_value(at(report, "profile_chosen_from")),
                     "fwd.y is stored as BF16");
    ck_assert_str_eq(json_string_value(at(report, "note")), "");
    ck_assert(json_is_null(at(report, "passes_under")));
    ck_assert_str_eq(json_string_value(at(report, "search")), "");
    ck_assert(json_is_false(at(report, "same_file")));
    ck_assert_int_eq(json_integer_value(at(at(report, "routing"), "decisions")), 192);
    ck_assert_int_eq(json_array_size(at(report, "tensors")), 4);
    for (size_t i = 0; i < COUNT(numbers); i++)
        ck_assert_msg(json_is_number(at(row, numbers[i])), "%s is no number", numbers[i]);
    for (size_t i = 0; i < COUNT(group); i++)
        ck_assert_msg(json_is_number(at(at(row, "whole"), group[i])), "%s is no number", group[i]);
    ck_assert_str_eq(json_string_value(at(row, "outcome")), "mismatch");
    ck_assert_str_eq(json_string_value(at(row, "type")), "BF16");
    ck_assert_int_eq(json_integer_value(at(row, "elements")), 48 * 16);
    ck_assert_int_gt(json_integer_value(at(row, "failed")), 8);
    ck_assert_int_eq(json_integer_value(at(row, "worst")) / 16, 5);
    ck_assert(json_number_value(at(row, "got")) == 0);
    ck_assert(json_number_value(at(row, "limit_sigmas")) == 30);
    ck_assert(json_number_value(at(row, "largest_sigmas")) >
              json_number_value(at(row, "limit_sigmas")));
    ck_assert_str_eq(json_string_value(at(row_of(report, "bwd.x"), "outcome")), "pass");
    ck_assert(json_is_array(at(report, "explanations")) && json_is_string(at(report, "residual")));
    json_decref(report);
    write_candidate(&honest);
    ck_assert_int_eq(RUN("verify", golden, candidate, "--format=json"), 0);
    ck_assert_str_eq(errors, "");
    report = parse_output();
    ck_assert_str_eq(json_string_value(at(report, "verdict")), "pass");
    json_decref(report);
}
END_TEST

START_TEST(nan_is_a_mismatch_and_still_json)
{
    static const char *const formats[] = {"text", "json", "junit"};
    write_candidate(&broken);
    et_tensor_file file;
    ck_assert_int_eq(et_tensor_file_open(&file, candidate, NULL), ET_OK);
    const et_tensor_info *t = et_tensor_file_find(&file, "fwd.y");
    long place = (long)(file.data_start + t->offset + 2 * 17);
    et_tensor_file_close(&file);
    FILE *bytes = fopen(candidate, "r+b");
    ck_assert(bytes && fseek(bytes, place, SEEK_SET) == 0);
    fputs("\xff\x7f", bytes); /* a NaN in bf16 */
    ck_assert_int_eq(fclose(bytes), 0);
    for (size_t i = 0; i < COUNT(formats); i++) {
        ck_assert_int_eq(RUN("verify", golden, candidate, "--format", formats[i]), 1);
        if (i == 1) json_decref(parse_output());
        if (i == 2) parse_xml();
    }
}
END_TEST

START_TEST(junit_shows_each_part)
{
    write_candidate(&honest);
    ck_assert_int_eq(RUN("verify", golden, candidate, "--format=junit"), 0);
    xml x = parse_xml(); /* routing, four tensors, the verdict */
    ck_assert(x.cases == 6 && x.failures + x.errors + x.skipped == 0);
    ck_assert_ptr_nonnull(strstr(output, "<testsuite name=\"etref.judged.bf16\""));
    ck_assert_ptr_nonnull(strstr(output, "name=\"routing\""));

    write_candidate(&broken);
    expect_failure(RUN("verify", golden, candidate, "--format=junit"), 1, "FAIL: fwd.y");
    x = parse_xml();
    ck_assert(x.cases == 6 && x.failures == 2 && x.errors == 0);
    ck_assert_ptr_nonnull(strstr(output, "token 5, column"));
    ck_assert_ptr_nonnull(strstr(output, "again: etref verify"));

    /* Inconclusive is an error: who reads nothing but the report must not see green. */
    write_candidate(&honest);
    ck_assert_int_eq(RUN("verify", golden, candidate, "--format=junit", "--require=bwd.*"), 3);
    x = parse_xml();
    ck_assert(x.failures == 0 && x.errors == 1);
}
END_TEST

START_TEST(junit_is_written_also_where_there_is_no_verdict)
{
    char hostile[4400];
    snprintf(hostile, sizeof hostile, "%s", in_folder("a<b>&\"'\x01\xff\xc3\xa4.safetensors"));
    expect_failure(RUN("verify", golden, hostile, "--format=junit"), 2, "No such file");
    xml x = parse_xml();
    ck_assert(x.cases == 1 && x.errors == 1);
    expect_failure(RUN("verify", hostile, "--format=junit"), 2, "No such file");
    x = parse_xml();
    ck_assert(x.cases == 1 && x.errors == 1);
    ck_assert_int_eq(RUN("verify", golden, "--format=junit"), 0);
    x = parse_xml();
    ck_assert(x.cases > 20 && x.failures + x.errors + x.skipped == 0);
}
END_TEST

/* "again: ..." is what a reader copies into a shell: it must come to the same verdict. */
START_TEST(the_command_line_repeats_the_verdict)
{
    char strange[4400], command[9000];
    write_candidate(&broken);
    snprintf(strange, sizeof strange, "%s", in_folder("it's my $kernel.safetensors"));
    ck_assert_int_eq(rename(candidate, strange), 0);
    ck_assert_int_eq(RUN("verify", golden, strange, "--require", "fwd.y,bwd.*"), 1);
    const char *line = strstr(output, "\nagain: etref ");
    ck_assert_ptr_nonnull(line);
    line += strlen("\nagain: etref ");
    ck_assert_ptr_nonnull(strstr(line, "--profile bf16"));
    snprintf(command, sizeof command, "%s %.*s >/dev/null", tool(), (int)strcspn(line, "\n"), line);
    int status = system(command);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 1, "%s", command);
}
END_TEST

#endif

int main(void)
{
    Suite *suite = suite_create("judgement");
    TCase *tests = add_case(suite, "verify golden candidate");
    tcase_add_checked_fixture(tests, make_golden, remove_all);
#ifdef ETREF_F32
    (void)broken;
    (void)row_of;
    (void)parse_xml;
    tcase_add_test(tests, the_float_build_does_not_judge);
#else
    tcase_add_test(tests, a_right_kernel_passes);
    tcase_add_test(tests, a_pass_is_told_in_twelve_lines);
    tcase_add_test(tests, a_wrong_kernel_is_told_where);
    tcase_add_test(tests, what_is_required_and_missing_is_inconclusive);
    tcase_add_test(tests, the_golden_is_no_candidate_of_its_own);
    tcase_add_test(tests, a_copy_of_the_golden_is_no_candidate_in_64_bits);
    tcase_add_test(tests, names_of_ones_own_are_aliased);
    tcase_add_test(tests, the_profile_decides);
    tcase_add_test(tests, options_that_make_no_sense_are_refused);
    tcase_add_test(tests, files_that_are_no_candidates_are_refused);
    tcase_add_test(tests, the_golden_comes_first);
    tcase_add_test(tests, unreadable_candidates_are_refused);
    tcase_add_test(tests, a_bundle_of_another_case_is_no_candidate);
    tcase_add_test(tests, what_is_far_more_exact_is_noted_in_every_form);
    tcase_add_test(tests, the_profile_that_passes_is_named_in_every_form);
    tcase_add_test(tests, json_holds_everything);
    tcase_add_test(tests, nan_is_a_mismatch_and_still_json);
    tcase_add_test(tests, junit_shows_each_part);
    tcase_add_test(tests, junit_is_written_also_where_there_is_no_verdict);
    tcase_add_test(tests, the_command_line_repeats_the_verdict);
#endif
    return run_suite(suite);
}
