/* audit.h: one batch under a routing rule: which of its decisions does a given future change, and which
 * could any future change?
 */
#ifndef ETREF_TOOL_AUDIT_H
#define ETREF_TOOL_AUDIT_H

#include "etref/routing.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A routing rule with everything that it has to know before the batch comes. */
typedef struct et_audit_rule {
    et_rule rule;
    size_t experts;      /* n */
    size_t batch;        /* U: tokens routed together: EC's pool, a micro-batch for TC and ET */
    size_t select;       /* TC: K. EC, and ET with capacity: k, whatever becomes of the tokens */
    const et_real *bias; /* [n] or NULL: TC */
    const et_real *threshold; /* [n]: ET */
    bool inclusive;           /* ET: >= instead of > */
    bool has_capacity;        /* ET */
    double capacity;          /* C */
} et_audit_rule;

/* mask [N,n] out: the rule's decisions on r [N,n], batch by batch.
 * Returns: ET_EINVAL if U does not divide N, or as the rule itself says; ET_ENOMEM. */
et_status et_audit_route(const et_audit_rule *rule, size_t N, const et_real *r, uint8_t *mask,
                         et_error *error);

/* Tokens, and what et_audit_route said of them. */
typedef struct et_audit_routed {
    size_t N;
    const et_real *r;    /* [N,n] */
    const uint8_t *mask; /* [N,n] */
} et_audit_routed;

/* Past decisions by the token's position in its batch, added up over batches, experts and calls. */
typedef struct et_audit_count {
    uint64_t *compared; /* [U] accumulated: decisions looked at */
    uint64_t *taken;    /* [U] accumulated: those of them that had been "taken" */
    uint64_t *changed;  /* [U] accumulated: those that came out differently */
} et_audit_count;

/* Keeps each batch's first `cut` tokens, takes the scores of all later ones from future [N,n], and
 * routes again: which of the kept tokens' decisions change? 0 <= cut <= U; cut = U replaces nothing.
 * Scores must be finite.
 * Returns: ET_EINVAL, ET_ENOMEM as et_audit_route; the counts are then as they were. */
et_status et_audit_replace(const et_audit_rule *rule, const et_audit_routed *tokens,
                           const et_real *future, size_t cut, et_audit_count *count,
                           et_error *error);

/* The same against every future at once: counts a kept token's decision as changed if and only if
 * some scores of the later tokens change it. Two futures decide that, all above and all below what
 * was kept (proof: audit.c). Finite scores below ET_REAL_MAX in size. */
et_status et_audit_adversary(const et_audit_rule *rule, const et_audit_routed *tokens, size_t cut,
                             et_audit_count *count, et_error *error);

#endif
