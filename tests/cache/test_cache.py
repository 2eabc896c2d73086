"""The feature cache: it serves what the network would compute, nothing stale or damaged, whatever happens to it."""

import errno
import fcntl
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
import torchvision
from lightning.pytorch import Trainer
from safetensors import safe_open
from support import runs
from support.fits import attach_in_blocks
from support.forks import Forked

from dogbreed.cache import extract
from dogbreed.cache import folders as stored
from dogbreed.cache.__main__ import main
from dogbreed.cache.callback import FeatureCache, Group
from dogbreed.cache.folders import cache_folder, delete, evict, locked, stores
from dogbreed.cache.store import Store, row_key
from dogbreed.core.cli import guard
from dogbreed.core.errors import DogbreedError
from dogbreed.data.datamodule import DogImages
from dogbreed.data.datasets import Batch, FeatureBatch
from dogbreed.data.images import WHOLE, Preprocessing, View, load
from dogbreed.models.arithmetic import effective
from dogbreed.models.classifier import DogBreedClassifier
from dogbreed.models.cut import cut, probe

SMALL = Preprocessing(size=64, resize_size=72)
CPU = torch.device("cpu")
# Kernels are chosen by the shape of a batch, and round differently.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


def classifier(preprocessing: Preprocessing = SMALL, **changes) -> DogBreedClassifier:
    arguments = {"backbone": "squeezenet1_1", "weights": "none", "preprocessing": preprocessing.to_dict()}
    return DogBreedClassifier(4, **(arguments | changes))


def dogs(root: Path, preprocessing: Preprocessing = SMALL, **changes) -> DogImages:
    data = DogImages(
        root, preprocessing=preprocessing, **({"num_workers": 0, "batch_size": 8, "quiet": True} | changes)
    )
    data.setup()
    return data


def attached(root: Path, folder: Path, model=None, data=None, **cache):
    """A model and data that use the cache in `folder`."""
    model = classifier() if model is None else model
    data = dogs(root) if data is None else data
    used = FeatureCache(folder=folder, **({"quiet": True, "mode": "require"} | cache))
    used.attach(model, data, CPU)
    return used, model, data


def rows(folder: Path) -> dict[str, dict[bytes, bytes]]:
    """Every readable row on disk by store, without the code under test; of equal keys the last written."""
    rows: dict[str, dict[bytes, bytes]] = {}
    for file in sorted(folder.glob("features/*/*.safetensors")):
        with safe_open(file, framework="np") as content:
            keys, values = content.get_tensor("keys"), content.get_slice("features")
            for number, key in enumerate(keys):
                rows.setdefault(file.parent.name, {})[key.tobytes()] = values[number : number + 1].tobytes()
    return rows


def count(folder: Path) -> int:
    """Rows on disk, equal ones as often as they are there."""
    total = 0
    for file in folder.glob("features/*/*.safetensors"):
        with safe_open(file, framework="np") as content:
            total += len(content.get_slice("keys")[:])
    return total


def everything(data: DogImages) -> dict[str, np.ndarray]:
    """All that is served, by split."""
    served = {}
    for split, samples in data.samples.items():
        rows = [(i, v) for v in range(len(samples.views)) for i in range(len(samples))]
        indices, views = np.array(rows).T
        served[split] = data.reader(split)(indices, views).numpy()
    return served


def same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Here and in the processes that are started: with other threads rows differ in their last bits."""
    with runs.one_thread():
        yield


@pytest.fixture(scope="module")
def built(dog_tree, tmp_path_factory) -> Path:
    """A cache of the tree's 72 views, not to be changed."""
    folder = tmp_path_factory.mktemp("built")
    assert attached(dog_tree, folder)[0].state == "built"
    return folder


@pytest.fixture
def cache(built, tmp_path) -> Path:
    """The same, to be changed."""
    return shutil.copytree(built, tmp_path / "cache")


@pytest.fixture
def tree(dog_tree, tmp_path) -> Path:
    """The photographs, to be changed."""
    return shutil.copytree(dog_tree, tmp_path / "dogs")


# The key


def store_key(device: str = "cpu", precision: str = "float32", preprocessing: Preprocessing = SMALL) -> str:
    model = classifier()
    return extract.store_key(cut(model.network, 64).prefix, preprocessing, precision, torch.device(device))


@pytest.mark.parametrize("package", [torch, torchvision, PIL], ids=lambda package: package.__name__)
@pytest.mark.slow
def test_the_key_changes_with_a_librarys_version(monkeypatch, package):
    before = store_key()
    monkeypatch.setattr(package, "__version__", "0.0.1")
    assert store_key() != before


