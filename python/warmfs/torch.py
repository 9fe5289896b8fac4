"""The order of the coming epoch, told to the daemon: it fetches in the order of use and, where
the dataset exceeds the cache, gives up what is needed last.

``hint`` wraps any sampler or batch sampler. Neither torch nor a change of the training loop
is needed. The request is in ``docs/python.md``; with a daemon that does not know it, ``hint``
raises :class:`warmfs.UnsupportedError`.
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, Optional, TypeVar

from . import _paths
from ._client import REMOTE_TIMEOUT_S, Client
from ._errors import InvalidError, UnsupportedError, WarmfsError
from ._paths import Pathish

_T = TypeVar("_T")

# Parts of an order, and where each begins; none at the end.
_Waiting = queue.SimpleQueue[Optional[tuple[list[str], int]]]

TARGET = "/v1/hint"

# Paths of one request: with 200 bytes a path, well below the largest body.
PATHS_MAX = 4_000

# Items drawn from a sampler before the first is handed on. Samplers of datasets hold their
# order in memory anyway; one without an end is followed in pieces of this size.
ITEMS_MAX = 1 << 20


class Hinted(Generic[_T]):
    """A sampler that tells the daemon its order, each time it is gone through.

    It has the length and the attributes of the sampler it wraps, ``set_epoch`` included.
    """

    def __init__(self, sampler: Iterable[_T], client: Client, mount: str, paths: Sequence[str]):
        self._sampler, self._client, self._mount, self._paths = sampler, client, mount, paths
        self._epoch = 0

    def __iter__(self) -> Iterator[_T]:
        self._epoch += 1
        items, sent = iter(self._sampler), 0
        waiting: _Waiting = queue.SimpleQueue()
        try:
            while True:
                piece = list(itertools.islice(items, ITEMS_MAX))
                if not piece:
                    return
                order = [self._path(index) for item in piece for index in _indices(item)]
                self._announce(order, sent, waiting)
                sent += len(order)
                yield from piece
        finally:
            waiting.put(None)

    def __len__(self) -> int:
        return len(self._sampler)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_sampler" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._sampler, name)

    def _path(self, index: int) -> str:
        try:
            return self._paths[index]
        except (IndexError, TypeError):
            message = f"the sampler asks for item {index!r}, and there are {len(self._paths)} paths"
            hint = "give hint() the path of every item of the dataset, in its order"
            raise InvalidError(message, hint) from None

    def _announce(self, order: list[str], first: int, waiting: _Waiting) -> None:
        """Sends the beginning of an epoch at once, so that what is wrong is heard of; the rest
        behind the reader, one part after the other, as the daemon wants them.
        """
        if first == 0:
            self._send(order[:PATHS_MAX], 0)
            args = (waiting, self._epoch)
            threading.Thread(target=self._send_rest, args=args, daemon=True).start()
        for start in range(0 if first else PATHS_MAX, len(order), PATHS_MAX):
            waiting.put((order[start : start + PATHS_MAX], first + start))

    def _send_rest(self, waiting: _Waiting, epoch: int) -> None:
        try:
            while (part := waiting.get()) and self._epoch == epoch:
                self._send(*part)
        except WarmfsError as error:
            warnings.warn(f"warmfs: the order was told in part only: {error}", stacklevel=2)

    def _send(self, paths: list[str], first: int) -> None:
        order = f"{os.getpid()}-{id(self):x}-{self._epoch}"
        body = {"dir": self._mount, "order": order, "first": first, "paths": paths}
        self._client.send("POST", TARGET, body, REMOTE_TIMEOUT_S)


def hint(sampler: Iterable[_T], paths: Sequence[Pathish]) -> Hinted[_T]:
    """Wraps a ``Sampler`` or ``BatchSampler``; ``paths[i]`` is the file of item ``i``.

    ::

        sampler = warmfs.torch.hint(RandomSampler(dataset), [path for path, _ in dataset.samples])
        loader = DataLoader(dataset, sampler=sampler, batch_size=64, num_workers=2)

    The order is drawn as the epoch begins, in the process that iterates the sampler: it is
    the one that is trained in.
    """
    if not len(paths):
        raise InvalidError("hint() was given no paths", "give the path of every item")
    found = _paths.find(paths[0])
    relative = _below(found.mount.dir, paths, os.fspath(paths[0]), found.path)
    _check_known(found.client, found.mount.dir)
    return Hinted(sampler, found.client, found.mount.dir, relative)


def _below(mount: str, paths: Sequence[Pathish], text: str, canonical: str) -> list[str]:
    """The paths below the mount point. Links above it are looked at once, for the first path."""
    inside = canonical[len(mount) :]
    root = text[: len(text) - len(inside)] if text.endswith(inside) else mount
    prefixes = tuple({f"{root.rstrip('/')}/", f"{mount.rstrip('/')}/"})
    return [_relative(os.fspath(path), prefixes, mount) for path in paths]


def _relative(path: str, prefixes: tuple[str, ...], mount: str) -> str:
    for prefix in prefixes:
        if path.startswith(prefix):
            return path[len(prefix) :]
    raise InvalidError(f"{path} is not below {mount}", "hint() takes the paths of one mount")


def _check_known(client: Client, mount: str) -> None:
    try:
        body = {"dir": mount, "order": "", "first": 0, "paths": []}
        client.send("POST", TARGET, body, REMOTE_TIMEOUT_S)
    except InvalidError as error:
        if "no such request" not in str(error):
            raise
        message = "this daemon takes no hints yet"
        raise UnsupportedError(message, "train without warmfs.torch.hint, or update it") from None


def _indices(item: Any) -> Iterable[Any]:
    """Those of a batch, or of a single item."""
    return item if isinstance(item, (list, tuple)) else (item,)
