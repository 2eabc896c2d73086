"""`sagemaker_invoke.py`: the bytes of photographs go to an endpoint, breeds come back."""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dogbreed.core.cli import guard
from dogbreed.core.errors import DogbreedError
from dogbreed.inference.schema import TOP_K, Response
from dogbreed.serving.client import Endpoint, PredictionError, is_address
from launch.aws.account import environment_region
from launch.aws.errors import explained
from launch.serving.smoke_test import Queue

_EPILOG = """\
examples:
  python launch/sagemaker_invoke.py dogbreed-vgg16 rex.jpg
  python launch/sagemaker_invoke.py http://127.0.0.1:8080 rex.jpg luna.png --json
  python launch/sagemaker_invoke.py any-name rex.jpg --endpoint-url http://127.0.0.1:8080

exit codes:
  0    every photograph was answered
  1    some were not: their lines give the reason
  2    nothing was asked: a path does not exist, no credentials, no such endpoint
"""


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python launch/sagemaker_invoke.py",
        description="Asks an endpoint, or a server at an address, for the breeds on photographs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("endpoint", metavar="ENDPOINT", help="name of an endpoint, or the address of a server")
    parser.add_argument("paths", metavar="PATH", nargs="+", help="photographs")
    parser.add_argument("--json", action="store_true", help="one JSON object a line in place of the table")
    parser.add_argument(
        "--top-k", type=int, default=TOP_K, metavar="K", help=f"breeds in each answer (default {TOP_K})"
    )
    parser.add_argument("--region", help="of the endpoint (default: the environment's)")
    parser.add_argument("--endpoint-url", metavar="URL", help="where boto3 finds the endpoint, instead of AWS")
    parser.add_argument(
        "--queue", metavar="S3_FOLDER", help="for an endpoint of kind=async: where its photographs are put, s3://..."
    )
    given = parser.parse_args(argv)
    return guard(lambda: _run(given))


def _run(given: argparse.Namespace) -> int:
    if given.top_k < 1:
        raise DogbreedError(f"--top-k {given.top_k} is out of range; it is a whole number from 1.")
    for path in given.paths:
        if not os.path.isfile(path):
            raise DogbreedError(f"{path} is no file; give photographs.")
    endpoint = _endpoint(given)
    failed = 0
    for path in given.paths:
        try:
            with explained(f"asking {endpoint.name}"):
                reply = endpoint.predict(Path(path), top_k=given.top_k)
        except PredictionError as error:
            if error.status is None:  # it is the endpoint's fault, and will be for the others
                raise
            failed += 1
            print(json.dumps({"path": path, "error": str(error)}) if given.json else f"{path}: {error}", flush=True)
        else:
            print(json.dumps(_told(path, reply)) if given.json else _row(path, reply), flush=True)
    return 1 if failed else 0


def _endpoint(given: argparse.Namespace) -> Endpoint:
    if is_address(given.endpoint):
        return Endpoint(given.endpoint)
    import boto3

    with explained("reading the AWS configuration"):
        session = boto3.Session(region_name=given.region or environment_region())
        if not session.region_name:
            raise DogbreedError("No AWS region is set; give --region us-east-1 (or another), or AWS_REGION.")
        runtime = session.client("sagemaker-runtime", endpoint_url=given.endpoint_url)
        if given.queue:
            from launch.aws.naming import split_s3

            bucket, folder = split_s3(given.queue, "--queue")
            runtime = Queue(runtime, session.client("s3"), bucket, folder.strip("/") or "queue")
    return Endpoint(given.endpoint, runtime)


def _told(path: str, reply: Response) -> dict[str, Any]:
    best = reply.predictions[0]
    top = [asdict(guess) for guess in reply.predictions]
    return {"path": path, "label": best.label, "index": best.index, "probability": best.probability, "top": top}


def _row(path: str, reply: Response) -> str:
    best, *others = reply.predictions
    rest = ", ".join(f"{guess.label} {guess.probability:.1%}" for guess in others)
    return f"{path}: {best.label} {best.probability:.1%}" + (f" (or {rest})" if rest else "")
