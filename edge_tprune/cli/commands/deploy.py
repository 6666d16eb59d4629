"""`edge-tprune deploy`: bring the agent and a bundle onto boards, and profiles back."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from edge_tprune.cli.common import err, out, print_json, say
from edge_tprune.cli.options import BundleArgument, Json
from edge_tprune.cli.root import app
from edge_tprune.cli.views import table
from edge_tprune.errors import EdgeTPruneError, InternalError, NegativeAnswer, UserError

if TYPE_CHECKING:
    from edge_tprune.deploy.journey import Outcome


@app.command(
    epilog="Examples: edge-tprune deploy bundles/ref jetson@orin · edge-tprune deploy bundles/ref jetson@orin:2222 --offline "
    "--profile '--rounds 5' --collect profiles · edge-tprune deploy bundles/ref --hosts boards.txt --profile '' --collect profiles"
)
def deploy(
    bundle: BundleArgument,
    target: Annotated[str | None, typer.Argument(metavar="USER@HOST[:PORT]", help="The board.", show_default=False)] = None,
    hosts: Annotated[
        Path | None, typer.Option(help="Instead: a file with one board a line; all at once.", show_default=False)
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(help="Then run `profile` there, with these options in quotes ('' for none).", show_default=False),
    ] = None,
    collect: Annotated[
        Path | None, typer.Option(help="Bring the board's profiles into this directory.", show_default=False)
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Carry every package there: for boards without internet.")] = False,
    extras: Annotated[
        str, typer.Option("--with", help="Optional parts to install there: ort, jetson (jtop), cuda, with commas.")
    ] = "",
    anyway: Annotated[bool, typer.Option("--anyway", help="Profile although the doctor found a blocker.")] = False,
    ssh_config: Annotated[
        Path | None, typer.Option(help="SSH configuration to use instead of your own.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Install the agent on a board over SSH, copy the bundle, run the doctor; profile and collect if asked."""
    from edge_tprune.bundle.bundle import Bundle
    from edge_tprune.deploy.hosts import parse_target, read_hosts
    from edge_tprune.deploy.journey import Options, deploy_all

    if (target is None) == (hosts is None):
        raise UserError("say which board: either USER@HOST[:PORT] or --hosts FILE")
    targets = read_hosts(hosts) if hosts is not None else [parse_target(target or "")]
    options = Options(
        offline=offline,
        extras=_extras(extras),
        profile=None if profile is None else _words(profile),
        anyway=anyway,
        collect=collect,
        ssh_config=ssh_config,
    )
    opened = Bundle.open(bundle)
    if len(targets) == 1:
        with _OneBoard(quiet=json) as watcher:
            outcomes = deploy_all(opened, targets, options, lambda _: watcher)
    else:
        outcomes = deploy_all(opened, targets, options, lambda target: _ManyBoards(str(target)))
    if json:
        print_json({"boards": [_document(outcome) for outcome in outcomes]})
    elif len(targets) == 1:
        _show_one(outcomes[0])
    else:
        out().print(_outcome_table(outcomes))
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if len(targets) == 1 and failed and failed[0].error is not None:
        raise failed[0].error
    if failed:
        raise _worst(failed)(
            f"{len(failed)} of {len(outcomes)} boards failed: {', '.join(str(outcome.target) for outcome in failed)}"
        )


def _worst(failed: list[Outcome]) -> type[EdgeTPruneError]:
    """The kind of error that ends a deployment to several boards: an internal error, else a mistake, else a no."""
    kinds = (InternalError, UserError, NegativeAnswer)
    return next(kind for kind in kinds if any(isinstance(outcome.error, kind) for outcome in failed))


def _extras(text: str) -> tuple[str, ...]:
    known = ("ort", "jetson", "cuda")
    extras = tuple(part for part in text.replace(" ", ",").split(",") if part)
    for extra in extras:
        if extra not in known:
            raise UserError(f"--with {extra!r}: no such part (there are: {', '.join(known)})")
    return extras


def _words(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UserError(f"--profile {text!r}: {error}") from error


def _show_one(outcome: Outcome) -> None:
    from edge_tprune.cli.commands.doctor import show

    if outcome.doctor is not None:
        show(outcome.doctor)
    for step in outcome.steps:
        say(step)
    for path in outcome.collected:
        print(path)


def _outcome_table(outcomes: list[Outcome]) -> Any:
    result = table("Boards")
    for heading in ("board", "outcome", "done", "doctor", "profiles"):
        result.add_column(heading, overflow="fold")
    for outcome in outcomes:
        levels = [finding["level"] for finding in outcome.doctor["findings"]] if outcome.doctor else []
        doctor = f"{levels.count('blocker')} blockers, {levels.count('warning')} warnings" if outcome.doctor else "–"
        result.add_row(
            str(outcome.target),
            "done" if outcome.error is None else str(outcome.error),
            "; ".join(outcome.steps) or "–",
            doctor,
            "\n".join(map(str, outcome.collected)) or "–",
        )
    return result


def _document(outcome: Outcome) -> dict[str, Any]:
    return {
        "board": str(outcome.target),
        "error": None if outcome.error is None else str(outcome.error),
        "steps": outcome.steps,
        "doctor": outcome.doctor,
        "profiles": [str(path) for path in outcome.collected],
    }


class _OneBoard:
    """Steps as lines, copying as a bar, and what `profile` draws as it draws it; on stderr."""

    def __init__(self, quiet: bool) -> None:
        self._console = err()
        self._live = self._console.is_terminal and not quiet
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._bar = Progress(*columns, console=self._console, transient=True, disable=not self._live)
        self._task = self._bar.add_task("", total=None, visible=False)

    def __enter__(self) -> _OneBoard:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def step(self, text: str) -> None:
        self._bar.update(self._task, visible=False)
        if text == "profiling":
            self._bar.stop()  # the board draws now
        self._console.print(f"… {text}", markup=False, soft_wrap=True)

    def advance(self, done: int, of: int) -> None:
        self._bar.update(self._task, visible=True, completed=done, total=of)

    def live(self, text: str) -> None:
        if self._live:
            self._console.file.write(text)
            self._console.file.flush()


class _ManyBoards:
    """Steps as lines that begin with the board's name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def step(self, text: str) -> None:
        say(f"{self._name}: {text}")

    def advance(self, done: int, of: int) -> None:
        pass

    def live(self, text: str) -> None:
        pass
