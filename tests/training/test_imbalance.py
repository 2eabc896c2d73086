"""Classes of unequal size: the weights of the loss, and logits without the training set's prior."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support import runs
from torch import nn

from dogbreed import DogBreedClassifier, Predictor
from dogbreed.data.images import load
from dogbreed.models.imbalance import balance_loss, check_bias, subtract_log_prior

NETWORK = ("model.backbone=resnet18", "model.lr=0.01", "trainer.max_epochs=2")


@pytest.fixture(scope="module")
def unequal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six, three and one images to train."""
    root = shutil.copytree(runs.photographs(), tmp_path_factory.mktemp("unequal") / "dogs")
    for folder, keep in zip(sorted((root / "train").iterdir()), (6, 3, 1), strict=True):
        for file in sorted(folder.iterdir())[keep:]:
            file.unlink()
    return root


def test_weights_are_one_over_the_counts() -> None:
    criterion = nn.CrossEntropyLoss()
    balance_loss(criterion, torch.tensor([6, 3, 1, 0]))
    logits, labels = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 0, 1, 2, 0])
    weights = np.array([1 / 6, 1 / 3, 1, 1])  # a class without images weighs as one with a single image
    weights *= 4 / weights.sum()
    nll = -logits.log_softmax(1).numpy()[np.arange(5), labels]
    expected = (weights[labels] * nll).sum() / weights[labels].sum()
    assert criterion(logits.float(), labels).item() == pytest.approx(expected, abs=1e-5)
    assert "weight" not in criterion.state_dict(), "it follows from the data"


def test_log_prior_is_subtracted() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    images = torch.randn(2, 4)
    before = network(images)
    subtract_log_prior(network, torch.tensor([6, 3, 1]))
    shift = torch.tensor([math.log(6 / 10), math.log(3 / 10), math.log(1 / 10)])
    torch.testing.assert_close(network(images), before - shift)
    with pytest.raises(Exception, match=r"model.prior=uniform .* 1 of this network is none \(Linear\)"):
        check_bias(nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)))


@pytest.mark.slow
def test_what_is_served_has_no_prior(unequal: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    runs.train_in(folder, *NETWORK, "model.prior=uniform", data=unequal)
    trained = DogBreedClassifier.load_from_checkpoint(folder / "checkpoints" / "best.ckpt").network.get_submodule("fc")
    exported = runs.weights(folder)
    shift = torch.tensor([math.log(count / 10) for count in (6, 3, 1)])
    torch.testing.assert_close(exported["fc.bias"], trained.bias.detach() - shift)
    assert torch.equal(exported["fc.weight"], trained.weight)
    predictor, rows = Predictor(folder / "model", device="cpu"), runs.predictions(folder)
    answers = predictor.predict([unequal / row["path"] for row in rows])
    assert [answer.probability for answer in answers] == pytest.approx(
        [float(row["probability"]) for row in rows], abs=2e-6
    )


@pytest.mark.slow
def test_the_loss_of_a_run_is_weighted(unequal: Path, tmp_path: Path) -> None:
    """With a learning rate of next to nothing, the train loss is that of the network as it was."""
    folder = tmp_path / "run"
    more = ["model.lr=1e-30", "trainer.max_epochs=1", "data.augment=none", "data.batch_size=64"]
    runs.train_in(folder, "model.backbone=resnet18", *more, "model.class_weights=balanced", data=unequal)
    model = DogBreedClassifier.load_from_checkpoint(folder / "checkpoints" / "best.ckpt").eval()
    weights, nll = [], []
    for label, breed in enumerate(sorted((unequal / "train").iterdir())):
        files = sorted(breed.iterdir())
        with torch.no_grad():
            logits = model(torch.stack([load(file, model.preprocessing) for file in files]))
        nll += (-logits.log_softmax(1)[:, label]).tolist()
        weights += [1 / len(files)] * len(files)
    assert runs.history(folder)[0]["train_loss"] == pytest.approx(np.average(nll, weights=weights), abs=1e-4)


@pytest.mark.slow
def test_both_at_once_and_a_head_that_cannot(unequal: Path, tmp_path: Path) -> None:
    both = ["model.prior=uniform", "model.class_weights=balanced"]
    ran = runs.run(*runs.overrides(tmp_path / "run", *NETWORK, *both, data=unequal))
    assert (ran.code, "correct for the same; choose one" in ran.err) == (2, True)
    ran = runs.run(*runs.overrides(tmp_path / "run", "model.prior=uniform", data=unequal))
    assert (ran.code, "classifier.1 of this network is none (Conv2d)" in ran.err) == (2, True)
    assert not (tmp_path / "run").exists()
