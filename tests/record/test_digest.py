from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_tprune.record.digest import Digest
from edge_tprune.statistics import percentile


@given(st.lists(st.lists(st.integers(0, 10**10), max_size=60), min_size=1, max_size=8), st.sampled_from([50, 95, 99]))
def test_few_values_are_exact_however_they_come(chunks: list[list[int]], percent: int) -> None:
    digest = Digest()
    for chunk in chunks:
        digest.add(np.array(chunk, np.int64))
    values = np.array([value for chunk in chunks for value in chunk], np.int64)
    assert digest.count == values.size
    if not values.size:
        assert (digest.percentile(percent), digest.mean, digest.deviation, digest.least) == (None, None, None, None)
        return
    assert digest.percentile(percent) == percentile(values, percent)
    assert digest.mean == pytest.approx(values.mean())
    assert (digest.least, digest.greatest) == (values.min(), values.max())
    if values.size > 1:
        assert digest.deviation == pytest.approx(values.std(ddof=1), abs=1e-3)


def test_many_values_are_told_apart_to_the_width_of_a_bin_in_bounded_memory() -> None:
    rng = np.random.default_rng(0)
    digest = Digest(most=1000)
    values = (8e6 + 4e5 * rng.standard_gamma(2, 200_000)).astype(np.int64)
    for chunk in np.array_split(values, 100):
        digest.add(chunk)
    assert digest._keys.size <= 1000
    assert 1 < digest.width_ns < 20_000
    for percent in (1, 50, 95, 99, 100):
        found = digest.percentile(percent)
        assert found is not None
        assert abs(found - percentile(values, percent)) <= digest.width_ns
    assert digest.mean == pytest.approx(values.mean(), rel=1e-12)
    assert digest.deviation == pytest.approx(values.std(ddof=1), rel=1e-9)
