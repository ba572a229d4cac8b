/* exponential.c: e^x of many numbers. See exponential.h. */
#include "ref/base/exponential.h"
#include "ref/base/lanes.h"

enum { SHORT = 64 }; /* what lies between two loops stays in the nearest cache */

/* In three loops: an element's forty operations wait for each other, and the processor looks ahead only so
 * far for another element's. By itself, since a function that is chosen when the program is loaded is seen
 * outside of the library. */
ET_LANES static void in_lanes(size_t count, et_real shift, const et_real *v, et_real *to)
{
    double k[SHORT], r[SHORT], d[SHORT], P[SHORT];
    for (size_t from = 0; from < count; from += SHORT, v += SHORT, to += SHORT) {
        size_t some = count - from < SHORT ? count - from : SHORT;
        ET_SIMD for (size_t i = 0; i < some; i++)
        {
            reduced n = reduce((double)(v[i] - shift));
            k[i] = n.k, r[i] = n.r, d[i] = n.d;
        }
        ET_SIMD for (size_t i = 0; i < some; i++) P[i] = exponential_series(r[i]);
        ET_SIMD for (size_t i = 0; i < some; i++) to[i] =
            (et_real)assemble((double)(v[i] - shift), (reduced){k[i], r[i], d[i]}, P[i]);
    }
}

void et_exponentials(const et_grid *g, size_t count, et_real shift, const et_real *v, et_real *to)
{
    if (g == NULL) in_lanes(count, shift, v, to);
    for (size_t i = 0; g && i < count; i++) {
        double power = exponential(et_grid_round(g, (double)(v[i] - shift)));
        to[i] = (et_real)et_grid_round(g, power);
    }
}

ET_LANES static et_real largest_in_lanes(size_t count, const et_real *v)
{
    et_real largest = v[0];
#pragma omp simd reduction(max : largest)
    for (size_t i = 1; i < count; i++) largest = v[i] > largest ? v[i] : largest;
    return largest;
}

et_real et_largest(size_t count, const et_real *v)
{
    return largest_in_lanes(count, v);
}
