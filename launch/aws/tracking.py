"""MLflow in a job: SageMaker's managed tracking, whose address is an ARN, and what a training does there."""

import re
from collections.abc import Mapping
from typing import Any

from dogbreed.core.errors import DogbreedError

KEY = "loggers.mlflow.tracking_uri"
# The package that signs the calls (sagemaker-mlflow) knows these partitions and these resources alone.
ARN = re.compile(
    r"arn:aws(-us-gov)?:sagemaker:[a-z0-9-]+:\d{12}:mlflow-(tracking-server|app)/[a-zA-Z0-9](-*[a-zA-Z0-9])*", re.ASCII
)
# What Lightning's logger and the artefacts of a run ask for. An app also has an action for all of its interface.
ACTIONS = ("GetExperimentByName", "CreateExperiment", "CreateRun", "GetRun", "LogBatch", "UpdateRun")
OF_AN_APP = "sagemaker:CallMlflowAppApi"


def logs_to_mlflow(config: Mapping[str, Any]) -> bool:
    """Return whether a run logs to MLflow, wherever that is."""
    return "mlflow" in (config["loggers"] or {})


def tracking_uri(config: Mapping[str, Any]) -> str | None:
    """Return where a run logs to MLflow; None where it does not, or into its own folder."""
    address = ((config["loggers"] or {}).get("mlflow") or {}).get("tracking_uri")
    return str(address) if address else None


def managed(config: Mapping[str, Any]) -> str | None:
    """Return the ARN of SageMaker's MLflow that a run logs to; None where it logs elsewhere.

    Raises:
        DogbreedError: It has another form, or a job without network could not reach it.
    """
    address = tracking_uri(config)
    if address and config["sagemaker"]["isolate"]:
        raise DogbreedError(f"sagemaker.isolate=true leaves the job without network, so {KEY} would not be reached.")
    if address is None or not address.startswith("arn:"):
        return None
    if not ARN.fullmatch(address):
        raise DogbreedError(
            f"{KEY}={address} is no MLflow of SageMaker; it looks like "
            "arn:aws:sagemaker:us-east-1:123456789012:mlflow-tracking-server/NAME, or mlflow-app/app-ID."
        )
    return address


def actions(address: str) -> list[str]:
    """Return what the role of a job has to be allowed on an ARN."""
    return [f"sagemaker-mlflow:{action}" for action in ACTIONS] + [OF_AN_APP] * (":mlflow-app/" in address)
