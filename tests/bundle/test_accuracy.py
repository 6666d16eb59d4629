from __future__ import annotations

import numpy as np
import pytest

from edge_tprune.bundle.accuracy import count_by_class


@pytest.mark.parametrize("seed", range(5))
def test_counts_by_class_equal_a_slow_count(seed: int) -> None:
    draw = np.random.default_rng(seed)
    truth = draw.choice([0, 3, 4, 9], 200)
    right, unpruned = draw.random(200) < 0.6, draw.random(200) < 0.8
    found = count_by_class(truth, right, unpruned)
    for place, number in enumerate(found.classes):
        images = [i for i in range(200) if truth[i] == number]
        assert found.images[place] == len(images)
        assert found.unpruned_right[place] == sum(unpruned[i] for i in images)
        assert found.lost[place] == sum(unpruned[i] and not right[i] for i in images)
        assert found.gained[place] == sum(right[i] and not unpruned[i] for i in images)
    assert found.classes == (0, 3, 4, 9)
    assert sum(found.images) == 200
