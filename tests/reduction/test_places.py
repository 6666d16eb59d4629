"""The places in a block where a reducer may sit: before the block, and between attention map and values."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import edge_tprune
from edge_tprune.errors import UserError
from edge_tprune.models.families import adapt
from edge_tprune.reduction import registry
from edge_tprune.reduction.attention import Bias, attention_map, explicit_attention
from edge_tprune.reduction.host import PrunedViT, Stream
from edge_tprune.reduction.outcome import Keep, Merge, Outcome
from edge_tprune.reduction.registry import Evidence, Reducer, Stage

from .conftest import KINDS, randomise

KEPT = [0, 3, 4, 7, 8, 11, 12, 15]  # of 16 patches


class KeepBefore(Reducer):
    """Keeps some patches, in another order than they came, before the block."""

    name, paper, place = "keep_before", "test", "block"

    def forward(self, x: Tensor, evidence: Evidence) -> Outcome:
        prefix = self.stage.prefix_tokens
        index = [*range(prefix), *(prefix + i for i in reversed(KEPT))]
        return Keep(torch.tensor([index]).expand(len(x), -1))


class MergeInside(Reducer):
    """Merges patches that are not in `KEPT`, several into one, between map and values."""

    name, paper, place = "merge_inside", "test", "values"
    needs = frozenset({registry.ATTENTION})

    def forward(self, x: Tensor, evidence: Evidence) -> Outcome:
        prefix, batch = self.stage.prefix_tokens, len(x)
        others = [i for i in range(16) if i not in KEPT]
        rows = (
            torch.tensor([row]).expand(batch, -1)
            for row in (
                [*range(prefix), *(prefix + i for i in KEPT)],
                [prefix + i for i in others],
                [prefix + i % 3 for i in range(len(others))],
            )
        )
        assert evidence.attention is not None
        self.proportional = True
        return Merge.into(*rows, weights=evidence.attention.mean((1, 2)))


class DropInside(MergeInside):
    """Drops them there."""

    def forward(self, x: Tensor, evidence: Evidence) -> Outcome:
        prefix = self.stage.prefix_tokens
        return Keep(torch.tensor([[*range(prefix), *(prefix + i for i in KEPT)]]).expand(len(x), -1))


def start(model: torch.nn.Module, method: type[Reducer], images: Tensor) -> tuple[PrunedViT, Stream]:
    """A network whose second block reduces, and the stream that enters that block."""
    prefix = adapt(model).prefix_tokens
    pruned = PrunedViT(model, method, (prefix + 16, prefix + 8, prefix + 8, prefix + 8), {})
    pruned.attention = explicit_attention
    return pruned, pruned._block(1, pruned._embed(images))


def finish(pruned: PrunedViT, stream: Stream) -> Tensor:
    for number in (3, 4):
        stream = pruned._block(number, stream)
    return pruned._head(stream)


@torch.no_grad()
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_before_the_block(kind: str, images: Tensor) -> None:
    """The block, like any other, receives the tokens that are left, and their positions."""
    pruned, stream = start(randomise(KINDS[kind]()), KeepBefore, images)
    found = pruned(images)
    stream, _ = stream.reduce(pruned.reducers["2"], Evidence())  # type: ignore[arg-type]
    del pruned.reducers["2"]
    torch.testing.assert_close(found, finish(pruned, pruned._block(2, stream)), rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("method", [MergeInside, DropInside])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_between_map_and_values(kind: str, method: type[Reducer], images: Tensor) -> None:
    """The map, with its columns added up and its rows averaged as the tokens are, times the values of the tokens that are left."""
    pruned, stream = start(randomise(KINDS[kind]()), method, images)
    adapter, heads, tokens = pruned._adapter, pruned._adapter.heads(2), stream.x.shape[1]
    projected = adapter.project(2, stream.x)
    q, k = pruned._rotated(2, projected.q, projected.k, stream)
    attention = attention_map(q, k, heads, adapter.scale(2), Bias(stream.key_bias, pruned._pair_bias(2, stream, tokens)))
    reduced, outcome = stream.reduce(pruned.reducers["2"], Evidence(attention=attention))  # type: ignore[arg-type]
    members = outcome.sums(torch.eye(tokens).expand(len(images), -1, -1))
    weights = attention.mean((1, 2)) if method is MergeInside else torch.ones(len(images), tokens)
    average = members * weights[:, None]
    average = average / average.sum(-1, keepdim=True)
    torch.testing.assert_close(reduced.x, average @ stream.x, rtol=1e-5, atol=1e-5)
    merged = average[:, None] @ attention @ members.transpose(1, 2)[:, None]
    after = adapter.project(2, reduced.x)
    values = after.v.unflatten(2, (heads, -1)).transpose(1, 2)
    result = (merged @ values).transpose(1, 2).flatten(2)
    reduced.x = adapter.mlp(2, adapter.attended(2, reduced.x, result, after.gate))
    torch.testing.assert_close(pruned(images), finish(pruned, reduced), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("place", ["block", "values", "mlp"])
def test_macs_equal_what_pytorch_counts(kind: str, place: str, images: Tensor) -> None:
    model = randomise(KINDS[kind]()).requires_grad_(False)
    prefix = adapt(model).prefix_tokens
    pruned = edge_tprune.prune(model, method="slice", schedule=[prefix + n for n in (16, 9, 9, 5)], place=place)
    pruned.attention = explicit_attention
    with FlopCounterMode(display=False) as counter:
        pruned(images[:1])
    nearly = 1e-3 if "pool" in kind else 0  # a head that pools by attention is not counted to the last product
    assert counter.get_total_flops() == pytest.approx(2 * edge_tprune.macs(pruned), rel=nearly, abs=0)


def test_a_budget_knows_the_place(vit: VisionTransformer) -> None:
    shares = {}
    for place in ("block", "values", "mlp"):
        pruned = edge_tprune.prune(vit, method="slice", budget=0.7, blocks=[2, 3], exact_savings=False, place=place)
        shares[place] = edge_tprune.macs(pruned) / edge_tprune.macs(vit)
        assert shares[place] == pytest.approx(0.7, rel=0.05)
    same = [edge_tprune.prune(vit, method="slice", schedule=[17, 12, 8, 8], place=p) for p in ("block", "values", "mlp")]
    counts = [edge_tprune.macs(pruned) for pruned in same]
    assert counts == sorted(set(counts)), "the earlier, the cheaper"


@torch.no_grad()
@pytest.mark.parametrize(("method", "place"), [("mctf", "values"), ("dpc_knn", "block")])
def test_every_patch_has_a_vector_again(method: str, place: str, vit: VisionTransformer, images: Tensor) -> None:
    """Also where tokens merge elsewhere than before the MLP."""
    pruned = edge_tprune.prune(vit, method=method, schedule=[17, 12, 8, 8], output="tokens", faithful=True)
    assert pruned.shape.place == place
    assert pruned(images).shape == (3, 17, 24)
    assert [t.shape for t in pruned.trace(images)] == [(3, n, 17) for n in pruned.schedule]


def test_evidence_that_is_not_there_yet_is_refused(vit: VisionTransformer) -> None:
    with pytest.raises(TypeError, match="sits before the block, where there is no keys yet"):

        @registry.register
        class TooEarly(Reducer):
            name, paper, place, needs = "too_early", "test", "block", frozenset({registry.KEYS})

            def forward(self, x: Tensor, evidence: Evidence) -> Outcome:
                raise NotImplementedError

    with pytest.raises(UserError, match="method slice: place is 'mpl'; it is one of block, values, mlp"):
        edge_tprune.prune(vit, method="slice", schedule=[17, 12, 8, 8], place="mpl")


@torch.no_grad()
def test_a_reducer_between_map_and_values_sees_what_it_asks_for(vit: VisionTransformer, images: Tensor) -> None:
    seen: list[Evidence] = []

    class Spy(Reducer):
        name, paper, place = "spy", "test", "values"
        needs = frozenset({registry.KEYS, registry.CLASS_ROW, registry.ATTENTION})

        def forward(self, x: Tensor, evidence: Evidence) -> Outcome:
            seen.append(evidence)
            return Keep(torch.arange(self.stage.tokens_out).expand(len(x), -1))

    PrunedViT(vit, Spy, (17, 9, 9, 9), {})(images)
    (evidence,) = seen
    assert evidence.values is None
    assert evidence.keys is not None
    assert evidence.class_row is not None
    assert evidence.attention is not None
    assert evidence.keys.shape == (3, 17, 3, 8)
    assert torch.equal(evidence.class_row, evidence.attention[:, :, 0])
    torch.testing.assert_close(evidence.attention.sum(-1), torch.ones(3, 3, 17))


def test_stages_know_the_schedule(vit: VisionTransformer) -> None:
    pruned = edge_tprune.prune(vit, method="evit", schedule=[17, 9, 9, 5])
    assert [reducer.stage.schedule for reducer in pruned.reducers.values()] == [(17, 9, 9, 5)] * 2
    assert Stage(1, 4, 17, 9, 1, True).schedule == ()
