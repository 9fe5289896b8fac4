"""The wheel in an empty environment: `./check --full` builds it and names it in WARMFS_WHEEL."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import World

WHEEL = os.environ.get("WARMFS_WHEEL")

pytestmark = pytest.mark.skipif(not WHEEL, reason="WARMFS_WHEEL names no wheel to install")

FIRST_CELL = """
import sys, warmfs
uri, point = sys.argv[1:]
with warmfs.mount(uri, point, warm="off") as data:
    print(sum(len(path.read_bytes()) for path in data.path.rglob("*.bin")))
"""


@pytest.fixture
def python(world: World, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter that has the wheel and nothing else."""
    monkeypatch.delenv("WARMFS_BINARY")
    monkeypatch.setenv("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
    venv = world.root / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(venv / "bin/pip"), "install", "--quiet", "--no-index", str(WHEEL)]
    subprocess.run(pip, check=True)
    return venv / "bin/python"


def run(*args: object) -> str:
    """What a program printed that succeeded."""
    words = [str(arg) for arg in args]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=80)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_finds_the_program_it_came_with(world: World, python: Path) -> None:
    content = world.fill()
    printed = run(python, "-I", "-c", FIRST_CELL, world.uri, world.point)
    assert int(printed) == sum(map(len, content.values()))
    assert run(python, "-I", "-m", "warmfs", "--version").startswith("warmfs ")
    assert run(python, "-I", "-m", "pip", "list", "--format=freeze").count("==") <= 3


def test_the_demo_runs(world: World, python: Path) -> None:
    options = ("--small-files=50", "--large-files=1", f"--dir={world.root}")
    assert run(python.with_name("warmfs"), "demo", *options)
