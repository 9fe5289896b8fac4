"""HTML and SVG of a few lines, without JavaScript or a style sheet: Colab, Jupyter and
VS Code show it alike, in their light and dark themes. Everything that is text is escaped:
names come from a bucket.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

UNSEEN = "Counted is what reaches the daemon, not what the kernel answers from its page cache."

# Told apart in both themes, and by who does not see red or green.
WARM, COLD, OTHER = "#2a78b8", "#e08a1e", "#8a8f98"

TEXT = 'font-size="12" fill="currentColor"'

# Characters of a label that have room before a bar.
LABEL_MAX = 18

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


def format_count(number: int, noun: str) -> str:
    """How many of something: `1 object`, `2 objects`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Names and what they stand for."""
    style = "text-align:left;padding:1px 12px 1px 0;vertical-align:top"
    lines = (
        f'<tr><th style="{style};opacity:.7;font-weight:normal">{escape(name)}</th>'
        f'<td style="{style}">{escape(value)}</td></tr>'
        for name, value in rows
    )
    return f'<table style="border:0;font-size:13px">{"".join(lines)}</table>'


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with a head: the first column is a name, the others are figures."""
    names = "".join(f'<th style="{_cell(i)}">{escape(text)}</th>' for i, text in enumerate(head))
    lines = (
        "".join(f'<td style="{_cell(i)}">{escape(text)}</td>' for i, text in enumerate(row))
        for row in rows
    )
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<table style="border:0;font-size:13px"><tr>{names}</tr>{body}</table>'


def _cell(column: int) -> str:
    figure = "text-align:right;white-space:nowrap"
    return f"{figure if column else 'text-align:left'};padding:1px 12px 1px 0"


def note(text: str) -> str:
    """Small print."""
    return f'<div style="opacity:.7;font-size:12px">{escape(text)}</div>'


def bar(part: float, whole: float, width: int = 360) -> str:
    """How much of something is used."""
    full = width * min(part / whole, 1) if whole > 0 else 0
    return svg(
        width,
        10,
        f'<rect width="{width}" height="10" fill="{OTHER}" fill-opacity=".25"/>'
        f'<rect width="{full:.1f}" height="10" fill="{WARM}"/>',
        f"{format_bytes(part)} of {format_bytes(whole)}",
    )


def areas(
    series: Sequence[tuple[str, Sequence[float]]], width: int = 560, height: int = 120
) -> str:
    """Bytes a second, one series upon the other, the newest point at the right."""
    count = max((len(values) for _, values in series), default=0)
    base = [0.0] * count
    shapes, layers = [], []
    for colour, values in series:
        top = [below + value for below, value in zip(base, values)]
        layers.append((colour, base, top))
        base = top
    highest = max(base, default=0.0) or 1.0
    step = width / max(count - 1, 1)
    for colour, below, top in layers:
        points = [(i * step, v) for i, v in enumerate(top)]
        points += [(i * step, v) for i, v in reversed(list(enumerate(below)))]
        text = " ".join(f"{x:.1f},{height - v / highest * height:.1f}" for x, v in points)
        shapes.append(f'<polygon points="{text}" fill="{colour}" fill-opacity=".75"/>')
    if any(base):
        shapes.append(f'<text x="4" y="14" {TEXT}>{format_bytes(highest)}/s</text>')
    return svg(width, height, "".join(shapes) + _frame(width, height), "throughput")


def bars(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], width: int = 560) -> str:
    """A bar for each row, made of coloured parts, all to one scale."""
    highest = max((sum(value for _, value in parts) for _, parts in rows), default=0.0) or 1.0
    line, label = 22, 130
    shapes = []
    for number, (name, parts) in enumerate(rows):
        y, x = number * line, float(label)
        text = escape(name if len(name) <= LABEL_MAX else f"{name[: LABEL_MAX - 1]}…")
        shapes.append(f'<text y="{y + 14}" {TEXT}>{text}</text>')
        for colour, value in parts:
            wide = value / highest * (width - label)
            shapes.append(
                f'<rect x="{x:.1f}" y="{y + 3}" width="{wide:.1f}" height="15" fill="{colour}"/>'
            )
            x += wide
    return svg(width, line * len(rows), "".join(shapes), "epochs")


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """What the colours stand for."""
    parts = (
        f'<span style="margin-right:14px"><span style="color:{colour}">&#9632;</span> '
        f"{escape(text)}</span>"
        for colour, text in entries
    )
    return f'<div style="font-size:12px">{"".join(parts)}</div>'


def svg(width: int, height: int, shapes: str, title: str) -> str:
    """A picture with a title for who cannot see it."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" style="display:block;margin:4px 0">'
        f"<title>{escape(title)}</title>{shapes}</svg>"
    )


def _frame(width: int, height: int) -> str:
    return (
        f'<path d="M0 .5H{width}M0 {height - 0.5}H{width}" stroke="currentColor" '
        'stroke-opacity=".3"/>'
    )
