"""The cost model against networks whose cost is known: what it finds, how sure it is, and what it does not know."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import PchipInterpolator

from edge_tprune.errors import UserError
from edge_tprune.schedule import NetworkShape
from edge_tprune.schedule.latency import KIND, CostModel, Latency, NetworkRecord, interpolate, monotone_slopes, stages
from edge_tprune.schedule.latency_fit import Measured, fit_cost
from edge_tprune.schedule.probes import MOST_GRAPHS, design_probes

POOLED = NetworkShape.plain(197, 1, 12, 192, 192, 768, 28_901_376, 192_000)
SHAPE = replace(POOLED, read_tokens=1)
METHODS = {"evit": lambda tokens: 2, "tome": lambda tokens: tokens - (tokens - 1) // 2}


def true_cost(shape: NetworkShape, method: str, schedule: tuple[int, ...]) -> float:
    """Block by block: attention, then MLP; a step of tile size in the MLP; a method's step over the slice."""
    total, tokens = 2.0, shape.tokens
    for number, after in enumerate(schedule, 1):
        if number == shape.blocks and shape.saves_last_block(schedule):
            total += 0.0012 * tokens
        else:
            total += 0.0015 * tokens + 0.000012 * tokens**2 + 0.004 * after + (0.02 if after > 128 else 0.0)
        tokens = after
    if method != "slice":
        total += sum(0.05 + 0.0006 * n for n in stages(shape, schedule))
    return total


def fitted(shape: NetworkShape, methods: list[str], noise: float = 0.0, seed: int = 0) -> CostModel:
    rng = random.Random(seed)
    graphs = [
        Measured(p.method, p.tokens, true_cost(shape, p.method, p.tokens) * (1 + rng.gauss(0, noise)), noise)
        for p in design_probes(shape, {name: METHODS[name] for name in methods})
    ]
    return fit_cost(shape, "p50_ms", graphs)


def drawn_schedule(shape: NetworkShape, rng: random.Random) -> tuple[int, ...]:
    chosen, tokens, after = set(rng.sample(range(1, shape.blocks), 3)), shape.tokens, []
    for block in range(1, shape.blocks + 1):
        tokens = int(tokens * rng.uniform(0.65, 0.97)) if block in chosen else tokens
        after.append(tokens)
    return tuple(after) if shape.read_tokens is None else (*after[:-1], shape.read_tokens)


@pytest.mark.parametrize("shape", [SHAPE, POOLED])
@pytest.mark.parametrize("noise", [0.0, 0.003])
def test_schedules_that_were_not_measured(shape: NetworkShape, noise: float) -> None:
    rng, errors, held = random.Random(1), [], []
    for seed in range(8):
        model = fitted(shape, ["evit", "tome"] if seed % 2 else ["evit"], noise, seed)
        for _ in range(25):
            schedule = drawn_schedule(shape, rng)
            predicted, truth = model.predict(shape, "evit", schedule), true_cost(shape, "evit", schedule)
            assert predicted is not None
            errors.append(abs(predicted.value / truth - 1))
            held.append(not predicted.excludes(truth))
    assert np.median(errors) < 0.01
    assert max(errors) < 0.03
    assert np.mean(held) >= 0.95


def test_what_the_model_finds_is_what_was_put_in() -> None:
    model = fitted(SHAPE, ["evit"])
    cost = {n: 0.0055 * n + 0.000012 * n**2 + (0.02 if n > 128 else 0.0) for n in model.tokens}
    assert list(model.block) == pytest.approx([cost[n] - cost[model.tokens[0]] for n in model.tokens], abs=0.02)
    step = model.steps["evit"]
    assert step.at(150) == pytest.approx(0.05 + 0.0006 * 150, rel=0.1)
    assert model.predict(SHAPE, "evit", SHAPE.full_schedule()).value == true_cost(SHAPE, "evit", SHAPE.full_schedule())  # type: ignore[union-attr]


