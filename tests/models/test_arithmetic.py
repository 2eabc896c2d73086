"""What float32 is computed in: the settings of torch, which are there without a GPU too."""

from collections.abc import Iterator
from threading import Barrier, Thread

import pytest
import torch

from dogbreed.models.arithmetic import effective, float32_as

CUDA = torch.device("cuda")
cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul


def computed_in() -> tuple[str, str]:
    """Of convolutions and of products; torch has no newer setting before 2.9."""
    if hasattr(cudnn, "conv"):
        return tuple("float32" if part.fp32_precision != "tf32" else "tf32" for part in (cudnn.conv, matmul))
    return ("tf32" if cudnn.allow_tf32 else "float32", "tf32" if matmul.allow_tf32 else "float32")


@pytest.fixture(autouse=True)
def _as_torch_begins() -> Iterator[None]:
    yield
    if hasattr(cudnn, "conv"):
        torch.backends.fp32_precision = cudnn.fp32_precision = "none"
        cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "tf32"
        matmul.fp32_precision = "ieee"
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = True


def plain() -> None:
    pass


def older() -> None:
    torch.set_float32_matmul_precision("high")


def medium() -> None:
    torch.set_float32_matmul_precision("medium")
    cudnn.allow_tf32 = False


def newer() -> None:
    cudnn.conv.fp32_precision, matmul.fp32_precision = "ieee", "tf32"


def newest() -> None:
    torch.backends.fp32_precision = "tf32"


@pytest.mark.parametrize("setting", [plain, older, medium, newer, newest])
def test_it_is_exact_inside_and_as_before_outside(setting) -> None:
    if setting in (newer, newest) and not hasattr(cudnn, "conv"):
        setting = older
    setting()
    before = computed_in(), matmul_name()
    with float32_as("float32", CUDA):
        assert computed_in() == ("float32", "float32")
        with float32_as("tf32", CUDA):
            assert computed_in() == ("tf32", "tf32")
        assert computed_in() == ("float32", "float32")
    assert (computed_in(), matmul_name()) == before


def matmul_name() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # the newer setting says something else
        return ""


def test_threads_that_overlap_leave_it_as_it_was() -> None:
    first_is_in, second_is_in, first_is_out = Barrier(2), Barrier(2), Barrier(2)
    seen = []

    def first() -> None:
        with float32_as("float32", CUDA):
            first_is_in.wait(5)
            second_is_in.wait(5)
        first_is_out.wait(5)

    thread = Thread(target=first)
    thread.start()
    first_is_in.wait(5)
    with float32_as("float32", CUDA):
        second_is_in.wait(5)
        first_is_out.wait(5)
        seen.append(computed_in()[0])
    thread.join()
    assert seen == ["float32"]
    assert cudnn.allow_tf32


def test_other_devices_have_nothing_to_set() -> None:
    torch.set_float32_matmul_precision("high")
    with float32_as("float32", torch.device("cpu")):
        assert torch.get_float32_matmul_precision() == "high"
    assert effective("tf32", torch.device("cpu")) == "float32"
    assert effective("bfloat16", torch.device("cpu")) == "bfloat16"
