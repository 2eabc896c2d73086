"""The lines that tools read from a run's output, and the expressions that find the numbers in them.

A hyperparameter search registers the expressions and takes the last value that each finds. So the last line that names
`val_loss` is that of the exported weights, and each expression finds one number a line at most.
"""

from collections.abc import Mapping
from typing import Any

TOP5_FROM = 10  # classes below which a top-5 accuracy says nothing

EPOCH_LINE = (
    "epoch={epoch} train_loss={train_loss:.6f} val_loss={val_loss:.6f} val_acc={val_acc:.4f} "
    "best_val_loss={best_val_loss:.6f}"
)
TEST_LINE = "Test set: Average loss: {loss:.6f}, Accuracy: {correct}/{total} ({percent:.1f}%)"
EXPORT_LINE = "exported: val_loss={val_loss:.6f} val_acc={val_acc:.4f}"

METRIC_REGEXES = {
    "train_loss": r" train_loss=([0-9.eE+-]+)",
    "val_loss": r" val_loss=([0-9.eE+-]+)",  # with the blank it does not match inside best_val_loss=
    "val_acc": r" val_acc=([0-9.eE+-]+)",
    "best_val_loss": r" best_val_loss=([0-9.eE+-]+)",
    "average test loss": r"Test set: Average loss: ([0-9\.]+)",
}


def accuracy_line(metrics: Mapping[str, Any], split: str, images: int, classes: int) -> str:
    """Return "Test accuracy 29.2 % (14/48, 95 % CI 18.2-43.2), top-5 87.5 %" from the keys of one split.

    Args:
        metrics: As in `metrics.json`.
        split: What the keys begin with: `test`, `val` or `train`.
        images: How many images were measured.
        classes: How many classes there are; of fewer than `TOP5_FROM` there is no top-5.
    """
    accuracy, (low, high) = metrics[f"{split}_acc"], metrics[f"{split}_acc_ci95"]
    name = {"test": "Test", "val": "Validation", "train": "Training"}[split]
    counts = f"{round(accuracy * images):,}/{images:,}"
    line = f"{name} accuracy {100 * accuracy:.1f} % ({counts}, 95 % CI {100 * low:.1f}-{100 * high:.1f})"
    return f"{line}, top-5 {100 * metrics[f'{split}_top5']:.1f} %" if classes >= TOP5_FROM else line


def folds_line(metrics: Mapping[str, Any]) -> str:
    """Return "Cross-validation over train + valid: 71.6 % ± 0.5 (mean and standard error of 5 folds: 70.6, 72.2, ...)".

    Args:
        metrics: As in `metrics.json`, with folds.
    """
    mean, error, folds = 100 * metrics["folds_mean"], 100 * metrics["folds_se"], metrics["folds"]
    each = ", ".join(f"{100 * accuracy:.1f}" for accuracy in folds)
    line = f"Cross-validation over train + valid: {mean:.1f} % ± {error:.1f}"
    return f"{line} (mean and standard error of {len(folds)} folds: {each})"
