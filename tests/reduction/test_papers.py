"""Zero-TPrune and BAT as their papers have them, in a whole network: loops in float64, written from the equations, share no code with ours.

No code was published for either. Counts, places, votes and thresholds are written out here as the papers, or our docstrings where a paper leaves them open,
say; the network around them is numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer

from edge_tprune.reduction import registry
from edge_tprune.reduction.host import PrunedViT
from tests.reduction.conftest import randomise
from tests.reduction.slow_clusters import slow_density_peaks

Array = NDArray[np.float64]
HEADS, WIDTH, DEPTH, SIDE = 3, 24, 12, 64  # 64 patches of 8 x 8 pixels and a class token
#: (tokens (N, C), attention (H, N, N), keys (N, C), block, tokens to leave) -> tokens that go on
Reduction = Callable[[Array, Array, Array, int, int], Array]


@pytest.fixture(scope="module")
def model() -> VisionTransformer:
    network = VisionTransformer(
        img_size=SIDE, patch_size=8, num_classes=7, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, mlp_ratio=2
    )
    made = randomise(network)
    assert isinstance(made, VisionTransformer)
    return made


class SlowNetwork:
    """timm's ViT from its weights, one image at a time, with a reduction between attention and MLP."""

    def __init__(self, model: VisionTransformer) -> None:
        self.weights = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}

    def _linear(self, name: str, x: Array) -> Array:
        found: Array = x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]
        return found

    def _norm(self, name: str, x: Array) -> Array:
        deviation = x - x.mean(-1, keepdims=True)
        scaled = deviation / np.sqrt((deviation**2).mean(-1, keepdims=True) + 1e-6)
        found: Array = scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
        return found

    def __call__(self, image: Array, schedule: list[int], reduce: Reduction) -> Array:
        """An image (3, H, W) -> logits."""
        rows = SIDE // 8
        patches = [image[:, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8].ravel() for r in range(rows) for c in range(rows)]
        kernel = self.weights["patch_embed.proj.weight"].reshape(WIDTH, -1)
        embedded = np.array(patches) @ kernel.T + self.weights["patch_embed.proj.bias"]
        x = np.concatenate([self.weights["cls_token"][0], embedded]) + self.weights["pos_embed"][0]
        for block in range(1, DEPTH + 1):
            name, width = f"blocks.{block - 1}", WIDTH // HEADS
            q, k, v = np.split(self._linear(f"{name}.attn.qkv", self._norm(f"{name}.norm1", x)), 3, 1)
            maps = []
            for head in range(HEADS):
                part = slice(head * width, (head + 1) * width)
                logits = q[:, part] @ k[:, part].T / math.sqrt(width)
                share = np.exp(logits - logits.max(1, keepdims=True))
                maps.append(share / share.sum(1, keepdims=True))
            mixed = np.concatenate([a @ v[:, h * width : (h + 1) * width] for h, a in enumerate(maps)], 1)
            x = x + self._linear(f"{name}.attn.proj", mixed)
            if schedule[block - 1] < len(x):
                x = reduce(x, np.array(maps), k, block, schedule[block - 1])
            hidden = self._linear(f"{name}.mlp.fc1", self._norm(f"{name}.norm2", x))
            hidden = hidden * np.vectorize(lambda value: 0.5 * (1 + math.erf(value / math.sqrt(2))))(hidden)
            x = x + self._linear(f"{name}.mlp.fc2", hidden)
        return self._linear("head", self._norm("norm", x[:1]))[0]


def cosine(a: Array, b: Array) -> float:
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def page_rank(maps: Array, members: list[int], rounds: int, settings: dict[str, Any]) -> dict[int, float]:
    """Importance of the members: WPR on the graph of the members alone, EIR across heads, VHF."""
    heads = []
    for attention in maps:
        rows = attention.tolist()
        score = dict.fromkeys(members, 1.0)
        if not settings.get("uniform_start"):
            score[0] = math.sqrt(len(rows))
        for _ in range(rounds):
            score = {j: sum(rows[i][j] * score[i] for i in members) for j in members}
        mean = sum(score.values()) / len(members)
        heads.append({i: score[i] / mean for i in members})
    passing = []
    for head in heads:
        variance = sum((value - 1) ** 2 for value in head.values()) / len(members)
        if settings.get("head_filter", True) is False or 0.01 <= variance <= 0.7:
            passing.append(head)
    passing = passing or heads
    if settings.get("emphasis", True):
        return {i: math.sqrt(sum(head[i] ** 2 for head in passing) / len(passing)) for i in members}
    return {i: sum(head[i] for head in passing) / len(passing) for i in members}


