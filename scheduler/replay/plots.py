"""Plots as SVG text, drawn by hand: bars in groups and lines. Pure functions without a dependency."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from scheduler.replay.figures import CLASSES, Figures

WIDTH, HEIGHT = 860, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 64, 64
COLORS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5")
"""Told apart by people who see few colours, too (Observable 10)."""


def plots(found: Sequence[Figures]) -> dict[str, str]:
    """File name: SVG text."""
    organizations = list(found[0].deliveries) if found else []
    return {
        "wait.svg": bars(
            "Mean wait by number of GPUs, hours",
            list(CLASSES),
            {f.policy: [f.waits[name].mean_h for name in CLASSES] for f in found},
        ),
        "delivered.svg": bars(
            "Delivered / min(grant, demand) within the term",
            organizations,
            {f.policy: [f.deliveries[id].ratio or 0.0 for id in organizations] for f in found},
            mark=1.0,
        ),
        "utilization.svg": lines(
            "Useful share of the capacity, by day",
            {f.policy: f.utilization_by_day for f in found},
            "day",
        ),
    }


def bars(
    title: str, groups: Sequence[str], series: Mapping[str, Sequence[float]], mark: float | None = None
) -> str:
    """A group of bars per name in `groups`, one bar per series; `mark` draws a line across."""
    top = nice(max([mark or 0.0, *(value for values in series.values() for value in values)]))
    room = (WIDTH - LEFT - RIGHT) / max(1, len(groups))
    thick = room * 0.8 / max(1, len(series))
    shapes = list(_axis(top))
    for g, group in enumerate(groups):
        left = LEFT + g * room
        shapes.append(_label(left + room / 2, HEIGHT - BOTTOM + 18, group, "middle"))
        for s, (name, values) in enumerate(series.items()):
            y = _y(values[g], top)
            shapes.append(
                f'<rect x="{left + room * 0.1 + s * thick:.1f}" y="{y:.1f}" width="{thick * 0.92:.1f}" '
                f'height="{HEIGHT - BOTTOM - y:.1f}" fill="{COLORS[s % len(COLORS)]}">'
                f"<title>{escape(f'{name}, {group}: {values[g]:.3f}')}</title></rect>"
            )
    if mark is not None:
        y = _y(mark, top)
        shapes.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#333" stroke-dasharray="4 3"/>')
    return _page(title, list(series), shapes)


def lines(title: str, series: Mapping[str, Sequence[float]], unit: str) -> str:
    """One line per series over 0, 1, 2, … in `unit`."""
    top = nice(max((value for values in series.values() for value in values), default=1.0))
    count = max((len(values) for values in series.values()), default=1)
    room = (WIDTH - LEFT - RIGHT) / max(1, count - 1)
    shapes = list(_axis(top))
    step = max(1, math.ceil(count / 12))
    shapes += [
        _label(LEFT + at * room, HEIGHT - BOTTOM + 18, f"{at}", "middle") for at in range(0, count, step)
    ]
    shapes.append(_label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - BOTTOM + 40, unit, "middle"))
    for s, values in enumerate(series.values()):
        points = " ".join(f"{LEFT + i * room:.1f},{_y(value, top):.1f}" for i, value in enumerate(values))
        shapes.append(
            f'<polyline points="{points}" fill="none" stroke="{COLORS[s % len(COLORS)]}" stroke-width="2"/>'
        )
    return _page(title, list(series), shapes)


def nice(value: float) -> float:
    """The least of 1, 2, 2.5, 5 times a power of ten that is not below the value."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if value <= step * power * (1 + 1e-9))


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(value, top) / top


def _axis(top: float) -> Iterable[str]:
    for part in range(6):
        value = top * part / 5
        y = _y(value, top)
        yield f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
        yield _label(LEFT - 8, y + 4, f"{value:g}", "end")


def _label(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _page(title: str, names: Sequence[str], shapes: Sequence[str]) -> str:
    legend = []
    x = float(LEFT)
    for s, name in enumerate(names):
        legend.append(f'<rect x="{x:.1f}" y="36" width="12" height="12" fill="{COLORS[s % len(COLORS)]}"/>')
        legend.append(_label(x + 17, 47, name, "start"))
        x += 34 + 7.5 * len(name)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" font-family="sans-serif" font-size="12" role="img">'
    )
    spoken = f"<title>{escape(title)}</title>"  # has to come first to be read aloud
    caption = f'<text x="{LEFT}" y="22" font-size="16">{escape(title)}</text>'
    background = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    return "\n".join((head, spoken, background, caption, *legend, *shapes, "</svg>")) + "\n"
