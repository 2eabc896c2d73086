"""`report.html`: what a run reached, in one file to look at."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dogbreed.checkpoints import written_whole
from dogbreed.config import to_yaml
from dogbreed.data import DogImages


def write(
    file: Path,
    metrics: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
    config: Mapping[str, Any],
    data: DogImages,
) -> None:
    """Writes the report."""
    rows = "".join("<tr>" + "".join(f"<td>{value:.4g}</td>" for value in row.values()) + "</tr>" for row in history)
    head = "".join(f"<th>{name}</th>" for name in (history[0] if history else {}))
    text = f"""<!doctype html><meta charset="utf-8"><title>dogbreed</title>
<h1>{html.escape(str(data.root))}</h1>
<pre>{html.escape(json.dumps(metrics, indent=2))}</pre>
<table><tr>{head}</tr>{rows}</table>
<pre>{html.escape(to_yaml(config))}</pre>
"""
    with written_whole(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
