#!/bin/sh
# The steps of launch/Dockerfile, from the top of a checkout; the image holds this file to start and check its server.
#
#   container.sh lock [NAME...]   write launch/container.lock anew with uv; a NAME, such as timm, goes in too
#   container.sh packages VENV    make an environment with the packages of the lock, and torch
#   container.sh package VENV     build dogbreed and install it there
#   container.sh serve [FLAG...]  serve the model in /opt/ml/model on port 8080, as SageMaker starts an image
#   container.sh check            whether the server answers
set -eu

# torch comes from an index of its own for each kind of machine: TORCH=cpu, cu130, ...
TORCH_PACKAGES="torch==2.14.1 torchvision==0.29.1"
PORT=8080

case "${1:-}" in
lock)
    shift
    # As for Windows, where torch needs nothing of CUDA; the hashes are those of all systems.
    printf '%s\n' $TORCH_PACKAGES numpy pillow safetensors starlette uvicorn prometheus-client "$@" |
        UV_CUSTOM_COMPILE_COMMAND="sh launch/container.sh lock${*:+ $*}" uv pip compile - --upgrade --generate-hashes \
            --python-version 3.12 --python-platform windows --no-emit-package torch --no-emit-package torchvision \
            --no-annotate --quiet --output-file launch/container.lock
    ;;
packages)
    python -m venv --without-pip "$2"
    set -- python -m pip --python "$2/bin/python" install --no-cache-dir
    "$@" --no-deps --require-hashes --requirement launch/container.lock
    "$@" $TORCH_PACKAGES --index-url "https://download.pytorch.org/whl/${TORCH:-cpu}"
    ;;
package)
    wheels=$(mktemp -d)
    python -m pip wheel --no-cache-dir --no-deps --wheel-dir "$wheels" .
    # Without its dependencies: the server needs neither Lightning nor Hydra.
    python -m pip --python "$2/bin/python" install --no-cache-dir --no-deps --no-index "$wheels"/dogbreed-*.whl
    rm -r "$wheels"
    ;;
serve)
    shift
    # 100 MB, as SageMaker sends them in batches and asynchronously; in real time it refuses what is larger itself.
    exec python -m dogbreed.serve "${SAGEMAKER_BASE_DIR:-/opt/ml}/model" --host 0.0.0.0 --port $PORT --max-body 100 "$@"
    ;;
check)
    exec python -c "
import http.client, sys
connection = http.client.HTTPConnection('127.0.0.1', ${2:-$PORT}, timeout=2)
connection.request('GET', '/ping')
sys.exit(connection.getresponse().status != 200)"
    ;;
*)
    echo "container.sh: lock, packages, package, serve or check; not '${1:-}'." >&2
    exit 2
    ;;
esac
