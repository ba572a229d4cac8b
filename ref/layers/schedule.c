/* schedule.c: learning rates and momenta over the steps of a run. See etref/optimizer.h. */
#include "etref/optimizer.h"

double et_schedule_factor(const et_schedule *s, size_t step)
{
    double steps = (double)s->steps, at = (double)step, factor = 1;
    double cooling = (double)(size_t)(s->cooldown * steps + 0.5);
    double left = at < steps ? steps - at : 0, part = left < cooling ? left / cooling : 1;
    if (left == 0) part = 0;
    if (step + 1 < s->warmup) factor = (at + 1) / (double)s->warmup;
    return factor * (part + (1 - part) * s->last);
}

double et_ramp(double first, double last, size_t ramp, size_t step)
{
    if (step >= ramp) return last;
    double part = (double)step / (double)ramp;
    return (1 - part) * first + part * last;
}
