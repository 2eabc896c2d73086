"""Processes that torchrun starts share what the first decides."""

import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
from support import runs
from torch.distributed import TCPStore

from dogbreed.training import ranks


def test_the_first_decides_and_the_others_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in {
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(agent.port),
    }.items():
        monkeypatch.setenv(name, value)
    agreed = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setattr(ranks, "_calls", count())
        agreed.append([ranks.agree(lambda rank=rank, step=step: f"{step} of {rank}") for step in ("folder", "data")])
    assert agreed == [["folder of 0", "data of 0"]] * 2


def test_alone_each_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    assert ranks.agree(lambda: Path("outputs/run")) == "outputs/run"


@pytest.mark.slow
def test_two_processes_of_torchrun_have_one_folder(tmp_path: Path) -> None:
    settings = (
        *(part for part in runs.TINY if not part.startswith(("trainer.devices", "trainer.max_epochs"))),
        *("trainer.max_epochs=1", "trainer.devices=2", "trainer.strategy=ddp", f"data.root={runs.photographs()}"),
    )
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = subprocess.run(
        [*torchrun, "-m", "dogbreed.train", *settings],
        cwd=tmp_path,
        env=runs.environment(DOGBREED_CACHE=str(tmp_path / "cache")),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs").glob("*/*")
    assert (folder / "model" / "model.json").is_file()
    assert done.stdout.count("Test set: ") == 1
