"""A real kernel of IPython: magics, interrupts, restarts, and cells run again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import World
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

import warmfs
from warmfs import _binary, _paths

# For one cell.
CELL_TIMEOUT_S = 40


class Notebook:
    """A kernel, and what its cells answered."""

    def __init__(self, world: World):
        self.world = world
        self.manager = KernelManager(kernel_name="python3")
        package = str(Path(warmfs.__file__).parents[1])
        path = f"{_binary.find().parent}:{os.environ['PATH']}"
        env = {**os.environ, "PYTHONPATH": package, "PATH": path, "IPYTHONDIR": str(world.root)}
        self.manager.start_kernel(env=env)
        self._connect()

    def _connect(self) -> None:
        provisioner: Any = self.manager.provisioner
        self.world.pids.append(provisioner.pid)
        self.client: BlockingKernelClient = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=CELL_TIMEOUT_S)

    def start(self, code: str) -> str:
        """Starts a cell."""
        return str(self.client.execute(code))

    def finish(self, cell: str) -> dict[str, Any]:
        """What a cell printed and showed until it ended."""
        seen: dict[str, Any] = {"text": "", "html": [], "updates": [], "error": None, "shown": 0}
        seen["errors"] = 0
        while True:
            message = self.client.get_iopub_msg(timeout=CELL_TIMEOUT_S)
            kind, content = message["msg_type"], message["content"]
            if kind == "update_display_data":
                seen["updates"].append(content["data"].get("text/html", ""))
            if message["parent_header"].get("msg_id") != cell:
                continue
            if kind == "stream":
                seen["text"] += content["text"]
            elif kind in ("execute_result", "display_data"):
                seen["text"] += content["data"].get("text/plain", "")
                seen["html"].append(content["data"].get("text/html", ""))
            elif kind == "error":
                seen["error"] = content
                seen["errors"] += 1
                seen["shown"] += bool(content["traceback"])
            elif kind == "status" and content["execution_state"] == "idle":
                return seen

    def run(self, code: str) -> dict[str, Any]:
        """Runs a cell that succeeds."""
        seen = self.finish(self.start(code))
        assert seen["error"] is None, seen["error"]
        return seen

    def wait_for(self, cell: str, text: str) -> None:
        """Returns once a running cell has printed a text."""
        printed = ""
        while text not in printed:
            message = self.client.get_iopub_msg(timeout=CELL_TIMEOUT_S)
            if message["parent_header"].get("msg_id") == cell and message["msg_type"] == "stream":
                printed += message["content"]["text"]

    def restart(self) -> None:
        """As the button does."""
        self.client.stop_channels()
        self.manager.restart_kernel(now=True)
        self._connect()

    def close(self) -> None:
        """Ends the kernel."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def notebook(world: World) -> Iterator[Notebook]:
    notebook = Notebook(world)
    yield notebook
    notebook.close()


def mount_cell(world: World, options: str = "") -> str:
    """The first cell of a user's notebook."""
    return (
        "import warmfs, pathlib\n"
        f"data = warmfs.mount({world.uri!r}, {str(world.point)!r}, warm='off'{options})\n"
        "data"
    )


READ_CELL = "sum(len(p.read_bytes()) for p in pathlib.Path(data.path).glob('*/*'))"


def test_magics_do_what_the_verbs_do(world: World, notebook: Notebook) -> None:
    content = world.fill()
    notebook.run("%load_ext warmfs")
    seen = notebook.run(f"%warmfs mount {world.uri} {world.point} --warm off --cache-size=1G")
    assert world.uri in seen["html"][0]
    assert "1.00 GiB" in notebook.run("%warmfs status")["text"]
    assert "000.bin" in notebook.run(f"%warmfs ls {world.point}/0")["text"]
    seen = notebook.run("import pathlib, warmfs; data = warmfs.status().mounts[0]; data")
    assert "from the cache" in seen["html"][0]
    total = sum(map(len, content.values()))
    cell = f"%%warmfs epoch the first\n{READ_CELL.replace('data.path', 'data.dir')}"
    seen = notebook.run(cell)
    assert str(total) in seen["text"]
    assert "the first: " in seen["text"]
    assert "4 GET" in seen["text"]
    assert "<svg" in notebook.run("warmfs.report()")["html"][0]
    notebook.run(f"%warmfs unmount {world.point}")
    assert not _paths.mounts()


