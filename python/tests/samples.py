"""A small dataset in each form that ``docs/frameworks.md`` reads, written by the frameworks.

``make`` writes the one that a snippet names; what it says of a form is under ``FORMS``.
"""

from __future__ import annotations

import io
import sqlite3
import tarfile
from collections.abc import Callable
from pathlib import Path

CLASSES = ("cat", "dog")

# Pictures, rows of a table and of an array: enough for some batches, row groups and pages.
PICTURES = 10
ROWS = 2_000

# Of a picture, in pixels.
SIDE = 24


def make(root: Path, form: str) -> None:
    """Writes ``form``, the first part of a path, below ``root``."""
    FORMS[form](root / form)


def picture(seed: int) -> bytes:
    """A PNG of noise."""
    import numpy
    from PIL import Image

    pixels = numpy.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype="uint8")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pictures(folder: Path) -> None:
    for number in range(PICTURES):
        path = folder / CLASSES[number % 2] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))


def _tables(folder: Path) -> None:
    import pandas

    folder.mkdir()
    for part in range(2):
        columns = _columns(range(part * ROWS, (part + 1) * ROWS))
        file = folder / f"{part}.parquet"
        pandas.DataFrame(columns).to_parquet(file, engine="pyarrow", row_group_size=ROWS // 4)


def _columns(numbers: range) -> dict[str, list[object]]:
    return {
        "name": [f"row {n}" for n in numbers],
        "label": [CLASSES[n % 2] for n in numbers],
        "value": [n * 7 % 1_009 for n in numbers],
    }


def _labels(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE labels (name TEXT, value INTEGER)")
    rows = ((f"row {n}", n) for n in range(ROWS))
    database.executemany("INSERT INTO labels VALUES (?, ?)", rows)
    database.execute("CREATE INDEX by_value ON labels (value)")
    database.commit()
    database.close()


def _array(path: Path) -> None:
    import numpy

    numpy.save(path, _noise())


def _noise() -> object:
    import numpy

    return numpy.random.default_rng(0).standard_normal((ROWS, 64), dtype="float32")


def _hdf5(path: Path) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("train/x", data=_noise(), chunks=(100, 64), compression="gzip")


def _zarr(folder: Path) -> None:
    import zarr

    zarr.create_array(str(folder), data=_noise(), chunks=(100, 64))


def _pairs(folder: Path) -> None:
    import lmdb

    with lmdb.open(str(folder), map_size=64 << 20) as database, database.begin(write=True) as txn:
        for n in range(ROWS):
            txn.put(f"{n:05}".encode(), picture(n % PICTURES))
    (folder / "lock.mdb").unlink()


def _weights(path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"first": _noise(), "second": _noise()}, path)


def _shards(folder: Path) -> None:
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"{shard:03}.tar", "w") as tar:
            for number in range(PICTURES):
                _add(tar, f"{number:03}.png", picture(number))
                _add(tar, f"{number:03}.cls", str(number % 2).encode())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def _saved(folder: Path) -> None:
    from datasets import Dataset

    Dataset.from_dict(_columns(range(ROWS))).save_to_disk(str(folder))


def _model(folder: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    BertModel(config).save_pretrained(str(folder))


FORMS: dict[str, Callable[[Path], None]] = {
    "array.npy": _array,
    "array.zarr": _zarr,
    "arrays.h5": _hdf5,
    "labels.db": _labels,
    "model": _model,
    "pairs": _pairs,
    "pictures": pictures,
    "saved": _saved,
    "shards": _shards,
    "tables": _tables,
    "weights.safetensors": _weights,
}
