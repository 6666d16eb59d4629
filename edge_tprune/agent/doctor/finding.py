"""What the doctor says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from edge_tprune.telemetry.boards import Board

Level = Literal["ok", "note", "warning", "blocker", "unknown"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    topic: str
    level: Level
    text: str
    fix: str | None = None  #: the command that fixes it


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the doctor says of a machine, as `doctor --json` prints it."""

    format: str
    version: int
    tool_version: str
    root: str  #: the directory that holds its `proc`, `sys`, `etc` ...
    board: Board
    ready: bool  #: no finding is a blocker
    findings: tuple[Finding, ...]
