"""What is said about learning curves."""

import math

import pytest

from dogbreed.report.curve_diagnosis import lesson


def curves(train: list[float], valid: list[float]) -> list[dict[str, float]]:
    return [
        {"epoch": epoch, "train_loss": one, "val_loss": other, "lr": 0.003}
        for epoch, (one, other) in enumerate(zip(train, valid, strict=True), 1)
    ]


@pytest.mark.parametrize(
    ("kind", "train", "valid", "said"),
    [
        ("overfitting", [2, 1.2, 0.7, 0.4, 0.2, 0.1], [2, 1.4, 1.2, 1.25, 1.3, 1.4], "Overfitting from epoch 4"),
        ("overfitting", [2, 1, 0.5, 0.4, 0.2], [1.5, 1.2, 1.25, 1.2, 1.4], "the weights of epoch 2 were kept"),
        ("improving", [4, 2, 1.1, 0.7], [3, 1.9, 1.5, 1.3], "trainer.max_epochs=8"),
        ("settled", [2, 1.0, 0.9, 0.88, 0.87], [2, 1.1, 1.0, 0.996, 0.993], "since epoch 3"),
        ("settled", [2, 1.0, 0.9, 0.88, 0.87], [2, 1.1, 1.0, 0.996, 0.993], "model.trainable=block"),
        ("settled", [2, 0.5, 0.1, 0.05, 0.04], [2, 1.1, 1.0, 0.996, 0.993], "data.augment=crop"),
        (
            "too_fast",
            [2, 1.5, 2.5, 3.5],
            [2, 1.6, 2.6, 3.6],
            "smaller learning rate than model.lr=0.003, such as 0.001",
        ),
        ("too_fast", [2, 1.5, 1.3, 1.4, 1.2, 1.1], [2, 1.5, 2.1, 1.4, 2.0, 1.6], "jumps up and down (2 times"),
        ("diverged", [2, 1.5, math.nan], [2, 1.6, math.nan], "diverged; try a smaller learning rate"),
        ("guessing", [4.6, 4.6, 4.6], [4.6, 4.61, 4.6], "Nothing was learnt"),
        ("short", [2], [1.5], "One epoch shows no direction"),
        ("short", [], [], "No epoch was finished"),
        ("short", [2, 1], [math.nan, math.nan], "Nothing was validated"),
    ],
)
def test_lesson(kind, train, valid, said):
    found = lesson(curves(train, valid), classes=100)
    assert found.kind == kind
    assert said in found.sentence
    assert found.sentence.endswith(".")
    assert found.sentence.count(". ") == 0  # one sentence
    assert "nan" not in found.sentence


def test_a_small_rise_after_the_best_is_no_overfitting():
    assert lesson(curves([2, 1, 0.9, 0.85], [2, 1.0, 0.99, 1.0]), 100).kind == "settled"


def test_a_lucky_last_epoch_of_a_noisy_curve_is_no_improvement():
    valid = [1.0, 0.7, 0.55, 0.45, 0.5, 0.44, 0.5, 0.43, 0.49, 0.44, 0.48, 0.40]
    assert lesson(curves([0.9 * 0.9**i for i in range(12)], valid), 10).kind == "settled"


def test_few_breeds_are_guessed_with_a_small_loss():
    assert lesson(curves([0.7, 0.69], [0.7, 0.69]), 2).kind == "guessing"
    assert lesson(curves([0.7, 0.69], [0.7, 0.69]), 100).kind != "guessing"
