"""What has to hold on a GPU. `pytest -m gpu`; skipped where there is none.

DOGBREED_GPU_TESTS_ON=cpu runs what does not need CUDA itself on the CPU, to try the tests without a GPU.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from support import runs
from torch import nn

from dogbreed import Predictor
from dogbreed.cache.callback import FeatureCache
from dogbreed.cache.extract import Extraction, missing_views
from dogbreed.cache.store import KEY, Store
from dogbreed.config.compose import compose
from dogbreed.config.settings import Config
from dogbreed.data.datamodule import DogImages
from dogbreed.models import backbones
from dogbreed.models.classifier import DogBreedClassifier
from dogbreed.models.cut import cut
from dogbreed.training.build import build_cache, build_data, build_model
from dogbreed.training.run import train
from dogbreed.training.stacked_heads import Head, HeadTrainer
from dogbreed.training.stem import Stem

ON = os.environ.get("DOGBREED_GPU_TESTS_ON", "cuda")
DEVICE = torch.device(ON)
ACCELERATOR = {"cuda": "gpu"}.get(ON, ON)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(ON == "cuda" and not torch.cuda.is_available(), reason="there is no GPU"),
]
real = pytest.mark.skipif(ON != "cuda", reason="only CUDA has this")
TOLERANCE = 1e-5


def run_in(folder: Path, *more: str, data: Path | None = None) -> Path:
    """A small run on the device."""
    runs.train_in(folder, *more, f"trainer.accelerator={ACCELERATOR}", data=data)
    assert runs.metrics(folder)["device"].startswith(ON)
    return folder


def in_a_process(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=runs.environment(), check=False)


def losses(folder: Path) -> list[float]:
    return [row[name] for row in runs.history(folder) for name in ("train_loss", "val_loss")]


def same_run(one: Path, other: Path) -> None:
    assert losses(one) == pytest.approx(losses(other), rel=0, abs=TOLERANCE)
    for name in ("test_loss",):
        assert runs.metrics(one)[name] == pytest.approx(runs.metrics(other)[name], rel=0, abs=TOLERANCE)
    predicted = [[row["predicted"] for row in runs.predictions(folder)] for folder in (one, other)]
    assert predicted[0] == predicted[1]


# The same run, with and without the cache


@pytest.mark.parametrize(
    ("backbone", "size", "rate"),
    [
        ("vgg16", 64, 0.0001),
        ("resnet50", 64, 0.01),
        ("mobilenet_v2", 64, 0.01),
        ("efficientnet_b0", 64, 0.1),
        ("convnext_tiny", 64, 0.01),
        ("vit_b_16", 224, 0.01),
    ],
)
def test_cached_is_uncached(backbone: str, size: int, rate: float, tmp_path: Path) -> None:
    more = [f"model.backbone={backbone}", f"data.size={size}", f"model.lr={rate}", "data.batch_size=3"]
    data = runs.photographs(2, 4, 2, 2)
    one = run_in(tmp_path / "require", *more, "cache.mode=require", data=data)
    assert runs.metrics(one)["cache"] == "built"
    same_run(one, run_in(tmp_path / "off", *more, "cache.mode=off", data=data))


def test_cached_is_uncached_in_batches_that_choose_other_kernels(tmp_path: Path) -> None:
    """224 pixels, and steps of more images than a pass of the extraction has."""
    more = ["model.backbone=resnet18", "data.size=224", "data.batch_size=96", "model.lr=0.01"]
    data = runs.photographs(4, 24, 12, 12)
    same_run(*(run_in(tmp_path / mode, *more, f"cache.mode={mode}", data=data) for mode in ("require", "off")))


def test_the_last_stage_trains(tmp_path: Path) -> None:
    more = [
        "model.backbone=convnext_tiny",
        "model.trainable=block",
        "model.lr=0.001",
        "data.batch_size=4",
        "data.size=64",
    ]
    data = runs.photographs(2, 4, 2, 2)
    same_run(*(run_in(tmp_path / mode, *more, f"cache.mode={mode}", data=data) for mode in ("require", "off")))


@real
def test_float32_is_float32(tmp_path: Path) -> None:
    """Features on the GPU are those of the CPU: TF32 would differ by 1e-3."""
    data = DogImages(runs.photographs(2, 4, 2, 2), num_workers=0, quiet=True)
    data.setup()
    features = []
    for device in ("cpu", "cuda"):
        model = DogBreedClassifier(2, backbone="vgg16", weights="none", class_names=data.classes)
        FeatureCache("require", folder=tmp_path, quiet=True).attach(model, data, torch.device(device))
        indices = np.arange(len(data.samples["train"]))
        features.append(data.reader("train")(indices, indices * 0))
    difference = float((features[1] - features[0]).norm() / features[0].norm())
    assert 0 < difference < 2e-5, difference  # the CPU goes through Winograd, 1e-6 a layer
    assert len(list((tmp_path / "features").iterdir())) == 2, "each kind of device has a store of its own"


@real
def test_the_process_is_left_as_it_was(tmp_path: Path) -> None:
    flags = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    data = DogImages(runs.photographs(2, 4, 2, 2), num_workers=0, quiet=True)
    data.setup()
    model = DogBreedClassifier(2, backbone="squeezenet1_1", weights="none", class_names=data.classes)
    FeatureCache("require", folder=tmp_path, quiet=True).attach(model, data, DEVICE)
    assert flags == (
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
        torch.get_float32_matmul_precision(),
    )


# Random numbers


def test_steps_that_share_a_pass_draw_their_own_masks() -> None:
    model = DogBreedClassifier(4, backbone="alexnet", weights="none").to(DEVICE)
    model.use_features(cut(model.network, 64))
    stem = Stem(model)
    assert stem.row_wise
    model.train()
    alone = model.network.classifier[:6]
    sizes, seeds = [32, 32, 7], (5, 2**60, 7)
    features = [torch.rand(size, 9216, device=DEVICE) + 0.1 for size in sizes]
    steps = stem.steps(torch.cat(features), sizes, seeds)
    for own, seed, joined in zip(features, seeds, steps.split(sizes), strict=True):
        torch.manual_seed(seed)
        expected = alone(own)
        assert torch.equal(joined == 0, expected == 0), "other masks"
        torch.testing.assert_close(joined, expected, atol=1e-5, rtol=1e-4)


def test_a_head_in_the_stack_is_the_head_trained_alone(tmp_path: Path, cache_dir: Path, dog_tree: Path) -> None:
    settings = [
        "model.backbone=mobilenet_v3_small",
        "model.weights=none",
        "data.size=64",
        "data.num_workers=0",
        f"trainer.accelerator={ACCELERATOR}",
        "trainer.devices=1",
        "trainer.max_epochs=3",
        "loggers=null",
        "progress=none",
        f"data.root={dog_tree}",
        f"output_dir={tmp_path / 'run'}",
        "data.batch_size=5",
    ]
    config = Config.from_dict(compose(settings))
    data = build_data(config, quiet=True)
    data.setup()
    model = build_model(config, data, None)
    build_cache(config, quiet=True).attach(model, data, DEVICE)
    trials = [
        {"lr": 0.003, "weight_decay": 0.0, "label_smoothing": 0.0},
        {"lr": 0.01, "weight_decay": 0.02, "label_smoothing": 0.1},
    ]
    stacked = [Head(**trial) for trial in trials]
    HeadTrainer(model, data).train(stacked, batch_size=5, epochs=3)
    for trial, head in zip(trials, stacked, strict=True):
        alone = train(overrides=[*settings, *(f"model.{key}={value}" for key, value in trial.items())])
        assert head.best["val_loss"] == pytest.approx(alone.metrics["val_loss"], abs=1e-4)
        assert head.best["train_loss"] == pytest.approx(alone.metrics["train_loss"], abs=1e-4)


# Nobody waits for the GPU


@real
def test_a_warm_step_does_not_wait(tmp_path: Path) -> None:
    """But for the look at the loss on every 16th, a step on features asks the GPU for nothing to wait for."""
    inputs = backbones.preprocessing_of("mobilenet_v2")
    data = DogImages(runs.photographs(3, 12, 3, 3), batch_size=4, num_workers=0, quiet=True, preprocessing=inputs)
    data.setup()
    model = DogBreedClassifier(3, backbone="mobilenet_v2", weights="none", class_names=data.classes)

    class Strict(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            torch.cuda.set_sync_debug_mode("error" if index % 16 else "default")

        def on_train_batch_end(self, *_: Any) -> None:
            torch.cuda.set_sync_debug_mode("default")

    trainer = Trainer(
        accelerator="gpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[FeatureCache("require", folder=tmp_path, quiet=True), Strict()],
    )
    trainer.fit(model, datamodule=data)


@real
def test_the_cpu_leaves_the_gpu_alone(tmp_path: Path) -> None:
    """trainer.accelerator=cpu on a machine with a GPU makes no context there."""
    code = (
        "import ctypes, sys; from dogbreed.train import main; code = main(sys.argv[1:]); "
        "active, flags = ctypes.c_int(), ctypes.c_uint(); "
        "ctypes.CDLL('libcuda.so.1').cuDevicePrimaryCtxGetState(0, ctypes.byref(flags), ctypes.byref(active)); "
        "print('touched', bool(active.value)); sys.exit(code)"
    )
    done = in_a_process(code, *runs.overrides(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "touched False" in done.stdout


# Interrupted and gone on with


def test_resumed_is_uninterrupted(tmp_path: Path) -> None:
    more = ["model.lr=0.01", "data.batch_size=5", "model.schedule=constant"]
    whole = run_in(tmp_path / "whole", *more, "trainer.max_epochs=4")
    parts = run_in(tmp_path / "parts", *more, "trainer.max_epochs=2")
    run_in(tmp_path / "parts", *more, "trainer.max_epochs=4", "resume=auto")
    assert losses(parts) == pytest.approx(losses(whole), rel=0, abs=1e-6)


def test_a_build_that_goes_on_comes_to_the_same_rows(tmp_path: Path) -> None:
    data = DogImages(runs.photographs(3, 12, 3, 3), num_workers=0, quiet=True)
    data.setup()
    network = backbones.create("resnet18", 3, weights="none").to(DEVICE).eval()
    backbones.freeze(network, "resnet18", "head")
    parts = cut(network, 224)
    rows = []
    for cuts in ((1.0,), (0.3, 1.0)):
        store = Store(tmp_path / str(len(cuts)), parts.shape, torch.float32)
        for share in cuts:
            missing = missing_views(store, data.samples, data.used_views(None))
            share_of = missing[: round(share * len(missing))]
            with Extraction(
                store, parts.prefix, share_of, data, device=DEVICE, precision="float32", quiet=True
            ) as extraction:
                extraction.advance()
            if share == cuts[0]:
                keys = np.array([key for image in missing for key in image.keys], KEY)
        store.refresh()
        assert store.holds(keys).all()
        rows.append(store.table(keys[None])(np.arange(len(keys)), np.zeros(len(keys), np.int64)))
    assert torch.equal(*rows)


# What was trained is what is served, on either


@real
def test_the_export_answers_the_same_on_both(tmp_path: Path) -> None:
    folder = run_in(tmp_path / "run", "model.backbone=mobilenet_v2", "data.size=224")
    files = sorted(runs.photographs().rglob("*.jpg"))
    logits = [
        predictor.logits(torch.stack([predictor.read(file) for file in files]))
        for predictor in (Predictor(folder / "model", device=device) for device in ("cpu", "cuda"))
    ]
    torch.testing.assert_close(logits[1], logits[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true", "32-true"])
def test_precisions_can_be_clipped_and_exported(precision: str, tmp_path: Path) -> None:
    if precision == "16-mixed" and ON == "cpu":
        pytest.skip("a GPU's")
    folder = run_in(tmp_path / "run", f"trainer.precision={precision}", "trainer.gradient_clip_val=1.0")
    predictor = Predictor(folder / "model", device=ON)
    assert predictor.predict(sorted(runs.photographs().rglob("*.jpg"))[:3])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_cache_precisions(precision: str, tmp_path: Path) -> None:
    folder = run_in(tmp_path / "run", f"cache.precision={precision}", "model.lr=0.01")
    assert runs.metrics(folder)["cache"] == "built"


# Too little memory


@real
def test_too_little_memory_for_a_pass_is_no_traceback(tmp_path: Path) -> None:
    code = (
        "import sys, torch; total = torch.cuda.get_device_properties(0).total_memory; "
        "torch.cuda.set_per_process_memory_fraction(1.6e9 / total); "
        "from dogbreed.train import main; sys.exit(main(sys.argv[1:]))"
    )
    settings = ("model.backbone=vgg16", "data.size=224", "cache.mode=require", "trainer.accelerator=gpu")
    done = in_a_process(code, *runs.overrides(tmp_path / "run", *settings))
    assert done.returncode in (0, 2), done.stderr
    assert "Traceback" not in done.stderr


# The search, several devices, the certificate


def test_the_search_runs_on_the_device(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="the search needs Optuna: pip install 'dogbreed[search]'")
    from dogbreed.search.run import tune

    more = ("search.trials=4", "search.parallel=2", "model.backbone=mobilenet_v2", "progress=none")
    done = tune(overrides=runs.overrides(tmp_path / "search", *more, f"trainer.accelerator={ACCELERATOR}"))
    assert len(done.finished()) == 4


@real
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a CUDA device more")
def test_two_gpus(tmp_path: Path) -> None:
    more = ("model.lr=0.01", "trainer.accelerator=gpu", "trainer.devices=2", "trainer.strategy=ddp")
    printed = runs.finish(runs.start(runs.overrides(tmp_path / "run", *more), tmp_path))
    assert printed.count("Test set: ") == 1
    assert runs.metrics(tmp_path / "run")["cache"] == "built"


@real
def test_a_certificate_has_the_gpus_answers_too(tmp_path: Path) -> None:
    from dogbreed.serving.certify import certify

    certificate = certify(run_in(tmp_path / "run", "model.backbone=mobilenet_v2", "data.size=224"))
    assert certificate["passed"], certificate["fault"]
    assert "gpu" in certificate["ways"]


def test_nothing_is_left_on_the_cpu() -> None:
    """A tail with buffers of its own follows the network to the device and back."""
    model = DogBreedClassifier(3, backbone="swin_t", weights="none", trainable="block").to(DEVICE)
    model.use_features(cut(model.network, 224))
    assert model.parts is not None
    model.cpu(), model.to(DEVICE)
    out = model.parts.tail(torch.rand(2, *model.parts.shape, device=DEVICE), True)
    assert out.device.type == ON
    loss = nn.functional.cross_entropy(out, torch.zeros(2, dtype=torch.long, device=DEVICE))
    loss.backward()
