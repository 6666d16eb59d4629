"""`edge-tprune profile`: measure on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_tprune.cli.options import BudgetNames, BundleArgument, Json, Threads
from edge_tprune.cli.parsing import parse_list
from edge_tprune.cli.root import command
from edge_tprune.cli.stopping import Interruption
from edge_tprune.cli.terminal import open_stderr, print_json, print_text
from edge_tprune.errors import UserError


@command(
    "edge-tprune profile bundles/ref --out profiles",
    "edge-tprune profile bundles/ref --rounds 30 --seconds 5 --budgets 1.0,0.5",
    "edge-tprune profile bundles/ref --fps 30",
    "edge-tprune profile bundles/ref --resume profiles/RUN",
)
def profile(
    bundle: BundleArgument,
    profiles: Annotated[
        Path | None, typer.Option("--out", help="Where profile directories are collected.", show_default="profiles")
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(help="Which of the bundle's graphs to run.", show_default="onnxruntime")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="Of the graphs: fp32, fp16 or mixed.", show_default="the first that the bundle was built for"),
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="How often each budget has its turn.", show_default="10")] = None,
    seconds: Annotated[
        float | None,
        typer.Option(help="Length of one turn.", show_default="1, or ten new values of the power sensor"),
    ] = None,
    warmup: Annotated[
        float | None,
        typer.Option(help="Seconds of warm-up before each turn, at least.", show_default="0.5, or what the power sensor needs"),
    ] = None,
    baseline: Annotated[
        float | None,
        typer.Option(
            help="Seconds to leave the machine alone before and after all rounds, for its idle power; 0 for none.",
            show_default="1, or twenty new values of the power sensor",
        ),
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Run at this fixed rate, like a camera's frames, instead of back to back.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the order within the rounds.", show_default="0")] = None,
    budgets: BudgetNames = None,
    threads: Threads = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of images to run on instead of the bundle's golden inputs.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of images by class: judge accuracy on this device first.")] = None,
    sysroot: Annotated[
        Path, typer.Option(help="Directory that holds sys, proc and etc: of a simulated board, for example.")
    ] = Path("/"),
    trace: Annotated[bool, typer.Option("--trace", help="Also write trace.json, which ui.perfetto.dev opens.")] = False,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with this profile, which was interrupted, at the turns that are missing.")
    ] = None,
    json: Json = False,
) -> None:
    """Run every budget's engine in randomised rounds and record raw latencies, power, memory and all other sensors."""
    from edge_tprune.agent.profile import profile as run
    from edge_tprune.agent.profile import resume as run_again
    from edge_tprune.agent.progress import TerminalProgress
    from edge_tprune.agent.session import Interrupted
    from edge_tprune.bundle.bundle import Bundle

    if not sysroot.is_dir():
        raise UserError(f"--sysroot {sysroot} is not a directory")
    opened = Bundle.open(bundle)
    names = parse_list(budgets, str, "--budgets") if budgets else None
    asked = {
        key: value
        for key, value in {
            "runtime": runtime,
            "precision": precision,
            "threads": threads,
            "rounds": rounds,
            "seconds_per_round": seconds,
            "warmup_seconds": warmup,
            "baseline_seconds": baseline,
            "fps": fps,
            "seed": seed,
        }.items()
        if value is not None
    }
    try:
        with TerminalProgress(open_stderr()) as progress:
            if resume is None:
                path = run(
                    opened,
                    profiles or Path("profiles"),
                    **asked,  # type: ignore[arg-type]
                    budgets=names,
                    images=images,
                    data=data,
                    root=sysroot,
                    trace=trace,
                    progress=progress,
                )
            elif profiles is not None:
                raise UserError(f"--resume goes on in {resume}: leave out --out")
            else:
                path = run_again(
                    opened,
                    resume,
                    asked=asked if names is None else {**asked, "budgets": names},
                    images=images,
                    data=data,
                    root=sysroot,
                    trace=trace,
                    progress=progress,
                )
    except Interrupted as stop:
        raise Interruption(str(stop)) from stop
    print_json({"profile": str(path)}) if json else print_text(str(path))
