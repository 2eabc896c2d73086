"""Numbers as people read them."""

from collections.abc import Sequence


def count(number: int, noun: str) -> str:
    """Return a number with its noun: 1 image, 1,000 images, 2 classes, 3 epochs."""
    plural = "" if number == 1 else "es" if noun.endswith(("s", "tch", "x")) else "s"
    return f"{number:,} {noun}{plural}"


def size(bytes: float) -> str:
    """Return a size with its unit: 999 B, 6.29 MB, 1.1 GB."""
    for unit in ("B", "kB", "MB"):
        if round(bytes) < 1000:
            return f"{bytes:.3g} {unit}"
        bytes /= 1000
    return f"{bytes:.3g} GB"


def duration(seconds: float) -> str:
    """Return a time with its unit: 2.5 ms, 9.5 s, 95 s, 2.5 min, 99 min, 1 h 40 min."""
    if seconds < 1:
        return f"{1000 * seconds:.2g} ms" if seconds < 0.01 else f"{1000 * seconds:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 10:
        return f"{seconds / 60:.1f} min"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def join(names: Sequence[str], conjunction: str = "and") -> str:
    """Return names as an enumeration: a, b and c."""
    return f" {conjunction} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
