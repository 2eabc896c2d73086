"""Python environments for tools that must not share ours: SageMaker's toolkits, with the torch that is here already.

An environment is a venv of its own. What is as big as torch is not installed a second time: it is linked from the
environment that asks, in a folder of links that the venv looks into. pip sees what is linked as installed, may install
another version over it, and never removes it. Everything else of the asking environment stays invisible, so that a tool
that installs a requirements.txt really has to.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from dogbreed.core.errors import DogbreedError

CHECKOUT = Path(__file__).resolve().parents[2]
READY = "ready"  # an empty file in every environment that is whole
LINKED = "linked.pth"
KEPT = 4  # environments of one name
# Written into what an environment is known by: raise it when what is made here changes.
FORMAT = 1


class EnvironmentFailed(DogbreedError):
    """The environment could not be made."""


@dataclass(frozen=True)
class Environment:
    """An environment that is ready to use.

    Attributes:
        folder: Holds `venv/` and `linked/`.
    """

    folder: Path

    @property
    def python(self) -> Path:
        return self.script("python")

    def script(self, name: str) -> Path:
        """A command that a package of the environment has brought."""
        return self.folder / "venv" / "bin" / name

    @property
    def site_packages(self) -> Path:
        (found,) = (self.folder / "venv" / "lib").glob("python*/site-packages")
        return found

    def variables(self) -> dict[str, str]:
        """The variables of this process, for one in the environment: its programs first, nothing of our Python."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        return {
            **ours,
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "VIRTUAL_ENV": str(self.folder / "venv"),
            "PYTHONNOUSERSITE": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_INPUT": "1",
            "PIP_NO_COMPILE": "1",  # of the hundreds of modules, those that are used are compiled when they are
            "PIP_REQUIRE_VIRTUALENV": "1",
        }

    def install(self, *arguments: str) -> None:
        """`pip install` into the environment.

        Raises:
            EnvironmentFailed: pip failed; the sentence holds its last words.
        """
        command: list[str | Path] = [self.python, "-m", "pip", "install", "--quiet", *arguments]
        _run(command, self.variables(), f"pip could not install {' '.join(arguments)}")


Step = Callable[[Environment], None]


def home() -> Path:
    """Where environments lie: `.venvs/` of a checkout, else in the user's cache folder."""
    if (CHECKOUT / "pyproject.toml").is_file() and os.access(CHECKOUT, os.W_OK):
        return CHECKOUT / ".venvs"
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "dogbreed" / "venvs"


@contextmanager
def ready(
    name: str,
    packages: Sequence[str],
    *,
    linked: Sequence[str] = ("torch", "torchvision"),
    also: str = "",
    step: Step | None = None,
    folder: Path | None = None,
) -> Iterator[Environment]:
    """An environment with these packages, made if there is none yet; stays for the next time.

    Any number of processes may ask at once: one makes it, the others wait, and none removes it while it is in use.

    Args:
        name: The folder below `home()`, for people: "toolkit".
        packages: As pip names them.
        linked: Packages of this environment, which come with all that they depend on.
        also: Whatever else makes one environment differ from another, such as the text of a requirements.txt.
        step: What remains to be done when the packages are installed.
        folder: Instead of `home()`.

    Raises:
        EnvironmentFailed: No network, pip failed, a package to link is missing; nothing half-made stays in use.
    """
    links = _links(linked)
    base = ((folder or home()) / name).absolute()
    known_by = [FORMAT, str(base), sys.version, sys.base_prefix, sorted(packages), *map(str, links)]

    def make(new: Environment) -> None:
        print(f"Making the environment {name} in {base}; this is done once.", file=sys.stderr, flush=True)
        _make(new, packages, links)

    def make_more(new: Environment) -> None:
        assert step is not None
        with _kept(base, _key(known_by), make) as plain:
            _copy(plain, new)
        step(new)

    known_by_more = [*known_by, also, step is not None]
    with _kept(base, _key(known_by_more), make_more) if step else _kept(base, _key(known_by), make) as environment:
        yield environment


def _key(known_by: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(known_by).encode()).hexdigest()[:12]


