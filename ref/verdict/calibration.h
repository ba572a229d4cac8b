/* calibration.h: the limits of the verdict's tests. Internal; meaning and origin in calibration.c. */
#ifndef ET_CALIBRATION_H
#define ET_CALIBRATION_H

#include "etref/profile.h"

/* t with P(Z > t) = p for a normal deviate Z, 1e-300 <= p <= 1/2. To a few units in the last place. */
double et_normal_quantile(double p);

/* The limit in deviations of one element's error, or of a set of decisions, such that an honest one passes
 * it with probability `alpha` / `tests`. `coarse`: errors with an exponential tail. */
double et_element_limit(double alpha, double tests, bool coarse);

/* The same for a group of so many sources, between that of one and that of very many, which are the same for
 * all groups of a tensor. scatter: of its errors' squares, in parts of what normal errors' squares scatter. */
typedef struct et_group_limits {
    double many, one, scatter;
} et_group_limits;
et_group_limits et_group_limits_of(double alpha, double tests, bool coarse);
double et_group_limit(et_group_limits t, double sources);

/* c: by how much a group's slope and spread may exceed what independent errors would give. */
typedef struct et_calibration {
    double slope, spread;
} et_calibration;
et_calibration et_calibration_of(const char *tensor, const char *kind);

/* b: the slope that an honest kernel of this profile may have in the limit of many elements. */
double et_systematic_slope(const et_profile *p);

/* The spread that it may have there. rounds_dy: dy is not representable among the intermediates. */
double et_systematic_spread(const char *tensor, bool rounds_dy);

#endif
