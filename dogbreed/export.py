"""`python -m dogbreed.export`: an exported model for other runtimes."""

import sys
from collections.abc import Sequence

from dogbreed.core.cli import guard, parser, path
from dogbreed.core.extras import install

_DESCRIPTION = "Write an exported model as ONNX or for torch.export, and keep the file only if it answers the same."
_EPILOG = """\
examples:
  python -m dogbreed.export outputs/2026-05-01/10-30-00/model holiday/ --onnx dogs.onnx
  python -m dogbreed.export model/ rex.jpg --onnx dogs.onnx --torch-export dogs.pt2
  python -m dogbreed.export model/ holiday/ --runtime onnx

Inputs and outputs are the network's: images [N, 3, S, S] to logits and probabilities [N, classes]. How an image
becomes an input, the class names and the temperature lie in the file's metadata as model.json.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    frame = parser("python -m dogbreed.export", _DESCRIPTION, _EPILOG)
    add = frame.add_argument
    add("model", metavar="MODEL_DIR", type=path, help="an exported model, or the folder of its run")
    add("paths", metavar="PHOTO", nargs="+", type=path, help="photographs or folders to check it on")
    add("--onnx", metavar="FILE", type=path, help=f"write ONNX ({install('onnx')})".replace("%", "%%"))
    add("--torch-export", metavar="FILE.pt2", type=path, help="write for torch.export.load")
    add("--runtime", choices=["onnx"], help="write model.onnx into the model's folder, for predict and serve on a CPU")
    arguments = frame.parse_args(argv)
    if arguments.onnx is None and arguments.torch_export is None and arguments.runtime is None:
        frame.error("nothing to write: give --onnx FILE, --torch-export FILE.pt2, or --runtime onnx")

    def convert() -> None:
        from dogbreed.inference.formats import convert

        for_runtime = arguments.runtime == "onnx"
        convert(arguments.model, arguments.paths, arguments.onnx, arguments.torch_export, for_runtime=for_runtime)

    return guard(convert)


if __name__ == "__main__":
    sys.exit(main())
