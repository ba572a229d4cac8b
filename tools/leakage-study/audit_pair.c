/* audit_pair.c: two routings of batches that begin alike; and how to make such batches.
 *
 *     audit A B                    A and B hold in.x and route.mask
 *     audit A B KERNEL_A KERNEL_B  A and B hold in.x, the kernel's files route.mask
 *
 * What the two batches share is the longest prefix of equal rows of in.x. A causal rule decides a
 * shared token alike; what comes later is not compared. --twin makes the second batch of the first.
 *
 * Pools and micro-batches do not see each other. Only in the one that is shared in part has a
 * decision other tokens behind it; where there is none, equal decisions prove nothing.
 */
#include "etref/bundle.h"
#include "tools/etref/commands.h"
#include "tools/etref/cmd_leakage.h"
#include "tools/leakage-study/audit_command.h"
#include "tools/leakage-study/audit_fresh.h"
#include "tools/etref/memory_limit.h"
#include "tools/etref/partial.h"
#include "tools/etref/terminal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { SHOWN = 10 };

typedef struct pair {
    const char *const *names; /* A, B, and the files of the masks */
    et_tensor_file inputs[2], masks[2];
    double *x[2], *mask[2];
    size_t N, d, n, shared;
    size_t batch; /* tokens that are routed together, of the case; N where no case says it */
    bool knows_batch;
    et_audit_count count; /* each [shared] */
    uint64_t changed;
} pair;

static et_status same_shape(const et_tensor_file files[2], const char *name, const size_t a[2],
                            const size_t b[2], et_error *error)
{
    if (a[0] == b[0] && a[1] == b[1]) return ET_OK;
    return et_fail(error, ET_EINVAL,
                   "%s is [%zu,%zu] in %s and [%zu,%zu] in %s: only batches of one shape compare",
                   name, a[0], a[1], files[0].path, b[0], b[1], files[1].path);
}

/* What else decides must be the same in both, where both say it. */
static et_status same_tensor(const pair *p, const char *name, et_error *error)
{
    const et_tensor_info *a = et_tensor_file_find(&p->inputs[0], name),
                         *b = et_tensor_file_find(&p->inputs[1], name);
    if (a == NULL || b == NULL) return ET_OK;
    double *values = allocate(a->count + b->count, sizeof *values);
    et_status status = a->count == b->count ? ET_OK : ET_EINVAL;
    if (status == ET_OK) status = et_tensor_file_read(&p->inputs[0], a, 0, a->count, values, error);
    if (status == ET_OK)
        status = et_tensor_file_read(&p->inputs[1], b, 0, b->count, values + a->count, error);
    bool same = status == ET_OK;
    for (size_t i = 0; same && i < a->count; i++) same = values[i] == values[a->count + i];
    free(values);
    if (same) return ET_OK;
    return et_fail(
        error, ET_EINVAL,
        "%s and %s have different %s: their decisions may differ for that alone; make the "
        "second with --twin",
        p->names[0], p->names[1], name);
}

/* EC's pool; a micro-batch for the other rules. */
static size_t tokens_together(const et_case *c)
{
    return et_case_routes_by_choice(c) ? c->pool_tokens : et_case_micro_tokens(c);
}

/* A case in the metadata of both must ask for the same routing. */
static et_status same_case(pair *p, et_error *error)
{
    et_case c[2];
    for (int i = 0; i < 2; i++) {
        const char *text = et_tensor_file_metadata(&p->inputs[i], "case");
        if (text == NULL ||
            !could_be_read(et_case_parse(&c[i], text, strlen(text), p->names[i], NULL)))
            return ET_OK;
        memset(c[i].name, 0, sizeof c[i].name);
        memset(c[i].hunts, 0, sizeof c[i].hunts);
        memset(&c[i].input, 0, sizeof c[i].input);
    }
    p->knows_batch = c[0].layer == ET_MOE && tokens_together(&c[0]) > 0;
    if (p->knows_batch) p->batch = tokens_together(&c[0]);
    if (memcmp(&c[0], &c[1], sizeof *c) == 0) return ET_OK;
    return et_fail(error, ET_EINVAL,
                   "%s and %s are of different cases; two batches of one case belong here",
                   p->names[0], p->names[1]);
}

static size_t shared_prefix(const pair *p)
{
    size_t t = 0;
    for (; t < p->N; t++)
        for (size_t j = t * p->d; j < (t + 1) * p->d; j++)
            if (p->x[0][j] != p->x[1][j]) return t;
    return t;
}

