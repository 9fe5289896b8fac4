"""Every snippet of ``docs/frameworks.md``: over plain files, cold, and warm.

Before each block stands ``<!-- run with MODULES: NAME -->``: what it imports, and the variable
whose value is compared. Each run is a process of its own, as workers by spawn want it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import samples
from conftest import REPOSITORY, WANTS_HEAVY, World
from digest import digest

import warmfs

# Where the document's mount is.
FOLDER = "/content/data"

# Modules whose packages are too large for every check. `./check --full` installs them, and
# fails where one is missing (`WANTS_HEAVY`).
HEAVY = {
    "datasets",
    "grain",
    "jax",
    "tensorflow",
    "torch",
    "torchvision",
    "transformers",
    "webdataset",
}

# Given, since the room that is left by default is none on a disk that is nearly full.
CACHE_SIZE = "1G"

# For one run of a snippet; importing the heavy ones alone takes some seconds of it.
RUN_TIMEOUT_S = 80

BLOCK = re.compile(
    r"^### (?P<title>.+?)$(?:(?!^###).)*?"
    r"^<!-- run with (?P<modules>[\w ]+): (?P<result>\w+) -->\n```python\n(?P<code>.+?)^```$",
    re.MULTILINE | re.DOTALL,
)

TAIL = """

if __name__ == "__main__":
    from digest import digest

    print(digest({result}))
"""


@dataclass(frozen=True)
class Snippet:
    """One block of the document."""

    title: str
    modules: tuple[str, ...]
    result: str
    code: str

    @property
    def form(self) -> str:
        """What it reads: the first part of its path below the mount."""
        found = re.search(rf"{FOLDER}/([\w.]+)", self.code)
        assert found, f"{self.title}: no path below {FOLDER}"
        return found[1]

    def missing(self) -> list[str]:
        """Modules that are not installed."""
        return [name for name in self.modules if importlib.util.find_spec(name) is None]

    def run(self, folder: Path, work: Path) -> str:
        """The digest of its result with the mount at ``folder``."""
        work.mkdir(exist_ok=True)
        program = work / "snippet.py"
        tail = TAIL.format(result=self.result)
        program.write_text(self.code.replace(FOLDER, str(folder)) + tail)
        paths = (str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep))
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            # What a hub is asked for, it would be asked over the network.
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(work / "huggingface"),
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "JAX_PLATFORMS": "cpu",
        }
        words = [sys.executable, str(program)]
        done = subprocess.run(
            words, check=False, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, env=env
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()[-1]


def snippets() -> Iterator[Snippet]:
    """Those of the document."""
    text = (REPOSITORY / "docs/frameworks.md").read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        modules = tuple(found["modules"].split())
        yield Snippet(found["title"], modules, found["result"], found["code"])


def test_every_block_of_the_document_is_run() -> None:
    text = (REPOSITORY / "docs/frameworks.md").read_text(encoding="utf-8")
    assert text.count("```python") == len(list(snippets())) == text.count("\n### ")


def test_a_digest_tells_values_apart() -> None:
    import numpy
    import pandas

    arrays = [numpy.zeros(4), numpy.zeros((2, 2)), numpy.zeros(4, "int64"), numpy.eye(2)]
    tables = [pandas.DataFrame({"a": [1, value]}) for value in (2, 3)]
    values: list[object] = [1, 1.0, "1", b"1", [1], [[1]], {"a": 1}, {"b": 1}, *arrays, *tables]
    assert len({digest(value) for value in values}) == len(values)
    empty: list[object] = [[], {}, b"", tables[0][:0]]
    for nothing in empty:
        with pytest.raises(TypeError, match="nothing was read"):
            digest(nothing)
    with pytest.raises(TypeError, match="does not know"):
        digest([object()])


@pytest.mark.parametrize("snippet", list(snippets()), ids=lambda snippet: snippet.title)
def test_a_mount_reads_as_plain_files_do(world: World, snippet: Snippet) -> None:
    missing = snippet.missing()
    if missing and not WANTS_HEAVY and HEAVY & set(snippet.modules):
        pytest.skip(f"{', '.join(missing)} not installed: `./check --full` runs it")
    assert not missing, f"{missing} not installed: python/check.sh does it"
    samples.make(world.source, snippet.form)
    plain = snippet.run(world.source, world.root / "plain")
    cold, requests = _over_a_mount(world, snippet, "cold")
    assert cold == plain
    assert requests > 0, "it came through the mount"
    # Mounted anew, so that the kernel has nothing of it in its memory.
    warm, requests = _over_a_mount(world, snippet, "warm")
    assert warm == plain
    assert requests == 0, "the second time nothing is fetched"


def _over_a_mount(world: World, snippet: Snippet, name: str) -> tuple[str, int]:
    """A snippet's digest, and how many GETs its run cost."""
    with world.mount(cache_size=CACHE_SIZE) as data:
        before = _requests()
        return snippet.run(data.path, world.root / name), _requests() - before


def _requests() -> int:
    return warmfs.status().remote.get.requests
