"""What a GPU would be told to do, seen over a stub of CUDA: in what numbers, and by whom."""

import json
from typing import Any

import pytest
from support import runs, stub


def answers(*names: str, **card: str) -> dict[str, Any]:
    """What functions of `support.over_stub` answer, by their names, and under `out` what they print."""
    done = stub.run(f"from support.over_stub import main; main({str(runs.photographs())!r}, *{names})", **card)
    assert done.returncode == 0, done.stderr
    out, _, content = done.stdout.rpartition("ANSWERS ")
    return {**json.loads(content), "out": out}


@pytest.fixture(scope="module")
def h100() -> dict[str, Any]:
    # In this order: the first must not touch the device, and the last sets what others look at.
    return answers("on_the_cpu", "arithmetic", "mixed_and_clipped", "predictor")


@pytest.mark.slow
def test_float32_is_float32_cached_or_not_and_tf32_where_asked_for(h100) -> None:
    answer = h100["arithmetic"]
    assert answer["restored"]
    assert answer["stores"] == 4
    used = answer["used"]
    assert used["require float32"] == used["off float32"] == ["float32 False"]
    assert used["require tf32"] == used["off tf32"] == ["float32 True"]
    assert "bfloat16 False" in used["require bfloat16"]
    assert "float16 False" in used["require float16"]
    assert h100["out"].count("cache.precision=tf32 is faster") == 1


@pytest.mark.slow
def test_a_predictor_answers_and_explains_in_float32_itself(h100) -> None:
    answer = h100["predictor"]
    assert answer["device"] == "cuda"
    assert answer["used"] == {"logits": ["float32 False", "highest"], "explain": ["float32 False", "highest"]}
    assert answer["restored"]


@pytest.mark.slow
def test_a_search_is_where_the_trainer_would_be() -> None:
    places = answers("devices", STUB_DEVICES="2")["devices"]
    assert [places[name] for name in ("accelerator=gpu", "devices=[1]", "accelerator=cpu")] == [
        "cuda:0",
        "cuda:1",
        "cpu",
    ]
    assert "refuses these settings (trainer.accelerator=mps)" in places["accelerator=mps"]


@pytest.mark.slow
def test_a_run_on_the_cpu_leaves_the_gpu_alone(h100) -> None:
    assert h100["on_the_cpu"]["code"] == 0, h100["on_the_cpu"]["err"]
    assert not any(h100["on_the_cpu"]["done"].values()), h100["on_the_cpu"]["done"]


@pytest.mark.slow
def test_gradients_are_clipped_and_looked_at_without_their_scale(h100) -> None:
    fused = {"16-mixed None": False, "16-mixed 1.0": False, "bf16-mixed 1.0": False, "bf16-mixed None": True}
    assert h100["mixed_and_clipped"] == fused


@pytest.fixture(scope="module")
def warm() -> dict[str, Any]:
    return answers("stacks", "warm_steps", "extraction")


@pytest.mark.slow
def test_a_step_on_features_waits_for_nothing(warm) -> None:
    steps = warm["warm_steps"]
    assert steps["waits"] == steps["pageable"] == [0] * 3 * 8
    assert max(steps["launches"]) < 50


@pytest.mark.slow
def test_fifty_heads_take_a_step_with_the_launches_of_one(warm) -> None:
    (one, waits), (fifty, waits_of_fifty) = warm["stacks"]["1"], warm["stacks"]["50"]
    assert fifty == one <= 20
    assert waits == waits_of_fifty == 0


@pytest.mark.slow
def test_the_thread_that_feeds_extraction_waits_for_nothing(warm) -> None:
    assert len(warm["extraction"]) == 3
    for build in warm["extraction"].values():
        assert build["rows"] == build["views"] > 0
        assert build["left"] == 0
    again = warm["extraction"]["again"]
    assert [again[name] for name in ("STREAM_SYNC", "EVENT_SYNC", "DEVICE_SYNC", "SYNC_MEMCPY")] == [0] * 4
    assert again["H2D_PAGEABLE"] == again["D2H_PAGEABLE"] == 0


@pytest.mark.slow
def test_the_benchmark_starts_on_a_card_without_units_for_bfloat16() -> None:
    code = (
        "import json, tempfile; from pathlib import Path; from benchmarks import bench, extraction; "
        "bench.Bench.side_by_side.__defaults__ = (1,); one = bench.Bench(Path(tempfile.mkdtemp())); "
        "extraction.machine(one); extraction.extraction(one); print(json.dumps([one.device.type, *one.measured]))"
    )
    done = stub.run(code, STUB_CC="75")
    assert done.returncode == 0, done.stderr
    device, *names = json.loads(done.stdout.splitlines()[-1])
    assert device == "cuda"
    assert {"matmul_gflops_float32", "extraction_float32_ratio"} <= set(names)
    assert not [name for name in names if "bfloat16" in name]
