"""`comparison.html`: runs side by side, and the images on which they disagree; a single self-contained HTML file."""

from contextlib import suppress
from pathlib import Path

from markupsafe import Markup

from dogbreed.core.errors import DogbreedError
from dogbreed.core.text import count
from dogbreed.data.locate import find_folder, find_root
from dogbreed.report.comparison import Comparison, answers_in_words
from dogbreed.report.rendering import Section, fragment, shown, thumbnail, write_page

TEMPLATE = "comparison.html.j2"
MOST_IMAGES = 48


def write(file: Path, comparison: Comparison) -> None:
    """Write the page; a section that cannot be made says so in its place.

    Raises:
        DogbreedError: The file cannot be written.
    """
    sections = [
        Section("runs", "Settings and figures", lambda: fragment(TEMPLATE, "runs", comparison.table())),
        Section("tests", "Paired tests", lambda: _tests(comparison)),
        Section("images", "Images on which they disagree", lambda: _disagreements(comparison)),
    ]
    title = f"Comparison of {count(len(comparison.runs), 'run')}"
    write_page(file, title, lambda: fragment(TEMPLATE, "header", title, comparison.conclusions), sections)


def _tests(comparison: Comparison) -> Markup | None:
    if not comparison.tests:
        return None
    best = comparison.tested[0]
    rows = [
        (test.run.name, test.run.correct, test.only_run, test.only_best, f"{test.p_value:.2g}", f"{test.corrected:.2g}")
        for test in comparison.tests
    ]
    return fragment(TEMPLATE, "tests", best.name, best.correct, len(best.answers), rows)


def _disagreements(comparison: Comparison) -> Markup | None:
    if not comparison.tested:
        return None
    paths, total = comparison.disagreements, len(comparison.tested[0].answers)
    text = f"The runs disagree on {len(paths):,} of {count(total, 'image')}."
    if len(paths) > MOST_IMAGES:
        text += f" The first {MOST_IMAGES} are shown; comparison.json has all."
    if paths:
        text += " In brackets: the probability that a run gives the image's own class."
    folders = _data_folders(comparison)
    photos = []
    for path in paths[:MOST_IMAGES]:
        files = (folder / path for folder in folders if (folder / path).is_file())
        image = next((small for file in files if (small := thumbnail(file)) is not None), None)
        label = comparison.tested[0].answers[path].label
        photos.append((image, shown(label), [shown(line) for line in answers_in_words(comparison, path)], path))
    return fragment(TEMPLATE, "disagreements", text, photos)


def _data_folders(comparison: Comparison) -> list[Path]:
    """Return where the images may lie: the runs' data folders, as they are given and as they are resolved."""
    folders = [Path()]
    for root in dict.fromkeys(run.settings.get("data.root") for run in comparison.tested):
        for find in (find_root, find_folder):
            with suppress(DogbreedError, OSError):
                folders.append(find(str(root), quiet=True))
    return list(dict.fromkeys(folders))
