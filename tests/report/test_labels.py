from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from edge_tprune.report.labels import Label, place_labels


def _place(labels, obstacles=()):
    figure = Figure(figsize=(5.4, 3.9), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([label.x for label in labels], [label.y for label in labels], "o", markersize=8)
    axes.margins(0.12, 0.16)
    place_labels(axes, labels, obstacles)
    return axes, [text.get_window_extent() for text in axes.texts]


def _overlaps(one, other):
    return one.x0 < other.x1 and other.x0 < one.x1 and one.y0 < other.y1 and other.y0 < one.y1


def test_names_of_two_methods_beside_each_other_cover_nothing():
    points = [
        (5.6, 91.0),
        (5.8, 90.4),
        (7.0, 96.2),
        (7.25, 95.6),
        (8.3, 96.8),
        (8.6, 96.2),
        (9.2, 97.1),
        (9.7, 96.5),
        (10.3, 96.4),
    ]
    names = ["0.5", "0.5", "0.65", "0.65", "0.8", "0.8", "0.9", "0.9", "unpruned"]
    labels = [Label(name, x, y, name == "0.65") for name, (x, y) in zip(names, points)]
    whiskers = [(x, y - 0.6, x, y + 0.6) for x, y in points]
    axes, boxes = _place(labels, whiskers)
    for index, box in enumerate(boxes):
        assert not any(_overlaps(box, other) for other in boxes[index + 1 :])
        for x, y in points:
            centre = axes.transData.transform((x, y))
            assert not (box.x0 < centre[0] < box.x1 and box.y0 < centre[1] < box.y1)
    inside = axes.get_window_extent()
    assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1 for box in boxes)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), min_size=1, max_size=6))
def test_every_point_gets_its_name_near_it(points):
    labels = [Label(str(index), x, y) for index, (x, y) in enumerate(points)]
    axes, boxes = _place(labels)
    assert sorted(text.get_text() for text in axes.texts) == sorted(label.text for label in labels)
    for label, box in zip(labels, boxes):
        centre = axes.transData.transform((label.x, label.y))
        middle = ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
        assert pytest.approx(centre, abs=60) == middle
