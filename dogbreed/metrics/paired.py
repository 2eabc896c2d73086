"""Whether one model is better than another on the same images: exact paired tests, and Holm's correction."""

from collections.abc import Sequence

import numpy as np


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    Were both models equally good, each image that only one of them classifies correctly would be the toss of a coin.

    Args:
        only_first: Images that the first alone classifies correctly.
        only_second: Images that the second alone classifies correctly.
    """
    tosses = only_first + only_second
    ways = tail = 1
    for heads in range(min(only_first, only_second)):
        ways = ways * (tosses - heads) // (heads + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**tosses)


def sign_flips(differences: Sequence[int]) -> float:
    """Return the two-sided p-value of the exact permutation test of paired differences (Fisher, 1935).

    Were both equally good, each difference could as well have the other sign. The p-value is the share of all signs
    whose sum is as far from zero. For differences of -1, 0 and 1 it is McNemar's exact test.

    Args:
        differences: Whole numbers, one per image, such as how many of several seeds are right more often.
    """
    sizes = [abs(int(difference)) for difference in differences if difference]
    total, observed = sum(sizes), abs(sum(int(difference) for difference in differences))
    share = np.zeros(2 * total + 1)  # of all signs, those that come to each sum, from -total
    share[total] = 1.0
    for size in sizes:
        share = (np.roll(share, size) + np.roll(share, -size)) / 2  # what would leave one end is 0 there
    sums = np.arange(-total, total + 1)
    return min(1.0, float(share[abs(sums) >= observed].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's method, in the same order."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected
