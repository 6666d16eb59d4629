"""Makers of small checkpoints."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import timm
import torch
from torch import Tensor

NAME = "test_vit"  # timm's own model for tests: 6 blocks of 64 channels, 100 patches of 16 pixels, 1000 classes

State = dict[str, Tensor]


@lru_cache
def _state(seed: int, arguments: tuple[tuple[str, Any], ...]) -> State:
    torch.manual_seed(seed)
    model = timm.create_model(NAME, **dict(arguments))
    return {key: torch.randn_like(value) * 0.05 + value for key, value in model.state_dict().items()}


def state_of(seed: int = 3, **arguments: Any) -> State:
    """A state dict of the test model; the same for the same arguments."""
    return {key: value.clone() for key, value in _state(seed, tuple(sorted(arguments.items()))).items()}


def is_loaded(model: torch.nn.Module, state: State) -> bool:
    """Whether a model holds exactly these weights."""
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[key], value.to(own[key].dtype)) for key, value in state.items())
