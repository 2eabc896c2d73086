"""Python environments for tools that must not share ours: SageMaker's toolkits, with the torch that is here already.

An environment is a venv of its own. What is as big as torch is not installed a second time: it is linked from the
environment that runs this, in a folder of links that the venv looks into. pip sees what is linked as installed, may
install another version over it, and never removes it. Everything else of the present environment stays invisible, so
that a tool that installs a requirements.txt really has to. (uv sees no such links, and reads no pip configuration.)
"""

import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dogbreed.core.errors import DogbreedError
from dogbreed.core.extras import install

CHECKOUT = Path(__file__).resolve().parents[2]
READY = "ready"  # an empty file in every environment that is whole
LINKED = "linked.pth"
KEPT = 4  # environments of one name
FORMAT = 3  # of an environment: raise it when what is made here changes
PIP = "pip>=24.1"  # older ones take four seconds, not one, to see that a requirements.txt is installed
# The training toolkit and its wrapper for PyTorch, in the versions that the training images carry.
TOOLKIT = ("sagemaker-training>=5.1,<6", "sagemaker-pytorch-training==3.0.0")
REQUIREMENTS = "requirements.txt"
SUBMITTED = "sagemaker_submit_directory"
INSTALL = "import sys; from sagemaker_training import modules; modules.install_requirements(sys.argv[1])"


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
        """Return the path of a command that a package has brought."""
        return self.folder / "venv" / "bin" / name

    @property
    def site_packages(self) -> Path:
        (folder,) = (self.folder / "venv" / "lib").glob("python*/site-packages")
        return folder

    def version(self, package: str) -> str:
        """Return the version of a package that is installed here."""
        (folder,) = self.site_packages.glob(f"{package}-*.dist-info")
        return folder.name.removeprefix(f"{package}-").removesuffix(".dist-info")

    def variables(self) -> dict[str, str]:
        """Return this process's variables for one in the environment: its programs first, nothing of our Python."""
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
        """Install packages with pip.

        Raises:
            EnvironmentFailed: pip failed; the sentence holds its last words.
        """
        command: list[str | Path] = [self.python, "-m", "pip", "install", "--quiet", *arguments]
        _run(command, self.variables(), f"pip could not install {' '.join(arguments)}")


Step = Callable[[Environment], None]


def home() -> Path:
    """Return where environments lie: `.venvs/` of a checkout, else in the user's cache folder."""
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
    variant: str = "",
    step: Step | None = None,
    folder: Path | None = None,
) -> Iterator[Environment]:
    """Yield an environment with these packages, made if there is none yet; it stays for the next time.

    Any number of processes may ask at once: one makes it, the others wait, and none removes it while it is in use.

    Args:
        name: The folder below `home()`, for people: "toolkit".
        packages: As pip names them.
        linked: Packages of this environment, which come with all that they depend on.
        variant: Whatever else makes one environment differ from another, such as the text of a requirements.txt.
        step: Is called when the packages are installed.
        folder: Instead of `home()`.

    Raises:
        EnvironmentFailed: No network, pip failed, a package to link is missing; nothing half-made stays in use.
    """
    links = _links(linked)
    base = ((folder or home()) / name).absolute()
    ingredients = [FORMAT, str(base), sys.version, sys.base_prefix, sorted(packages), *map(str, links), variant]
    key = hashlib.sha256(json.dumps(ingredients).encode()).hexdigest()[:12]
    try:
        base.mkdir(parents=True, exist_ok=True)
        lock = (base / f"{key}.lock").open("a")
    except OSError as error:
        raise EnvironmentFailed(f"{base} cannot be written ({error.strerror}); it holds environments.") from error
    with lock:
        environment = Environment(base / key)
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not (environment.folder / READY).is_file():
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (environment.folder / READY).is_file():  # another process may have made it while this one waited
                print(f"Making the environment {name} in {base}; this is done once.", file=sys.stderr, flush=True)
                _make(environment, packages, links, step)
                _evict(base)
            fcntl.flock(lock, fcntl.LOCK_SH)
        os.utime(lock.name)
        yield environment


def _make(environment: Environment, packages: Sequence[str], links: Sequence[Path], step: Step | None) -> None:
    shutil.rmtree(environment.folder, ignore_errors=True)  # of somebody who was killed while making it
    try:
        _run([sys.executable, "-m", "venv", environment.folder / "venv"], dict(os.environ), "no venv could be made")
        linked = environment.folder / "linked"  # outside the venv: what lies within, pip would think its own to remove
        linked.mkdir()
        for path in links:
            (linked / path.name).symlink_to(path)
        (environment.site_packages / LINKED).write_text(f"{linked}\n")
        if packages:
            environment.install(PIP, *packages)
        if step:
            step(environment)
        (environment.folder / READY).touch()
    except BaseException:
        shutil.rmtree(environment.folder, ignore_errors=True)
        raise


