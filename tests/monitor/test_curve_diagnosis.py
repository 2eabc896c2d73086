"""The sentence that each learning curve deserves, and where one kind ends and the next begins."""

import json
import math
from pathlib import Path

import pytest

from dogbreed.monitor.curve_diagnosis import diagnose

# (train_loss, val_loss) by epoch of small networks on scikit-learn's digits: ten classes.
RECORDED = json.loads(Path(__file__).with_name("curves.json").read_text())


def curves(train: list[float], valid: list[float]) -> list[dict[str, float]]:
    return [
        {"epoch": epoch, "train_loss": one, "val_loss": other, "lr": 0.003}
        for epoch, (one, other) in enumerate(zip(train, valid, strict=True), 1)
    ]


@pytest.mark.parametrize(
    ("name", "kind", "sentence"),
    [
        ("first_epoch", "short", "One epoch shows no direction yet."),
        ("two_epochs", "improving", "val_loss fell by 5.0 % per epoch of late, to 2.103."),
        ("slow", "improving", "val_loss fell by 1.4 % per epoch of late, to 1.954."),
        ("falls_in_the_end_slowly", "improving", "trainer.max_epochs=80"),
        ("converged", "settled", "near 0.484 since epoch 41, so more epochs will hardly help"),
        ("cosine_run_down", "settled", "near 0.189 since epoch 21"),
        ("overfits", "overfitting", "from epoch 19: val_loss rose from 0.830 to 0.897"),
        ("memorised", "overfitting", "the weights of epoch 16 were kept"),
        ("overfits_few_images", "settled", "It fits the training images far better (train_loss 0.026)."),
        ("noisy_small_valid", "improving", "val_loss fell by 7.7 % per epoch of late"),
        ("noisy2", "unclear", "varies too much from one to the next to tell whether it still falls"),
        ("too_fast_jumps", "too_fast", "both losses rise again after epoch 6"),
        ("runs_away", "guessing", "the best val_loss of 2.37 is near that of guessing among 10 classes (2.30)"),
        ("shuffled_labels", "guessing", "Nothing was learnt"),
        ("lr_too_small", "guessing", "Nothing was learnt"),
    ],
)
def test_recorded_curves(name, kind, sentence):
    diagnosis = diagnose(curves(*zip(*RECORDED[name], strict=True)), 10, {})
    assert diagnosis.kind == kind
    assert sentence in diagnosis.sentence
    assert ("epochs will hardly help" in diagnosis.sentence) == (kind == "settled")
    assert "nan" not in diagnosis.sentence
    assert "inf" not in diagnosis.sentence


def test_no_run_is_called_settled_that_goes_on_to_gain():
    """Cut off anywhere, a curve is called settled only where its next epochs, as many again, gain under 5 %."""
    judged = 0
    for name in ("slow", "falls_in_the_end_slowly", "converged", "cosine_run_down", "overfits_few_images", "noisy2"):
        train, valid = zip(*RECORDED[name], strict=True)
        for end in range(4, len(valid)):
            if diagnose(curves(train[:end], valid[:end]), 10, {}).kind == "settled":
                judged += 1
                later = valid[end : end + min(end, 10)]
                assert min(later) > 0.95 * min(valid[:end]), (name, end)
    assert judged > 20


@pytest.mark.parametrize(
    ("kind", "train", "valid", "said"),
    [
        ("overfitting", [2, 1.2, 0.7, 0.4, 0.2, 0.1], [2, 1.4, 1.2, 1.25, 1.3, 1.4], "Overfitting from epoch 4"),
        ("overfitting", [2, 1, 0.5, 0.4, 0.2], [1.5, 1.2, 1.25, 1.2, 1.4], "the weights of epoch 2 were kept"),
        ("improving", [4, 2, 1.1, 0.7], [3, 1.9, 1.4, 1.05], "trainer.max_epochs=8"),
        ("improving", [2, 1, 0.5, 0.25], [1.6, 0.8, 0.4, 0.2], "val_loss fell by 50.0 % per epoch of late, to 0.200"),
        ("too_fast", [2, 1.5, 2.5, 3.5], [2, 1.6, 2.6, 3.6], "such as model.lr=0.001"),
        ("too_fast", [2, 1.5, 1.3, 1.4, 1.2, 1.1], [2, 1.5, 2.1, 1.4, 2.0, 1.6], "jumps up and down (2 times"),
        ("diverged", [2, 1.5, math.nan], [2, 1.6, math.nan], "training diverged. Try a smaller learning rate"),
        ("short", [2], [1.5], "One epoch shows no direction yet. Train longer, with trainer.max_epochs=5 "),
        ("short", [2, 1.5, 1.2], [2.0, 1.6, 1.61], "(1.610) is going. Train longer, with trainer.max_epochs=6 "),
        ("short", [], [], "No epoch finished"),
        ("short", [2, 1], [math.nan, math.nan], "Nothing was validated"),
    ],
)
def test_drawn_curves(kind, train, valid, said):
    diagnosis = diagnose(curves(train, valid), 100, {})
    assert diagnosis.kind == kind
    assert said in diagnosis.sentence


