/* test_train.c: `etref train` as a user runs it: the losses of a short run, stopping and going on,
 * and what is refused.
 *
 * The losses below are the plain engine's, whose bits are the same on every machine: they are
 * compared exactly. Proofs that they are the right ones stand in test_gpt.c. Runs that were stopped
 * (SIGINT, SIGKILL, at any moment) must end with the same bytes of a final checkpoint as one that
 * was not.
 */
#include "etref/checkpoint.h"
#include "tests/run_tool.h"

#include <math.h>
#include <time.h>

static void remove_runs(void)
{
    static const char *const runs[] = {"a", "b", "c"};
    for (size_t i = 0; i < COUNT(runs); i++) {
        char command[5000];
        snprintf(command, sizeof command, "rm -rf '%s'", in_folder(runs[i]));
        ck_assert_int_eq(system(command), 0);
    }
    remove_all();
}

/* Words of ten letters, over and over, none like the last. */
static void write_corpus(size_t bytes)
{
    FILE *file = fopen(in_folder("text"), "w");
    ck_assert_ptr_nonnull(file);
    for (size_t i = 0; i < bytes; i++) fputc("threshold "[i % 10] + (i % 70 == 3), file);
    ck_assert_int_eq(fclose(file), 0);
}

static const char small[] = "{\"engine\": \"plain\", \"heads\": 2, \"sequence\": 16, \"batch\": 2,"
                            " \"d_model\": 16, \"layers\": 2, \"steps\": 10, \"micro_batches\": 2,"
                            " \"ffn\": {\"rule\": \"et\", \"experts\": 4, \"ema_decay\": 0.9,"
                            " \"warmup_steps\": 4, \"capacity_factor\": 0.5}}";

static void begin_folder(void)
{
    make_folder();
    write_corpus(3000);
    write_text("small.json", small);
}

#define TRAIN(out, ...)                                                                            \
    RUN("train", "--text", in_folder("text"), "--config", in_folder("small.json"), "--out",        \
        in_folder(out), __VA_ARGS__)

/* ---- the log ---- */

typedef struct losses {
    size_t count;
    double at[400]; /* in the log's order: of steps, and of evaluations among them */
} losses;

static losses read_log(const char *run)
{
    losses all = {0};
    char line[1 << 14], name[16];
    snprintf(name, sizeof name, "%s/log.jsonl", run);
    FILE *file = fopen(in_folder(name), "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        json_t *object = json_loads(line, 0, NULL);
        if (object == NULL) continue; /* its last line, half-written */
        const json_t *loss = json_object_get(object, "loss");
        if (loss == NULL) loss = json_object_get(object, "held_out_loss");
        ck_assert_uint_lt(all.count, COUNT(all.at));
        all.at[all.count++] = json_real_value(loss);
        json_decref(object);
    }
    if (file != NULL) fclose(file);
    return all;
}

static void same_files(const char *a, const char *b)
{
    char command[9000];
    snprintf(command, sizeof command, "cmp '%s' '%s'", in_folder(a), in_folder(b));
    ck_assert_msg(system(command) == 0, "%s and %s differ", a, b);
}

/* ---- ten losses ---- */

START_TEST(ten_losses_are_what_they_were)
{
    static const double want[] = {5.5451774444795587, 5.0863315897487986, 4.3897666173112224,
                                  3.7439513726795539, 3.1707667434327815, 2.6577824908731378,
                                  2.1616279029100491, 1.7601495894681594, 1.4684557732553905,
                                  1.1636406610149206, 1.0457633646295723};
    ck_assert_int_eq(TRAIN("a", "--seed", "3"), 0);
    ck_assert_ptr_nonnull(strstr(output, "10 steps, held-out loss"));
    losses got = read_log("a");
    ck_assert_uint_eq(got.count, 11); /* ten steps and an evaluation */
    for (size_t i = 0; i < COUNT(want); i++)
        ck_assert_msg(got.at[i] == want[i], "loss %zu is %.17g, not %.17g", i, got.at[i], want[i]);
    ck_assert(got.at[9] < got.at[0]);
}
END_TEST

