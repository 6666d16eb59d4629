"""Is this machine ready to be measured? Every finding comes with the command that fixes it; nothing is run or changed here.

A finding is `ok`, a `note` (good to know), a `warning` (a profile will be less certain, or lack something), a `blocker` (a profile
would be invalid), or `unknown` (could not be checked, and why).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edge_tprune.agent.doctor import condition, runtimes, sensors
from edge_tprune.agent.doctor.finding import Diagnosis, Finding
from edge_tprune.telemetry.boards import UNKNOWN, Board, identify
from edge_tprune.telemetry.state import read_state
from edge_tprune.version import __version__

FORMAT = "edge-tprune-doctor"
VERSION = 2


def examine(root: Path = Path("/"), disk: Path | None = None) -> Diagnosis:
    """Looks at everything.

    Args:
        root: the directory that holds the system's `proc`, `sys`, `etc` ...; with another than `/`, what only a running machine
            can answer (packages, free disk, groups) is left out or looked for in its files.
        disk: where profiles would be written; by default the current directory. Only with the real root.
    """
    live = root == Path("/")
    board, now = identify(root), read_state(root)
    findings: tuple[Finding, ...] = (
        *_check_identity(board),
        *(runtimes.check_runtimes(board) if live else runtimes.check_packaged_tensorrt(root, board)),
        *sensors.check_rails(root, board, now),
        *sensors.check_gpu(root, board, live),
        *sensors.check_jtop(root, now, live),
        *condition.check_power_mode(board, now),
        *condition.check_clocks(board, now),
        *condition.check_memory(now),
        *(condition.check_disk(disk or Path.cwd()) if live else ()),
        *condition.check_time(root),
        *condition.check_throttling(now),
    )
    return Diagnosis(
        format=FORMAT,
        version=VERSION,
        tool_version=__version__,
        root=str(root),
        board=board,
        ready=all(finding.level != "blocker" for finding in findings),
        findings=findings,
    )


def _check_identity(board: Board) -> Iterator[Finding]:
    """Which board and which JetPack this is."""
    if board.key == UNKNOWN:
        yield Finding("board", "note", f"{board.name}: not in the table of boards, so the meaning of its rails is not known")
    else:
        yield Finding("board", "ok", f"{board.name} ({board.module})" if board.module else board.name)
    if board.l4t_release is None:
        yield Finding("JetPack", "note", "no Jetson Linux here")
    elif board.jetpack is None:
        yield Finding("JetPack", "note", f"Jetson Linux {board.l4t_release}, of a JetPack that is not in the table")
    else:
        yield Finding("JetPack", "ok", f"{board.jetpack} (Jetson Linux {board.l4t_release})")
