"""The rules at work in real runs: when they speak, what they leave, and that they change nothing."""

import json
import math
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision
from support import runs
from support.places import SHARED_DATA
from support.reports import read_page
from torch import nn

from dogbreed.config.compose import compose
from dogbreed.data.datamodule import DogImages
from dogbreed.data.datasets import Batch, FeatureBatch, ImageDataset
from dogbreed.data.images import Preprocessing
from dogbreed.models.classifier import DogBreedClassifier
from dogbreed.monitor.callback import RULES, LiveRules, epoch_findings, machine_findings
from dogbreed.monitor.history import History
from dogbreed.monitor.recorder import Recorder
from dogbreed.monitor.system_metrics import Sample

FALLS_TOO_SLOWLY = ("rules.loss_not_decreasing.num_steps=1", "rules.loss_not_decreasing.diff_percent=99")


def found(folder: Path) -> dict[str, dict]:
    return {finding["rule"]: finding for finding in json.loads((folder / "rules.json").read_text())}


@pytest.mark.slow
def test_a_run_says_what_its_rules_found_once(tmp_path):
    ran = runs.train_in(tmp_path / "run", "trainer.max_epochs=4", *FALLS_TOO_SLOWLY)
    assert ran.out.count("Rule loss_not_decreasing, epoch 2: The training loss") == 1
    assert ran.out.count("Rule loss_not_decreasing") == 1
    left = found(tmp_path / "run")
    assert tuple(left) == RULES
    assert left["loss_not_decreasing"]["triggered"]
    assert left["loss_not_decreasing"]["step"] == 6  # two epochs of three batches
    assert left["loss_not_decreasing"]["parameters"]["diff_percent"] == 99
    assert not left["data_loading"]["applies"]
    assert "no image is decoded" in left["data_loading"]["message"]
    assert not left["dead_relu"]["applies"], "its rectifiers are frozen"
    assert left["poor_weight_initialization"]["message"] == "Only the last layer trains."
    assert not left["low_gpu_utilization"]["applies"] or torch.cuda.is_available()
    page = read_page(tmp_path / "run" / "report.html")
    assert 'id="rules"' in page
    assert left["loss_not_decreasing"]["message"] in page


def watched(folder: Path, losses: list[tuple[float, float]], already: int = 0) -> tuple[LiveRules, list[bool]]:
    """The rules behind a run with these losses, and after each epoch whether `overfit` is triggered."""
    history, triggered = History(folder, {}), []
    live = LiveRules(compose([])["rules"], history)
    live._classes = 10
    trainer = SimpleNamespace(num_training_batches=3, accumulate_grad_batches=1, is_global_zero=True)
    live._recorder = SimpleNamespace(findings=lambda last: {}, reasons={})
    for epoch, (train, valid) in enumerate(losses):
        history.rows.append({"epoch": epoch + 1, "train_loss": train, "val_loss": valid, "lr": 0.01})
        trainer.current_epoch = epoch
        if epoch == already - 1:
            live.findings = epoch_findings(history.rows, 3, live.settings)
        elif epoch >= already:
            live._look(trainer, epoch_ended=True)
        triggered.append("overfit" in live.findings and live.findings["overfit"].triggered)
    return live, triggered


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "first"),
    [
        *((name, None) for name in ("slow", "falls_in_the_end_slowly", "converged", "runs_away", "noisy_small_valid")),
        ("cosine_run_down", 30),
        ("memorised", 19),
        ("overfits", 32),
        ("overfits_few_images", 31),
    ],
)
def test_no_finding_while_the_validation_loss_falls(name, first, tmp_path, capsys):
    """Over recorded curves: training loss is far below from epoch 3 on in some, which alone is nothing to change."""
    losses = json.loads(Path(__file__).with_name("curves.json").read_text())[name]
    _, triggered = watched(tmp_path, losses)
    assert (triggered.index(True) + 1 if True in triggered else None) == first
    out = capsys.readouterr().out
    assert ("Rule overfit" in out) == (first is not None)
    assert out.count("Rule overfit") == (first is not None), "and stays found"
    assert "Too early to advise" not in out
    assert "Nothing to change" not in out


