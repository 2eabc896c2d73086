"""What a run says of its own result: a leak, classes that are never predicted, images too few to tell."""

import shutil

import pytest
from support import runs
from support.reports import NAMES, make_run, read_page

from dogbreed.core.metric_lines import accuracy_line
from dogbreed.metrics.classification import measure
from dogbreed.report import training_report

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def leaking(tmp_path_factory):
    """A run on three splits that are one folder, with eighteen times the images of one class."""
    root = tmp_path_factory.mktemp("leaking")
    (source,) = list((runs.photographs(2, 2, 1, 1) / "train").iterdir())[:1]
    image = next(source.iterdir())
    for split in ("train", "valid", "test"):
        for name, images in (("mutt", 22), ("Boxer", 2)):
            (root / "dogs" / split / name).mkdir(parents=True)
            for number in range(images):
                file = root / "dogs" / split / name / f"{number}.jpg"
                shutil.copy(image, file)
                file.write_bytes(file.read_bytes() + bytes([number, len(name)]))  # behind the picture's end
    return root, runs.train_in(root / "run", "model.lr=0.1", data=root / "dogs")


def test_a_leak_is_said_before_and_behind_the_result(leaking):
    root, ran = leaking
    before, behind = ran.out.split("Test set: Average loss")
    sentence = "Data leak: 24 images of the test split also lie in another split, so the result may look better than it"
    assert before.count(sentence) == behind.count(sentence) == 1
    metrics = runs.metrics(root / "run")
    assert (metrics["test_leaked"], metrics["test_acc_without_leaked"]) == (24, None)
    top = read_page(root / "run" / "report.html").partition("<nav")[0]
    assert '<p class="alarm"><strong>Data leak.</strong> 24 images of the test split' in top


def test_one_step_per_epoch_is_said_with_the_setting_to_change(leaking):
    root, ran = leaking
    assert "One optimizer step per epoch" not in ran.out, "24 images in batches of 8"
    single = runs.train_in(root / "single", "data.batch_size=24", "test=false", data=root / "dogs")
    text = "One optimizer step per epoch: data.batch_size=24 takes all 24 training images at once; data.batch_size=2 "
    assert f"{text}would make it 12." in single.out


def test_a_batch_size_that_nobody_chose_suits_small_data(leaking):
    """It is said and kept; a resumed run has the one that it began with, and what is given is taken as it is."""
    root, _ = leaking
    fitted = root / "fitted"
    words = [word for word in runs.overrides(fitted, "test=false", data=root / "dogs") if "batch_size" not in word]
    ran = runs.run(*words, "trainer.max_epochs=1")
    text = "data.batch_size=4, not 512: 6 steps per epoch of 24 training images instead of 1 step; give data.batch_size"
    assert text in ran.out
    assert "One optimizer step per epoch" not in ran.out
    assert runs.metrics(fitted)["batch_size"] == 4
    assert "\n  batch_size: 4\n" in (fitted / "config.yaml").read_text()
    ran = runs.run(*words, "trainer.max_epochs=2", "resume=auto", "data.min_steps=2")
    assert (ran.code, runs.metrics(fitted)["batch_size"]) == (0, 4), ran.err
    ran = runs.run("trainer.max_epochs=3", f"resume={fitted}", "data.batch_size=512")
    assert "data.batch_size (was 4, is 512)" in ran.err


def test_classes_that_are_never_predicted_are_named(leaking):
    root, ran = leaking
    metrics = runs.metrics(root / "run")
    assert metrics["test_balanced_acc"] == 0.5
    assert metrics["test_never_predicted"] == 1
    assert "Never predicted: Boxer; balanced accuracy 50.0 %, macro F1 47.8 %." in ran.out
    assert "guessing would get 91.7 %." in ran.out, "the share of the largest class"
    assert "Rule imbalance, epoch 1: mutt has 22 training images and Boxer 2, 11 times fewer" in ran.out
    assert "Test accuracy 91.7 % (22/24, 95 % CI 74.2-97.7),\n" in ran.out, "top-5 of two classes says nothing"
    assert metrics["test_top5"] == 1


def test_classes_without_a_test_image_are_named(tmp_path):
    run = make_run(tmp_path, [(0, 0)] * 3, [f"class {i}" for i in range(8)], files=False)
    said, _, _ = training_report.caveats(run)
    assert said == ["No test image, so no figure: class 1, class 2, class 3, class 4, class 5 and 2 more."]


def test_a_file_under_two_labels_is_said_behind_the_result(tmp_path):
    shutil.copytree(runs.photographs(), tmp_path / "dogs")
    first, second = sorted((tmp_path / "dogs" / "train").iterdir())[:2]
    shutil.copy(next(first.iterdir()), second / "again.jpg")
    ran = runs.train_in(tmp_path / "run", "trainer.max_epochs=1", data=tmp_path / "dogs")
    behind = ran.out.split("Test set: Average loss")[1]
    assert "One file under two labels: " in behind
    assert "again.jpg" in behind
    assert "; delete the one that is wrong." in behind


def test_without_a_test_the_validation_is_the_result(leaking):
    root, _ = leaking
    ran = runs.train_in(root / "untested", "model.lr=0.1", "test=false", data=root / "dogs")
    metrics = runs.metrics(root / "untested")
    assert "Valid set: Average loss: " in ran.out
    assert "Validation accuracy 91.7 % (22/24, 95 % CI 74.2-97.7),\n" in ran.out
    assert "by the validation images the epoch was chosen" in ran.out
    assert not any(name.startswith("test") for name in metrics)
    assert metrics["val_leaked"] == 24
    assert runs.history(root / "untested")[-1]["train_acc"] == pytest.approx(metrics["train_acc"], abs=0.1)


@pytest.mark.parametrize("classes", [9, 10])
def test_top_five_from_ten_classes_on(tmp_path, classes):
    run = make_run(tmp_path, [(0, 0)] * 3 + [(1, 0)], [f"class {i}" for i in range(classes)], files=False)
    metrics = measure(run.predictions)
    assert accuracy_line(metrics, "test", 4, classes).endswith(" %") == (classes == 10)
    training_report.write(tmp_path / "report.html", run)
    assert ("Top-5 accuracy" in read_page(tmp_path / "report.html")) == (classes == 10)


@pytest.mark.parametrize(("pairs", "unknown"), [([(0, 0), (1, 0)], True), ([(0, 0)] * 4 + [(1, 0)] * 36, False)])
def test_a_calibration_error_on_too_few_images(tmp_path, pairs, unknown):
    """A model that is sure to 60 %, of which half are right: of two images that is chance; of a tenth of forty, not."""
    training_report.write(tmp_path / "report.html", make_run(tmp_path, pairs, NAMES, files=False, temperature=6.0))
    page = read_page(tmp_path / "report.html")
    assert ("Whether its probabilities are right cannot be told on 2 images: a perfectly" in page) == unknown
    assert ("changes the calibration error from 0.500 to 0." in page) == unknown
    assert ("a difference that cannot be told on 2 images" in page) == unknown
    assert "on the very images it was fitted on" not in page, "the test split"
    training_report.write(
        tmp_path / "valid.html", make_run(tmp_path, pairs, NAMES, files=False, temperature=6.0, split="valid")
    )
    assert ", measured on the very images it was fitted on" in read_page(tmp_path / "valid.html")
