"""``python/bench.sh``: training from a mount, beside training from a disk.

Prints target and result, medians of all rounds; ratios are of neighbours in one round. Exits
with 1 if a target is missed. Needs root, which drops the page cache. Readers, daemon and
store share the machine's cores: the rows of CPU say what each took.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import warmfs

from . import figures, pictures
from .figures import Figure, at_least, at_most
from .process import cpu_s
from .store import Store

# Odd, so that a median is one of them.
ROUNDS = 3

COUNT = 5_000

# No figure of a mount counts where the disk itself is slower, in pictures a second.
DISK_LEAST = 1_000

# Longer than any child takes that will end.
CHILD_TIMEOUT_S = 300.0

# Of the dataset that is twice the cache: one that fills it, and one that counts.
EPOCHS = 2

CORES = os.cpu_count() or 1


class Stage:
    """What all rounds stand on."""

    def __init__(self, work: Path, disk: Path, store: Store, wheel: Path):
        self.work = work
        self.disk = disk
        self.store = store
        self.wheel = wheel
        self.bytes = sum(path.stat().st_size for path in disk.rglob("*.jpg"))

    def folder(self, name: str) -> Path:
        """A new one."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.work))

    @contextlib.contextmanager
    def mounted(self, **options: Any) -> Iterator[Path]:
        """The bucket, with a cache of its own that is empty. It is kept to the end: ext4 looks
        through inodes that were just freed for a new one, which costs the daemon a sixth.
        """
        home = self.folder("mount")
        point = home / "data"
        options.update(endpoint_url=self.store.endpoint, no_sign_request=True)
        warmfs.mount(self.store.uri, point, cache_dir=home / "cache", **options)
        try:
            yield point
        finally:
            unmount(point)


def unmount(point: Path) -> None:
    try:
        warmfs.unmount(point)
    except warmfs.BusyError:
        warmfs.unmount(point, lazy=True)


class Epoch(NamedTuple):
    """What one pass took, and of whom."""

    elapsed_s: float
    first_batch_s: float
    pictures: int
    total: int
    training_cpu_s: float
    daemon_cpu_s: float
    store_cpu_s: float


def train(stage: Stage, folder: Path, *caches: str, is_hinted: bool = False) -> list[Epoch]:
    """Epochs of one process over ``folder``, which is on a disk or a mount."""
    daemon = 0 if folder == stage.disk else warmfs.status(folder).pid

    def spent() -> tuple[float, float]:
        return (cpu_s(daemon) if daemon else 0.0, stage.store.cpu_s())

    words = [sys.executable, "-m", "bench.train", str(folder), *caches]
    child = subprocess.Popen(
        words + ["--hint"] * is_hinted, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with child, _ended_after(CHILD_TIMEOUT_S, child):
        assert child.stdout is not None
        done, before = [], spent()
        for line in child.stdout:
            after = spent()
            took = (now - then for now, then in zip(after, before))
            done.append(Epoch(*json.loads(line).values(), *took))
            before = after
    if child.returncode or len(done) != len(caches):
        raise SystemExit(f"training failed with {child.returncode}")
    return done


@contextlib.contextmanager
def _ended_after(seconds: float, child: subprocess.Popen[str]) -> Iterator[None]:
    """Kills a child and its workers in the end; what waits for a mount goes with the mount."""
    timer = threading.Timer(seconds, lambda: os.killpg(child.pid, signal.SIGKILL))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def first_batch(stage: Stage, rounds: int) -> Iterator[Figure]:
    """From an empty environment to 32 pictures."""
    plain: list[float] = []
    loader: list[float] = []
    mounts: list[float] = []
    for _ in range(rounds):
        for times, has_torch in ((plain, False), (loader, True)):
            home = stage.folder("first")
            subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True)
            began = time.perf_counter()
            mount_s = _install_and_read(stage, home, has_torch)
            times.append(time.perf_counter() - began)
            mounts.append(mount_s)
            unmount(home / "data")
            shutil.rmtree(home)
    yield Figure("empty venv, the wheel: to 32 files in a loop", plain, "s", at_most(10))
    yield Figure("- to a DataLoader's first batch, torch at hand", loader, "s", at_most(10))
    yield Figure("mount()", mounts, "s", at_most(1))


def _install_and_read(stage: Stage, home: Path, has_torch: bool) -> float:
    python = home / "venv/bin/python"
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    subprocess.run([python, *pip, stage.wheel], check=True, timeout=CHILD_TIMEOUT_S)
    script = Path(__file__).with_name("first_batch.py")
    if has_torch:
        # What Colab has installed, after the wheel's own.
        shared = [str(script.parents[1]), *(path for path in sys.path if "site-packages" in path)]
        packages = next((home / "venv/lib").iterdir()) / "site-packages"
        (packages / "shared.pth").write_text("\n".join(shared), encoding="utf-8")
    where = [stage.store.uri, stage.store.endpoint, home / "data", home / "cache"]
    said = subprocess.run(
        [str(word) for word in (python, script, *where, *["--torch"] * has_torch)],
        check=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        stdout=subprocess.PIPE,
        timeout=CHILD_TIMEOUT_S,
    )
    return float(json.loads(said.stdout)["mount_s"])


