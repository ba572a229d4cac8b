/* search_time.c: how much CPU time a search for an explanation may take. See diagnosis.h.
 *
 * All threads of the process count. Without a limit the clock is not read, and nothing hangs on it.
 */
#include "ref/diagnose/diagnosis.h"

#include <math.h>
#include <stdio.h>
#include <time.h>

static double cpu_seconds(void)
{
    struct timespec t;
    if (clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t) != 0) return 0;
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void et_budget_open(et_budget *b, double limit)
{
    *b = (et_budget){.limit = limit, .doing = -1};
    if (limit > 0) b->start = b->now = cpu_seconds();
    b->until = limit;
}

void et_budget_expect(et_budget *b, int kind, double seconds)
{
    b->longest[kind] = fmax(b->longest[kind], seconds);
}

bool et_budget_allows(et_budget *b, int kind)
{
    if (!(b->limit > 0)) return true;
    double now = cpu_seconds();
    if (b->doing >= 0) b->longest[b->doing] = fmax(b->longest[b->doing], now - b->now);
    b->now = now;
    bool allowed = now - b->start + b->longest[kind] <= b->until;
    b->doing = allowed ? kind : -1;
    b->left_out += !allowed;
    return allowed;
}

void et_budget_until(et_budget *b, double part, double share)
{
    if (!(b->limit > 0)) return;
    double spent = cpu_seconds() - b->start, left = part * b->limit - spent;
    b->until = left > 0 ? spent + share * left : 0;
}

void et_budget_report(const et_budget *b, et_verdict *v)
{
    if (b->left_out > 0)
        snprintf(v->search, sizeof v->search,
                 "the search was cut at its limit of %g s of CPU: %zu attempts were left out",
                 b->limit, b->left_out);
}
