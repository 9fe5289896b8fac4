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
from conftest import REPOSITORY, World

import warmfs

# Where the document's mount is.
FOLDER = "/content/data"

# Modules whose packages are too large for every check: `./check --full` installs them.
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

# Set by `./check --full`: there, what is not installed is a failure.
WANTS_HEAVY = os.environ.get("WARMFS_TEST_FRAMEWORKS") == "all"

# For one run of a snippet; importing the heavy ones alone takes some seconds of it.
RUN_TIMEOUT_S = 60

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


@pytest.mark.parametrize("snippet", list(snippets()), ids=lambda snippet: snippet.title)
def test_a_mount_reads_as_plain_files_do(world: World, snippet: Snippet) -> None:
    missing = snippet.missing()
    if missing and not WANTS_HEAVY and HEAVY & set(snippet.modules):
        pytest.skip(f"{', '.join(missing)} not installed: `./check --full` runs it")
    assert not missing, f"{missing} not installed: python/check.sh does it"
    samples.make(world.source, snippet.form)
    plain = snippet.run(world.source, world.root / "plain")
    with world.mount(open_mode="cached") as data:
        assert _requests() == 0, "nothing is cached yet"
        assert snippet.run(data.path, world.root / "cold") == plain
        cold = _requests()
        assert cold > 0, "it came through the mount"
        assert snippet.run(data.path, world.root / "warm") == plain
        assert _requests() == cold, "the second time nothing is fetched"


def _requests() -> int:
    return warmfs.status().remote.get.requests
