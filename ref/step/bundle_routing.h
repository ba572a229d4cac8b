/* bundle_routing.h: an assignment, read from whatever a bundle or a candidate shows of it. Internal. */
#ifndef ET_BUNDLE_ROUTING_H
#define ET_BUNDLE_ROUTING_H

#include "etref/bundle.h"
#include "etref/case.h"

typedef struct et_shown {
    const et_case *c;
    const et_tensor_out *tensors; /* of the shapes that the table says, S free */
    size_t count;
    uint8_t *mask; /* [N,n] zeroed; what has been read */
    char *reason;  /* where what is shown contradicts itself, or the case */
    size_t room;
} et_shown;

/* By the first of these that is there: route.mask; slot_token with slot_expert; slot_token with expert_offsets; the choices,
 * topk_expert or topk_token, where none is dropped. *any: there is one of them. false: a reason. */
bool et_shown_assignment(et_shown *r, bool *any);

/* Entry i of route.topk_expert is -1, and its token padding: it chooses nothing. */
bool et_shown_nothing(const et_shown *r, const et_tensor_out *topk, size_t i);

/* Entry i of route.topk_*: its place in the mask. false: a reason. */
bool et_shown_choice(et_shown *r, const et_tensor_out *topk, size_t i, size_t *place);
/* Entry i of a tensor puts a token to an expert; false, and a reason, if it has been there before. */
bool et_shown_slot(et_shown *r, const et_tensor_out *t, size_t i, size_t place);

/* false, with a reason as of printf. */
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
bool et_not_shown(et_shown *r, const char *format, ...);

#endif
