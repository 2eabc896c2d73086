"""How an optional part is installed from where the person is."""

import shlex
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def install(extra: str) -> str:
    """Return the command that installs an extra.

    In a checkout it installs the checkout: a package of this name on an index is another one until ours is published.
    """
    if (_ROOT / "pyproject.toml").is_file():
        checkout = "." if Path.cwd() == _ROOT else str(_ROOT)
        return f"pip install -e {shlex.quote(f'{checkout}[{extra}]')}"
    return f"pip install 'dogbreed[{extra}]'"
