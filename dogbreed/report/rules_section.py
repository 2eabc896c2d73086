"""What the rules found, as a part of a page."""

from collections.abc import Sequence

from markupsafe import Markup

from dogbreed.core.text import count
from dogbreed.monitor.rules import Finding
from dogbreed.report.rendering import fragment

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
_SPELLING = {"relu": "ReLU", "gpu": "GPU", "cpu": "CPU", "io": "IO"}


def rules(findings: Sequence[Finding]) -> Markup | None:
    """Make the section: the triggered rules with what to do, then all of them. None where there were no rules."""
    if not findings:
        return None
    triggered = [finding for finding in findings if finding.triggered]
    applied = sum(finding.applies for finding in findings)
    number = len(triggered)
    summary = f"{count(applied, 'rule')} applied; {number or 'none'} {'is' if number == 1 else 'are'} triggered."
    rows = [
        (
            finding.rule,
            "yes" if finding.triggered else "no" if finding.applies else "does not apply",
            LOOKS_FOR.get(finding.rule, ""),
            finding.message,
            ", ".join(f"{name}={value}" for name, value in finding.parameters.items()) if finding.applies else "",
        )
        for finding in findings
    ]
    found = [(_title(finding.rule), finding.message) for finding in triggered]
    return fragment("macros.html.j2", "rules", summary, found, rows)


def _title(rule: str) -> str:
    words = [_SPELLING.get(word, word) for word in rule.split("_")]
    return " ".join([words[0].capitalize() if words[0].islower() else words[0], *words[1:]])
