"""Two plots as SVG text: dots with their spread, and lines, both on logarithmic axes.

Logarithmic, since what counts is the ratio, and equal ratios are equal distances there.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Final

Dot = tuple[str, float, float, float]
"""(label, minimum, median, maximum)"""
Line = tuple[str, Sequence[tuple[float, float]]]
"""(label, points)"""

_WIDTH: Final = 760
_LEFT: Final = 190
_RIGHT: Final = 90
_HEAD: Final = 62
_ROW: Final = 24
_HEIGHT: Final = 400
_OURS: Final = "#c2410c"
_COLOURS: Final = ("#1d4ed8", "#15803d", "#7e22ce", "#0e7490", "#a16207", "#475569", "#be185d")


def _text(x: float, y: float, text: str, *, size: int = 12, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}"{more}>{html.escape(text)}</text>'


def _page(height: float, title: str, subtitle: str, body: list[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height:.0f}" '
        f'viewBox="0 0 {_WIDTH} {height:.0f}" font-family="system-ui, sans-serif" fill="#1f2937">'
        f'<rect width="{_WIDTH}" height="{height:.0f}" fill="#ffffff"/>'
    )
    parts = [
        head,
        _text(16, 24, title, size=16, more=' font-weight="600"'),
        _text(16, 43, subtitle, size=11, more=' fill="#6b7280"'),
        *body,
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 and their decades between two values; decades only where there are many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 3 else (1,)
    return [
        step * 10.0**power
        for power in range(first, last + 1)
        for step in steps
        if low <= step * 10.0**power <= high
    ]


def short(value: float) -> str:
    """1,234 / 12.3 / 1.2 M."""
    for bound, letter in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if value >= bound:
            return f"{value / (1000 if letter == ' k' else bound):.3g}{letter}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _scale(low: float, high: float, start: float, end: float) -> tuple[float, float]:
    """(a, b) of position = a + b * log(value)."""
    factor = (end - start) / (math.log(high) - math.log(low))
    return start - factor * math.log(low), factor


def dots(title: str, subtitle: str, unit: str, rows: Sequence[Dot], ours: str) -> str:
    """A row per client: a line from minimum to maximum, a dot at the median, its value."""
    low = min(row[1] for row in rows) / 1.5
    high = max(row[3] for row in rows) * 1.5
    a, b = _scale(low, high, _LEFT, _WIDTH - _RIGHT)
    bottom = _HEAD + _ROW * len(rows)
    body = []
    for tick in _ticks(low, high):
        x = a + b * math.log(tick)
        body.append(f'<path d="M{x:.1f} {_HEAD - 6}V{bottom}" stroke="#e5e7eb"/>')
        body.append(_text(x, bottom + 16, short(tick), size=11,
                          more=' text-anchor="middle" fill="#6b7280"'))  # fmt: skip
    for place, (label, least, middle, most) in enumerate(rows):
        y = _HEAD + _ROW * (place + 0.5)
        colour = _OURS if label.startswith(ours) else _COLOURS[0]
        x0, x, x1 = (a + b * math.log(value) for value in (least, middle, most))
        body += [
            _text(_LEFT - 12, y + 4, label, more=' text-anchor="end"'),
            f'<path d="M{x0:.1f} {y}H{x1:.1f}" stroke="{colour}" stroke-width="3"/>',
            f'<circle cx="{x:.1f}" cy="{y}" r="5" fill="{colour}"/>',
            _text(max(x, x1) + 10, y + 4, short(middle), size=11),
        ]
    body.append(_text(_WIDTH - 16, bottom + 34, unit, size=11,
                      more=' text-anchor="end" fill="#6b7280"'))  # fmt: skip
    return _page(bottom + 44, title, subtitle, body)


def lines(
    title: str, subtitle: str, x_name: str, y_name: str, series: Sequence[Line], ours: str
) -> str:
    """A line per client over a few places that are the same for all."""
    xs = sorted({x for _label, points in series for x, _y in points})
    ys = [y for _label, points in series for _x, y in points]
    low, high = min(ys) / 1.4, max(ys) * 1.4
    left, right = 70, _WIDTH - 150
    ax, bx = _scale(xs[0], max(xs[-1], xs[0] * 1.01), left, right)
    ay, by = _scale(low, high, _HEIGHT, _HEAD + 16)
    body = []
    for tick in _ticks(low, high):
        y = ay + by * math.log(tick)
        body.append(f'<path d="M{left} {y:.1f}H{right}" stroke="#e5e7eb"/>')
        body.append(_text(left - 8, y + 4, short(tick), size=11,
                          more=' text-anchor="end" fill="#6b7280"'))  # fmt: skip
    for value in xs:
        x = ax + bx * math.log(value)
        body.append(_text(x, _HEIGHT + 18, f"{value:g}", size=11,
                          more=' text-anchor="middle" fill="#6b7280"'))  # fmt: skip
    body.append(_text((left + right) / 2, _HEIGHT + 36, x_name, size=11,
                      more=' text-anchor="middle"'))  # fmt: skip
    body.append(_text(left, _HEAD + 4, y_name, size=11, more=' fill="#6b7280"'))
    names = []
    for place, (label, points) in enumerate(series):
        colour = _OURS if label == ours else _COLOURS[place % len(_COLOURS)]
        spots = [(ax + bx * math.log(x), ay + by * math.log(y)) for x, y in sorted(points)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
        body.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in spots]
        names.append((spots[-1][1], label, colour))
    last = -math.inf
    for y, label, colour in sorted(names):
        last = max(y, last + 15)
        body.append(_text(right + 10, last + 4, label, more=f' fill="{colour}"'))
    return _page(_HEIGHT + 48, title, subtitle, body)
