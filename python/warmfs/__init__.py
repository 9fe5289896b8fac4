"""Mount a cloud bucket prefix as a folder, with a local read-through cache.

::

    import warmfs

    data = warmfs.mount("s3://bucket/prefix", "/content/data")
    warmfs.status()
    warmfs.unmount("/content/data")

Any program reads the folder's files; this package is about the folder. :func:`mount` runs
the program ``warmfs`` that comes with it, everything else asks its daemon over a socket
with a time limit. Mount and cache belong to the daemon: they outlive an interrupted cell,
a restarted kernel, and this process. Failures are :class:`WarmfsError` with a line that
says what to do. There are no dependencies; ``tqdm`` and IPython are used where they are.
"""

from __future__ import annotations

from typing import Any

from . import torch
from ._epoch import Epoch, EpochReport, epoch, report
from ._errors import (
    BusyError,
    DaemonGoneError,
    DeniedError,
    InvalidError,
    MachineError,
    MountPointError,
    NotFoundError,
    NotMountedError,
    StaleError,
    UnreachableError,
    UnsupportedError,
    WarmfsError,
)
from ._files import open_file as open  # noqa: A004
from ._live import Watch, watch
from ._mount import Mount, login, mount, status, unmount
from ._options import Options
from ._status import MountStatus, Status
from ._upkeep import (
    Diagnosis,
    Evicted,
    Pinned,
    Prefetched,
    Refreshed,
    Row,
    Rows,
    Verified,
    doctor,
    du,
    evict,
    ls,
    pin,
    prefetch,
    refresh,
    unpin,
    verify,
)
from ._view import View

__all__ = [
    "BusyError",
    "DaemonGoneError",
    "DeniedError",
    "Diagnosis",
    "Epoch",
    "EpochReport",
    "Evicted",
    "InvalidError",
    "MachineError",
    "Mount",
    "MountPointError",
    "MountStatus",
    "NotFoundError",
    "NotMountedError",
    "Options",
    "Pinned",
    "Prefetched",
    "Refreshed",
    "Row",
    "Rows",
    "StaleError",
    "Status",
    "UnreachableError",
    "UnsupportedError",
    "Verified",
    "View",
    "WarmfsError",
    "Watch",
    "doctor",
    "du",
    "epoch",
    "evict",
    "login",
    "ls",
    "mount",
    "open",
    "pin",
    "prefetch",
    "refresh",
    "report",
    "status",
    "torch",
    "unmount",
    "unpin",
    "verify",
    "watch",
]


def load_ipython_extension(ipython: Any) -> None:
    """``%load_ext warmfs``"""
    from .magics import register

    register(ipython)
