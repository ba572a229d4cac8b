/* explain.h: what would explain a mismatch; for those who call et_verify_with. Internal. See explain.c. */
#ifndef ET_EXPLAIN_H
#define ET_EXPLAIN_H

#include "ref/verdict/judge.h"

/* An et_explainer. */
et_status et_explain(et_verdict *verdict, const et_judgement *j, et_error *error);

#endif
