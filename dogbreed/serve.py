"""`python -m dogbreed.serve`: an exported model behind HTTP, with a page to drop a photograph on."""

import argparse
import logging
import sys
import time
from collections.abc import Sequence

from dogbreed.core.cli import guard, parser, path
from dogbreed.core.errors import DogbreedError
from dogbreed.core.text import count

_DESCRIPTION = "Serve a model that a run has exported: SageMaker's contract, and a page at / to drop a photograph on."
_EPILOG = """\
examples:
  python -m dogbreed.serve outputs/2026-05-01/10-30-00/model
  curl --data-binary @rex.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8080/invocations
  python -m dogbreed.serve model/ --host 0.0.0.0 --port 80 --max-batch 16

It listens on this machine alone unless --host says otherwise. Put a reverse proxy in front for TLS, passwords, and
clients that send their headers slowly. SIGTERM and Ctrl-C end it when all requests that have arrived are answered.

exit codes:
  0    stopped by SIGTERM
  2    not started: the model cannot be read, the port is taken
  130  stopped with Ctrl-C
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    arguments = _parser().parse_args(argv)
    return guard(lambda: _run(arguments))


def _parser() -> argparse.ArgumentParser:
    frame = parser("python -m dogbreed.serve", _DESCRIPTION, _EPILOG)
    add = frame.add_argument
    add("model", metavar="MODEL_DIR", type=path, help="an exported model, or the folder of its run")
    add("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1; 0.0.0.0 for all)")
    add("--port", type=int, default=8080, help="port to listen on (default 8080; 0 takes a free one)")
    add("--device", help="cpu, cuda, cuda:1, mps (default: a GPU where there is one)")
    add("--precision", default="float32", help="float32, or bfloat16: faster where the processor has units for it")
    add(
        "--runtime",
        default="auto",
        help="torch, or onnx or int8 after dogbreed.export --runtime (default: onnx if it can)",
    )
    add("--threads", type=int, metavar="N", help="CPU threads (default: one per core)")
    add("--max-batch", type=int, default=8, metavar="N", help="images in one pass through the network (default 8)")
    add("--max-wait", type=float, default=10, metavar="MS", help="longest wait for others to share it (default 10 ms)")
    add("--max-queue", type=int, default=64, metavar="N", help="requests under way, then 503 (default 64)")
    add("--max-body", type=float, default=20, metavar="MB", help="largest request, then 413 (default 20)")
    add("--max-pixels", type=float, default=100, metavar="MP", help="megapixels of an image, then 400 (default 100)")
    add("--timeout", type=float, default=30, metavar="S", help="seconds for a body to arrive, then 408 (default 30)")
    return frame


def _run(arguments: argparse.Namespace) -> int:
    started = time.perf_counter()
    for name in ("threads", "max_batch", "max_queue", "max_body", "max_pixels", "timeout"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < 1e9:
            raise DogbreedError(f"--{name.replace('_', '-')} {value} is out of range; it is more than 0.")
    if not 0 <= arguments.max_wait < 1e6:
        raise DogbreedError(f"--max-wait {arguments.max_wait} is out of range; it is 0 or more.")
    from dogbreed.models.manifest import find_model, read_manifest

    model = find_model(arguments.model)
    read_manifest(model)  # a wrong path needs no torch to be named
    from dogbreed.core.threads import set_num_threads
    from dogbreed.inference.predictor import Predictor, find_device
    from dogbreed.serving.app import create_app
    from dogbreed.serving.server import bind, serve
    from dogbreed.serving.service import Limits, Service

    listener = bind(arguments.host, arguments.port)
    with listener:
        device, pixels = find_device(arguments.device), int(arguments.max_pixels * 1e6)
        if arguments.threads:
            set_num_threads(arguments.threads)  # ONNX Runtime takes as many when it loads
        predictor = Predictor(
            model, device=device, max_pixels=pixels, precision=arguments.precision, runtime=arguments.runtime
        )
        limits = Limits(int(arguments.max_body * 1e6), arguments.timeout, queue=arguments.max_queue)
        batching = {"max_batch": arguments.max_batch, "max_wait": arguments.max_wait / 1000}
        service = Service(predictor, limits, threads=arguments.threads, **batching)
        _log_to_stderr()

        def ready() -> None:
            host, port = listener.getsockname()[:2]
            address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            served = f"{predictor.model.backbone} with {len(predictor.class_names)} classes from {model}"
            print(f"Serving {served} with {predictor.runtime}, ready after {time.perf_counter() - started:.1f} s.")
            print(f"Page:    {address}/")
            print(f"Images:  POST {address}/invocations", flush=True)

        serve(create_app(service, ready), listener)
    if service.cut_off:
        print(f"Stopped. {count(service.cut_off, 'request')} exceeded the shutdown timeout and got 503.", flush=True)
    else:
        print("Stopped. All requests were answered.", flush=True)
    return 0


def _log_to_stderr() -> None:
    """Write the access log: one line per request, in UTC, with nothing of what was sent."""
    handler = logging.StreamHandler()
    form = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    form.converter = time.gmtime
    handler.setFormatter(form)
    for name, level in (("dogbreed", logging.INFO), ("uvicorn", logging.ERROR)):
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(level)


if __name__ == "__main__":
    sys.exit(main())
