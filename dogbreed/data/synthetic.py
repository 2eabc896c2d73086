"""Synthetic dogs: textured silhouettes in the colours of their breed, to try everything without a download.

Breeds differ in coat, texture and build; position, size, light and scenery vary freely. Every picture has a random
stream of its own, so it does not depend on how many others are drawn.
"""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dogbreed.core.errors import DogbreedError
from dogbreed.data.layout import SPLITS

MARKER = "sample.json"
VERSION = 2  # to be raised when the same parameters come to draw other pictures
Colour = tuple[int, int, int]
Ellipse = tuple[float, float, float, float, float]  # x, y of the centre, two radii, brightness


@dataclass(frozen=True)
class Breed:
    """How a synthetic breed looks; lengths are in units of the average body length."""

    name: str
    coat: Colour
    second: Colour  # of the texture
    texture: str  # smooth, stripes, spots, curls, patches or saddle
    pricked: bool  # ears, otherwise they hang
    length: float = 1.0
    legs: float = 0.5
    muzzle: float = 0.16


BREEDS = (
    Breed("Brindle_hound", (158, 104, 58), (58, 40, 30), "stripes", False, 1.1, 0.6, 0.2),
    Breed("Cream_spitz", (236, 208, 158), (252, 240, 214), "smooth", True, 0.75, 0.35, 0.1),
    Breed("Harlequin_dane", (222, 220, 216), (42, 42, 48), "spots", False, 1.0, 0.8, 0.18),
    Breed("Curly_poddle", (98, 62, 46), (148, 104, 80), "curls", False, 0.85, 0.6, 0.16),
    Breed("Saddle_shepherd", (196, 134, 66), (44, 36, 34), "saddle", True, 1.1, 0.55, 0.2),
    Breed("Pied_terrier", (240, 234, 224), (176, 84, 30), "patches", True, 0.75, 0.4, 0.14),
    Breed("Red_dachsel", (176, 76, 36), (120, 50, 26), "smooth", False, 1.35, 0.2, 0.22),
    Breed("Slate_mastiff", (96, 104, 124), (66, 72, 90), "smooth", False, 1.0, 0.5, 0.08),
    Breed("Snow_samling", (242, 242, 244), (206, 208, 216), "curls", True, 0.95, 0.45, 0.14),
    Breed("Coal_retriever", (44, 40, 44), (76, 68, 72), "smooth", False, 1.05, 0.55, 0.17),
    Breed("Tiger_boxel", (214, 152, 74), (70, 44, 34), "stripes", True, 0.9, 0.6, 0.06),
    Breed("Freckled_setter", (228, 216, 202), (156, 70, 34), "spots", False, 1.15, 0.6, 0.2),
)
# Top and bottom of the wall or the sky, then of the floor: meadow, wood, beach, room, snow.
_SCENES: tuple[tuple[Colour, Colour, Colour, Colour], ...] = (
    ((112, 168, 224), (206, 226, 240), (98, 146, 62), (62, 104, 40)),
    ((84, 116, 78), (140, 160, 104), (120, 140, 70), (84, 98, 50)),
    ((150, 190, 220), (226, 226, 214), (222, 200, 156), (190, 164, 118)),
    ((164, 178, 188), (140, 154, 166), (150, 104, 66), (112, 74, 46)),
    ((196, 204, 214), (228, 232, 238), (236, 240, 246), (206, 214, 226)),
)


