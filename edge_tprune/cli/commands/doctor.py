"""`edge-tprune doctor`: is this machine ready to be measured?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from edge_tprune.cli.options import Json, check_root
from edge_tprune.cli.root import command
from edge_tprune.cli.terminal import print_json
from edge_tprune.errors import NegativeAnswer


@command("edge-tprune doctor", "edge-tprune doctor --json", "edge-tprune doctor --sysroot simulated-board")
def doctor(
    sysroot: Annotated[
        Path,
        typer.Option(
            help="Directory that holds another machine's sys, proc and etc, such as a simulated board's.", show_default=False
        ),
    ] = Path("/"),
    json: Json = False,
) -> None:
    """Check the board, runtimes, sensors, clocks, memory and throttling, and say how to fix problems. Changes nothing."""
    from edge_tprune.agent.doctor import examine
    from edge_tprune.cli.board_views import print_findings

    check_root(sysroot)
    found = examine(sysroot)
    if json:
        print_json(msgspec.to_builtins(found))
    else:
        print_findings(found)
    if not found.ready:
        blockers = [finding.topic for finding in found.findings if finding.level == "blocker"]
        raise NegativeAnswer(f"a profile made now would be invalid, because of: {', '.join(dict.fromkeys(blockers))}")
