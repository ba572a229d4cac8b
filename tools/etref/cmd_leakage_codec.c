/* cmd_leakage_codec.c: `etref leakage encode`, `decode` and `reach`: Algorithm 2 from a command line.
 *
 * encode takes a selection, as a string of 0 and 1 or as an expert's column of a bundle's mask, and
 * gives scores and cutoff; decode takes the cutoff and gives the selection. Without --precision the
 * numbers are exact, dyadic, written in binary. With it they are numbers of a float type, and the
 * report says whether expert choice on the scores, and the decoder from the cutoff, still find the
 * selection; exit status 1 if one of them does not.
 */
#include "tools/etref/commands.h"
#include "tools/etref/cmd_leakage.h"
#include "tools/etref/terminal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TYPES "f64|f32|f16|bf16"

static const et_dtype types[] = {ET_F64, ET_F32, ET_F16, ET_BF16};
static const char *const type_names[] = {"f64", "f32", "f16", "bf16"};

/* Scores are many digits: a batch's are shown up to here unless --all asks for them. */
enum { MOST_DIGITS = 1 << 20, FEW_TOKENS = 64 };

typedef struct codec_options {
    const char *word; /* digits, a file, or - */
    const char *mask;
    uint64_t expert, tokens;
    int precision; /* index of `types`, or -1: exact */
    int format;
    bool quiet, all;
} codec_options;

/* ---- strings of 0 and 1 ---- */

typedef struct digits {
    size_t count;
    char *at; /* without a terminator */
} digits;

static bool is_digits(const char *word)
{
    return *word != '\0' && word[strspn(word, "01.")] == '\0';
}

/* Keeps the digits of the one word of `text`; a leading "0." goes. */
static et_status keep_digits(digits *out, const char *text, size_t length, const char *where,
                             et_error *error)
{
    static const char white[] = " \t\r\n";
    if (strlen(text) != length)
        return et_fail(error, ET_EINVAL, "%s: holds a zero byte; text of 0 and 1 belongs here",
                       where);
    text += strspn(text, white);
    if (strncmp(text, "0.", 2) == 0) text += 2;
    out->count = strcspn(text, white);
    if (text[out->count + strspn(text + out->count, white)] != '\0')
        return et_fail(error, ET_EINVAL,
                       "%s: more than one word; one string of 0 and 1 belongs here", where);
    if (out->count == 0)
        return et_fail(error, ET_EINVAL, "%s: no digits; a string of 0 and 1 belongs here", where);
    if (out->count > MOST_DIGITS)
        return et_fail(error, ET_EINVAL, "%s: %zu digits; at most %d", where, out->count,
                       MOST_DIGITS);
    size_t fine = strspn(text, "01");
    if (fine < out->count)
        return et_fail(error, ET_EINVAL, "%s: digit %zu is '%c'; 0 and 1 belong here", where, fine,
                       text[fine]);
    out->at = allocate(out->count, 1);
    memcpy(out->at, text, out->count);
    return ET_OK;
}

static et_status read_digits(digits *out, const char *word, et_error *error)
{
    char *text = NULL;
    size_t length = 0;
    if (is_digits(word)) return keep_digits(out, word, strlen(word), word, error);
    if (strcmp(word, "-") != 0 && access(word, F_OK) != 0)
        return et_fail(error, ET_EINVAL,
                       "'%s' is neither a string of 0 and 1 nor a file that is there", word);
    et_status status =
        read_text(word, 2 * MOST_DIGITS, "a string of 0 and 1", &text, &length, error);
    if (status == ET_OK) status = keep_digits(out, text, length, word, error);
    free(text);
    return status;
}

/* ---- the selection ---- */

typedef struct selection {
    size_t N, k;
    uint8_t *z;
} selection;

static et_status read_column(selection *s, const codec_options *o, et_error *error)
{
    et_tensor_file file;
    double *mask = NULL;
    size_t shape[2];
    et_status status = et_tensor_file_open(&file, o->mask, error);
    if (status != ET_OK) return status;
    status = read_mask(&file, &mask, shape, error);
    if (status == ET_OK && o->expert >= shape[1])
        status = et_fail(error, ET_EINVAL, "--expert %llu: %s has experts 0 to %zu",
                         (unsigned long long)o->expert, o->mask, shape[1] - 1);
    if (status == ET_OK && shape[0] > MOST_DIGITS)
        status =
            et_fail(error, ET_EINVAL, "%s: %zu tokens; at most %d", o->mask, shape[0], MOST_DIGITS);
    if (status == ET_OK) {
        s->N = shape[0];
        s->z = allocate(s->N, 1);
        for (size_t t = 0; t < s->N; t++) s->z[t] = mask[t * shape[1] + o->expert] != 0;
    }
    free(mask);
    et_tensor_file_close(&file);
    return status;
}

