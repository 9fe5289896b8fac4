#!/usr/bin/env bash
# Lints and tests the Python package; `./check` runs it. The tests use the program of
# target/debug, or the one that WARMFS_BINARY names, with real mounts and real kernels.
#
#   python/check.sh [pytest's arguments]
set -euo pipefail
cd "$(dirname "$0")/.."

export WARMFS_TEST_HOME=${WARMFS_TEST_HOME:-$HOME/.cache/warmfs-test}
export WARMFS_BINARY=${WARMFS_BINARY:-$PWD/target/debug/warmfs}

# Each by its series: what a linter finds changes with the next one.
TOOLS=('mypy==2.4.*' 'ruff==0.17.*' 'pytest==9.*' 'ipykernel==7.*' 'jupyter_client==8.*'
    'ipython>=8' 'tqdm==4.*' 'types-tqdm==4.*' 'typing_extensions==4.*')

venv=$WARMFS_TEST_HOME/python
installed=$venv/installed
if [ "$(cat "$installed" 2>/dev/null)" != "${TOOLS[*]}" ]; then
    mkdir -p "$WARMFS_TEST_HOME"
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "${TOOLS[@]}"
    echo "${TOOLS[*]}" >"$installed"
fi

"$venv/bin/ruff" format --check --quiet python
"$venv/bin/ruff" check --quiet python
"$venv/bin/mypy"
"$venv/bin/pytest" "$@"
