"""``notebooks/colab_quickstart.ipynb``, from top to bottom: a real kernel and a real daemon,
over a bucket of the tests' own that lets in anybody.

Where torch is not installed, the cell that needs it is replaced, and says so; the test that
trains is skipped then, and ``./check --full`` runs it. As root the kernel has a mount
namespace of its own, in which the table of mounts and mount(8)'s helpers are copies.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from conftest import REPOSITORY, WANTS_HEAVY, World
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from samples import CLASSES, picture
from store import Store
from test_frameworks import CACHE_SIZE

import warmfs
from warmfs import _binary

NOTEBOOK = REPOSITORY / "notebooks/colab_quickstart.ipynb"

# For one cell, below the watchdog's.
CELL_TIMEOUT_S = 60

HAS_TORCH = importlib.util.find_spec("torch") is not None

FILES = 40

# What stands for the cell that needs torch: the same names, and the same files read.
WITHOUT_TORCH = f"""
from pathlib import Path

files = sorted(Path(DATA).rglob("*.png"))
sampler = warmfs.torch.hint(range(len(files)), files)


def train():
    assert sum(len(files[index].read_bytes()) > 0 for index in sampler) == {FILES}
    return 0.0


print("NOT RUN: torch is not installed, files are read without a model")
"""

# The kernel, where it may write to the table of mounts. A file system in memory holds what it
# writes, as the root may be an overlay itself, which cannot.
NAMESPACE = """
mount -t tmpfs warmfs-test "$1"
for folder in /etc "$(readlink -f /sbin)"; do
    mkdir -p "$1/upper$folder" "$1/work$folder"
    layers="lowerdir=$folder,upperdir=$1/upper$folder,workdir=$1/work$folder"
    mount -t overlay -o "$layers" warmfs-test "$folder"
