/* show_values.c: the values of one tensor, and what can be said of them in one pass. See show.h. */
#include "ref/report/describe_case.h"
#include "tools/etref/options.h"
#include "tools/etref/show.h"
#include "tools/etref/terminal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PIECE = 1 << 15, PLACE = 13, PLACES = 14 }; /* of a value, and before them */

et_status visit_values(const et_tensor_file *file, const et_tensor_info *tensor, size_t count,
                       visitor *visit, void *user, et_error *error)
{
    double *piece = allocate(count < PIECE ? count : PIECE, sizeof *piece);
    et_status status = ET_OK;
    for (size_t first = 0; first < count && status == ET_OK; first += PIECE) {
        size_t now = count - first < PIECE ? count - first : PIECE;
        status = et_tensor_file_read(file, tensor, first, now, piece, error);
        if (status == ET_OK) visit(user, piece, first, now);
    }
    free(piece);
    return status;
}

bool has_values(const et_tensor_info *tensor)
{
    return tensor->dtype != ET_F8_E4M3 && tensor->dtype != ET_F8_E5M2;
}

/* ---- facts ---- */

/* The norm is scale * sqrt(sum), with the sum taken of (value/scale)^2 and the scale the largest
 * magnitude so far: squares of 1e200 or 1e-200 neither overflow nor vanish. */
typedef struct fact_sum {
    tensor_facts facts;
    double scale, sum;
} fact_sum;

static void add_square(fact_sum *s, double magnitude)
{
    if (magnitude == 0) return;
    if (magnitude > s->scale) {
        double ratio = s->scale / magnitude;
        s->sum = 1 + s->sum * ratio * ratio;
        s->scale = magnitude;
    } else {
        double ratio = magnitude / s->scale;
        s->sum += ratio * ratio;
    }
}

static void add_facts(void *user, const double *values, size_t first, size_t count)
{
    (void)first;
    fact_sum *s = user;
    for (size_t i = 0; i < count; i++) {
        double value = values[i];
        if (!isfinite(value)) {
            s->facts.nonfinite++;
            continue;
        }
        if (!(s->facts.least <= value)) s->facts.least = value; /* also where it is still NaN */
        if (!(s->facts.largest >= value)) s->facts.largest = value;
        s->facts.zeros += value == 0;
        add_square(s, fabs(value));
    }
}

et_status tensor_facts_read(tensor_facts *facts, const et_tensor_file *file,
                            const et_tensor_info *tensor, et_error *error)
{
    fact_sum s = {.facts = {.least = NAN, .largest = NAN}};
    et_status status = ET_OK;
    if (has_values(tensor))
        status = visit_values(file, tensor, tensor->count, add_facts, &s, error);
    *facts = s.facts;
    facts->norm = s.scale * sqrt(s.sum);
    return status;
}

json_t *facts_json(const et_tensor_info *tensor, const tensor_facts *facts)
{
    json_t *row = json_object(), *shape = json_array();
    for (size_t i = 0; i < tensor->rank; i++)
        json_array_append_new(shape, json_integer((json_int_t)tensor->shape[i]));
    json_object_set_new(row, "name", et_json_clean(tensor->name));
    json_object_set_new(row, "type", json_string(et_dtype_name(tensor->dtype)));
    json_object_set_new(row, "shape", shape);
    if (!has_values(tensor)) return row;
    json_object_set_new(row, "min", et_json_number(facts->least));
    json_object_set_new(row, "max", et_json_number(facts->largest));
    json_object_set_new(row, "norm", et_json_number(facts->norm));
    json_object_set_new(row, "zeros", json_integer((json_int_t)facts->zeros));
    json_object_set_new(row, "nonfinite", json_integer((json_int_t)facts->nonfinite));
    return row;
}

/* ---- values ---- */

typedef struct value_printer {
    const et_tensor_info *tensor;
    size_t row;   /* elements of the last dimension: no line goes beyond */
    int decimals; /* -1: %.6g */
    size_t line;  /* values of a line at most */
} value_printer;

/* Each line begins with the index of its first element. */
static void print_values(void *user, const double *values, size_t first, size_t count)
{
    const value_printer *p = user;
    for (size_t i = 0; i < count; i++) {
        size_t index = first + i;
        if (index % p->row % p->line == 0) {
            char place[192];
            et_describe_place(place, sizeof place, p->tensor, index);
            printf("%s  %-12s", index ? "\n" : "", place);
        }
        if (p->decimals < 0)
            printf(" %12.6g", values[i]);
        else
            printf(" %12.*f", p->decimals, values[i]);
    }
}

static size_t shown_count(const et_tensor_info *tensor, size_t limit)
{
    if (!has_values(tensor)) return 0;
    return limit && limit < tensor->count ? limit : tensor->count;
}

static void print_heading(const et_tensor_info *tensor)
{
    char shape[192];
    const et_tensor_doc *doc = et_doc_of(tensor->name);
    et_describe_shape(shape, sizeof shape, tensor);
    print_clean(stdout, tensor->name);
    printf("  %s %s", et_dtype_name(tensor->dtype), shape);
    bool noise = strncmp(tensor->name, ET_NOISE_PREFIX, strlen(ET_NOISE_PREFIX)) == 0;
    putchar('\n');
    char meaning[400];
    snprintf(meaning, sizeof meaning, "%s%s", noise ? "expected deviation of " : "", doc ? doc->meaning : "");
    print_wrapped(2, meaning);
}

et_status show_values_text(const shown *s, const et_tensor_info *tensor, size_t limit,
                           et_error *error)
{
    size_t count = shown_count(tensor, limit);
    bool real = et_dtype_significand(tensor->dtype) > 0;
    value_printer p = {tensor, tensor->rank ? tensor->shape[tensor->rank - 1] : 1, real ? -1 : 0,
                       (terminal_width() - PLACES) / PLACE};
    print_heading(tensor);
    et_status status = visit_values(&s->file, tensor, count, print_values, &p, error);
    if (count > 0) putchar('\n');
    if (!has_values(tensor))
        puts("  (values of this type cannot be read)");
    else if (tensor->count == 0)
        puts("  (no elements)");
    else if (count < tensor->count)
        printf("  the first %zu of %zu elements; --all prints the rest\n", count, tensor->count);
    return status;
}

static void print_json_values(void *user, const double *values, size_t first, size_t count)
{
    (void)user;
    for (size_t i = 0; i < count; i++) {
        fputs(first + i ? ", " : "", stdout);
        print_number(values[i]);
    }
}

/* The values are streamed, since as JSON nodes in memory they would take ten times the file. */
et_status show_values_json(const shown *s, const et_tensor_info *tensor, size_t limit,
                           et_error *error)
{
    tensor_facts facts;
    et_status status = tensor_facts_read(&facts, &s->file, tensor, error);
    if (status != ET_OK) return status;
    json_t *row = facts_json(tensor, &facts);
    size_t count = shown_count(tensor, limit);
    json_object_set_new(row, "elements", json_integer((json_int_t)tensor->count));
    json_object_set_new(row, "shown", json_integer((json_int_t)count));
    json_print_open(row);
    fputs(", \"values\": [", stdout);
    status = visit_values(&s->file, tensor, count, print_json_values, NULL, error);
    fputs("]}\n", stdout);
    return status;
}
