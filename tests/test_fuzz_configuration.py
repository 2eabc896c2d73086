"""Generated command lines over all keys: each ends with a result or with one sentence, never with a traceback.

`DOGBREED_FUZZ=500 pytest tests/test_fuzz_configuration.py` tries so many; the suite itself takes a sample.
"""

import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support import runs

from dogbreed.config.compose import compose, flatten

CASES = int(os.environ.get("DOGBREED_FUZZ", "8"))
SECONDS = 90  # after which one hangs

# What nearly no key takes, written as a person would type it.
ODD = (
    *("", "null", "-1", "0", "1", "2", "1e400", "nan", "inf", "-inf", "abc", "true", "False", "1.5", "0.0", "-0.5"),
    *("99999999999999999999", "[1,2]", "[]", "{a: 1}", "{}", "'ü n'", '"quoted"', "/dev/null", "/proc/nothing", "~"),
    *(".", "a=b", "${nothing}", "${oc.env:NOTHING_OF_THE_KIND}", "1_000", "0x10", "2024-01-01", "%s", "a,b", "\\", "'"),
)
# What is right, or lies just beside it, by key. A key that is not named gets its default, and values near it.
NEAR: dict[str, tuple[Any, ...]] = {
    "data.batch_size": (1, 2, 7, 8, 18, 19, 512, 100_000),
    "data.num_workers": (0, 1, "auto"),
    "data.augment": ("none", "flip", "crop", "flop"),
    "data.resize": ("squash", "crop"),
    "data.size": (1, 2, 15, 16, 17, 31, 32, 63, 64, 65, 128, 300),
    "data.on_bad_image": ("skip", "error"),
    "data.max_pixels": (1, 100, 5_000, 10**9),
    "data.source": ("dogimages", "sample"),
    "model.backbone": ("squeezenet1_1", "mobilenet_v3_small", "resnet18", "vgg1", "shufflenet_v2_x0_5", "vit_b_17"),
    "model.weights": ("none", "imagenet", "nowhere.pth", "."),
    "model.trainable": ("head", "block", "all", "none"),
    "model.optimizer": ("adam", "adamw", "sgd", "rmsprop"),
    "model.schedule": ("constant", "cosine", "onecycle", "linear"),
    "model.lr": (0, 1e-12, 0.001, 1, 1e30),
    "model.backbone_lr": (0, 1e-5, 1),
    "model.weight_decay": (0, 0.1, 100),
    "model.label_smoothing": (0, 0.1, 0.999, 1, 1.1),
    "trainer.max_epochs": (0, 1, 2),
    "trainer.min_epochs": (0, 1, 3),
    "trainer.max_steps": (0, 1, 3),
    "trainer.min_steps": (0, 1, 3),
    "trainer.max_time": ("00:00:00:01", "1s", "{seconds: 5}"),
    "trainer.limit_train_batches": (0, 1, 0.0, 0.5, 1.0, 100),
    "trainer.limit_val_batches": (0, 1, 0.0, 0.01, 0.5, 1.0, 100),
    "trainer.limit_test_batches": (0, 1, 0.0, 0.01, 0.5, 1.0, 100),
    "trainer.precision": ("32", "32-true", "64-true", "16-mixed", "bf16-mixed", "16-true", "transformer-engine", 32),
    "trainer.strategy": ("auto", "ddp", "fsdp", "deepspeed", "single_device"),
    "trainer.accelerator": ("auto", "cpu", "gpu", "tpu", "mps"),
    "trainer.devices": ("auto", 1, 0, "[0]"),
    "trainer.num_nodes": (1, 0),
    "trainer.accumulate_grad_batches": (1, 2, 1000),
    "trainer.gradient_clip_val": (0, 0.1, 1e9),
    "trainer.gradient_clip_algorithm": ("norm", "value", "sign"),
    "trainer.deterministic": ("true", "false", "warn"),
    "trainer.profiler": ("simple", "advanced", "pytorch"),
    "trainer.val_check_interval": (1, 2, 0.5, 1.0, 1000),
    "trainer.check_val_every_n_epoch": (1, 2, 3, 0),
    "trainer.num_sanity_val_steps": (0, 1, -1, 100),
    "trainer.overfit_batches": (0, 1, 0.5, 1.0),
    "trainer.log_every_n_steps": (0, 1, 10),
    "cache.mode": ("auto", "off", "require"),
    "cache.precision": ("float32", "bfloat16", "float8"),
    "cache.views": (1, 2, 4, 0),
    "cache.max_gb": (0, 1e-9, 1),
    "resume": ("last", "auto", "nowhere"),
    "early_stopping": (1, 2, 0),
    "progress": ("auto", "plain", "none", "bar"),
    "profile": ("true", "system"),
    "loggers": ("null", "{}", "{csv: {}}", "{tensorboard: {}}", "{neptune: {}}", "{wandb: {}}", "{csv: {nothing: 1}}"),
    "rules.on_trigger": ("warn", "stop"),
    "rules.skip": ("[overfit]", "[nothing]", "overfit"),
}
# Not of this command, decided by the test, or such that a right value takes long or other machines.
LEFT_OUT = ("hydra", "sagemaker", "search", "debugger.enabled", "output_dir", "data.root", "data.url", "data.download")
LEFT_OUT += ("cache.dir",)
BESIDE = ("trainer.num_nodes", "trainer.devices", "data.num_workers", "trainer.max_epochs", "trainer.max_steps")


