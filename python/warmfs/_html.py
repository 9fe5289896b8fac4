"""HTML and SVG of a few lines, without JavaScript or a style sheet: Colab, Jupyter and
VS Code show it alike, in their light and dark themes. Everything that is text is escaped:
names come from a bucket.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

UNSEEN = (
    "Not counted: reads that the kernel answers from its page cache or from passed-through files."
)

# Told apart in both themes, and by who does not see red or green.
WARM, COLD, OTHER = "#2a78b8", "#e08a1e", "#8a8f98"

TEXT = 'font-size="12" fill="currentColor"'

# Characters of a label before a bar, and the room for one of them, in pixels. What is wider,
# as Chinese is, is cut at the bar.
LABEL_MAX = 18
LABEL_CHARACTER_PX = 8

# Room for `123 MiB/s` beside a curve, and for `12m 5s` behind a bar, in pixels.
SCALE_PX = 76

# Bars of a picture, and rows of a table. A browser with all rows of a large bucket would hang.
BARS_MAX = 30
ROWS_MAX = 200

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def format_bytes(count: float) -> str:
    """A size with three significant digits, as the command line prints it: `1.50 GiB`."""
    value, unit = float(count), 0
    while value >= 1000 and unit + 1 < len(_UNITS):
        value, unit = value / 1024, unit + 1
    digits = 0 if unit == 0 or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {_UNITS[unit]}"


def format_duration(seconds: float) -> str:
    """A duration in its two largest units, as the command line prints it: `1h 5m`."""
    s = max(int(seconds), 0)
    for unit, below, name, small in ((86_400, 3_600, "d", "h"), (3_600, 60, "h", "m")):
        if s >= unit:
            return f"{s // unit}{name} {s % unit // below}{small}"
    return f"{s // 60}m {s % 60}s" if s >= 60 else f"{s}s"


def format_seconds(seconds: float) -> str:
    """A duration that is compared with others: `4 ms`, `0.12 s`, `5m 20s`."""
    if 0 < seconds < 0.0995:
        return f"{max(seconds * 1000, 1):.0f} ms"
    return f"{seconds:.2f} s" if seconds < 60 else format_duration(seconds)


def format_count(number: int, noun: str) -> str:
    """How many of something: `1 object`, `2 objects`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class Readable:
    """What a terminal of IPython, too, shows as ``print`` does, and not as a call."""

    def __init_subclass__(cls) -> None:
        # IPython asks a class before its bases, and takes what the class of a dataclass has.
        cls._repr_pretty_ = _print  # type: ignore[attr-defined]


def _print(value: object, printer: Any, cycle: bool) -> None:
    printer.text(str(value))


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Names and what they stand for."""
    style = "text-align:left;padding:1px 12px 1px 0;vertical-align:top"
    lines = (
        f'<tr><th style="{style};opacity:.7;font-weight:normal;min-width:4.5em">{escape(name)}</th>'
        f'<td style="{style};overflow-wrap:anywhere">{escape(value)}</td></tr>'
        for name, value in rows
    )
    return f'<table style="{_TABLE}">{"".join(lines)}</table>'


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with a head: the first column is a name, the others are figures."""
    names = "".join(f'<th style="{_cell(i)}">{escape(text)}</th>' for i, text in enumerate(head))
    lines = (
        "".join(f'<td style="{_cell(i)}">{escape(text)}</td>' for i, text in enumerate(row))
        for row in shortened(list(rows), len(head))
    )
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<table style="{_TABLE}"><tr>{names}</tr>{body}</table>'