/* ---- checkpoints that stay ---- */

START_TEST(checkpoints_stay_where_asked)
{
    char command[9000];
    ck_assert_int_eq(TRAIN("a", "--keep-every", "5"), 0);
    same_files("a/step-000010.safetensors", "a/final.safetensors");
    ck_assert_int_eq(TRAIN("b", "--checkpoint-every", "5"), 0);
    ck_assert_int_ne(access(in_folder("b/step-000005.safetensors"), F_OK), 0);
    same_files("a/final.safetensors", "b/final.safetensors");
    /* One that stayed is as good as the last to go on from. */
    snprintf(command, sizeof command, "mkdir '%s' && mv '%s' '%s/checkpoint.safetensors'",
             in_folder("c"), in_folder("a/step-000005.safetensors"), in_folder("c"));
    ck_assert_int_eq(system(command), 0);
    ck_assert_int_eq(TRAIN("c", "--resume"), 0);
    same_files("c/final.safetensors", "b/final.safetensors");
}
END_TEST

/* ---- what the log has of each MoE layer ---- */

START_TEST(the_log_says_how_layers_routed)
{
    char line[1 << 14];
    size_t steps = 0;
    ck_assert_int_eq(TRAIN("a", "--seed", "3"), 0);
    FILE *file = fopen(in_folder("a/log.jsonl"), "r");
    ck_assert_ptr_nonnull(file);
    while (fgets(line, sizeof line, file) != NULL) {
        json_t *v = json_loads(line, 0, NULL);
        const json_t *layer = json_array_get(json_object_get(v, "layers"), 0);
        if (layer != NULL) {
            ck_assert_uint_eq(json_array_size(json_object_get(layer, "threshold")), 4);
            ck_assert_uint_eq(json_array_size(json_object_get(layer, "cutoff_gap")), 4);
            ck_assert_ptr_null(json_object_get(layer, "bias"));
            ck_assert(json_real_value(json_object_get(layer, "logit_std")) > 0);
            ck_assert(json_real_value(json_object_get(layer, "gate_std")) > 0);
            /* Behind the warm-up of four steps thresholds are tested. */
            ck_assert_int_eq(json_object_get(layer, "raw_usage") != NULL, steps >= 4);
            steps++;
        }
        json_decref(v);
    }
    fclose(file);
    ck_assert_uint_eq(steps, 10);
}
END_TEST

/* ---- stopped, and gone on ---- */

static const char *const long_run[] = {"--steps",          "120", "--checkpoint-every", "7",
                                       "--evaluate-every", "50",  "--threads",          "1"};

/* Starts a long run of the given engine and sends it a signal after so many lines of its log. */
static int stop_after(const char *out, size_t lines, int number, bool resume)
{
    FILE *to = tmpfile(), *err = tmpfile();
    const struct timespec moment = {.tv_nsec = 500000};
    const char *words[MAX_WORDS] = {"train",
                                    "--text",
                                    in_folder("text"),
                                    "--config",
                                    in_folder("small.json"),
                                    "--out",
                                    in_folder(out),
                                    resume ? "--resume" : "--threads=1"};
    for (size_t i = 0; i < COUNT(long_run); i++) words[8 + i] = long_run[i];
    pid_t child = start(words, &(setting){0}, to, err);
    for (int waited = 0; read_log(out).count < lines && waited < 60000; waited++)
        nanosleep(&moment, NULL);
    kill(child, number); /* where it has ended by itself the test fails: that was no stop */
    int status = wait_for(child);
    read_back(to, output);
    read_back(err, errors);
    return status;
}

