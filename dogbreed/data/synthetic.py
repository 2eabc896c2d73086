"""Made-up dogs, drawn on the spot, so that everything can be tried without a download.

Breeds differ in coat, texture and build, and overlap in each of these; place, pose, light and scenery vary freely.
Every picture has a random stream of its own, so it does not depend on how many others are drawn.
"""

import json
import math
import os
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from dogbreed.core.errors import DogbreedError

MARKER = "sample.json"
VERSION = 1  # to be raised when the same parameters come to draw other pictures
SPLITS = ("train", "valid", "test")
Colour = tuple[int, int, int]
Points = np.ndarray


@dataclass(frozen=True)
class Breed:
    """How a made-up breed looks; lengths are in units of the average body length."""

    name: str
    coat: Colour
    second: Colour  # of stripes, spots, patches
    texture: str  # smooth, brindle, spots, curls, patches or saddle
    ears: str  # pricked, floppy, long or button
    tail: str  # curl, straight, plume or stub
    length: float = 1.0
    girth: float = 0.27
    legs: float = 0.55
    muzzle: float = 0.3
    head: float = 0.24


BREEDS = (
    Breed("Brindle_hound", (150, 100, 58), (58, 40, 30), "brindle", "long", "straight", 1.15, 0.24, 0.62, 0.38, 0.22),
    Breed("Cream_spitz", (236, 214, 172), (250, 240, 215), "smooth", "pricked", "curl", 0.72, 0.31, 0.38, 0.17, 0.25),
    Breed("Harlequin_dane", (222, 220, 216), (42, 42, 48), "spots", "floppy", "straight", 1.0, 0.26, 0.85, 0.33, 0.23),
    Breed("Curly_poddle", (92, 64, 48), (140, 100, 78), "curls", "floppy", "stub", 0.85, 0.28, 0.6, 0.27, 0.26),
    Breed("Saddle_shepherd", (186, 132, 72), (44, 36, 34), "saddle", "pricked", "plume", 1.1, 0.27, 0.58, 0.33, 0.23),
    Breed("Pied_terrier", (238, 234, 224), (162, 92, 44), "patches", "button", "stub", 0.72, 0.23, 0.42, 0.25, 0.23),
    Breed("Red_dachsel", (164, 82, 42), (120, 56, 30), "smooth", "long", "straight", 1.35, 0.22, 0.2, 0.36, 0.22),
    Breed("Slate_mastiff", (104, 108, 120), (70, 74, 86), "smooth", "button", "straight", 1.0, 0.36, 0.5, 0.16, 0.32),
    Breed("Snow_samling", (240, 238, 236), (214, 212, 212), "curls", "pricked", "plume", 0.95, 0.34, 0.5, 0.24, 0.27),
    Breed("Coal_retriever", (46, 42, 44), (70, 64, 66), "smooth", "floppy", "plume", 1.05, 0.29, 0.55, 0.28, 0.26),
    Breed("Tiger_boxel", (196, 142, 84), (74, 50, 38), "brindle", "button", "stub", 0.88, 0.3, 0.58, 0.15, 0.28),
    Breed("Freckled_setter", (226, 216, 204), (150, 72, 38), "spots", "long", "plume", 1.1, 0.24, 0.64, 0.34, 0.21),
)


def make_sample(root: Path, *, classes: int = 6, train: int = 24, valid: int = 8, test: int = 8, seed: int = 0) -> None:
    """Draw a dataset of made-up breeds in the layout of dogImages, unless it is there already.

    Args:
        root: Folder to make; one that `make_sample` made before with other parameters is replaced.
        classes: How many breeds, at most twelve.
        train: Training pictures of each breed.
        valid: Validation pictures of each breed.
        test: Test pictures of each breed.
        seed: Another seed gives other pictures.
    """
    if not 1 <= classes <= len(BREEDS):
        raise DogbreedError(
            f"There are {len(BREEDS)} made-up breeds: ask for 1 to {len(BREEDS)} classes, not {classes}."
        )
    if min(train, valid, test, seed) < 0:
        raise DogbreedError("The numbers of made-up pictures and their seed must not be negative: choose 0 or more.")
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
            f"The made-up pictures could not be written to {root} ({reason}): make room or choose another data.root."
        ) from error


