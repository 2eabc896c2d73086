"""What a certificate says: whether the inference paths from a file's bytes to its logits agree. Needs no torch."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import atomic_write

CERTIFICATE = "certificate.json"
TOLERANCE = 1e-4  # float32: sums of the same numbers in another order differ by some 1e-6


@dataclass(frozen=True)
class Answer:
    """What one inference path makes of one file.

    Attributes:
        logits: Of all classes, before temperature and softmax; None where the file was refused.
        reason: Why it was refused.
        set: The classes of the 90 % set; None where there is none.
        abstain: Whether the model abstains; None without a set.
        in_domain: Whether the file is like the training images; None where the model has no index of them.
    """

    logits: Sequence[float] | None
    reason: str = ""
    set: Sequence[str] | None = None
    abstain: bool | None = None
    in_domain: bool | None = None


@dataclass(frozen=True)
class Comparison:
    """How far apart the inference paths are.

    Attributes:
        differences: By path, the largest absolute difference of a logit from the reference.
        worst: By path, the file in which that is.
        disagreements: Sentences about files that one path answers and another refuses.
    """

    differences: Mapping[str, float]
    worst: Mapping[str, str]
    disagreements: Sequence[str] = field(default_factory=list)

    @property
    def largest(self) -> float:
        return max(self.differences.values())

    def fault(self, tolerance: float) -> str | None:
        """Return why no certificate can be given; None where all agree."""
        if self.disagreements:
            return self.disagreements[0]
        path = max(self.differences, key=lambda name: self.differences[name])
        if self.differences[path] <= tolerance:
            return None
        return f"the logits of {self.worst[path]} differ by {self.differences[path]:.2g} between training and {path}"


def compare(files: Sequence[str], answers: Mapping[str, Sequence[Answer]]) -> Comparison:
    """Compare every inference path with the first.

    Args:
        files: Names of the files.
        answers: By path, one answer per file in their order.
    """
    (reference, expected), *others = answers.items()
    differences, worst, disagreements = {}, {}, []
    for path, path_answers in others:
        differences[path], worst[path] = 0.0, ""
        for name, one, other in zip(files, expected, path_answers, strict=True):
            if one.logits is None or other.logits is None:
                if (one.logits is None) != (other.logits is None):
                    sides = (reference, path) if one.logits is None else (path, reference)
                    reason = one.reason or other.reason
                    disagreements.append(f"{sides[0]} refuses {name} ({reason}) and {sides[1]} answers it")
                continue
            difference = _distance(one.logits, other.logits)
            if difference > differences[path] or not worst[path]:
                differences[path], worst[path] = difference, name
    return Comparison(differences, worst, disagreements)


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    if len(one) != len(other):
        return math.inf
    distances = [abs(a - b) for a, b in zip(one, other, strict=True)]
    return math.inf if any(map(math.isnan, distances)) else max(distances)


def write(file: Path, content: Mapping[str, Any]) -> None:
    """Write a certificate, whole or not at all."""
    with atomic_write(file) as beside:
        beside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read(file: Path) -> dict[str, Any]:
    """Return a certificate.

    Raises:
        DogbreedError: There is none, or it is damaged.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DogbreedError(f"{file} is no readable certificate; python -m dogbreed.certify makes one.") from error
    if not isinstance(content, dict) or not isinstance(content.get("passed"), bool):
        raise DogbreedError(f"{file} is no certificate; python -m dogbreed.certify makes one.")
    return content