static void check_stopping(int number)
{
    ck_assert_int_eq(TRAIN("a", "--steps", "120", "--checkpoint-every", "7", "--evaluate-every",
                           "50", "--threads", "1"),
                     0);
    int status = stop_after("b", 20, number, false);
    ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == number, "%d: %s", status, errors);
    if (number == SIGINT) ck_assert_ptr_nonnull(strstr(output, "--resume goes on"));
    status = stop_after("b", 60, number, true); /* and once more */
    ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == number, "%d: %s", status, errors);
    ck_assert_int_eq(RUN("train", "--text", in_folder("text"), "--out", in_folder("b"), "--resume",
                         "--threads", "1", "--evaluate-every", "50"),
                     0);
    losses a = read_log("a"), b = read_log("b");
    ck_assert_uint_eq(a.count, 123);
    ck_assert_uint_eq(b.count, a.count);
    for (size_t i = 0; i < a.count; i++)
        ck_assert_msg(a.at[i] == b.at[i], "line %zu: %.17g, and %.17g after going on", i, a.at[i],
                      b.at[i]);
    same_files("a/final.safetensors", "b/final.safetensors");
    /* Nothing is left to do, and nothing changes. */
    ck_assert_int_eq(TRAIN("b", "--resume", "--steps", "120"), 0);
    ck_assert_ptr_nonnull(strstr(output, "nothing left to do"));
    same_files("a/final.safetensors", "b/final.safetensors");
}

START_TEST(an_interrupted_run_goes_on_bit_for_bit)
{
    check_stopping(SIGINT);
}
END_TEST

START_TEST(a_killed_run_goes_on_bit_for_bit)
{
    check_stopping(SIGKILL);
}
END_TEST

START_TEST(a_run_with_blas_goes_on_bit_for_bit)
{
    char text[sizeof small + 8];
    snprintf(text, sizeof text, "{\"engine\": \"blas\"%s",
             small + strlen("{\"engine\": \"plain\""));
    write_text("small.json", text);
    check_stopping(SIGKILL);
}
END_TEST

/* ---- checkpoints ---- */

/* The checkpoint `name` of a run of one step, changed by `spoil`, must be refused in one line with
 * `part`. */
static void refuse_checkpoint(const char *part, void (*spoil)(FILE *file, long length))
{
    FILE *file = fopen(in_folder("a/checkpoint.safetensors"), "r+b");
    ck_assert_ptr_nonnull(file);
    fseek(file, 0, SEEK_END);
    spoil(file, ftell(file));
    fclose(file);
    expect_failure(TRAIN("a", "--resume"), 2, part);
}

static void cut_end(FILE *file, long length)
{
    ck_assert_int_eq(ftruncate(fileno(file), length - 8), 0);
}

static void cut_header(FILE *file, long length)
{
    (void)length;
    ck_assert_int_eq(ftruncate(fileno(file), 100), 0);
}

/* A number of the first tensor becomes a NaN. */
static void plant_nan(FILE *file, long length)
{
    const unsigned char nan[8] = {0, 0, 0, 0, 0, 0, 0xf8, 0x7f};
    fseek(file, length - 80 * 8, SEEK_SET);
    fwrite(nan, 1, 8, file);
}

/* Writes over a text of the header, which keeps its length. */
static void replace(FILE *file, const char *old, const char *new)
{
    static char header[1 << 16];
    rewind(file);
    size_t length = fread(header, 1, sizeof header, file);
    char *at = memmem(header, length, old, strlen(old));
    ck_assert_msg(at != NULL && strlen(old) == strlen(new), "no %s", old);
    fseek(file, at - header, SEEK_SET);
    fwrite(new, 1, strlen(new), file);
}

static void claim_size(FILE *file, long length)
{
    (void)length;
    replace(file, "\\\"d_model\\\": 16, \\\"layers\\\"", "\\\"d_model\\\": 18, \\\"layers\\\"");
}

static void claim_layers(FILE *file, long length)
{
    (void)length;
    replace(file, "\\\"layers\\\": 2,", "\\\"layers\\\": 9,");
}

static void claim_steps(FILE *file, long length)
{
    (void)length;
    replace(file, "\"steps\":\"10\"", "\"steps\":\"-1\"");
}

static void claim_format(FILE *file, long length)
{
    (void)length;
    replace(file, "etref-checkpoint", "etref-checkpoimt");
}

