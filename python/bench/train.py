"""Trains from a folder, in a process of its own, and prints a line of JSON for each epoch.

``python -m bench.train FOLDER EPOCH... [--hint]``, where an epoch is ``keep`` or ``drop``:
what becomes of the page cache before it.

A batch is 32 pictures, decoded to 64 x 64 pixels by two workers of a DataLoader, and then a
pause of 2 ms, which stands for the step of a GPU. The time of an epoch begins where the loop
asks for its iterator, so that starting the workers and telling the order are in it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler

from .process import drop_page_cache

SIDE = 64
BATCH = 32
WORKERS = 2
STEP_S = 0.002


class Pictures:
    """All pictures below a folder, as torch wants a dataset."""

    def __init__(self, folder: Path):
        self.paths = sorted(str(path) for path in folder.glob("*/*.jpg"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.paths[index]) as image:
            # As far as the JPEG's own transform can: a quarter of 500 x 375.
            image.draft("RGB", (SIDE, SIDE))
            small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        return torch.from_numpy(numpy.array(small))


class Epoch(NamedTuple):
    """What one pass took."""

    elapsed_s: float
    first_batch_s: float
    pictures: int
    total: int
    """Of all pixels: equal for equal pictures in any order."""
    cpu_s: float
    """Of this process and the workers."""


def epoch(loader: DataLoader[torch.Tensor]) -> Epoch:
    spent_s, began = _cpu_s(), time.perf_counter()
    pictures, total, first_batch_s = 0, 0, 0.0
    for batch in loader:
        first_batch_s = first_batch_s or time.perf_counter() - began
        time.sleep(STEP_S)
        pictures += len(batch)
        total += int(batch.sum(dtype=torch.int64))
    elapsed_s = time.perf_counter() - began
    return Epoch(elapsed_s, first_batch_s, pictures, total, _cpu_s() - spent_s)


def _cpu_s() -> float:
    """Workers count once they have ended, as they have when their iterator is gone."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def epochs(folder: Path, is_hinted: bool, caches: list[str]) -> Iterator[Epoch]:
    # The cores belong to the workers.
    torch.set_num_threads(1)
    pictures = Pictures(folder)
    sampler: Any = RandomSampler(pictures)
    if is_hinted:
        import warmfs

        sampler = warmfs.torch.hint(sampler, pictures.paths)
    loader = DataLoader(pictures, batch_size=BATCH, sampler=sampler, num_workers=WORKERS)
    for number, cache in enumerate(caches):
        torch.manual_seed(number)
        if cache == "drop":
            drop_page_cache()
        yield epoch(loader)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("caches", nargs="+", choices=("keep", "drop"))
    parser.add_argument("--hint", action="store_true")
    args = parser.parse_args()
    for done in epochs(args.folder, args.hint, args.caches):
        print(json.dumps(done._asdict()), flush=True)


if __name__ == "__main__":
    main()
