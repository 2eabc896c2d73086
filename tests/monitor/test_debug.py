"""What was saved of a run, read back: the picture, the rules, and folders that are not what they should be."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.debugger import result_of

from dogbreed import debug as debug_command
from dogbreed.core.errors import DogbreedError
from dogbreed.monitor import debug, smdebug_reader
from dogbreed.monitor.smdebug_reader import Evaluation, Recorded


def recorded(train: dict[int, float], evaluations: dict[int, list[float]], **given: Any) -> Recorded:
    values = {"gradient_steps": [], "gradients": {}, "names": ["loss"], "ended": True, **given}
    return Recorded(train, [Evaluation(*one) for one in evaluations.items()], **values)


def state(found: list[Any]) -> dict[str, bool | None]:
    return {finding.rule: finding.triggered if finding.applies else None for finding in found}


HEALTHY = recorded(
    {step: 2.0 * 0.98**step for step in range(0, 100, 2)},
    {25 * epoch: [2.0 * 0.98 ** (25 * epoch - 12), 2.0 * 0.98 ** (25 * epoch - 12) + 0.02] for epoch in range(1, 5)},
    gradient_steps=[0, 50],
    gradients={"weight": [1e-2, 1e-3]},
)


def test_training_losses_are_averaged_between_evaluations():
    means = debug.by_evaluation(recorded({0: 4.0, 2: 2.0, 5: 1.0, 9: 7.0}, {3: [1.0], 4: [1.0], 6: [1.0]}))
    np.testing.assert_array_equal(means.steps, [1.0, np.nan, 5.0])
    np.testing.assert_array_equal(means.losses, [3.0, np.nan, 1.0])  # step 9 came after the last evaluation


def test_training_losses_are_averaged_by_ten():
    means = debug.by_ten(recorded({step: float(step) for step in range(0, 250, 10)}, {}))
    assert means == ([45.0, 145.0], [45.0, 145.0])  # the last five are left out
    assert debug.by_ten(recorded({0: 1.0, 10: 3.0}, {})) == ([5.0], [2.0])


def test_a_healthy_run_triggers_nothing():
    assert not any(finding.triggered for finding in debug.apply_rules(HEALTHY))


def test_a_run_that_overfits_is_found():
    val = {25 * epoch: [1.0 + 0.1 * epoch] for epoch in range(1, 13)}
    train = {step: max(2.0 * 0.95**step, 0.01) for step in range(300)}
    found = state(debug.apply_rules(recorded(train, val)))
    assert found["overfit"]
    assert found["overtraining"]
    assert found["loss_not_decreasing"]
    assert found["vanishing_gradient"] is None  # no gradients were saved


def test_losses_that_explode_and_gradients_that_vanish():
    one = recorded({0: 1.0, 1: float("nan")}, {}, gradient_steps=[0], gradients={"weight": [1e-9]})
    found = state(debug.apply_rules(one))
    assert found == {
        "loss_not_decreasing": False,
        "overfit": None,
        "overtraining": None,
        "exploding_tensor": True,
        "vanishing_gradient": True,
    }


@pytest.mark.parametrize("one", [HEALTHY, recorded({0: 1.5}, {}), recorded({0: 1.0}, {1: [2.0]}, ended=False)])
@pytest.mark.slow
def test_every_run_has_a_picture_and_a_summary(one, tmp_path):
    debug.draw(one).savefig(tmp_path / "losses.png")
    pixels = np.asarray(Image.open(tmp_path / "losses.png").convert("RGB"))
    blue = (pixels == [0x2F, 0x6F, 0xD0]).all(2)
    orange = (pixels == [0xE0, 0x76, 0x2D]).all(2)
    assert blue.any()
    assert orange.any() == bool(one.evaluations)
    text = debug.summary(Path("tensors"), one, debug.apply_rules(one))
    assert "nan" not in text
    assert ("has not ended" in text) == (not one.ended)


def test_folders_that_hold_no_tensors(tmp_path):
    with pytest.raises(DogbreedError, match="is no folder"):
        smdebug_reader.check_folder(tmp_path / "missing")
    with pytest.raises(DogbreedError, match="is empty"):
        smdebug_reader.check_folder(tmp_path)
    (tmp_path / "tensorboard").mkdir()
    with pytest.raises(DogbreedError, match="holds no tensors of smdebug; give the folder"):
        smdebug_reader.check_folder(tmp_path)
    (tmp_path / "tensors" / "collections").mkdir(parents=True)
    with pytest.raises(DogbreedError, match="did you mean"):
        smdebug_reader.check_folder(tmp_path)
    (tmp_path / "index").mkdir()
    with pytest.raises(DogbreedError, match="is incomplete: collections/ and events/ is missing"):
        smdebug_reader.check_folder(tmp_path)


# Saves losses as a run does, without a network; then reads good and bad folders with the command.
PROGRAM = r"""
import contextlib, io, json, shutil, sys
from pathlib import Path