START_TEST(hostile_checkpoints_are_refused)
{
    static const struct {
        const char *part;
        void (*spoil)(FILE *file, long length);
    } cases[] = {{"checkpoint.safetensors", cut_end}, {"checkpoint.safetensors", cut_header},
                 {"not finite", plant_nan},           {"another shape", claim_size},
                 {"missing", claim_layers},           {"steps is '-1'", claim_steps},
                 {"no checkpoint", claim_format}};
    ck_assert_int_eq(TRAIN("a", "--seed", "1"), 0);
    for (size_t i = 0; i < COUNT(cases); i++) {
        char command[9000];
        refuse_checkpoint(cases[i].part, cases[i].spoil);
        snprintf(command, sizeof command, "cp '%s' '%s'", in_folder("a/final.safetensors"),
                 in_folder("a/checkpoint.safetensors"));
        ck_assert_int_eq(system(command), 0);
    }
    ck_assert_int_eq(TRAIN("a", "--resume"), 0); /* as it was, it is read */
}
END_TEST

/* Where there is no room for a checkpoint the one before is whole. */
START_TEST(a_full_disk_leaves_the_last_checkpoint)
{
    ck_assert_int_eq(TRAIN("a", "--steps", "3"), 0);
    const setting full = {.file_limit = 20000};
    int status = run_as(&full, (const char *const[]){"train", "--text", in_folder("text"),
                                                     "--config", in_folder("small.json"), "--out",
                                                     in_folder("b"), NULL});
    expect_failure(status, 2, "safetensors");
    ck_assert(!exists("b/checkpoint.safetensors"));
    et_gpt *g;
    et_tensor_file file;
    et_error error;
    ck_assert_msg(et_checkpoint_read(in_folder("a/final.safetensors"), 0, 0, &g, &file, &error) ==
                      ET_OK,
                  "%s", error.text);
    ck_assert_uint_eq(et_gpt_progress_of(g)->steps, 3);
    /* Over a whole one, too: a run that goes on from step 2 cannot write one of step 3. */
    et_gpt_progress_of(g)->steps = 2;
    const char *const notes[] = {"seed", et_tensor_file_metadata(&file, "seed"), "text_fnv1a",
                                 et_tensor_file_metadata(&file, "text_fnv1a"), NULL};
    const char *const places[] = {"a/checkpoint.safetensors", "b/checkpoint.safetensors"};
    for (size_t i = 0; i < COUNT(places); i++)
        ck_assert(et_checkpoint_write(in_folder(places[i]), g, notes, &error) == ET_OK);
    status = run_as(&full, (const char *const[]){"train", "--text", in_folder("text"), "--out",
                                                 in_folder("a"), "--resume", NULL});
    expect_failure(status, 2, "checkpoint.safetensors");
    same_files("a/checkpoint.safetensors", "b/checkpoint.safetensors");
    et_gpt_free(g);
    et_tensor_file_close(&file);
    ck_assert(et_checkpoint_read(in_folder("b/checkpoint.safetensors"), 0, 1000, &g, &file,
                                 &error) == ET_ENOMEM);
}
END_TEST

/* ---- what is refused ---- */

START_TEST(bad_texts_are_refused)
{
    static const size_t sizes[] = {0, 1, 16, 17, 33};
    for (size_t i = 0; i < COUNT(sizes); i++) {
        write_corpus(sizes[i]);
        expect_failure(TRAIN("a", "--seed", "1"), 2, "at least 34");
    }
    expect_failure(RUN("train", "--text", folder, "--out", in_folder("a")), 2, "no regular file");
    expect_failure(RUN("train", "--text", "/nosuch", "--out", in_folder("a")), 2, "/nosuch");
    ck_assert(!exists("a"));
    write_corpus(34); /* one sequence to train on, one to hold out */
    ck_assert_int_eq(TRAIN("a", "--steps", "2"), 0);
    FILE *file = fopen(in_folder("text"), "w"); /* any bytes, UTF-8 or not */
    for (int i = 0; i < 1000; i++) fputc(i * 37 % 256, file);
    fclose(file);
    ck_assert_int_eq(TRAIN("b", "--steps", "2", "--rule", "dense"), 0);
    ck_assert_int_eq(TRAIN("c", "--steps", "2", "--rule", "dense"), 0);
    same_files("b/final.safetensors", "c/final.safetensors");
}
END_TEST

