"""The paired test and its correction, against independent computations."""

from fractions import Fraction
from itertools import product

import pytest
from scipy.stats import binomtest

from dogbreed.metrics.paired import holm, mcnemar, sign_flips


@pytest.mark.parametrize(("one", "other"), [*product(range(6), range(6)), (0, 30), (17, 41), (400, 470), (3000, 3200)])
def test_it_is_the_binomial_test_of_a_fair_coin(one, other):
    expected = binomtest(one, one + other, 0.5).pvalue if one + other else 1.0
    assert mcnemar(one, other) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_by_counting_all_tosses():
    outcomes = [sum(tosses) for tosses in product((0, 1), repeat=9)]
    as_far = sum(abs(heads - 4.5) >= 2.5 for heads in outcomes)
    assert mcnemar(2, 7) == mcnemar(7, 2) == Fraction(as_far, len(outcomes))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


@pytest.mark.parametrize(("one", "other"), [(0, 0), (1, 1), (3, 9), (0, 30), (17, 41)])
def test_flipping_signs_of_single_seeds_is_mcnemar(one, other):
    assert sign_flips([1] * one + [0] * 7 + [-1] * other) == pytest.approx(mcnemar(one, other), rel=1e-9)


def test_flipping_signs_by_trying_all():
    differences = [3, -1, 0, 2, 5, -2, 1, 1, -4]
    sums = [
        abs(sum(sign * size for sign, size in zip(signs, differences, strict=True)))
        for signs in product((1, -1), repeat=9)
    ]
    as_far = sum(other >= abs(sum(differences)) for other in sums)
    assert sign_flips(differences) == pytest.approx(as_far / len(sums), rel=1e-12)
    assert sign_flips([-difference for difference in differences]) == sign_flips(differences)
