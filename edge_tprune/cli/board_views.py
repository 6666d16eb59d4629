"""What the commands about boards show: the doctor's findings, and what became of a deployment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge_tprune.cli.terminal import Heading, Table, open_stdout, print_note, print_parts, print_text

if TYPE_CHECKING:
    from edge_tprune.agent.doctor.finding import Diagnosis
    from edge_tprune.deploy.journey import Deployment

_SIGNS = {
    "ok": ("ok", "green"),
    "note": ("note", "cyan"),
    "unknown": ("?", "yellow"),
    "warning": ("warn", "yellow"),
    "blocker": ("STOP", "bold red"),
}


def print_findings(found: Diagnosis) -> None:
    """The doctor's findings on one screen, each with the command that helps below it."""
    console, topic = open_stdout(), ""
    width = max(len(finding.topic) for finding in found.findings)
    for finding in found.findings:
        sign, style = _SIGNS[finding.level]
        name = finding.topic if finding.topic != topic else ""
        topic = finding.topic
        print_parts([(f"{sign:<5}", style), (f"{name:<{width}}  {finding.text}", "")], console)
        if finding.fix:
            print_parts([(f"{'':<{width + 7}}→ {finding.fix}", "dim")], console)


def print_deployment(deployment: Deployment) -> None:
    """One board: the findings, what was done, and the profiles on stdout."""
    if deployment.doctor is not None:
        print_findings(deployment.doctor)
    for step in deployment.steps:
        print_note(step)
    print_warnings([deployment])
    for path in deployment.collected:
        print_text(str(path))


def print_warnings(deployments: Sequence[Deployment]) -> None:
    """A line for each board whose measurement may not be what was meant."""
    for each in deployments:
        if each.warning is not None:
            print_note(f"{each.target}: {each.warning}")


def deployments_table(deployments: Sequence[Deployment]) -> Table:
    """Several boards, a row each."""
    rows = []
    for each in deployments:
        levels = [finding.level for finding in each.doctor.findings] if each.doctor else []
        rows.append(
            [
                str(each.target),
                "done" if each.error is None else str(each.error),
                "; ".join(each.steps) or "–",
                f"{levels.count('blocker')} blockers, {levels.count('warning')} warnings" if each.doctor else "–",
                ", ".join(map(str, each.collected)) or "–",
            ]
        )
    headings = [Heading(label, fold=True) for label in ("board", "outcome", "done", "doctor", "profiles")]
    return Table(headings, rows, "Boards")
