"""Features travel through S3: what a store lacks is fetched, what is new is added, and no trouble there ends a run."""

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import torch
from moto.server import ThreadedMotoServer
from safetensors.torch import load
from support.places import ROOT

from dogbreed.cache import remote
from dogbreed.cache.callback import FeatureCache
from dogbreed.cache.remote import Home, RemoteStore, keep_in, remote_of
from dogbreed.cache.store import KEY, Keys, Store
from dogbreed.data.datamodule import DogImages
from dogbreed.data.images import Preprocessing
from dogbreed.models.classifier import DogBreedClassifier
from launch.jobs import entry

ADDRESS = "s3://features/dogbreed/features"
FOLDER = "dogbreed/features/key/"
KEYS: Keys = np.array([bytes([number + 1]) * 16 for number in range(10)], KEY)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    yield "http://{}:{}".format(*running.get_host_and_port())
    running.stop()


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of an S3 that has one empty bucket."""
    for name, value in {"ENDPOINT_URL": server, "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket="features")
    for each in client.list_objects_v2(Bucket="features").get("Contents", ()):
        client.delete_object(Bucket="features", Key=each["Key"])
    return client


@pytest.fixture
def blocks_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 3 * 8)


def store(folder: Path, rows: slice = slice(0)) -> Store:
    """A store of features [2] that holds some rows of KEYS, whose numbers they have."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Store(folder, (2,), torch.float32)
    numbers = torch.arange(10.0)[rows]
    if len(numbers):
        made.add(KEYS[rows].tolist(), torch.stack([numbers, -numbers], 1))
    made.refresh()
    return made


def home() -> RemoteStore:
    return RemoteStore(Home(entry.s3, ADDRESS), "key")


def served(filled: Store, keys: Keys = KEYS) -> list[float]:
    assert filled.holds(keys).all()
    return filled.table(keys[None])(np.arange(len(keys)), np.zeros(len(keys), np.int64))[:, 0].tolist()


def objects(s3: Any) -> dict[str, bytes]:
    names = [each["Key"] for each in s3.list_objects_v2(Bucket="features").get("Contents", ())]
    return {name: s3.get_object(Bucket="features", Key=name)["Body"].read() for name in names}


def test_what_one_store_adds_another_fetches(s3, tmp_path, blocks_of_three, capsys):
    home().add(store(tmp_path / "one", slice(10)), KEYS)
    assert len(objects(s3)) == 4, "ten rows in blocks of three"
    other = store(tmp_path / "other")
    home().fetch(other, KEYS)
    assert served(other) == list(range(10))
    said = capsys.readouterr().out
    assert "10 rows kept in s3://features/dogbreed/features/key" in said
    assert "10 rows fetched from s3://features/dogbreed/features/key" in said


def test_only_blocks_with_missing_rows_are_fetched(s3, tmp_path, blocks_of_three):
    home().add(store(tmp_path / "one", slice(10)), KEYS)
    other = store(tmp_path / "other", slice(1, 10))
    home().fetch(other, KEYS[:9])
    assert served(other) == list(range(10))
    assert len(list(other.folder.glob("*.safetensors"))) == 2, "its own, and the one with the first row"
    home().fetch(nothing := store(tmp_path / "nothing"), np.array([b"z" * 16], KEY))
    assert len(nothing) == 0


def test_only_new_rows_are_added_and_nothing_is_written_twice(s3, tmp_path):
    home().add(store(tmp_path / "one", slice(6)), KEYS)
    before = objects(s3)
    home().add(store(tmp_path / "two", slice(10)), KEYS)
    after = objects(s3)
    assert before.items() <= after.items()
    assert len(after) == len(before) + 1
    other = store(tmp_path / "other")
    home().fetch(other, KEYS)
    assert served(other) == list(range(10))
    assert len(other) == 10


