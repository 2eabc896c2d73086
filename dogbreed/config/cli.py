"""What the commands that are configured through Hydra share: reading their arguments."""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from dogbreed.config.overrides import quote, split_argv
from dogbreed.core.cli import guard
from dogbreed.core.errors import DogbreedError
from dogbreed.core.version import __version__

# Gets the configuration; returns the exit code, or the value of the objective, which Hydra's sweepers minimize.
Task = Callable[[dict[str, Any]], int | float | None]


class _Failed(BaseException):
    """Carries the task's error past Hydra, which would print a line of its own about an Exception."""


def run(
    task: Task,
    *,
    prog: str,
    help: str,
    argv: Sequence[str] | None = None,
    at_end: Callable[[], None] = lambda: None,
) -> int:
    """Run a command that is configured through Hydra.

    Overrides (`model.lr=0.1`), flags (`--lr 0.1`) and Hydra's own flags (`--cfg job`, `--multirun`) are understood.

    Args:
        task: Gets the configuration as a plain dict, resolved and checked; returns the exit code, None for 0, or the
            objective as a number with a point.
        prog: How the command is called, for the help page.
        help: The page that `--help` prints.
        argv: The arguments; those of this process if None.
        at_end: Called behind the last run of a `--multirun`, also where an error has ended it.

    Returns:
        The exit code. With `--multirun`, the last that is not 0; the first error ends all runs.
    """
    return guard(lambda: _run(task, prog, help, sys.argv[1:] if argv is None else list(argv), at_end))


def _run(task: Task, prog: str, help: str, argv: list[str], at_end: Callable[[], None]) -> int:
    flags, overrides = split_argv(argv)
    if {"-h", "--help"} & set(flags):
        print(f"usage: {prog} [key=value ...] [--name value ...]\n\n{help.strip()}")
        return 0
    if "--version" in flags:
        print(f"dogbreed {__version__}")
        return 0
    return _run_composed(task, flags, overrides, at_end)


def _mode_as_flag(flags: list[str], overrides: list[str]) -> tuple[list[str], list[str]]:
    """Write `hydra.mode=MULTIRUN` as the flag that it is another name of."""
    modes = [word for word in overrides if word.lstrip("+").startswith("hydra.mode=")]
    for word in modes:
        if word.partition("=")[2].upper() not in ("RUN", "MULTIRUN", "NULL"):
            raise DogbreedError(f"{word} is unknown; it is one of RUN, MULTIRUN.")
    if modes and "MULTIRUN" in modes[-1].upper() and "--multirun" not in flags:
        flags = [*flags, "--multirun"]
    return flags, [word for word in overrides if word not in modes]


def _own_folder(folder: str | None, shared: bool, folders: set[str], number: int) -> str | None:
    """Return a folder for the run of this number in a sweep, and add it to those that are taken."""
    if folder and shared:  # each has a folder of its own, as in Hydra's sweeps
        folder = f"{folder}/{number}"
    elif folder in folders:  # of a sweep over more than the folder
        folder = f"{folder}-{number}"
    folders.add(folder or "")
    return folder


def _run_composed(task: Task, flags: list[str], overrides: list[str], at_end: Callable[[], None]) -> int:
    import hydra  # here, so that help pages and wrong flags need none of it
    from hydra.errors import HydraException
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from dogbreed.config import compose

    flags, overrides = _mode_as_flag(flags, overrides)
    multirun = bool({"-m", "--multirun"} & set(flags))
    note = compose.outweighed(overrides)
    overrides = compose.prepare(overrides, sweeps=multirun)
    if note and os.environ.get("LOCAL_RANK", "0") == "0":  # of several processes, one speaks
        print(note, flush=True)
    of_folder = [word for word in overrides if word.lstrip("+").startswith("output_dir=")]
    shared = multirun and not any("${" in word or compose.is_sweep(word) for word in of_folder)
    folders: set[str] = set()
    code = runs = 0
    failure: Exception | None = None

    def job(composed: DictConfig | None) -> float | None:
        nonlocal code, failure, runs
        try:
            if composed is None:
                config = compose.compose(overrides)
            else:
                config = compose.plain(composed)
                compose.check(config)
            config["output_dir"] = _own_folder(config["output_dir"], shared, folders, runs)
            runs += 1
            result = task(config)
            objective = result if isinstance(result, float) else None
            code = code if objective is not None else int(result or code)
            return objective
        except Exception as error:
            failure = error
            raise _Failed from None

    with ExitStack() as stack:
        if multirun:  # Hydra's sweeper cannot but write multirun.yaml
            overrides.append(f"hydra.sweep.dir={quote(stack.enter_context(TemporaryDirectory()))}")
        stack.enter_context(_hydra_reads([*flags, *overrides]))
        try:
            if flags or any(word.lstrip("+~").startswith("hydra") for word in overrides):
                folder, name = str(compose.conf_dir()), compose.CONFIG_NAME
                hydra.main(version_base=compose.VERSION_BASE, config_path=folder, config_name=name)(job)()
            else:  # the same, composed once; Hydra would do so twice, the first time to read its own mode
                job(None)
        except (HydraException, OmegaConfBaseException, YAMLError, ValueError, *compose.NO_FOLDER) as error:
            raise compose.explain(error) from error
        except _Failed:
            pass
    if multirun:
        at_end()
    if failure is not None:
        raise failure
    return code


@contextmanager
def _hydra_reads(arguments: list[str]) -> Iterator[None]:
    """Let Hydra read these arguments, and leave the process as it was.

    It reads sys.argv, raises its errors instead of printing them where HYDRA_FULL_ERROR is 1, and sets up logging for
    flags such as --info.
    """
    argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    loggers = [logging.getLogger(), logging.getLogger("hydra")]
    kept = [(logger, logger.handlers[:], logger.level) for logger in loggers]
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = [argv[0], *arguments], "1"
    try:
        yield
    finally:
        sys.argv = argv
        for logger, handlers, level in kept:
            logger.handlers[:] = handlers
            logger.setLevel(level)
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error
