"""The first blocks of the unpruned network, kept for others: the same answers bit for bit, and nothing computed again."""

from __future__ import annotations

import pickle

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from edge_tprune.reduction import network_shape, registry, solve_schedule
from edge_tprune.reduction.attention import explicit_attention
from edge_tprune.reduction.first_blocks import FirstBlocks
from edge_tprune.reduction.host import PrunedViT

from .conftest import KINDS, SIZES, randomise


def unpruned(model: nn.Module, output: str | None = None) -> PrunedViT:
    return PrunedViT(model, registry.method("none"), network_shape(model).full_schedule(), {}, output=output)


def pruned(model: nn.Module, method: str, first: int, output: str | None = None) -> PrunedViT:
    """Removes tokens in block `first` and in the one after it, and lets the last block serve what the head reads."""
    shape = network_shape(model, output=output) if output else network_shape(model)
    schedule = [shape.tokens] * shape.blocks
    schedule[first - 1 :] = [shape.tokens - 5] * (shape.blocks - first + 1)
    if first < shape.blocks - 1:
        schedule[first:] = [shape.tokens - 8] * (shape.blocks - first)
    if shape.read_tokens is not None:
        schedule[-1] = shape.read_tokens
    return PrunedViT(model, registry.method(method), tuple(schedule), {}, output=output)


@pytest.fixture
def blocks_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the blocks that are run, in order."""
    seen: list[int] = []
    run = PrunedViT._block

    def noted(self: PrunedViT, number: int, *given: object, **more: object) -> object:
        seen.append(number)
        return run(self, number, *given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(PrunedViT, "_block", noted)
    return seen


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [2, 3])
def test_every_family_answers_the_same(kind: str, first: int, images: Tensor) -> None:
    model = randomise(KINDS[kind]())
    network = pruned(model, "random", first)
    kept = FirstBlocks(unpruned(model), [images, images.flip(0)], range(1, 4))
    for _ in range(2):
        for batch, given in enumerate((images, images.flip(0))):
            assert torch.equal(kept.outputs(network, batch), network(given))
            assert torch.equal(kept.outputs(unpruned(model), batch), unpruned(model)(given))


@torch.no_grad()
@pytest.mark.parametrize("method", [name for name in registry.methods() if name not in ("none", "slice")])
def test_every_method_answers_the_same(method: str, images: Tensor) -> None:
    model = randomise(VisionTransformer(**SIZES))
    network = pruned(model, method, 3)
    assert torch.equal(FirstBlocks(unpruned(model), [images], [1, 2]).outputs(network, 0), network(images))


@torch.no_grad()
@pytest.mark.parametrize("output", ["features", "tokens"])
def test_patches_find_their_vectors(output: str, images: Tensor) -> None:
    model = randomise(VisionTransformer(**SIZES))
    network = pruned(model, "evit", 3, output)
    assert torch.equal(FirstBlocks(unpruned(model, output), [images], [2]).outputs(network, 0), network(images))


@torch.no_grad()
def test_a_smaller_image_begins_at_the_beginning(images: Tensor) -> None:
    model = randomise(VisionTransformer(**SIZES))
    schedule = solve_schedule(model, "resize", budget=0.6)
    network = PrunedViT(model, registry.any_method("resize"), schedule.tokens, {})
    assert network.untouched == 0
    assert torch.equal(FirstBlocks(unpruned(model), [images], [1, 2]).outputs(network, 0), network(images))


@torch.no_grad()
def test_nothing_is_computed_again(images: Tensor, blocks_run: list[int]) -> None:
    model = randomise(VisionTransformer(**SIZES))
    kept = FirstBlocks(unpruned(model), [images], [1, 2, 9])  # there is no ninth
    kept.outputs(pruned(model, "evit", 3), 0)
    assert blocks_run == [1, 2, 3, 4]
    kept.outputs(pruned(model, "evit", 2), 0)
    assert blocks_run[4:] == [2, 3, 4]
    kept.outputs(pruned(model, "evit", 3), 0)
    assert blocks_run[7:] == [3, 4]
    kept.outputs(pruned(model, "evit", 1), 0)
    assert blocks_run[9:] == [1, 2, 3, 4]


@torch.no_grad()
def test_another_form_of_attention_is_not_mixed_in(images: Tensor, blocks_run: list[int]) -> None:
    model = randomise(VisionTransformer(**SIZES))
    kept, network = FirstBlocks(unpruned(model), [images], [2]), pruned(model, "evit", 3)
    network.attention = explicit_attention
    kept.outputs(network, 0)
    kept.outputs(pruned(randomise(VisionTransformer(**SIZES)), "evit", 3), 0)  # another model
    assert blocks_run == [1, 2, 3, 4] * 2


def test_another_process_computes_the_tokens_itself(images: Tensor) -> None:
    model = randomise(VisionTransformer(**SIZES))
    kept = FirstBlocks(unpruned(model), [images], [2])
    before = len(pickle.dumps(kept))
    expected = kept.outputs(unpruned(model), 0)
    assert len(pickle.dumps(kept)) == before
    again = pickle.loads(pickle.dumps(kept))
    assert torch.equal(again.outputs(again._network, 0), expected)
