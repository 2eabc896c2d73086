"""Logits of images with an exported model: from cached features, else as an endpoint computes them."""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from dogbreed.cache.callback import FeatureCache
from dogbreed.core.progress import track
from dogbreed.data.datamodule import DogImages
from dogbreed.data.datasets import SplitFiles
from dogbreed.inference.predictor import Predictor
from dogbreed.models.arithmetic import float32_as
from dogbreed.models.classifier import DogBreedClassifier


def compute_logits(
    predictor: Predictor, samples: SplitFiles, cache: FeatureCache, *, batch_size: int, num_workers: int, quiet: bool
) -> Tensor:
    """Return logits [N, classes] in float32, before the temperature, of the images of a split.

    Args:
        predictor: The exported model.
        samples: The images.
        cache: Where features are kept; they agree with an endpoint's to within 1e-4.
        batch_size: Images in one pass.
        num_workers: That decode; 0 takes one per core, 8 at most.
        quiet: No progress.

    Raises:
        BadImage: One of them cannot be used any more.
        DogbreedError: The cache is required and cannot be used.
    """
    trainable = predictor.model.config.get("model", {}).get("trainable", "head")
    if trainable != "all" or cache.mode == "require":
        model, data = _as_in_training(predictor, samples, trainable, batch_size, num_workers)
        cache.attach(model, data, predictor.device)
        if cache.state != "off":
            with torch.inference_mode(), float32_as(cache.precision, predictor.device):
                batches = (batch._replace(inputs=batch.inputs.to(predictor.device)) for batch in data.test_dataloader())
                return torch.cat([model.logits(batch).float().cpu() for batch in batches])
    logits: list[Tensor] = []
    with (
        ThreadPoolExecutor(num_workers or min(torch.get_num_threads(), 8)) as pool,
        track(len(samples), "Evaluating", quiet=quiet) as progress,
    ):
        for start in range(0, len(samples), batch_size):
            inputs = [*pool.map(predictor.read, samples.paths[start : start + batch_size])]
            logits.append(predictor.logits(torch.stack(inputs)))
            progress.advance(len(inputs))
    return torch.cat(logits)


def _as_in_training(
    predictor: Predictor, samples: SplitFiles, trainable: str, batch_size: int, num_workers: int
) -> tuple[DogBreedClassifier, DogImages]:
    """Return model and data that are cut where the training was, so that both share their features."""
    exported = predictor.model
    model = DogBreedClassifier(
        len(exported.class_names),
        backbone=exported.backbone,
        weights=None,
        trainable=trainable,
        class_names=exported.class_names,
        preprocessing=exported.preprocessing.to_dict(),
    )
    model.load_network(exported.network.state_dict())
    data = DogImages.for_model(
        model,
        samples.paths[0].parent,
        batch_size=batch_size,
        num_workers=num_workers or "auto",
        max_pixels=predictor.max_pixels,
        quiet=True,
    )
    data.samples = {"test": samples}
    return model.eval(), data
