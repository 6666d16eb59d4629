"""The hosting forward pass: exact where nothing is removed, and faithful to the schedule where something is."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import nn

import edge_tprune
from edge_tprune.errors import UserError
from edge_tprune.models.families import adapt
from edge_tprune.reduction import registry
from edge_tprune.reduction.attention import explicit_attention
from edge_tprune.reduction.host import PrunedViT
from edge_tprune.reduction.outcome import First, Outcome
from edge_tprune.reduction.registry import Evidence, Reducer, Stage

METHODS = sorted(registry.methods())


def usable(method: str, model: VisionTransformer) -> bool:
    return adapt(model).has_class_token or not registry.method(method).needs_class_token


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_removing_nothing_equals_the_model(method: str, any_vit: VisionTransformer, images: torch.Tensor) -> None:
    if not usable(method, any_vit):
        with pytest.raises(UserError, match=rf"{method}.*has no class token"):
            edge_tprune.prune(any_vit, method=method, budget=1.0)
        return
    hosted = edge_tprune.prune(any_vit, method=method, budget=1.0)
    torch.testing.assert_close(hosted(images), any_vit(images), rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("method", [m for m in METHODS if m != "none"])
def test_every_model_runs_the_schedule_image_by_image(method: str, any_vit: VisionTransformer, images: torch.Tensor) -> None:
    """The realised counts are the schedule's, whatever the model, and an image's logits do not depend on its batch."""
    if not usable(method, any_vit):
        return
    prefix = adapt(any_vit).prefix_tokens
    schedule = [prefix + n for n in (16, 11, 11, 6)]
    hosted = edge_tprune.prune(any_vit, method=method, schedule=schedule)
    seen: list[int] = []
    for block in any_vit.blocks:
        block.mlp.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    together = hosted(images)
    assert seen == schedule == list(hosted.schedule)
    alone = torch.cat([hosted(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(hosted(images.flip(0)).flip(0), together, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("method", [m for m in METHODS if m != "none"])
def test_any_subset_of_blocks(method: str, vit: VisionTransformer, images: torch.Tensor) -> None:
    fewest = registry.method(method).fewest
    for schedule in ([12, 9, 6, 4], [17, 17, 17, 9], [17, 17, 17, 2], [2, 2, 2, 2], [16, 16, 15, 15]):
        if all(after >= min(before, fewest(before, 1)) for before, after in zip([17, *schedule], schedule) if after < before):
            assert edge_tprune.prune(vit, method=method, schedule=schedule)(images).isfinite().all()
        else:
            with pytest.raises(UserError, match=f"method {method} cannot go from"):
                edge_tprune.prune(vit, method=method, schedule=schedule)


@torch.no_grad()
@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("none", "slice")])
def test_explicit_attention_gives_the_same_logits(method: str, any_vit: VisionTransformer, images: torch.Tensor) -> None:
    if not usable(method, any_vit):
        return
    hosted = edge_tprune.prune(any_vit, method=method, budget=0.7, blocks=[2, 3])
    fused = hosted(images)
    hosted.attention = explicit_attention
    # Norms of random blocks' small outputs amplify rounding; another decision about a token would change a logit by far more.
    torch.testing.assert_close(hosted(images), fused, rtol=1e-4, atol=2e-4)


@torch.no_grad()
def test_the_given_model_stays_as_it_was(vit: VisionTransformer, images: torch.Tensor) -> None:
    before, names = vit(images), list(vit.state_dict())
    pruned = edge_tprune.prune(vit, method="evit", budget=0.6, blocks=[2])
    pruned(images)
    assert torch.equal(vit(images), before)
    assert list(vit.state_dict()) == names
    shared = {p.data_ptr() for p in vit.parameters()}
    assert {p.data_ptr() for p in pruned.parameters()} == shared, "parameters are shared, not copied"


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("none", "slice")])
def test_gradients_flow_for_fine_tuning(method: str, vit: VisionTransformer, images: torch.Tensor) -> None:
    pruned = edge_tprune.prune(vit, method=method, budget=0.7, blocks=[2, 3]).train()
    pruned(images).square().mean().backward()
    gradients = [p.grad for p in vit.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert all(g.abs().sum() > 0 for name, g in zip(dict(vit.named_parameters()), gradients) if "mlp.fc1.weight" in name)


@torch.no_grad()
def test_half_precision(vit: VisionTransformer, images: torch.Tensor) -> None:
    exact = edge_tprune.prune(vit, method="zero_tprune", budget=0.7, blocks=[2])(images)
    half = edge_tprune.prune(vit.to(torch.bfloat16), method="zero_tprune", budget=0.7, blocks=[2])(images.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).abs().max() < 0.5 * exact.abs().max()


def test_blocks_that_need_no_map_stay_fused(vit: VisionTransformer, images: torch.Tensor) -> None:
    """Only a reducer that asks for the full map makes its own block, and no other, compute one."""
    for method, maps in (("evit", 0), ("slice", 0), ("zero_tprune", 1)):
        asked: list[bool] = []

        def watch(q, k, v, heads, scale, needs, bias, asked=asked):  # type: ignore[no-untyped-def]
            asked.append(registry.ATTENTION in needs)
            return explicit_attention(q, k, v, heads, scale, needs, bias)

        pruned = edge_tprune.prune(vit, method=method, schedule=[17, 9, 9, 9])
        pruned.attention = watch
        pruned(images)
        assert asked == [False, bool(maps), False, False]


def test_class_row_is_the_row_of_the_full_map(vit: VisionTransformer, images: torch.Tensor) -> None:
    """Beside fused attention as beside the map."""
    seen: list[Evidence] = []

    class Spy(Reducer):
        name, paper = "spy", "test"
        needs = frozenset(registry.EVIDENCE)

        def forward(self, x: torch.Tensor, evidence: Evidence) -> Outcome:
            seen.append(evidence)
            return First(self.stage.tokens_out)

    class Frugal(Spy):
        needs = frozenset({registry.CLASS_ROW})

    PrunedViT(vit, Spy, (17, 9, 9, 9), {})(images)
    PrunedViT(vit, Frugal, (17, 9, 9, 9), {})(images)
    evidence, frugal = seen
    assert frugal.attention is None
    assert frugal.class_row is not None
    assert evidence.attention is not None
    assert evidence.class_row is not None
    assert evidence.keys is not None
    assert evidence.values is not None
    for class_row in (evidence.class_row, frugal.class_row):
        torch.testing.assert_close(class_row, evidence.attention[:, :, 0])
    torch.testing.assert_close(evidence.attention.sum(-1), torch.ones(3, 3, 17))
    assert evidence.keys.shape == evidence.values.shape == (3, 17, 3, 8)


def test_macs(vit: VisionTransformer) -> None:
    small = timm.create_model("deit_small_patch16_224")
    assert round(edge_tprune.macs(small) / 1e9, 2) == 4.60
    pruned = edge_tprune.prune(small, method="evit", budget=0.65)
    assert edge_tprune.macs(pruned) / edge_tprune.macs(small) == pytest.approx(0.65, rel=0.01)
    assert edge_tprune.macs(edge_tprune.prune(vit, method="none", budget=1.0)) == edge_tprune.macs(vit)


def test_macs_equal_what_pytorch_counts(vit: VisionTransformer, images: torch.Tensor) -> None:
    """PyTorch's own counter of matrix products (2 FLOPs a MAC) sees the same network."""
    from torch.utils.flop_counter import FlopCounterMode

    pruned = edge_tprune.prune(vit, method="slice", schedule=[17, 9, 9, 5])
    pruned.attention = explicit_attention
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        pruned(images[:1])
    assert counter.get_total_flops() == 2 * edge_tprune.macs(pruned)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("resnet18", "is a ResNet, not a plain ViT"),
        ("swin_tiny_patch4_window7_224", "cannot lose tokens: its stages change the grid of patches"),
    ],
)
def test_other_networks_are_refused(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        edge_tprune.prune(timm.create_model(name), method="evit", budget=0.5)


@pytest.mark.parametrize(
    "name",
    [
        "deit_tiny_distilled_patch16_224",
        "deit3_small_patch16_224",
        "vit_tiny_patch16_384",
        "vit_small_patch14_reg4_dinov2",
        "vit_base_patch16_siglip_224",
        "vit_base_patch16_clip_224",
        "vit_medium_patch16_gap_256",
        "vit_giant_patch14_dinov2",
        "aimv2_large_patch14_224",
        "vit_small_patch16_dinov3",
        "eva02_tiny_patch14_224",
        "vit_pe_core_base_patch16_224",
        "vit_base_patch16_rope_mixed_224",
        "beit_base_patch16_224",
    ],
)
def test_macs_of_real_models_equal_what_pytorch_counts(name: str) -> None:
    """On the meta device nothing is computed, but every matrix product is seen."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = timm.create_model(name).eval().requires_grad_(False)
        shape = edge_tprune.reduction.network_shape(model)
        pruned = edge_tprune.prune(model, method="slice", budget=0.7)
        pruned.attention = explicit_attention
        images = torch.zeros(1, *model.pretrained_cfg["input_size"])
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            pruned(images)
    assert counter.get_total_flops() / 2 == pytest.approx(edge_tprune.macs(pruned), rel=1e-3)
    assert shape.share(pruned.schedule) == pytest.approx(0.7, rel=0.01)


def test_reducers_follow_the_models_device_and_mode(vit: VisionTransformer) -> None:
    pruned = edge_tprune.prune(vit.to("meta"), method="zero_tprune", budget=0.7, blocks=[2])
    assert {b.device.type for b in pruned.reducers.buffers()} == {"meta"}
    assert not pruned.training
    assert edge_tprune.prune(vit.train(), method="evit", budget=0.7, blocks=[2]).training


def test_unusual_blocks_are_refused() -> None:
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, block_fn=ParallelScalingBlock)
    with pytest.raises(UserError, match="block 1 is a ParallelScalingBlock"):
        edge_tprune.prune(model, method="evit", budget=0.9)


class LowRank(torch.nn.Linear):
    """As adapters of fine-tuning are: a Linear layer that adds something."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + input.sum(-1, keepdim=True)


class Scaled(VisionTransformer):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * super().forward(x)


def test_what_a_pruned_network_would_not_call_is_refused() -> None:
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}

    def check(model: Any, says: str) -> None:
        with pytest.raises(UserError, match=says):
            edge_tprune.prune(model, method="evit", budget=0.9)

    check(Scaled(**sizes), "its class computes forward otherwise than timm's VisionTransformer")
    model = VisionTransformer(**sizes)
    model.blocks[1].attn.qkv = LowRank(24, 72)
    check(model, r"block 2 projects with a tests.*LowRank, of which only the weight would be used")
    for part in (".", "blocks.0", "blocks.1.attn", "blocks.0.attn.qkv"):
        for kind in ("register_forward_hook", "register_forward_pre_hook"):
            model = VisionTransformer(**sizes)
            module: Any = model if part == "." else model.get_submodule(part)
            handle = getattr(module, kind)(lambda *_: None)
            check(model, "has a forward hook, which a pruned network would not call")
            handle.remove()
            edge_tprune.prune(model, method="evit", budget=0.9)
        module.forward = module.forward
        check(model, "was replaced, and a pruned network would not call it|of which only the weight")