def test_the_key_changes_with_the_revision_of_decoding(monkeypatch):
    before = store_key()
    monkeypatch.setattr(extract, "REVISION", extract.REVISION + 1)
    assert store_key() != before


@pytest.mark.slow
def test_the_key_changes_with_the_plan(monkeypatch):
    keys = set()
    for plan in (extract.Plan(4, "direct"), extract.Plan(8, "direct"), extract.Plan(4, "other kernels")):
        monkeypatch.setattr(extract, "plan", lambda prefix, device, plan=plan: plan)
        keys.add(store_key())
    assert len(keys) == 3


@pytest.mark.slow
def test_the_key_changes_with_the_kind_of_device(monkeypatch):
    monkeypatch.setattr(extract, "plan", lambda prefix, device: extract.Plan(4, "direct"))
    assert len({store_key("cpu"), store_key("cuda"), store_key("mps")}) == 3
    assert store_key("cuda:0") == store_key("cuda:1")


@pytest.mark.slow
def test_the_key_changes_with_cudnn_on_cuda_alone(monkeypatch):
    monkeypatch.setattr(extract, "plan", lambda prefix, device: extract.Plan(4, "direct"))
    keys = {}
    for version in (91002, 91100):
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda version=version: version)
        for device in ("cuda", "cpu"):
            keys.setdefault(device, set()).add(store_key(device))
    assert {device: len(known) for device, known in keys.items()} == {"cuda": 2, "cpu": 1}


@pytest.mark.slow
def test_the_key_changes_with_precision_and_preprocessing():
    """`tf32` is kept as float32 is, so that the key alone tells them apart."""
    precisions = {store_key(precision=precision) for precision in extract.PRECISIONS}
    assert len(precisions) == len(extract.PRECISIONS)
    changes = ({"resize": "crop"}, {"mean": (0.5, 0.5, 0.5)}, {"std": (0.5, 0.5, 0.5)}, {"interpolation": "bicubic"})
    assert len({store_key(preprocessing=replace(SMALL, **change)) for change in ({}, *changes)}) == 5
    squashed, cropped = (
        {store_key(preprocessing=replace(SMALL, resize=resize, resize_size=side)) for side in (72, 90)}
        for resize in ("squash", "crop")
    )
    assert (len(squashed), len(cropped)) == (1, 2), "squash does not look at it"


# Too little memory, and numbers that are too large


