"""Decoding and preprocessing: exact values against independent references, and hostile bytes."""

import base64
import gzip
import hashlib
import io
import json
import math
import os
import pickle
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile
from support.places import ROOT, SHARED_DATA
from torch import Tensor
from torchvision.models import VGG16_Weights

from dogbreed.core.errors import DogbreedError
from dogbreed.data.decoding import _quiet_pillow
from dogbreed.data.images import (
    IMAGE_SUFFIXES,
    REVISION,
    WHOLE,
    BadImage,
    Preprocessing,
    View,
    check,
    decode,
    dimensions,
    load,
    random_box,
    to_input,
)

pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")

SQUASH = Preprocessing()
CROP = Preprocessing(resize="crop")


def photographs() -> list[Path]:
    """Real photographs, where the checkout has some."""
    files = sorted((SHARED_DATA / "photos").rglob("*.jpg"))
    if not files:
        pytest.skip("there are no photographs under shared/data/photos")
    return files[1::8]


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth picture, uint8 [height, width, 3], that no mirroring or turning leaves as it is."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = x * 255 // max(1, width - 1), y * 255 // max(1, height - 1)
    blue = (x * 3 + y * 5 + seed * 17) % 256 // 2
    return np.stack([red, green, blue], -1).astype(np.uint8)


def encode(
    image: Image.Image | np.ndarray, format: str = "PNG", orientation: int | None = None, **options: Any
) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def pixels(tensor: Tensor) -> np.ndarray:
    return tensor.permute(1, 2, 0).numpy()


def levels(tensor: Tensor, preprocessing: Preprocessing) -> np.ndarray:
    """Undoes the normalisation: [size, size, 3] on the scale from 0 to 255."""
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    return ((tensor.permute(1, 2, 0) * std + mean) * 255).numpy()


JPEG = encode(picture(48, 64), "JPEG", quality=90)
PROGRESSIVE = encode(picture(48, 64), "JPEG", progressive=True)

# ---------------------------------------------------------------------------------------------- decoding: exact values

MODES = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "JPEG": ["L", "RGB", "CMYK"],
    "WEBP": ["RGB", "RGBA"],
    "GIF": ["L", "P"],
    "BMP": ["1", "L", "P", "RGB"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"],
    "PPM": ["1", "L", "RGB", "I"],
}


def as_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode in ("I;16", "I"):
        grey = np.asarray(image.convert("L")).astype(np.uint16 if mode == "I;16" else np.int32) * 257
        return Image.fromarray(grey)
    return image.convert(mode)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from([(name, mode) for name, modes in MODES.items() for mode in modes]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    orientation=st.one_of(st.none(), st.integers(0, 9)),
)
def test_every_kind_of_image_becomes_upright_rgb(
    kind: tuple[str, str], size: tuple[int, int], orientation: int | None
) -> None:
    name, mode = kind
    carries_exif = name in ("PNG", "JPEG", "WEBP", "TIFF")
    image = as_mode(Image.fromarray(picture(*size)), mode)
    data = encode(image, name, orientation if carries_exif else None)
    got = decode(data)
    turned = carries_exif and orientation in (5, 6, 7, 8)
    assert (got.dtype, tuple(got.shape)) == (torch.uint8, (3, *(size[::-1] if turned else size)))
    assert dimensions(data) == (got.shape[2], got.shape[1])
    check(data)
    if name not in ("JPEG", "WEBP", "GIF") and mode not in ("1", "P", "CMYK") and orientation is None:
        reference = (
            picture(*size) if "RGB" in mode else np.asarray(Image.fromarray(picture(*size)).convert("L").convert("RGB"))
        )
        # Floats keep the grey that a byte cuts off, and are rounded.
        np.testing.assert_allclose(pixels(got).astype(int), reference.astype(int), atol=1 if mode == "F" else 0, rtol=0)


TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("name", ["PNG", "TIFF"])
def test_exif_orientation(name: str, orientation: int) -> None:
    stored = picture(5, 9)
    np.testing.assert_array_equal(pixels(decode(encode(stored, name, orientation))), TURNS[orientation](stored))


def test_exif_orientation_of_a_jpeg_decoded_at_a_reduced_scale() -> None:
    stored = picture(256, 320)
    reduced = decode(encode(stored, "JPEG", 6, quality=95), target=32)
    assert tuple(reduced.shape) == (3, 80, 64)
    reference = np.asarray(Image.fromarray(np.rot90(stored, -1)).resize((64, 80), Image.Resampling.BOX))
    assert np.abs(pixels(reduced)[..., :2].astype(int) - reference[..., :2]).max() <= 6


