"""Fixtures of several rooms: a small but complete bundle, built once per worker with the real exporter, and what is smaller."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.errors import UserError
from edge_tprune.export.builder import build
from edge_tprune.export.explain import Explanation, explain
from edge_tprune.export.settings import decide as _decide
from edge_tprune.models.loading import LoadedModel
from edge_tprune.models.preprocess import Preprocessing
from edge_tprune.models.state_dict import hash_tensors
from edge_tprune.reduction import Evidence, Outcome, Propagate, Reducer, register, unregister
from edge_tprune.runtime.tensorrt.library import Library, load

RUNTIMES = ("onnxruntime", "tensorrt", "tensorrt-rtx")
PREPROCESSING = Preprocessing(
    input_size=(3, 48, 48),
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    interpolation="bicubic",
    crop_pct=0.9,
    crop_mode="center",
)


def small_model(seed: int = 0, channels: int = 96, depth: int = 4, **kind: Any) -> LoadedModel:
    """A ViT of 4 blocks with 37 tokens whose random weights make tokens differ."""
    torch.manual_seed(seed)
    model = (
        VisionTransformer(img_size=48, patch_size=8, num_classes=6, embed_dim=channels, depth=depth, num_heads=3, **kind)
        .eval()
        .requires_grad_(False)
    )
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(6.0)
    return LoadedModel("small-test", model, "random", hash_tensors(model.state_dict()), PREPROCESSING)


@pytest.fixture(scope="session")
def loaded() -> LoadedModel:
    return small_model()


@pytest.fixture(scope="session")
def image() -> Image.Image:
    pixels = np.random.default_rng(5).integers(0, 256, (12, 12, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize((60, 50), Image.Resampling.BICUBIC)


#: Of a network of four blocks the last is a quarter: with exact savings budget 0.8 would remove no token.
decide = partial(_decide, exact_savings=False)


@pytest.fixture(scope="session")
def explained(loaded: LoadedModel, image: Image.Image) -> Explanation:
    methods = ["evit", "tome", "zero_tprune"]
    return explain(
        loaded, image, methods, [1.0, 0.8, 0.6], name="a <b>.png", options={"fuse": "true", "votes": "2"}, exact_savings=False
    )


_BUILT: dict[str, Path] = {}  # each room that imports the fixture has one of its own, but one bundle serves all


@pytest.fixture(scope="session")
def built(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "small" not in _BUILT:
        out = tmp_path_factory.mktemp("bundles") / "small"
        settings = decide(loaded, "evit", budgets=[1.0, 0.8, 0.6], blocks=[2, 3], runtimes=RUNTIMES)
        _BUILT["small"] = build(loaded, settings, out).bundle.path
    return _BUILT["small"]


@pytest.fixture(scope="session")
def halved(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with graphs in half precision; for tests that change nothing in it but add results."""
    if "halved" not in _BUILT:
        settings = decide(
            loaded,
            "evit",
            budgets=[1.0, 0.6],
            blocks=[2, 3],
            runtimes=["onnxruntime", "tensorrt"],
            precisions=["fp16", "fp32", "mixed"],
        )
        _BUILT["halved"] = build(loaded, settings, tmp_path_factory.mktemp("half") / "bundle").bundle.path
    return Bundle.open(_BUILT["halved"])


@pytest.fixture(scope="session")
def rtx() -> Library:
    """The real TensorRT-RTX, whose parser and builder need no GPU."""
    try:
        return load("tensorrt-rtx")
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Bundle:
    """A copy that a test may damage."""
    shutil.copytree(built, tmp_path / "copy")
    return Bundle.open(tmp_path / "copy")


@pytest.fixture
def not_finite() -> Iterator[str]:
    """The name of a method whose tokens are no numbers."""

    @register
    class NotFinite(Reducer):
        name, paper = "not_finite_of_test", "none"

        def forward(self, x: torch.Tensor, evidence: Evidence) -> Outcome:
            kept = torch.arange(self.stage.tokens_out).expand(len(x), -1)
            source = torch.full((len(x), 1), self.stage.tokens_in - 1)
            features = x[:, : self.stage.tokens_out] * float("nan"), x[:, -1:]
            return Propagate(kept, source, torch.ones(len(x), self.stage.tokens_out, 1), features=features)

    yield NotFinite.name
    unregister(NotFinite.name)


@torch.inference_mode()
def mix_to_ties(network: nn.Module, images: Tensor) -> Tensor:
    """Mixtures of two images each where the choice of tokens changes, as near as float32 comes to it by bisection; half as many."""
    one, other = images.chunk(2)
    low, high = torch.zeros(len(one), 1, 1, 1), torch.ones(len(one), 1, 1, 1)
    for _ in range(24):
        weight = (low + high) / 2
        below, here, above = (network(torch.lerp(one, other, each)) for each in (low, weight, high))
        left = ((here - below).abs().amax(1) > (above - here).abs().amax(1))[:, None, None, None]
        low, high = torch.where(left, low, weight), torch.where(left, weight, high)
    below, above = torch.lerp(one, other, low), torch.lerp(one, other, high)
    return below[(network(above) - network(below)).abs().amax(1) > 1e-3]
