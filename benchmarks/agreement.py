"""What bfloat16 changes in the answers: a head trained on float32 features, asked on features of either precision.

Needs real photographs and pretrained weights: --photographs FOLDER --weights MOBILENET_V2.pth
"""

import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.bench import Bench
from dogbreed.cache.callback import FeatureCache
from dogbreed.data.datamodule import DogImages
from dogbreed.models import backbones
from dogbreed.models.classifier import DogBreedClassifier
from dogbreed.training.stacked_heads import Head, HeadTrainer


def agreement(bench: Bench) -> None:
    """Share of the test predictions that stay the same, and both accuracies."""
    if bench.photographs is None or bench.weights is None:
        print("  left out: it needs --photographs and --weights")
        return
    with tempfile.TemporaryDirectory() as folder:
        answers = {precision: _answers(bench, Path(folder), precision) for precision in ("float32", "bfloat16")}
    labels = answers["float32"][1]
    for precision, (predicted, _) in answers.items():
        bench.note(f"test_acc_{precision}", float((predicted == labels).mean()))
    bench.note("test_images", len(labels))
    bench.note("same_prediction_share", float((answers["float32"][0] == answers["bfloat16"][0]).mean()))


def _answers(bench: Bench, folder: Path, precision: str) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and labels of the test split on features of one precision; the head is trained on float32."""
    head = folder / "head.pt"
    data = DogImages(
        bench.photographs or "", batch_size=64, augment="none", quiet=True,
        preprocessing=backbones.preprocessing_of("mobilenet_v2"),
    )  # fmt: skip
    data.setup()
    model = DogBreedClassifier(
        len(data.classes), backbone="mobilenet_v2", weights=str(bench.weights), class_names=data.classes
    )
    if head.exists():  # the training split plays no part any more
        data.samples = {name: data.samples["test"] for name in ("train", "valid", "test")}
    FeatureCache("require", folder=folder, precision=precision, quiet=True).attach(model, data, bench.device)
    if not head.exists():
        trial = Head(lr=0.001)
        HeadTrainer(model, data).train([trial], batch_size=64, epochs=10)
        torch.save({"weight": trial.weight, "bias": trial.bias}, head)
    model.network.get_submodule(backbones.head_name(model.network)).load_state_dict(torch.load(head, weights_only=True))
    model.eval()
    indices = np.arange(len(data.samples["test"]))
    with torch.inference_mode():
        features = data.reader("test")(indices, np.zeros_like(indices)).to(bench.device)
        assert model.parts is not None
        logits = model.parts.tail(features.float(), False)
    return logits.argmax(1).cpu().numpy(), data.samples["test"].labels
