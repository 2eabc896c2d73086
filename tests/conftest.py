"""What the tests of several packages share: folders of images, cache folders of their own, a disk that is full."""

import os
import signal
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings as hypothesis_settings
from PIL import Image
from support.browser import browser, chromium  # noqa: F401  (fixtures)
from support.ci import pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401  (hooks)
from support.debugger import smdebug_python  # noqa: F401
from support.places import SHARED_DATA

# Before torch is loaded: on a machine that does something else as well, its threads would spin for each other, and what
# takes half a second alone takes ten.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:  # a process a core: threads beyond it would only be in each other's way
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Processes that tests start would compile this package anew each time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# An example that takes long on a busy machine is no failure.
hypothesis_settings.register_profile("no-deadline", deadline=None)
hypothesis_settings.load_profile("no-deadline")

# Files that take a minute or more, the longest first; of several processes, none is left with one of them at the end.
LONG = (
    "test_training_rehearsal.py",
    "test_serving_rehearsal.py",
    "test_same_run.py",
    "test_docs.py",
    "test_resume.py",
    "test_deploy.py",
    "test_tune.py",
    "test_ddp.py",
    "test_certify.py",
    "test_timm_networks.py",
    "test_cache.py",
    "test_train.py",
    "test_smdebug_hook.py",
    "test_plan.py",
    "test_bad_use.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


# Class folders as in dogImages, and a colour that tells each apart.
BREEDS = {
    "001.Amber_hound": (200, 140, 40),
    "002.Blue_spitz": (50, 70, 190),
    "003.Green-eyed_setter": (60, 170, 70),
    "004.Red_terrier": (190, 50, 60),
}
COUNTS = {"train": 6, "valid": 3, "test": 3}


def _picture(colour: Sequence[int], rng: np.random.Generator) -> Image.Image:
    """A noisy picture of mainly one colour, darker on the left than on the right."""
    width, height = (int(side) for side in rng.integers(70, 110, size=2))
    shade = np.linspace(0.6, 1.0, width)[None, :, None]
    pixels = np.asarray(colour)[None, None] * shade + rng.normal(0, 25, size=(height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _write_tree(
    root: Path, breeds: Sequence[str] = tuple(BREEDS), counts: dict[str, int] | None = None, seed: int = 0
) -> Path:
    """Folders laid out as dogImages: `root/<split>/<number>.<breed>/<breed>_<number>.jpg`."""
    rng = np.random.default_rng(seed)
    for split, count in (counts or COUNTS).items():
        for breed in breeds:
            folder = root / split / breed
            folder.mkdir(parents=True)
            for number in range(count):
                file = folder / f"{breed.partition('.')[2]}_{number:05d}.jpg"
                _picture(BREEDS.get(breed, (128, 128, 128)), rng).save(file, quality=92)
    return root


# A suite that is run in the background is deaf to Ctrl-C, and so is every process that it starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def settings_of_the_process() -> Iterator[None]:
    """Commands switch denormal numbers off and servers choose their threads; the next test has them as they were."""
    threads = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
    if threads is not None and threads != sys.modules["torch"].get_num_threads():
        sys.modules["torch"].set_num_threads(threads)


@pytest.fixture(scope="session")
def write_tree() -> Callable[..., Path]:
    """`write_tree(root, breeds=..., counts={"train": 6, ...})` writes such folders; for tests that change them."""
    return _write_tree


@pytest.fixture(scope="session")
def dog_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 breeds x (6, 3, 3) JPEGs of 70 to 110 pixels a side; not to be changed."""
    return _write_tree(tmp_path_factory.mktemp("dogs") / "dogImages")


@pytest.fixture
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty cache folders for this test: the user's is neither read nor written."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setenv("TORCH_HOME", str(folder / "torch"))
    monkeypatch.delenv("DOGBREED_CACHE", raising=False)
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection of this process goes to a port where nobody listens."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setattr(urllib.request, "_opener", None)  # urlopen keeps the proxies of its first call


@pytest.fixture
def nobody() -> Callable[[], object]:
    """`with nobody():` root, as in a container, has no more rights than any other account."""

    @contextmanager
    def without_rights() -> Iterator[None]:
        if os.geteuid() != 0:
            yield
            return
        os.setresuid(65534, 65534, 0)
        try:
            yield
        finally:
            os.setresuid(0, 0, 0)

    return without_rights


@pytest.fixture
def largest_file() -> Callable[[int], object]:
    """`with largest_file(1000):` no file of this process may grow beyond 1,000 bytes, as on a disk that is full."""

    import resource  # there is none on Windows

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture(scope="session")
def dogs120() -> Path:
    """2,160 real photographs of 120 breeds, where they are at hand."""
    folder = SHARED_DATA / "dogs120"
    if not folder.is_dir():
        pytest.skip("the photographs of dogs120 are not at hand")
    return folder
