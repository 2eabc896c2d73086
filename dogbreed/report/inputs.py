"""What a report is made of: what a model predicted for a split, and everything else that is known of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from dogbreed.data.datasets import Skipped, SplitFiles
from dogbreed.data.images import Preprocessing
from dogbreed.data.vocabulary import noun_of
from dogbreed.metrics.predictions import Predictions
from dogbreed.monitor.rules import Finding
from dogbreed.report.rendering import shown


@dataclass(frozen=True)
class ReportInputs:
    """What a report is made of. Sections for which something is missing are left out, or say so.

    Attributes:
        class_names: By index.
        backbone: Name of the network.
        preprocessing: From an image to its input.
        root: The data folder; paths are shown relative to it.
        photos: The images by split, for examples of classes and for copies across splits.
        predictions: What the model predicted for one of them.
        metrics: As in `metrics.json`.
        history: As in `metrics.csv`; empty where nothing was trained.
        skipped: Files that were left out.
        config: The training configuration.
        command: What repeats it; empty for a training run, whose command follows from the configuration.
        network: For the heat maps.
        findings: What the rules found while it trained.
    """

    class_names: Sequence[str]
    backbone: str
    preprocessing: Preprocessing
    root: Path
    photos: Mapping[str, SplitFiles]
    predictions: Predictions | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, float]] = ()
    skipped: Sequence[Skipped] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    network: nn.Module | None = None
    findings: Sequence[Finding] = ()

    @cached_property
    def noun(self) -> str:
        """What a class is called: a breed, where the data are dogs."""
        return noun_of(self.class_names)

    @property
    def title(self) -> str:
        data = self.root.resolve().name or str(self.root)
        return f"{self.backbone} {'trained' if self.history else 'evaluated'} on {data}"

    def shown_path(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)

    def name(self, label: int) -> str:
        return shown(self.class_names[label])
