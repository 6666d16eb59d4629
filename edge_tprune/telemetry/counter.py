"""Counters that only grow, until they wrap around or somebody resets them."""

from __future__ import annotations

from edge_tprune.telemetry.source import NoReading


class Counter:
    """Makes a counter's raw values one growing number.

    Args:
        wraps_at: the raw value after which it begins at 0 again; None for a counter too wide to wrap.
    """

    def __init__(self, wraps_at: float | None = None) -> None:
        self._wraps_at = wraps_at
        self._before: float | None = None
        self._added = 0.0

    def total(self, raw: float) -> float:
        """The counter's value without its wraps. It must be read at least once per wrap.

        Raises:
            NoReading: it is below the value before and does not wrap: it was reset. The total goes on from where it was.
        """
        before, self._before = self._before, raw
        if before is not None and raw < before:
            self._added += before if self._wraps_at is None else self._wraps_at
            if self._wraps_at is None:
                raise NoReading(f"the counter was reset: {before:g}, then {raw:g}")
        return self._added + raw
