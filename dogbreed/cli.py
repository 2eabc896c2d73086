"""What every command shares: reading its arguments, and turning errors into one sentence and an exit code.

Exit codes: 0 done, 1 a fault of this program (with its traceback), 2 something a person can put right, 130 stopped.
"""

import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from tempfile import TemporaryDirectory
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dogbreed import __version__
from dogbreed.config import CONFIG_NAME, VERSION_BASE, check, conf_dir, explain, plain, prepare
from dogbreed.errors import DogbreedError, Interrupted
from dogbreed.hyperparameters import quote, split

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EROFS)
# Packages of extras, by the name that is imported.
_EXTRAS = {
    **dict.fromkeys(("boto3", "botocore", "sagemaker"), "sagemaker"),
    **dict.fromkeys(("anyio", "h11", "prometheus_client", "starlette", "uvicorn"), "serve"),
}


class _Failed(BaseException):
    """Carries the task's error past Hydra, which would print a line of its own about an Exception."""


def run(
    task: Callable[[dict[str, Any]], int | None], *, prog: str, help: str, argv: Sequence[str] | None = None
) -> int:
    """Runs a command that is configured through Hydra.

    Overrides (`model.lr=0.1`), flags (`--lr 0.1`) and Hydra's own flags (`--cfg job`, `--multirun`) are understood.

    Args:
        task: Gets the configuration as a plain dict, resolved and checked; returns the exit code, None for 0.
        prog: How the command is called, for the help page.
        help: The page that `--help` prints.
        argv: The arguments; those of this process if None.

    Returns:
        The exit code. With `--multirun`, the last that is not 0; the first error ends all runs.
    """
    return guard(lambda: _run(task, prog, help, sys.argv[1:] if argv is None else list(argv)))


def guard(task: Callable[[], int | None]) -> int:
    """Runs a task and turns what it raises into a sentence on standard error and an exit code."""
    try:
        code = task() or 0
        sys.stdout.flush()  # a closed pipe shows here, not in the interpreter's last breath
    except KeyboardInterrupt:
        return _say("stopped", Interrupted.exit_code)
    except Exception as error:
        return _report(error)
    return code


def _run(task: Callable[[dict[str, Any]], int | None], prog: str, help: str, argv: list[str]) -> int:
    flags, overrides = split(argv)
    if {"-h", "--help"} & set(flags):
        print(f"usage: {prog} [key=value ...] [--name value ...]\n\n{help.strip()}")
        return 0
    if "--version" in flags:
        print(f"dogbreed {__version__}")
        return 0
    overrides = prepare(overrides)
    multirun = bool({"-m", "--multirun"} & set(flags))
    given = [word.partition("=")[2] for word in overrides if word.startswith("output_dir=")]
    shared = multirun and given and not any("," in word or "${" in word for word in given)
    code = runs = 0
    failure: Exception | None = None

    def job(composed: DictConfig) -> None:
        nonlocal code, failure, runs
        try:
            config = plain(composed)
            check(config)
            if shared and config["output_dir"]:  # each has a folder of its own, as in Hydra's sweeps
                config["output_dir"] = f"{config['output_dir']}/{runs}"
            runs += 1
            code = task(config) or code
        except Exception as error:
            failure = error
            raise _Failed from None

    with ExitStack() as stack:
        if multirun:  # Hydra's sweeper cannot but write multirun.yaml
            overrides.append(f"hydra.sweep.dir={quote(stack.enter_context(TemporaryDirectory()))}")
        stack.enter_context(_hydra_reads([*flags, *overrides]))
        try:
            hydra.main(version_base=VERSION_BASE, config_path=str(conf_dir()), config_name=CONFIG_NAME)(job)()
        except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
            raise explain(error) from error
        except _Failed:
            pass
    if failure is not None:
        raise failure
    return code


@contextmanager
def _hydra_reads(arguments: list[str]) -> Iterator[None]:
    """Hydra reads sys.argv, raises its errors instead of printing them where HYDRA_FULL_ERROR is 1, and sets up logging
    for flags such as --info; the process is left as it was."""
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


def _report(error: Exception) -> int:
    if isinstance(error, Interrupted):
        return _say(str(error), error.exit_code)
    if isinstance(error, DogbreedError):
        return _say(f"error: {error}", error.exit_code)
    if isinstance(error, BrokenPipeError):
        # Whoever read the output has enough of it. The interpreter flushes once more at exit: let that succeed.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # as a shell reports a program that ended by SIGPIPE
    if isinstance(error, ModuleNotFoundError) and (extra := _EXTRAS.get(str(error.name).partition(".")[0])):
        return _say(f"error: This needs {error.name}, which is not installed: pip install 'dogbreed[{extra}]'", 2)
    if cause := _os_error(error, _DISK_FULL):
        where = f" while writing {cause.filename}" if cause.filename else ""
        return _say(f"error: The disk is full{where}; free some space, or choose a folder on another disk", 2)
    if cause := _os_error(error, _FORBIDDEN):
        return _say(f"error: No permission to use {cause.filename or 'a file'} ({cause.strerror})", 2)
    traceback.print_exception(error)
    return 1


def _os_error(error: BaseException | None, numbers: tuple[int, ...]) -> OSError | None:
    """The error of the operating system that is behind an error, if it is one of these."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in numbers:
            return error
        error = error.__cause__ or error.__context__
    return None


def _say(sentence: str, code: int) -> int:
    with suppress(OSError):
        print(sentence, file=sys.stderr, flush=True)
    return code
