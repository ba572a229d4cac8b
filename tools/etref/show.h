/* show.h: the parts of `etref show`. Files may be larger than memory and need not be honest: values
 * are read in pieces, and a tensor is only ever believed to have the shape that its header says. */
#ifndef ETREF_TOOL_SHOW_H
#define ETREF_TOOL_SHOW_H

#include "etref/bundle.h"
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

/* An open file and, if it is a bundle whose case this version understands, its case. */
typedef struct shown {
    et_tensor_file file;
    bool bundle, has_case;
    et_case c;
    const et_tensor_info *
        *order; /* [tensor_count] in the order of the mathematics, then the rest */
} shown;

/* ---- show_values.c ---- */

/* Calls `visit` with consecutive pieces of elements [0, count). */
typedef void visitor(void *user, const double *values, size_t first, size_t count);
et_status visit_values(const et_tensor_file *file, const et_tensor_info *tensor, size_t count,
                       visitor *visit, void *user, et_error *error);

typedef struct tensor_facts {
    double least, largest; /* of the finite elements; NaN if there is none */
    double norm;           /* Euclidean, of the finite elements */
    size_t zeros, nonfinite;
} tensor_facts;
et_status tensor_facts_read(tensor_facts *facts, const et_tensor_file *file,
                            const et_tensor_info *tensor, et_error *error);

/* False for the 8-bit floats, whose values cannot be read. */
bool has_values(const et_tensor_info *tensor);

/* The first `limit` values (0: all) under a heading, or as one JSON object. */
et_status show_values_text(const shown *s, const et_tensor_info *tensor, size_t limit,
                           et_error *error);
et_status show_values_json(const shown *s, const et_tensor_info *tensor, size_t limit,
                           et_error *error);
json_t *facts_json(const et_tensor_info *tensor, const tensor_facts *facts);

/* ---- show_routing.c ---- */

/* All values of a tensor that has exactly this shape (columns 0: a vector), or NULL in *out if the
 * file has none such. The caller frees it. */
et_status read_shaped(double **out, const et_tensor_file *file, const char *name, size_t rows,
                      size_t columns, et_error *error);

/* Loads, fanout, state, losses and metrics; and on small bundles who goes where. */
et_status show_routing_text(const shown *s, et_error *error);
et_status add_routing_json(json_t *report, const shown *s, et_error *error);

#endif