static et_status read_selection(selection *s, const codec_options *o, et_error *error)
{
    digits d = {0};
    et_status status = o->mask ? read_column(s, o, error) : read_digits(&d, o->word, error);
    if (status == ET_OK && !o->mask) {
        s->N = d.count;
        s->z = allocate(s->N, 1);
        /* d.at was read, or reading failed. NOLINTNEXTLINE(clang-analyzer-core.NullDereference) */
        for (size_t t = 0; t < s->N; t++) s->z[t] = d.at[t] == '1';
    }
    for (size_t t = 0; status == ET_OK && t < s->N; t++) s->k += s->z[t];
    free(d.at);
    return status;
}

static void print_selection(const selection *s)
{
    for (size_t t = 0; t < s->N; t++) putchar(s->z[t] ? '1' : '0');
}

static json_t *selection_json(const selection *s)
{
    char *text = allocate(s->N + 1, 1);
    for (size_t t = 0; t < s->N; t++) text[t] = s->z[t] ? '1' : '0';
    json_t *value = json_string(text);
    free(text);
    return value;
}

static bool shows_scores(const codec_options *o, size_t N)
{
    return o->all || N <= FEW_TOKENS;
}

/* ---- encode, exactly ---- */

/* The scores have N(N+1)/2 digits: they are printed one by one, and never held together. */
static void print_encoded_json(const codec_options *o, const selection *s, const char *cutoff)
{
    json_t *report = json_object();
    char *score = allocate(s->N + 1, 1);
    json_object_set_new(report, "tokens", json_integer((json_int_t)s->N));
    json_object_set_new(report, "select", json_integer((json_int_t)s->k));
    json_object_set_new(report, "selection", selection_json(s));
    json_object_set_new(report, "cutoff", json_string(cutoff));
    json_print_open(report);
    fputs(",\n  \"scores\": [", stdout);
    size_t shown = shows_scores(o, s->N) ? s->N : 0;
    for (size_t t = 0; t < shown; t++) {
        et_codec_score(t, s->z, score);
        printf("%s\n    \"%.*s\"", t > 0 ? "," : "", (int)(t + 1), score);
    }
    puts(shown > 0 ? "\n  ]\n}" : "]\n}");
    free(score);
}

static void print_encoded(const codec_options *o, const selection *s, const char *cutoff)
{
    char *score = allocate(s->N + 1, 1);
    printf("%zu tokens, %zu taken: the top %zu of these scores, and all above the cutoff\n\n", s->N,
           s->k, s->k);
    printf("cutoff  0.%s\n", cutoff);
    if (shows_scores(o, s->N)) puts("\ntoken  taken  score, in binary");
    for (size_t t = 0; t < s->N && shows_scores(o, s->N); t++) {
        et_codec_score(t, s->z, score);
        printf("%5zu  %5d  0.%.*s\n", t, s->z[t], (int)(t + 1), score);
    }
    if (!shows_scores(o, s->N)) puts("\n(--all prints the scores)");
    free(score);
}

static int encode_exactly(const codec_options *o, const selection *s)
{
    char *cutoff = allocate(s->N + 1, 1);
    et_codec_cutoff(s->N, s->z, cutoff);
    if (o->quiet)
        puts(cutoff);
    else if (o->format == FORM_JSON)
        print_encoded_json(o, s, cutoff);
    else
        print_encoded(o, s, cutoff);
    free(cutoff);
    return STATUS_PASS;
}

/* ---- encode, in a float type ---- */

typedef struct rounded {
    double *scores; /* [N] */
    double cutoff;
    size_t carried;
    uint8_t *chosen, *decoded; /* [N] by expert choice on the scores; from the cutoff */
    size_t wrong_choices, wrong_codes;
} rounded;

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Expert choice sees an order and ties only, so ranks (equal ones for equal scores) stand for scores
 * that et_real may be too short to hold. */
