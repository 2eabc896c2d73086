"""What another process looks at while torch is imported is not looked at again; what is wrong is said by the run."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

RUN = """
import sys
from multiprocessing import active_children
from pathlib import Path
from time import sleep

from dogbreed.data import scan
from dogbreed.data.layout import list_images
from dogbreed.data.scan_ahead import scanning_ahead

root, wait, torch = Path(sys.argv[1]), sys.argv[2] == "wait", sys.argv[3:] == ["torch"]
assert "torch" not in sys.modules
if torch:
    import torch
memory, looks, look = root.with_name("memory.sqlite"), [], scan._look
settings = {"root": str(root), "labels": None, "class_mismatch": "error", "max_pixels": 10**8}
with scanning_ahead(settings, memory):
    while wait and active_children():
        sleep(0.01)
assert not active_children()
scan._look = lambda *arguments: looks.append(arguments) or look(*arguments)
files = [file for folder in sorted(root.glob("*/*/")) for file in list_images(folder)]
print([entry.reason for entry in scan.scan(files, memory=memory)], len(looks))
"""


def run(root: Path, *words: str) -> str:
    ran = subprocess.run([sys.executable, "-c", RUN, root, *words], capture_output=True, text=True)
    assert ran.stderr == ""
    return ran.stdout.strip()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(4):
        file = tmp_path / "images" / ("train", "valid")[number % 2] / f"00{number // 2 + 1}.Dog_{number // 2}" / "a.jpg"
        file.parent.mkdir(parents=True)
        Image.effect_noise((48, 40), 60 + number).save(file)
    return tmp_path / "images"


def test_files_are_looked_at_once(root):
    assert run(root, "wait") == "[None, None, None, None] 0"


def test_what_is_cut_short_is_left_to_the_run(root):
    assert run(root, "no").startswith("[None, None, None, None] ")


def test_where_torch_is_there_nothing_is_done_ahead(root):
    assert run(root, "wait", "torch") == "[None, None, None, None] 4"


def test_what_is_wrong_is_not_said_here(root):
    (root / "valid" / "001.Dog_0").rename(root / "valid" / "001.Cat")
    assert run(root, "wait") == "[None, None, None, None] 4", "the splits have different classes"