def make_sample(root: Path, *, classes: int = 6, train: int = 24, valid: int = 8, test: int = 8, seed: int = 0) -> None:
    """Draw a dataset of synthetic breeds in the layout of dogImages, unless it is there already.

    Args:
        root: Folder to make; one that `make_sample` made before with other parameters is replaced.
        classes: How many breeds, at most twelve.
        train: Training pictures per breed.
        valid: Validation pictures per breed.
        test: Test pictures per breed.
        seed: Another seed gives other pictures.

    Raises:
        DogbreedError: A number is out of range, the folder is not ours to replace, or it cannot be written.
    """
    if not 1 <= classes <= len(BREEDS):
        raise DogbreedError(
            f"There are {len(BREEDS)} synthetic breeds: choose 1 to {len(BREEDS)} classes, not {classes}."
        )
    if min(train, valid, test, seed) < 0:
        raise DogbreedError("The numbers of synthetic pictures and their seed must not be negative: choose 0 or more.")
    root = root.resolve()
    counts = {"train": train, "valid": valid, "test": test}
    marker = {"made_by": "dogbreed", "version": VERSION, "classes": classes, **counts, "seed": seed}
    if _is_made(root, marker):
        return
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}.") as scratch:
            new = Path(scratch, "new")
            for s, split in enumerate(SPLITS):
                for c, breed in enumerate(BREEDS[:classes]):
                    folder = new / split / f"{c + 1:03d}.{breed.name}"
                    folder.mkdir(parents=True)
                    for i in range(counts[split]):
                        rng = np.random.default_rng((seed, s, c, i))
                        quality = int(rng.integers(82, 95))
                        draw(breed, rng).save(folder / f"{breed.name}_{i + 1:05d}.jpg", quality=quality)
            (new / MARKER).write_text(json.dumps(marker, indent=2) + "\n")
            # A second process may have made the same meanwhile, and the folder may have become somebody's.
            if _is_made(root, marker):
                return
            if root.exists():
                os.rename(root, Path(scratch, "old"))
            os.rename(new, root)
    except OSError as error:
        reason = error.strerror or error
        raise DogbreedError(
            f"The synthetic pictures could not be written to {root} ({reason}): make room or choose another data.root."
        ) from error


def _is_made(root: Path, marker: dict[str, object]) -> bool:
    """Tell whether root holds exactly these pictures; raise if it is not ours to replace."""
    if not root.exists():
        return False
    try:
        content = json.loads((root / MARKER).read_bytes())
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or content.get("made_by") != "dogbreed":
        raise DogbreedError(
            f"{root} exists and was not made by data=sample, so it is left alone: choose another data.root or move it."
        )
    return content == marker and all(
        len(list(root.glob(f"{split}/*/*.jpg"))) == marker["classes"] * marker[split]  # type: ignore[operator]
        for split in SPLITS
    )


def draw(breed: Breed, rng: np.random.Generator) -> Image.Image:
    """Draw one picture of a breed, 180 to 360 pixels per side."""
    width, height = (int(side) for side in rng.integers(180, 361, 2))
    scale = min(width / (breed.length + 0.9), height / (breed.legs + 1.1)) * rng.uniform(0.75, 1.0)  # pixels per unit
    origin = (width * rng.uniform(0.42, 0.58), height * rng.uniform(0.84, 0.96))
    mask, shade = _silhouette(_body(breed, rng), (width, height), scale, origin)
    coat = _coat(breed, (width, height), scale, origin[1], rng) * (shade[..., None] / 200)
    picture = mask[..., None] / 255 * (coat - (scene := _scene(width, height, rng))) + scene
    tint = rng.normal(0, 0.04)
    picture *= rng.uniform(0.8, 1.12) * np.array([1 + tint, 1, 1 - tint])
    image = Image.fromarray((picture + rng.normal(0, rng.uniform(1, 6), (height, width, 1))).clip(0, 255).astype("u1"))
    return image if rng.random() < 0.5 else image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _body(breed: Breed, rng: np.random.Generator) -> list[Ellipse]:
    """Return a dog that looks to the right, from back to front; x from its middle, y from the ground."""
    half, legs, reach = breed.length / 2, breed.legs, rng.normal(0, 0.04, 4)
    x, y = half + 0.12 + reach[0], legs + 0.62 + reach[1]  # of the head
    feet = ((-half + 0.16, 0.72), (half - 0.22, 0.72), (-half + 0.08, 1.0), (half - 0.1, 1.0))
    ear = (x - 0.1, y + 0.2, 0.07, 0.14, 0.75) if breed.pricked else (x - 0.12, y - 0.06, 0.08, 0.18, 0.7)
    return [
        (-half - 0.06, legs + 0.36 + reach[2], 0.06, 0.24, 0.85),
        *((foot + reach[3] * light, legs / 2 + 0.05, 0.075, legs / 2 + 0.1, light) for foot, light in feet),
        (0, legs + 0.18, half, 0.2, 1.0),
        (half - 0.22, legs + 0.2, 0.24, 0.25, 1.05),
        (half - 0.02, legs + 0.42, 0.14, 0.26, 1.0),
        (x, y, 0.18, 0.17, 1.08),
        (x + 0.1 + breed.muzzle / 2, y - 0.06, 0.08 + breed.muzzle / 2, 0.085, 1.12),
        ear,
        (x + 0.16 + breed.muzzle, y - 0.03, 0.035, 0.03, 0.1),  # nose
        (x + 0.06, y + 0.05, 0.026, 0.03, 0.05),  # eye
    ]


