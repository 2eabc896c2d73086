"""Threads that each have their own number of torch's threads."""

import multiprocessing
import time
from collections.abc import Iterator

import pytest
import torch

from dogbreed.core.threads import in_threads


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_each_has_one_of_torchs_and_the_caller_keeps_its_own() -> None:
    assert in_threads(lambda _: torch.get_num_threads(), range(4)) == [1] * 4
    assert torch.get_num_threads() == 3


def test_answers_come_in_the_order_of_the_parts_and_errors_come_through() -> None:
    def late(part: int) -> int:
        time.sleep(0.02 * (3 - part))
        return part * part

    assert in_threads(late, range(4)) == [0, 1, 4, 9]
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda part: 1 // part, [1, 0])


def test_within_one_of_them_there_are_no_more() -> None:
    """They would wait for each other for ever."""
    assert in_threads(lambda part: sum(in_threads(lambda n: n * part, range(5))), range(6)) == [
        10 * n for n in range(6)
    ]


def test_a_fork_does_not_wait_for_its_parents_threads() -> None:
    assert in_threads(abs, [-1, -2]) == [1, 2]
    child = multiprocessing.get_context("fork").Process(target=in_threads, args=(abs, [-3, -4]))
    child.start()
    child.join(20)
    ended = child.exitcode
    child.kill()
    assert ended == 0


def test_nothing_is_differentiated_and_inference_mode_holds() -> None:
    weight = torch.ones(2, requires_grad=True)
    assert not any(out.requires_grad for out in in_threads(lambda n: weight * n, [1, 2]))
    with torch.inference_mode():
        assert all(out.is_inference() for out in in_threads(lambda n: weight * n, [1, 2]))