/* One file for both batches would agree with itself; and all experts must have been decided on. */
static et_status check_masks(const pair *p, const size_t mask[2], et_error *error)
{
    struct stat a, b;
    const et_tensor_info *router = et_tensor_file_find(&p->inputs[0], "in.w_router");
    const char *one = p->masks[0].path, *other = p->masks[1].path;
    if (one != p->inputs[0].path && strcmp(one, p->names[0]) != 0 && stat(one, &a) == 0 &&
        stat(other, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino)
        return et_fail(error, ET_EINVAL,
                       "%s and %s are one file: the kernel's decisions on each batch belong here",
                       one, other);
    if (router && router->rank == 2 && router->shape[0] != mask[1])
        return et_fail(error, ET_EINVAL, "%s decides on %zu experts; %s has %zu", one, mask[1],
                       p->names[0], router->shape[0]);
    return ET_OK;
}

static et_status pair_read(pair *p, et_error *error)
{
    size_t x[2][2], mask[2][2];
    et_status status = ET_OK;
    for (int i = 0; i < 2 && status == ET_OK; i++)
        if ((status = read_matrix(&p->inputs[i], "in.x", &p->x[i], x[i], error)) == ET_OK)
            status = read_mask(&p->masks[i], &p->mask[i], mask[i], error);
    if (status == ET_OK) status = same_shape(p->inputs, "in.x", x[0], x[1], error);
    if (status == ET_OK) status = same_shape(p->masks, "route.mask", mask[0], mask[1], error);
    if (status == ET_OK && x[0][0] != mask[0][0])
        status = et_fail(error, ET_EINVAL, "%s has %zu tokens, %s decides on %zu", p->names[0],
                         x[0][0], p->masks[0].path, mask[0][0]);
    static const char *const deciding[] = {"in.w_router", "in.ema", "in.bias"};
    for (size_t i = 0; i < 3 && status == ET_OK; i++) status = same_tensor(p, deciding[i], error);
    if (status == ET_OK) status = check_masks(p, mask[0], error);
    p->batch = x[0][0];
    if (status == ET_OK) status = same_case(p, error);
    if (status != ET_OK) return status;
    p->N = x[0][0];
    p->d = x[0][1];
    p->n = mask[0][1];
    p->shared = shared_prefix(p);
    return ET_OK;
}

static et_status pair_open(pair *p, const word_list *files, et_error *error)
{
    et_status status = ET_OK;
    *p = (pair){.names = files->at};
    for (size_t i = 0; i < 2 && status == ET_OK; i++) {
        const char *mask = files->count == 4 ? files->at[2 + i] : files->at[i];
        if ((status = et_tensor_file_open(&p->inputs[i], files->at[i], error)) == ET_OK)
            status = et_tensor_file_open(&p->masks[i], mask, error);
    }
    return status == ET_OK ? pair_read(p, error) : status;
}

static void pair_close(pair *p)
{
    for (int i = 0; i < 2; i++) {
        free(p->x[i]);
        free(p->mask[i]);
        et_tensor_file_close(&p->inputs[i]);
        et_tensor_file_close(&p->masks[i]);
    }
    free(p->count.compared);
}

static bool differs(const pair *p, size_t j)
{
    return (p->mask[0][j] != 0) != (p->mask[1][j] != 0);
}

static void compare(pair *p)
{
    p->count.compared = allocate(3 * p->shared, sizeof *p->count.compared);
    p->count.taken = p->count.compared + p->shared;
    p->count.changed = p->count.taken + p->shared;
    for (size_t t = 0; t < p->shared; t++) {
        p->count.compared[t] = p->n;
        for (size_t j = t * p->n; j < (t + 1) * p->n; j++) {
            p->count.taken[t] += p->mask[0][j] != 0;
            p->count.changed[t] += differs(p, j);
        }
        p->changed += p->count.changed[t];
    }
}

/* ---- the report ---- */

/* Decisions with a replaced token in their own batch. */
static size_t tested(const pair *p)
{
    return p->shared < p->N ? p->shared % p->batch * p->n : 0;
}

static bool any_taken(const pair *p)
{
    for (size_t j = 0; j < p->shared * p->n; j++)
        if (p->mask[0][j] != 0 || p->mask[1][j] != 0) return true;
    return false;
}

/* NULL, or why there is nothing to compare. */
static const char *nothing(const pair *p)
{
    if (p->shared == 0) return "the first tokens of in.x differ: no shared prefix";
    if (p->shared == p->N && p->changed == 0)
        return "in.x is the same throughout: no future was replaced";
    if (tested(p) == 0 && p->changed == 0)
        return "the shared tokens end where a pool or micro-batch does, and the next does not see "
               "them: "
               "cut inside one";
    if (!any_taken(p)) return "no mask takes a shared token: nothing was decided";
    return NULL;
}

static const char *verdict_of(const pair *p)
{
    return nothing(p) ? "inconclusive" : p->changed ? "leaks" : "causal";
}

static void report_json(const pair *p, const audit_options *o)
{
    json_t *report = json_object(), *first = json_array();
    json_object_set_new(report, "file", et_json_clean(p->names[0]));
    json_object_set_new(report, "against", et_json_clean(p->names[1]));
    json_object_set_new(report, "verdict", json_string(verdict_of(p)));
    if (nothing(p)) json_object_set_new(report, "reason", json_string(nothing(p)));
    json_object_set_new(report, "tokens", json_integer((json_int_t)p->N));
    json_object_set_new(report, "shared", json_integer((json_int_t)p->shared));
    json_object_set_new(report, "compared", json_integer((json_int_t)(p->shared * p->n)));
    json_object_set_new(report, "batch", json_integer((json_int_t)p->batch));
    json_object_set_new(report, "tested", json_integer((json_int_t)tested(p)));
    json_object_set_new(report, "changed", json_integer((json_int_t)p->changed));
    for (size_t j = 0; j < p->shared * p->n && json_array_size(first) < SHOWN; j++) {
        if (!differs(p, j)) continue;
        json_t *place = json_object();
        json_object_set_new(place, "token", json_integer((json_int_t)(j / p->n)));
        json_object_set_new(place, "expert", json_integer((json_int_t)(j % p->n)));
        json_object_set_new(place, "taken", json_boolean(p->mask[0][j] != 0));
        json_array_append_new(first, place);
    }
    json_object_set_new(report, "first", first);
    json_object_set_new(report, "positions", bands_json(&p->count, p->shared, o->bands));
    json_print(report);
}

static void print_places(const pair *p)
{
    size_t shown = 0;
    puts("\nthe first of them:");
    for (size_t j = 0; j < p->shared * p->n && shown < SHOWN; j++) {
        if (!differs(p, j)) continue;
        bool first = p->mask[0][j] != 0;
        printf("  token %zu, expert %zu: %s, then %s\n", j / p->n, j % p->n,
               first ? "taken" : "refused", first ? "refused" : "taken");
        shown++;
    }
}

static void print_bands(const pair *p, size_t bands)
{
    enum { WIDTH = 32 };
    et_table table;
    size_t width = band_width(p->shared, bands);
    et_table_begin(&table, "rrrl");
    et_table_cell(&table, "tokens");
    et_table_cell(&table, "decisions");
    et_table_cell(&table, "changed");
    et_table_cell(&table, "%s", "");
    for (size_t first = 0; first < p->shared; first += width) {
        char bar[WIDTH + 1];
        size_t last = first + width < p->shared ? first + width : p->shared;
        audit_total total = total_of(&p->count, first, last);
        print_bar(bar, WIDTH, share_of(total), -1, 1);
        et_table_cell(&table, "%zu-%zu", first, last - 1);
        et_table_cell(&table, "%llu", (unsigned long long)total.compared);
        et_table_cell(&table, "%llu", (unsigned long long)total.changed);
        et_table_cell(&table, "%s", bar);
    }
    table_print(&table);
}

static void report_text(const pair *p, const audit_options *o)
{
    printf(
        "%zu of %zu tokens are shared, %zu experts decide on each; later ones are not compared\n",
        p->shared, p->N, p->n);
    if (!p->knows_batch)
        puts("no case says which tokens are routed together: all of them, it is taken");
    else if (p->shared < p->N)
        printf("tokens are routed by batches of %zu: %zu decisions stand in one with replaced "
               "tokens\n",
               p->batch, tested(p));
    if (p->shared > 0) {
        putchar('\n');
        print_bands(p, o->bands);
    }
    if (p->changed > 0) print_places(p);
    if (p->shared == p->N && p->changed > 0)
        puts(
            "\nnote: in.x is the same throughout, so it was not the future that changed them: this "
            "routing\nis not repeatable");
    putchar('\n');
    fputs(nothing(p) ? "INCONCLUSIVE " : p->changed ? "LEAKS " : "CAUSAL ", stdout);
    print_clean(stdout, p->masks[1].path);
    if (nothing(p))
        printf(": %s\n", nothing(p));
    else
        printf(": %llu of %zu decisions on shared tokens differ\n", (unsigned long long)p->changed,
               p->shared * p->n);
}

int audit_pair(const audit_options *o)
{
    pair p;
    et_error error = {0};
    int result;
    et_status status = pair_open(&p, &o->files, &error);
    if (status == ET_OK) {
        compare(&p);
        o->format == FORM_JSON ? report_json(&p, o) : report_text(&p, o);
        result = nothing(&p) ? STATUS_INCONCLUSIVE : p.changed ? STATUS_MISMATCH : STATUS_PASS;
    } else {
        result = fail_status(status, &error);
    }
    pair_close(&p);
    return result;
}

/* ---- the twin ---- */

/* The same case, which now brings its inputs, under a name of its own. */
static et_status rename_case(et_step *s, size_t cut, et_error *error)
{
    char *text = NULL, name[sizeof s->c.name + 32];
    et_status status = et_case_print(&text, &s->c, error);
    if (status != ET_OK) return status;
    json_t *fields = json_loads(text, 0, NULL);
    free(text);
    snprintf(name, sizeof name, "%.40s-twin-%zu", s->c.name, cut);
    json_object_set_new(fields, "name", json_string(name));
    json_object_del(fields, "input");
    text = json_dumps(fields, JSON_REAL_PRECISION(17));
    json_decref(fields);
    if (text == NULL) return et_fail(error, ET_ENOMEM, "twin: no memory for its case");
    status = et_case_parse(&s->c, text, strlen(text), "twin", error);
    free(text);
    return status;
}

static et_status make_twin(et_step *s, const audit_options *o, et_error *error)
{
    et_real *fresh = NULL;
    size_t N = s->c.tokens, d = s->c.d_model;
    if (s->c.layer == ET_DENSE)
        return et_fail(error, ET_EINVAL, "%s: a dense layer decides nothing; a twin is of no use",
                       o->files.at[0]);
    if (o->cut >= N)
        return et_fail(error, ET_EINVAL, "--cut %zu: %s has %zu tokens; fewer must be kept", o->cut,
                       o->files.at[0], N);
    size_t batch = tokens_together(&s->c);
    if (o->cut % batch == 0 && batch > 1)
        return et_fail(error, ET_EINVAL,
                       "--cut %zu: between two batches of %zu tokens, which do not see each other; "
                       "cut inside one, at %zu for example",
                       o->cut, batch, o->cut + batch / 2 < N ? o->cut + batch / 2 : batch / 2);
    et_status status =
        fresh_tokens(&fresh, s, o->future == TEXT ? FRESH_TEXT : FRESH_NOISE, o->text, error);
    if (status == ET_OK) {
        memcpy(s->in.x + o->cut * d, fresh + o->cut * d, (N - o->cut) * d * sizeof *fresh);
        status = rename_case(s, o->cut, error);
    }
    free(fresh);
    if (status == ET_OK) status = et_step_check_inputs(s, error);
    if (status == ET_OK) status = et_step_run(s, ET_PLAIN, progress_show, (void *)"twin", error);
    progress_clear();
    return status;
}

static et_status check_target(const audit_options *o, et_error *error)
{
    struct stat from, to;
    if (stat(o->twin, &to) != 0 || stat(o->files.at[0], &from) != 0 || from.st_dev != to.st_dev ||
        from.st_ino != to.st_ino)
        return ET_OK;
    return et_fail(error, ET_EINVAL, "--twin %s: is the bundle itself; name another file", o->twin);
}

int write_twin(const audit_options *o)
{
    et_tensor_file file;
    et_step step;
    et_error error = {0};
    et_status status = check_target(o, &error);
    if (status == ET_OK)
        status = et_bundle_open(&file, &step, o->files.at[0], memory_limit(), &error);
    if (status != ET_OK) return fail_status(status, &error);
    et_tensor_file_close(&file);
    status = make_twin(&step, o, &error);
    if (status == ET_OK) status = partial_guard(o->twin, &error);
    if (status == ET_OK) {
        status = et_bundle_write(o->twin, &step, false, &error);
        partial_release();
    }
    if (status == ET_OK)
        printf("%s: the first %zu tokens of %s, and %zu others\n", o->twin, o->cut, o->files.at[0],
               step.c.tokens - o->cut);
    et_step_free(&step);
    return status == ET_OK ? STATUS_PASS : fail_status(status, &error);
}
