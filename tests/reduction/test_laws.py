"""What must hold for every method, whatever it computes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer

import edge_tprune
from edge_tprune.reduction import registry
from edge_tprune.reduction.host import PrunedViT, Stream
from edge_tprune.reduction.outcome import Merge, Outcome
from edge_tprune.reduction.precision import PRECISIONS
from edge_tprune.reduction.registry import Evidence, Reducer, Stage

from .conftest import SIZES, randomise

METHODS = [m for m in sorted(registry.methods()) if m != "none"]


def evidence_of(seed: int, batch: int, tokens: int, kind: str = "random", sized: bool = False) -> tuple[torch.Tensor, Evidence]:
    """Tokens (B, N, 6) and everything a reducer may ask for, of 2 heads."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    x, keys, values = normal(batch, tokens, 6), normal(batch, tokens, 2, 4), normal(batch, tokens, 2, 4)
    logits = normal(batch, 2, tokens, tokens)
    if kind == "constant":  # a constant image: all patches alike
        x, keys, values = (t[:, :1].expand_as(t).contiguous() for t in (x, keys, values))
        logits = torch.zeros_like(logits)
    elif kind == "dominant":  # one token that everything attends to
        logits[..., tokens // 2] += 40.0
    elif kind == "duplicates":  # every token has a twin
        half = tokens // 2
        for t in (x, keys, values):
            t[:, tokens - half :] = t[:, :half].clone()
        logits[..., tokens - half :] = logits[..., :half].clone()
    elif kind == "zeros":
        x, keys, values = torch.zeros_like(x), torch.zeros_like(keys), torch.zeros_like(values)
    elif kind == "large":  # what half precision still holds
        x, keys, values = 300 * x, 300 * keys, 300 * values
    attention = logits.softmax(-1)
    sizes = torch.randint(1, 9, (batch, tokens), generator=generator).float() if sized else None
    positions = torch.arange(tokens).expand(batch, -1)
    return x, Evidence(keys, values, attention[:, :, 0], attention, positions, sizes)


def made(method: str, tokens: int, keep: int, prefix: int = 1, block: int = 4, blocks: int = 12) -> Reducer:
    reducer = registry.method(method)
    keep = max(keep, reducer.fewest(tokens, prefix))
    return registry.make(reducer, Stage(block, blocks, tokens, keep, prefix, True), {}).eval()


@pytest.mark.parametrize("kind", ["random", "constant", "dominant", "duplicates", "zeros", "large"])
@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_promised_shape_and_finite_numbers(method: str, sized: bool, kind: str) -> None:
    for keep in (3, 12, 18):
        for prefix in (1, 2):
            for block in (2, 10):
                x, evidence = evidence_of(keep, 3, 19, kind, sized)
                reducer = made(method, 19, keep, prefix, block)
                outcome = reducer(x, evidence)
                tokens = outcome.tokens(x, evidence.sizes)
                assert tokens.shape == (3, reducer.stage.tokens_out, 6)
                assert tokens.isfinite().all()
                sizes = outcome.sizes(evidence.sizes)
                if sizes is not None:
                    assert sizes.shape == tokens.shape[:2]
                    assert sizes.isfinite().all()
                    assert (sizes > 0).all()


@pytest.mark.parametrize("kind", ["random", "constant", "dominant"])
@pytest.mark.parametrize("method", METHODS)
def test_the_prefix_is_never_lost_and_never_mixed(method: str, kind: str) -> None:
    for prefix in (1, 2, 5):
        x, evidence = evidence_of(7, 2, 21, kind)
        outcome = made(method, 21, 9, prefix)(x, evidence)
        assert torch.equal(outcome.tokens(x, None)[:, :prefix], x[:, :prefix])
        members = outcome.sums(torch.eye(21).expand(2, -1, -1))
        assert torch.equal(members[:, :prefix], torch.eye(21)[:prefix].expand(2, -1, -1))
        assert (members[:, prefix:, :prefix] == 0).all(), "no prefix token merges into a patch"


@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_counted_twice(method: str, sized: bool) -> None:
    """An original token ends in at most one place, and sizes are the sums of what merged (of parts of it, where a method counts so)."""
    x, evidence = evidence_of(3, 2, 25, sized=sized)
    outcome = made(method, 25, 14)(x, evidence)
    members = outcome.sums(torch.eye(25).expand(2, -1, -1))
    if method != "gtp" and method != "vote_mix":  # these pass on parts of a token
        assert members.sum(1).max() <= 1
    sizes = outcome.sizes(evidence.sizes)
    if sizes is not None:
        before = torch.ones(2, 25) if evidence.sizes is None else evidence.sizes
        total = (members @ before[..., None])[..., 0]
        if method == "diffrate":
            assert (sizes <= total + 1e-5).all()
        else:
            torch.testing.assert_close(sizes, total)


@pytest.mark.parametrize("method", METHODS)
def test_results_do_not_depend_on_the_batch(method: str) -> None:
    x, evidence = evidence_of(11, 4, 23)
    reducer = made(method, 23, 13)
    together = reducer(x, evidence).tokens(x, None)
    for image in range(4):
        part = Evidence(*(None if t is None else t[image : image + 1] for t in vars(evidence).values()))
        alone = reducer(x[image : image + 1], part).tokens(x[image : image + 1], None)
        torch.testing.assert_close(alone[0], together[image], rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", [m for m in METHODS if registry.method(m).merges])
def test_merging_identical_tokens_changes_nothing(method: str) -> None:
    x, evidence = evidence_of(2, 2, 17, "constant")
    if method == "gtp":
        pytest.skip("adds what it removes instead of averaging")
    tokens = made(method, 17, 10)(x, evidence).tokens(x, None)
    torch.testing.assert_close(tokens, x[:, :1].expand_as(tokens), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_a_trace_accounts_for_every_token(method: str, vit: VisionTransformer, images: torch.Tensor) -> None:
    pruned = edge_tprune.prune(vit, method=method, schedule=[17, 12, 8, 8])
    traced = pruned.trace(images)
    assert [t.shape for t in traced] == [(3, n, 17) for n in pruned.schedule]
    assert torch.equal(traced[0], torch.eye(17).expand(3, -1, -1))
    assert torch.equal(traced[-1][:, 0], torch.eye(17)[0].expand(3, -1))
    assert (traced[-1].sum(2)[:, 1:] > 0).all(), "every token left grew from something"


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_torch_compile(method: str, images: torch.Tensor) -> None:
    vit = randomise(VisionTransformer(**{**SIZES, "depth": 2}))
    pruned = edge_tprune.prune(vit, method=method, schedule=[12, 8])
    torch._dynamo.reset()  # its limit of recompilations counts those of other tests
    compiled = torch.compile(pruned, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), pruned(images), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_casting_before_or_after_pruning_is_the_same(
    method: str, kind: torch.dtype, vit: VisionTransformer, images: torch.Tensor
) -> None:
    after = edge_tprune.prune(copy.deepcopy(vit), method=method, schedule=[17, 12, 8, 8]).to(kind)
    assert {b.dtype for b in after.reducers.buffers() if b.is_floating_point()} <= {torch.float32}, "scores are not rounded"
    before = edge_tprune.prune(vit.to(kind), method=method, schedule=[17, 12, 8, 8])
    assert torch.equal(after(images.to(kind)), before(images.to(kind)))


@pytest.mark.parametrize("method", METHODS)
def test_scores_stay_exact_under_autocast(method: str, vit: VisionTransformer, images: torch.Tensor) -> None:
    """The reducer runs outside autocast: on the same tokens it decides as it does without."""
    pruned = edge_tprune.prune(vit, method=method, schedule=[17, 12, 8, 8])
    with torch.autocast("cpu", torch.bfloat16):
        logits = pruned(images)
    logits.float().square().sum().backward()
    assert logits.isfinite().all()
    seen: list[bool] = []
    for reducer in pruned.reducers.values():
        reducer.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", torch.bfloat16):
        pruned(images)
    assert seen == [False, False]


POOLS: dict[str, dict[str, Any]] = {
    "average": {"class_token": False, "global_pool": "avg"},
    "average with registers": {"class_token": False, "reg_tokens": 2, "global_pool": "avg", "pool_include_prefix": True},
    "attention": {"class_token": False, "global_pool": "map"},
    "attention beside a class token": {"global_pool": "map"},
    "attention with registers": {"class_token": False, "reg_tokens": 2, "global_pool": "map", "pool_include_prefix": True},
}


def pooling_vit(pool: str) -> VisionTransformer:
    """A ViT of 64 patch tokens that pools its tokens, without position embeddings: patches that look alike are alike throughout."""
    torch.manual_seed(0)
    model = VisionTransformer(img_size=64, patch_size=8, num_classes=5, embed_dim=24, depth=3, num_heads=3, **POOLS[pool])
    for parameter in model.requires_grad_(False).parameters():
        if parameter.ndim > 1:
            parameter.mul_(6.0)
    model.pos_embed.zero_()
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("method", ["tome", "pitome", "mctf"])
def test_pooling_over_tokens_counts_what_they_stand_for(method: str, pool: str, fused: bool) -> None:
    """In an image of few distinct patches merging equals changes nothing, in a model that pools patch tokens too."""
    model = pooling_vit(pool)
    if model.attn_pool is not None:
        model.attn_pool.fused_attn = fused
    image = torch.zeros(1, 3, 64, 64)
    image[..., :24] = 1.0  # three columns of patches in eight
    prefix = model.num_prefix_tokens
    pruned = edge_tprune.prune(model, method=method, schedule=[prefix + n for n in (48, 36, 30)])
    torch.testing.assert_close(pruned(image), model(image), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@given(st.lists(st.integers(0, 15), min_size=64, max_size=64))
@settings(max_examples=20)
@pytest.mark.parametrize("pool", POOLS)
def test_a_token_of_size_n_counts_as_n_twins(pool: str, kinds: list[int]) -> None:
    """Any numbers of equal tokens may become one token each: the logits are those of the unmerged network."""
    first = sorted(kinds.index(kind) for kind in set(kinds))
    others = sorted(set(range(64)) - set(first))
    target = [first.index(kinds.index(kinds[other])) for other in others]

    class MergeTwins(Reducer):
        name, paper = "merge_twins", "test"

        def forward(self, x: torch.Tensor, evidence: Evidence) -> Outcome:
            self.proportional = True
            prefix = self.stage.prefix_tokens
            index, source = [*range(prefix), *(prefix + i for i in first)], [prefix + i for i in others]
            rows = (torch.tensor(row).expand(len(x), -1) for row in (index, source, [prefix + i for i in target]))
            return Merge.into(*rows)

    model = pooling_vit(pool)
    patches = torch.randn(2, 16, 3, 8, 8, generator=torch.Generator().manual_seed(4))[:, kinds]
    image = patches.reshape(2, 8, 8, 3, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 64, 64)
    prefix, left = model.num_prefix_tokens, len(first)
    merged = PrunedViT(model, MergeTwins, (prefix + 64, prefix + left, prefix + left), {})(image)
    torch.testing.assert_close(merged, model(image), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_sums_of_many_tokens_do_not_overflow_under_autocast() -> None:
    """128 tokens of value 600 join one: their sum is above half precision's range, their mean is not."""

    class Gather(Reducer):
        name, paper = "gather", "test"

        def forward(self, x: torch.Tensor, evidence: Evidence) -> Outcome:
            return Merge.into(torch.arange(2)[None], torch.arange(2, 130)[None], torch.ones(1, 128, dtype=torch.int64))

    stream = Stream(torch.full((1, 130, 4), 600.0))
    with torch.autocast("cpu", dtype=torch.float16):
        merged, _ = stream.reduce(Gather(Stage(1, 12, 130, 2, 1, True)), Evidence())
    torch.testing.assert_close(merged.x, torch.full((1, 2, 4), 600.0))
    assert merged.sizes is not None
    assert merged.sizes.tolist() == [[1, 129]]


@torch.no_grad()
@pytest.mark.parametrize("pool", POOLS)
def test_pooling_is_timms_own_where_attention_is_not_proportional(pool: str) -> None:
    model = pooling_vit(pool)
    prefix = model.num_prefix_tokens
    pruned = edge_tprune.prune(model, method="tome", schedule=[prefix + n for n in (48, 36, 30)], proportional=False)
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    assert torch.equal(pruned(image), model.forward_head(model.norm(pruned._run(image).x)))


@torch.no_grad()
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", ["fp16", "mixed", "float16", "bfloat16", "autocast"])
@pytest.mark.parametrize("pool", POOLS)
def test_pooling_by_size_in_half_precision(pool: str, kind: str, fused: bool) -> None:
    model = pooling_vit(pool)
    if model.attn_pool is not None:
        model.attn_pool.fused_attn = fused
    tome, schedule = registry.method("tome"), tuple(model.num_prefix_tokens + n for n in (64, 64, 40))
    exact = PrunedViT(model, tome, schedule, {})
    stream = exact._run(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(4)))
    expected = exact._head(stream)
    rounded = PrunedViT(copy.deepcopy(model), tome, schedule, {}, PRECISIONS.get(kind, PRECISIONS["fp32"]))
    if kind in ("bfloat16", "float16"):
        rounded.to(getattr(torch, kind))
        stream.x = stream.x.to(getattr(torch, kind))
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        logits = rounded._head(stream)
    assert (logits.float() - expected).abs().max() < 0.05 * expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_stays_near(method: str, vit: VisionTransformer, images: torch.Tensor) -> None:
    exact = edge_tprune.prune(vit, method=method, schedule=[17, 17, 12, 12])(images)
    half = edge_tprune.prune(vit.to(torch.bfloat16), method=method, schedule=[17, 17, 12, 12])(images.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).abs().max() < 0.5 * exact.abs().max()
