/* cmd_leakage.h: the parts of `etref leakage`. What is computed stands in etref/leakage.h; here it is
 * asked for and shown. Each part is one file and gets argv with the name of the command in argv[0].
 */
#ifndef ETREF_TOOL_CMD_LEAKAGE_H
#define ETREF_TOOL_CMD_LEAKAGE_H

#include "etref/leakage.h"
#include "etref/safetensors.h"
#include "tools/etref/options.h"
#include "tools/etref/terminal.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

int leakage_bound(int argc, char **argv);
int leakage_exact(int argc, char **argv);
int leakage_encode(int argc, char **argv);
int leakage_decode(int argc, char **argv);
int leakage_reach(int argc, char **argv);
int leakage_audit(int argc, char **argv);
int leakage_study(int argc, char **argv);

/* How results are printed; "text|json|csv" in this order. */
enum { FORM_TEXT, FORM_JSON, FORM_CSV };

/* A whole number from `least` to `most`, in digits or as 2^E. `text` NULL leaves *value alone.
 * Returns false after an error message that begins with `name`, the option. */
bool whole_number(const char *name, const char *text, uint64_t least, uint64_t most,
                  uint64_t *value);

/* Says "leakage PART: message", and returns false. */
bool refuse(const char *part, const char *message);

/* Can --text be read? A regular file with something in it; false after an error message. */
bool is_text(const char *path);

/* A share as a percentage: 0 only where nothing changed at all, "-" for NaN, where nothing could. */
void share_cell(et_table *table, double share);

/* Says that `part` takes no words, if there is one. */
bool no_words(const char *part, const word_list *words);

/* All values of a file's matrix as double; the caller frees them in any case. ET_EINVAL if there is
 * no such tensor, or it has not two dimensions of at least one. */
et_status read_matrix(const et_tensor_file *file, const char *name, double **values,
                      size_t shape[2], et_error *error);

/* The same for route.mask, whose values are 0 and 1. */
et_status read_mask(const et_tensor_file *file, double **mask, size_t shape[2], et_error *error);

#endif
