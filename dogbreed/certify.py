"""`python -m dogbreed.certify`: prove that what was trained is what is served."""

import argparse
import os
import sys
from collections.abc import Sequence

from dogbreed.core.cli import guard, parser, path
from dogbreed.core.errors import DogbreedError

_DESCRIPTION = "Prove that what was trained is what is served, for an exported model and some photographs."
_EPILOG = """\
Generated files are added to the photographs: a drawn one, and odd ones that are grey, CMYK, RGBA, palette, 16 bit,
rotated by EXIF, progressive, truncated, animated, large.

examples:
  python -m dogbreed.certify outputs/2026-05-01/10-30-00/model my_dogs/test
  python -m dogbreed.certify model/ rex.jpg --output certificate.json

exit codes:
  0    all inference paths agree: the certificate is written
  2    they do not, and the certificate says where; or the model or a photograph cannot be read
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    frame = parser("python -m dogbreed.certify", _DESCRIPTION, _EPILOG)
    frame.add_argument("model", metavar="MODEL_DIR", type=path, help="an exported model, or the folder of its run")
    frame.add_argument(
        "photos", metavar="PHOTO", nargs="*", type=os.path.expanduser, help="photographs, or folders of them"
    )
    frame.add_argument("--output", metavar="FILE", type=path, help="default: certificate.json in the model's folder")
    arguments = frame.parse_args(argv)
    return guard(lambda: _certify(arguments))


def _certify(arguments: argparse.Namespace) -> None:
    from dogbreed.serving.certify import certify, summary

    certificate = certify(arguments.model, arguments.photos, arguments.output)
    print(summary(certificate), flush=True)
    if not certificate["passed"]:
        raise DogbreedError(
            f"No certificate: {certificate['fault']}. This model must not be deployed with this version."
        )


if __name__ == "__main__":
    sys.exit(main())
