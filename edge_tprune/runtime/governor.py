"""Which budget the next frame gets: the most accurate one that keeps a deadline, a temperature and a power limit.

    governor = Governor(["1.0", "0.8", "0.65", "0.5"], deadline_ms=33)
    for frame in frames:
        scores = model(frame)
        model.budget = governor.update(model.last_ms, temp_c=read_temperature())

It steps down at once where a limit is broken, one budget at a time, and up only after a while in which there was room for the next more
accurate budget. An upward step that had to be taken back makes the next one wait twice as long, so that it does not swing. Inference takes
longer at lower clocks: what a more accurate budget will take is what the present one takes, times the ratio of the two that was seen when it
changed from one to the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isinf, isnan
from numbers import Real
from statistics import median
from typing import Any

from edge_tprune.errors import UserError

_LARGEST = 1_000_000  # frames


@dataclass(frozen=True)
class Decision:
    """One change of the budget."""

    frame: int  #: its number, from 0
    budget: str  #: from then on
    before: str
    reason: str
    latency_ms: float  #: median of the latest frames
    temp_c: float | None
    power_w: float | None


class Governor:
    """Chooses a budget frame by frame. For one thread."""

    def __init__(
        self,
        budgets: Sequence[str],
        *,
        deadline_ms: float | None = None,
        max_temp_c: float | None = None,
        max_power_w: float | None = None,
        margin: float = 0.1,
        window: int = 5,
        patience: int = 60,
    ) -> None:
        """Begins with the most accurate budget.

        Args:
            budgets: names, the most accurate first.
            deadline_ms: of a frame's inference.
            max_temp_c: of the sensor whose readings `update` gets.
            max_power_w: likewise.
            margin: share of a limit that must be free before it steps up; the hysteresis.
            window: frames of which the median latency counts.
            patience: frames with room before it steps up; doubled, up to 32 times, by each step up that had to be taken back.

        Raises:
            UserError: no budget, no limit, or a number out of range.
        """
        if isinstance(budgets, str) or not isinstance(budgets, Sequence) or not all(isinstance(name, str) for name in budgets):
            raise UserError("a governor needs the names of budgets, the most accurate first")
        if not budgets or len(set(budgets)) != len(budgets):
            raise UserError("a governor needs budgets, each once, the most accurate first")
        limits = {"deadline_ms": deadline_ms, "max_temp_c": max_temp_c, "max_power_w": max_power_w}
        for name, number in {**limits, "margin": margin, "window": window, "patience": patience}.items():
            _check_number(name, number)
        limits = {name: None if value is None else float(value) for name, value in limits.items()}
        given = {name: value for name, value in limits.items() if value is not None}
        if not given:
            raise UserError(f"a governor needs a limit: {', '.join(limits)}")
        if wrong := [f"{name} {value:g}" for name, value in given.items() if not value > 0]:
            raise UserError(f"{wrong[0]} is out of range: it must be above 0")
        if not (
            _is_within(margin, 0, 1) and margin < 1 and _is_within(window, 1, _LARGEST) and _is_within(patience, 1, _LARGEST)
        ):
            raise UserError(
                f"margin {margin}, window {window}, patience {patience}: margin is from 0 to below 1, the others from 1 to {_LARGEST}"
            )
        if window != int(window):
            raise UserError(f"window is {window}: give a whole number of frames")
        self.decisions: list[Decision] = []
        self._budgets, self._limits = tuple(budgets), limits
        self._margin, self._window, self._patience = margin, int(window), patience
        self._place, self._frame, self._room, self._wait = 0, 0, 0, patience
        self._recent: deque[float] = deque(maxlen=self._window)
        self._left: tuple[int, float] | None = (
            None  # the place that was left, and its median latency, until the new one has its own
        )
        self._ratio: dict[int, float] = {}  # place -> latency of the next more accurate budget in units of its own
        self._rose_at: int | None = None  # the frame of the last step up, until it has proved right

    @property
    def budget(self) -> str:
        """For the next frame."""
        return self._budgets[self._place]

    def update(self, latency_ms: float, temp_c: float | None = None, power_w: float | None = None) -> str:
        """Takes what the last frame cost, and returns the budget for the next.

        Args:
            latency_ms: of its inference.
            temp_c: the latest reading; None or NaN where there is none, which keeps the limit from counting.
            power_w: likewise.

        Raises:
            UserError: a latency that is not a number above 0, or a reading that is no number.
        """
        for name, number in {"latency_ms": latency_ms, "temp_c": temp_c, "power_w": power_w}.items():
            _check_number(name, number)
        latency_ms = float("nan") if latency_ms is None else float(latency_ms)
        if isnan(latency_ms):
            raise UserError("latency_ms is not a number: give what the last frame's inference took")
        if latency_ms <= 0:
            raise UserError(f"latency_ms is {latency_ms:g}: an inference takes more than 0")
        temp_c, power_w = (None if reading is None else float(reading) for reading in (temp_c, power_w))
        self._recent.append(latency_ms)
        if len(self._recent) == self._window:
            typical_ms = median(self._recent)
            self._compare(typical_ms)
            self._judge({"deadline_ms": typical_ms, "max_temp_c": temp_c, "max_power_w": power_w})
        self._frame += 1
        return self.budget

    def _judge(self, values: dict[str, float | None]) -> None:
        """One step, if it is time for one."""
        used = {
            name: value / limit
            for name, limit in self._limits.items()
            if limit is not None and (value := values[name]) is not None and not isnan(value)
        }
        if not used:
            return
        worst = max(used, key=lambda name: used[name])
        if used[worst] > 1:
            self._step_down(f"{worst} {self._limits[worst]:g} is broken: {values[worst]:.4g}", values)
        elif used[worst] <= 1 - self._margin and self._has_room(values["deadline_ms"]):
            self._room += 1
            if self._room >= self._wait:
                self._rose_at = self._frame
                self._move(self._place - 1, f"room under every limit for {self._room} frames", values)
        else:
            self._room = 0
        if self._rose_at is not None and self._frame - self._rose_at > self._wait:
            self._rose_at, self._wait = None, self._patience  # the step up has held

    def _compare(self, typical_ms: float) -> None:
        """How the budget that was left and the present one compare, which only their neighbourhood in time can say."""
        if self._left is None:
            return
        (place, left_ms), self._left = self._left, None
        if place < self._place:
            self._ratio[self._place] = left_ms / typical_ms
        else:
            self._ratio[place] = typical_ms / left_ms

    def _has_room(self, typical_ms: float | None) -> bool:
        """Whether the next more accurate budget would keep the deadline, as far as is known."""
        if self._place == 0:
            return False
        deadline_ms, ratio = self._limits["deadline_ms"], self._ratio.get(self._place)
        if deadline_ms is None or ratio is None or typical_ms is None:
            return True
        return typical_ms * ratio <= deadline_ms * (1 - self._margin)

    def _step_down(self, reason: str, values: dict[str, float | None]) -> None:
        if self._place == len(self._budgets) - 1:
            self._room = 0
            return
        if self._rose_at is not None:
            self._wait = min(2 * self._wait, 32 * self._patience)
        self._rose_at = None
        self._move(self._place + 1, reason, values)

    def _move(self, place: int, reason: str, values: dict[str, float | None]) -> None:
        before, self._left, self._place = self.budget, (self._place, values["deadline_ms"] or 0.0), place
        self._recent.clear()
        self._room = 0
        self.decisions.append(
            Decision(
                self._frame,
                self.budget,
                before,
                reason,
                values["deadline_ms"] or 0.0,
                values["max_temp_c"],
                values["max_power_w"],
            )
        )


def _is_within(value: float | None, low: float, high: float) -> bool:
    """False for None and NaN, too."""
    return value is not None and low <= value <= high


def _check_number(name: str, value: Any) -> None:
    """Refuses what is neither a finite number, NaN nor None."""
    if value is None:
        return
    if not isinstance(value, bool) and isinstance(value, Real):
        with suppress(OverflowError):  # an integer larger than any float
            if not isinf(float(value)):
                return
    raise UserError(f"{name} is {value!r:.40}, which is no number")
