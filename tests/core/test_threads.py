"""Threads that each have their own number of torch's threads."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch
from support import runs

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


NOTEBOOK = """
import sys, time, torch

torch.set_num_threads(2)
numbers = torch.zeros(1 << 17)

def spun():
    numbers.add_(1)
    before = time.process_time()
    for _ in range(50):
        numbers.add_(1), time.sleep(0.01)
    return time.process_time() - before

before = spun()
from dogbreed import FeatureCache, DogBreedClassifier, DogImages
model = DogBreedClassifier(3, backbone="squeezenet1_1", weights="none")
data = DogImages.for_model(model, sys.argv[1], num_workers=1, quiet=True)
data.setup("test")
FeatureCache("require", folder=sys.argv[2], quiet=True).attach(model, data, torch.device("cpu"))
print(before, spun(), torch.get_num_threads())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is Linux's")
def test_threads_do_not_spin_where_torch_is_loaded_first(tmp_path) -> None:
    """Time of the processor, not of the clock: what threads take while there is nothing to do."""
    env = {name: value for name, value in runs.environment().items() if not name.startswith("OMP_")}
    command = [sys.executable, "-c", NOTEBOOK, str(runs.photographs()), str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    before, after, threads = map(float, done.stdout.split())
    if len(os.sched_getaffinity(0)) > 1:  # a single core has libgomp not spin in the first place
        assert after < before / 4
    assert threads == 2
