"""`model/README.md`: a model card in the form of the Hugging Face Hub, for whoever gets the model without its run."""

from pathlib import Path
from typing import Any

import yaml

from dogbreed.core.files import atomic_write
from dogbreed.core.text import count
from dogbreed.report import training_report
from dogbreed.report.inputs import SPLIT_NAMES, ReportInputs
from dogbreed.report.rendering import shown, without_failing

MOST_CLASSES = 200  # named one by one
_FIGURES: dict[str, tuple[str, dict[str, Any]]] = {  # by their names on the Hub
    "accuracy": ("acc", {}),
    "f1": ("macro_f1", {"args": {"average": "macro"}}),
}


def write_safely(file: Path, run: ReportInputs) -> None:
    """Write the card at the end of a run that has succeeded: a failure is printed, not raised."""
    without_failing(lambda: write(file, run), "model card")


def write(file: Path, run: ReportInputs) -> None:
    """Write the card of a model.

    Args:
        file: Where.
        run: With predictions.

    Raises:
        DogbreedError: The file cannot be written.
    """
    with atomic_write(file) as temporary:
        temporary.write_text(card(run), encoding="utf-8", errors="replace")


def card(run: ReportInputs) -> str:
    """Return the text: YAML that machines read, and Markdown."""
    assert run.predictions is not None
    front = yaml.safe_dump(_front_matter(run), sort_keys=False, allow_unicode=True, width=1000)
    result = training_report.result(run, run.predictions)
    size, names = run.preprocessing.size, run.class_names
    facts = "\n".join(f"| {_escaped(name)} | {_escaped(str(value))} |" for name, value in result["facts"])
    caveats = "".join(f"- {_escaped(sentence)}\n" for sentence in run.caveats.sentences)
    classes = ", ".join(_escaped(shown(name)) for name in names[:MOST_CLASSES])
    if len(names) > MOST_CLASSES:
        classes += f", and {len(names) - MOST_CLASSES:,} more, all of them in `model.json`"
    return f"""\
---
{front}---

# {_escaped(run.title)}

{_escaped(training_report.about(run))}

**{_escaped(result["sentence"])}**

| measured on {len(run.predictions):,} {SPLIT_NAMES[run.predictions.split]} images | |
| --- | --- |
{facts}

## What to know before using it

{caveats or "- Nothing was noticed."}
It answers with one of its {count(len(names), run.noun)} for every image, whatever is on it. For images
unlike those that it was trained on, the accuracy is unknown.

## Use

```python
from dogbreed import Predictor

(prediction,) = Predictor("model").predict(["photo.jpg"])
print(prediction.label, prediction.probability)
```

Images become inputs of {size} x {size} pixels; `model.json` has the preprocessing, the classes, the temperature of the
probabilities and the configuration of the training, `model.safetensors` the weights.

## {"Breeds" if run.noun == "breed" else "Classes"}

{classes}
"""


def _front_matter(run: ReportInputs) -> dict[str, Any]:
    assert run.predictions is not None
    split, data = run.predictions.split, run.root.resolve().name or "images"
    figures = [
        {"type": kind, "value": round(float(run.measured[key]), 6), **more} for kind, (key, more) in _FIGURES.items()
    ]
    task = {"type": "image-classification", "name": "Image classification"}
    dataset = {"name": data, "type": "imagefolder", "split": split}
    return {
        "library_name": "dogbreed",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "pytorch", run.backbone],
        "metrics": list(_FIGURES),
        "model-index": [{"name": run.title, "results": [{"task": task, "dataset": dataset, "metrics": figures}]}],
    }


def _escaped(text: str) -> str:
    """Return text that Markdown leaves as it is, on one line."""
    for character in "\\`*_[]<>|#":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())
