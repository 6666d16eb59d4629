"""Where names of points go so that they cover neither each other nor a point, a whisker or the legend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

_DISTANCES = (7.0, 12.0, 18.0, 26.0)  # of a name from its point, in typographic points
_DIRECTIONS = tuple(math.radians(angle) for angle in (20, 340, 160, 200, 90, 270, 55, 305, 125, 235))


@dataclass(frozen=True)
class Label:
    """A name and the point it belongs to, in data coordinates."""

    text: str
    x: float
    y: float
    bold: bool = False


def place_labels(axes: Axes, labels: Sequence[Label], obstacles: Sequence[tuple[float, float, float, float]]) -> None:
    """Writes each name beside its point: at the first of some places that is free, else where it covers least.

    The limits of the axes must be final. Bold names are placed first.

    Args:
        axes: where to.
        labels: the names.
        obstacles: what must stay readable, each as (x0, y0, x1, y1) in data coordinates: whiskers, the points' own are added.
    """
    figure: Any = axes.get_figure()
    figure.draw_without_rendering()  # settles the layout, so that data coordinates become pixels
    scale = figure.dpi / 72
    taken = [_marker_box(axes, label, 6 * scale) for label in labels]
    taken += [_line_box(axes, obstacle, 2 * scale) for obstacle in obstacles]
    inside = axes.get_window_extent()
    for label in sorted(labels, key=lambda each: not each.bold):
        text = axes.annotate(
            label.text, (label.x, label.y), xytext=(0, 0), textcoords="offset points", ha="center", va="center",
            fontweight="bold" if label.bold else "normal", zorder=4,
        )  # fmt: skip
        text.set_in_layout(False)  # the layout is settled
        size = text.get_window_extent()
        offsets = _offsets(size.width / scale, size.height / scale, gap=4.0 if label.bold else 0.0)
        boxes = [size.translated(x * scale, y * scale) for x, y in offsets]
        costs = [_overlap(box, taken) + _outside(box, inside) for box in boxes]
        best = min(range(len(boxes)), key=costs.__getitem__)
        text.set_position(offsets[best])
        taken.append(boxes[best])


def _offsets(width: float, height: float, gap: float) -> list[tuple[float, float]]:
    """Places of a name's centre, nearest first: on ellipses around its point."""
    return [
        ((width / 2 + distance + gap) * math.cos(angle), (height / 2 + distance + gap) * math.sin(angle))
        for distance in _DISTANCES
        for angle in _DIRECTIONS
    ]


def _marker_box(axes: Axes, label: Label, half: float) -> Bbox:
    x, y = axes.transData.transform((label.x, label.y))
    return Bbox.from_extents(x - half, y - half, x + half, y + half)


def _line_box(axes: Axes, line: tuple[float, float, float, float], half: float) -> Bbox:
    (x0, y0), (x1, y1) = axes.transData.transform([line[:2], line[2:]])
    return Bbox.from_extents(min(x0, x1) - half, min(y0, y1) - half, max(x0, x1) + half, max(y0, y1) + half)


def _overlap(box: Bbox, taken: Sequence[Bbox]) -> float:
    """The area that the box shares with what is there already."""
    shared = (Bbox.intersection(box, other) for other in taken)
    return sum(each.width * each.height for each in shared if each is not None)


def _outside(box: Bbox, inside: Bbox) -> float:
    """The area of the box that lies outside the axes."""
    shared = Bbox.intersection(box, inside)
    return float(box.width * box.height - (0.0 if shared is None else shared.width * shared.height))