def test_it_does_not_know_what_it_did_not_measure() -> None:
    model = fitted(SHAPE, ["evit"])
    few = model.tokens[0]
    inside = (*[150] * 11, 1)
    assert model.predict(SHAPE, "evit", inside) is not None
    assert model.predict(SHAPE, "slice", inside) is not None
    assert model.predict(SHAPE, "tome", inside) is None, "no graph of this method"
    assert model.predict(SHAPE, "evit", (*[150] * 10, few - 1, 1)) is None, "fewer tokens than any graph"
    assert model.predict(SHAPE, "evit", (150,) * 12) is None, "a last block in another form"


def test_noise_widens_the_interval() -> None:
    assert fitted(SHAPE, ["evit"]).reach < fitted(SHAPE, ["evit"], 0.01).reach
    noisy = [Measured("slice", p.tokens, true_cost(SHAPE, "slice", p.tokens), 1.0) for p in design_probes(SHAPE, {})]
    assert fit_cost(SHAPE, "p50_ms", noisy).reach > 0.2, "the noise of the run counts, also where all graphs agree"


SIX = {f"m{number}": METHODS["tome" if number % 2 else "evit"] for number in range(6)}


def measured(seed: int, noise: float, apart: float) -> tuple[CostModel, dict[str, float]]:
    """A model of noisy graphs of six methods, and what a stage of each adds at 150 tokens: up to `apart` times more than of another."""
    rng = random.Random(seed)
    times = {name: rng.uniform(1, apart) for name in SIX}

    def cost(method: str, schedule: tuple[int, ...]) -> float:
        plain = true_cost(SHAPE, "slice", schedule)
        return plain + times.get(method, 0.0) * (true_cost(SHAPE, "evit", schedule) - plain)

    graphs = [
        Measured(p.method, p.tokens, cost(p.method, p.tokens) * (1 + rng.gauss(0, noise)), noise * cost(p.method, p.tokens))
        for p in design_probes(SHAPE, SIX)
    ]
    return fit_cost(SHAPE, "p50_ms", graphs), {name: factor * (0.05 + 0.0006 * 150) for name, factor in times.items()}


def test_the_method_that_looks_cheapest_is_not_taken_for_cheaper_than_it_is() -> None:
    """A search takes the cheapest of six: what was measured too fast must not win."""
    gains = []
    for seed in range(60):
        model, truth = measured(seed, noise=0.03, apart=1.0)
        found = {name: step.at(150) for name, step in model.steps.items()}
        gains.append(min(found.values()) / truth["m0"])
    assert np.median(gains) > 0.6, "noise makes no difference between methods that cost the same"


def test_methods_that_differ_more_than_the_noise_keep_their_difference() -> None:
    for seed in range(10):
        model, truth = measured(seed, noise=0.0005, apart=6.0)
        for name, step in model.steps.items():
            assert step.at(150) == pytest.approx(truth[name], rel=0.25, abs=0.02), name


@pytest.mark.parametrize("shape", [SHAPE, POOLED, NetworkShape.plain(37, 1, 4, 96, 96, 384, 1000, 100, read_tokens=1)])
@pytest.mark.parametrize("count", range(7))
def test_probes_are_few_and_possible(shape: NetworkShape, count: int) -> None:
    methods = {f"m{i}": METHODS["tome" if i % 2 else "evit"] for i in range(count)}
    probes = design_probes(shape, methods)
    assert len(probes) <= MOST_GRAPHS
    assert len({probe.name for probe in probes}) == len(probes)
    assert probes[0].tokens == shape.full_schedule()
    assert {probe.method for probe in probes} == {"slice", *methods}
    for probe in probes:
        shape.check(probe.tokens)
        for before, after in pairwise((shape.tokens, *probe.tokens[:-1])):
            assert probe.method == "slice" or after >= methods[probe.method](before) or before == after
    rng = random.Random(count)
    graphs = [Measured(p.method, p.tokens, true_cost(shape, p.method, p.tokens) * rng.uniform(0.999, 1.001)) for p in probes]
    assert set(fit_cost(shape, "p50_ms", graphs).steps) == set(methods)