@contextmanager
def _kept(base: Path, key: str, make: Step) -> Iterator[Environment]:
    """The environment of this key, made whole by one process; while it is in use, its lock is held."""
    try:
        base.mkdir(parents=True, exist_ok=True)
        lock = (base / f"{key}.lock").open("a")
    except OSError as error:
        raise EnvironmentFailed(f"{base} cannot be written ({error.strerror}); it holds environments.") from error
    with lock:
        found = Environment(base / key)
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not (found.folder / READY).is_file():
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (found.folder / READY).is_file():  # another process may have made it while this one waited
                shutil.rmtree(found.folder, ignore_errors=True)  # of somebody who was killed while making it
                try:
                    make(found)
                    (found.folder / READY).touch()
                except BaseException:
                    shutil.rmtree(found.folder, ignore_errors=True)
                    raise
                _forget_old_ones(base)
            fcntl.flock(lock, fcntl.LOCK_SH)
        os.utime(lock.name)
        yield found


def _make(new: Environment, packages: Sequence[str], links: Sequence[Path]) -> None:
    _run([sys.executable, "-m", "venv", new.folder / "venv"], dict(os.environ), "no venv could be made")
    linked = new.folder / "linked"  # outside the venv's own folder: what lies within, pip would think its own to remove
    linked.mkdir()
    for path in links:
        (linked / path.name).symlink_to(path)
    (new.site_packages / LINKED).write_text(f"{linked}\n")
    if packages:
        new.install(*packages)


def _copy(old: Environment, new: Environment) -> None:
    """Takes no room for what stays the same. pip replaces files, it does not write into them."""
    ignored = shutil.ignore_patterns(READY, "__pycache__")
    shutil.copytree(old.folder, new.folder, symlinks=True, copy_function=_link_or_copy, ignore=ignored)
    scripts = [file for file in (new.folder / "venv" / "bin").iterdir() if file.is_file() and not file.is_symlink()]
    for file in [*scripts, new.site_packages / LINKED]:
        content, mode = file.read_bytes(), file.stat().st_mode
        file.unlink()
        file.write_bytes(content.replace(bytes(old.folder), bytes(new.folder)))
        file.chmod(mode)


def _link_or_copy(old: str, new: str) -> None:
    try:
        os.link(old, new)
    except OSError:  # not every file system has such links
        shutil.copy2(old, new)


def _links(names: Sequence[str]) -> list[Path]:
    """Files and folders that packages of this environment, and all that they depend on, have at the top."""
    from packaging.requirements import Requirement

    found: dict[str, set[Path]] = {}
    seen: set[tuple[str, str]] = set()  # package and extra, "" for the package itself
    wanted = [(name, "") for name in names]
    while wanted:
        name, extra = wanted.pop()
        name = re.sub(r"[-_.]+", "-", name).lower()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError as error:
            raise EnvironmentFailed(
                f"{name} is not installed here, and a rehearsal runs with the {' and '.join(names)} of this "
                "environment; install dogbreed with its dependencies: pip install 'dogbreed[rehearse]'."
            ) from error
        tops = {file.parts[0] for file in package.files or () if file.parts[0] not in ("..", "__pycache__")}
        found[name] = {Path(str(package.locate_file(top))) for top in tops if not top.endswith(".pth")}
        for requirement in map(Requirement, package.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                wanted += [(requirement.name, extra) for extra in ("", *requirement.extras)]
    return sorted({path for paths in found.values() for path in paths})


def _run(command: Sequence[str | Path], variables: dict[str, str], failed: str) -> None:
    done = subprocess.run(  # noqa: S603
        list(map(str, command)), env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        raise EnvironmentFailed(why(failed, done.stderr or done.stdout))


def why(failed: str, said: str) -> str:
    """A sentence for what pip, or a tool that calls it, has said when it failed."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = " ".join(line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: "))
    if re.search(r"NewConnectionError|Max retries|from versions: none", said):  # pip takes no answer for no versions
        return f"{failed}: no answer from the package index ({errors}). The network is needed once, later not."
    return f"{failed}: {errors or (lines[-1] if lines else 'it said nothing')}"


def _forget_old_ones(base: Path) -> None:
    """Removes those that were not used for the longest time: each may take hundreds of MB."""
    locks = sorted(base.glob("*.lock"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in locks[KEPT:]:
        with suppress(OSError), file.open("a") as lock:  # BlockingIOError, if it is in use
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(base / file.stem, ignore_errors=True)