/* Half a gigabyte, which no page of the disk holds: a run reads what it needs. */
START_TEST(a_text_need_not_fit_into_memory)
{
    struct rusage use;
    ck_assert_int_eq(truncate(in_folder("text"), (off_t)1 << 29), 0);
    ck_assert_int_eq(TRAIN("a", "--steps", "2"), 0);
    ck_assert_int_eq(getrusage(RUSAGE_CHILDREN, &use), 0);
    ck_assert_msg(use.ru_maxrss < 400000, "%ld KB", use.ru_maxrss); /* a sanitizer's own in it */
}
END_TEST

START_TEST(bad_options_are_refused_by_name)
{
    expect_failure(RUN("train", "--out", in_folder("a")), 2, "--text FILE");
    expect_failure(RUN("train", "--text", in_folder("text")), 2, "--out DIR");
    expect_failure(TRAIN("a", "--rule", "top"), 2, "dense|tc|ec|et");
    expect_failure(TRAIN("a", "--seed", "x"), 2, "--seed x");
    expect_failure(TRAIN("a", "--tokens", "40"), 2, "--tokens 40");
    expect_failure(TRAIN("a", "more"), 2, "'more'");
    expect_failure(TRAIN("a", "--resume"), 2, "final.safetensors");
    static const struct {
        const char *json, *part;
    } configs[] = {{"{\"head\": 2}", "did you mean heads"},
                   {"{\"heads\": 0}", "heads = 0"},
                   {"{\"head_dim\": 3}", "head_dim"},
                   {"{\"clip\": \"no\"}", "clip"},
                   {"{\"grouping\": \"all\"}", "each|stacked"},
                   {"{\"ffn\": 3}", "ffn"},
                   {"{\"ffn\": {\"rul\": \"et\"}}", "rul"},
                   {"{\"ffn\": {\"granularity\": 99}}", "granularity"},
                   {"{\"vocab\": 300}", "vocab"},
                   {"[1]", "object"},
                   {"{\"heads\": 2, \"heads\": 4}", "duplicate"},
                   {"{\"batch\": 2000000000}", "batch"},
                   {"{\"batch\": 4000000, \"sequence\": 500}", "MB"},
                   {"{", "line 1"}};
    for (size_t i = 0; i < COUNT(configs); i++) {
        write_text("small.json", configs[i].json);
        expect_failure(TRAIN("a", "--seed", "1"), 2, configs[i].part);
        ck_assert(!exists("a"));
    }
}
END_TEST

START_TEST(a_run_is_not_overwritten_nor_mixed)
{
    ck_assert_int_eq(TRAIN("a", "--steps", "3"), 0);
    expect_failure(TRAIN("a", "--steps", "3"), 2, "--resume");
    expect_failure(TRAIN("a", "--resume", "--steps", "5"), 2, "another steps");
    expect_failure(TRAIN("a", "--resume", "--steps", "3", "--seed", "2"), 2, "--seed 2");
    write_corpus(3001);
    expect_failure(TRAIN("a", "--resume", "--steps", "3"), 2, "is not the text");
}
END_TEST

/* ---- runs that go wrong ---- */

/* Learning rates that grow until the model breaks. */
static const char rising[] = "{\"engine\": \"plain\", \"heads\": 2, \"sequence\": 16, \"batch\": 2,"
                             " \"d_model\": 16, \"layers\": 2, \"steps\": 400, \"warmup\": 400,"
                             " \"clip\": 0, \"rate_muon\": 1, \"rate_wte\": 200, \"rate_head\": 30,"
                             " \"ffn\": {\"experts\": 4, \"ema_decay\": 0.9}}";

START_TEST(a_loss_far_above_its_mean_stops_the_run)
{
    write_text("small.json", rising);
    expect_failure(TRAIN("a", "--seed", "1"), 2, "far above its mean");
    ck_assert_ptr_nonnull(strstr(errors, "step "));
    ck_assert_ptr_nonnull(strstr(errors, "the gradient of "));
}
END_TEST