static et_status choose(const selection *s, const double *scores, uint8_t *chosen, et_error *error)
{
    et_real *ranks = allocate(s->N, sizeof *ranks), *margin = allocate(s->N, sizeof *margin), least;
    double *sorted = allocate(s->N, sizeof *sorted);
    if (s->N) memcpy(sorted, scores, s->N * sizeof *sorted);
    qsort(sorted, s->N, sizeof *sorted, by_value);
    size_t distinct = 0;
    for (size_t t = 0; t < s->N; t++)
        if (t == 0 || sorted[t] != sorted[distinct - 1]) sorted[distinct++] = sorted[t];
    for (size_t t = 0; t < s->N; t++) {
        const double *place = bsearch(&scores[t], sorted, distinct, sizeof *sorted, by_value);
        ranks[t] = (et_real)(place - sorted);
    }
    et_status status = ET_OK;
    if (s->k > 0)
        status =
            et_expert_choice(s->N, 1, s->N, s->k, ranks, chosen, margin, &least, NULL, 0, error);
    free(ranks);
    free(margin);
    free(sorted);
    return status;
}

static et_status round_codec(rounded *r, const selection *s, et_dtype type, et_error *error)
{
    *r = (rounded){.scores = allocate(s->N, sizeof(double)),
                   .chosen = allocate(s->N, 1),
                   .decoded = allocate(s->N, 1)};
    et_status status;
    if ((status =
             et_codec_encode_in(type, s->N, s->z, r->scores, &r->cutoff, &r->carried, error)) ||
        (status = et_codec_decode_in(type, s->N, r->cutoff, r->decoded, error)) ||
        (status = choose(s, r->scores, r->chosen, error)))
        return status;
    for (size_t t = 0; t < s->N; t++) {
        r->wrong_choices += r->chosen[t] != s->z[t];
        r->wrong_codes += r->decoded[t] != s->z[t];
    }
    return ET_OK;
}

static void rounded_free(rounded *r)
{
    free(r->scores);
    free(r->chosen);
    free(r->decoded);
}

static json_t *rounded_json(const codec_options *o, const selection *s, const rounded *r)
{
    json_t *report = json_object(), *scores = json_array();
    json_object_set_new(report, "precision", json_string(type_names[o->precision]));
    json_object_set_new(report, "tokens", json_integer((json_int_t)s->N));
    json_object_set_new(report, "select", json_integer((json_int_t)s->k));
    json_object_set_new(report, "selection", selection_json(s));
    json_object_set_new(report, "cutoff", et_json_number(r->cutoff));
    json_object_set_new(report, "carried", json_integer((json_int_t)r->carried));
    json_object_set_new(report, "chosen_differently", json_integer((json_int_t)r->wrong_choices));
    json_object_set_new(report, "decoded_differently", json_integer((json_int_t)r->wrong_codes));
    for (size_t t = 0; t < s->N && shows_scores(o, s->N); t++)
        json_array_append_new(scores, et_json_number(r->scores[t]));
    json_object_set_new(report, "scores", scores);
    return report;
}

static void print_rounded(const codec_options *o, const selection *s, const rounded *r)
{
    et_table table;
    printf("%zu tokens, %zu taken, scores in %s: %zu of them exact\n\n", s->N, s->k,
           type_names[o->precision], r->carried);
    printf("cutoff  %.17g\n", r->cutoff);
    et_table_begin(&table, "rrrrr");
    static const char *const heads[] = {"token", "taken", "score", "by expert choice",
                                        "by the decoder"};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) et_table_cell(&table, "%s", heads[i]);
    for (size_t t = 0; t < s->N && shows_scores(o, s->N); t++) {
        et_table_cell(&table, "%zu", t);
        et_table_cell(&table, "%d", s->z[t]);
        et_table_cell(&table, "%.17g", r->scores[t]);
        et_table_cell(&table, "%d%s", r->chosen[t], r->chosen[t] == s->z[t] ? "" : " wrong");
        et_table_cell(&table, "%d%s", r->decoded[t], r->decoded[t] == s->z[t] ? "" : " wrong");
    }
    putchar('\n');
    if (shows_scores(o, s->N))
        table_print(&table);
    else
        puts("(--all prints the scores)");
    et_table_free(&table);
    putchar('\n');
    if (r->carried < s->N)
        printf("at token %zu the bracket's ends are neighbours in %s: its midpoint rounds\nto one "
               "of them, and from there on it may no longer tell decisions apart\n",
               r->carried, type_names[o->precision]);
    printf("expert choice on these scores: %s (%zu decisions differ)\n"
           "the decoder from this cutoff:  %s (%zu decisions differ)\n",
           r->wrong_choices ? "another selection" : "this selection", r->wrong_choices,
           r->wrong_codes ? "another selection" : "this selection", r->wrong_codes);
}

