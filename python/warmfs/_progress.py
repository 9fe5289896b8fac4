"""How far a call is: a bar of tqdm where that is installed, and nothing elsewhere."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Optional

from ._html import format_count


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
        """Draws a report, unless it has no bytes to show: a refresh counts none."""
        if self._tqdm is None or not report.bytes_done + report.bytes_total:
            return
        if self._bar is None:
            # A bar of widgets that begins without a total stays a dot.
            self._bar = self._tqdm(
                desc=self._verb,
                total=report.bytes_total or None,
                unit="iB",
                unit_scale=True,
                unit_divisor=1024,
            )
        self._bar.total = report.bytes_total or None
        self._bar.n = report.bytes_done
        files = format_count(report.objects_done, "file")
        if report.objects_total:
            files = f"{report.objects_done} of {format_count(report.objects_total, 'file')}"
        self._bar.set_postfix_str(files, refresh=True)


def _find_tqdm() -> Optional[Any]:
    with warnings.catch_warnings():
        # Chooses a bar for the notebook or the terminal, and does without widgets: no reason to
        # warn of them.
        warnings.simplefilter("ignore")
        try:
            from tqdm.auto import tqdm
        except ImportError:
            return None
    return tqdm
