from __future__ import annotations

import pytest

from tests.models.weights import State, state_of


@pytest.fixture
def state() -> State:
    return state_of()


@pytest.fixture
def ema() -> State:
    return state_of(4)