def command_line(number: int) -> list[str]:
    """One to four keys with right, borderline or wrong values."""
    choose = random.Random(number)
    defaults = flatten(compose(()))
    keys = sorted(key for key in defaults if not key.startswith(LEFT_OUT))
    overrides = []
    for key in choose.sample([*keys, *NEAR], k=choose.randint(1, 4)):
        near = NEAR.get(key) or _around(defaults.get(key))
        odd = [value for value in ODD if not (key in BESIDE and _numeric(value))]
        values = near if choose.random() < 0.65 else odd
        overrides.append(f"{key}={choose.choice(values)}")
    return overrides


def _around(value: Any) -> tuple[Any, ...]:
    if isinstance(value, bool) or value is None:
        return (value, "true", "false", "null")
    if isinstance(value, (int, float)):
        return (value, value * 2, value / 2, 0, -value)
    return (value,)


def _numeric(value: str) -> bool:
    try:
        return float(value) != 1
    except ValueError:
        return False


@contextmanager
def _limit(seconds: int, what: str) -> Iterator[None]:
    def stop(signum: int, frame: Any) -> None:
        raise TimeoutError(f"still running after {seconds} s: {what}")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fault(ran: runs.Ran, folder: Any) -> str | None:
    """What is wrong with how a command line ended; None where it is as it should be."""
    if "Traceback" in ran.out + ran.err or ran.code not in (0, 2):
        return "a traceback"
    exported = (folder / "model" / "model.json").is_file()
    if ran.code == 0:
        return None if exported else "a result without a model"
    if "error: " not in ran.err:
        return "no sentence"
    # What has trained and then diverged, or had no time, keeps its checkpoints.
    after_training = any(word in ran.err for word in ("not finite", "No epoch finished", "Stopped"))
    return "half-written" if folder.exists() and not after_training else None


@pytest.mark.slow
@pytest.mark.parametrize("number", range(CASES))
def test_no_command_line_ends_in_a_traceback(number, tmp_path, cache_dir, no_network, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = command_line(number)
    with _limit(SECONDS, " ".join(words)):
        ran = runs.run(*runs.overrides(tmp_path / "run", "trainer.max_epochs=1", *words))
    assert not fault(ran, tmp_path / "run"), (words, ran.code, ran.err.strip().splitlines()[-3:])
