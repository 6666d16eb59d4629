"""The seam between the measurement and whatever can be read on a machine."""

from __future__ import annotations

from typing import Protocol

from edge_tprune.telemetry.metric import Metric


class Source(Protocol):
    """A group of sensors that are read together."""

    @property
    def name(self) -> str:
        """Short and stable: it labels the readings in a profile."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What `read` returns, always the same on one machine."""

    def read(self) -> dict[str, float | None]:
        """One value per metric, by name. A sensor that fails reads None; nothing is raised, and nothing reads 0 for missing."""


class NullSource:
    """The source of a machine that tells nothing."""

    name = "none"
    metrics: tuple[Metric, ...] = ()

    def read(self) -> dict[str, float | None]:
        """Nothing."""
        return {}
