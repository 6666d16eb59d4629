"""A small network, photos that differ, and a request that trains for seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edge_tprune.finetune.distill import Arithmetic
from edge_tprune.finetune.photos import Photos
from edge_tprune.finetune.recipe import Recipe
from edge_tprune.finetune.request import Request
from edge_tprune.models.data import ImageFolder, open_images
from edge_tprune.models.loading import LoadedModel
from tests.small import not_finite, small_model  # noqa: F401

PLAIN = Arithmetic(torch.device("cpu"), bfloat16=False)
SCHEDULES = {"1.0": (37, 37, 37, 37), "0.6": (37, 24, 14, 14)}
REQUEST = Request(method="evit", budgets=(1.0,), schedules={"0.6": SCHEDULES["0.6"]}, batch=8, epochs=4, rate=5e-5)
RECIPE = Recipe(
    rate=1e-3,
    steps=12,
    batch=8,
    least_area=0.5,
    flip=True,
    temperature=1.0,
    average=0.8,
    class_tokens=0.1,
    labels=0.0,
    draws={"1.0": 0.3, "0.6": 0.7},
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Before any fixture trains: the number of threads decides the last bits of the weights."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def network() -> LoadedModel:
    return small_model(seed=3)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty photos of two shapes: smooth random colours."""
    root = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(11)
    for number in range(40):
        coarse = Image.fromarray(draw.integers(0, 256, (4, 5, 3)).astype(np.uint8))
        coarse.resize(((80, 60), (52, 70))[number % 2], Image.Resampling.BICUBIC).save(root / f"{number:02}.png")
    return root


@pytest.fixture(scope="session")
def dataset(folder: Path) -> ImageFolder:
    return open_images(folder)


@pytest.fixture(scope="session")
def photos(dataset: ImageFolder, network: LoadedModel) -> Photos:
    found = Photos(dataset, range(32), network.preprocessing, seed=0, workers=1)
    found.read()
    return found
