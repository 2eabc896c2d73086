"""Checkpoints: nothing half-written, what is frozen written once and put back on reading, and every refusal."""

import hashlib
import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dogbreed.cache.__main__ import main
from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import atomic_write
from dogbreed.models.checkpoint_io import RunCheckpointIO
from dogbreed.models.checkpoints import FROZEN, changed_state, drop_frozen, network_state, read_checkpoint


def checkpoint(step: int = 1) -> dict:
    """As Lightning hands it over, with a network of 40 kB."""
    generator = torch.Generator().manual_seed(0)
    state = {
        "network.body.weight": torch.randn(100, 100, generator=generator),
        "network.body.scale": torch.randn(4, 4, 3, 3, generator=generator).to(memory_format=torch.channels_last),
        "network.body.count": torch.tensor(3),
        "network.head.weight": torch.full((5, 100), float(step)),
    }
    return {
        "state_dict": state,
        "hyper_parameters": {"lr": 0.1, "class_names": ["a", "b"], "preprocessing": {"mean": [0.1, 0.2, 0.3]}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(5, 100) * step}}}],
        "epoch": step,
        "global_step": step,
    }


def saved(folder, step: int = 1, name: str = "last.ckpt"):
    RunCheckpointIO({"head.weight"}).save_checkpoint(checkpoint(step), folder / name)
    return folder / name


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# Writing


def test_what_is_written_appears_whole(tmp_path):
    file = tmp_path / "new" / "file.txt"
    with atomic_write(file) as beside:
        beside.write_text("first")
        assert not file.exists()
        assert beside.parent == file.parent
    assert file.read_text() == "first"
    with atomic_write(file) as beside:
        beside.write_text("second")
        assert file.read_text() == "first"
    assert file.read_text() == "second"
    assert [path.name for path in file.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), MemoryError()])
def test_nothing_is_left_of_what_failed(tmp_path, error):
    file = tmp_path / "file.txt"
    file.write_text("before")

    def fail():
        with atomic_write(file) as beside:
            beside.write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


WRITERS = {
    "text": lambda path: path.write_text("x" * 100_000),
    "json": lambda path: path.write_text(json.dumps(["x"] * 50_000)),
    "safetensors": lambda path: save_file({"a": torch.randn(100_000)}, path),
    "torch": lambda path: torch.save({"a": torch.randn(100_000)}, path),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_a_sentence(tmp_path, largest_file, kind):
    file = tmp_path / "file"
    file.write_text("before")

    def write():
        with atomic_write(file) as beside:
            WRITERS[kind](beside)

    with largest_file(20_000), pytest.raises(DogbreedError, match=r"file could not be written.*is kept"):
        write()
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]
    write()
    assert file.stat().st_size >= 100_000


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("no folder")

    def write():
        with atomic_write(tmp_path / "file" / "inner.txt") as beside:
            beside.write_text("x")

    with pytest.raises(DogbreedError, match=r"inner\.txt could not be written \(File exists\)"):
        write()


# Checkpoints


def test_a_checkpoint_comes_back_whole(tmp_path):
    loaded = RunCheckpointIO(set()).load_checkpoint(saved(tmp_path))
    expected = checkpoint()
    assert same(loaded["state_dict"], expected["state_dict"])
    assert loaded["hyper_parameters"] == expected["hyper_parameters"]
    assert loaded.keys() == expected.keys()
    assert torch.equal(loaded["optimizer_states"][0]["state"][0]["exp_avg"], torch.ones(5, 100))
    assert network_state(loaded).keys() == {"body.weight", "body.scale", "body.count", "head.weight"}