@pytest.mark.parametrize(
    ("cell", "error"),
    [
        ("%warmfs", "InvalidError: %warmfs needs a verb"),
        ("%warmfs nonsense", "UnsupportedError: this warmfs has no `nonsense`"),
        ("%warmfs ls /tmp", "NotMountedError: /tmp is in no mount of warmfs"),
        ("%warmfs ls 'x", "InvalidError: %warmfs ls 'x: No closing quotation"),
        ("%warmfs mount", "InvalidError: mount takes a URI and a folder"),
        ("%warmfs mount file:///x", "NotFoundError: cannot mount file:///x"),
        ("%warmfs mount x://y /m", "InvalidError: x:// is not supported"),
        ("%%warmfs nonsense\n1", "InvalidError: %%warmfs over a cell measures it"),
        ("%%warmfs epoch\n1/0", "ZeroDivisionError"),
        ("import warmfs; warmfs.mount('x://y', '/m')", "InvalidError: x:// is not supported"),
    ],
)
def test_errors_in_a_cell_are_a_sentence(notebook: Notebook, cell: str, error: str) -> None:
    notebook.run("%load_ext warmfs")
    cell_id = notebook.start(cell)
    seen = notebook.finish(cell_id)
    assert seen["error"] is not None
    assert error in f"{seen['error']['ename']}: {seen['error']['evalue']}"
    assert seen["shown"] == 1
    if "ZeroDivision" not in error:
        assert len(seen["error"]["traceback"]) == 1
    reply = notebook.client.get_shell_msg(timeout=CELL_TIMEOUT_S)
    while reply["parent_header"]["msg_id"] != cell_id:
        reply = notebook.client.get_shell_msg(timeout=CELL_TIMEOUT_S)
    assert reply["content"]["status"] == "error", "it stops `run all`"


@pytest.mark.parametrize("body", ["print('x')\n1/0", "print('x')\n1 +"])
def test_an_error_in_a_measured_cell_is_shown_once_and_last(notebook: Notebook, body: str) -> None:
    notebook.run("%load_ext warmfs")
    seen = notebook.finish(notebook.start(f"%%warmfs epoch broken\n{body}"))
    assert "broken: " in seen["text"]
    assert seen["errors"] == 1
    shown = "\n".join(seen["error"]["traceback"])
    assert seen["error"]["ename"] in shown
    assert "_run_epoch" not in shown or body.endswith("+"), "none of our frames"
    assert notebook.finish(notebook.start("1/0"))["shown"] == 1, "the shell shows errors again"


def test_a_notebook_without_widgets_has_a_bar_and_no_warning(
    world: World, notebook: Notebook
) -> None:
    world.fill()
    notebook.run(mount_cell(world))
    seen = notebook.run("warmfs.prefetch(data)")
    assert "prefetch: 100%" in seen["text"] and "4 of 4 files" in seen["text"]
    assert "Warning" not in seen["text"]
    assert seen["text"].endswith("prefetched 4 objects, 1.14 MiB")


def test_a_picture_drawn_anew_ends_the_one_before(world: World, notebook: Notebook) -> None:
    world.fill()
    notebook.run(mount_cell(world))
    notebook.run("first = warmfs.watch(interval_s=0.2)")
    seen = notebook.run("second = warmfs.watch(interval_s=0.2)\nprint(first, second)")
    assert seen["text"].endswith("<Watch: ended> <Watch: stop() ends the picture>\n")


