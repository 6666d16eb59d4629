"""`edge-tprune doctor`: is this machine ready to be measured?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from edge_tprune.cli.common import out, print_json
from edge_tprune.cli.options import Json
from edge_tprune.cli.root import app
from edge_tprune.errors import NegativeAnswer, UserError

_SIGNS = {
    "ok": ("ok", "green"),
    "note": ("note", "cyan"),
    "unknown": ("?", "yellow"),
    "warning": ("warn", "yellow"),
    "blocker": ("STOP", "bold red"),
}


@app.command(epilog="Examples: edge-tprune doctor · edge-tprune doctor --json · edge-tprune doctor --sysroot simulated-board")
def doctor(
    sysroot: Annotated[
        Path, typer.Option(help="Directory with another machine's sys, proc and etc (a simulated board).", show_default=False)
    ] = Path("/"),
    json: Json = False,
) -> None:
    """Look at board, runtimes, sensors, clocks, memory and throttling; say how to fix what is wrong. Changes nothing."""
    from edge_tprune.agent.doctor import examine

    if not (sysroot / "sys").is_dir() or not (sysroot / "proc").is_dir():
        raise UserError(f"--sysroot {sysroot}: there are no sys and proc in it")
    document = examine(sysroot)
    if json:
        print_json(document)
    else:
        show(document)
    if not document["ready"]:
        blockers = [finding["topic"] for finding in document["findings"] if finding["level"] == "blocker"]
        raise NegativeAnswer(f"a profile made now would be invalid, because of: {', '.join(dict.fromkeys(blockers))}")


def show(document: dict[str, Any]) -> None:
    """The findings on one screen, each with the command that fixes it below."""
    console, topic = out(), ""
    width = max(len(finding["topic"]) for finding in document["findings"])
    for finding in document["findings"]:
        sign, style = _SIGNS[finding["level"]]
        name = finding["topic"] if finding["topic"] != topic else ""
        topic = finding["topic"]
        line = Text.assemble((f"{sign:<5}", style), f"{name:<{width}}  {finding['text']}")
        console.print(line, soft_wrap=True)
        if finding["fix"]:
            console.print(Text(f"{'':<{width + 7}}→ {finding['fix']}", style="dim"), soft_wrap=True)
