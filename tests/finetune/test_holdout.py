from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from edge_tprune.finetune import holdout
from edge_tprune.finetune.distill import Students, Teacher
from edge_tprune.finetune.holdout import HoldOut, Scores
from edge_tprune.models.loading import LoadedModel
from tests.finetune.conftest import PLAIN, SCHEDULES


def scores(divergence: list[float], expected: float = 0.0, right: list[float] | None = None) -> Scores:
    values = np.array(divergence)
    return Scores(
        values, values, np.full(len(values), 100.0), np.full(len(values), expected), None if right is None else np.array(right)
    )


def test_scores_are_their_definitions(network: LoadedModel) -> None:
    torch.manual_seed(1)
    images, labels = torch.randn(30, 3, 48, 48), torch.arange(30) % 6
    students = Students(network.model, "evit", {}, SCHEDULES, "all")
    found = HoldOut(images, labels, Teacher(network.model, PLAIN), PLAIN).judge(students)
    assert found["1.0"].divergence == pytest.approx(np.zeros(30), abs=1e-6)
    assert (found["1.0"].agrees == 100).all()
    with torch.no_grad():
        teacher, student = network.model(images), students.pruned["0.6"](images)
    for n in range(30):
        p, q = (logits[n].double().softmax(0).tolist() for logits in (teacher, student))
        mine, own = max(range(6), key=q.__getitem__), max(range(6), key=p.__getitem__)
        kl = sum(a * math.log(a / b) for a, b in zip(p, q) if a > 0)
        assert found["0.6"].divergence[n] == pytest.approx(kl, rel=1e-3, abs=1e-6)
        assert found["0.6"].agrees[n] == 100 * (mine == own)
        assert found["0.6"].expected[n] == pytest.approx(100 * (p[mine] - p[own]), abs=1e-3)
        right = found["0.6"].right
        assert right is not None
        assert found["0.6"].loss[n] == pytest.approx(-math.log(q[n % 6]), rel=1e-3, abs=1e-6)
        assert right[n] == 100 * (mine == n % 6)


def test_improvement_is_paired_and_of_the_pruned_budgets() -> None:
    rng = np.random.default_rng(0)
    hard = rng.exponential(1.0, 100)
    before = {"1.0": scores([0.0] * 100), "0.5": scores(list(hard))}
    after = {"1.0": scores([0.01] * 100), "0.5": scores(list(0.9 * hard))}
    change = holdout.improvement(before, after)
    assert change.value == pytest.approx(-0.1 * hard.mean())
    assert change.high is not None
    assert change.high < 0
    same = holdout.improvement(before, {**after, "0.5": scores(list(rng.permutation(hard)))})
    assert not same.excludes(0)
    alone = holdout.improvement({"1.0": scores([0.2] * 9)}, {"1.0": scores([0.1] * 9)})
    assert alone.value == pytest.approx(-0.1), "a unpruned network alone is judged by itself"


def test_an_improvement_is_resolved_and_not_negligible() -> None:
    before = {"0.5": scores([1.0, 2.0, 3.0, 4.0])}
    for factor, better in [(0.5, True), (0.998, True), (0.9999, False), (1.0, False), (1.1, False)]:
        after = {"0.5": scores([factor * value for value in (1.0, 2.0, 3.0, 4.0)])}
        assert holdout.is_improvement(holdout.improvement(before, after), before) == better
    mixed = {"0.5": scores([0.1, 2.5, 3.5, 3.5])}
    assert not holdout.is_improvement(holdout.improvement(before, mixed), before)


def test_photos_that_are_few_or_of_few_classes_are_remarked_on() -> None:
    def logits(classes: int) -> torch.Tensor:
        """60 sure answers, spread evenly over the first of 200 classes."""
        return 50.0 * torch.eye(200)[torch.arange(60) % classes]

    assert holdout.remarks(500, logits(30), True) == []
    (few,) = holdout.remarks(99, logits(30), True)
    assert "99 photos are few" in few
    assert "With 60 held-out photos" in few
    (alike,) = holdout.remarks(500, logits(12), True)
    assert "look like about 12 of its 200 classes" in alike
    assert holdout.remarks(500, logits(12), False) == [], "an embedding has no classes"


def test_gate_without_labels_counts_what_changed_answers_are_expected_to_cost() -> None:
    before = {"1.0": scores([0.0] * 10)}
    assert holdout.gate({"1.0": scores([0.1] * 10, expected=-0.4)}, before) == ""
    assert "expected to cost 0.6 points" in holdout.gate({"1.0": scores([0.1] * 10, expected=-0.6)}, before)
    assert holdout.gate({"0.5": scores([0.1] * 10, expected=-9)}, before) == "", "a specialist has no unpruned budget to keep"


def test_gate_with_labels_asks_for_a_clear_loss() -> None:
    right = [100.0] * 90 + [0.0] * 10
    worse = [0.0] * 20 + [100.0] * 70 + [0.0] * 10
    a_bit = [0.0] + [100.0] * 89 + [0.0] * 10
    before = {"1.0": scores([0.0] * 100, right=right)}
    assert "lost 20.0 points" in holdout.gate({"1.0": scores([0.1] * 100, -5.0, worse)}, before)
    assert holdout.gate({"1.0": scores([0.1] * 100, -5.0, a_bit)}, before) == ""


def test_rows_pair_before_and_after() -> None:
    before = {"0.5": scores([0.4, 0.2], right=[0.0, 100.0])}
    after = {"0.5": scores([0.2, 0.2], expected=-1.5, right=[100.0, 100.0])}
    (row,) = holdout.rows({"0.5": 0.498}, before, after)
    assert (row.divergence_before, row.divergence) == pytest.approx((0.3, 0.2))
    assert row.divergence_change.value == pytest.approx(-0.1)
    assert row.top1_change_points is not None
    assert row.top1_change_points.value == 50
    assert row.expected_top1_change_points == -1.5
    assert row.macs_share == 0.498
