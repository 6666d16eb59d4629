"""How far an exported graph may be off before nothing is handed over."""

from __future__ import annotations

import numpy as np
import pytest

from edge_tprune.bundle.golden import golden_tolerance
from edge_tprune.bundle.outputs import LOGITS
from edge_tprune.errors import NegativeAnswer
from edge_tprune.export.formats.graphs import PROBABILITIES
from edge_tprune.export.formats.proof import prove

EXPECTED = np.array([9.0, 0.0, 0.0, 0.0], np.float32)  # probabilities of 0.9996 and three times 0.0001


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_probabilities_may_be_off_by_what_their_logits_may(precision: str) -> None:
    allowed = golden_tolerance(precision)
    odds = np.exp(EXPECTED + 0.9 * allowed * np.array([-1, 1, 1, 1]))
    difference = prove({PROBABILITIES: odds / odds.sum()}, EXPECTED, LOGITS, precision, resized=False)
    assert allowed < difference < 2 * allowed
    with pytest.raises(NegativeAnswer, match=r"its outputs are off by 7\.39 .* the best class is the same"):
        prove({PROBABILITIES: np.array([0.4, 0.2, 0.2, 0.2])}, EXPECTED, LOGITS, precision, resized=False)
