"""Rules for ranges against what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from edge_tprune.export.ranges import BINS, RULES, Histogram
from edge_tprune.reduction.quantization import INT8, UINT8, IntegerType


def histogram(values: np.ndarray) -> Histogram:
    counts, _ = np.histogram(values, BINS, (values.min(), values.max()))
    return Histogram(float(values.min()), float(values.max()), counts.astype(float))


def values(kind: str, count: int = 200_000) -> np.ndarray:
    rng = np.random.default_rng(1)
    if kind == "outlier":
        return np.append(rng.normal(size=count), 60.0)
    x = rng.normal(size=count) * 2
    return x / (1 + np.exp(-1.7 * x)) if kind == "gelu" else x


def error(x: np.ndarray, limits: tuple[float, float], kind: IntegerType) -> float:
    scale, zero = kind.scale_and_zero(*limits)
    return float(np.mean((x - (np.clip(np.round(x / scale) + zero, kind.lowest, kind.highest) - zero) * scale) ** 2))


@pytest.mark.parametrize("kind", [UINT8, INT8])
@pytest.mark.parametrize("shape", ["normal", "gelu", "outlier"])
def test_mean_square_is_the_best_of_a_fine_search(kind: IntegerType, shape: str) -> None:
    x = values(shape, 20_000)
    found = RULES["mean-square"](histogram(x), kind)
    low, high = x.min(), x.max()
    limits = [(low * a, high * b) for a in np.linspace(0.02, 1, 30) for b in np.linspace(0.02, 1, 30)]
    best = min(error(x, one, kind) for one in limits)
    assert error(x, found, kind) <= 1.1 * best
    assert error(x, found, kind) <= error(x, RULES["min-max"](histogram(x), kind), kind)


@pytest.mark.parametrize("kind", [UINT8, INT8])
def test_the_percentile_leaves_out_one_value_in_ten_thousand(kind: IntegerType) -> None:
    x = values("normal")
    low, high = RULES["percentile"](histogram(x), kind)
    width = (x.max() - x.min()) / BINS
    assert low == pytest.approx(np.quantile(x, 0.0001), abs=2 * width)
    assert high == pytest.approx(np.quantile(x, 0.9999), abs=2 * width)


@pytest.mark.parametrize("kind", [UINT8, INT8])
def test_entropy_keeps_a_flat_distribution_whole_and_cuts_off_an_outlier(kind: IntegerType) -> None:
    flat = np.linspace(-1, 1, 100_000)
    assert RULES["entropy"](histogram(flat), kind)[1] > 0.9
    assert RULES["entropy"](histogram(values("outlier")), kind)[1] < 30


@pytest.mark.parametrize("rule", RULES)
def test_a_layer_that_reads_nothing_below_zero_gets_no_negative_range(rule: str) -> None:
    x = np.abs(values("normal"))
    low, high = RULES[rule](histogram(x), UINT8)
    assert low >= 0 or low == pytest.approx(0, abs=0.01)
    assert 0 < high <= x.max() + 1e-9


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", [UINT8, INT8])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_layer_that_reads_only_numbers_away_from_zero_keeps_them_all(rule: str, kind: IntegerType, sign: int) -> None:
    x = sign * (20 + 0.1 * values("normal"))
    low, high = RULES[rule](histogram(x), kind)
    assert min(low, 0.0) <= x.min() * (1.0 if sign > 0 else 0.95)
    assert max(high, 0.0) >= x.max() * (0.95 if sign > 0 else 1.0)
