"""What the rules found, as a part of a page."""

from collections.abc import Sequence

from markupsafe import Markup

from dogbreed.core.text import count
from dogbreed.monitor.rules import LOOKS_FOR, Finding
from dogbreed.report.rendering import fragment

_SPELLING = {"relu": "ReLU", "gpu": "GPU", "cpu": "CPU", "io": "IO"}


def rules(findings: Sequence[Finding]) -> Markup | None:
    """Make the section: the triggered rules with what to do, then all of them. None where there were no rules."""
    if not findings:
        return None
    triggered = [(_title(finding.rule), finding.message) for finding in findings if finding.triggered]
    applied, number = sum(finding.applies for finding in findings), len(triggered)
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
    return fragment("macros.html.j2", "rules", summary, triggered, rows)


def _title(rule: str) -> str:
    words = [_SPELLING.get(word, word) for word in rule.split("_")]
    return " ".join([words[0].capitalize() if words[0].islower() else words[0], *words[1:]])