/* A weight so large that its layer overflows. */
START_TEST(what_is_not_finite_stops_the_run)
{
    et_gpt *g;
    et_tensor_file file;
    et_gpt_tensor *t;
    ck_assert_int_eq(TRAIN("a", "--steps", "3"), 0);
    ck_assert(et_checkpoint_read(in_folder("a/final.safetensors"), 0, 0, &g, &file, NULL) == ET_OK);
    for (size_t i = 0; (t = et_gpt_tensor_at(g, i)) != NULL; i++)
        if (strcmp(t->name, "layers.0.w_up") == 0) t->value[0] = ET_REAL_MAX / 4;
    et_gpt_progress_of(g)->steps = 2;
    const char *const notes[] = {"seed", et_tensor_file_metadata(&file, "seed"), "text_fnv1a",
                                 et_tensor_file_metadata(&file, "text_fnv1a"), NULL};
    ck_assert(et_checkpoint_write(in_folder("a/checkpoint.safetensors"), g, notes, NULL) == ET_OK);
    et_gpt_free(g);
    et_tensor_file_close(&file);
    expect_failure(TRAIN("a", "--resume", "--steps", "3"), 2, "step 2");
    ck_assert_msg(strstr(errors, "layers.0.act") || strstr(errors, "layers.0.pre"), "%s", errors);
}
END_TEST

/* What is printed of a configuration is read back as the same one. */
START_TEST(configurations_come_back)
{
    static const char *const texts[] = {
        "{}", "{\"ffn\": {\"layer\": \"dense\"}, \"d_model\": 64}",
        "{\"ffn\": {\"rule\": \"tc\", \"top_k\": 2, \"balance\": \"aux\"}, \"clip\": 0.1}",
        "{\"ffn\": {\"rule\": \"ec\", \"pool_tokens\": 256, \"shared\": false}, \"heads\": 4}",
        "{\"ffn\": {\"capacity_factor\": 0.5, \"threshold\": \"inclusive\"}, \"clip\": 0}"};
    for (size_t i = 0; i < COUNT(texts); i++) {
        et_gpt_config c, again;
        et_error error;
        char *first, *second;
        ck_assert_msg(et_gpt_config_parse(&c, texts[i], strlen(texts[i]), "test", &error) == ET_OK,
                      "%s", error.text);
        ck_assert_msg(et_gpt_config_print(&first, &c, &error) == ET_OK, "%s", error.text);
        ck_assert_msg(et_gpt_config_parse(&again, first, strlen(first), "test", &error) == ET_OK,
                      "%s", error.text);
        ck_assert(et_gpt_config_print(&second, &again, &error) == ET_OK);
        ck_assert_str_eq(first, second);
        free(first);
        free(second);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("train");
    setenv("OMP_NUM_THREADS", "1", 1); /* the models are so small that threads would only cost */
    TCase *tests = add_case(suite, "train");
    tcase_add_checked_fixture(tests, begin_folder, remove_runs);
    if (sizeof(et_real) == sizeof(double)) tcase_add_test(tests, ten_losses_are_what_they_were);
    tcase_add_test(tests, checkpoints_stay_where_asked);
    tcase_add_test(tests, the_log_says_how_layers_routed);
    tcase_add_test(tests, an_interrupted_run_goes_on_bit_for_bit);
    tcase_add_test(tests, a_killed_run_goes_on_bit_for_bit);
    tcase_add_test(tests, a_run_with_blas_goes_on_bit_for_bit);
    if (sizeof(et_real) == sizeof(double)) tcase_add_test(tests, hostile_checkpoints_are_refused);
    tcase_add_test(tests, a_full_disk_leaves_the_last_checkpoint);
    tcase_add_test(tests, bad_texts_are_refused);
    tcase_add_test(tests, a_text_need_not_fit_into_memory);
    tcase_add_test(tests, bad_options_are_refused_by_name);
    tcase_add_test(tests, a_run_is_not_overwritten_nor_mixed);
    tcase_add_test(tests, a_loss_far_above_its_mean_stops_the_run);
    tcase_add_test(tests, what_is_not_finite_stops_the_run);
    tcase_add_test(tests, configurations_come_back);
    return run_suite(suite);
}
