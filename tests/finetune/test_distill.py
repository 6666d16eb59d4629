from __future__ import annotations

import math

import pytest
import torch
from msgspec.structs import replace
from torch import nn

from edge_tprune.finetune.distill import Arithmetic, Students, Teacher, divergence, loss_of
from edge_tprune.models.loading import LoadedModel
from tests.finetune.conftest import PLAIN, RECIPE, SCHEDULES


def students(network: LoadedModel, train: str = "all") -> Students:
    return Students(network.model, "evit", {}, SCHEDULES, train)


def slow_divergence(student: list[float], teacher: list[float], temperature: float) -> float:
    def chances(logits: list[float]) -> list[float]:
        powers = [math.exp(value / temperature) for value in logits]
        return [power / sum(powers) for power in powers]

    pairs = zip(chances(teacher), chances(student))
    return temperature**2 * sum(p * math.log(p / q) for p, q in pairs)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_divergence_is_its_definition(temperature: float) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 7) * 3, torch.randn(5, 7) * 3
    found = divergence(student, teacher, temperature, head=True)
    for row in range(5):
        assert found[row] == pytest.approx(slow_divergence(student[row].tolist(), teacher[row].tolist(), temperature), rel=1e-4)
    assert divergence(teacher, teacher, temperature, head=True).abs().max() < 1e-5


def test_embeddings_are_compared_by_direction() -> None:
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    b = torch.tensor([[3.0, 0.0], [0.0, -1.0], [1.0, 0.0]])
    assert divergence(a, b, 1.0, head=False).tolist() == pytest.approx([0.0, 4.0, 2 - math.sqrt(2)], abs=1e-6)


def test_students_share_one_set_of_weights_and_leave_the_given_network_alone(network: LoadedModel) -> None:
    pair = students(network)
    for form in pair.pruned.values():
        assert form.model is pair.model
    images = torch.randn(2, 3, 48, 48)
    before = network.model(images)
    logits, _ = pair(images, "1.0", False)
    assert torch.allclose(logits, before, atol=1e-5)
    with torch.no_grad():
        pair.model.head.bias += 1.0
    for budget in SCHEDULES:
        assert not torch.allclose(pair(images, budget, False)[0], students(network)(images, budget, False)[0], atol=0.5)
    assert torch.equal(network.model(images), before)
    assert not any(p.requires_grad for p in network.model.parameters())


def test_what_is_trained(network: LoadedModel) -> None:
    everything = {name for name, p in students(network).model.named_parameters() if p.requires_grad}
    assert everything == {name for name, _ in network.model.named_parameters()}
    model = students(network, "norm").model
    norms = {id(p) for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
    assert {id(p) for p in model.parameters() if p.requires_grad} == norms
    late = {name for name, p in students(network, "late").model.named_parameters() if p.requires_grad}
    assert all(name.startswith(("blocks.1.", "blocks.2.", "blocks.3.", "norm.", "head.")) for name in late)
    assert {"blocks.1.attn.qkv.weight", "head.weight"} <= late


@pytest.mark.parametrize("method", ["evit", "bat", "tome", "zero_tprune"])
def test_every_parameter_gets_a_gradient_through_the_reduction(network: LoadedModel, method: str) -> None:
    one = Students(network.model, method, {}, {"0.6": SCHEDULES["0.6"]}, "all")
    images = torch.randn(4, 3, 48, 48)
    expected = Teacher(network.model, PLAIN)(images, True)
    loss_of(RECIPE, one(images, "0.6", True), expected, torch.zeros(4), True, [torch.ones(())] * 4).backward()
    for name, parameter in one.model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_loss_adds_what_the_recipe_says(network: LoadedModel) -> None:
    pair = students(network)
    images, labels = torch.randn(4, 3, 48, 48), torch.tensor([0, 1, 2, 3])
    expected = Teacher(network.model, PLAIN)(images, True)
    with torch.no_grad():
        given = pair(images, "0.6", True)
    assert len(given[1]) == len(expected[1]) == 4
    plain = replace(RECIPE, class_tokens=0.0)
    base = loss_of(plain, given, expected, labels, True)
    assert float(base) == pytest.approx(float(divergence(given[0], expected[0], 1.0, True).mean()))
    spread = [torch.tensor(value) for value in (1.0, 2.0, 0.5, 4.0)]
    parts = [float((mine - own).pow(2).mean() / unit) for mine, own, unit in zip(given[1], expected[1], spread)]
    assert parts[0] < 1e-9, "nothing was removed yet"
    assert float(loss_of(RECIPE, given, expected, labels, True, spread)) == pytest.approx(
        float(base) + 0.1 * sum(parts) / 4, rel=1e-4
    )
    crossed = loss_of(replace(plain, labels=0.5), given, expected, labels, True)
    wanted = -given[0].log_softmax(1)[torch.arange(4), labels].mean()
    assert float(crossed) == pytest.approx(float(base + 0.5 * wanted), rel=1e-5)


def test_bfloat16_comes_near(network: LoadedModel) -> None:
    half = Arithmetic(torch.device("cpu"), bfloat16=True)
    images = torch.randn(3, 3, 48, 48)
    rounded, exact = Teacher(network.model, half)(images)[0], Teacher(network.model, PLAIN)(images)[0]
    assert not torch.equal(rounded.float(), exact)
    assert torch.allclose(rounded.float().softmax(1), exact.softmax(1), atol=0.1)