def test_a_deep_grey_picture_is_turned_too() -> None:
    grey = (np.arange(15, dtype=np.uint16) * 4000).reshape(3, 5)
    got = pixels(decode(encode(grey, "PNG", 6)))[..., 0]
    np.testing.assert_array_equal(got, np.rint(np.rot90(grey, -1) / 257))


BROKEN_EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x09"


def test_broken_exif_does_not_spoil_the_picture() -> None:
    data = encode(picture(4, 6), exif=BROKEN_EXIF)
    np.testing.assert_array_equal(pixels(decode(data)), picture(4, 6))


def test_transparency_lies_over_white() -> None:
    colour = picture(16, 16)
    alpha = np.arange(256, dtype=np.uint8).reshape(16, 16)
    share = alpha[..., None] / 255
    got = pixels(decode(encode(np.dstack([colour, alpha]))))
    assert np.abs(got - (colour * share + 255 * (1 - share))).max() <= 0.51
    got = pixels(decode(encode(Image.fromarray(np.dstack([colour[..., 0], alpha]), "LA"))))
    assert np.abs(got - (colour[..., :1] * share + 255 * (1 - share))).max() <= 0.51


@pytest.mark.parametrize("name", ["PNG", "GIF"])
def test_transparent_colour_of_a_palette_becomes_white(name: str) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    image.putpalette([200, 0, 0, 0, 150, 0, 0, 0, 100])
    got = pixels(decode(encode(image, name, transparency=1)))
    assert got.tolist() == [[[200, 0, 0], [255, 255, 255]], [[0, 0, 100], [255, 255, 255]]]


def test_transparent_colour_of_an_rgb_png_becomes_white() -> None:
    stored = np.array([[[1, 2, 3], [9, 8, 7]]], np.uint8)
    assert pixels(decode(encode(stored, transparency=(9, 8, 7)))).tolist() == [[[1, 2, 3], [255, 255, 255]]]