def test_what_is_frozen_is_written_once(tmp_path):
    plugin = RunCheckpointIO({"head.weight"})
    plugin.save_checkpoint(checkpoint(1), tmp_path / "best.ckpt")
    beside = tmp_path / FROZEN
    assert load_file(beside).keys() == {"network.body.weight", "network.body.scale", "network.body.count"}
    stamp = beside.stat().st_mtime_ns, beside.stat().st_ino
    plugin.save_checkpoint(checkpoint(2), tmp_path / "last.ckpt")
    saved(tmp_path, 3, "resumed.ckpt")
    assert (beside.stat().st_mtime_ns, beside.stat().st_ino) == stamp
    for name, step in (("best.ckpt", 1), ("last.ckpt", 2), ("resumed.ckpt", 3)):
        assert (tmp_path / name).stat().st_size < 20_000, "the frozen 40 kB are not in it"
        assert same(read_checkpoint(tmp_path / name)["state_dict"], checkpoint(step)["state_dict"])
        assert changed_state(tmp_path / name).keys() == {"head.weight"}
    assert {path.name for path in tmp_path.iterdir()} == {"best.ckpt", "last.ckpt", "resumed.ckpt", FROZEN}


def test_runs_share_equal_frozen_values(tmp_path, capsys, monkeypatch):
    """As hard links, which any run may be deleted of, and the last one by `prune`; they are hashed once."""
    shared, hashes, blake2b = tmp_path / "cache" / "frozen", [], hashlib.blake2b
    monkeypatch.setattr(hashlib, "blake2b", lambda **keywords: hashes.append(1) or blake2b(**keywords))
    for run in ("one", "two"):
        RunCheckpointIO({"head.weight"}, shared).save_checkpoint(checkpoint(), tmp_path / run / "a.ckpt")
    (kept,) = shared.iterdir()
    assert len(hashes) == 1
    assert (tmp_path / "one" / FROZEN).samefile(kept)
    assert (tmp_path / "two" / FROZEN).samefile(kept)
    assert kept.stat().st_mode == (tmp_path / "one" / "a.ckpt").stat().st_mode, "who may read one may read both"
    other = checkpoint()
    other["state_dict"]["network.body.weight"] = other["state_dict"]["network.body.weight"] + 1
    RunCheckpointIO({"head.weight"}, shared).save_checkpoint(other, tmp_path / "two" / "a.ckpt")
    assert len(hashes) == 2
    assert same(read_checkpoint(tmp_path / "one" / "a.ckpt")["state_dict"], checkpoint()["state_dict"])
    assert same(read_checkpoint(tmp_path / "two" / "a.ckpt")["state_dict"], other["state_dict"])
    shutil.rmtree(tmp_path / "two")
    assert main(["--dir", str(tmp_path / "cache"), "list"]) == 0
    assert "frozen weights, kept once for 1 run\n" in capsys.readouterr().out
    assert main(["--dir", str(tmp_path / "cache"), "prune"]) == 0
    assert "of 1 network that no run has any more" in capsys.readouterr().out
    assert [*shared.iterdir()] == [kept]


@pytest.mark.parametrize(
    ("exported", "same"),
    [
        (torch.tensor([0.0, torch.nan, 1.0]), True),
        (torch.tensor([-0.0, torch.nan, 1.0]), False),
        (torch.tensor([0.0, torch.nan, 1.0]).double(), False),
        (torch.tensor([[0.0, torch.nan, 1.0]]), False),
        (None, False),
    ],
)
def test_frozen_values_go_only_where_the_export_has_the_same_bits(exported, same, tmp_path):
    for folder in ("checkpoints", "model"):
        (tmp_path / folder).mkdir()
    values = {"network.a": torch.tensor([0.0, torch.nan, 1.0]), "network.b": torch.tensor(True)}
    save_file(values, tmp_path / "checkpoints" / FROZEN)
    others = {} if exported is None else {"a": exported}
    save_file({"b": values["network.b"], "head": torch.ones(1), **others}, tmp_path / "model" / "model.safetensors")
    drop_frozen(tmp_path)
    assert (tmp_path / "checkpoints" / FROZEN).exists() is not same


def test_each_folder_gets_its_frozen_values(tmp_path):
    plugin = RunCheckpointIO({"head.weight"})
    plugin.save_checkpoint(checkpoint(), tmp_path / "one" / "a.ckpt")
    plugin.save_checkpoint(checkpoint(), tmp_path / "two" / "a.ckpt")
    assert same(read_checkpoint(tmp_path / "two" / "a.ckpt")["state_dict"], checkpoint()["state_dict"])