def limit(model: DogBreedClassifier, images: int) -> list[int]:
    """Let the network's first layer run out of memory above so many images; return how many it was given."""
    given = []

    def look(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        given.append(len(inputs[0]))
        if len(inputs[0]) > images:
            raise torch.OutOfMemoryError("CUDA out of memory")

    next(module for module in model.network.modules() if isinstance(module, torch.nn.Conv2d)).register_forward_pre_hook(
        look
    )
    return given


@pytest.mark.slow
def test_a_pass_is_halved_where_memory_is_too_small(dog_tree, tmp_path):
    model = classifier()
    given = limit(model, 2)
    _, _, data = attached(dog_tree, tmp_path / "halved", model=model)
    assert given.count(4) == 1, "once is enough to know"
    _, _, whole = attached(dog_tree, tmp_path / "whole")
    for split, samples in data.samples.items():
        positions = np.arange(len(samples))
        rows = [one.reader(split)(positions, positions * 0) for one in (data, whole)]
        torch.testing.assert_close(*rows, **ROUNDING)


@pytest.mark.parametrize("images", [0, 1])
def test_memory_that_holds_no_pass_is_a_sentence(images, dog_tree, tmp_path, capsys, monkeypatch):
    """In the probe, which takes two images, and in a pass; with cache.mode=auto too, since training would need more."""
    model = classifier()
    if images:
        monkeypatch.setattr("dogbreed.cache.findings.probe", lambda *arguments: (probe(*arguments), limit(model, 0))[0])
    else:
        limit(model, 0)
    assert guard(lambda: attached(dog_tree, tmp_path, model=model, mode="auto") and None) == 2
    assert "error: The GPU's memory is too small" in capsys.readouterr().err


def test_float16_goes_back_to_float32_for_an_image_whose_features_it_does_not_hold():
    network = torch.nn.Linear(8, 4)
    images = torch.rand(3, 8) + 0.1
    images[1] *= 1e6
    with torch.inference_mode():
        features, exact = extract.InFloat16(network, CPU)(images), network(images)
    assert torch.equal(features[1], exact[1])
    assert not torch.equal(features[[0, 2]], exact[[0, 2]])
    torch.testing.assert_close(features, exact, rtol=1e-2, atol=1e-2)


def test_features_that_float16_cannot_keep_are_refused(dog_tree, tmp_path):
    model = classifier()
    with torch.no_grad():
        model.network.features[0].weight.mul_(1e8)
    with pytest.raises(DogbreedError, match=r"too large for float16; take cache\.precision=float32 or bfloat16"):
        attached(dog_tree, tmp_path, model=model, precision="float16")


def test_a_card_that_only_emulates_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla T4")
    card = torch.device("cuda")
    with pytest.raises(
        DogbreedError, match=r"Tesla T4 only emulates bfloat16.*take cache\.precision=float16 or float32"
    ):
        FeatureCache("auto", precision="bfloat16").attach(classifier(), None, card)
    assert [effective(name, card) for name in ("float32", "float16", "tf32")] == ["float32", "float16", "float32"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    assert [effective(name, card) for name in ("bfloat16", "tf32")] == ["bfloat16", "tf32"]


# What is served


@pytest.mark.parametrize(
    ("augment", "precision", "rtol"),
    [
        ("flip", "float32", 1e-4),
        pytest.param("crop", "float32", 1e-4, marks=pytest.mark.slow),
        pytest.param("none", "float16", 2e-3, marks=pytest.mark.slow),
        pytest.param("none", "bfloat16", 5e-2, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_rows_are_what_the_prefix_computes(dog_tree, tmp_path, augment, precision, rtol):
    _, model, data = attached(dog_tree, tmp_path, data=dogs(dog_tree, augment=augment), precision=precision)
    model.eval()
    for split, samples in data.samples.items():
        for view, views in enumerate(samples.views):
            images = torch.stack([load(p, SMALL, v) for p, v in zip(samples.paths, views, strict=True)])
            with torch.no_grad():
                expected = model.parts.prefix(images)
            read = data.reader(split)(np.arange(len(samples)), np.full(len(samples), view))
            assert read.dtype == torch.float32
            torch.testing.assert_close(read, expected, rtol=rtol, atol=rtol * expected.abs().max().item())
            assert len(read.flatten(1).unique(dim=0)) == len(samples), "each has its own"


def test_weights_cast_once_give_what_autocast_gives():
    network = classifier().network.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images, cpu = torch.rand(2, 3, 64, 64), torch.device("cpu")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = network(images)
    with torch.no_grad(), extract.in_bfloat16(network, cpu):
        assert network.features[0].weight.dtype == torch.bfloat16
        assert torch.equal(network(images), expected)
    with pytest.raises(RuntimeError), extract.in_bfloat16(network, cpu):
        network(images[:, :1])
    assert network.features[0].weight.dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_rows_come_in_any_order(dog_tree, built):
    _, _, data = attached(dog_tree, built)
    reader, rng = data.reader("train"), np.random.default_rng(0)
    table = {view: reader(np.arange(24), np.full(24, view)) for view in (0, 1)}
    indices, views = rng.integers(24, size=50), rng.integers(2, size=50)
    expected = torch.stack([table[v][i] for i, v in zip(indices, views, strict=True)])
    assert torch.equal(reader(indices, views), expected)


@pytest.mark.slow
def test_the_model_answers_as_without(dog_tree, built):
    _, model, data = attached(dog_tree, built)
    plain = dogs(dog_tree)
    for training in (False, True):
        model.train(training)
        for one, two in zip(data.train_dataloader(), plain.train_dataloader(), strict=True):
            assert isinstance(one, FeatureBatch)
            assert isinstance(two, Batch)
            assert torch.equal(one.labels, two.labels)
            assert torch.equal(one.indices, two.indices)
            torch.manual_seed(1)
            with_features = model.logits(one)
            torch.manual_seed(1)
            torch.testing.assert_close(with_features, model.logits(two), **ROUNDING)


@pytest.mark.slow
def test_training_is_the_same_run(dog_tree, tmp_path):
    losses = {}
    for mode in ("off", "require"):
        model, cached = classifier(lr=0.01), FeatureCache(mode, folder=tmp_path, quiet=True)
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=3,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=[cached],
        )
        trainer.fit(model, datamodule=dogs(dog_tree))
        losses[mode] = [float(trainer.callback_metrics[name]) for name in ("train_loss", "val_loss", "val_acc")]
        assert cached.state == ("off" if mode == "off" else "built")
    assert losses["require"] == pytest.approx(losses["off"], abs=1e-5)


def test_equal_images_are_computed_once(tree, tmp_path):
    paths = sorted(tree.glob("train/*/*.jpg"))
    shutil.copy(paths[0], paths[1])
    shutil.copy(paths[0], next(tree.glob("valid/*/*.jpg")))
    _, _, data = attached(tree, tmp_path / "new")
    assert count(tmp_path / "new") == 72 - 2 - 1
    served = everything(data)
    assert np.array_equal(served["train"][0], served["train"][1])


# Hits and misses


def test_the_second_run_computes_nothing(dog_tree, built):
    before = {path: path.stat().st_mtime_ns for path in built.rglob("*.safetensors")}
    cached, _, _ = attached(dog_tree, built)
    assert cached.state == "hit"
    assert {path: path.stat().st_mtime_ns for path in built.rglob("*.safetensors")} == before
    assert count(built) == 72


def test_another_head_and_other_batches_are_a_hit(dog_tree, cache):
    model = classifier(lr=0.5, label_smoothing=0.1)
    with torch.no_grad():
        model.network.classifier[1].weight.zero_()
    data = dogs(dog_tree, batch_size=3, seed=9, augment="none")
    assert attached(dog_tree, cache, model=model, data=data)[0].state == "hit"
    assert count(cache) == 72


def test_a_changed_image_is_a_miss_for_itself_alone(tree, cache, capsys):
    before = rows(cache)
    path = sorted(tree.glob("train/*/*.jpg"))[5]
    path.write_bytes(path.read_bytes() + b"\0")  # behind the end of the picture: it looks the same, who knows
    cached, _, data = attached(tree, cache, quiet=False)
    assert cached.state == "built"
    assert (
        "Computing the frozen part once: 1 image (2 with mirrored copies), 36.9 kB, kept in " in capsys.readouterr().out
    )
    after = rows(cache)
    assert after.keys() == before.keys()
    ((name, old),) = before.items()
    new = {key: value for key, value in after[name].items() if key not in old}
    digest = data.samples["train"].digests[5]
    assert new.keys() == {row_key(digest, view) for view in (WHOLE, View(flip=True))}
    assert {key: after[name][key] for key in old} == old


def test_a_new_image_is_computed_alone(tree, cache):
    source = sorted(tree.glob("test/*/*.jpg"))[0]
    (source.with_name("extra.jpg")).write_bytes(source.read_bytes() + b"\0")
    attached(tree, cache)
    assert count(cache) == 73


def test_what_is_gone_from_the_data_stays_in_the_cache(tree, cache):
    next(tree.glob("train/*/*.jpg")).unlink()
    assert attached(tree, cache)[0].state == "hit"


def one_weight(model):
    with torch.no_grad():
        model.network.features[3].squeeze.bias[0] += 1e-4


@pytest.mark.parametrize(
    "change",
    ["weight", "mean"]
    + [
        pytest.param(c, marks=pytest.mark.slow)
        for c in ("resize", "std", "interpolation", "size", "precision", "block")
    ],
)
@pytest.mark.slow
def test_everything_else_that_matters_is_a_store_of_its_own(dog_tree, cache, change):
    before, precision, preprocessing = rows(cache), "float32", SMALL
    match change:
        case "precision":
            precision = "float16"
        case "weight" | "block":
            pass
        case "size":
            preprocessing = replace(SMALL, size=72)
        case "resize":
            preprocessing = replace(SMALL, resize="crop")
        case "interpolation":
            preprocessing = replace(SMALL, interpolation="bicubic")
        case _:
            preprocessing = replace(SMALL, **{change: (0.5, 0.5, 0.5)})
    model = classifier(preprocessing, trainable="block" if change == "block" else "head")
    if change == "weight":
        one_weight(model)
    used, _, data = attached(dog_tree, cache, model=model, data=dogs(dog_tree, preprocessing), precision=precision)
    assert used.state == "built"
    after = rows(cache)
    assert len(after) == 2
    assert count(cache) == 144
    assert before.items() <= after.items(), "what was there is still there"
    model.eval()
    path = data.samples["valid"].paths[0]
    with torch.no_grad():
        expected = model.parts.prefix(load(path, preprocessing)[None])
    torch.testing.assert_close(data.reader("valid")(np.array([0]), np.array([0])), expected, rtol=2e-3, atol=2e-3)
    assert attached(dog_tree, cache)[0].state == "hit", "the first is not forgotten"


@pytest.mark.slow
def test_crops_add_to_what_is_there(dog_tree, cache):
    attached(dog_tree, cache, data=dogs(dog_tree, augment="crop", views=2))
    assert count(cache) == 72 + 48, "valid and test are there"
    attached(dog_tree, cache, data=dogs(dog_tree, augment="crop", views=3))
    assert count(cache) == 72 + 72
    attached(dog_tree, cache, data=dogs(dog_tree, augment="crop", views=3, seed=1))
    assert count(cache) == 72 + 72 + 72


# Damage


def block(folder: Path) -> Path:
    (file,) = folder.glob("features/*/*.safetensors")
    return file


def offset_of(file: Path, name: str) -> int:
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return 8 + length + json.loads(data[8 : 8 + length])[name]["data_offsets"][0]


def flip_byte(file: Path, at: int) -> None:
    """In a new file: an older one may be mapped into memory."""
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.unlink()
    file.write_bytes(data)


@pytest.mark.slow
def test_a_flipped_bit_costs_one_row(dog_tree, cache, built, capsys):
    file, row_bytes = block(cache), 512 * 3 * 3 * 4
    flip_byte(file, offset_of(file, "features") + 40 * row_bytes + 1234)
    cached, _, data = attached(dog_tree, cache, quiet=False)
    assert cached.state == "built"
    assert "Computing the frozen part once: 1 image (1 damaged on disk), 18.4 kB, kept in " in capsys.readouterr().out
    assert count(cache) == 73
    _, _, clean = attached(dog_tree, built)
    for split, values in everything(data).items():
        np.testing.assert_allclose(values, everything(clean)[split], **ROUNDING)
    assert attached(dog_tree, cache)[0].state == "hit"


@pytest.mark.parametrize("part", ["keys", pytest.param("checksums", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_flipped_bit_in_the_index_costs_the_block(dog_tree, cache, built, part):
    file = block(cache)
    flip_byte(file, offset_of(file, part) + 5)
    cached, _, data = attached(dog_tree, cache)
    assert cached.state == "built"
    assert not file.exists()
    assert rows(cache) == rows(built)
    assert same(everything(data), everything(attached(dog_tree, built)[2]))


@pytest.mark.parametrize("share", [0.5, pytest.param(0.0, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_half_a_block_counts_as_none(dog_tree, cache, built, share):
    file = block(cache)
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(data[: int(len(data) * share)])
    cached, _, served = attached(dog_tree, cache)
    assert cached.state == "built"
    assert rows(cache) == rows(built)
    assert same(everything(served), everything(attached(dog_tree, built)[2]))


def test_a_block_of_another_shape_is_not_used(dog_tree, cache, built):
    (folder,) = (cache / "features").iterdir()
    keys = list(next(iter(rows(cache).values())))
    shutil.rmtree(folder)
    Store(folder, (4,), torch.float32).add(keys, torch.zeros(len(keys), 4))
    assert attached(dog_tree, cache)[0].state == "built"
    assert rows(cache) == rows(built)


# Several at once


@pytest.mark.slow
def test_two_runs_in_two_threads(dog_tree, tmp_path, built):
    """Each of them all, and each its part; torch.fx cannot trace in threads, so that was done before."""
    models = [attached(dog_tree, built)[1].eval() for _ in range(4)]
    data = dogs(dog_tree)
    (name,) = rows(built)

    def run(number: int) -> None:
        store = Store(tmp_path / "features" / name, models[number].parts.shape, torch.float32)
        missing = extract.missing_views(store, data.samples, data.used_views(None))
        mine = missing if number < 2 else missing[number % 2 :: 2]
        prefix = models[number].parts.prefix
        with extract.Extraction(store, prefix, mine, data, device=CPU, precision="float32", quiet=True) as extraction:
            extraction.advance()
        assert set(mine[0].keys) <= {key for key in mine[0].keys if key in store}

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))
    assert rows(tmp_path).keys() == rows(built).keys()
    cached, _, served = attached(dog_tree, tmp_path)
    assert cached.state == "hit"
    for split, values in everything(attached(dog_tree, built)[2]).items():
        np.testing.assert_allclose(everything(served)[split], values, **ROUNDING)


@pytest.mark.slow
def test_two_processes_at_once(dog_tree, tmp_path, built):
    both = multiprocessing.get_context("forkserver").Barrier(2)
    processes = [Forked(attach_in_blocks, [dog_tree, tmp_path, both], runs.environment()) for _ in range(2)]
    states = sorted(process.communicate()[0].strip() for process in processes)
    assert states in (["built", "hit"], ["built", "built"]), (
        "the second found nothing left to do, before or after waiting"
    )
    assert count(tmp_path) == 72
    ours, theirs = rows(tmp_path), rows(built)
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if ours[key] != theirs[key]] == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_killed_and_taken_up_again(write_tree, tmp_path, seed):
    rng = random.Random(seed)
    tree = write_tree(tmp_path / "dogs", counts={"train": 40, "valid": 3, "test": 3}, seed=seed)
    folder = tmp_path / "cache"
    before = 0
    for _ in range(3):
        process = Forked(attach_in_blocks, [tree, folder], runs.environment())
        until = before + rng.randint(1, 12)
        while process.poll() is None and len(list(folder.glob("features/*/*.safetensors"))) < until:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = len(list(folder.glob("features/*/*.safetensors")))
        assert kept >= until
        before = kept
    killed_with = count(folder)
    assert 0 < killed_with < 344
    cached, _, served = attached(tree, folder)
    assert cached.state == "built"
    assert count(folder) == 344, "nothing was computed twice"
    _, _, clean = attached(tree, tmp_path / "clean")
    for split, values in everything(clean).items():
        np.testing.assert_allclose(everything(served)[split], values, **ROUNDING)
    assert attached(tree, folder)[0].state == "hit"


# Processes that share the work


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_computed(tmp_path, monkeypatch):
    """It comes with the tenth image, of the first batch; the same command goes on."""
    real, images = extract.decode, iter(range(1, 10_000))

    def decode(*arguments, **more):
        if next(images) == 10:
            raise KeyboardInterrupt
        return real(*arguments, **more)

    arguments = runs.overrides(tmp_path / "run", "data.augment=none", "data.batch_size=12", "loggers={csv: {}}")
    with monkeypatch.context() as patch:
        patch.setattr(extract, "decode", decode)
        ran = runs.run(*arguments)
    assert ran.code == 130
    said = re.search(
        r"Stopped while features were computed: (\d+) of the 36 that were missing are kept in "
        rf"{tmp_path}/cache/features/\w+, and the same command goes on from there\.\n$",
        ran.err,
    )
    assert said, ran.err
    assert 0 < int(said[1]) <= 9
    ran = runs.run(*arguments)
    assert ran.code == 0, ran.err
    assert f"Computing the frozen part once: {36 - int(said[1])} images, " in ran.out


def test_where_one_process_fails_none_goes_on():
    said = []

    def all_well(well: bool) -> bool:  # the other process is well
        said.append(well)
        return well

    with pytest.raises(ValueError, match="mine"), Group(0, 2, all_well).step():
        raise ValueError("mine")
    assert said == [False], "the other one knows, and does not wait"
    others = Group(0, 2, lambda well: False)
    with pytest.raises(DogbreedError, match="another process could not compute its part"), others.step():
        pass


# Where it cannot be used


def off(root, folder, model=None, **cache) -> FeatureCache:
    """Steps aside in `auto`, leaving a run as it would be without; is an error in `require`."""
    model = classifier() if model is None else model
    data = dogs(root)
    cached, _, _ = attached(root, folder, model=model, data=data, mode="auto", **cache)
    assert cached.state == "off"
    assert isinstance(next(iter(data.train_dataloader())), Batch)
    assert model.network.training
    assert model.parts is None
    with pytest.raises(DogbreedError) as caught:
        attached(root, folder, model=model, mode="require", **cache)
    assert str(caught.value).startswith("cache.mode=require, but the cache cannot be used: ")
    assert cached.reason.partition("/features/")[0] in str(caught.value)
    return cached


def test_where_everything_trains(dog_tree, tmp_path):
    assert (
        "every layer trains, so nothing can be computed once"
        in off(dog_tree, tmp_path, classifier(trainable="all")).reason
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_too_large(dog_tree, tmp_path):
    reason = off(dog_tree, tmp_path, max_gb=1e-4).reason
    assert "the features would take 1.33 MB, more than cache.max_gb=0.0001 allows" in reason
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_full_disk(dog_tree, tmp_path, largest_file):
    with largest_file(200_000):
        reason = off(dog_tree, tmp_path).reason
    assert "could not be written" in reason
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob(".*.tmp"))
    assert attached(dog_tree, tmp_path)[0].state == "built", "later there is room"


def test_a_place_that_cannot_be_written(dog_tree, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in off(dog_tree, tmp_path / "file").reason


def test_a_place_of_others(tmp_path, nobody):
    (tmp_path / "others").mkdir(mode=0o500)
    folder = tmp_path / "others" / "cache"
    with nobody():
        assert os.access(stored.existing(folder), os.F_OK), "its disk is looked at first"
        with pytest.raises(DogbreedError, match=r"cannot be written \(Permission denied\)"), locked(folder, True):
            pass


def test_off_is_off(dog_tree, tmp_path):
    cached, model, _ = attached(dog_tree, tmp_path, mode="off")
    assert (cached.state, cached.reason) == ("off", "cache.mode=off")
    assert model.parts is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ({"mode": "on"}, "cache.mode=on is unknown; it is one of auto, off, require"),
        ({"precision": "float64"}, "cache.precision=float64 is unknown; it is one of float32, bfloat16, float16"),
        ({"max_gb": 0}, "cache.max_gb=0 is out of range; it is more than 0"),
        ({"max_gb": float("nan")}, "cache.max_gb=nan is out of range"),
    ],
)
def test_senseless_arguments(argument, sentence):
    with pytest.raises(DogbreedError, match=sentence):
        FeatureCache(**argument)


def test_where_the_cache_lies(cache_dir, monkeypatch):
    assert cache_folder() == cache_dir / "dogbreed"
    assert FeatureCache().folder == cache_dir / "dogbreed" / "features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(cache_dir))
    assert cache_folder() == cache_dir / ".cache" / "dogbreed"
    monkeypatch.setenv("DOGBREED_CACHE", "~/ours")
    assert FeatureCache().folder == cache_dir / "ours" / "features"
    assert cache_folder("~/mine") == cache_dir / "mine"


# Room


def made_up(folder: Path, name: str, age: float, size: int = 1000) -> Path:
    """A store of `size` features, last used `age` seconds ago."""
    store = folder / "features" / name
    Store(store, (size,), torch.float32).add([name.ljust(16).encode()], torch.randn(1, size))
    meta = {"backbone": "vgg16", "cut": "classifier.1", "shape": [size], "precision": "float32", "preprocessing": {}}
    (store / "store.json").write_text(json.dumps(meta))
    os.utime(store / "store.json", (time.time() - age,) * 2)
    return store


def test_room_is_made_by_the_longest_unused(tmp_path):
    stores = {name: made_up(tmp_path, name, age) for name, age in (("a", 10), ("b", 40), ("c", 30), ("d", 20))}
    size = sum(file.stat().st_size for file in stores["a"].glob("*.safetensors"))
    folder = tmp_path / "features"
    assert evict(folder, 5 * size / 1e9, keep=stores["a"]) == []
    assert evict(folder, 3.5 * size / 1e9, keep=stores["a"]) == [stores["b"]]
    assert sorted(path.name for path in folder.iterdir()) == ["a", "c", "d"]
    assert evict(folder, 1e-9, keep=stores["c"]) == [stores["d"], stores["a"]]
    assert [path.name for path in folder.iterdir()] == ["c"]


def test_what_is_in_use_is_kept(tmp_path):
    old, new = made_up(tmp_path, "old", 100), made_up(tmp_path, "new", 1)
    with (old / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert evict(tmp_path / "features", 1e-9, keep=tmp_path) == [new]
        assert old.exists()
    assert evict(tmp_path / "features", 1e-9, keep=tmp_path) == [old]


def test_a_run_makes_room_for_itself(dog_tree, tmp_path):
    old = made_up(tmp_path, "old", 100, size=500_000)  # 2 MB, and 1.3 MB are to come
    attached(dog_tree, tmp_path, max_gb=2.5e-3)
    assert not old.exists(), "before the limit is passed"
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors")) < 2.5e6


def test_using_a_store_makes_it_young(dog_tree, cache):
    (store,) = (cache / "features").iterdir()
    os.utime(store / "store.json", (0, 0))
    attached(dog_tree, cache)
    ((_, size, used),) = stores(cache / "features")
    assert used == pytest.approx(time.time(), abs=60)
    assert size == sum(file.stat().st_size for file in store.glob("*.safetensors"))


# The command


def test_listing(dog_tree, cache, capsys):
    made_up(cache, "abcdef", 1000)
    assert main(["--dir", str(cache)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0].split() == ["key", "size", "last", "used", "precision", "of"]
    assert "squeezenet1_1 up to cat_7" in lines[1], "the last used first"
    assert "float32" in lines[1]
    assert "1.33 MB" in lines[1]
    assert lines[2].startswith("abcdef ")
    assert "vgg16 up to classifier.1" in lines[2]
    assert lines[3].endswith(f"MB in {cache / 'features'}")


def test_listing_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DOGBREED_CACHE", str(tmp_path))
    assert main(["list"]) == 0
    assert capsys.readouterr().out == f"No features in {tmp_path / 'features'}.\n"


def test_verifying(cache, capsys):
    assert main(["--dir", str(cache), "verify"]) == 0
    assert "72 rows, all good" in capsys.readouterr().out
    file = block(cache)
    flip_byte(file, offset_of(file, "features") + 3)
    assert main(["--dir", str(cache), "verify"]) == 1
    assert "71 rows, 1 damaged; the next run computes them again" in capsys.readouterr().out


@pytest.mark.slow
def test_a_block_is_checked_once_while_the_machine_runs(dog_tree, cache, tmp_path, monkeypatch):
    """What changes it without a trace is seen by `verify`, and after the next start."""
    assert attached(dog_tree, cache)[0].state == "hit"
    file = block(cache)
    before = file.stat()
    flip_byte(file, offset_of(file, "features"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    shutil.copytree(cache, tmp_path / "copy")
    assert attached(dog_tree, cache)[0].state == "hit", "it is not read"
    assert main(["--dir", str(cache), "verify"]) == 1
    assert attached(dog_tree, cache)[0].state == "built"
    (tmp_path / "boot").write_text("another start")
    monkeypatch.setattr("dogbreed.cache.store.BOOT", tmp_path / "boot")
    assert attached(dog_tree, tmp_path / "copy")[0].state == "built"


@pytest.mark.parametrize("content", [b"", b"[]", b'{"precision": "float64"}'])
@pytest.mark.slow
def test_a_store_whose_description_is_damaged(dog_tree, cache, capsys, content):
    (store,) = (cache / "features").iterdir()
    (store / "store.json").write_bytes(content)
    for action, code in (("list", 0), ("verify", 1)):
        assert main(["--dir", str(cache), action]) == code
        assert re.search(rf"^{store.name}  .*its store.json is damaged: delete it", capsys.readouterr().out, re.M)
    assert attached(dog_tree, cache)[0].state == "hit", "features do not need it"
    assert main(["--dir", str(cache), "delete", store.name]) == 0
    assert not store.exists()


def test_a_store_that_vanishes_is_none(tmp_path):
    """Another process deletes it, after its files were listed."""
    store = made_up(tmp_path, "aa1", 1)
    (store / "gone.safetensors").symlink_to(store / "deleted")
    assert stores(tmp_path / "features") == []
    shutil.rmtree(store)
    assert delete(store)


def test_after_the_next_run_all_is_good(dog_tree, cache, capsys):
    file = block(cache)
    flip_byte(file, offset_of(file, "features") + 3)
    attached(dog_tree, cache)
    assert main(["--dir", str(cache), "verify"]) == 0
    assert "72 rows, all good" in capsys.readouterr().out


def test_what_a_killed_run_left_is_cleared_away(dog_tree, cache):
    (store,) = (cache / "features").iterdir()
    left = store / ".00001795425222000000000-aabbccdd.safetensors.999999.tmp"
    left.write_bytes(b"half a block")
    block(cache).unlink()
    attached(dog_tree, cache)
    assert not left.exists()


def test_deleting(tmp_path, capsys):
    stores = [made_up(tmp_path, name, 1) for name in ("aa1", "aa2", "bb3", "cc4")]
    assert main(["--dir", str(tmp_path), "delete", "aa", "bb3"]) == 0
    assert sorted(capsys.readouterr().out.split()) == sorted(["deleted", "aa1", "deleted", "aa2", "deleted", "bb3"])
    assert [store.exists() for store in stores] == [False, False, False, True]
    assert main(["--dir", str(tmp_path), "delete", "xyz"]) == 2
    assert "begins with xyz; python -m dogbreed.cache lists them" in capsys.readouterr().err
    assert main(["--dir", str(tmp_path), "delete", "all"]) == 0
    assert list((tmp_path / "features").iterdir()) == []
    assert main(["--dir", str(tmp_path), "delete", "all"]) == 0


def test_a_lock_ends_with_its_block(tmp_path):
    store = made_up(tmp_path, "aa1", 1)
    with locked(store, leader=True):
        assert not delete(store)
    assert delete(store)


def test_deleting_what_is_in_use(tmp_path, capsys):
    store = made_up(tmp_path, "aa1", 1)
    with (store / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        main(["--dir", str(tmp_path), "delete", "all"])
    assert "in use, kept  aa1" in capsys.readouterr().out
    assert store.exists()


# The lock


def test_a_lock_whose_holder_writes_nothing_is_not_waited_for_for_ever(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stored, "SECONDS_TO_LOOK", 0.01)
    monkeypatch.setattr(stored, "SECONDS_WITHOUT_A_BLOCK", 0.03)
    with stored.locked(tmp_path, leader=True):
        with pytest.raises(DogbreedError, match=r"Another process holds .* end it, or choose another folder"):
            stored.locked(tmp_path, leader=True).__enter__()
        with stored.locked(tmp_path, leader=False):  # of a group one process alone holds the lock
            pass
    assert capsys.readouterr().out == "Another run computes these features; waiting for it.\n"
    with stored.locked(tmp_path, leader=True):  # it was let go
        pass


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError()])
def test_a_file_system_without_locks_serves_as_well(tmp_path, monkeypatch, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(stored.FileLock, "acquire", refuse)
    with stored.locked(tmp_path, leader=True):
        (tmp_path / "block").touch()
    assert stored.delete(tmp_path)
    assert not tmp_path.exists()