def _is_made(root: Path, marker: dict[str, object]) -> bool:
    """Whether root holds just these pictures; an error if it is not ours to replace."""
    if not root.exists():
        return False
    try:
        found = json.loads((root / MARKER).read_bytes())
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get("made_by") != "dogbreed":
        raise DogbreedError(
            f"{root} exists and was not made by data=sample, so it is left alone: choose another data.root or move it."
        )
    return found == marker and all(
        len(list(root.glob(f"{split}/*/*.jpg"))) == marker["classes"] * marker[split]  # type: ignore[operator]
        for split in SPLITS
    )


def draw(breed: Breed, rng: np.random.Generator) -> Image.Image:
    """Draw one picture of a breed."""
    width, height = (int(side) for side in rng.integers(180, 361, 2))
    picture, ground = _scenery(width, height, rng)
    dog = _Dog(breed, width, height, ground, rng)
    # Light from above: the upper rim of the body is brighter, the belly darker.
    blur = max(2.0, 0.1 * dog.scale)
    step = max(1, int(blur))
    soft = np.pad(np.asarray(_blurred(dog.mask, blur), np.float32) / 255, ((step, step), (0, 0)), "edge")
    lift = soft[2 * step :] - soft[: -2 * step]
    left, top, right, bottom = box = _box(dog.mask)
    shade = np.asarray(dog.shade.reduce(2, box), np.float32) / 200
    shade *= 1 + 0.32 * lift[top // 2 : bottom // 2, left // 2 : right // 2]
    coat = _coat(breed, dog, box, rng) * shade[..., None]

    canvas = _image(picture)
    canvas.paste((20, 22, 20), mask=_blurred(dog.shadow, blur))
    canvas.paste(_image(coat), (left // 2, top // 2), dog.mask.reduce(2, box))
    left, top, right, bottom = box = _box(dog.details)
    details = dog.details.crop(box).reduce(2)
    canvas.paste(details, (left // 2, top // 2), details)
    return _photograph(canvas, rng)


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _box(drawing: Image.Image) -> tuple[int, int, int, int]:
    """The part of a drawing that is not empty, in whole pixels of the picture, which is half as large."""
    left, top, right, bottom = drawing.getbbox() or (0, 0, *drawing.size)
    return left // 2 * 2, top // 2 * 2, (right + 1) // 2 * 2, (bottom + 1) // 2 * 2


def _blurred(mask: Image.Image, radius: float) -> Image.Image:
    """Halve and blur a mask; what is blurred needs few pixels meanwhile."""
    small = mask.reduce(8).filter(ImageFilter.GaussianBlur(radius / 4))
    return small.resize((mask.width // 2, mask.height // 2), Image.Resampling.BILINEAR)


def _photograph(canvas: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Light, lens and sensor."""
    if rng.random() < 0.5:
        canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.1)))
    pixels = np.asarray(canvas, np.float32)
    tint = rng.normal(0, 0.05)
    pixels = pixels * (rng.uniform(0.72, 1.18) * np.array([1 + tint, 1, 1 - tint], np.float32))
    grain = rng.standard_normal(pixels.shape[:2], np.float32)[..., None] * rng.uniform(1.5, 7)
    return _image(pixels + grain)


def _noise(width: int, height: int, cell: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth random field between about -1 and 1 whose bumps are `cell` pixels wide."""
    size = (max(2, round(width / cell) + 1), max(2, round(height / cell) + 1))
    grid = rng.uniform(-1, 1, (size[1], size[0])).astype(np.float32)
    method = Image.Resampling.BICUBIC if cell > 5 else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(grid).resize((width, height), method))


def _coat(breed: Breed, dog: "_Dog", box: tuple[int, int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Fill the box around the dog with fur, from which it is cut."""
    left, top, right, bottom = (side // 2 for side in box)
    width, height, unit = right - left, bottom - top, dog.scale
    rough = _noise(width, height, 0.35 * unit, rng)
    x = np.arange(width, dtype=np.float32) / unit
    y = np.arange(top, bottom, dtype=np.float32)[:, None] / unit
    if breed.texture == "brindle":
        wave = np.sin((x + 0.35 * y) * rng.uniform(42, 56) + 2.6 * rough)
        amount = np.clip(wave * 1.6 + 0.2 + _noise(width, height, 0.12 * unit, rng), 0, 1) * 0.9
    elif breed.texture == "spots":
        amount = np.clip((_noise(width, height, 0.1 * unit, rng) - rng.uniform(0.2, 0.34)) * 9, 0, 1)
    elif breed.texture == "patches":
        amount = np.clip((rough - rng.uniform(-0.05, 0.25)) * 12, 0, 1)
    elif breed.texture == "saddle":
        amount = np.clip((dog.back(y * unit) + 0.12 * rough) * 9, 0, 1)
    elif breed.texture == "curls":
        fine = _noise(width, height, max(2.0, 0.045 * unit), rng)
        amount = np.clip(0.5 + 1.1 * np.sin(5 * fine + 3 * rough), 0, 1)
    else:
        amount = np.clip(0.4 + 0.5 * rough, 0, 1) * 0.7
    grain = 1 + 0.07 * _noise(width, height, max(1.5, 0.02 * unit), rng)
    base = np.array(breed.coat, np.float32) * np.float32(rng.normal(1, 0.09)) + rng.normal(0, 5, 3).astype(np.float32)
    second = np.array(breed.second, np.float32) * np.float32(rng.normal(1, 0.09))
    return (base + amount[..., None] * (second - base)) * grain[..., None]


_SCENES: tuple[tuple[Colour, Colour, Colour, Colour], ...] = (  # top and bottom of the wall or sky, then of the floor
    ((112, 168, 224), (206, 226, 240), (98, 146, 62), (62, 104, 40)),  # meadow
    ((84, 116, 78), (140, 160, 104), (120, 140, 70), (84, 98, 50)),  # edge of a wood
    ((150, 190, 220), (226, 226, 214), (222, 200, 156), (190, 164, 118)),  # beach
    ((214, 196, 172), (196, 176, 150), (150, 104, 66), (112, 74, 46)),  # room with wooden floor
    ((164, 178, 188), (140, 154, 166), (178, 172, 168), (140, 134, 132)),  # room with carpet
    ((196, 204, 214), (228, 232, 238), (236, 240, 246), (206, 214, 226)),  # snow
)


def _scenery(width: int, height: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """A place to stand in, and how far down the picture its floor begins."""
    scene = int(rng.integers(len(_SCENES)))
    horizon = rng.uniform(0.4, 0.72)
    colours = [np.array(c, np.float32) * rng.normal(1, 0.06) + rng.normal(0, 8, 3) for c in _SCENES[scene]]
    full, width, height = (width, height), width // 2, height // 2  # it is out of focus: half the pixels do
    rows = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    upper = colours[0] + (colours[1] - colours[0]) * np.clip(rows / horizon, 0, 1)
    lower = colours[2] + (colours[3] - colours[2]) * np.clip((rows - horizon) / (1 - horizon), 0, 1)
    pixels = np.where(rows < horizon, upper, lower)[:, None, :].repeat(width, 1)
    image = _image(pixels)
    pen = ImageDraw.Draw(image)
    indoors = scene in (3, 4)
    for _ in range(int(rng.integers(2, 7))):
        x, size = rng.uniform(0, width), rng.uniform(0.06, 0.22) * width
        y = horizon * height
        tone = tuple(int(v) for v in np.clip(rng.uniform(0.55, 1.15) * colours[int(rng.integers(4))], 0, 255))
        if indoors and rng.random() < 0.6:  # frames, windows, cupboards
            top = rng.uniform(0.05, 0.7) * y
            pen.rectangle(
                (x, top, x + size, top + size * rng.uniform(0.6, 1.6)), tone, tuple(int(0.7 * v) for v in tone)
            )
        elif indoors or rng.random() < 0.3:  # cushions, balls, stones
            bright = tuple(int(v) for v in rng.integers(50, 230, 3))
            low = rng.uniform(y, height)
            pen.ellipse((x - size / 3, low - size / 3, x + size / 3, low + size / 4), bright)
        elif rng.random() < 0.5:  # trees
            pen.rectangle((x - size / 12, y - size, x + size / 12, y + 2), (92, 70, 52))
            for dx, dy in ((-0.3, -1.0), (0.3, -1.1), (0, -1.45)):
                cx, cy = x + dx * size, y + dy * size
                pen.ellipse((cx - size / 2, cy - size / 2, cx + size / 2, cy + size / 2), (64, 104, 52))
        else:  # bushes
            pen.ellipse((x - size, y - size * 0.5, x + size, y + size * 0.3), tone)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.4))).resize(full, Image.Resampling.BILINEAR)
    field = 9 * _noise(*full, 28, rng) + 8 * _noise(*full, 3, rng)
    return np.asarray(image, np.float32) + field[..., None], horizon


class _Dog:
    """Draws the outline, the shading of its parts and the details, at twice the size of the picture."""

    def __init__(self, breed: Breed, width: int, height: int, horizon: float, rng: np.random.Generator) -> None:
        self.rng = rng
        size = (2 * width, 2 * height)
        self.mask, self.shadow = Image.new("L", size), Image.new("L", size)
        self.shade = Image.new("L", size, 200)  # not black, which would show as a line around the dog
        self.details = Image.new("RGBA", size)
        self.pens = {name: ImageDraw.Draw(getattr(self, name)) for name in ("mask", "shade", "shadow", "details")}
        vary = lambda value: float(value * rng.normal(1, 0.07))  # noqa: E731
        self.breed = breed
        self.length, self.girth, self.legs = vary(breed.length), vary(breed.girth), vary(breed.legs)
        self.muzzle, self.head = vary(breed.muzzle), vary(breed.head)
        self.flip = rng.choice((-1, 1))
        self.tilt = rng.normal(0, 0.05)
        pose = rng.choice(("stand", "sit", "face"), p=(0.5, 0.2, 0.3))
        wide, tall, middle = {
            "stand": (self.length + 1.1, self.legs + 2 * self.girth + 0.75, 0.1),
            "sit": (0.62 * self.length + 0.95, self.legs + self.length * 0.75 + 0.75, 0.1),
            "face": (1.25, 1.35, 0.0),
        }[pose]
        self.scale = float(min(width / wide, height / tall) * rng.uniform(0.62, 1.02))
        spare_x = max(0.0, width - wide * self.scale)
        low = max(horizon + 0.08, tall * self.scale / height)
        base = height * (1.02 if pose == "face" else rng.uniform(min(low, 0.97), 0.98))
        self.origin = np.array((width / 2 + rng.uniform(-0.5, 0.5) * spare_x - self.flip * middle * self.scale, base))
        getattr(self, f"_{pose}")()

    def back(self, y: np.ndarray) -> np.ndarray:
        """How far rows of the picture lie above the middle of the body."""
        return (self.origin[1] - y) / self.scale - self.saddle

    def place(self, points: Points) -> list[tuple[float, float]]:
        """From lengths of the dog, y upwards from the ground, to pixels."""
        sin, cos = math.sin(self.tilt), math.cos(self.tilt)
        x = (points[:, 0] * cos - points[:, 1] * sin) * self.flip
        y = -(points[:, 0] * sin + points[:, 1] * cos)
        placed = 2 * (np.stack((x, y), 1) * self.scale + self.origin)
        return [(float(a), float(b)) for a, b in placed]

    def fur(self, points: Points, shade: float = 1.0) -> None:
        outline = self.place(points)
        self.pens["mask"].polygon(outline, 255)
        self.pens["shade"].polygon(outline, int(200 * shade))

    def detail(self, points: Points, colour: tuple[int, ...]) -> None:
        self.pens["details"].polygon(self.place(points), (*colour, 255))

    def cast(self, width: float) -> None:
        self.pens["shadow"].polygon(self.place(_oval(0, 0, width, 0.07)), 130)

    def _stand(self) -> None:
        back, front, top = -self.length / 2, self.length / 2, self.legs + self.girth
        self.saddle = top + 0.02
        self.cast(0.62 * self.length)
        for x, shade in ((back + 0.14, 0.72), (front - 0.06, 0.72)):
            self._leg(x, top, shade)
        self._tail(back - 0.02, top + 0.5 * self.girth)
        waist = self.girth * self.rng.uniform(0.8, 0.95)
        self.fur(_limb(back, top, waist, front, top, self.girth))
        for x in (back, front):
            self._leg(x + self.rng.uniform(-0.06, 0.06), top, 1.0)
        x, y = front + 0.22, top + self.girth + 0.22 + self.rng.uniform(-0.1, 0.08)
        self.fur(_limb(front, top + 0.25 * self.girth, 0.75 * self.girth, x - 0.04, y - 0.04, 0.7 * self.head), 0.97)
        self._profile(x, y)

    def _sit(self) -> None:
        long, chest = 0.62 * self.length, self.legs + 0.1
        back, front, top = -long / 2, long / 2, chest + 0.42 * self.length
        self.saddle = 0.45 * top + self.girth
        self.cast(0.6 * long + self.girth)
        self._tail(back - self.girth, 0.16)
        self._leg(front - 0.08, top - 0.1, 0.72)
        self.fur(_limb(back, self.girth, 1.1 * self.girth, front, top - 0.15, 0.92 * self.girth))
        self.fur(_oval(back + 0.06, 0.85 * self.girth, 1.05 * self.girth, 0.85 * self.girth), 1.06)
        self.fur(_limb(back + 0.1, 0.06, 0.06, back + 0.1 + 0.9 * self.girth, 0.06, 0.07), 0.95)
        self._leg(front + 0.02, top - 0.1, 1.0)
        x, y = front + 0.14, top + self.girth + 0.08
        self.fur(_limb(front, top - 0.12, 0.9 * self.girth, x - 0.02, y - 0.04, 0.75 * self.head), 0.97)
        self._profile(x, y)

    def _leg(self, x: float, top: float, shade: float) -> None:
        foot, thick = x + self.rng.uniform(-0.07, 0.1), 0.26 * self.girth + 0.02
        self.fur(_limb(x, top - 0.3 * self.girth, 0.62 * self.girth, foot, 0.06, thick), shade)
        self.fur(_oval(foot + 0.05, 0.05, 0.05 + thick, 0.065), shade * 0.92)

    def _tail(self, x: float, y: float) -> None:
        wag = self.rng.uniform(-0.15, 0.2)
        if self.breed.tail == "stub":
            self.fur(_limb(x, y, 0.09, x - 0.12, y + 0.1, 0.05), 0.9)
        elif self.breed.tail == "curl":
            turns = np.linspace(-0.6, 4.4, 14) + wag
            ring = np.stack((x + 0.03 - 0.16 * np.sin(turns), y + 0.24 - 0.16 * np.cos(turns)), 1)
            self.fur(_limb(x + 0.05, y, 0.1, ring[0, 0], ring[0, 1], 0.09), 0.92)
            for (x0, y0), (x1, y1) in pairwise(ring):
                self.fur(_limb(x0, y0, 0.08, x1, y1, 0.08), 0.92)
        elif self.breed.tail == "plume":
            self.fur(_limb(x + 0.06, y, 0.07, x - 0.28, y - 0.02 + wag, 0.14), 0.9)
            self.fur(_limb(x - 0.28, y - 0.02 + wag, 0.14, x - 0.5, y + 0.14 + wag, 0.03), 0.9)
        else:
            self.fur(_limb(x + 0.06, y, 0.075, x - 0.24, y + 0.12 + wag, 0.05), 0.9)
            self.fur(_limb(x - 0.24, y + 0.12 + wag, 0.05, x - 0.4, y + 0.34 + wag, 0.025), 0.9)

    def _profile(self, x: float, y: float) -> None:
        """The head from the side."""
        r, tip = self.head, x + 0.55 * self.head + self.muzzle
        low = y - 0.3 * r
        if self.breed.ears == "pricked":
            self.fur(
                np.array(((x - 0.45 * r, y + 0.6 * r), (x + 0.25 * r, y + 0.8 * r), (x + 0.1 * r, y + 1.9 * r))), 0.7
            )
        if self.rng.random() < 0.5:
            self._collar(x - 0.5 * r, y - 0.8 * r, x + 0.55 * r, y - 1.15 * r)
        if self.rng.random() < 0.35:
            self.detail(_limb(tip - 0.14, low - 0.06, 0.045, tip - 0.1, low - 0.24, 0.05), (226, 112, 122))
        self.fur(_oval(x, y, r, 0.94 * r))
        self.fur(_limb(x + 0.2 * r, low, 0.62 * r, tip - 0.06, low - 0.02, 0.36 * r), 1.1)
        self.detail(_limb(x + 0.75 * r, low - 0.26 * r, 0.012, tip - 0.08, low - 0.2 * r, 0.012), (52, 34, 32))
        self.detail(_oval(tip + 0.1 * r, low + 0.16 * r, 0.2 * r, 0.16 * r), (30, 26, 28))
        self._eye(x + 0.42 * r, y + 0.28 * r, 0.13 * r)
        if self.breed.ears == "pricked":
            self.fur(
                np.array(((x - 0.7 * r, y + 0.5 * r), (x + 0.05 * r, y + 0.85 * r), (x - 0.3 * r, y + 1.95 * r))), 0.86
            )
        elif self.breed.ears == "button":
            self.fur(
                np.array(((x - 0.7 * r, y + 0.6 * r), (x + 0.1 * r, y + 1.15 * r), (x + 0.25 * r, y + 0.35 * r))), 0.78
            )
        else:
            drop = 1.75 if self.breed.ears == "long" else 1.0
            self.fur(_limb(x - 0.4 * r, y + 0.6 * r, 0.22 * r, x - 0.5 * r, y + (0.6 - drop) * r, 0.38 * r), 0.76)

    def _face(self) -> None:
        """Head and chest from the front, in a picture of their own."""
        r, x, y = 0.34 * (self.head / 0.24) ** 0.5, 0.0, 0.72
        self.saddle = y + 0.35 * r
        self.fur(_limb(0, -0.2, 0.5 + 0.3 * self.girth, 0, 0.3, 0.28 + 0.2 * self.girth), 0.94)
        if self.rng.random() < 0.6:
            self._collar(-0.9 * r, 0.36, 0.9 * r, 0.36)
        for side in (-1, 1):
            if self.breed.ears == "pricked":
                ear = np.array(((0.95 * r, 0.3 * r), (0.15 * r, 0.85 * r), (0.85 * r, 1.75 * r)))
                self.fur(ear * (side, 1) + (x, y), 0.85)
                self.detail((ear * 0.55 + (0.3 * r, 0.44 * r)) * (side, 1) + (x, y), (196, 142, 132))
        cheek = 0.98 if self.breed.muzzle > 0.25 else 1.12
        self.fur(_oval(x, y, 0.95 * r * cheek, r))
        for side in (-1, 1):
            if self.breed.ears == "button":
                flap = np.array(((0.95 * r, 0.35 * r), (0.35 * r, 1.12 * r), (0.98 * r, 0.98 * r), (1.25 * r, 0.3 * r)))
                self.fur(flap * (side, 1) + (x, y), 0.76)
            elif self.breed.ears != "pricked":
                drop = 1.3 if self.breed.ears == "long" else 0.6
                self.fur(
                    _limb(side * 0.78 * r, y + 0.6 * r, 0.2 * r, side * 1.1 * r, y - (drop - 0.4) * r, 0.32 * r), 0.74
                )
            self._eye(x + side * 0.4 * r, y + 0.18 * r, 0.14 * r)
        snout = (0.5 + 0.5 * self.muzzle) * r
        if self.rng.random() < 0.4:
            self.detail(_limb(x, y - 0.75 * r, 0.16 * r, x, y - 1.0 * r, 0.17 * r), (226, 112, 122))
        self.fur(_limb(x, y - 0.1 * r, 0.3 * r, x, y - 0.5 * r, 0.42 * r), 1.12)
        for side in (-1, 1):
            self.fur(_oval(x + side * 0.27 * snout, y - 0.52 * r, 0.5 * snout, 0.3 * r), 1.16)
            self.detail(_limb(x, y - 0.5 * r, 0.025 * r, x + side * 0.42 * r, y - 0.7 * r, 0.02 * r), (52, 34, 32))
        self.detail(_limb(x, y - 0.3 * r, 0.025 * r, x, y - 0.52 * r, 0.025 * r), (52, 34, 32))
        self.detail(_oval(x, y - 0.24 * r, 0.22 * r, 0.15 * r), (30, 26, 28))
        self.detail(_oval(x - 0.06 * r, y - 0.19 * r, 0.06 * r, 0.035 * r), (120, 116, 120))

    def _eye(self, x: float, y: float, r: float) -> None:
        self.detail(_oval(x, y, 1.25 * r, 1.15 * r), (38, 26, 22))
        self.detail(_oval(x, y, 0.9 * r, 0.9 * r), (92, 56, 28))
        self.detail(_oval(x, y, 0.6 * r, 0.6 * r), (14, 12, 12))
        self.detail(_oval(x + 0.3 * r, y + 0.35 * r, 0.26 * r, 0.26 * r), (250, 250, 250))

    def _collar(self, x0: float, y0: float, x1: float, y1: float) -> None:
        colour = tuple(int(v) for v in self.rng.choice(((190, 40, 44), (40, 84, 170), (44, 128, 84), (226, 160, 40))))
        self.detail(_limb(x0, y0, 0.05, x1, y1, 0.05), colour)
        self.detail(_oval((x0 + x1) / 2, min(y0, y1) - 0.06, 0.05, 0.05), (222, 190, 90))


def _oval(x: float, y: float, rx: float, ry: float) -> Points:
    turn = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    return np.stack((x + rx * np.cos(turn), y + ry * np.sin(turn)), 1)


def _limb(x0: float, y0: float, r0: float, x1: float, y1: float, r1: float) -> Points:
    """Two discs and what lies between them."""
    along = math.atan2(y1 - y0, x1 - x0)
    turn = np.linspace(along - math.pi / 2, along + math.pi / 2, 16)
    first = np.stack((x0 - r0 * np.cos(turn), y0 - r0 * np.sin(turn)), 1)
    last = np.stack((x1 + r1 * np.cos(turn), y1 + r1 * np.sin(turn)), 1)
    return np.concatenate((first, last))
