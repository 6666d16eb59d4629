"""The lines that say how far a command is, where there is no terminal."""

from __future__ import annotations

import pytest

from edge_tprune.cli import progress


def test_the_time_left_is_of_this_part_of_the_work(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten minutes of one part say nothing of how long the next one takes."""
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.show_progress("work") as advance:
        for seconds, text, done, of in (
            (0.0, "building", 0, 10), (600.0, "building", 6, 10), (640.0, "photos", 0, 100), (680.0, "photos", 20, 100),
            (720.0, "accuracy", 0, 100), (760.0, "accuracy", 50, 100),
        ):  # fmt: skip
            now = seconds
            advance(text, done, of)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "building: 6 of 10, about 7 min left",
        "photos: 0 of 100",
        "photos: 20 of 100, about 3 min left",
        "accuracy: 0 of 100",
        "accuracy: 50 of 100, about 40 s left",
    ]
