"""Archives for the tests of downloads and of what is unpacked."""

import io
import warnings
import zipfile


def make_zip(entries: dict[str, bytes], *, mode: int = 0, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip file of these entries, each with the permissions `mode`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, data in entries.items():
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = mode << 16, method
            archive.writestr(info, data)
    return buffer.getvalue()


def dog_images(classes: int = 2, images: int = 2) -> dict[str, bytes]:
    """Return the entries of an archive laid out as dogImages; the images are no images."""
    return {
        f"dogImages/{split}/{c:03d}.Dog/Dog_{i}.jpg": f"{split}{c}{i}".encode() * 50
        for split in ("train", "valid", "test")
        for c in range(classes)
        for i in range(images)
    }