def _links(names: Sequence[str]) -> list[Path]:
    """Return the top files and folders of packages of this environment and of all that they depend on."""
    from packaging.requirements import Requirement

    tops_of: dict[str, set[Path]] = {}
    seen: set[tuple[str, str]] = set()  # package and extra, "" for the package itself
    queue = [(name, "") for name in names]
    while queue:
        name, extra = queue.pop()
        name = re.sub(r"[-_.]+", "-", name).lower()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError as error:
            raise EnvironmentFailed(
                f"{name} is not installed here, and a rehearsal runs with the {' and '.join(names)} of this "
                f"environment; install dogbreed with its dependencies: {install('rehearse')}."
            ) from error
        tops = {file.parts[0] for file in package.files or () if file.parts[0] not in ("..", "__pycache__")}
        tops_of[name] = {Path(str(package.locate_file(top))) for top in tops if not top.endswith(".pth")}
        for requirement in map(Requirement, package.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                queue += [(requirement.name, extra) for extra in ("", *requirement.extras)]
    return sorted({path for paths in tops_of.values() for path in paths})


def _run(command: Sequence[str | Path], variables: dict[str, str], failed: str) -> None:
    done = subprocess.run(  # noqa: S603
        list(map(str, command)), env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        raise EnvironmentFailed(why(failed, done.stderr + done.stdout))


def why(failed: str, output: str) -> str:
    """Return a sentence for what pip, or a tool that calls it, has printed when it failed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = " ".join(line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: "))
    if re.search(r"NewConnectionError|Max retries|from versions: none", output):  # pip takes no answer for no versions
        return f"{failed}: no answer from the package index ({errors}). The network is needed once, later not."
    return f"{failed}: {errors or (lines[-1] if lines else 'it printed nothing')}"


def _evict(base: Path) -> None:
    """Remove the least recently used: each may take hundreds of MB."""
    locks = sorted(base.glob("*.lock"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in locks[KEPT:]:
        with suppress(OSError), file.open("a") as lock:  # BlockingIOError, if it is in use
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(base / file.stem, ignore_errors=True)


@contextmanager
def toolkit(requirements: str, folder: Path | None = None) -> Iterator[Environment]:
    """Yield the environment of SageMaker's training toolkit, which has itself installed a job's requirements.

    Args:
        requirements: The text of the job's requirements.txt.
        folder: As for `ready`.

    Raises:
        EnvironmentFailed: It could not be made; where the requirements are the cause, the job would fail as well.
    """

    def install(environment: Environment) -> None:
        if requirements.strip():
            print(f"The toolkit installs {REQUIREMENTS}; this is done once, too.", file=sys.stderr, flush=True)
            with TemporaryDirectory(prefix="dogbreed-rehearsal-") as code:
                (Path(code) / REQUIREMENTS).write_text(requirements)
                variables = {**environment.variables(), "SAGEMAKER_BASE_DIR": code, "PIP_QUIET": "1"}
                failed = f"The toolkit could not install {REQUIREMENTS}, and a job would fail with it"
                _run([environment.python, "-c", INSTALL, code], variables, failed)

    with ready("toolkit", TOOLKIT, variant=requirements, step=install, folder=folder) as environment:
        torchrun = environment.script("torchrun")  # of torch, which is linked, without its commands
        if not torchrun.exists():
            torchrun.write_text(f"#!{environment.python}\nfrom torch.distributed.run import main\n\nmain()\n")
            torchrun.chmod(0o755)
        yield environment


def requirements_of(request: Mapping[str, Any], sources: Mapping[str, Path | bytes]) -> str:
    """Return the text of requirements.txt in the code that a job names; empty where there is none.

    Args:
        request: Of CreateTrainingJob.
        sources: Content by address in S3.

    Raises:
        DogbreedError: The request names no code, or code that is not among the sources.
    """
    address = request["HyperParameters"].get(SUBMITTED, "").strip('"')  # some versions of the SDK write text as JSON
    if address.startswith("/"):  # it comes through a channel
        name = address.rpartition("/")[2]
        address = next((uri for uri in sources if uri.endswith(f"/{name}")), address)
    if address not in sources:
        raise DogbreedError(f"The request's {SUBMITTED} is {address or 'missing'}; the code of the job is unknown.")
    content = sources[address]
    with tarfile.open(fileobj=io.BytesIO(content if isinstance(content, bytes) else content.read_bytes())) as archive:
        file = archive.extractfile(REQUIREMENTS) if REQUIREMENTS in archive.getnames() else None
        return file.read().decode() if file else ""