done
shift
exec "$@"
"""


@pytest.fixture
def bucket() -> Iterator[Store]:
    """Pictures in a folder for each of their kinds."""
    objects = {
        f"pictures/{CLASSES[number % 2]}/{number:03}.png": picture(number)
        for number in range(FILES)
    }
    with Store(objects, key=None) as store:
        yield store


def kernel(world: World) -> KernelManager:
    """A kernel whose mounts, as root, are seen by nobody else."""
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    if os.geteuid() == 0:
        scratch = world.root / "namespace"
        scratch.mkdir()
        unshare = ["unshare", "--mount", "--propagation=private"]
        argv = [*unshare, "sh", "-ec", NAMESPACE, "sh", str(scratch), *argv]
    spec = world.root / "kernels/quickstart"
    spec.mkdir(parents=True)
    described = {"argv": argv, "display_name": "quickstart", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(described))
    specs = KernelSpecManager(kernel_dirs=[str(spec.parent)])
    return KernelManager(kernel_name="quickstart", kernel_spec_manager=specs)


def run(world: World, notebook: Any, **variables: str) -> dict[str, str]:
    """Runs the cells in order, as "run all" does. Returns what each said, by its name."""
    programs = world.root / "bin"
    programs.mkdir()
    (programs / "warmfs").symlink_to(_binary.find())
    env = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(warmfs.__file__).parents[1]),
        "IPYTHONDIR": str(world.root),
        "AWS_EC2_METADATA_DISABLED": "true",
        "WARMFS_CACHE_SIZE": CACHE_SIZE,
        "WARMFS_QUICKSTART_DIR": str(world.point),
        **variables,
    }
    manager = kernel(world)
    resources = {"metadata": {"path": str(world.root)}}
    client = NotebookClient(notebook, km=manager, timeout=CELL_TIMEOUT_S, resources=resources)
    try:
        client.execute(env=env, cleanup_kc=True)
    finally:
        if manager.has_kernel:
            manager.shutdown_kernel(now=True)
    return {cell.id: _said(cell) for cell in notebook.cells if cell.cell_type == "code"}


def _said(cell: Any) -> str:
    parts = []
    for output in cell.outputs:
        data = output.get("data", {})
        parts += [output.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")]
    return "\n".join(filter(None, parts))


def gets(said: str) -> int:
    """The GETs of an epoch, from what was printed of it."""
    found = re.search(r"(\d+) GET", said)
    assert found, said
    return int(found[1])


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def check(said: dict[str, str]) -> None:
    assert "s3://bucket/pictures" in said["mount"]
    assert all(name in said["ls"] for name in CLASSES)
    assert str(FILES) in said["du"] and "cat" in said["shell"]
    assert gets(said["epoch-1"]) >= FILES, "one each, and those that were late a second time"
    assert gets(said["epoch-2"]) == gets(said["epoch-3"]) == 0
    assert all("loss" in said[f"epoch-{n}"] for n in (1, 2, 3))
    assert "<svg" in said["report"]
    assert "interrupted" in said["interrupt"]
    assert "bytes of" in said["alive"] and "s3://bucket/pictures" in said["alive"]
    assert "100 %" in said["prefetch"]
    assert f"{FILES} files are there" in said["fstab"]
    if os.geteuid() == 0 and "has no `fstab`" not in said["fstab"]:
        assert " warmfs ro," in said["fstab"], "the line that was added"
    assert said["unmount"].strip() == "unmounted"


def test_every_cell_runs(world: World, bucket: Store) -> None:
    notebook = read()
    replaced = [cell for cell in notebook.cells if "torch" in cell.metadata.get("tags", ())]
    assert len(replaced) == 1
    replaced[0].source = WITHOUT_TORCH
    variables = {"WARMFS_ENDPOINT_URL": bucket.endpoint}
    said = run(world, notebook, WARMFS_QUICKSTART_URI="s3://bucket/pictures", **variables)
    check(said)
    assert "NOT RUN" in said["model"]


@pytest.mark.skipif(
    not HAS_TORCH and not WANTS_HEAVY,
    reason="the notebook's training: torch not installed: `./check --full` runs it",
)
def test_it_trains_with_torch(world: World, bucket: Store) -> None:
    variables = {"WARMFS_ENDPOINT_URL": bucket.endpoint}
    said = run(world, read(), WARMFS_QUICKSTART_URI="s3://bucket/pictures", **variables)
    check(said)
    assert (world.root / "checkpoints/last.pt").exists()


def test_an_unpublished_name_is_never_installed(world: World) -> None:
    """Without the package, and without a word on where it is, the first cell says so."""
    notebook = read()
    notebook.cells = [cell for cell in notebook.cells if cell.id == "install"]
    with pytest.raises(CellExecutionError, match="name its wheel in INSTALL"):
        run(world, notebook, PYTHONPATH="")


def test_the_first_cell_installs_the_wheel_that_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = world.root / "warmfs-0.0.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as files:
        files.writestr("warmfs.py", "print('the wheel is imported')")
        about = {"METADATA": "Metadata-Version: 2.1\nName: warmfs\nVersion: 0.0.0\n", "RECORD": ""}
        about["WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        for name, text in about.items():
            files.writestr(f"warmfs-0.0.0.dist-info/{name}", text)
    target = world.root / "packages"
    target.mkdir()
    monkeypatch.setenv("PIP_TARGET", str(target))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    notebook = read()
    notebook.cells = [cell for cell in notebook.cells if cell.id == "install"]
    imports = nbformat.v4.new_code_cell("import warmfs", id="imports")
    notebook.cells.append(imports)
    variables = {"WARMFS_QUICKSTART_INSTALL": str(wheel), "PYTHONPATH": str(target)}
    said = run(world, notebook, **variables)
    assert "the wheel is imported" in said["imports"]


def test_it_is_committed_without_outputs() -> None:
    cells = [cell for cell in read().cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)


def test_what_the_tests_change_is_what_a_user_changes() -> None:
    """One cell has the URI, and all of the clouds are named beside it."""
    cells = [cell.source for cell in read().cells]
    assert sum("URI = " in source for source in cells) == 1
    text = "\n".join(cells)
    for word in ("s3://", "gs://", "az://", "ais://", "recycled VM starts cold", "read-only"):
        assert word in text, word
    assert shutil.which("unshare"), "util-linux, which ./check installs"
