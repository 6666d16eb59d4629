"""Files of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tests.models.weights import State


def saved(folder: Path, content: Mapping[str, Any], name: str = "w.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}
