"""The head as a logistic regression: scikit-learn comes to the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import runs
from torch import nn

from dogbreed import DogBreedClassifier
from dogbreed.data.images import WHOLE, View, load
from dogbreed.metrics.calibration import choose_temperature
from dogbreed.models.imbalance import balance_loss
from dogbreed.models.lbfgs import GRID, Solution, fit_head, solve

linear_model = pytest.importorskip("sklearn.linear_model")


@pytest.mark.parametrize("c", [0.01, 1.0])
@pytest.mark.parametrize(("balanced", "bias"), [(False, True), (True, True), (False, False)])
def test_scikit_learn_finds_the_same(c: float, balanced: bool, bias: bool) -> None:
    numbers = np.random.default_rng(0)
    labels = numbers.choice(3, 60, p=[0.6, 0.3, 0.1])
    inputs = numbers.normal(size=(60, 5)) + labels[:, None]
    counts = torch.from_numpy(labels).bincount(minlength=3)
    criterion, head = nn.CrossEntropyLoss(), nn.Linear(5, 3, bias=bias)
    if balanced:
        balance_loss(criterion, counts)
    fit_head(head, torch.from_numpy(inputs).float(), torch.from_numpy(labels), criterion, c)
    weights = dict(enumerate(criterion.weight.tolist())) if balanced else None  # type: ignore[union-attr]
    other = linear_model.LogisticRegression(
        C=c, class_weight=weights, tol=1e-10, max_iter=10_000, fit_intercept=bias
    ).fit(inputs, labels)
    with torch.no_grad():
        probabilities = head(torch.from_numpy(inputs).float()).softmax(1).numpy()
    np.testing.assert_allclose(probabilities, other.predict_proba(inputs), atol=5e-4)


def test_c_is_chosen_by_the_loss_that_a_temperature_leaves() -> None:
    numbers = np.random.default_rng(3)
    means = numbers.normal(size=(4, 40))

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = numbers.integers(4, size=count)
        inputs = 0.5 * means[labels] + numbers.normal(size=(count, 40))
        return torch.from_numpy(inputs).float(), torch.from_numpy(labels)

    train, valid = draw(60), draw(400)
    solved = {c: linear_model.LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(*train) for c in GRID}
    logits = {c: torch.from_numpy(each.decision_function(valid[0])) for c, each in solved.items()}
    temperature = {c: choose_temperature(each, valid[1]) for c, each in logits.items()}
    cross_entropy = nn.functional.cross_entropy
    plain = min(GRID, key=lambda c: cross_entropy(logits[c], valid[1]))
    best = min(GRID, key=lambda c: cross_entropy(logits[c] / temperature[c], valid[1]))
    assert best < plain  # the stronger penalty is better and only too timid

    head, loss = nn.Linear(40, 4), nn.CrossEntropyLoss()
    solution = solve(head, train, valid, loss, loss, None)
    assert solution == (best, pytest.approx(temperature[best], rel=1e-3))
    with torch.no_grad():
        probabilities = head(valid[0]).softmax(1)
    expected = (logits[best] / temperature[best]).softmax(1).float()
    torch.testing.assert_close(probabilities, expected, atol=1e-3, rtol=0)

    again = nn.Linear(40, 4)  # a refit has the solution already, and no images to choose it on
    assert solve(again, train, train, loss, loss, solution) == solution
    torch.testing.assert_close(again.weight, head.weight, atol=1e-3, rtol=0)
    assert solve(again, train, train, loss, loss, Solution(1.0)).temperature == 1


@pytest.mark.slow
def test_a_run_chooses_c_on_valid_and_needs_no_learning_rate(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    runs.train_in(folder, "model.backbone=resnet18", "model.optimizer=lbfgs", "model.lr=1e9", "trainer.max_epochs=7")
    metrics = runs.metrics(folder)
    model = DogBreedClassifier.load_from_checkpoint(folder / "checkpoints" / "best.ckpt").eval()
    backbone: nn.Module = model.network
    head, backbone.fc = backbone.get_submodule("fc"), nn.Identity()

    def features(split: str, views: list[View]) -> tuple[Any, Any]:
        files = [(label, file) for label, breed in enumerate(sorted((runs.photographs() / split).iterdir()))
                 for file in sorted(breed.iterdir())]  # fmt: skip
        images = [load(file, model.preprocessing, view=view) for _, file in files for view in views]
        with torch.no_grad():
            return backbone(torch.stack(images)).numpy(), np.repeat([label for label, _ in files], len(views))

    train, valid = features("train", [WHOLE, View(flip=True)]), features("valid", [WHOLE])
    losses = {}
    for c in GRID:
        solved = linear_model.LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(*train)
        losses[c] = -np.log(solved.predict_proba(valid[0])[np.arange(len(valid[1])), valid[1]]).mean()
    assert metrics["lbfgs_c"] == min(losses, key=lambda c: losses[c])
    assert metrics["val_loss"] == pytest.approx(min(losses.values()), abs=2e-3)
    assert metrics["epochs"] == 1
    assert head.out_features == 3


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["model.trainable=block"], "model.optimizer=lbfgs trains the last layer of a frozen network"),
        (["cache.mode=off"], "model.optimizer=lbfgs works on cached features, and the cache is off"),
        (["model.backbone=squeezenet1_1"], "needs a linear last layer, and classifier.1 is none"),
    ],
)
@pytest.mark.slow
def test_where_it_cannot(more: list[str], sentence: str, tmp_path: Path) -> None:
    ran = runs.run(*runs.overrides(tmp_path / "run", "model.backbone=resnet18", "model.optimizer=lbfgs", *more))
    assert ran.code == 2
    assert sentence in ran.err
    assert not (tmp_path / "run").exists()
