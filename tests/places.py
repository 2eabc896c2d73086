"""Where real photographs and weights lie, where they are at hand."""

from pathlib import Path

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