@pytest.mark.slow
def test_a_finding_says_its_epoch_and_is_withdrawn_when_it_is_no_longer_true(tmp_path, capsys):
    """Over the losses of a run: above, far above, and below again; a resumed run does not say it anew."""

    def watch(ratios: list[float], already: int = 0) -> LiveRules:
        train = [0.9**epoch for epoch in range(len(ratios))]
        losses = [(loss, ratio * loss) for loss, ratio in zip(train, ratios, strict=True)]
        return watched(tmp_path, losses, already)[0]

    live = watch([1.0, 1.5, 4.0])
    assert capsys.readouterr().out.count("Rule overfit, epoch 2: The validation loss (1.3500) is 50 % above") == 1
    assert "300 % above" in live.findings["overfit"].message, "the figure is that of the end"
    watch([1.0, 1.5, 4.0], already=2)
    assert "Rule overfit" not in capsys.readouterr().out
    live = watch([1.0, 1.5, 1.0])
    assert "Rule overfit, epoch 3: withdrawn. The validation loss stayed within 10 %" in capsys.readouterr().out
    assert not live.findings["overfit"].triggered


@pytest.mark.slow
def test_a_long_epoch_says_how_far_it_has_come(tmp_path, monkeypatch):
    monkeypatch.setattr("dogbreed.core.progress.LINE_EVERY_SECONDS", 0.0)
    ran = runs.train_in(tmp_path / "run", "progress=plain", "trainer.max_epochs=2")
    assert re.search(r"^Epoch 2/2: 1 of 3 steps, .+, loss \d\.\d{3}, [\d,]+ images/s$", ran.err, re.MULTILINE)
    assert "Epoch" not in ran.out


def test_an_epoch_is_a_line_for_people_on_a_terminal_and_for_tools_elsewhere(tmp_path, monkeypatch):
    row = {"train_loss": 1.827, "val_loss": 1.792, "val_acc": 0.1667, "seconds": 0.42}
    history = History(tmp_path, {"progress": "auto"})
    history.rows = [{"epoch": 1, **row, "seconds": 0.38}, {"epoch": 2, **row}]
    history.best = history.rows[-1]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert history._line(20) == "epoch 2/20  loss 1.827  val 1.792  16.7 %  best  420 ms  ~7.2 s left"
    assert history._line(2).endswith("  420 ms")
    history.rows[-1] = {**row, "epoch": 2, "val_loss": math.nan, "val_acc": math.nan}
    assert history._line(-1) == "epoch 2  loss 1.827  420 ms"
    history.config["progress"] = "plain"
    assert history._line(20).startswith("epoch=2 train_loss=1.827000 val_loss=nan")


@pytest.mark.slow
def test_a_finding_does_not_wait_for_the_end_of_a_long_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr("dogbreed.monitor.callback.LOOK_EVERY", 2)
    vanishing = ("rules.vanishing_gradient.threshold=1e9", "rules.every=1")
    printed = runs.train_in(tmp_path / "run", "trainer.max_epochs=1", "data.batch_size=4", *vanishing).out
    assert 0 < printed.find("Rule vanishing_gradient, epoch 1: ") < printed.find("epoch=1 train_loss=")


@pytest.mark.slow
def test_a_rule_can_stop_the_run(tmp_path):
    ran = runs.train_in(tmp_path / "run", "trainer.max_epochs=6", "rules.on_trigger=stop", *FALLS_TOO_SLOWLY)
    assert "Stopped after epoch 2 by rule loss_not_decreasing." in ran.out
    assert runs.metrics(tmp_path / "run")["epochs"] == 2
    assert (tmp_path / "run" / "model" / "model.json").exists(), "a stopped run is a whole run"


@pytest.mark.slow
def test_rules_that_are_left_out_are_not_asked(tmp_path):
    ran = runs.train_in(tmp_path / "run", "rules.skip=[loss_not_decreasing]", *FALLS_TOO_SLOWLY)
    assert "Rule" not in ran.out
    assert set(found(tmp_path / "run")) == set(RULES) - {"loss_not_decreasing"}