def _silhouette(
    body: list[Ellipse], size: tuple[int, int], scale: float, origin: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return where the dog is and how bright (200 is plain), each [height, width]; drawn twice as large and halved."""
    layers = [Image.new("L", (2 * size[0], 2 * size[1]), plain) for plain in (0, 200)]
    pens = [ImageDraw.Draw(layer) for layer in layers]
    for x, y, rx, ry, light in body:
        left, top = origin[0] + (x - rx) * scale, origin[1] - (y + ry) * scale
        box = [2 * left, 2 * top, 2 * (left + 2 * rx * scale), 2 * (top + 2 * ry * scale)]
        pens[0].ellipse(box, 255)
        pens[1].ellipse(box, int(200 * light))
    mask, shade = (np.asarray(layer.reduce(2), np.float32) for layer in layers)
    return mask, shade


def _coat(breed: Breed, size: tuple[int, int], scale: float, ground: float, rng: np.random.Generator) -> np.ndarray:
    """Return fur all over the picture, from which the dog is cut, [height, width, 3]."""
    rough, fine = _noise(size, 0.3 * scale, rng), _noise(size, 0.05 * scale, rng)
    above = (ground - np.arange(size[1], dtype=np.float32)[:, None]) / scale
    x = np.arange(size[0], dtype=np.float32) / scale
    amount = {
        "smooth": 0.3 + 0.4 * rough,
        "stripes": 0.5 + 1.6 * np.sin((x + 0.35 * above) * 48 + 2.6 * rough),
        "spots": (_noise(size, 0.1 * scale, rng) - 0.28) * 9,
        "curls": 0.5 + 1.1 * np.sin(5 * fine + 3 * rough),
        "patches": (rough - 0.1) * 12,
        "saddle": (above - breed.legs - 0.2 + 0.12 * rough) * 12,
    }[breed.texture].clip(0, 1)[..., None]
    coat, second = (np.array(colour) * rng.normal(1, 0.07) for colour in (breed.coat, breed.second))
    return (coat + amount * (second - coat)) * (1 + 0.08 * fine[..., None])


def _scene(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Return a blurred place to stand in, [height, width, 3]."""
    scene = np.array(_SCENES[rng.integers(len(_SCENES))], np.float32) * rng.normal(1, 0.06, (4, 1))
    horizon, rows = rng.uniform(0.4, 0.7), np.linspace(0, 1, height)[:, None]
    upper = scene[0] + (scene[1] - scene[0]) * (rows / horizon).clip(0, 1)
    lower = scene[2] + (scene[3] - scene[2]) * ((rows - horizon) / (1 - horizon)).clip(0, 1)
    blotches = 1 + 0.12 * _noise((width, height), width / 6, rng) + 0.05 * _noise((width, height), 6, rng)
    return np.where(rows < horizon, upper, lower)[:, None] * blotches[..., None]


def _noise(size: tuple[int, int], cell: float, rng: np.random.Generator) -> np.ndarray:
    """Return a smooth random field between about -1 and 1 whose bumps are `cell` pixels wide, [height, width]."""
    columns, rows = (max(2, round(side / cell) + 1) for side in size)
    grid = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC))
