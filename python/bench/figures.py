"""A figure, what it must be, and its line."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Optional


@dataclass(frozen=True)
class Target:
    """What a median must be."""

    is_at: Literal["least", "most"]
    value: float

    def is_met(self, median: float) -> bool:
        return median >= self.value if self.is_at == "least" else median <= self.value

    def __str__(self) -> str:
        return f"{'>=' if self.is_at == 'least' else '<='} {number(self.value)}"


def at_least(value: float) -> Target:
    return Target("least", value)


def at_most(value: float) -> Target:
    return Target("most", value)


@dataclass(frozen=True)
class Figure:
    """One row: a sample of each round, and no target where it is for scale."""

    name: str
    samples: Sequence[float]
    unit: str
    target: Optional[Target] = None

    @property
    def is_met(self) -> bool:
        return self.target is None or self.target.is_met(statistics.median(self.samples))

    def __str__(self) -> str:
        target = str(self.target or "")
        verdict = "" if self.is_met else "  MISSED"
        return f"{self.name:<58} {target:>10}  {_text(self.samples)} {self.unit}{verdict}"


def header() -> str:
    return f"{'figure':<58} {'target':>10}  result"


def _text(samples: Sequence[float]) -> str:
    median = number(statistics.median(samples))
    if len(samples) == 1:
        return median
    return f"{median} ({number(min(samples))}..{number(max(samples))})"


def number(value: float) -> str:
    """Three digits or so, thousands set off."""
    size = abs(value)
    return f"{value:,.{0 if size >= 100 else 1 if size >= 10 else 2}f}"
