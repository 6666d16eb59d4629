"""Energy predictions on the simulated Orin Nano: how often the interval holds the truth."""

from __future__ import annotations

import random

import pytest

from edge_tprune.schedule.latency_fit import Measured, fit_cost
from edge_tprune.schedule.probes import design_probes
from tests.record.virtual_run import Settings, run
from tests.schedule.test_latency import METHODS, SHAPE, drawn_schedule, true_cost


@pytest.mark.slow
def test_the_interval_holds_in_93_of_100_runs() -> None:
    """Each graph is measured with an error that the simulated board's sensor and the energy estimate really made."""
    outcomes = [run(Settings("orin-nano", seconds=3.0, warmup_s=0.5, baseline_s=5.0, rounds=5), seed) for seed in range(60)]
    errors = []
    for outcome in outcomes:
        found = outcome.energy.gross_mj
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        errors.append((found.value / outcome.gross_mj, (found.high - found.low) / 3.92 / outcome.gross_mj))
    probes, held = design_probes(SHAPE, {"evit": METHODS["evit"]}), 0
    for seed in range(100):
        rng = random.Random(seed)
        graphs = []
        for probe in probes:
            ratio, noise = rng.choice(errors)
            truth = 5.2 * true_cost(SHAPE, probe.method, probe.tokens)  # W * ms = mJ
            graphs.append(Measured(probe.method, probe.tokens, truth * ratio, truth * noise))
        schedule = drawn_schedule(SHAPE, rng)
        known = fit_cost(SHAPE, "energy_mj_per_image", graphs).predict(SHAPE, "evit", schedule)
        assert known is not None
        held += not known.excludes(5.2 * true_cost(SHAPE, "evit", schedule))
    assert held >= 93