def test_two_writers_at_once_leave_one_copy(s3, tmp_path, blocks_of_three, capsys):
    filled = [store(tmp_path / name, slice(10)) for name in ("one", "two")]
    homes = [home(), home()]
    for one in homes:  # both look before either writes
        one.fetch(store(tmp_path / f"look-{id(one)}"), KEYS)
    threads = [threading.Thread(target=one.add, args=(rows, KEYS)) for one, rows in zip(homes, filled, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(objects(s3)) == 4
    assert "cannot be" not in capsys.readouterr().out
    other = store(tmp_path / "other")
    home().fetch(other, KEYS)
    assert served(other) == list(range(10))


def test_of_a_half_uploaded_store_the_rest_is_missing_and_added_later(s3, tmp_path, blocks_of_three):
    filled = store(tmp_path / "one", slice(10))
    home().add(filled, KEYS)
    for name in list(objects(s3))[:2]:
        s3.delete_object(Bucket="features", Key=name)
    other = store(tmp_path / "other")
    home().fetch(other, KEYS)
    assert 0 < len(other) < 10
    home().add(filled, KEYS)
    home().fetch(other, KEYS)
    assert served(other) == list(range(10))


@pytest.mark.parametrize("damage", ["row", "index", "cut", "empty"])
def test_a_damaged_block_is_computed_anew_and_replaced(s3, tmp_path, damage, capsys):
    filled = store(tmp_path / "one", slice(10))
    home().add(filled, KEYS)
    ((name, content),) = objects(s3).items()
    at = {"row": content.index(np.float32(-9).tobytes()), "index": content.index(b"\x05" * 16)}.get(damage, 0)
    changed = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    s3.put_object(
        Bucket="features", Key=name, Body={"cut": content[: len(content) // 2], "empty": b""}.get(damage, changed)
    )
    used = home()
    other = store(tmp_path / "other")
    used.fetch(other, KEYS)
    assert not other.holds(KEYS).all(), "what does not fit its checksum is not served"
    other.add(KEYS.tolist(), torch.stack([torch.arange(10.0), -torch.arange(10.0)], 1))
    other.refresh()
    used.add(other, KEYS)
    assert objects(s3)[name] == content
    third = store(tmp_path / "third")
    home().fetch(third, KEYS)
    assert served(third) == list(range(10))
    assert "cannot be" not in capsys.readouterr().out


def test_a_good_copy_beside_a_damaged_one_serves(s3, tmp_path):
    home().add(store(tmp_path / "one", slice(10)), KEYS)
    ((name, content),) = objects(s3).items()
    at = content.index(np.float32(-9).tobytes())
    s3.put_object(Bucket="features", Key=name, Body=content[:at] + b"\0" + content[at + 1 :])
    s3.put_object(Bucket="features", Key=f"{FOLDER}{'f' * 32}.safetensors", Body=content)
    other = store(tmp_path / "other")
    home().fetch(other, KEYS)
    assert served(other) == list(range(10))


def test_other_objects_are_left_alone(s3, tmp_path):
    for name in ("notes.txt", "../../outside.safetensors", "deeper/x.safetensors"):
        s3.put_object(Bucket="features", Key=f"{FOLDER}{name}", Body=b"nothing of ours")
    other = store(tmp_path / "a" / "b")
    home().fetch(other, KEYS)
    assert not [*tmp_path.rglob("*.safetensors"), *tmp_path.rglob("*.txt")]


def test_owner_and_key_go_with_every_request(s3, tmp_path):
    sent: dict[str, list[dict[str, Any]]] = {}

    def noting() -> Any:
        made = entry.s3()
        made.meta.events.register(
            "provide-client-params.s3", lambda params, model, **_: sent.setdefault(model.name, []).append(params)
        )
        return made

    own = Home(noting, ADDRESS, "123456789012", "arn:aws:kms:key")
    RemoteStore(own, "key").add(store(tmp_path / "one", slice(10)), KEYS)
    RemoteStore(own, "key").fetch(store(tmp_path / "other"), KEYS)
    assert {"PutObject", "ListObjectsV2", "GetObject"} <= sent.keys()
    assert all(params["ExpectedBucketOwner"] == "123456789012" for calls in sent.values() for params in calls)
    (put,) = sent["PutObject"]
    assert (put["ServerSideEncryption"], put["SSEKMSKeyId"]) == ("aws:kms", "arn:aws:kms:key")
    assert put["IfNoneMatch"] == "*"


def rows(s3: Any) -> list[bytes]:
    """The keys of the rows of all blocks."""
    return [bytes(key.tolist()) for block in objects(s3).values() for key in load(block)["keys"]]


@pytest.fixture
def kept(s3) -> Iterator[None]:
    """The stores of this process have a home."""
    keep_in(Home(entry.s3, ADDRESS))
    yield
    keep_in(None)


SMALL = Preprocessing(size=64, resize_size=72)


def small(tree: Path) -> tuple[DogBreedClassifier, DogImages]:
    data = DogImages(tree, preprocessing=SMALL, num_workers=0, batch_size=8, quiet=True)
    data.setup()
    torch.manual_seed(0)
    return DogBreedClassifier(4, backbone="squeezenet1_1", weights="none", preprocessing=SMALL.to_dict()), data


def attached(tree: Path, folder: Path) -> str:
    """State of the cache after a small network has been given its features."""
    model, data = small(tree)
    cache = FeatureCache("require", folder=folder)
    cache.attach(model, data, torch.device("cpu"))
    return cache.state


@pytest.mark.slow
def test_the_cache_of_another_machine_is_a_hit(s3, kept, dog_tree, tmp_path, capsys):
    assert attached(dog_tree, tmp_path / "one") == "built"
    assert attached(dog_tree, tmp_path / "two") == "hit"
    assert "Computing" not in capsys.readouterr().out.partition("fetched from")[2]
    assert attached(dog_tree, tmp_path / "two") == "hit"
    for name in objects(s3):
        s3.delete_object(Bucket="features", Key=name)
    assert attached(dog_tree, tmp_path / "two") == "hit"
    assert objects(s3), "what this machine has and S3 lacks is added"


RANK = """
import sys, time
from pathlib import Path
import torch
import torch.distributed as dist
from dogbreed.cache.callback import FeatureCache, Group
from dogbreed.cache.remote import Home, keep_in
from launch.jobs import entry
from cache.test_remote import ADDRESS, small

tree, folder, rank = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
folder.mkdir(exist_ok=True)
dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
steps = 0

def all_well(well):
    global steps
    steps += 1
    least = torch.tensor(int(well))
    dist.all_reduce(least, dist.ReduceOp.MIN)
    if steps == 2:  # both jobs have fetched before either adds
        (folder / "fetched").touch()
        while len(list(folder.parent.glob("*/fetched"))) < 2:
            time.sleep(0.05)
    return bool(least)

keep_in(Home(entry.s3, ADDRESS))
model, data = small(tree)
cache = FeatureCache("require", folder=folder / "cache")
cache.attach(model, data, torch.device("cpu"), Group(rank, 2, all_well))
print(f"{cache.state}, {cache.built.rows} computed")
"""


@pytest.mark.slow
def test_two_jobs_of_two_processes_at_once_complete_one_store(s3, kept, dog_tree, tmp_path):
    """What is there both jobs fetch; the rest they compute and add, and no row is lost or there twice."""
    part = shutil.copytree(dog_tree, tmp_path / "part")
    for folder in (part / "train").iterdir():
        sorted(folder.iterdir())[-1].unlink()
    assert attached(part, tmp_path / "before") == "built"
    before = len(rows(s3))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, dog_tree, tmp_path / job, str(rank)],
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for job in ("one", "two")
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in processes]
    after = len(rows(s3))
    assert 0 < before < after == len(set(rows(s3)))
    for number, lines in enumerate(said):
        assert f"built, {after - before} computed" in lines, "every process of a job says the same"
        assert (f"Features: {before} rows fetched from" in lines) is (number % 2 == 0), "the first of a job fetches"
    assert attached(dog_tree, tmp_path / "after") == "hit"


@pytest.mark.slow
def test_s3_out_of_reach_is_a_sentence(kept, dog_tree, tmp_path, monkeypatch, capsys):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert attached(dog_tree, tmp_path) == "built"
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "cannot be" in line]
    assert line.startswith("Features cannot be fetched from s3://features/dogbreed/features/")
    assert "Could not connect" in line
    assert line.endswith("; the training goes on without.")


def test_without_an_address_there_is_no_home(monkeypatch):
    monkeypatch.delenv("DOGBREED_FEATURES", raising=False)
    entry.keep_features()
    assert remote_of("key") is None