@pytest.mark.parametrize("name", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(name: str) -> None:
    grey = np.array([[0, 128, 129, 255, 256, 257], [1000, 32767, 32768, 65279, 65407, 65535]], np.uint16)
    got = pixels(decode(encode(grey, name)))
    np.testing.assert_array_equal(got, np.repeat(np.rint(grey / 257)[..., None], 3, -1))


@pytest.mark.parametrize("white", [1, 255, 65535])
def test_fractions_are_scaled_by_the_smallest_white_that_holds_them(white: int) -> None:
    share = np.array([[0.0, 0.25, 0.5, 1.0, np.nan, -1.0]], np.float32)
    got = pixels(decode(encode(share * white, "TIFF")))[0, :, 0]
    assert np.abs(got - np.array([0, 63.75, 127.5, 255, 0, 0])).max() <= 0.51


def test_cmyk_jpeg_has_the_colours_it_was_made_from() -> None:
    colour = np.zeros((32, 32, 3), np.uint8)
    colour[:, :16], colour[:, 16:] = (200, 30, 60), (20, 220, 240)
    got = pixels(decode(encode(Image.fromarray(colour).convert("CMYK"), "JPEG", quality=98)))
    assert np.abs(got[:, [4, 28]].astype(int) - colour[:, [4, 28]]).max() <= 8


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_first_of_several_frames(name: str) -> None:
    frames = [Image.new("RGB", (24, 16), colour) for colour in ("red", "blue")]
    exact = {"lossless": True} if name == "WEBP" else {}
    got = pixels(decode(encode(frames[0], name, save_all=True, append_images=frames[1:], **exact)))
    assert got.shape == (16, 24, 3)
    assert np.abs(got.astype(int) - [255, 0, 0]).max() <= (2 if name == "MPO" else 0)


def test_path_and_bytes_are_decoded_alike(tmp_path: Path) -> None:
    file = tmp_path / "a dog.jpg"
    file.write_bytes(JPEG)
    for source in (file, str(file)):
        assert torch.equal(decode(source), decode(JPEG))
        assert torch.equal(load(source, SQUASH), to_input(decode(JPEG), SQUASH))


def test_reduced_scale_leaves_twice_the_target() -> None:
    data = encode(picture(480, 640), "JPEG")
    assert [tuple(decode(data, target=t).shape[1:]) for t in (240, 120, 60, 59, 30, 1)] == [
        (480, 640), (240, 320), (120, 160), (120, 160), (60, 80), (60, 80),
    ]  # fmt: skip
    odd = encode(picture(482, 644), "JPEG")
    assert [tuple(decode(odd, target=t).shape[1:]) for t in (30, 241)] == [(241, 322), (482, 644)]
    assert tuple(decode(encode(picture(480, 640)), target=1).shape[1:]) == (480, 640)


# ------------------------------------------------------------------------------------------------------ what is refused


def refusal(source: bytes | Path, **options: Any) -> BadImage:
    with pytest.raises(BadImage) as caught:
        decode(source, **options)
    assert caught.value.reason in str(caught.value)
    assert str(caught.value).endswith(".")
    return caught.value


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no image at all")
    (tmp_path / "cut.jpg").write_bytes(JPEG[: len(JPEG) // 2])
    expected = {
        "gone.jpg": "missing",
        "": "a folder",
        "empty.jpg": "empty file",
        "text.jpg": "not an image",
        "cut.jpg": "truncated",
    }
    for name, reason in expected.items():
        error = refusal(tmp_path / name)
        assert error.reason == reason
        assert str(tmp_path / name) in str(error)
    assert refusal(b"").reason == "empty file"
    assert refusal(Path("nul\0byte.jpg")).reason.startswith("unreadable")
    assert isinstance(error, ValueError)


def test_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(BadImage("truncated", "a.jpg")))  # noqa: S301
    assert (error.reason, error.path, str(error)) == ("truncated", "a.jpg", "a.jpg cannot be used: truncated.")


def test_formats_that_run_programs_or_are_no_photographs_are_refused() -> None:
    assert refusal(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n").reason == "not an image"
    assert refusal(encode(picture(8, 8), "TGA")).reason == "not an image"
    assert refusal(encode(picture(16, 16), "ICO")).reason == "not an image"
    assert {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".mpo"} <= IMAGE_SUFFIXES
    assert not {".eps", ".pdf", ".ico"} & IMAGE_SUFFIXES


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(50_000, 50_000), (12_000, 12_000), (10_001, 10_000)])
def test_bomb_is_refused_before_it_is_decoded(size: tuple[int, int]) -> None:
    assert refusal(png_header(*size)).reason.startswith("too many pixels")
    with pytest.raises(BadImage, match="too many pixels"):
        check(png_header(*size))


def test_pixel_limit_is_inclusive_and_covers_full_size_not_reduced() -> None:
    png, limit = encode(picture(48, 64)), 48 * 64 - 1
    assert decode(JPEG, max_pixels=48 * 64).numel() == decode(png, target=1, max_pixels=48 * 64).numel() == 3 * 48 * 64
    for data, target in ((JPEG, None), (PROGRESSIVE, 1), (png, 1)):
        assert refusal(data, target=target, max_pixels=limit).reason == (
            f"too many pixels (64 x 48), more than data.max_pixels={limit}"
        )
    assert "side" in refusal(png_header(70_000, 1)).reason


@pytest.mark.parametrize("size", [(48, 64), (47, 61)], ids=["divisible", "odd"])
def test_a_jpeg_that_is_decoded_at_a_reduced_size_may_have_four_times_as_many_pixels(size: tuple[int, int]) -> None:
    data, pixels = encode(picture(*size), "JPEG", quality=90), size[0] * size[1]
    check(data, max_pixels=pixels // 4 + 1)
    reduced = decode(data, target=4, max_pixels=pixels // 4 + 1)
    assert tuple(reduced.shape[1:]) == (math.ceil(size[0] / 4), math.ceil(size[1] / 4))
    small = np.asarray(
        Image.fromarray(picture(*size)).resize((reduced.shape[2], reduced.shape[1]), Image.Resampling.BOX)
    )
    assert np.abs(smooth_channels(reduced) - small[..., :2]).mean() < 6
    for target in (4, 0):
        assert refusal(data, target=target, max_pixels=pixels // 4 - 1).reason.startswith("too many pixels")


def smooth_channels(tensor: Tensor) -> np.ndarray:
    """Red and green, the smooth ones of `picture`."""
    return pixels(tensor)[..., :2].astype(int)


@pytest.mark.slow
def test_photographs_of_100_and_200_megapixels(tmp_path: Path) -> None:
    for width, height in ((12_000, 9_000), (16_320, 12_240), (16_331, 12_247)):
        file = tmp_path / "phone.jpg"
        Image.new("RGB", (width, height), (200, 30, 60)).save(file)
        check(file.read_bytes())
        plain = load(encode(np.full((9, 9, 3), (200, 30, 60), np.uint8)), SQUASH)
        assert torch.allclose(load(file, SQUASH), plain, atol=0.03)


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"restart_marker_blocks": 1}, {"subsampling": 0}],
    ids=["baseline", "progressive", "restarts by row", "restarts by block", "full colour"],
)
@pytest.mark.slow
def test_a_jpeg_that_lacks_only_its_end_is_whole_and_every_shorter_one_is_not(options: dict[str, Any]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    for image in (picture(48, 64), noise):
        data = encode(image, "JPEG", **options)
        for unfinished in (data[:-1], data[:-2], data[:-2] + bytes(100)):
            check(unfinished)
            assert torch.equal(decode(unfinished), decode(data))
            assert torch.equal(decode(unfinished, target=2), decode(data, target=2))
        for end in range(len(data) - 4, 700, -7):
            assert refusal(data[:end]).reason == "truncated"
            with pytest.raises(BadImage, match="truncated"):
                check(data[:end])


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("behind", [False, True], ids=["before the pixels", "behind the pixels"])
@pytest.mark.parametrize("times", [2_000, 200_000], ids=["2 MB", "200 MB"])
@pytest.mark.parametrize(
    "head",
    [(b"iCCP", b"p\0\0"), (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0"), (b"zTXt", b"Comment\0\0"), (b"tEXt", None)],
    ids=["profile", "XMP", "compressed text", "text"],
)
@pytest.mark.slow
def test_large_metadata_do_not_spoil_a_png(head: tuple[bytes, bytes | None], times: int, behind: bool) -> None:
    data = encode(picture(9, 12), exif=exif_of(6))
    text = b"Comment\0" + bytes(2_000_000) if head[1] is None else head[1] + zlib.compress(bytes(1_000) * times)
    at = len(data) - 12 if behind else 33
    got = decode(data[:at] + png_chunk(head[0], text) + data[at:])
    np.testing.assert_array_equal(pixels(got), np.rot90(picture(9, 12), -1), err_msg="the orientation is kept")


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def tiff(levels: np.ndarray, bits: int, **tags: int) -> bytes:
    """An uncompressed TIFF of one strip, written by hand: grey, as many bits as asked for."""
    body, (height, width) = levels.tobytes(), levels.shape
    fields = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 0, 277: 1, 278: height, 279: len(body)}
    fields |= {int(name.removeprefix("t")): value for name, value in tags.items()}
    fields[273] = 8 + 2 + 12 * len(fields) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(fields.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + bytes(4) + body


def test_unusual_tiffs_have_the_right_levels() -> None:
    share = np.array([[0.0, 0.25, 0.5, 1.0]])
    for bits, white, kind, tags in (
        (16, 65_535, "<u2", {}),
        (16, 32_767, "<i2", {"t339": 2}),
        (32, 65_535, "<u4", {}),
        (16, 65_535, "<u2", {"t262": 0}),
        (8, 255, "u1", {"t262": 0}),
    ):
        levels = np.rint(share * white).astype(kind)
        got = pixels(decode(tiff(levels, bits, **tags)))[0, :, 0]
        expected = 255 * (1 - share[0] if tags.get("t262") == 0 else share[0])
        assert np.abs(got - expected).max() <= 0.51, (bits, white, tags)
    twelve = np.array([[0x00, 0x08, 0x00, 0xFF, 0xF0, 0x00]], np.uint8)  # 0, 2048 (big-endian nibbles), 4095, 0
    data = bytearray(tiff(twelve, 12, t256=4))
    got = pixels(decode(bytes(data)))[0, :, 0]
    assert got.tolist() == [0, 128, 255, 0]


@pytest.mark.parametrize(
    ("levels", "bits", "tags", "reason"),
    [
        (np.array([[-5, 9]], "<i2"), 16, {"t339": 2}, "grey levels from -5 to 9"),
        (np.array([[5, 1 << 20]], "<u4"), 32, {}, "none is known to be white"),
        (np.array([[-5, 9]], "i1"), 8, {"t339": 2}, "negative levels"),
        (np.array([[0.5, 1]], "<f4"), 32, {"t339": 3, "t262": 0}, "smallest is white"),
        (np.array([[5, 9]], "u1"), 8, {"t254": 1}, "raw is not supported"),
    ],
)
def test_tiffs_whose_levels_nobody_knows_are_refused(levels: np.ndarray, bits: int, tags: Any, reason: str) -> None:
    assert reason in refusal(tiff(levels, bits, **tags)).reason


def box(brand: bytes) -> bytes:
    return b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1" + brand + os.urandom(2000)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (box(b"heic"), "HEIC"),
        (box(b"mif1"), "HEIC"),
        (box(b"isom"), "video is not supported"),
        (box(b"crx "), "raw is not supported"),
        (b"\xff\x0a" + bytes(99), "JPEG XL is not supported; convert it to JPEG"),
        (b"%PDF-1.7", "PDF is not supported"),
        (b"  <!DOCTYPE html><p>403", "an HTML page, not an image"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "run git lfs pull"),
        (b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg/>', "SVG is not supported; convert it to JPEG"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><Error><Code>AccessDenied", "an XML document, not an image"),
        (b'{"message": "Not Found"}', "perhaps JSON, not an image"),
        (base64.b64encode(b"\xff\xd8\xff\xe0\x00\x10JFIF"), "base64, which belongs into JSON, not an image"),
        (gzip.compress(b"dog"), "packed by gzip, not an image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_of_other_formats_are_named(data: bytes, reason: str) -> None:
    assert reason in refusal(data).reason


@pytest.mark.skipif("AVIF" not in Image.OPEN, reason="this Pillow has no AVIF")
def test_an_avif_that_is_cut_off_is_called_damaged() -> None:
    assert refusal(encode(picture(8, 8), "AVIF")[:200]).reason == "a damaged AVIF"


def test_heic_is_read_where_the_extra_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    data = encode(picture(48, 64), "HEIF", quality=95)
    assert np.abs(pixels(decode(data))[..., :2].astype(int) - picture(48, 64)[..., :2]).mean() < 4
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert refusal(data).reason == "HEIC, which needs the package pillow-heif or a conversion to JPEG"


def swapped_profile(gamma: float = 1.0) -> bytes:
    """A matrix profile whose red is sRGB's green and the other way round."""

    def number(value: float) -> bytes:
        return struct.pack(">i", round(value * 65_536))

    columns = {b"rXYZ": (0.3851, 0.7169, 0.0971), b"gXYZ": (0.4361, 0.2225, 0.0139), b"bXYZ": (0.1431, 0.0606, 0.7139)}
    curve = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    at = curve.index(b"para")
    table = {name: b"XYZ \0\0\0\0" + b"".join(map(number, xyz)) for name, xyz in columns.items()}
    table |= {b"wtpt": b"XYZ \0\0\0\0" + b"".join(map(number, (0.9642, 1, 0.8249)))}
    table |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve[at : at + 32])
    table |= {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 2) + b"p\0" + bytes(78), b"cprt": b"text\0\0\0\0none"}
    entries, body, start = b"", b"", 132 + 12 * len(table)
    for name, value in table.items():
        entries += name + struct.pack(">II", start + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"lcms", 0x04000000, b"mntr", b"RGB ", b"XYZ ") + bytes(12)
    head += b"acsp" + bytes(28) + b"".join(map(number, (0.9642, 1, 0.8249)))
    return head.ljust(128, b"\0") + struct.pack(">I", len(table)) + entries + body


@pytest.mark.parametrize("name", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_embedded_colour_profiles_are_converted_to_srgb(name: str) -> None:
    stored = np.full((16, 16, 3), (180, 60, 20), np.uint8)
    options = {"lossless": True} if name == "WEBP" else {"quality": 98} if name == "JPEG" else {}
    got = pixels(decode(encode(stored, name, icc_profile=swapped_profile(), **options)))
    assert np.abs(got.astype(int) - (60, 180, 20)).max() <= 4
    see_through = np.dstack([stored, np.full((16, 16), 255, np.uint8)])
    if name != "JPEG":
        got = pixels(decode(encode(see_through, name, icc_profile=swapped_profile(), **options)))
        assert np.abs(got.astype(int) - (60, 180, 20)).max() <= 4


def test_profiles_of_srgb_of_other_modes_and_broken_ones_change_nothing() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, swapped_profile()[:200], b"nonsense"):
        np.testing.assert_array_equal(pixels(decode(encode(picture(8, 8), icc_profile=profile))), picture(8, 8))
    grey = picture(8, 8)[..., 0]
    np.testing.assert_array_equal(pixels(decode(encode(grey, icc_profile=swapped_profile())))[..., 0], grey)


def test_pillow_warnings_do_not_leak() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        _quiet_pillow()  # again, because pytest puts other filters in place of those set on import
        refusal(png_header(10_000, 10_000), max_pixels=10**9)
        decode(encode(picture(4, 6), exif=BROKEN_EXIF))
    assert seen == []


@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
def test_truncated_jpeg_by_both_policies(progressive: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(noise, "JPEG", quality=80, subsampling=0, progressive=progressive)
    whole = decode(data)
    for keep in (0.98, 0.85, 0.7):
        cut = data[: int(len(data) * keep)]
        assert refusal(cut).reason == "truncated"
        with pytest.raises(BadImage, match="truncated"):
            check(cut)
        filled = decode(cut, truncated="fill")
        assert filled.shape == whole.shape
        if not progressive:
            assert torch.equal(filled[:, :32], whole[:, :32])
            assert not torch.equal(filled[:, 48:], whole[:, 48:])
    assert torch.equal(decode(data[:-2], truncated="fill"), whole)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_progressive_jpeg_is_filled_wherever_it_ends_after_its_first_scan() -> None:
    first = PROGRESSIVE.index(b"\xff\xda") + 30
    for end in range(first, len(PROGRESSIVE) - 2):
        assert decode(PROGRESSIVE[:end], truncated="fill").shape == (3, 48, 64)


def test_fill_does_not_save_other_formats_or_headers() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for name in ("PNG", "BMP", "WEBP", "TIFF"):
        data = encode(noise, name)
        refusal(data[: len(data) // 2], truncated="fill")
    refusal(JPEG[:100], truncated="fill")
    with pytest.raises(DogbreedError, match="truncated is 'ignore'"):
        decode(JPEG, truncated="ignore")  # type: ignore[arg-type]


SEEDS = [
    JPEG,
    PROGRESSIVE,
    encode(picture(9, 12), "JPEG", 6),
    encode(np.dstack([picture(9, 12), picture(9, 12)[..., 0]])),
    encode(Image.fromarray(picture(9, 12)).convert("P"), "PNG", transparency=bytes(range(200))),
    *(encode(picture(9, 12), name) for name in ("WEBP", "GIF", "BMP", "TIFF", "PPM")),
    encode(picture(9, 12), "TIFF", compression="tiff_lzw"),
]


@st.composite
def hostile(draw: st.DrawFn) -> bytes:
    """Noise after a plausible start, or a valid file cut short, overwritten in places, or lengthened."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    data = data[: draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))]
    for _ in range(draw(st.integers(0, 6)) if data else 0):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data) + draw(st.binary(max_size=20))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.one_of(hostile(), st.binary(max_size=64)), policy=st.sampled_from(["error", "fill"]))
@pytest.mark.slow
def test_any_bytes_give_an_image_or_bad_image(data: bytes, policy: Any) -> None:
    try:
        got = decode(data, truncated=policy, max_pixels=1_000_000)
    except BadImage:
        with pytest.raises(BadImage):
            decode(data, max_pixels=1_000_000)
        return
    assert got.dtype == torch.uint8
    assert got.ndim == 3
    assert got.shape[0] == 3
    assert to_input(got, SQUASH).shape == (3, 224, 224)


@settings(max_examples=100, deadline=None)
@given(data=hostile())
def test_check_refuses_what_decode_refuses(data: bytes) -> None:
    def refused(run: Any) -> bool:
        try:
            run(data, max_pixels=1_000_000)
        except BadImage:
            return True
        return False

    assert refused(check) == refused(decode)


# ------------------------------------------------------------------------------------------------------- to the network


def preset(image: Image.Image) -> Tensor:
    return VGG16_Weights.IMAGENET1K_V1.transforms()(image)


def test_squash_equals_pillows_resize() -> None:
    for file in photographs():
        with Image.open(file) as image:
            rgb = image.convert("RGB")
        reference = np.asarray(rgb.resize((224, 224), Image.Resampling.BILINEAR)).astype(float)
        off = np.abs(levels(to_input(decode(file), SQUASH), SQUASH) - reference)
        assert off.max() <= 2.01
        assert off.mean() < 0.5
        reduced = np.abs(levels(load(file, SQUASH), SQUASH) - reference)
        assert reduced.mean() < 1.0, "decoding at a reduced scale must not change the picture"


def test_crop_equals_torchvisions_preset() -> None:
    for file in photographs():
        with Image.open(file) as image:
            reference = preset(image.convert("RGB"))
        off = (to_input(decode(file), CROP) - reference).abs()
        assert off.max() <= 2.01 / 255 / min(CROP.std)
        assert (load(file, CROP) - reference).abs().mean() < 0.02


@pytest.mark.parametrize("size", [(224, 224), (256, 256), (300, 225), (100, 1599), (490, 31), (7, 5), (1, 1)])
def test_both_ways_of_resizing_match_their_references_for_any_shape(size: tuple[int, int]) -> None:
    stored = picture(*size)
    image = Image.fromarray(stored)
    squashed = to_input(decode(encode(stored)), SQUASH)
    reference = np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR)).astype(float)
    assert np.abs(levels(squashed, SQUASH) - reference).max() <= 2.01
    assert (to_input(decode(encode(stored)), CROP) - preset(image)).abs().max() <= 2.01 / 255 / min(CROP.std)
    assert (squashed.dtype, tuple(squashed.shape), squashed.is_contiguous()) == (torch.float32, (3, 224, 224), True)


def test_normalisation_of_known_levels() -> None:
    preprocessing = Preprocessing(size=2, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    image = torch.tensor([0, 255, 51], dtype=torch.uint8).view(3, 1, 1).expand(3, 4, 4)
    assert to_input(image, preprocessing)[:, 0, 0].tolist() == pytest.approx([0.0, 1.0, -3.2], abs=1e-6)


def test_a_long_strip_does_not_exhaust_the_memory() -> None:
    strip = np.zeros((1, 60_000, 3), np.uint8)
    strip[:, 29_000:31_000] = 255
    got = levels(load(encode(strip), CROP), CROP)
    assert got.min() > 254, "the centre is what is seen"


@pytest.mark.parametrize("preprocessing", [SQUASH, CROP], ids=["squash", "crop"])
@pytest.mark.parametrize("box", [None, (0.1, 0.2, 0.5, 0.7)])
def test_flip_mirrors_the_input(preprocessing: Preprocessing, box: Any) -> None:
    data = encode(picture(90, 120))
    plain, mirrored = (load(data, preprocessing, View(flip, box)) for flip in (False, True))
    assert torch.equal(mirrored, plain.flip(-1))
    assert mirrored.is_contiguous()
    assert not torch.equal(mirrored, plain)


@pytest.mark.parametrize("preprocessing", [SQUASH, CROP], ids=["squash", "crop"])
def test_a_part_is_treated_as_an_image_of_its_own(preprocessing: Preprocessing) -> None:
    stored = picture(100, 200)
    got = load(encode(stored), preprocessing, View(box=(0.25, 0.1, 0.5, 0.8)))
    assert torch.equal(got, load(encode(stored[10:90, 50:150]), preprocessing))
    assert torch.equal(load(encode(stored), preprocessing, View(box=(0, 0, 1, 1))), load(encode(stored), preprocessing))


def test_a_part_of_a_large_jpeg_keeps_its_detail() -> None:
    small = Preprocessing(size=32)
    data = encode(picture(400, 400), "JPEG", quality=95)
    view = View(box=(0.5, 0.25, 0.25, 0.25))
    off = levels(load(data, small, view), small) - levels(to_input(decode(data), small, view), small)
    assert np.abs(off).max() < 1e-3, "100 pixels of the part remain, so nothing may be reduced"


@given(
    box=st.tuples(*[st.floats(0, 0.999)] * 2, *[st.floats(0, 0.001, exclude_min=True)] * 2),
    size=st.tuples(*[st.integers(1, 9)] * 2),
)
@settings(max_examples=30, deadline=None)
def test_the_smallest_part_still_has_a_pixel(box: Any, size: tuple[int, int]) -> None:
    assert load(encode(picture(*size)), Preprocessing(size=4), View(box=box)).isfinite().all()


def test_threads_agree_with_a_serial_run() -> None:
    sources = [encode(picture(60 + i, 80, i), name) for i in range(8) for name in ("JPEG", "PNG", "WEBP")]
    sources += [data[: int(len(data) * 0.9)] for data in sources[::3]]

    def run(data: bytes) -> Tensor:
        return load(data, SQUASH, truncated="fill")

    with ThreadPoolExecutor(8) as pool:
        for got, data in zip(pool.map(run, sources * 2), sources * 2, strict=True):
            assert torch.equal(got, run(data))


# ------------------------------------------------------------------------------------------------- views and parameters


def test_keys_tell_views_apart() -> None:
    boxes = [None, (0, 0, 1, 1), (0.1, 0.2, 0.5, 0.5), (0.1, 0.2, 0.5, np.nextafter(0.5, 1)), (0.2, 0.1, 0.5, 0.5)]
    views = [View(flip, box) for box in boxes for flip in (False, True)]
    assert len({view.key for view in views}) == len(views) == len(set(views))
    assert WHOLE.key == "whole"
    assert View(True, (0.1, 0.2, 0.5, 0.5)).key == "box:0.1,0.2,0.5,0.5:flip"
    assert View(box=(-0.0, 0, np.float64(1), 1)).key == View(box=(0.0, 0.0, 1.0, 1.0)).key == "box:0.0,0.0,1.0,1.0"


@pytest.mark.parametrize(
    "box", [(0, 0, 0, 1), (0.6, 0, 0.5, 1), (-0.1, 0, 1, 1), (0, 0, 1), (0, 0, float("nan"), 1), "0011"]
)
def test_boxes_outside_the_image_are_refused(box: Any) -> None:
    with pytest.raises(DogbreedError, match="box is"):
        View(box=box)


@given(u=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 4))
@settings(max_examples=200, deadline=None)
def test_random_box_lies_inside_with_the_drawn_area_and_ratio(u: tuple[float, ...]) -> None:
    left, top, width, height = random_box(u)
    assert min(left, top) >= 0
    assert max(left + width, top + height) <= 1
    assert width * height == pytest.approx(0.08 + u[0] * 0.92)
    assert 3 / 4 - 1e-9 <= width / height <= 4 / 3 + 1e-9
    View(box=(left, top, width, height))
    assert random_box(np.array(u)) == (left, top, width, height)


def test_random_box_spreads_over_the_image() -> None:
    boxes = np.array([random_box(u) for u in np.random.default_rng(0).random((4000, 4))])
    centre = boxes[:, :2] + boxes[:, 2:] / 2
    assert np.abs(centre.mean(0) - 0.5).max() < 0.02
    ratio = np.log(boxes[:, 2] / boxes[:, 3])
    assert abs(ratio.mean()) < 0.02
    assert ratio.std() > 0.1


def test_random_box_keeps_to_its_ranges() -> None:
    assert random_box((0.3, 0.9, 0.5, 0.5), scale=(1, 1)) == (0, 0, 1, 1)
    _, _, width, height = random_box((0.0, 0.99, 0, 0), scale=(0.25, 0.25), ratio=(1, 1))
    assert (width, height) == pytest.approx((0.5, 0.5))


def test_preprocessing_round_trip_through_json() -> None:
    for values in (SQUASH, CROP, Preprocessing(299, 342, (0.5,) * 3, (0.25, 0.5, 1), "bicubic", "crop")):
        again = Preprocessing.from_dict(json.loads(json.dumps(values.to_dict())))
        assert again == values
        assert hash(again) == hash(values)
    assert Preprocessing.from_dict({}) == Preprocessing()


@pytest.mark.parametrize(
    "values",
    [
        {"size": 0}, {"size": 224.0}, {"size": True}, {"size": "224"}, {"resize_size": -1}, {"mean": [0.5, 0.5]},
        {"mean": 0.5}, {"mean": "abc"}, {"mean": [0, 0, float("inf")]}, {"std": [0.1, 0, 0.1]}, {"std": None},
        {"interpolation": "lanczos4"}, {"interpolation": ["bilinear"]}, {"resize": "stretch"}, {"resize": None},
        {"resize": "crop", "size": 300}, {"colour": "rgb"}, {"size": 224, 5: 1}, [("size", 224)], None,
    ],
)  # fmt: skip
def test_preprocessing_refuses_what_makes_no_sense(values: Any) -> None:
    with pytest.raises(DogbreedError, match="must be"):
        Preprocessing.from_dict(values)


@pytest.mark.parametrize("name", ["bicubic", "nearest"])
def test_interpolation_is_followed(name: str) -> None:
    stored = np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    chosen = Preprocessing(size=32, interpolation=name)
    method = {"bicubic": Image.Resampling.BICUBIC, "nearest": None}[name]
    got = levels(to_input(decode(encode(stored)), chosen), chosen)
    if method is None:
        rows, columns = np.arange(32) * 50 // 32, np.arange(32) * 70 // 32
        reference = stored[rows][:, columns]
    else:
        reference = np.asarray(Image.fromarray(stored).resize((32, 32), method))
    assert np.abs(got - reference).max() <= 2.01


@pytest.mark.slow
def test_every_processor_makes_the_same_input():
    # torch runs what the variable names, on a processor without the instructions too
    has = torch.backends.cpu.get_cpu_capability()
    capabilities = ["default", *(name for name in ("avx2", "avx512") if name.upper() in ("AVX2", has))]
    program = (
        "import hashlib, torch\n"
        "from dogbreed.data.images import Preprocessing, to_input\n"
        "rows, columns = torch.meshgrid(torch.arange(301), torch.arange(417), indexing='ij')\n"
        "image = torch.stack([rows * 7 % 256, columns * 5 % 256, rows * columns % 251], -1).byte().permute(2, 0, 1)\n"
        "for resize in ('squash', 'crop'):\n"
        "    made = to_input(image, Preprocessing(resize=resize))\n"
        "    print(hashlib.sha256(made.numpy().tobytes()).hexdigest())\n"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        ).stdout
        for capability in capabilities
    ]
    assert len(set(said)) == 1
    assert len(said[0].split()) == 2


@pytest.mark.parametrize(
    ("resize", "view", "digest"),
    [
        ("squash", WHOLE, "0c3f4c823f5f1957"),
        ("crop", WHOLE, "bd8efbc948dd5730"),
        ("squash", View(flip=True, box=(0.1, 0.2, 0.5, 0.6)), "13421ae0dda7bd85"),
        ("crop", View(flip=True, box=(0.1, 0.2, 0.5, 0.6)), "a062f1a9d0eaeff3"),
    ],
)
def test_other_numbers_are_another_revision(resize, view, digest):
    """Where this fails, images have become other inputs: raise REVISION, lest old features be served, then mend it."""
    rows, columns = np.meshgrid(np.arange(301), np.arange(417), indexing="ij")
    pixels = np.stack([rows * 7 % 256, columns * 5 % 256, rows * columns % 251], -1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    made = load(file.getvalue(), Preprocessing(resize=resize), view)
    assert (REVISION, hashlib.sha256(made.numpy().tobytes()).hexdigest()[:16]) == (3, digest)
