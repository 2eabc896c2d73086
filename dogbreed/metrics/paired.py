"""Whether one model is better than another on the same images: McNemar's exact test, and Holm's correction."""

from collections.abc import Sequence


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


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's method, in the same order."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected
