"""The wheel works where there is no checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from support import runs


def _run(*command: str | Path, folder: Path) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={**clean, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, runs.ROOT, folder=folder)
    (file,) = folder.glob("*.whl")
    return file


@pytest.mark.slow
def test_wheel_holds_the_configuration(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    conf = {f"dogbreed/conf/{file.relative_to(runs.ROOT / 'conf')}" for file in (runs.ROOT / "conf").rglob("*.yaml")}
    assert len(conf) > 5
    assert conf <= names
    assert {"dogbreed/py.typed", "dogbreed/train.py"} <= names
    strays = [name for name in names if not name.startswith("dogbreed")]
    assert not strays, "tests, launch scripts and the like stay in the checkout"


@pytest.mark.slow
def test_trains_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    """Installed alone; its dependencies are lent by this environment, in which the package itself is not found."""
    place, empty = tmp_path / "venv", tmp_path / "empty"
    empty.mkdir()
    venv.create(place, with_pip=False, symlinks=True)
    python = place / "bin" / "python"
    _run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, folder=empty)
    packages = Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=empty).strip())
    lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "lent.pth").write_text("\n".join(sorted(lent)) + "\n")

    where = "import dogbreed, dogbreed.config.compose as c; print(dogbreed.__file__); print(c.conf_dir())"
    package, conf = map(Path, _run(python, "-c", where, folder=empty).split())
    assert package == packages / "dogbreed" / "__init__.py"
    assert conf == packages / "dogbreed" / "conf"

    words = [word for word in runs.TINY if not word.startswith("trainer.max_epochs")]
    _run(place / "bin" / "dogbreed-train", "data=sample", *words, "--epochs", "1", "cache.dir=cache", folder=empty)
    (folder,) = (empty / "outputs").glob("*/*")
    assert runs.metrics(folder)["epochs"] == 1
    assert len(runs.predictions(folder)) == 48
    assert {path.name for path in empty.iterdir()} == {"outputs", "data", "cache"}
