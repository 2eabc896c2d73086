"""`python -m dogbreed.export`: an exported model for other runtimes."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dogbreed.core.cli import guard, parser, path
from dogbreed.core.errors import DogbreedError
from dogbreed.core.extras import install

_DESCRIPTION = "Write an exported model as ONNX or for torch.export, and keep the file only if it answers the same."
_EPILOG = """\
examples:
  python -m dogbreed.export outputs/2026-05-01/10-30-00/model holiday/ --onnx dogs.onnx
  python -m dogbreed.export model/ rex.jpg --onnx dogs.onnx --torch-export dogs.pt2
  python -m dogbreed.export model/ holiday/ --runtime onnx
  python -m dogbreed.export model/ my_dogs --runtime int8 --max-loss 0.5

Inputs and outputs are the network's: images [N, 3, S, S] to logits and probabilities [N, classes]. How an image
becomes an input, the class names and the temperature lie in the file's metadata as model.json.

--runtime writes into the model's folder, for predict and serve on a CPU: onnx answers as the model does, int8 nearly
so, from weights and activations of 8 bits. int8 takes the folder of the data set (default: that of the training) and
is kept only if the accuracy on its validation split falls by no more than --max-loss percentage points.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    frame = parser("python -m dogbreed.export", _DESCRIPTION, _EPILOG)
    add = frame.add_argument
    add("model", metavar="MODEL_DIR", type=path, help="an exported model, or the folder of its run")
    add("paths", metavar="PHOTO", nargs="*", type=path, help="photographs or folders to check it on; the data for int8")
    add("--onnx", metavar="FILE", type=path, help=f"write ONNX ({install('onnx')})".replace("%", "%%"))
    add("--torch-export", metavar="FILE.pt2", type=path, help="write for torch.export.load")
    add("--runtime", choices=["onnx", "int8"], help="write a file into the model's folder that answers for it")
    add("--max-loss", type=float, default=1.0, metavar="POINTS", help="of accuracy that int8 may cost (default 1)")
    arguments = frame.parse_args(argv)
    others = arguments.onnx or arguments.torch_export or arguments.runtime == "onnx"
    if not others and arguments.runtime is None:
        frame.error("nothing to write: give --onnx FILE, --torch-export FILE.pt2, or --runtime onnx")
    if others and not arguments.paths:
        frame.error("give photographs, or folders of them, on which the file has to agree")
    if others and arguments.runtime == "int8":
        frame.error("--runtime int8 takes a data set in place of photographs; run it alone")
    return guard(lambda: _quantise(arguments) if arguments.runtime == "int8" else _convert(arguments))


def _convert(arguments: argparse.Namespace) -> None:
    from dogbreed.inference.formats import convert

    for_runtime = arguments.runtime == "onnx"
    convert(arguments.model, arguments.paths, arguments.onnx, arguments.torch_export, for_runtime=for_runtime)


def _quantise(arguments: argparse.Namespace) -> None:
    if not 0 <= arguments.max_loss <= 100:
        raise DogbreedError(f"--max-loss {arguments.max_loss:g} is out of range; it is from 0 to 100 points.")
    if len(arguments.paths) > 1:
        raise DogbreedError("--runtime int8 takes one folder, that of the data set.")
    from dogbreed.models.manifest import find_model, read_manifest

    folder: Path = find_model(arguments.model)
    manifest = read_manifest(folder)
    from dogbreed.inference.quantize import add_int8
    from dogbreed.training.evaluation_files import find_files

    trained = manifest.get("config", {}).get("data", {})
    root = arguments.paths[0] if arguments.paths else trained.get("root")
    if root is None or (not arguments.paths and not Path(root).exists()):
        raise DogbreedError(f"Give the folder of the data set too; that of the training ({root}) is not here.")
    found = find_files(root, None, "valid", manifest["class_names"], trained, renamed={}, skip_unknown=True)
    add_int8(folder, found.files["valid"], arguments.max_loss)


if __name__ == "__main__":
    sys.exit(main())
