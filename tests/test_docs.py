"""README and docs: every block of code either runs here or says why not; the map of the modules is the tree's."""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torchvision
from support import runs
from support.forks import Forked, command, program
from support.places import ROOT

import dogbreed

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = {"bash", "python"}  # other blocks show a program's output or a file
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"<!-- (run|not run: \S.*?) -->\s*\Z", re.DOTALL)

# Pretrained networks cannot be downloaded here: files of random weights lie where torchvision looks for its own.
NETWORKS = ("squeezenet1_1", "mobilenet_v2")
CHEAP = ("model.backbone=squeezenet1_1", "data.size=64", "data.num_workers=0", "trainer.accelerator=cpu")
FOR_THE_SHELL = re.compile(r"[|<>&;$`*?~]")


class Block(NamedTuple):
    """One fenced block, and what the comment above it says: `run`, `not run: ...` or nothing."""

    page: str
    line: int
    language: str
    code: str
    mark: str


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        before = text[: match.start()]
        mark = MARK.search(before)
        code = re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE)
        yield Block(page.name, before.count("\n") + 1, match[2], code, " ".join(mark[1].split()) if mark else "")


def generator() -> dict[str, Any]:
    """What `docs/modules.py` defines."""
    return runpy.run_path(str(ROOT / "docs" / "modules.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_is_marked(page: Path) -> None:
    assert page.read_text(encoding="utf-8").count("```") == 2 * len(list(blocks(page))), "a fence is not closed"
    for block in blocks(page):
        where = f"{block.page}:{block.line}"
        assert block.language, f"{where}: a block says its language, or text"
        marked = bool(block.mark)
        assert marked == (block.language in CODE), f"{where}: <!-- run --> or <!-- not run: why --> above code, only"


@pytest.mark.slow
def test_the_map_of_the_modules_is_the_trees() -> None:
    tool = generator()
    page = tool["PAGE"].read_text(encoding="utf-8")
    assert tool["renewed"](page) == page, "run: python docs/modules.py"
    unnamed = [file for files in tool["modules"]().values() for file in files if not tool["first_line"](file)]
    assert not unnamed, "a module says in its docstring what it is"


def test_every_command_is_listed() -> None:
    page = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
    commands = {file.stem for file in (ROOT / "dogbreed").glob("[a-z]*.py")} | {"cache"}
    assert commands == set(re.findall(r"^\| `python -m dogbreed\.(\w+)", page, re.MULTILINE))
    scripts = {file.stem.removeprefix("sagemaker") for file in (ROOT / "launch").glob("sagemaker_*.py")}
    assert all(f"{script}.py" in page for script in scripts), scripts


def test_what_the_documented_commands_write_is_no_change_of_the_checkout() -> None:
    """Their own folders, and the one that each takes that is given none."""
    options = r"(?:output_dir=|--(?:output|onnx|torch-export|csv|submission)[ =]|data\.root=|save_dir=\")([\w./]+)"
    named = {name for page in PAGES for block in blocks(page) for name in re.findall(options, block.code)}
    default = r"new_folder\(Path\(\"(\w+)\"\)\)"
    named |= {
        name for file in (ROOT / "dogbreed").rglob("*.py") for name in re.findall(default, file.read_text("utf-8"))
    }
    assert {"my_dogs", "outputs", "evaluation", "comparison", "inspection", "study", "dogs.onnx"} <= named
    paths = [name if "." in name else f"{name}/file" for name in sorted(named)]
    command = ["git", "check-ignore", "--no-index", *paths]
    ignored = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {path for path in paths if not path.startswith("docs/")} == set(ignored)


def test_the_public_names_are_documented() -> None:
    reference = (ROOT / "docs" / "api.md").read_text("utf-8")
    names = set(dogbreed.__all__) - {"__version__"}
    assert {
        name for name in names if not re.search(rf"^::: dogbreed\.([\w.]+\.)?{name}$", reference, re.MULTILINE)
    } == set()
    readme = (ROOT / "README.md").read_text("utf-8")
    for name in ("DogBreedClassifier", "DogImages", "FeatureCache", "Predictor", "train"):
        assert re.search(rf"\b{name}\b", readme), name


def test_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") <= 220
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout's parts that commands name, images in my_dogs, photo.jpg, and the run outputs/my_dogs."""
    root = tmp_path_factory.mktemp("docs")
    shutil.copy(ROOT / "pyproject.toml", root)
    for name in ("dogbreed", "launch", "conf", "benchmarks"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(runs.photographs(), root / "my_dogs")
    shutil.copy(next((root / "my_dogs" / "test").rglob("*.jpg")), root / "photo.jpg")
    checkpoints = root / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for name in NETWORKS:
        url = torchvision.models.get_model_weights(name).DEFAULT.url
        torch.save(torchvision.models.get_model(name).state_dict(), checkpoints / Path(url).name)
    run_block("python -m dogbreed.train data.root=my_dogs output_dir=outputs/my_dogs", root)
    return root


def run_block(code: str, folder: Path) -> None:
    """Runs lines of the shell: commands of ours in processes that have torch already, anything else in bash."""
    for line in code.replace("\\\n", " ").splitlines():
        if line.startswith("python -m dogbreed.") and not FOR_THE_SHELL.search(line):
            words = shlex.split(line, comments=True)[2:]
            if words[0] in ("dogbreed.train", "dogbreed.tune") and "--help" not in words:
                words += CHEAP if "trainer.max_epochs" in line else (*CHEAP, "trainer.max_epochs=3")
            finish(Forked(command, words, environment(folder), folder, apart=True))
        else:
            bash, pipe = ["bash", "-euo", "pipefail", "-c", line], subprocess.PIPE
            finish(subprocess.Popen(bash, cwd=folder, env=environment(folder), stdout=pipe, stderr=pipe, text=True))


def environment(folder: Path) -> dict[str, str]:
    away = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy")}  # nobody listens: no network
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return runs.environment(**away, PATH=path, DOGBREED_CACHE=str(folder / "cache"), TORCH_HOME=str(folder / "torch"))


def finish(process: subprocess.Popen[str] | Forked) -> None:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, f"{out[-2000:]}\n{err[-4000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_run(page: Path, folder: Path) -> None:
    for block in blocks(page):
        if block.mark == "run" and block.language == "bash":
            run_block(block.code, folder)
        elif block.mark == "run":
            finish(Forked(program, [block.code], environment(folder), folder, apart=True))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The website, built without a warning."""
    target = tmp_path_factory.mktemp("site")
    command_line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(target)]
    done = subprocess.run(
        command_line,
        cwd=ROOT,
        env=runs.environment(NO_MKDOCS_2_WARNING="1"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.mark.slow
def test_site_is_complete_and_loads_nothing_from_elsewhere(site: Path) -> None:
    assert {page.stem for page in PAGES if page.parent == ROOT / "docs"} <= {page.stem for page in site.glob("*.html")}
    for page in site.glob("*.html"):
        loaded = re.findall(r'(?:src=|<link[^>]+rel="stylesheet"[^>]+href=)"(https?:[^"]+)', page.read_text("utf-8"))
        assert loaded == [], page.name
    reference = (site / "api.html").read_text("utf-8")
    for name in ("train", "DogBreedClassifier", "DogImages", "Predictor"):
        assert f"{name}</span>" in reference, name
