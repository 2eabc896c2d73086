"""Machines of one run: who shares the features, and how they wait for each other."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support import runs
from support.places import ROOT

from dogbreed.cache.callback import FeatureCache
from dogbreed.cache.folders import locked
from dogbreed.data.datamodule import DogImages
from dogbreed.data.images import Preprocessing
from dogbreed.models.classifier import DogBreedClassifier

PATIENCE = 8  # seconds that the processes' own collectives wait

MACHINE = f"""
import sys, time
from datetime import timedelta
from pathlib import Path
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from cache.test_group import small
from dogbreed.cache.callback import FeatureCache

tree, place, folder, rank = *map(Path, sys.argv[1:4]), sys.argv[4]
(place / f"ready-{{rank}}").touch()
while len(list(place.glob("ready-*"))) < 2:
    time.sleep(0.05)
model, data = small(tree)
cache = FeatureCache("require", folder=folder)
off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "use_distributed_sampler"), False)
strategy = DDPStrategy(timeout=timedelta(seconds={PATIENCE}))
trainer = Trainer(accelerator="cpu", devices=1, num_nodes=2, strategy=strategy, max_epochs=1, callbacks=[cache], **off)
trainer.fit(model, datamodule=data)
print(cache.state, cache.built.rows, flush=True)
"""


def small(tree: Path) -> tuple[DogBreedClassifier, DogImages]:
    preprocessing = Preprocessing(size=64, resize_size=72)
    model = DogBreedClassifier(3, backbone="squeezenet1_1", weights="none", preprocessing=preprocessing.to_dict())
    return model, DogImages(tree, preprocessing=preprocessing, num_workers=0, batch_size=9, quiet=True)


def machines(place: Path, folders: list[Path]) -> list[subprocess.Popen[str]]:
    """Start a run on two machines, each with its folder of features."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    joined = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    return [
        subprocess.Popen(
            [sys.executable, "-c", MACHINE, runs.photographs(), place, folder, str(rank)],
            env={**os.environ, **joined, "NODE_RANK": str(rank), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, folder in enumerate(folders)
    ]


def finished(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Return the last line of each."""
    said = [process.communicate(timeout=240) for process in processes]
    assert not any(process.returncode for process in processes), said
    return [out.splitlines()[-1] for out, _ in said]


def blocks(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_machines_share_the_work_where_they_share_a_folder(shared: bool, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / ("one" if shared else "two")]
    one, two = finished(machines(tmp_path, folders))
    assert one == two
    assert one.startswith("built ")
    assert [len(blocks(folder)) for folder in folders] == ([2, 2] if shared else [1, 1])
    assert not list(tmp_path.rglob(".seen-*"))
    model, data = small(runs.photographs())
    data.setup()
    for folder in folders:
        cache = FeatureCache("require", folder=folder, quiet=True)
        cache.attach(model, data, torch.device("cpu"), epochs=1)
        assert cache.state == "hit", "all is there"


@pytest.mark.slow
def test_a_lock_is_waited_for_longer_than_processes_wait_for_each_other(tmp_path: Path) -> None:
    model, data = small(runs.photographs())
    data.setup()
    cache = FeatureCache("require", folder=tmp_path / "cache", quiet=True)
    cache.attach(model, data, torch.device("cpu"))
    assert cache.store is not None
    for block in blocks(cache.store):
        block.unlink()
    with locked(cache.store, leader=True):
        processes = machines(tmp_path, [tmp_path / "cache"] * 2)
        assert processes[0].stdout is not None
        while "Another run computes these features" not in processes[0].stdout.readline():
            assert processes[0].poll() is None
        time.sleep(PATIENCE + 4)
    assert [line.split()[0] for line in finished(processes)] == ["built", "built"]
