"""One vocabulary, the field's: phrases of the old one, and an identifier that says nothing, do not come back.

A phrase is written here with `_` for a blank, so that this file does not contain what it looks for.
"""

import re
import subprocess
import tokenize
from pathlib import Path

import pytest
from support.places import ROOT

PHRASES = (
    r"For_whoever_changes_it", r"\brooms\b", r"\bthis_room\b", r"\bfloors\b",
    r"asks_(for_)?nothing_from_any", r"asked_/_reached", r"\|_asked_\|_reached", r"want_of_the_means", r"Not_tried",
    r"\bReached_[\d{]", r"among_the_first_five", r"named_rightly", r"Most_often_taken_for", r"The_lesson\.",
    r"What_is_mixed_up", r"Can_its_probabilities_be_trusted", r"Loss_of_guessing", r"told_to_try_again",
    r"something_to_go_on_with", r"starts_anew", r"Not_one_epoch", r"came_to_its_end", r"gives_a_trial_no_end",
    r"This_should_not_have", r"requests_that_mean_harm", r"other_things_to_do_as_well", r"takes_the_machine_away",
    r"Bew[a]re:", r"Features_of_[^.]{1,40}_images_up_to", r"\(features:_(built|hit|off|\{)",
    r"no_part_of_it_before", r"more_is_in\b",
    r"Features_of_1_images", r"none_found_something", r"\ba_like_picture", r"red_spoke_for", r"made_files",
    r"what_the_others_are_held", r"in_four_ways", r"as_it_is_really_gone", r"with_the_reason_why_not",
    r"nothing_of_it_is_left", r"those_in_force", r"behind_the_median", r"with_the_figure_and_the_remedy",
    r"searched_to_its_depth", r"told_and_listed",
)  # fmt: skip
FOUND = re.compile("|".join(PHRASES).replace("_", r"[\s#]+"))

PACKAGES = sorted(
    {f"{top}/{folder.name}" for top in ("dogbreed", "launch") for folder in (ROOT / top).iterdir() if folder.is_dir()}
    - {"dogbreed/__pycache__", "launch/__pycache__"}
)
PLACES = [
    *PACKAGES, "dogbreed/*.py", "launch/*.py", "conf", "tests", "benchmarks", "docs", "*.md", "Makefile", ".ci",
    "pyproject.toml", "mkdocs.yml",
]  # fmt: skip
# The text of a licence, and what an older commit wrote, stay as they are.
EXCLUDED = ("tests/legacy/", "benchmarks/results/")


def files(place: str) -> list[Path]:
    """Tracked files; a pattern with `*` means this folder alone."""
    specification = f":(glob){place}" if "*" in place else place
    command = ["git", "ls-files", "-z", "--", specification]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    text = [name for name in listed if name and not name.startswith(EXCLUDED) and not name.endswith(".png")]
    return [ROOT / name for name in text if (ROOT / name).is_file()]


@pytest.mark.parametrize("place", PLACES)
def test_no_phrase_of_the_old_vocabulary(place: str) -> None:
    assert files(place), f"{place} has no tracked file"
    found = []
    for file in files(place):
        text = file.read_text(encoding="utf-8")
        found += [
            f"{file.relative_to(ROOT)}:{text.count(chr(10), 0, m.start()) + 1}: {m[0]}" for m in FOUND.finditer(text)
        ]
    assert not found


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.slow
def test_no_identifier_that_says_nothing(place: str) -> None:
    found = []
    for file in files(place):
        if file.suffix == ".py":
            with tokenize.open(file) as stream:
                for token in tokenize.generate_tokens(stream.readline):
                    if token.type == tokenize.NAME and token.string.strip("_") == "told":
                        found.append(f"{file.relative_to(ROOT)}:{token.start[0]}: {token.string}")
    assert not found
