"""Imports run downwards, package by package, and what needs no torch does not load it; read from the tree itself."""

import ast
import tomllib
from collections.abc import Iterable
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from support.places import ROOT

# What a package may import, besides itself. A package that is not named here fails, and so does one that is gone.
MAY_IMPORT = {
    "dogbreed.core": "",
    "dogbreed.config": "core",
    "dogbreed.metrics": "",
    "dogbreed.data": "core",
    "dogbreed.models": "core data metrics",
    "dogbreed.cache": "core config data models",
    "dogbreed.monitor": "core data models",
    "dogbreed.inference": "core data metrics models",
    "dogbreed.report": "core config data metrics models monitor inference",
    "dogbreed.training": "core config data metrics models cache monitor report inference",
    "dogbreed.search": "core config data metrics models cache report training",
    "dogbreed.serving": "core data models inference training",
    "launch.aws": "",
    "launch.jobs": "aws",
    "launch.serving": "aws jobs",
    "launch.rehearsal": "aws jobs serving",
}
USES_HYDRA = {"dogbreed.config"}
# The endpoint's container has neither; configuration and rules are read where nothing is trained.
WITHOUT = {
    "dogbreed.core": {"torch", "lightning", "hydra"},
    "dogbreed.config": {"torch", "lightning"},
    "dogbreed.inference": {"lightning", "hydra", "matplotlib"},
    "launch": {"torch", "torchvision", "lightning", "torchmetrics"},
}


def module_name(file: Path) -> str:
    """`dogbreed/core/files.py` is `dogbreed.core.files`."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for top in ("dogbreed", "launch") for file in sorted((ROOT / top).rglob("*.py"))}
PACKAGES = {name for name, file in MODULES.items() if file.name == "__init__.py" and name.count(".") == 1}
PACKAGED = sorted(name for name in MODULES if name.count(".") > 1)


def package_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def named(nodes: Iterable[ast.AST]) -> set[str]:
    """Every module that the statements import; `from package import module` names the module."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "an import is absolute"
            base = node.module or ""
            names |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names}
    return names


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@cache
def imports(module: str) -> set[str]:
    """Every module that one names in an import, anywhere in it."""
    return named(ast.walk(tree(module)))


def ours(module: str) -> set[str]:
    return {name for name in imports(module) if name.split(".")[0] in ("dogbreed", "launch")}


def test_every_package_has_its_layer():
    assert {package_of(name) for name in PACKAGED} | PACKAGES == set(MAY_IMPORT), (
        "a new package says what it may import"
    )
    filled = {name for name in PACKAGES if MODULES[name].read_text(encoding="utf-8").strip()}
    assert not filled, "the __init__ of a package stays empty: it would load its modules for whoever needs one"


@pytest.mark.parametrize("module", PACKAGED)
@pytest.mark.slow
def test_imports_run_downwards(module):
    top, own = module.split(".")[0], package_of(module)
    allowed = {own, *(f"{top}.{name}" for name in MAY_IMPORT[own].split())}
    if top == "launch":
        allowed |= {name for name in MAY_IMPORT if name.startswith("dogbreed.")}
    above = {name for name in ours(module) if package_of(name) not in allowed}
    assert not above, f"{own} may import {MAY_IMPORT[own] or 'nothing above it'}"


@pytest.mark.slow
def test_no_module_needs_itself():
    graph = {name: ours(name) for name in MODULES}
    assert graph["dogbreed.training.run"] > {"dogbreed.core.errors"}, "the reader of imports sees something"
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_a_module_outside_the_packages_is_a_command_and_imported_by_nobody():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    commands = {entry.removesuffix(":main") for entry in scripts.values() if entry.count(".") == 1}
    outside = {name for name in MODULES if name.startswith("dogbreed.") and name.count(".") == 1} - PACKAGES
    assert outside - {"dogbreed.__main__"} == commands, "everything else belongs in a package"
    assert {name: ours(name) & commands for name in MODULES if ours(name) & commands} == {}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_hydra_stays_with_the_configuration(module):
    if package_of(module) not in USES_HYDRA:
        assert not {name.split(".")[0] for name in imports(module)} & {"hydra", "omegaconf"}


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("dogbreed")])
def test_the_library_does_not_know_its_users(module):
    users = {"launch", "sagemaker", "boto3", "tests", "benchmarks"}
    assert not {name.split(".")[0] for name in imports(module)} & users


@pytest.mark.parametrize("package", sorted(WITHOUT))
def test_what_a_package_does_without(package):
    """Also through what it imports of ours when it is loaded; an import inside a function is made when it is called."""

    def loaded(module: str, seen: set[str]) -> set[str]:
        if module in seen or module not in MODULES:
            return {module.split(".")[0]}
        seen.add(module)
        return set().union(*(loaded(name, seen) for name in named(tree(module).body)))

    for module in MODULES:
        if module.startswith(f"{package}.") and module != "dogbreed.core.threads":  # torch's threads
            assert not loaded(module, set()) & WITHOUT[package], module