def slow_zero_tprune(settings: dict[str, Any]) -> Reduction:
    """I'-S-I of the paper, with an ablation's settings."""

    def reduce(x: Array, maps: Array, keys: Array, block: int, leave: int) -> Array:
        tokens = list(range(len(x)))
        duplicates = min(round(settings.get("similar", 0.5) * (len(x) - leave)), (len(x) - 1) // 2)
        if duplicates:
            guide = page_rank(maps, tokens, 1, settings)
            ranking = sorted(tokens[1:], key=lambda i: -guide[i])
            half = (len(ranking) + 1) // 2
            more, less = ranking[:half], ranking[half:]
            if settings.get("partition") == "alternate":
                more, less = ranking[::2], ranking[1::2]
            likeness = {a: max(cosine(keys[a], keys[b]) for b in more) for a in less}
            gone = sorted(less, key=lambda a: -likeness[a])[:duplicates]
            tokens = [i for i in tokens if i not in gone]
        votes = settings.get("votes") or (30 if block <= 3 else 5 if block <= 9 else 1)
        importance = page_rank(maps, tokens, votes, settings)
        return x[[0, *sorted(tokens[1:], key=lambda i: -importance[i])[: leave - 1]]]

    return reduce


def slow_bat(settings: dict[str, Any]) -> Reduction:
    """Decouple, match, cluster."""

    def reduce(x: Array, maps: Array, keys: Array, block: int, leave: int) -> Array:
        weight = [sum(head[0][j] for head in maps) / HEADS + 1e-6 for j in range(len(x))]
        ranking = sorted(range(1, len(x)), key=lambda j: -weight[j])
        removed = len(x) - leave
        matched = round(settings.get("matched", 0.1) * removed)
        count = round(0.4 * len(ranking))
        if settings.get("cluster") is False:  # the inattentive are dropped, and attentive is who stays or is matched
            count = len(ranking) - removed + matched
        strong, weak = ranking[:count], ranking[count:]
        groups = [[j] for j in strong]
        if matched:
            left, right = strong[1::2], strong[::2]
            partner = {a: max(right, key=lambda b: cosine(x[a], x[b])) for a in left}
            merged = sorted(left, key=lambda a: -cosine(x[a], x[partner[a]]))[:matched]
            groups = [[b, *(a for a in merged if partner[a] == b)] for b in right]
            groups += [[a] for a in left if a not in merged]
        if settings.get("cluster") is not False:
            clusters = len(weak) - (removed - matched)
            assert clusters > 0
            centres, joins = slow_density_peaks(x[weak], clusters, settings.get("neighbours", 5))
            groups += [[weak[c], *(weak[i] for i, centre in joins.items() if centre == c)] for c in centres]
        means = [sum(weight[j] * x[j] for j in group) / sum(weight[j] for j in group) for group in groups]
        return np.array([x[0], *means])

    return reduce


CASES: list[tuple[str, dict[str, Any]]] = [
    ("zero_tprune", {}),
    ("zero_tprune", {"votes": 2}),
    ("zero_tprune", {"emphasis": False}),
    ("zero_tprune", {"head_filter": False}),
    ("zero_tprune", {"partition": "alternate"}),
    ("zero_tprune", {"uniform_start": True}),
    ("zero_tprune", {"similar": 1.0}),
    ("zero_tprune", {"similar": 0.0}),
    ("bat", {}),
    ("bat", {"matched": 0.0}),
    ("bat", {"cluster": False}),
    ("bat", {"neighbours": 3}),
]
SCHEDULES = {
    "zero_tprune": [65, 58, 58, 50, 50, 50, 42, 42, 42, 33, 33, 26],
    "bat": [65, 65, 65, 50, 50, 50, 38, 38, 38, 28, 28, 28],
}


@torch.inference_mode()
@pytest.mark.parametrize(("method", "settings"), CASES, ids=lambda value: str(value))
def test_the_paper_and_its_ablations(method: str, settings: dict[str, Any], model: VisionTransformer) -> None:
    images = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
    schedule = SCHEDULES[method]
    pruned = PrunedViT(model, registry.method(method), tuple(schedule), {"faithful": True, **settings})
    slow, reduce = SlowNetwork(model), {"zero_tprune": slow_zero_tprune, "bat": slow_bat}[method](settings)
    expected = np.array([slow(image.double().numpy(), schedule, reduce) for image in images])
    np.testing.assert_allclose(pruned(images).numpy(), expected, atol=1e-3 * np.abs(expected).max())


@torch.inference_mode()
def test_every_ablation_matters_here(model: VisionTransformer) -> None:
    """So that an option that does nothing would be found out above."""
    images = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
    for method, schedule in SCHEDULES.items():
        logits = [
            PrunedViT(model, registry.method(method), tuple(schedule), {"faithful": True, **settings})(images)
            for name, settings in CASES
            if name == method
        ]
        for number, one in enumerate(logits):
            for other in logits[:number]:
                assert not torch.allclose(one, other, atol=1e-3 * float(one.abs().max()))