def test_where_everything_trains_there_is_one_file(tmp_path):
    names = {name.removeprefix("network.") for name in checkpoint()["state_dict"]}
    RunCheckpointIO(names).save_checkpoint(checkpoint(), tmp_path / "a.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]
    assert same(read_checkpoint(tmp_path / "a.ckpt")["state_dict"], checkpoint()["state_dict"])


def test_a_checkpoint_of_a_plain_trainer_is_read_as_it_is(tmp_path):
    torch.save(checkpoint(), tmp_path / "epoch=1.ckpt")
    assert same(read_checkpoint(tmp_path / "epoch=1.ckpt")["state_dict"], checkpoint()["state_dict"])


def test_saving_on_a_full_disk_keeps_the_checkpoint_before(tmp_path, largest_file):
    file = saved(tmp_path, 1)
    with largest_file(3_000), pytest.raises(DogbreedError, match=r"last\.ckpt could not be written"):
        saved(tmp_path, 2)
    assert read_checkpoint(file)["epoch"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", FROZEN}


def test_removing_what_is_gone_is_no_error(tmp_path):
    file = saved(tmp_path)
    plugin = RunCheckpointIO(set())
    plugin.remove_checkpoint(file)
    assert not file.exists()
    plugin.remove_checkpoint(file)


# Refusals


def test_moved_away_from_its_frozen_values(tmp_path):
    file = saved(tmp_path / "run")
    moved = tmp_path / "elsewhere" / "last.ckpt"
    moved.parent.mkdir()
    file.rename(moved)
    with pytest.raises(DogbreedError) as caught:
        read_checkpoint(moved)
    assert f"{moved} needs the frozen weights that belong beside it, in {moved.with_name(FROZEN)}" in str(caught.value)
    (tmp_path / "run" / FROZEN).rename(moved.with_name(FROZEN))
    assert same(read_checkpoint(moved)["state_dict"], checkpoint()["state_dict"])


def test_beside_the_frozen_values_of_another_run(tmp_path):
    file = saved(tmp_path)
    save_file({"network.other.weight": torch.ones(2)}, tmp_path / FROZEN)
    with pytest.raises(DogbreedError, match="needs the frozen weights"):
        read_checkpoint(file)


def test_where_another_run_has_written_its_own(tmp_path):
    older = saved(tmp_path, 1, "older.ckpt")
    other = checkpoint(2)
    other["state_dict"]["network.body.weight"] = torch.zeros(100, 100)
    RunCheckpointIO({"head.weight"}).save_checkpoint(other, tmp_path / "newer.ckpt")
    assert same(read_checkpoint(tmp_path / "newer.ckpt")["state_dict"], other["state_dict"])
    with pytest.raises(DogbreedError, match=r"belongs to another run than .*older\.ckpt"):
        read_checkpoint(older)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("name", ["last.ckpt", FROZEN])
def test_truncated(tmp_path, name, share):
    file = saved(tmp_path)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DogbreedError, match=r"is not a readable checkpoint|needs the frozen weights"):
        read_checkpoint(file)


def test_missing(tmp_path):
    with pytest.raises(DogbreedError, match=r"gone\.ckpt does not exist"):
        read_checkpoint(tmp_path / "gone.ckpt")


@pytest.mark.parametrize("content", [{"head.weight": torch.ones(2)}, [1, 2], {"state_dict": {}}])
def test_no_checkpoint(tmp_path, content):
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(DogbreedError, match=r"is no checkpoint of this project; weights alone go into model.weights"):
        read_checkpoint(tmp_path / "a.ckpt")


class _Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_checkpoint_is_not_run(tmp_path, save):
    save({**checkpoint(), "callbacks": _Touch(tmp_path / "was-run")}, tmp_path / "a.ckpt")
    with pytest.raises(DogbreedError, match="is not a readable checkpoint"):
        read_checkpoint(tmp_path / "a.ckpt")
    assert not (tmp_path / "was-run").exists()
