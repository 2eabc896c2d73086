"""The proof that what was trained is what is served.

Photographs, and odd files made from one of them, go from their bytes to logits through four inference paths: the
evaluation that training ends with, `Predictor`, a running server, and the handlers of a packed archive in a process
that sees nothing but the archive; where there is a GPU, also `Predictor` on it, and where the model's folder has a file
for ONNX Runtime, with that. The largest difference is printed and
written; where float32 does not explain it, or one path answers what another refuses, there is no certificate.
"""

import hashlib
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import PIL
import torch
import torchvision

from dogbreed.core.errors import DogbreedError
from dogbreed.core.progress import track
from dogbreed.core.version import __version__
from dogbreed.data.edge_cases import drawn, edge_case_files
from dogbreed.data.layout import STDIN
from dogbreed.inference import archive
from dogbreed.inference.archive import Archive
from dogbreed.inference.onnx_runtime import choose
from dogbreed.inference.photographs import find_photographs
from dogbreed.inference.predictor import Output, Predictor
from dogbreed.inference.schema import certainty_fields
from dogbreed.models.manifest import find_model, read_manifest
from dogbreed.serving import parity
from dogbreed.serving.certificate import CERTIFICATE, TOLERANCE, Answer, compare, write

InferencePath = Callable[[Path, Mapping[str, bytes], parity.Tick], list[Answer]]

# The first is the reference.
INFERENCE_PATHS: dict[str, InferencePath] = {
    "training": parity.training,
    "predictor": parity.predictor,
    "server": parity.server,
    "handler": parity.handler,
}


def inference_paths(folder: Path | None = None) -> dict[str, InferencePath]:
    """Return the inference paths of this machine: where there is a GPU, `Predictor` on it is one more.

    Args:
        folder: Of the model; `Predictor` with ONNX Runtime is one more where that would answer on this machine.
    """
    paths = dict(INFERENCE_PATHS)
    if torch.cuda.is_available():
        paths["gpu"] = partial(parity.predictor, device="cuda")
    if folder is not None and choose("auto", folder, torch.device("cpu"), "float32") == "onnx":
        paths["onnx"] = partial(parity.predictor, runtime="onnx")
    return paths


def certify(
    model: Path,
    photos: Sequence[str] = (),
    output: Path | None = None,
    others: Mapping[str, InferencePath] | None = None,
) -> dict[str, Any]:
    """Take all files along all inference paths, compare the logits, and write the certificate.

    Args:
        model: An exported model, or the folder of its run.
        photos: Photographs, or folders of them; generated files are added.
        output: The certificate; None puts it beside the model's files.
        others: Further paths, or others in place of those of the same name.

    Returns:
        What was written; `passed` says whether all paths agree.

    Raises:
        DogbreedError: A file does not exist, or an inference path does not work at all.
        ModuleNotFoundError: The extra `serve` is not installed.
    """
    # The server is a process of its own; what it lacks is said here, before there is anything to wait for.
    from dogbreed.serving import app, server  # noqa: F401

    folder = find_model(model)
    files = _files(photos)
    answers: dict[str, list[Answer]] = {}
    seconds: dict[str, float] = {}
    with archive.assemble(folder) as packed:
        chosen = {**inference_paths(folder), **(others or {})}
        with track(len(files) * len(chosen), "Certifying", "answers") as progress:
            for name, path in chosen.items():
                start = time.monotonic()
                answers[name] = path(folder, files, progress.advance)
                seconds[name] = round(time.monotonic() - start, 2)
        content = _content(folder, packed, files, answers, seconds)
    write(output or folder / CERTIFICATE, content)
    return content


def _files(photos: Sequence[str]) -> dict[str, bytes]:
    """Return files by name: the photographs, a drawn one, and the odd ones, which are made from the first."""
    if STDIN in photos:
        raise DogbreedError("A certificate is not made from standard input; give photographs, or folders of them.")
    photographs = {}
    for name in find_photographs(photos):
        try:
            photographs[name] = Path(name).read_bytes()
        except OSError as error:
            raise DogbreedError(f"{name} cannot be read: {(error.strerror or 'unknown').lower()}.") from error
    made = {"odd/drawn.jpg": drawn()}
    for data in (*photographs.values(), *made.values()):
        try:
            odd = edge_case_files(data)
        except (OSError, ValueError, SyntaxError):
            continue  # the next may be a photograph
        return {**photographs, **made, **{f"odd/{name}": content for name, content in odd.items()}}
    raise AssertionError("the drawn one can be read")