@pytest.mark.slow
def test_rules_change_nothing_in_the_result(tmp_path):
    for folder, enabled in (("with", "true"), ("without", "false")):
        more = (f"rules.enabled={enabled}", "rules.every=1", "model.trainable=all", "cache.mode=off")
        runs.train_in(tmp_path / folder, *more)
    runs.assert_same_result(tmp_path / "with", tmp_path / "without")
    assert (tmp_path / "with" / "rules.json").exists()
    assert not (tmp_path / "without" / "rules.json").exists()
    assert 'id="rules"' not in (tmp_path / "without" / "report.html").read_text()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rules.on_trigger=explode", "rules.on_trigger=explode is unknown; it is one of warn, stop."),
        ("rules.skip=[overfitting]", "is not a list of rules; they are loss_not_decreasing, overfit,"),
        ("rules.skip=overfit", "is not a list of rules"),
        ("rules.data_loading.window=0", "rules.data_loading.window=0 is out of range; it is 1 or more."),
        ("rules.overfit.ratio_threshold=-1", "rules.overfit.ratio_threshold=-1 is out of range; it is 0 or more."),
        ("rules.overfit.ratio=1", "Unknown key rules.overfit.ratio"),
    ],
)
@pytest.mark.slow
def test_a_bad_setting_is_a_sentence(tmp_path, override, said):
    ran = runs.run(*runs.overrides(tmp_path / "run", override))
    assert ran.code == 2
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_diverged_run_leaves_the_finding(tmp_path):
    ran = runs.run(*runs.overrides(tmp_path / "run", "model.lr=1e38", "model.optimizer=sgd"))
    assert ran.code == 2
    assert "is not finite" in ran.err
    assert found(tmp_path / "run")["exploding_tensor"]["triggered"]


@pytest.mark.slow
def test_rules_over_gradients_and_activations(tmp_path, monkeypatch):
    monkeypatch.setattr("dogbreed.monitor.recorder.ENOUGH_IMAGES", 10)
    thresholds = [
        "rules.vanishing_gradient.threshold=1e9",
        "rules.dead_relu.threshold_inactivity=100.1",
        "rules.poor_weight_initialization.patience=1",
        "rules.poor_weight_initialization.threshold=0",
    ]
    whole = ["model.trainable=all", "cache.mode=off", "trainer.max_epochs=4", "rules.every=1"]
    ran = runs.train_in(tmp_path / "run", *whole, *thresholds)
    left = found(tmp_path / "run")
    for rule in ("vanishing_gradient", "dead_relu", "poor_weight_initialization"):
        assert left[rule]["triggered"], left[rule]
        assert ran.out.count(f"Rule {rule}, epoch ") == 1


# What the recorder records


