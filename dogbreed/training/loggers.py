"""Loggers by their short names; what a run leaves there besides its metrics: the report and the model."""

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch import loggers as lightning_loggers
from lightning.pytorch.loggers import Logger, MLFlowLogger, WandbLogger

from dogbreed.core.errors import DogbreedError
from dogbreed.core.extras import install

LOGGERS = {
    "csv": "CSVLogger",
    "tensorboard": "TensorBoardLogger",
    "wandb": "WandbLogger",
    "mlflow": "MLFlowLogger",
    "comet": "CometLogger",
    "neptune": "NeptuneLogger",
}
# A silent tracking server would be waited for a quarter of an hour. In seconds; attempts after the first.
_MLFLOW = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_ALLOW_FILE_STORE": "true",  # otherwise MLflow 3 refuses to log into a folder
}


def build_loggers(loggers: Mapping[str, Any] | None, folder: Path) -> list[Any]:
    """Return Lightning's loggers by their short names, writing into the run's folder.

    Raises:
        DogbreedError: One is unknown, not installed, or does not take its arguments.
    """
    built = []
    for name, limit in _MLFLOW.items():
        os.environ.setdefault(name, limit)
    for name, arguments in (loggers or {}).items():
        if name not in LOGGERS:
            raise DogbreedError(f"loggers.{name} is unknown; known are {', '.join(LOGGERS)}.")
        if not isinstance(arguments, Mapping | None):
            raise DogbreedError(f"loggers.{name} takes keyword arguments, such as {{}}, not {arguments!r}.")
        keywords = {str(key): value for key, value in (arguments or {}).items()}
        if name in ("csv", "tensorboard"):
            keywords = {"save_dir": folder, "name": name, "version": "", **keywords}
        elif name == "mlflow":  # which takes every folder beside its own for an experiment
            keywords = {"save_dir": folder / "mlruns", **keywords}
        elif name != "comet":
            keywords = {"save_dir": folder, **keywords}
        if str(keywords.get("tracking_uri")).startswith("arn:") and not find_spec("sagemaker_mlflow"):
            raise DogbreedError(f"loggers.{name} to SageMaker needs sagemaker-mlflow: {install('sagemaker-mlflow')}.")
        if not hasattr(lightning_loggers, LOGGERS[name]):
            raise DogbreedError(f"loggers.{name}: the Lightning that is installed has no {LOGGERS[name]}.")
        try:
            logger = getattr(lightning_loggers, LOGGERS[name])(**keywords)
            if name == "wandb":  # a run that was open before, such as that of a sweep's agent, is another's to end
                logger.own_run = getattr(sys.modules.get("wandb"), "run", None) is None
            built.append(logger)
        except ModuleNotFoundError as error:
            raise DogbreedError(f"loggers.{name} needs a package that is not installed: {error}.") from error
        except TypeError as error:
            raise DogbreedError(f"loggers.{name} does not take these arguments: {error}.") from error
        except Exception as error:  # what a service's own package refuses, such as a missing key
            raise DogbreedError(f"loggers.{name} cannot start: {' '.join(str(error).split())}") from error
    return built


def logger_of(error: Exception) -> str | None:
    """Return the logger that an error comes from; a service's library raises what its own libraries raise, too."""
    modules = [type(error).__module__.removesuffix("_ml")]  # comet_ml
    if not isinstance(error, OSError):  # a full disk has its own sentence
        frames = [frame.f_globals.get("__name__") or "" for frame, _ in traceback.walk_tb(error.__traceback__)]
        modules += [frame.removeprefix("lightning.pytorch.loggers.") for frame in frames]
    names = [module.partition(".")[0] for module in modules]
    return next((name for name in names if name in LOGGERS and name != "csv"), None)  # csv is Python's, too


def log_artifacts(loggers: Sequence[Logger], folder: Path, settings: Mapping[str, Any]) -> list[str]:
    """Give the report and the model to the services that keep files.

    Args:
        loggers: Of the run's Trainer.
        folder: Of the run; it stays as it is.
        settings: The group `loggers`; `log_model: false` keeps the model out of a service.

    Returns:
        A sentence per service that did not take them: the run is finished by then, and no service may spoil that.
    """
    unkept = []
    for logger in loggers:
        try:
            if isinstance(logger, MLFlowLogger):
                _log_to_mlflow(logger, folder, _takes_model(settings, "mlflow"))
            elif isinstance(logger, WandbLogger):
                _log_to_wandb(logger, folder, _takes_model(settings, "wandb"))
        except Exception as error:  # of a service's own package
            reason = " ".join(str(error).split())[:300]
            unkept.append(f"{type(logger).__name__} did not take the report and the model: {reason}.")
    return unkept


def _takes_model(settings: Mapping[str, Any], name: str) -> bool:
    return (settings.get(name) or {}).get("log_model", True) is not False


def _log_to_mlflow(logger: MLFlowLogger, folder: Path, with_model: bool) -> None:
    logger.experiment.log_artifact(logger.run_id, str(folder / "report.html"))
    if with_model:
        logger.experiment.log_artifacts(logger.run_id, str(folder / "model"), "model")


def _log_to_wandb(logger: Any, folder: Path, with_model: bool) -> None:
    run = logger.experiment
    run.log_artifact(str(folder / "report.html"), name=f"report-{run.id}", type="report")
    if with_model:
        run.log_artifact(str(folder / "model"), name=f"model-{run.id}", type="model")
    if logger.own_run:  # else the next training of this process would be written into it
        run.finish()
