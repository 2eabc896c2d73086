"""Write `run.tar.xz`: what commit 471d083 left behind, for the tests that today's code still reads it.

    git worktree add ../then 471d083
    cd "$(mktemp -d)" && PYTHONPATH=/path/to/then python /path/to/now/tests/legacy/make.py

The network is torchvision's smallest. Its frozen weights have random signs and one magnitude per layer, so that they
weigh a bit each when packed. The archive holds the images, the weights, a feature store, a run of two epochs and, in
`expected.json`, what that commit answered: the logits of every test image, and the metrics after a third epoch.
"""

import json
import shutil
import sys
import tarfile
from pathlib import Path

import PIL
import torch
import torchvision
from dogbreed.predictor import Predictor  # as the module was called then
from dogbreed.sample import make_sample
from PIL import Image
from safetensors.torch import save_file

from dogbreed.train import main

BACKBONE = "shufflenet_v2_x0_5"
SETTINGS = (
    "data.root=dogs", "data.size=64", "data.batch_size=4", "data.num_workers=0",
    f"model.backbone={BACKBONE}", "model.weights=weights.safetensors", "model.lr=0.001",
    "trainer.accelerator=cpu", "trainer.devices=1", "~loggers.tensorboard", "+loggers.csv={}", "cache.dir=cache",
)  # fmt: skip
KEPT = ("dogs", "weights.safetensors", "cache", "run", "expected.json")
NOT_READ = ("report.html", "csv")  # of the run's folder: written for people, and large


def write_images() -> None:
    make_sample(Path("dogs"), classes=2, train=3, valid=2, test=2)
    for file in Path("dogs").rglob("*.jpg"):
        Image.open(file).resize((64, 64)).save(file, quality=80)


def write_weights() -> None:
    """Kaiming's magnitude per layer, random signs; batch norm with statistics that are not the usual 0 and 1."""
    torch.manual_seed(0)
    state = torchvision.models.get_model(BACKBONE, weights=None).state_dict()
    for name, value in state.items():
        if value.dim() > 1:
            value.copy_(torch.randn_like(value).sign() * (2 / value[0].numel()) ** 0.5)
        elif name.endswith(("running_mean", "bias")):
            value.copy_(torch.randn_like(value).sign() * 0.125)
    save_file({name: value for name, value in state.items() if not name.startswith("fc.")}, "weights.safetensors")


def train(folder: str, epochs: int, *more: str) -> None:
    torch.set_num_threads(1)
    assert main([*SETTINGS, f"output_dir={folder}", f"trainer.max_epochs={epochs}", *more]) == 0


def pack(target: Path) -> None:
    def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        return entry

    with tarfile.open(target, "w:xz", preset=9) as archive:
        for name in KEPT:
            archive.add(name, filter=anonymous)
    print(f"{target}: {target.stat().st_size:,} bytes")


write_images()
write_weights()
train("run", 2)
files = sorted(Path("dogs/test").rglob("*.jpg"))
predictor = Predictor("run/model")
logits = predictor.logits(torch.stack([predictor.read(file) for file in files]))
shutil.copytree("run", "longer")
train("longer", 3, "resume=longer")
expected = {
    "commit": "471d083",
    "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__, "pillow": PIL.__version__},
    "settings": SETTINGS,
    "logits": dict(zip(map(str, files), logits.tolist(), strict=True)),
    "after_third_epoch": json.loads(Path("longer/metrics.json").read_text()),
}
Path("expected.json").write_text(json.dumps(expected, indent=1) + "\n")
for name in NOT_READ:
    path = Path("run") / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
Path("cache/scan.json").unlink()

pack(Path(sys.argv[0]).resolve().with_name("run.tar.xz"))
