"""The environment of SageMaker's training toolkit, with the job's requirements installed by the toolkit itself."""

import io
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from dogbreed.core.errors import DogbreedError
from launch.rehearsal.environment import Environment, EnvironmentFailed, ready, why
from launch.rehearsal.opt_ml import Request

# The line that the training images carry.
TOOLKIT = "sagemaker-training>=5.1,<6"
REQUIREMENTS = "requirements.txt"
SUBMITTED = "sagemaker_submit_directory"
INSTALL = "import sys; from sagemaker_training import modules; modules.install_requirements(sys.argv[1])"


@contextmanager
def toolkit(requirements: str, folder: Path | None = None) -> Iterator[Environment]:
    """The environment, made if there is none for these requirements.

    Args:
        requirements: The text of the job's requirements.txt.
        folder: As for `environments.ready`.

    Raises:
        EnvironmentFailed: It could not be made; where the requirements are the cause, the job would fail as well.
    """

    def install(environment: Environment) -> None:
        if requirements.strip():
            print(f"The toolkit installs {REQUIREMENTS}; this is done once, too.", file=sys.stderr, flush=True)
            _install_requirements(environment, requirements)

    with ready("toolkit", [TOOLKIT], also=requirements, step=install, folder=folder) as environment:
        yield environment


def _install_requirements(environment: Environment, requirements: str) -> None:
    """Has the toolkit install them, as it does when a job starts; jobs then find them there."""
    with TemporaryDirectory(prefix="dogbreed-rehearsal-") as folder:
        (Path(folder) / REQUIREMENTS).write_text(requirements)
        done = subprocess.run(  # noqa: S603
            [str(environment.python), "-c", INSTALL, folder],
            env={**environment.variables(), "SAGEMAKER_BASE_DIR": folder, "PIP_QUIET": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        failed = f"The toolkit could not install {REQUIREMENTS}, and a job would fail with it"
        raise EnvironmentFailed(why(failed, done.stderr + done.stdout))


def requirements_of(request: Request, sources: Mapping[str, Path | bytes]) -> str:
    """The text of requirements.txt in the code that a job names; empty where there is none.

    Args:
        request: Of CreateTrainingJob.
        sources: Content by address in S3.

    Raises:
        DogbreedError: The request names no code, or code that is not among the sources.
    """
    address = request["HyperParameters"].get(SUBMITTED, "").strip('"')  # some versions of the SDK write text as JSON
    if address.startswith("/"):  # it comes through a channel
        named = [uri for uri in sources if uri.endswith(f"/{address.rpartition('/')[2]}")]
        address = named[0] if named else address
    if address not in sources:
        raise DogbreedError(f"The request's {SUBMITTED} is {address or 'missing'}; the code of the job is unknown.")
    content = sources[address]
    with tarfile.open(fileobj=io.BytesIO(content if isinstance(content, bytes) else content.read_bytes())) as archive:
        try:
            file = archive.extractfile(REQUIREMENTS)
        except KeyError:
            return ""
        return file.read().decode() if file else ""


def version(environment: Environment) -> str:
    """The version of the toolkit that is installed."""
    (found,) = environment.site_packages.glob("sagemaker_training-*.dist-info")
    return found.name.removeprefix("sagemaker_training-").removesuffix(".dist-info")
