"""The dataset: JPEGs of 500 x 375 pixels and about 110 KiB, as ImageNet has them.

They are the same in every run, made once and kept in ``WARMFS_TEST_HOME``. Smooth colours
under noise: the noise is what a JPEG spends its bytes, and its reader its time, on.
"""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path

# What is kept is made anew when this is raised.
VERSION = 1

SIZE = (500, 375)
QUALITY = 90
# Of noise, in steps of a colour: 110 KiB with this quality.
SIGMA = 32.0

# As ImageFolder has them: a folder for each class, of one page of a listing.
CLASSES = 10


def names(count: int) -> list[str]:
    return [f"{n % CLASSES:02}/{n:05}.jpg" for n in range(count)]


def make(home: Path, count: int) -> Path:
    """The folder with ``count`` pictures, which is made where it is missing."""
    folder = home / f"pictures-{VERSION}-{count}"
    if not folder.exists():
        made = folder.with_suffix(".part")
        shutil.rmtree(made, ignore_errors=True)
        for name in range(CLASSES):
            (made / f"{name:02}").mkdir(parents=True)
        with multiprocessing.Pool() as pool:
            pool.starmap(_write, [(made / name, n) for n, name in enumerate(names(count))])
        made.rename(folder)
    return folder


def _write(path: Path, seed: int) -> None:
    import numpy
    from PIL import Image

    dice = numpy.random.default_rng(seed)
    corners = dice.integers(0, 256, (4, 5, 3), dtype="uint8")
    smooth = Image.fromarray(corners).resize(SIZE, Image.Resampling.BICUBIC)
    noise = dice.standard_normal((SIZE[1], SIZE[0], 1), dtype="float32") * SIGMA
    pixels = numpy.clip(numpy.asarray(smooth) + noise, 0, 255).astype("uint8")
    Image.fromarray(pixels).save(path, "JPEG", quality=QUALITY)
