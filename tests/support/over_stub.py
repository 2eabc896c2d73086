"""What runs over the stub of CUDA, in a process of its own (`support.stub`): functions whose answers are JSON."""

import json
import tempfile
from pathlib import Path
from typing import Any

import counters  # beside the built stub
import torch
from lightning.pytorch import Callback, Trainer
from support import runs

from benchmarks.over_stub import PAGEABLE, WAITS, Steps, stack
from dogbreed import Predictor
from dogbreed.cache.callback import FeatureCache
from dogbreed.cache.extract import PRECISIONS, Extraction, missing_views
from dogbreed.cache.store import Store
from dogbreed.config.compose import compose
from dogbreed.config.settings import Config
from dogbreed.core.errors import DogbreedError
from dogbreed.data.datamodule import DogImages
from dogbreed.data.images import Preprocessing
from dogbreed.models import model_folder
from dogbreed.models.classifier import DogBreedClassifier
from dogbreed.models.cut import cut
from dogbreed.training.build import device_of
from dogbreed.training.run import train

FOLDER = Path(tempfile.mkdtemp())


def parts(data_root: str) -> tuple[DogBreedClassifier, DogImages]:
    small = Preprocessing(size=64, resize_size=72)
    data = DogImages(data_root, num_workers=0, batch_size=8, quiet=True, preprocessing=small)
    data.setup()
    model = DogBreedClassifier(3, backbone="squeezenet1_1", weights="none", preprocessing=small.to_dict())
    return model, data


def _trainer(*callbacks: Callback, **settings: Any) -> Trainer:
    return Trainer(
        accelerator="gpu",
        devices=1,
        max_epochs=1,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        **settings,
    )


def arithmetic(data_root: str) -> dict[str, Any]:
    """What convolutions are computed in by the cache's mode and precision: dtype, and whether TF32 is allowed.

    The probe, and a tail that has some, are among them.
    """
    flags = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    used = {}
    for mode in ("require", "off"):
        for precision in PRECISIONS if mode == "require" else ("float32", "tf32"):
            model, data = parts(data_root)
            counters.reset()
            _trainer(FeatureCache(mode, folder=FOLDER, precision=precision)).fit(model, datamodule=data)
            used[f"{mode} {precision}"] = sorted({f"{str(one)[6:]} {tf32}" for one, tf32 in counters.convolutions})
    restored = flags == (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision())
    return {"used": used, "restored": restored, "stores": len(list((FOLDER / "features").iterdir()))}


def predictor(data_root: str) -> dict[str, Any]:
    """What a Predictor's convolutions are computed in, where somebody allows TF32, and whether that is as before."""
    model, data = parts(data_root)
    folder = FOLDER / "model"
    described = {"backbone": "squeezenet1_1", "class_names": data.classes, "preprocessing": data.preprocessing}
    model_folder.save(folder, model_folder.Exported(network=model.network, **described))
    torch.set_float32_matmul_precision("high")
    flags = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    answers, used = Predictor(folder), {}
    inputs = torch.zeros(1, 3, 64, 64)
    for name, ask in (("logits", answers.logits), ("explain", lambda images: answers.explain(images, 1))):
        counters.reset()
        inside = set()
        layer = answers.model.network.features[0]
        hook = layer.register_forward_hook(lambda *_, inside=inside: inside.add(torch.get_float32_matmul_precision()))
        ask(inputs)
        hook.remove()
        used[name] = [*sorted({f"{str(one)[6:]} {tf32}" for one, tf32 in counters.convolutions}), *inside]
    restored = flags == (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (True, "high")
    return {"device": str(answers.device), "used": used, "restored": restored}


def devices(_: str) -> dict[str, str]:
    """Where a search trains, and where the Trainer of the same settings has its first process."""
    places = {}
    for settings in ("accelerator=gpu", "devices=[1]", "accelerator=cpu", "accelerator=mps"):
        try:
            places[settings] = str(device_of(Config.from_dict(compose([f"trainer.{settings}", "data.root=."]))))
        except DogbreedError as error:
            places[settings] = str(error)
    return places


def on_the_cpu(data_root: str) -> dict[str, Any]:
    """A whole run with `trainer.accelerator=cpu`, and what it did that takes a context: memory, pinning, launches."""
    settings = ("trainer.max_epochs=1", "cache.mode=off", "data.num_workers=1")
    ran = runs.run(*runs.overrides(FOLDER / "cpu", *settings, data=Path(data_root)))
    done = counters.counters()
    return {"code": ran.code, "err": ran.err, "done": {name: done[name] for name in ("MALLOC", "HOST_ALLOC", "LAUNCH")}}


def mixed_and_clipped(data_root: str) -> dict[str, Any]:
    """Whether the optimizer is fused, by precision and the value that gradients are clipped to."""
    fused = {}
    for precision, clip in (("16-mixed", None), ("16-mixed", 1.0), ("bf16-mixed", 1.0), ("bf16-mixed", None)):
        model, data = parts(data_root)
        _trainer(precision=precision, gradient_clip_val=clip).fit(model, datamodule=data)
        fused[f"{precision} {clip}"] = model.optimizers().param_groups[0]["fused"]
    return fused


def warm_steps(data_root: str) -> dict[str, Any]:
    """Waits, pageable copies and launches, by step, of a run on features that are there."""
    settings = (
        *("model.backbone=mobilenet_v3_small", "trainer.accelerator=gpu", "trainer.max_epochs=3", "progress=plain"),
        "data.batch_size=2",
    )
    for mode in ("built", "hit"):  # in the first, steps compute features
        counted = Steps()
        overrides = runs.overrides(FOLDER / "warm", *settings, "overwrite=true", data=Path(data_root))
        assert train(overrides=overrides, callbacks=[counted]).metrics["cache"] == mode
    launches = counted.each("LAUNCH", "GEMM")
    return {"waits": counted.each(*WAITS), "pageable": counted.each(*PAGEABLE), "launches": launches}


def extraction(data_root: str) -> dict[str, Any]:
    """Rows that a build leaves, and its counters. The first begins with the device's allocations."""
    model, data = parts(data_root)
    network = cut(model.cuda().eval().network, 64)
    device, counted = torch.device("cuda", 0), {}
    for name, dtype in (("first", torch.float32), ("again", torch.float32), ("float16", torch.float16)):
        store = Store(FOLDER / name, network.shape, dtype)
        missing = missing_views(store, data.samples, data.used_views(None))
        counters.reset()
        with Extraction(store, network.prefix, missing, data, device=device, precision="float32", quiet=True) as build:
            build.advance()
        done = counters.counters()
        store.refresh()
        rows = sum(key in store for image in missing for key in image.keys)
        counted[name] = {"rows": rows, "views": missing.views, "left": build.left, **done}
    return counted


def stacks(_: str) -> dict[str, Any]:
    """Launches of a step of many heads, and its waits, by the number of heads."""
    return {str(heads): stack(heads, 64, 7, 32) for heads in (1, 50)}


def main(data_root: str, *names: str) -> None:
    answers = {name: globals()[name](data_root) for name in names}
    print("ANSWERS", json.dumps(answers))
