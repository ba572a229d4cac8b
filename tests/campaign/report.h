/* report.h: what the tables of the campaign have in common. */
#ifndef CP_REPORT_H
#define CP_REPORT_H

#include "tests/campaign/campaign.h"

/* Texts and how often each was met, with the first example. */
typedef struct cp_count {
    char *text, *example;
    double times;
} cp_count;

typedef struct cp_counts {
    cp_count *rows;
    size_t count, room;
} cp_counts;

/* The text's row, new or old; NULL without memory. */
cp_count *cp_counts_add(cp_counts *c, const char *text, const char *example);
void cp_counts_sort(cp_counts *c); /* the most frequent first */
void cp_counts_free(cp_counts *c);

/* "y", "dx", and gradients of weights: what a kernel is there for. */
bool cp_is_result(const char *tensor);

#endif