class Packed(torch.nn.Module):
    """As quantised layers are: the weight is no tensor."""

    in_features = 24

    def weight(self) -> None: ...


def test_a_quantised_network_is_refused() -> None:
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3).eval()
    model.blocks[0].attn.proj = Packed()
    with pytest.raises(UserError, match="the attention of block 1 ends with a Packed, which is no Linear layer"):
        edge_tprune.prune(model, method="evit", budget=0.9)


@pytest.mark.parametrize(
    ("method", "option"),
    [
        ("zero_tprune", {"similar": "x"}), ("zero_tprune", {"votes": 2.5}), ("zero_tprune", {"votes": True}), ("evit", {"fuse": "no"}),
        ("zero_tprune", {"merge": "false"}), ("zero_tprune", {"faithful": "no"}), ("zero_tprune", {"partition": None}),
        ("zero_tprune", {"similar": float("nan")}),
    ],
)  # fmt: skip
def test_options_of_another_type_are_refused(method: str, option: dict[str, Any]) -> None:
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3).eval()
    (name,) = option
    with pytest.raises(UserError, match=f"method {method}: option {name} is .*, which is no"):
        edge_tprune.prune(model, method=method, budget=0.9, **option)


def test_hooks_on_what_is_called_stay() -> None:
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3).eval()
    seen = []
    for part in (model.norm, model.blocks[0].norm1, model.blocks[1].attn.proj, model.blocks[0].mlp.fc1):
        part.register_forward_hook(lambda module, *_: seen.append(module))
    edge_tprune.prune(model, method="evit", budget=0.9)(torch.randn(1, 3, 32, 32))
    assert len(seen) == 4


