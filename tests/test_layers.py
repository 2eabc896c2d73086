"""Imports run downwards, package by package, and what needs no torch does not load it; read from the tree itself."""

import ast
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
    "dogbreed.models": "core data",
    "dogbreed.cache": "core config data models",
    "dogbreed.monitor": "core data models",
    "dogbreed.inference": "core data metrics models",
    "dogbreed.report": "core config data metrics models monitor inference",
    "dogbreed.training": "core config data metrics models cache monitor report inference",
    "dogbreed.search": "core config data metrics models cache training",
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
PACKAGED = sorted(name for name in MODULES if name.count(".") > 1)


def package_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def imports(module: str) -> set[str]:
    """Every module that one names in an import, anywhere in it; `from package import module` names the module."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            base = node.module or ""
            names |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names}
    return names


def ours(module: str) -> set[str]:
    return {name for name in imports(module) if name.split(".")[0] in ("dogbreed", "launch")}


def test_every_package_has_its_layer():
    packages = {package_of(name) for name in PACKAGED}
    assert packages == set(MAY_IMPORT), "a new package says here what it may import"
    empty = {name: MODULES[name].read_text() for name in packages if MODULES[name].read_text().strip()}
    assert not empty, "the __init__ of a package stays empty: it would load its modules for whoever needs one"


@pytest.mark.parametrize("module", PACKAGED)
def test_imports_run_downwards(module):
    top, own = module.split(".")[0], package_of(module)
    allowed = {own, *(f"{top}.{name}" for name in MAY_IMPORT[own].split())}
    if top == "launch":
        allowed |= {name for name in MAY_IMPORT if name.startswith("dogbreed.")}
    above = {name for name in ours(module) if package_of(name) not in allowed}
    assert not above, f"{own} may import {MAY_IMPORT[own] or 'nothing above it'}"


def test_no_module_needs_itself():
    graph = {name: ours(name) for name in MODULES}
    assert graph["dogbreed.training.run"] > {"dogbreed.core.errors"}, "the reader of imports sees something"
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_commands_are_imported_by_nobody():
    commands = {name for name in MODULES if name.startswith("dogbreed.") and name.count(".") == 1} - {
        package_of(name) for name in PACKAGED
    }
    assert {"dogbreed.train", "dogbreed.predict"} <= commands
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
        tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
        names: set[str] = set()
        for node in tree.body:
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                names |= {f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base for a in node.names}
        return set().union(*(loaded(name, seen) for name in names)) if names else set()

    for module in MODULES:
        if module.startswith(f"{package}.") and module != "dogbreed.core.threads":  # torch's threads
            assert not loaded(module, set()) & WITHOUT[package], module
