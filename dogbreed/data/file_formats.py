"""What the bytes of an image file say before anything decodes them: its format, its metadata, whether it is whole."""

import zlib
from itertools import pairwise

from PIL import Image

PNG = b"\x89PNG\r\n\x1a\n"
LARGE = 1_000_000  # bytes of unpacked metadata; Pillow refuses a PNG with a little more
_UNSUPPORTED = {
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"8BPS": "Photoshop",
    b"FUJIFILMCCD-RAW": "raw",
    b"%PDF": "PDF",
    b"GIMP xcf": "GIMP",
}
_NO_IMAGE = {
    b"<!doctype html": "an HTML page",
    b"<html": "an HTML page",
    b"<?xml": "an XML document",
    b"{": "a text, perhaps JSON",
    b"pk\3\4": "a zip file",
    b"\x1f\x8b": "packed by gzip",
    b"data:image/": "a data URL, which belongs into JSON",
    b"/9j/": "base64, which belongs into JSON",
    b"ivborw0kggo": "base64, which belongs into JSON",
}
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"qt  ", b"isom", b"mp41", b"mp42", b"M4V "), "video"),
    b"crx ": "raw",
}


def is_heic(data: bytes) -> bool:
    """Tell whether the file is HEIC or HEIF, as telephones write it."""
    return _brand(data) == "HEIC"


def why_not(data: bytes) -> str:
    """Return why a file that no decoder recognises is no use."""
    head = data[:1000].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the image; run git lfs pull"
    if head.startswith(b"<") and b"<svg" in head:
        return "SVG is not supported; convert it to JPEG"
    if other := next((name for start, name in _NO_IMAGE.items() if head.startswith(start)), None):
        return f"{other}, not an image"
    kind = _brand(data) or next((name for start, name in _UNSUPPORTED.items() if data.startswith(start)), None)
    if kind == "AVIF" and "AVIF" in Image.OPEN:
        return "a damaged AVIF"
    return f"{kind} is not supported; convert it to JPEG" if kind else "not an image"


def _brand(data: bytes) -> str | None:
    if data[4:8] != b"ftyp":
        return None
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, min(64, len(data)), 4))]
    named = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
    return "AVIF" if "AVIF" in named else next(iter(named), None)


def without_large_metadata(png: bytes) -> bytes:
    """Return a PNG without the texts and colour profiles that unpack to more than Pillow reads."""
    cuts, at, total = [0], len(PNG), 0
    while at + 12 <= len(png):
        length, kind = int.from_bytes(png[at : at + 4]), png[at + 4 : at + 8]
        if kind in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            size = _unpacked_size(kind, png[at + 8 : at + 8 + length])
            total += size
            if size > LARGE or total > 16 * LARGE:
                cuts += [at, at + 12 + length]
        at += 12 + length
    cuts.append(len(png))
    return b"".join(png[start:end] for start, end in zip(cuts[::2], cuts[1::2], strict=True)) if len(cuts) > 2 else png


def _unpacked_size(kind: bytes, body: bytes) -> int:
    rest = body.partition(b"\0")[2]
    if kind == b"tEXt" or (kind == b"iTXt" and rest[:1] == b"\0"):
        return len(body)
    packed = rest[2:].split(b"\0", 2)[-1] if kind == b"iTXt" else rest[1:]
    try:
        return len(zlib.decompressobj().decompress(packed, LARGE + 1))
    except zlib.error:
        return 0


def has_all_scans(jpeg: bytes) -> bool:
    """Tell whether the scans of a JPEG that begin in it cover all coefficients of each component to the last bit."""
    exact: dict[int, set[int]] = {}
    at = 2
    try:
        while (at := jpeg.find(b"\xff", at)) != -1 and at + 4 <= len(jpeg):
            marker = jpeg[at + 1]
            if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9:  # within coded pixels, or without a body
                at += 1 if marker == 0xFF else 2
                continue
            end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4])
            body = jpeg[at + 4 : end]
            if marker in (0xC0, 0xC1, 0xC2):
                exact = {number: set() for number in body[6::3]}
            if marker == 0xDA:
                count = body[0]
                first, last, bits = body[1 + 2 * count : 4 + 2 * count]
                for number in body[1 : 1 + 2 * count : 2] if bits & 15 == 0 else ():
                    exact[number] |= set(range(first, last + 1))
            at = end
    except (IndexError, KeyError, ValueError):
        return False
    return bool(exact) and all(len(coefficients) == 64 for coefficients in exact.values())


def more_pixels(jpeg: bytes) -> bytes:
    """Return bytes which, after those of a JPEG that stops within its pixels, become some of the missing ones."""
    noise = b"\xa5\x3c" * 512
    if b"\xff\xdd" not in jpeg:
        return noise
    restarts = [bytes((0xFF, 0xD0 + number)) for number in range(8)]  # the decoder waits for the next one
    last = max(restarts, key=jpeg.rfind)
    after = dict(pairwise([*restarts, restarts[0]])) if jpeg.rfind(last) != -1 else {last: restarts[0]}
    return noise + after[last] + noise
