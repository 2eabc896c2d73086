"""Steps of stacked heads in C end where those in torch do."""

import pytest
import torch
from torch import Tensor, nn

from dogbreed.training import adam_steps
from dogbreed.training.stacked_heads import Head, _Stack

WIDTH = 1040  # two chunks of columns and one of a single panel


def stacks(optimizer: str, schedule: str, heads: int, classes: int) -> list[_Stack]:
    """Return twice the same stack, with every setting that a head can have."""
    start = nn.Linear(WIDTH, classes)
    settings = [
        Head(lr=0.003 * (index + 1), weight_decay=0.05 * index, label_smoothing=0.1 * (index % 3))
        for index in range(heads)
    ]
    return [_Stack([start] * heads, settings, optimizer, schedule, 12) for _ in range(2)]


def in_torch(stack: _Stack, steps: list[tuple[Tensor, Tensor]]) -> Tensor:
    return sum(
        (stack.step(inputs, labels).double() * (labels >= 0).sum(-1) for inputs, labels in steps),
        torch.zeros(len(stack.heads), dtype=torch.float64),
    )


def some_steps(sizes: list[int], heads: int, classes: int, own: bool) -> list[tuple[Tensor, Tensor]]:
    front = (heads,) if own else ()
    steps = [(torch.randn(*front, size, WIDTH).relu(), torch.randint(classes, (*front, size))) for size in sizes]
    if own:
        for inputs, labels in steps:  # the second head has one image less
            inputs[1, -1], labels[1, -1] = 0, -1
    return steps


@pytest.fixture(autouse=True)
def needs_library(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.backends.cpu.get_cpu_capability() == "AVX512":  # it runs there, too
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    library = adam_steps._library.__wrapped__()
    if library is None:
        pytest.skip("no C compiler, or a processor without AVX2")
    monkeypatch.setattr(adam_steps, "_library", lambda: library)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("heads", "classes", "threads"), [(5, 13, 2), (2, 6, 1), (2, 7, 4)])
@pytest.mark.parametrize(("optimizer", "schedule"), [("adam", "onecycle"), ("adamw", "cosine"), ("adam", "constant")])
def test_against_torch(
    optimizer: str, schedule: str, heads: int, classes: int, threads: int, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    ours, theirs = stacks(optimizer, schedule, heads, classes)
    for sizes in ([7, 7, 3], [33, 16, 50], [100, 2]):
        steps = some_steps(sizes, heads, classes, own)
        torch.testing.assert_close(ours.take_steps(steps), in_torch(theirs, steps), rtol=1e-6, atol=0)
    keep = [index != 1 for index in range(heads)]
    last = some_steps([9, 8], heads, classes, own)
    if own:
        last = [(inputs[keep], labels[keep]) for inputs, labels in last]
    for stack in (ours, theirs):
        stack.drop([not kept for kept in keep])
    torch.testing.assert_close(ours.take_steps(last), in_torch(theirs, last), rtol=1e-6, atol=0)
    for index in range(heads - 1):
        for value, expected in zip(ours.values(index), theirs.values(index), strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_which_steps_are_taken_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    original = adam_steps.take_steps

    def counted(values, heads, steps, *rest):  # type: ignore[no-untyped-def]
        taken.append(len(steps))
        return original(values, heads, steps, *rest)

    monkeypatch.setattr(adam_steps, "take_steps", counted)
    (ours, _), (sgd, _) = stacks("adam", "cosine", 2, 5), stacks("sgd", "constant", 2, 5)
    for stack in (ours, sgd):
        stack.take_steps(some_steps([4, 4, 4], 2, 5, own=False))  # the first makes Adam's moments
        stack.take_steps(some_steps([4, 4], 2, 5, own=False))
        stack.take_steps(some_steps([adam_steps.IMAGES + 1], 2, 5, own=False))
    assert taken == [2, 2]
    assert ours.optimizer.state[ours._weight]["step"] == 6


def test_a_head_that_diverges_does_so_alone() -> None:
    torch.manual_seed(0)
    ours, theirs = stacks("adam", "constant", 3, 5)
    for stack in (ours, theirs):
        stack._weight.data[1] = torch.inf
    steps = some_steps([20, 20, 20], 3, 5, own=False)
    loss = ours.take_steps(steps)
    assert loss.isfinite().tolist() == [True, False, True]
    torch.testing.assert_close(loss, in_torch(theirs, steps), rtol=1e-6, atol=0, equal_nan=True)
