"""`profile/report.html`: where the time of a run went, and what to change, in one file that needs nothing else.

It has what SageMaker's profiler report has: what the rules found, how long steps take and which stand out,
the time by phase, how busy the machine was and how evenly, and the most expensive operators.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dogbreed.config import reproduce
from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import atomic_write
from dogbreed.monitor.profiler import PHASES, TRACE, TRACED_STEPS, Profile, Step, write_tables
from dogbreed.monitor.system_metrics import INTERVAL
from dogbreed.monitor.system_rules import outliers
from dogbreed.report import environment
from dogbreed.report.page import Markup, bar, count, document, facts, joined, table, tag
from dogbreed.report.plots import BLUE, ORANGE
from dogbreed.report.profile_plots import over_time, step_histogram, steps_in_order
from dogbreed.report.rules_section import verdicts

# Told apart on white and on black; orange is what waits.
COLOURS = dict(zip(PHASES, (ORANGE, "#c9a227", BLUE, "#7a6ff0", "#2a9d8f", "#b95fb0", "#8a939c"), strict=True))
SAID = {
    "data": "waiting for data",
    "transfer": "moving the batch to the device",
    "forward": "the forward pass",
    "backward": "the backward pass",
    "optimizer": "the optimizer",
    "callbacks": "callbacks (rules, progress)",
    "other": "everything else (Lightning, logging)",
}
STAGES = {
    "preparing": "preparing",
    "training": "training",
    "evaluation": "evaluation, export and report",
}
OPEN_OPERATORS, SLOWEST = 15, 8
FEW = 4  # samples, below which nothing can be drawn


def write_safely(folder: Path, profile: Profile, title: str, config: Mapping[str, Any]) -> None:
    """As `write`, for the end of a run that has succeeded: what goes wrong is said on standard error, not raised."""
    try:
        write(folder, profile, title, config)
    except DogbreedError as error:
        print(f"The profile could not be written: {error}", file=sys.stderr, flush=True)


def write(folder: Path, profile: Profile, title: str, config: Mapping[str, Any]) -> None:
    """Writes the page and the tables beside it.

    Args:
        folder: Of the profile.
        profile: What was measured.
        title: What was run.
        config: Of the run, for the command that repeats it.

    Raises:
        DogbreedError: A file cannot be written.
    """
    write_tables(folder, profile)
    sections: list[tuple[str, str, Callable[[], Markup | None]]] = [
        ("rules", "What the rules found", lambda: verdicts(profile.findings)),
        ("time", "Where the time went", lambda: _time(profile)),
        ("steps", "How long a step takes", lambda: _step_times(profile)),
        ("machine", "How busy the machine was", lambda: _machine(profile)),
        ("balance", "How evenly the load is spread", lambda: _balance(profile)),
        ("operators", "The most expensive operators", lambda: _operators(profile)),
        ("again", "How it was measured, and how to repeat it", lambda: _again(profile, config)),
    ]
    made = [(anchor, name, content) for anchor, name, build in sections if (content := build())]
    links = tag("nav", *(tag("a", name, href=f"#{anchor}") for anchor, name, _ in made), aria_label="Sections")
    body = tag(
        "main",
        _head(profile, title),
        links,
        *(tag("section", tag("h2", name, id=anchor), content) for anchor, name, content in made),
    )
    with atomic_write(folder / "report.html") as temporary:
        temporary.write_text(document(f"Profile: {title}", body), encoding="utf-8")


def _head(profile: Profile, title: str) -> Markup:
    pairs: list[tuple[object, object]] = [("The whole run", _seconds(profile.seconds))]
    steps = _untraced(profile.steps)
    if steps:
        seconds = np.array([step.seconds for step in steps])
        pairs += [("Steps", f"{len(profile.steps):,}"), ("Median step", _seconds(float(np.median(seconds))))]
        pairs.append(("Waiting for data", f"{100 * _shares(steps)['data']:.0f}%"))
    if profile.samples:
        cores = np.array([sample.cores for sample in profile.samples])
        pairs.append((f"{count(cores.shape[1], 'core')} used", f"{cores.mean():.0f}%"))
        for index, name in enumerate(profile.gpus):
            pairs.append((f"{name} used", f"{np.nanmean([sample.gpus[index] for sample in profile.samples]):.0f}%"))
        peak = max(sample.process_memory for sample in profile.samples)
        pairs.append(("Largest memory", _bytes(peak)))
    return tag(
        "header",
        tag("h1", title),
        tag("p", "Where the time went, and what to change.", class_="muted"),
        tag("div", facts(pairs), style="margin:1.5rem 0"),
        tag("p", tag("strong", "In short. "), _in_short(profile), class_="lesson"),
    )


def _in_short(profile: Profile) -> str:
    """The largest part of the run, and of a step, in a sentence each."""
    told = []
    stages = _stage_seconds(profile)
    if stages and profile.seconds > 0:
        name, seconds = max(stages.items(), key=lambda item: item[1])
        told.append(f"{seconds / profile.seconds:.0%} of the run went into {STAGES[name]}")
    steps = _untraced(profile.steps)
    if steps:
        shares = _shares(steps)
        phase = max(shares, key=lambda name: shares[name])
        told.append(f"{shares[phase]:.0%} of a training step into {SAID[phase].partition(' (')[0]}")
    triggered = [finding for finding in profile.findings if finding.triggered]
    text = ", ".join(told) + "." if told else "The run was too short to measure anything."
    return text if not triggered else f"{text} {count(len(triggered), 'rule')} found something to change."


# Sections


def _time(profile: Profile) -> Markup | None:
    parts = []
    stages = _stage_seconds(profile)
    if stages and profile.seconds > 0:
        rows = [
            (STAGES[name], _seconds(seconds), f"{seconds / profile.seconds:.0%}", _bar(seconds / profile.seconds))
            for name, seconds in stages.items()
        ]
        text = "Preparing is checking the images, building the network and, where they are missing, computing features."
        parts.append(tag("p", text))
        parts.append(table(("Stage", "Time", "Of the run", "0 to 100%"), rows, "Time by stage", numeric=(1, 2)))
    steps = _untraced(profile.steps)
    if steps:
        shares = _shares(steps)
        values = np.array([step.phases for step in steps])
        strips = [
            tag(
                "span", style=f"width:{100 * share:.2f}%;background:{COLOURS[name]}", title=f"{SAID[name]}, {share:.0%}"
            )
            for name, share in shares.items()
            if share > 0
        ]
        style = "display:flex;height:1.6rem;border-radius:.4rem;overflow:hidden;margin:1.5rem 0 1rem"
        parts.append(tag("div", *strips, style=style, role="img", aria_label="Time of a step by phase"))
        phases: list[Sequence[object]] = []
        for index, name in enumerate(PHASES):
            swatch = f"display:inline-block;width:.8em;height:.8em;border-radius:2px;background:{COLOURS[name]}"
            label = joined([tag("span", style=swatch, aria_hidden="true"), SAID[name]], " ")
            middle, high = np.quantile(values[:, index], (0.5, 0.95)).tolist()
            mean = float(values[:, index].mean())
            phases.append((label, f"{shares[name]:.1%}", _seconds(mean), _seconds(middle), _seconds(high)))
        head = ("In a training step", "Share", "Mean", "Median", "95th percentile")
        parts.append(table(head, phases, "Time of a step by phase", numeric=(1, 2, 3, 4)))
    return joined(parts) if parts else None


def _step_times(profile: Profile) -> Markup | None:
    steps = _untraced(profile.steps)
    if len(steps) < FEW:
        return None
    seconds = np.array([step.seconds for step in steps])
    far = outliers(seconds)
    low, middle, high, top = np.quantile(seconds, (0.05, 0.5, 0.95, 1)).tolist()
    text = (
        f"Half of the {len(steps):,} steps took {_seconds(middle)} or less, 90% of them between {_seconds(low)} and "
        f"{_seconds(high)}; the longest took {_seconds(top)}. "
        + (
            f"{count(len(far), 'step')} took longer than the mean and three standard deviations (orange)."
            if len(far)
            else "None stands out (mean and three standard deviations)."
        )
    )
    traced = len(profile.steps) - len(steps)
    if traced:
        text += f" The {count(traced, 'step')} under torch.profiler, which slows them down, left out."
    parts = [tag("p", text), tag("div", step_histogram(seconds), steps_in_order(steps, far), class_="plots")]
    slowest = sorted(steps, key=lambda step: -step.seconds)[:SLOWEST]
    rows = []
    for step in slowest:
        phase = max(range(len(PHASES)), key=lambda index: step.phases[index])
        share = step.phases[phase] / max(step.seconds, 1e-12)
        rows.append((f"Step {step.number:,}", _seconds(step.seconds), SAID[PHASES[phase]], f"{share:.0%}"))
    listed = table(("Step", "Time", "Most of it", "Share"), rows, "The slowest steps", numeric=(1, 3))
    parts.append(tag("details", tag("summary", "The slowest steps"), listed))
    return joined(parts)


def _machine(profile: Profile) -> Markup:
    samples = profile.samples
    gpu = f" {profile.gpu_reason}" if profile.gpu_reason else ""
    if len(samples) < FEW:
        told = f"The run ended before the machine was looked at more than {len(samples)} times.{gpu}"
        return tag("p", told)
    times = np.array([sample.time for sample in samples])
    cores = np.array([sample.cores for sample in samples])
    waits = np.array([sample.io_waits for sample in samples])
    text = f"Looked at every {1000 * INTERVAL:.0f} ms, {len(samples):,} times.{gpu}"
    busy: list[tuple[str, NDArray[np.float64], str]] = [("processor", cores.mean(1), BLUE)]
    if waits.max() > 1:
        busy.append(("waiting for the disk", waits.mean(1), "#8a939c"))
    palette = (ORANGE, "#2a9d8f", "#b95fb0", "#c9a227")
    for index, name in enumerate(profile.gpus[:4]):
        busy.append((name, np.array([sample.gpus[index] for sample in samples]), palette[index]))
    memory = [("machine", np.array([sample.memory for sample in samples]), BLUE)]
    for index, name in enumerate(profile.gpus[:4]):
        memory.append((name, np.array([sample.gpu_memory[index] for sample in samples]), palette[index]))
    disk = [
        ("read", np.array([sample.disk_read for sample in samples]) / 1e6, BLUE),
        ("written", np.array([sample.disk_written for sample in samples]) / 1e6, ORANGE),
    ]
    net = [
        ("received", np.array([sample.received for sample in samples]) / 1e6, BLUE),
        ("sent", np.array([sample.sent for sample in samples]) / 1e6, ORANGE),
    ]
    drawings = [
        over_time(profile, times, busy, "Processor" + (" and GPU" if profile.gpus else "") + " (%)", percent=True),
        over_time(profile, times, memory, "Memory in use (%)", percent=True),
        *(
            over_time(profile, times, lines, f"{name} (MB/s)")
            for name, lines in (("Disk", disk), ("Network", net))
            if any(np.nan_to_num(values).max() > 0.01 for _, values, _ in lines)
        ),
    ]
    stages = "The stages of the run are set apart by dashed lines." if len(profile.stages) > 1 else ""
    return joined([tag("p", f"{text} {stages}"), tag("div", *drawings, class_="plots")])


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
        f"{busiest} was used most, {means[busiest]:.0f}% on average, {idlest} least, {means[idlest]:.0f}%."
        if means[busiest] - means[idlest] > 5
        else f"All were used about equally, {np.mean(list(means.values())):.0f}% on average."
    )
    text += " The mark is the mean, the pale band the middle 90% of the samples."
    rows = []
    for name, values in series:
        low, high = np.nanquantile(values, (0.05, 0.95)).tolist()
        rows.append((name, bar(low / 100, means[name] / 100, high / 100), f"{means[name]:.0f}%", f"{high:.0f}%"))
    listed = table(("", "0 to 100%", "Mean", "95th percentile"), rows, "Load by core and GPU", numeric=(2, 3))
    if len(rows) > 16:
        listed = tag("details", tag("summary", f"All {len(rows)}"), listed)
    return joined([tag("p", text), listed])


def _operators(profile: Profile) -> Markup:
    if not profile.operators:
        return tag("p", profile.trace_reason or "No step was traced.")
    device = any(operator.device_seconds for operator in profile.operators)
    used = [operator.device_seconds if device else operator.cpu_seconds for operator in profile.operators]
    total = max(sum(used), 1e-12)
    order = sorted(range(len(used)), key=lambda index: -used[index])

    def rows(which: Sequence[int]) -> list[Sequence[object]]:
        return [
            (
                tag("code", profile.operators[index].name, style="overflow-wrap:anywhere"),
                f"{used[index] / total:.1%}",
                _seconds(used[index]),
                f"{profile.operators[index].calls:,}",
                _bar(used[index] / total),
            )
            for index in which
        ]

    traced = sum(step.traced for step in profile.steps) or TRACED_STEPS
    text = [
        f"torch.profiler recorded {count(traced, 'step')}; times are those of an operator itself, "
        f"{'on the GPU' if device else 'on the processor'}. For each call in its place, ",
        tag("code", TRACE),
        " beside this page opens in chrome://tracing or at ui.perfetto.dev.",
    ]
    if profile.trace_reason:
        text = [profile.trace_reason]
    head = ("Operator", "Share", "Time", "Calls", "0 to 100%")
    parts = [tag("p", *text), table(head, rows(order[:OPEN_OPERATORS]), "The most expensive operators", (1, 2, 3))]
    if len(order) > OPEN_OPERATORS:
        rest = table(head, rows(order[OPEN_OPERATORS:60]), "More operators", (1, 2, 3))
        parts.append(tag("details", tag("summary", "More operators"), rest))
    return joined(parts)


def _again(profile: Profile, config: Mapping[str, Any]) -> Markup:
    parts = [tag("pre", tag("code", reproduce.command(config)), class_="command")] if config else []
    how = "A thread looks at the machine. Phases are timed by Lightning's profiler interface, each second once."
    if profile.device == "cuda":
        how += " The GPU is waited for at the end of each phase, so that its work counts where it was ordered."
    parts.append(tag("p", how))
    beside = ["system.csv", *(["steps.csv"] if profile.steps else [])]
    beside += ["operators.csv", TRACE] if profile.operators else []
    parts.append(tag("p", f"The numbers lie beside this page: {', '.join(beside)}."))
    pairs: list[tuple[object, object]] = [
        (name.capitalize() if name[0].islower() else name, value) for name, value in environment.machine().items()
    ]
    parts += [facts(pairs), tag("h3", "Versions", style="margin-top:1.5rem"), facts(environment.versions().items())]
    return joined(parts)


# Numbers


def _bar(share: float) -> Markup:
    return bar(0, share, share)


def _untraced(steps: Sequence[Step]) -> list[Step]:
    """Those that ran at their own speed; all of them where no other ran."""
    return [step for step in steps if not step.traced] or list(steps)


def _shares(steps: Sequence[Step]) -> dict[str, float]:
    """What part of the steps' time each phase took."""
    sums = np.array([step.phases for step in steps]).sum(0)
    total = max(float(sums.sum()), 1e-12)
    return {name: float(value) / total for name, value in zip(PHASES, sums, strict=True)}


def _stage_seconds(profile: Profile) -> dict[str, float]:
    ends = [begin for begin, _ in profile.stages[1:]] + [profile.seconds]
    seconds: dict[str, float] = {}
    for (begin, name), end in zip(profile.stages, ends, strict=bool(profile.stages)):
        seconds[name] = seconds.get(name, 0.0) + end - begin
    return seconds


def _seconds(value: float) -> str:
    if value < 1:
        return f"{1000 * value:.2g} ms" if value < 0.01 else f"{1000 * value:.0f} ms"
    if value < 100:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    minutes = round(value / 60)
    if minutes < 10:
        return f"{value / 60:.1f} min"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _bytes(value: float) -> str:
    return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"