def fits(stage: Stage, rounds: int) -> Iterator[Figure]:
    """The cache holds all of the dataset."""
    disks, hinted, plain = [], [], []
    for _ in range(rounds):
        disks.append(train(stage, stage.disk, "drop", "keep"))
        with stage.mounted() as point:
            hinted.append(train(stage, point, "drop", "keep", "drop", is_hinted=True))
        with stage.mounted() as point:
            plain.append(train(stage, point, "drop", "keep"))
    _check([*disks, *hinted, *plain])
    disk, disk_again = zip(*disks)
    cold, again, dropped = zip(*hinted)
    unhinted, unhinted_again = zip(*plain)

    def rate(name: str, epochs: tuple[Epoch, ...], **target: Any) -> Figure:
        rates = [epoch.pictures / epoch.elapsed_s for epoch in epochs]
        return Figure(name, rates, "pictures/s", **target)

    def ratio(
        name: str, epochs: tuple[Epoch, ...], others: tuple[Epoch, ...], **target: Any
    ) -> Figure:
        ratios = [one.elapsed_s / other.elapsed_s for one, other in zip(epochs, others)]
        return Figure(name, ratios, "", **target)

    yield rate("disk, page cache dropped (else void)", disk, target=at_least(DISK_LEAST))
    yield rate("disk, again", disk_again)
    yield Figure("- CPU of the training", [epoch.training_cpu_s for epoch in disk], "s")
    yield ratio("cold epoch with the hint / disk, dropped", cold, disk, target=at_most(1.15))
    yield rate("-", cold)
    yield Figure("- first batch", [epoch.first_batch_s for epoch in cold], "s")
    for name in ("training", "daemon", "store"):
        spent = [getattr(epoch, f"{name}_cpu_s") for epoch in cold]
        yield Figure(f"- CPU of the {name}", spent, "s")
    alone = [
        (one.elapsed_s - one.store_cpu_s / CORES) / other.elapsed_s
        for one, other in zip(cold, disk)
    ]
    yield Figure("- / disk, without the time of the store's CPU", alone, "")
    yield ratio("cold epoch without a hint / disk, dropped", unhinted, disk)
    yield ratio("second epoch / disk, again", again, disk_again, target=at_most(1.05))
    yield ratio("- without a hint", unhinted_again, disk_again)
    yield ratio("third epoch, dropped / disk, dropped", dropped, disk)


def twice_the_cache(stage: Stage, rounds: int) -> Iterator[Figure]:
    """The dataset is twice the cache, and memory is small: the page cache is dropped."""
    took: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds):
        for is_hinted, times in took.items():
            with stage.mounted(cache_size=stage.bytes // 2) as point:
                done = train(stage, point, *["drop"] * EPOCHS, is_hinted=is_hinted)
            _check([done])
            times.append(done[-1].elapsed_s)
    faster = [without / with_it for with_it, without in zip(took[True], took[False])]
    yield Figure("dataset = 2 x cache, an epoch with the hint", took[True], "s")
    yield Figure("- without", took[False], "s")
    yield Figure("- with the hint faster by", faster, "x", at_least(1.5))


def _check(runs: list[list[Epoch]]) -> None:
    """All have read the same."""
    if len({(epoch.pictures, epoch.total) for run in runs for epoch in run}) != 1:
        raise SystemExit("the pictures differ from one epoch to another")


GROUPS = (first_batch, fits, twice_the_cache)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python/bench.sh")
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", default="", choices=[group.__name__ for group in GROUPS])
    args = parser.parse_args()
    # Ends the store and the mounts, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    home = Path(os.environ["WARMFS_TEST_HOME"])
    disk = pictures.make(home, COUNT)
    missed = 0
    with tempfile.TemporaryDirectory(prefix="warmfs-bench-") as work, Store(disk, "train") as store:
        stage = Stage(Path(work), disk, store, args.wheel.resolve())
        print(f"{CORES} cores, {COUNT} pictures, {stage.bytes / 1e6:.0f} MB; medians of", end=" ")
        print(f"{args.rounds} (min..max)\n{figures.header()}", flush=True)
        for group in GROUPS:
            if args.only in group.__name__:
                for figure in group(stage, args.rounds):
                    print(figure, flush=True)
                    missed += not figure.is_met
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
