"""`python launch/sagemaker_invoke.py`: the bytes of images go to an endpoint, classes come back."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, so that launch/ and dogbreed/ are found

from dogbreed.core.cli import guard, parser
from dogbreed.core.errors import DogbreedError
from dogbreed.inference.schema import TOP_K, Options, Response, certainty_fields, similar_field
from dogbreed.serving.client import PredictionError
from launch.aws.errors import explained
from launch.serving.invoke import IMAGES, connect

_EPILOG = """\
examples:
  python launch/sagemaker_invoke.py dogbreed-vgg16 rex.jpg
  python launch/sagemaker_invoke.py http://127.0.0.1:8080 rex.jpg luna.png --json
  python launch/sagemaker_invoke.py dogbreed-vgg16 holiday/ --json > answers.jsonl
  python launch/sagemaker_invoke.py any-name rex.jpg --endpoint-url http://127.0.0.1:8080

exit codes:
  0    every image was answered
  1    some were not: their lines give the reason
  2    nothing was sent: a path does not exist, no credentials, no such endpoint
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    description = "Ask an endpoint, or a server at an address, for the classes of images."
    frame = parser("python launch/sagemaker_invoke.py", description, _EPILOG)
    add = frame.add_argument
    add("endpoint", metavar="ENDPOINT", help="name of an endpoint, or the address of a server")
    add("paths", metavar="PATH", nargs="+", type=os.path.expanduser, help="images, or folders of them")
    add("--json", action="store_true", help="one JSON object per line in place of the table")
    add("--top-k", type=int, default=TOP_K, metavar="K", help=f"classes per answer (default {TOP_K})")
    add("--similar", type=int, default=0, metavar="K", help="name the K most similar training images (default 0)")
    add("--region", help="of the endpoint (default: the environment's)")
    add("--profile", help="named profile of the AWS configuration (default: the environment's)")
    add("--endpoint-url", metavar="URL", help="where boto3 finds the endpoint, instead of AWS")
    add("--queue", metavar="S3_FOLDER", help="for an endpoint of kind=async: where its images are put, s3://...")
    add("--kms-key", metavar="KEY", help="of --queue: what encrypts them (default: as the bucket does)")
    args = frame.parse_args(argv)
    return guard(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    if args.top_k < 1:
        raise DogbreedError(f"--top-k {args.top_k} is out of range; it is a whole number from 1.")
    Options().merge({"similar": args.similar})
    for path in args.paths:
        if not os.path.exists(path):
            raise DogbreedError(f"{path} does not exist; give images, or folders of them.")
    paths = [file for path in args.paths for file in _images(path)]
    where = {"region": args.region, "endpoint_url": args.endpoint_url, "profile": args.profile}
    endpoint = connect(args.endpoint, queue=args.queue, kms_key=args.kms_key, **where)
    failed = 0
    for path in paths:
        try:
            with explained(f"invoking {endpoint.name}"):
                reply = endpoint.predict(Path(path), top_k=args.top_k, similar=args.similar)
        except PredictionError as error:
            if error.status is None:  # it is the endpoint's fault, and will be for the others
                raise
            failed += 1
            print(json.dumps({"path": path, "error": str(error)}) if args.json else f"{path}: {error}", flush=True)
        else:
            print(_json(path, reply) if args.json else _row(path, reply), flush=True)
    return 1 if failed else 0


def _images(path: str) -> list[str]:
    """Return a file as it is, and of a folder the images in it and below."""
    if os.path.isfile(path):
        return [path]
    files = [str(file) for file in sorted(Path(path).rglob("*")) if file.suffix.lower() in IMAGES]
    if not files:
        raise DogbreedError(f"{path} holds no image.")
    return files


def _json(path: str, reply: Response) -> str:
    top = [asdict(score) for score in reply.predictions]
    return json.dumps(
        {
            "path": path,
            **top[0],
            "top": top,
            **certainty_fields(reply),
            **similar_field(reply, len(reply.similar or ())),
        }
    )


def _row(path: str, reply: Response) -> str:
    best, *others = reply.predictions
    rest = ", ".join(f"{score.label} {score.probability:.1%}" for score in others)
    similar = "".join(f"\n  {one.cosine:.2f}  {one.label}  {one.path}" for one in reply.similar or ())
    return f"{path}: {best.label} {best.probability:.1%}" + (f" (or {rest})" if rest else "") + similar


if __name__ == "__main__":
    sys.exit(main())
