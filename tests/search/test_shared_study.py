"""`search.storage`: processes that share a study, what they leave to each other, and addresses that cannot be used."""

import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import runs
from support.forks import Forked, command

from dogbreed.search import storage
from dogbreed.search.run import tune
from dogbreed.tune import main

optuna = pytest.importorskip("optuna", reason="the search needs Optuna: pip install 'dogbreed[search]'")

SMALL = (*runs.STACKABLE, "search.space.data.batch_size.choices=[4,8]", "search.seeds=0", "progress=plain")


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    return [*SMALL, f"data.root={runs.photographs()}", f"cache.dir={tmp_path / 'cache'}"]


def study_of(file: Path) -> Any:
    return optuna.load_study(study_name="search", storage=storage.open_storage(optuna, str(file)))


def finished(study: Any) -> list[Any]:
    return [trial for trial in study.trials if trial.state.name in ("COMPLETE", "PRUNED")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["study.db", "study.log"])
def test_two_processes_share_the_trials(settings: list[str], tmp_path: Path, name: str) -> None:
    file, folders = tmp_path / name, [tmp_path / "one", tmp_path / "two"]
    shared = [*settings, f"search.storage={file}", "search.trials=9", "search.parallel=2", "trainer.max_epochs=8"]
    processes = [
        Forked(command, ["dogbreed.tune", *shared, f"output_dir={folder}"], runs.environment()) for folder in folders
    ]
    said = [runs.finish(process) for process in processes]
    assert all("\n9 trials in " in text for text in said)
    study = study_of(file)
    done = finished(study)
    assert len(done) == 9
    assert len({trial.user_attrs["worker"] for trial in done}) == 2
    proposed = [trial.params["model.lr"] for trial in done if trial.params["model.lr"] != 0.0033047276512977604]
    assert len(set(proposed)) == len(proposed)  # neither repeats what the other does
    tables = [(folder / "trials.csv").read_text() for folder in folders]
    assert tables[0] == tables[1]
    best = [yaml.safe_load((folder / "best.yaml").read_text()) for folder in folders]
    assert best[0] == best[1]
    assert not (folders[0] / "study.db").exists()


@pytest.mark.slow
def test_what_a_killed_process_had_taken_is_tried_by_another(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = [*settings, f"search.storage={tmp_path / 'study.db'}", "search.parallel=3"]
    long = [*shared, "trainer.max_epochs=3", "search.trials=9"]
    process = Forked(command, ["dogbreed.tune", *long, f"output_dir={tmp_path / 'one'}"], runs.environment())
    while not (tmp_path / "study.db").exists() or not _running(tmp_path / "study.db"):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    lost = _running(tmp_path / "study.db")
    assert lost
    monkeypatch.setattr(storage, "PATIENCE", 0.5)
    tune(overrides=[*long, f"output_dir={tmp_path / 'two'}", "progress=none"])
    study = study_of(tmp_path / "study.db")
    assert len(finished(study)) == 9
    assert {study.trials[number].state.name for number in lost} == {"FAIL"}


def _running(file: Path) -> list[int]:
    try:
        return [trial.number for trial in study_of(file).trials if trial.state.name == "RUNNING"]
    except Exception:  # the file is just being made
        return []


@pytest.mark.slow
def test_another_search_in_the_same_storage_is_refused(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = [*settings, f"search.storage={tmp_path / 'study.log'}", "search.trials=1"]
    assert main([*shared, f"output_dir={tmp_path / 'one'}"]) == 0
    assert main([*shared, "trainer.max_epochs=4", f"output_dir={tmp_path / 'two'}"]) == 2
    said = capsys.readouterr().err
    assert "trainer.max_epochs differ" in said
    assert "choose another search.storage" in said


def _closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("sqlite:////nowhere/study.db", "unable to open database file"),
        ("/nowhere/study.log", "No such file or directory"),
        ("oracel://host/studies", "Can't load plugin: sqlalchemy.dialects:oracel"),
        ("mysql+pymysql://host:{port}/studies", "search.storage=mysql+pymysql://host"),
        ("postgresql://ann:hunter2@host/studies", "search.storage holds a password"),
        ("mysql://host/studies?password=hunter2", "search.storage holds a password"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_sentence(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], address: str, sentence: str
) -> None:
    address = address.format(port=_closed_port())
    folder = tmp_path / "search"
    assert main([*settings, f"search.storage={address}", f"output_dir={folder}"]) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert "Traceback" not in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert "hunter2" not in said.out + said.err
    assert not folder.exists()


def test_a_file_that_is_no_journal_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a study\n")
    with pytest.raises(storage.DogbreedError, match=r"search\.storage=.*notes\.txt cannot be used: "):
        storage.open_storage(optuna, str(file))


def test_the_password_of_the_environment_is_connected_with_and_never_shown() -> None:
    from sqlalchemy.engine import make_url

    secret = "s3cret/word"  # noqa: S105
    url = storage._with_password("postgresql://ann@host/studies", secret)
    assert make_url(url).password == secret
    error = storage._unusable("postgresql://ann@host/studies", ValueError(f"no {secret} for ann"), secret)
    assert "s3cret" not in str(error)
    assert "ann@" not in str(error)