def _content(
    folder: Path,
    packed: Archive,
    files: Mapping[str, bytes],
    answers: Mapping[str, Sequence[Answer]],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    comparison = compare(list(files), answers)
    predictor = Predictor(folder, device="cpu", runtime="torch")
    reference = next(iter(answers.values()))
    similarities = _similarities(predictor, files, reference)
    fault = (
        comparison.fault(TOLERANCE)
        or _fault_of_sets(predictor, list(files), answers)
        or _fault_of_in_domain(predictor, similarities, list(files), answers)
    )
    odd = sum(name.startswith("odd/") for name in files)
    return {
        "passed": fault is None,
        "fault": fault,
        "largest_difference": comparison.largest,
        "tolerance": TOLERANCE,
        "files": len(files),
        "photographs": len(files) - odd,
        "generated": odd,
        "refused": sum(answer.logits is None for answer in reference),
        "ways": {
            name: {"seconds": seconds[name], "largest_difference": comparison.differences.get(name, 0.0)}
            for name in answers
        },
        "model": packed.model_digests,
        "package": {"version": __version__, "sha256": packed.code_digest},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "pillow": PIL.__version__,
            "numpy": numpy.__version__,
        },
        **({"not_certified": {"int8": int8}} if (int8 := _int8(folder)) else {}),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "answers": _answers(predictor, files, reference, similarities),
    }


def _int8(folder: Path) -> Any:
    """Return what is known of the model's file for `runtime=int8`, whose logits are others; None without one."""
    return read_manifest(folder).get("runtimes", {}).get("int8")


def _fault_of_sets(predictor: Predictor, files: Sequence[str], answers: Mapping[str, Sequence[Answer]]) -> str | None:
    """Return which path answers another set than its logits give; the first has logits alone."""
    for path, path_answers in list(answers.items())[1:]:
        for name, answer in zip(files, path_answers, strict=True):
            if answer.logits is None:
                continue
            (expected,) = predictor.predictions(torch.tensor([answer.logits]), 1)
            sets = [None if labels is None else list(labels) for labels in (answer.set, expected.set)]
            if sets[0] != sets[1] or answer.abstain != expected.abstain:
                said, right = (", ".join(labels) if labels else "no set" for labels in sets)
                return f"{path} answers {said} for {name}, and its logits give {right}"
    return None


def _similarities(predictor: Predictor, files: Mapping[str, bytes], answers: Sequence[Answer]) -> list[float | None]:
    """Return how like the training images each file is; None where it was refused or there is no index."""
    if predictor.model.neighbours is None:
        return [None] * len(files)
    pairs = zip(files.values(), answers, strict=True)
    inputs = (None if answer.logits is None else predictor.try_read(data) for data, answer in pairs)
    return [predictor.outputs(x[None])[0].similarity if isinstance(x, torch.Tensor) else None for x in inputs]


def _fault_of_in_domain(
    predictor: Predictor,
    similarities: Sequence[float | None],
    files: Sequence[str],
    answers: Mapping[str, Sequence[Answer]],
) -> str | None:
    """Return which path answers another `in_domain` than the similarity gives; very near the threshold either will do.

    The first path has logits alone.
    """
    index = predictor.model.neighbours
    for path, path_answers in list(answers.items())[1:]:
        for name, answer, similarity in zip(files, path_answers, similarities, strict=True):
            margin = None if index is None or similarity is None else similarity - index.threshold
            expected = None if margin is None else margin >= 0
            near = margin is not None and abs(margin) <= TOLERANCE and answer.in_domain is not None
            if answer.logits is not None and answer.in_domain != expected and not near:
                return f"{path} answers in_domain={answer.in_domain} for {name}, and its similarity gives {expected}"
    return None


def _answers(
    predictor: Predictor,
    files: Mapping[str, bytes],
    answers: Sequence[Answer],
    similarities: Sequence[float | None],
) -> list[dict[str, Any]]:
    """Return what was answered for each file, for comparison with an endpoint."""
    entries: list[dict[str, Any]] = []
    for (name, data), answer, similarity in zip(files.items(), answers, similarities, strict=True):
        entry: dict[str, Any] = {"file": name, "sha256": hashlib.sha256(data).hexdigest()}
        if answer.logits is None:
            entry["refused"] = answer.reason
        else:
            output = Output(torch.tensor(answer.logits), similarity)
            (prediction,) = predictor.answers([output], 1)
            entry |= {"label": prediction.label, "index": prediction.index, "probability": prediction.probability}
            entry |= certainty_fields(prediction)
            if (margin := predictor.margin(output)) is not None:
                entry["margin"] = margin
        entries.append(entry)
    return entries


def summary(certificate: Mapping[str, Any]) -> str:
    """Return the certificate as text."""
    lines = [f"{certificate['photographs']} photographs and {certificate['generated']} generated files"]
    if certificate["refused"]:
        lines[0] += f", of which {certificate['refused']} cannot be read"
    lines.append("")
    for number, (name, path) in enumerate(certificate["ways"].items()):
        result = f"largest difference {path['largest_difference']:.1e}" if number else "the reference"
        lines.append(f"  {name:<10}  {path['seconds']:>6.1f} s   {result}")
    lines.append("")
    if certificate["passed"]:
        largest, tolerance = certificate["largest_difference"], certificate["tolerance"]
        lines.append(f"Certified: no logit differs by more than {largest:.1e} (allowed is {tolerance:g}).")
    if int8 := certificate.get("not_certified", {}).get("int8"):
        lines.append(
            f"Not certified: --runtime int8, right on {int8['valid_acc']:.1%} of {int8['images']} images of valid, "
            f"float32 on {int8['valid_acc_float32']:.1%}."
        )
    return "\n".join(lines)
