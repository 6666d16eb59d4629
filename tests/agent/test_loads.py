from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_tprune.agent import loads
from edge_tprune.agent.loads import Timed, time_load, warm_up

MS = 1_000_000
IMAGES = [np.zeros(1), np.ones(1)]


class VirtualTime:
    """A clock that goes on while something runs or sleeps."""

    def __init__(self, latency_ms: Sequence[float]) -> None:
        self.now_ns = 5 * MS
        self.latency_ms = latency_ms
        self.ran: list[float] = []

    def clock_ns(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now_ns += round(seconds * 1e9)

    def run(self, image: np.ndarray) -> None:
        self.now_ns += round(self.latency_ms[len(self.ran) % len(self.latency_ms)] * MS)
        self.ran.append(float(image[0]))


@pytest.fixture
def virtual(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    return install(VirtualTime([10.0]), monkeypatch)


def install(time: VirtualTime, monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    monkeypatch.setattr(loads, "clock_ns", time.clock_ns)
    monkeypatch.setattr(loads.time, "sleep", time.sleep)
    return time


def collect(virtual: VirtualTime, seconds: float, fps: float | None) -> tuple[int, int, Timed, int]:
    whole, parts = Timed(), []

    def keep(t_ns: int, part: Timed) -> None:
        parts.append((t_ns, part))

    begin_ns, end_ns, rest = time_load(virtual.run, IMAGES, seconds, fps, keep)
    assert {t_ns for t_ns, _ in parts} <= {begin_ns}
    for part in [*(part for _, part in parts), rest]:
        whole.start_ns += part.start_ns
        whole.latency_ns += part.latency_ns
        whole.due_ns += part.due_ns
        whole.missed += part.missed
    return begin_ns, end_ns, whole, len(parts)


def test_back_to_back(virtual: VirtualTime) -> None:
    begin_ns, end_ns, timed, parts = collect(virtual, 2.5, None)
    assert (begin_ns, end_ns - begin_ns) == (5 * MS, 2500 * MS)
    assert timed.start_ns == [10 * MS * index for index in range(250)]
    assert timed.latency_ns == [10 * MS] * 250
    assert (timed.due_ns, timed.missed, parts) == ([], 0, 2)
    assert virtual.ran[:4] == [0, 1, 0, 1]


def test_slow_models_get_ten_inferences(virtual: VirtualTime) -> None:
    _, end_ns, timed, _ = collect(virtual, 0.0, None)
    assert (len(timed.start_ns), end_ns) == (10, 105 * MS)


def test_a_rate_that_is_kept_does_not_drift(virtual: VirtualTime) -> None:
    begin_ns, end_ns, timed, _ = collect(virtual, 2.0, 30.0)
    assert timed.due_ns == [round(index * 1e9 / 30) for index in range(60)]
    assert timed.start_ns == timed.due_ns
    assert timed.missed == 0
    assert end_ns - begin_ns == pytest.approx(2e9, abs=2)


def test_a_rate_that_cannot_be_kept_drops_frames(virtual: VirtualTime) -> None:
    """15 ms of work every 10 ms: frames 0, 1, 3, 4, 6, ... run, each ends after the next was due, every third is dropped."""
    virtual.latency_ms = [15.0]
    _, _, timed, _ = collect(virtual, 0.3, 100.0)
    assert [due // (10 * MS) for due in timed.due_ns] == [index for index in range(30) if index % 3 != 2]
    assert timed.missed == 30
    assert timed.latency_ns == [15 * MS] * 20


@given(
    latency_ms=st.lists(st.floats(0.1, 60), min_size=1, max_size=12),
    fps=st.floats(5, 200),
    seconds=st.floats(0, 1.5),
)
def test_every_frame_is_run_in_time_or_missed(latency_ms: list[float], fps: float, seconds: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        virtual = install(VirtualTime(latency_ms), patch)
        begin_ns, end_ns, timed, _ = collect(virtual, seconds, fps)
    period_ns = 1e9 / fps
    frames = max(10, int(np.ceil(seconds * fps)))
    in_time = 0
    for start_ns, latency_ns, due_ns in zip(timed.start_ns, timed.latency_ns, timed.due_ns):
        assert start_ns >= due_ns
        assert due_ns == round(round(due_ns / period_ns) * period_ns)
        in_time += start_ns + latency_ns <= (round(due_ns / period_ns) + 1) * period_ns
    assert in_time + timed.missed == frames
    assert end_ns - begin_ns >= round(frames * period_ns)
    assert (np.diff(timed.start_ns) >= timed.latency_ns[:-1]).all()


def test_warm_up_ends_when_latency_has_settled(virtual: VirtualTime) -> None:
    virtual.latency_ms = [100.0 / (1 + index) + 10 for index in range(200)]
    warmup = warm_up(virtual.run, IMAGES, 0.4)
    assert (warmup.begin_ns, warmup.steady) == (5 * MS, True)
    assert 10 < warmup.inferences < 60
    latency = virtual.latency_ms[warmup.inferences - 10 : warmup.inferences]
    assert abs(np.median(latency[5:]) / np.median(latency[:5]) - 1) < 0.05


def test_warm_up_has_a_limit_and_says_that_it_was_reached(virtual: VirtualTime) -> None:
    virtual.latency_ms = [10.0 * 1.1**index for index in range(60)]
    warmup = warm_up(virtual.run, IMAGES, 0.2)
    assert not warmup.steady
    assert 1.0 <= (virtual.now_ns - 5 * MS) / 1e9 < 1.5


def test_warm_up_keeps_the_rate_of_what_is_timed_after_it(virtual: VirtualTime) -> None:
    warmup = warm_up(virtual.run, IMAGES, 1.0, fps=20.0)
    assert warmup.inferences == 21
    assert virtual.now_ns == 5 * MS + 1010 * MS
