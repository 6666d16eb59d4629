"""`edge-tprune deploy`: bring the agent and a bundle onto boards, and profiles back."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from edge_tprune.cli.options import BundleArgument, Json, Quiet
from edge_tprune.cli.root import command
from edge_tprune.cli.terminal import print_json, print_table
from edge_tprune.errors import EdgeTPruneError, InternalError, NegativeAnswer, UserError

if TYPE_CHECKING:
    from edge_tprune.deploy.journey import Deployment

_EXTRAS = ("ort", "jetson", "cuda")


@command(
    "edge-tprune deploy bundles/ref jetson@orin",
    "edge-tprune deploy bundles/ref jetson@orin:2222 --offline",
    "edge-tprune deploy bundles/ref jetson@orin --profile '' --collect profiles",
    "edge-tprune deploy bundles/ref --hosts boards.txt --profile '--rounds 5'",
    kept="what arrived on a board stays there, and the same command continues from there",
)
def deploy(
    bundle: BundleArgument,
    target: Annotated[str | None, typer.Argument(metavar="USER@HOST[:PORT]", help="The board.", show_default=False)] = None,
    hosts: Annotated[
        Path | None, typer.Option(help="Instead of one board: a file with one board per line.", show_default=False)
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(help="Then run `profile` on the board, with these options in quotes ('' for none).", show_default=False),
    ] = None,
    collect: Annotated[
        Path | None, typer.Option(help="Copy the board's profiles into this directory.", show_default=False)
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Copy every package to the board, which needs no internet then.")
    ] = False,
    extras: Annotated[
        str, typer.Option("--with", help="Extras to install on the board, comma-separated: ort, jetson (jtop), cuda.")
    ] = "",
    anyway: Annotated[bool, typer.Option("--anyway", help="Profile even if the doctor found a blocker.")] = False,
    ssh_config: Annotated[
        Path | None, typer.Option(help="SSH configuration to use instead of your own.", show_default=False)
    ] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Install the agent on a board over SSH, copy the bundle, and run the doctor; then profile and collect, if asked to."""
    from edge_tprune.bundle.bundle import Bundle
    from edge_tprune.cli.board_views import deployments_table, print_deployment, print_warnings
    from edge_tprune.cli.progress import BoardLines, BoardProgress
    from edge_tprune.deploy.hosts import parse_target, read_hosts
    from edge_tprune.deploy.journey import Options, deploy_all

    if (target is None) == (hosts is None):
        raise UserError("say which board: either USER@HOST[:PORT] or --hosts FILE")
    if collect is not None and collect.exists() and not collect.is_dir():
        raise UserError(f"--collect {collect} is no directory: give one for the profiles")
    targets = read_hosts(hosts) if hosts is not None else [parse_target(target or "")]
    options = Options(
        offline=offline,
        extras=_parse_extras(extras),
        profile=None if profile is None else _parse_words(profile),
        anyway=anyway,
        collect=collect,
        ssh_config=ssh_config,
    )
    opened = Bundle.open(bundle)
    if len(targets) == 1:
        with BoardProgress(quiet or json) as watcher:
            deployments = deploy_all(opened, targets, options, lambda _: watcher)
    else:
        deployments = deploy_all(opened, targets, options, lambda target: BoardLines(str(target), quiet))
    if json:
        print_json({"boards": [_document(deployment) for deployment in deployments]})
    elif len(targets) == 1:
        print_deployment(deployments[0])
    else:
        print_table(deployments_table(deployments))
        print_warnings(deployments)
    _raise_for_failures(deployments)


def _raise_for_failures(deployments: Sequence[Deployment]) -> None:
    """Ends the command as the worst of the boards did: an internal error, else a mistake, else a no."""
    failed = [deployment for deployment in deployments if deployment.error is not None]
    if len(deployments) == 1 and failed and failed[0].error is not None:
        raise failed[0].error
    if failed:
        kinds: tuple[type[EdgeTPruneError], ...] = (InternalError, UserError, NegativeAnswer)
        worst, first = next((kind, each.error) for kind in kinds for each in failed if isinstance(each.error, kind))
        names = ", ".join(str(deployment.target) for deployment in failed)
        raise worst(f"{len(failed)} of {len(deployments)} boards failed: {names}") from first


def _parse_extras(text: str) -> tuple[str, ...]:
    extras = tuple(part for part in text.replace(" ", ",").split(",") if part)
    for extra in extras:
        if extra not in _EXTRAS:
            raise UserError(f"--with {extra!r}: no such part (there are: {', '.join(_EXTRAS)})")
    return extras


def _parse_words(text: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise UserError(f"--profile {text!r}: {error}") from error
    for option in ("--out", "--resume", "--help", "-h"):
        if any(word.partition("=")[0] == option for word in words):
            raise UserError(f"--profile {text!r}: {option} is not for a deployment, which says itself where the profile goes")
    return words


def _document(deployment: Deployment) -> dict[str, object]:
    return {
        "board": str(deployment.target),
        "error": None if deployment.error is None else str(deployment.error),
        "steps": deployment.steps,
        "warning": deployment.warning,
        "doctor": msgspec.to_builtins(deployment.doctor),
        "profiles": [str(path) for path in deployment.collected],
    }
