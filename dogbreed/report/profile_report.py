"""`profile/report.html`: where the time of a run went, and what to change; a single self-contained HTML file.

It has what SageMaker's profiler report has: what the rules found, how long steps take and which stand out, the time
by phase, how busy the machine was and how evenly, and the most expensive operators.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from dogbreed.config import reproduce
from dogbreed.core.text import count, duration
from dogbreed.monitor.profiler import PHASES, TRACE, TRACED_STEPS, Profile, Step, write_tables
from dogbreed.monitor.system_metrics import INTERVAL
from dogbreed.monitor.system_rules import outliers
from dogbreed.report import environment, rules_section
from dogbreed.report.plots import BLUE, ORANGE
from dogbreed.report.profile_plots import over_time, step_histogram, steps_in_order
from dogbreed.report.rendering import Section, facts, fragment, percent, without_failing, write_page

TEMPLATE = "profile_report.html.j2"
# Told apart on white and on black; orange is what waits.
COLOURS = dict(zip(PHASES, (ORANGE, "#c9a227", BLUE, "#7a6ff0", "#2a9d8f", "#b95fb0", "#8a939c"), strict=True))
GPU_COLOURS = (ORANGE, "#2a9d8f", "#b95fb0", "#c9a227")
PHASE_NAMES = {
    "data": "waiting for data",
    "transfer": "moving the batch to the device",
    "forward": "the forward pass",
    "backward": "the backward pass",
    "optimizer": "the optimizer",
    "callbacks": "callbacks (rules, progress)",
    "other": "everything else (Lightning, logging)",
}
STAGES = {"preparing": "preparing", "training": "training", "evaluation": "evaluation, export and report"}
OPEN_OPERATORS, MOST_OPERATORS, SLOWEST = 15, 60, 8
FEW = 4  # samples, below which nothing can be drawn


def write_safely(folder: Path, profile: Profile, title: str, config: Mapping[str, Any]) -> None:
    """Write the profile at the end of a run that has succeeded: a failure is printed, not raised."""
    without_failing(lambda: write(folder, profile, title, config), "profile")


def write(folder: Path, profile: Profile, title: str, config: Mapping[str, Any]) -> None:
    """Write the page and the tables beside it.

    Args:
        folder: Of the profile.
        profile: What was measured.
        title: What was run.
        config: Of the run, for the command that repeats it.

    Raises:
        DogbreedError: A file cannot be written.
    """
    write_tables(folder, profile)
    sections = [
        Section("rules", "Rules", lambda: rules_section.rules(profile.findings)),
        Section("time", "Where the time went", lambda: _time(profile)),
        Section("steps", "Time per step", lambda: _step_times(profile)),
        Section("machine", "Utilisation", lambda: _machine(profile)),
        Section("balance", "Load balance", lambda: _balance(profile)),
        Section("operators", "Most expensive operators", lambda: _operators(profile)),
        Section("reproduce", "How this was measured, and how to repeat it", lambda: _reproduce(profile, config)),
    ]
    write_page(folder / "report.html", f"Profile: {title}", lambda: _header(profile, title), sections)


def _header(profile: Profile, title: str) -> Markup:
    values: dict[str, Any] = {"The whole run": duration(profile.seconds)}
    steps = _untraced(profile.steps)
    if steps:
        median = float(np.median([step.seconds for step in steps]))
        values |= {"Steps": f"{len(profile.steps):,}", "Median step": duration(median)}
        values["Waiting for data"] = percent(_shares(steps)["data"])
    if profile.samples:
        cores = np.array([sample.cores for sample in profile.samples])
        values[f"{count(cores.shape[1], 'core')} used"] = percent(float(cores.mean()) / 100)
        for index, name in enumerate(profile.gpus):
            used = np.nanmean([sample.gpus[index] for sample in profile.samples])
            values[f"{name} used"] = percent(float(used) / 100)
        peak = max(sample.process_memory for sample in profile.samples)
        values["Peak memory"] = f"{peak / 1e9:.1f} GB" if peak >= 1e9 else f"{peak / 1e6:.0f} MB"
    return fragment(TEMPLATE, "header", title, facts(values), _summary(profile))


def _summary(profile: Profile) -> str:
    """Return the largest part of the run, and of a step, in a sentence each."""
    parts = []
    stages = _stage_seconds(profile)
    if stages and profile.seconds > 0:
        name, seconds = max(stages.items(), key=lambda item: item[1])
        parts.append(f"{percent(seconds / profile.seconds)} of the run went into {STAGES[name]}")
    steps = _untraced(profile.steps)
    if steps:
        shares = _shares(steps)
        phase = max(shares, key=lambda name: shares[name])
        parts.append(f"{percent(shares[phase])} of a training step into {PHASE_NAMES[phase].partition(' (')[0]}")
    text = ", ".join(parts) + "." if parts else "The run was too short to measure anything."
    triggered = sum(finding.triggered for finding in profile.findings)
    return text if not triggered else f"{text} {count(triggered, 'rule')} found something to change."


# Sections


def _time(profile: Profile) -> Markup | None:
    stages = []
    if profile.seconds > 0:
        stages = [
            (STAGES[name], duration(seconds), percent(seconds / profile.seconds), seconds / profile.seconds)
            for name, seconds in _stage_seconds(profile).items()
        ]
    steps = _untraced(profile.steps)
    phases = []
    if steps:
        shares = _shares(steps)
        values = np.array([step.phases for step in steps])
        for index, name in enumerate(PHASES):
            middle, high = np.quantile(values[:, index], (0.5, 0.95)).tolist()
            times = [duration(value) for value in (float(values[:, index].mean()), middle, high)]
            phases.append({"name": PHASE_NAMES[name], "colour": COLOURS[name], "share": shares[name], "times": times})
    return fragment(TEMPLATE, "time", stages, phases) if stages or phases else None


def _step_times(profile: Profile) -> Markup | None:
    steps = _untraced(profile.steps)
    if len(steps) < FEW:
        return None
    seconds = np.array([step.seconds for step in steps])
    far = outliers(seconds)
    low, middle, high, top = (duration(value) for value in np.quantile(seconds, (0.05, 0.5, 0.95, 1)).tolist())
    text = f"Half of the {len(steps):,} steps took {middle} or less, 90 % of them between {low} and {high}; "
    text += f"the longest took {top}. "
    if len(far):
        text += f"{count(len(far), 'step')} took longer than the mean and three standard deviations (orange)."
    else:
        text += "None stands out (mean and three standard deviations)."
    traced = len(profile.steps) - len(steps)
    if traced:
        text += f" The {count(traced, 'step')} under torch.profiler, which slows them down, left out."
    rows = []
    for step in sorted(steps, key=lambda step: -step.seconds)[:SLOWEST]:
        phase = max(range(len(PHASES)), key=lambda index: step.phases[index])
        share = percent(step.phases[phase] / max(step.seconds, 1e-12))
        rows.append((f"Step {step.number:,}", duration(step.seconds), PHASE_NAMES[PHASES[phase]], share))
    return fragment(TEMPLATE, "steps", text, [step_histogram(seconds), steps_in_order(steps, far)], rows)


def _machine(profile: Profile) -> Markup:
    samples = profile.samples
    gpu = f" {profile.gpu_reason}" if profile.gpu_reason else ""
    if len(samples) < FEW:
        text = f"The run ended after {count(len(samples), 'sample')} of the machine, too few to draw.{gpu}"
        return fragment(TEMPLATE, "machine", text, [])

    def series(name: str) -> NDArray[np.float64]:
        return np.array([getattr(sample, name) for sample in samples], dtype=float)

    times, waits = series("time"), series("io_waits")
    gpus = list(zip(profile.gpus[:4], GPU_COLOURS, strict=False))
    busy = [("processor", series("cores").mean(1), BLUE)]
    if waits.max() > 1:
        busy.append(("waiting for the disk", waits.mean(1), "#8a939c"))
    busy += [(name, series("gpus")[:, index], colour) for index, (name, colour) in enumerate(gpus)]
    memory = [("machine", series("memory"), BLUE)]
    memory += [(name, series("gpu_memory")[:, index], colour) for index, (name, colour) in enumerate(gpus)]
    drawings = [
        over_time(profile, times, busy, f"Processor{' and GPU' if gpus else ''} (%)", percent=True),
        over_time(profile, times, memory, "Memory in use (%)", percent=True),
    ]
    for name, columns in (
        ("Disk", {"read": "disk_read", "written": "disk_written"}),
        ("Network", {"received": "received", "sent": "sent"}),
    ):
        lines = [
            (label, series(key) / 1e6, colour)
            for (label, key), colour in zip(columns.items(), (BLUE, ORANGE), strict=True)
        ]
        if any(np.nan_to_num(values).max() > 0.01 for _, values, _ in lines):
            drawings.append(over_time(profile, times, lines, f"{name} (MB/s)"))
    text = f"Sampled every {1000 * INTERVAL:.0f} ms, {count(len(samples), 'sample')}.{gpu}"
    if len(profile.stages) > 1:
        text += " The stages of the run are set apart by dashed lines."
    return fragment(TEMPLATE, "machine", text, drawings)


def _balance(profile: Profile) -> Markup | None:
    samples = profile.samples
    if len(samples) < FEW:
        return None
    series = [(f"Core {index}", values) for index, values in enumerate(np.array([s.cores for s in samples]).T)]
    series += [(name, np.array([s.gpus[index] for s in samples])) for index, name in enumerate(profile.gpus)]
    if len(series) < 2:
        return None
    means = {name: float(np.nanmean(values)) for name, values in series}
    busiest, idlest = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    text = (
        f"{busiest} was used most, {means[busiest]:.0f} % on average, {idlest} least, {means[idlest]:.0f} %."
        if means[busiest] - means[idlest] > 5
        else f"All were used about equally, {np.mean(list(means.values())):.0f} % on average."
    )
    text += " The mark is the mean, the pale band the middle 90 % of the samples."
    rows = []
    for name, values in series:
        low, high = (float(end) / 100 for end in np.nanquantile(values, (0.05, 0.95)))
        rows.append((name, (low, means[name] / 100, high), f"{means[name]:.0f} %", percent(high)))
    return fragment(TEMPLATE, "balance", text, rows)


def _operators(profile: Profile) -> Markup:
    if not profile.operators:
        return fragment(TEMPLATE, "operators", profile.trace_reason or "No step was traced.", "", [], [])
    device = any(operator.device_seconds for operator in profile.operators)
    used = [operator.device_seconds if device else operator.cpu_seconds for operator in profile.operators]
    total = max(sum(used), 1e-12)
    order = sorted(range(len(used)), key=lambda index: -used[index])[:MOST_OPERATORS]
    rows = [
        (profile.operators[i].name, percent(used[i] / total, 1), duration(used[i]), f"{profile.operators[i].calls:,}",
         used[i] / total)
        for i in order
    ]  # fmt: skip
    text, trace = profile.trace_reason, ""
    if not text:
        traced = sum(step.traced for step in profile.steps) or TRACED_STEPS
        text = f"torch.profiler recorded {count(traced, 'step')}; times are an operator's own, "
        text += f"{'on the GPU' if device else 'on the processor'}."
        trace = TRACE
    return fragment(TEMPLATE, "operators", text, trace, rows[:OPEN_OPERATORS], rows[OPEN_OPERATORS:])


def _reproduce(profile: Profile, config: Mapping[str, Any]) -> Markup:
    how = "A thread samples the machine. Phases are timed by Lightning's profiler interface, each second once."
    if profile.device == "cuda":
        how += " The process waits for the GPU at the end of each phase, so that its work counts where it was ordered."
    tables = ["system.csv", *(["steps.csv"] if profile.steps else [])]
    tables += ["operators.csv", TRACE] if profile.operators else []
    text = f"{how} The numbers lie beside this page: {', '.join(tables)}."
    command = reproduce.command(config) if config else ""
    machine, versions = facts(environment.machine()), list(environment.versions().items())
    return fragment(TEMPLATE, "reproduce", text, command, machine, versions)


# Numbers


def _untraced(steps: Sequence[Step]) -> list[Step]:
    """Return those that ran at their own speed; all of them where no other ran."""
    return [step for step in steps if not step.traced] or list(steps)


def _shares(steps: Sequence[Step]) -> dict[str, float]:
    """Return the part of the steps' time that each phase took."""
    sums = np.array([step.phases for step in steps]).sum(0)
    total = max(float(sums.sum()), 1e-12)
    return {name: float(value) / total for name, value in zip(PHASES, sums, strict=True)}


def _stage_seconds(profile: Profile) -> dict[str, float]:
    ends = [begin for begin, _ in profile.stages[1:]] + [profile.seconds]
    seconds: dict[str, float] = {}
    for (begin, name), end in zip(profile.stages, ends, strict=bool(profile.stages)):
        seconds[name] = seconds.get(name, 0.0) + end - begin
    return seconds
