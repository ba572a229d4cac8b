#include "ref/verdict/faults.h"
static const et_hypothesis table[] = {{.doc = {"rows-x", "x", "forward"},.nature=ET_BY_CANDIDATE}};
const et_faults et_row_faults = ET_FAULTS(table);
