"""`edge-tprune profile`: measure on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_tprune.cli.data_options import ClassMapFile, SkipUnreadable, known_class_names, open_data
from edge_tprune.cli.interruption import Interruption
from edge_tprune.cli.options import BudgetNames, BundleArgument, Json, Quiet, check_root
from edge_tprune.cli.parsing import parse_list
from edge_tprune.cli.root import command
from edge_tprune.cli.settings import with_request
from edge_tprune.cli.terminal import open_stderr, print_json, print_text
from edge_tprune.errors import UserError
from edge_tprune.record.settings import RunRequest
from edge_tprune.text import command_line


@command(
    "edge-tprune profile bundles/ref --out profiles",
    "edge-tprune profile bundles/ref --rounds 30 --seconds 5 --budgets 1.0,0.5",
    "edge-tprune profile bundles/ref --fps 30",
    "edge-tprune profile bundles/ref --resume profiles/RUN",
)
@with_request
def profile(
    bundle: BundleArgument,
    request: RunRequest,
    profiles: Annotated[
        Path | None,
        typer.Option("--out", help="Directory in which the profile's own directory is created.", show_default="profiles"),
    ] = None,
    budgets: BudgetNames = None,
    images: Annotated[
        Path | None, typer.Option(help="Directory of images to run on, instead of the bundle's golden inputs.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="First measure accuracy on this device, on a directory with one sub-directory of images per class, or of unlabelled images."
        ),
    ] = None,
    class_map: ClassMapFile = None,
    skip_unreadable: SkipUnreadable = False,
    sysroot: Annotated[Path, typer.Option(help="Directory that holds sys, proc and etc, such as a simulated board's.")] = Path(
        "/"
    ),
    trace: Annotated[bool, typer.Option("--trace", help="Also write trace.json, for ui.perfetto.dev.")] = False,
    resume: Annotated[Path | None, typer.Option(help="Continue this interrupted profile: measure the missing turns.")] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Time every budget in randomised rounds, and record raw latencies, power, memory and all other sensors."""
    from edge_tprune.agent.profile import profile as start_run
    from edge_tprune.agent.profile import resume as resume_run
    from edge_tprune.agent.progress import TerminalProgress
    from edge_tprune.agent.session import Interrupted
    from edge_tprune.bundle.bundle import Bundle
    from edge_tprune.bundle.outputs import EMBEDDING, LOGITS

    check_root(sysroot)
    if resume is not None and profiles is not None:
        raise UserError(f"--resume continues in {resume}: leave out --out")
    if data is None and (class_map is not None or skip_unreadable):
        raise UserError(
            f"{'--class-map' if class_map is not None else '--skip-unreadable'} is about the images of --data: give both or none"
        )
    opened = Bundle.open(bundle)
    names = parse_list(budgets, str, "--budgets") if budgets is not None else None
    dataset = None
    if data is not None:
        dataset = open_data(
            data,
            opened.manifest.model.classes,
            labels=opened.manifest.model.output.name == LOGITS,
            by_directory=opened.manifest.model.output.name == EMBEDDING,
            class_map=class_map,
            class_names=known_class_names(opened),
            skip_unreadable=skip_unreadable,
            quiet=quiet,
        )
    start, place = (start_run, profiles or Path("profiles")) if resume is None else (resume_run, resume)
    try:
        with TerminalProgress(open_stderr(), quiet=quiet) as progress:
            path = start(
                opened,
                place,
                request,
                budgets=names,
                images=images,
                data=dataset,
                root=sysroot,
                trace=trace,
                progress=progress,
            )
    except Interrupted as stop:
        if stop.complete:
            raise Interruption(f"interrupted when all was measured: the profile in {stop.path} is complete") from stop
        given = {"--images": images, "--data": data, "--class-map": class_map}
        again = [word for option, value in given.items() if value is not None for word in (option, value)]
        again += ["--skip-unreadable"] if skip_unreadable else []
        again += [] if sysroot == Path("/") else ["--sysroot", sysroot]
        again += ["--trace"] if trace else []
        again = [bundle, "--resume", stop.path, *again]
        raise Interruption(
            f"interrupted. What was measured so far is in {stop.path}; continue with: {command_line('edge-tprune', 'profile', *again)}"
        ) from stop
    print_json({"profile": str(path)}) if json else print_text(str(path))
