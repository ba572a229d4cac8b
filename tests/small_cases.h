/* small_cases.h: small layers on which verdicts are tested, in single quotes (run_case.h).
 *
 * Of the decisive ones no decision is open, unless logits are held in few bits.
 */
#ifndef ETREF_TESTS_SMALL_CASES_H
#define ETREF_TESTS_SMALL_CASES_H

#define SMALL           "'tokens':96,'d_model':24,'d_expert':40,'precision':'bf16'"
#define DRAWN           "'input':{'source':'normal','seed':3,'decisive':true}"
#define SMALL_MOE(more) "{" more ",'experts':4," SMALL "," DRAWN "}"

#define EC_CASE SMALL_MOE("'name':'ec','rule':'ec'")
#define TC_CASE                                                                                    \
    SMALL_MOE(                                                                                     \
        "'name':'tc','rule':'tc','top_k':2,'balance':'aux','z_loss_coef':0.01,'gate':'softmax'")
#define DENSE_CASE "{'name':'dense','layer':'dense'," SMALL ",'input':{'source':'normal','seed':3}}"

/* Whole numbers: next to nothing errs, and that not independently. */
#define EXACT_CASE                                                                                 \
    "{'name':'exact','rule':'et','tokens':64,'d_model':32,'d_expert':32,'experts':8,"              \
    "'gate':'relu','precision':'bf16','input':{'source':'integer','seed':3}}"

#endif
