from __future__ import annotations

import numpy as np
import pytest

from edge_tprune.bundle.accuracy import Variant, compare_logits, count_by_class


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


def test_a_single_output_is_a_class_against_its_absence() -> None:
    logits = {"1.0": np.array([[2.0], [-1.0], [3.0]], np.float32), "0.5": np.array([[2.0], [1.0], [0.5]], np.float32)}
    variants = {name: Variant(name, "onnxruntime", "fp32") for name in logits}
    found = compare_logits(logits, np.full(3, -1), "1.0", variants)
    assert found.kl_nats["0.5"][0] == 0
    assert found.kl_nats["0.5"][1] == pytest.approx(np.tanh(0.5)), "of sigmoid(-1) and sigmoid(1)"
    assert found.kl_nats["0.5"][2] > 0
    assert (found.top5["0.5"] == found.top5["1.0"])[:, 0].tolist() == [True, False, True]