def columns(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The same as text."""
    lines = [head, *shortened(list(rows), len(head))]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            text.rjust(width) if i else text.ljust(width)
            for i, (text, width) in enumerate(zip(line, widths))
        )
        for line in lines
    )


def shortened(rows: list[Sequence[str]], width: int) -> list[Sequence[str]]:
    """Rows without those in the middle, where there are too many. The last may be the sum."""
    left_out = len(rows) - ROWS_MAX
    if left_out <= 0:
        return rows
    between = [f"… {format_count(left_out, 'more row')} …", *[""] * (width - 1)]
    return [*rows[: ROWS_MAX - 1], between, rows[-1]]


# Notebooks have margins of their own, or none.
_TABLE = "border:0;font-size:13px;margin:0 0 8px 0"


def _cell(column: int) -> str:
    figure = "text-align:right;white-space:nowrap"
    name = "text-align:left;overflow-wrap:anywhere"
    return f"{figure if column else name};padding:1px 12px 1px 0"


def note(text: str) -> str:
    """Small print."""
    return f'<div style="opacity:.7;font-size:12px">{escape(text)}</div>'


def bar(part: float, whole: float, width: int = 360) -> str:
    """How much of something is used. What it is stands beside it."""
    full = width * min(part / whole, 1) if whole > 0 else 0
    return svg(
        width,
        10,
        f'<rect width="{width}" height="10" fill="{OTHER}" fill-opacity=".25"/>'
        f'<rect width="{full:.1f}" height="10" fill="{WARM}"/>',
        f"{format_bytes(part)} of {format_bytes(whole)}",
    )


def areas(
    series: Sequence[tuple[str, Sequence[float]]],
    points: int,
    since: str,
    width: int = 560,
    height: int = 120,
) -> str:
    """Bytes a second, one series upon the other, the newest at the right of ``points`` places,
    so that the curve moves and is not stretched. ``since`` says how long ago the first is.
    """
    count = max((len(values) for _, values in series), default=0)
    base = [0.0] * count
    layers = []
    for colour, values in series:
        top = [below + value for below, value in zip(base, values)]
        layers.append((colour, base, top))
        base = top
    highest, right = ceiling(max(base, default=0.0)), width - SCALE_PX
    step = right / max(points - 1, 1)
    shapes = [_scale(highest, right, height)]
    for colour, below, top in layers:
        curve = [(right - (count - 1 - i) * step, v) for i, v in enumerate(top)]
        curve += [(right - (count - 1 - i) * step, v) for i, v in reversed(list(enumerate(below)))]
        text = " ".join(f"{x:.1f},{height * (1 - v / highest):.1f}" for x, v in curve)
        shapes.append(f'<polygon points="{text}" fill="{colour}" fill-opacity=".75"/>')
    shapes.append(f'<text y="{height + 15}" {TEXT}>{escape(since)} ago</text>')
    shapes.append(f'<text x="{right}" y="{height + 15}" text-anchor="end" {TEXT}>now</text>')
    # A line on the edge, and the half of a number above it, have room.
    return svg(width, height + 24, f'<g transform="translate(0 5)">{"".join(shapes)}</g>', "rate")


def ceiling(value: float) -> float:
    """The end of a scale: 1, 2, 5, 10, … 500 of a unit, which seldom changes as a curve moves."""
    unit = 1.0
    while value > 500 * unit:
        unit *= 1024
    steps = (factor * power for power in (1, 10, 100) for factor in (1, 2, 5))
    return next((step * unit for step in steps if step * unit >= value), 1024 * unit)


def _scale(highest: float, right: int, height: int) -> str:
    """Three lines, and what they stand for."""
    shapes = []
    for part in (0.0, 0.5, 1.0):
        y = height * (1 - part)
        text = f"{_format_step(highest * part)}/s" if part else "0"
        shapes.append(
            f'<path d="M0 {y}H{right}" stroke="currentColor" stroke-opacity=".3"/>'
            f'<text x="{right + 6}" y="{y + 4}" {TEXT}>{text}</text>'
        )
    return "".join(shapes)


def _format_step(count: float) -> str:
    """A size of a scale, without digits that say nothing: `5 MiB`."""
    exponent = min(int(math.log2(max(count, 1)) // 10), len(_UNITS) - 1)
    return f"{count / 1024**exponent:g} {_UNITS[exponent]}"


def bars(
    rows: Sequence[tuple[str, Sequence[tuple[str, float]], str]], title: str, width: int = 560
) -> str:
    """A bar for each of the last rows, made of coloured parts, all to one scale: its name, its
    parts, and what it stands for.
    """
    rows = rows[-BARS_MAX:]
    highest = max((sum(value for _, value in parts) for _, parts, _ in rows), default=0.0) or 1.0
    line, longest = 22, max((len(name) for name, _, _ in rows), default=0)
    label = min(longest, LABEL_MAX) * LABEL_CHARACTER_PX + 10
    shapes = []
    for number, (name, parts, value_text) in enumerate(rows):
        y, x = number * line, float(label)
        text = escape(name if len(name) <= LABEL_MAX else f"{name[: LABEL_MAX - 1]}…")
        # A picture of its own cuts what is too wide.
        shapes.append(
            f'<svg y="{y}" width="{label - 6}" height="{line}"><text y="15" {TEXT}>{text}</text>'
            "</svg>"
        )
        for colour, value in parts:
            wide = value / highest * (width - label - SCALE_PX)
            shapes.append(
                f'<rect x="{x:.1f}" y="{y + 3}" width="{wide:.1f}" height="15" fill="{colour}"/>'
            )
            x += wide
        shapes.append(f'<text x="{x + 6:.1f}" y="{y + 15}" {TEXT}>{escape(value_text)}</text>')
    return svg(width, line * len(rows), "".join(shapes), title)


def legend(entries: Iterable[tuple[str, str]], title: str = "") -> str:
    """What the colours stand for, behind what the picture is of."""
    parts = (
        f'<span style="margin-right:14px"><span style="color:{colour}">&#9632;</span> '
        f"{escape(text)}</span>"
        for colour, text in entries
    )
    name = f'<span style="margin-right:14px">{escape(title)}</span>' if title else ""
    return f'<div style="font-size:12px;margin-top:8px">{name}{"".join(parts)}</div>'


def svg(width: int, height: int, shapes: str, title: str) -> str:
    """A picture with a title for who cannot see it. A narrow window shows it smaller."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" '
        'style="display:block;margin:4px 0;max-width:100%;height:auto">'
        f"<title>{escape(title)}</title>{shapes}</svg>"
    )
