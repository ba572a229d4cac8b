/* kinds.h: kinds of cases, by which fields apply and tensors exist. Internal. */
#ifndef ET_KINDS_H
#define ET_KINDS_H

#include "etref/case.h"

static inline bool is_any(const et_case *c)
{
    (void)c;
    return true;
}

static inline bool is_moe(const et_case *c)
{
    return c->layer == ET_MOE;
}

static inline bool is_tc(const et_case *c)
{
    return is_moe(c) && c->rule == ET_TC;
}

/* The rules by which experts choose tokens: both keep an EMA of the k-th largest score. */
static inline bool is_ec_or_et(const et_case *c)
{
    return is_moe(c) && c->rule != ET_TC;
}

static inline bool has_shared(const et_case *c)
{
    return is_moe(c) && c->shared;
}

static inline bool has_aux_loss(const et_case *c)
{
    return is_tc(c) && (c->balance == ET_BALANCE_AUX || c->balance == ET_BALANCE_AUX_ERROR);
}

static inline bool has_bias(const et_case *c)
{
    return is_tc(c) && (c->balance == ET_BALANCE_LOSSFREE || c->balance == ET_BALANCE_PROPORTIONAL);
}

#endif