def test_an_interrupted_cell_leaves_mount_and_cache(world: World, notebook: Notebook) -> None:
    content = world.fill(files=6, size=500_000)
    notebook.run(mount_cell(world, ", max_bandwidth='500K'"))
    pid = world.daemon_pid()
    cell = notebook.start(f"print('reads', flush=True)\n{READ_CELL}")
    notebook.wait_for(cell, "reads")
    notebook.manager.interrupt_kernel()
    seen = notebook.finish(cell)
    assert seen["error"]["ename"] == "KeyboardInterrupt"
    assert world.daemon_pid() == pid
    cached = warmfs.status().cache.used_bytes
    seen = notebook.run(mount_cell(world, ", max_bandwidth='500K'"))
    assert world.daemon_pid() == pid
    assert str(sum(map(len, content.values()))) in notebook.run(READ_CELL)["text"]
    assert warmfs.status().cache.used_bytes >= cached


def test_a_restarted_kernel_finds_mount_and_cache(world: World, notebook: Notebook) -> None:
    content = world.fill()
    for _ in range(2):
        notebook.run(mount_cell(world))
        assert str(sum(map(len, content.values()))) in notebook.run(READ_CELL)["text"]
        pid = world.daemon_pid()
        notebook.restart()
        assert world.daemon_pid() == pid
    assert warmfs.status().remote.get.requests == len(content)


def test_mount_in_a_shell_line_returns_and_outlives_its_interrupt(
    world: World, notebook: Notebook
) -> None:
    """IPython runs `!` on a pseudo-terminal and waits until nobody holds it any more."""
    world.fill()
    seen = notebook.run(f"!warmfs mount {world.uri} {world.point} --warm off")
    assert "mounted at" in seen["text"]
    pid = world.daemon_pid()
    cell = notebook.start("!echo sleeps; sleep 60")
    notebook.wait_for(cell, "sleeps")
    notebook.manager.interrupt_kernel()
    notebook.finish(cell)
    assert world.daemon_pid() == pid
    assert (world.point / "0/000.bin").stat().st_size == 300_000


def test_an_interrupted_magic_ends_its_program(world: World, notebook: Notebook) -> None:
    program = world.root / "warmfs"
    program.write_text("#!/bin/sh\necho started\nexec sleep 60\n")
    program.chmod(0o755)
    notebook.run(f"%load_ext warmfs\nimport os; os.environ['WARMFS_BINARY'] = {str(program)!r}")
    cell = notebook.start("%warmfs log -f")
    notebook.wait_for(cell, "started")
    notebook.manager.interrupt_kernel()
    seen = notebook.finish(cell)
    assert seen["error"]["ename"] == "KeyboardInterrupt"
    assert not _children(notebook)


def _children(notebook: Notebook) -> list[str]:
    provisioner: Any = notebook.manager.provisioner
    task = Path(f"/proc/{provisioner.pid}/task")
    found = [path.read_text().split() for path in task.glob("*/children")]
    return [pid for pids in found for pid in pids]


def test_a_picture_is_drawn_while_other_cells_run(world: World, notebook: Notebook) -> None:
    world.fill()
    notebook.run(mount_cell(world))
    seen = notebook.run("picture = warmfs.watch(interval_s=0.2)")
    assert "first figures" in seen["html"][0]
    seen = notebook.run(f"{READ_CELL}\nimport time; time.sleep(1)\npicture.stop()")
    assert any("<svg" in html for html in seen["updates"])
    assert notebook.run("print(picture.is_running)")["text"] == "False\n"


def test_workers_of_a_pool_are_seen_waiting(world: World, notebook: Notebook) -> None:
    world.fill(files=6, size=500_000)
    notebook.run(mount_cell(world, ", max_bandwidth='1M'"))
    for method in ("fork", "spawn"):
        notebook.run(
            "import multiprocessing\n"
            f"with warmfs.epoch({method!r}) as cost:\n"
            f"    with multiprocessing.get_context({method!r}).Pool(2) as pool:\n"
            "        pool.map(pathlib.Path.read_bytes, sorted(data.path.glob('*/*'))[2:])\n"
            "warmfs.evict(data, progress=False)\n"
        )
        waited = notebook.run("print(cost.wait_s)")["text"]
        assert method == "spawn" or float(waited) > 0, waited
