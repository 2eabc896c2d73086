"""What the rules found, as a part of a page."""

from collections.abc import Sequence

from dogbreed.monitor.rules import Finding
from dogbreed.report.page import Markup, count, joined, table, tag

# What each rule looks for, as one says it.
LOOKS_FOR = {
    "loss_not_decreasing": "a training loss that no longer falls",
    "overfit": "a validation loss well above the training loss",
    "overtraining": "training that goes on without gain",
    "vanishing_gradient": "gradients that have all but disappeared",
    "exploding_tensor": "values that are not finite",
    "poor_weight_initialization": "weights that were drawn too small or too large",
    "dead_relu": "layers in which most units never fire",
    "data_loading": "steps that mostly wait for data",
    "low_gpu_utilization": "a GPU that is idle, or stops and goes",
    "cpu_bottleneck": "a GPU that waits for the processor",
    "io_bottleneck": "a GPU that waits for the disk",
    "gpu_memory_increase": "a GPU whose memory fills up",
    "step_outlier": "steps that take much longer than the others",
}


def verdicts(findings: Sequence[Finding]) -> Markup | None:
    """What was found, with the advice; then every rule that was asked. None where none was."""
    if not findings:
        return None
    triggered = [finding for finding in findings if finding.triggered]
    applied = [finding for finding in findings if finding.applies]
    text = f"{count(len(applied), 'rule')} watched, {len(triggered) or 'none'} found something."
    parts = [tag("p", text)]
    for finding in triggered:
        parts.append(tag("p", tag("strong", f"{_name(finding)}. "), finding.message, class_="warning"))
    rows = [
        (finding.rule, _state(finding), LOOKS_FOR.get(finding.rule, ""), "" if finding.triggered else finding.message)
        for finding in findings
    ]
    listed = table(("Rule", "Found", "Looks for", "What it saw"), rows, "Rules")
    parameters = [
        (finding.rule, ", ".join(f"{name}={value}" for name, value in finding.parameters.items()))
        for finding in applied
    ]
    given = table(("Rule", "Parameters"), parameters, "Parameters of the rules")
    source = (
        "Names, definitions and defaults follow the built-in rules of Amazon SageMaker Debugger; data_loading is this "
        "project's own. A setting is changed as in rules.overfit.ratio_threshold=0.2."
    )
    parts.append(tag("details", tag("summary", "All rules"), listed, tag("p", source, class_="muted"), given))
    return joined(parts)


def _name(finding: Finding) -> str:
    name = finding.rule.replace("_", " ").replace("relu", "ReLU").replace("gpu", "GPU").replace("cpu", "CPU")
    return name.replace("io b", "IO b")[:1].upper() + name.replace("io b", "IO b")[1:]


def _state(finding: Finding) -> str:
    return "yes" if finding.triggered else "no" if finding.applies else "does not apply"
