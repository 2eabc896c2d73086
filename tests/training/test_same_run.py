"""With and without the cache it is the same run: every loss to 1e-5, every prediction.

The pictures are few and small and the weights random, so the learning rates are chosen for losses that move: losses
that stayed where they began would agree without saying anything.
"""

from pathlib import Path

import pytest
from support import runs

TOLERANCE = 1e-5


def both(folder: Path, *more: str, data: Path | None = None) -> tuple[Path, Path]:
    """Trains with and without the cache."""
    for mode in ("require", "off"):
        runs.train_in(folder / mode, *more, f"cache.mode={mode}", data=data)
    return folder / "require", folder / "off"


def assert_same_run(cached: Path, uncached: Path) -> None:
    assert runs.metrics(cached)["cache"] in ("built", "hit")
    assert runs.metrics(uncached)["cache"] == "off"
    with_cache, without = runs.history(cached), runs.history(uncached)
    for name in ("train_loss", "val_loss"):
        one, other = ([row[name] for row in rows] for rows in (with_cache, without))
        assert one == pytest.approx(other, rel=0, abs=TOLERANCE), name
        assert max(one) - min(one) > 100 * TOLERANCE or name == "val_loss", "it does not learn, so it shows nothing"
    assert runs.metrics(cached)["test_loss"] == pytest.approx(runs.metrics(uncached)["test_loss"], rel=0, abs=TOLERANCE)
    said = [[(row["path"], row["predicted"]) for row in runs.predictions(folder)] for folder in (cached, uncached)]
    assert said[0] == said[1]


@pytest.mark.slow
def test_same_run(tmp_path: Path) -> None:
    assert_same_run(*both(tmp_path, "data.augment=crop", "data.batch_size=3", "model.lr=0.01"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "more"),
    [
        ("squeezenet1_1", ["data.augment=none", "data.batch_size=1"]),
        ("squeezenet1_1", ["data.augment=flip", "data.batch_size=3", "trainer.accumulate_grad_batches=2"]),
        ("squeezenet1_1", ["data.resize=crop", "data.num_workers=2", "model.label_smoothing=0.1"]),
        ("squeezenet1_1", ["data.augment=crop", "model.trainable=block", "model.schedule=cosine"]),
        ("mobilenet_v2", ["data.augment=flip", "data.batch_size=32", "model.lr=0.3", "trainer.max_epochs=5"]),
        (
            "mobilenet_v2",
            ["data.augment=crop", "data.batch_size=1", "trainer.accumulate_grad_batches=4", "model.lr=0.1"],
        ),
        ("mobilenet_v2", ["data.augment=flip", "model.trainable=block", "model.lr=0.003"]),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_settings(backbone: str, more: list[str], tmp_path: Path) -> None:
    assert_same_run(*both(tmp_path, f"model.backbone={backbone}", "model.lr=0.01", *more))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "size", "rate"),
    [
        ("vgg16", 64, 0.0001),
        ("resnet50", 64, 0.01),
        ("efficientnet_b0", 64, 0.1),
        ("convnext_tiny", 64, 0.01),
        ("vit_b_32", 224, 0.01),
    ],
)
def test_networks(backbone: str, size: int, rate: float, tmp_path: Path) -> None:
    more = [f"model.backbone={backbone}", f"data.size={size}", f"model.lr={rate}", "data.batch_size=3"]
    assert_same_run(*both(tmp_path, *more, data=runs.photographs(2, 4, 2, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["convnext_tiny", "vit_b_32"])
def test_last_stage_trains(backbone: str, tmp_path: Path) -> None:
    more = [f"model.backbone={backbone}", "model.trainable=block", "model.lr=0.001", "data.batch_size=4"]
    size = "data.size=224" if backbone.startswith("vit") else "data.size=64"
    assert_same_run(*both(tmp_path, *more, size, data=runs.photographs(2, 4, 2, 2)))


@pytest.mark.slow
def test_resumed_the_other_way(tmp_path: Path) -> None:
    """Half of it with the cache, half without, in either order."""
    more = ["model.lr=0.01", "data.batch_size=5"]
    runs.train_in(tmp_path / "off", *more, "trainer.max_epochs=4", "cache.mode=off")
    for first, then in (("off", "require"), ("require", "off")):
        folder = tmp_path / f"{first}-{then}"
        runs.train_in(folder, *more, "trainer.max_epochs=2", f"cache.mode={first}")
        runs.train_in(folder, *more, "trainer.max_epochs=4", f"cache.mode={then}", "resume=auto")
        one, other = runs.history(folder), runs.history(tmp_path / "off")
        for name in ("train_loss", "val_loss"):
            wanted = pytest.approx([row[name] for row in other], rel=0, abs=TOLERANCE)
            assert [row[name] for row in one] == wanted, (first, then, name)