folder = Path(sys.argv[1])

import torch
from dogbreed import debug as debug_command
from dogbreed.monitor import smdebug_hook
from dogbreed.config.compose import compose
from dogbreed.monitor.smdebug_reader import smdebug

library = smdebug("smdebug.pytorch")
config = smdebug_hook.hook_config(compose()["debugger"], folder / "tensors")
(folder / "config.json").write_text(json.dumps(config))
made = library.Hook.create_from_json_file(str(folder / "config.json"))
network, criterion = torch.nn.Linear(3, 2), torch.nn.CrossEntropyLoss()
made.register_module(network), made.register_loss(criterion)
for epoch in range(3):
    for mode, batches in ((library.modes.TRAIN, 12), (library.modes.EVAL, 2)):
        made.set_mode(mode)
        for _ in range(batches):
            criterion(network(torch.randn(4, 3)), torch.tensor([0, 1, 0, 1])).backward()
made.close()

good, files = folder / "tensors", {}

def copy(name):
    shutil.copytree(good, folder / name)
    return folder / name

def files_of(place):
    return sorted(file for file in place.rglob("*") if file.is_file())

(copy("running") / "training_job_end.ts").unlink()
shutil.rmtree(copy("half") / "collections")
shutil.rmtree(copy("no index") / "index")
for file in files_of(copy("cut") / "events"):
    file.write_bytes(file.read_bytes()[:30])
files_of(copy("gone") / "events")[1].unlink()
files_of(copy("bad index") / "index")[0].write_text('{"meta"')
files_of(copy("bad list") / "collections")[0].write_text("")
shutil.copytree(good, folder / "no loss")
for file in files_of(folder / "no loss" / "index"):
    file.write_text(file.read_text().replace("CrossEntropyLoss", "OtherLoss"))

said = {}
for name in ("tensors", "running", "half", "no index", "cut", "gone", "bad index", "bad list", "no loss"):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = debug_command.main([str(folder / name), "--output", str(folder / f"{name}.png")])
    said[name] = [code, out.getvalue(), err.getvalue(), (folder / f"{name}.png").exists()]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(smdebug_python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    folder = tmp_path_factory.mktemp("tensors")
    return result_of(smdebug_python, PROGRAM, str(folder), folder=folder)


@pytest.mark.slow
def test_what_was_saved_is_read_back(said):
    code, out, err, picture = said["tensors"]
    assert (code, err, picture) == (0, "", True)
    assert "training    4 steps saved, the last is 30" in out
    assert "evaluation  3 times, 6 batches saved" in out
    assert "after 12 steps" in out or "after 24 steps" in out or "after 36 steps" in out
    assert "exploding_tensor     no" in out
    assert "vanishing_gradient   no" in out


@pytest.mark.slow
def test_a_run_that_goes_on_is_read_as_far_as_it_is(said):
    code, out, _, picture = said["running"]
    assert (code, picture) == (0, True)
    assert "of a run that has not ended" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("half", "is incomplete: collections/ is missing; train again."),
        ("no index", "is incomplete: index/ is missing; train again."),
        ("cut", "cut is damaged ("),
        ("gone", "is incomplete: a tensor of its index is not in its files; copy it again, or train again."),
        ("bad index", "bad index is damaged (Empty/Corrupt Index File); copy it again, or train again."),
        ("bad list", "bad list is damaged ("),
        ("no loss", "holds no CrossEntropyLoss_output_0, the loss; add it to debugger.collections."),
    ],
)
def test_bad_folders_get_a_sentence(name, sentence, said):
    code, out, err, picture = said[name]
    assert (code, out, picture) == (2, "", False)
    assert sentence in err
    assert len(err.splitlines()) == 1


def test_arguments(tmp_path, capsys):
    assert debug_command.main([str(tmp_path), "--output", "losses.doc"]) == 2
    assert "a picture ends in .png, .svg or .pdf" in capsys.readouterr().err
    assert debug_command.main([str(tmp_path / "missing")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