# Each pair lies on either side of one threshold.


@pytest.mark.parametrize(
    ("kinds", "train", "valids"),
    [
        (("guessing", "settled"), [2] * 5, ([0.951 * math.log(10)] * 5, [0.949 * math.log(10)] * 5)),
        (
            ("too_fast", "settled"),
            [0.6, 0.5, 0.5, 0.5, 0.61],
            ([1, 0.5, 0.54, 0.57, 0.605], [1, 0.5, 0.54, 0.57, 0.595]),
        ),
        (("overfitting", "settled"), [0.5, 0.4, 0.3, 0.2], ([1.0, 1.0, 1.025, 1.025], [1.0, 1.0, 1.015, 1.03])),
        (("overfitting", "unclear"), [0.9, 0.8, 0.7, 0.6], ([1.0, 0.9, 0.8, 0.885], [1.0, 0.9, 0.8, 0.875])),
        (("improving", "settled"), [1.0] * 20, ([0.994**e for e in range(20)], [0.996**e for e in range(20)])),
    ],
)
def test_either_side_of_a_threshold(kinds, train, valids):
    for kind, valid in zip(kinds, valids, strict=True):
        assert diagnose(curves(train, valid), 10, {}).kind == kind, valid


def test_a_jump_is_one_of_ten_percent_in_a_third_of_the_epochs():
    small = [1.0, 0.8, 0.87, 0.7, 0.76, 0.75]
    assert diagnose(curves([0.9] * 6, [1.0, 0.8, 0.89, 0.7, 0.78, 0.75]), 10, {}).kind == "too_fast"
    assert diagnose(curves([0.9] * 6, small), 10, {}).kind != "too_fast"
    seldom, best_is_last = [1.0, 0.8, 0.9, 0.7, 0.79, 0.69, 0.67, 0.68], [1.0, 0.8, 0.9, 0.7, 0.78, 0.6]
    for valid in (seldom, best_is_last):
        assert diagnose(curves([0.9] * len(valid), valid), 10, {}).kind != "too_fast"


def test_a_wide_gap_is_said_only_where_training_loss_is_half():
    valid = [0.7, 0.6, 0.6, 0.6, 0.599]
    assert "far better" in diagnose(curves([0.6, 0.4, 0.3, 0.29, 0.29], valid), 10, {}).sentence
    assert "far better" not in diagnose(curves([0.6, 0.4, 0.31, 0.31, 0.31], valid), 10, {}).sentence
    low = [0.5, 0.48, 0.48, 0.48, 0.479]
    assert "far better" not in diagnose(curves([0.5, 0.4, 0.3, 0.235, 0.235], low), 10, {}).sentence


def test_advice_never_names_what_is_set():
    config = {
        "data": {"augment": "crop"},
        "model": {"label_smoothing": 0.1, "weight_decay": 1e-4, "trainable": "all", "weights": "imagenet", "lr": 0.01},
        "trainer": {"gradient_clip_val": 1.0},
        "early_stopping": 3,
    }
    named = ("data.augment=", "label_smoothing=", "weight_decay=", "trainable=", "weights=", "clip_val=", "early_stop")
    for name in RECORDED:
        rows = curves(*zip(*RECORDED[name], strict=True))
        advice = diagnose(rows, 10, config).advice
        assert not any(key in advice for key in named), advice
        assert advice.endswith(".")
    assert (
        "such as model.lr=0.0033."
        in diagnose(curves(*zip(*RECORDED["too_fast_jumps"], strict=True)), 10, config).advice
    )


def test_a_learning_rate_that_was_lowered_is_said():
    rows = curves(*zip(*RECORDED["cosine_run_down"], strict=True))
    assert (
        "its schedule has lowered the learning rate" in diagnose(rows, 10, {"model": {"schedule": "cosine"}}).sentence
    )
    assert "schedule" not in diagnose(rows, 10, {"model": {"schedule": "constant"}}).sentence
