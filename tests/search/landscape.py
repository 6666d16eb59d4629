"""Losses without a network, for searches in tests. Imports little: worker processes load it."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator, Mapping
from typing import Any

from edge_tprune.errors import UserError


class Landscape:
    """Losses with one known best configuration: late, even removal with similar=0.5; images differ, trials share the difference."""

    def __init__(self, images: int = 80) -> None:
        self.noise = [random.Random(i).random() for i in range(images)]
        self.scored: list[tuple[int, ...]] = []
        self.batches = 0

    def __call__(
        self, method: str, tokens: tuple[int, ...], options: Mapping[str, Any], batches: int | None = None
    ) -> Iterator[list[float]]:
        self.scored.append(tokens)
        before = (197, *tokens)
        steps = [before[i] - before[i + 1] for i in range(len(before) - 1)]
        loss = sum((s / 60) ** 2 for s in steps) + abs(options["similar"] - 0.5) + 0.1 * (options["votes"] - 1)
        for start in range(0, len(self.noise), 10)[:batches]:
            self.batches += 1
            yield [loss * (0.5 + n) for n in self.noise[start : start + 10]]


class Dies(Landscape):
    """A process that is killed whatever it scores."""

    def __call__(self, *given: Any) -> Iterator[list[float]]:
        os.kill(os.getpid(), signal.SIGKILL)
        return iter(())


class Breaks(Landscape):
    """Raises what it is asked for."""

    def __call__(self, method: str, tokens: tuple[int, ...], *given: Any) -> Iterator[list[float]]:
        if tokens == (1,):
            1 / 0  # noqa: B018
        raise UserError("no such thing")
