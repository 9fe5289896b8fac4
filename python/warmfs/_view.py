"""A mount without a folder: the same cache and the same daemon, read at its socket."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, Optional, Union

from . import _files, _upkeep
from ._errors import MachineError
from ._mount import Mount
from ._paths import uri_of
from ._upkeep import Prefetched, Rows


class View(Mount):
    """What :func:`warmfs.mount` returns where there is no folder, and fsspec is not installed.

    Names are below what is mounted. Its URI stands for it wherever a path does:
    ``warmfs.ls(view)``, ``warmfs.pin(view)``, ``warmfs.unmount(view)``.
    """

    def __init__(
        self,
        uri: str,
        place: str,
        existed: bool = True,
        options: Optional[Mapping[str, Any]] = None,
    ):
        super().__init__(uri, place, existed)
        self._files = _files.Files(place, options)

    @property
    def path(self) -> Path:
        """There is none: it says so."""
        raise MachineError(
            f"there is no folder of {self.uri}", "read it with open(path), or mount it at a path"
        )

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> IO[Any]:
        """Opens a file, as :func:`warmfs.open` does."""
        uri = self._uri(path)
        raw = _files.opened_for(mode, uri, lambda: self._files.open(uri))
        return _files.wrapped(raw, mode, **kwargs)

    def ls(self, path: str = "") -> Any:
        """What is in a folder, and how much of it is cached."""
        rows: Rows = self._files.rows(self._uri(path))
        return rows

    def prefetch(
        self,
        paths: Union[str, Iterable[str]] = "",
        wait: bool = True,
        progress: bool = True,
        order: str = "listed",
    ) -> Prefetched:
        """As :func:`warmfs.prefetch`: all of it, or what is named."""
        wanted = [paths] if isinstance(paths, str) else list(paths)
        return _upkeep.prefetch([self._uri(path) for path in wanted], wait, progress, order)

    def _uri(self, name: str) -> str:
        """The URI of a name, which may be one itself."""
        if "://" in name:
            return uri_of(name)
        name = name.strip("/")
        return f"{self._place}/{name}" if name else self._place

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"


def view(uri: str, place: str, existed: bool, options: Mapping[str, Any]) -> View:
    """A view that is there: as a file system of fsspec, if that is installed."""
    try:
        from ._fsspec import WarmfsFileSystem
    except ImportError:
        return View(uri, place, existed, options)
    found: View = WarmfsFileSystem(place, **options)
    found.uri, found.existed = uri, existed
    return found
