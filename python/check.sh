#!/usr/bin/env bash
# Lints and tests the Python package; `./check` runs it. The tests use the program of
# target/debug, or the one that WARMFS_BINARY names, with real mounts and real kernels.
#
#   python/check.sh [pytest's arguments]
#
# With WARMFS_TEST_FRAMEWORKS=all it installs what is large as well, into an environment of
# its own: torch, TensorFlow, JAX and Hugging Face's. Nothing is skipped for their sake then.
set -euo pipefail
cd "$(dirname "$0")/.."

export WARMFS_TEST_HOME=${WARMFS_TEST_HOME:-$HOME/.cache/warmfs-test}
export WARMFS_BINARY=${WARMFS_BINARY:-$PWD/target/debug/warmfs}

# Each by its series: what a linter finds changes with the next one.
TOOLS=('mypy==2.4.*' 'ruff==0.17.*' 'pytest==9.*' 'ipykernel==7.*' 'jupyter_client==8.*'
    'ipython>=8' 'tqdm==4.*' 'types-tqdm==4.*' 'typing_extensions==4.*' 'nbclient==0.11.*'
    'nbformat==5.*')

# What docs/frameworks.md reads with, unless it is large: a minute to install.
LIGHT=(numpy 'pillow>=11' pandas pyarrow polars duckdb h5py 'zarr>=3' lmdb safetensors
    opencv-python-headless fsspec)

# The large ones, 9 GB, for `./check --full`.
HEAVY=(torch torchvision tensorflow jax grain datasets transformers webdataset)

packages=("${TOOLS[@]}" "${LIGHT[@]}")
venv=$WARMFS_TEST_HOME/python
if [ "${WARMFS_TEST_FRAMEWORKS:-}" = all ]; then
    packages+=("${HEAVY[@]}")
    venv=$WARMFS_TEST_HOME/frameworks
fi
installed=$venv/installed
if [ "$(cat "$installed" 2>/dev/null)" != "${packages[*]}" ]; then
    mkdir -p "$WARMFS_TEST_HOME"
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "${packages[@]}"
    echo "${packages[*]}" >"$installed"
fi

"$venv/bin/ruff" format --check --quiet python notebooks
"$venv/bin/ruff" check --quiet python notebooks
"$venv/bin/mypy"
"$venv/bin/pytest" "$@"
