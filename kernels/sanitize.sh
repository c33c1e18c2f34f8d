#!/usr/bin/env bash
# Builds the extension with AddressSanitizer and UndefinedBehaviorSanitizer into build/sanitize and
# runs the kernel tests on it. The installed extension is left alone.
#   kernels/sanitize.sh [python] [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
shift || true
site=build/sanitize/site
packages=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["platlib"])')

"$python" -m pip install --quiet --no-deps --no-build-isolation --upgrade --target "$site" \
  -C build-dir=build/sanitize/cmake -C cmake.define.CRIS_SANITIZE=ON -C cmake.define.CRIS_CUDA=OFF .

# -S keeps an editable install's import hook out, so that this build is the one imported; -P and
# importlib mode keep the source tree from shadowing it. NumPy and Python leak by design.
export LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so) \
$(g++ -print-file-name=libstdc++.so.6)"
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
export PYTHONPATH="$site:$packages:$PWD"
"$python" -S -P -c 'import cris_deploy._kernels as k, sys; sys.exit("/sanitize/" not in k.__file__)'
"$python" -S -P -m pytest --import-mode=importlib -p no:cacheprovider \
  tests/kernels/test_kernels_mask.py tests/kernels/test_kernels_arguments.py "$@"