static int encode_in(const codec_options *o, const selection *s)
{
    rounded r;
    et_error error = {0};
    et_status status = round_codec(&r, s, types[o->precision], &error);
    if (status == ET_OK && o->quiet)
        printf("%.17g\n", r.cutoff);
    else if (status == ET_OK && o->format == FORM_JSON)
        json_print(rounded_json(o, s, &r));
    else if (status == ET_OK)
        print_rounded(o, s, &r);
    bool lost = r.wrong_choices + r.wrong_codes > 0;
    rounded_free(&r);
    if (status != ET_OK) return fail_status(status, &error);
    return lost ? STATUS_MISMATCH : STATUS_PASS;
}

/* ---- decode ---- */

static int print_decoded(const codec_options *o, selection *s)
{
    for (size_t t = 0; t < s->N; t++) s->k += s->z[t];
    if (o->format == FORM_JSON) {
        json_t *report = json_object();
        json_object_set_new(report, "tokens", json_integer((json_int_t)s->N));
        json_object_set_new(report, "select", json_integer((json_int_t)s->k));
        json_object_set_new(report, "selection", selection_json(s));
        json_print(report);
        return STATUS_PASS;
    }
    print_selection(s);
    putchar('\n');
    return STATUS_PASS;
}

static et_status decode_exactly(const codec_options *o, selection *s, et_error *error)
{
    digits d = {0};
    et_status status = read_digits(&d, o->word, error);
    if (status == ET_OK) {
        s->N = d.count;
        s->z = allocate(s->N, 1);
        status = et_codec_decode(s->N, d.at, s->z, error);
    }
    free(d.at);
    return status;
}

static et_status decode_in(const codec_options *o, selection *s, et_error *error)
{
    char *end;
    double cutoff = strtod(o->word, &end);
    if (end == o->word || *end != '\0')
        return et_fail(error, ET_EINVAL,
                       "leakage decode: '%s' is no cutoff; with --precision it is a number, as "
                       "'etref leakage encode --precision %s --quiet' prints it",
                       o->word, type_names[o->precision]);
    et_dtype type = types[o->precision];
    if (!(cutoff >= 0 && cutoff <= 1) || et_round_to_dtype(cutoff, type) != cutoff)
        return et_fail(error, ET_EINVAL,
                       "leakage decode: %s is no cutoff in %s, one of its numbers from 0 to 1",
                       o->word, type_names[o->precision]);
    s->N = (size_t)o->tokens;
    s->z = allocate(s->N, 1);
    return et_codec_decode_in(type, s->N, cutoff, s->z, error);
}

/* ---- the commands ---- */

static bool check_encode(const codec_options *o, const word_list *words, bool has_expert)
{
    if (o->quiet && o->format == FORM_JSON)
        return refuse("encode", "--quiet prints the cutoff as text; leave out --format json");
    if (words->count > 1)
        return refuse("encode", "one selection at a time: a string of 0 and 1, a file, or -");
    if (words->count == 0 && !o->mask)
        return refuse("encode",
                      "a selection belongs here: a string of 0 and 1, a file, -, or --mask "
                      "FILE --expert I");
    if (words->count == 1 && o->mask)
        return refuse("encode", "the selection is given twice: as a word and by --mask");
    if (!o->mask != !has_expert)
        return refuse("encode", "--mask FILE and --expert I belong together: which file, which "
                                "column");
    return true;
}

int leakage_encode(int argc, char **argv)
{
    codec_options o = {.precision = -1};
    const char *expert = NULL;
    word_list words = {0};
    selection s = {0};
    et_error error = {0};
    const option table[] = {{"--mask", OPTION_WORD, &o.mask, NULL},
                            {"--expert", OPTION_WORD, &expert, NULL},
                            {"--precision", OPTION_CHOICE, &o.precision, TYPES},
                            {"--format", OPTION_CHOICE, &o.format, "text|json"},
                            {"--quiet", OPTION_FLAG, &o.quiet, NULL},
                            {"--all", OPTION_FLAG, &o.all, NULL},
                            {NULL, OPTION_FLAG, NULL, NULL}};
    bool fine = options_parse(table, argc, argv, &words) &&
                check_encode(&o, &words, expert != NULL) &&
                whole_number("--expert", expert, 0, INT32_MAX, &o.expert);
    if (fine && words.count == 1) o.word = words.at[0];
    word_list_free(&words);
    if (!fine) return STATUS_BAD;
    et_status status = read_selection(&s, &o, &error);
    int result = status != ET_OK    ? fail_status(status, &error)
                 : o.precision >= 0 ? encode_in(&o, &s)
                                    : encode_exactly(&o, &s);
    free(s.z);
    return result;
}

