/* audit_command.h: the parts of `etref leakage audit`. */
#ifndef ETREF_TOOL_LEAKAGE_AUDIT_H
#define ETREF_TOOL_LEAKAGE_AUDIT_H

#include "etref/step.h"
#include "tools/etref/options.h"
#include "tools/leakage-study/audit.h"
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

typedef struct audit_options {
    word_list files; /* BUNDLE; A B; A B KERNEL_A KERNEL_B */
    int future;      /* one of `futures`, or -1: all */
    const char *text;
    size_t cuts, draws, bands, threads; /* 0: not given */
    bool all_rules;
    int format;       /* -1: not given */
    const char *twin; /* a bundle to write, and how many tokens to keep */
    size_t cut;
} audit_options;

enum { NOISE, TEXT, ADVERSARY, FUTURES };
extern const char *const future_names[FUTURES];

/* ---- audit_rules.c: rules under audit, and what came of them ---- */

enum { MAX_RULES = 16, MAX_CUTS = 4096 };

/* One rule, the places at which batches were cut, and the counts under each future. */
typedef struct audited {
    et_audit_rule rule;
    bool own; /* the case's own rule */
    size_t cuts, cut[MAX_CUTS];
    bool has[FUTURES];
    et_audit_count count[FUTURES]; /* each array [batch] */
} audited;

typedef struct audit_total {
    uint64_t compared, taken, changed;
} audit_total;

/* The rule by which the case of `s` routes. thresholds [n] out: what an ET rule points at. */
et_audit_rule own_rule(const et_step *s, et_real *thresholds);

/* The own rule and, with `all`, every other one that the case's sizes allow: TC, ET, and by falling
 * batch ET with capacity and EC. `fresh` [N,n] scores of other tokens, from which thresholds are
 * taken where the case has no moving average yet. Returns how many. */
size_t rules_to_audit(et_audit_rule *rules, const et_step *s, const et_real *fresh,
                      et_real *own_thresholds, et_real *thresholds, bool all, et_error *error);

/* Cuts each batch at up to `cuts` places, evenly; adds the counts of every future for which there
 * are scores [N,n] in `fresh`, each turned `draws` ways, and of the adversary where it is wanted. */
et_status audit_rule(audited *a, size_t N, const et_real *r, const et_real *const fresh[FUTURES],
                     bool adversary, size_t cuts, size_t draws, et_error *error);
void audited_free(audited *a);

audit_total total_of(const et_audit_count *count, size_t first, size_t last);
double share_of(audit_total total);
bool is_causal(const audited *a);

/* "tc", "ec", "et", "et-capacity" */
const char *rule_word(const et_audit_rule *rule);

/* "expert choice, pools of 64, k = 4" */
void describe_rule_of(char *out, size_t room, const et_audit_rule *rule);

/* ---- audit_pair.c ---- */

int audit_pair(const audit_options *o);
int write_twin(const audit_options *o);

/* Rows of positions with their counts: table and JSON. */
size_t band_width(size_t positions, size_t bands);
json_t *bands_json(const et_audit_count *count, size_t positions, size_t bands);

#endif
