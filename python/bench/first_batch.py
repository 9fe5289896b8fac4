"""Mounts and reads a first batch; prints both times as JSON.

``python first_batch.py URI ENDPOINT FOLDER CACHE [--torch]``. It runs in an environment that
has the wheel and nothing else, so it imports nothing of this bench; with ``--torch`` the
batch comes from a DataLoader, where torch is at hand as it is on Colab.
"""

import json
import sys
import time
from pathlib import Path

import warmfs

BATCH = 32


def from_a_loop(folder: str) -> int:
    files = sorted(Path(folder).glob("*/*.jpg"))[:BATCH]
    return sum(len(file.read_bytes()) > 0 for file in files)


def from_a_loader(folder: str) -> int:
    from torch.utils.data import DataLoader

    from bench.train import Pictures

    loader = DataLoader(Pictures(Path(folder)), batch_size=BATCH, shuffle=True, num_workers=2)
    return len(next(iter(loader)))


def main() -> None:
    uri, endpoint, folder, cache, *rest = sys.argv[1:]
    began = time.perf_counter()
    warmfs.mount(uri, folder, endpoint_url=endpoint, no_sign_request=True, cache_dir=cache)
    mount_s = time.perf_counter() - began
    count = from_a_loader(folder) if rest else from_a_loop(folder)
    assert count == BATCH, count
    print(json.dumps({"mount_s": mount_s}), flush=True)


if __name__ == "__main__":
    main()
