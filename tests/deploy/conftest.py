from __future__ import annotations

from pathlib import Path

import pytest

from edge_tprune.bundle.bundle import Bundle
from tests.agent.tiny_bundle import write_bundle
from tests.deploy.emulated import board, board_bundle, installed  # noqa: F401


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A tiny bundle of two budgets that the test may change."""
    return Bundle.open(write_bundle(tmp_path / "tiny", {"big": (3, 128), "small": (1, 64)}))
