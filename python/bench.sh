#!/usr/bin/env bash
# Measures what training from a mount costs, beside training from a disk, and the way from an
# empty environment to a first batch: docs/performance.md, "Training epochs". Needs root, nginx
# and some GB for torch.
#
#   python/bench.sh                                    builds the wheel and measures everything
#   python/bench.sh --only twice_the_cache --rounds 1  a group of it, once
#   WARMFS_WHEEL=target/wheels/….whl python/bench.sh   with a wheel that is there
set -euo pipefail
cd "$(dirname "$0")/.."

export WARMFS_TEST_HOME=${WARMFS_TEST_HOME:-$HOME/.cache/warmfs-test}
PACKAGES=(torch numpy 'pillow>=11')

wheel=${WARMFS_WHEEL:-$(python/build_wheel.sh | tail -1)}

venv=$WARMFS_TEST_HOME/bench
installed=$venv/installed
if [ "$(cat "$installed" 2>/dev/null)" != "${PACKAGES[*]}" ]; then
    mkdir -p "$WARMFS_TEST_HOME"
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "${PACKAGES[@]}"
    echo "${PACKAGES[*]}" >"$installed"
fi
# The program that is measured is the wheel's; the package is that of the tree.
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-index --force-reinstall "$wheel"

PYTHONPATH=python exec "$venv/bin/python" -m bench "$wheel" "$@"
