"""The accounting reproduces published figures."""

import pytest

from edge_tprune.errors import UserError
from edge_tprune.schedule import NetworkShape


def deit(channels: int) -> NetworkShape:
    return NetworkShape.plain(197, 1, 12, channels, channels, 4 * channels, 196 * channels * 768, channels * 1000)


SMALL, TINY = deit(384), deit(192)


def staged(after: dict[int, int], start: int = 197) -> list[int]:
    counts, current = [], start
    for block in range(1, 13):
        current = after.get(block, current)
        counts.append(current)
    return counts


@pytest.mark.parametrize(
    ("what", "shape", "schedule", "giga"),
    [
        ("DeiT-S", SMALL, [197] * 12, 4.60),
        ("DeiT-T", TINY, [197] * 12, 1.25),
        # PPT removes 50 tokens at blocks 4, 7, 10; the last stage can merge only half of what is left (97 -> 49)
        ("PPT r=50", SMALL, staged({4: 147, 7: 97, 10: 49}), 2.941),
        ("DiffRate DeiT-S", SMALL, [197, 194, 176, 156, 141, 133, 121, 107, 88, 64, 56, 3], 2.905),
        ("EViT keep 0.7", SMALL, staged({4: 139, 7: 98, 10: 70}), 3.00),
        ("EViT keep 0.7, fused token", SMALL, staged({4: 140, 7: 100, 10: 72}), 3.03),
    ],
)
def test_published_figures(what: str, shape: NetworkShape, schedule: list[int], giga: float) -> None:
    digits = len(str(giga).split(".")[1])
    assert round(shape.macs(schedule) / 1e9, max(2, digits)) == giga, what


def test_macs_equal_a_count_of_every_product() -> None:
    """Against an obviously right count: walk the layers and multiply out each matrix product."""
    shape = NetworkShape.plain(10, 2, 3, 6, 4, 11, 8 * 6 * 12, 6 * 5)
    schedule = [10, 7, 4]
    total, tokens = 8 * 6 * 12 + 6 * 5, 10
    for after in schedule:
        total += tokens * 6 * (3 * 4)  # q, k, v
        total += tokens * tokens * 4 + tokens * tokens * 4  # q k^T, A v
        total += tokens * 4 * 6  # output projection
        total += after * 6 * 11 + after * 11 * 6  # MLP
        tokens = after
    assert shape.macs(schedule) == total


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        ([197] * 11, "11 token counts but the model has 12 blocks"),
        ([197] * 11 + [198], "grows from 197 to 198 tokens after block 12"),
        ([197] * 11 + [1], "leaves 1 tokens after block 12"),
        ([100, 150] + [90] * 10, "grows from 100 to 150"),
    ],
)
def test_impossible_schedules_are_refused(schedule: list[int], says: str) -> None:
    with pytest.raises(UserError, match=says):
        SMALL.check(schedule)
