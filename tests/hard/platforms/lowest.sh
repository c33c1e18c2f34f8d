#!/usr/bin/env bash
# Installs the lowest versions that pyproject.toml allows into an environment of their own and runs
# the tests of the core's rooms on them: first without PyTorch, then with it (3 GB more).
#   tests/hard/platforms/lowest.sh UV [cpu | train]     (both, one after the other)
# What is installed stays in .venv-lowest: remove it when it is not needed.
set -euo pipefail
cd "$(dirname "$0")/../../.."
uv=$(realpath "$1")
part=${2:-both}
lowest=.venv-lowest

install() { "$uv" pip install --quiet --python "$lowest/bin/python" --resolution lowest-direct "$@"; }
tests() { "$lowest/bin/python" -m pytest -q -p no:cacheprovider -n 2 --dist loadfile "$@"; }

test -x "$lowest/bin/python" || "$uv" venv --quiet --python 3.11 "$lowest"
# What tests are run with is no dependency of users: today's.
"$uv" pip install --quiet --python "$lowest/bin/python" pytest pytest-xdist hypothesis \
  httpx pybind11 'cuda-bindings>=13.0,<14' 'cuda-core>=1.1'

if [ "$part" != train ]; then
  # onnx makes the bundles of these tests; nothing else of the extra `export` is needed.
  install --editable '.[cpu,openvino,serve,sign]' 'onnx>=1.19' 'pycocotools>=2.0.8'
  tests tests/deploy/{bundle,engine,pixels,words,proof,machine} tests/deploy/test_documents.py \
    tests/kernels tests/hard/trust --ignore tests/kernels/test_wheel.py
fi
if [ "$part" != cpu ]; then
  install --editable '.[cpu,openvino,serve,sign,export,train]'
  tests tests/export tests/train tests/integration/test_export.py
fi
