from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from edge_tprune.analysis.classes import list_class_changes
from edge_tprune.analysis.loading import load_rows
from edge_tprune.errors import UserError
from edge_tprune.report.report import write_report

COUNTS = {"classes": [2, 3, 7], "images": [50, 60, 40], "unpruned_right": [40, 30, 40], "lost": [2, 28, 0], "gained": [1, 0, 0]}
NAMES = {"names": [f"n{i}" for i in range(8)], "source": "a test", "descriptions": []}


def _write(profiles: Any, path: Path, counts: dict[str, list[int]], names: dict[str, Any] | None = NAMES) -> Path:
    info = profiles.info()
    info["bundle"]["class_names"] = names
    for budget in info["budgets"]:
        budget["accuracy"]["per_class"] = counts
    return profiles.write(path, info)


def test_the_class_that_loses_most_comes_first(profiles: Any, tmp_path: Path) -> None:
    rows = load_rows(_write(profiles, tmp_path / "p", COUNTS))
    changes = list_class_changes(next(row for row in rows if row.budget == "0.5"))
    assert [(change.title, change.images) for change in changes] == [("n3", 60), ("n2", 50), ("n7", 40)]
    assert changes[0].change_points.value == pytest.approx(-100 * 28 / 60)
    assert changes[0].unpruned_percent == 50
    assert [change.resolved for change in changes] == [True, False, False]


def test_noise_in_many_classes_is_not_taken_for_a_change(profiles: Any, tmp_path: Path) -> None:
    """Of 100 classes that lose and gain alike, fewer than one is named per twenty budgets: the intervals hold together."""
    draw, found = random.Random(0), 0
    for trial in range(40):
        lost = [sum(draw.random() < 0.1 for _ in range(40)) for _ in range(100)]
        gained = [sum(draw.random() < 0.1 for _ in range(40)) for _ in range(100)]
        counts = {
            "classes": list(range(100)),
            "images": [100] * 100,
            "unpruned_right": [60] * 100,
            "lost": lost,
            "gained": gained,
        }
        rows = load_rows(_write(profiles, tmp_path / str(trial), counts, None))
        found += any(change.resolved for change in list_class_changes(rows.rows[0]))
    assert found <= 6


def test_without_labels_there_is_nothing_to_say(profile_dir: Path) -> None:
    assert list_class_changes(load_rows(profile_dir).rows[0]) == []


@pytest.mark.parametrize(
    "change",
    [
        {"images": [50, 60]},
        {"classes": [3, 2, 7]},
        {"classes": [2, 2, 7]},
        {"lost": [41, 0, 0]},
        {"gained": [11, 0, 0]},
        {"images": [-1, 60, 40]},
        {"lost": ["a", 0, 0]},
    ],
)
def test_counts_that_cannot_be_are_refused(profiles: Any, tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"budgets\[\d\]\.accuracy\.per_class"):
        load_rows(_write(profiles, tmp_path / "p", {**COUNTS, **change}))


def test_the_page_names_the_classes(profiles: Any, tmp_path: Path) -> None:
    names = {**NAMES, "names": ["<b>0</b>", *NAMES["names"][1:3], "<i>three</i>", *NAMES["names"][4:]]}
    text = write_report(_write(profiles, tmp_path / "p", COUNTS, names), tmp_path / "r.html").read_text()
    assert "Classes that lose most" in text
    assert "&lt;i&gt;three&lt;/i&gt;" in text
    assert "1 of 3 classes lose more than chance explains" in text
