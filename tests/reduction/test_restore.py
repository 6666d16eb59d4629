"""A vector for every patch again, against a slow account of where each patch went; and timm's feature interface on top of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import edge_tprune
from edge_tprune.errors import UserError
from edge_tprune.models import reference
from edge_tprune.reduction import registry
from edge_tprune.reduction.host import PrunedViT

from .conftest import KINDS, randomise

METHODS = sorted(registry.methods())
SCHEDULE = (16, 11, 11, 9)


@contextmanager
def watched(reducer: nn.Module, entered: list[Tensor]) -> Iterator[None]:
    """Notes the tokens that a reducer is given."""
    hook = reducer.register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
    yield
    hook.remove()


def slow_features(pruned: PrunedViT, images: Tensor) -> Tensor:
    """Patch by patch: the token that holds most of it, or what it was when nothing did any more. (1, T, C)."""
    stream = pruned._embed(images)
    count = stream.x.shape[1]
    stream = replace(stream, members=torch.eye(count)[None])
    holder = list(range(count))
    frozen: dict[int, Tensor] = {}
    for number in range(1, pruned.shape.blocks + 1):
        if str(number) not in pruned.reducers:
            stream = pruned._block(number, stream, full=True)
            continue
        entered: list[Tensor] = []
        with watched(pruned.reducers[str(number)], entered):
            stream = pruned._block(number, stream, full=True)
        assert stream.members is not None
        passes_on = pruned.method == "gtp"  # parts only: no token stands for a dropped one
        for patch in set(range(count)) - frozen.keys():
            share = stream.members[0, :, patch]
            before = holder[patch]
            held = share.max() > (0.5 if passes_on else 0)
            if held:
                holder[patch] = int(share.argmax())
            else:
                frozen[patch] = entered[0][0, before]
    rows = [frozen[p] if p in frozen else stream.x[0, holder[p]] for p in range(count)]
    return pruned._adapter.norm(torch.stack(rows)[None])


@torch.no_grad()
@pytest.mark.parametrize("name", [m for m in METHODS if m not in ("none", "vote_mix")])
def test_every_patch_has_the_vector_of_what_stands_for_it(name: str, vit: nn.Module, images: Tensor) -> None:
    pruned = edge_tprune.prune(vit, method=name, schedule=[1 + n for n in SCHEDULE])
    for image in images:
        torch.testing.assert_close(pruned.forward_features(image[None]), slow_features(pruned, image[None]))


@torch.no_grad()
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_removing_nothing_gives_timms_own_features(kind: str, images: Tensor) -> None:
    model = randomise(KINDS[kind]())
    pruned = edge_tprune.prune(model, method="tome", budget=1.0)
    torch.testing.assert_close(pruned.forward_features(images), model.forward_features(images), rtol=1e-5, atol=1e-5)
    for arguments in (
        {},
        {"indices": 2},
        {"indices": [0, -1], "norm": True},
        {"indices": [1], "output_fmt": "NLC", "stop_early": True},
    ):
        theirs, ours = model.forward_intermediates(images, **arguments), pruned.forward_intermediates(images, **arguments)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    if not pruned.shape.prefix_tokens:
        return
    both = {"intermediates_only": True, "return_prefix_tokens": True}
    for (map_, prefix), (expected, tokens) in zip(
        pruned.forward_intermediates(images, 2, **both), model.forward_intermediates(images, 2, **both)
    ):
        torch.testing.assert_close(map_, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(prefix, tokens, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_dinos_interface(vit: VisionTransformer, images: Tensor) -> None:
    pruned = edge_tprune.prune(vit, method="evit", budget=1.0)
    for arguments in ({}, {"n": 2, "reshape": True}, {"n": [1, 2], "norm": True, "return_prefix_tokens": True}):
        ours, theirs = pruned.get_intermediate_layers(images, **arguments), vit.get_intermediate_layers(images, **arguments)
        assert len(ours) == len(theirs)
        for mine, expected in zip(ours, theirs):
            torch.testing.assert_close(mine, expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("name", ["tome", "zero_tprune", "random", "dpc_knn"])
def test_outputs_have_the_shapes_they_promise(kind: str, name: str, images: Tensor) -> None:
    model = randomise(KINDS[kind]())
    prefix = edge_tprune.prune(model, method=name, budget=1.0).shape.prefix_tokens
    for output, shape in (
        ("logits", (3, 7)), ("embedding", (3, 24)), ("features", (3, 24, 4, 4)), ("tokens", (3, prefix + 16, 24)),
    ):  # fmt: skip
        pruned = edge_tprune.prune(model, method=name, budget=0.8, blocks=[2, 3], output=output)
        result = pruned(images)
        assert result.shape == shape
        assert result.isfinite().all()
        alone = torch.cat([pruned(image[None]) for image in images])
        torch.testing.assert_close(result, alone, rtol=1e-4, atol=1e-5)
    tokens = pruned(images)
    features = edge_tprune.prune(model, method=name, schedule=pruned.schedule, output="features")(images)
    torch.testing.assert_close(features.flatten(2).transpose(1, 2), tokens[:, prefix:])


def test_an_image_that_is_no_number_does_not_stop_the_others(vit: nn.Module, images: Tensor) -> None:
    images = images.clone()
    images[1, 0, 5, 5] = torch.nan
    for method in registry.methods():
        try:
            pruned = edge_tprune.prune(vit, method=method, budget=0.7, output="features")
        except UserError:  # it is for an image as a whole
            continue
        found = pruned(images)
        torch.testing.assert_close(found[:1], pruned(images[:1]))


def test_wrong_questions(vit: nn.Module, images: Tensor) -> None:
    pruned = edge_tprune.prune(vit, method="tome", budget=0.8)
    with pytest.raises(UserError, match="output_fmt is 'NHWC'"):
        pruned.forward_intermediates(images, output_fmt="NHWC")
    with pytest.raises(UserError, match="block 4 was asked for, but the network has blocks 0 to 3"):
        pruned.forward_intermediates(images, [4])
    with pytest.raises(UserError, match="the last 5 blocks"):
        pruned.forward_intermediates(images, 5)
    with pytest.raises(UserError, match="no output 'maps'"):
        edge_tprune.prune(vit, method="tome", budget=0.8, output="maps")
    with pytest.raises(UserError, match="only an embedding"):
        edge_tprune.prune(vit, method="tome", budget=0.8, normalize=True)


class Detector(nn.Module):
    """A network with a ViT inside, called by timm's feature interface."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"encoder": encoder})
        self.decoder = nn.Conv2d(48, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.backbone["encoder"].forward_intermediates(x, indices=2, intermediates_only=True)
        return self.decoder(torch.cat(maps, 1))


@torch.no_grad()
def test_prune_in_place_of_a_member(vit: nn.Module, images: Tensor) -> None:
    detector = Detector(vit).eval()
    whole = edge_tprune.prune_in(detector, "backbone.encoder", method="tome", budget=1.0)
    torch.testing.assert_close(whole(images), detector(images))
    pruned = edge_tprune.prune_in(detector, "backbone.encoder", method="tome", budget=0.8, blocks=[2, 3])
    assert pruned(images).shape == (3, 5, 4, 4)
    assert pruned.decoder.weight is detector.decoder.weight
    assert isinstance(detector.backbone["encoder"], VisionTransformer)
    assert pruned.backbone["encoder"].schedule[-1] < 17
    with pytest.raises(
        UserError, match=r"has no member 'backbone.encode'. Did you mean backbone.encoder.* It has a ViT at 'backbone.encoder'"
    ):
        edge_tprune.prune_in(detector, "backbone.encode", budget=0.8)
    with pytest.raises(
        UserError, match=r"member 'decoder' of Detector is a Conv2d, not a plain ViT.* It has a ViT at 'backbone.encoder'"
    ):
        edge_tprune.prune_in(detector, "decoder", budget=0.8)
    with pytest.raises(UserError, match=r"has no member ''. It has a ViT at"):
        edge_tprune.prune_in(detector, "", budget=0.8)
    with pytest.raises(UserError, match=r"has no member 'encoder'. It has no ViT that can be pruned"):
        edge_tprune.prune_in(nn.Sequential(nn.Linear(2, 2)), "encoder", budget=0.8)
    small = timm.create_model("test_vit", img_size=8)
    with pytest.raises(UserError, match=r"an image of 8 x 8 pixels is smaller than one patch"):
        edge_tprune.prune(small, budget=0.8)


def test_the_last_block_keeps_its_tokens_where_every_patch_is_read() -> None:
    """The patterns that methods ship with were searched for logits: at 0.8 zero_tprune halves the tokens in the last block."""
    model = reference.build()
    logits = edge_tprune.reduction.solve_schedule(model, "zero_tprune", budget=0.8, exact_savings=False).tokens
    assert logits[11] < logits[10]
    for output in ("features", "tokens"):
        dense = edge_tprune.reduction.solve_schedule(model, "zero_tprune", budget=0.8, output=output)
        assert dense.tokens[11] == dense.tokens[10]
        assert dense.share == pytest.approx(0.8, abs=0.008)
    asked = edge_tprune.reduction.solve_schedule(model, "zero_tprune", budget=0.9, output="features", blocks=[8, 12]).tokens
    assert asked[11] < asked[10], "what is asked for is done"
