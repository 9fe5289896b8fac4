"""A live picture of a daemon in a notebook: throughput, hit rate, and how full the cache is.

A thread asks for ``status`` and draws over the same display of IPython: plain HTML, without
widgets or JavaScript. It ends by itself when the daemon does, or after a time.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple, Optional

from . import _html, _mount, _paths
from ._client import Client
from ._errors import InvalidError, MachineError, WarmfsError
from ._html import COLD, WARM, format_bytes, format_count, format_duration
from ._paths import Pathish
from ._status import Status

# Points of the curve: a minute, wide enough to be seen when it begins.
POINTS_MAX = 60

# Drawn no more often than this: each picture travels to the browser.
INTERVAL_S_MIN = 0.2

# A picture that nobody looks at any more ends after this.
WATCH_S_MAX = 4 * 3_600.0

# For the thread to draw once more and end: one answer of the daemon.
STOP_TIMEOUT_S = 6.0


class _Point(NamedTuple):
    """Bytes a second."""

    warm: float
    cold: float


class Watch:
    """A picture that is drawn until :meth:`stop`."""

    def __init__(self, client: Client, interval_s: float, seconds: float, handle: Any):
        self._client, self._interval_s, self._handle = client, interval_s, handle
        self._until = time.monotonic() + seconds
        self._points: deque[_Point] = deque(maxlen=POINTS_MAX)
        self._status = Status()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="warmfs-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Leaves the picture as it is, and has it say so."""
        self._stopped.set()
        self._thread.join(STOP_TIMEOUT_S)

    @property
    def is_running(self) -> bool:
        """Whether it is still drawn."""
        return self._thread.is_alive()

    def __repr__(self) -> str:
        return f"<Watch: {'stop() ends the picture' if self.is_running else 'ended'}>"

    def _run(self) -> None:
        try:
            self._follow()
            end = "stopped" if self._stopped.is_set() else "its time is over"
        except WarmfsError as error:
            end = str(error)
        self._draw(f"the picture ends: {end}")

    def _follow(self) -> None:
        last, then = None, time.monotonic()
        while not self._stopped.wait(self._interval_s) and time.monotonic() < self._until:
            self._status, now = _paths.status_of(self._client), time.monotonic()
            if last is not None:
                self._points.append(_rates(last, self._status, now - then))
                self._draw(f"drawn every {self._interval_s:g} s")
            last, then = self._status, now

    def _draw(self, state: str) -> None:
        # The clock tells a picture that moves from one whose kernel was restarted.
        text = f"{time.strftime('%H:%M:%S %Z')}: {state}"
        html = picture(self._status, list(self._points), self._interval_s, text)
        try:
            self._handle.update(_Html(html))
        except Exception:  # The notebook closed; whatever it says, there is nobody to tell.
            self._stopped.set()


# The picture of each daemon that is drawn by this process. A cell that is run again has lost the
# output that it drew to.
_drawn: dict[Path, Watch] = {}


class _Html:
    """What IPython shows as it is."""

    def __init__(self, html: str):
        self._html = html

    def _repr_html_(self) -> str:
        return self._html


def watch(
    path: Optional[Pathish] = None, interval_s: float = 1.0, seconds: float = WATCH_S_MAX
) -> Watch:
    """Shows a live picture below the cell and returns at once; ``watch().stop()`` ends it.

    It is drawn every ``interval_s`` seconds for ``seconds``, while other cells run, too. The
    next picture of the same daemon ends this one.
    """
    if interval_s < INTERVAL_S_MIN or seconds <= 0:
        raise InvalidError(f"watch() every {interval_s} s is too often", f"give {INTERVAL_S_MIN}")
    display = _display()
    client = _paths.find(path).client if path is not None else _mount.daemon()
    if client.socket in _drawn:
        _drawn.pop(client.socket).stop()
    handle = display(
        _Html(_html.note("warmfs: the first figures are on their way")), display_id=True
    )
    drawn = Watch(client, interval_s, min(seconds, WATCH_S_MAX), handle)
    _drawn[client.socket] = drawn
    return drawn


def picture(status: Status, points: list[_Point], interval_s: float, state: str) -> str:
    """One picture."""
    latest = points[-1] if points else _Point(0.0, 0.0)
    read = sum(map(sum, points))
    rate = f"{int(100 * sum(point.warm for point in points) / read)} %" if read else "-"
    cache = status.cache
    fill = f"{format_bytes(cache.used_bytes)} of {format_bytes(cache.limit_bytes)}"
    rows = [
        ("latest", f"{format_bytes(latest.warm)}/s warm, {format_bytes(latest.cold)}/s cold"),
        ("hits", f"{rate} of the last {format_duration(len(points) * interval_s)}"),
        ("cache", f"{fill}, {format_count(cache.objects, 'object')}"),
    ]
    since = format_duration(POINTS_MAX * interval_s)
    warm, cold = [point.warm for point in points], [point.cold for point in points]
    return "".join(
        (
            _html.legend(((WARM, "warm: cached or fetched ahead"), (COLD, "cold: waited for"))),
            _html.areas(((WARM, warm), (COLD, cold)), POINTS_MAX, since),
            _html.table(rows),
            _html.bar(cache.used_bytes, cache.limit_bytes),
            _html.note(state),
            _html.note(_html.UNSEEN),
        )
    )


def _rates(then: Status, now: Status, elapsed_s: float) -> _Point:
    """A counter that went back began anew, with its mount."""
    elapsed_s = max(elapsed_s, 1e-3)
    warm = max(now.hit_bytes - then.hit_bytes, 0) / elapsed_s
    return _Point(warm, max(now.miss_bytes - then.miss_bytes, 0) / elapsed_s)


def _display() -> Any:
    with contextlib.suppress(ImportError):
        from IPython import get_ipython
        from IPython.display import display

        if get_ipython() is not None:
            return display
    raise MachineError("watch() draws in a notebook", "here, use `warmfs status`")
