/* decisions.h: what judges of decisions share. Internal to judge_routing.c and judge_token_choices.c; see there. */
#ifndef ET_DECISIONS_H
#define ET_DECISIONS_H

#include "ref/verdict/judge.h"

typedef struct et_item {
    double score, variance;
    size_t place; /* in the mask; within one choice its order is that of the indices */
} et_item;

typedef struct et_decisions {
    const et_judgement *j;
    size_t N, n;
    double T;
    bool by_token;    /* TC: the experts of a token compete; else the tokens of an expert */
    bool by_gate;     /* by gate values, not by scores: which tokens an expert keeps under TC */
    bool ranked;      /* ties go to the lower index */
    bool counts_open; /* some expert's m is not settled */
    int32_t *duplicate;  /* of each competitor's row the first that is equal */
    et_item *low, *high; /* room for one choice */
    const uint8_t *mask, *right; /* [N,n] the decisions that are judged, the candidate's (or NULL) and the golden's */
    const uint8_t *out_of_choice; /* [n] experts that do not compete, or NULL */
    uint8_t *illegal; /* [N,n] */
    uint8_t *open;    /* [N,n] */
    size_t first;     /* the first illegal decision */
    et_routing_verdict *out;
} et_decisions;

/* Places of a mask, `count` from `first` on, `step` apart, that compete with each other. */
typedef struct et_choice {
    size_t first, step, count;
} et_choice;

et_item et_item_at(const et_decisions *q, size_t place);
/* Must a be chosen before b, whatever rounding did? */
bool et_precedes(const et_decisions *q, const et_item *a, const et_item *b);

/* The decision at `place` is illegal, unless it is the golden's own: then what it was compared with
 * differs and is itself illegal. True if it is the first one so far: the caller gives the reason. */
bool et_declare_illegal(et_decisions *q, size_t place);
/* The load must lie between `least` and `most`: of the surplus, or of what lacks, the first are illegal. */
void et_judge_count(et_decisions *q, et_choice c, size_t least, size_t most);
/* Marks golden decisions that could be exchanged with one of the other side as open. */
void et_open_pairs(et_decisions *q, et_choice c);
/* The k best must be taken: what the candidate decided otherwise is illegal. */
void et_judge_top(et_decisions *q, et_choice c, size_t k);

/* ---- judge_token_choices.c ---- */

/* The whole step under TC. ET_ENOMEM. */
et_status et_judge_tokens(et_decisions *q, et_error *error);

#endif
