"""The sensitivity table: which networks it asks for, and what it says between them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from edge_tprune.errors import UserError
from edge_tprune.schedule import NetworkShape
from edge_tprune.search.sensitivity import KIND, measure, single_schedule, table_counts

SHAPE = replace(NetworkShape.plain(41, 1, 5, 24, 24, 96, 1000, 10), read_tokens=1)


def halves(tokens: int) -> int:
    return tokens - (tokens - 1) // 2


def test_one_block_leaves_the_tokens() -> None:
    assert single_schedule(SHAPE, 3, 20, lambda n: 2, True) == (41, 41, 20, 20, 1)
    assert single_schedule(SHAPE, 3, 20, lambda n: 2, False) == (41, 41, 20, 20, 20)
    assert single_schedule(SHAPE, 3, 20, halves, True) == (41, 21, 20, 20, 1), "a method with a limit begins earlier"
    assert single_schedule(SHAPE, 1, 20, halves, True) is None


def test_the_table() -> None:
    asked: list[tuple[int, ...]] = []

    def losses(schedules: Sequence[tuple[int, ...]]) -> list[float]:
        asked.extend(schedules)
        return [sum(41 - n for n in schedule[:-1]) / 100 for schedule in schedules]

    counts = table_counts(SHAPE, 2)
    found = measure(SHAPE, "tome", counts, halves, losses, exact=True)
    assert counts == (5, 8, 12, 17, 23, 29, 35, 41)
    assert len(found.loss) == 4, "the last block only serves the head"
    assert found.loss[0][:4] == (None,) * 4
    assert found.at(1, 12) == math.inf
    assert found.at(1, 23) == pytest.approx(0.72)
    assert found.at(1, 26) == pytest.approx((0.72 + 0.48) / 2)
    assert found.added(1, 41, 23) == pytest.approx(0.72)
    assert found.added(1, 29, 23) == pytest.approx(0.24)
    assert found.added(2, 29, 29) == 0.0
    assert len(asked) == sum(value is not None for row in found.loss for value in row[:-1])


def test_noise_does_not_make_fewer_tokens_better() -> None:
    values = [0.3, 0.1, 0.2, 0.05, 0.04, 0.06, 0.01] * 4
    found = measure(SHAPE, "evit", table_counts(SHAPE, 2), lambda n: 2, lambda schedules: values, exact=True)
    for row in found.loss:
        assert list(row) == sorted(row, reverse=True)  # type: ignore[type-var]
    assert found.loss[0][:3] == pytest.approx((0.3, 0.15, 0.15))


@pytest.mark.parametrize(
    "damage",
    [
        {"loss": [[0.1, 0.0]]},
        {"loss": [[0.1, 0.2, None]] * 2},
        {"counts": [9, 5, 3]},
        {"counts": [5, 5, 5]},
    ],
)
def test_a_damaged_table_is_refused(damage: dict[str, object], tmp_path: Path) -> None:
    table = {"method": "evit", "counts": [3, 5, 9], "loss": [[0.2, 0.1, 0.0]] * 2} | damage
    document = {"format": KIND.format, "version": KIND.version, "tables": [table]}
    (tmp_path / "sensitivity.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"sensitivity\.json: tables\[0\]"):
        KIND.read(tmp_path / "sensitivity.json")