def test_a_network_for_any_image_size_is_pruned_for_its_own(images: torch.Tensor) -> None:
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, dynamic_img_size=True).eval()
    pruned = edge_tprune.prune(model, method="none", budget=1.0)
    with torch.no_grad():
        torch.testing.assert_close(pruned(images), model(images))
        with pytest.raises(UserError, match="40 x 40 pixels gives 26 tokens, but the schedule is for 17"):
            pruned(torch.zeros(1, 3, 40, 40))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"method": None, "budget": 0.5}, "method is None: give a name"),
        ({"budget": "0.5"}, "budget is '0.5': give a share of the MACs"),
        ({"budget": True}, "budget is True: give a share"),
        ({"budget": 0.5, "blocks": "2"}, "blocks is '2': give whole numbers"),
        ({"budget": 0.5, "blocks": 2}, "blocks is 2: give whole numbers"),
        ({"schedule": [17, 16.5, 16, 16]}, "schedule is .* give whole numbers"),
        ({"budget": 0.5, "multiple_of": 2.5}, "multiple_of is .* give whole numbers"),
        ({"budget": 0.5, "multiple_of": 10**400}, "multiple_of: a number of more than 60 digits is out of range"),
        ({"budget": 0.5, "blocks": [10**400]}, "blocks: a number of more than 60 digits is out of range"),
        ({"budget": 10**400}, "budget a number of more than 60 digits is out of range"),
    ],
)
def test_arguments_of_another_type_are_named(vit: VisionTransformer, given: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        edge_tprune.prune(vit, **given)


def test_budget_and_schedule_exclude_each_other(vit: VisionTransformer) -> None:
    with pytest.raises(UserError, match=r"give a budget .* or a schedule .*, not both$"):
        edge_tprune.prune(vit, budget=0.5, schedule=[17, 9, 9, 9])
    with pytest.raises(UserError, match=r"give a budget .* or a schedule \(tokens after each block\)$"):
        edge_tprune.prune(vit)


def test_stage_knows_where_it_sits(vit: VisionTransformer) -> None:
    reducer = edge_tprune.prune(vit, method="evit", schedule=[17, 9, 9, 5]).reducers["4"]
    assert reducer.stage == Stage(4, 4, 9, 5, 1, True)


def test_an_attention_pool_counts_the_tokens_that_it_reads() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = VisionTransformer(
        img_size=48,
        patch_size=8,
        embed_dim=64,
        depth=3,
        num_heads=4,
        num_classes=6,
        global_pool="map",
        class_token=False,
        reg_tokens=4,
    ).requires_grad_(False)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, 3, 48, 48))
    assert counter.get_total_flops() == 2 * edge_tprune.macs(model)


def test_a_head_that_is_no_linear_layer_is_refused_by_name(vit: VisionTransformer) -> None:
    vit.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(vit.embed_dim, 10))
    with pytest.raises(UserError, match="its classifier head is a Sequential, not a Linear: choose the output embedding"):
        edge_tprune.prune(vit, method="tome", budget=0.8)
    assert edge_tprune.prune(vit, method="tome", budget=0.8, output="embedding").output == "embedding"


def test_a_schedule_leaves_nothing_to_ask_for(vit: VisionTransformer) -> None:
    for more in ({"blocks": [2]}, {"multiple_of": 8}):
        with pytest.raises(UserError, match="a schedule says how many tokens every block leaves"):
            edge_tprune.prune(vit, method="evit", schedule=[17, 9, 9, 5], **more)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"blocks is \[True\]: give whole numbers"):
        edge_tprune.prune(vit, method="evit", budget=0.8, blocks=[True])
