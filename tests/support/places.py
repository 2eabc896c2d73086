"""Where the checkout lies, and real photographs and weights, where they are at hand."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED_DATA = ROOT.parent / "shared" / "data"
