"""SageMaker Debugger and Profiler as published, for accounts that still have them: off unless asked for.

Amazon closed Debugger to new accounts on 2026-07-30, and ends Profiler on 2027-06-30. The values are those that the
SDK's builders give (`sagemaker.core.debugger`), written out so that a plan needs no SDK; a test compares the two.
"""

from collections.abc import Mapping
from typing import Any

NOTICE = {
    "debugger": "SageMaker Debugger has been closed to new accounts since 2026-07-30; there the request is refused, or "
    "its rules do not run. The same rules run locally in every run",
    "profiler": "SageMaker Profiler ends on 2027-06-30, and framework profiling collects nothing with PyTorch 2. The "
    "same rules run locally in every run",
}

# Rules by name, with the collections of tensors that each reads.
RULES: dict[str, list[dict[str, Any]]] = {
    "LossNotDecreasing": [{"CollectionName": "losses", "CollectionParameters": {"save_interval": "500"}}],
    "Overfit": [],
    "Overtraining": [],
    "PoorWeightInitialization": [
        {
            "CollectionName": "relu_input",
            "CollectionParameters": {"include_regex": ".*relu_input", "save_interval": "500"},
        }
    ],
}
HOOK = {"train.save_interval": "100", "eval.save_interval": "10"}
LOSS = {
    "CollectionName": "CrossEntropyLoss_output_0",
    "CollectionParameters": {
        "include_regex": "CrossEntropyLoss_output_0",
        "train.save_interval": "10",
        "eval.save_interval": "1",
    },
}
PROFILER_RULES: dict[str, dict[str, str]] = {
    "LowGPUUtilization": {
        "threshold_p95": "70",
        "threshold_p5": "10",
        "window": "500",
        "patience": "1000",
        "scan_interval_us": "60000000",
    },
    "ProfilerReport": {},
}
SYSTEM_MONITOR_MILLISECONDS = 500  # DisableProfiler stays out: it is false by default
# FrameworkProfile(num_steps=10). The commas before the brackets are the SDK's own, and what the service reads.
FRAMEWORK_PROFILE = {
    "LocalPath": "/opt/ml/output/profiler",
    "RotateMaxFileSizeInBytes": "10485760",
    "RotateFileCloseIntervalInSeconds": "60",
    "FileOpenFailThreshold": "50",
    "DetailedProfilingConfig": '{"StartStep": 0, "NumSteps": 10, }',
    "DataloaderProfilingConfig": '{"StartStep": 0, "NumSteps": 10, "MetricsRegex": ".*", }',
    "PythonProfilingConfig": '{"StartStep": 0, "NumSteps": 10, "ProfilerName": "cprofile", '
    '"cProfileTimer": "total_time", }',
    "HorovodProfilingConfig": '{"StartStep": 0, "NumSteps": 10, }',
    "SMDataParallelProfilingConfig": '{"StartStep": 0, "NumSteps": 10, }',
}


def managed(config: Mapping[str, Any], folder: str, rules_image: str | None) -> dict[str, Any]:
    """Return what the enabled of the two add to CreateTrainingJob.

    Args:
        config: A composed configuration.
        folder: Address below which tensors and metrics go.
        rules_image: Address of the image that evaluates the rules; None where neither is enabled.
    """
    fields: dict[str, Any] = {}
    for name, part in (("debugger", _debugger), ("profiler", _profiler)):
        if config["sagemaker"][name]["enabled"]:
            assert rules_image, "its address comes with the region"
            fields |= part(f"{folder}/{name}", rules_image)
    return fields


def _debugger(folder: str, rules_image: str) -> dict[str, Any]:
    """Return the Debugger's part of CreateTrainingJob.

    Args:
        folder: Address where tensors go.
        rules_image: Address of the image that evaluates the rules.
    """
    # The rules' own collections are saved too, or the rules would have nothing to read: so does the SDK.
    collections = [LOSS, *(collection for read in RULES.values() for collection in read)]
    return {
        "DebugHookConfig": {
            "S3OutputPath": folder,
            "HookParameters": HOOK,
            "CollectionConfigurations": collections,
        },
        "DebugRuleConfigurations": [_rule(name, {}, rules_image) for name in RULES],
    }


def _profiler(folder: str, rules_image: str) -> dict[str, Any]:
    """Return the profiler's part of CreateTrainingJob.

    Args:
        folder: Address where metrics go.
        rules_image: Address of the image that evaluates the rules.
    """
    return {
        "ProfilerConfig": {
            "S3OutputPath": folder,
            "ProfilingIntervalInMilliseconds": SYSTEM_MONITOR_MILLISECONDS,
            "ProfilingParameters": FRAMEWORK_PROFILE,
        },
        "ProfilerRuleConfigurations": [
            _rule(name, parameters, rules_image) for name, parameters in PROFILER_RULES.items()
        ],
    }


def _rule(name: str, parameters: Mapping[str, str], image: str) -> dict[str, Any]:
    return {
        "RuleConfigurationName": name,
        "RuleEvaluatorImage": image,
        "RuleParameters": {**parameters, "rule_to_invoke": name},
    }
