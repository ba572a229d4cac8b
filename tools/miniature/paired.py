"""Differences of two variants, paired by seed: the same first weights and the same batches.

    d_s = loss of a under seed s - loss of b under seed s        mean +- standard error

The permutation test asks how often the mean would be as far from 0 as it is if each pair's sign
were a coin's: all 2^n signs are tried, so with n seeds no p is below 2/2^n. The interval is
Student's t. The smallest gap that n seeds can show is the difference which a two-sided t test at
0.05 would find in four of five repetitions, (t_0.975 + t_0.8) standard errors.
"""

import collections
import itertools
import math

# Student's t by degrees of freedom, from 1 on: quantiles 0.975 and 0.8.
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
T80 = (1.376, 1.061, 0.978, 0.941, 0.920, 0.906, 0.896, 0.889, 0.883)

Paired = collections.namedtuple("Paired", "n mean deviation error half p smallest")


def sign_test(differences):
    """The share of all signs under which the mean is as far from 0, or farther."""
    seen = abs(sum(differences)) * (1 - 1e-12)
    all_signs = list(itertools.product((1, -1), repeat=len(differences)))
    hits = sum(abs(sum(sign * d for sign, d in zip(signs, differences))) >= seen
               for signs in all_signs)
    return hits / len(all_signs)


def paired(differences):
    """None in the fields that one seed cannot tell."""
    n = len(differences)
    mean = sum(differences) / n
    if n < 2:
        return Paired(n, mean, None, None, None, None, None)
    deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1))
    error = deviation / math.sqrt(n)
    return Paired(n, mean, deviation, error, T975[n - 2] * error, sign_test(differences),
                  (T975[n - 2] + T80[n - 2]) * error)


def compare(losses, a, b):
    """losses: {variant: {seed: loss}}. None where no seed has both."""
    seeds = sorted(set(losses.get(a, {})) & set(losses.get(b, {})))
    return paired([losses[a][s] - losses[b][s] for s in seeds]) if seeds else None
