"""How far a call is: a bar of tqdm where that is installed, and nothing elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional


@dataclass(frozen=True)
class Report:
    """Figures of a call. Totals grow while they are found out."""

    objects_done: int = 0
    objects_total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0


class Progress:
    """A bar that appears with the first report, and stays at the last."""

    def __init__(self, verb: str, wanted: bool):
        self._verb = verb
        self._tqdm = _find_tqdm() if wanted else None
        self._bar: Optional[Any] = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, report: Report) -> None:
        """Draws a report."""
        if self._tqdm is None:
            return
        if self._bar is None:
            self._bar = self._tqdm(desc=self._verb, unit="B", unit_scale=True, unit_divisor=1024)
        self._bar.total = report.bytes_total or None
        self._bar.n = report.bytes_done
        files = f"{report.objects_done} of {report.objects_total or '?'} files"
        self._bar.set_postfix_str(files, refresh=True)


def _find_tqdm() -> Optional[Any]:
    try:
        # Chooses a bar for the notebook or the terminal, and does without widgets.
        from tqdm.auto import tqdm
    except ImportError:
        return None
    return tqdm