static bool check_decode(const codec_options *o, const word_list *words, bool has_tokens)
{
    if (words->count != 1)
        return refuse("decode", "one cutoff belongs here: a string of 0 and 1, a file, or -; with "
                                "--precision a number");
    if ((o->precision >= 0) != has_tokens)
        return refuse("decode",
                      "--precision and --tokens belong together: a number does not say how "
                      "many tokens it stands for, a string of digits does");
    return true;
}

int leakage_decode(int argc, char **argv)
{
    codec_options o = {.precision = -1};
    const char *tokens = NULL;
    word_list words = {0};
    selection s = {0};
    et_error error = {0};
    const option table[] = {{"--precision", OPTION_CHOICE, &o.precision, TYPES},
                            {"--tokens", OPTION_WORD, &tokens, NULL},
                            {"--format", OPTION_CHOICE, &o.format, "text|json"},
                            {NULL, OPTION_FLAG, NULL, NULL}};
    bool fine = options_parse(table, argc, argv, &words) &&
                check_decode(&o, &words, tokens != NULL) &&
                whole_number("--tokens", tokens, 1, MOST_DIGITS, &o.tokens);
    if (fine) o.word = words.at[0];
    word_list_free(&words);
    if (!fine) return STATUS_BAD;
    et_status status =
        o.precision >= 0 ? decode_in(&o, &s, &error) : decode_exactly(&o, &s, &error);
    int result = status == ET_OK ? print_decoded(&o, &s) : fail_status(status, &error);
    free(s.z);
    return result;
}

/* ---- reach ---- */

static et_status reach_row(et_table *table, json_t *rows, size_t i, et_error *error)
{
    size_t every, some;
    et_status status = et_codec_reach(types[i], &every, &some, error);
    if (status != ET_OK) return status;
    int p = et_dtype_significand(types[i]);
    et_table_cell(table, "%s", type_names[i]);
    et_table_cell(table, "%d", p);
    et_table_cell(table, "2^-%zu", some);
    et_table_cell(table, "%zu", every);
    et_table_cell(table, "%zu", some);
    json_t *row = json_object();
    json_object_set_new(row, "precision", json_string(type_names[i]));
    json_object_set_new(row, "significand", json_integer(p));
    json_object_set_new(row, "every", json_integer((json_int_t)every));
    json_object_set_new(row, "some", json_integer((json_int_t)some));
    json_array_append_new(rows, row);
    return ET_OK;
}

int leakage_reach(int argc, char **argv)
{
    static const char *const heads[] = {"precision", "significand", "smallest", "every selection",
                                        "some selection"};
    int format = FORM_TEXT;
    word_list words = {0};
    et_table table;
    json_t *rows = json_array();
    et_error error = {0};
    et_status status = ET_OK;
    const option options[] = {{"--format", OPTION_CHOICE, &format, "text|json"},
                              {NULL, OPTION_FLAG, NULL, NULL}};
    bool fine = options_parse(options, argc, argv, &words) && no_words("reach", &words);
    word_list_free(&words);
    et_table_begin(&table, "lrrrr");
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) et_table_cell(&table, "%s", heads[i]);
    for (size_t i = 0; fine && i < sizeof types / sizeof *types && status == ET_OK; i++)
        status = reach_row(&table, rows, i, &error);
    if (fine && status == ET_OK && format == FORM_JSON) json_print(json_incref(rows));
    if (fine && status == ET_OK && format == FORM_TEXT) {
        puts("how many tokens of a selection have exact scores in a float type, measured:\n");
        table_print(&table);
        puts("\nOnce a token is refused, the bracket's lower end keeps its leading digit, and a\n"
             "type of p significand bits has p places from there; before that, midpoints are\n"
             "powers of two, down to the smallest number.");
    }
    et_table_free(&table);
    json_decref(rows);
    if (!fine) return STATUS_BAD;
    return status == ET_OK ? STATUS_PASS : fail_status(status, &error);
}
