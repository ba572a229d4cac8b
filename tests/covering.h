/* covering.h: few cases in which every two switches meet in every way (a pairwise covering array).
 *
 * Most faults need one switch in one position, or two switches in two: a softmax whose anchor
 * weighs the shared expert, a capacity in a pool of odd size. Trying every combination of 25
 * switches is out of the question; a list in which every PAIR of values occurs is short. See D. R.
 * Kuhn, D. R. Wallace, A. M. Gallo, Software fault interactions and implications for software
 * testing, IEEE Trans. Software Eng. 30 (2004).
 *
 * Method. Not every combination is legal, and a predicate alone says which are. So each case starts
 * from a legal one that holds what must be covered, found by search, and is then improved: switch
 * by switch it takes the value whose pairs are the rarest so far, if it stays legal. Deterministic.
 *
 *     1  every combination of the first `crossed` switches       2  every pair that is still
 * missing
 *
 * A pair is excluded if no completion is legal in which every other switch takes one of its first
 * `tried` values, in all combinations. So `tried` must be large for the switches on whose value the
 * legality of others depends, and value 0 of the rest must be one that is always allowed.
 */
#ifndef ETREF_TESTS_COVERING_H
#define ETREF_TESTS_COVERING_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

enum { COVERING_SWITCHES = 40, COVERING_VALUES = 10, COVERING_CASES = 1000, COVERING_PAIRS = 4096 };

/* Value a of switch s together with value b of switch t; s < t. */
typedef struct covering_pair {
    size_t s, a, t, b;
} covering_pair;

typedef struct covering {
    /* The caller fills in these. */
    size_t switches, crossed;
    size_t values[COVERING_SWITCHES], tried[COVERING_SWITCHES];
    bool (*legal)(const size_t *choice); /* choice [switches]: a value of each */
    /* covering_build fills in these. */
    size_t cases, excluded;
    size_t choice[COVERING_CASES][COVERING_SWITCHES];
    covering_pair excluded_pair[COVERING_PAIRS];
    unsigned uses[COVERING_SWITCHES][COVERING_VALUES][COVERING_SWITCHES][COVERING_VALUES];
} covering;

/* Sets the switches that are not fixed to their first legal combination; false if there is none. */
static inline bool covering_complete(const covering *c, const bool *fixed, size_t *choice)
{
    for (size_t s = 0; s < c->switches; s++)
        if (!fixed[s]) choice[s] = 0;
    while (!c->legal(choice)) { /* counts up, as an odometer does */
        size_t s = 0;
        for (; s < c->switches; s++) {
            if (fixed[s]) continue;
            if (++choice[s] < c->tried[s]) break;
            choice[s] = 0;
        }
        if (s == c->switches) return false;
    }
    return true;
}

/* How much value a of switch s is worth beside the rest of the choice: a pair that has not occurred
 * more than any number of others. */
static inline unsigned covering_worth(const covering *c, const size_t *choice, size_t s, size_t a)
{
    unsigned worth = 0;
    for (size_t t = 0; t < c->switches; t++) {
        unsigned uses = t == s ? 0 : c->uses[s][a][t][choice[t]];
        worth += uses == 0 ? 1U << 20 : (1U << 14) / (uses + 1) / (uses + 1);
    }
    return worth;
}

/* Gives switch s its most worthy legal value. */
static inline void covering_improve(const covering *c, size_t *choice, size_t s)
{
    unsigned most = covering_worth(c, choice, s, choice[s]);
    for (size_t a = 0; a < c->values[s]; a++) {
        size_t before = choice[s];
        unsigned worth = covering_worth(c, choice, s, a);
        if (worth <= most) continue;
        choice[s] = a;
        if (c->legal(choice))
            most = worth;
        else
            choice[s] = before;
    }
}

/* Adds the case that `choice` becomes when its free switches have been improved, twice round. */
static inline void covering_add(covering *c, const bool *fixed, size_t *choice)
{
    if (c->cases == COVERING_CASES) return;
    for (int round = 0; round < 2; round++)
        for (size_t s = 0; s < c->switches; s++)
            if (!fixed[s]) covering_improve(c, choice, s);
    memcpy(c->choice[c->cases++], choice, c->switches * sizeof *choice);
    for (size_t s = 0; s < c->switches; s++)
        for (size_t t = 0; t < c->switches; t++) c->uses[s][choice[s]][t][choice[t]]++;
}

static inline void covering_cross(covering *c)
{
    size_t combinations = 1;
    for (size_t s = 0; s < c->crossed; s++) combinations *= c->values[s];
    for (size_t number = 0; number < combinations; number++) {
        size_t choice[COVERING_SWITCHES], rest = number;
        bool fixed[COVERING_SWITCHES] = {false};
        for (size_t s = 0; s < c->crossed; s++) {
            fixed[s] = true;
            choice[s] = rest % c->values[s];
            rest /= c->values[s];
        }
        if (covering_complete(c, fixed, choice)) covering_add(c, fixed, choice);
    }
}

static inline void covering_add_pair(covering *c, covering_pair pair)
{
    size_t choice[COVERING_SWITCHES];
    bool fixed[COVERING_SWITCHES] = {false};
    fixed[pair.s] = fixed[pair.t] = true;
    choice[pair.s] = pair.a;
    choice[pair.t] = pair.b;
    if (c->uses[pair.s][pair.a][pair.t][pair.b] > 0) return;
    if (covering_complete(c, fixed, choice))
        covering_add(c, fixed, choice);
    else if (c->excluded < COVERING_PAIRS)
        c->excluded_pair[c->excluded++] = pair;
}

/* Calls `visit` for every pair of values of two switches, those that cannot occur among them. */
static inline void covering_each_pair(covering *c, void visit(covering *c, covering_pair pair))
{
    for (size_t s = 0; s < c->switches; s++)
        for (size_t t = s + 1; t < c->switches; t++)
            for (size_t a = 0; a < c->values[s]; a++)
                for (size_t b = 0; b < c->values[t]; b++) visit(c, (covering_pair){s, a, t, b});
}

static inline void covering_build(covering *c)
{
    c->cases = c->excluded = 0;
    memset(c->uses, 0, sizeof c->uses);
    covering_cross(c);
    covering_each_pair(c, covering_add_pair);
}

#endif
