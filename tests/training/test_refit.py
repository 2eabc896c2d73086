"""`refit=true`: the head that is exported is one trained on train + valid; figures of valid are of the one before."""

import json
from pathlib import Path

import pytest
import torch
from support import runs

from dogbreed import DogBreedClassifier, DogImages
from dogbreed.data.images import load
from dogbreed.data.samplers import TrainBatches

pytestmark = pytest.mark.slow

MORE = ("model.backbone=resnet18", "model.lr=0.01", "data.batch_size=4", "trainer.max_epochs=4", "data.augment=none")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A run without and with, and what the second said."""
    folder = tmp_path_factory.mktemp("refit")
    runs.train_in(folder / "plain", *MORE)
    return folder / "plain", folder / "refit", runs.train_in(folder / "refit", *MORE, "refit=true").out


def test_figures_of_valid_are_from_before(pair: tuple[Path, Path, str]) -> None:
    plain, refit = (runs.metrics(folder) for folder in pair[:2])
    same = ("val_loss", "val_acc", "train_loss", "temperature", "best_epoch", "epochs", "images_seen")
    assert {key: refit[key] for key in same} == {key: plain[key] for key in same}
    assert refit["test_loss"] != plain["test_loss"]
    assert (refit["refit_epochs"], refit["refit_images"]) == (plain["best_epoch"], 18 + 9)
    sets = [json.loads((folder / "model" / "model.json").read_text())["conformal"] for folder in pair[:2]]
    assert sets[0] == sets[1], "the thresholds are of the head that had not seen valid"
    assert sets[0]["images"] == 9
    assert 0 < sets[0]["least_probability"]["90"] < 1
    assert sets[0]["least_probability"]["95"] is None
    assert refit["test_set95_coverage"] is None
    report = (pair[1] / "report.html").read_text(encoding="utf-8").replace("\u00a0", " ")
    assert f"The 90 % sets hold the right class for {100 * refit['test_set90_coverage']:.1f} % of " in report
    assert "no 95 % sets: the validation split has too few images. Their thresholds are from the head before" in report
    assert "with a head trained on train + valid (27 images)" in pair[2]
    assert "Computing the frozen part" not in pair[2], "everything lies in the cache"
    assert runs.history(pair[0])[0]["val_loss"] == runs.history(pair[1])[0]["val_loss"]


def test_the_head_is_that_of_a_loop_by_hand(pair: tuple[Path, Path, str]) -> None:
    folder = pair[1]
    best = DogBreedClassifier.load_from_checkpoint(folder / "checkpoints" / "best.ckpt")
    data = DogImages(runs.photographs(), batch_size=4, augment="none", preprocessing=best.preprocessing, quiet=True)
    data.setup()
    both = data.with_valid_in_train()
    files = both.samples["train"]
    assert list(files.paths) == [*data.samples["train"].paths, *data.samples["valid"].paths]
    network = best.network.eval()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = torch.nn.Linear(512, 3)
    network.fc = torch.nn.Identity()
    with torch.no_grad():
        features = network(torch.stack([load(path, best.preprocessing) for path in files.paths]))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    batches = TrainBatches(files, 4, 0)
    for epoch in range(int(runs.metrics(folder)["refit_epochs"])):
        batches.set_epoch(epoch)
        for batch in batches:
            rows = [index for index, _ in batch]
            loss = torch.nn.functional.cross_entropy(head(features[rows]), torch.from_numpy(files.labels[rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    exported = runs.weights(folder)
    torch.testing.assert_close(exported["fc.weight"], head.weight.detach(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(exported["fc.bias"], head.bias.detach(), atol=1e-4, rtol=1e-3)
    assert torch.equal(exported["conv1.weight"], best.network.state_dict()["conv1.weight"])


def test_only_a_head_is_refitted(tmp_path: Path) -> None:
    ran = runs.run(*runs.overrides(tmp_path / "run", "model.trainable=block", "refit=true"))
    assert (ran.code, "refit=true trains the head again" in ran.err) == (2, True)
    assert not (tmp_path / "run").exists()
