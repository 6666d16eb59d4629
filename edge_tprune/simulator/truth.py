"""The energy that a simulated board really dissipated: recorded by itself, to compare measurements with."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edge_tprune.documents import InvalidDocument, decode
from edge_tprune.errors import UserError
from edge_tprune.files import read_regular

TRUTH = "simulator/truth.jsonl"
_LARGEST_BYTES = 4_000_000_000


class _Line(msgspec.Struct):
    t_ns: int
    total_mj: float


def true_energy_mj(directory: Path, begin_ns: int, end_ns: int) -> float:
    """What the board in `directory` dissipated in a window.

    Raises:
        UserError: nothing is known of a part of the window, or what is known is damaged.
    """
    times_ns, energies_mj = [], []
    for line in _lines(directory / TRUTH):
        times_ns.append(line.t_ns)
        energies_mj.append(line.total_mj)
    if begin_ns > end_ns:
        raise UserError(f"a window from {begin_ns} to {end_ns} ns ends before it begins: give the earlier time first")
    if not times_ns or begin_ns < times_ns[0] or end_ns > times_ns[-1]:
        raise UserError(f"the simulated board in {directory} was not running in the whole window {begin_ns} to {end_ns} ns")

    def total_mj(t_ns: int) -> float:
        after = min(bisect.bisect_right(times_ns, t_ns), len(times_ns) - 1)
        span_ns = times_ns[after] - times_ns[after - 1]
        share = (t_ns - times_ns[after - 1]) / span_ns if span_ns else 0.0
        return energies_mj[after - 1] + share * (energies_mj[after] - energies_mj[after - 1])

    return total_mj(end_ns) - total_mj(begin_ns)


def _lines(file: Path) -> Iterator[_Line]:
    try:
        data = read_regular(file, _LARGEST_BYTES)
    except OSError as error:
        raise UserError(f"no simulated board in {file.parents[1]}: {error.strerror}") from error
    *whole, _ = data.split(b"\n")  # the last one may be half written
    for number, line in enumerate(whole, 1):
        try:
            yield decode(line, _Line)
        except InvalidDocument as error:
            raise UserError(f"{file}: line {number} is damaged: {error}. Start the simulated board again") from error
