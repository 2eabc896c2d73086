"""The policy of `.ci/run`: a test that is skipped there fails, unless the reason is a listed one."""

import subprocess
import sys
from pathlib import Path

import pytest
from support import runs

UNLISTED = "import pytest\ndef test_it():\n    pytest.skip('no browser')\n"
LISTED = "import pytest\ndef test_it():\n    pytest.skip('the photographs of dogs120 are not at hand')\n"
MODULE = "import pytest\npytest.importorskip('no_such_module')\ndef test_it():\n    pass\n"
MARKED = "import pytest\n@pytest.mark.skipif(True, reason='not today')\ndef test_it():\n    pass\n"
XFAIL = "import pytest\n@pytest.mark.xfail(strict=True)\ndef test_it():\n    assert False\n"


@pytest.mark.parametrize(
    ("program", "ci", "code"),
    [
        (UNLISTED, "true", 1),
        (UNLISTED, "", 0),
        (LISTED, "true", 0),
        (MARKED, "true", 1),
        (XFAIL, "true", 0),
        (MODULE, "true", 2),  # pytest: errors while collecting
    ],
    ids=["unlisted", "elsewhere", "listed", "marked", "xfail", "module"],
)
@pytest.mark.slow
def test_skips(program: str, ci: str, code: int, tmp_path: Path) -> None:
    file = tmp_path / "test_it.py"
    file.write_text(program)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "support.ci", "-p", "no:cacheprovider", str(file)]
    environment = runs.environment(CI=ci) | {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout
    assert ("is not listed" in done.stdout) == (code > 0)