class Small(nn.Module):
    """Two rectifiers, of which one is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.conv(x)).mean((2, 3))
        return self.relu(self.fc(x))


@pytest.fixture
def small():
    model = DogBreedClassifier(6, backbone="squeezenet1_1", weights="none")
    torch.manual_seed(0)
    model.network = Small()
    return model


def test_recorded_activity_and_gradients_are_those_of_the_network(small):
    recorder = Recorder(small, {**compose()["rules"], "every": 1})
    images = torch.randn(250, 3, 8, 8)
    recorder.start(Batch(images, torch.zeros(250), torch.arange(250)))
    loss = small.network(images).square().mean()
    loss.backward()
    recorder.gradients()
    first = small.network.conv(images)
    second = small.network.fc(first.relu().mean((2, 3)))
    activity = recorder._activations.take()
    torch.testing.assert_close(torch.tensor(activity["relu"]), 100 * (first > 0).float().mean((0, 2, 3)))
    torch.testing.assert_close(torch.tensor(activity["relu (2)"]), 100 * (second > 0).float().mean(0))
    recorder.end(loss)
    recorded = dict(zip(recorder._weights, recorder._gradients[0][1].tolist(), strict=True))
    assert set(recorded) == {"conv.weight", "fc.weight"}
    assert recorded["fc.weight"] == pytest.approx(small.network.fc.weight.grad.abs().mean().item(), rel=1e-5)
    (_, ranges, variances), *_ = recorder._first
    assert float(variances["relu (1)"]) == pytest.approx(first.var().item(), rel=1e-5)
    gradient = small.network.conv.weight.grad.flatten()
    assert float(ranges[0]) == pytest.approx((gradient.quantile(0.95) - gradient.quantile(0.05)).item(), rel=1e-4)


class Watched(LiveRules):
    """Keeps the gradients of the first step, as the rules see them."""

    def on_train_batch_end(self, *arguments):
        super().on_train_batch_end(*arguments)
        self.seen = self._recorder._gradients[0][1]


@pytest.mark.slow
def test_gradients_are_looked_at_without_the_scale_of_mixed_precision(tmp_path):
    """A CPU can scale a loss too; Lightning asks for a GPU only where it makes the scaler itself."""
    seen = []
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    for precision in ({}, {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}):
        live = Watched(compose([])["rules"], History(tmp_path, {}))
        quiet = {"logger": False, "enable_progress_bar": False, "default_root_dir": tmp_path}
        trainer = Trainer(accelerator="cpu", max_steps=1, limit_val_batches=0, callbacks=[live], **quiet, **precision)
        preprocessing = Preprocessing(size=64)
        data = DogImages(runs.photographs(), num_workers=0, batch_size=4, quiet=True, preprocessing=preprocessing)
        model = DogBreedClassifier(3, backbone="squeezenet1_1", weights="none", preprocessing=preprocessing.to_dict())
        trainer.fit(model, datamodule=data)
        seen.append(live.seen)
    assert live._recorder.scaled
    torch.testing.assert_close(seen[1], seen[0], rtol=0.2, atol=0)


def test_nothing_listens_between_recorded_steps(small):
    recorder = Recorder(small, {**compose()["rules"], "every": 10})
    small.hparams["weights"] = "imagenet"
    recorder._first_steps = 0
    for step in range(12):
        recorder.start(Batch(torch.zeros(1), torch.zeros(1), torch.zeros(1)))
        hooks = len(small.network.relu._forward_hooks)
        assert hooks == (1 if step % 10 == 0 else 0)
        recorder.gradients()
        recorder.end(torch.tensor(1.0))
    assert not small.network.relu._forward_hooks


def test_the_wait_is_what_lies_between_two_steps(small, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("dogbreed.monitor.recorder.time.perf_counter", lambda: clock[0])
    recorder = Recorder(small, compose()["rules"], workers=0, cores=8)
    batch = Batch(torch.zeros(1), torch.zeros(1), torch.zeros(1))
    for step in range(25):
        clock[0] += 0.3 if step == 10 else 0.006
        if step == 10:
            recorder.pause()  # a validation does not count
        recorder.start(batch)
        clock[0] += 0.002
        recorder.end(torch.tensor(1.0))
    waited = recorder.findings()["data_loading"]
    assert waited.triggered
    assert waited.figures["wait_seconds"] == pytest.approx(0.006)
    features = FeatureBatch(*batch)
    recorder.start(features)
    recorder.end(torch.tensor(1.0))
    assert "data_loading" not in recorder.findings()


def samples(count: int, gpu: float, core: float, memory: float) -> list[Sample]:
    return [
        Sample(i / 2, (core, 5.0), (0.0, 0.0), 40.0, 1, 0, 0, 0, 0, (gpu, 90.0), (memory, 20.0)) for i in range(count)
    ]


@pytest.mark.slow
def test_rules_over_the_machine():
    settings = compose()["rules"]
    gpus = ["GPU 0", "GPU 1"]
    left = machine_findings(samples(1001, gpu=5.0, core=95.0, memory=30.0), gpus, settings)
    assert left["low_gpu_utilization"].triggered
    assert left["cpu_bottleneck"].triggered
    assert not left["io_bottleneck"].triggered
    assert not left["gpu_memory_increase"].triggered
    busy = machine_findings(samples(1001, gpu=95.0, core=95.0, memory=30.0), gpus, settings)
    assert not any(finding.triggered for finding in busy.values())
    filled = samples(1001, 95.0, 5.0, 30.0) + samples(10, 95.0, 5.0, 80.0)
    assert machine_findings(filled, gpus, settings)["gpu_memory_increase"].triggered
    # Of some GPUs NVML does not tell all; and without any there is nothing to find.
    unknown = machine_findings(samples(1001, gpu=math.nan, core=95.0, memory=30.0), gpus, settings)
    assert not any(finding.triggered for finding in unknown.values())
    none = [sample._replace(gpus=(), gpu_memory=()) for sample in samples(1001, 0.0, 95.0, 0.0)]
    assert not any(finding.applies for finding in machine_findings(none, [], settings).values())
    assert not any(finding.triggered for finding in machine_findings([], gpus, settings).values())


# Whole runs that go wrong in their own way


class SlowImages(ImageDataset):
    """As from a disk that takes 20 ms for each photograph."""

    def __getitem__(self, place):
        time.sleep(0.02)
        return super().__getitem__(place)


@pytest.mark.slow
def test_a_slow_loader_is_told_of_and_enough_workers_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr("dogbreed.data.datamodule.ImageDataset", SlowImages)
    data = runs.photographs(3, 24, 3, 3)
    more = ("cache.mode=off", "data.batch_size=4", "test=false")
    slow = runs.train_in(tmp_path / "slow", *more, "data.num_workers=0", data=data)
    left = found(tmp_path / "slow")["data_loading"]
    assert left["triggered"]
    assert left["figures"]["wait_seconds"] > 0.08
    assert "steps for data: data.num_workers=" in slow.out
    enough = runs.train_in(tmp_path / "enough", *more, "data.num_workers=8", data=data)
    left = found(tmp_path / "enough")["data_loading"]
    assert left["applies"]
    assert "waited" in left["message"]
    assert not left["triggered"], left["message"]
    assert "Rule data_loading" not in enough.out


@pytest.fixture(scope="module")
def mobilenet(dogs120, tmp_path_factory):
    """Ten breeds of dogs120, for two runs that share their features."""
    root = tmp_path_factory.mktemp("ten") / "dogs"
    for split, most in (("train", 12), ("valid", 3), ("test", 3)):
        for breed in sorted(path.name for path in (dogs120 / split).iterdir())[:10]:
            (root / split / breed).mkdir(parents=True)
            for file in sorted((dogs120 / split / breed).iterdir())[:most]:
                (root / split / breed / file.name).symlink_to(file)
    weights = SHARED_DATA / "weights" / "mobilenet_v2_imagenet_int8.pth"
    return root, ["model.backbone=mobilenet_v2", f"model.weights={weights}", "data.size=null", "data.augment=none"]


def few(root: Path, folder: Path, images: int) -> Path:
    """The same with so many images a breed to train with."""
    for split in ("train", "valid", "test"):
        for breed in sorted((root / split).iterdir()):
            (folder / split / breed.name).mkdir(parents=True)
            for file in sorted(breed.iterdir())[: images if split == "train" else None]:
                (folder / split / breed.name / file.name).symlink_to(file.resolve())
    return folder


@pytest.mark.slow
def test_a_run_made_to_overfit_and_a_healthy_one(mobilenet, tmp_path):
    """Two photographs a breed for forty epochs; twelve, and stopped in time."""
    root, settings = mobilenet
    runs.train_in(
        *(tmp_path / "overfit", *settings, "trainer.max_epochs=40", "model.lr=0.01", "test=false"),
        data=few(root, tmp_path / "few", 2),
    )
    left = found(tmp_path / "overfit")
    assert left["overfit"]["triggered"]
    assert left["overtraining"]["triggered"]
    assert left["overtraining"]["step"] > left["overfit"]["step"]
    runs.train_in(tmp_path / "healthy", *settings, "trainer.max_epochs=3", "model.lr=0.0005", data=root)
    left = found(tmp_path / "healthy")
    assert left["overfit"]["applies"], "it was asked"
    assert not math.isnan(left["overfit"]["figures"]["ratio"])
    assert [name for name, finding in left.items() if finding["triggered"]] == []
    assert runs.metrics(tmp_path / "healthy")["test_acc"] > 0.8


@pytest.mark.slow
def test_two_processes_stop_together(tmp_path):
    more = ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp", "trainer.max_epochs=6"]
    process = runs.start(
        runs.overrides(tmp_path / "run", *more, "rules.on_trigger=stop", "test=false", *FALLS_TOO_SLOWLY), tmp_path
    )
    said = runs.finish(process)
    assert said.count("Stopped after epoch 2 by rule loss_not_decreasing.") == 1, "one process speaks for both"
    assert runs.metrics(tmp_path / "run")["epochs"] == 2