def test_what_makes_no_model_is_refused() -> None:
    probes = design_probes(SHAPE, {})
    graphs = [Measured("slice", p.tokens, true_cost(SHAPE, "slice", p.tokens)) for p in probes]
    with pytest.raises(UserError, match="the unpruned network is not among the graphs"):
        fit_cost(SHAPE, "p50_ms", graphs[1:])
    with pytest.raises(UserError, match="3 graphs are too few for a latency model"):
        fit_cost(SHAPE, "p50_ms", graphs[:4])
    with pytest.raises(UserError, match="the last block of some computes all tokens"):
        fit_cost(SHAPE, "p50_ms", [*graphs, Measured("slice", (150,) * 12, 9.0)])
    with pytest.raises(UserError, match="7 methods are too many"):
        design_probes(SHAPE, {f"m{i}": METHODS["evit"] for i in range(7)})
    with pytest.raises(UserError, match="too small for a latency model"):
        design_probes(NetworkShape.plain(4, 1, 2, 8, 8, 32, 10, 10), {})


def test_the_document(tmp_path: Path) -> None:
    network = NetworkRecord(name="tiny", weights_sha256="a" * 64, tokens=197, blocks=12)
    document = Latency(
        run_id="r", network=network, runtime="onnxruntime", precision="fp32", batch=1, threads=2, power_mode=None, machine="x",
        status="valid", costs={"p50_ms": fitted(SHAPE, ["evit"])},
    )  # fmt: skip
    KIND.write(tmp_path, document)
    assert KIND.read(tmp_path) == document
    schedule = (*[150] * 11, 1)
    assert KIND.read(tmp_path).cost("p50_ms").predict(SHAPE, "evit", schedule) == document.cost("p50_ms").predict(
        SHAPE, "evit", schedule
    )
    with pytest.raises(UserError, match="energy_mj is not known of this board"):
        document.cost("energy_mj")
    document.check(replace_network(network, weights_sha256="b" * 64), 1)
    with pytest.raises(UserError, match="batch was 1 and is 8; name was tiny and is small"):
        document.check(replace_network(network, name="small"), 8)


def replace_network(network: NetworkRecord, **changes: object) -> NetworkRecord:
    return NetworkRecord(**{field: getattr(network, field) for field in network.__struct_fields__} | changes)  # type: ignore[arg-type]


@given(st.data())
def test_interpolation_is_that_of_scipy(data: st.DataObject) -> None:
    x = sorted(data.draw(st.sets(st.integers(1, 400), min_size=2, max_size=9)))
    steps = data.draw(st.lists(st.floats(0, 5), min_size=len(x), max_size=len(x)))
    y = list(np.cumsum(steps))
    slopes, wanted = monotone_slopes(x, y), PchipInterpolator(x, y)
    points = np.linspace(x[0], x[-1], 41)
    found = [interpolate(x, y, slopes, point) for point in points]
    assert found == pytest.approx(list(wanted(points)), abs=1e-6)
    assert all(a <= b + 1e-9 for a, b in pairwise(found))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tokens": [50] * 3, "block": [0.0, 1.0, 2.0]}, "increase"),
        ({"tokens": [90, 50], "block": [0.0, 1.0]}, "increase"),
        ({"block": [0.0, 1.0]}, "a cost for each"),
        ({"full": 0}, "full is 0"),
        ({"base": 1e300}, "base is 1e"),
        ({"reach": 1e308}, "reach is 1e"),
    ],
)
def test_a_damaged_model_is_refused(tmp_path: Path, change: dict[str, object], why: str) -> None:
    costs = {"p50_ms": fitted(SHAPE, ["evit"])}
    network = NetworkRecord(name="vit", weights_sha256="0" * 64, tokens=197, blocks=12)
    whole = Latency(
        run_id="r", network=network, runtime="onnxruntime", precision=None, batch=1, threads=1, power_mode=None, machine="m",
        status="valid", costs=costs,
    )  # fmt: skip
    KIND.write(tmp_path, whole)
    document = json.loads((tmp_path / "latency.json").read_bytes())
    document["costs"]["p50_ms"].update(change)
    (tmp_path / "latency.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=rf"latency\.json: costs\.p50_ms.*{why}"):
        KIND.read(tmp_path)
