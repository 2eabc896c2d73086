"""Show `dogbreed.train`, `tune` and `evaluate` in the reference, which the commands of the same names would hide."""

from pathlib import Path
from typing import Any

import griffe

NAMES = ("train", "tune", "evaluate")


class PublicFunctions(griffe.Extension):
    """Put the functions in front of the modules."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        if pkg.name == "dogbreed":
            file = Path(str(pkg.filepath))
            own = griffe.visit("dogbreed", filepath=file, code=file.read_text(), docstring_parser=griffe.Parser.google)
            for name in NAMES:
                pkg.set_member(name, own.members[name])
