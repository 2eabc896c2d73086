"""The lines that tools read from a run's output, and the expressions that find the numbers in them.

A hyperparameter search registers the expressions and takes the last value that each finds. So the last line that names
`val_loss` is that of the exported weights, and each expression finds one number a line at most.
"""

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
