"""Load generation: inferences back to back, or at a fixed rate like the frames of a camera. Only the calls of `run` are timed."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np

from edge_tprune.record.log import clock_ns
from edge_tprune.record.turn import LEAST_INFERENCES

Run = Callable[[np.ndarray], Any]

_WINDOW = 5  #: warming up is over when the medians of two windows of this many inferences ...
_STEADY = 0.05  #: ... differ by less than this share
_WARMUP_LIMIT = 5  #: or when it took this many times the least warm-up
_PART_NS = 1_000_000_000  #: what was timed is handed over about this often, so that a power cut costs no more


class _Inference(NamedTuple):
    start_ns: int
    end_ns: int
    frame: int  #: its number, of those that were due; without a rate, of those that ran
    due_ns: int


@dataclass(frozen=True)
class Warmup:
    """What came before timing."""

    begin_ns: int
    inferences: int
    steady: bool  #: whether latency had settled when the warm-up ended


@dataclass
class Timed:
    """Inferences that were timed; times count from the begin of the timing."""

    start_ns: list[int] = field(default_factory=list)
    latency_ns: list[int] = field(default_factory=list)
    due_ns: list[int] = field(default_factory=list)  #: at a fixed rate, when each was due
    missed: int = 0  #: at a fixed rate, the frames that were dropped or finished after the next was due


def warm_up(run: Run, images: Sequence[np.ndarray], seconds: float, fps: float | None = None) -> Warmup:
    """The load that is timed next, until `seconds` are over and latency is steady, or for five times `seconds` at most."""
    latency_ns: list[int] = []
    begin_ns = clock_ns()
    for count, inference in enumerate(_inferences(run, images, fps), 1):
        latency_ns = [*latency_ns[1 - 2 * _WINDOW :], inference.end_ns - inference.start_ns]
        elapsed_s = (inference.end_ns - begin_ns) / 1e9
        if count < 2 * _WINDOW or elapsed_s < seconds:
            continue
        before, now = statistics.median(latency_ns[:_WINDOW]), statistics.median(latency_ns[_WINDOW:])
        steady = abs(now - before) < _STEADY * before
        if steady or elapsed_s >= _WARMUP_LIMIT * seconds:
            return Warmup(begin_ns, count, steady)
    raise ValueError("a load needs at least one image")


def time_load(
    run: Run, images: Sequence[np.ndarray], seconds: float, fps: float | None, keep: Callable[[int, Timed], None]
) -> tuple[int, int, Timed]:
    """Runs for `seconds` and at least ten inferences.

    Without a rate, inferences follow each other at once. At a rate, frame i is due i / fps after the begin, whatever happened
    before (no drift); of the frames that came while one was worked on, the newest is taken and the others are dropped, as a
    camera's driver does; the time ends when the frame after the last would be due.

    Args:
        run: the engine's.
        images: (B, 3, H, W) each, taken in turn.
        seconds: least length.
        fps: inferences a second; None for back to back.
        keep: is handed (begin, what was timed since the last call) about once a second, between two inferences.

    Returns:
        (begin, end, what was timed since the last `keep`); begin and end are on the record's clock, in ns.
    """
    period_ns = None if fps is None else 1e9 / fps
    frames = None if fps is None else max(LEAST_INFERENCES, math.ceil(seconds * fps))
    part, begin_ns, kept_ns, frame, end_ns = Timed(), 0, 0, -1, 0
    for count, (start_ns, end_ns, now_frame, due_ns) in enumerate(_inferences(run, images, fps, frames), 1):
        if count == 1:
            begin_ns = kept_ns = due_ns
        part.start_ns.append(start_ns - begin_ns)
        part.latency_ns.append(end_ns - start_ns)
        if period_ns is not None:
            part.due_ns.append(due_ns - begin_ns)
            part.missed += now_frame - frame - 1 + (end_ns > begin_ns + (now_frame + 1) * period_ns)
            frame = now_frame
        elif end_ns - begin_ns >= seconds * 1e9 and count >= LEAST_INFERENCES:
            break
        if end_ns - kept_ns >= _PART_NS:
            keep(begin_ns, part)
            part, kept_ns = Timed(), end_ns
    if period_ns is not None and frames is not None:
        part.missed += frames - 1 - frame
        _sleep_until(begin_ns + round(frames * period_ns))
        end_ns = clock_ns()
    return begin_ns, end_ns, part


def _inferences(run: Run, images: Sequence[np.ndarray], fps: float | None, frames: int | None = None) -> Iterator[_Inference]:
    """Inferences without end, or until `frames` frames have been due."""
    if fps is None:
        for number, image in enumerate(cycle(images)):
            start_ns = clock_ns()
            run(image)
            yield _Inference(start_ns, clock_ns(), number, start_ns)
        return
    period_ns, frame = 1e9 / fps, 0
    begin_ns = clock_ns()
    for image in cycle(images):
        frame = max(frame, int((clock_ns() - begin_ns) / period_ns))
        if frames is not None and frame >= frames:
            return
        due_ns = begin_ns + round(frame * period_ns)
        _sleep_until(due_ns)
        start_ns = clock_ns()
        run(image)
        yield _Inference(start_ns, clock_ns(), frame, due_ns)
        frame += 1


def _sleep_until(deadline_ns: int) -> None:
    """Sleeps rather than spins: a waiting core must not be counted as the model's power."""
    while (left_ns := deadline_ns - clock_ns()) > 0:
        time.sleep(left_ns / 1e9)
